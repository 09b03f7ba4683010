"""Points of a re-made training set moved until a student's features cannot tell them from the data, in the mean.

The mean of a cell of images is a blur; the mean of its features, under networks such as the student's before training, is what the
student learns from. So the points of each class are moved by gradients until the mean of their features is that of the class's
given points, under another random network at each step. Points whose label that changes go back to where they were.

Costs the features of a batch and of all points, and the gradient of the latter, a step; it runs on the library's one training loop.

Source: distribution matching, Zhao and Bilen 2023 (arXiv:2110.04181); the distance is the maximum mean discrepancy, Gretton et al.
2012 (JMLR 13), of the features' kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jaxcompress.classifiers.bisection import differ
from jaxcompress.classifiers.queries import Asker, check_batch_size, probabilities
from jaxcompress.classifiers.realization_along import RealizedAlong, check_domain
from jaxcompress.training.fit import fit

WHO = "match_distribution"


def match_distribution(
    realized: RealizedAlong,
    classify: Callable[[np.ndarray], Any],
    features: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    examples: int = 2048,
    domain: tuple[Any, Any] | None = None,
    soft: Callable[[np.ndarray], Any] | None = None,
    seed: int = 0,
    batch_size: int = 4096,
    progress: bool = True,
) -> RealizedAlong:
    """Move the points of each class until the mean of their features is that of the given points of the class.

    Args:
        realized: what `jc.classifiers.realize_along` found, `.coarsened` to as many points as wanted.
        classify: as for `jc.classifiers.realize_along`; it is asked at the new points.
        features: `features(key, x (n, d)) -> (n, k)` float: the outputs of a random network, another one for each key, such as the
            student's hidden layer before training. Where the student is trained on moved or noisy inputs, let the key move all of x
            alike: it is the same for the points and for the data.
        optimizer: any optax transformation; its rate is in the units of the points.
        steps: how many.
        examples: given points a step, of all classes together.
        domain: (low, high) that the points stay in, numbers or (d,).
        soft: probabilities, asked at the new points.
        seed: which given points and which networks.
        batch_size: points a call of `classify`.
        progress: show a progress bar.

    Returns:
        The same with points moved, each of the label that it had, and all those of a class of one weight. Points of classes that
        none of the given points has stay where they are.

    Raises:
        ValueError: for features of another shape or that are not finite, and as `jc.fit` and `jc.classifiers.realize_along` do.
        TypeError: for labels that are not integers, features that are not float.

    Example:
        >>> import jax, numpy as np, optax, jaxcompress as jc
        >>> ball = lambda x: np.int32((x**2).sum(1) < 9)
        >>> x = np.random.default_rng(0).normal(size=(300, 10))
        >>> few = jc.classifiers.realize_along(ball, x, jnd=0.1, neighbours=4, progress=False).coarsened(ball, per_class=5)
        >>> relus = lambda key, x: jax.nn.relu(x @ jax.random.normal(key, (10, 50)))
        >>> moved = jc.classifiers.match_distribution(few, ball, relus, optimizer=optax.adam(0.02), steps=50, progress=False)
        >>> moved.points.shape, bool((moved.labels == few.labels).all())
        ((10, 10), True)
    """
    check_batch_size(WHO, batch_size)
    box = None if domain is None else check_domain(WHO, domain, realized.points.shape[1])
    if not (isinstance(examples, int | np.integer) and examples >= 1):
        raise ValueError(f"{WHO}: examples must be a whole number from 1 on, got {examples}")
    _check_features(features, realized.points)
    classes, targets = len(realized.classes), jnp.asarray(realized.targets)
    given_targets, given = realized.targets[realized.cells], len(realized.given)
    data = (realized.given, given_targets, np.float32(realized.given_weights * given))

    def means(
        values: jax.Array, which: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        total = jax.ops.segment_sum(weights, which, classes)
        added = jax.ops.segment_sum(weights[:, None] * values.astype(jnp.float32), which, classes)
        return added / jnp.where(total == 0, 1, total)[:, None], total

    def loss(points: jax.Array, batch: Any, key: jax.Array) -> jax.Array:
        x, which, weights = batch
        goal, total = means(features(key, x), which, weights)
        reached, _ = means(features(key, points), targets, jnp.ones(len(points)))
        return jnp.sum(
            total / len(x) * jnp.mean((goal - reached) ** 2, axis=1)
        )  # a class that the batch lacks does not count

    points = fit(
        loss, jnp.asarray(realized.points), data, optimizer=optimizer if box is None else _within(optimizer, *box), steps=steps,
        batch_size=min(int(examples), given), seed=seed, progress=progress, description=WHO,
    ).params  # fmt: skip
    moved = np.array(points, np.float32)
    asker = Asker(WHO, classify, batch_size, None, tqdm(disable=True))
    labels = asker.labels(moved)
    back = differ(labels, realized.labels)
    moved[back] = realized.points[back]
    share = np.bincount(given_targets, realized.given_weights, classes) / np.bincount(
        realized.targets, minlength=classes
    )
    return dataclasses.replace(
        realized,
        points=moved,
        weights=share[realized.targets],
        soft=probabilities(WHO, soft, moved, batch_size),
        queries=realized.queries + asker.queries,
    )


def _within(
    optimizer: optax.GradientTransformation, low: np.ndarray, high: np.ndarray
) -> optax.GradientTransformation:
    """Updates cut so that the points stay in a box."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(updates, state, params)
        return jax.tree.map(
            lambda u, p: jnp.clip(p + u, low, high).astype(p.dtype) - p, updates, params
        ), state

    return optax.GradientTransformation(optimizer.init, update)


def _check_features(
    features: Callable[[jax.Array, jax.Array], jax.Array], points: np.ndarray
) -> None:
    """Refuse features of a wrong kind, before any work."""
    made = jax.eval_shape(
        features, jax.random.key(0), jax.ShapeDtypeStruct(points.shape, jnp.float32)
    )
    if not (
        isinstance(made, jax.ShapeDtypeStruct)
        and made.ndim == 2
        and made.shape[0] == len(points)
        and made.shape[1]
    ):
        shape = getattr(made, "shape", type(made).__name__)
        raise ValueError(
            f"{WHO}: features gave {shape} for {len(points)} points, expected ({len(points)}, k): flatten what it gives"
        )
    if not jnp.issubdtype(made.dtype, jnp.floating):
        raise TypeError(f"{WHO}: features gave {made.dtype}, expected floats")
