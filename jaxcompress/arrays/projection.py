"""The least-squares optimum of stored numbers in the metric of the inputs, matrix-free.

Given its structure, an array is linear in its stored numbers: `A = T v`. The fit of a matrix W in
the metric M of the inputs' second moments minimises `trace((T v - W)' M (T v - W))`. Its normal
equations `T' M T v = T' M W` are solved by conjugate gradients on the host, in float64, from given
values; the part of these without weight in the metric is kept. Costs one product with M and one
pass over the entries an iteration. The metric of a table that is looked up is a vector, the
frequency of each row.

Source: Hestenes and Stiefel 1952; the output-error metric as in SVD-LLM (arXiv:2403.07378) and
GPTQ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.sparse import diags_array
from scipy.sparse.linalg import LinearOperator, cg

from jaxcompress.checks import array

Metric = Float[np.ndarray, "*stack m m"] | Float[np.ndarray, " m"]
"""Second moments of the inputs of a matrix or a stack, or their diagonal for all of them."""


class _NormalEquations(LinearOperator):
    """`T' M T` as an operator on k numbers."""

    def __init__(self, size: int, apply: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(np.dtype(np.float64), (size, size))
        self.apply = apply

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self.apply(x)


def least_squares(
    expand: Callable[[np.ndarray], np.ndarray],
    collect: Callable[[np.ndarray], np.ndarray],
    matrix: Float[np.ndarray, "m n"],
    metric: Float[np.ndarray, "m m"] | Float[np.ndarray, " m"],
    start: Float[np.ndarray, " k"],
    scale: Float[np.ndarray, " k"],
    *,
    steps: int = 500,
    tol: float = 1e-7,
) -> np.ndarray:
    """The numbers v whose matrix `expand(v)` fits best.

    Args:
        expand: T, from numbers (k,) to a matrix (m, n).
        collect: T', its transpose, from (m, n) to (k,).
        matrix: (m, n) to fit.
        metric: (m, m) second moments of the inputs, or (m,) their diagonal alone.
        start: (k,) numbers to start from.
        scale: (k,) the diagonal of T' M T, which preconditions.
        steps: the most iterations.
        tol: stop when the residual has shrunk by this factor.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.projection import least_squares
        >>> def expand(v):
        ...     return np.full((2, 3), v[0])
        >>> def collect(error):
        ...     return error.sum(keepdims=True).ravel()
        >>> target, metric = np.arange(6.0).reshape(2, 3), np.diag([1.0, 2.0])
        >>> least_squares(expand, collect, target, metric, np.zeros(1), np.array([9.0]))
        array([3.])
    """
    normal = _NormalEquations(len(start), lambda v: collect(weigh(metric, expand(v))))
    precondition = diags_array(np.divide(1.0, scale, out=np.ones_like(scale), where=scale > 0))
    # solve for the correction: the part of the start that has no weight in the metric then stays
    residual = collect(weigh(metric, matrix - expand(start)))
    correction, _ = cg(normal, residual, rtol=tol, maxiter=steps, M=precondition)
    return start + correction


def check_shape(who: str, metric: Metric | None, matrix: Float[np.ndarray, "*stack m n"]) -> None:
    """Refuse second moments of another shape than a matrix's inputs, or that are not finite."""
    if metric is None:
        return
    m, lead = matrix.shape[-2], matrix.shape[:-2]
    values = array(f"{who}: the moments", metric)
    if values.shape not in ((m,), (m, m), (*lead, m, m)):
        raise ValueError(
            f"{who}: the moments have shape {values.shape}, expected {(m, m)} or their diagonal "
            f"{(m,)}"
        )


def weigh(metric: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`M x` for second moments (..., m, m) or (m,), the diagonal, and x (..., m, n)."""
    return metric[:, None] * x if metric.ndim == 1 else metric @ x


def diagonal(metric: np.ndarray) -> Float[np.ndarray, " m"]:
    """The power of each input: the diagonal of second moments (m, m), or (m,) as it is."""
    return metric if metric.ndim == 1 else np.diag(metric)


def per_matrix(metric: np.ndarray | None, count: int) -> list[np.ndarray | None]:
    """The metric of each matrix of a stack, which may share one."""
    if metric is None or metric.ndim < 3:
        return [metric] * count
    return list(metric.reshape(-1, *metric.shape[-2:]))
