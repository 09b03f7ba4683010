"""Recipes: transforms as JSON files, to be stored with results and run again on other parameters.

A transform is written as the call that makes it: its constructor's name and arguments. Networks and
data are not written but passed to `load_recipe`; `jc.save` writes a recipe with the axes of its
network. Loading runs no code other than the constructors that it names. A digest tells whether
the recipe is the one that was written; in a file that is edited by hand it is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from jaxtyping import PyTree

from jaxcompress.checkpoint.atomic import write_atomically
from jaxcompress.checkpoint.records import Record, records
from jaxcompress.checkpoint.tensor_file import canonical
from jaxcompress.checks import checked
from jaxcompress.checks import path as path_kind
from jaxcompress.moments.calibration import Calibration
from jaxcompress.networks.axes import Structure
from jaxcompress.networks.trace import Network, traced
from jaxcompress.transforms.axiswise import AxisTransform
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.norm_transform import NormTransform
from jaxcompress.transforms.recalibrate import DataTransform
from jaxcompress.transforms.recipe_calls import Json, decode_transform, encode_transform
from jaxcompress.transforms.settings import arguments, digest

FORMAT = "jaxcompress recipe 1"


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
    write_atomically(path, recipe_to_bytes(transform))


def recipe_to_bytes(transform: Transform) -> bytes:
    """The file of a transform; see `save_recipe`."""
    if not isinstance(transform, Transform):
        raise TypeError(f"save_recipe expects a transform, got {type(transform).__name__}")
    recipe, _ = _written(transform)
    content = {"format": FORMAT, "recipe": recipe, "sha256": _digest(recipe)}
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _written(transform: Transform) -> tuple[Json, Structure | None]:
    """A transform as JSON, and the axes that it changes."""
    structures = [part.structure for part in _parts(transform, AxisTransform)]
    data = [part.data for part in _parts(transform, DataTransform)]
    programs = _parts(transform, NormTransform)
    _check_one("networks", structures)
    _check_one("data sets", data)
    recipe, structure = encode_transform(transform, ""), next(iter(structures), None)
    if not data and not programs and decode_transform(recipe, {"net": structure}) != transform:
        raise TypeError(f"save_recipe: {transform!r} would not be the same when it is read back")
    return recipe, structure


@checked(path=path_kind, net=traced)
def load_recipe(
    path: str | os.PathLike[str],
    net: Network | Structure | None = None,
    *,
    batches: Iterable[PyTree] | Calibration | None = None,
) -> Transform:
    """Read a transform that `save_recipe` wrote.

    Args:
        path: the file.
        net: the network whose axes the recipe changes, from `jc.trace`; needed where it has
            transforms of axes or of data. For axes its `structure` suffices, also from a file.
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
          },
          "sha256": "..."
        }
        <BLANKLINE>
        (3, 4)
    """
    return recipe_from_bytes(Path(path).read_bytes(), str(path), net, batches)


def recipe_from_bytes(
    text: bytes,
    path: str,
    net: Network | Structure | None = None,
    batches: Iterable[PyTree] | Calibration | None = None,
) -> Transform:
    """The transform of a file; see `load_recipe`.

    Args:
        text: its content.
        path: its name for messages.
        net: as for `load_recipe`.
        batches: as for `load_recipe`.
    """
    try:
        content = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no recipe ({error}): save it again") from None
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path} is no recipe: it was not written by jc.save_recipe")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path} has the format {str(content['format'])[:80]!r}; this version reads {FORMAT!r}"
        )
    if unknown := sorted(set(content) - {"format", "recipe", "sha256"}):
        raise ValueError(f"{path} has the unknown fields {unknown}")
    recipe = content.get("recipe")
    if "sha256" in content and content["sha256"] != _digest(recipe):
        raise ValueError(
            f"{path} has another recipe than was saved: where it was edited on purpose, remove "
            'its "sha256"'
        )
    try:
        transform = decode_transform(recipe, {"net": net, "batches": batches})
        # what no recipe is saved as, such as labels that are no text
        recipe_to_bytes(transform)
    except RecursionError:
        raise ValueError(f"{path} has settings that are nested too deeply") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {str(error).removeprefix('save_recipe: ')}") from error
    return transform


def _digest(recipe: Json) -> str:
    return hashlib.sha256(canonical(recipe).encode()).hexdigest()


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """An object of JSON without repeated keys, of which only the last would count."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"keys are repeated in {[key for key, _ in pairs]}")
    return dict(pairs)


def _no_number(text: str) -> Json:
    raise ValueError(f"{text} is no number")


def _fields(transform: Transform) -> dict[str, PyTree]:
    """What `jc.save` writes of a transform: the recipe and the axes that it changes."""
    if _parts(transform, DataTransform):
        raise ValueError(
            "a recipe with data is written by jc.save_recipe, and read by load_recipe(batches=...)"
        )
    if _parts(transform, NormTransform):
        raise ValueError(
            "a recipe that is guided by batch norms is written by jc.save_recipe, and read by "
            "load_recipe(net=...) with the network from jc.trace"
        )
    recipe, structure = _written(transform)
    return {"recipe": recipe, "structure": structure}


def _from_fields(fields: dict[str, PyTree]) -> Transform:
    structure = fields.get("structure")
    if list(fields) != ["recipe", "structure"] or not isinstance(structure, Structure | None):
        raise ValueError(f"it has the fields {list(fields)}, expected recipe and structure")
    try:
        transform = decode_transform(fields["recipe"], {"net": structure, "batches": None})
        written = _fields(transform)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if canonical(written["recipe"]) != canonical(fields["recipe"]):
        raise ValueError("its arguments are not as jc.save writes them")
    if (written["structure"] is None) != (structure is None):
        raise ValueError("it has the axes of a network, and changes none")
    return transform


records["Transform"] = Record(Transform, _fields, _from_fields, subclasses=True)


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


def _check_one(what: str, values: list) -> None:
    """Refuse several networks or data sets in one recipe."""
    if len(set(map(digest, values))) > 1:
        raise ValueError(
            f"save_recipe: the recipe has transforms of several {what}, and load_recipe is given "
            "one: save a recipe for each"
        )
