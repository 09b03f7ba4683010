"""Vocabulary trimming: the word pieces that documents use, and a tokenizer of these.

WordPiece matches the longest piece first. A text whose pieces are all kept is therefore tokenized
as before and has the same embeddings to the bit. All single characters are kept, so other words are
spelled out. An embedding table of V rows shrinks from `V d` to `k d` numbers; the new tokenizer
renumbers the pieces, so no index of rows is stored. Costs one tokenization of the texts.

Source: vocabulary trimming, Abdaoui et al. 2020 (arXiv:2010.05609).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike, Int

from jaxcompress.models.files import Json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK = 1_000
"""Texts that are tokenized at once."""


def piece_counts(tokenizer: Tokenizer, texts: Iterable[str]) -> Int[np.ndarray, " vocabulary"]:
    """The number of occurrences of every word piece in texts, without special tokens.

    Args:
        tokenizer: the tokenizer.
        texts: any number of texts, iterated once.

    Returns:
        Counts by id.
    """
    counts = np.zeros(size(tokenizer), np.int64)
    pending: list[str] = []

    def count() -> None:
        for encoding in tokenizer.encode_batch(pending, add_special_tokens=False):
            counts[:] += np.bincount(encoding.ids, minlength=len(counts))
        pending.clear()

    for text in texts:
        pending.append(text)
        if len(pending) == CHUNK:
            count()
    count()
    return counts


def size(tokenizer: Tokenizer) -> int:
    """The number of ids of a tokenizer."""
    return max(tokenizer.get_vocab(True).values()) + 1


def pieces_to_keep(
    tokenizer: Tokenizer, counts: ArrayLike, *, at_least: int = 1, reserve: int = 0
) -> Int[np.ndarray, " k"]:
    """The ids of the word pieces to keep.

    Args:
        tokenizer: with a WordPiece model.
        counts: occurrences of the pieces by id (vocabulary,), from `piece_counts`.
        at_least: the fewest occurrences of a piece that is kept.
        reserve: number of further pieces to keep for future texts, the most frequent first, then by
            id. Ids of BERT's vocabulary are ordered by frequency in its pretraining corpus.

    Returns:
        Sorted ids, which include special tokens and all single characters.

    Raises:
        ValueError: for a tokenizer other than WordPiece, counts of another shape, an `at_least`
            below 1, or a negative reserve.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from jaxcompress.documents.vocabulary import pieces_to_keep
        >>> vocabulary = {"[UNK]": 0, "a": 1, "##b": 2, "ab": 3, "abb": 4, "bb": 5}
        >>> tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        >>> pieces_to_keep(tokenizer, [0, 0, 0, 7, 0, 0], reserve=1).tolist()
        [0, 1, 2, 3, 4]
    """
    state = wordpiece_state(tokenizer)
    vocabulary = state["model"]["vocab"]
    counts = np.asarray(counts)
    if counts.shape != (size(tokenizer),):
        raise ValueError(
            f"counts have shape {counts.shape}, and the tokenizer has {size(tokenizer)} pieces: "
            f"use piece_counts"
        )
    if at_least < 1 or reserve < 0:
        raise ValueError(
            f"expected at_least of 1 or more and reserve of 0 or more, got {at_least} and {reserve}"
        )
    prefix = state["model"]["continuing_subword_prefix"]
    kept = np.zeros(len(counts), bool)
    kept[[entry["id"] for entry in state["added_tokens"]]] = True
    for piece, index in vocabulary.items():
        kept[index] |= (
            counts[index] >= at_least
            or len(piece.removeprefix(prefix)) == 1
            or piece == state["model"]["unk_token"]
        )
    others = np.flatnonzero(~kept & np.isin(np.arange(len(kept)), list(vocabulary.values())))
    # no text is tokenized as [unused7] or another placeholder: a reserve of these is useless
    others = others[[not placeholder(tokenizer.id_to_token(int(index))) for index in others]]
    kept[others[np.lexsort((others, -counts[others]))][:reserve]] = True
    return np.flatnonzero(kept)


def placeholder(piece: str | None) -> bool:
    """Whether a word piece is an unused entry of the vocabulary, such as [unused7]."""
    return piece is not None and piece.startswith("[unused") and piece.endswith("]")


def restrict_tokenizer(tokenizer: Tokenizer, kept: Sequence[int] | np.ndarray) -> Tokenizer:
    """A tokenizer with fewer word pieces, renumbered in the order of the old ids.

    Args:
        tokenizer: with a WordPiece model.
        kept: sorted ids (k,), from `pieces_to_keep`.

    Returns:
        A new tokenizer. It tokenizes a text whose pieces were all kept as before.

    Raises:
        ValueError: for a tokenizer other than WordPiece, ids that are unsorted or unknown, or a
            special token that is left out.
    """
    state = wordpiece_state(tokenizer)
    kept = np.asarray(kept)
    if (
        kept.ndim != 1
        or not len(kept)
        or (np.diff(kept) <= 0).any()
        or kept[0] < 0
        or kept[-1] >= size(tokenizer)
    ):
        raise ValueError(
            f"kept must be sorted ids below {size(tokenizer)}, each once: use pieces_to_keep"
        )
    new = {int(old): index for index, old in enumerate(kept)}
    special = {entry["content"]: entry["id"] for entry in state["added_tokens"]}
    unknown = state["model"]["unk_token"]
    lost = [token for token, index in special.items() if index not in new]
    lost += [unknown] * (state["model"]["vocab"].get(unknown) not in new)
    if lost:
        raise ValueError(
            f"kept leaves out {', '.join(dict.fromkeys(lost))}, which the tokenizer "
            f"requires: use pieces_to_keep"
        )
    for entry in state["added_tokens"]:
        entry["id"] = new[entry["id"]]
    state["model"]["vocab"] = {
        piece: new[index] for piece, index in state["model"]["vocab"].items() if index in new
    }
    if state.get("post_processor"):
        state["post_processor"] = renumber(state["post_processor"], new)
    if state.get("padding"):
        state["padding"]["pad_id"] = new[state["padding"]["pad_id"]]
    return type(tokenizer).from_str(json.dumps(state))


def renumber(processor: Json, new: dict[int, int]) -> Json:
    """The post-processor, which adds special tokens to a text, with new ids."""
    if processor["type"] == "TemplateProcessing":
        for entry in processor["special_tokens"].values():
            entry["ids"] = [new[index] for index in entry["ids"]]
    elif processor["type"] in ("BertProcessing", "RobertaProcessing"):
        for end in ("sep", "cls"):
            processor[end] = [processor[end][0], new[processor[end][1]]]
    elif processor["type"] == "Sequence":
        processor["processors"] = [renumber(part, new) for part in processor["processors"]]
    return processor


def wordpiece_state(tokenizer: Tokenizer) -> Json:
    """The serialized state of a WordPiece tokenizer."""
    state = json.loads(tokenizer.to_str())
    kind = state["model"]["type"]
    if kind != "WordPiece":
        # merges of BPE build pieces from others, so that none can be removed alone
        raise ValueError(
            f"the tokenizer is a {kind}: expected WordPiece, BERT's, where pieces can be removed "
            f"without changing the tokenization of other words"
        )
    return state
