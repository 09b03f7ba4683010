"""Rotate and prune: every hidden axis keeps its most useful directions, and the network is smaller.

On an axis with linear operations only, activations are rotated to the directions that matter most
to the consumers' results, and cut; under a root-mean-square norm the norm's scale is folded
first. Where a nonlinearity acts on single channels, a selection is kept and the others are folded
into the consumers' kernels and biases. Queries and keys are rotated so that their product changes
least. Maps differ for each head, layer or expert where the axis has such fibres.

    small = jc.rotate_and_prune(net, keep=0.5)(params, moments)  # half the channels of every axis
    logits = net(small, x)

Costs an eigendecomposition or a greedy selection an axis, at most O(d^3), in float64 on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.checks import checked, choice, number, path_pattern, seeds, whole_number
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.trace import Network, structure_of, traced
from jaxcompress.transforms.allocation import AxisCounts
from jaxcompress.transforms.axis_rotation import rotate
from jaxcompress.transforms.axis_selection import control, select
from jaxcompress.transforms.axiswise import AxisTransform, largest_by_option
from jaxcompress.transforms.base import check_tree
from jaxcompress.transforms.budget import Budget, Item, Items, Plan, joint, plan_for, plan_of
from jaxcompress.transforms.curves import error_curve
from jaxcompress.transforms.legality import why_not_rotate
from jaxcompress.transforms.methods import choose_method
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.options import Keep, PerLeaf, PerPattern, check_keep, per_pattern

CONTROLS = ("magnitude", "l1", "random")
METHODS = ("auto", "rotate", "select", *CONTROLS)
ROUNDING = 1e-6
"""The share of an energy that is rounding: moments are gathered in float32."""


@dataclasses.dataclass(frozen=True, repr=False)
class RotateAndPrune(AxisTransform):
    """See `rotate_and_prune`."""

    structure: Structure = dataclasses.field(hash=False)
    keep: PerPattern[float] | Budget
    axes: str = "**"
    method: str = "auto"
    seed: int = 0
    energy: float | None = None
    multiple: PerPattern[int] = 1

    def hidden(self) -> tuple[str, ...]:
        """Fields that are no arguments, and the keep where an energy replaces it."""
        return ("structure",) if self.energy is None else ("structure", "keep")

    @property
    def planned(self) -> bool:
        """Whether the sizes are computed from predicted errors."""
        return self.energy is not None or isinstance(self.keep, Budget)

    def plan(self, params: PyTree, moments: Moments | None = None) -> Plan:
        """The size of every axis and how it is cut: of a budget, an energy or given keeps.

        Args:
            params: the network's parameters.
            moments: of `jc.calibrate`, or None for predictions from the weights alone.

        Returns:
            The plan, a table that prints: for each axis its keep, its size, its predicted error,
            and its method with the reason why it is no better one.

        Raises:
            ValueError: for a method that predicts no errors, a total that the axes cannot reach.
        """
        check_tree(params)
        before = float(stored_numbers(params))
        items, totals = self._items_and_totals(params, moments)

        def small(plan: Plan) -> PyTree:
            return self.divided(plan)(params, moments)

        return planned_sizes(self.keep, self.energy, items, totals, before, small)

    def items(self, params: PyTree, moments: Moments | None) -> Items:
        """The axes that a budget is divided among, with the sizes that they can be cut to."""
        return self._items_and_totals(params, moments)[0]

    def _items_and_totals(
        self, params: PyTree, moments: Moments | None
    ) -> tuple[Items, list[float]]:
        """The items of a budget, and the predicted error of each if the axis had no channels."""
        if self.method in CONTROLS:
            raise ValueError(
                f"method={self.method!r} predicts no errors: give keep as a number or by axis"
            )
        state = self.start(params, moments)
        self.check_effect(state, self.chosen())
        axes = [
            axis
            for axis in self.chosen()
            if state.size(axis) > 1 and self.can_resize(state, axis, state.size(axis) - 1)
        ]
        # before any curve: a decomposition of a large axis takes long
        for axis in axes:
            state.check_dense(axis)
        progress = tqdm(axes, desc="plan", leave=False, disable=None)
        curves = [error_curve(state, axis, self.method) for axis in progress]
        rows = tuple(
            axis_item(
                axis.key,
                errors,
                self.options(axis.key, state.size(axis)),
                str(choose_method(state, axis, self.method)),
            )
            for axis, errors in zip(axes, curves, strict=True)
        )
        return axis_items(state, axes, rows), [float(errors[0]) for errors in curves]

    def settled(self, params: PyTree, moments: Moments | None) -> RotateAndPrune:
        """The transform with a keep for each axis in place of a budget or an energy."""
        return self.divided(self.plan(params, moments)) if self.planned else self

    def divided(self, plan: Plan) -> RotateAndPrune:
        """The transform with the keeps of a plan."""
        return dataclasses.replace(self, keep=tuple(plan.keeps.items()), energy=None)

    def check_effect(self, state: NetworkState, axes: list[Axis]) -> None:
        """Refuse a multiple that is larger than every axis that it is for."""
        rules = PerLeaf(self.multiple, "multiple")
        largest = largest_by_option(rules, state, axes)
        for multiple, size in largest.items():
            if multiple >= size > 1:
                raise ValueError(
                    f"multiple={multiple} leaves no size below the present one: the largest axis "
                    f"that it is for has {size} channels"
                )

    def options(self, key: str, size: int) -> Int[np.ndarray, " options"]:
        """The sizes that an axis can be cut to, in ascending order, its present one the last."""
        multiple = PerLeaf(self.multiple, "multiple").get(key) or 1
        return np.append(np.arange(multiple, size, multiple), size)

    def change(self, state: NetworkState, axis: Axis) -> AxisChange | None:
        """A rotation or a selection of one axis, or None at its full size."""
        assert not isinstance(self.keep, Budget), "a budget is settled before any change"
        keep = PerLeaf(self.keep, "keep").get(axis.key)
        if keep is None:
            return None
        present = state.size(axis)
        options = self.options(axis.key, present)
        size = int(options[nearest(options, keep * present)])
        if size == present or not self.can_resize(state, axis, size):
            return None
        state.check_dense(axis)
        if self.method in CONTROLS:
            return AxisChange(control(state, axis, size, self.method, self.seed))
        if self.method == "rotate" and (why := why_not_rotate(state, axis)):
            raise ValueError(f"{axis.key} cannot be rotated: {why}; method='auto' selects there")
        method = choose_method(state, axis, self.method)
        method.warn(axis)
        if method.name == "rotate":
            return rotate(state, axis, size)
        return select(state, axis, size, fold=method.name == "select and fold")


def planned_sizes(
    keep: PerPattern[float] | Budget,
    energy: float | None,
    items: Items,
    totals: Sequence[float],
    before: float,
    small: Callable[[Plan], PyTree],
) -> Plan:
    """The sizes of axes by a budget, an energy or given keeps.

    Args:
        keep: given keeps or a budget.
        energy: in place of keeps, or None.
        items: the axes.
        totals: the predicted error of each if the axis had no channels.
        before: the numbers that the whole tree stores.
        small: from a plan to the parameters that it gives, for a metric.
    """
    if isinstance(keep, Budget):
        return plan_for(keep, [items], before, small)
    if energy is None:
        keeps = PerLeaf(keep, "keep")
        given = [keeps.get(item.key) for item in items.rows]
        choice = [items.option(i, 1.0 if k is None else k) for i, k in enumerate(given)]
        return plan_of(joint([items], before), choice)
    pairs = zip(items.errors, totals, strict=True)
    options = [least_option(errors, energy, total) for errors, total in pairs]
    return plan_of(joint([items], before), options)


def axis_item(
    key: str,
    errors: Float[np.ndarray, " sizes"],
    options: Int[np.ndarray, " options"],
    method: str = "",
) -> Item:
    """One axis as an item of a budget, given its predicted errors at every size from 0 on."""
    full = options[-1]
    return Item(
        key=key,
        errors=errors[options],
        keeps=options / full,
        sizes=options,
        labels=[f"{size} of {full}" for size in options],
        option=lambda keep: nearest(options, keep * full),
        method=method,
    )


def axis_items(state: NetworkState, axes: list[Axis], rows: tuple[Item, ...]) -> Items:
    """The items of a budget together, with the numbers stored by the leaves of their axes."""
    layouts = {}
    for axis in axes:
        layouts |= {name: state.structure.layouts[name] for name in state.leaves_with(axis)}
    # below 1 where a leaf is compact, which stores less than its entries
    numbers_per_entry = {
        name: stored_numbers(state.given[name]) / max(jnp.size(state.given[name]), 1)
        for name in layouts
    }
    sizes = {item.key: item.sizes for item in rows}
    counts = AxisCounts(layouts, numbers_per_entry, sizes, state.all_sizes())
    return Items(
        rows=rows,
        counts=counts,
        stored=counts.total([len(item.sizes) - 1 for item in rows]),
        leaves=frozenset(layouts),
    )


def least_option(errors: Float[np.ndarray, " options"], energy: float, total: float) -> int:
    """The first option whose error leaves a share of the energy; `total` is the error at size 0."""
    return int(np.argmax(errors <= (1 - energy + ROUNDING) * total))


def nearest(options: Int[np.ndarray, " options"], size: float) -> int:
    """The index of the option nearest to a size, which is rounded first."""
    return int(np.argmin(np.abs(options - round(size))))


@checked(
    net=traced,
    energy=number("(0, 1]", "the share of the consumers' results that every axis retains"),
    axes=path_pattern,
    method=choice(*METHODS),
    seed=seeds,
)
def rotate_and_prune(
    net: Network | Structure,
    keep: Keep | None = None,
    *,
    energy: float | None = None,
    axes: str = "**",
    method: str = "auto",
    seed: int = 0,
    multiple: int | Mapping[str, int] = 1,
) -> RotateAndPrune:
    """Keep the most useful directions or channels of every hidden axis.

    Args:
        net: from `jc.trace`; only its axes are kept.
        keep: the fraction of the channels to keep, in (0, 1]; a mapping from patterns of axis keys
            to fractions; or `jc.budget(total)`, which divides a share of all stored numbers among
            the axes.
        energy: instead of `keep`, the share in (0, 1] of the squared norm of the consumers' results
            that every axis must retain.
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".
        method: "auto" rotates where that is legal, else selects and folds; "rotate" rotates or
            raises; "select" never rotates; "magnitude" (L2 norm of the producers), "l1" and
            "random" are baselines without a fold.
        seed: for "random".
        multiple: round sizes to a multiple of this, or of a number by pattern of axis keys, since
            hardware computes in blocks (1,405 neurons take longer than 1,536 in XLA on a CPU, 1,392
            do not).

    Returns:
        A transform; call it as `transform(params, moments)` with the moments of `jc.calibrate`.
        Without moments it uses the weights alone, and folds nothing. With a budget or an energy,
        `transform.plan(params, moments)` prints the sizes.

    Raises:
        ValueError: for a keep, an energy or a multiple out of range, both or neither of keep and
            energy, an unknown method; when called, for a pattern that matches no axis, an axis of a
            compact leaf, or a rotation that is illegal.
        TypeError: for a `net` that is not from `jc.trace`.

    Source:
        SVD in the inputs' metric (arXiv:2403.07378); SliceGPT (arXiv:2401.15024); the interpolative
        decomposition for networks (arXiv:2108.00065).

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
        >>> key = jax.random.key(0)
        >>> up = jnp.tile(jax.random.normal(key, (3, 4)), 2)  # every unit twice
        >>> params = {"up": up, "bias": jnp.ones(8), "down": jax.random.normal(key, (8, 2))}
        >>> x = jax.random.normal(key, (50, 3))
        >>> net = jc.trace(apply, params, x)
        >>> moments = jc.calibrate(net, params, [x], progress=False)
        >>> small = jc.rotate_and_prune(net, keep=1/2)(params, moments)
        >>> small["up"].shape, bool(jnp.abs(net(small, x) - apply(params, x)).max() < 1e-4)
        ((3, 4), True)
    """
    if (keep is None) == (energy is None):
        raise ValueError("rotate_and_prune takes either keep or energy, not both or neither")
    keeps = 1.0 if keep is None else check_keep(keep)
    multiples = per_pattern("multiple", multiple, whole_number)
    PerLeaf(multiples, "multiple").check_keys(net.axes.keys())
    if not isinstance(keeps, Budget):
        PerLeaf(keeps, "keep").check_keys(net.axes.keys())
    return RotateAndPrune(
        structure=structure_of(net),
        keep=keeps,
        axes=axes,
        method=method,
        seed=seed,
        energy=energy,
        multiple=multiples,
    )
