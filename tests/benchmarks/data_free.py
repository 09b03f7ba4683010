"""Channels cut without a single image: what is lost when batch norms' statistics are all there is.

The trained ConvNets of channels.py are cut on every hidden axis at once, without fine-tuning.
"ours" makes inputs from the norms' statistics (`jc.inputs_from_norms`), and from there on does what
it does with data: moments, a budget of channels, `reconstruct`. "equal" cuts the same share in
each layer, as all rivals do, at the same sizes: the largest L1 norms of kernels, the largest scales
of the norms (network slimming, Liu et al. 2017; the hidden layer, which has no norm, by L1), random
channels, and model folding (Wang et al. 2025, arXiv:2502.10216: k-means of channels, their weights
averaged), as it is, with its correction of scales (Fold-AR), and with new statistics from inputs
made by gradient descent (Fold-DIR; it gets the same inputs as we do).

"Closed form" is `jc.prune_batchnorm`, which computes mean and variance of every unit.

With 2,000 training images, no labels: ours again, and GRAIL (Tang et al. 2026, arXiv:2602.23795:
the second moments of all channels, a ridge regression of them on those that are kept, folded into
the consumers), with magnitude, Wanda and folding as its selectors.

The 10,000 test images judge, and nothing was chosen by them: the ways and settings of
`inputs_from_norms` were compared on a ConvNet of scikit-learn's digits.

    python tests/benchmarks/data_free.py              # everything; 3 seeds
    python tests/benchmarks/data_free.py --held-out   # judged by training images, seed 0, no file
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import channels
import fashion
import jax
import jax.numpy as jnp
import numpy as np
from cells import finished, read
from mnist import Digits

import jaxcompress as jc
from jaxcompress.classifiers.k_means import k_means

NETWORKS = ("ConvNet", "wider ConvNet")
KEEPS = (0.7, 0.5)
TARGETS = {0.7: 2.0, 0.5: 8.0}
"""Points that a cut without data may lose."""

EPSILON, RIDGE = 1e-5, 1e-3
IMAGES, EXAMPLES = 2_000, 128


# --- rivals: a pair of matrices for every hidden axis ---------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of a ConvNet in order, each of whose outputs but the last's is a hidden axis."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, params: Any) -> Layers:
        convolutions = sorted(name for name in params["params"] if name.startswith("Conv"))
        return cls((*convolutions, "Dense_0", "Dense_1"))

    def norm(self, index: int) -> str | None:
        """The norm after a layer."""
        return f"BatchNorm_{index}" if self.names[index].startswith("Conv") else None


Maps = dict[int, tuple[np.ndarray, np.ndarray]]
"""For a layer, by its place, the matrices (d, r) of its outputs and (r, d) of who reads them."""


def mapped(params: Any, maps: Maps) -> Any:
    """Parameters with every hidden axis mapped: outputs times (d, r), inputs (r, d) times."""
    layers = Layers.of(params)
    small = jax.tree.map(np.asarray, params)
    for index, (produce, consume) in maps.items():
        name, reader = layers.names[index], layers.names[index + 1]
        for leaf, value in small["params"][name].items():
            small["params"][name][leaf] = value @ produce
        norm = layers.norm(index)
        for group in ("params", "batch_stats") if norm else ():
            small[group][norm] = {leaf: v @ produce for leaf, v in small[group][norm].items()}
        kernel = small["params"][reader]["kernel"]
        rows = kernel.reshape(-1, len(produce), kernel.shape[-1])  # places, channels, outputs
        rows = np.einsum("rd,pdo->pro", consume, rows)
        shape = (*kernel.shape[:-2], -1, kernel.shape[-1])
        small["params"][reader]["kernel"] = rows.reshape(shape)
    return jax.tree.map(jnp.asarray, small)


def selecting(chosen: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrices that keep some channels."""
    picks = np.eye(size, dtype=np.float32)[:, np.sort(chosen)]
    return picks, picks.T


def largest(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    return selecting(np.argsort(-scores)[:count], len(scores))


def norms_of(params: Any, index: int, order: int) -> np.ndarray:
    """The L1 or L2 norm of what produces each channel."""
    kernel = np.asarray(params["params"][Layers.of(params).names[index]]["kernel"])
    return np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), order, axis=0)


def scales_of(params: Any, index: int) -> np.ndarray:
    """The norm's scale of each channel; without a norm the L1 norm."""
    norm = Layers.of(params).norm(index)
    return np.abs(params["params"][norm]["scale"]) if norm else norms_of(params, index, 1)


def normalised(params: Any) -> Any:
    """The same network with norms of mean and variance that the kernels' units make 0 and 1."""
    layers, new = Layers.of(params), jax.tree.map(np.asarray, params)
    for index, name in enumerate(layers.names):
        norm = layers.norm(index)
        if norm:
            statistics = new["batch_stats"][norm]
            deviation = np.sqrt(statistics["var"] + EPSILON)
            new["params"][name]["kernel"] = new["params"][name]["kernel"] / deviation
            statistics["mean"] = statistics["mean"] / deviation
            statistics["var"] = np.full_like(deviation, 1 - EPSILON)
    return new


def best_clusters(rows: np.ndarray, count: int, seed: int, tries: int = 10) -> np.ndarray:
    """The best of several k-means."""

    def spread(labels: np.ndarray) -> float:
        members = np.eye(count)[labels]
        means = members.T @ rows / np.maximum(members.sum(0), 1)[:, None]
        return float(np.sum((rows - means[labels]) ** 2))

    rng, equal = np.random.default_rng(seed), np.ones(len(rows))
    found = (k_means(rows, equal, count, rounds=100, rng=rng) for _ in range(tries))
    return min(found, key=spread)


def clusters(params: Any, index: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Channels by k-means of all weights that they have; and the mean cosine of each cluster."""
    layers = Layers.of(params)
    name, reader, norm = layers.names[index], layers.names[index + 1], layers.norm(index)
    own = [*params["params"][name].values()]
    if norm:
        own += [*params["params"][norm].values(), params["batch_stats"][norm]["mean"]]
    size = own[0].shape[-1]
    kernel = params["params"][reader]["kernel"]
    read = np.moveaxis(kernel.reshape(-1, size, kernel.shape[-1]), 1, 0).reshape(size, -1)
    rows = np.concatenate([np.reshape(part, (-1, size)).T for part in own] + [read], axis=1)
    labels = best_clusters(rows, count, seed)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    means = np.zeros(count)
    for cluster in range(count):
        members = np.flatnonzero(labels == cluster)
        pairs = len(members) * (len(members) - 1)
        inside = cosines[np.ix_(members, members)]
        means[cluster] = (inside.sum() - np.trace(inside)) / pairs if pairs else 0
    return labels, means


def folded(params: Any, sizes: list[int], seed: int, *, repair: bool = False) -> Any:
    """Model folding: channels of a cluster averaged, and those that read them added up."""
    params, maps, factors = normalised(params), {}, {}
    for index, count in enumerate(sizes):
        labels, cosine = clusters(params, index, count, seed)
        members = np.eye(count, dtype=np.float32)[labels]
        number = np.maximum(members.sum(0), 1)
        maps[index] = members / number, members.T
        factors[index] = np.sqrt(number / (1 + (number - 1) * np.clip(cosine, 0, 1)))
    small = mapped(params, maps)
    for index, factor in factors.items() if repair else ():
        norm = Layers.of(params).norm(index)
        if norm:
            small["params"][norm]["scale"] = small["params"][norm]["scale"] * factor
    return small


def grail(params: Any, sizes: list[int], seed: int, grams: list[np.ndarray], selector: str) -> Any:
    """A selection or folding whose readers get the ridge regression of all channels on the new."""
    maps: Maps = {}
    base = normalised(params) if selector == "folding" else jax.tree.map(np.asarray, params)
    for index, (count, gram) in enumerate(zip(sizes, grams, strict=True)):
        if selector == "folding":
            labels, _ = clusters(base, index, count, seed)
            members = np.eye(count)[labels]
            produce = members / np.maximum(members.sum(0), 1)
        elif selector == "magnitude":
            produce, _ = largest(norms_of(params, index, 2), count)
        else:
            kernel = base["params"][Layers.of(base).names[index + 1]]["kernel"]
            rows = np.abs(kernel.reshape(-1, len(gram), kernel.shape[-1])).sum((0, 2))
            produce, _ = largest(rows * np.sqrt(np.diag(gram)), count)
        inner = produce.T @ gram @ produce
        inner += RIDGE * np.trace(inner) / count * np.eye(count)
        maps[index] = produce, np.linalg.solve(inner, produce.T @ gram)
    return mapped(base, maps)


# --- the cells ------------------------------------------------------------------------------------


class Case:
    """One trained network, with inputs made of its norms, and with images."""

    def __init__(self, name: str, seed: int, data: Digits, judge: Digits):
        self.seed, self.judge = seed, judge
        self.subject = channels.SUBJECTS[name]
        self.params = channels.trained(name, seed, data, again=False)
        self.net = jc.trace(self.subject.apply, self.params, jnp.zeros((EXAMPLES, 784)))
        self.layers = Layers.of(self.params)
        batches = np.split(data.pixels[:IMAGES], IMAGES // channels.PER_BATCH)
        self.images = [channels.to_unit(batch) for batch in batches]
        self.before = channels.accuracy(self.net, self.params, judge)

    @functools.cached_property
    def made(self) -> jc.Calibration:
        """Inputs from the norms alone."""
        return jc.inputs_from_norms(
            self.net, self.params, bounds=(0, 1), seed=self.seed, progress=False
        )

    @functools.cached_property
    def made_moments(self) -> Any:
        return self._moments(self.made)

    @functools.cached_property
    def image_moments(self) -> Any:
        return self._moments(jc.Calibration(self.images, sample=channels.SAMPLE))

    def _moments(self, data: jc.Calibration) -> Any:
        return jc.calibrate(self.net, self.params, data, sensitivity=True, progress=False)

    @functools.cached_property
    def grams(self) -> list[np.ndarray]:
        """Second moments of the channels of every hidden axis, as their readers take them in."""
        total = None
        for batch in self.images:
            found = [np.asarray(gram, np.float64) for gram in _grams(self.params, batch)]
            total = found if total is None else [a + b for a, b in zip(total, found)]
        return total

    def ours(self, keep: float, *, images: bool, equal: bool, reconstruct: bool = True) -> Any:
        data = jc.Calibration(self.images, sample=channels.SAMPLE) if images else self.made
        moments = self.image_moments if images else self.made_moments
        if equal:
            moments = dataclasses.replace(moments, gains={})
        keeps = keep if equal else jc.budget(keep, of="channels")
        transform = jc.rotate_and_prune(self.net, keeps)
        if reconstruct:
            again = jc.reconstruct(self.net, data, progress=False)
            transform = jc.chain(transform, again)
        return transform(self.params, moments)

    def weights_alone(self, keep: float) -> Any:
        return jc.rotate_and_prune(self.net, keep)(self.params)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (a case lives as long as its cells)
    def sizes(self, keep: float) -> list[int]:
        """The numbers of channels that every column has, but those with a budget."""
        small = self.weights_alone(keep)
        return [small["params"][name]["kernel"].shape[-1] for name in self.layers.names[:-1]]

    def by_scores(self, keep: float, scores: Callable[[int], np.ndarray]) -> Any:
        maps = {i: largest(scores(i), count) for i, count in enumerate(self.sizes(keep))}
        return mapped(self.params, maps)

    def renewed(self, small: Any) -> Any:
        """New statistics of the norms from the inputs made, as Fold-DIR has them."""
        return jc.recalibrate(self.net, self.made, norms=True, progress=False)(small)

    def cut(self, method: str, keep: float) -> Any:
        """The small parameters by one method."""
        params, seed, rng = self.params, self.seed, np.random.default_rng(self.seed)
        makers: dict[str, Callable[[], Any]] = {
            "ours": lambda: self.ours(keep, images=False, equal=False),
            "ours, equal": lambda: self.ours(keep, images=False, equal=True),
            "ours, no reconstruction": lambda: self.ours(
                keep, images=False, equal=True, reconstruct=False
            ),
            "closed form": lambda: jc.prune_batchnorm(self.net, keep)(params),
            "weights alone": lambda: self.weights_alone(keep),
            "l1": lambda: self.by_scores(keep, lambda i: norms_of(params, i, 1)),
            "slimming": lambda: self.by_scores(keep, lambda i: scales_of(params, i)),
            "random": lambda: self.by_scores(keep, lambda i: rng.random(len(scales_of(params, i)))),
            "folding": lambda: folded(params, self.sizes(keep), seed),
            "folding, AR": lambda: folded(params, self.sizes(keep), seed, repair=True),
            "folding, DIR": lambda: self.renewed(folded(params, self.sizes(keep), seed)),
            "ours, images": lambda: self.ours(keep, images=True, equal=False),
            "ours, images, equal": lambda: self.ours(keep, images=True, equal=True),
        }
        for selector in SELECTORS:
            makers[f"GRAIL, {selector}"] = functools.partial(
                lambda which: grail(params, self.sizes(keep), seed, self.grams, which), selector
            )
        return makers[method]()

    def measure(self, method: str, keep: float) -> dict[str, Any]:
        start = time.perf_counter()
        small = jax.block_until_ready(self.cut(method, keep))
        seconds = round(time.perf_counter() - start, 2)
        after = channels.accuracy(self.net, small, self.judge)
        widths = [small["params"][name]["kernel"].shape[-1] for name in self.layers.names[:-1]]
        lost = round(self.before - after, 4)
        return {
            "before": self.before,
            "after": after,
            "lost": lost,
            "seconds": seconds,
            "channels": sum(widths),
        }


@jax.jit
def _grams(params: Any, pixels: jax.Array) -> list[jax.Array]:
    """Sums over examples and places of the products of channels, for every hidden axis."""
    layers, x, grams = Layers.of(params), pixels.reshape(-1, 28, 28, 1), []
    pooled = (1, 3) if len(layers.names) == 6 else (0, 2)
    for index, name in enumerate(layers.names[:-1]):
        weights, norm = params["params"][name], layers.norm(index)
        if norm:
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, weights["kernel"], (1, 1), "SAME", dimension_numbers=numbers
            )
            statistics, affine = params["batch_stats"][norm], params["params"][norm]
            x = (x - statistics["mean"]) / jnp.sqrt(statistics["var"] + EPSILON)
            x = jax.nn.relu(x * affine["scale"] + affine["bias"])
            if index in pooled:
                shape = (len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, x.shape[3])
                x = x.reshape(shape).max((2, 4))
        else:
            x = jax.nn.relu(x.reshape(len(x), -1) @ weights["kernel"] + weights["bias"])
        rows = x.reshape(-1, x.shape[-1])
        grams.append(rows.T @ rows)
    return grams


SELECTORS = ("magnitude", "Wanda", "folding")
FREE = (
    *(
        "ours",
        "ours, equal",
        "ours, no reconstruction",
        "closed form",
        "weights alone",
        "l1",
        "slimming",
    ),
    *("random", "folding", "folding, AR", "folding, DIR"),
)
WITH_IMAGES = (
    *("ours, images", "ours, images, equal"),
    *(f"GRAIL, {selector}" for selector in SELECTORS),
)


def table(rows: list[dict[str, Any]], methods: tuple[str, ...] = FREE) -> str:
    """Points lost, mean and standard deviation over the seeds, as markdown."""
    lines = [
        "| network | cut | " + " | ".join(methods) + " |",
        "|---" * (2 + len(methods)) + "|",
    ]
    for name, keep in dict.fromkeys((row["network"], row["keep"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["keep"]) == (name, keep)]
        cells = []
        for method in methods:
            lost = np.array([row["lost"] for row in mine if row["method"] == method])
            spread = f" ± {lost.std(ddof=1):.2f}" if len(lost) > 1 else ""
            cells.append(f"{lost.mean():.2f}{spread}" if len(lost) else "")
        lines.append(f"| {name} | {1 - keep:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--methods", nargs="+", default=(*FREE, *WITH_IMAGES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="measure finished cells afresh")
    parser.add_argument(
        "--held-out", action="store_true", help="judge by training images, seed 0; keep nothing"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    data, judge = fashion.load()
    if args.held_out:
        judge = Digits(data.pixels[-10_000:], data.labels[-10_000:])
    case = functools.lru_cache(maxsize=1)(functools.partial(Case, data=data, judge=judge))

    def measure(key: dict[str, Any]) -> dict[str, Any]:
        return case(key["network"], key["seed"]).measure(key["method"], key["keep"])

    seeds = range(1 if args.held_out else args.seeds)
    todo = itertools.product(seeds, args.networks, KEEPS, args.methods)
    keys = [
        {"network": name, "seed": seed, "keep": keep, "method": method}
        for seed, name, keep, method in todo
    ]
    if args.held_out:
        rows = [key | measure(key) for key in keys]
    else:
        rows = finished(args.out, read(args.out), keys, measure, again=args.again)
    for methods in (FREE, WITH_IMAGES):
        print(table(rows, methods), "\n")


if __name__ == "__main__":
    main()
