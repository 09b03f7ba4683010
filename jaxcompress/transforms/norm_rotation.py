"""Rotations of a hidden axis under norms: their scales are folded, and the mean's size renewed.

Activations h are normalised to n, scaled to `n g + b` and multiplied by kernels K. With g and b in
the kernels, n may be rotated. At r of d channels a mean divides by r, so the norms' scales become
the constant `sqrt(d / r)`.

    root-mean-square norm   produce Q,                   consume Q'
    layer norm              produce V W',  b becomes 1,  consume W V' + 1 1'/r

Q and V are leading directions of n, V among those with zero mean; the columns of W are the r - 1
directions with zero mean over the small channels, which centring therefore leaves as they are. The
mean over the small channels is free, and carries `b K`.

A table that both produces the axis and consumes it cannot take up a scale. The directions are then
turned within their span so that `Q' diag(g) Q` is diagonal, and its diagonal is the new scale. Costs
an eigendecomposition an axis, in float64 on the host.

Source: SliceGPT (arXiv:2401.15024), for networks whose layer norms were replaced.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.signs import fix_signs
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import Axis, Site
from jaxcompress.networks.maps import AxisMap, along
from jaxcompress.programs.program import Slot
from jaxcompress.transforms import selection
from jaxcompress.transforms.axis_statistics import normalised_moments, per_channel, unscaled
from jaxcompress.transforms.consumers import sites_of
from jaxcompress.transforms.legality import tied_scale
from jaxcompress.transforms.network_state import AxisChange, NetworkState


def rotate_normalised(state: NetworkState, axis: Axis, size: int) -> AxisChange:
    """The rotation of an axis whose norms' scales can be folded."""
    d, tied = state.size(axis), tied_scale(state.structure, axis)
    moments = normalised_moments(state, axis)
    produce, consume = (_centred if axis.centred else _orthogonal)(moments, size)
    diagonal = np.ones(size)
    if tied is not None:
        middle = produce.T * state.leaves[tied.leaf].reshape(-1) @ produce
        diagonal, turn = np.linalg.eigh(middle)
        produce = fix_signs(produce @ turn)
        consume = produce.T
    constant = math.sqrt(d / size) if axis.averaged else 1.0
    ones = np.full((1, d, size), 1 / d)  # maps ones to ones
    other = dict.fromkeys(_shifts(state, axis), ones)
    if tied is not None:
        other[tied] = ones * constant * diagonal
    change = AxisMap(produce[None], consume[None], constant * ones, other)
    leaves = {slot.leaf: np.ones_like(state.leaves[slot.leaf]) for slot in (*axis.scales, *other)}
    folded = _folded_kernels(state, axis, tied)
    return AxisChange(change, leaves | folded, _statistics(state, axis, change, diagonal))


def _orthogonal(
    moments: Float[np.ndarray, "d d"], size: int
) -> tuple[Float[np.ndarray, "d r"], Float[np.ndarray, "r d"]]:
    """The leading directions, since only orthogonal maps leave a root mean square as it is."""
    directions = selection.top(moments, size)
    return directions, directions.T


def _centred(
    moments: Float[np.ndarray, "d d"], size: int
) -> tuple[Float[np.ndarray, "d r"], Float[np.ndarray, "r d"]]:
    """A map of the leading directions with zero mean to all those of the small axis, and back."""
    d = len(moments)
    wide, narrow = zero_mean_basis(d), zero_mean_basis(size)
    directions = wide @ selection.top(wide.T @ moments @ wide, size - 1)
    produce = directions @ narrow.T
    return produce, produce.T + np.full((size, d), 1 / size)


def zero_mean_basis(size: int) -> Float[np.ndarray, "n n-1"]:
    """Orthonormal directions of n channels whose mean is zero.

    Example:
        >>> from jaxcompress.transforms.norm_rotation import zero_mean_basis
        >>> zero_mean_basis(2).round(3).tolist()
        [[0.707], [-0.707]]
    """
    # row i: ones up to i, then one entry that makes their sum zero (Helmert)
    steps = np.tril(np.ones((size - 1, size)), 0)
    counts = np.arange(1, size)
    steps[np.arange(size - 1), counts] = -counts
    return (steps / np.sqrt(counts * (counts + 1))[:, None]).T


def _shifts(state: NetworkState, axis: Axis) -> list[Slot]:
    """The parameters that are added after the norms' scales."""
    sites = sites_of(state.structure, axis)
    return list(dict.fromkeys(slot for site in sites for slot in site.shifted))


def _folded_kernels(state: NetworkState, axis: Axis, tied: Slot | None) -> dict[str, np.ndarray]:
    """The consumers' kernels with the scales and shifts before them, still at the present size."""
    d, kernels = state.size(axis), {}
    mean = np.full((1, d, d), 1 / d)
    for slot, site in _first_sites(state, axis).items():
        if not site.scaled or site.scaled[0] == tied:
            continue
        layouts, place = state.layouts(slot.leaf), slot.dimension
        kernel = kernels.get(slot.leaf, state.leaves[slot.leaf])
        scaled = kernel * per_channel(state, axis, site.scaled[0], layouts, place, outside=1.0)
        if axis.centred:
            scaled = along(scaled, layouts, place, axis, np.eye(d) - mean)
        for shift in site.shifted:
            added = kernel * per_channel(state, axis, shift, layouts, place, outside=0.0)
            scaled = scaled + along(added, layouts, place, axis, mean)
        kernels[slot.leaf] = scaled
    return kernels


def _first_sites(state: NetworkState, axis: Axis) -> dict[Slot, Site]:
    """A contraction of each consuming slot; those of one slot have the same scale."""
    sites: dict[Slot, Site] = {}
    for site in sites_of(state.structure, axis):
        for slot in site.slots:
            if slot in axis.consumers:
                sites.setdefault(slot, site)
    return sites


def _statistics(
    state: NetworkState, axis: Axis, change: AxisMap, diagonal: Float[np.ndarray, " r"]
) -> dict[str, Statistic]:
    """The statistics of the consumers' inputs after the change."""
    if state.moments is None:
        return {}
    tied, statistics = tied_scale(state.structure, axis), {}
    for site in sites_of(state.structure, axis):
        if not site.scaled or site.key not in state.moments.sites:
            continue
        matrices = change.produce * (diagonal if site.scaled[0] == tied else 1)
        small = unscaled(state, axis, site).mapped(axis, matrices)
        if site.shifted:
            inside = small.flat.index(axis.key) >= 0
            small = dataclasses.replace(small, mean=small.mean + inside)
        statistics[site.key] = small
    return statistics
