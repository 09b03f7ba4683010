"""Rules of random numbers: keys, and draws along the axes of what they are combined with.

A draw has the present size, as in the small network written by hand, so dropout and latents run at
any size. Other sizes draw other numbers: the same distribution, not the same sample. A draw is an
elementwise function of its axes, which forbids rotations.
"""

from __future__ import annotations

from jaxcompress.programs.algebra import Kind, mark
from jaxcompress.programs.arithmetic import same_layout
from jaxcompress.programs.facts import copy_facts, merge_facts
from jaxcompress.programs.program import Operand, Step, Value
from jaxcompress.programs.rules import Analysis, Replay, bind_with, register


def replay_draw(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """Draw at the present shape; the dimensions of a stack of keys come first."""
    keys = len(step.inputs[0].shape)
    return bind_with(step, operands, replay, shape=replay.shape(step.outputs[0])[keys:])


@register("random_bits", "random_split", replay=replay_draw)
def draw(step: Step, analysis: Analysis) -> None:
    """Numbers, or keys, along new axes; the dimensions of a stack of keys pass."""
    keys, out = _keys(step)
    for index in range(len(keys.shape)):
        copy_facts(out, index, keys, index)
    for index in range(len(keys.shape), len(out.shape)):
        out.dims[index] = analysis.fresh(out.shape[index])
    _independent(out)


@register("random_seed", "random_wrap", "random_unwrap", "random_clone")
def convert_keys(step: Step, analysis: Analysis) -> None:
    """Keys from seeds, and keys as words and back: the words of a key are no axis."""
    source, out = _keys(step)
    both = min(len(source.shape), len(out.shape))
    for index in range(both):
        copy_facts(out, index, source, index)
    for value in (source, out):
        for index in range(both, len(value.shape)):
            if value.dims[index] is None:
                value.dims[index] = analysis.fresh(value.shape[index])
            analysis.freeze(step, value.dims[index], "it holds the words of a random key")
    _independent(out)


@register("random_fold_in")
def fold_in(step: Step, analysis: Analysis) -> None:
    """A key for each number: the dimensions of both pass."""
    same_layout(step, analysis)
    _independent(step.outputs[0])


@register("threefry2x32")
def threefry(step: Step, analysis: Analysis) -> None:
    """The generator itself, whose numbers are laid out by the caller: opaque along all axes."""
    merge_facts(step)
    for out in step.outputs:
        out.dims = [analysis.fresh(size) for size in out.shape]
        for dim in out.dims:
            analysis.freeze(step, dim, "a random generator numbers its positions")


def _keys(step: Step) -> tuple[Value, Value]:
    """The operand and the result of a primitive that draws or converts."""
    merge_facts(step)
    return step.inputs[0], step.outputs[0]


def _independent(out: Value) -> None:
    """Mark what is drawn as data: it varies as inputs do, even if the key is a parameter."""
    out.data, out.bent = True, False
    for dim in out.dims:
        mark(dim, Kind.ELEMENTWISE)
