"""A budget: one total size, divided among axes or matrices at the least predicted output error.

Every item i has an error curve e_i(k), the predicted error of the network's outputs when i alone is
cut to its option k, and stores n_i(k) numbers. `allocation` minimises `sum_i e_i(k_i)` at a limited
total of numbers, without a pass over data.

The sum ignores interactions between cuts. A metric of the whole network includes them, but cannot
be written as a sum; it therefore chooses among up to four plans of the same total: the best ones by
sums of errors to several powers, and equal keeps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, PyTree

from jaxcompress.checks import checked, choice, function, number, shown
from jaxcompress.tables import Table
from jaxcompress.transforms.allocation import (
    Counts,
    JointCounts,
    StoredCounts,
    alternatives,
    divide,
)
from jaxcompress.transforms.settings import arguments, call, show, show_function

OF = ("numbers", "channels")

Metric: TypeAlias = Callable[[Mapping[str, PyTree]], Mapping[str, ArrayLike]]
"""Scores of several candidate parameters by name; higher is better.

They are scored in one call, so that a metric can compare them on the same examples.
"""


@dataclasses.dataclass(frozen=True)
class Budget:
    """A total size to divide, made by `budget`.

    Attributes:
        total: the fraction to keep, in (0, 1].
        of: "numbers" or "channels".
        metric: chooses among several plans, or None.
    """

    total: float
    of: str = "numbers"
    metric: Metric | None = None

    def __repr__(self) -> str:
        total, *others = arguments(self).items()
        options = [f"{name}={show_function(v) if callable(v) else show(v)}" for name, v in others]
        return call("budget", show(total[1]), *options)


@checked(of=choice(*OF), metric=function("from candidates by name to their scores"))
def budget(total: float, *, of: str = "numbers", metric: Metric | None = None) -> Budget:
    """A total size in place of a keep, divided so that the predicted output error is least.

    Args:
        total: the fraction to keep of all numbers of the tree that the transform receives, in
            (0, 1]; met within 2 %.
        of: "numbers", or "channels" for the fraction of all channels of the hidden axes, each
            counted once.
        metric: chooses among up to four plans of this total: a function from a mapping of their
            small parameters by name to a mapping of scores, higher is better, such as
            `jc.classifiers.accuracy_metric(active)`. It should use data that is not used for
            evaluation later. The scores are in `.plan(...).scores`. With None the plan with the
            least sum of predicted errors is used.

    Returns:
        A value for `keep` of `jc.rotate_and_prune` and the leaf transforms, whose
        `.plan(params, moments)` prints the division. Predicted errors are those of the network's
        outputs if the moments hold their sensitivity: `jc.calibrate(..., sensitivity=True)`.

    Raises:
        ValueError: for a total outside (0, 1]; when the transform is called, for a total that it
            cannot reach, or a metric whose scores are not finite numbers.
        TypeError: for a metric that is not a function.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
        >>> shapes, keys = [(4, 16), (16, 16), (16, 2)], jax.random.split(jax.random.key(0), 3)
        >>> params = dict(zip("abc", map(jax.random.normal, keys, shapes)))
        >>> net, x = jc.trace(apply, params, jnp.ones((2, 4))), jax.random.normal(keys[0], (500, 4))
        >>> moments = jc.calibrate(net, params, [x], sensitivity=True, progress=False)
        >>> shrink = jc.rotate_and_prune(net, jc.budget(1/2))
        >>> shrink.plan(params, moments).stored
        (352.0, 174.0)

        Of the networks of one size, the one that agrees with the original on most examples:

        >>> data = (x, None)
        >>> active = jc.classifiers.active_set(net, params, data, tolerance=0.5, progress=False)
        >>> metric = jc.classifiers.accuracy_metric(active)
        >>> shrink = jc.rotate_and_prune(net, jc.budget(1/2, metric=metric))
        >>> list(shrink.plan(params, moments).scores)
        ['errors', 'errors^0.5', 'equal keeps']
    """
    try:
        total = number("(0, 1]", "the fraction of all numbers to keep")("budget", total)
    except ValueError as error:
        raise ValueError(f"{error}: for a quarter, budget(1/4)") from None
    return Budget(float(total), of, metric)


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of a budget that one axis or matrix receives.

    Attributes:
        key: the key of the axis or the name of the leaf.
        keep: the fraction that is kept.
        detail: the size in words, such as "20 of 64".
        error: the predicted error of the outputs when it alone is cut.
        method: how an axis is cut, and why not better; "" for a matrix.
    """

    key: str
    keep: float
    detail: str
    error: float
    method: str = ""

    def _cells(self) -> tuple[str, ...]:
        return (self.key, f"{self.keep:.3g}", self.detail, f"{self.error:.2g}", self.method)


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
    """The division of a budget; prints as a table, and as HTML in a notebook.

    Attributes:
        shares: one row for each axis or matrix.
        stored: the numbers of the whole tree before and after.
        uniform: the predicted error of equal keeps at the same total, or None where no equal keep
            reaches it.
        scores: the metric's scores of all plans by name; empty without a metric.
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
        """The predicted error of the outputs: to first order, the sum over all shares."""
        return sum(share.error for share in self.shares)

    def _summary(self) -> str:
        before, after = self.stored
        equal = "" if self.uniform is None else f" (equal keeps: {self.uniform:.2g})"
        scores = "".join(f"; {name}: {score:.4g}" for name, score in self.scores.items())
        return (
            f"{before:,.0f} numbers to {after:,.0f} = {after / before:.3f}; "
            f"predicted error {self.error:.2g}{equal}{scores}"
        )

    def _table(self) -> Table[Share]:
        titles = ("what", "keep", "size", "predicted error", "method")
        return Table(self.shares, titles, "nothing to divide")

    def __str__(self) -> str:
        return f"{self._table()}\n{self._summary()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{self._table()._repr_html_()}<p>{self._summary()}</p>"


@dataclasses.dataclass(frozen=True)
class Item:
    """One axis or matrix that receives a share of a budget.

    Attributes:
        key: the key of the axis or the name of the leaf.
        errors: the predicted error of the outputs, from the smallest size to the full one.
        keeps: the fraction that is kept.
        sizes: channels or numbers.
        labels: one for each option, such as "20 of 64".
        option: from a keep to the index of the option that it selects.
        method: as in `Share`.
    """

    key: str
    errors: Float[np.ndarray, " options"]
    keeps: Float[np.ndarray, " options"]
    sizes: Float[np.ndarray, " options"]
    labels: Sequence[str]
    option: Callable[[float], int]
    method: str = ""

    def share(self, option: int) -> Share:
        """The row of a plan for one of the options."""
        keep, error = float(self.keeps[option]), float(self.errors[option])
        return Share(self.key, keep, self.labels[option], error, self.method)


@dataclasses.dataclass(frozen=True)
class Items:
    """All items among which a transform divides a budget.

    Attributes:
        rows: the items.
        counts: the numbers stored by the leaves that depend on the items, for every choice.
        stored: the numbers that those leaves store at present.
        leaves: the names of those leaves.
    """

    rows: tuple[Item, ...]
    counts: StoredCounts
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
    """The items of several transforms as one; the whole tree stores `before` numbers."""
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


def scored(metric: Metric, candidates: Mapping[str, PyTree]) -> dict[str, float]:
    """A metric's scores of candidate parameters: one finite number for each."""
    try:
        scores = metric(candidates)
    except Exception as error:
        error.add_note(
            f"in the metric of a budget, {metric!r}: it must take a mapping from names to small "
            f"parameters of this transform's network"
        )
        raise
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"budget: the metric gave {shown(scores)}, expected a mapping from each of "
            f"{sorted(candidates)} to its score"
        )
    if scores.keys() != candidates.keys():
        raise ValueError(
            f"budget: the metric scored {sorted(scores)}, expected a score for each of "
            f"{sorted(candidates)}"
        )
    for name, score in scores.items():
        value = np.asarray(score)
        if value.ndim or value.dtype.kind in "OSUc" or not np.isfinite(float(value)):
            raise ValueError(
                f"budget: the metric of the plan by {name} is {score!r}, expected a finite number, "
                f"higher is better"
            )
    return {name: float(np.asarray(score)) for name, score in scores.items()}


def plan_for(
    rule: Budget, parts: Sequence[Items], before: float, small: Callable[[Plan], PyTree]
) -> Plan:
    """Divide a budget among the items of one or several transforms.

    Args:
        rule: the budget.
        parts: the items of each transform.
        before: the numbers that the whole tree stores.
        small: from a plan to the parameters that it gives, for a metric.

    Returns:
        The plan with the least predicted error, or with the highest score of the metric.

    Raises:
        ValueError: for a total that the items cannot reach, or scores that are not finite numbers.
    """
    items = joint(parts, before)
    counted, target = items.counts, rule.total * before
    if rule.of == "channels":
        counted = Counts([item.sizes for item in items.rows])
        target = rule.total * sum(float(item.sizes[-1]) for item in items.rows)
    try:
        choice, equal = divide(items.errors, counted, target, items.option)
    except ValueError as error:
        raise ValueError(f"{rule}: {error}") from None
    if rule.metric is None:
        return plan_of(items, choice, equal)
    choices = alternatives(items.errors, counted, target, items.option)
    plans = {name: plan_of(items, choice, equal) for name, choice in choices.items()}
    scores = scored(rule.metric, {name: small(plan) for name, plan in plans.items()})
    return dataclasses.replace(plans[max(scores, key=lambda name: scores[name])], scores=scores)


def plan_of(items: Items, choice: Sequence[int], equal: float | None = None) -> Plan:
    """The plan of one option for each item; `equal` is the error of equal keeps."""
    shares = tuple(item.share(option) for item, option in zip(items.rows, choice, strict=True))
    return Plan(shares, (items.stored, items.counts.total(choice)), equal)
