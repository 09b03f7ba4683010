"""The schema of a file's structure: nodes of fixed kinds, checked before anything is built.

A plain value is itself; every other node is an object with its kind, its attributes and its groups
of further nodes, in the order of `KINDS`. The tensors of a file follow the order in which a walk
meets the nodes that hold them, under the names of their paths, so the structure refers to each of
them once and to nothing else. A walk costs the size of the header.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from jaxcompress.arrays.paths import leaf_name
from jaxcompress.checkpoint.tensor_file import Json, Tensors

DEPTH = 100
"""The most containers within each other."""

PLAIN = (type(None), bool, int, float, str)
"""Types of plain values."""

Path = tuple[DictKey | GetAttrKey | SequenceKey, ...]


def _is_name(value: Json) -> bool:
    return type(value) is str and bool(value)


def _is_positions(value: Json) -> bool:
    return type(value) is list and all(type(axis) is int for axis in value) and bool(value)


def _is_holder(value: Json) -> bool:
    return value in ("jax", "numpy", "scalar")


@dataclasses.dataclass(frozen=True)
class Kind:
    """The fields of a kind of node.

    Attributes:
        attributes: from each attribute's name to what it must be.
        groups: from each group's name to the kind of keys of its nodes.
        tensor: whether it holds a tensor.
    """

    attributes: Mapping[str, Callable[[Json], bool]] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, type] = dataclasses.field(default_factory=dict)
    tensor: bool = False


KINDS = {
    "array": Kind({"holder": _is_holder}, tensor=True),
    "key": Kind({"implementation": _is_name}, tensor=True),
    "static": Kind(tensor=True),
    "axes": Kind({"inputs": _is_positions, "outputs": _is_positions}),
    "function": Kind({"name": _is_name}),
    "list": Kind(groups={"items": SequenceKey}),
    "tuple": Kind(groups={"items": SequenceKey}),
    "dict": Kind(groups={"items": DictKey}),
    "compact": Kind({"type": _is_name}, {"children": GetAttrKey, "statics": GetAttrKey}),
    "mapped": Kind({"type": _is_name}, {"children": GetAttrKey, "statics": GetAttrKey}),
    "record": Kind({"type": _is_name}, {"fields": GetAttrKey}),
    "namedtuple": Kind({"type": _is_name}, {"fields": GetAttrKey}),
    "dataclass": Kind({"type": _is_name}, {"data": GetAttrKey, "meta": GetAttrKey}),
    "state": Kind(groups={"items": DictKey}),
    "variable": Kind({"type": _is_name}, {"children": GetAttrKey, "metadata": GetAttrKey}),
    "other": Kind({"type": _is_name}, {"leaves": DictKey}),
}
"""All kinds of nodes: an array, the data of a random key, a `StaticArray`, `MatrixAxes`, a function
that `like` supplies, containers, compact arrays, their nodes filled with something else (such as an
optimizer's state), records, and containers that `like` supplies."""

LEAVES = ("array", "key", "plain", "compact", "mapped", "record")
"""Kinds that are leaves of a tree."""


@dataclasses.dataclass
class Node:
    """One node of a structure.

    Attributes:
        kind: of `KINDS`, or "plain".
        path: from the root, as JAX's keys.
        attributes: its attributes, or the value of a plain node under "value".
        groups: its groups of nodes, each with its key.
        tensor: the tensor that it holds.
    """

    kind: str
    path: Path
    attributes: dict[str, Json]
    groups: dict[str, list[tuple[str | int, Node]]] = dataclasses.field(default_factory=dict)
    tensor: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The path as text, for messages and for the names of tensors."""
        return leaf_name(self.path) or "the top"

    def group(self, name: str) -> dict[str | int, Node]:
        """A group of nodes by their keys."""
        return dict(self.groups[name])


def read_node(encoded: Json, path: Path = (), depth: int = 0) -> Node:
    """A node from its JSON.

    Args:
        encoded: the JSON.
        path: of the node.
        depth: containers around it.

    Raises:
        ValueError: for anything that differs from `KINDS`, naming the path and what is there.
    """
    if type(encoded) in PLAIN:
        return Node("plain", path, {"value": encoded})
    where = leaf_name(path) or "the top"
    if depth > DEPTH:
        raise ValueError(f"{where} lies in more than {DEPTH} containers")
    if type(encoded) is not dict or type(encoded.get("kind")) is not str:
        raise ValueError(f"{where} is {_short(encoded)}, which is no node of a file")
    if encoded["kind"] not in KINDS:
        raise ValueError(
            f"{where} is of the unknown kind {_short(encoded['kind'])}; there are: "
            f"{', '.join(KINDS)}"
        )
    kind = KINDS[encoded["kind"]]
    fields = ["kind", *kind.attributes, *kind.groups]
    if list(encoded) != fields:
        raise ValueError(
            f"{where}, a node of the kind {encoded['kind']}, has the fields {_short(list(encoded))}"
            f", expected {fields}"
        )
    for field, fits in kind.attributes.items():
        if not fits(encoded[field]):
            raise ValueError(f"{where} has {field}={_short(encoded[field])}, which cannot be")
    node = Node(encoded["kind"], path, {field: encoded[field] for field in kind.attributes})
    for group, keys in kind.groups.items():
        node.groups[group] = [
            (key, read_node(inner, _path(node, keys, key), depth + 1))
            for key, inner in _entries(encoded[group], keys, f"{group} of {where}")
        ]
        # leaves of a container without a form may read alike
        if node.kind != "other" and len(node.group(group)) < len(node.groups[group]):
            raise ValueError(f"{group} of {where} have keys that are repeated")
    return node


def _path(node: Node, keys: type, key: str | int) -> Path:
    return within(node.path, key) if node.kind == "other" else (*node.path, keys(key))


def within(path: Path, name: str | int) -> Path:
    """The path of a leaf that has a name, or none, in a container."""
    return (*path, DictKey(name)) if name else path


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _entries(encoded: Json, keys: type, what: str) -> list[tuple[str | int, Json]]:
    """The keys and nodes of a group: a list of nodes, or a list of pairs."""
    if type(encoded) is not list:
        raise ValueError(f"{what} are {_short(encoded)}, no list")
    if keys is SequenceKey:
        return list(enumerate(encoded))
    if not all(type(pair) is list and len(pair) == 2 for pair in encoded):
        raise ValueError(f"{what} are {_short(encoded)}, no list of pairs")
    names = [pair[0] for pair in encoded]
    types = set(map(type, names))
    if types not in (set(), {str}) and not (types == {int} and keys is DictKey):
        raise ValueError(f"{what} have the keys {_short(names)}, not strings or integers alone")
    return [(name, inner) for name, inner in encoded]


def attach(node: Node, tensors: Tensors) -> None:
    """Give every node its tensor.

    Args:
        node: the root.
        tensors: in the order of the file.

    Raises:
        ValueError: for tensors that are too few, too many, or have other names.
    """
    names, remaining = Names(), iter(tensors)
    for holder in _holders(node):
        wanted = names.new(holder.path)
        name, tensor = next(remaining, ("nothing", None))
        if name != wanted:
            raise ValueError(f"{holder.name} should have the tensor {wanted!r}, there is {name!r}")
        holder.tensor = tensor
    if rest := [name for name, _ in remaining]:
        raise ValueError(f"the tensors {_short(rest)} belong to nothing")


def _holders(node: Node) -> Iterator[Node]:
    """The nodes with a tensor, in the order of the file."""
    if node.kind != "plain" and KINDS[node.kind].tensor:
        yield node
    for group in node.groups.values():
        for _, inner in group:
            yield from _holders(inner)


class Names:
    """Names of tensors: paths, with a number where one is taken already."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {"__metadata__": 1}

    def new(self, path: Path) -> str:
        """The next name for a path."""
        name = stem = leaf_name(path) or "params"
        while name in self._counts:
            self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}#{self._counts[stem]}"
        self._counts[name] = 1
        return name


def leaves_of(node: Node) -> Iterator[Node]:
    """The leaves of a tree, in the order of `jax.tree.leaves`."""
    if node.kind in LEAVES:
        if node.kind != "plain" or node.attributes["value"] is not None:
            yield node
        return
    if not node.groups:
        raise ValueError(f"{node.name} is of the kind {node.kind}, which is no leaf")
    # metadata belong to the structure
    items = next(iter(node.groups.values()))
    if node.kind in ("dict", "state"):
        items = sorted(items, key=lambda item: item[0])
    for _, inner in items:
        yield from leaves_of(inner)
