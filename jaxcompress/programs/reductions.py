"""Rules of operations along an axis: sums, norms, pooling, sorting.

A sum mixes the channels of its axis: of squares it is a root-mean-square norm, otherwise as in
layer norm. Every other operation along an axis makes it opaque.
"""

from __future__ import annotations

from jaxcompress.programs.algebra import Kind, mark
from jaxcompress.programs.arithmetic import elementwise, linear, same_layout
from jaxcompress.programs.facts import copy_facts, forget_origin, merge_facts
from jaxcompress.programs.norms import note_total
from jaxcompress.programs.program import PLAIN, Step
from jaxcompress.programs.reshaping import carry_over
from jaxcompress.programs.rules import Analysis, register


def reduced(step: Step) -> None:
    """Copy the facts of the dimensions that are not reduced."""
    merge_facts(step)
    source = step.inputs[0]
    rank = len(source.shape)
    reduced_axes = [axis % rank for axis in step.params["axes"]]
    kept = [index for index in range(rank) if index not in reduced_axes]
    for out in step.outputs:
        for index, position in enumerate(kept):
            copy_facts(out, index, source, position)


@register("reduce_sum")
def reduce_sum(step: Step, analysis: Analysis) -> None:
    """A sum over an axis: of squares, as in a root-mean-square norm, or any other."""
    reduced(step)
    (source,), (out,) = step.inputs, step.outputs
    for dim in out.dims if source.square else ():
        mark(dim, Kind.ELEMENTWISE)
    rms = source.square and source.data  # a norm of weights is no norm of activations
    axes = step.params["axes"]
    out.summed, out.squares = tuple(source.dims[index] for index in axes), source.square
    out.bent = (source.bent or source.square) and not out.data
    for index, dim in zip(axes, out.summed, strict=True):
        mark(dim, Kind.RMS if rms else Kind.NORMALISED)
        if source.scaled[index] != PLAIN and dim is not None:
            analysis.unfoldable.append(dim)
    note_total(step, analysis, source, out.summed)
    if rms:
        analysis.squared.append(tuple(dim for dim in out.summed if dim is not None))


REDUCTIONS = ("max", "min", "prod", "and", "or", "xor")


@register("argmax", "argmin", *(f"reduce_{name}" for name in REDUCTIONS))
def reduce_other(step: Step, analysis: Analysis) -> None:
    """A maximum, a product and the like: opaque along the axis, elementwise along the others."""
    reduced(step)
    why = f"its {step.name.removeprefix('reduce_')} is taken, as in a softmax or a pooling over it"
    for index in step.params["axes"]:
        analysis.freeze(step, step.inputs[0].dims[index], why)
    for dim in step.outputs[0].dims:
        mark(dim, Kind.ELEMENTWISE)


@register("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulate(step: Step, analysis: Analysis) -> None:
    """A running sum or maximum depends on the order of its axis."""
    rule = linear if step.name == "cumsum" else elementwise
    rule(step, analysis)
    analysis.freeze(step, step.inputs[0].dims[step.params["axis"]], "it is summed up in order")
    forget_origin(step.outputs[0])


@register("fft")
def fft(step: Step, analysis: Analysis) -> None:
    """The transformed dimensions, which are the last, are mixed; across the others it is linear."""
    source, out = carry_over(step, analysis)
    forget_origin(out)
    out.square, out.literal = False, None
    first = len(out.shape) - len(step.params["fft_lengths"])
    for index in range(first):
        copy_facts(out, index, source, index)
    for index in range(first, len(out.shape)):
        analysis.freeze(step, source.dims[index], "a Fourier transform mixes its positions")
        out.dims[index] = analysis.fresh(out.shape[index])
        analysis.freeze(step, out.dims[index], "it holds the frequencies of another axis")


@register("sort")
def sort(step: Step, analysis: Analysis) -> None:
    """Opaque along the sorted axis, elementwise along the others."""
    same_layout(step, analysis)
    for source, out in zip(step.inputs, step.outputs, strict=True):
        for index in range(len(out.shape)):
            copy_facts(out, index, source, index)
            mark(out.dims[index], Kind.ELEMENTWISE)
        analysis.freeze(step, source.dims[step.params["dimension"]], "it is sorted")


@register("top_k")
def top_k(step: Step, analysis: Analysis) -> None:
    """Opaque along the last axis, elementwise along the others."""
    merge_facts(step)
    source = step.inputs[0]
    analysis.freeze(step, source.dims[-1], "its largest entries are picked")
    for out in step.outputs:
        for index in range(len(out.shape) - 1):
            copy_facts(out, index, source, index)
            mark(out.dims[index], Kind.ELEMENTWISE)
        out.dims[-1] = analysis.fresh(out.shape[-1])
        analysis.freeze(step, out.dims[-1], "it holds the largest entries of another axis")


@register("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window")
def reduce_window(step: Step, analysis: Analysis) -> None:
    """Pooling: opaque along dimensions with a window; along the others linear or elementwise."""
    source, out = carry_over(step, analysis)
    params = step.params
    out.summed, out.sites, out.square, out.literal = (), frozenset(), False, None
    names = ("window_dimensions", "window_strides", "padding", "base_dilation")
    for index, (window, stride, padding, dilation) in enumerate(
        zip(*(params[name] for name in names), strict=True)
    ):
        if (window, stride, dilation) == (1, 1, 1) and tuple(padding) == (0, 0):
            copy_facts(out, index, source, index)
            if step.name != "reduce_window_sum":
                mark(out.dims[index], Kind.ELEMENTWISE)
            continue
        analysis.freeze(step, source.dims[index], "a window slides along it")
        out.dims[index] = analysis.fresh(out.shape[index])
        analysis.freeze(step, out.dims[index], "a window slides along it")
