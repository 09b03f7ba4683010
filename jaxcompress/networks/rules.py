"""What each primitive does to axes, and how it runs at other sizes: the registry, and the rules of layout and arithmetic.

A rule has two halves. `analyse(step, analysis)` gives every output its dimensions and facts, unifies what must be one axis
and marks what lies on it; `replay(step, operands, replay)` runs the primitive on operands of the present sizes. A primitive
without a rule makes every axis it touches opaque, and says so. `register` adds rules for a user's own primitives.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.networks import compat
from jaxcompress.networks.algebra import (
    Dim,
    Kind,
    Misaligned,
    Reason,
    Sizes,
    align,
    concat,
    cut,
    find,
    mark,
    place_of,
    size_of,
    unify,
)
from jaxcompress.networks.program import NOTHING, Constant, Program, Slot, Step, Value


@dataclasses.dataclass
class Contraction:
    """A place where activations meet a parameter, and the axes it consumes.

    Attributes:
        key: the first leaf's name and a running number.
        operand: the position of the activations among the step's operands.
        dims: the contracted dimensions, in the order of the parameter's own.
        slots: for each of them the parameter slots it came from.
        positions: where they are in the activations.
        batch: dimensions of the activations that the parameter has as well, with their positions.
        produced: the parameter's other dimensions, those of the product.
        window: which of `dims` are a convolution's window; the activations have none of them.
        layers: the loops that run over layers of the parameter.
        rows: for a look-up the number of rows, and None for a product.
    """

    key: str
    operand: int
    dims: tuple[Dim | None, ...]
    slots: tuple[frozenset[Slot], ...]
    positions: tuple[int, ...]
    batch: tuple[tuple[int, Dim | None], ...] = ()
    window: tuple[int, ...] = ()
    layers: tuple[Dim, ...] = ()
    rows: int | None = None
    produced: tuple[Dim, ...] = ()

    @property
    def consumed(self) -> frozenset[Slot]:
        """The slots contracted with the activations, without a window's."""
        return frozenset().union(*(slots for index, slots in enumerate(self.slots) if index not in self.window))


@dataclasses.dataclass
class Pair:
    """A place where activations meet activations, such as queries and keys."""

    key: str
    dims: tuple[Dim | None, ...]
    positions: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, int, Dim | None], ...]
    sides: tuple[frozenset[Slot], frozenset[Slot]]


class Analysis:
    """What the analysis of one program gathers beside the values' own facts.

    Attributes:
        roles: for each parameter slot what it does along its axis: "produce", "consume", "shift", "scale", "indirect scale",
            "batch".
        contractions, pairs: by key, in the order of the program.
        biases: for each contraction the slots of a bias added right behind it, with its sign.
        scales: for each consuming slot the sets of scale slots that its inputs had been multiplied by.
    """

    def __init__(self) -> None:
        self.roles: dict[Slot, set[str]] = {}
        self.contractions: dict[str, Contraction] = {}
        self.pairs: dict[str, Pair] = {}
        self.biases: dict[str, tuple[frozenset[Slot], int]] = {}
        self.scales: dict[Slot, set[frozenset[Slot]]] = {}
        self.uses: Counter[int] = Counter()
        self.ambient: tuple[Dim, ...] = ()  # the axes of the loops around the present step
        self.stacked: tuple[tuple[Dim, frozenset[str]], ...] = ()  # for each of them the leaves that it runs over
        self.averaged: list[Dim] = []  # summed over and divided by their size
        self.squared: list[tuple[Dim, ...]] = []  # of every sum of squares, what it is over
        self.averaged_squares: list[tuple[Dim, ...]] = []  # those divided by their size
        self.bent: set[Slot] = set()  # slots whose parameter passes a nonlinear function before it is contracted
        self.unfoldable: list[Dim] = []  # a scale lies before a norm or beside another scale
        self.mixed: list[tuple[list[Dim], list[Dim]]] = []  # of every product what is contracted, and what it gives
        self.company: list[tuple[tuple[Dim, ...], tuple[Dim | None, ...]]] = []

    def run(self, program: Program) -> None:
        """Analyse every step in order."""
        uses = Counter(id(value) for step in program.steps for value in step.inputs)
        self.uses |= uses + Counter(id(value) for value in program.outputs)
        for step in program.steps:
            for value in step.inputs:
                if isinstance(value, Constant):
                    self.constant(value)
                if value.square and step.name not in SQUARES_PASS:
                    for dim in value.dims:
                        mark(dim, Kind.ELEMENTWISE)
            for value in step.outputs:
                value.reset()
            RULES.get(step.name, UNKNOWN).analyse(step, self)
            for value in step.outputs:
                self.company.append((self.ambient, tuple(value.dims)))
        for value in program.outputs:
            if isinstance(value, Constant):
                self.constant(value)
            for dim in value.dims if value.square else ():  # whoever reads it elsewhere does not know
                mark(dim, Kind.ELEMENTWISE)

    def joined(self, values: list[Value], index: int, dim: Dim | None) -> None:
        """Mark an axis along which a constant other than zero is put beside values that vary."""
        varying = [varies(value, index) for value in values]
        if any(varying) and any(not moves and not is_zero(value) for moves, value in zip(varying, values, strict=True)):
            mark(dim, Kind.ELEMENTWISE)

    def constant(self, value: Constant) -> None:
        """Facts of a literal, or of an array that the function closes over."""
        value.constant = [True] * len(value.shape)
        if not value.shape:
            value.literal = value.array
            return
        why = Reason("constant", f"it meets an array of shape {value.shape} that the function closes over: make it a parameter")
        for index, size in enumerate(value.shape):
            if size > 1 and value.dims[index] is None:
                value.dims[index] = Dim(size)
                mark(value.dims[index], Kind.OPAQUE, why)
        value.constant = [size == 1 for size in value.shape]

    def reason(self, step: Step, sentence: str) -> Reason:
        return Reason(step.name, sentence, step.where)

    def role(self, slots: frozenset[Slot], role: str) -> None:
        for slot in slots:
            self.roles.setdefault(slot, set()).add(role)

    def unify(
        self, step: Step, a: Dim | None, b: Dim | None, sentence: str = "the two sides are laid out in different ways"
    ) -> None:
        if a is not None or b is not None:
            unify(a, b, self.reason(step, sentence))

    def freeze(self, step: Step, dim: Dim | None, sentence: str) -> None:
        if dim is not None:
            mark(dim, Kind.OPAQUE, self.reason(step, sentence))

    def fresh(self, size: int) -> Dim | None:
        return Dim(size) if size > 1 else None

    def count(self, name: str, taken: Any) -> str:
        """A key that no other has: a name and a running number."""
        return next(key for key in (f"{name}#{index}" for index in range(10**6)) if key not in taken)


class Replay:
    """How a program is run: present sizes, and what is seen on the way.

    Attributes:
        sizes: of the atoms that changed.
        tap: what sees the operands of every contraction (networks/moments.py), or None.
        note: called with (step, value, how) wherever a compact array is used, or None.
    """

    def __init__(self, sizes: Sizes, tap: Any = None, note: Callable[..., None] | None = None):
        self.sizes = sizes
        self.tap = tap
        self.note = note

    def size(self, dim: Dim | None) -> int:
        return size_of(dim, self.sizes)

    def shape(self, value: Value) -> tuple[int, ...]:
        """A value's shape at the present sizes."""
        return tuple(self.size(dim) if dim is not None else size for dim, size in zip(value.dims, value.shape, strict=True))

    def run(self, program: Program, arguments: list[Any]) -> list[Any]:
        """The program's outputs for the given arguments, arrays or compact arrays."""
        env: dict[int, Any] = {id(value): argument for value, argument in zip(program.inputs, arguments, strict=True)}

        def read(value: Value) -> Any:
            return value.array if isinstance(value, Constant) else env[id(value)]

        for step in program.steps:
            with compat.context_of(step.equation):
                results = RULES.get(step.name, UNKNOWN).replay(step, [read(value) for value in step.inputs], self)
            env.update((id(value), result) for value, result in zip(step.outputs, results, strict=True))
        return [read(value) for value in program.outputs]

    def dense(self, step: Step, operand: Any, value: Value) -> Any:
        """An operand as an array; a compact one is materialised, and that is noted."""
        if not hasattr(operand, "materialize"):
            return operand
        self.tell(step, value, "materialised")
        return operand.materialize()

    def tell(self, step: Step, value: Value, how: str) -> None:
        """Note how a step uses a compact array."""
        if self.note is not None:
            self.note(step, value, how)


Analyse = Callable[[Step, Analysis], None]
Run = Callable[[Step, list[Any], Replay], list[Any]]


def bind(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    """The primitive with its own parameters: for all whose parameters say nothing of sizes."""
    return bind_with(step, operands, replay)


def bind_with(step: Step, operands: list[Any], replay: Replay, **params: Any) -> list[Any]:
    """The primitive with some parameters replaced."""
    dense = [replay.dense(step, operand, value) for operand, value in zip(operands, step.inputs, strict=False)]
    return compat.bind(step.primitive, dense, {**step.params, **params})


@dataclasses.dataclass(frozen=True)
class Rule:
    """The two halves of what is known of a primitive."""

    analyse: Analyse
    replay: Run = bind


def unknown(step: Step, analysis: Analysis) -> None:
    """Every axis that the primitive touches is opaque."""
    sentence = f"no rule is known for the primitive {step.name!r}: jaxcompress.networks.register adds one"
    for value in (*step.inputs, *step.outputs):
        for index, size in enumerate(value.shape):
            if value.dims[index] is None and size > 1:
                value.dims[index] = Dim(size)
            analysis.freeze(step, value.dims[index], sentence)
    merge_facts(step)


UNKNOWN = Rule(unknown)
RULES: dict[str, Rule] = {}
"""The rule of every known primitive, by its name."""

SQUARES_PASS = {"reduce_sum", "convert_element_type", "reduce_precision", "stop_gradient"}


def register(*names: str, replay: Run = bind) -> Callable[[Analyse], Analyse]:
    """Add the rule of a primitive, or replace it: a decorator of the analysing half.

    Args:
        *names: the primitives' names, as `jax.make_jaxpr` prints them.
        replay: the running half; by default the primitive is bound with its own parameters.

    Example:
        >>> from jaxcompress.networks.rules import RULES, elementwise, register
        >>> _ = register("my_gelu")(elementwise)
        >>> RULES.pop("my_gelu").analyse is elementwise
        True
    """

    def add(analyse: Analyse) -> Analyse:
        RULES.update({name: Rule(analyse, replay) for name in names})
        return analyse

    return add


# --- elementwise -----------------------------------------------------------------------------------------------


def merge_facts(step: Step) -> None:
    """Data or not, for outputs of which no more is known; what no rule says to be linear in parameters is not."""
    for out in step.outputs:
        out.data = any(value.data for value in step.inputs)
        out.bent = not out.data


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


def varies(value: Value, index: int) -> bool:
    """Whether a value differs along a dimension of the output."""
    return len(value.shape) > index and value.shape[index] > 1 and not value.constant[index]


@register(
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "clamp", "cos", "cosh", "digamma"),
    *("erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "integer_pow", "is_finite", "lgamma", "log", "log1p", "logistic"),
    *("max", "min", "nextafter", "pow", "rem", "round", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh"),
    *("and", "or", "xor", "not", "eq", "ne", "lt", "le", "gt", "ge", "shift_left", "shift_right_arithmetic"),
    *("shift_right_logical", "population_count", "clz", "polygamma", "igamma", "igammac", "regularized_incomplete_beta"),
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


def linear(step: Step, analysis: Analysis) -> None:
    """Linear in its one operand, entry by entry."""
    same_layout(step, analysis)
    for out in step.outputs:
        pass_on(analysis, step.inputs[0], out)


def pass_on(analysis: Analysis, source: Value, out: Value) -> None:
    """The facts that a change of layout or of dtype keeps."""
    out.square, out.summed, out.squares, out.direct = source.square, source.summed, source.squares, source.direct
    out.bent, out.literal = source.bent, source.literal
    out.shared = source.shared or analysis.uses[id(source)] > 1
    out.sites = frozenset() if out.shared else source.sites


def replay_cast(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    (operand,) = operands[:1]
    dtype = step.params.get("new_dtype")
    if hasattr(operand, "materialize") and (dtype is None or jnp.issubdtype(dtype, jnp.floating)):
        return [operand if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), operand)]
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


register("real", "imag", "reduce_precision", "sharding_constraint", "mesh_cast", "optimization_barrier")(linear)
register("copy", "copy_p", "stop_gradient", replay=replay_cast)(linear)


@register("convert_element_type", replay=replay_cast)
def convert(step: Step, analysis: Analysis) -> None:
    """A cast between floats is linear."""
    source, target = step.inputs[0].dtype, step.params["new_dtype"]
    if jnp.issubdtype(source, jnp.floating) and not jnp.issubdtype(target, jnp.inexact):
        elementwise(step, analysis)
    else:
        linear(step, analysis)
        step.outputs[0].bent |= not jnp.issubdtype(source, jnp.floating)  # whole numbers can be selected from, not mixed


@register("add", "sub", "add_any")
def add(step: Step, analysis: Analysis) -> None:
    """Linear in both operands; a constant along an axis moves its origin, and forbids rotations."""
    same_layout(step, analysis)
    (out,) = step.outputs
    values = step.inputs
    fold_literals(step, (lambda a, b: a - b) if step.name == "sub" else (lambda a, b: a + b))
    out.bent = any(value.bent or (value.literal is not None and not is_zero(value)) for value in values) and not out.data
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


def note_bias(analysis: Analysis, bias: Value, product: Value, dims: list[Dim | None], sign: int) -> None:
    """Note that a parameter is the bias of a contraction: used here alone, and along all that the contraction produces."""
    if not bias.direct or bias.shared or analysis.uses[id(bias)] > 1 or analysis.uses[id(product)] > 1:
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


MIXED: Slot = ("", -1)
"""A mark in `Value.scaled`: branches with different scales were added."""


def is_zero(value: Value) -> bool:
    return value.literal is not None and not np.any(np.asarray(value.literal) != 0)


def scalar(value: Value) -> float | None:
    """The number of a literal, or None."""
    return None if value.literal is None or np.ndim(value.literal) else float(value.literal)


def replay_mean(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    """A division by the size of what was summed becomes one by its present size."""
    if step.note is not None:
        index, dims, offset, inverse = step.note
        old, new = (math.prod(s) for s in ([find(d).size for d in dims], [replay.size(d) for d in dims]))
        if old != new:
            value = new - offset
            operands = list(operands)
            operands[index] = np.asarray(1 / value if inverse else value, step.inputs[index].dtype)
            if step.inputs[index].shape:
                operands[index] = jnp.full(replay.shape(step.inputs[index]), operands[index])
    return bind(step, operands, replay)


def note_mean(step: Step, analysis: Analysis, summed: Value, divisor: int, *, inverse: bool) -> None:
    """Tell the replay that a literal is the size of what was summed, or one less (an unbiased variance)."""
    number = scalar(step.inputs[divisor])
    dims = [dim for dim in summed.summed if dim is not None]
    if number is None or not dims or number == 0:
        return
    size = math.prod(find(dim).size for dim in dims)
    count = 1 / number if inverse else number
    kind = step.inputs[divisor].dtype
    tol = max(1e-5, float(jnp.finfo(kind).eps) if jnp.issubdtype(kind, jnp.floating) else 0)  # the literal was rounded
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
            analysis.role(scale.slots[index], "scale" if scale.direct and step.name == "mul" else "indirect scale")
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


# --- layout ----------------------------------------------------------------------------------------------------


def copy_facts(out: Value, index: int, source: Value, position: int) -> None:
    """A dimension that passes unchanged."""
    out.dims[index] = source.dims[position]
    out.slots[index] = source.slots[position]
    out.constant[index] = source.constant[position]
    out.scaled[index] = source.scaled[position]


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


def replay_expand(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    return bind_with(step, operands, replay, dimensions=step.params["dimensions"])


@register("expand_dims", replay=replay_expand)
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


def replay_concatenate(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    return bind(step, operands, replay)


@register("concatenate", replay=replay_concatenate)
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


# --- reductions ------------------------------------------------------------------------------------------------


def reduced(step: Step) -> None:
    """The dimensions that a reduction leaves."""
    merge_facts(step)
    gone = [axis % len(step.inputs[0].shape) for axis in step.params["axes"]]
    left = [index for index in range(len(step.inputs[0].shape)) if index not in gone]
    for out in step.outputs:
        for index, position in enumerate(left):
            copy_facts(out, index, step.inputs[0], position)


@register("reduce_sum")
def reduce_sum(step: Step, analysis: Analysis) -> None:
    """A sum over an axis: of squares, as in a root-mean-square norm, or any other."""
    reduced(step)
    (source,), (out,) = step.inputs, step.outputs
    for dim in out.dims if source.square else ():
        mark(dim, Kind.ELEMENTWISE)
    rms = source.square and source.data  # a norm of weights is no norm of activations
    for index in step.params["axes"]:
        mark(source.dims[index], Kind.RMS if rms else Kind.NORMALISED)
        if source.scaled[index] and source.dims[index] is not None:
            analysis.unfoldable.append(source.dims[index])
    out.summed, out.squares = tuple(source.dims[index] for index in step.params["axes"]), source.square
    out.bent = (source.bent or source.square) and not out.data
    if rms:
        analysis.squared.append(tuple(dim for dim in out.summed if dim is not None))


@register("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin")
def reduce_other(step: Step, analysis: Analysis) -> None:
    reduced(step)
    word = step.name.removeprefix("reduce_")
    for index in step.params["axes"]:
        analysis.freeze(step, step.inputs[0].dims[index], f"its {word} is taken, as in a softmax or a pooling over it")
    for dim in step.outputs[0].dims:
        mark(dim, Kind.ELEMENTWISE)


@register("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulate(step: Step, analysis: Analysis) -> None:
    (linear if step.name == "cumsum" else elementwise)(step, analysis)
    analysis.freeze(step, step.inputs[0].dims[step.params["axis"]], "it is summed up in order")
    step.outputs[0].summed, step.outputs[0].sites, step.outputs[0].direct = (), frozenset(), False


@register("sort")
def sort(step: Step, analysis: Analysis) -> None:
    same_layout(step, analysis)
    for source, out in zip(step.inputs, step.outputs, strict=True):
        for index in range(len(out.shape)):
            copy_facts(out, index, source, index)
            mark(out.dims[index], Kind.ELEMENTWISE)
        analysis.freeze(step, source.dims[step.params["dimension"]], "it is sorted")


@register("top_k")
def top_k(step: Step, analysis: Analysis) -> None:
    merge_facts(step)
    source = step.inputs[0]
    analysis.freeze(step, source.dims[-1], "its largest entries are picked")
    for out in step.outputs:
        for index in range(len(out.shape) - 1):
            copy_facts(out, index, source, index)
            mark(out.dims[index], Kind.ELEMENTWISE)
        out.dims[-1] = analysis.fresh(out.shape[-1])
        analysis.freeze(step, out.dims[-1], "it holds the largest entries of another axis")


@register("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window")
def reduce_window(step: Step, analysis: Analysis) -> None:
    """Pooling: along the dimensions with a window positions are mixed, across the others it is linear (a sum) or elementwise."""
    source, out = carry_over(step, analysis)
    params = step.params
    out.summed, out.sites, out.square, out.literal = (), frozenset(), False, None
    for index, window in enumerate(params["window_dimensions"]):
        plain = window == 1 and params["window_strides"][index] == 1 and tuple(params["padding"][index]) == (0, 0)
        if plain and params["base_dilation"][index] == 1:
            copy_facts(out, index, source, index)
            if step.name != "reduce_window_sum":
                mark(out.dims[index], Kind.ELEMENTWISE)
            continue
        analysis.freeze(step, source.dims[index], "a window slides along it")
        out.dims[index] = analysis.fresh(out.shape[index])
        analysis.freeze(step, out.dims[index], "a window slides along it")


@register(*compat.RANDOM)
def random(step: Step, analysis: Analysis) -> None:
    merge_facts(step)
    for out in step.outputs:
        for index, size in enumerate(out.shape):
            out.dims[index] = analysis.fresh(size)
            analysis.freeze(step, out.dims[index], "random numbers are drawn along it: evaluate without dropout")
