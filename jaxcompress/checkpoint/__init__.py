"""A tree of parameters in one file: safetensors, with the tree's structure as JSON in the header.

Dictionaries, lists, tuples, NamedTuples, registered dataclasses, `flax.nnx` States, random keys,
plain values, compact arrays, the results of `jc.classifiers.realize`, `realize_along` and
`teaching_set`, the axes of a network (`net.structure`), moments and recipes come back as they were,
bit for bit. Any other container (an Equinox module with functions in it) needs `like=`, a tree of
the same structure.

One checksum covers every byte. What a file says is held against a schema, and against what the
classes know of their fields, before anything is made of it: a file that is damaged, or says what
cannot be, is a `ValueError`. Nothing is pickled; loading imports no module that a file names, and
runs no code that it chooses. Writing and reading take twice the file's size of memory.
"""

from __future__ import annotations

import os
from pathlib import Path

from jaxtyping import PyTree

from jaxcompress.checkpoint.atomic import write_atomically
from jaxcompress.checkpoint.nodes import attach, read_node
from jaxcompress.checkpoint.reading import tree_like, tree_of
from jaxcompress.checkpoint.records import record, records
from jaxcompress.checkpoint.tensor_file import canonical, from_bytes, parse, to_bytes
from jaxcompress.checkpoint.writing import Writer
from jaxcompress.checks import checked
from jaxcompress.checks import path as path_kind

__all__ = ["load", "record", "records", "save", "write_atomically"]

FORMAT = "jaxcompress 2"


@checked(path=path_kind)
def save(path: str | os.PathLike[str], params: PyTree) -> None:
    """Write a tree to one file; an existing file is replaced completely or not at all.

    Args:
        path: the file, usually ending in `.safetensors`. A new one gets the mode that the umask
            gives, an existing one keeps its own; of a symbolic link the target is written.
        params: a tree of arrays, compact arrays, results such as `jc.classifiers.Realized`, a
            network's `structure`, moments, transforms, plain values and None.

    Raises:
        TypeError: for a leaf or a key that cannot be written; the file is then left unchanged.
        OSError: where the file cannot be written; it is then left unchanged.

    Example:
        >>> import tempfile, os, jax.numpy as jnp, jaxcompress as jc
        >>> small = jc.hashed(keep=1/8)({"kernel": jnp.ones((16, 16))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jc.save(os.path.join(folder, "small.safetensors"), small)
        ...     jc.load(os.path.join(folder, "small.safetensors"))
        {'kernel': HashedArray((16, 16) float32, 32 stored = 1/8)}
    """
    write_atomically(path, tree_to_bytes(params))


@checked(path=path_kind)
def load(path: str | os.PathLike[str], like: PyTree = None) -> PyTree:
    """Read a tree that `save` wrote.

    Args:
        path: the file.
        like: a tree with the same containers and leaf names; needed where the file holds a
            container of another kind than those above, or an array that is defined by a function
            of the user's.

    Returns:
        The same tree with the same bits.

    Raises:
        ValueError: for a file that is damaged, was not written by `save`, names a class of a module
            that is not imported, or does not fit `like`.
        FileNotFoundError: when there is no such file.

    Example:
        >>> import tempfile, os, jax.numpy as jnp, jaxcompress as jc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jc.save(os.path.join(folder, "params.safetensors"), {"bias": jnp.zeros(2)})
        ...     jc.load(os.path.join(folder, "params.safetensors"))
        {'bias': Array([0., 0.], dtype=float32)}
    """
    return tree_from_bytes(Path(path).read_bytes(), str(path), like)


def tree_to_bytes(params: PyTree) -> bytearray:
    """The file of a tree; see `save`."""
    writer = Writer()
    tree = writer.node(params)
    return to_bytes(writer.tensors, canonical({"format": FORMAT, "tree": tree}))


def tree_from_bytes(file: bytes | bytearray, path: str, like: PyTree = None) -> PyTree:
    """The tree of a file; see `load`.

    Args:
        file: its content.
        path: its name for messages.
        like: as for `load`.
    """
    text, tensors = from_bytes(file, path)
    structure = parse(text, path)
    if structure.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {str(structure.get('format'))[:80]!r}; this version reads "
            f"{FORMAT!r}"
        )
    if list(structure) != ["format", "tree"]:
        raise ValueError(f"{path} has the fields {list(structure)[:9]}, expected format and tree")
    try:
        node = read_node(structure["tree"])
        attach(node, tensors)
        return tree_of(node) if like is None else tree_like(node, like)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
