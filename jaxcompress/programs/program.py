"""A jaxpr as a list of steps in which every value is a distinct object.

Two uses of a shared function are separate steps, so their facts do not mix. Calls that only name a
function (jit) are inlined; loops, branches, remat and custom derivative rules hold programs of
their own. Steps that no output depends on are dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend import core
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxcompress.programs import compat
from jaxcompress.programs.algebra import Dim


class Slot(NamedTuple):
    """One dimension of one parameter leaf, counted from the front; prints as "leaf:dimension"."""

    leaf: str
    dimension: int

    def __str__(self) -> str:
        return f"{self.leaf}:{self.dimension}"


NOTHING: frozenset[Slot] = frozenset()


class Scaling(NamedTuple):
    """What was applied along one dimension of activations since they were produced.

    Attributes:
        scales: parameters that they were multiplied by.
        shifts: parameters that were added after that.
        normed: whether they were divided by a norm over the dimension.
        alone: whether they vary along the dimension by the scales alone.
    """

    scales: frozenset[Slot] = NOTHING
    shifts: frozenset[Slot] = NOTHING
    normed: bool = False
    alone: bool = False


class Part(NamedTuple):
    """The result of a contraction, or a part of it along the one dimension that it produces.

    Attributes:
        site: the contraction's key.
        start: where the part begins.
        stop: where it ends; None for all of it.
    """

    site: str
    start: int = 0
    stop: int | None = None


PLAIN = Scaling()
MIXED = Scaling(frozenset({Slot("", -1)}))
"""Values with different scalings were joined, so that no scale can be folded."""


@dataclasses.dataclass(eq=False)
class Total:
    """A sum over dimensions of activations, which a layer norm uses to centre them.

    Attributes:
        source: what is summed, or whose squares are.
        dims: the dimensions that it is summed over.
        squared: whether squares are summed.
        spoilt: whether it is used otherwise than to centre its source.
    """

    source: Value | None
    dims: tuple[Dim, ...]
    squared: bool
    spoilt: bool = False


Operand = PyTree
"""One operand or result at a replay: an array, a random key, or a compact array."""


class Value:
    """One array of a program, with the facts that the analysis finds.

    Attributes:
        shape: at the traced sizes.
        dtype: of the traced array.
        dims: a `Dim` for each dimension, None for one of size 1.
        data: whether it depends on the network's inputs.
        slots: for each dimension the parameter slots it comes from: by layout for a value made of
            parameters, by the contractions and additions that produced it for data.
        constant: for each dimension whether all entries along it are equal.
        direct: whether a value made of parameters is a parameter in another layout or dtype.
        bent: whether a value made of parameters is a nonlinear function of one of them.
        shared: whether a value that it is another layout of is also used elsewhere.
        literal: the number, for a literal and its broadcasts.
        count: the symbolic size that it is, such as the number of elements of a batch.
        square: whether it is the square of a value.
        summed: the dimensions it was summed over, while no other step changed its scale.
        squares: whether squares were summed.
        squared: the value that it is the square of, or None.
        origin: the value that it is another dtype of; itself by default.
        scaled: for each dimension what was applied along it since it was produced.
        centred: dimensions along which its mean was subtracted.
        norms: dimensions whose norm it is a power of.
        total: the sum that it is or depends on, and how: "sum", "mean", or "square" of a mean.
        sites: the contractions whose sum it is, but for its layout and parameters added.
    """

    __slots__ = (
        "bent",
        "centred",
        "constant",
        "count",
        "data",
        "dims",
        "direct",
        "dtype",
        "literal",
        "norms",
        "origin",
        "scaled",
        "shape",
        "shared",
        "sites",
        "slots",
        "square",
        "squared",
        "squares",
        "summed",
        "total",
    )

    def __init__(self, shape: Sequence[int], dtype: np.dtype):
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
        self.literal: ArrayLike | None = None
        self.count: int | None = None
        self.square = False
        self.squares = False
        self.summed: tuple[Dim | None, ...] = ()
        self.squared: Value | None = None
        self.origin: Value = self
        self.scaled = [PLAIN] * rank
        self.centred: tuple[Dim, ...] = ()
        self.norms: tuple[Dim, ...] = ()
        self.total: tuple[Total, str] | None = None
        self.sites: frozenset[Part] = frozenset()

    @property
    def from_params(self) -> bool:
        """Whether it is made of parameters alone."""
        return not self.data and any(self.slots)

    @property
    def leaves(self) -> frozenset[str]:
        """The parameter leaves it comes from."""
        return frozenset(slot.leaf for slot in frozenset().union(*self.slots))

    def __repr__(self) -> str:
        return f"Value({self.dtype}{list(self.shape)})"


class Constant(Value):
    """A literal, or an array that the function closes over.

    Attributes:
        array: its entries.
        zeros: whether they are all zero, as those of a state before the first turn.
    """

    __slots__ = ("array", "zeros")

    def __init__(self, array: ArrayLike):
        dtype = getattr(array, "dtype", None)
        super().__init__(np.shape(array), np.asarray(array).dtype if dtype is None else dtype)
        self.array = array
        self.zeros = bool(self.shape) and _is_zero(array)


def _is_zero(array: ArrayLike) -> bool:
    """Whether the entries of an array are known and zero."""
    # a derivative rule closes over traced values; random keys are no numbers
    if isinstance(array, Tracer) or jnp.issubdtype(jnp.result_type(array), jax.dtypes.extended):
        return False
    return not np.any(np.asarray(array))


@dataclasses.dataclass(eq=False)
class Step:
    """One equation: a primitive applied to values.

    Attributes:
        primitive: the JAX primitive.
        params: its parameters, as in the jaxpr.
        inputs: its operands.
        outputs: its results.
        equation: the jaxpr's equation.
        caller: the call that the equation was inlined from, or None.
        programs: for control flow the programs of the functions that it runs.
        note: what the rule's analysis leaves for its replay.
    """

    primitive: core.Primitive
    params: dict[str, Any]  # whatever the primitive takes, from sizes to functions
    inputs: list[Value]
    outputs: list[Value]
    equation: core.JaxprEqn
    caller: core.JaxprEqn | None = None
    programs: dict[str, Program] = dataclasses.field(default_factory=dict)
    note: Any = None  # read by the same primitive's replay alone

    @property
    def where(self) -> str:
        """File, line and function in the user's source, of the equation or else of its caller."""
        here = compat.where(self.equation)
        return here or (compat.where(self.caller) if self.caller is not None else "")

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name


@dataclasses.dataclass(eq=False)
class Program:
    """Steps from inputs to outputs."""

    inputs: list[Value]
    outputs: list[Value]
    steps: list[Step]


def build(jaxpr: core.Jaxpr | core.ClosedJaxpr, inputs: list[Value] | None = None) -> Program:
    """The program of a jaxpr, open or closed.

    Args:
        jaxpr: from `jax.make_jaxpr`.
        inputs: values for its arguments; fresh ones by default.
    """
    opened, constants = compat.open_jaxpr(jaxpr)
    if inputs is None:
        inputs = [_fresh(var) for var in opened.invars]
    steps: list[Step] = []
    outputs = _inline(opened, constants, inputs, steps, None)
    return Program(inputs, outputs, steps)


def _fresh(var: core.Var) -> Value:
    """A value without facts, of a variable's shape and dtype."""
    aval = cast(ShapedArray, var.aval)
    return Value(aval.shape, aval.dtype)


def _inline(
    jaxpr: core.Jaxpr,
    constants: Sequence[ArrayLike],
    arguments: list[Value],
    steps: list[Step],
    caller: core.JaxprEqn | None,
) -> list[Value]:
    """Append a jaxpr's equations to a list of steps; returns its outputs."""
    values: dict[core.Var, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    values |= zip(jaxpr.constvars, map(Constant, constants), strict=True)

    def read(atom: core.Var | core.Literal) -> Value:
        return Constant(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        name, params = equation.primitive.name, equation.params
        if name in compat.INLINED:
            inner, inner_constants = compat.open_jaxpr(params[compat.INLINED[name]])
            results = _inline(inner, inner_constants, operands, steps, caller or equation)
        else:
            results = [_fresh(var) for var in equation.outvars]
            programs = _programs(equation)
            steps.append(
                Step(
                    equation.primitive, dict(params), operands, results, equation, caller, programs
                )
            )
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _programs(equation: core.JaxprEqn) -> dict[str, Program]:
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
    if name == "custom_linear_solve":
        solvers = params["jaxprs"]._asdict().items()
        # the transpose of the system is derived anew where the solve is replayed
        return {key: build(body) for key, body in solvers if body and key != "vecmat"}
    return {}


def prune(program: Program) -> Program:
    """The program without the steps that no output depends on."""
    live = {id(value) for value in program.outputs}
    kept = []
    for step in reversed(program.steps):
        wanted = [id(value) in live for value in step.outputs]
        # effects, such as a debug print, happen though no output depends on them
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
    """Drop the stacked outputs that no step reads; carries stay."""
    _, carry = compat.scan_operands(step.params)
    # a carry feeds the next turn even where its final value is unread
    keep = [index < carry or want for index, want in enumerate(wanted)]
    body = step.programs["body"]
    step.outputs = [value for value, want in zip(step.outputs, keep, strict=True) if want]
    outputs = [value for value, want in zip(body.outputs, keep, strict=True) if want]
    step.programs = {"body": prune(Program(body.inputs, outputs, body.steps))}
