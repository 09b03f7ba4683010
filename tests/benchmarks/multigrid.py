"""Multigrid training against flat training.

The FLOPs and the time to flat training's best validation loss.

MNIST, batch 100, three tenths of the pixels hidden at each step (with a tenth the wide networks
overfit, and flat training is best at its lowest rate), Adam in one cosine cycle whose length is
the run's; a perceptron 784-1024-1024-10, and a Transformer of two layers of 64 channels that reads
two rows at a time. 50,000 images train, the last 10,000 judge every 250 steps; the test images are
looked at once, at the end. Every column has its best of four peak rates, the same for all, by the
validation loss of seed 0; the levels of "multigrid" were chosen on seeds 3 and 4 for the
perceptron, and set in advance for the Transformer. What a column needs is where it first reaches
the best validation loss of flat training with the same seed; a run that never does is counted as
such. FLOPs are XLA's, of every step and every change of width.

    flat                       all steps at full width; every other column has less than half of
    its FLOPs
    flat, half                 half of the steps: what the shorter cycle alone is worth
    multigrid                  by `jc.multigrid`, from half of the channels to all multigrid, three
    levels    from a quarter of the channels multigrid, twins alike     repeated channels are told
    apart by nothing multigrid, afresh          the optimizer's moments start anew on each level
    half the width             the first level alone, and never more channels Net2Net
    from half of the channels by repetition, noise on all weights, moments anew (Chen et al. 2016)
    layer stacking             one hidden layer first; then two, the perceptron's second the
    identity (Net2Net's deepening), the
                               Transformer's a copy of the first (Gong et al. 2019)

    # rates on seed 0, then 3 seeds; one to four minutes a run of one core
    python tests/benchmarks/multigrid.py
    python tests/benchmarks/multigrid.py --plot PATH   # also draws loss against FLOPs
    # milliseconds a step at each width, interleaved, on a quiet machine
    python tests/benchmarks/multigrid.py --speed

Finished cells stay in the results file (`--out`).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from cells import finished, read
from hashednets import dense_params, logits, one_cycle, partly_hidden, to_unit
from mnist import Digits
from mnist import load as load_mnist

import jaxcompress as jc
from jaxcompress.training.multigrid import step_flops

BATCH, EVERY, HIDDEN = 100, 250, 0.3
VALIDATION = 10_000

Levels = tuple[tuple[int, int], ...]


# --- the networks --------------------------------------------------------------------------------


class Layer(nn.Module):
    """Attention and a perceptron, each after a norm and added to what came in."""

    heads: int
    head: int
    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=self.heads * self.head, name="attention"
        )(y, y)
        return x + nn.Dense(x.shape[-1])(
            nn.gelu(nn.Dense(self.inner, name="up")(nn.LayerNorm()(x)))
        )


class Transformer(nn.Module):
    """Two rows of an image are a token; the tokens' mean is classified."""

    width: int = 64
    heads: int = 4
    head: int = 16
    inner: int = 256
    layers: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.width, name="enter")(x.reshape(-1, 14, 56))
        x = x + self.param("places", nn.initializers.normal(0.02), (14, self.width))
        for index in range(self.layers):
            x = Layer(self.heads, self.head, self.inner, name=f"layer_{index}")(x)
        return nn.Dense(10, name="leave")(nn.LayerNorm()(x).mean(1))


def transformer(params: Any, x: jax.Array) -> jax.Array:
    """At the sizes that the parameters have."""
    first, width = params["layer_0"], params["enter"]["kernel"].shape[1]
    heads, head = first["attention"]["query"]["kernel"].shape[1:]
    layers = sum(name.startswith("layer_") for name in params)
    return jnp.asarray(
        Transformer(width, heads, head, first["up"]["kernel"].shape[1], layers).apply(
            {"params": params}, x
        )
    )


def new_transformer(seed: int, factor: int = 1, layers: int = 2) -> Any:
    module = Transformer(64 // factor, 4 // factor, 16 // factor, 256 // factor, layers)
    return module.init(jax.random.key(seed), jnp.zeros((1, 784)))["params"]


def stacked_transformer(params: Any) -> Any:
    return params | {"layer_1": params["layer_0"]}


def new_perceptron(seed: int, factor: int = 1, layers: int = 2) -> Any:
    return dense_params(jax.random.key(seed), (784, *[1_024 // factor] * layers, 10))


def stacked_perceptron(params: Any) -> Any:
    """The identity in front of the last layer: rectified units pass it as they are."""
    width = params["1"]["kernel"].shape[0]
    return {
        "0": params["0"],
        "1": {"kernel": jnp.eye(width), "bias": jnp.zeros(width)},
        "2": params["1"],
    }


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network and how long it is trained.

    Attributes:
        new: from a seed, a factor that its width is divided by and a number of layers to
            parameters.
        apply: at any width and depth.
        stacked: parameters of two layers out of those of one.
        rates: of which each column has its best.
        steps: of flat training.
        two, three: the levels of multigrid.
        depths: the steps with one layer and with two.
    """

    new: Callable[..., Any]
    apply: Callable[[Any, jax.Array], jax.Array]
    stacked: Callable[[Any], Any]
    rates: tuple[float, ...]
    steps: int
    two: Levels
    three: Levels
    depths: tuple[int, int]

    @cached_property
    def net(self) -> jc.networks.Network:
        return jc.trace(self.apply, self.new(0), jnp.zeros((2, 784)))

    @cached_property
    def loss(self) -> Callable[..., jax.Array]:
        plain = jc.training.cross_entropy(self.apply)
        return lambda params, batch, key: plain(
            params, (partly_hidden(batch[0], HIDDEN, key), batch[1]), key
        )


SUBJECTS = {
    "perceptron": Subject(
        new_perceptron,
        logits,
        stacked_perceptron,
        (5e-4, 1e-3, 2e-3, 4e-3),
        6_000,
        ((2, 6_000), (1, 800)),
        ((4, 3_000), (2, 4_000), (1, 800)),
        (2_500, 1_750),
    ),
    "Transformer": Subject(
        new_transformer,
        transformer,
        stacked_transformer,
        (2e-3, 4e-3, 8e-3, 1.6e-2),
        3_000,
        ((2, 3_600), (1, 500)),
        ((4, 2_000), (2, 3_000), (1, 500)),
        (1_500, 750),
    ),
}


# --- the trainings -------------------------------------------------------------------------------


class Judge:
    """The validation loss on the way, and what was spent for it."""

    def __init__(self, apply: Callable[[Any, jax.Array], jax.Array], data: Digits):
        self.losses, self.data = losses(apply), [np.split(each, 10) for each in data]
        self.points, self.judging, self.start = [], 0.0, time.perf_counter()

    def __call__(self, params: Any, spent: float) -> None:
        now = time.perf_counter()
        found = np.mean([self.losses(params, *part)[0] for part in zip(*self.data, strict=True)])
        self.points.append(
            [spent, round(float(found), 5), round(now - self.start - self.judging, 2)]
        )
        self.judging += time.perf_counter() - now


@cache
def losses(
    apply: Callable[[Any, jax.Array], jax.Array],
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The mean cross entropy, and the share that is wrong."""

    def both(params: Any, pixels: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = apply(params, to_unit(pixels))
        loss = optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()
        return loss, jnp.mean(jnp.argmax(found, -1) != labels)

    return jax.jit(both)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: what, at which rate, with which seed, on which data, judged by whom."""

    subject: Subject
    rate: float
    seed: int
    data: Digits
    judge: Judge

    def cascade(self, levels: Levels, **options: Any) -> Any:
        """By `jc.multigrid`."""
        optimizer = one_cycle(self.rate, sum(count for _, count in levels))

        def watch(state):
            return self.judge(state.params, state.spent)

        given: dict[str, Any] = dict(
            optimizer=optimizer,
            levels=levels,
            batch_size=BATCH,
            seed=self.seed,
            callback=watch,
            callback_steps=EVERY,
        )
        return jc.multigrid(
            self.subject.net,
            self.subject.loss,
            self.subject.new(self.seed),
            tuple(self.data),
            **given,
            **options,
        ).params

    def grown(self, params: Any, counts: tuple[int, ...], change: Callable[[Any], Any]) -> Any:
        """Level after level by `jc.fit`, Adam's moments anew on each and one cycle over all."""
        optimizer, loss = one_cycle(self.rate, sum(counts)), self.subject.loss
        done, spent = 0, 0.0
        for level, count in enumerate(counts):
            params = change(params) if level else params

            def count_of(part, done=done):
                return (
                    part._replace(count=jnp.int32(done))
                    if isinstance(part, optax.ScaleByScheduleState)
                    else part
                )

            fresh = jax.tree.map(
                count_of,
                optimizer.init(params),
                is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState),
            )
            start = jc.training.FitState(
                params, fresh, jnp.int32(done), jnp.zeros((done,), jnp.float32)
            )
            cost = step_flops(loss, optimizer, start, tuple(self.data), BATCH)

            def watch(state, spent=spent, done=done, cost=cost):
                return self.judge(state.params, spent + cost * (int(state.step) - done))

            given: dict[str, Any] = dict(
                optimizer=optimizer,
                steps=done + count,
                batch_size=BATCH,
                seed=self.seed,
                callback=watch,
                callback_steps=EVERY,
            )
            params = jc.fit(loss, params, tuple(self.data), state=start, **given).params
            done, spent = done + count, spent + cost * count
        return params


def flat(job: Job, share: float = 1.0) -> Any:
    return job.cascade(((1, int(share * job.subject.steps)),))


def multigrid(job: Job, levels: str = "two", **options: Any) -> Any:
    return job.cascade(getattr(job.subject, levels), **options)


def half_the_width(job: Job) -> Any:
    (factor, steps), (_, more) = job.subject.two
    return job.grown(job.subject.new(job.seed, factor), (steps + more,), lambda params: params)


def afresh(job: Job, split: float = 0.5, noise: float = 0.0) -> Any:
    """Repetition without the optimizer's state; with noise and no split it is Net2Net."""
    (factor, steps), (_, more) = job.subject.two
    change = jc.refine(job.subject.net, factor, split=split, seed=job.seed)

    def wider(params: Any) -> Any:
        wide, treedef = jax.tree.flatten(change(params))
        keys = jax.random.split(jax.random.key(job.seed), len(wide))
        return treedef.unflatten(
            [
                leaf + noise * leaf.std() * jax.random.normal(key, leaf.shape)
                for leaf, key in zip(wide, keys, strict=True)
            ]
        )

    return job.grown(job.subject.new(job.seed, factor), (steps, more), wider)


def stacking(job: Job) -> Any:
    return job.grown(job.subject.new(job.seed, layers=1), job.subject.depths, job.subject.stacked)


COLUMNS: dict[str, Callable[[Job], Any]] = {
    "flat": flat,
    "flat, half": partial(flat, share=0.5),
    "multigrid": multigrid,
    "multigrid, three levels": partial(multigrid, levels="three"),
    "multigrid, twins alike": partial(multigrid, split=0.0),
    "multigrid, afresh": afresh,
    "half the width": half_the_width,
    "Net2Net": partial(afresh, split=0.0, noise=0.01),
    "layer stacking": stacking,
}


def speed(subject: Subject, rounds: int = 7, steps: int = 50) -> dict[int, float]:
    """Milliseconds a step at the full width, half and a quarter: medians of interleaved rounds."""
    train, _ = load_mnist()
    optimizer, times = one_cycle(1e-3, subject.steps), {factor: [] for factor in (1, 2, 4)}
    begun = {factor: subject.new(0, factor) for factor in times}
    for turn, factor in itertools.product(range(rounds + 1), times):
        start = time.perf_counter()
        given: dict[str, Any] = dict(
            optimizer=optimizer, steps=steps, batch_size=BATCH, callback_steps=steps, progress=False
        )
        jax.block_until_ready(jc.fit(subject.loss, begun[factor], tuple(train), **given).params)
        if turn:  # the first one compiles
            times[factor].append(1e3 * (time.perf_counter() - start) / steps)
    return {factor: float(np.median(found)) for factor, found in times.items()}


def speed_table(networks: list[str]) -> str:
    """Milliseconds a step, and what the levels' steps take of flat training's time."""
    lines = [
        "| network | full width | half | a quarter | multigrid | three levels |",
        "|---" * 6 + "|",
    ]
    for name in networks:
        subject, found = SUBJECTS[name], speed(SUBJECTS[name])
        whole = subject.steps * found[1]
        shares = [
            sum(count * found[factor] for factor, count in levels) / whole
            for levels in (subject.two, subject.three)
        ]
        lines.append(
            f"| {name} | "
            + " | ".join(f"{ms:.2f} ms" for ms in found.values())
            + f" | {shares[0]:.2f} | {shares[1]:.2f} |"
        )
    return "\n".join(lines)


# --- the cells -----------------------------------------------------------------------------------


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """One run."""
    train, test = load_mnist()
    data, held = (
        Digits(*(each[:-VALIDATION] for each in train)),
        Digits(*(each[-VALIDATION:] for each in train)),
    )
    subject = SUBJECTS[key["network"]]
    judge = Judge(subject.apply, held)
    params = COLUMNS[key["column"]](Job(subject, key["rate"], key["seed"], data, judge))
    parts = zip(*(np.split(each, 10) for each in test), strict=True)
    wrong = np.mean([losses(subject.apply)(params, *part)[1] for part in parts])
    return {"error": round(100 * float(wrong), 2), "points": judge.points}


def best(row: dict[str, Any]) -> float:
    return min(loss for _, loss, _ in row["points"])


def cells(
    networks: list[str], columns: list[str], seeds: int, results: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """All rates on seed 0, then the best one on the others."""
    for network in networks:
        for column in columns:
            for rate in SUBJECTS[network].rates:
                yield {"network": network, "column": column, "rate": rate, "seed": 0}
            rate = chosen(results, network, column)[0]["rate"]
            for seed in range(1, seeds):
                yield {"network": network, "column": column, "rate": rate, "seed": seed}


def chosen(results: list[dict[str, Any]], network: str, column: str) -> list[dict[str, Any]]:
    """The runs of a column at its best rate, by seed."""
    rates = SUBJECTS[network].rates
    mine = [
        row
        for row in results
        if (row["network"], row["column"]) == (network, column) and row["rate"] in rates
    ]
    rate = min((row for row in mine if row["seed"] == 0), key=best)["rate"]
    return sorted((row for row in mine if row["rate"] == rate), key=lambda row: row["seed"])


def reached(row: dict[str, Any], goal: float) -> list[float] | None:
    """The FLOPs and seconds after which the validation loss is at most the goal."""
    return next(([spent, seconds] for spent, loss, seconds in row["points"] if loss <= goal), None)


def table(results: list[dict[str, Any]]) -> str:
    """A line for each column: its costs as shares of flat training's, and where it ends."""
    head = [
        "network",
        "training",
        "rate",
        "FLOPs, all",
        "best validation loss",
        "reach flat's best",
        "FLOPs to it",
    ]
    head += ["FLOPs to 2 % above it", "test error %"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]

    def mean(values, digits):
        return (
            f"{np.mean(values):.{digits}f} ± "
            f"{np.std(values, ddof=min(1, len(values) - 1)):.{digits}f}"
        )

    for network, column in ((network, column) for network in SUBJECTS for column in COLUMNS):
        if not any((row["network"], row["column"]) == (network, column) for row in results):
            continue
        flat = {row["seed"]: row for row in chosen(results, network, "flat")}
        rows = [row for row in chosen(results, network, column) if row["seed"] in flat]
        spent = np.mean(
            [np.divide(row["points"][-1], flat[row["seed"]]["points"][-1]) for row in rows], 0
        )
        goals = [reached(flat[row["seed"]], best(flat[row["seed"]])) for row in rows]
        found = [reached(row, best(flat[row["seed"]])) for row in rows]
        shares = np.array(
            [np.divide(one, goal) for one, goal in zip(found, goals, strict=True) if one and goal]
        )
        both = [mean(shares[:, 0], 2) if len(shares) else "never"]
        near = [
            [reached(each, 1.02 * best(flat[row["seed"]])) for each in (row, flat[row["seed"]])]
            for row in rows
        ]
        near = [one[0] / goal[0] for one, goal in near if one and goal]
        both.append(f"{mean(near, 2)} ({len(near)} of {len(rows)})" if near else "never")
        ends = mean([best(row) for row in rows], 4), mean([row["error"] for row in rows], 2)
        each = [network, column, f"{rows[0]['rate']:g}", f"{spent[0]:.2f}", ends[0]]
        lines.append(
            "| " + " | ".join([*each, f"{len(shares)} of {len(rows)}", *both, ends[1]]) + " |"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Validation loss against FLOPs, the seeds' mean."""
    from matplotlib.figure import Figure

    networks = [
        network for network in SUBJECTS if any(row["network"] == network for row in results)
    ]
    figure = Figure(figsize=(6 * len(networks), 4), layout="constrained")
    for ax, network in zip(
        figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True
    ):
        for column in (
            column
            for column in COLUMNS
            if any((row["network"], row["column"]) == (network, column) for row in results)
        ):
            rows = chosen(results, network, column)
            losses = np.mean([[loss for _, loss, _ in row["points"]] for row in rows], 0)
            ax.plot([spent for spent, _, _ in rows[0]["points"]], losses, label=column)
        ax.set(
            title=network, xlabel="FLOPs", ylabel="validation loss", yscale="log", ylim=(None, 0.2)
        )
        ax.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--networks", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="NETWORK"
    )
    parser.add_argument(
        "--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="COLUMN"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="draw loss against FLOPs there")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    parser.add_argument("--speed", action="store_true", help="print milliseconds a step, and stop")
    args = parser.parse_args()
    if args.speed:
        return print(speed_table(args.networks))
    results = read(args.out)
    finished(args.out, results, cells(args.networks, args.columns, args.seeds, results), measure)
    print(table(results))
    return draw(results, args.plot) if args.plot else None


if __name__ == "__main__":
    main()
