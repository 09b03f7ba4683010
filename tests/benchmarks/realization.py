"""The cost of a decision boundary at h = 1/256 against a uniform grid, and students of it.

First table: `jc.classifiers.realize` on the unit box from a coarse grid of 8 cells a side, for h =
1/32 .. 1/256. Its questions at 1/256 as a share of the 256^d of a grid; the floor, the cells of
that grid with a face towards another label, which whoever asks on both sides of every border has
to ask; the slope of log questions against log 1/h (a border's is d - 1), of all questions and of
those beyond the coarse grid's; the cells of the grid and the share of 100,000 random points where
the mesh is wrong and right; how many pieces that hold a box larger than a coarse cell were missed,
of the grid with h = 1/128 in two and 1/64 in three dimensions. Curves and blobs are given by
formulas. Perceptrons (two hidden layers of 64) are trained on scikit-learn's moons and on the
first 2 or 3 principal components of MNIST's first 10,000 digits, three seeds.

Second table: students of one hidden layer learn the moons' perceptron at h = 1/64 from the mesh's
points, from as many uniform random points, or from as many as the mesh had questions: plainly, by
cross entropy with the same steps, or by `jc.classifiers.fit_exactly`. Agreement with the teacher
on the mesh's points and on 100,000 random ones. Some steps of `fit_exactly` are of L-BFGS, each of
them several passes over all points, where the plain ones have a step of Adam.

    python tests/benchmarks/realization.py               # about five minutes on one core

Finished cells stay in the results file (`--out`).
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mnist
import numpy as np
import optax
from cells import finished, read
from scipy import ndimage
from sklearn.datasets import make_moons

import jaxcompress as jc

FINENESS = (32, 64, 128, 256)
COARSE = 8
SAMPLE = 100_000
STUDENTS = (4, 8, 16, 32)
ADAM, ROUNDS, POLISH = 1500, 20, 25
CENTRES = np.array(
    [(0.2, 0.2, 0.3), (0.75, 0.2, 0.7), (0.5, 0.5, 0.5), (0.2, 0.8, 0.75), (0.8, 0.75, 0.25)]
)


def ball(x):
    return np.int32(np.linalg.norm(x - 0.5, axis=1) < 0.3)


def curve(x):
    """A border like that between two moons."""
    return np.int32(x[:, 1] > 0.5 + 0.25 * np.sin(2 * np.pi * x[:, 0]))


def blobs(x):
    """Five balls of radius 0.12, a class each.

    A box larger than a coarse cell of 1/8 fits into each.
    """
    near = np.linalg.norm(x[:, None] - CENTRES[:, : x.shape[1]], axis=2)
    return np.where(near.min(1) < 0.12, near.argmin(1) + 1, 0)


KNOWN = {
    "circle": (ball, 2),
    "curve": (curve, 2),
    "five discs": (blobs, 2),
    "sphere": (ball, 3),
    "five balls": (blobs, 3),
}
LEARNED = {"moons, perceptron": 2, "digits, perceptron, 2": 2, "digits, perceptron, 3": 3}


def apply(params: Any, x: Any) -> jax.Array:
    for up, bias in params[:-1]:
        x = jnp.tanh(x @ up + bias)
    return x @ params[-1][0] + params[-1][1]


def fresh(sizes: tuple[int, ...], seed: int) -> Any:
    """Weights for inputs in the unit box; the first layer's units bend within it."""
    keys = jax.random.split(jax.random.key(seed), 2 * len(sizes))
    layers = []
    for place, (m, n) in enumerate(pairwise(sizes)):
        scale = 5.0 if place == 0 else m**-0.5
        kernel = scale * jax.random.normal(keys[2 * place], (m, n))
        bias = (
            -(jax.random.uniform(keys[2 * place + 1], (m, n)) * kernel).sum(0)
            if place == 0
            else jnp.zeros(n)
        )
        layers.append((kernel, bias))
    return layers


def trained(params: Any, x: Any, y: Any, steps: int, seed: int) -> Any:
    loss, rate = jc.training.cross_entropy(apply), optax.cosine_decay_schedule(1e-2, steps)
    size = min(len(x), 4096 if steps > 1500 else 512)
    state = jc.fit(
        loss,
        params,
        (x, y),
        optimizer=optax.adam(rate),
        steps=steps,
        batch_size=size,
        seed=seed,
        progress=False,
    )
    return state.params


@cache
def teacher(name: str, seed: int):
    """A classifier, its dimension and how many examples it has learned from."""
    if name in KNOWN:
        return *KNOWN[name], None
    d = LEARNED[name]
    if name.startswith("moons"):
        x, y = make_moons(1000, noise=0.2, random_state=seed)
    else:
        digits = mnist.load()[0]
        x, y = digits.pixels[:10_000] / 255.0, digits.labels[:10_000]
        x = x - x.mean(0)
        x = x @ np.linalg.eigh(x.T @ x)[1][:, : -d - 1 : -1]
    x = ((x - x.min(0)) / np.ptp(x, axis=0)).astype(np.float32)
    params = trained(fresh((d, 64, 64, int(y.max()) + 1), seed), x, y.astype(np.int32), 1000, seed)
    return jax.jit(lambda x: jnp.argmax(apply(params, x), 1)), d, len(x)


def realized(classify: Any, d: int, n: int, **options: Any) -> jc.classifiers.Realized:
    return jc.classifiers.realize(
        classify, ([0] * d, [1] * d), 1 / n, coarse=COARSE, progress=False, **options
    )


def uniform(count: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(count, d)).astype(np.float32)


def costs(key: dict[str, Any]) -> dict[str, Any]:
    """Questions by fineness, agreement, and pieces that were missed."""
    classify, d, examples = teacher(key["classifier"], key["seed"])
    start = time.perf_counter()
    found = [realized(classify, d, n, training_points=examples) for n in FINENESS]
    seconds = time.perf_counter() - start
    x = uniform(SAMPLE, d, 1 + key["seed"])
    queries = [each.queries for each in found]

    def slope(queries):
        return float(np.polyfit(np.log(FINENESS), np.log(queries), 1)[0])

    floor, wrong = against_grid(classify, found[-1], FINENESS[-1])
    return {
        "d": d,
        "queries": queries,
        "floor": floor,
        "wrong": wrong,
        "cells": len(found[-1].points),
        "examples": examples,
        "slope": slope(queries),
        "slope beyond": slope(np.array(queries) - COARSE**d),
        "agreement": float(np.mean(np.asarray(found[-1].mesh(x)) == np.asarray(classify(x)))),
        "seconds": seconds,
    } | pieces(classify, d)


def against_grid(classify: Any, found: jc.classifiers.Realized, n: int) -> tuple[int, int]:
    """The grid cells with a face towards another label, and those that the mesh gets wrong."""
    d = found.points.shape[1]
    labels, wrong = np.empty(n**d, np.int32), 0
    for start in range(0, n**d, 2**20):
        own = np.arange(start, min(start + 2**20, n**d))
        x = ((np.stack(np.unravel_index(own, (n,) * d), 1) + 0.5) / n).astype(np.float32)
        labels[own] = classify(x)
        wrong += int((found.mesh(x) != labels[own]).sum())
    labels, border = labels.reshape((n,) * d), np.zeros((n,) * d, bool)
    for axis in range(d):
        along, found_along = np.moveaxis(labels, axis, 0), np.moveaxis(border, axis, 0)
        unlike = along[1:] != along[:-1]
        found_along[1:] |= unlike
        found_along[:-1] |= unlike
    return int(border.sum()), wrong


def pieces(classify: Any, d: int) -> dict[str, int]:
    """The pieces that hold a coarse cell, and those of them that the mesh misses in part."""
    n = 128 if d == 2 else 64
    x = ((np.indices((n,) * d).reshape(d, -1).T + 0.5) / n).astype(np.float32)
    labels = np.asarray(classify(x)).reshape((n,) * d)
    same = (np.asarray(realized(classify, d, n).mesh(x)) == labels.ravel()).reshape(labels.shape)
    count = missed = 0
    for each in np.unique(labels):
        numbered, _ = ndimage.label(labels == each)
        inner = ndimage.binary_erosion(labels == each, np.ones((n // COARSE,) * d))
        large = np.unique(numbered[inner])
        count += len(large)
        missed += int(np.sum(np.asarray(ndimage.mean(same, numbered, large)) < 1))
    return {"pieces": count, "missed": missed}


def student(key: dict[str, Any]) -> dict[str, Any]:
    """One student's agreement with its teacher."""
    classify, d, _ = teacher("moons, perceptron", key["seed"])
    found = realized(classify, d, 64)
    count = {"random": len(found.points), "random, as many as queries": found.queries}
    x = found.points if key["from"] == "mesh" else uniform(count[key["from"]], d, 100 + key["seed"])
    y = np.asarray(classify(x), np.int32)
    params, total = fresh((d, key["width"], 2), 10 + key["seed"]), ADAM + ROUNDS * POLISH
    exact = None
    if key["how"] == "exact":
        fitted = jc.classifiers.fit_exactly(
            apply,
            params,
            found,
            steps=ADAM,
            rounds=ROUNDS,
            polish=POLISH,
            seed=key["seed"],
            progress=False,
        )
        params, exact = fitted.params, int(fitted.steps[-1])
    else:
        params = trained(params, x, y, total, key["seed"])

    def agrees(x):
        return float(np.mean(np.argmax(np.asarray(apply(params, x)), 1) == np.asarray(classify(x))))

    return {
        "points": len(x),
        "steps": exact or total,
        "mesh": agrees(found.points),
        "random": agrees(uniform(SAMPLE, d, 7)),
    }


def tables(rows: list[dict[str, Any]]) -> str:
    def of(group, name):
        return np.array([row[name] for row in group])

    lines = [
        "| classifier | queries at 1/256 | of the grid | floor | slope (d - 1) "
        "| beyond the coarse grid | cells | examples "
        "| wrong in the grid | agreement | pieces missed | seconds |"
    ]
    lines += ["|" + "---|" * 12]

    def ranges(v, form):
        return f"{min(v):{form}}" if min(v) == max(v) else f"{min(v):{form}} .. {max(v):{form}}"

    for name in (*KNOWN, *LEARNED):
        group = [row for row in rows if row.get("classifier") == name]
        d, last = group[0]["d"], np.array([row["queries"][-1] for row in group])
        lines.append(
            f"| {name} | {ranges(last, ',')} | {ranges(100 * last / 256**d, '.2f')} % "
            f"| {ranges(100 * of(group, 'floor') / 256**d, '.2f')} % "
            f"| {ranges(of(group, 'slope'), '.2f')} ({d - 1}) "
            f"| {ranges(of(group, 'slope beyond'), '.2f')} | {ranges(of(group, 'cells'), ',')} "
            f"| {group[0]['examples'] or ''} "
            f"| {of(group, 'wrong').sum()} of {len(group) * 256**d:,} "
            f"| {ranges(100 * of(group, 'agreement'), '.2f')} % "
            f"| {of(group, 'missed').sum()} of {of(group, 'pieces').sum()} "
            f"| {ranges(of(group, 'seconds'), '.1f')} |"
        )
    lines += [
        "",
        (
            "| hidden units | points | training | agree on the mesh, % | exactly | agree on "
            "100,000 random points, % |"
        ),
    ]
    lines += ["|" + "---|" * 6]
    for width in STUDENTS:
        for source, how in WAYS:
            way = {"width": width, "from": source, "how": how}
            group = [row for row in rows if way.items() <= row.items()]
            mesh, random = 100 * of(group, "mesh"), 100 * of(group, "random")
            lines.append(
                f"| {width} | {source} | {how} | {mesh.mean():.2f} ± {mesh.std(ddof=1):.2f} "
                f"| {(mesh == 100).sum()} of {len(group)} "
                f"| {random.mean():.2f} ± {random.std(ddof=1):.2f} |"
            )
    return "\n".join(lines)


WAYS = (
    ("random", "plain"),
    ("random, as many as queries", "plain"),
    ("mesh", "plain"),
    ("mesh", "exact"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    results = read(args.out)
    keys = [{"classifier": name, "seed": 0} for name in KNOWN]
    keys += [{"classifier": name, "seed": seed} for name in LEARNED for seed in range(3)]
    rows = finished(args.out, results, keys, costs)
    keys = [
        {"width": width, "from": source, "how": how, "seed": seed}
        for width in STUDENTS
        for seed in range(3)
        for source, how in WAYS
    ]
    rows += finished(args.out, results, keys, student)
    print(tables(rows))


if __name__ == "__main__":
    main()
