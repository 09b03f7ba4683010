"""Evaluation of a compressed encoder: size by part, fidelity, retrieval, FLOPs and time.

Both encoders are evaluated on held-out passages and a short text from every one, which is searched
among a sample of the passages. Timings of the two are interleaved, and take a few seconds.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np
from jaxtyping import ArrayLike, Float, Int
from tqdm.auto import tqdm

from jaxcompress.analysis.report import flops
from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.documents.encoder import Encoder
from jaxcompress.documents.estimate import RUNS, TIMING
from jaxcompress.documents.retrieval import Comparison, compare, cosines, ranks
from jaxcompress.documents.samples import Texts


@dataclasses.dataclass(frozen=True, repr=False)
class CorpusReport:
    """A compressed encoder compared with the original; `print` shows the tables.

    Attributes:
        parts: stored numbers by part of the network, (before, after).
        fidelity: the mean cosine to the large encoder's embeddings on held-out data, for (passages,
            short texts).
        fidelity_error: half the width of the 95 % interval of each.
        judged: the number of passages that are searched, and of all passages.
        retrieval: retrieval of passages by held-out short texts, with the large encoder and with
            the small one.
        one_side: retrieval where the small encoder embeds the short texts only, and the large one
            the passages.
        flops: of a forward pass by shape of the batch, (before, after).
        milliseconds: median time of a forward pass by shape of the batch, (before, after).
        losses: training losses, averaged over twentieths of the run.
    """

    parts: dict[str, tuple[float, float]]
    fidelity: tuple[float, float]
    fidelity_error: tuple[float, float]
    judged: tuple[int, int]
    retrieval: Comparison
    one_side: Comparison
    flops: dict[str, tuple[float, float]]
    milliseconds: dict[str, tuple[float, float]]
    losses: tuple[float, ...]

    def __str__(self) -> str:
        total = tuple(map(sum, zip(*self.parts.values())))
        lines = [f"{'stored numbers':24} {'before':>12} {'after':>12}"]
        for name, (before, after) in {**self.parts, "total": total}.items():
            lines.append(
                f"  {name:22} {before:12,.0f} {after:12,.0f}  {after / before:.3f}"
                if before
                else ""
            )
        lines += [
            "",
            f"fidelity of held-out passages {self.fidelity[0]:.3f} ± {self.fidelity_error[0]:.3f}, "
            f"of short texts {self.fidelity[1]:.3f} ± {self.fidelity_error[1]:.3f} (95 %)",
            f"searched: {self.judged[0]:,} of {self.judged[1]:,} passages",
        ]
        for title, comparison in (
            ("short texts find their passage", self.retrieval),
            ("the same, passages by the large encoder", self.one_side),
        ):
            lines += ["", title, *(f"  {line}" for line in str(comparison).splitlines())]
        lines += ["", f"{'forward pass':24} {'FLOPs':>8} {'faster':>8}"]
        for name in self.flops:
            (before, after), (slow, fast) = self.flops[name], self.milliseconds[name]
            lines.append(
                f"  {name:22} {after / before:8.2f} {slow / fast:7.2f}x  ({slow:.1f} ms to "
                f"{fast:.1f} ms)"
            )
        if self.losses:
            lines += [
                "",
                "training loss: "
                + " ".join(f"{loss:.3g}" for loss in self.losses[:: max(len(self.losses) // 6, 1)]),
            ]
        return "\n".join(lines)

    __repr__ = __str__


def judge(
    large: Encoder,
    small: Encoder,
    texts: Texts,
    judged: Int[np.ndarray, " judged"],
    known: Float[np.ndarray, "judged d"],
    index: Float[np.ndarray, "passages d"],
    losses: ArrayLike,
    *,
    progress: bool,
) -> CorpusReport:
    """Compare two encoders on held-out passages, and on retrieval among a sample of passages.

    Args:
        large: the large encoder.
        small: the small encoder.
        texts: the passages and short texts.
        judged: sorted indices of the passages that are searched, the held-out ones among them.
        known: the large encoder's embeddings of these.
        index: the small encoder's embeddings of all passages.
        losses: of training.
        progress: show progress bars.
    """
    questions = [
        encoder.embed(texts.short_held_out, progress=progress, description="short texts")
        for encoder in (large, small)
    ]
    right, ours = np.searchsorted(judged, texts.held_out), index[judged]
    before = ranks(questions[0], known, right)
    costs: dict[str, tuple[float, float]] = {}
    times: dict[str, tuple[float, float]] = {}
    for name, shape in {"1 x 16 tokens": (1, 16), "32 x 128 tokens": (32, 128)}.items():
        if shape[1] <= large.config.max_position_embeddings:
            costs[name], times[name] = clock(large, small, shape, progress=progress)
    parts: dict[str, list[float]] = {}
    for place, encoder in enumerate((large, small)):
        for name, leaf in named_leaves(encoder.params):
            parts.setdefault(part_of(name), [0.0, 0.0])[place] += float(stored_numbers(leaf))
    means = [float(np.mean(part)) for part in np.array_split(np.asarray(losses), 20) if len(part)]
    close = cosines(known[right], ours[right]), cosines(*questions)
    return CorpusReport(
        {name: (old, new) for name, (old, new) in parts.items()},
        (float(close[0].mean()), float(close[1].mean())),
        (half_width(close[0]), half_width(close[1])),
        (len(judged), len(index)),
        compare(before, ranks(questions[1], ours, right)),
        compare(before, ranks(questions[1], known, right)),
        costs,
        times,
        tuple(means),
    )


def half_width(values: Float[np.ndarray, " n"]) -> float:
    """Half the width of the 95 % interval of a mean."""
    return float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))


def part_of(name: str) -> str:
    """The part of a BERT to which a parameter belongs."""
    for sign, part in {
        "words": "words",
        "attention/": "attention",
        "up/": "neurons",
        "down/": "neurons",
    }.items():
        if sign in name:
            return part
    return "positions, norms"


def clock(
    large: Encoder,
    small: Encoder,
    shape: tuple[int, int],
    runs: int = RUNS,
    *,
    seconds: float = TIMING,
    progress: bool = False,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """FLOPs and milliseconds of a forward pass, medians of interleaved runs.

    Args:
        large: the large encoder.
        small: the small encoder.
        shape: rows and length of the batch.
        runs: the number of runs.
        seconds: after which no further run is started.
        progress: show a progress bar.
    """
    ids, mask = np.ones(shape, np.int32), np.ones(shape, bool)
    ready = [
        (jax.jit(encoder.net).lower(encoder.ready, ids, mask).compile(), encoder.ready)
        for encoder in (large, small)
    ]
    taken: list[list[float]] = [[], []]
    begin, name = time.perf_counter(), "timing {} x {} tokens".format(*shape)
    for done in tqdm(range(runs), name, leave=False, disable=not progress):
        if done and time.perf_counter() - begin > seconds:
            break
        for times, (run, params) in zip(taken, ready, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(params, ids, mask))
            times.append(time.perf_counter() - start)
    counted, medians = (
        [flops(run) for run, _ in ready],
        [1e3 * float(np.median(times)) for times in taken],
    )
    return (counted[0], counted[1]), (medians[0], medians[1])
