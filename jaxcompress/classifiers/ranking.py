"""Compactions judged on few examples: those that they could overturn, and a random part of the others.

How far a compaction moves logits is measured: with a mean movement b of the signed margin s, spread as Laplace's law, an example is
overturned with probability `p = exp(-|s| / b) / 2`. Examples are drawn in strata of |s|, in proportion to `sqrt(p + 0.004)`
(Neyman). A first tenth measures b of every compaction and counts as seen; then evaluations go where they are needed, to compactions
that move much and examples that they move across. Answers on the others are expected (`jaxcompress.classifiers.expected_answers`), by
fits that each leave out a part of the drawn examples, and this part corrects them, stratum by stratum:

    examples * unbiased = right ones seen + expected right ones unseen + sum of unseen * mean (right - expected) of the drawn.

Without the last sum the estimate has less noise and some bias: `accuracy` is that, as far as two standard errors of the unbiased
one allow. The unbiased one and the bounds hold whatever becomes of Laplace's law and of what was expected.

Sources: difference estimator and optimal allocation, Neyman 1934 and Särndal et al. 1992; cross-fitting, Zrnic and Candès 2024
(arXiv:2309.16598); staying near an unbiased one, Efron and Morris 1972; active testing, Kossen et al. 2021 (arXiv:2103.05331).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from jaxcompress.classifiers.active_set import ActiveSet
from jaxcompress.classifiers.expected_answers import right_chances
from jaxcompress.classifiers.margins import is_right, logits_of, signed_margins, total_bounds
from jaxcompress.classifiers.queries import check_batch_size
from jaxcompress.tables import Table

UNEXPECTED = 0.004
"""The share that is thought to be overturned whatever the margin: it sends some evaluations everywhere."""
FIRST, FEWEST = 0.1, 24
"""The share of the evaluations that measures the movement, and how many those are at least."""
FOLDS = 4
"""Parts of the drawn examples, each of which corrects what the others expect."""
TRUST = 2.0
"""Standard errors of the unbiased estimate that the accuracy may be away from it."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """One compaction.

    Attributes:
        name: its name.
        accuracy: the estimate that ranks: what is expected of the examples unseen, at most two errors from the unbiased one, and
            within the bounds.
        unbiased: the estimate that is unbiased over the seeds of the active set, whatever the compaction does. To be so, it may
            leave [0, 1].
        error: about the standard error of the unbiased one; the other is often nearer.
        certain: bounds that hold always: what was not seen, and is not certified, may be all right or all wrong.
        confident: bounds that hold for all compactions at once with the confidence of the `Ranking`, whatever these are.
        movement: the mean movement of the signed margins that was measured.
        evaluations: how many examples it was judged on.
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
        span = lambda bounds: f"{bounds[0]:.4f} to {bounds[1]:.4f}"
        estimates = (f"{self.accuracy:.4f}", f"{self.unbiased:.4f} ± {self.error:.4f}")
        return (
            self.name,
            *estimates,
            span(self.confident),
            span(self.certain),
            f"{self.movement:.3g}",
            f"{self.evaluations:,}",
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Ranking:
    """Compactions, the best first; prints, and shows as HTML in a notebook.

    Attributes:
        rows: one for each.
        original: the accuracy of the network itself.
        confidence: with which all `confident` bounds hold at once.
    """

    rows: tuple[Judged, ...]
    original: float
    confidence: float

    @property
    def best(self) -> str:
        """The name of the most accurate one, by the estimates."""
        return self.rows[0].name

    def __getitem__(self, name: str) -> Judged:
        return {row.name: row for row in self.rows}[name]

    def _table(self) -> Table:
        head = (
            "compaction",
            "accuracy",
            "unbiased",
            f"{self.confidence:.0%} sure for all",
            "certain",
            "movement",
            "evaluations",
        )
        return Table(self.rows, head, "nothing to judge")  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self._table()}\noriginal: {self.original:.4f}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{self._table()._repr_html_()}<p>original: {self.original:.4f}</p>"


def rank_compactions(
    candidates: Mapping[str, Any],
    active: ActiveSet,
    *,
    evaluations: float = 0.05,
    confidence: float = 0.95,
    certified: Mapping[str, float] | None = None,
    batch_size: int = 250,
    progress: bool = True,
) -> Ranking:
    """Judge many compactions on few examples, and rank them.

    Every compaction is judged on a first random part, which is the same for all, then on more examples, chosen by how far its own
    logits were seen to move. The wider the movement, the wider the set. How its logits follow from the original's says what to
    expect on the others.

    Args:
        candidates: by name, parameters that run through the same network, or functions of x to logits.
        active: of `jc.classifiers.active_set`.
        evaluations: the share of the examples, in (0, 1], on the average of all candidates. Evaluations of the original, which
            saw all of them once, are not counted.
        confidence: of the bounds named so, for all candidates at once. The guarantee is over the random draw, for candidates that
            were made without a look at its results; it asks nothing of what they do elsewhere.
        certified: by name, a proven bound on how far any logit of that candidate moves on any example. Examples beyond twice that
            count as known.
        batch_size: examples a call; what is left over is filled up.
        progress: show a progress bar.

    Returns:
        A `Ranking`: `.rows` from the best on, `.best`, and `judgement[name]`. Wherever logits are NaN the answer is wrong.

    Raises:
        ValueError: for no candidates, shares out of range, too few evaluations for the strata, logits of another shape, a certified
            bound that a logit was seen to exceed.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> x, params = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(4000, 8), (8, 3)]))
        >>> active = jc.classifiers.active_set(lambda p, x: x @ p, params, (x, None), tolerance=0.25, progress=False)
        >>> noisy = lambda scale: params + scale * jax.random.normal(jax.random.key(2), params.shape)
        >>> found = jc.classifiers.rank_compactions({f"{s:g}": noisy(s) for s in (0.4, 0.1, 0.2)}, active, progress=False)
        >>> [row.name for row in found.rows]
        ['0.1', '0.2', '0.4']
    """
    certified = dict(certified or {})
    check_batch_size("rank_compactions", batch_size)
    check(candidates, active, evaluations, confidence, certified)
    budget = math.ceil(evaluations * len(active) - 1e-9)
    strata = active.strata
    known = {name: safe(active, certified.get(name)) for name in candidates}
    pools = {name: [part[~known[name][part]] for part in strata] for name in candidates}
    first = min(max(round(FIRST * budget), FEWEST), budget)
    needed = first + 2 * len(strata)
    if budget < min(needed, len(active)):
        raise ValueError(
            f"rank_compactions: {evaluations:g} of {len(active):,} examples are {budget} evaluations, and {len(strata)} strata "
            f"need {needed}: raise evaluations to {min(needed / len(active), 1):.3g}"
        )
    run = jax.jit(active.net)
    size = min(batch_size, len(active))
    runs = {
        name: Seen(name, as_function(run, each), active, size, certified.get(name))
        for name, each in candidates.items()
    }
    shared = divided(first, strata, need(active, strata, active.tolerance), 0)
    with tqdm(
        total=len(candidates) * budget, desc="compactions", disable=not progress, leave=False
    ) as bar:
        for (
            name,
            seen,
        ) in (
            runs.items()
        ):  # nobody reads what another draws later, since what one reads decides how much
            heads = [part[:count] for part, count in zip(strata, shared, strict=True)]
            heads = [head[~known[name][head]] for head in heads]
            seen.look(heads, np.array([len(head) for head in heads]), bar)
        worth = np.array(
            [need(active, pools[name], seen.movement).sum() for name, seen in runs.items()]
        )
        left = [
            np.array([len(part) for part in seen.unseen(pools[name])])
            for name, seen in runs.items()
        ]
        least, most = np.array([[np.minimum(2, each).sum(), each.sum()] for each in left]).T
        spent = sum(len(seen.index) for seen in runs.values())
        for count, (name, seen) in zip(
            filled(len(runs) * budget - spent, worth, least, most), runs.items(), strict=True
        ):
            rest = seen.unseen(pools[name])
            seen.look(rest, divided(count, rest, need(active, rest, seen.movement), 2), bar)
    rows = [seen.judged(pools[name], (1 - confidence) / len(runs)) for name, seen in runs.items()]
    return Ranking(tuple(sorted(rows, key=lambda row: -row.accuracy)), active.accuracy, confidence)


class Seen:
    """What is known of one compaction: looks at random parts, of which the last one speaks for the rest."""

    def __init__(
        self,
        name: str,
        apply: Callable[[Any], Any],
        active: ActiveSet,
        batch_size: int,
        bound: float | None,
    ):
        self.name, self.apply, self.active, self.batch_size, self.bound = (
            name,
            apply,
            active,
            batch_size,
            bound,
        )
        self.index = np.array([], np.int64)
        self.right = np.array([], bool)
        self.logits = active.logits[:0]
        self.movement = self.prior = active.tolerance
        self.last: list[np.ndarray] = []

    def unseen(self, pool: list[np.ndarray]) -> list[np.ndarray]:
        """What is left of each stratum, in its random order."""
        place = self.places()
        return [part[place[part] < 0] for part in pool]

    def look(self, pool: list[np.ndarray], counts: np.ndarray, bar: Any) -> None:
        """Evaluate the first ones of each stratum."""
        self.prior = self.movement  # known before this look
        before, self.last = (
            len(self.index),
            [part[:count] for part, count in zip(pool, counts, strict=True)],
        )
        index = np.concatenate([*self.last, np.array([], np.int64)])
        if not len(index):
            return
        labels, base = self.active.labels[index], self.active.logits[index]
        logits = logits_of(
            f"rank_compactions: {self.name!r}",
            self.apply,
            self.active.x,
            index,
            self.batch_size,
            bar,
        )
        if logits.shape != base.shape:
            raise ValueError(
                f"rank_compactions: {self.name!r} gives {logits.shape[1]} classes, expected the original's {base.shape[1]}"
            )
        with np.errstate(invalid="ignore"):
            moved, shift = (
                np.abs(logits - base).max(),
                np.abs(signed_margins(logits, labels) - self.active.margins[index]),
            )
        if self.bound is not None and not moved <= self.bound + rounding(self.active):
            raise ValueError(
                f"rank_compactions: {self.name!r} is certified to move logits by {self.bound:g} at most; one moved by {moved:g}"
            )
        mean = float(np.where(np.isfinite(shift), shift, np.inf).mean())
        self.movement = (before * self.movement + len(index) * mean) / (before + len(index))
        self.index = np.concatenate([self.index, index])
        self.right = np.concatenate([self.right, is_right(logits, labels)])
        self.logits = np.concatenate([self.logits, logits])

    def places(self) -> np.ndarray:
        """Where each example of all is among those seen, or -1."""
        place = np.full(len(self.active), -1)
        place[self.index] = np.arange(len(self.index))
        return place

    def expected(self, without: np.ndarray) -> np.ndarray:
        """How likely each example of all is right, from what was seen without a part; the original's answers where nothing fits."""
        keep = ~np.isin(self.index, without)
        if not keep.any():
            return self.active.right.astype(float)
        index, logits = self.index[keep], self.logits[keep]
        finite = np.isfinite(logits).all(
            1
        )  # of those kept alone: what is left out must decide nothing
        chance = np.full(len(self.active), np.mean(self.right[keep] & ~finite))
        if finite.any():
            given = self.active.features, self.active.logits, self.active.labels
            chance += finite.mean() * right_chances(*given, index[finite], logits[finite])
        return chance

    def judged(self, pool: list[np.ndarray], risk: float) -> Judged:
        """The estimates and their bounds; the last look is a simple random sample of what was unseen in each stratum before it."""
        total = len(self.active)
        place, right = self.places(), self.active.right
        known = (
            self.right.sum() + right.sum() - sum(right[part].sum() for part in pool)
        )  # what was seen, and what is certified
        open_strata = [
            (last, rest)
            for last, rest in zip(self.last, self.unseen(pool), strict=True)
            if len(rest)
        ]
        rest = np.array([len(part) for _, part in open_strata])
        drawn = np.array([len(last) for last, _ in open_strata])
        flips = np.array(
            [np.sum(self.right[place[last]] != right[last]) for last, _ in open_strata], int
        )
        signs = np.array(
            [-1 if right[last[0]] else 1 for last, _ in open_strata]
        )  # what a flip does
        before = [
            np.concatenate(each) for each in open_strata
        ]  # a law fixed before the look knows not which ones it took
        expected = np.array([chances(self.active, part, self.prior).mean() for part in before])
        low, high = total_bounds(flips, drawn, drawn + rest, expected, signs, risk)
        unseen = sum(int(right[part].sum()) for _, part in open_strata) - np.sum(signs * flips)
        confident = (float(known + unseen + low) / total, float(known + unseen + high) / total)
        certain = (float(known) / total, float(known + rest.sum()) / total)
        guess, correction, variance = self.filled_in(open_strata)
        unbiased, error = float(known + guess + correction) / total, variance**0.5 / total
        accuracy = np.clip(
            (known + guess) / total, unbiased - TRUST * error, unbiased + TRUST * error
        )
        accuracy = float(np.clip(accuracy, *confident))
        return Judged(
            self.name, accuracy, unbiased, error, certain, confident, self.movement, len(self.index)
        )

    def filled_in(
        self, open_strata: list[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[float, float, float]:
        """How many unseen ones are expected to be right, how many more the drawn ones say there are, and the variance of that."""
        drawn = np.concatenate([*(last for last, _ in open_strata), np.array([], np.int64)])
        fold = np.arange(len(drawn)) % FOLDS
        chance = np.stack([self.expected(drawn[fold == part]) for part in range(FOLDS)])
        miss = self.right[self.places()[drawn]] - chance[fold, drawn]
        guess, correction, variance, start = 0.0, 0.0, 0.0, 0
        for last, rest in open_strata:
            mine = slice(start, start := start + len(last))
            mean = np.bincount(fold[mine], minlength=FOLDS) / len(last) @ chance[:, rest]
            guess += mean.sum()
            correction += len(rest) * miss[mine].mean()
            open_ = np.clip(
                mean, UNEXPECTED, 1 - UNEXPECTED
            )  # what is seen of few is never quite nothing
            square = (np.sum(miss[mine] ** 2) + np.mean(open_ * (1 - open_))) / (len(last) + 1)
            variance += len(rest) * (len(rest) + len(last)) / len(last) * square
        return float(guess), float(correction), float(variance)


def as_function(run: Callable[[Any, Any], Any], candidate: Any) -> Callable[[Any], Any]:
    """A candidate as a function of x."""
    return candidate if callable(candidate) else lambda x: run(candidate, x)


def rounding(active: ActiveSet) -> float:
    """How far a logit may be off by rounding alone, in float32."""
    return 1e-5 * float(np.abs(active.logits).max())


def safe(active: ActiveSet, bound: float | None) -> np.ndarray:
    """The examples that a certified bound leaves as they are."""
    if bound is None:
        return np.zeros(len(active), bool)
    return np.abs(active.margins) > 2 * (bound + rounding(active))


def chances(active: ActiveSet, part: np.ndarray, movement: float) -> np.ndarray:
    """How likely examples are overturned, by Laplace's law for what moves so far on average."""
    return np.exp(-active.distance[part] / max(movement, 1e-12)) / 2 + UNEXPECTED


def need(active: ActiveSet, pool: list[np.ndarray], movement: float) -> np.ndarray:
    """For each stratum the sum of sqrt(p), in proportion to which evaluations are best divided."""
    return np.array([np.sqrt(chances(active, part, movement)).sum() for part in pool])


def divided(count: int, pool: list[np.ndarray], weights: np.ndarray, least: int) -> np.ndarray:
    """Whole numbers of evaluations for the strata."""
    sizes = np.array([len(part) for part in pool])
    return filled(count, weights, np.minimum(least, sizes), sizes)


def filled(count: int, weights: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to weights, between bounds, that add up to a count as near as the bounds allow."""
    count = int(np.clip(count, least.sum(), most.sum()))
    weights = (
        weights / (weights.max(initial=0.0) or 1.0) + 1e-9
    )  # whatever is wanted of the last one comes when the others are full
    at = lambda scale: np.clip(scale * weights, least, most)
    low, high = 0.0, 1e9 * (1.0 + most.max(initial=0))
    for _ in range(100):  # the sum grows with the scale
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() <= count else (low, middle)
    exact = at(low)
    whole = np.floor(exact + 1e-9).astype(int)
    order = np.argsort(whole - exact, kind="stable")
    for place in np.resize(order[whole[order] < most[order]], max(count - whole.sum(), 0)):
        whole[place] += whole[place] < most[place]
    return whole


def check(
    candidates: Any, active: Any, evaluations: Any, confidence: Any, certified: Mapping[str, float]
) -> None:
    """Refuse what cannot be judged, before any work."""
    who = "rank_compactions"
    if not isinstance(active, ActiveSet):
        raise TypeError(
            f"{who} takes an active set from jc.classifiers.active_set, got {type(active).__name__}"
        )
    if not isinstance(candidates, Mapping) or not candidates:
        raise ValueError(
            f"{who}: candidates are a mapping from names to parameters or functions, with one at least"
        )
    for name, value in (("evaluations", evaluations), ("confidence", confidence)):
        if isinstance(value, bool) or not (
            isinstance(value, int | float | np.number) and 0 < value <= 1
        ):
            raise ValueError(f"{who}: {name} must be in (0, 1], got {value!r}")
    if confidence == 1:
        raise ValueError(
            f"{who}: a confidence of 1 are the bounds named certain; give less, such as 0.95"
        )
    for name, bound in certified.items():
        if name not in candidates or not (
            isinstance(bound, int | float | np.number) and bound >= 0
        ):
            raise ValueError(
                f"{who}: certified has {bound!r} for {name!r}; expected a candidate's name and a bound from 0 on"
            )


@dataclasses.dataclass(frozen=True)
class AccuracyMetric:
    """See `accuracy_metric`."""

    active: ActiveSet

    def __call__(self, candidates: Mapping[str, Any]) -> dict[str, float]:
        """The estimated accuracy of each candidate's parameters."""
        share = min(1.0, max(0.05, 100 / len(self.active)))
        ranking = rank_compactions(candidates, self.active, evaluations=share, progress=False)
        return {name: ranking[name].accuracy for name in candidates}


def accuracy_metric(active: ActiveSet) -> AccuracyMetric:
    """A metric for `jc.budget`: accuracy, estimated on a twentieth of the examples a plan.

    Args:
        active: of `jc.classifiers.active_set`; at least 100 of its examples are evaluated.

    Returns:
        A function from candidate parameters by name to their accuracies in [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return x @ p
        >>> x, params = jax.random.normal(jax.random.key(0), (1000, 8)), jnp.eye(8, 3)
        >>> active = jc.classifiers.active_set(apply, params, (x, None), 0.25, progress=False)
        >>> jc.classifiers.accuracy_metric(active)({"same": params})
        {'same': 1.0}
    """
    return AccuracyMetric(active)
