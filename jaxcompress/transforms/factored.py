"""Low rank: each weight is rotated to its principal directions and cut.

At rank r the error is the least possible, of the weight, or with moments of the outputs: the
singular value decomposition in the metric of the inputs.

Source: Eckart and Young 1936; SVD-LLM (arXiv:2403.07378) for the metric.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.factored import FactoredArray, NoSharedLines, principal_outputs
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.projection import per_matrix, weigh
from jaxcompress.checks import checked, number
from jaxcompress.transforms.base import InputMetric
from jaxcompress.transforms.budget import Budget
from jaxcompress.transforms.leafwise import Curve, LeafTransform
from jaxcompress.transforms.options import (
    Keep,
    PerPattern,
    Roles,
    check_keep,
    check_matrix_axes,
)
from jaxcompress.transforms.weights import Unreachable, squared


@dataclasses.dataclass(frozen=True, repr=False)
class Factored(LeafTransform):
    """See `factored`."""

    keep: PerPattern[float] | Budget
    energy: float | None = None
    matrix_axes: PerPattern[MatrixAxes | None] = None

    def hidden(self) -> tuple[str, ...]:
        """The keep, where an energy replaces it."""
        return () if self.energy is None else ("keep",)

    def curve(
        self, matrix: Float[np.ndarray, "*lead m n"], metric: InputMetric, name: str
    ) -> Curve:
        """The error in closed form: the energy beyond each rank."""
        m, n = matrix.shape[-2:]
        flat = matrix.reshape(-1, m, n)
        metrics = per_matrix(metric, len(flat))
        powers = np.array([squared(*pair) for pair in zip(flat, metrics, strict=True)])
        remainders = powers @ (1 - energy_by_rank(matrix, metric))
        keeps, errors = [], []
        for rank in range(1, min(m, n)):
            numbers = math.ceil(FactoredArray.numbers(m, n, rank))
            if numbers < m * n:
                keeps.append(numbers / (m * n))
                errors.append(max(float(remainders[rank - 1]), 0.0))
        return np.array([*keeps, 1.0]), np.array([*errors, 0.0])

    def fit(
        self, matrix: Float[np.ndarray, "*lead m n"], numbers: int, metric: InputMetric, name: str
    ) -> FactoredArray:
        """The largest rank within the count of numbers, or the least that reaches the energy."""
        m, n = matrix.shape[-2:]
        if self.energy is not None:
            return of_rank(matrix, rank_for_energy(matrix, metric, self.energy), metric)
        ranks = [
            rank for rank in range(1, min(m, n) + 1) if FactoredArray.numbers(m, n, rank) <= numbers
        ]
        if not ranks:
            least = math.ceil(FactoredArray.numbers(m, n, 1))
            raise Unreachable(least, f"rank 1 takes {least} numbers, and keep allows {numbers}")
        return of_rank(matrix, ranks[-1], metric)


def of_rank(
    matrix: Float[np.ndarray, "*lead m n"], rank: int, metric: InputMetric
) -> FactoredArray:
    """The best product of a rank, which a stack reaches only if its matrices share their lines."""
    try:
        return FactoredArray.fit(matrix, rank, metric=metric)
    except NoSharedLines as error:
        raise Unreachable(math.prod(matrix.shape[-2:]), str(error)) from None


@checked(energy=number("(0, 1]", "the share of the squared norm to reach"))
def factored(
    keep: Keep | None = None, *, energy: float | None = None, matrix_axes: Roles = None
) -> LeafTransform:
    """Rotate each weight to its principal directions and cut: the best product of low rank.

    With moments the *outputs'* error is the least possible at that rank; without, the weight's own.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], a mapping from patterns to fractions,
            or `jc.budget(total)`.
        energy: instead of `keep`, the share of the outputs' (or the weight's) squared norm to
            reach, in (0, 1].
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out)
            for two by default.

    Returns:
        A transform to trees with `FactoredArray` nodes (Eckart and Young 1936; arXiv:2403.07378 for
        the metric).

    Raises:
        ValueError: for a keep or an energy outside (0, 1], or both, or neither.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.factored(energy=0.999)(jnp.outer(jnp.arange(8.0), jnp.ones(6)))
        FactoredArray((8, 6) float32, rank 1, 14 stored = 1/3.43)
    """
    if (keep is None) == (energy is None):
        raise ValueError("factored takes either keep or energy, not both or neither")
    return Factored(
        1.0 if keep is None else check_keep(keep), energy, check_matrix_axes(matrix_axes)
    )


def rank_for_energy(
    matrix: Float[np.ndarray, "*lead m n"], metric: InputMetric, energy: float
) -> int:
    """The least rank at which every matrix of a stack reaches an energy."""
    # the tolerance lets energy=1 be reached below full rank in spite of rounding
    reached = energy_by_rank(matrix, metric) >= energy * (1 - 1e-12)
    return int(reached.argmax(-1).max() + 1) if reached.any(-1).all() else reached.shape[-1]


def energy_by_rank(
    matrix: Float[np.ndarray, "*lead m n"], metric: InputMetric
) -> Float[np.ndarray, "matrices ranks"]:
    """The share of the outputs' squared norm in the best product of rank 1, 2, ..."""
    target = np.asarray(matrix, np.float64).reshape(-1, *matrix.shape[-2:])
    outputs = target @ principal_outputs(target, metric, min(target.shape[-2:]))
    if metric is not None and metric.ndim > 2:
        metric = metric.reshape(-1, *metric.shape[-2:])
    weighted = outputs if metric is None else weigh(metric, outputs)
    gains = np.cumsum(np.maximum(np.sum(outputs * weighted, axis=-2), 0), axis=-1)
    whole = gains[..., -1:]
    # any product has all the energy of outputs that are zero
    return np.where(whole > 0, gains / np.where(whole > 0, whole, 1), 1.0)
