"""A segment of a network's program: all steps between two values that everything passes through.

A value is a *cut* if, behind the step that makes it, nothing else is needed that depends on both
parameters and inputs: the input of a residual block, its output, the result of a norm. What lies
between two cuts is a function of the first alone (and of inputs such as a mask), so that another
function can stand in its place. Costs one pass over the steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from jaxtyping import PyTree

from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import find
from jaxcompress.programs.program import Program, Step, Value
from jaxcompress.programs.rules import Replay


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """The steps between two cuts of a program.

    Attributes:
        traced: the program.
        before: the value that goes in.
        after: the value that comes out.
    """

    traced: TracedProgram
    before: Value
    after: Value

    def ends(self, leaves: Sequence[PyTree], inputs: Sequence[PyTree]) -> list[PyTree]:
        """The two values."""
        return self._run(leaves, inputs, [self.before, self.after], {})

    def start(self, leaves: Sequence[PyTree], inputs: Sequence[PyTree]) -> PyTree:
        """The value that goes in."""
        return self._run(leaves, inputs, [self.before], {})[0]

    def finish(
        self, leaves: Sequence[PyTree], inputs: Sequence[PyTree], after: PyTree
    ) -> list[PyTree]:
        """The program's outputs, given the value that comes out."""
        return self._run(leaves, inputs, self.traced.program.outputs, {id(self.after): after})

    def leaves(self) -> list[str]:
        """The leaves that the program uses, in order."""
        used = leaves_read(self.traced, self.traced.program.steps)
        return [name for name in self.traced.leaves if name in used]

    def gone(self) -> list[str]:
        """The leaves that only the steps between the two values use, in order."""
        program = self.traced.program
        outside = [*steps_for(program, [self.before], ()), *self._rest()]
        needed = leaves_read(self.traced, outside)
        return [name for name in self.leaves() if name not in needed]

    def _rest(self) -> list[Step]:
        program = self.traced.program
        return steps_for(program, program.outputs, {id(self.after)})

    def _run(
        self,
        leaves: Sequence[PyTree],
        inputs: Sequence[PyTree],
        outputs: list[Value],
        known: dict[int, PyTree],
    ) -> list[PyTree]:
        """Some values of the program, where others are known."""
        program, extra = self.traced.program, [self.after] if known else []
        steps = steps_for(program, outputs, known)
        part = Program([*program.inputs, *extra], outputs, steps)
        return Replay({}).run(part, [*leaves, *inputs, *known.values()])


def steps_for(program: Program, outputs: Sequence[Value], known: Collection[int]) -> list[Step]:
    """The steps that some values need, where others are known by their ids."""
    wanted, steps = {id(value) for value in outputs} - set(known), []
    for step in reversed(program.steps):
        if any(id(value) in wanted for value in step.outputs):
            steps.append(step)
            wanted |= {id(value) for value in step.inputs} - set(known)
    return steps[::-1]


def leaves_read(traced: TracedProgram, steps: Sequence[Step]) -> set[str]:
    """The leaves that some steps, or the outputs, read."""
    read = {id(value) for value in traced.program.outputs}
    for step in steps:
        read.update(map(id, step.inputs))
    return {name for name, value in traced.leaves.items() if id(value) in read}


def segment(traced: TracedProgram, inside: Collection[str]) -> Segment:
    """The smallest segment that has all uses of some leaves.

    Args:
        traced: the program.
        inside: names of leaves.

    Raises:
        ValueError: for leaves that are not used, that nothing precedes, or that no cut follows.
    """
    uses, cuts = uses_and_cuts(traced)
    touching = [index for index, names in enumerate(uses) if names & set(inside)]
    if not touching:
        raise ValueError(f"the function does not use {', '.join(sorted(inside))}")
    first, last = touching[0], touching[-1]
    before = next((cuts[i] for i in range(first - 1, -1, -1) if cuts[i] is not None), None)
    if before is None:
        raise ValueError(
            f"{uses_text(uses[first])} is not behind a single value that all else depends on, "
            "such as a residual stream"
        )
    for index in range(last, len(cuts)):
        after = cuts[index]
        if after is not None and after is not before and are_parallel(before, after):
            return Segment(traced, before, after)
    raise ValueError(
        f"behind {uses_text(uses[last])} no single value of the same positions comes, on which all "
        "else depends"
    )


def uses_text(names: Collection[str]) -> str:
    """Leaves in a message."""
    return ", ".join(sorted(names))


def are_parallel(before: Value, after: Value) -> bool:
    """Whether two values differ in their last dimension at most."""
    if len(before.shape) < 2 or before.shape[:-1] != after.shape[:-1]:
        return False
    pairs = zip(before.dims[:-1], after.dims[:-1], strict=True)
    return all(one is other or (one and other and find(one) is find(other)) for one, other in pairs)


def uses_and_cuts(traced: TracedProgram) -> tuple[list[frozenset[str]], list[Value | None]]:
    """For each step the leaves that meet activations in it, and the cut behind it, if there is one.

    Leaves are followed through what is computed from parameters alone.
    """
    program = traced.program
    last = last_uses(program)
    of_params = {id(value): frozenset({name}) for name, value in traced.leaves.items()}
    data = {id(value) for value in program.inputs[len(traced.leaves) :]}
    alive: dict[int, Value] = {}  # activations that are needed later
    activations: set[int] = set()
    uses, cuts = [], []
    for index, step in enumerate(program.steps):
        ids = [id(value) for value in step.inputs]
        names = frozenset[str]().union(*(of_params.get(key, frozenset()) for key in ids))
        on_data = any(key in data for key in ids)
        uses.append(names if on_data else frozenset())
        for value in step.outputs:
            if not on_data:
                of_params[id(value)] = names
                continue
            data.add(id(value))
            if names or any(key in activations for key in ids):
                activations.add(id(value))
                alive[id(value)] = value
        alive = {key: value for key, value in alive.items() if last.get(key, -1) > index}
        cuts.append(next(iter(alive.values())) if len(alive) == 1 else None)
    return uses, cuts


def last_uses(program: Program) -> dict[int, int]:
    """The last step that reads each value, by its id; outputs are read at the end."""
    last: dict[int, int] = {}
    for index, step in enumerate(program.steps):
        last |= dict.fromkeys((id(value) for value in step.inputs), index)
    return last | dict.fromkeys((id(value) for value in program.outputs), len(program.steps))
