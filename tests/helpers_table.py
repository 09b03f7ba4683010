"""The table of models: entries, how their parameters are drawn, and inputs that several take."""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Model:
    """A network and what is known of it.

    Attributes:
        apply: pure, `apply(params, *inputs)` gives the outputs.
        params: float arrays, batch statistics among them where there are any.
        inputs: an example, a batch of 5 (of 4 images) and sequences of length 6.
        state: for outputs that mirror a subtree of the parameters, {path in the outputs: path in
            the parameters}.
        resize: (batch, length) to inputs of that batch and sequence length, which goes up to
            `POSITIONS`.
        hidden: the leaves whose last dimension is a hidden axis, whole or in factors or segments.
    """

    name: str
    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    state: dict[str, str] | None = None
    resize: Callable[[int, int], tuple[Any, ...]] | None = None
    hidden: tuple[str, ...] = ()


MODELS: dict[str, Callable[[], Model]] = {}
"""The makers by name; each makes its model once."""

BATCH, LENGTH = 5, 6
INPUTS, FIRST, SECOND, OUTPUTS = 7, 12, 10, 3
VOCABULARY, POSITIONS, WIDTH, HEADS, HEAD_SIZE, WIDE, CLASSES = 23, 16, 18, 3, 4, 14, 8


def entry(make: Callable[[], Model]) -> Callable[[], Model]:
    """Put a maker into the table under its own name."""
    MODELS[make.__name__] = functools.cache(lambda: dataclasses.replace(make(), name=make.__name__))
    return MODELS[make.__name__]


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path with its parts joined by "/", without nnx's `.value`."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def model(apply, params, inputs, visible, state=None, batch=BATCH) -> Model:
    """A model whose leaves all end in a hidden axis, except those that `visible` matches."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    hidden = tuple(
        name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in visible)
    )
    return Model("", apply, params, inputs(batch, LENGTH), state, inputs, hidden)


# --- parameters and inputs -----------------------------------------------------------------------


def affine(m: int, n: int) -> dict[str, tuple[int, ...]]:
    """Shapes of an affine layer."""
    return {"w": (m, n), "b": (n,)}


def draw(shapes: Any) -> Any:
    """Random parameters of a tree of shapes: weights by their fan-in, scales about one."""

    def leaf(path, shape):
        noise = next(noises).normal(size=shape)
        if "scale" in path_name(path[-1:]):
            noise = 1 + 0.3 * noise
        else:
            noise *= 0.3 if len(shape) == 1 else shape[-2] ** -0.5
        return jax.device_put(np.asarray(noise, np.float32))

    noises = (np.random.default_rng([0, index]) for index in range(10**6))
    return jax.tree_util.tree_map_with_path(
        leaf, shapes, is_leaf=lambda node: isinstance(node, tuple)
    )


def fresh(init: Any, *inputs: Any) -> Any:
    """Parameters of the shapes that an `init` makes: compiling its generators takes seconds."""

    def leaf(path, shape):
        name, size = path_name(path[-1:]), shape.shape
        if name in ("scale", "var"):
            return np.ones(size)
        if len(size) < 2:
            return np.zeros(size)
        return next(noises).normal(size=size) / np.sqrt(np.prod(size[:-1]))

    noises = (np.random.default_rng([5, index]) for index in range(10**6))
    return perturb(
        jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init, jax.random.key(0), *inputs))
    )


def perturb(params: Any) -> Any:
    """Fresh parameters plus noise, so no bias is zero and no scale one; variances 0.5 to 1.5."""

    def leaf(path, value):
        rng = next(rngs)
        noisy = (
            rng.uniform(0.5, 1.5, value.shape)
            if path_name(path[-1:]) == "var"
            else value + 0.2 * rng.normal(size=value.shape)
        )
        return jax.device_put(np.asarray(noisy, np.float32))

    rngs = (np.random.default_rng([1, index]) for index in range(10**6))
    return jax.tree_util.tree_map_with_path(leaf, params)


def noise(*shape: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(2).normal(size=shape).astype(np.float32))


def vectors(batch: int, length: int) -> tuple[Any, ...]:
    return (noise(batch, INPUTS),)


def images(batch: int, length: int) -> tuple[Any, ...]:
    return (noise(batch, 8, 8, 3),)


def series(batch: int, length: int) -> tuple[Any, ...]:
    return (noise(batch, length, INPUTS),)


def tokens(batch: int, length: int) -> tuple[Any, ...]:
    return (
        jnp.asarray(np.random.default_rng(3).integers(0, VOCABULARY, (batch, length)), jnp.int32),
    )


def padded_tokens(batch: int, length: int) -> tuple[Any, ...]:
    """Tokens, and a mask that is one for every row's first few."""
    lengths = np.random.default_rng(4).integers(1, length + 1, (batch, 1))
    return (*tokens(batch, length), jnp.asarray(np.arange(length) < lengths, jnp.int32))


def dense(p, x):
    return x @ p["w"] + p["b"]
