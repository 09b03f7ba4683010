"""Hashing: each entry of a weight is plus or minus one of a few shared numbers, chosen by a hash.

The numbers are fitted by least squares, in the metric of the inputs when moments are given; what
`HashedArray` stores and costs is in its own file.

Source: Chen et al. 2015 (arXiv:1504.04788).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.hashed import HashedArray
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.permutation import leaf_seed
from jaxcompress.checks import checked, choice, seeds, whole
from jaxcompress.transforms.base import InputMetric
from jaxcompress.transforms.budget import Budget
from jaxcompress.transforms.leafwise import LeafTransform
from jaxcompress.transforms.options import (
    Keep,
    PerPattern,
    Roles,
    check_keep,
    check_matrix_axes,
)
from jaxcompress.transforms.weights import Unreachable


@dataclasses.dataclass(frozen=True, repr=False)
class Hashed(LeafTransform):
    """See `hashed`."""

    keep: PerPattern[float] | Budget
    seed: int = 0
    block: int = 1
    layout: str = "random"
    seed_by: str = "path"
    matrix_axes: PerPattern[MatrixAxes | None] = None

    def unit(self, m: int, n: int) -> int:
        """One block."""
        return min(self.block, n)

    def fit(
        self, matrix: Float[np.ndarray, "*lead m n"], numbers: int, metric: InputMetric, name: str
    ) -> HashedArray:
        """A table of whole blocks, or as many numbers as the matrix has."""
        m, n = matrix.shape[-2:]
        if self.block > numbers:
            raise Unreachable(
                self.block,
                f"block={self.block} is longer than the table of {numbers} numbers: use a smaller "
                "block or keep more",
            )
        block = min(self.block, n)  # a row is the longest block there is
        # at the full count every entry has a number of its own, and the fit is exact
        size = numbers if numbers == m * n else numbers - numbers % block
        seed = leaf_seed(self.seed, name if self.seed_by == "path" else f"{m}x{n}")
        return HashedArray.fit(
            matrix, size, seed=seed, block=block, layout=self.layout, metric=metric
        )


@checked(
    seed=seeds,
    block=whole(),
    layout=choice("random", "circular"),
    seed_by=choice("path", "shape"),
)
def hashed(
    keep: Keep,
    *,
    seed: int = 0,
    block: int = 1,
    layout: str = "random",
    seed_by: str = "path",
    matrix_axes: Roles = None,
) -> LeafTransform:
    """Share weights by a hash: each entry is plus or minus one of `keep * m * n` numbers.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], a mapping from patterns to fractions,
            or `jc.budget(total)`.
        seed: of the hash; every leaf mixes in its own path.
        block: how many neighbours along the outputs are shared as one run; faster, and coarser.
        layout: "random", or "circular", where every row is the table read from a shifted position,
            wrapped around: m + n hashes are computed, and a product is a correlation by Fourier
            transform where that is cheaper.
        seed_by: "path" for a hash per leaf, "shape" for one hash for all leaves of equal shape, so
            that they can be stacked.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out)
            for two by default.

    Returns:
        A transform to trees with `HashedArray` nodes (Chen et al. 2015, arXiv:1504.04788).

    Raises:
        ValueError: for a keep outside (0, 1], a block below 1, an unknown layout or seed_by.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.hashed(keep=1/8)(jnp.ones((16, 16)))
        HashedArray((16, 16) float32, 32 stored = 1/8)
    """
    if layout == "circular" and block > 1:
        raise ValueError(
            f"block={block} is for the random layout: in the circular one neighbours in the table "
            "are shared already"
        )
    return Hashed(check_keep(keep), seed, block, layout, seed_by, check_matrix_axes(matrix_axes))
