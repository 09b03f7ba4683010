"""Find the decision boundaries among the cells of a tree, and follow them with few queries.

Between two points of different labels a boundary is found by bisection; from then on it is
followed. Where two cells of different labels share a face, the boundary continues across each edge
of that face: through one of the two cells ahead, or between them. It suffices to query one of the
two, the one on the other side of a plane fitted to the labels around, and only if that has the
wrong label the other one. A cell whose neighbours have two labels is next to a boundary whatever
its own, and is queried. When no boundary continues, boxes take the labels of their neighbours, and
unqueried cells between two labels are queried.

Where cells of one size are very fine, boundaries are first followed in larger boxes, so that they
are found in many places at once: the number of calls then grows with the levels, and not with the
number of cells along a boundary.

Sources: following a surface from cell to cell, Wyvill et al. 1986 (doi:10.1007/BF01900346); local
planes, Cleveland 1979 (doi:10.1080/01621459.1979.10481038).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcompress.classifiers.mesh import roots
from jaxcompress.classifiers.tree import Tree

WIDTH = 1.5
"""Standard deviation of the weights of the fitted plane, in cells."""
RADIUS = 5
"""The largest squared distance of cells that the plane is fitted to."""
RIDGE = 0.05
"""The penalty of slopes, as a share of the weights."""
CHUNK = 2**21
"""Labels that planes are fitted to at once."""

Query = Callable[[np.ndarray], np.ndarray]
"""Queries the unqueried cells at positions (n, d) of the lattice, and returns their nodes."""


def survey(tree: Tree, query: Query, stages: Iterable[int]) -> None:
    """Query until both sides of every boundary in the mesh are queried.

    Args:
        tree: without labels.
        query: of its cells.
        stages: levels at which boundaries are followed first, from coarse to fine, before they are
            followed in the smallest cells.
    """
    middle = (roots(tree.coarse) << tree.depth) + (1 << tree.depth >> 1)
    query(middle)
    low, high = _neighbouring_pairs(middle, tree.coarse)
    for level in stages:
        low, high = _coarse_crossings(tree, query, level, low, high)
    new = _bisect(tree, query, low, high)
    while True:
        _follow(tree, query, new)
        new = query(_unqueried_sides(tree))
        if not len(new):
            return


def _neighbouring_pairs(
    points: Int[np.ndarray, "roots d"], shape: tuple[int, ...]
) -> tuple[Int[np.ndarray, "pairs d"], Int[np.ndarray, "pairs d"]]:
    """Points of a grid and the next one along each axis."""
    index = np.arange(len(points)).reshape(shape)
    sides = []
    for end in (-1, 0):
        indices = [np.delete(index, end, axis).ravel() for axis in range(len(shape))]
        sides.append(points[np.concatenate(indices)])
    return sides[0], sides[1]


def _coarse_crossings(
    tree: Tree, query: Query, level: int, low: np.ndarray, high: np.ndarray
) -> tuple[Int[np.ndarray, "pairs d"], Int[np.ndarray, "pairs d"]]:
    """Follow boundaries in boxes of a level, and return pairs of middles with different labels.

    Pairs of positions with different labels that lie in boxes of one label are returned, too, to be
    bisected at the next level.
    """
    differ = tree.labels_differ(tree.cell_at(low), tree.cell_at(high))
    low, high = low[differ], high[differ]
    stage = Tree(tree.coarse, tree.depth, lambda stage, nodes: stage.level[nodes] < level)

    def query_middles(positions: np.ndarray) -> np.ndarray:
        nodes = np.unique(stage.cell_at(positions))
        nodes = nodes[~stage.queried[nodes]]
        if len(nodes):
            query(stage.middle(nodes))
            stage.record(nodes, tree.label[tree.cell_at(stage.middle(nodes))])
        return nodes

    _follow(stage, query_middles, _bisect(stage, query_middles, low, high))
    # pairs that the coarse boxes do not separate are kept for the next level
    missed = ~stage.labels_differ(stage.cell_at(low), stage.cell_at(high))
    queried = np.flatnonzero(stage.queried)
    lows, highs = [low[missed]], [high[missed]]
    for neighbour in stage.face_neighbours(queried).T[1::2]:  # beyond upper faces
        crossing = (neighbour >= 0) & stage.queried[neighbour]
        crossing &= stage.labels_differ(queried, neighbour)
        lows.append(stage.middle(queried[crossing]))
        highs.append(stage.middle(neighbour[crossing]))
    return np.concatenate(lows), np.concatenate(highs)


def _bisect(
    tree: Tree, query: Query, low: Int[np.ndarray, "pairs d"], high: Int[np.ndarray, "pairs d"]
) -> Int[np.ndarray, " cells"]:
    """Bisect between positions of different labels along an axis, down to cells sharing a face."""
    query(np.concatenate([low, high]))
    differ = tree.labels_differ(tree.cell_at(low), tree.cell_at(high))
    low, high = low[differ], high[differ]
    # labels at the two ends of each pair keep differing, so neighbouring cells remain
    while (high - low > 1).any():
        between = (low + high) // 2
        query(between)
        same = ~tree.labels_differ(tree.cell_at(between), tree.cell_at(low))[:, None]
        low, high = np.where(same, between, low), np.where(same, high, between)
    return np.unique(tree.cell_at(np.concatenate([low, high])))


def _follow(tree: Tree, query: Query, new: Int[np.ndarray, " cells"]) -> None:
    """Query along the boundaries at new cells, until they end or close."""
    while len(new):
        new = query(np.concatenate([_between_two_labels(tree, new), _ahead(tree, new)]))


def _between_two_labels(tree: Tree, new: np.ndarray) -> Int[np.ndarray, "n d"]:
    """The positions beside new cells whose queried neighbours have two labels."""
    beside = [tree.at_faces(new, (axis, side, 1)) for axis, side in tree.faces()]
    positions = np.concatenate(beside)
    positions = positions[tree.leaf_at(positions) >= 0]
    nodes = np.unique(tree.cell_at(positions))
    nodes = nodes[~tree.queried[nodes]]
    neighbours = tree.face_neighbours(nodes)
    known = (neighbours >= 0) & tree.queried[neighbours]
    # every queried neighbour is compared with the first one
    first = np.take_along_axis(neighbours, known.argmax(1)[:, None], 1)
    return tree.at_faces(nodes[(known & tree.labels_differ(neighbours, first)).any(1)])


class _Continuations(NamedTuple):
    """Places where a boundary continues across an edge of a face, and nothing was queried yet.

    Attributes:
        own: the smaller cell at the face.
        other: the cell of another label beyond it.
        beside: the position ahead of `own`.
        ahead: the position ahead of `other`.
        point: the middle of the edge, in cell edges from the centre of `own`.
    """

    own: Int[np.ndarray, " n"]
    other: Int[np.ndarray, " n"]
    beside: Int[np.ndarray, "n d"]
    ahead: Int[np.ndarray, "n d"]
    point: Float[np.ndarray, "n d"]


def _ahead(tree: Tree, new: np.ndarray) -> Int[np.ndarray, "n d"]:
    """One position across each edge of each face where new cells have a boundary."""
    neighbours = tree.face_neighbours(new)
    near = np.union1d(new, neighbours[(neighbours >= 0) & tree.queried[neighbours]])
    parts = []
    for axis, side in tree.faces():
        own, other = _crossing_faces(tree, near, new, axis, side)
        for across, end in tree.faces():
            if across != axis:
                parts.append(_across_edge(tree, own, other, (axis, side), (across, end)))
    if not parts:
        return np.zeros((0, tree.d), np.int32)
    places = _Continuations(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    # in parts: each place has a regression on hundreds of cells in four dimensions
    count = max(1, CHUNK // len(_plane(tree.d).steps))
    own_side = []
    for start in range(0, max(1, len(places.own)), count):
        part = _Continuations(*(column[start : start + count] for column in places))
        own_side.append(_on_own_side(tree, part))
    return np.where(np.concatenate(own_side)[:, None], places.ahead, places.beside)


def _crossing_faces(
    tree: Tree, near: np.ndarray, new: np.ndarray, axis: int, side: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Queried cells of different labels on both sides of a face, at least one of them new."""
    beyond = tree.leaf_at(tree.at_faces(near, (axis, side, 1)))
    # each face once: from its smaller cell, and of two equal ones from the lower one
    if side == 0:
        smaller = tree.level[near] > tree.level[beyond]
    else:
        smaller = tree.level[near] >= tree.level[beyond]
    crossing = (beyond >= 0) & tree.queried[beyond] & smaller & tree.labels_differ(near, beyond)
    crossing &= np.isin(near, new) | np.isin(beyond, new)
    return near[crossing], beyond[crossing]


def _across_edge(
    tree: Tree,
    own: np.ndarray,
    other: np.ndarray,
    face: tuple[int, int],
    across: tuple[int, int],
) -> _Continuations:
    """Where neither of the two cells across an edge of a face was queried."""
    beside, ahead = (tree.at_faces(own, (*face, out), (*across, 1)) for out in (0, 1))
    one, two = tree.leaf_at(beside), tree.leaf_at(ahead)
    unknown = (one >= 0) & ~tree.queried[one] & ~tree.queried[two]
    point = np.zeros((unknown.sum(), tree.d))
    point[:, face[0]], point[:, across[0]] = face[1] - 0.5, 2 * across[1] - 1
    return _Continuations(own[unknown], other[unknown], beside[unknown], ahead[unknown], point)


def _on_own_side(tree: Tree, places: _Continuations) -> Bool[np.ndarray, " n"]:
    """Whether a plane fitted to the labels around a boundary puts the edge on the own cell's side.

    The plane is a weighted ridge regression of +1 (the own label) and -1 (the other one).
    """
    steps, weights, terms, products = _plane(tree.d)
    size = tree.corner(places.own)[1]
    around = tree.leaf_at(tree.middle(places.own)[:, None] + steps * size[:, None])
    known = (around >= 0) & tree.queried[around]
    positive, negative = (
        known & ~tree.labels_differ(around, cells[:, None]) for cells in (places.own, places.other)
    )
    # normal equations; where few labels are known the ridge makes the plane flat
    moments = ((positive | negative) @ products).reshape(-1, tree.d + 1, tree.d + 1)
    diagonal = np.arange(1, tree.d + 1)
    moments[:, diagonal, diagonal] += RIDGE * WIDTH**2 * moments[:, :1, 0]
    right_side = (positive * weights - negative * weights) @ terms
    plane = np.linalg.solve(moments, right_side[..., None])[..., 0]
    return plane[:, 0] + (plane[:, 1:] * places.point).sum(1) > 0


class _Plane(NamedTuple):
    """What planes are fitted with: steps to the cells around and their weights.

    Attributes:
        steps: to the cells around, int32.
        weights: of these cells.
        terms: of a plane: one, and the coordinates.
        products: weighted products of terms, flattened.
    """

    steps: Int[np.ndarray, "cells d"]
    weights: Float[np.ndarray, " cells"]
    terms: Float[np.ndarray, "cells terms"]
    products: Float[np.ndarray, "cells products"]


@cache
def _plane(d: int) -> _Plane:
    """The regression of a plane in d dimensions."""
    around = itertools.product((-2, -1, 0, 1, 2), repeat=d)
    steps = np.array([step for step in around if np.dot(step, step) <= RADIUS], np.int32)
    weights = np.exp(-(steps**2).sum(1) / (2 * WIDTH**2))
    terms = np.concatenate([np.ones((len(steps), 1)), steps], 1)
    products = weights[:, None, None] * terms[:, :, None] * terms[:, None, :]
    return _Plane(steps, weights, terms, products.reshape(len(steps), -1))


def _unqueried_sides(tree: Tree) -> Int[np.ndarray, "n d"]:
    """The positions on both sides of faces between two labels, unless both are queried."""
    leaves, neighbours = tree.propagate_labels()
    positions = []
    for (axis, side), beyond in zip(tree.faces(), neighbours.T, strict=True):
        differ = (beyond >= 0) & tree.labels_differ(leaves, beyond)
        differ &= ~(tree.queried[leaves] & tree.queried[beyond])
        positions += [tree.at_faces(leaves[differ], (axis, side, out)) for out in (0, 1)]
    return np.concatenate(positions)
