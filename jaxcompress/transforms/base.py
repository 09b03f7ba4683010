"""A transform is a pure function from parameters to parameters that prints, compares and is saved.

`transform(params, moments)` returns the new tree; `transform.apply(params, moments)` also returns
its moments. Moments are a tree like the parameters, with the second moments of each weight's inputs
or None in place of the weight. Transforms run eagerly on the host, since sizes depend on values.
The cost is the transform's own fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Float, PyTree

from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checks import array, shown
from jaxcompress.moments.moments import Moments
from jaxcompress.transforms.settings import arguments, call, constructor_name

InputMetric: TypeAlias = Float[np.ndarray, "*lead m m"] | Float[np.ndarray, " m"] | None
"""Second moments of a weight's inputs, their diagonal for a table that is looked up, or None."""


@dataclasses.dataclass(frozen=True)
class Scope:
    """Where in a tree a transform works.

    Attributes:
        prefix: the path of the subtree that is given.
        by_name: whether its leaves were picked by name, so that none may be skipped.
    """

    prefix: str = ""
    by_name: bool = False


class Transform:
    """The base of every transform: a frozen dataclass whose fields are its constructor's arguments.

    A subclass writes one of two hooks: `_apply(params, moments, scope)`, which returns the new
    parameters, or `_step(params, moments, scope)`, which returns the parameters and the moments.

    Attributes:
        whole_network: whether it changes the axes of a network, and not single leaves.
        traceable: whether the shapes alone decide what it does when there are no moments, so that
            it runs under `jax.jit` and its like.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxcompress as jc
        >>> @dataclasses.dataclass(frozen=True, repr=False)
        ... class Scaled(jc.Transform):
        ...     factor: float
        ...     def _apply(self, params, moments, scope):
        ...         return jax.tree.map(lambda leaf: self.factor * leaf, params)
        >>> Scaled(3.0), Scaled(3.0)({"kernel": jnp.ones(2)})
        (scaled(factor=3), {'kernel': Array([3., 3.], dtype=float32)})
    """

    whole_network = False
    traceable = False

    def __call__(self, params: PyTree, moments: Moments | PyTree = None) -> PyTree:
        """The transformed parameters; the given ones are not changed.

        Args:
            params: any pytree of arrays and compact arrays.
            moments: as for `apply`.
        """
        return self.apply(params, moments)[0]

    def apply(
        self, params: PyTree, moments: Moments | PyTree = None
    ) -> tuple[PyTree, Moments | PyTree]:
        """The transformed parameters, and the moments of their inputs.

        Args:
            params: any pytree of arrays and compact arrays.
            moments: `Moments` of a network, or a tree with a (..., m, m) matrix or None at each
                leaf of `params`; with None the weights alone decide.

        Returns:
            The parameters and the moments.

        Raises:
            ValueError: for NaN or infinity in a selected leaf, moments that do not fit, or a keep
                out of reach.
            TypeError: under `jax.jit` and its like, or for a leaf that was picked by name and is no
                weight.
        """
        # moments make sizes depend on values even where the shapes alone would decide
        if not self.traceable or moments is not None:
            check_tree(params)
        check_moments(params, moments)
        return self._step(params, moments, Scope())

    def _step(
        self, params: PyTree, moments: Moments | PyTree, scope: Scope
    ) -> tuple[PyTree, Moments | PyTree]:
        """Parameters and moments; transforms of single weights leave the moments as they are."""
        return self._apply(params, moments, scope), moments

    def _apply(self, params: PyTree, moments: Moments | PyTree, scope: Scope) -> PyTree:
        """The parameters alone."""
        # each hook has a default in terms of the other: without this check they would recurse
        if type(self)._step is Transform._step:
            raise NotImplementedError(
                f"{type(self).__name__} is a Transform without a hook: write "
                "_apply(self, params, moments, scope), which returns the new parameters, or "
                "_step(self, params, moments, scope), which returns parameters and moments"
            )
        return self._step(params, moments, scope)[0]

    def check_patterns(self, paths: Sequence[str]) -> None:
        """Refuse options by pattern that decide for none of some leaves, which are all there are.

        Args:
            paths: the names of the leaves that the transform was applied to, one after another.
        """

    def hidden(self) -> tuple[str, ...]:
        """Fields that are no named arguments of the constructor."""
        return ()

    def arguments(self) -> dict[str, object]:
        """The constructor's named arguments that differ from their defaults."""
        return arguments(self, self.hidden())

    def __repr__(self) -> str:
        return call(constructor_name(self), **self.arguments())


def check_transform(who: str, transform: object) -> None:
    """Refuse what is no transform, in the name of a function."""
    if not isinstance(transform, Transform):
        raise TypeError(
            f"{who} expects transforms such as jc.hashed(keep=1/8), got {shown(transform)}"
        )


def check_tree(params: PyTree) -> None:
    """Refuse traced values: the sizes of the result depend on data."""
    for name, leaf in named_leaves(params):
        if any(isinstance(value, Tracer) for value in jax.tree.leaves(leaf)):
            raise TypeError(
                f"{name or 'params'}: a transform was called under a JAX transformation; call it "
                "outside jax.jit, jax.grad and jax.vmap, then use the parameters that it returns "
                "under them"
            )


def moments_by_name(moments: Moments | PyTree) -> Mapping[str, Float[ArrayLike, ...]]:
    """The second moments of the inputs of each matrix, by leaf name."""
    return moments.by_leaf() if isinstance(moments, Moments) else dict(named_leaves(moments))


def check_moments(params: PyTree, moments: Moments | PyTree) -> None:
    """Refuse moments that belong to no leaf; shapes are checked where they are used."""
    leaves = [name for name, _ in named_leaves(params)]
    unknown = sorted(set(moments_by_name(moments)) - set(leaves))
    if unknown == [""]:
        raise TypeError(
            "moments must be those of jc.calibrate, or a tree like the parameters with a matrix "
            f"(m, m) or None at each leaf; got {shown(moments)}"
        )
    if unknown:
        raise ValueError(
            f"moments name leaves that the parameters lack: {unknown}; the parameters have {leaves}"
        )


def map_leaves(
    visit: Callable[[str, PyTree, ArrayLike | None], PyTree],
    params: PyTree,
    moments: Moments | PyTree,
) -> PyTree:
    """A tree with `visit(name, leaf, metric)` for every leaf; a compact array is one leaf."""
    metrics = moments_by_name(moments)
    treedef = jax.tree.structure(params, is_leaf=is_compact)
    return jax.tree.unflatten(
        treedef, [visit(name, leaf, metrics.get(name)) for name, leaf in named_leaves(params)]
    )


def second_moments(x: Float[ArrayLike, "*examples m"]) -> Float[np.ndarray, "m m"]:
    """The second moments of a layer's inputs.

    They are the metric in which the error of a weight is the error of the layer's outputs.

    Args:
        x: (..., m) inputs, all leading dimensions being examples.

    Returns:
        (m, m): the mean of `x x'`, in float64 on the host, where fits are made.

    Raises:
        ValueError: without examples, or for NaN or infinity.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.second_moments(jnp.array([[1.0, 2.0], [3.0, 0.0]]))
        array([[5., 1.],
               [1., 2.]])
    """
    x = array("second_moments: x", x, finite=False)
    if x.ndim < 2 or x.size == 0:
        raise ValueError(
            "second_moments expects inputs (..., examples, m) with at least one example, got shape "
            f"{x.shape}"
        )
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError(
            "second_moments: the inputs contain NaN or infinity; remove or repair those examples"
        )
    return rows.T @ rows / len(rows)


def child_moments(node: CompactArray, metric: ArrayLike | None) -> dict[str, InputMetric]:
    """The metric of each child of a compact array, given that of the array's inputs."""
    return node.child_metrics(None if metric is None else np.asarray(metric, np.float64))
