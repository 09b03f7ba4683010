"""Which channels of an axis to keep, and how to predict the others: the mathematics of one axis.

The activations h (second moments S) are consumed by kernels C, whose Gram matrix G = C C' weights
the directions of h. A selection keeps some channels K and predicts `h = h_K T` by ridge least
squares; a rotation keeps the projections that matter most. All in float64 on the host; a selection
of r channels costs O(r m^2) for a consumer of m inputs.

Sources: pivoted Cholesky and the interpolative decomposition (Cheng et al. 2005; for networks
arXiv:2108.00065), greedy least-squares selection (Farahat et al. 2013), SVD in the inputs' metric
(arXiv:2403.07378), PCA of a residual stream (SliceGPT, arXiv:2401.15024).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcompress.arrays.projection import ridge_solve
from jaxcompress.arrays.signs import fix_signs, peak_signs

RIDGE = 3e-7
"""The ridge of a fold, relative to the variance of each kept channel."""
EXPLAINED = 1e-9
"""The share of a variance below which its remainder is rounding: moments are summed in float32."""
NOISE = 1e-6
"""The share of a variance that moments, summed in float32, may be wrong by."""
SHRINK = 0.1
"""The ridge towards a prior, as the one of a fold, times unknowns per measured vector."""


def units_of(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, " d"]:
    """A power of two near the root of each diagonal entry, in which a matrix is equilibrated."""
    power = np.diag(matrix)
    seen = power > 0
    return np.where(seen, np.exp2(np.round(np.log2(np.where(seen, power, 1)) / 2)), 1.0)


def root(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def factor_of(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """A matrix F with `F F'` a positive semi-definite one, each row to its own accuracy."""
    units = units_of(matrix)
    return units[:, None] * root(matrix / units / units[:, None])


@dataclasses.dataclass(frozen=True)
class System:
    """The inputs of one consumer, its kernel, and the inputs that belong to each channel.

    Attributes:
        moments: second moments or covariance of the inputs.
        kernel: the kernel, or any matrix with the same Gram matrix; None for the identity, which
            requires channels of one input each.
        where: the k inputs of each channel of each fibre: positions in a window, heads, pixels.
    """

    moments: Float[np.ndarray, "m m"]
    kernel: Float[np.ndarray, "m p"] | None
    where: Int[np.ndarray, "fibres d k"]


def greedy(
    systems: Sequence[System], size: int
) -> tuple[list[Int[np.ndarray, " r"]], Float[np.ndarray, " steps"]]:
    """Channels that together best predict the results of all consumers: block-pivoted Cholesky.

    Args:
        systems: a `System` for each consumer, of the same fibres and channels.
        size: the number of channels that each fibre keeps.

    Returns:
        For each fibre its channels in ascending order, and the squared error of the consumers'
        results with 0, 1, 2, ... of all channels.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.transforms.selection import System, greedy
        >>> twins = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]])
        >>> chosen, errors = greedy([System(twins, np.eye(3), np.arange(3).reshape(1, 3, 1))], 2)
        >>> chosen[0].tolist(), errors.round(6).tolist()
        ([0, 2], [2.5, 0.5, 0.0])
    """
    fibres, d, _ = systems[0].where.shape
    remainders = [Remainder(system, fibres * d) for system in systems]
    free = np.ones((fibres, d), bool)
    missing = np.full(fibres, size)
    errors = [sum(part.error for part in remainders)]
    while missing.any():
        unexplained = np.any([part.unexplained for part in remainders], axis=0)
        usable = free & unexplained & (missing > 0)[:, None]
        if not usable.any():
            break
        fibre, channel = _best_channel(remainders, usable)
        for part in remainders:
            part.explain(fibre, channel)
        free[fibre, channel] = False
        missing[fibre] -= 1
        errors.append(sum(part.error for part in remainders))
    # the others are explained already: any of them completes the size
    for fibre in np.flatnonzero(missing):
        free[fibre, np.flatnonzero(free[fibre])[: missing[fibre]]] = False
    return [np.flatnonzero(~row) for row in free], np.maximum(errors, 0)


def _best_channel(
    remainders: Sequence[Remainder], usable: Bool[np.ndarray, "fibres d"]
) -> tuple[int, int]:
    """The fibre and channel that lower the error most; by variance where none lowers it."""
    gains = np.full(usable.shape, -1.0)
    gains[usable] = np.sum([part.gains(usable) for part in remainders], axis=0)
    if gains.max() <= 0:  # the consumers' results are explained already
        variance = np.sum([part.variance() for part in remainders], axis=0)
        gains = np.where(usable, variance, -np.inf)
    fibre, channel = np.unravel_index(int(np.argmax(gains)), gains.shape)
    return int(fibre), int(channel)


class Remainder:
    """The part of a consumer's inputs that the chosen channels do not explain: `S - L L'`.

    It is updated in place, since `S - L L'` is never formed: a channel costs products with L and
    one update of the unexplained results, (m, p). The error is that of the consumer's results.
    """

    def __init__(self, system: System, most: int):
        self.where, self.kernel = system.where, system.kernel
        self.moments = np.asarray(system.moments, np.float64)
        # columns are appended, so they are contiguous
        self.lower = np.zeros((len(self.moments), most * system.where.shape[-1]), order="F")
        self.taken = 0
        # (fibres, d, k, k), the unexplained moments of each channel's own inputs
        self.blocks = self.moments[system.where[..., :, None], system.where[..., None, :]]
        # of one input of each channel, below which its variance is rounding
        self.rounding = EXPLAINED * self.variance() / system.where.shape[-1]
        if system.kernel is None:
            self.norms = np.sum(self.moments**2, axis=1)
            self.error = float(np.trace(self.moments))
        else:
            self.results = self.moments @ system.kernel
            self.error = float(np.einsum("ij,ij->", self.results, system.kernel))

    def variance(self) -> Float[np.ndarray, "fibres d"]:
        """The unexplained variance of each channel."""
        return np.trace(self.blocks, axis1=-2, axis2=-1)

    @property
    def unexplained(self) -> Bool[np.ndarray, "fibres d"]:
        """The channels whose remaining variance is more than rounding."""
        return self.variance() > self.rounding * self.where.shape[-1]

    def gains(self, usable: Bool[np.ndarray, "fibres d"]) -> Float[np.ndarray, " channels"]:
        """The decrease of the error by each usable channel, zero by an explained one."""
        gains = np.zeros(int(usable.sum()))
        alive = self.unexplained[usable]
        where, blocks = self.where[usable][alive], self.blocks[usable][alive]
        if blocks.shape[-1] == 1:
            single = self.kernel is None
            norms = self.norms if single else np.einsum("ip,ip->i", self.results, self.results)
            # of nearly dependent channels the remaining variance is noise, and so would be the gain
            noise = NOISE / EXPLAINED * self.rounding[usable][alive]
            gains[alive] = norms[where[:, 0]] / (blocks[:, 0, 0] + noise)
            return gains
        results = self.results[where]  # (channels, k, p)
        products = results @ np.swapaxes(results, -1, -2)
        rounding = self.rounding[usable][alive, None, None] * np.eye(blocks.shape[-1])
        gains[alive] = np.einsum("cij,cji->c", np.linalg.inv(blocks + rounding), products)
        return gains

    def explain(self, fibre: int, channel: int) -> None:
        """Add one channel to the explaining ones; nothing remains of one that is explained."""
        if not self.unexplained[fibre, channel]:
            return
        inputs, done = self.where[fibre, channel], self.lower[:, : self.taken]
        half = _inverse_root(self.blocks[fibre, channel], self.rounding[fibre, channel])
        column = (self.moments[:, inputs] - done @ done[inputs].T) @ half
        # L gains the column; the error and the gains are updated without forming S - L L'
        if self.kernel is None:
            self.error -= float(np.sum(column**2))
            across = self.moments @ column - done @ (done.T @ column)
            self.norms += np.sum(column * (column @ (column.T @ column) - 2 * across), axis=1)
        else:
            results = half.T @ self.results[inputs]
            self.error -= float(np.sum(results**2))
            self.results -= column @ results
        rows = column[self.where]  # (fibres, d, k, k)
        self.blocks = self.blocks - rows @ np.swapaxes(rows, -1, -2)
        self.lower[:, self.taken : self.taken + len(inputs)] = column
        self.taken += len(inputs)


def _inverse_root(block: Float[np.ndarray, "k k"], rounding: float) -> Float[np.ndarray, "k k"]:
    """A matrix H with `H' block H = 1`, zero where the block is rounding."""
    values, vectors = np.linalg.eigh(block)
    return vectors * np.where(values > rounding, 1 / np.sqrt(np.maximum(values, rounding)), 0)


def choose(systems: Sequence[System], size: int) -> list[Int[np.ndarray, " r"]]:
    """The better of two searches: weighted by the kernels, and plain interpolative decomposition.

    The second is skipped where a channel is several inputs, since it costs most there.
    """
    if any(system.where.shape[-1] > 1 for system in systems):
        return greedy(systems, size)[0]
    plain = [dataclasses.replace(system, kernel=None) for system in systems]
    candidates = [greedy(systems, size)[0], greedy(plain, size)[0]]
    return min(candidates, key=lambda chosen: sum(_error(system, chosen) for system in systems))


def _error(system: System, chosen: Sequence[Int[np.ndarray, " r"]]) -> float:
    """The squared error of a consumer whose kernel is solved anew for some channels."""
    assert system.kernel is not None
    # inputs that belong to other axes are always kept
    others = np.setdiff1d(np.arange(len(system.moments)), system.where.ravel())
    inputs = [system.where[fibre][channels].ravel() for fibre, channels in enumerate(chosen)]
    kept = np.concatenate([others, *inputs])
    inner = system.moments[np.ix_(kept, kept)]
    total = np.einsum("ij,ij->", system.kernel, system.moments @ system.kernel)
    right = system.moments[kept] @ system.kernel
    return float(total - np.einsum("ij,ij->", right, ridge_solve(inner, right, RIDGE)))


def predict(
    moments: Float[np.ndarray, "d d"], chosen: Int[np.ndarray, " r"], count: float = math.inf
) -> Float[np.ndarray, "r d"]:
    """All channels from the kept ones by ridge least squares; kept ones from themselves alone.

    From few vectors noise is fitted as well. The ridge therefore grows with the number of kept
    channels per vector and with the unpredictable share of the others' variance, up to `SHRINK`
    where there are no more vectors than channels.
    """
    r = len(chosen)
    kept, right = moments[np.ix_(chosen, chosen)], moments[chosen]
    fold = ridge_solve(kept, right, RIDGE)
    if r < len(moments) and math.isfinite(count):
        dropped = np.trace(moments) - np.trace(kept)
        remainder = np.trace(moments) - np.einsum("ij,ij->", fold, right)
        share = remainder / (1 - r / count) / dropped if count > r and dropped > 0 else 1.0
        fold = ridge_solve(kept, right, RIDGE + SHRINK * r / count * min(1.0, max(share, 0.0)))
    fold[:, chosen] = np.eye(r)  # the ridge must not shrink the kept channels themselves
    return fold


def predict_from(
    inner: Float[np.ndarray, "r r"],
    cross: Float[np.ndarray, "r d"],
    power: Float[np.ndarray, " d"],
    prior: Float[np.ndarray, "r d"],
    count: float = math.inf,
) -> Float[np.ndarray, "r d"]:
    """All channels from r others by ridge least squares, shrunk to a prior as in `predict`.

    Args:
        inner: the moments of those that predict.
        cross: their moments with the channels that are predicted.
        power: the second moments of the channels that are predicted.
        prior: a prediction that needs no data.
        count: the number of vectors that the moments were measured on.
    """
    r = len(inner)
    fold = ridge_solve(inner, cross, RIDGE, prior)
    if not math.isfinite(count):
        return fold
    share = 1.0
    if count > r:
        before, after = (power - np.sum(t * (2 * cross - inner @ t), axis=0) for t in (prior, fold))
        # each channel in the unit of its own variance, as in the ridge
        units = np.where(power > 0, 1 / np.where(power > 0, power, 1), 0)
        unknown = max(float(before @ units), EXPLAINED)
        share = min(1.0, max(float(after @ units) / unknown / (1 - r / count), 0.0))
    return ridge_solve(inner, cross, RIDGE + SHRINK * r / max(count, 1.0) * share, prior)


def norm_variance(
    kept: Float[np.ndarray, "d d"],
    whole: Float[np.ndarray, "d d"],
    moments: Float[np.ndarray, "d d"],
) -> float:
    """The variance of one norm relative to another, over normally distributed vectors.

    Both are square roots of quadratic forms, scaled so that they agree in the mean.
    """
    powers = [max(float(np.sum(matrix * moments)), 1e-300) for matrix in (kept, whole)]
    product = (kept / powers[0] - whole / powers[1]) @ moments
    return float(np.sum(product * product.T)) / 2  # twice that, and a quarter by the square root


def rotation(
    moments: Float[np.ndarray, "d d"], gram: Float[np.ndarray, "d d"], size: int
) -> tuple[Float[np.ndarray, "d r"], Float[np.ndarray, "r d"]]:
    """The projection of a given rank that changes the consumers' results least, as two factors.

    With S the moments and C C' the Gram matrix, the truncated SVD of `S^(1/2) C`, with `S^(1/2)`
    inverted on either side. Each channel is measured in the unit of its own power.
    """
    units = units_of(moments)
    gram = gram * units * units[:, None]
    values, vectors = np.linalg.eigh(moments / units / units[:, None])
    scale = np.sqrt(np.maximum(values, 0))
    # directions without variance have no inverse, and do not reach the consumers
    alive = scale > 1e-7 * scale.max(initial=0)
    inverse = np.where(alive, 1 / np.where(alive, scale, 1), 0)
    half, back = (vectors * scale) @ vectors.T, (vectors * inverse) @ vectors.T
    directions = top(half @ gram @ half, size)
    return back @ directions / units[:, None], directions.T @ half * units


def orthogonal_rotation(
    moments: Float[np.ndarray, "d d"], gram: Float[np.ndarray, "d d"], size: int
) -> tuple[Float[np.ndarray, "d r"], Float[np.ndarray, "r d"]]:
    """An orthogonal projection of a given rank that changes the consumers' results little.

    The better of two: the leading directions of the moments, and those of their product with the
    Gram matrix of the kernels, made symmetric.
    """

    def lost(directions: np.ndarray) -> float:
        rest = np.eye(len(moments)) - directions @ directions.T
        return float(np.einsum("ij,ji->", rest @ moments @ rest, gram))

    candidates = [top(moments, size), top(moments @ gram, size)]
    directions = min(candidates, key=lost)
    return directions, directions.T


def top(matrix: Float[np.ndarray, "d d"], size: int) -> Float[np.ndarray, "d r"]:
    """The leading eigenvectors of the symmetric part of a matrix, with fixed signs."""
    return fix_signs(np.linalg.eigh((matrix + matrix.T) / 2)[1][:, ::-1][:, :size])


def pair_rotation(
    left: Float[np.ndarray, "d d"], right: Float[np.ndarray, "d d"], size: int
) -> tuple[Float[np.ndarray, "d r"], Float[np.ndarray, "d r"]]:
    """Projections of both sides of a product of activations that change it least at a given rank.

    With S and R the sides' second moments, the truncated SVD of `S^(1/2) R^(1/2)`, its singular
    values shared evenly. Each channel has the same power on both sides, since their product does
    not change where one is divided by what the other is multiplied by.
    """
    units = np.sqrt(units_of(left) / units_of(right))
    units = np.exp2(np.round(np.log2(units)))
    first = root(left / units / units[:, None])
    second = root(right * units * units[:, None])
    u, values, vt = np.linalg.svd(first @ second)
    # one sign for both sides: the product of the two factors must not change
    signs = peak_signs(u)
    share = np.sqrt(values[:size])
    left_factor = (u * signs)[:, :size] * share
    right_factor = (vt.T * signs)[:, :size] * share
    return (
        np.linalg.pinv(first, rcond=1e-7) @ left_factor / units[:, None],
        np.linalg.pinv(second, rcond=1e-7) @ right_factor * units[:, None],
    )
