"""Every primitive that has a rule, on a leaf in every form: as on the leaf materialised.

Value and gradient in the stored numbers. A rule may hand a compact array on, use its own product or
look-up, or materialise it. Every form is tried on a line of each primitive that does one of the
first two, two of them on all lines; what is materialised is the same whatever the form.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from helpers_primitives import INPUTS, LINES, LOOSE, NEVER
from helpers_table import fresh
from laws import TRANSFORMS, matrix

import jaxcompress as jc
from jaxcompress.programs import RULES, compat

pytestmark = pytest.mark.xdist_group("leaves")

DENSE = {"w": matrix(12, 9), "v": matrix(9, 12), "stack": matrix(3, 12, 9)}
PROGRAMS = {"scan", "while", "cond", *compat.REMAT}
"""Primitives whose programs take leaves as they are."""
HANDED_ON = {"copy", "copy_p", "squeeze", "while", "cond"}
"""Primitives that treat every form alike: two forms are enough."""
SAME = (compat.REMAT, {"custom_vjp_call", "custom_vjp_call_jaxpr"}, {"copy", "copy_p"})
"""Names of one primitive in different versions of JAX, several of which may be installed."""
INSTALLED = {name: lines for name, lines in LINES.items() if name in compat.primitives()}


def leaves(form):
    """A matrix in a form, its transpose, and a stack of three."""
    array = TRANSFORMS[form]({"w": DENSE["w"]})["w"]
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), array)
    return {"w": array, "v": array.T, "stack": stack}


@functools.cache
def networks():
    """The network of every line."""
    return {
        (name, index): jc.trace(line, DENSE, INPUTS)
        for name, lines in INSTALLED.items()
        for index, line in enumerate(lines)
    }


@functools.cache
def kept():
    """The lines whose primitive does not just materialise the leaf."""
    probe = leaves("factored")

    def materialised(name, net):
        uses = net.explain(probe)
        return any(use.how == "materialised" and use.primitive == name for use in uses)

    return [
        key
        for key, net in networks().items()
        if key[0] in PROGRAMS or not materialised(key[0], net)
    ]


def steps(program):
    for step in program.steps:
        yield step
        for inner in step.programs.values():
            yield from steps(inner)


def test_every_rule_has_a_line_that_hands_the_leaf_to_its_primitive():
    missing = (RULES.keys() & compat.primitives()) - LINES.keys() - NEVER.keys()
    assert sorted(missing) == []
    assert not NEVER.keys() & LINES.keys()
    for (name, index), net in networks().items():
        program = net.traced_program(DENSE, INPUTS).program
        same = next((names for names in SAME if name in names), {name})
        here = [step for step in steps(program) if step.name in same]
        values = [value for step in here for value in step.inputs]
        assert any(value.from_params and value.direct for value in values), (name, index)


def numbers(out):
    """All outputs as one real vector."""
    arrays = [jnp.asarray(leaf) for leaf in jax.tree.leaves(out)]
    parts = [[a.real, a.imag] if jnp.iscomplexobj(a) else [a] for a in arrays]
    return jnp.concatenate([a.astype(jnp.float32).ravel() for pair in parts for a in pair])


def with_gradient(function, params):
    """The outputs, and the gradient of a sum of them with weights of both signs.

    Where JAX has no derivative there is none.
    """
    try:
        out, pull = jax.vjp(lambda params: numbers(function(params)), params)
        return out, pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)))[0]
    except (NotImplementedError, ValueError):
        return numbers(function(params)), None


def assert_equal_to_dense(keys, params):
    """Run lines on compact leaves and on the leaves materialised, in one program."""

    @jax.jit
    def both(params, inputs):
        def ours(key):
            return with_gradient(lambda params: networks()[key].replay(params, inputs), params)

        def dense(key):
            line = LINES[key[0]][key[1]]
            return with_gradient(lambda params: line(jc.materialize(params), inputs), params)

        return {
            f"{name} {index}": (ours((name, index)), dense((name, index))) for name, index in keys
        }

    for key, (ours, dense) in both(params, jax.tree.map(jnp.asarray, INPUTS)).items():
        tolerance = LOOSE.get(key.split()[0], 1e-4)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(dense), strict=True):
            scale = max(np.abs(other).max(initial=0, where=np.isfinite(other)), 1e-3)
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale, err_msg=key)


@pytest.mark.parametrize("form", TRANSFORMS)
def test_every_form_keeps_what_a_primitive_means(form):
    first = {name: (name, index) for name, index in reversed(kept()) if name not in HANDED_ON}
    assert_equal_to_dense([*first.values()], leaves(form))


@pytest.mark.parametrize("form", ["factored", "dct, codes hashed"])
def test_a_rule_that_keeps_a_leaf_keeps_what_the_primitive_means(form):
    assert_equal_to_dense(kept(), leaves(form))


def test_a_rule_that_materialises_a_leaf_does_what_the_primitive_does():
    assert_equal_to_dense([key for key in networks() if key not in kept()], leaves("factored"))


def test_a_stack_that_shares_a_child_is_not_cut_along_it():
    """Layers over one vocabulary: as many layers as the vocabulary has rows."""
    kernels, x = matrix(8, 8, 8), matrix(3, 8)
    net = jc.trace(lambda w, x: jax.lax.scan(lambda h, w: (h @ w, None), x, w)[0], kernels, x)
    axes = jc.MatrixAxes(1, 2)
    small = jc.vocabulary(1, atoms=np.eye(8, 4), matrix_axes=axes)(kernels)
    np.testing.assert_allclose(net(small, x), net(jc.materialize(small), x), rtol=1e-4)
    assert [use.how for use in net.explain(small)] == ["materialised"]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8)(jnp.tanh(nn.LayerNorm()(x))), None


def test_biases_and_scales_stacked_by_a_module():
    """`nn.scan` stacks them to matrices, whose rows its loop takes one by one."""
    layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    x = matrix(5, 8)
    params = fresh(layers.init, x, None)
    net = jc.trace(lambda params, x: layers.apply(params, x, None)[0], params, x)
    small = jc.chain(
        jc.at("**/kernel", jc.hashed(1 / 2, matrix_axes=jc.MatrixAxes(1, 2))),
        jc.at(("**/bias", "**/scale"), jc.hashed(1 / 2)),
    )(params)
    assert {use.how for use in net.explain(small)} == {"contracted", "materialised"}
    ours, dense = (
        jax.value_and_grad(lambda params, run=run: (run(params) ** 2).sum())(small)
        for run in (lambda p: net(p, x), lambda p: net.apply(jc.materialize(p), x))
    )
    close(ours, dense, 1e-4)


def test_a_product_keeps_its_precision():
    """Accelerators round the operands of a product unless they are told not to."""

    def apply(w, x):
        return jnp.dot(x, w, precision="highest"), jnp.dot(x, w)

    w, x = matrix(12, 9), matrix(5, 12)
    small = jc.factored(3 / 4)(w)
    printed = str(jax.make_jaxpr(jc.trace(apply, w, x).replay)(small, x))
    products = printed.count("dot_general")
    assert printed.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products // 2


def test_branches_of_platforms_stay_apart():
    """Those of another platform may not compile on this one."""

    def apply(w, x):
        return jax.lax.platform_dependent(w, x, cpu=lambda w, x: x @ w, default=lambda w, x: x @ -w)

    w, x = matrix(12, 9), matrix(5, 12)
    net, small = jc.trace(apply, w, x), jc.factored(3 / 4)(w)
    traced, replayed = jax.make_jaxpr(apply)(w, x), jax.make_jaxpr(net.replay)(small, x)
    assert ("branches_platforms" in str(replayed)) == ("branches_platforms" in str(traced))
    np.testing.assert_allclose(net(small, x), apply(jc.materialize(small), x), atol=1e-5)


def test_the_primitives_without_a_rule_are_named():
    missing = jc.programs.primitives_without_rule()
    assert {"qr", "eigh", "psum", "pure_callback"} <= set(missing)
    assert not {"jit", "tanh", "ragged_dot_general", "custom_linear_solve"} & set(missing)

    def apply(params, x):
        return jnp.linalg.qr(x @ params["up"])[1][:1] @ params["down"]

    params = {"up": matrix(3, 8), "down": matrix(8, 2)}
    refused = jc.trace(apply, params, matrix(9, 3)).refused["up:1"]
    assert refused.primitive in missing
    assert refused.primitive in refused.reason
