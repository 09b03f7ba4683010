"""Sums over the activation vectors that a running program contracts, in float32 within a batch.

While a network is replayed, an `Accumulator` receives the operands of every contraction and adds up
their count, sum and second moments. Subclasses keep the vectors themselves (cross_moments.py) or
tag the results for differentiation (sensitivity.py).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxcompress.arrays.base import materialize
from jaxcompress.arrays.rank import with_rank
from jaxcompress.moments.masks import VectorWeights
from jaxcompress.moments.windows import dim_last, patches, window_counts, windows_at
from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import Dim, Kind, atoms
from jaxcompress.programs.program import Operand, Step
from jaxcompress.programs.rules import Contraction

MAX_DIM = 4096
"""Contractions of more inputs keep only the diagonal of their second moments."""


class Sums(NamedTuple):
    """Weighted sums over vectors of m numbers, one for each entry of the leading dimensions.

    Attributes:
        n: the sum of the weights.
        s: the sum of the vectors, from an origin.
        S: the sum of their outer products; of their squares where only the diagonal is kept.
    """

    n: Float[Array, "*layers"]
    s: Float[Array, "*lead m"]
    S: Float[Array, "*lead m m"] | Float[Array, "*lead m"]


class Origin(NamedTuple):
    """What a contraction's vectors are measured from, so that float32 holds their products.

    Attributes:
        shift: their mean in the first batch.
        unit: for each entry a power of two near its largest size in the first batch.
    """

    shift: Float[Array, "*lead m"]
    unit: Float[Array, "*lead m"]


Gathered = PyTree
"""What is kept of one contraction: `Sums`, two of them, counts of rows, or the vectors."""


class Totals(NamedTuple):
    """All that is accumulated, by the contraction's key.

    Attributes:
        sites: sums of the inputs of contractions with a parameter.
        pairs: sums of either side of contractions of activations with activations.
        lookups: how often each row of a table was looked up.
    """

    sites: dict[str, Sums]
    pairs: dict[str, tuple[Sums, Sums]]
    lookups: dict[str, Float[Array, " rows"]]


class Accumulator:
    """Adds up what the contractions of a running program take in.

    Attributes:
        derivatives: whether the run is differentiated: custom derivative rules then stay closed,
            and so do loops of unknown length.
        sums: by the contraction's key.
        duplicates: contractions of the same vectors as an earlier one, such as those of queries,
            keys and values, which are added up once.
    """

    derivatives = False

    def __init__(
        self,
        traced: TracedProgram,
        origins: Mapping[str, Origin],
        vectors: VectorWeights,
        max_dim: int,
    ):
        self.traced, self.origins, self.vectors, self.max_dim = traced, origins, vectors, max_dim
        self.sums: dict[str, Gathered] = {}
        self.duplicates: dict[str, str] = {}
        # queries, keys and values take in the same vectors: the first key is kept for all three
        self._first: dict[Hashable, str] = {}

    # --- what the replay calls -----------------------------------------------------------------

    def nested(self, turns: Dim | None, index: Int[Array, ""] | None) -> Accumulator:
        """An empty accumulator for one turn of a loop along an axis."""
        vectors = self.vectors.in_turn(turns, index)
        inner = Accumulator(self.traced, self.origins, vectors, self.max_dim)
        inner.duplicates = self.duplicates
        return inner

    def split_sums(self, turns: Dim | None) -> tuple[dict[str, Gathered], dict[str, Gathered]]:
        """Split the sums into those added over a loop's turns and those stacked by layer."""
        contractions = self.traced.analysis.contractions
        added, stacked = {}, {}
        for key, sums in self.sums.items():
            layers = contractions[key].layers if key in contractions else ()
            (stacked if any(layer is turns for layer in layers) else added)[key] = sums
        return added, stacked

    def update(self, *sums: dict[str, Gathered]) -> None:
        """Add the sums of a loop or a branch."""
        for more in sums:
            self.sums.update(more)

    def observe(self, key: str, operands: list[Operand], step: Step) -> None:
        """Add one contraction's vectors."""
        if key in self.traced.analysis.contractions:
            self._add_site(key, operands, step)
        elif key in self.traced.analysis.pairs:
            self._add_pair(key, operands, step)

    def transform_result(self, key: str, step: Step, result: jax.Array) -> jax.Array:
        """The result unchanged: moments are of the operands."""
        return result

    def sampled_as(self, key: str) -> str:
        """The name that seeds the places of a sample of one contraction's vectors."""
        return key

    # --- inside --------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """The sums, by what is contracted."""
        analysis = self.traced.analysis
        totals = Totals({}, {}, {})
        for key, sums in self.sums.items():
            if key in analysis.pairs:
                totals.pairs[key] = sums
            elif analysis.contractions[key].rows is None:
                totals.sites[key] = sums
            else:
                totals.lookups[key] = sums
        return totals

    def reduce(self, key: str, rows: Float[Array, "*batch rows m"], weights: jax.Array) -> Gathered:
        """Sums of weighted vectors from their origin; the largest sizes while it is unknown."""
        # padding may hold NaN, which times a weight of zero is NaN still
        weight = with_rank(weights[:, None], rows.ndim)
        rows = jnp.where(weight > 0, rows, 0)
        if key not in self.origins:
            largest = jnp.abs(rows).max(-2, initial=0).astype(jnp.float32)
            return Sums(weights.sum(), (rows * weight).sum(-2), largest)
        shift, unit = (with_rank(part[..., None, :], rows.ndim) for part in self.origins[key])
        rows = jnp.where(weight > 0, (rows - shift) / unit, 0)
        weighted = rows * weight
        if rows.shape[-1] > self.max_dim:
            products = jnp.sum(weighted * rows, axis=-2)
        else:
            products = jnp.matmul(jnp.matrix_transpose(weighted), rows, precision="highest")
        return Sums(weights.sum(), weighted.sum(-2), products)

    def _add_site(self, key: str, operands: list[Operand], step: Step) -> None:
        contraction = self.traced.analysis.contractions[key]
        value = step.inputs[contraction.operand]
        x = materialize(operands[contraction.operand])
        if contraction.rows is not None:
            self.sums[key] = self._lookups(key, x, value.dims[:-1], contraction.rows)
            return
        if contraction.window:
            windows = self._windows(self.sampled_as(key), operands, contraction, step)
            self.sums[key] = self.reduce(key, *windows)
            return
        batch = [position for position, dim in contraction.batch if self._of_parameters(dim)]
        vectors = (id(value), contraction.positions, tuple(batch), contraction.layers)
        first = self._first.setdefault(vectors, key)
        if first != key:
            self.duplicates[key] = first
            return
        name = self.sampled_as(key)
        rows = self.vectors.take(name, x, value.dims, contraction.positions, batch)
        self.sums[key] = self.reduce(key, *rows)

    def _add_pair(self, key: str, operands: list[Operand], step: Step) -> None:
        pair = self.traced.analysis.pairs[key]
        if any(_has_opaque_axis(dim) for dim in pair.dims):
            return  # attention weights times values, over positions: no map needs their moments
        batch = [places for *places, dim in pair.batch if self._of_parameters(dim)]
        sides = []
        for side, (x, value) in enumerate(zip(operands, step.inputs, strict=True)):
            name, apart = f"{key}/{side}", [places[side] for places in batch]
            rows = self.vectors.take(name, x, value.dims, pair.positions[side], apart)
            sides.append(self.reduce(name, *rows))
        self.sums[key] = tuple(sides)

    def _of_parameters(self, dim: Dim | None) -> bool:
        """Whether a dimension is an axis of parameters rather than of the data."""
        return dim is not None and all(atom in self.traced.names for atom in atoms(dim))

    def _windows(
        self, key: str, operands: list[Operand], contraction: Contraction, step: Step
    ) -> tuple[jax.Array, jax.Array]:
        """The vectors that a convolution's kernel is contracted with, and their weights."""
        x, kernel = map(materialize, operands)
        counts = window_counts(x, kernel, step, self.max_dim)
        taken = None
        # all windows together hold many copies of the image: of a sample, cut only those in it
        if counts is not None:
            taken = self.vectors.sampled_places(key, math.prod(counts))
        if counts is not None and taken is not None:
            windows = windows_at(x, kernel, step, counts, taken)
            features = step.params["dimension_numbers"].out_spec[1]
            dims = dim_last(step.outputs[0].dims, features)[:-1]
            return self.vectors.weighted(key, windows, [len(windows), *counts], dims, taken)
        vectors, dims = patches(x, kernel, contraction, step, self.max_dim)
        last = vectors.ndim - 1
        batch = [last - 1] if contraction.batch else []
        return self.vectors.take(key, vectors, dims, (last,), batch)

    def _lookups(
        self, key: str, indices: jax.Array, dims: list[Dim | None], size: int
    ) -> Float[Array, " rows"]:
        """How often each row of a table is looked up."""
        flat = indices[..., 0]
        weights = self.vectors.weights(key, flat.shape, dims)
        # an index out of range reads no row, and so counts for none
        return jnp.zeros(size, jnp.float32).at[flat.ravel()].add(weights.ravel(), mode="drop")


def unit_of(size: Float[Array, "*lead m"]) -> Float[Array, "*lead m"]:
    """A power of two near each size, by which division rounds nothing; one for zero."""
    powers = jnp.ldexp(jnp.float32(1), jnp.frexp(size.astype(jnp.float32))[1])
    return jnp.where((size > 0) & jnp.isfinite(powers), powers, 1)


def _has_opaque_axis(dim: Dim | None) -> bool:
    return dim is not None and any(atom.kind & Kind.OPAQUE for atom in atoms(dim))
