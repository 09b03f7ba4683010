"""Find the hidden axes of a pure function, and run it at the sizes of the parameters it is given.

`trace(apply, params, *inputs)` reads the function's jaxpr once. The `Network` it returns is called
like `apply`, on parameters whose hidden axes have other sizes and whose leaves may be compact
arrays. The analysis costs milliseconds; a call is one compiled program for each shape of its
arguments, at the cost of the small network written by hand.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

from jaxcompress.arrays.base import CompactArray, is_compact, materialize
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checks import checked, explained, function, mapping, shown, whole_number
from jaxcompress.networks.arguments import check_arguments, naming_flags
from jaxcompress.networks.axes import USES, Axis, Refused, Structure, Use
from jaxcompress.networks.describe import describe
from jaxcompress.networks.traced_program import TraceCache, TracedProgram, is_weak
from jaxcompress.programs.program import Step, Value
from jaxcompress.programs.records import Tap
from jaxcompress.programs.rules import Replay
from jaxcompress.tables import Table


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A traced function: its hidden axes as tables, and itself at other sizes. Made by `jc.trace`.

    Attributes:
        traces: the function and its analyses.
        full: the traced parameters' shapes and dtypes.
        inputs: the traced inputs' shapes and dtypes.
        structure: the hidden axes, refusals and layouts as plain data.
        given_sizes: sizes of axes given to `resized`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> net
        Network(apply, 2 leaves; hidden axes: 1 elementwise (up:1 of 8); 2 refused)
    """

    traces: TraceCache
    full: PyTree[jax.ShapeDtypeStruct]
    inputs: tuple[PyTree[jax.ShapeDtypeStruct], ...]
    structure: Structure
    given_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def apply(self) -> Callable[..., PyTree]:
        """The traced function."""
        return self.traces.apply

    @property
    def state_outputs(self) -> Mapping[str, str]:
        """Paths of outputs that are new values of parameters, with the parameters' paths."""
        return self.traces.state_outputs

    @property
    def axes(self) -> Table[Axis]:
        """The hidden axes, a table that prints.

        Each row (`networks.Axis`) shows an axis's key, its size, its kind, which tells the maps
        that are good for it, the parameters that produce and consume it, per-channel parameters
        such as biases, and fibres, along which a map may differ. `net.axes["up:1"]` is one row.

        Example:
            >>> import jax.numpy as jnp, jaxcompress as jc
            >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
            >>> net = jc.trace(lambda p, x: x @ p["up"] @ p["down"], params, jnp.ones((5, 3)))
            >>> print(net.axes)
            axis  size  kind    producers  consumers  per channel  fibres
            -------------------------------------------------------------
            up:1  8     linear  up:1       down:0
        """
        return self.structure.axes

    @property
    def refused(self) -> Table[Refused]:
        """The axes of parameters that no map may change, a table that prints.

        Each row (`networks.Refused`) shows an axis's key and size, the primitive that fixes it, the
        reason in a sentence, and the place in the source where it is known.

        Example:
            >>> import jax, jax.numpy as jnp, jaxcompress as jc
            >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
            >>> def apply(p, x):
            ...     return jax.nn.softmax(x @ p["up"]) @ p["down"]
            >>> jc.trace(apply, params, jnp.ones((5, 3))).refused["up:1"].reason
            'its max is taken, as in a softmax or a pooling over it'
        """
        return self.structure.refused

    @property
    def matrix_axes(self) -> dict[str, MatrixAxes]:
        """The input and output dimensions of each weight, for `matrix_axes=` of `jc.hashed`."""
        return self.structure.matrix_axes

    def __call__(self, params: PyTree, *inputs: PyTree) -> PyTree:
        """The outputs of `apply`, at the sizes of the given parameters.

        Args:
            params: the traced tree. Hidden axes may have other sizes; leaves may be compact arrays.
            *inputs: the inputs of `apply`; batch size and sequence length may differ from the
                traced ones.

        Raises:
            ValueError: for parameters whose sizes contradict each other; the leaf is named.
        """
        # before jax.jit, which would refuse a leaf that is no array without its name
        check_arrays("the network's parameters", params)
        check_arrays("the network's inputs", inputs)
        return self._compiled(params, *inputs)

    @functools.cached_property
    def _compiled(self) -> Callable[..., PyTree]:
        return jax.jit(self.replay)

    def resized(self, sizes: Mapping[str, int]) -> Network:
        """The same network with given sizes of axes that the parameters' shapes leave open.

        Args:
            sizes: number of channels by axis, such as the heads of an attention layer.

        Raises:
            ValueError: for a key that is no hidden axis.
        """
        if not isinstance(sizes, Mapping):
            raise TypeError(
                f"resized takes a mapping from axes to sizes, such as {{'up:1': 8}}, got "
                f"{shown(sizes)}"
            )
        unknown = sorted(set(sizes) - set(self.axes.keys()))
        if unknown:
            there = ", ".join(self.axes.keys())
            raise ValueError(f"resized: {unknown} are no hidden axes; there are: {there}")
        given = {key: whole_number(f"resized: {key}", size) for key, size in sizes.items()}
        return dataclasses.replace(self, given_sizes={**self.given_sizes, **given})

    def explain(self, params: PyTree, *inputs: PyTree) -> Table[Use]:
        """How the network uses each compact array of `params`, a table that prints.

        A row (`networks.Use`) shows a leaf, how it is used ("contracted" or "looked up" by the
        form's own fast product, or "materialised", which costs the dense product), the primitive,
        and the place in the source. Nothing is computed.

        Args:
            params: the traced tree with compact leaves.
            *inputs: example inputs, by default the traced ones; shapes are enough.

        Example:
            >>> import jax.numpy as jnp, jaxcompress as jc
            >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
            >>> def apply(p, x):
            ...     return x @ p["up"] @ jnp.sin(p["down"])
            >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
            >>> uses = net.explain(jc.hashed(1 / 2)(params))
            >>> [(use.leaf, use.how, use.primitive) for use in uses]
            [('up', 'contracted', 'dot_general'), ('down', 'materialised', 'sin')]
        """
        uses: dict[Use, None] = {}
        compact = {name for name, leaf in named_leaves(params) if is_compact(leaf)}

        def note(step: Step, value: Value, how: str) -> None:
            leaves = {slot.leaf for slot in frozenset().union(*value.slots)}
            for name in sorted(leaves & compact):
                uses[Use(name, how, step.name, step.where)] = None

        check_arrays("the network's parameters", params)
        shapes = shapes_of(inputs or self.inputs)
        jax.eval_shape(functools.partial(self.replay, note=note), params, *shapes)
        return Table(tuple(uses), USES, "no compact array is used")

    def sizes(self, params: PyTree) -> dict[str, int]:
        """The sizes of the axes in given parameters, where they differ from the traced ones."""
        shapes = {name: shape_of(leaf).shape for name, leaf in named_leaves(params)}
        return self.structure.sizes(shapes, self.given_sizes)

    def traced_program(self, params: PyTree, *inputs: PyTree) -> TracedProgram:
        """The analysis at the full shapes of the parameters, with the dtypes and inputs given.

        Raises:
            ValueError: for another tree of parameters.
        """
        check_arrays("the network's parameters", params)
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_compact)
        if treedef != jax.tree.structure(self.full):
            traced, given = (
                {name for name, _ in named_leaves(tree)} for tree in (self.full, params)
            )
            raise ValueError(
                "the network was traced with another tree of parameters: "
                f"only traced: {sorted(traced - given)}, only given: {sorted(given - traced)}"
            )
        typed = [
            jax.ShapeDtypeStruct(full.shape, dtype_of(leaf), weak_type=is_weak(leaf))
            for full, leaf in zip(jax.tree.leaves(self.full), leaves, strict=True)
        ]
        return self.traces(jax.tree.unflatten(treedef, typed), shapes_of(inputs))

    def replay(
        self,
        params: PyTree,
        *inputs: PyTree,
        note: Callable[[Step, Value, str], None] | None = None,
        tap: Tap | None = None,
        unroll: bool = False,
    ) -> PyTree:
        """The outputs of `apply`, step by step and not compiled: what a call compiles.

        Args:
            params: as in a call.
            *inputs: as in a call.
            note: called with (step, value, how) wherever a compact array is used.
            tap: receives the operands and the result of every contraction.
            unroll: whether loops over time are written out; a tap sees them as they are.
        """
        traced = self.traced_program(params, *inputs)
        leaves = jax.tree.leaves(params, is_leaf=is_compact)
        sizes = self.sizes(params)
        if not (sizes or tap or unroll or any(map(is_compact, leaves))):
            return self.apply(params, *inputs)
        dims = {name: dim for dim, name in traced.names.items()}
        replay = Replay({dims[key]: size for key, size in sizes.items()}, tap, note, unroll)
        values = [jnp.asarray(value) for value in jax.tree.leaves(inputs)]
        outputs = replay.run(traced.program, [*leaves, *values])
        return materialize(jax.tree.unflatten(traced.out_tree, outputs))

    def __repr__(self) -> str:
        name = getattr(self.apply, "__name__", type(self.apply).__name__)
        kinds: dict[str, list[Axis]] = {}
        for axis in self.axes:
            kinds.setdefault(axis.kind, []).append(axis)
        hidden = ", ".join(summary(kind, axes) for kind, axes in kinds.items()) or "none"
        return (
            f"Network({name}, {len(self.structure.layouts)} leaves; hidden axes: {hidden}; "
            f"{len(self.refused)} refused)"
        )


def summary(kind: str, axes: list[Axis]) -> str:
    """The axes of one kind in a few words: their number, the first ones and their sizes."""
    shown = ", ".join(f"{axis.key} of {axis.size}" for axis in axes[:2])
    return f"{len(axes)} {kind} ({shown}{', ...' if len(axes) > 2 else ''})"


def network(name: str, value: Network) -> Network:
    """The kind of an argument that is a network."""
    if not isinstance(value, Network):
        who = name.removesuffix(": net")
        raise TypeError(f"{who} takes a network from jc.trace, got {type(value).__name__}")
    return value


def traced(name: str, value: Network | Structure) -> Network | Structure:
    """The kind of an argument that is a network, or the structure that a file had of one."""
    return value if isinstance(value, Structure) else network(name, value)


def structure_of(net: Network | Structure) -> Structure:
    """The axes that a transform keeps of a network, or of the structure that a file had of it."""
    return net if isinstance(net, Structure) else net.structure


@checked(apply=function("apply(params, *inputs)"), state_outputs=mapping)
def trace(
    apply: Callable[..., PyTree],
    params: PyTree,
    *inputs: PyTree,
    state_outputs: Mapping[str, str] | None = None,
) -> Network:
    """Find the hidden axes of a pure function.

    An axis is hidden if some parameters produce it, others consume it, and neither the inputs nor
    the outputs have it: the channels between two layers. Its size can change, and the function
    cannot tell.

    Args:
        apply: `apply(params, *inputs)`, a pure function of any framework. It closes over no arrays,
            keys or state.
        params: a pytree of arrays, or of shapes as `jax.eval_shape` returns them.
        *inputs: example inputs; shapes are enough.
        state_outputs: for outputs that are new values of parameters (batch statistics, caches):
            from the path of an output's subtree to that of the parameters' subtree which it
            mirrors, such as `{"1/batch_stats": "batch_stats"}`.

    Returns:
        A `Network`: print its `axes` and `refused`, call it as `net(params, *inputs)`.

    Raises:
        TypeError: for a parameter or an input that is no array, such as a function or a string, or
            a flag that the function branches on: the leaf is named.
        ValueError: for a path that is not there, or two parameters of one name.

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
    if not all(isinstance(path, str) for path in (state_outputs or {}).values()):
        raise TypeError(f"trace: state_outputs maps paths to paths, got {shown(state_outputs)}")
    check_arguments(params, inputs)
    full = jax.tree.map(shape_of, params, is_leaf=is_compact)
    shapes = shapes_of(inputs)
    traces = TraceCache(apply, dict(state_outputs or {}))
    with naming_flags(params, inputs):
        traced = traces(full, shapes)
    return Network(traces, full, shapes, describe(traced))


def check_arrays(what: str, tree: PyTree) -> None:
    """Refuse leaves that are no arrays, shapes or numbers, by name."""
    for name, leaf in named_leaves(tree):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, (bool, int, float, complex)):
            raise ValueError(f"{what}: {name or 'the leaf'} is no array: {shown(leaf)}")


def shape_of(leaf: jax.Array | CompactArray) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a leaf, compact or not."""
    shape = tuple(leaf.shape) if is_compact(leaf) else np.shape(leaf)
    return jax.ShapeDtypeStruct(shape, dtype_of(leaf), weak_type=is_weak(leaf))


def dtype_of(leaf: ArrayLike | CompactArray) -> DTypeLike:
    """The dtype of a leaf, compact or not, or of a Python number."""
    dtype = getattr(leaf, "dtype", None)
    return jnp.result_type(leaf) if dtype is None else dtype


def shapes_of(inputs: tuple[PyTree, ...]) -> tuple[PyTree[jax.ShapeDtypeStruct], ...]:
    """The shapes and dtypes of inputs."""
    with explained("the inputs are no trees of arrays"):
        return jax.eval_shape(lambda *values: values, *inputs)
