"""What a function can be traced with: trees of arrays, numbers and random keys.

Functions, strings and flags that the function branches on are fixed when it is traced: they are
closed over. Whatever else is given is refused by its name, before the function is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.leaves import is_array
from jaxcompress.arrays.paths import named_leaves

CLOSE = "close over it, as functools.partial does: it is fixed when the function is traced"
PARTITION = (
    "split the model first, params, static = eqx.partition(model, eqx.is_array), and give "
    "lambda params, x: eqx.combine(params, static)(x) the arrays alone"
)


def check_arguments(params: PyTree, inputs: tuple[PyTree, ...]) -> None:
    """Refuse leaves that are no arrays, and parameters that are named alike.

    Raises:
        TypeError: naming the leaf, and what to do.
        ValueError: for two parameters of one name.
    """
    for name, leaf in named_leaves(params):
        if not (is_compact(leaf) or is_array(leaf)):
            fix = PARTITION if callable(leaf) else CLOSE
            raise TypeError(
                f"trace: the parameter {name or 'itself'} is a {type(leaf).__name__}, no array: "
                f"{fix}"
            )
    for where, leaf in _input_leaves(inputs):
        if not is_array(leaf):
            raise TypeError(f"trace: {where} is a {type(leaf).__name__}, no array: {CLOSE}")


@contextlib.contextmanager
def naming_flags(params: PyTree, inputs: tuple[PyTree, ...]) -> Iterator[None]:
    """Name the flags among the arguments where the function needs one's value.

    Raises:
        TypeError: instead of JAX's error, if there are Python numbers among the arguments.
    """
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError) as error:
        named = [(f"the parameter {name}", leaf) for name, leaf in named_leaves(params)]
        flags = [where for where, leaf in named + _input_leaves(inputs) if _is_flag(leaf)]
        if not flags:
            raise
        raise TypeError(
            "trace: the function needs the value of an argument, which may be one of "
            f"{', '.join(flags)}: {CLOSE}"
        ) from error


def _input_leaves(inputs: tuple[PyTree, ...]) -> list[tuple[str, PyTree]]:
    """Every leaf of the inputs, with its place."""
    flat = jax.tree_util.tree_flatten_with_path(inputs)[0]
    return [(f"input {path[0].idx}{jax.tree_util.keystr(path[1:])}", leaf) for path, leaf in flat]


def _is_flag(leaf: PyTree) -> bool:
    """Whether a leaf is a truth value or a whole number of Python or numpy."""
    return isinstance(leaf, (bool, int, np.bool_, np.integer))
