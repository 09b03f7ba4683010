"""Figures of matplotlib's, for the plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def figures() -> Any:
    """Matplotlib's figures, free of any window."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "plots are drawn with matplotlib: pip install 'jaxcompress[plot]'"
        ) from None
    return Figure


def small() -> Any:
    """Axes of a small figure of its own."""
    return figures()(figsize=(4.5, 3.2), layout="constrained").subplots()


def save(figure: Any, path: str | Path | None) -> None:
    if path is not None:
        figure.savefig(path, dpi=130)
