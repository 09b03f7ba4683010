"""A tree of parameters in one file: safetensors, with the tree's structure as JSON in the header.

Dictionaries, lists, tuples, None, plain numbers, compact arrays and the results of
`jc.classifiers.realize`, `realize_along` and `teaching_set` are restored bit for bit. Any other
container (a Flax state, an Equinox module, an optimizer's state) needs `like=`, a tree of the same
structure. Nothing is pickled and loading runs no code. A file holds the stored numbers and a header
of a few hundred bytes for each leaf.

Source: the safetensors format (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.paths import join, leaf_name
from jaxcompress.arrays.registration import registered
from jaxcompress.arrays.static import decode_static, encode_static
from jaxcompress.checks import checked
from jaxcompress.checks import path as path_kind

FORMAT = "jaxcompress 1"
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "BOOL": np.dtype("?"),
    "F16": np.dtype("f2"),
    "F32": np.dtype("f4"),
    "F64": np.dtype("f8"),
    "C64": np.dtype("c8"),
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
}
"""The dtypes of the safetensors format by their names there."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}

Class = TypeVar("Class", bound=type)

Json: TypeAlias = Any
"""A value that the json module writes: dict, list, str, int, float, bool or None."""

Tensors: TypeAlias = dict[str, np.ndarray]
"""The tensors of a file by name."""

records: dict[str, type] = {}
"""Classes of results by name, which a file may contain in addition to compact arrays."""


def record(cls: Class) -> Class:
    """Register a dataclass of results, so that `save` and `load` handle it without `like=`.

    Args:
        cls: a dataclass whose fields are arrays, plain values and other records.

    Returns:
        The class itself.
    """
    records[cls.__name__] = cls
    return cls


def _is_node(tree: PyTree) -> bool:
    """Whether a subtree is written as one leaf with its type's name."""
    return is_compact(tree) or type(tree) in records.values()


@checked(path=path_kind)
def save(path: str | os.PathLike[str], params: PyTree) -> None:
    """Write a tree to one file; an existing file is replaced completely or not at all.

    Args:
        path: the file, usually ending in `.safetensors`.
        params: a tree of arrays, compact arrays, results such as `jc.classifiers.Realized`, plain
            numbers and None.

    Raises:
        TypeError: for a leaf or a key that cannot be written; the file is then left unchanged.

    Example:
        >>> import tempfile, os, jax.numpy as jnp, jaxcompress as jc
        >>> small = jc.hashed(keep=1/8)({"kernel": jnp.ones((16, 16))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jc.save(os.path.join(folder, "small.safetensors"), small)
        ...     jc.load(os.path.join(folder, "small.safetensors"))
        {'kernel': HashedArray((16, 16) float32, 32 stored = 1/8)}
    """
    tensors: Tensors = {}
    flat = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_node)[0]
    named = [(leaf_name(keys), leaf) for keys, leaf in flat]
    leaves = [[name, _encode(leaf, name, tensors)] for name, leaf in named]
    structure = {
        "format": FORMAT,
        "tree": _skeleton(params, iter(range(len(leaves))), ""),
        "leaves": leaves,
        "sha256": _digest(tensors),
    }
    write_atomically(path, safetensors.numpy.save(tensors, {"jaxcompress": json.dumps(structure)}))


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a temporary file in the same folder and rename it: readers never see a partial file."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


@checked(path=path_kind)
def load(path: str | os.PathLike[str], like: PyTree = None) -> PyTree:
    """Read a tree that `save` wrote.

    Args:
        path: the file.
        like: a tree with the same containers and leaf names; needed where the file holds a
            container other than dict, list and tuple, or an array that is defined by a function of
            the user's.

    Returns:
        The same tree with the same bits.

    Raises:
        ValueError: for a file that is damaged, was not written by `save`, or does not fit `like`.
        FileNotFoundError: when there is no such file.

    Example:
        >>> import tempfile, os, jax.numpy as jnp, jaxcompress as jc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jc.save(os.path.join(folder, "params.safetensors"), {"bias": jnp.zeros(2)})
        ...     jc.load(os.path.join(folder, "params.safetensors"))
        {'bias': Array([0., 0.], dtype=float32)}
    """
    tensors, structure = _read(path)
    if like is None:
        leaves = [_decode(encoded, name, tensors, None) for name, encoded in structure["leaves"]]
        return _rebuild(structure["tree"], leaves, str(path))
    flat, treedef = jax.tree_util.tree_flatten_with_path(like, is_leaf=_is_node)
    names = {name for name, _ in structure["leaves"]}
    expected = [leaf_name(keys) for keys, _ in flat]
    if expected != [name for name, _ in structure["leaves"]]:
        missing, extra = sorted(set(expected) - names), sorted(names - set(expected))
        raise ValueError(
            f"{path} does not fit like: the file lacks {missing or 'nothing'} and additionally has "
            f"{extra or 'nothing'}"
        )
    pairs = zip(structure["leaves"], flat, strict=True)
    leaves = [_decode(encoded, name, tensors, leaf) for (name, encoded), (_, leaf) in pairs]
    return jax.tree_util.tree_unflatten(treedef, leaves)


def _read(path: str | os.PathLike[str]) -> tuple[Tensors, Json]:
    """The tensors and the structure of a file, after checking its format and its checksum."""
    data = Path(path).read_bytes()
    try:
        tensors = {name: _tensor(entry) for name, entry in safetensors.deserialize(data)}
        size = int.from_bytes(data[:8], "little")
        structure = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["jaxcompress"])
    except KeyError:
        raise ValueError(f"{path} is a safetensors file, but not one that jc.save wrote") from None
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}): save it again"
        ) from None
    if structure["format"] != FORMAT:
        raise ValueError(
            f"{path} has the format {structure['format']!r}; this version reads {FORMAT!r}"
        )
    if structure["sha256"] != _digest(tensors):
        raise ValueError(f"{path} is damaged: its numbers differ from those that were saved")
    return tensors, structure


def _tensor(entry: dict[str, Any]) -> np.ndarray:
    """One tensor of a safetensors file."""
    return np.frombuffer(bytes(entry["data"]), DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _encode(leaf: PyTree, name: str, tensors: Tensors) -> Json:
    """A leaf as JSON; its numbers are added to `tensors`."""
    if isinstance(leaf, CompactArray):
        return _encode_compact(leaf, name, tensors)
    if type(leaf) in records.values():
        inner = {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf)}
        return {
            "record": type(leaf).__name__,
            "fields": {key: _encode(inner[key], join(name, key), tensors) for key in inner},
        }
    if leaf is None or isinstance(leaf, (bool, int, float, str, tuple)):
        return {"value": encode_static(leaf)}
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or dtype not in NAMES:
        is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
        hint = ": save jax.random.key_data of a key" if is_key else ""
        raise TypeError(
            f"save: {name or 'the leaf'} is a {type(leaf).__name__} of dtype {dtype}, which the "
            f"file format cannot hold{hint}"
        )
    tensor = name or "params"
    while tensor in tensors:
        tensor += "_"
    tensors[tensor] = np.array(leaf, order="C")
    return {"tensor": tensor, "numpy": isinstance(leaf, (np.ndarray, np.generic))}


def _encode_compact(leaf: CompactArray, name: str, tensors: Tensors) -> Json:
    """A compact array as JSON: its static fields and its children."""
    statics = {field: _encode_field(getattr(leaf, field)) for field in leaf.static_names}
    children = {
        child: _encode(getattr(leaf, child), join(name, child), tensors)
        for child in leaf.child_names
    }
    return {"node": type(leaf).__name__, "statics": statics, "children": children}


def _encode_field(value: Any) -> Json:
    """A static field as JSON; of a function only the name, since `like` supplies it on loading."""
    return {"function": value.__qualname__} if callable(value) else encode_static(value)


def _decode(encoded: Json, name: str, tensors: Tensors, like: PyTree) -> PyTree:
    """The leaf that `_encode` wrote as JSON."""
    if "value" in encoded:
        return decode_static(encoded["value"])
    if "tensor" in encoded:
        array = tensors[encoded["tensor"]]
        return array.copy() if encoded["numpy"] else jnp.asarray(array)
    if "record" in encoded:
        cls = _known(records, encoded["record"], name)
        fields = encoded["fields"].items()
        return cls(**{key: _decode(inner, join(name, key), tensors, None) for key, inner in fields})
    cls = _known(registered, encoded["node"], name)
    source = like if type(like) is cls else None
    statics = {
        field: _decode_field(value, field, name, source)
        for field, value in encoded["statics"].items()
    }
    children = {
        child: _decode(inner, join(name, child), tensors, getattr(like, child, None))
        for child, inner in encoded["children"].items()
    }
    return cls(**children, **statics)


def _known(classes: Mapping[str, type], cls: str, name: str) -> type:
    """A class by its name in the file."""
    if cls not in classes:
        raise ValueError(
            f"{name or 'the leaf'} is a {cls}, which is not defined here: import the module "
            f"that defines it, then load again"
        )
    return classes[cls]


def _decode_field(value: Json, field: str, name: str, like: CompactArray | None) -> Any:
    """A static field of a compact array; a function comes from the array `like`."""
    if not isinstance(value, dict) or "function" not in value:
        return decode_static(value)
    if like is None:
        raise ValueError(
            f"{name} is defined by the function {value['function']}: pass like=, a tree "
            f"that has it there"
        )
    return getattr(like, field)


def _skeleton(tree: PyTree, counter: Iterator[int], path: str) -> Json:
    """The containers of a tree as JSON, with leaves as their index.

    A container without a JSON form is written as its type's name.
    """
    if tree is None:
        return None
    if type(tree) is dict:
        _check_keys(tree, path)
        # jax.tree.flatten orders leaves by sorted keys
        items = [[key, _skeleton(tree[key], counter, join(path, str(key)))] for key in sorted(tree)]
        return {"dict": items, "order": list(tree)}
    if type(tree) in (list, tuple):
        items = [_skeleton(item, counter, join(path, str(i))) for i, item in enumerate(tree)]
        return {type(tree).__name__: items}
    count = len(jax.tree.leaves(tree, is_leaf=_is_node))
    indices = [next(counter) for _ in range(count)]
    if jax.tree_util.all_leaves([tree], is_leaf=_is_node):
        return indices[0]
    return {"other": type(tree).__name__, "path": path}


def _check_keys(tree: dict, path: str) -> None:
    """Refuse keys of a dictionary that are neither strings nor integers."""
    for key in tree:
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            raise TypeError(
                f"save: the key {key!r} under {path or 'the top'} is neither a string nor an "
                f"integer"
            )


def _rebuild(skeleton: Json, leaves: list[PyTree], path: str) -> PyTree:
    """The tree of a skeleton with leaves in place of their indices."""
    if skeleton is None:
        return None
    if isinstance(skeleton, int):
        return leaves[skeleton]
    if "dict" in skeleton:
        items = {key: _rebuild(inner, leaves, path) for key, inner in skeleton["dict"]}
        return {key: items[key] for key in skeleton["order"]}
    for kind in (list, tuple):
        if kind.__name__ in skeleton:
            return kind(_rebuild(inner, leaves, path) for inner in skeleton[kind.__name__])
    raise ValueError(
        f"{path} holds a {skeleton['other']} at {skeleton['path'] or 'the top'}, which has no form "
        "in the file: pass like=, a tree of the same structure"
    )


def _digest(tensors: Tensors) -> str:
    """The SHA-256 of all names, dtypes, shapes and numbers."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
