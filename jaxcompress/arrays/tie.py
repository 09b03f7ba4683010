"""Tied parameters: equal leaves, stored once and restored before the model is applied.

A pytree holds no identity: after any `tree.map` two leaves that were one array are two. `tie`
removes one of them and returns the function that restores it, `apply(expand(params), x)`. Gradients
then add up, numbers count once, and every transform changes both uses in the same way. Costs
nothing at run time; a transposed tie is a view that XLA folds into the product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import leaf_names
from jaxcompress.checks import mapping, shown

Leaf = PyTree
"""An array, a shape, a compact array, or None where a leaf was taken out."""


@dataclasses.dataclass(frozen=True)
class Expand:
    """Puts tied leaves back: a pure function to the tree that the model expects.

    Attributes:
        ties: (leaf, the leaf that it is, whether it is its transpose), ...
    """

    ties: tuple[tuple[str, str, bool], ...]

    def __call__(self, params: PyTree) -> PyTree:
        """The tree with tied leaves in place; compact arrays stay compact."""
        named, treedef = flatten(params)
        known = dict(named)
        for leaf, source, transposed in self.ties:
            if known.get(source) is None:
                raise ValueError(
                    f"expand: {leaf!r} is tied to {source!r}, which is not in these "
                    "parameters: give the tied tree"
                )
            known[leaf] = known[source].T if transposed else known[source]
        return jax.tree.unflatten(treedef, [known[name] for name, _ in named])

    def __repr__(self) -> str:
        ties = (
            f"{leaf} = {source}{'.T' if transposed else ''}"
            for leaf, source, transposed in self.ties
        )
        return f"Expand({', '.join(ties)})"


class Tied(NamedTuple):
    """The result of `tie`: the tree with tied leaves once, and the function that puts them back."""

    params: PyTree
    expand: Expand


def flatten(params: PyTree) -> tuple[list[tuple[str, Leaf]], PyTree]:
    """(name, leaf) of every leaf, with None for empty places, and the tree's structure."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda node: node is None or is_compact(node)
    )
    names = leaf_names([path for path, _ in leaves])
    return [(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)], treedef


def tie(params: PyTree, ties: Mapping[str, str]) -> Tied:
    """Store leaves that are equal once.

    Args:
        params: any pytree of arrays (or shapes).
        ties: from the path of a leaf, or of a subtree, to the path of the one that it equals.
            Matrices may be each other's transposes, as an embedding and an output kernel are.

    Returns:
        The tree in which the named leaves are None, and `expand`, which puts them back.

    Raises:
        ValueError: for a path that is not there, shapes or dtypes that differ, values that are not
            equal.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> words = jnp.arange(12.0).reshape(4, 3)
        >>> params = {"embed": words, "up": jnp.ones((3, 3)), "logits": words.T}
        >>> tied, expand = jc.tie(params, {"logits": "embed"})
        >>> expand, jc.stored_numbers(tied)
        (Expand(logits = embed.T), 21)
        >>> def apply(p, tokens):
        ...     return jax.nn.relu(p["embed"][tokens] @ p["up"]) @ p["logits"]
        >>> net = jc.trace(lambda p, tokens: apply(expand(p), tokens), tied, jnp.array([0, 2]))
        >>> print(*net.axes["embed:1"].tied)
        embed:1
    """
    if not all(isinstance(source, str) for source in mapping("tie: ties", ties).values()):
        raise TypeError(f"tie: ties maps paths to paths, got {shown(ties)}")
    named, treedef = flatten(params)
    known = {name: leaf for name, leaf in named if leaf is not None}
    ends = {*ties, *ties.values()} & known.keys()
    if bad := [name for name in sorted(ends) if not hasattr(known[name], "dtype")]:
        raise ValueError(f"tie: {bad[0] or 'params'} is no array: {shown(known[bad[0]])}")
    pairs: list[tuple[str, str, bool]] = []
    for target, source in ties.items():
        inside = [name for name in known if name == target or name.startswith(f"{target}/")]
        if not inside:
            raise ValueError(f"tie: nothing is at {target!r}; there are: {', '.join(known)}")
        for leaf in inside:
            other = source + leaf[len(target) :]
            if other not in known:
                raise ValueError(
                    f"tie: {leaf!r} is tied to {other!r}, which is not there; "
                    f"there are: {', '.join(known)}"
                )
            pairs.append((leaf, other, transposition(leaf, known[leaf], other, known[other])))
    removed = [leaf for leaf, _, _ in pairs]
    # taking out a leaf that another one refers to would leave nothing to restore it from
    twice = sorted(
        {leaf for leaf in removed if removed.count(leaf) > 1}
        | {other for _, other, _ in pairs if other in removed}
    )
    if twice:
        raise ValueError(
            f"tie: {', '.join(twice)} would be taken out and used, or tied twice: "
            "tie all of them to the same leaf"
        )
    return Tied(
        jax.tree.unflatten(treedef, [None if name in removed else leaf for name, leaf in named]),
        Expand(tuple(pairs)),
    )


def transposition(leaf: str, one: Leaf, source: str, other: Leaf) -> bool:
    """Whether a leaf is the transpose of another, which it must otherwise equal."""
    shapes = tuple(one.shape), tuple(other.shape)
    if is_compact(one) or is_compact(other):
        raise ValueError(
            f"tie: {leaf if is_compact(one) else source} is compact: "
            "tie first, and compact the remaining leaves"
        )
    ways = [False] if shapes[0] == shapes[1] else []
    ways += [True] if len(shapes[0]) == 2 and shapes[0] == shapes[1][::-1] else []
    if not ways or one.dtype != other.dtype:
        kinds = f"{one.dtype}{list(shapes[0])} and {other.dtype}{list(shapes[1])}"
        raise ValueError(
            f"tie: {leaf!r} and {source!r} are {kinds}: "
            "tied leaves have one shape, or are each other's transposes"
        )
    # shapes have no values to compare
    if any(isinstance(value, jax.ShapeDtypeStruct) for value in (one, other)):
        return ways[0]
    equal = [turned for turned in ways if bool(jnp.array_equal(one, other.T if turned else other))]
    if not equal:
        gap = np.abs(
            np.asarray(one, np.float64) - np.asarray(other.T if ways[0] else other, np.float64)
        ).max()
        raise ValueError(
            f"tie: {leaf!r} and {source!r} differ by up to {gap:.3g}: "
            "only leaves with the same values can be tied"
        )
    return equal[0]
