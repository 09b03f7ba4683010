"""Greedy selection: its errors are those of least squares on the data, however few the vectors.

And projections of pairs, whose directions without variance are rounding.
"""

import numpy as np
import pytest

from jaxcompress.transforms.selection import System, greedy, pair_rotation

CASES = {
    "one consumer": ([600], 1),
    "one measured on few vectors": ([600, 6], 1),
    "all measured on few vectors": ([7, 5], 1),
    "channels of two inputs": ([600], 2),
    "channels of two inputs, few vectors": ([600, 9], 2),
}
"""The vectors that each consumer was measured on, and the inputs of a channel."""


def remainder(data, kernels, channels) -> float:
    """The squared error of all consumers' results, solved anew from the inputs of some channels."""
    total = 0.0
    for x, kernel in zip(data, kernels, strict=True):
        y, kept = x @ kernel, x.reshape(len(x), 12, -1)[:, channels].reshape(len(x), -1)
        kept = kept / np.linalg.norm(kept, axis=0)
        gap = y - kept @ np.linalg.lstsq(kept, y, rcond=1e-7)[0] if channels else y
        total += np.sum(gap**2) / len(x)
    return total


@pytest.mark.parametrize("name", CASES)
def test_errors_are_those_of_least_squares_and_each_step_is_the_best(name):
    counts, inputs = CASES[name]
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(12 * inputs, 12 * inputs))
    mix[:, -inputs:] = mix[:, :inputs]  # the last channel is the first again
    mix *= np.repeat(np.logspace(-6, 6, 12), inputs)  # in units of their own
    data = [rng.normal(size=(count, 12 * inputs)) @ mix for count in counts]
    kernels = [rng.normal(size=(12 * inputs, 3)) / np.abs(mix).max(0)[:, None] for _ in counts]
    where = np.arange(12 * inputs).reshape(1, 12, inputs)
    systems = []
    for x, kernel in zip(data, kernels, strict=True):
        moments = (x.T.astype(np.float32) @ x.astype(np.float32)).astype(np.float64) / len(x)
        systems.append(System(moments, kernel, where))
    before: list[int] = []
    whole = remainder(data, kernels, before)
    for size in range(1, 12):
        chosen, errors = greedy(systems, size)
        channels = chosen[0].tolist()
        claimed = errors[min(size, len(errors) - 1)]
        assert abs(claimed - remainder(data, kernels, channels)) < 1e-4 * whole, size
        best = min(
            remainder(data, kernels, [*before, channel])
            for channel in range(12)
            if channel not in before
        )
        assert remainder(data, kernels, channels) <= best * 1.01 + 1e-5 * whole, size
        before = channels


def test_results_that_are_explained_already_leave_the_choice_to_the_variance():
    """Summed over all consumers, and fibre by fibre."""
    variances = np.array([[[1, 3, 2, 0.5], [0, 1, 2, 3]], [[3, 0.5, 0.6, 2], [5, 0, 0, 0.5]]])
    where = np.arange(8).reshape(2, 4, 1)
    systems = [System(np.diag(power.ravel()), np.zeros((8, 3)), where) for power in variances]
    chosen, errors = greedy(systems, 2)
    assert [row.tolist() for row in chosen] == [[0, 1], [0, 3]]
    assert not errors.any()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sides_of_a_product_that_span_less_than_they_are_wide(size):
    """At the rank of one side nothing is lost, and beyond it nothing is made of rounding."""
    rng = np.random.default_rng(size)
    left, right = (rng.normal(size=(6, rank)) for rank in (3, 6))
    left, right = (side / np.linalg.norm(side, axis=1)[:, None] for side in (left, right))
    first, second = pair_rotation(left @ left.T, right @ right.T, size)
    null = np.linalg.svd(left.T)[2][3:]
    np.testing.assert_allclose(null @ first, 0, atol=1e-9)
    assert np.abs(first).max() < 10
    gap = np.linalg.norm(left.T @ right - left.T @ first @ second.T @ right)
    values = np.linalg.svd(left.T @ right)[1]
    np.testing.assert_allclose(gap, np.linalg.norm(values[size:]), rtol=1e-6, atol=1e-6)
