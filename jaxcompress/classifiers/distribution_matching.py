"""Points of a training set moved until a student's features match those of the data in the mean.

The mean of a cell of images is a blur; the student learns from the mean of its features. Therefore
the points of each class are moved by gradient descent until the mean of their features equals that
of the class's given points, under another random network at each step. Points whose label changes
are moved back.

Costs, for each step, the features of a batch and of all points, and the gradient of the latter; it
runs on the library's one training loop.

Source: distribution matching, Zhao and Bilen 2023 (arXiv:2110.04181); the distance is the maximum
mean discrepancy of the features' kernel, Gretton et al. 2012 (JMLR 13).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree
from numpy.typing import ArrayLike

from jaxcompress.checks import checked, function, instance, seeds, whole
from jaxcompress.checks import optimizer as optimizer_kind
from jaxcompress.classifiers.bisection import labels_differ
from jaxcompress.classifiers.coarsening import RealizedAlong
from jaxcompress.classifiers.queries import (
    CLASSIFY,
    SOFT,
    Classify,
    Oracle,
    PointFunction,
    check_box,
    probabilities,
)
from jaxcompress.training.fit import fit

CALLER = "match_distribution"

Features = Callable[[jax.Array, jax.Array], jax.Array]
"""`features(key, x (n, d)) -> (n, k)`, the outputs of a random network."""


@checked(
    realized=instance(RealizedAlong, "of jc.classifiers.realize_along"),
    classify=CLASSIFY,
    features=function("features(key, x) -> (n, k)"),
    optimizer=optimizer_kind,
    steps=whole(0),
    examples=whole(),
    soft=SOFT,
    seed=seeds,
    batch_size=whole(),
)
def match_distribution(
    realized: RealizedAlong,
    classify: Classify,
    features: Features,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    examples: int = 2048,
    domain: tuple[ArrayLike, ArrayLike] | None = None,
    soft: PointFunction | None = None,
    seed: int = 0,
    batch_size: int = 4096,
    progress: bool = True,
) -> RealizedAlong:
    """Move the points of each class until the mean of their features is that of the given points.

    Args:
        realized: of `jc.classifiers.realize_along`, `.coarsened` to as many points as wanted.
        classify: as for `jc.classifiers.realize_along`; it is queried at the new points.
        features: `features(key, x (n, d)) -> (n, k)` float: the outputs of a random network,
            another one for each key, such as the student's hidden layer before training. If the
            student is trained on augmented or noisy inputs, let the key choose one augmentation for
            all of x: the points and the data are given the same key.
        optimizer: any optax transformation; its rate is in the units of the points.
        steps: number of steps.
        examples: given points a step, of all classes together.
        domain: (low, high) that the points stay in, numbers or (d,).
        soft: probabilities, evaluated at the new points.
        seed: of the drawn points and networks.
        batch_size: points a call of `classify`.
        progress: show a progress bar.

    Returns:
        The same with points moved, each with the label that it had, and equal weights within a
        class. Points of classes without given points stay where they are.

    Raises:
        ValueError: for features of another shape or that are not finite, and as `jc.fit` and
            `jc.classifiers.realize_along` do.
        TypeError: for labels that are not integers, features that are not float.

    Example:
        >>> import jax, numpy as np, optax, jaxcompress as jc
        >>> def ball(x):
        ...     return np.int32((x**2).sum(1) < 9)
        >>> x = np.random.default_rng(0).normal(size=(300, 10))
        >>> realized = jc.classifiers.realize_along(ball, x, jnd=0.1, neighbours=4, progress=False)
        >>> few = realized.coarsened(ball, per_class=5)
        >>> def relus(key, x):
        ...     return jax.nn.relu(x @ jax.random.normal(key, (10, 50)))
        >>> options = dict(optimizer=optax.adam(0.02), steps=50, progress=False)
        >>> moved = jc.classifiers.match_distribution(few, ball, relus, **options)
        >>> moved.points.shape, bool((moved.labels == few.labels).all())
        ((10, 10), True)
    """
    box = None if domain is None else check_box(CALLER, domain, realized.points.shape[1])
    _check_features(features, realized.points)
    state = fit(
        _discrepancy(features, realized.targets, len(realized.classes)),
        jnp.asarray(realized.points),
        _given_examples(realized),
        optimizer=optimizer if box is None else _clipped(optimizer, *box),
        steps=steps,
        batch_size=min(int(examples), len(realized.given)),
        seed=seed,
        progress=progress,
        description=CALLER,
    )
    moved, oracle = np.array(state.params, np.float32), Oracle(CALLER, classify, batch_size)
    # a point that crossed the boundary would teach the student a wrong label
    relabelled = labels_differ(oracle.labels(moved), realized.labels)
    moved[relabelled] = realized.points[relabelled]
    return dataclasses.replace(
        realized,
        points=moved,
        weights=_equal_weights(realized),
        soft=probabilities(CALLER, soft, moved, batch_size),
        queries=realized.queries + oracle.queries,
    )


def _given_targets(realized: RealizedAlong) -> Int[np.ndarray, " n"]:
    """The class of each given point, which is that of its cell."""
    return realized.targets[realized.cells]


def _given_examples(realized: RealizedAlong) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The given points, their classes, and their weights, of mean 1."""
    weights = (realized.given_weights * len(realized.given)).astype(np.float32)
    return realized.given, _given_targets(realized), weights


def _equal_weights(realized: RealizedAlong) -> Float[np.ndarray, " points"]:
    """The share of each class's given points, divided equally over the points of the class."""
    targets, classes = realized.targets, len(realized.classes)
    totals = np.bincount(_given_targets(realized), realized.given_weights, classes)
    share = totals / np.bincount(targets, minlength=classes)
    return share[targets]


def _discrepancy(
    features: Features, targets: Int[np.ndarray, " n"], classes: int
) -> Callable[[jax.Array, PyTree, jax.Array], jax.Array]:
    """The loss: squared differences of the feature means, weighted by the classes' shares."""
    point_targets = jnp.asarray(targets)

    def loss(points: Float[Array, "n d"], batch: PyTree, key: jax.Array) -> Float[Array, ""]:
        x, batch_targets, weights = batch
        goal, total = _class_means(features(key, x), batch_targets, weights, classes)
        equal = jnp.ones(len(points))
        reached, _ = _class_means(features(key, points), point_targets, equal, classes)
        # a class that the batch lacks has the share 0
        return jnp.sum(total / len(x) * jnp.mean((goal - reached) ** 2, axis=1))

    return loss


def _class_means(
    values: Float[Array, "n k"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    classes: int,
) -> tuple[Float[Array, "classes k"], Float[Array, " classes"]]:
    """The weighted mean of each class's values, and its total weight."""
    total = jax.ops.segment_sum(weights, targets, classes)
    added = jax.ops.segment_sum(weights[:, None] * values.astype(jnp.float32), targets, classes)
    return added / jnp.where(total == 0, 1, total)[:, None], total


def _clipped(
    optimizer: optax.GradientTransformation, low: np.ndarray, high: np.ndarray
) -> optax.GradientTransformation:
    """An optimizer whose updates keep the points in a box."""

    def clip(update: jax.Array, point: jax.Array) -> jax.Array:
        # of the difference, so that the optimizer's own sum ends in the box
        return jnp.clip(point + update, low, high).astype(point.dtype) - point

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        updates, state = optimizer.update(updates, state, params)
        return jax.tree.map(clip, updates, params), state

    return optax.GradientTransformation(optimizer.init, update)


def _check_features(features: Features, points: np.ndarray) -> None:
    """Refuse features of a wrong shape or type, before any work."""
    shape_of_points = jax.ShapeDtypeStruct(points.shape, jnp.float32)
    result = jax.eval_shape(features, jax.random.key(0), shape_of_points)
    is_array = isinstance(result, jax.ShapeDtypeStruct)
    if not (is_array and result.ndim == 2 and len(points) == result.shape[0] and result.shape[1]):
        shape = getattr(result, "shape", type(result).__name__)
        raise ValueError(
            f"{CALLER}: features gave {shape} for {len(points)} points, expected "
            f"({len(points)}, k): flatten what it gives"
        )
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(f"{CALLER}: features gave {result.dtype}, expected floats")
