"""The hidden axes of a network as plain data: a table that prints, and the layout of every parameter in terms of axes.

A `Layout` says how one dimension of a leaf is made of axes: whole, as a product (row-major) or side by side. With it a map
on an axis is applied to any leaf (`transforms/rotation.py`), and positions along the axis are found in any moments.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterator, Mapping

import numpy as np

from jaxcompress.arrays.paths import matches


@dataclasses.dataclass(frozen=True)
class Layout:
    """One dimension in terms of axes: an axis of a name and size, or a "product" or "concat" of layouts."""

    key: str = ""
    size: int = 1
    split: str = ""
    parts: tuple[Layout, ...] = ()

    def resized(self, sizes: Mapping[str, int]) -> Layout:
        """The same layout at other sizes of its axes."""
        if not self.split:
            return dataclasses.replace(self, size=sizes.get(self.key, self.size))
        parts = tuple(part.resized(sizes) for part in self.parts)
        size = math.prod(p.size for p in parts) if self.split == "product" else sum(p.size for p in parts)
        return dataclasses.replace(self, size=size, parts=parts)

    def axes(self) -> list[str]:
        """The axes in it, in order, with repetitions."""
        return [self.key] if not self.split else [key for part in self.parts for key in part.axes()]

    def index(self, key: str) -> np.ndarray:
        """For every position of the dimension its place along an axis, or -1 where the axis is not."""
        if not self.split:
            return np.arange(self.size) if self.key == key else np.full(self.size, -1)
        parts = [part.index(key) for part in self.parts]
        if self.split == "concat":
            return np.concatenate(parts)
        grids = np.meshgrid(*parts, indexing="ij")
        return np.max([grid.ravel() for grid in grids], axis=0)

    def __str__(self) -> str:
        if not self.split:
            return str(self.size)
        return f"({(' x ' if self.split == 'product' else ' + ').join(map(str, self.parts))})"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One hidden axis.

    Attributes:
        key: its first producer, leaf and dimension: "layers_0/kernel:1".
        size: how many channels it has.
        kind: "linear", "diagonal", "elementwise", "rms" or "normalised".
        marks: all that lies on it, the strongest first.
        pair: whether two activations are contracted over it, such as queries and keys.
        producers, consumers: slots ("leaf:dimension") whose maps are applied there.
        parameters: slots of per-channel parameters (biases, scales, statistics).
        fibres: axes along which a map may differ, such as heads or layers.
    """

    key: str
    size: int
    kind: str
    marks: tuple[str, ...] = ()
    pair: bool = False
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    fibres: tuple[str, ...] = ()

    @property
    def tied(self) -> tuple[str, ...]:
        """Slots that both produce and consume, such as a tied embedding's."""
        return tuple(slot for slot in self.producers if slot in self.consumers)

    def _cells(self) -> tuple[str, ...]:
        kind = f"{self.kind}, pair" if self.pair else self.kind
        lines = (", ".join(slots) for slots in (self.producers, self.consumers, self.parameters, self.fibres))
        return (self.key, str(self.size), kind, *lines)


@dataclasses.dataclass(frozen=True)
class Refused:
    """An axis of a parameter that is not hidden, or that no map may touch.

    Attributes:
        axis: its key.
        size: how many positions it has.
        primitive: what it meets.
        reason: why, in a sentence.
        where: the place in the source, where it is known.
    """

    axis: str
    size: int
    primitive: str
    reason: str
    where: str = ""

    def _cells(self) -> tuple[str, ...]:
        return (self.axis, str(self.size), self.primitive, self.reason, self.where)


@dataclasses.dataclass(frozen=True, repr=False)
class Table:
    """Rows that print as a table, show as HTML in a notebook, and are looked up by key."""

    rows: tuple[Axis, ...] | tuple[Refused, ...] | tuple[Use, ...]
    headers: tuple[str, ...]
    empty: str = "none"

    def __iter__(self) -> Iterator:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: str | int) -> Axis | Refused | Use:
        """A row by its number or its key."""
        if isinstance(key, int):
            return self.rows[key]
        found = [row for row in self.rows if row._cells()[0] == key]
        if not found:
            raise KeyError(f"{key!r} is not in the table; there are: {', '.join(row._cells()[0] for row in self.rows) or 'none'}")
        return found[0]

    def keys(self) -> list[str]:
        """The keys of the rows."""
        return [row._cells()[0] for row in self.rows]

    def matching(self, pattern: str) -> list:
        """Rows whose key, with or without its dimension, matches a path pattern."""
        return [
            row for row in self.rows if matches(pattern, row._cells()[0]) or matches(pattern, row._cells()[0].rsplit(":", 1)[0])
        ]

    def __str__(self) -> str:
        if not self.rows:
            return self.empty
        cells = [self.headers, *(tuple(shorten(cell) for cell in row._cells()) for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.headers))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        line = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
        body = "".join(line(row._cells(), "td") for row in self.rows)
        return f"<table><thead>{line(self.headers, 'th')}</thead><tbody>{body}</tbody></table>"


@dataclasses.dataclass(frozen=True)
class Use:
    """How a network's program uses one compact array.

    Attributes:
        leaf: its name.
        how: "contracted", "looked up" or "materialised".
        primitive: where.
        where: the place in the source, where it is known.
    """

    leaf: str
    how: str
    primitive: str
    where: str = ""

    def _cells(self) -> tuple[str, ...]:
        return (self.leaf, self.how, self.primitive, self.where)


def shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


AXES = ("axis", "size", "kind", "producers", "consumers", "per channel", "fibres")
REFUSED = ("axis", "size", "primitive", "reason", "where")
USES = ("leaf", "how", "primitive", "where")
