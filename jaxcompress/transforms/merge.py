"""Merge correlated hidden units into one.

Units are clustered by complete linkage so that within a group every two have an absolute
correlation of at least a threshold. Of each group the unit with the largest effect on the
consumers is kept; the others are written as multiples of it inside the consumers' kernels, their
means in the biases:

    h_j = (E[h_j h_i] / E[h_i^2]) h_i         for unit j of the group that keeps unit i

Costs one hierarchical clustering an axis, O(d^2), on the host.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from jaxcompress.checks import checked, number, path_pattern
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.maps import selecting
from jaxcompress.networks.trace import Network, structure_of, traced
from jaxcompress.transforms.axis_statistics import measured, relevant_moments
from jaxcompress.transforms.axiswise import AxisTransform
from jaxcompress.transforms.consumers import consumer_gram
from jaxcompress.transforms.folds import fold_into_consumers
from jaxcompress.transforms.legality import has_norm, why_not_fold
from jaxcompress.transforms.network_state import AxisChange, NetworkState

ROUNDING = 1e-13
"""The share of a second moment that is the variance of float32 rounding."""


@dataclasses.dataclass(frozen=True, repr=False)
class Merge(AxisTransform):
    """See `merge`."""

    structure: Structure = dataclasses.field(hash=False)
    threshold: float
    axes: str = "**"

    def change(self, state: NetworkState, axis: Axis) -> AxisChange | None:
        """The groups of one axis merged, or None where no two units are."""
        if state.moments is None:
            raise ValueError("merge compares activations: call it with the moments of jc.calibrate")
        why = "a norm over it would change" if has_norm(axis) else why_not_fold(axis)
        if why is None and measured(state, axis) is None:
            why = "nothing was measured along it"
        if why is not None:
            self.skip(axis, why)
            return None
        moments, d = varying(state, axis), state.size(axis)
        trees = [clustering(part) for part in moments]
        # fibres have one size: the largest count, so that no fibre merges below the threshold
        size = max(group_count(tree, self.threshold) for tree in trees)
        if size == d or not self.can_resize(state, axis, size):
            return None
        state.check_dense(axis)
        gram = consumer_gram(state, axis)
        effects = np.einsum("fii->fi", moments) * np.einsum("fii->fi", gram)
        groups = [cut(tree, size, effect) for tree, effect in zip(trees, effects, strict=True)]
        kept = [strongest(rows, effect) for rows, effect in zip(groups, effects, strict=True)]

        def multiples_of_kept(moments: np.ndarray, count: float) -> np.ndarray:
            return np.stack([multiples(*row) for row in zip(moments, groups, kept, strict=True)])

        return fold_into_consumers(state, axis, selecting(kept, d), multiples_of_kept)


def varying(state: NetworkState, axis: Axis) -> Float[np.ndarray, "fibres d d"]:
    """The moments that matter to the consumers, exactly zero for units that are constant."""
    own = measured(state, axis)
    assert own is not None
    moments = relevant_moments(state, axis)
    power, whole = np.einsum("fii->fi", moments), np.einsum("fii->fi", own.second)
    # about the mean, a constant unit has the variance of its rounding
    alive = power > ROUNDING * whole
    return moments * (alive[:, :, None] & alive[:, None, :])


def clustering(moments: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "merges 4"]:
    """The complete-linkage tree of units, as scipy's `linkage` gives it."""
    return linkage(squareform(distances(moments), checks=False), "complete")


def group_count(tree: Float[np.ndarray, "merges 4"], threshold: float) -> int:
    """The number of groups in which every two units correlate by at least a threshold."""
    return int(fcluster(tree, 1 - threshold, "distance").max())


def cut(
    tree: Float[np.ndarray, "merges 4"], size: int, effects: Float[np.ndarray, " d"]
) -> list[list[int]]:
    """A given number of groups; where ties give fewer, units of large effect are split off."""
    labels = fcluster(tree, size, "maxclust")
    groups = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
    while len(groups) < size:
        largest = max(groups, key=len)
        alone = max(largest, key=effects.__getitem__)
        largest.remove(alone)
        groups.append([alone])
    return groups


def strongest(groups: list[list[int]], effects: Float[np.ndarray, " d"]) -> Int[np.ndarray, " r"]:
    """The unit with the largest effect of each group, in ascending order."""
    return np.array(sorted(max(group, key=effects.__getitem__) for group in groups))


def multiples(
    moments: Float[np.ndarray, "d d"], groups: list[list[int]], kept: Int[np.ndarray, " r"]
) -> Float[np.ndarray, "r d"]:
    """Every unit as a multiple of the kept unit of its group."""
    fold = np.zeros((len(kept), len(moments)))
    for row, unit in enumerate(kept):
        group = next(group for group in groups if unit in group)
        if moments[unit, unit] > 0:
            fold[row, group] = moments[unit, group] / moments[unit, unit]
        fold[row, unit] = 1
    return fold


def distances(moments: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """One minus the absolute correlation; a constant unit is a multiple, by zero, of any other."""
    scale = np.sqrt(np.maximum(np.diag(moments), 0))
    alive = scale > 0
    safe = np.where(alive, scale, 1)
    correlations = np.abs(moments / safe[:, None] / safe[None, :])
    # also between two constants, so that all of them can be one group
    apart = np.where(alive[:, None] & alive[None, :], 1 - correlations, 0)
    np.fill_diagonal(apart, 0)
    return np.maximum((apart + apart.T) / 2, 0)


@checked(
    net=traced,
    threshold=number("(0, 1]", "the least correlation of units that are merged"),
    axes=path_pattern,
)
def merge(net: Network | Structure, threshold: float = 0.95, *, axes: str = "**") -> Merge:
    """Merge correlated hidden units of every hidden axis.

    The number of units that remain follows from the data. Axes over which activations are
    multiplied, or that have a norm over them, are not changed, and the log names the reason.

    Args:
        net: from `jc.trace`; only its axes are kept.
        threshold: the least absolute correlation, in (0, 1], of every two units of a group. Where
            a consumer has no bias that could absorb a mean, the correlation is that of the second
            moments about zero.
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".

    Returns:
        A transform; call it as `transform(params, moments)` with the moments of `jc.calibrate`.

    Raises:
        ValueError: for a threshold outside (0, 1]; when called, without moments, for a pattern that
            matches no axis, or for an axis of a compact leaf.
        TypeError: for a `net` that is not from `jc.trace`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> up = jax.random.normal(jax.random.key(0), (3, 4))
        >>> down = jax.random.normal(jax.random.key(1), (8, 2))
        >>> params = {"up": jnp.concatenate([up, -up], 1), "down": down}  # tanh is odd
        >>> x = jax.random.normal(jax.random.key(2), (50, 3))
        >>> net = jc.trace(apply, params, x)
        >>> moments = jc.calibrate(net, params, [x], progress=False)
        >>> small = jc.merge(net, 0.99)(params, moments)
        >>> small["up"].shape, bool(jnp.abs(net(small, x) - apply(params, x)).max() < 1e-4)
        ((3, 4), True)
    """
    return Merge(structure_of(net), float(threshold), axes)
