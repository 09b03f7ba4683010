"""Short texts in place of queries: every training passage gives three, every other one a span."""

import numpy as np
import pytest

from jaxcompress.documents.reading import Passage
from jaxcompress.documents.samples import OPENERS, split


def passages(count):
    """Passages without a word in common, of a title and a paragraph."""
    words = [[f"w{number}x{place}" for place in range(30)] for number in range(count)]
    return [Passage("d", f"{' '.join(row[:4])}\n{' '.join(row[4:])}") for row in words]


@pytest.mark.parametrize("count", [20, 400])
def test_every_passage_is_used_once(count):
    given = passages(count)
    texts = split(given, seed=3)
    assert texts.passages == given
    assert sorted([*texts.training, *texts.held_out]) == list(range(count))
    assert len(texts.held_out) == max(round(0.05 * count), 10)
    assert len(texts.short) == 3 * len(texts.training)
    assert len(texts.short_held_out) == len(texts.held_out)


def test_short_texts_are_of_their_passages():
    given = passages(40)
    texts = split(given, seed=0)
    for place, index in enumerate(texts.training):
        own = given[index].text.replace("\n", " ")
        spanned, first, question = texts.short[3 * place : 3 * place + 3]
        assert spanned in own
        assert own.startswith(first)
        rests = [question.removeprefix(f"{opener} ") for opener in OPENERS]
        assert question.endswith("?")
        assert any(rest != question and rest.removesuffix("?") in own for rest in rests)
    for index, spanned in zip(texts.held_out, texts.short_held_out, strict=True):
        assert spanned in given[index].text.replace("\n", " ")


def test_a_seed_is_a_division():
    given = passages(60)
    one, same, other = (split(given, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.held_out, same.held_out)
    assert one.short == same.short
    assert set(one.held_out) != set(other.held_out)
