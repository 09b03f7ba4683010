"""A function of many inputs, in batches of one size: a jitted function compiles once, and memory holds one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def in_batches(function: Callable[[Any], Any], inputs: Any, size: int, bar: Any = None) -> Any:
    """What a function gives for all inputs, on the host; the last batch repeats its last input.

    Args:
        function: of `size` inputs, to an array or a tree of arrays with as many rows.
        inputs: (n, ...), n from 1 on, or a tree of such arrays.
        size: inputs at once.
        bar: a tqdm bar of inputs.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.training.batches import in_batches
        >>> in_batches(lambda x: x.sum(1), np.ones((5, 2)), 4).tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    count, found = len(jax.tree.leaves(inputs)[0]), []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        given = function(jax.tree.map(lambda leaf, rows=rows: leaf[rows], inputs))
        found.append(
            jax.tree.map(lambda leaf, start=start: np.asarray(leaf)[: count - start], given)
        )
        if bar is not None:
            bar.update(min(size, count - start))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
