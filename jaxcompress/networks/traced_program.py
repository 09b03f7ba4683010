"""The program of a function at given shapes, with the axes of its parameters located.

The jaxpr is read once, the rules of its primitives relate the dimensions of all values, and every
class of related dimensions that a parameter has gets a key. Costs milliseconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from jaxcompress.arrays.paths import leaf_name, named_leaves
from jaxcompress.checks import arrays_in, explained
from jaxcompress.programs.algebra import Dim, Kind, Reason, atoms, mark, repeated, several, unify
from jaxcompress.programs.program import Program, Slot, Value, build, prune
from jaxcompress.programs.rules import Analysis


@dataclasses.dataclass(frozen=True, eq=False)
class TracedProgram:
    """The analysis of a function at one set of shapes.

    Attributes:
        program: the function's steps.
        leaves: the value of every parameter leaf, by name.
        analysis: the result of the rules.
        names: the key of every axis that a parameter has.
        out_tree: the tree of the outputs.
    """

    program: Program
    leaves: dict[str, Value]
    analysis: Analysis
    names: dict[Dim, str]
    out_tree: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class TraceCache:
    """`find_axes` of one function, with the results for the latest shapes.

    Attributes:
        apply: the function of (params, *inputs).
        state_outputs: paths of outputs that mirror parameters, as in `jc.trace`.
        results: the analyses by shapes, dtypes and weak types.
    """

    apply: Callable[..., PyTree]
    state_outputs: Mapping[str, str]
    results: dict[object, TracedProgram] = dataclasses.field(default_factory=dict)

    def __call__(self, params: PyTree, inputs: tuple[PyTree, ...]) -> TracedProgram:
        """The analysis at the shapes of parameters and inputs."""
        leaves, treedef = jax.tree.flatten((params, inputs))
        shapes = tuple((leaf.shape, str(leaf.dtype), is_weak(leaf)) for leaf in leaves)
        if (treedef, shapes) not in self.results:
            if len(self.results) > 16:
                self.results.clear()
            traced = find_axes(self.apply, params, inputs, self.state_outputs)
            self.results[treedef, shapes] = traced
        return self.results[treedef, shapes]


def is_weak(leaf: object) -> bool:
    """Whether a leaf's dtype gives way to others, as a Python number's does."""
    number = isinstance(leaf, (int, float, complex)) and not isinstance(leaf, (bool, np.generic))
    return number or bool(getattr(leaf, "weak_type", False))


def find_axes(
    apply: Callable[..., PyTree],
    params: PyTree,
    inputs: tuple[PyTree, ...],
    state_outputs: Mapping[str, str],
) -> TracedProgram:
    """Trace a function at given shapes, and analyse it."""
    name = getattr(apply, "__name__", type(apply).__name__)
    with explained(f"{name} cannot be called with the parameters and inputs {arrays_in(inputs)}"):
        closed, out_shape = jax.make_jaxpr(apply, return_shape=True)(params, *inputs)
    program = prune(build(closed))
    analysis = Analysis()
    leaves = parameters(program, [name for name, _ in named_leaves(params)])
    analysis.values += [((), tuple(value.dims)) for value in leaves.values()]
    mark_inputs(program.inputs[len(leaves) :])
    analysis.run(program)
    paths = [leaf_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(out_shape)[0]]
    mark_outputs(paths, program.outputs, mirrored(paths, leaves, state_outputs))
    mark_repeated(analysis)
    out_tree = jax.tree.structure(out_shape)
    return TracedProgram(program, leaves, analysis, name_axes(leaves, analysis), out_tree)


def fresh_dims(value: Value) -> list[Dim | None]:
    """A new axis for every dimension of more than one position."""
    return [Dim(size) if several(size) else None for size in value.shape]


def parameters(program: Program, names: Sequence[str]) -> dict[str, Value]:
    """The program's parameters by name, each dimension an axis and a slot of its own."""
    leaves = dict(zip(names, program.inputs, strict=False))
    for name, value in leaves.items():
        value.dims, value.direct = fresh_dims(value), True
        value.slots = [frozenset({Slot(name, index)}) for index in range(len(value.shape))]
    return leaves


def mark_inputs(inputs: Sequence[Value]) -> None:
    """Make the axes of the inputs opaque: no map may change them."""
    for value in inputs:
        value.dims, value.data = fresh_dims(value), True
        for dim in value.dims:
            mark(dim, Kind.OPAQUE, Reason("input", "it is visible in the inputs"))


def mark_outputs(
    paths: Sequence[str], outputs: Sequence[Value], mirrors: Mapping[str, Value]
) -> None:
    """Make the axes of the outputs opaque; a mirroring output has its parameter's axes instead."""
    for path, value in zip(paths, outputs, strict=True):
        leaf = mirrors.get(path)
        if leaf is None or leaf.shape != value.shape:
            for dim in value.dims:
                mark(dim, Kind.OPAQUE, Reason("output", "it is visible in the outputs"))
            continue
        for one, other in zip(leaf.dims, value.dims, strict=True):
            if one is not None and other is not None:
                why = Reason("output", "a mirrored output is laid out in another way")
                unify(one, other, why)


def mirrored(
    outputs: Sequence[str], leaves: Mapping[str, Value], state_outputs: Mapping[str, str]
) -> dict[str, Value]:
    """The parameter leaf of every output that is a new value of one, by the output's path."""
    mirrors = {}
    for path, target in state_outputs.items():
        inside = [name for name in outputs if name == path or name.startswith(f"{path}/")]
        if not inside:
            there = ", ".join(outputs)
            raise ValueError(f"state_outputs: no output is at {path!r}; there are: {there}")
        if len(set(inside)) < len(inside):
            raise ValueError(f"state_outputs: two outputs at {path!r} are named alike: {inside}")
        for name in inside:
            leaf = target + name[len(path) :]
            if leaf not in leaves:
                raise ValueError(
                    f"state_outputs: the output {name!r} mirrors no parameter {leaf!r}; "
                    f"there are: {', '.join(leaves)}"
                )
            mirrors[name] = leaves[leaf]
    return mirrors


def mark_repeated(analysis: Analysis) -> None:
    """Make axes opaque that one dimension has twice: a product of an axis with itself."""
    for _, dims in analysis.values:
        for dim in dims:
            for atom in repeated(dim) if dim is not None else ():
                mark(atom, Kind.OPAQUE, Reason("reshape", "it is multiplied with itself"))


def name_axes(leaves: dict[str, Value], analysis: Analysis) -> dict[Dim, str]:
    """The key of every axis that a parameter has: its first producing slot, else its first slot.

    A dimension of several axes gives each a number: "kernel:1.0".
    """
    keys: dict[Dim, str] = {}
    produced: set[Dim] = set()
    for name, value in leaves.items():
        for position, dim in enumerate(value.dims):
            slot = Slot(name, position)
            inside = list(dict.fromkeys(atoms(dim))) if dim is not None else []
            for index, atom in enumerate(inside):
                key = f"{slot}.{index}" if len(inside) > 1 else str(slot)
                keys.setdefault(atom, key)
                if atom not in produced and "produce" in analysis.roles.get(slot, set()):
                    produced.add(atom)
                    keys[atom] = key
    return keys
