"""Prune by batch norms: which units matter is read off the norms, without data.

A norm's result is close to normal, of mean beta and deviation |gamma|, so that the distribution of
every unit h_i after the activation is known (`moments/unit_distributions.py`). Replaced by its
mean, which goes into the consumers' biases or their norms' means, a unit with kernel rows C_i costs

    var(h_i) |C_i|^2        of all consumers' results    sum_i var(h_i) |C_i|^2

A unit that is almost never active costs next to nothing. What the others supply of a consumer's
variance tells its norm the variance that is left. One that is almost always active is linear: where
the kernel rows of several such units depend on each other, one follows from the others exactly.
Costs O(d) quadratures and one decomposition an axis.

    Source: network slimming (arXiv:1708.06519) for gamma alone; REPAIR (arXiv:2211.08403) for
    variances
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.checks import checked, choice, instance, number, path_pattern
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.axes import Axis
from jaxcompress.networks.batch_norms import check_norms
from jaxcompress.networks.trace import Network, network
from jaxcompress.tables import Table
from jaxcompress.transforms.axis_selection import largest
from jaxcompress.transforms.axiswise import AxisTransform
from jaxcompress.transforms.base import check_tree
from jaxcompress.transforms.budget import Budget, Items, Plan, joint, plan_for, plan_of
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.norm_facts import LEAST, RARELY, NormFacts
from jaxcompress.transforms.norm_transform import NormTransform
from jaxcompress.transforms.options import Keep, PerLeaf, PerPattern, check_keep
from jaxcompress.transforms.rotation import axis_item, axis_items, least_option

METHODS = ("units", "slimming")


@dataclasses.dataclass(frozen=True)
class Unit:
    """One unit of a hidden axis, as its norm tells it.

    Attributes:
        axis: the key of its axis.
        index: its place there.
        active: the probability that its pre-activation is positive.
        mean: of what its consumers take in, averaged over them.
        deviation: of the same.
        error: the share of its consumers' variance that is lost where it is replaced by its mean.
    """

    axis: str
    index: int
    active: float
    mean: float
    deviation: float
    error: float

    def _cells(self) -> tuple[str, ...]:
        numbers = (self.active, self.mean, self.deviation, self.error)
        return (self.axis, str(self.index), *(f"{number:.3g}" for number in numbers))


@dataclasses.dataclass(frozen=True, repr=False)
class PruneBatchnorm(NormTransform, AxisTransform):
    """See `prune_batchnorm`."""

    keep: PerPattern[float] | Budget = 1.0
    tolerance: float | None = None
    axes: str = "**"
    method: str = "units"
    rescale: bool = True
    facts: NormFacts | None = dataclasses.field(default=None, compare=False)

    def hidden(self) -> tuple[str, ...]:
        """Fields that are no arguments, and the keep where a tolerance replaces it."""
        replaced = ("keep",) if self.tolerance is not None else ()
        return (*super().hidden(), "facts", *replaced)

    def plan(self, params: PyTree, moments: Moments | None = None) -> Plan:
        """The size of every axis, and the variance that its consumers lose over what is left.

        Args:
            params: the network's parameters.
            moments: not used: the norms tell all.

        Returns:
            The plan, a table that prints; its methods say how many units are almost never and
            almost always active.

        Raises:
            ValueError: for a total that the axes cannot reach.
        """
        check_tree(params)
        before, items = float(stored_numbers(params)), self.items(params, moments)
        if isinstance(self.keep, Budget):
            return plan_for(
                self.keep, [items], before, lambda plan: self.divided(plan)(params, moments)
            )
        if self.tolerance is not None:
            lost = [row.errors / (1 + row.errors) for row in items.rows]
            options = [least_option(shares, 1 - self.tolerance, 1.0) for shares in lost]
            return plan_of(joint([items], before), options)
        keeps = PerLeaf(self.keep, "keep")
        given = [keeps.get(item.key) for item in items.rows]
        chosen = [items.option(i, 1.0 if k is None else k) for i, k in enumerate(given)]
        return plan_of(joint([items], before), chosen)

    def units(self, params: PyTree) -> Table[Unit]:
        """Every unit of the axes that norms explain, a table that prints."""
        facts, state = NormFacts.of(self.net, params), self.start(params, None)
        rows = []
        for axis in self.explained(facts, state):
            errors, intakes = facts.errors(state, axis), facts.of_axis(axis)
            columns = [
                np.mean([intake.units.active for intake in intakes], 0),
                np.mean([intake.units.mean for intake in intakes], 0),
                np.sqrt(np.mean([intake.units.variance for intake in intakes], 0)),
                errors,
            ]
            numbers = np.stack(columns, 1)
            rows += [Unit(axis.key, i, *map(float, row)) for i, row in enumerate(numbers)]
        headers = ("axis", "unit", "active", "mean", "deviation", "error")
        return Table(tuple(rows), headers, "no unit that a norm explains")

    def items(self, params: PyTree, moments: Moments | None) -> Items:
        """The axes that a budget is divided among, with the sizes that they can be cut to."""
        facts, state = NormFacts.of(self.net, params), self.start(params, None)
        axes = [axis for axis in self.explained(facts, state) if state.size(axis) > 1]
        rows = []
        for axis in axes:
            state.check_dense(axis)
            errors = facts.errors(state, axis)
            lost = np.append(np.cumsum(np.sort(errors))[::-1], 0.0)
            # noise over signal: layers multiply, so that none may lose nearly all
            curve = lost / np.maximum(1 - lost, LEAST)
            sizes = np.arange(1, state.size(axis) + 1)
            rows.append(axis_item(axis.key, curve, sizes, described(facts, axis)))
        return axis_items(state, axes, tuple(rows))

    def settled(self, params: PyTree, moments: Moments | None) -> PruneBatchnorm:
        """The transform with what the norms tell, and a keep for each axis."""
        planned = self.tolerance is not None or isinstance(self.keep, Budget)
        known = self.divided(self.plan(params, moments)) if planned else self
        return dataclasses.replace(known, facts=NormFacts.of(self.net, params))

    def divided(self, plan: Plan) -> PruneBatchnorm:
        """The transform with the keeps of a plan."""
        return dataclasses.replace(self, keep=tuple(plan.keeps.items()), tolerance=None)

    def change(self, state: NetworkState, axis: Axis) -> AxisChange | None:
        """The units of one axis that are kept; the others' means go into the consumers."""
        assert not isinstance(self.keep, Budget), "a budget is settled before any change"
        keep = PerLeaf(self.keep, "keep").get(axis.key)
        present = state.size(axis)
        size = present if keep is None else max(round(keep * present), 1)
        if size == present or not self.can_resize(state, axis, size):
            return None
        state.check_dense(axis)
        facts = self.facts
        assert facts is not None, "settled before any change"
        if self.why_not(facts, state, axis):  # `check_effect` has said so
            return None
        if self.method == "slimming":
            return AxisChange(largest(np.abs(facts.scales[axis.key]).mean(0)[None], size))
        change = largest(facts.errors(state, axis)[None], size)
        fold = facts.predictions(state, axis, change.produce[0].any(1))
        complete = dataclasses.replace(change, consume=fold[None])
        return AxisChange(complete, facts.adapted(state, axis, fold, rescale=self.rescale))

    def check_effect(self, state: NetworkState, axes: list[Axis]) -> None:
        """Refuse axes of which norms tell nothing, and warn of single ones."""
        assert self.facts is not None, "settled before any change"
        reasons = {axis.key: self.why_not(self.facts, state, axis) for axis in axes}
        left = [f"{key} ({why})" for key, why in reasons.items() if why]
        if len(left) == len(axes):
            raise ValueError(f"prune_batchnorm: norms explain none of the axes: {'; '.join(left)}")
        if left:
            warnings.warn(f"prune_batchnorm leaves {'; '.join(left)}", stacklevel=6)

    def why_not(self, facts: NormFacts, state: NetworkState, axis: Axis) -> str | None:
        """Why the norms do not tell how to cut an axis, or None."""
        if self.method == "slimming":
            return None if axis.key in facts.scales else "no norm has a scale along it"
        return facts.why_not(state, axis)

    def explained(self, facts: NormFacts, state: NetworkState) -> list[Axis]:
        """The axes whose units norms explain."""
        return [axis for axis in self.chosen() if facts.why_not(state, axis) is None]


def described(facts: NormFacts, axis: Axis) -> str:
    """How an axis is cut, for a plan."""
    active = np.mean([intake.units.active for intake in facts.of_axis(axis)], 0)
    never, always = int((active < RARELY).sum()), int((active > 1 - RARELY).sum())
    return f"select and fold means: {never} almost never active, {always} almost always"


@checked(
    net=network,
    tolerance=number("[0, 1)", "the share of the consumers' variance that an axis may lose"),
    axes=path_pattern,
    method=choice(*METHODS),
    rescale=instance(bool, "True or False"),
)
def prune_batchnorm(
    net: Network,
    keep: Keep | None = None,
    *,
    tolerance: float | None = None,
    axes: str = "**",
    method: str = "units",
    rescale: bool = True,
) -> PruneBatchnorm:
    """Remove the units that batch norms tell are least needed; no data is seen.

    Args:
        net: from `jc.trace`, of a function in inference mode whose parameters include the running
            statistics.
        keep: the fraction of the units to keep, in (0, 1]; a mapping from patterns of axis keys to
            fractions; or `jc.budget(total)`.
        tolerance: instead of `keep`, the share in [0, 1) of its consumers' variance that every axis
            may lose, as the norms predict it: 1e-4 removes what is almost never active.
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".
        method: "units", or "slimming" for the norm's scale alone, without a fold: a baseline.
        rescale: tell the norms after the consumers the variance that is left to them.

    Returns:
        A transform. `transform.units(params)` prints the probability that each unit is active, and
        what it is worth; `transform.plan(params)` the sizes and the errors predicted. Axes that no
        norm explains stay as they are, and a warning names them.

    Raises:
        ValueError: for a network without norms that use running statistics, a keep or a tolerance
            out of range, both or neither of them; when called, for an axis of a compact leaf.

    Source:
        Network slimming (arXiv:1708.06519) for the scale alone; REPAIR (arXiv:2211.08403) for the
        variances.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     y = (x @ p["up"] - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["gamma"] + p["beta"]
        ...     return jax.nn.relu(y) @ p["down"]
        >>> params = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2)), "mean": jnp.zeros(4)}
        >>> params |= {"var": jnp.ones(4), "gamma": jnp.full(4, 0.1)}
        >>> params |= {"beta": jnp.array([1.0, -1.0, 1.0, -1.0])}
        >>> prune = jc.prune_batchnorm(jc.trace(apply, params, jnp.ones((5, 3))), tolerance=1e-4)
        >>> small = prune(params)  # two units are never active, the others linear and alike
        >>> prune.units(params)["up:1"].active, small["up"].shape
        (1.0, (3, 1))
    """
    if (keep is None) == (tolerance is None):
        raise ValueError("prune_batchnorm takes either keep or tolerance, not both or neither")
    check_norms("prune_batchnorm", net)
    keeps = 1.0 if keep is None else check_keep(keep)
    if not isinstance(keeps, Budget):
        PerLeaf(keeps, "keep").check_keys(net.axes.keys())
    return PruneBatchnorm(net.structure, net, keeps, tolerance, axes, method, rescale)
