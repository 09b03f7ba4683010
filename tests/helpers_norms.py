"""Networks with batch norms in inference, in every framework and in every order of the steps."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers_table import (
    FIRST,
    INPUTS,
    MODELS,
    OUTPUTS,
    SECOND,
    dense,
    draw,
    fresh,
    images,
    vectors,
)


class Normed(NamedTuple):
    """A network, its inputs, and how many of its norms can be folded of how many that it has."""

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    norms: int
    folded: int


NORMED: dict[str, Callable[[], Normed]] = {}


def entry(make: Callable[[], Normed]) -> Callable[[], Normed]:
    """Put a maker into the table under its own name."""
    NORMED[make.__name__] = functools.cache(make)
    return NORMED[make.__name__]


@entry
def linen_convnet() -> Normed:
    """Biases or none, an addition, depthwise and pointwise kernels."""
    model = MODELS["convnet"]()
    return Normed(model.apply, model.params, model.inputs, 5, 5)


class Perceptron(nn.Module):
    """Norms with and without scale and shift, one of them after the activation."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        def norm(**options):
            return nn.BatchNorm(use_running_average=not self.train, momentum=0.0, **options)

        x = nn.relu(norm(use_scale=False)(nn.Dense(FIRST)(x)))
        x = nn.relu(norm(use_bias=False)(nn.Dense(SECOND, use_bias=False)(x)))
        x = nn.Dense(FIRST)(norm()(x))
        return nn.Dense(OUTPUTS)(nn.gelu(norm(use_bias=False, use_scale=False)(x)))


@entry
def linen_perceptron() -> Normed:
    net = Perceptron()
    params = fresh(net.init, *vectors(2, 1))
    return Normed(net.apply, params, vectors(5, 1), 4, 3)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average=True, rngs=rngs)
        self.last = nnx.Linear(6, OUTPUTS, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))).mean((1, 2)))


@entry
def nnx_convnet() -> Normed:
    definition, state = nnx.split(NnxNet(nnx.Rngs(0)))

    def apply(params, x):
        return nnx.merge(definition, params)(x)

    return Normed(apply, noisy(state), images(4, 1), 1, 1)


class EquinoxNet(eqx.Module):
    layers: list

    def __init__(self, mode):
        keys = jax.random.split(jax.random.key(0), 3)
        norms = [eqx.nn.BatchNorm(n, "batch", mode=mode, inference=True) for n in (6, FIRST)]
        self.layers = [
            eqx.nn.Conv2d(3, 6, 3, key=keys[0]),
            norms[0],
            eqx.nn.Linear(6, FIRST, use_bias=False, key=keys[1]),
            norms[1],
            eqx.nn.Linear(FIRST, OUTPUTS, key=keys[2]),
        ]

    def __call__(self, x, state):
        conv, first, hidden, second, last = self.layers
        x, state = first(conv(x), state)
        x, state = second(hidden(jax.nn.relu(x).mean((1, 2))), state)
        return last(jax.nn.relu(x)), state


def equinox_net(mode: str) -> Normed:
    model, state = eqx.nn.make_with_state(EquinoxNet)(mode)
    arrays, static = eqx.partition((model, state), eqx.is_array)

    def apply(params, x):
        net, state = eqx.combine(params, static)
        call = jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return call(x, state)[0]

    inputs = (jnp.moveaxis(images(4, 1)[0], -1, 1),)
    return Normed(apply, noisy(arrays), inputs, 2, 2)


@entry
def equinox_ema() -> Normed:
    return equinox_net("ema")


@entry
def equinox_batch() -> Normed:
    """Its statistics are divided by one minus a power of the momentum."""
    return equinox_net("batch")


@entry
def haiku_net() -> Normed:
    def call(x):
        x = hk.Conv2D(6, 3)(x)
        norm = hk.BatchNorm(True, True, 0.9)
        x = jax.nn.relu(norm(x, is_training=hk.running_init()))
        return hk.Linear(OUTPUTS)(x.mean((1, 2)))

    net = hk.transform_with_state(call)
    params, state = jax.eval_shape(net.init, jax.random.key(0), *images(4, 1))

    def apply(both, x):
        return net.apply(*both, None, x)[0]

    return Normed(apply, noisy((params, state)), images(4, 1), 1, 1)


def in_order(p, x):
    return (x - p["mean"]) / jnp.sqrt(p["var"] + 1e-3) * p["scale"] + p["shift"]


def constants_first(p, x):
    factor = p["scale"] * jax.lax.rsqrt(p["var"] + 1e-3)
    return x * factor + (p["shift"] - p["mean"] * factor)


def power(p, x):
    return p["shift"] - p["scale"] * (p["mean"] - x) * (1e-3 + p["var"]) ** -0.5


def scale_last(p, x):
    return ((x - p["mean"]) * (p["var"] + 1e-3) ** -0.5 + 0.0) * p["scale"] + p["shift"]


def by_hand(norm) -> Normed:
    def apply(p, x):
        x = jax.nn.relu(norm(p["one"], dense(p["first"], x)))
        return dense(p["last"], jnp.tanh(norm(p["two"], x @ p["kernel"])))

    def part(size):
        return {name: (size,) for name in ("mean", "var", "scale", "shift")}

    shapes = {"first": {"w": (INPUTS, FIRST), "b": (FIRST,)}, "kernel": (FIRST, SECOND)}
    shapes |= {"one": part(FIRST), "two": part(SECOND)}
    params = noisy(draw(shapes | {"last": {"w": (SECOND, OUTPUTS), "b": (OUTPUTS,)}}))
    return Normed(apply, params, vectors(5, 1), 2, 2)


@entry
def hand_in_order() -> Normed:
    return by_hand(in_order)


@entry
def hand_constants_first() -> Normed:
    return by_hand(constants_first)


@entry
def hand_power() -> Normed:
    return by_hand(power)


@entry
def hand_scale_last() -> Normed:
    return by_hand(scale_last)


def noisy(params: Any) -> Any:
    """Random numbers in the shapes of parameters: vectors from 0.5 to 1.5, counters of three."""

    def leaf(value):
        rng, shape = next(rngs), value.shape
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return jnp.full(shape, 3, value.dtype)
        if sum(size > 1 for size in shape) < 2:
            return jnp.asarray(rng.uniform(0.5, 1.5, shape), value.dtype)
        fan_in = np.prod(shape) / max(shape[0], shape[-1])
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(fan_in), value.dtype)

    rngs = (np.random.default_rng([6, index]) for index in range(10**6))
    return jax.tree.map(leaf, params)
