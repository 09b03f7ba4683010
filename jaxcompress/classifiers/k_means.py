"""Weighted k-means: clusters that make `sum_i w_i |x_i - mean(cluster of i)|^2` small.

The first centres are drawn by weight and squared distance to those drawn before (k-means++); then
points are assigned to the nearest centre and centres moved to the mean, in turns. SciPy's k-means
takes no weights. Costs 2 n k d operations a round.

Sources: Lloyd 1982 (doi:10.1109/TIT.1982.1056489); k-means++, Arthur and Vassilvitskii 2007
(doi:10.5555/1283383.1283494).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from jaxcompress.arrays.k_means import lloyd
from jaxcompress.classifiers.neighbours import nearest


def k_means(
    points: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, " n"],
    k: int,
    *,
    rounds: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " n"]:
    """The cluster of each point.

    Args:
        points: the data.
        weights: positive.
        k: the most clusters; with at most k points each is its own.
        rounds: the most rounds of Lloyd's algorithm.
        rng: of the first centres.

    Returns:
        Cluster numbers from 0 on, without gaps.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.k_means import k_means
        >>> points, rng = np.array([[0.0], [0.1], [5.0]]), np.random.default_rng(0)
        >>> cluster = k_means(points, np.ones(3), 2, rounds=9, rng=rng)
        >>> bool(cluster[0] == cluster[1] != cluster[2])
        True
    """
    if len(points) <= k:
        return np.arange(len(points))
    centres = _first_centres(points, weights, k, rng)
    _, cluster = lloyd(
        points, weights, centres, rounds=max(rounds, 1), nearest=_nearest_by_distances
    )
    return np.unique(cluster, return_inverse=True)[1]


def _nearest_by_distances(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "k d"]
) -> Int[np.ndarray, " n"]:
    """The nearest centre of each point from all distances, which pays in many dimensions."""
    return nearest(points, centres, 1)[1][:, 0]


def _first_centres(
    points: np.ndarray, weights: np.ndarray, k: int, rng: np.random.Generator
) -> Float[np.ndarray, "k d"]:
    """Points drawn by weight and squared distance to the ones drawn before; fewer if equal."""
    centres, distance = points[:0], np.ones(len(points))
    # ends early where all other points equal a centre
    while len(centres) < k and (chance := weights * distance).any():
        drawn = rng.choice(len(points), p=chance / chance.sum())
        to_drawn = np.sum((points - points[drawn]) ** 2, axis=1)
        distance = np.minimum(distance, to_drawn) if len(centres) else to_drawn
        centres = np.concatenate([centres, points[[drawn]]])
    return centres
