"""A teaching set: of many points that a teacher labels, the few from which a student learns most.

A student is trained on the points chosen so far, then evaluated on all, and points are drawn where
it differs from the teacher, in proportion to the square of the Kullback-Leibler divergence
`D = sum t log(t / p)`; and so on. The set thus comes to contain what this student does not infer
from the rest. Points are drawn because the worst ones are too similar to each other, which costs
more with fewer rounds and points.

Costs one student less than there are rounds, and as many passes of it over all points.

Sources: teaching sets, Goldman and Kearns 1995 (doi:10.1006/jcss.1995.1003); adding misclassified
points, Hart 1968 (doi:10.1109/TIT.1968.1054155), and for networks Sung and Poggio 1998
(doi:10.1109/34.655648); drawing by the largest of random keys, Gumbel top-k, Efraimidis and
Spirakis 2006 (doi:10.1016/j.ipl.2005.11.003).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike
from scipy.special import log_softmax, xlogy
from tqdm.auto import tqdm

from jaxcompress.checkpoint.records import record
from jaxcompress.checks import array, checked, function, is_whole, seeds, whole
from jaxcompress.classifiers.margins import Apply, logits_of

CALLER = "teaching_set"
POWER = 2
"""Of the divergence, in whose proportion points are drawn; with 1 easy points take too many of the
places."""

Learn = Callable[[np.ndarray, np.ndarray, int], Apply]
"""`learn(x (m, ...), targets (m, classes), seed) -> predict`, a student as a function to logits."""


@record
@dataclasses.dataclass(frozen=True, eq=False)
class TeachingSet:
    """The chosen points, in the order of choice.

    Attributes:
        indices: of the points.
        round: int32: the round in which each was added, from 0 on.
        divergence: of the student before each later round: the mean over all points, in nats.
        agreement: the share of all points where its largest logit is the teacher's class.
        points: number of points to choose from.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> indices, round, divergence, agreement = np.arange(4), [0, 0, 1, 1], [0.5], [0.9]
        >>> jc.classifiers.TeachingSet(
        ...     indices, np.array(round), np.array(divergence), np.array(agreement), points=100
        ... )
        TeachingSet(4 of 100 points in 2 rounds; students agree on 90.00 % of all)
    """

    indices: Int[np.ndarray, " size"]
    round: Int[np.ndarray, " size"]
    divergence: Float[np.ndarray, " students"]
    agreement: Float[np.ndarray, " students"]
    points: int

    def check_sizes(self) -> None:
        """Refuse points that there are not, or that were chosen twice.

        Raises:
            ValueError: for indices out of range, and rounds that do not fit the students.
        """
        if len(self.indices) and not 0 <= self.indices.min() <= self.indices.max() < self.points:
            raise ValueError(f"indices are not all of {self.points} points")
        if len(np.unique(self.indices)) < len(self.indices):
            raise ValueError("indices has points twice")
        if len(self.round) and not 0 <= self.round.min() <= self.round.max() <= len(self.agreement):
            raise ValueError(f"round is not all from 0 to {len(self.agreement)}")

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        rounds = len(self.divergence) + 1
        students = ""
        if rounds > 1:
            shares = [f"{100 * share:.2f} %" for share in self.agreement[[0, -1]]]
            students = f"; students agree on {' to '.join(dict.fromkeys(shares))} of all"
        return (
            f"TeachingSet({len(self):,} of {self.points:,} points in {rounds} "
            f"round{'s' * (rounds > 1)}{students})"
        )


@checked(learn=function("learn(x, targets, seed) -> predict"), seed=seeds, batch_size=whole())
def teaching_set(
    learn: Learn,
    x: Shaped[ArrayLike, "n ..."],
    targets: Float[ArrayLike, "n classes"],
    size: int,
    *,
    rounds: int = 8,
    start: Int[ArrayLike, " m"] | None = None,
    seed: int = 0,
    batch_size: int = 4096,
    progress: bool = True,
) -> TeachingSet:
    """Choose the points from which a student learns most of a teacher's predictions on all points.

    Args:
        learn: `learn(x (m, ...), targets (m, classes), seed) -> predict`: trains a student on a few
            points, and returns it as a function, `predict(x (batch_size, ...)) -> logits
            (batch_size, classes)`, always of `batch_size` points, so that a jitted one compiles
            once. If targets are softened by a temperature, divide the logits by it as well.
        x: the points to choose from.
        targets: the teacher's predictions there: probabilities, or one-hot labels.
        size: number of points to choose.
        rounds: the set grows to its size in this many equal parts, the first one without a student.
            With more rounds fewer points suffice.
        start: the points to begin with, in place of a random first part that has equally many of
            each class.
        seed: of the drawn points, and given to `learn`.
        batch_size: points a call of `predict`.
        progress: show a progress bar of points.

    Returns:
        A `TeachingSet`: train the student on `x[chosen.indices], targets[chosen.indices]`.

    Raises:
        ValueError: for targets that are not probabilities, sizes, rounds or a start that do not
            fit, logits of another shape or that are not finite.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, optax, jaxcompress as jc
        >>> x = np.random.default_rng(0).uniform(-1, 1, (2000, 2)).astype(np.float32)
        >>> targets = np.eye(2)[np.int32(np.hypot(x[:, 0], x[:, 1]) < 0.7)]
        >>> apply = jax.jit(lambda p, x: jnp.tanh(x @ p["a"] + p["b"]) @ p["c"])
        >>> def loss(p, batch, key):
        ...     return optax.softmax_cross_entropy(apply(p, batch[0]), batch[1]).mean()
        >>> a = jax.random.normal(jax.random.key(0), (2, 16))
        >>> params = {"a": a, "b": jnp.zeros(16), "c": jnp.zeros((16, 2))}
        >>> options = dict(optimizer=optax.adam(0.03), steps=300, progress=False)
        >>> def learn(x, targets, seed):
        ...     state = jc.fit(loss, params, (x, targets), batch_size=len(x), **options)
        ...     return lambda x: apply(state.params, x)
        >>> chosen = jc.classifiers.teaching_set(learn, x, targets, 100, rounds=5, progress=False)
        >>> len(chosen), len(set(chosen.indices.tolist()))
        (100, 100)
        >>> bool(chosen.agreement[-1] > chosen.agreement[0])
        True
    """
    x = np.asarray(x)
    targets = array(
        f"{CALLER}: targets", targets, finite=False, what="probabilities (n, classes)"
    ).astype(np.float32)
    _check_targets(targets, len(x) if x.ndim else 0)
    if not (is_whole(rounds) and is_whole(size) and rounds <= size <= len(x)):
        raise ValueError(
            f"{CALLER}: expected 1 <= rounds <= size <= {len(x)}, the number of points; got "
            f"rounds={rounds}, size={size}"
        )
    rng = np.random.default_rng(seed)
    chosen = _first_members(targets, start, size, rounds, rng)
    sizes = np.linspace(len(chosen), size, rounds).astype(int)
    round_of, divergence, agreement = np.zeros(len(chosen), np.int32), [], []
    total = len(x) * (rounds - 1)
    with tqdm(total=total, desc=CALLER, unit=" points", disable=not progress, leave=False) as bar:
        for turn, wanted in enumerate(sizes[1:], 1):
            predict = learn(x[chosen], targets[chosen], seed)
            function("predict(x) -> logits")(f"{CALLER}: what learn gives", predict)
            logits = _student_logits(predict, x, targets.shape[1], batch_size, bar)
            divergences = _divergences(targets, logits)
            divergence.append(float(divergences.mean()))
            agreement.append(float(np.mean(logits.argmax(1) == targets.argmax(1))))
            new = _draw(divergences, chosen, wanted - len(chosen), rng)
            chosen = np.concatenate([chosen, new])
            round_of = np.concatenate([round_of, np.full(len(new), turn, np.int32)])
            bar.set_postfix(agreement=f"{100 * agreement[-1]:.2f} %")
    return TeachingSet(chosen, round_of, np.array(divergence), np.array(agreement), len(x))


def _student_logits(
    predict: Apply, x: np.ndarray, classes: int, batch_size: int, bar: tqdm
) -> Float[np.ndarray, "n classes"]:
    """The logits of a student on all points, refused unless finite."""
    name, index = f"{CALLER}: predict", np.arange(len(x))
    logits = logits_of(name, predict, x, index, batch_size, bar, classes=classes)
    if not np.isfinite(logits).all():
        raise ValueError(f"{name} gave logits that are not finite: the student diverged")
    return logits


def _draw(
    divergences: Float[np.ndarray, " n"],
    chosen: Int[np.ndarray, " chosen"],
    count: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " count"]:
    """Draw new points in proportion to a power of the divergence, without replacement."""
    # the largest of keys log w + Gumbel noise are a draw in proportion to w without replacement
    keys = POWER * np.log(np.maximum(divergences, 1e-30)) + rng.gumbel(size=len(divergences))
    keys[chosen] = -np.inf
    return np.argsort(-keys, kind="stable")[:count]


def _divergences(
    targets: Float[np.ndarray, "n classes"], logits: Float[np.ndarray, "n classes"]
) -> Float[np.ndarray, " n"]:
    """The Kullback-Leibler divergence of each row of logits from its target, in nats."""
    return np.sum(xlogy(targets, targets) - targets * log_softmax(logits, axis=1), axis=1)


def _balanced_sample(
    targets: Float[np.ndarray, "n classes"], size: int, rng: np.random.Generator
) -> Int[np.ndarray, " size"]:
    """Random points, equally many of each of the teacher's classes if there are enough."""
    # sorted by the rank within the class, the first ones take turns over the classes
    order = rng.permutation(len(targets))
    labels = targets[order].argmax(1)
    rank = np.empty(len(order), int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return order[np.argsort(rank, kind="stable")[:size]]


def _first_members(
    targets: Float[np.ndarray, "n classes"],
    start: Int[ArrayLike, " m"] | None,
    size: int,
    rounds: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " m"]:
    """The members of the first round: those given, or as many of each class."""
    if start is None:
        return _balanced_sample(targets, size // rounds, rng)
    return _checked_start(start, len(targets), size)


def _checked_start(start: Int[ArrayLike, " m"], count: int, size: int) -> Int[np.ndarray, " m"]:
    """The indices to begin with, in int64."""
    start = np.asarray(start)
    if start.ndim != 1 or start.dtype.kind not in "iu" or not 1 <= len(start) <= size:
        raise ValueError(
            f"{CALLER}: start must be the indices of 1 to {size} points, got {start.dtype} of "
            f"shape {start.shape}"
        )
    if start.min() < 0 or start.max() >= count or len(np.unique(start)) < len(start):
        raise ValueError(
            f"{CALLER}: start must be different indices of {count} points, got some that are not, "
            "or repeated"
        )
    return start.astype(np.int64)


def _check_targets(targets: np.ndarray, count: int) -> None:
    if not count or targets.ndim != 2 or len(targets) != count or targets.shape[1] < 2:
        raise ValueError(
            f"{CALLER}: targets must be probabilities (n, classes) of n points from 1 on, 2 "
            f"classes at least; got {targets.shape} for {count} points: for integer labels give "
            "jax.nn.one_hot(labels, classes)"
        )
    # comparisons with NaN are false, so that this refuses NaN, too
    if not ((targets >= 0).all() and np.allclose(targets.sum(1), 1, atol=1e-3)):
        raise ValueError(
            f"{CALLER}: targets must be probabilities that sum to 1, got rows that do not: take a "
            "softmax of logits"
        )
