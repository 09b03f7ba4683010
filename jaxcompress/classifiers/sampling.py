"""How evaluations are divided over strata of examples, in proportion to their uncertainty.

With a mean movement b of the signed margins s, distributed as Laplace's law, a prediction flips
with probability `p = exp(-|s| / b) / 2`; the best number of evaluations of a stratum is in
proportion to the sum of `sqrt(p)`.

Source: optimal allocation, Neyman 1934 (doi:10.2307/2342192).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from jaxcompress.classifiers.active_set import ActiveSet

BASE_RATE = 0.004
"""The share that is expected to flip whatever the margin: every stratum gets some evaluations."""

Strata = list[np.ndarray]
"""The examples (n,) of each stratum, in a random order."""


def flip_probabilities(
    active: ActiveSet, examples: Int[np.ndarray, " n"], movement: float
) -> Float[np.ndarray, " n"]:
    """The probability that predictions flip, by Laplace's law with a mean movement of margins."""
    return np.exp(-active.distance[examples] / max(movement, 1e-12)) / 2 + BASE_RATE


def stratum_weights(
    active: ActiveSet, strata: Strata, movement: float
) -> Float[np.ndarray, " strata"]:
    """For each stratum the sum of sqrt(p), which evaluations are proportional to."""
    sums = [np.sqrt(flip_probabilities(active, part, movement)).sum() for part in strata]
    return np.array(sums)


def sizes_of(strata: Strata) -> Int[np.ndarray, " strata"]:
    """Number of examples of each stratum."""
    return np.array([len(part) for part in strata], int)


def divide_over_strata(
    count: int, strata: Strata, weights: Float[np.ndarray, " strata"], least: int
) -> Int[np.ndarray, " strata"]:
    """Numbers of evaluations for the strata, at least `least` each where the size allows."""
    sizes = sizes_of(strata)
    return divide(count, weights, np.minimum(least, sizes), sizes)


def divide(
    count: int,
    weights: Float[np.ndarray, " n"],
    least: Int[np.ndarray, " n"],
    most: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """Integers in proportion to weights, between bounds, with a given sum if the bounds allow.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.sampling import divide
        >>> divide(10, np.array([1.0, 1.0, 8.0]), np.array([2, 0, 0]), np.array([9, 9, 5])).tolist()
        [3, 2, 5]
    """
    count = int(np.clip(count, least.sum(), most.sum()))
    # the small constant gives the remainder to entries of weight zero when the others are full
    weights = weights / (weights.max(initial=0.0) or 1.0) + 1e-9
    low, high = 0.0, 1e9 * (1.0 + most.max(initial=0))
    for _ in range(100):  # bisection: the sum grows with the scale
        middle = (low + high) / 2
        fits = np.clip(middle * weights, least, most).sum() <= count
        low, high = (middle, high) if fits else (low, middle)
    exact = np.clip(low * weights, least, most)
    integers = np.floor(exact + 1e-9).astype(int)
    # the largest fractions are rounded up first
    order = np.argsort(integers - exact, kind="stable")
    open_entries = order[integers[order] < most[order]]
    for entry in np.resize(open_entries, max(count - integers.sum(), 0)):
        integers[entry] += integers[entry] < most[entry]
    return integers
