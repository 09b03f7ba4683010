"""Documents as plain text, and their passages of limited length.

Documents are `.txt`, `.md` and `.html` files, the lines of a `.jsonl` file, or by default the
docstrings of Python's standard library. A passage is one or more paragraphs up to a number of
tokens. What cannot be read is skipped, and a warning names it. Costs one read of the files and one
tokenization.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from jaxcompress.documents.encodings import LARGEST, decoded, marked_encoding, well_formed
from jaxcompress.documents.html import html_text
from jaxcompress.models.files import Json

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
"""A syntax node that may have a docstring."""
PAGES = (".html", ".htm")
SUFFIXES = (".txt", ".md", *PAGES)
NAMED = 5
"""The largest number of skipped files or lines that a warning names."""


@dataclasses.dataclass(frozen=True)
class _WellFormed:
    """Texts that every encoding of Unicode can hold: lone surrogates are replaced."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, well_formed(getattr(self, field.name)))


@dataclasses.dataclass(frozen=True)
class Document(_WellFormed):
    """A text with the name under which it is listed."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Passage(_WellFormed):
    """A part of a document, short enough for the encoder."""

    document: str
    text: str


def read_documents(
    path: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> list[Document]:
    r"""Read documents as plain text.

    Args:
        path: a folder, searched with its subfolders for .txt, .md and .html files, or a .jsonl file
            of any size whose lines have a "text" and optionally a "title" or "name"; None for the
            docstrings of Python's standard library. Files are in UTF-8, in UTF-16 or UTF-32 with a
            mark, or in the encoding that an HTML page declares.
        progress: show a progress bar.

    Returns:
        The documents that are not empty, in the order of their names, or of the lines of a .jsonl
        file. What is skipped is counted and named in a warning: files that are empty, larger than
        64 MiB, or in another encoding, links to nothing, and lines without a "text".

    Raises:
        FileNotFoundError: for a path that does not exist.
        ImportError: for HTML pages without the package selectolax.
        ValueError: for a folder without such files, or where all of them would be skipped.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxcompress.documents.reading import read_documents
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = pathlib.Path(folder, "a.html")
        ...     _ = page.write_text("<h1>Owls</h1><p>They see at night.</p>")
        ...     read_documents(folder, progress=False)
        [Document(name='a.html', text='Owls\n\nThey see at night.')]
    """
    if path is None:
        return docstrings(progress=progress)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"there is nothing at {str(path)!r}: expected a folder of {', '.join(SUFFIXES)} "
            f"files or a .jsonl file"
        )
    if path.is_dir():
        documents, skipped = files_of(path, progress=progress)
    elif path.suffix.lower() == ".jsonl":
        documents, skipped = lines_of(path, progress=progress)
    else:
        documents, skipped = [Document(path.name, plain(path))], []
    if skipped and documents:
        total = len(skipped) + len(documents)
        warnings.warn(f"{_listed(skipped)}, of {total:,} documents", stacklevel=2)
    if not documents:
        raise ValueError(f"{str(path)!r} holds no text: {_listed(skipped)}")
    return documents


def _listed(skipped: list[str]) -> str:
    """A sentence that counts and names what was skipped."""
    more = f"; and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
    return f"{len(skipped):,} skipped: {'; '.join(skipped[:NAMED])}{more}"


def files_of(path: Path, *, progress: bool) -> tuple[list[Document], list[str]]:
    """The documents of a folder and its subfolders, and why others were skipped."""
    files = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and not file.is_dir()
    )
    if not files:
        raise ValueError(
            f"{str(path)!r} has no {', '.join(SUFFIXES)} file: give a folder that has, or a "
            f".jsonl file"
        )
    documents, skipped = [], []
    for file in tqdm(files, desc="documents", leave=False, disable=not progress):
        try:
            documents.append(Document(str(file.relative_to(path)), plain(file)))
        except (OSError, ValueError) as error:
            skipped.append(well_formed(str(error)))
    return documents, skipped


def plain(path: Path) -> str:
    """The text of a file, without markup where it is HTML.

    Raises:
        ValueError: for a file of another kind, without text, or whose text cannot be decoded.
        OSError: for a file that cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is no {', '.join(SUFFIXES)} or .jsonl file")
    if not path.is_file():
        raise ValueError(
            f"{path} is a link to nothing" if path.is_symlink() else f"{path}: no file"
        )
    page = suffix in PAGES
    text = decoded(path, page=page)
    text = tidy(html_text(text) if page else text)
    if not text:
        raise ValueError(f"{path} holds no text")
    return text


def tidy(text: str) -> str:
    """Paragraphs with one empty line between them, and no white space at the ends of lines."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def lines_of(path: Path, *, progress: bool) -> tuple[list[Document], list[str]]:
    """The documents of a .jsonl file, read line by line, and why others were skipped."""
    documents, skipped = [], []
    with path.open("rb") as file:
        encoding = marked_encoding(file.read(4)) or "utf-8"
    # bytes that are not UTF-8 become lone surrogates, by which their lines are found
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    with path.open(encoding=encoding, errors=errors, newline="\n") as file:
        for number, line in enumerate(tqdm(file, "lines", leave=False, disable=not progress), 1):
            if not line.strip():
                continue
            try:
                documents.append(_document_of(line, f"{path.name}:{number}"))
            except ValueError as error:
                skipped.append(well_formed(f"{path}, line {number} {error}"))
    return documents, skipped


def _document_of(line: str, place: str) -> Document:
    """The document of a line of a .jsonl file."""
    if len(line) > LARGEST:
        raise ValueError(f"has {len(line) / 2**20:,.0f} MiB: split it into documents")
    if re.search("[\udc80-\udcff]", line):
        raise ValueError("is not UTF-8: convert it")
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    text = entry_text(entry)
    if text is None:
        raise ValueError(
            f'has no "text": expected {{"text": "...", "title": "..."}}, got {line[:60].strip()!r}'
        )
    if not text.strip():
        raise ValueError("holds no text")
    title = str(entry.get("title") or entry.get("name") or "")
    if title and not text.startswith(title):
        text = f"{title}\n\n{text}"
    return Document(title or place, tidy(text))


def entry_text(entry: Json) -> str | None:
    """The text of a line of a .jsonl file, None where it has none."""
    text = entry.get("text") if isinstance(entry, dict) else None
    return text if isinstance(text, str) else None


# --- Python's standard library, which every machine has ---


def docstrings(*, progress: bool = True) -> list[Document]:
    """The docstrings of the installed Python's standard library, one document per docstring."""
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
    by_text: dict[str, Document] = {}  # many docstrings are copies of inherited ones
    for file in tqdm(files, desc="docstrings", leave=False, disable=not progress):
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # a file for another version of Python
            continue
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for name, node in named(tree, module):
            text = tidy(ast.get_docstring(node) or "")
            if len(text) >= 80:
                by_text.setdefault(text, Document(name, text))
    return list(by_text.values())


def named(node: Documented, name: str) -> Iterator[tuple[str, Documented]]:
    """A module, its classes and functions, with their dotted names."""
    yield name, node
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from named(child, f"{name}.{child.name}")


# --- passages ---


def passages(
    documents: Iterable[Document], tokenizer: Tokenizer, length: int = 128
) -> list[Passage]:
    """Cut documents into passages.

    Args:
        documents: from `read_documents`.
        tokenizer: a tokenizer without truncation.
        length: the largest number of tokens of a passage, special tokens included.

    Returns:
        Passages of one or more consecutive paragraphs. A paragraph that is too long is cut between
        words, and a word that is too long inside.

    Raises:
        ValueError: for a length that special tokens fill.
    """
    room = length - tokenizer.num_special_tokens_to_add(False)
    if room < 1:
        raise ValueError(f"length={length} has no room for text beside the special tokens")
    result: list[Passage] = []
    for document in documents:
        held: list[str] = []
        total = 0
        for text, count in paragraphs(document, tokenizer, room):
            if held and total + count > room:
                result.append(Passage(document.name, "\n\n".join(held)))
                held, total = [], 0
            held.append(text)
            total += count
        if held:
            result.append(Passage(document.name, "\n\n".join(held)))
    return result


def paragraphs(document: Document, tokenizer: Tokenizer, room: int) -> Iterator[tuple[str, int]]:
    """The paragraphs of a document, cut where they are too long, with their numbers of tokens."""
    blocks = [block for block in document.text.split("\n\n") if block.strip()]
    encodings = tokenizer.encode_batch(blocks, add_special_tokens=False)
    for block, encoding in zip(blocks, encodings, strict=True):
        yield from cut(block, encoding, room)


def cut(text: str, encoding: Encoding, room: int) -> Iterator[tuple[str, int]]:
    """Parts of a text with their numbers of tokens, cut between words where possible."""
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
