"""Feature vocabularies: every column of the matrix is a mixture of shared features of the inputs.

`W = atoms @ codes` with atoms (m, k) and codes (k, n). Designed atoms are recomputed and cost
nothing to store: k n numbers; learned or given atoms are stored too: k (m + n). Codes of s look-ups
a column store 2 s n instead of k n numbers. Forward: `(x @ atoms) @ codes`, 2 k (m + n) operations
a row, 2 (k m + s n) with look-ups.

Source: Denil et al. 2013 (arXiv:1306.0543); LCNN, Bagherinezhad et al. 2017 (arXiv:1611.06473).
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxcompress.arrays.atoms import DesignedAtoms
from jaxcompress.arrays.base import CompactArray, is_compact, materialize
from jaxcompress.arrays.device import to_device
from jaxcompress.arrays.lookups import LookupArray
from jaxcompress.arrays.projection import Metric, weigh
from jaxcompress.arrays.registration import compact_array


@compact_array
class VocabularyArray(CompactArray):
    """A matrix written as features (atoms) times mixing coefficients (codes).

    Attributes:
        atoms: (..., m, k): `DesignedAtoms`, or stored numbers.
        codes: (..., k, n), numbers or any compact array, such as `LookupArray`.
    """

    atoms: Float[Array, "*stack m k"] | CompactArray
    codes: Float[Array, "*stack k n"] | CompactArray

    linear_in = "codes"

    def materialize(self) -> jax.Array:
        """Atoms times codes."""
        if isinstance(self.atoms, DesignedAtoms):
            return self.atoms.expand(materialize(self.codes))
        return self._dense_atoms() @ materialize(self.codes)

    def with_dense_children(self) -> VocabularyArray:
        """Atoms that are recomputed stay as they are."""
        atoms = self.atoms if isinstance(self.atoms, DesignedAtoms) else materialize(self.atoms)
        return dataclasses.replace(self, atoms=atoms, codes=materialize(self.codes))

    def multiply(self, x: jax.Array) -> jax.Array:
        """First the atoms, then the codes."""
        if isinstance(self.atoms, DesignedAtoms):
            return self.atoms.features(x, self.codes.dtype) @ self.codes
        return x @ self._dense_atoms() @ self.codes

    def take(self, rows: jax.Array) -> jax.Array:
        """The atoms' rows times the codes."""
        return self._dense_atoms()[rows] @ self.codes

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The leading dimensions of the codes."""
        return self.codes.shape[:-2]

    @property
    def dtype(self) -> np.dtype:
        """The codes' dtype."""
        return self.codes.dtype

    def summary(self) -> str:
        """The form's sizes."""
        atoms = (
            self.atoms.summary()
            if isinstance(self.atoms, CompactArray)
            else f"{self.atoms.shape[-1]} stored atoms"
        )
        codes = self.codes.summary() if isinstance(self.codes, CompactArray) else ""
        return f"{atoms}, codes of {codes}" if codes else atoms

    def child_metrics(self, metric: np.ndarray | None) -> dict[str, np.ndarray | None]:
        """Codes are fitted in the metric of the atoms' inner products."""
        atoms = np.asarray(self._dense_atoms(), np.float64)
        gram = atoms.mT @ (atoms if metric is None else weigh(metric, atoms))
        return {"atoms": metric, "codes": gram}

    def _dense_atoms(self) -> jax.Array:
        # atoms may be stored as anything, designed ones in float32: the codes decide the dtype
        return materialize(self.atoms).astype(self.codes.dtype)

    @classmethod
    def fit(
        cls,
        matrix: Float[np.ndarray, "*stack m n"],
        atoms: ArrayLike | CompactArray,
        *,
        metric: Metric | None = None,
        lookups: int | None = None,
    ) -> VocabularyArray:
        """The codes with the least squared error; of few look-ups, by matching pursuit.

        Args:
            matrix: (..., m, n).
            atoms: (..., m, k), designed or numbers to store.
            metric: (..., m, m) second moments of the inputs, or (m,) their diagonal; directions
                without moments are fitted as in the identity.
            lookups: the atoms that a column may use; all by default.
        """
        target = np.asarray(matrix, np.float64)
        codes = _plain_codes(atoms, target)
        if metric is not None:
            dense = np.asarray(materialize(atoms), np.float64)
            weighted = weigh(np.asarray(metric, np.float64), dense)
            codes = codes + np.linalg.pinv(dense.mT @ weighted, hermitian=True, rcond=1e-12) @ (
                weighted.mT @ (target - dense @ codes)
            )
        stored = atoms if is_compact(atoms) else to_device(atoms, matrix.dtype)
        array = cls(stored, to_device(codes, matrix.dtype), dims=matrix.shape[-2:])
        if lookups is None:
            return array
        return dataclasses.replace(
            array,
            codes=LookupArray.fit(codes, lookups, metric=array.child_metrics(metric)["codes"]),
        )


def _plain_codes(
    atoms: ArrayLike | CompactArray, target: Float[np.ndarray, "*stack m n"]
) -> Float[np.ndarray, "*stack k n"]:
    """The least-squares codes without a metric."""
    if not isinstance(atoms, DesignedAtoms) or atoms.channels == 1:
        return np.linalg.pinv(np.asarray(materialize(atoms), np.float64)) @ target
    # channels do not mix: invert the atoms of one, and apply them to all channels as columns
    *leading, m, n = target.shape
    of_one = np.asarray(atoms._of_one_channel(), np.float64)
    columns = target.reshape(*leading, m // atoms.channels, atoms.channels * n)
    return (np.linalg.pinv(of_one) @ columns).reshape(*leading, atoms.count, n)
