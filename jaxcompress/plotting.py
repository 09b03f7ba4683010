"""Figures that need no window, for everything that draws with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


def figures() -> type[Figure]:
    """Matplotlib's class of figures.

    Raises:
        ImportError: where matplotlib is not installed; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "plots are drawn with matplotlib: pip install 'jaxcompress[plot]'"
        ) from None
    return Figure


def new_axes(width: float = 4.5, height: float = 3.2) -> Axes:
    """The axes of a new figure, whose size is in inches."""
    return figures()(figsize=(width, height), layout="constrained").subplots()


def save(figure: Figure | SubFigure, path: str | Path | None, *, tight: bool = False) -> None:
    """Save a figure, if there is a path.

    Args:
        figure: the figure, or one inside another, which is saved as a whole.
        path: where to; None saves nothing.
        tight: include what is drawn outside the figure's area.
    """
    if path is not None:
        whole = figure.canvas.figure
        whole.savefig(path, dpi=130, bbox_inches="tight" if tight else None)
