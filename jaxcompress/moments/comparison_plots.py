"""A picture of two sets of moments of one network, layer by layer, drawn with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxcompress.checks import checked, instance
from jaxcompress.moments.moments import Moments
from jaxcompress.moments.statistics import Statistic
from jaxcompress.plotting import figures, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["moments_compared"]


@checked(
    first=instance(Moments, "moments of jc.calibrate"),
    second=instance(Moments, "moments of jc.calibrate"),
)
def moments_compared(first: Moments, second: Moments, *, path: str | Path | None = None) -> Figure:
    """Draw how two sets of moments of one network agree, layer by layer.

    Such as those of data and those of `jc.inputs_from_norms`. On the left the standard deviations
    of all inputs of all contractions; on the right, for each contraction, the difference of the
    covariances relative to the first (Frobenius norms), and that of the correlations.

    Args:
        first: moments of `jc.calibrate`.
        second: others of the same network, at the same sizes.
        path: also save the picture there.

    Returns:
        The figure.

    Raises:
        ValueError: for moments without a contraction in common.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> net = jc.trace(lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"], params, x)
        >>> half, all = (jc.calibrate(net, params, [x[:n]], progress=False) for n in (25, 50))
        >>> [ax.get_xlabel() for ax in jc.plots.moments_compared(all, half).axes]
        ['standard deviation, first', 'difference relative to the first']
    """
    pairs = {}
    for key, statistic in first.sites.items():
        other = second.sites.get(key)
        if other is not None and other.mean.shape == statistic.mean.shape:
            pairs[key] = statistic, other
    if not pairs:
        raise ValueError("moments_compared: the two have no contraction in common, at equal sizes")
    figure = figures()(figsize=(9, 1.5 + 0.35 * max(6, len(pairs))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, (key, statistics) in enumerate(pairs.items()):
        one, two = map(_deviations, statistics)
        left.plot(one, two, ".", markersize=3, color=f"C{row % 10}", label=key)
        for shift, relative in enumerate((False, True)):
            height, hatch = 0.4, "//" if relative else None
            gap = _difference(*statistics, correlations=relative)
            where = row + height * (shift - 0.5)
            right.barh(where, gap, height, color=f"C{row % 10}", hatch=hatch, alpha=0.8)
    left.axline((1, 1), slope=1, color="grey", linewidth=0.8)
    left.set(xscale="log", yscale="log")
    left.set(xlabel="standard deviation, first", ylabel="standard deviation, second")
    right.set_yticks(range(len(pairs)), list(pairs), fontsize="small")
    right.invert_yaxis()
    right.set(xlabel="difference relative to the first", title="covariances; hatched: correlations")
    save(figure, path)
    return figure


def _deviations(statistic: Statistic) -> Float[np.ndarray, " m"]:
    """The standard deviations of a contraction's inputs, of all layers in one list."""
    variances = statistic.cov if statistic.diagonal else np.einsum("...ii->...i", statistic.cov)
    return np.sqrt(np.maximum(variances, 0)).ravel()


def _difference(first: Statistic, second: Statistic, *, correlations: bool) -> float:
    """The difference of two covariances, or correlations, relative to the first."""
    one, two = (_scaled(statistic, correlations) for statistic in (first, second))
    return float(np.linalg.norm(two - one) / max(np.linalg.norm(one), 1e-30))


def _scaled(statistic: Statistic, correlations: bool) -> np.ndarray:
    if statistic.diagonal or not correlations:
        return statistic.cov
    deviations = np.sqrt(np.maximum(np.einsum("...ii->...i", statistic.cov), 1e-30))
    return statistic.cov / (deviations[..., :, None] * deviations[..., None, :])
