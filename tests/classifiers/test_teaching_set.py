"""Teaching sets: drawn where the student differs, so that they teach more than random points."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, xlogy
from scipy.stats import chisquare

import jaxcompress as jc

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (1500, 2)).astype(np.float32)
LABELS = ((np.sin(5 * X[:, 0]) > X[:, 1]) + 2 * (X[:, 0] ** 2 + X[:, 1] ** 2 < 0.2)).astype(int)
HARD = np.asarray(jax.nn.one_hot(LABELS, 4))
SOFT = 0.9 * HARD + 0.025


def nearest(x, targets, seed):
    """A student that remembers its points: logits fall with the distance to each class."""

    def predict(inputs):
        distance = ((inputs[:, None] - x) ** 2).sum(2)
        own = [
            distance[:, targets.argmax(1) == each].min(1, initial=9.0)
            for each in range(targets.shape[1])
        ]
        return -30 * np.sqrt(np.stack(own, 1))

    return predict


def divergence(targets, logits):
    return (xlogy(targets, targets) - targets * log_softmax(logits, axis=1)).sum(1)


def disagreement(indices, targets=HARD):
    return np.mean(nearest(X[indices], targets[indices], 0)(X).argmax(1) != LABELS)


@pytest.mark.parametrize("targets", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize(("size", "rounds"), [(60, 6), (61, 8), (7, 7), (40, 1)])
def test_each_round_adds_what_its_student_misses(targets, size, rounds):
    asked = []

    def learn(x, t, seed):
        asked.append(len(x))
        return nearest(x, t, seed)

    found = jc.classifiers.teaching_set(
        learn, X, targets, size, rounds=rounds, batch_size=256, progress=False
    )
    assert len(found) == size == len(set(found.indices.tolist()))
    assert len(asked) == rounds - 1 == len(found.divergence) == len(found.agreement)
    assert (np.diff(found.round) >= 0).all()
    for each in range(1, rounds):
        before, new = found.indices[found.round < each], found.indices[found.round == each]
        assert asked[each - 1] == len(before)
        assert abs(len(new) - size / rounds) < 1  # equal parts, but for whole numbers
        logits = nearest(X[before], targets[before], 0)(X)
        apart = divergence(targets, logits)
        assert found.divergence[each - 1] == pytest.approx(apart.mean(), rel=1e-4)
        assert found.agreement[each - 1] == np.mean(logits.argmax(1) == LABELS)
        left = np.setdiff1d(np.arange(len(X)), found.indices[found.round <= each])
        assert apart[new].mean() > apart[left].mean()


def test_points_are_drawn_in_proportion_to_the_square_of_the_divergence():
    x, targets, start = X[:40], SOFT[:40], np.array([0, 7])
    squares = divergence(targets, nearest(x[start], targets[start], 0)(x)) ** 2
    squares[start] = 0
    given = dict(rounds=2, start=start, progress=False)
    drawn = [
        jc.classifiers.teaching_set(nearest, x, targets, 3, seed=seed, **given).indices[2]
        for seed in range(1000)
    ]
    counts = np.bincount(drawn, minlength=40)
    assert not counts[start].any()
    often = np.flatnonzero(1000 * squares / squares.sum() > 5)
    seen = np.append(counts[often], 1000 - counts[often].sum())
    hoped = np.append(squares[often] / squares.sum(), 0)
    hoped[-1] = 1 - hoped.sum()
    assert chisquare(seen, 1000 * hoped).pvalue > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_chosen_points_teach_more_than_random_ones(seed):
    found = jc.classifiers.teaching_set(nearest, X, HARD, 120, rounds=12, seed=seed, progress=False)
    random = [
        disagreement(np.random.default_rng(each).permutation(len(X))[:120]) for each in range(20)
    ]
    assert disagreement(found.indices) < 0.8 * np.min(random)


def test_start_is_kept_and_the_first_part_has_all_classes():
    start = np.array([5, 3, 8])
    found = jc.classifiers.teaching_set(nearest, X, HARD, 30, start=start, progress=False)
    np.testing.assert_array_equal(found.indices[:3], start)
    first = jc.classifiers.teaching_set(nearest, X, HARD, 32, rounds=4, progress=False)
    np.testing.assert_array_equal(
        np.bincount(LABELS[first.indices[first.round == 0]]), [2, 2, 2, 2]
    )
    again = jc.classifiers.teaching_set(
        nearest, X, HARD, 32, rounds=4, progress=False, batch_size=100
    )
    np.testing.assert_array_equal(first.indices, again.indices)


def test_it_comes_back_from_a_file(tmp_path):
    found = jc.classifiers.teaching_set(nearest, X, HARD, 32, rounds=4, progress=False)
    jc.save(tmp_path / "set.safetensors", {"chosen": found})
    again = jc.load(tmp_path / "set.safetensors")["chosen"]
    assert repr(again) == repr(found)
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))


def test_all_points_and_images():
    found = jc.classifiers.teaching_set(nearest, X[:50], HARD[:50], 50, progress=False)
    np.testing.assert_array_equal(np.sort(found.indices), np.arange(50))
    assert re.fullmatch(
        r"TeachingSet\(50 of 50 points in 8 rounds; "
        r"students agree on \d+\.\d\d % to \d+\.\d\d % of all\)",
        repr(found),
    )
    one = jc.classifiers.teaching_set(nearest, X[:50], HARD[:50], 9, rounds=1, progress=False)
    assert repr(one) == "TeachingSet(9 of 50 points in 1 round)"

    def flat(x, t, seed):
        return lambda inputs: nearest(x.reshape(-1, 2), t, seed)(inputs.reshape(-1, 2))

    images = jc.classifiers.teaching_set(
        flat, X[:50].reshape(-1, 1, 2), HARD[:50], 20, progress=False
    )
    np.testing.assert_array_equal(
        images.indices,
        jc.classifiers.teaching_set(nearest, X[:50], HARD[:50], 20, progress=False).indices,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            dict(targets=LABELS),
            r"got \(1500,\) for 1500 points: for integer labels give jax\.nn\.one_hot",
        ),
        (dict(targets=HARD[:9]), r"got \(9, 4\) for 1500 points"),
        (dict(targets=HARD[:, :1]), "2 classes at least"),
        (dict(targets=np.log(SOFT)), "sum to 1, got rows that do not: take a softmax"),
        (dict(targets=np.full_like(SOFT, np.nan)), "sum to 1"),
        (dict(x=X[:0], targets=HARD[:0]), "n points from 1 on"),
        (dict(size=1501), "expected 1 <= rounds <= size <= 1500"),
        (dict(size=4), "got rounds=8, size=4"),
        (dict(rounds=0), "got rounds=0, size=40"),
        (dict(rounds=2.5), "got rounds=2.5"),
        (dict(start=[0.5]), "start must be the indices of 1 to 40 points, got float64"),
        (dict(start=np.arange(41)), "indices of 1 to 40 points"),
        (dict(start=[1, 1]), "different indices of 1500 points"),
        (dict(start=[-1]), "different indices of 1500 points"),
        (dict(batch_size=0), "batch_size must be a whole number of at least 1"),
    ],
)
def test_bad_input_is_refused_before_any_work(given, message):
    def learn(x, targets, seed):
        raise AssertionError("was called")

    with pytest.raises(ValueError, match=message):
        jc.classifiers.teaching_set(
            learn, **(dict(x=X, targets=HARD, size=40, progress=False) | given)
        )


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (
            lambda x: np.zeros(len(x)),
            r"predict gave an array of shape \(4096,\) for 4096 examples: "
            r"expected logits \(4096, 4\)$",
        ),
        (
            lambda x: np.zeros((len(x), 3)),
            r"shape \(4096, 3\) for 4096 examples: expected logits \(4096, 4\)$",
        ),
        (lambda x: np.full((len(x), 4), np.inf), "not finite: the student diverged"),
    ],
)
def test_students_that_are_none(logits, message):
    with pytest.raises(ValueError, match=message):
        jc.classifiers.teaching_set(lambda x, targets, seed: logits, X, HARD, 40, progress=False)
