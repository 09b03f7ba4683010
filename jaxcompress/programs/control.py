"""Rules of loops, branches and remat: primitives that run programs of their own.

A loop's carry is one axis before, inside and after it. Layers stacked for a scan share the loop's
own axis, so a map may differ from layer to layer. Where a tap is given, the sums that it gathers in
a loop are carried through it: added up over the turns, or stacked where the loop runs over layers.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.base import is_compact
from jaxcompress.programs import compat
from jaxcompress.programs.algebra import Dim, Kind, mark
from jaxcompress.programs.facts import (
    agreed,
    copy_facts,
    copy_value,
    forget_origin,
    is_zero,
    merge_facts,
)
from jaxcompress.programs.program import Operand, Program, Step, Value
from jaxcompress.programs.rules import Analysis, Replay, register

T = TypeVar("T")


# --- values that enter and leave a program --------------------------------------------------------


def transfer(analysis: Analysis, source: Value, target: Value) -> None:
    """Give a value all facts of another one of the same shape."""
    copy_value(target, source)
    analysis.made[id(target)] = source
    target.shared = source.shared or analysis.uses[id(source)] > 1


def transfer_slice(analysis: Analysis, source: Value, target: Value) -> None:
    """Give a value the facts of one that it is a slice of, along the first dimension."""
    for index in range(len(target.shape)):
        copy_facts(target, index, source, index + 1)
    # sums and sites refer to the full stack: they do not hold for a slice
    for name in ("bent", "data", "direct", "literal", "square", "squares"):
        setattr(target, name, getattr(source, name))
    target.summed, target.sites = (), frozenset()
    target.shared = source.shared or analysis.uses[id(source)] > 1


def join(step: Step, analysis: Analysis, source: Value, target: Value) -> None:
    """Let a value be either of two: axes are unified, and only facts of both remain."""
    for value in (source, target):
        for dim in value.dims if value.square else ():
            mark(dim, Kind.ELEMENTWISE)  # no longer only part of a norm
    for index in range(len(target.shape)):
        analysis.joined([source, target], index, source.dims[index] or target.dims[index])
        if target.dims[index] is None:
            target.dims[index] = source.dims[index]
        elif source.dims[index] is not None:
            analysis.unify(step, source.dims[index], target.dims[index])
        target.slots[index] |= source.slots[index]
        target.scaled[index] = agreed([source.scaled[index], target.scaled[index]])
        target.constant[index] &= source.constant[index]
    target.data |= source.data
    target.bent |= source.bent
    target.direct &= source.direct
    target.square &= source.square
    ours, theirs = source.literal, target.literal
    if ours is None or theirs is None or not np.array_equal(ours, theirs):
        target.literal = None
    target.summed, target.sites = (), frozenset()


def as_carry(value: Value) -> None:
    """Make a loop's carry data that differs from turn to turn, whatever it starts as."""
    for index, dim in enumerate(value.dims):
        if value.square or (value.constant[index] and not is_zero(value)):
            mark(dim, Kind.ELEMENTWISE)
    value.data, value.literal, value.square = True, None, False
    value.constant = [False] * len(value.shape)
    forget_origin(value)


def analyse_loop(step: Step, analysis: Analysis, carries: Sequence[Value]) -> None:
    """Analyse a loop's body twice, since its second turn starts from the results of the first."""
    body = step.programs["body"]
    # a carry that every turn hands on as it is, such as the parameters, is a constant
    changing = [
        (carry, result)
        for carry, result in zip(carries, body.outputs, strict=False)
        if result is not carry
    ]
    for carry, _ in changing:
        as_carry(carry)
    for _ in range(2):
        analysis.run(body)
        for carry, result in changing:
            join(step, analysis, result, carry)
            as_carry(carry)


def dense_outputs(
    step: Step, replay: Replay, program: Program, results: list[Operand]
) -> list[Operand]:
    """A program's outputs as arrays, since they leave one of JAX's functions."""
    pairs = zip(results, program.outputs, strict=True)
    return [replay.dense(step, result, value) for result, value in pairs]


def nested(replay: Replay, turns: Dim | None = None, index: jax.Array | None = None) -> Replay:
    """A replay whose tap starts from empty sums: for a branch, or for one turn of a loop.

    Args:
        replay: around the loop.
        turns: the axis of a loop over layers.
        index: the number of the turn.
    """
    if replay.tap is None:
        return replay
    return Replay(replay.sizes, replay.tap.nested(turns, index), replay.note, replay.unroll)


def zeros_like(shapes: PyTree) -> PyTree:
    """Zeros of the shapes and dtypes that `jax.eval_shape` returns."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def accumulate(sums: PyTree, more: PyTree) -> PyTree:
    """Sums with others added to them, where there are any yet."""
    return jax.tree.map(jnp.add, sums, more) if sums else more


# --- scan -----------------------------------------------------------------------------------------


def split_operands(step: Step, values: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
    """A scan's operands: constants, carries, and what it runs over."""
    constants, carries = compat.scan_operands(step.params)
    end = constants + carries
    return [*values[:constants]], [*values[constants:end]], [*values[end:]]


def runs_over_time(step: Step) -> bool:
    """Whether a scan has turns, and runs over no parameters, such as layers."""
    stacked = split_operands(step, step.inputs)[2]
    return step.params["length"] != 0 and not any(value.from_params for value in stacked)


def slices_children(operand: Operand) -> bool:
    """Whether slices of an operand's children are slices of the operand, along the first dimension.

    They are for a stack of matrices, not for the rows of one matrix, nor where the matrices of a
    stack share a child.
    """
    if not is_compact(operand):
        return True
    if not operand.stack_shape:
        return False
    try:
        one = jax.eval_shape(lambda array: jax.tree.map(operator.itemgetter(0), array), operand)
        shape = jax.eval_shape(lambda array: array.materialize(), one).shape
    except (IndexError, RuntimeError, TypeError, ValueError):  # some child has no slice for each
        return False
    return shape == operand.shape[1:]


def unrolled_scan(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Run the body of a scan turn after turn, each a part of the program of its own."""
    body = step.programs["body"]
    constants, values, stacked = split_operands(step, operands)
    _, carries, _ = split_operands(step, body.inputs)
    count = len(stacked[0]) if stacked else step.params["length"]
    turns: dict[int, list[Operand]] = {}
    for turn in reversed(range(count)) if step.params["reverse"] else range(count):
        slices = [jax.lax.index_in_dim(operand, turn, keepdims=False) for operand in stacked]
        outputs = replay.run(body, [*constants, *values, *slices])
        results = dense_outputs(step, replay, body, outputs)
        values = [
            jnp.asarray(result, value.dtype)
            for result, value in zip(results, carries, strict=False)
        ]
        turns[turn] = results[len(values) :]
    return [*values, *map(jnp.stack, zip(*(turns[turn] for turn in range(count)), strict=True))]


def replay_scan(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Scan the body at the present sizes, with a tap's sums as another carry."""
    body, tap = step.programs["body"], replay.tap
    constants, init, stacked = split_operands(step, operands)
    if replay.unroll and tap is None and runs_over_time(step):
        return unrolled_scan(step, operands, replay)
    _, carries, slices = split_operands(step, body.inputs)
    init = [
        jnp.asarray(replay.dense(step, operand, value), value.dtype)
        for operand, value in zip(init, carries, strict=True)
    ]
    stacked = [
        operand if slices_children(operand) else replay.dense(step, operand, value)
        for operand, value in zip(stacked, slices, strict=True)
    ]

    def turn(
        state: tuple[list[Operand], PyTree], given: tuple[list[Operand], jax.Array | None]
    ) -> tuple[PyTree, PyTree]:
        (values, sums), (slices, index) = state, given
        inner = nested(replay, step.note, index)
        outputs = inner.run(body, [*constants, *values, *slices])
        results = dense_outputs(step, inner, body, outputs)
        added, layers = ({}, {}) if inner.tap is None else inner.tap.split_sums(step.note)
        carry = results[: len(init)], accumulate(sums, added)
        return carry, (results[len(init) :], layers)

    options = {name: step.params[name] for name in ("reverse", "unroll")}
    if not stacked:  # else what the loop runs over has it, and it may be symbolic
        options["length"] = step.params["length"]
    if tap is None:
        (final, _), (outputs, _) = jax.lax.scan(turn, (init, {}), (stacked, None), **options)
        return [*final, *outputs]
    given = stacked, jnp.arange(step.params["length"])
    # a carry needs its structure before the first turn: one abstract turn gives the sums' shapes
    first = jax.tree.map(lambda leaf: leaf[0], given)
    (_, shapes), _ = jax.eval_shape(turn, (init, {}), first)
    (final, sums), (outputs, layers) = jax.lax.scan(
        turn, (init, zeros_like(shapes)), given, **options
    )
    tap.update(sums, layers)
    return [*final, *outputs]


@register("scan", replay=replay_scan)
def scan(step: Step, analysis: Analysis) -> None:
    """A carry is one axis throughout; what the loop runs over shares the loop's axis."""
    merge_facts(step)
    body = step.programs["body"]
    constants, init, stacked = split_operands(step, step.inputs)
    _, carries, slices = split_operands(step, body.inputs)
    turns = step.note = loop_axis(step, analysis, stacked)
    for source, inner in zip((*constants, *init), body.inputs, strict=False):
        transfer(analysis, source, inner)
        analysis.values.append((analysis.loops, tuple(inner.dims)))
    for source, inner in zip(stacked, slices, strict=True):
        transfer_slice(analysis, source, inner)
    with inside_loop(analysis, turns, stacked):
        analysis.values += [(analysis.loops, tuple(inner.dims)) for inner in slices]
        analyse_loop(step, analysis, carries)
    for out, carry in zip(step.outputs, carries, strict=False):
        transfer(analysis, carry, out)
    for out, result in zip(step.outputs[len(init) :], body.outputs[len(init) :], strict=True):
        out.dims[0], out.data = turns, result.data
        for index in range(len(result.shape)):
            copy_facts(out, index + 1, result, index)


def loop_axis(step: Step, analysis: Analysis, stacked: Sequence[Value]) -> Dim | None:
    """The axis that a scan runs along, the first dimension of all that it runs over."""
    turns: Dim | None = None
    why = "a loop runs along it"
    for value in stacked:
        dim = value.dims[0]
        analysis.freeze(step, dim, why)
        if turns is None:
            turns = dim
        elif dim is not None:
            analysis.unify(step, turns, dim)
    if turns is None:
        turns = analysis.fresh(step.params["length"])
        analysis.freeze(step, turns, why)
    return turns


@contextlib.contextmanager
def inside_loop(analysis: Analysis, turns: Dim | None, stacked: Sequence[Value]) -> Iterator[None]:
    """Analyse steps inside a loop along an axis, over layers of the stacked parameters."""
    outside = analysis.loops, analysis.stacked
    if turns is not None:
        leaves = [value.leaves for value in stacked if value.from_params]
        analysis.loops = (*analysis.loops, turns)
        analysis.stacked = (*analysis.stacked, (turns, frozenset().union(*leaves)))
    yield
    analysis.loops, analysis.stacked = outside


# --- while ----------------------------------------------------------------------------------------


def split_while(step: Step, values: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
    """A while loop's operands: constants of the condition, of the body, and carries."""
    first = step.params["cond_nconsts"]
    end = first + step.params["body_nconsts"]
    return [*values[:first]], [*values[first:end]], [*values[end:]]


def replay_while(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Loop at the present sizes. No derivative passes a loop of unknown length."""
    # the condition only decides when to stop: its contractions are not measured
    silent = Replay(replay.sizes, None, replay.note, replay.unroll)
    derivatives = replay.tap is not None and replay.tap.derivatives
    inside = silent if derivatives else replay
    tested, fixed, init = split_while(step, operands)
    init = [
        jnp.asarray(replay.dense(step, operand, full), value.dtype)
        for operand, full, value in zip(
            init, split_while(step, step.inputs)[2], step.outputs, strict=True
        )
    ]
    # reverse mode through a while loop raises in JAX, so its operands count as constants
    if derivatives:
        tested, fixed, init = jax.lax.stop_gradient((tested, fixed, init))

    def test(state: tuple[list[Operand], PyTree]) -> jax.Array:
        return silent.run(step.programs["cond"], [*tested, *state[0]])[0]

    def body(state: tuple[list[Operand], PyTree]) -> tuple[list[Operand], PyTree]:
        values, sums = state
        inner = nested(inside)
        program = step.programs["body"]
        results = dense_outputs(step, inner, program, inner.run(program, [*fixed, *values]))
        added = {} if inner.tap is None else inner.tap.split_sums(None)[0]
        return results, accumulate(sums, added)

    sums = zeros_like(jax.eval_shape(body, (init, {}))[1])
    results, sums = jax.lax.while_loop(test, body, (init, sums))
    if inside.tap is not None:
        inside.tap.update(sums)
    return results


@register("while", replay=replay_while)
def while_(step: Step, analysis: Analysis) -> None:
    """A carry is one axis throughout."""
    tested, fixed, init = split_while(step, step.inputs)
    test, body = step.programs["cond"], step.programs["body"]
    for source, inner in zip((*fixed, *init), body.inputs, strict=True):
        transfer(analysis, source, inner)
    carries = body.inputs[len(fixed) :]
    analyse_loop(step, analysis, carries)
    for source, inner in zip((*tested, *carries), test.inputs, strict=True):
        transfer(analysis, source, inner)
    analysis.run(test)
    for out, carry in zip(step.outputs, carries, strict=True):
        transfer(analysis, carry, out)


# --- cond -----------------------------------------------------------------------------------------


Results = tuple[list[jax.Array], dict[str, PyTree]]
"""A branch's outputs, and the sums that a tap gathered in it."""


def replay_cond(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Switch between branches at the present sizes; a tap's sums of the others are zeros."""
    index, *rest = operands
    programs = [step.programs[str(number)] for number in range(len(step.programs))]

    def branch(program: Program, zeros: dict[str, PyTree]) -> Callable[..., Results]:
        def run(*values: Operand) -> Results:
            inner = nested(replay)
            results = dense_outputs(step, inner, program, inner.run(program, list(values)))
            return results, zeros if inner.tap is None else {**zeros, **inner.tap.sums}

        return run

    # branches of a switch return one structure: the union of the sums of all
    zeros: dict[str, PyTree] = {}
    for program in programs if replay.tap is not None else ():
        zeros |= zeros_like(jax.eval_shape(branch(program, {}), *rest)[1])
    branches = [branch(program, zeros) for program in programs]
    results, sums = compat.switch(index, branches, rest, step.params)
    if replay.tap is not None:
        replay.tap.update(sums)
    return results


@register("cond", replay=replay_cond)
def cond(step: Step, analysis: Analysis) -> None:
    """An output is the joined result of all branches."""
    branches = list(step.programs.values())
    which, *operands = step.inputs
    # read by several branches means several uses, though a run takes only one
    shared = [readers(branches, index) > 1 for index in range(len(operands))]
    for number, program in enumerate(branches):
        for index, (source, inner) in enumerate(zip(operands, program.inputs, strict=True)):
            transfer(analysis, source, inner)
            inner.shared |= shared[index]
        analysis.run(program)
        for out, result in zip(step.outputs, program.outputs, strict=True):
            if number == 0:
                transfer(analysis, result, out)
            else:
                join(step, analysis, result, out)
    for out in step.outputs if which.data else ():
        out.data = True


def readers(programs: Sequence[Program], index: int) -> int:
    """The number of programs that use their input at an index."""
    return sum(reads(program, program.inputs[index]) for program in programs)


def reads(program: Program, value: Value) -> bool:
    """Whether a program uses a value."""
    operands = itertools.chain.from_iterable(step.inputs for step in program.steps)
    return any(read is value for read in itertools.chain(program.outputs, operands))


# --- remat ----------------------------------------------------------------------------------------


def replay_remat(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Rematerialise as the equation did; with a tap, which has no backward pass, run it plainly."""
    body = step.programs["body"]
    if replay.tap is not None:
        return replay.run(body, operands)

    def run(*values: Operand) -> list[Operand]:
        return dense_outputs(step, replay, body, replay.run(body, list(values)))

    return compat.checkpointed(run, step.params)(*operands)


@register(*compat.REMAT, replay=replay_remat)
def remat(step: Step, analysis: Analysis) -> None:
    """Values enter and leave as they are."""
    body = step.programs["body"]
    for source, inner in zip(step.inputs, body.inputs, strict=True):
        transfer(analysis, source, inner)
        analysis.uses[id(inner)] = 0
    analysis.run(body)
    for result, out in zip(body.outputs, step.outputs, strict=True):
        transfer(analysis, result, out)
