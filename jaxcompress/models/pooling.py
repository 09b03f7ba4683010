"""From hidden states to an embedding: pooling, dense projections, and scaling to length 1.

Every pooling but the maximum is a weighted sum over the tokens, `e = sum_t w_t h_t`. Several of
them may be concatenated. A projection is `activation(e W + b)` and stores `d r + r` numbers.

Source: the modules of sentence-transformers, Reimers and Gurevych 2019 (arXiv:1908.10084).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxcompress.models.activations import ACTIVATIONS, check_activation

Weights = Float[Array, "batch length"]


@dataclasses.dataclass(frozen=True)
class Projection:
    """A dense layer after the pooling.

    Attributes:
        features: the width of its output.
        activation: the activation's name, of `jaxcompress.models.activations.ACTIVATIONS`.
        bias: whether it adds a bias.
    """

    features: int
    activation: str = "linear"
    bias: bool = True

    def __post_init__(self) -> None:
        check_activation("activation", self.activation)


def mean_weights(mask: Weights) -> Weights:
    """Equal weights of sum 1 for the tokens."""
    return mask / jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)


def root_weights(mask: Weights) -> Weights:
    """The inverse square root of the number of tokens, for every token."""
    return mask * jax.lax.rsqrt(jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1))


def rising_weights(mask: Weights) -> Weights:
    """Weights of sum 1 in proportion to the token's position, counted from 1."""
    return mean_weights(mask * jnp.arange(1, mask.shape[-1] + 1, dtype=mask.dtype))


def last_weights(mask: Weights) -> Weights:
    """1 for the last token."""
    count = jnp.sum(mask, -1, keepdims=True)
    return (jnp.arange(1, mask.shape[-1] + 1, dtype=mask.dtype) == count).astype(mask.dtype)


WEIGHTS: Mapping[str, Callable[[Weights], Weights]] = {
    "mean": mean_weights,
    "mean_sqrt_len_tokens": root_weights,
    "weightedmean": rising_weights,
    "lasttoken": last_weights,
}
POOLINGS = ("cls", "max", *WEIGHTS)


def pooled(
    pooling: str, h: Float[Array, "batch length hidden"], mask: Bool[Array, "batch length"]
) -> Float[Array, "batch pooled"]:
    """Hidden states pooled over the tokens.

    Args:
        pooling: one of `POOLINGS`, or several joined by "+", which are concatenated.
        h: the hidden states.
        mask: true at tokens, false at padding, which comes last.

    Returns:
        Vectors of the hidden width times the number of poolings.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.models.pooling import pooled
        >>> h = jnp.array([[[1.0], [3.0], [9.0]]])
        >>> pooled("mean+max+lasttoken", h, jnp.array([[True, True, False]])).tolist()
        [[2.0, 3.0, 3.0]]
    """
    return jnp.concatenate([_pooled(mode, h, mask) for mode in pooling.split("+")], axis=-1)


def _pooled(mode: str, h: jax.Array, mask: jax.Array) -> jax.Array:
    """Hidden states pooled in one way."""
    if mode == "cls":
        return h[:, 0]
    if mode == "max":
        kept = jnp.where(mask[..., None], h, jnp.finfo(h.dtype).min)
        # a row of padding has no maximum
        return jnp.where(jnp.any(mask, -1, keepdims=True), jnp.max(kept, axis=1), 0)
    return jnp.einsum("btd,bt->bd", h, WEIGHTS[mode](mask.astype(h.dtype)))


class Head(nn.Module):
    """Embeddings from hidden states: pooling, projections, normalisation.

    Attributes:
        pooling: as for `pooled`.
        projections: the dense layers after the pooling, in their order.
        normalize: whether the result is scaled to length 1.
    """

    pooling: str
    projections: tuple[Projection, ...]
    normalize: bool

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch length hidden"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch features"]:
        """Embed texts by their hidden states."""
        h = pooled(self.pooling, h, mask)
        for index, projection in enumerate(self.projections):
            dense = nn.Dense(
                projection.features, use_bias=projection.bias, name=f"projection_{index}"
            )
            h = ACTIVATIONS[projection.activation](dense(h))
        return unit(h) if self.normalize else h


def unit(h: jax.Array) -> jax.Array:
    """Vectors scaled to length 1; zero, such as a row of padding, stays zero with zero gradient."""
    return h * jax.lax.rsqrt(jnp.maximum(jnp.sum(h * h, axis=-1, keepdims=True), 1e-24))
