"""Steps that compress a BERT for given texts, without training.

Every step maps an encoder to an encoder. Removing layers and pruning hidden axes reduces the
multiplications; clustering reduces the stored numbers. Costs a few passes over 20,000 tokens, and
removing layers one pass over 6,000 tokens for every candidate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.documents.batches import buckets
from jaxcompress.documents.encoder import Encoder
from jaxcompress.documents.estimate import CALIBRATION, Effort
from jaxcompress.documents.retrieval import fidelity
from jaxcompress.documents.vocabulary import piece_counts, pieces_to_keep, restrict_tokenizer
from jaxcompress.models.bert import BertConfig, bypass, layer_states, without_layers
from jaxcompress.moments.calibration import Calibration, calibrate
from jaxcompress.moments.moments import Moments
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.budget import budget
from jaxcompress.transforms.clustered import clustered
from jaxcompress.transforms.combinators import at
from jaxcompress.transforms.rotation import RotateAndPrune, rotate_and_prune
from jaxcompress.transforms.select_rows import select_rows


def is_kernel(name: str, leaf: PyTree) -> bool:
    """Whether a leaf is a kernel of the layers."""
    return name.startswith("layer_") and name.endswith("/kernel")


def is_matrix(name: str, leaf: PyTree) -> bool:
    """Whether a leaf is a kernel or the embedding table; these hold nearly all numbers."""
    return name.endswith("/kernel") or name == "words/embedding"


def kernel_numbers(encoder: Encoder) -> float:
    """The count of stored numbers in the layers' kernels."""
    return sum(
        float(stored_numbers(leaf))
        for name, leaf in named_leaves(encoder.params)
        if is_kernel(name, leaf)
    )


def trim_vocabulary(encoder: Encoder, texts: Iterable[str], reserve: int) -> Encoder:
    """The encoder with the word pieces of texts, a reserve of others, and `length` positions."""
    kept = pieces_to_keep(
        encoder.tokenizer, piece_counts(encoder.tokenizer, texts), reserve=reserve
    )
    config = dataclasses.replace(
        encoder.config, vocab_size=len(kept), max_position_embeddings=encoder.length
    )
    params = select_rows("words/embedding", kept)(encoder.params)
    params = select_rows("positions/embedding", np.arange(encoder.length))(params)
    return Encoder(config, params, restrict_tokenizer(encoder.tokenizer, kept), encoder.length)


def fewer_layers(
    encoder: Encoder, texts: Sequence[str], count: int, *, linear: bool = False, progress: bool
) -> Encoder:
    """Remove layers greedily, the one whose removal changes the embeddings least first.

    Args:
        encoder: the encoder.
        texts: on which embeddings are compared.
        count: number of layers to keep.
        linear: replace layers by linear maps of each token instead of removing them.
        progress: show a progress bar.
    """
    whole = len(nonlinear_layers(encoder.config))
    if count == whole:
        return encoder
    known = encoder.embed(texts, progress=False)
    with tqdm(
        total=sum(range(count + 1, whole + 1)), desc="layers", leave=False, disable=not progress
    ) as bar:
        while len(candidates := nonlinear_layers(encoder.config)) > count:
            states = token_states(encoder, texts) if linear else []
            trials = []
            for index in candidates:
                config, params = (
                    bypass(encoder.config, encoder.params, index, *states[index : index + 2])
                    if linear
                    else without_layers(encoder.config, encoder.params, [index])
                )
                small = encoder.replace(config=config, params=params)
                trials.append((fidelity(known, small.embed(texts, progress=False)), small))
                bar.update()
            encoder = max(trials, key=lambda trial: trial[0])[1]
    return encoder


def nonlinear_layers(config: BertConfig) -> list[int]:
    """The layers that are not linear maps."""
    return sorted(set(range(config.num_hidden_layers)) - set(config.linear_layers))


def token_states(encoder: Encoder, texts: Sequence[str]) -> list[Float[np.ndarray, "tokens d"]]:
    """The input of every layer and the output of the last, for all tokens of texts."""
    run = jax.jit(partial(layer_states, encoder.config))
    batches = buckets(encoder.encode(texts), longest=encoder.config.max_position_embeddings)
    by_batch = []
    for batch in batches:
        states = run(encoder.params, *batch.inputs)
        by_batch.append([np.asarray(state)[batch.mask] for state in states])
    return [np.concatenate(states) for states in zip(*by_batch, strict=True)]


def resized(encoder: Encoder, params: PyTree) -> Encoder:
    """The encoder with parameters of fewer or linear layers, and the configuration of these."""
    layers = [
        params[f"layer_{index}"]
        for index in range(sum(name.startswith("layer_") for name in params))
    ]
    linear = tuple(index for index, layer in enumerate(layers) if "kernel" in layer)
    config = dataclasses.replace(
        encoder.config, num_hidden_layers=len(layers), linear_layers=linear
    )
    return encoder.replace(params=params, config=config)


def centred(params: PyTree, counts: Float[np.ndarray, " vocabulary"]) -> PyTree:
    """Move the mean word embedding to the positions; their sum is unchanged."""
    words = np.asarray(params["words"]["embedding"], np.float64)
    # without its mean, the table has a faster decay of singular values
    mean = counts @ words / counts.sum()
    positions = np.asarray(params["positions"]["embedding"], np.float64) + mean
    return params | {
        "words": {"embedding": jnp.asarray(words - mean, jnp.float32)},
        "positions": {"embedding": jnp.asarray(positions, jnp.float32)},
    }


def narrow(encoder: Encoder, numbers: float) -> RotateAndPrune | None:
    """The pruning of the layers' kernels to a number of entries; None if they are within it."""
    whole, now = float(stored_numbers(encoder.params)), kernel_numbers(encoder)
    if numbers >= now:
        return None
    # odd widths run slowly: neurons in blocks of a 48th, head widths in quarters (32 and 8)
    width = encoder.config.hidden_size // encoder.config.num_attention_heads
    blocks = {
        "*/up/*": max(encoder.config.intermediate_size // 48, 1),
        "*/attention/*/kernel:2": max(width // 4, 1),
    }
    # axes inside the layers: those of `out` and `down` outputs belong to the residual stream
    inside = "layer_*/**/[!od]*/kernel:*"
    return rotate_and_prune(
        encoder.net, budget((whole - now + numbers) / whole), axes=inside, multiple=blocks
    )


def sample_texts(
    encoder: Encoder, texts: Sequence[str], tokens: int, seed: int
) -> Int[np.ndarray, " sample"]:
    """Indices of random texts with at most a number of tokens in total."""
    order = np.random.default_rng(seed).permutation(len(texts))
    total = np.cumsum([len(ids) for ids in encoder.encode([texts[int(index)] for index in order])])
    return order[total <= tokens]


def moments_of(
    encoder: Encoder,
    texts: Sequence[str],
    seed: int,
    *,
    tokens: int = CALIBRATION,
    progress: bool,
) -> Moments:
    """Moments of activations and the embeddings' sensitivity to them, on a sample of texts."""
    chosen = [texts[int(index)] for index in sample_texts(encoder, texts, tokens, seed)]
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
    effort: Effort | None = None,
    linear: bool = False,
    narrowing: Callable[[Encoder, float], Transform | None] = narrow,
) -> Encoder:
    """Remove layers and prune hidden axes, by the sensitivity of the embeddings.

    Args:
        encoder: the encoder.
        texts: on which the sensitivity is measured.
        work: the fraction of the numbers in the layers' kernels to keep.
        layers: number of layers to keep.
        seed: of the sample of texts.
        progress: show progress bars.
        effort: the sizes of the samples of texts.
        linear: replace layers by linear maps instead of removing them.
        narrowing: `narrowing(encoder, numbers)`, the pruning transform for a number of entries in
            the kernels.
    """
    effort, numbers = effort or Effort(), work * kernel_numbers(encoder)
    counts = np.bincount(
        np.concatenate(encoder.encode(texts)), minlength=encoder.config.vocab_size
    ).astype(float)
    encoder = encoder.replace(params=centred(encoder.params, counts))
    trial = [texts[int(index)] for index in sample_texts(encoder, texts, effort.trial, seed)]
    encoder = fewer_layers(encoder, trial, layers, linear=linear, progress=progress)
    change = narrowing(encoder, numbers)
    if change is None:
        return encoder
    moments = moments_of(encoder, texts, seed, tokens=effort.calibration, progress=progress)
    return encoder.replace(params=change(encoder.params, moments))


def store(
    encoder: Encoder,
    texts: Sequence[str],
    numbers: float,
    *,
    seed: int,
    progress: bool,
    effort: Effort | None = None,
    form: Callable[..., Transform] = clustered,
) -> Encoder:
    """The encoder with its matrices in a compact form on one budget of stored numbers."""
    share = numbers / float(stored_numbers(encoder.params))
    if share >= 1:
        return encoder
    tokens = (effort or Effort()).calibration
    moments = moments_of(encoder, texts, seed, tokens=tokens, progress=progress)
    change = at(is_matrix, form(budget(share), matrix_axes=encoder.net.matrix_axes))
    return encoder.replace(params=change(encoder.params, moments))
