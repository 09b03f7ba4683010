"""What a running program's contractions see: sums over their vectors, in float32 inside a batch.

A tap is handed the operands of every contraction before it runs and its result behind it. `Taps` adds up means and second
moments; others record the vectors themselves (paired.py) or feel derivatives (sensitivity.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxcompress.moments.masks import Rows
from jaxcompress.moments.windows import moved, patches, places_of, windows_at
from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import Kind, atoms
from jaxcompress.programs.program import Step
from jaxcompress.programs.rules import Contraction

MAX_DIM = 4096
"""Contractions of more inputs keep the diagonal alone."""


class Taps:
    """Sums over what the contractions of a running program see.

    Attributes:
        derivatives: whether derivatives are taken of what is run: custom rules stay closed, and so do loops of unknown length.
    """

    derivatives = False

    def __init__(self, found: TracedProgram, shifts: Mapping[str, Any], rows: Rows, max_dim: int):
        self.found, self.shifts, self.rows, self.max_dim = found, shifts, rows, max_dim
        self.sums: dict[str, Any] = {}
        self.same: dict[Any, str] = {}  # the first contraction of some vectors
        self.alike: dict[
            str, str
        ] = {}  # those of the same vectors, such as queries', keys' and values', and the first of them

    def nested(self, turns: Any, index: Any) -> Taps:
        """Empty sums for one turn of a loop along an axis."""
        inner = Taps(self.found, self.shifts, self.rows.turn(turns, index), self.max_dim)
        inner.alike = self.alike
        return inner

    def divide(self, turns: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Sums to be added over a loop's turns, and those kept apart because the loop runs over their layers."""
        contractions = self.found.analysis.contractions
        layered = {
            k
            for k in self.sums
            if k in contractions and any(layer is turns for layer in contractions[k].layers)
        }
        return {k: s for k, s in self.sums.items() if k not in layered}, {
            k: s for k, s in self.sums.items() if k in layered
        }

    def update(self, *sums: dict[str, Any]) -> None:
        for each in sums:
            self.sums.update(each)

    def see(self, key: str, operands: list[Any], step: Step) -> None:
        """Add one contraction's vectors."""
        contraction = self.found.analysis.contractions.get(key)
        if contraction is not None:
            value, x = step.inputs[contraction.operand], operands[contraction.operand]
            x = x.materialize() if hasattr(x, "materialize") else x
            if contraction.rows is not None:
                self.sums[key] = self.look_ups(key, x, value, contraction.rows)
            elif contraction.window:
                self.sums[key] = self.second(key, *self.windows(key, operands, contraction, step))
            else:
                kept = [position for position, dim in contraction.batch if self.named(dim)]
                first = self.same.setdefault(
                    (id(value), contraction.positions, tuple(kept), contraction.layers), key
                )
                if first != key:
                    self.alike[key] = first
                else:
                    self.sums[key] = self.second(
                        key, *self.rows.take(key, x, value.dims, contraction.positions, kept)
                    )
        elif key in self.found.analysis.pairs:
            pair = self.found.analysis.pairs[key]
            if any(
                atom.kind & Kind.OPAQUE
                for dim in pair.dims
                if dim is not None
                for atom in atoms(dim)
            ):
                return  # weights of attention times values, over positions: no map would ask
            kept = [(left, right) for left, right, dim in pair.batch if self.named(dim)]
            sides = []
            for side, (x, value) in enumerate(zip(operands, step.inputs, strict=True)):
                apart = [both[side] for both in kept]
                name = f"{key}/{side}"
                sides.append(
                    self.second(
                        name, *self.rows.take(name, x, value.dims, pair.positions[side], apart)
                    )
                )
            self.sums[key] = tuple(sides)

    def feel(self, key: str, step: Step, result: Any) -> Any:
        """What a contraction gives, as it goes on."""
        return result

    def named(self, dim: Any) -> bool:
        """Whether a dimension is an axis of parameters, not one of the data."""
        return dim is not None and all(atom in self.found.names for atom in atoms(dim))

    def windows(
        self, key: str, operands: list[Any], contraction: Contraction, step: Step
    ) -> tuple[Any, Any]:
        """What a convolution's kernel is contracted with, as rows; where a share is measured no other windows are made."""
        operands = [
            operand.materialize() if hasattr(operand, "materialize") else operand
            for operand in operands
        ]
        sizes = places_of(operands, step, self.max_dim)
        taken = None if sizes is None else self.rows.places(key, math.prod(sizes))
        if sizes is not None and taken is not None:
            dims = moved(step.outputs[0].dims, step.params["dimension_numbers"].out_spec[1])[:-1]
            found = windows_at(operands, step, sizes, taken)
            return self.rows.weighed(key, found, [len(found), *sizes], dims, taken)
        x, dims = patches(operands, contraction, step, self.max_dim)
        return self.rows.take(
            key, x, dims, (x.ndim - 1,), [x.ndim - 2] if contraction.batch else []
        )

    def second(self, key: str, flat: Any, weights: Any) -> Any:
        """Count, sum and products of rows, about the shift."""
        if key in self.shifts:
            flat = jnp.where(weights[:, None] > 0, flat - self.shifts[key][..., None, :], 0)
        weighted = flat * weights[:, None]
        if flat.shape[-1] > self.max_dim:
            products = jnp.sum(weighted * flat, axis=-2)
        else:
            products = jnp.matmul(jnp.matrix_transpose(weighted), flat, precision="highest")
        return {"n": weights.sum(), "s": weighted.sum(-2), "S": products}

    def look_ups(self, key: str, indices: Any, value: Any, size: int) -> Any:
        """How often each row of a table is looked up."""
        flat = indices[..., 0]
        weights = self.rows.weights(key, flat.shape, value.dims[:-1])
        return jnp.zeros(size, jnp.float32).at[flat.ravel()].add(weights.ravel(), mode="drop")
