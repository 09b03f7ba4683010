"""Evidence for the causes of errors: neighbours, remoteness, and predictions along segments.

Costs the distances of all pairs of training points twice, 4 n^2 d operations, and k + 2 times
`steps` predictions an error.

Sources: conformal p-values, and the ratio of the distances to two classes, Vovk et al. 2005;
distances in units of the neighbours' own, the local outlier factor (Breunig et al. 2000); labels
against their neighbourhood, edited nearest neighbours (Wilson 1972).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcompress.classifiers.neighbours import (
    Neighbourhoods,
    conformal_p_values,
    nearest,
    neighbourhoods,
    outvoted,
)
from jaxcompress.classifiers.verdicts import Path, Verdict, decide_cause

SEGMENT_NUMBERS = 2**24
"""Numbers of the inputs on segments that are in memory at once."""

Predict = Callable[[np.ndarray], np.ndarray]
"""`predict(x (n, ...)) -> labels (n,)`, checked and in batches."""


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """The distinct training examples.

    Attributes:
        indices: in the set that was given.
        x: inputs.
        y: labels.
        points: the inputs in the space of distances.
        predictions: of the classifier.
    """

    indices: Int[np.ndarray, " n"]
    x: Float[np.ndarray, "n ..."]
    y: Int[np.ndarray, " n"]
    points: Float[np.ndarray, "n d"]
    predictions: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Errors:
    """The misclassified test examples.

    Attributes:
        indices: in the test set.
        x: inputs.
        true: their classes.
        predicted: the predictions.
        points: the inputs in the space of distances.
    """

    indices: Int[np.ndarray, " m"]
    x: Float[np.ndarray, "m ..."]
    true: Int[np.ndarray, " m"]
    predicted: Int[np.ndarray, " m"]
    points: Float[np.ndarray, "m d"]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that the verdicts rest on.

    Attributes:
        around: the neighbours.
        remoteness: p-values.
        doubtful: whether a training point's label is outvoted by its neighbours.
        ends: training points that segments lead to: the k neighbours, the nearest point of the
            true class, and that of the predicted class; -1 where there is none.
        along: predictions on the segments, both ends left out.
        inside: whether a neighbour is predicted like the error all along the segment.
    """

    around: Neighbourhoods
    remoteness: Float[np.ndarray, " m"]
    doubtful: Bool[np.ndarray, " n"]
    ends: Int[np.ndarray, "m ends"]
    along: Int[np.ndarray, "m ends steps"]
    inside: Bool[np.ndarray, "m k"]


def gather_evidence(
    train: TrainingSet, errors: Errors, predict: Predict, *, k: int, steps: int, progress: bool
) -> Evidence:
    """Look at the k nearest training points of each error, and at the segments to them.

    Args:
        train: the training set.
        errors: the misclassified test examples.
        predict: the classifier.
        k: number of neighbours.
        steps: number of predictions between the ends of a segment.
        progress: show progress bars.
    """
    around = neighbourhoods(train.points, errors.points, k, progress=progress)
    from_class, first = _class_remoteness(train, errors, k, progress=progress)
    from_data = conformal_p_values(around.relative_points, around.relative_queries)
    # two questions, remote from all data and from the class: the p-value is doubled (Bonferroni)
    remoteness = np.minimum(1.0, 2 * np.minimum(from_data, from_class))
    classes, near = np.unique(train.y), around.of_queries
    to_true = _nearest_of(classes, first, errors.true)
    to_predicted = _nearest_of(classes, first, errors.predicted)
    ends = np.column_stack([near, to_true, to_predicted])
    along = _predictions_along(predict, errors.x, train.x, ends, steps)
    same = (along == errors.predicted[:, None, None]).all(2)[:, :k]
    inside = same & (train.predictions[near] == errors.predicted[:, None])
    return Evidence(around, remoteness, outvoted(train.y, around.of_points), ends, along, inside)


def verdict_of(
    i: int, train: TrainingSet, errors: Errors, evidence: Evidence, level: float
) -> Verdict:
    """The verdict on the i-th error."""
    near = evidence.around.of_queries[i]
    k, scale = len(near), float(evidence.around.scales[i])
    labels, predictions, predicted = train.y[near], train.predictions[near], errors.predicted[i]
    inside, doubtful = evidence.inside[i], evidence.doubtful[near]
    same_label = inside & (labels == predicted)
    kinds = {
        "wrong labels": same_label & doubtful,
        # these are outside of the region, where the data support another class
        "over-divided": (predictions == labels) & (labels != predicted),
        "under-divided": inside & ~same_label,
        "supported": same_label & ~doubtful,
    }
    counts = {name: int(kind.sum()) for name, kind in kinds.items()}
    remoteness = float(evidence.remoteness[i])
    decision = decide_cause(counts, k, remoteness, level)
    return Verdict(
        index=int(errors.indices[i]),
        true=int(errors.true[i]),
        predicted=int(predicted),
        cause=decision.cause,
        runner_up=decision.runner_up,
        confidence=decision.confidence,
        remoteness=remoteness,
        evidence=counts,
        scale=scale,
        neighbours=train.indices[near],
        labels=labels,
        predictions=predictions,
        distances=evidence.around.distances[i] / scale,
        inside=inside,
        outvoted=doubtful,
        to_true=_path(i, k, train, errors, evidence),
        to_predicted=_path(i, k + 1, train, errors, evidence),
    )


def _path(
    i: int, segment: int, train: TrainingSet, errors: Errors, evidence: Evidence
) -> Path | None:
    """One of the segments of an error, or None where there is no training point."""
    end = evidence.ends[i, segment]
    if end < 0:
        return None
    distance = float(np.linalg.norm(train.points[end] - errors.points[i]))
    between = evidence.along[i, segment]
    labels = np.concatenate([[errors.predicted[i]], between, [train.predictions[end]]])
    return Path(int(train.indices[end]), float(distance / evidence.around.scales[i]), labels)


def _class_remoteness(
    train: TrainingSet, errors: Errors, k: int, *, progress: bool
) -> tuple[Float[np.ndarray, " m"], Int[np.ndarray, "m classes"]]:
    """P-values of the errors' distances to their own class, and their nearest point of each class.

    The distance to the k-th point of the own class is measured in units of that to the k-th point
    of the nearest other one, and compared with that of the training points.
    """
    classes = np.unique(train.y)
    everything = np.concatenate([train.points, errors.points])
    count = len(train.points)
    distances = np.empty((len(everything), len(classes)))
    first = np.empty((len(errors.points), len(classes)), np.int64)
    for column, label in enumerate(classes):
        members = np.flatnonzero(train.y == label)
        own = np.full(len(everything), -1)
        own[members] = np.arange(len(members))
        # a class of fewer points than k is compared by its farthest one
        neighbours = min(k, max(len(members) - 1, 1))
        near, indices = nearest(
            everything, train.points[members], neighbours, own=own, progress=progress
        )
        distances[:, column], first[:, column] = near[:, -1], members[indices[count:, 0]]
    own_column = _column(classes, np.concatenate([train.y, errors.true]))
    rows = np.arange(len(everything))
    own_distance = distances[rows, own_column].copy()
    distances[rows, own_column] = np.inf
    # two equal points of different classes have the distance 0
    ratios = own_distance / np.maximum(distances.min(1), np.finfo(np.float64).tiny)
    p_values = conformal_p_values(ratios[:count], ratios[count:])
    # a class without training points is infinitely remote
    return np.where(np.isin(errors.true, classes), p_values, 0.0), first


def _column(
    classes: Int[np.ndarray, " classes"], labels: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """The index of labels among sorted classes; arbitrary for others."""
    return np.minimum(np.searchsorted(classes, labels), len(classes) - 1)


def _nearest_of(
    classes: Int[np.ndarray, " classes"],
    first: Int[np.ndarray, "m classes"],
    labels: Int[np.ndarray, " m"],
) -> Int[np.ndarray, " m"]:
    """The nearest training point of a class each, -1 for classes without training points."""
    points = first[np.arange(len(labels)), _column(classes, labels)]
    return np.where(np.isin(labels, classes), points, -1)


def _predictions_along(
    predict: Predict,
    starts: Float[np.ndarray, "m ..."],
    x: Float[np.ndarray, "n ..."],
    ends: Int[np.ndarray, "m ends"],
    steps: int,
) -> Int[np.ndarray, "m ends steps"]:
    """Predictions between the starts and the training points at their ends, both left out."""
    share = (np.arange(1, steps + 1) / (steps + 1)).astype(x.dtype)
    share = share.reshape(-1, *[1] * (x.ndim - 1))
    size = max(1, SEGMENT_NUMBERS // (ends.shape[1] * steps * max(x[0].size, 1)))
    predictions = []
    for first in range(0, len(starts), size):
        inputs = []
        for start, targets in zip(
            starts[first : first + size], ends[first : first + size], strict=True
        ):
            inputs += [start + share * (x[end] - start) for end in targets]
        predictions.append(predict(np.concatenate(inputs)))
    return np.concatenate(predictions).reshape(*ends.shape, steps)
