"""Allocation: one option for each item, minimising the sum of errors at a limited total size.

Minimises `sum_i e_i(k_i)` subject to `n(k_1, ..., k_p) <= target`, by bisection on the Lagrange
multiplier lambda: each item takes the option with the least `e_i(k) + lambda n_i(k)`. Where an
item's numbers depend on the other items (a kernel has two axes), the items are optimised in turn
until nothing changes. Costs at most 480 passes over all curves, and one for each step of `fill`.

Source: Lagrangian bit allocation, Shoham and Gersho 1988 (doi:10.1109/29.90373), for channels and
ranks instead of bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from jaxcompress.networks.axes import Layout

POWERS = (1.0, 0.5, 2.0)
"""Powers of the errors that are summed: errors; amplitudes; a power that penalises large errors."""

Curves: TypeAlias = Sequence[Float[np.ndarray, " options"]]
"""For each item its errors, from the smallest size to the full one."""

SelectOption: TypeAlias = Callable[[int, float], int]
"""From an item's index and a keep to the index of the option that the keep selects."""

ROUNDS = 8
"""Rounds in which the items are optimised in turn at one price."""


class StoredCounts(Protocol):
    """The numbers stored at every choice of options, one option for each item."""

    def total(self, choice: Sequence[int]) -> float:
        """The numbers stored by all items."""
        ...

    def along(self, item: int, choice: Sequence[int]) -> Float[np.ndarray, " options"]:
        """The numbers that depend on one item, for each of its options, the others as chosen."""
        ...


class Counts:
    """Numbers stored by independent items: one vector over the options of each item."""

    def __init__(self, numbers: Sequence[np.ndarray]):
        self.numbers = list(numbers)

    def total(self, choice: Sequence[int]) -> float:
        """The numbers stored by all items."""
        pairs = zip(self.numbers, choice, strict=True)
        return sum(float(numbers[option]) for numbers, option in pairs)

    def along(self, item: int, choice: Sequence[int]) -> Float[np.ndarray, " options"]:
        """The numbers that one item stores, for each of its options."""
        return self.numbers[item]


class JointCounts:
    """Numbers stored by the items of several transforms and by everything they leave unchanged.

    Args:
        fixed: the numbers that no transform changes.
        parts: the counts of each transform.
        sizes: the number of items of each transform.
    """

    def __init__(self, fixed: float, parts: Sequence[StoredCounts], sizes: Sequence[int]):
        self.fixed, self.parts = fixed, list(parts)
        self.starts = np.cumsum([0, *sizes]).tolist()

    def total(self, choice: Sequence[int]) -> float:
        """The numbers stored by everything."""
        spans = zip(self.parts, self.starts[:-1], self.starts[1:], strict=True)
        return self.fixed + sum(part.total(choice[start:end]) for part, start, end in spans)

    def along(self, item: int, choice: Sequence[int]) -> Float[np.ndarray, " options"]:
        """The numbers that depend on one item, for each of its options, the others as chosen."""
        part = int(np.searchsorted(self.starts, item, "right")) - 1
        start, end = self.starts[part : part + 2]
        return self.parts[part].along(item - start, choice[start:end])


class AxisCounts:
    """Numbers stored by leaves whose dimensions are axes, each with several possible sizes.

    Args:
        layouts: for each leaf, the layout of each of its dimensions.
        worth: for each leaf, the numbers that one of its entries counts as.
        options: for each axis to be cut, its possible sizes.
        full: the sizes of all axes at present.
    """

    def __init__(
        self,
        layouts: Mapping[str, tuple[Layout, ...]],
        worth: Mapping[str, float],
        options: Mapping[str, np.ndarray],
        full: Mapping[str, int],
    ):
        self.layouts, self.worth, self.full = layouts, worth, dict(full)
        self.keys, self.options = list(options), list(options.values())
        leaf_axes = {
            name: frozenset().union(*(layout.axes() for layout in dims))
            for name, dims in layouts.items()
        }
        self.touched = [leaves_with(key, leaf_axes) for key in self.keys]

    def sizes(self, choice: Sequence[int]) -> dict[str, int]:
        """The sizes of all axes at one option of each."""
        chosen = zip(self.keys, self.options, choice, strict=True)
        return self.full | {key: int(options[option]) for key, options, option in chosen}

    def total(self, choice: Sequence[int]) -> float:
        """The numbers stored by all leaves."""
        sizes, total = self.sizes(choice), 0.0
        for name, dims in self.layouts.items():
            entries = float(np.prod([layout.resized(sizes).size for layout in dims]))
            total += self.worth[name] * entries
        return total

    def along(self, item: int, choice: Sequence[int]) -> Float[np.ndarray, " options"]:
        """The numbers stored by the leaves with one axis; each dimension is affine in its size."""
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


def leaves_with(key: str, leaf_axes: Mapping[str, frozenset[str]]) -> list[str]:
    """The leaves that have an axis."""
    return [name for name, axes in leaf_axes.items() if key in axes]


def allocate(errors: Curves, counts: StoredCounts, target: float) -> list[int]:
    """One option for each item, minimising the sum of errors at no more than `target` numbers.

    Args:
        errors: for each item its errors, from the smallest size to the full one.
        counts: the stored numbers at every choice.
        target: the largest total of numbers.

    Returns:
        The index of the option of each item.

    Raises:
        ValueError: when the smallest options exceed the target.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.transforms.allocation import Counts, allocate
        >>> errors = [np.array([4.0, 1.0, 0.0]), np.array([0.4, 0.1, 0.0])]
        >>> allocate(errors, Counts([np.array([1, 2, 3])] * 2), target=4)
        [2, 0]
    """
    full = [len(curve) - 1 for curve in errors]
    smallest = [0] * len(errors)
    least = counts.total(smallest)
    if least > target:
        raise ValueError(
            f"{target:,.0f} numbers cannot be reached: {least:,.0f} stay when everything is cut to "
            f"the least"
        )
    largest_error = max((float(curve[0]) for curve in errors), default=1.0)
    scale = (largest_error or 1.0) / max(counts.total(full), 1.0)
    low, high = 1e-9 * scale, 1e9 * scale
    best = smallest
    for _ in range(60):
        price = float(np.sqrt(low * high))
        choice = cheapest(errors, counts, price)
        if counts.total(choice) <= target:
            best, high = choice, price
        else:
            low = price
    return fill(errors, counts, target, best)


def cheapest(errors: Curves, counts: StoredCounts, price: float) -> list[int]:
    """The options with the least error plus price times numbers; the larger one in a tie."""
    choice = [len(curve) - 1 for curve in errors]
    for _ in range(ROUNDS):
        before = list(choice)
        for item, curve in enumerate(errors):
            cost = curve + price * counts.along(item, choice)
            choice[item] = last_argmin(cost)
        if choice == before:
            break
    return choice


def last_argmin(values: Float[np.ndarray, " n"]) -> int:
    """The index of the least value, the last of equal ones."""
    return len(values) - 1 - int(np.argmin(values[::-1]))


class Step(NamedTuple):
    """An item's move to a larger option.

    Attributes:
        worth: the error saved for each number.
        item: the item's index.
        option: the larger option.
        numbers: the additional numbers.
    """

    worth: float
    item: int
    option: int
    numbers: float


def best_step(
    item: int,
    curve: Float[np.ndarray, " options"],
    numbers: Float[np.ndarray, " options"],
    option: int,
    total: float,
    limit: float,
) -> Step | None:
    """The step of one item that saves the most error for each number; None where none fits."""
    more = numbers[option + 1 :] - numbers[option]
    steps: Int[np.ndarray, " steps"] = np.flatnonzero(total + more <= limit)
    if not len(steps):
        return None
    worth = (curve[option] - curve[option + 1 :][steps]) / np.maximum(more[steps], 1e-12)
    # the largest of equally good steps
    step = last_argmin(-worth)
    return Step(float(worth[step]), item, option + 1 + int(steps[step]), float(more[steps[step]]))


def fill(errors: Curves, counts: StoredCounts, target: float, choice: Sequence[int]) -> list[int]:
    """Spend the remaining numbers greedily on the steps that save the most error for each."""
    choice = list(choice)
    total = counts.total(choice)
    limit = target * (1 + 1e-12)
    while True:
        candidates = (
            best_step(item, curve, counts.along(item, choice), choice[item], total, limit)
            for item, curve in enumerate(errors)
        )
        steps = [step for step in candidates if step is not None]
        best = max(steps, key=lambda step: step.worth, default=None)
        if best is None or best.worth < 0:
            return choice
        choice[best.item] = best.option
        total += best.numbers


def uniform(
    errors: Curves, counts: StoredCounts, target: float, option: SelectOption
) -> list[int] | None:
    """The options of the largest equal keep within the target; None where there is none."""
    low, high = 0.0, 1.0
    best = None
    for _ in range(40):
        keep = (low + high) / 2
        choice = [option(item, keep) for item in range(len(errors))]
        if counts.total(choice) <= target:
            best, low = choice, keep
        else:
            high = keep
    return best


def divide(
    errors: Curves, counts: StoredCounts, target: float, option: SelectOption
) -> tuple[list[int], float | None]:
    """The better of the allocation and equal keeps by predicted error.

    Args:
        errors: as in `allocate`.
        counts: as in `allocate`.
        target: as in `allocate`.
        option: from an item's index and a keep to the option that the keep selects.

    Returns:
        The option of each item, and the error of equal keeps, None where these exceed the target.

    Raises:
        ValueError: when the smallest options exceed the target.
    """
    allocated = allocate(errors, counts, target)
    equal = uniform(errors, counts, target, option)
    if equal is None:
        return allocated, None
    equal_error = total_error(errors, equal)
    if total_error(errors, allocated) <= equal_error:
        return allocated, equal_error
    return fill(errors, counts, target, equal), equal_error


def total_error(errors: Curves, choice: Sequence[int]) -> float:
    """The sum of errors at one option of each item."""
    return float(sum(curve[option] for curve, option in zip(errors, choice, strict=True)))


def alternatives(
    errors: Curves, counts: StoredCounts, target: float, option: SelectOption
) -> dict[str, list[int]]:
    """Distinct allocations of one total by name: one for each power of the errors, and equal keeps.

    Args:
        errors: as in `allocate`.
        counts: as in `allocate`.
        target: as in `allocate`.
        option: as in `divide`.

    Returns:
        The option of each item for each name; of equal allocations only the first.
    """
    choices: dict[str, list[int]] = {}
    for power in POWERS:
        name = "errors" if power == 1 else f"errors^{power:g}"
        choices[name] = allocate([curve**power for curve in errors], counts, target)
    equal = uniform(errors, counts, target, option)
    if equal is not None:
        choices["equal keeps"] = fill(errors, counts, target, equal)
    distinct: dict[str, list[int]] = {}
    for name, choice in choices.items():
        if choice not in distinct.values():
            distinct[name] = choice
    return distinct
