"""Hashed weight sharing: every entry of the matrix is plus or minus one of K shared numbers.

`W[i, j] = sign(i, j) * table[h(i, j)]`, where h and sign are integer arithmetic on the position and
a seed. h is balanced: a seeded permutation of the positions, modulo K, so every number is used
equally often, give or take one. Stored: K numbers. Forward: the dense product, 2 m n operations a
row, and about 70 integer operations for each shared run of the matrix, once a call.

In the circular layout the place is a sum, `h(i, j) = h1(i) + h2(j) modulo K`, and so is the sign a
product. The matrix is then one function, the table, wrapped round: row i reads n neighbouring
values from h1(i) on, in a seeded order. `x @ W` is the circular correlation of the table with the
inputs thrown to their places h1(i) with their signs, which is their count sketch: with a Fourier
transform about 5 K log2 K operations a row. Hashes are made for m + n places, not for m n.

Source: HashedNets, Chen et al. 2015 (arXiv:1504.04788); there the hash is not balanced. Count
sketch: Charikar et al. 2002; its convolutions by Fourier transform: Pham and Pagh 2013
(doi:10.1145/2487575.2487591).
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcompress.arrays.base import CompactArray
from jaxcompress.arrays.device import to_device
from jaxcompress.arrays.field_checks import expect
from jaxcompress.arrays.permutation import Seed, mix, permute
from jaxcompress.arrays.projection import Metric, check_shape, per_matrix, shared_numbers
from jaxcompress.arrays.rank import with_rank
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.static import static_field
from jaxcompress.checks import checked, choice, seeds, whole
from jaxcompress.checks import matrix as matrix_kind

LAYOUTS = ("random", "circular")


@compact_array
class HashedArray(CompactArray):
    """A matrix whose entries are signed look-ups in a small table.

    Attributes:
        table: (..., K) shared numbers.
        seed: of the hash.
        block: how many neighbours along the outputs are shared as one run; a shorter run ends a row
            that is no multiple of it.
        layout: "random", or "circular" for places that are sums.
    """

    table: Float[Array, "*stack k"]
    seed: int = static_field(default=0)
    block: int = static_field(default=1)
    layout: str = static_field(default="random")

    def matrix(self) -> jax.Array:
        """The table's entries, signed, at the hashed places."""
        # not `materialize`, which would be compiled anew for every seed
        m, n = self.matrix_shape
        return self.with_dense_children()._rows(jnp.arange(m, dtype=jnp.uint32), n)

    def multiply(self, x: jax.Array) -> jax.Array:
        """`x @ matrix`, in the circular layout without the matrix."""
        if self.layout == "random":
            return super().multiply(x)
        m, n = self.matrix_shape
        product = _correlate if fourier_pays(m, n, self.table.shape[-1]) else _read_round
        return product(x, self.table, self._seed(), m=m, n=n)

    def take(self, rows: jax.Array) -> jax.Array:
        """The entries of the rows alone."""
        return self._rows(rows.astype(jnp.uint32), self.matrix_shape[1])

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The leading dimensions of the table."""
        return self.table.shape[:-1]

    def summary(self) -> str:
        """The form's sizes."""
        if self.layout != "random":
            return self.layout
        return f"block={self.block}" if self.block > 1 else ""

    def check_sizes(self) -> None:
        """Refuse a table of nothing, and blocks or layouts that there are not."""
        expect("layout", self.layout, self.layout in LAYOUTS, f"one of {', '.join(LAYOUTS)}")
        expect("block", self.block, self.block >= 1, "at least 1")
        expect("dims", self.dims, self.dims is not None, "the matrix's sizes")
        expect("table", self.table.shape, self.table.shape[-1:] > (0,), "numbers to share")

    def _seed(self) -> jax.Array:
        return jnp.uint32(self.seed & 0xFFFFFFFF)

    def _rows(self, rows: jax.Array, n: int) -> jax.Array:
        """The given rows of the matrix: (..., *rows.shape, n)."""
        m, seed = self.matrix_shape[0], self._seed()
        if self.layout == "circular":
            return _look_up_sums(self.table, rows, seed, m=m, n=n)
        return _look_up(self.table, rows, seed, m=m, n=n, block=self.block)

    @classmethod
    @checked(
        matrix=matrix_kind,
        size=whole(),
        seed=seeds,
        block=whole(),
        layout=choice("random", "circular"),
    )
    def fit(
        cls,
        matrix: Float[np.ndarray, "*stack m n"],
        size: int,
        *,
        seed: int = 0,
        block: int = 1,
        layout: str = "random",
        metric: Metric | None = None,
    ) -> HashedArray:
        """The table with the least squared error: signed means over each number's entries.

        Args:
            matrix: (..., m, n).
            size: K; at K = m n the array is the dense matrix.
            seed: of the hash.
            block: entries shared as one run.
            layout: "random" or "circular".
            metric: (..., m, m) second moments of the inputs, or (m,) their diagonal; the error is
                then that of the outputs, minimised by conjugate gradients from means.
        """
        m, n = matrix.shape[-2:]
        if block > n:
            raise ValueError(f"HashedArray.fit: block={block} is longer than a row of {n} entries")
        check_shape("HashedArray.fit", metric, matrix)
        index, sign = entries(m, n, size, seed=seed, block=block, layout=layout)
        index = index.ravel()
        stack = np.asarray(matrix, np.float64).reshape(-1, m, n)
        table = np.stack(
            [
                _fit_table(target, metric, index, sign, size)
                for target, metric in zip(stack, per_matrix(metric, len(stack)), strict=True)
            ]
        ).reshape(*matrix.shape[:-2], size)
        values = to_device(table, jnp.result_type(matrix))
        return cls(values, seed=seed, block=block, layout=layout, dims=(m, n))


def _fit_table(
    target: Float[np.ndarray, "m n"],
    metric: np.ndarray | None,
    index: Int[np.ndarray, " entries"],
    sign: Float[np.ndarray, "m n"],
    size: int,
) -> Float[np.ndarray, " size"]:
    """The table of one matrix: signed means, or the optimum in a metric."""

    def collect(error: np.ndarray) -> np.ndarray:
        return np.bincount(index, weights=(error * sign).ravel(), minlength=size)

    def expand(table: np.ndarray) -> np.ndarray:
        return table[index].reshape(target.shape) * sign

    return shared_numbers(expand, collect, target, metric, size)


def entries(
    m: int, n: int, size: int, *, seed: int = 0, block: int = 1, layout: str = "random"
) -> tuple[np.ndarray, np.ndarray]:
    """(m, n) which of `size` numbers each entry of a matrix uses, and its sign."""
    if layout == "circular":
        (h1, s1), (h2, s2) = jax.device_get(
            places_and_signs(m, n, size, np.uint32(seed & 0xFFFFFFFF))
        )
        return (h1[:, None] + h2) % np.uint32(size), (s1[:, None] * s2).astype(np.float64)
    start, sign = jax.device_get(_row_runs(np.uint32(seed & 0xFFFFFFFF), m=m, n=n, block=block))
    index = (start[..., None] + np.arange(block, dtype=np.uint32)) % np.uint32(size)
    return index.reshape(m, -1)[:, :n], np.repeat(sign, block, axis=-1)[:, :n].astype(np.float64)


@partial(jax.jit, static_argnames=("m", "n", "block"))
def _row_runs(seed: jax.Array, *, m: int, n: int, block: int) -> tuple[jax.Array, jax.Array]:
    return run_starts(jnp.arange(m, dtype=jnp.uint32), m, n, block, seed)


@partial(
    jax.jit, static_argnames=("m", "n", "block")
)  # eager look-ups of rows are one program, too
def _look_up(
    table: jax.Array, rows: jax.Array, seed: jax.Array, *, m: int, n: int, block: int
) -> jax.Array:
    """The given rows of the matrix that a table represents: (..., *rows.shape, n)."""
    size = table.shape[-1]
    start, sign = run_starts(rows, m, n, block, seed)
    if n % block == 0 and size % block == 0:
        runs = table.reshape(*table.shape[:-1], size // block, block)
        index = (start // np.uint32(block)) % np.uint32(size // block)
        # the index is in range by construction; astype: gathers take signed indices
        shared = runs.at[..., index.astype(jnp.int32), :].get(mode="promise_in_bounds")
        signed = shared * with_rank(sign[..., None].astype(shared.dtype), shared.ndim)
        return signed.reshape(*signed.shape[:-2], n)
    offset = jnp.arange(block, dtype=jnp.uint32)
    index = (start[..., None] + with_rank(offset, start.ndim + 1)) % np.uint32(size)
    index = index.reshape(*rows.shape, -1)[..., :n].astype(jnp.int32)
    sign = jnp.repeat(sign, block, axis=-1)[..., :n]
    values = table.at[..., index].get(mode="promise_in_bounds")
    return values * with_rank(sign.astype(table.dtype), values.ndim)


def run_starts(
    rows: jax.Array, m: int, n: int, block: int, seed: Seed
) -> tuple[jax.Array, jax.Array]:
    """Where each run of the given rows begins in the sequence that fills the table repeatedly.

    Whole runs are laid in a seeded order, then the shorter runs that end the rows, so that the
    sequence modulo any table size uses every number equally often, give or take one.

    Returns:
        uint32 starts and +-1 signs (int8), both of shape (*rows.shape, runs in a row).
    """
    full, rest = divmod(n, block)
    places = with_rank(jnp.arange(full, dtype=jnp.uint32), rows.ndim + 1)
    run = rows[..., None] * np.uint32(full) + places
    start = permute(run, m * full, seed) * np.uint32(block) if full else run
    # the number of each run, from which its sign is hashed; short runs come after the full ones
    identity = run
    if rest:
        tail = np.uint32(m * full * block) + permute(rows, m, seed ^ 0x7A11) * np.uint32(rest)
        start = jnp.concatenate([start, tail[..., None]], axis=-1)
        identity = jnp.concatenate([identity, (rows + np.uint32(m * full))[..., None]], axis=-1)
    return start, jnp.where(mix(identity, seed ^ 0x5167) >> 31, jnp.int8(-1), jnp.int8(1))


def shift_between_rows(m: int, n: int, size: int) -> int:
    """The offset between the starts of consecutive rows in the circular layout.

    At least n, so that rows do not overlap before they wrap round. It is increased until its
    multiples modulo K take min(m, K) distinct values, so that no two rows start at one place while
    another is free.
    """
    shift = n
    while size // math.gcd(shift, size) < min(m, size):
        shift += 1
    return shift


@partial(jax.jit, static_argnames=("m", "n", "size"))
def places_and_signs(
    m: int, n: int, size: int, seed: Seed
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The circular layout: `h1, s1` of rows and `h2, s2` of columns, uint32 places, int8 signs."""

    def of(count: int, shift: int, salt: int) -> tuple[jax.Array, jax.Array]:
        position = jnp.arange(count, dtype=jnp.uint32)
        place = permute(position, count, seed ^ salt) * np.uint32(shift) % np.uint32(size)
        return place, jnp.where(
            mix(position, seed ^ salt ^ 0x5167) >> 31, jnp.int8(-1), jnp.int8(1)
        )

    return of(m, shift_between_rows(m, n, size), 0x1001), of(n, 1, 0x2002)


@partial(jax.jit, static_argnames=("m", "n"))
def _look_up_sums(
    table: jax.Array, rows: jax.Array, seed: jax.Array, *, m: int, n: int
) -> jax.Array:
    """The given rows of the circular layout's matrix: (..., *rows.shape, n)."""
    size = table.shape[-1]
    (h1, s1), (h2, s2) = places_and_signs(m, n, size, seed)
    h1, s1 = h1[rows, None], s1[rows, None]
    index = (h1 + with_rank(h2, h1.ndim)) % np.uint32(size)
    sign = (s1 * with_rank(s2, s1.ndim)).astype(table.dtype)
    values = table.at[..., index.astype(jnp.int32)].get(mode="promise_in_bounds")
    return values * with_rank(sign, values.ndim)


@partial(jax.jit, static_argnames=("m", "n"))
def _read_round(x: jax.Array, table: jax.Array, seed: jax.Array, *, m: int, n: int) -> jax.Array:
    """`x @ W` in the circular layout, for x (..., rows, m): rows are runs of the table."""
    (h1, s1), (h2, s2) = places_and_signs(m, n, table.shape[-1], seed)
    # a row may start near the end of the table: repeat its beginning there
    wrapped = jnp.pad(table, [(0, 0)] * (table.ndim - 1) + [(0, n - 1)], mode="wrap")
    start = h1.astype(jnp.int32)
    runs = jax.vmap(
        lambda first: jax.lax.dynamic_slice_in_dim(wrapped, first, n, axis=-1), out_axes=-2
    )(start)
    out = (x * with_rank(s1.astype(x.dtype), x.ndim)) @ runs
    moved = out.at[..., h2.astype(jnp.int32)].get(mode="promise_in_bounds")
    return moved * with_rank(s2.astype(out.dtype), out.ndim)


def fourier_pays(m: int, n: int, size: int) -> bool:
    """Whether a product by Fourier transform is faster than the dense one."""
    return FOURIER_COST * size * math.log2(size + 1) < 2 * m * n


FOURIER_COST = 40
"""A transform there and back, in operations of a dense product for each number and halving."""


@partial(jax.jit, static_argnames=("m", "n"))
def _correlate(x: jax.Array, table: jax.Array, seed: jax.Array, *, m: int, n: int) -> jax.Array:
    """`x @ W` in the circular layout: the correlation of a count sketch of x with the table."""
    size, dtype = table.shape[-1], jnp.result_type(x, table)
    exact = jnp.promote_types(dtype, jnp.float32)  # there is no transform in half precision
    (h1, s1), (h2, s2) = places_and_signs(m, n, size, seed)
    sketch = (
        jnp.zeros((*x.shape[:-1], size), exact)
        .at[..., h1.astype(jnp.int32)]
        .add(x.astype(exact) * with_rank(s1, x.ndim))
    )
    # a stack of tables broadcasts with leading dimensions of x
    spectrum = jnp.fft.rfft(table.astype(exact))[..., None, :]
    rank = max(sketch.ndim, spectrum.ndim)
    product = with_rank(jnp.conj(jnp.fft.rfft(sketch)), rank) * with_rank(spectrum, rank)
    out = jnp.fft.irfft(product, n=size).at[..., h2.astype(jnp.int32)].get(mode="promise_in_bounds")
    return (out * with_rank(s2, out.ndim)).astype(dtype)
