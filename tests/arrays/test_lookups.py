"""Columns of few atoms: recovered, better than chance, counted, gathered and not multiplied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from laws import matrix, moments, weighted_error

import jaxcompress as jc
from jaxcompress.analysis.report import flops
from jaxcompress.arrays.atoms import DesignedAtoms, coordinates, spread
from jaxcompress.arrays.lookups import LookupArray
from jaxcompress.arrays.static import StaticArray


def sparse(rows: int, columns: int, entries: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    codes = np.zeros((rows, columns), np.float32)
    for column in range(columns):
        codes[rng.permutation(rows)[:entries], column] = rng.choice([-1, 1], entries) * rng.uniform(
            1, 2, entries
        )
    return codes


def test_atoms_that_are_there_are_found():
    codes = sparse(36, 50, 3)
    dct = np.asarray(DesignedAtoms("dct", grid=(6, 6), count=36, dims=(36, 36)).materialize())
    correlated = moments(36)
    # pursuit is exact where atoms are not too alike in the metric
    for metric in (None, correlated + jnp.mean(jnp.diag(correlated)) * jnp.eye(36)):
        array = jc.vocabulary(1 / 2, grid=(6, 6), lookups=3)(jnp.asarray(dct @ codes), metric)
        np.testing.assert_allclose(array.codes.materialize(), codes, atol=1e-4)
        assert array.stored_numbers == 2 * 3 * 50
    atoms = np.random.default_rng(1).standard_normal((30, 12)).astype(np.float32)
    dense = jnp.asarray(atoms @ sparse(12, 400, 1))
    learned = jc.vocabulary(1 / 10, atoms="learned", lookups=1)(dense)
    assert weighted_error(dense, jc.materialize(learned)) < 1e-3 * float(jnp.sum(dense**2))
    assert learned.stored_numbers <= dense.size / 10


def test_the_search_beats_a_random_control():
    dense, metric = matrix(40, 60), moments(40)
    found = jc.arrays.LookupArray.fit(np.asarray(dense), 4, metric=np.asarray(metric))
    rng = np.random.default_rng(0)
    chosen = np.stack([rng.permutation(40)[:4] for _ in range(60)], axis=1)
    gram = np.asarray(metric, np.float64)
    control = np.zeros((40, 60))
    for column, rows in enumerate(chosen.T):
        control[rows, column] = np.linalg.solve(
            gram[np.ix_(rows, rows)], gram[rows] @ np.asarray(dense)[:, column]
        )
    best, chance = (weighted_error(dense, each, metric) for each in (found.materialize(), control))
    assert best < 0.7 * chance
    learned, given = (
        jc.vocabulary(0.9, atoms=atoms, lookups=2)(dense) for atoms in ("learned", np.eye(40))
    )
    assert weighted_error(dense, learned.materialize()) < weighted_error(dense, given.materialize())


def test_a_stack_shares_its_rows_and_not_its_values():
    stack = np.asarray(matrix(3, 12, 8))
    array = jc.arrays.LookupArray.fit(stack, 2)
    assert (array.shape, array.values.shape, array.index.array.shape) == (
        (3, 12, 8),
        (3, 2, 8),
        (2, 8),
    )
    x = matrix(3, 5, 12)
    np.testing.assert_allclose(x @ array, x @ array.materialize(), atol=1e-5)


def test_a_product_gathers():
    array = jc.vocabulary(1 / 4, lookups=2)(matrix(64, 512))
    counted = flops(jax.jit(lambda x, w: x @ w).lower(matrix(128, 64), array).compile())
    multiplied = 2 * 128 * (64 * 64 + 2 * 512)
    assert counted < 1.1 * multiplied + 3 * 64 * 64


def test_smooth_atoms_predict_the_rest_from_a_few_points():
    atoms = DesignedAtoms("smooth", grid=(28, 28), count=100, dims=(784, 100)).materialize()

    def bump(at):
        return np.exp(-np.sum((np.asarray(at) - 13.5) ** 2, axis=1) / 50)

    points = spread((28, 28), 100)
    np.testing.assert_allclose(atoms @ bump(points), bump(coordinates((28, 28))), atol=0.02)
    apart = np.linalg.norm(points[:, None] - points, axis=-1) + 100 * np.eye(100)
    assert apart.min() > 2.5  # of 2.8 on average
    np.testing.assert_allclose(spread((8,), 4)[:, 0], [0.5, 2.5, 4.5, 6.5])


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="lookups must be a whole number of at least 1, got 0"):
        jc.vocabulary(1 / 2, lookups=0)
    with pytest.raises(ValueError, match="lookups=3 is more than the 2 atoms that there are"):
        jc.vocabulary(1, atoms=lambda grid: jnp.ones((12, 2)), lookups=3)({"w": jnp.ones((12, 5))})
    with pytest.raises(
        ValueError,
        match="w: 2 look-ups a column take 400 numbers, and keep allows 300; the least keep",
    ):
        jc.vocabulary(1 / 4, lookups=2)({"w": jnp.ones((12, 100))})
    with pytest.raises(ValueError, match="2 look-ups a column and 2 atoms take 424 numbers"):
        jc.vocabulary(1 / 4, atoms="learned", lookups=2)({"w": jnp.ones((12, 100))})
    assert "2 entries a column" in repr(
        jc.arrays.LookupArray(
            jnp.ones((2, 3)), StaticArray(np.array([[0, 1, 2], [1, 2, 3]])), dims=(4, 3)
        )
    )


def test_the_first_row_is_the_one_that_lowers_the_error_most():
    """By its power, since atoms have unequal lengths and inputs unequal powers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 7)) * np.logspace(-1, 1, 7)
    metric, target = x.T @ x / 40, rng.normal(size=(7, 5)) / np.logspace(-1, 1, 7)[:, None]
    array = LookupArray.fit(target, 1, metric=metric)
    along = metric @ target
    least = np.sum(target * along, 0) - (along**2 / np.diag(metric)[:, None]).max(0)
    gap = target - np.asarray(array.materialize(), np.float64)
    np.testing.assert_allclose(np.sum(gap * (metric @ gap), 0), least, rtol=1e-4)


def test_atoms_of_a_table_of_words_are_never_made():
    """A look-up makes the rows that it takes; a fit is a cosine transform of the columns."""
    table = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    array = jc.vocabulary(keep=1 / 4)(table)
    waves = scipy.fft.dct(table.astype(np.float64), axis=0, norm="ortho")
    np.testing.assert_allclose(array.codes, waves[:750], atol=1e-5)
    waves[750:] = 0
    np.testing.assert_allclose(
        array.materialize(), scipy.fft.idct(waves, axis=0, norm="ortho"), atol=1e-4
    )
    rows = jnp.array([0, 5, 2999])
    np.testing.assert_allclose(array.take(rows), array.materialize()[rows], atol=1e-4)
    look, dense = flops(lambda a: a.take(rows), array), 2 * 3000 * 750 * 4
    assert look < dense / 100
    assert flops(lambda a, x: x @ a, array, jnp.ones((1, 3000))) < dense / 4
    often = np.zeros(3000)
    often[:40] = np.arange(40)
    seen = np.asarray(jc.vocabulary(keep=0.9)(table, often).materialize())
    np.testing.assert_allclose(seen[1:40], table[1:40], atol=1e-2)
