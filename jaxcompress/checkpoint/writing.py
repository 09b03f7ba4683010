"""A tree as a file's structure and tensors: each node as JSON, its numbers put beside it.

The recursion is over one level of containers at a time, so that every container is written as what
it is. Costs a copy of the numbers to the host.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import DictKey, GetAttrKey, SequenceKey
from jaxtyping import PyTree

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import leaf_name
from jaxcompress.arrays.registration import registered
from jaxcompress.arrays.static import StaticArray
from jaxcompress.checkpoint.array_checks import check_array
from jaxcompress.checkpoint.containers import name_of, take_apart
from jaxcompress.checkpoint.nodes import DEPTH, PLAIN, Names, Path, within
from jaxcompress.checkpoint.records import record_of
from jaxcompress.checkpoint.tensor_file import NAMES, Json, Tensors


def is_stored_leaf(tree: PyTree) -> bool:
    """Whether a subtree is one leaf of a file: a compact array or a record."""
    return is_compact(tree) or record_of(tree) is not None


@dataclasses.dataclass
class Writer:
    """The tensors that have been written so far.

    Attributes:
        tensors: with their names, in the order of the nodes.
        names: the names that are taken.
    """

    tensors: Tensors = dataclasses.field(default_factory=list)
    names: Names = dataclasses.field(default_factory=Names)

    def node(self, tree: PyTree, path: Path = (), *, inside: bool = False) -> Json:
        """A tree as the JSON of a node.

        Args:
            tree: any part of a tree.
            path: its keys from the root.
            inside: whether it is a part of a leaf, which `like` does not supply.

        Raises:
            TypeError: for what a file cannot hold, naming its path.
        """
        if type(tree) in PLAIN:
            return tree
        if len(path) > DEPTH:
            raise TypeError(f"save: {leaf_name(path)} lies in more than {DEPTH} containers")
        if isinstance(tree, StaticArray):
            self._put(tree.array, path)
            return {"kind": "static"}
        if isinstance(tree, MatrixAxes):
            return {"kind": "axes", "inputs": [*tree.inputs], "outputs": [*tree.outputs]}
        if isinstance(tree, CompactArray):
            return self._compact(tree, path)
        if record_of(tree) is not None:
            return self._record(tree, path)
        if isinstance(tree, (jax.Array, np.ndarray, np.generic)):
            return self._array(tree, path)
        return self._container(tree, path, inside)

    def _put(self, array: np.ndarray, path: Path) -> None:
        self.tensors.append((self.names.new(path), array))

    def _array(self, leaf: jax.Array | np.ndarray | np.generic, path: Path) -> Json:
        name = leaf_name(path) or "the leaf"
        if isinstance(leaf, Tracer):
            raise TypeError(f"save: {name} is traced and has no value: save outside of jit")
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            self._put(np.asarray(jax.random.key_data(leaf)), path)
            return {"kind": "key", "implementation": str(jax.random.key_impl(leaf))}
        if leaf.dtype not in NAMES:
            raise TypeError(
                f"save: {name} is a {type(leaf).__name__} of dtype {leaf.dtype}, which the file "
                "format cannot hold: cast it"
            )
        holder = "jax"
        if isinstance(leaf, (np.ndarray, np.generic)):
            holder = "numpy" if isinstance(leaf, np.ndarray) else "scalar"
        self._put(np.asarray(leaf), path)
        return {"kind": "array", "holder": holder}

    def _compact(self, leaf: CompactArray, path: Path) -> Json:
        name = type(leaf).__name__
        if registered.get(name) is not type(leaf):
            raise TypeError(f"save: another class than that of {leaf_name(path)} is called {name}")
        try:
            check_array(leaf)
            kind = "compact"
        except ValueError:
            # an optimizer's state, a mask or labels in the place of an array's numbers
            kind = "mapped"
        children = {field: getattr(leaf, field) for field in leaf.child_names}
        statics = {field: getattr(leaf, field) for field in leaf.static_names}
        return {
            "kind": kind,
            "type": name,
            "children": self._fields(children, path),
            "statics": [
                [field, _function(value)]
                if callable(value)
                else [field, self.node(value, (*path, GetAttrKey(field)), inside=True)]
                for field, value in statics.items()
            ],
        }

    def _record(self, leaf: PyTree, path: Path) -> Json:
        known = record_of(leaf)
        assert known is not None
        name, entry = known
        try:
            fields = entry.fields(leaf)
        except ValueError as error:
            raise TypeError(f"save: {leaf_name(path) or 'the leaf'}: {error}") from error
        return {"kind": "record", "type": name, "fields": self._fields(fields, path)}

    def _fields(self, fields: dict[str, PyTree], path: Path) -> Json:
        return [
            [name, self.node(value, (*path, GetAttrKey(name)), inside=True)]
            for name, value in fields.items()
        ]

    def _container(self, tree: PyTree, path: Path, inside: bool) -> Json:
        if type(tree) is dict:
            _check_keys(tree, path)
            return {"kind": "dict", "items": self._items(tree, path, inside)}
        if type(tree) in (list, tuple):
            items = [
                self.node(item, (*path, SequenceKey(index)), inside=inside)
                for index, item in enumerate(tree)
            ]
            return {"kind": type(tree).__name__, "items": items}
        parts = take_apart(tree)
        if parts is None:
            return self._other(tree, path, inside)
        if parts.kind == "state":
            return {"kind": "state", "items": self._items(parts.children, path, inside)}
        children = [
            [name, self.node(child, (*path, GetAttrKey(str(name))), inside=inside)]
            for name, child in parts.children.items()
        ]
        group = {"namedtuple": "fields", "dataclass": "data", "variable": "children"}[parts.kind]
        node = {"kind": parts.kind, "type": parts.type, group: children}
        if parts.kind == "namedtuple":
            return node
        meta = "meta" if parts.kind == "dataclass" else "metadata"
        return node | {meta: self._fields(parts.meta, path)}

    def _items(self, tree: dict, path: Path, inside: bool) -> Json:
        return [
            [key, self.node(item, (*path, DictKey(key)), inside=inside)]
            for key, item in tree.items()
        ]

    def _other(self, tree: PyTree, path: Path, inside: bool) -> Json:
        """A container that only `like` knows, as its leaves."""
        name, what = leaf_name(path) or "the leaf", name_of(type(tree))
        if jax.tree_util.all_leaves([tree], is_leaf=is_stored_leaf):
            hint = ": eqx.partition(tree, eqx.is_array) sets functions apart"
            raise TypeError(
                f"save: {name} is a {what}, which is no array, number, text or container"
                + hint * callable(tree)
            )
        if inside:
            raise TypeError(f"save: {name} is a {what} in a leaf, where like= cannot supply it")
        flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_stored_leaf)[0]
        leaves = [
            [leaf_name(keys), self.node(leaf, within(path, leaf_name(keys)))] for keys, leaf in flat
        ]
        return {"kind": "other", "type": what, "leaves": leaves}


def _function(function: object) -> Json:
    """Of a function only the name, since `like` supplies it on loading."""
    return {"kind": "function", "name": getattr(function, "__qualname__", repr(function))}


def _check_keys(tree: dict, path: Path) -> None:
    """Refuse keys of a dictionary that are not all strings or all integers."""
    where = leaf_name(path) or "the top"
    for key in tree:
        if type(key) not in (str, int):
            raise TypeError(
                f"save: the key {key!r} under {where} is neither a string nor an integer"
            )
    if len(set(map(type, tree))) > 1:
        raise TypeError(f"save: the keys under {where} are strings and integers, which JAX refuses")
