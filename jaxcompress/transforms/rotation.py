"""Rotate and prune: every hidden axis keeps its most useful directions, and the network really gets smaller.

On an axis with only linear operations the activations are rotated to the directions that the consumers' outputs need most,
and cut. Behind a root-mean-square norm the scale is folded first. Where a nonlinearity acts on single channels a selection
stays and the others are folded into the consumers, the mean into their biases; queries and keys are rotated so that their
product changes least; a normalised axis is selected from. Per head or layer where the fibres allow.

    small = jc.rotate_and_prune(net, keep=0.5)(params, moments)      # half the channels of every hidden axis
    logits = net(small, x)
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.maps import AxisMap
from jaxcompress.networks.trace import Network, check_network
from jaxcompress.transforms.allocation import AxisCounts
from jaxcompress.transforms.axis_maps import (
    choose,
    control,
    rotate,
    rotate_pair,
    rotate_rms,
    why_not_fold,
    why_not_rotate,
)
from jaxcompress.transforms.axiswise import AxisTransform, Work
from jaxcompress.transforms.base import check_tree
from jaxcompress.transforms.budget import Budget, Item, Items, Plan, joint, plan_for, plan_of
from jaxcompress.transforms.curves import curve
from jaxcompress.transforms.options import Keep, PerLeaf, check_keep

CONTROLS = ("magnitude", "l1", "random")
METHODS = ("auto", "rotate", "select", *CONTROLS)
ROUNDING = 1e-6
"""The share of an energy that is rounding: moments are gathered in float32."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, repr=False)
class RotateAndPrune(AxisTransform):
    """See `rotate_and_prune`."""

    structure: Structure = dataclasses.field(hash=False)
    keep: Any
    axes: str = "**"
    method: str = "auto"
    seed: int = 0
    energy: float | None = None
    multiple: Any = 1

    def hidden(self) -> tuple[str, ...]:
        return ("structure",) if self.energy is None else ("structure", "keep")

    def plan(self, params: Any, moments: Any = None) -> Plan:
        """How a budget is divided among the axes, or what sizes an energy gives; it prints.

        Args:
            params, moments: as the transform is called with.

        Raises:
            ValueError: for a keep that is a number, a control, a total that the axes cannot reach.
        """
        if not self.planned:
            raise ValueError(
                f"plan divides a budget, and keep is {self.keep}: rotate_and_prune(net, jc.budget(1/4))"
            )
        check_tree(params)
        before = float(stored_numbers(params))
        items, empty = self._items(params, moments)
        if self.energy is None:
            return plan_for(
                self.keep, [items], before, lambda plan: self.divided(plan)(params, moments)
            )
        options = [
            reaching(errors, self.energy, nothing)
            for errors, nothing in zip(items.errors, empty, strict=True)
        ]
        return plan_of(joint([items], before), options)

    def items(self, params: Any, moments: Any) -> Items:
        """What a budget is divided among: the axes that can be cut, by their sizes."""
        return self._items(params, moments)[0]

    def _items(self, params: Any, moments: Any) -> tuple[Items, list[float]]:
        """The items, and the error of each when nothing of it is left."""
        if self.method in CONTROLS:
            raise ValueError(f"method={self.method!r} predicts no error to go by: give it keeps")
        work = self.prepare(params, moments)
        axes = [
            axis
            for axis in self.chosen()
            if work.size(axis) > 1 and self.left(work, axis, work.size(axis) - 1) is None
        ]
        curves = [
            curve(work, axis, self.method)
            for axis in tqdm(axes, desc="plan", leave=False, disable=None)
        ]
        rows = tuple(
            axis_item(axis.key, errors, self.sizes(axis.key, work.size(axis)))
            for axis, errors in zip(axes, curves, strict=True)
        )
        layouts = {
            name: self.structure.layouts[name] for axis in axes for name in work.touched(axis)
        }
        worth = {
            name: stored_numbers(work.given[name]) / max(jnp.size(work.given[name]), 1)
            for name in layouts
        }
        counts = AxisCounts(
            layouts,
            worth,
            {item.key: item.sizes for item in rows},
            self.structure.full_sizes | work.sizes,
        )
        items = Items(
            rows=rows,
            counts=counts,
            stored=counts.total([len(item.sizes) - 1 for item in rows]),
            leaves=frozenset(layouts),
        )
        return items, [float(each[0]) for each in curves]

    def _step(self, params: Any, moments: Any, scope: Any) -> tuple[Any, Any]:
        if not self.planned:
            return super()._step(params, moments, scope)
        return self.divided(self.plan(params, moments))._step(params, moments, scope)

    def divided(self, plan: Plan) -> RotateAndPrune:
        """The transform with the keeps of a plan."""
        return dataclasses.replace(self, keep=tuple(plan.keeps.items()), energy=None)

    @property
    def planned(self) -> bool:
        """Whether the sizes come from the predicted errors."""
        return self.energy is not None or isinstance(self.keep, Budget)

    def sizes(self, key: str, d: int) -> np.ndarray:
        """The sizes that an axis of size d can be cut to, and d."""
        multiple = PerLeaf(self.multiple, "multiple").get(key) or 1
        return np.append(np.arange(multiple, d, multiple), d)

    def change(self, work: Work, axis: Axis) -> AxisMap | None:
        keep = PerLeaf(self.keep, "keep").get(axis.key)
        if keep is None:
            return None
        d = work.size(axis)
        options = self.sizes(axis.key, d)
        size = int(options[nearest(options, keep * d)])
        if size == d:
            return None
        if why := self.left(work, axis, size):
            log.info("%s is left: %s", axis.key, why)
            return None
        work.touched(axis)
        if self.method in CONTROLS:
            return control(work, axis, size, self.method, self.seed)
        if self.method != "select":
            why = why_not_rotate(work, axis)
            if why is None:
                return (
                    rotate_pair(work, axis, size)
                    if axis.pair
                    else (rotate_rms if "rms" in axis.marks else rotate)(work, axis, size)
                )
            if self.method == "rotate":
                raise ValueError(
                    f"{axis.key} cannot be rotated: {why}; method='auto' selects there"
                )
        return choose(work, axis, size, fold=why_not_fold(axis) is None)


def axis_item(key: str, errors: np.ndarray, sizes: np.ndarray) -> Item:
    """One axis as an item of a budget, given its predicted errors at every size from 0 on."""
    full = sizes[-1]
    return Item(
        key=key,
        errors=errors[sizes],
        keeps=sizes / full,
        sizes=sizes,
        labels=[f"{size} of {full}" for size in sizes],
        option=lambda keep: nearest(sizes, keep * full),
    )


def reaching(errors: np.ndarray, energy: float, nothing: float) -> int:
    """The least option that keeps a share of what the consumers read; `nothing` is the error without the axis."""
    return int(np.argmax(errors <= (1 - energy + ROUNDING) * nothing))


def nearest(options: np.ndarray, size: float) -> int:
    """The option nearest to a size, which is rounded as a whole number is."""
    return int(np.argmin(np.abs(options - round(size))))


def check_multiple(multiple: Any) -> Any:
    """A whole number from 1 on, or a mapping of them as a tuple of pairs."""
    if isinstance(multiple, Mapping):
        return tuple((pattern, check_multiple(value)) for pattern, value in multiple.items())
    if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
        raise ValueError(
            f"multiple must be a whole number from 1 on, what sizes are divisible by; got {multiple!r}"
        )
    return multiple


def rotate_and_prune(
    net: Network,
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
        keep: the fraction of the channels to keep, in (0, 1], a mapping from patterns of axis keys to fractions, or
            `jc.budget(total)`, which divides a share of all numbers among the axes.
        energy: instead of `keep`, the share of what every axis's consumers read that must stay, in (0, 1].
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".
        method: "auto" rotates where that is legal, else selects and folds; "rotate" rotates or raises; "select" never
            rotates; "magnitude" (L2 of the producers), "l1" and "random" are the controls, without a fold.
        seed: for "random".
        multiple: what the sizes that are left are divisible by, or a mapping from patterns of axis keys: processors are made for
            whole blocks (1,405 neurons take longer than 1,536 of them in XLA on a CPU, 1,392 do not).

    Returns:
        A transform: call it as `transform(params, moments)` with `moments = jc.calibrate(net, params, batches)`. Without
        moments it sees the weights alone, and folds nothing.

    Raises:
        ValueError: for a keep or an energy outside (0, 1], both or none of them, an unknown method, a pattern without an axis,
            a multiple that is no whole number.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
        >>> key = jax.random.key(0)
        >>> up = jnp.tile(jax.random.normal(key, (3, 4)), 2)                     # every unit twice
        >>> params = {"up": up, "bias": jnp.ones(8), "down": jax.random.normal(key, (8, 2))}
        >>> x = jax.random.normal(key, (50, 3))
        >>> net = jc.trace(apply, params, x)
        >>> small = jc.rotate_and_prune(net, keep=1/2)(params, jc.calibrate(net, params, [x], progress=False))
        >>> small["up"].shape, bool(jnp.abs(net(small, x) - apply(params, x)).max() < 1e-4)
        ((3, 4), True)
    """
    check_network("rotate_and_prune", net)
    if method not in METHODS:
        raise ValueError(
            f"method={method!r} is unknown: expected one of {', '.join(map(repr, METHODS))}"
        )
    if (keep is None) == (energy is None):
        raise ValueError("rotate_and_prune takes either keep or energy, and one of them")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(
            f"energy must be in (0, 1], the share of what the consumers read that stays; got {energy!r}"
        )
    multiples = check_multiple(multiple)
    PerLeaf(multiples, "multiple").check_keys(net.axes.keys())
    return RotateAndPrune(
        net.structure,
        1.0 if keep is None else check_keep(keep),
        axes,
        method,
        seed,
        energy,
        multiples,
    )
