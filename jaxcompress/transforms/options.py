"""Options of a transform that are one value for all leaves or a mapping from patterns to values.

Mappings are kept as tuples of pairs, so that transforms compare and hash; the first pattern that
matches a leaf (or the key of an axis) decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import matches
from jaxcompress.checks import mapping, number, shown
from jaxcompress.transforms.budget import Budget

Value = TypeVar("Value")

PerPattern: TypeAlias = Value | tuple[tuple[str, Value], ...]
"""An option as a transform keeps it."""

Keep: TypeAlias = float | Mapping[str, float] | Budget
"""The fraction of the numbers (or channels) to keep, in (0, 1], by pattern, or a budget."""

Roles: TypeAlias = MatrixAxes | Mapping[str, MatrixAxes] | None
"""Which dimensions of a weight are inputs and outputs, by pattern; None for (in, out)."""


class PerLeaf(Generic[Value]):
    """An option of a transform while it runs: the value of each leaf, and which patterns were used.

    Args:
        option: one value for all, or a tuple of pairs of a pattern and a value.
        what: the name of the option, for messages.
    """

    def __init__(self, option: PerPattern[Value], what: str):
        self.what = what
        self.default = not isinstance(option, tuple)
        self.rules: tuple[tuple[str, Value], ...] = (
            option if isinstance(option, tuple) else (("**", option),)
        )
        self.used: set[str] = set()

    def get(self, path: str) -> Value | None:
        """The value of the first pattern that matches a path; None where none does."""
        for pattern, value in self.rules:
            # a plan gives names as patterns, and a name may contain a special character such as [
            if self.default or pattern == path or matches(pattern, path):
                self.used.add(pattern)
                return value
        return None

    def check_keys(self, keys: Iterable[str]) -> None:
        """Refuse a pattern that matches none of the keys."""
        keys = list(keys)
        for key in keys:
            self.get(key)
        self.check_used(keys)

    def check_used(self, paths: Iterable[str]) -> None:
        """Refuse a pattern that `get` never used."""
        unused = [pattern for pattern, _ in self.rules if pattern not in self.used]
        if unused and not self.default:
            raise ValueError(
                f"{self.what}: the pattern {' and '.join(map(repr, unused))} decides nothing: "
                "nothing matches it, or an earlier pattern does; there are: "
                f"{', '.join(paths) or 'none'}"
            )


def per_pattern(
    name: str, option: Value | Mapping[str, Value], kind: Callable[[str, Any], Value]
) -> PerPattern[Value]:
    """One value for all, or a mapping from patterns as a tuple of pairs, each of a kind."""
    if not isinstance(option, Mapping):
        return kind(name, option)
    items: Iterable[tuple[str, Any]] = mapping(name, option).items()
    return tuple((pattern, kind(f"{name}[{pattern!r}]", value)) for pattern, value in items)


def check_keep(keep: Keep) -> PerPattern[float] | Budget:
    """A keep as a transform stores it: a float, a budget, or a tuple of pairs.

    Raises:
        ValueError: for a number outside (0, 1], or an empty mapping.
        TypeError: for patterns that are no strings.
    """
    return keep if isinstance(keep, Budget) else per_pattern("keep", keep, _fraction)


def _fraction(name: str, value: float) -> float:
    try:
        return float(number("(0, 1]", "the fraction of the numbers to keep")(name, value))
    except ValueError as error:
        raise ValueError(f"{error}: for eight times smaller, keep=1/8") from None


def check_matrix_axes(axes: Roles) -> PerPattern[MatrixAxes | None]:
    """Roles of dimensions as a transform stores them: one for all, or a tuple of pairs.

    Raises:
        ValueError: for an empty mapping.
        TypeError: for anything but MatrixAxes, None, or a mapping.
    """
    return per_pattern("matrix_axes", axes, _roles)


def _roles(name: str, value: MatrixAxes | None) -> MatrixAxes | None:
    if value is not None and not isinstance(value, MatrixAxes):
        raise TypeError(
            f"{name} must be a jc.MatrixAxes or a mapping from patterns to them, got {shown(value)}"
        )
    return value
