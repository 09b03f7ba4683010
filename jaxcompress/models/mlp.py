"""A multilayer perceptron: dense layers with a nonlinearity between them.

`x -> relu(x W1 + b1) -> ... -> logits`. It is an ordinary Flax module; its parameters are an
ordinary tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
from flax import linen as nn


class MLP(nn.Module):
    """Dense layers of the given widths, with an activation after all but the last.

    Attributes:
        widths: the size of each layer's output; the last is the number of classes.
        activation: the nonlinearity between layers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxcompress.models.mlp import MLP
        >>> model = MLP((256, 256, 10))
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 64)))
        >>> model.apply(params, jnp.ones((5, 64))).shape
        (5, 10)
    """

    widths: Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, widths[-1]) of inputs (batch, features)."""
        for width in self.widths[:-1]:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)
