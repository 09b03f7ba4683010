"""Find the hidden axes of any pure function, and run it at the sizes of the parameters it is given.

`trace(apply, params, *inputs)` reads the function's jaxpr once; the `Network` it gives is called like `apply`, on
parameters whose hidden axes have other sizes and whose leaves may be compact arrays. Analysis costs milliseconds; a call is
one compiled program for each shape of its arguments, at the cost of the small network written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import leaf_name, named_leaves
from jaxcompress.moments.accumulators import MAX_DIM
from jaxcompress.moments.calibration import calibrate
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.axes import USES, Table, Use
from jaxcompress.networks.describe import describe
from jaxcompress.programs.algebra import Dim, Kind, Reason, atoms, mark, repeated, unify
from jaxcompress.programs.program import Program, Step, Value, build, prune
from jaxcompress.programs.rules import Analysis, Replay


class Found(NamedTuple):
    """The analysis of a function at one set of shapes."""

    program: Program
    leaves: dict[str, Value]
    analysis: Analysis
    names: dict[Dim, str]  # of the atoms of all parameters
    out_tree: Any


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
        state: Mapping[str, str] | None,
    ):
        self.apply = apply
        self.state = dict(state or {})
        self.full = jax.tree.map(shape_of, params, is_leaf=is_compact)
        self.treedef = jax.tree.structure(self.full)
        self.overrides: dict[str, int] = {}
        self._found: dict[Any, Found] = {}
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
        """For each weight its inputs and outputs, to be given as `axes=` to `jc.hashed` and the other forms."""
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

    def calibrate(
        self,
        params: Any,
        batches: Iterable[Any],
        inputs: Callable[[Any], Any] | None = None,
        *,
        mask: Callable[..., Any] | None = None,
        sample: float = 1.0,
        sensitivity: bool = False,
        max_dim: int = MAX_DIM,
        progress: bool = True,
    ) -> Moments:
        """Gather what flows along the axes, in one pass over data.

        Args:
            params: the traced tree, dense, compact or pruned.
            batches: any iterable; a batch is an array or the tuple of `apply`'s inputs.
            inputs: from a batch to the input or the tuple of inputs, where batches hold more.
            mask: from the inputs to weights of examples or positions, such as `lambda ids, mask: mask`; zero leaves
                padding out. Its axes are found again in the activations, wherever they lie there.
            sample: the share of every example's vectors (positions, patches) that are measured, at random places.
            sensitivity: also gather what every contraction means to the outputs, for `jc.budget`; a backward pass more.
            max_dim: contractions of more inputs keep variances alone.
            progress: show a progress bar.

        Returns:
            `Moments`: give them to transforms; `moments[axis].plot()` shows an axis.

        Raises:
            ValueError: for no batches, or a batch with NaN, of another arity or rank; it is named.
        """
        options = dict(
            mask=mask, sample=sample, sensitivity=sensitivity, max_dim=max_dim, progress=progress
        )
        return calibrate(self, params, batches, inputs, **options)  # type: ignore[arg-type]

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

    def _analyse(self, params: Any, inputs: tuple[Any, ...]) -> Found:
        """The analysis for parameter and input shapes, cached."""
        leaves, _ = jax.tree.flatten((params, inputs))
        key = (
            jax.tree.structure((params, inputs)),
            tuple((leaf.shape, str(leaf.dtype), weak(leaf)) for leaf in leaves),
        )
        if key not in self._found:
            if len(self._found) > 16:
                self._found.clear()
            self._found[key] = find_axes(self.apply, params, inputs, self.state)
        return self._found[key]

    def _prepare(
        self, params: Any, inputs: tuple[Any, ...]
    ) -> tuple[Found, dict[Dim, int], list[Any]]:
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
    apply: Callable[..., Any], params: Any, *inputs: Any, state: Mapping[str, str] | None = None
) -> Network:
    """Find the hidden axes of a pure function.

    Args:
        apply: `apply(params, *inputs)`, pure, of any framework: closes over no arrays, no keys and no state.
        params: a pytree of arrays (or shapes, as `jax.eval_shape` gives them).
        *inputs: example inputs; shapes are enough.
        state: where outputs are new values of parameters (batch statistics, caches): from the path of an output's
            subtree to that of the parameters' subtree which it mirrors, such as `{"1/batch_stats": "batch_stats"}`.

    Returns:
        A `Network`: print its `axes` and `refused`, call it as `net(params, *inputs)`.

    Raises:
        ValueError: for a state path that is not there.

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
    return Network(apply, params, inputs, state)


def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jax.ShapeDtypeStruct(tuple(leaf.shape) if is_compact(leaf) else np.shape(leaf), dtype)


def weak(leaf: Any) -> bool:
    return bool(getattr(leaf, "weak_type", False))


def find_axes(
    apply: Callable[..., Any], params: Any, inputs: tuple[Any, ...], state: Mapping[str, str]
) -> Found:
    """Trace a function at given shapes, and analyse it."""
    closed, out_shape = jax.make_jaxpr(apply, return_shape=True)(params, *inputs)
    program = prune(build(closed))
    names = [name for name, _ in named_leaves(params)]
    analysis = Analysis()
    leaves: dict[str, Value] = {}
    for index, value in enumerate(program.inputs):
        value.dims = [Dim(size) if size > 1 else None for size in value.shape]
        if index < len(names):
            value.direct = True
            value.slots = [
                frozenset({(names[index], position)}) for position in range(len(value.shape))
            ]
            leaves[names[index]] = value
            analysis.company.append(((), tuple(value.dims)))
            continue
        value.data = True
        for dim in value.dims:
            mark(dim, Kind.OPAQUE, Reason("input", "it is visible in the inputs"))
    analysis.run(program)
    mirrors = mirrored(out_shape, state, leaves)
    for (path, _), value in zip(
        jax.tree_util.tree_flatten_with_path(out_shape)[0], program.outputs, strict=True
    ):
        leaf = mirrors.get(leaf_name(path))
        if leaf is not None and leaf.shape == value.shape:
            for one, other in zip(leaf.dims, value.dims, strict=True):
                if one is not None and other is not None:
                    unify(
                        one, other, Reason("output", "a mirrored output is laid out in another way")
                    )
            continue
        for dim in value.dims:
            mark(dim, Kind.OPAQUE, Reason("output", "it is visible in the outputs"))
    for _, dims in analysis.company:
        for dim in dims:
            for atom in repeated(dim) if dim is not None else ():
                mark(atom, Kind.OPAQUE, Reason("reshape", "it is multiplied with itself"))
    return Found(
        program, leaves, analysis, name_atoms(leaves, analysis), jax.tree.structure(out_shape)
    )


def mirrored(
    out_shape: Any, state: Mapping[str, str], leaves: dict[str, Value]
) -> dict[str, Value]:
    """For each output that mirrors a parameter leaf, that leaf."""
    outputs = [leaf_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(out_shape)[0]]
    found = {}
    for output, target in state.items():
        inside = [name for name in outputs if name == output or name.startswith(f"{output}/")]
        if not inside:
            raise ValueError(f"state: no output is at {output!r}; there are: {', '.join(outputs)}")
        for name in inside:
            leaf = target + name[len(output) :]
            if leaf not in leaves:
                raise ValueError(
                    f"state: the output {name!r} mirrors no parameter {leaf!r}; there are: {', '.join(leaves)}"
                )
            found[name] = leaves[leaf]
    return found


def name_atoms(leaves: dict[str, Value], analysis: Analysis) -> dict[Dim, str]:
    """A key for every axis that a parameter has: its first producing slot, else its first slot."""
    slots: dict[Dim, list[tuple[bool, str]]] = {}
    for name, value in leaves.items():
        for position, dim in enumerate(value.dims):
            inside = list(dict.fromkeys(atoms(dim))) if dim is not None else []
            produces = bool(analysis.roles.get((name, position), set()) & {"produce"})
            for index, atom in enumerate(inside):
                suffix = f".{index}" if len(inside) > 1 else ""
                slots.setdefault(atom, []).append((not produces, f"{name}:{position}{suffix}"))
    return {atom: min(found, key=lambda each: each[0])[1] for atom, found in slots.items()}
