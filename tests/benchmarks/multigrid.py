"""Multigrid training against flat training: the FLOPs and the time to flat training's best validation loss.

MNIST by 784-1024-1024-10, batch 100, three tenths of the pixels hidden at each step (with a tenth the wide network
overfits, and flat training is best at its lowest rate), Adam in one cosine cycle whose length is the run's.
50,000 images train, the last 10,000 judge every 250 steps; the test images are looked at once, at the end. "flat" has 6,000 steps;
every other column has at most half of its FLOPs, and its best of the same four peak rates, chosen by the validation loss of seed 0.
What a column needs is where it first reaches the best validation loss of flat training with the same seed; a run that never does is
counted as such. FLOPs are XLA's, of every step and every change of width; seconds leave the judging out.

    flat, half                 half of the steps: what the shorter cycle alone is worth
    multigrid                  a cascade of widths 1/4, 1/2, 1 (or 1/2, 1) by `jc.multigrid`
    multigrid, twins alike     repeated channels are told apart by nothing
    Net2Net                    random channels are repeated, with a little noise on their weights (Chen et al. 2016)
    layer stacking             one hidden layer first, the second is put in as the identity (Net2Net's deepening)

    python tests/benchmarks/multigrid.py               # rates on seed 0, then 3 seeds; a minute a run of one core
    python tests/benchmarks/multigrid.py --plot PATH   # also draws loss against FLOPs

Finished cells stay in the results file (`--out`).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cells import finished, read
from hashednets import dense_params, error, logits, loss_of, one_cycle, to_unit
from mnist import Digits
from mnist import load as load_mnist

import jaxcompress as jc
from jaxcompress.training.multigrid import flops

SIZES = (784, 1_024, 1_024, 10)
STEPS, BATCH, EVERY, DROPOUT = 6_000, 100, 250, 0.3
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
VALIDATION = 10_000

Levels = tuple[tuple[int, int], ...]
Point = tuple[float, float, float]
"""FLOPs, validation loss and seconds."""


class Judge:
    """The validation loss on the way, and what was spent for it."""

    def __init__(self, data: Digits):
        self.data, self.points, self.judging, self.start = data, [], 0.0, time.perf_counter()

    def __call__(self, params: Any, spent: float) -> None:
        now = time.perf_counter()
        found = np.mean([validation_loss(params, *part) for part in zip(*(np.split(each, 10) for each in self.data), strict=True)])
        seconds = now - self.start - self.judging
        self.points.append([spent, round(float(found), 5), round(seconds, 2)])
        self.judging += time.perf_counter() - now


@jax.jit
def validation_loss(params: Any, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, to_unit(pixels)), labels).mean()


def params_of(seed: int, sizes: tuple[int, ...] = SIZES) -> Any:
    return dense_params(jax.random.key(seed), sizes)


NET = jc.trace(logits, params_of(0), jnp.zeros((2, 784)))


def cascade(levels: Levels, rate: float, seed: int, data: Digits, judge: Judge, **options: Any) -> Any:
    """By `jc.multigrid`."""
    steps = sum(count for _, count in levels)
    watch = lambda state: judge(state.params, state.spent)
    given = dict(optimizer=one_cycle(rate, steps), levels=levels, batch_size=BATCH, seed=seed, watch=watch, every=EVERY)
    return jc.multigrid(NET, loss_of(DROPOUT, 1.0), params_of(seed), tuple(data), **given, **options).params


def grown(
    levels: tuple[tuple[Any, int], ...], begin: Any, change: Callable[[Any, Any, np.random.Generator], Any],
    rate: float, seed: int, data: Digits, judge: Judge,
) -> Any:  # fmt: skip
    """Level after level by `jc.fit`, Adam's moments afresh on each and one cycle over all."""
    total = sum(count for _, count in levels)
    optimizer, loss, rng = one_cycle(rate, total), loss_of(DROPOUT, 1.0), np.random.default_rng(seed)
    params, done, spent = begin, 0, 0.0
    for level, (what, count) in enumerate(levels):
        if level:
            params = change(params, what, rng)
        fresh = optimizer.init(params)
        count_of = lambda part, done=done: (
            part._replace(count=jnp.int32(done)) if isinstance(part, optax.ScaleByScheduleState) else part
        )
        states = jax.tree.map(count_of, fresh, is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState))
        cost = step_flops(optimizer, loss, params, fresh)
        watch = lambda state, spent=spent, done=done, cost=cost: judge(state.params, spent + cost * (int(state.step) - done))
        start = jc.FitState(params, states, jnp.int32(done), jnp.zeros((done,), jnp.float32))
        given = dict(optimizer=optimizer, steps=done + count, batch_size=BATCH, seed=seed, state=start, watch=watch, every=EVERY)
        params = jc.fit(loss, params, tuple(data), **given).params
        done, spent = done + count, spent + cost * count
    return params


def step_flops(optimizer: Any, loss: Any, params: Any, state: Any) -> float:
    def step(params: Any, state: Any, batch: Any, key: jax.Array) -> Any:
        gradient = jax.grad(loss)(params, batch, key)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    batch = jax.ShapeDtypeStruct((BATCH, 784), jnp.uint8), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    return flops(step, params, state, batch, jax.random.key(0))


def wider(params: Any, width: int, rng: np.random.Generator, noise: float = 0.01) -> Any:
    """Net2Net: random channels are repeated, what reads them is divided by how often, and all weights get a little noise."""
    layers = [{name: np.asarray(leaf, np.float64) for name, leaf in params[str(index)].items()} for index in range(len(params))]
    for here, behind in itertools.pairwise(layers):
        old = here["kernel"].shape[1]
        source = np.concatenate([np.arange(old), rng.integers(0, old, width - old)])
        here["kernel"], here["bias"] = here["kernel"][:, source], here["bias"][source]
        behind["kernel"] = behind["kernel"][source] / np.bincount(source, minlength=old)[source][:, None]
    for layer in layers[:-1]:
        layer["kernel"] = layer["kernel"] + noise * layer["kernel"].std() * rng.normal(size=layer["kernel"].shape)
    return {str(index): jax.tree.map(jnp.float32, layer) for index, layer in enumerate(layers)}


def deeper(params: Any, _: Any, rng: np.random.Generator) -> Any:
    """The identity in front of the last layer: rectified units pass it as they are."""
    width = params["1"]["kernel"].shape[0]
    middle = {"kernel": jnp.eye(width, dtype=jnp.float32), "bias": jnp.zeros(width)}
    return {"0": params["0"], "1": middle, "2": params["1"]}


THREE: Levels = ((4, 4_000), (2, 2_000), (1, 1_500))
TWO: Levels = ((2, 4_000), (1, 1_250))
COLUMNS: dict[str, Callable[..., Any]] = {
    "flat": partial(cascade, ((1, STEPS),)),
    "flat, half": partial(cascade, ((1, STEPS // 2),)),
    "multigrid": partial(cascade, THREE),
    "multigrid, two levels": partial(cascade, TWO),
    "multigrid, twins alike": partial(cascade, THREE, split=0.0),
}


def net2net(rate: float, seed: int, data: Digits, judge: Judge) -> Any:
    levels = tuple((1_024 // factor, count) for factor, count in THREE)
    return grown(levels, params_of(seed, (784, 256, 256, 10)), wider, rate, seed, data, judge)


def stacked(rate: float, seed: int, data: Digits, judge: Judge) -> Any:
    return grown((("shallow", 2_750), ("deep", 1_750)), params_of(seed, (784, 1_024, 10)), deeper, rate, seed, data, judge)


COLUMNS |= {"Net2Net": net2net, "layer stacking": stacked}


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """One run."""
    train, test = load_mnist()
    data, held = Digits(*(each[:-VALIDATION] for each in train)), Digits(*(each[-VALIDATION:] for each in train))
    judge = Judge(held)
    params = COLUMNS[key["column"]](key["rate"], key["seed"], data, judge)
    return {"error": error(params, test), "points": judge.points}


def best(row: dict[str, Any]) -> float:
    return min(loss for _, loss, _ in row["points"])


def cells(columns: list[str], seeds: int, results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All rates on seed 0, then the best one on the others."""
    for column in columns:
        for rate in RATES:
            yield {"column": column, "rate": rate, "seed": 0}
        mine = [row for row in results if row["column"] == column and row["seed"] == 0 and row["rate"] in RATES]
        rate = min(mine, key=best)["rate"]
        for seed in range(1, seeds):
            yield {"column": column, "rate": rate, "seed": seed}


def reached(row: dict[str, Any], goal: float) -> list[float] | None:
    """The FLOPs and seconds after which the validation loss is at most the goal."""
    return next(([spent, seconds] for spent, loss, seconds in row["points"] if loss <= goal), None)


def chosen(results: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """The runs of a column at its best rate, by seed."""
    rate = min((row for row in results if row["column"] == column and row["seed"] == 0), key=best)["rate"]
    return sorted((row for row in results if (row["column"], row["rate"]) == (column, rate)), key=lambda row: row["seed"])


def table(results: list[dict[str, Any]], columns: list[str]) -> str:
    """A line for each column: what it needs in shares of what flat training does, and what it ends with."""
    flat = {row["seed"]: row for row in chosen(results, "flat")}
    lines = [
        "| training | rate | FLOPs spent | best validation loss | reach flat's best | FLOPs to it | seconds to it | test error % |"
    ]
    lines.append("|---" * 8 + "|")
    for column in columns:
        rows = [row for row in chosen(results, column) if row["seed"] in flat]
        shares, spent = [], []
        for row in rows:
            base = flat[row["seed"]]
            goal = reached(base, best(base))
            found = reached(row, best(base))
            assert goal
            spent.append(row["points"][-1][0] / base["points"][-1][0])
            if found:
                shares.append([found[0] / goal[0], found[1] / goal[1]])
        mean = lambda values, digits: (
            f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.{digits}f}"
        )
        both = [mean([share[place] for share in shares], 2) if shares else "never" for place in range(2)]
        losses = [best(row) for row in rows]
        lines.append(
            f"| {column} | {rows[0]['rate']:g} | {np.mean(spent):.2f} | {mean(losses, 4)} | {len(shares)} of {len(rows)} "
            f"| {both[0]} | {both[1]} | {mean([row['error'] for row in rows], 2)} |"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], columns: list[str], path: Path) -> None:
    """Validation loss against FLOPs, the seeds' mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    for column in columns:
        rows = chosen(results, column)
        spent = np.array([point[0] for point in rows[0]["points"]])
        losses = np.mean([[point[1] for point in row["points"]] for row in rows], 0)
        ax.plot(spent, losses, label=column)
    ax.set(xlabel="FLOPs", ylabel="validation loss", yscale="log", ylim=(None, 0.2))
    ax.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="COLUMN")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="draw loss against FLOPs there")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"), help="where finished cells are kept")
    args = parser.parse_args()
    results = read(args.out)
    finished(args.out, results, cells(args.columns, args.seeds, results), measure)
    columns = [column for column in COLUMNS if any(row["column"] == column for row in results)]
    print(table(results, columns))
    if args.plot:
        draw(results, columns, args.plot)


if __name__ == "__main__":
    main()
