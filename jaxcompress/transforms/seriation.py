"""Order: the channels of a hidden axis are permuted so that neighbours are alike, and the axis becomes a smooth function.

A permutation of a hidden axis changes nothing that the network computes, so it is free; `coarsen` and the bases of `convolved` are
as good as the order. Two channels are as far apart as their values, `E (h_i - h_j)^2`, which is what averaging them costs (without
moments the inputs of the producers count as white). Three searches: optimal leaf ordering of a hierarchical clustering,
the Fiedler vector of a neighbourhood graph, and a short open tour by nearest neighbours and 2-opt. Costs O(d^2) memory an axis and
O(d^2) to O(d^3) time on the host.

Sources: Bar-Joseph et al. 2001 (leaf ordering); Atkins et al. 1998 (spectral seriation); Integral Neural Networks (Solodskikh et
al. 2023), whose order is a travelling salesman's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.maps import AxisMap
from jaxcompress.networks.trace import Network, check_network
from jaxcompress.transforms.axis_maps import measured, proxies, selected
from jaxcompress.transforms.axiswise import AxisTransform, Work

METHODS = ("tour", "leaves", "spectral")


@dataclasses.dataclass(frozen=True, repr=False)
class Seriate(AxisTransform):
    """See `order`."""

    structure: Structure = dataclasses.field(hash=False)
    method: str = "tour"
    axes: str = "**"

    def change(self, work: Work, axis: Axis) -> AxisMap | None:
        if (d := work.size(axis)) < 3:
            return None
        work.touched(axis)
        return selected(
            [SEARCHES[self.method](distances(moments)) for moments in values(work, axis)], d
        )


def values(work: Work, axis: Axis) -> np.ndarray:
    """(F, d, d): second moments of an axis's channels, from the weights alone where nothing was measured."""
    found = measured(work, axis)
    return proxies(work, axis) if found is None else found.second


def distances(moments: np.ndarray) -> np.ndarray:
    """(d, d): the mean squared difference of every two channels."""
    power = np.diag(moments)
    found = np.maximum(power[:, None] + power[None, :] - moments - moments.T, 0)
    np.fill_diagonal(found, 0)
    return found


def roughness_of(moments: np.ndarray) -> float:
    """The mean squared difference of neighbours, in units of that of any two: about 1 in random order, 0 where they are alike.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.transforms.seriation import roughness_of
        >>> places = np.arange(50) / 50
        >>> bool(roughness_of(np.cos(places[:, None] - places)) < 0.01)
        True
    """
    apart, d = distances(moments), len(moments)
    every = apart.sum() / max(d * (d - 1), 1)
    return float(np.diag(apart, 1).mean() / every) if d > 1 and every > 0 else 0.0


def by_leaves(apart: np.ndarray) -> np.ndarray:
    """The leaves of an average-linkage tree, turned so that neighbours are near."""
    condensed = squareform(apart, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))


def by_spectrum(apart: np.ndarray) -> np.ndarray:
    """The Fiedler vector of a graph whose edges fade with the distance, on the scale of the nearest neighbours."""
    far = np.where(np.eye(len(apart), dtype=bool), np.inf, apart)
    scale = np.maximum(np.median(np.sort(far, axis=1)[:, : min(8, len(apart) - 1)]), 1e-300)
    near = np.exp(-apart / scale) + 1e-9  # one graph, however far its parts are
    np.fill_diagonal(near, 0)
    degree = 1 / np.sqrt(near.sum(1))
    laplacian = np.eye(len(near)) - near * degree[:, None] * degree[None, :]
    fiedler = np.linalg.eigh(laplacian)[1][:, 1] * degree
    return np.argsort(fiedler * (1 if fiedler[np.abs(fiedler).argmax()] > 0 else -1), kind="stable")


def by_tour(apart: np.ndarray, rounds: int = 50) -> np.ndarray:
    """A short open path: from the nearest neighbours, or the tree's leaves, by 2-opt until no reversal of a stretch shortens it."""
    return min(
        (shortened(start, apart, rounds) for start in (nearest(apart), by_leaves(apart))),
        key=lambda path: length(path, apart),
    )


def nearest(apart: np.ndarray) -> np.ndarray:
    """From the channel farthest from all others always on to the nearest that is left."""
    far = apart.astype(np.float64).copy()
    here = int(apart.sum(0).argmax())
    path = [here]
    for _ in range(len(apart) - 1):
        far[:, here] = np.inf
        here = int(far[here].argmin())
        path.append(here)
    return np.array(path)


def length(path: np.ndarray, apart: np.ndarray) -> float:
    return float(apart[path[:-1], path[1:]].sum())


def shortened(path: np.ndarray, apart: np.ndarray, rounds: int) -> np.ndarray:
    """2-opt on an open path: each round takes, for every first edge, the stretch behind it whose reversal gains most."""
    path, d = path.copy(), len(path)
    for _ in range(rounds):
        improved = False
        for first in range(-1, d - 2):
            # reverse path[first + 1 .. last]: the edges (first, first + 1) and (last, last + 1) are exchanged
            last = np.arange(first + 2, d)
            beyond = np.minimum(last + 1, d - 1)
            open_end = last + 1 < d
            old = (apart[path[first], path[first + 1]] if first >= 0 else 0) + open_end * apart[
                path[last], path[beyond]
            ]
            new = (apart[path[first], path[last]] if first >= 0 else 0) + open_end * apart[
                path[first + 1], path[beyond]
            ]
            best = int((old - new).argmax())
            if (old - new)[best] > 1e-12 * max(float(old[best]), 1e-300):
                stop = int(last[best]) + 1
                path[first + 1 : stop] = path[first + 1 : stop][::-1]
                improved = True
        if not improved:
            break
    return path


SEARCHES = {"tour": by_tour, "leaves": by_leaves, "spectral": by_spectrum}


def seriate(net: Network, method: str = "tour", *, axes: str = "**") -> Seriate:
    """Permute hidden axes so that neighbouring channels are alike; the function stays as it is.

    Args:
        net: from `jc.trace`; only its axes are kept.
        method: "tour", "leaves" or "spectral".
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".

    Returns:
        A transform: call it as `transform(params, moments)` with `moments = jc.calibrate(net, params, batches)`; without moments alike
        means alike in the producers' weights.

    Raises:
        ValueError: for an unknown method, a pattern without an axis.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x * p["up"] + p["shift"]) @ p["down"]
        >>> shift = jnp.array([3.0, 1.0, 4.0, 2.0, 0.0])
        >>> params = {"up": jnp.ones(5), "shift": shift, "down": jnp.ones((5, 1))}
        >>> x = jnp.linspace(-3, 3, 20)[:, None]
        >>> net = jc.trace(apply, params, x)
        >>> jc.seriate(net)(params, jc.calibrate(net, params, [x], progress=False))["shift"].tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    check_network("order", net)
    if method not in METHODS:
        raise ValueError(
            f"method={method!r} is unknown: expected one of {', '.join(map(repr, METHODS))}"
        )
    return Seriate(net.structure, method, axes)


def roughness(net: Network, params: Any, moments: Any = None) -> dict[str, float]:
    """How rough each hidden axis is in its present order: about 1 in random order, 0 where neighbours are alike.

    Args:
        net: from `jc.trace`.
        params: its parameters.
        moments: of `jc.calibrate`; without them the producers' weights are looked at.

    Returns:
        For each axis the mean squared difference of neighbouring channels, in units of that of any two, averaged over fibres.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> up = jnp.cumsum(jax.random.normal(jax.random.key(0), (3, 64)), 1)
        >>> net = jc.trace(apply, {"up": up, "down": jnp.ones((64, 1))}, jnp.ones((1, 3)))
        >>> jc.roughness(net, {"up": up, "down": jnp.ones((64, 1))})["up:1"] < 0.1
        True
    """
    work = Seriate(net.structure).prepare(params, moments)
    return {
        axis.key: float(np.mean([roughness_of(part) for part in values(work, axis)]))
        for axis in net.structure.axes
    }
