"""Find the hidden axes of any pure function, and run it at the sizes of the parameters it is given.

`trace(apply, params, *inputs)` reads the function's jaxpr once; the `Network` it gives is called like `apply`, on
parameters whose hidden axes have other sizes and whose leaves may be compact arrays. Analysis costs milliseconds; a call is
one compiled program for each shape of its arguments, at the cost of the small network written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.networks.axes import USES, Use
from jaxcompress.networks.describe import describe
from jaxcompress.networks.traced_program import TracedProgram, find_axes, weak
from jaxcompress.programs.algebra import Dim
from jaxcompress.programs.program import Step, Value
from jaxcompress.programs.rules import Replay
from jaxcompress.tables import Table


class Network:
    """A traced function: its hidden axes, and itself at other sizes. Made by `jc.trace`.

    Attributes:
        structure: all that was found, as plain data.
    """

    def __init__(
        self,
        apply: Callable[..., Any],
        params: Any,
        inputs: tuple[Any, ...],
        state_outputs: Mapping[str, str] | None,
    ):
        self.apply = apply
        self.state_outputs = dict(state_outputs or {})
        self.full = jax.tree.map(shape_of, params, is_leaf=is_compact)
        self.treedef = jax.tree.structure(self.full)
        self.overrides: dict[str, int] = {}
        self._found: dict[Any, TracedProgram] = {}
        self.inputs = jax.eval_shape(lambda *values: values, *inputs)
        found = self._analyse(self.full, self.inputs)
        self.structure = describe(found)
        self._run = jax.jit(self._replay)

    @property
    def axes(self) -> Table:
        """The hidden axes, a table of `Axis` rows."""
        return self.structure.axes

    @property
    def refused(self) -> Table:
        """What is no hidden axis, and why: a table of `Refused` rows."""
        return self.structure.refused

    @property
    def matrix_axes(self) -> dict[str, MatrixAxes]:
        """For each weight its inputs and outputs, to be given as `matrix_axes=` to `jc.hashed` and the other forms."""
        return self.structure.matrix_axes

    def __call__(self, params: Any, *inputs: Any) -> Any:
        """What `apply` gives, at the sizes of the given parameters.

        Args:
            params: the traced tree, whose hidden axes may have other sizes and whose leaves may be compact arrays.
            *inputs: what `apply` takes; batch and sequence length may differ from the traced ones.

        Raises:
            ValueError: for parameters whose sizes do not fit together; the leaf is named.
        """
        return self._run(params, *inputs)

    def resized(self, sizes: Mapping[str, int]) -> Network:
        """The same network where sizes that the parameters leave open are given by axis."""
        unknown = sorted(set(sizes) - set(self.axes.keys()))
        if unknown:
            raise ValueError(
                f"resized: {unknown} are no hidden axes; there are: {', '.join(self.axes.keys())}"
            )
        other = object.__new__(Network)
        other.__dict__.update(self.__dict__)
        other.overrides = {**self.overrides, **{key: int(size) for key, size in sizes.items()}}
        other._run = jax.jit(other._replay)
        return other

    def explain(self, params: Any, *inputs: Any) -> Table:
        """How each compact array of `params` is used: contracted, looked up, or materialised, and where."""
        uses: dict[tuple[Any, ...], Use] = {}
        compact = {name for name, leaf in named_leaves(params) if is_compact(leaf)}

        def note(step: Step, value: Value, how: str) -> None:
            for name in {name for slots in value.slots for name, _ in slots} & compact:
                uses[name, how, step.name, step.where] = Use(name, how, step.name, step.where)

        shapes = jax.eval_shape(lambda *values: values, *(inputs or self.inputs))
        jax.eval_shape(
            lambda params, *values: self._replay(params, *values, note=note), params, *shapes
        )
        return Table(tuple(uses.values()), USES, "no compact array is used")

    def __repr__(self) -> str:
        kinds = [axis.kind for axis in self.axes]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "none"
        return f"Network({len(self.structure.layouts)} leaves; hidden axes: {counts}; {len(self.refused)} refused)"

    # --- inside --------------------------------------------------------------------------------------------------

    def _analyse(self, params: Any, inputs: tuple[Any, ...]) -> TracedProgram:
        """The analysis for parameter and input shapes, cached."""
        leaves, _ = jax.tree.flatten((params, inputs))
        key = (
            jax.tree.structure((params, inputs)),
            tuple((leaf.shape, str(leaf.dtype), weak(leaf)) for leaf in leaves),
        )
        if key not in self._found:
            if len(self._found) > 16:
                self._found.clear()
            self._found[key] = find_axes(self.apply, params, inputs, self.state_outputs)
        return self._found[key]

    def _prepare(
        self, params: Any, inputs: tuple[Any, ...]
    ) -> tuple[TracedProgram, dict[Dim, int], list[Any]]:
        """The analysis at the full shapes and the given dtypes, the present sizes, and the leaves."""
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_compact)
        if treedef != self.treedef:
            ours, theirs = (
                {name for name, _ in named_leaves(tree)} for tree in (self.full, params)
            )
            difference = (
                f"only traced: {sorted(ours - theirs)}, only given: {sorted(theirs - ours)}"
            )
            raise ValueError(
                f"the network was traced with another tree of parameters: {difference}"
            )
        full = jax.tree.leaves(self.full)
        dtypes = [
            leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf) for leaf in leaves
        ]
        typed = [
            jax.ShapeDtypeStruct(shape.shape, dtype)
            for shape, dtype in zip(full, dtypes, strict=True)
        ]
        shapes = jax.eval_shape(lambda *values: values, *inputs)
        found = self._analyse(jax.tree.unflatten(treedef, typed), shapes)
        by_name = {name: dim for dim, name in found.names.items()}
        return found, {by_name[key]: size for key, size in self.sizes(params).items()}, leaves

    def sizes(self, params: Any) -> dict[str, int]:
        """The sizes of the axes in given parameters, where they differ from the traced ones."""
        return self.structure.sizes(
            {name: shape_of(leaf).shape for name, leaf in named_leaves(params)}, self.overrides
        )

    def _replay(self, params: Any, *inputs: Any, note: Any = None, tap: Any = None) -> Any:
        found, sizes, leaves = self._prepare(params, inputs)
        if not sizes and tap is None and not any(map(is_compact, leaves)):
            return self.apply(params, *inputs)
        replay = Replay(sizes, tap, note)
        flat = [jnp.asarray(value) for value in jax.tree.leaves(inputs)]
        outputs = replay.run(found.program, [*leaves, *flat])
        outputs = [output.materialize() if is_compact(output) else output for output in outputs]
        return jax.tree.unflatten(found.out_tree, outputs)


def check_network(who: str, net: Any) -> None:
    """Refuse what `trace` did not give."""
    if not isinstance(net, Network):
        raise TypeError(f"{who} takes a network from jc.trace, got {type(net).__name__}")


def trace(
    apply: Callable[..., Any],
    params: Any,
    *inputs: Any,
    state_outputs: Mapping[str, str] | None = None,
) -> Network:
    """Find the hidden axes of a pure function.

    Args:
        apply: `apply(params, *inputs)`, pure, of any framework: closes over no arrays, no keys and no state.
        params: a pytree of arrays (or shapes, as `jax.eval_shape` gives them).
        *inputs: example inputs; shapes are enough.
        state_outputs: where outputs are new values of parameters (batch statistics, caches): from the path of an output's
            subtree to that of the parameters' subtree which it mirrors, such as `{"1/batch_stats": "batch_stats"}`.

    Returns:
        A `Network`: print its `axes` and `refused`, call it as `net(params, *inputs)`.

    Raises:
        ValueError: for a path that is not there.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 2))}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> print(net.axes)
        axis  size  kind         producers  consumers  per channel  fibres
        ------------------------------------------------------------------
        up:1  8     elementwise  up:1       down:0     bias:0
        >>> small = {"up": jnp.ones((3, 4)), "bias": jnp.ones(4), "down": jnp.ones((4, 2))}
        >>> net(small, jnp.ones((5, 3))).shape
        (5, 2)
    """
    return Network(apply, params, inputs, state_outputs)


def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jax.ShapeDtypeStruct(tuple(leaf.shape) if is_compact(leaf) else np.shape(leaf), dtype)
