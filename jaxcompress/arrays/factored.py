"""A matrix of rank r, stored as r of its own columns and how the others follow from them.

`W = C [I T] P`: C (m, r) holds r columns of the product, T (r, n-r) says how the rest follow from
them, P puts the columns back in place. That is r (m + n - r) numbers rather than r (m + n), so full
rank costs exactly the dense count, plus one bit a column for the choice. The choice is a submatrix
of nearly the largest volume, so no entry of T exceeds 1.01 and rounding does not grow. With more
columns than rows the rows are chosen instead. Forward: 2 r (m + n - r) operations a row.

Source: Eckart and Young 1936; whitening as in SVD-LLM (arXiv:2403.07378); maxvol, Goreinov et al.
2010.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float

from jaxcompress.arrays.base import CompactArray
from jaxcompress.arrays.device import to_device
from jaxcompress.arrays.field_checks import expect
from jaxcompress.arrays.projection import check_shape
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.static import StaticArray, static_field
from jaxcompress.checks import checked, whole
from jaxcompress.checks import matrix as matrix_kind

MOST_CONDITION = 1e4
"""Of the chosen lines of any matrix of a stack: beyond, rounding of float32 grows too much."""


@compact_array
class FactoredArray(CompactArray):
    """A matrix of low rank: some of its lines, and the mixing that makes the others.

    Attributes:
        lines: the chosen columns (..., m, r), or the chosen rows (..., r, n) when `by_rows`.
        mixing: the other columns from the chosen (..., r, n-r), or the other rows (..., m-r, r).
        chosen: which columns (or rows) the lines are; empty at full rank, where they are all.
        by_rows: whether the lines are rows.
    """

    lines: jax.Array
    mixing: jax.Array
    chosen: StaticArray = static_field(default=StaticArray(np.zeros(0, bool)))
    by_rows: bool = static_field(default=False)

    def materialize(self) -> jax.Array:
        """The chosen lines, and the others as their mixtures."""
        if self._full:
            return self.lines
        if self.by_rows:
            return jnp.concatenate([self.lines, self.mixing @ self.lines], axis=-2)[
                ..., self._places, :
            ]
        return jnp.concatenate([self.lines, self.lines @ self.mixing], axis=-1)[..., self._places]

    def multiply(self, x: jax.Array) -> jax.Array:
        """Two products of rank r."""
        if self._full:
            return x @ self.lines
        if self.by_rows:
            return (x[..., self._lines] + x[..., self._others] @ self.mixing) @ self.lines
        kept = x @ self.lines
        return jnp.concatenate([kept, kept @ self.mixing], axis=-1)[..., self._places]

    def take(self, rows: jax.Array) -> jax.Array:
        """Rows of the chosen columns, and their mixtures."""
        if self.by_rows and not self._full:
            return self.matrix()[rows]
        return self._multiply_rows(self.lines[rows])

    def _multiply_rows(self, kept: jax.Array) -> jax.Array:
        return (
            kept
            if self._full
            else jnp.concatenate([kept, kept @ self.mixing], axis=-1)[..., self._places]
        )

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The leading dimensions of what is stored."""
        return self.lines.shape[:-2]

    def check_sizes(self) -> None:
        """Refuse lines and mixtures of another matrix."""
        lines, mixing, chosen = self.lines.shape, self.mixing.shape, self.chosen.array
        expect("lines", lines, len(lines) > 1, "(..., m, r) or (..., r, n)")
        expect("chosen", chosen.dtype, chosen.dtype == bool and chosen.ndim == 1, "bits")
        m, n = lines[-2:] if self.dims is None else self.matrix_shape
        if self._full:
            expect("lines", lines, lines[-2:] == (m, n), f"(..., {m}, {n})")
            return
        expect("dims", self.dims, self.dims is not None, "the matrix's sizes")
        rank, size = int(chosen.sum()), m if self.by_rows else n
        expect("chosen", len(chosen), len(chosen) == size, f"a bit for each of {size} lines")
        shapes = ((rank, n), (m - rank, rank)) if self.by_rows else ((m, rank), (rank, n - rank))
        expect("lines", lines, lines[-2:] == shapes[0], f"(..., {', '.join(map(str, shapes[0]))})")
        expect("mixing", mixing, mixing[-2:] == shapes[1], f"(..., {str(shapes[1])[1:]}")

    def summary(self) -> str:
        """The form's sizes."""
        return f"rank {self.rank}"

    def child_metrics(self, metric: np.ndarray | None) -> dict[str, np.ndarray | None]:
        """Columns are fitted in the inputs' metric."""
        return {} if self.by_rows else {"lines": metric}

    @property
    def rank(self) -> int:
        """The number of chosen lines."""
        return self.lines.shape[-2 if self.by_rows else -1]

    @property
    def _full(self) -> bool:
        return self.chosen.array.size == 0

    @property
    def _lines(self) -> np.ndarray:
        return np.flatnonzero(self.chosen.array)

    @property
    def _others(self) -> np.ndarray:
        return np.flatnonzero(~self.chosen.array)

    @property
    def _places(self) -> np.ndarray:
        return np.argsort(np.concatenate([self._lines, self._others]))

    @classmethod
    @checked(matrix=matrix_kind, rank=whole())
    def fit(
        cls, matrix: np.ndarray, rank: int, *, metric: np.ndarray | None = None
    ) -> FactoredArray:
        """The product of rank `rank` with the least squared error, in float64 on the host.

        Args:
            matrix: (..., m, n); a stack shares one choice of lines.
            rank: between 1 and min(m, n).
            metric: (..., m, m) second moments of the inputs, or (m,) their diagonal; the error is
                then that of the outputs.

        Raises:
            NoSharedLines: where the matrices of a stack use different lines.
        """
        target = np.asarray(matrix, np.float64)
        *leading, m, n = target.shape
        if rank > min(m, n):
            raise ValueError(f"FactoredArray.fit: rank={rank} is beyond the full rank {min(m, n)}")
        check_shape("FactoredArray.fit", metric, target)
        by_rows = m < n

        def stored(value: np.ndarray) -> jax.Array:
            shape = (*leading, *value.shape[-2:])
            return to_device(value.reshape(shape), matrix.dtype)

        if rank == min(m, n):
            empty = np.zeros((*leading, 0, m) if by_rows else (*leading, n, 0))
            return cls(stored(target), stored(empty), by_rows=by_rows, dims=(m, n))
        target = target.reshape(-1, m, n)
        right = principal_outputs(target, metric, rank)  # (stack, n, r), orthonormal columns
        if by_rows:
            # in the unit of its input's power, since a row's rounding is that of its largest line
            unit = row_units(metric, len(target), m)
            scaled = target * unit @ right
            left = without_dead(scaled, scaled)
            chosen, mixing, block = dominant_lines(left)
            lines = block @ (left.mT @ scaled) @ right.mT / unit[:, chosen]
            mixing = mixing.mT * unit[:, chosen].mT / unit[:, ~chosen]
        else:
            right = without_dead(right, target @ right)
            chosen, mixing, block = dominant_lines(right)
            lines = target @ right @ block.mT
        return cls(
            stored(lines), stored(mixing), chosen=StaticArray(chosen), by_rows=by_rows, dims=(m, n)
        )

    def refit(self, matrix: np.ndarray, metric: np.ndarray | None = None) -> FactoredArray:
        """The nearest product of this rank, axes and dtype to another (..., m, n) matrix."""
        array = dataclasses.replace(
            self.fit(matrix, self.rank, metric=metric), matrix_axes=self.matrix_axes, dims=self.dims
        )
        return jax.tree.map(lambda child: child.astype(self.dtype), array)

    @staticmethod
    def numbers(m: int, n: int, rank: int) -> float:
        """What rank `rank` costs to store."""
        return rank * (m + n - rank) + (min(m, n) / 32 if rank < min(m, n) else 0)


def principal_outputs(target: np.ndarray, metric: np.ndarray | None, rank: int) -> np.ndarray:
    """The r output directions (stack, n, r) of most energy: the best rank r projects on them."""
    stack, m, n = target.shape
    weighted = target
    if metric is not None and metric.ndim == 1:
        weighted = np.sqrt(settled(np.asarray(metric, np.float64)))[:, None] * target
    elif metric is not None:
        values, vectors = np.linalg.eigh(np.asarray(metric, np.float64))
        root = np.sqrt(settled(values))[..., :, None] * vectors.mT
        weighted = np.broadcast_to(root, (stack, m, m)) @ target
    if n <= m:
        first = max(0, n - rank)
        return np.stack(
            [
                scipy.linalg.eigh(w.T @ w, subset_by_index=[first, n - 1])[1][:, ::-1]
                for w in weighted
            ]
        )
    left = np.stack(
        [
            scipy.linalg.eigh(w @ w.T, subset_by_index=[m - rank, m - 1])[1][:, ::-1]
            for w in weighted
        ]
    )
    return np.linalg.qr(weighted.mT @ left)[0]


def settled(power: Float[np.ndarray, "*stack m"]) -> Float[np.ndarray, "*stack m"]:
    """Powers with a trace of the plain metric, which settles what the data do not see.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.factored import settled
        >>> settled(np.array([4.0, 0.0])).tolist(), settled(np.zeros(2)).tolist()
        ([4.0, 4e-10], [1.0, 1.0])
    """
    largest = power.max(-1, keepdims=True)
    return np.where(largest > 0, np.maximum(power, 1e-10 * largest), 1.0)


def row_units(metric: np.ndarray | None, stack: int, m: int) -> Float[np.ndarray, "stack m 1"]:
    """The root of each input's power, rounded to a power of two."""
    if metric is None:
        return np.ones((stack, m, 1))
    power = metric if metric.ndim == 1 else np.einsum("...ii->...i", metric)
    units = np.exp2(np.round(np.log2(settled(np.asarray(power, np.float64))) / 2))
    return np.broadcast_to(units, (stack, m))[..., None]


class NoSharedLines(ValueError):
    """No lines that the matrices of a stack share span all of them."""


def without_dead(
    basis: Float[np.ndarray, "stack n r"], results: Float[np.ndarray, "stack _ r"]
) -> Float[np.ndarray, "stack n r"]:
    """Orthonormal directions, those without a result replaced by generic ones.

    The matrices of a stack share one choice of lines: a direction that does not matter, as all of
    those of a matrix of zeros, shall not forbid a line that another matrix needs.
    """
    size = np.linalg.norm(results, axis=1)
    dead = size <= 1e-12 * size.max(-1, keepdims=True)
    noise = np.random.default_rng(0).normal(size=basis.shape)
    return np.linalg.qr(np.where(dead[:, None], noise, basis))[0]


def dominant_lines(
    basis: np.ndarray, *, limit: float = 1.01, sweeps: int = 10_000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose r of n rows of a basis so that every other row is a small mixture of them.

    Args:
        basis: (stack, n, r), of full column rank; the whole stack shares one choice.
        limit: no mixing entry is larger (their geometric mean over a stack).
        sweeps: the most exchanges.

    Returns:
        The choice as n booleans, the mixing (stack, r, n-r) and the chosen rows (stack, r, r), in
        the order of n.

    Raises:
        NoSharedLines: where the choice leaves the rows of some basis dependent.
    """
    chosen = _dominant_choice(basis, limit, sweeps)
    block = basis[:, chosen]
    if np.linalg.cond(block).max() > MOST_CONDITION:
        raise NoSharedLines(
            f"no {block.shape[1]} lines that the {len(basis)} matrices of the stack share span all "
            "of them, since they use different ones: compact them one by one"
        )
    return chosen, np.linalg.solve(block.mT, basis[:, ~chosen].mT), block


def _dominant_choice(
    basis: Float[np.ndarray, "stack n r"], limit: float, sweeps: int
) -> Bool[np.ndarray, " n"]:
    """The chosen rows, found by exchanges."""
    stack, n, r = basis.shape
    if stack > 1:  # rows that are dependent in one matrix alone get a volume that can grow
        basis = basis + 1e-8 * np.random.default_rng(1).normal(size=basis.shape)
    order = scipy.linalg.qr(np.concatenate(list(basis.mT), axis=0), mode="r", pivoting=True)[-1]
    inside, outside = order[:r].copy(), order[r:].copy()
    coefficients = np.zeros(())
    for sweep in range(sweeps):
        if sweep % 64 == 0:  # computed anew, so that the rank-one updates gather no error
            coefficients = np.linalg.solve(
                basis[:, inside].mT, basis[:, outside].mT
            )  # (stack, r, n-r)
        with np.errstate(divide="ignore"):
            gain = np.log(np.abs(coefficients)).mean(axis=0)
        i, j = np.unravel_index(np.argmax(gain), gain.shape)
        if gain[i, j] <= np.log(limit):
            break
        # exchanging lines i and j multiplies the volume by |coefficient|: a rank-one update
        # (Sherman and Morrison)
        pivot = coefficients[:, i, j].copy()
        column = coefficients[:, :, j].copy()
        column[:, i] -= 1
        row = coefficients[:, i, :].copy()
        row[:, j] += 1
        coefficients = coefficients - column[:, :, None] * row[:, None, :] / pivot[:, None, None]
        inside[i], outside[j] = outside[j], inside[i]
    chosen = np.zeros(n, bool)
    chosen[inside] = True
    return chosen
