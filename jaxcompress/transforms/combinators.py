"""Transforms made of transforms: one after another, by pattern, by label, or none.

`chain` is associative with `identity` as its unit; `at` picks leaves by pattern and `partition` by label, each leaf
once. They cost what the transforms in them cost.

Source: the combinators of optax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.paths import Pattern, is_literal, join, named_leaves, names_within, select
from jaxcompress.transforms.base import Scope, Transform, child_moments, map_leaves
from jaxcompress.transforms.budget import Budget, Items, Plan
from jaxcompress.transforms.leafwise import LeafTransform


@dataclasses.dataclass(frozen=True, repr=False)
class Chain(Transform):
    """Transforms in order, each on what the one before gave."""

    transforms: tuple[Transform, ...]

    @property
    def traceable(self) -> bool:
        return all(transform.traceable for transform in self.transforms)

    def _step(self, params: Any, moments: Any, scope: Scope) -> tuple[Any, Any]:
        for transform in self.transforms:
            params, moments = transform._step(params, moments, scope)
        return params, moments

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.transforms))})"


@dataclasses.dataclass(frozen=True, repr=False)
class At(Transform):
    """A transform on the leaves that a pattern picks, all others untouched."""

    pattern: Pattern
    transform: Transform

    def plan(self, params: Any, moments: Any = None) -> Plan:
        """How a budget is divided among the leaves that the pattern picks; it prints."""
        if not isinstance(self.transform, LeafTransform):
            raise ValueError(
                f"plan divides the budget of one leaf transform, got {self.transform!r}"
            )
        return self.transform.plan(
            params, moments, lambda name, leaf: select(self.pattern, name, leaf)
        )

    def items(self, params: Any, moments: Any) -> Items:
        """What a budget is divided among: the leaves that the pattern picks."""
        assert isinstance(self.transform, LeafTransform)
        return self.transform.items(
            params, moments, lambda name, leaf: select(self.pattern, name, leaf)
        )

    def divided(self, plan: Plan) -> At:
        """The transform with the keeps of a plan."""
        assert isinstance(self.transform, LeafTransform)
        return dataclasses.replace(self, transform=self.transform.divided(plan))

    def _apply(self, params: Any, moments: Any, scope: Scope) -> Any:
        if (
            isinstance(self.transform, LeafTransform)
            and isinstance(self.transform.keep, Budget)
            and not scope.prefix
        ):
            return self.divided(self.plan(params, moments))._apply(params, moments, scope)
        matched = 0
        inner = dataclasses.replace(scope, by_name=is_literal(self.pattern))

        def visit(prefix: str, name: str, leaf: Any, metric: Any) -> Any:
            nonlocal matched
            if select(self.pattern, name, leaf):
                matched += 1
                return self.transform._apply(
                    leaf, metric, dataclasses.replace(inner, prefix=join(prefix, name))
                )
            if not isinstance(leaf, CompactArray):
                return leaf
            metrics = None
            changes = {}
            for child in leaf.child_names:
                below = join(name, child)
                inside = (join(below, inner) for inner in names_within(getattr(leaf, child)))
                if callable(self.pattern) or not any(
                    select(self.pattern, inner, None) for inner in inside
                ):
                    continue
                metrics = child_moments(leaf, metric) if metrics is None else metrics
                changes[child] = visit(prefix, below, getattr(leaf, child), metrics.get(child))
            return dataclasses.replace(leaf, **changes) if changes else leaf

        result = map_leaves(
            lambda name, leaf, metric: visit(scope.prefix, name, leaf, metric), params, moments
        )
        if not matched:
            raise ValueError(
                f"at({self.pattern!r}) matches no leaf; there are: {', '.join(names_within(params)) or 'none'}"
            )
        return result

    def __repr__(self) -> str:
        return f"at({self.pattern!r}, {self.transform!r})"


@dataclasses.dataclass(frozen=True, repr=False)
class Partition(Transform):
    """A transform for each label, and a label for each leaf."""

    transforms: tuple[tuple[str, Transform], ...]
    labels: Any = dataclasses.field(compare=False)

    def _apply(self, params: Any, moments: Any, scope: Scope) -> Any:
        labels = self.labels(params) if callable(self.labels) else self.labels
        table = dict(self.transforms)
        treedef = jax.tree.structure(params, is_leaf=is_compact)
        try:
            broadcast = jax.tree.map(
                lambda label, part: jax.tree.map(lambda _: label, part, is_leaf=is_compact),
                labels,
                params,
            )
            flat = treedef.flatten_up_to(broadcast)
        except ValueError as error:
            raise ValueError(f"partition: the labels do not fit the parameters: {error}") from None
        names = [name for name, _ in named_leaves(params)]
        wrong = {name: label for name, label in zip(names, flat, strict=True) if label not in table}
        if wrong:
            raise ValueError(
                f"partition has transforms for the labels {sorted(table)}, but these leaves have others: {wrong}"
            )
        by_name = dict(zip(names, flat, strict=True))

        def visit(name: str, leaf: Any, metric: Any) -> Any:
            return table[by_name[name]]._apply(
                leaf, metric, dataclasses.replace(scope, prefix=join(scope.prefix, name))
            )

        return map_leaves(visit, params, moments)

    def __repr__(self) -> str:
        return f"partition({dict(self.transforms)!r}, {self.labels!r})"


def chain(*transforms: Transform) -> Transform:
    """Apply transforms one after another; keeps multiply along the way.

    Example:
        >>> import jaxcompress as jc
        >>> jc.chain(jc.vocabulary(keep=1/2), jc.at("**/codes", jc.hashed(keep=1/4)))
        chain(vocabulary(keep=0.5), at('**/codes', hashed(keep=0.25)))
    """
    _check_transforms("chain", transforms)
    flat = [inner for t in transforms for inner in (t.transforms if isinstance(t, Chain) else (t,))]
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))


def identity() -> Transform:
    """The transform that changes nothing: the unit of `chain`.

    Example:
        >>> import jaxcompress as jc
        >>> jc.chain(jc.identity(), jc.hashed(keep=1/2)) == jc.hashed(keep=1/2)
        True
    """
    return Chain(())


def at(pattern: Pattern, transform: Transform) -> Transform:
    """Apply a transform to the leaves whose names a pattern matches.

    Args:
        pattern: parts joined by "/", with `*` within a part and `**` for any number of parts, on the tree as received;
            a tuple of such patterns; or a selector `(name, leaf) -> bool` such as `jc.matrices`. A pattern meets a
            compact array before its children and stops there; to nest, name the child: `**/kernel/codes`.
        transform: what to do there; it sees the leaf as its whole tree.

    Raises:
        ValueError: when called, for a pattern that matches nothing; the message lists what there was.
        TypeError: when called, for a leaf that is picked by name (no wildcard in the pattern's last part) and
            cannot be compacted.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> params = {"first": {"kernel": jnp.ones((4, 8))}, "last": {"kernel": jnp.ones((8, 2))}}
        >>> jc.at("first/*", jc.hashed(keep=1/4))(params)["first"]["kernel"]
        HashedArray((4, 8) float32, 8 stored = 1/4)
    """
    _check_transforms("at", (transform,))
    _check_leafwise("at", (transform,))
    several = (
        isinstance(pattern, tuple) and pattern and all(isinstance(part, str) for part in pattern)
    )
    if not (isinstance(pattern, str) or several or callable(pattern)):
        raise TypeError(
            f"at expects a pattern, a tuple of patterns, or a selector (name, leaf) -> bool, got {pattern!r}"
        )
    return At(pattern, transform)


def partition(transforms: Mapping[str, Transform], labels: Any | Callable[[Any], Any]) -> Transform:
    """Give every leaf a label and every label a transform.

    Args:
        transforms: a transform for each label.
        labels: a tree of strings like the (dense) parameters or a prefix of it, or a function from parameters to one.

    Raises:
        ValueError: when called, for labels without a transform or of another structure.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> params = {"body": jnp.ones((4, 8)), "head": jnp.ones((8, 2))}
        >>> small = jc.partition({"shrink": jc.hashed(keep=1/4), "stay": jc.identity()}, {"body": "shrink", "head": "stay"})(params)
        >>> small["body"].stored_numbers, small["head"].shape
        (8, (8, 2))
    """
    _check_transforms("partition", transforms.values())
    _check_leafwise("partition", transforms.values())
    return Partition(tuple(transforms.items()), labels)


def _check_transforms(what: str, transforms: Any) -> None:
    for transform in transforms:
        if not isinstance(transform, Transform):
            raise TypeError(
                f"{what} expects transforms such as jc.hashed(keep=1/8), got {transform!r}"
            )


def _check_leafwise(what: str, transforms: Any) -> None:
    for transform in transforms:
        for inner in transform.transforms if isinstance(transform, Chain) else (transform,):
            if inner.whole_network:
                raise TypeError(
                    f"{what} picks leaves, and {inner!r} changes axes of a whole network: choose with its axes=..."
                )
