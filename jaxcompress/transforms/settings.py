"""The settings of a transform: how they print, how they compare, and a digest of their content.

A setting is a number, a string, a pattern, an array, a function, or a mapping or tuple of those.
Numbers print exactly, arrays and networks as a shape and a digest, functions by the name that
imports them (by their address where none does), so that transforms that differ print differently.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction

import jax
import numpy as np
from jaxtyping import Shaped

from jaxcompress.networks.axes import Structure

DIGITS = 8
"""Hexadecimal digits of a digest that are printed."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ArraySetting:
    """An array as a setting: read-only, compared, hashed and printed by its content.

    Attributes:
        values: the array, a copy of the one that is given.
    """

    values: Shaped[np.ndarray, "*shape"]

    def __post_init__(self) -> None:
        values = np.array(self.values, order="C")
        values.setflags(write=False)  # its digest is cached
        object.__setattr__(self, "values", values)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.values.shape

    @functools.cached_property
    def digest(self) -> str:
        """Of the dtype, the shape and the numbers."""
        return digest(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArraySetting) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<{self.values.dtype} {self.shape}, {self.digest[:DIGITS]}>"


def constructor_name(transform: object) -> str:
    """The name of the constructor: that of the class in snake case."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", type(transform).__name__).lower()


def arguments(instance: object, hidden: Iterable[str] = ()) -> dict[str, object]:
    """The fields of a dataclass that differ from their defaults, by name.

    Args:
        instance: a dataclass whose fields are named like its constructor's arguments.
        hidden: fields that are no arguments.
    """
    fields = [
        field
        for field in dataclasses.fields(instance)  # type: ignore[arg-type]
        if field.name not in hidden
    ]
    values = {field.name: getattr(instance, field.name) for field in fields}
    return {
        field.name: values[field.name]
        for field in fields
        if field.default is dataclasses.MISSING or not _same(values[field.name], field.default)
    }


def _same(value: object, default: object) -> bool:
    # a bool equals an int and an array has no single truth value: types are compared first
    return value is default or (type(value) is type(default) and bool(value == default))


def call(name: str, *first: str, **named: object) -> str:
    """The text of a call: arguments that are text already, and named settings."""
    shown = [f"{key}={show(value)}" for key, value in named.items()]
    return f"{name}({', '.join([*first, *shown])})"


def show(value: object) -> str:
    """A setting as it is printed in the call of a constructor.

    Example:
        >>> from jaxcompress.transforms.settings import show
        >>> show(0.125), show((("**/kernel", 0.5),)), show(len)
        ('0.125', "{'**/kernel': 0.5}", 'len')
    """
    if isinstance(value, float):
        short = f"{value:g}"  # six digits where they are exact, otherwise all
        return short if float(short) == value else repr(value)
    if isinstance(value, np.generic):
        return show(value.item())
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, Mapping):
        return show_mapping(value.items())
    if is_mapping(value):
        return show_mapping(value)  # type: ignore[arg-type]
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    return show_function(value) if hasattr(value, "__qualname__") else repr(value)  # type: ignore[arg-type]


def show_mapping(items: Iterable[tuple[object, object]]) -> str:
    """Pairs as a dictionary."""
    return "{" + ", ".join(f"{key!r}: {show(value)}" for key, value in items) + "}"


def is_mapping(value: object) -> bool:
    """Whether a setting is a mapping from patterns, which transforms keep as a tuple of pairs."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], tuple)


def show_function(function: Callable[..., object]) -> str:
    """The name that imports a function, or its kind and address where no name does."""
    name = getattr(function, "__qualname__", None)
    if name is None and not dataclasses.is_dataclass(function):
        return repr(function)
    name, module = name or type(function).__name__, getattr(function, "__module__", None)
    try:  # a lambda or an inner function has a name that does not import it
        importable = operator.attrgetter(name)(sys.modules[str(module)]) is function
    except (AttributeError, KeyError):
        importable = False
    if not importable:
        return f"<{name} at {id(function):#x}>"
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def show_structure(structure: Structure) -> str:
    """A network as the number of its hidden axes and a digest of its structure."""
    return f"<{len(structure.axes)} hidden axes, {digest(structure)[:DIGITS]}>"


def digest(value: object) -> str:
    """A SHA-256 digest of the content of plain data, arrays and dataclasses.

    Functions and unknown objects are represented by their printed form.

    Example:
        >>> from jaxcompress.transforms.settings import digest
        >>> digest({"a": 1, "b": (2, 3)}) == digest({"b": (2, 3), "a": 1})
        True
    """
    return hashlib.sha256(_content(value).encode()).hexdigest()


def _content(value: object) -> str:
    """Text that is equal for equal data, and only for those."""
    if isinstance(value, (np.ndarray, jax.Array)):
        array = np.asarray(value)
        numbers = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return f"array {array.dtype} {array.shape} {numbers}"
    if isinstance(value, Mapping):
        # sorted, since equal mappings may differ in order
        entries = sorted(f"{_content(key)}: {_content(entry)}" for key, entry in value.items())
        return f"mapping {{{', '.join(entries)}}}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} [{', '.join(map(_content, value))}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return f"{type(value).__qualname__} {_content(fields)}"
    return show_function(value) if hasattr(value, "__qualname__") else repr(value)  # type: ignore[arg-type]
