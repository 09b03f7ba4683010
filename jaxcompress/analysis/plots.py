"""Pictures of what was found, drawn with matplotlib (`pip install 'jaxcompress[plot]'`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcompress.analysis.attributes import Shrinking
from jaxcompress.analysis.sharing import Sketches
from jaxcompress.analysis.weight_functions import WeightFunction
from jaxcompress.arrays.atoms import check_grid
from jaxcompress.arrays.base import materialize
from jaxcompress.networks.trace import Network
from jaxcompress.plotting import figures, new_axes, save

__all__ = [
    "atoms",
    "hidden_axes",
    "shrinking",
    "sketches",
    "weights_as_function",
]

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
    from matplotlib.lines import Line2D

    leaves = list(net.structure.layouts)
    rows = {name: index for index, name in enumerate(leaves)}
    if ax is None:
        size = (2.5 + 0.09 * max(map(len, leaves)) + 0.5 * len(net.axes), 1.6 + 0.24 * len(leaves))
        ax = figures()(figsize=size, layout="constrained").subplots()
    marks = (
        ("producers", "^", "produces"),
        ("parameters", "o", "per channel"),
        ("consumers", "v", "consumes"),
    )
    for column, axis in enumerate(net.axes):
        colour = COLOURS[axis.kind]
        touched = [rows[slot.leaf] for role, _, _ in marks for slot in getattr(axis, role)]
        ax.plot(
            [column, column], [min(touched), max(touched)], color=colour, linewidth=1.2, alpha=0.5
        )
        for role, marker, _ in marks:
            heights = [rows[slot.leaf] for slot in getattr(axis, role)]
            shift = {"^": -0.12, "v": 0.12}.get(marker, 0)
            ax.plot(
                [column] * len(heights),
                [height + shift for height in heights],
                marker,
                color=colour,
                markersize=7,
            )
    labels = [
        f"{axis.size}{', pair' if axis.pair else ''}{', per fibre' if axis.fibres else ''}"
        for axis in net.axes
    ]
    ax.set_xticks(range(len(net.axes)), labels, rotation=60, ha="right")
    ax.set_yticks(range(len(leaves)), leaves)
    ax.invert_yaxis()
    ax.set_xlim(-0.6, len(net.axes) - 0.4)
    ax.grid(axis="y", alpha=0.2)
    ax.set_title("hidden axes", loc="left")
    kinds = list(dict.fromkeys(axis.kind for axis in net.axes))
    handles = [
        Line2D([], [], color="gray", marker=marker, linestyle="", label=label)
        for _, marker, label in marks
    ]
    handles += [Line2D([], [], color=COLOURS[kind], label=kind) for kind in kinds]
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        fontsize="small",
        frameon=False,
    )
    save(ax.figure, path)
    return ax


def sketches(
    found: Mapping[int, Sketches], ax: Any = None, *, path: str | Path | None = None
) -> Any:
    """Draw how far the buckets of a hash are off an inner product, against how many numbers the table has.

    Args:
        found: by the size of the table, what `jaxcompress.analysis.sharing.sketches` gives.
        ax, path: as for `hidden_axes`.

    Returns:
        The axes.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.analysis.sharing import sketches
        >>> array = jc.hashed(1/4)(jnp.ones((16, 100)))
        >>> jc.plots.sketches({400: sketches(array, jnp.ones(16), jnp.ones(16))}).get_xscale()
        'log'
    """
    ax = new_axes() if ax is None else ax
    sizes = sorted(found)
    ax.loglog(sizes, [found[size].expected for size in sizes], color="gray", label="theory")
    ax.loglog(sizes, [found[size].variance for size in sizes], "o", label="measured")
    ax.set(xlabel="numbers in the table", ylabel="variance of an inner product")
    ax.legend(frameon=False)
    save(ax.figure, path)
    return ax


def weights_as_function(
    function: WeightFunction,
    cells: Sequence[int] = (8, 32, 128),
    *,
    basis: str = "step",
    periods: int = 3,
    path: str | Path | None = None,
) -> Any:
    """Draw a kernel as a function at several resolutions: above as a curve of one variable, below as a surface.

    The curve is the interlaced one, its first periods, one for each input; the surface is W(t_in, t_out) in grey to red and blue.

    Args:
        function: of `jc.analysis.weight_functions`; of a stack the first kernel is drawn.
        cells: how many cells an axis of the surface has; those that reach the full size are drawn as they are. The kernel itself
            comes last.
        basis: "step", "linear" or "cubic".
        periods: how many inputs the curve shows.
        path: also save the picture there.

    Returns:
        The figure.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> functions = jc.analysis.weight_functions(jc.trace(apply, params, jnp.ones((5, 3))), params)
        >>> len(jc.plots.weights_as_function(functions["up"], (2, 4)).axes)
        6
    """
    values = function.values[(0,) * (function.values.ndim - 2)]
    whole = WeightFunction(function.name, values, function.inputs, function.outputs)
    m, n = values.shape
    shown = [
        (
            f"{min(each, m)} x {min(each, n)} cells",
            whole.at(min(each, m), min(each, n), basis=basis).values,
        )
        for each in cells
    ]
    shown.append((f"{m} x {n}", values))
    figure = figures()(figsize=(2.6 * len(shown), 4.2), layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False)
    reach = float(np.quantile(np.abs(values), 0.99)) or 1.0
    for (title, each), curve, surface in zip(shown, *panels, strict=True):
        line = each[:periods].ravel()
        curve.plot(
            np.arange(len(line)) / n,
            line,
            drawstyle="steps-mid" if basis == "step" else "default",
            linewidth=0.7,
        )
        curve.set(title=title, ylim=(-1.5 * reach, 1.5 * reach), xlabel="input + t")
        surface.imshow(
            each,
            cmap="RdBu_r",
            vmin=-reach,
            vmax=reach,
            aspect="auto",
            extent=(0, 1, 1, 0),
            interpolation="nearest",
        )
        surface.set(xlabel="t_out", ylabel="t_in")
    for panel in figure.axes:
        panel.label_outer()
    figure.suptitle(function.name)
    save(figure, path)
    return figure


def atoms(
    features: Any, grid: tuple[int, int], count: int = 16, *, path: str | Path | None = None
) -> Any:
    """Draw features of images as images, red above and blue below zero.

    Args:
        features: (m, k), dense or compact; the first `count` are drawn.
        grid: the height and the width of the images, whose product is m.
        count: how many.
        path: also save the picture there.

    Returns:
        The figure.

    Raises:
        ValueError: when the grid does not fit.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> len(jc.plots.atoms(jc.vocabulary(1/4, grid=(8, 8))(jnp.ones((64, 9))).atoms, (8, 8), 4).axes)
        4
    """
    dense = np.asarray(materialize(features))[:, : max(count, 1)]
    check_grid(grid, len(dense), "the features have")
    columns = min(dense.shape[1], 8)
    rows = -(-dense.shape[1] // columns)
    figure = figures()(figsize=(columns, rows), layout="constrained")
    for panel, atom in zip(
        figure.subplots(rows, columns, squeeze=False).ravel(), dense.T, strict=False
    ):
        reach = float(np.abs(atom).max()) or 1.0
        panel.imshow(atom.reshape(grid), cmap="RdBu_r", vmin=-reach, vmax=reach)
    for panel in figure.axes:
        panel.set_axis_off()
    save(figure, path)
    return figure


def shrinking(
    found: Mapping[str, Shrinking], ax: Any = None, *, path: str | Path | None = None
) -> Any:
    """Draw what fewer and fewer examples do: the error on unseen ones, and dotted on those seen.

    Args:
        found: by name, what `jaxcompress.analysis.attributes.shrinking` gives.
        ax, path: as for `hidden_axes`.

    Returns:
        The axes.

    Example:
        >>> import jaxcompress as jc
        >>> from jaxcompress.analysis.attributes import shrinking
        >>> len(jc.plots.shrinking({"learned": shrinking(lambda n, seed: (0.0, 1 / n), (100, 10))}).lines)
        2
    """
    ax = new_axes() if ax is None else ax
    for name, each in found.items():
        (line,) = ax.plot(each.sizes, each.unseen.mean(1), "o-", label=name)
        ax.plot(each.sizes, each.seen.mean(1), ":", color=line.get_color())
        low, high = each.unseen.min(1), each.unseen.max(1)
        ax.fill_between(each.sizes, low, high, color=line.get_color(), alpha=0.15)
    ax.set(xscale="log", xlabel="examples", ylabel="error (dotted: on those seen)")
    ax.legend(frameon=False)
    save(ax.figure, path)
    return ax
