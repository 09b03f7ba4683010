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
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jaxcompress.analysis.report import flops
from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checkpoint import load, save
from jaxcompress.encoder import Encoder, check_free, network, write_encoder
from jaxcompress.models.bert import BertConfig, pool, without_layers
from jaxcompress.text.batches import Batch, States, buckets, hidden_states
from jaxcompress.text.documents import Document, Passage, passages
from jaxcompress.text.retrieval import Comparison, compare, fidelity, ranks
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

HELD_OUT = 0.05
"""The share of the passages that judge."""

MOST_HELD_OUT = 500
CALIBRATION = 20_000
"""Tokens that calibrate."""
TRIAL = 6_000
"""Tokens by which layers are told apart."""
LEARNED = 2_000_000
"""The most tokens that are learned from: their hidden states are kept in a file."""
STEP = 1_024
"""Tokens of a step of learning."""

SHORT = (4, 16)
"""Words of a span that stands for a question."""

RATE = 1.5e-3
"""The highest learning rate where nearly nothing is kept."""

OPENERS = (
    "How do I", "How can I", "How does", "What is", "What are", "What does", "Why is", "Why does", "Where is", "When should I use",
    "Can I", "Is there a way to", "Which", "Who", "What is the difference between", "I get an error:",
)  # fmt: skip
"""How questions begin; with words of a text behind them they are no good questions, and the large encoder says what they mean."""

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


@dataclasses.dataclass(frozen=True)
class Texts:
    """What the documents give: passages to learn from and passages to be judged by, with short texts from each.

    Attributes:
        passages: all of them, in order; these are searched.
        learned, held_out: indices of passages.
        short: texts from each of the former, as short as questions.
        short_held_out: a span of each of the latter.
    """

    passages: list[Passage]
    learned: np.ndarray
    held_out: np.ndarray
    short: list[str]
    short_held_out: list[str]


def split(found: Sequence[Passage], seed: int) -> Texts:
    """Divide passages into those that are learned from and those that judge."""
    if len(found) < 20:
        raise ValueError(f"the documents give {len(found)} passages, and at least 20 are needed: give more documents")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(found))
    judges = min(max(round(HELD_OUT * len(found)), 10), MOST_HELD_OUT)
    held_out, learned = np.sort(order[:judges]), np.sort(order[judges:])
    short = [text for index in learned for text in short_texts(found[index].text, rng)]
    return Texts(list(found), learned, held_out, short, [span(found[index].text, rng) for index in held_out])


def short_texts(text: str, rng: np.random.Generator) -> tuple[str, ...]:
    """What stands for a question in a text: words that stand together, its first words, and words behind the beginning of one."""
    return span(text, rng), first_line(text), f"{rng.choice(OPENERS)} {span(text, rng)}?"


def span(text: str, rng: np.random.Generator) -> str:
    """Some words of a text that stand together."""
    words = text.split()
    count = int(rng.integers(*SHORT, endpoint=True))
    start = int(rng.integers(0, max(len(words) - count, 0), endpoint=True))
    return " ".join(words[start : start + count])


def first_line(text: str) -> str:
    """The first words of a text, which often say what it is about."""
    return " ".join(text.split("\n", 1)[0].split()[: SHORT[1]])


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


def fewer_layers(encoder: Encoder, texts: Sequence[str], count: int, *, progress: bool) -> Encoder:
    """The encoder with so many layers; one after another is left out, always the one that some texts' embeddings miss least."""
    if count == encoder.config.num_hidden_layers:
        return encoder
    known = encoder.embed(texts, progress=False)
    trials = sum(range(count + 1, encoder.config.num_hidden_layers + 1))
    with tqdm(total=trials, desc="layers", leave=False, disable=not progress) as bar:
        while encoder.config.num_hidden_layers > count:
            found = []
            for index in range(encoder.config.num_hidden_layers):
                config, params = without_layers(encoder.config, encoder.params, [index])
                small = encoder.replace(config=config, params=params)
                found.append((fidelity(known, small.embed(texts, progress=False)), small))
                bar.update()
            encoder = max(found, key=lambda pair: pair[0])[1]
    return encoder


def resized(encoder: Encoder, params: Any) -> Encoder:
    """The encoder with other parameters, which may have fewer layers."""
    layers = sum(name.startswith("layer_") for name in params)
    return encoder.replace(params=params, config=dataclasses.replace(encoder.config, num_hidden_layers=layers))


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
    return together(rotate_and_prune(encoder.net, total), at("words/embedding", clustered(total)))


def shrink(encoder: Encoder, texts: Sequence[str], numbers: float, *, layers: int, seed: int, progress: bool) -> Encoder:
    """The encoder in so many layers and numbers, cut by what its embeddings of some of the texts feel."""
    ids = encoder.encode(texts)
    order = np.random.default_rng(seed).permutation(len(ids))
    upto = lambda tokens: order[np.cumsum([len(ids[index]) for index in order]) <= tokens]
    often = np.bincount(np.concatenate(ids), minlength=encoder.config.vocab_size).astype(float)
    encoder = encoder.replace(params=centred(encoder.params, often))
    encoder = fewer_layers(encoder, [texts[int(index)] for index in upto(TRIAL)], layers, progress=progress)
    batches = buckets([ids[index] for index in upto(CALIBRATION)], longest=encoder.config.max_position_embeddings)
    net, params = encoder.net, encoder.params
    moments = net.calibrate(
        params, [batch.inputs for batch in batches], mask=lambda ids, mask: mask, sensitivity=True, progress=progress
    )
    return encoder.replace(params=cut(encoder, numbers)(params, moments))


def learn(
    large: Encoder,
    student: Encoder,
    texts: Sequence[str],
    settings: Settings,
    place: Path,
    *,
    progress: bool,
) -> FitState:
    """Learn from the large encoder's hidden states of texts, for some minutes; what is done is kept in files."""
    ids = large.encode(texts)
    if [len(each) for each in ids] != [len(each) for each in student.encode(texts)]:
        raise ValueError("learn: the small tokenizer cuts the texts in another way than the large one")
    pooling = partial(pool, large.config)
    hidden = partial(dataclasses.replace, pooling="none")
    longest = student.config.max_position_embeddings
    states = hidden_states(
        network(hidden(large.config)), large.params, ids, place / "states.npy", longest=longest, progress=progress
    )
    targets = pooled(pooling, states, ids, longest)
    bank = targets[np.random.default_rng(settings.seed).permutation(len(targets))[:BANK]]
    batches = buckets(student.encode(texts), tokens=STEP, longest=longest, seed=settings.seed)
    loss = distillation_loss(network(hidden(student.config)), bank, pool=pooling)
    stream = batches_with(batches, targets, states)
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


# --- the report -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, repr=False)
class CorpusReport:
    """What became of an encoder; prints.

    Attributes:
        parts: stored numbers before and after, by part.
        fidelity: the mean cosine to the large encoder's embeddings, of passages and of short texts, both held out.
        retrieval: held-out short texts find their passage among all: the large encoder against the small one on both sides.
        one_side: the same with the small encoder for the short texts alone, the passages embedded by the large one.
        flops: of one short text and of a batch of passages, before and after.
        milliseconds: the same, medians.
        losses: of learning, averaged over twentieths of the run.
    """

    parts: dict[str, tuple[float, float]]
    fidelity: tuple[float, float]
    retrieval: Comparison
    one_side: Comparison
    flops: dict[str, tuple[float, float]]
    milliseconds: dict[str, tuple[float, float]]
    losses: tuple[float, ...]

    def __str__(self) -> str:
        total = tuple(map(sum, zip(*self.parts.values())))
        lines = [f"{'stored numbers':24} {'before':>12} {'after':>12}"]
        for name, (before, after) in {**self.parts, "total": total}.items():
            lines.append(f"  {name:22} {before:12,.0f} {after:12,.0f}  {after / before:.3f}" if before else "")
        lines += ["", f"fidelity of held-out passages {self.fidelity[0]:.3f}, of short texts {self.fidelity[1]:.3f}"]
        for title, found in (
            ("short texts find their passage", self.retrieval),
            ("the same, passages by the large encoder", self.one_side),
        ):
            lines += ["", title, *(f"  {line}" for line in str(found).splitlines())]
        lines += ["", f"{'forward pass':24} {'FLOPs':>8} {'faster':>8}"]
        for name in self.flops:
            (before, after), (slow, fast) = self.flops[name], self.milliseconds[name]
            lines.append(f"  {name:22} {after / before:8.2f} {slow / fast:7.2f}x  ({slow:.1f} ms to {fast:.1f} ms)")
        if self.losses:
            lines += [
                "",
                "loss while learning: " + " ".join(f"{loss:.3g}" for loss in self.losses[:: max(len(self.losses) // 6, 1)]),
            ]
        return "\n".join(lines)

    __repr__ = __str__


def judge(
    large: Encoder, small: Encoder, texts: Texts, known: np.ndarray, losses: Any, *, progress: bool
) -> tuple[CorpusReport, np.ndarray]:
    """The report, and the small encoder's embeddings of all passages; `known` are the large one's."""
    ours = small.embed([passage.text for passage in texts.passages], progress=progress, description="passages")
    questions = [encoder.embed(texts.short_held_out, progress=False) for encoder in (large, small)]
    before = ranks(questions[0], known, texts.held_out)
    costs: dict[str, tuple[float, float]] = {}
    times: dict[str, tuple[float, float]] = {}
    for name, shape in {"1 x 16 tokens": (1, 16), "32 x 128 tokens": (32, 128)}.items():
        if shape[1] <= large.config.max_position_embeddings:
            costs[name], times[name] = clock(large, small, shape)
    parts: dict[str, list[float]] = {}
    for place, encoder in enumerate((large, small)):
        for name, leaf in named_leaves(encoder.params):
            parts.setdefault(part_of(name), [0.0, 0.0])[place] += float(stored_numbers(leaf))
    means = [float(np.mean(part)) for part in np.array_split(np.asarray(losses), 20) if len(part)]
    return CorpusReport(
        {name: (old, new) for name, (old, new) in parts.items()},
        (fidelity(known[texts.held_out], ours[texts.held_out]), fidelity(*questions)),
        compare(before, ranks(questions[1], ours, texts.held_out)),
        compare(before, ranks(questions[1], known, texts.held_out)),
        costs,
        times,
        tuple(means),
    ), ours


def part_of(name: str) -> str:
    """Which part of a BERT a parameter belongs to."""
    for sign, part in {"words": "words", "attention/": "attention", "up/": "neurons", "down/": "neurons"}.items():
        if sign in name:
            return part
    return "positions, norms"


def clock(
    large: Encoder, small: Encoder, shape: tuple[int, int], runs: int = 20
) -> tuple[tuple[float, float], tuple[float, float]]:
    """FLOPs and milliseconds of a forward pass, medians of interleaved runs."""
    ids, mask = np.ones(shape, np.int32), np.ones(shape, bool)
    ready = [(jax.jit(each.net).lower(each.params, ids, mask).compile(), each.params) for each in (large, small)]
    taken: list[list[float]] = [[], []]
    for _ in range(runs):
        for seconds, (run, params) in zip(taken, ready, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(params, ids, mask))
            seconds.append(time.perf_counter() - start)
    counted, medians = [flops(run) for run, _ in ready], [1e3 * float(np.median(seconds)) for seconds in taken]
    return (counted[0], counted[1]), (medians[0], medians[1])


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

    known = once(place / "passages.safetensors", lambda: large.embed([p.text for p in texts.passages], progress=progress))
    stages.update()
    params = once(
        place / "cut.safetensors",
        lambda: shrink(few, learned, numbers, layers=layers, seed=settings.seed, progress=progress).params,
    )
    small = resized(few, params)
    stages.update()
    losses = np.zeros(0)
    if settings.minutes > 0:
        state = learn(large, small, some_of(learned, large, settings.seed), settings, place, progress=progress)
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


def some_of(texts: Sequence[str], encoder: Encoder, seed: int) -> list[str]:
    """As many texts as can be learned from, at random."""
    order = np.random.default_rng(seed).permutation(len(texts))
    total = np.cumsum([len(each) for each in encoder.encode([texts[int(index)] for index in order])])
    return [texts[int(index)] for index in order[total <= LEARNED]]


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
