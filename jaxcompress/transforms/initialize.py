"""Fresh compact parameters, for training a small network from the start.

The structure is a transform's; the values are random, at the mean square of each given leaf, so that a network's
initialisation keeps its scale in any form. Costs one fit and one `materialize` a leaf.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.transforms.base import Transform


def initialize(key: jax.Array, transform: Transform, params: Any) -> Any:
    """Fresh compact parameters: a transform's structure, and random numbers at each given leaf's variance.

    Args:
        key: a JAX random key.
        transform: leaf transforms and their combinators.
        params: the dense tree to take shapes and variances from; leaves that stay dense keep their values.

    Returns:
        A tree whose compact arrays, materialised, have each leaf's mean square.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> fresh = jc.initialize(jax.random.key(0), jc.hashed(keep=1/8), {"kernel": 0.1 * jnp.ones((64, 64))})
        >>> round(float(jnp.sqrt(jnp.mean(fresh["kernel"].materialize() ** 2))), 3)
        0.1
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_compact)
    dense = [leaf.materialize() if is_compact(leaf) else leaf for leaf in leaves]
    fresh = []
    for index, leaf in enumerate(dense):
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        noise = (
            jax.random.normal(jax.random.fold_in(key, index), leaf.shape, leaf.dtype)
            if floating
            else leaf
        )
        fresh.append(noise)
    made = treedef.flatten_up_to(transform(jax.tree.unflatten(treedef, fresh)))

    def rescale(array: Any, original: Any, target: Any) -> Any:
        if not is_compact(array):
            return original
        ratio = jnp.sqrt(jnp.mean(jnp.square(target)) / jnp.mean(jnp.square(array.materialize())))
        return scale(array, ratio)

    return jax.tree.unflatten(
        treedef, [rescale(*each) for each in zip(made, leaves, dense, strict=True)]
    )


def scale(array: CompactArray, factor: jax.Array) -> CompactArray:
    """The compact array that means `factor` times as much."""
    child = array.linear_in or array.child_names[0]
    value = getattr(array, child)
    scaled = scale(value, factor) if is_compact(value) else value * factor.astype(value.dtype)
    return dataclasses.replace(array, **{child: scaled})
