"""Products and row look-ups of a weight, dense or compact.

A compact array takes part by its own product (`multiply`) and its own look-up (`take`), whichever
of its dimensions are inputs; a dense weight by numpy's.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcompress.arrays.base import CompactArray
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.checks import is_array, shown


def take(table: jax.Array | np.ndarray | CompactArray, rows: ArrayLike) -> jax.Array:
    """Rows of a dense or compact matrix, by a compact one's own look-up: the embedding of tokens.

    Args:
        table: (..., m, n), a dense array or a `CompactArray`.
        rows: integers of any shape; negative ones count from the end, out-of-range ones give NaN.

    Returns:
        (..., *rows.shape, n).

    Raises:
        TypeError: for rows that are no integers, or an array that is no matrix in its last two
            dimensions.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> words = jnp.arange(12.0).reshape(6, 2)
        >>> jc.take(words, jnp.array([0, -1])).tolist()
        [[0.0, 1.0], [10.0, 11.0]]
        >>> jc.take(jc.clustered(keep=1)({"words": words})["words"], jnp.array([[0, 5, 5]])).shape
        (1, 3, 2)
    """
    if isinstance(table, CompactArray):
        return table.take(rows)
    if np.ndim(table) < 2 or not hasattr(table, "dtype"):
        raise TypeError(f"take: table must be a matrix (..., m, n), got {shown(table)}")
    dtype = getattr(rows, "dtype", None) or np.asarray(rows).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"take: rows must be integers, got {shown(rows)}")
    return jnp.take(table, jnp.asarray(rows), axis=-2)


def matmul(
    x: jax.Array,
    w: jax.Array | np.ndarray | CompactArray,
    matrix_axes: MatrixAxes | None = None,
) -> jax.Array:
    """Contract inputs with a dense or compact weight, by a compact one's own product.

    Args:
        x: (..., *inputs): its last dimensions are the weight's input dimensions.
        w: a dense array or a `CompactArray`.
        matrix_axes: which dimensions of `w` are inputs and outputs; by default `x @ w`, as numpy
            means it.

    Returns:
        (..., *outputs).

    Raises:
        ValueError: when the shapes do not fit, or `matrix_axes` differs from a compact array's own.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> kernel = jnp.ones((6, 2, 4))                       # attention: (model, heads, size)
        >>> matrix_axes = jc.MatrixAxes(inputs=0, outputs=(1, 2))
        >>> small = jc.factored(keep=1/2, matrix_axes=matrix_axes)(kernel)
        >>> jc.matmul(jnp.ones((5, 6)), small, matrix_axes).shape
        (5, 2, 4)
    """
    for name, value in (("x", x), ("w", w)):
        if not isinstance(value, CompactArray) and not is_array(value):
            raise ValueError(f"matmul: {name} must be an array of numbers, got {shown(value)}")
    if matrix_axes is None:
        rows = np.shape(w)[-2:-1] or np.shape(w)
        if not np.ndim(x) or not rows or np.shape(x)[-1:] != rows[:1]:
            raise ValueError(
                f"matmul contracts the last dimension of x with {rows}, got x of shape "
                f"{np.shape(x)} and w of shape {np.shape(w)}"
            )
        return x @ w
    if not isinstance(matrix_axes, MatrixAxes):
        raise TypeError(f"matmul: matrix_axes must be a jc.MatrixAxes, got {shown(matrix_axes)}")
    x, matrix_axes = jnp.asarray(x), matrix_axes.resolve(w.ndim)
    if w.ndim != matrix_axes.ndim:
        raise ValueError(
            f"matmul with axes takes an unstacked weight, got shape {w.shape} for {matrix_axes}: "
            "use jax.vmap over the stack"
        )
    sizes = tuple(w.shape[axis] for axis in matrix_axes.inputs)
    batch = x.shape[: x.ndim - len(sizes)]
    if x.shape[len(batch) :] != sizes:
        raise ValueError(
            f"matmul contracts the last dimensions of x with {sizes}, got x of shape {x.shape}"
        )
    out = _plain_product(x.reshape(math.prod(batch), math.prod(sizes)), w, matrix_axes)
    return out.reshape(*batch, *(w.shape[axis] for axis in matrix_axes.outputs))


def _plain_product(
    rows: jax.Array, w: jax.Array | np.ndarray | CompactArray, matrix_axes: MatrixAxes
) -> jax.Array:
    """`rows @ w` for rows (rows, m) and a weight read as a plain matrix."""
    if not isinstance(w, CompactArray):
        return rows @ matrix_axes.to_matrix(jnp.asarray(w))
    if matrix_axes == w.matrix_axes:
        return w.multiply(rows)
    if matrix_axes == w.matrix_axes.swapped():
        return w.multiply_transposed(rows)
    raise ValueError(
        f"matmul got axes {matrix_axes} for an array with {w.matrix_axes}: "
        "give its own axes or their exchange"
    )
