"""What an argument must be: kinds of arguments, each checked in one way and with one sentence.

A kind is a function `kind(name, value) -> value` that raises a ValueError or TypeError in which the
argument's name, what was expected and what came stand. `checked` gives a public function the kinds
of its arguments, which are then tested on the host before the function does anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import numbers
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Shaped

Kind = Callable[[str, Any], Any]
"""`kind(name, value) -> value`, which raises where the value is of another kind."""

P = ParamSpec("P")
Result = TypeVar("Result")

MOST_SEED = 2**32 - 1
"""Seeds are mixed as unsigned integers of 32 bits."""


def checked(**kinds: Kind) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Give a function the kinds of its arguments; a default is allowed whatever its kind.

    Args:
        **kinds: by the argument's name.

    Example:
        >>> from jaxcompress.checks import checked, whole
        >>> @checked(width=whole(1))
        ... def layer(width=None):
        ...     return width
        >>> layer(), layer(3)
        (None, 3)
        >>> layer(0)
        Traceback (most recent call last):
        ValueError: layer: width must be a whole number of at least 1, got 0
    """

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        signature = inspect.signature(function)
        parameters = signature.parameters
        assert kinds.keys() <= parameters.keys(), f"{function} has other arguments than {kinds}"

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:  # Python says which argument is missing or unknown
                return function(*args, **kwargs)
            for name, kind in kinds.items():
                value = bound.arguments.get(name, parameters[name].default)
                if value is not parameters[name].default:
                    bound.arguments[name] = kind(f"{function.__qualname__}: {name}", value)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def check_fields(instance: object, **kinds: Kind) -> None:
    """Check the fields of a frozen dataclass, and keep what the kinds make of them.

    Args:
        instance: the dataclass.
        **kinds: by the field's name; a default is allowed whatever its kind.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(instance)}  # type: ignore[arg-type]
    for name, kind in kinds.items():
        value = getattr(instance, name)
        if value is not defaults[name]:
            value = kind(f"{type(instance).__name__}: {name}", value)
            object.__setattr__(instance, name, value)


# --- numbers --------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """Whether a value is a real number: of Python, of numpy, or an array without dimensions.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.checks import is_number
        >>> is_number(1), is_number(np.float32(0.5)), is_number(np.array(2)), is_number(True)
        (True, True, True, False)
    """
    if isinstance(value, (bool, np.bool_, Tracer)):
        return False
    if isinstance(value, numbers.Real):
        return True
    scalar = isinstance(value, (np.generic, np.ndarray, jax.Array)) and value.ndim == 0
    return scalar and _is_real(value.dtype) and value.dtype != bool


def _is_real(dtype: np.dtype) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def is_whole(value: object, least: int = 1) -> bool:
    """Whether a value is an integer, not a boolean, and at least `least`.

    Args:
        value: any object.
        least: the smallest number that is allowed.

    Returns:
        True for such an integer of Python or numpy, or an array of it without dimensions.

    Example:
        >>> from jaxcompress.checks import is_whole
        >>> is_whole(3), is_whole(0), is_whole(True), is_whole(2.0)
        (True, False, False, False)
    """
    if not is_number(value):
        return False
    integer = isinstance(value, numbers.Integral) or jnp.issubdtype(
        getattr(value, "dtype", float), jnp.integer
    )
    return integer and int(value) >= least  # type: ignore[call-overload]


def whole_number(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """An argument that is a whole number, as a Python integer.

    Args:
        name: the argument's name for the message, such as "block" or "jc.realize: batch_size".
        value: the argument.
        least: the smallest number that is allowed.
        most: the largest number that is allowed; any by default.

    Returns:
        The number.

    Raises:
        ValueError: for anything else.

    Example:
        >>> from jaxcompress.checks import whole_number
        >>> whole_number("block", 4)
        4
    """
    if not is_whole(value, least) or (most is not None and operator.index(value) > most):  # type: ignore[arg-type]
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {shown(value)}")
    return operator.index(value)  # type: ignore[arg-type]


def whole(least: int = 1, most: int | None = None) -> Kind:
    """The kind of a whole number."""
    return functools.partial(whole_number, least=least, most=most)


seeds = whole(0, MOST_SEED)
"""The kind of a seed."""


def whole_numbers(name: str, value: Any, axes: int | None, least: int = 1) -> tuple[int, ...]:
    """One whole number for each axis.

    Args:
        name: the argument's name for the message.
        value: the numbers; a single one is used for all axes.
        axes: the number of axes; None accepts any number of them.
        least: the smallest number that is allowed.

    Returns:
        One number for each axis.

    Raises:
        ValueError: for anything else.

    Example:
        >>> from jaxcompress.checks import whole_numbers
        >>> whole_numbers("stride", 2, axes=3)
        (2, 2, 2)
    """
    given = (value,) * (axes or 1) if is_whole(value, least) else value
    given = given.tolist() if isinstance(given, np.ndarray) and given.ndim == 1 else given
    fits = isinstance(given, Sequence) and 0 < len(given) == (axes or len(given))
    if not fits or not all(is_whole(entry, least) for entry in given):
        expected = (
            "whole numbers"
            if axes is None
            else f"one whole number, or one for each of the {axes} axes,"
        )
        raise ValueError(f"{name} must be {expected} of at least {least}, got {shown(value)}")
    return tuple(int(entry) for entry in given)


def sizes(name: str, value: object) -> tuple[int, ...]:
    """The kind of one or several whole numbers of at least 1, as a tuple."""
    return whole_numbers(name, value, None)


def number(interval: str, meaning: str = "") -> Kind:
    """The kind of a real number within an interval.

    Args:
        interval: in mathematical notation, such as "(0, 1]" or "[0, inf)".
        meaning: what it is, or an example, for the message.

    Returns:
        The kind; numbers of numpy and JAX become those of Python.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.checks import number
        >>> number("(0, 1]")("keep", np.float32(0.5))
        0.5
        >>> number("(0, 1]", "a share")("keep", float("nan"))
        Traceback (most recent call last):
        ValueError: keep must be in (0, 1], a share; got nan
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = operator.lt if interval[0] == "(" else operator.le
    below = operator.lt if interval[-1] == ")" else operator.le

    def kind(name: str, value: Any) -> object:
        if not (is_number(value) and above(low, value) and below(value, high)):
            text = f", {meaning}" if meaning else ""
            raise ValueError(f"{name} must be in {interval}{text}; got {shown(value)}")
        return value.item() if isinstance(value, (np.generic, np.ndarray, jax.Array)) else value

    return kind


def is_array(value: object) -> bool:
    """Whether a value is an array of numbers, traced or not, or a list or number that becomes one.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.checks import is_array
        >>> is_array([1.0, 2.0]), is_array(np.array(["a"])), is_array(None)
        (True, False, False)
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        try:
            dtype = np.asarray(value).dtype
        except (TypeError, ValueError):
            return False
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_))


def array(
    name: str,
    value: object,
    ndim: int | Sequence[int] | None = None,
    *,
    finite: bool = True,
    what: str = "an array of real numbers",
) -> Shaped[np.ndarray, "*shape"]:
    """An argument that is an array of real numbers, on the host.

    Args:
        name: the argument's name for the message.
        value: the argument; lists of numbers, too.
        ndim: the number of dimensions, or several that are allowed; any by default.
        finite: refuse NaN and infinity.
        what: what it is, for the message.

    Raises:
        ValueError: for anything else.

    Example:
        >>> from jaxcompress.checks import array
        >>> array("points", [[0.0, 1.0]], 2).shape
        (1, 2)
    """
    try:
        values = np.asarray(value)
    except (TypeError, ValueError):  # rows of different lengths, objects that are no numbers
        values = np.asarray(None)
    real = _is_real(values.dtype)
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if not real or (allowed is not None and values.ndim not in allowed):
        came = f"{values.dtype}{list(values.shape)}" if real else shown(value)
        dims = "" if allowed is None else f" of {' or '.join(map(str, allowed))} dimensions"
        raise ValueError(f"{name} must be {what}{dims}, got {came}")
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    if finite and floating and not np.isfinite(values.astype(np.float64)).all():
        raise ValueError(f"{name} contains NaN or infinity: repair or leave it out")
    return values


def matrix(name: str, value: object) -> object:
    """The kind of finite matrices (..., m, n), as they are given."""
    values = array(name, value, None, what="a matrix (..., m, n)")
    if values.ndim < 2 or not jnp.issubdtype(values.dtype, jnp.floating) or not values.size:
        raise ValueError(
            f"{name} must be a matrix (..., m, n) of floats with an entry at least, got "
            f"{values.dtype}{list(values.shape)}"
        )
    return value


# --- other kinds ----------------------------------------------------------------------------------


def choice(*options: str) -> Kind:
    """The kind of one of a few names."""

    def kind(name: str, value: object) -> object:
        if not (isinstance(value, str) and value in options):
            known = ", ".join(map(repr, options))
            raise ValueError(f"{name}={shown(value)} is unknown: expected one of {known}")
        return value

    return kind


def function(call: str) -> Kind:
    """The kind of a function; `call` shows how it is called and what it gives."""

    def kind(name: str, value: object) -> object:
        if not callable(value):
            raise TypeError(f"{name} must be a function {call}, got {shown(value)}")
        return value

    return kind


def instance(cls: type | tuple[type, ...], what: str) -> Kind:
    """The kind of an instance of a class; `what` says what it is and where it comes from."""

    def kind(name: str, value: object) -> object:
        if not isinstance(value, cls):
            raise TypeError(f"{name} must be {what}, got {shown(value)}")
        return value

    return kind


LOSS = "loss(params, batch, key) -> scalar"
"""How a loss is called, for messages."""


def of_each(cls: type, what: str) -> Kind:
    """The kind of a mapping to instances of a class, with one at least."""

    def kind(name: str, value: Any) -> object:
        fits = isinstance(value, Mapping) and bool(value)
        if not fits or not all(isinstance(entry, cls) for entry in value.values()):
            raise TypeError(f"{name} must be a mapping to results of {what}, got {shown(value)}")
        return value

    return kind


def sequence_of(cls: type, what: str) -> Kind:
    """The kind of a list or a tuple of instances of a class."""

    def kind(name: str, value: Any) -> object:
        listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if not listed or not all(isinstance(entry, cls) for entry in value):
            raise TypeError(f"{name} must be a list of {what}, got {shown(value)}")
        return value

    return kind


texts = sequence_of(str, "texts")
"""The kind of a list of texts; one text alone would be read letter by letter."""


def mapping(name: str, value: object) -> Mapping[str, object]:
    """The kind of a mapping from names or patterns, with one at least."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a mapping from names or patterns, got {shown(value)}")
    if not value:
        raise ValueError(f"{name} is an empty mapping: give at least one entry")
    return value


def iterable(name: str, value: object) -> object:
    """The kind of anything that can be looped over, but text."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list or another iterable, got {shown(value)}")
    return value


def path(name: str, value: object) -> object:
    """The kind of a file's or folder's path."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f'{name} must be a path, such as "small.safetensors", got {shown(value)}')
    return value


def path_pattern(name: str, value: object) -> object:
    """The kind of one pattern of paths."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a pattern such as '**/kernel', got {shown(value)}")
    return value


def random_key(name: str, value: object) -> object:
    """The kind of one random key of JAX, typed or as two unsigned integers."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    # an old key is an array of unsigned integers, of which two implementations have two or four
    plain = dtype == np.uint32 and shape in ((2,), (4,))
    if not (typed or plain):
        raise TypeError(
            f"{name} must be a JAX random key, such as jax.random.key(0), got {shown(value)}"
        )
    return value


def optimizer(name: str, value: object) -> object:
    """The kind of an optax transformation."""
    parts = (getattr(value, part, None) for part in ("init", "update"))
    if isinstance(value, type) or not all(map(callable, parts)):
        raise TypeError(
            f"{name} must be an optax transformation, such as optax.adam(1e-3), got {shown(value)}"
        )
    return value


def shown(value: object) -> str:
    """A value in a message: arrays by dtype and shape, others as they print, cut where long."""
    if isinstance(value, (np.ndarray, jax.Array)) and value.ndim:
        return f"{value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def arrays_in(tree: object) -> str:
    """A tree in a message: the dtype and shape of its leaves, cut where long."""
    leaves = [
        f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__
        for leaf in jax.tree.leaves(tree)
    ]
    more = f", ... ({len(leaves)} arrays)" if len(leaves) > 4 else ""
    return f"({', '.join(leaves[:4])}{more})"


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Say what was called on what where a function that was given fails.

    Args:
        what: the call, for the message.

    Raises:
        ValueError: in place of any ValueError or TypeError within.
    """
    try:
        yield
    except jax.errors.JAXTypeError:  # of a value that a traced function needs: JAX explains it
        raise
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error


def finite_number(name: str, value: object) -> float:
    """One finite number that a given function returned."""
    try:
        result = float(np.asarray(value).item())
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise ValueError(f"{name} must give one finite number, got {shown(value)}")
    return result
