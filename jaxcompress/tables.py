"""Rows that print as a table, show as HTML in a notebook, and are looked up by key."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from jaxcompress.arrays.paths import matches


class Row(Protocol):
    """One row of a table."""

    def _cells(self) -> tuple[str, ...]: ...


R = TypeVar("R", bound=Row)


@dataclasses.dataclass(frozen=True, repr=False)
class Table(Generic[R]):
    """Rows that print as a table, show as HTML in a notebook, and are looked up by key."""

    rows: tuple[R, ...]
    headers: tuple[str, ...]
    empty: str = "none"

    def __iter__(self) -> Iterator[R]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: str | int) -> R:
        """A row by its number or its key."""
        if isinstance(key, int):
            return self.rows[key]
        found = [row for row in self.rows if row._cells()[0] == key]
        if not found:
            raise KeyError(
                f"{key!r} is not in the table; there are: {', '.join(row._cells()[0] for row in self.rows) or 'none'}"
            )
        return found[0]

    def keys(self) -> list[str]:
        """The keys of the rows."""
        return [row._cells()[0] for row in self.rows]

    def matching(self, pattern: str) -> list[R]:
        """Rows whose key, with or without its dimension, matches a path pattern."""
        return [
            row
            for row in self.rows
            if matches(pattern, row._cells()[0])
            or matches(pattern, row._cells()[0].rsplit(":", 1)[0])
        ]

    def __str__(self) -> str:
        if not self.rows:
            return self.empty
        cells = [self.headers, *(tuple(map(shorten, row._cells())) for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.headers))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        line = lambda cells, tag: (
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
        )
        body = "".join(line(row._cells(), "td") for row in self.rows)
        return f"<table><thead>{line(self.headers, 'th')}</thead><tbody>{body}</tbody></table>"


def shorten(text: str) -> str:
    """A long list as its first entry and how many more there are."""
    first, *more = text.split(", ")
    if len(text) <= 44 or not more or " " in first:
        return text
    return f"{first} +{len(more)}"
