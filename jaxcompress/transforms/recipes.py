"""Recipes: transforms as JSON files, to be stored with results and run again on other parameters.

A transform is written as the call that makes it: its constructor's name and arguments. Networks and
data are not written but passed to `load_recipe`. Loading runs no code other than the constructors
in `CONSTRUCTORS`.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import matrices
from jaxcompress.checkpoint import write_atomically
from jaxcompress.checks import checked
from jaxcompress.checks import path as path_kind
from jaxcompress.moments.calibration import Calibration
from jaxcompress.networks.trace import Network, network
from jaxcompress.transforms.axiswise import AxisTransform
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.budget import Budget, budget
from jaxcompress.transforms.clustered import clustered
from jaxcompress.transforms.combinators import Labels, at, chain, identity, partition
from jaxcompress.transforms.factored import factored
from jaxcompress.transforms.hashed import hashed
from jaxcompress.transforms.merge import merge
from jaxcompress.transforms.recalibrate import DataTransform, recalibrate
from jaxcompress.transforms.reconstruct import reconstruct
from jaxcompress.transforms.resolution import coarsen, refine, thin
from jaxcompress.transforms.rotation import rotate_and_prune
from jaxcompress.transforms.select_rows import select_rows
from jaxcompress.transforms.seriation import seriate
from jaxcompress.transforms.settings import (
    ArraySetting,
    arguments,
    constructor_name,
    digest,
    is_mapping,
)
from jaxcompress.transforms.spline import spline
from jaxcompress.transforms.toeplitz import toeplitz
from jaxcompress.transforms.together import together
from jaxcompress.transforms.vocabulary import vocabulary

FORMAT = "jaxcompress recipe 1"

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

CONSTRUCTORS: dict[str, Callable[..., Transform]] = {
    constructor.__name__: constructor
    for constructor in (
        at,
        chain,
        clustered,
        coarsen,
        factored,
        hashed,
        identity,
        merge,
        partition,
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


@checked(path=path_kind)
def save_recipe(path: str | os.PathLike[str], transform: Transform) -> None:
    """Write a transform as JSON; an existing file is replaced by a complete one or not at all.

    Args:
        path: the file, usually ending in `.json`.
        transform: any transform of this library, and any combination of them. The networks and the
            data in it are not written.

    Raises:
        TypeError: for a setting that has no JSON, such as a function or the metric of a budget; its
            name is in the message, and nothing is written.
        ValueError: for transforms of several networks or of several data sets, since `load_recipe`
            takes one of each.

    Example:
        >>> import os, tempfile, jaxcompress as jc
        >>> recipe = jc.chain(jc.vocabulary(keep=1/2), jc.at("**/codes", jc.hashed(keep=1/4)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jc.save_recipe(os.path.join(folder, "recipe.json"), recipe)
        ...     jc.load_recipe(os.path.join(folder, "recipe.json")) == recipe
        True
    """
    if not isinstance(transform, Transform):
        raise TypeError(f"save_recipe expects a transform, got {type(transform).__name__}")
    _check_one("networks", [part.structure for part in _parts(transform, AxisTransform)])
    _check_one("data sets", [part.data for part in _parts(transform, DataTransform)])
    recipe = {"format": FORMAT, "recipe": _encode_transform(transform, "")}
    text = json.dumps(recipe, indent=2, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


@checked(path=path_kind, net=network)
def load_recipe(
    path: str | os.PathLike[str],
    net: Network | None = None,
    *,
    batches: Iterable[PyTree] | Calibration | None = None,
) -> Transform:
    """Read a transform that `save_recipe` wrote.

    Args:
        path: the file.
        net: the network whose axes the recipe changes, from `jc.trace`; needed where it has
            transforms of axes or of data.
        batches: the data of `jc.recalibrate` and `jc.reconstruct`; needed where it has those.

    Returns:
        The transform, equal to the one that was saved when `net` and `batches` are.

    Raises:
        ValueError: for a file that is damaged or no recipe, unknown transforms or arguments, or a
            network or data that are missing.
        FileNotFoundError: when there is no such file.

    Example:
        >>> import os, pathlib, tempfile, jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "recipe.json")
        ...     jc.save_recipe(path, jc.rotate_and_prune(net, keep=1/2))
        ...     print(pathlib.Path(path).read_text())
        ...     jc.load_recipe(path, net=net)(params)["up"].shape
        {
          "format": "jaxcompress recipe 1",
          "recipe": {
            "call": "rotate_and_prune",
            "keep": 0.5
          }
        }
        <BLANKLINE>
        (3, 4)
    """
    text = Path(path).read_bytes()
    try:
        recipe = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no recipe ({error}): save it again") from None
    if not isinstance(recipe, dict) or "format" not in recipe:
        raise ValueError(f"{path} is no recipe: it was not written by jc.save_recipe")
    if recipe["format"] != FORMAT:
        raise ValueError(
            f"{path} has the format {recipe['format']!r}; this version reads {FORMAT!r}"
        )
    given = {"net": net, "batches": batches}
    try:
        return _decode_transform(recipe.get("recipe"), given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _parts(transform: Transform, kind: type) -> list:
    """All transforms of a kind within a transform."""
    parts = [transform] if isinstance(transform, kind) else []
    for value in arguments(transform, transform.hidden()).values():
        for inner in _transforms_in(value):
            parts += _parts(inner, kind)
    return parts


def _transforms_in(value: object) -> list[Transform]:
    """The transforms in a setting: itself, or those in a tuple or a tuple of pairs."""
    if isinstance(value, Transform):
        return [value]
    inner: list[Transform] = []
    for entry in value if isinstance(value, tuple) else ():
        inner += _transforms_in(entry)
    return inner


# --- writing --------------------------------------------------------------------------------------


def _encode_transform(transform: Transform, where: str) -> dict[str, Json]:
    """A transform as the call of its constructor."""
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
        return _encode_transform(value, where)
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


def _check_one(what: str, values: list) -> None:
    """Refuse several networks or data sets in one recipe."""
    if len(set(map(digest, values))) > 1:
        raise ValueError(
            f"save_recipe: the recipe has transforms of several {what}, and load_recipe is given "
            "one: save a recipe for each"
        )


# --- reading --------------------------------------------------------------------------------------

DECODERS: dict[str, Callable[..., object]] = {
    "budget": budget,
    "MatrixAxes": MatrixAxes,
    "Fraction": lambda value: Fraction(value),
    "array": lambda dtype, values: np.array(values, dtype),
    "dict": lambda items: dict(items),
    "tuple": lambda items: tuple(items),
    "matrices": lambda: matrices,
}


def _decode_transform(encoded: Json, given: Mapping[str, object]) -> Transform:
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
            if given[key] is None:
                raise ValueError(f"the recipe has {name}: pass load_recipe(path, {key}=...)")
            named[key] = given[key]
    if name in ("chain", "together"):  # their transforms are positional arguments
        return constructor(*named.get("transforms", ()))  # type: ignore[misc]
    return constructor(**named)


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
    if name in DECODERS:
        named = {key: value for key, value in encoded.items() if key != "call"}
        if name != "array":  # its values stay nested lists
            named = {key: _decode(value, given, is_tree) for key, value in named.items()}
        return DECODERS[name](**named)
    return _decode_transform(encoded, given)
