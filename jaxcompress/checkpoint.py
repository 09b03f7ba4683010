"""One file for a tree of parameters: safetensors, with the tree's structure as JSON beside the tensors.

Dictionaries, lists, tuples, None, plain numbers, compact arrays and what `jc.classifiers.realize`,
`jc.classifiers.realize_along` and `jc.classifiers.teaching_set` give come back by themselves, to
the bit; any other container (a Flax state, an Equinox module, an optimizer's state) needs `like=`,
a tree of the same structure. No pickle, no code runs on loading. A file holds the stored numbers
and a header of a few hundred bytes a leaf.

Source: the safetensors format.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.paths import join, leaf_name
from jaxcompress.arrays.registration import registered
from jaxcompress.arrays.static import decode_static, encode_static

FORMAT = "jaxcompress 1"
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    **{
        name: np.dtype(kind)
        for name, kind in (
            ("BOOL", "?"),
            ("F16", "f2"),
            ("F32", "f4"),
            ("F64", "f8"),
            ("C64", "c8"),
        )
    },
    **{
        f"{sign}{8 * size}": np.dtype(f"{sign.lower()}{size}")
        for sign in "IU"
        for size in (1, 2, 4, 8)
    },
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Class = TypeVar("Class", bound=type)
records: dict[str, type] = {}
"""Every class of results by its name: what a file may name beside compact arrays."""


def record(cls: Class) -> Class:
    """A dataclass of arrays, plain values and other records that `save` writes field by field, and `load` gives back by itself."""
    records[cls.__name__] = cls
    return cls


def _is_whole(tree: Any) -> bool:
    """Whether it is written as one leaf, with what it is beside it."""
    return is_compact(tree) or type(tree) in records.values()


def save(path: str | os.PathLike[str], params: Any) -> None:
    """Write a tree to one file; a file that stood there is replaced whole or not at all.

    Args:
        path: the file, usually ending in `.safetensors`.
        params: a tree of arrays, compact arrays, results such as `jc.classifiers.Realized`, plain
            numbers and None.

    Raises:
        TypeError: for a leaf or a key that cannot be written; nothing is written then.

    Example:
        >>> import tempfile, os, jax.numpy as jnp, jaxcompress as jc
        >>> small = jc.hashed(keep=1/8)({"kernel": jnp.ones((16, 16))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jc.save(os.path.join(folder, "small.safetensors"), small)
        ...     jc.load(os.path.join(folder, "small.safetensors"))
        {'kernel': HashedArray((16, 16) float32, 32 stored = 1/8)}
    """
    tensors: dict[str, np.ndarray] = {}
    leaves = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_whole)[0]:
        leaves.append([leaf_name(keys), _encode(leaf, leaf_name(keys), tensors)])
    counter = iter(range(len(leaves)))
    structure = {
        "format": FORMAT,
        "tree": _skeleton(params, counter, ""),
        "leaves": leaves,
        "sha256": _digest(tensors),
    }
    write_atomically(path, safetensors.numpy.save(tensors, {"jaxcompress": json.dumps(structure)}))


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under another name in its folder, then rename it: a reader never sees half."""
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


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Read a tree that `save` wrote.

    Args:
        path: the file.
        like: a tree with the same containers and leaf names, needed where the file holds a
            container other than dict, list and tuple, or an array that is defined by a function of
            the user's.

    Returns:
        The same tree with the same bits.

    Raises:
        ValueError: for a file that is damaged or not ours, or does not fit `like`.
        FileNotFoundError: when there is no such file.
    """
    data = Path(path).read_bytes()
    try:
        tensors = {
            name: np.frombuffer(bytes(entry["data"]), DTYPES[entry["dtype"]]).reshape(
                entry["shape"]
            )
            for name, entry in safetensors.deserialize(data)
        }
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
    names = [name for name, _ in structure["leaves"]]
    if like is None:
        leaves = [_decode(encoded, name, tensors, None) for name, encoded in structure["leaves"]]
        return _rebuild(structure["tree"], leaves, str(path))
    flat, treedef = jax.tree_util.tree_flatten_with_path(like, is_leaf=_is_whole)
    expected = [leaf_name(keys) for keys, _ in flat]
    if expected != names:
        missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
        raise ValueError(
            f"{path} does not fit like: the file lacks {missing or 'nothing'} and has beyond it "
            f"{extra or 'nothing'}"
        )
    pairs = zip(structure["leaves"], flat, strict=True)
    return jax.tree_util.tree_unflatten(
        treedef, [_decode(encoded, name, tensors, leaf) for (name, encoded), (_, leaf) in pairs]
    )


def _encode(leaf: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    """A leaf as JSON; its numbers go to `tensors`."""
    if isinstance(leaf, CompactArray):
        statics = {}
        for field in leaf.static_names:
            value = getattr(leaf, field)
            # a function is not written: `like` has it
            statics[field] = (
                {"function": value.__qualname__} if callable(value) else encode_static(value)
            )
        children = {
            child: _encode(getattr(leaf, child), join(name, child), tensors)
            for child in leaf.child_names
        }
        return {"node": type(leaf).__name__, "statics": statics, "children": children}
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
        hint = (
            ": save jax.random.key_data of a key"
            if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
            else ""
        )
        raise TypeError(
            f"save: {name or 'the leaf'} is a {type(leaf).__name__} of dtype {dtype}, which has no "
            f"place in the file{hint}"
        )
    tensor = name or "params"
    while tensor in tensors:
        tensor += "_"
    tensors[tensor] = np.array(leaf, order="C")
    return {"tensor": tensor, "numpy": isinstance(leaf, (np.ndarray, np.generic))}


def _decode(encoded: dict[str, Any], name: str, tensors: dict[str, np.ndarray], like: Any) -> Any:
    if "value" in encoded:
        return decode_static(encoded["value"])
    if "tensor" in encoded:
        array = tensors[encoded["tensor"]]
        return array.copy() if encoded["numpy"] else jnp.asarray(array)
    known, called = (
        (records, encoded["record"]) if "record" in encoded else (registered, encoded["node"])
    )
    kind = known.get(called)
    if kind is None:
        raise ValueError(
            f"{name or 'the leaf'} is a {called}, which is not defined here: import the module "
            f"that defines it, then load again"
        )
    if kind in records.values():
        return kind(
            **{
                key: _decode(inner, join(name, key), tensors, None)
                for key, inner in encoded["fields"].items()
            }
        )
    statics = {}
    for field, value in encoded["statics"].items():
        if isinstance(value, dict) and "function" in value:
            if type(like) is not kind:
                raise ValueError(
                    f"{name} is defined by the function {value['function']}: pass like=, a tree "
                    f"that has it there"
                )
            statics[field] = getattr(like, field)
        else:
            statics[field] = decode_static(value)
    children = {
        child: _decode(inner, join(name, child), tensors, getattr(like, child, None))
        for child, inner in encoded["children"].items()
    }
    return kind(**children, **statics)


def _skeleton(tree: Any, counter: Any, path: str) -> Any:
    """The containers of a tree as JSON, leaves as their index; one that JSON cannot say is named."""
    if tree is None:
        return None
    if type(tree) is dict:
        for key in tree:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise TypeError(
                    f"save: the key {key!r} under {path or 'the top'} is neither a string nor an "
                    f"integer"
                )
        # in JAX's order of the leaves, which is that of the sorted keys
        return {
            "dict": [
                [key, _skeleton(tree[key], counter, join(path, str(key)))] for key in sorted(tree)
            ],
            "order": list(tree),
        }
    if type(tree) in (list, tuple):
        return {
            type(tree).__name__: [
                _skeleton(item, counter, join(path, str(i))) for i, item in enumerate(tree)
            ]
        }
    count = len(jax.tree.leaves(tree, is_leaf=_is_whole))
    indices = [next(counter) for _ in range(count)]
    if jax.tree_util.all_leaves([tree], is_leaf=_is_whole):
        return indices[0]
    return {"other": type(tree).__name__, "path": path}


def _rebuild(skeleton: Any, leaves: list[Any], path: str) -> Any:
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
        f"{path} holds a {skeleton['other']} at {skeleton['path'] or 'the top'}, which only the "
        f"program that saved it knows: "
        "pass like=, a tree of the same structure"
    )


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
