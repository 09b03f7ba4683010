"""Retrieval of passages by embeddings and its quality: recall, reciprocal ranks, comparisons.

A passage's score is the inner product of its embedding with the question's. Differences between
encoders are judged question by question, lost and won, with bootstrap intervals: the recall of 300
questions alone has a standard error of two and a half points.

Source: Efron and Tibshirani 1993 for the bootstrap; scipy's `bootstrap` and `binomtest` do the
work.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import stats


def search(question: Any, passages: Any, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The passages nearest to a question.

    Args:
        question: (d,).
        passages: (n, d).
        count: how many; all of them where there are fewer.

    Returns:
        Their indices and scores, the best first; of equal scores the first passage comes first.
    """
    scores = np.asarray(passages) @ np.asarray(question)
    best = np.argsort(-scores, kind="stable")[:count]
    return best, scores[best]


def ranks(questions: Any, passages: Any, right: Any) -> np.ndarray:
    """Where the right passage of each question stands.

    Args:
        questions: (q, d).
        passages: (n, d).
        right: (q,) the index of the right passage.

    Returns:
        (q,) integers from 1; equal scores count against the right passage, so that an encoder that
        says nothing gets nothing.

    Raises:
        ValueError: for shapes that do not fit.
    """
    questions, passages, right = np.asarray(questions), np.asarray(passages), np.asarray(right)
    if (
        questions.ndim != 2
        or passages.ndim != 2
        or questions.shape[1] != passages.shape[1]
        or right.shape != (len(questions),)
    ):
        raise ValueError(
            f"expected questions (q, d), passages (n, d) and right (q,), got {questions.shape}, "
            f"{passages.shape}, {right.shape}"
        )
    scores = questions @ passages.T
    own = scores[np.arange(len(right)), right][:, None]
    return np.maximum((scores >= own).sum(1), 1)


def reciprocal(found: np.ndarray) -> np.ndarray:
    """Reciprocal ranks."""
    return 1 / np.asarray(found)


def first(found: np.ndarray) -> np.ndarray:
    """1 where the right passage comes first, else 0."""
    return (np.asarray(found) == 1).astype(float)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two encoders on the same questions; prints.

    Attributes:
        recall, mrr: recall@1 and the mean reciprocal rank, before and after.
        recall_kept, mrr_kept: the shares kept, each with its 95 % interval (share, low, high),
            paired over the questions.
        lost, won: questions that only the first, only the second encoder puts first.
        chance: the probability of so unequal a split if neither were better.
    """

    recall: tuple[float, float]
    mrr: tuple[float, float]
    recall_kept: tuple[float, float, float]
    mrr_kept: tuple[float, float, float]
    lost: int
    won: int
    chance: float

    def __str__(self) -> str:
        lines = []
        for name, (before, after), (share, low, high) in (
            ("recall@1", self.recall, self.recall_kept),
            ("MRR", self.mrr, self.mrr_kept),
        ):
            lines.append(
                f"{name:8} {before:.3f} -> {after:.3f}: {share:.1%} kept (95 %: {low:.1%} to "
                f"{high:.1%})"
            )
        return "\n".join(
            [*lines, f"questions lost {self.lost}, won {self.won} (p = {self.chance:.2g})"]
        )


def compare(
    before: np.ndarray, after: np.ndarray, *, draws: int = 5_000, seed: int = 0
) -> Comparison:
    """How much of one encoder's retrieval another one keeps.

    Args:
        before, after: (q,) the ranks that each gives to the right passages of the same questions.
        draws: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: for fewer than two questions, unequal numbers of them, or a first encoder that
            finds nothing.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.documents.retrieval import compare
        >>> print(compare(np.tile([1, 1, 1, 2], 50), np.tile([1, 1, 2, 1], 50)))
        recall@1 0.750 -> 0.750: 100.0% kept (95 %: 87.6% to 114.0%)
        MRR      0.875 -> 0.875: 100.0% kept (95 %: 94.5% to 105.8%)
        questions lost 50, won 50 (p = 1)
    """
    before, after = np.asarray(before), np.asarray(after)
    if before.shape != after.shape or before.ndim != 1 or len(before) < 2:
        raise ValueError(
            f"expected the ranks of the same two or more questions, got shapes {before.shape} "
            f"and {after.shape}"
        )
    if not first(before).any():
        raise ValueError("the first encoder puts no right passage first: there is nothing to keep")

    def kept(measure: Any) -> tuple[float, float, float]:
        pair = measure(before), measure(after)
        least = 1 / (
            2 * len(before)
        )  # a few questions, drawn again, may all be ones that nobody finds

        def share(x, y, axis=-1):
            return y.mean(axis) / np.maximum(x.mean(axis), least)

        interval = stats.bootstrap(
            pair,
            share,
            paired=True,
            vectorized=True,
            n_resamples=draws,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return float(share(*pair)), float(interval.low), float(interval.high)

    lost, won = int((first(before) > first(after)).sum()), int((first(before) < first(after)).sum())
    chance = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0

    def means(measure):
        return (float(measure(before).mean()), float(measure(after).mean()))

    return Comparison(
        means(first), means(reciprocal), kept(first), kept(reciprocal), lost, won, float(chance)
    )


def fidelity(before: Any, after: Any) -> float:
    """The mean cosine of embeddings (n, d) of the same texts by two encoders."""
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return float(np.mean(np.sum(before * after, -1) / np.maximum(norms, 1e-12)))
