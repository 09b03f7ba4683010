"""Combinators of transforms: in sequence, by pattern, by label, and the identity.

`chain` is associative with `identity` as its unit; `at` picks leaves by pattern and `partition`
gives each leaf one label. They add no cost to that of the combined transforms.

Source: the combinators of optax (https://github.com/google-deepmind/optax).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.paths import (
    Pattern,
    check_matched,
    check_pattern,
    is_literal,
    join,
    named_leaves,
    names_within,
    select,
)
from jaxcompress.checks import mapping
from jaxcompress.moments.moments import Moments
from jaxcompress.transforms.base import Scope, Transform, check_transform, child_moments, map_leaves
from jaxcompress.transforms.budget import Items, Plan
from jaxcompress.transforms.leafwise import LeafTransform
from jaxcompress.transforms.settings import call, show, show_mapping
from jaxcompress.transforms.weights import Sweep


@dataclasses.dataclass(frozen=True, repr=False)
class Chain(Transform):
    """Transforms in order, each applied to the result of the previous one."""

    transforms: tuple[Transform, ...]

    @property
    def traceable(self) -> bool:  # type: ignore[override]
        """Whether all of the transforms are traceable."""
        return all(transform.traceable for transform in self.transforms)

    def _step(
        self, params: PyTree, moments: Moments | PyTree, scope: Scope
    ) -> tuple[PyTree, Moments | PyTree]:
        for transform in self.transforms:
            params, moments = transform._step(params, moments, scope)
        return params, moments

    def check_patterns(self, paths: Sequence[str]) -> None:
        """Refuse patterns of any of the transforms that decide for none of some leaves."""
        for transform in self.transforms:
            transform.check_patterns(paths)

    def __repr__(self) -> str:
        if not self.transforms:
            return "identity()"
        return call("chain", *map(repr, self.transforms))


@dataclasses.dataclass(frozen=True, repr=False)
class At(Transform):
    """A transform on the leaves that a pattern picks, all others untouched."""

    pattern: Pattern
    transform: Transform

    def plan(self, params: PyTree, moments: Moments | PyTree = None) -> Plan:
        """Divide a budget among the leaves that the pattern picks.

        Args:
            params: the parameters that the transform is to be called with.
            moments: the moments that the transform is to be called with.

        Returns:
            The plan, which prints as a table.

        Raises:
            ValueError: where the transform at the pattern is not one leaf transform with a budget.
        """
        return self._leaf_transform().plan(params, moments, self._picks)

    def items(self, params: PyTree, moments: Moments | PyTree) -> Items:
        """The matrices that the pattern picks, among which a budget is divided."""
        return self._leaf_transform().items(params, moments, self._picks)

    def divided(self, plan: Plan) -> At:
        """The transform with the keeps of a plan."""
        return dataclasses.replace(self, transform=self._leaf_transform().divided(plan))

    def _leaf_transform(self) -> LeafTransform:
        if isinstance(self.transform, LeafTransform):
            return self.transform
        raise ValueError(f"plan divides the budget of one leaf transform, got {self.transform!r}")

    def _picks(self, name: str, leaf: PyTree) -> bool:
        return select(self.pattern, name, leaf)

    def _apply(self, params: PyTree, moments: Moments | PyTree, scope: Scope) -> PyTree:
        inner = self.transform
        if isinstance(inner, LeafTransform) and inner.has_budget and not scope.prefix:
            return self.divided(self.plan(params, moments))._apply(params, moments, scope)
        matched: list[str] = []
        sweep = Sweep()

        def visit(name: str, leaf: PyTree, metric: ArrayLike | None) -> PyTree:
            return self._visit(name, leaf, metric, scope, matched, sweep)

        result = map_leaves(visit, params, moments)
        check_matched(f"at({show(self.pattern)})", self.pattern, matched, names_within(params))
        sweep.finish()
        if not scope.prefix:
            self.transform.check_patterns(matched)
        return result

    def _visit(
        self,
        name: str,
        leaf: PyTree,
        metric: ArrayLike | None,
        scope: Scope,
        matched: list[str],
        sweep: Sweep,
    ) -> PyTree:
        """One leaf, or the children of a compact array that the pattern does not match itself."""
        if self._picks(name, leaf):
            matched.append(name)
            path, by_name = join(scope.prefix, name), is_literal(self.pattern)
            with sweep.leaf(by_name=by_name):
                result = self.transform._apply(leaf, metric, Scope(path, by_name))
                return result if result is leaf else sweep.compacted(result)
            return leaf
        if not isinstance(leaf, CompactArray) or callable(self.pattern):
            return leaf
        children = [child for child in leaf.child_names if self._reaches(name, leaf, child)]
        if not children:
            return leaf
        metrics = child_moments(leaf, metric)
        changes = {
            child: self._visit(
                join(name, child), getattr(leaf, child), metrics.get(child), scope, matched, sweep
            )
            for child in children
        }
        return dataclasses.replace(leaf, **changes)

    def _reaches(self, name: str, leaf: CompactArray, child: str) -> bool:
        """Whether the pattern matches something within a child of a compact array."""
        within = names_within(getattr(leaf, child))
        return any(select(self.pattern, join(name, child, inner), None) for inner in within)

    def __repr__(self) -> str:
        return call("at", show(self.pattern), repr(self.transform))


@dataclasses.dataclass(frozen=True)
class Labels:
    """A tree of labels, compared and hashed by its labels and its structure.

    Attributes:
        leaves: the labels in the order of JAX.
        treedef: the structure of the tree.
    """

    leaves: tuple[str, ...]
    treedef: jax.tree_util.PyTreeDef  # type: ignore[valid-type]

    @classmethod
    def of(cls, tree: PyTree[str]) -> Labels:
        """The labels of a tree, copied."""
        leaves, treedef = jax.tree.flatten(tree)
        return cls(tuple(leaves), treedef)

    @property
    def tree(self) -> PyTree[str]:
        """The labels as a tree."""
        return jax.tree.unflatten(self.treedef, self.leaves)

    def __repr__(self) -> str:
        return repr(self.tree)


@dataclasses.dataclass(frozen=True, repr=False)
class Partition(Transform):
    """A transform for each label, and a label for each leaf."""

    transforms: tuple[tuple[str, Transform], ...]
    labels: Labels | Callable[[PyTree], PyTree[str]]

    def _apply(self, params: PyTree, moments: Moments | PyTree, scope: Scope) -> PyTree:
        table, labels = dict(self.transforms), self._labels_by_name(params)
        wrong = {name: label for name, label in labels.items() if label not in table}
        if wrong:
            raise ValueError(
                f"partition has transforms for the labels {sorted(table)}, but these leaves have "
                f"others: {wrong}"
            )

        if unused := sorted(set(table) - set(labels.values())):
            raise ValueError(
                f"partition: no leaf has the labels {unused}; the leaves have {labels}: leave out "
                "their transforms, or label a leaf so"
            )

        def visit(name: str, leaf: PyTree, metric: ArrayLike | None) -> PyTree:
            inner = dataclasses.replace(scope, prefix=join(scope.prefix, name))
            return table[labels[name]]._apply(leaf, metric, inner)

        result = map_leaves(visit, params, moments)
        if not scope.prefix:
            for label, transform in self.transforms:
                transform.check_patterns([name for name in labels if labels[name] == label])
        return result

    def _labels_by_name(self, params: PyTree) -> dict[str, str]:
        """The label of every leaf; a label of a subtree holds for all leaves below it."""
        labels = self.labels.tree if isinstance(self.labels, Labels) else self.labels(params)

        def spread(label: str, part: PyTree) -> PyTree:
            return jax.tree.map(lambda _: label, part, is_leaf=is_compact)

        treedef = jax.tree.structure(params, is_leaf=is_compact)
        try:
            flat = treedef.flatten_up_to(jax.tree.map(spread, labels, params))
        except ValueError as error:
            raise ValueError(f"partition: the labels do not fit the parameters: {error}") from None
        names = [name for name, _ in named_leaves(params)]
        return dict(zip(names, flat, strict=True))

    def __repr__(self) -> str:
        return call("partition", show_mapping(self.transforms), show(self.labels))


def chain(*transforms: Transform) -> Transform:
    """Apply transforms one after another; their keeps multiply.

    Args:
        *transforms: any, in the order in which they run; a chain in a chain is flattened.

    Returns:
        A transform.

    Raises:
        TypeError: for an argument that is not a transform.

    Example:
        >>> import jaxcompress as jc
        >>> jc.chain(jc.vocabulary(keep=1/2), jc.at("**/codes", jc.hashed(keep=1/4)))
        chain(vocabulary(keep=0.5), at('**/codes', hashed(keep=0.25)))
    """
    _check_transforms("chain", transforms)
    flat: list[Transform] = []
    for transform in transforms:
        flat += transform.transforms if isinstance(transform, Chain) else (transform,)
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))


def identity() -> Transform:
    """The transform that changes nothing: the unit of `chain`.

    Returns:
        A transform.

    Example:
        >>> import jaxcompress as jc
        >>> jc.chain(jc.identity(), jc.hashed(keep=1/2)) == jc.hashed(keep=1/2)
        True
    """
    return Chain(())


def at(pattern: Pattern, transform: Transform) -> Transform:
    """Apply a transform to the leaves whose names a pattern matches.

    Args:
        pattern: parts joined by "/", with `*` within a part and `**` for any number of parts, on
            the tree as received; a tuple of such patterns; or a selector `(name, leaf) -> bool`
            such as `jc.matrices`. A pattern is compared with a compact array before its children
            and stops there; to nest, name the child: `**/kernel/codes`.
        transform: a leaf transform, or a combination of them; the leaf is its whole tree.

    Returns:
        A transform.

    Raises:
        TypeError: for an argument that is not a pattern, or a transform of axes; when called, for a
            leaf that is picked by name (no wildcard in the pattern's last part) and cannot be
            compacted.
        ValueError: when called, for a pattern, or one of several, that matches nothing; the message
            lists the leaves. For a leaf that is picked by name and beyond the form's reach; where
            no one named it, it stays dense and the log names it, unless all leaves do.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> params = {"first": {"kernel": jnp.ones((4, 8))}, "last": {"kernel": jnp.ones((8, 2))}}
        >>> jc.at("first/*", jc.hashed(keep=1/4))(params)["first"]["kernel"]
        HashedArray((4, 8) float32, 8 stored = 1/4)
    """
    _check_transforms("at", (transform,))
    _check_leafwise("at", (transform,))
    check_pattern("at", pattern)
    return At(pattern, transform)


def partition(
    transforms: Mapping[str, Transform], labels: PyTree[str] | Callable[[PyTree], PyTree[str]]
) -> Transform:
    """Give every leaf a label and every label a transform.

    Args:
        transforms: a transform for each label.
        labels: a tree of strings like the (dense) parameters or a prefix of it, or a function from
            parameters to one.

    Returns:
        A transform.

    Raises:
        TypeError: for an argument that is not a transform, or a transform of axes.
        ValueError: when called, for labels without a transform or of another structure, or a
            transform whose label no leaf has.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> params = {"body": jnp.ones((4, 8)), "head": jnp.ones((8, 2))}
        >>> transforms = {"shrink": jc.hashed(keep=1/4), "same": jc.identity()}
        >>> small = jc.partition(transforms, {"body": "shrink", "head": "same"})(params)
        >>> small["body"].stored_numbers, small["head"].shape
        (8, (8, 2))
    """
    mapping("partition: transforms", transforms)
    _check_transforms("partition", transforms.values())
    _check_leafwise("partition", transforms.values())
    table = tuple(sorted(transforms.items(), key=lambda item: str(item[0])))
    return Partition(table, labels if callable(labels) else Labels.of(labels))


def _check_transforms(what: str, transforms: Iterable[object]) -> None:
    for transform in transforms:
        check_transform(what, transform)


def _check_leafwise(what: str, transforms: Iterable[Transform]) -> None:
    for transform in transforms:
        for inner in transform.transforms if isinstance(transform, Chain) else (transform,):
            if inner.whole_network:
                raise TypeError(
                    f"{what} picks leaves, and {inner!r} changes axes of a whole network: choose "
                    "with its axes=..."
                )
