"""What flows along the axes: means and second moments of activations, gathered in one pass over any data.

Wherever activations are contracted with a parameter (or with each other) the mean and covariance of what is contracted are
accumulated, about the first batch's mean, in float32 inside a batch and float64 across batches; memory does not depend on
the amount of data. From these come the metric of every matrix's inputs and the statistics of every hidden axis. Costs the
forward pass and m^2 products a row for each contraction of m inputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcompress.networks.axes import Axis, Layout, Structure
from jaxcompress.networks.layout import axis_sizes
from jaxcompress.networks.maps import AxisMap, along, lines


@dataclasses.dataclass(frozen=True)
class Statistic:
    """Mean and covariance of the vectors that one contraction meets.

    Attributes:
        lead: layouts of leading dimensions: layers of a loop, and dimensions that a batched product has.
        dims: layouts of the contracted dimensions.
        count: how many vectors (per entry of `lead`).
        mean: (*lead, m), float64.
        cov: (*lead, m, m), float64, about the mean; (*lead, m) where only the diagonal is kept.
    """

    lead: tuple[Layout, ...]
    dims: tuple[Layout, ...]
    count: float
    mean: np.ndarray
    cov: np.ndarray

    @property
    def diagonal(self) -> bool:
        """Whether only variances are kept."""
        return self.cov.ndim == self.mean.ndim

    @property
    def second(self) -> np.ndarray:
        """Second moments about zero: `cov + mean mean'`."""
        if self.diagonal:
            return self.cov + self.mean**2
        return self.cov + self.mean[..., :, None] * self.mean[..., None, :]

    @property
    def flat(self) -> Layout:
        """The contracted dimensions as one."""
        if len(self.dims) == 1:
            return self.dims[0]
        return Layout("", math.prod(dim.size for dim in self.dims), "product", self.dims)

    def __add__(self, other: Statistic) -> Statistic:
        count = self.count + other.count
        share = other.count / count if count else 0.0
        gap = other.mean - self.mean
        mean = self.mean + share * gap
        outer = gap**2 if self.diagonal else gap[..., :, None] * gap[..., None, :]
        cov = (1 - share) * self.cov + share * other.cov + share * (1 - share) * outer
        return dataclasses.replace(self, count=count, mean=mean, cov=cov)

    def mapped(self, axis: Axis, matrices: np.ndarray) -> Statistic:
        """The statistic of activations that a map changed along an axis."""
        mean, cov = self.mean, self.cov
        lead, flat = list(self.lead), self.flat
        for position, layout in enumerate(self.lead):
            if axis.key in layout.axes():
                mean = along(mean, (*lead, flat), position, axis, matrices)
                trailing = (flat,) if self.diagonal else (flat, flat)
                cov = along(cov, (*lead, *trailing), position, axis, matrices)
                lead[position] = layout.resized({axis.key: matrices.shape[-1]})
        if axis.key in flat.axes():
            where = len(lead)
            mean = along(mean, (*lead, flat), where, axis, matrices)
            if self.diagonal:
                cov = along(cov, (*lead, flat), where, axis, matrices**2)
            else:
                new = flat.resized({axis.key: matrices.shape[-1]})
                cov = along(cov, (*lead, flat, Layout("", flat.size)), where, axis, matrices)
                cov = along(cov, (*lead, Layout("", new.size), flat), where + 1, axis, matrices)
        dims = tuple(dim.resized({axis.key: matrices.shape[-1]}) for dim in self.dims)
        return Statistic(tuple(lead), dims, self.count, mean, cov)

    def axis(self, axis: Axis, fibres: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Mean (F, d) and covariance (F, d, d) along an axis, for each fibre; other positions are pooled."""
        flat = self.flat
        where = lines(flat, axis.key)
        means, covs = [], []
        lead_index = [
            layout.index(key) for layout in self.lead for key in axis.fibres if key in layout.axes()
        ]
        lead_keys = [key for layout in self.lead for key in axis.fibres if key in layout.axes()]
        for place in np.ndindex(*fibres):
            wanted = dict(zip(axis.fibres, place, strict=True))
            mine = np.ones(where.shape[1], bool)
            for key, index in wanted.items():
                if key in flat.axes():
                    mine &= flat.index(key)[where[0]] == index
            mean, cov = self.mean, self.cov
            for key, index in zip(lead_keys, lead_index, strict=True):
                position = next(i for i, layout in enumerate(self.lead) if key in layout.axes())
                rows = np.flatnonzero(index == wanted[key])
                mean, cov = np.take(mean, rows, position), np.take(cov, rows, position)
            mean, cov = mean.reshape(-1, flat.size), cov.reshape(-1, *cov.shape[len(self.lead) :])
            columns = where[:, mine].T  # (lines, d)
            block_mean = mean[:, columns].reshape(-1, len(where))
            if self.diagonal:
                blocks = cov[:, columns].reshape(-1, len(where))
                blocks = np.stack([np.diag(block) for block in blocks])
            else:
                blocks = cov[:, columns[:, :, None], columns[:, None, :]].reshape(
                    -1, len(where), len(where)
                )
            pooled = block_mean.mean(0)
            spread = block_mean - pooled
            means.append(pooled)
            covs.append(blocks.mean(0) + spread.T @ spread / len(spread))
        return np.stack(means), np.stack(covs)


@dataclasses.dataclass(frozen=True)
class AxisMoments:
    """What flows along one hidden axis.

    Attributes:
        axis: the axis.
        count: how many vectors were seen.
        mean: (fibres, d).
        cov: (fibres, d, d), about the mean.
    """

    axis: Axis
    count: float
    mean: np.ndarray
    cov: np.ndarray

    @property
    def second(self) -> np.ndarray:
        """(fibres, d, d): second moments about zero."""
        return self.cov + self.mean[:, :, None] * self.mean[:, None, :]

    @property
    def correlations(self) -> np.ndarray:
        """(fibres, d, d); a channel that never changes correlates with none."""
        scale = np.sqrt(np.einsum("fii->fi", self.cov))
        safe = np.where(scale > 0, scale, 1)
        return np.where(
            (scale[:, :, None] > 0) & (scale[:, None, :] > 0),
            self.cov / safe[:, :, None] / safe[:, None, :],
            0,
        )

    @property
    def spectrum(self) -> np.ndarray:
        """(fibres, d): the variances along the principal directions, largest first."""
        return np.maximum(np.linalg.eigvalsh(self.cov)[:, ::-1], 0)

    def groups(self, threshold: float = 0.9, fibre: int = 0) -> list[list[int]]:
        """Channels that say the same: connected by correlations of either sign above a threshold, larger groups first."""
        from scipy.sparse.csgraph import connected_components

        linked = np.abs(self.correlations[fibre]) >= threshold
        np.fill_diagonal(linked, True)
        count, labels = connected_components(linked)
        found = [np.flatnonzero(labels == label).tolist() for label in range(count)]
        return sorted((group for group in found if len(group) > 1), key=len, reverse=True)

    def plot(self, *, threshold: float = 0.9, fibre: int = 0, path: Any = None) -> Any:
        """Draw the correlations, channels ordered so that alike ones are neighbours, and the spectrum.

        Args:
            threshold: groups of channels above it are named below the picture.
            fibre: which fibre.
            path: also save the picture there.

        Returns:
            The matplotlib figure.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(
                "plot draws with matplotlib: pip install 'jaxcompress[plot]'"
            ) from None
        from scipy.cluster.hierarchy import leaves_list, linkage

        correlations = self.correlations[fibre]
        size = len(correlations)
        order = leaves_list(linkage(correlations, "average")) if size > 2 else np.arange(size)
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        image = left.imshow(
            correlations[np.ix_(order, order)],
            vmin=-1,
            vmax=1,
            cmap="RdBu_r",
            interpolation="nearest",
        )
        left.set(
            title=f"correlations of {self.axis.key}", xlabel="channels, alike ones side by side"
        )
        figure.colorbar(image, ax=left, shrink=0.8)
        variances = self.spectrum[fibre]
        share = np.cumsum(variances) / max(variances.sum(), np.finfo(float).tiny)
        right.plot(np.arange(1, size + 1), 1 - share, marker=".")
        right.set(
            yscale="log",
            xlabel="principal directions kept",
            ylabel="variance left out",
            title="spectrum",
        )
        right.set_ylim(bottom=max(1e-6, (1 - share)[share < 1 - 1e-9].min(initial=1) / 2))
        right.grid(alpha=0.3)
        groups = self.groups(threshold, fibre)
        shown = "; ".join(str(group) for group in groups[:3]) + (
            f"; and {len(groups) - 3} more" if len(groups) > 3 else ""
        )
        figure.suptitle(
            f"|correlation| >= {threshold:g}: {shown or 'no two channels'}",
            fontsize="small",
            y=-0.02,
        )
        if path is not None:
            figure.savefig(path, dpi=150, bbox_inches="tight")
        return figure


@dataclasses.dataclass(frozen=True, repr=False)
class Moments:
    """The activations' statistics of one network, at the sizes of the parameters they were gathered with.

    Attributes:
        structure: the network's axes.
        sites: a statistic for each contraction with a parameter.
        pairs: two for each contraction of activations with activations.
        counts: for each embedding how often each row was looked up.
        gains: for each contraction what its result means to the network's outputs (moments/sensitivity.py); empty where that
            was not asked for.
        reference: the parameters that they were gathered with at first.
        changes: the maps that have been applied to axes since, in their order.
    """

    structure: Structure
    sites: Mapping[str, Statistic]
    pairs: Mapping[str, tuple[Statistic, Statistic]]
    counts: Mapping[str, np.ndarray]
    gains: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
    reference: Any = None
    changes: tuple[tuple[Axis, AxisMap], ...] = ()

    def __getitem__(self, axis: str) -> AxisMoments:
        """The statistics along one hidden axis."""
        row = self.structure.axes[axis]
        assert isinstance(row, Axis)
        found = [
            statistic
            for statistic in self.sites.values()
            if any(row.key in dim.axes() for dim in statistic.dims)
        ]
        if not found:
            found = [
                side
                for sides in self.pairs.values()
                for side in sides
                if any(row.key in dim.axes() for dim in side.dims)
            ]
        if not found:
            raise KeyError(f"nothing was measured along {axis}: no contraction meets it")
        return self.pooled(row, found)

    def pooled(self, row: Axis, found: list[Statistic]) -> AxisMoments:
        """Several statistics along one axis as one."""
        sizes = axis_sizes(layout for s in found for layout in (*s.lead, *s.dims))
        fibres = tuple(sizes.get(key, 1) for key in row.fibres)
        total, mean, cov = 0.0, np.zeros(()), np.zeros(())
        for statistic in found:
            m, c = statistic.axis(row, fibres)
            weight = max(statistic.count, 1e-30)
            share = weight / (total + weight)
            gap = m - mean
            mean = mean + share * gap
            cov = (
                (1 - share) * cov
                + share * c
                + share * (1 - share) * gap[:, :, None] * gap[:, None, :]
            )
            total += weight
        return AxisMoments(row, total, mean, cov)

    def by_leaf(self) -> dict[str, np.ndarray]:
        """For every matrix the second moments of its inputs, where they are known: (..., m, m).

        For a table, (rows,): the share of the look-ups that each row has, the diagonal of what a one-hot input would give.
        """
        found: dict[str, Statistic] = {}
        orders: dict[str, tuple[int, ...]] = {}
        for key, statistic in self.sites.items():
            site = self.structure.sites[key]
            usable = not (statistic.diagonal or site.batch) and len(statistic.dims) == len(
                site.dims
            )
            for leaf, order in site.inputs.items() if usable else ():
                first = orders.setdefault(
                    leaf, order
                )  # a kernel may also be read along other dimensions, as a tied one is
                if (
                    list(order) == sorted(order) and order == first
                ):  # a matrix is read with its inputs in their own order
                    found[leaf] = found[leaf] + statistic if leaf in found else statistic
        looked_up = {
            leaf: count / count.sum()
            for leaf, count in self.counts.items()
            if leaf not in found
            and count.any()
            and any(site.slots == ((leaf, 0),) for site in self.structure.sites.values())
        }
        return {leaf: statistic.second for leaf, statistic in found.items()} | looked_up

    def gain_by_leaf(self) -> dict[str, float]:
        """For every kernel how much the outputs feel one of its results, on average; those that are known."""
        found: dict[str, float] = {}
        for key, gain in self.gains.items():
            for leaf in self.structure.sites[key].leaves if key in self.structure.sites else ():
                mean = gain.cov.mean() if gain.diagonal else np.trace(gain.cov) / len(gain.cov)
                found[leaf] = found.get(leaf, 0.0) + float(mean)
        return found

    def mapped(self, axis: Axis, change: AxisMap) -> Moments:
        """The moments of the network after a map on one axis: exact there, first order downstream."""
        touches = lambda statistic: any(
            axis.key in layout.axes() for layout in (*statistic.lead, *statistic.dims)
        )
        produce = change.produce
        sites = {k: s.mapped(axis, produce) if touches(s) else s for k, s in self.sites.items()}
        pairs = dict(self.pairs)
        for key, sides in pairs.items():
            slots = self.structure.pairs[key].sides
            maps = [
                next((change.other[slot] for slot in side if slot in change.other), produce)
                for side in slots
            ]
            pairs[key] = tuple(
                s.mapped(axis, m) if touches(s) else s for s, m in zip(sides, maps, strict=True)
            )  # type: ignore[assignment]
        gains = {}
        for (
            key,
            gain,
        ) in (
            self.gains.items()
        ):  # a derivative goes back through what takes the place of the full axis
            slots = () if key in self.structure.pairs else self.structure.sites[key].leaves
            mine = next(
                (m for slot, m in change.other.items() if axis.pair and slot.leaf in slots),
                produce,
            )
            back = np.linalg.pinv(mine) if axis.pair else change.consume
            gains[key] = gain.mapped(axis, np.swapaxes(back, -1, -2)) if touches(gain) else gain
        return dataclasses.replace(
            self, sites=sites, pairs=pairs, gains=gains, changes=(*self.changes, (axis, change))
        )

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of data."""
        if not isinstance(other, Moments) or self.sites.keys() != other.sites.keys():
            raise ValueError("moments are added where they are of one network")
        shapes = lambda moments: [statistic.mean.shape for statistic in moments.sites.values()]
        if shapes(self) != shapes(other):
            raise ValueError("moments are added where they were gathered at the same sizes")
        return dataclasses.replace(
            self,
            sites={key: statistic + other.sites[key] for key, statistic in self.sites.items()},
            pairs={
                key: (a + other.pairs[key][0], b + other.pairs[key][1])
                for key, (a, b) in self.pairs.items()
            },
            counts={key: count + other.counts[key] for key, count in self.counts.items()},
            gains={
                key: gain + other.gains[key]
                for key, gain in self.gains.items()
                if key in other.gains
            },
        )

    def __repr__(self) -> str:
        rows = max((statistic.count for statistic in self.sites.values()), default=0)
        diagonal = [key for key, statistic in self.sites.items() if statistic.diagonal]
        note = f"; diagonal alone for {', '.join(diagonal)}" if diagonal else ""
        return f"Moments({len(self.sites)} contractions, {len(self.pairs)} pairs, up to {rows:,.0f} vectors{note})"
