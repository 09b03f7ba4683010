"""Second moments of what flows along a hidden axis, as the maps of that axis need them.

Measured where `jc.calibrate` gave moments; otherwise those of the producers' kernels with white
inputs, `W'W`. A consumer with a bias absorbs the mean, so that only the covariance matters to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxcompress.moments.statistics import AxisMoments, Statistic
from jaxcompress.networks.axes import Axis, Site
from jaxcompress.networks.layout import Layout
from jaxcompress.programs.program import Slot
from jaxcompress.transforms.consumers import bias_of, consumer_gram, measured_sites, statistic
from jaxcompress.transforms.network_state import NetworkState


def measured(
    state: NetworkState, axis: Axis, sites: list[Site] | None = None
) -> AxisMoments | None:
    """The moments along an axis for every fibre, of all or of some consumers; None if unknown."""
    if state.moments is None:
        return None
    try:  # an axis without a measured consumer is missing from the moments
        if sites is None:
            moments = state.moments[axis.key]
        else:
            moments = state.moments.pooled(axis, [state.moments.sites[s.key] for s in sites])
    except KeyError:
        return None
    fibres = state.fibres(axis)
    return dataclasses.replace(
        moments, mean=_spread(moments.mean, fibres), cov=_spread(moments.cov, fibres)
    )


def _spread(values: np.ndarray, fibres: int) -> np.ndarray:
    """One entry for each fibre, where all may share one."""
    return np.broadcast_to(values, (fibres, *values.shape[1:]))


def from_weights(state: NetworkState, axis: Axis) -> Float[np.ndarray, "fibres d d"]:
    """Second moments of an axis if the inputs of its producers were white."""
    shifts = tuple(slot for slot in axis.parameters if slot not in axis.scales)
    gram = state.gram(axis, axis.producers + shifts)
    # the small multiple of the identity keeps the matrix positive definite
    power = np.einsum("fii->f", gram) / state.size(axis)
    return gram + (1e-12 * power)[:, None, None] * np.eye(state.size(axis))


def second_moments_of(state: NetworkState, axis: Axis) -> Float[np.ndarray, "fibres d d"]:
    """Second moments about zero of an axis, measured or from the weights."""
    moments = measured(state, axis)
    return from_weights(state, axis) if moments is None else moments.second


def absorbing_sites(state: NetworkState, axis: Axis) -> set[str]:
    """The keys of the consumers whose biases absorb the mean of the axis."""
    return {site.key for site in measured_sites(state, axis) if bias_of(state, site) is not None}


def all_absorb(state: NetworkState, axis: Axis) -> bool:
    """Whether every measured consumer of an axis, and at least one, absorbs its mean."""
    return len(absorbing_sites(state, axis)) == len(measured_sites(state, axis)) > 0


def relevant_moments(state: NetworkState, axis: Axis) -> Float[np.ndarray, "fibres d d"]:
    """The moments that measure the consumers' errors: about the mean if all of them absorb it."""
    moments = measured(state, axis)
    if moments is None:
        return from_weights(state, axis)
    return moments.cov if all_absorb(state, axis) else moments.second


def importance(state: NetworkState, axis: Axis) -> Float[np.ndarray, "fibres d"]:
    """The squared error of the consumers' results if a single channel were zero, per channel."""
    shape = (state.fibres(axis), state.size(axis), state.size(axis))
    gram = (
        consumer_gram(state, axis) if axis.consumers else np.broadcast_to(np.eye(shape[1]), shape)
    )
    second = second_moments_of(state, axis)
    return np.einsum("fii->fi", second) * np.einsum("fii->fi", gram)


def pair_moments(
    state: NetworkState, axis: Axis, key: str
) -> tuple[Float[np.ndarray, "fibres d d"], Float[np.ndarray, "fibres d d"]]:
    """Second moments of either side of a product of activations over an axis."""
    if state.moments is None or key not in state.moments.pairs:
        left, right = state.structure.pairs[key].sides
        return state.gram(axis, left), state.gram(axis, right)
    fibres = state.fibres(axis)
    left, right = (state.moments.pooled(axis, [side]).second for side in state.moments.pairs[key])
    return _spread(left, fibres), _spread(right, fibres)


def normalised_moments(state: NetworkState, axis: Axis) -> Float[np.ndarray, "d d"]:
    """Second moments of the result of a root-mean-square norm before its scale.

    Consumers are added with equal traces, since each of them may have a scale of its own.
    """
    if state.moments is None:
        return from_weights(state, axis).mean(0)
    total = np.zeros((state.size(axis), state.size(axis)))
    for site in measured_sites(state, axis):
        part = state.moments.pooled(axis, [unscaled(state, axis, site)]).second.mean(0)
        power = np.trace(part)
        total += part / power if power > 0 else part
    return total


def unscaled(state: NetworkState, axis: Axis, site: Site) -> Statistic:
    """The statistic of a consumer's inputs before the scale and the shift that follow a norm."""
    inputs = statistic(state, site)
    if not site.scaled:
        return inputs
    layouts, place = (*inputs.lead, inputs.flat), len(inputs.lead)
    lead = [layout.key for layout in inputs.lead]
    others = [*site.scaled, *site.shifted]
    if any(not _is_laid_out(state, slot, lead) for slot in others):
        return inputs  # it differs from turn to turn of a loop, over which the inputs were pooled
    scale = per_channel(state, axis, site.scaled[0], layouts, place, outside=1.0)
    mean = inputs.mean
    for slot in site.shifted:
        mean = mean - per_channel(state, axis, slot, layouts, place, outside=0.0)
    # an input whose scale is negligible says nothing of the channel
    usable = np.abs(scale) > 1e-6 * np.abs(scale).max(-1, keepdims=True)
    inverse = np.where(usable, 1 / np.where(usable, scale, 1), 0)
    both = inverse**2 if inputs.diagonal else inverse[..., :, None] * inverse[..., None, :]
    return dataclasses.replace(inputs, mean=mean * inverse, cov=inputs.cov * both)


def _is_laid_out(state: NetworkState, slot: Slot, layers: Sequence[str]) -> bool:
    """Whether a per-channel parameter has no dimensions but layers that are told apart."""
    own = enumerate(state.layouts(slot.leaf))
    others = [layout for index, layout in own if index != slot.dimension and layout.size > 1]
    return all(layout.key in layers for layout in others)


def per_channel(
    state: NetworkState,
    axis: Axis,
    slot: Slot,
    layouts: Sequence[Layout],
    place: int,
    *,
    outside: float,
) -> Float[np.ndarray, ...]:
    """A per-channel parameter laid out to be combined with an array that has its axis.

    Args:
        state: the network.
        axis: the axis.
        slot: where the parameter has it; its other dimensions are layers of a loop, or of size one.
        layouts: of the array's dimensions; those of the same layers are found by their keys.
        place: the array's dimension that has the axis.
        outside: the value at positions of that dimension that belong to other axes.
    """
    own = state.layouts(slot.leaf)
    values = np.moveaxis(state.leaves[slot.leaf], slot.dimension, -1)
    layers = [layout for index, layout in enumerate(own) if index != slot.dimension]
    order = [layout.key for layout in layouts]
    places = [order.index(layout.key) for layout in layers if layout.size > 1] + [place]
    values = values.reshape([layouts[index].size for index in places[:-1]] + [-1])
    index = layouts[place].index(axis.key)
    values = np.where(index >= 0, values[..., index], outside)
    values = np.transpose(values, np.argsort(places))
    sizes = [layout.size if index in places else 1 for index, layout in enumerate(layouts)]
    return values.reshape(sizes)
