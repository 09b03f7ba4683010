"""Reconstruct: kernels solved anew, so that a small network's layers give the original's results.

A fold makes each layer right on the original's activations; errors of earlier layers then add up.
Here, layer after layer in the order of the program, kernel and bias are the least-squares
solution of

    x' W' + b' = x W + b        x' the inputs in the small network, x those in the original

by ridge regression with the present kernel as its prior. A kernel of low rank becomes the best of
its rank: that solution, projected in the metric of x' (reduced-rank regression, Izenman 1975).
Costs a pass over the data for each layer, through both networks up to it, and O(m^3) a kernel of
m inputs on the host. It needs no labels and no gradients.

Source: asymmetric layer-wise reconstruction (He et al. 2017, arXiv:1707.06168; Luo et al. 2017,
arXiv:1707.06342).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.factored import FactoredArray
from jaxcompress.arrays.layout import from_rows, to_rows
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.arrays.projection import best_factor, ridge_solve
from jaxcompress.checks import checked
from jaxcompress.moments.calibration import Calibration
from jaxcompress.moments.cross_moments import CrossMoments, gather, groups
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.axes import Axis, Site, Structure
from jaxcompress.networks.layout import Layout
from jaxcompress.networks.maps import AxisMap, apply_map
from jaxcompress.networks.trace import Network, network
from jaxcompress.transforms.base import Scope, Transform
from jaxcompress.transforms.consumers import bias_of, is_solvable
from jaxcompress.transforms.folds import BiasShift
from jaxcompress.transforms.network_state import NetworkState
from jaxcompress.transforms.recalibrate import DataTransform
from jaxcompress.transforms.selection import RIDGE, SHRINK

log = logging.getLogger(__name__)


class Reconstruct(DataTransform):
    """See `reconstruct`."""

    def _step(self, params: PyTree, moments: PyTree, scope: Scope) -> tuple[PyTree, PyTree]:
        if not isinstance(moments, Moments) or moments.reference is None:
            raise ValueError(
                "reconstruct needs the moments of jc.calibrate, which hold the original network"
            )
        state = NetworkState.of(self.net.structure, params, moments)
        original = Original.of(self.net, moments)
        order = self.order(state, original)
        # contractions that are added up share a bias, which gets the sum of their shifts
        shifts: dict[str, list[np.ndarray]] = {}
        statistics = dict(moments.sites)
        for group in tqdm(order, desc="reconstruct", disable=not self.progress, leave=False):
            # in the network as solved so far: later layers correct the errors of earlier ones
            paired = gather(self.net, original.params, state.params(), self.data, group[0])
            for key in group:
                solution = solve(state, self.net.structure.sites[key], original, paired)
                leaves = dict(solution.kernels)
                if solution.shift is not None:
                    name, shift = solution.shift
                    shifts.setdefault(name, []).append(shift)
                    bias = original.target(name)
                    leaves[name] = bias + np.sum(shifts[name], axis=0).reshape(bias.shape)
                state = state.edited(leaves, solution.low_rank)
                statistics[key] = dataclasses.replace(
                    statistics[key], count=paired.count, mean=paired.after, cov=paired.cov
                )
        return state.params(), dataclasses.replace(moments, sites=statistics)

    def order(self, state: NetworkState, original: Original) -> list[tuple[str, ...]]:
        """The contractions to solve for, in order; those of a group have the same inputs."""
        assert state.moments is not None
        sites = [self.net.structure.sites[key] for key in state.moments.sites]
        low_rank: set[str] = set()
        for site in sites:
            low_rank |= {n for n in site.leaves if is_of_low_rank(state, site, n, original)}
        allowed = low_rank | set(state.leaves)
        solvable = {
            site.key: site
            for site in sites
            if is_solvable(state, site) and set(site.leaves) <= allowed
        }
        if skipped := sorted({site.key for site in sites} - set(solvable)):
            log.info(
                "reconstruct leaves %s: shared, stacked, grouped, compact or too wide",
                ", ".join(skipped),
            )
        values = next(self.data.values(self.net), None)
        if values is None:
            raise ValueError("reconstruct: there are no batches: give an iterable of at least one")
        # a kernel that became low-rank is solved even where its inputs did not change
        always = {key for key, site in solvable.items() if low_rank & set(site.leaves)}
        params = state.params()
        return groups(self.net, original.params, params, values, tuple(solvable), always)


@dataclasses.dataclass(frozen=True, eq=False)
class Original:
    """The network with which moments were gathered, and the maps of its axes since then.

    Attributes:
        structure: the network's axes.
        params: its parameters.
        leaves: the same by name.
        sizes: of its axes, where they differ from the traced ones.
        changes: the maps, in order.
    """

    structure: Structure
    params: PyTree
    leaves: Mapping[str, PyTree]
    sizes: Mapping[str, int]
    changes: tuple[tuple[Axis, AxisMap], ...]

    @classmethod
    def of(cls, net: Network, moments: Moments) -> Original:
        """The network that moments refer to."""
        params = moments.reference
        leaves = dict(named_leaves(params))
        return cls(net.structure, params, leaves, net.sizes(params), moments.changes)

    def target(self, name: str, inputs: tuple[int, ...] = ()) -> np.ndarray:
        """A leaf with all maps applied, except along the dimensions that are its inputs."""
        leaves, sizes = {name: np.asarray(self.leaves[name], np.float64)}, dict(self.sizes)
        layouts = list(self.structure.layouts[name])
        for place in inputs:
            layouts[place] = Layout("", leaves[name].shape[place])
        structure = dataclasses.replace(self.structure, layouts={name: tuple(layouts)})
        for axis, change in self.changes:
            apply_map(structure, leaves, sizes, axis, change)
            sizes[axis.key] = change.size
        return leaves[name]


def is_of_low_rank(state: NetworkState, site: Site, name: str, original: Original) -> bool:
    """Whether a kernel is factored along what a site contracts, and was dense in the original."""
    leaf = state.given[name]
    if not isinstance(leaf, FactoredArray) or leaf.stack_shape or is_compact(original.leaves[name]):
        return False
    order = site.inputs.get(name, ())
    order += tuple(place for place in range(leaf.ndim) if place not in order)
    axes = leaf.matrix_axes.inputs + leaf.matrix_axes.outputs
    return axes == tuple(place - leaf.ndim for place in order)


@dataclasses.dataclass(frozen=True)
class Solution:
    """The least-squares solution of one contraction.

    Attributes:
        kernels: dense kernels by name.
        low_rank: factored kernels by name.
        shift: of its bias from that of the original, or None.
    """

    kernels: Mapping[str, np.ndarray]
    low_rank: Mapping[str, FactoredArray]
    shift: BiasShift | None


def solve(state: NetworkState, site: Site, original: Original, paired: CrossMoments) -> Solution:
    """Solve one contraction's kernels and bias towards the original's results."""
    bias = bias_of(state, site)
    covariance, cross = paired.cov, paired.cross
    if bias is None:  # no bias absorbs the mean
        covariance = covariance + np.outer(paired.after, paired.after)
        cross = cross + np.outer(paired.after, paired.before)
    # in the units of the inputs, since those that do not vary in the data keep their prior
    ridge = RIDGE + SHRINK * len(covariance) / max(paired.count, 1.0)
    metric = covariance + ridge * np.diag(np.diag(covariance))
    kernels, low_rank, shift = {}, {}, None
    for name, order in site.inputs.items():
        full = to_rows(original.target(name, order), order)
        factored = None if name in state.leaves else state.given[name]
        present = state.leaves[name] if factored is None else factored.materialize()
        prior = to_rows(np.asarray(present, np.float64), order)
        wanted = cross @ full
        solved = ridge_solve(covariance, wanted, ridge, prior)
        power = float(np.sum(solved * (covariance @ solved)))
        solved *= best_factor(power, float(np.sum(solved * wanted)))
        if factored is None:
            kernels[name] = from_rows(solved, order, present.shape)
        else:
            low_rank[name] = factored.refit(solved, metric)
            solved = np.asarray(low_rank[name].matrix(), np.float64)
        if bias is not None:
            leaf, sign = bias
            shift = leaf, sign * (paired.before @ full - paired.after @ solved)
    return Solution(kernels, low_rank, shift)


@checked(net=network)
def reconstruct(
    net: Network,
    batches: Iterable[PyTree] | Calibration,
    *,
    progress: bool = True,
) -> Transform:
    """Solve every kernel anew, layer after layer, towards the original network's results.

    Put it after `rotate_and_prune` or `factored` in a chain. The original is the network with which
    the moments were gathered. Kernels of low rank keep their rank. Kernels that have no
    least-squares problem of their own stay: shared, stacked in a loop, grouped, compact in another
    form, or with more inputs than were measured.

    Args:
        net: from `jc.trace`.
        batches: unlabelled data as for `jc.calibrate`, or a `jc.Calibration`. It is read once for
            each layer, so give a list, not an iterator.
        progress: show a progress bar.

    Returns:
        A transform; call it as `transform(params, moments)` with the moments of `jc.calibrate`. In
        the moments that it returns, those of the solved kernels' inputs are gathered anew and the
        others are as before; `jc.recalibrate` gathers all.

    Raises:
        ValueError: when called, without the moments of `jc.calibrate`, without batches, or for
            batches that do not fit.
        TypeError: for an iterator of batches.

    Source:
        He et al. 2017, arXiv:1707.06168; Luo et al. 2017, arXiv:1707.06342.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> shapes = {"a": (4, 16), "b": (16, 16), "c": (16, 2)}
        >>> params = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> x = jax.random.normal(keys[3], (500, 4))
        >>> net = jc.trace(apply, params, x)
        >>> moments = jc.calibrate(net, params, [x], progress=False)
        >>> prune = jc.rotate_and_prune(net, keep=1/2)
        >>> better = jc.chain(prune, jc.reconstruct(net, [x], progress=False))
        >>> def error(small):
        ...     return float(jnp.mean((net(small, x) - apply(params, x)) ** 2))
        >>> error(better(params, moments)) < error(prune(params, moments))
        True
    """
    data = Calibration.of(batches)
    data.check_rereadable("reconstruct")
    return Reconstruct(net, data, progress)
