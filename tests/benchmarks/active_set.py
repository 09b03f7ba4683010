"""Ranking compactions on a few percent of the examples.

The active set against random subsets and anchor points.

A perceptron 784-256-256-10 on Fashion-MNIST, 50,000 images train. Some 40 compactions of it, those
that lose 12 points at most on the 10,000 validation images, are ranked by their accuracy on the
10,000 test images, of which each may see 1 to 20 % (on the average of all; the original saw all of
them once, which is not counted). Every one was evaluated on everything before, so that a draw
looks up what it would have measured. What is reported: the share of the pairs at least one point
apart that are ranked right, ties half, and the mean absolute error in points, each with how many
times as many evaluations a random subset needs for it (looked for up to half of all); how often
bounds were wrong. The tolerance and everything else in the library was chosen on the validation
images, where `--validate` runs the same table.

    active                     `jc.classifiers.rank_compactions`, tolerance 1 active, unbiased
    the unbiased estimate of the same draws active, tolerance 1/4, 4   chosen badly active, rate of
    change     examples in the order of how far their margins moved between the last four tenths of
    training active, both               in the order of the margin over that movement random
    the accuracy on a random subset, the same for all compactions random, control variate    the
    original's accuracy, and what changes on a random subset random, expected answers   the
    regression of the library, from a random subset stratified                 the accuracy, with
    equal shares of 20 strata of the signed margin anchor points              medoids of clusters
    of the original's confidences, weighted by the clusters (arXiv:2309.08638, whose
                               clusters are of several models' confidences)

    python tests/benchmarks/active_set.py  # a minute to train each of 3 seeds, then half an hour
    python tests/benchmarks/active_set.py --validate      # on the validation images

Finished cells stay in the results file (`--out`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import fashion
import jax
import jax.numpy as jnp
import numpy as np
from cells import finished, read
from fashion import cache_folder
from hashednets import dense_params, logits, one_cycle, partly_hidden, to_unit
from scipy.cluster.vq import kmeans2, vq
from scipy.special import softmax

import jaxcompress as jc
from jaxcompress.classifiers.margins import is_right, signed_margins
from jaxcompress.classifiers.predicted_correctness import correctness_probabilities, logit_features

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
FINER = (
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.05,
    0.065,
    0.08,
    0.1,
    0.125,
    0.15,
    0.175,
    0.2,
    0.25,
    0.3,
    0.4,
    0.5,
)
"""Of a random subset, to find what it needs."""
SEEDS, DRAWS = 3, 10
SIZES = (784, 256, 256, 10)
STEPS, BATCH, RATE, HIDDEN = 5_000, 100, 2e-3, 0.1
VALIDATION = 10_000
MOST = 0.12
"""The most accuracy that a compaction may lose on the validation images to be in the list."""


def each_kernel(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    """A change of the hidden kernels, on the host."""

    def kernel(layer):
        return layer | {"kernel": jnp.asarray(change(np.asarray(layer["kernel"])))}

    return lambda params: params | {name: kernel(params[name]) for name in ("0", "1")}


def magnitude(keep: float) -> Callable[[Any], Any]:
    """Zeros in place of the smallest weights."""
    return each_kernel(
        lambda kernel: np.where(
            np.abs(kernel) >= np.quantile(np.abs(kernel), 1 - keep), kernel, 0.0
        )
    )


def levels(count: int) -> Callable[[Any], Any]:
    """So many evenly spread values, from the quantile 0.005 to 0.995."""

    def rounded(kernel: np.ndarray) -> np.ndarray:
        low, high = np.quantile(kernel, (0.005, 0.995))
        step = (high - low) / (count - 1)
        return (low + step * np.clip(np.round((kernel - low) / step), 0, count - 1)).astype(
            np.float32
        )

    return each_kernel(rounded)


def compactions(
    net: jc.networks.Network, moments: jc.moments.Moments
) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """All that are judged, by name."""

    def hidden(transform):
        return jc.at(("0/kernel", "1/kernel"), transform)

    for keep in (0.7, 0.5, 0.4, 0.3, 0.25, 0.2, 0.17, 0.15, 0.12, 0.1):
        yield (
            f"rotate_and_prune {keep:g}",
            lambda params, keep=keep: jc.rotate_and_prune(net, keep)(params, moments),
        )
    for keep in (0.9, 0.8, 0.7, 0.6, 0.5):
        yield f"channels by magnitude {keep:g}", jc.rotate_and_prune(net, keep, method="magnitude")
    for factor in (1.1, 1.25, 1.4, 1.5, 1.75, 2):
        yield (
            f"coarsen {factor:g}",
            lambda params, factor=factor: jc.coarsen(net, factor)(params, moments),
        )
    for keep in (0.5, 0.4, 0.3, 0.25, 0.2):
        yield f"weights by magnitude {keep:g}", magnitude(keep)
    for keep in (0.5, 0.3, 0.2, 0.15, 0.12, 0.1):
        yield f"factored {keep:g}", hidden(jc.factored(keep))
    for keep in (0.95, 0.9, 0.75, 0.6, 0.5):
        yield f"hashed {keep:g}", hidden(jc.hashed(keep))
    for keep in (0.5, 0.25, 0.125):
        yield f"clustered {keep:g}", hidden(jc.clustered(keep))
    for count in (4, 5, 6, 8, 12):
        yield f"{count} levels", levels(count)


def answers(seed: int) -> dict[str, np.ndarray]:
    """Logits of the network, its last checkpoints and every compaction, kept in the cache.

    On the validation and the test images.
    """
    place = cache_folder() / "active_set" / f"{seed}.npz"
    if place.exists():
        return dict(np.load(place))
    train, test = fashion.load()
    x, y = train.pixels[:-VALIDATION], train.labels[:-VALIDATION]
    judged = np.concatenate([train.pixels[-VALIDATION:], test.pixels])
    plain = jc.training.cross_entropy(lambda params, pixels: logits(params, pixels))

    def loss(params, batch, key):
        return plain(params, (partly_hidden(batch[0], HIDDEN, key), batch[1]), key)

    seen = []
    params = jc.fit(
        loss,
        dense_params(jax.random.key(seed), SIZES),
        (x, y),
        optimizer=one_cycle(RATE, STEPS),
        steps=STEPS,
        batch_size=BATCH,
        seed=seed,
        callback=lambda state: seen.append(state.params),
        callback_steps=STEPS // 10,
    ).params
    net = jc.trace(logits, params, jnp.zeros((2, 784)))
    moments = jc.calibrate(net, params, [to_unit(jnp.asarray(x[:5_000]))], progress=False)
    outputs = jax.jit(lambda params, pixels: logits(params, to_unit(pixels)))

    def on_all(params):
        return np.concatenate([np.asarray(outputs(params, part)) for part in np.split(judged, 10)])

    found = {"original": on_all(params)}
    found |= {f"checkpoint {index}": on_all(each) for index, each in enumerate(seen[-4:-1])}
    for name, change in compactions(net, moments):
        found[f"compaction {name}"] = on_all(
            jax.tree.map(jnp.asarray, jc.materialize(change(params)))
        )
    found["labels"] = np.concatenate([train.labels[-VALIDATION:], test.labels])
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez(place, **found)  # type: ignore[arg-type]
    return found


class Cached:
    """One seed's compactions on one split: what they would answer, and what is true."""

    def __init__(self, seed: int, split: str):
        found = answers(seed)
        part = slice(0, VALIDATION) if split == "validation" else slice(VALIDATION, None)

        def right(logits, part):
            return is_right(logits[part], found["labels"][part])

        floor = right(found["original"], slice(0, VALIDATION)).mean() - MOST
        kept = [
            name
            for name in found
            if name.startswith("compaction")
            and right(found[name], slice(0, VALIDATION)).mean() >= floor
        ]
        self.labels, self.original = found["labels"][part], found["original"][part]
        self.tables = {name.removeprefix("compaction "): found[name][part] for name in kept}
        self.right = np.stack([right(found[name], part) for name in kept])
        self.base, self.margins = (
            is_right(self.original, self.labels),
            signed_margins(self.original, self.labels),
        )
        self.truth = self.right.mean(1)
        steps = [
            *(found[name][part] for name in found if name.startswith("checkpoint")),
            self.original,
        ]
        self.change = np.abs(
            np.diff([signed_margins(each, self.labels) for each in steps], axis=0)
        ).max(0)

    def __len__(self) -> int:
        return len(self.labels)


cached = cache(Cached)
Bounds = list[tuple[tuple[float, float], tuple[float, float]]]
Column = Callable[[Cached, float, int], tuple[np.ndarray, Bounds]]


def active(
    data: Cached,
    share: float,
    seed: int,
    tolerance: float = 1.0,
    order: str = "margins",
    what: str = "accuracy",
) -> tuple[np.ndarray, Bounds]:
    """Through the library; an example is its number."""
    scores = {
        "margins": None,
        "change": -data.change,
        "both": np.abs(data.margins) / (data.change + np.median(data.change)),
    }
    given: dict[str, Any] = dict(score=scores[order], seed=seed, progress=False)
    chosen = jc.classifiers.active_set(
        lambda table, x: table[x],
        data.original,
        (np.arange(len(data)), data.labels),
        tolerance,
        **given,
    )
    lookups = {name: lambda x, table=table: table[x] for name, table in data.tables.items()}
    found = jc.classifiers.rank_compactions(lookups, chosen, evaluations=share, progress=False)
    if sum(row.evaluations for row in found.rows) > len(lookups) * np.ceil(share * len(data)):
        raise AssertionError("more evaluations than were allowed")
    rows = [found[name] for name in data.tables]
    return np.array([getattr(row, what) for row in rows]), [
        (row.certain, row.confident) for row in rows
    ]


def random(
    data: Cached, share: float, seed: int, control: bool = False
) -> tuple[np.ndarray, Bounds]:
    part = np.random.default_rng(seed).choice(len(data), round(share * len(data)), replace=False)
    accuracy = data.right[:, part].mean(1)
    return (accuracy + data.base.mean() - data.base[part].mean() if control else accuracy), []


def regressed(data: Cached, share: float, seed: int) -> tuple[np.ndarray, Bounds]:
    part = np.random.default_rng(seed).choice(len(data), round(share * len(data)), replace=False)
    given = logit_features(data.original), data.original, data.labels, part
    chances = np.stack(
        [correctness_probabilities(*given, logits[part]) for logits in data.tables.values()]
    )
    chances[:, part] = data.right[:, part]
    return chances.mean(1), []


def stratified(data: Cached, share: float, seed: int) -> tuple[np.ndarray, Bounds]:
    rng, parts = np.random.default_rng(seed), np.array_split(np.argsort(data.margins), 20)
    means = [
        data.right[:, rng.choice(part, round(share * len(part)), replace=False)].mean(1)
        for part in parts
    ]
    return np.mean(means, 0), []


def anchors(data: Cached, share: float, seed: int) -> tuple[np.ndarray, Bounds]:
    confidences = softmax(data.original, 1)
    centres, _ = kmeans2(confidences, round(share * len(data)), iter=5, minit="points", rng=seed)
    medoids = np.unique(vq(centres, confidences)[0])
    weights = np.bincount(vq(confidences, confidences[medoids])[0], minlength=len(medoids)) / len(
        data
    )
    return data.right[:, medoids] @ weights, []


COLUMNS: dict[str, Column] = {
    "active": active,
    "active, unbiased": partial(active, what="unbiased"),
    "active, tolerance 1/4": partial(active, tolerance=0.25),
    "active, tolerance 4": partial(active, tolerance=4.0),
    "active, rate of change": partial(active, order="change"),
    "active, both": partial(active, order="both"),
    "random": random,
    "random, control variate": partial(random, control=True),
    "random, expected answers": regressed,
    "stratified": stratified,
    "anchor points": anchors,
}


def ranked(truth: np.ndarray, found: np.ndarray) -> float:
    """The share of the pairs at least one point apart that are ranked right."""
    one, two = np.triu_indices(len(truth), 1)
    gap, guess = truth[one] - truth[two], found[one] - found[two]
    apart = np.abs(gap) >= 0.01 - 1e-9
    return float(np.mean(((np.sign(gap) * np.sign(guess) + 1) / 2)[apart]))


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """Draws of one column at one share."""
    data = cached(key["seed"], key["split"])
    shares, gaps, wrong = [], [], [0, 0]
    for draw in range(key["draws"]):
        found, bounds = COLUMNS[key["column"]](data, key["share"], 1_000 * key["seed"] + draw)
        shares.append(ranked(data.truth, found))
        gaps.append(float(np.abs(found - data.truth).mean()))
        outside = [
            [not low - 1e-9 <= true <= high + 1e-9 for low, high in each]
            for each, true in zip(bounds, data.truth)
        ]
        wrong = [old + any(each) for old, each in zip(wrong, np.reshape(outside, (-1, 2)).T)]
    width = float(np.mean([high - low for _, (low, high) in bounds])) if bounds else None
    return {
        "right": round(100 * float(np.mean(shares)), 3),
        "gap": round(100 * float(np.mean(gaps)), 4),
        "wrong": wrong,
        "width": width and round(100 * width, 2),
        "compactions": len(data.truth),
    }


def cells(columns: list[str], seeds: int, split: str) -> Iterator[dict[str, Any]]:
    for column in columns:
        many = column in ("random", "random, control variate", "stratified")
        few, twice = column == "anchor points", column in ("active", "random, expected answers")
        for share in FINER if column == "random" else SHARES:
            for seed in range(seeds):
                draws = 3 if few else 40 * DRAWS if many else 2 * DRAWS if twice else DRAWS
                yield {
                    "column": column,
                    "share": share,
                    "seed": seed,
                    "split": split,
                    "draws": draws,
                }


def needed(rows: list[dict[str, Any]], what: str, value: float) -> float:
    """The share that a random subset needs for a figure; infinite beyond the last one.

    Interpolated linearly in the logarithms.
    """

    def loss(row):
        return max(100 - row["right"], 1e-9) if what == "right" else row["gap"]

    means = [
        np.mean([loss(row) for row in rows if row["column"] == "random" and row["share"] == share])
        for share in FINER
    ]
    falling = np.minimum.accumulate(means)
    goal = max(100 - value, 1e-9) if what == "right" else value
    if goal < falling[-1]:
        return np.inf
    return float(np.exp(np.interp(np.log(goal), np.log(falling[::-1]), np.log(FINER[::-1]))))


def table(rows: list[dict[str, Any]]) -> str:
    """Pairs ranked correctly and the error, each with the evaluations a random subset needs."""
    lines = [
        "| column | " + " | ".join(f"{100 * share:g} %" for share in SHARES) + " |",
        "|---" * (len(SHARES) + 1) + "|",
    ]
    for column in dict.fromkeys(row["column"] for row in rows):
        line = [column]
        for share in SHARES:
            here = [row for row in rows if row["column"] == column and row["share"] == share]
            right, gap = (float(np.mean([row[what] for row in here])) for what in ("right", "gap"))
            times = [
                needed(rows, what, value) / share
                for what, value in (("right", right), ("gap", gap))
            ]
            most = f"> {FINER[-1] / share:.1f}x"
            said = [most if np.isinf(each) else f"{each:.1f}x" for each in times]
            line.append(f"{right:.2f} % ({said[0]}), {gap:.2f} ({said[1]})")
        lines.append("| " + " | ".join(line) + " |")
    bounded = [
        row for row in rows if row["width"] is not None and row["column"] != "active, unbiased"
    ]  # the draws of "active"
    draws = sum(row["draws"] for row in bounded)
    certain, confident = np.sum([row["wrong"] for row in bounded], 0) if bounded else (0, 0)
    lines.append(
        f"\nOf {draws} draws the certain bounds failed on {certain}, those of 95 % for all "
        f"at once on {confident}."
    )
    ours = [row for row in bounded if row["column"] == "active"]
    widths = (
        {
            share: np.mean([row["width"] for row in ours if row["share"] == share])
            for share in SHARES
        }
        if ours
        else {}
    )
    lines.append(
        "Their mean width, active: "
        + ", ".join(f"{each:.1f} at {100 * share:g} %" for share, each in widths.items())
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="COLUMN"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--validate", action="store_true", help="on the validation images")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    keys = list(cells(args.columns, args.seeds, "validation" if args.validate else "test"))
    print(table(finished(args.out, read(args.out), keys, measure)))


if __name__ == "__main__":
    main()
