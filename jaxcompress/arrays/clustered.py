"""Clustered weight sharing: similar runs of neighbours in the rows of a matrix become one run.

`W[i, b j : b (j + 1)] = runs[index[i, j]]`: hashed sharing in blocks of b, with the hash learned
instead of drawn, or a vocabulary of K features a block, one of which is looked up. Stored: K b
numbers, and m n / b indices, each of which counts as a whole number. The error falls as `K^(-2 /
b)`; that of a low rank falls with the spectrum alone, and a table of words has a flat one.
Looked-up rows gather their runs; a product costs the dense one, 2 m n operations a row, and a
gather of m n numbers a call.

Source: product quantization, Jégou et al. 2011 (doi:10.1109/TPAMI.2010.57), for word tables Shu and
Nakayama 2018 (arXiv:1711.01068), for weights Stock et al. 2020 (arXiv:1907.05686).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.k_means import lloyd, nearest_by_tree
from jaxcompress.arrays.projection import least_squares, per_matrix
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.static import StaticArray, static_field

MOST = 2**16
"""The most runs: an index is then two bytes."""
STEPS = 15
"""Of k-means."""
SAMPLE = 2**18
"""Places that k-means looks at, where the runs are few enough for it."""


@compact_array
class ClusteredArray(CompactArray):
    """A matrix whose rows are put together from shared runs.

    Attributes:
        runs: (..., K, b) shared runs of b numbers; where b does not divide n the last run of a row
            is cut short.
        index: (m, n / b rounded up) integers, which run stands where; one for all matrices of a
            stack.
    """

    runs: Any
    index: StaticArray = static_field()

    def materialize(self) -> jax.Array:
        """The rows put together from their runs."""
        return self._gather(jnp.asarray(self.index.array, jnp.int32))

    def take(self, rows: jax.Array) -> jax.Array:
        """The runs of the rows alone."""
        return self._gather(jnp.asarray(self.index.array, jnp.int32)[rows])

    def _gather(self, index: jax.Array) -> jax.Array:
        """The rows that the indices (..., n / b) stand for."""
        runs = self.runs.materialize() if is_compact(self.runs) else self.runs
        found = runs.at[..., index, :].get(mode="promise_in_bounds")  # a k-means has no others
        return found.reshape(*found.shape[:-2], -1)[..., : self.matrix_shape[1]]

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The leading dimensions of what is stored."""
        return self.runs.shape[:-2]

    def summary(self) -> str:
        """The form's sizes."""
        count, block = self.runs.shape[-2:]
        return f"{count} runs of {block}"

    @staticmethod
    def numbers(m: int, n: int, block: int, count: int) -> int:
        """What is stored for `count` runs of `block` numbers."""
        return m * math.ceil(n / block) + count * block

    @classmethod
    def fit(
        cls,
        matrix: np.ndarray,
        count: int,
        block: int,
        *,
        seed: int = 0,
        metric: np.ndarray | None = None,
    ) -> ClusteredArray:
        """Runs found by k-means, each the mean of what it stands for.

        Args:
            matrix: (..., m, n).
            count: K, the most runs.
            block: b.
            seed: which places k-means starts from.
            metric: (..., m, m) second moments of the inputs, or (m,) their diagonal: rows count as
                much as their inputs have power, and the runs are those with the least squared error
                of the outputs.
        """
        m, n = matrix.shape[-2:]
        stack = np.asarray(matrix, np.float64).reshape(-1, m, n)
        padded = np.pad(stack, ((0, 0), (0, 0), (0, -n % block)))
        inside = (np.arange(padded.shape[-1]) < n).reshape(-1, block)  # (places in a row, block)
        places = np.moveaxis(padded.reshape(len(stack), m, -1, block), 0, 2).reshape(
            -1, len(stack) * block
        )
        metrics = per_matrix(metric, len(stack))
        power = np.mean(
            [
                np.ones(m) if each is None else each if each.ndim == 1 else np.diag(each)
                for each in metrics
            ],
            axis=0,
        )
        power = np.maximum(power, 1e-6 * power.max(initial=1e-30))
        index = cluster(places, np.repeat(power, len(inside)), count, seed)
        count = int(index.max()) + 1
        entry = (
            (index.reshape(m, -1, 1) * block + np.arange(block)).reshape(m, -1)[:, :n].ravel()
        )  # which number an entry is

        def fit_one(target: np.ndarray, metric: np.ndarray | None) -> np.ndarray:
            def collect(values: np.ndarray) -> np.ndarray:
                return np.bincount(entry, weights=values.ravel(), minlength=count * block)

            weight = np.repeat(power, n).reshape(m, n)
            scale = collect(weight)
            runs = collect(weight * target) / np.where(scale > 0, scale, 1)
            if metric is None or metric.ndim == 1:
                return runs
            return least_squares(
                lambda runs: runs[entry].reshape(m, n), collect, target, metric, runs, scale
            )

        runs = np.stack([fit_one(*each) for each in zip(stack, metrics, strict=True)])
        runs = jnp.asarray(
            runs.reshape(*matrix.shape[:-2], count, block), jnp.asarray(matrix).dtype
        )
        return cls(runs, StaticArray(index.reshape(m, -1)), dims=(m, n))


def cluster(places: np.ndarray, weight: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The cluster of each place, at most `count` and all in use: k-means on a sample of them."""
    rng = np.random.default_rng(seed)
    sample = rng.permutation(len(places))[: max(SAMPLE, 4 * count)]
    points, weights = places[sample], weight[sample]
    centres = np.unique(points[: 4 * count], axis=0)
    centres = centres[rng.permutation(len(centres))[:count]]
    if len(centres) < len(points):
        centres, _ = lloyd(points, weights, centres, rounds=STEPS)
    return np.unique(nearest_by_tree(places, centres), return_inverse=True)[1]
