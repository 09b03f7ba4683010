"""Studies of hashing and of learned features agree with what can be computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import matrix

import jaxcompress as jc
from jaxcompress.analysis import (
    cost_of_sharing,
    effective_rank,
    mean_frequency,
    overlap,
    relative_variance,
    sample_efficiency,
    sketches,
)


@pytest.mark.parametrize("keep", [1 / 2, 1 / 8, 1 / 64])
def test_sketches_are_unbiased_and_vary_as_theory_says(keep):
    x, y = np.asarray(matrix(2, 96))
    found = sketches(jc.hashed(keep)(jnp.ones((96, 3_000))), x, y)
    assert found.product == pytest.approx(x @ y, rel=1e-5)
    # each output is a draw
    assert abs(found.mean - found.product) < 4 * (found.expected / 3_000) ** 0.5
    assert found.variance == pytest.approx(found.expected, rel=0.15)


def test_entries_of_a_column_meet_more_often_where_runs_are_shared():
    x, y = np.asarray(matrix(2, 256))  # long: theory is a mean over inputs in any order
    plain, runs = (
        sketches(jc.hashed(1 / 16, block=block)(jnp.ones((256, 4_000))), x, y) for block in (1, 4)
    )
    assert runs.expected == pytest.approx(4 * plain.expected, rel=0.01)
    assert runs.variance == pytest.approx(runs.expected, rel=0.15)


def test_sketches_look_at_one_matrix_in_any_layout():
    x, y = np.asarray(matrix(2, 64))
    array = jc.hashed(1 / 4)(jnp.ones((64, 64)))
    swapped = jc.hashed(1 / 4, matrix_axes=jc.MatrixAxes(1, 0))(jnp.ones((64, 64)))
    assert sketches(array, x, y) == sketches(swapped, x, y)
    with pytest.raises(ValueError, match="take one of the stack"):
        sketches(jc.hashed(1 / 4, matrix_axes=jc.MatrixAxes(1, 2))(jnp.ones((2, 4, 6))), x, y)
    with pytest.raises(ValueError, match="one count sketch for all"):
        sketches(jc.hashed(1 / 4, layout="circular")(jnp.ones((64, 64))), x, y)


def test_inputs_may_be_lists():
    array, x = jc.hashed(1 / 2)(jnp.ones((4, 3))), [1.0, 2.0, -1.0, 0.5]
    assert sketches(array, x, x) == sketches(array, np.array(x), np.array(x))
    spreads = [relative_variance(lambda seed: jc.hashed(1 / 2, seed=seed), of, 3, draws=2)
               for of in (x, np.array(x))]  # fmt: skip
    assert spreads[0] == spreads[1]


def test_a_whole_table_loses_nothing():
    x, y = np.asarray(matrix(2, 8))
    found = sketches(jc.hashed(1)(jnp.ones((8, 5))), x, y)
    assert found.variance < 1e-10
    assert found.expected == 0


def test_a_hashed_matrix_has_nearly_all_directions_where_a_product_has_few():
    dense = matrix(128, 128)
    hashed, product = jc.hashed(1 / 8)(dense), jc.factored(1 / 8)(dense)
    assert effective_rank(hashed) > 0.8 * effective_rank(dense)
    assert effective_rank(product) <= product.rank < effective_rank(dense) / 8


def test_lengths_vary_with_the_width_and_with_the_rank():
    x = np.asarray(matrix(1, 32)[0])
    hashed = relative_variance(lambda seed: jc.hashed(1 / 8, seed=seed), x, 16, draws=300)
    product = relative_variance(lambda seed: jc.factored(1 / 8), x, 32, draws=100)
    circular = relative_variance(
        lambda seed: jc.hashed(1 / 8, layout="circular", seed=seed), x, 16, draws=300
    )
    rank = jc.factored(1 / 8)(jnp.ones((32, 32))).rank
    assert circular == pytest.approx(2 / 16, rel=0.25)
    assert hashed == pytest.approx(2 / 16, rel=0.25)
    assert product == pytest.approx(2 / rank * (1 - rank / 32), rel=0.4)


def test_random_collisions_cost_what_the_count_says_and_designed_ones_less():
    smooth = jnp.cumsum(jnp.cumsum(matrix(64, 40), 0), 0)
    found = cost_of_sharing(
        smooth,
        {
            "hashed": jc.hashed(1 / 8),
            "cosines": jc.vocabulary(1 / 8),
            "windows": jc.toeplitz((64,), grid=(64,)),
        },
    )
    assert found["hashed"] == (320, pytest.approx(7 / 8, rel=0.1))
    assert found["cosines"][1] < 0.05
    assert found["windows"][1] < 1e-9
    with pytest.raises(ValueError, match="nothing but zeros"):
        cost_of_sharing(jnp.zeros((4, 4)), {"hashed": jc.hashed(1 / 8)})
    weighted = cost_of_sharing(smooth, {"cosines": jc.vocabulary(1 / 8)}, jnp.eye(64))
    assert weighted["cosines"][1] == pytest.approx(found["cosines"][1], rel=1e-3)


def test_frequencies_of_atoms():
    cosines = jc.vocabulary(1, grid=(8, 8))(jnp.ones((64, 2))).atoms
    found = mean_frequency(cosines, (8, 8))
    assert found[0] < 1e-6
    assert (np.diff(found) >= -1e-6).all()
    assert found[-1] == pytest.approx(1, abs=1e-5)
    noise = mean_frequency(jax.random.normal(jax.random.key(0), (64, 200)), (8, 8))
    assert noise.mean() == pytest.approx(found.mean(), rel=0.05)
    with pytest.raises(ValueError, match="9 points, but the atoms have 64 inputs"):
        mean_frequency(cosines, (3, 3))


def test_overlap_of_features():
    with pytest.raises(ValueError, match="span nothing"):
        overlap(np.zeros((4, 2)), np.eye(4))
    q = np.linalg.qr(np.asarray(matrix(32, 32)))[0]
    assert overlap(q[:, :5], q[:, :9] @ np.asarray(matrix(9, 9))) == pytest.approx(1)
    assert overlap(q[:, :5], q[:, 5:9]) == pytest.approx(0, abs=1e-9)
    others = [
        overlap(matrix(64, 4, seed=seed), matrix(64, 16, seed=seed + 100)) for seed in range(20)
    ]
    assert np.mean(others) == pytest.approx(16 / 64, rel=0.2)


def test_a_learning_curve_trains_at_every_size_and_seed():
    runs = []

    def train(examples, seed):
        runs.append((examples, seed))
        return 1.0 * seed, 2.0 * seed

    curve = sample_efficiency(train, (30, 10), seeds=2)
    assert runs == [(30, 0), (30, 1), (10, 0), (10, 1)]
    np.testing.assert_array_equal(curve.gap, [0.5, 0.5])
    assert jc.plots.sample_efficiency({"x": curve}).get_xlabel() == "examples"
