"""Records: classes of the library that a file holds by their name, as their fields.

A record is a leaf of a tree: a mesh, a teaching set, the axes of a network, moments, a recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

from jaxtyping import PyTree

from jaxcompress.checkpoint.annotations import misfits

Class = TypeVar("Class", bound=type)
Fields = dict[str, PyTree]


@dataclasses.dataclass(frozen=True)
class Record:
    """How objects of one class are written and read.

    Attributes:
        cls: the class.
        fields: an object's fields, a tree that a file can hold.
        make: an object from its fields; raises a ValueError where they do not fit.
        subclasses: whether objects of subclasses are written as this record, too.
    """

    cls: type
    fields: Callable[[PyTree], Fields]
    make: Callable[[Fields], object]
    subclasses: bool = False


records: dict[str, Record] = {}
"""All records by the name that a file has for them."""


def record(cls: Class) -> Class:
    """Register a dataclass of results, so that `save` and `load` handle it without `like=`.

    Its annotations are checked on saving and on loading. A method `check_sizes(self)` of the class
    may refuse further what no object of it can be, such as indices out of range.

    Args:
        cls: a dataclass or a NamedTuple whose fields are arrays, plain values, containers and other
            records.

    Returns:
        The class itself.
    """

    def fields_of(value: object) -> Fields:
        fields = {name: getattr(value, name) for name in names_of(cls)}
        _check(cls, fields, value)
        return fields

    def make(fields: Fields) -> object:
        if list(fields) != names_of(cls):
            raise ValueError(f"it has the fields {list(fields)}, expected {names_of(cls)}")
        value = cls(**fields)
        _check(cls, fields, value)
        return value

    records[cls.__name__] = Record(cls, fields_of, make)
    return cls


def names_of(cls: type) -> list[str]:
    """The names of the fields of a dataclass or a NamedTuple."""
    if issubclass(cls, tuple):
        return list(cls._fields)  # type: ignore[attr-defined]
    return [field.name for field in dataclasses.fields(cls)]


def record_of(value: object) -> tuple[str, Record] | None:
    """The name and the record of an object, None for one that is no record."""
    for name, entry in records.items():
        if type(value) is entry.cls or (entry.subclasses and isinstance(value, entry.cls)):
            return name, entry
    return None


def _check(cls: type, fields: Mapping[str, object], value: object) -> None:
    if wrong := misfits(cls, fields):
        raise ValueError(f"{', '.join(wrong)} are not what a {cls.__name__} has there")
    check = getattr(value, "check_sizes", None)
    if check is not None:
        check()
