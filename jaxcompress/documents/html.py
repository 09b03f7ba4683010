"""The visible text of HTML pages.

The package selectolax parses a page as browsers do, whatever tags it omits. Blocks become
paragraphs, lines and controls become lines, and the cells of a row are separated by tabs. Costs one
pass over the tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode


def _tags(names: str) -> frozenset[str]:
    """The tags in a text."""
    return frozenset(names.split())


HIDDEN = _tags(
    "annotation annotation-xml audio canvas datalist footer head iframe nav noframes noscript "
    "object script style svg template title video"
)
"""Elements that are not shown, or that are not the page's own text."""
BLOCKS = _tags(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset "
    "figcaption figure form h1 h2 h3 h4 h5 h6 header hgroup hr html li listing main menu ol p "
    "plaintext pre search section summary table tbody tfoot thead tr ul xmp"
)
"""Elements with a paragraph of their own."""
LINES = _tags("button label legend optgroup option select textarea")
"""Elements with a line of their own."""
CELLS = _tags("td th")
EXACT = _tags("listing plaintext pre textarea xmp")
"""Elements whose white space counts."""
COMMENT, TEXT = "-comment", "-text"


class Lines:
    """Text that is put together, with white space collapsed as on a page."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.breaks = 0
        self.tab = False
        self.blank = True

    def separate(self, breaks: int) -> None:
        """Start a new line (1) or paragraph (2) unless one has just been started."""
        self.breaks = max(self.breaks, breaks)

    def write(self, text: str, *, exact: bool) -> None:
        """Add the text of a node."""
        if not exact:
            text = re.sub(r"\s+", " ", text)
            text = text.lstrip() if self.blank or self.breaks or self.tab else text
        if not text:
            return
        if self.parts and (self.breaks or self.tab):
            self.parts.append("\n" * min(self.breaks, 2) or "\t")
        self.breaks, self.tab = 0, False
        self.parts.append(text)
        self.blank = text[-1].isspace()


def html_text(page: str) -> str:
    r"""The visible text of a page, with an empty line between paragraphs.

    Args:
        page: the HTML.

    Returns:
        The text without what browsers hide, and without navigation and footers.

    Raises:
        ImportError: when the package selectolax is not installed.

    Example:
        >>> from jaxcompress.documents.html import html_text
        >>> html_text("<head><title>t</title><p>A row:<table><tr><td>1<td>2")
        'A row:\n\n1\t2'
    """
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise ImportError(
            "reading HTML needs the package selectolax: pip install 'jaxcompress[bert]'"
        ) from None
    root, lines, exact = LexborHTMLParser(page).root, Lines(), 0
    for node, entered in walk(root):
        tag = node.tag or ""
        if tag == TEXT:
            lines.write(node.text_content or "", exact=exact > 0)
            continue
        if tag in EXACT:
            exact += 1 if entered else -1
        if tag == "br" and entered:
            lines.breaks += 1
        elif tag in CELLS:
            lines.tab = True
        else:
            lines.separate(2 if tag in BLOCKS else 1 if tag in LINES else 0)
    return "".join(lines.parts)


def walk(root: LexborNode | None) -> Iterator[tuple[LexborNode, bool]]:
    """The visible nodes in their order: text once, elements when entered and when left."""
    pending = [] if root is None else [(root, True)]
    while pending:
        node, entered = pending.pop()
        tag = node.tag or ""
        if tag == COMMENT or tag in HIDDEN or (tag != TEXT and "hidden" in node.attributes):
            continue
        yield node, entered
        if tag == TEXT or not entered:
            continue
        pending.append((node, False))
        children, child = [], node.child
        while child is not None:
            children.append((child, True))
            child = child.next
        pending += reversed(children)
