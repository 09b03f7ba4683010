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
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcompress.arrays.base import CompactArray, materialize
from jaxcompress.arrays.device import to_device
from jaxcompress.arrays.field_checks import check_indices, expect
from jaxcompress.arrays.k_means import lloyd, nearest_by_tree
from jaxcompress.arrays.projection import (
    Metric,
    check_shape,
    diagonal,
    per_matrix,
    shared_numbers,
)
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.static import StaticArray, static_field
from jaxcompress.checks import checked, seeds, whole
from jaxcompress.checks import matrix as matrix_kind

MOST = 2**16
"""The largest number of runs: an index then fits two bytes."""
STEPS = 15
"""Rounds of k-means."""
SAMPLE = 2**18
"""Places that k-means clusters: a sample suffices for few runs, since each has many members."""


@compact_array
class ClusteredArray(CompactArray):
    """A matrix whose rows are put together from shared runs.

    Attributes:
        runs: (..., K, b) shared runs of b numbers; where b does not divide n the last run of a row
            is cut short.
        index: (m, n / b rounded up) integers, the run at each place; shared by all matrices of a
            stack.
    """

    runs: Float[Array, "*stack k b"] | CompactArray
    index: StaticArray = static_field()

    def materialize(self) -> jax.Array:
        """The rows put together from their runs."""
        return self._gather(jnp.asarray(self.index.array, jnp.int32))

    def take(self, rows: jax.Array) -> jax.Array:
        """The runs of the rows alone."""
        return self._gather(jnp.asarray(self.index.array, jnp.int32)[rows])

    def _gather(self, index: jax.Array) -> jax.Array:
        """The rows of the runs with the indices (..., n / b)."""
        runs = materialize(self.runs)
        # k-means assigns existing runs only, so the bounds check of a gather is not needed
        gathered = runs.at[..., index, :].get(mode="promise_in_bounds")
        return gathered.reshape(*gathered.shape[:-2], -1)[..., : self.matrix_shape[1]]

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The leading dimensions of the stored runs."""
        return self.runs.shape[:-2]

    def check_sizes(self) -> None:
        """Refuse indices of runs that there are not, or of another matrix."""
        expect("dims", self.dims, self.dims is not None, "the matrix's sizes")
        expect("runs", self.runs.shape, len(self.runs.shape) > 1, "(..., K, b)")
        (m, n), (count, block) = self.matrix_shape, self.runs.shape[-2:]
        expect("runs", self.runs.shape, block > 0, "runs of at least one number")
        index = self.index.array
        expect("index", index.shape, index.shape == (m, -(-n // block)), (m, -(-n // block)))
        check_indices("index", index, count)

    def summary(self) -> str:
        """The form's sizes."""
        count, block = self.runs.shape[-2:]
        return f"{count} runs of {block}"

    @staticmethod
    def numbers(m: int, n: int, block: int, count: int) -> int:
        """The stored numbers of `count` runs of `block` numbers each, and of their indices."""
        return m * math.ceil(n / block) + count * block

    @classmethod
    @checked(matrix=matrix_kind, count=whole(), block=whole(), seed=seeds)
    def fit(
        cls,
        matrix: Float[np.ndarray, "*stack m n"],
        count: int,
        block: int,
        *,
        seed: int = 0,
        metric: Metric | None = None,
    ) -> ClusteredArray:
        """Cluster the runs of a matrix by k-means; each shared run is the mean of its cluster.

        Args:
            matrix: (..., m, n).
            count: K, the largest number of runs.
            block: b.
            seed: of the places that k-means starts from.
            metric: (..., m, m) second moments of the inputs, or (m,) their diagonal: rows are
                weighted by the power of their inputs, and the runs minimise the squared error of
                the outputs.
        """
        m, n = matrix.shape[-2:]
        check_shape("ClusteredArray.fit", metric, matrix)
        stack = np.asarray(matrix, np.float64).reshape(-1, m, n)
        metrics = per_matrix(metric, len(stack))
        power = _mean_power(metrics, m)
        places = _places(stack, block)
        index = cluster(places, np.repeat(power, len(places) // m), count, seed)
        count = int(index.max()) + 1
        # the position in the flat table of runs of every entry of the matrix
        entry = (index.reshape(m, -1, 1) * block + np.arange(block)).reshape(m, -1)[:, :n].ravel()
        runs = np.stack(
            [
                _fit_runs(target, metric, entry, count * block)
                for target, metric in zip(stack, metrics, strict=True)
            ]
        ).reshape(*matrix.shape[:-2], count, block)
        values = to_device(runs, jnp.result_type(matrix))
        return cls(values, StaticArray(index.reshape(m, -1)), dims=(m, n))


def _places(
    stack: Float[np.ndarray, "matrices m n"], block: int
) -> Float[np.ndarray, "places numbers"]:
    """The runs of a stack as points: those at one place of all matrices are one point.

    So the matrices of a stack share one clustering, and the indices are stored once.
    """
    matrices, m, n = stack.shape
    padded = np.pad(stack, ((0, 0), (0, 0), (0, -n % block)))
    runs = padded.reshape(matrices, m, -1, block)
    return np.moveaxis(runs, 0, 2).reshape(-1, matrices * block)


def _mean_power(metrics: Sequence[np.ndarray | None], m: int) -> Float[np.ndarray, " m"]:
    """The power of each input, averaged over a stack."""
    powers = [np.ones(m) if metric is None else diagonal(metric) for metric in metrics]
    power = np.mean(powers, axis=0)
    # a row of no power would leave its cluster without a mean
    return np.maximum(power, 1e-6 * power.max()) if power.any() else np.ones(m)


def _fit_runs(
    target: Float[np.ndarray, "m n"],
    metric: np.ndarray | None,
    entry: Int[np.ndarray, " entries"],
    size: int,
) -> Float[np.ndarray, " size"]:
    """The shared numbers of one matrix: weighted means, or the optimum in a full metric."""

    def collect(values: np.ndarray) -> np.ndarray:
        return np.bincount(entry, weights=values.ravel(), minlength=size)

    def expand(runs: np.ndarray) -> np.ndarray:
        return runs[entry].reshape(target.shape)

    return shared_numbers(expand, collect, target, metric, size)


def cluster(
    places: Float[np.ndarray, "p d"], weight: Float[np.ndarray, " p"], count: int, seed: int
) -> Int[np.ndarray, " p"]:
    """The cluster of each place, at most `count` and all in use: k-means on a sample of them."""
    rng = np.random.default_rng(seed)
    sample = rng.permutation(len(places))[: max(SAMPLE, 4 * count)]
    points, weights = places[sample], weight[sample]
    centres = np.unique(points[: 4 * count], axis=0)
    centres = centres[rng.permutation(len(centres))[:count]]
    if len(centres) < len(points):
        centres, _ = lloyd(points, weights, centres, rounds=STEPS)
    return np.unique(nearest_by_tree(places, centres), return_inverse=True)[1]
