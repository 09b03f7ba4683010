"""The table of laws: every array and transform of the library, one line each."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxcompress as jc
from jaxcompress.arrays.device import to_device

TRANSFORMS = {
    "hashed": jc.hashed(keep=1 / 4),
    "hashed in blocks": jc.hashed(keep=1 / 2, block=4),
    "hashed, circular": jc.hashed(keep=1 / 4, layout="circular"),
    "clustered": jc.clustered(keep=3 / 4),
    "clustered in blocks": jc.clustered(keep=1 / 2, block=4, most=7),
    "vocabulary, dct": jc.vocabulary(keep=1 / 2),
    "vocabulary, smooth": jc.vocabulary(keep=1 / 2, atoms="smooth", grid=(4, 3)),
    "vocabulary, channels": jc.vocabulary(keep=1 / 2, grid=(2, 2), channels=3),
    "vocabulary, random": jc.vocabulary(keep=1 / 2, atoms="random"),
    "vocabulary, learned": jc.vocabulary(keep=3 / 4, atoms="learned"),
    "vocabulary, a function": jc.vocabulary(
        keep=1 / 2,
        atoms=lambda grid: jnp.cos(np.pi / 12 * (grid + 0.5) * jnp.arange(12.0)),
    ),
    "vocabulary, a matrix": jc.vocabulary(keep=3 / 4, atoms=np.eye(12, 5)),
    "vocabulary, look-ups": jc.vocabulary(keep=1 / 2, lookups=2),
    "vocabulary, learned look-ups": jc.vocabulary(keep=3 / 4, atoms="learned", lookups=1),
    "factored": jc.factored(keep=3 / 4),
    "factored by energy": jc.factored(energy=0.7),
    "convolved": jc.spline(keep=1 / 2),
    "convolved, linear": jc.spline(keep=1 / 2, basis="linear"),
    "convolved, cubic": jc.spline(keep=1 / 2, basis="cubic"),
    "toeplitz": jc.toeplitz((2, 3), grid=(4, 3)),
    "toeplitz, padded": jc.toeplitz((4, 3), grid=(4, 3), pad=(1, 0)),
    "dct, codes hashed": jc.chain(
        jc.vocabulary(keep=1 / 2), jc.at("**/codes", jc.hashed(keep=1 / 2))
    ),
    "dct, codes factored": jc.chain(
        jc.vocabulary(keep=1), jc.at("**/codes", jc.factored(keep=1 / 2))
    ),
    "convolved twice": jc.chain(
        jc.spline(keep=1 / 2),
        jc.at("**/samples", jc.spline(keep=1 / 2, matrix_axes=jc.MatrixAxes(1, 0))),
    ),
}
"""A transform for every form, and nested ones; each fits matrices of 12 inputs."""

SHAPES = {"tall": (12, 9), "wide": (12, 18)}


def matrix(*shape: int, seed: int = 0) -> jax.Array:
    """A full matrix of noise; NumPy's, since JAX compiles its generator for every shape."""
    return to_device(np.random.default_rng(seed).normal(size=shape), np.float32)


def moments(m: int, seed: int = 9) -> jax.Array:
    """Second moments of correlated inputs."""
    correlated = np.asarray(matrix(4 * m, m, seed=seed)) @ np.asarray(matrix(m, m, seed=seed + 1))
    return jc.second_moments(correlated)


def weighted_error(dense, other, metric=None) -> float:
    """tr(E' M E)."""
    gap = np.asarray(dense, np.float64) - np.asarray(other, np.float64)
    return float(np.sum(gap * (gap if metric is None else np.asarray(metric, np.float64) @ gap)))
