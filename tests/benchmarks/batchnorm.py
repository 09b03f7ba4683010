"""What batch norms tell a cut: without data, with data, and after fine-tuning.

Two networks are trained: a perceptron 784-500-300-10 with batch norm on MNIST, and a ConvNet of
three normalised layers on Fashion-MNIST. First 70 % of the units of every layer go, without tuning.
Then 92 % of the perceptron's numbers: accuracy before and after ten epochs of fine-tuning with the
whole network as the teacher, the same for every column. "data" means 20,000 training images without
labels; 10,000 test images judge.

    python tests/benchmarks/batchnorm.py             # about 40 minutes on two cores
    python tests/benchmarks/batchnorm.py --seeds 1
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cells
import fashion
import flax.linen as nn
import jax
import jax.numpy as jnp
import mnist
import numpy as np
import optax
from channels import accuracy, to_unit
from mnist import Digits

import jaxcompress as jc

OUT = Path(__file__).with_suffix(".json")
SHARE = 0.08
"""Of the stored numbers that are kept before tuning."""
KEEP = 0.3
"""Of the units that are kept without tuning."""
EPOCHS, RATE = {"perceptron": 12, "ConvNet": 2}, {"perceptron": 1e-3, "ConvNet": 3e-3}
TUNING, BATCH = 10, 128
CALIBRATION, PER_BATCH, SAMPLE = 20_000, 500, 1 / 8
PERCEPTRON = ("random", "l1", "slimming", "norms", "norms, DCT", "data, reconstructed")
CUTS = {
    "random": "no data",
    "l1": "no data",
    "slimming": "no data",
    "norms, variances as they were": "no data",
    "norms": "no data",
    "norms, budget": "no data",
    "random, renewed": "data",
    "l1, renewed": "data",
    "slimming, renewed": "data",
    "norms, renewed": "data",
    "norms, reconstructed": "data",
    "moments, reconstructed": "data",
}
"""The columns of the cuts without tuning, and what they see."""


# --- the perceptron (A10) ------------------------------------------------------------------------


class Perceptron(nn.Module):
    """Dense layers with batch norm and relu."""

    widths: tuple[int, ...] = (500, 300)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in self.widths:
            x = nn.Dense(width)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x)


class ConvNet(nn.Module):
    """Three convolutions with batch norm, relu and pooling, every hidden axis normalised."""

    widths: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(-1, 28, 28, 1)
        for index, width in enumerate(self.widths):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            if index < 2:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


SUBJECTS = {"perceptron": Perceptron(), "ConvNet": ConvNet()}
X = jnp.zeros((BATCH, 784))


@functools.cache
def networks(name: str) -> tuple[jc.networks.Network, jc.networks.Network]:
    """A network in inference and in training."""
    module = SUBJECTS[name]
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)

    def training(params: Any, x: jax.Array) -> Any:
        return module.apply(params, x, train=True, mutable=["batch_stats"])

    mirrored = {"1/batch_stats": "batch_stats"}
    return (
        jc.trace(module.apply, shapes, X),
        jc.trace(training, shapes, X, state_outputs=mirrored),
    )


def fit(
    name: str,
    params: Any,
    data: Digits,
    *,
    epochs: int,
    rate: float,
    seed: int,
    teacher: Any = None,
) -> Any:
    """Train a network of any widths, with the soft targets of a teacher where there is one."""
    run = networks(name)[1]
    steps = len(data.labels) // BATCH
    schedule = optax.cosine_onecycle_schedule(epochs * steps, rate, pct_start=0.1)
    optimizer = optax.adam(schedule)
    pixels, labels = jnp.asarray(data.pixels), jnp.asarray(data.labels)
    soft = None
    if teacher is not None:
        logits = jax.jit(lambda part: SUBJECTS[name].apply(teacher, to_unit(part)))
        soft = jnp.concatenate([logits(part) for part in jnp.split(pixels, 20)])

    def loss(weights: Any, statistics: Any, batch: jax.Array) -> tuple[jax.Array, Any]:
        both = {"params": weights, "batch_stats": statistics}
        logits, new = run.replay(both, to_unit(pixels[batch]))
        hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()
        if soft is None:
            return hard, new["batch_stats"]
        targets = jax.nn.softmax(soft[batch] / 2)
        gap = optax.softmax_cross_entropy(logits / 2, targets).mean()
        return 0.3 * hard + 0.7 * 4 * gap, new["batch_stats"]

    def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
        weights, statistics, state = carry
        gradient, statistics = jax.grad(loss, has_aux=True)(weights, statistics, batch)
        updates, state = optimizer.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), statistics, state), None

    epoch = jax.jit(lambda carry, order: jax.lax.scan(step, carry, order)[0])
    carry = (params["params"], params["batch_stats"], optimizer.init(params["params"]))
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(labels))[: steps * BATCH].reshape(steps, BATCH)
        carry = epoch(carry, jnp.asarray(order))
    return {"params": carry[0], "batch_stats": carry[1]}


def whole(name: str, seed: int, data: Digits) -> Any:
    """A trained network, from the cache folder when it is there."""
    path = fashion.cache_folder() / "batchnorm" / f"{name}-{seed}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        params, epochs = SUBJECTS[name].init(jax.random.key(seed), X), EPOCHS[name]
        jc.save(path, fit(name, params, data, epochs=epochs, rate=RATE[name], seed=seed))
    return jc.load(path)


def equal_keep(params: Any) -> float:
    """The largest share of both widths at which the stored numbers stay within the budget."""
    total = SHARE * jc.stored_numbers(params)

    def stored(keep: float) -> float:
        first, second = round(500 * keep), round(300 * keep)
        return 784 * first + first * second + 10 * second + 5 * (first + second) + 10

    return max(k for k in np.arange(0.02, 0.2, 0.001) if stored(k) <= total)


def removed(method: str, params: Any, data: Digits, seed: int) -> Any:
    """The parameters after one column's cut."""
    net, keep = networks("perceptron")[0], equal_keep(params)
    if method in ("random", "l1"):
        return jc.rotate_and_prune(net, keep, method=method, seed=seed)(params)
    if method == "slimming":
        return jc.prune_batchnorm(net, keep, method="slimming")(params)
    if method == "norms":
        return jc.prune_batchnorm(net, jc.budget(SHARE))(params)
    if method == "norms, DCT":
        widths = {"params/Dense_0/kernel:1": 280 / 500, "params/Dense_1/kernel:1": 44 / 300}
        atoms = jc.vocabulary(100 / 784, atoms="dct", grid=(28, 28))
        chain = jc.chain(jc.prune_batchnorm(net, widths), jc.at("params/Dense_0/kernel", atoms))
        return chain(params)
    batches = batches_of(data)
    moments = jc.calibrate(net, params, batches, sensitivity=True, progress=False)
    cut = jc.rotate_and_prune(net, jc.budget(SHARE))
    return jc.chain(cut, jc.reconstruct(net, batches, progress=False))(params, moments)


def batches_of(data: Digits) -> list[jax.Array]:
    parts = np.split(data.pixels[:CALIBRATION], CALIBRATION // PER_BATCH)
    return [to_unit(part) for part in parts]


def perceptron_cell(method: str, seed: int, data: Digits, judge: Digits) -> dict[str, Any]:
    params, net = whole("perceptron", seed, data), networks("perceptron")[0]
    start = time.perf_counter()
    small = removed(method, params, data, seed)
    seconds = time.perf_counter() - start
    options = {"epochs": TUNING, "rate": RATE["perceptron"], "seed": seed + 100}
    tuned = fit("perceptron", small, data, teacher=params, **options)
    stored = [float(jc.stored_numbers(tree)) for tree in (params, small)]
    return {
        "whole": accuracy(net, params, judge),
        "before": accuracy(net, small, judge),
        "after": accuracy(net, tuned, judge),
        "stored": stored,
        "seconds": round(seconds, 2),
    }


# --- cuts without fine-tuning (A11) --------------------------------------------------------------


DATA = {"perceptron": mnist.load, "ConvNet": fashion.load}


class Case:
    """One trained network with its data."""

    def __init__(self, name: str, seed: int):
        data, self.judge = DATA[name]()
        self.params = whole(name, seed, data)
        self.net, self.batches, self.seed = networks(name)[0], batches_of(data), seed
        self.before = accuracy(self.net, self.params, self.judge)

    @functools.cached_property
    def moments(self) -> jc.moments.Moments:
        data = jc.Calibration(self.batches, sample=SAMPLE)
        return jc.calibrate(self.net, self.params, data, sensitivity=True, progress=False)

    def cut(self, method: str) -> Any:
        """The small parameters of one column."""
        how, *after = method.split(", ")
        divided = jc.budget(KEEP, of="channels")
        if how in ("random", "l1"):
            cut = jc.rotate_and_prune(self.net, KEEP, method=how, seed=self.seed)
        elif how == "slimming":
            cut = jc.prune_batchnorm(self.net, KEEP, method=how)
        elif how == "norms":
            keep = divided if "budget" in after else KEEP
            rescale = "variances as they were" not in after
            cut = jc.prune_batchnorm(self.net, keep, rescale=rescale)
        else:
            cut = jc.rotate_and_prune(self.net, divided)
        if "renewed" in after:
            renew = jc.recalibrate(self.net, self.batches[:10], norms=True, progress=False)
            cut = jc.chain(cut, renew)
        if "reconstructed" in after:
            data = jc.Calibration(self.batches, sample=SAMPLE)
            cut = jc.chain(cut, jc.reconstruct(self.net, data, progress=False))
            return cut(self.params, self.moments)
        return cut(self.params)

    def cell(self, method: str) -> dict[str, Any]:
        start = time.perf_counter()
        small = self.cut(method)
        seconds = round(time.perf_counter() - start, 2)
        after = accuracy(self.net, small, self.judge)
        lost = round(self.before - after, 4)
        return {"before": self.before, "after": after, "lost": lost, "seconds": seconds}


# --- tables --------------------------------------------------------------------------------------


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    mean = f"{np.mean(values):.2f}"
    return f"{mean} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else mean


def perceptron_table(rows: list[dict[str, Any]]) -> str:
    """Test accuracy of the perceptron, as markdown."""
    lines = ["| units chosen by | before tuning | after | whole | numbers kept |", "|---" * 5 + "|"]
    for method in PERCEPTRON:
        mine = [row for row in rows if row["part"] == "tuned" and row["method"] == method]
        if mine:
            columns = [spread([row[name] for row in mine]) for name in ("before", "after", "whole")]
            kept = np.mean([row["stored"][1] / row["stored"][0] for row in mine])
            lines.append(f"| {method} | {' | '.join(columns)} | {kept:.1%} |")
    return "\n".join(lines)


def cut_table(rows: list[dict[str, Any]]) -> str:
    """Points lost without fine-tuning, as markdown."""
    names = [name for name in DATA if any(row.get("network") == name for row in rows)]
    heads = [f"{name}, points lost | of slimming's" for name in names]
    lines = [f"| units chosen by | sees | {' | '.join(heads)} |"]
    lines.append("|---" * (2 + 2 * len(names)) + "|")
    for method, sees in CUTS.items():
        columns = []
        for name in names:
            lost = {
                column: [
                    row["lost"]
                    for row in rows
                    if (row.get("network"), row["method"]) == (name, column)
                ]
                for column in (method, "slimming")
            }
            share = np.mean(lost[method]) / np.mean(lost["slimming"])
            columns.append(f"{spread(lost[method])} | {share:.2f}")
        lines.append(f"| {method} | {sees} | {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--parts", nargs="+", default=["cut", "tuned"])
    parser.add_argument("--methods", nargs="+", help="only these columns")
    parser.add_argument("--again", action="store_true", help="measure finished cells afresh")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    results = cells.read(args.out)

    def finish(part: str, columns: Iterable[str], measure: Callable, **more: Any) -> None:
        methods = [name for name in columns if name in (args.methods or columns)]
        keys = [
            {"part": part, **more, "seed": seed, "method": method}
            for seed, method in itertools.product(range(args.seeds), methods)
        ]
        cells.finished(args.out, results, keys, measure, again=args.again)

    case = functools.lru_cache(1)(Case)
    for name in args.networks if "cut" in args.parts else ():
        finish(
            "cut",
            CUTS,
            lambda key: case(key["network"], key["seed"]).cell(key["method"]),
            network=name,
        )
    print(cut_table(results), "\n")
    if "tuned" in args.parts:
        data, judge = mnist.load()
        finish(
            "tuned",
            PERCEPTRON,
            lambda key: perceptron_cell(key["method"], key["seed"], data, judge),
        )
    print(perceptron_table(results))


if __name__ == "__main__":
    main()
