"""The vocabulary as a transform: how many atoms a budget allows, which they are, and what codes of few look-ups choose.

Designed atoms are free, so that all numbers go into codes; atoms that are learned or given are stored beside them. With look-ups
the codes have one size, and what is left goes into atoms.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxcompress.arrays.atoms import DesignedAtoms, check_grid, check_rule
from jaxcompress.arrays.base import materialize
from jaxcompress.arrays.permutation import leaf_seed
from jaxcompress.arrays.vocabulary import VocabularyArray
from jaxcompress.checks import whole_number, whole_numbers
from jaxcompress.transforms.forms import whole_units
from jaxcompress.transforms.leafwise import LeafTransform
from jaxcompress.transforms.options import Keep, check_keep, check_matrix_axes
from jaxcompress.transforms.settings import ArraySetting
from jaxcompress.transforms.weights import Unreachable, squared

ROUNDS = 20
"""In which atoms and look-ups are learned in turns."""


@dataclasses.dataclass(frozen=True, repr=False)
class Vocabulary(LeafTransform):
    """See `vocabulary`."""

    keep: Any
    atoms: Any = "dct"
    grid: tuple[int, ...] | None = None
    lookups: int | None = None
    seed: int = 0
    matrix_axes: Any = None
    channels: int = 1

    @property
    def designed(self) -> bool:
        """Whether the atoms are recomputed, and store nothing."""
        return callable(self.atoms) or (isinstance(self.atoms, str) and self.atoms != "learned")

    def unit(self, m: int, n: int) -> int:
        codes = n * self.channels if self.lookups is None else 0
        return codes if self.designed and codes else codes + m

    def fit(
        self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str
    ) -> VocabularyArray | None:
        m, n = matrix.shape[-2:]
        if self.designed:
            return VocabularyArray.fit(
                matrix,
                self.designed_atoms(m, n, numbers, name),
                metric=metric,
                lookups=self.lookups,
            )
        learned = isinstance(self.atoms, str)
        if learned and self.lookups is None and numbers == m * n:
            return None  # enough atoms to be exact, with their codes, are more numbers than the matrix has
        if not learned and (len(self.atoms.shape) != 2 or self.atoms.shape[0] != m):
            raise ValueError(
                f"atoms: the given matrix has shape {self.atoms.shape}, expected ({m}, atoms): a row for each input"
            )
        what = "one learned atom with its codes" if learned else "one given atom with its codes"
        count = (
            whole_units(numbers, m + n, what)
            if self.lookups is None
            else self.beside_lookups(m, n, numbers) // m
        )
        if not learned:
            return VocabularyArray.fit(
                matrix, self.atoms.values[:, :count], metric=metric, lookups=self.lookups
            )
        if self.lookups is None:
            return VocabularyArray.fit(
                matrix, learned_atoms(matrix, metric, min(count, m)), metric=metric
            )
        return learned_in_turns(matrix, metric, count, self.lookups, leaf_seed(self.seed, name))

    def designed_atoms(self, m: int, n: int, numbers: int, name: str) -> DesignedAtoms:
        """As many designed atoms as the budget allows the codes of, and all where each column looks up a few."""
        channels = self.channels
        if m % channels:
            raise ValueError(f"channels={channels} does not divide the {m} inputs of the matrix")
        grid = (m // channels,) if self.grid is None else self.grid
        check_grid(grid, m, "the matrix has", channels)
        there = check_rule(self.atoms, grid) * channels
        if self.lookups is None:
            count = min(whole_units(numbers, n * channels, "one atom's codes") * channels, there)
        else:
            self.beside_lookups(0, n, numbers)
            count = there
            if self.lookups > count:
                raise ValueError(
                    f"lookups={self.lookups} is more than the {count} atoms that there are"
                )
        seed = leaf_seed(self.seed, name) if self.atoms == "random" else 0
        return DesignedAtoms(
            self.atoms, grid=grid, count=count, seed=seed, channels=channels, dims=(m, count)
        )

    def beside_lookups(self, m: int, n: int, numbers: int) -> int:
        """The numbers that are left for atoms of m numbers beside codes of look-ups."""
        assert self.lookups is not None
        least = self.lookups * (2 * n + m)
        if least > numbers:
            what = f"{self.lookups} look-ups a column" + (" and as many atoms" if m else "")
            raise Unreachable(least, f"{what} take {least} numbers, and keep allows {numbers}")
        return numbers - 2 * self.lookups * n


def vocabulary(
    keep: Keep,
    *,
    atoms: Any = "dct",
    grid: tuple[int, ...] | None = None,
    channels: int = 1,
    lookups: int | None = None,
    seed: int = 0,
    matrix_axes: Any = None,
) -> LeafTransform:
    """Write each weight as features of its inputs times codes: `W = atoms @ codes`.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], a mapping from patterns to fractions, or `jc.budget(total)`.
        atoms: "dct" (cosines, low frequencies first), "smooth" (ridge predictions from the weights at evenly spread points),
            "random" (seeded, orthonormal), all recomputed and free to store; "learned" (principal directions of the inputs when
            moments are given, else of the weight; with look-ups, fitted in turns with them), stored; a matrix (inputs, atoms),
            stored, of which the first columns are used; or a function from the grid's coordinates, float32 (inputs, axes), to
            such a matrix, recomputed.
        grid: the sizes of the axes that the inputs lie on, such as (28, 28); one axis by default.
        channels: how many inputs without an order stand interlaced at each point of the grid, such as colours or the channels of a
            convolution: designed atoms are then made for each channel alone.
        lookups: how many atoms each column is made of, chosen among all; their indices are stored and counted. By default each
            column is a mixture of all atoms, and `keep` says how many there are.
        seed: for "random", and for where learned atoms with look-ups start.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out) for two by default.

    Returns:
        A transform to trees with `VocabularyArray` nodes (Denil et al. 2013, arXiv:1306.0543; look-ups, Bagherinezhad et al. 2017,
        arXiv:1611.06473).

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.vocabulary(keep=1/4, grid=(4, 4))(jnp.ones((16, 10)))
        VocabularyArray((16, 10) float32, 4 dct atoms on 4x4, 40 stored = 1/4)
        >>> jc.vocabulary(keep=1/4, grid=(4, 4), lookups=1)(jnp.ones((16, 10)))
        VocabularyArray((16, 10) float32, 16 dct atoms on 4x4, codes of 1 entry a column, 20 stored = 1/8)
    """
    if isinstance(atoms, str) and atoms != "learned":
        check_rule(atoms, (1,))
    if not callable(atoms) and not isinstance(atoms, str):
        atoms = ArraySetting(np.asarray(atoms))
    if grid is not None:
        grid = whole_numbers("grid", grid, None)
    lookups = None if lookups is None else whole_number("lookups", lookups)
    channels = whole_number("channels", channels)
    form = Vocabulary(
        check_keep(keep), atoms, grid, lookups, seed, check_matrix_axes(matrix_axes), channels
    )
    if channels > 1 and not form.designed:
        raise ValueError(
            f"channels={channels} says how designed atoms are made; learned and given ones are what they are"
        )
    return form


def learned_atoms(matrix: np.ndarray, metric: np.ndarray | None, count: int) -> np.ndarray:
    """Orthonormal features of the inputs: of the data when their moments are known, else of the weight."""
    source = np.asarray(matrix, np.float64)
    if (
        metric is not None and metric.ndim == 1
    ):  # the inputs of a look-up have no directions: the weight's, each row as often as read
        root = np.sqrt(np.maximum(metric, 1e-10 * metric.max()))[:, None]
        vectors = np.linalg.qr(
            np.linalg.svd(root * source, full_matrices=False)[0][..., :count] / root
        )[0]
    else:
        gram = (
            source @ source.mT
            if metric is None
            else np.broadcast_to(metric, (*matrix.shape[:-2], *metric.shape[-2:]))
        )
        vectors = np.linalg.eigh(gram)[1][..., ::-1][..., :count]
    # a sign convention, so that equal weights give equal atoms everywhere
    peak = np.take_along_axis(vectors, np.abs(vectors).argmax(-2, keepdims=True), -2)
    return vectors * np.where(peak < 0, -1, 1)


def learned_in_turns(
    matrix: np.ndarray, metric: np.ndarray | None, count: int, lookups: int, seed: int
) -> VocabularyArray:
    """Atoms and look-ups that fit each other: codes by matching pursuit, then the atoms with the least error under them, in turns.

    Source: the method of optimal directions, Engan et al. 1999. It starts from columns of the matrix; atoms that are in no use, or
    that say what another says, become the columns that are fitted worst.
    """
    n = matrix.shape[-1]
    target = np.asarray(matrix, np.float64)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(n)[:count]
    atoms = target[..., chosen]
    if count > n:  # more atoms than columns: any directions beside them
        more = rng.standard_normal((*target.shape[:-1], count - n)) * np.sqrt(np.mean(target**2))
        atoms = np.concatenate([atoms, more], axis=-1)
    best, least = None, np.inf
    for _ in range(ROUNDS):
        found = VocabularyArray.fit(
            matrix, atoms.astype(np.float32), metric=metric, lookups=lookups
        )
        gap = target - np.asarray(materialize(found), np.float64)
        if (error := squared(gap, metric)) < least:
            best, least = found, error
        codes = np.asarray(materialize(found.codes), np.float64)
        atoms = (target @ codes.mT) @ np.linalg.pinv(codes @ codes.mT, hermitian=True)
        flat = atoms.reshape(-1, count)
        flat = flat / np.maximum(np.linalg.norm(flat, axis=0), 1e-300)
        again = np.triu(np.abs(flat.T @ flat) > 0.99, 1).any(0)
        idle = np.flatnonzero(again | ~np.any(codes != 0, axis=(-1, *range(codes.ndim - 2))))
        worst = np.sum(gap**2, axis=tuple(range(gap.ndim - 1))).argsort()[::-1][: len(idle)]
        atoms[..., idle[: len(worst)]] = target[..., worst]
    assert best is not None
    return best
