"""Reconstruct: every kernel solved anew, so that the small network's layers give what the original's gave.

A fold makes each layer right on the original's activations; errors upstream then add up. Here, layer after layer in the
order of the program, kernel W' and bias are the least-squares solution of `x' W' = x W`, x' being what the small network
really meets and x what the original met: ridge regression towards the present kernel. A kernel of low rank becomes the best of
its rank: that solution, projected in the metric of x' (reduced-rank regression, Izenman 1975). Costs one pass over the data for
each layer, of both networks up to it, and m'^3 a kernel on the host. No labels, no gradients.

Source: asymmetric layer-wise reconstruction (He et al. 2017, arXiv:1707.06168; Luo et al. 2017, arXiv:1707.06342).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.factored import FactoredArray
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.moments.calibration import Calibration
from jaxcompress.moments.cross_moments import CrossMoments, gather, groups
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.axes import Layout, Site
from jaxcompress.networks.maps import apply_map
from jaxcompress.networks.trace import Network
from jaxcompress.transforms.axiswise import Work
from jaxcompress.transforms.base import Scope, Transform
from jaxcompress.transforms.recalibrate import DataTransform
from jaxcompress.transforms.selection import SHRINK

log = logging.getLogger(__name__)


class Reconstruct(DataTransform):
    """See `reconstruct`."""

    def _step(self, params: Any, moments: Any, scope: Scope) -> tuple[Any, Any]:
        if not isinstance(moments, Moments) or moments.reference is None:
            raise ValueError(
                "reconstruct needs the moments of jc.calibrate, which remember the original network"
            )
        work = Work(self.net.structure, params, moments)
        original = Original(self.net, moments)
        sites = {key: self.net.structure.sites[key] for key in moments.sites}
        low = {
            name
            for site in sites.values()
            for name in site.leaves
            if of_low_rank(work, site, name, original)
        }
        solvable = {
            key: site
            for key, site in sites.items()
            if work.solvable(site) and set(site.leaves) <= low | set(work.leaves)
        }
        if left := sorted(set(sites) - set(solvable)):
            log.info(
                "reconstruct leaves %s: shared, stacked, grouped, compact or too wide",
                ", ".join(left),
            )
        values = next(self.data.values(self.net), None)
        if values is None:
            raise ValueError("reconstruct: there are no batches: give an iterable of at least one")
        gaps: dict[str, dict[str, np.ndarray]] = {}
        met = dict(moments.sites)
        always = {key for key, site in solvable.items() if low & set(site.leaves)}
        order = groups(self.net, original.params, params, values, tuple(solvable), always)
        for group in tqdm(order, desc="reconstruct", disable=not self.progress, leave=False):
            paired = gather(self.net, original.params, work.params(), self.data, group[0])
            for key in group:
                solve(work, solvable[key], original, paired, gaps)
                met[key] = dataclasses.replace(
                    met[key], count=paired.count, mean=paired.after, cov=paired.cov
                )
        return work.params(), dataclasses.replace(moments, sites=met)


class Original:
    """The network that the moments were gathered with, and what has been done to its axes since."""

    def __init__(self, net: Network, moments: Moments):
        self.structure, self.params, self.changes = (
            net.structure,
            moments.reference,
            moments.changes,
        )
        self.leaves = dict(named_leaves(moments.reference))
        self.sizes = net.sizes(moments.reference)

    def target(self, name: str, inputs: tuple[int, ...] = ()) -> np.ndarray:
        """A leaf with the maps that were applied since, but for those of its inputs."""
        leaves, sizes = {name: np.asarray(self.leaves[name], np.float64)}, dict(self.sizes)
        layouts = list(self.structure.layouts[name])
        for place in inputs:
            layouts[place] = Layout("", leaves[name].shape[place])
        structure = dataclasses.replace(self.structure, layouts={name: tuple(layouts)})
        for axis, change in self.changes:
            apply_map(structure, leaves, sizes, axis, change)
            sizes[axis.key] = change.size
        return leaves[name]


def of_low_rank(work: Work, site: Site, name: str, original: Original) -> bool:
    """Whether a kernel is a product of low rank of what the site contracts, and was dense in the original."""
    leaf = work.given[name]
    if not isinstance(leaf, FactoredArray) or leaf._leading() or is_compact(original.leaves[name]):
        return False
    order = site.inputs.get(name, ())
    order += tuple(place for place in range(leaf.ndim) if place not in order)
    return leaf.matrix_axes.inputs + leaf.matrix_axes.outputs == tuple(
        place - leaf.ndim for place in order
    )


def solve(
    work: Work,
    site: Site,
    original: Original,
    paired: CrossMoments,
    gaps: dict[str, dict[str, np.ndarray]],
) -> None:
    """Solve for one contraction's kernels and bias."""
    bias = work.bias_of(site)
    centred = bias is not None
    inner = paired.cov if centred else paired.cov + np.outer(paired.after, paired.after)
    cross = paired.cross if centred else paired.cross + np.outer(paired.after, paired.before)
    weight = SHRINK / max(paired.count, 1.0) * np.trace(inner) + np.finfo(np.float64).tiny
    for name, order in site.inputs.items():
        full = np.moveaxis(original.target(name, order), order, range(len(order))).reshape(
            len(paired.before), -1
        )
        metric, low = inner + weight * np.eye(len(inner)), name not in work.leaves
        present = (
            np.asarray(work.given[name].materialize(), np.float64) if low else work.leaves[name]
        )
        moved = np.moveaxis(present, order, range(len(order)))
        solved = np.linalg.solve(metric, cross @ full + weight * moved.reshape(len(inner), -1))
        if low:
            work.given[name] = work.given[name].refit(solved, metric)
            solved = np.asarray(work.given[name]._matrix(), np.float64)
        else:
            work.leaves[name] = np.moveaxis(solved.reshape(moved.shape), range(len(order)), order)
        if bias is not None:
            leaf, sign = bias
            gaps.setdefault(leaf, {})[site.key] = sign * (
                paired.before @ full - paired.after @ solved
            )
            plain = original.target(leaf)
            work.leaves[leaf] = plain + np.sum(list(gaps[leaf].values()), axis=0).reshape(
                plain.shape
            )


def reconstruct(
    net: Network,
    batches: Iterable[Any] | Calibration,
    *,
    progress: bool = True,
) -> Transform:
    """Solve every kernel anew, layer after layer, towards what the original network computed on the same data.

    Put it behind `rotate_and_prune` or `factored` in a chain. The original is the network that the moments were gathered with.
    Kernels of low rank keep their rank. Those that cannot be solved for (shared, stacked in a loop, grouped, compact in another
    form, of more inputs than were measured) stay.

    Args:
        net: from `jc.trace`.
        batches: as for `jc.calibrate`; they are read once for each layer, so give a list, not an iterator.
        progress: show a progress bar.

    Returns:
        A transform. What comes after it in a chain has the moments that the solved kernels' inputs have now; the others'
        are as carried (`jc.recalibrate` gathers all).

    Raises:
        ValueError: when called, without the moments of `jc.calibrate`, or for batches that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> shapes = {"a": (4, 16), "b": (16, 16), "c": (16, 2)}
        >>> params = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> x = jax.random.normal(keys[3], (500, 4))
        >>> net = jc.trace(apply, params, x)
        >>> moments = jc.calibrate(net, params, [x], progress=False)
        >>> prune = jc.rotate_and_prune(net, keep=1/2)
        >>> better = jc.chain(prune, jc.reconstruct(net, [x], progress=False))
        >>> error = lambda small: float(jnp.mean((net(small, x) - apply(params, x)) ** 2))
        >>> error(better(params, moments)) < error(prune(params, moments))
        True
    """
    data = Calibration.of(batches)
    data.check_rereadable("reconstruct")
    return Reconstruct(net, data, progress)
