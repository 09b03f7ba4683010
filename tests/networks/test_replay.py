"""Replay: its cost, every JAX transformation, compact arrays contracted by their own products."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close, mlp, mlp_params, network
from helpers_models import MODELS
from helpers_oracle import small_and_full
from laws import matrix

import jaxcompress as jc


def flops(function, *arguments):
    cost = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


@pytest.mark.parametrize("name", ["mlp_by_hand", "encoder_rms", "lstm_by_hand", "stacked_scan"])
def test_flops_are_those_of_the_small_function(name):
    """The same function traced at the small shapes is the network that one would write by hand."""
    model, net = network(name)
    small, _, changed = small_and_full(
        net, model.params, 1, only=[a.key for a in net.axes if ":1." not in a.key]
    )
    sized = net.resized({key: size for key, (_, size, _, _) in changed.items()})
    assert flops(sized, small, *model.inputs) == flops(model.apply, small, *model.inputs)
    close(sized(small, *model.inputs), model.apply(small, *model.inputs))


class Attention(nn.Module):
    """Widths in the constructor, as in any Flax model."""

    heads: int
    size: int

    @nn.compact
    def __call__(self, x):
        y = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=self.heads * self.size, out_features=x.shape[-1]
        )(x)
        return nn.Dense(3)(nn.relu(nn.Dense(2 * self.heads * self.size)(x + y)))


def test_a_flax_module_with_widths_written_into_it_runs_at_others():
    x = jax.random.normal(jax.random.key(0), (4, 6, 8))
    full, half = Attention(4, 6), Attention(2, 3)
    params, small = (module.init(jax.random.key(1), x) for module in (full, half))
    net = jc.trace(full.apply, params, x)
    # the logits keep their scale, 1/sqrt(6), where the half-size module would divide by sqrt(3)
    query = ("params", "MultiHeadDotProductAttention_0", "query")
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf / 2**0.5 if tuple(key.key for key in path[:3]) == query else leaf,
        small,
    )
    close(net(small, x), half.apply(scaled, x), 1e-5)
    other = jnp.concatenate([x, x], axis=1)[:3]  # another batch and sequence length
    close(net(small, other), half.apply(scaled, other), 1e-5)
    assert flops(net, small, x) == flops(half.apply, small, x)


def test_under_every_transformation():
    params, small, x = mlp_params((5, 8, 6, 3)), mlp_params((5, 4, 3, 3)), jnp.ones((2, 5))
    net = jc.trace(mlp, params, x)
    expected = mlp(small, x)
    close(net(small, x), expected)
    close(jax.jit(net)(small, x), expected)
    close(jax.checkpoint(net)(small, x), expected)
    stack = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), small, jax.tree.map(lambda leaf: 2 * leaf, small)
    )
    both = jnp.stack([expected, mlp(jax.tree.map(lambda leaf: 2 * leaf, small), x)])
    close(jax.vmap(net, in_axes=(0, None))(stack, x), both)
    close(jax.lax.scan(lambda carry, p: (carry, net(p, x)), 0, stack)[1], both)
    close(jax.grad(lambda p: net(p, x).sum())(small), jax.grad(lambda p: mlp(p, x).sum())(small))
    assert jax.eval_shape(net, small, x).shape == (2, 3)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small)
    assert net(half, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_layer_norm_in_bfloat16():
    model, net = network("encoder_linen")
    small, _, changed = small_and_full(net, model.params, 2)
    sized = net.resized({key: size for key, (_, size, _, _) in changed.items()})
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small)
    assert np.isfinite(np.asarray(sized(half, *model.inputs), np.float32)).all()


def test_an_eager_call_is_compiled_once_for_each_shape():
    traced = []

    def counting(params, x):
        traced.append(x.shape)
        return mlp(params, x)

    params, small = mlp_params((5, 8, 6, 3)), mlp_params((5, 4, 3, 3))
    net = jc.trace(counting, params, jnp.ones((2, 5)))
    for _ in range(3):
        net(small, jnp.ones((2, 5)))
    count = len(traced)
    for _ in range(3):
        net(small, jnp.ones((2, 5)))
    assert len(traced) == count
    net(small, jnp.ones((4, 5)))
    assert len(traced) == count + 1


def test_a_network_is_replaced_not_changed():
    """`resized` gives another network, which shares the analyses."""
    _, net = network("encoder_by_hand")
    heads = next(axis for axis in net.axes if ":1.0" in axis.key)
    sized = net.resized({heads.key: heads.size - 1})
    assert not net.given_sizes
    assert sized.given_sizes == {heads.key: heads.size - 1}
    assert sized.traces is net.traces
    with pytest.raises(dataclasses.FrozenInstanceError):
        sized.given_sizes = {}
    assert f"{len(net.refused)} refused" in repr(net)


def test_full_sizes_are_those_of_all_parameters():
    _, net = network("stacked_scan")
    for axis in net.axes:
        assert net.structure.full_sizes[axis.key] == axis.size
    for row in net.refused:
        assert net.structure.full_sizes[row.axis] == row.size


def test_tracing_alone_changes_nothing():
    for name in ("convnet", "encoder_by_hand", "gru"):
        model, net = network(name)
        expected = jax.jit(model.apply)(model.params, *model.inputs)
        assert all(
            map(
                np.array_equal,
                jax.tree.leaves(net(model.params, *model.inputs)),
                jax.tree.leaves(expected),
            )
        )


def test_means_over_the_batch_and_over_axes_of_equal_size():
    """A mean divides by the present size of what is summed; the same number elsewhere stays."""

    def apply(params, x):
        h = jnp.tanh(x @ params["up"])
        h = (h - h.mean(0)) / 8.0  # 8 is the batch, and the width
        centred = h - h.mean(-1, keepdims=True)
        return (centred / 8.0) @ params["down"]

    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in {"up": (5, 8), "down": (8, 2)}.items()
    }
    net = jc.trace(apply, params, jnp.ones((8, 5)))
    small = {"up": params["up"][:, :4], "down": params["down"][:4]}
    x = jax.random.normal(jax.random.key(0), (8, 5))

    def by_hand(params, x):
        h = jnp.tanh(x @ params["up"])
        h = (h - h.mean(0)) / 8.0
        return ((h - h.sum(-1, keepdims=True) / 4.0) / 8.0) @ params["down"]

    close(net(small, x), by_hand(small, x), 1e-5)
    close(net(small, x[:3]), apply(small, x[:3]), 1e-5)


def test_two_replays_in_a_row():
    """A pruned network can be traced and pruned again; the first network still runs the result."""
    params, x = mlp_params((5, 8, 6, 3)), jax.random.normal(jax.random.key(0), (20, 5))
    net = jc.trace(mlp, params, x)
    once = jc.rotate_and_prune(net, 1 / 2)(params, jc.calibrate(net, params, [x], progress=False))
    again = jc.trace(net, once, x)
    twice = jc.rotate_and_prune(again, 1 / 2)(once, jc.calibrate(again, once, [x], progress=False))
    assert twice["w1"].shape == (2, 2)  # 8 to 4 to 2, 6 to 3 to 2
    close(again(twice, x), mlp(twice, x), 1e-5)
    close(net(twice, x), mlp(twice, x), 1e-5)


# --- compact arrays ------------------------------------------------------------------------------


FORMS = {
    "hashed": jc.hashed(1 / 2),
    "vocabulary": jc.vocabulary(1 / 2),
    "factored": jc.factored(3 / 4),
    "convolved": jc.spline(1 / 2),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["mlp_linen", "encoder_by_hand", "lstm_by_hand", "remat_mlp", "embedding_mlp"]
)
def test_a_compact_network_is_its_materialised_self(name, form):
    """Law 1: in any form, through casts, reshapes, loops and remat."""
    model, net = network(name)
    small = jc.at(jc.matrices, FORMS[form])(model.params)
    close(net(small, *model.inputs), model.apply(jc.materialize(small), *model.inputs), 1e-4)


def test_stacked_layers_stay_compact_inside_a_scan():
    model, net = network("stacked_scan")
    axes = {"layers/w1": jc.MatrixAxes(1, 2), "layers/w2": jc.MatrixAxes(1, 2)}
    small = jc.at("layers/w*", jc.factored(3 / 4, matrix_axes=axes))(model.params)
    close(net(small, *model.inputs), model.apply(jc.materialize(small), *model.inputs), 1e-4)
    uses = net.explain(small)
    assert {use.how for use in uses} == {"contracted"}
    assert {use.leaf for use in uses} == {"layers/w1", "layers/w2"}


def test_where_a_compact_array_is_contracted_and_where_not():
    def apply(params, tokens, x):
        table = params["table"].astype(jnp.float32)
        h = table[tokens].mean(1) + x @ params["flipped"].T
        h = h + jax.vmap(lambda token: params["sliced"][token])(tokens[:, 0])
        heads = params["heads"].reshape(6, 2, 3)
        out = jnp.einsum("bd,dhe->bhe", h, heads).reshape(-1, 6)
        return out @ jnp.sin(params["bent"]) + jax.checkpoint(lambda p, v: v @ p)(
            params["plain"], out
        )

    rng = np.random.default_rng(0)
    shapes = {
        "table": (11, 6),
        "sliced": (11, 6),
        "flipped": (6, 4),
        "heads": (6, 6),
        "bent": (6, 3),
        "plain": (6, 3),
    }
    params = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }
    tokens, x = rng.integers(0, 11, (5, 7)), jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    net = jc.trace(apply, params, tokens, x)
    small = jc.at(jc.matrices, jc.factored(0.8))(params)
    close(net(small, tokens, x), apply(jc.materialize(small), tokens, x), 1e-4)
    uses = {use.leaf: use for use in net.explain(small)}
    assert {name: use.how for name, use in uses.items()} == {
        "table": "looked up",
        "sliced": "looked up",
        "flipped": "contracted",
        "heads": "contracted",
        "bent": "materialised",
        "plain": "contracted",
    }
    assert uses["bent"].primitive == "sin"
    assert "test_replay.py" in uses["bent"].where
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small)
    assert np.isfinite(np.asarray(net(half, tokens, x), np.float32)).all()


def test_structural_contraction_costs_what_the_form_costs():
    kernel = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)), jnp.float32)}
    net = jc.trace(lambda p, x: x @ p["w"], kernel, jnp.ones((32, 256)))
    small = jc.spline(1 / 4)(kernel)
    assert flops(net, small, jnp.ones((32, 256))) < 1.1 * 2 * 32 * 256 * 64


def test_prune_then_compact_then_run():
    """The design's first example: half the channels, what is left in an eighth of the numbers."""
    model, net = network("mlp_linen")
    x = model.resize(64, 1)
    moments = jc.calibrate(net, model.params, [x], progress=False)
    shrink = jc.chain(
        jc.rotate_and_prune(net, keep=0.5), jc.at("**/kernel", jc.factored(keep=3 / 4))
    )
    small, after = shrink.apply(model.params, moments)
    close(net(small, *x), net(jc.materialize(small), *x), 1e-4)

    def loss(params):
        return jnp.sum(net(params, *x) ** 2)

    assert jax.tree.structure(jax.grad(loss)(small)) == jax.tree.structure(small)
    assert after.by_leaf()["params/layers_2/kernel"].shape == (6, 6)


# --- refusals ------------------------------------------------------------------------------------


def test_parameters_that_do_not_fit_are_named():
    params, x = mlp_params((5, 8, 6, 3)), jnp.ones((2, 5))
    net = jc.trace(mlp, params, x)
    with pytest.raises(
        ValueError, match=r"w0 has size 4 in dimension 1, but its axis w0:1 has 3 elsewhere"
    ):
        net({**mlp_params((5, 4, 3, 3)), "b0": jnp.ones(3)}, x)
    with pytest.raises(
        ValueError, match=r"w2 has size 4 in dimension 1.*not hidden: it is visible in the outputs"
    ):
        net({**params, "w2": jnp.ones((6, 4))}, x)
    with pytest.raises(ValueError, match="another tree"):
        net({"w0": params["w0"]}, x)
    with pytest.raises(ValueError, match="no hidden axes"):
        net.resized({"w9:1": 3})


def test_what_stays_ambiguous_raises():
    model, net = network("encoder_by_hand")
    small, _, changed = small_and_full(net, model.params, 0)
    assert any(":1.0" in key for key in changed)  # heads, which no leaf shows by themselves
    with pytest.raises(ValueError, match=r"net\.resized"):
        net(small, *model.inputs)


def test_an_unknown_primitive_freezes_only_what_it_touches():
    def apply(params, x):
        h = jnp.tanh(x @ params["a"])
        h = jnp.sort(h @ params["b"], axis=-1)
        return h @ params["c"]

    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.normal(size=shape))
        for name, shape in {"a": (3, 8), "b": (8, 6), "c": (6, 2)}.items()
    }
    net = jc.trace(apply, params, jnp.ones((4, 3)))
    assert net.axes.keys() == ["a:1"]
    row = net.refused["b:1"]
    assert row.primitive == "sort"
    assert "sorted" in row.reason
    assert "test_replay.py" in row.where

    def odd(params, x):
        h = jnp.tanh(x @ params["a"])
        return jax.lax.linalg.qr(h @ params["b"])[1][:1] @ params["c"]

    refused = jc.trace(odd, params, jnp.ones((9, 3)))
    assert refused.axes.keys() == ["a:1"]
    assert "no rule is known" in refused.refused["b:1"].reason


def test_a_users_rule():
    from jaxcompress.programs import RULES, elementwise, register

    def apply(params, x):
        return jax.lax.erf_inv(jnp.tanh(x @ params["a"])) @ params["b"]

    params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
    kept = RULES.pop("erf_inv")
    try:
        assert jc.trace(apply, params, jnp.ones((4, 3))).axes.keys() == []
        register("erf_inv")(elementwise)
        assert jc.trace(apply, params, jnp.ones((4, 3))).axes.keys() == ["a:1"]
    finally:
        RULES["erf_inv"] = kept


def test_refusals_say_why():
    def apply(params, tokens, x):
        mask = np.array([1.0, 2.0, 3.0, 4.0])  # closed over
        h = params["embed"][tokens] + (x @ params["a"] * mask)[:, None]
        half = jax.lax.slice(x @ params["b"], (0, 0), (5, 6), (1, 2))
        soft = jax.nn.softmax(x @ params["c"])
        total = jnp.cumsum(x @ params["d"], axis=-1)
        return (
            h.sum((1, 2))
            + (half @ params["e"]).sum(-1)
            + (soft @ params["f"]).sum(-1)
            + (total @ params["g"]).sum(-1)
        )

    rng = np.random.default_rng(0)
    shapes = {
        "embed": (9, 4),
        "a": (3, 4),
        "b": (3, 6),
        "c": (3, 5),
        "d": (3, 7),
        "e": (3, 8),
        "f": (5, 8),
        "g": (7, 8),
    }
    params = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }
    net = jc.trace(apply, params, rng.integers(0, 9, (5, 2)), jnp.ones((5, 3)))
    reasons = {row.axis: row.reason for row in net.refused}
    words = {
        "embed:0": "picked by an index",
        "a:1": "closes over",
        "b:1": "one position in 2",
        "c:1": "softmax",
        "d:1": "in order",
    }
    for axis, word in words.items():
        assert word in reasons[axis], (axis, reasons)


def test_batch_statistics_are_mirrors():
    model = MODELS["convnet_train"]()
    with_state = jc.trace(model.apply, model.params, *model.inputs, state_outputs=model.state)
    without = jc.trace(model.apply, model.params, *model.inputs)
    assert len(with_state.axes) > len(without.axes)
    with pytest.raises(ValueError, match=r"no output is at '7'"):
        jc.trace(model.apply, model.params, *model.inputs, state_outputs={"7": "batch_stats"})


def test_a_cache_of_keys_and_values_is_a_mirror():
    """A decoder's cache is a parameter that outputs mirror: its channels are hidden as well."""

    def apply(params, x, place):
        q, k, v = (x @ params[name] for name in ("q", "k", "v"))
        cache = {
            name: jax.lax.dynamic_update_slice(params["cache"][name], new[:, None], (0, place, 0))
            for name, new in (("k", k), ("v", v))
        }
        weights = jax.nn.softmax(jnp.einsum("bd,bld->bl", q, cache["k"]))
        return jnp.einsum("bl,bld->bd", weights, cache["v"]) @ params["out"], cache

    rng = np.random.default_rng(0)
    shapes = {"q": (5, 8), "k": (5, 8), "v": (5, 6), "out": (6, 3)}
    params = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }
    params["cache"] = {"k": jnp.zeros((2, 4, 8)), "v": jnp.zeros((2, 4, 6))}
    x = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
    net = jc.trace(apply, params, x, 1, state_outputs={"1": "cache"})
    assert sorted(axis.size for axis in net.axes) == [6, 8]
    small, full, _ = small_and_full(net, params, 0)
    out, cache = net(small, x, 1)
    close(out, apply(full, x, 1)[0])
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(jnp.shape, small["cache"])


@pytest.mark.parametrize("name", ["encoder_linen", "mlp_equinox", "stacked_scan", "convnet"])
def test_weights_are_compacted_by_the_networks_own_roles(name):
    """(out, in), three-dimensional, stacked and convolution kernels, by the axes of the network."""
    model, net = network(name)
    weights = [leaf for leaf, axes in net.matrix_axes.items() if axes]
    small = jc.at(tuple(weights), jc.factored(3 / 4, matrix_axes=net.matrix_axes))(model.params)
    moments = jc.calibrate(net, model.params, [model.inputs], progress=False)
    fitted = jc.at(tuple(weights), jc.factored(3 / 4, matrix_axes=net.matrix_axes))(
        model.params, moments
    )
    for tree in (small, fitted):
        close(net(tree, *model.inputs), model.apply(jc.materialize(tree), *model.inputs), 2e-4)
    hows = [use.how for use in net.explain(small)]
    assert ("materialised" in hows) == (name == "convnet")


VIEWS = {
    "squeeze": ((12, 1, 9), 0, (1, 2), lambda w: jnp.squeeze(w, 1)),
    "reshape": ((12, 3, 3), 0, (1, 2), lambda w: w.reshape(12, 9)),
    "transpose": ((9, 12), 1, 0, jnp.transpose),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_compact_kernel_in_another_layout_is_contracted(name):
    """Not expanded to be laid out."""
    shape, inputs, outputs, view = VIEWS[name]
    params = {"w": matrix(*shape)}
    net = jc.trace(lambda p, x: jnp.tanh(x @ view(p["w"])).sum(1), params, jnp.ones((4, 12)))
    form = jc.factored(1 / 2, matrix_axes=jc.MatrixAxes(inputs, outputs))
    small = {"w": form(params["w"])}
    assert [row.how for row in net.explain(small)] == ["contracted"]
    x = matrix(4, 12, seed=1)
    np.testing.assert_allclose(net(small, x), net.apply(jc.materialize(small), x), rtol=1e-5)
