"""Plain-text and HTML tables for everything the library prints.

`format_table` lays out any headers and rows; `Table` is a sequence of rows that prints as such a
table, shows as HTML in a notebook, and is looked up by the first cell of a row.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from jaxcompress.arrays.paths import matches


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a plain-text table: left-aligned columns under a dashed rule.

    Args:
        headers: the column titles.
        rows: the cells of each row, as many as there are headers.

    Returns:
        The lines, joined by newlines, without trailing spaces.

    Raises:
        ValueError: where a row has more or fewer cells than there are headers.

    Example:
        >>> from jaxcompress.tables import format_table
        >>> print(format_table(["leaf", "numbers"], [["kernel", "512"], ["bias", "8"]]))
        leaf    numbers
        ---------------
        kernel  512
        bias    8
    """
    lines = [tuple(headers), *map(tuple, rows)]
    for line in lines:
        if len(line) != len(headers):
            raise ValueError(f"format_table: {len(headers)} headers, but a row of {len(line)}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([padded[0], "-" * max(map(len, padded)), *padded[1:]])


def html_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table as HTML, its cells escaped.

    Example:
        >>> from jaxcompress.tables import html_table
        >>> html_table(["leaf"], [["a<b"]])
        '<table><thead><tr><th>leaf</th></tr></thead><tbody><tr><td>a&lt;b</td></tr></tbody></table>'
    """
    head = _html_row(headers, "th")
    body = "".join(_html_row(row, "td") for row in rows)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _html_row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


class Row(Protocol):
    """What a `Table` holds: anything with cells, of which the first is its key."""

    def _cells(self) -> tuple[str, ...]: ...


R_co = TypeVar("R_co", bound=Row, covariant=True)


@dataclasses.dataclass(frozen=True, repr=False)
class Table(Generic[R_co]):
    """Rows that print as a table, show as HTML in a notebook, and are looked up by key.

    Attributes:
        rows: the rows; the first cell of a row is its key.
        headers: the column titles.
        empty: what is printed where there are no rows.
    """

    rows: tuple[R_co, ...]
    headers: tuple[str, ...]
    empty: str = "none"

    def __iter__(self) -> Iterator[R_co]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: str | int) -> R_co:
        """Return a row by its index or its key.

        Raises:
            KeyError: for an unknown key; the message lists the keys.
        """
        if isinstance(key, int):
            return self.rows[key]
        for row in self.rows:
            if row._cells()[0] == key:
                return row
        known = ", ".join(self.keys()) or "none"
        raise KeyError(f"{key!r} is not in the table; there are: {known}")

    def keys(self) -> list[str]:
        """Return the keys of the rows, in order."""
        return [row._cells()[0] for row in self.rows]

    def matching(self, pattern: str) -> list[R_co]:
        """Return the rows whose key matches a path pattern.

        Args:
            pattern: of paths, such as `**/kernel`; a key `kernel:1` matches with its dimension
                and without.
        """
        return [row for row in self.rows if _key_matches(pattern, row._cells()[0])]

    def __str__(self) -> str:
        if not self.rows:
            return self.empty
        return format_table(self.headers, [tuple(map(shorten, row._cells())) for row in self.rows])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self.headers, [row._cells() for row in self.rows])


def _key_matches(pattern: str, key: str) -> bool:
    return matches(pattern, key) or matches(pattern, key.rsplit(":", 1)[0])


def shorten(text: str) -> str:
    """Abbreviate a long comma-separated list to its first entry and the count of the others."""
    first, *more = text.split(", ")
    if len(text) <= 44 or not more or " " in first:
        return text
    return f"{first} +{len(more)}"
