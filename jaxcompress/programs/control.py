"""Loops, branches, remat and custom derivative rules: primitives that run programs of their own.

A loop's carry is one axis before, inside and after it; stacked layers share the loop's own axis, so
a map may differ in each. Rules for derivatives are traced at the full shapes, analysed with the
rest and replayed with it: inlining would lose a straight-through gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.programs import compat
from jaxcompress.programs.algebra import Dim, Kind, mark
from jaxcompress.programs.facts import agreed, copy_facts, is_zero, merge_facts
from jaxcompress.programs.program import Program, Step, Value, build, prune
from jaxcompress.programs.rules import Analysis, Replay, bind, register

FACTS = ("bent", "data", "direct", "literal", "square", "squares", "summed", "sites")


def hand_over(analysis: Analysis, source: Value, target: Value) -> None:
    """Give a value all that is known of another of the same shape."""
    for name in FACTS:
        setattr(target, name, getattr(source, name))
    target.shared = source.shared or analysis.uses[id(source)] > 1
    for index in range(len(target.shape)):
        copy_facts(target, index, source, index)


def join(step: Step, analysis: Analysis, source: Value, target: Value) -> None:
    """Let a value also be another one: axes are unified, facts are weakened to what holds for both."""
    for value in (source, target):
        for dim in value.dims if value.square else ():
            mark(dim, Kind.ELEMENTWISE)  # squares and others meet
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
    if target.literal is not None and (
        source.literal is None or not np.array_equal(source.literal, target.literal)
    ):
        target.literal = None
    target.square &= source.square
    target.summed, target.sites = (), frozenset()


def all_dense(step: Step, replay: Replay, program: Program, results: list[Any]) -> list[Any]:
    """A program's outputs as arrays: they leave a function of JAX's."""
    return [
        replay.dense(step, result, value)
        for result, value in zip(results, program.outputs, strict=True)
    ]


def opaque_carry(value: Value) -> None:
    """A loop's carry is data that differs from turn to turn, whatever it starts as."""
    for index, dim in enumerate(value.dims):
        if value.square or (value.constant[index] and not is_zero(value)):
            mark(dim, Kind.ELEMENTWISE)
    value.data, value.literal, value.direct, value.square = True, None, False, False
    value.constant = [False] * len(value.shape)
    value.summed, value.sites = (), frozenset()


def seen_in(replay: Replay) -> Replay:
    """A replay whose tap adds up what one branch, or one turn of a loop of unknown length, shows it."""
    return (
        replay
        if replay.tap is None
        else Replay(replay.sizes, replay.tap.nested(None, None), replay.note)
    )


def zeros_like(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


# --- scan ----------------------------------------------------------------------------------------


def replay_scan(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    body = step.programs["body"]
    consts, carry = compat.scan_operands(step.params)
    fixed, init, stacked = (
        operands[:consts],
        operands[consts : consts + carry],
        operands[consts + carry :],
    )
    init = [
        replay.dense(step, value, full)
        for value, full in zip(init, body.inputs[consts:], strict=False)
    ]
    init = [
        jnp.asarray(value, inner.dtype)
        for value, inner in zip(init, body.inputs[consts : consts + carry], strict=True)
    ]
    options = {name: step.params[name] for name in ("length", "reverse", "unroll")}
    taps = replay.tap

    def turn(
        state: tuple[list[Any], Any], given: tuple[list[Any], Any]
    ) -> tuple[tuple[list[Any], Any], Any]:
        (values, sums), (slices, index) = state, given
        inner = (
            replay
            if taps is None
            else Replay(replay.sizes, taps.nested(step.note, index), replay.note)
        )
        results = all_dense(step, inner, body, inner.run(body, [*fixed, *values, *slices]))
        seen, layers = ({}, {}) if taps is None else inner.tap.divide(step.note)
        return (results[:carry], jax.tree.map(jnp.add, sums, seen) if sums else seen), (
            results[carry:],
            layers,
        )

    sums, given = {}, (stacked, None if taps is None else jnp.arange(step.params["length"]))
    if taps is not None:  # sums over the turns start from zeros, whose shapes one turn tells
        first = jax.tree.map(lambda leaf: leaf[0], given)
        sums = zeros_like(jax.eval_shape(turn, (init, {}), first)[0][1])
    (final, sums), (outputs, layers) = jax.lax.scan(turn, (init, sums), given, **options)
    if taps is not None:
        taps.update(sums, layers)
    return [*final, *outputs]


@register("scan", replay=replay_scan)
def scan(step: Step, analysis: Analysis) -> None:
    body = step.programs["body"]
    consts, carry = compat.scan_operands(step.params)
    merge_facts(step)
    stacked = step.inputs[consts + carry :]
    turns: Dim | None = None
    for value in stacked:
        dim = value.dims[0]
        analysis.freeze(step, dim, "a loop runs along it")
        if turns is not None and dim is not None:
            analysis.unify(step, turns, dim)
        turns = turns if turns is not None else dim
    if turns is None:
        turns = analysis.fresh(step.params["length"])
        analysis.freeze(step, turns, "a loop runs along it")
    for source, inner in zip(step.inputs[: consts + carry], body.inputs, strict=False):
        hand_over(analysis, source, inner)
    for inner in body.inputs[consts : consts + carry]:
        opaque_carry(inner)
    for source, inner in zip(stacked, body.inputs[consts + carry :], strict=True):
        for name in FACTS:
            setattr(inner, name, getattr(source, name))
        inner.shared = source.shared or analysis.uses[id(source)] > 1
        for index in range(len(inner.shape)):
            copy_facts(inner, index, source, index + 1)
        inner.summed, inner.sites = (), frozenset()
    outer, around = analysis.ambient, analysis.stacked
    if turns is not None:
        analysis.ambient = (*outer, turns)
        leaves = frozenset(
            name
            for value in stacked
            if value.from_params
            for slots in value.slots
            for name, _ in slots
        )
        analysis.stacked = (*around, (turns, leaves))
    step.note = turns
    for inner in body.inputs:
        analysis.company.append(
            (
                analysis.ambient if inner in body.inputs[consts + carry :] else outer,
                tuple(inner.dims),
            )
        )
    for _ in range(2):  # what the first turn hands on, the second receives
        analysis.run(body)
        for inner, result in zip(body.inputs[consts : consts + carry], body.outputs, strict=False):
            join(step, analysis, result, inner)
            opaque_carry(inner)
    analysis.ambient, analysis.stacked = outer, around
    for out, inner in zip(step.outputs[:carry], body.inputs[consts : consts + carry], strict=True):
        hand_over(analysis, inner, out)
    for out, result in zip(step.outputs[carry:], body.outputs[carry:], strict=True):
        out.dims[0] = turns
        for index in range(len(result.shape)):
            copy_facts(out, index + 1, result, index)
            out.constant[index + 1] = result.constant[index]
        out.data = result.data


# --- while and cond ------------------------------------------------------------------------------


def replay_while(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    quiet = Replay(replay.sizes, None, replay.note)
    loud = quiet if replay.tap is None or replay.tap.derivatives else replay
    first, second = step.params["cond_nconsts"], step.params["body_nconsts"]
    carry = [
        replay.dense(step, value, full) for value, full in zip(operands, step.inputs, strict=True)
    ][first + second :]
    operands = [*operands[: first + second], *carry]
    if (
        replay.tap is not None and replay.tap.derivatives
    ):  # no derivative passes a loop of unknown length
        operands = [jax.lax.stop_gradient(value) for value in operands]
    test = lambda state: quiet.run(step.programs["cond"], [*operands[:first], *state[0]])[0]

    def body(state: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
        values, sums = state
        inner = seen_in(loud)
        results = inner.run(step.programs["body"], [*operands[first : first + second], *values])
        seen = {} if inner.tap is None else inner.tap.divide(None)[0]
        return results, jax.tree.map(jnp.add, sums, seen) if sums else seen

    init = [
        jnp.asarray(value, inner.dtype)
        for value, inner in zip(operands[first + second :], step.outputs, strict=True)
    ]
    sums = zeros_like(jax.eval_shape(body, (init, {}))[1])
    results, sums = jax.lax.while_loop(test, body, (init, sums))
    if loud.tap is not None:
        loud.tap.update(sums)
    return results


@register("while", replay=replay_while)
def while_(step: Step, analysis: Analysis) -> None:
    first, second = step.params["cond_nconsts"], step.params["body_nconsts"]
    test, body = step.programs["cond"], step.programs["body"]
    for source, inner in zip(step.inputs[first:], body.inputs, strict=True):
        hand_over(analysis, source, inner)
    for inner in body.inputs[second:]:
        opaque_carry(inner)
    for _ in range(2):
        analysis.run(body)
        for inner, result in zip(body.inputs[second:], body.outputs, strict=True):
            join(step, analysis, result, inner)
            opaque_carry(inner)
    for source, inner in zip(
        [*step.inputs[:first], *body.inputs[second:]], test.inputs, strict=True
    ):
        hand_over(analysis, source, inner)
    analysis.run(test)
    for out, inner in zip(step.outputs, body.inputs[second:], strict=True):
        hand_over(analysis, inner, out)


def replay_cond(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    index, *rest = operands

    def branch(program: Program, others: dict[str, Any]) -> Any:
        def run(*values: Any) -> tuple[list[Any], dict[str, Any]]:
            inner = seen_in(replay)
            results = all_dense(step, inner, program, inner.run(program, list(values)))
            return results, others if inner.tap is None else {**others, **inner.tap.sums}

        return run

    programs, sums = [step.programs[str(number)] for number in range(len(step.programs))], {}
    if replay.tap is not None:  # a branch that is not taken shows nothing
        for program in programs:
            sums |= zeros_like(jax.eval_shape(branch(program, {}), *rest)[1])
    results, sums = jax.lax.switch(index, [branch(program, sums) for program in programs], *rest)
    if replay.tap is not None:
        replay.tap.update(sums)
    return results


def reads(program: Program, value: Value) -> bool:
    """Whether a program uses one of its inputs."""
    return any(used is value for step in program.steps for used in step.inputs) or any(
        out is value for out in program.outputs
    )


@register("cond", replay=replay_cond)
def cond(step: Step, analysis: Analysis) -> None:
    for number, program in enumerate(step.programs.values()):
        for index, (source, inner) in enumerate(zip(step.inputs[1:], program.inputs, strict=True)):
            hand_over(analysis, source, inner)
            inner.shared |= (
                sum(reads(each, each.inputs[index]) for each in step.programs.values()) > 1
            )
        analysis.run(program)
        for out, result in zip(step.outputs, program.outputs, strict=True):
            (hand_over(analysis, result, out) if number == 0 else join(step, analysis, result, out))
    if step.inputs[0].data:
        for out in step.outputs:
            out.data = True


# --- remat ---------------------------------------------------------------------------------------


def replay_remat(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    body = step.programs["body"]
    if replay.tap is not None:
        return replay.run(body, operands)
    run = lambda *values: all_dense(step, replay, body, replay.run(body, list(values)))
    return compat.checkpointed(run, step.params)(*operands)


@register(*compat.REMAT, replay=replay_remat)
def remat(step: Step, analysis: Analysis) -> None:
    body = step.programs["body"]
    for source, inner in zip(step.inputs, body.inputs, strict=True):
        hand_over(analysis, source, inner)
        analysis.uses[id(inner)] = 0
    analysis.run(body)
    for result, out in zip(body.outputs, step.outputs, strict=True):
        hand_over(analysis, result, out)


# --- custom derivative rules ---------------------------------------------------------------------


def differentiable(value: Value) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def derivative(step: Step) -> Program | None:
    """The rule for derivatives as a program of (operands, tangents or cotangents), traced at the full shapes."""
    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in step.inputs]
    results = [
        jax.ShapeDtypeStruct(value.shape, value.dtype)
        for value in step.outputs
        if differentiable(value)
    ]
    floats = [differentiable(value) for value in step.inputs]
    if not any(floats) or not results:
        return None

    def call(values: list[Any], others: list[Any]) -> list[Any]:
        mine, rest = iter(values), iter(others)
        operands = [next(mine) if floating else next(rest) for floating in floats]
        outs = compat.bind(step.primitive, operands, step.params)
        return [out for out, value in zip(outs, step.outputs, strict=True) if differentiable(value)]

    def rule(operands: list[Any], directions: list[Any]) -> list[Any]:
        values = [value for value, floating in zip(operands, floats, strict=True) if floating]
        others = [value for value, floating in zip(operands, floats, strict=True) if not floating]
        inner = lambda values: call(values, others)
        if step.name == "custom_jvp_call":
            return jax.jvp(inner, (values,), (directions,))[1]
        return jax.vjp(inner, values)[1](directions)[0]

    directions = [shape for shape, floating in zip(shapes, floats, strict=True) if floating]
    if step.name != "custom_jvp_call":
        directions = results
    return prune(build(jax.make_jaxpr(rule)(shapes, directions)))


def contracts(program: Program) -> bool:
    """Whether a program contracts something that a tap looks at."""
    notes = (
        note
        for step in program.steps
        for note in (step.note if isinstance(step.note, tuple) else (step.note,))
    )
    return any(isinstance(note, str) for note in notes) or any(
        contracts(inner) for step in program.steps for inner in step.programs.values()
    )


def replay_custom(step: Step, operands: list[Any], replay: Replay) -> list[Any]:
    operands = [
        replay.dense(step, operand, value)
        for operand, value in zip(operands, step.inputs, strict=True)
    ]
    body, rule = step.programs["body"], step.programs.get("rule")
    seen = (
        replay.tap is not None and not replay.tap.derivatives and contracts(body)
    )  # a tap has to look inside
    same = not seen and all(
        np.shape(operand) == value.shape
        for operand, value in zip(operands, step.inputs, strict=True)
    )
    if same and all(replay.shape(value) == value.shape for value in step.outputs):
        return bind(step, operands, replay)
    run = lambda *values: replay.run(body, list(values))
    if rule is None or seen:
        return run(*operands)
    floats = [differentiable(value) for value in step.inputs]

    def expand(values: list[Any], like: list[Value], kinds: list[bool]) -> list[Any]:
        """Derivatives of the float values, and JAX's zeros for the others."""
        given = iter(values)
        shapes = [replay.shape(value) for value in like]
        return [
            next(given) if kind else np.zeros(shape, jax.dtypes.float0)
            for kind, shape in zip(kinds, shapes, strict=True)
        ]

    if step.name == "custom_jvp_call":
        function = jax.custom_jvp(run)

        @function.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            directions = [
                tangent for tangent, floating in zip(tangents, floats, strict=True) if floating
            ]
            out = replay.run(rule, [*primals, *directions])
            return run(*primals), expand(
                out, step.outputs, [differentiable(value) for value in step.outputs]
            )

        return function(*operands)
    function = jax.custom_vjp(run)

    def backward(saved: Any, cotangents: Any) -> Any:
        directions = [
            c for c, value in zip(cotangents, step.outputs, strict=True) if differentiable(value)
        ]
        return tuple(expand(replay.run(rule, [*saved, *directions]), step.inputs, floats))

    function.defvjp(lambda *values: (run(*values), values), backward)
    return function(*operands)


@register(*compat.CUSTOM, replay=replay_custom)
def custom(step: Step, analysis: Analysis) -> None:
    body = step.programs["body"]
    for source, inner in zip(step.inputs, body.inputs, strict=True):
        hand_over(analysis, source, inner)
    analysis.run(body)
    for result, out in zip(body.outputs, step.outputs, strict=True):
        hand_over(analysis, result, out)
    if "rule" not in step.programs and not analysis.of_rule:
        rule = derivative(step)
        if rule is not None:
            step.programs["rule"] = rule
    rule = step.programs.get("rule")
    if rule is None:
        return
    floats = [value for value in step.inputs if differentiable(value)]
    outs = [value for value in step.outputs if differentiable(value)]
    forward = step.name == "custom_jvp_call"
    for source, inner in zip(
        [*step.inputs, *(floats if forward else outs)], rule.inputs, strict=True
    ):
        hand_over(analysis, source, inner)
    # what is seen while a derivative is analysed are axes alone: it is no place where parameters are used, and the rules
    # inside of it, which may be the rule itself (logaddexp's is), are left to JAX
    quiet = Analysis(of_rule=True)
    quiet.run(rule)
    for value, result in zip(outs if forward else floats, rule.outputs, strict=True):
        for index in range(len(value.shape)):
            analysis.unify(
                step,
                value.dims[index],
                result.dims[index],
                "its derivative is laid out in another way",
            )
