"""The forms a weight can be rewritten in: hashed, clustered, factored, spline, toeplitz (and vocabulary.py).

Each turns a number of numbers into a size of its form and fits what it stores by least squares, in the metric of the
inputs when moments are given. What a form means, stores and costs is said in the array's own file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcompress.arrays.atoms import check_grid
from jaxcompress.arrays.clustered import MOST, ClusteredArray
from jaxcompress.arrays.factored import FactoredArray, principal_outputs
from jaxcompress.arrays.hashed import HashedArray
from jaxcompress.arrays.permutation import leaf_seed
from jaxcompress.arrays.projection import per_matrix, weigh
from jaxcompress.arrays.spline import SplineArray, check_basis
from jaxcompress.arrays.toeplitz import ToeplitzArray, positions
from jaxcompress.checks import whole_number, whole_numbers
from jaxcompress.transforms.leafwise import LeafTransform
from jaxcompress.transforms.options import Keep, check_keep, check_matrix_axes
from jaxcompress.transforms.weights import Unreachable, squared


@dataclasses.dataclass(frozen=True, repr=False)
class Hashed(LeafTransform):
    """See `hashed`."""

    keep: Any
    seed: int = 0
    block: int = 1
    layout: str = "random"
    seed_by: str = "path"
    matrix_axes: Any = None

    def unit(self, m: int, n: int) -> int:
        return min(self.block, n)

    def fit(
        self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str
    ) -> HashedArray:
        m, n = matrix.shape[-2:]
        # a longer run than the row has is the row; whole blocks, unless the table is the matrix
        block = min(self.block, n)
        if self.block > numbers:
            raise ValueError(
                f"block={self.block} is longer than the table of {numbers} numbers: use a smaller block or keep more"
            )
        size = numbers if numbers == m * n else numbers - numbers % block
        seed = leaf_seed(self.seed, name if self.seed_by == "path" else f"{m}x{n}")
        return HashedArray.fit(
            matrix, size, seed=seed, block=block, layout=self.layout, metric=metric
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Clustered(LeafTransform):
    """See `clustered`."""

    keep: Any
    block: int | None = None
    most: int = MOST
    seed: int = 0
    matrix_axes: Any = None

    def unit(self, m: int, n: int) -> int:
        return m

    def curve(
        self, matrix: np.ndarray, metric: np.ndarray | None, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        m, n = matrix.shape[-2:]
        least = min(ClusteredArray.numbers(m, n, block, 1) for block in self.blocks(n)) / (m * n)
        keeps = np.geomspace(min(least, 1.0), 1.0, 60)[:-1]
        sizes = [self.size(m, n, math.floor(keep * m * n * (1 + 1e-9))) for keep in keeps]
        fits = {
            ClusteredArray.numbers(m, n, *size) / (m * n): self.left(*size)
            for size in sizes
            if size is not None
        }
        known = {keep: left for keep, left in fits.items() if keep < 1}
        return np.array([*known, 1.0]), squared(matrix, metric) * np.minimum.accumulate(
            [*known.values(), 0.0]
        )

    def fit(
        self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str
    ) -> ClusteredArray | None:
        m, n = matrix.shape[-2:]
        if numbers == m * n:
            return None  # the matrix itself, and indices besides
        size = self.size(m, n, numbers)
        if size is None:
            least = min(ClusteredArray.numbers(m, n, block, 1) for block in self.blocks(n))
            raise Unreachable(
                least, f"one run with its indices takes {least} numbers, and keep allows {numbers}"
            )
        block, count = size
        return ClusteredArray.fit(
            matrix, count, block, seed=leaf_seed(self.seed, name), metric=metric
        )

    def blocks(self, n: int) -> Sequence[int]:
        return range(1, n + 1) if self.block is None else [min(self.block, n)]

    def size(self, m: int, n: int, numbers: int) -> tuple[int, int] | None:
        """The length of a run and how many there are, of those that store so few numbers the ones with the least error."""
        fits = {
            block: (numbers - ClusteredArray.numbers(m, n, block, 0)) // block
            for block in self.blocks(n)
        }
        found = [
            (block, min(count, self.most, m * math.ceil(n / block)))
            for block, count in fits.items()
            if count > 0
        ]
        return min(found, key=lambda size: (self.left(*size), -size[0]), default=None)

    @staticmethod
    def left(block: int, count: int) -> float:
        """The share of the error that is predicted to be left: the distortion of a Gaussian at so many bits."""
        return count ** (-2 / block)


@dataclasses.dataclass(frozen=True, repr=False)
class Factored(LeafTransform):
    """See `factored`."""

    keep: Any
    energy: Any = None
    matrix_axes: Any = None

    def hidden(self) -> tuple[str, ...]:
        return () if self.energy is None else ("keep",)

    def curve(
        self, matrix: np.ndarray, metric: np.ndarray | None, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        m, n = matrix.shape[-2:]
        flat = matrix.reshape(-1, m, n)
        powers = np.array(
            [squared(*each) for each in zip(flat, per_matrix(metric, len(flat)), strict=True)]
        )
        left = powers @ (1 - energy_by_rank(matrix, metric))
        ranks = [
            rank
            for rank in range(1, min(m, n))
            if math.ceil(FactoredArray.numbers(m, n, rank)) < m * n
        ]
        keeps = [math.ceil(FactoredArray.numbers(m, n, rank)) / (m * n) for rank in ranks]
        return np.array([*keeps, 1.0]), np.array(
            [*(max(float(left[rank - 1]), 0.0) for rank in ranks), 0.0]
        )

    def fit(
        self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str
    ) -> FactoredArray:
        m, n = matrix.shape[-2:]
        if self.energy is not None:
            return FactoredArray.fit(
                matrix, rank_for_energy(matrix, metric, self.energy), metric=metric
            )
        ranks = [
            rank for rank in range(1, min(m, n) + 1) if FactoredArray.numbers(m, n, rank) <= numbers
        ]
        if not ranks:
            least = math.ceil(FactoredArray.numbers(m, n, 1))
            raise Unreachable(least, f"rank 1 takes {least} numbers, and keep allows {numbers}")
        return FactoredArray.fit(matrix, ranks[-1], metric=metric)


@dataclasses.dataclass(frozen=True, repr=False)
class Spline(LeafTransform):
    """See `spline`."""

    keep: Any
    basis: str = "step"
    matrix_axes: Any = None

    uses_moments = False  # the optimum is the same in every metric

    def unit(self, m: int, n: int) -> int:
        return m

    def fit(
        self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str
    ) -> SplineArray:
        m, n = matrix.shape[-2:]
        return SplineArray.fit(
            matrix,
            min(whole_units(numbers, m, "one knot in each input's period"), n),
            basis=self.basis,
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Toeplitz(LeafTransform):
    """See `toeplitz`."""

    window: tuple[int, ...]
    grid: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    keep: Any = 1.0
    matrix_axes: Any = None

    def fit(
        self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str
    ) -> ToeplitzArray | None:
        m, n = matrix.shape[-2:]
        check_grid(self.grid, m, "the matrix has")
        array = ToeplitzArray.fit(
            matrix, self.grid, self.window, stride=self.stride, pad=self.pad, metric=metric
        )
        return array if math.prod(array.taps.shape[-2:]) <= m * n else None


def hashed(
    keep: Keep,
    *,
    seed: int = 0,
    block: int = 1,
    layout: str = "random",
    seed_by: str = "path",
    matrix_axes: Any = None,
) -> LeafTransform:
    """Share weights by a hash: each entry is plus or minus one of `keep * m * n` numbers.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], a mapping from patterns to fractions, or `jc.budget(total)`.
        seed: which hash; every leaf mixes in its own path.
        block: how many neighbours along the outputs are shared as one run; faster, and coarser.
        layout: "random", or "circular", where each row is the same numbers read from another place on, wrapped round: hashes are
            made for m + n places, and a product is a correlation by Fourier transform where that is cheaper.
        seed_by: "path" for a hash of its own for each leaf, "shape" for one hash for leaves of equal shape, so that
            they can be stacked.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out) for two by default.

    Returns:
        A transform to trees with `HashedArray` nodes (Chen et al. 2015, arXiv:1504.04788).

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.hashed(keep=1/8)(jnp.ones((16, 16)))
        HashedArray((16, 16) float32, 32 stored = 1/8)
    """
    block = whole_number("block", block)
    if seed_by not in ("path", "shape"):
        raise ValueError(f"seed_by must be 'path' or 'shape', got {seed_by!r}")
    if layout not in ("random", "circular"):
        raise ValueError(f"layout must be 'random' or 'circular', got {layout!r}")
    if layout == "circular" and block > 1:
        raise ValueError(
            f"block={block} is for the random layout: in the circular one neighbours in the table are shared already"
        )
    return Hashed(check_keep(keep), seed, block, layout, seed_by, check_matrix_axes(matrix_axes))


def clustered(
    keep: Keep,
    *,
    block: int | None = None,
    most: int = MOST,
    seed: int = 0,
    matrix_axes: Any = None,
) -> LeafTransform:
    """Share weights by clusters: each run of neighbours along the outputs is one of a few shared runs, found by k-means.

    For tables of words, whose rows are looked up and have no low rank, and for matrices that are to take little room. A product
    with it costs what the dense one costs, and putting the runs together before it; `jc.materialize` does that once.

    Args:
        keep: the fraction of the numbers to store, every index counting as one, in (0, 1], a mapping from patterns to fractions,
            or `jc.budget(total)`.
        block: the length of a run; by default that with the least predicted error.
        most: the most shared runs; by default as many as two bytes tell apart.
        seed: of k-means; every leaf mixes in its own path.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out) for two by default.

    Returns:
        A transform to trees with `ClusteredArray` nodes (Jégou et al. 2011, doi:10.1109/TPAMI.2010.57).

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.clustered(keep=1/2)(jnp.arange(48.0).reshape(6, 8) % 8)
        ClusteredArray((6, 8) float32, 2 runs of 4, 20 stored = 1/2.4)
    """
    block = None if block is None else whole_number("block", block)
    most = whole_number("most", most)
    return Clustered(check_keep(keep), block, most, seed, check_matrix_axes(matrix_axes))


def factored(
    keep: Keep | None = None, *, energy: float | None = None, matrix_axes: Any = None
) -> LeafTransform:
    """Rotate each weight to its principal directions and cut: the best product of low rank.

    With moments the *outputs'* error is the least possible at that rank; without, the weight's own.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], a mapping from patterns to fractions, or `jc.budget(total)`.
        energy: instead of `keep`, the share of the outputs' (or the weight's) squared norm to reach.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out) for two by default.

    Returns:
        A transform to trees with `FactoredArray` nodes (Eckart and Young 1936; arXiv:2403.07378 for the metric).

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.factored(energy=0.999)(jnp.outer(jnp.arange(8.0), jnp.ones(6)))
        FactoredArray((8, 6) float32, rank 1, 14 stored = 1/3.43)
    """
    if (keep is None) == (energy is None):
        raise ValueError("factored takes either keep or energy, and one of them")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(
            f"energy must be in (0, 1], the share of the squared norm to reach; got {energy!r}"
        )
    return Factored(
        1.0 if keep is None else check_keep(keep), energy, check_matrix_axes(matrix_axes)
    )


def spline(keep: Keep, *, basis: str = "step", matrix_axes: Any = None) -> LeafTransform:
    """Read each weight as one function of one variable and sample it more coarsely.

    Each input's period, its row of the matrix, keeps `keep * n` knots, so neighbouring outputs share. Exchange the
    roles in `matrix_axes` to coarsen along the inputs.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], a mapping from patterns to fractions, or `jc.budget(total)`.
        basis: "step", "linear" (hats) or "cubic" (B-splines), from the knots to what lies between.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out) for two by default.

    Returns:
        A transform to trees with `SplineArray` nodes; see `jc.as_function` for the idea.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.spline(keep=1/4)(jnp.ones((16, 8)))
        SplineArray((16, 8) float32, 2 step knots a period, 32 stored = 1/4)
    """
    check_basis(basis)
    return Spline(check_keep(keep), basis, check_matrix_axes(matrix_axes))


def toeplitz(
    window: int | Sequence[int],
    *,
    grid: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    pad: int | Sequence[int] = 0,
    matrix_axes: Any = None,
) -> LeafTransform:
    """Share weights by translation: the outputs of a channel are one window of weights, moved along the inputs' grid.

    A dense layer on images, sequences or volumes becomes a convolution, stored as its window, and the model that holds it stays as
    it is. The kernel's outputs are the positions of the window, row by row, with the channels interlaced at each: their number is
    the positions (grid + 2 pad - window) // stride + 1 along each axis times as many channels as you like.

    Args:
        window: its size along each axis; an axis that it covers, such as colours, is not moved along.
        grid: the sizes of the axes that the inputs lie on, such as (28, 28).
        stride: how far the window moves, one number or one for each axis.
        pad: how many zeros stand around the inputs, likewise.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out) for two by default.

    Returns:
        A transform to trees with `ToeplitzArray` nodes (LeCun et al. 1989, doi:10.1162/neco.1989.1.4.541).

    Raises:
        ValueError: for sizes that do not fit each other; when applied, for outputs that are no multiple of the positions.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.toeplitz((9, 9), grid=(28, 28), stride=2)(jnp.ones((784, 1000)))
        ToeplitzArray((784, 1000) float32, 10 windows of 9x9 on 28x28, 810 stored = 1/968)
    """
    grid = whole_numbers("grid", grid, None, 1)
    sizes = whole_numbers("window", window, None, 1)
    if len(sizes) != len(grid):
        raise ValueError(
            f"window and grid must have one size for each axis, got {sizes} and {grid}"
        )
    options = [
        whole_numbers("stride", stride, len(grid), 1),
        whole_numbers("pad", pad, len(grid), 0),
    ]
    if any(p >= w for p, w in zip(options[1], sizes, strict=True)):
        raise ValueError(
            f"pad={options[1]} leaves positions where the window of {sizes} sees nothing but zeros"
        )
    positions(grid, sizes, *options)
    return Toeplitz(sizes, grid, *options, matrix_axes=check_matrix_axes(matrix_axes))


def whole_units(numbers: int, unit: int, what: str) -> int:
    """How many units of what a form is made of fit."""
    if numbers < unit:
        raise Unreachable(unit, f"{what} takes {unit} numbers, and keep allows {numbers}")
    return numbers // unit


def rank_for_energy(matrix: np.ndarray, metric: np.ndarray | None, energy: float) -> int:
    """The least rank whose product carries a share of the outputs' squared norm, in every matrix of a stack."""
    reached = energy_by_rank(matrix, metric) >= energy * (1 - 1e-12)
    return int(reached.argmax(-1).max() + 1) if reached.any(-1).all() else reached.shape[-1]


def energy_by_rank(matrix: np.ndarray, metric: np.ndarray | None) -> np.ndarray:
    """The share of the outputs' squared norm that the best product of rank 1, 2, ... carries: (matrices, ranks)."""
    target = np.asarray(matrix, np.float64).reshape(-1, *matrix.shape[-2:])
    outputs = target @ principal_outputs(target, metric, min(target.shape[-2:]))
    weighted = (
        outputs
        if metric is None
        else weigh(metric.reshape(-1, *metric.shape[-2:]) if metric.ndim > 2 else metric, outputs)
    )
    gains = np.cumsum(np.maximum(np.sum(outputs * weighted, axis=-2), 0), axis=-1)
    return gains / np.maximum(gains[..., -1:], np.finfo(np.float64).tiny)
