"""Pictures of what was found, drawn with matplotlib (`pip install 'jaxcompress[plot]'`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxcompress.networks.trace import Network

COLOURS = {
    "linear": "tab:blue",
    "diagonal": "tab:cyan",
    "elementwise": "tab:orange",
    "rms": "tab:purple",
    "normalised": "tab:red",
}


def hidden_axes(net: Network, ax: Any = None, *, path: str | Path | None = None) -> Any:
    """Draw which parameters produce, carry and consume each hidden axis.

    A row is a parameter, a column an axis, coloured by its kind; the line joins all that a map on the axis changes.

    Args:
        net: from `jc.trace`.
        ax: matplotlib axes to draw on; new ones by default.
        path: also save the picture there.

    Returns:
        The axes.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> net = jc.trace(apply, {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}, jnp.ones((5, 3)))
        >>> len(jc.plots.hidden_axes(net).get_yticks())
        2
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        raise ImportError("plots are drawn with matplotlib: pip install 'jaxcompress[plot]'") from None
    leaves = list(net.structure.layouts)
    rows = {name: index for index, name in enumerate(leaves)}
    if ax is None:
        size = (2.5 + 0.09 * max(map(len, leaves)) + 0.5 * len(net.axes), 1.6 + 0.24 * len(leaves))
        ax = Figure(figsize=size, layout="constrained").subplots()
    marks = (("producers", "^", "produces"), ("parameters", "o", "per channel"), ("consumers", "v", "consumes"))
    for column, axis in enumerate(net.axes):
        colour = COLOURS[axis.kind]
        touched = [rows[slot.rsplit(":", 1)[0]] for role, _, _ in marks for slot in getattr(axis, role)]
        ax.plot([column, column], [min(touched), max(touched)], color=colour, linewidth=1.2, alpha=0.5)
        for role, marker, _ in marks:
            heights = [rows[slot.rsplit(":", 1)[0]] for slot in getattr(axis, role)]
            shift = {"^": -0.12, "v": 0.12}.get(marker, 0)
            ax.plot([column] * len(heights), [height + shift for height in heights], marker, color=colour, markersize=7)
    labels = [f"{axis.size}{', pair' if axis.pair else ''}{', per fibre' if axis.fibres else ''}" for axis in net.axes]
    ax.set_xticks(range(len(net.axes)), labels, rotation=60, ha="right")
    ax.set_yticks(range(len(leaves)), leaves)
    ax.invert_yaxis()
    ax.set_xlim(-0.6, len(net.axes) - 0.4)
    ax.grid(axis="y", alpha=0.2)
    ax.set_title("hidden axes", loc="left")
    kinds = list(dict.fromkeys(axis.kind for axis in net.axes))
    handles = [Line2D([], [], color="gray", marker=marker, linestyle="", label=label) for _, marker, label in marks]
    handles += [Line2D([], [], color=COLOURS[kind], label=kind) for kind in kinds]
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small", frameon=False)
    if path is not None:
        ax.figure.savefig(path, dpi=130)
    return ax
