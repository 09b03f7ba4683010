"""Select rows of a table, such as the words of one task.

`table[rows]` stores k of V rows and is exact for look-ups of the kept rows. The tree stores no
index, so whatever produces row numbers, such as a tokenizer, must be renumbered. Costs one gather.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import Pattern, check_matched, check_pattern, named_leaves, select
from jaxcompress.checks import array
from jaxcompress.moments.moments import Moments
from jaxcompress.transforms.base import Scope, Transform, map_leaves
from jaxcompress.transforms.settings import DIGITS, call, digest, show


@dataclasses.dataclass(frozen=True, repr=False)
class SelectRows(Transform):
    """Keeps some rows of each matching table; made by `select_rows`.

    Attributes:
        pattern: which leaves.
        rows: the rows that are kept, in increasing order.
    """

    pattern: Pattern
    rows: tuple[int, ...]
    whole_network = True

    def _apply(self, params: PyTree, moments: Moments | PyTree, scope: Scope) -> PyTree:
        tables = {name for name, leaf in named_leaves(params) if select(self.pattern, name, leaf)}
        names = [name for name, _ in named_leaves(params)]
        check_matched(f"select_rows: {self.pattern!r}", self.pattern, tables, names)

        def visit(name: str, leaf: PyTree, metric: ArrayLike | None) -> PyTree:
            return self._selected(name, leaf) if name in tables else leaf

        return map_leaves(visit, params, moments)

    def _selected(self, name: str, leaf: PyTree) -> Array:
        """The kept rows of one table."""
        if is_compact(leaf):
            raise ValueError(f"{name} is compact: select rows first, and compact the result")
        if np.ndim(leaf) < 1 or len(leaf) <= self.rows[-1]:
            raise ValueError(
                f"{name} has shape {np.shape(leaf)}, and row {self.rows[-1]} is requested"
            )
        return jnp.asarray(leaf)[np.array(self.rows)]

    def __repr__(self) -> str:
        few = len(self.rows) <= 8
        text = f"<{len(self.rows):,} rows, {digest(self.rows)[:DIGITS]}>"
        return call("select_rows", show(self.pattern), str([*self.rows]) if few else text)


def select_rows(pattern: Pattern, rows: Sequence[int] | Int[np.ndarray, " k"]) -> SelectRows:
    """Keep some rows of a table, such as the words that one task needs.

    Args:
        pattern: which leaves, as in `jc.at`.
        rows: (k,) integers, sorted, each once: `jaxcompress.documents.vocabulary.pieces_to_keep`.

    Returns:
        A transform. The indices that are looked up must be renumbered, as
        `jaxcompress.documents.vocabulary.restrict_tokenizer` does. Trace the network on its result,
        since the number of rows is not a hidden axis.

    Raises:
        ValueError: for no rows, or unsorted or negative ones; when called, for a pattern that
            matches no leaf, a compact leaf, or a row beyond the table.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> cut = jc.select_rows("words", [0, 2])
        >>> cut, cut({"words": jnp.arange(6).reshape(3, 2), "bias": jnp.ones(2)})["words"].tolist()
        (select_rows('words', [0, 2]), [[0, 1], [4, 5]])
    """
    check_pattern("select_rows", pattern)
    rows = array("select_rows: rows", rows, what="sorted whole numbers")
    if (
        rows.ndim != 1
        or not len(rows)
        or not np.issubdtype(rows.dtype, np.integer)
        or rows[0] < 0
        or (np.diff(rows) <= 0).any()
    ):
        raise ValueError(
            "select_rows: rows must be sorted whole numbers of at least 0, each once, and at least "
            "one"
        )
    return SelectRows(pattern, tuple(rows.tolist()))
