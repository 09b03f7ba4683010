"""What each means brings to a MiniLM of a quarter of its numbers, beside the simplest others.

Before and after learning.

All rows have the words of the documents, the same texts (those of `corpus.py`), the same total of
numbers, and learn as long from the same hidden states; one thing differs from the first row, or
everything. Judged on the development half of the questions: share of MiniLM's own recall@1 and
reciprocal ranks, both sides embedded by the small encoder, and the fidelity of questions /
answers. "PCA of the output" cuts nothing but the embeddings, of MiniLM itself. The last lines are
A7: the linear maps of all layers at a low rank, 40 % of their numbers gone, by a plain SVD, by one
whitened by their inputs, and layer after layer (`jc.reconstruct`); the squared error of hidden
states of answers.

    python tests/benchmarks/ablation.py  # three minutes a row, ten more with its learning; A7 ten
    python tests/benchmarks/ablation.py --minutes 0      # the rows before learning

It needs what `corpus.py` needs. Finished rows stay in the results file (`--out`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpus as benchmark
import faq
import jax
import jax.numpy as jnp
import numpy as np
from cells import write
from tqdm.auto import tqdm

import jaxcompress as jc
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.cli import installed_model
from jaxcompress.documents import Settings, job
from jaxcompress.documents import pruning as cuts
from jaxcompress.documents.batches import buckets
from jaxcompress.documents.encoder import Encoder, read_encoder
from jaxcompress.documents.retrieval import compare, fidelity, ranks

KEEP = 1 / 4
TOTAL = KEEP * 22_713_216
"""Of MiniLM's numbers."""
TOKENS = 80_000
"""Tokens of documents that calibrate A7: four times the job's, since kernels are solved for."""
Change = Callable[[Any, Any], Any]
Narrowing = Callable[[Encoder, float], Change | None]
"""From an encoder and the numbers that its kernels may have to a transform."""


def with_words(encoder: Encoder, numbers: float) -> Change:
    """Hidden axes and the table of words on one budget of all numbers, nothing else clustered."""
    budget = jc.budget(min(TOTAL / float(jc.stored_numbers(encoder.params)), 1.0))
    return jc.together(
        jc.rotate_and_prune(encoder.net, budget), jc.at("words/embedding", jc.clustered(budget))
    )


def by_magnitude(encoder: Encoder, numbers: float) -> Change:
    """Hidden axes at equal keeps, by the norm of their weights, nothing folded."""

    def cut(keep):
        return jc.rotate_and_prune(
            encoder.net, keep, axes="layer_*/**/kernel:[12]", method="magnitude"
        )

    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        small = encoder.replace(params=cut(middle)(encoder.params))
        low, high = (middle, high) if cuts.kernel_numbers(small) <= numbers else (low, middle)
    return lambda params, moments: cut(low)(params)


def of_residual(encoder: Encoder, numbers: float) -> Change:
    """Three quarters of the residual width, selected before a linear layer restores it."""

    def change(params: Any, moments: Any) -> Any:
        width = next(
            axis.key
            for axis in encoder.net.axes
            if any(slot.leaf.startswith("words") for slot in axis.producers)
        )
        params, moments = jc.rotate_and_prune(encoder.net, 3 / 4, axes=width).apply(params, moments)
        rest = cuts.narrow(encoder.replace(params=params), numbers)
        return params if rest is None else rest(params, moments)

    return change


def with_way_back(encoder: Encoder) -> Encoder:
    """The encoder with a linear last layer that changes nothing.

    Before it the residual width is a hidden axis.
    """
    count, d = encoder.config.num_hidden_layers, encoder.config.hidden_size
    config = dataclasses.replace(
        encoder.config, num_hidden_layers=count + 1, linear_layers=(count,)
    )
    identity = {"kernel": jnp.eye(d), "bias": jnp.zeros(d)}
    return encoder.replace(config=config, params=encoder.params | {f"layer_{count}": identity})


def plain(encoder: Encoder, numbers: float) -> Change:
    """All matrices by the singular value decomposition of the weights alone, at equal keeps."""

    def change(params: Any, moments: Any) -> Any:
        fixed = sum(
            float(leaf.size)
            for name, leaf in named_leaves(params)
            if not cuts.is_matrix(name, leaf)
        )
        keep = (TOTAL - fixed) / (float(jc.stored_numbers(params)) - fixed)
        return jc.at(cuts.is_matrix, jc.factored(keep, matrix_axes=encoder.net.matrix_axes))(params)

    return change


def nothing(encoder: Encoder, numbers: float) -> None:
    """No narrowing."""


ROWS: dict[str, dict[str, Any]] = {
    "all of it": {},
    "clustered alone, no work saved": {"work": 1.0},
    "narrowed alone, with the words clustered": {"narrowing": with_words},
    "six layers, none left out": {"layers": 6},
    "three layers": {"layers": 3},
    "a linear map for each layer left out": {"linear": True},
    "three quarters of the residual width": {"narrowing": of_residual},
    "channels by magnitude, nothing folded": {"narrowing": by_magnitude},
    "layers left out, none narrowed": {"layers": 2, "narrowing": nothing},
    "hashed instead of clustered, no work saved": {"work": 1.0, "form": jc.hashed},
    "vocabularies of features, no work saved": {"work": 1.0, "form": jc.vocabulary},
    "low rank, whitened, no work asked": {"work": 1.0, "form": jc.factored},
    "low rank, plain SVD, no work asked": {"layers": 6, "narrowing": plain},
}


def asked(small: Encoder, large: Encoder) -> dict[str, Any]:
    """What the development half of the questions says of an encoder."""
    return judged([small.embed(texts, progress=False) for texts in faq_texts()], large)


def faq_texts() -> tuple[list[str], list[str]]:
    pairs = faq.pairs()
    return [pair.question for pair in pairs], [pair.answer for pair in pairs]


def judged(ours: list[np.ndarray], large: Encoder) -> dict[str, Any]:
    """Shares of MiniLM's own recall and reciprocal ranks, from embeddings of both sides."""
    texts = faq_texts()
    theirs = [
        benchmark.known(name, large, each)
        for name, each in zip(("questions", "answers"), texts, strict=True)
    ]
    index, right = faq.halves(faq.pairs())[0], np.arange(len(texts[0]))
    found = compare(ranks(*theirs, right)[index], ranks(*ours, right)[index])
    row = {
        name: np.round(getattr(found, name), 4).tolist()
        for name in ("recall_kept", "mrr_kept", "lost", "won")
    }
    same = ours[0].shape[1] == theirs[0].shape[1]
    return row | {
        "fidelity": [
            round(fidelity(a[index], b[index]), 4) for a, b in zip(theirs, ours, strict=True)
        ]
        if same
        else None
    }


def measure(
    row: dict[str, Any], minutes: float, large: Encoder, texts: list[str]
) -> dict[str, Any]:
    """One row, before and after learning."""
    settings = Settings(KEEP, minutes, work=row.get("work"), layers=row.get("layers"))
    layers = job.layers_to_keep(large.config, settings)
    few = cuts.trim_vocabulary(large, texts, settings.reserve)
    few = with_way_back(few) if row.get("narrowing") is of_residual else few
    options = {"linear": row.get("linear", False)} | (
        {"narrowing": row["narrowing"]} if "narrowing" in row else {}
    )
    small = cuts.shrink(
        few, texts, settings.share_of_work, layers=layers, seed=0, progress=True, **options
    )
    cut, form = cuts.kernel_numbers(small) < cuts.kernel_numbers(few), row.get("form", jc.clustered)
    found: dict[str, Any] = {}
    for name, given in {
        "before": None,
        "after": benchmark.lessons(large, texts)[0] if minutes else None,
    }.items():
        if name == "before" or given is not None:
            with tempfile.TemporaryDirectory() as place:
                ready, losses = job.train_and_store(
                    small,
                    given,
                    texts,
                    TOTAL,
                    settings,
                    Path(place),
                    cut=cut,
                    form=form,
                    progress=True,
                )
            found |= {
                name: asked(ready, large),
                "numbers": float(jc.stored_numbers(ready.params)),
                "steps": len(losses),
            }
    return found


def principal(large: Encoder, texts: list[str]) -> dict[str, Any]:
    """MiniLM's embeddings in their principal directions over the texts, a quarter of them."""
    seen = benchmark.lessons(large, texts)[0].embeddings
    size = round(KEEP * seen.shape[1])
    directions = np.linalg.eigh(seen.T @ seen)[1][:, -size:]
    ours = [
        benchmark.known(name, large, each) @ directions
        for name, each in zip(("questions", "answers"), faq_texts(), strict=True)
    ]
    ours = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in ours]
    return {"numbers": float(jc.stored_numbers(large.params)), "before": judged(ours, large)}


def whitening(large: Encoder, texts: list[str]) -> dict[str, float]:
    """A7: the relative squared error of answers' hidden states at the ranks of 0.6 of the numbers.

    By a plain SVD, whitened by the inputs in the original, and solved layer after layer for the
    inputs in the network that is cut.
    """
    hidden = large.replace(config=dataclasses.replace(large.config, pooling="none"))
    chosen = [texts[index] for index in cuts.sample_texts(hidden, texts, TOKENS, 0)]
    batches = buckets(hidden.encode(chosen), longest=benchmark.LENGTH)
    net = hidden.net
    moments = jc.calibrate(
        net,
        large.params,
        jc.Calibration([batch.inputs for batch in batches], mask=lambda ids, mask: mask),
    )
    shrink = jc.at(
        lambda name, leaf: name.endswith("/kernel"), jc.factored(0.6, matrix_axes=net.matrix_axes)
    )
    answers = buckets(hidden.encode(faq_texts()[1][:200]), longest=benchmark.LENGTH)
    run, errors = jax.jit(net), {}
    again = jc.reconstruct(
        net, jc.Calibration([batch.inputs for batch in batches], mask=lambda ids, mask: mask)
    )
    ways = {"plain": shrink(large.params), "whitened": shrink(large.params, moments)}
    ways["layer after layer"] = again(ways["whitened"], moments)
    for name, params in ways.items():
        error = total = 0.0
        for batch in answers:
            whole = np.asarray(run(large.params, *batch.inputs))[batch.mask]
            error += float(
                np.sum((np.asarray(run(params, *batch.inputs))[batch.mask] - whole) ** 2)
            )
            total += float(np.sum(whole**2))
        errors[name] = error / total
    return errors


def table(results: dict[str, Any]) -> str:
    """A line for each row."""
    lines = [
        (
            "| row | numbers | recall@1 / MRR kept, % | fidelity q / d | after learning | "
            "fidelity q / d |"
        ),
        "|---" * 6 + "|",
    ]

    def cells(found: dict[str, Any] | None) -> list[str]:
        if found is None:
            return ["", ""]
        kept = " / ".join(f"{100 * found[name][0]:.1f}" for name in ("recall_kept", "mrr_kept"))
        return [
            f"{kept} ({found['lost']} / {found['won']})",
            " / ".join(f"{each:.3f}" for each in found["fidelity"] or ()),
        ]

    for name, found in results.items():
        if name != "A7":
            cut = [
                name,
                f"{found['numbers'] / 1e6:.2f} M",
                *cells(found["before"]),
                *cells(found.get("after")),
            ]
            lines.append(f"| {' | '.join(cut)} |")
    found = results["A7"]
    ways = ", ".join(
        f"{name} {found[name]:.4f} ({found[name] / found['plain']:.3f}x)" for name in found
    )
    lines += ["", f"A7, squared error of hidden states: {ways}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=6, help="of learning (default 6)")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished rows are kept",
    )
    args = parser.parse_args()
    results: dict[str, Any] = {}
    if args.out.exists():
        results = {found.pop("row"): found for found in json.loads(args.out.read_text())}

    def keep():
        return write(args.out, [{"row": name} | found for name, found in results.items()])

    large = read_encoder(installed_model(), benchmark.LENGTH)
    texts = benchmark.learned_texts(large)
    others: dict[str, Callable[[], dict[str, Any]]] = {
        "PCA of the output": lambda: principal(large, texts),
        "A7": lambda: whitening(large, texts),
    }
    for name, run in tqdm(others.items(), desc="baselines"):
        if name not in results:
            results[name] = run()
            keep()
    for name in tqdm(args.rows, desc="rows"):
        if name not in results or (args.minutes and "after" not in results[name]):
            jax.clear_caches()
            results[name] = measure(ROWS[name], args.minutes, large, texts)
            keep()
    print(table(results))


if __name__ == "__main__":
    main()
