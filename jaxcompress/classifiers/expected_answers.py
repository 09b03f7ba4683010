"""Expected answers: how likely a compaction is right on examples that it was not run on, from what the original answers there.

A compaction moves logits in a way that depends on them: the change is regressed on the original's logits z, with a bend in each,

    z' = z + [1, z, max(z, 0)] B + noise,

on the examples that were seen. The margin m that this predicts misses by about `exp(a + b log(1 + |m|))`, and in units of that the
misses are taken to be alike: the chance to be right is the share of seen misses that would leave m positive. Nothing that is
promised rests on this (`jc.classifiers.rank_compactions` corrects it), only how near an estimate comes. One small linear system a fit.

Sources: ridge regression, Hoerl and Kennard 1970; estimates assisted by a model, Breidt and Opsomer 2017 (doi:10.1214/16-STS589).
"""

from __future__ import annotations

import numpy as np

from jaxcompress.classifiers.margins import signed_margins

RIDGE = 1.0
"""How many examples' worth of evidence says that a logit does not matter."""
DIRECTIONS = 32
"""Where there are more classes, the principal directions of the logits that the regression knows."""


def logit_features(logits: np.ndarray) -> np.ndarray:
    """What the change of logits is regressed on.

    Args:
        logits: (examples, classes) of the original.

    Returns:
        (examples, 1 + 2 * min(classes, 32)): one, centred logits in units of their spread, and these where they are positive.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.expected_answers import logit_features
        >>> logit_features(np.array([[3.0, 0.0], [-3.0, 6.0]])).tolist()
        [[1.0, 1.0, -1.0, 1.0, 0.0], [1.0, -1.0, 1.0, 0.0, 1.0]]
    """
    centred = logits - logits.mean(0)
    if logits.shape[1] > DIRECTIONS:
        some = centred[:: max(len(centred) // 1000, 1)]
        centred = centred @ np.linalg.svd(some, full_matrices=False)[2][:DIRECTIONS].T
    scaled = centred / max(
        centred.std(), 1e-9 * np.abs(logits).max(), 1e-30
    )  # what rounding leaves counts as nothing
    return np.concatenate([np.ones((len(scaled), 1)), scaled, np.maximum(scaled, 0)], 1)


def right_chances(
    features: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    index: np.ndarray,
    seen: np.ndarray,
) -> np.ndarray:
    """How likely a compaction gives the label, on every example.

    Args:
        features: (examples, k), of `logit_features`.
        logits: (examples, classes) of the original.
        labels: (examples,).
        index: (n,) the examples that were seen, one at least.
        seen: (n, classes), finite: the compaction's logits on them.

    Returns:
        (examples,), from 0 to 1.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.expected_answers import logit_features, right_chances
        >>> logits = np.random.default_rng(0).normal(size=(100, 2))
        >>> chances = right_chances(logit_features(logits), logits, np.zeros(100, int), np.arange(9), logits[:9] + [0.0, 0.2])
        >>> np.array_equal(chances, logits[:, 0] > logits[:, 1] + 0.2)
        True
    """
    first = (
        1e-9 * np.abs(logits).max() * np.arange(logits.shape[1])
    )  # of equal logits the first one is the answer
    logits, seen = logits - first, seen - first
    known = features[index]
    penalty = RIDGE * np.eye(features.shape[1])
    penalty[0, 0] = 1e-9
    weights = np.linalg.solve(known.T @ known + penalty, known.T @ (seen - logits[index]))
    margins = signed_margins(logits + features @ weights, labels)
    misses = signed_margins(seen, labels[index]) - margins[index]
    size, floor = (
        np.abs(margins).mean() or 1.0,
        0.05 * np.abs(misses).mean() + 1e-9 * np.abs(logits).max() + 1e-30,
    )
    far = np.log1p(np.abs(margins) / size)
    spread = np.stack([np.ones(len(far)), far], 1)
    fitted = np.linalg.lstsq(spread[index], np.log(np.abs(misses) + floor), rcond=None)[0]
    scale = np.exp(np.clip(spread @ fitted, -60, 60))
    return np.searchsorted(np.sort(-misses / scale[index]), margins / scale, "left") / len(index)
