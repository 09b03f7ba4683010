"""The map of one hidden axis to a smaller size, by its kind: a rotation, a pair of them, a selection with a fold, a control.

With S the second moments of what flows along the axis and C what the consumers do with it: rotations keep the principal directions
of `S^(1/2) C`, selections the channels that predict what is read best; each consumer has a fold of its own, and where it reads
several places of the axis its kernel is solved for anew. Costs an eigendecomposition or O(r m^2) an axis, in float64 on the host.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from jaxcompress.moments.moments import AxisMoments
from jaxcompress.networks.axes import Axis, Layout, Site
from jaxcompress.networks.maps import AxisMap, along, lines
from jaxcompress.transforms import selection
from jaxcompress.transforms.axiswise import Work

log = logging.getLogger(__name__)


def why_not_rotate(work: Work, axis: Axis) -> str | None:
    """Why a rotation of an axis would change what the network computes, in words; None where it is legal."""
    marks = set(axis.marks)
    if axis.tied:
        return f"{axis.tied[0]} consumes it and has another use on it"
    if axis.bent:
        return f"{axis.bent[0]} passes a nonlinear function before it is used"
    if axis.pair and (marks or axis.consumers):
        return "activations are multiplied over it, and something else reads it as well"
    if axis.pair or not marks:
        return None
    if marks <= {"rms", "diagonal"} and "rms" in marks:
        return (
            None
            if foldable(work, axis)
            else "its scales cannot be folded into the consumers right behind them"
        )
    words = {
        "elementwise": "a nonlinearity acts on",
        "normalised": "a sum is taken over",
        "diagonal": "a scale acts on",
    }
    return f"{words.get(axis.marks[0] if axis.marks[0] in words else axis.marks[-1])} its channels"


def why_not_fold(axis: Axis) -> str | None:
    """Why the channels that go cannot be folded into the consumers; None where they can."""
    if axis.pair or axis.tied or axis.bent:
        return (
            "it is read by other activations"
            if axis.pair
            else "its consumers have other uses, or are no plain parameters"
        )
    return "a norm over it would change" if {"normalised", "rms"} & set(axis.marks) else None


def measured(work: Work, axis: Axis, sites: list[Site] | None = None) -> AxisMoments | None:
    """What flows along an axis, for every fibre: all of it, or what some consumers see; None where nothing was measured."""
    if work.moments is None:
        return None
    try:
        found = (
            work.moments[axis.key]
            if sites is None
            else work.moments.pooled(axis, [work.moments.sites[s.key] for s in sites])
        )
    except KeyError:
        return None
    spread = lambda part: np.broadcast_to(part, (work.fibres(axis), *part.shape[1:]))
    return dataclasses.replace(found, mean=spread(found.mean), cov=spread(found.cov))


def proxies(work: Work, axis: Axis) -> np.ndarray:
    """Second moments from the weights alone, as if the producers' inputs were white."""
    shifts = tuple(slot for slot in axis.parameters if slot not in axis.scales)
    return work.gram(axis, axis.producers + shifts) + 1e-12 * np.eye(work.size(axis))


def rotate(work: Work, axis: Axis, size: int) -> AxisMap:
    """Any projection is legal: the best for the consumers' outputs."""
    sites = work.sites(axis)
    moments, carried = flowing(work, axis)
    maps = [selection.rotation(s, g, size) for s, g in zip(moments, work.read(axis), strict=True)]
    produce, consume = (np.stack(each) for each in zip(*maps, strict=True))
    gaps = {}
    for site in sites if carried else ():
        own = measured(work, axis, [site])
        assert own is not None
        gaps[site.key] = own.mean - np.einsum("fd,fdr,fre->fe", own.mean, produce, consume)
    carry(work, axis, gaps)
    return AxisMap(produce, consume)


def flowing(work: Work, axis: Axis) -> tuple[np.ndarray, bool]:
    """(F, d, d) the moments that a map should keep, and whether the consumers' biases carry the mean."""
    found, sites = measured(work, axis), work.sites(axis)
    carried = bool(sites) and all(work.bias_of(site) for site in sites)
    return (
        proxies(work, axis) if found is None else found.cov if carried else found.second
    ), carried


def pair_of(work: Work, axis: Axis) -> str | None:
    """The one product of activations over an axis, where its sides have producers of their own."""
    keys = [
        key
        for key, pair in work.structure.pairs.items()
        if any(axis.key in dim.axes() for dim in pair.dims)
    ]
    sides = work.structure.pairs[keys[0]].sides if keys else ((), ())
    return keys[0] if len(keys) == 1 and not set(sides[0]) & set(sides[1]) else None


def pair_moments(work: Work, axis: Axis, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(F, d, d) second moments of either side of a product of activations."""
    if work.moments is None or key not in work.moments.pairs:
        left, right = work.structure.pairs[key].sides
        return work.gram(axis, left), work.gram(axis, right)
    left, right = (work.moments.pooled(axis, [side]).second for side in work.moments.pairs[key])
    spread = lambda part: np.broadcast_to(part, (work.fibres(axis), *part.shape[1:]))
    return spread(left), spread(right)


def rotate_pair(work: Work, axis: Axis, size: int) -> AxisMap:
    """Queries and keys: each side has its own projection, so that their product changes least."""
    key = pair_of(work, axis)
    if key is None:
        return choose(work, axis, size, fold=False)
    sides = work.structure.pairs[key].sides
    left, right = pair_moments(work, axis, key)
    maps = [selection.pair_rotation(a, b, size) for a, b in zip(left, right, strict=True)]
    first, second = (np.stack(each) for each in zip(*maps, strict=True))
    return AxisMap(first, np.swapaxes(first, 1, 2), other=dict.fromkeys(sides[1], second))


def foldable(work: Work, axis: Axis) -> bool:
    """Whether every scale on the axis can be moved into the consumers right behind it."""
    sites = [
        site
        for site in work.structure.sites.values()
        if any(axis.key in dim.axes() for dim in site.dims)
    ]
    known = [site.scaled for site in sites]
    if not sites or any(scaled is None or len(scaled) > 1 for scaled in known):
        return False
    if not axis.foldable or (
        axis.averaged and not all(known)
    ):  # the constant of a mean is put into the scales
        return False
    used = {slot for scaled in known for slot in scaled or ()}
    plain = all(len(work.structure.layouts[slot.leaf]) == 1 for slot in used)
    return (
        plain
        and used == set(axis.scales)
        and {slot for site in sites for slot in site.slots} >= set(axis.consumers)
    )


def normed(work: Work, axis: Axis) -> np.ndarray:
    """(d, d) second moments of what a root-mean-square norm gives before its scale; every consumer counts alike."""
    if work.moments is None:
        return proxies(work, axis).mean(0)
    total = np.zeros((work.size(axis), work.size(axis)))
    for site in work.sites(axis):
        scale = work.leaves[site.scaled[0].leaf] if site.scaled else np.ones(len(total))
        second = work.moments.pooled(axis, [work.moments.sites[site.key]]).second.mean(0)
        safe = np.where(np.abs(scale) > 1e-6 * np.abs(scale).max(), scale, np.inf)
        part = second / safe[:, None] / safe[None, :]
        total += part / max(np.trace(part), 1e-30)
    return total


def rotate_rms(work: Work, axis: Axis, size: int) -> AxisMap:
    """Scales are folded into the consumers, then an orthogonal rotation leaves the norm as it was.

    The norm's mean divides by the present size, which the scale makes up for.
    """
    d = work.size(axis)
    sites = [
        site
        for site in work.structure.sites.values()
        if any(axis.key in dim.axes() for dim in site.dims)
    ]
    total = normed(work, axis)
    scales = {slot: work.leaves[slot.leaf].copy() for slot in axis.scales}
    for site in sites:
        scale = scales[site.scaled[0]] if site.scaled else np.ones(d)
        for slot in site.slots:
            if slot in axis.consumers:
                name, position = slot
                index = work.structure.layouts[name][position].resized(work.sizes).index(axis.key)
                factor = np.where(index >= 0, scale[index], 1.0)
                shape = [1] * work.leaves[name].ndim
                shape[position] = -1
                work.leaves[name] = work.leaves[name] * factor.reshape(shape)
    for slot in axis.scales:
        work.leaves[slot.leaf] = np.ones(d)
    if work.moments is not None:
        unscaled = dict(work.moments.sites)
        for site in sites:
            if site.scaled and site.key in unscaled:
                scale = scales[site.scaled[0]]
                safe = np.where(
                    np.abs(scale) > 1e-6 * np.abs(scale).max(),
                    1 / np.where(scale == 0, 1, scale),
                    0,
                )
                unscaled[site.key] = unscaled[site.key].mapped(axis, np.diag(safe)[None])
        work.moments = dataclasses.replace(work.moments, sites=unscaled)
    directions = selection.top(total, size)[None]
    constant = math.sqrt(d / size) if axis.averaged else 1.0
    level = np.full((1, d, size), constant / d)  # ones become the constant
    return AxisMap(directions, np.swapaxes(directions, 1, 2), level)


def importance(work: Work, axis: Axis) -> np.ndarray:
    """(F, d): what the consumers read of each channel alone."""
    found, d = measured(work, axis), work.size(axis)
    second = proxies(work, axis) if found is None else found.second
    gram = (
        work.read(axis) if axis.consumers else np.broadcast_to(np.eye(d), (work.fibres(axis), d, d))
    )
    return np.einsum("fii->fi", second) * np.einsum("fii->fi", gram)


def centred_sites(work: Work, axis: Axis) -> set[str]:
    """The consumers whose biases carry the mean."""
    return {site.key for site in work.sites(axis) if work.bias_of(site) is not None}


def joint_moments(work: Work, axis: Axis) -> np.ndarray:
    """(F, d, d): what all consumers see on average, about the mean where all their biases carry it."""
    found = measured(work, axis)
    assert found is not None
    return (
        found.cov if len(centred_sites(work, axis)) == len(work.sites(axis)) > 0 else found.second
    )


def systems(work: Work, axis: Axis) -> list[list[selection.System]]:
    """What a selection has to serve: all consumers at once, or fibre by fibre what they see on average."""
    centred = centred_sites(work, axis)
    each = [system(work, axis, site, site.key in centred) for site in work.sites(axis)]
    if each and all(each):
        return [[found for found in each if found]]
    where = np.arange(work.size(axis)).reshape(1, -1, 1)
    both = zip(joint_moments(work, axis), work.read(axis), strict=True)
    return [[selection.System(moments, selection.root(gram), where)] for moments, gram in both]


def apart(work: Work, axis: Axis) -> list[Site]:
    """Consumers with a fold of their own, since two may read one axis after different operations.

    One kernel at several places takes the common fold.
    """
    uses = Counter(slot for site in work.structure.sites.values() for slot in site.slots)
    return [site for site in work.sites(axis) if all(uses[slot] == 1 for slot in site.slots)]


def choose(work: Work, axis: Axis, size: int, *, fold: bool) -> AxisMap:
    """Keep some channels; where a fold is legal the consumers learn the others from them."""
    d = work.size(axis)
    found = measured(work, axis)
    if found is None or not fold:
        return selected(
            [np.sort(np.argsort(-row, kind="stable")[:size]) for row in importance(work, axis)], d
        )
    if found.count < d:
        log.warning(
            "%s was measured on %d vectors, fewer than its %d channels: calibrate with more",
            axis.key,
            found.count,
            d,
        )
    centred, joint = centred_sites(work, axis), joint_moments(work, axis)
    chosen = [mine for group in systems(work, axis) for mine in selection.choose(group, size)]
    folds = lambda moments, count: np.stack(
        [selection.predict(s, c, count) for s, c in zip(moments, chosen, strict=True)]
    )
    change = dataclasses.replace(selected(chosen, d), consume=folds(joint, found.count))
    other, gaps = {}, {}
    for site in apart(work, axis):
        own = measured(work, axis, [site])
        assert own is not None
        mine = folds(own.cov if site.key in centred else own.second, own.count)
        slots = [slot for slot in site.slots if slot in axis.consumers]
        if refit(work, axis, site, change, mine, site.key in centred):
            other |= dict.fromkeys(
                slots, np.swapaxes(change.produce, 1, 2)
            )  # the kernel is solved for already
            continue
        other |= dict.fromkeys(slots, mine)
        if site.key in centred:
            gaps[site.key] = own.mean - np.stack(
                [m[c] @ f for m, c, f in zip(own.mean, chosen, mine, strict=True)]
            )
    carry(work, axis, gaps)
    return dataclasses.replace(change, other=other)


def system(work: Work, axis: Axis, site: Site, centred: bool) -> selection.System | None:
    """A consumer as the selection sees it: every place of a window or a head beside the channels."""
    if not work.solvable(site):
        return None
    statistic = work.statistic(site)
    flat = statistic.flat
    where = lines(flat, axis.key)  # (d, lines)
    fibres = [flat.index(key)[where[0]] for key in axis.fibres]
    if any((index < 0).any() for index in fibres):
        return None
    order = np.lexsort(fibres[::-1]) if fibres else np.arange(where.shape[1])
    where = where[:, order].reshape(len(where), work.fibres(axis), -1).swapaxes(0, 1)
    matrices = [
        np.moveaxis(work.felt(name, [site]), order, range(len(order))).reshape(flat.size, -1)
        for name, order in site.inputs.items()
    ]
    reader = np.concatenate(matrices, axis=1)
    reader = reader if reader.shape[1] <= flat.size else selection.root(reader @ reader.T)
    return selection.System(statistic.cov if centred else statistic.second, reader, where)


def refit(
    work: Work, axis: Axis, site: Site, change: AxisMap, fold: np.ndarray, centred: bool
) -> bool:
    """Solve a consumer's kernel anew for the channels that stay, by ridge least squares towards the fold.

    A fold predicts a dropped channel from the kept ones at the same place; a kernel with several places (a convolution's
    window, heads, flattened pixels) can use all of them. Gives whether the kernel was one that could be solved for.
    """
    statistic = work.statistic(site)
    several = len(statistic.dims) > 1 or any(dim.split for dim in statistic.dims)
    if not several or not work.solvable(site):
        return False
    flat, moments = statistic.flat, statistic.cov if centred else statistic.second
    marker = np.ones((1, flat.size))
    kept = (
        along(
            marker, (Layout(), flat), 1, axis, change.produce @ np.swapaxes(change.produce, 1, 2)
        )[0]
        > 0.5
    )
    inner = moments[np.ix_(kept, kept)]
    weight = (
        selection.SHRINK * kept.sum() / max(statistic.count, 1.0) * np.trace(inner) / len(inner)
        + np.finfo(np.float64).tiny
    )
    for name, order in site.inputs.items():
        values = work.leaves[name]
        moved = np.moveaxis(values, order, range(len(order)))
        matrix = moved.reshape(flat.size, -1)
        towards = along(
            matrix, (flat, Layout("", matrix.shape[1])), 0, axis, np.swapaxes(fold, 1, 2)
        )
        solved = np.zeros_like(matrix)
        right = moments[kept] @ matrix + weight * towards
        solved[kept] = np.linalg.solve(inner + weight * np.eye(len(inner)), right)
        bias = work.bias_of(site)
        if centred and bias is not None:
            shape = work.leaves[bias[0]].shape
            work.leaves[bias[0]] = work.leaves[bias[0]] + bias[1] * (
                statistic.mean @ (matrix - solved)
            ).reshape(shape)
        work.leaves[name] = np.moveaxis(solved.reshape(moved.shape), range(len(order)), order)
    return True


def selected(chosen: list[np.ndarray], size: int) -> AxisMap:
    """A map that keeps channels and folds nothing."""
    produce = np.stack([selection.embed(each, size) for each in chosen])
    return AxisMap(produce, np.swapaxes(produce, 1, 2), produce)


def control(work: Work, axis: Axis, size: int, method: str, seed: int) -> AxisMap:
    """The baselines: the largest channels by the producers' weights, or any."""
    count, d = work.fibres(axis), work.size(axis)
    if method == "random":
        rng = np.random.default_rng([seed, *axis.key.encode()])
        return selected([np.sort(rng.permutation(d)[:size]) for _ in range(count)], d)
    power = 1 if method == "l1" else 2
    norms = np.zeros((count, d))
    for slot in axis.producers or axis.consumers:
        norms += np.sum(np.abs(work.unfold(axis, slot)) ** power, axis=-1)
    return selected([np.sort(np.argsort(-row, kind="stable")[:size]) for row in norms], d)


def carry(work: Work, axis: Axis, gaps: Mapping[str, np.ndarray]) -> None:
    """Let the consumers' biases carry the constant part (F, d) of what a fold leaves out."""
    for key, gap in gaps.items():
        site = work.structure.sites[key]
        found = work.bias_of(site)
        assert found is not None
        (bias, sign), (name,) = found, site.leaves
        layouts = tuple(layout.resized(work.sizes) for layout in work.structure.layouts[name])
        consumed = list(site.inputs.get(name) or [slot.dimension for slot in site.slots])
        position = next(place for place in consumed if axis.key in layouts[place].axes())
        part = along(work.leaves[name], layouts, position, axis, gap[:, :, None])
        # entries that other axes hold in this dimension are not meant
        others = layouts[position].resized({axis.key: 1}).index(axis.key) < 0
        part = np.moveaxis(part, position, -1)
        part[..., others] = 0
        delta = np.moveaxis(part, -1, position).sum(tuple(consumed))
        work.leaves[bias] = work.leaves[bias] + sign * delta.reshape(work.leaves[bias].shape)
