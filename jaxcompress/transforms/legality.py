"""Which maps of a hidden axis keep the network's function, up to what the map itself drops.

Each function returns the reason why a kind of map is illegal, as text for messages, or None where
it is legal.
"""

from __future__ import annotations

from jaxcompress.networks.axes import Axis, Site, Structure
from jaxcompress.programs.program import Slot
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
    tied = [slot for slot in axis.tied if axis.pair or slot in axis.scales]
    if tied:
        return f"{tied[0]} consumes it and has another use on it"
    if axis.nonlinear:
        return f"{axis.nonlinear[0]} passes a nonlinear function before it is used"
    if axis.pair:
        return _why_not_rotate_pair(state, axis)
    if not axis.marks:
        return None
    normed = {"rms", "diagonal", "normalised"} if axis.centred else {"rms", "diagonal"}
    if "rms" in axis.marks and set(axis.marks) <= normed:
        return _why_not_fold_scales(state, axis)
    mark = axis.marks[0] if axis.marks[0] in OBSTACLES else axis.marks[-1]
    return f"{OBSTACLES.get(mark, OBSTACLES['diagonal'])} its channels"


def _why_not_linear(axis: Axis) -> str | None:
    """The reason why a map cannot be moved into the consumers' parameters, or None."""
    if axis.tied:
        return f"{axis.tied[0]} consumes it and has another use on it"
    if axis.nonlinear:
        return f"{axis.nonlinear[0]} passes a nonlinear function before it is used"
    return None


def _why_not_rotate_pair(state: NetworkState, axis: Axis) -> str | None:
    """The reason why the two sides of a product cannot have projections of their own, or None."""
    if axis.marks or axis.consumers:
        return "activations are multiplied over it, and other operations use it"
    if pair_of(state, axis) is None:
        return "it is in several products of activations, or one parameter produces both sides"
    return None


def is_rotatable_kind(axis: Axis) -> bool:
    """Whether the operations on an axis allow a rotation, whatever its parameters are used for."""
    if axis.centred and axis.foldable:
        return set(axis.marks) <= {"normalised", "rms", "diagonal"}
    return set(axis.marks) <= {"rms", "diagonal"} and not (axis.pair and axis.marks)


def why_not_fold(axis: Axis) -> str | None:
    """The reason why dropped channels cannot be folded into the consumers, or None."""
    if axis.pair:
        return "activations are multiplied over it"
    if axis.tied or axis.nonlinear:
        return "its consumers have other uses, or are no plain parameters"
    return None


def has_norm(axis: Axis) -> bool:
    """Whether a norm is taken over an axis."""
    return bool({"normalised", "rms"} & set(axis.marks))


def why_not_resize(state: NetworkState, axis: Axis, size: int, basis: str) -> str | None:
    """The reason why averages and repetitions cannot give an axis a new size, or None."""
    if why := _why_not_linear(axis):
        return why
    if axis.pair and (axis.marks or axis.consumers or pair_of(state, axis) is None):
        return "activations are multiplied over it, and other operations use it"
    if not has_norm(axis):
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


def _why_not_fold_scales(state: NetworkState, axis: Axis) -> str | None:
    """The reason why norms' scales cannot be multiplied into the kernels after them, or None."""
    sites = sites_of(state.structure, axis)
    if not axis.foldable or not sites:
        return "scales lie on it between or before its norms, as where a norm follows each addition"
    if axis.centred and not axis.averaged:
        return "a sum over it is not divided by its size"
    for site in sites:
        if why := _why_not_fold_scale(state, axis, site):
            return why
    scales = {slot for site in sites for slot in site.scaled or ()}
    consumers = {slot for site in sites for slot in site.slots}
    if other := [slot for slot in axis.scales if slot not in scales]:
        return f"the scale {other[0].leaf} precedes none of its consumers"
    if other := [slot for slot in axis.consumers if slot not in consumers]:
        return f"{other[0].leaf} consumes it inside a product of parameters"
    return _why_not_tie(state, axis)


def _why_not_fold_scale(state: NetworkState, axis: Axis, site: Site) -> str | None:
    """The reason why one consumer cannot take up the scale and the shift before it, or None."""
    kernel = site.leaves[0]
    if site.scaled is None or len(site.scaled) > 1:
        return f"no single scale follows the norm before {kernel}"
    # the constant of the mean is moved into the scales
    if axis.averaged and not site.scaled:
        return f"no scale follows a norm before {kernel}"
    if site.shifted and not axis.centred:
        return f"{site.shifted[0].leaf} is added between the norm and {kernel}"
    for slot in (*site.scaled, *site.shifted):
        for position, layout in enumerate(state.structure.layouts[slot.leaf]):
            mine = position == slot.dimension
            if (mine and layout.key != axis.key) or (
                not mine and layout.size > 1 and layout.key not in site.layers
            ):
                return f"{slot.leaf} has dimensions that {kernel} does not have"
    return None


def tied_scale(structure: Structure, axis: Axis) -> Slot | None:
    """The scale that follows a norm before a consumer which produces the axis, too."""
    for site in sites_of(structure, axis):
        if site.scaled and set(site.slots) & set(axis.tied):
            return site.scaled[0]
    return None


def _why_not_tie(state: NetworkState, axis: Axis) -> str | None:
    """The reason why the scale before a tied table cannot be kept diagonal, or None."""
    slot = tied_scale(state.structure, axis)
    if slot is None:
        return None
    tied = [site for site in sites_of(state.structure, axis) if set(site.slots) & set(axis.tied)]
    table = axis.tied[0].leaf
    if axis.centred:
        return f"{table} produces and consumes it, and a layer norm lies between"
    if any(site.scaled != (slot,) for site in tied) or state.leaves[slot.leaf].size > axis.size:
        return f"several scales precede {table}, which produces and consumes it"
    return None
