"""Texts as batches of token ids, in buckets of similar length, so that little is padding.

Lengths are rounded up to 16, 24, 32, 48, 64, 96, ..., and all batches of a length have the same
number of rows: a few shapes, each compiled once. A batch of `rows x length` tokens takes about the
same time whatever its length.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

SHORTEST = 16
"""The least length of a batch."""
TOKENS = 4_096


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some texts, padded to one length; an encoder takes `ids` and `mask`.

    Attributes:
        ids: (rows, length) int32.
        mask: (rows, length), true where there is a token.
        index: (rows,) which texts they are; -1 for rows of padding at the end, all of whose tokens
            are masked.
    """

    ids: np.ndarray
    mask: np.ndarray
    index: np.ndarray

    @property
    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """What an encoder takes."""
        return self.ids, self.mask


def encode(tokenizer: Any, texts: Sequence[str], length: int = 128) -> list[np.ndarray]:
    """Token ids of texts, each cut to a length with its special tokens in place.

    Args:
        tokenizer: of the package tokenizers; it is not changed.
        texts: any number.
        length: the most tokens of a text, special ones included.
    """
    cutting = type(tokenizer).from_str(tokenizer.to_str())
    cutting.enable_truncation(length)
    cutting.no_padding()
    return [np.array(encoding.ids, np.int32) for encoding in cutting.encode_batch(list(texts))]


def buckets(
    ids: Sequence[np.ndarray],
    *,
    tokens: int = TOKENS,
    longest: int | None = None,
    seed: int | None = None,
) -> list[Batch]:
    """Texts in batches of like length.

    Args:
        ids: the token ids of each text, from `encode`.
        tokens: of a batch, padding included: a batch of texts of n tokens has `tokens // n` rows,
            one at least.
        longest: what an encoder can take; no length is rounded up beyond it.
        seed: which texts of a length come together and the order of the batches, at random; by
            length and then as given by default.

    Returns:
        Every text once; what is left over of a length fills the rows of a batch whose other rows
        are padding.

    Raises:
        ValueError: for a text without tokens, which no encoder can pool.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.documents.batches import buckets
        >>> texts = [np.arange(1, 4), np.arange(1, 30), np.arange(1, 3)]
        >>> [(batch.ids.shape, batch.index.tolist()) for batch in buckets(texts, tokens=64)]
        [((4, 16), [0, 2, -1, -1]), ((2, 32), [1, -1])]
    """
    lengths = np.array([len(each) for each in ids], int)
    if not lengths.all():
        raise ValueError(
            f"text {int(np.argmin(lengths))} has no tokens: leave it out, or use a tokenizer "
            f"with special tokens"
        )
    rng = None if seed is None else np.random.default_rng(seed)
    order = np.arange(len(ids)) if rng is None else rng.permutation(len(ids))
    steps = sorted(
        SHORTEST * share // 2 * 2**power for share in (2, 3) for power in range(16)
    )  # a third is padding at most
    rounded = np.array(steps)[np.searchsorted(steps, lengths)]
    if longest is not None:
        rounded = np.maximum(np.minimum(rounded, longest), lengths)
    found = []
    for length in np.unique(rounded):
        mine = order[rounded[order] == length]
        rows = max(tokens // int(length), 1)
        for start in range(0, len(mine), rows):
            found.append(
                padded(
                    [ids[index] for index in mine[start : start + rows]],
                    mine[start : start + rows],
                    rows,
                    int(length),
                )
            )
    return found if rng is None else [found[index] for index in rng.permutation(len(found))]


def padded(texts: Sequence[np.ndarray], index: np.ndarray, rows: int, length: int) -> Batch:
    """One batch of a given shape."""
    ids, which = np.zeros((rows, length), np.int32), np.full(rows, -1)
    lengths = np.zeros(rows, int)
    for row, text in enumerate(texts):
        ids[row, : len(text)], lengths[row] = text, len(text)
    which[: len(index)] = index
    return Batch(ids, np.arange(length) < lengths[:, None], which)


@dataclasses.dataclass(frozen=True)
class States:
    """Hidden states of the tokens of many texts, concatenated, in float16; on disk or in memory.

    Attributes:
        values: (tokens, d) float16.
        starts: (texts + 1,) where each text begins and the last one ends.
    """

    values: np.ndarray
    starts: np.ndarray

    def of(self, batch: Batch) -> np.ndarray:
        """(rows, length, d) float16: the states of a batch, zero where there is no token."""
        found = np.zeros((*batch.ids.shape, self.values.shape[-1]), np.float16)
        for row, text in enumerate(batch.index):
            if text >= 0:
                found[row, : self.starts[text + 1] - self.starts[text]] = self._rows(
                    *map(int, self.starts[text : text + 2])
                )
        return found

    def _rows(self, start: int, stop: int) -> np.ndarray:
        values = self.values
        if not isinstance(values, np.memmap) or values.filename is None:
            return values[start:stop]
        # read, not mapped: mapped pages count as memory of the process, in the end the whole file
        width, size = values.shape[-1], values.dtype.itemsize
        at = values.offset + start * width * size
        return np.fromfile(
            values.filename, values.dtype, (stop - start) * width, offset=at
        ).reshape(-1, width)


def hidden_states(
    apply: Callable[..., jax.Array],
    params: Any,
    ids: Sequence[np.ndarray],
    file: str | os.PathLike[str] | None = None,
    *,
    tokens: int = TOKENS,
    longest: int | None = None,
    progress: bool = True,
    description: str = "hidden states",
) -> States:
    """The hidden states of texts, by an encoder that pools nothing.

    Args:
        apply: `apply(params, ids, mask) -> (rows, length, d)`.
        params, ids, tokens, longest, progress, description: as for `embed`.
        file: a .npy file to keep them in, which appears when it is whole; one that is there is
            read. In memory by default.
    """
    starts = np.concatenate([[0], np.cumsum([len(each) for each in ids])])
    path = None if file is None else Path(file)
    if path is not None and path.exists():
        return States(np.load(path, mmap_mode="r"), starts)
    run, values, draft = (
        jax.jit(apply),
        None,
        None if path is None else path.with_name(f".{path.name}.draft"),
    )
    for batch in tqdm(
        buckets(ids, tokens=tokens, longest=longest),
        desc=description,
        leave=False,
        disable=not progress,
    ):
        found = np.asarray(run(params, *batch.inputs)).astype(np.float16)
        if values is None:
            shape = (int(starts[-1]), found.shape[-1])
            values = (
                np.empty(shape, np.float16)
                if draft is None
                else np.lib.format.open_memmap(draft, "w+", np.float16, shape)
            )
        for row, text in enumerate(batch.index):
            if text >= 0:
                values[starts[text] : starts[text + 1]] = found[
                    row, : starts[text + 1] - starts[text]
                ]
    if values is None:
        raise ValueError("hidden_states: there are no texts")
    if isinstance(values, np.memmap) and path is not None and draft is not None:
        values.flush()
        os.replace(draft, path)
        values = np.load(path, mmap_mode="r")
    return States(values, starts)


def embed(
    apply: Callable[..., jax.Array],
    params: Any,
    ids: Sequence[np.ndarray],
    *,
    tokens: int = TOKENS,
    longest: int | None = None,
    progress: bool = True,
    description: str = "embed",
) -> np.ndarray:
    """The embeddings of texts, by an encoder jitted once for each length.

    Args:
        apply: `apply(params, ids, mask) -> (rows, d)`, of a network or a module.
        params: its parameters, dense or compact as `apply` takes them.
        ids: the token ids of each text, from `encode`.
        tokens, longest: of a batch, as for `buckets`.
        progress: show a progress bar.
        description: the words in front of it.

    Returns:
        (texts, d) float32, in the order given.
    """
    run = jax.jit(apply)
    found: np.ndarray | None = None
    for batch in tqdm(
        buckets(ids, tokens=tokens, longest=longest),
        desc=description,
        leave=False,
        disable=not progress,
    ):
        values = np.asarray(run(params, *batch.inputs), np.float32)
        found = np.empty((len(ids), values.shape[-1]), np.float32) if found is None else found
        real = batch.index >= 0
        found[batch.index[real]] = values[real]
    if found is None:
        raise ValueError("embed: there are no texts")
    return found
