"""Batches of token ids, bucketed by length to limit padding, and encoders run on them.

Lengths are rounded up to 16, 24, 32, 48, 64, 96, ..., and all batches of one length have the same
number of rows. An encoder is therefore compiled for a few shapes only, and every batch holds about
the same number of tokens and costs about the same time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool, Float, Float16, Int, PyTree
from tqdm.auto import tqdm

from jaxcompress.documents.encodings import well_formed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHORTEST = 16
"""The smallest length of a batch, in tokens."""
TOKENS = 4_096
"""Tokens of a batch by default, padding included."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Texts padded to one length.

    Attributes:
        ids: token ids, zero where padded.
        mask: true at tokens, false at padding.
        index: the text of each row; -1 for padding rows, which come last and are fully masked.
    """

    ids: Int[np.ndarray, "rows length"]
    mask: Bool[np.ndarray, "rows length"]
    index: Int[np.ndarray, " rows"]

    @property
    def inputs(self) -> tuple[Int[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]:
        """The arguments of an encoder, `(ids, mask)`."""
        return self.ids, self.mask


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], length: int = 128
) -> list[Int[np.ndarray, " tokens"]]:
    """Token ids of texts, truncated to a length, special tokens included.

    Args:
        tokenizer: a tokenizer; it is not changed.
        texts: any number of texts.
        length: the largest number of tokens of a text, special tokens included.

    Returns:
        One int32 array per text.
    """
    # truncation is a setting of the tokenizer, so it is set on a copy
    truncating = type(tokenizer).from_str(tokenizer.to_str())
    truncating.enable_truncation(length)
    truncating.no_padding()
    whole = [well_formed(text) for text in texts]
    return [np.array(encoding.ids, np.int32) for encoding in truncating.encode_batch(whole)]


def buckets(
    ids: Sequence[Int[np.ndarray, " tokens"]],
    *,
    tokens: int = TOKENS,
    longest: int | None = None,
    seed: int | None = None,
) -> list[Batch]:
    """Group texts of similar length into batches.

    Args:
        ids: the token ids of the texts, from `encode`.
        tokens: tokens of a batch, padding included: a batch of length n has `max(tokens // n, 1)`
            rows.
        longest: the encoder's maximum length; lengths are not rounded up beyond it.
        seed: shuffles the texts within a length and the order of the batches. By default batches
            are ordered by length, and texts as given.

    Returns:
        Batches that hold every text once. The last batch of a length is filled with padding rows.

    Raises:
        ValueError: for a text without tokens, which has no embedding.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.documents.batches import buckets
        >>> texts = [np.arange(1, 4), np.arange(1, 30), np.arange(1, 3)]
        >>> [(batch.ids.shape, batch.index.tolist()) for batch in buckets(texts, tokens=64)]
        [((4, 16), [0, 2, -1, -1]), ((2, 32), [1, -1])]
    """
    lengths = np.array([len(text) for text in ids], int)
    if not lengths.all():
        raise ValueError(
            f"text {int(np.argmin(lengths))} has no tokens: leave it out, or use a tokenizer "
            f"with special tokens"
        )
    rng = None if seed is None else np.random.default_rng(seed)
    order = np.arange(len(ids)) if rng is None else rng.permutation(len(ids))
    rounded = rounded_lengths(lengths, longest)
    batches = []
    for length in np.unique(rounded):
        members = order[rounded[order] == length]
        rows = max(tokens // int(length), 1)
        for start in range(0, len(members), rows):
            index = members[start : start + rows]
            batches.append(padded([ids[text] for text in index], index, rows, int(length)))
    return batches if rng is None else [batches[place] for place in rng.permutation(len(batches))]


def rounded_lengths(
    lengths: Int[np.ndarray, " texts"], longest: int | None
) -> Int[np.ndarray, " texts"]:
    """Lengths rounded up to 16, 24, 32, 48, ..., at most `longest`."""
    # steps of a half and a third in turn: at most a third of a row is padding
    steps = np.sort(SHORTEST * np.outer([2, 3], 2 ** np.arange(16)).ravel() // 2)
    rounded = steps[np.searchsorted(steps, lengths)]
    return rounded if longest is None else np.maximum(np.minimum(rounded, longest), lengths)


def padded(
    texts: Sequence[Int[np.ndarray, " tokens"]],
    index: Int[np.ndarray, " texts"],
    rows: int,
    length: int,
) -> Batch:
    """One batch of a given shape."""
    ids, text_of_row = np.zeros((rows, length), np.int32), np.full(rows, -1)
    lengths = np.zeros(rows, int)
    for row, text in enumerate(texts):
        ids[row, : len(text)], lengths[row] = text, len(text)
    text_of_row[: len(index)] = index
    return Batch(ids, np.arange(length) < lengths[:, None], text_of_row)


@dataclasses.dataclass(frozen=True)
class States:
    """Hidden states of the tokens of many texts, concatenated; in memory or in a file.

    Attributes:
        values: the states, one row per token.
        starts: the first row of each text, and the number of rows.
    """

    values: Float16[np.ndarray, "tokens d"]
    starts: Int[np.ndarray, " texts+1"]

    def of(self, batch: Batch) -> Float16[np.ndarray, "rows length d"]:
        """The states of a batch, zero at padding."""
        states = np.zeros((*batch.ids.shape, self.values.shape[-1]), np.float16)
        for row in np.flatnonzero(batch.index >= 0):
            start, stop = map(int, self.starts[batch.index[row] :][:2])
            states[row, : stop - start] = self._rows(start, stop)
        return states

    def _rows(self, start: int, stop: int) -> Float16[np.ndarray, "tokens d"]:
        values = self.values
        if not isinstance(values, np.memmap) or values.filename is None:
            return values[start:stop]
        # read, not mapped: mapped pages count as memory of the process, in the end the whole file
        width, size = values.shape[-1], values.dtype.itemsize
        offset = values.offset + start * width * size
        return np.fromfile(
            values.filename, values.dtype, (stop - start) * width, offset=offset
        ).reshape(-1, width)


def hidden_states(
    apply: Callable[..., jax.Array],
    params: PyTree,
    ids: Sequence[Int[np.ndarray, " tokens"]],
    file: str | os.PathLike[str] | None = None,
    *,
    tokens: int = TOKENS,
    longest: int | None = None,
    progress: bool = True,
    description: str = "hidden states",
) -> States:
    """The hidden states of texts, from an encoder without pooling.

    Args:
        apply: `apply(params, ids, mask) -> (rows, length, d)`.
        params: the encoder's parameters, dense or compact.
        ids: the token ids of the texts, from `encode`.
        file: a .npy file for the states, written under another name until it is complete. An
            existing file is read instead of computed. By default the states stay in memory.
        tokens: tokens of a batch, as for `buckets`.
        longest: the encoder's maximum length, as for `buckets`.
        progress: show a progress bar.
        description: the label of the bar.

    Returns:
        The states in float16.

    Raises:
        ValueError: when there are no texts.
    """
    starts = np.concatenate([[0], np.cumsum([len(text) for text in ids])])
    path = None if file is None else Path(file)
    if path is not None and path.exists():
        return States(np.load(path, mmap_mode="r"), starts)
    draft = None if path is None else path.with_name(f".{path.name}.draft")
    run, values = jax.jit(apply), None
    for batch in progress_over(buckets(ids, tokens=tokens, longest=longest), description, progress):
        states = np.asarray(run(params, *batch.inputs)).astype(np.float16)
        if values is None:
            values = empty_states((int(starts[-1]), states.shape[-1]), draft)
        for row in np.flatnonzero(batch.index >= 0):
            start, stop = map(int, starts[batch.index[row] :][:2])
            values[start:stop] = states[row, : stop - start]
    if values is None:
        raise ValueError("hidden_states: there are no texts")
    if isinstance(values, np.memmap) and path is not None and draft is not None:
        values.flush()
        os.replace(draft, path)
        values = np.load(path, mmap_mode="r")
    return States(values, starts)


def empty_states(shape: tuple[int, int], file: Path | None) -> np.ndarray:
    """An uninitialized float16 array, mapped to a .npy file where one is named."""
    if file is None:
        return np.empty(shape, np.float16)
    return np.lib.format.open_memmap(file, "w+", np.float16, shape)


def progress_over(batches: list[Batch], description: str, progress: bool) -> tqdm[Batch]:
    """Batches behind a progress bar."""
    return tqdm(batches, desc=description, leave=False, disable=not progress)


def embed(
    apply: Callable[..., jax.Array],
    params: PyTree,
    ids: Sequence[Int[np.ndarray, " tokens"]],
    *,
    tokens: int = TOKENS,
    longest: int | None = None,
    progress: bool = True,
    description: str = "embed",
) -> Float[np.ndarray, "texts d"]:
    """The embeddings of texts, from an encoder compiled once per batch shape.

    Args:
        apply: `apply(params, ids, mask) -> (rows, d)`, of a network or a module.
        params: its parameters, dense or compact as `apply` takes them.
        ids: the token ids of the texts, from `encode`.
        tokens: tokens of a batch, as for `buckets`.
        longest: the encoder's maximum length, as for `buckets`.
        progress: show a progress bar.
        description: the label of the bar.

    Returns:
        Embeddings in float32, in the order of the texts.

    Raises:
        ValueError: when there are no texts.
    """
    run, embeddings = jax.jit(apply), None
    for batch in progress_over(buckets(ids, tokens=tokens, longest=longest), description, progress):
        values = np.asarray(run(params, *batch.inputs), np.float32)
        if embeddings is None:
            embeddings = np.empty((len(ids), values.shape[-1]), np.float32)
        real = batch.index >= 0
        embeddings[batch.index[real]] = values[real]
    if embeddings is None:
        raise ValueError("embed: there are no texts")
    return embeddings
