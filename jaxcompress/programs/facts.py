"""The facts of values, and how they pass from a step's inputs to its outputs.

A rule starts from `merge_facts`, copies what passes unchanged by `copy_facts`, and adds what its
primitive changes. What the facts are is listed at `Value`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxcompress.programs.algebra import several
from jaxcompress.programs.program import MIXED, PLAIN, Scaling, Step, Value

VALUE_FACTS = (
    *("bent", "count", "data", "direct", "literal", "square", "squares", "summed", "sites"),
)
"""The facts of a value that do not belong to a single dimension, but for `shared`."""


def merge_facts(step: Step) -> None:
    """The facts of outputs of which nothing else is known: data or not, and no linear function."""
    for out in step.outputs:
        out.data = any(value.data for value in step.inputs)
        out.bent = not out.data


def copy_facts(out: Value, index: int, source: Value, position: int) -> None:
    """Let one dimension of an output be one of an operand."""
    out.dims[index] = source.dims[position]
    out.slots[index] = source.slots[position]
    out.constant[index] = source.constant[position]
    out.scaled[index] = source.scaled[position]


def copy_value(out: Value, source: Value) -> None:
    """Let an output be an operand of the same shape, but for `shared`."""
    for name in VALUE_FACTS:
        setattr(out, name, getattr(source, name))
    for index in range(len(out.shape)):
        copy_facts(out, index, source, index)


def forget_origin(out: Value) -> None:
    """Mark an output as changed: no bare sum, product or parameter any more."""
    out.summed, out.sites, out.direct = (), frozenset(), False


def varies(value: Value, index: int) -> bool:
    """Whether a value differs along a dimension of the output."""
    return len(value.shape) > index and several(value.shape[index]) and not value.constant[index]


def is_zero(value: Value) -> bool:
    """Whether a value is a literal of zeros."""
    return value.literal is not None and not np.any(np.asarray(value.literal) != 0)


def agreed(scalings: Sequence[Scaling]) -> Scaling:
    """The scaling of a value made of several: theirs if they are all the same, else `MIXED`."""
    if not scalings:
        return PLAIN
    return scalings[0] if all(other == scalings[0] for other in scalings) else MIXED
