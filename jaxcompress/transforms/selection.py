"""Which channels of an axis to keep, and how the others follow from them: the mathematics, for one axis or one fibre.

The activations h (second moments S) are read by consumers C, whose Gram matrix G = C C' says how much each direction
matters. Selections keep h_S and predict h = h_S T by ridge least squares; rotations keep the best projections. All in
float64 on the host; a selection costs O(r m^2) for m inputs of a consumer.

Sources: pivoted Cholesky and the interpolative decomposition (Cheng et al. 2005; for networks arXiv:2108.00065), greedy
least-squares selection (Farahat et al. 2013), SVD in the inputs' metric (arXiv:2403.07378), PCA of a residual stream
(SliceGPT, arXiv:2401.15024).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

RIDGE = 1e-7
"""The ridge of a fold, relative to the mean variance of the kept channels."""
RIDGED = 1e-9
"""The ridge of a block of inputs that are one channel, relative to its mean variance."""
SHRINK = 0.1
"""How strongly a fit is held to what is certain, for each unknown that a measured vector must pay for."""


def root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


@dataclasses.dataclass(frozen=True)
class System:
    """What one consumer reads, and where in it the channels are.

    Attributes:
        moments: (m, m) second moments or covariance of its inputs.
        reader: (m, p) its kernel, or any matrix with the same Gram matrix; None where every input counts for itself, which asks for
            channels that are one input each.
        where: (fibres, d, k) the k inputs that each channel of each fibre is: places in a window, heads, pixels.
    """

    moments: np.ndarray
    reader: np.ndarray | None
    where: np.ndarray


def greedy(systems: Sequence[System], size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Channels that together predict what all consumers read best, one at a time: block-pivoted Cholesky.

    Args:
        systems: a `System` for each consumer, of the same fibres and channels.
        size: how many channels each fibre keeps.

    Returns:
        For each fibre its channels in ascending order, and the squared error that the consumers see with 0, 1, 2, ... of them.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.transforms.selection import System, greedy
        >>> twins = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]])
        >>> chosen, errors = greedy([System(twins, np.eye(3), np.arange(3).reshape(1, 3, 1))], 2)
        >>> chosen[0].tolist(), errors.round(6).tolist()
        ([0, 2], [2.5, 0.5, 0.0])
    """
    fibres, d, _ = systems[0].where.shape
    parts = [Remainder(system, fibres * d) for system in systems]
    start = np.sum([part.spread() for part in parts], axis=0)
    free = np.ones((fibres, d), bool)
    left = np.full(fibres, size)
    errors = [sum(part.error for part in parts)]
    while left.any():
        spread = np.sum([part.spread() for part in parts], axis=0)
        usable = (
            free & (spread > 1e-10 * np.maximum(start, start.max() * 1e-2)) & (left > 0)[:, None]
        )
        if not usable.any():
            break
        gains = np.full(usable.shape, -1.0)
        gains[usable] = np.sum([part.gains(usable) for part in parts], axis=0)
        if gains.max() <= 0:  # nothing that is left is read: any channel with some variance
            gains = np.where(usable, spread, -1)
        fibre, channel = map(int, np.unravel_index(int(np.argmax(gains)), gains.shape))
        for part in parts:
            part.explain(fibre, channel)
        free[fibre, channel] = False
        left[fibre] -= 1
        errors.append(sum(part.error for part in parts))
    for fibre in np.flatnonzero(
        left
    ):  # channels without any variance of their own fill the rest, in order
        free[fibre, np.flatnonzero(free[fibre])[: left[fibre]]] = False
    return [np.flatnonzero(~row) for row in free], np.maximum(errors, 0)


class Remainder:
    """What of a consumer's inputs the chosen channels do not explain: `moments - L L'`, of which only what is asked for is formed.

    A channel costs products with L and one update of what is read, `(m, p)`: no matrix of m x m is written.
    """

    def __init__(self, system: System, most: int):
        self.system = system
        self.moments = np.asarray(system.moments, np.float64)
        self.lower = np.zeros((len(self.moments), most * system.where.shape[-1]), order="F")
        self.taken = 0
        self.inner = self.moments[
            system.where[..., :, None], system.where[..., None, :]
        ]  # (fibres, d, k, k) of what is left
        if system.reader is None:
            self.norms = np.sum(self.moments**2, axis=1)
            self.error = float(np.trace(self.moments))
        else:
            self.seen = self.moments @ system.reader  # what is left, as it is read
            self.error = float(np.einsum("ij,ij->", self.seen, system.reader))

    def spread(self) -> np.ndarray:
        """(fibres, d): the variance that is left of each channel."""
        return np.trace(self.inner, axis1=-2, axis2=-1)

    def gains(self, usable: np.ndarray) -> np.ndarray:
        """By how much each usable channel, of a mask (fibres, d), would lower the error: (channels,)."""
        where, inner = self.system.where[usable], self.inner[usable]
        if inner.shape[-1] == 1:
            norms = (
                self.norms
                if self.system.reader is None
                else np.einsum("ip,ip->i", self.seen, self.seen)
            )
            return norms[where[:, 0]] / np.maximum(inner[:, 0, 0], 1e-300)
        read = self.seen[where]  # (channels, k, p)
        return np.einsum("cij,cji->c", _inverse(inner), read @ np.swapaxes(read, -1, -2))

    def explain(self, fibre: int, channel: int) -> None:
        """Take one channel, and from all others what follows from it."""
        block, done = self.system.where[fibre, channel], self.lower[:, : self.taken]
        values, vectors = np.linalg.eigh(
            self.inner[fibre, channel]
        )  # a block may be singular, and negative by rounding
        half = vectors / np.sqrt(
            np.maximum(values, 0) + RIDGED * np.mean(np.maximum(values, 0)) + 1e-300
        )
        column = (self.moments[:, block] - done @ done[block].T) @ half
        if self.system.reader is None:
            self.error -= float(np.sum(column**2))
            across = self.moments @ column - done @ (done.T @ column)
            self.norms += np.sum(column * (column @ (column.T @ column) - 2 * across), axis=1)
        else:
            read = half.T @ self.seen[block]
            self.error -= float(np.sum(read**2))
            self.seen -= column @ read
        each = column[self.system.where]  # (fibres, d, k, k)
        self.inner = self.inner - each @ np.swapaxes(each, -1, -2)
        self.lower[:, self.taken : self.taken + len(block)] = column
        self.taken += len(block)


def _inverse(blocks: np.ndarray) -> np.ndarray:
    """The inverse of small symmetric blocks, ridged so that what was taken already adds nothing."""
    k = blocks.shape[-1]
    scale = np.trace(blocks, axis1=-2, axis2=-1)[..., None, None] / k
    return np.linalg.inv(blocks + (RIDGED * scale + 1e-300) * np.eye(k))


def choose(systems: Sequence[System], size: int) -> list[np.ndarray]:
    """The better of two searches: weighed by what the consumers read, and the plain interpolative decomposition.

    Where a channel is several inputs the second is left out: it costs most there.
    """
    if any(system.where.shape[-1] > 1 for system in systems):
        return greedy(systems, size)[0]
    plain = [dataclasses.replace(system, reader=None) for system in systems]
    tries = [greedy(systems, size)[0], greedy(plain, size)[0]]
    return min(tries, key=lambda chosen: sum(_error(system, chosen) for system in systems))


def _error(system: System, chosen: list[np.ndarray]) -> float:
    """The squared error of a consumer solved anew for some channels."""
    assert system.reader is not None
    fixed = np.setdiff1d(np.arange(len(system.moments)), system.where.ravel())
    kept = np.concatenate(
        [fixed, *(system.where[fibre][channels].ravel() for fibre, channels in enumerate(chosen))]
    )
    inner = system.moments[np.ix_(kept, kept)]
    ridge = (RIDGE * np.trace(inner) / max(len(kept), 1) + 1e-300) * np.eye(len(kept))
    total = np.einsum("ij,ij->", system.reader, system.moments @ system.reader)
    right = system.moments[kept] @ system.reader
    return float(total - np.einsum("ij,ij->", right, np.linalg.solve(inner + ridge, right)))


def embed(chosen: np.ndarray, size: int) -> np.ndarray:
    """(d, r): the selection as a matrix."""
    return np.eye(size)[:, chosen]


def predict(moments: np.ndarray, chosen: np.ndarray, count: float = math.inf) -> np.ndarray:
    """(r, d): all channels from the kept ones, by ridge least squares; the kept ones from themselves alone.

    From few vectors noise is learned as well: the ridge grows with the kept channels over the vectors and with what cannot be
    predicted, and is the whole of `SHRINK` where there are no more vectors than channels.
    """
    r = len(chosen)
    kept, right = moments[np.ix_(chosen, chosen)], moments[chosen]
    scale, tiny = np.trace(kept) / max(r, 1), np.finfo(np.float64).tiny
    solve = lambda ridge: np.linalg.solve(kept + (ridge * scale + tiny) * np.eye(r), right)
    fold = solve(RIDGE)
    if r < len(moments) and math.isfinite(count):
        left = np.trace(moments) - np.einsum("ij,ij->", fold, right)
        unknown = left / max(1 - r / count, 1e-12) / max(np.trace(moments) - np.trace(kept), tiny)
        fold = solve(RIDGE + SHRINK * r / count * min(1.0, max(unknown, 0.0) if count > r else 1.0))
    fold[:, chosen] = np.eye(r)
    return fold


def rotation(moments: np.ndarray, gram: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(d, r) and (r, d): the projection of a given rank whose consumers' outputs change least.

    With S the moments and C C' the Gram matrix, the truncated SVD of `S^(1/2) C`, undone on either side.
    """
    values, vectors = np.linalg.eigh(moments)
    values = np.maximum(values, 0)
    scale = np.sqrt(values)
    alive = scale > 1e-7 * scale.max(initial=0)
    inverse = np.where(alive, 1 / np.where(alive, scale, 1), 0)
    half, back = (vectors * scale) @ vectors.T, (vectors * inverse) @ vectors.T
    directions = top(half @ gram @ half, size)
    return back @ directions, directions.T @ half


def top(matrix: np.ndarray, size: int) -> np.ndarray:
    """The leading eigenvectors, (d, r), with a sign convention so that equal matrices give equal ones."""
    vectors = np.linalg.eigh((matrix + matrix.T) / 2)[1][:, ::-1][:, :size]
    peak = np.take_along_axis(vectors, np.abs(vectors).argmax(0, keepdims=True), 0)
    return vectors * np.where(peak < 0, -1, 1)


def pair_rotation(left: np.ndarray, right: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(d, r) for each side of a product of activations, such that the product changes least at that rank.

    With S and R the sides' second moments, the truncated SVD of `S^(1/2) R^(1/2)`, shared evenly.
    """
    first, second = root(left), root(right)
    u, values, vt = np.linalg.svd(first @ second)
    peak = np.take_along_axis(u, np.abs(u).argmax(0, keepdims=True), 0)
    signs = np.where(peak < 0, -1, 1)[0]
    u, vt = (u * signs)[:, :size], (vt * signs[:, None])[:size]
    share = np.sqrt(values[:size])
    return np.linalg.pinv(first, rcond=1e-7) @ (u * share), np.linalg.pinv(second, rcond=1e-7) @ (
        vt.T * share
    )
