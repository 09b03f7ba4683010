"""Selections of channels under a norm: it is taken over fewer channels, and its scale is renewed.

With n the normalised activations and S the r kept channels, the smaller network's norm gives

    n' = n E (1 - 1 1'/r) / c,    c^2 = mean(n'^2) before the division

where E picks S, and a root-mean-square norm subtracts no mean. The norm's scale is multiplied by c,
so that activations stay as large as they were, and every consumer predicts its inputs `n g + b`
from those that it will have, `n' g + b`, by ridge least squares, to first order, since c differs
from vector to vector. Channels that repeat others equally often go without any error: mean and
variance are those of the kept ones. Costs O(d^3) a consumer, in float64 on the host.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import Axis, Site
from jaxcompress.networks.maps import AxisMap, selecting
from jaxcompress.programs.program import Slot
from jaxcompress.transforms.axis_statistics import (
    measured,
    normalised_moments,
    relevant_moments,
    unscaled,
)
from jaxcompress.transforms.consumers import (
    bias_of,
    consumer_gram,
    measured_sites,
    sites_of,
    statistic,
    weighted_kernel,
)
from jaxcompress.transforms.folds import bias_shift, separate_sites, shifted_biases
from jaxcompress.transforms.merge import clustering, cut, strongest
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.selection import norm_variance, predict, predict_from


def select_under_norm(
    state: NetworkState, axis: Axis, chosen: Sequence[Int[np.ndarray, " r"]]
) -> AxisChange:
    """A selection of channels with folds of the consumers and new scales of the norms.

    Args:
        state: the network before the change.
        axis: the axis, whose activations were measured.
        chosen: for each fibre the channels that predict the others best. Channels that repeat each
            other are taken once instead where that changes the consumers' results less.
    """
    d = state.size(axis)
    candidates = [chosen]
    if len(chosen) == 1:
        candidates.append([representatives(state, axis, len(chosen[0]))])
    changes = [selecting(channels, d) for channels in candidates]
    best = min(changes, key=lambda change: predicted_error(state, axis, change))
    return fold_under_norm(state, axis, best)


def representatives(state: NetworkState, axis: Axis, size: int) -> Int[np.ndarray, " r"]:
    """The channel of the largest effect of each group of correlated ones."""
    moments = normalised_moments(state, axis)
    effects = np.diag(moments) * np.diag(consumer_gram(state, axis).sum(0))
    return strongest(cut(clustering(moments), size, effects), effects)


def fold_under_norm(state: NetworkState, axis: Axis, change: AxisMap) -> AxisChange:
    """Complete a selection of a measured axis by the folds of its consumers and the new scales."""
    moments = measured(state, axis)
    assert moments is not None
    other: dict[Slot, np.ndarray] = dict(renewed_scales(state, axis, change))
    shifts = []
    for site in separate_sites(state, axis):
        systems = _systems(state, axis, site, change)
        fold = np.stack([system.fold() for system in systems])
        other |= {slot: fold for slot in site.slots if slot in axis.consumers}
        if bias_of(state, site) is not None:
            pairs = zip(systems, fold, strict=True)
            gap = np.stack([system.mean - system.after @ own for system, own in pairs])
            shifts.append(bias_shift(state, axis, site, gap))
    # for consumers that have no fold of their own
    fibres = zip(relevant_moments(state, axis), change.produce, strict=True)
    together = [predict(part, picked.argmax(0), moments.count) for part, picked in fibres]
    complete = dataclasses.replace(change, consume=np.stack(together), other=other)
    return AxisChange(complete, shifted_biases(state, shifts), _statistics(state, axis, change))


def predicted_error(state: NetworkState, axis: Axis, change: AxisMap) -> float:
    """The squared error of the consumers' results after a selection and their folds.

    The scales make up for the mean change of a variance. It differs from vector to vector, by the
    variance of the quadratic form `n B n'`, which is that of a normal distribution here.
    """
    fluctuation, error = _fluctuation(state, axis, change), 0.0
    for site in measured_sites(state, axis):
        slots = [slot for slot in site.slots if slot in axis.consumers]
        rows = [state.unfold(axis, s, weighted_kernel(state, s.leaf, [site])) for s in slots]
        for fibre, system in enumerate(_systems(state, axis, site, change)):
            fold = dataclasses.replace(system, count=math.inf).fold()
            missing = system.moments - fold.T @ (2 * system.cross - system.inner @ fold)
            for kernel in rows:
                error += float(np.sum(kernel[fibre] * (missing @ kernel[fibre])))
                power = float(np.sum(kernel[fibre] * (system.moments @ kernel[fibre])))
                error += fluctuation * power * site.normed
    return error


def _fluctuation(state: NetworkState, axis: Axis, change: AxisMap) -> float:
    """The variance, over vectors, of the norm of the kept channels relative to that of all."""
    moments, d = normalised_moments(state, axis), state.size(axis)
    kept = change.produce[0] @ _centring(axis, change.size)
    return norm_variance(kept @ kept.T, _centring(axis, d), moments)


def renewed_scales(
    state: NetworkState, axis: Axis, change: AxisMap
) -> dict[Slot, Float[np.ndarray, "fibres d r"]]:
    """For every scale that follows a norm its map, which makes up for another variance."""
    maps = {}
    for site in measured_sites(state, axis):
        if not site.normed or not site.scaled or state.moments is None:
            continue
        before = state.moments.pooled(axis, [unscaled(state, axis, site)]).second.mean(0)
        kept = change.produce[0] @ _centring(axis, change.size)
        power, full = np.trace(kept.T @ before @ kept), np.trace(before)
        if axis.averaged:
            power, full = power / change.size, full / len(before)
        maps[site.scaled[0]] = change.produce * np.sqrt(power / full if full > 0 else 1.0)
    return maps


def _centring(axis: Axis, size: int) -> Float[np.ndarray, "r r"]:
    """The matrix that subtracts the mean over the kept channels, where the norm does."""
    return np.eye(size) - ("normalised" in axis.marks) / size


def _new_inputs(
    state: NetworkState, axis: Axis, site: Site, change: AxisMap
) -> tuple[Float[np.ndarray, "fibres d r"], Float[np.ndarray, " r"]]:
    """A matrix and a vector that give a consumer's inputs after the selection from those before."""
    picks, zero = change.produce, np.zeros(change.size)
    slots = (*(site.scaled or ()), *site.shifted)
    plain = all(state.leaves[slot.leaf].size == state.size(axis) for slot in slots)
    if not site.normed or len(picks) > 1 or not plain:
        return picks, zero
    scale, shift = (
        state.leaves[slots[0].leaf].ravel() if slots else default
        for slots, default in (
            (site.scaled, np.ones(state.size(axis))),
            (site.shifted, np.zeros(state.size(axis))),
        )
    )
    usable = np.abs(scale) > 1e-6 * np.abs(scale).max()
    inverse = np.where(usable, 1 / np.where(usable, scale, 1), 0)
    matrix = inverse[:, None] * picks[0] @ _centring(axis, change.size) * (scale @ picks[0])
    return matrix[None], shift @ picks[0] - shift @ matrix


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """One consumer's inputs before a selection, predicted from those after it, in one fibre.

    Attributes:
        inner: moments of the inputs after it.
        cross: their moments with those before it.
        moments: of the inputs before it.
        prior: the kept channels as they are.
        mean: of the inputs before it.
        after: the mean of the inputs after it.
        count: the number of measured vectors.
    """

    inner: Float[np.ndarray, "r r"]
    cross: Float[np.ndarray, "r d"]
    moments: Float[np.ndarray, "d d"]
    prior: Float[np.ndarray, "r d"]
    mean: Float[np.ndarray, " d"]
    after: Float[np.ndarray, " r"]
    count: float

    def fold(self) -> Float[np.ndarray, "r d"]:
        """The prediction by ridge least squares."""
        power = np.diag(self.moments)
        return predict_from(self.inner, self.cross, power, self.prior, self.count)


def _systems(state: NetworkState, axis: Axis, site: Site, change: AxisMap) -> list[_Prediction]:
    """One consumer's predictions, for each fibre."""
    own = measured(state, axis, [site])
    assert own is not None
    matrices, constant = _new_inputs(state, axis, site, change)
    absorbs = bias_of(state, site) is not None
    systems = []
    for mean, cov, matrix, picks in zip(own.mean, own.cov, matrices, change.produce, strict=True):
        after = mean @ matrix + constant
        inner, cross = matrix.T @ cov @ matrix, matrix.T @ cov
        if not absorbs:  # the mean is to be predicted, too
            inner, cross = inner + np.outer(after, after), cross + np.outer(after, mean)
            cov = cov + np.outer(mean, mean)
        systems.append(_Prediction(inner, cross, cov, picks.T, mean, after, own.count))
    return systems


def _statistics(state: NetworkState, axis: Axis, change: AxisMap) -> dict[str, Statistic]:
    """The statistics of the consumers' inputs after the selection."""
    assert state.moments is not None
    statistics = {}
    for site in sites_of(state.structure, axis):
        if site.normed and site.key in state.moments.sites:
            matrices, constant = _new_inputs(state, axis, site, change)
            small = statistic(state, site).mapped(axis, matrices)
            index = small.flat.index(axis.key)
            mean = small.mean + np.where(index >= 0, constant[index], 0)
            statistics[site.key] = dataclasses.replace(small, mean=mean)
    return statistics
