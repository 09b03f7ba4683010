"""One pair of matrices on one hidden axis, applied to every parameter that has it.

`produce` (d to r) goes where the axis is produced, `consume` (r to d) where it is consumed; per-channel parameters follow
the producers, scales along a selection. A map may differ along the axis's fibres: one matrix for each head, layer or
expert. Costs one small matrix product a leaf, on the host.

Law 4: the smaller network equals the full one on producers `@ (produce @ E)` and consumers `(E^T @ consume) @`.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcompress.networks.axes import Axis, Layout, Structure
from jaxcompress.programs.program import Slot


@dataclasses.dataclass(frozen=True)
class AxisMap:
    """A change of one axis's size.

    Attributes:
        produce: (fibres, d, r), one matrix for each fibre in row-major order, or one for all (1, d, r).
        consume: (fibres or 1, r, d).
        channels: (fibres or 1, d, r) for scales; by default `produce`, which must then be a selection.
        other: for single slots ("leaf:dimension") a matrix of their own: the second side of a pair, a consumer with its
            own fold.
    """

    produce: np.ndarray
    consume: np.ndarray
    channels: np.ndarray | None = None
    other: Mapping[Slot, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """The new size r."""
        return self.produce.shape[-1]


def apply_map(
    structure: Structure,
    leaves: dict[str, np.ndarray],
    sizes: Mapping[str, int],
    axis: Axis,
    change: AxisMap,
) -> None:
    """Apply a map to leaves, in place of the dictionary's arrays.

    Args:
        structure: the network's.
        leaves: every leaf by name.
        sizes: the present sizes of axes that differ from the traced ones.
        axis: the axis.
        change: the map.
    """
    for name, dims in structure.layouts.items():
        for position, layout in enumerate(dims):
            if axis.key not in layout.axes():
                continue
            slot = Slot(name, position)
            if slot in axis.consumers and slot not in axis.producers:
                matrices = np.swapaxes(change.other.get(slot, change.consume), -1, -2)
            elif slot in axis.scales and change.channels is not None:
                matrices = change.channels
            else:
                matrices = change.other.get(slot, change.produce)
            # an earlier dimension of this leaf may have its new size already
            present = {**sizes, axis.key: sizes.get(axis.key, axis.size)}
            now = [part.resized(present) for part in dims]
            for done in range(position):
                if axis.key in dims[done].axes():
                    now[done] = dims[done].resized({**present, axis.key: change.size})
            leaves[name] = along(leaves[name], tuple(now), position, axis, matrices)


def along(
    array: Any, layouts: tuple[Layout, ...], position: int, axis: Axis, matrices: np.ndarray
) -> Any:
    """One dimension of an array with a matrix applied to an axis in it, fibre by fibre; a tracer of `jax.jit`, too."""
    old = layouts[position]
    new = old.resized({axis.key: matrices.shape[-1]})
    if isinstance(array, Tracer):
        return traced(array, layouts, position, axis, matrices)
    before, after = lines(old, axis.key), lines(new, axis.key)
    moved = np.moveaxis(np.asarray(array), position, -1)
    result = np.zeros((*moved.shape[:-1], new.size), moved.dtype)
    result[..., np.flatnonzero(new.index(axis.key) < 0)] = moved[
        ..., np.flatnonzero(old.index(axis.key) < 0)
    ]
    for matrix, (rows, mine) in zip(
        matrices, blocks(layouts, position, axis, len(matrices) > 1), strict=True
    ):
        block = moved[rows][..., before[:, mine]]  # (..., d, lines)
        result[(*(part[..., None, None] for part in rows), after[:, mine])] = (block.mT @ matrix).mT
    return np.moveaxis(result, -1, position)


def traced(
    array: jax.Array, layouts: tuple[Layout, ...], position: int, axis: Axis, matrices: np.ndarray
) -> jax.Array:
    """The same inside `jax.jit`: one gather where the dimension holds more than the axis, then few multiples or a product."""
    old = layouts[position]
    new = old.resized({axis.key: matrices.shape[-1]})
    moved = jnp.moveaxis(array, position, -1)
    if len(matrices) == 1 and old.key == axis.key and not old.parts:
        return jnp.moveaxis(times(moved, matrices[0]), -1, position)
    before, after = lines(old, axis.key), lines(new, axis.key)
    kept = np.flatnonzero(new.index(axis.key) < 0), np.flatnonzero(old.index(axis.key) < 0)
    result = (
        jnp.zeros((*moved.shape[:-1], new.size), moved.dtype)
        .at[..., kept[0]]
        .set(moved[..., kept[1]])
    )
    for matrix, (rows, mine) in zip(
        matrices, blocks(layouts, position, axis, len(matrices) > 1), strict=True
    ):
        block = times(moved[rows][..., before[:, mine]].mT, matrix).mT
        result = result.at[(*(part[..., None, None] for part in rows), after[:, mine])].set(block)
    return jnp.moveaxis(result, -1, position)


FEW = 8
"""So many entries of a column are worth a sum of multiples."""


def times(values: jax.Array, matrix: np.ndarray) -> jax.Array:
    """(..., d) values @ matrix (d, r), by multiples of slices where the matrix has few entries in a column."""
    if not jnp.issubdtype(values.dtype, jnp.floating):  # weights are no integers
        return times(values.astype(jnp.float32), matrix).astype(values.dtype)
    taps = int((matrix != 0).sum(0).max(initial=0))
    if not 0 < taps <= FEW:
        return jnp.matmul(values, jnp.asarray(matrix, values.dtype), precision="highest")
    rows = np.argsort(matrix == 0, axis=0, kind="stable")[:taps]
    weights = np.take_along_axis(matrix, rows, 0)
    parts = (
        values[..., stretch(row)] * jnp.asarray(weight, values.dtype)
        for row, weight in zip(rows, weights, strict=True)
    )
    return reduce(operator.add, parts)


def stretch(places: np.ndarray) -> slice | np.ndarray:
    """Places as a slice where they are equally far apart, since a slice is cheaper than a gather."""
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    regular = step > 0 and (np.diff(places) == step).all()
    return slice(int(places[0]), int(places[-1]) + 1, step) if regular else places


def blocks(
    layouts: tuple[Layout, ...], position: int, axis: Axis, split: bool
) -> Iterator[tuple[Any, np.ndarray]]:
    """For each fibre where it is: positions of the other dimensions (as `np.ix_` gives), and which lines of this one.

    Args:
        layouts: of all dimensions.
        position: which dimension the axis is in.
        axis: the axis.
        split: whether fibres are told apart; otherwise all are one.
    """
    here, others = (
        layouts[position],
        [layout for index, layout in enumerate(layouts) if index != position],
    )
    first = lines(here, axis.key)[0]
    fibres = axis.fibres if split else ()
    sizes = {part.key: part.size for layout in layouts for part in layout.leaves()}
    for place in itertools.product(*(range(sizes[key]) for key in fibres)):
        mine = np.ones(len(first), bool)
        theirs = [np.ones(layout.size, bool) for layout in others]
        for key, index in zip(fibres, place, strict=True):
            if (
                key in here.axes()
            ):  # another dimension that has it, too, is another end: every pair of both belongs here
                mine &= here.index(key)[first] == index
                continue
            for chosen, layout in zip(theirs, others, strict=True):
                if key in layout.axes():
                    chosen &= layout.index(key) == index
        yield np.ix_(*theirs), mine


def lines(layout: Layout, key: str) -> np.ndarray:
    """(d, lines): where the positions of an axis are; each column is one line along the axis, everything else fixed."""
    index = layout.index(key)
    size = index.max() + 1
    return np.stack([np.flatnonzero(index == place) for place in range(size)])
