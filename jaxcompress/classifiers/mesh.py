"""A mesh of boxes as a classifier: the dyadic tree and its look-up.

A coarse grid of roots; each box is whole, or halved along every axis into 2^d children that lie one after the other. A point's
place on the finest grid is one integer an axis, whose bits choose the child level by level: `node = first[node] + bits`. A look-up
costs one gather a level, a mesh one int32 a node.

Source: trees of boxes in adaptive meshes, Samet 1984 (doi:10.1145/356924.356930).
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

    A pytree, so that it goes through `jax.jit`; made by `jc.classifiers.realize`. Points outside of the box are clamped to its border. A cell
    has its lower faces, not its upper ones. Outside of jit it is numpy on the host, with no program to compile for each mesh, and
    gives the same cells.

    Attributes:
        low, high: (d,), the box.
        tree: (nodes,), int32; the roots come first. The place of the first child, or `-1 - cell`: a cell is one box or several.
        words: (cells, ..., 1 or 2), int32: the labels, in words of 32 bits.
        coarse: how many roots along each axis.
        depth: how often the smallest cells are halved.
        kind: the labels' type: int32 where all fit, else int64 or uint64.

    Example:
        >>> import jax, numpy as np, jaxcompress as jc
        >>> found = jc.classifiers.realize(lambda x: np.int32(x[:, 0] > 0.3), ([0, 0], [1, 1]), 1 / 64, progress=False)
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
            raise ValueError(
                f"MeshClassifier: expected points (..., {len(self.coarse)}), got {np.shape(points)}"
            )
        xp = jnp if isinstance(points, Tracer) or isinstance(self.tree, Tracer) else np
        tree, low, high = (xp.asarray(leaf) for leaf in (self.tree, self.low, self.high))
        sides = np.asarray(self.coarse) << self.depth
        # a difference and a product: XLA could round a quotient by a constant otherwise than numpy
        place = xp.floor(
            (xp.asarray(points, np.float32) - low) * (sides.astype(np.float32) / (high - low))
        )
        place = xp.fmin(xp.fmax(place, 0), (sides - 1).astype(np.float32)).astype(
            np.int32
        )  # NaN is taken for the lower end
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

    def boxes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The boxes that are whole, the largest first: their centres, their edges and the cells that they belong to.

        Returns:
            (boxes, d) in float32, (boxes, d) in float64 and (boxes,) in int32.
        """
        tree, low, high = (
            np.asarray(self.tree),
            np.asarray(self.low, np.float64),
            np.asarray(self.high, np.float64),
        )
        centres, sizes, cells = [], [], []
        place = roots(self.coarse)
        nodes = np.arange(len(place))
        for level in range(self.depth + 1):
            whole = tree[nodes] < 0
            cells.append(-1 - tree[nodes[whole]])
            sizes.append(
                np.broadcast_to(edges(low, high, self.coarse, level), (len(cells[-1]), len(low)))
            )
            centres.append(centre(low, high, self.coarse, place[whole], level))
            place, nodes = halved(place[~whole]), family(tree[nodes[~whole]], len(low)).ravel()
        return np.concatenate(centres), np.concatenate(sizes), np.concatenate(cells)

    def __repr__(self) -> str:
        grid = " x ".join(f"{side << self.depth:,}" for side in self.coarse)
        return f"MeshClassifier({len(self.words):,} cells of a grid of {grid})"


jax.tree_util.register_dataclass(
    MeshClassifier, ["low", "high", "tree", "words"], ["coarse", "depth", "kind"]
)


def descended(first: Any, place: Any, level: int, coarse: tuple[int, ...], xp: Any = np) -> Any:
    """The node at a level, or the whole cell above it, that holds each place (..., d) on that level's grid."""
    axes = [
        place[..., axis] for axis in range(len(coarse))
    ]  # sums along a short axis are slow in numpy
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


def edges(
    low: np.ndarray, high: np.ndarray, coarse: tuple[int, ...], level: int | np.ndarray
) -> np.ndarray:
    """(d,): the edges of a box at a level, or (n, d) at levels (n, 1)."""
    return (high - low) / (np.asarray(coarse) << level)


def centre(
    low: np.ndarray,
    high: np.ndarray,
    coarse: tuple[int, ...],
    place: np.ndarray,
    level: int | np.ndarray,
) -> np.ndarray:
    """(n, d), float32: the centres of boxes at a level, or at levels (n, 1)."""
    return (low + (place + 0.5) * edges(low, high, coarse, level)).astype(np.float32)
