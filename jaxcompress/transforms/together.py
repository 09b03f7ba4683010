"""One budget for several transforms: hidden axes, ranks and tables compete for the same numbers.

Each transform has items, axes or matrices, with predicted errors in one unit, that of the network's
outputs; the budget is divided among all of them at one price. The transforms then run in order, as
in a chain.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import PyTree

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.transforms.base import Scope, Transform, check_tree
from jaxcompress.transforms.budget import Budget, Items, Plan, plan_for
from jaxcompress.transforms.combinators import At
from jaxcompress.transforms.leafwise import LeafTransform
from jaxcompress.transforms.rotation import RotateAndPrune
from jaxcompress.transforms.settings import call


@dataclasses.dataclass(frozen=True, repr=False)
class Together(Transform):
    """See `together`."""

    budget: Budget
    transforms: tuple[Any, ...]
    whole_network = True

    def plan(self, params: Any, moments: Any = None) -> Plan:
        """How the budget is divided among the items of all transforms; it prints.

        Args:
            params: as the transform is called with.
            moments: as the transform is called with.

        Raises:
            ValueError: for a leaf that two transforms would change, a total that cannot be reached.
        """
        return self._plan(params, moments)[0]

    def _plan(self, params: Any, moments: Any) -> tuple[Plan, list[Items]]:
        check_tree(params)
        parts = [transform.items(params, moments) for transform in self.transforms]
        seen: dict[str, Any] = {}
        for transform, part in zip(self.transforms, parts, strict=True):
            if twice := sorted(part.leaves & seen.keys()):
                raise ValueError(
                    f"together: {twice[0]} would be changed by {seen[twice[0]]!r} and by "
                    f"{transform!r}, and its numbers depend on both: leave it out of one (axes=, "
                    "jc.at), or run the second after the first in jc.chain"
                )
            seen |= dict.fromkeys(part.leaves, transform)

        def small(plan: Plan) -> PyTree:
            return self._divided(plan, parts, params, moments, Scope())[0]

        return plan_for(self.budget, parts, float(stored_numbers(params)), small), parts

    def _step(self, params: Any, moments: Any, scope: Scope) -> tuple[Any, Any]:
        plan, parts = self._plan(params, moments)
        return self._divided(plan, parts, params, moments, scope)

    def _divided(
        self, plan: Plan, parts: list[Items], params: Any, moments: Any, scope: Scope
    ) -> tuple[Any, Any]:
        """All transforms in order, each with its part of a plan."""
        start = 0
        for transform, part in zip(self.transforms, parts, strict=True):
            mine = dataclasses.replace(plan, shares=plan.shares[start : start + len(part.rows)])
            start += len(part.rows)
            params, moments = transform.divided(mine)._step(params, moments, scope)
        return params, moments

    def hidden(self) -> tuple[str, ...]:
        """The budget is that of the transforms."""
        return ("budget",)

    def __repr__(self) -> str:
        return call("together", *map(repr, self.transforms))


def together(*transforms: Transform) -> Together:
    """Divide one budget among several transforms.

    Args:
        *transforms: `jc.rotate_and_prune(net, total)`, leaf transforms with `keep=total`, alone or
            in `jc.at`, all with the same `total = jc.budget(...)`, a fraction of all numbers of the
            tree. No leaf may be changed by two of them.

    Returns:
        A transform; `.plan(params, moments)` prints how it divides. The predicted errors of axes
        and of matrices have one unit when the moments hold the sensitivity of the outputs:
        `jc.calibrate(..., sensitivity=True)`.

    Raises:
        ValueError: for budgets that differ, or none.
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
    rules = [rule_of(transform) for transform in transforms]
    if any(rule != rules[0] for rule in rules):
        raise ValueError(
            "together divides one budget, and the transforms have "
            f"{', '.join(map(repr, dict.fromkeys(rules)))}"
        )
    return Together(rules[0], transforms)


def rule_of(transform: Any) -> Budget:
    """The budget of a transform."""
    inner = transform.transform if isinstance(transform, At) else transform
    if not isinstance(inner, (LeafTransform, RotateAndPrune)):
        raise TypeError(
            f"together: {transform!r} predicts no errors; it takes jc.rotate_and_prune and leaf "
            "transforms, alone or in jc.at"
        )
    if not isinstance(inner.keep, Budget):
        raise ValueError(  # noqa: TRY004 (a keep of another value)
            f"together: {transform!r} has no budget: give it keep=jc.budget(...), the same as the "
            "others"
        )
    if inner.keep.of != "numbers":
        raise ValueError(f"together divides numbers, and {transform!r} has {inner.keep}")
    return inner.keep
