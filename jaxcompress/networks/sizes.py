"""The sizes of axes, solved from the shapes of parameters.

A dimension of a single axis gives its size. In a product the trailing factor is solved for and the
leading ones (attention heads) keep their traced sizes; segments of the same axis are equally long.
Costs a few passes over the dimensions of all leaves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

from jaxcompress.networks.layout import Layout


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One dimension of a leaf: its layout as traced, and its present size."""

    leaf: str
    position: int
    layout: Layout
    size: int

    def error(self, problem: str) -> ValueError:
        """An error that names the dimension."""
        return ValueError(f"{self.leaf} has size {self.size} in dimension {self.position}{problem}")


def solve_sizes(
    layouts: Mapping[str, tuple[Layout, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    fixed: Mapping[str, str],
    given: Mapping[str, int],
) -> dict[str, int]:
    """The present size of every axis that the shapes determine.

    Args:
        layouts: of each leaf's dimensions, as traced.
        shapes: of each leaf, at present.
        fixed: for each axis that must keep its traced size, the reason.
        given: sizes by axis that are known beforehand.

    Raises:
        ValueError: for shapes that contradict each other, naming the leaf.
    """
    sizes = dict(given)
    composite: list[Dimension] = []
    for dimension in _dimensions(layouts, shapes):
        if dimension.layout.split:
            composite.append(dimension)
        elif dimension.layout.size > 1:
            _record(sizes, fixed, dimension, dimension.layout, dimension.size)
    for hold_leading in (False, True):
        solved = -1
        while solved < len(sizes):  # an axis that one leaf determines may determine others
            solved = len(sizes)
            for dimension in composite:
                solution = _solve(
                    dimension, dimension.layout, dimension.size, sizes, fixed, hold_leading
                )
                if solution is not None:
                    _record(sizes, fixed, dimension, *solution)
    _check(composite, sizes)
    return sizes


def _dimensions(
    layouts: Mapping[str, tuple[Layout, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Dimension]:
    """Every dimension of every leaf; refuses a new number of dimensions, and growth from one."""
    for leaf, dims in layouts.items():
        shape = shapes[leaf]
        if len(shape) != len(dims):
            raise ValueError(
                f"{leaf} has shape {shape}, traced with {len(dims)} dimensions: "
                "their number must stay"
            )
        for position, (layout, size) in enumerate(zip(dims, shape, strict=True)):
            if layout.size <= 1 and size != layout.size:
                raise ValueError(
                    f"{leaf} has shape {shape}: dimension {position} was traced with size "
                    f"{layout.size} and cannot change"
                )
            yield Dimension(leaf, position, layout, size)


def _record(
    sizes: dict[str, int], fixed: Mapping[str, str], dimension: Dimension, axis: Layout, size: int
) -> None:
    """Add an axis's size, which must be the same in every leaf."""
    if axis.key in fixed and size != axis.size:
        raise dimension.error(
            f", traced with {axis.size}; that axis is not hidden: {fixed[axis.key]}"
        )
    if sizes.setdefault(axis.key, size) != size:
        raise dimension.error(f", but its axis {axis.key} has {sizes[axis.key]} elsewhere")


def _solve(
    dimension: Dimension,
    layout: Layout,
    size: int,
    sizes: Mapping[str, int],
    fixed: Mapping[str, str],
    hold_leading: bool,
) -> tuple[Layout, int] | None:
    """The one unknown axis of a layout and its size, or None while there are none or several.

    Args:
        dimension: where the layout stands, for errors.
        layout: the dimension's layout, or a part of it.
        size: the layout's present size.
        sizes: the axes solved so far.
        fixed: axes that keep their traced sizes.
        hold_leading: whether all unknown factors of a product but the last keep theirs, too.
    """
    if not layout.split:
        return layout, size
    unknown = [
        part
        for part in layout.parts
        if any(key not in sizes and key not in fixed for key in part.axes())
    ]
    if not unknown or (len(set(unknown)) > 1 and not hold_leading):
        return None
    known = [part.resized(sizes).size for part in layout.parts if part not in unknown]
    if layout.split == "product":
        *held, last = unknown
        others = math.prod([*known, *(part.resized(sizes).size for part in held)])
        if size % others:
            raise dimension.error(f", no multiple of {others}: give sizes with net.resized")
        return _solve(dimension, last, size // others, sizes, fixed, hold_leading)
    if len(set(unknown)) > 1:
        return None
    share, remainder = divmod(size - sum(known), len(unknown))
    if remainder:
        raise dimension.error(f": {len(unknown)} equal segments do not divide it")
    return _solve(dimension, unknown[0], share, sizes, fixed, hold_leading)


def _check(composite: Iterable[Dimension], sizes: Mapping[str, int]) -> None:
    """Refuse dimensions that their axes do not make up."""
    for dimension in composite:
        total = dimension.layout.resized(sizes).size
        if total != dimension.size:
            axes = ", ".join(dict.fromkeys(dimension.layout.axes()))
            raise dimension.error(
                f", but its axes {axes} make {total}: give sizes with net.resized"
            )
