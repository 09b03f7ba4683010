"""The hidden axes of a network as plain data: tables, contractions, the layout of each parameter.

`Structure` is all that transforms keep of a network. It holds keys, sizes and slots only, no arrays
and no functions, so a transform made from a network stays small, comparable and printable.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping

from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.checkpoint.records import record
from jaxcompress.networks.layout import Layout, axis_sizes
from jaxcompress.networks.sizes import solve_sizes
from jaxcompress.programs.program import Slot
from jaxcompress.tables import Table

# classes of lower rooms that a structure consists of
record(Slot)
record(Table)


@record
@dataclasses.dataclass(frozen=True)
class Axis:
    """A hidden axis: parameters produce and consume it, inputs and outputs do not have it.

    Attributes:
        key: its first producer, leaf and dimension: "layers_0/kernel:1".
        size: the number of channels.
        kind: the strongest of its marks, or "linear". From the most permissive to the most
            restrictive: "linear" (any invertible map), "diagonal" (a per-channel scale lies on it),
            "elementwise" (a nonlinear function of single channels), "rms" (a root-mean-square
            norm), "normalised" (a sum over the channels, as in layer norm).
        marks: all operations that lie on it, in the words of `kind`, the strongest first.
        pair: whether two activations are contracted over it, such as queries and keys.
        producers: slots whose contractions produce it; a map is applied to them.
        consumers: slots whose contractions consume it; the map's inverse is applied to them.
        parameters: slots of per-channel parameters: biases, scales, statistics.
        scales: the per-channel parameters that multiply.
        others: slots used otherwise than by contraction; a consumer may be among them.
        fibres: axes along which a map may differ, such as heads or layers.
        averaged: whether a sum over it is divided by its size, as in a mean.
        nonlinear: slots whose parameters pass a nonlinear function before they are contracted.
        foldable: whether its scales can be folded into consumers: every scale follows the norms
            over the axis, and these are of one kind.
        centred: whether sums over it serve to subtract its mean alone, as in layer norm.
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
    nonlinear: tuple[Slot, ...] = ()
    foldable: bool = True
    centred: bool = False

    @property
    def tied(self) -> tuple[Slot, ...]:
        """Consumers that are used otherwise as well, such as a tied embedding."""
        return tuple(slot for slot in self.consumers if slot in self.producers + self.others)

    def _cells(self) -> tuple[str, ...]:
        kind = f"{self.kind}, pair" if self.pair else self.kind
        groups = (self.producers, self.consumers, self.parameters, self.fibres)
        return (self.key, str(self.size), kind, *(", ".join(map(str, slots)) for slots in groups))


@record
@dataclasses.dataclass(frozen=True)
class Refused:
    """An axis of a parameter that is not hidden, or that no map may change.

    Attributes:
        axis: its key.
        size: the number of positions.
        primitive: the JAX primitive that fixes it; "" where none does.
        reason: why, in a sentence.
        where: file, line and function in the source, where they are known.
    """

    axis: str
    size: int
    primitive: str
    reason: str
    where: str = ""

    def _cells(self) -> tuple[str, ...]:
        return (self.axis, str(self.size), self.primitive, self.reason, self.where)


@record
@dataclasses.dataclass(frozen=True)
class Use:
    """How a network's program uses one compact array.

    Attributes:
        leaf: the parameter's name.
        how: "contracted" or "looked up" (the form's own fast product), or "materialised" (slow).
        primitive: the JAX primitive that uses it.
        where: file, line and function in the source, where they are known.
    """

    leaf: str
    how: str
    primitive: str
    where: str = ""

    def _cells(self) -> tuple[str, ...]:
        return (self.leaf, self.how, self.primitive, self.where)


@record
@dataclasses.dataclass(frozen=True)
class Site:
    """A contraction of activations with a parameter.

    Attributes:
        key: the parameter and a running number.
        slots: the parameter's contracted slots.
        dims: the contracted dimensions in the parameter's order, with those of a convolution's
            window.
        window: which of `dims` are a window.
        inputs: for each leaf its own dimensions that `dims` are, in their order.
        batch: dimensions that activations and parameter share; a convolution's groups.
        layers: axes of loops that run over layers of the parameter.
        bias: slots of a bias that is added to the product, and its sign (-1 for a mean that is
            subtracted); 0 without one.
        scaled: scales that multiplied the activations after a norm; None where they follow no norm
            or branches with different ones join.
        shifted: parameters that were added to the activations after these scales.
        normed: whether a norm over the contracted axis comes before these.
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
    shifted: tuple[Slot, ...] = ()
    normed: bool = False
    outputs: tuple[Layout, ...] = ()

    @property
    def leaves(self) -> tuple[str, ...]:
        """The parameters' names."""
        return tuple(dict.fromkeys(slot.leaf for slot in self.slots))

    @property
    def shared(self) -> set[str]:
        """Axes that stack the parameter: each of their positions has a matrix of its own."""
        return {*self.layers, *axis_sizes(self.batch)}


@record
@dataclasses.dataclass(frozen=True)
class PairSite:
    """A contraction of activations with activations.

    Attributes:
        key: "pair" and a running number.
        dims: the contracted dimensions.
        batch: dimensions that both sides share.
        sides: the slots that produce each side.
    """

    key: str
    dims: tuple[Layout, ...]
    batch: tuple[Layout, ...]
    sides: tuple[tuple[Slot, ...], tuple[Slot, ...]]


@record
@dataclasses.dataclass(frozen=True)
class Structure:
    """The axes of a network as plain data, which transforms keep.

    Attributes:
        axes: the hidden axes, a table of `Axis` rows.
        refused: the other axes of parameters, a table of `Refused` rows.
        layouts: for each leaf the layouts of its dimensions.
        sites: the contractions with parameters, by key.
        pairs: the contractions of activations with each other, by key.
    """

    axes: Table[Axis]
    refused: Table[Refused]
    layouts: Mapping[str, tuple[Layout, ...]]
    sites: Mapping[str, Site]
    pairs: Mapping[str, PairSite]

    @functools.cached_property
    def full_sizes(self) -> dict[str, int]:
        """The traced size of every axis that a parameter has, hidden or not, by key."""
        sizes: dict[str, int] = {}
        for layouts in self.layouts.values():
            sizes |= axis_sizes(layouts)
        return sizes

    @property
    def matrix_axes(self) -> dict[str, MatrixAxes]:
        """The input and output dimensions of each weight, for `matrix_axes=` of `jc.hashed`."""
        roles: dict[str, MatrixAxes] = {}
        for site in self.sites.values():
            for leaf, inputs in site.inputs.items():
                axes = self._matrix_axes(leaf, inputs, site.shared)
                if axes is not None:
                    roles.setdefault(leaf, axes)
        return roles

    def _matrix_axes(
        self, leaf: str, inputs: tuple[int, ...], stacked: set[str]
    ) -> MatrixAxes | None:
        """The roles of one leaf's dimensions, or None where `MatrixAxes` cannot express them."""
        layouts = self.layouts[leaf]
        free = [index for index in range(len(layouts)) if index not in inputs]
        outputs = tuple(index for index in free if not set(layouts[index].axes()) <= stacked)
        try:
            return MatrixAxes(inputs, outputs).resolve(len(layouts))
        except ValueError:  # a stack that does not come first, or no outputs
            return None

    def check_names(self, names: Collection[str]) -> None:
        """Refuse the leaves of another tree.

        Raises:
            ValueError: for names that differ from the traced ones, listing them.
        """
        if set(names) != self.layouts.keys():
            different = sorted(set(names) ^ self.layouts.keys())
            raise ValueError(f"these are not the traced parameters: {different} differ")

    def chosen(self, pattern: str) -> list[Axis]:
        """The axes that a pattern matches, at least one.

        Args:
            pattern: a path pattern of axis keys, as in `axes=` of `jc.rotate_and_prune`.

        Raises:
            ValueError: for a pattern that matches none, with the refusals it does match.
        """
        axes = self.axes.matching(pattern)
        if axes:
            return axes
        refused = self.refused.matching(pattern)[:3]
        why = "; ".join(f"{row.axis} is refused: {row.reason}" for row in refused)
        raise ValueError(
            f"axes={pattern!r} matches no hidden axis{f' ({why})' if why else ''}; "
            f"there are: {', '.join(self.axes.keys()) or 'none'}"
        )

    def sizes(
        self, shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """The sizes of the axes at given shapes, where they differ from the traced ones.

        In a product the trailing factor is solved for, so the number of heads is held; segments of
        one axis have equal lengths.

        Args:
            shapes: the shape of every leaf, by name.
            given: sizes by axis that the shapes leave open.

        Raises:
            ValueError: for sizes that contradict each other, naming the leaf.
        """
        fixed = {row.axis: row.reason for row in self.refused}
        sizes = solve_sizes(self.layouts, shapes, fixed, given or {})
        return {key: size for key, size in sizes.items() if size != self.full_sizes.get(key)}


AXES = ("axis", "size", "kind", "producers", "consumers", "per channel", "fibres")
REFUSED = ("axis", "size", "primitive", "reason", "where")
USES = ("leaf", "how", "primitive", "where")
