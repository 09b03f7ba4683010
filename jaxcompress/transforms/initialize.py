"""Random compact parameters, for training a small network from scratch.

A transform gives the structure; the values are random with the mean square of each given leaf, so
that an initialisation keeps its scale in every form. Costs one fit and one `materialize` per leaf.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Key, PyTree, Scalar

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checks import array, checked, is_array, random_key
from jaxcompress.transforms.base import Transform, check_transform


@checked(key=random_key)
def initialize(key: Key[Array, ""], transform: Transform, params: PyTree) -> PyTree:
    """Draw random compact parameters with a transform's structure and each leaf's mean square.

    Args:
        key: a JAX random key.
        transform: a leaf transform, or a combination of them.
        params: the tree with the shapes and mean squares, such as a network's initialisation;
            leaves that stay dense keep their values.

    Returns:
        The tree; each of its compact arrays, materialised, has the mean square of the given leaf.

    Raises:
        ValueError: where the transform raises it.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> params = {"kernel": 0.1 * jnp.ones((64, 64))}
        >>> fresh = jc.initialize(jax.random.key(0), jc.hashed(keep=1/8), params)
        >>> round(float(jnp.sqrt(jnp.mean(fresh["kernel"].materialize() ** 2))), 3)
        0.1
    """
    check_transform("initialize", transform)
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_compact)
    dense = [leaf.materialize() if is_compact(leaf) else leaf for leaf in leaves]
    noise = [_noise(jax.random.fold_in(key, index), leaf) for index, leaf in enumerate(dense)]
    fitted = treedef.flatten_up_to(transform(jax.tree.unflatten(treedef, noise)))
    for small, (name, leaf) in zip(fitted, named_leaves(params), strict=True):
        parts = jax.tree.leaves(leaf) if is_compact(small) else []
        for part in parts:
            if is_array(part) and not isinstance(part, Tracer):
                array(name or "params", part)
    rows = zip(fitted, leaves, dense, strict=True)
    return jax.tree.unflatten(treedef, [_rescaled(*row) for row in rows])


def _noise(key: Key[Array, ""], leaf: PyTree) -> PyTree:
    """Standard normal numbers in place of a float leaf."""
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating):
        return jax.random.normal(key, leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
    return leaf


def _rescaled(fitted: PyTree, original: PyTree, target: PyTree) -> PyTree:
    """A compact array with the mean square of a leaf; the leaf itself where it stays dense."""
    if not is_compact(fitted):
        return original
    power = jnp.mean(jnp.square(fitted.materialize()))
    return scale(fitted, jnp.sqrt(jnp.mean(jnp.square(target)) / power))


def scale(array: CompactArray, factor: Scalar) -> CompactArray:
    """The compact array whose dense array is `factor` times that of `array`."""
    child = array.linear_in or array.child_names[0]
    value = getattr(array, child)
    scaled = scale(value, factor) if is_compact(value) else value * factor.astype(value.dtype)
    return dataclasses.replace(array, **{child: scaled})
