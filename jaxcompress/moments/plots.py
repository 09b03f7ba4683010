"""A picture of the activations along one axis, drawn with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import leaves_list, linkage

from jaxcompress.plotting import figures, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_correlations(
    name: str,
    correlations: Float[np.ndarray, "d d"],
    spectrum: Float[np.ndarray, " d"],
    groups: list[list[int]],
    *,
    threshold: float,
    path: str | Path | None = None,
) -> Figure:
    """Draw correlations of channels, similar ones side by side, and their spectrum.

    Args:
        name: of the axis.
        correlations: of its channels.
        spectrum: the variances along the principal directions, largest first.
        groups: channels that are listed below the picture.
        threshold: the correlation above which channels are in one group.
        path: also save the picture there.
    """
    figure = figures()(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    order = _by_similarity(correlations)
    image = left.imshow(
        correlations[np.ix_(order, order)], vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest"
    )
    left.set(title=f"correlations of {name}", xlabel="channels, similar ones side by side")
    figure.colorbar(image, ax=left, shrink=0.8)
    _plot_spectrum(right, spectrum)
    listed = "; ".join(map(str, groups[:3])) or "no two channels"
    if len(groups) > 3:
        listed += f"; and {len(groups) - 3} more"
    figure.suptitle(f"|correlation| >= {threshold:g}: {listed}", fontsize="small", y=-0.02)
    save(figure, path, tight=True)
    return figure


def _by_similarity(correlations: Float[np.ndarray, "d d"]) -> Int[np.ndarray, " d"]:
    """An order in which correlated channels are neighbours."""
    if len(correlations) <= 2:
        return np.arange(len(correlations))
    return leaves_list(linkage(correlations, "average"))


def _plot_spectrum(ax: Axes, spectrum: Float[np.ndarray, " d"]) -> None:
    """Draw the share of the variance that is lost with each number of directions kept."""
    lost = 1 - np.cumsum(spectrum) / max(spectrum.sum(), np.finfo(float).tiny)
    ax.plot(np.arange(1, len(spectrum) + 1), lost, marker=".")
    ax.set(
        yscale="log",
        xlabel="principal directions kept",
        ylabel="variance lost",
        title="spectrum",
    )
    ax.set_ylim(bottom=max(1e-6, lost[lost > 1e-9].min(initial=1) / 2))
    ax.grid(alpha=0.3)
