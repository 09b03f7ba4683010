"""Where axes are produced and consumed: matrix products.

A contraction of activations with a parameter consumes the contracted axes and produces the
parameter's free ones; of two activations it is a pair; of two parameters it is both, inside one
weight. A compact array is contracted structurally wherever all of its inputs (or all of its
outputs) are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.programs import compat
from jaxcompress.programs.algebra import Dim, Kind, mark, pair, several
from jaxcompress.programs.facts import copy_facts, is_zero, merge_facts
from jaxcompress.programs.program import MIXED, PLAIN, Operand, Scaling, Slot, Step, Value
from jaxcompress.programs.rules import Analysis, Contraction, Pair, Replay, bind, register


def all_slots(value: Value, positions: Iterable[int]) -> frozenset[Slot]:
    """The parameter slots of some of a value's dimensions."""
    return frozenset().union(*(value.slots[position] for position in positions))


def _freeze_constant(
    step: Step, analysis: Analysis, activations: Value, positions: Iterable[int]
) -> None:
    """Freeze contracted axes along which the activations are constant."""
    for position in positions:
        if activations.constant[position] and several(activations.shape[position]):
            why = "the activations are constant along it"
            analysis.freeze(step, activations.dims[position], why)


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
    """Record that a parameter consumes activations; returns the contraction's key.

    Args:
        step: the product.
        analysis: where it is recorded.
        activations: the side that depends on the network's inputs.
        weight: the side made of parameters.
        contracted: positions in (activations, weight).
        batch: positions in the activations, and axes, that the weight has as well.
        window: positions in the weight of a convolution's window.
        produced: positions in the weight that the product has.
    """
    mine = {theirs: position for position, theirs in contracted}
    # moments are laid out in the order of the parameter's own dimensions
    flat = sorted([*mine, *window])
    slots = all_slots(weight, mine)
    analysis.role(slots, "consume")
    # a scale or a rotation cannot pass the nonlinear function to reach the parameter
    if weight.bent:
        analysis.bent |= all_slots(weight, range(len(weight.shape)))
    _freeze_constant(step, analysis, activations, mine.values())
    for theirs, position in mine.items():
        _note_scales(analysis, weight.slots[theirs], activations.scaled[position])
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


def _note_scales(analysis: Analysis, slots: frozenset[Slot], scaling: Scaling) -> None:
    for slot in slots:
        # a scale alone is no activation whose axis a map could change
        analysis.scales.setdefault(slot, set()).add(MIXED if scaling.alone else scaling)


def _note_sum(analysis: Analysis, dim: Dim | None) -> None:
    """Note a sum over an axis that no parameter takes part in, or that is not measured."""
    mark(dim, Kind.NORMALISED)
    analysis.uncentred += [] if dim is None else [dim]


# --- matrix products -----------------------------------------------------------------------------


def free(ndim: int, contracting: Sequence[int], batch: Sequence[int]) -> list[int]:
    """Positions that a product keeps: neither contracted nor shared."""
    return [index for index in range(ndim) if index not in contracting and index not in batch]


def replay_dot(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """A product of arrays, or a compact operand's own."""
    if replay.tap is not None and step.note is not None:
        replay.tap.observe(step.note, operands, step)
    # the right side first: in x @ W it is the weight
    for side in (1, 0) if compat.precision_name(step.params["precision"]) else ():
        if is_compact(operands[side]) and own_product(step, operands[side], side) is not None:
            return tapped_results(
                step.note, step, [structural_dot(step, operands, side, replay)], replay
            )
    return tapped_results(step.note, step, bind(step, operands, replay), replay)


def tapped_results(
    key: str | None, step: Step, results: list[Operand], replay: Replay
) -> list[Operand]:
    """The results of a contraction, as the tap returns them."""
    if replay.tap is None or key is None:
        return results
    return [replay.tap.transform_result(key, step, results[0])]


class Product(NamedTuple):
    """A compact array's own product, over its inputs or over its outputs.

    Attributes:
        multiply: from x (..., rows, contracted) to (..., rows, outputs).
        contracted: positions in the array that it sums over, in its order.
        outputs: positions in the array that its result has, in its order.
    """

    multiply: Callable[[jax.Array], jax.Array]
    contracted: tuple[int, ...]
    outputs: tuple[int, ...]


def own_product(step: Step, array: CompactArray, side: int) -> Product | None:
    """The compact operand's own product for a step, or None where it has none.

    An array has one product over all of its inputs and one over all of its outputs; any of its
    stack dimensions may be shared.
    """
    contracting, batch = step.params["dimension_numbers"]
    lead = array.ndim - array.matrix_axes.ndim
    # a batched dimension of the matrix itself leaves no full product to call
    if any(axis >= lead for axis in batch[side]):
        return None
    inputs, outputs = (
        tuple(axis % array.ndim for axis in role)
        for role in (array.matrix_axes.inputs, array.matrix_axes.outputs)
    )
    products = {
        frozenset(outputs): Product(array.multiply_transposed, outputs, inputs),
        frozenset(inputs): Product(array.multiply, inputs, outputs),
    }
    return products.get(frozenset(contracting[side]))


def structural_dot(step: Step, operands: list[Operand], side: int, replay: Replay) -> jax.Array:
    """A product of `dot_general` by a compact operand's own `multiply` or `multiply_transposed`."""
    contracting, batch = step.params["dimension_numbers"]
    array = operands[side]
    x = replay.dense(step, operands[1 - side], step.inputs[1 - side])
    wanted = step.outputs[0].dtype
    # a product that is asked for in a wider dtype is summed up in it
    x = x.astype(jnp.promote_types(x.dtype, wanted))
    replay.tell(step, step.inputs[side], "contracted")
    product = own_product(step, array, side)
    assert product is not None, "replay_dot checks that the array has this product"
    stack, shape = range(array.ndim - array.matrix_axes.ndim), array.shape
    partner = dict(zip(batch[side], batch[1 - side], strict=True))
    partner |= dict(zip(contracting[side], contracting[1 - side], strict=True))
    rest = free(x.ndim, contracting[1 - side], batch[1 - side])
    sizes = [x.shape[axis] for axis in rest]
    # x as (stack, rows, contracted), with 1 for each stack dimension that it does not share
    shared = [partner[axis] for axis in stack if axis in partner]
    summed = [partner[axis] for axis in product.contracted]
    rows = jnp.transpose(x, (*shared, *rest, *summed)).reshape(
        *(shape[axis] if axis in partner else 1 for axis in stack),
        math.prod(sizes),
        math.prod(shape[axis] for axis in product.contracted),
    )
    with compat.matmul_precision(step.params["precision"]):
        out = product.multiply(rows)
    out = out.reshape(
        *(shape[axis] for axis in stack), *sizes, *(shape[axis] for axis in product.outputs)
    )
    out = jnp.transpose(
        out, output_order(len(stack), len(rest), product.outputs, batch[side], side)
    )
    return out.astype(wanted)


def output_order(
    stack: int, rest: int, outputs: tuple[int, ...], batch: Sequence[int], side: int
) -> list[int]:
    """The permutation from (stack, other side, outputs) to `dot_general`'s (batch, left, right)."""
    where = {axis: axis for axis in range(stack)}
    where |= {axis: stack + rest + index for index, axis in enumerate(outputs)}
    mine = [where[axis] for axis in sorted(where) if axis not in batch]
    theirs = list(range(stack, stack + rest))
    first, second = (theirs, mine) if side == 1 else (mine, theirs)
    return [*(where[axis] for axis in batch), *first, *second]


@register("dot_general", replay=replay_dot)
def dot_general(step: Step, analysis: Analysis) -> None:
    """Contracted and shared dimensions are one axis; the rest depends on the sides' origins."""
    merge_facts(step)
    left, right = step.inputs
    contracting, batch = step.params["dimension_numbers"]
    for mine, theirs in (*zip(*contracting, strict=True), *zip(*batch, strict=True)):
        analysis.unify(step, left.dims[mine], right.dims[theirs])
    _product_facts(step)
    summed = [dim for position in contracting[0] if (dim := left.dims[position]) is not None]
    kept = [dim for dim in step.outputs[0].dims if dim is not None]
    analysis.mixed.append((summed, kept))
    PRODUCTS[_origin(left), _origin(right)](step, analysis)


def _origin(value: Value) -> str:
    if value.data:
        return "data"
    return "parameters" if value.from_params else "constant"


def _product_facts(step: Step) -> None:
    """The facts of a product's dimensions, from those of its sides."""
    left, right = step.inputs
    (out,) = step.outputs
    contracting, batch = step.params["dimension_numbers"]
    shared = list(zip(*batch, strict=True))
    for index, (mine, theirs) in enumerate(shared):
        source = (left, mine) if left.data or not out.data else (right, theirs)
        copy_facts(out, index, *source)
        out.constant[index] = left.constant[mine] and right.constant[theirs]
        mark(out.dims[index], Kind.ELEMENTWISE)  # a batched product mixes no positions
    sides = zip((left, right), contracting, batch, strict=True)
    kept = []
    for value, summed, together in sides:
        kept += [(value, position) for position in free(len(value.shape), summed, together)]
    for index, (value, position) in enumerate(kept, len(shared)):
        copy_facts(out, index, value, position)
        if not value.data and out.data:
            out.scaled[index] = PLAIN


def _of_activations(step: Step, analysis: Analysis) -> None:
    """A pair, such as queries and keys."""
    left, right = step.inputs
    contracting, batch = step.params["dimension_numbers"]
    dims = tuple(left.dims[position] for position in contracting[0])
    for dim in dims:
        pair(dim)
    sides = all_slots(left, contracting[0]), all_slots(right, contracting[1])
    if not all(sides):  # one side is no axis of parameters: only a sum over the other is known
        for position in contracting[0]:
            _note_sum(analysis, left.dims[position])
        return
    for value, positions in zip((left, right), contracting, strict=True):
        for position in positions:
            _note_scales(analysis, value.slots[position], value.scaled[position])
    key = step.note if isinstance(step.note, str) else analysis.count("pair", analysis.pairs)
    step.note = key
    shared = tuple((mine, theirs, left.dims[mine]) for mine, theirs in zip(*batch, strict=True))
    positions = (tuple(contracting[0]), tuple(contracting[1]))
    analysis.pairs[key] = Pair(key, dims, positions, shared, sides)


def _of_parameters(step: Step, analysis: Analysis) -> None:
    """Both roles inside one weight: the left side produces what the right side consumes."""
    left, right = step.inputs
    contracting, _ = step.params["dimension_numbers"]
    analysis.role(all_slots(left, contracting[0]), "produce")
    analysis.role(all_slots(right, contracting[1]), "consume")
    twice = bool(all_leaves(left) & all_leaves(right))
    step.outputs[0].bent = left.bent or right.bent or twice


def _of_weight(step: Step, analysis: Analysis, side: int) -> None:
    """Activations, or a constant, times the parameter on one side: it consumes and produces."""
    weight, activations = step.inputs[side], step.inputs[1 - side]
    contracting, batch = step.params["dimension_numbers"]
    (out,) = step.outputs
    if not activations.data and not loop_start(activations):
        # a constant: the product is made of parameters, and nothing was measured
        for position in contracting[side]:
            _note_sum(analysis, weight.dims[position])
        out.bent = weight.bent
        return
    kept = free(len(weight.shape), contracting[side], batch[side])
    analysis.role(all_slots(weight, kept), "produce")
    analysis.role(all_slots(weight, batch[side]), "batch")
    pairs = list(zip(contracting[1 - side], contracting[side], strict=True))
    shared = tuple((position, activations.dims[position]) for position in batch[1 - side])
    produced = (*kept, *batch[side])
    key = consume(step, analysis, activations, weight, pairs, shared, produced=produced)
    out.sites = frozenset({key})


def _of_constant(step: Step, analysis: Analysis) -> None:
    """A sum over activations that no parameter takes part in."""
    contracting, _ = step.params["dimension_numbers"]
    for value, positions in zip(step.inputs, contracting, strict=True):
        for position in positions if value.data else ():
            _note_sum(analysis, value.dims[position])


PRODUCTS: dict[tuple[str, str], Callable[[Step, Analysis], None]] = {
    ("data", "data"): _of_activations,
    ("parameters", "parameters"): _of_parameters,
    ("parameters", "data"): partial(_of_weight, side=0),
    ("parameters", "constant"): partial(_of_weight, side=0),
    ("data", "parameters"): partial(_of_weight, side=1),
    ("constant", "parameters"): partial(_of_weight, side=1),
    ("data", "constant"): _of_constant,
    ("constant", "data"): _of_constant,
    ("constant", "constant"): _of_constant,
}
"""The rule of a product, by the origins of its left and right sides."""


def loop_start(value: Value) -> bool:
    """Whether a constant takes the place of activations: zeros that a loop starts from."""
    return (
        value.literal is not None
        and not any(dim is not None and dim.reasons for dim in value.dims)
        and is_zero(value)
    )


def all_leaves(value: Value) -> set[str]:
    """The parameter leaves that a value came from."""
    return {slot.leaf for slot in itertools.chain.from_iterable(value.slots)}
