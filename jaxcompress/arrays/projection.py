"""The least-squares optimum of stored numbers in the metric of the inputs, matrix-free.

Given its structure, an array is linear in its stored numbers: `A = T v`. The fit of a matrix W in
the metric M of the inputs' second moments minimises `trace((T v - W)' M (T v - W))`. Its normal
equations `T' M T v = T' M W` are solved by conjugate gradients on the host, in float64, from given
values; the part of these without weight in the metric is kept. Costs one product with M and one
pass over the entries an iteration. The metric of a table that is looked up is a vector, the
frequency of each row.

Every system is equilibrated first: each unknown is measured in the unit that its own power sets, so
that numbers of 1e-20 beside numbers of 1e20 are fitted alike. No fit is worse than zeros: the start
is scaled to be no worse, and conjugate gradients only lower the error.

Source: Hestenes and Stiefel 1952; equilibration, van der Sluis 1969; the output-error metric as in
SVD-LLM (arXiv:2403.07378) and GPTQ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse.linalg import LinearOperator, cg

from jaxcompress.checks import array

Metric = Float[np.ndarray, "*stack m m"] | Float[np.ndarray, " m"]
"""Second moments of the inputs of a matrix or a stack, or their diagonal for all of them."""

RIDGE = 1e-12
"""The ridge of stored numbers, relative to their power: so they can be stored in float32."""


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
        scale: (k,) the diagonal of T' M T, by which the unknowns are equilibrated.
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
    seen = scale > 0
    unit = np.where(seen, 1 / np.sqrt(np.where(seen, scale, 1)), 0)

    def curvature(v: np.ndarray) -> np.ndarray:
        # without the ridge rounding would blow up what nearly cancels
        return unit * collect(weigh(metric, expand(unit * v))) + RIDGE * v

    normal = _NormalEquations(len(start), curvature)
    start = start * factor_to(expand(start), matrix, metric)
    # solve for the correction: the part of the start that has no weight in the metric then stays
    residual = unit * collect(weigh(metric, matrix - expand(start)))
    rounding = 1e-12 * np.linalg.norm(unit * collect(np.abs(weigh(metric, matrix))))
    correction, _ = cg(normal, residual, rtol=tol, atol=float(rounding), maxiter=steps)
    return start + unit * correction


def shared_numbers(
    expand: Callable[[np.ndarray], np.ndarray],
    collect: Callable[[np.ndarray], np.ndarray],
    matrix: Float[np.ndarray, "m n"],
    metric: Float[np.ndarray, "m m"] | Float[np.ndarray, " m"] | None,
    size: int,
) -> Float[np.ndarray, " size"]:
    """The best numbers of a form each of whose entries is plus or minus one of them, or zero.

    They are means over their entries, weighted by the power of the inputs: the optimum in a
    diagonal metric, and in a full one the start of conjugate gradients. A number that no input
    reaches is the plain mean.

    Args:
        expand: from numbers (size,) to a matrix (m, n).
        collect: its transpose.
        matrix: (m, n) to fit.
        metric: of the inputs, or None.
        size: the count of numbers.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.projection import shared_numbers
        >>> def expand(v):
        ...     return v[[[0], [0], [1]]]
        >>> def collect(error):
        ...     return np.array([error[0, 0] + error[1, 0], error[2, 0]])
        >>> often, column = np.array([3.0, 1.0, 0.0]), np.array([[1.0], [5.0], [7.0]])
        >>> shared_numbers(expand, collect, column, often, 2).tolist()
        [2.0, 7.0]
    """
    sign = expand(np.ones(size))
    count = collect(sign)
    # a small matrix may leave numbers unused
    means = collect(matrix) / np.maximum(count, 1)
    if metric is None:
        return means
    power = diagonal(metric)[:, None]
    scale = collect(power * sign)
    weighted = collect(power * matrix) / np.where(scale > 0, scale, 1)
    start = np.where(scale > 0, weighted, means)
    if metric.ndim == 1:
        return start
    return least_squares(expand, collect, matrix, metric, start, scale)


def factor_to(
    fit: Float[np.ndarray, "*stack m n"],
    matrix: Float[np.ndarray, "*stack m n"],
    metric: Metric | None,
) -> float:
    """The factor that makes a fit no worse than zeros: 1 where it is not, else the best one.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.projection import factor_to
        >>> factor_to(np.full((1, 2), 5.0), np.array([[1.0, 3.0]]), None)
        0.4
    """
    weighted = fit if metric is None else weigh(metric, fit)
    return best_factor(float(np.sum(weighted * fit)), float(np.sum(weighted * matrix)))


def best_factor(power: float, along: float) -> float:
    """The same, given the squared norm of the fit and its inner product with what is fitted."""
    # |W - f|^2 <= |W|^2 where |f|^2 <= 2 f'W, give or take rounding
    if power <= 2 * along * (1 + 1e-6):
        return 1.0
    return max(along, 0.0) / power


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


def ridge_solve(
    gram: Float[np.ndarray, "m m"],
    right: Float[np.ndarray, "m n"],
    ridge: float,
    prior: Float[np.ndarray, "m n"] | float = 0.0,
    power: Float[np.ndarray, " m"] | None = None,
) -> Float[np.ndarray, "m n"]:
    """The X that minimises `tr(X' G X - 2 X' R) + ridge |D (X - prior)|^2`, D^2 the powers.

    By default these are the diagonal of G, so that the solution follows any change of the inputs'
    units. An input without power keeps its prior.

    Args:
        gram: G, second moments; what is negative in it is rounding.
        right: R, the moments with what is predicted.
        ridge: above 0.
        prior: of the solution.
        power: of each input, where the diagonal may be rounding.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.projection import ridge_solve
        >>> twice = np.array([[1.0, 1e9], [1e9, 1e18]])  # an input, and the same in another unit
        >>> ridge_solve(twice, twice[:, :1], 1e-9).ravel().round(6).tolist()
        [0.5, 0.0]
    """
    power = np.maximum(np.diag(gram), 0) if power is None else power
    seen = power > 0
    unit = np.where(seen, 1 / np.sqrt(np.where(seen, power, 1)), 0)
    system = gram * unit * unit[:, None]
    prior = np.broadcast_to(np.asarray(prior, np.float64), right.shape)
    # the correction of the prior, zero where there is no power
    missing = unit[:, None] * (right - gram @ prior)
    try:
        correction = cho_solve(cho_factor(system + ridge * np.eye(len(gram))), missing)
    except LinAlgError:  # rounding made the moments of dependent inputs negative
        values, vectors = np.linalg.eigh(system)
        usable = values > 2 * max(-values[0], 0.0)
        inverse = np.where(usable, 1 / np.where(usable, values + ridge, 1), 0)
        correction = vectors @ (inverse[:, None] * (vectors.T @ missing))
    return prior + unit[:, None] * correction
