"""Shared runs: recovered, better than a low rank where nothing is shared, counted by index."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import matrix, weighted_error

import jaxcompress as jc
from jaxcompress.arrays.static import StaticArray


def test_runs_that_are_there_are_found():
    rng = np.random.default_rng(0)
    runs, index = rng.standard_normal((5, 3)).astype(np.float32), rng.integers(5, size=(40, 4))
    dense = runs[index].reshape(40, 12)[:, :11]  # the last run is cut short
    array = jc.clustered(1 / 2, block=3)(jnp.asarray(dense))
    np.testing.assert_allclose(array.materialize(), dense, atol=1e-6)
    assert array.runs.shape[0] <= 10  # five, and their beginnings
    assert array.stored_numbers == array.runs.size + 160


def test_a_table_of_noise_is_stored_better_than_by_a_low_rank():
    table, often = matrix(2_000, 64), np.random.default_rng(0).pareto(1.0, 2_000)
    often = often / often.sum()
    for moments in (None, often):
        clustered, factored = (
            jc.materialize(form(1 / 4)(table, moments)) for form in (jc.clustered, jc.factored)
        )
        metric = None if moments is None else np.diag(moments)
        assert weighted_error(table, clustered, metric) < 0.3 * weighted_error(
            table, factored, metric
        )


def test_a_stack_shares_its_indices_and_not_its_runs():
    stack = matrix(3, 12, 8)
    array = jc.clustered(1 / 2, block=4, matrix_axes=jc.MatrixAxes(1, 2))(stack)
    assert array.shape == (3, 12, 8)
    assert array.runs.shape[0] == 3
    assert array.index.array.shape == (12, 2)
    rows = jax.vmap(lambda each: each.take(jnp.array([3, -1])))(array)
    np.testing.assert_array_equal(rows, array.materialize()[:, jnp.array([3, 11])])


def test_what_a_budget_is_told_is_near_the_truth():
    table, transform = matrix(3_000, 32), jc.clustered(1.0)
    keeps, errors = transform.curve(np.asarray(table), None, "table")
    assert (np.diff(keeps) > 0).all()
    assert (np.diff(errors) <= 0).all()
    assert errors[-1] == 0
    for keep, error in list(zip(keeps, errors, strict=True))[10:-1:12]:
        small = jc.clustered(float(keep))(table)
        assert small.stored_numbers <= keep * table.size * (1 + 1e-9)
        assert (
            0.4 * error
            < weighted_error(table, small.materialize())
            < 2.5 * error + 0.05 * float(jnp.sum(table**2))
        )


def test_indices_are_numbers_and_bits_are_bits():
    indices, bits = StaticArray(np.arange(6).reshape(2, 3)), StaticArray(np.ones(64, bool))
    assert (indices.words, bits.words) == (6, 2)
    assert indices.array.dtype == np.uint8
    assert indices == StaticArray(np.arange(6).reshape(2, 3))
    assert len({indices, StaticArray(np.arange(6).reshape(3, 2)), StaticArray(np.arange(6))}) == 3


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="block must be a whole number"):
        jc.clustered(1 / 2, block=0)
    with pytest.raises(ValueError, match="one run with its indices takes 22 numbers"):
        jc.clustered(1 / 100)({"w": jnp.ones((12, 10))})
