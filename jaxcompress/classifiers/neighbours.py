"""Exact nearest neighbours, by blocked matrix products.

`|q - p|^2 = |q|^2 - 2 q.p + |p|^2` selects a few more candidates than needed, whose distances are
then computed from the differences, so that rounding does not reorder them. Costs 2 d operations a
pair of points; memory holds one block of queries against all points, never all pairs.

Source: the usual product form (Johnson, Douze and Jégou 2017, arXiv:1702.08734).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped
from tqdm.auto import tqdm

SPARE = 8
"""Additional candidates, which rounding may exchange with the nearest ones."""
PAIRS = 2**24
"""Pairs of points that are in memory at once."""


def nearest(
    queries: Float[np.ndarray, "m d"],
    points: Float[np.ndarray, "n d"],
    k: int,
    *,
    own: Int[np.ndarray, " m"] | None = None,
    progress: bool = False,
) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
    """The k points nearest to each query.

    Args:
        queries: the points to look from.
        points: the points to find.
        k: how many, at most n, or n - 1 where a point is excluded.
        own: for each query the index of the point that is itself and is excluded, -1 for none.
        progress: show a progress bar.

    Returns:
        Their distances and indices, the nearest first; of equal distances the lower index first.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.neighbours import nearest
        >>> distances, indices = nearest(np.array([[0.2]]), np.array([[0.0], [1.0], [3.0]]), 2)
        >>> distances.round(1).tolist(), indices.tolist()
        ([[0.2, 0.8]], [[0, 1]])
    """
    size, block = _compiled_sizes(len(queries), len(points))
    own = np.full(len(queries), -1) if own is None else own
    centre = points.mean(0, dtype=np.float64)
    # in units of their spread, so that squares neither overflow nor vanish in float32
    unit = float(np.sqrt(np.mean((points - centre) ** 2))) or 1.0

    def scaled(rows: np.ndarray) -> np.ndarray:
        return np.asarray((rows - centre) / unit, np.float32)

    table = jnp.asarray(np.pad(scaled(points), ((0, size - len(points)), (0, 0))))
    distances = np.empty((len(queries), k), np.float64)
    indices = np.empty((len(queries), k), np.int64)
    with tqdm(total=len(queries), desc="neighbours", disable=not progress, leave=False) as bar:
        for start in range(0, len(queries), block):
            stop = min(start + block, len(queries))
            # the last block repeats the last query
            rows = np.minimum(np.arange(start, start + block), len(queries) - 1)
            near, index = _block(
                scaled(queries[rows]), own[rows].astype(np.int32), table, len(points), k=k
            )
            distances[start:stop] = np.asarray(near)[: stop - start]
            indices[start:stop] = np.asarray(index)[: stop - start]
            bar.update(stop - start)
    return unit * distances, indices


def _compiled_sizes(queries: int, points: int) -> tuple[int, int]:
    """The padded number of points and the queries a block: few sizes, so few compilations."""
    step = 2 ** max(points.bit_length() - 3, 8)
    size = -(-points // step) * step
    if not queries:
        return size, 1
    return size, max(1, min(1_024, 2 ** (queries - 1).bit_length(), PAIRS // size))


@partial(jax.jit, static_argnames="k")
def _block(
    queries: Float[Array, "b d"], own: Int[Array, " b"], points: Float[Array, "n d"], count: int,
    *, k: int,
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:  # fmt: skip
    """Nearest neighbours of a block of queries among the first `count` points."""

    def excluded(index: jax.Array) -> jax.Array:
        return (index == own[:, None]) | (index >= count)

    products = jnp.matmul(queries, points.T, precision="highest")
    rough = jnp.sum(points**2, 1)[None] - 2 * products
    rough = jnp.where(excluded(jnp.arange(len(points))[None]), jnp.inf, rough)
    _, index = jax.lax.top_k(-rough, min(k + SPARE, len(points)))
    index = jnp.sort(index, axis=1)  # then a stable sort gives equal distances in index order
    exact = jnp.sqrt(jnp.sum((points[index] - queries[:, None]) ** 2, axis=-1))
    exact = jnp.where(excluded(index), jnp.inf, exact)
    order = jnp.argsort(exact, axis=1, stable=True)[:, :k]
    return jnp.take_along_axis(exact, order, 1), jnp.take_along_axis(index, order, 1)


@dataclasses.dataclass(frozen=True)
class Neighbourhoods:
    """The k nearest points of points, themselves left out, and of queries.

    Attributes:
        of_points: indices.
        of_queries: indices.
        distances: of the queries to their neighbours.
        scales: the local scale: the median distance of a query's neighbours to their own k-th
            neighbour.
        relative_points: each point's distance to its k-th neighbour, in units of the local scale:
            about 1 where points are as dense as around their neighbours.
        relative_queries: the same of the queries.
    """

    of_points: Int[np.ndarray, "n k"]
    of_queries: Int[np.ndarray, "m k"]
    distances: Float[np.ndarray, "m k"]
    scales: Float[np.ndarray, " m"]
    relative_points: Float[np.ndarray, " n"]
    relative_queries: Float[np.ndarray, " m"]


def neighbourhoods(
    points: Float[np.ndarray, "n d"],
    queries: Float[np.ndarray, "m d"],
    k: int,
    *,
    progress: bool = False,
) -> Neighbourhoods:
    """The neighbours of points and of queries, and how remote each is on the local scale.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.neighbours import neighbourhoods
        >>> line, queries = np.arange(9.0)[:, None], np.array([[4.5], [20.0]])
        >>> neighbourhoods(line, queries, 2).relative_queries.round(2).tolist()
        [0.5, 8.67]
    """
    own, of_points = nearest(points, points, k, own=np.arange(len(points)), progress=progress)
    distances, of_queries = nearest(queries, points, k, progress=progress)

    def scale(neighbours: np.ndarray) -> np.ndarray:
        median = np.median(own[neighbours, -1], axis=1)
        return np.maximum(median, np.finfo(np.float64).tiny)

    scales = scale(of_queries)
    relative_points, relative_queries = own[:, -1] / scale(of_points), distances[:, -1] / scales
    return Neighbourhoods(
        of_points, of_queries, distances, scales, relative_points, relative_queries
    )


def conformal_p_values(
    ordinary: Float[np.ndarray, " n"], values: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """The share of ordinary values at least as large as each value, which itself counts as one.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.neighbours import conformal_p_values
        >>> conformal_p_values(np.arange(9.0), np.array([4.0, 20.0])).tolist()
        [0.6, 0.1]
    """
    below = np.searchsorted(np.sort(ordinary), values, side="left")
    return (1 + len(ordinary) - below) / (1 + len(ordinary))


def outvoted(
    labels: Shaped[np.ndarray, " n"], neighbours: Int[np.ndarray, "n k"]
) -> Bool[np.ndarray, " n"]:
    """Whether another label is more common among a point's neighbours than its own.

    Args:
        labels: of the points.
        neighbours: indices of each point's neighbours.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.neighbours import outvoted
        >>> neighbours = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
        >>> outvoted(np.array([0, 0, 0, 1]), neighbours).tolist()
        [False, False, False, True]
    """
    near = labels[neighbours]
    same, most = np.zeros(len(labels), int), np.zeros(len(labels), int)
    # the loop is over k votes: a count for every class would take a column for each
    for voter in near.T:
        count = (near == voter[:, None]).sum(1)
        own = voter == labels
        same = np.where(own, count, same)
        most = np.where(own, most, np.maximum(most, count))
    return same < most
