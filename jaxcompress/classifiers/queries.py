"""An oracle: a classifier that is queried in batches of one size, with checked and counted answers.

Every call gets `batch_size` points, so that a jitted classifier compiles once; the last batch is
padded with its last point, which is not counted as a query. Costs the classifier's calls.

Source: learning from membership queries, Angluin 1988 (doi:10.1007/BF00116828).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from jaxcompress.checks import Kind, array, function, is_whole, shown
from jaxcompress.training.batches import in_batches

Classify = Callable[[np.ndarray], ArrayLike]
"""`classify(points (batch_size, ...)) -> labels (batch_size,) or (batch_size, k)`, integers."""
PointFunction = Callable[[np.ndarray], ArrayLike]
"""A function of points (batch_size, d) that gives floats, one number or one row for each point."""
Jnd = float | ArrayLike | PointFunction
"""A just-noticeable difference: the smallest difference of inputs that matters (psychophysics)."""


CLASSIFY = function("classify(points) -> labels")
"""The kind of a classifier."""
SOFT = function("soft(points) -> probabilities")
"""The kind of a function that gives probabilities."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledPoints:
    """Points and a classifier's predictions there, as a training set.

    Attributes:
        points: float32; the classifier was queried at each.
        labels: the predictions, in the classifier's own integer type.
        weights: float64.
        soft: probabilities, or None.
        queries: number of points queried.
        complete: False where the budget ended the search.
        training_points: number of examples the classifier was trained on, as given.
    """

    points: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, "n ..."]
    weights: Float[np.ndarray, " n"]
    soft: Float[np.ndarray, "n classes"] | None
    queries: int
    complete: bool
    training_points: int | None = None

    @property
    def classes(self) -> Int[np.ndarray, "classes ..."]:
        """The distinct labels, sorted."""
        return np.unique(self.labels, axis=0)

    @property
    def targets(self) -> Int[np.ndarray, " n"]:
        """The index of each label in `classes`, int32: the targets of a student with logits."""
        return class_indices(self.labels)


def class_indices(labels: Int[np.ndarray, "n ..."]) -> Int[np.ndarray, " n"]:
    """The index of each label among the sorted distinct labels, int32."""
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)


@dataclasses.dataclass
class Oracle:
    """A classifier that counts its queries.

    Attributes:
        caller: the public function that queries, named in errors.
        classify: `classify(points (batch_size, d)) -> labels`.
        batch_size: points a call.
        budget: the most queries, or None; callers ask `affordable` first.
        bar: a tqdm bar of queries.
        queries: number of points queried so far.
        label_type: dtype and length of the labels, once known.
    """

    caller: str
    classify: Classify
    batch_size: int
    budget: int | None = None
    bar: tqdm | None = None
    queries: int = 0
    label_type: tuple[np.dtype | int, ...] | None = None

    def affordable(self, wanted: int) -> int:
        """The number of the wanted queries that the budget allows."""
        return wanted if self.budget is None else min(wanted, self.budget - self.queries)

    def labels(self, points: np.ndarray) -> np.ndarray:
        """Query the classifier at points."""
        self.queries += len(points)
        return in_batches(self._checked, points, self.batch_size, self.bar)

    def _checked(self, points: np.ndarray) -> np.ndarray:
        labels = checked_labels(self.caller, self.classify(points), len(points))
        label_type = (labels.dtype, *labels.shape[1:])
        self.label_type = label_type if self.label_type is None else self.label_type
        if label_type != self.label_type:
            raise ValueError(
                f"{self.caller}: classify gave labels of type {label_type} after "
                f"{self.label_type}: one type and one length for all"
            )
        return labels


def checked_labels(
    caller: str, labels: ArrayLike, count: int, *, tuples: bool = True
) -> Int[np.ndarray, "count ..."]:
    """A classifier's output as integer labels, refused where it is anything else.

    Args:
        caller: the public function, named in errors.
        labels: the output for `count` points.
        count: number of points.
        tuples: also accept tuples of integers, (count, k).
    """
    checked = np.asarray(labels)
    # numpy does not count booleans as integers
    checked = checked.astype(np.int32) if checked.dtype == bool else checked
    if not np.issubdtype(checked.dtype, np.integer):
        hint = ": take the argmax"  # floats are usually logits
        if tuples and checked.dtype == object:
            hint = "; integers beyond 64 bits are given as tuples (n, k)"
        raise TypeError(f"{caller}: classify gave {checked.dtype}, expected integers{hint}")
    ndims = (1, 2) if tuples else (1,)
    if checked.ndim not in ndims or len(checked) != count or 0 in checked.shape[1:]:
        expected = f"({count},)" + f" or ({count}, k)" * tuples
        raise ValueError(
            f"{caller}: classify gave labels of shape {checked.shape} for {count} points, "
            f"expected {expected}"
        )
    return checked


def probabilities(
    caller: str, soft: PointFunction | None, points: np.ndarray, batch_size: int
) -> Float[np.ndarray, "n classes"] | None:
    """The probabilities that `soft` gives at points, checked; None without it."""
    if soft is None:
        return None
    classes: list[int] = []

    def checked(points: np.ndarray) -> np.ndarray:
        given = soft(points)
        batch = array(f"{caller}: what soft gave", given, finite=False).astype(np.float32)
        if batch.ndim != 2 or len(batch) != len(points) or not batch.shape[1]:
            raise ValueError(
                f"{caller}: soft gave an array of shape {batch.shape} for {len(points)} points, "
                f"expected ({len(points)}, classes)"
            )
        classes.append(batch.shape[1])
        if classes[-1] != classes[0]:
            raise ValueError(
                f"{caller}: soft gave {classes[-1]} classes after {classes[0]}: "
                "give the same number for all points"
            )
        if not np.isfinite(batch).all():
            raise ValueError(f"{caller}: soft gave NaN or infinity; expected probabilities")
        return batch

    return in_batches(checked, points, batch_size)


def jnd_function(
    caller: str, jnd: PointFunction, batch_size: int
) -> Callable[[np.ndarray], Float[np.ndarray, " n"]]:
    """A just-noticeable difference that varies in space, checked and in batches."""

    def checked(points: np.ndarray) -> np.ndarray:
        differences = np.asarray(jnd(points), np.float64)
        if differences.shape != (len(points),):
            raise ValueError(
                f"{caller}: jnd gave an array of shape {differences.shape} for {len(points)} "
                f"points, expected ({len(points)},)"
            )
        bad = differences[~(differences > 0)]
        if len(bad):
            raise ValueError(f"{caller}: jnd must be positive everywhere, got {bad[0]}")
        return differences

    return lambda points: in_batches(checked, points, batch_size)


def jnd_kind(what: str, dimensions: tuple[int, ...]) -> Kind:
    """The kind of a just-noticeable difference: a function, or positive numbers."""

    def kind(name: str, value: Jnd) -> Jnd:
        if callable(value):
            return value
        expected = f"positive, {what},"
        differences = array(name, value, dimensions, finite=False, what=expected)
        positive = differences > 0  # infinity asks for no refinement; NaN is not positive
        if differences.dtype == bool or not positive.all():
            raise ValueError(f"{name} must be {expected} got {shown(value)}")
        return value

    return kind


def check_budget(caller: str, budget: object) -> None:
    """Refuse a budget that is neither an integer nor None."""
    if not (budget is None or is_whole(budget, 0)):
        raise ValueError(
            f"{caller}: budget must be a whole number of queries or None, got {budget!r}"
        )


def check_box(
    caller: str,
    domain: tuple[ArrayLike, ArrayLike],
    d: int | None = None,
    *,
    dtype: type[np.floating] = np.float64,
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """The lower and upper corner of a box, in float64.

    Args:
        caller: the public function, named in errors.
        domain: (low, high).
        d: number of dimensions that numbers are broadcast to; None takes that of the corners.
        dtype: the corners are rounded to this type.
    """
    expected = "(low (d,), high (d,))" if d is None else f"(low, high), numbers or ({d},)"
    try:
        # rounded to the type, then computed with in float64
        sides = (array("a side", side, (0, 1), finite=False) for side in domain)
        low, high = (side.astype(dtype).astype(np.float64) for side in sides)
        if d is not None:
            low, high = np.broadcast_to(low, (d,)), np.broadcast_to(high, (d,))
    except (TypeError, ValueError):
        raise ValueError(f"{caller}: domain must be {expected}, got {domain}") from None
    if low.ndim != 1 or low.shape != high.shape or not len(low):
        raise ValueError(
            f"{caller}: domain must be {expected}, got the shapes {low.shape} and {high.shape}"
        )
    finite = np.isfinite(low).all() and np.isfinite(high).all()
    if not (finite and (low < high).all() and (high - low <= np.finfo(dtype).max).all()):
        raise ValueError(
            f"{caller}: domain needs finite low < high in every dimension, "
            f"got {low.tolist()} and {high.tolist()}"
        )
    return low, high
