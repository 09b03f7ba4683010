"""Why hashed sharing works, measured: a hashed layer is a random projection, and a table of K numbers costs it hardly anything.

One output of a hashed layer is an inner product of the table with the inputs thrown into K buckets, `z_j = <table, phi_j(x)>`.
These sketches keep inner products on average, and what collisions add is variance, 1/K of what the inputs' norms allow. So the
squared length that a fresh layer of n outputs gives to an input varies by `2/n + 2/K` of its squared mean, and by `2/n`, as in a
dense layer, where the table has a given norm. For a product of rank r, begun as `initialize` does with the principal directions of
noise, it is about `2/r (1 - r/m)`, however many outputs there are; and equal storage, r (m + n - r) = K, leaves r small.

Source: feature hashing, Weinberger et al. 2009 (arXiv:0902.2206), for the sketches; effective rank, Roy and Vetterli 2007.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import materialize, stored_numbers
from jaxcompress.arrays.hashed import HashedArray, entries
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.initialize import initialize
from jaxcompress.transforms.weights import squared


def effective_rank(matrix: Any) -> float:
    """How many directions a matrix has, by the entropy of its singular values' shares; between 1 and its rank.

    Args:
        matrix: (m, n), dense or compact, not all zero.

    Raises:
        ValueError: for what is no such matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.analysis.sharing import effective_rank
        >>> round(effective_rank(jnp.eye(8)), 3), round(effective_rank(jnp.ones((8, 5))), 3)
        (8.0, 1.0)
    """
    dense = np.asarray(materialize(matrix), np.float64)
    if dense.ndim != 2 or not dense.any():
        raise ValueError(f"effective_rank needs one matrix that is not zero, got {dense.shape}")
    values = np.linalg.svd(dense, compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


@dataclasses.dataclass(frozen=True)
class Sketches:
    """What the buckets of a hash make of an inner product.

    Attributes:
        product: the inner product itself.
        mean: of its sketches, one for each output.
        variance: of its sketches.
        expected: the variance by theory.
    """

    product: float
    mean: float
    variance: float
    expected: float


def sketches(array: HashedArray, x: Any, y: Any) -> Sketches:
    """How well the buckets of each output keep the inner product of two inputs.

    Args:
        array: (m, n) hashed, its dimensions in any order.
        x, y: (m,) inputs.

    Raises:
        ValueError: for a stack of tables, or the circular layout, whose outputs all have one sketch.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.analysis.sharing import sketches
        >>> found = sketches(jc.hashed(1/4)(jnp.ones((64, 2_000))), jnp.ones(64), jnp.arange(64.0))
        >>> found.product, abs(found.mean / found.product - 1) < 0.001, abs(found.variance / found.expected - 1) < 0.1
        (2016.0, True, True)
    """
    if array.table.ndim != 1:
        raise ValueError(f"sketches looks at one table, got {array!r}: take one of the stack")
    if array.layout == "circular":
        raise ValueError(
            f"{array!r} has one count sketch for all its outputs, no sample of them: take layout='random'"
        )
    m, n = array.matrix_shape
    size = array.table.shape[-1]
    bucket, sign = entries(m, n, size, seed=array.seed, block=array.block)
    # an output has buckets of its own: those in which something falls
    buckets, place = np.unique(np.arange(n) * size + bucket, return_inverse=True)
    x, y = (np.asarray(each, np.float64) for each in (x, y))
    sums = [np.bincount(place.ravel(), (sign * each[:, None]).ravel()) for each in (x, y)]
    found = np.bincount(buckets // size, sums[0] * sums[1], minlength=n)
    # how likely two entries of a column meet: all of them have one place in their runs
    counts = np.bincount(bucket.ravel())
    meet = counts @ (counts - 1) / max(m * n * (m * n / array.block - 1), 1)
    both = np.sum(x**2 * y**2)
    expected = meet * (np.sum(x**2) * np.sum(y**2) - both + (x @ y) ** 2 - both)
    return Sketches(float(x @ y), float(found.mean()), float(found.var()), float(expected))


def cost_of_sharing(
    kernel: Any, forms: Mapping[str, Transform], metric: Any = None
) -> dict[str, tuple[int, float]]:
    """What collisions cost a trained kernel: how far the nearest matrix of each form is.

    Args:
        kernel: (m, n) trained weights.
        forms: transforms of single weights by name; give them equal keeps.
        metric: (m, m) second moments of the inputs; the error is then that of the outputs.

    Returns:
        For each form the stored numbers and the relative squared error. Without a metric a random hash leaves `1 - K / (m n)` of
        any kernel, as if its entries had nothing to say of each other; a form that shares what is alike leaves less.

    Raises:
        ValueError: for a kernel of zeros.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.analysis.sharing import cost_of_sharing
        >>> smooth = jnp.sin(jnp.arange(64.0) / 20)[:, None] * jnp.linspace(1, 2, 16)
        >>> found = cost_of_sharing(smooth, {"hashed": jc.hashed(1/8), "cosines": jc.vocabulary(1/8)})
        >>> {name: (stored, error < 0.01) for name, (stored, error) in found.items()}
        {'hashed': (128, False), 'cosines': (128, True)}
    """
    dense = jnp.asarray(materialize(kernel))
    target = np.asarray(dense, np.float64)
    metric = None if metric is None else np.asarray(metric, np.float64)
    whole, found = squared(target, metric), {}
    if not whole:
        raise ValueError(
            "cost_of_sharing: the kernel gives nothing but zeros, of which every form is right"
        )
    for name, form in forms.items():
        array = form(dense, metric)
        error = squared(target - np.asarray(materialize(array), np.float64), metric)
        found[name] = (stored_numbers(array), error / whole)
    return found


def relative_variance(
    form: Callable[[int], Transform], x: Any, outputs: int, *, draws: int = 200
) -> float:
    """By how much the squared length that fresh layers give to an input varies, in units of its squared mean.

    Args:
        form: from a seed to a transform of single weights.
        x: (m,) the input.
        outputs: n, the width of the layer.
        draws: how many layers are drawn.

    Returns:
        The variance over the draws, all of one norm; by theory 2/n for dense and hashed layers, about
        2/r (1 - r/m) for a rank of r.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.analysis.sharing import relative_variance
        >>> spread = relative_variance(lambda seed: jc.hashed(1/8, seed=seed), jnp.ones(16), 8, draws=60)
        >>> 0.5 < spread / (2 / 8) < 1.5
        True
    """
    x = jnp.asarray(x, jnp.float32)
    leaf = jnp.ones((len(x), outputs), jnp.float32)
    lengths = []
    for seed in range(draws):
        layer = initialize(jax.random.key(seed), form(seed), {"kernel": leaf})["kernel"]
        lengths.append(float(jnp.sum((x @ layer) ** 2)))
    return float(np.var(lengths) / np.mean(lengths) ** 2)
