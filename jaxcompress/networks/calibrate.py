"""Gathering moments: sums over what the contractions of a running program see, in one pass over any data.

Products are in float32 inside a batch, about the first batch's mean, and in float64 across batches; memory does not depend
on the amount of data. Loops add up over their turns, or keep a statistic for each of their layers. Costs the forward pass and
m^2 products a row for each contraction of m inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from jaxcompress.networks.algebra import atoms
from jaxcompress.networks.axes import Layout
from jaxcompress.networks.moments import Moments, Statistic
from jaxcompress.networks.rows import Rows, rows

if TYPE_CHECKING:
    from jaxcompress.networks.program import Step
    from jaxcompress.networks.rules import Contraction
    from jaxcompress.networks.trace import Found, Network

MAX_DIM = 4096
"""Contractions of more inputs keep the diagonal alone."""


class Taps:
    """Sums over what the contractions of a running program see."""

    def __init__(self, found: Found, shifts: Mapping[str, Any], rows: Rows, max_dim: int):
        self.found, self.shifts, self.rows, self.max_dim = found, shifts, rows, max_dim
        self.sums: dict[str, Any] = {}

    def nested(self) -> Taps:
        """Empty sums for one turn of a loop."""
        return Taps(self.found, self.shifts, self.rows, self.max_dim)

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
                self.sums[key] = self.second(key, x, dims, (x.ndim - 1,), [])
            else:
                kept = [position for position, dim in contraction.batch if self.named(dim)]
                self.sums[key] = self.second(key, x, value.dims, contraction.positions, kept)
        elif key in self.found.analysis.pairs:
            pair = self.found.analysis.pairs[key]
            kept = [(left, right) for left, right, dim in pair.batch if self.named(dim)]
            sides = []
            for side, (x, value) in enumerate(zip(operands, step.inputs, strict=True)):
                apart = [both[side] for both in kept]
                sides.append(self.second(f"{key}/{side}", x, value.dims, pair.positions[side], apart))
            self.sums[key] = tuple(sides)

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
        return jnp.moveaxis(x, numbers.lhs_spec[1], -1), moved(step.inputs[0].dims, numbers.lhs_spec[1])
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


def calibrate(
    net: Network,
    params: Any,
    batches: Iterable[Any],
    inputs: Callable[[Any], Any] | None = None,
    *,
    mask: Callable[..., Any] | None = None,
    sample: float = 1.0,
    max_dim: int = MAX_DIM,
    progress: bool = True,
) -> Moments:
    """See `Network.calibrate`."""
    sums: dict[str, Any] = {}
    shifts: dict[str, Any] = {}

    @jax.jit
    def gather(params: Any, values: tuple[Any, ...], shifts: Any, number: Any) -> Any:
        found, _, _ = net._prepare(params, values)
        taps = Taps(found, shifts, rows(found, values, mask, sample, number), max_dim)
        net._replay(params, *values, tap=taps)
        return taps.sums

    number = -1
    for number, batch in enumerate(tqdm(batches, desc="calibrate", disable=not progress, leave=False)):
        values = check_batch(net, number, batch if inputs is None else inputs(batch))
        if number == 0:
            first = gather(params, values, {}, number)
            for key, sides in first.items():
                sided = [(f"{key}/{i}", part) for i, part in enumerate(sides)] if isinstance(sides, tuple) else [(key, sides)]
                for name, part in sided:
                    if isinstance(part, dict):
                        mean = part["s"] / jnp.maximum(_over(part["n"], part["s"]), 1)
                        shifts[name] = mean.mean(tuple(range(part["n"].ndim)))  # one for all layers of a loop
        found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), gather(params, values, shifts, number))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
            bad = next(key for key, part in found.items() if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part)))
            raise ValueError(f"calibrate: batch {number} gives NaN or infinity at {bad}: check the parameters and the data")
        sums = found if number == 0 else jax.tree.map(np.add, sums, found)
    if number < 0:
        raise ValueError("calibrate: there are no batches: give an iterable of at least one")
    return finish(net, params, sums, {key: np.asarray(shift, np.float64) for key, shift in shifts.items()})


def check_batch(net: Network, number: int, batch: Any) -> tuple[Any, ...]:
    """One batch as the tuple of the function's inputs, refused by name where it does not fit."""
    traced = net.inputs
    values = batch if isinstance(batch, tuple) else (batch,)
    if len(values) != len(traced):
        raise ValueError(f"calibrate: batch {number} has {len(values)} inputs, the network takes {len(traced)}: give a tuple")
    for position, (value, shape) in enumerate(zip(values, traced, strict=True)):
        if jax.tree.structure(value) != jax.tree.structure(shape):
            raise ValueError(f"calibrate: batch {number}, input {position} is another tree than the traced input")
        for leaf, like in zip(jax.tree.leaves(value), jax.tree.leaves(shape), strict=True):
            if np.ndim(leaf) != len(like.shape):
                raise ValueError(
                    f"calibrate: batch {number}, input {position} has shape {np.shape(leaf)}, traced with {like.shape}"
                )
            if np.size(leaf) == 0:
                raise ValueError(f"calibrate: batch {number}, input {position} is empty, of shape {np.shape(leaf)}")
            if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not np.isfinite(np.asarray(leaf, np.float32)).all():
                raise ValueError(f"calibrate: batch {number}, input {position} contains NaN or infinity: repair or leave it out")
    return values


def finish(net: Network, params: Any, sums: dict[str, Any], shifts: dict[str, np.ndarray]) -> Moments:
    """Moments from sums about shifts."""
    structure, sizes = net.structure, net.sizes(params)
    sites, pairs, counts = {}, {}, {}

    def statistic(part: Any, shift: np.ndarray, lead: tuple[Layout, ...], dims: tuple[Layout, ...]) -> Statistic:
        n = np.maximum(_over(part["n"], part["s"]), 1e-30)
        mean = part["s"] / n
        diagonal = part["S"].ndim == part["s"].ndim
        outer = mean**2 if diagonal else mean[..., :, None] * mean[..., None, :]
        cov = part["S"] / (n if diagonal else n[..., None]) - outer
        now = lambda layouts: tuple(layout.resized(sizes) for layout in layouts)
        return Statistic(now(lead), now(dims), float(np.max(part["n"])), mean + shift, cov)

    named = lambda layouts: tuple(layout for layout in layouts if all(layout.axes()))
    full = {part.key: part for dims in structure.layouts.values() for layout in dims for part in layout.leaves()}
    for key, part in sums.items():
        if isinstance(part, tuple):
            site = structure.pairs[key]
            shift = [shifts[f"{key}/{side}"] for side in (0, 1)]
            pairs[key] = tuple(statistic(part[side], shift[side], named(site.batch), site.dims) for side in (0, 1))
        elif isinstance(part, dict):
            site = structure.sites[key]
            lead = (*(full[layer] for layer in site.layers), *named(site.batch))
            whole = math.prod(dim.resized(sizes).size for dim in site.dims) == part["s"].shape[-1]
            dims = site.dims if whole else tuple(dim for index, dim in enumerate(site.dims) if index not in site.window)
            sites[key] = statistic(part, shifts[key], lead, dims)
        else:
            for leaf in structure.sites[key].leaves:
                counts[leaf] = counts.get(leaf, 0) + part
    return Moments(structure, sites, pairs, counts, reference=params)


def _over(count: Any, like: Any) -> Any:
    """A count, for each layer of a loop where there are some, against sums with vectors last."""
    return count.reshape(*count.shape, *(1,) * (like.ndim - count.ndim))
