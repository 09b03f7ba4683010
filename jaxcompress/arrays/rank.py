"""Broadcasting with its dimensions of one written out.

Numpy's rule lets a vector meet a matrix unsaid, and `jax_numpy_rank_promotion="raise"` is how users
find where it happened to them by mistake. The library's own arithmetic names what it means.
"""

from __future__ import annotations

import jax


def with_rank(array: jax.Array, rank: int) -> jax.Array:
    """An array with dimensions of one in front, up to a number of dimensions.

    Args:
        array: of any shape, of at most `rank` dimensions.
        rank: how many dimensions to have.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.arrays.rank import with_rank
        >>> with_rank(jnp.ones(3), 2).shape
        (1, 3)
    """
    return array.reshape((1,) * (rank - array.ndim) + array.shape)
