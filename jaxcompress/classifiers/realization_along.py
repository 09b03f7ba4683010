"""A new training set from a classifier in many dimensions: the mesh along the data, not the space.

The points given, of which no labels are needed, are the nodes; a point's edges lead to its nearest neighbours, and with charts to
both sides along the principal directions of these. Edges whose ends differ are halved down to the just-noticeable difference (jnd).
Of the others a random part is asked at the midpoint, until at most a share of them hides another class there; what is found is
halved as well. Last comes the coarsening: the points that label all others by their nearest neighbour are kept, and of these as few
a class as wanted, each the mean of the cells that it joins.

Costs 2 d operations a pair of points for the graph, as much a point and kept point for the coarsening, and `log2(edge / jnd)`
questions a border edge: a border of any dimension is followed only as far as there are points.

Sources: neighbourhood graphs for the borders of classes, Toussaint 2005 (doi:10.1142/S0218195905001622); principal charts, Zhang
and Zha 2004 (doi:10.1137/S1064827502419154).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from jaxcompress.checkpoint import record
from jaxcompress.classifiers.bisection import Asked, checked_at_midpoints, closeness, differ
from jaxcompress.classifiers.charts import charts_around
from jaxcompress.classifiers.condensation import condensed
from jaxcompress.classifiers.k_means import k_means, means
from jaxcompress.classifiers.neighbours import nearest
from jaxcompress.classifiers.queries import (
    Asker,
    Labelled,
    check_batch_size,
    check_budget,
    check_domain,
    probabilities,
)

WHO = "realize_along"


@record
@dataclasses.dataclass(frozen=True, kw_only=True)
class RealizedAlong(Labelled):
    """What a classifier does along given points, as a training set.

    The weights are the shares of the given points that are nearest to each point kept; border points may have none. It is complete
    where every border pair is as near as the jnd asks, and the edges were checked to the tolerance.

    Attributes:
        given: (n, d): the points given, without repetitions.
        given_labels: (n,) or (n, k).
        given_weights: (n,): how often each of them was given, as a share.
        cells: (n,): the nearest point kept, which has the same label.
        border: (pairs, 2, d): points on both sides of the border.
        border_labels: (pairs, 2) or (pairs, 2, k).
        edges: how many the graph has.
        checked, hidden: how many edges with ends of one label were asked at the midpoint, and had another one there.
        enough: so many of the given points label all the given ones by their nearest neighbour.
        enough_with_border: so many points label both sides of every border pair, too.
        bound: at most this share of such edges still hides another label at the midpoint, at the confidence asked for.
    """

    given: np.ndarray
    given_labels: np.ndarray
    given_weights: np.ndarray
    cells: np.ndarray
    border: np.ndarray
    border_labels: np.ndarray
    edges: int
    checked: int
    hidden: int
    enough: int
    enough_with_border: int
    bound: float

    @property
    def bounds(self) -> dict[str, int | None]:
        """Upper bounds on the points that are needed: one an example; what labels the given points; and the borders as well."""
        return {
            "training points": self.training_points,
            "given points": self.enough,
            "borders": self.enough_with_border,
        }

    def coarsened(
        self,
        classify: Callable[[np.ndarray], Any],
        per_class: int,
        *,
        members: bool = False,
        soft: Callable[[np.ndarray], Any] | None = None,
        rounds: int = 30,
        seed: int = 0,
        batch_size: int = 4096,
    ) -> RealizedAlong:
        """Cells of one label are joined, by weighted k-means of their means, until a class has so many.

        Args:
            classify: as for `jc.classifiers.realize_along`; it is asked at the new points.
            per_class: how many points a class has at most.
            members: take the given point nearest to a cell's mean always.
            soft: probabilities, asked at the new points.
            rounds: of Lloyd's algorithm, at most.
            seed: where it starts (k-means++).
            batch_size: points a call.

        Returns:
            A point for each joined cell: the mean of its given points where the classifier gives it their label, else the one of
            them that is nearest to the mean. A class that has none of the given points has points of its border, of weight 0.

        Raises:
            ValueError: for a number of points that is not positive, labels as in `jc.classifiers.realize_along`.
            TypeError: for labels that are not integers.
        """
        who = "coarsened"
        if not (isinstance(per_class, int | np.integer) and per_class >= 1):
            raise ValueError(f"{who}: per_class must be a whole number from 1 on, got {per_class}")
        check_batch_size(who, batch_size)
        lonely = np.flatnonzero(
            ~np.isin(self.targets, self.targets[self.cells])
        )  # of classes found at a border only
        inner, cells = (
            np.concatenate([self.given, self.points[lonely]]),
            np.concatenate([self.cells, lonely]),
        )
        inner_labels = np.concatenate([self.given_labels, self.labels[lonely]])
        pull = np.concatenate([self.given_weights, np.ones(len(lonely))])
        total, centres = means(inner, pull, cells, len(self.points))
        joined, count, rng = np.zeros(len(self.points), int), 0, np.random.default_rng(seed)
        for each in range(len(self.classes)):
            mine = np.flatnonzero((self.targets == each) & (total > 0))
            joined[mine] = count + k_means(
                centres[mine], total[mine], int(per_class), rounds=rounds, rng=rng
            )
            count = joined[mine].max() + 1
        cells = joined[cells]
        _, centres = means(inner, pull, cells, count)
        labels, points = (
            inner_labels[np.unique(cells, return_index=True)[1]],
            centres.astype(np.float32),
        )
        asker = Asker(who, classify, batch_size, None, tqdm(disable=True))
        other = slice(None) if members else differ(asker.labels(points), labels)
        order = np.lexsort((np.sum((inner - centres[cells]) ** 2, axis=1), cells))
        medoids = inner[order[np.unique(cells[order], return_index=True)[1]]]
        points[other] = medoids[other]
        cells = cells[: len(self.given)]
        return dataclasses.replace(
            self,
            points=points,
            labels=labels,
            weights=np.bincount(cells, self.given_weights, count),
            cells=cells,
            soft=probabilities(who, soft, points, batch_size),
            queries=self.queries + asker.queries,
        )

    def __repr__(self) -> str:
        given, bounds = (
            self.training_points,
            f"{self.enough:,} for the given points, {self.enough_with_border:,} with borders",
        )
        return (
            f"RealizedAlong({self.points.shape[1]} dimensions, {len(self.points):,} points of {len(self.classes):,} classes from "
            f"{len(self.given):,} given ones, {len(self.border):,} border pairs; {self.queries:,} queries"
            f"{'' if self.complete else ', ended by the budget'}; {100 * self.bound:.2g} % of edges may hide a class; upper "
            f"bounds: {bounds}{'' if given is None else f', {given:,} training points'})"
        )


def realize_along(
    classify: Callable[[np.ndarray], Any],
    points: np.ndarray,
    jnd: Any,
    *,
    neighbours: int = 8,
    charts: int = 0,
    directions: str = "principal",
    domain: tuple[Any, Any] | None = None,
    budget: int | None = None,
    confidence: float = 0.95,
    tolerance: float = 0.01,
    soft: Callable[[np.ndarray], Any] | None = None,
    training_points: int | None = None,
    seed: int = 0,
    batch_size: int = 4096,
    progress: bool = True,
) -> RealizedAlong:
    """Make a training set from a classifier in any number of dimensions, along given points.

    Args:
        classify: `classify(points (batch_size, d) float32) -> labels`, integers (batch_size,) of any size, or tuples of integers
            (batch_size, k). Called on the host, always with `batch_size` points (the last one is repeated), so that a jitted
            function compiles once. It must give a point the same label each time.
        points: (n, d): training data, unlabelled inputs, samples of a density; or of `random_points` where there are none. Those
            that occur several times are asked once and weigh more.
        jnd: the just-noticeable difference of the inputs, as a Euclidean distance: a number, or a function
            `jnd(points (batch_size, d)) -> (batch_size,)`. A border pair is no farther apart than that at either end.
        neighbours: how many edges a point has to its nearest neighbours.
        charts: how many directions each point is left in, to both sides, as far as its neighbours are in the median.
        directions: "principal" ones of the neighbours' differences, or "random".
        domain: (low, high) that charts are clipped to, numbers or (d,).
        budget: at most so many questions: for the points, the charts, the borders, the checks and what these find, in this order.
        confidence: of the bound on hidden classes.
        tolerance: that bound: the share of edges with ends of one label that may still have another one at their midpoint. At 0 all
            are checked.
        soft: `soft(points (batch_size, d)) -> (batch_size, classes)` probabilities, asked at the kept points only.
        training_points: how many examples the classifier was trained on, for the report.
        seed: which edges are checked, and random directions.
        batch_size: points a call.
        progress: show a progress bar of questions.

    Returns:
        The points that label all given ones and both sides of all borders by their nearest neighbour.

    Raises:
        ValueError: for points that are not finite, fewer than three different ones, as many neighbours as points, a jnd that is not
            positive or finer than float32, a budget below the number of points, labels or probabilities of a wrong shape, one
            class wherever it was asked.
        TypeError: for labels that are not integers.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> ball = lambda x: np.int32((x**2).sum(1) < 9)
        >>> x = np.random.default_rng(0).normal(size=(300, 10))
        >>> found = jc.classifiers.realize_along(ball, x, jnd=0.1, neighbours=4, training_points=300, progress=False)
        >>> len(found.border), found.queries
        (481, 3173)
        >>> found.coarsened(ball, per_class=20).points.shape
        (40, 10)
    """
    given, weights = _check_points(points)
    count, d = given.shape
    _check_options(count, d, neighbours, charts, directions, budget, confidence, tolerance)
    check_batch_size(WHO, batch_size)
    box = None if domain is None else check_domain(WHO, domain, d)
    near = closeness(WHO, jnd, given, batch_size)
    rng = np.random.default_rng(seed)
    with tqdm(total=budget, desc=WHO, unit=" queries", disable=not progress, leave=False) as bar:
        asked = Asked(Asker(WHO, classify, batch_size, budget, bar), d)
        asked.ask(given)
        distances, graph = nearest(
            given, given, neighbours, own=np.arange(count), progress=progress
        )
        edges = np.stack([np.repeat(np.arange(count), neighbours), graph.ravel()], axis=1)
        edges = np.unique(np.sort(edges, axis=1), axis=0)
        if charts:
            edges = np.concatenate(
                [edges, charts_around(asked, graph, distances, charts, directions, box, rng)]
            )
        crossing = asked.differ(edges)
        border = asked.bisected(edges[crossing], near)
        halves, checked, hidden, bound = checked_at_midpoints(
            asked, edges[~crossing], confidence, tolerance, rng
        )
        border = np.concatenate([border, asked.bisected(halves, near)])
    if not differ(asked.labels, asked.labels[:1]).any():
        raise ValueError(
            f"{WHO}: classify gave the label {asked.labels[0].tolist()} at all {len(asked.points):,} points asked, so that there "
            "is no border: give points of two classes or more, or charts that reach them"
        )
    ranks = np.unique(asked.labels, axis=0, return_inverse=True)[1].reshape(-1)
    candidates = np.unique(np.concatenate([np.arange(count), border.ravel()]))
    kept, cells = condensed(asked.points[candidates], ranks[candidates], progress=progress)
    kept = candidates[kept]
    return RealizedAlong(
        points=asked.points[kept],
        labels=asked.labels[kept],
        weights=np.bincount(cells[:count], weights, len(kept)),
        soft=probabilities(WHO, soft, asked.points[kept], batch_size),
        queries=asked.asker.queries,
        complete=asked.complete and bound <= tolerance,
        training_points=training_points,
        given=given,
        given_labels=asked.labels[:count],
        given_weights=weights,
        cells=cells[:count],
        border=asked.points[border],
        border_labels=asked.labels[border],
        edges=len(edges),
        checked=checked,
        hidden=hidden,
        enough=len(condensed(given, ranks[:count], progress=progress)[0]),
        enough_with_border=len(kept),
        bound=bound,
    )


def random_points(
    domain: tuple[Any, Any], count: int, *, seed: int = 0, covariance: np.ndarray | None = None
) -> np.ndarray:
    """Points where there are no data: uniform in a box, or Gaussian around its centre and clipped to it.

    Args:
        domain: (low (d,), high (d,)).
        count: how many.
        seed: which.
        covariance: (d, d) of the Gaussian, for instance one that falls with the distance of pixels.

    Returns:
        (count, d), float32.

    Example:
        >>> from jaxcompress.classifiers.realization_along import random_points
        >>> random_points(([0, 0], [1, 2]), 5).shape
        (5, 2)
    """
    low, high = check_domain("random_points", domain, len(np.atleast_1d(domain[0])))
    rng = np.random.default_rng(seed)
    if covariance is None:
        return rng.uniform(low, high, (count, len(low))).astype(np.float32)
    drawn = rng.multivariate_normal((low + high) / 2, covariance, count, method="cholesky")
    return np.clip(drawn, low, high).astype(np.float32)


def _check_points(points: Any) -> tuple[np.ndarray, np.ndarray]:
    """The different ones in float32, in the order in which they came, and the share of each."""
    given = np.asarray(points, np.float32)
    if given.ndim != 2 or not given.shape[1]:
        raise ValueError(f"{WHO}: points must be (n, d), got {given.shape}; reshape images to rows")
    if not np.isfinite(given).all():
        raise ValueError(
            f"{WHO}: points must be finite, {int((~np.isfinite(given)).any(1).sum())} of {len(given)} are not"
        )
    given = np.ascontiguousarray(given + 0)  # one zero, not two
    rows = given.view(np.dtype((np.void, given.itemsize * given.shape[1])))[:, 0]
    _, first, counts = np.unique(rows, return_index=True, return_counts=True)
    order = np.argsort(first)
    if len(first) < 3:
        raise ValueError(
            f"{WHO}: {len(first)} different points are too few for a graph, give 3 or more"
        )
    return given[first[order]], counts[order] / len(given)


def _check_options(
    count: int,
    d: int,
    neighbours: Any,
    charts: Any,
    directions: str,
    budget: int | None,
    confidence: float,
    tolerance: float,
) -> None:
    if not (isinstance(neighbours, int | np.integer) and 1 <= neighbours < count):
        raise ValueError(
            f"{WHO}: neighbours must be a whole number from 1 to {count - 1}, below the {count} different points"
        )
    if directions not in ("principal", "random"):
        raise ValueError(f'{WHO}: directions must be "principal" or "random", got {directions!r}')
    most = min(neighbours, d) if directions == "principal" else None
    if not (
        isinstance(charts, int | np.integer) and charts >= 0 and (most is None or charts <= most)
    ):
        raise ValueError(
            f"{WHO}: charts must be a whole number from 0 {'on' if most is None else f'to {most}, the neighbours and dimensions'}, "
            f"got {charts}"
        )
    check_budget(WHO, budget)
    if budget is not None and budget < count:
        raise ValueError(
            f"{WHO}: the {count} different points alone are more than the budget of {budget}: give fewer"
        )
    if not (0 < confidence < 1 and 0 <= tolerance < 1):
        raise ValueError(
            f"{WHO}: confidence and tolerance are shares, such as 0.95 and 0.01; got {confidence} and {tolerance}"
        )
