"""The probability that a compaction is right on examples it was not run on, from the logits.

A compaction is a compressed version of the network. It moves logits in a way that depends on them:
the change is regressed on the original's logits z, with a bend in each,

    z' = z + [1, z, max(z, 0)] B + noise,

on the evaluated examples. The errors of the margin m that this predicts have the scale
`exp(a + b log(1 + |m|))`, and in units of that they are taken to be identically distributed: the
probability to be right is the share of observed errors that leave m positive. No guarantee rests on
this (`jc.classifiers.rank_compactions` corrects it), only the accuracy of an estimate. One small
linear system a fit.

Sources: ridge regression, Hoerl and Kennard 1970; model-assisted estimates, Breidt and Opsomer 2017
(doi:10.1214/16-STS589).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from jaxcompress.classifiers.margins import signed_margins

RIDGE = 1.0
"""Strength of the prior that a logit does not matter, in examples."""
DIRECTIONS = 32
"""With more classes, the number of principal directions of the logits in the regression."""
TIE = 1e-9
"""Relative difference that breaks ties of logits, and noise floor of rounding."""


def logit_features(logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n features"]:
    """The features that changes of logits are regressed on.

    Args:
        logits: of the original.

    Returns:
        1 + 2 * min(classes, 32) features: one, centred logits in units of their standard deviation,
        and their positive parts.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.predicted_correctness import logit_features
        >>> logit_features(np.array([[3.0, 0.0], [-3.0, 6.0]])).tolist()
        [[1.0, 1.0, -1.0, 1.0, 0.0], [1.0, -1.0, 1.0, 0.0, 1.0]]
    """
    centred = logits - logits.mean(0)
    if logits.shape[1] > DIRECTIONS:
        # directions of about a thousand examples: enough, and much faster
        sample = centred[:: max(len(centred) // 1000, 1)]
        centred = centred @ np.linalg.svd(sample, full_matrices=False)[2][:DIRECTIONS].T
    # a spread that is only rounding counts as none
    scaled = centred / max(centred.std(), TIE * np.abs(logits).max(), 1e-30)
    return np.concatenate([np.ones((len(scaled), 1)), scaled, np.maximum(scaled, 0)], 1)


def correctness_probabilities(
    features: Float[np.ndarray, "n features"],
    logits: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    index: Int[np.ndarray, " evaluated"],
    evaluated: Float[np.ndarray, "evaluated classes"],
) -> Float[np.ndarray, " n"]:
    """The probability that a compaction predicts the label, on every example.

    Args:
        features: of `logit_features`.
        logits: of the original.
        labels: of the examples.
        index: the evaluated examples, one at least.
        evaluated: the compaction's logits on them, finite.

    Returns:
        From 0 to 1.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.predicted_correctness import (
        ...     correctness_probabilities,
        ...     logit_features,
        ... )
        >>> logits = np.random.default_rng(0).normal(size=(100, 2))
        >>> labels, index, evaluated = np.zeros(100, int), np.arange(9), logits[:9] + [0.0, 0.2]
        >>> probability = correctness_probabilities(
        ...     logit_features(logits), logits, labels, index, evaluated
        ... )
        >>> np.array_equal(probability, logits[:, 0] > logits[:, 1] + 0.2)
        True
    """
    largest = np.abs(logits).max()
    # of equal logits the first one is the prediction
    tie_break = TIE * largest * np.arange(logits.shape[1])
    logits, evaluated = logits - tie_break, evaluated - tie_break
    known = features[index]
    penalty = RIDGE * np.eye(features.shape[1])
    penalty[0, 0] = 1e-9  # a constant change of the logits is not penalized
    weights = np.linalg.solve(known.T @ known + penalty, known.T @ (evaluated - logits[index]))
    margins = signed_margins(logits + features @ weights, labels)
    errors = signed_margins(evaluated, labels[index]) - margins[index]
    scale = _error_scale(margins, errors, index, largest)
    positive = np.searchsorted(np.sort(-errors / scale[index]), margins / scale, "left")
    return positive / len(index)


def _error_scale(
    margins: np.ndarray, errors: np.ndarray, index: np.ndarray, largest: float
) -> Float[np.ndarray, " n"]:
    """The scale of the errors of predicted margins, `exp(a + b log(1 + |m|))`."""
    size = np.abs(margins).mean() or 1.0
    # an error of zero would have the logarithm -inf
    floor = 0.05 * np.abs(errors).mean() + TIE * largest + 1e-30
    distance = np.log1p(np.abs(margins) / size)
    terms = np.stack([np.ones(len(distance)), distance], 1)
    coefficients = np.linalg.lstsq(terms[index], np.log(np.abs(errors) + floor), rcond=None)[0]
    return np.exp(np.clip(terms @ coefficients, -60, 60))
