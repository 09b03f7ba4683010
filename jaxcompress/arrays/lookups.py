"""Look-ups: every column of the matrix has few entries, and which they are is stored with them.

`W[:, j] = sum_t values[t, j] e(index[t, j])`: for the codes of a vocabulary, where each output is a
mixture of a few features and not of all of them. Stored: s n values and s n indices, each of which
counts as a whole number. A product gathers: 2 s n operations a row.

Source: LCNN, Bagherinezhad et al. 2017 (arXiv:1611.06473); orthogonal matching pursuit, Pati et al.
1993, from inner products alone as in Rubinstein et al. 2008.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.projection import per_matrix, weigh
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.static import StaticArray, static_field


@compact_array
class LookupArray(CompactArray):
    """A matrix with s entries in every column.

    Attributes:
        values: (..., s, n) the entries.
        index: (s, n) integers, the rows they stand in; no row twice in a column; one for all
            matrices of a stack.
    """

    values: Any
    index: StaticArray = static_field()

    def materialize(self) -> jax.Array:
        """The entries at their rows, zero elsewhere."""
        rows, n = self.matrix_shape
        dense = jnp.zeros((*self.stack_shape, rows, n), self.values.dtype)
        return dense.at[..., self._index(), jnp.arange(n)].set(self.values, unique_indices=True)

    def multiply(self, x: jax.Array) -> jax.Array:
        """A sum of s gathered columns."""
        values = self.values.materialize() if is_compact(self.values) else self.values
        found = (x[..., rows] * values[..., t, None, :] for t, rows in enumerate(self._index()))
        return sum(found, jnp.zeros((), jnp.result_type(x, values)))

    def _index(self) -> jax.Array:
        return jnp.asarray(self.index.array, jnp.int32)

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The leading dimensions of what is stored."""
        return self.values.shape[:-2]

    def summary(self) -> str:
        """The form's sizes."""
        count = self.index.array.shape[0]
        return f"{count} {'entry' if count == 1 else 'entries'} a column"

    @classmethod
    def fit(
        cls, matrix: np.ndarray, entries: int, *, metric: np.ndarray | None = None
    ) -> LookupArray:
        """The entries by orthogonal matching pursuit: add the best one, then solve for all anew.

        Args:
            matrix: (..., m, n).
            entries: s.
            metric: (..., m, m) second moments of the inputs, or (m,) their diagonal; for codes the
                inner products of the atoms.
        """
        m, n = matrix.shape[-2:]
        stack = np.asarray(matrix, np.float64).reshape(-1, m, n)
        metrics = per_matrix(None if metric is None else np.asarray(metric, np.float64), len(stack))
        grams = [
            np.eye(m) if each is None else np.diag(each) if each.ndim == 1 else each
            for each in metrics
        ]
        # what no input shows still has its size as a reason to be there
        grams = [gram + max(1e-9 * np.trace(gram) / m, 1e-30) * np.eye(m) for gram in grams]
        wanted = [weigh(*each) for each in zip(grams, stack, strict=True)]
        left, columns = [each.copy() for each in wanted], np.arange(n)
        index = np.zeros((0, n), int)
        values: list[np.ndarray] = []
        for _ in range(entries):
            gains = sum(
                each**2 / np.diag(gram)[:, None] for gram, each in zip(grams, left, strict=True)
            )
            np.put_along_axis(gains := np.asarray(gains), index, -1.0, axis=0)
            index = np.concatenate([index, gains.argmax(0)[None]])
            values = []
            for place, (gram, each) in enumerate(zip(grams, wanted, strict=True)):
                among = gram[index.T[:, :, None], index.T[:, None, :]]  # (n, s, s)
                values.append(np.linalg.solve(among, each[index, columns].T[..., None])[..., 0].T)
                sparse = np.zeros((m, n))
                sparse[index, columns] = values[-1]
                left[place] = each - gram @ sparse
        found = np.stack(values).reshape(*matrix.shape[:-2], entries, n)
        return cls(jnp.asarray(found, jnp.asarray(matrix).dtype), StaticArray(index), dims=(m, n))
