"""What is said of a classifier's errors: a verdict for each, and the report of all.

`judge` weighs what the k nearest training points testify, and how remote the test point is; what they are asked stands at the top
of errors.py. No cost worth a word.

Source: the four causes are the mission's own idea; confidences are Bayes' of 1763, a share's posterior from a uniform prior.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from scipy.special import betainc

CAUSES = ("wrong labels", "over-divided", "under-divided", "wrong interpolation")
AMBIGUOUS = "ambiguous"


@dataclasses.dataclass(frozen=True)
class Path:
    """A straight segment of inputs from a test point to a training point.

    Attributes:
        index: the training point.
        distance: its distance, in units of the local scale.
        labels: (steps + 2,) what the classifier says on the way, both ends included.
    """

    index: int
    distance: float
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why one test point is classified wrongly.

    Attributes:
        index: the test point.
        true, predicted: its class, and what the classifier says.
        cause: one of `CAUSES`, or "ambiguous".
        runner_up: the cause that comes next; "" where nothing speaks for another.
        confidence: for "wrong interpolation" one minus the p-value; otherwise the probability that most training points of such a
            region would testify to the cause, after those that did, from a uniform prior; for "ambiguous" to none of them.
        remoteness: the p-value of the first question: the share of training points that are as remote, doubled for its two parts.
        witnesses: how many of the k neighbours testify to what: "wrong labels", "under-divided", "supported" (points of the
            predicted class among their like) live in the region, "over-divided" are rightly predicted otherwise.
        scale: the local scale, in units of the space of distances.
        neighbours: (k,) the nearest training points, by their index.
        labels, predictions: (k,) their labels, and what the classifier says of them.
        distances: (k,) how far they are, in units of the scale.
        inside: (k,) whether they live in the region: predicted alike all along the segment.
        outvoted: (k,) whether their labels disagree with the majority of their own neighbours.
        to_true, to_predicted: the ways to the nearest training point of the true and of the predicted class; None where there
            is no such class in the training set.
    """

    index: int
    true: int
    predicted: int
    cause: str
    runner_up: str
    confidence: float
    remoteness: float
    witnesses: dict[str, int]
    scale: float
    neighbours: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    distances: np.ndarray
    inside: np.ndarray
    outvoted: np.ndarray
    to_true: Path | None
    to_predicted: Path | None

    def __repr__(self) -> str:
        named = self.cause + (
            f" ({self.runner_up})" if self.cause == AMBIGUOUS and self.runner_up else ""
        )
        told = ", ".join(f"{count} {name}" for name, count in self.witnesses.items() if count)
        return (
            f"Verdict(test point {self.index}: {self.true} taken for {self.predicted}, {named}, confidence {self.confidence:.2f}; "
            f"nearest at {self.distances[0]:.2g} scales, remoteness {self.remoteness:.2g}; of {len(self.labels)}: {told or 'none'})"
        )


@dataclasses.dataclass(frozen=True)
class ErrorReport:
    """The errors of a classifier on a test set, by cause; prints as a table.

    Attributes:
        verdicts: one for each error, in the order of the test set.
        accuracy: on the test set.
        train_accuracy: on the training set, each different example once.
        tested: how many test points there were.
    """

    verdicts: list[Verdict]
    accuracy: float
    train_accuracy: float
    tested: int

    @property
    def counts(self) -> dict[str, int]:
        """How many errors each cause has, "ambiguous" last."""
        return {cause: len(self.of(cause)) for cause in (*CAUSES, AMBIGUOUS)}

    def of(self, cause: str) -> list[Verdict]:
        """The errors of one cause, the most certain first.

        Raises:
            ValueError: for an unknown cause.
        """
        if cause not in (*CAUSES, AMBIGUOUS):
            raise ValueError(
                f"{cause!r} is no cause, take one of {', '.join((*CAUSES, AMBIGUOUS))}"
            )
        return sorted(
            (each for each in self.verdicts if each.cause == cause),
            key=lambda each: -each.confidence,
        )

    def __repr__(self) -> str:
        total = max(len(self.verdicts), 1)
        lines = [
            f"ErrorReport({len(self.verdicts)} errors in {self.tested}, accuracy {self.accuracy:.4g}, on the training set "
        ]
        lines[0] += f"{self.train_accuracy:.4g})"
        for cause, count in self.counts.items():
            sure = (
                f", mean confidence {np.mean([each.confidence for each in self.of(cause)]):.2f}"
                if count
                else ""
            )
            lines.append(f"  {cause:26}{count:6} {count / total:6.1%}{sure}")
        following = Counter(each.runner_up for each in self.of(AMBIGUOUS))
        lines += [
            f"    then {cause:19}{following[cause]:6} {following[cause] / total:6.1%}"
            for cause in CAUSES
            if following[cause]
        ]
        return "\n".join(lines)


def judge(
    witnesses: dict[str, int], k: int, remoteness: float, level: float
) -> tuple[str, str, float]:
    """The cause, the runner-up and the confidence, from what the k neighbours say.

    Example:
        >>> from jaxcompress.classifiers.verdicts import judge
        >>> judge({"wrong labels": 1, "over-divided": 9, "under-divided": 0, "supported": 0}, 10, 0.4, 0.01)
        ('wrong labels', 'over-divided', 0.75)
    """
    count = lambda name: witnesses[name]
    surrounded = 2 * count("over-divided") > k
    # genuine points inside and rightly predicted ones around make a border that works, and speak against both kinds of wrong ones
    stories = {"wrong labels": count("wrong labels"), "under-divided": count("under-divided")}
    working = min(count("supported"), count("over-divided"))
    best, second = sorted(stories, key=lambda name: -stories[name])
    # what else a border may be wrong by: it reaches among others, or these are too few where another class has many
    border = "over-divided" if surrounded else "wrong interpolation"
    if stories[best]:
        total = sum(stories.values()) + working
        clear, share = 2 * stories[best] > total, _most(stories[best], total)
        second = second if stories[second] else border
    elif count("supported"):
        best, second, clear, share = border, "", False, _most(0, count("supported"))
    else:
        best, second, clear, share = "over-divided", "", surrounded, _most(count("over-divided"), k)
    found = (best, second, share) if clear else (AMBIGUOUS, best, 1 - share)
    if remoteness > level:
        return found
    return "wrong interpolation", best if best != "wrong interpolation" else "", 1 - remoteness


def _most(count: int, total: int) -> float:
    """The probability that a share is above a half, after `count` of `total`, from a uniform prior."""
    return float(betainc(total - count + 1, count + 1, 0.5))
