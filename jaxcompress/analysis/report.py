"""What a compression stored, cost and lost, leaf by leaf.

For each weight: its form, the numbers and bytes before and after, the FLOPs of one row's product as
XLA counts them, and the relative error, plain and in the metric of the inputs:
`sqrt(tr(E' M E) / tr(W' M W))`, the relative error of the outputs. Costs one small compilation for
each distinct form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, PyTree

from jaxcompress.arrays.base import CompactArray, materialize, stored_numbers
from jaxcompress.arrays.layout import MATRIX, MatrixAxes
from jaxcompress.arrays.leaves import byte_count, describe, is_numeric
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.arrays.products import matmul
from jaxcompress.arrays.projection import weigh
from jaxcompress.checks import arrays_in, checked, explained, function
from jaxcompress.moments.moments import Moments
from jaxcompress.programs.compat import flops
from jaxcompress.tables import format_table, html_table
from jaxcompress.transforms.base import check_moments, moments_by_name
from jaxcompress.transforms.weights import check_metric

ROWS = 128
"""The batch over which costs that do not grow with it (a hash, recomputed atoms) are spread."""

HEADERS = (
    *("leaf", "shape", "form", "numbers", "-> stored", "bytes", "-> stored"),
    *("FLOPs/row", "-> now", "error", "output error"),
)

Leaf = CompactArray | jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """One leaf, before and after.

    Attributes:
        leaf: its name.
        shape: of the dense array.
        form: what it is stored as now; "random key" or a type's name for what is no number.
        numbers: stored before and after.
        nbytes: bytes before and after.
        flops: of the product with one row, in a batch of 128, before and after; None for vectors.
        error: relative error in the Frobenius norm; None where shapes differ, and for what is no
            number.
        output_error: the same in the metric of the inputs; None where that is unknown.
    """

    leaf: str
    shape: tuple[int, ...]
    form: str
    numbers: tuple[int, int]
    nbytes: tuple[int, int]
    flops: tuple[float, float] | None
    error: float | None
    output_error: float | None

    def _cells(self) -> tuple[str, ...]:
        return (
            self.leaf,
            "x".join(map(str, self.shape)),
            self.form,
            *(f"{count:,}" for count in (*self.numbers, *self.nbytes)),
            *_optional(self.flops),
            "" if self.error is None else f"{self.error:.3g}",
            "" if self.output_error is None else f"{self.output_error:.3g}",
        )


def _optional(counts: tuple[float, float] | None) -> tuple[str, str]:
    return ("", "") if counts is None else (f"{counts[0]:,.0f}", f"{counts[1]:,.0f}")


@dataclasses.dataclass(frozen=True)
class Report:
    """A table of all leaves and their total; prints, and shows as HTML in a notebook.

    Attributes:
        rows: one for each leaf.
        net_flops: of the network's forward pass on the given inputs, before and after; None
            without them.
    """

    rows: tuple[ReportRow, ...]
    net_flops: tuple[float, float] | None = None

    @property
    def numbers(self) -> tuple[int, int]:
        """Stored numbers of all leaves, before and after."""
        return sum(row.numbers[0] for row in self.rows), sum(row.numbers[1] for row in self.rows)

    def _cells(self) -> list[tuple[str, ...]]:
        before, after = self.numbers
        share = "unchanged" if before == after else f"1/{before / max(after, 1):.3g}"
        nbytes = (sum(row.nbytes[side] for row in self.rows) for side in (0, 1))
        counts = (f"{count:,}" for count in (before, after, *nbytes))
        total = ("total", "", share, *counts, *_optional(self.net_flops), "", "")
        return [*(row._cells() for row in self.rows), total]

    def __str__(self) -> str:
        head, rule, *rows = format_table(HEADERS, self._cells()).split("\n")
        return "\n".join([head, rule, *rows[:-1], rule, rows[-1]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(HEADERS, self._cells())


@checked(net=function("net(params, *inputs)"))
def report(
    before: PyTree,
    after: PyTree,
    net: Callable[..., PyTree] | None = None,
    *inputs: PyTree,
    moments: Moments | PyTree = None,
) -> Report:
    """Compare parameters before and after a compression.

    Args:
        before: the tree before, dense or compact.
        after: the tree after, with the same leaves.
        net: `net(params, *inputs)`, to count the FLOPs of the forward pass.
        *inputs: what `net` takes beside the parameters; shapes are enough.
        moments: of `jc.calibrate`, or second moments of the inputs of each leaf, for the error of
            the outputs.

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
            f"report: leaves of one tree only: {sorted(old.keys() ^ new.keys())}; "
            "give the trees of one network"
        )
    check_moments(before, moments)
    metrics = moments_by_name(moments)
    cache: dict[Hashable, float] = {}
    rows = tuple(_row(name, old[name], new[name], metrics.get(name), cache) for name in new)
    if net is None:
        return Report(rows)
    with explained(f"report: net cannot be called with inputs {arrays_in(inputs)}"):
        return Report(rows, (flops(net, before, *inputs), flops(net, after, *inputs)))


def _row(
    name: str, old: Leaf, new: Leaf, metric: ArrayLike | None, cache: dict[Hashable, float]
) -> ReportRow:
    error, output_error = _errors(name, old, new, metric)
    return ReportRow(
        leaf=name,
        shape=np.shape(new),
        form=_form(new),
        numbers=(stored_numbers(old), stored_numbers(new)),
        nbytes=(_bytes(old), _bytes(new)),
        flops=_product_flops(old, new, cache),
        error=error,
        output_error=output_error,
    )


def _form(leaf: Leaf) -> str:
    if not isinstance(leaf, CompactArray):
        return describe(leaf)
    kind = type(leaf).__name__.removesuffix("Array").lower()
    return f"{kind}: {leaf.summary()}".rstrip(": ")


def _errors(
    name: str, old: Leaf, new: Leaf, metric: ArrayLike | None
) -> tuple[float | None, float | None]:
    """The relative error of a leaf, and that of its outputs where the metric is known."""
    if not (is_numeric(old) and is_numeric(new)) or np.shape(old) != np.shape(new):
        return None, None
    target, gap = _target_and_gap(old, new)
    error = _ratio(np.sum(np.abs(gap) ** 2), np.sum(np.abs(target) ** 2))
    axes = _axes(old, new)
    if metric is None or gap.ndim < axes.ndim:
        return error, None
    gap, target = axes.to_matrix(gap), axes.to_matrix(target)
    weights = check_metric(name, metric, gap)
    assert weights is not None
    return error, _ratio(_squared_norm(gap, weights), _squared_norm(target, weights))


def _target_and_gap(old: Leaf, new: Leaf) -> tuple[np.ndarray, np.ndarray]:
    """A leaf before and how it changed, zero where both hold the same infinity or NaN."""
    target, result = (np.asarray(materialize(leaf)) for leaf in (old, new))
    is_complex = np.iscomplexobj(target) or np.iscomplexobj(result)
    dtype = np.complex128 if is_complex else np.float64
    target, result = target.astype(dtype), result.astype(dtype)
    same = (target == result) | (np.isnan(target) & np.isnan(result))
    gap = np.subtract(target, result, out=np.zeros_like(target), where=~same)
    return np.where(np.isfinite(target), target, 0), gap


def _squared_norm(matrix: Float[np.ndarray, "*lead m n"], metric: np.ndarray) -> float:
    return np.sum(matrix * weigh(metric, matrix))


def _ratio(part: float, total: float) -> float:
    return float(np.sqrt(max(part, 0) / total)) if total > 0 else float(part > 0)


def _bytes(leaf: Leaf) -> int:
    values = sum(map(byte_count, jax.tree.leaves(leaf)))
    return values + (round(4 * leaf.static_numbers) if isinstance(leaf, CompactArray) else 0)


def _axes(old: Leaf, new: Leaf) -> MatrixAxes:
    """The inputs and outputs of a weight: those of a compact array, else (in, out)."""
    for leaf in (new, old):
        if isinstance(leaf, CompactArray):
            return leaf.matrix_axes
    return MATRIX


def _product_flops(
    old: Leaf, new: Leaf, cache: dict[Hashable, float]
) -> tuple[float, float] | None:
    """FLOPs of x @ W for each leaf and row of a batch; None where the leaf is no single matrix."""
    axes = _axes(old, new)
    stacked = np.ndim(jax.tree.leaves(new)[0]) < 1 or len(new.shape) != axes.ndim
    if stacked or not jnp.issubdtype(new.dtype, jnp.floating):
        return None

    def count(leaf: Leaf) -> float:
        shapes = tuple((value.shape, str(value.dtype)) for value in jax.tree.leaves(leaf))
        key = (jax.tree.structure(leaf), shapes, axes)
        if key not in cache:
            sizes = (leaf.shape[axis] for axis in axes.inputs)  # a cut may have changed them
            x = jax.ShapeDtypeStruct((ROWS, *sizes), leaf.dtype)
            cache[key] = flops(lambda x, w: matmul(x, w, axes), x, leaf) / ROWS
        return cache[key]

    return count(old), count(new)
