"""Plots of a classifier's errors by cause: points of a plane, or images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxcompress.arrays.atoms import check_grid
from jaxcompress.checks import checked, instance, whole
from jaxcompress.classifiers.errors import Examples
from jaxcompress.classifiers.queries import CLASSIFY, Classify
from jaxcompress.classifiers.verdicts import ErrorReport, Verdict
from jaxcompress.plotting import figures, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


REPORT = instance(ErrorReport, "of jc.classifiers.explain_errors")
"""The kind of a report."""


@checked(report=REPORT, classify=CLASSIFY)
def errors_by_cause(
    report: ErrorReport,
    train: Examples,
    test: Examples,
    *,
    classify: Classify | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw the errors of a classifier of points of a plane: the training set, the errors by cause.

    Args:
        report: of `jc.classifiers.explain_errors`.
        train: the (x, y) that it was made with.
        test: the (x, y) that it was made with.
        classify: the classifier, to colour the regions.
        path: also save the figure there.

    Returns:
        The figure.

    Raises:
        ValueError: for inputs that are not points of a plane.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> x = np.random.default_rng(0).uniform(-1, 1, (300, 2))
        >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)
        >>> train, test = (x[:200], y[:200]), (x[200:], y[200:])
        >>> def line(x):
        ...     return (np.asarray(x)[:, 0] > 0).astype(int)
        >>> report = jc.classifiers.explain_errors(line, train, test, progress=False)
        >>> len(jc.plots.errors_by_cause(report, train, test, classify=line).axes)
        1
    """
    (train_x, train_y), test_x = map(np.asarray, train), np.asarray(test[0])
    if train_x.shape[1:] != (2,):
        raise ValueError(
            f"errors_by_cause draws points (n, 2), got {train_x.shape}: draw images with "
            "error_images"
        )
    figure = figures()(figsize=(6.5, 5), layout="constrained")
    ax = figure.subplots()
    if classify is not None:
        _regions(ax, classify, np.concatenate([train_x, test_x]), train_x.dtype)
    ax.scatter(*train_x.T, c=train_y, s=4, cmap="Set1", alpha=0.5)
    causes = _causes(report)
    # a marker for each cause, since colours are those of the classes
    for cause, marker in zip(causes, "^sovx", strict=False):
        indices = [verdict.index for verdict in report.of(cause)]
        ax.scatter(*test_x[indices].T, s=36, marker=marker, label=cause)
    if causes:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save(figure, path)
    return figure


@checked(report=REPORT, count=whole(), near=whole())
def error_images(
    report: ErrorReport,
    train: Examples,
    test: Examples,
    image: tuple[int, ...],
    *,
    count: int = 4,
    near: int = 3,
    path: str | Path | None = None,
) -> Figure:
    """Draw the errors of a classifier of images, a row for each cause, the most certain first.

    Each error is followed by its nearest training images. Above a test image are its label and the
    prediction; above a training image is its label, with the prediction if that is another one, and
    a question mark if its neighbours have another label.

    Args:
        report: of `jc.classifiers.explain_errors`.
        train: the (x, y) that it was made with.
        test: the (x, y) that it was made with.
        image: height and width of images, and their channels if there are any.
        count: number of errors of a cause.
        near: number of training images for each.
        path: also save the figure there.

    Returns:
        The figure.

    Raises:
        ValueError: for inputs that are not such images, or no errors.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> x = np.random.default_rng(0).uniform(size=(300, 4))
        >>> y = (x[:, 0] > x[:, 1]).astype(int)
        >>> train, test = (x[:200], y[:200]), (x[200:], y[200:])
        >>> def zero(x):
        ...     return np.zeros(len(x), int)
        >>> report = jc.classifiers.explain_errors(zero, train, test, progress=False)
        >>> len(jc.plots.error_images(report, train, test, (2, 2), count=1, near=3).axes) % 4
        0
    """
    train_x, test_x = np.asarray(train[0]), np.asarray(test[0])
    check_grid(image, train_x[0].size, "an input has")
    causes = _causes(report)
    if not causes:
        raise ValueError("error_images: the classifier made no errors")
    columns = count * (1 + near)
    figure = figures()(figsize=(0.8 * columns, 1.15 * len(causes)), layout="constrained")
    panels = figure.subplots(len(causes), columns, squeeze=False)
    for cause, row in zip(causes, panels, strict=True):
        row[0].set_ylabel(cause, rotation=0, ha="right", fontsize="small")
        groups = row.reshape(count, -1)
        for verdict, group in zip(report.of(cause)[:count], groups, strict=False):
            _error_and_neighbours(group, verdict, train_x, test_x, image)
    for panel in panels.ravel():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    save(figure, path)
    return figure


def _causes(report: ErrorReport) -> list[str]:
    """The causes that occur."""
    return [cause for cause, errors in report.counts.items() if errors]


def _regions(ax: Axes, classify: Classify, points: np.ndarray, dtype: np.dtype) -> None:
    """The classifier's regions around points."""
    side = 200  # pixels, about those of the figure
    x, y = (np.linspace(column.min(), column.max(), side) for column in points.T)
    grid = np.stack(np.meshgrid(x, y), axis=-1).astype(dtype)
    labels = np.asarray(classify(grid.reshape(-1, 2))).reshape(side, side)
    ax.pcolormesh(x, y, labels, cmap="Pastel1", alpha=0.6)


def _error_and_neighbours(
    panels: np.ndarray,
    verdict: Verdict,
    train_x: np.ndarray,
    test_x: np.ndarray,
    image: tuple[int, ...],
) -> None:
    """A misclassified image and the training images next to it."""
    panels[0].imshow(test_x[verdict.index].reshape(image), cmap="gray")
    title = f"{verdict.true} → {verdict.predicted}"
    panels[0].set_title(title, fontsize="small", color="tab:red")
    for panel, i in zip(panels[1:], range(len(verdict.neighbours)), strict=False):
        label, prediction = verdict.labels[i], verdict.predictions[i]
        title = f"{label}" + ("?" if verdict.outvoted[i] else "")
        title += f" → {prediction}" if prediction != label else ""
        panel.imshow(train_x[verdict.neighbours[i]].reshape(image), cmap="gray")
        panel.set_title(title, fontsize="small")
