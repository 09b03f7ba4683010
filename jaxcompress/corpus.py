"""A pretrained BERT made small for one collection of documents, without labels and without questions.

Time and numbers are cut by different means. The words that the documents need stay; layers that matter least are left out, and
hidden axes are cut by what the embeddings feel of them: that makes it fast. What is left learns from the large encoder's hidden
states and embeddings of the documents. Then runs of all matrices are clustered on one budget, which makes it small, and the runs
learn on. It is judged on passages that it did not learn from. What is expensive is kept beside the result until that is whole, so
that an interrupted run goes on.
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
from jaxcompress.networks.moments import Moments
from jaxcompress.text.batches import Batch, States, buckets, hidden_states
from jaxcompress.text.documents import Document, passages
from jaxcompress.text.retrieval import fidelity
from jaxcompress.text.samples import Texts, split
from jaxcompress.text.words import restrict_tokenizer, word_counts, words_to_keep
from jaxcompress.training.distillation import batches_with, distillation_loss
from jaxcompress.training.fit import FitState, initial_state
from jaxcompress.training.stream import fit_stream
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.budget import budget
from jaxcompress.transforms.combinators import at
from jaxcompress.transforms.forms import clustered
from jaxcompress.transforms.rotation import RotateAndPrune, rotate_and_prune
from jaxcompress.transforms.select_rows import select_rows

CALIBRATION = 20_000
"""Tokens that calibrate."""
TRIAL = 6_000
"""Tokens by which layers are told apart."""
LEARNED = 2_000_000
"""The most tokens that are learned from: their hidden states are kept in a file."""
STEP = 1_024
"""Tokens of a step of learning."""

RATE = 4e-4
"""The highest learning rate of layers that were cut; four times as much undoes what the cut had kept."""
FINE = 1 / 4
"""The rate of clustered runs, in units of that, and the share of the minutes that they learn."""

BANK = 4_096
"""The most passages that similarities are learned against."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an encoder is made small.

    Attributes:
        keep: the fraction of all numbers to keep, the table of words included.
        minutes: of learning from the large encoder.
        work: the fraction of the layers' multiplications to keep; by default 0.4, and all where more than a third of the numbers
            is kept.
        rate: the highest learning rate of Adam's cycle; a quarter of it for clustered runs.
        layers: how many stay; by default all, and two thirds where less than two thirds of the work is kept.
        reserve: word pieces that stay beyond those of the documents.
        seed: of everything random.
    """

    keep: float = 1 / 4
    minutes: float = 10.0
    work: float | None = None
    rate: float = RATE
    layers: int | None = None
    reserve: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.work is not None and not 0 < self.work <= 1:
            raise ValueError(f"work must be in (0, 1], the fraction of the layers' multiplications to keep; got {self.work!r}")

    @property
    def share_of_work(self) -> float:
        """The fraction of the layers' multiplications to keep, by default as `keep` says."""
        return (1.0 if self.keep > 1 / 3 else 0.4) if self.work is None else self.work


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
    return config.num_hidden_layers if settings.share_of_work > 2 / 3 else max(1, round(2 / 3 * config.num_hidden_layers))


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


def narrow(encoder: Encoder, numbers: float) -> RotateAndPrune | None:
    """What cuts the hidden axes until the layers' kernels have so many numbers; None where they have no more."""
    fixed = sum(float(stored_numbers(leaf)) for name, leaf in named_leaves(encoder.params) if not is_kernel(name, leaf))
    whole = float(stored_numbers(encoder.params))
    if fixed + numbers >= whole:
        return None
    # odd widths are slow: neurons stay in blocks of a 48th of them, widths of heads in quarters, 32 and 8 in a small BERT
    width = encoder.config.hidden_size // encoder.config.num_attention_heads
    blocks = {"*/up/*": max(encoder.config.intermediate_size // 48, 1), "*/attention/*/kernel:2": max(width // 4, 1)}
    inside = "layer_*/**/[!od]*/kernel:*"  # not that of `out` and `down`: before a linear layer it is the words' own
    return rotate_and_prune(encoder.net, budget((fixed + numbers) / whole), axes=inside, multiple=blocks)


def is_kernel(name: str, leaf: Any) -> bool:
    """Whether a leaf multiplies what flows through the layers."""
    return name.endswith("/kernel")


def is_matrix(name: str, leaf: Any) -> bool:
    """Whether a leaf is one of those that hold nearly all numbers."""
    return is_kernel(name, leaf) or name == "words/embedding"


def moments_of(encoder: Encoder, texts: Sequence[str], seed: int, *, progress: bool) -> Moments:
    """What flows through an encoder, and what its embeddings feel of it, by some of the texts."""
    batches = buckets(encoder.encode(some(encoder, texts, CALIBRATION, seed)), longest=encoder.config.max_position_embeddings)
    inputs = [batch.inputs for batch in batches]
    return encoder.net.calibrate(encoder.params, inputs, mask=lambda ids, mask: mask, sensitivity=True, progress=progress)


def some(encoder: Encoder, texts: Sequence[str], tokens: int, seed: int) -> list[str]:
    """As many texts as have so many tokens, at random."""
    return [texts[int(index)] for index in some_of(texts, encoder, tokens, seed)]


def some_of(texts: Sequence[str], encoder: Encoder, tokens: int, seed: int) -> np.ndarray:
    """The places of as many texts as have so many tokens, at random."""
    order = np.random.default_rng(seed).permutation(len(texts))
    total = np.cumsum([len(each) for each in encoder.encode([texts[int(index)] for index in order])])
    return order[total <= tokens]


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
    """The encoder with so many layers and a share of the work, cut by what its embeddings of some of the texts feel.

    Args:
        encoder, texts: what is cut, and by which texts.
        work: the fraction of the layers' numbers that stays.
        layers, linear: as for `fewer_layers`.
        seed: which texts are looked at.
        narrowing: from an encoder, and the numbers of its kernels, to a transform.
        progress: show progress bars.
    """
    numbers = work * kernel_numbers(encoder)
    often = np.bincount(np.concatenate(encoder.encode(texts)), minlength=encoder.config.vocab_size).astype(float)
    encoder = encoder.replace(params=centred(encoder.params, often))
    encoder = fewer_layers(encoder, some(encoder, texts, TRIAL, seed), layers, linear=linear, progress=progress)
    change = narrowing(encoder, numbers)
    if change is None:
        return encoder
    return encoder.replace(params=change(encoder.params, moments_of(encoder, texts, seed, progress=progress)))


def kernel_numbers(encoder: Encoder) -> float:
    """The numbers of the layers' kernels."""
    return sum(float(stored_numbers(leaf)) for name, leaf in named_leaves(encoder.params) if is_kernel(name, leaf))


def store(
    encoder: Encoder, texts: Sequence[str], numbers: float, *, seed: int, progress: bool, form: Callable[..., Any] = clustered
) -> Encoder:
    """The encoder in so many numbers: its matrices in a form, on one budget, by what its embeddings of some of the texts feel."""
    share = numbers / float(stored_numbers(encoder.params))
    if share >= 1:
        return encoder
    moments = moments_of(encoder, texts, seed, progress=progress)
    change = at(is_matrix, form(budget(share), axes=encoder.net.matrix_axes))
    return encoder.replace(params=change(encoder.params, moments))


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


def learn(
    student: Encoder, given: Lessons, place: Path, *, minutes: float, rate: float, seed: int, progress: bool, description: str
) -> FitState:
    """Learn from the large encoder, for some minutes; what is done is kept in files of a folder."""
    ids, starts = student.encode(given.texts), given.states.starts
    if [len(each) for each in ids] != np.diff(starts).tolist():
        raise ValueError("learn: the small tokenizer cuts the texts in another way than the large one")
    bank = given.embeddings[np.random.default_rng(seed).permutation(len(ids))[:BANK]]
    batches = buckets(ids, tokens=STEP, longest=student.config.max_position_embeddings, seed=seed)
    net = network(dataclasses.replace(student.config, pooling="none"))
    loss = distillation_loss(net, bank, pool=partial(pool, student.config))
    stream = batches_with(batches, given.embeddings, given.states)
    place.mkdir(exist_ok=True)
    steps_file, state_file = place / "steps.json", place / "state.safetensors"
    if not steps_file.exists():
        seconds = seconds_a_step(loss, student.params, batches, stream)
        steps_file.write_text(json.dumps(max(round(60 * minutes / seconds), 1)))
    steps = json.loads(steps_file.read_text())
    cycle = optax.cosine_onecycle_schedule(steps, rate, pct_start=0.05)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(cycle))
    state = load(state_file, like=initial_state(student.params, optimizer)) if state_file.exists() else None
    keep_state = lambda state: save(state_file, state)
    return fit_stream(
        loss, student.params, stream, optimizer=optimizer, steps=steps, seed=seed, state=state, save=keep_state,
        progress=progress, description=description,
    )  # fmt: skip


def taught(
    small: Encoder, given: Lessons | None, texts: Sequence[str], numbers: float, settings: Settings, place: Path, *,
    form: Callable[..., Any] = clustered, progress: bool,
) -> tuple[Encoder, np.ndarray]:  # fmt: skip
    """The encoder after it has learned, was stored in so many numbers, and its runs have learned on; and its losses.

    Args:
        small: what `shrink` left.
        given: what it learns; nothing, where there are no minutes.
        texts, numbers, form: as for `store`.
        settings: how long, and how fast.
        place: a folder for what is done.
        progress: show progress bars.
    """
    losses: list[np.ndarray] = []

    def learned(encoder: Encoder, part: str, share: float, rate: float) -> Encoder:
        assert given is not None
        state = learn(
            encoder, given, place / part, minutes=share * settings.minutes, rate=rate, seed=settings.seed, progress=progress,
            description=part,
        )  # fmt: skip
        losses.append(np.asarray(state.losses))
        return encoder.replace(params=state.params)

    cut, whole = settings.share_of_work < 1, float(stored_numbers(small.params)) <= numbers
    if given is not None and (cut or whole):
        small = learned(small, "layers", 1.0 if whole else 1 - FINE, settings.rate)
    if whole:
        return small, np.concatenate(losses or [np.zeros(0)])
    make = lambda: store(small, texts, numbers, seed=settings.seed, progress=progress, form=form).params
    small = small.replace(params=once(place / "stored.safetensors", make))
    if given is not None:
        small = learned(small, "runs", FINE if cut else 1.0, FINE * settings.rate)
    return small, np.concatenate(losses or [np.zeros(0)])


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
    # budgets that cannot be reached are refused before any long work
    total = budget(min(numbers / float(stored_numbers(few.params)), 1.0))
    clustered(total, axes=few.net.matrix_axes).plan(few.params, None, is_matrix)
    if change := narrow(few, settings.share_of_work * kernel_numbers(few)):
        change.plan(few.params)
    place = workplace(out, large, learned, settings)
    stages = tqdm(total=5, desc="stages", disable=not progress)

    cut = lambda: shrink(few, learned, settings.share_of_work, layers=layers, seed=settings.seed, progress=progress).params
    small = resized(few, once(place / "cut.safetensors", cut))
    stages.update()
    chosen = some_of(learned, large, LEARNED, settings.seed) if settings.minutes > 0 else np.zeros(0, int)
    given = lessons(large, [learned[index] for index in chosen], place / "states.npy", progress=progress) if len(chosen) else None
    known = once(place / "passages.safetensors", lambda: passages_known(large, texts, chosen, given, progress=progress))
    stages.update()
    small, losses = taught(small, given, learned, numbers, settings, place, progress=progress)
    stages.update()
    report, embeddings = judge(large, small, texts, known, losses, progress=progress)
    stages.update()
    write_encoder(out, small, texts.passages, embeddings, settings=dataclasses.asdict(settings))
    (out / "report.txt").write_text(f"{report}\n", encoding="utf-8")
    shutil.rmtree(place)
    stages.update()
    stages.close()
    return small, report


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
