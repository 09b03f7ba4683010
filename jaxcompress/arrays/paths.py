"""Names and patterns for the leaves of any parameter tree.

A leaf's name is its path, parts joined by "/": the same in linen, nnx, equinox, haiku and plain
containers. A pattern matches part by part: `*` and `?` within one part, `**` for any number of
parts. A compact array is one leaf; only a pattern that names one of its children looks inside.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.checks import shown

Selector = Callable[[str, PyTree], bool]
Pattern = str | tuple[str, ...] | Selector


def leaf_name(path: tuple[PyTree, ...]) -> str:
    """The name of a key path; nnx's `.value` attribute is left out, a key "value" is not."""
    parts = []
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value":
            continue
        part = next(
            (getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name)), key
        )
        parts.append(str(part))
    return "/".join(parts)


def named_leaves(tree: PyTree, prefix: str = "") -> list[tuple[str, PyTree]]:
    """(name, leaf) of every leaf, compact arrays as one leaf.

    Raises:
        ValueError: where two leaves have one name.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_compact)[0]
    names = leaf_names([path for path, _ in flat])
    return [(join(prefix, name), leaf) for name, (_, leaf) in zip(names, flat, strict=True)]


def leaf_names(paths: Sequence[tuple[PyTree, ...]]) -> list[str]:
    """The names of key paths, which must differ: patterns, moments and reports are by name.

    Raises:
        ValueError: where two paths read alike, with both.

    Example:
        >>> import jaxcompress as jc
        >>> jc.hashed(keep=1/2)({"a/b": 1.0, "a": {"b": 2.0}})
        Traceback (most recent call last):
        ValueError: two leaves are named 'a/b': ['a']['b'] and ['a/b']; rename a key of one of them
    """
    taken: dict[str, tuple[PyTree, ...]] = {}
    for path in paths:
        name = leaf_name(path)
        if name in taken:
            both = " and ".join(map(jax.tree_util.keystr, (taken[name], path)))
            raise ValueError(f"two leaves are named {name!r}: {both}; rename a key of one of them")
        taken[name] = path
    return list(taken)


def names_within(tree: PyTree) -> list[str]:
    """Every name that a pattern can match: leaves, and the children of compact arrays."""
    names: list[str] = []
    for name, leaf in named_leaves(tree):
        names.append(name)
        if isinstance(leaf, CompactArray):
            for child in leaf.child_names:
                names += [
                    join(join(name, child), inner) for inner in names_within(getattr(leaf, child))
                ]
    return names


def join(*parts: str) -> str:
    """Parts of a name, empty ones left out."""
    return "/".join(part for part in parts if part)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern such as `**/kernel` or `encoder/*/bias` matches a full name.

    Example:
        >>> from jaxcompress.arrays.paths import matches
        >>> matches("**/kernel", "dense_0/kernel"), matches("*", "dense_0/kernel")
        (True, False)
    """
    return _match(tuple(pattern.split("/")), tuple(name.split("/")) if name else ())


@functools.cache
def _match(pattern: tuple[str, ...], name: tuple[str, ...]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_match(pattern[1:], name[skip:]) for skip in range(len(name) + 1))
    return bool(name) and fnmatch.fnmatchcase(name[0], pattern[0]) and _match(pattern[1:], name[1:])


class _Matrices:
    """The selector `jc.matrices`: float leaves of two dimensions, and compact arrays."""

    def __call__(self, name: str, leaf: PyTree) -> bool:
        if is_compact(leaf):
            return True
        return getattr(leaf, "ndim", 0) == 2 and jnp.issubdtype(leaf.dtype, jnp.floating)

    def __repr__(self) -> str:
        return "jc.matrices"


matrices = _Matrices()
"""Selects every matrix of a tree in any framework: `jc.at(jc.matrices, transform)`."""


def check_pattern(who: str, pattern: Pattern) -> None:
    """Refuse what is neither a pattern nor several nor a selector, in the name of a function."""
    parts = pattern if isinstance(pattern, tuple) else ()
    several = bool(parts) and all(isinstance(part, str) for part in parts)
    if not (isinstance(pattern, str) or several or callable(pattern)):
        raise TypeError(
            f"{who} expects a pattern, a tuple of patterns, or a selector (name, leaf) -> bool, "
            f"got {shown(pattern)}"
        )


def check_matched(
    who: str, pattern: Pattern, matched: Collection[str], names: Sequence[str]
) -> None:
    """Refuse a pattern that picked no leaf, and each of several that matches none of the names."""
    parts = pattern if isinstance(pattern, tuple) else ()
    idle = [part for part in parts if not any(matches(part, name) for name in names)]
    if idle or not matched:
        which = f": {', '.join(map(repr, idle))}" if idle and matched else ""
        raise ValueError(f"{who} matches no leaf{which}; there are: {', '.join(names) or 'none'}")


def select(pattern: Pattern, name: str, leaf: PyTree) -> bool:
    """Whether a pattern, one of several patterns, or a selector picks a leaf."""
    if callable(pattern):
        picked = pattern(name, leaf)
        if not isinstance(picked, (bool, np.bool_)):
            raise TypeError(
                f"the selector {pattern!r} gave {shown(picked)} for {name!r}, expected True or "
                "False"
            )
        return bool(picked)
    return any(
        matches(part, name) for part in ((pattern,) if isinstance(pattern, str) else pattern)
    )


def is_literal(pattern: Pattern) -> bool:
    """Whether a pattern picks leaves by name: no wildcard in its last part."""
    if callable(pattern):
        return False
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    return all(not set("*?[") & set(part.rsplit("/", 1)[-1]) for part in patterns)
