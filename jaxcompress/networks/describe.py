"""What the analysis of a function found, as plain data: hidden axes, what is refused and why, layouts, places of contraction.

An axis is hidden where no mark makes it opaque and parameters both produce and consume it. Its fibres are the axes that every
position of it lies along in every value that holds it: a map may differ from one of their positions to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from jaxcompress.networks.axes import (
    AXES,
    REFUSED,
    Axis,
    Layout,
    PairSite,
    Refused,
    Site,
    Structure,
    Table,
)
from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import Dim, Kind, Reason, atoms, find
from jaxcompress.programs.arithmetic import MIXED
from jaxcompress.programs.program import Slot
from jaxcompress.programs.rules import Contraction


def layout_of(dim: Dim | None, names: dict[Dim, str]) -> Layout:
    """A dimension in terms of named axes."""
    if dim is None:
        return Layout()
    root = find(dim)
    if root.split is None:
        return Layout(names.get(root, ""), root.size)
    return Layout("", root.size, root.split, tuple(layout_of(part, names) for part in root.parts))


def describe(found: TracedProgram) -> Structure:
    """What was found, as plain data."""
    names, analysis = found.names, found.analysis
    layouts = {
        name: tuple(layout_of(dim, names) for dim in value.dims)
        for name, value in found.leaves.items()
    }
    fibres = companions(found)
    slots: dict[str, list[Slot]] = {}
    for name, dims in layouts.items():
        for position, layout in enumerate(dims):
            for key in dict.fromkeys(layout.axes()) if layout.size > 1 else ():
                slots.setdefault(key, []).append(Slot(name, position))
    averaged = {atom for dim in analysis.averaged for atom in atoms(dim)}
    hidden, refused = [], []
    for atom, key in names.items():
        if atom.kind & Kind.OPAQUE:
            reasons = atom.reasons or [Reason("?", "it is opaque")]
            hard = next((r for r in reasons if r.primitive not in ("input", "output")), reasons[0])
            refused.append(Refused(key, atom.size, hard.primitive, hard.sentence, hard.where))
            continue
        roles = {slot: analysis.roles.get(slot, set()) for slot in slots[key]}
        text = lambda *wanted, roles=roles: tuple(
            slot for slot, found in roles.items() if found & set(wanted)
        )
        producers, consumers = text("produce"), text("consume")
        shifted = text("shift", "scale", "indirect scale")
        why = "no contraction produces or consumes it" if not (producers or consumers) else None
        why = (
            why
            if any(analysis.uses[id(found.leaves[name])] for name, _ in slots[key])
            else "the function does not use it"
        )
        why = why or (
            "nothing produces it"
            if not (producers or shifted)
            else "it has one position"
            if atom.size == 1
            else None
        )
        if why:
            refused.append(Refused(key, atom.size, "", why))
            continue
        rest = tuple(slot for slot in roles if slot not in producers + consumers)
        marks = tuple(
            kind.label for kind in sorted(Kind, reverse=True) if kind and atom.kind & kind
        )
        scales = text("scale", "indirect scale", "batch")
        others = text("shift", "scale", "indirect scale", "batch", "look-up")
        bent = tuple(slot for slot in roles if slot in analysis.bent)
        of = lambda groups, atom=atom: sum(
            atom in found for dims in groups for found in [{a for d in dims for a in atoms(d)}]
        )
        means = of(analysis.averaged_squares)
        plain = not of([analysis.unfoldable]) and means in (0, of(analysis.squared))
        hidden.append(
            Axis(
                key=key,
                size=atom.size,
                kind=atom.kind.label,
                marks=marks,
                pair=atom.pair,
                producers=producers,
                consumers=consumers,
                parameters=rest,
                scales=scales,
                others=others,
                fibres=fibres[atom],
                averaged=atom in averaged,
                bent=bent,
                foldable=plain,
            )
        )
    order = {key: index for index, key in enumerate(slots)}
    hidden.sort(key=lambda axis: order[axis.key])
    return Structure(
        Table(tuple(hidden), AXES, "no hidden axis"),
        Table(tuple(refused), REFUSED, "nothing refused"),
        layouts,
        {key: site_of(found, contraction) for key, contraction in analysis.contractions.items()},
        {
            key: PairSite(
                key,
                tuple(layout_of(dim, names) for dim in pair.dims),
                tuple(layout_of(dim, names) for _, _, dim in pair.batch),
                (in_order(pair.sides[0]), in_order(pair.sides[1])),
            )
            for key, pair in analysis.pairs.items()
        },
    )


def site_of(found: TracedProgram, contraction: Contraction) -> Site:
    """A contraction as plain data."""
    bias, sign = found.analysis.biases.get(contraction.key, (frozenset(), 0))
    scales = set().union(*(found.analysis.scales.get(slot, set()) for slot in contraction.consumed))
    one = next(iter(scales), frozenset())
    return Site(
        contraction.key,
        in_order(contraction.consumed),
        tuple(layout_of(dim, found.names) for dim in contraction.dims),
        contraction.window,
        inputs_of(found, contraction),
        tuple(layout_of(dim, found.names) for _, dim in contraction.batch),
        tuple(found.names.get(find(turns), "") for turns in contraction.layers),
        (in_order(bias), sign),
        None if len(scales) > 1 or MIXED in one else in_order(one),
        tuple(layout_of(dim, found.names) for dim in contraction.produced),
    )


def inputs_of(found: TracedProgram, contraction: Contraction) -> dict[str, tuple[int, ...]]:
    """For each leaf its dimensions that are contracted, in the contraction's order; none where they hold other things too."""
    inputs: dict[str, tuple[int, ...]] = {}
    for leaf in {name for slots in contraction.slots for name, _ in slots}:
        places = [
            sorted(place for name, place in slots if name == leaf) for slots in contraction.slots
        ]
        if any(len(place) != 1 for place in places):
            continue
        order = tuple(dict.fromkeys(place[0] for place in places))
        shape = found.leaves[leaf].shape
        if math.prod(shape[place] for place in order) == math.prod(
            dim.size if dim else 1 for dim in contraction.dims
        ):
            inputs[leaf] = order
    return inputs


def in_order(slots: Iterable[Slot]) -> tuple[Slot, ...]:
    """A set of slots in an order that does not depend on hashing."""
    return tuple(sorted(slots))


APART = frozenset(
    {"scan", "input", "output", "conv_general_dilated", "iota", "top_k"}
    | {
        "reduce_max",
        "reduce_min",
        "reduce_prod",
        "reduce_and",
        "reduce_or",
        "reduce_xor",
        "argmax",
        "argmin",
    }
)
"""Primitives that an axis is opaque for, and yet what lies along it stays apart and in order, or loses the axis."""


def companions(found: TracedProgram) -> dict[Dim, tuple[str, ...]]:
    """For each axis the others that are present in every value that holds it."""
    common: dict[Dim, set[Dim]] = {}
    # positions along these are mixed or put in another order: what lies along them is not apart
    mixed = {
        atom
        for atom in found.names
        if any(reason.primitive not in APART for reason in atom.reasons)
    }
    for contracted, given in found.analysis.mixed:
        mixed |= {atom for dim in contracted for atom in atoms(dim)} & {
            atom for dim in given for atom in atoms(dim)
        }
    for ambient, dims in found.analysis.company:
        everywhere = [
            set().union(*(throughout(dim) for dim in dims if dim is not None and dim is not mine))
            for mine in dims
        ]
        turns = {atom for dim in ambient for atom in atoms(dim)}
        for dim, others in zip(dims, everywhere, strict=True):
            for atom, inside in beside(dim) if dim is not None else ():
                around = (others | inside | turns) - mixed
                if atom in found.names:
                    common[atom] = common[atom] & around if atom in common else around
    return {
        atom: tuple(
            found.names[other]
            for other in found.names
            if other is not atom and other in common.get(atom, ())
        )
        for atom in found.names
    }


def throughout(dim: Dim) -> set[Dim]:
    """The atoms that every position of a dimension lies along: all factors, and what all segments have in common."""
    root = find(dim)
    if root.split is None:
        return {root}
    inside = [throughout(part) for part in root.parts]
    return set.union(*inside) if root.split == "product" else set.intersection(*inside)


def beside(dim: Dim) -> list[tuple[Dim, set[Dim]]]:
    """For each atom in a dimension, once for each place, the other atoms that its positions lie along there."""
    root = find(dim)
    if root.split is None:
        return [(root, set())]
    found = []
    for index, part in enumerate(root.parts):
        others = [
            throughout(other)
            for place, other in enumerate(root.parts)
            if place != index and root.split == "product"
        ]
        found += [(atom, inside.union(*others)) for atom, inside in beside(part)]
    return found
