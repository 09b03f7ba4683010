"""Whether the fields of a compact array fit each other, read off shapes alone: nothing is traced.

The dataclass of an array never checks, since JAX fills it with None, labels and specs; a file is
checked, since an index out of range would be read as some other number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import CompactArray
from jaxcompress.arrays.layout import MATRIX, MatrixAxes
from jaxcompress.checkpoint.annotations import misfits


def check_array(array: CompactArray) -> None:
    """Refuse an array that cannot be one.

    Args:
        array: any compact array; those in it are checked as well.

    Raises:
        ValueError: for children that are no numbers, static fields of another type than the
            class's annotations, a layout that does not fit the sizes, and whatever the class's
            `check_sizes` refuses.
    """
    for name in array.child_names:
        child = getattr(array, name)
        if isinstance(child, CompactArray):
            check_array(child)
        elif not _is_numbers(child):
            raise ValueError(f"{name} of a {type(array).__name__} is no array of numbers")
    statics = {name: getattr(array, name) for name in array.static_names}
    if wrong := misfits(type(array), statics):
        raise ValueError(
            f"{', '.join(wrong)} of a {type(array).__name__} are not what its class says"
        )
    _check_layout(array.matrix_axes, array.dims)
    array.check_sizes()


def _is_numbers(child: object) -> bool:
    return isinstance(child, (jax.Array, np.ndarray)) and jnp.issubdtype(child.dtype, jnp.inexact)


def _check_layout(axes: MatrixAxes, dims: tuple[int, ...] | None) -> None:
    if axes != MATRIX and axes.resolve(axes.ndim) != axes:
        raise ValueError(f"{axes} are not counted from the end")
    if dims is None:
        if axes != MATRIX:
            raise ValueError(f"an array with {axes} needs its sizes")
        return
    if len(dims) != axes.ndim or min(dims) < 0:
        raise ValueError(f"the sizes {dims} are not those of {axes}")
