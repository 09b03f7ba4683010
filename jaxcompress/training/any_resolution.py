"""Training at a random resolution each time, so that one network serves every width.

Each step coarsens the hidden axes by a factor drawn anew and takes the loss there; the gradient goes back through the averages to
the parameters at full size. Costs a step at the drawn size and one pass over the parameters.

Source: Integral Neural Networks (Solodskikh et al. 2023), trained on random partitions of their axes.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import jax

from jaxcompress.networks.trace import Network
from jaxcompress.training.fit import Loss
from jaxcompress.transforms.resolution import coarsen


def at_any_resolution(
    net: Network,
    loss: Loss,
    factors: Iterable[float | Fraction] = (1, Fraction(4, 3), 2, 4),
    *,
    basis: str = "step",
    axes: str = "**",
) -> Loss:
    """A loss at a random resolution each time: the network that it trains can be coarsened without fine-tuning.

    Args:
        net: from `jc.trace`.
        loss: `loss(params, batch, key) -> scalar` that runs at any sizes: `jc.training.cross_entropy(net)`.
        factors: how many times fewer channels, one of them each time; 1 is all of them. Afterwards
            `jc.coarsen(net, factor)(params)` is a network for these factors and for those in between.
        basis, axes: as for `jc.coarsen`.

    Returns:
        A loss of parameters at the full sizes, for `jc.fit`; each factor is compiled as a branch of its own. Its key draws the
        factor, so it needs one.

    Raises:
        ValueError: for no factor, or one below 1; when called, for no key.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params, x = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}, jnp.ones((5, 3))
        >>> net = jc.trace(apply, params, x)
        >>> loss = jc.training.at_any_resolution(net, jc.training.cross_entropy(net), (1, 2))
        >>> jax.grad(loss)(params, (x, jnp.zeros(5, int)), jax.random.key(0))["up"].shape
        (3, 8)
    """
    changes = [coarsen(net, factor, basis=basis, axes=axes) for factor in factors]
    if not changes:
        raise ValueError("at_any_resolution needs factors, such as (1, 2, 4)")

    def anywhere(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        if key is None:
            raise ValueError("a loss at any resolution draws one: give it a key, as jc.fit does")
        which, rest = jax.random.split(key)
        branches = [
            lambda params, change=change: loss(change(params), batch, rest) for change in changes
        ]
        return jax.lax.switch(jax.random.randint(which, (), 0, len(branches)), branches, params)

    return anywhere
