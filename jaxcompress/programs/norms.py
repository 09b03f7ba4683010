"""How norms over an axis are recognised: sums that centre, divisions by a norm, scales and shifts.

A root-mean-square norm is `h / sqrt(mean(h^2))`, a layer norm the same of `h - mean(h)`; its
variance is a mean of squares of centred values, or `mean(h^2) - mean(h)^2`. A sum over the axis
that serves nothing else leaves the function as it is if a constant is added to all channels. The
rules of single primitives call these functions.
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxcompress.programs.algebra import Dim, atoms, find
from jaxcompress.programs.facts import varies
from jaxcompress.programs.program import MIXED, PLAIN, Scaling, Step, Total, Value
from jaxcompress.programs.rules import Analysis

POWERS = ("cbrt", "integer_pow", "max", "pow", "rsqrt", "sqrt", "square", "add", "div", "mul")
POWERS += ("select_n",)
"""Primitives whose results depend on a norm as powers of it do, up to a small constant."""


def note_total(step: Step, analysis: Analysis, source: Value, dims: Iterable[Dim | None]) -> None:
    """Note a sum over dimensions of activations, of themselves or of their squares."""
    (out,) = step.outputs
    over = tuple(dim for dim in dims if dim is not None)
    if source.square:
        out.norms = over
        centred = set(map(find, source.squared.centred)) if source.squared is not None else set()
        if centred.issuperset(map(find, over)):  # the variance of centred values
            return
    summed = source.squared if source.square else source.origin
    total = Total(summed, over, source.square, spoilt=not source.data)
    analysis.totals.append(total)
    out.total = (total, "sum")


def note_mean_of(out: Value, source: Value) -> None:
    """Note that a sum was divided by the size of what was summed."""
    if source.total is not None and source.total[1] == "sum":
        out.total = (source.total[0], "mean")


def note_square(out: Value, source: Value) -> None:
    """Note that a value is a square, and that of a mean."""
    out.square, out.squared = True, source.origin
    if source.total is not None:
        total, how = source.total
        out.total = (total, "square") if how == "mean" and not total.squared else None
        total.spoilt |= out.total is None


def note_difference(step: Step) -> None:
    """Note that a mean is subtracted from what it is the mean of, or its square from a variance."""
    left, right = step.inputs
    (out,) = step.outputs
    if right.total is None or not _centres(left, right):
        spoil(left, right)
        return
    mean = right.total[0]
    if left.total is None:
        out.centred = mean.dims
    else:
        out.norms = left.norms


def _centres(left: Value, right: Value) -> bool:
    """Whether a difference is `h - mean(h)`, or `mean(h^2) - mean(h)^2`."""
    assert right.total is not None
    mean, how = right.total
    if mean.squared:
        return False
    if left.total is None:
        return how == "mean" and left.origin is mean.source
    squares, same = left.total
    return (
        (squares.squared, same, how) == (True, "mean", "square")
        and squares.source is mean.source
        and [*map(find, squares.dims)] == [*map(find, mean.dims)]
    )


def spoil(*values: Value) -> None:
    """Note that sums are used otherwise than to centre what was summed."""
    for value in values:
        if value.total is not None:
            value.total[0].spoilt = True


def pass_norms(step: Step) -> None:
    """Let results be powers of the norms that all their activations are powers of."""
    data = [value for value in step.inputs if value.data]
    if step.name not in POWERS or not all(value.norms for value in data):
        return
    for out in step.outputs:
        out.norms = tuple(dim for value in data for dim in value.norms)


def divides_by_norm(factor: Value, dim: Dim | None) -> bool:
    """Whether a factor, the same along a dimension, is a power of the norm over it."""
    return dim is not None and set(atoms(dim)) <= roots(factor.norms)


def roots(dims: Iterable[Dim]) -> set[Dim]:
    """The atoms of several dimensions."""
    return set().union(*(atoms(dim) for dim in dims))


def scaled_by(value: Value, index: int, scaling: Scaling) -> Scaling:
    """The scaling of a value after another value's is multiplied into it along a dimension."""
    before = value.scaled[index] if index < len(value.shape) else PLAIN
    if scaling.normed and (before == MIXED or before.shifts or before.normed):
        return scaling  # a norm starts anew; the sum in it has noted what lies before
    twice = (before.scales and scaling.scales) or (before.normed and scaling.normed)
    if before.shifts or scaling.shifts or twice or MIXED in (before, scaling):
        return MIXED
    normed = before.normed or scaling.normed
    return Scaling(before.scales | scaling.scales, normed=normed, alone=before.alone)


def multiply_scalings(step: Step) -> set[int]:
    """Note scales and norms in a product of two activations.

    Returns:
        The dimensions along which both vary, one of them by a scale alone.
    """
    (out,) = step.outputs
    explained = set()
    for value, factor in (step.inputs, step.inputs[::-1]):
        for index, dim in enumerate(out.dims):
            if not varies(value, index) or not (value.data and factor.data):
                continue
            norm = Scaling(normed=divides_by_norm(factor, dim))
            if not varies(factor, index):
                if norm.normed:
                    out.scaled[index] = scaled_by(value, index, norm)
            elif factor.scaled[index].alone and index not in explained:
                scale = factor.scaled[index]._replace(alone=False, normed=norm.normed)
                out.scaled[index] = scaled_by(value, index, scale)
                explained.add(index)
    return explained
