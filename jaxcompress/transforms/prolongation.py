"""Prolongation between two resolutions of an axis, and its dual, which restricts.

With P (coarse, fine) the values of a basis at fine cells given those at coarse cells, and w a
weight for each fine cell, `D = (P w P')^-1 P w` is a dual: `P D' = 1`, so that restriction undoes
prolongation, and `D h` are the coarse values whose prolongation is nearest to h. Costs O(r^2 d)
for r coarse and d fine cells.

Source: multigrid, Briggs, Henson and McCormick 2000.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.spline import spline_matrix
from jaxcompress.transforms.selection import predict_from


def prolongation(coarse: int, fine: int, basis: str = "step") -> Float[np.ndarray, "coarse fine"]:
    """The values of a basis at the middles of fine cells, given those at the coarse middles.

    Example:
        >>> from jaxcompress.transforms.prolongation import prolongation
        >>> prolongation(2, 3).tolist()
        [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    matrix = spline_matrix(coarse, fine, basis)
    if basis != "cubic":
        return matrix
    # the coefficients of a cubic spline are not its values
    return np.linalg.solve(spline_matrix(coarse, coarse, basis), matrix)


def dual(
    matrix: Float[np.ndarray, "coarse fine"], weights: Float[np.ndarray, " fine"] | float = 1.0
) -> Float[np.ndarray, "coarse fine"]:
    """The matrix D with `P D' = 1` that finds the coarse values nearest to weighted fine ones."""
    weighted = matrix * weights
    return np.linalg.solve(weighted @ matrix.T, weighted)


def predict_fine(
    moments: Float[np.ndarray, "fine fine"],
    average: Float[np.ndarray, "fine coarse"],
    repeat: Float[np.ndarray, "coarse fine"],
    count: float,
) -> Float[np.ndarray, "coarse fine"]:
    """The prediction of fine values from averages, by ridge least squares shrunk to repetition.

    Args:
        moments: second moments of the fine values.
        average: maps fine values to coarse ones.
        repeat: the prolongation.
        count: the number of vectors that the moments were measured on.
    """
    inner, cross = average.T @ moments @ average, average.T @ moments
    return predict_from(inner, cross, np.diag(moments), repeat, count)
