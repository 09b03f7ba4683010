"""What a compression stored, cost and lost, leaf by leaf.

For each weight: its form, the numbers and bytes before and after, the FLOPs of one row's product as XLA counts them, and
the relative error, plain and in the metric of the inputs: `sqrt(tr(E' M E) / tr(W' M W))`, the relative error of the
outputs. Costs one small compilation for each distinct form.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import is_compact, matmul, stored_numbers
from jaxcompress.arrays.layout import MATRIX
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.arrays.projection import weigh
from jaxcompress.programs.compat import flops
from jaxcompress.transforms.base import moments_by_name

ROWS = 128
"""The batch over which what does not grow with it (a hash, recomputed atoms) is spread."""


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """One leaf, before and after.

    Attributes:
        leaf: its name.
        shape: of the dense array.
        form: what it is stored as now.
        numbers: stored before and after.
        nbytes: bytes before and after.
        flops: of the product with one row, in a batch of 128, before and after; None for what is no matrix.
        error: relative error in the Frobenius norm; None where shapes differ.
        output_error: the same in the metric of the inputs; None where it is not known.
    """

    leaf: str
    shape: tuple[int, ...]
    form: str
    numbers: tuple[int, int]
    nbytes: tuple[int, int]
    flops: tuple[float, float] | None
    error: float | None
    output_error: float | None


@dataclasses.dataclass(frozen=True)
class Report:
    """A table that prints, and shows as HTML in a notebook.

    Attributes:
        rows: a row for each leaf.
        net_flops: of the whole network's forward pass on the given inputs, before and after; None without them.
    """

    rows: tuple[ReportRow, ...]
    net_flops: tuple[float, float] | None = None

    @property
    def numbers(self) -> tuple[int, int]:
        """Stored numbers of all leaves, before and after."""
        return sum(row.numbers[0] for row in self.rows), sum(row.numbers[1] for row in self.rows)

    def _cells(self) -> list[tuple[str, ...]]:
        cells = [
            (
                row.leaf,
                "x".join(map(str, row.shape)),
                row.form,
                f"{row.numbers[0]:,}",
                f"{row.numbers[1]:,}",
                f"{row.nbytes[0]:,}",
                f"{row.nbytes[1]:,}",
                "" if row.flops is None else f"{row.flops[0]:,.0f}",
                "" if row.flops is None else f"{row.flops[1]:,.0f}",
                "" if row.error is None else f"{row.error:.3g}",
                "" if row.output_error is None else f"{row.output_error:.3g}",
            )
            for row in self.rows
        ]
        before, after = self.numbers
        flops = tuple(f"{value:,.0f}" for value in self.net_flops) if self.net_flops else ("", "")
        nbytes = tuple(f"{sum(row.nbytes[i] for row in self.rows):,}" for i in (0, 1))
        share = "unchanged" if before == after else f"1/{before / max(after, 1):.3g}"
        return [*cells, ("total", "", share, f"{before:,}", f"{after:,}", *nbytes, *flops, "", "")]

    def __str__(self) -> str:
        table = [HEADERS, *self._cells()]
        widths = [max(len(row[i]) for row in table) for i in range(len(HEADERS))]
        align = lambda row: "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        )
        lines = [align(row).rstrip() for row in table]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        row = lambda cells, tag: (
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
        )
        body = "".join(row(cells, "td") for cells in self._cells())
        return f"<table><thead>{row(HEADERS, 'th')}</thead><tbody>{body}</tbody></table>"


HEADERS = (
    *("leaf", "shape", "form", "numbers", "-> stored", "bytes", "-> stored"),
    *("FLOPs/row", "-> now", "error", "output error"),
)


def report(
    before: Any,
    after: Any,
    net: Callable[..., Any] | None = None,
    *inputs: Any,
    moments: Any = None,
) -> Report:
    """Compare parameters before and after a compression.

    Args:
        before: the tree before, dense or compact.
        after: the tree after, with the same leaves.
        net: `net(params, *inputs)`, to count the FLOPs of the whole forward pass.
        *inputs: what `net` takes beside the parameters; shapes are enough.
        moments: second moments of the inputs of each leaf, for the error of the outputs.

    Returns:
        A `Report`; print it.

    Raises:
        ValueError: when the trees have different leaves.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> params = {"kernel": jnp.arange(64.0).reshape(8, 8), "bias": jnp.zeros(8)}
        >>> print(jc.report(params, jc.factored(keep=1/2)(params)))  # doctest: +ELLIPSIS
        leaf ...
        bias    8 ...
        kernel  8x8 ... rank 2 ...
        total ... 72 ...
    """
    old, new = dict(named_leaves(before)), dict(named_leaves(after))
    if old.keys() != new.keys():
        raise ValueError(
            f"report: leaves of one tree only: {sorted(old.keys() ^ new.keys())}; give the trees of one network"
        )
    metrics = moments_by_name(moments)
    cache: dict[Any, float] = {}
    rows = tuple(_row(name, old[name], new[name], metrics.get(name), cache) for name in new)
    if net is None:
        return Report(rows)
    return Report(rows, (flops(net, before, *inputs), flops(net, after, *inputs)))


def _row(name: str, old: Any, new: Any, metric: Any, cache: dict[Any, float]) -> ReportRow:
    dense_old, dense_new = (
        np.asarray(leaf.materialize() if is_compact(leaf) else leaf) for leaf in (old, new)
    )
    error = output_error = None
    if dense_old.shape == dense_new.shape and np.issubdtype(
        np.asarray(dense_old, np.float64).dtype, np.floating
    ):
        axes = (
            new.matrix_axes if is_compact(new) else old.matrix_axes if is_compact(old) else MATRIX
        )
        target, gap = (
            np.asarray(dense_old, np.float64),
            np.asarray(dense_old, np.float64) - np.asarray(dense_new, np.float64),
        )
        error = _ratio(np.sum(gap**2), np.sum(target**2))
        if metric is not None and gap.ndim >= axes.ndim:
            gap, target = axes.to_matrix(gap), axes.to_matrix(target)
            metric = np.asarray(metric, np.float64)
            output_error = _ratio(
                np.sum(gap * weigh(metric, gap)), np.sum(target * weigh(metric, target))
            )
    form = (
        f"{type(new).__name__.removesuffix('Array').lower()}: {new.summary()}".rstrip(": ")
        if is_compact(new)
        else "dense"
    )
    return ReportRow(
        leaf=name,
        shape=dense_new.shape,
        form=form,
        numbers=(stored_numbers(old), stored_numbers(new)),
        nbytes=(_bytes(old), _bytes(new)),
        flops=_product_flops(old, new, cache),
        error=error,
        output_error=output_error,
    )


def _ratio(part: float, whole: float) -> float:
    return float(np.sqrt(max(part, 0) / whole)) if whole > 0 else float(part > 0)


def _bytes(leaf: Any) -> int:
    values = sum(jnp.asarray(value).nbytes for value in jax.tree.leaves(leaf))
    return values + (round(4 * leaf.static_numbers) if is_compact(leaf) else 0)


def _product_flops(old: Any, new: Any, cache: dict[Any, float]) -> tuple[float, float] | None:
    """FLOPs of x @ W for each leaf, by row of a batch; the layout of the one is that of the other."""
    axes = new.matrix_axes if is_compact(new) else old.matrix_axes if is_compact(old) else MATRIX
    if (
        np.ndim(jax.tree.leaves(new)[0]) < 1
        or len(new.shape) != axes.ndim
        or not jnp.issubdtype(new.dtype, jnp.floating)
    ):
        return None

    def count(leaf: Any) -> float:
        key = (
            jax.tree.structure(leaf),
            tuple((v.shape, str(v.dtype)) for v in jax.tree.leaves(leaf)),
            axes,
        )
        if key not in cache:
            sizes = (leaf.shape[axis] for axis in axes.inputs)  # a cut may have changed them
            x = jax.ShapeDtypeStruct((ROWS, *sizes), leaf.dtype)
            cache[key] = flops(lambda x, w: matmul(x, w, axes), x, leaf) / ROWS
        return cache[key]

    return count(old), count(new)
