"""Documents of every kind come in as text, what is none is named, and passages lose no word."""

import json
import re

import pytest
from helpers_bert import make
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcompress.documents import reading as documents
from jaxcompress.documents.reading import Document, html_text, passages, read_documents

PAGE = """<!doctype html><html><head><title>No</title><style>p {}</style></head><body><nav><a
href=x>Home</a> | Next</nav> <h1>Owls &amp; others</h1><p>They see
   at <b>night</b>,<br>and hear.</p><script>var x = "<p>";</script><pre>def f():
    return 1</pre><ul><li>one<li>two</ul><footer>2024</footer></body></html>"""


def read(path, **options):
    return read_documents(path, progress=False, **options)


def test_a_page_is_what_a_reader_sees():
    text = "Owls & others\n\nThey see at night,\nand hear.\n\ndef f():\n    return 1\n\none\n\ntwo"
    assert html_text(PAGE) == text


def test_a_folder_with_its_subfolders(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.MD").write_text("# Title  \n\n\n\nText. \n")
    (tmp_path / "a.html").write_text("<p>x")
    (tmp_path / "z.txt").write_bytes("\ufeffwith a mark\r\nand lines\r\n".encode())
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "picture.png").write_bytes(b"\0\1")
    expected = [
        ("a.html", "x"),
        ("b/c.MD", "# Title\n\nText."),
        ("z.txt", "with a mark\nand lines"),
    ]
    assert read(tmp_path) == [Document(*each) for each in expected]
    assert read(tmp_path / "z.txt") == [Document("z.txt", "with a mark\nand lines")]


def test_a_file_of_lines(tmp_path):
    path = tmp_path / "all.jsonl"
    lines = [
        {"title": "Owls", "text": "They see."},
        {"text": "No title."},
        {"name": "id 3", "text": "id 3 is here"},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    expected = [
        ("Owls", "Owls\n\nThey see."),
        ("all.jsonl:3", "No title."),
        ("id 3", "id 3 is here"),
    ]
    assert read(path) == [Document(*each) for each in expected]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no .txt, .md, .html"),
        ({"a.bin": b"x"}, "has no .txt"),
        ({"a.txt": b"", "b.md": b"\n"}, "holds no text"),
        ({"a.txt": b"text", "b.txt": b"\x89PNG\0\0"}, r"b\.txt is binary"),
        ({"a.txt": "naïve".encode("latin-1")}, r"a\.txt is not UTF-8 .* at byte 2"),
        ({"large.txt": b"x" * 2000}, "split it into documents"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, monkeypatch, files, words):
    monkeypatch.setattr(documents, "LARGEST", 1000)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=words):
        read(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [("{", "line 2 is not JSON"), ("[1]", 'line 2 has no "text"'), ('{"text": 3}', 'no "text"')],
)
def test_lines_that_do_not_fit_are_named(tmp_path, line, words):
    path = tmp_path / "all.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=words):
        read(path)


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
