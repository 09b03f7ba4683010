"""A training set made anew from a teacher.

MNIST at 10 and 50 points a class, and at 5 % of all (300 a class).

The teacher is a network with windows (9 x 9, 64 channels), trained on the training images; it
labels the points of every column, and no column sees a label of the data. Each column gives so
many points, on which the same student (9 x 9 windows, 16 channels, a dense layer) is trained for
the same steps by the same loss: cross entropy with the teacher's labels ("hard") or its
probabilities at a temperature of 2 ("soft"). Every image is shifted by up to two pixels, for all
columns alike, and its label stays. Weights are used only where the column says so.

    random             real images, as many of each class (by the teacher) as of the others herding
    real images whose mean stays next to the class's (Welling 2009) margin             real images
    of which the teacher is least sure random, margin     half of each mixup              halfway
    between two real images (Zhang et al. 2018) moved              random real images pushed just
    across the border by the teacher's gradient (Heo et al. 2019), on both sides Gaussian
    a Gaussian with the mean and covariance of all real images noise              uniform pixels
    realized           jc.classifiers.realize_along the real images, then coarsened realized,
    weights  the same, with the weights of the cells medoids            the same cells, with the
    real image nearest to each mean in its place border             half of them so, half points of
    border pairs medoids, margin    half of them so, half the real images of which the teacher is
    least sure matched            the medoids, moved by jc.classifiers.match_distribution: features
    are the student's hidden layer before training taught             jc.classifiers.teaching_set:
    real images drawn where seven students, one after the other, differ from the teacher; their
                       seeds are not those of the students that are judged
    taught by others   the same, but the seven are dense, 784-100-10: does a set serve another kind
    of student?
    without data       realized, along smooth Gaussian images in the box of pixels: what is known
        is the bounds of the inputs, and that near pixels are alike
    all data           all real images; also with eight times the steps, which is what seven
    students for choosing and one cost

    # students judged by the last 10,000 training images
    python tests/benchmarks/realization_along.py --validate
    python tests/benchmarks/realization_along.py                 # by the test images, 3 seeds

The teacher is kept in the cache folder, finished cells in the results file (`--out`). "queries" is
how often the teacher was asked to make the set.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cells import finished, read
from distillation import shifted, split, wrong
from fashion import cache_folder
from hashednets import GRID, dense_params, fresh, logits, one_cycle, partly_hidden

import jaxcompress as jc
from jaxcompress.classifiers.realization_along import random_points

TEACHER_CHANNELS, TEACHER_STEPS, TEACHER_RATE, TEACHER_HIDDEN = 64, 12_000, 3e-3, 0.2
CHANNELS, STEPS, BATCH, RATE, TEMPERATURE = 16, 2_000, 100, 3e-3, 2.0
MATCHING = dict(steps=3_000, examples=1_024)
MATCHING_RATE = 0.02
JND = 0.5
"""Of images in [0, 1]^784, whose nearest neighbours are some 6 apart."""
SIZES = {
    "10 a class": lambda count: 10,
    "50 a class": lambda count: 50,
    "5 %": lambda count: count // 200,
}
"""Points a class, of so many images."""
ROUNDS = 8
PARTS = ("random", "herding", "margin", "random, margin", "mixup", "moved", "Gaussian", "noise")
OURS = (
    "realized",
    "realized, weights",
    "medoids",
    "border",
    "medoids, margin",
    "matched",
    "taught",
    "taught by others",
    "without data",
)
ALL, LONGER, TARGETS = "all data", "all data, 8 x steps", ("hard", "soft")
COLUMNS = (*PARTS, *OURS, ALL, LONGER)


def windows(seed: int, channels: int = CHANNELS) -> Any:
    """A network with a window of 9 x 9 moved by 2, and a dense layer."""
    return fresh(
        seed, jc.at("0/kernel", jc.toeplitz((9, 9), grid=GRID, stride=2)), (784, 100 * channels, 10)
    )


def dense(seed: int) -> Any:
    return dense_params(jax.random.key(seed), (784, 100, 10))


@cache
def teacher(validate: bool) -> Any:
    """Trained once, kept in the cache folder."""
    path = (
        cache_folder()
        / "realization_along"
        / f"teacher-{'validation' if validate else 'final'}.safetensors"
    )
    if not path.exists():
        train, _ = split(validate)
        plain = jc.training.cross_entropy(logits)

        def loss(params, batch, key):
            return plain(params, (partly_hidden(batch[0], TEACHER_HIDDEN, key), batch[1]), key)

        given: dict[str, Any] = dict(
            optimizer=one_cycle(TEACHER_RATE, TEACHER_STEPS), steps=TEACHER_STEPS, batch_size=BATCH
        )
        params = jc.fit(
            loss, windows(7, TEACHER_CHANNELS), tuple(train), **given, description="teacher"
        ).params
        path.parent.mkdir(parents=True, exist_ok=True)
        jc.save(draft := path.with_suffix(f".{os.getpid()}"), params)
        os.replace(draft, path)
    return jc.load(path)


said = jax.jit(logits)


def ask(validate: bool, x: np.ndarray) -> np.ndarray:
    """The teacher's logits of images in [0, 1]."""
    return jc.training.predict(logits, teacher(validate), x, batch_size=1_000, progress=False)


def classifier(validate: bool) -> Callable[[np.ndarray], np.ndarray]:
    params = teacher(validate)
    return lambda x: np.asarray(said(params, x)).argmax(1)


@cache
def real(validate: bool, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The training images in [0, 1], or the first of them, and the teacher's logits."""
    x = split(validate)[0].pixels[:count].astype(np.float32) / 255
    return x, ask(validate, x)


def smooth(count: int, seed: int) -> np.ndarray:
    """Images of which it is only known that pixels lie in [0, 1] and near ones are alike.

    Correlation falls over three pixels.
    """
    axis = np.exp(-((np.arange(28)[:, None] - np.arange(28)) ** 2) / (2 * 3.0**2))
    drawn = random_points(
        (np.full(784, -1.0), np.ones(784)),
        count,
        seed=seed,
        covariance=np.kron(axis, axis) + 1e-4 * np.eye(784),
    )
    return np.maximum(drawn, 0)


@cache
def realized(validate: bool, count: int | None, data: bool) -> jc.classifiers.RealizedAlong:
    """Along the images, or random ones.

    There nearly every edge has a border, and the budget leaves most of them as they are.
    """
    x = real(validate, count)[0]
    given: dict[str, Any] = dict(
        neighbours=8, domain=(0, 1), training_points=len(x), batch_size=1_000
    )
    if data:
        return jc.classifiers.realize_along(classifier(validate), x, JND, **given)
    drawn = smooth(min(len(x), 5_000), seed=0)
    return jc.classifiers.realize_along(
        classifier(validate), drawn, JND, budget=2 * len(drawn), **given
    )


def per_class_random(labels: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """As many of each class as there are, at most m."""
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == each))[:m] for each in range(10)]
    )


def herded(x: np.ndarray, m: int) -> np.ndarray:
    """Those by which the mean of the first few stays next to the mean of all."""
    goal, total, chosen = x.mean(0), np.zeros(x.shape[1]), []
    for count in range(1, min(m, len(x)) + 1):
        away = np.sum(((total + x) / count - goal) ** 2, axis=1)
        away[chosen] = np.inf
        chosen.append(int(away.argmin()))
        total += x[chosen[-1]]
    return np.array(chosen)


def moved(validate: bool, x: np.ndarray, steps: int = 10) -> np.ndarray:
    """Images moved down the margin's gradient until the teacher calls them otherwise.

    Half as they are then, half a step before.
    """
    params = teacher(validate)

    def margin(image: jax.Array) -> jax.Array:
        top = jax.lax.top_k(logits(params, image[None])[0], 2)[0]
        return top[0] - top[1]

    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        value, slope = jax.vmap(jax.value_and_grad(margin))(x)
        return jnp.clip(
            x - 0.3 * (value / jnp.maximum(jnp.sum(slope**2, 1), 1e-9))[:, None] * slope, 0, 1
        )

    before, first = jnp.asarray(x), ask(validate, x).argmax(1)
    near, across, done = np.array(x), np.array(x), np.zeros(len(x), bool)
    for _ in range(steps):
        after = step(before) + 1e-2 * (step(before) - before)
        changed = (ask(validate, np.asarray(after)).argmax(1) != first) & ~done
        near[changed], across[changed] = np.asarray(before)[changed], np.asarray(after)[changed]
        near[~done & ~changed] = np.asarray(after)[~done & ~changed]
        done, before = done | changed, after
    half = len(x) // 2
    return np.concatenate([near[:half], across[half:]])


def points(key: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None, int]:
    """A column's images, their weights if it has some, and how often the teacher was asked."""
    validate, column, seed = key["split"] == "validation", key["column"], key["seed"]
    x, z = real(validate, key["count"])
    if column in (ALL, LONGER):
        return x, None, len(x)
    labels, m, rng = z.argmax(1), SIZES[key["size"]](len(x)), np.random.default_rng(seed)
    n = 10 * m
    if column in ("random", "moved"):
        chosen = x[per_class_random(labels, m, rng)]
        return (
            (chosen, None, len(x))
            if column == "random"
            else (moved(validate, chosen), None, len(x) + 10 * n)
        )
    if column.startswith("taught"):
        given: dict[str, Any] = dict(rounds=ROUNDS, seed=100 + seed)
        learns = partial(learn, begin=windows if column == "taught" else dense)
        found = jc.classifiers.teaching_set(
            learns, x, np.asarray(jax.nn.softmax(z / TEMPERATURE)), n, **given
        )
        return x[found.indices], None, len(x)
    if column == "herding":
        mine = [np.flatnonzero(labels == each) for each in range(10)]
        return x[np.concatenate([each[herded(x[each], m)] for each in mine])], None, len(x)
    if column.endswith("margin"):
        unsure = np.argsort(np.diff(np.sort(z, 1)[:, -2:], axis=1)[:, 0])
        few = m if column == "margin" else m - m // 2
        chosen = x[unsure[per_class_first(labels[unsure], few)]]
        if column == "margin":
            return chosen, None, len(x)
        if column == "random, margin":
            return np.concatenate([x[per_class_random(labels, m // 2, rng)], chosen]), None, len(x)
        coarse = coarsened(validate, key["count"], True, m // 2, True, seed)
        return np.concatenate([coarse.points, chosen]), None, coarse.queries
    if column == "mixup":
        pairs = rng.integers(len(x), size=(2, n))
        return (x[pairs[0]] + x[pairs[1]]) / 2, None, n
    if column == "Gaussian":
        drawn = rng.multivariate_normal(
            x.mean(0), np.cov(x.T) + 1e-6 * np.eye(784), n, method="cholesky"
        )
        return np.clip(drawn, 0, 1).astype(np.float32), None, n
    if column == "noise":
        return rng.uniform(size=(n, 784)).astype(np.float32), None, n
    few, members = m // 2 if column == "border" else m, column in ("medoids", "matched")
    coarse = coarsened(validate, key["count"], column != "without data", few, members, seed)
    if column == "border":
        found = realized(validate, key["count"], True)
        ends, said_there = found.boundary.reshape(-1, 784), found.boundary_labels.ravel()
        chosen = ends[per_class_random(said_there, m - m // 2, rng)]
        return np.concatenate([coarse.points, chosen]), None, coarse.queries
    if column == "matched":
        optimizer = optax.adam(optax.cosine_decay_schedule(MATCHING_RATE, MATCHING["steps"]))
        given: dict[str, Any] = dict(domain=(0, 1), seed=seed, batch_size=1_000)
        coarse = jc.classifiers.match_distribution(
            coarse, classifier(validate), hidden(), optimizer=optimizer, **MATCHING, **given
        )
    return coarse.points, coarse.weights if column == "realized, weights" else None, coarse.queries


@cache
def coarsened(
    validate: bool, count: int | None, data: bool, m: int, members: bool, seed: int
) -> jc.classifiers.RealizedAlong:
    return realized(validate, count, data).coarsened(
        classifier(validate), m, members=members, seed=seed, batch_size=1_000
    )


@cache
def hidden() -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The hidden layer of a student before training.

    For images that are all moved by the same up to two pixels.
    """
    form = windows(0)["0"]["kernel"]

    def features(key: jax.Array, x: jax.Array) -> jax.Array:
        weights, moving = jax.random.split(key)
        kernel = jax.tree.map(lambda leaf: jax.random.normal(weights, leaf.shape) / 9, form)
        return jax.nn.relu(shifted(x, moving, alike=True) @ jc.materialize(kernel))

    return features


def per_class_first(labels: np.ndarray, m: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(labels == each)[:m] for each in range(10)])


@lru_cache(maxsize=1)  # hard and soft targets come one after the other
def made(items: tuple[tuple[str, Any], ...]) -> tuple[np.ndarray, np.ndarray | None, int]:
    return points(dict(items))


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """The student's errors on 10,000 images, and how many its teacher makes."""
    validate = key["split"] == "validation"
    x, weights, queries = made(tuple(item for item in key.items() if item[0] != "targets"))
    z = ask(validate, x)
    weights = (
        np.ones(len(x), np.float32) if weights is None else np.float32(weights / weights.mean())
    )
    temperature = TEMPERATURE if key["targets"] == "soft" else 1.0
    goal = np.asarray(
        jax.nn.softmax(z / temperature)
        if key["targets"] == "soft"
        else jax.nn.one_hot(z.argmax(1), 10)
    )
    steps = STEPS * ROUNDS if key["column"] == LONGER else STEPS
    begun = windows(key["seed"])
    params = student(
        begun, x, goal, weights, key["seed"], temperature, steps, f"{key['column']}, {key['size']}"
    )
    judge = split(validate)[1]
    row = {"wrong": wrong(params, judge), "teacher": wrong(teacher(validate), judge)}
    return row | {"points": len(x), "classes": len(np.unique(z.argmax(1))), "queries": int(queries)}


def student(
    params: Any,
    x: np.ndarray,
    goal: np.ndarray,
    weights: np.ndarray,
    seed: int,
    temperature: float,
    steps: int,
    description: str,
) -> Any:
    """The parameters of one that is trained on these points."""
    return jc.fit(
        loss_at(temperature),
        params,
        (x, goal, weights),
        optimizer=one_cycle(RATE, steps),
        steps=steps,
        batch_size=min(BATCH, len(x)),
        seed=seed,
        description=description,
    ).params


def learn(
    x: np.ndarray, goal: np.ndarray, seed: int, begin: Callable[[int], Any]
) -> Callable[[np.ndarray], np.ndarray]:
    """A student for `jc.classifiers.teaching_set`."""
    params = student(
        begin(seed),
        x,
        goal,
        np.ones(len(x), np.float32),
        seed,
        TEMPERATURE,
        STEPS,
        f"{len(x):,} points",
    )
    return lambda x: np.asarray(said(params, x)) / TEMPERATURE


@cache  # one compiled loop
def loss_at(temperature: float) -> Callable[..., jax.Array]:
    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        x, goal, weights = batch
        z = jax.nn.log_softmax(logits(params, shifted(x, key)) / temperature)
        return -(temperature**2) * jnp.mean(weights * jnp.sum(goal * z, axis=1))

    return loss


def cells(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    where = "validation" if args.validate else "final"
    pairs = [
        (size, column)
        for size in args.sizes
        for column in args.columns
        if not column.startswith(ALL)
    ]
    pairs += [(ALL, column) for column in args.columns if column.startswith(ALL)]
    for seed in range(1 if args.validate else args.seeds):
        for size, column in pairs:
            for targets in TARGETS:
                yield {
                    "split": where,
                    "count": args.count,
                    "size": size,
                    "column": column,
                    "targets": targets,
                    "seed": seed,
                }


def table(results: list[dict[str, Any]], where: str, count: int | None) -> str:
    """Errors in percent, hard and soft, a column each size."""
    rows = [row for row in results if (row["split"], row["count"]) == (where, count)]
    sizes = [size for size in (*SIZES, ALL) if any(row["size"] == size for row in rows)]
    heads = [(size, targets) for size in sizes for targets in TARGETS]
    lines = [
        "| points | " + " | ".join(map(", ".join, heads)) + " | queries |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for column in COLUMNS:
        mine, fields = [row for row in rows if row["column"] == column], []
        for head in heads:
            found = [row["wrong"] / 100 for row in mine if (row["size"], row["targets"]) == head]
            fields.append(
                f"{np.mean(found):.2f} ± {np.std(found, ddof=min(1, len(found) - 1)):.2f}"
                if found
                else ""
            )
        if mine:
            lines.append(f"| {column} | " + " | ".join(fields) + f" | {mine[0]['queries']:,} |")
    if rows:
        lines.append(f"| teacher | {rows[0]['teacher'] / 100:.2f}" + " |" * (len(heads) + 1))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="COLUMN"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, help="so many training images only, for a short run")
    parser.add_argument(
        "--validate", action="store_true", help="judge by training images held back, one seed"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    results = read(args.out)
    finished(args.out, results, cells(args), measure)
    print(table(results, "validation" if args.validate else "final", args.count))


if __name__ == "__main__":
    main()
