"""Charts around points: edges along the principal directions of a point's neighbours, or random ones, to both sides.

Source: principal charts, Zhang and Zha 2004 (doi:10.1137/S1064827502419154).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.classifiers.bisection import Asked


def charts_around(
    asked: Asked,
    graph: np.ndarray,
    distances: np.ndarray,
    rank: int,
    directions: str,
    box: tuple[np.ndarray, np.ndarray] | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Edges from each given point to both sides along the directions of its chart, whose ends are asked as far as the budget goes.

    Args:
        asked: the given points are its first ones.
        graph, distances: (given, k), the neighbours of each and how far they are; their median is how far an edge goes.
        rank: directions a point.
        directions: "principal" or "random".
        box: the ends stay in it.
        rng: of random directions.

    Returns:
        (edges, 2), the numbers of their ends among the points asked.
    """
    given, block, edges = asked.points, 1024, []
    for start in range(0, len(given), block):
        rows = np.minimum(np.arange(start, start + block), len(given) - 1)
        if directions == "principal":
            along = np.asarray(_principal(given[graph[rows]] - given[rows, None], rank=rank))
        else:
            along = rng.normal(size=(block, rank, given.shape[1]))
            along /= np.linalg.norm(along, axis=-1, keepdims=True)
        steps = along * np.median(distances[rows], axis=1)[:, None, None]
        ends = given[rows, None] + np.concatenate([steps, -steps], axis=1)
        ends = (ends if box is None else np.clip(ends, *box)).astype(np.float32)[
            : len(given) - start
        ]
        moved = (ends != given[start : start + block, None]).any(2)
        new = asked.ask(ends[moved])
        edges.append(np.stack([start + np.nonzero(moved)[0][: len(new)], new], axis=1))
    return np.concatenate(edges)


@partial(jax.jit, static_argnames="rank")
def _principal(differences: jax.Array, *, rank: int) -> jax.Array:
    """(b, k, d) -> (b, rank, d): unit vectors along which differences are largest; zero where there are fewer."""
    unit = jnp.max(jnp.abs(differences), axis=(1, 2), keepdims=True)
    differences = differences / jnp.where(unit == 0, 1, unit)
    gram = jnp.einsum("bkd,bld->bkl", differences, differences, precision="highest")
    values, vectors = jnp.linalg.eigh(gram)
    along = jnp.einsum("bkd,bkr->brd", differences, vectors[..., -rank:], precision="highest")
    size = jnp.linalg.norm(along, axis=-1, keepdims=True)
    real = values[:, -rank:, None] > 1e-5 * values[:, -1:, None]
    return jnp.where(real, along / jnp.where(size == 0, 1, size), 0)
