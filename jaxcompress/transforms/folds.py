"""Folds: consumers are adapted to a smaller axis, so that they predict its dropped part.

With h the activations of an axis and `h P` those that are kept, a fold T predicts `h` as `h P T`
and is multiplied into the consumers' kernels; the mean of the remainder is added to their biases.
Each consumer has its own fold, since two may use the axis after different operations. A kernel
with several positions (a convolution's window, heads) may be solved anew instead: every dropped
channel is then predicted from the kept ones of all positions. Costs O(m^3) a consumer of m
inputs.

Source: the interpolative decomposition for networks (arXiv:2108.00065).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.layout import from_rows, to_rows
from jaxcompress.arrays.projection import factor_to, ridge_solve
from jaxcompress.networks.axes import Axis, Site
from jaxcompress.networks.layout import Layout
from jaxcompress.networks.maps import AxisMap, along
from jaxcompress.programs.program import Slot
from jaxcompress.transforms.axis_statistics import measured, relevant_moments
from jaxcompress.transforms.consumers import (
    bias_of,
    consumer_gram,
    is_solvable,
    measured_sites,
    statistic,
)
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.selection import RIDGE, SHRINK, factor_of

Fold: TypeAlias = Callable[[np.ndarray, float], np.ndarray]
"""From moments (fibres, d, d) and the number of measured vectors to predictions (fibres, r, d)."""

BiasShift: TypeAlias = tuple[str, np.ndarray]
"""The name of a bias, and what is added to it."""


@dataclasses.dataclass(frozen=True)
class _SiteFold:
    """The part of one consumer in a fold.

    Attributes:
        matrices: for each of its slots the matrices that replace the map's `consume`.
        kernels: kernels that were solved anew, by name, at the axis's present size.
        shift: of its bias, or None.
    """

    matrices: Mapping[Slot, np.ndarray]
    kernels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shift: BiasShift | None = None


def fold_into_consumers(
    state: NetworkState, axis: Axis, change: AxisMap, fold: Fold, *, solve: bool = False
) -> AxisChange:
    """Complete a map of a measured axis by the folds of its consumers.

    Args:
        state: the network before the change.
        axis: the axis, whose activations were measured.
        change: the map; its `consume` is replaced by the fold of all consumers together.
        fold: makes predictions from moments.
        solve: whether kernels with several positions are solved anew; `change` is then a selection.
    """
    moments = measured(state, axis)
    assert moments is not None
    sites = separate_sites(state, axis)
    parts = [_site_fold(state, axis, site, change, fold, solve) for site in sites]
    other, kernels = dict(change.other), {}
    for part in parts:
        other |= part.matrices
        kernels |= part.kernels
    biases = shifted_biases(state, [part.shift for part in parts if part.shift is not None])
    # for consumers that have no fold of their own
    relevant = relevant_moments(state, axis)
    together = fold(relevant, moments.count)
    grams = [factor_of(gram) for gram in consumer_gram(state, axis)]
    together = no_worse_than_zeros(together, change.produce, np.stack(grams), relevant)
    complete = dataclasses.replace(change, consume=together, other=other)
    return AxisChange(complete, kernels | biases)


def _site_fold(
    state: NetworkState, axis: Axis, site: Site, change: AxisMap, fold: Fold, solve: bool
) -> _SiteFold:
    """The fold of one consumer, or its kernels solved anew, and the shift of its bias."""
    absorbs = bias_of(state, site) is not None
    own = measured(state, axis, [site])
    assert own is not None
    relevant = own.cov if absorbs else own.second
    slots = [slot for slot in site.slots if slot in axis.consumers]
    kernels = [state.unfold(axis, slot) for slot in slots]
    matrices = fold(relevant, own.count)
    if kernels:
        whole = np.concatenate(kernels, axis=-1)
        matrices = no_worse_than_zeros(matrices, change.produce, whole, relevant)
    if solve and has_positions(state, site):
        return _solved(state, axis, site, change, matrices, absorbs)
    shift = None
    if absorbs:
        gap = unpredicted(own.mean, change.produce, matrices)
        shift = bias_shift(state, axis, site, gap)
    return _SiteFold(_for_slots(axis, site, matrices), shift=shift)


def no_worse_than_zeros(
    fold: Float[np.ndarray, "fibres r d"],
    produce: Float[np.ndarray, "fibres d r"],
    kernel: Float[np.ndarray, "fibres d p"],
    moments: Float[np.ndarray, "fibres d d"],
) -> Float[np.ndarray, "fibres r d"]:
    """A fold, scaled in the fibres where the results would be worse than those of a zero kernel."""
    fitted = produce @ fold @ kernel
    fibres = zip(np.broadcast_to(fitted, kernel.shape), kernel, moments, strict=True)
    factors = np.array([factor_to(*fibre) for fibre in fibres])
    return fold if (factors == 1).all() else fold * factors[:, None, None]


def separate_sites(state: NetworkState, axis: Axis) -> list[Site]:
    """The consumers with a fold of their own: those whose slots no other contraction has."""
    uses: Counter[Slot] = Counter()
    for site in state.structure.sites.values():
        uses.update(site.slots)
    sites = measured_sites(state, axis)
    return [site for site in sites if all(uses[slot] == 1 for slot in site.slots)]


def _for_slots(axis: Axis, site: Site, matrices: np.ndarray) -> dict[Slot, np.ndarray]:
    """The same matrices for every slot by which a site consumes an axis."""
    return {slot: matrices for slot in site.slots if slot in axis.consumers}


def unpredicted(
    mean: Float[np.ndarray, "fibres d"],
    produce: Float[np.ndarray, "fibres d r"],
    fold: Float[np.ndarray, "fibres r d"],
) -> Float[np.ndarray, "fibres d"]:
    """The part of a mean that the kept activations do not predict."""
    return mean - (mean[:, None, :] @ produce @ fold)[:, 0]


def bias_shift(
    state: NetworkState, axis: Axis, site: Site, gap: Float[np.ndarray, "fibres d"]
) -> BiasShift:
    """The shift of a consumer's bias that makes up for a constant missing from its input."""
    bias = bias_of(state, site)
    assert bias is not None
    (name, sign), (kernel,) = bias, site.leaves
    return name, sign * result_shift(state, axis, site, state.leaves[kernel], gap)


def result_shift(
    state: NetworkState,
    axis: Axis,
    site: Site,
    values: np.ndarray,
    gap: Float[np.ndarray, "fibres d"],
) -> np.ndarray:
    """What a constant along an axis adds to a contraction's result.

    Args:
        state: the network.
        axis: the axis.
        site: the contraction, of one kernel.
        values: of the kernel.
        gap: the constant of every channel.
    """
    (kernel,) = site.leaves
    layouts = state.layouts(kernel)
    inputs = list(site.inputs.get(kernel) or [slot.dimension for slot in site.slots])
    position = next(place for place in inputs if axis.key in layouts[place].axes())
    part = along(values, layouts, position, axis, gap[:, :, None])
    # inputs of the same dimension that belong to other axes are as they were
    others = layouts[position].resized({axis.key: 1}).index(axis.key) < 0
    part = np.moveaxis(part, position, -1)
    part[..., others] = 0
    return np.moveaxis(part, -1, position).sum(tuple(inputs))


def shifted_biases(state: NetworkState, shifts: Iterable[BiasShift]) -> dict[str, np.ndarray]:
    """New values of biases by name; contractions that are added up may share one."""
    biases: dict[str, np.ndarray] = {}
    for name, shift in shifts:
        bias = biases.get(name, state.leaves[name])
        biases[name] = bias + shift.reshape(bias.shape)
    return biases


def has_positions(state: NetworkState, site: Site) -> bool:
    """Whether a kernel can be solved for and contracts an axis at several positions."""
    dims = statistic(state, site).dims
    return (len(dims) > 1 or any(dim.split for dim in dims)) and is_solvable(state, site)


def _solved(
    state: NetworkState,
    axis: Axis,
    site: Site,
    change: AxisMap,
    fold: Float[np.ndarray, "fibres r d"],
    absorbs: bool,
) -> _SiteFold:
    """A consumer's kernels by ridge least squares from the kept channels, shrunk to its fold."""
    inputs = statistic(state, site)
    flat, moments = inputs.flat, inputs.cov if absorbs else inputs.second
    selection = np.swapaxes(change.produce, 1, 2)
    # a row of ones mapped by the projection on the kept channels marks the inputs that remain
    ones = np.ones((1, flat.size))
    kept = along(ones, (Layout(), flat), 1, axis, change.produce @ selection)[0] > 0.5
    # the ridge shrinks the solution to the fold, more strongly where fewer vectors were measured
    inner = moments[np.ix_(kept, kept)]
    ridge = RIDGE + SHRINK * kept.sum() / max(inputs.count, 1.0)
    kernels, shift, bias = {}, None, bias_of(state, site) if absorbs else None
    for name, order in site.inputs.items():
        matrix = to_rows(state.leaves[name], order)
        layouts = (flat, Layout("", matrix.shape[1]))
        target = along(matrix, layouts, 0, axis, np.swapaxes(fold, 1, 2))
        solved = np.zeros_like(matrix)
        solved[kept] = ridge_solve(inner, moments[kept] @ matrix, ridge, target)
        solved *= factor_to(solved, matrix, moments)
        kernels[name] = from_rows(solved, order, state.leaves[name].shape)
        if bias is not None:
            shift = bias[0], bias[1] * (inputs.mean @ (matrix - solved))
    return _SiteFold(_for_slots(axis, site, selection), kernels, shift)
