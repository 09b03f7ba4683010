"""Toeplitz matrices: weights shared by translation, so that a dense layer is a convolution.

The window of weights is the least-squares optimum: each weight is the mean of the entries that
share it, in the metric of the inputs when moments are given. The stored count follows from the
window, not from a keep.

Source: LeCun et al. 1989 (doi:10.1162/neco.1989.1.4.541).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.atoms import check_grid
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.toeplitz import ToeplitzArray, positions
from jaxcompress.checks import whole_numbers
from jaxcompress.transforms.base import InputMetric
from jaxcompress.transforms.budget import Budget
from jaxcompress.transforms.leafwise import LeafTransform
from jaxcompress.transforms.options import PerPattern, Roles, check_matrix_axes


@dataclasses.dataclass(frozen=True, repr=False)
class Toeplitz(LeafTransform):
    """See `toeplitz`."""

    window: tuple[int, ...]
    grid: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    keep: PerPattern[float] | Budget = 1.0
    matrix_axes: PerPattern[MatrixAxes | None] = None

    def fit(
        self, matrix: Float[np.ndarray, "*lead m n"], numbers: int, metric: InputMetric, name: str
    ) -> ToeplitzArray | None:
        """One window for every channel; None where they store more numbers than the matrix."""
        m, n = matrix.shape[-2:]
        check_grid(self.grid, m, "the matrix has")
        array = ToeplitzArray.fit(
            matrix, self.grid, self.window, stride=self.stride, pad=self.pad, metric=metric
        )
        return array if math.prod(array.taps.shape[-2:]) <= m * n else None


def toeplitz(
    window: int | Sequence[int],
    *,
    grid: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    pad: int | Sequence[int] = 0,
    matrix_axes: Roles = None,
) -> LeafTransform:
    """Share weights by translation: the outputs of a channel are one window, moved over the grid.

    A dense layer on images, sequences or volumes becomes a convolution, stored as its window, and
    the model stays unchanged. The kernel's outputs are the positions of the window,
    row by row, with the channels interlaced at each: their count is that of the positions,
    (grid + 2 pad - window) // stride + 1 along each axis, times the channels.

    Args:
        window: its size along each axis; an axis that it covers, such as colours, has one position.
        grid: the sizes of the axes that the inputs lie on, such as (28, 28).
        stride: the step of the window, one number or one for each axis.
        pad: the zeros around the inputs, one number or one for each axis.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out)
            for two by default.

    Returns:
        A transform to trees with `ToeplitzArray` nodes (LeCun et al. 1989,
        doi:10.1162/neco.1989.1.4.541).

    Raises:
        ValueError: for sizes that do not fit each other; when applied, for outputs that are no
            multiple of the positions.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.toeplitz((9, 9), grid=(28, 28), stride=2)(jnp.ones((784, 1000)))
        ToeplitzArray((784, 1000) float32, 10 windows of 9x9 on 28x28, 810 stored = 1/968)
    """
    grid = whole_numbers("grid", grid, None)
    sizes = whole_numbers("window", window, None)
    if len(sizes) != len(grid):
        raise ValueError(
            f"window and grid must have one size for each axis, got {sizes} and {grid}"
        )
    strides = whole_numbers("stride", stride, len(grid))
    pads = whole_numbers("pad", pad, len(grid), least=0)
    if any(p >= w for p, w in zip(pads, sizes, strict=True)):
        raise ValueError(
            f"pad={pads} leaves positions where the window of {sizes} covers nothing but zeros"
        )
    positions(grid, sizes, strides, pads)  # raises where the window does not fit the grid
    return Toeplitz(sizes, grid, strides, pads, matrix_axes=check_matrix_axes(matrix_axes))
