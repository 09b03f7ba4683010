"""Checks of arguments that several rooms share; each error names the argument, what was expected and what came."""

from __future__ import annotations

import numbers


def check_whole(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """A whole number within bounds, as a Python integer; booleans are none.

    Args:
        name: of the argument, for the error; `"toeplitz: stride"` where the caller is to be named too.
        value: anything.
        least: the smallest number allowed.
        most: the largest number allowed; any by default.

    Returns:
        The number.

    Raises:
        ValueError: for anything else.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.checks import check_whole
        >>> check_whole("block", np.int32(4))
        4
        >>> check_whole("block", 0)
        Traceback (most recent call last):
        ValueError: block must be a whole number of at least 1, got 0
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < least or (most is not None and int(value) > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {value!r}")
    return int(value)
