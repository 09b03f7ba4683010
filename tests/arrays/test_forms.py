"""What is particular to each form: the convolution identity, the pivot, the cosines, layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.linalg
from laws import matrix, moments, weighted_error
from scipy.interpolate import BSpline

import jaxcompress as jc
from jaxcompress.analysis.report import flops
from jaxcompress.arrays.atoms import cosines, low_frequencies
from jaxcompress.arrays.factored import dominant_lines
from jaxcompress.arrays.hashed import places_and_signs
from jaxcompress.arrays.spline import BASES, spline_matrix


@pytest.mark.parametrize(("m", "n"), [(3, 2), (1, 5), (7, 1), (16, 9)])
def test_a_dense_layer_is_one_convolution(m, n):
    kernel, x = matrix(m, n), matrix(4, m, seed=1)
    f = jc.as_function(kernel)
    assert f.shape == (m * n,)
    y = jax.lax.conv_general_dilated(
        x[:, None], f[None, None], (1,), [(n - 1, n - 1)], lhs_dilation=(n,)
    )[:, 0]
    np.testing.assert_allclose(y, x @ kernel, atol=1e-5)
    with pytest.raises(ValueError, match="expects a matrix"):
        jc.as_function(jnp.ones(3))


def meet(x, function, spacing, n):
    """Inputs at a spacing, convolved with f: `sum_i x_i f(spacing i + n - 1 - j)`."""
    given = x[:, None], function[None, None], (1,), [(n - 1, n - 1)]
    return jax.lax.conv_general_dilated(*given, lhs_dilation=(spacing,), precision="highest")[:, 0]


def test_one_convolution_is_all_four_forms():
    """Dense, hashed, coarsened and Toeplitz layers differ in f and the inputs' places alone."""
    m, n, size = 6, 8, 20
    x, kernel, table = matrix(5, m, seed=1), matrix(m, n), matrix(1, size, seed=2)[0]

    def same(one, two):
        return np.testing.assert_allclose(one, two, atol=1e-5)

    same(meet(x, jc.as_function(kernel), n, n), x @ kernel)

    wrapped = table[jnp.arange(m * n) % size]  # a circle of fewer values
    places = (n * np.arange(m)[:, None] + n - 1 - np.arange(n)) % size
    same(meet(x, wrapped, n, n), x @ table[places])
    hashed = jc.arrays.HashedArray(table, seed=3, layout="circular", dims=(m, n))
    (rows, row_signs), (columns, column_signs) = places_and_signs(m, n, size, jnp.uint32(3))
    circle = (
        jnp.zeros((5, size)).at[:, rows].add(x * row_signs)
    )  # the inputs at places of their own
    turned = jnp.stack([jnp.roll(table, -int(place)) for place in columns], 1)
    same(circle @ turned * column_signs, x @ hashed)

    coarse = jc.spline(1 / 4)(kernel)
    steps = jc.as_function(coarse.materialize())
    same(
        steps.reshape(m, 2, n // 2),
        jnp.broadcast_to(steps.reshape(m, 2, n // 2)[..., :1], (m, 2, n // 2)),
    )
    same(steps.reshape(m, 2, n // 2)[..., 0], jc.as_function(kernel).reshape(m, 2, n // 2).mean(-1))
    same(meet(x, steps, n, n), x @ coarse)

    short = matrix(1, m + n - 1, seed=4)[0]  # the inputs side by side
    toeplitz = jc.arrays.ToeplitzArray(
        short[:, None], (m,), (m + n - 1,), (1,), (n - 1,), dims=(m, n)
    )
    same(meet(x, short, 1, n), x @ toeplitz)
    same(toeplitz.materialize(), scipy.linalg.toeplitz(short[n - 1 :], short[n - 1 :: -1]))


def test_steps_never_cross_a_period():
    coarse = jc.spline(keep=3 / 7)(matrix(4, 7))
    assert coarse.samples.shape == (4, 3)
    dense = np.asarray(coarse.materialize())
    assert all(len(np.unique(row)) == 3 for row in dense)
    np.testing.assert_allclose(dense[:, :3].mean(1), matrix(4, 7)[:, :3].mean(1), atol=1e-6)
    assert (
        flops(lambda x, a: x @ a, jnp.ones((8, 64)), jc.spline(1 / 4)(matrix(64, 64)))
        < 1.1 * 2 * 8 * 64 * 16
    )


@pytest.mark.parametrize(("count", "n"), [(4, 16), (5, 17), (1, 6), (2, 2), (9, 10)])
def test_splines_are_those_of_scipy(count, n):
    """Inside they are equal; everywhere weights sum to one, and a line stays a line."""
    at = (np.arange(n) + 0.5) * count / n - 0.5
    for basis, degree in (("linear", 1), ("cubic", 3)):
        found = spline_matrix(count, n, basis)
        np.testing.assert_allclose(found.sum(0), 1)
        np.testing.assert_allclose(np.arange(count) @ found, at if count > 1 else 0, atol=1e-12)
        reach = (degree + 1) / 2
        pieces = [
            BSpline.basis_element(np.arange(degree + 2) - reach + k, extrapolate=False)(at)
            for k in range(count)
        ]
        inside = (at >= reach - 1) & (at <= count - reach)
        np.testing.assert_allclose(
            found[:, inside], np.nan_to_num(np.stack(pieces))[:, inside], atol=1e-12
        )


def test_smoother_bases_need_fewer_knots_for_what_is_smooth():
    smooth = jnp.sin(jnp.linspace(0, 6, 60))[None] * jnp.linspace(1, 2, 8)[:, None]
    errors = [
        weighted_error(smooth, jc.spline(1 / 5, basis=basis)(smooth).materialize())
        for basis in BASES
    ]
    assert errors[1] < errors[0] / 20
    assert errors[2] < errors[1] / 3


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (25, 25)])
@pytest.mark.parametrize("rank", [1, 7, 19])
def test_the_pivot_is_well_conditioned(shape, rank):
    w = matrix(*shape)
    array = jc.arrays.FactoredArray.fit(np.asarray(w), rank)
    assert float(jnp.abs(array.mixing).max()) <= 1.1
    u, s, vt = np.linalg.svd(np.asarray(w, np.float64))
    np.testing.assert_allclose(array.materialize(), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=5e-6)
    m, n = shape
    assert array.stored_numbers == int(np.ceil(rank * (m + n - rank) + min(m, n) / 32))


def test_whitening_gives_the_least_output_error():
    w, metric = matrix(30, 20), moments(30)
    array = jc.arrays.FactoredArray.fit(np.asarray(w), 5, metric=np.asarray(metric))
    root = np.linalg.cholesky(np.asarray(metric, np.float64) + 1e-9 * np.eye(30)).T
    s = np.linalg.svd(root @ np.asarray(w, np.float64), compute_uv=False)
    np.testing.assert_allclose(
        weighted_error(w, array.materialize(), metric), np.sum(s[5:] ** 2), rtol=1e-3
    )


def test_factored_edge_cases():
    for w in (np.zeros((6, 4), np.float32), np.ones((6, 4), np.float32)):
        np.testing.assert_allclose(jc.factored(keep=3 / 4)(w).materialize(), w, atol=1e-5)
    dead = np.diag(np.r_[np.ones(3), np.zeros(5)]).astype(
        np.float32
    )  # five inputs that are always zero
    array = jc.factored(keep=3 / 4)(matrix(8, 6), dead)
    assert bool(jnp.isfinite(array.materialize()).all())
    stack = matrix(3, 10, 8)
    joint = jc.factored(keep=1 / 2, matrix_axes=jc.MatrixAxes(1, 2))(stack)
    for layer in range(3):
        alone = jc.arrays.FactoredArray.fit(np.asarray(stack[layer]), joint.rank)
        np.testing.assert_allclose(joint.materialize()[layer], alone.materialize(), atol=2e-5)
    assert (
        jc.factored(energy=0.5)(matrix(20, 20)).rank < jc.factored(energy=0.9)(matrix(20, 20)).rank
    )


@pytest.mark.parametrize(("m", "n"), [(40, 3), (3, 40), (5, 5), (1, 4)])
def test_a_rank_costs_its_lines_its_mixing_and_a_bit_for_each(m, n):
    dense = np.random.default_rng(0).normal(size=(m, n)).astype(np.float32)
    for rank in range(1, min(m, n) + 1):
        array = jc.arrays.FactoredArray.fit(dense, rank)
        bits = min(m, n) if m >= n else m
        choice = bits / 32 if rank < min(m, n) else 0
        assert jc.arrays.FactoredArray.numbers(m, n, rank) == rank * (m + n - rank) + choice
        assert array.stored_numbers == np.ceil(rank * (m + n - rank) + choice)


def test_cosines_are_scipys_and_orthonormal():
    np.testing.assert_allclose(
        cosines((9,), np.arange(9)[:, None]),
        scipy.fft.dct(np.eye(9), norm="ortho", axis=1),
        atol=1e-6,
    )
    grid = (4, 6)
    order = low_frequencies(grid)
    atoms = np.asarray(cosines(grid, order))
    np.testing.assert_allclose(atoms.T @ atoms, np.eye(24), atol=1e-6)
    assert order[0].tolist() == [0, 0]
    assert order[1].tolist() == [0, 1]
    random = np.asarray(
        jc.arrays.DesignedAtoms("random", grid=(30,), count=11, seed=4, dims=(30, 11)).materialize()
    )
    np.testing.assert_allclose(random.T @ random, np.eye(11), atol=1e-6)


def test_designed_atoms_store_nothing_and_cost_the_formula():
    array = jc.vocabulary(keep=1 / 4, grid=(16, 16))(matrix(256, 100))
    assert array.stored_numbers == array.codes.size == 6400
    assert not jax.tree.leaves(array.atoms)
    learned = jc.vocabulary(keep=1 / 4, atoms="learned")(matrix(256, 100))
    k = learned.codes.shape[0]
    assert flops(lambda x, a: x @ a, jnp.ones((128, 256)), learned) == pytest.approx(
        2 * 128 * k * 356, rel=0.03
    )
    low = jc.factored(keep=1 / 4)(matrix(256, 256))
    assert flops(lambda x, a: x @ a, jnp.ones((128, 256)), low) == pytest.approx(
        2 * 128 * low.rank * (512 - low.rank), rel=0.03
    )


def test_stacks_come_first():
    with pytest.raises(ValueError, match="a stack comes first"):
        jc.MatrixAxes(0, 2).resolve(3)
    with pytest.raises(ValueError, match="does not fit an array of 1 dimensions"):
        jc.MatrixAxes(-2, -1).resolve(1)
    assert jc.MatrixAxes(1, 2).resolve(3) == jc.MatrixAxes(-2, -1)
    stacked = jc.hashed(1 / 2, matrix_axes=jc.MatrixAxes(1, 2))(matrix(2, 4, 6))
    with pytest.raises(ValueError, match=r"use \.mT"):
        _ = stacked.T
    assert stacked.mT.shape == (2, 6, 4)
    with pytest.raises(TypeError, match=r"jc\.matmul"):
        _ = jnp.ones(4) @ jc.hashed(1 / 2, matrix_axes=jc.MatrixAxes(0, (1, 2)))(matrix(4, 2, 3))


@pytest.mark.parametrize("stack", [1, 3])
def test_no_exchange_of_lines_gains_volume(stack):
    """Where a QR with pivots alone is not dominant: Kahan's matrix, and stacks that share lines."""
    size, angle = 24, 1.2
    kahan = np.sin(angle) ** np.arange(size)[:, None] * (
        np.eye(size) - np.cos(angle) * np.triu(np.ones((size, size)), 1)
    )
    rng = np.random.default_rng(0)
    basis = np.stack([kahan.T[:, :20] + 0.3 * n * rng.normal(size=(24, 20)) for n in range(stack)])
    chosen, mixing, block = dominant_lines(basis)
    assert chosen.sum() == 20
    gain = np.exp(np.log(np.maximum(np.abs(mixing), 1e-30)).mean(0))
    assert gain.max() <= 1.01 * (1 + 1e-6)
    np.testing.assert_array_equal(block, basis[:, chosen])
    np.testing.assert_allclose(block.mT @ mixing, basis[:, ~chosen].mT, atol=1e-8)


STACKS = {
    "zeros": lambda w: w * np.array([1, 0, 1])[:, None, None],
    "the first of zeros": lambda w: w * np.array([0, 1, 1])[:, None, None],
    "one of rank 1": lambda w: np.stack([w[0], np.outer(w[1][:, 0], w[1][0]), w[2]]),
    "one with dead lines": lambda w: np.stack([w[0], w[1] * (np.arange(w.shape[2]) < 3), w[2]]),
    "one with dead inputs": lambda w: np.stack(
        [w[0], w[1] * (np.arange(w.shape[1]) < 3)[:, None], w[2]]
    ),
}


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
@pytest.mark.parametrize("name", STACKS)
def test_every_matrix_of_a_stack_is_the_best_of_its_rank(name, shape):
    """Although all share their lines, and some have less than the rank."""
    rng = np.random.default_rng(0)
    low = rng.normal(size=(3, shape[0], 3)) @ rng.normal(size=(3, 3, shape[1]))
    stack = STACKS[name](low).astype(np.float32)
    array = jc.factored(0.8, matrix_axes=jc.MatrixAxes(-2, -1))(jnp.asarray(stack))
    assert array.lines.shape[-1 if shape[0] > shape[1] else -2] >= 3
    np.testing.assert_allclose(jc.materialize(array), stack, atol=2e-5)


def test_a_stack_without_lines_in_common_is_refused():
    stack = np.zeros((2, 8, 8), np.float32)
    stack[0, :3, :3], stack[1, 5:, 5:] = np.eye(3), np.eye(3)
    tree = {"w": jnp.asarray(stack), "v": jnp.ones((8, 8))}
    form = jc.factored(0.5, matrix_axes={"w": jc.MatrixAxes(-2, -1), "v": None})
    with pytest.raises(ValueError, match=r"w: no 2 lines that the 2 matrices .* share span all"):
        jc.at("w", form)(tree)
    assert form(tree)["w"] is tree["w"]  # a sweep leaves it dense, and says so


@pytest.mark.parametrize("rows", [[3, 0, -1], (2,), np.array([[1, 7], [5, 5]]), 4])
def test_rows_may_be_lists_and_numbers(rows):
    kernel = matrix(8, 6)
    for form in (jc.hashed(1 / 2), jc.factored(1 / 2), jc.vocabulary(1 / 2)):
        array = form(kernel)
        np.testing.assert_allclose(
            array.take(rows), np.asarray(jc.materialize(array))[np.asarray(rows)], atol=1e-5
        )
        np.testing.assert_array_equal(jc.take(array, rows), array.take(rows))


def test_random_atoms_have_random_signs():
    """As many positive as negative ones at every point, and in every atom."""
    atoms = np.asarray(jc.vocabulary(1 / 2, atoms="random")(matrix(256, 64)).atoms.materialize())
    atoms = atoms[1:]  # all cosines are one at the first point
    for axis in (0, 1):
        share = (atoms > 0).mean(axis)
        assert abs(share.mean() - 0.5) < 0.02
        assert share.min() > 0.25
        assert share.max() < 0.75


@pytest.mark.parametrize("weight", ["dense", "numpy", "compact"])
def test_matmul_is_the_operator(weight):
    """Of vectors and of batches, where no roles are given."""
    kernel = matrix(6, 4)
    w = {"dense": kernel, "numpy": np.asarray(kernel), "compact": jc.hashed(1 / 2)(kernel)}[weight]
    dense = np.asarray(jc.materialize(w))
    for x in (matrix(6, seed=1), matrix(3, 6, seed=2), matrix(2, 3, 6, seed=3)):
        np.testing.assert_allclose(jc.matmul(x, w), np.asarray(x) @ dense, atol=1e-5)
    with pytest.raises(ValueError, match=r"contracts the last dimension of x with \(6,\)"):
        jc.matmul(matrix(3, 5), w)
