"""What the gradients of single examples say to each other, and how curved the loss is where they are taken.

With g_i the gradient of example i, n examples and u_i = g_i / |g_i|, sums of one pass give without bias

    signal     |G|^2 = (|sum g_i|^2 - sum |g_i|^2) / (n (n - 1))      the squared length of the true gradient
    variance   S = sum |g_i - mean g|^2 / (n - 1)                     trace of the gradients' covariance
    noise      S / |G|^2                                              the batch size from which on larger ones help little
    agreement  (|sum u_i|^2 - n) / (n (n - 1))                        the mean cosine between two examples

Costs a gradient an example, and memory for as many gradients as are taken at once. Curvature costs two gradients for each product
with the Hessian, which is never formed.

Sources: gradient noise scale, McCandlish et al. 2018 (arXiv:1812.06162); trace by random signs, Hutchinson 1989; Lanczos iteration.
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
from tqdm.auto import tqdm

from jaxcompress.training.fit import Loss, check_length, check_params


@dataclasses.dataclass(frozen=True)
class GradientStatistics:
    """Of the gradients of single examples.

    Attributes:
        examples: how many.
        signal: the squared length of the true gradient, estimated without bias; below zero where noise hides it.
        variance: the trace of their covariance.
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
        """The useful batch size, in examples: variance over signal; infinite where no signal is left."""
        return self.variance / self.signal if self.signal > 0 else math.inf

    def __repr__(self) -> str:
        return (
            f"GradientStatistics({self.examples} examples, noise scale {self.noise_scale:.4g}, agreement {self.agreement:.3f}, "
            f"mean length {self.length:.3g})"
        )


def gradient_statistics(
    loss: Loss,
    params: Any,
    data: Any,
    *,
    key: Any = None,
    batch_size: int = 100,
    progress: bool = True,
) -> GradientStatistics:
    """How much the gradients of single examples agree, and how large a batch is useful.

    Args:
        loss: `loss(params, batch, key) -> scalar`, as for `jc.fit`; it is taken of one example at a time.
        params: where.
        data: a tree of arrays whose first dimension is the examples, such as `(x, y)`.
        key: for the loss, one for each example; none by default.
        batch_size: examples at once; each needs memory for one gradient.
        progress: show a progress bar.

    Raises:
        ValueError: for fewer than two examples, data of unequal lengths, a gradient that is not finite.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> x, y = jnp.eye(2)[jnp.array([0, 1, 0, 1])], jnp.array([0, 1, 0, 1])
        >>> jc.training.gradient_statistics(jc.training.cross_entropy(lambda p, x: x @ p), jnp.zeros((2, 2)), (x, y), progress=False)
        GradientStatistics(4 examples, noise scale 2, agreement 0.333, mean length 0.707)
    """
    check_params("gradient_statistics", params)
    count = check_length("gradient_statistics", data)
    if count < 2:
        raise ValueError("gradient_statistics needs at least two examples")
    sums, size = None, min(batch_size, count)
    with tqdm(total=count, desc="gradients", disable=not progress, leave=False) as bar:
        for start in range(0, count, size):
            index = np.arange(start, min(start + size, count))
            batch = jax.tree.map(lambda leaf, index=index: jnp.asarray(leaf[index]), data)
            new = summed(
                params,
                batch,
                None
                if key is None
                else jax.random.split(jax.random.fold_in(key, start), len(index)),
                loss,
            )
            sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
            bar.update(len(index))
    assert sums is not None
    total, units, squares, lengths = (np.asarray(each, np.float64) for each in sums)
    if not np.isfinite(total).all():
        raise ValueError(
            "gradient_statistics: a gradient is not finite: check the parameters and the data for NaN"
        )
    signal = (total @ total - squares) / (count * (count - 1))
    variance = (squares - total @ total / count) / (count - 1)
    agreement = (units @ units - count) / (count * (count - 1))
    return GradientStatistics(
        count, float(signal), float(variance), float(agreement), float(lengths / count)
    )


@partial(jax.jit, static_argnames="loss")
def summed(params: Any, batch: Any, keys: Any, loss: Loss) -> tuple[jax.Array, ...]:
    """Sums over examples: of gradients, of those at length 1, of squared lengths and of lengths."""

    def flat(example: Any, key: Any) -> jax.Array:
        gradient = jax.grad(loss)(params, jax.tree.map(lambda leaf: leaf[None], example), key)
        return ravel_pytree(gradient)[0].astype(jnp.float32)

    gradients = jax.vmap(flat, in_axes=(0, None if keys is None else 0))(batch, keys)
    squares = jnp.sum(gradients**2, 1)
    inverse = jnp.where(
        squares > 0, jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny)), 0
    )
    return (
        gradients.sum(0),
        jnp.matmul(inverse, gradients, precision="highest"),
        squares.sum(),
        jnp.sqrt(squares).sum(),
    )


@dataclasses.dataclass(frozen=True)
class Curvature:
    """Of a loss, at some parameters.

    Attributes:
        largest: the Hessian's largest eigenvalue.
        smallest: its smallest, below zero where the loss falls to both sides.
        trace: the sum of all, by random signs.
        error: the standard error of the trace.
    """

    largest: float
    smallest: float
    trace: float
    error: float


def curvature(
    loss: Loss,
    params: Any,
    data: Any,
    key: Any,
    *,
    steps: int = 30,
    signs: int = 10,
    batch_size: int = 1_000,
    progress: bool = True,
) -> Curvature:
    """The extreme eigenvalues and the trace of the Hessian of the mean loss.

    Args:
        loss: `loss(params, batch, key) -> scalar`, the mean over a batch; the key is None.
        params: where.
        data: as for `jc.fit`; taken in batches, what is left over is dropped.
        key: of the random directions.
        steps: of the Lanczos iteration, with full reorthogonalisation; it ends early where it has found every direction.
        signs: random vectors for the trace.
        batch_size: examples at once.
        progress: show a progress bar.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> bowl = lambda p, batch, key: (p[0] ** 2 + 3 * p[1] ** 2) / 2
        >>> jc.training.curvature(bowl, jnp.ones(2), jnp.zeros(4), jax.random.key(0), batch_size=4, progress=False)
        Curvature(largest=3.0, smallest=1.0, trace=4.0, error=0.0)
    """
    check_params("curvature", params)
    count = check_length("curvature", data)
    size = min(batch_size, count)
    batches = jax.tree.map(
        lambda leaf: jnp.asarray(leaf)[: count // size * size].reshape(
            -1, size, *np.shape(leaf)[1:]
        ),
        data,
    )
    flat, unravel = ravel_pytree(params)
    product = partial(hessian_product, loss, unravel, flat, batches)
    first, *others = jax.random.split(key, 1 + signs)
    with tqdm(total=steps + signs, desc="curvature", disable=not progress, leave=False) as bar:
        ends = lanczos(product, jax.random.normal(first, flat.shape), min(steps, flat.size), bar)
        found = []
        for each in others:
            sign = jax.random.rademacher(each, flat.shape, flat.dtype)
            found.append(float(sign @ product(sign)))
            bar.update()
    error = np.std(found, ddof=1) / signs**0.5 if signs > 1 else math.inf
    rounded = (float(f"{value:.5g}") for value in (ends[1], ends[0], np.mean(found), error))
    return Curvature(*rounded)


@partial(jax.jit, static_argnums=(0, 1))
def hessian_product(
    loss: Loss,
    unravel: Callable[[jax.Array], Any],
    flat: jax.Array,
    batches: Any,
    vector: jax.Array,
) -> jax.Array:
    """The Hessian of the mean loss over the batches times a vector."""
    no_key: Any = None
    slope = lambda flat, batch: jax.grad(lambda flat: loss(unravel(flat), batch, no_key))(flat)
    each = lambda batch: jax.jvp(lambda flat: slope(flat, batch), (flat,), (vector,))[1]
    return jnp.mean(jax.lax.map(each, batches), 0)


def lanczos(
    product: Callable[[jax.Array], jax.Array], start: jax.Array, steps: int, bar: Any
) -> tuple[float, float]:
    """The smallest and the largest eigenvalue of a symmetric operator, from a Krylov space of so many dimensions."""
    basis, inner = (
        jnp.zeros((steps, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start)),
        np.zeros((steps, steps)),
    )
    for step in range(steps):
        image = product(basis[step])
        bar.update()
        for _ in range(2):  # twice is enough
            image, share = apart(basis, image)
            inner[:, step] += np.asarray(share)
        norm = float(jnp.linalg.norm(image))
        if step + 1 == steps or norm <= 1e-5 * np.abs(inner).max():
            break
        basis = basis.at[step + 1].set(image / norm)
        inner[step + 1, step] = norm
    tall = inner[: step + 1, : step + 1]
    values = np.linalg.eigvalsh((tall + tall.T) / 2)
    return float(values[0]), float(values[-1])


@jax.jit
def apart(basis: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What of a vector is outside the rows of a basis, and its share of each."""
    share = jnp.matmul(basis, image, precision="highest")
    return image - jnp.matmul(share, basis, precision="highest"), share
