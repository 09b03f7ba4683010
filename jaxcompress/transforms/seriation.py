"""Seriation: permute the channels of a hidden axis so that neighbours are similar.

A permutation of a hidden axis does not change the network's function. It makes the axis a smoother
function of the channel's index, which `coarsen` and the bases of `spline` rely on. The distance of
two channels is `E (h_i - h_j)^2`, the cost of averaging them; without moments the inputs of the
producers are taken to be white. Three searches: optimal leaf ordering of a hierarchical clustering,
the Fiedler vector of a neighbourhood graph, and a short open tour by nearest neighbours and 2-opt.
Costs O(d^2) memory and O(d^2) to O(d^3) time an axis, on the host.

Sources: Bar-Joseph et al. 2001 (leaf ordering); Atkins et al. 1998 (spectral seriation); Integral
Neural Networks (Solodskikh et al. 2023), where channels are ordered as a travelling salesman's
tour.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int, PyTree
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from jaxcompress.arrays.signs import fix_signs
from jaxcompress.checks import checked, choice, path_pattern
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.maps import selecting
from jaxcompress.networks.trace import Network, network, structure_of, traced
from jaxcompress.transforms.axis_statistics import second_moments_of
from jaxcompress.transforms.axiswise import AxisTransform
from jaxcompress.transforms.network_state import AxisChange, NetworkState

METHODS = ("tour", "leaves", "spectral")


@dataclasses.dataclass(frozen=True, repr=False)
class Seriate(AxisTransform):
    """See `seriate`."""

    structure: Structure = dataclasses.field(hash=False)
    method: str = "tour"
    axes: str = "**"

    def change(self, state: NetworkState, axis: Axis) -> AxisChange | None:
        """A permutation of each fibre, or None for an axis of two channels."""
        if (d := state.size(axis)) < 3:  # either order has the same neighbours
            return None
        state.check_dense(axis)
        search = SEARCHES[self.method]
        orders = [search(distances(moments)) for moments in second_moments_of(state, axis)]
        return AxisChange(selecting(orders, d))


def distances(moments: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The mean squared difference of every two channels, given their second moments."""
    power = np.diag(moments)
    squared = np.maximum(power[:, None] + power[None, :] - moments - moments.T, 0)
    np.fill_diagonal(squared, 0)
    return squared


def roughness_of(moments: Float[np.ndarray, "d d"]) -> float:
    """The mean squared difference of neighbours over that of all pairs; 1 in random order.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.transforms.seriation import roughness_of
        >>> places = np.arange(50) / 50
        >>> bool(roughness_of(np.cos(places[:, None] - places)) < 0.01)
        True
    """
    apart, d = distances(moments), len(moments)
    average = apart.sum() / max(d * (d - 1), 1)
    return float(np.diag(apart, 1).mean() / average) if d > 1 and average > 0 else 0.0


def by_leaves(apart: Float[np.ndarray, "d d"]) -> Int[np.ndarray, " d"]:
    """The leaves of an average-linkage tree, its branches turned so that neighbours are near."""
    condensed = squareform(apart, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))


def by_spectrum(apart: Float[np.ndarray, "d d"]) -> Int[np.ndarray, " d"]:
    """The order of the Fiedler vector of a graph whose edges decay with the distance."""
    far = np.where(np.eye(len(apart), dtype=bool), np.inf, apart)
    nearest_few = np.sort(far, axis=1)[:, : min(8, len(apart) - 1)]
    # the constant connects the graph: with separate parts the second eigenvector gives no order
    typical = np.median(nearest_few)
    near = np.exp(-apart / typical) + 1e-9 if typical > 0 else (apart == 0) + 1e-9
    np.fill_diagonal(near, 0)
    degree = 1 / np.sqrt(near.sum(1))
    laplacian = np.eye(len(near)) - near * degree[:, None] * degree[None, :]
    fiedler = np.linalg.eigh(laplacian)[1][:, 1:2] * degree[:, None]
    # the other sign would give the reversed order
    return np.argsort(fix_signs(fiedler)[:, 0], kind="stable")


def by_tour(apart: Float[np.ndarray, "d d"], rounds: int = 50) -> Int[np.ndarray, " d"]:
    """The shorter of two open paths, improved by 2-opt: by nearest neighbours, and by leaves."""
    paths = [shortened(start, apart, rounds) for start in (nearest(apart), by_leaves(apart))]
    return min(paths, key=lambda path: length(path, apart))


def nearest(apart: Float[np.ndarray, "d d"]) -> Int[np.ndarray, " d"]:
    """A path from the channel farthest from all others, always to the nearest unvisited one."""
    far = apart.astype(np.float64).copy()
    here = int(apart.sum(0).argmax())
    path = [here]
    for _ in range(len(apart) - 1):
        far[:, here] = np.inf
        here = int(far[here].argmin())
        path.append(here)
    return np.array(path)


def length(path: Int[np.ndarray, " d"], apart: Float[np.ndarray, "d d"]) -> float:
    """The sum of the distances along an open path."""
    return float(apart[path[:-1], path[1:]].sum())


def shortened(
    path: Int[np.ndarray, " d"], apart: Float[np.ndarray, "d d"], rounds: int
) -> Int[np.ndarray, " d"]:
    """An open path after 2-opt: for each edge in turn, the reversal after it that gains most."""
    path = path.copy()
    for _ in range(rounds):
        before = path.copy()
        for start in range(len(path) - 1):
            stop = best_reversal(path, apart, start)
            path[start:stop] = path[start:stop][::-1].copy()
        if (path == before).all():  # a local optimum of 2-opt
            break
    return path


def best_reversal(path: Int[np.ndarray, " d"], apart: Float[np.ndarray, "d d"], start: int) -> int:
    """The end of the stretch from `start` whose reversal gains most; `start` if none gains."""
    last = np.arange(start + 1, len(path))
    after = np.minimum(last + 1, len(path) - 1)
    has_after = last + 1 < len(path)  # the path is open: an end has one edge less
    old = has_after * apart[path[last], path[after]]
    new = has_after * apart[path[start], path[after]]
    if start > 0:
        old = apart[path[start - 1], path[start]] + old
        new = apart[path[start - 1], path[last]] + new
    gains = old - new
    best = int(gains.argmax())
    # a gain of rounding size would be reversed again and again
    shortens = gains[best] > 1e-12 * float(old[best])
    return int(last[best]) + 1 if shortens else start


SEARCHES = {"tour": by_tour, "leaves": by_leaves, "spectral": by_spectrum}


@checked(net=traced, method=choice(*METHODS), axes=path_pattern)
def seriate(net: Network | Structure, method: str = "tour", *, axes: str = "**") -> Seriate:
    """Permute hidden axes so that neighbouring channels are similar; the function stays the same.

    Args:
        net: from `jc.trace`; only its axes are kept.
        method: the search: "tour" (nearest neighbours and 2-opt, the smoothest), "leaves" (of a
            hierarchical clustering) or "spectral" (fastest; for axes that vary slowly).
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".

    Returns:
        A transform; call it as `transform(params, moments)` with the moments of `jc.calibrate`.
        Without moments, similarity is measured on the producers' weights.

    Raises:
        ValueError: for an unknown method; when called, for a pattern that matches no axis or an
            axis of a compact leaf.
        TypeError: for a `net` that is not from `jc.trace`.

    Source:
        Integral Neural Networks, Solodskikh et al. 2023.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x * p["up"] + p["shift"]) @ p["down"]
        >>> shift = jnp.array([3.0, 1.0, 4.0, 2.0, 0.0])
        >>> params = {"up": jnp.ones(5), "shift": shift, "down": jnp.ones((5, 1))}
        >>> x = jnp.linspace(-3, 3, 20)[:, None]
        >>> net = jc.trace(apply, params, x)
        >>> moments = jc.calibrate(net, params, [x], progress=False)
        >>> jc.seriate(net)(params, moments)["shift"].tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    return Seriate(structure_of(net), method, axes)


@checked(net=network)
def roughness(net: Network, params: PyTree, moments: Moments | None = None) -> dict[str, float]:
    """How much neighbouring channels of each hidden axis differ, in units of any two channels.

    Args:
        net: from `jc.trace`.
        params: its parameters.
        moments: of `jc.calibrate`; without them, similarity is measured on the producers' weights.

    Returns:
        For each axis by key the mean squared difference of neighbours over that of all pairs,
        averaged over fibres: about 1 in random order, 0 where neighbours are equal.

    Raises:
        ValueError: for parameters other than the traced ones.
        TypeError: for moments that are not of `jc.calibrate`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> up = jnp.cumsum(jax.random.normal(jax.random.key(0), (3, 64)), 1)
        >>> params = {"up": up, "down": jnp.ones((64, 1))}
        >>> net = jc.trace(apply, params, jnp.ones((1, 3)))
        >>> jc.roughness(net, params)["up:1"] < 0.1
        True
    """
    state = Seriate(net.structure).start(params, moments)
    return {
        axis.key: float(np.mean([roughness_of(part) for part in second_moments_of(state, axis)]))
        for axis in net.structure.axes
    }
