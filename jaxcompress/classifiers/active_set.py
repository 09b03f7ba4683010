"""The active set: the examples whose predictions a compaction could change, by their margins.

A compaction is a compressed version of the network. Where every logit moves by at most e, an
example whose signed margin s has |s| > 2 e keeps its prediction; the others are the active set.
Evaluated on it, and on a random part of the rest, a compaction costs a few percent of a pass over
the data (`jc.classifiers.rank_compactions`). The margins cost one pass of the original, once.

Sources: active sets of constraints (Nocedal and Wright 2006, chapter 12); margins, Elsayed et al.
2018 (arXiv:1803.05598).
"""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from jaxcompress.checks import array, checked, function, number, seeds, whole
from jaxcompress.classifiers.margins import (
    Net,
    checked_classes,
    is_right,
    logits_of,
    signed_margins,
)
from jaxcompress.classifiers.predicted_correctness import logit_features

CALLER = "active_set"
SHARES = (0.005, 0.01, 0.02, 0.04, 0.07, 0.11, 0.16, 0.22, 0.3, 0.4, 0.55, 0.75)
"""Ends of the strata, as shares of the examples by increasing margin; each is split into right and
wrong predictions."""
SMALLEST = 10
"""The fewest examples of a stratum."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ActiveSet:
    """The margins of a network on data; made by `active_set`.

    Attributes:
        net: `net(params, x) -> logits`.
        x: the examples.
        labels: the right classes; the network's own predictions where labels are unknown.
        logits: of the network.
        margins: signed: the label's logit minus the largest of the others.
        right: whether the network predicts the label.
        distance: to a changed prediction: |margins|, or these in the order of a score.
        tolerance: expected movement of the logits.
        seed: of the random parts.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> x = jnp.array([[0.1, 0.0], [3.0, 0.0], [0.0, 0.3]])
        >>> def apply(p, x):
        ...     return p * x
        >>> active = jc.classifiers.active_set(apply, 1.0, (x, None), 0.2, progress=False)
        >>> active.active.tolist(), active.accuracy
        ([0, 2], 1.0)
    """

    net: Net
    x: jax.Array | np.ndarray
    labels: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "n classes"]
    margins: Float[np.ndarray, " n"]
    right: Bool[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]
    tolerance: float
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def order(self) -> Int[np.ndarray, " n"]:
        """All examples by increasing distance."""
        return np.argsort(self.distance, kind="stable")

    @property
    def active(self) -> Int[np.ndarray, " active"]:
        """The examples whose prediction could flip within the tolerance, the nearest first."""
        return self.order[: np.searchsorted(self.distance[self.order], 2 * self.tolerance, "right")]

    @cached_property
    def features(self) -> Float[np.ndarray, "n features"]:
        """The features that the logits of a compaction are regressed on."""
        return logit_features(self.logits)

    @property
    def accuracy(self) -> float:
        """Of the network, on all examples."""
        return float(self.right.mean())

    @cached_property
    def strata(self) -> list[np.ndarray]:
        """Examples of similar distance, right and wrong ones apart, each in a random order."""
        rng = np.random.default_rng(self.seed)
        # few examples could leave two ends equal: a set gives each once
        ends = sorted({round(share * len(self)) for share in SHARES})
        parts, strata = np.split(self.order, ends), []
        for right in (True, False):
            strata += _merged_small([part[self.right[part] == right] for part in parts])
        return [rng.permutation(stratum) for stratum in strata]

    def __repr__(self) -> str:
        return (
            f"ActiveSet({len(self.active):,} of {len(self):,} examples have margins up to "
            f"{2 * self.tolerance:g}; accuracy {self.accuracy:.4f})"
        )


def _merged_small(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Consecutive parts, merged until each has the fewest examples of a stratum."""
    merged, pending = [], np.array([], np.int64)
    for part in parts:
        pending = np.concatenate([pending, part])
        if len(pending) >= SMALLEST:
            merged.append(pending)
            pending = pending[:0]
    if len(pending):  # too few for a stratum of their own: they join the last one
        merged[-1:] = [np.concatenate([*merged[-1:], pending])]
    return merged


@checked(
    net=function("net(params, x) -> logits"),
    tolerance=number("(0, inf)", "the expected movement of the logits"),
    seed=seeds,
    batch_size=whole(),
)
def active_set(
    net: Net,
    params: PyTree,
    data: tuple[jax.Array | np.ndarray, Int[ArrayLike, " n"] | None],
    tolerance: float,
    *,
    score: Float[ArrayLike, " n"] | None = None,
    seed: int = 0,
    batch_size: int = 1000,
    progress: bool = True,
) -> ActiveSet:
    """Find the examples whose predictions a compaction could change.

    Args:
        net: `net(params, x) -> logits (n, classes)`: a `jc.networks.Network`, or any function that
            can be jitted.
        params: the original parameters.
        data: (x, y): examples along the first dimension, and their labels as integers; with y None
            compactions are compared with the original's predictions.
        tolerance: expected movement of the logits: where all move by less, only predictions with
            margins up to twice that can change. `jc.classifiers.rank_compactions` starts from it
            and measures.
        score: another order of the examples: those with the lowest come first, such as
            `-rate_of_change(...)` of `jaxcompress.classifiers.margins`.
        seed: of random parts that are drawn later. After choosing compactions by looking at results
            take another seed.
        batch_size: examples a call.
        progress: show a progress bar.

    Returns:
        The examples with the smallest margins (`.active`), and the margins of all (`.margins`).

    Raises:
        ValueError: for no examples, labels that do not fit, a tolerance that is not positive, fewer
            than two classes, logits that are not finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> x = jax.random.normal(jax.random.key(0), (1000, 8))
        >>> def apply(p, x):
        ...     return x @ p
        >>> params = jax.random.normal(jax.random.key(1), (8, 3))
        >>> jc.classifiers.active_set(apply, params, (x, None), tolerance=0.25, progress=False)
        ActiveSet(141 of 1,000 examples have margins up to 0.5; accuracy 1.0000)
    """
    x, labels = _checked_data(data)
    count = len(x)
    if score is not None and array(f"{CALLER}: score", score).shape != (count,):
        raise ValueError(
            f"{CALLER}: the score has the shape {np.shape(score)}, expected one number for each of "
            f"{count} examples"
        )
    run, index, size = partial(jax.jit(net), params), np.arange(count), min(batch_size, count)
    with tqdm(total=count, desc="margins", disable=not progress, leave=False) as bar:
        logits = logits_of(f"{CALLER}: net", run, x, index, size, bar)
    labels = np.argmax(logits, 1) if labels is None else labels
    _check_logits(logits, labels)
    margins = signed_margins(logits, labels)
    distance = np.abs(margins)
    # the score decides only the order: its k-th example gets the k-th smallest distance
    if score is not None:
        distance[np.argsort(np.asarray(score), kind="stable")] = np.sort(distance)
    right = is_right(logits, labels)
    return ActiveSet(net, x, labels, logits, margins, right, distance, float(tolerance), seed)


def _checked_data(
    data: tuple[jax.Array | np.ndarray, Int[ArrayLike, " n"] | None],
) -> tuple[jax.Array | np.ndarray, Int[np.ndarray, " n"] | None]:
    """The examples, and their labels or None."""
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise ValueError(
            f"{CALLER}: data are (x, y), with y None where labels are unknown; got "
            f"{type(data).__name__}"
        )
    x, labels = data
    if not np.ndim(x) or not len(x):
        raise ValueError(
            f"{CALLER}: x has the shape {np.shape(x)}, expected at least one example along the "
            "first dimension"
        )
    return x, checked_classes(CALLER, labels, len(x))


def _check_logits(logits: np.ndarray, labels: np.ndarray) -> None:
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(1).sum())
        raise ValueError(f"{CALLER}: {bad} examples have logits that are not finite")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"{CALLER}: labels from {labels.min()} to {labels.max()} do not fit logits of "
            f"{logits.shape[1]} classes"
        )
