"""Statistics of the gradients of single examples, and the curvature of the loss.

With g_i the gradient of example i, n examples and u_i = g_i / |g_i|, sums over one pass give the
unbiased estimates

    signal     |G|^2 = (|sum g_i|^2 - sum |g_i|^2) / (n (n - 1))      the squared length of the true
    gradient variance   S = sum |g_i - mean g|^2 / (n - 1)                     trace of the
    gradients' covariance noise      S / |G|^2                                              the
    batch size above which larger ones help little agreement  (|sum u_i|^2 - n) / (n (n - 1))
    the mean cosine between two examples

Costs one gradient per example, and memory for one batch of gradients. Curvature costs two gradients
for each product with the Hessian, which is never formed.

Sources: gradient noise scale, McCandlish et al. 2018 (arXiv:1812.06162); trace by random signs,
Hutchinson 1989; implicitly restarted Lanczos, Lehoucq and Sorensen 1996
(`scipy.sparse.linalg.eigsh`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree
from scipy.sparse.linalg import LinearOperator, eigsh
from tqdm.auto import tqdm

from jaxcompress.checks import LOSS, arrays_in, checked, explained, function, random_key, whole
from jaxcompress.training.checks import check_length, check_params
from jaxcompress.training.losses import Loss


@dataclasses.dataclass(frozen=True)
class GradientStatistics:
    """Statistics of the gradients of single examples.

    Attributes:
        examples: their number.
        signal: the squared length of the true gradient, an unbiased estimate; below zero where
            noise hides it.
        variance: the trace of the gradients' covariance.
        agreement: the mean cosine between the gradients of two examples.
        length: the mean length of a gradient.
    """

    examples: int
    signal: float
    variance: float
    agreement: float
    length: float

    @property
    def noise_scale(self) -> float:
        """The useful batch size, in examples: variance over signal; infinite without a signal."""
        return self.variance / self.signal if self.signal > 0 else math.inf

    def __repr__(self) -> str:
        return (
            f"GradientStatistics({self.examples} examples, noise scale {self.noise_scale:.4g}, "
            f"agreement {self.agreement:.3f}, mean length {self.length:.3g})"
        )


@checked(loss=function(LOSS), key=random_key, batch_size=whole())
def gradient_statistics(
    loss: Loss,
    params: PyTree,
    data: PyTree,
    *,
    key: jax.Array | None = None,
    batch_size: int = 100,
    progress: bool = True,
) -> GradientStatistics:
    """How much the gradients of single examples agree, and how large a batch is useful.

    Args:
        loss: `loss(params, batch, key) -> scalar`, as for `jc.fit`; called with one example at a
            time.
        params: where the gradients are taken.
        data: a tree of arrays whose first dimension is the examples, such as `(x, y)`.
        key: for the loss, split into one for each example; None by default.
        batch_size: examples at once; each needs memory for one gradient.
        progress: show a progress bar.

    Returns:
        The statistics over all examples.

    Raises:
        ValueError: for fewer than two examples, data of unequal lengths, a gradient that is not
            finite.
        TypeError: for a parameter that is not a float array.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> x, y = jnp.eye(2)[jnp.array([0, 1, 0, 1])], jnp.array([0, 1, 0, 1])
        >>> loss = jc.training.cross_entropy(lambda p, x: x @ p)
        >>> jc.training.gradient_statistics(loss, jnp.zeros((2, 2)), (x, y), progress=False)
        GradientStatistics(4 examples, noise scale 2, agreement 0.333, mean length 0.707)
    """
    check_params("gradient_statistics", params)
    count = check_length("gradient_statistics", data)
    if count < 2:
        raise ValueError("gradient_statistics needs at least two examples")
    parts, size = [], min(batch_size, count)
    with tqdm(total=count, desc="gradients", disable=not progress, leave=False) as bar:
        for start in range(0, count, size):
            index = np.arange(start, min(start + size, count))
            batch = jax.tree.map(lambda leaf, index=index: jnp.asarray(leaf[index]), data)
            keys = (
                None
                if key is None
                else jax.random.split(jax.random.fold_in(key, start), len(index))
            )
            with explained(f"gradient_statistics: {LOSS} fails on {arrays_in(batch)}"):
                sums = _gradient_sums(params, batch, keys, loss)
            parts = [jax.tree.map(jnp.add, parts[0], sums)] if parts else [sums]
            bar.update(len(index))
    total, units, squares, lengths = (np.asarray(value, np.float64) for value in parts[0])
    _check_finite("gradient_statistics: a gradient", total)
    pairs = count * (count - 1)
    return GradientStatistics(
        examples=count,
        signal=float((total @ total - squares) / pairs),
        variance=float((squares - total @ total / count) / (count - 1)),
        agreement=float((units @ units - count) / pairs),
        length=float(lengths / count),
    )


@partial(jax.jit, static_argnames="loss")
def _gradient_sums(
    params: PyTree, batch: PyTree, keys: jax.Array | None, loss: Loss
) -> tuple[jax.Array, ...]:
    """Sums over examples: of gradients, of these at length 1, of squared lengths and of lengths."""

    def flat_gradient(example: PyTree, key: PyTree) -> jax.Array:
        gradient = jax.grad(loss)(params, jax.tree.map(lambda leaf: leaf[None], example), key)
        return ravel_pytree(gradient)[0].astype(jnp.float32)

    gradients = jax.vmap(flat_gradient, in_axes=(0, None if keys is None else 0))(batch, keys)
    squares = jnp.sum(gradients**2, 1)
    tiny = jnp.finfo(jnp.float32).tiny
    inverse = jnp.where(squares > 0, jax.lax.rsqrt(jnp.maximum(squares, tiny)), 0)
    return (
        gradients.sum(0),
        jnp.matmul(inverse, gradients, precision="highest"),
        squares.sum(),
        jnp.sqrt(squares).sum(),
    )


@dataclasses.dataclass(frozen=True)
class Curvature:
    """The spectrum of a loss's Hessian at some parameters.

    Attributes:
        largest: the largest eigenvalue.
        smallest: the smallest eigenvalue, below zero along a direction of negative curvature.
        trace: the sum of all eigenvalues, estimated by random signs.
        error: the standard error of the trace.
    """

    largest: float
    smallest: float
    trace: float
    error: float


@checked(loss=function(LOSS), key=random_key, steps=whole(), signs=whole(), batch_size=whole())
def curvature(
    loss: Loss,
    params: PyTree,
    data: PyTree,
    key: jax.Array,
    *,
    steps: int = 30,
    signs: int = 10,
    batch_size: int = 1_000,
    progress: bool = True,
) -> Curvature:
    """The extreme eigenvalues and the trace of the Hessian of the mean loss.

    Args:
        loss: `loss(params, batch, key) -> scalar`, the mean over a batch; the key is None.
        params: where the Hessian is taken.
        data: as for `jc.fit`; taken in batches, the remainder is dropped.
        key: for the random directions.
        steps: Lanczos steps between two restarts, each of which keeps one vector of the parameters'
            length. Restarts go on until the eigenvalues are accurate to 1e-4 of the spectrum's
            extent.
        signs: random vectors for the trace.
        batch_size: examples at once.
        progress: show a progress bar.

    Returns:
        Both ends of the spectrum and its sum, to five digits.

    Raises:
        ValueError: for data of unequal lengths, a Hessian that is not finite.
        TypeError: for a parameter that is not a float array.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def bowl(p, batch, key):
        ...     return (p[0] ** 2 + 3 * p[1] ** 2) / 2
        >>> key = jax.random.key(0)
        >>> jc.training.curvature(bowl, jnp.ones(2), jnp.zeros(4), key, progress=False)
        Curvature(largest=3.0, smallest=1.0, trace=4.0, error=0.0)
    """
    check_params("curvature", params)
    count = check_length("curvature", data)
    size = min(batch_size, count)
    batches = jax.tree.map(partial(_batched, count // size, size), data)
    flat, unravel = ravel_pytree(params)
    start_key, *sign_keys = jax.random.split(key, 1 + signs)
    with tqdm(desc="curvature", unit=" products", disable=not progress, leave=False) as bar:

        def product(vector: np.ndarray | jax.Array) -> np.ndarray:
            bar.update()
            vector = jnp.asarray(vector, flat.dtype).reshape(flat.shape)
            with explained(f"curvature: {LOSS} fails on batches of {arrays_in(batches)}"):
                image = np.asarray(
                    hessian_product(loss, unravel, flat, batches, vector), np.float64
                )
            _check_finite("curvature: the Hessian", image)
            return image

        start = np.asarray(jax.random.normal(start_key, flat.shape), np.float64)
        smallest, largest = extreme_eigenvalues(product, start, steps)
        traces = []
        for sign_key in sign_keys:
            sign = np.asarray(jax.random.rademacher(sign_key, flat.shape, flat.dtype), np.float64)
            traces.append(sign @ product(sign))
    error = np.std(traces, ddof=1) / signs**0.5 if signs > 1 else math.inf
    values = (float(f"{value:.5g}") for value in (largest, smallest, np.mean(traces), error))
    return Curvature(*values)


@partial(jax.jit, static_argnums=(0, 1))
def hessian_product(
    loss: Loss,
    unravel: Callable[[jax.Array], PyTree],
    flat: Float[Array, " n"],
    batches: PyTree,
    vector: Float[Array, " n"],
) -> Float[Array, " n"]:
    """The Hessian of the mean loss over the batches times a vector."""
    no_key: PyTree = None

    def of_batch(batch: PyTree) -> jax.Array:
        gradient = jax.grad(lambda flat: loss(unravel(flat), batch, no_key))
        return jax.jvp(gradient, (flat,), (vector,))[1]

    return jnp.mean(jax.lax.map(of_batch, batches), 0)


def extreme_eigenvalues(
    product: Callable[[np.ndarray], np.ndarray], start: Float[np.ndarray, " n"], steps: int
) -> tuple[float, float]:
    """The smallest and the largest eigenvalue of a symmetric operator, exact for small ones.

    The end of larger magnitude comes first. The other is that of the operator shifted by it, so
    that both are accurate relative to the extent of the spectrum, also where the smallest
    eigenvalue is zero.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.training.gradients import extreme_eigenvalues
        >>> values = np.linspace(-1, 3, 100)
        >>> ends = extreme_eigenvalues(lambda vector: values * vector, np.ones(100), 20)
        >>> [round(value, 3) for value in ends]
        [-1.0, 3.0]
    """
    steps = max(steps, 3)
    if start.size <= steps:
        values = np.linalg.eigvalsh(np.stack([product(row) for row in np.eye(start.size)]))
        return float(values[0]), float(values[-1])
    image = product(start)
    if not image.any():  # ARPACK refuses the zero operator
        return 0.0, 0.0

    def farthest(shift: float) -> float:
        def shifted(vector: np.ndarray) -> np.ndarray:
            return product(vector) - shift * vector.ravel()

        operator = LinearOperator(2 * start.shape, shifted, dtype=np.float64)  # type: ignore
        options: dict[str, Any] = {"which": "LM", "tol": 1e-4, "return_eigenvectors": False}
        return float(eigsh(operator, 1, v0=start, ncv=steps, **options)[0]) + shift

    first = farthest(0.0)
    second = farthest(first)
    return min(first, second), max(first, second)


def _check_finite(what: str, values: np.ndarray) -> None:
    """Refuse what came out of data or parameters with NaN."""
    if not np.isfinite(values).all():
        raise ValueError(f"{what} is not finite: check the parameters and the data for NaN")


def _batched(count: int, size: int, leaf: ArrayLike) -> jax.Array:
    """The first batches of a leaf of data, (count, size, ...)."""
    return jnp.asarray(leaf)[: count * size].reshape(-1, size, *np.shape(leaf)[1:])
