"""The active set: the examples whose answers a compaction could overturn, by their margins.

Where every logit moves by at most e, an example whose signed margin s has |s| > 2 e keeps its answer; those within are the active
set. Judged on it, and on a random part of the rest, a compaction costs a few percent of a pass over the data
(`jc.classifiers.rank_compactions`). The margins cost one pass of the original, once.

Sources: active sets of constraints (Nocedal and Wright 2006, chapter 12); margins, Elsayed et al. 2018 (arXiv:1803.05598).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from jaxcompress.classifiers.expected_answers import logit_features
from jaxcompress.classifiers.margins import is_right, logits_of, signed_margins, to_labels

SHARES = (0.005, 0.01, 0.02, 0.04, 0.07, 0.11, 0.16, 0.22, 0.3, 0.4, 0.55, 0.75)
"""Where the strata end, as shares of the examples by increasing margin; each is split into right and wrong."""
SMALLEST = 10
"""Examples of a stratum, at least."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ActiveSet:
    """The margins of a network on data; see `active_set`.

    Attributes:
        net: `net(params, x) -> logits`.
        x, labels: the examples and what is right; the network's own answers where labels are unknown.
        logits: (examples, classes) of the network.
        margins: (examples,) signed: the label's logit minus the largest of the others.
        right: (examples,) whether the network gives the label.
        distance: (examples,) how far each is from being overturned: |margins|, or these in the order of a score.
        tolerance: how far logits are expected to move.
        seed: of the random parts.
    """

    net: Callable[[Any, Any], Any]
    x: Any
    labels: np.ndarray
    logits: np.ndarray
    margins: np.ndarray
    right: np.ndarray
    distance: np.ndarray
    tolerance: float
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def order(self) -> np.ndarray:
        """All examples by increasing distance."""
        return np.argsort(self.distance, kind="stable")

    @property
    def active(self) -> np.ndarray:
        """The examples that are overturned by nothing but a movement within the tolerance: the nearest comes first."""
        return self.order[: np.searchsorted(self.distance[self.order], 2 * self.tolerance, "right")]

    @cached_property
    def features(self) -> np.ndarray:
        """(examples, k): what the logits of a compaction are regressed on."""
        return logit_features(self.logits)

    @property
    def accuracy(self) -> float:
        """Of the network, on all examples."""
        return float(self.right.mean())

    @cached_property
    def strata(self) -> list[np.ndarray]:
        """Examples of about one distance, right ones and wrong ones apart, each in a random order."""
        rng = np.random.default_rng(self.seed)
        ends = sorted({round(share * len(self)) for share in SHARES})
        found: list[np.ndarray] = []
        for right in (True, False):
            group, pending = [], np.array([], np.int64)
            for part in np.split(self.order, ends):
                pending = np.concatenate([pending, part[self.right[part] == right]])
                if len(pending) >= SMALLEST:
                    group.append(pending)
                    pending = pending[:0]
            if len(pending):
                group[-1:] = [np.concatenate([*group[-1:], pending])]
            found += group
        return [rng.permutation(each) for each in found]

    def __repr__(self) -> str:
        return (
            f"ActiveSet({len(self.active):,} of {len(self):,} examples have margins up to {2 * self.tolerance:g}; "
            f"accuracy {self.accuracy:.4f})"
        )


def active_set(
    net: Callable[[Any, Any], Any],
    params: Any,
    data: tuple[Any, Any],
    tolerance: float,
    *,
    score: Any = None,
    seed: int = 0,
    batch_size: int = 1000,
    progress: bool = True,
) -> ActiveSet:
    """Find the examples that a compaction could overturn.

    Args:
        net: `net(params, x) -> logits (n, classes)`: a `jc.networks.Network`, or any function that jits.
        params: the original parameters.
        data: (x, y): examples along the first dimension, and labels (examples,) as whole numbers; with y None what is judged is the
            agreement with the original.
        tolerance: how far logits are expected to move: where all move by less, only margins up to twice that can be overturned.
            `jc.classifiers.rank_compactions` starts from it and measures.
        score: (examples,), another order: those with the lowest come first, such as `-rate_of_change(...)` of
            `jaxcompress.classifiers.margins`.
        seed: of the random parts that are drawn later. Who makes compactions after having looked at results takes another.
        batch_size: examples a call.
        progress: show a progress bar.

    Returns:
        An `ActiveSet`: `.active` are the examples with the smallest margins, `.margins` those of all.

    Raises:
        ValueError: for no examples, labels that do not fit, a tolerance that is not positive, fewer than two classes, logits
            that are not finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> x = jax.random.normal(jax.random.key(0), (1000, 8))
        >>> apply = lambda p, x: x @ p
        >>> params = jax.random.normal(jax.random.key(1), (8, 3))
        >>> jc.classifiers.active_set(apply, params, (x, None), tolerance=0.25, progress=False)
        ActiveSet(141 of 1,000 examples have margins up to 0.5; accuracy 1.0000)
    """
    if isinstance(tolerance, bool) or not (
        isinstance(tolerance, int | float | np.number) and 0 < tolerance < math.inf
    ):
        raise ValueError(
            f"active_set: tolerance must be a positive number, how far logits are expected to move; got {tolerance!r}"
        )
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise ValueError(
            f"active_set: data are (x, y), with y None where labels are unknown; got {type(data).__name__}"
        )
    x = data[0]
    if not np.ndim(x) or not (count := len(x)):
        raise ValueError(
            f"active_set: x has the shape {np.shape(x)}, expected at least one example along the first dimension"
        )
    labels = to_labels("active_set", data[1], count)
    if score is not None and np.shape(score) != (count,):
        raise ValueError(
            f"active_set: the score has the shape {np.shape(score)}, expected one number for each of {count} examples"
        )
    run = jax.jit(net)
    with tqdm(total=count, desc="margins", disable=not progress, leave=False) as bar:
        logits = logits_of(
            "active_set: net",
            lambda x: run(params, x),
            x,
            np.arange(count),
            min(batch_size, count),
            bar,
        )
    if not np.isfinite(logits).all():
        raise ValueError(
            f"active_set: {int((~np.isfinite(logits)).any(1).sum())} examples have logits that are not finite"
        )
    labels = np.argmax(logits, 1) if labels is None else labels
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"active_set: labels from {labels.min()} to {labels.max()} do not fit logits of {logits.shape[1]} classes"
        )
    margins = signed_margins(logits, labels)
    distance = np.abs(margins)
    if score is not None:
        distance[np.argsort(np.asarray(score), kind="stable")] = np.sort(distance)
    return ActiveSet(
        net, x, labels, logits, margins, is_right(logits, labels), distance, float(tolerance), seed
    )
