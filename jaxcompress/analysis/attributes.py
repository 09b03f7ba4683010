"""What learned features look like, and how many examples they are learned from.

Designed features assume that neighbouring inputs are alike; learned ones have to take that from the
examples. `mean_frequency` measures how smooth features are, `overlap` how much of one set lies in
the span of another, `sample_efficiency` the errors of training on fewer and fewer examples.

Sources: Denil et al. 2013 (arXiv:1306.0543) for designed dictionaries; Bjoerck and Golub 1973 for
principal angles.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import scipy.fft
import scipy.linalg
from jaxtyping import Float
from tqdm.auto import tqdm

from jaxcompress.arrays.atoms import check_grid
from jaxcompress.arrays.base import CompactArray, materialize
from jaxcompress.checks import array, checked, finite_number, function, shown, whole
from jaxcompress.checks import sizes as sizes_kind

Features = CompactArray | Float[jax.Array, "m k"] | Float[np.ndarray, "m k"]


def mean_frequency(atoms: Features, grid: Sequence[int]) -> Float[np.ndarray, " k"]:
    """The mean frequency of each atom's power, as a fraction of the highest frequency.

    Args:
        atoms: (m, k), dense or compact.
        grid: the sizes of the axes that the inputs lie on; their product is m.

    Returns:
        (k,) numbers between 0 and 1: 0 for a constant, about half for white noise.

    Raises:
        ValueError: when the grid does not fit.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.analysis import mean_frequency
        >>> alternating = np.indices((8, 8)).sum(0) % 2 - 0.5
        >>> atoms = np.stack([np.ones(64), alternating.ravel()], axis=1)
        >>> mean_frequency(atoms, (8, 8)).round(2).tolist()
        [0.0, 0.93]
    """
    dense = array("mean_frequency: atoms", materialize(atoms), 2).astype(np.float64)
    check_grid(grid, len(dense), "the atoms have")
    cosines = scipy.fft.dctn(dense.reshape(*grid, -1), axes=range(len(grid)), norm="ortho")
    power = np.square(np.asarray(cosines)).reshape(len(dense), -1)
    fractions = (np.arange(size) / max(size - 1, 1) for size in grid)
    frequencies = np.square(np.stack(np.meshgrid(*fractions, indexing="ij")))
    frequency = np.sqrt(np.mean(frequencies, axis=0)).ravel()
    return frequency @ power / np.maximum(power.sum(0), np.finfo(np.float64).tiny)


def overlap(atoms: Features, others: Features) -> float:
    """The mean squared cosine of the principal angles between the spans of two sets of features.

    Args:
        atoms: (m, k) features.
        others: (m, l) features.

    Returns:
        1 when the smaller span lies in the larger, max(k, l) / m on average for random ones.

    Raises:
        ValueError: when one of them spans nothing.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.analysis import overlap
        >>> overlap(np.eye(8)[:, :2], np.eye(8)[:, 1:4])
        0.5
    """
    given = [array("overlap: features", materialize(part), 2) for part in (atoms, others)]
    if len(given[0]) != len(given[1]):
        raise ValueError(
            f"overlap: both sets need features of the same inputs, got {len(given[0])} and "
            f"{len(given[1])}"
        )
    first, second = map(scipy.linalg.orth, given)
    if not first.size or not second.size:
        raise ValueError("overlap: features of zeros span nothing")
    cosines = np.linalg.svd(first.T @ second, compute_uv=False)
    return round(float(np.mean(cosines**2)), 12)


@dataclasses.dataclass(frozen=True)
class SampleEfficiency:
    """Errors of training on different numbers of examples.

    Attributes:
        sizes: the numbers of examples.
        train: the error on those examples, for each seed.
        test: the error on others.
    """

    sizes: tuple[int, ...]
    train: Float[np.ndarray, "sizes seeds"]
    test: Float[np.ndarray, "sizes seeds"]

    @property
    def gap(self) -> Float[np.ndarray, " sizes"]:
        """The generalization gap: test error minus training error, the mean over the seeds."""
        return (self.test - self.train).mean(1)


def _errors(result: tuple[float, float]) -> tuple[float, float]:
    """The errors that one run gave."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise ValueError(
            f"sample_efficiency: train must give (training error, test error), got {shown(result)}"
        )
    on_train, on_test = (finite_number("sample_efficiency: train", part) for part in result)
    return on_train, on_test


@checked(
    train=function("train(examples, seed) -> (training error, test error)"),
    sizes=sizes_kind,
    seeds=whole(),
)
def sample_efficiency(
    train: Callable[[int, int], tuple[float, float]], sizes: Sequence[int], *, seeds: int = 3
) -> SampleEfficiency:
    """Train on each number of examples, once for every seed.

    Args:
        train: `train(examples, seed) -> (training error, test error)`.
        sizes: the numbers of examples.
        seeds: the number of runs for each of them.

    Returns:
        The errors; `jc.plots.sample_efficiency` draws them.

    Example:
        >>> from jaxcompress.analysis import sample_efficiency
        >>> def train(examples, seed):
        ...     return 0.0, 1 / examples
        >>> curve = sample_efficiency(train, (100, 10), seeds=2)
        >>> curve.gap.tolist()
        [0.01, 0.1]
    """
    runs = list(itertools.product(sizes, range(seeds)))
    bar = tqdm(runs, desc="learning curve", leave=False, disable=None)
    errors = np.array([_errors(train(size, seed)) for size, seed in bar])
    on_train, on_test = errors.reshape(len(sizes), seeds, 2).transpose(2, 0, 1)
    return SampleEfficiency(tuple(sizes), on_train, on_test)
