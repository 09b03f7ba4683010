"""Draws of random numbers along an axis: at a small size those of the function written at it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import close
from jax import random

import jaxcompress as jc

RNG = np.random.default_rng(0)
BASE = {
    name: jnp.asarray(RNG.normal(size=shape), jnp.float32)
    for name, shape in {"A": (7, 12), "V": (7, 12), "B": (12, 3)}.items()
}
X = jnp.asarray(RNG.normal(size=(40, 7)), jnp.float32)


def drop(key, h):
    return jnp.where(random.bernoulli(key, 0.5, h.shape), h / 0.5, 0)


def keyed(h, key):
    return jax.vmap(drop)(random.split(key, len(h)), h)


def in_turns(h, key):
    return jax.lax.scan(lambda h, key: (drop(key, h), None), h, random.split(key, 2))[0]


DRAWS = {
    "dropout": lambda p, h, key: drop(key, h),
    "an old key": lambda p, h, key: drop(random.key_data(key), h),
    "a key in the tree": lambda p, h, key: drop(p["key"], h),
    "one mask for all examples": lambda p, h, key: h * random.bernoulli(key, 0.5, (1, h.shape[1])),
    "noise": lambda p, h, key: h + 0.1 * random.normal(key, h.shape),
    "latents": lambda p, h, key: h + jnp.exp(X @ p["V"]) * random.normal(key, h.shape),
    "integers": lambda p, h, key: h * random.randint(key, h.shape, 1, 5),
    "a key for each example": lambda p, h, key: keyed(h, key),
    "a key for each channel": lambda p, h, key: keyed(h.T, key).T,
    "two keys": lambda p, h, key: drop(random.split(key)[0], drop(random.split(key)[1], h)),
    "keys of numbers": lambda p, h, key: drop(random.fold_in(key, 3), h),
    "words of a key": lambda p, h, key: drop(random.wrap_key_data(random.key_data(key)), h),
    "in a loop": lambda p, h, key: in_turns(h, key),
    "seeds": lambda p, h, key: jax.vmap(lambda h, seed: drop(random.key(seed), h))(
        h, jnp.arange(len(h))
    ),
}


def test_draws_have_the_present_size():
    params, key = {**BASE, "key": random.key(5)}, random.key(2)
    kept = np.array([0, 2, 3, 7, 11])
    small = {**params, "A": BASE["A"][:, kept], "V": BASE["V"][:, kept], "B": BASE["B"][kept]}
    for name, draw in DRAWS.items():

        def apply(p, x, key, draw=draw):
            return draw(p, jax.nn.relu(x @ (p["A"] - p["V"])), key) @ p["B"]

        net = jc.trace(apply, params, X, key)
        assert net.axes["A:1"].kind == "elementwise", (name, net.refused)
        np.testing.assert_allclose(
            net(small, X, key), apply(small, X, key), rtol=1e-4, atol=1e-4, err_msg=name
        )
        assert not any("key" in axis.key for axis in net.axes)
    linear = jc.trace(lambda p, x, key: drop(key, x @ p["A"]) @ p["B"], params, X, key)
    with pytest.raises(ValueError, match="A:1 cannot be rotated"):
        jc.rotate_and_prune(linear, 1 / 2, method="rotate")(params)


class Dropped(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(self.width, name="a")(x)))
        return nn.Dense(3, name="b")(h)


def test_a_pruned_module_is_fine_tuned_with_dropout():
    model, key = Dropped(16), random.key(2)
    params = model.init(random.key(0), X)
    evaluate = jc.trace(model.apply, params, X)
    small = jc.rotate_and_prune(evaluate, 1 / 2)(
        params, jc.calibrate(evaluate, params, [X], progress=False)
    )

    def train(model, p, x, key):
        return model.apply(p, x, train=True, rngs={"dropout": key})

    net, written = jc.trace(functools.partial(train, model), params, X, key), Dropped(8)

    def slope(apply):
        return jax.grad(lambda p: jnp.sum(apply(p, X, key) ** 2))(small)

    close(slope(net), slope(functools.partial(train, written)))


class Noisy(nnx.Module):
    def __init__(self, width, rngs):
        self.a, self.b = nnx.Linear(7, width, rngs=rngs), nnx.Linear(width, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(nnx.relu(self.a(x))))


def test_keys_and_counts_in_a_state_stay_as_they_are():
    graph, state = nnx.split(Noisy(16, nnx.Rngs(0)))
    net = jc.trace(lambda state, x: nnx.merge(graph, state)(x), state, X)
    small = jc.rotate_and_prune(net, 1 / 2)(state, jc.calibrate(net, state, [X], progress=False))
    written = nnx.split(Noisy(8, nnx.Rngs(0)))[0]
    close(net(small, X), nnx.merge(written, small)(X))
    forms = {row.leaf: row.form for row in jc.report(state, small).rows}
    assert [form for leaf, form in forms.items() if leaf.endswith("key")] == ["random key"]
