"""A new training set from any classifier: its decision borders on a mesh, down to the just-noticeable difference of the inputs.

Only centres of smallest cells are asked. First one in each cell of a coarse grid; then the way between neighbours of different
labels is halved until the border between them is found; then it is followed from cell to cell. So a border of d - 1 dimensions
costs little more than the cells on its two sides, about `2 area / jnd^(d-1)` questions, where a grid costs `volume / jnd^d`. What
lies between borders has the label of its neighbours, in boxes as large as can be.

The guarantee, for a fixed jnd and no budget. Ask the classifier at every centre of the grid of smallest cells, and call cells that
are joined by faces and have one label a piece. Each piece is in the mesh exactly, cell for cell, or missed as a whole; and a piece
that holds a box of the size of a coarse cell, wherever it lies, is never missed. If all pieces do, the mesh is the grid.

Why: such a box holds a cell that was asked at first; and where the mesh changes its label, both sides were asked, so that no path
through a piece can leave what the mesh has of it.

Sources: adaptive refinement, Berger and Colella 1989 (doi:10.1016/0021-9991(89)90035-1); following a border from cell to cell,
Wyvill et al. 1986 (doi:10.1007/BF01900346).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from jaxcompress.checkpoint import record
from jaxcompress.classifiers.boundaries import survey
from jaxcompress.classifiers.mesh import FINEST, MeshClassifier, centre, edges
from jaxcompress.classifiers.queries import (
    Asker,
    Labelled,
    check_batch_size,
    check_budget,
    jnd_at,
    probabilities,
)
from jaxcompress.classifiers.tree import Tree

STAGE = 5
"""Levels between those at which borders are followed: 2^5 cells lie between the places where they are found."""


@record
@dataclasses.dataclass(frozen=True, kw_only=True)
class Realized(Labelled):
    """What a classifier does on a box, as a training set.

    A cell is a box around a point that was asked, the one of its questions next to the box's middle, and the boxes beside it that
    have their label from it. The weights are the cells' volumes, whose sum is the domain's. It is complete where every border was
    asked on both sides, in boxes no larger than the jnd.

    Attributes:
        sizes: (cells, d), float64: the edges of the boxes that hold the points.
        mesh: the cells as a classifier.
        grid: how many cells a grid of the smallest cells has, before any are joined.
    """

    sizes: np.ndarray
    mesh: MeshClassifier
    grid: int

    @property
    def bounds(self) -> dict[str, int | None]:
        """Upper bounds on what a mesh of this function needs: one cell an example, and what the classifier's results need."""
        return {"training points": self.training_points, "cells": len(self.points)}

    def __repr__(self) -> str:
        classes, given = len(self.classes), self.training_points
        return (
            f"Realized({self.points.shape[1]} dimensions, {len(self.points):,} cells, {classes:,} class{'es' * (classes != 1)}; "
            f"{self.queries:,} queries, {100 * self.queries / self.grid:.3g} % of a grid"
            f"{'' if self.complete else ', ended by the budget'}; upper bounds: {len(self.points):,} cells"
            f"{'' if given is None else f', {given:,} training points'})"
        )


def realize(
    classify: Callable[[np.ndarray], Any],
    domain: tuple[Any, Any],
    jnd: Any,
    *,
    budget: int | None = None,
    coarse: int | tuple[int, ...] = 8,
    soft: Callable[[np.ndarray], Any] | None = None,
    training_points: int | None = None,
    batch_size: int = 4096,
    progress: bool = True,
) -> Realized:
    """Make a training set from a classifier, in 1 to 4 dimensions.

    Args:
        classify: `classify(points (batch_size, d) float32) -> labels`, integers (batch_size,) of any size, or tuples of integers
            (batch_size, k). Called on the host, always with `batch_size` points (the last one is repeated), so that a jitted
            function compiles once.
        domain: the box, (low (d,), high (d,)), rounded to float32.
        jnd: the just-noticeable difference of the inputs: a number, one for each dimension, or a function
            `jnd(points (batch_size, d)) -> (batch_size,)` that varies in space, which is read at the boxes' centres. Borders are
            followed in cells whose edges are no longer than that.
        budget: at most so many questions: first the coarse grid's, then between its points, then along the borders.
        coarse: how many cells each side has at first, one number or one for each dimension: what is smaller can be missed, see the
            guarantee above.
        soft: `soft(points (batch_size, d)) -> (batch_size, classes)` probabilities, asked at the kept cells only.
        training_points: how many examples the classifier was trained on, for the report.
        batch_size: points a call.
        progress: show a progress bar of questions.

    Returns:
        The training set. A classifier of one class gives the coarse cells.

    Raises:
        ValueError: for a box without volume, more than 4 dimensions, a jnd that is not positive or finer than float32, a budget
            below the coarse grid, labels or probabilities of a wrong shape or that are not finite.
        TypeError: for labels that are not integers.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> disc = lambda x: np.int32(np.hypot(x[:, 0], x[:, 1]) < 0.6)
        >>> jc.classifiers.realize(disc, ([-1, -1], [1, 1]), jnd=1/128, training_points=1000, progress=False)
        Realized(2 dimensions, 844 cells, 2 classes; 1,008 queries, 1.54 % of a grid;
        upper bounds: 844 cells, 1,000 training points)
    """
    low, high, coarse = _check_box(domain, coarse)
    count = math.prod(coarse)
    check_batch_size("realize", batch_size)
    check_budget("realize", budget)
    if budget is not None and budget < count:
        raise ValueError(
            f"realize: the coarse grid alone has {count} cells, more than the budget of {budget}: lower coarse={coarse}"
        )
    too_large, depth, fixed = _size_check(jnd, low, high, coarse, batch_size)
    with tqdm(
        total=budget, desc="realize", unit=" queries", disable=not progress, leave=False
    ) as bar:
        asker = Asker("realize", classify, batch_size, budget, bar)

        def middle(nodes: np.ndarray) -> np.ndarray:
            return centre(low, high, coarse, tree.place[nodes], tree.level[nodes, None])

        def ask(places: np.ndarray) -> np.ndarray:
            cells = np.unique(tree.cell(places))
            cells = cells[~tree.asked[cells]]
            left = cells[: asker.left(len(cells))]
            if len(left):
                tree.answer(left, asker.labels(middle(left)))
            if len(left) < len(cells):
                raise _BudgetEndsError
            return left

        tree = Tree(coarse, depth, too_large)
        try:
            survey(tree, ask, range((depth - 1) % STAGE + 1, depth, STAGE) if fixed else ())
            complete = True
        except _BudgetEndsError:
            tree.spread()
            complete = False
    reached, cell, boxes, asked = tree.joined()
    labels = tree.label[asked] if asker.kind and len(asker.kind) == 2 else tree.label[asked, 0]
    mesh = tree.mesh(low, high, reached, cell, labels)
    _, sizes, cells = mesh.boxes()
    points = middle(asked)
    return Realized(
        points=points,
        labels=labels,
        weights=np.bincount(cells, sizes.prod(1)),
        sizes=edges(low, high, coarse, tree.level[boxes, None]),
        soft=probabilities("realize", soft, points, batch_size),
        mesh=mesh,
        queries=asker.queries,
        complete=complete,
        grid=math.prod(side << (depth if fixed else int(tree.level.max())) for side in coarse),
        training_points=training_points,
    )


class _BudgetEndsError(Exception):
    """No question is left."""


def _size_check(
    jnd: Any, low: np.ndarray, high: np.ndarray, coarse: tuple[int, ...], batch_size: int
) -> tuple[Callable[[Tree, np.ndarray], np.ndarray], int, bool]:
    """Which boxes are larger than the jnd; how often a coarse cell can be halved, and whether all are halved so often."""
    told_apart = 4 * np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32)).astype(
        np.float64
    )
    told_apart = np.maximum(told_apart, (high - low) / FINEST)
    finest = int(np.floor(np.log2(edges(low, high, coarse, 0) / told_apart).min() + 1e-9))

    def check_level(level: int) -> None:
        if level > finest:
            size = edges(low, high, coarse, level).tolist()
            raise ValueError(
                f"realize: the jnd asks for cells of {size}, finer than float32 tells apart here: raise it, or scale the box"
            )

    if callable(jnd):
        varying = jnd_at("realize", jnd, batch_size)

        def too_large(tree: Tree, nodes: np.ndarray) -> np.ndarray:
            level = tree.level[nodes, None]
            points = centre(low, high, coarse, tree.place[nodes], level)
            large = edges(low, high, coarse, level).max(1) > varying(points) * (1 + 1e-6)
            if large.any():
                check_level(int(level[large].max()) + 1)
            return large

        return too_large, max(finest, 0), False
    wanted = np.asarray(jnd, np.float64)
    if wanted.shape not in ((), low.shape):
        raise ValueError(
            f"realize: jnd has the shape {wanted.shape}, expected a number, {low.shape} or a function of points"
        )
    if not (wanted > 0).all():
        raise ValueError(f"realize: jnd must be positive, got {jnd}")
    levels = math.ceil(
        np.log2(np.clip(edges(low, high, coarse, 0) / wanted, 1, 2.0**40)).max() - 1e-6
    )
    check_level(levels)
    return (lambda tree, nodes: tree.level[nodes] < levels), levels, True


def _check_box(domain: Any, coarse: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The box in float32's numbers, and the coarse cells along each side."""
    try:
        low, high = (np.asarray(np.asarray(side, np.float32), np.float64) for side in domain)
    except (TypeError, ValueError):
        raise ValueError(f"realize: domain must be (low (d,), high (d,)), got {domain}") from None
    if low.ndim != 1 or low.shape != high.shape or not len(low):
        raise ValueError(
            f"realize: domain must be (low (d,), high (d,)), got the shapes {low.shape} and {high.shape}"
        )
    if len(low) > 4:
        raise ValueError(
            f"realize: {len(low)} dimensions are too many for a mesh, which has at most 4: go along points "
            "instead with jc.classifiers.realize_along, or realize a few principal components"
        )
    finite = np.isfinite(low).all() and np.isfinite(high).all()
    if not (finite and (high > low).all() and (high - low <= np.finfo(np.float32).max).all()):
        raise ValueError(
            f"realize: domain needs finite low < high in every dimension, got {low.tolist()} and {high.tolist()}"
        )
    sides = (
        np.broadcast_to(np.asarray(coarse), low.shape)
        if np.ndim(coarse) == 0
        else np.asarray(coarse)
    )
    if sides.shape != low.shape or sides.dtype.kind not in "iu" or (sides < 1).any():
        raise ValueError(
            f"realize: coarse must be a whole number from 1 on, or one for each of {len(low)} dimensions, got {coarse}"
        )
    return low, high, tuple(int(side) for side in sides)
