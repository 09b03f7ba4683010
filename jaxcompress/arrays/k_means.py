"""Lloyd's algorithm for weighted k-means.

Each round lowers `sum_i w_i |x_i - centre(cluster of i)|^2`.

Each round assigns every point to the nearest centre, then moves every centre to the weighted mean
of its points. Costs one nearest-centre search of n points a round; where the centres start and how
the nearest one is found are the caller's choice.

Source: Lloyd 1982 (doi:10.1109/TIT.1982.1056489).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.spatial import KDTree


def nearest_by_tree(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "k d"]
) -> Int[np.ndarray, " n"]:
    """The nearest centre of each point by a k-d tree, which pays in few dimensions."""
    return np.asarray(KDTree(centres).query(points, workers=-1)[1])


def lloyd(
    points: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, " n"],
    centres: Float[np.ndarray, "k d"],
    *,
    rounds: int,
    nearest: Callable[[np.ndarray, np.ndarray], np.ndarray] = nearest_by_tree,
) -> tuple[Float[np.ndarray, "k d"], Int[np.ndarray, " n"]]:
    """Alternate assignments and means until no assignment changes.

    Args:
        points: (n, d).
        weights: (n,), positive.
        centres: (k, d) to start from.
        rounds: at most.
        nearest: from points and centres to the index of each point's nearest centre.

    Returns:
        The centres (k, d) and the cluster of each point (n,) in the last round; a centre without
        points stays where it was.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.k_means import lloyd
        >>> points = np.array([[0.0], [1.0], [5.0]])
        >>> centres, clusters = lloyd(points, np.ones(3), points[:2], rounds=9)
        >>> centres.ravel().tolist(), clusters.tolist()
        ([0.5, 5.0], [0, 0, 1])
    """
    clusters = np.full(len(points), -1)
    for _ in range(rounds):
        before, clusters = clusters, nearest(points, centres)
        if np.array_equal(before, clusters):
            break
        total, moved = means(points, weights, clusters, len(centres))
        centres = np.where(total[:, None] > 0, moved, centres)
    return centres, clusters


def means(
    points: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, " n"],
    clusters: Int[np.ndarray, " n"],
    count: int,
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k d"]]:
    """The weight of each cluster and the weighted mean of its points.

    Args:
        points: (n, d).
        weights: (n,), positive.
        clusters: (n,) the index of each point's cluster.
        count: k, the number of clusters.

    Returns:
        (k,) and (k, d), in float64; zero for clusters without points.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.k_means import means
        >>> points, weights = np.array([[0.0], [3.0], [7.0]]), np.array([2.0, 1.0, 1.0])
        >>> means(points, weights, np.array([0, 0, 2]), 3)[1].ravel().tolist()
        [1.0, 0.0, 7.0]
    """
    total = np.bincount(clusters, weights, count)
    members = sparse.csr_array(
        (weights, (clusters, np.arange(len(clusters)))), (count, len(clusters))
    )
    return total, members @ points / np.where(total > 0, total, 1)[:, None]
