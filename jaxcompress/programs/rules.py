"""What each primitive does to axes, and how it runs at other sizes: the registry of rules.

A rule has two halves. `analyse(step, analysis)` gives every output its dimensions and facts,
unifies the dimensions that must be one axis and marks what lies on them. `replay(step, operands,
replay)` runs the primitive on operands of the present sizes. A primitive without a rule makes every
axis it touches opaque; `register` adds the rule of a user's own primitive.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcompress.arrays.base import is_compact
from jaxcompress.programs import compat
from jaxcompress.programs.algebra import Dim, Kind, Reason, Sizes, mark, several, size_of, unify
from jaxcompress.programs.facts import is_zero, merge_facts, varies
from jaxcompress.programs.program import (
    Constant,
    Operand,
    Part,
    Program,
    Scaling,
    Slot,
    Step,
    Total,
    Value,
)
from jaxcompress.programs.records import Bias, Contraction, Pair, Tap


class Analysis:
    """What the rules find in one program, beside the facts of its values.

    A rule calls `unify`, `freeze`, `fresh`, `role` and `joined`; the attributes are for those who
    read the result.

    Attributes:
        of_derivative: whether the program is a derivative rule.
        roles: for each parameter slot what it does along its axis: "produce", "consume", "shift",
            "scale", "indirect scale", "batch", "look-up".
        contractions: contractions with parameters by key, in the order of the program.
        pairs: contractions of two activations by key.
        biases: for each contraction the bias added to its product or to a sum with it.
        sums: the contractions whose results are added up, a set for each addition.
        made: by its id the step that makes a value, or the value of an outer program that it is.
        scales: for each consuming slot the scalings of its inputs.
        uses: how often each value is used, by its id.
        loops: the axes of the loops around the present step.
        stacked: for each loop around the present step its axis and the leaves that it runs over.
        averaged: dimensions summed over and divided by their size.
        squared: for every sum of squares the dimensions it is over.
        averaged_squares: those that are divided by their size.
        bent: slots whose parameter passes a nonlinear function before it is contracted.
        unfoldable: dimensions with a scale before a norm or beside another scale.
        totals: every sum over dimensions of activations.
        uncentred: dimensions with other sums over them, such as products with constants.
        mixed: for every product its contracted and its resulting dimensions.
        values: for every value the axes of the loops around it, and its dimensions.
    """

    def __init__(self, of_derivative: bool = False) -> None:
        self.of_derivative = of_derivative
        self.roles: dict[Slot, set[str]] = {}
        self.contractions: dict[str, Contraction] = {}
        self.pairs: dict[str, Pair] = {}
        self.biases: dict[str, Bias] = {}
        self.sums: list[frozenset[Part]] = []
        self.made: dict[int, Step | Value] = {}
        self.scales: dict[Slot, set[Scaling]] = {}
        self.uses: Counter[int] = Counter()
        self.loops: tuple[Dim, ...] = ()
        self.stacked: tuple[tuple[Dim, frozenset[str]], ...] = ()
        self.averaged: list[Dim] = []
        self.squared: list[tuple[Dim, ...]] = []
        self.averaged_squares: list[tuple[Dim, ...]] = []
        self.bent: set[Slot] = set()
        self.unfoldable: list[Dim] = []
        self.totals: list[Total] = []
        self.uncentred: list[Dim] = []
        self.mixed: list[tuple[list[Dim], list[Dim]]] = []
        self.values: list[tuple[tuple[Dim, ...], tuple[Dim | None, ...]]] = []

    def run(self, program: Program) -> None:
        """Analyse every step in order."""
        operands = itertools.chain.from_iterable(step.inputs for step in program.steps)
        self.uses |= Counter(map(id, itertools.chain(operands, program.outputs)))
        for step in program.steps:
            for value in step.inputs:
                self.read(value, as_square=step.name in KEEP_SQUARES)
                if value.total is not None and step.name not in KEEP_TOTALS:
                    value.total[0].spoilt = True
            for value in step.outputs:
                # a loop's body is analysed twice: no facts of the first turn may remain
                value.reset()
                self.made[id(value)] = step
            RULES.get(step.name, UNKNOWN).analyse(step, self)
            self.values += [(self.loops, tuple(value.dims)) for value in step.outputs]
        for value in program.outputs:
            self.read(value, as_square=False)
            if value.total is not None:
                value.total[0].spoilt = True

    def read(self, value: Value, as_square: bool) -> None:
        """Note that a step reads a value; a square is elementwise unless a norm reads it."""
        if isinstance(value, Constant):
            self.constant(value)
        for dim in value.dims if value.square and not as_square else ():
            mark(dim, Kind.ELEMENTWISE)

    def joined(self, values: Sequence[Value], index: int, dim: Dim | None) -> None:
        """Mark an axis along which some values vary and another is a constant other than zero."""
        varying = [varies(value, index) for value in values]
        constant = (value for value, moves in zip(values, varying, strict=True) if not moves)
        if any(varying) and not all(is_zero(value) for value in constant):
            mark(dim, Kind.ELEMENTWISE)

    def constant(self, value: Constant) -> None:
        """The facts of a literal, or of an array that the function closes over."""
        value.constant = [size == 1 or value.zeros for size in value.shape]
        if not value.shape or value.zeros:
            value.literal = 0.0 if value.zeros else value.array
        why = Reason(
            "constant",
            f"it is combined with an array of shape {value.shape} that the function closes over, "
            "such as a table of angles, a mask or an order: make it a parameter, and it is resized",
        )
        for index, size in enumerate(value.shape):
            if several(size) and value.dims[index] is None:
                value.dims[index] = Dim(size)
                if not value.zeros:
                    mark(value.dims[index], Kind.OPAQUE, why)

    def reason(self, step: Step, sentence: str) -> Reason:
        """A reason that names the step's primitive and its place in the source."""
        return Reason(step.name, sentence, step.where)

    def role(self, slots: Collection[Slot], role: str) -> None:
        """Note what parameter slots do along their axes."""
        for slot in slots:
            self.roles.setdefault(slot, set()).add(role)

    def unify(
        self,
        step: Step,
        a: Dim | None,
        b: Dim | None,
        sentence: str = "the two sides are laid out in different ways",
    ) -> None:
        """Make two dimensions one axis, or both opaque for a reason where they cannot be."""
        if a is not None or b is not None:
            unify(a, b, self.reason(step, sentence))

    def freeze(self, step: Step, dim: Dim | None, sentence: str) -> None:
        """Make a dimension opaque, for a reason."""
        if dim is not None:
            mark(dim, Kind.OPAQUE, self.reason(step, sentence))

    def fresh(self, size: int) -> Dim | None:
        """A new axis, or None for a dimension of one."""
        return Dim(size) if several(size) else None

    def count(self, name: str, taken: Collection[str]) -> str:
        """A key that is not taken: a name and a running number."""
        return next(key for key in (f"{name}#{n}" for n in range(10**6)) if key not in taken)


class Replay:
    """How a program is run: the present sizes and the callbacks.

    Attributes:
        sizes: of the atoms that changed.
        tap: receives the operands and the result of every contraction, or None.
        note: called with (step, value, how) wherever a compact array is used, or None.
        unroll: whether loops over time are run turn after turn, without a tap.
    """

    def __init__(
        self,
        sizes: Sizes,
        tap: Tap | None = None,
        note: Callable[[Step, Value, str], None] | None = None,
        unroll: bool = False,
    ):
        self.sizes = sizes
        self.tap = tap
        self.note = note
        self.unroll = unroll

    def size(self, dim: Dim | None) -> int:
        """The present size of a dimension."""
        return size_of(dim, self.sizes)

    def shape(self, value: Value) -> tuple[int, ...]:
        """The present shape of a value."""
        return tuple(
            self.size(dim) if dim is not None else size
            for dim, size in zip(value.dims, value.shape, strict=True)
        )

    def run(self, program: Program, arguments: Sequence[Operand]) -> list[Operand]:
        """The program's outputs for the given arguments, arrays or compact arrays."""
        arrays: dict[int, Operand] = {
            id(value): argument for value, argument in zip(program.inputs, arguments, strict=True)
        }

        def read(value: Value) -> Operand:
            return self.constant(value) if isinstance(value, Constant) else arrays[id(value)]

        for step in program.steps:
            rule = RULES.get(step.name, UNKNOWN)
            # profiles then name a replayed operation as the original
            with compat.context_of(step.equation):
                results = rule.replay(step, [read(value) for value in step.inputs], self)
            arrays.update(zip(map(id, step.outputs), results, strict=True))
        return [read(value) for value in program.outputs]

    def constant(self, value: Constant) -> ArrayLike:
        """An array that the function closes over; zeros at their present size."""
        if value.zeros and self.shape(value) != value.shape:
            return jnp.zeros(self.shape(value), value.dtype)
        return value.array

    def dense(self, step: Step, operand: Operand, value: Value) -> jax.Array:
        """An operand as an array; a compact one is materialised, which is noted."""
        if not is_compact(operand):
            return operand
        self.tell(step, value, "materialised")
        return operand.materialize()

    def tell(self, step: Step, value: Value, how: str) -> None:
        """Note how a step uses a compact array."""
        if self.note is not None:
            self.note(step, value, how)


# --- rules ----------------------------------------------------------------------------------------


Analyse = Callable[[Step, Analysis], None]
Run = Callable[[Step, list[Operand], Replay], list[Operand]]


def bind(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Run a primitive with its own parameters, where none of these is a size."""
    return bind_with(step, operands, replay)


def bind_with(step: Step, operands: list[Operand], replay: Replay, **params: Any) -> list[Operand]:
    """Run a primitive with some of its parameters replaced."""
    pairs = zip(operands, step.inputs, strict=False)
    arrays = [replay.dense(step, operand, value) for operand, value in pairs]
    return compat.bind(step.primitive, arrays, {**step.params, **params})


@dataclasses.dataclass(frozen=True)
class Rule:
    """The rule of a primitive: how it is analysed, and how it runs at other sizes.

    Attributes:
        analyse: a function of (step, analysis). It sets `dims` and the other facts of the values in
            `step.outputs` from those in `step.inputs`.
        replay: a function of (step, operands, replay) that returns the list of outputs; by default
            the primitive is run with its own parameters.

    Example:
        >>> import jaxcompress as jc
        >>> jc.programs.RULES["tanh"].analyse is jc.programs.elementwise
        True
        >>> jc.programs.RULES["reshape"].replay.__name__
        'replay_reshape'
    """

    analyse: Analyse
    replay: Run = bind


def unknown(step: Step, analysis: Analysis) -> None:
    """The rule of a primitive that has none: every axis that it touches is opaque."""
    sentence = f"no rule is known for the primitive {step.name!r}: jaxcompress.register adds one"
    for value in (*step.inputs, *step.outputs):
        for index, size in enumerate(value.shape):
            if value.dims[index] is None:
                value.dims[index] = analysis.fresh(size)
            analysis.freeze(step, value.dims[index], sentence)
    merge_facts(step)


UNKNOWN = Rule(unknown)
RULES: dict[str, Rule] = {}
"""The rule of every known primitive, by its name as `jax.make_jaxpr` prints it."""


def primitives_without_rule() -> list[str]:
    """The primitives of the installed JAX that have no rule, by name.

    An axis that one of them touches is refused, with the primitive named, and a compact array that
    meets one is materialised: nothing is wrong, only less is found. Most are collectives over
    devices, callbacks, factorisations of matrices, and parts of other primitives' derivatives.
    Modules of JAX that are not imported, such as Pallas, add theirs when they are.

    Example:
        >>> import jaxcompress as jc
        >>> missing = jc.programs.primitives_without_rule()
        >>> "qr" in missing, "tanh" in missing
        (True, False)
    """
    return sorted(compat.primitives() - RULES.keys() - compat.INLINED.keys())


KEEP_SQUARES = {"reduce_sum", "convert_element_type", "reduce_precision", "stop_gradient"}
"""Primitives that read a square as a part of a norm."""

KEEP_TOTALS = {"convert_element_type", "reduce_precision", "stop_gradient", "copy", "reshape"}
KEEP_TOTALS |= {"broadcast_in_dim", "squeeze", "expand_dims", "transpose"}
KEEP_TOTALS |= {"add", "sub", "mul", "div", "square", "integer_pow", "max"}
"""Primitives whose rules note what becomes of a sum over an axis."""


def register(*names: str, replay: Run = bind) -> Callable[[Analyse], Analyse]:
    """Add the rule of a primitive, or replace it: a decorator of the function that analyses it.

    Axes that a primitive without a rule touches are refused, with its name. Most custom primitives
    are either `jc.programs.elementwise` (a nonlinear function of single entries) or
    `jc.programs.linear`. Otherwise write a function of (step, analysis) that gives the outputs
    their dimensions: `step.outputs[0].dims[i] = step.inputs[0].dims[j]` for a dimension that
    passes, `analysis.unify(step, a, b)` for two that must be one axis, and
    `analysis.freeze(step, dim, why)` for one that no map may change.

    Args:
        *names: the primitives' names, as `jax.make_jaxpr` prints them.
        replay: a function of (step, operands, replay) that runs the primitive at other sizes and
            returns the list of its outputs. By default it is run with its own parameters, which is
            right where none of them is a size; `replay.shape(step.outputs[0])` is the present
            shape.

    Returns:
        The decorator, which returns the function that it is given.

    Example:
        A custom primitive between two layers: without a rule the hidden axis is refused.

        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> from jax.extend.core import Primitive
        >>> from jax.interpreters import mlir
        >>> def softsign(x):
        ...     return x / (1 + jnp.abs(x))
        >>> primitive = Primitive("saturate")
        >>> _ = primitive.def_impl(softsign), primitive.def_abstract_eval(lambda x: x)
        >>> mlir.register_lowering(primitive, mlir.lower_fun(softsign, multiple_results=False))

        >>> def apply(params, x):
        ...     return primitive.bind(x @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> x = jnp.ones((5, 3))
        >>> jc.trace(apply, params, x).refused["up:1"].reason
        "no rule is known for the primitive 'saturate': jaxcompress.register adds one"

        >>> _ = jc.register("saturate")(jc.programs.elementwise)
        >>> net = jc.trace(apply, params, x)
        >>> net.axes["up:1"].kind
        'elementwise'
        >>> small = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2))}
        >>> net(small, x).shape
        (5, 2)
        >>> _ = jc.programs.RULES.pop("saturate")  # as it was, for other examples
    """
    if not names or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"register takes names of primitives, such as 'sin', got {names!r}")

    def add(analyse: Analyse) -> Analyse:
        RULES.update(dict.fromkeys(names, Rule(analyse, replay)))
        return analyse

    return add
