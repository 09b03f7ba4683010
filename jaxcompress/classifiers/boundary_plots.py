"""Plots of a classifier along data: its kept points and decision boundary, as points or images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from jaxcompress.arrays.atoms import check_grid
from jaxcompress.checks import checked, instance, whole
from jaxcompress.classifiers.coarsening import RealizedAlong
from jaxcompress.plotting import figures, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


REALIZED = instance(RealizedAlong, "of jc.classifiers.realize_along")
"""The kind of points along a boundary."""


@checked(realized=REALIZED)
def realized_along(realized: RealizedAlong, *, path: str | Path | None = None) -> Figure:
    """Draw what a classifier does along data, on the two principal components of the given points.

    Given points are pale, kept ones as large as their weights, boundary pairs black; points that
    are far apart can overlap there.

    Args:
        realized: of `jc.classifiers.realize_along`, or `.coarsened` from it.
        path: also save the figure there.

    Returns:
        The figure; a colour for each label in sorted order, repeated after twenty.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> def ball(x):
        ...     return np.int32((x**2).sum(1) < 9)
        >>> x = np.random.default_rng(0).normal(size=(300, 9))
        >>> realized = jc.classifiers.realize_along(ball, x, jnd=0.1, neighbours=4, progress=False)
        >>> len(jc.plots.realized_along(realized).axes)
        1
    """
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    names, project = _class_names(realized), _plane(realized)
    colours = colormaps["tab20" if len(names) > 10 else "tab10"](np.arange(len(names)) % 20)
    figure = figures()(figsize=(6.5, 5), layout="constrained")
    ax = figure.subplots()
    given = colours[_class_of(realized, realized.given_labels)]
    kept = colours[_class_of(realized, realized.labels)]
    count = len(realized.points)
    sizes = min(1, 300 / count) * (10 + 15 * realized.weights * count)
    ax.scatter(*project(realized.given).T, s=3, color=given, alpha=0.25)
    ax.scatter(*project(realized.points).T, s=sizes, color=kept, edgecolors="white", linewidths=0.6)
    # round ends draw a dot where both sides are projected to one point; of many pairs only the
    # crowded places are dark
    pairs = LineCollection(
        list(project(realized.boundary)),
        colors="black",
        alpha=min(1.0, (300 / max(len(realized.boundary), 1)) ** 0.5),
        linewidths=1.2,
        capstyle="round",
        zorder=2,
    )
    ax.add_collection(pairs)
    if realized.points.shape[1] < 3:
        ax.set(xlabel="x", ylabel="y")
    else:
        ax.set(xlabel="first principal component", ylabel="second principal component")
    _legend(ax, names, colours)
    save(figure, path)
    return figure


@checked(realized=REALIZED, count=whole(), pairs=whole())
def realized_images(
    realized: RealizedAlong,
    image: tuple[int, ...],
    *,
    count: int = 8,
    pairs: int = 4,
    path: str | Path | None = None,
) -> Figure:
    """Draw the images that a classifier's training set keeps, and images on its decision boundary.

    A row for each class: its images of the largest weights, each under its share of the data; then,
    framed, images on its boundary, evenly from all its pairs, between the classes named above.

    Args:
        realized: of `jc.classifiers.realize_along`, or `.coarsened` from it.
        image: height and width of images, and their channels if there are any.
        count: number of images of a class.
        pairs: number of images on its boundary.
        path: also save the figure there.

    Returns:
        The figure.

    Raises:
        ValueError: if the size of the image does not fit.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> def ball(x):
        ...     return np.int32((x**2).sum(1) < 9)
        >>> x = np.random.default_rng(0).normal(size=(300, 9))
        >>> realized = jc.classifiers.realize_along(ball, x, jnd=0.1, neighbours=4, progress=False)
        >>> len(jc.plots.realized_images(realized, (3, 3), count=5, pairs=1).axes)
        12
    """
    check_grid(image, realized.points.shape[1], "a point has")
    names = _class_names(realized)
    labels = realized.boundary_labels.reshape(-1, *realized.labels.shape[1:])
    sides = _class_of(realized, labels).reshape(-1, 2)
    figure = figures()(figsize=(0.8 * (count + pairs), 1.05 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), count + pairs, squeeze=False)
    for label, row in enumerate(panels):
        row[0].set_ylabel(names[label], rotation=0, ha="right", va="center")
        _kept_images(row[:count], realized, label, image)
        _boundary_images(row[count:], realized, sides, label, names, image)
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for panel in panels[:, count:].ravel():
        panel.spines[:].set(visible=bool(panel.images), color="tab:red", linewidth=1.5)
    save(figure, path)
    return figure


def _class_names(realized: RealizedAlong) -> list[str]:
    """The labels as text, in sorted order."""
    return [", ".join(map(str, np.ravel(label).tolist())) for label in realized.classes]


def _class_of(realized: RealizedAlong, labels: Int[np.ndarray, "n ..."]) -> Int[np.ndarray, " n"]:
    """The index of labels among the classes."""
    count = len(realized.classes)
    everything = np.concatenate([realized.classes, labels])
    return np.unique(everything, axis=0, return_inverse=True)[1].ravel()[count:]


def _plane(realized: RealizedAlong) -> Callable[[np.ndarray], np.ndarray]:
    """The projection to two principal components; points of one or two dimensions are kept."""
    d = realized.points.shape[1]
    if d < 3:
        return lambda points: points @ np.eye(2, d).T
    centre = np.average(realized.given, axis=0, weights=realized.given_weights)
    # rows weighted by their multiplicity give the components of the data with repetitions
    scaled = (realized.given - centre) * np.sqrt(realized.given_weights)[:, None]
    components = np.linalg.svd(scaled, full_matrices=False)[2][:2]
    return lambda points: (points - centre) @ components.T


def _legend(ax: Axes, names: list[str], colours: np.ndarray) -> None:
    """One entry a class, and one for the boundary."""
    from matplotlib.lines import Line2D

    handles = []
    for name, colour in zip(names, colours, strict=True):
        handles.append(Line2D([], [], color=colour, marker="o", linestyle="", label=name))
    handles.append(Line2D([], [], color="black", label="boundary"))
    ax.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _kept_images(
    panels: np.ndarray, realized: RealizedAlong, label: int, image: tuple[int, ...]
) -> None:
    """The images of a class with the largest weights."""
    members = np.flatnonzero(_class_of(realized, realized.labels) == label)
    members = members[np.argsort(-realized.weights[members], kind="stable")]
    for panel, index in zip(panels, members, strict=False):
        panel.imshow(realized.points[index].reshape(image), cmap="gray")
        panel.set_title(f"{realized.weights[index]:.2%}", fontsize="x-small")


def _boundary_images(
    panels: np.ndarray,
    realized: RealizedAlong,
    sides: Int[np.ndarray, "pairs 2"],
    label: int,
    names: list[str],
    image: tuple[int, ...],
) -> None:
    """Images on the boundary of a class, evenly over the classes on the other side."""
    pairs, side = np.nonzero(sides == label)
    other = sides[pairs, 1 - side]
    order = np.argsort(other, kind="stable")
    if not len(order):
        return
    # sorted by the other class: equally spaced picks show all neighbouring classes
    evenly = np.linspace(0, len(order) - 1, min(len(panels), len(order))).astype(int)
    for panel, index in zip(panels, order[np.unique(evenly)], strict=False):
        panel.imshow(realized.boundary[pairs[index], side[index]].reshape(image), cmap="gray")
        title = f"{names[label]} | {names[other[index]]}"
        panel.set_title(title, fontsize="x-small", color="tab:red")
