"""Rotations of one hidden axis to a smaller size.

With S the second moments of the activations and C C' the Gram matrix of the consumers' kernels, the
kept directions are the leading ones of `S^(1/2) C`. On an axis under a root-mean-square norm the
norm's scale is folded into the consumers first; the two sides of a product of activations (queries
and keys) each get a projection of their own. Costs an eigendecomposition an axis, in float64 on the
host.

Sources: SVD in the inputs' metric (arXiv:2403.07378); PCA of a residual stream (SliceGPT,
arXiv:2401.15024).
"""

from __future__ import annotations

import math

import numpy as np

from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import Axis
from jaxcompress.networks.maps import AxisMap
from jaxcompress.transforms import selection
from jaxcompress.transforms.axis_statistics import (
    all_absorb,
    inverse_scale,
    measured,
    normalised_moments,
    pair_moments,
    relevant_moments,
)
from jaxcompress.transforms.consumers import consumer_gram, measured_sites, sites_of
from jaxcompress.transforms.folds import bias_shift, shifted_biases, unpredicted
from jaxcompress.transforms.legality import pair_of
from jaxcompress.transforms.network_state import AxisChange, NetworkState


def rotate(state: NetworkState, axis: Axis, size: int) -> AxisChange:
    """The best rotation of an axis that `legality.can_rotate` allows."""
    if axis.pair:
        return rotate_pair(state, axis, size)
    return (rotate_normalised if "rms" in axis.marks else rotate_linear)(state, axis, size)


def rotate_linear(state: NetworkState, axis: Axis, size: int) -> AxisChange:
    """The projection of a given rank that changes the consumers' results least."""
    pairs = zip(relevant_moments(state, axis), consumer_gram(state, axis), strict=True)
    maps = [selection.rotation(moments, gram, size) for moments, gram in pairs]
    produce, consume = (np.stack(matrices) for matrices in zip(*maps, strict=True))
    # where all consumers absorb the mean the projection ignores it, and the biases restore it
    shifts = []
    for site in measured_sites(state, axis) if all_absorb(state, axis) else ():
        own = measured(state, axis, [site])
        assert own is not None
        shifts.append(bias_shift(state, axis, site, unpredicted(own.mean, produce, consume)))
    return AxisChange(AxisMap(produce, consume), shifted_biases(state, shifts))


def rotate_pair(state: NetworkState, axis: Axis, size: int) -> AxisChange:
    """Projections of queries and of keys that change their product least."""
    key = pair_of(state, axis)
    assert key is not None
    moments = zip(*pair_moments(state, axis, key), strict=True)
    maps = [selection.pair_rotation(left, right, size) for left, right in moments]
    first, second = (np.stack(matrices) for matrices in zip(*maps, strict=True))
    other = dict.fromkeys(state.structure.pairs[key].sides[1], second)
    return AxisChange(AxisMap(first, np.swapaxes(first, 1, 2), other=other))


def rotate_normalised(state: NetworkState, axis: Axis, size: int) -> AxisChange:
    """An orthogonal rotation under a root-mean-square norm, whose scale is folded first.

    The norm's mean will divide by the new size; the new, constant scale makes up for that.
    """
    d = state.size(axis)
    # orthogonal, since only such maps leave the root mean square as it is
    directions = selection.top(normalised_moments(state, axis), size)[None]
    constant = math.sqrt(d / size) if axis.averaged else 1.0
    scales = np.full((1, d, size), constant / d)  # maps a scale of ones to the constant
    return AxisChange(
        AxisMap(directions, np.swapaxes(directions, 1, 2), scales),
        leaves=fold_scales(state, axis),
        sites=unscaled_statistics(state, axis),
    )


def fold_scales(state: NetworkState, axis: Axis) -> dict[str, np.ndarray]:
    """The scales of an axis, now one, and the kernels that they were multiplied into."""
    leaves = {slot.leaf: np.ones(state.size(axis)) for slot in axis.scales}
    for site in sites_of(state.structure, axis):
        if not site.scaled:
            continue
        scale = state.leaves[site.scaled[0].leaf]
        for slot in site.slots:
            if slot in axis.consumers:
                # a dimension may hold several axes: rows of the others (index -1) are not scaled
                index = state.layouts(slot.leaf)[slot.dimension].index(axis.key)
                kernel = leaves.get(slot.leaf, state.leaves[slot.leaf])
                shape = [1] * kernel.ndim
                shape[slot.dimension] = -1
                factor = np.where(index >= 0, scale[index], 1.0)
                leaves[slot.leaf] = kernel * factor.reshape(shape)
    return leaves


def unscaled_statistics(state: NetworkState, axis: Axis) -> dict[str, Statistic]:
    """The statistics of the consumers' inputs once the scales of an axis are one."""
    if state.moments is None:
        return {}
    statistics = {}
    for site in sites_of(state.structure, axis):
        if site.scaled and site.key in state.moments.sites:
            inverse = np.diag(inverse_scale(state.leaves[site.scaled[0].leaf]))
            statistics[site.key] = state.moments.sites[site.key].mapped(axis, inverse[None])
    return statistics
