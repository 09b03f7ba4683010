"""Linearize: what is linear where the data lives is computed by a few linear units.

Of a layer `h = f(x W + b)` and its consumers C, a part of h C is an affine function of x on the
data: units that are always on, and what an affine map predicts of the others. `linear_units.py`
writes the best directions of that map into the axis as units of their own; then units of both
kinds are selected together, each where it explains most of the consumers' results, and what is left
out is folded into the consumers. r linear units replace any number of units that are always on and
have a map of rank r; with no other units left the layer is a linear map of rank r.

    small = jc.linearize(net, batches, keep=1/4)(params, moments)

Costs three passes over data and a selection among the d + q units of an axis.

Source: the linear part of transformers' layers, Razzhigaev et al. 2024 (arXiv:2405.12250); the
interpolative decomposition for networks (arXiv:2108.00065).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.checks import checked, number, path_pattern
from jaxcompress.moments.calibration import Calibration, calibrate
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.axes import Axis
from jaxcompress.networks.maps import selecting
from jaxcompress.networks.trace import Network, network
from jaxcompress.transforms.base import Scope, check_tree
from jaxcompress.transforms.budget import Budget, Items, Plan, Share
from jaxcompress.transforms.curves import error_curve
from jaxcompress.transforms.linear_units import LinearPart, linear_part, widened
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.options import Keep, PerLeaf, PerPattern, check_keep
from jaxcompress.transforms.recalibrate import DataTransform
from jaxcompress.transforms.rotation import RotateAndPrune, axis_item, axis_items, planned_sizes

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Offered:
    """A network into which linear units have been widened.

    Attributes:
        net: the network.
        before: the parameters as they were given.
        after: with the linear units, and moments gathered anew.
        parts: the linear part of each axis, by key.
        left_out: why other axes have none, by key.
    """

    net: Network
    before: NetworkState
    after: NetworkState
    parts: dict[str, LinearPart]
    left_out: dict[str, str]

    def axes(self) -> list[Axis]:
        """The axes that have linear units."""
        return [axis_of(self.net, key) for key in self.parts]


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Linearize(DataTransform):
    """See `linearize`."""

    keep: PerPattern[float] | Budget = 1.0
    tolerance: float | None = None
    axes: str = "**"

    def hidden(self) -> tuple[str, ...]:
        """Fields that are no named arguments, and the keep where a tolerance replaces it."""
        return ("net", "data") if self.tolerance is None else ("net", "data", "keep")

    def _content(self) -> tuple[object, ...]:
        return (*super()._content(), self.keep, self.tolerance, self.axes)

    def plan(self, params: PyTree, moments: Moments | None = None) -> Plan:
        """What of every axis is linear, its size, and the predicted error.

        Args:
            params: the network's parameters.
            moments: of `jc.calibrate`; where they hold the sensitivity of the outputs, errors are
                predicted in its unit.

        Returns:
            The plan, a table that prints. The column "method" tells the share of the units that are
            linear on the data, and the share of the variance of the consumers' results that no
            affine map explains, on the half of the data on which the map was not fitted; or why an
            axis is left as it is.
        """
        check_tree(params)
        offered = self.offered(params, moments)
        plan = self._plan(params, offered)
        rest = []
        for key, why in offered.left_out.items():
            size = offered.before.all_sizes()[key]
            rest.append(Share(key, 1.0, f"{size} of {size}", 0.0, f"left as it is: {why}"))
        return dataclasses.replace(plan, shares=(*plan.shares, *rest))

    def _plan(self, params: PyTree, offered: Offered) -> Plan:
        items, totals = self._items_and_totals(offered)
        energy = None if self.tolerance is None else 1 - self.tolerance

        def small(plan: Plan) -> PyTree:
            return self._cut(offered, sizes_of(offered, plan))[0]

        before = float(stored_numbers(params))
        return planned_sizes(self.keep, energy, items, totals, before, small)

    def items(self, params: PyTree, moments: Moments | None) -> Items:
        """The axes that a budget is divided among, with the sizes that they can be cut to."""
        return self._items_and_totals(self.offered(params, moments))[0]

    def _items_and_totals(self, offered: Offered) -> tuple[Items, list[float]]:
        """The items, and the predicted error of each if the axis had no units at all."""
        rows, totals = [], []
        for axis in offered.axes():
            size = offered.before.size(axis)
            curve = error_curve(offered.after, axis, "select")
            totals.append(float(curve[0]))
            # at its present size an axis stays as it is, without linear units
            errors = np.append(curve[:size], 0.0)
            options, part = np.arange(1, size + 1), offered.parts[axis.key]
            rows.append(axis_item(axis.key, errors, options, str(part)))
        return axis_items(offered.before, offered.axes(), tuple(rows)), totals

    def divided(self, plan: Plan) -> Linearize:
        """The transform with the keeps of a plan."""
        return dataclasses.replace(self, keep=tuple(plan.keeps.items()), tolerance=None)

    def offered(self, params: PyTree, moments: Moments | PyTree) -> Offered:
        """The network with linear units in every axis where a linear map has a place."""
        if moments is not None and not isinstance(moments, Moments):
            raise TypeError(
                f"linearize needs the moments of jc.calibrate, got {type(moments).__name__}"
            )
        before = NetworkState.of(self.net.structure, params, moments)
        parts, left_out = {}, {}
        for axis in self.net.structure.chosen(self.axes):
            part = self._part(before, axis)
            if isinstance(part, str):
                log.info("%s is not linearized: %s", axis.key, part)
                left_out[axis.key] = part
            else:
                parts[axis.key] = part
        if not parts:
            reasons = "; ".join(f"{key}: {why}" for key, why in [*left_out.items()][:3])
            raise ValueError(f"linearize: no axis has a place for a linear map: {reasons}")
        after, order = before, list(self.net.structure.sites)
        # the last layers first: directions are of inputs that are not widened yet
        for key, part in sorted(
            parts.items(), key=lambda item: order.index(item[1].place.producer), reverse=True
        ):
            after = widened(after, axis_of(self.net, key), part)
        gains = moments is not None and bool(moments.gains)
        fresh = calibrate(
            self.net, after.params(), self.data, sensitivity=gains, progress=self.progress
        )
        return Offered(self.net, before, dataclasses.replace(after, moments=fresh), parts, left_out)

    def _part(self, state: NetworkState, axis: Axis) -> LinearPart | str:
        """The linear part of an axis, or why it is left as it is."""
        size = state.size(axis)
        if any(name not in state.leaves for name in state.leaves_with(axis)):
            return "a leaf of it is compact"
        if size < 2 or not state.is_readable(axis, size - 1):
            return "its size cannot be read off the parameters"
        return linear_part(self.net, state, axis, self.data)

    def _sizes(self, params: PyTree, offered: Offered) -> dict[str, int]:
        """The size of every axis that has linear units."""
        if self.tolerance is not None or isinstance(self.keep, Budget):
            return sizes_of(offered, self._plan(params, offered))
        # given keeps need no predicted errors
        keeps, sizes = PerLeaf(self.keep, "keep"), {}
        for axis in offered.axes():
            size, keep = offered.before.size(axis), keeps.get(axis.key)
            sizes[axis.key] = size if keep is None else max(1, round(keep * size))
        return sizes

    def _cut(self, offered: Offered, sizes: Mapping[str, int]) -> tuple[PyTree, PyTree]:
        """Parameters and moments with given sizes of the axes."""
        state, keeps = offered.after, []
        for axis in offered.axes():
            full = offered.before.size(axis)
            if (size := sizes[axis.key]) < full:
                keeps.append((axis.key, size / state.size(axis)))
            else:
                same = selecting([np.arange(full)], state.size(axis))
                state = state.applied(axis, AxisChange(same))
        if not keeps:
            return offered.before.params(), offered.before.moments
        select = RotateAndPrune(self.net.structure, keep=tuple(keeps), method="select")
        return select._step(state.params(), state.moments, Scope())

    def _step(self, params: PyTree, moments: PyTree, scope: Scope) -> tuple[PyTree, PyTree]:
        offered = self.offered(params, moments)
        return self._cut(offered, self._sizes(params, offered))


def sizes_of(offered: Offered, plan: Plan) -> dict[str, int]:
    """The sizes of a plan."""
    keeps = plan.keeps
    return {axis.key: round(keeps[axis.key] * offered.before.size(axis)) for axis in offered.axes()}


def axis_of(net: Network, key: str) -> Axis:
    """One hidden axis of a network."""
    axis = net.axes[key]
    assert isinstance(axis, Axis)
    return axis


@checked(
    net=network,
    tolerance=number("[0, 1)", "the share of every consumer's results that may be lost"),
    axes=path_pattern,
)
def linearize(
    net: Network,
    batches: Iterable[PyTree] | Calibration,
    keep: Keep | None = None,
    *,
    tolerance: float | None = None,
    axes: str = "**",
    progress: bool = True,
) -> Linearize:
    """Let a few linear units compute what of a nonlinear layer is linear where the data lives.

    Every axis between a dense layer with a bias and its consumers is offered the best directions of
    an affine map from the layer's inputs, as units of its own which stay where the nonlinearity is
    affine. Of both kinds those are kept that together predict the consumers' results best; the
    others are folded into the consumers. The network stays as it is written, and its layer may end
    as a linear map of few numbers. Other axes are left as they are; the plan and the log name why.

    Args:
        net: from `jc.trace`.
        batches: unlabelled data as for `jc.calibrate`, or a `jc.Calibration`. It is read several
            times, so give a list, not an iterator.
        keep: the fraction of the units to keep, in (0, 1]; a mapping from patterns of axis keys to
            fractions; or `jc.budget(total)`, alone or in `jc.together`.
        tolerance: instead of `keep`, the share in [0, 1) of the squared norm of the consumers'
            results that every axis may lose. At 0 the network computes the same up to rounding.
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".
        progress: show a progress bar.

    Returns:
        A transform; call it as `transform(params, moments)`; moments say no more than whether the
        outputs' sensitivity is wanted, and are gathered anew. `transform.plan(params, moments)`
        prints what is linear and what is lost.

    Raises:
        ValueError: for a keep or a tolerance out of range, both or neither of them; when called,
            where no axis that matches has a place for a linear map.
        TypeError: for an iterator of batches.

    Source:
        Reduced-rank regression (Izenman 1975); linear parts of transformers, Razzhigaev et al. 2024
        (arXiv:2405.12250).

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"] + p["last"]
        >>> shapes = {"up": (3, 64), "down": (64, 5), "last": (5,)}
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> params = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> params["bias"] = jnp.where(jnp.arange(64) < 60, 20.0, 0.0)  # 60 units are always on
        >>> x = jax.random.normal(keys[3], (500, 3))
        >>> net = jc.trace(apply, params, x)
        >>> small = jc.linearize(net, [x], tolerance=0, progress=False)(params)
        >>> small["up"].shape  # four that bend, and three for all of the others
        (3, 7)
    """
    if (keep is None) == (tolerance is None):
        raise ValueError("linearize takes either keep or tolerance, not both or neither")
    data = Calibration.of(batches)
    data.check_rereadable("linearize")
    keeps = 1.0 if keep is None else check_keep(keep)
    if not isinstance(keeps, Budget):
        PerLeaf(keeps, "keep").check_keys(net.axes.keys())
    return Linearize(net, data, progress, keeps, tolerance, axes)
