"""Documents of every kind come in as text, what is none is named, and passages lose no word."""

import re
import tempfile
from pathlib import Path

import pytest
from helpers_bert import make
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcompress.documents import encodings
from jaxcompress.documents import reading as documents
from jaxcompress.documents.encoder import read_passages, write_passages
from jaxcompress.documents.reading import Document, Passage, passages, read_documents


def read(path, **options):
    return read_documents(path, progress=False, **options)


def test_a_folder_with_its_subfolders(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "b" / "c.MD").write_text("# Title  \n\n\n\nText. \n")
    (tmp_path / "a.html").write_text("<p>x")
    (tmp_path / "z.txt").write_bytes("\ufeffwith a mark\r\nand lines\r\n".encode())
    (tmp_path / "picture.png").write_bytes(b"\0\1")
    expected = [
        ("a.html", "x"),
        ("b/c.MD", "# Title\n\nText."),
        ("z.txt", "with a mark\nand lines"),
    ]
    assert read(tmp_path) == [Document(*each) for each in expected]
    assert read(tmp_path / "z.txt") == [Document("z.txt", "with a mark\nand lines")]


def page(text, encoding, declared):
    return f'<meta charset="{declared}"><p>{text}'.encode(encoding)


FILES = {
    "utf8.txt": ("naïve".encode(), "naïve"),
    "marked.txt": ("naïve".encode("utf-8-sig"), "naïve"),
    "wide.txt": ("naïve".encode("utf-16"), "naïve"),
    "wide_big.md": (b"\xfe\xff" + "naïve".encode("utf-16-be"), "naïve"),
    "wider.txt": ("naïve".encode("utf-32"), "naïve"),
    "wide.html": ("<p>naïve".encode("utf-16"), "naïve"),
    "latin.html": (page("naïve €", "cp1252", "ISO-8859-1"), "naïve €"),
    "sure.html": (page("naïve", "utf-8", "latin1"), "naïve"),
    "greek.html": (page("Αθήνα", "iso8859-7", "iso-8859-7"), "Αθήνα"),
    "japan.html": (page("東京", "iso2022-jp", "iso-2022-jp"), "東京"),
    "old.html": (
        b'<meta http-equiv="Content-Type" content="text/html; charset=koi8-r"><p>\xcd\xc9\xd2',
        "мир",
    ),
    "strict.html": ("<?xml encoding='cp1250'?><p>Łódź".encode("cp1250"), "Łódź"),
    "separator.txt": ("a\u2028b\x85c".encode(), "a\nb\nc"),
    "latin.txt": ("naïve".encode("latin-1"), "latin.txt is not UTF-8 (invalid continuation"),
    "undeclared.html": ("<p>naïve".encode("latin-1"), "undeclared.html is not UTF-8"),
    "wrong.html": (
        page("naïve", "latin-1", "euc-jp"),
        "wrong.html is not UTF-8 (invalid continuation byte at byte 28) and not EUC_JP",
    ),
    "unknown.html": (page("naïve", "latin-1", "x-klingon"), "unknown.html is not UTF-8"),
    "unmarked.txt": ("naïve".encode("utf-16-le"), "unmarked.txt is binary, or UTF-16 without"),
    "cut.txt": ("naïve".encode("utf-16")[:-1], "cut.txt is not UTF-16 (truncated data"),
    "binary.txt": (b"\x89PNG\0\0", "binary.txt is binary"),
    "empty.txt": (b" \n", "empty.txt holds no text"),
    "frames.html": (b"<frameset><frame src=a></frameset>", "frames.html holds no text"),
    "large.txt": (b"x" * 2000, "large.txt has 0 MiB, and one document may have"),
}
"""Files, and the text expected or the reason why it is skipped."""


def test_every_file_is_read_or_named(tmp_path, monkeypatch):
    monkeypatch.setattr(encodings, "LARGEST", 1000)
    monkeypatch.setattr(documents, "NAMED", 100)
    for name, (data, _) in FILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "nowhere.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.warns(UserWarning, match="skipped") as caught:
        read_of = {document.name: document.text for document in read(tmp_path)}
    (said,) = (str(warning.message) for warning in caught)
    reasons = {name: text for name, (_, text) in FILES.items() if name not in read_of}
    assert read_of == {name: text for name, (_, text) in FILES.items() if name in read_of}
    assert [reason for reason in reasons.values() if reason not in said] == []
    assert "nowhere.txt is a link to nothing" in said
    assert said.startswith(f"{len(reasons) + 1} skipped: ")
    assert said.endswith(f", of {len(FILES) + 1} documents")
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=re.escape(reason)):
            read(tmp_path / name)


LINES = {
    '{"title": "Owls", "text": "They see."}': ("Owls", "Owls\n\nThey see."),
    '{"text": "No title."}': ("all.jsonl:2", "No title."),
    '{"name": "id 3", "text": "id 3 is here"}\r': ("id 3", "id 3 is here"),
    '{"title": "a\u2028b", "text": "c"}': ("a\u2028b", "a\nb\n\nc"),
    '{"title": "lone \\udc80", "text": "\\ud83d"}': ("lone \ufffd", "lone \ufffd\n\n\ufffd"),
    '{"text": "\\ud83d\\ude42"}': ("all.jsonl:6", "🙂"),
    " ": None,
    "{": "line 8 is not JSON",
    "[1]": 'line 9 has no "text"',
    '{"text": 3}': 'line 10 has no "text"',
    '{"text": " "}': "line 11 holds no text",
    "[" * 9000: "line 12 is not JSON",
    f'{{"text": "{"x" * 10000}"}}': "line 13 has 0 MiB: split it",
    '{"text": "na\udcefve"}': "line 14 is not UTF-8",
    '{"text": "the last"}': ("all.jsonl:15", "the last"),
}
"""Lines of a file, and the document expected or the reason why it is skipped."""


def test_every_line_is_read_or_named(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LARGEST", 9500)
    monkeypatch.setattr(documents, "NAMED", 100)
    path = tmp_path / "all.jsonl"
    path.write_bytes("\n".join(LINES).encode("utf-8", "surrogateescape"))
    with pytest.warns(UserWarning, match="7 skipped") as caught:
        assert read(path) == [Document(*each) for each in LINES.values() if isinstance(each, tuple)]
    reasons = [reason for reason in LINES.values() if isinstance(reason, str)]
    assert [reason for reason in reasons if reason not in str(caught[0].message)] == []
    path.write_text('{"text": "wide"}\n' * 3, encoding="utf-16")
    assert [document.text for document in read(path)] == ["wide"] * 3
    path.write_text("{}\n" * 9)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r'holds no text: 9 skipped: .*has no "text".*and 4 more'):
        read(path)


def test_a_file_of_lines_may_be_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(encodings, "LARGEST", 1000)
    monkeypatch.setattr(documents, "LARGEST", 1000)
    path = tmp_path / "all.jsonl"
    path.write_text('{"text": "one of many"}\n' * 1000)
    assert len(read(path)) == 1000


def test_folders_without_text_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no \.txt, \.md, \.html"):
        read(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"2 skipped: .*a\.txt holds no text; .*b\.txt is binary"):
        read(tmp_path)


@given(name=st.text(), text=st.text(), odd=st.text("a \u2028\u2029\x85\x0b\r\n\ud800\udc80"))
def test_any_text_can_be_written_and_read(name, text, odd):
    """Whatever documents hold, their passages come back as they were."""
    parts = passages([Document(name, text), Document(odd, f"bag{odd}face")], make(), 16)
    parts.append(Passage(odd, text))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "passages.jsonl")
        write_passages(path, parts)
        assert read_passages(path) == parts


def test_paths_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        read(tmp_path / "nowhere")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(ValueError, match=r"a\.pdf is no \.txt"):
        read(tmp_path / "a.pdf")


def test_the_standard_library_is_a_corpus():
    found = read(None)
    texts = [document.text for document in found]
    assert len(found) > 3000
    assert len(set(texts)) == len(texts)
    packages = [document.name.split(".")[0] for document in found]
    assert list(dict.fromkeys(packages)) == sorted(set(packages))  # whatever order the disk has
    assert any(
        document.name == "heapq.heappush" or document.name == "textwrap.dedent"
        for document in found
    )


blocks = st.lists(
    st.lists(st.text("abcdefgh", min_size=1, max_size=12), min_size=1, max_size=12).map(" ".join),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=100)
@given(blocks=blocks, length=st.integers(14, 30))
def test_passages_fit_and_lose_no_word(blocks, length):
    tokenizer, text = make(), "\n\n".join(blocks)
    found = passages([Document("d", text)], tokenizer, length)
    assert re.sub(r"\s", "", "".join(passage.text for passage in found)) == re.sub(r"\s", "", text)
    assert {passage.document for passage in found} == {"d"}
    assert all(len(tokenizer.encode(passage.text).ids) <= length for passage in found)


def test_passages_are_whole_paragraphs_where_they_fit():
    tokenizer = make()
    text = "bag bag\n\nface\n\nbag face bag face bag\n\nbad"
    found = [passage.text for passage in passages([Document("d", text)], tokenizer, 5)]
    assert found == ["bag bag\n\nface", "bag face bag", "face bag\n\nbad"]
    with pytest.raises(ValueError, match="length=2 has no room"):
        passages([Document("d", text)], tokenizer, 2)
