"""A transform as the call that makes it: plain JSON, and back.

Only the constructors in `CONSTRUCTORS` are called, with arguments that they check themselves;
whatever they raise is a `ValueError` with a sentence about the recipe.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import Selector, matrices
from jaxcompress.checkpoint.tensor_file import NAMES
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.budget import Budget, budget
from jaxcompress.transforms.clustered import clustered
from jaxcompress.transforms.combinators import Labels, at, chain, identity, partition
from jaxcompress.transforms.factored import factored
from jaxcompress.transforms.fold_batchnorm import fold_batchnorm
from jaxcompress.transforms.hashed import hashed
from jaxcompress.transforms.linearize import linearize
from jaxcompress.transforms.merge import merge
from jaxcompress.transforms.merge_linear import merge_linear
from jaxcompress.transforms.prune_batchnorm import prune_batchnorm
from jaxcompress.transforms.recalibrate import recalibrate
from jaxcompress.transforms.reconstruct import reconstruct
from jaxcompress.transforms.resolution import coarsen, refine, thin
from jaxcompress.transforms.rotation import rotate_and_prune
from jaxcompress.transforms.select_rows import select_rows
from jaxcompress.transforms.seriation import seriate
from jaxcompress.transforms.settings import ArraySetting, arguments, constructor_name, is_mapping
from jaxcompress.transforms.spline import spline
from jaxcompress.transforms.toeplitz import toeplitz
from jaxcompress.transforms.together import together
from jaxcompress.transforms.vocabulary import vocabulary

Made = TypeVar("Made")

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

CONSTRUCTORS: dict[str, Callable[..., Transform]] = {
    constructor.__name__: constructor
    for constructor in (
        at,
        chain,
        clustered,
        coarsen,
        factored,
        fold_batchnorm,
        hashed,
        identity,
        linearize,
        merge,
        merge_linear,
        partition,
        prune_batchnorm,
        recalibrate,
        reconstruct,
        refine,
        rotate_and_prune,
        select_rows,
        seriate,
        spline,
        thin,
        together,
        toeplitz,
        vocabulary,
    )
}
"""Every transform that a recipe may name; a new transform is one line here."""


# --- writing --------------------------------------------------------------------------------------


def encode_transform(transform: Transform, where: str) -> dict[str, Json]:
    """A transform as the call of its constructor.

    Args:
        transform: any of this library.
        where: it is, for messages.

    Raises:
        TypeError: for a setting that has no JSON.
    """
    if transform == identity():  # a chain of nothing, whose class has another constructor
        return {"call": "identity"}
    name = constructor_name(transform)
    where = f"{where}.{name}" if where else name
    constructor = CONSTRUCTORS.get(name)
    if constructor is None or not type(transform).__module__.startswith("jaxcompress."):
        raise TypeError(
            f"save_recipe: {where} is no transform of jaxcompress, and the file could not name it"
        )
    parameters = inspect.signature(constructor).parameters
    encoded: dict[str, Json] = {"call": name}
    for key, value in transform.arguments().items():
        if key not in parameters:
            raise TypeError(f"save_recipe: {where} has {key}={value!r}, no argument of jc.{name}")
        encoded[key] = _encode(value, f"{where}.{key}")
    return encoded


def _encode(value: object, where: str) -> Json:
    """A setting as JSON; `where` names it in messages."""
    if isinstance(value, Transform):
        return encode_transform(value, where)
    for kind, encode in ENCODERS.items():
        if isinstance(value, kind):
            return encode(value, where)
    if value is matrices:
        return {"call": "matrices"}
    if is_mapping(value):
        return _encode_mapping(dict(value), where)  # type: ignore[call-overload]
    if isinstance(value, tuple):
        return [_encode(entry, where) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(
        f"save_recipe: {where} is {value!r}, which JSON has no form for; only its name could be "
        "written, so build the recipe again where it is used"
    )


def _encode_budget(value: Budget, where: str) -> Json:
    if value.metric is not None:
        raise TypeError(
            f"save_recipe: {where} is {value!r}, and the metric of a budget, a function, cannot be "
            "written; save the recipe with jc.budget(total) and add the metric when it is loaded"
        )
    return {"call": "budget", **arguments(value)}  # type: ignore[dict-item]


def _encode_mapping(value: Mapping[str, object], where: str) -> Json:
    """An object, or pairs where a key would be taken for the call of a constructor."""
    entries = {key: _encode(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if "call" not in entries:
        return entries
    return {"call": "dict", "items": [[key, entry] for key, entry in entries.items()]}


def _encode_labels(value: Labels, where: str) -> Json:
    return _encode_label_tree(value.tree, where)


def _encode_label_tree(tree: PyTree[str], where: str) -> Json:
    if isinstance(tree, str):
        return tree
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        entries = {key: _encode_label_tree(entry, where) for key, entry in tree.items()}
        if "call" not in entries:
            return entries
        return {"call": "dict", "items": [[key, entry] for key, entry in entries.items()]}
    if type(tree) in (list, tuple):
        entries = [_encode_label_tree(entry, where) for entry in tree]
        return entries if type(tree) is list else {"call": "tuple", "items": entries}
    raise TypeError(
        f"save_recipe: {where} is a tree with a {type(tree).__name__}; dictionaries with strings "
        "as keys, lists, tuples and strings can be written"
    )


ENCODERS: dict[type, Callable[..., Json]] = {
    Budget: _encode_budget,
    Labels: _encode_labels,
    MatrixAxes: lambda axes, where: {
        "call": "MatrixAxes",
        "inputs": [*axes.inputs],
        "outputs": [*axes.outputs],
    },
    Fraction: lambda fraction, where: {"call": "Fraction", "value": str(fraction)},
    ArraySetting: lambda setting, where: {
        "call": "array",
        "dtype": setting.values.dtype.name,
        "values": setting.values.tolist(),
    },
}
"""Settings that are neither numbers, strings, tuples nor mappings."""


# --- reading --------------------------------------------------------------------------------------


def _fraction(value: object) -> Fraction:
    # a fraction of powers of ten, such as 1e999999999, would take hours to write out
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,99}(/[0-9]{1,99})?", value):
        raise ValueError(f"{str(value)[:80]!r} is no fraction")
    return Fraction(value)


def _array(dtype: object, values: object) -> np.ndarray:
    known = {str(kind): kind for kind in NAMES}
    if not isinstance(dtype, str) or dtype not in known:
        raise ValueError(f"an array has the unknown dtype {str(dtype)[:80]!r}")
    return np.array(values, known[dtype])


def _mapping(items: Iterable) -> dict:
    return dict(items)


def _tuple(items: Iterable) -> tuple:
    return tuple(items)


def _matrices() -> Selector:
    return matrices


DECODERS: dict[str, Callable[..., object]] = {
    "budget": budget,
    "MatrixAxes": MatrixAxes,
    "Fraction": _fraction,
    "array": _array,
    "dict": _mapping,
    "tuple": _tuple,
    "matrices": _matrices,
}


def decode_transform(encoded: Json, given: Mapping[str, object]) -> Transform:
    """The transform that a call makes.

    Args:
        encoded: the call.
        given: the network and the data, under "net" and "batches".

    Raises:
        ValueError: for an unknown call or argument, or a network or data that are missing.
        TypeError: for an argument of another type.
    """
    name = encoded.get("call") if isinstance(encoded, dict) else None
    if not isinstance(encoded, dict) or not isinstance(name, str) or name not in CONSTRUCTORS:
        raise ValueError(
            f"the recipe calls {name!r}, expected one of {', '.join(sorted(CONSTRUCTORS))}"
        )
    constructor = CONSTRUCTORS[name]
    parameters = inspect.signature(constructor).parameters
    unknown = sorted(set(encoded) - {"call"} - set(parameters))
    if unknown:
        raise ValueError(f"the recipe gives {unknown} to {name}, which has no such arguments")
    named = {
        key: _decode(value, given, key == "labels")
        for key, value in encoded.items()
        if key != "call"
    }
    for key in ("net", "batches"):
        if key in parameters:
            if given.get(key) is None:
                raise ValueError(f"the recipe has {name}: pass load_recipe(path, {key}=...)")
            named[key] = given[key]
    if name in ("chain", "together"):  # their transforms are positional arguments
        inner = named.get("transforms", ())
        return _called(name, constructor, *(inner if isinstance(inner, tuple) else (inner,)))
    return _called(name, constructor, **named)


def _called(name: str, function: Callable[..., Made], *args: object, **named: object) -> Made:
    """What a call gives; whatever it raises is a sentence about the recipe."""
    try:
        inspect.signature(function).bind(*args, **named)
    except TypeError as error:
        raise ValueError(f"the recipe calls {name} with other arguments: {error}") from None
    try:
        return function(*args, **named)
    except Exception as error:
        # not all of them are sentences: Python's own name no transform
        raise ValueError(f"in the call of {name}: {error}") from error


def _decode(encoded: Json, given: Mapping[str, object], is_tree: bool = False) -> object:
    """A setting; lists are tuples but in a tree of labels."""
    if isinstance(encoded, list):
        entries = [_decode(entry, given, is_tree) for entry in encoded]
        return entries if is_tree else tuple(entries)
    if not isinstance(encoded, dict):
        return encoded
    name = encoded.get("call")
    if "call" not in encoded:
        return {key: _decode(value, given, is_tree) for key, value in encoded.items()}
    if isinstance(name, str) and name in DECODERS:
        named = {key: value for key, value in encoded.items() if key != "call"}
        if name != "array":  # its values stay nested lists
            named = {key: _decode(value, given, is_tree) for key, value in named.items()}
        return _called(name, DECODERS[name], **named)
    return decode_transform(encoded, given)
