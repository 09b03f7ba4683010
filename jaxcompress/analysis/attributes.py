"""Why a network does not simply find its attributes: what learned atoms look like, and what they need to be learned from.

A vocabulary of features is designed, and then knows before any example that neighbouring pixels are alike; or it is learned, and
has to find that in the examples. `mean_frequency` says at which frequencies atoms have their power, `shrinking` what training with fewer
and fewer examples does to the error and to its gap between seen and unseen ones, `overlap` how much of one set of features another
one has.

Source: Denil et al. 2013 (arXiv:1306.0543) for designed dictionaries; principal angles, Bjoerck and Golub 1973.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.fft
import scipy.linalg
from tqdm.auto import tqdm

from jaxcompress.arrays.atoms import check_grid
from jaxcompress.arrays.base import materialize


def mean_frequency(atoms: Any, grid: Sequence[int]) -> np.ndarray:
    """The mean frequency of each atom's power, as a share of the highest: 0 for a constant, about half for white noise.

    Args:
        atoms: (m, k), dense or compact.
        grid: the sizes of the axes that the inputs lie on; their product is m.

    Returns:
        (k,) numbers between 0 and 1.

    Raises:
        ValueError: when the grid does not fit.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.analysis.attributes import mean_frequency
        >>> alternating = np.indices((8, 8)).sum(0) % 2 - 0.5
        >>> mean_frequency(np.stack([np.ones(64), alternating.ravel()], axis=1), (8, 8)).round(2).tolist()
        [0.0, 0.93]
    """
    dense = np.asarray(materialize(atoms), np.float64)
    check_grid(grid, len(dense), "the atoms have")
    power = np.square(
        np.asarray(scipy.fft.dctn(dense.reshape(*grid, -1), axes=range(len(grid)), norm="ortho"))
    )
    shares = np.meshgrid(*(np.arange(size) / max(size - 1, 1) for size in grid), indexing="ij")
    frequency = np.sqrt(np.mean(np.square(shares), axis=0)).ravel()
    power = power.reshape(len(dense), -1)
    return frequency @ power / np.maximum(power.sum(0), np.finfo(np.float64).tiny)


def overlap(atoms: Any, others: Any) -> float:
    """How much of one set of features lies in the span of another: the mean squared cosine of the principal angles.

    Args:
        atoms: (m, k) features.
        others: (m, l) features.

    Returns:
        1 when the smaller span lies in the larger, max(k, l) / m on average for random ones.

    Raises:
        ValueError: when one of them spans nothing.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.analysis.attributes import overlap
        >>> overlap(np.eye(8)[:, :2], np.eye(8)[:, 1:4])
        0.5
    """
    first, second = (scipy.linalg.orth(np.asarray(materialize(each))) for each in (atoms, others))
    if not first.size or not second.size:
        raise ValueError("overlap: features of zeros span nothing")
    cosines = np.linalg.svd(first.T @ second, compute_uv=False)
    return round(float(np.mean(cosines**2)), 12)


@dataclasses.dataclass(frozen=True)
class Shrinking:
    """Errors of training with fewer and fewer examples.

    Attributes:
        sizes: how many examples there were.
        seen: (sizes, seeds) the error on them.
        unseen: (sizes, seeds) the error on others.
    """

    sizes: tuple[int, ...]
    seen: np.ndarray
    unseen: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """(sizes,) how much worse the unseen are, the mean over the seeds."""
        return (self.unseen - self.seen).mean(1)


def shrinking(
    train: Callable[[int, int], tuple[float, float]], sizes: Sequence[int], *, seeds: int = 3
) -> Shrinking:
    """Train with each number of examples, some times.

    Args:
        train: `train(examples, seed) -> (error on the seen, error on the unseen)`.
        sizes: how many examples.
        seeds: how often.

    Example:
        >>> from jaxcompress.analysis.attributes import shrinking
        >>> found = shrinking(lambda examples, seed: (0.0, 1 / examples), (100, 10), seeds=2)
        >>> found.gap.tolist()
        [0.01, 0.1]
    """
    runs = [(size, seed) for size in sizes for seed in range(seeds)]
    errors = np.array(
        [
            train(size, seed)
            for size, seed in tqdm(runs, desc="shrinking", leave=False, disable=None)
        ]
    )
    seen, unseen = errors.reshape(len(sizes), seeds, 2).transpose(2, 0, 1)
    return Shrinking(tuple(sizes), seen, unseen)
