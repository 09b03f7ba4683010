"""Rules of pieces: dimensions are put side by side, stacked, cut apart and padded."""

from __future__ import annotations

from typing import Any

from jaxcompress.programs.algebra import Dim, Kind, Misaligned, concat, cut, mark, place_of
from jaxcompress.programs.arithmetic import agreed
from jaxcompress.programs.program import Slot, Step
from jaxcompress.programs.reshaping import carry_over
from jaxcompress.programs.rules import (
    Analysis,
    Replay,
    bind_with,
    copy_facts,
    is_zero,
    merge_facts,
    register,
)


def side_by_side(step: Step, analysis: Analysis, index: int, position: int) -> None:
    """A dimension that several values share, at one position of theirs and another of the output."""
    (out,) = step.outputs
    analysis.joined(step.inputs, position, step.inputs[0].dims[position])
    out.dims[index] = step.inputs[0].dims[position]
    for value in step.inputs[1:]:
        analysis.unify(step, out.dims[index], value.dims[position])
    out.slots[index] = slots_of(step, position)
    out.scaled[index] = agreed([value.scaled[position] for value in step.inputs])
    out.constant[index] = all(value.constant[position] for value in step.inputs)


def slots_of(step: Step, position: int) -> frozenset[Slot]:
    (out,) = step.outputs
    return frozenset().union(
        *(value.slots[position] for value in step.inputs if value.data or not out.data)
    )


def assembled(step: Step, analysis: Analysis) -> None:
    """The facts of a value that is made of several."""
    merge_facts(step)
    (out,) = step.outputs
    if all(value.from_params for value in step.inputs):
        out.direct = all(value.direct for value in step.inputs)
        out.bent = any(value.bent for value in step.inputs)
        out.shared = any(value.shared or analysis.uses[id(value)] > 1 for value in step.inputs)


@register("concatenate")
def concatenate(step: Step, analysis: Analysis) -> None:
    assembled(step, analysis)
    (out,) = step.outputs
    for index, size in enumerate(out.shape):
        if index != step.params["dimension"]:
            side_by_side(step, analysis, index, index)
            continue
        out.slots[index] = slots_of(step, index)
        out.scaled[index] = agreed([value.scaled[index] for value in step.inputs])
        pieces = []
        for value in step.inputs:
            dim = value.dims[index]
            if dim is None:
                dim = Dim(1)
                mark(dim, Kind.OPAQUE, analysis.reason(step, "it is one position beside others"))
            pieces.append(dim)
        out.dims[index] = concat(pieces) if size > 1 else None


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
    merge_facts(step)
    source = step.inputs[0]
    axis = step.params["axis"] % len(source.shape)
    analysis.freeze(step, source.dims[axis], "its positions are taken apart")
    for out in step.outputs:
        out.direct, out.bent, out.shared = source.direct, source.bent, True
        for index, position in enumerate(
            position for position in range(len(source.shape)) if position != axis
        ):
            copy_facts(out, index, source, position)


def replay_slice(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    params, source = step.params, step.inputs[0]
    starts = [
        place_of(dim, place, replay.sizes)
        for dim, place in zip(source.dims, params["start_indices"], strict=True)
    ]
    limits = [
        place_of(dim, place, replay.sizes)
        for dim, place in zip(source.dims, params["limit_indices"], strict=True)
    ]
    return bind_with(
        step, operands, replay, start_indices=tuple(starts), limit_indices=tuple(limits)
    )


@register("slice", replay=replay_slice)
def slice_(step: Step, analysis: Analysis) -> None:
    source, out = carry_over(step, analysis)
    strides = step.params["strides"] or (1,) * len(source.shape)
    whole = True
    for index, (start, limit, stride) in enumerate(
        zip(step.params["start_indices"], step.params["limit_indices"], strides, strict=True)
    ):
        dim, size = source.dims[index], source.shape[index]
        copy_facts(out, index, source, index)
        if (start, limit, stride) == (0, size, 1) or dim is None:
            continue
        whole = False
        out.dims[index] = segment(step, analysis, dim, start, limit) if stride == 1 else None
        if stride != 1:
            analysis.freeze(step, dim, f"every {stride}th of its positions is taken")
            out.dims[index] = analysis.fresh(out.shape[index])
            analysis.freeze(
                step, out.dims[index], f"it is every {stride}th position of another axis"
            )
    if not whole:
        out.summed, out.sites, out.direct = (), frozenset(), False


def segment(step: Step, analysis: Analysis, dim: Dim, start: int, limit: int) -> Dim | None:
    """Part of a dimension, from start up to limit."""
    try:
        pieces = cut(dim, [start, limit])
        return pieces[1 if start else 0] if limit - start > 1 else None
    except Misaligned as problem:
        sentence = f"positions {start} to {limit} are cut out across its parts: {problem}"
        analysis.freeze(step, dim, sentence)
        fresh = analysis.fresh(limit - start)
        analysis.freeze(step, fresh, sentence)
        return fresh


def replay_split(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    axis = step.params["axis"]
    return bind_with(
        step, operands, replay, sizes=tuple(replay.shape(value)[axis] for value in step.outputs)
    )


@register("split", replay=replay_split)
def split(step: Step, analysis: Analysis) -> None:
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


def replay_pad(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    config = list(step.params["padding_config"])
    for index, (low, high) in (step.note or {}).items():
        config[index] = (replay.size(low) if low else 0, replay.size(high) if high else 0, 0)
    return bind_with(step, operands, replay, padding_config=tuple(config))


@register("pad", replay=replay_pad)
def pad(step: Step, analysis: Analysis) -> None:
    """Padding puts fresh axes beside the old one."""
    source, out = carry_over(step, analysis)
    out.summed, out.sites, out.literal = (), frozenset(), None
    step.note = {}
    for index, (low, high, interior) in enumerate(step.params["padding_config"]):
        if (low, high, interior) == (0, 0, 0):
            copy_facts(out, index, source, index)
            if not is_zero(step.inputs[1]):
                mark(out.dims[index], Kind.ELEMENTWISE)
            continue
        dim = source.dims[index]
        if interior or low < 0 or high < 0 or dim is None or not is_zero(step.inputs[1]):
            analysis.freeze(
                step, dim, "it is padded between its positions, or by something other than zeros"
            )
            out.dims[index] = analysis.fresh(out.shape[index])
            analysis.freeze(
                step,
                out.dims[index],
                "it is padded between its positions, or by something other than zeros",
            )
            continue
        before, after = (Dim(low) if low else None), (Dim(high) if high else None)
        out.dims[index] = concat([part for part in (before, dim, after) if part is not None])
        out.slots[index] = source.slots[index]
        step.note[index] = (before, after)
