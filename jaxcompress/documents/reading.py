"""Documents as plain text, and their passages of limited length.

Documents are `.txt`, `.md` and `.html` files, the lines of a `.jsonl` file, or by default the
docstrings of Python's standard library. A passage is one or more paragraphs up to a number of
tokens. Costs one read of the files and one tokenization.
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
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from jaxcompress.models.files import Json

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
"""A syntax node that may have a docstring."""
SUFFIXES = (".txt", ".md", ".html", ".htm")
LARGEST = 64 * 2**20
"""The largest size of a file in bytes; a larger one is rarely a single document."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text with the name under which it is listed."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Passage:
    """A part of a document, short enough for the encoder."""

    document: str
    text: str


def read_documents(
    path: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> list[Document]:
    r"""Read documents as plain text.

    Args:
        path: a folder, searched with its subfolders for .txt, .md and .html files in UTF-8, or a
            .jsonl file whose lines have a "text" and optionally a "title" or "name"; None for the
            docstrings of Python's standard library.
        progress: show a progress bar.

    Returns:
        The documents that are not empty, in the order of their names, or of the lines of a .jsonl
        file.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a folder without such files, for files that are not text or larger than 64
            MiB, and for lines without a "text".

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
        documents = files_of(path, progress=progress)
    elif path.suffix.lower() == ".jsonl":
        documents = lines_of(path)
    else:
        documents = [Document(path.name, plain(path))]
    documents = [document for document in documents if document.text]
    if not documents:
        raise ValueError(f"{str(path)!r} holds no text: all its documents are empty")
    return documents


def files_of(path: Path, *, progress: bool) -> list[Document]:
    """The documents of a folder and its subfolders."""
    files = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
    )
    if not files:
        raise ValueError(
            f"{str(path)!r} has no {', '.join(SUFFIXES)} file: give a folder that has, or a "
            f".jsonl file"
        )
    bar = tqdm(files, desc="documents", leave=False, disable=not progress)
    return [Document(str(file.relative_to(path)), plain(file)) for file in bar]


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
    documents = []
    for number, line in enumerate(decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        text = entry_text(entry)
        if text is None:
            raise ValueError(
                f'{path}, line {number} has no "text": expected {{"text": "...", "title": "..."}}, '
                f"got {line[:60]!r}"
            )
        title = entry.get("title") or entry.get("name") or ""
        if title and not text.startswith(str(title)):
            text = f"{title}\n\n{text}"
        documents.append(Document(str(title or f"{path.name}:{number}"), tidy(text)))
    return documents


def entry_text(entry: Json) -> str | None:
    """The text of a line of a .jsonl file, None where it has none."""
    text = entry.get("text") if isinstance(entry, dict) else None
    return text if isinstance(text, str) else None


# --- HTML ---


class Reader(HTMLParser):
    """Collects the visible text of a page."""

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

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See `HTMLParser`."""
        if tag in self.HIDDEN:
            self.hidden.append(tag)
        self.exact += tag == "pre"
        self.parts.append("\n\n" if tag in self.BLOCKS else "\n" if tag == "br" else "")

    def handle_endtag(self, tag: str) -> None:
        """See `HTMLParser`."""
        if tag in self.hidden:  # also closes tags left open inside
            del self.hidden[self.hidden.index(tag) :]
        self.exact = max(self.exact - (tag == "pre"), 0)
        self.parts.append("\n\n" if tag in self.BLOCKS else "")

    def handle_data(self, data: str) -> None:
        """See `HTMLParser`."""
        if not self.hidden:
            self.parts.append(data if self.exact else re.sub(r"\s+", " ", data))


def html_text(page: str) -> str:
    """The text of an HTML page, with one paragraph per block."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    lines = "".join(reader.parts).split("\n")
    # a single leading space is white space between two tags; more is indentation of code
    return tidy("\n".join(line if line.startswith("  ") else line.lstrip() for line in lines))


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
