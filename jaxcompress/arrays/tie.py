"""Tied parameters: equal leaves, stored once and given to the model wherever it expects them.

A pytree holds no identity: after any `tree.map` two leaves that were one array are two. `tie` takes
one of them out and gives the function that puts it back, `apply(expand(params), x)`: gradients add
up, numbers count once, and every transform changes both ends alike. Costs nothing at run time; a
transposed tie is a view that XLA folds into the product.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import leaf_name


@dataclasses.dataclass(frozen=True)
class Expand:
    """Puts tied leaves back: a pure function to the tree that the model expects.

    Attributes:
        ties: (leaf, the leaf that it is, whether it is its transpose), ...
    """

    ties: tuple[tuple[str, str, bool], ...]

    def __call__(self, params: Any) -> Any:
        """The whole tree; compact arrays stay compact."""
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

    params: Any
    expand: Expand


def flatten(params: Any) -> tuple[list[tuple[str, Any]], Any]:
    """(name, leaf) of every leaf, places that are empty among them."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda node: node is None or is_compact(node)
    )
    return [(leaf_name(path), leaf) for path, leaf in leaves], treedef


def tie(params: Any, ties: Mapping[str, str]) -> Tied:
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
        >>> apply = lambda p, tokens: jax.nn.relu(p["embed"][tokens] @ p["up"]) @ p["logits"]
        >>> net = jc.trace(lambda p, tokens: apply(expand(p), tokens), tied, jnp.array([0, 2]))
        >>> print(*net.axes["embed:1"].tied)
        embed:1
    """
    named, treedef = flatten(params)
    known = {name: leaf for name, leaf in named if leaf is not None}
    found: list[tuple[str, str, bool]] = []
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
            found.append((leaf, other, transposition(leaf, known[leaf], other, known[other])))
    gone = [leaf for leaf, _, _ in found]
    twice = sorted(
        {leaf for leaf in gone if gone.count(leaf) > 1}
        | {other for _, other, _ in found if other in gone}
    )
    if twice:
        raise ValueError(
            f"tie: {', '.join(twice)} would be taken out and used, or tied twice: "
            "tie all of them to the same leaf"
        )
    return Tied(
        jax.tree.unflatten(treedef, [None if name in gone else leaf for name, leaf in named]),
        Expand(tuple(found)),
    )


def transposition(leaf: str, one: Any, source: str, other: Any) -> bool:
    """Whether a leaf is the transpose of another, which it must otherwise equal."""
    shapes = tuple(one.shape), tuple(other.shape)
    if is_compact(one) or is_compact(other):
        raise ValueError(
            f"tie: {leaf if is_compact(one) else source} is compact: "
            "tie first, and compact what is left"
        )
    ways = [False] if shapes[0] == shapes[1] else []
    ways += [True] if len(shapes[0]) == 2 and shapes[0] == shapes[1][::-1] else []
    if not ways or one.dtype != other.dtype:
        kinds = f"{one.dtype}{list(shapes[0])} and {other.dtype}{list(shapes[1])}"
        raise ValueError(
            f"tie: {leaf!r} and {source!r} are {kinds}: "
            "tied leaves have one shape, or are each other's transposes"
        )
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
