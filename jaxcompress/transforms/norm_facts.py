"""What batch norms tell of a hidden axis: what each unit is worth, and what a cut changes.

Replaced by its mean, unit i with the kernel rows C_i costs its consumers `var(h_i) |C_i|^2` of the
variance `sum_i var(h_i) |C_i|^2` of their results. The mean goes into the bias or the norm of each
consumer, and the norm is told the share of the variance that is left. A unit that is almost always
active is linear in its inputs, so that one whose kernel row is a combination of other such rows
follows from those units exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, PyTree

from jaxcompress.arrays.layout import to_rows
from jaxcompress.moments.unit_distributions import Intake, unit_distributions
from jaxcompress.networks.axes import Axis, Site, Structure
from jaxcompress.networks.batch_norms import BatchNorm, NormNumbers, locate_norms, numbers_of
from jaxcompress.networks.trace import Network
from jaxcompress.transforms.consumers import bias_leaf, sites_of
from jaxcompress.transforms.folds import result_shift
from jaxcompress.transforms.network_state import NetworkState

RARELY = 1e-3
"""The probability below which a unit is almost never active."""
LEAST = 1e-3
"""The least share of a variance that a norm is told is left."""
EXACT = 1e-9
"""The share of a kernel row that others may leave unexplained."""


@dataclasses.dataclass(frozen=True, eq=False)
class NormFacts:
    """What the norms tell of a network at given parameters.

    Attributes:
        structure: the network's axes.
        intakes: what each contraction takes in, by key.
        norms: the norm that follows a kernel directly, by the kernel's name, and its numbers.
        scales: the scales of all norms along an axis, by its key.
    """

    structure: Structure
    intakes: Mapping[str, Intake]
    norms: Mapping[str, tuple[BatchNorm, NormNumbers]]
    scales: Mapping[str, list[Float[np.ndarray, " d"]]]

    @classmethod
    def of(cls, net: Network, params: PyTree) -> NormFacts:
        """The facts of a network at parameters of any sizes."""
        norms: dict[str, tuple[BatchNorm, NormNumbers]] = {}
        scales: dict[str, list[np.ndarray]] = {}
        for located in locate_norms(net.traces(net.full, net.inputs)):
            norm, numbers = located.norm, numbers_of(net, located, params)
            if norm.kernel is not None:
                norms[norm.kernel.leaf] = (norm, numbers)
            if norm.scale is not None:
                scales.setdefault(norm.axis, []).append(numbers.scale)
        return cls(net.structure, unit_distributions(net, params), norms, scales)

    def why_not(self, state: NetworkState, axis: Axis) -> str | None:
        """Why the norms do not tell what an axis's units do, or None."""
        sites = sites_of(self.structure, axis)
        if not sites or axis.pair or state.fibres(axis) > 1:
            return "its consumers are no plain contractions"
        for site in sites:
            intake = self.intakes.get(site.key)
            if intake is None or len(intake.units.active) != state.size(axis):
                return f"no batch norm tells what {site.key} takes in"
            if len(site.leaves) != 1 or site.layers:
                return f"{site.key} is no product with one kernel"
        return None

    def of_axis(self, axis: Axis) -> list[Intake]:
        """What the consumers of an axis take in."""
        return [self.intakes[site.key] for site in sites_of(self.structure, axis)]

    # --- what a unit is worth ---------------------------------------------------------------------

    def errors(self, state: NetworkState, axis: Axis) -> Float[np.ndarray, " d"]:
        """The share of the consumers' variance that each unit supplies, their average."""
        shares = []
        for site in sites_of(self.structure, axis):
            supplied = self.supplied(state, axis, site)
            total = supplied.sum(0)
            shares.append((supplied / np.where(total > 0, total, 1)).mean(1))
        errors = np.mean(shares, 0)
        errors[self.dependent(state, axis)] = 0.0
        return errors

    def supplied(self, state: NetworkState, axis: Axis, site: Site) -> Float[np.ndarray, "d p"]:
        """The variance of each result of a consumer that comes from each unit."""
        intake, power = self.intakes[site.key], self._kernel(state, site, 2)
        (kernel,) = site.leaves
        inputs = site.inputs.get(kernel) or tuple(slot.dimension for slot in site.slots)
        slot = next(slot for slot in site.slots if slot in axis.consumers)
        rows = state.unfold(axis, slot, power)[0]
        others = [place for place in range(power.ndim) if place != slot.dimension]
        rows = rows.reshape(len(rows), *(power.shape[place] for place in others), -1)
        summed = [1 + index for index, place in enumerate(others) if place in inputs]
        rows = rows.sum((*summed, -1)).reshape(len(rows), -1)
        lost = intake.units.variance
        if self._absorber(state, site) is None:
            lost = lost + intake.units.mean**2
        return lost[:, None] * rows

    def _kernel(self, state: NetworkState, site: Site, power: int) -> np.ndarray:
        """A consumer's kernel to a power, less where its window reaches over the border."""
        (kernel,) = site.leaves
        values, coverage = state.leaves[kernel] ** power, self.intakes[site.key].coverage
        if coverage is None or coverage.ndim != values.ndim:
            return values
        return values * coverage

    # --- units that are linear --------------------------------------------------------------------

    def linear(self, axis: Axis) -> Bool[np.ndarray, " d"]:
        """The units that are almost always active and linear then."""
        units = [intake.units for intake in self.of_axis(axis)]
        always = [one.active > 1 - RARELY for one in units]
        straight = [one.nonlinear <= RARELY * one.variance for one in units]
        return np.all([*always, *straight], 0)

    def dependent(self, state: NetworkState, axis: Axis) -> Bool[np.ndarray, " d"]:
        """The linear units that follow from other linear units exactly."""
        rows, linear = self._directions(state, axis), self.linear(axis)
        dependent = np.zeros(len(linear), bool)
        if rows is None:
            return dependent
        basis: list[int] = []
        for unit in np.flatnonzero(linear).tolist():
            if basis and _combination(rows, basis, unit) is not None:
                dependent[unit] = True
            else:
                basis.append(unit)
        return dependent

    def predictions(
        self, state: NetworkState, axis: Axis, kept: Bool[np.ndarray, " d"]
    ) -> Float[np.ndarray, "r d"]:
        """All units from the kept ones: dependent linear ones exactly, others not at all."""
        fold = np.eye(len(kept))[kept]
        rows, linear = self._directions(state, axis), self.linear(axis)
        basis = np.flatnonzero(linear & kept).tolist()
        if rows is None or not basis:
            return fold
        slopes = self.of_axis(axis)[0].units.slope
        place = np.cumsum(kept) - 1
        for unit in np.flatnonzero(linear & ~kept).tolist():
            shares = _combination(rows, basis, unit)
            if shares is not None:
                fold[place[basis], unit] = shares * slopes[unit] / slopes[basis]
        return fold

    def _directions(self, state: NetworkState, axis: Axis) -> Float[np.ndarray, "d m"] | None:
        """The kernel row of each unit's normal variable, where one kernel gives all."""
        names = {intake.units.kernel for intake in self.of_axis(axis)}
        name = next(iter(names)) if len(names) == 1 else None
        sites = [site for site in self.structure.sites.values() if name in site.leaves]
        if name is None or len(sites) != 1 or sites[0].batch or name not in sites[0].inputs:
            return None
        norm, numbers = self.norms[name]
        rows = to_rows(state.leaves[name], sites[0].inputs[name]).T
        if len(rows) != state.size(axis):
            return None
        deviation = np.abs(numbers.scale) * np.sqrt(
            numbers.variance / (numbers.variance + norm.epsilon)
        )
        return rows * (numbers.factor(norm.epsilon) / np.maximum(deviation, 1e-30))[:, None]

    # --- what a cut changes -----------------------------------------------------------------------

    def _absorber(self, state: NetworkState, site: Site) -> tuple[str, float] | None:
        """The leaf that takes a change of a consumer's mean result, and what multiplies it."""
        (kernel,) = site.leaves
        norm, numbers = self.norms.get(kernel, (None, None))
        if norm is None or numbers is None:
            return bias_leaf(state, site)
        if norm.obstacle:
            return None
        if norm.bias is not None:
            return norm.bias, 1.0
        return None if norm.mean is None else (norm.mean, -1 / numbers.units.get(norm.mean, 1.0))

    def adapted(
        self, state: NetworkState, axis: Axis, fold: Float[np.ndarray, "r d"], *, rescale: bool
    ) -> dict[str, np.ndarray]:
        """New biases, means and variances of the norms after an axis's consumers.

        Args:
            state: the network before the cut.
            axis: the axis.
            fold: all units from the kept ones.
            rescale: whether norms are told the variance that is left.
        """
        leaves: dict[str, np.ndarray] = {}
        kept, gone = fold.argmax(1), np.abs(fold).sum(0) == 0
        for site in sites_of(self.structure, axis):
            units, absorber = self.intakes[site.key].units, self._absorber(state, site)
            if absorber is not None:
                gap = units.mean - units.mean[kept] @ fold
                shift = result_shift(state, axis, site, self._kernel(state, site, 1), gap[None])
                leaf = leaves.get(absorber[0], state.leaves[absorber[0]])
                leaves[absorber[0]] = leaf + absorber[1] * shift.reshape(leaf.shape)
            norm, _ = self.norms.get(site.leaves[0], (None, None))
            if rescale and norm is not None and not norm.obstacle:
                supplied = self.supplied(state, axis, site)
                total = supplied.sum(0)
                left = 1 - gone @ supplied / np.where(total > 0, total, 1)
                variance = leaves.get(norm.variance, state.leaves[norm.variance])
                leaves[norm.variance] = variance * np.maximum(left, LEAST).reshape(variance.shape)
        return leaves


def _combination(
    rows: Float[np.ndarray, "d m"], basis: list[int], unit: int
) -> Float[np.ndarray, " basis"] | None:
    """The shares of some rows that add up to another one, or None where they do not."""
    shares = np.linalg.lstsq(rows[basis].T, rows[unit], rcond=1e-6)[0]
    gap = rows[unit] - shares @ rows[basis]
    return shares if gap @ gap <= EXACT * (rows[unit] @ rows[unit]) else None
