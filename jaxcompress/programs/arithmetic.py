"""Rules of arithmetic: linear and nonlinear functions of single entries, scales and means.

A mean is a sum multiplied or divided by a literal that equals the size of what was summed. Its
replay puts the present size in the literal's place, so norms keep their scale.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcompress.arrays.base import is_compact
from jaxcompress.programs import compat
from jaxcompress.programs.algebra import Dim, Kind, atoms, find, is_number, mark, several
from jaxcompress.programs.facts import agreed, copy_facts, is_zero, merge_facts, varies
from jaxcompress.programs.norms import (
    divides_by_norm,
    multiply_scalings,
    note_difference,
    note_mean_of,
    note_square,
    pass_norms,
    roots,
    scaled_by,
    spoil,
)
from jaxcompress.programs.program import MIXED, PLAIN, Operand, Part, Scaling, Step, Value
from jaxcompress.programs.records import Bias
from jaxcompress.programs.rules import Analysis, Replay, bind, register


def same_layout(step: Step, analysis: Analysis) -> None:
    """Unify the operands' dimensions, one for each of the output; sizes of one are broadcast."""
    merge_facts(step)
    for out in step.outputs:
        operands = [value for value in step.inputs if len(value.shape) == len(out.shape)]
        for index, size in enumerate(out.shape):
            if size == 1:
                continue
            wide = [value for value in operands if several(value.shape[index])]
            for value in wide[1:]:
                analysis.unify(step, wide[0].dims[index], value.dims[index])
            out.dims[index] = wide[0].dims[index] if wide else analysis.fresh(size)
            out.constant[index] = all(value.constant[index] for value in wide)
            with_slots = [value.slots[index] for value in wide if value.data or not out.data]
            out.slots[index] = frozenset().union(*with_slots)
            out.scaled[index] = agreed([value.scaled[index] for value in wide if value.data])


CIRCULAR = ("acos", "asin", "atan", "atan2", "cos", "sin", "tan")
HYPERBOLIC = ("acosh", "asinh", "atanh", "cosh", "sinh", "tanh")
EXPONENTIAL = ("exp", "exp2", "expm1", "log", "log1p", "logistic")
POWERS = ("cbrt", "integer_pow", "pow", "rsqrt", "sqrt", "square")
ROUNDING = ("ceil", "floor", "rem", "round")
PIECEWISE = ("abs", "clamp", "is_finite", "max", "min", "nextafter", "sign")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
BITWISE = ("and", "or", "xor", "not", "clz", "mulhi", "population_count")
SHIFTS = ("shift_left", "shift_right_arithmetic", "shift_right_logical")
ERROR_FUNCTIONS = ("erf", "erf_inv", "erfc")
GAMMA_FUNCTIONS = ("digamma", "igamma", "igamma_grad_a", "igammac", "lgamma", "polygamma")
OTHER_FUNCTIONS = ("bessel_i0e", "bessel_i1e", "regularized_incomplete_beta", "zeta")
ELEMENTWISE = (
    *(*CIRCULAR, *HYPERBOLIC, *EXPONENTIAL, *POWERS, *ROUNDING, *PIECEWISE),
    *(*COMPARISONS, *BITWISE, *SHIFTS),
    *(*ERROR_FUNCTIONS, *GAMMA_FUNCTIONS, *OTHER_FUNCTIONS),
)


@register(*ELEMENTWISE)
def elementwise(step: Step, analysis: Analysis) -> None:
    """The rule of a nonlinear function of single entries, of any number of operands of one shape.

    Units along its axes may be selected, permuted and merged, not rotated.

    Args:
        step: the equation.
        analysis: receives the marks.

    Example:
        >>> import jaxcompress as jc
        >>> _ = jc.register("my_gelu")(jc.programs.elementwise)
        >>> jc.programs.RULES.pop("my_gelu").analyse is jc.programs.elementwise
        True
    """
    same_layout(step, analysis)
    pass_norms(step)
    power = step.params["y"] if step.name == "integer_pow" else None
    squared = step.name == "square" or power == 2
    if not squared:
        spoil(*step.inputs)
    if power == 1:
        return
    for out in step.outputs:
        if squared:
            note_square(out, step.inputs[0])
        else:
            out.scaled = [PLAIN] * len(out.shape)
        for index, dim in enumerate(out.dims):
            if not squared and not out.constant[index]:
                mark(dim, Kind.ELEMENTWISE)


@register("bitcast_convert_type")
def bitcast(step: Step, analysis: Analysis) -> None:
    """Elementwise; where the size of an item changes, there is one dimension more or less."""
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
    """The rule of a linear function of single entries, such as a cast.

    Output i is that of operand i. The function lies on no axis: any map of it is as good as without
    the primitive.

    Args:
        step: the equation.
        analysis: counts how often values are used.

    Example:
        >>> import jaxcompress as jc
        >>> _ = jc.register("my_identity")(jc.programs.linear)
        >>> jc.programs.RULES.pop("my_identity").analyse is jc.programs.linear
        True
    """
    for source, out in zip(step.inputs, step.outputs, strict=False):
        out.data = source.data
        for index in range(len(out.shape)):
            copy_facts(out, index, source, index)
        pass_on(analysis, source, out)


PASSED = ("square", "summed", "squares", "direct", "bent", "literal")
PASSED += ("count", "squared", "centred", "norms", "total")
"""The facts of a value that do not belong to a dimension, and that another layout keeps."""


def pass_on(analysis: Analysis, source: Value, out: Value) -> None:
    """The facts that a change of layout or of dtype keeps."""
    for name in PASSED:
        setattr(out, name, getattr(source, name))
    out.shared = source.shared or analysis.uses[id(source)] > 1
    out.sites = frozenset() if out.shared else source.sites


def replay_cast(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """A compact array stays one in another float dtype that one computes in.

    A cast to fewer than 16 bits is a quantizer: it rounds the dense entries, not what is stored.
    """
    operand, dtype = operands[0], step.params["new_dtype"]
    if is_compact(operand) and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 16:
        return [jax.tree.map(lambda leaf: leaf.astype(dtype), operand)]
    return bind(step, operands, replay)


def replay_stored(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Of a compact array: the primitive on every stored number, such as a stopped gradient."""
    if not is_compact(operands[0]):
        return bind(step, operands, replay)
    leaves, structure = jax.tree.flatten(operands[0])
    stored = [compat.bind(step.primitive, [leaf], step.params)[0] for leaf in leaves]
    return [jax.tree.unflatten(structure, stored)]


@register("neg")
def negate(step: Step, analysis: Analysis) -> None:
    """Linear; the sign of what follows changes."""
    linear(step, analysis)
    (out,) = step.outputs
    out.sites, out.square, out.direct = frozenset(), False, False
    out.total = None
    spoil(step.inputs[0])
    if step.inputs[0].square:
        for dim in out.dims:
            mark(dim, Kind.ELEMENTWISE)
    out.literal = None if out.literal is None else -np.asarray(out.literal)


register("real", "imag", "conj", "name", "reduce_precision")(linear)
register("device_put", "sharding_constraint", "mesh_cast", "layout_constraint")(linear)
register("optimization_barrier", "debug_callback", "debug_print")(linear)
register("copy", "copy_p", "stop_gradient", replay=replay_stored)(linear)


@register("convert_element_type", replay=replay_cast)
def convert(step: Step, analysis: Analysis) -> None:
    """A cast between floats is linear."""
    source, target = step.inputs[0].dtype, step.params["new_dtype"]
    if jnp.issubdtype(source, jnp.floating) and not jnp.issubdtype(target, jnp.inexact):
        elementwise(step, analysis)
        return
    linear(step, analysis)
    step.outputs[0].origin = step.inputs[0].origin
    # integer parameters can be selected, not mixed
    step.outputs[0].bent |= not jnp.issubdtype(source, jnp.floating)


@register("add", "sub", "add_any")
def add(step: Step, analysis: Analysis) -> None:
    """Linear in both operands; adding a constant along an axis forbids rotations of it."""
    same_layout(step, analysis)
    (out,) = step.outputs
    left, right = step.inputs
    fold_literals(step, operator.sub if step.name == "sub" else operator.add)
    affine = any(value.literal is not None and not is_zero(value) for value in step.inputs)
    out.bent = not out.data and (left.bent or right.bent or affine)
    pass_norms(step)
    if step.name == "sub":
        note_difference(step)
    else:
        spoil(left, right)
    for index, dim in enumerate(out.dims):
        if dim is None or not set(atoms(dim)) <= roots(out.centred):
            analysis.joined(step.inputs, index, dim)
    sign = -1 if step.name == "sub" else 1
    for value, other in ((left, right), (right, left)):
        if value.from_params and other.data:
            add_shift(out, analysis, value, other, sign)
    out.sites = sites_of_sum(step, analysis)
    if is_zero(right):
        out.sites, out.summed, out.squares = left.sites, left.summed, left.squares


def sites_of_sum(step: Step, analysis: Analysis) -> frozenset[Part]:
    """The contractions whose sum an addition is, noted where there are several.

    Their results are used for it alone, in the same turns of the same loops.
    """
    (out,) = step.outputs
    terms: list[frozenset[Part]] = []
    for place, value in enumerate(step.inputs):
        if not value.data:
            continue
        loops = [analysis.contractions[part.site].loops for part in value.sites]
        inside = all(turns == analysis.loops for turns in loops)
        negative = step.name == "sub" and place == 1
        bare = value.shape == out.shape and analysis.uses[id(value)] == 1
        terms.append(value.sites if inside and bare and not negative else frozenset())
    if not all(terms):
        return frozenset()
    sites = frozenset().union(*terms)
    if len(sites) > 1:
        analysis.sums.append(sites)
    return sites


@register("complex")
def complex_(step: Step, analysis: Analysis) -> None:
    """Linear in the real and in the imaginary part, as a sum of the two is."""
    same_layout(step, analysis)
    (out,) = step.outputs
    left, right = step.inputs
    constant = any(value.literal is not None and not is_zero(value) for value in step.inputs)
    out.bent = not out.data and (left.bent or right.bent or constant)
    for index, dim in enumerate(out.dims):
        analysis.joined(step.inputs, index, dim)
    for value, other in ((left, right), (right, left)):
        for index in range(len(out.dims)) if value.from_params and other.data else ():
            if varies(value, index):
                analysis.role(value.slots[index], "shift")
                out.slots[index] |= value.slots[index]


def add_shift(out: Value, analysis: Analysis, shift: Value, other: Value, sign: int) -> None:
    """Note that parameters are added to activations: they shift the axis, and produce it too."""
    indices = [index for index in range(len(out.dims)) if varies(shift, index)]
    for index in indices:
        out.slots[index] |= shift.slots[index]
        before = out.scaled[index]
        # after a norm or a scale it is no shift of what the axis's producers give
        follows = bool(before.scales or before.normed)
        analysis.role(shift.slots[index], "offset" if follows else "shift")
        if follows:
            plain = shift.direct and sign == 1 and not before.shifts
            out.scaled[index] = before._replace(shifts=shift.slots[index]) if plain else MIXED
    note_bias(analysis, shift, other, [out.dims[index] for index in indices], sign)


def note_bias(
    analysis: Analysis, bias: Value, product: Value, dims: list[Dim | None], sign: int
) -> None:
    """Note that a parameter is a contraction's bias.

    It must vary along every dimension that the contraction produces, and the product be used here
    alone. One that is used here alone, too, goes before one that is not.
    """
    if not bias.direct or analysis.uses[id(product)] > 1:
        return
    alone = not bias.shared and analysis.uses[id(bias)] <= 1
    layers = tuple(turns for turns, names in analysis.stacked if names & bias.leaves)
    axes = {find(dim) for dim in dims if dim is not None}
    for site in (part.site for part in product.sites if part.stop is None):
        contraction = analysis.contractions[site]
        known = analysis.biases.get(site)
        if known is not None and known.alone >= alone:
            continue
        if axes == set(map(find, contraction.produced)) and layers == contraction.layers:
            analysis.biases[site] = Bias(bias, sign, alone)


def fold_literals(step: Step, function: Callable[[np.ndarray, np.ndarray], ArrayLike]) -> None:
    """Compute a step on literals: a divisor may be made of sizes, as an unbiased variance's is."""
    left, right = step.inputs
    if left.literal is not None and right.literal is not None:
        step.outputs[0].literal = function(np.asarray(left.literal), np.asarray(right.literal))
    fold_counts(step)


COUNTING: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
}


def fold_counts(step: Step) -> None:
    """Compute a step on symbolic sizes and whole numbers."""
    if step.name not in COUNTING or all(value.count is None for value in step.inputs):
        return
    left, right = map(count_of, step.inputs)
    if left is not None and right is not None:
        step.outputs[0].count = COUNTING[step.name](left, right)


def count_of(value: Value) -> int | None:
    """The symbolic size or the whole number that a value is, or None."""
    if value.count is not None:
        return value.count
    number = scalar(value)
    return None if number is None or number % 1 else int(number)


def scalar(value: Value) -> float | None:
    """The number of a real literal, or None."""
    literal = value.literal
    if literal is None or np.ndim(literal) or np.iscomplexobj(literal):
        return None
    return float(np.asarray(literal))


# --- means ----------------------------------------------------------------------------------------


class Divisor(NamedTuple):
    """A literal that is the size of what was summed.

    Attributes:
        operand: its position among the operands.
        dims: the dimensions that were summed over.
        offset: 1 for an unbiased variance, which divides by one less, else 0.
        inverse: whether the literal is the size's inverse.
    """

    operand: int
    dims: list[Dim]
    offset: int
    inverse: bool


def replay_mean(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """A mean divides by the present size of what is summed."""
    divisor: Divisor | None = step.note
    if divisor is None:
        return bind(step, operands, replay)
    traced = math.prod(find(dim).size for dim in divisor.dims)
    present = math.prod(replay.size(dim) for dim in divisor.dims)
    if traced != present:
        literal, count = step.inputs[divisor.operand], present - divisor.offset
        count = 1 / count if divisor.inverse else count
        # a symbolic count becomes a number when the exported program is called
        number = (np if is_number(count) or divisor.inverse else jnp).asarray(count, literal.dtype)
        operands = list(operands)
        operands[divisor.operand] = (
            jnp.full(replay.shape(literal), number) if literal.shape else number
        )
    return bind(step, operands, replay)


def note_mean(
    step: Step, analysis: Analysis, summed: Value, operand: int, *, inverse: bool
) -> None:
    """Note that a literal operand is the size of what was summed, or one less."""
    literal = step.inputs[operand]
    dims = [dim for dim in summed.summed if dim is not None]
    size = math.prod(find(dim).size for dim in dims)
    for offset in (0, 1) if summed.squares else (0,):
        if dims and is_count(literal, size - offset, size, inverse):
            step.note = Divisor(operand, dims, offset, inverse)
            if not offset:
                note_mean_of(step.outputs[0], summed)
            analysis.averaged += dims
            if summed.squares:
                analysis.averaged_squares.append(tuple(dims))
            return


def is_count(literal: Value, count: int, size: int, inverse: bool) -> bool:
    """Whether a literal, or its inverse, is a count up to the rounding of a size."""
    if not is_number(size):
        return literal.count is not None and literal.count == count
    number = scalar(literal)
    if not number or count < 1:
        return False
    floating = jnp.issubdtype(literal.dtype, jnp.floating)
    rounding = max(1e-5, float(jnp.finfo(literal.dtype).eps) if floating else 0)
    return abs((1 / number if inverse else number) - count) <= rounding * size


@register("dim_as_value")
def dim_as_value(step: Step, analysis: Analysis) -> None:
    """A symbolic size of `jax.export` as a number."""
    step.outputs[0].count = step.params["dim"]


# --- products -------------------------------------------------------------------------------------


@register("mul", replay=replay_mean)
def multiply(step: Step, analysis: Analysis) -> None:
    """A scale along an axis is diagonal; a product of two activations is elementwise."""
    same_layout(step, analysis)
    (out,) = step.outputs
    left, right = step.inputs
    fold_literals(step, operator.mul)
    pass_norms(step)
    if left is right:
        note_square(out, left)
        return
    for operand, (scale, value) in enumerate(((left, right), (right, left))):
        apply_scale(step, analysis, value, scale)
        if scale.literal is not None:
            out.bent = out.bent if value.data else value.bent
            note_mean(step, analysis, value, operand, inverse=True)
    explained = multiply_scalings(step)
    if out.total is None:
        spoil(left, right)
    for index, dim in enumerate(out.dims):
        both = varies(left, index) and varies(right, index) and left.data == right.data
        if both and index not in explained:
            mark(dim, Kind.ELEMENTWISE)
            out.scaled[index] = PLAIN


def apply_scale(step: Step, analysis: Analysis, value: Value, scale: Value) -> None:
    """Note that parameters scale activations along the axes that they vary along."""
    (out,) = step.outputs
    if not (scale.from_params and value.data):
        return
    plain = scale.direct and step.name == "mul"
    for index, dim in enumerate(out.dims):
        if varies(scale, index):
            analysis.role(scale.slots[index], "scale" if plain else "indirect scale")
            mark(dim, Kind.DIAGONAL)
            scaling = Scaling(scale.slots[index]) if plain else MIXED
            # a number for each position times a scale varies along the axis by the scale alone
            alone = not varies(value, index)
            out.scaled[index] = scaled_by(value, index, scaling)._replace(alone=alone)


@register("div", replay=replay_mean)
def divide(step: Step, analysis: Analysis) -> None:
    """Linear in the numerator; a denominator along an axis is a scale, or elementwise."""
    same_layout(step, analysis)
    (out,) = step.outputs
    top, bottom = step.inputs
    fold_literals(step, lambda a, b: a / b if np.all(b != 0) else np.nan)
    out.bent = (top.bent or bottom.literal is None) and not out.data
    apply_scale(step, analysis, top, bottom)
    pass_norms(step)
    for index, dim in enumerate(out.dims) if bottom.data and top.data else ():
        if varies(top, index) and not varies(bottom, index) and divides_by_norm(bottom, dim):
            out.scaled[index] = scaled_by(top, index, Scaling(normed=True))
    for index, dim in enumerate(out.dims):
        if varies(bottom, index) and (bottom.data or not top.data):
            mark(dim, Kind.ELEMENTWISE)
    note_mean(step, analysis, top, 1, inverse=False)
    if out.total is None:
        spoil(top, bottom)


@register("select_n")
def select(step: Step, analysis: Analysis) -> None:
    """A mask without the axis is linear; one along it is elementwise."""
    same_layout(step, analysis)
    (out,) = step.outputs
    which, *cases = step.inputs
    pass_norms(step)
    for index, dim in enumerate(out.dims):
        analysis.joined(cases, index, dim)
        if varies(which, index):
            mark(dim, Kind.ELEMENTWISE)
