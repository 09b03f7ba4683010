"""A convolution as a matrix: the few weights of a window, moved along the inputs' grid.

`W[p stride + w - pad, (p, c)] = taps[w, c]` for every position p of the window, place w in it and
channel c, and zero elsewhere: a Toeplitz matrix, doubly block on two axes, with the values of the
channels interlaced at each position. So an output shares its weights with all others of its
channel: designed sharing, where a hash shares at random. Stored: window x channels numbers.
Forward: 2 positions x window x channels operations a row, and positions x window numbers of memory.

Source: LeCun et al. 1989 (doi:10.1162/neco.1989.1.4.541); the arithmetic as in Dumoulin and Visin
2016 (arXiv:1603.07285).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcompress.arrays.base import CompactArray
from jaxcompress.arrays.device import to_device
from jaxcompress.arrays.field_checks import expect
from jaxcompress.arrays.projection import Metric, check_shape, per_matrix, shared_numbers
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.static import static_field
from jaxcompress.checks import checked, sizes
from jaxcompress.checks import matrix as matrix_kind


@compact_array
class ToeplitzArray(CompactArray):
    """A matrix whose outputs are one window of weights a channel at every position.

    Attributes:
        taps: (..., window, channels) the weights, the places of the window row by row.
        grid: the sizes of the inputs' axes; their product is m.
        window: its size along each axis.
        stride: its step along each axis.
        pad: the number of zeros before and after the inputs along each axis.
    """

    taps: Float[Array, "*stack window channels"]
    grid: tuple[int, ...] = static_field(default=())
    window: tuple[int, ...] = static_field(default=())
    stride: tuple[int, ...] = static_field(default=())
    pad: tuple[int, ...] = static_field(default=())

    def materialize(self) -> jax.Array:
        """The window's weights at every position, zero elsewhere."""
        count, leading = math.prod(self.grid), self.taps.shape[:-2]
        # places on the zeros lie beyond the grid, where nothing is written
        rows = jnp.where((index := self._places()) < 0, count, index)  # (positions, window)
        positions, channels = rows.shape[0], self.taps.shape[-1]
        dense = jnp.zeros((*leading, count, positions, channels), self.taps.dtype)
        written = dense.at[..., rows, jnp.arange(positions)[:, None], :].set(
            self.taps[..., None, :, :], mode="drop"
        )
        return written.reshape(*leading, count, positions * channels)

    def multiply(self, x: jax.Array) -> jax.Array:
        """One product of all patches with the window."""
        return _slide(self, x)

    def _places(self) -> jax.Array:
        return places(self.grid, self.window, self.stride, self.pad)

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The leading dimensions of the taps."""
        return self.taps.shape[:-2]

    def check_sizes(self) -> None:
        """Refuse a window that does not fit the matrix."""
        sizes = (self.grid, self.window, self.stride, self.pad)
        expect("grid", sizes, len(set(map(len, sizes))) == 1, "as many axes as the window")
        positive = min((*self.grid, *self.window, *self.stride), default=0) > 0
        expect("grid", sizes, positive and min(self.pad) >= 0, "positive sizes")
        expect("dims", self.dims, self.dims is not None, "the matrix's sizes")
        (m, n), shape = self.matrix_shape, self.taps.shape
        expect("grid", self.grid, math.prod(self.grid) == m, f"sizes with the product {m}")
        count, window = math.prod(positions(*sizes)), math.prod(self.window)
        fits = len(shape) > 1 and shape[-2] == window and shape[-1] * count == n
        expect("taps", shape, fits, f"(..., {window}, {n} / {count})")

    def summary(self) -> str:
        """The form's sizes."""
        sizes = ["x".join(map(str, dims)) for dims in (self.window, self.grid)]
        return f"{self.taps.shape[-1]} windows of {sizes[0]} on {sizes[1]}"

    @classmethod
    @checked(matrix=matrix_kind, grid=sizes, window=sizes)
    def fit(
        cls,
        matrix: Float[np.ndarray, "*stack m n"],
        grid: tuple[int, ...],
        window: tuple[int, ...],
        *,
        stride: tuple[int, ...] | None = None,
        pad: tuple[int, ...] | None = None,
        metric: Metric | None = None,
    ) -> ToeplitzArray:
        """The window with the least squared error: means over all positions.

        In a metric the optimum is reached from these means by conjugate gradients.

        Args:
            matrix: (..., m, n).
            grid: the sizes of the inputs' axes.
            window: the size of the window along each axis.
            stride: its step along each axis; 1 by default.
            pad: the number of zeros before and after each axis; none by default.
            metric: (..., m, m) second moments of the inputs, or (m,) their diagonal.

        Raises:
            ValueError: when the window has no position, or n is no multiple of their number.
        """
        stride, pad = stride or (1,) * len(grid), pad or (0,) * len(grid)
        m, n = matrix.shape[-2:]
        if math.prod(grid) != m or len(window) != len(grid):
            raise ValueError(
                f"ToeplitzArray.fit: the grid {grid} and the window {window} need one size for "
                f"each axis, and the grid the {m} inputs of the matrix"
            )
        check_shape("ToeplitzArray.fit", metric, matrix)
        count = math.prod(positions(grid, window, stride, pad))
        if n % count:
            raise ValueError(
                f"the window has {count} positions, of which {n} outputs are no multiple: "
                "give an integer number of channels"
            )
        channels = n // count
        entries = _entries(np.asarray(places(grid, window, stride, pad)), channels)
        size = math.prod(window) * channels
        stack = np.asarray(matrix, np.float64).reshape(-1, m, n)
        taps = np.stack(
            [
                _fit_taps(target, metric, entries, size)
                for target, metric in zip(stack, per_matrix(metric, len(stack)), strict=True)
            ]
        ).reshape(*matrix.shape[:-2], math.prod(window), channels)
        values = to_device(taps, jnp.result_type(matrix))
        return cls(values, grid, window, stride, pad, dims=(m, n))


class _Entries(NamedTuple):
    """The entries of the matrix that may differ from zero, and the weight that each one is."""

    rows: Int[np.ndarray, " entries"]
    columns: Int[np.ndarray, " entries"]
    taps: Int[np.ndarray, " entries"]


def _entries(inputs: Int[np.ndarray, "positions window"], channels: int) -> _Entries:
    """The entries of a window with a number of channels; those on the zeros are left out."""
    count, window = inputs.shape
    rows = inputs[:, :, None]
    columns = np.arange(count * channels).reshape(count, 1, channels)
    taps = np.arange(window * channels).reshape(1, window, channels)
    rows, columns, taps = np.broadcast_arrays(rows, columns, taps)
    inside = rows >= 0
    return _Entries(rows[inside], columns[inside], taps[inside])


def _fit_taps(
    target: Float[np.ndarray, "m n"], metric: np.ndarray | None, entries: _Entries, size: int
) -> Float[np.ndarray, " size"]:
    """The weights of one matrix: means over all positions, or the optimum in a metric."""
    rows, columns, index = entries

    def collect(error: np.ndarray) -> np.ndarray:
        return np.bincount(index, weights=error[rows, columns], minlength=size)

    def expand(taps: np.ndarray) -> np.ndarray:
        dense = np.zeros(target.shape)
        dense[rows, columns] = taps[index]
        return dense

    return shared_numbers(expand, collect, target, metric, size)


@jax.jit  # an eager product is one program
def _slide(array: ToeplitzArray, x: jax.Array) -> jax.Array:
    """`x @ matrix` as patches and one product."""
    # inside a scan, XLA's convolutions are slow on a CPU
    index = array._places()
    patches = x.at[..., jnp.maximum(index, 0)].get(mode="promise_in_bounds")
    patches = jnp.where(index < 0, 0, patches) if any(array.pad) else patches
    out = patches @ array.taps[..., None, :, :]  # (..., rows, positions, channels)
    return out.reshape(*out.shape[:-2], out.shape[-2] * out.shape[-1])


def positions(
    grid: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...], pad: tuple[int, ...]
) -> tuple[int, ...]:
    """The number of positions of the window along each axis.

    Raises:
        ValueError: when it has none.

    Example:
        >>> from jaxcompress.arrays.toeplitz import positions
        >>> positions((28, 28), (9, 9), (2, 2), (0, 0))
        (10, 10)
    """
    counts = tuple(
        (g + 2 * p - w) // s + 1 for g, w, s, p in zip(grid, window, stride, pad, strict=True)
    )
    if min(counts) < 1:
        raise ValueError(
            f"a window of {window} has no position on a grid of {grid} with {pad} zeros around it"
        )
    return counts


def places(
    grid: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...], pad: tuple[int, ...]
) -> jax.Array:
    """(positions, window) the input at each place of the window; -1 for zeros around the grid."""
    axes = len(grid)
    index, inside = jnp.zeros((1,) * 2 * axes, jnp.int32), jnp.ones((1,) * 2 * axes, bool)
    for axis, (size, count) in enumerate(
        zip(grid, positions(grid, window, stride, pad), strict=True)
    ):
        at = (
            jnp.arange(count, dtype=jnp.int32)[:, None] * stride[axis]
            + jnp.arange(window[axis], dtype=jnp.int32)[None, :]
            - pad[axis]
        )
        shape = [1] * 2 * axes
        shape[axis], shape[axes + axis] = at.shape
        at = at.reshape(shape)
        index, inside = index * size + at, inside & (at >= 0) & (at < size)
    return jnp.where(inside, index, -1).reshape(math.prod(index.shape[:axes]), -1)
