"""Evaluation of a compressed encoder: size by part, fidelity, retrieval, FLOPs and time.

Both encoders are evaluated on held-out passages and a short text from every one. Timings of the two
are interleaved.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np
from jaxtyping import ArrayLike, Float

from jaxcompress.analysis.report import flops
from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.documents.encoder import Encoder
from jaxcompress.documents.retrieval import Comparison, compare, fidelity, ranks
from jaxcompress.documents.samples import Texts


@dataclasses.dataclass(frozen=True, repr=False)
class CorpusReport:
    """A compressed encoder compared with the original; `print` shows the tables.

    Attributes:
        parts: stored numbers by part of the network, (before, after).
        fidelity: the mean cosine to the large encoder's embeddings on held-out data, for (passages,
            short texts).
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
    known: Float[np.ndarray, "passages d"],
    losses: ArrayLike,
    *,
    progress: bool,
) -> tuple[CorpusReport, Float[np.ndarray, "passages d"]]:
    """The report and the small encoder's embeddings, given the large encoder's `known` ones."""
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
    large: Encoder, small: Encoder, shape: tuple[int, int], runs: int = 20
) -> tuple[tuple[float, float], tuple[float, float]]:
    """FLOPs and milliseconds of a forward pass, medians of interleaved runs."""
    ids, mask = np.ones(shape, np.int32), np.ones(shape, bool)
    ready = [
        (jax.jit(encoder.net).lower(encoder.ready, ids, mask).compile(), encoder.ready)
        for encoder in (large, small)
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
