"""A dense matrix as one function of one variable, sampled more coarsely.

Interlace the values of the n features into one function f, one period of n values for each input; space the inputs
out by n; then `x @ W` is the convolution of the spaced-out inputs with f, read at n places. A resolution of q knots
in each period stores `samples` (m, q), m q numbers, and means `W = samples @ steps`, with `steps` (q, n) the step
basis; the basis never crosses a period, so inputs stay apart. Forward: the convolution on the coarse grid,
2 m q operations a row, then a repeat.

Source: the mission's own idea; function views of weights in Integral Neural Networks (Solodskikh et al. 2023).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import CompactArray, compact_array, static

BASES = ("step",)


@compact_array
class ConvolvedArray(CompactArray):
    """A matrix whose rows are periods of one function, known at q knots each.

    Attributes:
        samples: (..., m, q) values of the function.
        basis: how values between the knots follow: "step".
    """

    samples: Any  # a compact array, or numbers
    basis: str = static(default="step")

    def materialize(self) -> jax.Array:
        return self._refine(self.samples)

    def _multiply(self, x: jax.Array) -> jax.Array:
        return self._refine(x @ self.samples)

    def _take(self, rows: jax.Array) -> jax.Array:
        samples = self.samples.take(rows) if isinstance(self.samples, CompactArray) else self.samples[rows]
        return self._refine(samples)

    def _leading(self) -> tuple[int, ...]:
        return self.samples.shape[:-2]

    def _summary(self) -> str:
        return f"{self.samples.shape[-1]} {self.basis} knots a period"

    def _child_metrics(self, metric: np.ndarray | None) -> dict[str, np.ndarray | None]:
        return {"samples": metric}

    def _refine(self, coarse: jax.Array) -> jax.Array:
        n, q = self.matrix_shape[1], coarse.shape[-1]
        if n % q == 0:
            return jnp.repeat(coarse, n // q, axis=-1)
        return coarse[..., jnp.arange(n) * q // n]

    @classmethod
    def fit(cls, matrix: np.ndarray, count: int, *, basis: str = "step") -> ConvolvedArray:
        """The samples with the least squared error: means over each knot's step.

        The columns of one step share one sample whatever the inputs' metric is, so the means are the optimum in
        every metric.

        Args:
            matrix: (..., m, n).
            count: knots in each period, between 1 and n.
        """
        n = matrix.shape[-1]
        knot = knots(n, count)
        starts = np.searchsorted(knot, np.arange(count))
        means = np.add.reduceat(np.asarray(matrix, np.float64), starts, axis=-1) / np.bincount(knot, minlength=count)
        return cls(jnp.asarray(means.astype(matrix.dtype)), basis=basis, dims=matrix.shape[-2:])


def knots(n: int, count: int) -> np.ndarray:
    """Which of `count` knots each of n positions belongs to: nearly equal runs, in order."""
    return np.arange(n) * count // n


def as_function(kernel: jax.Array) -> jax.Array:
    """One matrix as one function of one variable: the literal convolution identity.

    The function has one period of n values for each of the m inputs, the values of the n features interlaced; within
    a period the features run backwards, since XLA's convolution does not flip its kernel. The inputs, spaced out by
    the feature count (`lhs_dilation`), meet it n - 1 places before to n - 1 places after full overlap:
    the n results are `x @ kernel`.

    Args:
        kernel: (m, n).

    Returns:
        (m * n,): the function's values.

    Raises:
        ValueError: when the kernel is not a matrix.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> kernel = jnp.arange(6.0).reshape(3, 2)
        >>> x, f = jnp.array([[1.0, 2.0, 3.0]]), jc.as_function(kernel)
        >>> jax.lax.conv_general_dilated(x[:, None], f[None, None], (1,), [(1, 1)], lhs_dilation=(2,))[:, 0]
        Array([[16., 22.]], dtype=float32)
        >>> x @ kernel
        Array([[16., 22.]], dtype=float32)
    """
    if jnp.ndim(kernel) != 2:
        raise ValueError(f"as_function expects a matrix (inputs, features), got shape {jnp.shape(kernel)}")
    return jnp.flip(jnp.asarray(kernel), axis=1).reshape(-1)
