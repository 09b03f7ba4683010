"""A multilayer perceptron: dense layers with a nonlinearity between them.

`x -> relu(x W1 + b1) -> ... -> logits`. It is an ordinary Flax module; its parameters are an
ordinary tree. With `linear=k` a projection `s = x S` to k numbers is computed once, and every
layer behind the first reads it beside its own input: `h -> relu([h, s] W + b)`. That costs
`m k` numbers for m features, and `k n` for each later layer of n units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn


class MLP(nn.Module):
    """Dense layers of the given widths, with an activation after all but the last.

    Attributes:
        widths: the size of each layer's output; the last is the number of classes.
        activation: the nonlinearity between layers.
        linear: the width of a linear projection of the inputs that every layer behind the first
            reads as well; 0 for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxcompress.models.mlp import MLP
        >>> model = MLP((256, 256, 10))
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 64)))
        >>> model.apply(params, jnp.ones((5, 64))).shape
        (5, 10)

        With a linear projection that all later layers read:

        >>> params = MLP((32, 10), linear=4).init(jax.random.key(0), jnp.ones((1, 64)))["params"]
        >>> params["linear"]["kernel"].shape, params["Dense_1"]["kernel"].shape
        ((64, 4), (36, 10))
    """

    widths: Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    linear: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, widths[-1]) of inputs (batch, features)."""
        shared = nn.Dense(self.linear, use_bias=False, name="linear")(x) if self.linear else None
        for index, width in enumerate(self.widths):
            if index:
                x = self.activation(x)
                x = x if shared is None else jnp.concatenate([x, shared], axis=-1)
            x = nn.Dense(width)(x)
        return x
