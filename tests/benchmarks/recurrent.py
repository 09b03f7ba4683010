"""An LSTM over the rows of MNIST is made small: to an eighth and a sixteenth of its numbers.

The network reads an image row by row, 28 steps of 28 numbers, and classifies the last state; its
kernels of the input and of the state have one bias. It is trained on 60,000 images by Adam with a
cosine cycle; the 10,000 test images judge, once. 4,000 training images calibrate, without labels.
Every column stores at most the same count of numbers, all counted (a pruned entry costs one bit for
its place), and is judged as cut and after the same fine-tuning. "smaller LSTM" has fewer units and
is trained from scratch for as many epochs as training and fine-tuning together.

    units               units selected and folded, then reconstructed
    units, no reconstruction
    units, sensitivity  the same, weighted by the outputs' sensitivity to each gate and unit
    units and ranks     half of the cut in units, half in ranks, then reconstructed
    L2 units            units of the smallest L2 norm are removed
    low rank            both kernels, plain
    low rank, whitened  in the metric of the inputs
    low rank, gates     in that of the inputs and of the outputs' sensitivity to the gates
    magnitude           the entries of largest magnitude

    python tests/benchmarks/recurrent.py --seeds 0   # one seed, about 40 minutes on two cores
    python tests/benchmarks/recurrent.py --speed     # the forward pass at several widths
    python tests/benchmarks/recurrent.py --rounds    # on which states kernels are solved

Trained parameters stay in the cache folder, finished cells in the results file (`--out`).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cells
import jax
import jax.numpy as jnp
import numpy as np
import optax
from fashion import cache_folder
from mnist import Digits, load

import jaxcompress as jc
from jaxcompress.moments.output_error import output_error
from jaxcompress.transforms.rounds import Judged, Rounds

UNITS, ROWS, CLASSES = 128, 28, 10
SHARES = (1 / 8, 1 / 16)
TARGETS = {1 / 8: 0.3, 1 / 16: 0.8}
"""Points that may be lost after fine-tuning."""

BATCH, EPOCHS, FINE_TUNING, RATE, FINE_RATE = 128, 6, 2, 3e-3, 2e-3
CALIBRATION, PER_BATCH = 4_000, 500
KERNELS = ("enter", "turn")


# --- the network ---------------------------------------------------------------------------------


def logits(params: Any, pixels: jax.Array) -> jax.Array:
    """The scores of images (examples, 784) of bytes."""
    rows = (jnp.asarray(pixels, jnp.float32) / 255).reshape(-1, ROWS, ROWS).swapaxes(0, 1)
    zeros = jnp.zeros((rows.shape[1], params["last"].shape[0]))

    def step(state: tuple[jax.Array, jax.Array], row: jax.Array) -> tuple[Any, None]:
        hidden, cell = state
        gates = row @ params["enter"] + hidden @ params["turn"] + params["gates"]
        enter, forget, new, leave = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
        return (jax.nn.sigmoid(leave) * jnp.tanh(cell), cell), None

    (hidden, _), _ = jax.lax.scan(step, (zeros, zeros), rows)
    return hidden @ params["last"] + params["bias"]


def fresh(units: int, seed: int) -> dict[str, jax.Array]:
    """Initial parameters; the gates that forget start open."""
    keys = jax.random.split(jax.random.key(seed), 3)
    turn = [jax.random.orthogonal(key, units) for key in jax.random.split(keys[1], 4)]
    return {
        "enter": jax.random.normal(keys[0], (ROWS, 4 * units)) / math.sqrt(ROWS),
        "turn": jnp.concatenate(turn, axis=1),
        "gates": jnp.zeros(4 * units).at[units : 2 * units].set(1.0),
        "last": jax.random.normal(keys[2], (units, CLASSES)) / math.sqrt(units),
        "bias": jnp.zeros(CLASSES),
    }


def numbers(units: int) -> int:
    """What a dense network stores."""
    return 4 * units * (ROWS + units + 1) + CLASSES * (units + 1)


def units_within(count: float) -> int:
    """The most units of a dense network within a count of numbers."""
    return max(units for units in range(1, UNITS + 1) if numbers(units) <= count)


# --- training ------------------------------------------------------------------------------------


def fit(
    run: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    data: Digits,
    epochs: int,
    rate: float,
    seed: int,
) -> Any:
    """Adam with a cosine cycle and clipped gradients."""
    steps = epochs * (len(data.labels) // BATCH)
    schedule = optax.cosine_onecycle_schedule(steps, rate, pct_start=0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    given = dict(optimizer=optimizer, steps=steps, batch_size=BATCH, seed=seed)
    return jc.fit(jc.training.cross_entropy(run), params, tuple(data), **given).params


def trained(units: int, seed: int, data: Digits, epochs: int) -> Any:
    """A dense network, kept in the cache folder."""
    path = cache_folder() / "recurrent" / f"lstm-{units}-{epochs}-{seed}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        jc.save(path, fit(logits, fresh(units, seed), data, epochs, RATE, seed))
    return jc.load(path)


def accuracy(run: Callable[[Any, jax.Array], jax.Array], params: Any, judge: Digits) -> float:
    """In percent."""
    right = [
        np.asarray(jnp.argmax(run(params, pixels), -1)) == labels
        for pixels, labels in zip(
            judge.pixels.reshape(10, -1, 784), judge.labels.reshape(10, -1), strict=True
        )
    ]
    return round(100 * float(np.mean(right)), 3)


# --- the cuts ------------------------------------------------------------------------------------


class Case:
    """One trained network, traced and calibrated."""

    def __init__(self, seed: int, data: Digits):
        self.seed = seed
        self.params = trained(UNITS, seed, data, EPOCHS)
        self.batches = list(data.pixels[:CALIBRATION].reshape(-1, PER_BATCH, 784))
        self.net = jc.trace(logits, self.params, self.batches[0])
        self.moments = jc.calibrate(self.net, self.params, self.batches, sensitivity=True)

    def cut(self, column: str, share: float) -> Any:
        """The parameters of a column at a share of the numbers."""
        moments = dataclasses.replace(self.moments, gains={})
        count = share * numbers(UNITS)
        keep = units_within(count) / UNITS
        again = jc.reconstruct(self.net, self.batches)
        if column == "units, no reconstruction":
            return jc.rotate_and_prune(self.net, keep)(self.params, moments)
        if column.startswith("units and ranks"):
            return self._units_and_ranks(count, moments)
        if column.startswith("units"):
            given = self.moments if "sensitivity" in column else moments
            return jc.chain(jc.rotate_and_prune(self.net, keep), again)(self.params, given)
        if column == "L2 units":
            return jc.rotate_and_prune(self.net, keep, method="magnitude")(self.params)
        if column == "magnitude":
            return self._magnitude(count)
        return self._low_rank(column, count, moments)

    def _units_and_ranks(self, count: float, moments: Any) -> Any:
        """Units such that as many numbers are left as ranks then halve; then both solved anew."""
        keep = units_within(min(2 * count, numbers(UNITS))) / UNITS
        small, after = jc.rotate_and_prune(self.net, keep).apply(self.params, moments)
        kept = self._keep(small, count)
        ranks = jc.chain(jc.at(KERNELS, jc.factored(kept)), jc.reconstruct(self.net, self.batches))
        return ranks(small, after)

    def _keep(self, params: Any, count: float) -> float:
        """The share of the kernels' numbers that leaves a count for all."""
        kernels = sum(params[name].size for name in KERNELS)
        return (count - (jc.stored_numbers(params) - kernels)) / kernels

    def _low_rank(self, column: str, count: float, moments: Any) -> Any:
        keep = self._keep(self.params, count)
        if column == "low rank":
            return jc.at(KERNELS, jc.factored(keep))(self.params)
        if column == "low rank, whitened":
            return jc.at(KERNELS, jc.factored(keep))(self.params, moments)
        scaled, small = dict(self.params), dict(self.params)
        for name in KERNELS:
            (key,) = (site for site in self.net.structure.sites if site.startswith(name))
            values, vectors = np.linalg.eigh(self.moments.gains[key].cov)
            roots = np.sqrt(np.maximum(values, 1e-6 * values.max()))
            kernel = np.asarray(self.params[name], np.float64)
            scaled[name] = jnp.asarray(kernel @ (vectors * roots), jnp.float32)
            fitted = jc.at(name, jc.factored(keep))(scaled, moments)[name]
            product = np.asarray(fitted.materialize(), np.float64) @ (vectors / roots).T
            small[name] = fitted.refit(product)
        return small

    def _magnitude(self, count: float) -> Any:
        """The largest entries of the kernels; a bit tells where each is."""
        kernels = {name: np.asarray(self.params[name]) for name in KERNELS}
        entries = sum(kernel.size for kernel in kernels.values())
        others = jc.stored_numbers(self.params) - entries
        kept = int(count - others - entries / 32)
        sizes = np.sort(np.abs(np.concatenate([kernel.ravel() for kernel in kernels.values()])))
        least = sizes[-kept]
        return self.params | {
            name: jnp.asarray(np.where(np.abs(kernel) >= least, kernel, 0))
            for name, kernel in kernels.items()
        }

    def stored(self, column: str, small: Any) -> float:
        """All numbers that a column stores."""
        if column != "magnitude":
            return float(jc.stored_numbers(small))
        entries = sum(small[name].size for name in KERNELS)
        kept = sum(int(np.count_nonzero(np.asarray(small[name]))) for name in KERNELS)
        return jc.stored_numbers(small) - entries + kept + entries / 32

    def runner(self, column: str, small: Any) -> Callable[[Any, jax.Array], jax.Array]:
        """The network at the sizes of a column; pruned entries stay zero."""
        if column != "magnitude":
            return self.net
        masks = {name: (small[name] != 0).astype(jnp.float32) for name in KERNELS}

        def run(params: Any, pixels: jax.Array) -> jax.Array:
            return logits(params | {name: params[name] * masks[name] for name in KERNELS}, pixels)

        return jax.jit(run)


COLUMNS = (
    *("units", "smaller LSTM", "L2 units", "low rank, whitened", "units and ranks", "magnitude"),
    *("low rank, gates", "units, sensitivity", "low rank", "units, no reconstruction"),
)


def measure(key: dict[str, Any], case: Case, train: Digits, test: Digits) -> dict[str, Any]:
    """One cell: what is stored, and the accuracy as cut and after fine-tuning."""
    start, column, share = time.time(), key["column"], key["share"]
    if column == "smaller LSTM":
        units = units_within(share * numbers(UNITS))
        params = trained(units, key["seed"], train, EPOCHS + FINE_TUNING)
        row = {"stored": numbers(units), "after": accuracy(jax.jit(logits), params, test)}
    else:
        small = case.cut(column, share)
        run = case.runner(column, small)
        before = accuracy(run, small, test)
        tuned = fit(run, small, train, FINE_TUNING, FINE_RATE, key["seed"])
        row = {
            "stored": round(case.stored(column, small), 1),
            "before": before,
            "after": accuracy(run, tuned, test),
        }
    return row | {"seconds": round(time.time() - start)}


class LastRound(Rounds):
    """Rounds each of which is solved on its own states alone."""

    def next(self, start: Judged, *, guarded: bool = False) -> Judged:
        self.seen.clear()
        return super().next(start, guarded=guarded)


def rounds(case: Case, held_out: Digits) -> list[dict[str, Any]]:
    """What the logits are off by on images that calibrated nothing, as cut and as solved.

    The cut's fold is the solution for the original's states.
    """
    module = sys.modules[jc.reconstruct(case.net, case.batches).__module__]
    moments = dataclasses.replace(case.moments, gains={})
    error = output_error(case.net, jc.Calibration([held_out.pixels]))
    rows = []
    for units in (64, *(units_within(share * numbers(UNITS)) for share in SHARES)):
        cut, after = jc.rotate_and_prune(case.net, units / UNITS).apply(case.params, moments)
        networks = {"the original's": cut}
        for name, kind in (("the last round's", LastRound), ("all rounds'", Rounds)):
            module.Rounds = kind
            networks[name] = jc.reconstruct(case.net, case.batches)(cut, after)
        rows += [
            {
                "seed": case.seed,
                "kept": units,
                "states": name,
                "error": round(error(case.params, network), 4),
                "accuracy": accuracy(case.net, network, held_out),
            }
            for name, network in networks.items()
        ]
    return rows


def speed(widths: tuple[int, ...] = (128, 96, 64, 48, 40, 37, 32, 23, 16)) -> list[dict[str, Any]]:
    """The time of a forward pass of 100 images at several widths, the least of interleaved runs."""
    run = jax.jit(logits)
    pixels = jnp.zeros((100, 784))
    params = {width: fresh(width, 0) for width in widths}
    times: dict[int, list[float]] = {width: [] for width in widths}
    for turn in range(61):
        for width, given in params.items():
            start = time.perf_counter()
            run(given, pixels).block_until_ready()
            times[width] += [time.perf_counter() - start] if turn else []
    first = min(times[widths[0]])
    return [{"units": width, "speed": round(min(times[width]) / first, 3)} for width in widths]


# --- tables --------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Points lost by each column at each share, as cut and after fine-tuning."""
    full = {row["seed"]: row["accuracy"] for row in rows if "network" in row}
    shares = [f"{when}, 1/{round(1 / share)}" for share in SHARES for when in ("cut", "tuned")]
    lines = [f"| points lost | {' | '.join(shares)} |", "|---" * (len(shares) + 1) + "|"]
    for column in COLUMNS:
        values = [
            lost(rows, full, column, share, when)
            for share in SHARES
            for when in ("before", "after")
        ]
        lines.append(f"| {column} | {' | '.join(values)} |")
    return "\n".join(lines)


def rounds_table(rows: list[dict[str, Any]]) -> str:
    """The error of the logits, and the accuracy, by the states that kernels were solved for."""
    rows = [row for row in rows if "states" in row]
    lines = ["| units kept | states | error of the logits | accuracy, % |", "|---|---|---|---|"]
    for kept, states in dict.fromkeys((row["kept"], row["states"]) for row in rows):
        cell = [row for row in rows if (row["kept"], row["states"]) == (kept, states)]
        error, right = (np.mean([row[name] for row in cell]) for name in ("error", "accuracy"))
        lines.append(f"| {kept} | {states} | {error:.3f} | {right:.2f} |")
    return "\n".join(lines)


def speed_table(rows: list[dict[str, Any]]) -> str:
    """The time of a forward pass, relative to the full network."""
    rows = [row for row in rows if "speed" in row]
    heads = " | ".join(str(row["units"]) for row in rows)
    times = " | ".join(f"{row['speed']:.2f}" for row in rows)
    return f"| units | {heads} |\n{'|---' * (len(rows) + 1)}|\n| time | {times} |"


def lost(
    rows: list[dict[str, Any]], full: dict[int, float], column: str, share: float, when: str
) -> str:
    """Mean and standard deviation over seeds."""
    cell = [row for row in rows if row.get("column") == column and row["share"] == share]
    points = np.array([full[row["seed"]] - row[when] for row in cell if when in row])
    if not points.size:
        return ""
    deviation = f" ± {points.std(ddof=1):.2f}" if len(points) > 1 else ""
    return f"{points.mean():.2f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS), choices=COLUMNS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--again", action="store_true", help="measure the columns afresh")
    parser.add_argument("--rounds", action="store_true", help="measure the states alone")
    parser.add_argument("--speed", action="store_true", help="measure the forward pass alone")
    given = parser.parse_args()
    results = cells.read(given.out)
    if given.speed:
        results = [row for row in results if "units" not in row] + speed()
        cells.write(given.out, results)
        return
    train, test = load()
    for seed in given.seeds:
        case = Case(seed, train)
        if given.rounds:
            others = [row for row in results if "states" not in row or row["seed"] != seed]
            results = others + rounds(case, Digits(*(part[-10_000:] for part in train)))
            cells.write(given.out, results)
            continue
        full = [{"seed": seed, "network": f"LSTM {UNITS}"}]
        cells.finished(
            given.out,
            results,
            full,
            lambda _, case=case: {"accuracy": accuracy(case.net, case.params, test)},
        )
        keys = [
            {"seed": seed, "share": share, "column": column}
            for share in SHARES
            for column in given.columns
        ]
        cells.finished(
            given.out,
            results,
            keys,
            lambda key, case=case: measure(key, case, train, test),
            again=given.again,
        )
    print(table(results))


if __name__ == "__main__":
    main()
