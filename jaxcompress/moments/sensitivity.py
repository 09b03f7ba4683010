"""How much the network's outputs feel what a contraction gives: the second moments of their derivatives.

For a contraction y = x W and the outputs z, a random sign s for each output makes g = d(s . z)/dy, whose second moments are those
of the Jacobian, E g g' = E J' J. A change dW then moves the outputs, squared and summed, by about tr(G dW' S dW) with S the
second moments of x and G the sum of g g' over all rows, per output: first order, errors of different rows taken as independent.
G is gathered in the backward pass itself, by an identity whose cotangent is that sum; costs one backward pass and p^2 products
a row.

Sources: Hutchinson 1990 (random signs); the factored curvature of Martens and Grosse 2015 (arXiv:1503.05671).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.paths import leaf_name
from jaxcompress.moments.accumulators import Taps
from jaxcompress.moments.masks import Rows, rows
from jaxcompress.moments.moments import Statistic
from jaxcompress.networks.axes import Layout, Site
from jaxcompress.networks.trace import Network
from jaxcompress.programs.program import Step

log = logging.getLogger(__name__)


@jax.custom_vjp
def tag(y: jax.Array, weights: jax.Array, probe: jax.Array) -> jax.Array:
    """The rows y (n, p) as they are; in reverse the probe (p, p), or (p,) for the diagonal alone, receives the sum of w g g'."""
    return y


def _backward(
    saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    weights, probe = saved
    plain = g.astype(jnp.float32)
    weighted = weights[:, None] * plain
    felt = (
        jnp.sum(weighted * plain, 0)
        if probe.ndim == 1
        else jnp.matmul(weighted.T, plain, precision="highest")
    )
    return g, jnp.zeros_like(weights), felt


tag.defvjp(lambda y, weights, probe: (y, (weights, probe)), _backward)


class Sense(Taps):
    """Tags on what the contractions of a running program give; without probes their widths are noted."""

    derivatives = True

    def __init__(
        self, found: Any, rows: Rows, probes: dict[str, Any] | None, widths: dict[str, int]
    ):
        super().__init__(found, {}, rows, 0)
        self.probes, self.widths = probes, widths

    def nested(self, turns: Any, index: Any) -> Sense:
        return Sense(self.found, self.rows.turn(turns, index), self.probes, self.widths)

    def divide(self, turns: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {}  # derivatives add up by themselves

    def see(self, key: str, operands: list[Any], step: Step) -> None:
        pass

    def feel(self, key: str, step: Step, result: Any) -> Any:
        order, free = self.layout(key, step, result.ndim)
        if order is None:
            return result
        moved = jnp.transpose(result, order)
        rows = moved.reshape(-1, math.prod(moved.shape[len(order) - free :]))
        if self.probes is None:
            self.widths[key] = rows.shape[-1]
        elif key in self.probes:
            rest = order[: len(order) - free]
            dims = [step.outputs[0].dims[place] for place in rest]
            weights = self.rows.weights(key, [result.shape[place] for place in rest], dims).reshape(
                -1
            )
            moved = tag(rows, weights, self.probes[key]).reshape(moved.shape)
            return jnp.transpose(moved, np.argsort(order).tolist())
        return result

    def layout(self, key: str, step: Step, rank: int) -> tuple[list[int] | None, int]:
        """An order of the result's dimensions that puts the parameter's last, and how many those are; none where it has no rows."""
        order = list(range(rank))
        if key in self.found.analysis.pairs:
            return order, 0
        contraction = self.found.analysis.contractions[key]
        if contraction.window:
            features = step.params["dimension_numbers"].out_spec[1]
            return [*order[:features], *order[features + 1 :], features], 1
        if contraction.rows is not None:
            return order, 1
        if contraction.batch:
            return None, 0
        side = contraction.operand
        free = len(step.inputs[1 - side].shape) - len(step.params["dimension_numbers"][0][1 - side])
        return (order if side == 0 else [*order[free:], *order[:free]]), free


class Senses:
    """Gathers what every contraction means to the outputs, batch by batch, in float64."""

    def __init__(self, net: Network, mask: Callable[..., Any] | None, max_dim: int):
        self.net, self.mask, self.max_dim = net, mask, max_dim
        self.sums: dict[str, np.ndarray] = {}
        self.lost: set[str] = set()
        self.outputs = 0.0
        self.probes: dict[str, jax.Array] | None = None
        self.gather = jax.jit(self._gather)

    def _run(
        self, params: Any, values: tuple[Any, ...], probes: Any, widths: dict[str, int]
    ) -> Any:
        """The outputs that are floats (no state, complex ones as two), each with its weights."""
        found = self.net.traced_program(params, *values)
        counted = rows(found, values, self.mask)
        outputs = self.net.replay(params, *values, tap=Sense(found, counted, probes, widths))
        floats = []
        for (path, leaf), value in zip(
            jax.tree_util.tree_flatten_with_path(outputs)[0], found.program.outputs, strict=True
        ):
            name = leaf_name(path)
            mirrored = any(
                name == state or name.startswith(f"{state}/") for state in self.net.state_outputs
            )
            if mirrored or not jnp.issubdtype(leaf.dtype, jnp.inexact):
                continue
            weights = counted.weights("an output", leaf.shape, value.dims)
            parts = (
                (leaf.real, leaf.imag)
                if jnp.issubdtype(leaf.dtype, jnp.complexfloating)
                else (leaf,)
            )
            floats += [(part, weights) for part in parts]
        return floats

    def _gather(
        self, params: Any, values: tuple[Any, ...], probes: Any, key: Any
    ) -> tuple[Any, Any]:
        def total(probes: Any) -> Any:
            outputs = self._run(params, values, probes, {})
            keys = jax.random.split(key, len(outputs))
            sign = lambda key, z, weights: jnp.sum(
                jax.random.rademacher(key, z.shape, jnp.float32) * weights * z
            )
            signed = [sign(key, *output) for key, output in zip(keys, outputs, strict=True)]
            return sum(signed), sum(weights.sum() for _, weights in outputs)

        return jax.grad(total, has_aux=True)(probes)

    def add(self, params: Any, values: tuple[Any, ...], number: int) -> None:
        """Feel one batch."""
        if self.probes is None:
            widths: dict[str, int] = {}
            found = jax.eval_shape(
                lambda params, values: self._run(params, values, None, widths), params, values
            )
            if not found:
                raise ValueError(
                    "calibrate: sensitivity needs outputs that are floats: trace a function that returns logits"
                )
            self.probes = {
                key: jnp.zeros((p,) if p > self.max_dim else (p, p), jnp.float32)
                for key, p in widths.items()
            }
        found, count = self.gather(params, values, self.probes, jax.random.key(number))
        for key, value in found.items():
            self.sums[key] = self.sums.get(key, 0) + np.asarray(value, np.float64)
            if not np.isfinite(self.sums[key]).all() and key not in self.lost:
                self.lost.add(key)
                log.warning(
                    "batch %d: the derivative of the outputs is NaN or infinite at %s: what they feel of it is left out",
                    number,
                    key,
                )
        self.outputs += float(count)

    def gains(self, params: Any) -> dict[str, Statistic]:
        """For each contraction G per output, in terms of the axes that its kernel produces."""
        structure, sizes = self.net.structure, self.net.sizes(params)
        gains = {}
        for key in self.sums.keys() - self.lost:
            total = self.sums[key]
            site = structure.sites.get(key)
            dims = () if site is None else produced(structure.layouts, site)
            now = None if dims is None else tuple(dim.resized(sizes) for dim in dims)
            order = (
                []
                if site is None or now is None
                else transposition(now, tuple(dim.resized(sizes) for dim in site.outputs))
            )
            if now is None or order is None or math.prod(dim.size for dim in now) != len(total):
                continue
            for axis in range(
                total.ndim if order else 0
            ):  # from the product's order of dimensions to the kernel's
                total = np.take(total, order, axis)
            gains[key] = Statistic(
                (), now, self.outputs, np.zeros(len(total)), total / max(self.outputs, 1e-30)
            )
        return {key: gains[key] for key in self.sums if key in gains}


def transposition(kernel: tuple[Layout, ...], product: tuple[Layout, ...]) -> list[int] | None:
    """For every position of the kernel's outputs its place in the product; none where the axes are not the same."""
    ours, theirs = (
        [part for dim in dims for part in dim.leaves() if part.size > 1]
        for dims in (kernel, product)
    )
    keys = [[part.key for part in parts] for parts in (ours, theirs)]
    if keys[0] == keys[1]:
        return list(range(math.prod(dim.size for dim in kernel)))
    if (
        any(dim.split == "concat" for dim in (*kernel, *product))
        or sorted(keys[0]) != sorted(keys[1])
        or len(set(keys[0])) < len(keys[0])
    ):
        return None
    grid = np.arange(math.prod(part.size for part in theirs)).reshape(
        [part.size for part in theirs]
    )
    return np.transpose(grid, [keys[1].index(key) for key in keys[0]]).ravel().tolist()


def produced(layouts: Any, site: Site) -> tuple[Layout, ...] | None:
    """The dimensions of one kernel that its product has; None where several kernels, or loops, make it."""
    if len(site.leaves) != 1 or site.layers:
        return None
    if not site.dims:  # a table that is looked up: its other dimension
        return (layouts[site.leaves[0]][1],)
    if len(site.inputs) != 1:
        return None
    ((leaf, inputs),) = site.inputs.items()
    return tuple(layout for place, layout in enumerate(layouts[leaf]) if place not in inputs)
