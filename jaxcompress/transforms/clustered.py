"""Clustering: each run of neighbours along the outputs is one of a few shared runs (k-means).

The length and the count of the runs are those with the least predicted error under the count of
numbers: of a Gaussian source, K codewords of length b leave the share `K^(-2/b)` of the variance.

Source: product quantization (Jégou et al. 2011, doi:10.1109/TPAMI.2010.57).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.clustered import MOST, ClusteredArray
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.permutation import leaf_seed
from jaxcompress.checks import checked, seeds, whole
from jaxcompress.transforms.base import InputMetric
from jaxcompress.transforms.budget import Budget
from jaxcompress.transforms.leafwise import Curve, LeafTransform
from jaxcompress.transforms.options import (
    Keep,
    PerPattern,
    Roles,
    check_keep,
    check_matrix_axes,
)
from jaxcompress.transforms.weights import Unreachable, squared

SAMPLES = 60
"""Keeps at which the predicted error is computed for a budget."""


@dataclasses.dataclass(frozen=True, repr=False)
class Clustered(LeafTransform):
    """See `clustered`."""

    keep: PerPattern[float] | Budget
    block: int | None = None
    most: int = MOST
    seed: int = 0
    matrix_axes: PerPattern[MatrixAxes | None] = None

    def unit(self, m: int, n: int) -> int:
        """One index for every row."""
        return m

    def curve(
        self, matrix: Float[np.ndarray, "*lead m n"], metric: InputMetric, name: str
    ) -> Curve:
        """The predicted error, since k-means at every keep would take long."""
        m, n = matrix.shape[-2:]
        # below 1, where the weight stays dense and the error is zero
        keeps = np.geomspace(min(self.least(m, n) / (m * n), 1.0), 1.0, SAMPLES)[:-1]
        error_at: dict[float, float] = {}
        for keep in keeps:
            size = self.size(m, n, math.floor(keep * m * n * (1 + 1e-9)))
            stored = m * n if size is None else ClusteredArray.numbers(m, n, *size)
            if size is not None and stored < m * n:
                error_at[stored / (m * n)] = self.distortion(*size)
        errors = np.minimum.accumulate([*error_at.values(), 0.0])
        return np.array([*error_at, 1.0]), squared(matrix, metric) * errors

    def fit(
        self, matrix: Float[np.ndarray, "*lead m n"], numbers: int, metric: InputMetric, name: str
    ) -> ClusteredArray | None:
        """Runs of the best length within the count of numbers; None at the matrix's own count."""
        m, n = matrix.shape[-2:]
        if numbers == m * n:
            return None
        size = self.size(m, n, numbers)
        if size is None:
            least = self.least(m, n)
            raise Unreachable(
                least, f"one run with its indices takes {least} numbers, and keep allows {numbers}"
            )
        block, count = size
        seed = leaf_seed(self.seed, name)
        return ClusteredArray.fit(matrix, count, block, seed=seed, metric=metric)

    def blocks(self, n: int) -> Sequence[int]:
        """The lengths of a run to choose from."""
        return range(1, n + 1) if self.block is None else [min(self.block, n)]

    def least(self, m: int, n: int) -> float:
        """The least count of numbers: one run and its indices."""
        return min(ClusteredArray.numbers(m, n, block, 1) for block in self.blocks(n))

    def size(self, m: int, n: int, numbers: int) -> tuple[int, int] | None:
        """The length and the count of runs with the least predicted error within `numbers`."""
        sizes = []
        for block in self.blocks(n):
            count = (numbers - ClusteredArray.numbers(m, n, block, 0)) // block
            if count > 0:
                sizes.append((block, min(count, self.most, m * math.ceil(n / block))))
        # of equal errors the longest run, which has the fewest indices
        return min(sizes, key=lambda size: (self.distortion(*size), -size[0]), default=None)

    @staticmethod
    def distortion(block: int, count: int) -> float:
        """The predicted share of the variance that remains: that of a Gaussian at these bits."""
        return count ** (-2 / block)


@checked(block=whole(), most=whole(), seed=seeds)
def clustered(
    keep: Keep,
    *,
    block: int | None = None,
    most: int = MOST,
    seed: int = 0,
    matrix_axes: Roles = None,
) -> LeafTransform:
    """Share weights by k-means: each run of neighbours along the outputs is one of a few.

    For tables of words, whose rows are looked up and have no low rank, and for small files. A
    product costs what the dense one costs, after the runs are expanded; `jc.materialize` expands
    them once.

    Args:
        keep: the fraction of the numbers to store, every index counting as one, in (0, 1], a
            mapping from patterns to fractions, or `jc.budget(total)`.
        block: the length of a run; by default that with the least predicted error.
        most: the most shared runs; by default those that two bytes can index.
        seed: of k-means; every leaf mixes in its own path.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out)
            for two by default.

    Returns:
        A transform to trees with `ClusteredArray` nodes (Jégou et al. 2011,
        doi:10.1109/TPAMI.2010.57).

    Raises:
        ValueError: for a keep outside (0, 1], a block or a most below 1.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.clustered(keep=1/2)(jnp.arange(48.0).reshape(6, 8) % 8)
        ClusteredArray((6, 8) float32, 2 runs of 4, 20 stored = 1/2.4)
    """
    return Clustered(check_keep(keep), block, most, seed, check_matrix_axes(matrix_axes))
