"""What a leaf of a tree is: numbers, a random key, or no array at all.

Parameters of real models hold keys of dropout, flags, names and functions beside their weights.
Weights are compressed; everything else passes as it is, and is counted as what it stores.
"""

from __future__ import annotations

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def is_key(leaf: PyTree) -> bool:
    """Whether a leaf is an array of typed random keys, as `jax.random.key` makes them.

    Args:
        leaf: a leaf of a tree, or its shape.

    Returns:
        False for the keys of `jax.random.PRNGKey`, which are integers.

    Example:
        >>> import jax
        >>> from jaxcompress.arrays.leaves import is_key
        >>> is_key(jax.random.key(0)), is_key(jax.random.PRNGKey(0))
        (True, False)
    """
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def is_numeric(leaf: PyTree) -> bool:
    """Whether a leaf is an array of numbers or flags, or a single one of Python's.

    Args:
        leaf: a leaf of a tree, or its shape.

    Example:
        >>> from jaxcompress.arrays.leaves import is_numeric
        >>> is_numeric(True), is_numeric("relu"), is_numeric(len)
        (True, False, False)
    """
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not hasattr(leaf, "shape"):
        return isinstance(leaf, numbers.Number)  # flags are Python integers
    return jnp.issubdtype(dtype, jnp.number) or dtype == np.bool_


def is_array(leaf: PyTree) -> bool:
    """Whether a function of arrays can take a leaf: numbers, flags and random keys."""
    return is_numeric(leaf) or is_key(leaf)


def number_count(leaf: PyTree) -> int:
    """The numbers that a dense leaf stores: entries, the words of a key, none for a function."""
    if is_key(leaf):
        return math.prod(jax.eval_shape(jax.random.key_data, leaf).shape)
    return int(np.size(leaf)) if is_numeric(leaf) else 0


def byte_count(leaf: PyTree) -> int:
    """The bytes that a dense leaf's numbers take."""
    if is_key(leaf):
        words = jax.eval_shape(jax.random.key_data, leaf)
        return math.prod(words.shape) * words.dtype.itemsize
    if not is_numeric(leaf):
        return 0
    return int(np.size(leaf)) * np.dtype(jnp.result_type(leaf)).itemsize


def describe(leaf: PyTree) -> str:
    """What a dense leaf is, in a word for tables and messages."""
    if is_key(leaf):
        return "random key"
    return "dense" if is_numeric(leaf) else type(leaf).__name__
