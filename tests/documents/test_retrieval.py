"""Ranks against a plain count, shares against a simulation, and what does not fit."""

import numpy as np
import pytest

from jaxcompress.documents.retrieval import compare, fidelity, ranks, search


def test_ranks_are_what_sorting_gives():
    rng = np.random.default_rng(0)
    questions, passages = rng.standard_normal((30, 8)), rng.standard_normal((50, 8))
    right = rng.integers(0, 50, 30)
    for question, target, rank in zip(
        questions, right, ranks(questions, passages, right), strict=True
    ):
        order, scores = search(question, passages, 50)
        assert order[rank - 1] == target
        assert (np.diff(scores) <= 0).all()
    assert len(search(questions[0], passages, 3)[0]) == 3


def test_an_encoder_that_says_nothing_gets_nothing():
    assert (ranks(np.ones((4, 3)), np.ones((10, 3)), np.arange(4)) == 10).all()


def test_intervals_hold_what_they_should():
    """Of 200 pairs of encoders, one 80 % as good as the other, nearly all intervals hold 80 %."""
    rng, held = np.random.default_rng(0), 0
    for seed in range(100):
        before = np.where(rng.random(300) < 0.6, 1, 3)
        after = np.where(
            (before == 1) & (rng.random(300) < 0.7) | (before == 3) & (rng.random(300) < 0.15), 1, 3
        )
        share, low, high = compare(before, after, draws=300, seed=seed).recall_kept
        assert low <= share <= high
        held += low <= (0.6 * 0.7 + 0.4 * 0.15) / 0.6 <= high
    assert 88 <= held <= 100


def test_lost_and_won_are_counted():
    found = compare(np.array([1, 1, 1, 2, 5]), np.array([1, 2, 3, 1, 9]))
    assert (found.lost, found.won) == (2, 1)
    assert found.recall == (0.6, 0.4)
    assert found.mrr[1] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 + 1 / 9) / 5)
    assert "lost 2, won 1" in str(found)
    assert compare(np.array([1, 1]), np.array([1, 1])).chance == 1


def test_fidelity_is_the_mean_cosine():
    x = np.random.default_rng(0).standard_normal((5, 4))
    assert fidelity(x, 3 * x) == pytest.approx(1)
    assert fidelity(x, -x) == pytest.approx(-1)
    assert fidelity(x, np.zeros_like(x)) == 0


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"expected questions \(q, d\)"):
        ranks(np.ones((2, 3)), np.ones((4, 5)), np.zeros(2, int))
    with pytest.raises(ValueError, match="same two or more"):
        compare(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="nothing to keep"):
        compare(np.full(5, 2), np.ones(5))
