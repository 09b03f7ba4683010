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
import scipy.fft
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxcompress.arrays.base import CompactArray
from jaxcompress.arrays.field_checks import expect
from jaxcompress.arrays.layout import MATRIX
from jaxcompress.arrays.permutation import mix, permute
from jaxcompress.arrays.rank import with_rank
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.static import static_field
from jaxcompress.checks import whole_numbers

NAMES = ("dct", "smooth", "random")
FOURIER_COST = 40
"""A transform there and back, in operations of a dense product for each number and halving."""
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
        of_one = self.of_one_channel()
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
        if not self._by_transform and self.channels == 1:
            return x @ self.materialize().astype(dtype)
        # the Kronecker product with the identity is never formed: channels do not mix
        points = x.reshape(*x.shape[:-1], -1, self.channels)
        if self._by_transform:
            codes = jnp.moveaxis(self._analysis(jnp.moveaxis(points, -1, -2)), -1, -2)
            return codes.astype(jnp.result_type(x, dtype)).reshape(*x.shape[:-1], self.count)
        of_one = self.of_one_channel().astype(dtype)
        codes = jnp.einsum("...pc,pk->...kc", points, of_one)
        return codes.reshape(*x.shape[:-1], self.count)

    def expand(self, codes: jax.Array) -> jax.Array:
        """`atoms @ codes` for codes (..., k, n), likewise."""
        if not self._by_transform and self.channels == 1:
            return self.materialize().astype(codes.dtype) @ codes
        *leading, k, n = codes.shape
        by_channel = codes.reshape(*leading, k // self.channels, self.channels * n)
        if self._by_transform:
            points = jnp.matrix_transpose(self._synthesis(jnp.matrix_transpose(by_channel)))
            product = points.astype(codes.dtype)
        else:
            product = self.of_one_channel().astype(codes.dtype) @ by_channel
        return product.reshape(*leading, self.matrix_shape[0], n)

    def take(self, rows: jax.Array) -> jax.Array:
        """The rows alone: cosines and smooth atoms are computed at their points."""
        point, channel = rows // self.channels, rows % self.channels
        of_one = self._at_points(point)
        if self.channels == 1:
            return of_one
        own = jax.nn.one_hot(channel, self.channels, dtype=of_one.dtype)
        return (of_one[..., :, None] * own[..., None, :]).reshape(*rows.shape, self.count)

    def project(self, target: Float[np.ndarray, "*stack m n"]) -> Float[np.ndarray, "*stack k n"]:
        """`atoms' @ target` on the host in float64, for cosines by a fast transform."""
        *leading, m, n = target.shape
        columns = target.reshape(*leading, m // self.channels, self.channels * n)
        codes = np.asarray(self._signs())[:, None] * columns
        axes = tuple(range(len(leading), len(leading) + len(self._grid)))
        waves = scipy.fft.dctn(codes.reshape(*leading, *self._grid, -1), axes=axes, norm="ortho")
        kept = np.asarray(waves).reshape(columns.shape)[..., np.asarray(self._order()), :]
        return kept.reshape(*leading, self.count, n)

    def synthesise(self, codes: Float[np.ndarray, "*stack k n"]) -> Float[np.ndarray, "*stack m n"]:
        """`atoms @ codes` on the host in float64, likewise."""
        *leading, k, n = codes.shape
        waves = np.zeros((*leading, math.prod(self._grid), self.channels * n))
        waves[..., np.asarray(self._order()), :] = codes.reshape(*leading, k // self.channels, -1)
        axes = tuple(range(len(leading), len(leading) + len(self._grid)))
        points = scipy.fft.idctn(waves.reshape(*leading, *self._grid, -1), axes=axes, norm="ortho")
        points = np.asarray(points).reshape(waves.shape)
        signed = np.asarray(self._signs())[:, None] * points
        return signed.reshape(*leading, self.matrix_shape[0], n)

    @property
    def orthonormal(self) -> bool:
        """Whether the atoms are cosines, of which a fast transform makes all products."""
        return isinstance(self.rule, str) and self.rule in ("dct", "random")

    @property
    def _by_transform(self) -> bool:
        """Whether products of a traced program are cheaper by Fourier transform."""
        points, count = math.prod(self.grid), self.count // self.channels
        return self.orthonormal and FOURIER_COST * math.log2(points + 1) < count

    @property
    def _grid(self) -> tuple[int, ...]:
        """The axes of the cosines: random ones have no order in space."""
        return self.grid if self.rule == "dct" else (math.prod(self.grid),)

    def _order(self) -> jax.Array:
        """The place of each atom of one channel among all cosines of the grid, int32 (k,)."""
        count = self.count // self.channels
        if self.rule == "dct":
            waves = low_frequencies(self.grid)[:count]
            return jnp.asarray(np.ravel_multi_index(tuple(waves.T), self.grid), jnp.int32)
        m = math.prod(self.grid)
        return permute(jnp.arange(count, dtype=jnp.uint32), m, self.seed).astype(jnp.int32)

    def _signs(self) -> jax.Array:
        """The sign of each point, float32 (m,): of random atoms alone it is not one."""
        m = math.prod(self.grid)
        if self.rule == "dct":
            return jnp.ones(m, jnp.float32)
        negative = mix(jnp.arange(m, dtype=jnp.uint32), self.seed) >> 31
        return jnp.where(negative, -1.0, 1.0).astype(jnp.float32)

    def _analysis(self, points: Float[Array, "*batch m"]) -> Float[Array, "*batch k"]:
        """`points @ atoms` of one channel by a fast transform."""
        exact = points.astype(jnp.promote_types(points.dtype, jnp.float32))
        signed = exact * self._signs().astype(exact.dtype)
        axes = tuple(range(-len(self._grid), 0))
        waves = jax.scipy.fft.dctn(
            signed.reshape(*points.shape[:-1], *self._grid), axes=axes, norm="ortho"
        )
        return waves.reshape(points.shape)[..., self._order()]

    def _synthesis(self, codes: Float[Array, "*batch k"]) -> Float[Array, "*batch m"]:
        """`codes @ atoms'` of one channel by a fast transform."""
        exact = codes.astype(jnp.promote_types(codes.dtype, jnp.float32))
        waves = jnp.zeros((*codes.shape[:-1], math.prod(self._grid)), exact.dtype)
        waves = waves.at[..., self._order()].set(exact, unique_indices=True)
        axes = tuple(range(-len(self._grid), 0))
        points = jax.scipy.fft.idctn(
            waves.reshape(*codes.shape[:-1], *self._grid), axes=axes, norm="ortho"
        )
        return points.reshape(waves.shape) * self._signs().astype(exact.dtype)

    def of_one_channel(self) -> jax.Array:
        """The atoms as columns without the channels, (m, k)."""
        count = self.count // self.channels
        if callable(self.rule):
            return jnp.asarray(self.rule(coordinates(self.grid)), jnp.float32)[:, :count]
        if self.rule == "smooth":
            return ridge_predictions(coordinates(self.grid), self.grid, spread(self.grid, count))
        if self.rule == "dct":
            return cosines(self.grid, low_frequencies(self.grid)[:count])
        return self._signs()[:, None] * cosines(self._grid, self._order()[:, None])

    def _at_points(self, points: Int[Array, "*rows"]) -> Float[Array, "*rows k"]:
        """The atoms of one channel at points of the grid."""
        count = self.count // self.channels
        if callable(self.rule):  # a function sees the whole grid
            return self.of_one_channel()[points]
        if self.rule == "smooth":
            places = jnp.stack(jnp.unravel_index(points, self.grid), -1).astype(jnp.float32)
            flat = places.reshape(-1, len(self.grid))
            values = ridge_predictions(flat, self.grid, spread(self.grid, count))
            return values.reshape(*points.shape, count)
        frequencies = jnp.unravel_index(self._order(), self._grid)
        places = jnp.unravel_index(points, self._grid)
        axes = zip(self._grid, frequencies, places, strict=True)
        waves = (wave(size, frequency, place) for size, frequency, place in axes)
        return math.prod(waves, start=self._signs()[points][..., None])

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """(): designed atoms are never stacked."""
        return ()

    @property
    def dtype(self) -> np.dtype:
        """float32; the codes decide in which dtype a product is computed."""
        return jnp.dtype("float32")

    def check_sizes(self) -> None:
        """Refuse a rule that there is not, and more atoms than the grid has."""
        known = callable(self.rule) or self.rule in NAMES
        expect("rule", self.rule, known, f"one of {', '.join(NAMES)}")
        expect("channels", self.channels, self.channels >= 1, "at least 1")
        positive = min(self.grid, default=0) > 0
        expect("grid", self.grid, positive, "positive sizes")
        m = math.prod(self.grid) * self.channels
        whole = 0 <= self.count <= m and self.count % self.channels == 0
        expect("count", self.count, whole, f"a multiple of {self.channels} up to {m}")
        dims = self.dims in (None, (m, self.count))
        expect("dims", self.dims, dims and self.matrix_axes == MATRIX, (m, self.count))

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
        frequency = jnp.asarray(frequencies[:, axis], jnp.int32)
        values = wave(size, frequency, jnp.arange(size, dtype=jnp.int32))
        product = (product[:, None, :] * values[None, :, :]).reshape(-1, frequencies.shape[0])
    return product


def wave(
    size: int, frequency: Int[Array, " k"], place: Int[Array, "*rows"]
) -> Float[Array, "*rows k"]:
    """Orthonormal cosines of one axis at places on it."""
    frequency = with_rank(frequency, place.ndim + 1)
    phase = times_modulo(2 * place[..., None] + 1, frequency, 4 * size)
    values = jnp.cos(phase.astype(jnp.float32) * jnp.float32(math.pi / (2 * size)))
    constant, others = jnp.float32(math.sqrt(1 / size)), jnp.float32(math.sqrt(2 / size))
    return values * jnp.where(frequency == 0, constant, others)


def times_modulo(one: jax.Array, other: jax.Array, modulus: int) -> jax.Array:
    """`one * other % modulus` of whole numbers below the modulus, at most 2**21, in 32 bits.

    Phases are reduced in integers, so that large grids lose no accuracy.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.arrays.atoms import times_modulo
        >>> int(times_modulo(jnp.int32(199_999), jnp.int32(99_999), 400_000)), 199_999 * 99_999
        (100001, 19999700001)
    """
    if modulus > 2**21:
        raise ValueError(f"cosines on an axis of {modulus // 4} points: at most {2**19} are exact")
    one, other = one.astype(jnp.uint32), other.astype(jnp.uint32)
    if modulus <= 2**15:
        return one * other % np.uint32(modulus)
    bits = np.uint32(11)
    high = one * (other >> bits) % np.uint32(modulus) << bits
    return (
        high % np.uint32(modulus) + one * (other & np.uint32(2**11 - 1)) % np.uint32(modulus)
    ) % np.uint32(modulus)


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


def ridge_predictions(
    places: Float[Array, "m axes"], grid: tuple[int, ...], points: Float[np.ndarray, "k axes"]
) -> Float[Array, "m k"]:
    """The values at places that follow from one at each point and zero at the others."""
    width = (math.prod(grid) / len(points)) ** (1 / len(grid))

    def near(one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.exp(-0.5 * jnp.sum(((one[:, None] - other[None, :]) / width) ** 2, axis=-1))

    known = jnp.asarray(points)
    inside = near(known, known) + RIDGE * jnp.eye(len(points))
    return jax.scipy.linalg.solve(inside, near(known, places), assume_a="pos").T


def check_grid(grid: Sequence[int], inputs: int, whose: str, channels: int = 1) -> None:
    """Refuse a grid that the inputs of something ("the matrix has") do not lie on.

    Raises:
        ValueError: when its points, times the channels at each, are another number.
    """
    grid = whole_numbers("grid", grid, None)
    points = math.prod(grid)
    if points * channels != inputs:
        of = f" of {channels} channels" if channels > 1 else ""
        fix = (
            f": give a grid with the product {inputs // channels}" if inputs % channels == 0 else ""
        )
        raise ValueError(f"grid={grid} has {points} points{of}, but {whose} {inputs} inputs{fix}")


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
    if not isinstance(rule, str) or rule not in NAMES:
        names = ", ".join(map(repr, (*NAMES, "learned")))
        raise ValueError(
            f"atoms={rule!r} is unknown: expected one of {names}, "
            "a matrix (inputs, atoms), or a function of the grid's coordinates"
        )
    return m


def encode_name(rule: object) -> str:
    """A function's name for messages."""
    return getattr(rule, "__qualname__", repr(rule))
