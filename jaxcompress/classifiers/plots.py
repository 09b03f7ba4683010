"""Pictures of what was found of classifiers; `jc.plots` has them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcompress.arrays.atoms import check_grid
from jaxcompress.classifiers.active_set import ActiveSet
from jaxcompress.classifiers.mesh import MeshClassifier
from jaxcompress.classifiers.ranking import Ranking
from jaxcompress.classifiers.realization import Realized
from jaxcompress.classifiers.coarsening import RealizedAlong
from jaxcompress.classifiers.verdicts import ErrorReport
from jaxcompress.plotting import figures, save


def decision_mesh(
    found: Realized | MeshClassifier,
    ax: Any = None,
    *,
    lines: bool = True,
    path: str | Path | None = None,
) -> Any:
    """Draw the decision regions of a classifier in two dimensions, with the boxes of its mesh at their several levels.

    Args:
        found: of `jc.classifiers.realize`, or its mesh.
        ax: matplotlib axes to draw on; new ones by default.
        lines: draw the boxes' edges.
        path: also save the picture there.

    Returns:
        The axes; a colour for each label in their sorted order, the same ones again after twenty.

    Raises:
        ValueError: for a mesh that is not of two dimensions.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> found = jc.classifiers.realize(lambda x: np.int32(x[:, 0] > x[:, 1]), ([0, 0], [1, 1]), 1 / 64, progress=False)
        >>> len(jc.plots.decision_mesh(found).collections[0].get_paths()) == len(found.mesh.boxes()[0])
        True
    """
    mesh = found if isinstance(found, MeshClassifier) else found.mesh
    if len(mesh.coarse) != 2:
        raise ValueError(f"decision_mesh draws two dimensions, this mesh has {len(mesh.coarse)}")
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection

    ax = figures()(figsize=(5, 5), layout="constrained").subplots() if ax is None else ax
    centres, sizes, _ = mesh.boxes()
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2
    label = np.unique(np.asarray(mesh(centres)), axis=0, return_inverse=True)[1].reshape(-1)
    colours = colormaps["tab20"](label % 20)
    edge: dict[str, Any] = (
        dict(edgecolors=(0, 0, 0, 0.4), linewidths=0.3)
        if lines
        else dict(edgecolors="face", linewidths=0.1)
    )
    ax.add_collection(
        PolyCollection(
            list(centres[:, None] + corners * sizes[:, None]), facecolors=colours, **edge
        )
    )
    ax.set(xlim=(mesh.low[0], mesh.high[0]), ylim=(mesh.low[1], mesh.high[1]), aspect="equal")
    save(ax.figure, path)
    return ax


def realized_along(
    found: RealizedAlong,
    *,
    image: tuple[int, ...] | None = None,
    count: int = 8,
    pairs: int = 4,
    path: str | Path | None = None,
) -> Any:
    """Draw what a classifier does along data: the points that are kept, and its borders.

    Images: a row for each class, its points of the largest weights first, each under its share of the data; then, framed, images
    on its border, evenly from all its pairs, between the classes named above. Anything else: the plane of the two principal
    components of the given points. These are pale, kept ones as large as their shares, border pairs black; what lies apart can
    overlap there.

    Args:
        found: of `jc.classifiers.realize_along`, or `.coarsened` from it.
        image: the height and the width of images, and their channels if there are any.
        count: how many points of a class are drawn as images.
        pairs: how many images on its border.
        path: also save the picture there.

    Returns:
        The figure; a colour for each label in their sorted order, the same ones again after twenty.

    Raises:
        ValueError: when the image's size does not fit.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> ball = lambda x: np.int32((x**2).sum(1) < 9)
        >>> x = np.random.default_rng(0).normal(size=(300, 9))
        >>> found = jc.classifiers.realize_along(ball, x, jnd=0.1, neighbours=4, progress=False).coarsened(ball, per_class=20)
        >>> len(jc.plots.realized_along(found).axes), len(jc.plots.realized_along(found, image=(3, 3), count=5, pairs=1).axes)
        (1, 12)
    """
    names = [", ".join(map(str, np.ravel(each).tolist())) for each in found.classes]
    place = lambda labels: np.unique(
        np.concatenate([found.classes, labels]), axis=0, return_inverse=True
    )[1].ravel()[len(names) :]
    own = place(found.labels)
    sides = place(found.boundary_labels.reshape(-1, *found.labels.shape[1:])).reshape(-1, 2)
    if image is None:
        return _on_a_plane(found, names, own, place(found.given_labels), path)
    check_grid(image, found.points.shape[1], "a point has")
    figure = figures()(figsize=(0.8 * (count + pairs), 1.05 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), count + pairs, squeeze=False)
    for each, row in enumerate(panels):
        row[0].set_ylabel(names[each], rotation=0, ha="right", va="center")
        mine = np.flatnonzero(own == each)
        for panel, index in zip(
            row[:count], mine[np.argsort(-found.weights[mine], kind="stable")], strict=False
        ):
            panel.imshow(found.points[index].reshape(image), cmap="gray")
            panel.set_title(f"{found.weights[index]:.2%}", fontsize="x-small")
        near, side = np.nonzero(sides == each)
        order = np.argsort(sides[near, 1 - side], kind="stable")
        chosen = (
            order[np.unique(np.linspace(0, len(order) - 1, min(pairs, len(order))).astype(int))]
            if len(order)
            else order
        )
        for panel, index in zip(row[count:], chosen, strict=False):
            panel.imshow(found.boundary[near[index], side[index]].reshape(image), cmap="gray")
            panel.set_title(
                f"{names[each]} | {names[sides[near[index], 1 - side[index]]]}",
                fontsize="x-small",
                color="tab:red",
            )
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for panel in panels[:, count:].ravel():
        panel.spines[:].set(visible=bool(panel.images), color="tab:red", linewidth=1.5)
    save(figure, path)
    return figure


def _on_a_plane(
    found: RealizedAlong,
    names: list[str],
    own: np.ndarray,
    given: np.ndarray,
    path: str | Path | None,
) -> Any:
    """Points, kept points and border pairs, by their classes, on two principal components of the points given."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    few = found.points.shape[1] < 3  # drawn as they are
    centre = np.zeros(1) if few else np.average(found.given, axis=0, weights=found.given_weights)
    scaled = (found.given - centre) * np.sqrt(found.given_weights)[:, None]
    along = (
        np.eye(2, found.points.shape[1])
        if few
        else np.linalg.svd(scaled, full_matrices=False)[2][:2]
    )
    flat = lambda points: (points - centre) @ along.T
    figure = figures()(figsize=(6.5, 5), layout="constrained")
    ax = figure.subplots()
    colours = colormaps["tab20" if len(names) > 10 else "tab10"](np.arange(len(names)) % 20)
    ax.scatter(*flat(found.given).T, s=3, color=colours[given], alpha=0.25)
    sizes = min(1, 300 / len(found.points)) * (10 + 15 * found.weights * len(found.points))
    ax.scatter(
        *flat(found.points).T, s=sizes, color=colours[own], edgecolors="white", linewidths=0.6
    )
    # where both sides fall on one point of the plane, round ends leave a dot; of many pairs the crowded places are dark
    dark = min(1.0, (300 / max(len(found.boundary), 1)) ** 0.5)
    ax.add_collection(
        LineCollection(
            list(flat(found.boundary)),
            colors="black",
            alpha=dark,
            linewidths=1.2,
            capstyle="round",
            zorder=2,
        )
    )
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=name)
        for colour, name in zip(colours, names, strict=True)
    ]
    handles.append(Line2D([], [], color="black", label="border"))
    ax.set(
        xlabel="x" if few else "first principal component",
        ylabel="y" if few else "second principal component",
    )
    ax.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save(figure, path)
    return figure


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
        report: of `jc.classifiers.explain_errors`.
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
        >>> report = jc.classifiers.explain_errors(line, train, test, progress=False)
        >>> len(jc.plots.errors_by_cause(report, train, test, classify=line).axes)
        1
    """
    train_x, train_y = (np.asarray(each) for each in train)
    test_x = np.asarray(test[0])
    if image is None and train_x.shape[1:] != (2,):
        raise ValueError(
            f"errors_by_cause draws images, given image=(height, width), or points (n, 2), got {train_x.shape}"
        )
    causes = [cause for cause, errors in report.counts.items() if errors]
    if image is None:
        figure = figures()(figsize=(6.5, 5), layout="constrained")
        ax = figure.subplots()
        if classify is not None:
            everywhere = np.concatenate([train_x, test_x])
            sides = [
                np.linspace(everywhere[:, i].min(), everywhere[:, i].max(), 200) for i in range(2)
            ]
            grid = np.stack(np.meshgrid(*sides), axis=-1).astype(train_x.dtype)
            said = np.asarray(classify(grid.reshape(-1, 2))).reshape(200, 200)
            ax.pcolormesh(*sides, said, cmap="Pastel1", alpha=0.6)
        ax.scatter(*train_x.T, c=train_y, s=4, cmap="Set1", alpha=0.5)
        for cause, marker in zip(causes, "^sovx", strict=False):
            ax.scatter(
                *test_x[[each.index for each in report.of(cause)]].T,
                s=36,
                marker=marker,
                label=cause,
            )
        if causes:
            ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        save(figure, path)
        return figure
    check_grid(image, train_x[0].size, "an input has")
    if not causes:
        raise ValueError("errors_by_cause: the classifier made no errors")
    columns = count * (1 + near)
    figure = figures()(figsize=(0.8 * columns, 1.15 * len(causes)), layout="constrained")
    panels = figure.subplots(len(causes), columns, squeeze=False)
    for cause, row in zip(causes, panels, strict=True):
        row[0].set_ylabel(cause, rotation=0, ha="right", fontsize="small")
        for verdict, group in zip(report.of(cause)[:count], row.reshape(count, -1), strict=False):
            group[0].imshow(test_x[verdict.index].reshape(image), cmap="gray")
            group[0].set_title(
                f"{verdict.true} → {verdict.predicted}", fontsize="small", color="tab:red"
            )
            told = zip(
                verdict.neighbours,
                verdict.labels,
                verdict.predictions,
                verdict.outvoted,
                strict=True,
            )
            for panel, (index, label, said, doubtful) in zip(group[1:], told, strict=False):
                panel.imshow(train_x[index].reshape(image), cmap="gray")
                title = (
                    f"{label}" + ("?" if doubtful else "") + (f" → {said}" if said != label else "")
                )
                panel.set_title(title, fontsize="small")
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    save(figure, path)
    return figure


def margins(
    active: ActiveSet, judgement: Ranking | None = None, *, path: str | Path | None = None
) -> Any:
    """Draw the histogram of the signed margins with the active set marked, and what was found of compactions with their bounds.

    Args:
        active: of `jc.classifiers.active_set`.
        judgement: of `jc.classifiers.rank_compactions`; it gets a panel of its own, dots for the accuracies, thick bars for two standard
            errors of the unbiased ones, thin ones for the bounds that hold for all with its confidence.
        path: also save the picture there.

    Returns:
        The axes of the histogram.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> x, params = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(100, 8), (8, 3)]))
        >>> active = jc.classifiers.active_set(lambda p, x: x @ p, params, (x, None), tolerance=0.5, progress=False)
        >>> jc.plots.margins(active).get_xlabel()
        'signed margin'
    """
    rows = () if judgement is None else judgement.rows
    figure = figures()(
        figsize=(4.5 + 4.5 * bool(rows), max(3.2, 0.6 + 0.17 * len(rows))), layout="constrained"
    )
    ax, *others = np.ravel(figure.subplots(1, 1 + bool(rows)))
    edges = np.histogram_bin_edges(active.margins, 60)
    ax.hist(active.margins, edges, color="lightgray", label="all")
    ax.hist(
        active.margins[active.active],
        edges,
        color="tab:orange",
        label=f"active: {len(active.active):,}",
    )
    for side in (-2, 0, 2):
        ax.axvline(
            side * active.tolerance, color="gray", linewidth=0.8, linestyle=":" if side else "-"
        )
    ax.set(xlabel="signed margin", ylabel="examples", title=f"right: {active.accuracy:.1%}")
    ax.legend(frameon=False)
    for other in others:
        for place, row in enumerate(reversed(rows)):
            other.plot(row.confident, [place] * 2, color="tab:blue", linewidth=0.8)
            other.plot(
                [row.unbiased - 2 * row.error, row.unbiased + 2 * row.error],
                [place] * 2,
                color="tab:blue",
                linewidth=3,
            )
            other.plot(row.accuracy, place, "o", color="tab:orange", markersize=3)
        other.axvline(active.accuracy, color="gray", linewidth=0.8)
        other.set_yticks(range(len(rows)), [row.name for row in reversed(rows)], fontsize="x-small")
        other.set(xlabel="accuracy")
    save(figure, path)
    return ax
