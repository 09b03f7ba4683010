"""Files of text in the encodings that can be told apart, and text that every encoding can hold.

A mark at the start decides for UTF-8, UTF-16 and UTF-32. Otherwise a file is UTF-8, or what an HTML
page declares. Nothing is guessed: a wrong guess gives wrong letters without an error.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

LARGEST = 64 * 2**20
"""The largest size of a document in bytes; a larger one is rarely a single document."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the bytes with which a file starts; the mark of UTF-32 contains that of UTF-16."""
DECLARED = re.compile(
    rb"""<(?:meta[^>]+charset|\?xml[^>]+encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.I
)
"""The encoding that an HTML page declares, within its first bytes."""
LATIN = frozenset(("ascii", "iso8859-1"))
"""Declared encodings that mean Windows-1252, by the WHATWG's Encoding Standard."""


def marked_encoding(start: bytes) -> str | None:
    """The encoding of a file by the mark at its start, None without one."""
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), None)


def declared_encoding(data: bytes) -> str | None:
    """The encoding that an HTML page declares, None for none or an unknown one."""
    declared = DECLARED.search(data[:1024])
    if declared is None:
        return None
    try:
        name = codecs.lookup(declared[1].decode("ascii", "replace")).name
    except LookupError:
        return None
    return "cp1252" if name in LATIN else name


def decoded(path: Path, *, page: bool = False) -> str:
    """The text of a file of a limited size.

    Args:
        path: the file.
        page: whether it is an HTML page, which may declare its encoding.

    Raises:
        ValueError: for a file that is too large, binary, or in an encoding that cannot be told.
        OSError: for a file that cannot be read.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(
            f"{path} has {size / 2**20:,.0f} MiB, and one document may have {LARGEST // 2**20}: "
            f"split it into documents"
        )
    data = path.read_bytes()
    marked, declared = marked_encoding(data), declared_encoding(data) if page else None
    if marked is None and b"\0" in data:
        raise ValueError(f"{path} is binary, or UTF-16 without a mark: take it out, or convert it")
    # the 7-bit encodings of Japanese and Chinese are valid UTF-8, too
    seven_bit = declared is not None and declared.startswith(("iso2022", "hz"))
    encodings = ["utf-8", *([declared] if declared else [])]
    reasons = []
    for encoding in [marked] if marked else reversed(encodings) if seven_bit else encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            reasons.append(f"not {encoding.upper()} ({error.reason} at byte {error.start})")
    raise ValueError(f"{path} is {' and '.join(reasons)}: convert it, or take it out")


def well_formed(text: str) -> str:
    r"""Text without lone surrogates, which no encoding can hold; pairs of them become characters.

    Example:
        >>> from jaxcompress.documents.encodings import well_formed
        >>> well_formed("a\ud83d\ude42b\ud800")
        'a🙂b�'
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
