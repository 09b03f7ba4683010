"""Designed atoms: a matrix of features that is recomputed at every use and stores nothing.

Column f of `atoms` (m, k) is one feature of the m inputs. There are three designs. "dct":
orthonormal cosines over the input grid, lowest frequencies first; on a grid of several axes they
are products of cosines, in the order of their frequency's norm. "smooth": the predictions of a
ridge regression with a squared-exponential kernel, from the value one at one of k evenly spread
points and zero at the others; the codes are then the weights at those points, and the kernel's
width is their spacing. "random": the same cosines in a seeded order with a seeded sign on every
input, an orthonormal set with no preferred direction. A function of the grid's coordinates gives
any other atoms. Inputs of several channels at every point have the same atoms in each channel,
without mixing channels. Costs m k operations to recompute (cosines are computed once per grid axis;
smooth atoms take k^2 m more to solve), and no storage.

Source: Denil et al. 2013 (arXiv:1306.0543) for designed dictionaries; Ailon and Chazelle 2006 for
the signed transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxcompress.arrays.base import CompactArray
from jaxcompress.arrays.permutation import mix, permute
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.static import static_field

NAMES = ("dct", "smooth", "random")
RIDGE = 1e-3
"""Of smooth atoms, relative to the kernel's peak; less would be ill-conditioned in float32."""


@compact_array
class DesignedAtoms(CompactArray):
    """The first `count` atoms of a designed vocabulary on an input grid, in float32.

    Attributes:
        rule: "dct", "smooth", "random", or a function from the grid's coordinates, float32 (m,
            axes), to (m, atoms).
        grid: the sizes of the input axes; their product, times the channels, is m.
        count: the number of atoms.
        seed: the order and the signs of "random".
        channels: the number of inputs interlaced at each point of the grid.
    """

    rule: str | Callable[[jax.Array], jax.Array] = static_field(default="dct")
    grid: tuple[int, ...] = static_field(default=())
    count: int = static_field(default=0)
    seed: int = static_field(default=0)
    channels: int = static_field(default=1)

    def materialize(self) -> jax.Array:
        """The atoms as columns, (m, k)."""
        of_one = self._of_one_channel()
        return (
            of_one
            if self.channels == 1
            else jnp.kron(of_one, jnp.eye(self.channels, dtype=jnp.float32))
        )

    def multiply(self, x: jax.Array) -> jax.Array:
        """`x @ atoms`, the channels apart."""
        return self.features(x, self.dtype)

    def features(self, x: jax.Array, dtype: DTypeLike) -> jax.Array:
        """`x @ atoms` with the atoms in a dtype."""
        # the Kronecker product with the identity is never formed: channels do not mix
        if self.channels == 1:
            return x @ self.materialize().astype(dtype)
        of_one = self._of_one_channel().astype(dtype)
        codes = jnp.einsum(
            "...pc,pk->...kc", x.reshape(*x.shape[:-1], len(of_one), self.channels), of_one
        )
        return codes.reshape(*x.shape[:-1], self.count)

    def expand(self, codes: jax.Array) -> jax.Array:
        """`atoms @ codes` for codes (..., k, n), likewise."""
        if self.channels == 1:
            return self.materialize().astype(codes.dtype) @ codes
        of_one, (*leading, k, n) = self._of_one_channel().astype(codes.dtype), codes.shape
        product = jnp.einsum(
            "pk,...kcn->...pcn",
            of_one,
            codes.reshape(*leading, k // self.channels, self.channels, n),
        )
        return product.reshape(*leading, self.matrix_shape[0], n)

    def _of_one_channel(self) -> jax.Array:
        count = self.count // self.channels
        if callable(self.rule):
            return jnp.asarray(self.rule(coordinates(self.grid)), jnp.float32)[:, :count]
        if self.rule == "dct":
            return cosines(self.grid, low_frequencies(self.grid)[:count])
        if self.rule == "smooth":
            return ridge_predictions(self.grid, spread(self.grid, count))
        m = math.prod(self.grid)
        order = permute(jnp.arange(m, dtype=jnp.uint32)[:count], m, self.seed).astype(jnp.int32)
        sign = jnp.where(mix(jnp.arange(m, dtype=jnp.uint32), self.seed) >> 31, -1.0, 1.0).astype(
            jnp.float32
        )
        return sign[:, None] * cosines((m,), order[:, None])

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """(): designed atoms are never stacked."""
        return ()

    @property
    def dtype(self) -> np.dtype:
        """float32; the codes decide in which dtype a product is computed."""
        return jnp.dtype("float32")

    def summary(self) -> str:
        """The form's sizes."""
        name = getattr(self.rule, "__name__", str(self.rule))
        of = f" of {self.channels} channels" if self.channels > 1 else ""
        return f"{self.count} {name} atoms on {'x'.join(map(str, self.grid))}{of}"


def coordinates(grid: tuple[int, ...]) -> jax.Array:
    """The coordinates of a grid's points, row-major: float32 (m, axes)."""
    return jnp.stack(
        jnp.meshgrid(*(jnp.arange(size, dtype=jnp.float32) for size in grid), indexing="ij"),
        axis=-1,
    ).reshape(-1, len(grid))


def low_frequencies(grid: tuple[int, ...]) -> np.ndarray:
    """Every cosine frequency of a grid, (m, axes), lowest norm (in cycles per sample) first."""
    frequencies = np.stack(
        np.meshgrid(*(np.arange(size) for size in grid), indexing="ij"), axis=-1
    ).reshape(-1, len(grid))
    norms = np.sum((frequencies / np.asarray(grid)) ** 2, axis=1)
    return frequencies[np.argsort(norms.round(12), kind="stable")]


def cosines(grid: tuple[int, ...], frequencies: np.ndarray | jax.Array) -> jax.Array:
    """Orthonormal products of cosines (DCT-II): (m, k) for integer frequencies (k, axes)."""
    product = jnp.ones((1, frequencies.shape[0]), jnp.float32)
    for axis, size in enumerate(grid):
        frequency = jnp.asarray(frequencies[:, axis], jnp.int32)[None, :]
        # the phase is reduced in integers, so that large grids lose no accuracy
        phase = ((2 * jnp.arange(size, dtype=jnp.int32)[:, None] + 1) * frequency) % jnp.int32(
            4 * size
        )
        wave = jnp.cos(phase.astype(jnp.float32) * jnp.float32(math.pi / (2 * size)))
        wave = wave * jnp.where(
            frequency == 0, jnp.float32(math.sqrt(1 / size)), jnp.float32(math.sqrt(2 / size))
        )
        product = (product[:, None, :] * wave[None, :, :]).reshape(-1, frequencies.shape[0])
    return product


def spread(grid: tuple[int, ...], count: int) -> np.ndarray:
    """Points evenly spread over a grid, float32 (count, axes); on two axes a Fibonacci lattice.

    Source: the additive recurrence with the generalised golden ratio (Roberts 2018), for all axes
        but the first.
    """
    step = np.arange(count)
    golden = 2.0
    # the fixed point of x^d = 1 + x, for d = axes: the golden ratio of the other d - 1 axes
    for _ in range(60):
        golden = (1 + golden) ** (1 / max(len(grid), 2))
    places = [
        (step + 0.5) / count,
        *((0.5 + step * golden ** -(axis + 1)) % 1 for axis in range(len(grid) - 1)),
    ]
    return (np.stack(places, axis=1) * np.asarray(grid) - 0.5).astype(np.float32)


def ridge_predictions(grid: tuple[int, ...], points: np.ndarray) -> jax.Array:
    """(m, k): the values everywhere that follow from one at each point and zero at the others."""
    width = (math.prod(grid) / len(points)) ** (1 / len(grid))

    def near(one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.exp(-0.5 * jnp.sum(((one[:, None] - other[None, :]) / width) ** 2, axis=-1))

    known = jnp.asarray(points)
    inside = near(known, known) + RIDGE * jnp.eye(len(points))
    return jax.scipy.linalg.solve(inside, near(known, coordinates(grid)), assume_a="pos").T


def check_grid(grid: Sequence[int], inputs: int, whose: str, channels: int = 1) -> None:
    """Refuse a grid that the inputs of something ("the matrix has") do not lie on.

    Raises:
        ValueError: when its points, times the channels at each, are another number.
    """
    points = math.prod(grid)
    if points * channels != inputs:
        of = f" of {channels} channels" if channels > 1 else ""
        fix = (
            f": give a grid with the product {inputs // channels}" if inputs % channels == 0 else ""
        )
        raise ValueError(
            f"grid={tuple(grid)} has {points} points{of}, but {whose} {inputs} inputs{fix}"
        )


def check_rule(rule: object, grid: tuple[int, ...]) -> int:
    """The number of atoms that a rule has on a grid.

    Raises:
        ValueError: for an unknown name, or a function whose result is no matrix with a row for each
            grid point.
    """
    m = math.prod(grid)
    if callable(rule):
        shape = jax.eval_shape(rule, jax.ShapeDtypeStruct((m, len(grid)), jnp.float32)).shape
        if len(shape) != 2 or shape[0] != m:
            raise ValueError(
                f"atoms: the function {encode_name(rule)} returned shape {shape} for {m} grid "
                f"points, expected ({m}, atoms)"
            )
        return shape[1]
    if rule not in NAMES:
        names = ", ".join(map(repr, (*NAMES, "learned")))
        raise ValueError(
            f"atoms={rule!r} is unknown: expected one of {names}, "
            "a matrix (inputs, atoms), or a function of the grid's coordinates"
        )
    return m


def encode_name(rule: object) -> str:
    """A function's name for messages."""
    return getattr(rule, "__qualname__", repr(rule))
