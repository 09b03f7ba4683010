"""Rules of linear systems: triangular solves, and `jax.lax.custom_linear_solve`.

A solve mixes all positions of the system, and none of the other dimensions of its right-hand side.
`custom_linear_solve`, which `jnp.linalg.solve` and conjugate gradients are made of, runs a program
of its own; the programs of its derivatives are replayed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax

from jaxcompress.programs.algebra import Kind, mark
from jaxcompress.programs.control import dense_outputs, transfer
from jaxcompress.programs.derivatives import at_traced_sizes, contracts
from jaxcompress.programs.facts import copy_facts, merge_facts
from jaxcompress.programs.program import Operand, Step, Value
from jaxcompress.programs.rules import Analysis, Replay, bind, register

T = TypeVar("T")


@register("triangular_solve")
def triangular_solve(step: Step, analysis: Analysis) -> None:
    """Linear across the right-hand sides; opaque along the system, which a solve mixes."""
    merge_facts(step)
    matrix, right = step.inputs
    (out,) = step.outputs
    rank = len(out.shape)
    system = rank - 2 if step.params["left_side"] else rank - 1
    why = "a linear system is solved along it"
    for index in (rank - 2, rank - 1):
        analysis.freeze(step, matrix.dims[index], why)
    for index in range(rank):
        copy_facts(out, index, right, index)
        if index < rank - 2:
            analysis.unify(step, matrix.dims[index], right.dims[index])
            mark(out.dims[index], Kind.ELEMENTWISE)
    analysis.freeze(step, right.dims[system], why)


def split_constants(step: Step, items: Sequence[T]) -> tuple[dict[str, list[T]], list[T]]:
    """What each program closes over, by the program's name, and the right-hand sides."""
    constants: dict[str, list[T]] = {}
    start = 0
    for name, count in step.params["const_lengths"]._asdict().items():
        constants[name] = [*items[start : start + count]]
        start += count
    return constants, [*items[start:]]


def replay_solve(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Solve at the present sizes, with the derivatives of the implicit function."""
    pairs = zip(operands, step.inputs, strict=True)
    operands = [replay.dense(step, operand, value) for operand, value in pairs]
    # moments need the contractions inside, and no derivative
    inlined = (
        replay.tap is not None and not replay.tap.derivatives and contracts(step.programs["solve"])
    )
    if not inlined and at_traced_sizes(step, operands, replay):
        return bind(step, operands, replay)
    constants, right = split_constants(step, operands)

    def run(name: str) -> Callable[[list[jax.Array]], list[jax.Array]]:
        program = step.programs[name]

        def call(values: list[jax.Array]) -> list[jax.Array]:
            results = replay.run(program, [*constants[name], *values])
            return dense_outputs(step, replay, program, results)

        return call

    solve = run("solve")
    if inlined:
        return solve(right)
    transposed = run("transpose_solve") if "transpose_solve" in step.programs else None
    auxiliary = len(step.outputs) > len(right)

    def parts(results: list[jax.Array]) -> object:
        return (results[: len(right)], results[len(right) :]) if auxiliary else results

    out = jax.lax.custom_linear_solve(
        run("matvec"),
        right,
        lambda _, values: parts(solve(values)),
        None if transposed is None else lambda _, values: parts(transposed(values)),
        has_aux=auxiliary,
    )
    return jax.tree.leaves(out)


@register("custom_linear_solve", replay=replay_solve)
def custom_linear_solve(step: Step, analysis: Analysis) -> None:
    """The program that solves is analysed; the system and its transpose have the same axes."""
    constants, right = split_constants(step, step.inputs)

    def enter(name: str, values: Sequence[Value]) -> list[Value]:
        program = step.programs[name]
        for source, inner in zip((*constants[name], *values), program.inputs, strict=True):
            transfer(analysis, source, inner)
        return program.outputs

    results = enter("solve", right)
    analysis.run(step.programs["solve"])
    for result, out in zip(results, step.outputs, strict=True):
        transfer(analysis, result, out)
    # what serves derivatives alone relates axes, and is no use of parameters
    why = "a linear system and its derivative are laid out in different ways"
    for name, given in (("matvec", step.outputs), ("transpose_solve", right)):
        if name not in step.programs:
            continue
        results = enter(name, given[: len(right)])
        Analysis(of_derivative=True).run(step.programs[name])
        for result, value in zip(results, right, strict=False):
            for one, other in zip(result.dims, value.dims, strict=True):
                analysis.unify(step, one, other, why)
