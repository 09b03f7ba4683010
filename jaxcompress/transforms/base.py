"""A transform is a pure function from parameters to parameters that prints and compares.

`transform(params, moments)` gives the new tree; `transform.apply(params, moments)` gives the moments that go with it,
too. Moments are a tree like the parameters with a matrix, the second moments of a weight's inputs, or None at every
leaf. Transforms run eagerly on the host, since sizes depend on values. The cost is the transform's own fit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcompress.arrays.atoms import encode_name
from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.moments.moments import Moments


@dataclasses.dataclass(frozen=True)
class Scope:
    """Where in a tree a transform works: the name in front, and whether its leaves were picked by name."""

    prefix: str = ""
    by_name: bool = False


class Transform:
    """The base of every transform; a subclass gives `_apply`."""

    whole_network = False
    """Whether it changes a network's axes, and cannot be applied to single leaves."""
    traceable = False
    """Whether without moments the shapes alone say what it does, so that it runs under `jax.jit` and its like."""

    def __call__(self, params: Any, moments: Any = None) -> Any:
        """The transformed parameters; the given ones are not changed."""
        return self.apply(params, moments)[0]

    def apply(self, params: Any, moments: Any = None) -> tuple[Any, Any]:
        """The transformed parameters, and the moments of their inputs.

        Args:
            params: any pytree of arrays and compact arrays.
            moments: a network's `Moments`, or a tree with a (..., m, m) matrix or None at each leaf of `params`; None
                knows nothing.

        Raises:
            ValueError: for a NaN or an infinity in a selected leaf, moments that do not fit, a keep out of reach.
            TypeError: under `jax.jit` and its like, or for a leaf that was picked by name and is no weight.
        """
        if not self.traceable or moments is not None:
            check_tree(params)
        check_moments(params, moments)
        return self._step(params, moments, Scope())

    def _step(self, params: Any, moments: Any, scope: Scope) -> tuple[Any, Any]:
        """Parameters and moments; transforms of single weights leave the moments as they are."""
        return self._apply(params, moments, scope), moments

    def _apply(self, params: Any, moments: Any, scope: Scope) -> Any:
        return self._step(params, moments, scope)[0]


def called(transform: Any, *first: str, hidden: tuple[str, ...] = ()) -> str:
    """A dataclass as the call of its constructor: its name in snake case, and what differs from the defaults."""
    shown = [
        f"{f.name}={_show(getattr(transform, f.name))}"
        for f in dataclasses.fields(transform)
        if f.name not in hidden
        and (f.default is dataclasses.MISSING or not _same(getattr(transform, f.name), f.default))
    ]
    name = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(transform).__name__).lower()
    return f"{name}({', '.join([*first, *shown])})"


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return "{" + ", ".join(f"{key!r}: {_show(each)}" for key, each in value) + "}"
    if isinstance(value, np.ndarray):
        return f"matrix{value.shape}"
    return encode_name(value) if isinstance(value, Callable) else repr(value)


def check_tree(params: Any) -> None:
    """Refuse traced values: the sizes of the result depend on data."""
    for name, leaf in named_leaves(params):
        if any(isinstance(value, Tracer) for value in jax.tree.leaves(leaf)):
            raise TypeError(
                f"{name or 'params'}: a transform was called under a JAX transformation; call it outside jax.jit, "
                "jax.grad and jax.vmap, then use the parameters that it gives under them"
            )


def moments_by_name(moments: Any) -> dict[str, Any]:
    """The second moments of each matrix's inputs, by leaf name, from a network's `Moments` or a tree."""
    return moments.by_leaf() if isinstance(moments, Moments) else dict(named_leaves(moments))


def check_moments(params: Any, moments: Any) -> None:
    """Refuse moments that belong to no leaf; shapes are checked where they are used."""
    leaves = [name for name, _ in named_leaves(params)]
    unknown = sorted(set(moments_by_name(moments)) - set(leaves))
    if unknown:
        raise ValueError(
            f"moments name leaves that the parameters lack: {unknown}; the parameters have {leaves}"
        )


def map_leaves(visit: Any, params: Any, moments: Any) -> Any:
    """A tree with `visit(name, leaf, metric)` in place of every leaf; a compact array is one leaf."""
    metrics = moments_by_name(moments)
    treedef = jax.tree.structure(params, is_leaf=is_compact)
    return jax.tree.unflatten(
        treedef, [visit(name, leaf, metrics.get(name)) for name, leaf in named_leaves(params)]
    )


def second_moments(x: Any) -> jax.Array:
    """The second moments of a layer's inputs: the metric in which a weight's error is the error of its outputs.

    Args:
        x: (..., m) inputs, all leading dimensions being examples.

    Returns:
        (m, m): the mean of `x x'`, in float32.

    Raises:
        ValueError: without examples, or for a NaN or an infinity.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.second_moments(jnp.array([[1.0, 2.0], [3.0, 0.0]]))
        Array([[5., 1.],
               [1., 2.]], dtype=float32)
    """
    x = np.asarray(x)
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"second_moments expects inputs (..., examples, m) with at least one example, got shape {x.shape}"
        )
    if not np.isfinite(x.astype(np.float32)).all():
        raise ValueError(
            "second_moments: the inputs contain NaN or infinity; remove or repair those examples"
        )
    rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
    return jnp.matmul(rows.T, jnp.asarray(rows), precision="highest") / np.float32(len(rows))


def child_moments(node: CompactArray, metric: Any) -> dict[str, Any]:
    """The metric of each child of a compact array, given that of the array's inputs."""
    return node.child_metrics(None if metric is None else np.asarray(metric, np.float64))
