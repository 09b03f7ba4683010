"""Decision boundaries on edges between points: bisected where the labels of the ends differ.

An edge whose ends differ crosses a boundary; those of its halves whose ends differ are bisected
again, all edges at once: `log2(length / jnd)` queries an edge. An edge with equal ends may hide
another label, and random midpoints bound how many do. After m checks of E edges with x hits, at
most a share u of the edges hides one, the `1 - a_i` quantile of Beta(x + 1, m - x), so that at most
`u - x / E` remain. The i-th round uses `a_i = (1 - confidence) / 2^i`, whose sum over all rounds is
`1 - confidence`. Drawing without replacement only narrows the bound.

Source: the interval, Clopper and Pearson 1934 (doi:10.1093/biomet/26.4.404); without replacement,
Hoeffding 1963 (doi:10.1080/01621459.1963.10500830).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from jaxcompress.classifiers.queries import Jnd, Oracle, jnd_function

CloseEnough = Callable[[np.ndarray], np.ndarray]
"""Which pairs of points (pairs, 2, d) are no farther apart than the jnd: (pairs,)."""


class QueriedPoints:
    """All points queried so far, and their labels; edges (m, 2) are pairs of their indices.

    Attributes:
        oracle: the classifier.
        points: (n, d), float32.
        labels: (n,) or (n, k).
        complete: whether the budget has sufficed.
    """

    def __init__(self, oracle: Oracle, d: int) -> None:
        self.oracle, self.complete = oracle, True
        self.points, self.labels = np.zeros((0, d), np.float32), np.zeros(0)

    def query(self, points: np.ndarray) -> Int[np.ndarray, " queried"]:
        """Query new points, the first ones only where the budget ends, and return their indices."""
        affordable = self.oracle.affordable(len(points))
        self.complete &= affordable == len(points)
        start = len(self.points)
        if affordable:
            labels = self.oracle.labels(points[:affordable])
            self.points = np.concatenate([self.points, points[:affordable]])
            self.labels = np.concatenate([self.labels, labels]) if start else labels
        return np.arange(start, len(self.points))

    def differ(self, edges: Int[np.ndarray, "m 2"]) -> Bool[np.ndarray, " m"]:
        """Whether the ends of edges have different labels."""
        return labels_differ(self.labels[edges[:, 0]], self.labels[edges[:, 1]])

    def halve(self, edges: Int[np.ndarray, "m 2"]) -> tuple[Int[np.ndarray, "halves 2"], int]:
        """The halves of edges whose ends differ, and the number of edges the budget allowed."""
        ends = self.points[edges]
        middle = self.query(ends[:, 0] / 2 + ends[:, 1] / 2)  # the sum could overflow
        first, second = edges[: len(middle)].T
        halves = np.concatenate(
            [np.stack([first, middle], axis=1), np.stack([middle, second], axis=1)]
        )
        return halves[self.differ(halves)], len(middle)

    def bisect(
        self, edges: Int[np.ndarray, "m 2"], close_enough: CloseEnough
    ) -> Int[np.ndarray, "pairs 2"]:
        """Halve edges whose ends differ until they are short, or until the budget ends."""
        finished = [np.zeros((0, 2), int)]
        while len(edges):
            short = close_enough(self.points[edges])
            finished.append(edges[short])
            edges = edges[~short]
            halves, halved = self.halve(edges)
            finished.append(edges[halved:])  # beyond the budget: pairs that are still too long
            edges = halves
        return np.concatenate(finished)


class MidpointCheck(NamedTuple):
    """Edges with equal ends, checked at random midpoints.

    Attributes:
        halves: halves (m, 2) of the edges that hide another label.
        checked: number of edges queried at the midpoint.
        hidden: number of those with another label there.
        bound: the share of all edges that may still hide one, at the confidence.
    """

    halves: np.ndarray
    checked: int
    hidden: int
    bound: float


def check_midpoints(
    queried: QueriedPoints,
    edges: Int[np.ndarray, "m 2"],
    confidence: float,
    tolerance: float,
    rng: np.random.Generator,
) -> MidpointCheck:
    """Query midpoints of random edges until at most a share `tolerance` may hide another label."""
    edges, halves = rng.permutation(edges), [np.zeros((0, 2), int)]
    checked, hidden, bound, rounds = 0, 0, 1.0 if len(edges) else 0.0, 0
    while bound > tolerance and queried.complete:
        rounds += 1
        alpha = (1 - confidence) / 2**rounds
        # the number of checks that suffice if none of them hits
        enough = np.ceil(np.log(alpha) / np.log1p(-tolerance)) if tolerance else np.inf
        # never fewer than a doubling, so that there are few rounds to divide the confidence over
        part = edges[checked : int(min(max(enough, 2 * checked), len(edges)))]
        new_halves, new_checked = queried.halve(part)
        halves.append(new_halves)
        checked, hidden = checked + new_checked, hidden + len(new_halves) // 2
        # the second bound needs no statistics: all unchecked edges hide a label
        most = 1.0
        if hidden < checked:
            most = float(stats.beta.ppf(1 - alpha, hidden + 1, checked - hidden))
        bound = min(most - hidden / len(edges), (len(edges) - checked) / len(edges))
    return MidpointCheck(np.concatenate(halves), checked, hidden, bound)


def labels_differ(
    one: Int[np.ndarray, "n ..."], other: Int[np.ndarray, "n ..."]
) -> Bool[np.ndarray, " n"]:
    """Whether labels, integers or tuples, differ."""
    return (one != other).any(tuple(range(1, one.ndim)))


def closeness(
    caller: str, jnd: Jnd, given: Float[np.ndarray, "n d"], batch_size: int
) -> CloseEnough:
    """Which pairs of points are no farther apart than the jnd at either end.

    Args:
        caller: the public function, named in errors.
        jnd: a positive number, or a function of points.
        given: the points, whose magnitude decides what float32 resolves.
        batch_size: points a call of `jnd`.
    """
    # a pair closer than that can have a midpoint that rounds to one of its ends
    resolution = 2 * np.sqrt(given.shape[1]) * float(np.spacing(np.abs(given).max()))
    differences = _jnd_at(caller, jnd, batch_size)

    def check_resolution(difference: float) -> None:
        if difference < resolution:
            raise ValueError(
                f"{caller}: jnd={difference:g} is finer than float32 resolves here, "
                f"about {resolution:.1g}: raise it"
            )

    if not callable(jnd):
        check_resolution(float(np.asarray(jnd)))

    def close_enough(pairs: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm((pairs[:, 0] - pairs[:, 1]).astype(np.float64), axis=1)
        smaller = np.minimum(differences(pairs[:, 0]), differences(pairs[:, 1]))
        check_resolution(smaller.min(initial=np.inf))
        return distance <= smaller

    return close_enough


def _jnd_at(caller: str, jnd: Jnd, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """The just-noticeable difference at points, as a function."""
    if callable(jnd):
        return jnd_function(caller, jnd, batch_size)
    number = np.asarray(jnd, np.float64)
    if number.ndim or not number > 0:
        raise ValueError(
            f"{caller}: jnd must be positive, one number or a function of points, got {jnd}"
        )
    return lambda points: np.full(len(points), float(number))
