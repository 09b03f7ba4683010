"""The outputs of a network as weighted arrays, for losses and errors of all of them.

Floating-point outputs that are no state count, each at the places that the mask of the data leaves.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxcompress.arrays.paths import leaf_name
from jaxcompress.moments.masks import VectorWeights
from jaxcompress.networks.trace import Network
from jaxcompress.networks.traced_program import TracedProgram

Weighted = tuple[Float[Array, "*shape"], Float[Array, "*shape"]]
"""An output, and the weight of each of its entries."""


def weighted_outputs(
    net: Network, traced: TracedProgram, vectors: VectorWeights, outputs: PyTree
) -> list[Weighted]:
    """The real parts of all floating-point outputs that are no state, with their weights.

    Args:
        net: the network.
        traced: its program at the batch's shapes.
        vectors: the weights of the batch's vectors.
        outputs: what the network gave.
    """
    weighted = []
    leaves = jax.tree_util.tree_flatten_with_path(outputs)[0]
    for (path, leaf), value in zip(leaves, traced.program.outputs, strict=True):
        if _is_state(net, leaf_name(path)) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        weights = vectors.weights("an output", leaf.shape, value.dims)
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        for part in (leaf.real, leaf.imag) if is_complex else (leaf,):
            weighted.append((part, weights))
    return weighted


def _is_state(net: Network, name: str) -> bool:
    """Whether an output is a new value of a parameter."""
    return any(name == state or name.startswith(f"{state}/") for state in net.state_outputs)
