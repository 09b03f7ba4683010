"""What each primitive does to axes, and how it runs at other sizes: the registry of rules, and what they work on.

A rule has two halves. `analyse(step, analysis)` gives every output its dimensions and facts, unifies what must be one axis
and marks what lies on it; `replay(step, operands, replay)` runs the primitive on operands of the present sizes. A primitive
without a rule makes every axis it touches opaque, and says so. `register` adds rules for a user's own primitives.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcompress.programs import compat
from jaxcompress.programs.algebra import (
    Dim,
    Kind,
    Reason,
    Sizes,
    mark,
    size_of,
    unify,
)
from jaxcompress.programs.program import Constant, Program, Slot, Step, Value


@dataclasses.dataclass
class Contraction:
    """A place where activations meet a parameter, and the axes it consumes.

    Attributes:
        key: the first leaf's name and a running number.
        operand: the position of the activations among the step's operands.
        dims: the contracted dimensions, in the order of the parameter's own.
        slots: for each of them the parameter slots it came from.
        positions: where they are in the activations.
        batch: dimensions of the activations that the parameter has as well, with their positions; a convolution's groups.
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
        return frozenset().union(
            *(slots for index, slots in enumerate(self.slots) if index not in self.window)
        )


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
        of_rule: whether the program is a rule for derivatives.
        roles: for each parameter slot what it does along its axis: "produce", "consume", "shift", "scale", "indirect scale",
            "batch".
        contractions, pairs: by key, in the order of the program.
        biases: for each contraction the slots of a bias added right behind it, with its sign.
        scales: for each consuming slot the sets of scale slots that its inputs had been multiplied by.
    """

    def __init__(self, of_rule: bool = False) -> None:
        self.of_rule = of_rule
        self.roles: dict[Slot, set[str]] = {}
        self.contractions: dict[str, Contraction] = {}
        self.pairs: dict[str, Pair] = {}
        self.biases: dict[str, tuple[frozenset[Slot], int]] = {}
        self.scales: dict[Slot, set[frozenset[Slot]]] = {}
        self.uses: Counter[int] = Counter()
        self.ambient: tuple[Dim, ...] = ()  # the axes of the loops around the present step
        self.stacked: tuple[
            tuple[Dim, frozenset[str]], ...
        ] = ()  # for each of them the leaves that it runs over
        self.averaged: list[Dim] = []  # summed over and divided by their size
        self.squared: list[tuple[Dim, ...]] = []  # of every sum of squares, what it is over
        self.averaged_squares: list[tuple[Dim, ...]] = []  # those divided by their size
        self.bent: set[Slot] = (
            set()
        )  # slots whose parameter passes a nonlinear function before it is contracted
        self.unfoldable: list[Dim] = []  # a scale lies before a norm or beside another scale
        self.mixed: list[
            tuple[list[Dim], list[Dim]]
        ] = []  # of every product what is contracted, and what it gives
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
            for dim in (
                value.dims if value.square else ()
            ):  # whoever reads it elsewhere does not know
                mark(dim, Kind.ELEMENTWISE)

    def joined(self, values: list[Value], index: int, dim: Dim | None) -> None:
        """Mark an axis along which a constant other than zero is put beside values that vary."""
        varying = [varies(value, index) for value in values]
        if any(varying) and any(
            not moves and not is_zero(value) for moves, value in zip(varying, values, strict=True)
        ):
            mark(dim, Kind.ELEMENTWISE)

    def constant(self, value: Constant) -> None:
        """Facts of a literal, or of an array that the function closes over."""
        value.constant = [True] * len(value.shape)
        if not value.shape:
            value.literal = value.array
            return
        met = f"it meets an array of shape {value.shape} that the function closes over"
        why = Reason(
            "constant",
            f"{met}, such as a table of angles, a mask or an order: as a parameter it would follow",
        )
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
        self,
        step: Step,
        a: Dim | None,
        b: Dim | None,
        sentence: str = "the two sides are laid out in different ways",
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
        return next(
            key for key in (f"{name}#{index}" for index in range(10**6)) if key not in taken
        )


class Replay:
    """How a program is run: present sizes, and what is seen on the way.

    Attributes:
        sizes: of the atoms that changed.
        tap: what sees the operands of every contraction (moments/moments.py), or None.
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
        return tuple(
            self.size(dim) if dim is not None else size
            for dim, size in zip(value.dims, value.shape, strict=True)
        )

    def run(self, program: Program, arguments: list[Any]) -> list[Any]:
        """The program's outputs for the given arguments, arrays or compact arrays."""
        env: dict[int, Any] = {
            id(value): argument for value, argument in zip(program.inputs, arguments, strict=True)
        }

        def read(value: Value) -> Any:
            return value.array if isinstance(value, Constant) else env[id(value)]

        for step in program.steps:
            with compat.context_of(step.equation):
                results = RULES.get(step.name, UNKNOWN).replay(
                    step, [read(value) for value in step.inputs], self
                )
            env.update(
                (id(value), result) for value, result in zip(step.outputs, results, strict=True)
            )
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
    dense = [
        replay.dense(step, operand, value)
        for operand, value in zip(operands, step.inputs, strict=False)
    ]
    return compat.bind(step.primitive, dense, {**step.params, **params})


@dataclasses.dataclass(frozen=True)
class Rule:
    """The two halves of what is known of a primitive."""

    analyse: Analyse
    replay: Run = bind


def unknown(step: Step, analysis: Analysis) -> None:
    """Every axis that the primitive touches is opaque."""
    sentence = (
        f"no rule is known for the primitive {step.name!r}: jaxcompress.networks.register adds one"
    )
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
        >>> from jaxcompress.programs import RULES, elementwise, register
        >>> _ = register("my_gelu")(elementwise)
        >>> RULES.pop("my_gelu").analyse is elementwise
        True
    """

    def add(analyse: Analyse) -> Analyse:
        RULES.update({name: Rule(analyse, replay) for name in names})
        return analyse

    return add


# --- facts ---------------------------------------------------------------------------------------


def merge_facts(step: Step) -> None:
    """Data or not, for outputs of which no more is known; what no rule says to be linear in parameters is not."""
    for out in step.outputs:
        out.data = any(value.data for value in step.inputs)
        out.bent = not out.data


def varies(value: Value, index: int) -> bool:
    """Whether a value differs along a dimension of the output."""
    return len(value.shape) > index and value.shape[index] > 1 and not value.constant[index]


def is_zero(value: Value) -> bool:
    return value.literal is not None and not np.any(np.asarray(value.literal) != 0)


def copy_facts(out: Value, index: int, source: Value, position: int) -> None:
    """A dimension that passes unchanged."""
    out.dims[index] = source.dims[position]
    out.slots[index] = source.slots[position]
    out.constant[index] = source.constant[position]
    out.scaled[index] = source.scaled[position]
