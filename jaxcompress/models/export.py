"""Encoders written as plain BERT folders, which transformers and sentence-transformers read.

Pruned layers may differ in their neurons, heads and sizes of heads, and a plain BERT has one number
of each. Smaller ones are padded with zeros, which changes nothing: a neuron or a head whose output
weights are zero adds zero, and a zero coordinate adds zero to a query's product with a key. The
folder therefore stores up to the largest layer's numbers for every layer.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import PyTree

from jaxcompress.models.bert import BertConfig
from jaxcompress.models.families import SIZES, tensors_of
from jaxcompress.models.files import Json
from jaxcompress.models.sentence_transformers import LEGACY_POOLINGS, TORCH_ACTIVATIONS

SPECIAL_TOKENS = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
"""The spellings of special tokens in BERT's and RoBERTa's vocabularies."""


def plain_bert(config: BertConfig, params: PyTree) -> tuple[BertConfig, PyTree]:
    """A BERT of one width per kind of layer that computes the same.

    Args:
        config: the configuration at which the module is traced.
        params: dense parameters, possibly narrower along hidden axes.

    Returns:
        The configuration with the sizes of the parameters, and the parameters, padded with zeros
        where the layers differ.

    Raises:
        ValueError: for layers that are linear maps, and for heads that are too wide for the hidden
            size; a plain BERT can express neither.
    """
    if config.linear_layers:
        raise ValueError(
            f"a plain BERT has no layers that are linear maps, and layers "
            f"{', '.join(map(str, config.linear_layers))} are: keep or drop them instead"
        )
    params = {name: _as_numpy(part) for name, part in params.items()}
    layers = [params[f"layer_{index}"] for index in range(config.num_hidden_layers)]
    rows, hidden = params["words"]["embedding"].shape
    if not config.type_vocab_size:
        params["segments"] = {"embedding": np.zeros((1, hidden), np.float32)}
    heads = _head_count(layers, hidden)
    plain = dataclasses.replace(
        config,
        vocab_size=rows,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=max(layer["up"]["kernel"].shape[1] for layer in layers),
        max_position_embeddings=len(params["positions"]["embedding"]),
        type_vocab_size=len(params["segments"]["embedding"]),
    )
    # attention divides by the root of the head's size: the former one stays in force
    former = config.hidden_size // config.num_attention_heads
    scale = math.sqrt((hidden // heads) / former)
    padded = {
        f"layer_{index}": _padded_layer(layer, plain, scale) for index, layer in enumerate(layers)
    }
    return plain, params | padded


def _as_numpy(part: PyTree) -> PyTree:
    """A nested dict of arrays, as numpy arrays in float32."""
    if isinstance(part, dict):
        return {name: _as_numpy(inside) for name, inside in part.items()}
    return np.asarray(part, np.float32)


def _head_count(layers: list[PyTree], hidden: int) -> int:
    """The fewest heads of one size that hold those of all layers."""
    shapes = [
        layer["attention"][part]["kernel"].shape for layer in layers for part in ("key", "value")
    ]
    count, size = (max(shape[axis] for shape in shapes) for axis in (1, 2))
    for heads in range(count, hidden + 1):
        if hidden % heads == 0 and hidden // heads >= size:
            return heads
    raise ValueError(
        f"a plain BERT of width {hidden} has heads of at most {hidden} numbers together, and "
        f"{count} heads of size {size} do not fit: prune the heads' sizes with the width"
    )


def _padded_layer(layer: PyTree, plain: BertConfig, scale: float) -> PyTree:
    """A layer at the sizes of a configuration, with queries times a scale."""
    d, f, heads = plain.hidden_size, plain.intermediate_size, plain.num_attention_heads
    size = d // heads
    into = {"kernel": (d, heads, size), "bias": (heads, size)}
    shapes = {"query": into, "key": into, "value": into}
    shapes["out"] = {"kernel": (heads, size, d), "bias": (d,)}
    attention = {part: _padded(layer["attention"][part], shapes[part]) for part in shapes}
    attention["query"] = {
        name: (scale * leaf).astype(np.float32) for name, leaf in attention["query"].items()
    }
    return layer | {
        "attention": attention,
        "up": _padded(layer["up"], {"kernel": (d, f), "bias": (f,)}),
        "down": _padded(layer["down"], {"kernel": (f, d), "bias": (d,)}),
    }


def _padded(part: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> PyTree:
    """Arrays with zeros after their entries, up to the given shapes."""
    return {
        name: np.pad(leaf, [(0, new - old) for old, new in zip(leaf.shape, shapes[name])])
        for name, leaf in part.items()
    }


# --- files ---


def write_bert(
    folder: Path, config: BertConfig, params: PyTree, tokenizer: str, length: int
) -> None:
    """Write a BERT to a folder of sentence-transformers, which transformers also reads.

    Args:
        folder: an empty folder.
        config: the configuration, from `plain_bert`.
        params: the parameters, from `plain_bert`.
        tokenizer: the content of `tokenizer.json`.
        length: the largest number of tokens of a text.
    """
    from safetensors.numpy import save_file

    vocabulary = _vocabulary(json.loads(tokenizer))
    special = {name: token for name, token in _special(vocabulary) if token is not None}
    sizes = {name: getattr(config, name) for name in SIZES}
    pad = vocabulary.get(special.get("pad_token", ""), 0)
    kind = {"architectures": ["BertModel"], "model_type": "bert", "pad_token_id": pad}
    _write(folder / "config.json", kind | sizes | {"torch_dtype": "float32"})
    tensors = {spec.name: _stored(params, spec.place, spec.pattern) for spec in tensors_of(config)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
    _write(folder / "tokenizer_config.json", fast | special)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    _write_modules(folder, config, params)


def _stored(params: PyTree, place: tuple[str, ...], pattern: str) -> np.ndarray:
    """A parameter in the layout of the file."""
    for part in place:
        params = params[part]
    theirs, ours = pattern.split(" -> ")
    return np.ascontiguousarray(rearrange(params, f"{ours} -> {theirs}"))


def _vocabulary(tokenizer: Json) -> dict[str, int]:
    """The ids of the special tokens, which every tokenizer lists as added."""
    return {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", ())}


def _special(vocabulary: dict[str, int]) -> Iterator[tuple[str, str | None]]:
    """The names of special tokens, and those that there are."""
    for name, spellings in SPECIAL_TOKENS.items():
        yield name, next((token for token in spellings if token in vocabulary), None)


def _write_modules(folder: Path, config: BertConfig, params: PyTree) -> None:
    """Write the list of modules, and those after the encoder."""
    from safetensors.numpy import save_file

    kinds = ["Transformer", "Pooling", *["Dense"] * len(config.projections)]
    kinds += ["Normalize"] * config.normalize
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
    for path in paths[1:]:
        (folder / path).mkdir()
    _write(folder / "1_Pooling" / "config.json", _pooling(config))
    width = config.hidden_size * len(config.pooling.split("+"))
    torch = {ours: theirs for theirs, ours in TORCH_ACTIVATIONS.items()}
    for index, projection in enumerate(config.projections):
        described = {
            "in_features": width,
            "out_features": projection.features,
            "bias": projection.bias,
            "activation_function": f"torch.nn.modules.{_torch(torch[projection.activation])}",
        }
        layer = params["head"][f"projection_{index}"]
        tensors = {"linear.weight": np.ascontiguousarray(layer["kernel"].T)}
        if projection.bias:
            tensors["linear.bias"] = layer["bias"]
        target = folder / paths[2 + index]
        _write(target / "config.json", described)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        width = projection.features
    entries = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (kind, path) in enumerate(zip(kinds, paths))
    ]
    _write(folder / "modules.json", entries)


def _torch(name: str) -> str:
    """The module and the name of a torch activation."""
    return f"{'linear' if name == 'Identity' else 'activation'}.{name}"


def _pooling(config: BertConfig) -> dict[str, Json]:
    """The configuration of the pooling, by flags, or by a list where their order is another."""
    modes = config.pooling.split("+")
    width = {"word_embedding_dimension": config.hidden_size}
    flagged = {flag: mode in modes for flag, mode in LEGACY_POOLINGS.items()}
    if modes == [mode for flag, mode in LEGACY_POOLINGS.items() if flagged[flag]]:
        return width | flagged
    return width | {"pooling_mode": modes}


def _write(path: Path, content: Json) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
