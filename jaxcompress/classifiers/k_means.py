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
from scipy import sparse

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
    cluster = np.full(len(points), -1)
    for _ in range(max(rounds, 1)):
        before, cluster = cluster, nearest(points, centres, 1)[1][:, 0]
        if np.array_equal(before, cluster):
            break
        total, moved = means(points, weights, cluster, len(centres))
        # a cluster without points keeps its centre
        centres = np.where(total[:, None] > 0, moved, centres)
    return np.unique(cluster, return_inverse=True)[1]


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


def means(
    points: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, " n"],
    cells: Int[np.ndarray, " n"],
    count: int,
) -> tuple[Float[np.ndarray, " count"], Float[np.ndarray, "count d"]]:
    """The weight of each cell and its points' weighted mean, zero for cells without points.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.k_means import means
        >>> points, weights = np.array([[0.0], [3.0], [7.0]]), np.array([2.0, 1.0, 1.0])
        >>> means(points, weights, np.array([0, 0, 2]), 3)[1].ravel().tolist()
        [1.0, 0.0, 7.0]
    """
    total = np.bincount(cells, weights, count)
    membership = sparse.csr_array((weights, (cells, np.arange(len(cells)))), (count, len(cells)))
    return total, membership @ points / np.where(total > 0, total, 1)[:, None]
