"""What a training loop refuses before it starts, and losses that are not finite while it runs."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree

from jaxcompress.arrays.leaves import describe, is_numeric


def check_fit(
    who: str,
    params: PyTree,
    data: PyTree,
    batch_size: int,
) -> None:
    """Refuse arguments of a run that do not fit each other."""
    check_params(who, params)
    examples = check_length(who, data)
    if batch_size > examples:
        raise ValueError(
            f"{who}: batch_size must be between 1 and the {examples} examples, got {batch_size}"
        )


def check_params(who: str, params: PyTree) -> None:
    """Refuse leaves without a gradient, by name."""
    for path, leaf in tree_flatten_with_path(params)[0]:
        kind = jnp.result_type(leaf) if is_numeric(leaf) else describe(leaf)
        if not (is_numeric(leaf) and jnp.issubdtype(kind, jnp.floating)):
            where = keystr(path) or "params"
            raise TypeError(f"{who}: {where} holds {kind}; only float leaves are trained")


def check_length(who: str, data: PyTree) -> int:
    """The number of examples, which every array must have."""
    lengths = {
        keystr(path): np.shape(leaf)[0] if np.ndim(leaf) else 0
        for path, leaf in tree_flatten_with_path(data)[0]
    }
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            f"{who}: every array of the data needs the same number of examples, at least one; "
            f"got {lengths}"
        )
    return next(iter(lengths.values()))


def check_validation(
    who: str, data: PyTree, validation: PyTree | None, patience: int | None
) -> None:
    """Refuse validation data that are no further examples like the training data."""
    if validation is None:
        if patience is not None:
            raise ValueError(f"{who}: patience={patience} needs validation=, such as (x, y)")
        return
    given, expected = jax.tree.structure(validation), jax.tree.structure(data)
    if given != expected:
        raise ValueError(
            f"{who}: the validation data must be a tree like the training data, {expected}; "
            f"got {given}"
        )
    check_length(f"{who}, validation", validation)
    arrays = jax.tree.leaves(data)
    for (path, leaf), array in zip(tree_flatten_with_path(validation)[0], arrays, strict=True):
        shape, example = np.shape(leaf)[1:], np.shape(array)[1:]
        kind, dtype = jnp.asarray(leaf).dtype, jnp.asarray(array).dtype
        if shape != example or kind != dtype:
            raise ValueError(
                f"{who}: an example of the validation data{keystr(path)} is {kind}{list(shape)}, "
                f"and one of the training data is {dtype}{list(example)}"
            )


def check_losses(who: str, losses: np.ndarray | Sequence[float], first: int) -> None:
    """Refuse losses, of the steps from `first` on, that are not finite."""
    finite = np.isfinite(losses)
    if not finite.all():
        bad = first + int(np.argmin(finite))
        raise ValueError(
            f"{who}: the loss is not finite at step {bad}: lower the learning rate, or check the "
            "data for NaN, and for labels that are none of the classes"
        )
