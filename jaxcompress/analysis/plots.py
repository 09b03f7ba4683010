"""Pictures of what was found, drawn with matplotlib (`pip install 'jaxcompress[plot]'`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcompress.analysis.attributes import Shrinking
from jaxcompress.analysis.functions import WeightFunction
from jaxcompress.analysis.sharing import Sketches
from jaxcompress.analysis.verdicts import ErrorReport
from jaxcompress.arrays.atoms import check_grid
from jaxcompress.arrays.base import materialize
from jaxcompress.networks.trace import Network
from jaxcompress.training.active_set import ActiveSet
from jaxcompress.training.judging import Judgement
from jaxcompress.training.mesh import MeshClassifier
from jaxcompress.training.realization import Realized

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
    figures = _figures()
    from matplotlib.lines import Line2D

    leaves = list(net.structure.layouts)
    rows = {name: index for index, name in enumerate(leaves)}
    if ax is None:
        size = (2.5 + 0.09 * max(map(len, leaves)) + 0.5 * len(net.axes), 1.6 + 0.24 * len(leaves))
        ax = figures(figsize=size, layout="constrained").subplots()
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
    _save(ax.figure, path)
    return ax


def sketches(found: Mapping[int, Sketches], ax: Any = None, *, path: str | Path | None = None) -> Any:
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
    ax = _small() if ax is None else ax
    sizes = sorted(found)
    ax.loglog(sizes, [found[size].expected for size in sizes], color="gray", label="theory")
    ax.loglog(sizes, [found[size].variance for size in sizes], "o", label="measured")
    ax.set(xlabel="numbers in the table", ylabel="variance of an inner product")
    ax.legend(frameon=False)
    _save(ax.figure, path)
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
        function: of `jc.weight_functions`; of a stack the first kernel is drawn.
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
        >>> functions = jc.weight_functions(jc.trace(apply, params, jnp.ones((5, 3))), params)
        >>> len(jc.plots.weights_as_function(functions["up"], (2, 4)).axes)
        6
    """
    values = function.values[(0,) * (function.values.ndim - 2)]
    whole = WeightFunction(function.name, values, function.inputs, function.outputs)
    m, n = values.shape
    shown = [(f"{min(each, m)} x {min(each, n)} cells", whole.at(min(each, m), min(each, n), basis=basis).values) for each in cells]
    shown.append((f"{m} x {n}", values))
    figure = _figures()(figsize=(2.6 * len(shown), 4.2), layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False)
    reach = float(np.quantile(np.abs(values), 0.99)) or 1.0
    for (title, each), curve, surface in zip(shown, *panels, strict=True):
        line = each[:periods].ravel()
        curve.plot(np.arange(len(line)) / n, line, drawstyle="steps-mid" if basis == "step" else "default", linewidth=0.7)
        curve.set(title=title, ylim=(-1.5 * reach, 1.5 * reach), xlabel="input + t")
        surface.imshow(each, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", extent=(0, 1, 1, 0), interpolation="nearest")
        surface.set(xlabel="t_out", ylabel="t_in")
    for panel in figure.axes:
        panel.label_outer()
    figure.suptitle(function.name)
    _save(figure, path)
    return figure


def atoms(features: Any, grid: tuple[int, int], count: int = 16, *, path: str | Path | None = None) -> Any:
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
    figure = _figures()(figsize=(columns, rows), layout="constrained")
    for panel, atom in zip(figure.subplots(rows, columns, squeeze=False).ravel(), dense.T, strict=False):
        reach = float(np.abs(atom).max()) or 1.0
        panel.imshow(atom.reshape(grid), cmap="RdBu_r", vmin=-reach, vmax=reach)
    for panel in figure.axes:
        panel.set_axis_off()
    _save(figure, path)
    return figure


def shrinking(found: Mapping[str, Shrinking], ax: Any = None, *, path: str | Path | None = None) -> Any:
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
    ax = _small() if ax is None else ax
    for name, each in found.items():
        (line,) = ax.plot(each.sizes, each.unseen.mean(1), "o-", label=name)
        ax.plot(each.sizes, each.seen.mean(1), ":", color=line.get_color())
        low, high = each.unseen.min(1), each.unseen.max(1)
        ax.fill_between(each.sizes, low, high, color=line.get_color(), alpha=0.15)
    ax.set(xscale="log", xlabel="examples", ylabel="error (dotted: on those seen)")
    ax.legend(frameon=False)
    _save(ax.figure, path)
    return ax


def decision_mesh(found: Realized | MeshClassifier, ax: Any = None, *, lines: bool = True, path: str | Path | None = None) -> Any:
    """Draw the decision regions of a classifier in two dimensions, with the cells of its mesh at their several levels.

    Args:
        found: of `jc.realize`, or its mesh.
        ax: matplotlib axes to draw on; new ones by default.
        lines: draw the cells' edges.
        path: also save the picture there.

    Returns:
        The axes; a colour for each label in their sorted order, the same ones again after twenty.

    Raises:
        ValueError: for a mesh that is not of two dimensions.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> found = jc.realize(lambda x: np.int32(x[:, 0] > x[:, 1]), ([0, 0], [1, 1]), 1 / 64, progress=False)
        >>> len(jc.plots.decision_mesh(found).collections[0].get_paths()) == len(found.points)
        True
    """
    mesh = found if isinstance(found, MeshClassifier) else found.mesh
    if len(mesh.coarse) != 2:
        raise ValueError(f"decision_mesh draws two dimensions, this mesh has {len(mesh.coarse)}")
    figures = _figures()
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection

    ax = figures(figsize=(5, 5), layout="constrained").subplots() if ax is None else ax
    centres, sizes = mesh.boxes()
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2
    label = np.unique(np.asarray(mesh(centres)), axis=0, return_inverse=True)[1].reshape(-1)
    colours = colormaps["tab20"](label % 20)
    edge: dict[str, Any] = dict(edgecolors=(0, 0, 0, 0.4), linewidths=0.3) if lines else dict(edgecolors="face", linewidths=0.1)
    ax.add_collection(PolyCollection(list(centres[:, None] + corners * sizes[:, None]), facecolors=colours, **edge))
    ax.set(xlim=(mesh.low[0], mesh.high[0]), ylim=(mesh.low[1], mesh.high[1]), aspect="equal")
    _save(ax.figure, path)
    return ax


def errors_by_cause(
    report: ErrorReport,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    image: tuple[int, ...] | None = None,
    classify: Callable[[Any], Any] | None = None,
    count: int = 4,
    near: int = 3,
    path: str | Path | None = None,
) -> Any:
    """Draw the errors of a classifier by their causes.

    Images: a row for each cause, its most certain errors first; each is followed by its nearest training images. Above a test image
    stand its label and what it was taken for, above a training image its label, with what the classifier says where that is another
    one and a question mark where its neighbourhood disagrees. Points of a plane: the training set by class, the errors by cause.

    Args:
        report: of `jc.explain_errors`.
        train, test: the (x, y) that it was made with.
        image: the height and the width of images, and their channels if there are any.
        classify: of points of a plane, to colour the regions.
        count: how many errors of a cause.
        near: how many training images for each.
        path: also save the picture there.

    Returns:
        The figure.

    Raises:
        ValueError: for inputs that are neither such images nor points of a plane; no errors to draw as images.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> x = np.random.default_rng(0).uniform(-1, 1, (300, 2))
        >>> train, test = ((x[i], (x[i, 0] * x[i, 1] > 0).astype(int)) for i in (slice(200), slice(200, 300)))
        >>> line = lambda x: (np.asarray(x)[:, 0] > 0).astype(int)
        >>> report = jc.explain_errors(line, train, test, progress=False)
        >>> len(jc.plots.errors_by_cause(report, train, test, classify=line).axes)
        1
    """
    train_x, train_y = (np.asarray(each) for each in train)
    test_x = np.asarray(test[0])
    if image is None and train_x.shape[1:] != (2,):
        raise ValueError(f"errors_by_cause draws images, given image=(height, width), or points (n, 2), got {train_x.shape}")
    causes = [cause for cause, errors in report.counts.items() if errors]
    if image is None:
        figure = _figures()(figsize=(6.5, 5), layout="constrained")
        ax = figure.subplots()
        if classify is not None:
            sides = [np.linspace(train_x[:, i].min(), train_x[:, i].max(), 200) for i in range(2)]
            grid = np.stack(np.meshgrid(*sides), axis=-1).astype(train_x.dtype)
            said = np.asarray(classify(grid.reshape(-1, 2))).reshape(200, 200)
            ax.pcolormesh(*sides, said, cmap="Pastel1", alpha=0.6)
        ax.scatter(*train_x.T, c=train_y, s=4, cmap="Set1", alpha=0.5)
        for cause, marker in zip(causes, "^sovx", strict=False):
            ax.scatter(*test_x[[each.index for each in report.of(cause)]].T, s=36, marker=marker, label=cause)
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _save(figure, path)
        return figure
    check_grid(image, train_x[0].size, "an input has")
    if not causes:
        raise ValueError("errors_by_cause: the classifier made no errors")
    columns = count * (1 + near)
    figure = _figures()(figsize=(0.8 * columns, 1.15 * len(causes)), layout="constrained")
    panels = figure.subplots(len(causes), columns, squeeze=False)
    for cause, row in zip(causes, panels, strict=True):
        row[0].set_ylabel(cause, rotation=0, ha="right", fontsize="small")
        for verdict, group in zip(report.of(cause)[:count], row.reshape(count, -1), strict=False):
            group[0].imshow(test_x[verdict.index].reshape(image), cmap="gray")
            group[0].set_title(f"{verdict.true} → {verdict.predicted}", fontsize="small", color="tab:red")
            told = zip(verdict.neighbours, verdict.labels, verdict.predictions, verdict.outvoted, strict=True)
            for panel, (index, label, said, doubtful) in zip(group[1:], told, strict=False):
                panel.imshow(train_x[index].reshape(image), cmap="gray")
                title = f"{label}" + ("?" if doubtful else "") + (f" → {said}" if said != label else "")
                panel.set_title(title, fontsize="small")
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    _save(figure, path)
    return figure


def margins(active: ActiveSet, judgement: Judgement | None = None, *, path: str | Path | None = None) -> Any:
    """Draw the histogram of the signed margins with the active set marked, and what was found of compactions with their bounds.

    Args:
        active: of `jc.active_set`.
        judgement: of `jc.evaluate_compactions`; it gets a panel of its own, dots for the accuracies, thick bars for two standard
            errors of the unbiased ones, thin ones for the bounds that hold for all with its confidence.
        path: also save the picture there.

    Returns:
        The axes of the histogram.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> x, params = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(100, 8), (8, 3)]))
        >>> active = jc.active_set(lambda p, x: x @ p, params, (x, None), tolerance=0.5, progress=False)
        >>> jc.plots.margins(active).get_xlabel()
        'signed margin'
    """
    rows = () if judgement is None else judgement.rows
    figure = _figures()(figsize=(4.5 + 4.5 * bool(rows), max(3.2, 0.6 + 0.17 * len(rows))), layout="constrained")
    ax, *others = np.ravel(figure.subplots(1, 1 + bool(rows)))
    edges = np.histogram_bin_edges(active.margins, 60)
    ax.hist(active.margins, edges, color="lightgray", label="all")
    ax.hist(active.margins[active.active], edges, color="tab:orange", label=f"active: {len(active.active):,}")
    for side in (-2, 0, 2):
        ax.axvline(side * active.tolerance, color="gray", linewidth=0.8, linestyle=":" if side else "-")
    ax.set(xlabel="signed margin", ylabel="examples", title=f"right: {active.accuracy:.1%}")
    ax.legend(frameon=False)
    for other in others:
        for place, row in enumerate(reversed(rows)):
            other.plot(row.confident, [place] * 2, color="tab:blue", linewidth=0.8)
            other.plot([row.unbiased - 2 * row.error, row.unbiased + 2 * row.error], [place] * 2, color="tab:blue", linewidth=3)
            other.plot(row.accuracy, place, "o", color="tab:orange", markersize=3)
        other.axvline(active.accuracy, color="gray", linewidth=0.8)
        other.set_yticks(range(len(rows)), [row.name for row in reversed(rows)], fontsize="x-small")
        other.set(xlabel="accuracy")
    _save(figure, path)
    return ax


def _figures() -> Any:
    """matplotlib's figures, free of any window."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots are drawn with matplotlib: pip install 'jaxcompress[plot]'") from None
    return Figure


def _small() -> Any:
    """Axes of a small figure of its own."""
    return _figures()(figsize=(4.5, 3.2), layout="constrained").subplots()


def _save(figure: Any, path: str | Path | None) -> None:
    if path is not None:
        figure.savefig(path, dpi=130)
