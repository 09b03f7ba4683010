"""Feature vocabularies: every column of the matrix is a mixture of shared features of the inputs.

`W = atoms @ codes` with atoms (m, k) and codes (k, n). Designed atoms are recomputed and cost
nothing to store: k n numbers; learned or given atoms are stored too: k (m + n). Codes of s look-ups
a column store 2 s n instead of k n numbers. Forward: `(x @ atoms) @ codes`, 2 k (m + n) operations
a row, 2 (k m + s n) with look-ups.

Source: Denil et al. 2013 (arXiv:1306.0543); LCNN, Bagherinezhad et al. 2017 (arXiv:1611.06473).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxcompress.arrays.atoms import DesignedAtoms
from jaxcompress.arrays.base import CompactArray, is_compact, materialize
from jaxcompress.arrays.device import to_device
from jaxcompress.arrays.field_checks import expect
from jaxcompress.arrays.lookups import LookupArray
from jaxcompress.arrays.projection import (
    RIDGE,
    Metric,
    check_shape,
    least_squares,
    ridge_solve,
    weigh,
)
from jaxcompress.arrays.registration import compact_array
from jaxcompress.checks import array as real_array
from jaxcompress.checks import checked, whole
from jaxcompress.checks import matrix as matrix_kind

LARGE = 2048
"""The count of atoms above which their codes for a table are found without the atoms."""
STEPS = 100
"""Iterations of that."""


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
        if isinstance(self.atoms, DesignedAtoms):
            return self.atoms.take(rows).astype(self.codes.dtype) @ self.codes
        return self._dense_atoms()[rows] @ self.codes

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The leading dimensions of the codes."""
        return self.codes.shape[:-2]

    @property
    def dtype(self) -> np.dtype:
        """The codes' dtype."""
        return self.codes.dtype

    def check_sizes(self) -> None:
        """Refuse atoms and codes that do not fit each other, or the matrix."""
        atoms, codes = self.atoms.shape, self.codes.shape
        fits = len(atoms) > 1 and len(codes) > 1 and atoms[-1] == codes[-2]
        expect("codes", (atoms, codes), fits, "atoms (..., m, k) and codes (..., k, n)")
        shape = (*atoms[-2:-1], *codes[-1:])
        whole = self.dims is None or self.matrix_shape == shape
        expect("dims", self.dims, whole, f"the inputs and outputs {shape}")

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
        power = np.einsum("...ii->...i", gram)
        # an atom that no input shows has the power of rounding: none
        seen = power > 1e-13 * power.max(-1, keepdims=True)
        return {"atoms": metric, "codes": gram * (seen[..., :, None] & seen[..., None, :])}

    def _dense_atoms(self) -> jax.Array:
        # atoms may be stored as anything, designed ones in float32: the codes decide the dtype
        return materialize(self.atoms).astype(self.codes.dtype)

    @classmethod
    @checked(matrix=matrix_kind, lookups=whole())
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
        check_shape("VocabularyArray.fit", metric, target)
        if not is_compact(atoms):
            given = real_array("VocabularyArray.fit: atoms", atoms)
            if given.ndim < 2 or given.shape[-2] != target.shape[-2]:
                raise ValueError(
                    f"VocabularyArray.fit: atoms must have a row for each of {target.shape[-2]} "
                    f"inputs, got shape {given.shape}"
                )
        codes = _plain_codes(atoms, target)
        if metric is not None:
            codes = _metric_codes(atoms, target, np.asarray(metric, np.float64), codes)
        stored = atoms if is_compact(atoms) else to_device(np.asarray(atoms), matrix.dtype)
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
    if not isinstance(atoms, DesignedAtoms):
        return pseudoinverse(np.asarray(materialize(atoms), np.float64)) @ target
    if atoms.orthonormal:
        return atoms.project(target)
    # channels do not mix: invert the atoms of one, and apply them to all channels as columns
    *leading, m, n = target.shape
    of_one = np.asarray(atoms.of_one_channel(), np.float64)
    columns = target.reshape(*leading, m // atoms.channels, atoms.channels * n)
    return (pseudoinverse(of_one) @ columns).reshape(*leading, atoms.count, n)


def pseudoinverse(atoms: Float[np.ndarray, "*stack m k"]) -> Float[np.ndarray, "*stack k m"]:
    """The pseudoinverse of columns of any lengths."""
    length = np.linalg.norm(atoms, axis=-2, keepdims=True)
    unit = np.where(length > 0, 1 / np.where(length > 0, length, 1), 0)
    return np.linalg.pinv(atoms * unit) * unit.mT


def _metric_codes(
    atoms: ArrayLike | CompactArray,
    target: Float[np.ndarray, "*stack m n"],
    metric: Metric,
    plain: Float[np.ndarray, "*stack k n"],
) -> Float[np.ndarray, "*stack k n"]:
    """The least-squares codes in a metric; `plain` settles what it does not see."""
    *leading, m, n = target.shape
    if isinstance(atoms, DesignedAtoms) and _is_large(atoms, metric):
        targets, starts = target.reshape(-1, m, n), plain.reshape(-1, atoms.count, n)
        pairs = zip(targets, starts, strict=True)
        solved = [_codes_by_products(atoms, one, metric, start) for one, start in pairs]
        return np.stack(solved).reshape(plain.shape)
    dense = np.asarray(materialize(atoms), np.float64)
    metric = np.asarray(metric)
    if dense.ndim == 2 and metric.ndim < 3:  # one system for the columns of all matrices
        columns, starts = np.moveaxis(target, -2, 0), np.moveaxis(plain, -2, 0)
        flat = columns.reshape(m, -1), metric, starts.reshape(len(starts), -1)
        return np.moveaxis(_codes_by_solve(dense, *flat).reshape(starts.shape), 0, -2)
    count = math.prod(leading)
    metrics = [metric] * count if metric.ndim < 3 else [*metric.reshape(-1, m, m)]
    dense = np.broadcast_to(dense, (*leading, *dense.shape[-2:])).reshape(count, m, -1)
    matrices = zip(
        dense,
        target.reshape(count, m, n),
        metrics,
        plain.reshape(count, -1, n),
        strict=True,
    )
    return np.stack([_codes_by_solve(*row) for row in matrices]).reshape(plain.shape)


def _is_large(atoms: DesignedAtoms, metric: Metric) -> bool:
    """Whether the rows of a table have too many cosines for their Gram matrix."""
    return atoms.orthonormal and metric.ndim == 1 and atoms.count > LARGE


def _codes_by_solve(
    atoms: Float[np.ndarray, "m k"],
    target: Float[np.ndarray, "m n"],
    metric: np.ndarray,
    plain: Float[np.ndarray, "k n"],
) -> Float[np.ndarray, "k n"]:
    """The codes of dense atoms, shrunk to the plain ones, or to zero where that is better."""
    weighted = weigh(metric, atoms)
    gram, right = atoms.T @ weighted, weighted.T @ target
    # of an atom that no input shows, its power in the metric is rounding: its length is not
    length = np.sum(atoms**2, axis=0)
    power = length * np.trace(gram) / length.sum() if length.any() else length
    candidates = [ridge_solve(gram, right, RIDGE, prior, power) for prior in (plain, 0.0)]

    def error(codes: np.ndarray) -> float:
        # as they are stored: large ones that cancel lose that in rounding
        gap = target - atoms @ codes.astype(np.float32)
        return float(np.sum(gap * weigh(metric, gap)))

    errors = [error(codes) for codes in candidates]
    whole = float(np.sum(target * weigh(metric, target)))
    return candidates[0] if errors[0] <= errors[1] + 1e-6 * whole else candidates[1]


def _codes_by_products(
    atoms: DesignedAtoms,
    target: Float[np.ndarray, "m n"],
    frequency: Float[np.ndarray, " m"],
    start: Float[np.ndarray, "k n"],
) -> Float[np.ndarray, "k n"]:
    """The codes of many orthonormal atoms for the rows of a table, without the atoms."""

    def expand(codes: np.ndarray) -> np.ndarray:
        return atoms.synthesise(codes.reshape(start.shape))

    def collect(error: np.ndarray) -> np.ndarray:
        return atoms.project(error).ravel()

    # each atom has about the same power, since it is spread over all rows
    scale = np.full(start.size, frequency.mean())
    return least_squares(
        expand, collect, target, frequency, start.ravel(), scale, steps=STEPS
    ).reshape(start.shape)
