"""Find the borders between a classifier's labels among the smallest cells of a tree, and follow them, for few questions.

Between two points of different labels a border is found by halving. From then on it is followed. Where two cells of different
labels share a face, the border goes on across each edge of that face: through one of the two cells ahead, or between them. So one
of the two needs to be asked at first, that which the border passes more closely: it is on the other side of a plane fitted to the
answers around. Seldom is a cell asked that no border touches.

A cell whose neighbours have two labels lies at a border whatever its own; it is asked. Where no border can be followed any more,
boxes take the labels of their neighbours, and where two labels meet at a face without two questions there, these are asked.

Where cells of one size are very fine, borders are first followed in larger boxes, to be found in many places at once: calls then
grow with the levels, not with the cells along a border.

Sources: following a surface from cell to cell, Wyvill et al. 1986 (doi:10.1007/BF01900346); local planes, Cleveland 1979
(doi:10.1080/01621459.1979.10481038).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np

from jaxcompress.classifiers.mesh import roots
from jaxcompress.classifiers.tree import Tree

WIDTH, RADIUS, RIDGE = 1.5, 5, 0.05
"""Of the plane's weights: their width in cells, the largest squared distance that counts, and a share of the weights on slopes."""
CHUNK = 2**21
"""Answers that are fitted at once."""

Ask = Callable[[np.ndarray], np.ndarray]
"""Asks for the cells at places, if they were not asked before; gives those that were not."""


def survey(tree: Tree, ask: Ask, stages: Iterable[int]) -> None:
    """Ask until both sides of every border in the mesh were asked.

    Args:
        tree: without answers.
        ask: of its cells.
        stages: levels above the smallest cells' at which borders are followed before, from coarse to fine, so that they are
            followed from many places at once.
    """
    middle = (roots(tree.coarse) << tree.depth) + (1 << tree.depth >> 1)
    ask(middle)
    index = np.arange(len(middle)).reshape(tree.coarse)
    low, high = (
        middle[np.concatenate([np.delete(index, end, axis).ravel() for axis in range(tree.d)])]
        for end in (-1, 0)
    )
    for level in stages:
        low, high = _crossings(tree, ask, level, low, high)
    new = _found(tree, ask, low, high)
    while True:
        _follow(tree, ask, new)
        new = ask(_open(tree))
        if not len(new):
            return


def _crossings(
    tree: Tree, ask: Ask, level: int, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Follow borders in boxes of a level, asked at their middles; gives the pairs of middles of different labels.

    Pairs of different labels whose boxes have one label are given back, to be searched further at the next level.
    """
    unlike = tree.unlike(tree.cell(low), tree.cell(high))
    low, high = low[unlike], high[unlike]
    stage = Tree(tree.coarse, tree.depth, lambda stage, nodes: stage.level[nodes] < level)

    def ask_middles(places: np.ndarray) -> np.ndarray:
        nodes = np.unique(stage.cell(places))
        nodes = nodes[~stage.asked[nodes]]
        if len(nodes):
            ask(stage.middle(nodes))
            stage.answer(nodes, tree.label[tree.cell(stage.middle(nodes))])
        return nodes

    _follow(stage, ask_middles, _found(stage, ask_middles, low, high))
    lost = ~stage.unlike(stage.cell(low), stage.cell(high))
    asked, pairs = np.flatnonzero(stage.asked), [(low[lost], high[lost])]
    for there in stage.across(asked).T[1::2]:  # beyond upper faces
        border = (there >= 0) & stage.asked[there] & stage.unlike(asked, there)
        pairs.append((stage.middle(asked[border]), stage.middle(there[border])))
    low, high = (np.concatenate(each) for each in zip(*pairs, strict=True))
    return low, high


def _found(tree: Tree, ask: Ask, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Halve the way between places of different labels along an axis, down to cells that share a face; gives these cells."""
    ask(np.concatenate([low, high]))
    unlike = tree.unlike(tree.cell(low), tree.cell(high))
    low, high = low[unlike], high[unlike]
    while (high - low > 1).any():
        between = (low + high) // 2
        ask(between)
        like = ~tree.unlike(tree.cell(between), tree.cell(low))[:, None]
        low, high = np.where(like, between, low), np.where(like, high, between)
    return np.unique(tree.cell(np.concatenate([low, high])))


def _follow(tree: Tree, ask: Ask, new: np.ndarray) -> None:
    """Ask along the borders at new cells, until they end or close."""
    while len(new):
        new = ask(np.concatenate([_enclosed(tree, new), _ahead(tree, new)]))


def _enclosed(tree: Tree, new: np.ndarray) -> np.ndarray:
    """The places beside new cells whose neighbours have two labels."""
    places = np.concatenate([tree.by(new, (*face, 1)) for face in tree.faces()])
    places = places[tree.box(places) >= 0]
    nodes = np.unique(tree.cell(places))
    nodes = nodes[~tree.asked[nodes]]
    around = tree.across(nodes)
    known = (around >= 0) & tree.asked[around]
    first = np.take_along_axis(around, known.argmax(1)[:, None], 1)
    return tree.by(nodes[(known & tree.unlike(around, first)).any(1)])


def _ahead(tree: Tree, new: np.ndarray) -> np.ndarray:
    """One place across each edge of each face where new cells have a border, if neither of the two cells there was asked."""
    around = tree.across(new)
    near = np.union1d(new, around[(around >= 0) & tree.asked[around]])
    fresh, found = np.isin(near, new), []
    for axis, side in tree.faces():
        there = tree.box(tree.by(near, (axis, side, 1)))
        # each face once: from its smaller cell
        smaller = (
            tree.level[near] > tree.level[there]
            if side == 0
            else tree.level[near] >= tree.level[there]
        )
        border = (
            (there >= 0)
            & tree.asked[there]
            & smaller
            & tree.unlike(near, there)
            & (fresh | np.isin(there, new))
        )
        own, other = near[border], there[border]
        for across, end in tree.faces():
            if across != axis:
                beside, ahead = (
                    tree.by(own, (axis, side, out), (across, end, 1)) for out in (0, 1)
                )
                one, two = tree.box(beside), tree.box(ahead)
                both = (one >= 0) & ~tree.asked[one] & ~tree.asked[two]
                point = np.zeros((both.sum(), tree.d))
                point[:, axis], point[:, across] = side - 0.5, 2 * end - 1
                found.append((own[both], other[both], beside[both], ahead[both], point))
    if not found:
        return np.zeros((0, tree.d), np.int32)
    own, other, beside, ahead, point = (np.concatenate(each) for each in zip(*found, strict=True))
    count = max(1, CHUNK // len(_weights(tree.d)[0]))
    stays = [
        _on_own_side(
            tree,
            own[start : start + count],
            other[start : start + count],
            point[start : start + count],
        )
        for start in range(0, max(1, len(own)), count)
    ]
    return np.where(np.concatenate(stays)[:, None], ahead, beside)


def _on_own_side(tree: Tree, own: np.ndarray, other: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Whether a plane fitted to the answers around a border's cells has points (n, d), in edges from the centres, on their side."""
    steps, weights, plane, products = _weights(tree.d)
    around = tree.box(tree.middle(own)[:, None] + steps * tree.corner(own)[1][:, None])
    known = (around >= 0) & tree.asked[around]
    here, there = (known & ~tree.unlike(around, each[:, None]) for each in (own, other))
    moments = ((here | there) @ products).reshape(-1, tree.d + 1, tree.d + 1)
    diagonal = np.arange(1, tree.d + 1)
    moments[:, diagonal, diagonal] += RIDGE * WIDTH**2 * moments[:, :1, 0]
    fitted = np.linalg.solve(moments, ((here * weights - there * weights) @ plane)[..., None])[
        ..., 0
    ]
    return fitted[:, 0] + (fitted[:, 1:] * point).sum(1) > 0


@cache
def _weights(d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps to the cells around, and their weights, terms of a plane and weighted products of terms."""
    steps = np.array(
        [u for u in itertools.product((-2, -1, 0, 1, 2), repeat=d) if np.dot(u, u) <= RADIUS],
        np.int32,
    )
    weights = np.exp(-(steps**2).sum(1) / (2 * WIDTH**2))
    plane = np.concatenate([np.ones((len(steps), 1)), steps], 1)
    return (
        steps,
        weights,
        plane,
        (weights[:, None, None] * plane[:, :, None] * plane[:, None, :]).reshape(len(steps), -1),
    )


def _open(tree: Tree) -> np.ndarray:
    """The places on both sides of faces where two labels meet and not both were asked."""
    (whole, around), places = tree.spread(), []
    for face, there in zip(tree.faces(), around.T, strict=True):
        unlike = (there >= 0) & tree.unlike(whole, there) & ~(tree.asked[whole] & tree.asked[there])
        places += [tree.by(whole[unlike], (*face, out)) for out in (0, 1)]
    return np.concatenate(places)
