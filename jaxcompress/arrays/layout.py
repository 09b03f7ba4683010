"""Which dimensions of a weight are a matrix's inputs and which its outputs.

Dense kernels (in, out), Equinox's (out, in), attention's (model, heads, size) and convolutions
(height, width, in, out) are all one plain matrix (m, n) read through a `MatrixAxes`; reading costs
a transpose and a reshape and stores nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

import einops
import jax
import numpy as np
from jaxtyping import Float

from jaxcompress.checks import is_whole, shown

ArrayT = TypeVar("ArrayT", np.ndarray, jax.Array)


LEAST = -(2**31)
"""Positions may be negative."""


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """The roles of a weight's dimensions; those in neither role are a stack and come first.

    Args:
        inputs: the position or positions that are contracted with the input.
        outputs: the position or positions that the product has.

    Positions are those of numpy. They are kept negative, counted from the end, so that stacking
    layers in front changes nothing.

    Example:
        >>> import jaxcompress as jc
        >>> jc.MatrixAxes(inputs=0, outputs=(1, 2)).resolve(ndim=3)
        MatrixAxes(inputs=(-3,), outputs=(-2, -1))
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs"):
            value = getattr(self, name)
            axes = (value,) if is_whole(value, LEAST) else value
            if not isinstance(axes, Sequence) or not all(is_whole(axis, LEAST) for axis in axes):
                raise ValueError(
                    f"MatrixAxes: {name} must be a position or several, such as (0, 1), got "
                    f"{shown(value)}"
                )
            if not axes:
                raise ValueError(f"MatrixAxes needs at least one dimension in {name}, got none")
            object.__setattr__(self, name, tuple(int(axis) for axis in axes))

    @property
    def ndim(self) -> int:
        """How many dimensions the matrix takes, without a stack."""
        return len(self.inputs) + len(self.outputs)

    def resolve(self, ndim: int) -> MatrixAxes:
        """These roles for an array of `ndim` dimensions, as negative positions.

        Raises:
            ValueError: when a position is out of range or named twice, or a stack dimension does
                not come first.
        """
        negative = [axis - ndim if axis >= 0 else axis for axis in self.inputs + self.outputs]
        if sorted(negative) != list(range(-self.ndim, 0)) or self.ndim > ndim:
            raise ValueError(
                f"{self} does not fit an array of {ndim} dimensions: inputs and outputs are "
                "together its last dimensions, each once, and a stack comes first "
                "(jnp.moveaxis helps)"
            )
        return MatrixAxes(tuple(negative[: len(self.inputs)]), tuple(negative[len(self.inputs) :]))

    def swapped(self) -> MatrixAxes:
        """Inputs as outputs and outputs as inputs."""
        return MatrixAxes(self.outputs, self.inputs)

    def reversed(self, ndim: int) -> MatrixAxes:
        """The same roles after all `ndim` dimensions are put in reverse order."""
        return MatrixAxes(
            tuple(-ndim - 1 - a for a in self.inputs), tuple(-ndim - 1 - a for a in self.outputs)
        )

    def matrix_shape(self, dims: tuple[int, ...]) -> tuple[int, int]:
        """(m, n) for the given sizes of the last dimensions."""
        return math.prod(dims[a] for a in self.inputs), math.prod(dims[a] for a in self.outputs)

    def to_matrix(self, array: ArrayT) -> ArrayT:
        """An array of this layout as plain matrices (..., m, n); numpy stays numpy."""
        if self == MATRIX:
            return array
        dense, plain = self._patterns()
        return einops.rearrange(array, f"{dense} -> {plain}")

    def from_matrix(self, matrix: ArrayT, dims: tuple[int, ...] | None) -> ArrayT:
        """Plain matrices (..., m, n) as arrays of this layout, with trailing sizes `dims`."""
        if self == MATRIX:
            return matrix
        assert dims is not None, "a layout other than (in, out) needs its sizes"
        dense, plain = self._patterns()
        return einops.rearrange(
            matrix, f"{plain} -> {dense}", **{f"d{i}": size for i, size in enumerate(dims)}
        )

    def _patterns(self) -> tuple[str, str]:
        """The dense layout and the plain matrix for einops: "... d0 d1 d2", "... (d0) (d1 d2)"."""
        names = [f"d{i}" for i in range(self.ndim)]
        rows, columns = (
            " ".join(names[axis] for axis in role) for role in (self.inputs, self.outputs)
        )
        return f"... {' '.join(names)}", f"... ({rows}) ({columns})"


MATRIX = MatrixAxes((-2,), (-1,))
"""The plain layout: (in, out)."""


def to_rows(
    kernel: Float[np.ndarray, "*dims"], inputs: tuple[int, ...]
) -> Float[np.ndarray, "inputs outputs"]:
    """A kernel as one matrix: its contracted dimensions in the given order, then all others.

    Unlike a `MatrixAxes`, `inputs` may name every dimension; the matrix then has one column.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.layout import to_rows
        >>> to_rows(np.zeros((2, 3, 5)), (2, 0)).shape
        (10, 3)
    """
    moved = np.moveaxis(kernel, inputs, range(len(inputs)))
    return moved.reshape(math.prod(moved.shape[: len(inputs)]), -1)


def from_rows(
    matrix: Float[np.ndarray, "inputs outputs"], inputs: tuple[int, ...], shape: tuple[int, ...]
) -> Float[np.ndarray, "*dims"]:
    """The kernel of a shape that `to_rows` reads as a matrix.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.layout import from_rows, to_rows
        >>> kernel = np.arange(30).reshape(2, 3, 5)
        >>> bool((from_rows(to_rows(kernel, (2, 0)), (2, 0), kernel.shape) == kernel).all())
        True
    """
    outputs = [place for place in range(len(shape)) if place not in inputs]
    moved = matrix.reshape([shape[place] for place in (*inputs, *outputs)])
    return np.moveaxis(moved, range(len(inputs)), inputs)
