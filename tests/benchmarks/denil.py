"""Denil et al.'s experiment: MNIST by 784-500-500-10.

A twentieth of its weights learned and the others predicted from features.

The network of full size against networks of the same sizes that store 32,350 numbers for their
647,000 weights, biases apart. The last kernel is dense in all. The second is hashed in 8,000
numbers, the first has 19,350 and is written in features of the pixels: 38 of them with dense codes
(15 where the features are learned, and stored), or 100 with hashed codes. "Toeplitz + DCT" has
windows of 9 x 9 in the first layer (405 numbers) and cosines of their positions in the second. One
loop for all, that of `hashednets.py`; each column's rate, from three, then its share of hidden
pixels, from two, by the last 10,000 training images; no test image chose anything.

    # chooses, one seed: about a minute a run on 2 cores
    python tests/benchmarks/denil.py --validate
    python tests/benchmarks/denil.py                     # 10 seeds

Finished cells stay in the results file (`--out`).

Source: Denil et al. 2013 (arXiv:1306.0543): 5 % learned, hardly any loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cells import finished, read
from hashednets import GRID, PIXELS, data_of, decided, error, fresh, search, trained

import jaxcompress as jc

SIZES = (PIXELS, 500, 500, 10)
WEIGHTS = PIXELS * 500 + 500 * 500 + 500 * 10
BUDGET = WEIGHTS // 20
LAST, SECOND = 5_000, 8_000
FIRST = BUDGET - LAST - SECOND


def written(seed: int, atoms: str, features: int | None = None) -> jc.Transform:
    """Features in the first kernel, with dense or hashed codes; the second kernel is hashed."""
    second = jc.at("1/kernel", jc.hashed(SECOND / 500**2, seed=seed))
    if features is None:
        return jc.chain(
            jc.at(
                "0/kernel", jc.vocabulary(FIRST / (PIXELS * 500), atoms=atoms, grid=GRID, seed=seed)
            ),
            second,
        )
    first = jc.at("0/kernel", jc.vocabulary(features / PIXELS, atoms=atoms, grid=GRID, seed=seed))
    return jc.chain(
        first, jc.at("0/kernel/codes", jc.hashed(FIRST / (features * 500), seed=seed)), second
    )


def translated(seed: int) -> jc.Transform:
    """Windows, and hashed codes of 25 cosines of the 10 x 10 positions of each of 5 channels."""
    codes = BUDGET - LAST - 5 * 81
    return jc.chain(
        jc.at("0/kernel", jc.toeplitz((9, 9), grid=GRID, stride=2)),
        jc.at("1/kernel", jc.vocabulary(25 / 100, grid=(10, 10), channels=5)),
        jc.at("1/kernel/codes", jc.hashed(codes / (125 * 500), seed=seed)),
    )


COLUMNS: dict[str, Callable[[int], jc.Transform]] = {
    "full": lambda seed: jc.identity(),
    "random": lambda seed: written(seed, "random"),
    "learned": lambda seed: written(seed, "learned"),
    "smooth": lambda seed: written(seed, "smooth"),
    "DCT": lambda seed: written(seed, "dct"),
    "random, hashed codes": lambda seed: written(seed, "random", 100),
    "DCT, hashed codes": lambda seed: written(seed, "dct", 100),
    "Toeplitz + DCT": translated,
}
CHOICES = ("rate", (1e-3, 3e-3, 1e-2)), ("dropout", (0.1, 0.2))
"""Of rates, and of the share of hidden pixels."""


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """One run."""
    train, judge = data_of("MNIST", validate=key["split"] == "validation")
    params = fresh(key["seed"], COLUMNS[key["column"]](key["seed"]), SIZES)
    stored = jc.stored_numbers(params) - sum(SIZES[1:])
    if key["column"] != "full" and stored > BUDGET:
        raise ValueError(f"{key['column']} stores {stored} numbers, more than {BUDGET}")
    name = f"{key['column']}, seed {key['seed']}"
    params = trained(
        params, train, train.labels, key["rate"], key["seed"], name, dropout=key["dropout"]
    )
    return {"error": error(params, judge), "stored": stored}


def validated(results: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    return [
        row
        for row in results
        if (row["split"], row["column"], row["seed"]) == ("validation", column, 0)
    ]


def cells(args: argparse.Namespace, results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What to train: the key of each result.

    With `--validate` the later ones depend on the earlier results.
    """
    for column in args.columns:
        rows = partial(validated, results, column)
        for rate, dropout in (
            search(column, rows, *CHOICES) if args.validate else [decided(column, rows(), *CHOICES)]
        ):
            for seed in range(args.seeds or (1 if args.validate else 10)):
                split = "validation" if args.validate else "test"
                yield {
                    "column": column,
                    "split": split,
                    "rate": rate,
                    "dropout": dropout,
                    "seed": seed,
                }


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each column; differences are paired by seed, with their standard error."""
    errors = {
        c: np.array([row["error"] for row in rows if row["column"] == c])
        for c in dict.fromkeys(row["column"] for row in rows)
    }
    lines = [
        "| features | weights stored | of all | test error % | over the full network, points |",
        "|---|---|---|---|---|",
    ]
    for column, each in errors.items():
        stored = next(row["stored"] for row in rows if row["column"] == column)
        gap = each - errors.get("full", each)

        def spread(values):
            return values.std(ddof=1) if len(values) > 1 else 0.0

        lines.append(
            f"| {column} | {stored:,} | {100 * stored / WEIGHTS:.1f} % "
            f"| {each.mean():.2f} ± {spread(each):.2f} "
            f"| {gap.mean():+.2f} ± {spread(gap) / len(gap) ** 0.5:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="COLUMN"
    )
    parser.add_argument("--seeds", type=int, help="runs of each cell (10; 1 with --validate)")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="train by each choice, judged by the validation images",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    results = read(args.out)
    keys = cells(args, results)
    rows = finished(args.out, results, keys if args.validate else list(keys), measure)
    if args.validate:
        for row in rows:
            print(f"{row['column']:22s} {row['rate']:g} {row['dropout']:g} {row['error']:.2f}")
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
