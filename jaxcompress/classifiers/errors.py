"""Why a classifier errs: each test error is sorted into one of four causes, with the evidence.

A test point of class t is taken for class p. Its k nearest training points are asked, in this order:

    wrong interpolation   is it farther from the training data, or from those of class t, than all but a hundredth of the training
                          points are? Far from all is a large distance to the k-th neighbour in units of the local scale, far from
                          class t a large one to its k-th point in units of that to the k-th point of another class.
    who lives in the region that it fell into: training points that are themselves predicted p, all the way along the segment?
        over-divided      nobody, though training points that are rightly predicted otherwise surround it: a border without support
        wrong labels      points labelled p against the majority of their own neighbourhood, which the classifier followed
        under-divided     points that are not labelled p: the classifier errs on its training data, too
    ambiguous             neither outnumbers the other and the border that works: points of class p among their like inside, others
                          rightly predicted outside. It is off by less than the data tell

The local scale is the median distance of the k neighbours to their own k-th neighbour. The first question is a conformal test, and
holds in any dimension: of test points drawn as the training points were, it takes no more than the share `level` for remote. It has
two blind spots. What was left out of the training set but lies no farther off than the data are wide is "ambiguous", often with
wrong interpolation next; and where more labels than that share are wrong, they hide who is far from its class. The other questions
are majorities. Costs the distances of all pairs of training points twice, 4 n^2 d operations, and k times `steps` predictions an
error.

Sources: conformal p-values, and the ratio of the distances to two classes, Vovk et al. 2005; farness in units of the neighbours'
own, the local outlier factor (Breunig et al. 2000); labels against their neighbourhood, edited nearest neighbours (Wilson 1972).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from jaxcompress.classifiers.neighbours import nearest, outvoted, conformal_p_values, neighbourhoods
from jaxcompress.classifiers.queries import checked_labels
from jaxcompress.classifiers.verdicts import ErrorReport, Path, Verdict, judge
from jaxcompress.training.batches import in_batches

Classify = Callable[[Any], Any]

WALKED = 2**24
"""Numbers of inputs on segments that are in memory at once."""


def explain_errors(
    classify: Classify,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    embed: Callable[[Any], Any] | None = None,
    k: int = 10,
    level: float = 0.01,
    steps: int = 16,
    batch_size: int = 1_024,
    progress: bool = True,
) -> ErrorReport:
    """Sort the errors of a classifier into wrong labels, over-divided, under-divided and wrong interpolation.

    Args:
        classify: `classify(x (n, ...)) -> labels (n,)`, integers; called with batches of `batch_size` examples, of which the last
            repeats its last example, so that a jitted function compiles once.
        train: (x, y), x floats (n, ...), y integers (n,), as the classifier was trained on. Examples that are repeated,
            label and all, count once.
        test: (x, y), likewise; the labels are taken for right.
        embed: `embed(x) -> (n, d)`, the space in which distances are taken; by default the inputs, flattened. Segments are
            straight in the inputs in any case.
        k: how many neighbours are asked; the finest thing that is told apart has about so many training points.
        level: the share of ordinary test points that may be taken for remote. Fewer than 2 / level training points allow no such
            verdict, except where a class was never seen.
        steps: how often the classifier is asked between the two ends of a segment.
        batch_size: examples a call.
        progress: show progress bars.

    Returns:
        The report; `report.of("under-divided")` are the verdicts of one cause, `jc.plots.errors_by_cause` draws them.

    Raises:
        ValueError: for empty sets, shapes that do not fit, values that are not finite, fewer than two classes or k + 1 different
            training points, settings out of range.
        TypeError: for inputs that are not floats, labels or predictions that are not integers.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> x = np.random.default_rng(0).uniform(-1, 1, (1_200, 2))
        >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)
        >>> line = lambda x: (np.asarray(x)[:, 0] > -0.5).astype(int)
        >>> jc.classifiers.explain_errors(line, (x[:1_000], y[:1_000]), (x[1_000:], y[1_000:]), progress=False)
        ErrorReport(96 errors in 200, accuracy 0.52, on the training set 0.483)
          wrong labels                   0   0.0%
          over-divided                   0   0.0%
          under-divided                 94  97.9%, mean confidence 1.00
          wrong interpolation            2   2.1%, mean confidence 0.99
          ambiguous                      0   0.0%
    """
    x, y = _examples("train", *train)
    test_x, test_y = _examples("test", *test)
    _check(x, y, test_x, k=k, level=level, steps=steps, batch_size=batch_size)
    ask = lambda inputs: checked_labels(
        "explain_errors", classify(inputs), len(inputs), tuples=False
    ).astype(np.int64)
    say = lambda inputs: _with_bar(ask, inputs, batch_size, "classify", progress)
    said = say(test_x)
    wrong = np.flatnonzero(said != test_y)
    space = lambda inputs: (
        np.asarray(inputs, np.result_type(inputs, np.float32)).reshape(len(inputs), -1)
        if embed is None
        else _with_bar(_features(embed), inputs, batch_size, "embed", progress)
    )
    points = space(x)
    chosen = _different(points, y)
    if len(chosen) <= k:
        raise ValueError(
            f"explain_errors: k={k} neighbours need more than {k} different training points, got {len(chosen)}"
        )
    x, y, points = x[chosen], y[chosen], points[chosen]
    train_said = say(x)
    accuracies = float(1 - len(wrong) / len(test_y)), float(np.mean(train_said == y))
    if not len(wrong):
        return ErrorReport([], *accuracies, len(test_y))

    queries, true, predicted = space(test_x[wrong]), test_y[wrong], said[wrong]
    around = neighbourhoods(points, queries, k, progress=progress)
    names = np.unique(y)
    lonely, first = _by_class(points, y, queries, true, names, k, progress)
    # two questions, no data at all and none of the class: the smaller p-value counts twice (Bonferroni)
    remoteness = np.minimum(
        1.0, 2 * np.minimum(conformal_p_values(around.relative_points, around.relative_queries), lonely)
    )
    doubtful = outvoted(y, around.of_points)
    near = around.of_queries
    of_class = lambda label: np.where(
        np.isin(label, names), first[np.arange(len(wrong)), _place(names, label)], -1
    )
    ends = np.column_stack([near, of_class(true), of_class(predicted)])
    ways = _walk(say, test_x[wrong], x, ends, steps)
    inside = (ways == predicted[:, None, None]).all(2)[:, :k] & (
        train_said[near] == predicted[:, None]
    )

    def way_to(i: int, place: int) -> Path | None:
        if (end := ends[i, place]) < 0:
            return None
        far = float(np.linalg.norm(points[end] - queries[i])) / around.scales[i]
        return Path(
            int(chosen[end]), float(far), np.r_[predicted[i], ways[i, place], train_said[end]]
        )

    verdicts = []
    for i, index in enumerate(wrong):
        labels, predictions = y[near[i]], train_said[near[i]]
        alike = inside[i] & (labels == predicted[i])
        testify = {
            "wrong labels": alike & doubtful[near[i]],
            "over-divided": (predictions == labels) & (labels != predicted[i]),
            "under-divided": inside[i] & ~alike,
            "supported": alike & ~doubtful[near[i]],
        }
        witnesses = {name: int(each.sum()) for name, each in testify.items()}
        cause, runner_up, confidence = judge(witnesses, k, float(remoteness[i]), level)
        scale = float(around.scales[i])
        verdicts.append(
            Verdict(
                index=int(index),
                true=int(true[i]),
                predicted=int(predicted[i]),
                cause=cause,
                runner_up=runner_up,
                confidence=confidence,
                remoteness=float(remoteness[i]),
                witnesses=witnesses,
                scale=scale,
                neighbours=chosen[near[i]],
                labels=labels,
                predictions=predictions,
                distances=around.distances[i] / scale,
                inside=inside[i],
                outvoted=doubtful[near[i]],
                to_true=way_to(i, k),
                to_predicted=way_to(i, k + 1),
            )
        )
    return ErrorReport(verdicts, *accuracies, len(test_y))


def _by_class(
    points: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    true: np.ndarray,
    names: np.ndarray,
    k: int,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """How lonely queries are in their class, as p-values (m,), and their nearest point of each class, (m, classes).

    Lonely is who is farther from the k-th point of its own class than from that of another one, by the measure of the points.
    """
    everybody = np.concatenate([points, queries])
    far, first = (
        np.empty((len(everybody), len(names))),
        np.empty((len(queries), len(names)), np.int64),
    )
    for place, label in enumerate(names):
        mine = np.flatnonzero(y == label)
        own = np.full(len(everybody), -1)
        own[mine] = np.arange(len(mine))
        found, indices = nearest(
            everybody, points[mine], min(k, max(len(mine) - 1, 1)), own=own, progress=progress
        )
        far[:, place], first[:, place] = found[:, -1], mine[indices[len(points) :, 0]]
    whose = _place(names, np.concatenate([y, true]))
    rows = np.arange(len(everybody))
    mine = far[rows, whose].copy()
    far[rows, whose] = np.inf
    ratios = mine / np.maximum(far.min(1), np.finfo(np.float64).tiny)
    found = conformal_p_values(ratios[: len(points)], ratios[len(points) :])
    return np.where(
        np.isin(true, names), found, 0.0
    ), first  # a class never seen has no points at all


def _place(names: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Where labels stand among sorted names; anywhere, where they do not."""
    return np.minimum(np.searchsorted(names, labels), len(names) - 1)


def _walk(
    say: Callable[[np.ndarray], np.ndarray],
    starts: np.ndarray,
    x: np.ndarray,
    ends: np.ndarray,
    steps: int,
) -> np.ndarray:
    """(m, ends, steps) what is said between the starts and the training points at their ends, both left out."""
    share = (np.arange(1, steps + 1) / (steps + 1)).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    between = lambda start, end: start + share * (x[end] - start)
    rows = max(
        1, WALKED // (ends.shape[1] * steps * max(x[0].size, 1))
    )  # so many starts are in memory at once
    said = [
        say(
            np.concatenate(
                [
                    between(start, end)
                    for start, to in zip(starts[i : i + rows], ends[i : i + rows])
                    for end in to
                ]
            )
        )
        for i in range(0, len(starts), rows)
    ]
    return np.concatenate(said).reshape(*ends.shape, steps)


def _with_bar(
    function: Callable[[np.ndarray], np.ndarray],
    inputs: np.ndarray,
    batch_size: int,
    words: str,
    progress: bool,
) -> np.ndarray:
    """A function of all inputs, with a progress bar."""
    with tqdm(total=len(inputs), desc=words, disable=not progress, leave=False) as bar:
        return in_batches(function, inputs, batch_size, bar)


def _features(embed: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    def checked(inputs: np.ndarray) -> np.ndarray:
        found = np.asarray(embed(inputs), np.float64)
        if found.ndim != 2 or len(found) != len(inputs):
            raise ValueError(
                f"explain_errors: embed gave {found.shape} for {len(inputs)} inputs, expected ({len(inputs)}, d)"
            )
        if not np.isfinite(found).all():
            raise ValueError("explain_errors: embed gave NaN or infinity, which have no neighbours")
        return found

    return checked


def _different(points: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The first of each different example, in an order that does not depend on theirs."""
    classes = np.unique(y, return_inverse=True)[1].astype(points.dtype)
    rows = np.ascontiguousarray(np.column_stack([points + 0, classes]))  # no negative zero
    return np.unique(rows.view(f"V{rows.shape[1] * rows.itemsize}").ravel(), return_index=True)[1]


def _examples(name: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of one set, or what is wrong with it."""
    x, y = np.asarray(x), np.asarray(y)
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(
            f"explain_errors walks straight between inputs: {name} needs floats, got {x.dtype}; scale bytes to floats first"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"explain_errors: the labels of {name} must be integers, got {y.dtype}")
    if x.ndim < 2 or y.shape != (len(x),) or not x.size:
        raise ValueError(
            f"explain_errors: {name} needs inputs (n, ...) and labels (n,), n from 1 on, got {x.shape} and {y.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"explain_errors: the inputs of {name} hold NaN or infinity")
    return x, y.astype(np.int64)


def _check(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, **settings: Any) -> None:
    """Refuse sets and settings that do not fit, before any work."""
    if x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"explain_errors: an input of train is {x.shape[1:]}, one of test {test_x.shape[1:]}; they must be alike"
        )
    if len(np.unique(y)) < 2:
        raise ValueError(
            f"explain_errors: every label of train is {y[0]}; between fewer than two classes there is no border"
        )
    for name in ("k", "steps", "batch_size"):
        if not (isinstance(settings[name], (int, np.integer)) and settings[name] >= 1):
            raise ValueError(
                f"explain_errors: {name} must be a whole number from 1 on, got {settings[name]!r}"
            )
    if not 0 <= settings["level"] < 1:
        raise ValueError(
            f"explain_errors: level is a share of test points, such as 0.01, got {settings['level']!r}"
        )
