"""Products by groups of rows: each group is multiplied by a matrix of its own.

The rows of one group lie side by side, so their order is fixed; the contracted axis is consumed and
the free one produced by every group's matrix, as in a product of all rows.
"""

from __future__ import annotations

from jaxcompress.programs.algebra import Kind, mark
from jaxcompress.programs.contractions import all_slots, consume, free, tapped_results
from jaxcompress.programs.facts import copy_facts, merge_facts
from jaxcompress.programs.program import PLAIN, Operand, Step
from jaxcompress.programs.rules import Analysis, Replay, bind, register, unknown


def replay_ragged(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """The product of every group of rows, reported to the tap as one product of all rows."""
    if replay.tap is not None and step.note is not None:
        replay.tap.observe(step.note, operands, step)
    return tapped_results(step.note, step, bind(step, operands, replay), replay)


@register("ragged_dot_general", replay=replay_ragged)
def ragged_dot_general(step: Step, analysis: Analysis) -> None:
    """Rows in consecutive groups times a matrix for each group, as in a mixture of experts.

    Contracted and shared dimensions are one axis; the groups are opaque. Other kinds of this
    primitive, which are its derivatives, have no rule.
    """
    rows, weight = step.inputs[:2]
    numbers = step.params["ragged_dot_dimension_numbers"]
    contracting, batch = numbers.dot_dimension_numbers
    groups = numbers.rhs_group_dimensions
    if not (rows.data and weight.from_params and groups):
        unknown(step, analysis)
        return
    merge_facts(step)
    (out,) = step.outputs
    for mine, theirs in (*zip(*contracting, strict=True), *zip(*batch, strict=True)):
        analysis.unify(step, rows.dims[mine], weight.dims[theirs])
    for index in numbers.lhs_ragged_dimensions:
        analysis.freeze(step, rows.dims[index], "it is divided into groups")
    for index in groups:
        analysis.freeze(step, weight.dims[index], "each position multiplies a group of rows")
    kept = free(len(weight.shape), contracting[1], (*batch[1], *groups))
    order = [
        (rows, index) for index in (*batch[0], *free(len(rows.shape), contracting[0], batch[0]))
    ]
    for index, (value, position) in enumerate([*order, *((weight, index) for index in kept)]):
        copy_facts(out, index, value, position)
        if index < len(batch[0]):
            mark(out.dims[index], Kind.ELEMENTWISE)
        if value is weight:
            out.scaled[index] = PLAIN
    analysis.role(all_slots(weight, kept), "produce")
    analysis.role(all_slots(weight, batch[1]), "batch")
    pairs = list(zip(contracting[0], contracting[1], strict=True))
    shared = tuple((position, rows.dims[position]) for position in batch[0])
    # a bias is one for all groups: none carries the mean of every group's product
    consume(step, analysis, rows, weight, pairs, shared, produced=(*kept, *batch[1]))
