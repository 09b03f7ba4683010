"""The least-squares optimum of any compact array, matrix-free.

Given its structure, an array is linear in one child v: `A = T v`. The fit of a matrix W in the metric M of the
inputs' second moments minimises `trace((T v - W)' M (T v - W))`, whose normal equations `T' M T v = T' M W` are
solved by conjugate gradients on `materialize` and its transpose, from the array's present values; what the metric
does not see stays as it was. Costs two products with M and a `materialize` an iteration.

Source: Hestenes and Stiefel 1952; the output-error metric as in SVD-LLM (arXiv:2403.07378) and GPTQ.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import CompactArray

Array = TypeVar("Array", bound=CompactArray)


def project(array: Array, matrix: jax.Array, metric: np.ndarray | None = None, *, steps: int = 500, tol: float = 1e-6) -> Array:
    """The same array with the values that fit a matrix best.

    Args:
        array: the structure and the values to start from; linear in the child `array.linear_in`.
        matrix: (..., m, n) to fit.
        metric: (..., m, m) second moments of the inputs, or None for the plain squared error.
        steps: the most conjugate-gradient steps.
        tol: stop when the residual has shrunk by this factor.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.arrays.projection import project
        >>> blank = jc.HashedArray(jnp.zeros(6), dims=(3, 4))
        >>> fitted = project(blank, jnp.ones((3, 4)))
        >>> bool(jnp.allclose(fitted.table, jc.HashedArray.fit(jnp.ones((3, 4)), 6).table, atol=1e-5))
        True
    """
    child = array.linear_in or array._children[0]
    return _solve(array, matrix, None if metric is None else jnp.asarray(metric, matrix.dtype), child, steps, tol)


@partial(jax.jit, static_argnames=("child", "steps"))
def _solve(array, matrix, metric, child, steps, tol):
    def weigh(error):
        return error if metric is None else metric @ error

    start, rebuild = getattr(array, child), lambda values: dataclasses.replace(array, **{child: values})
    expand = lambda values: rebuild(values)._matrix()
    _, expand_transposed = jax.vjp(expand, start)
    gradient = lambda error: expand_transposed(weigh(error))[0]
    # solve for the correction: the part of the start that the metric does not see is left alone
    residual = gradient(matrix - expand(start))
    zero = jax.tree.map(jnp.zeros_like, start)
    correction, _ = jax.scipy.sparse.linalg.cg(lambda values: gradient(expand(values)), residual, x0=zero, tol=tol, maxiter=steps)
    return rebuild(jax.tree.map(jnp.add, start, correction))
