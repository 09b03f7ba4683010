"""Means and covariances of activations: of one contraction's inputs, and along one hidden axis.

A `Statistic` holds the moments of the vectors that one contraction takes in, with the layout of
their dimensions, so that the part along any axis is read off and a map of an axis is applied.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components

from jaxcompress.checkpoint.records import record
from jaxcompress.checks import checked, number, whole
from jaxcompress.moments.plots import plot_correlations
from jaxcompress.networks.axes import Axis, Layout
from jaxcompress.networks.maps import along, lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@record
@dataclasses.dataclass(frozen=True)
class Statistic:
    """Mean and covariance of the vectors that one contraction takes in.

    Attributes:
        lead: layouts of the leading dimensions: layers of a loop, and those of a batched product.
        dims: layouts of the contracted dimensions, of m positions together.
        count: the number of vectors for each entry of `lead`, or the sum of their weights.
        mean: in float64.
        cov: about the mean, in float64; variances alone where only the diagonal is kept.
    """

    lead: tuple[Layout, ...]
    dims: tuple[Layout, ...]
    count: float
    mean: Float[np.ndarray, "*lead m"]
    cov: Float[np.ndarray, "*lead m m"] | Float[np.ndarray, "*lead m"]

    @property
    def diagonal(self) -> bool:
        """Whether only variances are kept."""
        return self.cov.ndim == self.mean.ndim

    @property
    def second(self) -> Float[np.ndarray, "*lead m m"] | Float[np.ndarray, "*lead m"]:
        """Second moments about zero: `cov + mean mean'`."""
        return self.cov + self._outer(self.mean)

    @property
    def flat(self) -> Layout:
        """The contracted dimensions as one."""
        if len(self.dims) == 1:
            return self.dims[0]
        return Layout("", math.prod(dim.size for dim in self.dims), "product", self.dims)

    def contracts(self, axis: str) -> bool:
        """Whether an axis is among the contracted dimensions."""
        return any(axis in dim.axes() for dim in self.dims)

    def __add__(self, other: Statistic) -> Statistic:
        """The statistic of both sets of vectors."""
        count = self.count + other.count
        share = other.count / count if count else 0.0
        gap = other.mean - self.mean
        mean = self.mean + share * gap
        within = (1 - share) * self.cov + share * other.cov
        cov = within + share * (1 - share) * self._outer(gap)
        return dataclasses.replace(self, count=count, mean=mean, cov=cov)

    def mapped(self, axis: Axis, matrices: Float[np.ndarray, "fibres d r"]) -> Statistic:
        """The statistic after a map along an axis; the same one where it does not have the axis.

        Args:
            axis: the axis, of d channels.
            matrices: one for each fibre, or a single one for all.
        """
        size = {axis.key: matrices.shape[-1]}
        mean, cov, flat, lead = self.mean, self.cov, self.flat, list(self.lead)
        if not any(axis.key in layout.axes() for layout in (*lead, flat)):
            return self
        trailing = (flat,) if self.diagonal else (flat, flat)
        for position, layout in enumerate(self.lead):
            if axis.key in layout.axes():
                mean = along(mean, (*lead, flat), position, axis, matrices)
                cov = along(cov, (*lead, *trailing), position, axis, matrices)
                lead[position] = layout.resized(size)
        if axis.key in flat.axes():
            place = len(lead)
            mean = along(mean, (*lead, flat), place, axis, matrices)
            if self.diagonal:
                cov = along(cov, (*lead, flat), place, axis, matrices**2)
            else:
                # one side after the other; the other side's fibres must not select anything
                old, new = Layout("", flat.size), Layout("", flat.resized(size).size)
                cov = along(cov, (*lead, flat, old), place, axis, matrices)
                cov = along(cov, (*lead, new, flat), place + 1, axis, matrices)
        dims = tuple(dim.resized(size) for dim in self.dims)
        return Statistic(tuple(lead), dims, self.count, mean, cov)

    def axis(
        self, axis: Axis, fibres: tuple[int, ...]
    ) -> tuple[Float[np.ndarray, "fibres d"], Float[np.ndarray, "fibres d d"]]:
        """Mean and covariance along an axis for each fibre, pooled over all other positions.

        Args:
            axis: one of the contracted axes.
            fibres: the sizes of its fibre axes.
        """
        moments = [
            self._along_fibre(axis, dict(zip(axis.fibres, place, strict=True)))
            for place in np.ndindex(*fibres)
        ]
        means, covs = zip(*moments, strict=True)
        return np.stack(means), np.stack(covs)

    def _along_fibre(
        self, axis: Axis, fibre: Mapping[str, int]
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        mean, cov = self._leading(fibre)
        columns = self._columns(axis, fibre)
        size = columns.shape[1]
        means = mean[:, columns].reshape(-1, size)
        if self.diagonal:
            covs = cov[:, columns].reshape(-1, size)[:, :, None] * np.eye(size)
        else:
            covs = cov[:, columns[:, :, None], columns[:, None, :]].reshape(-1, size, size)
        pooled = means.mean(0)
        spread = means - pooled
        return pooled, covs.mean(0) + spread.T @ spread / len(spread)

    def _leading(
        self, fibre: Mapping[str, int]
    ) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "n m m"] | Float[np.ndarray, "n m"]]:
        """Mean and covariance at the leading positions of one fibre."""
        mean, cov = self.mean, self.cov
        for position, layout in enumerate(self.lead):
            rows = np.flatnonzero(_in_fibre(layout, fibre))
            mean, cov = np.take(mean, rows, position), np.take(cov, rows, position)
        trailing = cov.shape[len(self.lead) :]
        return mean.reshape(-1, self.flat.size), cov.reshape(-1, *trailing)

    def _columns(self, axis: Axis, fibre: Mapping[str, int]) -> Int[np.ndarray, "lines d"]:
        """The contracted positions along an axis in one fibre, a row for each line along it."""
        positions = lines(self.flat, axis.key)
        return positions[:, _in_fibre(self.flat, fibre)[positions[0]]].T

    def _outer(self, mean: np.ndarray) -> np.ndarray:
        return mean**2 if self.diagonal else mean[..., :, None] * mean[..., None, :]


def _in_fibre(layout: Layout, fibre: Mapping[str, int]) -> np.ndarray:
    """Which positions of a dimension lie in a fibre, as far as the dimension has its axes."""
    inside = np.ones(layout.size, bool)
    axes = layout.axes()
    for key, place in fibre.items():
        if key in axes:
            inside &= layout.index(key) == place
    return inside


CORRELATION = number("(0, 1]", "an absolute correlation")


@dataclasses.dataclass(frozen=True)
class AxisMoments:
    """Moments of the activations along one hidden axis.

    Attributes:
        axis: the axis, of d channels.
        count: the number of vectors.
        mean: for each fibre, such as a head.
        cov: about the mean.
    """

    axis: Axis
    count: float
    mean: Float[np.ndarray, "fibres d"]
    cov: Float[np.ndarray, "fibres d d"]

    @property
    def second(self) -> Float[np.ndarray, "fibres d d"]:
        """Second moments about zero."""
        return self.cov + self.mean[:, :, None] * self.mean[:, None, :]

    @property
    def correlations(self) -> Float[np.ndarray, "fibres d d"]:
        """Correlations of the channels; zero with a channel that is constant."""
        scale = np.sqrt(np.einsum("fii->fi", self.cov))
        safe = np.where(scale > 0, scale, 1)
        varying = (scale[:, :, None] > 0) & (scale[:, None, :] > 0)
        return np.where(varying, self.cov / safe[:, :, None] / safe[:, None, :], 0)

    @property
    def spectrum(self) -> Float[np.ndarray, "fibres d"]:
        """The variances along the principal directions, largest first."""
        return np.maximum(np.linalg.eigvalsh(self.cov)[:, ::-1], 0)

    @checked(threshold=CORRELATION, fibre=whole(0))
    def groups(self, threshold: float = 0.9, fibre: int = 0) -> list[list[int]]:
        """Groups of redundant channels, larger groups first.

        Args:
            threshold: channels with an absolute correlation of at least this are in one group.
            fibre: which fibre.

        Returns:
            The channels of each group of two or more.

        Example:
            >>> import jax.numpy as jnp, jaxcompress as jc
            >>> def apply(p, x):
            ...     return (x @ p["up"]) @ p["down"]
            >>> params = {"up": jnp.array([[1.0, 0, -2], [0, 1, 0]]), "down": jnp.ones((3, 2))}
            >>> x = jnp.array([[1.0, 0], [0, 1], [1, 1], [0, 0]])
            >>> net = jc.trace(apply, params, x)
            >>> jc.calibrate(net, params, [x], progress=False)["up:1"].groups()
            [[0, 2]]
        """
        self._check_fibre(fibre)
        linked = np.abs(self.correlations[fibre]) >= threshold
        np.fill_diagonal(linked, True)
        count, labels = connected_components(linked)
        groups = [np.flatnonzero(labels == label).tolist() for label in range(count)]
        return sorted((group for group in groups if len(group) > 1), key=len, reverse=True)

    def _check_fibre(self, fibre: int) -> None:
        """Refuse a fibre that the axis does not have."""
        if fibre >= len(self.mean):
            raise ValueError(
                f"{self.axis.key} has {len(self.mean)} fibres, counted from 0: fibre={fibre} is "
                "not among them"
            )

    @checked(threshold=CORRELATION, fibre=whole(0))
    def plot(
        self, *, threshold: float = 0.9, fibre: int = 0, path: str | Path | None = None
    ) -> Figure:
        """Draw the correlations of the channels, similar ones side by side, and the spectrum.

        Args:
            threshold: groups of channels with at least this correlation are listed below.
            fibre: which fibre.
            path: also save the picture there.

        Returns:
            The matplotlib figure.
        """
        self._check_fibre(fibre)
        return plot_correlations(
            self.axis.key,
            self.correlations[fibre],
            self.spectrum[fibre],
            self.groups(threshold, fibre),
            threshold=threshold,
            path=path,
        )
