"""Questions and answers of four manuals, and their text, to measure search with small encoders.

The pairs are the frequently asked questions of Perl, Python, Debian and Git. They come with four
Debian packages, fetched once by apt-get and never installed; what is read from them is kept as
`faq.json.gz` in `$JAXCOMPRESS_CACHE`, or in `~/.cache/jaxcompress`. Delete that file to read newer
packages. On a machine without apt-get, copy the file from another.

`python tests/benchmarks/faq.py` prints how much there is of each.
"""

from __future__ import annotations

import functools
import gzip
import html
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from fashion import cache_folder

PACKAGES = ("debian-faq", "git-doc", "perl-doc", "python3.11-doc")
OMITTED_PODS = ("perlcn", "perljp", "perlko", "perltw", "perltoc", "perluniprops")
"""Perl's pages in other languages, its table of contents, and a table of Unicode's properties."""
SHORTEST_ANSWER = 10
"""Words without the questions quoted.

Shorter answers mostly point elsewhere, like "See the next question.".
"""
SHORTEST_BACKGROUND = 40
"""Characters."""

_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_WORD = re.compile(r"[^\W_]+")
_SENTENCE = re.compile(r"""\n+|[^\n]+?(?:[.?!]["')\]”’]* +(?![a-z ])|(?=\n|\Z))""")
"""A sentence of a paragraph, a line of code, or what stands between two of them."""
_POD_CODE = re.compile(r"([A-Z])(<<+(?=\s)|<)")


@dataclass(frozen=True)
class Pair:
    """A question and its answer.

    Attributes:
        question: one line.
        answer: paragraphs with an empty line between them; a block of code is a paragraph of
            several lines.
        source: "debian-faq", "git-faq", "perlfaq" or "python-faq".
    """

    question: str
    answer: str
    source: str


def pairs() -> list[Pair]:
    """All questions with their answers, sorted by source, file name and position.

    A question that comes twice has its first answer; answers of fewer than `SHORTEST_ANSWER` words
    are left out.

    Raises:
        FileNotFoundError: when the texts are neither in the cache nor to be had.
    """
    return [Pair(*pair) for pair in _stored()["pairs"]]


def documents() -> list[str]:
    """The answers of `pairs`, one each and in the same order.

    Without the sentences that hold a question word for word.

    Raises:
        FileNotFoundError: as `pairs`.
    """
    return list(_stored()["documents"])


def background() -> list[str]:
    """The sections of the other pages, each with its heading, without sentences of questions.

    They are Perl's manual, Python's library reference, tutorial and how-tos, and Git's manual; no
    text comes twice.

    Raises:
        FileNotFoundError: as `pairs`.
    """
    return list(_stored()["background"])


def versions() -> dict[str, str]:
    """The version of each package that the texts were read from.

    Raises:
        FileNotFoundError: as `pairs`.
    """
    return dict(_stored()["versions"])


def halves(pairs: list[Pair], seed: int = 0) -> tuple[list[int], list[int]]:
    """The indices of a development and of a test half.

    Drawn from every source alike (an odd one goes to the test).
    """
    rng = np.random.default_rng(seed)
    development, test = [], []
    for source in sorted({pair.source for pair in pairs}):
        drawn = rng.permutation(
            [index for index, pair in enumerate(pairs) if pair.source == source]
        ).tolist()
        development += drawn[: len(drawn) // 2]
        test += drawn[len(drawn) // 2 :]
    return sorted(development), sorted(test)


@dataclass
class _Section:
    """A heading and the paragraphs up to the next one; the level is 1 for the title of a page."""

    level: int
    heading: str
    paragraphs: list[str] = field(default_factory=list)


@functools.cache
def _stored() -> dict[str, Any]:
    """What the cache holds, made when it is not there."""
    path = cache_folder() / "faq.json.gz"
    if not path.exists():
        with tempfile.TemporaryDirectory() as draft:
            found = _fetch(Path(draft), path)
            content = {"versions": found, **_read(Path(draft))}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with gzip.open(part, "wt", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(part, path)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def _fetch(draft: Path, stored: Path) -> dict[str, str]:
    """Unpack the packages into a folder, and say their versions."""
    by_hand = (
        f"run apt-get update on Debian 12 and try again, or copy {stored.name} from "
        f"another machine to {stored.parent}"
    )
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise FileNotFoundError(
            f"the questions are not in the cache, and there is no {missing[0]} to fetch "
            f"them: {by_hand}"
        )
    command = ["apt-get", "download", *PACKAGES]
    try:
        problem = subprocess.run(
            command, cwd=draft, capture_output=True, text=True, timeout=600
        ).stderr.strip()[-300:]
    except subprocess.TimeoutExpired:
        problem = "no answer within ten minutes"
    found = {}
    for package in PACKAGES:
        archive = next(draft.glob(f"{package}_*.deb"), None)
        if archive is None:
            raise FileNotFoundError(f"apt-get download gave no {package} ({problem}): {by_hand}")
        found[package] = unquote(archive.name.split("_")[1])
        subprocess.run(["dpkg", "-x", str(archive), str(draft)], check=True, timeout=300)
    return found


def _read(root: Path) -> dict[str, Any]:
    """The pairs, documents and background texts of the unpacked packages."""
    share = root / "usr" / "share"
    pods = sorted(share.glob("perl/*/pod/*.pod"))
    python, git, debian = (
        share / "doc/python3.11/html",
        share / "doc/git-doc",
        share / "doc/debian/FAQ",
    )
    asked = {
        "debian-faq": [_html(path) for path in sorted(debian.glob("*.en.html"))],
        "git-faq": [_html(git / "gitfaq.html", (*_HEADINGS, "dt"))],
        "perlfaq": [_pod(path) for path in pods if path.stem.startswith("perlfaq")],
        "python-faq": [_html(path) for path in sorted(python.glob("faq/*.html"))],
    }
    first: dict[str, Pair] = {}
    for source, pages in asked.items():
        for page in pages:
            for pair in _asked(page, source):
                first.setdefault(pair.question, pair)
    without_questions = _cutter(first)
    found = [(pair, without_questions(pair.answer)) for pair in first.values()]
    found = [
        (pair, document) for pair, document in found if len(document.split()) >= SHORTEST_ANSWER
    ]

    pages = [
        _pod(path)
        for path in pods
        if not path.stem.startswith("perlfaq") and path.stem not in OMITTED_PODS
    ]
    for folder in ("library", "tutorial", "howto"):
        pages += [_html(path) for path in sorted(python.glob(f"{folder}/*.html"))]
    pages += [
        _html(path)
        for path in sorted(git.rglob("*.html"))
        if path.name != "gitfaq.html" and not path.is_symlink()
    ]
    texts = (
        without_questions("\n\n".join([part.heading, *part.paragraphs]).strip())
        for page in pages
        for part in page
    )
    return {
        "pairs": [astuple(pair) for pair, _ in found],
        "documents": [document for _, document in found],
        "background": list(
            dict.fromkeys(text for text in texts if len(text) >= SHORTEST_BACKGROUND)
        ),
    }


def _asked(page: list[_Section], source: str) -> Iterator[Pair]:
    """The questions of a page: each heading with a question mark.

    Answered down to the next heading of its level.
    """
    for index, section in enumerate(page):
        if section.level == 1 or "?" not in section.heading:
            continue
        answer = list(section.paragraphs)
        for below in page[index + 1 :]:
            if below.level <= section.level or "?" in below.heading:
                break
            answer += [below.heading, *below.paragraphs]
        yield Pair(section.heading, "\n\n".join(answer), source)


def _cutter(questions: Iterable[str]) -> Callable[[str], str]:
    """A function that cuts out of a text every sentence with one of the questions in it.

    Whatever its case and punctuation.
    """
    beginning = defaultdict(list)
    for question in questions:
        words = [word.lower() for word in _WORD.findall(question)]
        beginning[tuple(words[:2])].append(words)

    def cut(text: str) -> str:
        found = list(_WORD.finditer(text))
        words = [word.group().lower() for word in found]
        spans = [
            (found[index].start(), found[index + len(asked) - 1].end())
            for index, two in enumerate(itertools.pairwise(words))
            for asked in beginning.get(two, ())
            if words[index : index + len(asked)] == asked
        ]
        if not spans:
            return text
        kept = [
            sentence.group()
            for sentence in _SENTENCE.finditer(text)
            if not any(start < sentence.end() and sentence.start() < end for start, end in spans)
        ]
        return cut(re.sub(r" +(?=\n)|(?<=\n\n)\n+", "", "".join(kept)).strip())

    return cut


def _paragraph(text: str, code: bool) -> str:
    """Text on one line, or a block of code without its empty lines."""
    if not code:
        return " ".join(text.split())
    return "\n".join(
        line.rstrip() for line in textwrap.dedent(text.expandtabs()).splitlines() if line.strip()
    )


def _html(path: Path, headings: tuple[str, ...] = _HEADINGS) -> list[_Section]:
    """The sections of a page; `headings` are the tags that begin one.

    From the highest level down.
    """
    reader = _Reader(headings)
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader.sections


class _Reader(HTMLParser):
    """Collects the sections of a page, without its navigation."""

    BLOCKS = frozenset(
        {
            "blockquote",
            "br",
            "dd",
            "div",
            "dl",
            "dt",
            "li",
            "p",
            "pre",
            "section",
            "table",
            "td",
            "th",
            "tr",
        }
    )
    OMITTED = frozenset({"head", "nav", "script", "style"})
    OMITTED_CLASSES = frozenset(
        {"footer", "headerlink", "mobile-nav", "navfooter", "navheader", "toc", "toctree-wrapper"}
    )

    def __init__(self, headings: tuple[str, ...]) -> None:
        super().__init__()
        self.sections = [_Section(0, "")]
        self._levels = {tag: level for level, tag in enumerate(headings, 1)}
        self._text = ""
        self._omitted, self._depth = "", 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if self._depth:
            self._depth += tag == self._omitted
        elif (
            tag in self.OMITTED
            or given.get("role") == "navigation"
            or given.get("id") == "footer"
            or not self.OMITTED_CLASSES.isdisjoint((given.get("class") or "").split())
        ):
            self._omitted, self._depth = tag, 1
        elif tag in self.BLOCKS or tag in self._levels:
            self._end_paragraph()

    def handle_endtag(self, tag: str) -> None:
        if self._depth:
            self._depth -= tag == self._omitted
        elif tag in self._levels:
            heading = re.sub(r"^(\d+\.)+ ", "", _paragraph(self._text, code=False))
            self.sections.append(_Section(self._levels[tag], heading))
            self._text = ""
        elif tag in self.BLOCKS:
            self._end_paragraph(code=tag == "pre")

    def handle_data(self, data: str) -> None:
        if not self._depth:
            self._text += data

    def _end_paragraph(self, code: bool = False) -> None:
        paragraph = _paragraph(self._text, code)
        if paragraph:
            self.sections[-1].paragraphs.append(paragraph)
        self._text = ""


def _pod(path: Path) -> list[_Section]:
    """The sections of a page in Perl's markup, perlpod."""
    sections = [_Section(0, "")]
    omitted = True
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        block = block.strip("\n")
        command, text = (*block.split(None, 1), "")[:2] if block.startswith("=") else ("", block)
        if command:
            omitted = command in ("=begin", "=cut")
        if omitted or command in ("=for", "=encoding", "=over", "=back", "=pod", "=end"):
            continue
        code = not command and text[:1].isspace()
        paragraph = _paragraph(text if code else _without_codes(text)[0], code)
        if command.startswith("=head"):
            sections.append(_Section(int(command[-1]), paragraph))
        elif paragraph not in ("", "*"):
            sections[-1].paragraphs.append(paragraph)
    return sections


def _without_codes(text: str, start: int = 0, closing: str = r"\Z") -> tuple[str, int]:
    """A text in perlpod up to its closing bracket, without codes like `C<...>`, and its end."""
    plain = ""
    closed = re.compile(closing)
    while True:
        code, end = _POD_CODE.search(text, start), closed.search(text, start)
        stop = end.start() if end else len(text)
        if code is None or code.start() >= stop:
            return plain + text[start:stop], end.end() if end else len(text)
        width = len(code[2])
        inner, rest = _without_codes(text, code.end(), rf"\s>{{{width}}}" if width > 1 else ">")
        plain += text[start : code.start()] + _shown(code[1], inner.strip() if width > 1 else inner)
        start = rest


def _shown(code: str, text: str) -> str:
    """What a formatting code of perlpod looks like as plain text."""
    if code in "XZ":
        return ""
    if code == "E":
        return html.unescape(f"&#{text.removeprefix('0')};" if text[:1].isdigit() else f"&{text};")
    if code == "L":
        name, bar, _ = text.partition("|")
        if bar or "://" in name:
            return name
        page, _, section = name.partition("/")
        return " in ".join(part.strip('"') for part in (section, page) if part)
    return text


def main() -> None:
    found, texts = pairs(), background()
    print(f"{'source':12} {'pairs':>6} {'words of a question':>20} {'of an answer':>13}  (medians)")
    for source in sorted({pair.source for pair in found}):
        of_source = [pair for pair in found if pair.source == source]
        question = statistics.median(len(pair.question.split()) for pair in of_source)
        answer = statistics.median(len(pair.answer.split()) for pair in of_source)
        print(f"{source:12} {len(of_source):6} {question:20.0f} {answer:13.0f}")
    print(
        f"{len(found)} pairs; {len(texts):,} background texts of "
        f"{sum(len(text.split()) for text in texts):,} words"
    )
    print("; ".join(f"{package} {version}" for package, version in versions().items()))
    for pair in (found[0], found[-1]):
        print(f"\n{pair.source}: {pair.question}\n{textwrap.indent(pair.answer, '    ')}")


if __name__ == "__main__":
    main()
