"""Statistics of single gradients and curvature, against their definitions on small problems."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mlp, mlp_params
from laws import matrix

import jaxcompress as jc

X = np.asarray(matrix(37, 5))
Y = np.argmax(X @ np.asarray(matrix(5, 3, seed=1)), axis=1)
PARAMS = mlp_params((5, 8, 6, 3))
LOSS = jc.training.cross_entropy(mlp)


def gradients(params=PARAMS, x=X, y=Y):
    """(examples, parameters), one after the other."""
    return np.stack(
        [ravel(jax.grad(LOSS)(params, (x[i : i + 1], y[i : i + 1]), None)) for i in range(len(x))]
    )


def ravel(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("batch_size", [5, 37, 100])
def test_statistics_are_what_their_definitions_give(batch_size):
    each = gradients()
    found = jc.training.gradient_statistics(
        LOSS, PARAMS, (X, Y), batch_size=batch_size, progress=False
    )
    pairs = list(itertools.combinations(each, 2))
    assert found.examples == 37
    assert found.signal == pytest.approx(np.mean([a @ b for a, b in pairs]), rel=1e-3)
    assert found.variance == pytest.approx(np.trace(np.cov(each.T)), rel=1e-4)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert found.agreement == pytest.approx(np.mean([cosine(a, b) for a, b in pairs]), abs=1e-4)
    assert found.length == pytest.approx(np.mean(np.linalg.norm(each, axis=1)), rel=1e-4)
    assert found.noise_scale == pytest.approx(found.variance / found.signal)


def test_the_noise_scale_is_that_of_batches():
    """The mean over B examples varies by S / B round the true gradient."""
    each = gradients()
    found = jc.training.gradient_statistics(LOSS, PARAMS, (X, Y), progress=False)
    rng = np.random.default_rng(0)
    draws = np.stack([each[rng.integers(0, len(each), 4)].mean(0) for _ in range(4_000)])
    assert np.trace(np.cov(draws.T)) == pytest.approx(found.variance / 4 * 36 / 37, rel=0.1)


def test_equal_and_opposite_examples():
    twice = np.repeat(X[:1], 2, 0)
    same = jc.training.gradient_statistics(
        LOSS, PARAMS, (twice, np.repeat(Y[:1], 2)), progress=False
    )
    assert same.agreement == pytest.approx(1, abs=1e-5)
    assert same.noise_scale == pytest.approx(0, abs=1e-5)

    def flat(params, batch, key):
        return jnp.sum(params * batch.mean())

    torn = jc.training.gradient_statistics(
        flat, jnp.ones(3), np.array([1.0, -1.0], np.float32), progress=False
    )
    assert torn.agreement == pytest.approx(-1, abs=1e-5)
    assert torn.noise_scale == np.inf
    still = jc.training.gradient_statistics(
        lambda p, b, k: 0 * jnp.sum(p), jnp.ones(3), np.ones(4), progress=False
    )
    assert np.isfinite(still.agreement)


def test_curvature_is_that_of_the_hessian():
    data = X[:36], Y[:36]
    flat, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    values = np.linalg.eigvalsh(
        np.asarray(jax.hessian(lambda flat: LOSS(unravel(flat), data, None))(flat), np.float64)
    )
    found = jc.training.curvature(
        LOSS, PARAMS, data, jax.random.key(0), batch_size=12, steps=60, signs=400, progress=False
    )
    assert found.largest == pytest.approx(values[-1], rel=1e-3)
    assert found.smallest == pytest.approx(values[0], rel=0.02)
    assert found.trace == pytest.approx(values.sum(), abs=4 * found.error)
    assert found.error < 0.1 * abs(values.sum())


def test_refusals():
    with pytest.raises(ValueError, match="at least two"):
        jc.training.gradient_statistics(LOSS, PARAMS, (X[:1], Y[:1]))
    with pytest.raises(ValueError, match="same number of examples"):
        jc.training.gradient_statistics(LOSS, PARAMS, (X, Y[:3]))
    with pytest.raises(ValueError, match="is not finite"):
        jc.training.gradient_statistics(LOSS, PARAMS, (X * np.nan, Y), progress=False)
    with pytest.raises(TypeError, match="only float leaves"):
        jc.training.curvature(LOSS, PARAMS | {"n": 3}, (X, Y), jax.random.key(0))
