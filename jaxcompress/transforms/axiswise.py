"""The base of transforms of hidden axes: axis by axis, a change is computed and then applied.

state = NetworkState.of(structure, params, moments)
for axis in axes:
    state = state.applied(axis, transform.change(state, axis))
"""

from __future__ import annotations

import logging

from jaxtyping import PyTree

from jaxcompress.moments.moments import Moments
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.transforms.base import Scope, Transform
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.options import PerLeaf, Value
from jaxcompress.transforms.settings import call, constructor_name, show_structure

log = logging.getLogger(__name__)


class AxisTransform(Transform):
    """The base of transforms of hidden axes; a subclass is a frozen dataclass with `change`."""

    structure: Structure
    axes: str
    whole_network = True

    def change(self, state: NetworkState, axis: Axis) -> AxisChange | None:
        """The change of one axis, or None to leave it as it is."""
        raise NotImplementedError(
            f"{type(self).__name__} is an AxisTransform without a change: write "
            "change(self, state, axis), which returns an AxisChange, or None to leave the axis"
        )

    def settled(self, params: PyTree, moments: Moments | None) -> AxisTransform:
        """The transform with all options that depend on the parameters computed from them."""
        return self

    def hidden(self) -> tuple[str, ...]:
        """Fields that are no arguments of the constructor."""
        return ("structure",)

    def chosen(self) -> list[Axis]:
        """The axes that the pattern matches."""
        return self.structure.chosen(self.axes)

    def start(self, params: PyTree, moments: PyTree) -> NetworkState:
        """The network before any change."""
        if moments is not None and not isinstance(moments, Moments):
            raise TypeError(
                f"{type(self).__name__} needs the moments of jc.calibrate, got "
                f"{type(moments).__name__}"
            )
        return NetworkState.of(self.structure, params, moments)

    def check_effect(self, state: NetworkState, axes: list[Axis]) -> None:
        """Refuse an option that has no effect on any of the axes that it is for."""

    def can_resize(self, state: NetworkState, axis: Axis, size: int) -> bool:
        """Whether an axis is named, or the parameters' shapes would determine its new size."""
        if self.axes != "**" or state.is_readable(axis, size):
            return True
        why = "its size cannot be read off the parameters; name it in axes=, and use net.resized"
        self.skip(axis, why)
        return False

    def skip(self, axis: Axis, why: str) -> None:
        """Log why an axis is not changed."""
        log.info("%s is not changed: %s", axis.key, why)

    def _step(self, params: PyTree, moments: PyTree, scope: Scope) -> tuple[PyTree, PyTree]:
        transform = self.settled(params, moments)
        axes, state = transform.chosen(), transform.start(params, moments)
        transform.check_effect(state, axes)
        if moments is None:
            log.info("%r has no moments: it uses the weights alone", self)
        # in sequence: a change of one axis changes the moments and kernels that the next one uses
        for axis in axes:
            change = transform.change(state, axis)
            if change is not None:
                state = state.applied(axis, change)
        return state.params(), state.moments

    def __repr__(self) -> str:
        return call(constructor_name(self), show_structure(self.structure), **self.arguments())


def largest_by_option(
    options: PerLeaf[Value], state: NetworkState, axes: list[Axis]
) -> dict[Value, int]:
    """For each value of an option the present size of the largest axis that it is for."""
    largest: dict[Value, int] = {}
    for axis in axes:
        value = options.get(axis.key)
        if value is not None:
            largest[value] = max(largest.get(value, 0), state.size(axis))
    return largest
