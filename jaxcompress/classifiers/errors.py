"""Why a classifier errs: each test error is sorted into one of four causes, with the evidence.

A test point of class t is predicted as class p. Its k nearest training points answer:

    wrong interpolation   is it farther from the training data, or from those of class t, than all
                          but a hundredth of the training points are? Remote from all is a large
                          distance to the k-th neighbour in units of the local scale, remote from
                          class t a large one to its k-th point in units of that to the k-th point
                          of another class.
    which training points are in its region, that is, predicted p all the way along the segment?
        over-divided      none, though correctly predicted training points of other classes
                          surround it: a boundary without support in the data
        wrong labels      points labelled p against the majority of their own neighbourhood, which
                          the classifier followed
        under-divided     points that are not labelled p: the classifier errs on its training data,
                          too
    ambiguous             none of these outnumbers the others and the boundary that works: points
                          of class p among others of p inside, others correctly predicted outside.
                          The boundary is off by less than the data can show

The local scale is the median distance of the k neighbours to their own k-th neighbour. The first
question is a conformal test, and is valid in any dimension: of test points drawn as the training
points were, at most the share `level` is called remote. It has two blind spots. A region that is
missing from the training set but closer than the data are wide is "ambiguous", often with wrong
interpolation next; and where the share of wrong labels is above `level`, these hide points that are
remote from their class. The other questions are majorities. The costs are those of evidence.py.

Sources: in evidence.py and verdicts.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from jaxcompress.checks import array, checked, function, number, shown, whole
from jaxcompress.classifiers.evidence import (
    Errors,
    Predict,
    TrainingSet,
    gather_evidence,
    verdict_of,
)
from jaxcompress.classifiers.queries import CLASSIFY, Classify, PointFunction, checked_labels
from jaxcompress.classifiers.verdicts import ErrorReport
from jaxcompress.training.batches import in_batches

CALLER = "explain_errors"

Examples = tuple[ArrayLike, ArrayLike]
"""Inputs (n, ...) and labels (n,)."""


@checked(
    classify=CLASSIFY,
    embed=function("embed(x) -> features"),
    k=whole(),
    level=number("[0, 1)", "level is a share of test points, such as 0.01"),
    steps=whole(),
    batch_size=whole(),
)
def explain_errors(
    classify: Classify,
    train: Examples,
    test: Examples,
    *,
    embed: PointFunction | None = None,
    k: int = 10,
    level: float = 0.01,
    steps: int = 16,
    batch_size: int = 1_024,
    progress: bool = True,
) -> ErrorReport:
    """Sort the errors of a classifier by cause.

    The causes are wrong labels, over-divided, under-divided and wrong interpolation, explained in
    the module's docstring.

    Args:
        classify: `classify(x (n, ...)) -> labels (n,)`, integers; called with batches of
            `batch_size` examples, of which the last one is padded with its last example, so that a
            jitted function compiles once.
        train: (x, y), x floats (n, ...), y integers (n,), as the classifier was trained on.
            Repeated examples with the same label count once.
        test: (x, y) of the same shapes and types; the labels are assumed to be right.
        embed: `embed(x) -> (n, d)`, the space in which distances are measured; by default the
            inputs, flattened. Segments are straight in the inputs in any case.
        k: number of neighbours; the smallest structure that can be resolved has about as many
            training points.
        level: the share of ordinary test points that may be called remote. With fewer than
            2 / level training points none is, except where a class has no training points.
        steps: number of predictions between the two ends of a segment.
        batch_size: examples a call.
        progress: show progress bars.

    Returns:
        The report; `report.of("under-divided")` are the verdicts of one cause,
        `jc.plots.errors_by_cause` and `jc.plots.error_images` draw them.

    Raises:
        ValueError: for empty sets, shapes that do not fit, values that are not finite, fewer than
            two classes or k + 1 distinct training points, settings out of range.
        TypeError: for inputs that are not floats, labels or predictions that are not integers.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> x = np.random.default_rng(0).uniform(-1, 1, (1_200, 2))
        >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)
        >>> def line(x):
        ...     return (np.asarray(x)[:, 0] > -0.5).astype(int)
        >>> train, test = (x[:1_000], y[:1_000]), (x[1_000:], y[1_000:])
        >>> jc.classifiers.explain_errors(line, train, test, progress=False)
        ErrorReport(96 errors in 200, accuracy 0.52, on the training set 0.483)
          wrong labels                   0   0.0%
          over-divided                   0   0.0%
          under-divided                 94  97.9%, mean confidence 1.00
          wrong interpolation            2   2.1%, mean confidence 0.99
          ambiguous                      0   0.0%
    """
    x, y = _checked_examples("train", train)
    test_x, test_y = _checked_examples("test", test)
    _check_sets(x, y, test_x)
    predict = _predict(classify, batch_size, progress=progress)
    predicted = predict(test_x)
    wrong = np.flatnonzero(predicted != test_y)
    space = _space(embed, batch_size, progress=progress)
    points = space(x)
    # a repeated point would be its own neighbour, at distance 0
    distinct = _distinct(points, y)
    _check_neighbours(k, len(distinct))
    x, y, points = x[distinct], y[distinct], points[distinct]
    training_set = TrainingSet(distinct, x, y, points, predict(x))
    verdicts = []
    if len(wrong):
        errors = Errors(wrong, test_x[wrong], test_y[wrong], predicted[wrong], space(test_x[wrong]))
        evidence = gather_evidence(
            training_set, errors, predict, k=k, steps=steps, progress=progress
        )
        for i in range(len(wrong)):
            verdicts.append(verdict_of(i, training_set, errors, evidence, level))
    accuracy = float(1 - len(wrong) / len(test_y))
    train_accuracy = float(np.mean(training_set.predictions == y))
    return ErrorReport(verdicts, accuracy, train_accuracy, len(test_y))


def _predict(classify: Classify, batch_size: int, *, progress: bool) -> Predict:
    """The classifier with checked labels, in batches and with a progress bar."""

    def checked(inputs: np.ndarray) -> np.ndarray:
        labels = checked_labels(CALLER, classify(inputs), len(inputs), tuples=False)
        return labels.astype(np.int64)

    return lambda inputs: _batched(checked, inputs, batch_size, "classify", progress=progress)


def _space(
    embed: PointFunction | None, batch_size: int, *, progress: bool
) -> Callable[[np.ndarray], Float[np.ndarray, "n d"]]:
    """The map from inputs to the space of distances."""
    if embed is None:
        return lambda inputs: np.asarray(inputs, np.result_type(inputs, np.float32)).reshape(
            len(inputs), -1
        )

    def checked(inputs: np.ndarray) -> np.ndarray:
        features = np.asarray(embed(inputs), np.float64)
        if features.ndim != 2 or len(features) != len(inputs):
            raise ValueError(
                f"{CALLER}: embed gave {features.shape} for {len(inputs)} inputs, expected "
                f"({len(inputs)}, d)"
            )
        if not np.isfinite(features).all():
            raise ValueError(f"{CALLER}: embed gave NaN or infinity, which have no neighbours")
        return features

    return lambda inputs: _batched(checked, inputs, batch_size, "embed", progress=progress)


def _batched(
    function: Callable[[np.ndarray], np.ndarray],
    inputs: np.ndarray,
    batch_size: int,
    description: str,
    *,
    progress: bool,
) -> np.ndarray:
    """A function of all inputs, in batches and with a progress bar."""
    with tqdm(total=len(inputs), desc=description, disable=not progress, leave=False) as bar:
        return in_batches(function, inputs, batch_size, bar)


def _distinct(
    points: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " distinct"]:
    """The first of each distinct example, in an order that does not depend on that of the set."""
    # the same point with two labels is two examples
    classes = np.unique(y, return_inverse=True)[1].astype(points.dtype)
    # adding 0 removes negative zeros, so that equal rows have equal bytes
    rows = np.ascontiguousarray(np.column_stack([points + 0, classes]))
    return np.unique(rows.view(f"V{rows.shape[1] * rows.itemsize}").ravel(), return_index=True)[1]


def _checked_examples(
    name: str, examples: Examples
) -> tuple[Float[np.ndarray, "n ..."], Int[np.ndarray, " n"]]:
    """The arrays of one set, refused if they do not fit."""
    if not isinstance(examples, tuple | list) or len(examples) != 2:
        raise ValueError(f"{CALLER}: {name} must be (x, y), got {shown(examples)}")
    x, y = (array(f"{CALLER}: {name}", part, finite=False) for part in examples)
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(
            f"{CALLER} follows segments between inputs: {name} needs floats, got {x.dtype}; scale "
            "bytes to floats first"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"{CALLER}: the labels of {name} must be integers, got {y.dtype}")
    if x.ndim < 2 or y.shape != (len(x),) or not x.size:
        raise ValueError(
            f"{CALLER}: {name} needs inputs (n, ...) and labels (n,), n from 1 on, got {x.shape} "
            f"and {y.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"{CALLER}: the inputs of {name} hold NaN or infinity")
    return x, y.astype(np.int64)


def _check_sets(x: np.ndarray, y: np.ndarray, test_x: np.ndarray) -> None:
    if x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"{CALLER}: an input of train has the shape {x.shape[1:]}, one of test "
            f"{test_x.shape[1:]}; they must be equal"
        )
    if len(np.unique(y)) < 2:
        raise ValueError(
            f"{CALLER}: every label of train is {y[0]}; between fewer than two classes there is no "
            "decision boundary"
        )


def _check_neighbours(k: int, points: int) -> None:
    if points <= k:
        raise ValueError(
            f"{CALLER}: k={k} neighbours need more than {k} distinct training points, got {points}"
        )
