"""BERT as an ordinary Flax encoder; `jaxcompress.models.hugging_face` reads its weights.

Post layer norm, exact gelu, absolute positions: `h <- LN(h + attention(h))`, `h <- LN(h +
down(gelu(up(h))))`, then a pooling over the tokens. RoBERTa and DistilBERT are the same function
with other rows of positions and without types of tokens. Stores `V d` numbers for a vocabulary of V
word pieces and `4 d^2 + 2 d f` per layer with f neurons. A layer costs `8 d^2 + 4 d f` FLOPs per
token, and `4 n d` for attention over n tokens.

Source: Devlin et al. 2018 (arXiv:1810.04805); Reimers and Gurevych 2019 (arXiv:1908.10084) for
sentence embeddings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxcompress.models.activations import ACTIVATIONS, check_activation
from jaxcompress.models.pooling import POOLINGS, Head, Projection


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The configuration of a BERT, with the names of its `config.json`.

    Attributes:
        max_position_embeddings: the number of positions that a text may have.
        type_vocab_size: the number of types of tokens; 0 for none, as in DistilBERT.
        pooling: "mean" over unmasked tokens, "cls" for the first token, or another one of
            `jaxcompress.models.pooling.POOLINGS`; several, joined by "+", are concatenated. "none"
            for all hidden states.
        normalize: whether embeddings are scaled to length 1.
        projections: dense layers between the pooling and that scaling.
        linear_layers: indices of layers that are a linear map of a token, from `bypass`.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    pooling: str = "mean"
    normalize: bool = True
    linear_layers: tuple[int, ...] = ()
    projections: tuple[Projection, ...] = ()

    def __post_init__(self) -> None:
        # lists, where it was read from JSON; a cached network needs a hashable configuration
        object.__setattr__(self, "linear_layers", tuple(self.linear_layers))
        projections = (
            Projection(**given) if isinstance(given, dict) else given for given in self.projections
        )
        object.__setattr__(self, "projections", tuple(projections))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        check_activation("hidden_act", self.hidden_act)
        unknown = set(str(self.pooling).split("+")) - set(POOLINGS)
        if unknown and self.pooling != "none":
            raise ValueError(
                f"pooling {self.pooling!r} is unknown: expected one of {', '.join(POOLINGS)} or "
                f"none, or several joined by '+'"
            )

    @property
    def embedding_size(self) -> int:
        """The width of an embedding."""
        if self.projections:
            return self.projections[-1].features
        return self.hidden_size * len(self.pooling.split("+"))

    @property
    def head(self) -> Head:
        """The module from hidden states to embeddings."""
        return Head(self.pooling, self.projections, self.normalize, name="head")


class Bert(nn.Module):
    """The encoder, from token ids to sentence embeddings.

    Attributes:
        config: the configuration.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxcompress.models.bert import Bert, BertConfig
        >>> sizes = dict(num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        >>> model = Bert(BertConfig(100, 32, **sizes))
        >>> ids = jnp.array([[1, 5, 7, 2], [1, 9, 2, 0]])
        >>> params = model.init(jax.random.key(0), ids, ids > 0)["params"]
        >>> model.apply({"params": params}, ids, ids > 0).shape
        (2, 32)
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | Int[Array, "batch length"] | None = None,
        segments: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch hidden"] | Float[Array, "batch length hidden"]:
        """Encode sentences.

        Args:
            ids: token ids, with a length up to `max_position_embeddings`.
            mask: true or 1 at tokens, false or 0 at padding; all tokens by default.
            segments: segment ids, 0 by default.

        Returns:
            Embeddings (batch, hidden); without pooling, hidden states (batch, length, hidden).

        Raises:
            ValueError: for a length above the number of positions.
        """
        config = self.config
        norm = partial(nn.LayerNorm, config.layer_norm_eps, use_fast_variance=False)
        if ids.shape[-1] > config.max_position_embeddings:
            raise ValueError(
                f"{ids.shape[-1]} tokens are more than the {config.max_position_embeddings} "
                f"positions: cut the text"
            )
        mask = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        segments = jnp.zeros_like(ids) if segments is None else segments
        h = nn.Embed(config.vocab_size, config.hidden_size, name="words")(ids)
        h += nn.Embed(config.max_position_embeddings, config.hidden_size, name="positions")(
            jnp.arange(ids.shape[-1])[None]
        )
        if config.type_vocab_size:
            h += nn.Embed(config.type_vocab_size, config.hidden_size, name="segments")(segments)
        # one row per token: plain matrix products, nearly twice as fast by XLA on a CPU
        h = rearrange(norm(name="norm")(h), "batch token d -> (batch token) d")
        for index in range(config.num_hidden_layers):
            name = f"layer_{index}"
            linear = index in config.linear_layers
            h = (
                nn.Dense(config.hidden_size, name=name)(h)
                if linear
                else Layer(config, norm, name=name)(h, mask)
            )
        h = rearrange(h, "(batch token) d -> batch token d", batch=len(ids))
        return h if config.pooling == "none" else config.head(h, mask)


class Layer(nn.Module):
    """Attention and a feed-forward block with post layer norm, on (batch * length, hidden)."""

    config: BertConfig
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array) -> jax.Array:
        """One layer of the encoder."""
        h = self.norm(name="attention_norm")(h + Attention(self.config, name="attention")(h, mask))
        neurons = ACTIVATIONS[self.config.hidden_act](
            nn.Dense(self.config.intermediate_size, name="up")(h)
        )
        return self.norm(name="norm")(h + nn.Dense(self.config.hidden_size, name="down")(neurons))


class Attention(nn.Module):
    """Scaled dot-product attention within a text."""

    config: BertConfig

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array) -> jax.Array:
        """Attend to the tokens of the same text."""
        d, heads = self.config.hidden_size, self.config.num_attention_heads

        def project(name: str) -> jax.Array:
            projected = nn.DenseGeneral((heads, d // heads), name=name)(h)
            return rearrange(
                projected, "(batch token) head size -> batch head token size", batch=len(mask)
            )

        query, key, value = map(project, ("query", "key", "value"))
        scores = jnp.einsum("bhqs,bhts->bhqt", query, key) / math.sqrt(d // heads)
        kept = rearrange(mask, "batch token -> batch 1 1 token")
        weights = jax.nn.softmax(jnp.where(kept, scores, jnp.finfo(scores.dtype).min))
        mixed = rearrange(
            jnp.einsum("bhqt,bhts->bhqs", weights, value),
            "batch head token size -> (batch token) head size",
        )
        return nn.DenseGeneral(d, axis=(-2, -1), name="out")(mixed)


def without_layers(
    config: BertConfig, params: PyTree, dropped: Collection[int]
) -> tuple[BertConfig, PyTree]:
    """A BERT without some of its layers, which are replaced by the identity.

    Args:
        config: the encoder's configuration.
        params: the encoder's parameters.
        dropped: indices of the layers to remove.

    Returns:
        The configuration and the parameters, with the remaining layers renumbered.

    Raises:
        ValueError: for a layer that does not exist, or when no layer would remain.
    """
    kept = [index for index in range(config.num_hidden_layers) if index not in dropped]
    if not kept or not set(dropped) <= set(range(config.num_hidden_layers)):
        raise ValueError(
            f"without_layers: layers are 0 to {config.num_hidden_layers - 1}, and one must "
            f"stay; got {sorted(dropped)}"
        )
    layers = {f"layer_{place}": params[f"layer_{index}"] for place, index in enumerate(kept)}
    rest = {name: part for name, part in params.items() if not name.startswith("layer_")}
    linear = tuple(place for place, index in enumerate(kept) if index in config.linear_layers)
    return dataclasses.replace(
        config, num_hidden_layers=len(kept), linear_layers=linear
    ), rest | layers


def layer_states(
    config: BertConfig,
    params: PyTree,
    ids: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
) -> list[Float[Array, "batch length hidden"]]:
    """The input of every layer and the output of the last."""
    layers = [f"layer_{index}" for index in range(config.num_hidden_layers)]
    module, wanted = Bert(config), ("norm", *layers)

    def chosen(submodule: nn.Module, method: str) -> bool:
        return method == "__call__" and submodule.path in {(name,) for name in wanted}

    variables: PyTree = module.apply(
        {"params": params}, ids, mask, capture_intermediates=chosen, mutable="intermediates"
    )[1]
    first, *rest = (variables["intermediates"][name]["__call__"][0] for name in wanted)
    return [
        first,
        *(rearrange(h, "(batch token) d -> batch token d", batch=len(ids)) for h in rest),
    ]


def bypass(
    config: BertConfig,
    params: PyTree,
    index: int,
    inputs: Float[np.ndarray, "tokens hidden"],
    outputs: Float[np.ndarray, "tokens hidden"],
) -> tuple[BertConfig, PyTree]:
    """A BERT with one layer replaced by a least-squares linear map of its inputs.

    Args:
        config: the encoder's configuration.
        params: the encoder's parameters.
        index: the layer.
        inputs: the inputs of the layer, from `layer_states`.
        outputs: the outputs of the layer for these.

    Returns:
        The configuration and the parameters; the layer has a kernel (hidden, hidden) and a bias.

    Raises:
        ValueError: for a layer that does not exist.
    """
    if not 0 <= index < config.num_hidden_layers:
        raise ValueError(f"bypass: layers are 0 to {config.num_hidden_layers - 1}, got {index}")
    x, y = np.asarray(inputs, np.float64), np.asarray(outputs, np.float64)
    mean = x.mean(0), y.mean(0)
    second = (x - mean[0]).T @ (x - mean[0])
    # hidden states fill few directions; the others would get arbitrary weights
    ridge = 1e-3 * np.trace(second) / len(second) * np.eye(len(second))
    kernel = np.linalg.solve(second + ridge, (x - mean[0]).T @ (y - mean[1]))
    bias = mean[1] - mean[0] @ kernel
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    linear = tuple(sorted({*config.linear_layers, index}))
    return dataclasses.replace(config, linear_layers=linear), params | {f"layer_{index}": layer}
