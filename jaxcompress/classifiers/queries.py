"""A classifier that is asked: batches of one size, checked answers, counted questions, and the labelled points that come of it.

One call gets `batch_size` points, so that a jitted classifier compiles once; the last one is filled up by repetition, which is no
question. Costs the classifier's calls.

Source: learning from membership queries, Angluin 1988 (doi:10.1007/BF00116828).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcompress.training.batches import in_batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """What a classifier says at points, as a training set.

    Attributes:
        points: (n, d), float32, each asked.
        labels: (n,) or (n, k): what the classifier said there, in its own type.
        weights: (n,), float64.
        soft: (n, classes) probabilities, or None.
        queries: how many points were asked.
        complete: whether all was found that was to be; False where the budget ended it.
        training_points: how many examples the classifier was trained on, as given.
    """

    points: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    soft: np.ndarray | None
    queries: int
    complete: bool
    training_points: int | None = None

    @property
    def classes(self) -> np.ndarray:
        """The labels that occur, sorted: (classes,) or (classes, k)."""
        return np.unique(self.labels, axis=0)

    @property
    def targets(self) -> np.ndarray:
        """(n,), int32: each label's place among `classes`, which is what a student with logits learns."""
        return np.unique(self.labels, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)


@dataclasses.dataclass
class Asker:
    """A classifier, and how often it was asked.

    Attributes:
        who: the function that asks, for errors.
        classify: `classify(points (batch_size, d)) -> labels`.
        batch_size: points a call.
        budget: at most so many questions; whoever asks sees to it by `left`.
        bar: a tqdm bar of questions.
        queries: how many were asked.
        kind: the labels' type and length.
    """

    who: str
    classify: Callable[[np.ndarray], Any]
    batch_size: int
    budget: int | None
    bar: Any
    queries: int = 0
    kind: tuple[Any, ...] | None = None

    def left(self, wanted: int) -> int:
        """How many of the wanted questions the budget still has."""
        return wanted if self.budget is None else min(wanted, self.budget - self.queries)

    def labels(self, points: np.ndarray) -> np.ndarray:
        """The labels of points."""
        self.queries += len(points)
        return in_batches(self._checked, points, self.batch_size, self.bar)

    def _checked(self, points: np.ndarray) -> np.ndarray:
        labels = checked_labels(self.who, self.classify(points), len(points))
        kind = (labels.dtype, *labels.shape[1:])
        self.kind = kind if self.kind is None else self.kind
        if kind != self.kind:
            raise ValueError(
                f"{self.who}: classify gave labels of type {kind} after {self.kind}: one type and one length for all"
            )
        return labels


def checked_labels(who: str, found: Any, count: int, *, tuples: bool = True) -> np.ndarray:
    """What a classifier gave for so many points as labels: (count,) integers, or (count, k) where tuples are labels, too."""
    labels = np.asarray(found)
    labels = labels.astype(np.int32) if labels.dtype == bool else labels
    if not np.issubdtype(labels.dtype, np.integer):
        hint = (
            "; integers beyond 64 bits are given as tuples (n, k)"
            if tuples and labels.dtype == object
            else ": take the argmax"
        )
        raise TypeError(f"{who}: classify gave {labels.dtype}, expected integers{hint}")
    if (
        labels.ndim not in ((1, 2) if tuples else (1,))
        or len(labels) != count
        or 0 in labels.shape[1:]
    ):
        expected = f"({count},)" + f" or ({count}, k)" * tuples
        raise ValueError(
            f"{who}: classify gave labels of shape {labels.shape} for {count} points, expected {expected}"
        )
    return labels


def probabilities(
    who: str, soft: Callable[[np.ndarray], Any] | None, points: np.ndarray, batch_size: int
) -> np.ndarray | None:
    """What `soft` says at points, checked; None without it."""
    if soft is None:
        return None

    classes: list[int] = []

    def checked(points: np.ndarray) -> np.ndarray:
        found = np.asarray(soft(points), np.float32)
        if found.ndim != 2 or len(found) != len(points) or not found.shape[1]:
            n = len(points)
            raise ValueError(
                f"{who}: soft gave an array of shape {found.shape} for {n} points, expected ({n}, classes)"
            )
        classes.append(found.shape[1])
        if classes[-1] != classes[0]:
            raise ValueError(
                f"{who}: soft gave {classes[-1]} classes after {classes[0]}: as many for all points"
            )
        if not np.isfinite(found).all():
            raise ValueError(
                f"{who}: soft gave numbers that are not finite; expected probabilities"
            )
        return found

    return in_batches(checked, points, batch_size)


def jnd_at(
    who: str, jnd: Callable[[np.ndarray], Any], batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A just-noticeable difference that varies in space, checked: (n, d) -> (n,)."""

    def checked(points: np.ndarray) -> np.ndarray:
        found = np.asarray(jnd(points), np.float64)
        if found.shape != (len(points),):
            raise ValueError(
                f"{who}: jnd gave an array of shape {found.shape} for {len(points)} points, expected ({len(points)},)"
            )
        if not (found > 0).all():
            raise ValueError(
                f"{who}: jnd must be positive everywhere, got {found[~(found > 0)][0]}"
            )
        return found

    return lambda points: in_batches(checked, points, batch_size)


def check_batch_size(who: str, batch_size: Any) -> None:
    if not (isinstance(batch_size, int | np.integer) and batch_size >= 1):
        raise ValueError(f"{who}: batch_size must be a whole number from 1 on, got {batch_size}")


def check_budget(who: str, budget: Any) -> None:
    if not (budget is None or isinstance(budget, int | np.integer)):
        raise ValueError(
            f"{who}: budget must be a whole number of questions or None, got {budget!r}"
        )


def check_domain(who: str, domain: Any, d: int) -> tuple[np.ndarray, np.ndarray]:
    """The box, (d,) each."""
    try:
        low, high = (np.broadcast_to(np.asarray(side, np.float64), (d,)) for side in domain)
    except (TypeError, ValueError):
        raise ValueError(
            f"{who}: domain must be (low, high), numbers or ({d},), got {domain}"
        ) from None
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(f"{who}: domain needs finite low < high, got {domain}")
    return low, high
