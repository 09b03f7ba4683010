"""Hashed weight sharing: every entry of the matrix is plus or minus one of K shared numbers.

`W[i, j] = sign(i, j) * table[h(i, j)]`, where h and sign are integer arithmetic on the position and a seed. h is
balanced: a seeded permutation of the positions, modulo K, so every number is used equally often, give or take
one. Stored: K numbers. Forward: the dense product, 2 m n operations a row, and about 70 integer operations for
each shared run of the matrix, once a call.

Source: HashedNets, Chen et al. 2015 (arXiv:1504.04788); there the hash is not balanced.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import CompactArray, compact_array, static
from jaxcompress.arrays.permutation import Seed, mix, permute
from jaxcompress.arrays.projection import least_squares, per_matrix


@compact_array
class HashedArray(CompactArray):
    """A matrix whose entries are signed look-ups in a small table.

    Attributes:
        table: (..., K) shared numbers.
        seed: which hash.
        block: how many neighbours along the outputs are shared as one run; a shorter run ends a row that is no
            multiple of it.
    """

    table: jax.Array
    seed: int = static(default=0)
    block: int = static(default=1)

    def _matrix(self) -> jax.Array:  # not `materialize`, which would be compiled anew for every seed
        m, n = self.matrix_shape
        return self._with_dense_children()._rows(jnp.arange(m, dtype=jnp.uint32), n)

    def _take(self, rows: jax.Array) -> jax.Array:
        return self._rows(rows.astype(jnp.uint32), self.matrix_shape[1])

    def _leading(self) -> tuple[int, ...]:
        return self.table.shape[:-1]

    def _summary(self) -> str:
        return f"block={self.block}" if self.block > 1 else ""

    def _rows(self, rows: jax.Array, n: int) -> jax.Array:
        """The given rows of the matrix: (..., *rows.shape, n)."""
        seed = jnp.uint32(self.seed & 0xFFFFFFFF)
        return _look_up(self.table, rows, seed, m=self.matrix_shape[0], n=n, block=self.block)

    @classmethod
    def fit(cls, matrix: np.ndarray, size: int, *, seed: int = 0, block: int = 1, metric: np.ndarray | None = None) -> HashedArray:
        """The table of `size` numbers with the least squared error: signed means over each number's entries.

        Args:
            matrix: (..., m, n).
            size: K; at K = m n the array is the dense matrix.
            seed: which hash.
            block: entries shared as one run.
            metric: (..., m, m) second moments of the inputs, or (m,) their diagonal; the error is then that of the outputs,
                found by conjugate gradients from the plain means.
        """
        m, n = matrix.shape[-2:]
        start, sign = (np.asarray(part) for part in _row_runs(np.uint32(seed & 0xFFFFFFFF), m=m, n=n, block=block))
        index = (start[..., None] + np.arange(block, dtype=np.uint32)) % np.uint32(size)
        index = index.reshape(m, -1)[:, :n].ravel()
        sign = np.repeat(sign, block, axis=-1)[:, :n].astype(np.float64)

        def collect(error: np.ndarray) -> np.ndarray:
            return np.bincount(index, weights=(error * sign).ravel(), minlength=size)

        def fit_one(target: np.ndarray, metric: np.ndarray | None) -> np.ndarray:
            means = collect(target) / np.bincount(index, minlength=size)
            if metric is None:
                return means
            scale = np.bincount(index, weights=np.repeat(metric if metric.ndim == 1 else np.diag(metric), n), minlength=size)
            return least_squares(lambda table: table[index].reshape(m, n) * sign, collect, target, metric, means, scale)

        stack = np.asarray(matrix, np.float64).reshape(-1, m, n)
        table = np.stack([fit_one(*each) for each in zip(stack, per_matrix(metric, len(stack)), strict=True)]).reshape(
            *matrix.shape[:-2], size
        )
        return cls(jnp.asarray(table, jnp.asarray(matrix).dtype), seed=seed, block=block, dims=(m, n))


@partial(jax.jit, static_argnames=("m", "n", "block"))
def _row_runs(seed: jax.Array, *, m: int, n: int, block: int) -> tuple[jax.Array, jax.Array]:
    return run_starts(jnp.arange(m, dtype=jnp.uint32), m, n, block, seed)


@partial(jax.jit, static_argnames=("m", "n", "block"))  # eager look-ups of rows are one program, too
def _look_up(table: jax.Array, rows: jax.Array, seed: jax.Array, *, m: int, n: int, block: int) -> jax.Array:
    """The given rows of the matrix that a table means: (..., *rows.shape, n)."""
    size = table.shape[-1]
    start, sign = run_starts(rows, m, n, block, seed)
    if n % block == 0 and size % block == 0:
        runs = table.reshape(*table.shape[:-1], size // block, block)
        index = (start // np.uint32(block)) % np.uint32(size // block)
        # the index is in range by construction; astype: gathers take signed indices
        shared = runs.at[..., index.astype(jnp.int32), :].get(mode="promise_in_bounds")
        signed = shared * sign[..., None].astype(shared.dtype)
        return signed.reshape(*signed.shape[:-2], n)
    offset = jnp.arange(block, dtype=jnp.uint32)
    index = (start[..., None] + offset) % np.uint32(size)
    index = index.reshape(*rows.shape, -1)[..., :n].astype(jnp.int32)
    sign = jnp.repeat(sign, block, axis=-1)[..., :n]
    return table.at[..., index].get(mode="promise_in_bounds") * sign.astype(table.dtype)


def run_starts(rows: jax.Array, m: int, n: int, block: int, seed: Seed) -> tuple[jax.Array, jax.Array]:
    """Where each run of each given row begins in the endless sequence that fills the table again and again.

    Whole runs are laid in a seeded order, then the shorter runs that end the rows, so that the sequence modulo any
    table size uses every number equally often, give or take one.

    Returns:
        uint32 starts and +-1 signs (int8), both of shape (*rows.shape, runs in a row).
    """
    whole, rest = divmod(n, block)
    run = rows[..., None] * np.uint32(whole) + jnp.arange(whole, dtype=jnp.uint32)
    start = permute(run, m * whole, seed) * np.uint32(block) if whole else run
    identity = run
    if rest:
        tail = np.uint32(m * whole * block) + permute(rows, m, seed ^ 0x7A11) * np.uint32(rest)
        start = jnp.concatenate([start, tail[..., None]], axis=-1)
        identity = jnp.concatenate([identity, (rows + np.uint32(m * whole))[..., None]], axis=-1)
    return start, jnp.where(mix(identity, seed ^ 0x5167) >> 31, jnp.int8(-1), jnp.int8(1))
