"""Inputs from norms' statistics: what flows for them is what the norms expect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_norms import NORMED

import jaxcompress as jc
from jaxcompress.moments.norm_inputs import expectations, norm_distances, norm_inputs
from jaxcompress.moments.smooth_inputs import Space, spaces

EPSILON = 1e-5


def normed(p, x):
    return (x - p["mean"]) / jnp.sqrt(p["var"] + EPSILON)


def perceptron(params, x):
    for layer in params["hidden"]:
        x = jnp.tanh(normed(layer, x @ layer["kernel"]))
    return x @ params["last"]


def trained_like(data, widths):
    """A perceptron whose norms have the statistics of data."""
    rng, hidden, x = np.random.default_rng(0), [], data
    for width in widths:
        kernel = rng.normal(size=(x.shape[1], width)).astype(np.float32)
        product = x @ kernel
        hidden.append({"kernel": kernel, "mean": product.mean(0), "var": product.var(0)})
        x = np.tanh(normed(hidden[-1], product))
    return {"hidden": hidden, "last": rng.normal(size=(x.shape[1], 2)).astype(np.float32)}


@pytest.fixture(scope="module")
def data():
    """Vectors of six correlated numbers, away from zero."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    return x.astype(np.float32)


def made(net, params, **options):
    options = {"count": 1, "steps": 400, "rate": 0.1, "progress": False} | options
    return jc.inputs_from_norms(net, params, **options)


def test_norms_take_in_what_they_expect_and_moments_are_those_of_data(data):
    """More channels than a covariance has numbers determine it, and what follows from it."""
    params = trained_like(data, (40, 30))
    net = jc.trace(perceptron, params, data[:256])
    found = made(net, params)
    distances = norm_distances(net, params, expectations(net, params), tuple(found.batches))
    assert max(float(distance.max()) for distance in distances.values()) < 1e-2
    true, other = (jc.calibrate(net, params, some, progress=False) for some in ([data], found))
    for leaf, second in true.by_leaf().items():
        error = np.linalg.norm(other.by_leaf()[leaf] - second) / np.linalg.norm(second)
        assert error < 0.2, leaf
    assert len(jc.plots.moments_compared(true, other).axes[1].get_yticks()) == 3
    again = made(net, params)
    np.testing.assert_array_equal(found.batches[0], again.batches[0])


@pytest.mark.parametrize("name", NORMED)
def test_every_framework_has_norms_that_expect_something(name):
    case = NORMED[name]()
    net = jc.trace(case.apply, case.params, *case.inputs)
    expected = expectations(net, case.params)
    taken = jax.eval_shape(lambda *inputs: norm_inputs(net, case.params, inputs), *case.inputs)
    assert len(expected) == case.norms
    sizes = {key: rows.shape[-1] for key, rows in taken.items()}
    assert {key: len(part.mean) for key, part in expected.items()} == sizes


def test_a_pruned_network_has_its_own_and_integers_stay(data):
    """A start of another size; its ids are looked up and not moved."""
    params = trained_like(data, (12,)) | {"table": np.ones((5, 6), np.float32)}

    def apply(params, inputs):
        return perceptron(params, inputs["x"] + params["table"][inputs["ids"]])

    batch = {"x": data[:8], "ids": np.arange(8) % 5}
    net = jc.trace(apply, params, batch)
    small = jc.rotate_and_prune(net, 1 / 2)(params)
    start = [{"x": data[:32], "ids": np.arange(32) % 5}]
    (moved,) = made(net, small, start=start, steps=2).batches
    np.testing.assert_array_equal(moved["ids"], start[0]["ids"])
    assert moved["x"].shape == (32, 6)
    with pytest.raises(ValueError, match="input 0/ids is of int"):
        made(net, small)


def test_what_norms_cannot_tell_is_refused_or_said(data, caplog):
    params = trained_like(data, (5,))
    net = jc.trace(perceptron, params, data[:16])
    made(net, params, steps=1)
    assert "take more steps" in caplog.text
    for layer in params["hidden"]:
        layer["kernel"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity at the norm of hidden/0/var"):
        made(net, params, steps=1)

    def train(params, x):
        x = x @ params["hidden"][0]["kernel"]
        return (x - x.mean(0)) / jnp.sqrt(x.var(0) + EPSILON) @ params["last"]

    with pytest.raises(ValueError, match=r"inputs_from_norms: no batch norm.*inference mode"):
        made(jc.trace(train, params, data[:16]), params)


def test_inputs_of_convolutions_are_smooth_and_inside_their_bounds():
    """Space is found inside flat inputs, and one over the frequency squared is its spectrum."""

    def flat(params, x):
        return NORMED["linen_convnet"]().apply(params, x.reshape(-1, 8, 8, 3))

    case = NORMED["linen_convnet"]()
    x = jnp.zeros((300, 192))
    traced = jc.trace(flat, case.params, x).traced_program(case.params, x)
    (space,) = spaces(traced)
    assert space == Space((300, 8, 8, 3), (1, 2))
    noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    images = np.asarray(space.smooth(jnp.asarray(noise))).reshape(300, 8, 8, 3)
    np.testing.assert_allclose((images**2).mean(), 1, rtol=0.05)
    power = np.abs(np.fft.fft(images.mean(2), axis=1)).mean((0, 2)) ** 2
    np.testing.assert_allclose(power[1] / power[2], 4, rtol=0.2)
    params = trained_like(np.zeros((2, 6), np.float32), (5,))
    net = jc.trace(perceptron, params, jnp.zeros((8, 6)))
    (moved,) = made(net, params, steps=1, bounds=(2, 3)).batches
    assert (moved.min(), moved.max()) == (2, 3)
