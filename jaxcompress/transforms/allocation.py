"""Allocation: an option for each of several items, so that a sum of errors is least under a total of numbers.

At the optimum one number more buys the same error everywhere, so a price is searched for at which
each item's own best choice meets the total. Where an item's numbers depend on the others' (a kernel
has two axes) choices are settled in turn.

Source: Lagrangian bit allocation (Shoham and Gersho 1988), for channels and ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcompress.networks.axes import Layout

POWERS = (1.0, 0.5, 2.0)
"""Of the errors that are summed: as they are; as if amplitudes added up; as if large ones harmed more. A metric chooses."""


class Counts:
    """Numbers stored by items whose counts add up: a vector of numbers over the options of each."""

    def __init__(self, each: Sequence[np.ndarray]):
        self.each = list(each)

    def total(self, choice: Sequence[int]) -> float:
        """Of all items at one option of each."""
        return sum(
            float(numbers[option]) for numbers, option in zip(self.each, choice, strict=True)
        )

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
        self.touched = [
            [name for name, dims in layouts.items() if any(key in d.axes() for d in dims)]
            for key in self.keys
        ]

    def sizes(self, choice: Sequence[int]) -> dict[str, int]:
        """The sizes of the axes at one option of each."""
        chosen = zip(self.keys, self.options, choice, strict=True)
        return self.full | {key: int(options[option]) for key, options, option in chosen}

    def total(self, choice: Sequence[int]) -> float:
        """Of all leaves at one size of each axis."""
        sizes = self.sizes(choice)

        def entries(dims):
            return float(np.prod([layout.resized(sizes).size for layout in dims]))

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
        raise ValueError(
            f"{target:,.0f} numbers cannot be reached: {least:,.0f} stay when everything is cut to "
            f"the least"
        )

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

    scale = max(max((float(curve[0]) for curve in errors), default=1.0), 1e-300) / max(
        counts.total(full), 1.0
    )
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
                best = (
                    float(worth[step]),
                    item,
                    here + 1 + int(steps[step]),
                    float(more[steps[step]]),
                )
        if best is None or best[0] < 0:
            return choice
        choice[best[1]] = best[2]
        total += best[3]


def uniform(
    errors: Sequence[np.ndarray], counts: Any, target: float, option: Callable[[int, float], int]
) -> list[int] | None:
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


def divide(
    errors: Sequence[np.ndarray], counts: Any, target: float, option: Callable[[int, float], int]
) -> tuple[list[int], Any]:
    """The better of the allocation and equal keeps, by the predicted error; and the latter's error, where it reaches the target."""

    def total(choice):
        return float(sum(curve[k] for curve, k in zip(errors, choice, strict=True)))

    found = allocate(errors, counts, target)
    equal = uniform(errors, counts, target, option)
    if equal is None:
        return found, None
    return (found if total(found) <= total(equal) else fill(errors, counts, target, equal)), total(
        equal
    )


def alternatives(
    errors: Sequence[np.ndarray], counts: Any, target: float, option: Callable[[int, float], int]
) -> dict[str, list[int]]:
    """Different allocations of one total, by name: for each power of the errors, and equal keeps."""
    found = {
        "errors" if power == 1 else f"errors^{power:g}": allocate(
            [curve**power for curve in errors], counts, target
        )
        for power in POWERS
    }
    equal = uniform(errors, counts, target, option)
    if equal is not None:
        found["equal keeps"] = fill(errors, counts, target, equal)
    return {
        name: choice
        for place, (name, choice) in enumerate(found.items())
        if choice not in list(found.values())[:place]
    }
