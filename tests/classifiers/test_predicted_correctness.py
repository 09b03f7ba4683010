"""Predicted correctness: exact without movement, calibrated with it, invariant where it must be."""

import numpy as np
import pytest

from jaxcompress.classifiers.margins import is_right
from jaxcompress.classifiers.predicted_correctness import correctness_probabilities, logit_features

COUNT = 4_000


def world(classes, seed=0):
    """Logits of an original and labels that it mostly gives."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(COUNT, classes))
    return rng, logits, np.argmax(logits + rng.normal(size=logits.shape), 1)


def chances(logits, labels, moved, index):
    return correctness_probabilities(logit_features(logits), logits, labels, index, moved[index])


@pytest.mark.parametrize("classes", [2, 3, 10, 60])
def test_what_does_not_move_keeps_its_answers(classes):
    rng, logits, labels = world(classes)
    for count in (1, 2, 30, COUNT):
        index = rng.choice(COUNT, count, replace=False)
        for given in (
            logits,
            np.round(logits),
        ):  # and where the first of equal logits is the answer
            assert np.array_equal(chances(given, labels, given, index), is_right(given, labels))


@pytest.mark.parametrize("classes", [2, 3, 10, 60])
def test_chances_add_up_to_the_right_ones(classes):
    """A movement that depends on the logits, and noise: the sum is right to 0.015, parts to 0.1."""
    rng, logits, labels = world(classes)
    bend = 0.3 * np.maximum(logits, 0) @ rng.normal(size=(classes, classes)) / classes**0.5
    moved = (
        0.8 * logits + bend + 0.3 * rng.normal(size=classes) + 0.5 * rng.normal(size=logits.shape)
    )
    found = chances(logits, labels, moved, rng.choice(COUNT, 400, replace=False))
    right = is_right(moved, labels)
    assert ((found >= 0) & (found <= 1)).all()
    assert abs(found.mean() - right.mean()) < 0.015
    for low in np.arange(0, 1, 0.25):
        part = (found >= low) & (found <= low + 0.25)
        assert abs(found[part].mean() - right[part].mean()) < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_matter(seed):
    """Units of logits, names of classes, order of examples, a constant for an example's logits."""
    rng, logits, labels = world(5, seed)
    moved = 0.7 * logits + rng.normal(size=logits.shape)
    index = rng.choice(COUNT, 200, replace=False)
    found = chances(logits, labels, moved, index)
    np.testing.assert_allclose(chances(8 * logits, labels, 8 * moved, index), found, atol=0.01)
    order, names = rng.permutation(COUNT), rng.permutation(5)
    place = np.argsort(order)[index]
    np.testing.assert_allclose(
        chances(logits[order], labels[order], moved[order], place), found[order], atol=0.01
    )
    np.testing.assert_allclose(
        chances(logits[:, names], np.argsort(names)[labels], moved[:, names], index),
        found,
        atol=0.01,
    )
    lifted = moved + (logits @ rng.normal(size=5))[:, None]
    np.testing.assert_allclose(chances(logits, labels, lifted, index), found, atol=0.01)


def test_logits_that_say_nothing():
    """All alike, or huge: chances all the same, and no warning."""
    labels = np.arange(100) % 3
    for logits in (np.zeros((100, 3)), np.full((100, 3), 1e30)):
        for moved in (logits, logits + np.eye(3)[0]):
            found = chances(logits, labels, moved, np.arange(9))
            assert ((found >= 0) & (found <= 1)).all()
