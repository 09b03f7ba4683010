"""Plots of decision meshes and of ranked compactions; `jc.plots` has all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxcompress.checks import checked, instance
from jaxcompress.classifiers.active_set import ActiveSet
from jaxcompress.classifiers.mesh import MeshClassifier
from jaxcompress.classifiers.queries import class_indices
from jaxcompress.classifiers.ranking import Ranking, active_kind
from jaxcompress.classifiers.realization import Realized
from jaxcompress.plotting import figures, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked(realized=instance((Realized, MeshClassifier), "of jc.classifiers.realize"))
def decision_mesh(
    realized: Realized | MeshClassifier,
    ax: Axes | None = None,
    *,
    lines: bool = True,
    path: str | Path | None = None,
) -> Axes:
    """Draw the decision regions of a classifier in two dimensions, with the boxes of its mesh.

    Args:
        realized: of `jc.classifiers.realize`, or its mesh.
        ax: matplotlib axes to draw on; new ones by default.
        lines: draw the edges of the boxes.
        path: also save the figure there.

    Returns:
        The axes; a colour for each label in sorted order, repeated after twenty.

    Raises:
        ValueError: for a mesh that is not of two dimensions.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> def below(x):
        ...     return np.int32(x[:, 0] > x[:, 1])
        >>> realized = jc.classifiers.realize(below, ([0, 0], [1, 1]), 1 / 64, progress=False)
        >>> boxes = jc.plots.decision_mesh(realized).collections[0]
        >>> len(boxes.get_paths()) == len(realized.mesh.boxes()[0])
        True
    """
    mesh = realized if isinstance(realized, MeshClassifier) else realized.mesh
    if len(mesh.coarse) != 2:
        raise ValueError(f"decision_mesh draws two dimensions, this mesh has {len(mesh.coarse)}")
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection

    centres, sizes, _ = mesh.boxes()
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2
    colours = colormaps["tab20"](class_indices(np.asarray(mesh(centres))) % 20)
    outlines = list(centres[:, None] + corners * sizes[:, None])
    boxes = PolyCollection(outlines, facecolors=colours)
    # without lines the edges have the faces' colours: they close the gaps of antialiasing
    boxes.set(edgecolor=(0, 0, 0, 0.4) if lines else "face", linewidth=0.3 if lines else 0.1)
    axes: Axes = ax or figures()(figsize=(5, 5), layout="constrained").subplots()
    axes.add_collection(boxes)
    axes.set(xlim=(mesh.low[0], mesh.high[0]), ylim=(mesh.low[1], mesh.high[1]), aspect="equal")
    save(axes.figure, path)
    return axes


@checked(active=active_kind, ranking=instance(Ranking, "of jc.classifiers.rank_compactions"))
def margins(
    active: ActiveSet, ranking: Ranking | None = None, *, path: str | Path | None = None
) -> Axes:
    """Draw the histogram of signed margins with the active set, and a ranking with its bounds.

    Args:
        active: of `jc.classifiers.active_set`.
        ranking: of `jc.classifiers.rank_compactions`; in a panel of its own, with dots for the
            accuracies, thick bars for two standard errors of the unbiased ones, thin ones for the
            `confident` bounds.
        path: also save the figure there.

    Returns:
        The axes of the histogram.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> x = jax.random.normal(jax.random.key(0), (100, 8))
        >>> apply, params = lambda p, x: x @ p, jnp.eye(8, 3)
        >>> active = jc.classifiers.active_set(apply, params, (x, None), 0.5, progress=False)
        >>> jc.plots.margins(active).get_xlabel()
        'signed margin'
    """
    rows = 0 if ranking is None else len(ranking.rows)
    size = (4.5 + 4.5 * bool(rows), max(3.2, 0.6 + 0.17 * rows))
    figure = figures()(figsize=size, layout="constrained")
    panels = figure.subplots(1, 1 + bool(rows), squeeze=False)[0]
    _margin_histogram(panels[0], active)
    if ranking is not None and rows:
        _ranking_panel(panels[1], ranking, active.accuracy)
    save(figure, path)
    return panels[0]


def _margin_histogram(ax: Axes, active: ActiveSet) -> None:
    """All margins, and those of the active set."""
    bins = np.histogram_bin_edges(active.margins, 60).tolist()
    selected = active.active
    ax.hist(active.margins, bins, color="lightgray", label="all")
    ax.hist(active.margins[selected], bins, color="tab:orange", label=f"active: {len(selected):,}")
    ax.axvline(0, color="gray", linewidth=0.8)
    for side in (-2, 2):
        ax.axvline(side * active.tolerance, color="gray", linewidth=0.8, linestyle=":")
    ax.set(xlabel="signed margin", ylabel="examples", title=f"right: {active.accuracy:.1%}")
    ax.legend(frameon=False)


def _ranking_panel(ax: Axes, ranking: Ranking, accuracy: float) -> None:
    """Estimates and their bounds, the best on top."""
    rows = list(reversed(ranking.rows))
    for height, row in enumerate(rows):
        errors = [row.unbiased - 2 * row.error, row.unbiased + 2 * row.error]
        ax.plot(row.confident, [height] * 2, color="tab:blue", linewidth=0.8)
        ax.plot(errors, [height] * 2, color="tab:blue", linewidth=3)
        ax.plot(row.accuracy, height, "o", color="tab:orange", markersize=3)
    ax.axvline(accuracy, color="gray", linewidth=0.8)
    ax.set_yticks(range(len(rows)), [row.name for row in rows], fontsize="x-small")
    ax.set(xlabel="accuracy")
