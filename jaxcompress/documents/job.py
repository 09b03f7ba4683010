"""Compression of a pretrained BERT for one collection of documents: the pipeline, with checkpoints.

1. The vocabulary is trimmed to the documents' word pieces.
2. The layers that matter least are removed, and hidden axes are pruned by the sensitivity of the
   embeddings to them. This reduces the time.
3. The remaining network is trained on the large encoder's hidden states and embeddings.
4. All matrices are stored as clustered runs on one budget, and trained further. This reduces the
   size.
5. The passages are embedded by the small encoder, and both encoders are compared on held-out ones.

The time is estimated at the start, from a few timed batches. Everything but training and the
embeddings of the passages is bounded (`jaxcompress.documents.estimate`). Intermediate results are
kept until the output is complete, so an interrupted run resumes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, PyTree

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checkpoint import load, save, write_atomically
from jaxcompress.checks import (
    check_fields,
    checked,
    instance,
    number,
    path,
    seeds,
    sequence_of,
    whole,
)
from jaxcompress.documents.batches import buckets
from jaxcompress.documents.encoder import Encoder, check_free, write_encoder
from jaxcompress.documents.estimate import (
    Effort,
    Estimate,
    Job,
    Stages,
    bounded,
    estimated,
    measure,
)
from jaxcompress.documents.learning import TeacherOutputs, distill, teacher_outputs
from jaxcompress.documents.pruning import (
    is_matrix,
    kernel_numbers,
    narrow,
    resized,
    sample_texts,
    shrink,
    store,
    trim_vocabulary,
)
from jaxcompress.documents.reading import Document, passages
from jaxcompress.documents.report import CorpusReport, judge
from jaxcompress.documents.samples import Texts, split
from jaxcompress.models.bert import BertConfig, without_layers
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.budget import budget
from jaxcompress.transforms.clustered import clustered

RATE = 4e-4
"""The peak learning rate after pruning; four times it destroys what pruning preserved."""
FINE = 1 / 4
"""For training clustered runs: the learning rate as a multiple of `RATE`, and the share of time."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of `compress_for`.

    Attributes:
        keep: the fraction of all stored numbers to keep, the embedding table included.
        minutes: training time on the large encoder's outputs; 0 for no training.
        work: the fraction of the layers' multiplications to keep, in (0, 1]. By default 0.4, or 1
            for a `keep` above 1/3.
        rate: the peak learning rate of Adam's one-cycle schedule; a quarter of it for clustered
            runs.
        layers: the number of layers to keep. By default all, or two thirds of them for a `work` of
            at most 2/3.
        reserve: number of word pieces to keep beyond those of the documents.
        seed: of all random choices.

    Example:
        >>> import jaxcompress as jc
        >>> settings = jc.documents.Settings(keep=1 / 8, minutes=5.0)
        >>> settings.share_of_work
        0.4
    """

    keep: float = 1 / 4
    minutes: float = 10.0
    work: float | None = None
    rate: float = RATE
    layers: int | None = None
    reserve: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            keep=number("(0, 1]", "the fraction of the numbers to keep"),
            minutes=number("[0, inf)", "the time for training"),
            work=number("(0, 1]", "the fraction of the layers' multiplications to keep"),
            rate=number("(0, inf)", "a learning rate"),
            layers=whole(),
            reserve=whole(0),
            seed=seeds,
        )

    @property
    def share_of_work(self) -> float:
        """The fraction of the layers' multiplications to keep, with the default resolved."""
        return (1.0 if self.keep > 1 / 3 else 0.4) if self.work is None else self.work


def layers_to_keep(config: BertConfig, settings: Settings) -> int:
    """The number of layers of the compressed encoder."""
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


@checked(
    large=instance(Encoder, "an encoder, of jc.documents.read_encoder"),
    documents=sequence_of(Document, "documents, of read_documents"),
    out=path,
    settings=instance(Settings, "jc.documents.Settings"),
)
def compress_for(
    large: Encoder,
    documents: Sequence[Document],
    out: Path,
    settings: Settings,
    *,
    progress: bool = True,
) -> tuple[Encoder, CorpusReport]:
    """Compress an encoder for a collection of documents, and write it with an index of passages.

    Args:
        large: the pretrained encoder, from `read_encoder`.
        documents: the documents, from `jaxcompress.documents.reading.read_documents`.
        out: the folder to write; `read_encoder` and `read_index` read it. Intermediate results stay
            in `.NAME.work` next to it until the output is complete.
        settings: size, training time and seed.
        progress: show progress bars.

    Returns:
        The compressed encoder, and a report that compares it with the large one.

    Raises:
        ValueError: for fewer than 20 passages, or a budget that cannot be reached.
        FileExistsError: for an output folder with other contents.
    """
    out = Path(out)
    check_free(out)
    layers = layers_to_keep(large.config, settings)
    texts = split(passages(documents, large.tokenizer, large.length), settings.seed)
    training = [texts.passages[index].text for index in texts.training] + texts.short
    numbers = settings.keep * float(stored_numbers(large.params))
    all_texts = [*(passage.text for passage in texts.passages), *texts.short]
    trimmed = trim_vocabulary(large, all_texts, settings.reserve)
    check_budgets(trimmed, numbers, layers, settings)
    folder = work_folder(out, large, training, settings)
    effort, estimate = planned(large, texts, training, layers, settings, folder)
    stage = Stages(estimate, progress=progress)
    with stage("pruning"):
        pruned = partial(_pruned, trimmed, training, layers, settings, effort, progress=progress)
        small = resized(trimmed, once(folder / "cut.safetensors", pruned))
    with stage("outputs"):
        outputs = training_outputs(large, training, settings, folder, effort, progress=progress)
        judged, known = judged_passages(
            large, texts, *outputs, settings, effort, folder, progress=progress
        )
    cut = kernel_numbers(small) < kernel_numbers(trimmed)
    with stage("learning"):
        learned = small, outputs[1], training, numbers, settings, folder
        small, losses = train_and_store(*learned, cut=cut, effort=effort, progress=progress)
    with stage("index"):
        passage_texts = all_texts[: len(texts.passages)]
        index = small.embed(passage_texts, progress=progress, description="index")
    with stage("judging"):
        report = judge(large, small, texts, judged, known, index, losses, progress=progress)
    write_encoder(out, small, texts.passages, index, settings=dataclasses.asdict(settings))
    _finish(out, report, folder)
    return small, report


def _pruned(
    trimmed: Encoder,
    texts: Sequence[str],
    layers: int,
    settings: Settings,
    effort: Effort,
    *,
    progress: bool,
) -> PyTree:
    """The parameters at fewer layers and narrower hidden axes."""
    options = {"layers": layers, "seed": settings.seed, "effort": effort, "progress": progress}
    return shrink(trimmed, texts, settings.share_of_work, **options).params


def _finish(out: Path, report: CorpusReport, folder: Path) -> None:
    """Write the report, and remove what only a resumed run would need."""
    (out / "report.txt").write_text(f"{report}\n", encoding="utf-8")
    shutil.rmtree(folder)


def planned(
    large: Encoder,
    texts: Texts,
    training: Sequence[str],
    layers: int,
    settings: Settings,
    folder: Path,
) -> tuple[Effort, Estimate]:
    """The bounds of the job, fixed by its first run, and its estimated time."""
    ids = large.encode([passage.text for passage in texts.passages])
    whole, longest = large.config.num_hidden_layers, large.config.max_position_embeddings
    job = Job(
        minutes=settings.minutes,
        candidates=sum(range(layers + 1, whole + 1)),
        layers=whole - layers,
        work=settings.share_of_work,
        training=sum(map(len, large.encode(training))),
        passages=len(ids),
        tokens=sum(map(len, ids)),
        shapes=len({batch.ids.shape for batch in buckets(ids, longest=longest)}),
    )
    speed = measure(large.net, large.params, ids, longest)
    file = folder / "effort.json"
    if not file.exists():
        # a resumed run must draw the samples of the first, whatever its own speed
        chosen = dataclasses.asdict(bounded(speed, job))
        write_atomically(file, json.dumps(chosen).encode())
    effort = Effort(**json.loads(file.read_text()))
    return effort, estimated(speed, job, effort)


def training_outputs(
    large: Encoder,
    texts: Sequence[str],
    settings: Settings,
    folder: Path,
    effort: Effort,
    *,
    progress: bool,
) -> tuple[Int[np.ndarray, " chosen"], TeacherOutputs | None]:
    """The indices of the texts to train on, and the large encoder's outputs for these."""
    if settings.minutes <= 0:
        return np.zeros(0, int), None
    chosen = sample_texts(large, texts, effort.teacher, settings.seed)
    if not len(chosen):
        return chosen, None
    sample = [texts[int(index)] for index in chosen]
    return chosen, teacher_outputs(large, sample, folder / "states.npy", progress=progress)


def judged_passages(
    large: Encoder,
    texts: Texts,
    chosen: Int[np.ndarray, " chosen"],
    teacher: TeacherOutputs | None,
    settings: Settings,
    effort: Effort,
    folder: Path,
    *,
    progress: bool,
) -> tuple[Int[np.ndarray, " judged"], Float[np.ndarray, "judged d"]]:
    """A random sample of passages with the held-out ones, and their embeddings by the large."""
    is_passage = chosen < len(texts.training)  # short texts follow the passages
    known = texts.training[chosen[is_passage]]
    rng = np.random.default_rng(settings.seed)
    # both parts are in random order; the embeddings of the first are there already
    others = [known, rng.permutation(np.setdiff1d(texts.training, known))]
    count = max(effort.judged - len(texts.held_out), 0)
    judged = np.sort(np.concatenate([texts.held_out, np.concatenate(others)[:count]]))

    def embeddings() -> Float[np.ndarray, "judged d"]:
        result = np.zeros((len(judged), large.config.embedding_size), np.float32)
        ours = np.isin(judged, known)
        if teacher is not None and ours.any():
            order = np.argsort(known)
            places = order[np.searchsorted(known[order], judged[ours])]
            result[ours] = teacher.embeddings[is_passage][places]
        result[~ours] = large.embed(
            [texts.passages[index].text for index in judged[~ours]],
            progress=progress,
            description="judged passages",
        )
        return result

    return judged, once(folder / "passages.safetensors", embeddings)


def train_and_store(
    small: Encoder,
    teacher: TeacherOutputs | None,
    texts: Sequence[str],
    numbers: float,
    settings: Settings,
    folder: Path,
    *,
    cut: bool,
    effort: Effort | None = None,
    form: Callable[..., Transform] = clustered,
    progress: bool,
) -> tuple[Encoder, Float[np.ndarray, " steps"]]:
    """The encoder trained, stored within a budget and trained again, with its losses.

    Args:
        small: the pruned encoder, from `shrink`.
        teacher: the large encoder's outputs; None for no training.
        texts: the training texts.
        numbers: the budget of stored numbers.
        settings: training time, learning rate and seed.
        folder: for checkpoints.
        cut: whether layers were removed or narrowed, so that training before storing helps.
        effort: the size of the sample of texts for storing.
        form: the compact form, as for `store`.
        progress: show progress bars.
    """
    losses = [np.zeros(0)]

    def trained(encoder: Encoder, part: str, share: float, rate: float) -> Encoder:
        if teacher is None:
            return encoder
        times = {"minutes": share * settings.minutes, "rate": rate, "seed": settings.seed}
        state = distill(
            encoder, teacher, folder / part, **times, progress=progress, description=part
        )
        losses.append(np.asarray(state.losses))
        return encoder.replace(params=state.params)

    within = float(stored_numbers(small.params)) <= numbers
    if cut or within:
        small = trained(small, "layers", 1.0 if within else 1 - FINE, settings.rate)
    if not within:
        options = {"seed": settings.seed, "effort": effort, "progress": progress, "form": form}

        def compact() -> PyTree:
            return store(small, texts, numbers, **options).params

        stored = small.replace(params=once(folder / "stored.safetensors", compact))
        small = trained(stored, "runs", FINE if cut else 1.0, FINE * settings.rate)
    return small, np.concatenate(losses)


def check_budgets(trimmed: Encoder, numbers: float, layers: int, settings: Settings) -> None:
    """Refuse budgets that cannot be reached, before any long computation."""
    # all layers have the same sizes, so that the first ones stand for those kept later
    config, params = without_layers(
        trimmed.config, trimmed.params, range(layers, trimmed.config.num_hidden_layers)
    )
    first = trimmed.replace(config=config, params=params)
    if change := narrow(first, settings.share_of_work * kernel_numbers(trimmed)):
        change.plan(first.params)
    total = budget(min(numbers / float(stored_numbers(first.params)), 1.0))
    clustered(total, matrix_axes=first.net.matrix_axes).plan(first.params, None, is_matrix)


def once(path: Path, make: Callable[[], PyTree]) -> PyTree:
    """The tree in a file, computed and saved on the first call."""
    if not path.exists():
        save(path, make())
    return load(path)


def work_folder(out: Path, large: Encoder, texts: Sequence[str], settings: Settings) -> Path:
    """The folder of intermediate results, emptied if texts, model or settings have changed."""
    folder = out.with_name(f".{out.name}.work")
    digest = hashlib.sha256(
        json.dumps(
            [dataclasses.asdict(settings), dataclasses.asdict(large.config), large.length]
        ).encode()
    )
    for text in texts:
        digest.update(text.encode())
    for _, leaf in named_leaves(large.params):
        # a page of every leaf identifies the model; hashing all of it would take seconds
        digest.update(np.asarray(leaf).tobytes()[:4096])
    mark = folder / "run"
    if not mark.exists() or mark.read_text() != digest.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_atomically(mark, digest.hexdigest().encode())
    return folder
