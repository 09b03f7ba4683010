"""Training and held-out passages of documents, with short texts that stand in for queries.

No queries have to be collected. Random spans, first lines, and spans after a question's opening are
as short as queries, and the large encoder embeds them for training. Costs one pass over the texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxcompress.documents.reading import Passage

HELD_OUT = 0.05
"""The share of the passages held out for evaluation."""

MOST_HELD_OUT = 500
"""The largest number of passages held out."""

SHORT = (4, 16)
"""The fewest and most words of a span."""

OPENERS = (
    "How do I",
    "How can I",
    "How does",
    "What is",
    "What are",
    "What does",
    "Why is",
    "Why does",
    "Where is",
    "When should I use",
    "Can I",
    "Is there a way to",
    "Which",
    "Who",
    "What is the difference between",
    "I get an error:",
)
"""Openings of questions. A span after one is not a real question, but has a question's form."""


@dataclasses.dataclass(frozen=True)
class Texts:
    """Passages for training and for evaluation, with short texts from both.

    Attributes:
        passages: all passages, in order; searches run over these.
        training: indices of the training passages.
        held_out: indices of the held-out passages.
        short: short texts from the training passages, three per passage.
        short_held_out: one span of each held-out passage.
    """

    passages: list[Passage]
    training: Int[np.ndarray, " training"]
    held_out: Int[np.ndarray, " held_out"]
    short: list[str]
    short_held_out: list[str]


def split(passages: Sequence[Passage], seed: int) -> Texts:
    """Divide passages at random into training and held-out passages."""
    if len(passages) < 20:
        raise ValueError(
            f"the documents give {len(passages)} passages, and at least 20 are needed: give more "
            f"documents"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(passages))
    count = min(max(round(HELD_OUT * len(passages)), 10), MOST_HELD_OUT)
    held_out, training = np.sort(order[:count]), np.sort(order[count:])
    short: list[str] = []
    for index in training:
        short.extend(short_texts(passages[index].text, rng))
    spans = [span(passages[index].text, rng) for index in held_out]
    return Texts(list(passages), training, held_out, short, spans)


def short_texts(text: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Substitutes for a query: a span, the first words, a question's opening with a span."""
    return span(text, rng), first_line(text), f"{rng.choice(OPENERS)} {span(text, rng)}?"


def span(text: str, rng: np.random.Generator) -> str:
    """Consecutive words of a text, at a random place."""
    words = text.split()
    count = int(rng.integers(*SHORT, endpoint=True))
    start = int(rng.integers(0, max(len(words) - count, 0), endpoint=True))
    return " ".join(words[start : start + count])


def first_line(text: str) -> str:
    """The first words of the first line, often a title."""
    return " ".join(text.split("\n", 1)[0].split()[: SHORT[1]])
