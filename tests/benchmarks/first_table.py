"""The first table: MNIST in 12,422 stored numbers, one column for each way to spend them.

A network with one hidden layer is trained from scratch in each form, on hard targets, with one loop, schedule, batch
and number of epochs. Everything stored is counted, biases and the last layer too; seeds are free. How wide the hidden
layer is and how the numbers are split was chosen for each column on the last 10,000 training images, and so were the
learning rate and the dropout of pixels, from one grid for all columns. The test set chose nothing.

    python tests/benchmarks/first_table.py                    # the table, about 4 minutes on two cores
    python tests/benchmarks/first_table.py --validate         # the grid behind it, one seed, no test image read

Finished cells stay in the results file (`--out`); only what is missing there is trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mnist
import numpy as np
import optax
from tqdm.auto import tqdm

import jaxcompress as jc
from jaxcompress.arrays.permutation import leaf_seed, permute
from jaxcompress.training.fit import Loss

BUDGET = 12_422
"""Stored numbers: 1/64 of 784-1000-10."""

PIXELS, CLASSES = 784, 10
VALIDATION = 10_000
"""How many training images, the last ones, judge the choices."""

BATCH = 100
RATES = (3e-3, 1e-2, 3e-2)
DROPOUTS = (0.0, 0.1)
"""The grid, the same for every column."""

PUBLISHED = {"HashedNets, equal-size plain net": 6.28, "HashedNets, hashed, hard targets": 2.79}
"""Test error in percent at the same size, from Chen et al. 2015 (arXiv:1504.04788)."""


# --- random edge removal: the control, and what a new form takes --------------------------------------------------


@jc.compact_array
class EdgesArray(jc.CompactArray):
    """A matrix with few entries that are not zero, at places recomputed from a seed.

    Attributes:
        values: (edges,) the entries.
        seed: which places.
    """

    values: jax.Array
    seed: int = jc.static(default=0)

    def materialize(self) -> jax.Array:
        m, n = self.matrix_shape
        dense = jnp.zeros(m * n, self.values.dtype)
        return dense.at[self.places(m * n)].set(self.values, unique_indices=True).reshape(m, n)

    def places(self, size: int) -> jax.Array:
        return permute(jnp.arange(self.values.shape[-1], dtype=jnp.uint32), size, self.seed).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, repr=False)
class RandomEdges(jc.LeafTransform):
    """Remove edges at random until a share is left."""

    keep: float
    seed: int = 0
    axes: jc.MatrixAxes | None = None

    def fit(self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str) -> EdgesArray:
        empty = EdgesArray(jnp.zeros(numbers, matrix.dtype), seed=leaf_seed(self.seed, name), dims=matrix.shape)
        return dataclasses.replace(empty, values=jnp.asarray(matrix.reshape(-1)[empty.places(matrix.size)]))


# --- the columns ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Column:
    """One way to spend the numbers; the last layer and the biases are dense in all of them.

    Attributes:
        hidden: the width of the hidden layer.
        transform: from a run's seed to what makes the first layer compact.
        rate: the peak learning rate.
        dropout: the share of the pixels that a training step does not see.
        note: the form of the first layer in words.
    """

    hidden: int
    transform: Callable[[int], jc.Transform]
    rate: float
    dropout: float
    note: str


FIRST = "first/kernel"


def rest(hidden: int) -> float:
    """The share of the first kernel's entries that the budget leaves, after the biases and a dense last layer."""
    return (BUDGET - hidden - (hidden + 1) * CLASSES) / (PIXELS * hidden)


def hashed(hidden: int) -> Callable[[int], jc.Transform]:
    return lambda seed: jc.at(FIRST, jc.hashed(rest(hidden), seed=seed))


def dct(atoms: int) -> Callable[[int], jc.Transform]:
    return lambda seed: jc.at(FIRST, jc.vocabulary(atoms / PIXELS, grid=(28, 28)))


def dct_hashed(atoms: int, hidden: int) -> Callable[[int], jc.Transform]:
    keep = rest(hidden) * PIXELS / atoms  # of the codes
    return lambda seed: jc.chain(dct(atoms)(seed), jc.at(f"{FIRST}/codes", jc.hashed(keep, seed=seed)))


def low_rank(rank: int, hidden: int) -> Callable[[int], jc.Transform]:
    keep = math.ceil(jc.FactoredArray.numbers(PIXELS, hidden, rank)) / (PIXELS * hidden)  # whole numbers are stored
    return lambda seed: jc.at(FIRST, jc.factored(keep))


def convolved(knots: int) -> Callable[[int], jc.Transform]:
    along_pixels = jc.MatrixAxes(inputs=(1,), outputs=(0,))
    return lambda seed: jc.at(FIRST, jc.convolved(knots / PIXELS, axes=along_pixels))


def edges(hidden: int) -> Callable[[int], jc.Transform]:
    return lambda seed: jc.at(FIRST, RandomEdges(rest(hidden), seed=seed))


COLUMNS = {
    "plain": Column(15, lambda seed: jc.identity(), 3e-2, 0.1, "dense, narrow"),
    "low rank": Column(135, low_rank(12, 135), 1e-2, 0.1, "rank 12, both factors trained"),
    "hashed": Column(150, hashed(150), 1e-2, 0.1, "hashed entry by entry"),
    "DCT": Column(111, dct(100), 1e-2, 0.1, "100 cosines on 28 x 28, dense codes"),
    "DCT + hashed": Column(200, dct_hashed(100, 200), 1e-2, 0.1, "100 cosines on 28 x 28, hashed codes"),
    "convolved": Column(59, convolved(196), 1e-2, 0.0, "one sample for 4 pixels of a row"),
    "random edges": Column(100, edges(100), 1e-2, 0.1, "a random 1/7 of the edges"),
}


# --- one run --------------------------------------------------------------------------------------------------------


def dense_params(key: jax.Array, hidden: int) -> dict[str, dict[str, jax.Array]]:
    """The network 784-hidden-10, by He's initialisation."""
    first, last = jax.random.split(key)
    layer = lambda key, m, n: {"kernel": jax.random.normal(key, (m, n)) * (2 / m) ** 0.5, "bias": jnp.zeros(n)}
    return {"first": layer(first, PIXELS, hidden), "last": layer(last, hidden, CLASSES)}


def logits(params: Any, x: jax.Array) -> jax.Array:
    """The network on pixels in [0, 1]; `@` means the same for dense and compact kernels."""
    first, last = params["first"], params["last"]
    return jax.nn.relu(x @ first["kernel"] + first["bias"]) @ last["kernel"] + last["bias"]


def to_unit(pixels: jax.Array) -> jax.Array:
    return pixels.astype(jnp.float32) / 255


@cache  # one compiled loop for all seeds of a column
def dropout_loss(rate: float) -> Loss:
    """Cross entropy with a share of the pixels hidden at each step."""
    plain = jc.cross_entropy(logits)

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        pixels, labels = batch
        x = to_unit(pixels)
        if rate:
            seen = jax.random.bits(key, x.shape, jnp.uint8) >= round(256 * rate)  # bytes: random bits are the cost
            x = jnp.where(seen, x / (1 - round(256 * rate) / 256), 0)
        return plain(params, (x, labels), key)

    return loss


@cache
def one_cycle(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_onecycle_schedule(steps, rate, pct_start=0.1))


@jax.jit
def predict(params: Any, pixels: jax.Array) -> jax.Array:
    return jnp.argmax(logits(params, to_unit(pixels)), axis=-1)


def train(data: mnist.Digits, judge: mnist.Digits, key: dict[str, Any]) -> dict[str, Any]:
    """Train one network from scratch.

    Returns:
        The error on `judge` in percent, the stored numbers and the seconds, compilation included.
    """
    start = time.perf_counter()
    name, seed, column = key["column"], key["seed"], COLUMNS[key["column"]]
    dense, fresh = jax.random.split(jax.random.key(seed))
    params = jc.initialize(fresh, column.transform(seed), dense_params(dense, column.hidden))
    stored = jc.stored_numbers(params)
    if stored > BUDGET:
        raise ValueError(f"{name} stores {stored} numbers, more than {BUDGET}")
    steps = key["epochs"] * (len(data.labels) // BATCH)
    state = jc.fit(
        dropout_loss(key["dropout"]),
        params,
        tuple(data),
        optimizer=one_cycle(key["rate"], steps),
        steps=steps,
        batch_size=BATCH,
        seed=seed,
        description=f"{name}, seed {seed}",
    )
    wrong = np.asarray(predict(state.params, judge.pixels)) != judge.labels
    return {"error": round(100 * float(wrong.mean()), 4), "stored": stored, "seconds": round(time.perf_counter() - start, 1)}


# --- the table ------------------------------------------------------------------------------------------------------


def cells(args: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """What to train: the key of each result."""
    for name, seed in itertools.product(args.columns, range(args.seeds)):
        column = COLUMNS[name]
        grid = itertools.product(RATES, DROPOUTS) if args.validate else [(column.rate, column.dropout)]
        for rate, dropout in grid:
            key = {"column": name, "split": "validation" if args.validate else "test", "seed": seed, "epochs": args.epochs}
            yield key | {"hidden": column.hidden, "rate": rate, "dropout": dropout, "note": column.note}


def final_table(rows: list[dict[str, Any]]) -> str:
    """Each column's mean and standard deviation over the seeds, as markdown."""
    lines = ["| column | first layer | hidden | stored numbers | test error % | seconds a run |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["column"] for row in rows):
        runs = [row for row in rows if row["column"] == name]
        error, seconds = (np.array([run[what] for run in runs]) for what in ("error", "seconds"))
        spread = f" ± {error.std(ddof=1):.2f}" if len(runs) > 1 else ""
        stored = max(run["stored"] for run in runs)
        lines.append(
            f"| {name} | {runs[0]['note']} | {runs[0]['hidden']} | {stored:,} | {error.mean():.2f}{spread} | {seconds.mean():.0f} |"
        )
    lines += [f"| *{name}* | | | {BUDGET:,} | {error:.2f} | |" for name, error in PUBLISHED.items()]
    total = sum(row["seconds"] for row in rows)
    return "\n".join([*lines, "", f"{len(rows)} runs, {rows[0]['epochs']} epochs each, {total / 60:.1f} minutes in all"])


def grid_table(rows: list[dict[str, Any]]) -> str:
    """The validation error of each column at each point of the grid, as markdown."""
    points = [(rate, dropout) for dropout in DROPOUTS for rate in RATES]
    head = [f"rate {rate:g}, dropout {dropout:g}" for rate, dropout in points]
    lines = ["| column | " + " | ".join(head) + " |", "|---" * (1 + len(head)) + "|"]
    for name in dict.fromkeys(row["column"] for row in rows):
        errors = [[r["error"] for r in rows if (r["column"], r["rate"], r["dropout"]) == (name, *point)] for point in points]
        lines.append(f"| {name} | " + " | ".join(f"{np.mean(error):.2f}" for error in errors) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, help="runs of each cell (3; 1 with --validate)")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="COLUMN")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--validate", action="store_true", help="train the grid on 50,000 images, judge by the other 10,000")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"), help="where finished cells are kept")
    args = parser.parse_args()
    args.seeds = args.seeds or (1 if args.validate else 3)

    data, judge = mnist.load()
    if args.validate:
        judge = mnist.Digits(*(array[-VALIDATION:] for array in data))
        data = mnist.Digits(*(array[:-VALIDATION] for array in data))
    rows = finished(args.out, read(args.out), list(cells(args)), partial(train, data, judge))
    print((grid_table if args.validate else final_table)(rows))


def read(path: Path) -> list[dict[str, Any]]:
    """The finished cells of a results file; none where there is no file."""
    return json.loads(path.read_text()) if path.exists() else []


def finished(
    path: Path,
    results: list[dict[str, Any]],
    keys: Iterable[dict[str, Any]],
    measure: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    again: bool = False,
) -> list[dict[str, Any]]:
    """A row for each key: what the results have already stays, what is missing there is measured and written at once.

    `results` grows as it goes, so that later keys may depend on it; with `again` everything is measured afresh.
    """
    rows = []
    for key in tqdm(keys, desc="cells"):
        place = next((i for i, old in enumerate(results) if key.items() <= old.items()), len(results))
        if place == len(results) or again:
            results[place : place + 1] = [key | measure(key)]
            write(path, results)
        rows.append(results[place])
    return rows


def write(path: Path, results: list[dict[str, Any]]) -> None:
    """One line a cell; the file is replaced whole, so that an interrupted run leaves a good one."""
    lines = ",\n".join("  " + json.dumps(row) for row in results)
    draft = path.with_suffix(".part")
    draft.write_text(f"[\n{lines}\n]\n")
    os.replace(draft, path)


if __name__ == "__main__":
    main()
