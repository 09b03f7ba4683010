"""Validation of arguments that are whole numbers, alone or one for each axis."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np


def is_whole(value: object, least: int = 1) -> bool:
    """Whether a value is an integer of Python or numpy, not a boolean, and at least `least`.

    Args:
        value: any object.
        least: the smallest number that is allowed.

    Returns:
        True for such an integer.

    Example:
        >>> from jaxcompress.checks import is_whole
        >>> is_whole(3), is_whole(0), is_whole(True), is_whole(2.0)
        (True, False, False, False)
    """
    return (
        isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= least
    )


def whole_number(name: str, value: object, least: int = 1) -> int:
    """An argument that is a whole number, as a Python integer.

    Args:
        name: the argument's name for the message, such as "block" or "jc.realize: batch_size".
        value: the argument.
        least: the smallest number that is allowed.

    Returns:
        The number.

    Raises:
        ValueError: for anything else.

    Example:
        >>> from jaxcompress.checks import whole_number
        >>> whole_number("block", 4)
        4
    """
    if not is_whole(value, least):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return operator.index(value)  # type: ignore[arg-type]


def whole_numbers(
    name: str, value: int | Sequence[int], axes: int | None, least: int = 1
) -> tuple[int, ...]:
    """One whole number for each axis.

    Args:
        name: the argument's name for the message.
        value: the numbers; a single one is used for all axes.
        axes: the number of axes; None accepts any number of them.
        least: the smallest number that is allowed.

    Returns:
        One number for each axis.

    Raises:
        ValueError: for anything else.

    Example:
        >>> from jaxcompress.checks import whole_numbers
        >>> whole_numbers("stride", 2, axes=3)
        (2, 2, 2)
    """
    given = (value,) * (axes or 1) if isinstance(value, (int, np.integer)) else value
    fits = isinstance(given, Sequence) and 0 < len(given) == (axes or len(given))
    if not fits or not all(is_whole(entry, least) for entry in given):
        expected = (
            "whole numbers"
            if axes is None
            else f"one whole number, or one for each of the {axes} axes,"
        )
        raise ValueError(f"{name} must be {expected} of at least {least}, got {value!r}")
    return tuple(int(entry) for entry in given)
