"""Rules of functions with derivative rules of their own: `jax.custom_jvp` and `jax.custom_vjp`.

The derivative rule is traced at the full shapes, analysed with the function and replayed with it,
since inlining the function alone would lose it (a straight-through gradient, say). At the traced
sizes the primitive is run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcompress.programs import compat
from jaxcompress.programs.control import transfer
from jaxcompress.programs.program import Operand, Program, Step, Value, build, prune
from jaxcompress.programs.rules import Analysis, Replay, bind, register

T = TypeVar("T")


def differentiable(value: Value) -> bool:
    """Whether derivatives are taken with respect to a value: of floats alone."""
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def floats(items: Iterable[T], values: Sequence[Value]) -> list[T]:
    """The items that belong to differentiable values."""
    return [item for item, value in zip(items, values, strict=True) if differentiable(value)]


def is_jvp(step: Step) -> bool:
    """Whether the rule is one of forward mode."""
    return step.name == "custom_jvp_call"


def directed(step: Step) -> list[bool]:
    """Whether the derivative rule is one with respect to each operand.

    The first operands are what the function closes over, constant arrays as a rule: JAX hands them
    on beside the arguments, and a rule has no derivative with respect to them.
    """
    constants = step.params.get("num_consts", 0)
    return [index >= constants and differentiable(value) for index, value in enumerate(step.inputs)]


def arguments(items: Iterable[T], step: Step) -> list[T]:
    """The items that belong to operands with derivatives."""
    return [item for item, wanted in zip(items, directed(step), strict=True) if wanted]


def derivative(step: Step) -> Program | None:
    """The derivative rule as a program of (operands, tangents or cotangents), at the full shapes.

    Returns:
        The program, or None where nothing is differentiable.
    """
    operands = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in step.inputs]
    results = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in step.outputs]
    tangents, cotangents = arguments(operands, step), floats(results, step.outputs)
    if not tangents or not cotangents:
        return None

    def rule(operands: list[Operand], directions: list[Operand]) -> list[Operand]:
        def call(values: list[Operand]) -> list[Operand]:
            remaining = iter(values)
            merged = [
                next(remaining) if wanted else operand
                for operand, wanted in zip(operands, directed(step), strict=True)
            ]
            return floats(compat.bind(step.primitive, merged, step.params), step.outputs)

        values = arguments(operands, step)
        if is_jvp(step):
            return jax.jvp(call, (values,), (directions,))[1]
        return jax.vjp(call, values)[1](directions)[0]

    directions = tangents if is_jvp(step) else cotangents
    return prune(build(jax.make_jaxpr(rule)(operands, directions)))


def contracts(program: Program) -> bool:
    """Whether a program has a contraction that a tap receives."""
    for step in program.steps:
        notes = step.note if isinstance(step.note, tuple) else (step.note,)
        if any(isinstance(note, str) for note in notes):
            return True
        if any(map(contracts, step.programs.values())):
            return True
    return False


def at_traced_sizes(step: Step, operands: list[Operand], replay: Replay) -> bool:
    """Whether operands and outputs have the traced shapes."""
    shapes = [*map(np.shape, operands), *map(replay.shape, step.outputs)]
    return shapes == [value.shape for value in (*step.inputs, *step.outputs)]


def replay_custom(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Run the function with its derivative rule, both at the present sizes."""
    pairs = zip(operands, step.inputs, strict=True)
    operands = [replay.dense(step, operand, value) for operand, value in pairs]
    body, rule = step.programs["body"], step.programs.get("rule")
    # moments need the contractions inside, and no derivative: the rule is not needed then
    inlined = replay.tap is not None and not replay.tap.derivatives and contracts(body)
    if not inlined and at_traced_sizes(step, operands, replay):
        return bind(step, operands, replay)
    if not contracts(body):
        # JAX keeps a rule with the program that it stands in: a tap's sums would be kept, too
        replay = Replay(replay.sizes, None, replay.note)

    def run(*values: Operand) -> list[Operand]:
        return replay.run(body, list(values))

    if rule is None or inlined:
        return run(*operands)
    closed = step.params.get("num_consts", 0)
    operands[:closed] = closed_over(operands[:closed])
    define = with_jvp if is_jvp(step) else with_vjp
    return define(step, replay, run, rule)(*operands)


@jax.custom_jvp
def closed_over(values: list[jax.Array]) -> list[jax.Array]:
    """What a function with a derivative rule closes over: it has no derivative, as in JAX."""
    return values


@closed_over.defjvp
def _refuse(primals: PyTree, tangents: PyTree) -> PyTree:
    raise TypeError(
        "a function with a derivative rule of its own closes over parameters: the rule has no "
        "derivative with respect to them; make them arguments of the function"
    )


def with_jvp(
    step: Step, replay: Replay, run: Callable[..., list[Operand]], rule: Program
) -> Callable[..., list[Operand]]:
    """A function with a program as its rule of forward mode."""
    function = jax.custom_jvp(run)

    @function.defjvp
    def jvp(
        primals: tuple[Operand, ...], tangents: tuple[Operand, ...]
    ) -> tuple[list[Operand], list[Operand]]:
        directions = arguments(tangents, step)
        derivatives = replay.run(rule, [*primals, *directions])
        wanted = [differentiable(value) for value in step.outputs]
        return run(*primals), with_zeros(derivatives, step.outputs, wanted, replay)

    return function


def with_vjp(
    step: Step, replay: Replay, run: Callable[..., list[Operand]], rule: Program
) -> Callable[..., list[Operand]]:
    """A function with a program as its rule of reverse mode."""

    def forward(*values: Operand) -> tuple[list[Operand], tuple[Operand, ...]]:
        return run(*values), values

    def backward(values: tuple[Operand, ...], cotangents: list[Operand]) -> tuple[Operand, ...]:
        directions = floats(cotangents, step.outputs)
        derivatives = replay.run(rule, [*values, *directions])
        return tuple(with_zeros(derivatives, step.inputs, directed(step), replay))

    function = jax.custom_vjp(run)
    function.defvjp(forward, backward)
    return function


def with_zeros(
    derivatives: list[Operand], values: Sequence[Value], wanted: Sequence[bool], replay: Replay
) -> list[Operand]:
    """Derivatives of the values that have one, and zeros for the others."""
    remaining = iter(derivatives)
    return [
        next(remaining) if has_one else zeros(value, replay)
        for value, has_one in zip(values, wanted, strict=True)
    ]


def zeros(value: Value, replay: Replay) -> Operand:
    """The zero derivative of a value at the present sizes."""
    shape = replay.shape(value)
    if differentiable(value):
        return jnp.zeros(shape, value.dtype)
    # JAX represents the derivatives of integers as zeros of dtype float0
    return np.zeros(shape, jax.dtypes.float0)


@register(*compat.CUSTOM, replay=replay_custom)
def custom(step: Step, analysis: Analysis) -> None:
    """The function is analysed, and its derivative has the axes of its operands and outputs."""
    body = step.programs["body"]
    for source, inner in zip(step.inputs, body.inputs, strict=True):
        transfer(analysis, source, inner)
    analysis.run(body)
    for result, out in zip(body.outputs, step.outputs, strict=True):
        transfer(analysis, result, out)
    if "rule" not in step.programs and not analysis.of_derivative:
        rule = derivative(step)
        if rule is not None:
            step.programs["rule"] = rule
    if "rule" in step.programs:
        relate_derivative(step, analysis, step.programs["rule"])


def relate_derivative(step: Step, analysis: Analysis, rule: Program) -> None:
    """Unify the axes of derivatives with those of their values.

    A derivative rule only relates axes: what it contracts does not count as a use of parameters.
    Custom functions inside of it, which may be the function itself (as in logaddexp), are left to
    JAX.
    """
    operands, outputs = arguments(step.inputs, step), floats(step.outputs, step.outputs)
    directions, results = (operands, outputs) if is_jvp(step) else (outputs, operands)
    for source, inner in zip((*step.inputs, *directions), rule.inputs, strict=True):
        transfer(analysis, source, inner)
    Analysis(of_derivative=True).run(rule)
    why = "its derivative is laid out in another way"
    for value, result in zip(results, rule.outputs, strict=True):
        for one, other in zip(value.dims, result.dims, strict=True):
            analysis.unify(step, one, other, why)
