"""Whether a value is what a dataclass's annotation says: the schema of everything with fields.

Numbers, strings, tuples, mappings and classes are told by their types; arrays by jaxtyping, with
the names of dimensions bound over all fields of one object. Other annotations pass.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence

import jaxtyping
import numpy as np

Hint = object
"""What `typing.get_type_hints` gives for a field."""


def misfits(cls: type, fields: Mapping[str, object]) -> list[str]:
    """The fields that are not what their annotations say.

    Args:
        cls: the annotated class.
        fields: values by name.

    Example:
        >>> import dataclasses
        >>> from jaxcompress.checkpoint.annotations import misfits
        >>> @dataclasses.dataclass
        ... class Point:
        ...     name: str
        ...     places: tuple[int, ...]
        >>> misfits(Point, {"name": "a", "places": (1, 2.5)})
        ['places']
    """
    hints = hints_of(cls)
    with jaxtyping.jaxtyped("context"):  # type: ignore[call-overload]
        return [name for name, value in fields.items() if not fits(value, hints.get(name))]


@functools.cache
def hints_of(cls: type) -> Mapping[str, Hint]:
    """The annotations of a class by name, none where they cannot be evaluated here."""
    try:
        return typing.get_type_hints(cls)
    except Exception:  # a name that only a type checker knows
        return {}


def fits(value: object, hint: Hint) -> bool:
    """Whether a value is what one annotation says."""
    if hint is None:  # not annotated
        return True
    if hint in PLAIN:
        is_flag = isinstance(value, bool) and hint is not bool
        return isinstance(value, PLAIN[hint]) and not is_flag  # type: ignore[index]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and _fits_tuple(value, arguments)
    if origin in (list, Sequence, Iterable):
        return isinstance(value, (list, tuple)) and _all_fit(value, arguments[0])
    if origin in (dict, Mapping):
        keys, values = arguments
        return (
            isinstance(value, dict) and _all_fit(value, keys) and _all_fit(value.values(), values)
        )
    if origin is Callable:
        return callable(value)
    if isinstance(origin, type):
        return isinstance(value, origin)
    return not isinstance(hint, type) or hint is jaxtyping.PyTree or isinstance(value, hint)


PLAIN: Mapping[Hint, tuple[type, ...]] = {
    bool: (bool,),
    int: (int, np.integer),
    float: (float, int, np.floating, np.integer),
    str: (str,),
    type(None): (type(None),),
}


def _fits_tuple(value: tuple, arguments: tuple) -> bool:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return _all_fit(value, arguments[0])
    return len(value) == len(arguments) and all(map(fits, value, arguments))


def _all_fit(values: Iterable, hint: Hint) -> bool:
    return all(fits(value, hint) for value in values)
