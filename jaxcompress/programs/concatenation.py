"""Rules of concatenation: dimensions are put side by side, stacked, sliced, split and padded.

Values side by side make a dimension of several segments, each an axis of its own; a slice cuts one
again.
"""

from __future__ import annotations

from jaxcompress.programs.algebra import (
    Dim,
    Kind,
    Misaligned,
    concat,
    cut,
    mark,
    place_of,
    several,
)
from jaxcompress.programs.compat import Inconclusive
from jaxcompress.programs.facts import (
    agreed,
    copy_facts,
    forget_origin,
    is_zero,
    merge_facts,
)
from jaxcompress.programs.program import Operand, Slot, Step
from jaxcompress.programs.reshaping import carry_over
from jaxcompress.programs.rules import Analysis, Replay, bind_with, register


def side_by_side(step: Step, analysis: Analysis, index: int, position: int) -> None:
    """Unify a dimension that all operands have: `position` of theirs, `index` of the output."""
    (out,) = step.outputs
    analysis.joined(step.inputs, position, step.inputs[0].dims[position])
    out.dims[index] = step.inputs[0].dims[position]
    for value in step.inputs[1:]:
        analysis.unify(step, out.dims[index], value.dims[position])
    out.slots[index] = slots_of(step, position)
    out.scaled[index] = agreed([value.scaled[position] for value in step.inputs])
    out.constant[index] = all(value.constant[position] for value in step.inputs)


def slots_of(step: Step, position: int) -> frozenset[Slot]:
    """The slots of a dimension made of the operands': those of data, where the output is data."""
    (out,) = step.outputs
    values = [value for value in step.inputs if value.data or not out.data]
    return frozenset().union(*(value.slots[position] for value in values))


def assembled(step: Step, analysis: Analysis) -> None:
    """The facts of an output that holds all operands."""
    merge_facts(step)
    (out,) = step.outputs
    if all(value.from_params for value in step.inputs):
        out.direct = all(value.direct for value in step.inputs)
        out.bent = any(value.bent for value in step.inputs)
        out.shared = any(value.shared or analysis.uses[id(value)] > 1 for value in step.inputs)


@register("concatenate")
def concatenate(step: Step, analysis: Analysis) -> None:
    """One dimension is the operands' side by side; the others are shared."""
    assembled(step, analysis)
    (out,) = step.outputs
    for index, size in enumerate(out.shape):
        if index != step.params["dimension"]:
            side_by_side(step, analysis, index, index)
            continue
        out.slots[index] = slots_of(step, index)
        out.scaled[index] = agreed([value.scaled[index] for value in step.inputs])
        segments = [segment_of(step, analysis, value.dims[index]) for value in step.inputs]
        out.dims[index] = concat(segments) if several(size) else None


def segment_of(step: Step, analysis: Analysis, dim: Dim | None) -> Dim:
    """A dimension as a segment: one of size one becomes an opaque axis."""
    if dim is None:
        dim = Dim(1)
        mark(dim, Kind.OPAQUE, analysis.reason(step, "it is one position beside others"))
    return dim


@register("stack")
def stack(step: Step, analysis: Analysis) -> None:
    """A new dimension numbers the operands; the others are shared."""
    assembled(step, analysis)
    (out,) = step.outputs
    axis = step.params["axis"] % len(out.shape)
    for position, index in enumerate(index for index in range(len(out.shape)) if index != axis):
        side_by_side(step, analysis, index, position)
    out.dims[axis] = analysis.fresh(out.shape[axis])
    analysis.freeze(step, out.dims[axis], "it numbers values that are stacked")


@register("unstack")
def unstack(step: Step, analysis: Analysis) -> None:
    """A dimension's positions become outputs of their own; the others pass."""
    merge_facts(step)
    source = step.inputs[0]
    axis = step.params["axis"] % len(source.shape)
    analysis.freeze(step, source.dims[axis], "its positions are taken apart")
    positions = [position for position in range(len(source.shape)) if position != axis]
    for out in step.outputs:
        out.direct, out.bent, out.shared = source.direct, source.bent, True
        for index, position in enumerate(positions):
            copy_facts(out, index, source, position)


def replay_slice(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Cut at the places that the boundaries of segments have at present."""
    present = {
        name: tuple(
            place_of(dim, place, replay.sizes)
            for dim, place in zip(step.inputs[0].dims, step.params[name], strict=True)
        )
        for name in ("start_indices", "limit_indices")
    }
    return bind_with(step, operands, replay, **present)


@register("slice", replay=replay_slice)
def slice_(step: Step, analysis: Analysis) -> None:
    """Segments of dimensions; a stride leaves no axis."""
    source, out = carry_over(step, analysis)
    params = step.params
    strides = params["strides"] or (1,) * len(source.shape)
    ranges = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for index, (start, limit, stride) in enumerate(ranges):
        dim = source.dims[index]
        copy_facts(out, index, source, index)
        if dim is None or (start, limit, stride) == (0, source.shape[index], 1):
            continue
        forget_origin(out)
        if stride == 1:
            out.dims[index] = segment(step, analysis, dim, start, limit)
            continue
        out.dims[index] = analysis.fresh(out.shape[index])
        analysis.freeze(step, dim, f"one position in {stride} is taken")
        analysis.freeze(step, out.dims[index], f"it is one position in {stride} of another axis")


def segment(step: Step, analysis: Analysis, dim: Dim, start: int, limit: int) -> Dim | None:
    """Part of a dimension, from start up to limit."""
    try:
        pieces = cut(dim, [start, limit])
        return pieces[1 if start else 0] if several(limit - start) else None
    except (Misaligned, Inconclusive) as problem:
        sentence = f"positions {start} to {limit} are cut out across its parts: {problem}"
        analysis.freeze(step, dim, sentence)
        fresh = analysis.fresh(limit - start)
        analysis.freeze(step, fresh, sentence)
        return fresh


def replay_split(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Split into the present sizes of the segments."""
    axis = step.params["axis"]
    sizes = tuple(replay.shape(value)[axis] for value in step.outputs)
    return bind_with(step, operands, replay, sizes=sizes)


@register("split", replay=replay_split)
def split(step: Step, analysis: Analysis) -> None:
    """Every output is a segment of one dimension; the others pass."""
    merge_facts(step)
    source, axis = step.inputs[0], step.params["axis"]
    start = 0
    for out, size in zip(step.outputs, step.params["sizes"], strict=True):
        out.direct, out.bent, out.shared = source.direct, source.bent, True
        for index in range(len(source.shape)):
            copy_facts(out, index, source, index)
        dim = source.dims[axis]
        if dim is not None:
            out.dims[axis] = segment(step, analysis, dim, start, start + size)
        start += size


def replay_pad(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Pad by the present sizes of the axes beside the old one."""
    config = list(step.params["padding_config"])
    for index, (low, high) in (step.note or {}).items():
        config[index] = (replay.size(low) if low else 0, replay.size(high) if high else 0, 0)
    return bind_with(step, operands, replay, padding_config=tuple(config))


@register("pad", replay=replay_pad)
def pad(step: Step, analysis: Analysis) -> None:
    """Zeros beside a dimension are segments of their own; any other padding is opaque."""
    source, out = carry_over(step, analysis)
    out.summed, out.sites, out.literal = (), frozenset(), None
    step.note = {}
    zeros = is_zero(step.inputs[1])
    why = "it is padded between its positions, or by something other than zeros"
    for index, (low, high, interior) in enumerate(step.params["padding_config"]):
        if (low, high, interior) == (0, 0, 0):
            copy_facts(out, index, source, index)
            if not zeros:
                mark(out.dims[index], Kind.ELEMENTWISE)
            continue
        dim = source.dims[index]
        if interior or min(low, high) < 0 or dim is None or not zeros:
            out.dims[index] = analysis.fresh(out.shape[index])
            analysis.freeze(step, dim, why)
            analysis.freeze(step, out.dims[index], why)
            continue
        before, after = (Dim(low) if low else None), (Dim(high) if high else None)
        out.dims[index] = concat([part for part in (before, dim, after) if part is not None])
        out.slots[index] = source.slots[index]
        step.note[index] = (before, after)
