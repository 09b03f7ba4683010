"""Static parts of a compact array: sizes, seeds and choices, which are structure.

Static fields are compared and hashed, so that a change retraces a jitted function; JAX never
differentiates them. They are written as JSON by `jax.export` and by checkpoints.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.checks import array as real_array


def static_field(*, default: object = dataclasses.MISSING, kw_only: bool = False) -> Any:
    """A dataclass field that is part of the structure (a size, a seed), not of the stored numbers.

    Args:
        default: the field's default value; required by default.
        kw_only: whether the field is passed by keyword alone.

    Returns:
        A dataclass field; its value must be hashable.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> @jc.compact_array
        ... class ScaledIdentity(jc.CompactArray):
        ...     scale: jax.Array
        ...     width: int = jc.static_field(default=1)
        ...     def materialize(self):
        ...         return self.scale[..., None, None] * jnp.eye(self.width, dtype=self.scale.dtype)
        >>> jax.tree.leaves(ScaledIdentity(jnp.array(2.0), width=3))
        [Array(2., dtype=float32, weak_type=True)]
    """
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"static": True})


@dataclasses.dataclass(frozen=True, eq=False)
class StaticArray:
    """A numpy array of booleans or indices as structure, compared and hashed by its content.

    An integer child would break `jax.grad` and every optimizer, so a choice that cannot be
    recomputed is static. It is counted: one bit a boolean, one number an index.

    Attributes:
        array: booleans or non-negative integers of any shape, kept in the smallest dtype.
        digest: of dtype, shape and content, computed once.
    """

    array: np.ndarray
    digest: str = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        array = real_array("StaticArray: array", self.array, what="booleans or indices from 0 on")
        if array.dtype != bool and (array.dtype.kind not in "iu" or array.min(initial=0) < 0):
            raise ValueError(
                "StaticArray: array must be booleans or indices from 0 on, got "
                f"{array.dtype} from {array.min(initial=0)}"
            )
        small = bool if array.dtype == bool else np.min_scalar_type(int(array.max(initial=0)))
        array = np.ascontiguousarray(array, dtype=small)
        array.setflags(write=False)
        # a frozen dataclass: only this way can a field be normalised
        object.__setattr__(self, "array", array)
        content = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        object.__setattr__(self, "digest", hashlib.sha256(content).hexdigest())

    @property
    def words(self) -> float:
        """How many numbers it counts as."""
        return self.array.size / 32 if self.array.dtype == bool else self.array.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticArray) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        if self.array.dtype == bool:
            return f"StaticArray({self.array.size} bits, {int(self.array.sum())} set)"
        return f"StaticArray({self.array.size} indices)"


def encode_static(value: PyTree) -> PyTree:
    """A static field as JSON; functions have no JSON and raise."""
    if isinstance(value, MatrixAxes):
        return {"inputs": value.inputs, "outputs": value.outputs}
    if isinstance(value, StaticArray):
        return _encode_array(value.array)
    if isinstance(value, tuple):
        return {"tuple": [encode_static(item) for item in value]}
    if callable(value):
        raise TypeError(f"{value!r} is a function: it can be neither saved nor exported by value")
    return value


def _encode_array(array: np.ndarray) -> dict[str, PyTree]:
    if array.dtype == bool:
        return {"bits": np.packbits(array).tobytes().hex(), "size": array.size}
    # a file reads the same on machines of either byte order
    content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return {
        "indices": base64.b64encode(content).decode(),
        "dtype": array.dtype.name,
        "shape": list(array.shape),
    }


def decode_static(value: PyTree) -> PyTree:
    """The inverse of `encode_static`."""
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(decode_static(item) for item in value["tuple"])
    if "bits" in value:
        packed = np.frombuffer(bytes.fromhex(value["bits"]), np.uint8)
        return StaticArray(np.unpackbits(packed, count=value["size"]).astype(bool))
    if "indices" in value:
        dtype = np.dtype(value["dtype"]).newbyteorder("<")
        content = base64.b64decode(value["indices"])
        return StaticArray(np.frombuffer(content, dtype).reshape(value["shape"]))
    return MatrixAxes(tuple(value["inputs"]), tuple(value["outputs"]))
