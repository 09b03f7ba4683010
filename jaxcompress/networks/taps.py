"""What a running program's contractions see: sums over their vectors, in float32 inside a batch.

A tap is handed the operands of every contraction before it runs and its result behind it. `Taps` adds up means and second
moments; others record the vectors themselves (paired.py) or feel derivatives (sensitivity.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxcompress.networks.algebra import atoms

if TYPE_CHECKING:
    from jaxcompress.networks.program import Step
    from jaxcompress.networks.rows import Rows
    from jaxcompress.networks.rules import Contraction
    from jaxcompress.networks.trace import Found

MAX_DIM = 4096
"""Contractions of more inputs keep the diagonal alone."""


class Taps:
    """Sums over what the contractions of a running program see.

    Attributes:
        derivatives: whether derivatives are taken of what is run: custom rules stay closed, and so do loops of unknown length.
    """

    derivatives = False

    def __init__(self, found: Found, shifts: Mapping[str, Any], rows: Rows, max_dim: int):
        self.found, self.shifts, self.rows, self.max_dim = found, shifts, rows, max_dim
        self.sums: dict[str, Any] = {}
        self.same: dict[Any, str] = {}  # the first contraction of some vectors
        self.alike: dict[str, str] = {}  # those of the same vectors, such as queries', keys' and values', and the first of them

    def nested(self, turns: Any, index: Any) -> Taps:
        """Empty sums for one turn of a loop along an axis."""
        inner = Taps(self.found, self.shifts, self.rows.turn(turns, index), self.max_dim)
        inner.alike = self.alike
        return inner

    def divide(self, turns: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Sums to be added over a loop's turns, and those kept apart because the loop runs over their layers."""
        contractions = self.found.analysis.contractions
        layered = {k for k in self.sums if k in contractions and any(layer is turns for layer in contractions[k].layers)}
        return {k: s for k, s in self.sums.items() if k not in layered}, {k: s for k, s in self.sums.items() if k in layered}

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
                x, dims = patches(operands, contraction, step, self.max_dim)
                kept = [x.ndim - 2] if contraction.batch else []
                self.sums[key] = self.second(key, x, dims, (x.ndim - 1,), kept)
            else:
                kept = [position for position, dim in contraction.batch if self.named(dim)]
                first = self.same.setdefault((id(value), contraction.positions, tuple(kept), contraction.layers), key)
                if first != key:
                    self.alike[key] = first
                else:
                    self.sums[key] = self.second(key, x, value.dims, contraction.positions, kept)
        elif key in self.found.analysis.pairs:
            pair = self.found.analysis.pairs[key]
            kept = [(left, right) for left, right, dim in pair.batch if self.named(dim)]
            sides = []
            for side, (x, value) in enumerate(zip(operands, step.inputs, strict=True)):
                apart = [both[side] for both in kept]
                sides.append(self.second(f"{key}/{side}", x, value.dims, pair.positions[side], apart))
            self.sums[key] = tuple(sides)

    def feel(self, key: str, step: Step, result: Any) -> Any:
        """What a contraction gives, as it goes on."""
        return result

    def named(self, dim: Any) -> bool:
        """Whether a dimension is an axis of parameters, not one of the data."""
        return dim is not None and all(atom in self.found.names for atom in atoms(dim))

    def second(self, key: str, x: Any, dims: Any, positions: tuple[int, ...], kept: list[int]) -> Any:
        """Count, sum and products of the vectors along given dimensions, about the shift."""
        flat, weights = self.rows.take(key, x, dims, positions, kept)
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


def patches(operands: list[Any], contraction: Contraction, step: Step, max_dim: int) -> tuple[jax.Array, list[Any]]:
    """What a convolution's kernel is contracted with, flat and last, in the kernel's order; the features alone where it is wide.

    With it its dimensions, as the analysis knows them.
    """
    x, kernel = (operand.materialize() if hasattr(operand, "materialize") else operand for operand in operands)
    numbers = step.params["dimension_numbers"]
    _, k_in, *k_space = numbers.rhs_spec
    groups = step.params["feature_group_count"]
    if groups > 1 or kernel.shape[k_in] * math.prod(kernel.shape[axis] for axis in k_space) > max_dim:
        x, dims = jnp.moveaxis(x, numbers.lhs_spec[1], -1), moved(step.inputs[0].dims, numbers.lhs_spec[1])
        if contraction.batch:  # groups stay apart
            x, dims = x.reshape(*x.shape[:-1], -1, kernel.shape[k_in]), [*dims[:-1], contraction.batch[0][1], dims[-1]]
        return x, dims
    options = {name: step.params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")}
    window = [kernel.shape[axis] for axis in k_space]
    precision = jax.lax.Precision.HIGHEST
    found = jax.lax.conv_general_dilated_patches(x, window, **options, dimension_numbers=numbers, precision=precision)
    found = jnp.moveaxis(found, numbers.out_spec[1], -1)
    found = found.reshape(*found.shape[:-1], kernel.shape[k_in], *window)
    order = sorted(range(len(numbers.rhs_spec) - 1), key=lambda index: (k_in, *k_space)[index])
    first = found.ndim - len(order)
    found = jnp.transpose(found, (*range(first), *(first + index for index in order)))
    return found.reshape(*found.shape[:first], -1), moved(step.outputs[0].dims, numbers.out_spec[1])


def moved(dims: list[Any], position: int) -> list[Any]:
    """Dimensions with one of them last."""
    return [*dims[:position], *dims[position + 1 :], dims[position]]
