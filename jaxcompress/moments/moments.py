"""Moments of all activations that a network contracts, carried along by every map on its axes.

`calibrate` gathers them; from them come the metric of every matrix's inputs (`by_leaf`) and the
statistics of every hidden axis (`moments[axis]`). A map on an axis maps the moments too: exactly on
the axis itself, to first order downstream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float, PyTree

from jaxcompress.checkpoint.records import record
from jaxcompress.moments.statistics import AxisMoments, Statistic
from jaxcompress.networks.axes import Axis, Site, Structure
from jaxcompress.networks.maps import AxisMap
from jaxcompress.programs.program import Slot


def gain_key(site: Site, leaf: str) -> str:
    """Where the gain at a contraction is kept for a leaf: a leaf alone has the contraction's key.

    Args:
        site: the contraction.
        leaf: one of its leaves.
    """
    return site.key if len(site.leaves) == 1 else f"{site.key}/{leaf}"


@record
@dataclasses.dataclass(frozen=True, repr=False)
class Moments:
    """The activations' statistics of one network, at the sizes of the parameters they came from.

    Attributes:
        structure: the network's axes.
        sites: a statistic for each contraction with a parameter.
        pairs: two for each contraction of activations with activations.
        counts: for each embedding how often each of its rows was looked up.
        gains: for each contraction the second moments of the outputs' gradient at its result
            (moments/sensitivity.py), by `gain_key`; empty unless asked for.
        reference: the parameters that were calibrated.
        changes: the maps that have been applied to axes since, in their order.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> moments = jc.calibrate(jc.trace(apply, params, x), params, [x], progress=False)
        >>> moments
        Moments(2 contractions, 0 pairs, up to 50 vectors)
        >>> {leaf: metric.shape for leaf, metric in moments.by_leaf().items()}
        {'down': (8, 8), 'up': (3, 3)}
    """

    structure: Structure
    sites: Mapping[str, Statistic]
    pairs: Mapping[str, tuple[Statistic, Statistic]]
    counts: Mapping[str, Float[np.ndarray, " rows"]]
    gains: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
    reference: PyTree = None
    changes: tuple[tuple[Axis, AxisMap], ...] = ()

    def __getitem__(self, axis: str) -> AxisMoments:
        """The moments along one hidden axis.

        Raises:
            KeyError: for an unknown axis, or one that no contraction has.
        """
        row = self.structure.axes[axis]
        assert isinstance(row, Axis)
        statistics = [s for s in self.sites.values() if s.contracts(row.key)]
        if not statistics:
            for sides in self.pairs.values():
                statistics += [side for side in sides if side.contracts(row.key)]
        if not statistics:
            raise KeyError(f"nothing was measured along {axis}: no contraction is over it")
        return self.pooled(row, statistics)

    def pooled(self, row: Axis, statistics: Iterable[Statistic]) -> AxisMoments:
        """Pool the moments of several contractions along one axis.

        Args:
            row: the axis.
            statistics: of contractions over it, weighted by their counts.
        """
        statistics = list(statistics)
        sizes: dict[str, int] = {}
        for statistic in statistics:
            for layout in (*statistic.lead, *statistic.dims):
                sizes |= {part.key: part.size for part in layout.leaves()}
        fibres = tuple(sizes.get(key, 1) for key in row.fibres)
        total, mean, cov = 0.0, np.zeros(()), np.zeros(())
        for statistic in statistics:
            next_mean, next_cov = statistic.axis(row, fibres)
            weight = max(statistic.count, 1e-30)
            share = weight / (total + weight)
            gap = next_mean - mean
            mean = mean + share * gap
            between = share * (1 - share) * gap[:, :, None] * gap[:, None, :]
            cov = (1 - share) * cov + share * next_cov + between
            total += weight
        return AxisMoments(row, total, mean, cov)

    def check_fit(self, structure: Structure, sizes: Mapping[str, int]) -> None:
        """Refuse moments of another network, or of other sizes of its axes.

        Args:
            structure: the network's axes.
            sizes: the present size of every axis that a parameter has.

        Raises:
            ValueError: naming the contraction and the axis.
        """
        if unknown := sorted(self.sites.keys() - structure.sites.keys()):
            raise ValueError(
                f"the moments are of another network: they have the contractions {unknown}, and "
                f"this one has {sorted(structure.sites)}"
            )
        for key, statistic in self.sites.items():
            for layout in (*statistic.lead, *statistic.dims):
                for part in layout.leaves():
                    if sizes.get(part.key, part.size) != part.size:
                        raise ValueError(
                            f"the moments do not fit the parameters: at {key} the axis {part.key} "
                            f"has {part.size} positions, and the parameters have "
                            f"{sizes[part.key]}: give the moments that `transform.apply(params, "
                            "moments)` returned with these parameters, or call jc.calibrate anew"
                        )

    def by_leaf(self) -> dict[str, Float[np.ndarray, "*lead m m"] | Float[np.ndarray, " rows"]]:
        """The second moments of each matrix's inputs, as far as they are known.

        Returns:
            By the matrix's name (..., m, m). For a table (rows,): the fraction of the look-ups that
            each row has, which is the diagonal for one-hot inputs.
        """
        inputs = self._inputs_by_leaf()
        metrics = {leaf: statistic.second for leaf, statistic in inputs.items()}
        return metrics | self._lookup_shares(inputs)

    def _inputs_by_leaf(self) -> dict[str, Statistic]:
        """The statistic of each matrix's inputs, over all contractions that use it in one way."""
        inputs: dict[str, Statistic] = {}
        orders: dict[str, tuple[int, ...]] = {}
        for key, statistic in self.sites.items():
            site = self.structure.sites[key]
            if statistic.diagonal or site.batch or len(statistic.dims) != len(site.dims):
                continue
            for leaf, order in site.inputs.items():
                # a tied kernel is also contracted over other dimensions: the first use counts
                first = orders.setdefault(leaf, order)
                if order != first or list(order) != sorted(order):
                    continue
                inputs[leaf] = inputs[leaf] + statistic if leaf in inputs else statistic
        return inputs

    def _lookup_shares(
        self, others: Mapping[str, Statistic]
    ) -> dict[str, Float[np.ndarray, " rows"]]:
        """The fraction of look-ups of each row, of tables that are not contracted as well."""
        tables = {site.slots for site in self.structure.sites.values()}
        shares = {}
        for leaf, count in self.counts.items():
            if leaf not in others and count.any() and (Slot(leaf, 0),) in tables:
                shares[leaf] = count / count.sum()
        return shares

    def gain_by_leaf(self) -> dict[str, float]:
        """For every kernel the mean squared gradient of the outputs at one of its results."""
        means: dict[str, float] = {}
        for key, leaf in self._gain_keys().items():
            gain = self.gains.get(key)
            if gain is None:
                continue
            mean = gain.cov.mean() if gain.diagonal else np.trace(gain.cov) / len(gain.cov)
            means[leaf] = means.get(leaf, 0.0) + float(mean)
        return means

    def _gain_keys(self) -> dict[str, str]:
        """For every key that a gain can have its leaf."""
        return {
            gain_key(site, leaf): leaf
            for site in self.structure.sites.values()
            for leaf in site.leaves
        }

    def mapped(self, axis: Axis, change: AxisMap) -> Moments:
        """The moments after a map on one axis: exact there, first order downstream.

        Args:
            axis: the axis.
            change: its map.
        """
        sites = {key: s.mapped(axis, change.produce) for key, s in self.sites.items()}
        pairs = {}
        for key, (left, right) in self.pairs.items():
            first, second = self.structure.pairs[key].sides
            pairs[key] = (
                left.mapped(axis, _own_matrix(change, first)),
                right.mapped(axis, _own_matrix(change, second)),
            )
        gains = {
            key: gain.mapped(axis, self._gradient_map(key, axis, change))
            for key, gain in self.gains.items()
        }
        changes = (*self.changes, (axis, change))
        return dataclasses.replace(self, sites=sites, pairs=pairs, gains=gains, changes=changes)

    def _gradient_map(
        self, key: str, axis: Axis, change: AxisMap
    ) -> Float[np.ndarray, "fibres d r"]:
        """The matrix that maps gradients at a contraction's result.

        It is the transpose of the map back to the axis's full size.
        """
        if not axis.pair:
            return np.swapaxes(change.consume, -1, -2)
        leaf = self._gain_keys().get(key)
        own = _own_matrix(change, [slot for slot in change.other if slot.leaf == leaf])
        return np.swapaxes(np.linalg.pinv(own), -1, -2)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of data.

        Raises:
            ValueError: for moments of another network, or at other sizes.
        """
        if not isinstance(other, Moments) or self.sites.keys() != other.sites.keys():
            raise ValueError("moments can be added where they are of one network")
        for key, statistic in self.sites.items():
            if statistic.mean.shape != other.sites[key].mean.shape:
                raise ValueError("moments can be added where they were gathered at the same sizes")
        pairs = {
            key: (left + other.pairs[key][0], right + other.pairs[key][1])
            for key, (left, right) in self.pairs.items()
        }
        common = self.gains.keys() & other.gains.keys()
        return dataclasses.replace(
            self,
            sites={key: statistic + other.sites[key] for key, statistic in self.sites.items()},
            pairs=pairs,
            counts={key: count + other.counts[key] for key, count in self.counts.items()},
            gains={key: self.gains[key] + other.gains[key] for key in self.gains if key in common},
        )

    def __repr__(self) -> str:
        vectors = max((statistic.count for statistic in self.sites.values()), default=0)
        diagonal = [key for key, statistic in self.sites.items() if statistic.diagonal]
        note = f"; diagonal alone for {', '.join(diagonal)}" if diagonal else ""
        sizes = f"{len(self.sites)} contractions, {len(self.pairs)} pairs"
        return f"Moments({sizes}, up to {vectors:,.0f} vectors{note})"


def _own_matrix(change: AxisMap, slots: Iterable[Slot]) -> Float[np.ndarray, "fibres d r"]:
    """The matrix of the first of some slots that has one of its own, else the producers'."""
    for slot in slots:
        if slot in change.other:
            return change.other[slot]
    return change.produce
