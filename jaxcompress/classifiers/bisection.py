"""Borders along edges between points: halved where the classifier's label changes, checked at random where it seems not to.

An edge whose ends differ has a border on it; of its halves those with ends that differ are halved again, all edges at once. That
takes `log2(length / jnd)` questions an edge. An edge with ends of one label may hide another one; random midpoints bound how many
do. After m checks of E edges that found x, their share is at most u, the `1 - a_i` quantile of Beta(x + 1, m - x), so that at most
`u - x / E` are left. The i-th look has `a_i = (1 - confidence) / 2^i`, which add up to the whole; that no edge is drawn twice only
makes it narrower.

Source: the interval, Clopper and Pearson 1934 (doi:10.1093/biomet/26.4.404); without repetition, Hoeffding 1963
(doi:10.1080/01621459.1963.10500830).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from jaxcompress.classifiers.queries import Asker, jnd_at


class Asked:
    """All points asked so far, and their labels; edges (m, 2) are pairs of their indices.

    Attributes:
        complete: whether the budget has sufficed.
    """

    def __init__(self, asker: Asker, d: int) -> None:
        self.asker, self.complete = asker, True
        self.points, self.labels = np.zeros((0, d), np.float32), np.zeros(0)

    def ask(self, points: np.ndarray) -> np.ndarray:
        """The indices of new points: of the first ones only, where the budget ends."""
        room = self.asker.left(len(points))
        self.complete &= room == len(points)
        start = len(self.points)
        if room:
            labels = self.asker.labels(points[:room])
            self.points = np.concatenate([self.points, points[:room]])
            self.labels = np.concatenate([self.labels, labels]) if start else labels
        return np.arange(start, len(self.points))

    def differ(self, edges: np.ndarray) -> np.ndarray:
        """Whether the ends of edges have different labels."""
        return differ(self.labels[edges[:, 0]], self.labels[edges[:, 1]])

    def halved(self, edges: np.ndarray) -> tuple[np.ndarray, int]:
        """Those halves of edges whose ends differ, (halves, 2), and how many edges the budget had room for."""
        ends = self.points[edges]
        middle = self.ask(ends[:, 0] / 2 + ends[:, 1] / 2)
        room = edges[: len(middle)]
        halves = np.concatenate(
            [np.stack([room[:, 0], middle], axis=1), np.stack([middle, room[:, 1]], axis=1)]
        )
        return halves[self.differ(halves)], len(middle)

    def bisected(self, edges: np.ndarray, near: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Edges whose ends differ, halved until they are short; where the budget ends they stay as they are."""
        done = [np.zeros((0, 2), int)]
        while len(edges):
            short = near(self.points[edges])
            done.append(edges[short])
            edges = edges[~short]
            halves, room = self.halved(edges)
            done.append(edges[room:])
            edges = halves
        return np.concatenate(done)


def checked_at_midpoints(
    asked: Asked, edges: np.ndarray, confidence: float, tolerance: float, rng: np.random.Generator
) -> tuple[np.ndarray, int, int, float]:
    """Random edges with ends of one label, asked at their midpoints.

    Returns:
        The halves of those that hide another label, how many were checked, how many of them hide one, and the share of all edges
        that still may, at the confidence.
    """
    edges, halves = rng.permutation(edges), [np.zeros((0, 2), int)]
    done, hidden, bound, look = 0, 0, 1.0 if len(edges) else 0.0, 0
    while bound > tolerance and asked.complete:
        look += 1
        alpha = (1 - confidence) / 2**look
        enough = (
            np.ceil(np.log(alpha) / np.log1p(-tolerance)) if tolerance else np.inf
        )  # where nothing is found
        part = edges[done : int(min(max(enough, 2 * done), len(edges)))]
        found, room = asked.halved(part)
        halves.append(found)
        done, hidden = done + room, hidden + len(found) // 2
        most = (
            1.0 if hidden == done else float(stats.beta.ppf(1 - alpha, hidden + 1, done - hidden))
        )
        bound = min(most - hidden / len(edges), (len(edges) - done) / len(edges))
    return np.concatenate(halves), done, hidden, bound


def differ(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Whether labels (n,) or (n, k) differ."""
    return (one != two).any(tuple(range(1, one.ndim)))


def closeness(
    who: str, jnd: Any, given: np.ndarray, batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Which pairs of points (m, 2, d) are no farther apart than the jnd."""
    told_apart = 2 * np.sqrt(given.shape[1]) * float(np.spacing(np.abs(given).max()))
    if not callable(jnd):
        if np.ndim(jnd) or not jnd > 0:
            raise ValueError(
                f"{who}: jnd must be positive, one number or a function of points, got {jnd}"
            )
        if jnd < told_apart:
            raise ValueError(
                f"{who}: jnd={jnd:g} is finer than float32 tells apart here, about {told_apart:.1g}: raise it"
            )
        wanted = lambda points: np.full(len(points), float(jnd))
    else:
        wanted = jnd_at(who, jnd, batch_size)

    def near(pairs: np.ndarray) -> np.ndarray:
        apart = np.linalg.norm((pairs[:, 0] - pairs[:, 1]).astype(np.float64), axis=1)
        least = np.minimum(wanted(pairs[:, 0]), wanted(pairs[:, 1]))
        if (least < told_apart).any():
            raise ValueError(
                f"{who}: jnd gave {least.min():g}, finer than float32 tells apart here, about {told_apart:.1g}: raise it"
            )
        return apart <= least

    return near
