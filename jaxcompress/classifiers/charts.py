"""Charts around points: edges to both sides along principal directions of the neighbours.

Source: principal charts, Zhang and Zha 2004 (doi:10.1137/S1064827502419154).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcompress.classifiers.bisection import QueriedPoints

BLOCK = 1024
"""Points whose directions are computed at once."""


@dataclasses.dataclass(frozen=True)
class Charts:
    """The settings of the charts around points.

    Attributes:
        rank: number of directions a point, 0 for no charts.
        directions: "principal" or "random".
        box: lower and upper corner that the ends are clipped to, or None.
    """

    rank: int
    directions: str
    box: tuple[np.ndarray, np.ndarray] | None


def chart_edges(
    queried: QueriedPoints,
    charts: Charts,
    neighbours: Int[np.ndarray, "given k"],
    distances: Float[np.ndarray, "given k"],
    rng: np.random.Generator,
) -> Int[np.ndarray, "edges 2"]:
    """Query points to both sides of each given point along the directions of its chart.

    Args:
        queried: the given points, and nothing else yet.
        charts: directions and their number.
        neighbours: indices of each point's neighbours.
        distances: to the neighbours; their median is the length of an edge.
        rng: of random directions.

    Returns:
        The edges as pairs of indices among the queried points, as far as the budget goes.
    """
    given, edges = queried.points, []
    for start in range(0, len(given), BLOCK):
        # the last block repeats the last point, so that one size is compiled
        rows = np.minimum(np.arange(start, start + BLOCK), len(given) - 1)
        steps = _directions(given, neighbours[rows], rows, charts, rng)
        steps = steps * np.median(distances[rows], axis=1)[:, None, None]
        ends = given[rows, None] + np.concatenate([steps, -steps], axis=1)
        ends = ends if charts.box is None else np.clip(ends, *charts.box)
        ends = ends.astype(np.float32)[: len(given) - start]
        # a direction beyond the rank is zero, and clipping can move an end back to its point
        moved = (ends != given[start : start + BLOCK, None]).any(2)
        indices = queried.query(ends[moved])
        starts = start + np.nonzero(moved)[0][: len(indices)]
        edges.append(np.stack([starts, indices], axis=1))
    return np.concatenate(edges)


def _directions(
    given: np.ndarray,
    neighbours: np.ndarray,
    rows: np.ndarray,
    charts: Charts,
    rng: np.random.Generator,
) -> Float[np.ndarray, "rows rank d"]:
    """Unit vectors, principal or random."""
    if charts.directions == "principal":
        differences = given[neighbours] - given[rows, None]
        return np.asarray(_principal(differences, rank=charts.rank))
    directions = rng.normal(size=(len(rows), charts.rank, given.shape[1]))
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


@partial(jax.jit, static_argnames="rank")
def _principal(differences: Float[Array, "b k d"], *, rank: int) -> Float[Array, "b rank d"]:
    """Unit vectors of the largest differences; zero beyond the rank of the differences."""
    # scaled so that squares neither overflow nor vanish in float32
    unit = jnp.max(jnp.abs(differences), axis=(1, 2), keepdims=True)
    differences = differences / jnp.where(unit == 0, 1, unit)
    # k neighbours are fewer than d dimensions: the Gram matrix (k, k) has the same spectrum
    gram = jnp.einsum("bkd,bld->bkl", differences, differences, precision="highest")
    values, vectors = jnp.linalg.eigh(gram)
    directions = jnp.einsum("bkd,bkr->brd", differences, vectors[..., -rank:], precision="highest")
    norm = jnp.linalg.norm(directions, axis=-1, keepdims=True)
    nonzero = values[:, -rank:, None] > 1e-5 * values[:, -1:, None]
    return jnp.where(nonzero, directions / jnp.where(norm == 0, 1, norm), 0)
