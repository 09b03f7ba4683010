"""Which of a contraction's vectors count, and how much: padding is left out, positions are sampled.

A mask is found again in the activations by its axes, wherever they lie: (batch, length) in (batch, heads, length, size) as well
as in (batch * length, size). Sampling takes the same share of the vectors of every example, at places drawn anew for each
batch; an example that is one vector is always taken.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import Dim, find, parts
from jaxcompress.programs.program import build
from jaxcompress.programs.rules import Analysis

log = logging.getLogger(__name__)


class Rows:
    """The weights of vectors, and which are taken.

    Attributes:
        mask: an array of weights, or None.
        dims: its dimensions as the network's analysis knows them.
        known: the dimensions of those of the network's inputs that it uses.
        axes: those of parameters.
        sample: the share of every example's vectors that are taken.
        key: for the places.
    """

    def __init__(
        self,
        mask: Any = None,
        dims: Sequence[Dim | None] = (),
        known: Sequence[Dim] = (),
        axes: Collection[Dim] = (),
        sample: float = 1.0,
        key: Any = None,
    ):
        self.mask, self.dims, self.known, self.axes, self.sample, self.key = (
            mask,
            tuple(dims),
            tuple(known),
            axes,
            sample,
            key,
        )

    def turn(self, along: Dim | None, index: Any) -> Rows:
        """The rows inside one turn of a loop along an axis."""
        same = lambda dim: dim is not None and along is not None and find(dim) is find(along)
        place = next((index for index, dim in enumerate(self.dims) if same(dim)), None)
        if self.mask is None or place is None:
            return self
        mask = jnp.take(jnp.asarray(self.mask), index, axis=place)
        return Rows(
            mask,
            self.dims[:place] + self.dims[place + 1 :],
            self.known,
            self.axes,
            self.sample,
            self.key,
        )

    def take(
        self,
        name: str,
        x: Any,
        dims: Sequence[Dim | None],
        positions: Sequence[int],
        kept: Sequence[int],
    ) -> tuple[Any, Any]:
        """Vectors along some dimensions as rows (*kept, rows, m) in float32, zero where they do not count, and weights (rows,).

        Args:
            name: of the contraction, for the draw of the places.
            x: the activations.
            dims: their dimensions.
            positions, kept: those that make a vector, and those that stay apart.
        """
        rest = [index for index in range(x.ndim) if index not in positions and index not in kept]
        sizes = [x.shape[index] for index in rest]
        lead, m = (
            [x.shape[index] for index in kept],
            math.prod(x.shape[index] for index in positions),
        )
        examples = sizes[0] if sizes else 1
        flat = jnp.transpose(x, (*kept, *rest, *positions)).reshape(
            *lead, examples, math.prod(sizes[1:]), m
        )
        taken = self.places(name, math.prod(sizes[1:]))
        if taken is not None:
            flat = jnp.take(flat, taken, axis=-2)
        return self.weighed(name, flat, sizes, [dims[index] for index in rest], taken)

    def places(self, name: str, count: int) -> Any:
        """Which of the places of every example are taken; None for all of them."""
        few = max(1, round(self.sample * count))
        if few >= count:
            return None
        return jax.random.permutation(
            jax.random.fold_in(self.key, zlib.crc32(name.encode())), count
        )[:few]

    def weighed(
        self, name: str, flat: Any, sizes: Sequence[int], dims: Sequence[Dim | None], taken: Any
    ) -> tuple[Any, Any]:
        """Vectors (*lead, examples, places, m) as rows (*lead, rows, m) and their weights (rows,)."""
        weights = self.weights(name, sizes, dims).reshape(sizes[0] if sizes else 1, -1)
        weights = weights if taken is None else jnp.take(weights, taken, axis=-1)
        flat, weights = (
            flat.reshape(*flat.shape[:-3], -1, flat.shape[-1]).astype(jnp.float32),
            weights.reshape(-1),
        )
        return jnp.where(weights[:, None] > 0, flat, 0), weights  # padding may hold anything

    def weights(self, name: str, sizes: Sequence[int], dims: Sequence[Dim | None]) -> Any:
        """A weight for each place of some dimensions."""
        if self.mask is None:
            return jnp.ones(sizes, jnp.float32)
        mask = jnp.asarray(self.mask, jnp.float32)
        flat = [
            factor for dim, size in zip(dims, sizes, strict=True) for factor in _factors(dim, size)
        ]
        where: list[int | None] = [
            next(
                (
                    place
                    for place, (dim, size) in enumerate(flat)
                    if dim is not None and dim is root and size == extent
                ),
                None,
            )
            for root, extent in (
                (dim and find(dim), extent)
                for dim, extent in zip(self.dims, mask.shape, strict=True)
            )
        ]
        free = [dim is None or dim not in self.axes for dim, _ in flat]  # no axis of parameters
        fits = lambda axis, place: (
            where[axis] == place
            or (
                where[axis] is None
                and free[place]
                and place not in where
                and flat[place][1] == mask.shape[axis]
            )
        )
        if mask.ndim <= len(flat) and all(fits(axis, axis) for axis in range(mask.ndim)):
            where = list(range(mask.ndim))  # it lies as the activations do
        for axis, (dim, extent) in enumerate(zip(self.dims, mask.shape, strict=True)):
            known = dim is not None and any(find(dim) is find(other) for other in self.known)
            if (
                where[axis] is not None or extent == 1 or known
            ):  # an axis of the inputs that is not here is pooled over
                continue
            alike = [
                place for place in range(len(flat)) if fits(axis, place)
            ]  # an axis that the mask made itself
            if len(alike) > 1:
                log.warning(
                    "it is not clear which axis of what %s contracts is the mask's: all of its vectors count",
                    name,
                )
                return jnp.ones(sizes, jnp.float32)
            where[axis] = alike[0] if alike else None
        found = [place for place in where if place is not None]
        if not found:
            log.warning(
                "the mask's axes are not found in what %s contracts: all of its vectors count", name
            )
            return jnp.ones(sizes, jnp.float32)
        mask = mask.max(
            tuple(index for index, place in enumerate(where) if place is None)
        )  # pooled over
        order = sorted(range(len(found)), key=found.__getitem__)
        shape = [size if index in found else 1 for index, (_, size) in enumerate(flat)]
        spread = jnp.broadcast_to(
            jnp.transpose(mask, order).reshape(shape), [size for _, size in flat]
        )
        return spread.reshape(sizes)


def _factors(dim: Dim | None, size: int) -> list[tuple[Dim | None, int]]:
    """A dimension as its factors with their sizes; as one unknown where they do not make the present size."""
    factors = parts(dim, "product") if dim is not None else []
    if len(factors) == 1:
        return [(factors[0], size)]
    return (
        [(part, part.size) for part in factors]
        if math.prod(part.size for part in factors) == size
        else [(None, size)]
    )


def rows(
    found: TracedProgram,
    values: tuple[Any, ...],
    mask: Callable[..., Any] | None,
    sample: float = 1.0,
    number: Any = 0,
) -> Rows:
    """The rows of one batch.

    Args:
        found: the analysis at the batch's shapes.
        values: the network's inputs.
        mask: from them to weights.
        sample: the share of every example's vectors.
        number: of the batch.
    """
    if not 0 < sample <= 1:
        raise ValueError(
            f"sample={sample} is not in (0, 1]: it is the share of every example's vectors that are measured"
        )
    key = jax.random.fold_in(jax.random.key(0), number) if sample < 1 else None
    if mask is None:
        return Rows(sample=sample, key=key)
    program = build(jax.make_jaxpr(mask)(*jax.eval_shape(lambda *values: values, *values)))
    for source, inner in zip(
        found.program.inputs[len(found.leaves) :], program.inputs, strict=True
    ):
        inner.dims, inner.data = list(source.dims), True
    Analysis().run(program)
    used = {id(value) for step in found.program.steps for value in step.inputs}
    inputs = [value for value in found.program.inputs[len(found.leaves) :] if id(value) in used]
    known = [dim for value in inputs for dim in value.dims if dim is not None]
    return Rows(mask(*values), program.outputs[0].dims, known, found.names.keys(), sample, key)
