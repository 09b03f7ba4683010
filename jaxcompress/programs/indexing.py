"""Rules of indexing: look-ups, windows at computed places, and scattered writes.

Dimensions that are read or written in full pass, as the features of an embedding do. Dimensions
that an index selects from are opaque.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxcompress.arrays.base import is_compact
from jaxcompress.programs.algebra import Dim, Kind, mark
from jaxcompress.programs.facts import agreed, copy_facts, is_zero, merge_facts
from jaxcompress.programs.program import Operand, Step, Value
from jaxcompress.programs.rules import (
    Analysis,
    Contraction,
    Replay,
    bind_with,
    register,
)


def replay_gather(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """A look-up, reported to the tap."""
    if replay.tap is None or step.note is None:
        return replay_rows(step, operands, replay)
    replay.tap.observe(step.note, operands, step)
    return [replay.tap.transform_result(step.note, step, replay_rows(step, operands, replay)[0])]


def replay_rows(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """The rows that are picked, by a compact table's own `take` where it has one for them."""
    table, indices = operands
    mode = step.params["mode"]
    own = is_compact(table) and mode in MODES and rows_only(step) and table.looks_up_rows
    if not own:
        return replay_window(step, operands, replay)
    replay.tell(step, step.inputs[0], "looked up")
    count = table.shape[0]
    # a small integer type of the indices may not hold the number of rows
    rows = indices[..., 0].astype(jnp.promote_types(indices.dtype, jnp.int32))
    picked = table.take(jnp.clip(rows, 0, count - 1))
    if mode == lax.GatherScatterMode.FILL_OR_DROP:
        given = step.params["fill_value"]
        fill = jnp.asarray(jnp.nan if given is None else given, picked.dtype)
        picked = jnp.where(((rows >= 0) & (rows < count))[..., None], picked, fill)
    collapsed = step.params["dimension_numbers"].collapsed_slice_dims
    return [picked if collapsed else jnp.expand_dims(picked, -2)]


MODES = (
    lax.GatherScatterMode.CLIP,
    lax.GatherScatterMode.FILL_OR_DROP,
    lax.GatherScatterMode.PROMISE_IN_BOUNDS,
)
"""What a gather does out of range where a table's own look-up can do it: clip, or fill."""


def replay_window(step: Step, operands: list[Operand], replay: Replay) -> list[Operand]:
    """A slice at the present sizes: a full dimension stays full."""
    source = step.inputs[0]
    sizes = tuple(
        replay.size(dim) if dim is not None and size == full else size
        for dim, size, full in zip(
            source.dims, step.params["slice_sizes"], source.shape, strict=True
        )
    )
    return bind_with(step, operands, replay, slice_sizes=sizes)


def rows_only(step: Step) -> bool:
    """Whether a gather picks full rows of a matrix, one for each index, as an embedding does.

    A slice under `jax.vmap` has an index for the columns as well, which is zero, and keeps the
    row's dimension of one.
    """
    numbers, shape = step.params["dimension_numbers"], step.inputs[0].shape
    rank = len(step.outputs[0].shape)
    kept = len(shape) - len(numbers.collapsed_slice_dims)
    # an index other than zero for the columns fills the row
    fills = step.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    return (
        len(shape) == 2
        and tuple(numbers.collapsed_slice_dims) in ((0,), ())
        and tuple(numbers.start_index_map) in ((0,),) + (() if fills else ((0, 1),))
        and tuple(numbers.offset_dims) == tuple(range(rank - kept, rank))
        and tuple(step.params["slice_sizes"]) == (1, shape[1])
    )


@register("gather", replay=replay_gather)
def gather(step: Step, analysis: Analysis) -> None:
    """Dimensions that are read in full pass and are produced; indexed ones are opaque.

    A full dimension passes even where it has an index: only zero is within bounds, at every size.
    """
    merge_facts(step)
    table, indices = step.inputs
    (out,) = step.outputs
    numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    window = [
        index
        for index in range(len(table.shape))
        if index not in numbers.collapsed_slice_dims and index not in batching
    ]
    indexed = [index for index in numbers.start_index_map if sizes[index] < table.shape[index]]
    for position, index in zip(numbers.offset_dims, window, strict=True):
        if sizes[index] == table.shape[index]:
            copy_facts(out, position, table, index)
            _mark_fill(step, out.dims[position])
            continue
        analysis.freeze(step, table.dims[index], "part of it is picked by an index")
        out.dims[position] = analysis.fresh(out.shape[position])
        analysis.freeze(step, out.dims[position], "it is a part picked by an index")
    for index in indexed:
        analysis.freeze(
            step, table.dims[index], "its positions are picked by an index, as in an embedding"
        )
    _gather_indices(step, analysis)
    if table.from_params:
        for index in window:
            analysis.role(table.slots[index], "produce")
        for index in indexed:
            analysis.role(table.slots[index], "look-up")
        if rows_only(step) and indices.data:
            _note_look_up(step, analysis, table)


def _mark_fill(step: Step, dim: Dim | None) -> None:
    """A slice out of bounds is a constant: a rotation maps none but zero and NaN to itself."""
    fill = step.params.get("fill_value")
    fills = step.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
    if fills and fill is not None and fill != 0 and fill == fill:
        mark(dim, Kind.ELEMENTWISE)


def _gather_indices(step: Step, analysis: Analysis) -> None:
    """The indices' own dimensions pass; those shared with the table are one axis with its."""
    table, indices = step.inputs
    (out,) = step.outputs
    numbers = step.params["dimension_numbers"]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    index_batching = tuple(getattr(numbers, "start_indices_batching_dims", ()))
    rest = [position for position in range(len(out.shape)) if position not in numbers.offset_dims]
    for position, index in zip(rest, range(len(indices.shape) - 1), strict=True):
        out.dims[position] = indices.dims[index]
        if index in index_batching:
            partner = batching[index_batching.index(index)]
            analysis.unify(step, table.dims[partner], indices.dims[index])
            out.dims[position] = table.dims[partner]
            out.slots[position] = table.slots[partner]
            mark(out.dims[position], Kind.ELEMENTWISE)


def _note_look_up(step: Step, analysis: Analysis, table: Value) -> None:
    """Note an embedding as a contraction whose inputs are the table's rows."""
    slots = table.slots[0]
    leaf = min((name for name, _ in slots), default="?")
    key = step.note if isinstance(step.note, str) else analysis.count(leaf, analysis.contractions)
    step.note = key
    columns = tuple(dim for dim in table.dims[1:] if dim is not None)
    analysis.contractions[key] = Contraction(
        key, 1, (), (slots,), (), rows=table.shape[0], produced=columns
    )


@register("dynamic_slice", replay=replay_window)
def dynamic_slice(step: Step, analysis: Analysis) -> None:
    """Dimensions that are read in full pass; those that are cut are opaque."""
    merge_facts(step)
    source, (out,) = step.inputs[0], step.outputs
    for index, size in enumerate(step.params["slice_sizes"]):
        if size == source.shape[index]:
            copy_facts(out, index, source, index)
            continue
        analysis.freeze(
            step, source.dims[index], "a part of it is cut out at a place that is computed"
        )
        out.dims[index] = analysis.fresh(size)
        analysis.freeze(
            step, out.dims[index], "it is a part of another axis, at a place that is computed"
        )
    if source.from_params:
        for slots in source.slots:
            analysis.role(slots, "produce")


@register("dynamic_update_slice")
def dynamic_update_slice(step: Step, analysis: Analysis) -> None:
    """Dimensions that are overwritten in full are one axis; those in part are opaque."""
    merge_facts(step)
    source, update, (out,) = step.inputs[0], step.inputs[1], step.outputs
    for index, size in enumerate(update.shape):
        copy_facts(out, index, source, index)
        out.slots[index] |= update.slots[index]
        analysis.joined([source, update], index, source.dims[index])
        out.scaled[index] = agreed([source.scaled[index], update.scaled[index]])
        out.constant[index] = source.constant[index] and update.constant[index]
        if size == source.shape[index]:
            analysis.unify(step, source.dims[index], update.dims[index])
        else:
            analysis.freeze(
                step, source.dims[index], "a part of it is overwritten at a place that is computed"
            )
            analysis.freeze(step, update.dims[index], "it overwrites a part of another axis")


WRITES = ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")


@register(*WRITES)
def scatter(step: Step, analysis: Analysis) -> None:
    """Dimensions that are written in full pass; those that an index picks from are opaque.

    A full dimension passes even where it has an index: only zero is within bounds, at every size.
    """
    merge_facts(step)
    (source, _, update), (out,) = step.inputs, step.outputs
    numbers = step.params["dimension_numbers"]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    skipped = {*numbers.inserted_window_dims, *batching}
    window = [index for index in range(len(source.shape)) if index not in skipped]
    for index in range(len(source.shape)):
        copy_facts(out, index, source, index)
        out.constant[index] = False
    full = set()
    for position, index in zip(numbers.update_window_dims, window, strict=True):
        if update.shape[position] == source.shape[index]:
            full.add(index)
            _write_full(step, analysis, index, position)
            continue
        analysis.freeze(step, update.dims[position], "it is written into a part of another axis")
        analysis.freeze(step, source.dims[index], "a part of it is written at an index")
    for index in set(numbers.scatter_dims_to_operand_dims) - full:
        analysis.freeze(
            step,
            source.dims[index],
            "its positions are written by an index, as sums over a graph's edges are",
        )
    _scatter_indices(step, analysis)


def _write_full(step: Step, analysis: Analysis, index: int, position: int) -> None:
    """One dimension of the operand that the updates cover: both are one axis."""
    (source, _, update), (out,) = step.inputs, step.outputs
    analysis.unify(step, source.dims[index], update.dims[position])
    out.slots[index] |= update.slots[position]
    out.scaled[index] = agreed([source.scaled[index], update.scaled[position]])
    out.constant[index] = source.constant[index] and update.constant[position]
    # a rotation maps constants other than zero to no constants: such a write fixes the basis
    constants = (source.constant[index], update.constant[position])
    still = {(True, False): source, (False, True): update}.get(constants)
    nonlinear = step.name.removeprefix("scatter-") in ("mul", "min", "max")
    if nonlinear or (still is not None and not is_zero(still)):
        mark(source.dims[index], Kind.ELEMENTWISE)
    for value, place, other in ((source, index, update), (update, position, source)):
        if value.from_params and other.data:
            analysis.role(value.slots[place], "shift")


def _scatter_indices(step: Step, analysis: Analysis) -> None:
    """Unify the dimensions of updates and indices, and those shared with the operand."""
    source, indices, update = step.inputs
    numbers = step.params["dimension_numbers"]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    index_batching = tuple(getattr(numbers, "scatter_indices_batching_dims", ()))
    window = numbers.update_window_dims
    rest = [position for position in range(len(update.shape)) if position not in window]
    for position, index in zip(rest, range(len(indices.shape) - 1), strict=True):
        analysis.unify(step, update.dims[position], indices.dims[index])
        if index in index_batching:
            partner = batching[index_batching.index(index)]
            analysis.unify(step, source.dims[partner], indices.dims[index])
