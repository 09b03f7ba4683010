"""Plots of axes, weights and studies, drawn with matplotlib (`pip install 'jaxcompress[plot]'`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Float

from jaxcompress.analysis.attributes import SampleEfficiency
from jaxcompress.analysis.sharing import Sketches
from jaxcompress.analysis.weight_functions import WeightFunction
from jaxcompress.arrays.atoms import check_grid
from jaxcompress.arrays.base import CompactArray, materialize
from jaxcompress.arrays.spline import BASES
from jaxcompress.checks import array, checked, choice, instance, of_each, sizes, whole
from jaxcompress.networks.axes import Axis
from jaxcompress.networks.trace import Network, network
from jaxcompress.plotting import figures, new_axes, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "atoms",
    "hidden_axes",
    "sample_efficiency",
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


ROLES = (
    ("producers", "^", "produces", -0.12),
    ("parameters", "o", "per channel", 0.0),
    ("consumers", "v", "consumes", 0.12),
)
"""For each role of a parameter its marker, its label, and its offset from the row's middle."""


@checked(net=network)
def hidden_axes(net: Network, ax: Axes | None = None, *, path: str | Path | None = None) -> Axes:
    """Draw which parameters produce, carry and consume each hidden axis.

    A row is a parameter, a column an axis, coloured by its kind; a line joins all parameters that a
    map on the axis changes.

    Args:
        net: from `jc.trace`.
        ax: matplotlib axes to draw on; new ones by default.
        path: also save the picture there.

    Returns:
        The axes.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> len(jc.plots.hidden_axes(net).get_yticks())
        2
    """
    leaves = list(net.structure.layouts)
    rows = {name: index for index, name in enumerate(leaves)}
    if ax is None:
        width = 2.5 + 0.09 * max(map(len, leaves)) + 0.5 * len(net.axes)
        ax = new_axes(width, 1.6 + 0.24 * len(leaves))
    for column, axis in enumerate(net.axes):
        _plot_axis(ax, column, axis, rows)
    ax.set_xticks(range(len(net.axes)), list(map(_axis_label, net.axes)), rotation=60, ha="right")
    ax.set_yticks(range(len(leaves)), leaves)
    ax.invert_yaxis()
    ax.set_xlim(-0.6, len(net.axes) - 0.4)
    ax.grid(axis="y", alpha=0.2)
    ax.set_title("hidden axes", loc="left")
    _add_legend(ax, list(dict.fromkeys(axis.kind for axis in net.axes)))
    save(ax.figure, path)
    return ax


def _plot_axis(ax: Axes, column: int, axis: Axis, rows: Mapping[str, int]) -> None:
    """Draw one axis: a marker for each of its parameters, and a line through them."""
    colour = COLOURS[axis.kind]
    touched: list[int] = []
    for role, marker, _, offset in ROLES:
        heights = [rows[slot.leaf] for slot in getattr(axis, role)]
        touched += heights
        shifted = [height + offset for height in heights]
        ax.plot([column] * len(heights), shifted, marker, color=colour, markersize=7)
    ends = [min(touched), max(touched)]
    ax.plot([column, column], ends, color=colour, linewidth=1.2, alpha=0.5)


def _axis_label(axis: Axis) -> str:
    return f"{axis.size}{', pair' if axis.pair else ''}{', per fibre' if axis.fibres else ''}"


def _add_legend(ax: Axes, kinds: Sequence[str]) -> None:
    """The legend of `hidden_axes`, outside on the right: markers, then colours."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="gray", marker=marker, linestyle="", label=label)
        for _, marker, label, _ in ROLES
    ]
    handles += [Line2D([], [], color=COLOURS[kind], label=kind) for kind in kinds]
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    ax.legend(handles=handles, **place, fontsize="small", frameon=False)


@checked(results=of_each(Sketches, "jc.analysis.sketches"))
def sketches(
    results: Mapping[int, Sketches], ax: Axes | None = None, *, path: str | Path | None = None
) -> Axes:
    """Draw the variance of sketched inner products against the size of the hash table.

    Args:
        results: by the size of the table, of `jc.analysis.sketches`.
        ax: matplotlib axes to draw on; new ones by default.
        path: also save the picture there.

    Returns:
        The axes.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> array = jc.hashed(1/4)(jnp.ones((16, 100)))
        >>> result = jc.analysis.sketches(array, jnp.ones(16), jnp.ones(16))
        >>> jc.plots.sketches({400: result}).get_xscale()
        'log'
    """
    ax = new_axes() if ax is None else ax
    sizes = sorted(results)
    ax.loglog(sizes, [results[size].expected for size in sizes], color="gray", label="theory")
    ax.loglog(sizes, [results[size].variance for size in sizes], "o", label="measured")
    ax.set(xlabel="numbers in the table", ylabel="variance of an inner product")
    ax.legend(frameon=False)
    save(ax.figure, path)
    return ax


@checked(
    function=instance(WeightFunction, "of jc.analysis.weight_functions"),
    cells=sizes,
    basis=choice(*BASES),
    periods=whole(),
)
def weights_as_function(
    function: WeightFunction,
    cells: Sequence[int] = (8, 32, 128),
    *,
    basis: str = "step",
    periods: int = 3,
    path: str | Path | None = None,
) -> Figure:
    """Draw a kernel at several resolutions: above as a curve of one variable, below as a surface.

    The curve is the interlaced one, its first periods, one for each input; the surface is
    W(t_in, t_out), blue below zero and red above. The kernel itself comes last.

    Args:
        function: of `jc.analysis.weight_functions`; of a stack the first kernel is drawn.
        cells: the numbers of cells along either axis of the surface, at most its size.
        basis: "step", "linear" or "cubic".
        periods: the number of inputs that the curve shows.
        path: also save the picture there.

    Returns:
        The figure.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> functions = jc.analysis.weight_functions(net, params)
        >>> len(jc.plots.weights_as_function(functions["up"], (2, 4)).axes)
        6
    """
    values = function.values[(0,) * (function.values.ndim - 2)]
    kernel = WeightFunction(function.name, values, function.inputs, function.outputs)
    m, n = values.shape
    surfaces: dict[str, np.ndarray] = {}
    for count in cells:
        sizes = min(count, m), min(count, n)
        surfaces[f"{sizes[0]} x {sizes[1]} cells"] = kernel.at(*sizes, basis=basis).values
    surfaces[f"{m} x {n}"] = values
    figure = figures()(figsize=(2.6 * len(surfaces), 4.2), layout="constrained")
    panels = figure.subplots(2, len(surfaces), squeeze=False)
    limit = float(np.quantile(np.abs(values), 0.99)) or 1.0
    style = "steps-mid" if basis == "step" else "default"
    for (title, surface), above, below in zip(surfaces.items(), *panels, strict=True):
        curve = surface[:periods].ravel()
        above.plot(np.arange(len(curve)) / n, curve, drawstyle=style, linewidth=0.7)
        above.set(title=title, ylim=(-1.5 * limit, 1.5 * limit), xlabel="input + t")
        colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        place = {"aspect": "auto", "extent": (0, 1, 1, 0), "interpolation": "nearest"}
        below.imshow(surface, **colours, **place)
        below.set(xlabel="t_out", ylabel="t_in")
    for panel in figure.axes:
        panel.label_outer()
    figure.suptitle(function.name)
    save(figure, path)
    return figure


@checked(count=whole())
def atoms(
    features: CompactArray | Float[jax.Array, "m k"] | Float[np.ndarray, "m k"],
    grid: tuple[int, int],
    count: int = 16,
    *,
    path: str | Path | None = None,
) -> Figure:
    """Draw features of images as images, red above and blue below zero.

    Args:
        features: (m, k), dense or compact.
        grid: the height and the width of the images, whose product is m.
        count: the number of features drawn, from the first.
        path: also save the picture there.

    Returns:
        The figure.

    Raises:
        ValueError: when the grid does not fit.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> features = jc.vocabulary(1/4, grid=(8, 8))(jnp.ones((64, 9))).atoms
        >>> len(jc.plots.atoms(features, (8, 8), 4).axes)
        4
    """
    dense = array("atoms: features", materialize(features), 2)[:, :count]
    check_grid(grid, len(dense), "the features have")
    if len(grid) != 2:
        raise ValueError(f"atoms: grid must be a height and a width, got {grid}")
    columns = min(dense.shape[1], 8)
    rows = -(-dense.shape[1] // columns)
    figure = figures()(figsize=(columns, rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, atom in zip(panels, dense.T, strict=False):
        limit = float(np.abs(atom).max()) or 1.0
        panel.imshow(atom.reshape(grid), cmap="RdBu_r", vmin=-limit, vmax=limit)
    for panel in figure.axes:
        panel.set_axis_off()
    save(figure, path)
    return figure


@checked(curves=of_each(SampleEfficiency, "jc.analysis.sample_efficiency"))
def sample_efficiency(
    curves: Mapping[str, SampleEfficiency],
    ax: Axes | None = None,
    *,
    path: str | Path | None = None,
) -> Axes:
    """Draw test errors against the number of training examples, and dotted the training errors.

    Args:
        curves: by name, of `jc.analysis.sample_efficiency`.
        ax: matplotlib axes to draw on; new ones by default.
        path: also save the picture there.

    Returns:
        The axes.

    Example:
        >>> import jaxcompress as jc
        >>> curve = jc.analysis.sample_efficiency(lambda n, seed: (0.0, 1 / n), (100, 10))
        >>> len(jc.plots.sample_efficiency({"learned": curve}).lines)
        2
    """
    ax = new_axes() if ax is None else ax
    for name, curve in curves.items():
        (line,) = ax.plot(curve.sizes, curve.test.mean(1), "o-", label=name)
        colour = line.get_color()
        ax.plot(curve.sizes, curve.train.mean(1), ":", color=colour)
        low, high = curve.test.min(1), curve.test.max(1)
        ax.fill_between(curve.sizes, low, high, color=colour, alpha=0.15)
    ax.set(xscale="log", xlabel="examples", ylabel="test error (dotted: training error)")
    ax.legend(frameon=False)
    save(ax.figure, path)
    return ax
