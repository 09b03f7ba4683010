"""Recurrent networks as people write them, small: one for each kind of cell."""

import functools
from collections.abc import Callable

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from helpers_table import Model, affine, dense, draw, fresh, noise, perturb

INPUTS, HIDDEN, SECOND, OUTPUTS, STEPS, BATCH = 3, 6, 5, 2, 4, 40

CELLS: dict[str, Callable[[], Model]] = {}
"""The makers by name; each makes its model once."""


def cell(make: Callable[[], tuple]) -> Callable[[], Model]:
    """Put a maker of a function and its parameters into the table under its own name."""

    @functools.cache
    def made() -> Model:
        apply, params = make()
        return Model(make.__name__, apply, params, (noise(BATCH, STEPS, INPUTS),))

    CELLS[make.__name__] = made
    return made


def initial(width: int) -> jax.Array:
    return jnp.zeros((BATCH, width))


def scanned(step: Callable, state, x: jax.Array):
    """A step along time, which is the second dimension."""
    state, states = jax.lax.scan(step, state, x.swapaxes(0, 1))
    return state, states.swapaxes(0, 1)


# --- flax ----------------------------------------------------------------------------------------


class Linen(nn.Module):
    cell: type[nn.RNNCellBase]

    @nn.compact
    def __call__(self, x):
        return nn.Dense(OUTPUTS)(nn.RNN(self.cell(HIDDEN))(x)[:, -1])


class Stacked(nn.Module):
    """A layer that reads in both directions, and one that reads what it gives."""

    @nn.compact
    def __call__(self, x):
        forward, backward = (nn.RNN(nn.OptimizedLSTMCell(size)) for size in (HIDDEN, SECOND))
        return nn.Dense(OUTPUTS)(nn.RNN(nn.GRUCell(4))(nn.Bidirectional(forward, backward)(x)))


def linen(net: nn.Module):
    return net.apply, fresh(net.init, noise(BATCH, STEPS, INPUTS))


@cell
def linen_lstm():
    return linen(Linen(nn.LSTMCell))


@cell
def linen_optimized_lstm():
    return linen(Linen(nn.OptimizedLSTMCell))


@cell
def linen_gru():
    return linen(Linen(nn.GRUCell))


@cell
def linen_stacked():
    return linen(Stacked())


def of_nnx(kind: type):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(kind(INPUTS, HIDDEN, rngs=rngs))
            self.last = nnx.Linear(HIDDEN, OUTPUTS, rngs=rngs)

        def __call__(self, x):
            return self.last(self.rnn(x, rngs=nnx.Rngs(0))[:, -1])

    definition, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    return lambda p, x: nnx.merge(definition, p, rest)(x), perturb(params)


@cell
def nnx_lstm():
    return of_nnx(nnx.OptimizedLSTMCell)


@cell
def nnx_gru():
    return of_nnx(nnx.GRUCell)


# --- equinox and haiku ---------------------------------------------------------------------------


def equinox(kind: type, state: Callable, hidden: Callable):
    keys = jax.random.split(jax.random.key(0), 2)
    parts = {
        "cell": kind(INPUTS, HIDDEN, key=keys[0]),
        "last": eqx.nn.Linear(HIDDEN, OUTPUTS, key=keys[1]),
    }
    params, static = eqx.partition(parts, eqx.is_inexact_array)

    def apply(params, x):
        net = eqx.combine(params, static)

        def one(x):
            return jax.lax.scan(lambda s, x: (net["cell"](x, s), None), state(), x)[0]

        return jax.vmap(lambda x: net["last"](hidden(one(x))))(x)

    return apply, perturb(params)


@cell
def equinox_lstm():
    zeros = jnp.zeros(HIDDEN)  # which the function closes over
    return equinox(eqx.nn.LSTMCell, lambda: (zeros, zeros), lambda state: state[0])


@cell
def equinox_gru():
    return equinox(eqx.nn.GRUCell, lambda: jnp.zeros(HIDDEN), lambda state: state)


def haiku(kind: type):
    def net(x):
        core = kind(HIDDEN)
        states, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
        return hk.Linear(OUTPUTS)(states[:, -1])

    made = hk.without_apply_rng(hk.transform(net))
    return made.apply, fresh(made.init, noise(BATCH, STEPS, INPUTS))


@cell
def haiku_lstm():
    return haiku(hk.LSTM)


@cell
def haiku_gru():
    return haiku(hk.GRU)


# --- by hand -------------------------------------------------------------------------------------


def lstm(gates: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


@cell
def two_kernels():
    """The kernels of the input and of the state apart, one bias for their sum."""

    def apply(p, x):
        def step(state, x):
            h, c = lstm(x @ p["enter"] + state[0] @ p["turn"] + p["bias"], state[1])
            return (h, c), h

        width = p["last"]["w"].shape[0]
        return dense(p["last"], scanned(step, (initial(width), initial(width)), x)[0][0])

    shapes = {"enter": (INPUTS, 4 * HIDDEN), "turn": (HIDDEN, 4 * HIDDEN), "bias": (4 * HIDDEN,)}
    return apply, draw(shapes | {"last": affine(HIDDEN, OUTPUTS)})


@cell
def hoisted():
    """All inputs are multiplied before the loop."""

    def apply(p, x):
        def step(h, x):
            h = jnp.tanh(x + h @ p["turn"])
            return h, h

        enter = x @ p["enter"] + p["bias"]
        return dense(p["last"], scanned(step, initial(p["last"]["w"].shape[0]), enter)[1])

    shapes = {"enter": (INPUTS, HIDDEN), "turn": (HIDDEN, HIDDEN), "bias": (HIDDEN,)}
    return apply, draw(shapes | {"last": affine(HIDDEN, OUTPUTS)})


@cell
def attention_over_states():
    """One kernel for input and state; the states are averaged by attention."""

    def apply(p, x):
        def step(state, x):
            h, c = lstm(dense(p["gates"], jnp.concatenate([x, state[0]], axis=-1)), state[1])
            return (h, c), h

        width = p["score"].shape[0]
        states = scanned(step, (initial(width), initial(width)), x)[1]
        weights = jax.nn.softmax(states @ p["score"], axis=1)
        return dense(p["last"], (weights * states).sum(1))

    shapes = {"gates": affine(INPUTS + HIDDEN, 4 * HIDDEN), "score": (HIDDEN, 1)}
    return apply, draw(shapes | {"last": affine(HIDDEN, OUTPUTS)})
