"""Weighted k-means: points are joined to clusters so that `sum_i w_i |x_i - mean(cluster of i)|^2` is small.

It starts with points drawn by their weight and squared distance to those drawn before, then takes turns: each point goes to the
nearest mean, each mean is taken anew. Costs 2 n k d operations a round.

Sources: Lloyd 1982 (doi:10.1109/TIT.1982.1056489); k-means++, Arthur and Vassilvitskii 2007 (doi:10.5555/1283383.1283494).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from jaxcompress.classifiers.neighbours import nearest


def k_means(
    points: np.ndarray, weights: np.ndarray, k: int, *, rounds: int, rng: np.random.Generator
) -> np.ndarray:
    """The cluster of each point.

    Args:
        points: (n, d).
        weights: (n,), positive.
        k: how many clusters, at most; where there are no more points than that, each is its own.
        rounds: of Lloyd's algorithm, at most.
        rng: where it starts.

    Returns:
        (n,), whole numbers from 0 on, each of which occurs.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.k_means import k_means
        >>> found = k_means(np.array([[0.0], [0.1], [5.0]]), np.ones(3), 2, rounds=9, rng=np.random.default_rng(0))
        >>> bool(found[0] == found[1] != found[2])
        True
    """
    if len(points) <= k:
        return np.arange(len(points))
    centres, away = points[:0], np.ones(len(points))
    while len(centres) < k and (chance := weights * away).any():
        centres = np.concatenate(
            [centres, points[[rng.choice(len(points), p=chance / chance.sum())]]]
        )
        from_new = np.sum((points - centres[-1]) ** 2, axis=1)
        away = np.minimum(away, from_new) if len(centres) > 1 else from_new
    cluster = np.full(len(points), -1)
    for _ in range(max(rounds, 1)):
        before, cluster = cluster, nearest(points, centres, 1)[1][:, 0]
        if np.array_equal(before, cluster):
            break
        total, new = means(points, weights, cluster, len(centres))
        centres = np.where(total[:, None] > 0, new, centres)
    return np.unique(cluster, return_inverse=True)[1]


def means(
    points: np.ndarray, weights: np.ndarray, cells: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The weight of each cell (count,) and its points' weighted mean (count, d), in float64; zero for cells without points.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.k_means import means
        >>> means(np.array([[0.0], [3.0], [7.0]]), np.array([2.0, 1.0, 1.0]), np.array([0, 0, 2]), 3)[1].ravel().tolist()
        [1.0, 0.0, 7.0]
    """
    total = np.bincount(cells, weights, count)
    sums = sparse.csr_array((weights, (cells, np.arange(len(cells)))), (count, len(cells))) @ points
    return total, sums / np.where(total > 0, total, 1)[:, None]
