"""Merge: units that say the same become one.

"If two or more of these intermediate values are highly correlated, they convey similar information and can be compressed into a
single value." Units are clustered so that within a group every two correlate at least as a threshold says, of either sign; the one
of a group that is read most stays, the others are written as multiples of it inside the consumers, their means in the biases. Costs
one clustering an axis on the host.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.maps import AxisMap
from jaxcompress.networks.trace import Network, check_network
from jaxcompress.transforms.axis_maps import (
    apart,
    carry,
    centred_sites,
    joint_moments,
    measured,
    selected,
    why_not_fold,
)
from jaxcompress.transforms.axiswise import AxisTransform, Work

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, repr=False)
class Merge(AxisTransform):
    """See `merge`."""

    structure: Structure = dataclasses.field(hash=False)
    threshold: float
    axes: str = "**"

    def change(self, work: Work, axis: Axis) -> AxisMap | None:
        if work.moments is None:
            raise ValueError("merge looks at activations: call it with the moments of jc.calibrate")
        why = why_not_fold(axis) or (
            "nothing was measured along it" if measured(work, axis) is None else None
        )
        if why is not None:
            log.info("%s is left: %s", axis.key, why)
            return None
        moments, d = joint_moments(work, axis), work.size(axis)
        trees = [linkage(squareform(distances(part), checks=False), "complete") for part in moments]
        size = max(int(fcluster(tree, 1 - self.threshold, "distance").max()) for tree in trees)
        if size == d:
            return None
        if why := self.left(work, axis, size):
            log.info("%s is left: %s", axis.key, why)
            return None
        work.touched(axis)
        read = np.einsum("fii->fi", moments) * np.einsum("fii->fi", work.read(axis))
        groups = [cut(tree, size, mine) for tree, mine in zip(trees, read, strict=True)]
        chosen = [
            np.array(sorted(max(group, key=mine.__getitem__) for group in each))
            for each, mine in zip(groups, read, strict=True)
        ]
        folds = lambda moments: np.stack(
            [fold(*each) for each in zip(moments, groups, chosen, strict=True)]
        )
        centred, gaps, other = centred_sites(work, axis), {}, {}
        for site in apart(work, axis):
            own = measured(work, axis, [site])
            assert own is not None
            mine = folds(own.cov if site.key in centred else own.second)
            other |= {slot: mine for slot in site.slots if slot in axis.consumers}
            if site.key in centred:
                gaps[site.key] = own.mean - np.stack(
                    [m[c] @ f for m, c, f in zip(own.mean, chosen, mine, strict=True)]
                )
        carry(work, axis, gaps)
        return dataclasses.replace(selected(chosen, d), consume=folds(moments), other=other)


def cut(tree: np.ndarray, size: int, read: np.ndarray) -> list[list[int]]:
    """A given number of groups of units; where ties leave fewer, those that are read most stand alone."""
    labels = fcluster(tree, size, "maxclust")
    groups = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    while len(groups) < size:
        largest = max(groups, key=len)
        alone = max(largest, key=read.__getitem__)
        largest.remove(alone)
        groups.append([alone])
    return groups


def fold(moments: np.ndarray, groups: list[list[int]], chosen: np.ndarray) -> np.ndarray:
    """(r, d): every unit as a multiple of the one of its group that stays."""
    found = np.zeros((len(chosen), len(moments)))
    for row, unit in enumerate(chosen):
        group = next(group for group in groups if unit in group)
        found[row, group] = moments[unit, group] / max(moments[unit, unit], 1e-300)
        found[row, unit] = 1
    return found


def distances(moments: np.ndarray) -> np.ndarray:
    """One minus the absolute correlation; a unit that never changes is a multiple, by zero, of any other."""
    scale = np.sqrt(np.maximum(np.diag(moments), 0))
    alive = scale > 1e-7 * scale.max(initial=0)
    safe = np.where(alive, scale, 1)
    found = np.where(
        alive[:, None] & alive[None, :], 1 - np.abs(moments / safe[:, None] / safe[None, :]), 0
    )
    np.fill_diagonal(found, 0)
    return np.maximum((found + found.T) / 2, 0)


def merge(net: Network, threshold: float = 0.95, *, axes: str = "**") -> Merge:
    """Make one of the units that say the same, wherever they do.

    How many stay follows from the data, not from a keep. Axes that are read by other activations, or whose norm would change,
    are left.

    Args:
        net: from `jc.trace`; only its axes are kept.
        threshold: the least absolute correlation, in (0, 1], of every two units that become one. Where a consumer has no bias
            that could carry a mean, of their values about zero.
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".

    Returns:
        A transform: call it as `transform(params, moments)` with `moments = jc.calibrate(net, params, batches)`.

    Raises:
        ValueError: for a threshold outside (0, 1], a pattern without an axis; when called, without moments.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> up = jax.random.normal(jax.random.key(0), (3, 4))
        >>> params = {"up": jnp.concatenate([up, -up], 1), "down": jax.random.normal(jax.random.key(1), (8, 2))}
        >>> x = jax.random.normal(jax.random.key(2), (50, 3))
        >>> net = jc.trace(apply, params, x)
        >>> small = jc.merge(net, 0.99)(params, jc.calibrate(net, params, [x], progress=False))
        >>> small["up"].shape, bool(jnp.abs(net(small, x) - apply(params, x)).max() < 1e-4)
        ((3, 4), True)
    """
    check_network("merge", net)
    if (
        not isinstance(threshold, (int, float))
        or isinstance(threshold, bool)
        or not 0 < threshold <= 1
    ):
        raise ValueError(
            f"threshold must be in (0, 1], the least correlation of units that become one; got {threshold!r}"
        )
    return Merge(net.structure, float(threshold), axes)
