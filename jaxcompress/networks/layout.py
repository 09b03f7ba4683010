"""How a dimension of a parameter is made of axes: one axis, a product, or axes side by side.

With the layouts of a leaf, a map on an axis is applied to that leaf (`networks/maps.py`), and the
positions of the axis are located in any array that has it. Products are row-major: `(heads x size)`
is what `reshape` makes of two dimensions.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Int

from jaxcompress.checkpoint.records import record


@record
@dataclasses.dataclass(frozen=True)
class Layout:
    """One dimension in terms of axes.

    Attributes:
        key: the axis, for a dimension of a single axis.
        size: the number of positions.
        split: "product" or "concat" for a dimension of several axes, "" for a single one.
        parts: the layouts of the factors or the segments.
    """

    key: str = ""
    size: int = 1
    split: str = ""
    parts: tuple[Layout, ...] = ()

    def resized(self, sizes: Mapping[str, int]) -> Layout:
        """The same layout with new sizes for some of its axes."""
        if not self.split:
            return dataclasses.replace(self, size=sizes.get(self.key, self.size))
        parts = tuple(part.resized(sizes) for part in self.parts)
        total = math.prod if self.split == "product" else sum
        return dataclasses.replace(self, size=total(part.size for part in parts), parts=parts)

    def axes(self) -> list[str]:
        """The keys of its axes in order, with repetitions."""
        return [leaf.key for leaf in self.leaves()]

    def leaves(self) -> list[Layout]:
        """The layouts of its single axes in order, with repetitions."""
        if not self.split:
            return [self]
        return list(itertools.chain.from_iterable(part.leaves() for part in self.parts))

    def index(self, key: str) -> Int[np.ndarray, " size"]:
        """The position along an axis of every position of the dimension, -1 outside the axis."""
        if not self.split:
            return np.arange(self.size) if self.key == key else np.full(self.size, -1)
        indices = [part.index(key) for part in self.parts]
        if self.split == "concat":
            return np.concatenate(indices)
        grids = np.meshgrid(*indices, indexing="ij")
        return np.max([grid.ravel() for grid in grids], axis=0)

    def __str__(self) -> str:
        if not self.split:
            return str(self.size)
        return f"({(' x ' if self.split == 'product' else ' + ').join(map(str, self.parts))})"


def axis_sizes(layouts: Iterable[Layout]) -> dict[str, int]:
    """The size of every axis in some layouts, by key."""
    leaves = itertools.chain.from_iterable(layout.leaves() for layout in layouts)
    return {leaf.key: leaf.size for leaf in leaves}
