"""A mesh of cells as a classifier: the dyadic tree, its look-up, and the borders between cells of different labels.

A coarse grid of roots; each cell is whole, or halved along every axis into 2^d children that lie one after the other. A point's
place on the finest grid is one integer an axis, whose bits choose the child level by level: `node = first[node] + bits`. A look-up
costs one gather a level, a mesh one int32 a node.

Source: trees of cells in adaptive meshes, Samet 1984 (doi:10.1145/356924.356930).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcompress.checkpoint import record

FINEST = 2**20
"""Cells along an axis: what float32 tells apart."""


@record
@dataclasses.dataclass(frozen=True, eq=False)
class MeshClassifier:
    """Each point of a box to the label of its cell, by look-up.

    A pytree, so that it goes through `jax.jit`; made by `jc.realize`. Points outside of the box are clamped to its border. A cell
    has its lower faces, not its upper ones. Outside of jit it is numpy on the host, with no program to compile for each mesh, and
    gives the same cells.

    Attributes:
        low, high: (d,), the box.
        tree: (nodes,), int32; the roots come first. The place of the first child, or `-1 - cell`.
        words: (cells, ..., 1 or 2), int32: the labels, in words of 32 bits.
        coarse: how many roots along each axis.
        depth: how often the smallest cells are halved.
        kind: the labels' type: int32 where all fit, else int64 or uint64.

    Example:
        >>> import jax, numpy as np, jaxcompress as jc
        >>> found = jc.realize(lambda x: np.int32(x[:, 0] > 0.3), ([0, 0], [1, 1]), 1 / 64, progress=False)
        >>> jax.jit(found.mesh)(np.float32([[0.2, 0.5], [0.4, 0.5], [7.0, 0.5]])).tolist()
        [0, 1, 1]
    """

    low: Any
    high: Any
    tree: Any
    words: Any
    coarse: tuple[int, ...]
    depth: int
    kind: str

    def cell(self, points: Any) -> Any:
        """The index of each point's cell, in the order of `Realized.points`; runs inside jit for labels of any size.

        Args:
            points: (..., d).

        Returns:
            (...), int32.

        Raises:
            ValueError: for points of another dimension.
        """
        if np.ndim(points) < 1 or np.shape(points)[-1] != len(self.coarse):
            raise ValueError(f"MeshClassifier: expected points (..., {len(self.coarse)}), got {np.shape(points)}")
        xp = jnp if isinstance(points, Tracer) or isinstance(self.tree, Tracer) else np
        tree, low, high = (xp.asarray(leaf) for leaf in (self.tree, self.low, self.high))
        sides = np.asarray(self.coarse) << self.depth
        # a difference and a product: XLA could round a quotient by a constant otherwise than numpy
        place = xp.floor((xp.asarray(points, np.float32) - low) * (sides.astype(np.float32) / (high - low)))
        place = xp.clip(place, 0, (sides - 1).astype(np.float32)).astype(np.int32)
        return -1 - tree[descended(tree, place, self.depth, self.coarse, xp)]

    def __call__(self, points: Any) -> Any:
        """The label of each point.

        Args:
            points: (..., d).

        Returns:
            (...) or (..., k), int32 where all labels fit.

        Raises:
            ValueError: for points of another dimension.
            TypeError: for labels of 64 bits inside jit, without `jax_enable_x64`.
        """
        cell = self.cell(points)
        words = (jnp if isinstance(cell, Tracer) else np).asarray(self.words)[cell]
        if self.kind == "int32":
            return words[..., 0]
        if not isinstance(words, Tracer):
            return np.ascontiguousarray(words).view(self.kind)[..., 0]
        if not jax.config.read("jax_enable_x64"):
            raise TypeError(
                f"MeshClassifier: these labels are {self.kind}, which JAX has only with jax_enable_x64; inside jit use "
                "mesh.cell(points), and look the labels up outside: realized.labels[cell]"
            )
        return jax.lax.bitcast_convert_type(words, self.kind)

    def boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """The centres and the edges of the cells.

        Returns:
            (cells, d) in float32 and (cells, d) in float64.
        """
        tree, low, high = np.asarray(self.tree), np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        centres, sizes = np.zeros((len(self.words), len(low)), np.float32), np.zeros((len(self.words), len(low)))
        place = roots(self.coarse)
        nodes = np.arange(len(place))
        for level in range(self.depth + 1):
            whole = tree[nodes] < 0
            cells = -1 - tree[nodes[whole]]
            sizes[cells] = edges(low, high, self.coarse, level)
            centres[cells] = centre(low, high, self.coarse, place[whole], level)
            place, nodes = halved(place[~whole]), family(tree[nodes[~whole]], len(low)).ravel()
        return centres, sizes

    def __repr__(self) -> str:
        grid = " x ".join(f"{side << self.depth:,}" for side in self.coarse)
        return f"MeshClassifier({len(self.words):,} cells of a grid of {grid})"


jax.tree_util.register_dataclass(MeshClassifier, ["low", "high", "tree", "words"], ["coarse", "depth", "kind"])


def descended(first: Any, place: Any, level: int, coarse: tuple[int, ...], xp: Any = np) -> Any:
    """The node at a level, or the whole cell above it, that holds each place (..., d) on that level's grid."""
    axes = [place[..., axis] for axis in range(len(coarse))]  # sums along a short axis are slow in numpy
    node = 0
    for side, along in zip(coarse, axes, strict=True):
        node = node * side + (along >> level)
    for shift in reversed(range(level)):
        below = first[node]
        child = sum(((along >> shift) & 1) << axis for axis, along in enumerate(axes))
        node = xp.where(below >= 0, below + child, node)
    return node


def roots(coarse: tuple[int, ...]) -> np.ndarray:
    """The places (roots, d) of the coarse grid, row by row."""
    return np.indices(coarse, np.int32).reshape(len(coarse), -1).T


def octants(d: int) -> np.ndarray:
    """(2^d, d): which half along each axis a child is; the order of a family."""
    return (np.arange(2**d)[:, None] >> np.arange(d) & 1).astype(np.int32)


def halved(place: np.ndarray) -> np.ndarray:
    """The places of all children on the next level's grid."""
    return (2 * place[:, None] + octants(place.shape[1])).reshape(-1, place.shape[1])


def family(first: np.ndarray, d: int) -> np.ndarray:
    """(n, 2^d): the children that start at `first`."""
    return first[:, None] + np.arange(2**d, dtype=np.int32)


def edges(low: np.ndarray, high: np.ndarray, coarse: tuple[int, ...], level: int) -> np.ndarray:
    """(d,): the edges of a cell at a level."""
    return (high - low) / (np.asarray(coarse) << level)


def centre(low: np.ndarray, high: np.ndarray, coarse: tuple[int, ...], place: np.ndarray, level: int) -> np.ndarray:
    """(n, d), float32: the centres of cells at a level."""
    return (low + (place + 0.5) * edges(low, high, coarse, level)).astype(np.float32)


class Tree:
    """A mesh that grows, on the host: nodes are appended, never moved.

    Attributes:
        first: (nodes,), the first child, or -1.
        place: (nodes, d), on the grid of the node's level.
        level: (nodes,).
        label: (nodes, k); a child has its parent's until it is asked.
        asked: (nodes,), whether the label is the classifier's at the centre.
    """

    def __init__(self, coarse: tuple[int, ...], labels: np.ndarray) -> None:
        self.coarse, self.d = coarse, len(coarse)
        self.place, self.label = roots(coarse), labels
        self.first, self.level = np.full(len(labels), -1, np.int32), np.zeros(len(labels), np.int8)
        self.asked = np.ones(len(labels), bool)

    def split(self, nodes: np.ndarray) -> np.ndarray:
        """Halve cells along every axis; gives their children."""
        new = len(self.first) + np.arange(len(nodes) * 2**self.d, dtype=np.int32)
        self.first[nodes] = new[:: 2**self.d]
        repeat = lambda values: np.repeat(values[nodes], 2**self.d, axis=0)
        self.place = np.concatenate([self.place, halved(self.place[nodes])])
        self.level = np.concatenate([self.level, repeat(self.level) + np.int8(1)])
        self.label = np.concatenate([self.label, repeat(self.label)])
        self.first = np.concatenate([self.first, np.full(len(new), -1, np.int32)])
        self.asked = np.concatenate([self.asked, np.zeros(len(new), bool)])
        return new

    def borders(self, nodes: np.ndarray) -> np.ndarray:
        """The whole cells on both sides of every face between different labels that one of the given whole cells has."""
        found = np.zeros(len(self.first), bool)
        for level in np.unique(self.level[nodes]).tolist():
            own = nodes[self.level[nodes] == level]
            for axis, side in np.ndindex(self.d, 2):
                place = self.place[own]
                place[:, axis] += 2 * side - 1
                inside = (place[:, axis] >= 0) & (place[:, axis] < self.coarse[axis] << level)
                here, there = own[inside], descended(self.first, place[inside], level, self.coarse)
                facing = np.flatnonzero(octants(self.d)[:, axis] == 1 - side)
                while len(here):
                    whole = self.first[there] < 0
                    unlike = self.label[here] != self.label[there]
                    differ = whole & (unlike[:, 0] if unlike.shape[1] == 1 else unlike.any(1))
                    found[here[differ]] = found[there[differ]] = True
                    here, there = np.repeat(here[~whole], len(facing)), family(self.first[there[~whole]], self.d)[:, facing].ravel()
        return np.flatnonzero(found).astype(np.int32)

    def coarsened(self, *, drop: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Which nodes are of one label, and which of them are kept: the largest ones.

        A node is of one label when it and all below it have that label. With `drop`, families with a cell that was never asked are
        joined, too, under the label of their parent's centre.
        """
        one = self.first < 0
        inner = [np.flatnonzero((self.first >= 0) & (self.level == level)) for level in range(int(self.level.max()))]
        for nodes in reversed(inner):
            children = family(self.first[nodes], self.d)
            one[nodes] = (one[children] & (self.label[children] == self.label[nodes][:, None]).all(2)).all(1)
            if drop:
                one[nodes] |= ((self.first[children] < 0) & ~self.asked[children]).any(1)
        reached = self.level == 0
        for nodes in inner:
            reached[family(self.first[nodes], self.d)] = (reached[nodes] & ~one[nodes])[:, None]
        return reached, one & reached

    def mesh(self, low: np.ndarray, high: np.ndarray, reached: np.ndarray, kept: np.ndarray, *, tuples: bool) -> MeshClassifier:
        """The nodes that are reached, with the kept ones whole."""
        index, cell = np.cumsum(reached, dtype=np.int32) - 1, np.cumsum(kept, dtype=np.int32) - 1
        tree = np.where(kept, -1 - cell, index[self.first])[reached].astype(np.int32)
        labels = self.label[kept] if tuples else self.label[kept, 0]
        limit = np.iinfo(np.int32)
        if limit.min <= labels.min() and labels.max() <= limit.max:
            kind = "int32"
        else:
            kind = "uint64" if labels.dtype == np.uint64 else "int64"
        words = np.ascontiguousarray(labels.astype(kind)[..., None]).view(np.int32)
        depth = int(self.level[kept].max())
        return MeshClassifier(low.astype(np.float32), high.astype(np.float32), tree, words, self.coarse, depth, kind)
