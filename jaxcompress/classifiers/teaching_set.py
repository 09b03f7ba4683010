"""A teaching set: of many points that a teacher labels, the few from which a student learns to agree with it on all of them.

A student is trained on the points chosen so far, then asked about all, and points are drawn where it differs from the teacher, in
proportion to the square of the Kullback-Leibler divergence `D = sum t log(t / p)`; and so on. So the set comes to hold what this
student does not infer from the rest: what the labelling needs. Drawn, not the worst ones: those are too much alike, and the fewer
rounds and points there are, the more that costs.

Costs one student less than there are rounds, and as many passes of it over all points.

Sources: teaching sets, Goldman and Kearns 1995 (doi:10.1006/jcss.1995.1003); adding what is misjudged, Hart 1968
(doi:10.1109/TIT.1968.1054155), and for networks Sung and Poggio 1998 (doi:10.1109/34.655648); drawing by the largest of random
keys, Gumbel top-k, Efraimidis and Spirakis 2006 (doi:10.1016/j.ipl.2005.11.003).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import log_softmax, xlogy
from tqdm.auto import tqdm

from jaxcompress.checkpoint import record
from jaxcompress.classifiers.margins import logits_of
from jaxcompress.classifiers.queries import check_batch_size

WHO = "teaching_set"
POWER = 2
"""Of the divergence, in whose proportion points are drawn; with 1 easy points take too many of the places."""

Predict = Callable[[np.ndarray], Any]
"""`predict(x (batch_size, ...)) -> logits (batch_size, classes)`."""


@record
@dataclasses.dataclass(frozen=True, eq=False)
class TeachingSet:
    """The points that were chosen, in the order in which they came.

    Attributes:
        indices: (size,), of the points.
        round: (size,), int32: when each was added, the first ones in round 0.
        divergence: (rounds - 1,), of the student before each later round: the mean over all points, in nats.
        agreement: (rounds - 1,), the share of all points where its largest logit is the teacher's class.
        points: how many there were to choose from.
    """

    indices: np.ndarray
    round: np.ndarray
    divergence: np.ndarray
    agreement: np.ndarray
    points: int

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        rounds = len(self.divergence) + 1
        students = (
            [f"{100 * share:.2f} %" for share in self.agreement[[0, -1]]] if rounds > 1 else []
        )
        said = (
            f"; students agree on {' to '.join(dict.fromkeys(students))} of all" if students else ""
        )
        return f"TeachingSet({len(self):,} of {self.points:,} points in {rounds} round{'s' * (rounds > 1)}{said})"


def teaching_set(
    learn: Callable[[np.ndarray, np.ndarray, int], Predict],
    x: Any,
    targets: Any,
    size: int,
    *,
    rounds: int = 8,
    start: Any = None,
    seed: int = 0,
    batch_size: int = 4096,
    progress: bool = True,
) -> TeachingSet:
    """Choose the points from which a student learns most of what a teacher says of all.

    Args:
        learn: `learn(x (m, ...), targets (m, classes), seed) -> predict`: trains a student on a few points, and gives it as a
            function, `predict(x (batch_size, ...)) -> logits (batch_size, classes)`, always of `batch_size` points, so that a
            jitted one compiles once. Where targets are softened by a temperature, divide the logits by it as well.
        x: (n, ...), the points to choose from.
        targets: (n, classes), what the teacher says of them: probabilities, or one-hot labels.
        size: how many to choose.
        rounds: the set grows to its size in so many equal parts, the first without a student. With more of them fewer points say
            the same.
        start: (m,), the points to begin with, in place of a random first part with as many of each class as of the others.
        seed: of what is drawn, and given to `learn`.
        batch_size: points a call of `predict`.
        progress: show a progress bar of rounds.

    Returns:
        A `TeachingSet`: train the student on `x[found.indices], targets[found.indices]`.

    Raises:
        ValueError: for targets that are not probabilities, sizes, rounds or a start that do not fit, logits of another shape or
            that are not finite.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, optax, jaxcompress as jc
        >>> x = np.random.default_rng(0).uniform(-1, 1, (2000, 2)).astype(np.float32)
        >>> targets = np.eye(2)[np.int32(np.hypot(x[:, 0], x[:, 1]) < 0.7)]
        >>> apply = jax.jit(lambda p, x: jnp.tanh(x @ p["a"] + p["b"]) @ p["c"])
        >>> loss = lambda p, batch, key: optax.softmax_cross_entropy(apply(p, batch[0]), batch[1]).mean()
        >>> params = {"a": jax.random.normal(jax.random.key(0), (2, 16)), "b": jnp.zeros(16), "c": jnp.zeros((16, 2))}
        >>> def learn(x, targets, seed):
        ...     given = dict(optimizer=optax.adam(0.03), steps=300, batch_size=len(x), progress=False)
        ...     return lambda x, p=jc.fit(loss, params, (x, targets), **given).params: apply(p, x)
        >>> found = jc.classifiers.teaching_set(learn, x, targets, 100, rounds=5, progress=False)
        >>> len(found), len(set(found.indices.tolist())), bool(found.agreement[-1] > found.agreement[0])
        (100, 100, True)
    """
    check_batch_size(WHO, batch_size)
    x, targets = np.asarray(x), np.asarray(targets, np.float32)
    _check_targets(targets, len(x) if x.ndim else 0)
    if not (
        isinstance(rounds, int | np.integer)
        and isinstance(size, int | np.integer)
        and 1 <= rounds <= size <= len(x)
    ):
        raise ValueError(
            f"{WHO}: expected 1 <= rounds <= size <= {len(x)}, the number of points; got rounds={rounds}, size={size}"
        )
    rng = np.random.default_rng(seed)
    chosen = _first(targets, size // rounds, rng) if start is None else _start(start, len(x), size)
    sizes = np.linspace(len(chosen), size, rounds).astype(int)
    when, divergence, agreement, everything = (
        np.zeros(len(chosen), np.int32),
        [],
        [],
        np.arange(len(x)),
    )
    with tqdm(
        total=len(x) * (rounds - 1), desc=WHO, unit=" points", disable=not progress, leave=False
    ) as bar:
        for each, wanted in enumerate(sizes[1:], 1):
            predict = learn(x[chosen], targets[chosen], seed)
            logits = logits_of(
                f"{WHO}: predict", predict, x, everything, batch_size, bar, classes=targets.shape[1]
            )
            if not np.isfinite(logits).all():
                raise ValueError(
                    f"{WHO}: predict gave logits that are not finite: the student diverged"
                )
            apart = _divergence(targets, logits)
            divergence.append(float(apart.mean()))
            agreement.append(float(np.mean(logits.argmax(1) == targets.argmax(1))))
            keys = POWER * np.log(np.maximum(apart, 1e-30)) + rng.gumbel(size=len(x))
            keys[chosen] = -np.inf
            new = np.argsort(-keys, kind="stable")[: wanted - len(chosen)]
            chosen, when = (
                np.concatenate([chosen, new]),
                np.concatenate([when, np.full(len(new), each, np.int32)]),
            )
            bar.set_postfix(agreement=f"{100 * agreement[-1]:.2f} %")
    return TeachingSet(chosen, when, np.array(divergence), np.array(agreement), len(x))


def _divergence(targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(n,), in nats: how far each row of logits is from its target."""
    return np.sum(xlogy(targets, targets) - targets * log_softmax(logits, axis=1), axis=1)


def _first(targets: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random points, as many of each of the teacher's classes as of the others, as far as there are so many."""
    order = rng.permutation(len(targets))
    labels = targets[order].argmax(1)
    place = np.empty(len(order), int)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        place[mine] = np.arange(len(mine))
    return order[np.argsort(place, kind="stable")[:size]]


def _start(start: Any, count: int, size: int) -> np.ndarray:
    start = np.asarray(start)
    if start.ndim != 1 or start.dtype.kind not in "iu" or not 1 <= len(start) <= size:
        raise ValueError(
            f"{WHO}: start must be the indices of 1 to {size} points, got {start.dtype} of shape {start.shape}"
        )
    if start.min() < 0 or start.max() >= count or len(np.unique(start)) < len(start):
        raise ValueError(
            f"{WHO}: start must be different indices of {count} points, got some that are not, or repeated"
        )
    return start.astype(np.int64)


def _check_targets(targets: np.ndarray, count: int) -> None:
    if not count or targets.ndim != 2 or len(targets) != count or targets.shape[1] < 2:
        raise ValueError(
            f"{WHO}: targets must be probabilities (n, classes) of n points from 1 on, 2 classes at least; got {targets.shape} for "
            f"{count} points: for integer labels give jax.nn.one_hot(labels, classes)"
        )
    if not (
        (targets >= 0).all() and np.allclose(targets.sum(1), 1, atol=1e-3)
    ):  # nor are numbers that are not finite
        raise ValueError(
            f"{WHO}: targets must be probabilities that sum to 1, got rows that do not: take a softmax of logits"
        )
