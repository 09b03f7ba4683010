"""Rotations of a hidden axis under norms: their scales are folded, and the mean's size renewed.

Activations h are normalised to n, scaled to `n g + b` and multiplied by kernels K. With g and b in
the kernels, n may be rotated and cut to r of d directions.

    root-mean-square norm   produce Q,                   consume Q'
    layer norm              produce V W',  b becomes 1,  consume W V' + 1 1'/r

The columns of Q and V are orthonormal, those of V have zero mean; the r - 1 columns of W are the
directions with zero mean over the small channels, which centring therefore leaves as they are. The
mean over the small channels is free, and carries `b K`. A mean divides by r now, and a norm lacks
what was cut, so scales become the constant `sqrt(d / r)` times the root of the kept power's share.
Before the cut every kernel is multiplied by the least-squares prediction of n from its kept
directions, layer by layer.

A table that both produces the axis and consumes it cannot take up a scale. The directions are then
turned within their span so that the symmetric matrix that stands between its two ends is diagonal,
and its diagonal is the new scale. Costs an eigendecomposition an axis and a linear system a kernel
and layer, in float64 on the host.

Sources: SliceGPT (arXiv:2401.15024), for networks whose layer norms were replaced; SVD in the
inputs' metric (arXiv:2403.07378).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.signs import fix_signs
from jaxcompress.moments.statistics import AxisMoments, Statistic
from jaxcompress.networks.axes import Axis, Site
from jaxcompress.networks.maps import AxisMap, along
from jaxcompress.programs.program import Slot
from jaxcompress.transforms.axis_statistics import normalised_moments, per_channel, unscaled
from jaxcompress.transforms.consumers import measured_sites, sites_of, weighted_kernel
from jaxcompress.transforms.legality import tied_scale
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.selection import norm_variance, predict_from, root, top

SHARES = (0.0, 0.1, 0.3, 1.0)
"""The weights of the norm itself, beside those of the consumers' results, that are tried."""


def rotate_normalised(state: NetworkState, axis: Axis, size: int) -> AxisChange:
    """The rotation of an axis whose norms' scales can be folded."""
    d, tied = state.size(axis), tied_scale(state.structure, axis)
    directions, share = leading_directions(state, axis, size - axis.centred)
    diagonal = np.ones(size)
    if tied is not None:
        diagonal, turn = np.linalg.eigh(tied_middle(state, axis, tied, directions))
        directions = fix_signs(directions @ turn)
    produce, consume = directions, directions.T
    if axis.centred:
        produce = directions @ zero_mean_basis(size).T
        consume = produce.T + 1 / size
    constant = math.sqrt(share * d / size) if axis.averaged else 1.0
    ones = np.full((1, d, size), 1 / d)  # maps ones to ones
    other = dict.fromkeys(_shifts(state, axis), ones)
    if tied is not None:
        other[tied] = ones * constant * diagonal
    change = AxisMap(produce[None], consume[None], constant * ones, other)
    leaves = {slot.leaf: np.ones_like(state.leaves[slot.leaf]) for slot in (*axis.scales, *other)}
    kernels = _folded_kernels(state, axis, tied, directions)
    return AxisChange(change, leaves | kernels, _statistics(state, axis, change, diagonal))


def leading_directions(
    state: NetworkState, axis: Axis, rank: int
) -> tuple[Float[np.ndarray, "d rank"], float]:
    """Orthonormal directions from which consumers are predicted best, and their share of the power.

    The norm changes with what is cut, so that directions of large power matter beside those that
    consumers read: of several weightings the one with the least predicted error is taken.
    """
    moments, gram, basis = _relative(state, axis)
    if not rank:  # a layer norm of one channel is zero
        return np.zeros((len(basis), 0)), 0.0
    halves = _halves(moments)
    mixed = [gram + share * np.eye(len(gram)) for share in SHARES]
    candidates = [_span(moments, halves, weights, rank) for weights in mixed]
    candidates.append(top(moments, rank))
    best = min(candidates, key=lambda span: _predicted_error(moments, gram, span))
    return basis @ best, float(np.sum(best * (moments @ best)))


def weighted_spectrum(state: NetworkState, axis: Axis) -> Float[np.ndarray, " d"]:
    """The power of the leading directions, for consumers and norm alike, largest first."""
    moments, gram, _ = _relative(state, axis)
    half = root(moments)
    values = np.linalg.eigvalsh(half @ (gram + SHARES[2] * np.eye(len(gram))) @ half)[::-1]
    # under a layer norm the first channel of a small axis adds no direction
    return np.concatenate([np.zeros(int(axis.centred)), np.maximum(values, 0)])


def _relative(
    state: NetworkState, axis: Axis
) -> tuple[
    Float[np.ndarray, "rank rank"], Float[np.ndarray, "rank rank"], Float[np.ndarray, "d rank"]
]:
    """Moments of n and the Gram matrix of what reads it, of power one, in a basis of directions."""
    moments, d = normalised_moments(state, axis), state.size(axis)
    gram = _scaled_gram(state, axis, moments)
    basis = zero_mean_basis(d) if axis.centred else np.eye(d)
    moments, gram = basis.T @ moments @ basis, basis.T @ gram @ basis
    moments = moments / max(np.trace(moments), 1e-300)
    return moments, gram / max(float(np.sum(gram * moments)), 1e-300), basis


def _halves(
    moments: Float[np.ndarray, "d d"],
) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, "d d"]]:
    """The symmetric square root of moments and its inverse, zero in directions without power."""
    values, vectors = np.linalg.eigh(moments)
    scale = np.sqrt(np.maximum(values, 0))
    alive = scale > 1e-6 * scale.max(initial=0)
    inverse = np.where(alive, 1 / np.where(alive, scale, 1), 0)
    return (vectors * scale) @ vectors.T, (vectors * inverse) @ vectors.T


def _span(
    moments: Float[np.ndarray, "d d"],
    halves: tuple[Float[np.ndarray, "d d"], Float[np.ndarray, "d d"]],
    gram: Float[np.ndarray, "d d"],
    rank: int,
) -> Float[np.ndarray, "d rank"]:
    """An orthonormal basis of the directions that predict weighted results best."""
    half, inverse = halves
    # S^(1/2) times a direction lies in the leading ones of S^(1/2) G S^(1/2)
    span = inverse @ top(half @ gram @ half, rank)
    # directions without power complete the rank
    full = np.concatenate([span, 1e-9 * np.linalg.norm(span) * top(moments, rank)], axis=1)
    return np.linalg.svd(full, full_matrices=False)[0][:, :rank]


def _predicted_error(
    moments: Float[np.ndarray, "d d"],
    gram: Float[np.ndarray, "d d"],
    span: Float[np.ndarray, "d rank"],
) -> float:
    """The squared error of the consumers' results relative to their power."""
    cross = span.T @ moments
    fold = predict_from(cross @ span, cross, np.diag(moments), span.T)
    missing = moments - fold.T @ (2 * cross - cross @ span @ fold)
    norm = norm_variance(span @ span.T, np.eye(len(moments)), moments)
    return float(np.sum(missing * gram)) + norm


def tied_middle(
    state: NetworkState, axis: Axis, tied: Slot, directions: Float[np.ndarray, "d r"]
) -> Float[np.ndarray, "r r"]:
    """The symmetric matrix M between a tied table's two ends, instead of its scale g.

    With S the moments of n and K the Gram matrix of the table, the least-squares M of
    `n Q M Q' W' = n diag(g) W'` solves `A M B + B M A = R + R'` with A and B the moments and the
    Gram matrix along Q and `R = Q' S diag(g) K Q`. Both are made diagonal by one matrix.
    """
    scale = state.leaves[tied.leaf].ravel()
    plain = directions.T * scale @ directions
    moments = _site_moments(state, axis, _reader(state, axis, tied))
    if moments is None:
        return plain
    second, gram = moments.second.mean(0), state.gram(axis, axis.tied)[0]
    inner, table = directions.T @ second @ directions, directions.T @ gram @ directions
    right = directions.T @ (second * scale) @ gram @ directions
    right = right - inner @ plain @ table  # a correction, so that a ridge shrinks to the plain one
    lower = np.linalg.cholesky(inner + 1e-7 * np.trace(inner) / len(inner) * np.eye(len(inner)))
    whiten = np.linalg.inv(lower)
    values, vectors = np.linalg.eigh(whiten @ table @ whiten.T)
    values = np.maximum(values, 1e-7 * values.max(initial=0)) + 1e-300
    turned = vectors.T @ whiten @ (right + right.T) @ whiten.T @ vectors
    turned = turned / (values[:, None] + values[None, :])
    back = whiten.T @ vectors
    return plain + back @ turned @ back.T


def _reader(state: NetworkState, axis: Axis, tied: Slot) -> Site:
    """The contraction by which a tied table consumes an axis after a scale."""
    return next(site for site in sites_of(state.structure, axis) if site.scaled == (tied,))


def zero_mean_basis(size: int) -> Float[np.ndarray, "n n-1"]:
    """Orthonormal directions of n channels whose mean is zero.

    Example:
        >>> from jaxcompress.transforms.norm_rotation import zero_mean_basis
        >>> zero_mean_basis(2).round(3).tolist()
        [[0.707], [-0.707]]
    """
    # row i: ones up to i, then one entry that makes their sum zero (Helmert)
    steps, counts = np.tril(np.ones((size - 1, size))), np.arange(1, size)
    steps[np.arange(size - 1), counts] = -counts
    return (steps / np.sqrt(counts * (counts + 1))[:, None]).T


# --- consumers ------------------------------------------------------------------------------------


def _shifts(state: NetworkState, axis: Axis) -> list[Slot]:
    """The parameters that are added after the norms' scales."""
    sites = sites_of(state.structure, axis)
    return list(dict.fromkeys(slot for site in sites for slot in site.shifted))


def _readers(state: NetworkState, axis: Axis) -> dict[Slot, Site]:
    """A contraction of each consuming slot; those of one slot have the same scale."""
    sites: dict[Slot, Site] = {}
    for site in (*measured_sites(state, axis), *sites_of(state.structure, axis)):
        for slot in site.slots:
            if slot in axis.consumers:
                sites.setdefault(slot, site)
    return sites


def _scaled(
    state: NetworkState, axis: Axis, slot: Slot, site: Site, kernel: np.ndarray
) -> np.ndarray:
    """A kernel, or an array of its shape, with the scale before it."""
    if not site.scaled:
        return kernel
    layouts = state.layouts(slot.leaf)
    scale = per_channel(state, axis, site.scaled[0], layouts, slot.dimension, outside=1.0)
    return kernel * scale


def _scaled_gram(
    state: NetworkState, axis: Axis, moments: Float[np.ndarray, "d d"]
) -> Float[np.ndarray, "d d"]:
    """The Gram matrix of all consumers' kernels with the scales before them.

    Without sensitivities kernels count alike, so that a wide one, such as a table of words, does
    not decide for all.
    """
    known = state.moments is not None and bool(state.moments.gains)
    total = np.zeros((state.size(axis), state.size(axis)))
    for slot, site in _readers(state, axis).items():
        kernel = _scaled(state, axis, slot, site, weighted_kernel(state, slot.leaf, [site]))
        rows = state.unfold(axis, slot, kernel)
        gram = (rows @ np.swapaxes(rows, 1, 2)).sum(0)
        power = float(np.sum(gram * moments))
        total += gram if known or power <= 0 else gram / power
    return total


def _site_moments(state: NetworkState, axis: Axis, site: Site) -> AxisMoments | None:
    """The moments of n before one consumer, for each of its layers; None where not measured."""
    if state.moments is None or site.key not in state.moments.sites:
        return None
    statistic = unscaled(state, axis, site)
    lead = [layout.key for layout in statistic.lead]
    layers = tuple(key for key in site.layers if key in lead)
    return state.moments.pooled(dataclasses.replace(axis, fibres=layers), [statistic])


def _folded_kernels(
    state: NetworkState, axis: Axis, tied: Slot | None, directions: Float[np.ndarray, "d rank"]
) -> dict[str, np.ndarray]:
    """The consumers' kernels with what stands before them, still at the present size."""
    d = state.size(axis)
    kernels: dict[str, np.ndarray] = {}
    mean = np.full((1, d, d), 1 / d)
    for slot, site in _readers(state, axis).items():
        if tied is not None and site.scaled == (tied,):
            continue
        layouts, place = state.layouts(slot.leaf), slot.dimension
        kernel = kernels.get(slot.leaf, state.leaves[slot.leaf])
        folded = _scaled(state, axis, slot, site, kernel)
        if axis.centred:
            folded = along(folded, layouts, place, axis, np.eye(d) - mean)
        moments = _site_moments(state, axis, site)
        if moments is not None:
            folded = along(folded, layouts, place, moments.axis, _predictions(moments, directions))
        for shift in site.shifted:
            added = kernel * per_channel(state, axis, shift, layouts, place, outside=0.0)
            folded = folded + along(added, layouts, place, axis, mean)
        kernels[slot.leaf] = folded
    return kernels


def _predictions(
    moments: AxisMoments, directions: Float[np.ndarray, "d rank"]
) -> Float[np.ndarray, "layers d d"]:
    """For each layer the matrix that predicts n from its kept directions, transposed."""
    matrices = []
    for second in moments.second if directions.size else ():
        cross = directions.T @ second
        power = np.diag(second)
        fold = predict_from(cross @ directions, cross, power, directions.T, moments.count)
        matrices.append(fold.T @ directions.T)
    return np.stack(matrices or [np.zeros_like(second) for second in moments.second])


def _statistics(
    state: NetworkState, axis: Axis, change: AxisMap, diagonal: Float[np.ndarray, " r"]
) -> dict[str, Statistic]:
    """The statistics of the consumers' inputs after the change."""
    tied, statistics = tied_scale(state.structure, axis), {}
    for site in measured_sites(state, axis):
        if not site.scaled:
            continue
        matrices = change.produce * (diagonal if site.scaled[0] == tied else 1)
        small = unscaled(state, axis, site).mapped(axis, matrices)
        if site.shifted:
            inside = small.flat.index(axis.key) >= 0
            small = dataclasses.replace(small, mean=small.mean + inside)
        statistics[site.key] = small
    return statistics
