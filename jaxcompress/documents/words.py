"""The words that documents need: rows of a word table to keep, and the tokenizer to match.

A greedy longest-match tokenizer (WordPiece) cuts a text whose pieces all stay exactly as before, so
its embeddings are the same to the bit; every single character stays, so that other words are
spelled out and nothing becomes an error. A table of V rows of d numbers keeps `k d`, and no index
of the rows is stored: the new tokenizer counts them anew.

Source: vocabulary trimming, Abdaoui et al. 2020 (arXiv:2010.05609).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

CHUNK = 1_000


def word_counts(tokenizer: Any, texts: Iterable[str]) -> np.ndarray:
    """How often every word piece occurs in texts, special tokens left out.

    Args:
        tokenizer: of the package tokenizers.
        texts: any number of them; they are read once.

    Returns:
        (vocabulary,) integers, by id.
    """
    counts = np.zeros(size(tokenizer), np.int64)
    held: list[str] = []

    def count() -> None:
        for encoding in tokenizer.encode_batch(held, add_special_tokens=False):
            counts[:] += np.bincount(encoding.ids, minlength=len(counts))
        held.clear()

    for text in texts:
        held.append(text)
        if len(held) == CHUNK:
            count()
    count()
    return counts


def size(tokenizer: Any) -> int:
    """The number of ids of a tokenizer."""
    return max(tokenizer.get_vocab(True).values()) + 1


def words_to_keep(
    tokenizer: Any, counts: Any, *, at_least: int = 1, reserve: int = 0
) -> np.ndarray:
    """The ids of the word pieces that stay.

    Args:
        tokenizer: with a WordPiece model.
        counts: (vocabulary,) how often each occurs, from `word_counts`.
        at_least: how often a piece must occur to stay on its own account.
        reserve: how many of the others stay for texts to come: first those that occur, the most
            frequent ahead, then in the order of their ids, which in a BERT's vocabulary is that of
            their frequency in the texts it was made from.

    Returns:
        (k,) sorted ids: special tokens and all single characters are among them.

    Raises:
        ValueError: for another kind of tokenizer, counts that do not fit, a negative number.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from jaxcompress.documents.words import words_to_keep
        >>> tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "ab": 3, "abb": 4, "bb": 5}, unk_token="[UNK]"))
        >>> words_to_keep(tokenizer, [0, 0, 0, 7, 0, 0], reserve=1).tolist()
        [0, 1, 2, 3, 4]
    """
    given = wordpiece(tokenizer)
    counts = np.asarray(counts)
    if counts.shape != (size(tokenizer),):
        raise ValueError(
            f"counts have shape {counts.shape}, and the tokenizer has {size(tokenizer)} words: "
            f"use word_counts"
        )
    if at_least < 1 or reserve < 0:
        raise ValueError(
            f"expected at_least of 1 or more and reserve of 0 or more, got {at_least} and {reserve}"
        )
    prefix = given["model"]["continuing_subword_prefix"]
    kept = np.zeros(len(counts), bool)
    kept[[entry["id"] for entry in given["added_tokens"]]] = True
    for word, index in given["model"]["vocab"].items():
        kept[index] |= (
            counts[index] >= at_least
            or len(word.removeprefix(prefix)) == 1
            or word == given["model"]["unk_token"]
        )
    others = np.flatnonzero(
        ~kept & np.isin(np.arange(len(kept)), list(given["model"]["vocab"].values()))
    )
    # [unused7] and its like never stand for a text
    others = others[[not placeholder(word) for word in map(tokenizer.id_to_token, others)]]
    kept[others[np.lexsort((others, -counts[others]))][:reserve]] = True
    return np.flatnonzero(kept)


def placeholder(word: str) -> bool:
    """Whether a word piece is reserved, such as [unused7]."""
    return word.startswith("[unused") and word.endswith("]")


def restrict_tokenizer(tokenizer: Any, kept: Sequence[int] | np.ndarray) -> Any:
    """A tokenizer of fewer words, numbered anew in the order of the old ids.

    Args:
        tokenizer: with a WordPiece model.
        kept: (k,) sorted ids, from `words_to_keep`.

    Returns:
        A new tokenizer; a text whose pieces were all kept is cut as before.

    Raises:
        ValueError: for another kind of tokenizer, ids that are unsorted or unknown, a special token
            that is not among them.
    """
    given = wordpiece(tokenizer)
    kept = np.asarray(kept)
    if (
        kept.ndim != 1
        or not len(kept)
        or (np.diff(kept) <= 0).any()
        or kept[0] < 0
        or kept[-1] >= size(tokenizer)
    ):
        raise ValueError(
            f"kept must be sorted ids below {size(tokenizer)}, each once: use words_to_keep"
        )
    new = {int(old): index for index, old in enumerate(kept)}
    special = {entry["content"]: entry["id"] for entry in given["added_tokens"]}
    unknown = given["model"]["unk_token"]
    lost = [word for word, index in special.items() if index not in new]
    lost += [unknown] * (given["model"]["vocab"].get(unknown) not in new)
    if lost:
        raise ValueError(
            f"kept leaves out {', '.join(dict.fromkeys(lost))}, which the tokenizer cannot do "
            f"without: use words_to_keep"
        )
    for entry in given["added_tokens"]:
        entry["id"] = new[entry["id"]]
    given["model"]["vocab"] = {
        word: new[index] for word, index in given["model"]["vocab"].items() if index in new
    }
    if given.get("post_processor"):
        given["post_processor"] = renumber(given["post_processor"], new)
    if given.get("padding"):
        given["padding"]["pad_id"] = new[given["padding"]["pad_id"]]
    return type(tokenizer).from_str(json.dumps(given))


def renumber(processor: Any, new: dict[int, int]) -> Any:
    """What puts special tokens around a text, with their new ids."""
    if processor["type"] == "TemplateProcessing":
        for entry in processor["special_tokens"].values():
            entry["ids"] = [new[index] for index in entry["ids"]]
    elif processor["type"] in ("BertProcessing", "RobertaProcessing"):
        for end in ("sep", "cls"):
            processor[end] = [processor[end][0], new[processor[end][1]]]
    elif processor["type"] == "Sequence":
        processor["processors"] = [renumber(each, new) for each in processor["processors"]]
    return processor


def wordpiece(tokenizer: Any) -> Any:
    """A tokenizer as data."""
    given = json.loads(tokenizer.to_str())
    kind = given["model"]["type"]
    if kind != "WordPiece":
        raise ValueError(
            f"the tokenizer is a {kind}: only WordPiece, that of BERT, can lose words without "
            f"cutting the others anew"
        )
    return given
