"""Where the outputs of parameters lie in a product: which of its columns each leaf makes.

A kernel may be put together from several leaves, as the gates of a recurrent cell are, and so may
its bias. Numbers in the place of the leaves show where they go: the steps between the leaves and
the product are run on them. Costs one small array a leaf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxcompress.networks.axes import Site, Structure
from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.program import Constant, Operand, Step, Value
from jaxcompress.programs.rules import RULES, UNKNOWN, Replay

Columns = dict[str, Int[np.ndarray, " outputs"]]
"""For each leaf the product's column of each of its outputs, in the leaf's own order."""


def kernel_columns(
    traced: TracedProgram, structure: Structure, site: Site, sizes: Mapping[str, int]
) -> Columns | None:
    """The columns of the leaves of a contraction's kernel.

    Args:
        traced: the program.
        structure: its axes.
        site: the contraction.
        sizes: of the axes whose size differs from the traced one.

    Returns:
        None where the kernel holds anything else than its leaves' entries.
    """
    contraction = traced.analysis.contractions[site.key]
    if contraction.step is None:
        return None
    weight = contraction.step.inputs[1 - contraction.operand]
    numbers = _numbered(structure, site.inputs, sizes)
    grid = _evaluate(traced, weight, numbers, sizes) if weight.direct else None
    if grid is None:
        return None
    rest = [place for place in range(grid.ndim) if place not in contraction.free]
    lines = np.transpose(grid, (*rest, *contraction.free))
    return _places(lines[(0,) * len(rest)].ravel(), numbers)


def bias_columns(
    traced: TracedProgram, structure: Structure, site: Site, sizes: Mapping[str, int]
) -> Columns | None:
    """The columns of the leaves of a contraction's bias; None as for its kernel."""
    bias = traced.analysis.biases.get(site.key)
    if bias is None:
        return None
    leaves = dict.fromkeys(sorted(bias.value.leaves), ())
    numbers = _numbered(structure, leaves, sizes)
    grid = _evaluate(traced, bias.value, numbers, sizes)
    if grid is None:
        return None
    # the bias may have been broadcast to all rows
    varying = tuple(
        slice(None) if (np.diff(grid, axis=place) != 0).any() else slice(1)
        for place in range(grid.ndim)
    )
    return _places(grid[varying].ravel(), numbers)


def _numbered(
    structure: Structure, inputs: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """For each leaf an array of its shape in which every output has a number of its own."""
    arrays, start = {}, 0
    for name, contracted in inputs.items():
        shape = [layout.resized(sizes).size for layout in structure.layouts[name]]
        kept = [1 if place in contracted else size for place, size in enumerate(shape)]
        count = math.prod(kept)
        numbers = np.arange(start, start + count, dtype=np.float32).reshape(kept)
        arrays[name] = np.broadcast_to(numbers, shape)
        start += count
    return arrays


def _places(line: np.ndarray, numbers: Mapping[str, np.ndarray]) -> Columns | None:
    """Where the numbers of every leaf are in a line of all of them."""
    if len(set(line.tolist())) < len(line):
        return None
    place = {int(number): index for index, number in enumerate(line)}
    columns = {}
    for name, array in numbers.items():
        own = dict.fromkeys(array.ravel().astype(int).tolist())
        if not own.keys() <= place.keys():
            return None
        columns[name] = np.array([place[number] for number in own])
    return columns if sum(map(len, columns.values())) == len(line) else None


def _evaluate(
    traced: TracedProgram,
    value: Value,
    leaves: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
) -> np.ndarray | None:
    """A value that is made of some leaves; None where it needs anything else."""
    known: dict[int, Operand] = {
        id(traced.leaves[name]): jnp.asarray(array) for name, array in leaves.items()
    }
    dims = {name: dim for dim, name in traced.names.items()}
    replay = Replay({dims[key]: size for key, size in sizes.items()})

    def read(value: Value) -> Operand:
        if id(value) in known:
            return known[id(value)]
        if isinstance(value, Constant):
            return value.array
        source = traced.analysis.made[id(value)]
        if isinstance(source, Value):
            return read(source)
        # a number is not rounded as a cast parameter is
        results = [read(source.inputs[0])] if source.name == CAST else _run(source, replay)
        known.update(zip(map(id, source.outputs), results, strict=True))
        return known[id(value)]

    def _run(step: Step, replay: Replay) -> list[Operand]:
        rule = RULES.get(step.name, UNKNOWN)
        return rule.replay(step, [read(operand) for operand in step.inputs], replay)

    try:
        return np.asarray(read(value))
    except KeyError:  # another leaf, or a slice of a stack
        return None


CAST = "convert_element_type"
