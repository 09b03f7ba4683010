"""A user's own array: its product and look-up are public methods, and everything uses them."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import matrix

import jaxcompress as jc
from jaxcompress.testing import check_array

CALLS: Counter[str] = Counter()


@jc.compact_array
class MonarchArray(jc.CompactArray):
    """A block-diagonal matrix times a permutation times a block-diagonal matrix."""

    first: jax.Array  # (..., q, p, r): q blocks, inputs q p
    second: jax.Array  # (..., r, q, s): r blocks, outputs r s

    def materialize(self):
        dense = jnp.einsum("...qpr,...rqs->...qprs", self.first, self.second)
        q, p, r, s = dense.shape[-4:]
        return dense.reshape(*dense.shape[:-4], q * p, r * s)

    def multiply(self, x):
        CALLS["multiply"] += 1
        x = x.reshape(*x.shape[:-1], *self.first.shape[-3:-1])
        x = jnp.einsum("...tqp,...qpr->...trq", x, self.first)
        x = jnp.einsum("...trq,...rqs->...trs", x, self.second)
        return x.reshape(*x.shape[:-2], -1)

    def take(self, rows):
        CALLS["take"] += 1
        q, p = jnp.divmod(rows.ravel(), self.first.shape[-2])
        taken = jnp.einsum("tr,rts->trs", self.first[q, p], self.second[:, q])
        return taken.reshape(*rows.shape, -1)


def monarch(*stack: int, seed: int = 0) -> MonarchArray:
    """(..., 12, 8)."""
    return MonarchArray(matrix(*stack, 3, 4, 2, seed=seed), matrix(*stack, 2, 3, 4, seed=seed + 1))


def calls(function, *arguments):
    """The result, and the methods of the array that its program is made of."""
    jax.clear_caches()
    CALLS.clear()
    program = jax.make_jaxpr(lambda *given: function(*given))(*arguments)
    dense = {"materialize"} if "name=matrix" in str(program) else set()
    return function(*arguments), set(CALLS) | dense


def test_an_own_array_keeps_the_laws():
    check_array(monarch())


def test_an_own_product_is_what_a_network_runs():
    def apply(params, x):
        return jnp.tanh(x @ params["up"]) @ params["down"].T

    x = matrix(5, 12, seed=3)
    small = {"up": monarch(), "down": monarch(seed=5)}
    dense = jc.materialize(small)
    net = jc.trace(apply, dense, x)
    assert [use.how for use in net.explain(small)] == ["contracted", "contracted"]
    out, used = calls(net, small, x)
    np.testing.assert_allclose(out, apply(dense, x), rtol=1e-4, atol=1e-4)
    assert used == {"multiply"}
    vector = jc.trace(lambda params, v: v @ params, dense["up"], x[0])
    out, used = calls(vector, small["up"], x[0])
    np.testing.assert_allclose(out, x[0] @ dense["up"], rtol=1e-4, atol=1e-4)
    assert used == {"multiply"}

    def loss(p, x):
        return jnp.mean(net(p, x) ** 2)

    slope, used = calls(jax.grad(loss), small, x)
    assert used == {"multiply"}
    expected = jax.grad(lambda p: jnp.mean(apply(jc.materialize(p), x) ** 2))(small)
    for got, want in zip(jax.tree.leaves(slope), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_an_own_look_up_is_what_a_network_runs():
    def apply(params, tokens):
        return params["words"][tokens].sum(-2)

    tokens = np.array([[0, 11, 3], [5, 5, -1]])
    small = {"words": monarch()}
    dense = jc.materialize(small)
    net = jc.trace(apply, dense, tokens)
    assert [use.how for use in net.explain(small)] == ["looked up"]
    for function in (net, lambda p, rows: jc.take(p["words"], rows).sum(-2)):
        out, used = calls(function, small, tokens)
        np.testing.assert_allclose(out, apply(dense, tokens), rtol=1e-4, atol=1e-5)
        assert used == {"take"}
    turned = {"words": jc.hashed(1 / 2, matrix_axes=jc.MatrixAxes(1, 0))(dense["words"])}
    np.testing.assert_allclose(
        net(turned, tokens), apply(jc.materialize(turned), tokens), rtol=1e-5, atol=1e-6
    )
    assert [use.how for use in net.explain(turned)] == ["materialised"]


STACKS = {
    "a product for each": lambda w, x: jax.vmap(jnp.matmul)(x, w),
    "one input for all": lambda w, x: jax.vmap(lambda one: x[0] @ one)(w),
    "heads last": lambda w, x: jnp.einsum("him,hmn->inh", x, w),
    "transposed": lambda w, x: jnp.einsum("hin,hmn->him", x[..., :8], w),
    "weights first": lambda w, x: jnp.einsum("hmn,him->hni", w, x),
    "a scan": lambda w, x: jax.lax.scan(lambda _, pair: (0, pair[1] @ pair[0]), 0, (w, x))[1],
}


@pytest.mark.parametrize("use", STACKS)
def test_stacks_of_an_own_array_are_contracted(use):
    x = matrix(3, 5, 12, seed=3)
    stack = MonarchArray(*jax.tree.leaves(monarch(3)), matrix_axes=jc.MatrixAxes(-2, -1))
    dense = stack.materialize()
    net = jc.trace(STACKS[use], dense, x)
    assert [found.how for found in net.explain(stack)] == ["contracted"]
    out, used = calls(net, stack, x)
    np.testing.assert_allclose(out, STACKS[use](dense, x), rtol=1e-4, atol=1e-4)
    assert used == {"multiply"}


def test_what_cannot_be_contracted_is_materialised_and_told():
    dense = monarch().materialize()
    net = jc.trace(lambda w, x: x @ jnp.sin(w), dense, matrix(5, 12))
    (use,) = net.explain(monarch())
    assert calls(net, monarch(), matrix(5, 12))[1] == {"materialize"}
    assert (use.how, use.primitive) == ("materialised", "sin")


def test_a_field_may_not_hide_a_method():
    with pytest.raises(TypeError, match="the fields take, size have names of CompactArray's own"):

        @jc.compact_array
        class Hidden(jc.CompactArray):
            take: jax.Array
            size: jax.Array
