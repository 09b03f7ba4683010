"""Estimates of a compaction's accuracy, and their bounds, from evaluations on few examples.

Correctness on the other examples is predicted (`jaxcompress.classifiers.predicted_correctness`), by
fits that each leave out a fold of the last round's examples, and this fold corrects them, stratum
by stratum:

    examples * unbiased = right, evaluated + predicted right, unevaluated
                        + sum over strata of unevaluated * mean (right - predicted) of the drawn.

Without the last sum the estimate has less noise and some bias: `accuracy` is that, clipped to two
standard errors around the unbiased one. The unbiased one and the bounds hold whatever the
distribution of the movement and the predictions. Costs a few small linear systems.

Sources: difference estimator, Särndal et al. 1992; cross-fitting, Zrnic and Candès 2024
(arXiv:2309.16598); limited translation of an unbiased estimate, Efron and Morris 1972.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxcompress.classifiers.evaluation import Evaluation
from jaxcompress.classifiers.predicted_correctness import correctness_probabilities
from jaxcompress.classifiers.sampling import BASE_RATE, flip_probabilities
from jaxcompress.classifiers.stratified_bounds import total_bounds

FOLDS = 4
"""Folds of the drawn examples, each of which corrects the predictions of the others."""
TRUST = 2.0
"""Standard errors that the accuracy may differ from the unbiased estimate."""


@dataclasses.dataclass(frozen=True)
class CompactionEstimate:
    """The estimated accuracy of one compaction.

    Attributes:
        name: its name.
        accuracy: the estimate that ranks: with predictions for the unevaluated examples, at most
            two errors from the unbiased one, and within the bounds.
        unbiased: the estimate that is unbiased over the seeds of the active set, whatever the
            compaction does. It may therefore fall outside [0, 1].
        error: about the standard error of the unbiased one; the other is often closer.
        certain: bounds that always hold: all examples that are neither evaluated nor certified may
            be right, or wrong.
        confident: bounds that hold for all compactions at once with the confidence of the
            `Ranking`, whatever these are.
        movement: the measured mean movement of the signed margins.
        evaluations: number of evaluated examples.
    """

    name: str
    accuracy: float
    unbiased: float
    error: float
    certain: tuple[float, float]
    confident: tuple[float, float]
    movement: float
    evaluations: int

    def _cells(self) -> tuple[str, ...]:
        """The row of a table."""
        return (
            self.name,
            f"{self.accuracy:.4f}",
            f"{self.unbiased:.4f} ± {self.error:.4f}",
            f"{self.confident[0]:.4f} to {self.confident[1]:.4f}",
            f"{self.certain[0]:.4f} to {self.certain[1]:.4f}",
            f"{self.movement:.3g}",
            f"{self.evaluations:,}",
        )


class _OpenStratum(NamedTuple):
    """A stratum with unevaluated examples.

    Attributes:
        drawn: the examples of the last round.
        rest: the unevaluated examples.
    """

    drawn: Int[np.ndarray, " drawn"]
    rest: Int[np.ndarray, " rest"]


def estimate(evaluation: Evaluation, risk: float) -> CompactionEstimate:
    """The accuracy and its bounds.

    Args:
        evaluation: with two rounds.
        risk: the probability, at most, that the truth is not within the `confident` bounds.
    """
    active = evaluation.active
    total, original = len(active), active.right
    strata = [
        _OpenStratum(drawn, rest)
        for drawn, rest in zip(evaluation.last, evaluation.unevaluated(), strict=True)
        if len(rest)
    ]
    unevaluated = sum(len(stratum.rest) for stratum in strata)
    # right where evaluated, or where the certified bound keeps a right prediction
    in_pool = sum(original[part].sum() for part in evaluation.pool)
    known = evaluation.right.sum() + original.sum() - in_pool
    low, high = _bounds(evaluation, strata, risk)
    confident = (float(known + low) / total, float(known + high) / total)
    certain = (float(known) / total, float(known + unevaluated) / total)
    predicted, correction, variance = _predicted_total(evaluation, strata)
    unbiased, error = float(known + predicted + correction) / total, variance**0.5 / total
    accuracy = (known + predicted) / total
    accuracy = np.clip(accuracy, unbiased - TRUST * error, unbiased + TRUST * error)
    return CompactionEstimate(
        name=evaluation.candidate.name,
        accuracy=float(np.clip(float(accuracy), *confident)),
        unbiased=unbiased,
        error=error,
        certain=certain,
        confident=confident,
        movement=evaluation.movement,
        evaluations=len(evaluation.index),
    )


def _bounds(evaluation: Evaluation, strata: list[_OpenStratum], risk: float) -> tuple[float, float]:
    """Bounds of the number of unevaluated examples that are right, by the number that flipped."""
    active, position = evaluation.active, evaluation.positions()
    unflipped, flips, signs, drawn, sizes, expected = 0, [], [], [], [], []
    for stratum in strata:
        # within a stratum the original is right everywhere or nowhere
        was_right = active.right[stratum.drawn[0]]
        flips.append(np.sum(evaluation.right[position[stratum.drawn]] != was_right))
        signs.append(-1 if was_right else 1)
        drawn.append(len(stratum.drawn))
        sizes.append(len(stratum.drawn) + len(stratum.rest))
        unflipped += int(active.right[stratum.rest].sum()) - signs[-1] * flips[-1]
        # fixed before the draw: it must not depend on the examples that were drawn
        everything = np.concatenate(stratum)
        expected.append(flip_probabilities(active, everything, evaluation.prior).mean())
    low, high = total_bounds(
        np.array(flips, int),
        np.array(drawn, int),
        np.array(sizes, int),
        np.array(expected),
        np.array(signs, int),
        risk,
    )
    return unflipped + low, unflipped + high


def _predicted_total(
    evaluation: Evaluation, strata: list[_OpenStratum]
) -> tuple[float, float, float]:
    """The predicted number of right unevaluated examples, its correction, and the variance."""
    drawn = np.concatenate([*(stratum.drawn for stratum in strata), np.array([], np.int64)])
    fold = np.arange(len(drawn)) % FOLDS
    probability = np.stack([_predict(evaluation, drawn[fold == part]) for part in range(FOLDS)])
    error = evaluation.right[evaluation.positions()[drawn]] - probability[fold, drawn]
    predicted, correction, variance, start = 0.0, 0.0, 0.0, 0
    for stratum in strata:
        count, rest = len(stratum.drawn), len(stratum.rest)
        mine = slice(start, start := start + count)
        shares = np.bincount(fold[mine], minlength=FOLDS) / count
        mean = shares @ probability[:, stratum.rest]
        predicted += mean.sum()
        correction += rest * error[mine].mean()
        # errors that few examples do not show still count a little
        unsure = np.clip(mean, BASE_RATE, 1 - BASE_RATE)
        square = (np.sum(error[mine] ** 2) + np.mean(unsure * (1 - unsure))) / (count + 1)
        variance += rest * (rest + count) / count * square
    return float(predicted), float(correction), float(variance)


def _predict(evaluation: Evaluation, without: Int[np.ndarray, " fold"]) -> Float[np.ndarray, " n"]:
    """The probability that each example is right, from the evaluated ones without a fold.

    Without any evaluated example it is the original's correctness.
    """
    active = evaluation.active
    keep = ~np.isin(evaluation.index, without)
    if not keep.any():
        return active.right.astype(float)
    index, logits = evaluation.index[keep], evaluation.logits[keep]
    # of the kept ones only: the omitted fold must not have an influence
    finite = np.isfinite(logits).all(1)
    probability = np.full(len(active), np.mean(evaluation.right[keep] & ~finite))
    if finite.any():
        known = active.features, active.logits, active.labels
        fitted = correctness_probabilities(*known, index[finite], logits[finite])
        probability += finite.mean() * fitted
    return probability
