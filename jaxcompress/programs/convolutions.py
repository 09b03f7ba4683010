"""Convolutions: features are contracted and produced, positions are opaque.

Groups are a factor of the features on both sides. A depthwise kernel sums over positions alone, so
it scales the features and mixes none.
"""

from __future__ import annotations

from jaxcompress.programs.algebra import Dim, Kind, Misaligned, factor, find, mark, product
from jaxcompress.programs.contractions import consume, tapped_results
from jaxcompress.programs.facts import copy_facts, merge_facts
from jaxcompress.programs.program import Operand, Step
from jaxcompress.programs.rules import Analysis, Replay, bind_with, register


def replay_conv(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """A convolution with the present number of groups."""
    if replay.tap is not None and step.note is not None and step.note[0] is not None:
        replay.tap.observe(step.note[0], operands, step)
    groups = step.params["feature_group_count"]
    if groups > 1 and step.note is not None and step.note[1] is not None:
        groups = replay.size(step.note[1])
    results = bind_with(step, operands, replay, feature_group_count=groups)
    return tapped_results(step.note[0] if step.note else None, step, results, replay)


@register("conv_general_dilated", replay=replay_conv)
def convolution(step: Step, analysis: Analysis) -> None:
    """Features are contracted and produced, positions opaque; groups are a factor of both."""
    merge_facts(step)
    x, kernel = step.inputs
    (out,) = step.outputs
    numbers = step.params["dimension_numbers"]
    x_batch, x_features = numbers.lhs_spec[:2]
    k_out, k_in, *window = numbers.rhs_spec
    o_batch, o_features = numbers.out_spec[:2]
    copy_facts(out, o_batch, x, x_batch)
    _freeze_windows(step, analysis)
    copy_facts(out, o_features, kernel, k_out)
    out.constant[o_features] = False
    if step.params["batch_group_count"] > 1 or not kernel.from_params:
        for dim in (x.dims[x_batch], x.dims[x_features], kernel.dims[k_in], kernel.dims[k_out]):
            analysis.freeze(
                step,
                dim,
                "this kind of convolution has no rule: its kernel is no parameter, "
                "or it groups the batch",
            )
        return
    # a loop's body is analysed twice: the second time the contraction keeps its key
    step.note = step.note[0] if step.note else None
    shared = _shared_groups(step, analysis)
    if shared is not None and find(shared).size == x.shape[x_features]:
        # depthwise: the kernel sums over positions only, so it scales features and mixes none
        analysis.role(kernel.slots[k_out], "batch")
        out.slots[o_features] = x.slots[x_features] | kernel.slots[k_out]
        step.note = (None, shared)
        return
    analysis.role(kernel.slots[k_out], "produce")
    batch = () if shared is None else ((x_features, shared),)
    contracted = [(x_features, k_in)]
    key = consume(step, analysis, x, kernel, contracted, batch, tuple(window), (k_out,))
    step.note = (key, shared)
    out.sites = frozenset({key})


def _freeze_windows(step: Step, analysis: Analysis) -> None:
    """Make the positions of the input, the output and the kernel opaque."""
    x, kernel = step.inputs
    (out,) = step.outputs
    numbers = step.params["dimension_numbers"]
    for source, target in zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True):
        analysis.freeze(step, x.dims[source], "a window slides along it")
        out.dims[target] = analysis.fresh(out.shape[target])
        analysis.freeze(step, out.dims[target], "a window slides along it")
    for position in numbers.rhs_spec[2:]:
        analysis.freeze(step, kernel.dims[position], "it is the extent of a window")


def _shared_groups(step: Step, analysis: Analysis) -> Dim | None:
    """Relate the input's features to the kernel's; returns the axis of the groups, if any."""
    x, kernel = step.inputs
    numbers, groups = step.params["dimension_numbers"], step.params["feature_group_count"]
    x_features, (k_out, k_in) = numbers.lhs_spec[1], numbers.rhs_spec[:2]
    if groups == 1:
        analysis.unify(step, x.dims[x_features], kernel.dims[k_in])
        return None
    try:
        shared = _grouped(step, analysis, groups, x_features, k_in, k_out)
    except Misaligned as problem:
        for dim in (x.dims[x_features], kernel.dims[k_in], kernel.dims[k_out]):
            analysis.freeze(step, dim, f"its groups cut across its parts: {problem}")
        return None
    mark(shared, Kind.ELEMENTWISE)
    return shared


def _grouped(
    step: Step, analysis: Analysis, groups: int, x_features: int, k_in: int, k_out: int
) -> Dim:
    """Split features in and out into groups x rest; returns the groups' axis."""
    x, kernel = step.inputs
    features, outputs = x.dims[x_features], kernel.dims[k_out]
    if features is None or outputs is None:
        raise Misaligned("one feature in several groups")
    ours, theirs = factor(features, groups), factor(outputs, groups)
    analysis.unify(step, ours[0], theirs[0])
    if len(ours) > 1:
        analysis.unify(step, product(ours[1:]), kernel.dims[k_in])
    return ours[0]
