"""Sensitivity of a network's outputs to each contraction: second moments of their gradient.

For a contraction y = x W and the outputs z, a random sign s for each output makes
g = d(s . z)/dy, whose second moments are those of the Jacobian: E g g' = E J' J. A change dW then
moves the outputs, squared and summed, by about tr(G dW' S dW), with S the second moments of x and
G the sum of g g' over all rows, per output: first order, errors of different rows taken as
independent. G is gathered in the backward pass itself, by an identity whose cotangent is that sum.
Costs one backward pass and p^2 products a row.

Sources: Hutchinson 1990 (random signs); the factored curvature of Martens and Grosse 2015
(arXiv:1503.05671).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxcompress.moments.accumulators import Accumulator, Gathered
from jaxcompress.moments.masks import VectorWeights, vector_weights
from jaxcompress.moments.moments import gain_key
from jaxcompress.moments.outputs import weighted_outputs
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import Layout, Site
from jaxcompress.networks.columns import kernel_columns
from jaxcompress.networks.trace import Network
from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import Dim
from jaxcompress.programs.program import Operand, Step

log = logging.getLogger(__name__)

Probe = Float[Array, "p p"] | Float[Array, " p"]
"""Zeros whose gradient is a contraction's sum of w g g', or its diagonal."""


# the sum is formed in the backward pass itself, so g is never stored for all rows
@jax.custom_vjp
def tag(rows: Float[Array, "n p"], weights: Float[Array, " n"], probe: Probe) -> jax.Array:
    """The rows as they are; in reverse mode the probe's gradient is the sum of w g g'."""
    return rows


def _tag_forward(
    rows: jax.Array, weights: jax.Array, probe: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return rows, (weights, probe)


def _tag_backward(
    saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    weights, probe = saved
    # a sum over many rows in half precision would stop growing
    plain = g.astype(jnp.float32)
    weighted = weights[:, None] * plain
    if probe.ndim == 1:
        return g, jnp.zeros_like(weights), jnp.sum(weighted * plain, 0)
    return g, jnp.zeros_like(weights), jnp.matmul(weighted.T, plain, precision="highest")


tag.defvjp(_tag_forward, _tag_backward)


class GradientTags(Accumulator):
    """Tags the results of a running program's contractions, so that probes receive gradients.

    Attributes:
        probes: by contraction; None only notes the widths.
        widths: filled with the number of outputs of each contraction.
    """

    derivatives = True

    def __init__(
        self,
        traced: TracedProgram,
        vectors: VectorWeights,
        probes: Mapping[str, Probe] | None,
        widths: dict[str, int],
    ):
        # no vectors are summed here: neither a shift nor the limit of dimensions is used
        super().__init__(traced, {}, vectors, 0)
        self.probes, self.widths = probes, widths

    def nested(self, turns: Dim | None, index: Int[Array, ""] | None) -> GradientTags:
        """The tags inside one turn of a loop."""
        vectors = self.vectors.in_turn(turns, index)
        return GradientTags(self.traced, vectors, self.probes, self.widths)

    def split_sums(self, turns: Dim | None) -> tuple[dict[str, Gathered], dict[str, Gathered]]:
        """No sums: differentiation adds gradients over the turns of a loop."""
        return {}, {}

    def observe(self, key: str, operands: list[Operand], step: Step) -> None:
        """Nothing to do: the gradient is that of the result."""

    def transform_result(self, key: str, step: Step, result: jax.Array) -> jax.Array:
        """Tag a contraction's result."""
        layout = self._rows_layout(key, step, result.ndim)
        if layout is None:
            return result
        order, features = layout
        lead = order[: len(order) - features]
        moved = jnp.transpose(result, order)
        rows = moved.reshape(-1, math.prod(moved.shape[len(lead) :]))
        if self.probes is None:
            self.widths[key] = rows.shape[-1]
            return result
        if key not in self.probes:
            return result
        sizes = [result.shape[place] for place in lead]
        dims = [step.outputs[0].dims[place] for place in lead]
        weights = self.vectors.weights(key, sizes, dims).reshape(-1)
        tagged = tag(rows, weights, self.probes[key]).reshape(moved.shape)
        return jnp.transpose(tagged, np.argsort(order).tolist())

    def _rows_layout(self, key: str, step: Step, rank: int) -> tuple[list[int], int] | None:
        """An order of the result's dimensions with the parameter's last, and the number of those.

        None for a batched product, whose result is no single list of rows.
        """
        order = list(range(rank))
        if key in self.traced.analysis.pairs:
            return order, 0
        contraction = self.traced.analysis.contractions[key]
        if contraction.window:
            features = step.params["dimension_numbers"].out_spec[1]
            return [*order[:features], *order[features + 1 :], features], 1
        if contraction.rows is not None:
            return order, 1
        if contraction.batch:
            return None
        side = contraction.operand
        contracted = step.params["dimension_numbers"][0][1 - side]
        free = len(step.inputs[1 - side].shape) - len(contracted)
        return (order if side == 0 else [*order[free:], *order[:free]]), free


class OutputSensitivity:
    """Gathers the second moments of the outputs' gradient, batch by batch, in float64."""

    def __init__(self, net: Network, mask: Callable[..., jax.Array] | None, max_dim: int):
        self.net, self.mask, self.max_dim = net, mask, max_dim
        self.sums: dict[str, np.ndarray] = {}
        self.invalid: set[str] = set()
        self.outputs = 0.0
        self._probes: dict[str, jax.Array] | None = None
        self._traced: TracedProgram | None = None
        self._gather = jax.jit(self._gradients)

    def add(self, params: PyTree, inputs: tuple[PyTree, ...], batch: int) -> None:
        """Add one batch.

        Raises:
            ValueError: where the network has no floating-point output.
        """
        if self._probes is None:
            self._probes = self._make_probes(params, inputs)
            self._traced = self.net.traced_program(params, *inputs)
        gradients, count = self._gather(params, inputs, self._probes, jax.random.key(batch))
        for key, value in gradients.items():
            self.sums[key] = self.sums.get(key, 0) + np.asarray(value, np.float64)
            if not np.isfinite(self.sums[key]).all() and key not in self.invalid:
                self.invalid.add(key)
                log.warning(
                    "batch %d: the gradient of the outputs is NaN or infinite at %s: "
                    "its sensitivity is left out",
                    batch,
                    key,
                )
        self.outputs += float(count)

    def gains(self, params: PyTree) -> dict[str, Statistic]:
        """For each contraction G per output, in the axes that its kernel produces."""
        sizes = self.net.sizes(params)
        gains: dict[str, Statistic] = {}
        for key in self.sums.keys() - self.invalid:
            site = self.net.structure.sites.get(key)
            if site is not None and len(site.leaves) > 1:
                gains |= self._gains_of_leaves(site, sizes)
                continue
            gain = self._gain(key, sizes)
            if gain is not None:
                gains[key] = gain
        return {key: gains[key] for key in sorted(gains)}

    def _gains_of_leaves(self, site: Site, sizes: Mapping[str, int]) -> dict[str, Statistic]:
        """G of each leaf that a kernel is put together from, such as a gate's; or none of them."""
        assert self._traced is not None
        columns = None
        if not site.layers and set(site.inputs) == set(site.leaves):
            columns = kernel_columns(self._traced, self.net.structure, site, sizes)
        gains = {}
        for name, places in (columns or {}).items():
            layouts = enumerate(self.net.structure.layouts[name])
            dims = [layout for place, layout in layouts if place not in site.inputs[name]]
            mean = self._mean(site.key)
            for axis in range(mean.ndim):
                mean = np.take(mean, places, axis)
            resized = tuple(dim.resized(sizes) for dim in dims)
            zeros = np.zeros(len(places))
            gains[gain_key(site, name)] = Statistic((), resized, self.outputs, zeros, mean)
        return gains

    def _mean(self, key: str) -> np.ndarray:
        return self.sums[key] / max(self.outputs, 1e-30)

    def _gain(self, key: str, sizes: Mapping[str, int]) -> Statistic | None:
        """One contraction's G; None where its outputs are not the dimensions of one kernel."""
        mean, structure = self._mean(key), self.net.structure
        site = structure.sites.get(key)
        dims: tuple[Layout, ...] | None = ()
        if site is not None:
            dims = produced(structure.layouts, site)
        if dims is None:
            return None
        dims = tuple(dim.resized(sizes) for dim in dims)
        if math.prod(dim.size for dim in dims) != len(mean):
            return None
        if site is not None:
            order = transposition(dims, tuple(dim.resized(sizes) for dim in site.outputs))
            if order is None:
                return None
            for axis in range(mean.ndim):
                mean = np.take(mean, order, axis)
        return Statistic((), dims, self.outputs, np.zeros(len(mean)), mean)

    def _make_probes(self, params: PyTree, inputs: tuple[PyTree, ...]) -> dict[str, Probe]:
        widths: dict[str, int] = {}

        def run(params: PyTree, inputs: tuple[PyTree, ...]) -> list[tuple[jax.Array, jax.Array]]:
            return self._outputs(params, inputs, None, widths)

        # an abstract run suffices for the widths
        if not jax.eval_shape(run, params, inputs):
            raise ValueError(
                "calibrate: sensitivity needs outputs that are floats: "
                "trace a function that returns logits"
            )
        return {
            key: jnp.zeros((p,) if p > self.max_dim else (p, p), jnp.float32)
            for key, p in widths.items()
        }

    def _gradients(
        self, params: PyTree, inputs: tuple[PyTree, ...], probes: dict[str, Probe], key: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """The probes' gradients under random signs of the outputs, and the outputs' weight."""

        def total(probes: dict[str, Probe]) -> tuple[jax.Array, jax.Array]:
            outputs = self._outputs(params, inputs, probes, {})
            keys = jax.random.split(key, len(outputs))
            signed = [_signed_sum(key, *output) for key, output in zip(keys, outputs, strict=True)]
            count = jnp.asarray(sum(weights.sum() for _, weights in outputs))
            return jnp.asarray(sum(signed)), count

        return jax.grad(total, has_aux=True)(probes)

    def _outputs(
        self,
        params: PyTree,
        inputs: tuple[PyTree, ...],
        probes: Mapping[str, Probe] | None,
        widths: dict[str, int],
    ) -> list[tuple[jax.Array, jax.Array]]:
        """The real parts of all floating-point outputs that are no state, with their weights."""
        traced = self.net.traced_program(params, *inputs)
        vectors = vector_weights(traced, inputs, self.mask)
        tags = GradientTags(traced, vectors, probes, widths)
        outputs = self.net.replay(params, *inputs, tap=tags)
        return weighted_outputs(self.net, traced, vectors, outputs)


def _signed_sum(key: jax.Array, output: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(jax.random.rademacher(key, output.shape, jnp.float32) * weights * output)


def transposition(kernel: tuple[Layout, ...], product: tuple[Layout, ...]) -> list[int] | None:
    """For every position of the kernel's outputs its place in the product.

    None where the two do not have the same axes.
    """
    ours, theirs = _wide_leaves(kernel), _wide_leaves(product)
    our_keys, their_keys = [part.key for part in ours], [part.key for part in theirs]
    if our_keys == their_keys:
        return list(range(math.prod(dim.size for dim in kernel)))
    concatenated = any(dim.split == "concat" for dim in (*kernel, *product))
    repeated = len(set(our_keys)) < len(our_keys)
    if concatenated or repeated or sorted(our_keys) != sorted(their_keys):
        return None
    sizes = [part.size for part in theirs]
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return np.transpose(grid, [their_keys.index(key) for key in our_keys]).ravel().tolist()


def _wide_leaves(dims: tuple[Layout, ...]) -> list[Layout]:
    """The single axes in some dimensions, without those of size one."""
    leaves: list[Layout] = []
    for dim in dims:
        leaves += [part for part in dim.leaves() if part.size > 1]
    return leaves


def produced(layouts: Mapping[str, tuple[Layout, ...]], site: Site) -> tuple[Layout, ...] | None:
    """The dimensions of one kernel that its product has.

    None where several kernels or the layers of a loop make the product.
    """
    if len(site.leaves) != 1 or site.layers:
        return None
    if not site.dims:  # a look-up: the table's other dimension
        return (layouts[site.leaves[0]][1],)
    if len(site.inputs) != 1:
        return None
    ((leaf, inputs),) = site.inputs.items()
    return tuple(layout for place, layout in enumerate(layouts[leaf]) if place not in inputs)
