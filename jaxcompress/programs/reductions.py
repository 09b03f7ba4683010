"""Rules of reductions: sums, norms, pooling, sorting, and what draws random numbers along an axis."""

from __future__ import annotations

from jaxcompress.programs import compat
from jaxcompress.programs.algebra import Kind, mark
from jaxcompress.programs.arithmetic import elementwise, linear, same_layout
from jaxcompress.programs.program import Step
from jaxcompress.programs.reshaping import carry_over
from jaxcompress.programs.rules import Analysis, copy_facts, merge_facts, register


def reduced(step: Step) -> None:
    """The dimensions that a reduction leaves."""
    merge_facts(step)
    gone = [axis % len(step.inputs[0].shape) for axis in step.params["axes"]]
    left = [index for index in range(len(step.inputs[0].shape)) if index not in gone]
    for out in step.outputs:
        for index, position in enumerate(left):
            copy_facts(out, index, step.inputs[0], position)


@register("reduce_sum")
def reduce_sum(step: Step, analysis: Analysis) -> None:
    """A sum over an axis: of squares, as in a root-mean-square norm, or any other."""
    reduced(step)
    (source,), (out,) = step.inputs, step.outputs
    for dim in out.dims if source.square else ():
        mark(dim, Kind.ELEMENTWISE)
    rms = source.square and source.data  # a norm of weights is no norm of activations
    for index in step.params["axes"]:
        mark(source.dims[index], Kind.RMS if rms else Kind.NORMALISED)
        if source.scaled[index] and source.dims[index] is not None:
            analysis.unfoldable.append(source.dims[index])
    out.summed, out.squares = (
        tuple(source.dims[index] for index in step.params["axes"]),
        source.square,
    )
    out.bent = (source.bent or source.square) and not out.data
    if rms:
        analysis.squared.append(tuple(dim for dim in out.summed if dim is not None))


@register(
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "reduce_xor",
    "argmax",
    "argmin",
)
def reduce_other(step: Step, analysis: Analysis) -> None:
    reduced(step)
    word = step.name.removeprefix("reduce_")
    for index in step.params["axes"]:
        analysis.freeze(
            step,
            step.inputs[0].dims[index],
            f"its {word} is taken, as in a softmax or a pooling over it",
        )
    for dim in step.outputs[0].dims:
        mark(dim, Kind.ELEMENTWISE)


@register("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulate(step: Step, analysis: Analysis) -> None:
    (linear if step.name == "cumsum" else elementwise)(step, analysis)
    analysis.freeze(step, step.inputs[0].dims[step.params["axis"]], "it is summed up in order")
    step.outputs[0].summed, step.outputs[0].sites, step.outputs[0].direct = (), frozenset(), False


@register("fft")
def fft(step: Step, analysis: Analysis) -> None:
    """The transformed dimensions, which are the last, are mixed; across the others it is linear."""
    source, out = carry_over(step, analysis)
    out.summed, out.sites, out.square, out.literal, out.direct = (), frozenset(), False, None, False
    first = len(out.shape) - len(step.params["fft_lengths"])
    for index in range(first):
        copy_facts(out, index, source, index)
    for index in range(first, len(out.shape)):
        analysis.freeze(step, source.dims[index], "a Fourier transform mixes its positions")
        out.dims[index] = analysis.fresh(out.shape[index])
        analysis.freeze(step, out.dims[index], "it holds the frequencies of another axis")


@register("sort")
def sort(step: Step, analysis: Analysis) -> None:
    same_layout(step, analysis)
    for source, out in zip(step.inputs, step.outputs, strict=True):
        for index in range(len(out.shape)):
            copy_facts(out, index, source, index)
            mark(out.dims[index], Kind.ELEMENTWISE)
        analysis.freeze(step, source.dims[step.params["dimension"]], "it is sorted")


@register("top_k")
def top_k(step: Step, analysis: Analysis) -> None:
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
    """Pooling: along the dimensions with a window positions are mixed, across the others it is linear (a sum) or elementwise."""
    source, out = carry_over(step, analysis)
    params = step.params
    out.summed, out.sites, out.square, out.literal = (), frozenset(), False, None
    for index, window in enumerate(params["window_dimensions"]):
        plain = (
            window == 1
            and params["window_strides"][index] == 1
            and tuple(params["padding"][index]) == (0, 0)
        )
        if plain and params["base_dilation"][index] == 1:
            copy_facts(out, index, source, index)
            if step.name != "reduce_window_sum":
                mark(out.dims[index], Kind.ELEMENTWISE)
            continue
        analysis.freeze(step, source.dims[index], "a window slides along it")
        out.dims[index] = analysis.fresh(out.shape[index])
        analysis.freeze(step, out.dims[index], "a window slides along it")


@register(*compat.RANDOM)
def random(step: Step, analysis: Analysis) -> None:
    merge_facts(step)
    for out in step.outputs:
        for index, size in enumerate(out.shape):
            out.dims[index] = analysis.fresh(size)
            analysis.freeze(
                step, out.dims[index], "random numbers are drawn along it: evaluate without dropout"
            )
