"""Retrieval of passages by embeddings, and paired comparisons of recall and reciprocal rank.

A passage's score is the inner product of its embedding with the query's. Two encoders are compared
on the same queries with bootstrap intervals and a sign test, since the recall of 300 queries alone
has a standard error of two and a half points. A search costs one matrix-vector product.

Source: Efron and Tibshirani 1993 for the bootstrap; scipy's `bootstrap` and `binomtest` do the
work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import ArrayLike, Float, Int
from scipy import stats

from jaxcompress.checks import array, checked, whole


@checked(count=whole())
def search(
    question: ArrayLike, passages: ArrayLike, count: int = 5
) -> tuple[Int[np.ndarray, " count"], Float[np.ndarray, " count"]]:
    """The passages nearest to a query.

    Args:
        question: the query's embedding (d,).
        passages: the passages' embeddings (n, d).
        count: the number of passages; all of them where there are fewer.

    Returns:
        Indices of passages and their scores (inner products), best first. Equal scores keep the
        order of the passages.

    Example:
        >>> import jaxcompress as jc
        >>> best, scores = jc.documents.search([1.0, 0.0], [[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]], 2)
        >>> best.tolist(), scores.tolist()
        ([1, 2], [1.0, 0.5])
    """
    question = array("search: question", question, 1)
    passages = array("search: passages", passages, 2)
    if passages.shape[1] != len(question):
        raise ValueError(
            f"search: a passage's embedding has {passages.shape[1]} numbers, the question's "
            f"{len(question)}"
        )
    scores = passages @ question
    best = np.argsort(-scores, kind="stable")[:count]
    return best, scores[best]


def ranks(questions: ArrayLike, passages: ArrayLike, right: ArrayLike) -> Int[np.ndarray, " q"]:
    """The rank of the relevant passage of each query.

    Args:
        questions: the queries' embeddings (q, d).
        passages: the passages' embeddings (n, d).
        right: the index of the relevant passage of each query (q,).

    Returns:
        Ranks from 1. Ties count against the relevant passage, so a constant encoder gets rank n.

    Raises:
        ValueError: for shapes that do not match.
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


def reciprocal(rank: Int[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
    """Reciprocal ranks."""
    return 1 / np.asarray(rank)


def first(rank: Int[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
    """1 where the relevant passage comes first, else 0."""
    return (np.asarray(rank) == 1).astype(float)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two encoders on the same queries; `print` shows the comparison.

    Attributes:
        recall: recall@1, before and after.
        mrr: the mean reciprocal rank, before and after.
        recall_kept: the share of recall@1 kept, with its 95 % interval: (share, low, high).
        mrr_kept: the share of the mean reciprocal rank kept, with its 95 % interval.
        lost: queries that only the first encoder ranks first.
        won: queries that only the second encoder ranks first.
        chance: the p-value of the sign test on lost and won queries.
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
    before: Int[np.ndarray, " q"],
    after: Int[np.ndarray, " q"],
    *,
    draws: int = 5_000,
    seed: int = 0,
) -> Comparison:
    """The share of one encoder's retrieval quality that another keeps.

    Args:
        before: ranks of the relevant passages by the first encoder.
        after: ranks by the second encoder, for the same queries.
        draws: bootstrap resamples.
        seed: of the resamples.

    Returns:
        Recall and reciprocal ranks of both, with paired intervals of their ratios.

    Raises:
        ValueError: for fewer than two queries, ranks of different shapes, or a first encoder with a
            recall of zero.

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
        raise ValueError(
            "the first encoder ranks no relevant passage first: there is nothing to keep"
        )
    lost, won = int((first(before) > first(after)).sum()), int((first(before) < first(after)).sum())
    chance = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    return Comparison(
        (float(first(before).mean()), float(first(after).mean())),
        (float(reciprocal(before).mean()), float(reciprocal(after).mean())),
        kept_share(first, before, after, draws, seed),
        kept_share(reciprocal, before, after, draws, seed),
        lost,
        won,
        float(chance),
    )


def kept_share(
    measure: Callable[[np.ndarray], np.ndarray],
    before: Int[np.ndarray, " q"],
    after: Int[np.ndarray, " q"],
    draws: int,
    seed: int,
) -> tuple[float, float, float]:
    """The ratio of a measure's means, after to before, with its 95 % bootstrap interval."""
    # a resample of few queries may hold none that the first encoder answers: no division by zero
    least = 1 / (2 * len(before))

    def share(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return y.mean(axis) / np.maximum(x.mean(axis), least)

    pair = measure(before), measure(after)
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


def fidelity(before: ArrayLike, after: ArrayLike) -> float:
    """The mean cosine between two encoders' embeddings (n, d) of the same texts."""
    return float(np.mean(cosines(before, after)))


def cosines(before: ArrayLike, after: ArrayLike) -> Float[np.ndarray, " n"]:
    """The cosine between two encoders' embeddings (n, d) of each text."""
    x, y = np.asarray(before, np.float64), np.asarray(after, np.float64)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.sum(x * y, -1) / np.maximum(norms, 1e-12)
