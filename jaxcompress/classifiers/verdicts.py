"""Causes of a classifier's errors: a verdict for each error, and the report of all.

`decide_cause` weighs the evidence of the k nearest training points and the remoteness of the test
point; the questions are in the docstring of errors.py. The costs are negligible.

Source: confidences are Bayesian, the posterior of a share from a uniform prior (Bayes 1763).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import betainc

CAUSES = ("wrong labels", "over-divided", "under-divided", "wrong interpolation")
AMBIGUOUS = "ambiguous"


@dataclasses.dataclass(frozen=True)
class Path:
    """A straight segment of inputs from a test point to a training point.

    Attributes:
        index: the training point.
        distance: its distance, in units of the local scale.
        labels: the predictions along the segment, both ends included.
    """

    index: int
    distance: float
    labels: Int[np.ndarray, " points"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why one test point is misclassified.

    Attributes:
        index: the test point.
        true: its class.
        predicted: the classifier's prediction.
        cause: one of `CAUSES`, or "ambiguous".
        runner_up: the next cause; "" where there is no evidence for another.
        confidence: for "wrong interpolation" one minus the p-value; otherwise the posterior
            probability, from a uniform prior, that most training points of such a region would be
            evidence for the cause; for "ambiguous" for none of them.
        remoteness: the p-value of the first question: the share of training points that are as
            remote, doubled for its two parts.
        evidence: number of the k neighbours that are evidence for each: "wrong labels",
            "under-divided" and "supported" (points of the predicted class among others of it) are
            in the region, "over-divided" are correctly predicted as another class.
        scale: the local scale, in units of the space of distances.
        neighbours: indices of the nearest training points.
        labels: their labels.
        predictions: the classifier's predictions there.
        distances: to them, in units of the scale.
        inside: whether they are in the region: the prediction is the same all along the segment.
        outvoted: whether another label is more common among their own neighbours than theirs.
        to_true: the path to the nearest training point of the true class; None without one.
        to_predicted: the path to the nearest training point of the predicted class, or None.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> x, y = np.arange(8.0)[:, None], np.arange(8) // 4
        >>> def zero(x):
        ...     return np.zeros(len(x), int)
        >>> report = jc.classifiers.explain_errors(
        ...     zero, (x, y), (x[6:7], y[6:7]), k=2, progress=False
        ... )
        >>> report.verdicts
        [Verdict(test point 0: 1 taken for 0, under-divided, confidence 0.88;
        nearest at 0 scales, remoteness 1; of 2: 2 under-divided)]
    """

    index: int
    true: int
    predicted: int
    cause: str
    runner_up: str
    confidence: float
    remoteness: float
    evidence: dict[str, int]
    scale: float
    neighbours: Int[np.ndarray, " k"]
    labels: Int[np.ndarray, " k"]
    predictions: Int[np.ndarray, " k"]
    distances: Float[np.ndarray, " k"]
    inside: Bool[np.ndarray, " k"]
    outvoted: Bool[np.ndarray, " k"]
    to_true: Path | None
    to_predicted: Path | None

    def __repr__(self) -> str:
        cause = self.cause
        if cause == AMBIGUOUS and self.runner_up:
            cause += f" ({self.runner_up})"
        evidence = ", ".join(f"{count} {name}" for name, count in self.evidence.items() if count)
        return (
            f"Verdict(test point {self.index}: {self.true} taken for {self.predicted}, {cause}, "
            f"confidence {self.confidence:.2f}; nearest at {self.distances[0]:.2g} scales, "
            f"remoteness {self.remoteness:.2g}; of {len(self.labels)}: {evidence or 'none'})"
        )


@dataclasses.dataclass(frozen=True)
class ErrorReport:
    """The errors of a classifier on a test set, by cause; prints as a table.

    Attributes:
        verdicts: one for each error, in the order of the test set.
        accuracy: on the test set.
        train_accuracy: on the training set, each distinct example once.
        tested: number of test points.

    Example:
        >>> import jaxcompress as jc
        >>> report = jc.classifiers.ErrorReport([], accuracy=1.0, train_accuracy=1.0, tested=50)
        >>> report.counts["wrong labels"], report.of("ambiguous")
        (0, [])
    """

    verdicts: list[Verdict]
    accuracy: float
    train_accuracy: float
    tested: int

    @property
    def counts(self) -> dict[str, int]:
        """Number of errors of each cause, "ambiguous" last."""
        return {cause: len(self.of(cause)) for cause in (*CAUSES, AMBIGUOUS)}

    def of(self, cause: str) -> list[Verdict]:
        """The errors of one cause, the most certain first.

        Args:
            cause: one of `CAUSES`, or "ambiguous".

        Raises:
            ValueError: for an unknown cause.
        """
        causes = (*CAUSES, AMBIGUOUS)
        if cause not in causes:
            raise ValueError(f"{cause!r} is no cause, take one of {', '.join(causes)}")
        verdicts = [verdict for verdict in self.verdicts if verdict.cause == cause]
        return sorted(verdicts, key=lambda verdict: -verdict.confidence)

    def __repr__(self) -> str:
        total = max(len(self.verdicts), 1)
        lines = [
            f"ErrorReport({len(self.verdicts)} errors in {self.tested}, accuracy "
            f"{self.accuracy:.4g}, on the training set {self.train_accuracy:.4g})"
        ]
        for cause, count in self.counts.items():
            line = f"  {cause:26}{count:6} {count / total:6.1%}"
            if count:
                confidence = np.mean([verdict.confidence for verdict in self.of(cause)])
                line += f", mean confidence {confidence:.2f}"
            lines.append(line)
        following = Counter(verdict.runner_up for verdict in self.of(AMBIGUOUS))
        for cause in CAUSES:
            if following[cause]:
                share = following[cause] / total
                lines.append(f"    then {cause:19}{following[cause]:6} {share:6.1%}")
        return "\n".join(lines)


class Decision(NamedTuple):
    """A cause, the next one, and the confidence."""

    cause: str
    runner_up: str
    confidence: float


def decide_cause(evidence: dict[str, int], k: int, remoteness: float, level: float) -> Decision:
    """The cause of an error, from the evidence of the k neighbours.

    Args:
        evidence: number of neighbours by kind, see `Verdict`.
        k: number of neighbours.
        remoteness: a p-value.
        level: p-values up to this mean a wrong interpolation.

    Example:
        >>> from jaxcompress.classifiers.verdicts import decide_cause
        >>> evidence = {"wrong labels": 1, "over-divided": 9, "under-divided": 0, "supported": 0}
        >>> tuple(decide_cause(evidence, 10, remoteness=0.4, level=0.01))
        ('wrong labels', 'over-divided', 0.75)
    """
    best, second, clear, share = _strongest(evidence, k)
    if remoteness <= level:
        runner_up = best if best != "wrong interpolation" else ""
        return Decision("wrong interpolation", runner_up, 1 - remoteness)
    return Decision(best, second, share) if clear else Decision(AMBIGUOUS, best, 1 - share)


def _strongest(evidence: dict[str, int], k: int) -> tuple[str, str, bool, float]:
    """The cause with the most evidence, the next one, whether it is clear, and its probability."""
    outside, supported = evidence["over-divided"], evidence["supported"]
    surrounded = 2 * outside > k
    # a boundary without a cause inside the region is wrong because it reaches among others, or
    # because these are too few where another class has many
    boundary = "over-divided" if surrounded else "wrong interpolation"
    counts = {name: evidence[name] for name in ("wrong labels", "under-divided")}
    best, second = sorted(counts, key=lambda name: -counts[name])
    if counts[best]:
        # supported points inside and correctly predicted ones outside make a boundary that works:
        # evidence against both causes
        total = sum(counts.values()) + min(supported, outside)
        runner_up = second if counts[second] else boundary
        return best, runner_up, 2 * counts[best] > total, _majority(counts[best], total)
    if supported:
        return boundary, "", False, _majority(0, supported)
    return "over-divided", "", surrounded, _majority(outside, k)


def _majority(count: int, total: int) -> float:
    """The probability that a share is above a half, after `count` of `total`, uniform prior."""
    return float(betainc(total - count + 1, count + 1, 0.5))
