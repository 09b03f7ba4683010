"""A function's program with its hidden axes located: what `trace` finds at one set of shapes.

The jaxpr is read once, its rules relate the dimensions of all values, and every class of related
dimensions that a parameter has gets a key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxcompress.arrays.paths import leaf_name, named_leaves
from jaxcompress.programs.algebra import Dim, Kind, Reason, atoms, mark, repeated, unify
from jaxcompress.programs.program import Program, Slot, Value, build, prune
from jaxcompress.programs.rules import Analysis


class TracedProgram(NamedTuple):
    """The analysis of a function at one set of shapes."""

    program: Program
    leaves: dict[str, Value]
    analysis: Analysis
    names: dict[Dim, str]  # of the atoms of all parameters
    out_tree: Any


def weak(leaf: Any) -> bool:
    return bool(getattr(leaf, "weak_type", False))


def find_axes(
    apply: Callable[..., Any], params: Any, inputs: tuple[Any, ...], state: Mapping[str, str]
) -> TracedProgram:
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
                frozenset({Slot(names[index], position)}) for position in range(len(value.shape))
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
    return TracedProgram(
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
            raise ValueError(
                f"state_outputs: no output is at {output!r}; there are: {', '.join(outputs)}"
            )
        for name in inside:
            leaf = target + name[len(output) :]
            if leaf not in leaves:
                raise ValueError(
                    f"state_outputs: the output {name!r} mirrors no parameter {leaf!r}; there are: {', '.join(leaves)}"
                )
            found[name] = leaves[leaf]
    return found


def name_atoms(leaves: dict[str, Value], analysis: Analysis) -> dict[Dim, str]:
    """A key for every axis that a parameter has: its first producing slot, else its first slot."""
    slots: dict[Dim, list[tuple[bool, str]]] = {}
    for name, value in leaves.items():
        for position, dim in enumerate(value.dims):
            inside = list(dict.fromkeys(atoms(dim))) if dim is not None else []
            produces = bool(analysis.roles.get(Slot(name, position), set()) & {"produce"})
            for index, atom in enumerate(inside):
                suffix = f".{index}" if len(inside) > 1 else ""
                slots.setdefault(atom, []).append((not produces, f"{Slot(name, position)}{suffix}"))
    return {atom: min(found, key=lambda each: each[0])[1] for atom, found in slots.items()}
