"""A seeded bijection of {0, ..., size-1} in integer arithmetic: a random order, never stored.

The positions are laid on a nearly square ragged grid whose rows and columns are rotated in turn by
hashed amounts: a Feistel network whose halves are the two coordinates. A rotation of a row (or of a
ragged column) is a bijection, so their composition is one for every size, with no table, no
rejection and no random stream. Four rounds cost about 60 integer operations an element, and any
element can be computed alone.

Source: Luby and Rackoff 1988 (four Feistel rounds suffice); the mixer is C. Wellons' `lowbias32`.
"""

from __future__ import annotations

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

ROUNDS = 4


Seed = int | np.uint32 | jax.Array
"""A Python integer below 2**32, or a uint32 scalar inside a program; both give the same numbers."""


def mix(value: jax.Array, seed: Seed) -> jax.Array:
    """A 32-bit hash of uint32 values: every input bit moves every output bit."""
    scrambled = _scramble(seed)
    value = value ^ (np.uint32(scrambled) if isinstance(scrambled, int) else scrambled)
    value = value ^ (value >> 16)
    value = value * np.uint32(0x7FEB352D)
    value = value ^ (value >> 15)
    value = value * np.uint32(0x846CA68B)
    return value ^ (value >> 16)


def permute(position: jax.Array, size: int, seed: Seed) -> jax.Array:
    """Where a seeded random order of `size` things puts each position.

    Args:
        position: uint32 values below `size`, of any shape.
        size: how many things there are, below 2**32.
        seed: any integer.

    Returns:
        uint32 values of the same shape; over all positions each value below `size` comes once.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.arrays.permutation import permute
        >>> sorted(permute(jnp.arange(7, dtype=jnp.uint32), 7, seed=3).tolist())
        [0, 1, 2, 3, 4, 5, 6]
    """
    if not 0 < size < 2**32:
        raise ValueError(f"permute takes between 1 and 2**32 - 1 things, got {size}")
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    last = size - (height - 1) * width  # the length of the last row
    row = position // np.uint32(width)
    column = position - row * np.uint32(width)
    for turn in range(0, ROUNDS, 2):
        length = jnp.where(row < np.uint32(height - 1), np.uint32(width), np.uint32(last))
        column = _rotate(column, mix(row, seed + turn), length)
        length = jnp.where(column < np.uint32(last), np.uint32(height), np.uint32(height - 1))
        row = _rotate(row, mix(column, seed + turn + 1), length)
    return row * np.uint32(width) + column


def leaf_seed(seed: int, name: str) -> int:
    """The seed of one leaf: the recipe's seed and a name (its path or its shape), mixed."""
    return int(_scramble(seed ^ zlib.crc32(name.encode())))


def _rotate(value: jax.Array, hashed: jax.Array, length: jax.Array) -> jax.Array:
    shifted = value + (((hashed >> 16) * length) >> 16)  # length <= 2**16: no overflow
    return jnp.where(shifted >= length, shifted - length, shifted)


def _scramble(seed: Seed) -> Seed:
    """splitmix32, so that neighbouring seeds are unrelated; masks are for Python integers."""
    number = int if isinstance(seed, int) else np.uint32
    mask = number(0xFFFFFFFF)
    value = (seed * number(0x9E3779B9) + number(0x85EBCA6B)) & mask
    value = ((value ^ (value >> 16)) * number(0x21F0AAAD)) & mask
    value = ((value ^ (value >> 15)) * number(0x735A2D97)) & mask
    return value ^ (value >> 15)
