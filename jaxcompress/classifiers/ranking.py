"""Compactions ranked on few examples: those they could change, and a random part of the others.

The movement of logits is measured, not assumed: examples are drawn in strata of the margin
(`jaxcompress.classifiers.sampling`); a first tenth of the evaluations measures the movement of
every compaction; then evaluations go to compactions that move a lot and to the examples whose
margin they exceed. Predictions on the other examples are estimated and corrected
(`jaxcompress.classifiers.estimation`).

Sources: optimal allocation, Neyman 1934 (doi:10.2307/2342192); active testing, Kossen et al. 2021
(arXiv:2103.05331).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import cast

import jax
import numpy as np
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxcompress.checks import checked, instance, is_number, number, shown, whole
from jaxcompress.classifiers.active_set import ActiveSet
from jaxcompress.classifiers.estimation import CompactionEstimate, estimate
from jaxcompress.classifiers.evaluation import CALLER, Candidate, Evaluation, first_round
from jaxcompress.classifiers.margins import Apply
from jaxcompress.classifiers.sampling import (
    divide,
    divide_over_strata,
    sizes_of,
    stratum_weights,
)
from jaxcompress.tables import Table

FIRST_SHARE = 0.1
"""The share of the evaluations that measures the movement."""
FIRST_LEAST = 24
"""The fewest evaluations that measure the movement."""

Candidates = Mapping[str, PyTree | Apply]


@dataclasses.dataclass(frozen=True, repr=False)
class Ranking:
    """Compactions, the best first; prints as a table, and shows as HTML in a notebook.

    Attributes:
        rows: one for each.
        original: the accuracy of the network itself.
        confidence: with which all `confident` bounds hold at once.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> x = jax.random.normal(jax.random.key(0), (1000, 8))
        >>> apply, params = lambda p, x: x @ p, jnp.eye(8, 3)
        >>> active = jc.classifiers.active_set(apply, params, (x, None), 0.25, progress=False)
        >>> candidates = {"zero": 0 * params, "double": 2 * params}
        >>> ranking = jc.classifiers.rank_compactions(candidates, active, progress=False)
        >>> ranking.best, [row.name for row in ranking.rows]
        ('double', ['double', 'zero'])
    """

    rows: tuple[CompactionEstimate, ...]
    original: float
    confidence: float

    @property
    def best(self) -> str:
        """The name of the most accurate one, by the estimates."""
        return self.rows[0].name

    def __getitem__(self, name: str) -> CompactionEstimate:
        return {row.name: row for row in self.rows}[name]

    def _table(self) -> Table[CompactionEstimate]:
        confident = f"{self.confidence:.0%} sure for all"
        headers = ("compaction", "accuracy", "unbiased", confident, "certain")
        return Table(self.rows, (*headers, "movement", "evaluations"), "nothing to rank")

    def __str__(self) -> str:
        return f"{self._table()}\noriginal: {self.original:.4f}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{self._table()._repr_html_()}<p>original: {self.original:.4f}</p>"


@checked(
    evaluations=number("(0, 1]", "a share of the examples"),
    confidence=number("(0, 1]", "such as 0.95"),
    batch_size=whole(),
)
def rank_compactions(
    candidates: Candidates,
    active: ActiveSet,
    *,
    evaluations: float = 0.05,
    confidence: float = 0.95,
    certified: Mapping[str, float] | None = None,
    batch_size: int = 250,
    progress: bool = True,
) -> Ranking:
    """Estimate the accuracy of many compactions on few examples, and rank them.

    Every compaction is evaluated on a first random part, which is the same for all, then on more
    examples, the more the farther its logits moved. A regression of its logits on the original's
    predicts the others.

    Args:
        candidates: by name, parameters that run through the same network, or functions of x to
            logits.
        active: of `jc.classifiers.active_set`.
        evaluations: the share of the examples, in (0, 1], on the average of all candidates.
            Evaluations of the original, on all of them once, are not counted.
        confidence: of the bounds named so, for all candidates at once. The guarantee is over the
            random draw, for candidates that were made without looking at its results; it assumes
            nothing about their behaviour elsewhere.
        certified: by name, a proven bound on the movement of any logit of that candidate on any
            example. Examples with margins beyond twice that count as known.
        batch_size: examples a call; the last batch is padded.
        progress: show a progress bar.

    Returns:
        A `Ranking`: `.rows` from the best on, `.best`, and `ranking[name]`. Where a logit is NaN
        the prediction counts as wrong.

    Raises:
        ValueError: for no candidates, shares out of range, too few evaluations for the strata,
            logits of another shape, a certified bound that an evaluated logit exceeds.
        TypeError: for an active set of another type.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> x = jax.random.normal(jax.random.key(0), (4000, 8))
        >>> params, noise = (jax.random.normal(jax.random.key(i), (8, 3)) for i in (1, 2))
        >>> def apply(p, x):
        ...     return x @ p
        >>> active = jc.classifiers.active_set(apply, params, (x, None), 0.25, progress=False)
        >>> noisy = {f"{scale:g}": params + scale * noise for scale in (0.4, 0.1, 0.2)}
        >>> ranking = jc.classifiers.rank_compactions(noisy, active, progress=False)
        >>> [row.name for row in ranking.rows]
        ['0.1', '0.2', '0.4']
    """
    if certified is not None and not isinstance(certified, Mapping):
        raise ValueError(f"{CALLER}: certified must be a mapping, got {shown(certified)}")
    certified = dict(certified or {})
    _check_candidates(candidates, active, certified)
    if confidence == 1:
        raise ValueError(
            f"{CALLER}: bounds at a confidence of 1 are the ones named certain; give less, such as "
            "0.95"
        )
    budget, first = _budgets(evaluations, active)
    run, size = jax.jit(active.net), min(batch_size, len(active))
    weights = stratum_weights(active, active.strata, active.tolerance)
    shared = divide_over_strata(first, active.strata, weights, 0)
    total = len(candidates) * budget
    with tqdm(total=total, desc="compactions", disable=not progress, leave=False) as bar:
        # first rounds before any second one: no candidate reads examples that another one's
        # movement selected
        first_rounds = []
        for name, candidate in candidates.items():
            is_function = callable(candidate)
            apply = cast(Apply, candidate) if is_function else partial(run, candidate)
            compaction = Candidate(name, apply, active, size, certified.get(name))
            first_rounds.append(first_round(compaction, shared, bar))
        finished = _second_rounds(first_rounds, total, bar)
    risk = (1 - confidence) / len(candidates)  # for all at once (Bonferroni)
    rows = [estimate(evaluation, risk) for evaluation in finished]
    rows.sort(key=lambda row: -row.accuracy)
    return Ranking(tuple(rows), active.accuracy, confidence)


active_kind = instance(ActiveSet, "an active set from jc.classifiers.active_set")
"""The kind of an active set."""


def _budgets(evaluations: float, active: ActiveSet) -> tuple[int, int]:
    """The number of evaluations a candidate on average, and those of the first round."""
    # 0.1 of 30 is 3, though the product may round to a little more
    budget = math.ceil(evaluations * len(active) - 1e-9)
    first = min(max(round(FIRST_SHARE * budget), FIRST_LEAST), budget)
    # two of each stratum: one alone has no variance
    needed = first + 2 * len(active.strata)
    if budget < min(needed, len(active)):
        raise ValueError(
            f"{CALLER}: {evaluations:g} of {len(active):,} examples are {budget} evaluations, and "
            f"{len(active.strata)} strata need {needed}: raise evaluations to "
            f"{min(needed / len(active), 1):.3g}"
        )
    return budget, first


def _second_rounds(first_rounds: list[Evaluation], total: int, bar: tqdm) -> list[Evaluation]:
    """Divide the remaining evaluations over candidates and strata by the measured movement."""
    pools = [evaluation.unevaluated() for evaluation in first_rounds]
    sizes = [sizes_of(pool) for pool in pools]
    weights = [
        stratum_weights(evaluation.active, evaluation.pool, evaluation.movement).sum()
        for evaluation in first_rounds
    ]
    counts = divide(
        total - sum(len(evaluation.index) for evaluation in first_rounds),
        np.array(weights),
        np.array([np.minimum(2, size).sum() for size in sizes]),
        np.array([size.sum() for size in sizes]),
    )
    finished = []
    for evaluation, pool, count in zip(first_rounds, pools, counts, strict=True):
        stratum_shares = stratum_weights(evaluation.active, pool, evaluation.movement)
        per_stratum = divide_over_strata(count, pool, stratum_shares, 2)
        finished.append(evaluation.extended(pool, per_stratum, bar))
    return finished


def _check_candidates(
    candidates: Candidates, active: ActiveSet, certified: Mapping[str, float]
) -> None:
    active_kind(f"{CALLER}: active", active)
    if not isinstance(candidates, Mapping) or not candidates:
        raise ValueError(
            f"{CALLER}: candidates are a mapping from names to parameters or functions, with one "
            "at least"
        )
    for name, bound in certified.items():
        is_bound = is_number(bound) and bound >= 0
        if name not in candidates or not is_bound:
            raise ValueError(
                f"{CALLER}: certified has {bound!r} for {name!r}; expected a candidate's name and "
                "a bound from 0 on"
            )


@dataclasses.dataclass(frozen=True)
class AccuracyMetric:
    """The estimated accuracy of candidates; see `accuracy_metric`.

    Attributes:
        active: the examples.
    """

    active: ActiveSet

    def __call__(self, candidates: Candidates) -> dict[str, float]:
        """The estimated accuracy of each candidate's parameters."""
        share = min(1.0, max(0.05, 100 / len(self.active)))
        ranking = rank_compactions(candidates, self.active, evaluations=share, progress=False)
        return {name: ranking[name].accuracy for name in candidates}


@checked(active=active_kind)
def accuracy_metric(active: ActiveSet) -> AccuracyMetric:
    """A metric for `jc.budget`: accuracy, estimated on a twentieth of the examples a plan.

    Args:
        active: of `jc.classifiers.active_set`; at least 100 of its examples are evaluated.

    Returns:
        A function from candidate parameters by name to their accuracies in [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> x, params = jax.random.normal(jax.random.key(0), (1000, 8)), jnp.eye(8, 3)
        >>> def apply(p, x):
        ...     return x @ p
        >>> active = jc.classifiers.active_set(apply, params, (x, None), 0.25, progress=False)
        >>> jc.classifiers.accuracy_metric(active)({"same": params})
        {'same': 1.0}
    """
    return AccuracyMetric(active)
