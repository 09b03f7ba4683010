"""Activations under the names that Hugging Face's configurations give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
from flax import linen as nn

Activation = Callable[[jax.Array], jax.Array]


def linear(x: jax.Array) -> jax.Array:
    """The identity."""
    return x


ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
    "linear": linear,
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "tanh": nn.tanh,
}


def check_activation(field: str, name: str) -> None:
    """Refuse an unknown activation.

    Args:
        field: where the name stands, for the error.
        name: the activation's name.

    Raises:
        ValueError: for a name that is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(
            f"{field} {name!r} is unknown: expected one of {', '.join(sorted(ACTIVATIONS))}"
        )
