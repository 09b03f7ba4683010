"""The law of scales: a fit is finite, follows the scale of its data, and is no worse than zeros."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import TRANSFORMS

import jaxcompress as jc
from jaxcompress.transforms.folds import no_worse_than_zeros

M, N = 12, 9
SCALES = 2.0**-66, 2.0**20, 2.0**66
"""Powers of two near 1e-20, 1e6 and 1e20, by which numbers are scaled without rounding."""


def weights() -> dict[str, np.ndarray]:
    """Matrices of 12 inputs and 9 outputs, with what degenerates."""
    w = np.random.default_rng(0).normal(size=(M, N))
    rows, columns = np.logspace(-6, 6, M)[:, None], np.logspace(-6, 6, N)
    dead = w * (np.arange(M) % 3 > 0)[:, None] * (np.arange(N) % 4 > 0)
    return {
        "full": w,
        "dead rows and columns": dead,
        "constant": np.full((M, N), 0.3),
        "repeated": w[np.arange(M) // 4][:, np.arange(N) // 3],
        "opposite": np.concatenate([w[:6], -w[:6]]),
        "rows of mixed scales": rows * w,
        "rows of mixed scales, reversed": rows[::-1] * w,
        "columns of mixed scales": columns * w,
        "zeros": np.zeros((M, N)),
    }


def inputs() -> dict[str, np.ndarray | None]:
    """Second moments of 12 inputs, with what degenerates."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, M)) @ rng.normal(size=(M, M))
    data = {
        "correlated": x,
        "one sample": x[:1],
        "dead": x * (np.arange(M) % 3 > 0),
        "constant": np.ones_like(x),
        "repeated": x[:, np.arange(M) // 4],
        "pairs": x[:, np.arange(M) % 6],
        "mixed scales": x * np.logspace(-6, 6, M),
        "zeros": np.zeros_like(x),
    }
    moments = {name: x.T @ x / len(x) for name, x in data.items()}
    counts = {"looked up": rng.integers(0, 9, M) / 50.0, "never looked up": np.eye(1, M)[0]}
    return {"none": None, **moments, **counts}


def squared(gap: np.ndarray, metric: np.ndarray | None) -> tuple[float, float]:
    """A squared norm in a metric, and the size of the terms that it is the sum of."""
    if metric is None or metric.ndim == 1:
        power = np.ones(M) if metric is None else metric
        return (float(np.sum(power[:, None] * gap**2)),) * 2
    terms = float(np.sum(np.diag(metric)[:, None] * gap**2))
    return float(np.sum(gap * (metric @ gap))), terms


PAIRS = [
    ("full", "none"),
    ("full", "one sample"),
    ("full", "zeros"),
    ("dead rows and columns", "never looked up"),
    ("constant", "repeated"),
    ("repeated", "pairs"),
    ("opposite", "constant"),
    ("rows of mixed scales", "dead"),
    ("rows of mixed scales", "looked up"),
    ("rows of mixed scales, reversed", "mixed scales"),
    ("columns of mixed scales", "correlated"),
    ("zeros", "correlated"),
]
"""A matrix and its inputs; of each kind at least one."""
SCALED = [("full", "none"), ("full", "correlated"), ("rows of mixed scales, reversed", "looked up")]
"""Those that are fitted at other scales, too."""
TWICE = "convolved twice"
"""Its second fit exchanges inputs and outputs, so that its metric is another one."""


def fit(name, kind, data, scale=1.0, unit=1.0, dtype="float32") -> np.ndarray:
    """The dense matrix that a fit at a scale of weights and one of inputs means, unscaled."""
    w, metric = weights()[kind], inputs()[data]
    small = TRANSFORMS[name](
        jnp.asarray(scale * w, dtype), None if metric is None else unit**2 * metric
    )
    return np.asarray(jc.materialize(small), np.float64) / scale


def check_no_worse(kind, data, dense, rounding=1e-5):
    w, metric = weights()[kind], inputs()[data]
    (whole, terms), (error, _) = squared(w, metric), squared(w - dense, metric)
    assert np.isfinite(dense).all(), (kind, data)
    # what nearly cancels does so up to the rounding of its terms
    assert error <= whole * (1 + rounding) + rounding**2 * terms, (kind, data, error, whole)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_fits_are_no_worse_than_zeros_and_follow_scales(name):
    for kind, data in PAIRS:
        if name != TWICE or data == "none":
            check_no_worse(kind, data, fit(name, kind, data))
    for kind, data in SCALED:
        plain = fit(name, kind, data)
        for scale, unit in zip(SCALES, SCALES[::-1], strict=True):
            again = fit(name, kind, data, scale, unit)
            size = np.abs(plain).max()
            np.testing.assert_allclose(again, plain, atol=1e-5 * size, err_msg=f"{kind} {scale}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["hashed", "clustered", "vocabulary, dct", "factored"])
def test_fits_of_every_dtype(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        for scale in (2.0**-8, 2.0**8) if dtype == "float16" else SCALES:
            dense = fit(name, "full", "correlated", scale, dtype=dtype)
            check_no_worse("full", "correlated", dense, 1e-2 if "16" in dtype else 1e-6)


D = 12
CHANNELS = (*["plain"] * 5, "dead", *["constant"] * 2, *["repeated"] * 2, "tiny", "huge")


def relu(p, x):
    """Two consumers of one axis, one with a bias."""
    h = jnp.maximum(x @ p["a"] + p["ab"], 0)
    return h @ p["w"] + p["wb"], h @ p["v"]


def linear(p, x):
    h = x @ p["a"] + p["ab"]
    return h @ p["w"] + p["wb"], h @ p["v"]


def network_params(extreme: float) -> dict[str, np.ndarray]:
    """A layer of 12 channels of every kind; tiny and huge ones matter as much as the others."""
    rng = np.random.default_rng(0)
    a, ab = rng.normal(size=(5, D)), rng.normal(size=D)
    w, v = rng.normal(size=(D, 3)), rng.normal(size=(D, 2))
    kinds = np.array(CHANNELS)
    a[:, (kinds == "dead") | (kinds == "constant")] = 0
    ab[kinds == "dead"], ab[kinds == "constant"] = -1, 2
    a[:, kinds == "repeated"], ab[kinds == "repeated"] = a[:, :1], ab[0]
    for kind, size in (("tiny", 1 / extreme), ("huge", extreme)):
        at = kinds == kind
        a[:, at], ab[at], w[at], v[at] = size * a[:, at], size * ab[at], w[at] / size, v[at] / size
    params = {"a": a, "ab": ab, "w": w, "wb": rng.normal(size=3), "v": v}
    return {name: np.asarray(value, np.float32) for name, value in params.items()}


def scaled(params, moments, scale):
    """A network whose activations and inputs are scaled, and its moments."""
    small = {name: value * (scale if name in BIASES else 1) for name, value in params.items()}
    sites = {
        key: dataclasses.replace(s, mean=scale * s.mean, cov=scale**2 * s.cov)
        for key, s in moments.sites.items()
    }
    return small, dataclasses.replace(moments, sites=sites, reference=small)


def results(apply, params, x) -> list[np.ndarray]:
    """What the two consumers of a network compute, in float64."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    h = np.asarray(x, np.float64) @ p["a"] + p["ab"]
    h = np.maximum(h, 0) if apply is relu else h
    return [h @ p["w"] + p["wb"], h @ p["v"]]


BIASES = "ab", "wb"
DATA = {"many": slice(40), "one": slice(1)}
FOLDS = {
    "select, relu": (relu, 1e9, lambda net: jc.rotate_and_prune(net, 1 / 2)),
    "budget, relu": (relu, 1e9, lambda net: jc.rotate_and_prune(net, jc.budget(1 / 2))),
    "merge, relu": (relu, 1e9, lambda net: jc.merge(net, 0.9)),
    "seriate, relu": (relu, 1e9, jc.seriate),
    "select": (linear, 1e9, lambda net: jc.rotate_and_prune(net, 1 / 2, method="select")),
    "rotate": (linear, 1e9, lambda net: jc.rotate_and_prune(net, 1 / 2)),
    "energy": (linear, 1e9, lambda net: jc.rotate_and_prune(net, energy=0.9)),
    "merge": (linear, 1e9, lambda net: jc.merge(net, 0.5)),
    # averages are of neighbours of one scale, and before a nonlinear function they are no others
    "coarsen": (linear, 1.0, lambda net: jc.coarsen(net, 2)),
}
"""Transforms of axes, with their network and how far the scales of its channels are apart."""


@functools.cache
def calibrated(apply, extreme, data):
    """A network, its parameters, its moments on some data or on zeros, and the data."""
    params = network_params(extreme)
    x = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    net = jc.trace(apply, params, x)
    given = x[DATA[data]] if data in DATA else 0 * x
    return net, params, jc.calibrate(net, params, [given], progress=False), given


@pytest.mark.parametrize("data", [*DATA, "zeros"])
@pytest.mark.parametrize("name", FOLDS)
def test_folds_of_every_scale(name, data):
    apply, extreme, make = FOLDS[name]
    net, params, moments, x = calibrated(apply, extreme, data)
    whole = results(apply, params, x)
    zeros = [whole[0] - whole[0].mean(0), whole[1]]  # a bias makes up for a mean
    small = results(apply, make(net)(params, moments), x)
    for y, fitted, zero in zip(whole, small, zeros, strict=True):
        assert np.sum((y - fitted) ** 2) <= np.sum(zero**2) * (1 + 1e-5) + 1e-9
    for scale in SCALES:
        again = results(apply, make(net)(*scaled(params, moments, scale)), scale * x)
        for y, z in zip(small, again, strict=True):
            np.testing.assert_allclose(z / scale, y, atol=1e-5)


def test_a_fold_that_is_worse_than_zeros_is_scaled_in_its_fibre_alone():
    rng = np.random.default_rng(0)
    produce, kernel = np.stack([np.eye(4)] * 2), rng.normal(size=(2, 4, 3))
    given = np.stack([3 * np.eye(4), np.eye(4)])
    fold = no_worse_than_zeros(given, produce, kernel, np.stack([np.eye(4)] * 2))
    np.testing.assert_allclose(fold, produce)
