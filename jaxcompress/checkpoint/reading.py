"""A tree from a file's structure and tensors, whose form has been checked before.

What the classes know of their fields is checked here: an array's sizes and indices, a record's
annotations. Costs a copy of the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.base import CompactArray
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import leaf_name
from jaxcompress.arrays.registration import registered
from jaxcompress.arrays.static import StaticArray
from jaxcompress.checkpoint.array_checks import check_array
from jaxcompress.checkpoint.containers import put_together
from jaxcompress.checkpoint.nodes import Node, leaves_of
from jaxcompress.checkpoint.records import records
from jaxcompress.checkpoint.writing import is_stored_leaf

IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
"""Of random keys."""

GROUPS = {"namedtuple": "fields", "dataclass": "data", "variable": "children", "state": "items"}
META = {"dataclass": "meta", "variable": "metadata"}


def tree_of(node: Node) -> PyTree:
    """The tree of a file's root.

    Raises:
        ValueError: for a container that needs `like`, and whatever does not fit its class.
    """
    return _Builder().build(node)


def tree_like(node: Node, like: PyTree) -> PyTree:
    """The tree of a file's root in the containers of another one.

    Args:
        node: the root.
        like: a tree with the same leaves.

    Raises:
        ValueError: for leaves with other names, and whatever does not fit its class.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_stored_leaf)
    stored = list(leaves_of(node))
    names, expected = ([leaf_name(leaf.path) for leaf in stored], [leaf_name(p) for p, _ in flat])
    if names != expected:
        missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
        raise ValueError(
            f"it does not fit like: the file lacks {missing or 'nothing'} and additionally has "
            f"{extra or 'nothing'}"
        )
    pairs = zip(stored, flat, strict=True)
    return treedef.unflatten([_Builder(given).build(leaf) for leaf, (_, given) in pairs])


class _Builder:
    """What makes values of nodes.

    Attributes:
        like: the array that supplies the functions of an array.
    """

    def __init__(self, like: PyTree = None) -> None:
        self.like = like

    def build(self, node: Node) -> PyTree:
        """The value of a node."""
        return getattr(self, f"_{node.kind}")(node)

    def _group(self, node: Node, name: str) -> dict[str | int, PyTree]:
        return {key: self.build(inner) for key, inner in node.groups[name]}

    def fields(self, node: Node, name: str) -> dict[str, PyTree]:
        """The values of a group whose keys are names of fields."""
        return {str(key): value for key, value in self._group(node, name).items()}

    def _plain(self, node: Node) -> PyTree:
        return node.attributes["value"]

    def _array(self, node: Node) -> jax.Array | np.ndarray | np.generic:
        assert node.tensor is not None
        holder = node.attributes["holder"]
        if holder == "jax":
            # a copy, which JAX may take as it is, and no program, as jnp.array would compile
            array = jax.device_put(node.tensor.copy())
            if array.dtype != node.tensor.dtype:
                raise ValueError(
                    f"{node.name} is {node.tensor.dtype}, which JAX has only with jax_enable_x64"
                )
            return array
        if holder == "numpy":
            return node.tensor.copy()
        if node.tensor.ndim:
            raise ValueError(f"{node.name} is a number of shape {node.tensor.shape}")
        return node.tensor[()]

    def _key(self, node: Node) -> jax.Array:
        assert node.tensor is not None
        implementation = node.attributes["implementation"]
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"{node.name} is a key of the unknown kind {implementation!r}")
        data = node.tensor.copy()
        try:
            return jax.random.wrap_key_data(jax.device_put(data), impl=implementation)
        except (ValueError, TypeError):
            raise ValueError(
                f"{node.name} is no key: its data are {data.dtype} of shape {data.shape}"
            ) from None

    def _static(self, node: Node) -> StaticArray:
        assert node.tensor is not None
        made = StaticArray(node.tensor)
        if made.array.dtype != node.tensor.dtype:
            raise ValueError(f"{node.name} are indices in another dtype than their smallest")
        return made

    def _axes(self, node: Node) -> MatrixAxes:
        return MatrixAxes(tuple(node.attributes["inputs"]), tuple(node.attributes["outputs"]))

    def _function(self, node: Node) -> PyTree:
        raise ValueError(
            f"{node.name} is the function {node.attributes['name']}: pass like=, a tree that has "
            "it there"
        )

    def _list(self, node: Node) -> list[PyTree]:
        return list(self._group(node, "items").values())

    def _tuple(self, node: Node) -> tuple[PyTree, ...]:
        return tuple(self._group(node, "items").values())

    def _dict(self, node: Node) -> dict[str | int, PyTree]:
        return self._group(node, "items")

    def _other(self, node: Node) -> PyTree:
        raise ValueError(
            f"it holds a {node.attributes['type']} at {node.name}, which has no form in the file: "
            "pass like=, a tree of the same structure"
        )

    def _compact(self, node: Node) -> CompactArray:
        array = self._mapped(node)
        try:
            check_array(array)
        except ValueError as error:
            raise ValueError(f"{node.name} is no {node.attributes['type']}: {error}") from None
        return array

    def _mapped(self, node: Node) -> CompactArray:
        cls = _known(registered, node)
        like = self.like if type(self.like) is cls else None
        children, statics = node.group("children"), node.group("statics")
        if tuple(children) != cls.child_names or tuple(statics) != cls.static_names:
            raise ValueError(
                f"{node.name} has the fields {[*children, *statics]}, a {cls.__name__} has "
                f"{[*cls.child_names, *cls.static_names]}"
            )
        values = {
            field: _Builder(getattr(like, str(field), None)).build(inner)
            for field, inner in children.items()
        }
        for field, inner in statics.items():
            given = inner.kind == "function" and like is not None
            values[field] = getattr(like, str(field)) if given else self.build(inner)
        return cls(**{str(field): value for field, value in values.items()})

    def _record(self, node: Node) -> PyTree:
        entry = _known(records, node)
        try:
            return entry.make(_Builder().fields(node, "fields"))
        except ValueError as error:
            raise ValueError(f"{node.name} is no {node.attributes['type']}: {error}") from None

    def _container(self, node: Node) -> PyTree:
        children = self._group(node, GROUPS[node.kind])
        meta = self.fields(node, META[node.kind]) if node.kind in META else {}
        try:
            return put_together(node.kind, node.attributes.get("type", ""), children, meta)
        except Exception as error:  # of a constructor of flax, or a class with odd attributes
            raise ValueError(f"{node.name} cannot be put together: {error}") from None

    _namedtuple = _dataclass = _state = _variable = _container


def _known(classes: Mapping[str, PyTree], node: Node) -> PyTree:
    """A class by its name in the file."""
    name = node.attributes["type"]
    if name not in classes:
        raise ValueError(
            f"{node.name} is a {name}, which is not defined here: import the module that defines "
            "it, then load again"
        )
    return classes[name]
