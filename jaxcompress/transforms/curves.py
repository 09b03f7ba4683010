"""The predicted error of the network's outputs at every size of a hidden axis, from moments alone.

The curve belongs to the map that `rotate_and_prune` would use: the remainder of the spectrum
after a rotation, or the variance unexplained by a greedy selection of 1, 2, ... channels. With
sensitivities it is the squared error of the outputs, summed over them; without, it is relative to
the consumers' results. Costs one decomposition or one greedy run an axis, for all sizes together.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from jaxcompress.networks.axes import Axis
from jaxcompress.transforms import selection
from jaxcompress.transforms.axis_selection import selection_systems
from jaxcompress.transforms.axis_statistics import (
    importance,
    pair_moments,
    relevant_moments,
)
from jaxcompress.transforms.consumers import consumer_gram
from jaxcompress.transforms.legality import pair_of
from jaxcompress.transforms.methods import choose_method
from jaxcompress.transforms.network_state import NetworkState
from jaxcompress.transforms.norm_rotation import weighted_spectrum


def error_curve(state: NetworkState, axis: Axis, method: str) -> Float[np.ndarray, " sizes"]:
    """The predicted error of the outputs at size 0, 1, ..., d of one axis."""
    absolute = state.moments is not None and bool(state.moments.gains)
    how = choose_method(state, axis, method).name
    if how == "rotate":
        errors, absolute = _rotation_errors(state, axis, absolute)
    elif how == "select and fold":
        errors = _fold_errors(state, axis)
    else:
        errors = tails(np.sort(importance(state, axis), axis=1)[:, ::-1]).sum(0)
    # rounding must not make a larger size look worse than a smaller one
    errors = np.minimum.accumulate(errors)
    excess = errors - errors[-1]
    return excess if absolute else _share(excess, errors[0])


def _share(part: Float[np.ndarray, " sizes"], whole: float) -> Float[np.ndarray, " sizes"]:
    """The parts of a whole, none of a whole that is zero."""
    return part / whole if whole > 0 else np.zeros_like(part)


def _fold_errors(state: NetworkState, axis: Axis) -> Float[np.ndarray, " sizes"]:
    """The variance of the consumers' results that a selection of each size does not explain."""
    d = state.size(axis)
    errors = np.zeros(d + 1)
    for group in selection_systems(state, axis):
        unexplained = selection.greedy(group, d)[1]
        # a step of the search adds one channel to one fibre, a size adds one to all fibres
        fibres = group[0].where.shape[0]
        errors += unexplained[np.minimum(np.arange(d + 1) * fibres, len(unexplained) - 1)]
    return errors


def _rotation_errors(
    state: NetworkState, axis: Axis, absolute: bool
) -> tuple[Float[np.ndarray, " sizes"], bool]:
    """The remainder of the spectrum at each size, and whether it is an error of the outputs."""
    if axis.pair:
        return _pair_errors(state, axis)
    if "rms" in axis.marks:
        # the spectrum is relative: it is scaled to the power of the consumers' results
        spectrum = tails(weighted_spectrum(state, axis)[None])[0]
        power = float(importance(state, axis).sum())
        return _share(spectrum, spectrum[0]) * power, absolute
    halves = [selection.factor_of(part) for part in relevant_moments(state, axis)]
    grams = zip(halves, consumer_gram(state, axis), strict=True)
    values = [np.linalg.eigvalsh(half.T @ gram @ half)[::-1] for half, gram in grams]
    return tails(np.maximum(values, 0)).sum(0), absolute


def _pair_errors(state: NetworkState, axis: Axis) -> tuple[Float[np.ndarray, " sizes"], bool]:
    """The remainder of a product of activations at each rank, and whether its gain is known."""
    key = pair_of(state, axis)
    assert key is not None
    sides = zip(*pair_moments(state, axis, key), strict=True)
    roots = [selection.factor_of(left).T @ selection.factor_of(right) for left, right in sides]
    values = np.stack([np.linalg.svd(matrix, compute_uv=False) for matrix in roots])
    errors = tails(values**2).mean(0)
    gain = None if state.moments is None else state.moments.gains.get(key)
    return (errors, False) if gain is None else (errors * float(gain.cov.sum()), True)


def tails(values: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "rows sizes"]:
    """The sum of each row without its first 0, 1, ..., d entries."""
    total = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([total, np.zeros((len(values), 1))], axis=1)
