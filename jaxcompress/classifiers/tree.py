"""A mesh that grows on the host while a classifier is asked: boxes are halved where questions go, and the answers spread.

A question belongs to a smallest cell: a box whose edges are no longer than the just-noticeable difference. Boxes are halved only
on the way to such cells. Places are given on one lattice, that of the deepest level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from jaxcompress.classifiers.mesh import MeshClassifier, descended, family, halved, roots


class Tree:
    """Nodes are appended, never moved.

    Attributes:
        coarse, depth: how many roots along each axis, and how often they are halved down to the lattice.
        too_large: `too_large(tree, nodes) -> (n,)`: which boxes are larger than the just-noticeable difference.
        first: (nodes,), the first child, or -1.
        place: (nodes, d), on the grid of the node's level.
        level: (nodes,).
        smallest: (nodes,), whether the box is known to be small enough.
        asked: (nodes,), whether the classifier was asked at the centre; only smallest cells are.
        label: (nodes, k), the answer, or after `spread` that of `source`.
        source: (nodes,), the asked cell that has given the label, or -1.
    """

    first: np.ndarray
    place: np.ndarray
    level: np.ndarray
    smallest: np.ndarray
    asked: np.ndarray
    label: np.ndarray
    source: np.ndarray

    def __init__(
        self,
        coarse: tuple[int, ...],
        depth: int,
        too_large: Callable[[Tree, np.ndarray], np.ndarray],
    ) -> None:
        self.coarse, self.d, self.depth, self.too_large = coarse, len(coarse), depth, too_large
        self._buffers: dict[str, np.ndarray] = {}
        place = roots(coarse)
        self._append(place, np.zeros(len(place), np.int8), np.zeros((len(place), 0), np.int32))

    def _append(self, place: np.ndarray, level: np.ndarray, label: np.ndarray) -> None:
        """New whole nodes. Buffers double, so that they are seldom copied."""
        count, nothing, no = (
            len(place),
            np.full(len(place), -1, np.int32),
            np.zeros(len(place), bool),
        )
        new = dict(
            place=place,
            level=level,
            label=label,
            first=nothing,
            source=nothing,
            smallest=no,
            asked=no,
        )
        for name, rows in new.items():
            old = getattr(self, name, rows[:0])
            buffer, end = self._buffers.get(name, old), len(old) + count
            if len(buffer) < end:
                buffer = self._buffers[name] = np.empty((2 * end, *old.shape[1:]), old.dtype)
                buffer[: len(old)] = old
            buffer[len(old) : end] = rows
            setattr(self, name, buffer[:end])

    def split(self, nodes: np.ndarray) -> None:
        """Halve boxes along every axis."""
        count = len(nodes) * 2**self.d
        self.first[nodes] = len(self.first) + np.arange(0, count, 2**self.d, dtype=np.int32)
        level = np.repeat(self.level[nodes] + np.int8(1), 2**self.d)
        self._append(
            halved(self.place[nodes]),
            level,
            np.zeros((count, self.label.shape[1]), self.label.dtype),
        )

    def answer(self, nodes: np.ndarray, labels: np.ndarray) -> None:
        """Keep what the classifier says of smallest cells."""
        labels = labels.reshape(len(nodes), -1)
        if not self.label.shape[1]:
            self._buffers["label"] = self.label = np.zeros(
                (len(self.first), labels.shape[1]), labels.dtype
            )
        self.label[nodes], self.source[nodes], self.asked[nodes] = labels, nodes, True

    def box(self, places: np.ndarray) -> np.ndarray:
        """The whole boxes at places of the lattice; -1 outside."""
        inside = ((places >= 0) & (places < np.asarray(self.coarse) << self.depth)).all(-1)
        found = descended(
            self.first, np.where(np.expand_dims(inside, -1), places, 0), self.depth, self.coarse
        )
        return np.where(inside, found, -1)

    def cell(self, places: np.ndarray) -> np.ndarray:
        """The smallest cells at places inside of the box; what is larger is halved."""
        while True:
            nodes = descended(self.first, places, self.depth, self.coarse)
            new = np.unique(nodes[~self.smallest[nodes]])
            if not len(new):
                return nodes
            large = self.too_large(self, new)
            self.smallest[new[~large]] = True
            self.split(new[large])

    def corner(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lowest places (n, d) of boxes, and their edges (n, 1)."""
        shift = (self.depth - self.level[nodes].astype(np.int32))[:, None]
        return self.place[nodes] << shift, np.int32(1) << shift

    def middle(self, nodes: np.ndarray) -> np.ndarray:
        """The places (n, d) in the middle of boxes."""
        corner, size = self.corner(nodes)
        return corner + size // 2

    def by(self, nodes: np.ndarray, *faces: tuple[int, int, int]) -> np.ndarray:
        """Places (n, d) by the middle of a face of each box, or by the edge between two.

        Args:
            nodes: (n,).
            faces: (axis, side, out): of the lower (0) or upper (1) face, the place within the box (0) or beyond the face (1).
        """
        corner, size = self.corner(nodes)
        place = corner + size // 2
        for axis, side, out in faces:
            place[:, axis] = corner[:, axis] + (size[:, 0] - 1 + out if side else -out)
        return place

    def faces(self) -> Iterator[tuple[int, int]]:
        """Each axis with its lower and its upper side."""
        return np.ndindex(self.d, 2)

    def across(self, nodes: np.ndarray) -> np.ndarray:
        """(n, 2d): the boxes beyond the middles of all faces, or -1; of two that share a face the smaller one has the other."""
        return np.stack([self.box(self.by(nodes, (*face, 1))) for face in self.faces()], 1)

    def unlike(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether nodes have different labels."""
        return (self.label[one] != self.label[other]).any(-1)

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Give each box the label of the asked cell that comes to it first, box by box through faces.

        Returns:
            The whole boxes (n,), and those across their faces (n, 2d).
        """
        whole = np.flatnonzero(self.first < 0).astype(np.int32)
        there = self.across(whole)
        pairs = np.repeat(whole, 2 * self.d)[there.ravel() >= 0], there[there >= 0]
        self.source[~self.asked] = -1
        from_, to = np.concatenate(pairs), np.concatenate(pairs[::-1])
        while True:
            waits = self.source[to] < 0
            from_, to = from_[waits], to[waits]
            ready = self.source[from_] >= 0
            if not ready.any():
                break
            self.source[to[ready]] = self.source[from_[ready]]
        self.label[whole] = self.label[self.source[whole]]
        return whole, there

    def joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Join families of one label, after `spread`.

        Returns:
            Which nodes are reached from the roots, by way of boxes of several labels; the cells (elsewhere -1) that the whole ones
            of them belong to; the box of each cell that holds its question; and the question, an asked node. A box without one of
            its own belongs to the cell of its label's source.
        """
        one, question = self.first < 0, np.where(self.asked, np.arange(len(self.first)), -1)
        middle = (self.place + 0.5) * 0.5 ** self.level[:, None]
        inner = [
            np.flatnonzero((self.first >= 0) & (self.level == level))
            for level in range(int(self.level.max()))
        ]
        for nodes in reversed(inner):
            children = family(self.first[nodes], self.d)
            self.label[nodes], self.source[nodes] = (
                self.label[children[:, 0]],
                self.source[children[:, 0]],
            )
            one[nodes] = (one[children] & ~self.unlike(children, nodes[:, None])).all(1)
            asked = question[children]  # of these the one next to the middle
            away = np.where(
                asked < 0, np.inf, ((middle[asked] - middle[nodes][:, None]) ** 2).sum(2)
            )
            question[nodes] = asked[np.arange(len(nodes)), away.argmin(1)]
        reached = self.level == 0
        for nodes in inner:
            reached[family(self.first[nodes], self.d)] = (reached[nodes] & ~one[nodes])[:, None]
        kept = one & reached
        own = kept & (question >= 0)
        cell = np.where(own, np.cumsum(own) - 1, -1).astype(np.int32)
        others = np.flatnonzero(kept & ~own)
        place = self.corner(self.source[others])[0]
        cell[others] = cell[
            descended(np.where(kept, -1, self.first), place, self.depth, self.coarse)
        ]
        return reached, cell, np.flatnonzero(own), question[own]

    def mesh(
        self,
        low: np.ndarray,
        high: np.ndarray,
        reached: np.ndarray,
        cell: np.ndarray,
        labels: np.ndarray,
    ) -> MeshClassifier:
        """The nodes that are reached as a classifier, by their cells and these cells' labels."""
        index = np.cumsum(reached, dtype=np.int32) - 1
        tree = np.where(cell >= 0, -1 - cell, index[self.first])[reached].astype(np.int32)
        limit = np.iinfo(np.int32)
        if limit.min <= labels.min() and labels.max() <= limit.max:
            kind = "int32"
        else:
            kind = "uint64" if labels.dtype == np.uint64 else "int64"
        words = np.ascontiguousarray(labels.astype(kind)[..., None]).view(np.int32)
        depth = int(self.level[cell >= 0].max())
        return MeshClassifier(
            low.astype(np.float32), high.astype(np.float32), tree, words, self.coarse, depth, kind
        )
