"""A network's parameters at one moment of a change: arrays by name, sizes of axes, moments.

A `NetworkState` is never modified. A transform computes an `AxisChange`, plain data, from a state;
`NetworkState.applied` gives the state after it. Costs one small matrix product a leaf, on the host.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.moments.moments import Moments
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.layout import Layout
from jaxcompress.networks.maps import AxisMap, apply_map, blocks, lines
from jaxcompress.programs.program import Slot
from jaxcompress.transforms.host_leaves import HostLeaves


@dataclasses.dataclass(frozen=True)
class AxisChange:
    """A change of one axis as data: a map, new values of leaves before it, statistics after it.

    Attributes:
        map: applied to every leaf that has the axis, and to the moments.
        leaves: new values of leaves by name, still at the axis's present size.
        sites: new statistics by contraction, at the axis's new size.
    """

    map: AxisMap
    leaves: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    sites: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkState:
    """The parameters of a network by name, at their present sizes, and the moments at these sizes.

    Attributes:
        structure: the network's axes, as traced.
        template: the parameters as they were given, for the structure of the tree.
        leaves: every dense leaf, floats as float64, read when it is asked for.
        sizes: of the axes whose size differs from the traced one.
        moments: of `jc.calibrate`, or None.
    """

    structure: Structure
    template: PyTree
    leaves: HostLeaves
    sizes: Mapping[str, int]
    moments: Moments | None = None

    @classmethod
    def of(cls, structure: Structure, params: PyTree, moments: Moments | None) -> NetworkState:
        """The state of parameters before any change.

        Raises:
            ValueError: for other parameters than the traced ones, or sizes that contradict each
                other.
        """
        given = dict(named_leaves(params))
        structure.check_names(given)
        shapes = {name: tuple(np.shape(leaf)) for name, leaf in given.items()}
        sizes = structure.sizes(shapes)
        if moments is not None:
            moments.check_fit(structure, {**structure.full_sizes, **sizes})
        return cls(
            structure=structure,
            template=params,
            leaves=HostLeaves(given),
            sizes=sizes,
            moments=moments,
        )

    def params(self) -> PyTree:
        """The parameters as a tree, in the given dtypes; unchanged leaves as they are."""
        treedef = jax.tree.structure(self.template, is_leaf=is_compact)
        return jax.tree.unflatten(treedef, self.leaves.result())

    @property
    def given(self) -> Mapping[str, PyTree]:
        """Every leaf as it was given, compact arrays as they are now."""
        return self.leaves.given

    def size(self, axis: Axis) -> int:
        """The present number of channels of an axis."""
        return self.sizes.get(axis.key, axis.size)

    def all_sizes(self) -> dict[str, int]:
        """The present size of every axis of the parameters, hidden or not."""
        return {**self.structure.full_sizes, **self.sizes}

    def fibres(self, axis: Axis) -> int:
        """The present number of fibres of an axis: of heads, layers or experts."""
        sizes = self.all_sizes()
        return math.prod(sizes[key] for key in axis.fibres)

    def layouts(self, name: str) -> tuple[Layout, ...]:
        """The layouts of a leaf's dimensions at their present sizes."""
        return tuple(layout.resized(self.sizes) for layout in self.structure.layouts[name])

    def leaves_with(self, axis: Axis) -> list[str]:
        """The names of the leaves that have an axis."""
        return [
            name
            for name, layouts in self.structure.layouts.items()
            if any(axis.key in layout.axes() for layout in layouts)
        ]

    def check_dense(self, axis: Axis) -> None:
        """Refuse an axis of a compact leaf."""
        for name in self.leaves_with(axis):
            if name not in self.leaves:
                raise ValueError(
                    f"{name} is compact: change hidden axes first, and compact the smaller "
                    "leaves afterwards"
                )

    def is_readable(self, axis: Axis, size: int) -> bool:
        """Whether the shapes of the parameters would determine a new size of an axis."""
        sizes = {**self.sizes, axis.key: size}
        shapes = {
            name: tuple(layout.resized(sizes).size for layout in layouts)
            for name, layouts in self.structure.layouts.items()
        }
        # sizes are solved from shapes: of a fused product of axes only one factor can be
        try:
            return self.structure.sizes(shapes).get(axis.key, axis.size) == size
        except ValueError:
            return False

    def unfold(
        self, axis: Axis, slot: Slot, leaf: np.ndarray | None = None
    ) -> Float[np.ndarray, "fibres d rest"]:
        """A leaf, or an array of its shape, with an axis in front of everything but its fibres."""
        name, dimension = slot
        layouts = self.layouts(name)
        moved = np.moveaxis(self.leaves[name] if leaf is None else leaf, dimension, -1)
        where = lines(layouts[dimension], axis.key)
        parts = [
            np.moveaxis(moved[rows][..., where[:, columns]], -2, 0)
            for rows, columns in blocks(layouts, dimension, axis, self.fibres(axis) > 1)
        ]
        return np.stack([part.reshape(len(part), -1) for part in parts])

    def gram(self, axis: Axis, slots: tuple[Slot, ...]) -> Float[np.ndarray, "fibres d d"]:
        """The sum over slots of their kernels' products with themselves along an axis."""
        total = np.zeros((self.fibres(axis), self.size(axis), self.size(axis)))
        for slot in slots:
            rows = self.unfold(axis, slot)
            total += rows @ np.swapaxes(rows, 1, 2)
        return total

    def applied(self, axis: Axis, change: AxisChange) -> NetworkState:
        """The state after a change of one axis."""
        self.check_dense(axis)
        # first the replacements, which have the present size, then the map, which changes it
        leaves = {name: self.leaves[name] for name in self.leaves_with(axis)} | dict(change.leaves)
        apply_map(self.structure, leaves, self.sizes, axis, change.map)
        moments = self.moments
        if moments is not None:
            moments = moments.mapped(axis, change.map)
            moments = dataclasses.replace(moments, sites={**moments.sites, **change.sites})
        sizes = {**self.sizes, axis.key: change.map.size}
        return dataclasses.replace(
            self, leaves=self.leaves.replaced(leaves), sizes=sizes, moments=moments
        )

    def edited(
        self, leaves: Mapping[str, np.ndarray], compact: Mapping[str, PyTree] | None = None
    ) -> NetworkState:
        """The state with new values of dense and of compact leaves, at the same sizes."""
        return dataclasses.replace(self, leaves=self.leaves.replaced(leaves, compact))
