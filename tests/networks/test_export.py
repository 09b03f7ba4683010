"""Export with symbolic sizes: a pruned network has no other way to serve every batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from helpers_oracle import small_and_full
from helpers_table import draw, noise

import jaxcompress as jc

SHAPES = {"a": (7, 12), "b": (12, 12), "q": (12, 12), "k": (12, 12), "o": (12, 3), "scale": (12,)}


def attention(p, h):
    """Heads, split and merged again."""
    q, k, v = ((h @ p[name]).reshape(*h.shape[:2], 3, 4) for name in "qkb")
    weights = jax.nn.softmax(jnp.einsum("bqnd,bknd->bnqk", q, k), axis=-1)
    return jnp.einsum("bnqk,bknd->bqnd", weights, v).reshape(h.shape).mean(1)


def normalised(p, h):
    """Means over positions and channels: they divide by the present number of both."""
    centred = h - h.mean((1, 2), keepdims=True)
    unbiased = jnp.std(h, axis=(1, 2), ddof=1, keepdims=True)
    return (centred / (jnp.sqrt(h.var((1, 2), keepdims=True)) + unbiased) * p["scale"]).max(1)


def apply(p, x):
    h = jax.nn.relu(x @ p["a"])
    return attention(p, h) @ p["o"], normalised(p, h) @ p["o"]


def loop(p, x):
    """A recurrence over positions, after a product of all rows."""
    rows = (x.reshape(-1, 7) @ p["a"]).reshape(*x.shape[:2], 12).swapaxes(0, 1)
    zeros = jnp.zeros((x.shape[0], 12))
    return jax.lax.scan(lambda s, row: (jnp.tanh(row + s @ p["b"]), None), zeros, rows)[0] @ p["o"]


@pytest.mark.parametrize("function", [apply, loop])
def test_full_pruned_and_compact_networks_are_exported_for_any_batch_and_length(function):
    params, x = draw(SHAPES), noise(4, 6, 7)
    net = jc.trace(function, params, x)
    small, _, changed = small_and_full(net, params, 1)
    assert changed
    sized = net.resized({key: size for key, (_, size, _, _) in changed.items()})
    compact = jc.at(("a", "b", "o"), jc.factored(3 / 4))(params)
    any_size = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, t, 7"), jnp.float32)
    for network, tree in ((net, params), (sized, small), (net, compact)):
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        exported = jax.export.export(jax.jit(network))(shapes, any_size)
        given = np.asarray(x[:3, :5])
        close(exported.call(tree, given), network(tree, given), 1e-4)
