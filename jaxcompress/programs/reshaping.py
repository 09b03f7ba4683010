"""Rules of layout: dimensions are permuted, repeated, split into factors and put together as products."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxcompress.programs.algebra import Dim, Kind, Misaligned, align, mark, product
from jaxcompress.programs.arithmetic import linear, pass_on
from jaxcompress.programs.program import Step, Value
from jaxcompress.programs.rules import (
    Analysis,
    Replay,
    bind,
    bind_with,
    copy_facts,
    merge_facts,
    register,
)


def carry_over(step: Step, analysis: Analysis) -> tuple[Value, Value]:
    """The facts that every change of layout keeps; gives (operand, output)."""
    merge_facts(step)
    source, out = step.inputs[0], step.outputs[0]
    pass_on(analysis, source, out)
    return source, out


def replay_transpose(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    view = (
        transposed(operands[0], step.params["permutation"])
        if hasattr(operands[0], "materialize")
        else None
    )
    return [view] if view is not None else bind(step, operands, replay)


def transposed(array: Any, order: tuple[int, ...]) -> Any:
    """A compact array with its dimensions in another order, or None when a stack dimension would move."""
    lead = array.ndim - array.matrix_axes.ndim
    if tuple(order[:lead]) != tuple(range(lead)):
        return None
    trailing = [source - array.ndim for source in order[lead:]]
    where = {source: index - array.matrix_axes.ndim for index, source in enumerate(trailing)}
    dims = array.shape[lead:]
    axes = dataclasses.replace(
        array.matrix_axes,
        inputs=tuple(where[axis] for axis in array.matrix_axes.inputs),
        outputs=tuple(where[axis] for axis in array.matrix_axes.outputs),
    )
    return dataclasses.replace(
        array, matrix_axes=axes, dims=tuple(dims[source] for source in trailing)
    )


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


def replay_tile(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    operand = replay.dense(step, operands[0], step.inputs[0])
    shape = replay.shape(step.outputs[0])
    reps = tuple(size // own for size, own in zip(shape, operand.shape, strict=True))
    return bind_with(step, [operand], replay, reps=reps)


@register("tile", replay=replay_tile)
def tile(step: Step, analysis: Analysis) -> None:
    """A dimension repeated is a product of the repetitions and itself."""
    source, out = carry_over(step, analysis)
    for index, (times, size) in enumerate(zip(step.params["reps"], source.shape, strict=True)):
        copy_facts(out, index, source, index)
        dim = source.dims[index]
        if times > 1:
            turns = Dim(times)
            out.dims[index] = turns if dim is None else product([turns, dim])
            out.constant[index] = size == 1 or source.constant[index]
            if not out.constant[index]:
                mark(turns, Kind.ELEMENTWISE)  # all turns are alike: no rotation finds them so


def replay_reshape(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    shape = replay.shape(step.outputs[0])
    view = reshaped(operands[0], shape) if hasattr(operands[0], "materialize") else None
    return [view] if view is not None else bind_with(step, operands, replay, new_sizes=shape)


def reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    """A compact array in another shape, or None when a group of dimensions mixes its inputs, outputs or stack."""
    lead = array.ndim - array.matrix_axes.ndim
    if tuple(shape[:lead]) != tuple(array.shape[:lead]):
        return None
    old, new = array.shape[lead:], shape[lead:]
    order = [
        axis % array.matrix_axes.ndim
        for axis in array.matrix_axes.inputs + array.matrix_axes.outputs
    ]
    count = len(array.matrix_axes.inputs)
    targets: dict[int, list[int]] = {}
    for sources, results in groups(old, new):
        ranks = [order.index(source) for source in sources]
        if (
            not sources
            or ranks != list(range(ranks[0], ranks[0] + len(ranks)))
            or (ranks[0] < count <= ranks[-1])
        ):
            return None
        targets[ranks[0]] = results
    sides: tuple[list[int], list[int]] = ([], [])
    for rank in sorted(targets):
        sides[rank >= count].extend(index - len(new) for index in targets[rank])
    if not sides[0] or not sides[1]:
        return None
    axes = dataclasses.replace(array.matrix_axes, inputs=tuple(sides[0]), outputs=tuple(sides[1]))
    return dataclasses.replace(array, matrix_axes=axes, dims=tuple(new))


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
        for index in olds:
            if source.constant[index] and not all(source.constant[other] for other in olds):
                mark(source.dims[index], Kind.ELEMENTWISE)  # it repeats the others
        fresh = [Dim(out.shape[index]) for index in news]
        try:
            ours, theirs = align([dim for dim in dims if dim is not None], list(fresh))
            for one, other in zip(ours, theirs, strict=True):
                analysis.unify(step, one, other)
        except Misaligned as problem:
            for dim in (*dims, *fresh):
                analysis.freeze(step, dim, f"it is reshaped across its parts: {problem}")
        for index, dim in zip(news, fresh, strict=True):
            out.dims[index], out.slots[index], out.scaled[index] = dim, slots, scaled
            out.constant[index] = all(source.constant[old] for old in olds)


def replay_iota(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    return bind_with(step, operands, replay, shape=replay.shape(step.outputs[0]))


@register("iota", replay=replay_iota)
def iota(step: Step, analysis: Analysis) -> None:
    (out,) = step.outputs
    for index, size in enumerate(out.shape):
        out.dims[index] = analysis.fresh(size)
        if index == step.params["dimension"]:
            why = "its positions are numbered, as for rotary embeddings, position codes and one-hot codes"
            analysis.freeze(step, out.dims[index], why)
        else:
            out.constant[index] = True


@register("rev")
def reverse(step: Step, analysis: Analysis) -> None:
    linear(step, analysis)
    for index in step.params["dimensions"]:
        analysis.freeze(step, step.inputs[0].dims[index], "it is put in reverse order")
