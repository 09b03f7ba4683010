"""Rules of layout: dimensions are permuted, split into factors, put together, cut and padded."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxcompress.networks.algebra import Dim, Kind, Misaligned, align, concat, cut, mark, place_of
from jaxcompress.networks.arithmetic import agreed, linear, pass_on
from jaxcompress.networks.program import Step, Value
from jaxcompress.networks.rules import Analysis, Replay, bind, bind_with, copy_facts, is_zero, merge_facts, register


def carry_over(step: Step, analysis: Analysis) -> tuple[Value, Value]:
    """The facts that every change of layout keeps; gives (operand, output)."""
    merge_facts(step)
    source, out = step.inputs[0], step.outputs[0]
    pass_on(analysis, source, out)
    return source, out


def replay_transpose(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    view = transposed(operands[0], step.params["permutation"]) if hasattr(operands[0], "materialize") else None
    return [view] if view is not None else bind(step, operands, replay)


def transposed(array: Any, order: tuple[int, ...]) -> Any:
    """A compact array with its dimensions in another order, or None when a stack dimension would move."""
    lead = array.ndim - array.axes.ndim
    if tuple(order[:lead]) != tuple(range(lead)):
        return None
    trailing = [source - array.ndim for source in order[lead:]]
    where = {source: index - array.axes.ndim for index, source in enumerate(trailing)}
    dims = array.shape[lead:]
    axes = dataclasses.replace(
        array.axes,
        inputs=tuple(where[axis] for axis in array.axes.inputs),
        outputs=tuple(where[axis] for axis in array.axes.outputs),
    )
    return dataclasses.replace(array, axes=axes, dims=tuple(dims[source] for source in trailing))


@register("transpose", replay=replay_transpose)
def transpose(step: Step, analysis: Analysis) -> None:
    source, out = carry_over(step, analysis)
    for index, position in enumerate(step.params["permutation"]):
        copy_facts(out, index, source, position)


def replay_squeeze(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    (operand,) = operands
    gone = [axis % operand.ndim for axis in step.params["dimensions"]]
    shape = tuple(size for index, size in enumerate(operand.shape) if index not in gone)
    view = reshaped(operand, shape) if hasattr(operand, "materialize") else None
    return [view] if view is not None else bind(step, operands, replay)


@register("squeeze", replay=replay_squeeze)
def squeeze(step: Step, analysis: Analysis) -> None:
    source, out = carry_over(step, analysis)
    gone = [axis % len(source.shape) for axis in step.params["dimensions"]]
    for index, position in enumerate(i for i in range(len(source.shape)) if i not in gone):
        copy_facts(out, index, source, position)


@register("expand_dims")
def expand_dims(step: Step, analysis: Analysis) -> None:
    source, out = carry_over(step, analysis)
    new = [axis % len(out.shape) for axis in step.params["dimensions"]]
    for position, index in enumerate(i for i in range(len(out.shape)) if i not in new):
        copy_facts(out, index, source, position)


def replay_broadcast(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    return bind_with(step, operands[:1], replay, shape=replay.shape(step.outputs[0]))


@register("broadcast_in_dim", replay=replay_broadcast)
def broadcast_in_dim(step: Step, analysis: Analysis) -> None:
    source, out = carry_over(step, analysis)
    mapped = {index: position for position, index in enumerate(step.params["broadcast_dimensions"])}
    for index, size in enumerate(out.shape):
        position = mapped.get(index)
        if position is not None and source.shape[position] == size:
            copy_facts(out, index, source, position)
        elif size > 1:
            out.dims[index], out.constant[index] = Dim(size), True


def replay_reshape(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    shape = replay.shape(step.outputs[0])
    view = reshaped(operands[0], shape) if hasattr(operands[0], "materialize") else None
    return [view] if view is not None else bind_with(step, operands, replay, new_sizes=shape)


def reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    """A compact array in another shape, or None when a group of dimensions mixes its inputs, outputs or stack."""
    lead = array.ndim - array.axes.ndim
    if tuple(shape[:lead]) != tuple(array.shape[:lead]):
        return None
    old, new = array.shape[lead:], shape[lead:]
    order = [axis % array.axes.ndim for axis in array.axes.inputs + array.axes.outputs]
    count = len(array.axes.inputs)
    targets: dict[int, list[int]] = {}
    for sources, results in groups(old, new):
        ranks = [order.index(source) for source in sources]
        if not sources or ranks != list(range(ranks[0], ranks[0] + len(ranks))) or (ranks[0] < count <= ranks[-1]):
            return None
        targets[ranks[0]] = results
    sides: tuple[list[int], list[int]] = ([], [])
    for rank in sorted(targets):
        sides[rank >= count].extend(index - len(new) for index in targets[rank])
    if not sides[0] or not sides[1]:
        return None
    axes = dataclasses.replace(array.axes, inputs=tuple(sides[0]), outputs=tuple(sides[1]))
    return dataclasses.replace(array, axes=axes, dims=tuple(new))


def groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Runs of old and new dimensions with equal products, as short as can be; sizes of one join the run before them."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [], []
        a = b = 1
        if i < len(old):
            left.append(i)
            a, i = old[i], i + 1
        if j < len(new):
            right.append(j)
            b, j = new[j], j + 1
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * old[i], i + 1
            else:
                right.append(j)
                b, j = b * new[j], j + 1
        while i < len(old) and old[i] == 1 and not (j < len(new) and new[j] == 1):
            left.append(i)
            i += 1
        while j < len(new) and new[j] == 1 and not (i < len(old) and old[i] == 1):
            right.append(j)
            j += 1
        found.append((left, right))
    return found


@register("reshape", replay=replay_reshape)
def reshape(step: Step, analysis: Analysis) -> None:
    """Dimensions are split into factors and put together, leading factors first."""
    source, out = carry_over(step, analysis)
    for left, right in groups(source.shape, out.shape):
        olds = [index for index in left if source.shape[index] > 1]
        news = [index for index in right if out.shape[index] > 1]
        if len(olds) == len(news) == 1:
            copy_facts(out, news[0], source, olds[0])
            continue
        slots = frozenset().union(*(source.slots[index] for index in olds))
        scaled = frozenset().union(*(source.scaled[index] for index in olds))
        dims = [source.dims[index] for index in olds]
        fresh = [Dim(out.shape[index]) for index in news]
        try:
            ours, theirs = align([dim for dim in dims if dim is not None], list(fresh))
            for one, other in zip(ours, theirs, strict=True):
                analysis.unify(step, one, other)
        except Misaligned as problem:
            for dim in (*dims, *fresh):
                analysis.freeze(step, dim, f"it is reshaped across its factors: {problem}")
        for index, dim in zip(news, fresh, strict=True):
            out.dims[index], out.slots[index], out.scaled[index] = dim, slots, scaled
            out.constant[index] = all(source.constant[old] for old in olds)


@register("concatenate")
def concatenate(step: Step, analysis: Analysis) -> None:
    merge_facts(step)
    (out,) = step.outputs
    axis = step.params["dimension"]
    for index, size in enumerate(out.shape):
        out.slots[index] = frozenset().union(*(value.slots[index] for value in step.inputs if value.data or not out.data))
        out.scaled[index] = agreed([value.scaled[index] for value in step.inputs])
        if index != axis:
            analysis.joined(step.inputs, index, step.inputs[0].dims[index])
        if index == axis:
            pieces = []
            for value in step.inputs:
                dim = value.dims[index]
                if dim is None:
                    dim = Dim(1)
                    mark(dim, Kind.OPAQUE, analysis.reason(step, "it is one position beside others"))
                pieces.append(dim)
            out.dims[index] = concat(pieces) if size > 1 else None
            continue
        out.dims[index] = step.inputs[0].dims[index]
        for value in step.inputs[1:]:
            analysis.unify(step, out.dims[index], value.dims[index])
        out.constant[index] = all(value.constant[index] for value in step.inputs)
    if all(value.from_params for value in step.inputs):
        out.direct = all(value.direct for value in step.inputs)
        out.bent = any(value.bent for value in step.inputs)
        out.shared = any(value.shared or analysis.uses[id(value)] > 1 for value in step.inputs)


def replay_slice(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    params, source = step.params, step.inputs[0]
    starts = [place_of(dim, place, replay.sizes) for dim, place in zip(source.dims, params["start_indices"], strict=True)]
    limits = [place_of(dim, place, replay.sizes) for dim, place in zip(source.dims, params["limit_indices"], strict=True)]
    return bind_with(step, operands, replay, start_indices=tuple(starts), limit_indices=tuple(limits))


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
            analysis.freeze(step, out.dims[index], f"it is every {stride}th position of another axis")
    if not whole:
        out.summed, out.sites = (), frozenset()


def segment(step: Step, analysis: Analysis, dim: Dim, start: int, limit: int) -> Dim | None:
    """Part of a dimension, from start up to limit."""
    try:
        pieces = cut(dim, [start, limit])
        return pieces[1 if start else 0] if limit - start > 1 else None
    except Misaligned as problem:
        sentence = f"positions {start} to {limit} are cut out across its factors: {problem}"
        analysis.freeze(step, dim, sentence)
        fresh = analysis.fresh(limit - start)
        analysis.freeze(step, fresh, sentence)
        return fresh


def replay_split(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    axis = step.params["axis"]
    return bind_with(step, operands, replay, sizes=tuple(replay.shape(value)[axis] for value in step.outputs))


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
            analysis.freeze(step, dim, "it is padded between its positions, or by something other than zeros")
            out.dims[index] = analysis.fresh(out.shape[index])
            analysis.freeze(step, out.dims[index], "it is padded between its positions, or by something other than zeros")
            continue
        before, after = (Dim(low) if low else None), (Dim(high) if high else None)
        out.dims[index] = concat([part for part in (before, dim, after) if part is not None])
        out.slots[index] = source.slots[index]
        step.note[index] = (before, after)


def replay_iota(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    return bind_with(step, operands, replay, shape=replay.shape(step.outputs[0]))


@register("iota", replay=replay_iota)
def iota(step: Step, analysis: Analysis) -> None:
    (out,) = step.outputs
    for index, size in enumerate(out.shape):
        out.dims[index] = analysis.fresh(size)
        if index == step.params["dimension"]:
            analysis.freeze(step, out.dims[index], "its positions are counted")
        else:
            out.constant[index] = True


@register("rev")
def reverse(step: Step, analysis: Analysis) -> None:
    linear(step, analysis)
    for index in step.params["dimensions"]:
        analysis.freeze(step, step.inputs[0].dims[index], "it is put in reverse order")
