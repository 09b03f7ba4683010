"""The steps that make a BERT small for some texts: fewer words, fewer or narrower layers, runs.

Every step takes an encoder and gives one; none of them learns. Time and numbers are cut by
different means: layers and hidden axes set how much is multiplied, clustering how much is stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.documents.batches import buckets
from jaxcompress.documents.encoder import Encoder
from jaxcompress.documents.retrieval import fidelity
from jaxcompress.documents.words import restrict_tokenizer, word_counts, words_to_keep
from jaxcompress.models.bert import bypass, layer_states, without_layers
from jaxcompress.moments.calibration import Calibration, calibrate
from jaxcompress.moments.moments import Moments
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.budget import budget
from jaxcompress.transforms.clustered import clustered
from jaxcompress.transforms.combinators import at
from jaxcompress.transforms.rotation import RotateAndPrune, rotate_and_prune
from jaxcompress.transforms.select_rows import select_rows

CALIBRATION = 20_000
"""Tokens that calibrate."""
TRIAL = 6_000
"""Tokens by which layers are told apart."""


def is_kernel(name: str, leaf: Any) -> bool:
    """Whether a leaf multiplies what flows through the layers."""
    return name.endswith("/kernel")


def is_matrix(name: str, leaf: Any) -> bool:
    """Whether a leaf is one of those that hold nearly all numbers."""
    return is_kernel(name, leaf) or name == "words/embedding"


def kernel_numbers(encoder: Encoder) -> float:
    """The numbers of the layers' kernels."""
    return sum(
        float(stored_numbers(leaf))
        for name, leaf in named_leaves(encoder.params)
        if is_kernel(name, leaf)
    )


def fewer_words(encoder: Encoder, texts: Iterable[str], reserve: int) -> Encoder:
    """The encoder with the words that texts need, a reserve of others, and fewer positions."""
    kept = words_to_keep(encoder.tokenizer, word_counts(encoder.tokenizer, texts), reserve=reserve)
    kept = kept[kept < encoder.config.vocab_size]
    config = dataclasses.replace(
        encoder.config, vocab_size=len(kept), max_position_embeddings=encoder.length
    )
    params = select_rows("words/embedding", kept)(encoder.params)
    params = select_rows("positions/embedding", np.arange(encoder.length))(params)
    return Encoder(config, params, restrict_tokenizer(encoder.tokenizer, kept), encoder.length)


def fewer_layers(
    encoder: Encoder, texts: Sequence[str], count: int, *, linear: bool = False, progress: bool
) -> Encoder:
    """The encoder with fewer layers, removed one by one: the one that changes embeddings least.

    Args:
        encoder, texts, progress: the encoder, the texts, whether to show a bar.
        count: how many layers stay.
        linear: put a linear map of each token in place of a layer, instead of nothing.
    """

    def nonlinear(config):
        return sorted(set(range(config.num_hidden_layers)) - set(config.linear_layers))

    whole = len(nonlinear(encoder.config))
    if count == whole:
        return encoder
    known = encoder.embed(texts, progress=False)
    with tqdm(
        total=sum(range(count + 1, whole + 1)), desc="layers", leave=False, disable=not progress
    ) as bar:
        while len(left := nonlinear(encoder.config)) > count:
            states = token_states(encoder, texts) if linear else []
            found = []
            for index in left:
                config, params = (
                    bypass(encoder.config, encoder.params, index, *states[index : index + 2])
                    if linear
                    else without_layers(encoder.config, encoder.params, [index])
                )
                small = encoder.replace(config=config, params=params)
                found.append((fidelity(known, small.embed(texts, progress=False)), small))
                bar.update()
            encoder = max(found, key=lambda pair: pair[0])[1]
    return encoder


def token_states(encoder: Encoder, texts: Sequence[str]) -> list[np.ndarray]:
    """(tokens, d) what enters every layer, and what leaves the last, of all tokens of texts."""
    run = jax.jit(partial(layer_states, encoder.config))
    batches = buckets(encoder.encode(texts), longest=encoder.config.max_position_embeddings)
    found = [
        [np.asarray(each)[batch.mask] for each in run(encoder.params, *batch.inputs)]
        for batch in batches
    ]
    return [np.concatenate(each) for each in zip(*found, strict=True)]


def resized(encoder: Encoder, params: Any) -> Encoder:
    """The encoder with other parameters, which may have fewer layers, or linear ones."""
    layers = [
        params[f"layer_{index}"]
        for index in range(sum(name.startswith("layer_") for name in params))
    ]
    linear = tuple(index for index, layer in enumerate(layers) if "kernel" in layer)
    config = dataclasses.replace(
        encoder.config, num_hidden_layers=len(layers), linear_layers=linear
    )
    return encoder.replace(params=params, config=config)


def centred(params: Any, often: np.ndarray) -> Any:
    """Move the mean word to the positions: the sum stays, the word table is easier to factor."""
    words = np.asarray(params["words"]["embedding"], np.float64)
    mean = often @ words / often.sum()
    positions = np.asarray(params["positions"]["embedding"], np.float64) + mean
    return params | {
        "words": {"embedding": jnp.asarray(words - mean, jnp.float32)},
        "positions": {"embedding": jnp.asarray(positions, jnp.float32)},
    }


def narrow(encoder: Encoder, numbers: float) -> RotateAndPrune | None:
    """The pruning of the layers' kernels to a number of entries; None if they have no more."""
    whole, now = float(stored_numbers(encoder.params)), kernel_numbers(encoder)
    if numbers >= now:
        return None
    # odd widths are slow: neurons in blocks of a 48th, widths of heads in quarters (32 and 8)
    width = encoder.config.hidden_size // encoder.config.num_attention_heads
    blocks = {
        "*/up/*": max(encoder.config.intermediate_size // 48, 1),
        "*/attention/*/kernel:2": max(width // 4, 1),
    }
    inside = "layer_*/**/[!od]*/kernel:*"  # not that of `out` and `down`: before a linear layer it is the words' own
    return rotate_and_prune(
        encoder.net, budget((whole - now + numbers) / whole), axes=inside, multiple=blocks
    )


def some(encoder: Encoder, texts: Sequence[str], tokens: int, seed: int) -> np.ndarray:
    """The places of as many texts as have so many tokens, at random."""
    order = np.random.default_rng(seed).permutation(len(texts))
    total = np.cumsum(
        [len(each) for each in encoder.encode([texts[int(index)] for index in order])]
    )
    return order[total <= tokens]


def moments_of(encoder: Encoder, texts: Sequence[str], seed: int, *, progress: bool) -> Moments:
    """What flows through an encoder, and what its embeddings feel of it, by some of the texts."""
    chosen = [texts[int(index)] for index in some(encoder, texts, CALIBRATION, seed)]
    inputs = [
        batch.inputs
        for batch in buckets(encoder.encode(chosen), longest=encoder.config.max_position_embeddings)
    ]
    data = Calibration(inputs, mask=lambda ids, mask: mask)
    return calibrate(encoder.net, encoder.params, data, sensitivity=True, progress=progress)


def shrink(
    encoder: Encoder,
    texts: Sequence[str],
    work: float,
    *,
    layers: int,
    seed: int,
    progress: bool,
    linear: bool = False,
    narrowing: Callable[[Encoder, float], Transform | None] = narrow,
) -> Encoder:
    """The encoder with fewer layers and a share of the work, by the sensitivity of embeddings.

    Args:
        encoder, texts: what is cut, and by which texts.
        work: the fraction of the layers' numbers that stays.
        layers, linear: as for `fewer_layers`.
        seed: which texts are looked at.
        narrowing: from an encoder, and the numbers of its kernels, to a transform.
        progress: show progress bars.
    """
    numbers = work * kernel_numbers(encoder)
    often = np.bincount(
        np.concatenate(encoder.encode(texts)), minlength=encoder.config.vocab_size
    ).astype(float)
    encoder = encoder.replace(params=centred(encoder.params, often))
    trial = [texts[int(index)] for index in some(encoder, texts, TRIAL, seed)]
    encoder = fewer_layers(encoder, trial, layers, linear=linear, progress=progress)
    change = narrowing(encoder, numbers)
    if change is None:
        return encoder
    return encoder.replace(
        params=change(encoder.params, moments_of(encoder, texts, seed, progress=progress))
    )


def store(
    encoder: Encoder,
    texts: Sequence[str],
    numbers: float,
    *,
    seed: int,
    progress: bool,
    form: Callable[..., Any] = clustered,
) -> Encoder:
    """The encoder with its matrices in a form on one budget, by the sensitivity of embeddings."""
    share = numbers / float(stored_numbers(encoder.params))
    if share >= 1:
        return encoder
    moments = moments_of(encoder, texts, seed, progress=progress)
    change = at(is_matrix, form(budget(share), matrix_axes=encoder.net.matrix_axes))
    return encoder.replace(params=change(encoder.params, moments))
