"""One number for everything: how much of each axis or matrix to keep, so that the predicted output error is least.

Every item i has a curve e_i(k), the error that the network's outputs are predicted to have when i alone is cut to its option k,
and the numbers n_i(k) that are stored then. The sum of errors is minimised under a total of numbers: at the optimum one number
more buys the same error everywhere, so a price is searched for at which each item's own best choice meets the total. Where an
item's numbers depend on the others' (a kernel has two axes) choices are settled in turn. No pass over data.

Source: Lagrangian bit allocation (Shoham and Gersho 1988), for channels and ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcompress.networks.axes import Layout, Table

OF = ("numbers", "channels")


@dataclasses.dataclass(frozen=True)
class Budget:
    """See `budget`."""

    total: float
    of: str = "numbers"

    def __repr__(self) -> str:
        return f"budget({self.total:g}{f', of={self.of!r}' if self.of != 'numbers' else ''})"


def budget(total: float, *, of: str = "numbers") -> Budget:
    """A rule that goes wherever a keep goes: one share of all stored numbers, divided where it costs the outputs least.

    Args:
        total: the fraction of all numbers of the tree that a transform receives, in (0, 1]; met within 2 %.
        of: "numbers", or "channels" for the fraction of all channels of the hidden axes, each counting one.

    Returns:
        A rule for `jc.rotate_and_prune` and the leaf transforms. `transform.plan(params, moments)` prints what it gives. Errors
        are those of the network's outputs where the moments know them: `net.calibrate(..., sensitivity=True)`.

    Raises:
        ValueError: for a total outside (0, 1]; when the transform is called, for one that it cannot reach.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
        >>> shapes, keys = {"a": (4, 16), "b": (16, 16), "c": (16, 2)}, jax.random.split(jax.random.key(0), 3)
        >>> params = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> net, x = jc.trace(apply, params, jnp.ones((2, 4))), jax.random.normal(keys[0], (500, 4))
        >>> moments = net.calibrate(params, [x], sensitivity=True, progress=False)
        >>> shrink = jc.rotate_and_prune(net, jc.budget(1/2))
        >>> shrink.plan(params, moments).stored
        (352.0, 174.0)
    """
    if not isinstance(total, (int, float)) or isinstance(total, bool) or not 0 < total <= 1:
        raise ValueError(
            f"budget must be in (0, 1], the fraction of all numbers to keep; got {total!r}: for a quarter, budget(1/4)"
        )
    if of not in OF:
        raise ValueError(f"of={of!r} is unknown: expected one of {', '.join(map(repr, OF))}")
    return Budget(float(total), of)


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
        uniform: the predicted error of equal keeps at the same total, or None where none reaches it.
    """

    shares: tuple[Share, ...]
    stored: tuple[float, float]
    uniform: float | None = None

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
        return f"{before:,.0f} numbers to {after:,.0f} = {after / before:.3f}; predicted error {self.error:.2g}{equal}"

    def _table(self) -> Table:
        return Table(self.shares, ("what", "keep", "size", "predicted error"), "nothing to divide")  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self._table()}\n{self._summary()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{self._table()._repr_html_()}<p>{self._summary()}</p>"


class Counts:
    """Numbers stored by items whose counts add up: a vector of numbers over the options of each."""

    def __init__(self, each: Sequence[np.ndarray]):
        self.each = list(each)

    def total(self, choice: Sequence[int]) -> float:
        """Of all items at one option of each."""
        return sum(float(numbers[option]) for numbers, option in zip(self.each, choice, strict=True))

    def along(self, item: int, choice: Sequence[int]) -> np.ndarray:
        """Of what depends on one item, over its options, the others as chosen."""
        return self.each[item]


class JointCounts:
    """Numbers stored by several transforms' items, and by all that none of them changes."""

    def __init__(self, fixed: float, parts: Sequence[Any], sizes: Sequence[int]):
        self.fixed, self.parts = fixed, list(parts)
        self.starts = np.cumsum([0, *sizes]).tolist()

    def total(self, choice: Sequence[int]) -> float:
        """Of everything at one option of each item."""
        spans = zip(self.parts, self.starts, self.starts[1:])
        return self.fixed + sum(part.total(choice[start:end]) for part, start, end in spans)

    def along(self, item: int, choice: Sequence[int]) -> np.ndarray:
        """Of what depends on one item, over its options, the others as chosen."""
        place = int(np.searchsorted(self.starts, item, "right")) - 1
        start, end = self.starts[place : place + 2]
        return self.parts[place].along(item - start, choice[start:end])


class AxisCounts:
    """Numbers stored by leaves whose dimensions are axes, each with sizes to choose from."""

    def __init__(
        self,
        layouts: Mapping[str, tuple[Layout, ...]],
        worth: Mapping[str, float],
        options: Mapping[str, np.ndarray],
        full: Mapping[str, int],
    ):
        self.layouts, self.worth, self.full = layouts, worth, dict(full)
        self.keys, self.options = list(options), list(options.values())
        self.touched = [[name for name, dims in layouts.items() if any(key in d.axes() for d in dims)] for key in self.keys]

    def sizes(self, choice: Sequence[int]) -> dict[str, int]:
        """The sizes of the axes at one option of each."""
        chosen = zip(self.keys, self.options, choice, strict=True)
        return self.full | {key: int(options[option]) for key, options, option in chosen}

    def total(self, choice: Sequence[int]) -> float:
        """Of all leaves at one size of each axis."""
        sizes = self.sizes(choice)
        entries = lambda dims: float(np.prod([layout.resized(sizes).size for layout in dims]))
        return sum(self.worth[name] * entries(dims) for name, dims in self.layouts.items())

    def along(self, item: int, choice: Sequence[int]) -> np.ndarray:
        """Of the leaves that have one axis, over its sizes: every dimension is affine in it."""
        key, sizes = self.keys[item], self.sizes(choice)
        options = self.options[item]
        none, one = sizes | {key: 0}, sizes | {key: 1}
        total = np.zeros(len(options))
        for name in self.touched[item]:
            entries = np.full(len(options), self.worth[name])
            for layout in self.layouts[name]:
                base = layout.resized(none).size
                entries = entries * (base + (layout.resized(one).size - base) * options)
            total += entries
        return total


def allocate(errors: Sequence[np.ndarray], counts: Any, target: float) -> list[int]:
    """An option for each item, so that the sum of errors is least and the numbers are no more than a target.

    Args:
        errors: for each item a curve over its options, from the smallest size to the whole.
        counts: `Counts`, `AxisCounts` or `JointCounts`.
        target: the most numbers.

    Raises:
        ValueError: when the smallest options are more than the target.
    """
    full = [len(curve) - 1 for curve in errors]
    least = counts.total([0] * len(errors))
    if least > target:
        raise ValueError(f"{target:,.0f} numbers cannot be reached: {least:,.0f} stay when everything is cut to the least")

    def settle(price: float) -> list[int]:
        choice = list(full)
        for _ in range(8):
            before = list(choice)
            for item, curve in enumerate(errors):
                cost = curve + price * counts.along(item, choice)
                choice[item] = len(cost) - 1 - int(np.argmin(cost[::-1]))
            if choice == before:
                break
        return choice

    scale = max(max((float(curve[0]) for curve in errors), default=1.0), 1e-300) / max(counts.total(full), 1.0)
    low, high = 1e-9 * scale, 1e9 * scale
    best = [0] * len(errors)
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        found = settle(middle)
        if counts.total(found) <= target:
            best, high = found, middle
        else:
            low = middle
    return fill(errors, counts, target, best)


def fill(errors: Sequence[np.ndarray], counts: Any, target: float, choice: list[int]) -> list[int]:
    """Spend what is left of a target on the steps that lower the error most for each number."""
    choice = list(choice)
    total = counts.total(choice)
    while True:
        best: tuple[float, int, int, float] | None = None
        for item, curve in enumerate(errors):
            here = choice[item]
            numbers = counts.along(item, choice)
            more = numbers[here + 1 :] - numbers[here]
            steps = np.flatnonzero(total + more <= target * (1 + 1e-12))
            if not len(steps):
                continue
            worth = (curve[here] - curve[here + 1 :][steps]) / np.maximum(more[steps], 1e-12)
            step = len(worth) - 1 - int(np.argmax(worth[::-1]))  # as far as it is worth the same
            if best is None or worth[step] > best[0]:
                best = (float(worth[step]), item, here + 1 + int(steps[step]), float(more[steps[step]]))
        if best is None or best[0] < 0:
            return choice
        choice[best[1]] = best[2]
        total += best[3]


def uniform(errors: Sequence[np.ndarray], counts: Any, target: float, option: Callable[[int, float], int]) -> list[int] | None:
    """The options of equal keeps that come nearest to a target from below; None where none does."""
    low, high = 0.0, 1.0
    best = None
    for _ in range(40):
        middle = (low + high) / 2
        found = [option(item, middle) for item in range(len(errors))]
        if counts.total(found) <= target:
            best, low = found, middle
        else:
            high = middle
    return best


def divide(errors: Sequence[np.ndarray], counts: Any, target: float, option: Callable[[int, float], int]) -> tuple[list[int], Any]:
    """The better of the allocation and equal keeps, by the predicted error; and the latter's error, where it reaches the target."""
    total = lambda choice: float(sum(curve[k] for curve, k in zip(errors, choice, strict=True)))
    found = allocate(errors, counts, target)
    equal = uniform(errors, counts, target, option)
    if equal is None:
        return found, None
    return (found if total(found) <= total(equal) else fill(errors, counts, target, equal)), total(equal)


@dataclasses.dataclass(frozen=True)
class Items:
    """What one transform divides a budget among.

    Attributes:
        keys: of axes or leaves.
        errors: for each item a curve over its options, from the smallest size to the whole.
        keeps: for each item the fraction that stays, over its options.
        sizes: for each item its channels or numbers, over its options.
        detail: what an option of an item is, in words.
        counts: the numbers stored by the leaves that depend on the items, `Counts` or `AxisCounts`.
        stored: the numbers that those leaves store at present.
        option: the option of an item that an equal keep for all gives.
        leaves: the names of those leaves.
    """

    keys: list[str]
    errors: list[np.ndarray]
    keeps: list[np.ndarray]
    sizes: list[np.ndarray]
    detail: Callable[[int, int], str]
    counts: Any
    stored: float
    option: Callable[[int, float], int]
    leaves: frozenset[str]


def joint(parts: Sequence[Items], before: float) -> Items:
    """The items of several transforms as one's, with the numbers of the whole tree, which stores `before`."""
    places = [(part, item) for part in parts for item in range(len(part.keys))]
    counts = JointCounts(
        before - sum(part.stored for part in parts), [part.counts for part in parts], [len(part.keys) for part in parts]
    )
    return Items(
        [part.keys[item] for part, item in places],
        [part.errors[item] for part, item in places],
        [part.keeps[item] for part, item in places],
        [part.sizes[item] for part, item in places],
        lambda item, option: places[item][0].detail(places[item][1], option),
        counts,
        before,
        lambda item, keep: places[item][0].option(places[item][1], keep),
        frozenset().union(*(part.leaves for part in parts)),
    )


def plan_for(rule: Budget, parts: Sequence[Items], before: float) -> Plan:
    """How a budget is divided among the items of one or several transforms of a tree that stores `before` numbers."""
    items = joint(parts, before)
    if rule.of == "channels":
        counted, target = Counts(items.sizes), rule.total * sum(float(each[-1]) for each in items.sizes)
    else:
        counted, target = items.counts, rule.total * before
    try:
        choice, equal = divide(items.errors, counted, target, items.option)
    except ValueError as error:
        raise ValueError(f"{rule}: {error}") from None
    return plan_of(items, choice, equal)


def plan_of(items: Items, choice: Sequence[int], equal: float | None = None) -> Plan:
    """Options of the items of a whole tree as a plan."""
    shares = (
        Share(key, float(keeps[option]), items.detail(index, option), float(errors[option]))
        for index, (key, keeps, errors, option) in enumerate(zip(items.keys, items.keeps, items.errors, choice, strict=True))
    )
    return Plan(tuple(shares), (items.stored, items.counts.total(choice)), equal)
