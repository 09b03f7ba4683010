"""A jaxpr as a list of steps in which every value is unique, so that facts about one use of a shared function stay apart.

Calls that only name a function (jit) are put in line; loops, branches, remat and custom derivative rules keep programs of
their own. Steps that no output needs are left out: frameworks leave dead concatenations behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcompress.programs import compat
from jaxcompress.programs.algebra import Dim


class Slot(NamedTuple):
    """One dimension of one parameter leaf; prints as "leaf:dimension"."""

    leaf: str
    dimension: int

    def __str__(self) -> str:
        return f"{self.leaf}:{self.dimension}"


"""A parameter leaf's name and one of its dimensions, counted from the front."""

NOTHING: frozenset[Slot] = frozenset()


class Value:
    """One array of the program and what is known of it.

    Attributes:
        shape, dtype: at the full sizes.
        dims: a `Dim` for each dimension, None for one of size 1.
        data: whether it depends on the network's inputs.
        slots: for each dimension the parameter slots it came from: by layout alone for a value made of parameters, by
            the contractions and additions that produced it for data.
        constant: for each dimension whether all entries along it are equal.
        direct: whether a value made of parameters is a parameter in another layout or dtype.
        bent: whether a value made of parameters is no linear function of each of them.
        shared: whether a value that it is another layout of is used elsewhere, too.
        literal: the number, for a literal and its broadcasts.
        square: whether it is the square of a value.
        summed: the dimensions it was summed over, since no other step changed its scale.
        squares: whether squares were summed.
        scaled: for each dimension the scale parameters applied along it since it was produced.
        sites: the contractions that this value is the output of, unchanged but for its layout.
    """

    __slots__ = (
        *(
            "bent",
            "constant",
            "data",
            "dims",
            "direct",
            "dtype",
            "literal",
            "scaled",
            "shape",
            "shared",
            "sites",
            "slots",
        ),
        *("square", "squares", "summed"),
    )

    def __init__(self, shape: Sequence[int], dtype: Any):
        self.shape = tuple(shape)
        self.dtype = dtype
        self.reset()

    def reset(self) -> None:
        """Forget everything but shape and dtype."""
        rank = len(self.shape)
        self.dims: list[Dim | None] = [None] * rank
        self.data = False
        self.slots = [NOTHING] * rank
        self.constant = [False] * rank
        self.direct = False
        self.bent = False
        self.shared = False
        self.literal: Any = None
        self.square = False
        self.squares = False
        self.summed: tuple[Dim | None, ...] = ()
        self.scaled = [NOTHING] * rank
        self.sites: frozenset[str] = frozenset()

    @property
    def from_params(self) -> bool:
        """Made of parameters alone."""
        return not self.data and any(self.slots)

    def __repr__(self) -> str:
        return f"Value({self.dtype}{list(self.shape)})"


class Constant(Value):
    """A literal or an array that the function closes over."""

    __slots__ = ("array",)

    def __init__(self, array: Any):
        super().__init__(
            np.shape(array), array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype
        )
        self.array = array


@dataclasses.dataclass(eq=False)
class Step:
    """One equation: a primitive on values, with programs for the functions in its parameters."""

    primitive: Any
    params: dict[str, Any]
    inputs: list[Value]
    outputs: list[Value]
    equation: Any
    caller: Any = None
    programs: dict[str, Program] = dataclasses.field(default_factory=dict)
    note: Any = None
    """What the analysis tells the replay."""

    @property
    def where(self) -> str:
        """The place in the user's source: of the equation, or of the call that it came in line from."""
        return compat.where(self.equation) or (
            compat.where(self.caller) if self.caller is not None else ""
        )

    @property
    def name(self) -> str:
        return self.primitive.name


@dataclasses.dataclass(eq=False)
class Program:
    """Steps from inputs to outputs."""

    inputs: list[Value]
    outputs: list[Value]
    steps: list[Step]


def build(jaxpr: Any, inputs: list[Value] | None = None) -> Program:
    """The program of a jaxpr, open or closed.

    Args:
        jaxpr: from `jax.make_jaxpr`.
        inputs: values for its arguments; fresh ones by default.
    """
    opened, consts = compat.open_jaxpr(jaxpr)
    if inputs is None:
        inputs = [Value(var.aval.shape, var.aval.dtype) for var in opened.invars]
    steps: list[Step] = []
    outputs = _inline(opened, [Constant(const) for const in consts], inputs, steps, None)
    return Program(inputs, outputs, steps)


def _inline(
    jaxpr: Any, consts: list[Value], arguments: list[Value], steps: list[Step], caller: Any
) -> list[Value]:
    env: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(
        zip(jaxpr.invars, arguments, strict=True)
    )

    def read(atom: Any) -> Value:
        return Constant(atom.val) if compat.is_literal(atom) else env[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        if name in compat.INLINED:
            inner, inner_consts = compat.open_jaxpr(equation.params[compat.INLINED[name]])
            known: list[Value] = [Constant(const) for const in inner_consts]
            results = _inline(inner, known, operands, steps, caller or equation)
        else:
            results = [Value(var.aval.shape, var.aval.dtype) for var in equation.outvars]
            made = Step(
                equation.primitive,
                dict(equation.params),
                operands,
                results,
                equation,
                caller,
                _programs(equation),
            )
            steps.append(made)
        env.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _programs(equation: Any) -> dict[str, Program]:
    """The programs of the functions that a control-flow primitive runs."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return {"body": build(params["jaxpr"])}
    if name == "while":
        return {"cond": build(params["cond_jaxpr"]), "body": build(params["body_jaxpr"])}
    if name == "cond":
        return {str(index): build(branch) for index, branch in enumerate(params["branches"])}
    if name in compat.REMAT:
        return {"body": build(params["jaxpr"])}
    if name in compat.CUSTOM:
        return {"body": build(params[compat.CUSTOM[name]])}
    return {}


def prune(program: Program) -> Program:
    """The program without the steps that no output needs."""
    live = {id(value) for value in program.outputs}
    kept = []
    for step in reversed(program.steps):
        wanted = [id(value) in live for value in step.outputs]
        if not any(wanted) and not getattr(step.equation, "effects", None):
            continue
        if step.name == "scan":
            _prune_scan(step, wanted)
        elif step.programs:
            step.programs = {key: prune(inner) for key, inner in step.programs.items()}
        kept.append(step)
        live.update(id(value) for value in step.inputs)
    return Program(program.inputs, program.outputs, kept[::-1])


def _prune_scan(step: Step, wanted: list[bool]) -> None:
    """Drop the stacked outputs that nobody reads; carries stay."""
    _, carry = compat.scan_operands(step.params)
    keep = [index < carry or want for index, want in enumerate(wanted)]
    body = step.programs["body"]
    step.outputs = [value for value, want in zip(step.outputs, keep, strict=True) if want]
    outputs = [value for value, want in zip(body.outputs, keep, strict=True) if want]
    step.programs = {"body": prune(Program(body.inputs, outputs, body.steps))}
