"""Where axes are produced and consumed: matrix products and convolutions.

A contraction of activations with a parameter consumes the contracted axes and produces the parameter's free ones; of two
activations it is a pair; of two parameters it is both, inside one weight. A compact array is contracted structurally
wherever all of its inputs (or all of its outputs) are.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from jaxcompress.programs.algebra import Dim, Kind, Misaligned, factor, find, mark, pair, product
from jaxcompress.programs.facts import copy_facts, is_zero, merge_facts
from jaxcompress.programs.program import Slot, Step, Value
from jaxcompress.programs.rules import (
    Analysis,
    Contraction,
    Pair,
    Replay,
    bind,
    bind_with,
    register,
)


def all_slots(value: Value, positions: Any) -> frozenset[Slot]:
    return frozenset().union(*(value.slots[position] for position in positions))


def consume(
    step: Step,
    analysis: Analysis,
    activations: Value,
    weight: Value,
    contracted: list[tuple[int, int]],
    batch: tuple[tuple[int, Dim | None], ...] = (),
    window: tuple[int, ...] = (),
    produced: tuple[int, ...] = (),
) -> str:
    """Note that a parameter consumes activations; gives the contraction's key.

    Args:
        contracted: positions in (activations, weight).
        window: positions in the weight of a convolution's window.
        produced: positions in the weight that the product has.
    """
    mine = {theirs: position for position, theirs in contracted}
    flat = sorted([*mine, *window])
    slots = all_slots(weight, mine)
    analysis.role(slots, "consume")
    if weight.bent:
        analysis.bent |= all_slots(weight, range(len(weight.shape)))
    for position in mine.values():
        if activations.constant[position] and activations.shape[position] > 1:
            analysis.freeze(
                step,
                activations.dims[position],
                "what is contracted over it is the same everywhere",
            )
    for theirs, position in mine.items():
        for slot in weight.slots[theirs]:
            analysis.scales.setdefault(slot, set()).add(activations.scaled[position])
    leaf = min((name for name, _ in slots), default="?")
    key = step.note if isinstance(step.note, str) else analysis.count(leaf, analysis.contractions)
    step.note = key
    analysis.contractions[key] = Contraction(
        key,
        step.inputs.index(activations),
        tuple(weight.dims[theirs] for theirs in flat),
        tuple(weight.slots[theirs] for theirs in flat),
        tuple(mine[theirs] for theirs in flat if theirs in mine),
        batch,
        tuple(index for index, theirs in enumerate(flat) if theirs in window),
        tuple(turns for turns, leaves in analysis.stacked if leaves & {name for name, _ in slots}),
        produced=tuple(dim for position in produced if (dim := weight.dims[position]) is not None),
    )
    return key


# --- matrix products -----------------------------------------------------------------------------------------------


def free(value: Value, contracting: Any, batch: Any) -> list[int]:
    return [
        index
        for index in range(len(value.shape))
        if index not in contracting and index not in batch
    ]


def replay_dot(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    if replay.tap is not None and step.note is not None:
        replay.tap.see(step.note, operands, step)
    for side in (1, 0):
        if hasattr(operands[side], "materialize"):
            result = structural_dot(step, operands, side, replay)
            if result is not None:
                return felt(step.note, step, [result], replay)
    return felt(step.note, step, bind(step, operands, replay), replay)


def felt(key: str | None, step: Step, results: list[Any], replay: Replay) -> list[Any]:
    """What a contraction gives, as the tap hands it on."""
    return (
        results if replay.tap is None or key is None else [replay.tap.feel(key, step, results[0])]
    )


def structural_dot(step: Step, operands: list[Any], side: int, replay: Replay) -> Any:
    """The product with a compact operand by its own `_multiply`, or None where its roles do not fit."""
    (contracting, batch) = step.params["dimension_numbers"]
    array, x = operands[side], operands[1 - side]
    if hasattr(x, "materialize"):
        x = replay.dense(step, x, step.inputs[1 - side])
    lead = array.ndim - array.matrix_axes.ndim
    mine, theirs = contracting[side], contracting[1 - side]
    if tuple(batch[side]) != tuple(range(lead)):
        return None
    roles = {
        frozenset(axis % array.ndim for axis in array.matrix_axes.inputs): (
            array.matrix_axes.inputs,
            array.matrix_axes.outputs,
            array._multiply,
        ),
        frozenset(axis % array.ndim for axis in array.matrix_axes.outputs): (
            array.matrix_axes.outputs,
            array.matrix_axes.inputs,
            array._multiply_transposed,
        ),
    }
    if frozenset(mine) not in roles:
        return None
    inputs, outputs, multiply = roles[frozenset(mine)]
    replay.tell(step, step.inputs[side], "contracted")
    partner = dict(zip(mine, theirs, strict=True))
    order = [partner[axis % array.ndim] for axis in inputs]
    rest = free_positions(x.ndim, theirs, batch[1 - side])
    sizes = [x.shape[axis] for axis in rest]
    flat = jnp.transpose(x, (*batch[1 - side], *rest, *order))
    stack = [x.shape[axis] for axis in batch[1 - side]]
    flat = flat.reshape(*stack, math.prod(sizes), math.prod(x.shape[axis] for axis in order))
    wanted = step.params.get("preferred_element_type")
    out = multiply(flat)
    shape = array.shape
    results = [shape[axis % array.ndim] for axis in outputs]
    out = out.reshape(*stack, *sizes, *results)
    # the product's order is batch, left, right; within the array's side its dimensions are in their own order
    ranks = sorted(range(len(outputs)), key=lambda index: outputs[index] % array.ndim)
    first = len(stack) + len(sizes)
    mine_last = [first + rank for rank in ranks]
    others = list(range(len(stack), first))
    order = [*range(len(stack)), *(others + mine_last if side == 1 else mine_last + others)]
    out = jnp.transpose(out, order)
    return out if wanted is None else out.astype(wanted)


def free_positions(ndim: int, contracting: Any, batch: Any) -> list[int]:
    return [index for index in range(ndim) if index not in contracting and index not in batch]


@register("dot_general", replay=replay_dot)
def dot_general(step: Step, analysis: Analysis) -> None:
    merge_facts(step)
    left, right = step.inputs
    (out,) = step.outputs
    (contracting, batch) = step.params["dimension_numbers"]
    for mine, theirs in (*zip(*contracting, strict=True), *zip(*batch, strict=True)):
        analysis.unify(step, left.dims[mine], right.dims[theirs])
    index = 0
    for mine, theirs in zip(*batch, strict=True):
        copy_facts(
            out,
            index,
            left if left.data or not out.data else right,
            mine if left.data or not out.data else theirs,
        )
        out.constant[index] = left.constant[mine] and right.constant[theirs]
        mark(out.dims[index], Kind.ELEMENTWISE)  # each position has a product of its own
        index += 1
    for value, theirs, others in (
        (left, contracting[0], batch[0]),
        (right, contracting[1], batch[1]),
    ):
        for position in free(value, theirs, others):
            copy_facts(out, index, value, position)
            if not value.data and out.data:
                out.scaled[index] = frozenset()
            index += 1
    inside = [out.dims[position] for position in range(len(out.dims))]
    analysis.mixed.append(
        (
            [dim for position in contracting[0] if (dim := left.dims[position]) is not None],
            [dim for dim in inside if dim is not None],
        )
    )
    if left.data and right.data:
        _pair(step, analysis)
    elif left.from_params and right.from_params:
        analysis.role(all_slots(left, contracting[0]), "produce")
        analysis.role(all_slots(right, contracting[1]), "consume")
        out.bent = left.bent or right.bent or bool(all_leaves(left) & all_leaves(right))
    elif left.from_params or right.from_params:
        side = 1 if left.from_params else 0
        activations, weight = step.inputs[side], step.inputs[1 - side]
        if not activations.data and not loop_start(activations):
            # a constant: the product is made of parameters, and nothing was measured
            for position in contracting[1 - side]:
                mark(weight.dims[position], Kind.NORMALISED)
            out.bent = weight.bent
            return
        theirs = free(weight, contracting[1 - side], batch[1 - side])
        analysis.role(all_slots(weight, theirs), "produce")
        analysis.role(all_slots(weight, batch[1 - side]), "batch")
        pairs = list(zip(contracting[side], contracting[1 - side], strict=True))
        shared = tuple((position, activations.dims[position]) for position in batch[side])
        produced = (*theirs, *batch[1 - side])
        key = consume(step, analysis, activations, weight, pairs, shared, produced=produced)
        out.sites = frozenset({key})
    else:
        for value, positions in ((left, contracting[0]), (right, contracting[1])):
            for position in positions if value.data else ():
                mark(value.dims[position], Kind.NORMALISED)


def loop_start(value: Value) -> bool:
    """Whether a constant stands for activations: zeros that a loop starts from."""
    return (
        value.literal is not None
        and not any(dim is not None and dim.reasons for dim in value.dims)
        and is_zero(value)
    )


def all_leaves(value: Value) -> set[str]:
    return {name for slots in value.slots for name, _ in slots}


def _pair(step: Step, analysis: Analysis) -> None:
    left, right = step.inputs
    (contracting, batch) = step.params["dimension_numbers"]
    dims = tuple(left.dims[position] for position in contracting[0])
    for dim in dims:
        pair(dim)
    sides = all_slots(left, contracting[0]), all_slots(right, contracting[1])
    if not all(sides):  # one side is no axis of parameters: only a sum over the other is known
        for position in contracting[0]:
            mark(left.dims[position], Kind.NORMALISED)
        return
    for value, positions in ((left, contracting[0]), (right, contracting[1])):
        for position in positions:
            for slot in value.slots[position]:
                analysis.scales.setdefault(slot, set()).add(value.scaled[position])
    key = step.note if isinstance(step.note, str) else analysis.count("pair", analysis.pairs)
    step.note = key
    shared = tuple((mine, theirs, left.dims[mine]) for mine, theirs in zip(*batch, strict=True))
    analysis.pairs[key] = Pair(
        key, dims, (tuple(contracting[0]), tuple(contracting[1])), shared, sides
    )


# --- convolutions --------------------------------------------------------------------------------------------------


def replay_conv(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    if replay.tap is not None and step.note is not None and step.note[0] is not None:
        replay.tap.see(step.note[0], operands, step)
    groups = step.params["feature_group_count"]
    if groups > 1 and step.note is not None and step.note[1] is not None:
        groups = replay.size(step.note[1])
    results = bind_with(step, operands, replay, feature_group_count=groups)
    return felt(step.note[0] if step.note else None, step, results, replay)


@register("conv_general_dilated", replay=replay_conv)
def convolution(step: Step, analysis: Analysis) -> None:
    """Features are contracted and produced, positions are opaque; groups are a common factor of both."""
    merge_facts(step)
    x, kernel = step.inputs
    (out,) = step.outputs
    numbers, groups = step.params["dimension_numbers"], step.params["feature_group_count"]
    x_batch, x_features, *x_space = numbers.lhs_spec
    k_out, k_in, *_ = numbers.rhs_spec
    o_batch, o_features, *o_space = numbers.out_spec
    copy_facts(out, o_batch, x, x_batch)
    for source, target in zip(x_space, o_space, strict=True):
        analysis.freeze(step, x.dims[source], "a window slides along it")
        out.dims[target] = analysis.fresh(out.shape[target])
        analysis.freeze(step, out.dims[target], "a window slides along it")
    for position in numbers.rhs_spec[2:]:
        analysis.freeze(step, kernel.dims[position], "it is the extent of a window")
    copy_facts(out, o_features, kernel, k_out)
    out.constant[o_features] = False
    if step.params["batch_group_count"] > 1 or not kernel.from_params:
        for dim in (x.dims[x_batch], x.dims[x_features], kernel.dims[k_in], kernel.dims[k_out]):
            analysis.freeze(
                step,
                dim,
                "this kind of convolution has no rule: its kernel is no parameter, or it groups the batch",
            )
        return
    shared = None
    previous = step.note[0] if step.note else None
    step.note = previous
    if groups == 1:
        analysis.unify(step, x.dims[x_features], kernel.dims[k_in])
    else:
        try:
            shared = _grouped(step, analysis, groups, x_features, k_in, k_out)
        except Misaligned as problem:
            for dim in (x.dims[x_features], kernel.dims[k_in], kernel.dims[k_out]):
                analysis.freeze(step, dim, f"its groups cut across its parts: {problem}")
    if shared is not None:
        mark(shared, Kind.ELEMENTWISE)
    if (
        shared is not None and find(shared).size == x.shape[x_features]
    ):  # depthwise: a scale of its own kind
        analysis.role(kernel.slots[k_out], "batch")
        out.slots[o_features] = x.slots[x_features] | kernel.slots[k_out]
        step.note = (None, shared)
        return
    analysis.role(kernel.slots[k_out], "produce")
    produced, window = (k_out,), tuple(numbers.rhs_spec[2:])
    batch = () if shared is None else ((x_features, shared),)
    key = consume(step, analysis, x, kernel, [(x_features, k_in)], batch, window, produced)
    step.note = (key, shared)
    out.sites = frozenset({key})


def _grouped(
    step: Step, analysis: Analysis, groups: int, x_features: int, k_in: int, k_out: int
) -> Dim:
    """Split features in and out into groups x rest; gives the groups' axis."""
    x, kernel = step.inputs
    features, outputs = x.dims[x_features], kernel.dims[k_out]
    if features is None or outputs is None:
        raise Misaligned("one feature in several groups")
    ours, theirs = factor(features, groups), factor(outputs, groups)
    analysis.unify(step, ours[0], theirs[0])
    if len(ours) > 1:
        analysis.unify(step, product(ours[1:]), kernel.dims[k_in])
    return ours[0]
