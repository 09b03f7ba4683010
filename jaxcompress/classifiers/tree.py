"""A dyadic tree that grows while a classifier is queried, and spreads its labels over all boxes.

A query belongs to a cell: a box whose edges are at most the just-noticeable difference. Boxes are
halved only on the way to such cells. Positions are given on one lattice, that of the deepest level.

Source: adaptive refinement, Berger and Colella 1989 (doi:10.1016/0021-9991(89)90035-1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Int

from jaxcompress.classifiers.mesh import (
    MeshClassifier,
    child_positions,
    children_of,
    descend,
    roots,
)


class Tree:
    """The nodes of the tree as columns; nodes are appended, never moved.

    Attributes:
        coarse: number of roots along each axis.
        d: number of dimensions.
        depth: number of halvings from a root to the lattice.
        too_large: `too_large(tree, nodes) -> (n,)`: which boxes are larger than the jnd.
        first: index of the first child, or -1 for leaves.
        position: on the grid of the node's level.
        level: number of halvings.
        smallest: whether the box is known to be a cell, which is not halved.
        queried: whether the classifier was queried at the centre; only cells are.
        label: the prediction, or after `propagate_labels` that of `source`.
        source: the queried cell that the label is from, or -1.
    """

    first: Int[np.ndarray, " nodes"]
    position: Int[np.ndarray, "nodes d"]
    level: Int[np.ndarray, " nodes"]
    smallest: Bool[np.ndarray, " nodes"]
    queried: Bool[np.ndarray, " nodes"]
    label: Int[np.ndarray, "nodes k"]
    source: Int[np.ndarray, " nodes"]

    def __init__(
        self,
        coarse: tuple[int, ...],
        depth: int,
        too_large: Callable[[Tree, np.ndarray], np.ndarray],
    ) -> None:
        self.coarse, self.d, self.depth, self.too_large = coarse, len(coarse), depth, too_large
        self._buffers: dict[str, np.ndarray] = {}
        position = roots(coarse)
        count = len(position)
        self._append(position, np.zeros(count, np.int8), np.zeros((count, 0), np.int32))

    def _append(self, position: np.ndarray, level: np.ndarray, label: np.ndarray) -> None:
        """Append leaves. Buffers double, so that they are seldom copied."""
        count = len(position)
        none, false = np.full(count, -1, np.int32), np.zeros(count, bool)
        columns = {"position": position, "level": level, "label": label}
        columns |= {"first": none, "source": none, "smallest": false, "queried": false}
        for name, rows in columns.items():
            old = getattr(self, name, rows[:0])
            buffer, end = self._buffers.get(name, old), len(old) + count
            if len(buffer) < end:
                buffer = self._buffers[name] = np.empty((2 * end, *old.shape[1:]), old.dtype)
                buffer[: len(old)] = old
            buffer[len(old) : end] = rows
            setattr(self, name, buffer[:end])

    def split(self, nodes: Int[np.ndarray, " n"]) -> None:
        """Halve boxes along every axis."""
        children = 2**self.d
        count = len(nodes) * children
        self.first[nodes] = len(self.first) + np.arange(0, count, children, dtype=np.int32)
        level = np.repeat(self.level[nodes] + np.int8(1), children)
        label = np.zeros((count, self.label.shape[1]), self.label.dtype)
        self._append(child_positions(self.position[nodes]), level, label)

    def record(self, nodes: Int[np.ndarray, " n"], labels: Int[np.ndarray, "n ..."]) -> None:
        """Store the classifier's predictions at cells."""
        labels = labels.reshape(len(nodes), -1)
        # type and length of the labels are known after the first query
        if not self.label.shape[1]:
            empty = np.zeros((len(self.first), labels.shape[1]), labels.dtype)
            self._buffers["label"] = self.label = empty
        self.label[nodes], self.source[nodes], self.queried[nodes] = labels, nodes, True

    def leaf_at(self, positions: Int[np.ndarray, "... d"]) -> Int[np.ndarray, " ..."]:
        """The leaves at positions of the lattice; -1 outside of the box."""
        inside = ((positions >= 0) & (positions < np.asarray(self.coarse) << self.depth)).all(-1)
        clamped = np.where(np.expand_dims(inside, -1), positions, 0)
        return np.where(inside, descend(self.first, clamped, self.depth, self.coarse), -1)

    def cell_at(self, positions: Int[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
        """The cells at positions inside of the box; larger boxes are halved."""
        while True:
            nodes = np.asarray(descend(self.first, positions, self.depth, self.coarse))
            new = np.unique(nodes[~self.smallest[nodes]])
            if not len(new):
                return nodes
            # halve until every box is small enough; each box is tested once
            large = self.too_large(self, new)
            self.smallest[new[~large]] = True
            self.split(new[large])

    def corner(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lowest positions (n, d) of boxes on the lattice, and their edges (n, 1)."""
        shift = (self.depth - self.level[nodes].astype(np.int32))[:, None]
        return self.position[nodes] << shift, np.int32(1) << shift

    def middle(self, nodes: np.ndarray) -> Int[np.ndarray, "n d"]:
        """The positions in the middle of boxes."""
        corner, size = self.corner(nodes)
        return corner + size // 2

    def at_faces(self, nodes: np.ndarray, *faces: tuple[int, int, int]) -> Int[np.ndarray, "n d"]:
        """Positions at the middle of a face of each box, or of the edge between two faces.

        Args:
            nodes: the boxes.
            faces: (axis, side, out): the lower (0) or upper (1) face, and whether the position is
                within the box (0) or beyond the face (1).
        """
        corner, size = self.corner(nodes)
        position = corner + size // 2
        for axis, side, out in faces:
            position[:, axis] = corner[:, axis] + (size[:, 0] - 1 + out if side else -out)
        return position

    def faces(self) -> Iterator[tuple[int, ...]]:
        """Each axis with its lower and its upper side."""
        return np.ndindex(self.d, 2)

    def face_neighbours(self, nodes: np.ndarray) -> Int[np.ndarray, "n faces"]:
        """The leaves beyond the middles of all 2 d faces, or -1.

        Where boxes of two sizes share a face, the larger one is a neighbour of the smaller one.
        """
        beyond = [
            self.leaf_at(self.at_faces(nodes, (axis, side, 1))) for axis, side in self.faces()
        ]
        return np.stack(beyond, 1)

    def labels_differ(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether nodes have different labels."""
        return (self.label[one] != self.label[other]).any(-1)

    def propagate_labels(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n faces"]]:
        """Give each leaf the label of the nearest queried cell, counted in steps through faces.

        Returns:
            The leaves, and the neighbours across their faces.
        """
        leaves = np.flatnonzero(self.first < 0).astype(np.int32)
        neighbours = self.face_neighbours(leaves)
        # in both directions, since a larger box lists only one of the smaller ones at a face
        inside = neighbours >= 0
        pairs = np.repeat(leaves, 2 * self.d)[inside.ravel()], neighbours[inside]
        self.source[~self.queried] = -1  # labels from an earlier call are outdated
        from_, to = np.concatenate(pairs), np.concatenate(pairs[::-1])
        while True:
            unlabelled = self.source[to] < 0
            from_, to = from_[unlabelled], to[unlabelled]
            ready = self.source[from_] >= 0
            if not ready.any():
                break
            self.source[to[ready]] = self.source[from_[ready]]
        self.label[leaves] = self.label[self.source[leaves]]
        return leaves, neighbours

    def merge(self) -> MergedCells:
        """Merge sibling boxes of one label, after `propagate_labels`."""
        uniform, query = self._merge_upwards()
        reached = self.level == 0
        for nodes in self._inner_nodes():
            children = children_of(self.first[nodes], self.d)
            reached[children] = (reached[nodes] & ~uniform[nodes])[:, None]
        merged = uniform & reached
        own = merged & (query >= 0)
        cell = np.where(own, np.cumsum(own) - 1, -1).astype(np.int32)
        # boxes without a query of their own belong to the cell their label is from
        others = np.flatnonzero(merged & ~own)
        position = self.corner(self.source[others])[0]
        first = np.where(merged, -1, self.first)
        cell[others] = cell[descend(first, position, self.depth, self.coarse)]
        return MergedCells(reached, cell, np.flatnonzero(own), query[own])

    def _merge_upwards(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether each node has one label, and its query nearest to its middle, or -1."""
        uniform, query = self.first < 0, np.where(self.queried, np.arange(len(self.first)), -1)
        middle = (self.position + 0.5) * 0.5 ** self.level[:, None]
        for nodes in reversed(self._inner_nodes()):
            children = children_of(self.first[nodes], self.d)
            self.label[nodes] = self.label[children[:, 0]]
            self.source[nodes] = self.source[children[:, 0]]
            differ = self.labels_differ(children, nodes[:, None])
            uniform[nodes] = (uniform[children] & ~differ).all(1)
            candidates = query[children]
            distance = ((middle[candidates] - middle[nodes][:, None]) ** 2).sum(2)
            nearest = np.where(candidates < 0, np.inf, distance).argmin(1)
            query[nodes] = candidates[np.arange(len(nodes)), nearest]
        return uniform, query

    def _inner_nodes(self) -> list[np.ndarray]:
        """The nodes with children, by level."""
        inner = self.first >= 0
        levels = range(int(self.level.max()))
        return [np.flatnonzero(inner & (self.level == level)) for level in levels]

    def mesh(
        self,
        low: np.ndarray,
        high: np.ndarray,
        reached: Bool[np.ndarray, " nodes"],
        cell: Int[np.ndarray, " nodes"],
        labels: Int[np.ndarray, "cells ..."],
    ) -> MeshClassifier:
        """The reached nodes as a classifier, given their cells and the labels of the cells."""
        index = np.cumsum(reached, dtype=np.int32) - 1
        tree = np.where(cell >= 0, -1 - cell, index[self.first])[reached].astype(np.int32)
        kind = "uint64" if labels.dtype == np.uint64 else "int64"
        limit = np.iinfo(np.int32)
        if limit.min <= labels.min() and labels.max() <= limit.max:
            kind = "int32"
        # JAX has no 64 bits by default: a label of 64 bits is two words of 32
        words = np.ascontiguousarray(labels.astype(kind)[..., None]).view(np.int32)
        depth = int(self.level[cell >= 0].max())
        return MeshClassifier(
            low.astype(np.float32), high.astype(np.float32), tree, words, self.coarse, depth, kind
        )


@dataclasses.dataclass(frozen=True)
class MergedCells:
    """The cells of a tree after merging.

    Attributes:
        reached: whether a node is reached from the roots through boxes of several labels.
        cell: the cell that a node belongs to; -1 for nodes of several labels or not reached.
        boxes: the node of each cell that contains its query.
        queries: the queried node of each cell.
    """

    reached: Bool[np.ndarray, " nodes"]
    cell: Int[np.ndarray, " nodes"]
    boxes: Int[np.ndarray, " cells"]
    queries: Int[np.ndarray, " cells"]
