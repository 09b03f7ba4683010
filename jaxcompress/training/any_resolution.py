"""Training at a random resolution in every step, so that one network serves every width.

Each step coarsens the hidden axes by a randomly drawn factor and takes the loss there; the gradient
is that of the parameters at full size, through the averages. Costs a step at the drawn size and one
pass over the parameters.

Source: Integral Neural Networks (Solodskikh et al. 2023), trained on random partitions of their
axes.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import partial

import jax
from jaxtyping import PyTree

from jaxcompress.checks import LOSS, checked, function, iterable, random_key
from jaxcompress.networks.trace import Network, network
from jaxcompress.training.losses import Loss
from jaxcompress.transforms.resolution import Coarsen, coarsen


@checked(net=network, loss=function(LOSS), factors=iterable)
def at_any_resolution(
    net: Network,
    loss: Loss,
    factors: Iterable[float | Fraction] = (1, Fraction(4, 3), 2, 4),
    *,
    basis: str = "step",
    axes: str = "**",
) -> Loss:
    """A loss at a random resolution: the trained network can be coarsened without fine-tuning.

    Args:
        net: from `jc.trace`.
        loss: `loss(params, batch, key) -> scalar` that runs at any sizes:
            `jc.training.cross_entropy(net)`.
        factors: the factors by which channels become fewer, one drawn per step; 1 keeps all.
            Afterwards `jc.coarsen(net, factor)(params)` is a network for these factors and for
            those in between.
        basis: as for `jc.coarsen`.
        axes: as for `jc.coarsen`.

    Returns:
        A loss of parameters at the full sizes, for `jc.fit`; each factor is compiled as a branch.
        Its key, which draws the factor, must not be None.

    Raises:
        ValueError: for no factor, or one below 1; when called, for no key.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params, x = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}, jnp.ones((5, 3))
        >>> net = jc.trace(apply, params, x)
        >>> loss = jc.training.at_any_resolution(net, jc.training.cross_entropy(net), (1, 2))
        >>> jax.grad(loss)(params, (x, jnp.zeros(5, int)), jax.random.key(0))["up"].shape
        (3, 8)
    """
    changes = [coarsen(net, factor, basis=basis, axes=axes) for factor in factors]
    if not changes:
        raise ValueError("at_any_resolution needs factors, such as (1, 2, 4)")

    def random_loss(params: PyTree, batch: PyTree, key: jax.Array) -> jax.Array:
        if key is None:
            raise ValueError(
                "at_any_resolution: the key draws the resolution: give it a key, as jc.fit does"
            )
        random_key("at_any_resolution: the loss's key", key)
        draw, rest = jax.random.split(key)

        def at_resolution(change: Coarsen, params: PyTree) -> jax.Array:
            return loss(change(params), batch, rest)

        branches = [partial(at_resolution, change) for change in changes]
        return jax.lax.switch(jax.random.randint(draw, (), 0, len(branches)), branches, params)

    return random_loss
