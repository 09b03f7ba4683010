"""Texts as batches of token ids, in buckets of like length, so that padding does not burn the processor.

Lengths are rounded up to a multiple of 16, and all batches of a length have the same number of rows: a few shapes, each compiled
once. A batch of `rows x length` tokens takes about the same time whatever its length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

MULTIPLE = 16
TOKENS = 4_096


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some texts, padded to one length; an encoder takes `ids` and `mask`.

    Attributes:
        ids: (rows, length) int32.
        mask: (rows, length), true where there is a token.
        index: (rows,) which texts they are; -1 for rows of padding at the end, all of whose tokens are masked.
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
    multiple: int = MULTIPLE,
    longest: int | None = None,
    seed: int | None = None,
) -> list[Batch]:
    """Texts in batches of like length.

    Args:
        ids: the token ids of each text, from `encode`.
        tokens: of a batch, padding included: a batch of texts of n tokens has `tokens // n` rows, one at least.
        multiple: lengths are rounded up to multiples of it.
        longest: what an encoder can take; no length is rounded up beyond it.
        seed: which texts of a length come together and the order of the batches, at random; by length and then as given by default.

    Returns:
        Every text once; what is left over of a length fills the rows of a batch whose other rows are padding.

    Raises:
        ValueError: for a text without tokens, which no encoder can pool.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.text.batches import buckets
        >>> texts = [np.arange(1, 4), np.arange(1, 30), np.arange(1, 3)]
        >>> [(batch.ids.shape, batch.index.tolist()) for batch in buckets(texts, tokens=64)]
        [((4, 16), [0, 2, -1, -1]), ((2, 32), [1, -1])]
    """
    lengths = np.array([len(each) for each in ids], int)
    if not lengths.all():
        raise ValueError(f"text {int(np.argmin(lengths))} has no tokens: leave it out, or use a tokenizer with special tokens")
    rng = None if seed is None else np.random.default_rng(seed)
    order = np.arange(len(ids)) if rng is None else rng.permutation(len(ids))
    rounded = -(-lengths // multiple) * multiple
    if longest is not None:
        rounded = np.maximum(np.minimum(rounded, longest), lengths)
    found = []
    for length in np.unique(rounded):
        mine = order[rounded[order] == length]
        rows = max(tokens // int(length), 1)
        for start in range(0, len(mine), rows):
            found.append(
                padded([ids[index] for index in mine[start : start + rows]], mine[start : start + rows], rows, int(length))
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
    for batch in tqdm(buckets(ids, tokens=tokens, longest=longest), desc=description, leave=False, disable=not progress):
        values = np.asarray(run(params, *batch.inputs), np.float32)
        found = np.empty((len(ids), values.shape[-1]), np.float32) if found is None else found
        real = batch.index >= 0
        found[batch.index[real]] = values[real]
    if found is None:
        raise ValueError("embed: there are no texts")
    return found
