"""A Toeplitz array is XLA's convolution, and scipy's matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from laws import matrix

import jaxcompress as jc
from jaxcompress.analysis.report import flops


@pytest.mark.parametrize(
    ("grid", "window", "stride", "pad"),
    [
        ((9,), (4,), 1, 0),
        ((9, 7), (3, 2), (2, 1), 0),
        ((8, 8), (5, 5), 3, (2, 1)),
        ((6, 6, 3), (3, 3, 3), (2, 2, 1), (1, 1, 0)),
    ],
)
def test_it_is_a_convolution(grid, window, stride, pad):
    transform = jc.toeplitz(window, grid=grid, stride=stride, pad=pad)
    axes = len(grid)
    strides, pads = transform.stride, transform.pad
    count = np.prod(
        [(g + 2 * p - w) // s + 1 for g, w, s, p in zip(grid, window, strides, pads, strict=True)]
    )
    array = transform(matrix(int(np.prod(grid)), int(count) * 2))
    x = matrix(5, int(np.prod(grid)), seed=1)
    letters = "DHW"[-axes:]
    wanted = jax.lax.conv_general_dilated(
        x.reshape(5, *grid, 1),
        array.taps.reshape(*window, 1, 2),
        strides,
        [(p, p) for p in pads],
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    np.testing.assert_allclose(x @ array, wanted.reshape(5, -1), atol=1e-5)
    np.testing.assert_allclose(x @ array.materialize(), wanted.reshape(5, -1), atol=1e-5)


def test_every_diagonal_of_a_square_one_is_shared():
    m, n = 6, 4
    dense = np.asarray(matrix(m, n))
    array = jc.toeplitz((m + n - 1,), grid=(m,), pad=n - 1)(dense)
    means = [np.mean(np.diagonal(dense, offset)) for offset in range(n - 1, -m, -1)]
    column, row = means[n - 1 :], means[n - 1 :: -1]
    np.testing.assert_allclose(array.materialize(), scipy.linalg.toeplitz(column, row), atol=1e-6)
    assert array.stored_numbers == m + n - 1


def test_a_window_as_large_as_the_grid_is_the_matrix():
    dense = matrix(12, 7)
    array = jc.toeplitz((4, 3), grid=(4, 3))(dense)
    np.testing.assert_allclose(array.materialize(), dense, atol=1e-6)
    assert array.stored_numbers == 84


def test_a_product_costs_the_windows_and_no_more():
    array = jc.toeplitz((9, 9), grid=(28, 28), stride=2)(matrix(784, 1_000))
    product, x = lambda x, a: x @ a, jnp.ones((128, 784))
    assert flops(product, x, array) < 1.05 * 2 * 128 * 100 * 81 * 10
    assert flops(product, x, array) < 0.11 * flops(product, x, array.materialize())


def test_what_is_empty_stays_empty():
    array = jc.toeplitz((2, 2), grid=(4, 3))(matrix(12, 12))
    assert (jnp.ones((0, 12)) @ array).shape == (0, 12)
    assert (array @ jnp.ones((12, 0))).shape == (12, 0)


def test_a_window_that_costs_more_than_the_matrix_leaves_it():
    dense = matrix(4, 3)
    assert jc.toeplitz(6, grid=4, pad=1)(dense) is dense


def test_given_atoms_of_a_stack_have_codes_each():
    atoms = np.asarray(matrix(2, 12, 4))
    array = jc.arrays.VocabularyArray.fit(np.asarray(matrix(12, 16)), atoms)
    assert array.codes.shape == (2, 4, 16)


def test_channels_have_the_same_atoms_apart():
    dense = matrix(24, 5)
    array = jc.vocabulary(keep=1 / 2, grid=(4, 2), channels=3)(dense)
    assert array.codes.shape == (12, 5)
    channel = jc.vocabulary(keep=1 / 2, grid=(4, 2))(dense[1::3])
    np.testing.assert_allclose(array.materialize()[1::3], channel.materialize(), atol=1e-5)
    np.testing.assert_allclose(
        matrix(2, 24) @ array, matrix(2, 24) @ array.materialize(), atol=1e-4
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jc.toeplitz((3,), grid=(4, 4)), "one size for each axis"),
        (lambda: jc.toeplitz((), grid=()), "grid must be whole numbers of at least 1"),
        (lambda: jc.toeplitz((2.7,), grid=(9,)), "window must be whole numbers"),
        (lambda: jc.toeplitz((2,), grid=(9,), stride=True), "stride must be one whole number"),
        (lambda: jc.toeplitz((2, 2), grid=(4, 4), pad=5), "covers nothing but zeros"),
        (lambda: jc.toeplitz((5, 5), grid=(4, 4)), "has no position"),
        (lambda: jc.toeplitz((2, 2), grid=(4, 4), stride=0), "stride must be one whole number"),
        (lambda: jc.toeplitz((2, 2), grid=(4, 4), pad=(1,)), "pad must be one whole number"),
        (
            lambda: jc.toeplitz((2, 2), grid=(4, 4))(jnp.ones((12, 9))),
            "has 16 points, but the matrix has 12 inputs",
        ),
        (
            lambda: jc.toeplitz((2, 2), grid=(4, 4))(jnp.ones((16, 10))),
            "9 positions, of which 10 outputs are no multiple",
        ),
        (lambda: jc.vocabulary(1 / 2, channels=0), "channels must be a whole number"),
        (
            lambda: jc.vocabulary(1 / 2, atoms="learned", channels=2),
            "is for designed atoms",
        ),
        (
            lambda: jc.vocabulary(1 / 2, grid=(4,), channels=2)(jnp.ones((12, 9))),
            "4 points of 2 channels.* the product 6",
        ),
        (
            lambda: jc.vocabulary(1 / 2, channels=5)(jnp.ones((12, 9))),
            "channels=5 does not divide the 12 inputs",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
