"""An analysis as plain data: hidden axes, refusals with their reasons, layouts and contractions.

An axis is hidden if no operation makes it opaque and parameters both produce and consume it. Its
fibres are the axes that all its positions lie along in every value that has it, so a map may differ
along them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from jaxcompress.networks.axes import AXES, REFUSED, Axis, PairSite, Refused, Site, Structure
from jaxcompress.networks.layout import Layout
from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import Dim, Kind, Reason, atoms, find
from jaxcompress.programs.program import MIXED, PLAIN, Slot, Value
from jaxcompress.programs.rules import Contraction, Pair
from jaxcompress.tables import Table


def describe(traced: TracedProgram) -> Structure:
    """The axes of an analysed program as plain data: each is a hidden axis or a refusal."""
    layouts = {
        leaf: tuple(
            layout_of(dim, traced.names) if dim is not None else Layout(size=size)
            for dim, size in zip(value.dims, value.shape, strict=True)
        )
        for leaf, value in traced.leaves.items()
    }
    slots, fibres = slots_by_axis(layouts), companions(traced)
    hidden, refused = [], []
    for atom, key in traced.names.items():
        refusal = refusal_of(traced, atom, slots[key])
        if refusal is None:
            hidden.append(axis_of(traced, atom, slots[key], fibres[atom]))
        else:
            refused.append(refusal)
    order = {key: index for index, key in enumerate(slots)}
    hidden.sort(key=lambda axis: order[axis.key])
    analysis = traced.analysis
    return Structure(
        axes=Table(tuple(hidden), AXES, "no hidden axis"),
        refused=Table(tuple(refused), REFUSED, "nothing refused"),
        layouts=layouts,
        sites={key: site_of(traced, product) for key, product in analysis.contractions.items()},
        pairs={key: pair_site_of(traced, pair) for key, pair in analysis.pairs.items()},
    )


def layout_of(dim: Dim | None, names: dict[Dim, str]) -> Layout:
    """A dimension in terms of named axes."""
    if dim is None:
        return Layout()
    root = find(dim)
    if root.split is None:
        return Layout(names.get(root, ""), root.size)
    return Layout("", root.size, root.split, tuple(layout_of(part, names) for part in root.parts))


def slots_by_axis(layouts: dict[str, tuple[Layout, ...]]) -> dict[str, list[Slot]]:
    """The parameter slots of every axis, in the order of the leaves."""
    slots: dict[str, list[Slot]] = {}
    for leaf, dims in layouts.items():
        for position, layout in enumerate(dims):
            for key in dict.fromkeys(layout.axes()) if layout.size > 1 else ():
                slots.setdefault(key, []).append(Slot(leaf, position))
    return slots


# --- axes ----------------------------------------------------------------------------------------


SHIFTS = ("shift", "offset", "scale", "indirect scale")


def refusal_of(traced: TracedProgram, atom: Dim, slots: list[Slot]) -> Refused | None:
    """Why an axis is not hidden, or None if it is."""
    key = traced.names[atom]
    if atom.kind & Kind.OPAQUE:
        reasons = atom.reasons or [Reason("?", "it is opaque")]
        inside = (reason for reason in reasons if reason.primitive not in ("input", "output"))
        reason = next(inside, reasons[0])  # an operation tells more than the inputs and outputs do
        return Refused(key, atom.size, reason.primitive, reason.sentence, reason.where)
    why = unused(traced, atom, slots)
    return Refused(key, atom.size, "", why) if why else None


def unused(traced: TracedProgram, atom: Dim, slots: list[Slot]) -> str | None:
    """Why parameters do not both produce and consume an axis, or None if they do."""
    if not any(traced.analysis.uses[id(traced.leaves[slot.leaf])] for slot in slots):
        return "the function does not use it"
    produced = with_roles(traced, slots, "produce")
    if not produced and not with_roles(traced, slots, "consume"):
        return "no contraction produces or consumes it"
    if not produced and not with_roles(traced, slots, *SHIFTS):
        return "nothing produces it"
    return "it has one position" if atom.size == 1 else None


def with_roles(traced: TracedProgram, slots: Iterable[Slot], *roles: str) -> tuple[Slot, ...]:
    """The slots that have one of some roles."""
    known = traced.analysis.roles
    return tuple(slot for slot in slots if not known.get(slot, set()).isdisjoint(roles))


def axis_of(traced: TracedProgram, atom: Dim, slots: list[Slot], fibres: tuple[str, ...]) -> Axis:
    """A hidden axis as plain data."""
    analysis = traced.analysis
    producers, consumers = (with_roles(traced, slots, role) for role in ("produce", "consume"))
    kinds = sorted(Kind, reverse=True)
    return Axis(
        key=traced.names[atom],
        size=atom.size,
        kind=atom.kind.label,
        marks=tuple(kind.label for kind in kinds if kind & atom.kind),
        pair=atom.pair,
        producers=producers,
        consumers=consumers,
        parameters=tuple(slot for slot in slots if slot not in producers + consumers),
        scales=with_roles(traced, slots, "scale", "indirect scale", "batch"),
        others=with_roles(traced, slots, *SHIFTS, "batch", "look-up"),
        fibres=fibres,
        averaged=atom in atoms_of(analysis.averaged),
        nonlinear=tuple(slot for slot in slots if slot in analysis.bent),
        foldable=foldable(traced, atom, slots),
        centred=centred(traced, atom),
    )


def foldable(traced: TracedProgram, atom: Dim, slots: list[Slot]) -> bool:
    """Whether the scales on an axis follow its norms, all means of squares or all sums."""
    analysis = traced.analysis
    means = sum(atom in atoms_of(dims) for dims in analysis.averaged_squares)
    sums = sum(atom in atoms_of(dims) for dims in analysis.squared)
    offsets = with_roles(traced, slots, "offset")
    alone = all(analysis.roles[slot] == {"offset"} for slot in offsets)
    return alone and atom not in atoms_of(analysis.unfoldable) and means in (0, sums)


def centred(traced: TracedProgram, atom: Dim) -> bool:
    """Whether sums over an axis serve to centre it alone, as in layer norm."""
    totals = [total for total in traced.analysis.totals if atom in atoms_of(total.dims)]
    plain = not any(total.spoilt for total in totals)
    return bool(totals) and plain and atom not in atoms_of(traced.analysis.uncentred)


def atoms_of(dims: Iterable[Dim | None]) -> set[Dim]:
    """The atoms of several dimensions."""
    return set().union(*(atoms(dim) for dim in dims if dim is not None))


# --- contractions --------------------------------------------------------------------------------


def site_of(traced: TracedProgram, contraction: Contraction) -> Site:
    """A contraction of activations with a parameter as plain data."""
    analysis, names = traced.analysis, traced.names
    bias = analysis.biases.get(contraction.key)
    known_bias = (
        (tuple(sorted(slots_in(bias.value))), bias.sign) if bias and bias.alone else ((), 0)
    )
    scales = set().union(*(analysis.scales.get(slot, set()) for slot in contraction.consumed))
    scaling = next(iter(scales), PLAIN)
    known = len(scales) < 2 and MIXED not in scales and scaling.normed >= bool(scaling.scales)
    return Site(
        key=contraction.key,
        slots=tuple(sorted(contraction.consumed)),
        dims=tuple(layout_of(dim, names) for dim in contraction.dims),
        window=contraction.window,
        inputs=inputs_of(traced, contraction),
        batch=tuple(layout_of(dim, names) for _, dim in contraction.batch),
        layers=tuple(names.get(find(turns), "") for turns in contraction.layers),
        bias=known_bias,
        scaled=tuple(sorted(scaling.scales)) if known else None,
        shifted=tuple(sorted(scaling.shifts)),
        normed=known and scaling.normed,
        outputs=tuple(layout_of(dim, names) for dim in contraction.produced),
    )


def slots_in(value: Value) -> frozenset[Slot]:
    """The parameter slots that a value comes from."""
    return frozenset().union(*value.slots)


def pair_site_of(traced: TracedProgram, pair: Pair) -> PairSite:
    """A contraction of two activations as plain data."""
    left, right = pair.sides
    return PairSite(
        key=pair.key,
        dims=tuple(layout_of(dim, traced.names) for dim in pair.dims),
        batch=tuple(layout_of(dim, traced.names) for _, _, dim in pair.batch),
        sides=(tuple(sorted(left)), tuple(sorted(right))),
    )


def inputs_of(traced: TracedProgram, contraction: Contraction) -> dict[str, tuple[int, ...]]:
    """The contracted dimensions of each leaf in the contraction's order.

    A leaf is left out where its dimensions hold more than what is contracted.
    """
    contracted = math.prod(dim.size for dim in contraction.dims if dim is not None)
    inputs: dict[str, tuple[int, ...]] = {}
    for leaf in sorted({slot.leaf for slot in frozenset().union(*contraction.slots)}):
        order = dimensions_in(leaf, contraction.slots)
        shape = traced.leaves[leaf].shape
        if order is not None and math.prod(shape[index] for index in order) == contracted:
            inputs[leaf] = order
    return inputs


def dimensions_in(leaf: str, slots: tuple[frozenset[Slot], ...]) -> tuple[int, ...] | None:
    """The dimensions of a leaf in a list of slots, or None where an entry has not exactly one."""
    dimensions = [[slot.dimension for slot in group if slot.leaf == leaf] for group in slots]
    if any(len(group) != 1 for group in dimensions):
        return None
    return tuple(dict.fromkeys(group[0] for group in dimensions))


# --- fibres --------------------------------------------------------------------------------------


SEPARATE = frozenset(
    {"scan", "input", "output", "conv_general_dilated", "iota", "top_k", "argmax", "argmin"}
    | {f"reduce_{name}" for name in ("max", "min", "prod", "and", "or", "xor")}
)
"""Primitives that make an axis opaque and do not mix its positions, or that reduce the axis."""


def companions(traced: TracedProgram) -> dict[Dim, tuple[str, ...]]:
    """The fibres of every axis: the axes that all values which have it have as well."""
    common: dict[Dim, set[Dim]] = {}
    mixed = mixed_axes(traced)
    for loops, dims in traced.analysis.values:
        outside = atoms_of(loops)
        for dim in dims:
            others = [throughout(other) for other in dims if other is not None and other is not dim]
            everywhere = outside.union(*others)
            for atom, inside in beside(dim) if dim is not None else ():
                around = (everywhere | inside) - mixed
                if atom in traced.names:
                    common[atom] = common[atom] & around if atom in common else around
    return {
        atom: tuple(
            name
            for other, name in traced.names.items()
            if other is not atom and other in common.get(atom, ())
        )
        for atom in traced.names
    }


def mixed_axes(traced: TracedProgram) -> set[Dim]:
    """Axes whose positions are mixed or put in another order, so a map cannot differ along them."""
    mixed = {atom for atom in traced.names if mixes(atom.reasons)}
    for contracted, resulting in traced.analysis.mixed:
        mixed |= atoms_of(contracted) & atoms_of(resulting)
    return mixed


def mixes(reasons: Collection[Reason]) -> bool:
    """Whether one of the reasons that an axis is opaque mixes its positions."""
    return any(reason.primitive not in SEPARATE for reason in reasons)


def throughout(dim: Dim) -> set[Dim]:
    """The atoms that all positions lie along: of every factor, or common to all segments."""
    root = find(dim)
    if root.split is None:
        return {root}
    inside = [throughout(part) for part in root.parts]
    return set.union(*inside) if root.split == "product" else set.intersection(*inside)


def beside(dim: Dim) -> list[tuple[Dim, set[Dim]]]:
    """Every atom of a dimension, with the other atoms that its positions lie along there."""
    root = find(dim)
    if root.split is None:
        return [(root, set())]
    pairs = []
    for index, part in enumerate(root.parts):
        factors = root.parts if root.split == "product" else ()
        others = [throughout(other) for place, other in enumerate(factors) if place != index]
        pairs += [(atom, inside.union(*others)) for atom, inside in beside(part)]
    return pairs
