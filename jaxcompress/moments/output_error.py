"""How far the outputs of two versions of a network are from each other, on the same data.

The error is squared, and relative to the outputs' own power. Costs both forward passes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcompress.moments.calibration import Calibration
from jaxcompress.moments.masks import vector_weights
from jaxcompress.moments.outputs import weighted_outputs
from jaxcompress.networks.trace import Network


def output_error(net: Network, data: Calibration) -> Callable[[PyTree, PyTree], float]:
    """A function to the squared difference of two versions' outputs, relative to the first's power.

    Args:
        net: the network.
        data: what is run.

    Returns:
        A function of the original parameters and of the others.
    """

    @jax.jit
    def sums(
        before: PyTree, after: PyTree, inputs: tuple[PyTree, ...]
    ) -> list[tuple[jax.Array, jax.Array]]:
        traced = net.traced_program(before, *inputs)
        vectors = vector_weights(traced, inputs, data.mask)
        pairs = zip(
            weighted_outputs(net, traced, vectors, net.replay(before, *inputs)),
            weighted_outputs(net, traced, vectors, net.replay(after, *inputs)),
            strict=True,
        )
        return [_gap_and_power(ours, theirs, weights) for (ours, weights), (theirs, _) in pairs]

    def error(before: PyTree, after: PyTree) -> float:
        total = np.zeros(2)
        for inputs in data.values(net):
            total += np.sum(np.asarray(sums(before, after, inputs), np.float64), axis=0)
        return float(total[0] / max(total[1], np.finfo(np.float64).tiny))

    return error


def _gap_and_power(
    ours: jax.Array, theirs: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The sums of the squared difference and of the squares, where there is weight."""
    ours, theirs = (jnp.where(weights > 0, part, 0).astype(jnp.float32) for part in (ours, theirs))
    return jnp.sum(weights * (ours - theirs) ** 2), jnp.sum(weights * ours**2)
