"""Points moved to the data's feature means: nearer, in their box, of their label; refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcompress as jc
from jaxcompress.classifiers.realization_along import random_points


def sphere(x):
    return np.int32(((x - 0.5) ** 2).sum(1) < 0.4)


def relus(key, x):
    return jax.nn.relu((x - 0.5) @ jax.random.normal(key, (5, 64)))


X = random_points((np.zeros(5), np.ones(5)), 400, seed=0)
FOUND = jc.classifiers.realize_along(sphere, X, 0.05, neighbours=4, progress=False)
GIVEN = dict(
    optimizer=optax.adam(optax.cosine_decay_schedule(0.02, 200)), steps=200, progress=False
)


def discrepancy(realized):
    """The distance of the feature means, over networks that no step has seen."""

    def of(key):
        return sum(
            jnp.mean(
                (
                    relus(key, FOUND.given[FOUND.given_labels == c]).mean(0)
                    - relus(key, realized.points[realized.labels == c]).mean(0)
                )
                ** 2
            )
            for c in (0, 1)
        )

    return float(jnp.mean(jax.vmap(of)(jax.random.split(jax.random.key(99), 50))))


@pytest.mark.parametrize("members", [False, True])
def test_features_of_new_networks_come_nearer_to_the_data(members):
    few = FOUND.coarsened(sphere, 4, members=members)
    moved = jc.classifiers.match_distribution(few, sphere, relus, **GIVEN, domain=(0, 1))
    assert discrepancy(moved) < 0.7 * discrepancy(few)


def test_labels_stay_and_points_stay_in_the_box():
    few = FOUND.coarsened(sphere, 6, members=True)
    moved = jc.classifiers.match_distribution(
        few, sphere, relus, optimizer=optax.sgd(50.0), steps=20, progress=False, domain=(0.1, 0.9)
    )
    inside = (moved.points >= 0.1).all(1) & (moved.points <= 0.9).all(1)
    kept = (moved.points == few.points).all(1)
    assert (inside | kept).all()
    assert (sphere(moved.points) == few.labels).all()
    np.testing.assert_array_equal(moved.labels, few.labels)
    assert moved.queries == few.queries + len(few.points)
    np.testing.assert_allclose(moved.weights.sum(), 1, rtol=1e-6)


def test_the_same_seed_gives_the_same_points():
    few = FOUND.coarsened(sphere, 3)
    one, two = (
        jc.classifiers.match_distribution(few, sphere, relus, **GIVEN).points for _ in range(2)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("features", "change", "error", "match"),
    [
        (lambda key, x: x[None], {}, ValueError, r"expected \(\d+, k\): flatten"),
        (lambda key, x: x.astype(int), {}, TypeError, "expected floats"),
        (relus, {"domain": (1, 0)}, ValueError, "finite low < high"),
        (relus, {"examples": 0}, ValueError, "examples must be a whole number of at least 1"),
        (relus, {"steps": -1}, ValueError, "steps must be a whole number of at least 0"),
        (lambda key, x: x / 0, {}, ValueError, "not finite"),
    ],
)
def test_bad_input(features, change, error, match):
    few = FOUND.coarsened(sphere, 3)
    with pytest.raises(error, match=match):
        jc.classifiers.match_distribution(few, sphere, features, **GIVEN | change)


def test_a_class_of_the_border_only_stays():
    given = dataclasses.replace(
        FOUND.coarsened(sphere, 2),
        points=np.float32([[0.5] * 5, [0.0] * 5, [1.0] * 5]),
        labels=np.int32([1, 0, 7]),
    )
    given = dataclasses.replace(
        given, weights=np.float64([0.5, 0.5, 0]), cells=np.where(FOUND.given_labels == 1, 0, 1)
    )

    def classify(x):
        return np.where((x == 1).all(1), 7, sphere(x)).astype(np.int32)

    moved = jc.classifiers.match_distribution(given, classify, relus, **GIVEN, domain=(0, 1))
    np.testing.assert_array_equal(moved.points[2], given.points[2])
    assert moved.weights[2] == 0
