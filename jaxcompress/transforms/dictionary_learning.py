"""Learned atoms: principal directions for dense codes, and dictionary learning for look-ups.

Dictionary learning alternates: codes by matching pursuit for the present atoms, then the atoms with
the least error for the present codes. A turn costs one matching pursuit and one pseudoinverse.

Source: the method of optimal directions (Engan et al. 1999).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.factored import settled
from jaxcompress.arrays.lookups import LookupArray, scatter
from jaxcompress.arrays.signs import fix_signs
from jaxcompress.arrays.vocabulary import VocabularyArray, pseudoinverse
from jaxcompress.transforms.base import InputMetric
from jaxcompress.transforms.weights import squared

TURNS = 20
"""Rounds of fitting codes and atoms in turn."""
REPEATED = 0.99
"""The cosine above which an atom repeats another one."""


def principal_atoms(
    matrix: Float[np.ndarray, "*lead m n"], metric: InputMetric, count: int
) -> Float[np.ndarray, "*lead m count"]:
    """Orthonormal features of the inputs: of the data where moments are given, or of the weight."""
    source = np.asarray(matrix, np.float64)
    if metric is not None and metric.ndim == 1:
        # the inputs of a look-up have no directions: those of the weight, rows by their frequency
        root = np.sqrt(settled(metric))[:, None]
        directions = np.linalg.svd(root * source, full_matrices=False)[0][..., :count]
        vectors = np.linalg.qr(directions / root)[0]
    else:
        lead = matrix.shape[:-2]
        gram = (
            source @ source.mT
            if metric is None
            else np.broadcast_to(metric, (*lead, *metric.shape[-2:]))
        )
        vectors = np.linalg.eigh(gram)[1][..., ::-1][..., :count]
    return fix_signs(vectors)


def learned_in_turns(
    matrix: Float[np.ndarray, "*lead m n"],
    metric: InputMetric,
    count: int,
    lookups: int,
    seed: int,
) -> VocabularyArray:
    """Atoms and look-ups fitted to each other in turns; the best turn is returned.

    Args:
        matrix: (..., m, n) to fit.
        metric: of its inputs, or None.
        count: of atoms.
        lookups: atoms that each column combines.
        seed: of the columns that are the first atoms.
    """
    target = np.asarray(matrix, np.float64)
    atoms = _first_atoms(target, count, np.random.default_rng(seed))
    best, least = None, np.inf  # matching pursuit is greedy, so the error need not fall each turn
    for _ in range(TURNS):
        array = VocabularyArray.fit(
            matrix, atoms.astype(np.float32), metric=metric, lookups=lookups
        )
        assert isinstance(array.codes, LookupArray)
        values, index = np.asarray(array.codes.values, np.float64), array.codes.index.array
        # on the host, since every choice of look-ups would be a program of its own
        codes = scatter(values, index, count)
        gap = target - np.asarray(array.atoms, np.float64) @ codes
        if (error := squared(gap, metric)) < least:
            best, least = array, error
        atoms = of_unit_length(target @ pseudoinverse(codes.mT).mT)
        # an unused atom is replaced by the column that is fitted worst
        idle = _idle_atoms(atoms, codes)
        worst = np.sum(gap**2, axis=tuple(range(gap.ndim - 1))).argsort()[::-1][: len(idle)]
        atoms[..., idle[: len(worst)]] = of_unit_length(target[..., worst])
    assert best is not None
    return best


def _first_atoms(
    target: Float[np.ndarray, "*lead m n"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "*lead m count"]:
    """Columns of the matrix, and random directions where there are more atoms than columns."""
    n = target.shape[-1]
    atoms = target[..., rng.permutation(n)[:count]]
    more = rng.standard_normal((*target.shape[:-1], max(0, count - n)))
    return of_unit_length(np.concatenate([atoms, more], axis=-1))


def of_unit_length(
    atoms: Float[np.ndarray, "*stack m count"],
) -> Float[np.ndarray, "*stack m count"]:
    """Atoms divided by their lengths: the codes have the scale."""
    length = np.linalg.norm(atoms, axis=-2, keepdims=True)
    return atoms / np.where(length > 0, length, 1)


def _idle_atoms(
    atoms: Float[np.ndarray, "*lead m count"], codes: Float[np.ndarray, "*lead count n"]
) -> np.ndarray:
    """The indices of atoms that no code uses, or that repeat another atom."""
    flat = atoms.reshape(-1, atoms.shape[-1])
    norms = np.linalg.norm(flat, axis=0)
    flat = flat / np.where(norms > 0, norms, 1)
    repeated = np.triu(np.abs(flat.T @ flat) > REPEATED, 1).any(0)
    used = np.any(codes != 0, axis=(-1, *range(codes.ndim - 2)))
    return np.flatnonzero(repeated | ~used)
