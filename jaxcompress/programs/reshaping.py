"""Rules of layout: dimensions are permuted, repeated, split into factors and merged to products.

A compact array stays one where the new layout keeps its inputs, outputs and stack apart; otherwise
it is materialised.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.programs.algebra import (
    Dim,
    Kind,
    Misaligned,
    align,
    exceeds,
    mark,
    product,
    several,
)
from jaxcompress.programs.arithmetic import linear, pass_on
from jaxcompress.programs.compat import Inconclusive
from jaxcompress.programs.facts import agreed, copy_facts, merge_facts
from jaxcompress.programs.program import Operand, Step, Value
from jaxcompress.programs.rules import Analysis, Replay, bind, bind_with, register


def carry_over(step: Step, analysis: Analysis) -> tuple[Value, Value]:
    """Copy the facts that every change of layout keeps; returns the operand and the output."""
    merge_facts(step)
    source, out = step.inputs[0], step.outputs[0]
    pass_on(analysis, source, out)
    return source, out


# --- transpose and sizes of one -------------------------------------------------------------------


def replay_transpose(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Transpose; a compact array stays one where it can."""
    order = step.params["permutation"]
    view = transposed(operands[0], order) if is_compact(operands[0]) else None
    return bind(step, operands, replay) if view is None else [view]


def transposed(array: Operand, order: tuple[int, ...]) -> Operand:
    """A compact array with its dimensions permuted, or None where a stack dimension would move."""
    axes = array.matrix_axes
    stack = array.ndim - axes.ndim
    if tuple(order[:stack]) != tuple(range(stack)):
        return None
    trailing = [source - array.ndim for source in order[stack:]]
    target = {source: index - axes.ndim for index, source in enumerate(trailing)}
    dims = array.shape[stack:]
    moved = dataclasses.replace(
        axes,
        inputs=tuple(target[axis] for axis in axes.inputs),
        outputs=tuple(target[axis] for axis in axes.outputs),
    )
    shape = tuple(dims[source] for source in trailing)
    return dataclasses.replace(array, matrix_axes=moved, dims=shape)


@register("transpose", replay=replay_transpose)
def transpose(step: Step, analysis: Analysis) -> None:
    """Dimensions pass in another order."""
    source, out = carry_over(step, analysis)
    for index, position in enumerate(step.params["permutation"]):
        copy_facts(out, index, source, position)


def replay_squeeze(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Squeeze; a compact array stays one where it can."""
    (operand,) = operands
    squeezed = [axis % operand.ndim for axis in step.params["dimensions"]]
    shape = tuple(size for index, size in enumerate(operand.shape) if index not in squeezed)
    view = reshaped(operand, shape) if is_compact(operand) else None
    return bind(step, operands, replay) if view is None else [view]


@register("squeeze", replay=replay_squeeze)
def squeeze(step: Step, analysis: Analysis) -> None:
    """Dimensions of size one are dropped."""
    source, out = carry_over(step, analysis)
    squeezed = [axis % len(source.shape) for axis in step.params["dimensions"]]
    kept = [index for index in range(len(source.shape)) if index not in squeezed]
    for index, position in enumerate(kept):
        copy_facts(out, index, source, position)


@register("expand_dims")
def expand_dims(step: Step, analysis: Analysis) -> None:
    """Dimensions of size one are added."""
    source, out = carry_over(step, analysis)
    new = [axis % len(out.shape) for axis in step.params["dimensions"]]
    old = [index for index in range(len(out.shape)) if index not in new]
    for position, index in enumerate(old):
        copy_facts(out, index, source, position)


# --- repetitions ----------------------------------------------------------------------------------


def replay_broadcast(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Broadcast to the present shape."""
    return bind_with(step, operands[:1], replay, shape=replay.shape(step.outputs[0]))


@register("broadcast_in_dim", replay=replay_broadcast)
def broadcast_in_dim(step: Step, analysis: Analysis) -> None:
    """New dimensions are axes of their own, constant along them."""
    source, out = carry_over(step, analysis)
    mapped = {index: position for position, index in enumerate(step.params["broadcast_dimensions"])}
    for index, size in enumerate(out.shape):
        position = mapped.get(index)
        if position is not None and source.shape[position] == size:
            copy_facts(out, index, source, position)
        elif several(size):
            out.dims[index], out.constant[index] = Dim(size), True


def replay_tile(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Repeat up to the present shape."""
    operand = replay.dense(step, operands[0], step.inputs[0])
    shape = replay.shape(step.outputs[0])
    reps = tuple(size // own for size, own in zip(shape, operand.shape, strict=True))
    return bind_with(step, [operand], replay, reps=reps)


@register("tile", replay=replay_tile)
def tile(step: Step, analysis: Analysis) -> None:
    """A repeated dimension is a product of the repetitions and itself."""
    source, out = carry_over(step, analysis)
    for index, (times, size) in enumerate(zip(step.params["reps"], source.shape, strict=True)):
        copy_facts(out, index, source, index)
        dim = source.dims[index]
        if times > 1:
            repeats = Dim(times)
            out.dims[index] = repeats if dim is None else product([repeats, dim])
            out.constant[index] = size == 1 or source.constant[index]
            if not out.constant[index]:
                mark(repeats, Kind.ELEMENTWISE)  # a rotation would not keep the repeats equal


# --- reshape --------------------------------------------------------------------------------------


def replay_reshape(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Reshape to the present shape; a compact array stays one where it can."""
    shape = replay.shape(step.outputs[0])
    view = reshaped(operands[0], shape) if is_compact(operands[0]) else None
    return bind_with(step, operands, replay, new_sizes=shape) if view is None else [view]


def reshaped(array: Operand, shape: tuple[int, ...]) -> Operand:
    """A compact array in another shape, or None where its inputs, outputs or stack would mix."""
    axes = array.matrix_axes
    stack = array.ndim - axes.ndim
    if tuple(shape[:stack]) != tuple(array.shape[:stack]):
        return None
    old, new = array.shape[stack:], shape[stack:]
    order, count = _wide_order(axes, old)
    targets: dict[int, list[int]] = {}  # new dimensions by the rank of their first old one
    for sources, results in groups(old, new):
        ranks = [order.index(source) for source in sources if source in order]
        if not ranks and not results:
            continue
        if not ranks or ranks != list(range(ranks[0], ranks[0] + len(ranks))):
            return None
        if ranks[0] < count <= ranks[-1]:
            return None
        targets[ranks[0]] = [index - len(new) for index in results]
    ranks = sorted(targets)
    inputs = tuple(itertools.chain(*(targets[rank] for rank in ranks if rank < count)))
    outputs = tuple(itertools.chain(*(targets[rank] for rank in ranks if rank >= count)))
    if not inputs or not outputs:
        return None
    axes = dataclasses.replace(axes, inputs=inputs, outputs=outputs)
    return dataclasses.replace(array, matrix_axes=axes, dims=tuple(new))


def _wide_order(axes: MatrixAxes, sizes: Sequence[int]) -> tuple[list[int], int]:
    """Dimensions of a matrix, inputs first, and the number of inputs.

    Those of one position belong to neither, unless inputs or outputs have no others.
    """
    inputs, outputs = ([axis % axes.ndim for axis in role] for role in (axes.inputs, axes.outputs))
    wide = [[axis for axis in role if sizes[axis] != 1] for role in (inputs, outputs)]
    first, second = wide if all(wide) else (inputs, outputs)
    return first + second, len(first)


def groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of old and of new dimensions with equal products.

    Sizes of one without a partner join the run before them.
    """
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        start = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if i < len(old) and not exceeds(left, right):
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        while is_one(old, i) and not is_one(new, j):
            i += 1
        while is_one(new, j) and not is_one(old, i):
            j += 1
        runs.append((list(range(start[0], i)), list(range(start[1], j))))
    return runs


def is_one(sizes: Sequence[int], index: int) -> bool:
    """Whether there is a size of one at an index."""
    return index < len(sizes) and sizes[index] == 1


@register("reshape", replay=replay_reshape)
def reshape(step: Step, analysis: Analysis) -> None:
    """Dimensions are split into factors and merged to products, leading factors first."""
    source, out = carry_over(step, analysis)
    for left, right in groups(source.shape, out.shape):
        old = [index for index in left if several(source.shape[index])]
        new = [index for index in right if several(out.shape[index])]
        if len(old) == len(new) == 1:
            copy_facts(out, new[0], source, old[0])
        else:
            regroup(step, analysis, old, new)


def regroup(step: Step, analysis: Analysis, old: list[int], new: list[int]) -> None:
    """Give new dimensions the factors of old ones with the same product."""
    source, out = step.inputs[0], step.outputs[0]
    constant = all(source.constant[index] for index in old)
    for index in old:
        if source.constant[index] and not constant:
            mark(source.dims[index], Kind.ELEMENTWISE)  # it repeats the others
    for index in new:
        out.dims[index] = Dim(out.shape[index])
        out.slots[index] = frozenset().union(*(source.slots[position] for position in old))
        out.scaled[index] = agreed([source.scaled[position] for position in old])
        out.constant[index] = constant
    before = [dim for index in old if (dim := source.dims[index]) is not None]
    after = [dim for index in new if (dim := out.dims[index]) is not None]
    try:
        for one, other in zip(*align(before, after), strict=True):
            analysis.unify(step, one, other)
    except (Misaligned, Inconclusive) as problem:
        for dim in (*before, *after):
            analysis.freeze(step, dim, f"it is reshaped across its parts: {problem}")


# --- order ----------------------------------------------------------------------------------------


def replay_iota(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Number the positions of the present shape."""
    return bind_with(step, operands, replay, shape=replay.shape(step.outputs[0]))


@register("iota", replay=replay_iota)
def iota(step: Step, analysis: Analysis) -> None:
    """Opaque along the numbered dimension, constant along the others."""
    (out,) = step.outputs
    for index, size in enumerate(out.shape):
        out.dims[index] = analysis.fresh(size)
        out.constant[index] = index != step.params["dimension"]
    analysis.freeze(
        step,
        out.dims[step.params["dimension"]],
        "its positions are numbered, as for rotary embeddings, position codes and one-hot codes",
    )


@register("rev")
def reverse(step: Step, analysis: Analysis) -> None:
    """Opaque along the reversed dimensions."""
    linear(step, analysis)
    for index in step.params["dimensions"]:
        analysis.freeze(step, step.inputs[0].dims[index], "it is put in reverse order")
