"""A safetensors file in one canonical form, with one checksum of every byte.

Eight bytes with the length of the header, the header as JSON, the numbers. The header starts with
the SHA-256 digest of the whole file, in which the digest's own 64 digits count as zeros: there is
one file for one content, and no byte of it can change unnoticed. Other readers of safetensors read
the tensors. Reading takes the file's size, and as much again for the arrays that are made of it.

Source: the safetensors format (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

Json: TypeAlias = Any
"""A value that the json module writes: dict, list, str, int, float, bool or None."""

Tensors: TypeAlias = list[tuple[str, np.ndarray]]
"""Tensors with their names, in the order in which the structure refers to them."""

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

PREFIX = b'{"__metadata__":{"sha256":"'
"""The beginning of every header; the digest's digits follow."""
START = 8 + len(PREFIX)
DIGITS = 64
ZEROS = b"0" * DIGITS
LARGEST = 2**62
"""More entries than any array has, which numpy still counts."""


def to_bytes(tensors: Tensors, structure: str) -> bytearray:
    """The file of some tensors and a text.

    Args:
        tensors: with names that differ from each other and from "__metadata__".
        structure: a text for the header.
    """
    header: dict[str, Json] = {"__metadata__": {"sha256": ZEROS.decode(), "jaxcompress": structure}}
    sizes = [array.nbytes for _, array in tensors]
    places = _offsets(sizes, [array.itemsize for _, array in tensors])
    for (name, array), place, size in zip(tensors, places, sizes, strict=True):
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [place, place + size],
        }
    text = canonical(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    file = bytearray(start + sum(sizes))
    file[:8], file[8:start] = len(text).to_bytes(8, "little"), text
    for (_, array), place, size in zip(tensors, places, sizes, strict=True):
        # a file reads the same on machines of either byte order
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        file[start + place : start + place + size] = np.ascontiguousarray(little).tobytes()
    file[START : START + DIGITS] = digest(file)
    return file


def from_bytes(file: bytes | bytearray, path: str) -> tuple[str, Tensors]:
    """The text and the tensors of a file, after its checksum and its header have been checked.

    Args:
        file: the content.
        path: its name for messages.

    Raises:
        ValueError: for any file that `to_bytes` did not write.
    """
    _check_origin(file, path)
    if file[START : START + DIGITS] != digest(file):
        raise ValueError(f"{path} is damaged: its bytes differ from those that were saved")
    size = int.from_bytes(file[:8], "little")
    if size > len(file) - 8:
        raise ValueError(f"{path} has a header of {size} bytes, more than the file has")
    header = parse(file[8 : 8 + size], path)
    metadata = header.pop("__metadata__")
    if type(metadata) is not dict or list(metadata) != ["sha256", "jaxcompress"]:
        raise ValueError(f"{path} has other metadata than jc.save writes")
    if type(metadata["jaxcompress"]) is not str:
        raise ValueError(f"{path} has a structure that is no text")
    return metadata["jaxcompress"], _tensors(header, memoryview(file)[8 + size :], path)


def parse(text: bytes | bytearray | str, path: str) -> dict[str, Json]:
    """A JSON object in the one form in which `canonical` writes it, spaces at its end apart.

    Raises:
        ValueError: for any other text, such as one that repeats a key.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text)
        same = type(value) is dict and canonical(value) == text.rstrip(" ")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a header that is no JSON ({error})") from None
    if not same:
        raise ValueError(f"{path} has a header that is not in the form that jc.save writes")
    return value


def canonical(value: Json) -> str:
    """The JSON text of a value, without spaces."""
    return json.dumps(value, separators=(",", ":"))


def digest(file: bytes | bytearray) -> bytes:
    """The SHA-256 digest of a file, hexadecimal, with zeros for the digits of its own digest."""
    view = memoryview(file)
    sum_of = hashlib.sha256(view[:START])
    sum_of.update(ZEROS)
    sum_of.update(view[START + DIGITS :])
    return sum_of.hexdigest().encode()


def _check_origin(file: bytes | bytearray, path: str) -> None:
    """Refuse files that another program wrote."""
    if file[8:START] == PREFIX and len(file) >= START + DIGITS:
        return
    size = int.from_bytes(file[:8], "little")
    if len(file) < 8 or not file[8:9] == b"{" or size > len(file) - 8:
        raise ValueError(f"{path} is damaged or no safetensors file: save it again")
    if b"jaxcompress 1" in file[8 : 8 + size]:
        raise ValueError(
            f"{path} has the format 'jaxcompress 1' of development versions, which had no checksum "
            "of everything and is not read any more: save it again"
        )
    raise ValueError(f"{path} is a safetensors file, but not one that jc.save wrote")


def _tensors(header: dict[str, Json], data: memoryview, path: str) -> Tensors:
    """The tensors that a header describes, which use up all of the data."""
    for name, entry in header.items():
        _check_entry(entry, f"{path}: the tensor {name!r}")
    types = [DTYPES[entry["dtype"]] for entry in header.values()]
    shapes = [tuple(entry["shape"]) for entry in header.values()]
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, types, strict=True)]
    if sum(sizes) != len(data):
        raise ValueError(f"{path} has {len(data)} bytes of numbers, its header says {sum(sizes)}")
    tensors: Tensors = []
    places = _offsets(sizes, [dtype.itemsize for dtype in types])
    for (name, entry), dtype, shape, place, size in zip(
        header.items(), types, shapes, places, sizes, strict=True
    ):
        if entry["data_offsets"] != [place, place + size]:
            raise ValueError(f"{path}: the tensor {name!r} lies elsewhere than jc.save puts it")
        numbers = data[place : place + size]
        if dtype.kind == "b" and not np.isin(np.frombuffer(numbers, np.uint8), (0, 1)).all():
            raise ValueError(f"{path}: the tensor {name!r} has booleans that are neither 0 nor 1")
        stored = np.frombuffer(numbers, dtype.newbyteorder("<")).reshape(shape)
        tensors.append((name, stored.astype(dtype, copy=False)))
    return tensors


def _check_entry(entry: Json, what: str) -> None:
    """Refuse the description of a tensor that has another form than ours."""
    if type(entry) is not dict or list(entry) != ["dtype", "shape", "data_offsets"]:
        raise ValueError(f"{what} is described by {str(entry)[:80]}, not as jc.save does")
    if type(entry["dtype"]) is not str or entry["dtype"] not in DTYPES:
        raise ValueError(f"{what} has the unknown dtype {str(entry['dtype'])[:80]!r}")
    for key in ("shape", "data_offsets"):
        numbers = entry[key]
        if type(numbers) is not list or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"{what} has the {key} {str(numbers)[:80]}, no list of sizes")
    shape = entry["shape"]
    if len(shape) > 32 or math.prod(max(size, 1) for size in shape) * 8 > LARGEST:
        raise ValueError(f"{what} has the shape {str(shape)[:80]}, larger than any array")


def _offsets(sizes: Sequence[int], items: Sequence[int]) -> list[int]:
    """Where each tensor starts: those of larger numbers first, so that all are aligned."""
    offsets, end = [0] * len(sizes), 0
    for index in sorted(range(len(sizes)), key=items.__getitem__, reverse=True):
        offsets[index], end = end, end + sizes[index]
    return offsets
