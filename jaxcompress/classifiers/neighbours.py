"""Exact nearest neighbours, by blocked matrix products.

`|q - p|^2 = |q|^2 - 2 q.p + |p|^2` finds a few candidates more than are asked for, whose distances are then taken from the
differences themselves, so that rounding reorders nothing. Costs 2 d operations a pair of points and one block of queries against
all points in memory, never all pairs.

Source: the product form is the field's usual one (Johnson, Douze and Jégou 2017, arXiv:1702.08734).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

SPARE = 8
PAIRS = 2**24
"""Candidates that rounding may exchange, and pairs of points that are in memory at once."""


def nearest(
    queries: np.ndarray,
    points: np.ndarray,
    k: int,
    *,
    own: np.ndarray | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k points nearest to each query.

    Args:
        queries: (m, d).
        points: (n, d).
        k: how many, at most n, or n - 1 where a point leaves itself out.
        own: (m,) for each query the index of the point that is itself and does not count, -1 for none.
        progress: show a progress bar.

    Returns:
        Their distances and indices, (m, k) each, the nearest first; of equal distances the first point comes first.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.neighbours import nearest
        >>> distances, indices = nearest(np.array([[0.2]]), np.array([[0.0], [1.0], [3.0]]), 2)
        >>> distances.round(1).tolist(), indices.tolist()
        ([[0.2, 0.8]], [[0, 1]])
    """
    size = (
        -(-len(points) // (step := 2 ** max(len(points).bit_length() - 3, 8))) * step
    )  # few sizes, so that few are compiled
    block = (
        max(1, min(1_024, 2 ** (len(queries) - 1).bit_length(), PAIRS // size))
        if len(queries)
        else 1
    )
    own = np.full(len(queries), -1) if own is None else own
    centre = points.mean(0, dtype=np.float64)
    unit = (
        float(np.sqrt(np.mean((points - centre) ** 2))) or 1.0
    )  # squares of what is near 1 neither overflow nor vanish
    scaled = lambda rows: np.asarray((rows - centre) / unit, np.float32)
    table = jnp.asarray(np.pad(scaled(points), ((0, size - len(points)), (0, 0))))
    distances, indices = (
        np.empty((len(queries), k), np.float64),
        np.empty((len(queries), k), np.int64),
    )
    with tqdm(total=len(queries), desc="neighbours", disable=not progress, leave=False) as bar:
        for start in range(0, len(queries), block):
            rows = np.minimum(
                np.arange(start, start + block), len(queries) - 1
            )  # the last block repeats the last query
            found = _block(
                scaled(queries[rows]), own[rows].astype(np.int32), table, len(points), k=k
            )
            count = min(block, len(queries) - start)
            distances[start : start + count], indices[start : start + count] = (
                np.asarray(each)[:count] for each in found
            )
            bar.update(count)
    return unit * distances, indices


@partial(jax.jit, static_argnames="k")
def _block(
    queries: jax.Array, own: jax.Array, points: jax.Array, count: int, *, k: int
) -> tuple[jax.Array, jax.Array]:
    none = lambda index: (index == own[:, None]) | (index >= count)
    rough = jnp.sum(points**2, 1) - 2 * jnp.matmul(queries, points.T, precision="highest")
    rough = jnp.where(none(jnp.arange(len(points))), jnp.inf, rough)
    _, index = jax.lax.top_k(-rough, min(k + SPARE, len(points)))
    index = jnp.sort(index, axis=1)
    exact = jnp.sqrt(jnp.sum((points[index] - queries[:, None]) ** 2, axis=-1))
    exact = jnp.where(none(index), jnp.inf, exact)
    order = jnp.argsort(exact, axis=1, stable=True)[:, :k]
    return jnp.take_along_axis(exact, order, 1), jnp.take_along_axis(index, order, 1)


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """The k nearest points of points, themselves left out, and of queries.

    Attributes:
        of_points: (n, k) indices.
        of_queries: (m, k) indices.
        distances: (m, k) of the queries.
        scales: (m,) the median distance of a query's neighbours to their own k-th neighbour.
        far_points, far_queries: (n,) and (m,) the distance to the k-th neighbour in units of that scale: about 1 where points
            are as dense as around their neighbours.
    """

    of_points: np.ndarray
    of_queries: np.ndarray
    distances: np.ndarray
    scales: np.ndarray
    far_points: np.ndarray
    far_queries: np.ndarray


def surroundings(
    points: np.ndarray, queries: np.ndarray, k: int, *, progress: bool = False
) -> Surroundings:
    """The neighbours of points (n, d) and of queries (m, d), and how far off each is by the local scale.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.neighbours import surroundings
        >>> surroundings(np.arange(9.0)[:, None], np.array([[4.5], [20.0]]), 2).far_queries.round(2).tolist()
        [0.5, 8.67]
    """
    own, of_points = nearest(points, points, k, own=np.arange(len(points)), progress=progress)
    distances, of_queries = nearest(queries, points, k, progress=progress)
    scale = lambda neighbours: np.maximum(
        np.median(own[neighbours, -1], axis=1), np.finfo(np.float64).tiny
    )
    scales = scale(of_queries)
    return Surroundings(
        of_points,
        of_queries,
        distances,
        scales,
        own[:, -1] / scale(of_points),
        distances[:, -1] / scales,
    )


def p_values(ordinary: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The share of ordinary values that are at least as large as each one found, which itself counts as one of them.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.neighbours import p_values
        >>> p_values(np.arange(9.0), np.array([4.0, 20.0])).tolist()
        [0.6, 0.1]
    """
    below = np.searchsorted(np.sort(ordinary), found, side="left")
    return (1 + len(ordinary) - below) / (1 + len(ordinary))


def outvoted(labels: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Whether fewer of a point's neighbours have its label than have another one.

    Args:
        labels: (n,).
        neighbours: (n, k) indices.

    Returns:
        (n,) booleans.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.neighbours import outvoted
        >>> outvoted(np.array([0, 0, 0, 1]), np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])).tolist()
        [False, False, False, True]
    """
    near = labels[neighbours]
    alike = np.zeros(len(labels), int)
    most = np.zeros(len(labels), int)
    for voter in near.T:  # a voter counts for its label
        count = (near == voter[:, None]).sum(1)
        own = voter == labels
        alike = np.where(own, count, alike)
        most = np.where(own, most, np.maximum(most, count))
    return alike < most
