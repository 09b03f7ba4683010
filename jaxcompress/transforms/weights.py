"""A leaf as the plain matrix that a form is fitted to, with the metric of its inputs.

The layout of a weight (a dense kernel, attention heads, a convolution) is read through its
`MatrixAxes`; what cannot be read is refused by the leaf's name.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, PyTree

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.layout import MATRIX, MatrixAxes
from jaxcompress.arrays.projection import weigh
from jaxcompress.checks import array
from jaxcompress.transforms.base import InputMetric

log = logging.getLogger(__name__)


class Unreachable(ValueError):
    """A form cannot be stored in the requested count of numbers.

    Attributes:
        least: the least count of numbers that the form reaches.
    """

    def __init__(self, least: float, why: str):
        super().__init__(why)
        self.least = least

    def of_matrix(self, where: str, m: int, n: int) -> Unreachable:
        """The same error with the leaf's name and the least keep of an m x n matrix."""
        # rounded up, so that the keep in the message is enough
        least = math.ceil(self.least / (m * n) * 1e6) / 1e6
        way_out = (
            f"the least keep this form reaches on {m} x {n} is {least:g}"
            if least <= 1
            else f"it cannot make {m} x {n} smaller"
        )
        return Unreachable(self.least, f"{where}: {self}; {way_out}")


class Sweep:
    """Leaves that a sweep selects, and no one named: one that a form cannot reach stays dense.

    It is named in the log. Where nothing could be compacted at all, that is an error.
    """

    def __init__(self) -> None:
        self.unreachable: list[Unreachable] = []
        self.any_compacted = False

    @contextlib.contextmanager
    def leaf(self, *, by_name: bool) -> Iterator[None]:
        """Compact one leaf; what is raised within for one that is picked by name is raised."""
        try:
            yield
        except Unreachable as error:
            if by_name:
                raise
            self.unreachable.append(error)

    def compacted(self, leaf: PyTree) -> PyTree:
        """Note that a leaf has its form."""
        self.any_compacted = True
        return leaf

    def finish(self) -> None:
        """Name what stays dense in the log; refuse a sweep that left all leaves dense."""
        if self.unreachable and not self.any_compacted:
            raise self.unreachable[0]
        for error in self.unreachable:
            log.warning("%s; it stays dense", error)


def why_not(leaf: PyTree, axes: MatrixAxes | None) -> str | None:
    """The reason why a leaf cannot be compacted, as text for messages; None when it can be."""
    if is_compact(leaf):
        return None
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "ndim"):
        return f"it is a {type(leaf).__name__}, not an array"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return (
            f"it has the dtype {leaf.dtype}, and only float weights are compacted: exclude it from "
            "the pattern"
        )
    if axes is None and leaf.ndim != 2:
        return (
            f"it has {leaf.ndim} dimensions {leaf.shape} of unknown roles: pass "
            "matrix_axes=jc.MatrixAxes(inputs, outputs)"
        )
    return "it has no entries" if leaf.size == 0 else None


def read_matrix(
    where: str, leaf: PyTree, metric: ArrayLike | None, axes: MatrixAxes | None
) -> tuple[Float[np.ndarray, "*lead m n"], InputMetric, MatrixAxes]:
    """One weight as plain matrices, the metric of its inputs, and its axes.

    Args:
        where: the leaf's name, for messages.
        leaf: an array or a compact array.
        metric: second moments of its inputs, or None.
        axes: its roles; by default those of the compact array, or (in, out).

    Raises:
        ValueError: for axes or moments that do not fit, NaN or infinity.
    """
    roles: MatrixAxes = axes or (leaf.matrix_axes if is_compact(leaf) else MATRIX)
    dense = leaf.materialize() if is_compact(leaf) else leaf
    try:
        axes = roles.resolve(dense.ndim)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    values = np.asarray(dense)
    if not np.isfinite(values.astype(np.float32)).all():
        raise ValueError(
            f"{where} contains NaN or infinity: repair or retrain it before compressing"
        )
    # fits on the host are in float32 or float64: numpy has no bfloat16 arithmetic
    narrow = jnp.result_type(dense).itemsize < 4
    matrix = axes.to_matrix(values.astype(np.float32) if narrow else values)
    return matrix, check_metric(where, metric, matrix), axes


def squared(error: Float[ArrayLike, "*lead m n"], metric: InputMetric) -> float:
    """The squared norm of a weight's error in the metric of its inputs, summed over a stack."""
    error = np.asarray(error, np.float64)
    return float(np.sum(error * (error if metric is None else weigh(metric, error))))


def check_metric(
    where: str, metric: ArrayLike | None, matrix: Float[np.ndarray, "*lead m n"]
) -> InputMetric:
    """Second moments that fit a matrix, as float64."""
    if metric is None:
        return None
    m = matrix.shape[-2]
    values = array(f"{where}: its moments", metric, finite=False).astype(np.float64)
    diagonal = values.shape == (m,)
    full = values.shape[-2:] == (m, m) and values.shape[:-2] in ((), matrix.shape[:-2])
    if not diagonal and not full:
        raise ValueError(
            f"{where}: its moments have shape {values.shape}, expected {(m, m)}: "
            f"jc.second_moments of the layer's inputs, or how often each of {m} rows is looked up; "
            "a transform that changes the width has to return moments of the new width"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"{where}: its moments contain NaN or infinity: compute them from finite inputs"
        )
    if why := _why_no_moments(values):
        raise ValueError(
            f"{where}: its moments {why}, which second moments never are: give the mean of x x', "
            "as jc.second_moments does"
        )
    return values


ROUNDING = 1e-5
"""Of moments gathered in float32, as a share of their trace."""


def _why_no_moments(values: Float[np.ndarray, "*lead m m"] | Float[np.ndarray, " m"]) -> str | None:
    """Why finite values are no second moments, or None where they can be."""
    if values.ndim == 1:
        return "are negative somewhere" if (values < 0).any() else None
    trace = np.trace(values, axis1=-2, axis2=-1)[..., None, None]
    bound = ROUNDING * np.abs(trace)
    if (np.abs(values - np.swapaxes(values, -1, -2)) > bound).any():
        return "are not symmetric"
    if (np.diagonal(values, axis1=-2, axis2=-1) < -bound[..., 0]).any():
        return "have a negative diagonal"
    shift = (bound + np.finfo(np.float64).tiny) * np.eye(values.shape[-1])
    try:
        np.linalg.cholesky(values + shift)
    except np.linalg.LinAlgError:
        return "have a negative eigenvalue"
    return None


def whole_units(numbers: int, unit: int, what: str) -> int:
    """How many units of what a form consists of fit into a count of numbers.

    Raises:
        Unreachable: where not even one does.
    """
    if numbers < unit:
        raise Unreachable(unit, f"{what} takes {unit} numbers, and keep allows {numbers}")
    return numbers // unit
