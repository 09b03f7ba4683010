"""A classifier along given points as a training set, and its coarsening to a few points a class.

The cells of kept points are merged by a weighted k-means of their means, class by class; a merged
cell is represented by its mean, or by its medoid where the mean has another label. Costs the
k-means and one query for each new point.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from jaxcompress.arrays.k_means import means
from jaxcompress.checkpoint.records import record
from jaxcompress.checks import checked as checked_arguments
from jaxcompress.checks import seeds, whole
from jaxcompress.classifiers.bisection import labels_differ
from jaxcompress.classifiers.k_means import k_means
from jaxcompress.classifiers.queries import (
    CLASSIFY,
    SOFT,
    Classify,
    LabelledPoints,
    Oracle,
    PointFunction,
    probabilities,
)


@record
@dataclasses.dataclass(frozen=True, kw_only=True)
class RealizedAlong(LabelledPoints):
    """A classifier along given points, as a training set.

    The weights are the shares of the given points that are nearest to each kept point; points of
    the boundary may have none. It is complete if the ends of every boundary pair are as near as the
    jnd demands, and the edges were checked to the tolerance.

    Attributes:
        given: the given points, without repetitions.
        given_labels: the predictions there.
        given_weights: how often each of them was given, as a share.
        cells: the nearest kept point of each given one, which has the same label.
        boundary: pairs of points on both sides of the decision boundary.
        boundary_labels: the predictions there.
        edges: number of edges of the graph.
        checked: number of edges with equal ends that were queried at the midpoint.
        hidden: number of those with another label there.
        enough: number of given points that suffice to label all of them by 1-NN.
        enough_with_boundary: number of points that also label both sides of every boundary pair.
        bound: the share of edges with equal ends that may still hide another label at the
            midpoint, at the given confidence.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> def ball(x):
        ...     return np.int32((x**2).sum(1) < 9)
        >>> x = np.random.default_rng(0).normal(size=(300, 10))
        >>> realized = jc.classifiers.realize_along(ball, x, jnd=0.1, neighbours=4, progress=False)
        >>> realized.boundary.shape, realized.bound < 0.01
        ((481, 2, 10), True)
    """

    given: Float[np.ndarray, "m d"]
    given_labels: Int[np.ndarray, "m ..."]
    given_weights: Float[np.ndarray, " m"]
    cells: Int[np.ndarray, " m"]
    boundary: Float[np.ndarray, "pairs 2 d"]
    boundary_labels: Int[np.ndarray, "pairs 2 ..."]
    edges: int
    checked: int
    hidden: int
    enough: int
    enough_with_boundary: int
    bound: float

    def check_sizes(self) -> None:
        """Refuse kept points that there are not.

        Raises:
            ValueError: for cells out of range.
        """
        if len(self.cells) and not 0 <= self.cells.min() <= self.cells.max() < len(self.points):
            raise ValueError(f"cells are not all of {len(self.points)} points")

    @property
    def bounds(self) -> dict[str, int | None]:
        """Upper bounds on the number of examples that a classifier with these predictions needs.

        Returns:
            "training points" as given; "given points", to label the given points by 1-NN;
            "boundary", to label both sides of the boundary pairs as well.
        """
        return {
            "training points": self.training_points,
            "given points": self.enough,
            "boundary": self.enough_with_boundary,
        }

    @checked_arguments(
        classify=CLASSIFY,
        per_class=whole(),
        soft=SOFT,
        rounds=whole(0),
        seed=seeds,
        batch_size=whole(),
    )
    def coarsened(
        self,
        classify: Classify,
        per_class: int,
        *,
        members: bool = False,
        soft: PointFunction | None = None,
        rounds: int = 30,
        seed: int = 0,
        batch_size: int = 4096,
    ) -> RealizedAlong:
        """Merge cells of one label, by weighted k-means of their means, to a few a class.

        Args:
            classify: as for `jc.classifiers.realize_along`; it is queried at the new points.
            per_class: the most points of a class.
            members: always take the given point nearest to a cell's mean.
            soft: probabilities, evaluated at the new points.
            rounds: the most rounds of Lloyd's algorithm.
            seed: of the first centres (k-means++).
            batch_size: points a call.

        Returns:
            A point for each merged cell: the mean of its given points if the classifier gives it
            their label, else the given point nearest to the mean. A class without given points has
            points of its boundary, of weight 0.

        Raises:
            ValueError: for a number of points that is not positive, labels as in
                `jc.classifiers.realize_along`.
            TypeError: for labels that are not integers.

        Example:
            >>> import numpy as np, jaxcompress as jc
            >>> def ball(x):
            ...     return np.int32((x**2).sum(1) < 9)
            >>> x = np.random.default_rng(0).normal(size=(300, 10))
            >>> realized = jc.classifiers.realize_along(ball, x, 0.1, progress=False)
            >>> realized.coarsened(ball, per_class=20).points.shape
            (40, 10)
        """
        caller = "coarsened"
        # classes that occur at the boundary only are represented by their kept points
        lonely = np.flatnonzero(~np.isin(self.targets, self.targets[self.cells]))
        inner = np.concatenate([self.given, self.points[lonely]])
        inner_labels = np.concatenate([self.given_labels, self.labels[lonely]])
        inner_weights = np.concatenate([self.given_weights, np.ones(len(lonely))])
        cells = np.concatenate([self.cells, lonely])
        total, centres = means(inner, inner_weights, cells, len(self.points))
        merged = merge_cells(centres, total, self.targets, int(per_class), rounds=rounds, seed=seed)
        cells = merged[cells]
        count = int(cells.max()) + 1
        _, centres = means(inner, inner_weights, cells, count)
        # a mean has the label of its cell only where the classifier agrees
        points, labels = centres.astype(np.float32), inner_labels[first_of_each(cells)]
        oracle = Oracle(caller, classify, batch_size)
        replaced = slice(None) if members else labels_differ(oracle.labels(points), labels)
        points[replaced] = medoids(inner, cells, centres)[replaced]
        cells = cells[: len(self.given)]
        return dataclasses.replace(
            self,
            points=points,
            labels=labels,
            weights=np.bincount(cells, self.given_weights, count),
            cells=cells,
            soft=probabilities(caller, soft, points, batch_size),
            queries=self.queries + oracle.queries,
        )

    def __repr__(self) -> str:
        d, given = self.points.shape[1], self.training_points
        return (
            f"RealizedAlong({d} dimensions, {len(self.points):,} points of "
            f"{len(self.classes):,} classes from {len(self.given):,} given ones, "
            f"{len(self.boundary):,} boundary pairs; {self.queries:,} queries"
            f"{'' if self.complete else ', ended by the budget'}; "
            f"{100 * self.bound:.2g} % of edges may hide a class; upper bounds: "
            f"{self.enough:,} for the given points, {self.enough_with_boundary:,} with the boundary"
            f"{'' if given is None else f', {given:,} training points'})"
        )


def merge_cells(
    centres: Float[np.ndarray, "cells d"],
    weights: Float[np.ndarray, " cells"],
    targets: Int[np.ndarray, " cells"],
    per_class: int,
    *,
    rounds: int,
    seed: int,
) -> Int[np.ndarray, " cells"]:
    """Merge cells of one class by weighted k-means, until a class has at most `per_class`.

    Args:
        centres: the mean of each cell.
        weights: of the cells; those of weight 0 are not merged.
        targets: classes from 0 on.
        per_class: the most cells of a class.
        rounds: the most rounds of Lloyd's algorithm.
        seed: of the first centres.

    Returns:
        The merged cell of each cell, from 0 on.
    """
    merged, count, rng = np.zeros(len(centres), int), 0, np.random.default_rng(seed)
    for target in range(targets.max() + 1):
        members = np.flatnonzero((targets == target) & (weights > 0))
        cluster = k_means(centres[members], weights[members], per_class, rounds=rounds, rng=rng)
        merged[members] = count + cluster
        count = merged[members].max() + 1
    return merged


def medoids(
    points: Float[np.ndarray, "n d"],
    cells: Int[np.ndarray, " n"],
    centres: Float[np.ndarray, "cells d"],
) -> Float[np.ndarray, "cells d"]:
    """The point of each cell that is nearest to the cell's mean."""
    # sorted by cell, then by distance: the first of each cell is the nearest
    distance = np.sum((points - centres[cells]) ** 2, axis=1)
    order = np.lexsort((distance, cells))
    return points[order[first_of_each(cells[order])]]


def first_of_each(cells: Int[np.ndarray, " n"]) -> Int[np.ndarray, " cells"]:
    """The index of the first point of each cell."""
    return np.unique(cells, return_index=True)[1]
