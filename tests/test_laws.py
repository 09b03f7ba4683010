"""Laws 1, 2, 3, 5, 6, 7, 8, 9 and 10 over the one table of arrays and transforms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import SHAPES, TRANSFORMS, matrix, moments, weighted_error

import jaxcompress as jc
from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.spline import BASES
from jaxcompress.testing import check_array, check_transform
from jaxcompress.transforms.weights import Unreachable


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_array_keeps_the_laws(name):
    array = TRANSFORMS[name](matrix(12, 9))
    assert is_compact(array)
    check_array(array, export=True)


@pytest.mark.parametrize(
    "name", ["hashed", "clustered", "vocabulary, dct", "factored", "convolved"]
)
def test_wide_arrays_and_other_layouts_keep_the_laws(name):
    check_array(TRANSFORMS[name](matrix(12, 20)), export=False)
    out_in = jc.at("w", TRANSFORMS[name])
    swapped = jc.MatrixAxes(inputs=1, outputs=0)
    kernel = {
        "hashed": jc.hashed,
        "clustered": jc.clustered,
        "vocabulary, dct": jc.vocabulary,
        "factored": jc.factored,
        "convolved": jc.spline,
    }[name]
    check_array(kernel(3 / 4, matrix_axes=swapped)(matrix(9, 12)), export=False)
    heads = kernel(3 / 4, matrix_axes=jc.MatrixAxes(inputs=0, outputs=(1, 2)))(matrix(12, 3, 4))
    assert heads.shape == (12, 3, 4)
    check_array(heads, export=False)
    assert out_in({"w": matrix(12, 9)})["w"].T.shape == (9, 12)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_keeps_the_laws(name):
    params = {"a": {"kernel": matrix(12, 9), "bias": jnp.ones(9)}, "steps": np.arange(3)}
    check_transform(TRANSFORMS[name], params, {"a": {"kernel": moments(12)}})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("metric", [None, moments(12)], ids=["plain", "in the inputs' metric"])
@pytest.mark.parametrize(
    "name",
    [
        "hashed",
        "hashed in blocks",
        "hashed, circular",
        "clustered",
        "vocabulary, dct",
        "vocabulary, smooth",
        "vocabulary, look-ups",
        "factored",
        "convolved",
        "convolved, linear",
        "convolved, cubic",
        "toeplitz, padded",
        "dct, codes hashed",
    ],
)
def test_fits_are_least_squares_optima(name, metric, shape):
    """Law 3: no small change of the stored numbers lowers the error."""
    dense = matrix(*SHAPES[shape])
    array = TRANSFORMS[name](dense, metric)
    best = weighted_error(dense, array.materialize(), metric)
    m = jnp.eye(12) if metric is None else metric

    def error(a):
        gap = dense - a.materialize()
        return jnp.sum(gap * (m @ gap))

    slope = jax.grad(error)(array)
    whole = weighted_error(dense, jnp.zeros_like(dense), metric)
    for leaf, value in zip(jax.tree.leaves(slope), jax.tree.leaves(array), strict=True):
        assert float(jnp.abs(leaf).max() * jnp.abs(value).max()) < 2e-3 * whole
    plain = TRANSFORMS[name](dense)
    assert best <= weighted_error(dense, plain.materialize(), metric) * (1 + 1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_vector_of_moments_is_their_diagonal(name):
    """A table that is looked up has no others: its rows as inputs are never two at once."""
    dense = matrix(12, 9)
    often = np.array([5, 0, 1, 9, 2, 2, 7, 1, 0, 3, 1, 4]) / 35
    one, other = (
        jc.materialize(TRANSFORMS[name](dense, metric)) for metric in (often, np.diag(often))
    )
    if (
        name == "vocabulary, learned"
    ):  # such inputs have no directions to learn: the weight's are, at the best rank
        best = jc.arrays.FactoredArray.fit(np.asarray(dense), 3, metric=often).materialize()
        np.testing.assert_allclose(one, best, atol=1e-4)
        assert weighted_error(dense, one, np.diag(often)) < weighted_error(
            dense, other, np.diag(often)
        )
        return
    np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize(
    "name",
    [
        "hashed",
        "hashed, circular",
        "vocabulary, dct",
        "vocabulary, learned",
        "factored",
        "toeplitz",
    ],
)
def test_every_matrix_of_a_stack_is_fitted_in_its_own_metric(name):
    """Law 3 for stacks: what the layers do not share is what each alone would be given."""
    stack, metrics = matrix(2, 12, 9), np.stack([moments(12), moments(12, seed=30)])
    axes = jc.MatrixAxes(1, 2)
    transform = dataclasses.replace(TRANSFORMS[name], matrix_axes=axes)
    together = transform(stack, metrics).materialize()
    alone = [TRANSFORMS[name](*layer).materialize() for layer in zip(stack, metrics, strict=True)]
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-4)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (1, 7), (7, 1), (1, 1), (5, 5)])
@pytest.mark.parametrize("metric", [False, True])
def test_full_resolution_is_the_identity(shape, metric):
    """Law 2."""
    dense = matrix(*shape)
    metric = moments(shape[0]) if metric else None
    for transform in (
        jc.hashed(1),
        jc.hashed(1, block=3),
        jc.hashed(1, layout="circular"),
        jc.vocabulary(1),
        jc.vocabulary(1, atoms="random"),
        jc.factored(1),
        *(jc.spline(1, basis=basis) for basis in BASES),
    ):
        if "block" in repr(transform) and np.prod(shape) < 3:
            continue
        array = transform(dense, metric)
        np.testing.assert_allclose(array.materialize(), dense, atol=2e-5)
        assert array.stored_numbers == dense.size
    for costly in (jc.vocabulary(1, atoms="learned"), jc.clustered(1)):  # more than dense
        assert not is_compact(costly(dense, metric))


def product_and_matrix(x, array):
    """Both in one program, since every example compiles its own."""
    return x @ array, jc.materialize(array)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(m=st.integers(1, 40), n=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_any_shape_seed_and_keep(m, n, seed, data):
    """Meaning and count, odd sizes, one row, one column, a keep that leaves one number."""
    dense = matrix(m, n)
    numbers = data.draw(st.integers(1, m * n))
    for transform in (
        jc.hashed(numbers / (m * n), seed=seed, layout=("random", "circular")[m % 2]),
        jc.hashed(numbers / (m * n), seed=seed, block=min(3, numbers)),
        jc.clustered(numbers / (m * n), seed=seed),
        jc.vocabulary(numbers / (m * n), atoms="random", seed=seed),
        jc.vocabulary(numbers / (m * n), lookups=1),
        jc.factored(numbers / (m * n)),
        jc.spline(numbers / (m * n), basis=BASES[m % 3]),
    ):
        try:
            array = transform(dense)
        except Unreachable as error:
            refused = error
        else:
            refused = None
        if refused:
            assert refused.least > numbers
            continue
        assert jc.stored_numbers(array) <= numbers
        assert array.shape == dense.shape
        x = np.ones((2, m), np.float32)
        product, materialized = jax.tree.map(np.asarray, jax.jit(product_and_matrix)(x, array))
        np.testing.assert_allclose(product, x @ materialized, atol=1e-4 * max(m, 4))
        assert weighted_error(dense, materialized) <= weighted_error(dense, 0) * (1 + 1e-4)


def test_chain_is_associative():
    """Law 10."""
    a, b, c = jc.vocabulary(keep=1 / 2), jc.at("codes", jc.hashed(keep=1 / 2)), jc.identity()
    left, right = jc.chain(jc.chain(a, b), c), jc.chain(a, jc.chain(b, c))
    assert left == right == jc.chain(a, b)
    one, other = left(matrix(12, 9)), right(matrix(12, 9))
    assert all(
        bool((x == y).all())
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_searched_structure_beats_a_random_control():
    """Law 3 for what is searched: atoms learned from the weights against as many random ones."""
    dense = matrix(40, 4) @ matrix(4, 30, seed=1) + 0.01 * matrix(40, 30, seed=2)
    learned = jc.vocabulary(keep=0.3, atoms="learned")(dense)
    count = learned.atoms.shape[1]
    control = jc.vocabulary(keep=count / 40, atoms="random")(dense)
    assert control.atoms.count == count
    assert weighted_error(dense, learned.materialize()) < 0.1 * weighted_error(
        dense, control.materialize()
    )
