"""Rules of arithmetic: what is linear in each entry, what scales an axis, what is nonlinear, what is a mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.programs.algebra import Dim, Kind, find, mark
from jaxcompress.programs.program import NOTHING, Slot, Step, Value
from jaxcompress.programs.rules import (
    Analysis,
    Replay,
    bind,
    copy_facts,
    is_zero,
    merge_facts,
    register,
    varies,
)


def same_layout(step: Step, analysis: Analysis) -> None:
    """One output dimension for each of the operands', scalars and sizes of one broadcast."""
    merge_facts(step)
    for out in step.outputs:
        operands = [value for value in step.inputs if len(value.shape) == len(out.shape)]
        for index, size in enumerate(out.shape):
            if size == 1:
                continue
            wide = [value for value in operands if value.shape[index] > 1]
            for value in wide[1:]:
                analysis.unify(step, wide[0].dims[index], value.dims[index])
            out.dims[index] = wide[0].dims[index] if wide else analysis.fresh(size)
            out.constant[index] = all(value.constant[index] for value in wide)
            with_slots = [value.slots[index] for value in wide if value.data or not out.data]
            out.slots[index] = frozenset().union(*with_slots)
            out.scaled[index] = agreed([value.scaled[index] for value in wide if value.data])


def agreed(scales: list[frozenset[Slot]]) -> frozenset[Slot]:
    """The scales of values that meet: theirs where all have the same, else a mark that nothing can be folded."""
    if not scales:
        return NOTHING
    return scales[0] if all(other == scales[0] for other in scales) else frozenset({MIXED})


@register(
    *(
        "abs",
        "acos",
        "acosh",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "cbrt",
        "ceil",
        "clamp",
        "cos",
        "cosh",
        "digamma",
    ),
    *(
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "floor",
        "integer_pow",
        "is_finite",
        "lgamma",
        "log",
        "log1p",
        "logistic",
    ),
    *(
        "max",
        "min",
        "nextafter",
        "pow",
        "rem",
        "round",
        "rsqrt",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "tan",
        "tanh",
    ),
    *(
        "and",
        "or",
        "xor",
        "not",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "shift_left",
        "shift_right_arithmetic",
    ),
    *(
        "shift_right_logical",
        "population_count",
        "clz",
        "polygamma",
        "igamma",
        "igammac",
        "regularized_incomplete_beta",
    ),
    *("bessel_i0e", "bessel_i1e", "igamma_grad_a", "zeta", "mulhi"),
)
def elementwise(step: Step, analysis: Analysis) -> None:
    """Nonlinear in each entry: units may be selected, permuted and merged, not rotated."""
    same_layout(step, analysis)
    squared = step.name == "square" or (step.name == "integer_pow" and step.params["y"] == 2)
    if step.name == "integer_pow" and step.params["y"] == 1:
        return
    for out in step.outputs:
        out.square = squared
        for index, dim in enumerate(out.dims):
            if not squared and not out.constant[index]:
                mark(dim, Kind.ELEMENTWISE)


@register("bitcast_convert_type")
def bitcast(step: Step, analysis: Analysis) -> None:
    """Elementwise; where the size of an item changes, a last dimension comes or goes."""
    merge_facts(step)
    source, out = step.inputs[0], step.outputs[0]
    for index in range(min(len(source.shape), len(out.shape))):
        copy_facts(out, index, source, index)
        mark(out.dims[index], Kind.ELEMENTWISE)
    if len(source.shape) != len(out.shape):
        longer = max(source, out, key=lambda value: len(value.shape))
        longer.dims[-1] = longer.dims[-1] if longer is source else analysis.fresh(longer.shape[-1])
        analysis.freeze(step, longer.dims[-1], "its bytes are read as numbers of another type")


def linear(step: Step, analysis: Analysis) -> None:
    """Linear in its one operand, entry by entry; of several operands each has an output of its own."""
    for source, out in zip(step.inputs, step.outputs, strict=False):
        out.data = source.data
        for index in range(len(out.shape)):
            copy_facts(out, index, source, index)
        pass_on(analysis, source, out)


def pass_on(analysis: Analysis, source: Value, out: Value) -> None:
    """The facts that a change of layout or of dtype keeps."""
    out.square, out.summed, out.squares, out.direct = (
        source.square,
        source.summed,
        source.squares,
        source.direct,
    )
    out.bent, out.literal = source.bent, source.literal
    out.shared = source.shared or analysis.uses[id(source)] > 1
    out.sites = frozenset() if out.shared else source.sites


def replay_cast(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    (operand,) = operands[:1]
    dtype = step.params.get("new_dtype")
    if hasattr(operand, "materialize") and (dtype is None or jnp.issubdtype(dtype, jnp.floating)):
        return [
            operand if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), operand)
        ]
    return bind(step, operands, replay)


@register("neg")
def negate(step: Step, analysis: Analysis) -> None:
    """Linear, but what is behind it has another sign."""
    linear(step, analysis)
    (out,) = step.outputs
    out.sites, out.square, out.direct = frozenset(), False, False
    if step.inputs[0].square:
        for dim in out.dims:
            mark(dim, Kind.ELEMENTWISE)
    out.literal = None if out.literal is None else -np.asarray(out.literal)


register(
    "real",
    "imag",
    "conj",
    "name",
    "reduce_precision",
    "sharding_constraint",
    "mesh_cast",
    "layout_constraint",
)(linear)
register("device_put", "optimization_barrier", "debug_callback", "debug_print")(linear)
register("copy", "copy_p", "stop_gradient", replay=replay_cast)(linear)


@register("convert_element_type", replay=replay_cast)
def convert(step: Step, analysis: Analysis) -> None:
    """A cast between floats is linear."""
    source, target = step.inputs[0].dtype, step.params["new_dtype"]
    if jnp.issubdtype(source, jnp.floating) and not jnp.issubdtype(target, jnp.inexact):
        elementwise(step, analysis)
    else:
        linear(step, analysis)
        step.outputs[0].bent |= not jnp.issubdtype(
            source, jnp.floating
        )  # whole numbers can be selected from, not mixed


@register("add", "sub", "add_any")
def add(step: Step, analysis: Analysis) -> None:
    """Linear in both operands; a constant along an axis moves its origin, and forbids rotations."""
    same_layout(step, analysis)
    (out,) = step.outputs
    values = step.inputs
    fold_literals(step, (lambda a, b: a - b) if step.name == "sub" else (lambda a, b: a + b))
    out.bent = (
        any(value.bent or (value.literal is not None and not is_zero(value)) for value in values)
        and not out.data
    )
    for index, dim in enumerate(out.dims):
        analysis.joined(values, index, dim)
    sign = -1 if step.name == "sub" else 1
    for value, other in ((values[0], values[1]), (values[1], values[0])):
        if value.from_params and other.data:
            shifted = [index for index in range(len(out.dims)) if varies(value, index)]
            for index in shifted:
                analysis.role(value.slots[index], "shift")
                # what is added is a producer of the sum
                out.slots[index] |= value.slots[index]
                if out.scaled[index]:
                    out.scaled[index] = frozenset({MIXED})
            note_bias(analysis, value, other, [out.dims[index] for index in shifted], sign)
    if all(is_zero(value) for value in values[1:]):
        out.sites, out.summed, out.squares = values[0].sites, values[0].summed, values[0].squares


def note_bias(
    analysis: Analysis, bias: Value, product: Value, dims: list[Dim | None], sign: int
) -> None:
    """Note that a parameter is the bias of a contraction: used here alone, and along all that the contraction produces."""
    if (
        not bias.direct
        or bias.shared
        or analysis.uses[id(bias)] > 1
        or analysis.uses[id(product)] > 1
    ):
        return
    slots = frozenset().union(*bias.slots)
    leaves = {name for name, _ in slots}
    for site in product.sites:
        contraction = analysis.contractions[site]
        here = {id(find(dim)) for dim in dims if dim is not None}
        there = {id(find(dim)) for dim in contraction.produced}
        layers = tuple(turns for turns, names in analysis.stacked if names & leaves)
        if here == there and layers == contraction.layers:
            analysis.biases[site] = (slots, sign)


def fold_literals(step: Step, function: Callable[[Any, Any], Any]) -> None:
    """The value of a step on literals: a divisor may be computed from sizes, as a variance's is."""
    left, right = step.inputs
    if left.literal is not None and right.literal is not None:
        step.outputs[0].literal = function(np.asarray(left.literal), np.asarray(right.literal))


MIXED = Slot("", -1)
"""A mark in `Value.scaled`: branches with different scales were added."""


def scalar(value: Value) -> float | None:
    """The number of a literal, or None."""
    return (
        None
        if value.literal is None or np.ndim(value.literal) or np.iscomplexobj(value.literal)
        else float(value.literal)
    )


def replay_mean(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    """A division by the size of what was summed becomes one by its present size."""
    if step.note is not None:
        index, dims, offset, inverse = step.note
        old, new = (
            math.prod(s) for s in ([find(d).size for d in dims], [replay.size(d) for d in dims])
        )
        if old != new:
            value = new - offset
            operands = list(operands)
            operands[index] = np.asarray(1 / value if inverse else value, step.inputs[index].dtype)
            if step.inputs[index].shape:
                operands[index] = jnp.full(replay.shape(step.inputs[index]), operands[index])
    return bind(step, operands, replay)


def note_mean(
    step: Step, analysis: Analysis, summed: Value, divisor: int, *, inverse: bool
) -> None:
    """Tell the replay that a literal is the size of what was summed, or one less (an unbiased variance)."""
    number = scalar(step.inputs[divisor])
    dims = [dim for dim in summed.summed if dim is not None]
    if number is None or not dims or number == 0:
        return
    size = math.prod(find(dim).size for dim in dims)
    count = 1 / number if inverse else number
    kind = step.inputs[divisor].dtype
    tol = max(
        1e-5, float(jnp.finfo(kind).eps) if jnp.issubdtype(kind, jnp.floating) else 0
    )  # the literal was rounded
    for offset in (0, 1) if summed.squares else (0,):
        if size > offset and abs(count - (size - offset)) <= tol * size:
            step.note = (divisor, dims, offset, inverse)
            analysis.averaged += dims
            if summed.squares:
                analysis.averaged_squares.append(tuple(dims))
            return


@register("mul", replay=replay_mean)
def multiply(step: Step, analysis: Analysis) -> None:
    """A scale along an axis is diagonal, a product of two activations elementwise, a square is told apart."""
    same_layout(step, analysis)
    (out,) = step.outputs
    left, right = step.inputs
    fold_literals(step, lambda a, b: a * b)
    if left is right:
        out.square = True
        return
    for scale, value in ((right, left), (left, right)):
        apply_scale(step, analysis, value, scale)
        if value.literal is not None and not scale.data:
            out.bent = scale.bent
    for index, dim in enumerate(out.dims):
        if varies(left, index) and varies(right, index) and left.data == right.data:
            mark(dim, Kind.ELEMENTWISE)
    for index, value in ((1, left), (0, right)):
        if step.inputs[index].literal is not None:
            note_mean(step, analysis, value, index, inverse=True)


def apply_scale(step: Step, analysis: Analysis, value: Value, scale: Value) -> None:
    """Note a scale made of parameters on activations."""
    (out,) = step.outputs
    if not (scale.from_params and value.data):
        return
    for index, dim in enumerate(out.dims):
        if varies(scale, index):
            analysis.role(
                scale.slots[index],
                "scale" if scale.direct and step.name == "mul" else "indirect scale",
            )
            mark(dim, Kind.DIAGONAL)
            once = scale.direct and step.name == "mul" and not value.scaled[index]
            out.scaled[index] = scale.slots[index] if once else frozenset({MIXED})


@register("div", replay=replay_mean)
def divide(step: Step, analysis: Analysis) -> None:
    """Linear in the numerator; a denominator that varies along an axis scales it, or is elementwise."""
    same_layout(step, analysis)
    (out,) = step.outputs
    top, bottom = step.inputs
    fold_literals(step, lambda a, b: a / b if np.all(b != 0) else np.nan)
    out.bent = (top.bent or bottom.literal is None) and not out.data
    apply_scale(step, analysis, top, bottom)
    for index, dim in enumerate(out.dims):
        if varies(bottom, index) and (bottom.data or not top.data):
            mark(dim, Kind.ELEMENTWISE)
    note_mean(step, analysis, top, 1, inverse=False)


@register("select_n")
def select(step: Step, analysis: Analysis) -> None:
    """A mask without the axis is linear; one along it is elementwise."""
    same_layout(step, analysis)
    (out,) = step.outputs
    which, *cases = step.inputs
    for index, dim in enumerate(out.dims):
        analysis.joined(cases, index, dim)
        if varies(which, index):
            mark(dim, Kind.ELEMENTWISE)
