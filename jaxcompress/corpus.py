"""A pretrained BERT made small for one collection of documents, without labels and without questions.

The words that the documents need stay, the layers that matter least are left out, hidden axes and the table of words are cut to one
budget by what the embeddings feel of them; the small encoder then learns from the large one's hidden states and embeddings of the
documents, and is judged on passages that it did not learn from. What is expensive is kept beside the result until that is whole,
so that an interrupted run goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checkpoint import load, save
from jaxcompress.corpus_report import CorpusReport, judge
from jaxcompress.encoder import Encoder, check_free, network, write_encoder
from jaxcompress.models.bert import BertConfig, bypass, layer_states, pool, without_layers
from jaxcompress.text.batches import Batch, States, buckets, hidden_states
from jaxcompress.text.documents import Document, passages
from jaxcompress.text.retrieval import fidelity
from jaxcompress.text.samples import Texts, split
from jaxcompress.text.words import restrict_tokenizer, word_counts, words_to_keep
from jaxcompress.training.distillation import batches_with, distillation_loss
from jaxcompress.training.fit import FitState, initial_state
from jaxcompress.training.stream import fit_stream
from jaxcompress.transforms.budget import budget
from jaxcompress.transforms.combinators import at
from jaxcompress.transforms.forms import clustered
from jaxcompress.transforms.rotation import rotate_and_prune
from jaxcompress.transforms.select_rows import select_rows
from jaxcompress.transforms.together import Together, together

CALIBRATION = 20_000
"""Tokens that calibrate."""
TRIAL = 6_000
"""Tokens by which layers are told apart."""
LEARNED = 2_000_000
"""The most tokens that are learned from: their hidden states are kept in a file."""
STEP = 1_024
"""Tokens of a step of learning."""

RATE = 7e-4
"""The highest learning rate where nearly nothing is kept."""

BANK = 4_096
"""The most passages that similarities are learned against."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an encoder is made small.

    Attributes:
        keep: the fraction of all numbers to keep, the table of words included.
        minutes: of learning from the large encoder.
        rate: the highest learning rate of Adam's cycle; by default the lower, the more is kept.
        layers: how many stay; by default all, and two thirds where less than a third of the numbers is kept.
        reserve: word pieces that stay beyond those of the documents.
        seed: of everything random.
    """

    keep: float = 1 / 4
    minutes: float = 10.0
    rate: float | None = None
    layers: int | None = None
    reserve: int = 500
    seed: int = 0


# --- the steps ------------------------------------------------------------------------------------------------------


def fewer_words(encoder: Encoder, texts: Iterable[str], settings: Settings) -> Encoder:
    """The encoder with the words that texts need, and the positions that it is asked for."""
    kept = words_to_keep(encoder.tokenizer, word_counts(encoder.tokenizer, texts), reserve=settings.reserve)
    kept = kept[kept < encoder.config.vocab_size]
    config = dataclasses.replace(encoder.config, vocab_size=len(kept), max_position_embeddings=encoder.length)
    params = select_rows("words/embedding", kept)(encoder.params)
    params = select_rows("positions/embedding", np.arange(encoder.length))(params)
    return Encoder(config, params, restrict_tokenizer(encoder.tokenizer, kept), encoder.length)


def layers_that_stay(config: BertConfig, settings: Settings) -> int:
    """How many layers a small encoder has."""
    if settings.layers is not None:
        if not 1 <= settings.layers <= config.num_hidden_layers:
            raise ValueError(f"layers must be between 1 and the model's {config.num_hidden_layers}, got {settings.layers}")
        return settings.layers
    return config.num_hidden_layers if settings.keep > 1 / 3 else max(1, round(2 / 3 * config.num_hidden_layers))


def fewer_layers(encoder: Encoder, texts: Sequence[str], count: int, *, linear: bool = False, progress: bool) -> Encoder:
    """The encoder with so many layers; one after another goes, always the one that some texts' embeddings miss least.

    Args:
        encoder, texts, progress: the encoder, the texts, whether to show a bar.
        count: how many layers stay.
        linear: put a linear map of each token in place of a layer, instead of nothing.
    """
    nonlinear = lambda config: sorted(set(range(config.num_hidden_layers)) - set(config.linear_layers))
    whole = len(nonlinear(encoder.config))
    if count == whole:
        return encoder
    known = encoder.embed(texts, progress=False)
    with tqdm(total=sum(range(count + 1, whole + 1)), desc="layers", leave=False, disable=not progress) as bar:
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
    found = [[np.asarray(each)[batch.mask] for each in run(encoder.params, *batch.inputs)] for batch in batches]
    return [np.concatenate(each) for each in zip(*found, strict=True)]


def resized(encoder: Encoder, params: Any) -> Encoder:
    """The encoder with other parameters, which may have fewer layers, or linear ones."""
    layers = [params[f"layer_{index}"] for index in range(sum(name.startswith("layer_") for name in params))]
    linear = tuple(index for index, layer in enumerate(layers) if "kernel" in layer)
    config = dataclasses.replace(encoder.config, num_hidden_layers=len(layers), linear_layers=linear)
    return encoder.replace(params=params, config=config)


def centred(params: Any, often: np.ndarray) -> Any:
    """The mean word, as often as each is read, moved to the positions: the sum of both stays, and the table is easier to factor."""
    words = np.asarray(params["words"]["embedding"], np.float64)
    mean = often @ words / often.sum()
    positions = np.asarray(params["positions"]["embedding"], np.float64) + mean
    return params | {
        "words": {"embedding": jnp.asarray(words - mean, jnp.float32)},
        "positions": {"embedding": jnp.asarray(positions, jnp.float32)},
    }


def cut(encoder: Encoder, numbers: float) -> Together:
    """What cuts an encoder to so many numbers: its hidden axes and its table of words on one budget."""
    total = budget(min(numbers / float(stored_numbers(encoder.params)), 1.0))
    # odd widths are slow: neurons stay in blocks of a 48th of them, widths of heads in quarters, 32 and 8 in a small BERT
    width = encoder.config.hidden_size // encoder.config.num_attention_heads
    blocks = {"*/up/*": max(encoder.config.intermediate_size // 48, 1), "*/attention/*/kernel:2": max(width // 4, 1)}
    inside = "layer_*/**/[!od]*/kernel:*"  # not that of `out` and `down`: before a linear layer it is the words' own
    return together(rotate_and_prune(encoder.net, total, axes=inside, multiple=blocks), at("words/embedding", clustered(total)))


def shrink(
    encoder: Encoder,
    texts: Sequence[str],
    numbers: float,
    *,
    layers: int,
    seed: int,
    progress: bool,
    linear: bool = False,
    cutting: Callable[[Encoder, float], Any] = cut,
) -> Encoder:
    """The encoder in so many layers and numbers, cut by what its embeddings of some of the texts feel.

    Args:
        encoder, texts, numbers: what is cut, by which texts, and to how much.
        layers, linear: as for `fewer_layers`.
        seed: which texts are looked at.
        cutting: from an encoder and the numbers to a transform.
        progress: show progress bars.
    """
    ids = encoder.encode(texts)
    order = np.random.default_rng(seed).permutation(len(ids))
    upto = lambda tokens: order[np.cumsum([len(ids[index]) for index in order]) <= tokens]
    often = np.bincount(np.concatenate(ids), minlength=encoder.config.vocab_size).astype(float)
    encoder = encoder.replace(params=centred(encoder.params, often))
    encoder = fewer_layers(encoder, [texts[int(index)] for index in upto(TRIAL)], layers, linear=linear, progress=progress)
    batches = buckets([ids[index] for index in upto(CALIBRATION)], longest=encoder.config.max_position_embeddings)
    net, params = encoder.net, encoder.params
    moments = net.calibrate(
        params, [batch.inputs for batch in batches], mask=lambda ids, mask: mask, sensitivity=True, progress=progress
    )
    return encoder.replace(params=cutting(encoder, numbers)(params, moments))


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What the large encoder says of the texts that are learned from.

    Attributes:
        texts: the texts.
        embeddings: (texts, d).
        states: their hidden states.
    """

    texts: list[str]
    embeddings: np.ndarray
    states: States


def lessons(large: Encoder, texts: Sequence[str], file: Path, *, progress: bool) -> Lessons:
    """The large encoder's hidden states of texts, kept in a file, and the embeddings that they give."""
    ids, longest = large.encode(texts), large.config.max_position_embeddings
    net = network(dataclasses.replace(large.config, pooling="none"))
    states = hidden_states(net, large.params, ids, file, longest=longest, progress=progress)
    return Lessons(list(texts), pooled(partial(pool, large.config), states, ids, longest), states)


def learn(student: Encoder, given: Lessons, settings: Settings, place: Path, *, progress: bool) -> FitState:
    """Learn from the large encoder, for some minutes; what is done is kept in files."""
    ids, starts = student.encode(given.texts), given.states.starts
    if [len(each) for each in ids] != np.diff(starts).tolist():
        raise ValueError("learn: the small tokenizer cuts the texts in another way than the large one")
    bank = given.embeddings[np.random.default_rng(settings.seed).permutation(len(ids))[:BANK]]
    batches = buckets(ids, tokens=STEP, longest=student.config.max_position_embeddings, seed=settings.seed)
    net = network(dataclasses.replace(student.config, pooling="none"))
    loss = distillation_loss(net, bank, pool=partial(pool, student.config))
    stream = batches_with(batches, given.embeddings, given.states)
    steps_file, state_file = place / "steps.json", place / "state.safetensors"
    if not steps_file.exists():
        seconds = seconds_a_step(loss, student.params, batches, stream)
        steps_file.write_text(json.dumps(max(round(60 * settings.minutes / seconds), 1)))
    steps = json.loads(steps_file.read_text())
    rate = settings.rate or RATE * (1 - settings.keep) ** 2
    cycle = optax.cosine_onecycle_schedule(steps, rate, pct_start=0.05)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(cycle))
    state = load(state_file, like=initial_state(student.params, optimizer)) if state_file.exists() else None
    keep_state = lambda state: save(state_file, state)
    return fit_stream(
        loss, student.params, stream, optimizer=optimizer, steps=steps, seed=settings.seed, state=state, save=keep_state,
        progress=progress, description="learning",
    )  # fmt: skip


def pooled(pooling: Any, states: States, ids: Sequence[np.ndarray], longest: int) -> np.ndarray:
    """(texts, d): embeddings from hidden states."""
    found = np.zeros((len(ids), states.values.shape[-1]), np.float32)
    for batch in buckets(ids, longest=longest):
        real = batch.index >= 0
        found[batch.index[real]] = np.asarray(pooling(states.of(batch).astype(np.float32), batch.mask))[real]
    return found


def seconds_a_step(loss: Any, params: Any, batches: Sequence[Batch], stream: Any) -> float:
    """What a step takes on average, compiling left out: that of the most common shape, since all have about as many tokens."""
    shapes = [batch.ids.shape for batch in batches]
    common = max(set(shapes), key=shapes.count)
    batch = next(found for number in range(len(batches)) if (found := stream(number))[0].shape == common)
    run = jax.jit(jax.value_and_grad(loss))
    taken = []
    for _ in range(4):  # the first compiles
        start = time.perf_counter()
        jax.block_until_ready(run(params, batch, jax.random.key(0)))
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


# --- all of it ------------------------------------------------------------------------------------------------------


def compress_for(
    large: Encoder, documents: Sequence[Document], out: Path, settings: Settings, *, progress: bool = True
) -> tuple[Encoder, CorpusReport]:
    """Make an encoder small for documents, and write it with their passages.

    Args:
        large: the encoder.
        documents: what it is to be good at.
        out: the folder that is written; beside it `.NAME.work` keeps what an interrupted run has done.
        settings: how small, and how long to learn.
        progress: show progress bars.

    Returns:
        The small encoder, and a report that prints.

    Raises:
        ValueError: for too few documents, or a budget that cannot be reached.
        FileExistsError: for a folder with anything else in it.
    """
    check_free(out)
    layers = layers_that_stay(large.config, settings)
    texts = split(passages(documents, large.tokenizer, large.length), settings.seed)
    learned = [texts.passages[index].text for index in texts.learned] + texts.short
    numbers = settings.keep * float(stored_numbers(large.params))
    few = fewer_words(large, [*(passage.text for passage in texts.passages), *texts.short], settings)
    cut(few, numbers).plan(few.params)  # a budget that cannot be reached is refused before any long work
    place = workplace(out, large, learned, settings)
    stages = tqdm(total=5, desc="stages", disable=not progress)

    params = once(
        place / "cut.safetensors",
        lambda: shrink(few, learned, numbers, layers=layers, seed=settings.seed, progress=progress).params,
    )
    small = resized(few, params)
    stages.update()
    chosen = some_of(learned, large, settings.seed) if settings.minutes > 0 else np.zeros(0, int)
    given = lessons(large, [learned[index] for index in chosen], place / "states.npy", progress=progress) if len(chosen) else None
    known = once(place / "passages.safetensors", lambda: passages_known(large, texts, chosen, given, progress=progress))
    stages.update()
    losses = np.zeros(0)
    if given is not None:
        state = learn(small, given, settings, place, progress=progress)
        small, losses = small.replace(params=state.params), np.asarray(state.losses)
    stages.update()
    report, embeddings = judge(large, small, texts, known, losses, progress=progress)
    stages.update()
    write_encoder(out, small, texts.passages, embeddings, settings=dataclasses.asdict(settings))
    (out / "report.txt").write_text(f"{report}\n", encoding="utf-8")
    shutil.rmtree(place)
    stages.update()
    stages.close()
    return small, report


def some_of(texts: Sequence[str], encoder: Encoder, seed: int) -> np.ndarray:
    """Which texts are learned from, as many as can be, at random."""
    order = np.random.default_rng(seed).permutation(len(texts))
    total = np.cumsum([len(each) for each in encoder.encode([texts[int(index)] for index in order])])
    return order[total <= LEARNED]


def passages_known(large: Encoder, texts: Texts, chosen: np.ndarray, given: Lessons | None, *, progress: bool) -> np.ndarray:
    """(passages, d): the large encoder's embeddings of all passages; those that are learned from have theirs from the lessons."""
    found = np.zeros((len(texts.passages), large.config.hidden_size), np.float32)
    passage = chosen < len(texts.learned)  # short texts stand behind them
    learned = texts.learned[chosen[passage]]
    if given is not None:
        found[learned] = given.embeddings[passage]
    others = np.setdiff1d(np.arange(len(found)), learned)
    found[others] = large.embed([texts.passages[index].text for index in others], progress=progress, description="passages")
    return found


def once(path: Path, make: Any) -> Any:
    """What a file holds, or what is made and then kept in it."""
    if not path.exists():
        save(path, make())
    return load(path)


def workplace(out: Path, large: Encoder, texts: Sequence[str], settings: Settings) -> Path:
    """The folder of an unfinished run; one of another run, with other documents or settings, is emptied."""
    place = out.with_name(f".{out.name}.work")
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(settings), dataclasses.asdict(large.config), large.length]).encode())
    for text in texts:
        digest.update(text.encode())
    for _, leaf in named_leaves(large.params):
        digest.update(np.asarray(leaf).tobytes()[:4096])
    mark = place / "run"
    if not mark.exists() or mark.read_text() != digest.hexdigest():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        mark.write_text(digest.hexdigest())
    return place
