"""One number for everything: how much of each axis or matrix to keep, so that the predicted output error is least.

Every item i has a curve e_i(k), the error that the network's outputs are predicted to have when i
alone is cut to its option k, and the numbers n_i(k) that are stored then. The sum of errors is
minimised under a total of numbers (`allocation`). No pass over data.

A sum knows nothing of what cuts do to each other. A metric of the whole network does, but no search
over sums can take it in: it chooses among a few plans of the same total, which are best by sums of
errors to several powers, or by equal keeps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxcompress.tables import Table
from jaxcompress.transforms.allocation import Counts, JointCounts, alternatives, divide
from jaxcompress.transforms.settings import arguments, call, show, show_function

OF = ("numbers", "channels")

Metric: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, float]]
"""Scores of several candidate parameters by name, higher is better. They are scored together so that
a metric may compare them on the same examples."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """See `budget`."""

    total: float
    of: str = "numbers"
    metric: Metric | None = None

    def __repr__(self) -> str:
        total, *others = arguments(self).items()
        shown = [f"{name}={show_function(v) if callable(v) else show(v)}" for name, v in others]
        return call("budget", show(total[1]), *shown)


def budget(total: float, *, of: str = "numbers", metric: Metric | None = None) -> Budget:
    """A rule that goes wherever a keep goes: one share of all stored numbers, divided where it costs the outputs least.

    Args:
        total: the fraction of all numbers of the tree that a transform receives, in (0, 1]; met
            within 2 %.
        of: "numbers", or "channels" for the fraction of all channels of the hidden axes, each
            counting one.
        metric: chooses among up to four plans of this total: a function from a mapping of their
            small parameters by name to a mapping of scores, higher is better, such as
            `jc.classifiers.accuracy_metric(active)`. Give it data that is not used for evaluation
            later. None takes the least sum of predicted errors. `.plan(...).scores` holds the
            scores.

    Returns:
        A rule for `jc.rotate_and_prune` and the leaf transforms. `transform.plan(params, moments)`
        prints what it gives. Errors are those of the network's outputs where the moments know them:
        `jc.calibrate(..., sensitivity=True)`.

    Raises:
        ValueError: for a total outside (0, 1]; when the transform is called, for one that it cannot
            reach, or a metric whose scores are not finite numbers.
        TypeError: for a metric that is not a function.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
        >>> shapes, keys = {"a": (4, 16), "b": (16, 16), "c": (16, 2)}, jax.random.split(jax.random.key(0), 3)
        >>> params = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> net, x = jc.trace(apply, params, jnp.ones((2, 4))), jax.random.normal(keys[0], (500, 4))
        >>> moments = jc.calibrate(net, params, [x], sensitivity=True, progress=False)
        >>> shrink = jc.rotate_and_prune(net, jc.budget(1/2))
        >>> shrink.plan(params, moments).stored
        (352.0, 174.0)

        A network of the same size that agrees with the original most often, by an active set:

        >>> active = jc.classifiers.active_set(net, params, (x, None), tolerance=0.5, progress=False)
        >>> metric = jc.classifiers.accuracy_metric(active)
        >>> sure = jc.rotate_and_prune(net, jc.budget(1/2, metric=metric))
        >>> list(sure.plan(params, moments).scores)
        ['errors', 'errors^0.5', 'equal keeps']
    """
    if not isinstance(total, (int, float)) or isinstance(total, bool) or not 0 < total <= 1:
        raise ValueError(
            f"budget must be in (0, 1], the fraction of all numbers to keep; got {total!r}: for a "
            f"quarter, budget(1/4)"
        )
    if of not in OF:
        raise ValueError(f"of={of!r} is unknown: expected one of {', '.join(map(repr, OF))}")
    if metric is not None and not callable(metric):
        raise TypeError(
            f"budget: metric must be a function from candidates by name to their scores, got "
            f"{type(metric).__name__}"
        )
    return Budget(float(total), of, metric)


@dataclasses.dataclass(frozen=True)
class Share:
    """What one axis or matrix gets.

    Attributes:
        key: of the axis or the leaf.
        keep: the fraction that stays.
        detail: in words, such as "20 of 64".
        error: predicted of the outputs, relative, when it alone is cut.
    """

    key: str
    keep: float
    detail: str
    error: float

    def _cells(self) -> tuple[str, ...]:
        return (self.key, f"{self.keep:.3g}", self.detail, f"{self.error:.2g}")


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """How a budget is divided; prints, and shows as HTML in a notebook.

    Attributes:
        shares: a row for each axis or matrix.
        stored: all numbers before and after.
        uniform: the predicted error of equal keeps at the same total, or None where none reaches
            it.
        scores: a metric's scores of the plans that it chose from, by name.
    """

    shares: tuple[Share, ...]
    stored: tuple[float, float]
    uniform: float | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def keeps(self) -> dict[str, float]:
        """The keep of each axis or leaf."""
        return {share.key: share.keep for share in self.shares}

    @property
    def error(self) -> float:
        """The predicted error of the outputs, to first order the sum of all."""
        return sum(share.error for share in self.shares)

    def _summary(self) -> str:
        before, after = self.stored
        equal = "" if self.uniform is None else f" (equal keeps: {self.uniform:.2g})"
        said = "".join(f"; {name}: {score:.4g}" for name, score in self.scores.items())
        return f"{before:,.0f} numbers to {after:,.0f} = {after / before:.3f}; predicted error {self.error:.2g}{equal}{said}"

    def _table(self) -> Table:
        return Table(self.shares, ("what", "keep", "size", "predicted error"), "nothing to divide")  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self._table()}\n{self._summary()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{self._table()._repr_html_()}<p>{self._summary()}</p>"


@dataclasses.dataclass(frozen=True)
class Item:
    """One axis or matrix that receives a share of a budget.

    Attributes:
        key: of the axis or the leaf.
        errors: (options,) the predicted error of the outputs, from the smallest size to the full
            one.
        keeps: (options,) the fraction that is kept.
        sizes: (options,) channels or numbers.
        labels: one for each option, such as "20 of 64".
        option: the index of the option that a keep selects.
    """

    key: str
    errors: np.ndarray
    keeps: np.ndarray
    sizes: np.ndarray
    labels: Sequence[str]
    option: Callable[[float], int]

    def share(self, option: int) -> Share:
        """The row of a plan that an option gives."""
        return Share(
            self.key, float(self.keeps[option]), self.labels[option], float(self.errors[option])
        )


@dataclasses.dataclass(frozen=True)
class Items:
    """All items among which a transform divides a budget.

    Attributes:
        rows: the items.
        counts: the numbers stored by the leaves that depend on the items, `Counts` or `AxisCounts`.
        stored: the numbers that those leaves store at present.
        leaves: the names of those leaves.
    """

    rows: tuple[Item, ...]
    counts: Any
    stored: float
    leaves: frozenset[str]

    @property
    def errors(self) -> list[np.ndarray]:
        """The error curve of every item."""
        return [item.errors for item in self.rows]

    def option(self, index: int, keep: float) -> int:
        """The option of one item that a keep selects."""
        return self.rows[index].option(keep)


def joint(parts: Sequence[Items], before: float) -> Items:
    """The items of several transforms of a tree that stores `before` numbers, as those of one transform."""
    counts = JointCounts(
        before - sum(part.stored for part in parts),
        [part.counts for part in parts],
        [len(part.rows) for part in parts],
    )
    return Items(
        rows=tuple(itertools.chain.from_iterable(part.rows for part in parts)),
        counts=counts,
        stored=before,
        leaves=frozenset().union(*(part.leaves for part in parts)),
    )


def scored(metric: Metric, candidates: Mapping[str, Any]) -> dict[str, float]:
    """A metric's scores of candidate parameters, checked."""
    try:
        scores = dict(metric(candidates))
    except Exception as error:
        error.add_note(
            f"in the metric of a budget, {metric!r}: it must take a mapping from names to small "
            f"parameters of this transform's network"
        )
        raise
    if scores.keys() != candidates.keys():
        raise ValueError(
            f"budget: the metric scored {sorted(scores)}, expected a score for each of "
            f"{sorted(candidates)}"
        )
    for name, score in scores.items():
        value = np.asarray(score)
        if value.ndim or value.dtype.kind in "OSUc" or not np.isfinite(float(score)):
            raise ValueError(
                f"budget: the metric of the plan by {name} is {score!r}, expected a finite number, "
                f"higher is better"
            )
    return {name: float(score) for name, score in scores.items()}


def plan_for(
    rule: Budget, parts: Sequence[Items], before: float, small: Callable[[Plan], Any]
) -> Plan:
    """How a budget is divided among the items of one or several transforms of a tree that stores `before` numbers.

    Args:
        rule: the budget.
        parts: the items of each transform.
        before: numbers of the whole tree.
        small: the parameters that a plan gives, for a metric.
    """
    items = joint(parts, before)
    if rule.of == "channels":
        counted, target = (
            Counts([item.sizes for item in items.rows]),
            rule.total * sum(float(item.sizes[-1]) for item in items.rows),
        )
    else:
        counted, target = items.counts, rule.total * before
    try:
        choice, equal = divide(items.errors, counted, target, items.option)
    except ValueError as error:
        raise ValueError(f"{rule}: {error}") from None
    if rule.metric is None:
        return plan_of(items, choice, equal)
    choices = alternatives(items.errors, counted, target, items.option)
    plans = {name: plan_of(items, each, equal) for name, each in choices.items()}
    scores = scored(rule.metric, {name: small(plan) for name, plan in plans.items()})
    return dataclasses.replace(plans[max(scores, key=lambda name: scores[name])], scores=scores)


def plan_of(items: Items, choice: Sequence[int], equal: float | None = None) -> Plan:
    """Options of the items of a whole tree as a plan."""
    shares = tuple(item.share(option) for item, option in zip(items.rows, choice, strict=True))
    return Plan(shares, (items.stored, items.counts.total(choice)), equal)
