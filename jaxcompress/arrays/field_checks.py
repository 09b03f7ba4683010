"""Checks of the fields of compact arrays, for `CompactArray.check_sizes`."""

from __future__ import annotations

import numpy as np


def expect(field: str, value: object, fits: bool, expected: object) -> None:
    """Refuse a field that does not fit.

    Args:
        field: its name.
        value: what it is.
        fits: whether that is right.
        expected: what it should be.

    Raises:
        ValueError: where it does not fit.
    """
    if not fits:
        raise ValueError(f"{field} is {value}, expected {expected}")


def check_indices(field: str, indices: np.ndarray, count: int) -> None:
    """Refuse indices out of range.

    Args:
        field: the field's name.
        indices: any shape.
        count: how many things there are.

    Raises:
        ValueError: for indices that are none, negative, or `count` or more.
    """
    expect(field, indices.dtype, indices.dtype.kind in "iu", "integers")
    if indices.size:
        expect(field, int(indices.min()), int(indices.min()) >= 0, "indices from 0 on")
        expect(field, int(indices.max()), int(indices.max()) < count, f"indices below {count}")
