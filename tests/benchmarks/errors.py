"""Verdicts of `jc.classifiers.explain_errors` where the causes are known, and on Fashion-MNIST.

Worlds: those of tests/analysis/worlds.py, in 2, 8 and 20 dimensions, 1,500 training and 1,500 test
points each. A verdict is right when it names the plant whose work the error is; "ambiguous" is not
right. Errors that are not the plant's work are left out, their number is in the last column.

Fashion-MNIST: an MLP of 128 units on the first 10,000 training images, 2,000 steps; then with one
thing planted each:

    labels      a tenth changed to random other ones, and 6,000 steps, so that the network follows
    them capacity    2 hidden units region      without training images of half of the sneakers,
    those on one side of the median of their first principal component part        without the
    sneakers, where labels that are equal modulo 5 are one class, so that pullovers are of it, too

Test images are the first 5,000. Nobody knows all causes there. New errors are those that the
network trained with the same seed and nothing planted does not make; most should be of the planted
cause.

The rule was designed on seed 0, and its question how far a point is from its class was changed
after a look at Fashion-MNIST with seeds 10, 11 and 12, where "part" was not seen. The figures are
of seeds 30, 31 and 32; Fashion-MNIST's images are the same for all.

    python tests/benchmarks/errors.py                  # some 20 minutes of one core
    # also draws a report of each condition of Fashion-MNIST, with seed 30
    python tests/benchmarks/errors.py --plot FOLDER

Finished cells stay in the results file (`--out`).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cells import finished, read
from fashion import load

sys.path.append(str(Path(__file__).parents[1]))

from helpers_worlds import GEOMETRIES, PLANTS, Classify, other, tally, trained, world

import jaxcompress as jc

SEEDS = (30, 31, 32)
DIMENSIONS = (2, 8, 20)
CONDITIONS = {
    "as it is": "as it is",
    "labels": "as it is",
    "capacity": "as it is",
    "region": "as it is",
    "part": "five classes",
}
"""What is planted, and the condition without it."""
FIVE = ("part", "five classes")
SNEAKER, IMAGES, TESTED = 7, 10_000, 5_000


@cache
def images() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def unit(digits, count):
        return (
            digits.pixels[:count].astype(np.float32) / 255,
            digits.labels[:count].astype(int),
        )

    train, test = load()
    return unit(train, IMAGES), unit(test, TESTED)


def sneakers() -> np.ndarray:
    """Which training images the region without any had."""
    (x, y), _ = images()
    mine = np.flatnonzero(y == SNEAKER)
    centred = x[mine] - x[mine].mean(0)
    along = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
    return mine[along > np.median(along)]


def tested(condition: str) -> tuple[np.ndarray, np.ndarray]:
    """The test set of a condition."""
    x, y = images()[1]
    return x, y % 5 if condition in FIVE else y


@cache
def clothes(condition: str, seed: int) -> tuple[tuple[np.ndarray, np.ndarray], Classify]:
    """What was shown in training, and the network trained on it."""
    (x, y), _ = images()
    rng = np.random.default_rng(seed)
    if condition == "labels":
        y = np.where(rng.uniform(size=len(y)) < 0.1, other(rng, y, 10), y)
    if condition == "region":
        x, y = np.delete(x, sneakers(), 0), np.delete(y, sneakers())
    if condition == "part":
        x, y = x[y != SNEAKER], y[y != SNEAKER]
    y = y % 5 if condition in FIVE else y
    hidden, steps = (
        (2,) if condition == "capacity" else (128,),
        6_000 if condition == "labels" else 2_000,
    )
    return (x, y), trained(x, y, hidden, seed, steps=steps, rate=1e-3)


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """One report."""
    if "condition" in key:
        train, classify = clothes(key["condition"], key["seed"])
        x, y = tested(key["condition"])
        report = jc.classifiers.explain_errors(classify, train, (x, y))
        mended = np.asarray(clothes(CONDITIONS[key["condition"]], key["seed"])[1](x)) == y
        new = [each for each in report.verdicts if mended[each.index]]
        found = {
            "counts": report.counts,
            "next": runners_up(report.verdicts),
            "new": causes(new),
            "new next": runners_up(new),
        }
        return found | {"accuracy": report.accuracy, "train_accuracy": report.train_accuracy}
    found = world(key["plant"], key["geometry"], key["d"], key["seed"])
    report = jc.classifiers.explain_errors(found.classify, found.train, found.test)
    counts = tally(found, report)
    mine = runners_up([each for each in report.verdicts if found.planted[each.index]])
    return {
        "cause": found.cause,
        "counts": counts,
        "next": mine,
        "others": len(report.verdicts) - sum(counts.values()),
    }


def causes(verdicts: list[jc.classifiers.Verdict]) -> dict[str, int]:
    return dict(Counter(each.cause for each in verdicts))


def runners_up(verdicts: list[jc.classifiers.Verdict]) -> dict[str, int]:
    """What comes next where the verdict is "ambiguous"."""
    return dict(Counter(each.runner_up for each in verdicts if each.cause == "ambiguous"))


def cells() -> Iterator[dict[str, Any]]:
    for seed in SEEDS:
        for condition in CONDITIONS:
            yield {"condition": condition, "seed": seed}
        for plant in PLANTS:
            for geometry in GEOMETRIES:
                for d in DIMENSIONS:
                    yield {"plant": plant, "geometry": geometry, "d": d, "seed": seed}


def total(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {cause: sum(row["counts"][cause] for row in rows) for cause in rows[0]["counts"]}


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def tables(results: list[dict[str, Any]]) -> str:
    """A line for each world, the confusion matrix, and Fashion-MNIST."""
    planted = [row for row in results if "plant" in row]
    lines, parts = [], []
    for plant, geometry, d in sorted(
        {(row["plant"], row["geometry"], row["d"]) for row in planted}
    ):
        rows = [
            row
            for row in planted
            if (row["plant"], row["geometry"], row["d"]) == (plant, geometry, d)
        ]
        right = [
            row["counts"][row["cause"]] / sum(row["counts"].values())
            for row in rows
            if any(row["counts"].values())
        ]
        counts = total(rows)
        share = 100 * counts[rows[0]["cause"]] / max(sum(counts.values()), 1)
        line = [
            plant,
            geometry,
            d,
            len(right),
            sum(counts.values()),
            f"{share:.1f}",
            f"{100 * min(right, default=0):.1f}",
        ]
        second = sum(row["next"].get(row["cause"], 0) for row in rows)
        lines.append([*line, counts["ambiguous"], second, sum(row["others"] for row in rows)])
    head = [
        "world",
        "geometry",
        "dimensions",
        "seeds with errors",
        "errors",
        "right %",
        "worst seed %",
        "ambiguous",
        "of these right next",
    ]
    head += ["not the plant's"]
    if planted:
        parts.append(markdown(head, lines))
        names = list(planted[0]["counts"])
        shares = []
        for cause in sorted({row["cause"] for row in planted}, key=names.index):
            counts = total([row for row in planted if row["cause"] == cause])
            every = max(sum(counts.values()), 1)
            shares.append([cause, every, *(f"{100 * counts[each] / every:.1f}" for each in names)])
        parts.append(markdown(["planted", "errors", *(f"{name} %" for name in names)], shares))
    lines = []
    for condition in CONDITIONS:
        rows = [row for row in results if row.get("condition") == condition]
        if rows:

            def mean(values):
                return f"{np.mean(values):.0f} ± {np.std(values, ddof=min(1, len(values) - 1)):.0f}"

            accuracies = [
                f"{100 * np.mean([row[name] for row in rows]):.1f}"
                for name in ("accuracy", "train_accuracy")
            ]
            kinds = {"all": [row["counts"] for row in rows]}
            if condition != CONDITIONS[condition]:
                kinds["new"] = [row["new"] for row in rows]
            for kind, counts in kinds.items():
                shown = [
                    mean([each.get(cause, 0) for each in counts]) for cause in rows[0]["counts"]
                ]
                following = mean(
                    [
                        row["next" if kind == "all" else "new next"].get("wrong interpolation", 0)
                        for row in rows
                    ]
                )
                lines.append([condition, kind, *accuracies, *shown, following])
    if lines:
        names = list(next(row for row in results if "condition" in row)["counts"])
        parts.append(
            markdown(
                [
                    "Fashion-MNIST",
                    "errors",
                    "test accuracy %",
                    "training accuracy %",
                    *names,
                    "then interpolation",
                ],
                lines,
            )
        )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--plot", type=Path, help="a folder to draw reports in")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    results = read(args.out)
    finished(args.out, results, cells(), measure)
    print(tables(results))
    if args.plot:
        for condition in CONDITIONS:
            train, classify = clothes(condition, SEEDS[0])
            test = tested(condition)
            report = jc.classifiers.explain_errors(classify, train, test)
            jc.plots.error_images(
                report, train, test, (28, 28), path=args.plot / f"errors_{condition}.png"
            )


if __name__ == "__main__":
    main()
