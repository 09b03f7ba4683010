"""Containers that come back by themselves: NamedTuples, registered dataclasses, flax.nnx States.

A file names their classes by module and name. Loading imports no module for it: the class must be
there already, must be a NamedTuple, a dataclass registered with `jax.tree_util` or a Variable of
flax.nnx, and its fields must be those in the file. NamedTuples and dataclasses are made without
their constructors, so that nothing that the file chooses is run.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import jax
from jax.tree_util import DictKey, GetAttrKey
from jaxtyping import PyTree

from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.static import StaticArray

if TYPE_CHECKING:
    from flax import nnx


class Parts(NamedTuple):
    """A container taken apart.

    Attributes:
        kind: "namedtuple", "dataclass", "state" or "variable", of the file's kinds of nodes.
        type: the class as "module:name"; "" where the kind says it.
        children: the children by field or key, in the order of `jax.tree.leaves`.
        meta: the fields that are structure.
    """

    kind: str
    type: str
    children: dict[str | int, PyTree]
    meta: dict[str, object]


def take_apart(tree: PyTree) -> Parts | None:
    """The parts of a container from which `put_together` makes it again; None for any other."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        children = dict(zip(type(tree)._fields, tree, strict=True))  # type: ignore[attr-defined]
        parts = Parts("namedtuple", name_of(type(tree)), children, {})
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        parts = _dataclass_parts(tree)
    elif is_state(tree):
        parts = Parts("state", "", dict(tree.raw_mapping), {})  # type: ignore[attr-defined]
    elif is_variable(tree):
        parts = _variable_parts(tree)  # type: ignore[arg-type]
    else:
        return None
    if parts is None or not all(map(is_plain, parts.meta.values())):
        return None
    try:
        return parts if _same(put_together(*parts), tree, parts) else None
    except (ValueError, TypeError, AttributeError):
        return None


def put_together(
    kind: str, type_name: str, children: Mapping[str | int, PyTree], meta: Mapping[str, object]
) -> PyTree:
    """A container from its parts.

    Raises:
        ValueError: for a class that is not here, or has other fields.
    """
    if kind == "state":
        return _nnx().State(dict(children))
    if kind == "variable":
        _nnx()  # of all modules the one that is imported for a file
    make = {"variable": _variable, "namedtuple": _namedtuple, "dataclass": _dataclass}[kind]
    return make(class_named(type_name), children, meta)


def _namedtuple(
    cls: type, children: Mapping[str | int, PyTree], meta: Mapping[str, object]
) -> PyTree:
    if not issubclass(cls, tuple) or getattr(cls, "_fields", None) != tuple(children):
        raise ValueError(f"{name_of(cls)} is no NamedTuple with the fields {list(children)}")
    return tuple.__new__(cls, children.values())


def _dataclass(
    cls: type, children: Mapping[str | int, PyTree], meta: Mapping[str, object]
) -> PyTree:
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"{name_of(cls)} is no dataclass")
    fields = {**children, **meta}
    if {field.name for field in dataclasses.fields(cls)} != fields.keys():
        raise ValueError(f"{name_of(cls)} has other fields than {list(fields)}")
    made = object.__new__(cls)
    for name, value in fields.items():
        # a frozen dataclass, and neither __init__ nor __post_init__, which may do anything
        object.__setattr__(made, str(name), value)
    if not _same(made, made, Parts("dataclass", "", dict(children), dict(meta))):
        raise ValueError(f"{name_of(cls)} is not registered with the children {[*children]}")
    return made


def class_named(type_name: str) -> type:
    """The class with a name of the form "module:name", in a module that is imported already.

    Raises:
        ValueError: where there is none.
    """
    module, _, name = type_name.partition(":")
    if module not in sys.modules:
        raise ValueError(
            f"{type_name} is not defined here, and loading imports nothing: import {module}, then "
            "load again, or pass like="
        )
    value: object = sys.modules[module]
    for part in name.split("."):
        value = vars(value).get(part) if hasattr(value, "__dict__") else None
    if not isinstance(value, type) or name_of(value) != type_name:
        raise ValueError(f"{type_name} is no class that is defined here")
    return value


def name_of(cls: type) -> str:
    """The name of a class as a file has it."""
    return f"{cls.__module__}:{cls.__qualname__}"


def is_plain(value: object) -> bool:
    """Whether a value can be structure in a file: numbers, texts, tuples and the like of them."""
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    if isinstance(value, dict):
        return all(type(key) is str for key in value) and all(map(is_plain, value.values()))
    return type(value) in (type(None), bool, int, float, str, StaticArray, MatrixAxes)


def one_level(tree: PyTree) -> tuple[list[tuple[object, PyTree]], object]:
    """The children of a container with their keys, and its structure."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=functools.partial(_is_other, tree)
    )
    return [(path[0] if path else None, child) for path, child in flat], treedef


def _is_other(tree: PyTree, part: PyTree) -> bool:
    return part is not tree


def _same(made: PyTree, tree: PyTree, parts: Parts) -> bool:
    """Whether a container that was put together is the one that was taken apart."""
    (made_children, made_tree), (_, treedef) = one_level(made), one_level(tree)
    values = list(parts.children.values())
    if parts.kind == "state":
        values = [parts.children[key] for key in sorted(parts.children)]
    return (
        type(made) is type(tree)
        and len(made_children) == len(values)
        and all(child is value for (_, child), value in zip(made_children, values, strict=True))
        and bool(made_tree == treedef)
    )


# --- dataclasses ----------------------------------------------------------------------------------


def _dataclass_parts(tree: PyTree) -> Parts | None:
    fields = [field.name for field in dataclasses.fields(tree)]
    cached = {name for name in dir(type(tree)) if _is_cached(type(tree), name)}
    if any(not hasattr(tree, name) for name in fields):
        return None
    if set(getattr(tree, "__dict__", ())) - {*fields, *cached}:
        return None  # it has more than its fields
    names = [_key_name(key) for key, _ in one_level(tree)[0]]
    if not set(names) <= set(fields) or len(set(names)) < len(names):
        return None
    meta = {name: getattr(tree, name) for name in fields if name not in names}
    children: dict[str | int, PyTree] = {name: getattr(tree, name) for name in names}
    return Parts("dataclass", name_of(type(tree)), children, meta)


def _is_cached(cls: type, name: str) -> bool:
    return any(isinstance(vars(base).get(name), functools.cached_property) for base in cls.__mro__)


def _key_name(key: PyTree) -> str:
    if isinstance(key, GetAttrKey):
        return key.name
    return str(key.key) if isinstance(key, DictKey) else ""


# --- flax.nnx -------------------------------------------------------------------------------------


def _nnx() -> ModuleType:
    from flax import nnx  # it takes a while, and few trees have its States

    return nnx


def is_state(tree: PyTree) -> bool:
    """Whether a tree is a State of flax.nnx."""
    return "flax.nnx" in sys.modules and type(tree) is _nnx().State


def is_variable(tree: PyTree) -> bool:
    """Whether a tree is what a State of flax.nnx consists of."""
    return "flax.nnx" in sys.modules and isinstance(tree, _stand_in())


def _stand_in() -> type:
    """What the leaves of States are: VariableStates up to flax 0.10, later Variables themselves."""
    return _nnx().variablelib.VariableState


def _variable_parts(tree: nnx.Variable) -> Parts:
    cls = type(tree) if isinstance(tree, _nnx().Variable) else tree.type
    (_, value) = one_level(tree)[0][0]
    usual = _variable(cls, {"value": value}, {})
    return Parts("variable", name_of(cls), {"value": value}, _changed(tree, usual))


def _changed(tree: nnx.Variable, usual: nnx.Variable) -> dict[str, object]:
    """The metadata of a Variable that are not those of a new one."""
    usually = usual.get_metadata()
    metadata = tree.get_metadata().items()
    return {key: entry for key, entry in metadata if key not in usually or entry != usually[key]}


def _variable(
    cls: type, children: Mapping[str | int, PyTree], meta: Mapping[str, object]
) -> nnx.Variable:
    nnx = _nnx()
    if not issubclass(cls, nnx.Variable) or list(children) != ["value"]:
        raise ValueError(f"{name_of(cls)} is no Variable of flax.nnx with {list(children)}")
    if bad := [name for name in meta if name in ("hijax", "ref") or name.startswith("on_")]:
        raise ValueError(f"a Variable of flax.nnx from a file has no {bad}")
    value = children["value"]
    stand_in = _stand_in()
    made = cls(value, **meta) if stand_in is nnx.Variable else stand_in(cls, value, **meta)
    if not _same(made, made, Parts("variable", "", dict(children), dict(meta))):
        raise ValueError(f"{name_of(cls)} changes its value")
    if meta and _changed(made, _variable(cls, children, {})) != meta:
        raise ValueError(f"{name_of(cls)} changes its metadata")
    return made
