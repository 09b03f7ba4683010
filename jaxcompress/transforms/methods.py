"""How one axis is cut: rotated, or channels selected, with or without a fold; and why not better.

    rotate           the directions that matter most; any axis whose operations allow it
    select and fold  channels, and consumers that predict the others from them
    select           channels alone

An axis of a kind that could be rotated, or of measured activations that could be folded, may have a
use that forbids it. `choose_method` gives the reason, which plans print and a warning tells.
"""

from __future__ import annotations

import dataclasses
import warnings

from jaxcompress.networks.axes import Axis
from jaxcompress.transforms.axis_statistics import measured
from jaxcompress.transforms.legality import is_rotatable_kind, why_not_fold, why_not_rotate
from jaxcompress.transforms.network_state import NetworkState


@dataclasses.dataclass(frozen=True)
class Method:
    """How one axis is cut.

    Attributes:
        name: "rotate", "select and fold" or "select".
        reason: why it is not one of the methods before it; "" where none is.
        better: how other axes of its kind are cut, "rotated" or "folded"; "" where not better.
    """

    name: str
    reason: str = ""
    better: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" if self.reason else self.name

    def warn(self, axis: Axis) -> None:
        """Warn of a worse way than an axis of this kind allows: once, as Python shows warnings."""
        if self.better:
            text = f"{axis.key} is selected, not {self.better}: {self.reason}"
            warnings.warn(text, stacklevel=6)  # where the transform was called


def choose_method(state: NetworkState, axis: Axis, allowed: str = "auto") -> Method:
    """The best method that keeps the function but for what is cut.

    Args:
        state: the network.
        axis: the axis.
        allowed: "auto", or "select" for no rotation.
    """
    reason = "rotations are not allowed" if allowed == "select" else why_not_rotate(state, axis)
    if reason is None:
        return Method("rotate")
    better = "rotated" if allowed != "select" and is_rotatable_kind(axis) else ""
    if measured(state, axis) is None:
        return Method("select", f"{reason}; nothing was measured along it", better)
    unfolded = why_not_fold(axis)
    if unfolded is None:
        return Method("select and fold", reason, better)
    reasons = dict.fromkeys([reason, unfolded])
    # channels of a product of activations cannot be folded, whatever their parameters are used for
    return Method("select", "; ".join(reasons), better or ("" if axis.pair else "folded"))
