"""BERT as an ordinary Flax encoder, read from a Hugging Face folder.

Post layer norm, exact gelu, absolute positions: `h <- LN(h + attention(h))`, `h <- LN(h +
down(gelu(up(h))))`, then the mean over the tokens, or the first one. Stores `V d` numbers for a
vocabulary of V word pieces and `4 d^2 + 2 d f` per layer with f neurons. A layer costs `8 d^2 + 4 d
f` FLOPs per token, and `4 n d` for attention over n tokens.

Source: Devlin et al. 2018 (arXiv:1810.04805); Reimers and Gurevych 2019 (arXiv:1908.10084) for
sentence embeddings.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PyTree

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}
Json: TypeAlias = Any
"""A value from `json.loads`."""
TensorSpec: TypeAlias = tuple[tuple[str, ...], str, tuple[int, ...], str]
"""Path of a parameter, name and shape of its tensor in the file, einops pattern between them."""
POOLINGS = ("mean", "cls", "none")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The configuration of a BERT, with the names of its `config.json`.

    Attributes:
        pooling: "mean" over unmasked tokens, "cls" for the first token, "none" for all hidden
            states.
        normalize: whether pooled vectors are scaled to length 1.
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

    def __post_init__(self) -> None:
        # a list, where it was read from JSON; a cached network needs a hashable configuration
        object.__setattr__(self, "linear_layers", tuple(self.linear_layers))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"hidden_act {self.hidden_act!r} is unknown: expected one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"pooling {self.pooling!r} is unknown: expected one of {', '.join(POOLINGS)}"
            )


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
            jnp.arange(ids.shape[-1])
        )
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
        return pool(config, h, mask)


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


def pool(
    config: BertConfig, h: Float[Array, "batch length hidden"], mask: Bool[Array, "batch length"]
) -> Float[Array, "batch *length hidden"]:
    """Embeddings from hidden states, as configured."""
    if config.pooling == "none":
        return h
    h = h[:, 0] if config.pooling == "cls" else mean(h, mask)
    return unit(h) if config.normalize else h


def mean(
    h: Float[Array, "batch length hidden"], mask: Bool[Array, "batch length"]
) -> Float[Array, "batch hidden"]:
    """The mean over unmasked tokens."""
    weight = mask.astype(h.dtype)
    count = jnp.maximum(reduce(weight, "batch token -> batch 1", "sum"), 1)
    return jnp.einsum("btd,bt->bd", h, weight) / count


def unit(h: jax.Array) -> jax.Array:
    """Vectors scaled to length 1; zero, such as a row of padding, stays zero with zero gradient."""
    return h * jax.lax.rsqrt(jnp.maximum(jnp.sum(h * h, axis=-1, keepdims=True), 1e-24))


# --- a Hugging Face folder ---


def load_bert(folder: str | os.PathLike[str]) -> tuple[Bert, PyTree]:
    """Read a BERT from a Hugging Face folder.

    Args:
        folder: holds `config.json` and `model.safetensors`. Pooling is read from the files of
            sentence-transformers, `1_Pooling/config.json` and `modules.json`; by default it is the
            mean, scaled to length 1.

    Returns:
        The module, and its parameters in float32, for `module.apply({"params": params}, ids,
        mask)`. The pooler and the pretraining heads are not read.

    Raises:
        FileNotFoundError: for a missing folder or file.
        ValueError: for another architecture, or a tensor that is missing or has another shape,
            which is named.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(path)!r}: expected one with config.json and model.safetensors"
        )
    config = read_config(path)
    return Bert(config), read_weights(path / "model.safetensors", config)


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, without padding or truncation.

    Args:
        folder: holds `tokenizer.json`.

    Raises:
        ImportError: when the package tokenizers is not installed.
        FileNotFoundError: for a missing file.
        ValueError: for a file that is not a tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ImportError(
            "reading tokenizer.json needs the package tokenizers: pip install 'jaxcompress[bert]'"
        ) from None
    text = text_of(Path(folder) / "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises plain exceptions
        raise ValueError(f"{Path(folder) / 'tokenizer.json'} is not a tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def text_of(path: Path) -> str:
    """The text of a file; the error for a missing one lists the folder."""
    if not path.is_file():
        there = (
            ", ".join(sorted(file.name for file in path.parent.iterdir()))
            if path.parent.is_dir()
            else "nothing"
        )
        raise FileNotFoundError(
            f"{path.name} is missing in {str(path.parent)!r}, which has: {there or 'nothing'}"
        )
    return path.read_text(encoding="utf-8")


def json_of(path: Path) -> Json:
    """A JSON file's content."""
    try:
        return json.loads(text_of(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def read_config(folder: Path) -> BertConfig:
    """The configuration in `config.json`, with the pooling of sentence-transformers if stored."""
    path = folder / "config.json"
    given = json_of(path)
    wanted = {
        "model_type": "bert",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    for key, value in wanted.items():
        if given.get(key, value) != value:
            raise ValueError(f"{path}: {key} is {given[key]!r}, and only {value!r} is read")
    fields = {field.name: field for field in dataclasses.fields(BertConfig)}
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in given
    ]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: expected the config.json of a BERT")
    sizes = {name: given[name] for name in fields if name in given}
    try:
        return BertConfig(**sizes | pooling_of(folder))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def pooling_of(folder: Path) -> dict[str, Json]:
    """The pooling that sentence-transformers stored; empty without its files."""
    fields: dict[str, Json] = {}
    if (folder / "1_Pooling" / "config.json").is_file():
        given = json_of(folder / "1_Pooling" / "config.json")
        modes = [
            name for name, on in given.items() if name.startswith("pooling_mode_") and on is True
        ]
        known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        mode = given.get("pooling_mode") or (known.get(modes[0]) if len(modes) == 1 else None)
        if mode not in ("mean", "cls"):
            raise ValueError(
                f"{folder / '1_Pooling' / 'config.json'} pools by {modes or mode}: only the "
                f"mean or cls is read"
            )
        fields["pooling"] = mode
    if (folder / "modules.json").is_file():
        fields["normalize"] = any(
            str(entry.get("type", "")).endswith("Normalize")
            for entry in json_of(folder / "modules.json")
        )
    return fields


def _check_weights_file(path: Path) -> None:
    """Refuse a missing file; where a pickle is there in its place, say how to convert it."""
    if path.is_file():
        return
    pickled = (
        " (pytorch_model.bin is a pickle, which is not read: save it again with "
        "safe_serialization=True)"
    )
    raise FileNotFoundError(
        f"there is no {path}{pickled if (path.parent / 'pytorch_model.bin').is_file() else ''}"
    )


def read_weights(path: Path, config: BertConfig) -> PyTree:
    """The parameters in a file of tensors under Hugging Face's names, with any prefix."""
    from safetensors import SafetensorError, safe_open

    _check_weights_file(path)
    try:
        file = safe_open(path, framework="flax")  # reads bfloat16, too
        names = list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None
    # older files name gamma and beta, and files with pretraining heads prefix names by "bert."
    stored = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        ): name
        for name in names
    }
    end = "embeddings.word_embeddings.weight"
    prefix = next((name.removesuffix(end) for name in stored if name.endswith(end)), "")
    params: PyTree = {}
    for place, name, shape, pattern in tensors_of(config):
        key = stored.get(prefix + name)
        if key is None:
            raise ValueError(
                f"{path} lacks the tensor {prefix + name!r} of shape {shape}; it holds "
                f"{len(names)} tensors, such as {names[:3]}"
            )
        stored_shape = tuple(file.get_slice(key).get_shape())
        if stored_shape != shape:
            raise ValueError(
                f"{path}: the tensor {key!r} has shape {stored_shape}, and "
                f"config.json implies {shape}"
            )
        values = np.asarray(file.get_tensor(key)).astype(np.float32)
        inside = params
        for part in place[:-1]:
            inside = inside.setdefault(part, {})
        heads = {"head": config.num_attention_heads} if "head" in pattern else {}
        inside[place[-1]] = jnp.asarray(rearrange(values, pattern, **heads))
    return params


def _norm(path: tuple[str, ...], name: str, d: int) -> Iterator[TensorSpec]:
    """The tensors of a layer norm."""
    yield (*path, "scale"), f"{name}.weight", (d,), "d -> d"
    yield (*path, "bias"), f"{name}.bias", (d,), "d -> d"


def _dense(
    path: tuple[str, ...],
    name: str,
    shape: tuple[int, int],
    kernel: str,
    bias: str = "out -> out",
) -> Iterator[TensorSpec]:
    """The tensors of an affine layer; the patterns are from the file's layout to ours."""
    yield (*path, "kernel"), f"{name}.weight", shape, kernel
    yield (*path, "bias"), f"{name}.bias", shape[:1], bias


def tensors_of(config: BertConfig) -> Iterator[TensorSpec]:
    """The parameters of a BERT and their tensors in a Hugging Face file."""
    d, f = config.hidden_size, config.intermediate_size

    sizes = {
        "words": config.vocab_size,
        "positions": config.max_position_embeddings,
        "segments": config.type_vocab_size,
    }
    for name, kind in zip(sizes, ("word", "position", "token_type")):
        yield (
            (name, "embedding"),
            f"embeddings.{kind}_embeddings.weight",
            (sizes[name], d),
            "row d -> row d",
        )
    yield from _norm(("norm",), "embeddings.LayerNorm", d)
    for index in range(config.num_hidden_layers):
        here, there = f"layer_{index}", f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            out = "(head size) d -> d head size", "(head size) -> head size"
            yield from _dense(
                (here, "attention", part), f"{there}.attention.self.{part}", (d, d), *out
            )
        into = "d (head size) -> head size d"
        yield from _dense(
            (here, "attention", "out"), f"{there}.attention.output.dense", (d, d), into
        )
        yield from _norm((here, "attention_norm"), f"{there}.attention.output.LayerNorm", d)
        yield from _dense((here, "up"), f"{there}.intermediate.dense", (f, d), "out d -> d out")
        yield from _dense((here, "down"), f"{there}.output.dense", (d, f), "d out -> out d")
        yield from _norm((here, "norm"), f"{there}.output.LayerNorm", d)
