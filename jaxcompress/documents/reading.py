"""Documents of a folder or a file as plain text, in passages of a length that an encoder reads.

`.txt`, `.md` and `.html` files, or one `.jsonl` with a text on each line; without any, the
docstrings of Python's standard library, which every machine has. A passage is whole paragraphs up
to a number of tokens. Costs one read of the files and one tokenisation.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

SUFFIXES = (".txt", ".md", ".html", ".htm")
LARGEST = 64 * 2**20
"""Bytes that one file may have: more is hardly a document."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text with a name to show it by."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Passage:
    """A part of a document, short enough to be encoded at once."""

    document: str
    text: str


def read_documents(
    path: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> list[Document]:
    """Read documents as plain text.

    Args:
        path: a folder, searched with its subfolders for .txt, .md and .html files in UTF-8, or a
            .jsonl file whose lines have a "text" and perhaps a "title" (or "name"); None for the
            docstrings of Python's standard library.
        progress: show a progress bar.

    Returns:
        The documents that are not empty, in the order of their names (of the lines, for .jsonl).

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: for a folder without such files, for files that are not text or larger than 64
            MiB, and for lines that do not fit.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxcompress.documents.reading import read_documents
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = pathlib.Path(folder, "a.html")
        ...     _ = page.write_text("<h1>Owls</h1><p>They see at night.</p>")
        ...     read_documents(folder, progress=False)
        [Document(name='a.html', text='Owls\\n\\nThey see at night.')]
    """
    if path is None:
        return docstrings(progress=progress)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"there is nothing at {str(path)!r}: expected a folder of {', '.join(SUFFIXES)} "
            f"files or a .jsonl file"
        )
    if path.is_file():
        found = (
            lines_of(path)
            if path.suffix.lower() == ".jsonl"
            else [Document(path.name, plain(path))]
        )
    else:
        files = sorted(
            each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file()
        )
        if not files:
            raise ValueError(
                f"{str(path)!r} has no {', '.join(SUFFIXES)} file: give a folder that has, or a "
                f".jsonl file"
            )
        bar = tqdm(files, desc="documents", leave=False, disable=not progress)
        found = [Document(str(file.relative_to(path)), plain(file)) for file in bar]
    found = [document for document in found if document.text]
    if not found:
        raise ValueError(f"{str(path)!r} holds no text: all its documents are empty")
    return found


def plain(path: Path) -> str:
    """The text of a file, without markup where it is HTML."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is no {', '.join(SUFFIXES)} or .jsonl file")
    text = decoded(path)
    return html_text(text) if path.suffix.lower() in (".html", ".htm") else tidy(text)


def decoded(path: Path) -> str:
    """The text of a UTF-8 file, of a limited size."""
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(
            f"{path} has {size / 2**20:,.0f} MiB, and one file may have {LARGEST // 2**20}: "
            f"split it into documents"
        )
    data = path.read_bytes()
    if b"\0" in data:
        raise ValueError(f"{path} is binary, not text: take it out of the documents")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it, or take "
            f"it out"
        ) from None


def tidy(text: str) -> str:
    """Paragraphs with one empty line between them, and no white space at the ends of lines."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def lines_of(path: Path) -> list[Document]:
    """The documents of a .jsonl file."""
    found = []
    for number, line in enumerate(decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        text = entry.get("text") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise ValueError(
                f'{path}, line {number} has no "text": expected {{"text": "...", "title": "..."}}, got {line[:60]!r}'
            )
        title = entry.get("title") or entry.get("name") or ""
        whole = f"{title}\n\n{text}" if title and not text.startswith(str(title)) else text
        found.append(Document(str(title or f"{path.name}:{number}"), tidy(whole)))
    return found


# --- HTML ---


class Reader(HTMLParser):
    """Collects what a reader of a page sees."""

    HIDDEN = frozenset({"head", "script", "style", "nav", "footer", "noscript", "template", "svg"})
    BLOCKS = frozenset(
        {
            "p",
            "div",
            "section",
            "article",
            "main",
            "aside",
            "header",
            "figure",
            "form",
            "blockquote",
            "pre",
            "hr",
            "table",
            "tr",
        }
        | {"h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dd", "dt"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden: list[str] = []
        self.exact = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """See `HTMLParser`."""
        if tag in self.HIDDEN:
            self.hidden.append(tag)
        self.exact += tag == "pre"
        self.parts.append("\n\n" if tag in self.BLOCKS else "\n" if tag == "br" else "")

    def handle_endtag(self, tag: str) -> None:
        """See `HTMLParser`."""
        if tag in self.hidden:  # closes whatever was left open inside
            del self.hidden[self.hidden.index(tag) :]
        self.exact = max(self.exact - (tag == "pre"), 0)
        self.parts.append("\n\n" if tag in self.BLOCKS else "")

    def handle_data(self, data: str) -> None:
        """See `HTMLParser`."""
        if not self.hidden:
            self.parts.append(data if self.exact else re.sub(r"\s+", " ", data))


def html_text(page: str) -> str:
    """The text of an HTML page, a paragraph for every block."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    lines = "".join(reader.parts).split(
        "\n"
    )  # a single space at the start is what lay between two tags
    return tidy("\n".join(line if line.startswith("  ") else line.lstrip() for line in lines))


# --- Python's standard library, which every machine has ---


def docstrings(*, progress: bool = True) -> list[Document]:
    """The docstrings of Python's standard library, one document each; they depend on its version."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "turtledemo",
    }
    files = [
        file
        for file in sorted(root.rglob("*.py"))
        if not left_out & set(file.relative_to(root).parts)
    ]
    found: dict[str, Document] = {}  # by text: many are inherited word for word
    for file in tqdm(files, desc="docstrings", leave=False, disable=not progress):
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # a file for another version
            continue
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for name, node in named(tree, module):
            text = tidy(ast.get_docstring(node) or "")
            if len(text) >= 80:
                found.setdefault(text, Document(name, text))
    return list(found.values())


def named(node: ast.AST, name: str) -> Iterator[tuple[str, Any]]:
    """What has a docstring, with its dotted name."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield name, node
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from named(child, f"{name}.{child.name}")


# --- passages ---


def passages(documents: Iterable[Document], tokenizer: Any, length: int = 128) -> list[Passage]:
    """Cut documents into passages.

    Args:
        documents: from `read_documents`.
        tokenizer: of the package tokenizers, without truncation.
        length: the most tokens of a passage, special ones included.

    Returns:
        Whole paragraphs, as many as fit; only one that is too long by itself is cut, between words
        (inside a word of more tokens).


    Raises:
        ValueError: for a length without room for text.
    """
    room = length - tokenizer.num_special_tokens_to_add(False)
    if room < 1:
        raise ValueError(f"length={length} has no room for text beside the special tokens")
    found = []
    for document in documents:
        blocks = [block for block in document.text.split("\n\n") if block.strip()]
        pieces = [
            (text, count)
            for block, encoding in zip(
                blocks, tokenizer.encode_batch(blocks, add_special_tokens=False), strict=True
            )
            for text, count in cut(block, encoding, room)
        ]
        held: list[str] = []
        total = 0
        for text, count in pieces:
            if held and total + count > room:
                found.append(Passage(document.name, "\n\n".join(held)))
                held, total = [], 0
            held.append(text)
            total += count
        if held:
            found.append(Passage(document.name, "\n\n".join(held)))
    return found


def cut(text: str, encoding: Any, room: int) -> Iterator[tuple[str, int]]:
    """Parts of a text of limited numbers of tokens, and these; only long words are cut."""
    offsets, words = encoding.offsets, encoding.word_ids
    start = 0
    while start < len(offsets):
        end = min(start + room, len(offsets))
        if end < len(offsets):
            whole = next(
                (place for place in range(end, start, -1) if words[place] != words[place - 1]), end
            )
            end = whole if whole > start else end
        yield text[offsets[start][0] : offsets[end - 1][1]], end - start
        start = end
