"""Worlds in which the cause of every error is known.

A cause is planted, and an error is due to it if a classifier without the plant is right there. Two
geometries, in any number of dimensions from 2 on: "clusters", twelve Gaussian ones, each class two
with the two opposite ones, and "rings", three around each other in a plane, with noise across it.
Classes do not overlap. The plants:

    labels      a fifth of the labels of some patches are changed
    capacity    too small a classifier; a large one is right
    excess      islands, where some test points and everything up to halfway to the nearest training
                point are predicted as another class; or memorized points with wrong labels that are
                not in the given training set; or high frequencies, an MLP on waves as short as the
                data's spacing, right on all training points where an ordinary one is right between
                them
    region      some patches have no training points

The memorizing classifier is an MLP on random Fourier features (Tancik et al. 2020). Training it
again moves its ordinary boundaries, too; so an error counts as due to changed labels, or to
memorized points, only if the nearest point that was trained as the predicted class is one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcompress as jc
from jaxcompress.classifiers.neighbours import nearest
from jaxcompress.models.mlp import MLP

Array = np.ndarray
Classify = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class World:
    """A classifier, its data, and which test errors are the plant's work."""

    train: tuple[Array, Array]
    test: tuple[Array, Array]
    classify: Classify
    cause: str
    planted: Array


def clusters(rng: np.random.Generator, d: int) -> Callable[[int], tuple[Array, Array, Array]]:
    """A sampler of points, classes and patches."""
    centres: list[Array] = []
    while len(centres) < 12:
        new = rng.uniform(-3, 3, d)
        if all(np.linalg.norm(new - old) > np.sqrt(2 * d) * 0.75 for old in [*centres, -new]):
            centres += [new, -new]

    def draw(n: int) -> tuple[Array, Array, Array]:
        which = rng.integers(12, size=n)
        return (
            np.array(centres)[which] + 0.2 * rng.normal(size=(n, d)),
            which // 2 % 3,
            np.isin(which, (0, 2, 4)),
        )

    return draw


def rings(rng: np.random.Generator, d: int) -> Callable[[int], tuple[Array, Array, Array]]:
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]

    def draw(n: int) -> tuple[Array, Array, Array]:
        y = rng.choice(3, n, p=np.array([1, 3, 5]) / 9)
        radius = y + 0.15 + 0.85 * rng.uniform(size=n)
        angle = rng.uniform(0, 2 * np.pi, n)
        x = np.column_stack(
            [radius * np.cos(angle), radius * np.sin(angle), 0.05 * rng.normal(size=(n, d - 2))]
        )
        return x @ turn, y, angle < 2 * np.pi / 3

    return draw


GEOMETRIES = {"clusters": clusters, "rings": rings}


# --- classifiers ----------------------------------------------------------------------------------


def one_nearest(x: Array, y: Array) -> Classify:
    table, labels = jnp.asarray(x, jnp.float32), jnp.asarray(y)
    return lambda inputs: _one_nearest(jnp.asarray(inputs, jnp.float32), table, labels)


@jax.jit
def _one_nearest(inputs: Any, x: Any, y: Any) -> Any:
    return y[jnp.argmin(jnp.sum(x**2, 1) - 2 * jnp.matmul(inputs, x.T, precision="highest"), 1)]


@cache
def compiled(widths: tuple[int, ...]) -> tuple[Any, Any, Any]:
    model = MLP(widths)

    def logits(params, x):
        return jnp.asarray(model.apply(params, x))

    return (
        model,
        jc.training.cross_entropy(logits),
        jax.jit(lambda params, x: jnp.argmax(logits(params, x), -1)),
    )


@cache
def adam(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_onecycle_schedule(steps, rate, pct_start=0.1))


def trained(
    x: Array,
    y: Array,
    hidden: tuple[int, ...],
    seed: int,
    *,
    steps: int = 1_500,
    rate: float = 3e-3,
) -> Classify:
    """An MLP by `jc.fit`, on inputs of one standard deviation."""
    model, loss, say = compiled((*hidden, int(y.max()) + 1))
    centre, unit = x.mean(0), x.std()

    def scaled(inputs):
        return jnp.asarray((inputs - centre) / unit, jnp.float32)

    params = model.init(jax.random.key(seed), scaled(x[:1]))
    given: dict[str, Any] = dict(
        optimizer=adam(rate, steps),
        steps=steps,
        batch_size=min(128, len(x)),
        seed=seed,
        progress=False,
    )
    params = jc.fit(loss, params, (scaled(x), y), **given).params
    return lambda inputs: say(params, scaled(inputs))


def by_heart(x: Array, y: Array, seed: int, reach: float = 2.5, width: int = 256) -> Classify:
    """An MLP on random Fourier features, right on all given points; it hardly interpolates."""
    spacing = np.median(nearest(x, x, 1, own=np.arange(len(x)))[0])
    waves = np.random.default_rng(seed).normal(size=(x.shape[1], width)).astype(
        np.float32
    ) / np.float32(reach * spacing)

    def features(inputs):
        return np.concatenate([np.cos(inputs @ waves), np.sin(inputs @ waves)], axis=1)

    say = trained(features(np.asarray(x, np.float32)), y, (128,), seed, steps=800)
    return lambda inputs: say(features(np.asarray(inputs, np.float32)))


LARGE = (128, 128)


# --- plants ---------------------------------------------------------------------------------------


def other(rng: np.random.Generator, y: Array, classes: int = 3) -> Array:
    return (y + rng.integers(1, classes, len(y))) % classes


def origin(test_x: Array, said: Array, x: Array, y: Array, planted: Array) -> Array:
    """Whether the nearest point that was trained as the predicted class is a planted one."""
    found = np.zeros(len(test_x), bool)
    for label in np.unique(y):
        mine, asked = np.flatnonzero(y == label), np.flatnonzero(said == label)
        found[asked] = planted[mine[nearest(test_x[asked], x[mine], 1)[1][:, 0]]]
    return found


def labels(rng, draw, n, fit) -> World:
    (x, y, patch), (test_x, test_y, _) = draw(n), draw(n)
    flipped = patch & (rng.uniform(size=n) < FLIPPED)
    given = np.where(flipped, other(rng, y), y)
    with_it, without = fit(x, given), fit(x, y)
    nearby = origin(test_x, with_it(test_x), x, given, flipped)
    return World(
        (x, given), (test_x, test_y), with_it, "wrong labels", nearby & (without(test_x) == test_y)
    )


def other_classifier(rng, draw, n, fit, better, cause) -> World:
    (x, y, _), (test_x, test_y, _) = draw(n), draw(n)
    return World((x, y), (test_x, test_y), fit(x, y), cause, better(x, y)(test_x) == test_y)


def capacity(rng, draw, n, seed, hidden) -> World:
    small, large = (
        lambda x, y, sizes=sizes: trained(x, y, sizes, seed) for sizes in (hidden, LARGE)
    )
    return other_classifier(rng, draw, n, small, large, "under-divided")


def waves(rng, draw, n, seed) -> World:
    short, ordinary = (
        lambda x, y: by_heart(x, y, seed, reach=0.7),
        lambda x, y: trained(x, y, LARGE, seed),
    )
    return other_classifier(rng, draw, n, short, ordinary, "over-divided")


def islands(rng, draw, n) -> World:
    (x, y, _), (test_x, test_y, _) = draw(n), draw(n)

    def right(inputs):
        return np.asarray(one_nearest(x, y)(inputs))

    at = rng.choice(n, n // 10, replace=False)
    said = (right(test_x[at]) + 1) % 3  # an island is of one class, wrong in its middle
    radius = nearest(test_x[at], x, 1)[0][:, 0] / 2

    def classify(inputs: Array) -> Array:
        distances = np.linalg.norm(np.asarray(inputs)[:, None] - test_x[at], axis=2)
        which = distances.argmin(1)
        return np.where(distances.min(1) < radius[which], said[which], right(inputs))

    return World((x, y), (test_x, test_y), classify, "over-divided", right(test_x) == test_y)


def ghosts(rng, draw, n, fit) -> World:
    (x, y, _), (test_x, test_y, _), (ghost, truth, _) = draw(n), draw(n), draw(n // 20)
    far = nearest(ghost, x, 1)[0][:, 0] > np.median(
        nearest(x, x, 1, own=np.arange(n))[0]
    )  # room for an island
    ghost, truth = ghost[far], truth[far]
    all_x, all_y = np.concatenate([x, ghost]), np.concatenate([y, other(rng, truth)])
    with_it, without = fit(all_x, all_y), fit(x, y)
    near = ghost + 0.1 * nearest(ghost, x, 1)[0] * rng.normal(size=ghost.shape) / np.sqrt(
        ghost.shape[1]
    )
    test_x, test_y = np.concatenate([test_x, near]), np.concatenate([test_y, truth])
    nearby = origin(test_x, with_it(test_x), all_x, all_y, np.arange(len(all_x)) >= n)
    return World(
        (x, y), (test_x, test_y), with_it, "over-divided", nearby & (without(test_x) == test_y)
    )


def region(rng, draw, n, fit) -> World:
    (x, y, patch), (test_x, test_y, _) = draw(n), draw(n)
    return World(
        (x[~patch], y[~patch]),
        (test_x, test_y),
        fit(x[~patch], y[~patch]),
        "wrong interpolation",
        fit(x, y)(test_x) == test_y,
    )


FLIPPED = 0.2

PLANTS = {
    "labels, 1-NN": lambda rng, draw, n, seed: labels(rng, draw, n, one_nearest),
    "labels, by heart": lambda rng, draw, n, seed: labels(
        rng, draw, n, lambda x, y: by_heart(x, y, seed)
    ),
    "capacity, linear": lambda rng, draw, n, seed: capacity(rng, draw, n, seed, ()),
    "capacity, MLP": lambda rng, draw, n, seed: capacity(rng, draw, n, seed, (3,)),
    "excess, islands": lambda rng, draw, n, seed: islands(rng, draw, n),
    "excess, by heart": lambda rng, draw, n, seed: ghosts(
        rng, draw, n, lambda x, y: by_heart(x, y, seed)
    ),
    "excess, waves": lambda rng, draw, n, seed: waves(rng, draw, n, seed),
    "region, 1-NN": lambda rng, draw, n, seed: region(rng, draw, n, one_nearest),
    "region, MLP": lambda rng, draw, n, seed: region(
        rng, draw, n, lambda x, y: trained(x, y, LARGE, seed)
    ),
}


def world(plant: str, geometry: str, d: int, seed: int, n: int = 1_500) -> World:
    """A world of its own for every seed."""
    rng = np.random.default_rng(
        [seed, d, list(PLANTS).index(plant), list(GEOMETRIES).index(geometry)]
    )
    return PLANTS[plant](rng, GEOMETRIES[geometry](rng, d), n, seed)


def tally(found: World, report: jc.classifiers.ErrorReport) -> dict[str, int]:
    """The verdicts on the errors that are the plant's work."""
    causes = [each.cause for each in report.verdicts if found.planted[each.index]]
    return {cause: causes.count(cause) for cause in report.counts}
