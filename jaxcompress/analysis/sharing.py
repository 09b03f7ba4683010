"""Why weight sharing by hashing works: a hashed layer is a random projection.

One output of a hashed layer is an inner product of the table with a count sketch of the inputs,
`z_j = <table, phi_j(x)>`. These sketches keep inner products on average; collisions add a variance
of 1/K of what the inputs' norms allow. So the squared length that a fresh layer of n outputs gives
to an input varies by `2/n + 2/K` of its squared mean, and by `2/n`, as in a dense layer, where the
table has a given norm. For a product of rank r, initialized with the principal directions of noise,
it is about `2/r (1 - r/m)` for any number of outputs; and equal storage, r (m + n - r) = K, leaves
r small.

Sources: feature hashing, Weinberger et al. 2009 (arXiv:0902.2206), for the sketches; effective
rank, Roy and Vetterli 2007.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.base import CompactArray, materialize, stored_numbers
from jaxcompress.arrays.hashed import HashedArray, entries
from jaxcompress.checks import array as real_array
from jaxcompress.checks import checked, function, mapping, shown, whole
from jaxcompress.transforms.base import Transform, check_transform
from jaxcompress.transforms.initialize import initialize
from jaxcompress.transforms.weights import check_metric, squared

Matrix = CompactArray | Float[jax.Array, "m n"] | Float[np.ndarray, "m n"]
Vector = Float[jax.Array, " m"] | Float[np.ndarray, " m"]


def effective_rank(matrix: Matrix) -> float:
    """The exponential of the entropy of a matrix's normalized singular values.

    Args:
        matrix: (m, n), dense or compact, not all zero.

    Returns:
        A number between 1 and the matrix's rank.

    Raises:
        ValueError: for a matrix of zeros, or an array of other dimensions.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.analysis import effective_rank
        >>> round(effective_rank(jnp.eye(8)), 3), round(effective_rank(jnp.ones((8, 5))), 3)
        (8.0, 1.0)
    """
    dense = real_array("effective_rank: matrix", materialize(matrix), 2).astype(np.float64)
    if not dense.any():
        raise ValueError(f"effective_rank needs one matrix that is not zero, got {dense.shape}")
    values = np.linalg.svd(dense, compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


@dataclasses.dataclass(frozen=True)
class Sketches:
    """Statistics of an inner product's sketches.

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


def sketches(array: HashedArray, x: Vector, y: Vector) -> Sketches:
    """Sketch the inner product of two inputs with the buckets of every output of a hashed layer.

    Args:
        array: (m, n) hashed, its dimensions in any order.
        x: (m,) an input.
        y: (m,) another one.

    Returns:
        The mean and variance of the sketches beside the true product and the theoretical variance.

    Raises:
        ValueError: for a stack of tables, or the circular layout, whose outputs share one sketch.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.analysis import sketches
        >>> array = jc.hashed(1/4)(jnp.ones((64, 2_000)))
        >>> result = sketches(array, jnp.ones(64), jnp.arange(64.0))
        >>> result.product, abs(result.mean / result.product - 1) < 0.001
        (2016.0, True)
        >>> abs(result.variance / result.expected - 1) < 0.1
        True
    """
    if not isinstance(array, HashedArray):
        raise TypeError(f"sketches takes a HashedArray, of jc.hashed, got {shown(array)}")
    if array.table.ndim != 1:
        raise ValueError(f"sketches looks at one table, got {array!r}: take one of the stack")
    if array.layout == "circular":
        raise ValueError(
            f"{array!r} has one count sketch for all its outputs, no sample of them: "
            "take layout='random'"
        )
    m, n = array.matrix_shape
    size = array.table.shape[-1]
    bucket, sign = entries(m, n, size, seed=array.seed, block=array.block)
    # number each output's buckets apart, and only those that are hit
    buckets, place = np.unique(np.arange(n) * size + bucket, return_inverse=True)
    x, y = _vector("sketches: x", x, m), _vector("sketches: y", y, m)
    x_sums, y_sums = (
        np.bincount(place.ravel(), (sign * values[:, None]).ravel()) for values in (x, y)
    )
    products = np.bincount(buckets // size, x_sums * y_sums, minlength=n)
    # the probability that two entries of a column collide, which have one offset in their runs
    counts = np.bincount(bucket.ravel())
    collide = counts @ (counts - 1) / max(m * n * (m * n / array.block - 1), 1)
    both = np.sum(x**2 * y**2)
    expected = collide * (np.sum(x**2) * np.sum(y**2) - both + (x @ y) ** 2 - both)
    return Sketches(float(x @ y), float(products.mean()), float(products.var()), float(expected))


def _vector(name: str, value: Vector, size: int) -> Float[np.ndarray, " m"]:
    """A vector of a layer's inputs."""
    vector = real_array(name, value, 1).astype(np.float64)
    if len(vector) != size:
        raise ValueError(f"{name} must have {size} numbers, got {len(vector)}")
    return vector


@checked(forms=mapping)
def cost_of_sharing(
    kernel: Matrix,
    forms: Mapping[str, Transform],
    metric: Float[np.ndarray, "m m"] | None = None,
) -> dict[str, tuple[int, float]]:
    """Measure what weight sharing costs a trained kernel: the error of each form's best fit.

    Args:
        kernel: (m, n) trained weights.
        forms: transforms of single weights by name; give them equal keeps.
        metric: second moments of the inputs; the error is then that of the outputs.

    Returns:
        For each form the stored numbers and the relative squared error. Without a metric a random
        hash loses `1 - K / (m n)` of any kernel, as if its entries were independent; a form that
        shares similar entries loses less.

    Raises:
        ValueError: for a kernel of zeros.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.analysis import cost_of_sharing
        >>> smooth = jnp.sin(jnp.arange(64.0) / 20)[:, None] * jnp.linspace(1, 2, 16)
        >>> forms = {"hashed": jc.hashed(1/8), "cosines": jc.vocabulary(1/8)}
        >>> costs = cost_of_sharing(smooth, forms)
        >>> {name: (stored, error < 0.01) for name, (stored, error) in costs.items()}
        {'hashed': (128, False), 'cosines': (128, True)}
    """
    dense = jnp.asarray(real_array("cost_of_sharing: kernel", materialize(kernel), 2))
    target = np.asarray(dense, np.float64)
    metric = check_metric("cost_of_sharing", metric, target)
    for name, form in forms.items():
        check_transform(f"cost_of_sharing: forms[{name!r}]", form)
    total = squared(target, metric)
    if not total:
        raise ValueError("cost_of_sharing: the kernel's outputs are nothing but zeros")
    costs = {}
    for name, form in forms.items():
        array = form(dense, metric)
        error = squared(target - np.asarray(materialize(array), np.float64), metric)
        costs[name] = (stored_numbers(array), error / total)
    return costs


@checked(form=function("from a seed to a transform"), outputs=whole(), draws=whole(2))
def relative_variance(
    form: Callable[[int], Transform], x: Vector, outputs: int, *, draws: int = 200
) -> float:
    """The variance of the squared length that fresh layers give to an input.

    Args:
        form: from a seed to a transform of single weights.
        x: (m,) the input.
        outputs: n, the width of the layer.
        draws: the number of layers drawn.

    Returns:
        The variance in units of the squared mean, over layers of one norm; by theory 2/n for dense
        and hashed layers, about 2/r (1 - r/m) for a rank of r.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.analysis import relative_variance
        >>> def form(seed):
        ...     return jc.hashed(1/8, seed=seed)
        >>> spread = relative_variance(form, jnp.ones(16), 8, draws=60)
        >>> 0.5 < spread / (2 / 8) < 1.5
        True
    """
    x = jnp.asarray(real_array("relative_variance: x", x, 1), jnp.float32)
    if not x.any():
        raise ValueError("relative_variance: x is zero, and so is the length of what it gives")
    leaf = jnp.ones((len(x), outputs), jnp.float32)
    lengths = []
    for seed in range(draws):
        layer = initialize(jax.random.key(seed), form(seed), {"kernel": leaf})["kernel"]
        lengths.append(float(jnp.sum((x @ layer) ** 2)))
    return float(np.var(lengths) / np.mean(lengths) ** 2)
