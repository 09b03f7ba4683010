"""How much each activation vector counts: padding is left out, positions are sampled.

A mask is located in the activations by its dimensions, wherever they lie: (batch, length) in
(batch, heads, length, size) as well as in (batch * length, size). Sampling takes the same fraction
of the vectors of every example, at places drawn anew for each batch; an example that is a single
vector is always taken.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import Dim, find, parts
from jaxcompress.programs.program import Value, build
from jaxcompress.programs.rules import Analysis

log = logging.getLogger(__name__)


class Factor(NamedTuple):
    """One factor of an activation's dimension, such as the batch in (batch * length).

    Attributes:
        dim: the dimension in the analysis; None where it is unknown.
        size: at present.
        parametric: whether it is an axis of parameters, which a mask of the data never has.
    """

    dim: Dim | None
    size: int
    parametric: bool


@dataclasses.dataclass(frozen=True, eq=False)
class VectorWeights:
    """The weights of one batch's activation vectors, and which of the vectors are taken.

    Attributes:
        mask: weights of examples or positions, or None.
        dims: the mask's dimensions in the network's analysis; None for one that it made itself.
        input_dims: the dimensions of the network's inputs that its program uses.
        parameter_axes: the dimensions that are axes of parameters.
        sample: the fraction of every example's vectors that is taken, in (0, 1].
        key: for the random places of a sample.
    """

    mask: Float[Array, "*mask"] | None = None
    dims: tuple[Dim | None, ...] = ()
    input_dims: tuple[Dim, ...] = ()
    parameter_axes: Collection[Dim] = ()
    sample: float = 1.0
    key: jax.Array | None = None

    def in_turn(self, along: Dim | None, index: Int[Array, ""] | None) -> VectorWeights:
        """The weights inside one turn of a loop along an axis."""
        if self.mask is None or along is None or index is None:
            return self
        for place, dim in enumerate(self.dims):
            if dim is not None and find(dim) is find(along):
                mask = jnp.take(self.mask, index, axis=place)
                dims = self.dims[:place] + self.dims[place + 1 :]
                return dataclasses.replace(self, mask=mask, dims=dims)
        return self

    def take(
        self,
        name: str,
        x: jax.Array,
        dims: Sequence[Dim | None],
        positions: Sequence[int],
        batch: Sequence[int],
    ) -> tuple[Float[Array, "*batch rows m"], Float[Array, " rows"]]:
        """Activations as weighted vectors.

        Args:
            name: of the contraction, which seeds the draw of the places.
            x: the activations.
            dims: their dimensions in the analysis.
            positions: the dimensions that make a vector.
            batch: the dimensions that stay apart.

        Returns:
            The vectors in float32, zero where they do not count, and their weights.
        """
        rest = [index for index in range(x.ndim) if index not in positions and index not in batch]
        sizes = [x.shape[index] for index in rest]
        places = math.prod(sizes[1:])
        vectors = jnp.transpose(x, (*batch, *rest, *positions)).reshape(
            *(x.shape[index] for index in batch),
            sizes[0] if sizes else 1,
            places,
            math.prod(x.shape[index] for index in positions),
        )
        taken = self.sampled_places(name, places)
        if taken is not None:
            vectors = jnp.take(vectors, taken, axis=-2)
        return self.weighted(name, vectors, sizes, [dims[index] for index in rest], taken)

    def sampled_places(self, name: str, count: int) -> Int[Array, " taken"] | None:
        """Which of `count` places of every example are taken; None for all of them."""
        taken = max(1, round(self.sample * count))
        if self.key is None or taken >= count:
            return None
        key = jax.random.fold_in(self.key, zlib.crc32(name.encode()))
        return jax.random.permutation(key, count)[:taken]

    def weighted(
        self,
        name: str,
        vectors: Float[Array, "*batch examples places m"],
        sizes: Sequence[int],
        dims: Sequence[Dim | None],
        taken: Int[Array, " taken"] | None,
    ) -> tuple[Float[Array, "*batch rows m"], Float[Array, " rows"]]:
        """Vectors of examples in one list, with their weights."""
        weights = self.weights(name, sizes, dims).reshape(sizes[0] if sizes else 1, -1)
        if taken is not None:
            weights = jnp.take(weights, taken, axis=-1)
        weights = weights.reshape(-1)
        rows = vectors.reshape(*vectors.shape[:-3], -1, vectors.shape[-1]).astype(jnp.float32)
        return jnp.where(weights[:, None] > 0, rows, 0), weights  # padding may hold NaN

    def weights(
        self, name: str, sizes: Sequence[int], dims: Sequence[Dim | None]
    ) -> Float[Array, "*sizes"]:
        """A weight for each position of a grid; ones, with a warning, where the mask has no place.

        Args:
            name: of the contraction, for the warning.
            sizes: of the grid.
            dims: its dimensions in the analysis.
        """
        if self.mask is None:
            return jnp.ones(sizes, jnp.float32)
        factors: list[Factor] = []
        for dim, size in zip(dims, sizes, strict=True):
            factors += self._factors(dim, size)
        places = self.locate(name, self.mask.shape, factors)
        if places is None:
            return jnp.ones(sizes, jnp.float32)
        return spread(self.mask, places, [factor.size for factor in factors]).reshape(sizes)

    def locate(
        self, name: str, extents: Sequence[int], factors: Sequence[Factor]
    ) -> list[int | None] | None:
        """For each axis of the mask which of the factors it is; None for one that was pooled over.

        An axis is the factor of its own dimension. One that the mask made itself, of no dimension
        of the inputs, is the only free factor of its size. Returns None, with a warning, where
        that is ambiguous or no axis is located.
        """
        places = [
            _place_of(dim, extent, factors) for dim, extent in zip(self.dims, extents, strict=True)
        ]
        if len(extents) <= len(factors) and all(
            axis in _candidates(axis, extent, places, factors)
            for axis, extent in enumerate(extents)
        ):
            return list(range(len(extents)))  # its axes lead the activations', in their order
        for axis, extent in enumerate(extents):
            if places[axis] is not None or extent == 1 or self._of_inputs(self.dims[axis]):
                continue
            candidates = _candidates(axis, extent, places, factors)
            if len(candidates) > 1:
                log.warning("%s: several axes could be the mask's; every vector counts", name)
                return None
            places[axis] = candidates[0] if candidates else None
        if all(place is None for place in places):
            log.warning("%s: no axis of the mask is an axis here; every vector counts", name)
            return None
        return places

    def _of_inputs(self, dim: Dim | None) -> bool:
        return dim is not None and any(find(dim) is find(other) for other in self.input_dims)

    def _factors(self, dim: Dim | None, size: int) -> list[Factor]:
        """A dimension's factors; one unknown factor where their sizes do not multiply to `size`."""
        dims = parts(dim, "product") if dim is not None else []
        if len(dims) == 1:
            return [Factor(dims[0], size, dims[0] in self.parameter_axes)]
        if math.prod(part.size for part in dims) != size:
            return [Factor(None, size, False)]
        return [Factor(part, part.size, part in self.parameter_axes) for part in dims]


def _place_of(dim: Dim | None, extent: int, factors: Sequence[Factor]) -> int | None:
    """Where a dimension is among factors, at the same size."""
    root = None if dim is None else find(dim)
    for place, factor in enumerate(factors):
        if root is not None and factor.dim is root and factor.size == extent:
            return place
    return None


def _candidates(
    axis: int, extent: int, places: Sequence[int | None], factors: Sequence[Factor]
) -> list[int]:
    """The factors that an axis of a mask can be: its own, else those of its size that are free."""
    own = places[axis]
    if own is not None:
        return [own]
    return [
        place
        for place, factor in enumerate(factors)
        if factor.size == extent and not factor.parametric and place not in places
    ]


def spread(
    mask: Float[Array, "*mask"], places: Sequence[int | None], sizes: Sequence[int]
) -> Float[Array, "*sizes"]:
    """Broadcast a mask to a grid.

    Args:
        mask: weights.
        places: for each axis of the mask its axis of the grid; over one without, the maximum is
            taken, since pooled activations count where any of them does.
        sizes: of the grid.
    """
    mask = mask.max(tuple(axis for axis, place in enumerate(places) if place is None))
    present = [place for place in places if place is not None]
    order = sorted(range(len(present)), key=present.__getitem__)
    shape = [size if place in present else 1 for place, size in enumerate(sizes)]
    return jnp.broadcast_to(jnp.transpose(mask, order).reshape(shape), sizes)


def vector_weights(
    traced: TracedProgram,
    inputs: tuple[PyTree, ...],
    mask: Callable[..., jax.Array] | None,
    sample: float = 1.0,
    batch: int | jax.Array = 0,
) -> VectorWeights:
    """The weights of one batch's vectors.

    Args:
        traced: the analysis at the batch's shapes.
        inputs: the network's inputs.
        mask: from them to weights.
        sample: the fraction of every example's vectors that is taken.
        batch: the batch's number, which seeds the sample.
    """
    key = jax.random.fold_in(jax.random.key(0), batch) if sample < 1 else None
    if mask is None:
        return VectorWeights(sample=sample, key=key)
    values = traced.program.inputs[len(traced.leaves) :]
    input_dims = _used_dims(traced, values)
    # analysing the mask as a program on the network's input dimensions identifies the mask's axes
    program = build(jax.make_jaxpr(mask)(*jax.eval_shape(lambda *values: values, *inputs)))
    for source, inner in zip(values, program.inputs, strict=True):
        inner.dims, inner.data = list(source.dims), True
    Analysis().run(program)
    return VectorWeights(
        jnp.asarray(mask(*inputs), jnp.float32),
        tuple(program.outputs[0].dims),
        tuple(input_dims),
        traced.names.keys(),
        sample,
        key,
    )


def _used_dims(traced: TracedProgram, values: Sequence[Value]) -> list[Dim]:
    """The dimensions of those inputs that the network uses; the others have no rows to weigh."""
    used: set[int] = set()
    for step in traced.program.steps:
        used.update(map(id, step.inputs))
    dims: list[Dim] = []
    for value in values:
        if id(value) in used:
            dims += [dim for dim in value.dims if dim is not None]
    return dims
