"""Options of a transform that are one value for all leaves or a mapping from patterns to values.

Mappings are kept as tuples of pairs, so that transforms compare and hash; the first pattern that
matches a leaf (or the key of an axis) decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeAlias, TypeVar

from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import matches
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
                f"{self.what}: the patterns {unused} match no leaf; there are: {', '.join(paths)}"
            )


def check_keep(keep: Keep) -> PerPattern[float] | Budget:
    """A keep as a transform stores it: a float, a budget, or a tuple of pairs.

    Raises:
        ValueError: for a number outside (0, 1].
    """
    if isinstance(keep, Budget):
        return keep
    if isinstance(keep, Mapping):
        return tuple((pattern, check_keep(value)) for pattern, value in keep.items())  # type: ignore[misc]
    if not isinstance(keep, (int, float)) or isinstance(keep, bool) or not 0 < keep <= 1:
        raise ValueError(
            f"keep must be in (0, 1], the fraction of the numbers to keep; got {keep!r}: for eight "
            "times smaller, keep=1/8"
        )
    return float(keep)


def check_matrix_axes(axes: Roles) -> PerPattern[MatrixAxes | None]:
    """Roles of dimensions as a transform stores them: one for all, or a tuple of pairs.

    Raises:
        TypeError: for anything but MatrixAxes, None, or a mapping.
    """
    if isinstance(axes, Mapping):
        return tuple((pattern, check_matrix_axes(value)) for pattern, value in axes.items())  # type: ignore[misc]
    if axes is not None and not isinstance(axes, MatrixAxes):
        raise TypeError(
            f"matrix_axes must be a jc.MatrixAxes or a mapping from patterns to them, got {axes!r}"
        )
    return axes
