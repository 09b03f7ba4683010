"""Selections of channels of one hidden axis, with or without a fold of the others.

Where moments were measured, channels are chosen so that together they predict what the consumers
compute; otherwise by their own importance. Costs O(r m^2) for r channels and a consumer of m
inputs, in float64 on the host.
"""

from __future__ import annotations

import logging

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.layout import to_rows
from jaxcompress.networks.axes import Axis, Site
from jaxcompress.networks.maps import AxisMap, lines, selecting
from jaxcompress.transforms import selection
from jaxcompress.transforms.axis_statistics import (
    absorbing_sites,
    importance,
    measured,
    relevant_moments,
)
from jaxcompress.transforms.consumers import (
    consumer_gram,
    is_solvable,
    measured_sites,
    statistic,
    weighted_kernel,
)
from jaxcompress.transforms.folds import fold_into_consumers
from jaxcompress.transforms.legality import has_norm
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.norm_selection import select_under_norm

log = logging.getLogger(__name__)


def largest(scores: Float[np.ndarray, "fibres d"], size: int) -> AxisMap:
    """The map that keeps the channels with the largest scores of each fibre, in their order."""
    channels = [np.sort(np.argsort(-row, kind="stable")[:size]) for row in scores]
    return selecting(channels, scores.shape[1])


def select(state: NetworkState, axis: Axis, size: int, *, fold: bool) -> AxisChange:
    """Keep some channels; where a fold is legal, consumers predict the others from them."""
    d, moments = state.size(axis), measured(state, axis)
    if moments is None or not fold:
        return AxisChange(largest(importance(state, axis), size))
    for site in measured_sites(state, axis):  # each is solved for by itself
        count = statistic(state, site).count
        if count < d:
            log.warning(
                "%s was measured on %d vectors in %s, fewer than its %d channels: "
                "calibrate with more",
                axis.key,
                count,
                site.key,
                d,
            )
    chosen: list[np.ndarray] = []
    for group in selection_systems(state, axis):
        chosen += selection.choose(group, size)

    def predictions(moments: np.ndarray, count: float) -> np.ndarray:
        fibres = zip(moments, chosen, strict=True)
        return np.stack([selection.predict(s, channels, count) for s, channels in fibres])

    if has_norm(axis):
        return select_under_norm(state, axis, chosen)
    return fold_into_consumers(state, axis, selecting(chosen, d), predictions, solve=True)


def control(state: NetworkState, axis: Axis, size: int, method: str, seed: int) -> AxisMap:
    """The baselines: channels with the largest weights of their producers, or at random."""
    fibres, d = state.fibres(axis), state.size(axis)
    if method == "random":
        # seeded by the axis's key, so that a draw does not depend on the other axes
        rng = np.random.default_rng([seed, *axis.key.encode()])
        return selecting([np.sort(rng.permutation(d)[:size]) for _ in range(fibres)], d)
    power = 1 if method == "l1" else 2
    norms = np.zeros((fibres, d))
    for slot in axis.producers or axis.consumers:
        norms += np.sum(np.abs(state.unfold(axis, slot)) ** power, axis=-1)
    return largest(norms, size)


def selection_systems(state: NetworkState, axis: Axis) -> list[list[selection.System]]:
    """The least-squares systems that a selection serves, in groups that are chosen for together.

    One group with a system for each consumer, where all kernels can be solved for; otherwise a
    group for each fibre, with the average of the consumers' inputs.
    """
    absorbing = absorbing_sites(state, axis)
    systems = [
        _site_system(state, axis, site, site.key in absorbing)
        for site in measured_sites(state, axis)
    ]
    known = [system for system in systems if system is not None]
    if known and len(known) == len(systems):
        return [known]
    where = np.arange(state.size(axis)).reshape(1, -1, 1)
    fibres = zip(relevant_moments(state, axis), consumer_gram(state, axis), strict=True)
    return [
        [selection.System(moments, selection.factor_of(gram), where)] for moments, gram in fibres
    ]


def _site_system(
    state: NetworkState, axis: Axis, site: Site, absorbs: bool
) -> selection.System | None:
    """One consumer's system, with every position that a channel takes in it; None if unsolvable."""
    if not is_solvable(state, site):
        return None
    inputs = statistic(state, site)
    flat = inputs.flat
    where = lines(flat, axis.key)  # (d, positions)
    fibres = [flat.index(key)[where[0]] for key in axis.fibres]
    # positions sorted by fibre, so that a reshape separates the fibres
    by_fibre = np.lexsort(fibres[::-1]) if fibres else np.arange(where.shape[1])
    where = where[:, by_fibre].reshape(len(where), state.fibres(axis), -1).swapaxes(0, 1)
    matrices = [
        to_rows(weighted_kernel(state, name, [site]), order) for name, order in site.inputs.items()
    ]
    kernel = np.concatenate(matrices, axis=1)
    # only the Gram matrix matters: a wide kernel is replaced by a square one that costs less
    if kernel.shape[1] > flat.size:
        kernel = np.asarray(np.linalg.qr(kernel.T, mode="r")).T
    return selection.System(inputs.cov if absorbs else inputs.second, kernel, where)
