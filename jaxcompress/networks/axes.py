"""The hidden axes of a network as plain data: a table that prints, and the layout of every parameter in terms of axes.

A `Layout` says how one dimension of a leaf is made of axes: whole, as a product (row-major) or side by side. With it a map
on an axis is applied to any leaf (`transforms/rotation.py`), and positions along the axis are found in any moments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.programs.program import Slot
from jaxcompress.tables import Table


@dataclasses.dataclass(frozen=True)
class Layout:
    """One dimension in terms of axes: an axis of a name and size, or a "product" or "concat" of layouts."""

    key: str = ""
    size: int = 1
    split: str = ""
    parts: tuple[Layout, ...] = ()

    def resized(self, sizes: Mapping[str, int]) -> Layout:
        """The same layout at other sizes of its axes."""
        if not self.split:
            return dataclasses.replace(self, size=sizes.get(self.key, self.size))
        parts = tuple(part.resized(sizes) for part in self.parts)
        size = (
            math.prod(p.size for p in parts)
            if self.split == "product"
            else sum(p.size for p in parts)
        )
        return dataclasses.replace(self, size=size, parts=parts)

    def axes(self) -> list[str]:
        """The axes in it, in order, with repetitions."""
        return [self.key] if not self.split else [key for part in self.parts for key in part.axes()]

    def leaves(self) -> list[Layout]:
        """The layouts of single axes in it."""
        return [self] if not self.split else [leaf for part in self.parts for leaf in part.leaves()]

    def index(self, key: str) -> np.ndarray:
        """For every position of the dimension its place along an axis, or -1 where the axis is not."""
        if not self.split:
            return np.arange(self.size) if self.key == key else np.full(self.size, -1)
        parts = [part.index(key) for part in self.parts]
        if self.split == "concat":
            return np.concatenate(parts)
        grids = np.meshgrid(*parts, indexing="ij")
        return np.max([grid.ravel() for grid in grids], axis=0)

    def __str__(self) -> str:
        if not self.split:
            return str(self.size)
        return f"({(' x ' if self.split == 'product' else ' + ').join(map(str, self.parts))})"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One hidden axis.

    Attributes:
        key: its first producer, leaf and dimension: "layers_0/kernel:1".
        size: how many channels it has.
        kind: "linear", "diagonal", "elementwise", "rms" or "normalised".
        marks: all that lies on it, the strongest first.
        pair: whether two activations are contracted over it, such as queries and keys.
        producers, consumers: slots, (leaf, dimension), whose maps are applied there.
        parameters: slots of per-channel parameters (biases, scales, statistics).
        scales: those of them that multiply.
        others: slots of all of them, and of consumers that are used in one of these ways as well.
        fibres: axes along which a map may differ, such as heads or layers.
        averaged: whether a sum over it is divided by its size, as in a mean.
        bent: slots whose parameters pass a nonlinear function before they meet activations.
        foldable: whether every scale on it lies behind the norms over it, all of which are of one kind.
    """

    key: str
    size: int
    kind: str
    marks: tuple[str, ...] = ()
    pair: bool = False
    producers: tuple[Slot, ...] = ()
    consumers: tuple[Slot, ...] = ()
    parameters: tuple[Slot, ...] = ()
    scales: tuple[Slot, ...] = ()
    others: tuple[Slot, ...] = ()
    fibres: tuple[str, ...] = ()
    averaged: bool = False
    bent: tuple[Slot, ...] = ()
    foldable: bool = True

    @property
    def tied(self) -> tuple[Slot, ...]:
        """Slots that consume and do something else as well, such as a tied embedding's."""
        return tuple(slot for slot in self.consumers if slot in self.producers + self.others)

    def _cells(self) -> tuple[str, ...]:
        kind = f"{self.kind}, pair" if self.pair else self.kind
        lines = (
            ", ".join(map(str, slots))
            for slots in (self.producers, self.consumers, self.parameters, self.fibres)
        )
        return (self.key, str(self.size), kind, *lines)


@dataclasses.dataclass(frozen=True)
class Refused:
    """An axis of a parameter that is not hidden, or that no map may touch.

    Attributes:
        axis: its key.
        size: how many positions it has.
        primitive: what it meets.
        reason: why, in a sentence.
        where: the place in the source, where it is known.
    """

    axis: str
    size: int
    primitive: str
    reason: str
    where: str = ""

    def _cells(self) -> tuple[str, ...]:
        return (self.axis, str(self.size), self.primitive, self.reason, self.where)


@dataclasses.dataclass(frozen=True)
class Use:
    """How a network's program uses one compact array.

    Attributes:
        leaf: its name.
        how: "contracted", "looked up" or "materialised".
        primitive: where.
        where: the place in the source, where it is known.
    """

    leaf: str
    how: str
    primitive: str
    where: str = ""

    def _cells(self) -> tuple[str, ...]:
        return (self.leaf, self.how, self.primitive, self.where)


@dataclasses.dataclass(frozen=True)
class Site:
    """A place where activations meet a parameter.

    Attributes:
        key: the parameter and a running number.
        slots: what is contracted with the activations.
        dims: the contracted dimensions in the parameter's order, a convolution's window among them.
        window: which of `dims` are a window.
        inputs: for each leaf its own dimensions that `dims` are, in their order.
        batch: dimensions that both have; a convolution's groups.
        layers: axes of loops that run over layers of the parameter.
        bias: slots of a bias added right behind, and its sign (-1 for a mean that is subtracted); 0 without one.
        scaled: scales that the activations were multiplied by, None where branches with different ones meet.
        outputs: the parameter's other dimensions, in the product's order.
    """

    key: str
    slots: tuple[Slot, ...]
    dims: tuple[Layout, ...]
    window: tuple[int, ...] = ()
    inputs: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    batch: tuple[Layout, ...] = ()
    layers: tuple[str, ...] = ()
    bias: tuple[tuple[Slot, ...], int] = ((), 0)
    scaled: tuple[Slot, ...] | None = ()
    outputs: tuple[Layout, ...] = ()

    @property
    def leaves(self) -> tuple[str, ...]:
        """The parameters' names."""
        return tuple(dict.fromkeys(slot.leaf for slot in self.slots))


@dataclasses.dataclass(frozen=True)
class PairSite:
    """A place where activations meet activations; `sides` are the slots that produce each."""

    key: str
    dims: tuple[Layout, ...]
    batch: tuple[Layout, ...]
    sides: tuple[tuple[Slot, ...], tuple[Slot, ...]]


@dataclasses.dataclass(frozen=True)
class Structure:
    """All that is known of a network's axes, as plain data that transforms keep.

    Attributes:
        axes, refused: the tables.
        layouts: for each leaf how its dimensions are made of axes.
        sites, pairs: where axes are consumed, by key.
    """

    axes: Table
    refused: Table
    layouts: Mapping[str, tuple[Layout, ...]]
    sites: Mapping[str, Site]
    pairs: Mapping[str, PairSite]

    @property
    def matrix_axes(self) -> dict[str, MatrixAxes]:
        """For each weight which of its dimensions are inputs and outputs: a `matrix_axes=` for `jc.hashed` and the other forms."""
        found = {}
        for site in self.sites.values():
            for leaf, inputs in site.inputs.items():
                stacked = {*site.layers, *(key for layout in site.batch for key in layout.axes())}
                layouts = self.layouts[leaf]
                outputs = [
                    i
                    for i, layout in enumerate(layouts)
                    if i not in inputs and not set(layout.axes()) <= stacked
                ]
                with contextlib.suppress(
                    ValueError
                ):  # a stack that does not come first, or no outputs
                    found.setdefault(leaf, MatrixAxes(inputs, tuple(outputs)).resolve(len(layouts)))
        return found

    def check_names(self, leaves: Mapping[str, Any]) -> None:
        """Refuse leaves of another tree."""
        if leaves.keys() != self.layouts.keys():
            raise ValueError(
                f"these are not the traced parameters: {sorted(leaves.keys() ^ self.layouts.keys())} differ"
            )

    def chosen(self, pattern: str) -> list[Axis]:
        """The axes that a pattern matches, at least one."""
        if not (found := self.axes.matching(pattern)):
            keys = ", ".join(self.axes.keys()) or "none"
            why = "; ".join(
                f"{row.axis} is refused: {row.reason}" for row in self.refused.matching(pattern)[:3]
            )
            raise ValueError(
                f"axes={pattern!r} matches no hidden axis{f' ({why})' if why else ''}; there are: {keys}"
            )
        return found

    def sizes(
        self, shapes: Mapping[str, tuple[int, ...]], forced: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """The sizes of the axes in parameters of given shapes; only those that differ from the traced ones.

        In a product the trailing factor takes what the others leave, so heads are held; segments of one axis share alike.

        Raises:
            ValueError: for sizes that do not fit together, naming the leaf.
        """
        frozen = {row.axis: row.reason for row in self.refused}
        sizes: dict[str, int] = dict(forced or {})
        waiting: list[tuple[str, int, Layout, int]] = []
        full: dict[str, int] = {}
        for name, dims in self.layouts.items():
            shape = shapes[name]
            if len(shape) != len(dims):
                raise ValueError(
                    f"{name} has shape {shape}, traced with {len(dims)} dimensions: their number must stay"
                )
            for position, (layout, size) in enumerate(zip(dims, shape, strict=True)):
                full |= {part.key: part.size for part in layout.leaves()}
                if layout.size == 1 and size != 1:
                    raise ValueError(
                        f"{name} has shape {shape}: dimension {position} was traced with size one and cannot grow"
                    )
                if layout.split:
                    waiting.append((name, position, layout, size))
                elif layout.size > 1:
                    _settle(sizes, frozen, layout, size, name, position)
        for hold in (False, True):
            known = -1
            while known < len(sizes):  # what one leaf tells may settle another
                known = len(sizes)
                for name, position, layout, size in waiting:
                    _infer(sizes, frozen, layout, size, name, position, hold)
        for name, position, layout, size in waiting:
            if layout.resized(sizes).size != size:
                made = (
                    f"{', '.join(dict.fromkeys(layout.axes()))} make {layout.resized(sizes).size}"
                )
                raise ValueError(
                    f"{name} has size {size} in dimension {position}, but its axes {made}: give sizes with net.resized"
                )
        return {key: size for key, size in sizes.items() if size != full.get(key)}


def _settle(
    sizes: dict[str, int],
    frozen: Mapping[str, str],
    axis: Layout,
    size: int,
    name: str,
    position: int,
) -> None:
    """Note an axis's size, which must be the same everywhere."""
    if axis.key in frozen and size != axis.size:
        why = f"traced with {axis.size}; that axis is not hidden: {frozen[axis.key]}"
        raise ValueError(f"{name} has size {size} in dimension {position}, {why}")
    if sizes.setdefault(axis.key, size) != size:
        other = f"its axis {axis.key} has {sizes[axis.key]} elsewhere"
        raise ValueError(f"{name} has size {size} in dimension {position}, but {other}")


def _infer(
    sizes: dict[str, int],
    frozen: Mapping[str, str],
    layout: Layout,
    size: int,
    name: str,
    position: int,
    hold: bool,
) -> None:
    """Solve a product or a concatenation for what is not known yet."""
    if not layout.split:
        _settle(sizes, frozen, layout, size, name, position)
        return
    open_parts = [
        part
        for part in layout.parts
        if any(key not in sizes and key not in frozen for key in part.axes())
    ]
    known = [part.resized(sizes).size for part in layout.parts if part not in open_parts]
    if not open_parts or (len(set(open_parts)) > 1 and not hold):
        return
    if layout.split == "product":
        *held, last = open_parts  # leading factors are held at their full sizes
        rest = math.prod([*known, *(part.resized(sizes).size for part in held)])
        if size % rest:
            raise ValueError(
                f"{name} has size {size} in dimension {position}, no multiple of {rest}: give sizes with net.resized"
            )
        _infer(sizes, frozen, last, size // rest, name, position, hold)
    elif len(set(open_parts)) == 1:
        rest = size - sum(known)
        if rest % len(open_parts):
            raise ValueError(
                f"{name} has size {size} in dimension {position}: {len(open_parts)} equal segments do not divide it"
            )
        _infer(sizes, frozen, open_parts[0], rest // len(open_parts), name, position, hold)


AXES = ("axis", "size", "kind", "producers", "consumers", "per channel", "fibres")
REFUSED = ("axis", "size", "primitive", "reason", "where")
USES = ("leaf", "how", "primitive", "where")
