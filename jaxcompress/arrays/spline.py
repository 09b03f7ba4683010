"""A dense matrix as one function of one variable, sampled more coarsely.

Interlace the values of the n features into one function f, one period of n values for each input;
space the inputs out by n; then `x @ W` is the convolution of the spaced-out inputs with f, read at
n places. A resolution of q knots in each period stores `samples` (m, q), m q numbers, and means `W
= samples @ basis`, with a basis (q, n) of steps, hats or cubic B-splines on equal knots; it never
crosses a period, so inputs stay apart. Forward: the convolution on the coarse grid, 2 m q
operations a row, then each value of one, two or four neighbouring knots.

Source: function views of weights in Integral Neural Networks (Solodskikh et
al. 2023); uniform B-splines, Unser 1999 (doi:10.1109/79.799930).
"""

from __future__ import annotations

import operator
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcompress.arrays.base import CompactArray, materialize
from jaxcompress.arrays.device import to_device
from jaxcompress.arrays.field_checks import expect
from jaxcompress.arrays.rank import with_rank
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.static import static_field
from jaxcompress.checks import checked, choice, is_array, shown, whole, whole_number
from jaxcompress.checks import matrix as matrix_kind

BASES = ("step", "linear", "cubic")


@compact_array
class SplineArray(CompactArray):
    """A matrix whose rows are periods of one function, sampled at q knots each.

    Attributes:
        samples: (..., m, q) coefficients of the function; with steps and hats its values at the
            knots.
        basis: "step", "linear" or "cubic".
    """

    samples: Float[Array, "*stack m q"] | CompactArray
    basis: str = static_field(default="step")

    def materialize(self) -> jax.Array:
        """The function's values at all n places of every period."""
        return self._refine(materialize(self.samples))

    def multiply(self, x: jax.Array) -> jax.Array:
        """The product with the samples, interpolated."""
        return self._refine(x @ self.samples)

    def take(self, rows: jax.Array) -> jax.Array:
        """The rows' samples, interpolated."""
        samples = (
            self.samples.take(rows)
            if isinstance(self.samples, CompactArray)
            else self.samples[rows]
        )
        return self._refine(samples)

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The leading dimensions of what is stored."""
        return self.samples.shape[:-2]

    def check_sizes(self) -> None:
        """Refuse samples of another matrix, and a basis that there is not."""
        expect("basis", self.basis, self.basis in BASES, f"one of {', '.join(BASES)}")
        expect("dims", self.dims, self.dims is not None, "the matrix's sizes")
        (m, n), shape = self.matrix_shape, self.samples.shape
        fits = len(shape) > 1 and shape[-2] == m and 0 < shape[-1] <= max(n, 1)
        expect("samples", shape, fits, f"(..., {m}, 1 to {n})")

    def summary(self) -> str:
        """The form's sizes."""
        return f"{self.samples.shape[-1]} {self.basis} knots a period"

    def child_metrics(self, metric: np.ndarray | None) -> dict[str, np.ndarray | None]:
        """Samples are fitted in the inputs' metric."""
        return {"samples": metric}

    def _refine(self, coarse: jax.Array) -> jax.Array:
        n, q = self.matrix_shape[1], coarse.shape[-1]
        if self.basis == "step" and n % q == 0:
            return jnp.repeat(coarse, n // q, axis=-1)
        taps = zip(*spline(q, n, self.basis), strict=True)
        return reduce(
            operator.add,
            (
                coarse[..., index] * with_rank(jnp.asarray(weight, coarse.dtype), coarse.ndim)
                for index, weight in taps
            ),
        )

    @classmethod
    @checked(matrix=matrix_kind, count=whole(), basis=choice(*BASES))
    def fit(cls, matrix: np.ndarray, count: int, *, basis: str = "step") -> SplineArray:
        """The samples with the least squared error; with steps they are means.

        Every row is fitted by its own samples, so the optimum is the same in every metric of the
        inputs.

        Args:
            matrix: (..., m, n).
            count: knots in each period, between 1 and n.
            basis: one of `BASES`.
        """
        n = matrix.shape[-1]
        count = whole_number("SplineArray.fit: count", count, 1, n)
        if basis != "step":
            grid = spline_matrix(count, n, basis)
            samples = np.linalg.lstsq(grid.T, np.asarray(matrix, np.float64).reshape(-1, n).T)[0].T
            samples = to_device(samples.reshape(*matrix.shape[:-1], count), matrix.dtype)
            return cls(samples, basis=basis, dims=matrix.shape[-2:])
        knot = knots(n, count)
        starts = np.searchsorted(knot, np.arange(count))
        means = np.add.reduceat(np.asarray(matrix, np.float64), starts, axis=-1) / np.bincount(
            knot, minlength=count
        )
        return cls(to_device(means, matrix.dtype), basis=basis, dims=matrix.shape[-2:])


def knots(n: int, count: int) -> np.ndarray:
    """Which of `count` knots each of n positions belongs to: nearly equal runs, in order."""
    return np.arange(n) * count // n


def spline(count: int, n: int, basis: str) -> tuple[np.ndarray, np.ndarray]:
    """A uniform B-spline at n places: the coefficients that each depends on, and their weights.

    Coefficients and places lie in the middles of equal cells of one interval; towards its ends the
    coefficients go on as a line. The weights of a place sum to one.

    Returns:
        (taps, n) indices and weights; one tap with steps, two with hats, four with cubic pieces.

    Example:
        >>> from jaxcompress.arrays.spline import spline
        >>> index, weight = spline(2, 4, "linear")
        >>> index.tolist(), weight.tolist()
        ([[0, 0, 0, 0], [1, 1, 1, 1]], [[1.25, 0.75, 0.25, -0.25], [-0.25, 0.25, 0.75, 1.25]])
    """
    places = np.arange(n, dtype=np.int64)
    if basis == "step":
        return knots(n, count)[None], np.ones((1, n))
    at = ((2 * places + 1) * count - n) / (2 * n)
    first = np.floor(at).astype(np.int64)
    f = at - first
    if basis == "linear":
        pieces = [1 - f, f]
    else:
        first = first - 1
        pieces = [
            (1 - f) ** 3 / 6,
            (3 * f**3 - 6 * f**2 + 4) / 6,
            (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6,
            f**3 / 6,
        ]
    taps = min(len(pieces), count)
    start = np.clip(first, 0, count - taps)
    weight = np.zeros((taps, n))
    for step, piece in enumerate(pieces):
        place = first + step
        inside = np.clip(place, 0, count - 1)
        beyond = (place - inside) * (count > 1)  # the line through the last two coefficients
        np.add.at(weight, (inside - start, places), piece * (1 + np.abs(beyond)))
        np.add.at(
            weight,
            (np.clip(inside - np.sign(beyond), 0, count - 1) - start, places),
            -piece * np.abs(beyond),
        )
    return start + np.arange(taps)[:, None], weight


def spline_matrix(count: int, n: int, basis: str) -> np.ndarray:
    """(count, n): the same as a matrix, whose columns sum to one.

    Example:
        >>> from jaxcompress.arrays.spline import spline_matrix
        >>> spline_matrix(2, 4, "step").astype(int).tolist()
        [[1, 1, 0, 0], [0, 0, 1, 1]]
    """
    matrix = np.zeros((count, n))
    for index, weight in zip(*spline(count, n, basis), strict=True):
        np.add.at(matrix, (index, np.arange(n)), weight)
    return matrix


def as_function(kernel: jax.Array) -> jax.Array:
    """One matrix as one function of one variable, by which a dense layer is one convolution.

    The function f has one period of n values for each of the m inputs, the values of the n features
    interlaced; within a period the features run backwards, since XLA's convolution does not flip
    its kernel. The inputs are spaced out by the feature count (`lhs_dilation`) and slide over f
    from n - 1 places before to n - 1 places after full overlap. The n results are `x @ kernel`, for
    `W[i, j] = f(s i + n - 1 - j)` with the spacing s = n. Four forms of a dense layer are four
    choices of the spacing and of f:

    - **Dense**: s = n, and f has m n values. No two inputs share a value.
    - **Hashed**: f is wrapped round a circle of K values, `f(t) = table[t mod K]`, so that inputs
      share. With the inputs at seeded places h1(i) of the circle instead of s i, and the outputs
      read at seeded places h2(j), each with a sign, it is `jc.hashed(layout="circular")`: a count
      sketch of the inputs, correlated with the table.
    - **Coarsened**: f is sampled at q places a period, with a step, hat or spline between them:
      `jc.spline(q / n)`. Along the hidden axis itself, in all kernels at once, the same is
      `jc.coarsen`, and its inverse `jc.refine`.
    - **Toeplitz**: s = 1, the inputs are not spaced out at all. f has m + n - 1 values, and a
      window is an f that is zero outside of it: `jc.toeplitz`, an ordinary convolution.

    So sharing by translation, sharing by chance and sharing by smoothness differ in where the
    inputs lie on the function's axis, whether it closes to a circle, and how finely it is sampled.

    Args:
        kernel: (m, n).

    Returns:
        (m * n,): the function's values.

    Raises:
        ValueError: when the kernel is not a matrix.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> kernel = jnp.arange(6.0).reshape(3, 2)
        >>> x, f = jnp.array([[1.0, 2.0, 3.0]]), jc.as_function(kernel)
        >>> given = x[:, None], f[None, None], (1,), [(1, 1)]
        >>> jax.lax.conv_general_dilated(*given, lhs_dilation=(2,))[:, 0]
        Array([[16., 22.]], dtype=float32)
        >>> x @ kernel
        Array([[16., 22.]], dtype=float32)
    """
    if not is_array(kernel) or jnp.ndim(kernel) != 2:
        raise ValueError(f"as_function expects a matrix (inputs, features), got {shown(kernel)}")
    return jnp.flip(jnp.asarray(kernel), axis=1).reshape(-1)
