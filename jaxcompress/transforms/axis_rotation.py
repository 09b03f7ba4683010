"""Rotations of one hidden axis to a smaller size.

With S the second moments of the activations and C C' the Gram matrix of the consumers' kernels, the
kept directions are the leading ones of `S^(1/2) C`. Where a parameter both produces the axis and
consumes it, the projection is orthogonal; under a norm it is, too (`norm_rotation.py`). The two
sides of a product of activations (queries and keys) each get a projection of their own. Costs an
eigendecomposition an axis, in float64 on the host.

Source: SVD in the inputs' metric (arXiv:2403.07378).
"""

from __future__ import annotations

import numpy as np

from jaxcompress.networks.axes import Axis
from jaxcompress.networks.maps import AxisMap
from jaxcompress.transforms import selection
from jaxcompress.transforms.axis_statistics import (
    all_absorb,
    measured,
    pair_moments,
    relevant_moments,
)
from jaxcompress.transforms.consumers import consumer_gram, measured_sites
from jaxcompress.transforms.folds import bias_shift, shifted_biases, unpredicted
from jaxcompress.transforms.legality import pair_of
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.norm_rotation import rotate_normalised


def rotate(state: NetworkState, axis: Axis, size: int) -> AxisChange:
    """The best rotation of an axis that `legality.can_rotate` allows."""
    if axis.pair:
        return rotate_pair(state, axis, size)
    return (rotate_normalised if "rms" in axis.marks else rotate_linear)(state, axis, size)


def rotate_linear(state: NetworkState, axis: Axis, size: int) -> AxisChange:
    """The projection of a given rank that changes the consumers' results least."""
    pairs = zip(relevant_moments(state, axis), consumer_gram(state, axis), strict=True)
    # a parameter that produces and consumes the axis has one matrix for both
    best = selection.orthogonal_rotation if axis.tied else selection.rotation
    maps = [best(moments, gram, size) for moments, gram in pairs]
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
