"""Training and held-out passages of documents, with short texts in place of questions.

Nobody's questions are needed: words that stand together, first lines and words behind the beginning
of a question are as short, and an encoder of passages says what each of them means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxcompress.documents.reading import Passage

HELD_OUT = 0.05
"""The share of the passages that judge."""

MOST_HELD_OUT = 500

SHORT = (4, 16)
"""Words of a span that stands for a question."""

OPENERS = (
    "How do I", "How can I", "How does", "What is", "What are", "What does", "Why is", "Why does", "Where is", "When should I use",
    "Can I", "Is there a way to", "Which", "Who", "What is the difference between", "I get an error:",
)  # fmt: skip
"""How questions begin; followed by words of a text they only resemble questions, which suffices."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Passages for training and held-out passages, with short texts from each.

    Attributes:
        passages: all of them, in order; these are searched.
        learned, held_out: indices of passages.
        short: texts from each of the former, as short as questions.
        short_held_out: a span of each of the latter.
    """

    passages: list[Passage]
    learned: np.ndarray
    held_out: np.ndarray
    short: list[str]
    short_held_out: list[str]


def split(found: Sequence[Passage], seed: int) -> Texts:
    """Divide passages into those that are learned from and those that judge."""
    if len(found) < 20:
        raise ValueError(
            f"the documents give {len(found)} passages, and at least 20 are needed: give more "
            f"documents"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(found))
    judges = min(max(round(HELD_OUT * len(found)), 10), MOST_HELD_OUT)
    held_out, learned = np.sort(order[:judges]), np.sort(order[judges:])
    short = [text for index in learned for text in short_texts(found[index].text, rng)]
    return Texts(
        list(found), learned, held_out, short, [span(found[index].text, rng) for index in held_out]
    )


def short_texts(text: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Substitutes for a question: consecutive words, the first words, an opener with words."""
    return span(text, rng), first_line(text), f"{rng.choice(OPENERS)} {span(text, rng)}?"


def span(text: str, rng: np.random.Generator) -> str:
    """Some words of a text that stand together."""
    words = text.split()
    count = int(rng.integers(*SHORT, endpoint=True))
    start = int(rng.integers(0, max(len(words) - count, 0), endpoint=True))
    return " ".join(words[start : start + count])


def first_line(text: str) -> str:
    """The first words of a text, which often say what it is about."""
    return " ".join(text.split("\n", 1)[0].split()[: SHORT[1]])
