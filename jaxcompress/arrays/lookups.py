"""Look-ups: every column of the matrix has few entries, and whose rows are stored with them.

`W[:, j] = sum_t values[t, j] e(index[t, j])`: for the codes of a vocabulary, where each output is a
mixture of a few features and not of all of them. Stored: s n values and s n indices, each of which
counts as a whole number. A product gathers: 2 s n operations a row.

Source: LCNN, Bagherinezhad et al. 2017 (arXiv:1611.06473); orthogonal matching pursuit, Pati et al.
1993, from inner products alone as in Rubinstein et al. 2008.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcompress.arrays.base import CompactArray, materialize
from jaxcompress.arrays.device import to_device
from jaxcompress.arrays.field_checks import check_indices, expect
from jaxcompress.arrays.projection import Metric, check_shape, per_matrix, weigh
from jaxcompress.arrays.rank import with_rank
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.static import StaticArray, static_field
from jaxcompress.checks import checked, whole, whole_number
from jaxcompress.checks import matrix as matrix_kind


@compact_array
class LookupArray(CompactArray):
    """A matrix with s entries in every column.

    Attributes:
        values: (..., s, n) the entries.
        index: (s, n) integers, the rows of the entries, no row twice in a column; shared by all
            matrices of a stack.
    """

    values: Float[Array, "*stack s n"] | CompactArray
    index: StaticArray = static_field()

    def materialize(self) -> jax.Array:
        """The entries at their rows, zero elsewhere."""
        rows, n = self.matrix_shape
        dense = jnp.zeros((*self.stack_shape, rows, n), self.values.dtype)
        return dense.at[..., self._index(), jnp.arange(n)].set(
            materialize(self.values), unique_indices=True
        )

    def multiply(self, x: jax.Array) -> jax.Array:
        """A sum of s gathered columns."""
        values = materialize(self.values)
        rank = max(x.ndim, values.ndim)
        x, values = with_rank(x, rank), with_rank(values, rank)
        terms = (x[..., rows] * values[..., t, None, :] for t, rows in enumerate(self._index()))
        return sum(terms, jnp.zeros((), jnp.result_type(x, values)))

    def _index(self) -> jax.Array:
        return jnp.asarray(self.index.array, jnp.int32)

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The leading dimensions of the values."""
        return self.values.shape[:-2]

    def check_sizes(self) -> None:
        """Refuse rows that there are not, or twice in a column."""
        expect("dims", self.dims, self.dims is not None, "the matrix's sizes")
        m, n = self.matrix_shape
        index, shape = self.index.array, self.values.shape
        expect("values", shape, len(shape) > 1 and shape[-1] == n, f"(..., s, {n})")
        expect("index", index.shape, index.shape == shape[-2:], shape[-2:])
        check_indices("index", index, m)
        repeated = (np.diff(np.sort(index, axis=0), axis=0) == 0).any()
        expect("index", "a column with a row twice", not repeated, "different rows")

    def summary(self) -> str:
        """The form's sizes."""
        count = self.index.array.shape[0]
        return f"{count} {'entry' if count == 1 else 'entries'} a column"

    @classmethod
    @checked(matrix=matrix_kind, entries=whole())
    def fit(
        cls,
        matrix: Float[np.ndarray, "*stack m n"],
        entries: int,
        *,
        metric: Metric | None = None,
    ) -> LookupArray:
        """The entries by orthogonal matching pursuit: add the best one, then solve for all anew.

        Args:
            matrix: (..., m, n).
            entries: s.
            metric: (..., m, m) second moments of the inputs, or (m,) their diagonal; for codes the
                inner products of the atoms.
        """
        m, n = matrix.shape[-2:]
        entries = whole_number("LookupArray.fit: entries", entries, 1, m)
        check_shape("LookupArray.fit", metric, matrix)
        stack = np.asarray(matrix, np.float64).reshape(-1, m, n)
        metrics = per_matrix(None if metric is None else np.asarray(metric, np.float64), len(stack))
        grams = [_gram(metric, m) for metric in metrics]
        wanted = [weigh(gram, target) for gram, target in zip(grams, stack, strict=True)]
        residuals = [target.copy() for target in wanted]
        index = np.zeros((0, n), int)
        values: list[np.ndarray] = []
        for _ in range(entries):
            gains = np.zeros((m, n))
            for gram, residual in zip(grams, residuals, strict=True):
                gains += residual**2 / np.diag(gram)[:, None]
            np.put_along_axis(gains, index, -1.0, axis=0)  # no row is chosen twice
            index = np.concatenate([index, gains.argmax(0)[None]])
            values = [_solve(gram, t, index) for gram, t in zip(grams, wanted, strict=True)]
            residuals = [
                target - gram @ scatter(chosen, index, m)
                for gram, target, chosen in zip(grams, wanted, values, strict=True)
            ]
        stacked = np.stack(values).reshape(*matrix.shape[:-2], entries, n)
        return cls(to_device(stacked, jnp.result_type(matrix)), StaticArray(index), dims=(m, n))


def _gram(metric: np.ndarray | None, m: int) -> Float[np.ndarray, "m m"]:
    """A metric as a regular matrix."""
    gram = np.eye(m) if metric is None else metric
    gram = np.diag(gram) if gram.ndim == 1 else gram
    # a trace of the plain metric chooses by size among rows that no input tells apart
    power = np.trace(gram) / m
    return gram + (1e-9 * power if power > 0 else 1.0) * np.eye(m)


def _solve(
    gram: Float[np.ndarray, "m m"], target: Float[np.ndarray, "m n"], index: Int[np.ndarray, "s n"]
) -> Float[np.ndarray, "s n"]:
    """The optimal entries of every column at the chosen rows."""
    among = gram[index.T[:, :, None], index.T[:, None, :]]  # (n, s, s)
    right = target[index, np.arange(index.shape[1])].T[..., None]
    return np.linalg.solve(among, right)[..., 0].T


def scatter(
    values: Float[np.ndarray, "*stack s n"], index: Int[np.ndarray, "s n"], m: int
) -> Float[np.ndarray, "*stack m n"]:
    """The matrix with the entries at their rows, on the host."""
    dense = np.zeros((*values.shape[:-2], m, values.shape[-1]))
    dense[..., index, np.arange(values.shape[-1])] = values
    return dense
