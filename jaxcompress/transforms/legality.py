"""Which maps of a hidden axis keep the network's function, up to what the map itself drops.

Each function returns the reason why a kind of map is illegal, as text for messages, or None where
it is legal.
"""

from __future__ import annotations

import itertools

from jaxcompress.networks.axes import Axis
from jaxcompress.transforms.consumers import sites_of
from jaxcompress.transforms.network_state import NetworkState

OBSTACLES = {
    "elementwise": "a nonlinearity acts on",
    "normalised": "a sum is taken over",
    "diagonal": "a scale acts on",
}
"""The marks of an axis that rule out a rotation, as text for messages."""


def why_not_rotate(state: NetworkState, axis: Axis) -> str | None:
    """The reason why a rotation of an axis would change the network's function, or None."""
    if why := _why_not_linear(axis):
        return why
    if axis.pair:
        shared = axis.marks or axis.consumers
        return "activations are multiplied over it, and other operations use it" if shared else None
    if not axis.marks:
        return None
    if "rms" in axis.marks and set(axis.marks) <= {"rms", "diagonal"}:
        if scales_are_foldable(state, axis):
            return None
        return "its scales cannot be folded into the consumers that follow them"
    mark = axis.marks[0] if axis.marks[0] in OBSTACLES else axis.marks[-1]
    return f"{OBSTACLES.get(mark, OBSTACLES['diagonal'])} its channels"


def _why_not_linear(axis: Axis) -> str | None:
    """The reason why a map cannot be moved into the consumers' parameters, or None."""
    if axis.tied:
        return f"{axis.tied[0]} consumes it and has another use on it"
    if axis.nonlinear:
        return f"{axis.nonlinear[0]} passes a nonlinear function before it is used"
    return None


def can_rotate(state: NetworkState, axis: Axis) -> bool:
    """Whether an axis is rotated: that is legal, and a pair's sides have producers of their own."""
    return why_not_rotate(state, axis) is None and not (axis.pair and pair_of(state, axis) is None)


def why_not_fold(axis: Axis) -> str | None:
    """The reason why dropped channels cannot be folded into the consumers, or None."""
    if axis.pair:
        return "activations are multiplied over it"
    if axis.tied or axis.nonlinear:
        return "its consumers have other uses, or are no plain parameters"
    return "a norm over it would change" if {"normalised", "rms"} & set(axis.marks) else None


def why_not_resize(state: NetworkState, axis: Axis, size: int, basis: str) -> str | None:
    """The reason why averages and repetitions cannot give an axis a new size, or None."""
    if why := _why_not_linear(axis):
        return why
    if axis.pair and (axis.marks or axis.consumers or pair_of(state, axis) is None):
        return "activations are multiplied over it, and other operations use it"
    if not {"normalised", "rms"} & set(axis.marks):
        return None
    # a mean over the axis adapts to the new size, a plain sum does not
    if not axis.averaged:
        return "a sum over it is not divided by its size"
    large, small = max(size, state.size(axis)), min(size, state.size(axis))
    # repeated equally often, channels leave a mean over the axis unchanged
    if basis == "step" and large % small:
        return (
            f"a norm over it would give channels unequal weights, since {large} is no multiple "
            f"of {small}"
        )
    return None


def pair_of(state: NetworkState, axis: Axis) -> str | None:
    """The only product of activations over an axis, if its two sides have different producers."""
    keys = [
        key
        for key, pair in state.structure.pairs.items()
        if any(axis.key in dim.axes() for dim in pair.dims)
    ]
    if len(keys) != 1:
        return None
    # a parameter that produces both sides cannot have a map for each
    left, right = state.structure.pairs[keys[0]].sides
    return None if set(left) & set(right) else keys[0]


def scales_are_foldable(state: NetworkState, axis: Axis) -> bool:
    """Whether every scale on an axis can be multiplied into the kernels that follow it."""
    sites = sites_of(state.structure, axis)
    if not axis.foldable or not sites:
        return False
    known = [site.scaled for site in sites if site.scaled is not None and len(site.scaled) <= 1]
    if len(known) < len(sites):
        return False
    if axis.averaged and not all(known):  # the constant of the mean is moved into the scales
        return False
    scales = set(itertools.chain.from_iterable(known))
    consumers = set(itertools.chain.from_iterable(site.slots for site in sites))
    plain = all(len(state.structure.layouts[slot.leaf]) == 1 for slot in scales)
    return plain and scales == set(axis.scales) and consumers >= set(axis.consumers)
