"""Unmodified models of five kinds, served through materialize, trained and stacked."""

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcompress as jc
from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves

X = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)


def linen():
    model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(6)])
    return model.apply, model.init(jax.random.key(0), X), None


def nnx_module():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(12, 16, rngs=rngs), nnx.Linear(16, 6, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.first(x)))

    definition, state = nnx.split(Net(nnx.Rngs(0)))
    return lambda p, x: nnx.merge(definition, p)(x), state, None


def equinox():
    arrays, rest = eqx.partition(eqx.nn.MLP(12, 6, 16, 1, key=jax.random.key(0)), eqx.is_array)
    return (
        lambda p, x: jax.vmap(eqx.combine(p, rest))(x),
        arrays,
        jc.MatrixAxes(inputs=1, outputs=0),
    )


def haiku():
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 6])(x)))
    return model.apply, model.init(jax.random.key(0), X), None


def by_hand():
    params = [(jnp.ones((12, 16)) / 7, jnp.zeros(16)), (jnp.ones((16, 6)) / 9, jnp.zeros(6))]

    def apply(p, x):
        for w, b in p:
            x = jnp.tanh(x @ w + b)
        return x

    return apply, params, None


@pytest.mark.parametrize("make", [linen, nnx_module, equinox, haiku, by_hand])
@pytest.mark.parametrize("form", [jc.hashed, jc.vocabulary, jc.factored, jc.spline])
def test_unmodified_models(make, form):
    apply, params, axes = make()
    small = jc.at(jc.matrices, form(keep=1 / 2, matrix_axes=axes))(params)
    compact = {name: leaf for name, leaf in named_leaves(small) if is_compact(leaf)}
    assert len(compact) == 2
    assert not any("value" in name for name in compact)
    assert jc.stored_numbers(small) < jc.stored_numbers(params)
    loss = jax.jit(lambda p: jnp.mean(apply(jc.materialize(p), X) ** 2))
    optimizer = optax.adam(1e-2)
    state, before = optimizer.init(small), float(loss(small))
    for _ in range(3):
        updates, state = optimizer.update(jax.grad(loss)(small), state)
        small = optax.apply_updates(small, updates)
    assert float(loss(small)) < before
    exact = jc.at(jc.matrices, form(keep=1, matrix_axes=axes))(params)
    chex.assert_trees_all_close(apply(jc.materialize(exact), X), apply(params, X), atol=1e-5)


def test_names_are_alike_in_every_framework():
    for make in (linen, nnx_module, haiku):
        _, params, _ = make()
        last_parts = sorted({name.rsplit("/", 1)[-1] for name, _ in named_leaves(params)})
        assert last_parts in (["bias", "kernel"], ["b", "w"])


def test_attention_kernels_and_stacked_layers():
    attention = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    params = attention.init(jax.random.key(0), jnp.ones((1, 3, 12)))
    axes = {"**/out/kernel": jc.MatrixAxes((0, 1), 2), "**/kernel": jc.MatrixAxes(0, (1, 2))}
    small = jc.at("**/kernel", jc.factored(keep=3 / 4, matrix_axes=axes))(params)
    out = attention.apply(jc.materialize(small), jnp.ones((1, 3, 12)))
    assert out.shape == (1, 3, 12)
    stack = jax.random.normal(jax.random.key(1), (5, 12, 16))
    layers = jc.hashed(keep=1 / 4, matrix_axes=jc.MatrixAxes(1, 2))(stack)
    assert layers.shape == stack.shape
    assert layers.stored_numbers == 5 * 48
    chex.assert_trees_all_close(
        jax.vmap(lambda w: jnp.asarray(X) @ w)(layers), X @ layers.materialize(), atol=1e-5
    )


def test_numpy_operators_defer():
    small = jc.hashed(keep=1 / 2)(jnp.ones((12, 6)))
    assert isinstance(X @ small, jax.Array)
    with pytest.raises(TypeError):
        jnp.sin(small)
