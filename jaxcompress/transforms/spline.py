"""Splines: a weight is read as one function of one variable, sampled at fewer knots.

Each row of the matrix keeps the same count of knots; between them the basis interpolates.
`jc.as_function` shows a kernel this way.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.spline import BASES, SplineArray
from jaxcompress.checks import checked, choice
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
from jaxcompress.transforms.weights import whole_units


@dataclasses.dataclass(frozen=True, repr=False)
class Spline(LeafTransform):
    """See `spline`."""

    keep: PerPattern[float] | Budget
    basis: str = "step"
    matrix_axes: PerPattern[MatrixAxes | None] = None

    uses_moments = False  # the optimum is the same in every metric

    def unit(self, m: int, n: int) -> int:
        """One knot for every row."""
        return m

    def fit(
        self, matrix: Float[np.ndarray, "*lead m n"], numbers: int, metric: InputMetric, name: str
    ) -> SplineArray:
        """The same number of knots for every row."""
        m, n = matrix.shape[-2:]
        knots = whole_units(numbers, m, "one knot in each input's period")
        return SplineArray.fit(matrix, min(knots, n), basis=self.basis)


@checked(basis=choice(*BASES))
def spline(keep: Keep, *, basis: str = "step", matrix_axes: Roles = None) -> LeafTransform:
    """Read each weight as one function of one variable and sample it more coarsely.

    The row of each input is one period, which keeps `keep * n` knots, so that neighbouring outputs
    share them. Exchange the roles in `matrix_axes` to coarsen along the inputs.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], a mapping from patterns to fractions,
            or `jc.budget(total)`.
        basis: "step", "linear" (hats) or "cubic" (B-splines): how values between knots follow.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out)
            for two by default.

    Returns:
        A transform to trees with `SplineArray` nodes; see `jc.as_function` for the idea.

    Raises:
        ValueError: for a keep outside (0, 1] or an unknown basis.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.spline(keep=1/4)(jnp.ones((16, 8)))
        SplineArray((16, 8) float32, 2 step knots a period, 32 stored = 1/4)
    """
    return Spline(check_keep(keep), basis, check_matrix_axes(matrix_axes))
