"""Channels of trained networks are cut without fine-tuning.

What is lost on Fashion-MNIST, and what the small network costs.

Two ordinary linen networks, a perceptron 784-512-512-10 and a small ConvNet with batch norm, are
trained with three seeds and cut on every hidden axis at once. 20,000 training images calibrate, an
eighth of each image's patches; the 10,000 test images judge. The perceptron's weight decay was
chosen out of two on the last 10,000 training images, one seed; the rest of the training was set in
advance. "ours" is `rotate_and_prune` with a budget of channels and `reconstruct`: a share of all
channels, divided by the predicted error of the logits. In all other columns the share is the same
in every layer: "equal in all layers" is ours so, "no reconstruction" that without the second step,
"weights alone" without calibration; magnitude (with our reconstruction, too), l1 and random are
the controls. A second table is of `jc.coarsen`, which averages neighbours: after `jc.seriate` in
each of its three ways, with the shares that "ours" has, in the order that training left, and
without reconstruction. Then two speeds: the cut network against the same network written by hand,
and what `jc.trace` costs beyond `jax.make_jaxpr` on a twelve-layer encoder.

    # the tables; about 75 minutes on two cores, 45 of them training
    python tests/benchmarks/channels.py
    # measure afresh, for instance after a change of the transform
    python tests/benchmarks/channels.py --again
    python tests/benchmarks/channels.py --alone  # each axis cut alone, to see which one loses what

Trained parameters stay in the cache folder (`--retrain` makes them anew), finished cells in the
results file (`--out`).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fashion
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from cells import write
from mnist import Digits
from tqdm.auto import tqdm

import jaxcompress as jc

KEEPS = (0.7, 0.5)
METHODS = {
    "ours": "auto",
    "equal in all layers": "auto",
    "no reconstruction": "auto",
    "weights alone": "auto",
    "magnitude, reconstructed": "magnitude",
    "magnitude": "magnitude",
    "l1": "l1",
    "random": "random",
}
ORDERS = {
    "coarsened": "tour",
    "coarsened, leaf order": "leaves",
    "coarsened, spectral order": "spectral",
    "coarsened, shares as ours": "tour",
    "coarsened, not in order": None,
    "coarsened, no reconstruction": "tour",
}
RECONSTRUCTED = ("ours", "equal in all layers", "magnitude, reconstructed", *list(ORDERS)[:-1])
TARGETS = {0.7: 0.3, 0.5: 1.0}
"""Points that our cut may lose; a tenth of what magnitude loses is the other half of the target."""

CALIBRATION, PER_BATCH, SAMPLE = 20_000, 500, 1 / 8
BATCH, COST_BATCH, RUNS = 128, 128, 30
VALIDATION = 10_000


# --- the networks --------------------------------------------------------------------------------


class Perceptron(nn.Module):
    """Dense layers with relu between them."""

    widths: tuple[int, ...] = (512, 512)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class ConvNet(nn.Module):
    """Convolutions with batch norm, some of them pooled, then a hidden layer."""

    widths: tuple[int, ...] = (16, 16, 32, 32, 128)
    pooled: tuple[int, ...] = (1, 3)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(-1, 28, 28, 1)
        for index, width in enumerate(self.widths[:-1]):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            if index in self.pooled:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.widths[-1])(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def wider(widths: tuple[int, ...] = (32, 64, 64, 128)) -> ConvNet:
    """Fewer convolutions of more channels."""
    return ConvNet(widths, pooled=(0, 2))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network with its training.

    Attributes:
        make: from widths to the module.
        layers: the layers whose kernels' last dimensions are the widths.
        epochs, rate, decay: of Adam with a cosine cycle and decoupled weight decay.
    """

    make: Callable[..., nn.Module]
    layers: tuple[str, ...]
    epochs: int
    rate: float
    decay: float

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        return self.make().apply(params, x)

    def by_hand(self, params: Any) -> Callable[[Any, jax.Array], jax.Array]:
        """The module written at the widths that parameters have."""
        module = self.make(
            tuple(params["params"][layer]["kernel"].shape[-1] for layer in self.layers)
        )
        return lambda params, x: module.apply(params, x)


SUBJECTS = {
    "perceptron": Subject(Perceptron, ("Dense_0", "Dense_1"), 12, 1e-3, 0.0),
    "ConvNet": Subject(ConvNet, ("Conv_0", "Conv_1", "Conv_2", "Conv_3", "Dense_0"), 4, 3e-3, 0.01),
    "wider ConvNet": Subject(wider, ("Conv_0", "Conv_1", "Conv_2", "Dense_0"), 4, 3e-3, 0.01),
}


def to_unit(pixels: Any) -> jax.Array:
    return jnp.asarray(pixels, jnp.float32) / 255


def train(name: str, seed: int, data: Digits) -> Any:
    """Train one network from scratch; a module with batch statistics updates them on the way."""
    subject = SUBJECTS[name]
    module = subject.make()
    variables = module.init(jax.random.key(seed), jnp.zeros((1, data.pixels.shape[1])))
    steps = subject.epochs * (len(data.labels) // BATCH)
    schedule = optax.cosine_onecycle_schedule(steps, subject.rate, pct_start=0.1)
    optimizer = optax.adamw(schedule, weight_decay=subject.decay)
    described = f"{name}, seed {seed}"
    if "batch_stats" not in variables:
        loss = jc.training.cross_entropy(
            lambda params, pixels: module.apply(params, to_unit(pixels))
        )
        given = dict(
            optimizer=optimizer, steps=steps, batch_size=BATCH, seed=seed, description=described
        )
        return jc.fit(loss, variables, tuple(data), **given).params

    def loss(params: Any, statistics: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        both = {"params": params, "batch_stats": statistics}
        logits, new = module.apply(both, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new["batch_stats"]

    @jax.jit
    def step(
        params: Any, statistics: Any, state: Any, pixels: jax.Array, y: jax.Array
    ) -> tuple[Any, Any, Any]:
        gradient, statistics = jax.grad(loss, has_aux=True)(params, statistics, to_unit(pixels), y)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), statistics, state

    params, statistics = variables["params"], variables["batch_stats"]
    state, rng = optimizer.init(params), np.random.default_rng(seed)
    with tqdm(total=steps, desc=described, leave=False) as bar:
        for _ in range(subject.epochs):
            order = rng.permutation(len(data.labels))[: steps // subject.epochs * BATCH].reshape(
                -1, BATCH
            )
            for index in order:
                params, statistics, state = step(
                    params, statistics, state, data.pixels[index], data.labels[index]
                )
                bar.update()
    return {"params": params, "batch_stats": statistics}


def trained(name: str, seed: int, data: Digits, again: bool) -> Any:
    """Parameters from the cache folder, trained when they are not there."""
    path = fashion.cache_folder() / "channels" / f"{name}-{seed}.safetensors"
    if again or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        jc.save(path, train(name, seed, data))
    return jc.load(path)


def accuracy(run: Callable[[Any, jax.Array], jax.Array], params: Any, judge: Digits) -> float:
    """In percent."""
    chunks = zip(judge.pixels.reshape(10, -1, 784), judge.labels.reshape(10, -1), strict=True)
    right = [
        np.asarray(jnp.argmax(run(params, to_unit(pixels)), -1)) == labels
        for pixels, labels in chunks
    ]
    return round(100 * float(np.mean(right)), 4)


def flops(run: Callable[[Any, jax.Array], jax.Array], params: Any) -> float:
    """What XLA counts for one batch of 128."""
    cost = jax.jit(run).lower(params, jnp.zeros((COST_BATCH, 784))).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


# --- the cuts (A8) -------------------------------------------------------------------------------


class Case:
    """One trained network, calibrated."""

    def __init__(self, name: str, seed: int, data: Digits, judge: Digits, retrain: bool = False):
        self.subject, self.judge = SUBJECTS[name], judge
        self.params = trained(name, seed, data, retrain)
        self.net = jc.trace(self.subject.apply, self.params, jnp.zeros((COST_BATCH, 784)))
        self.batches = [
            to_unit(batch)
            for batch in np.split(data.pixels[:CALIBRATION], CALIBRATION // PER_BATCH)
        ]
        self.felt = jc.calibrate(
            self.net,
            self.params,
            jc.Calibration(self.batches, sample=SAMPLE),
            sensitivity=True,
            progress=False,
        )
        self.moments = dataclasses.replace(self.felt, gains={})
        self.before = accuracy(self.net, self.params, judge)

    def cut(
        self, keep: float, method: str, seed: int, axes: str = "**"
    ) -> tuple[Any, dict[str, Any]]:
        """The small parameters, and what came of them."""
        divided = jc.rotate_and_prune(self.net, jc.budget(keep, of="channels"), axes=axes)
        if method in ORDERS:
            factor: Any = 1 / keep
            if method.endswith("as ours"):
                factor = {
                    key: 1 / share
                    for key, share in divided.plan(self.params, self.felt).keeps.items()
                }
            equal = jc.coarsen(self.net, factor, axes=axes)
            equal = (
                jc.chain(jc.seriate(self.net, way, axes=axes), equal)
                if (way := ORDERS[method])
                else equal
            )
        else:
            equal = jc.rotate_and_prune(
                self.net, keep, axes=axes, method=METHODS[method], seed=seed
            )
        transform, moments = (divided, self.felt) if method == "ours" else (equal, self.moments)
        if method in RECONSTRUCTED:
            transform = jc.chain(
                transform,
                jc.reconstruct(
                    self.net, jc.Calibration(self.batches, sample=SAMPLE), progress=False
                ),
            )
        start = time.perf_counter()
        small = (
            transform(self.params) if method == "weights alone" else transform(self.params, moments)
        )
        jax.block_until_ready(small)
        seconds = round(time.perf_counter() - start, 3)
        after = accuracy(self.net, small, self.judge)
        return small, {
            "before": self.before,
            "after": after,
            "lost": round(self.before - after, 4),
            "seconds": seconds,
        }

    def costs(self, small: Any) -> dict[str, Any]:
        """Stored numbers, and FLOPs for one batch, before and after."""
        stored = [jc.stored_numbers(params) for params in (self.params, small)]
        counted = [flops(self.net, params) for params in (self.params, small)]
        return {"stored": stored, "flops": counted}


def cut_table(rows: list[dict[str, Any]]) -> str:
    """Points lost, mean and standard deviation over the seeds, as markdown."""
    lines = [
        "| network | cut | "
        + " | ".join(METHODS)
        + " | target | ours / magnitude | stored | FLOPs | seconds |"
    ]
    lines.append("|---" * (7 + len(METHODS)) + "|")
    for name, keep in dict.fromkeys((row["network"], row["keep"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["keep"]) == (name, keep)]
        lost = {
            method: np.array([row["lost"] for row in mine if row["method"] == method])
            for method in METHODS
        }
        spread = [
            f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" if len(x) > 1 else f"{x.mean():.2f}"
            for x in lost.values()
        ]
        stored, counted = (
            f"{mine[0][what][1] / mine[0][what][0]:.2f}" for what in ("stored", "flops")
        )
        ratio = f"{lost['ours'].mean() / max(lost['magnitude'].mean(), 1e-9):.3f}"
        seconds = np.mean([row["seconds"] for row in mine if row["method"] == "ours"])
        cells = [
            f"{1 - keep:.0%}",
            *spread,
            f"{TARGETS[keep]:.1f}",
            ratio,
            stored,
            counted,
            f"{seconds:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def before_table(rows: list[dict[str, Any]]) -> str:
    """The whole networks' accuracies."""
    lines = []
    for name in dict.fromkeys(row["network"] for row in rows):
        whole = {row["seed"]: row["before"] for row in rows if row["network"] == name}
        lines += [
            "",
            f"{name} before: " + ", ".join(f"{value:.2f}" for value in whole.values()) + " % right",
        ]
    return "\n".join(lines)


def coarsening_table(rows: list[dict[str, Any]]) -> str:
    """Points lost by coarsening, and by selecting as many channels in every layer, as markdown."""
    columns = ["equal in all layers", *ORDERS]
    lines = [
        "| network | cut | " + " | ".join(["selected", *ORDERS]) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for name, keep in dict.fromkeys(
        (row["network"], row["keep"]) for row in rows if row["method"] in ORDERS
    ):
        mine = [row for row in rows if (row["network"], row["keep"]) == (name, keep)]
        lost = [
            np.array([row["lost"] for row in mine if row["method"] == column]) for column in columns
        ]
        lines.append(
            f"| {name} | {1 - keep:.0%} | "
            + " | ".join(f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" for x in lost)
            + " |"
        )
    return "\n".join(lines)


def replay_table(rows: list[dict[str, Any]]) -> str:
    """The cut networks through `net`, against the same widths written by hand, as markdown."""
    heads = ("cut to a half, batch 128", "FLOPs of net / by hand", "ms of net", "ms by hand")
    lines = [f"| {' | '.join(heads)} | ratio |", "|---" * 5 + "|"]
    for row in rows:
        counted, (ours, hand) = row["flops"], row["ms"]
        cells = [f"{counted[0] / counted[1]:.6f}", f"{ours:.2f}", f"{hand:.2f}"]
        lines.append(f"| {row['network']} | {' | '.join(cells)} | {row['ratio']:.3f} |")
    return "\n".join(lines)


def alone_table(case: Case, name: str) -> str:
    """Points lost where one axis is cut and the others are whole, as markdown."""
    lines = [
        f"| {name}, one axis alone | size | kind | cut | " + " | ".join(METHODS) + " |",
        "|---" * (4 + len(METHODS)) + "|",
    ]
    for axis, keep in itertools.product(case.net.axes, KEEPS):
        lost = [f"{case.cut(keep, method, 0, axis.key)[1]['lost']:.2f}" for method in METHODS]
        lines.append(
            f"| {axis.key} | {axis.size} | {axis.kind} | {1 - keep:.0%} | {' | '.join(lost)} |"
        )
    return "\n".join(lines)


# --- the speeds (B4, B5) -------------------------------------------------------------------------


def replay_speed(case: Case, small: Any) -> dict[str, Any]:
    """The cut network through `net`, against the same widths written by hand.

    FLOPs, and the medians of interleaved runs.
    """
    ways = {"net": case.net, "by hand": case.subject.by_hand(small)}
    counted = [flops(run, small) for run in ways.values()]
    jitted = [jax.jit(run) for run in ways.values()]
    x = to_unit(case.judge.pixels[:COST_BATCH])
    gap = float(jnp.abs(jitted[0](small, x) - jitted[1](small, x)).max())
    times: list[list[float]] = [[], []]
    calls = 1
    for run, turn in itertools.product(range(-5, RUNS), range(2)):
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(jitted[turn](small, x))
        milliseconds = 1e3 * (time.perf_counter() - start)
        if run >= 0:
            times[turn].append(milliseconds / calls)
        elif run == -2:
            calls = max(1, round(20 / milliseconds))  # a run is long enough for the clock
    medians = [float(np.median(each)) for each in times]
    return {
        "flops": counted,
        "ms": [round(each, 3) for each in medians],
        "ratio": round(medians[0] / medians[1], 4),
        "gap": gap,
    }


class Encoder(nn.Module):
    """Twelve layers in the manner of BERT, small."""

    layers: int = 12

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        x = nn.Embed(1_000, 128)(ids) + nn.Embed(64, 128)(jnp.arange(ids.shape[1]))
        x = nn.LayerNorm()(x)
        for _ in range(self.layers):
            x = nn.LayerNorm()(
                x + nn.MultiHeadDotProductAttention(4)(x, mask=mask[:, None, None, :] > 0)
            )
            x = nn.LayerNorm()(x + nn.Dense(128)(nn.gelu(nn.Dense(512)(x))))
        return nn.Dense(2)(x[:, 0])


def trace_speed(runs: int = 5) -> dict[str, Any]:
    """What `jc.trace` costs beyond `jax.make_jaxpr`, in milliseconds.

    A fresh function each time, that no cache answers.
    """
    model = Encoder()
    inputs = jnp.zeros((2, 32), jnp.int32), jnp.ones((2, 32), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)

    def milliseconds(work: Callable[[Any], Any]) -> float:
        start = time.perf_counter()
        work(lambda params, *inputs: model.apply(params, *inputs))
        return 1e3 * (time.perf_counter() - start)

    def plain(apply):
        return jax.make_jaxpr(apply)(params, *inputs)

    def traced(apply):
        return jc.trace(apply, params, *inputs)

    first = milliseconds(plain), milliseconds(traced)
    times = np.array([[milliseconds(plain), milliseconds(traced)] for _ in range(runs)])
    jaxpr, trace = np.median(times, 0)
    equations = len(
        jax.make_jaxpr(lambda params, *inputs: model.apply(params, *inputs))(params, *inputs).eqns
    )
    found = {
        "make_jaxpr": jaxpr,
        "trace": trace,
        "beyond": trace - jaxpr,
        "first": first[1] - first[0],
    }
    return {"equations": equations, **{key: round(float(value), 1) for key, value in found.items()}}


# --- all of it -----------------------------------------------------------------------------------


def validate(data: Digits, names: list[str]) -> None:
    """The accuracy of one seed on the last 10,000 training images, trained on the others."""
    for name in names:
        params = train(name, 0, Digits(*(array[:-VALIDATION] for array in data)))
        right = accuracy(
            jax.jit(SUBJECTS[name].apply), params, Digits(*(array[-VALIDATION:] for array in data))
        )
        print(f"{name}: {right:.2f} % of {VALIDATION:,} training images that were held back")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--networks", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="NETWORK"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--again", action="store_true", help="measure afresh what the results file has already"
    )
    parser.add_argument("--retrain", action="store_true", help="train afresh as well")
    parser.add_argument(
        "--alone",
        action="store_true",
        help="print the loss of each axis cut alone, at seed 0, and stop",
    )
    parser.add_argument(
        "--validate",
        action="store_true",
        help="judge the training by training images held back, and stop",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    data, judge = fashion.load()
    if args.validate:
        validate(data, args.networks)
        return
    if args.alone:
        for name in args.networks:
            print(alone_table(Case(name, 0, data, judge, args.retrain), name), "\n")
        return

    results = json.loads(args.out.read_text()) if args.out.exists() else []
    rows: list[dict[str, Any]] = []
    cases: dict[tuple[str, int], Case] = {}
    made: set[tuple[str, int]] = set()
    fresh = args.again or args.retrain

    def finish(key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """A cell from the results file, or measured and kept there."""
        place = next(
            (i for i, row in enumerate(results) if key.items() <= row.items()), len(results)
        )
        if fresh or place == len(results):
            results[place : place + 1] = [key | measure()]
            write(args.out, results)
        rows.append(results[place])

    def case(name: str, seed: int) -> Case:
        if (name, seed) not in cases:
            cases.clear()  # one network's moments at a time
            cases[name, seed] = Case(
                name, seed, data, judge, args.retrain and (name, seed) not in made
            )
            made.add((name, seed))
        return cases[name, seed]

    def cut(name: str, seed: int, keep: float, method: str) -> dict[str, Any]:
        small, row = case(name, seed).cut(keep, method, seed)
        return row | case(name, seed).costs(small)

    todo = list(itertools.product(args.networks, range(args.seeds), KEEPS, [*METHODS, *ORDERS]))
    with tqdm(todo, desc="channels") as bar:
        for name, seed, keep, method in bar:
            key = {"part": "cut", "network": name, "seed": seed, "keep": keep, "method": method}
            finish(key, lambda cell=(name, seed, keep, method): cut(*cell))
    for name in args.networks:

        def replay(name: str = name) -> dict[str, Any]:
            return replay_speed(case(name, 0), case(name, 0).cut(0.5, "ours", 0)[0])

        finish({"part": "replay", "network": name, "keep": 0.5, "batch": COST_BATCH}, replay)
    finish({"part": "trace", "layers": Encoder.layers}, trace_speed)

    cuts = [row for row in rows if row["part"] == "cut"]
    for show in (cut_table, before_table, coarsening_table):
        print(show(cuts), "\n")
    print(replay_table([row for row in rows if row["part"] == "replay"]))
    speed = rows[-1]
    print(
        f"\ntrace of {speed['equations']} equations: {speed['beyond']:.0f} ms beyond "
        f"make_jaxpr's {speed['make_jaxpr']:.0f} ms; "
        f"{speed['first']:.0f} ms the first time"
    )


if __name__ == "__main__":
    main()
