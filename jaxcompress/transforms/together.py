"""One budget for several transforms: hidden axes, ranks and tables share one total of numbers.

Each transform has items (axes or matrices) whose predicted errors have the unit of the network's
outputs, so that one allocation divides the budget among all items of all transforms. The transforms
then run in order, as in a chain. Costs the error curves of every transform and one allocation.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from jaxtyping import PyTree

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.moments.moments import Moments
from jaxcompress.transforms.base import Scope, Transform, check_tree
from jaxcompress.transforms.budget import Budget, Items, Plan, plan_for
from jaxcompress.transforms.combinators import At
from jaxcompress.transforms.leafwise import LeafTransform
from jaxcompress.transforms.linearize import Linearize
from jaxcompress.transforms.rotation import RotateAndPrune
from jaxcompress.transforms.settings import call

Divisible: TypeAlias = RotateAndPrune | Linearize | LeafTransform | At
"""Transforms that predict the errors of their items."""


@dataclasses.dataclass(frozen=True, repr=False)
class Together(Transform):
    """Several transforms with one budget, made by `together`.

    Attributes:
        budget: the budget that all transforms have.
        transforms: the transforms in the order in which they run.
    """

    budget: Budget
    transforms: tuple[Divisible, ...]
    whole_network = True

    def plan(self, params: PyTree, moments: Moments | PyTree = None) -> Plan:
        """Divide the budget among the items of all transforms.

        Args:
            params: the parameters that the transform is to be called with.
            moments: the moments that the transform is to be called with.

        Returns:
            The plan, which prints as a table: a keep, size and predicted error for each item.

        Raises:
            ValueError: for a leaf that two transforms would change, or a total that cannot be
                reached.
        """
        return self._plan(params, moments)[0]

    def _plan(self, params: PyTree, moments: Moments | PyTree) -> tuple[Plan, list[Items]]:
        """The plan and the items of each transform."""
        check_tree(params)
        parts = [transform.items(params, moments) for transform in self.transforms]
        self._check_disjoint(parts)

        def small(plan: Plan) -> PyTree:
            return self._divided(plan, parts, params, moments, Scope())[0]

        return plan_for(self.budget, parts, float(stored_numbers(params)), small), parts

    def _check_disjoint(self, parts: list[Items]) -> None:
        """Refuse leaves that two transforms would change."""
        changed_by: dict[str, Divisible] = {}
        for transform, part in zip(self.transforms, parts, strict=True):
            if shared := sorted(part.leaves & changed_by.keys()):
                leaf = shared[0]
                raise ValueError(
                    f"together: {leaf} would be changed by {changed_by[leaf]!r} and by "
                    f"{transform!r}, and its numbers depend on both: leave it out of one (axes=, "
                    "jc.at), or run the second after the first in jc.chain"
                )
            changed_by |= dict.fromkeys(part.leaves, transform)

    def _step(
        self, params: PyTree, moments: Moments | PyTree, scope: Scope
    ) -> tuple[PyTree, Moments | PyTree]:
        plan, parts = self._plan(params, moments)
        return self._divided(plan, parts, params, moments, scope)

    def _divided(
        self,
        plan: Plan,
        parts: list[Items],
        params: PyTree,
        moments: Moments | PyTree,
        scope: Scope,
    ) -> tuple[PyTree, Moments | PyTree]:
        """The result of all transforms in order, each with its shares of a plan."""
        start = 0
        for transform, part in zip(self.transforms, parts, strict=True):
            stop = start + len(part.rows)
            own = dataclasses.replace(plan, shares=plan.shares[start:stop])
            start = stop
            params, moments = transform.divided(own)._step(params, moments, scope)
        return params, moments

    def hidden(self) -> tuple[str, ...]:
        """The budget, which each of the transforms shows."""
        return ("budget",)

    def __repr__(self) -> str:
        return call("together", *map(repr, self.transforms))


def together(*transforms: Transform) -> Together:
    """Divide one budget among several transforms.

    Args:
        *transforms: `jc.rotate_and_prune(net, total)`, `jc.linearize(net, batches, total)`, and
            leaf transforms with `keep=total`, alone or in `jc.at`; all with the same
            `total = jc.budget(...)`, a fraction of all numbers of the tree. No leaf may be changed
            by two of them.

    Returns:
        A transform; its `.plan(params, moments)` prints the division. The predicted errors of axes
        and of matrices have the same unit if the moments hold the sensitivity of the outputs:
        `jc.calibrate(..., sensitivity=True)`.

    Raises:
        ValueError: for no transforms, a transform without a budget, budgets that differ, or a
            budget of channels; when called, for a leaf that two transforms would change, or a total
            that cannot be reached.
        TypeError: for a transform that predicts no errors.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> shapes = {"words": (40, 8), "up": (8, 16), "down": (16, 2)}
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> params = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> def apply(p, ids):
        ...     return jax.nn.relu(p["words"][ids] @ p["up"]) @ p["down"]
        >>> ids = jax.random.randint(keys[3], (100, 5), 0, 40)
        >>> net, total = jc.trace(apply, params, ids), jc.budget(3/4)
        >>> moments = jc.calibrate(net, params, [ids], sensitivity=True, progress=False)
        >>> axes = jc.rotate_and_prune(net, total, axes="up")
        >>> small = jc.together(axes, jc.at("words", jc.factored(total)))(params, moments)
        >>> 0.7 < jc.stored_numbers(small) / jc.stored_numbers(params) <= 0.75
        True
    """
    if not transforms:
        raise ValueError("together: there are no transforms to divide a budget among")
    divisible = tuple(map(_divisible, transforms))
    budgets = [_budget_of(transform) for transform in divisible]
    if any(budget != budgets[0] for budget in budgets):
        raise ValueError(
            "together divides one budget, and the transforms have "
            f"{', '.join(map(repr, dict.fromkeys(budgets)))}"
        )
    return Together(budgets[0], divisible)


def _divisible(transform: Transform) -> Divisible:
    """A transform that predicts errors; others are refused."""
    inner = transform.transform if isinstance(transform, At) else transform
    if not isinstance(inner, (LeafTransform, Linearize, RotateAndPrune)):
        raise TypeError(
            f"together: {transform!r} predicts no errors; it takes jc.rotate_and_prune, "
            "jc.linearize, and leaf transforms alone or in jc.at"
        )
    assert isinstance(transform, Divisible)
    return transform


def _budget_of(transform: Divisible) -> Budget:
    """The budget of a transform; one without a budget of numbers is refused."""
    inner = transform.transform if isinstance(transform, At) else transform
    assert isinstance(inner, LeafTransform | Linearize | RotateAndPrune)
    if not isinstance(inner.keep, Budget):
        raise ValueError(  # noqa: TRY004 (the type is right, its keep is not a budget)
            f"together: {transform!r} has no budget: give it keep=jc.budget(...), the same as the "
            "others"
        )
    if inner.keep.of != "numbers":
        raise ValueError(f"together divides numbers, and {transform!r} has {inner.keep}")
    return inner.keep
