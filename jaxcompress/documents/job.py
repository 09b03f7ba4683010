"""A pretrained BERT made small for one collection of documents: all steps, and their checkpoints.

The words that the documents need stay; layers that matter least are left out, and hidden axes are
cut by what the embeddings feel of them: that makes it fast. What is left learns from the large
encoder's hidden states and embeddings of the documents. Then runs of all matrices are clustered on
one budget, which makes it small, and the runs learn on. It is judged on passages that it did not
learn from. What is expensive is kept beside the result until that is whole, so that an interrupted
run goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checkpoint import load, save
from jaxcompress.documents.encoder import Encoder, check_free, write_encoder
from jaxcompress.documents.learning import LEARNED, Lessons, learn, lessons
from jaxcompress.documents.pruning import (
    fewer_words,
    is_matrix,
    kernel_numbers,
    narrow,
    resized,
    shrink,
    some,
    store,
)
from jaxcompress.documents.reading import Document, passages
from jaxcompress.documents.report import CorpusReport, judge
from jaxcompress.documents.samples import Texts, split
from jaxcompress.models.bert import BertConfig, without_layers
from jaxcompress.transforms.budget import budget
from jaxcompress.transforms.clustered import clustered

RATE = 4e-4
"""The highest learning rate after a cut; four times as much destroys what the cut preserved."""
FINE = 1 / 4
"""The rate of clustered runs, in units of that, and the share of the minutes that they learn."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an encoder is made small.

    Attributes:
        keep: the fraction of all numbers to keep, the table of words included.
        minutes: of learning from the large encoder.
        work: the fraction of the layers' multiplications to keep; by default 0.4, and all where
            more than a third of the numbers is kept.
        rate: the highest learning rate of Adam's cycle; a quarter of it for clustered runs.
        layers: how many stay; by default all, and two thirds where less than two thirds of the work
            is kept.
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
            raise ValueError(
                f"work must be in (0, 1], the fraction of the layers' multiplications to keep; "
                f"got {self.work!r}"
            )

    @property
    def share_of_work(self) -> float:
        """The fraction of the layers' multiplications to keep, by default as `keep` says."""
        return (1.0 if self.keep > 1 / 3 else 0.4) if self.work is None else self.work


def layers_that_stay(config: BertConfig, settings: Settings) -> int:
    """How many layers a small encoder has."""
    if settings.layers is not None:
        if not 1 <= settings.layers <= config.num_hidden_layers:
            raise ValueError(
                f"layers must be between 1 and the model's {config.num_hidden_layers}, got "
                f"{settings.layers}"
            )
        return settings.layers
    return (
        config.num_hidden_layers
        if settings.share_of_work > 2 / 3
        else max(1, round(2 / 3 * config.num_hidden_layers))
    )


def compress_for(
    large: Encoder,
    documents: Sequence[Document],
    out: Path,
    settings: Settings,
    *,
    progress: bool = True,
) -> tuple[Encoder, CorpusReport]:
    """Make an encoder small for documents, and write it with their passages.

    Args:
        large: the encoder.
        documents: what it is to be good at.
        out: the folder that is written; beside it `.NAME.work` keeps what an interrupted run has
            done.
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
    few = fewer_words(
        large, [*(passage.text for passage in texts.passages), *texts.short], settings.reserve
    )
    check_budgets(few, numbers, layers, settings)
    place = workplace(out, large, learned, settings)
    stages = tqdm(total=5, desc="stages", disable=not progress)

    def cut():
        return shrink(
            few,
            learned,
            settings.share_of_work,
            layers=layers,
            seed=settings.seed,
            progress=progress,
        ).params

    small = resized(few, once(place / "cut.safetensors", cut))
    stages.update()
    chosen = (
        some(large, learned, LEARNED, settings.seed) if settings.minutes > 0 else np.zeros(0, int)
    )
    given = (
        lessons(
            large, [learned[index] for index in chosen], place / "states.npy", progress=progress
        )
        if len(chosen)
        else None
    )
    known = once(
        place / "passages.safetensors",
        lambda: passages_known(large, texts, chosen, given, progress=progress),
    )
    stages.update()
    small, losses = taught(
        small,
        given,
        learned,
        numbers,
        settings,
        place,
        cut=kernel_numbers(small) < kernel_numbers(few),
        progress=progress,
    )
    stages.update()
    report, embeddings = judge(large, small, texts, known, losses, progress=progress)
    stages.update()
    write_encoder(out, small, texts.passages, embeddings, settings=dataclasses.asdict(settings))
    (out / "report.txt").write_text(f"{report}\n", encoding="utf-8")
    shutil.rmtree(place)
    stages.update()
    stages.close()
    return small, report


def taught(
    small: Encoder,
    given: Lessons | None,
    texts: Sequence[str],
    numbers: float,
    settings: Settings,
    place: Path,
    *,
    cut: bool,
    form: Callable[..., Any] = clustered,
    progress: bool,
) -> tuple[Encoder, np.ndarray]:
    """The encoder trained, stored within a budget and trained on; and its losses.

    Args:
        small: what `shrink` left.
        given: what it learns; nothing, where there are no minutes.
        texts, numbers, form: as for `store`.
        settings: how long, and how fast.
        place: a folder for what is done.
        cut: whether layers were left out or narrowed, and so have something to learn before they
            are stored.
        progress: show progress bars.
    """
    losses = [np.zeros(0)]

    def learned(encoder: Encoder, part: str, share: float, rate: float) -> Encoder:
        if given is None:
            return encoder
        state = learn(
            encoder, given, place / part, minutes=share * settings.minutes, rate=rate, seed=settings.seed, progress=progress,
            description=part,
        )  # fmt: skip
        losses.append(np.asarray(state.losses))
        return encoder.replace(params=state.params)

    whole = float(stored_numbers(small.params)) <= numbers
    if cut or whole:
        small = learned(small, "layers", 1.0 if whole else 1 - FINE, settings.rate)
    if not whole:

        def make():
            return store(
                small, texts, numbers, seed=settings.seed, progress=progress, form=form
            ).params

        stored = small.replace(params=once(place / "stored.safetensors", make))
        small = learned(stored, "runs", FINE if cut else 1.0, FINE * settings.rate)
    return small, np.concatenate(losses)


def check_budgets(few: Encoder, numbers: float, layers: int, settings: Settings) -> None:
    """Refuse budgets that cannot be reached, before any long work.

    All layers have one size, so the first ones stand for those that will be kept.
    """
    config, params = without_layers(
        few.config, few.params, range(layers, few.config.num_hidden_layers)
    )
    first = few.replace(config=config, params=params)
    if change := narrow(first, settings.share_of_work * kernel_numbers(few)):
        change.plan(first.params)
    total = budget(min(numbers / float(stored_numbers(first.params)), 1.0))
    clustered(total, matrix_axes=first.net.matrix_axes).plan(first.params, None, is_matrix)


def passages_known(
    large: Encoder, texts: Texts, chosen: np.ndarray, given: Lessons | None, *, progress: bool
) -> np.ndarray:
    """(passages, d): the large encoder's embeddings of all passages, those for training reused."""
    found = np.zeros((len(texts.passages), large.config.hidden_size), np.float32)
    passage = chosen < len(texts.learned)  # short texts stand behind them
    learned = texts.learned[chosen[passage]]
    if given is not None:
        found[learned] = given.embeddings[passage]
    others = np.setdiff1d(np.arange(len(found)), learned)
    found[others] = large.embed(
        [texts.passages[index].text for index in others], progress=progress, description="passages"
    )
    return found


def once(path: Path, make: Any) -> Any:
    """What a file holds, or what is made and then kept in it."""
    if not path.exists():
        save(path, make())
    return load(path)


def workplace(out: Path, large: Encoder, texts: Sequence[str], settings: Settings) -> Path:
    """The folder of an unfinished run; emptied if its documents or settings were others."""
    place = out.with_name(f".{out.name}.work")
    digest = hashlib.sha256(
        json.dumps(
            [dataclasses.asdict(settings), dataclasses.asdict(large.config), large.length]
        ).encode()
    )
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
