"""The report of a compressed encoder: numbers by part, fidelity, retrieval, FLOPs and time.

It is judged by passages that it did not learn from, and by a short text of each; the large encoder
is run beside it, in turns.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from jaxcompress.analysis.report import flops
from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.documents.encoder import Encoder
from jaxcompress.documents.retrieval import Comparison, compare, fidelity, ranks
from jaxcompress.documents.samples import Texts


@dataclasses.dataclass(frozen=True, repr=False)
class CorpusReport:
    """What became of an encoder; prints.

    Attributes:
        parts: stored numbers before and after, by part.
        fidelity: the mean cosine to the large encoder's embeddings, of passages and of short texts,
            both held out.
        retrieval: held-out short texts find their passage among all: the large encoder against the
            small one on both sides.
        one_side: the same with the small encoder for the short texts alone, the passages embedded
            by the large one.
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
            lines.append(
                f"  {name:22} {before:12,.0f} {after:12,.0f}  {after / before:.3f}"
                if before
                else ""
            )
        lines += [
            "",
            f"fidelity of held-out passages {self.fidelity[0]:.3f}, of short texts "
            f"{self.fidelity[1]:.3f}",
        ]
        for title, found in (
            ("short texts find their passage", self.retrieval),
            ("the same, passages by the large encoder", self.one_side),
        ):
            lines += ["", title, *(f"  {line}" for line in str(found).splitlines())]
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
                "loss while learning: "
                + " ".join(f"{loss:.3g}" for loss in self.losses[:: max(len(self.losses) // 6, 1)]),
            ]
        return "\n".join(lines)

    __repr__ = __str__


def judge(
    large: Encoder, small: Encoder, texts: Texts, known: np.ndarray, losses: Any, *, progress: bool
) -> tuple[CorpusReport, np.ndarray]:
    """The report and the small encoder's embeddings; `known` are the large encoder's."""
    ours = small.embed(
        [passage.text for passage in texts.passages], progress=progress, description="passages"
    )
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
    large: Encoder, small: Encoder, shape: tuple[int, int], runs: int = 20
) -> tuple[tuple[float, float], tuple[float, float]]:
    """FLOPs and milliseconds of a forward pass, medians of interleaved runs."""
    ids, mask = np.ones(shape, np.int32), np.ones(shape, bool)
    ready = [
        (jax.jit(each.net).lower(each.ready, ids, mask).compile(), each.ready)
        for each in (large, small)
    ]
    taken: list[list[float]] = [[], []]
    for _ in range(runs):
        for seconds, (run, params) in zip(taken, ready, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(params, ids, mask))
            seconds.append(time.perf_counter() - start)
    counted, medians = (
        [flops(run) for run, _ in ready],
        [1e3 * float(np.median(seconds)) for seconds in taken],
    )
    return (counted[0], counted[1]), (medians[0], medians[1])
