"""A page's text is what a reader sees, whatever tags it omits."""

import sys

import pytest

from jaxcompress.documents.html import html_text
from jaxcompress.documents.reading import tidy

PAGE = """<!doctype html><html><head><title>No</title><style>p {}</style></head><body><nav><a
href=x>Home</a> | Next</nav> <h1>Owls &amp; others</h1><p>They see
   at <b>night</b>,<br>and hear.</p><script>var x = "<p>";</script><pre>def f():
    return 1</pre><ul><li>one<li>two</ul><footer>2024</footer></body></html>"""

PAGES = {
    "a whole page": (
        PAGE,
        "Owls & others\n\nThey see at night,\nand hear.\n\ndef f():\n    return 1\n\none\n\ntwo",
    ),
    "no end of the head": ("<html><head><title>t</title><body><p>seen", "seen"),
    "no tags of head and body": ("<title>t</title><meta charset=utf-8><p>seen</p>", "seen"),
    "a paragraph ends the head": ("<head><link rel=x><p>seen", "seen"),
    "no end of a script": ("<p>seen<script>var x", "seen"),
    "cells": ("<table><tr><td>a<td>b<tr><th>c</th><td>d</td></table>", "a\tb\n\nc\td"),
    "cells of paragraphs": ("<table><tr><td><p>a</p><td><p>b</p></table>", "a\n\nb"),
    "an empty cell": ("<table><tr><td></td><td>b</td><td></td></table>", "b"),
    "a caption": ("<table><caption>C</caption><tr><td>a</table>after", "C\n\na\n\nafter"),
    "options": ("<select><option>one<option>two</select>then", "one\ntwo\nthen"),
    "groups of options": (
        "<select><optgroup label=x><option>a</optgroup><option>b</select>",
        "a\nb",
    ),
    "labels": ("<label>Name</label><input><label>Age</label>", "Name\nAge"),
    "buttons": ("<button>OK</button><button>No</button>", "OK\nNo"),
    "a legend": ("<fieldset><legend>L</legend>x</fieldset>", "L\nx"),
    "a figure": ("<figure><img><figcaption>F</figcaption></figure>x", "F\n\nx"),
    "a summary": ("<details><summary>S</summary>more</details>", "S\n\nmore"),
    "an address": ("a<address>b</address>c", "a\n\nb\n\nc"),
    "definitions": ("<dl><dt>t<dd>d<dt>u<dd>e</dl>", "t\n\nd\n\nu\n\ne"),
    "inline tags": ("one<b>two</b> <i> three </i> four", "onetwo three four"),
    "white space": ("<p> a \n\t b&nbsp;c </p>\n\n <p>d", "a b c\n\nd"),
    "line ends": ("a<br>b<br><br>c", "a\nb\n\nc"),
    "exact": ("<pre>\n a\n\n  b <b> c</b></pre>d", "a\n\n  b  c\n\nd"),
    "references": (
        "&lt;p&gt; &eacute;&#x1F642; &amp;amp; &#xD800;",
        "<p> é🙂 &amp; \N{REPLACEMENT CHARACTER}",
    ),
    "comments": ("a<!-- <p>b -->c<![CDATA[ d ]]>", "ac"),
    "hidden": ("a<p hidden>b</p><template>c</template><noscript>d</noscript>", "a"),
    "pictures": ("a<svg><title>t</title><text>b</text></svg>c", "ac"),
    "unknown tags": ("<x-y>a</x-y><o:p>b</o:p>", "ab"),
    "tags in the wrong order": ("<b>a<p>b</b>c</p></div>d", "a\n\nbc\n\nd"),
    "a mark of XML": ('<?xml version="1.0"?><html><body><p>a</p></body></html>', "a"),
    "text of markup": ("<textarea><p>a</textarea><xmp><b>b</xmp>", "<p>a\n\n<b>b"),
    "nothing": ("<html><head><title>t</title></head></html>", ""),
    "no tags": ("a < b & c", "a < b & c"),
    "deep": ("<div>" * 5000 + "a" + "</div>" * 5000, "a"),
}
"""HTML and the text expected."""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_a_reader_sees(name):
    page, text = PAGES[name]
    assert tidy(html_text(page)) == text


def test_without_the_parser_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "selectolax.lexbor", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxcompress\[bert\]'"):
        html_text("<p>a")
