"""One pair of matrices on one hidden axis, applied to every parameter that has it.

`produce` (d to r) is applied where the axis is produced, `consume` (r to d) where it is consumed.
Per-channel parameters follow the producers, and scales a selection of channels. A map may differ
along the axis's fibres: one matrix for each head, layer or expert. Costs one small matrix product a
leaf.

Law 4: with E the r x d embedding, the smaller network equals the full one run on
producers `@ (produce @ E)` and consumers `(E^T @ consume) @`.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import overload

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Num, PyTree, Shaped

from jaxcompress.checkpoint.annotations import fits, misfits
from jaxcompress.checkpoint.records import Record, records
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.layout import Layout, axis_sizes
from jaxcompress.programs.program import Slot


@dataclasses.dataclass(frozen=True)
class AxisMap:
    """A change of one axis's size.

    Attributes:
        produce: one matrix for each fibre in row-major order, or one for all.
        consume: one matrix for each fibre, or one for all.
        channels: for scales; by default `produce`, which must then be a selection.
        other: matrices of single slots: the second side of a pair, or a consumer into which
            something is folded.
    """

    produce: Float[np.ndarray, "fibres d r"]
    consume: Float[np.ndarray, "fibres r d"]
    channels: Float[np.ndarray, "fibres d r"] | None = None
    other: Mapping[Slot, Float[np.ndarray, "fibres _ _"]] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """The new size r."""
        return self.produce.shape[-1]

    def matrices(self, axis: Axis, slot: Slot) -> Float[np.ndarray, "fibres d r"]:
        """The matrices that a slot of the axis is multiplied by."""
        if slot in axis.consumers and slot not in axis.producers:
            return np.swapaxes(self.other.get(slot, self.consume), -1, -2)
        scaling = self.channels if slot in axis.scales else None
        return self.other.get(slot, self.produce if scaling is None else scaling)


def selecting(channels: Sequence[Int[np.ndarray, " r"]], size: int) -> AxisMap:
    """The map that keeps some channels of each fibre of an axis of a given size, without a fold."""
    produce = np.stack([np.eye(size)[:, chosen] for chosen in channels])
    return AxisMap(produce, np.swapaxes(produce, 1, 2), produce)


def _fields(change: AxisMap) -> dict[str, PyTree]:
    """What a file holds of a map: pairs in place of a mapping from slots."""
    own = {field.name: getattr(change, field.name) for field in dataclasses.fields(change)}
    return own | {"other": list(change.other.items())}


def _from_fields(fields: dict[str, PyTree]) -> AxisMap:
    names = [field.name for field in dataclasses.fields(AxisMap)]
    pairs: PyTree = fields.get("other")
    if list(fields) != names or not fits(pairs, list[tuple[Slot, np.ndarray]]):
        raise ValueError(f"a map has the fields {names}, and pairs of slots and matrices")
    change = AxisMap(**{**fields, "other": dict(pairs)})
    if wrong := misfits(AxisMap, vars(change)):
        raise ValueError(f"{', '.join(wrong)} are not what a map has there")
    return change


records["AxisMap"] = Record(AxisMap, _fields, _from_fields)


def apply_map(
    structure: Structure,
    leaves: dict[str, Num[np.ndarray, ...]],
    sizes: Mapping[str, int],
    axis: Axis,
    change: AxisMap,
) -> None:
    """Apply a map to the leaves that have the axis, replacing them in the dictionary.

    Args:
        structure: the network's.
        leaves: every leaf by name.
        sizes: the present sizes of axes that differ from the traced ones.
        axis: the axis.
        change: the map.
    """
    before = {**sizes, axis.key: sizes.get(axis.key, axis.size)}
    after = {**sizes, axis.key: change.size}
    for name, dims in structure.layouts.items():
        if not any(axis.key in layout.axes() for layout in dims):
            continue
        old, new = ([layout.resized(at) for layout in dims] for at in (before, after))
        for position, layout in enumerate(dims):
            if axis.key in layout.axes():
                # earlier dimensions of this leaf have their new sizes already
                present = (*new[:position], *old[position:])
                matrices = change.matrices(axis, Slot(name, position))
                leaves[name] = along(leaves[name], present, position, axis, matrices)


@overload
def along(
    array: Num[np.ndarray, ...],
    layouts: tuple[Layout, ...],
    position: int,
    axis: Axis,
    matrices: Float[np.ndarray, "fibres d r"],
) -> Num[np.ndarray, ...]: ...


@overload
def along(
    array: Num[Array, ...],
    layouts: tuple[Layout, ...],
    position: int,
    axis: Axis,
    matrices: Float[np.ndarray, "fibres d r"],
) -> Num[Array, ...]: ...


def along(
    array: Num[np.ndarray, ...] | Num[Array, ...],
    layouts: tuple[Layout, ...],
    position: int,
    axis: Axis,
    matrices: Float[np.ndarray, "fibres d r"],
) -> Num[np.ndarray, ...] | Num[Array, ...]:
    """One dimension of an array with a matrix applied to an axis in it, fibre by fibre.

    Args:
        array: a NumPy array, or a tracer of `jax.jit`, which gives one.
        layouts: of all dimensions, at their present sizes.
        position: the dimension.
        axis: the axis.
        matrices: one for each fibre, or one for all.
    """
    if isinstance(array, Tracer):
        return along_traced(array, layouts, position, axis, matrices)
    old = layouts[position]
    new = old.resized({axis.key: matrices.shape[-1]})
    before, after = lines(old, axis.key), lines(new, axis.key)
    moved = np.moveaxis(np.asarray(array), position, -1)
    result = np.zeros((*moved.shape[:-1], new.size), moved.dtype)
    result[..., outside(new, axis.key)] = moved[..., outside(old, axis.key)]
    fibres = blocks(layouts, position, axis, len(matrices) > 1)
    for matrix, (rows, mine) in zip(matrices, fibres, strict=True):
        block = moved[rows][..., before[:, mine]]  # (..., d, lines)
        result[(*(part[..., None, None] for part in rows), after[:, mine])] = (block.mT @ matrix).mT
    return np.moveaxis(result, -1, position)


def along_traced(
    array: Num[Array, ...],
    layouts: tuple[Layout, ...],
    position: int,
    axis: Axis,
    matrices: Float[np.ndarray, "fibres d r"],
) -> Num[Array, ...]:
    """`along` inside `jax.jit`, without a gather where the dimension is the axis alone."""
    old = layouts[position]
    new = old.resized({axis.key: matrices.shape[-1]})
    moved = jnp.moveaxis(array, position, -1)
    if len(matrices) == 1 and old.key == axis.key and not old.parts:
        return jnp.moveaxis(multiply(moved, matrices[0]), -1, position)
    before, after = lines(old, axis.key), lines(new, axis.key)
    result = jnp.zeros((*moved.shape[:-1], new.size), moved.dtype)
    result = result.at[..., outside(new, axis.key)].set(moved[..., outside(old, axis.key)])
    fibres = blocks(layouts, position, axis, len(matrices) > 1)
    for matrix, (rows, mine) in zip(matrices, fibres, strict=True):
        block = multiply(moved[rows][..., before[:, mine]].mT, matrix).mT
        result = result.at[(*(part[..., None, None] for part in rows), after[:, mine])].set(block)
    return jnp.moveaxis(result, -1, position)


SPARSE = 8
"""Up to this many entries in a column, a sum of multiples is cheaper than a product."""


def multiply(
    values: Num[Array, "*lead d"], matrix: Float[np.ndarray, "d r"]
) -> Num[Array, "*lead r"]:
    """The product `values @ matrix`, as a sum of scaled slices where the matrix is sparse."""
    if not jnp.issubdtype(values.dtype, jnp.floating):  # matrices are not rounded to integers
        return multiply(values.astype(jnp.float32), matrix).astype(values.dtype)
    count = int((matrix != 0).sum(0).max(initial=0))
    if not 0 < count <= SPARSE:
        return jnp.matmul(values, jnp.asarray(matrix, values.dtype), precision="highest")
    rows = np.argsort(matrix == 0, axis=0, kind="stable")[:count]
    weights = np.take_along_axis(matrix, rows, 0)
    terms = (
        values[..., as_slice(row)] * jnp.asarray(weight, values.dtype)
        for row, weight in zip(rows, weights, strict=True)
    )
    return reduce(operator.add, terms)


def as_slice(places: Int[np.ndarray, " n"]) -> slice | Int[np.ndarray, " n"]:
    """Equally spaced indices as a slice, which is cheaper than a gather; others as they are."""
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    regular = step > 0 and (np.diff(places) == step).all()
    return slice(int(places[0]), int(places[-1]) + 1, step) if regular else places


def blocks(
    layouts: tuple[Layout, ...], position: int, axis: Axis, split: bool
) -> Iterator[tuple[tuple[Int[np.ndarray, ...], ...], Shaped[np.ndarray, " lines"]]]:
    """The places of every fibre, in row-major order of the fibres.

    Args:
        layouts: of all dimensions.
        position: the dimension that has the axis.
        axis: the axis.
        split: whether fibres are told apart; otherwise there is one block for all.

    Yields:
        Indices of the other dimensions, as `np.ix_` gives them, and which of the `lines` of this
        dimension belong to the fibre.
    """
    here = layouts[position]
    others = [layout for index, layout in enumerate(layouts) if index != position]
    first = lines(here, axis.key)[0]
    fibres = axis.fibres if split else ()
    sizes = axis_sizes(layouts)
    for place in itertools.product(*(range(sizes[key]) for key in fibres)):
        mine = np.ones(len(first), bool)
        theirs = [np.ones(layout.size, bool) for layout in others]
        for key, index in zip(fibres, place, strict=True):
            if key in here.axes():
                # a fibre in another dimension as well is another end: every pair belongs
                mine &= here.index(key)[first] == index
                continue
            for chosen, layout in zip(theirs, others, strict=True):
                if key in layout.axes():
                    chosen &= layout.index(key) == index
        yield np.ix_(*theirs), mine


def lines(layout: Layout, key: str) -> Int[np.ndarray, "d lines"]:
    """Indices of an axis's positions; each column is one line along the axis."""
    index = layout.index(key)
    size = index.max() + 1
    return np.stack([np.flatnonzero(index == place) for place in range(size)])


def outside(layout: Layout, key: str) -> Int[np.ndarray, " n"]:
    """Indices of a dimension's positions that do not lie on an axis."""
    return np.flatnonzero(layout.index(key) < 0)
