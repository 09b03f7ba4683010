"""A training set from any classifier: its decision boundaries on a mesh, resolved to the jnd.

The jnd (just-noticeable difference) is the smallest difference of inputs that matters. Only centres
of the smallest cells are queried: first one in each cell of a coarse grid; then the segment between
neighbours of different labels is bisected until the boundary is found; then it is followed from
cell to cell. A boundary of d - 1 dimensions costs little more than the cells on its two sides,
about `2 area / jnd^(d-1)` queries, where a grid costs `volume / jnd^d`. Between boundaries, boxes
take the label of their neighbours, and are merged where possible.

The guarantee, for a fixed jnd and no budget. Query the classifier at every centre of the grid of
smallest cells, and call cells that are joined by faces and have one label a piece. Each piece is in
the mesh exactly, cell for cell, or missed entirely; and a piece that contains a box of the size of
a coarse cell, wherever it lies, is never missed. If all pieces do, the mesh is the grid.

Proof: such a box contains a cell that was queried at first; and where the mesh changes its label,
both sides were queried, so that no path through a piece can leave the part that the mesh has of it.

Sources: adaptive refinement, Berger and Colella 1989 (doi:10.1016/0021-9991(89)90035-1); following
a surface from cell to cell, Wyvill et al. 1986 (doi:10.1007/BF01900346).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from jaxcompress.checkpoint.records import record
from jaxcompress.checks import array, checked, whole
from jaxcompress.classifiers.boundaries import survey
from jaxcompress.classifiers.mesh import FINEST, Grid, MeshClassifier
from jaxcompress.classifiers.queries import (
    CLASSIFY,
    SOFT,
    Classify,
    Jnd,
    LabelledPoints,
    Oracle,
    PointFunction,
    check_box,
    check_budget,
    jnd_function,
    jnd_kind,
    probabilities,
)
from jaxcompress.classifiers.tree import Tree

CALLER = "realize"
STAGE = 5
"""Levels between those at which boundaries are followed: 2^5 cells lie between the places where
they are found."""


@record
@dataclasses.dataclass(frozen=True, kw_only=True)
class Realized(LabelledPoints):
    """A classifier on a box, as a training set.

    A cell is a box around a queried point, the query nearest to the middle of the box, and the
    boxes beside it that have their label from it. The weights are the volumes of the cells, whose
    sum is the domain's. It is complete if both sides of every boundary were queried, in boxes no
    larger than the jnd.

    Attributes:
        sizes: edge lengths of the boxes that contain the points, float64.
        mesh: the cells as a classifier.
        grid: number of cells of a grid of the smallest cells, before any are merged.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> def right(x):
        ...     return np.int32(x[:, 0] > 0.3)
        >>> box = ([0, 0], [1, 1])
        >>> realized = jc.classifiers.realize(right, box, jnd=1/64, progress=False)
        >>> realized.bounds, float(realized.weights.sum())
        ({'training points': None, 'cells': 200}, 1.0)
    """

    sizes: Float[np.ndarray, "cells d"]
    mesh: MeshClassifier
    grid: int

    @property
    def bounds(self) -> dict[str, int | None]:
        """Upper bounds on the number of cells that a mesh of this classifier needs."""
        return {"training points": self.training_points, "cells": len(self.points)}

    def __repr__(self) -> str:
        cells, classes, given = len(self.points), len(self.classes), self.training_points
        share = 100 * self.queries / self.grid
        return (
            f"Realized({self.points.shape[1]} dimensions, {cells:,} cells, "
            f"{classes:,} class{'es' * (classes != 1)}; "
            f"{self.queries:,} queries, {share:.3g} % of a grid"
            f"{'' if self.complete else ', ended by the budget'}; upper bounds: {cells:,} cells"
            f"{'' if given is None else f', {given:,} training points'})"
        )


@checked(
    classify=CLASSIFY,
    jnd=jnd_kind("a number, one for each axis, or a function", (0, 1)),
    soft=SOFT,
    training_points=whole(),
    batch_size=whole(),
)
def realize(
    classify: Classify,
    domain: tuple[ArrayLike, ArrayLike],
    jnd: Jnd,
    *,
    budget: int | None = None,
    coarse: int | tuple[int, ...] = 8,
    soft: PointFunction | None = None,
    training_points: int | None = None,
    batch_size: int = 4096,
    progress: bool = True,
) -> Realized:
    """Make a training set from a classifier, in 1 to 4 dimensions.

    Args:
        classify: `classify(points (batch_size, d) float32) -> labels`, integers (batch_size,) of
            any size, or tuples of integers (batch_size, k). Called on the host, always with
            `batch_size` points (the last one is repeated), so that a jitted function compiles once.
        domain: the box, (low (d,), high (d,)), rounded to float32.
        jnd: the just-noticeable difference of the inputs: a number, one for each dimension, or a
            function `jnd(points (batch_size, d)) -> (batch_size,)` that varies in space, read at
            the centres of boxes. Boundaries are followed in cells whose edges are at most that.
        budget: the most queries: first the coarse grid's, then between its points, then along the
            boundaries.
        coarse: number of cells along each side at first, one or one for each dimension: smaller
            regions can be missed, see the guarantee in the module's docstring.
        soft: `soft(points (batch_size, d)) -> (batch_size, classes)` probabilities, evaluated at
            the final cells only.
        training_points: number of examples the classifier was trained on, for the report.
        batch_size: points a call.
        progress: show a progress bar of queries.

    Returns:
        The training set. A classifier of one class gives the coarse cells.

    Raises:
        ValueError: for a box without volume, more than 4 dimensions, a jnd that is not positive or
            finer than float32, a budget below the coarse grid, labels or probabilities of a wrong
            shape or that are not finite.
        TypeError: for labels that are not integers.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> def disc(x):
        ...     return np.int32(np.hypot(x[:, 0], x[:, 1]) < 0.6)
        >>> box = ([-1, -1], [1, 1])
        >>> jc.classifiers.realize(disc, box, jnd=1/128, training_points=1000, progress=False)
        Realized(2 dimensions, 844 cells, 2 classes; 1,008 queries, 1.54 % of a grid;
        upper bounds: 844 cells, 1,000 training points)
    """
    grid = _grid(domain, coarse)
    _check_budget(budget, grid)
    refinement = _refinement(jnd, grid, batch_size)
    with tqdm(total=budget, desc=CALLER, unit=" queries", disable=not progress, leave=False) as bar:
        oracle = Oracle(CALLER, classify, batch_size, budget, bar)
        tree = Tree(grid.coarse, refinement.depth, refinement.too_large)
        complete = _survey(tree, grid, oracle, refinement)
    merged = tree.merge()
    labels = _as_given(tree.label[merged.queries], oracle)
    mesh = tree.mesh(grid.low, grid.high, merged.reached, merged.cell, labels)
    _, sizes, cells = mesh.boxes()
    points = grid.centres(tree.position[merged.queries], tree.level[merged.queries, None])
    finest = refinement.depth if refinement.fixed else int(tree.level.max())
    return Realized(
        points=points,
        labels=labels,
        weights=np.bincount(cells, sizes.prod(1)),
        sizes=grid.edges(tree.level[merged.boxes, None]),
        soft=probabilities(CALLER, soft, points, batch_size),
        mesh=mesh,
        queries=oracle.queries,
        complete=complete,
        grid=math.prod(side << finest for side in grid.coarse),
        training_points=training_points,
    )


def _as_given(labels: Int[np.ndarray, "n k"], oracle: Oracle) -> Int[np.ndarray, "n ..."]:
    """Labels of the tree, which stores tuples, in the form that the classifier gave."""
    is_single = oracle.label_type is None or len(oracle.label_type) == 1
    return labels[:, 0] if is_single else labels


class _BudgetExhaustedError(Exception):
    """The budget allows no further query."""


def _survey(tree: Tree, grid: Grid, oracle: Oracle, refinement: _Refinement) -> bool:
    """Query along all boundaries, and return whether the budget sufficed."""

    def query(positions: np.ndarray) -> np.ndarray:
        cells = np.unique(tree.cell_at(positions))
        cells = cells[~tree.queried[cells]]
        affordable = cells[: oracle.affordable(len(cells))]
        if len(affordable):
            centres = grid.centres(tree.position[affordable], tree.level[affordable, None])
            tree.record(affordable, oracle.labels(centres))
        if len(affordable) < len(cells):
            raise _BudgetExhaustedError
        return cells

    depth = refinement.depth
    # every STAGE levels, counted from the finest, and none at the coarse grid itself
    stages = range((depth - 1) % STAGE + 1, depth, STAGE) if refinement.fixed else ()
    try:
        survey(tree, query, stages)
    except _BudgetExhaustedError:
        tree.propagate_labels()  # a survey that ends early leaves boxes without a label
        return False
    return True


@dataclasses.dataclass(frozen=True)
class _Refinement:
    """How far boxes are halved.

    Attributes:
        too_large: `too_large(tree, nodes) -> (n,)`: which boxes are larger than the jnd.
        depth: the most halvings of a coarse cell.
        fixed: whether all cells are halved that often.
    """

    too_large: Callable[[Tree, np.ndarray], np.ndarray]
    depth: int
    fixed: bool


def _refinement(jnd: Jnd, grid: Grid, batch_size: int) -> _Refinement:
    """How far boxes are halved for a jnd, a constant or a function."""
    finest = _finest_level(grid)
    if callable(jnd):
        too_large = _varying_size(jnd, grid, finest, batch_size)
        return _Refinement(too_large, max(finest, 0), fixed=False)
    wanted = np.asarray(jnd, np.float64)
    if wanted.shape not in ((), grid.low.shape):
        raise ValueError(
            f"{CALLER}: jnd has the shape {wanted.shape}, expected a number, {grid.low.shape} or "
            "a function of points"
        )
    # the upper limit only keeps the logarithm finite: such levels are refused below
    ratios = np.clip(grid.edges(0) / wanted, 1, 2.0**40)
    levels = math.ceil(np.log2(ratios).max() - 1e-6)
    _check_level(levels, finest, grid)
    return _Refinement(lambda tree, nodes: tree.level[nodes] < levels, levels, fixed=True)


def _varying_size(
    jnd: PointFunction, grid: Grid, finest: int, batch_size: int
) -> Callable[[Tree, np.ndarray], np.ndarray]:
    """Which boxes are larger than a jnd that varies in space, at their centres."""
    differences = jnd_function(CALLER, jnd, batch_size)

    def too_large(tree: Tree, nodes: np.ndarray) -> np.ndarray:
        level = tree.level[nodes, None]
        centres = grid.centres(tree.position[nodes], level)
        large = grid.edges(level).max(1) > differences(centres) * (1 + 1e-6)
        if large.any():
            _check_level(int(level[large].max()) + 1, finest, grid)
        return large

    return too_large


def _finest_level(grid: Grid) -> int:
    """The deepest level whose cells float32 resolves."""
    largest = np.maximum(np.abs(grid.low), np.abs(grid.high)).astype(np.float32)
    resolution = 4 * np.spacing(largest).astype(np.float64)
    resolution = np.maximum(resolution, (grid.high - grid.low) / FINEST)
    return int(np.floor(np.log2(grid.edges(0) / resolution).min() + 1e-9))


def _check_level(level: int, finest: int, grid: Grid) -> None:
    if level > finest:
        raise ValueError(
            f"{CALLER}: the jnd needs cells of {grid.edges(level).tolist()}, finer than float32 "
            "resolves here: raise it, or scale the box"
        )


def _check_budget(budget: int | None, grid: Grid) -> None:
    check_budget(CALLER, budget)
    count = math.prod(grid.coarse)
    if budget is not None and budget < count:
        raise ValueError(
            f"{CALLER}: the coarse grid alone has {count} cells, more than the budget of {budget}: "
            f"lower coarse={grid.coarse}"
        )


def _grid(domain: tuple[ArrayLike, ArrayLike], coarse: int | tuple[int, ...]) -> Grid:
    """The box, with corners that are float32 numbers, and its coarse cells."""
    low, high = check_box(CALLER, domain, dtype=np.float32)
    if len(low) > 4:
        raise ValueError(
            f"{CALLER}: a mesh has at most 4 dimensions, got {len(low)}: follow points instead "
            "with jc.classifiers.realize_along, or realize a few principal components"
        )
    sides = array(f"{CALLER}: coarse", coarse, (0, 1), what="whole numbers")
    sides = np.broadcast_to(sides, low.shape) if sides.ndim == 0 else sides
    if sides.shape != low.shape or sides.dtype.kind not in "iu" or (sides < 1).any():
        raise ValueError(
            f"{CALLER}: coarse must be a whole number from 1 on, or one for each of {len(low)} "
            f"dimensions, got {coarse}"
        )
    return Grid(low, high, tuple(int(side) for side in sides))
