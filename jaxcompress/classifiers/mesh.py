"""A mesh of boxes as a classifier: a dyadic tree and its look-up.

The roots form a coarse grid; a box is a leaf, or halved along every axis into 2^d children stored
one after the other. A point's position on the finest grid is one integer an axis, whose bits select
the child level by level: `node = first[node] + bits`. A look-up costs one gather a level, a mesh
one int32 a node.

Source: trees of boxes in adaptive meshes, Samet 1984 (doi:10.1145/356924.356930).
"""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int

from jaxcompress.checkpoint.records import record
from jaxcompress.checks import array

FINEST = 2**20
"""The most cells along an axis: about the resolution of float32."""

KINDS = ("int32", "int64", "uint64")
"""Dtypes of labels."""

AnyArray = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Grid:
    """A box divided into coarse cells, each of which is halved level by level.

    Attributes:
        low: lower corner of the box, float64.
        high: upper corner of the box, float64.
        coarse: number of coarse cells along each axis.
    """

    low: Float[np.ndarray, " d"]
    high: Float[np.ndarray, " d"]
    coarse: tuple[int, ...]

    def edges(self, level: int | np.ndarray) -> Float[np.ndarray, "... d"]:
        """The edge lengths of a box at a level, (d,), or (n, d) at levels (n, 1)."""
        return (self.high - self.low) / (np.asarray(self.coarse) << level)

    def centres(
        self, position: Int[np.ndarray, "n d"], level: int | np.ndarray
    ) -> Float[np.ndarray, "n d"]:
        """The centres of boxes at a level, or at levels (n, 1), in float32."""
        return (self.low + (position + 0.5) * self.edges(level)).astype(np.float32)


@record
@dataclasses.dataclass(frozen=True, eq=False)
class MeshClassifier:
    """A classifier that looks up the label of the cell a point lies in.

    A pytree, so that it passes through `jax.jit`; made by `jc.classifiers.realize`. Points outside
    of the box are clamped to its faces. A cell includes its lower faces, not its upper ones.
    Outside of jit it runs in numpy on the host, without compilation, with the same cells.

    Attributes:
        low: lower corner of the box.
        high: upper corner of the box.
        tree: int32, the roots first: the index of a node's first child, or `-1 - cell`, where a
            cell is one box or several.
        words: int32: the labels, in words of 32 bits.
        coarse: number of roots along each axis.
        depth: number of times the smallest cells are halved.
        kind: dtype of the labels: "int32" where all fit, else "int64" or "uint64".

    Example:
        >>> import jax, numpy as np, jaxcompress as jc
        >>> def right(x):
        ...     return np.int32(x[:, 0] > 0.3)
        >>> box = ([0, 0], [1, 1])
        >>> realized = jc.classifiers.realize(right, box, 1 / 64, progress=False)
        >>> jax.jit(realized.mesh)(np.float32([[0.2, 0.5], [0.4, 0.5], [7.0, 0.5]])).tolist()
        [0, 1, 1]
    """

    low: Float[AnyArray, " d"]
    high: Float[AnyArray, " d"]
    tree: Int[AnyArray, " nodes"]
    words: Int[AnyArray, "cells ..."]
    coarse: tuple[int, ...]
    depth: int
    kind: str

    def cell(self, points: Float[AnyArray, "... d"]) -> Int[AnyArray, " ..."]:
        """The index of each point's cell in `Realized.points`; runs in jit for labels of any size.

        Args:
            points: in the units of the box.

        Returns:
            int32.

        Raises:
            ValueError: for points of another dimension.
        """
        if np.ndim(points) < 1 or np.shape(points)[-1] != len(self.coarse):
            raise ValueError(
                f"MeshClassifier: expected points (..., {len(self.coarse)}), got {np.shape(points)}"
            )
        xp = jnp if isinstance(points, Tracer) or isinstance(self.tree, Tracer) else np
        tree, low, high = (xp.asarray(leaf) for leaf in (self.tree, self.low, self.high))
        shape = (*[1] * (np.ndim(points) - 1), -1)
        low, high = low.reshape(shape), high.reshape(shape)
        sides = (np.asarray(self.coarse) << self.depth).reshape(shape)
        # a product and no quotient, which XLA rounds differently from numpy for constants
        per_unit = sides.astype(np.float32) / (high - low)
        position = xp.floor((xp.asarray(points, np.float32) - low) * per_unit)
        # fmax and fmin clamp NaN to the lower end
        position = xp.fmin(xp.fmax(position, 0), (sides - 1).astype(np.float32)).astype(np.int32)
        return -1 - tree[descend(tree, position, self.depth, self.coarse, xp)]

    def __call__(self, points: Float[AnyArray, "... d"]) -> Int[AnyArray, " ..."]:
        """The label of each point.

        Args:
            points: in the units of the box.

        Returns:
            (...) or (..., k), int32 where all labels fit.

        Raises:
            ValueError: for points of another dimension.
            TypeError: for labels of 64 bits inside jit, without `jax_enable_x64`.
        """
        if not isinstance(points, Tracer):
            array("MeshClassifier: points", points, finite=False)
        cell = self.cell(points)
        words = (jnp if isinstance(cell, Tracer) else np).asarray(self.words)[cell]
        if self.kind == "int32":
            return words[..., 0]
        if not isinstance(words, Tracer):
            return np.ascontiguousarray(words).view(self.kind)[..., 0]
        if not jax.config.read("jax_enable_x64"):
            raise TypeError(
                f"MeshClassifier: these labels are {self.kind}, which JAX has only with "
                "jax_enable_x64; inside jit use mesh.cell(points), and look the labels up outside: "
                "realized.labels[cell]"
            )
        return jax.lax.bitcast_convert_type(words, self.kind)

    def boxes(
        self,
    ) -> tuple[
        Float[np.ndarray, "boxes d"], Float[np.ndarray, "boxes d"], Int[np.ndarray, " boxes"]
    ]:
        """The leaves, the largest first: their centres, edge lengths and cells.

        Returns:
            float32, float64 and int32.
        """
        tree = np.asarray(self.tree)
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        grid = Grid(low, high, self.coarse)
        centres, sizes, cells = [], [], []
        position = roots(self.coarse)
        nodes = np.arange(len(position))
        for level in range(self.depth + 1):
            leaf = tree[nodes] < 0
            cells.append(-1 - tree[nodes[leaf]])
            sizes.append(np.broadcast_to(grid.edges(level), position[leaf].shape))
            centres.append(grid.centres(position[leaf], level))
            position = child_positions(position[~leaf])
            nodes = children_of(tree[nodes[~leaf]], len(low)).ravel()
        return np.concatenate(centres), np.concatenate(sizes), np.concatenate(cells)

    def check_sizes(self) -> None:
        """Refuse a tree that is none: every node but the roots is the child of one other.

        Raises:
            ValueError: for nodes or cells out of range, and sizes that do not fit each other.
        """
        tree, words, d = np.asarray(self.tree), np.asarray(self.words), len(self.coarse)
        fits = d > 0 and len(self.low) == d and min(self.coarse) >= 1 and self.depth >= 0
        if not fits or max(self.coarse) << min(self.depth, 64) > FINEST:
            raise ValueError(f"coarse is {self.coarse} and depth {self.depth}, no grid of the box")
        width = 1 if self.kind == "int32" else 2
        if self.kind not in KINDS or words.ndim not in (2, 3) or words.shape[-1] != width:
            raise ValueError(f"kind is {self.kind!r} for words of shape {words.shape}")
        if not (np.isfinite(self.low).all() and (self.low < self.high).all()):
            raise ValueError("low is not below high")
        count = math.prod(self.coarse)
        nodes, seen = np.arange(min(count, len(tree))), np.zeros(len(tree), bool)
        for level in range(self.depth + 1):
            if nodes.size and (nodes.max() >= len(tree) or seen[nodes].any()):
                raise ValueError("tree has nodes that are nowhere, or below two others")
            seen[nodes] = True
            inner = nodes[tree[nodes] >= 0]
            if (len(inner) and level == self.depth) or len(inner) << d > len(tree):
                raise ValueError(f"tree is deeper than {self.depth} halvings")
            nodes = children_of(tree[inner].astype(np.int64), d).ravel()
            if len(np.unique(nodes)) < len(nodes):
                raise ValueError("tree has nodes that are below two others")
        if len(tree) < count or not seen.all() or (-1 - tree[tree < 0] >= len(words)).any():
            raise ValueError("tree has nodes or cells out of range")

    def __repr__(self) -> str:
        grid = " x ".join(f"{side << self.depth:,}" for side in self.coarse)
        return f"MeshClassifier({len(self.words):,} cells of a grid of {grid})"


jax.tree_util.register_dataclass(
    MeshClassifier, ["low", "high", "tree", "words"], ["coarse", "depth", "kind"]
)


def descend(
    first: AnyArray,
    position: AnyArray,
    level: int,
    coarse: tuple[int, ...],
    xp: ModuleType = np,
) -> AnyArray:
    """The node at a level, or the leaf above it, that contains each position.

    Args:
        first: index of each node's first child, negative for leaves.
        position: (..., d), on the grid of that level.
        level: number of halvings.
        coarse: number of roots along each axis.
        xp: numpy or jax.numpy.
    """
    # one array an axis: sums along a short axis are slow in numpy
    axes = [position[..., axis] for axis in range(len(coarse))]
    node = axes[0] >> level
    for side, along in zip(coarse[1:], axes[1:], strict=True):
        node = node * side + (along >> level)
    for shift in reversed(range(level)):
        below = first[node]
        # the lowest bit of the child's index is the half along the first axis
        child = sum(((along >> shift) & 1) << axis for axis, along in enumerate(axes))
        node = xp.where(below >= 0, below + child, node)
    return node


def roots(coarse: tuple[int, ...]) -> Int[np.ndarray, "roots d"]:
    """The positions of the coarse grid, row by row."""
    return np.indices(coarse, np.int32).reshape(len(coarse), -1).T


def octants(d: int) -> Int[np.ndarray, "children d"]:
    """The half, 0 or 1, of each of the 2^d children along each axis, in storage order."""
    return (np.arange(2**d)[:, None] >> np.arange(d) & 1).astype(np.int32)


def child_positions(position: Int[np.ndarray, "n d"]) -> Int[np.ndarray, "children d"]:
    """The positions of all children on the next level's grid."""
    return (2 * position[:, None] + octants(position.shape[1])).reshape(-1, position.shape[1])


def children_of(first: Int[np.ndarray, " n"], d: int) -> Int[np.ndarray, "n children"]:
    """The indices of the 2^d children that start at `first`."""
    return first[:, None] + np.arange(2**d, dtype=np.int32)
