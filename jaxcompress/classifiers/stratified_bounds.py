"""Bounds of a total over strata from a random sample of each, without assumptions.

The counts K_h that are not refuted are those with `prod_h Q_h(k) / P(k | K_h) < 1 / risk`, where P
is hypergeometric and Q any distribution that was fixed before the draw: the left side has the mean
1 under the truth, so that the truth is refuted with probability `risk` at most (Markov). Q is
beta-binomial around an expected share; a bad expectation makes the bounds wide, never wrong. The
extremes of the total are bounded by Lagrange's dual function, which is valid for every multiplier.

Source: bounds by a ratio of likelihoods, Wasserman, Ramdas and Balakrishnan 2020
(arXiv:1912.11436).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import betabinom, hypergeom

WEIGHT = 10.0
"""Weight of the expected share, in examples: more makes the bounds narrower where it is right and
wider where it is not."""
MULTIPLIERS = np.geomspace(1e-2, 1e5, 60)[:, None]
"""At which the dual function is evaluated."""


def total_bounds(
    hits: Int[np.ndarray, " strata"],
    drawn: Int[np.ndarray, " strata"],
    sizes: Int[np.ndarray, " strata"],
    expected: Float[np.ndarray, " strata"],
    signs: Int[np.ndarray, " strata"],
    risk: float,
) -> tuple[float, float]:
    """Bounds of a signed total over strata, from samples without replacement.

    Args:
        hits: number of drawn examples that have the property.
        drawn: number of drawn examples.
        sizes: number of examples.
        expected: the share that was expected before the draw, in (0, 1).
        signs: 1 or -1.
        risk: the probability, at most, that the total is not between the bounds.

    Returns:
        The least and the greatest of `sum_h signs_h K_h`, where K_h examples have the property.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.stratified_bounds import total_bounds
        >>> def stratum(*numbers):
        ...     return [np.array([number]) for number in numbers]
        >>> total_bounds(*stratum(0, 100, 1000, 0.01, 1), 0.05)
        (0.0, 30.0)
        >>> total_bounds(*stratum(7, 10, 10, 0.01, 1), 0.05)
        (7.0, 7.0)
    """
    prior = betabinom.logpmf(hits, drawn, WEIGHT * expected, WEIGHT * (1 - expected))
    score = prior.sum() + np.log(risk)
    counts, likelihoods = [], []
    for k, n, size in zip(hits, drawn, sizes, strict=True):
        possible = np.arange(k, size - (n - k) + 1)
        counts.append(possible)
        likelihoods.append(hypergeom.logpmf(k, size, possible, n))
    least = -_greatest(-signs, counts, likelihoods, score)
    greatest = _greatest(signs, counts, likelihoods, score)
    return 0.0 + least, greatest  # no negative zero


def _greatest(
    signs: np.ndarray, counts: list[np.ndarray], likelihoods: list[np.ndarray], score: float
) -> float:
    """The greatest signed total that is not refuted, rounded to an integer."""
    dual = -MULTIPLIERS[:, 0] * score
    extreme = 0  # all possible examples have the property, or none: also a bound
    for sign, possible, likelihood in zip(signs, counts, likelihoods, strict=True):
        dual = dual + (sign * possible + MULTIPLIERS * likelihood).max(1)
        extreme += sign * (possible[-1] if sign > 0 else possible[0])
    return float(np.floor(min(dual.min(initial=np.inf), extreme) + 1e-6))
