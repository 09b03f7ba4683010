"""How much the network's outputs feel what a contraction gives: the second moments of their derivatives.

For a contraction y = x W and the outputs z, a random sign s for each output makes g = d(s . z)/dy, whose second moments are those
of the Jacobian, E g g' = E J' J. A change dW then moves the outputs, squared and summed, by about tr(G dW' S dW) with S the
second moments of x and G the sum of g g' over all rows, per output: first order, errors of different rows taken as independent.
G is gathered in the backward pass itself, by an identity whose cotangent is that sum; costs one backward pass and p^2 products
a row.

Sources: Hutchinson 1990 (random signs); the factored curvature of Martens and Grosse 2015 (arXiv:1503.05671).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.networks.axes import Layout, Site
from jaxcompress.networks.moments import Statistic
from jaxcompress.networks.rows import Rows
from jaxcompress.networks.taps import Taps

if TYPE_CHECKING:
    from jaxcompress.networks.program import Step
    from jaxcompress.networks.trace import Network


@jax.custom_vjp
def tag(y: jax.Array, probe: jax.Array) -> jax.Array:
    """The rows y (n, p) as they are; in reverse the probe (p, p), or (p,) for the diagonal alone, receives the sum of g g'."""
    return y


def _backward(probe: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    plain = g.astype(jnp.float32)
    return g, jnp.sum(plain * plain, 0) if probe.ndim == 1 else jnp.matmul(plain.T, plain, precision="highest")


tag.defvjp(lambda y, probe: (y, probe), _backward)


class Sense(Taps):
    """Tags on what the contractions of a running program give; without probes their widths are noted."""

    def __init__(self, found: Any, probes: dict[str, Any] | None, widths: dict[str, int]):
        super().__init__(found, {}, Rows(), 0)
        self.probes, self.widths = probes, widths

    def nested(self) -> Sense:
        return Sense(self.found, self.probes, self.widths)

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
            moved = tag(rows, self.probes[key]).reshape(moved.shape)
            return jnp.transpose(moved, np.argsort(order).tolist())
        return result

    def layout(self, key: str, step: Step, rank: int) -> tuple[list[int] | None, int]:
        """An order of the result's dimensions that puts the parameter's last, and how many those are; none where it has no rows."""
        order = list(range(rank))
        if key in self.found.analysis.pairs:
            return order, 0
        contraction = self.found.analysis.contractions[key]
        if contraction.rows is not None or contraction.batch:
            return None, 0
        if contraction.window:
            features = step.params["dimension_numbers"].out_spec[1]
            return [*order[:features], *order[features + 1 :], features], 1
        side = contraction.operand
        free = len(step.inputs[1 - side].shape) - len(step.params["dimension_numbers"][0][1 - side])
        return (order if side == 0 else [*order[free:], *order[:free]]), free


class Senses:
    """Gathers what every contraction means to the outputs, batch by batch, in float64."""

    def __init__(self, net: Network, max_dim: int):
        self.net, self.max_dim = net, max_dim
        self.sums: dict[str, np.ndarray] = {}
        self.outputs = 0.0
        self.probes: dict[str, jax.Array] | None = None
        self.gather = jax.jit(self._gather)

    def _run(self, params: Any, values: tuple[Any, ...], probes: Any, widths: dict[str, int]) -> Any:
        found, _, _ = self.net._prepare(params, values)
        outputs = self.net._replay(params, *values, tap=Sense(found, probes, widths))
        return [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def _gather(self, params: Any, values: tuple[Any, ...], probes: Any, key: Any) -> tuple[Any, Any]:
        def total(probes: Any) -> Any:
            outputs = self._run(params, values, probes, {})
            keys = jax.random.split(key, len(outputs))
            signed = [jnp.sum(jax.random.rademacher(k, z.shape, jnp.float32) * z) for k, z in zip(keys, outputs, strict=True)]
            return sum(signed), jnp.float32(sum(z.size for z in outputs))

        return jax.grad(total, has_aux=True)(probes)

    def add(self, params: Any, values: tuple[Any, ...], number: int) -> None:
        """Feel one batch."""
        if self.probes is None:
            widths: dict[str, int] = {}
            found = jax.eval_shape(lambda params, values: self._run(params, values, None, widths), params, values)
            if not found:
                raise ValueError("calibrate: sensitivity needs outputs that are floats: trace a function that returns logits")
            self.probes = {key: jnp.zeros((p,) if p > self.max_dim else (p, p), jnp.float32) for key, p in widths.items()}
        found, count = self.gather(params, values, self.probes, jax.random.key(number))
        for key, value in found.items():
            self.sums[key] = self.sums.get(key, 0) + np.asarray(value, np.float64)
        self.outputs += float(count)

    def gains(self, params: Any) -> dict[str, Statistic]:
        """For each contraction G per output, in terms of the axes that its kernel produces."""
        structure, sizes = self.net.structure, self.net.sizes(params)
        gains = {}
        for key, total in self.sums.items():
            dims = () if key in structure.pairs else produced(structure.layouts, structure.sites[key])
            now = None if dims is None else tuple(dim.resized(sizes) for dim in dims)
            if now is not None and math.prod(dim.size for dim in now) == len(total):
                gains[key] = Statistic((), now, self.outputs, np.zeros(len(total)), total / self.outputs)
        return gains


def produced(layouts: Any, site: Site) -> tuple[Layout, ...] | None:
    """The dimensions of one kernel that its product has; None where several kernels, or loops, make it."""
    if len(site.inputs) != 1 or len(site.leaves) != 1 or site.layers:
        return None
    ((leaf, inputs),) = site.inputs.items()
    return tuple(layout for place, layout in enumerate(layouts[leaf]) if place not in inputs)
