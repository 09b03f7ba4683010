"""The vocabulary as a transform: which atoms, how many, and codes that mix all or look up a few.

`W = atoms @ codes`. Designed atoms are recomputed and store nothing, so that all numbers go into
codes; learned and given ones are stored. With look-ups the size of the codes is fixed, and the
remaining numbers go into atoms.

Source: Denil et al. 2013 (arXiv:1306.0543); look-ups, Bagherinezhad et al. 2017 (arXiv:1611.06473).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxcompress.arrays.atoms import DesignedAtoms, check_grid, check_rule
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.permutation import leaf_seed
from jaxcompress.arrays.vocabulary import VocabularyArray
from jaxcompress.checks import array, checked, seeds, whole, whole_numbers
from jaxcompress.transforms.base import InputMetric
from jaxcompress.transforms.budget import Budget
from jaxcompress.transforms.dictionary_learning import learned_in_turns, principal_atoms
from jaxcompress.transforms.leafwise import LeafTransform
from jaxcompress.transforms.options import (
    Keep,
    PerPattern,
    Roles,
    check_keep,
    check_matrix_axes,
)
from jaxcompress.transforms.settings import ArraySetting
from jaxcompress.transforms.weights import Unreachable, whole_units

Atoms = str | Callable[[jax.Array], jax.Array]
"""The name of a rule, or a function of the grid's coordinates."""


@dataclasses.dataclass(frozen=True, repr=False)
class Vocabulary(LeafTransform):
    """See `vocabulary`."""

    keep: PerPattern[float] | Budget
    atoms: Atoms | ArraySetting = "dct"
    grid: tuple[int, ...] | None = None
    lookups: int | None = None
    seed: int = 0
    matrix_axes: PerPattern[MatrixAxes | None] = None
    channels: int = 1

    @property
    def designed(self) -> bool:
        """Whether the atoms are recomputed, and store nothing."""
        return callable(self.atoms) or (isinstance(self.atoms, str) and self.atoms != "learned")

    def unit(self, m: int, n: int) -> int:
        """The codes of one atom, and the atom where it is stored."""
        # look-ups store indices, whose count does not depend on the number of atoms
        codes = n * self.channels if self.lookups is None else 0
        return codes if self.designed and codes else codes + m

    def fit(
        self, matrix: Float[np.ndarray, "*lead m n"], numbers: int, metric: InputMetric, name: str
    ) -> VocabularyArray | None:
        """Designed, given or learned atoms, and the codes that fit best."""
        if isinstance(self.atoms, ArraySetting):
            return self._fit_given(matrix, numbers, metric, self.atoms.values)
        if self.atoms == "learned":
            return self._fit_learned(matrix, numbers, metric, name)
        m, n = matrix.shape[-2:]
        atoms = self._designed_atoms(m, n, numbers, name)
        return VocabularyArray.fit(matrix, atoms, metric=metric, lookups=self.lookups)

    def _fit_given(
        self,
        matrix: Float[np.ndarray, "*lead m n"],
        numbers: int,
        metric: InputMetric,
        atoms: np.ndarray,
    ) -> VocabularyArray:
        """The first of the given atoms."""
        m, n = matrix.shape[-2:]
        if atoms.ndim != 2 or atoms.shape[0] != m:
            raise ValueError(
                f"atoms: the given matrix has shape {atoms.shape}, expected ({m}, atoms): a row "
                "for each input"
            )
        count = self._stored_atoms(m, n, numbers, "one given atom with its codes")
        return VocabularyArray.fit(matrix, atoms[:, :count], metric=metric, lookups=self.lookups)

    def _fit_learned(
        self, matrix: Float[np.ndarray, "*lead m n"], numbers: int, metric: InputMetric, name: str
    ) -> VocabularyArray | None:
        """Principal directions, or with look-ups atoms learned in turns with them."""
        m, n = matrix.shape[-2:]
        if self.lookups is None and numbers == m * n:
            return None  # an exact fit stores more numbers than the matrix
        count = self._stored_atoms(m, n, numbers, "one learned atom with its codes")
        if self.lookups is None:
            atoms = principal_atoms(matrix, metric, min(count, m))
            return VocabularyArray.fit(matrix, atoms, metric=metric)
        return learned_in_turns(matrix, metric, count, self.lookups, leaf_seed(self.seed, name))

    def _stored_atoms(self, m: int, n: int, numbers: int, what: str) -> int:
        """How many atoms of m numbers fit beside their codes."""
        if self.lookups is None:
            return whole_units(numbers, m + n, what)
        return self._beside_lookups(m, n, numbers) // m

    def _designed_atoms(self, m: int, n: int, numbers: int, name: str) -> DesignedAtoms:
        """The atoms whose codes fit; with look-ups, all atoms of the rule."""
        assert not isinstance(self.atoms, ArraySetting)
        channels = self.channels
        if m % channels:
            raise ValueError(f"channels={channels} does not divide the {m} inputs of the matrix")
        grid = (m // channels,) if self.grid is None else self.grid
        check_grid(grid, m, "the matrix has", channels)
        count = check_rule(self.atoms, grid) * channels
        if self.lookups is None:
            codes = whole_units(numbers, n * channels, "one atom's codes")
            count = min(codes * channels, count)
        else:
            self._beside_lookups(0, n, numbers)  # raises where the look-ups alone cost too much
            if self.lookups > count:
                raise ValueError(
                    f"lookups={self.lookups} is more than the {count} atoms that there are"
                )
        seed = leaf_seed(self.seed, name) if self.atoms == "random" else 0
        return DesignedAtoms(
            self.atoms, grid=grid, count=count, seed=seed, channels=channels, dims=(m, count)
        )

    def _beside_lookups(self, m: int, n: int, numbers: int) -> int:
        """The numbers that remain for atoms of m numbers beside codes of look-ups."""
        assert self.lookups is not None
        # a look-up stores a coefficient and an index; there must be an atom for each
        least = self.lookups * (2 * n + m)
        if least > numbers:
            what = f"{self.lookups} look-ups a column" + (f" and {self.lookups} atoms" if m else "")
            raise Unreachable(least, f"{what} take {least} numbers, and keep allows {numbers}")
        return numbers - 2 * self.lookups * n


@checked(channels=whole(), lookups=whole(), seed=seeds)
def vocabulary(
    keep: Keep,
    *,
    atoms: Atoms | ArrayLike = "dct",
    grid: Sequence[int] | None = None,
    channels: int = 1,
    lookups: int | None = None,
    seed: int = 0,
    matrix_axes: Roles = None,
) -> LeafTransform:
    """Write each weight as features of its inputs times codes: `W = atoms @ codes`.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], a mapping from patterns to fractions,
            or `jc.budget(total)`.
        atoms: "dct" (cosines, low frequencies first), "smooth" (ridge predictions from the weights
            at evenly spread points), "random" (seeded, orthonormal), all recomputed and free to
            store; "learned" (principal directions of the inputs when moments are given, else of the
            weight; with look-ups, fitted in turns with them), stored; a matrix (inputs, atoms),
            stored, of which the first columns are used; or a function from the grid's coordinates,
            float32 (inputs, axes), to such a matrix, recomputed.
        grid: the sizes of the axes that the inputs lie on, such as (28, 28); one axis by default.
        channels: how many inputs without an order are interlaced at each point of the grid, such
            as colours or the channels of a convolution; each has the designed atoms for itself.
        lookups: how many atoms each column combines, chosen among all; their indices are stored and
            counted. By default each column is a mixture of all atoms, and `keep` decides how many
            there are.
        seed: of "random", and of the start of learned atoms with look-ups.
        matrix_axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out)
            for two by default.

    Returns:
        A transform to trees with `VocabularyArray` nodes (Denil et al. 2013, arXiv:1306.0543;
        look-ups, Bagherinezhad et al. 2017, arXiv:1611.06473).

    Raises:
        ValueError: for a keep outside (0, 1], an unknown rule of atoms, sizes that are no whole
            numbers, or channels of atoms that are not designed.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.vocabulary(keep=1/4, grid=(4, 4))(jnp.ones((16, 10)))
        VocabularyArray((16, 10) float32, 4 dct atoms on 4x4, 40 stored = 1/4)
        >>> jc.vocabulary(keep=1/4, grid=(4, 4), lookups=1)(jnp.ones((16, 10)))
        VocabularyArray((16, 10) float32, 16 dct atoms on 4x4, codes of 1 entry a column, 20 ...)
    """
    if isinstance(atoms, str) and atoms != "learned":
        check_rule(atoms, (1,))
    given: Atoms | ArraySetting
    if isinstance(atoms, str) or callable(atoms):
        given = atoms
    else:
        what = "a name, a function of the grid, or a matrix"
        given = ArraySetting(array("vocabulary: atoms", atoms, 2, what=what))
    form = Vocabulary(
        check_keep(keep),
        given,
        None if grid is None else whole_numbers("grid", grid, None),
        lookups,
        seed,
        check_matrix_axes(matrix_axes),
        channels,
    )
    if form.channels > 1 and not form.designed:
        raise ValueError(
            f"channels={channels} is for designed atoms; learned and given ones have no channels"
        )
    return form
