"""Which channels of an axis to keep, and how the others follow from them: the mathematics, for one axis or one fibre.

The activations h (second moments S) are read by consumers C, whose Gram matrix G = C C' says how much each direction
matters. Selections keep h_S and predict h = h_S T by ridge least squares; rotations keep the best projections. All in
float64 on the host; a selection costs O(r d^2).

Sources: pivoted Cholesky and the interpolative decomposition (Cheng et al. 2005; for networks arXiv:2108.00065), greedy
least-squares selection (Farahat et al. 2013), SVD in the inputs' metric (arXiv:2403.07378), PCA of a residual stream
(SliceGPT, arXiv:2401.15024).
"""

from __future__ import annotations

import numpy as np

RIDGE = 1e-7
"""The ridge of a fold, relative to the mean variance of the kept channels."""


def root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def greedy(moments: np.ndarray, gram: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Channels that together predict what the consumers read best, one at a time.

    Args:
        moments: (d, d) second moments or covariance of the channels.
        gram: (d, d) of the consumers; the identity weighs all channels alike (pivoted QR: the interpolative decomposition).
        size: how many to keep.

    Returns:
        The channels in ascending order, and the squared error that the consumers see.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.transforms.selection import greedy
        >>> twins = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]])
        >>> chosen, error = greedy(twins, np.eye(3), 2)
        >>> chosen.tolist(), round(error, 6)
        ([0, 2], 0.0)
    """
    rest = np.array(moments, np.float64)
    seen = rest @ root(gram)  # what is left, as the consumers see it
    start = np.diag(rest).copy()
    floor = 1e-12 * max(start.max(initial=0), np.finfo(np.float64).tiny)
    chosen: list[int] = []
    free = np.ones(len(rest), bool)
    for _ in range(size):
        spread = np.diag(rest)
        usable = free & (spread > np.maximum(floor, 1e-10 * start))
        if not usable.any():
            break
        gains = np.where(usable, np.einsum("ij,ij->i", seen, seen) / np.maximum(spread, floor), -1)
        best = int(gains.argmax())
        if gains[best] <= 0:  # nothing that is left is read: any channel with some variance
            best = int(np.where(usable, spread, -1).argmax())
        column = rest[:, best] / spread[best]
        seen = seen - np.outer(column, seen[best])
        rest = rest - np.outer(column, rest[best])
        chosen.append(best)
        free[best] = False
    # channels without any variance of their own fill the rest, in order
    chosen += np.flatnonzero(free)[: size - len(chosen)].tolist()
    return np.sort(np.array(chosen)), float(max(np.sum(rest * gram), 0))


def select(moments: np.ndarray, gram: np.ndarray, size: int) -> np.ndarray:
    """The better of two searches: weighed by the consumers, and the plain interpolative decomposition."""
    tries = []
    for weights in (gram, np.eye(len(gram))):
        chosen, _ = greedy(moments, weights, size)
        fold = predict(moments, chosen)
        gap = np.eye(len(gram)) - embed(chosen, len(gram)) @ fold
        tries.append((float(np.sum((gap.T @ moments @ gap) * gram)), chosen))
    return min(tries, key=lambda each: each[0])[1]


def embed(chosen: np.ndarray, size: int) -> np.ndarray:
    """(d, r): the selection as a matrix."""
    return np.eye(size)[:, chosen]


def predict(moments: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(r, d): all channels from the kept ones, by ridge least squares; the kept ones from themselves alone."""
    kept = moments[np.ix_(chosen, chosen)]
    ridge = RIDGE * np.trace(kept) / max(len(chosen), 1) + np.finfo(np.float64).tiny
    fold = np.linalg.solve(kept + ridge * np.eye(len(chosen)), moments[chosen])
    fold[:, chosen] = np.eye(len(chosen))
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
    return np.linalg.pinv(first, rcond=1e-7) @ (u * share), np.linalg.pinv(second, rcond=1e-7) @ (vt.T * share)
