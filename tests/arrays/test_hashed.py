"""The hash: golden for ever, balanced, sign apart, in blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxcompress as jc
from jaxcompress.arrays import hashed
from jaxcompress.arrays.permutation import permute

GOLDEN_INDEX = [[7, 7, 1, 2, 2, 5], [8, 9, 1, 9, 4, 8], [4, 6, 3, 1, 0, 6], [0, 3, 5, 2, 0, 3]]
GOLDEN_SIGN = [
    [-1, -1, -1, 1, 1, -1],
    [-1, -1, -1, -1, 1, 1],
    [-1, -1, 1, 1, -1, -1],
    [1, 1, 1, -1, -1, -1],
]
GOLDEN_ORDER = [11, 0, 5, 6, 1, 3, 7, 9, 8, 4, 2, 10]
GOLDEN_BLOCKS = [[0, 1, 2, 3, 4, 5, 0], [3, 4, 5, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5, 1]]


def index_and_sign(m, n, size, **options):
    """Which number each entry uses, and its sign, read off the array itself."""
    array = jc.arrays.HashedArray(jnp.arange(1.0, size + 1), dims=(m, n), **options)
    dense = np.asarray(array.materialize()).round().astype(int)
    return np.abs(dense) - 1, np.sign(dense)


def test_golden_values():
    index, sign = index_and_sign(4, 6, 10, seed=3)
    assert index.tolist() == GOLDEN_INDEX
    assert sign.tolist() == GOLDEN_SIGN
    assert permute(jnp.arange(12, dtype=jnp.uint32), 12, 7).tolist() == GOLDEN_ORDER
    index, _ = index_and_sign(3, 7, 6, seed=3, block=3)
    assert index.tolist() == GOLDEN_BLOCKS


SIZES = [(1, 1, 1), (1, 17, 5), (17, 1, 5), (13, 11, 10), (32, 16, 64), (9, 10, 90), (64, 48, 1)]


@pytest.mark.parametrize(
    ("m", "n", "size", "block"),
    [
        (m, n, size, block)
        for m, n, size in SIZES
        for block in (1, 2, 4, 7)
        if block <= min(size, n)
    ],
)
def test_every_number_is_used_equally_often(m, n, size, block):
    index, _ = index_and_sign(m, n, size, seed=5, block=block)
    uses = np.bincount(index.ravel(), minlength=size)
    assert uses.max() - uses.min() <= 1


def test_signs_are_even_and_independent_of_the_index():
    index, sign = index_and_sign(128, 128, 64, seed=1)
    assert abs(sign.mean()) < 0.03
    by_number = np.array([sign[index == k].mean() for k in range(64)])
    assert np.abs(by_number).max() < 0.3  # 256 signs each: five standard deviations


def test_places_look_random():
    """Neighbours share a number no more often than chance, along either axis."""
    index, _ = index_and_sign(256, 256, 128, seed=2)
    for a, b in (
        (index[1:], index[:-1]),
        (index[:, 1:], index[:, :-1]),
        (index[1:, 1:], index[:-1, :-1]),
    ):
        assert abs((a == b).mean() - 1 / 128) < 0.002
    other, _ = index_and_sign(256, 256, 128, seed=3)
    assert abs((index == other).mean() - 1 / 128) < 0.002


def test_blocks_share_aligned_runs():
    array = jc.hashed(keep=1 / 4, block=4)(jax.random.normal(jax.random.key(0), (8, 12)))
    runs = np.asarray(array.materialize()).reshape(8, 3, 4)
    blocks = np.asarray(array.table).reshape(-1, 4)
    for run in runs.reshape(-1, 4):
        assert any(np.allclose(run, sign * block) for block in blocks for sign in (1, -1))


def test_seeds_come_from_the_path_or_the_shape():
    kernel = jax.random.normal(jax.random.key(0), (8, 8))
    by_path = jc.hashed(keep=1 / 4)({"a": kernel, "b": kernel})
    assert by_path["a"].seed != by_path["b"].seed
    by_shape = jc.hashed(keep=1 / 4, seed_by="shape")({"a": kernel, "b": kernel})
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), by_shape["a"], by_shape["b"])
    assert stacked.shape == (2, 8, 8)


def test_no_index_array_is_stored_in_the_program():
    array = jc.hashed(keep=1 / 64)(jax.random.normal(jax.random.key(0), (256, 256)))
    exported = export.export(jax.jit(lambda a, x: x @ a))(
        array, jax.ShapeDtypeStruct((4, 256), jnp.float32)
    )
    assert len(exported.mlir_module_serialized) < 8_000 + 4 * array.stored_numbers


def test_keep_that_leaves_one_number():
    array = jc.hashed(keep=1 / 64)(jnp.ones((8, 8)))
    assert array.stored_numbers == 1
    with pytest.raises(ValueError, match="least keep"):
        jc.hashed(keep=1 / 65)(jnp.ones((8, 8)))


def test_block_longer_than_the_table():
    with pytest.raises(ValueError, match=r"kernel.*block=32 is longer than the table of 16"):
        jc.hashed(keep=1 / 4, block=32)({"kernel": jnp.ones((8, 8))})


# --- the circular layout -------------------------------------------------------------------------

GOLDEN_CIRCULAR = [[6, 4, 5, 2, 3], [0, 8, 9, 6, 7], [4, 2, 3, 0, 1]]
GOLDEN_CIRCULAR_SIGN = [[-1, -1, 1, -1, 1], [1, 1, -1, 1, -1], [1, 1, -1, 1, -1]]


def test_golden_values_of_the_circular_layout():
    index, sign = index_and_sign(3, 5, 10, seed=3, layout="circular")
    assert index.tolist() == GOLDEN_CIRCULAR
    assert sign.tolist() == GOLDEN_CIRCULAR_SIGN


@pytest.mark.parametrize(("m", "n", "size"), SIZES)
def test_places_of_the_circular_layout_are_sums_and_its_signs_products(m, n, size):
    index, sign = index_and_sign(m, n, size, seed=5, layout="circular")
    assert ((index + index[:1, :1] - index[:, :1] - index[:1]) % size == 0).all()
    assert (sign * sign[0, 0] == sign[:, :1] * sign[:1]).all()
    assert len(np.unique(index, axis=0)) == min(m, size)  # no two rows are the same numbers
    uses = np.bincount(index.ravel(), minlength=size)
    assert uses.min() > 0
    assert uses.max() <= 1.5 * uses.min() + 2


@pytest.mark.parametrize(("m", "n", "size"), SIZES)
def test_the_ways_to_multiply_by_a_circular_hash_are_one(m, n, size):
    """Dense, as runs of the table, and as a correlation; values and gradients are the same."""
    table, x = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(2, size), (2, 3, m)])
    )
    seed = jnp.uint32(7)

    def dense(x, table):
        return (
            x @ jc.arrays.HashedArray(table, seed=7, layout="circular", dims=(m, n)).materialize()
        )

    def outputs_and_gradients(multiply):
        def loss(x, table):
            return (jnp.sum((out := multiply(x, table)) ** 2), out)

        gradients, out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, table)
        return (out, *gradients)

    exact = outputs_and_gradients(dense)
    for way in (hashed._correlate, hashed._read_round):
        for mine, theirs in zip(
            outputs_and_gradients(partial(way, seed=seed, m=m, n=n)), exact, strict=True
        ):
            np.testing.assert_allclose(
                mine, theirs, rtol=0, atol=float(jnp.abs(theirs).max()) * 1e-5
            )
        half = way(x.astype(jnp.bfloat16), table.astype(jnp.bfloat16), seed, m=m, n=n)
        assert half.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            half.astype(jnp.float32), exact[0], rtol=0, atol=float(jnp.abs(exact[0]).max()) * 2e-2
        )


def test_a_small_circular_table_costs_less_than_the_dense_product():
    array = jc.hashed(1 / 1024, layout="circular")(
        jax.random.normal(jax.random.key(0), (1024, 1024))
    )
    x = jnp.ones((128, 1024))
    dense = jax.jit(lambda x, w: x @ w).lower(x, jnp.ones((1024, 1024))).cost_analysis()["flops"]
    assert jax.jit(lambda x, w: x @ w).lower(x, array).cost_analysis()["flops"] < dense / 10
    for mine, theirs in (
        (x @ array, x @ array.materialize()),
        (x @ array.mT, x @ array.materialize().T),
    ):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=float(jnp.abs(theirs).max()) * 1e-5)


def test_what_a_layout_may_be():
    with pytest.raises(
        ValueError, match="layout='round' is unknown: expected one of 'random', 'circular'"
    ):
        jc.hashed(1 / 4, layout="round")
    with pytest.raises(ValueError, match="block=4 is for the random layout"):
        jc.hashed(1 / 4, layout="circular", block=4)
