"""Numbers of the host as arrays of JAX, without a program for each shape.

`jnp.asarray` compiles an identity, or a cast, for each new shape, about 10 ms; a fit over many
leaves would spend most of its time there. A transfer compiles nothing.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Shaped


def to_device(values: Shaped[ArrayLike, "*shape"], dtype: DTypeLike) -> Shaped[Array, "*shape"]:
    """Values as an array of JAX, of a dtype.

    Args:
        values: numbers on the host or on a device, or a tracer.
        dtype: of the result; float64 becomes float32 unless JAX has 64 bits enabled.

    Example:
        >>> import numpy as np
        >>> to_device(np.arange(3), np.float32)
        Array([0., 1., 2.], dtype=float32)
    """
    if isinstance(values, Tracer):
        return values.astype(dtype)
    return jax.device_put(np.asarray(values, dtype))
