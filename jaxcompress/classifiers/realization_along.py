"""A training set from a classifier in many dimensions: its decision boundaries along given points.

The given points, which need no labels, are the nodes of a graph; the edges of a point lead to its
nearest neighbours, and with charts to both sides along the principal directions of these. Edges
whose ends differ are bisected down to the jnd (just-noticeable difference, the smallest difference
of inputs that matters). Of the others a random part is queried at the midpoint, until at most a
given share of them hides another class there; those that do are bisected, too. The points are then
condensed to those that label all others by 1-NN, and can be coarsened to a few a class, each the
mean of the cells it merges.

Costs 2 d operations a pair of points for the graph, the same for each point and kept point for
condensing, and `log2(edge / jnd)` queries a boundary edge: a boundary of any dimension is followed
only as far as there are points.

Sources: neighbourhood graphs for class boundaries, Toussaint 2005 (doi:10.1142/S0218195905001622);
principal charts, Zhang and Zha 2004 (doi:10.1137/S1064827502419154).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from jaxcompress.checks import array, checked, choice, is_whole, number, seeds, whole
from jaxcompress.classifiers.bisection import (
    CloseEnough,
    MidpointCheck,
    QueriedPoints,
    check_midpoints,
    closeness,
    labels_differ,
)
from jaxcompress.classifiers.charts import Charts, chart_edges
from jaxcompress.classifiers.coarsening import RealizedAlong
from jaxcompress.classifiers.condensation import condense
from jaxcompress.classifiers.neighbours import nearest
from jaxcompress.classifiers.queries import (
    CLASSIFY,
    SOFT,
    Classify,
    Jnd,
    Oracle,
    PointFunction,
    check_box,
    check_budget,
    class_indices,
    jnd_kind,
    probabilities,
)

CALLER = "realize_along"


@checked(
    classify=CLASSIFY,
    jnd=jnd_kind("one number or a function", (0,)),
    directions=choice("principal", "random"),
    confidence=number("(0, 1)", "such as 0.95"),
    tolerance=number("[0, 1)", "a share, such as 0.01"),
    soft=SOFT,
    training_points=whole(),
    seed=seeds,
    batch_size=whole(),
)
def realize_along(
    classify: Classify,
    points: Float[ArrayLike, "n d"],
    jnd: Jnd,
    *,
    neighbours: int = 8,
    charts: int = 0,
    directions: str = "principal",
    domain: tuple[ArrayLike, ArrayLike] | None = None,
    budget: int | None = None,
    confidence: float = 0.95,
    tolerance: float = 0.01,
    soft: PointFunction | None = None,
    training_points: int | None = None,
    seed: int = 0,
    batch_size: int = 4096,
    progress: bool = True,
) -> RealizedAlong:
    """Make a training set from a classifier in any number of dimensions, along given points.

    Args:
        classify: `classify(points (batch_size, d) float32) -> labels`, integers (batch_size,) of
            any size, or tuples of integers (batch_size, k). Called on the host, always with
            `batch_size` points (the last one is repeated), so that a jitted function compiles once.
            It must give a point the same label every time.
        points: training data, unlabelled inputs, samples of a density, or `random_points` where
            there are none. Points that occur several times are queried once and weigh more.
        jnd: the just-noticeable difference of the inputs, as a Euclidean distance: a number, or a
            function `jnd(points (batch_size, d)) -> (batch_size,)`. The ends of a boundary pair are
            no farther apart than that at either end.
        neighbours: number of edges from a point to its nearest neighbours.
        charts: number of directions of a point's chart, followed to both sides by the median
            distance of its neighbours.
        directions: "principal" ones of the neighbours' differences, or "random".
        domain: (low, high) that charts are clipped to, numbers or (d,).
        budget: the most queries: for the points, the charts, the boundaries, the checks and the
            boundaries that these find, in this order.
        confidence: of the bound on hidden classes.
        tolerance: that bound: the share of edges with equal ends that may still have another label
            at their midpoint. At 0 all are checked.
        soft: `soft(points (batch_size, d)) -> (batch_size, classes)` probabilities, evaluated at
            the kept points only.
        training_points: number of examples the classifier was trained on, for the report.
        seed: of the checked edges and of random directions.
        batch_size: points a call.
        progress: show a progress bar of queries.

    Returns:
        The points that label all given ones and both sides of all boundary pairs by 1-NN.

    Raises:
        ValueError: for points that are not finite, fewer than three distinct ones, at least as many
            neighbours as points, a jnd that is not positive or finer than float32, a budget below
            the number of points, labels or probabilities of a wrong shape, one class only.
        TypeError: for labels that are not integers.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> def ball(x):
        ...     return np.int32((x**2).sum(1) < 9)
        >>> x = np.random.default_rng(0).normal(size=(300, 10))
        >>> realized = jc.classifiers.realize_along(ball, x, jnd=0.1, neighbours=4, progress=False)
        >>> len(realized.boundary), realized.queries
        (481, 3173)
        >>> realized.coarsened(ball, per_class=20).points.shape
        (40, 10)
    """
    given, weights = _distinct_points(points)
    count, d = given.shape
    _check_graph(count, neighbours)
    _check_charts(charts, directions, min(neighbours, d))
    _check_budget(count, budget)
    settings = Charts(charts, directions, None if domain is None else check_box(CALLER, domain, d))
    search = _Search(closeness(CALLER, jnd, given, batch_size), confidence, tolerance)
    rng = np.random.default_rng(seed)
    with tqdm(total=budget, desc=CALLER, unit=" queries", disable=not progress, leave=False) as bar:
        queried = QueriedPoints(Oracle(CALLER, classify, batch_size, budget, bar), d)
        queried.query(given)
        edges = _graph(queried, neighbours, settings, rng, progress=progress)
        pairs, check = search.boundary_pairs(queried, edges, rng)
    _check_classes(queried)
    complete = queried.complete and check.bound <= tolerance
    realized = _training_set(
        queried, weights, len(edges), pairs, check, complete=complete, progress=progress
    )
    kept_soft = probabilities(CALLER, soft, realized.points, batch_size)
    return dataclasses.replace(realized, soft=kept_soft, training_points=training_points)


def _training_set(
    queried: QueriedPoints,
    weights: Float[np.ndarray, " given"],
    edges: int,
    pairs: Int[np.ndarray, "pairs 2"],
    check: MidpointCheck,
    *,
    complete: bool,
    progress: bool,
) -> RealizedAlong:
    """The condensed points, given all queried ones, of which the given ones are the first."""
    count = len(weights)
    kept, cells, enough = _condensed(queried, count, pairs, progress=progress)
    return RealizedAlong(
        points=queried.points[kept],
        labels=queried.labels[kept],
        weights=np.bincount(cells, weights, len(kept)),
        soft=None,
        queries=queried.oracle.queries,
        complete=complete,
        given=queried.points[:count],
        given_labels=queried.labels[:count],
        given_weights=weights,
        cells=cells,
        boundary=queried.points[pairs],
        boundary_labels=queried.labels[pairs],
        edges=edges,
        checked=check.checked,
        hidden=check.hidden,
        enough=enough,
        enough_with_boundary=len(kept),
        bound=check.bound,
    )


def random_points(
    domain: tuple[ArrayLike, ArrayLike],
    count: int,
    *,
    seed: int = 0,
    covariance: Float[np.ndarray, "d d"] | None = None,
) -> Float[np.ndarray, "count d"]:
    """Points for `realize_along` where there are no data: uniform in a box, or Gaussian.

    Args:
        domain: (low (d,), high (d,)).
        count: number of points.
        seed: of the random numbers.
        covariance: of a Gaussian around the centre of the box, clipped to it; for instance one that
            decays with the distance of pixels.

    Returns:
        float32.

    Example:
        >>> from jaxcompress.classifiers.realization_along import random_points
        >>> random_points(([0, 0], [1, 2]), 5).shape
        (5, 2)
    """
    low, high = check_box("random_points", domain, len(np.atleast_1d(domain[0])))
    rng = np.random.default_rng(seed)
    if covariance is None:
        return rng.uniform(low, high, (count, len(low))).astype(np.float32)
    drawn = rng.multivariate_normal((low + high) / 2, covariance, count, method="cholesky")
    return np.clip(drawn, low, high).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Search:
    """How boundaries are searched on edges.

    Attributes:
        close_enough: which pairs of points are no farther apart than the jnd.
        confidence: of the bound on hidden labels.
        tolerance: the share of edges with equal ends that may hide another label.
    """

    close_enough: CloseEnough
    confidence: float
    tolerance: float

    def boundary_pairs(
        self, queried: QueriedPoints, edges: Int[np.ndarray, "m 2"], rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, "pairs 2"], MidpointCheck]:
        """Bisect the edges that cross a boundary, and check the others."""
        crossing = queried.differ(edges)
        pairs = queried.bisect(edges[crossing], self.close_enough)
        check = check_midpoints(queried, edges[~crossing], self.confidence, self.tolerance, rng)
        hidden_pairs = queried.bisect(check.halves, self.close_enough)
        return np.concatenate([pairs, hidden_pairs]), check


def _graph(
    queried: QueriedPoints,
    neighbours: int,
    charts: Charts,
    rng: np.random.Generator,
    *,
    progress: bool,
) -> Int[np.ndarray, "edges 2"]:
    """The edges to nearest neighbours, each once, and those of charts."""
    given = queried.points
    index = np.arange(len(given))
    distances, graph = nearest(given, given, neighbours, own=index, progress=progress)
    edges = np.stack([np.repeat(index, neighbours), graph.ravel()], axis=1)
    # two points can be neighbours of each other
    edges = np.unique(np.sort(edges, axis=1), axis=0)
    if not charts.rank:
        return edges
    return np.concatenate([edges, chart_edges(queried, charts, graph, distances, rng)])


def _condensed(
    queried: QueriedPoints, count: int, pairs: np.ndarray, *, progress: bool
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " count"], int]:
    """The condensed points, the cells of the given ones, and how many given ones would suffice."""
    targets = class_indices(queried.labels)
    candidates = np.unique(np.concatenate([np.arange(count), pairs.ravel()]))
    kept, cells = condense(queried.points[candidates], targets[candidates], progress=progress)
    # without the boundary's points, for the bound on the given ones alone
    sufficient, _ = condense(queried.points[:count], targets[:count], progress=progress)
    return candidates[kept], cells[:count], len(sufficient)


def _distinct_points(
    points: Float[ArrayLike, "n d"],
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
    """The distinct points in float32, in the order of first occurrence, and the share of each."""
    given = array(f"{CALLER}: points", points, finite=False).astype(np.float32)
    if given.ndim != 2 or not given.shape[1]:
        raise ValueError(
            f"{CALLER}: points must be (n, d), got {given.shape}; reshape images to rows"
        )
    if not np.isfinite(given).all():
        bad = int((~np.isfinite(given)).any(1).sum())
        raise ValueError(f"{CALLER}: points must be finite, {bad} of {len(given)} are not")
    given = np.ascontiguousarray(given + 0)  # adding 0 removes negative zeros
    # each row as one value of bytes: np.unique sorts these faster than rows of floats
    rows = given.view(np.dtype((np.void, given.itemsize * given.shape[1])))[:, 0]
    _, first, counts = np.unique(rows, return_index=True, return_counts=True)
    order = np.argsort(first)
    if len(first) < 3:
        raise ValueError(
            f"{CALLER}: {len(first)} distinct points are too few for a graph, give 3 or more"
        )
    return given[first[order]], counts[order] / len(given)


def _check_graph(count: int, neighbours: int) -> None:
    if not (is_whole(neighbours) and neighbours < count):
        raise ValueError(
            f"{CALLER}: neighbours must be a whole number from 1 to {count - 1}, below the "
            f"{count} distinct points"
        )


def _check_charts(charts: int, directions: str, most: int) -> None:
    principal = directions == "principal"
    if not is_whole(charts, 0) or (principal and charts > most):
        limit = f"to {most}, the neighbours and dimensions" if principal else "on"
        raise ValueError(f"{CALLER}: charts must be a whole number from 0 {limit}, got {charts}")


def _check_budget(count: int, budget: int | None) -> None:
    check_budget(CALLER, budget)
    if budget is not None and budget < count:
        raise ValueError(
            f"{CALLER}: the {count} distinct points alone are more than the budget of {budget}: "
            "give fewer"
        )


def _check_classes(queried: QueriedPoints) -> None:
    if not labels_differ(queried.labels, queried.labels[:1]).any():
        raise ValueError(
            f"{CALLER}: classify gave the label {queried.labels[0].tolist()} at all "
            f"{len(queried.points):,} queried points, so that there is no boundary: give points of "
            "two classes or more, or charts that reach them"
        )
