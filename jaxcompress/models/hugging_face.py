"""Encoders read from Hugging Face folders: BERT, RoBERTa and DistilBERT, plain or with modules.

A folder holds `config.json`, `model.safetensors` and `tokenizer.json`, and those of
sentence-transformers list further modules. Everything that is not read is refused by name. Costs
one read of the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, PyTree

from jaxcompress.models.bert import Bert, BertConfig
from jaxcompress.models.families import (
    BERT_TENSORS,
    FAMILIES,
    SIZES,
    Family,
    model_type,
    tensors_of,
)
from jaxcompress.models.files import object_of, text_of
from jaxcompress.models.sentence_transformers import Modules, lowers_case, read_modules

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_bert(folder: str | os.PathLike[str]) -> tuple[Bert, PyTree]:
    """Read an encoder from a Hugging Face folder.

    Args:
        folder: holds `config.json` and `model.safetensors` of a BERT, RoBERTa (also XLM-R and
            CamemBERT) or DistilBERT. Pooling, projections and normalisation are read from the files
            of sentence-transformers; by default it is the mean, scaled to length 1.

    Returns:
        The module, and its parameters in float32, for `module.apply({"params": params}, ids,
        mask)`. The pooler and the pretraining heads are not read. The rows of positions that
        RoBERTa never uses are left out; a padding token inside a text counts as any other.

    Raises:
        FileNotFoundError: for a missing folder or file.
        ValueError: for another architecture or module, or a tensor that is missing or has another
            shape, which is named.

    Example:
        >>> import json, pathlib, tempfile
        >>> from jaxcompress.models.hugging_face import load_bert
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "config.json").write_text('{"model_type": "mpnet"}')
        ...     load_bert(folder)
        Traceback (most recent call last):
        ValueError: ...config.json: the model is a 'mpnet', and only bert, roberta, ... are read
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(path)!r}: expected one with config.json and model.safetensors"
        )
    modules = read_modules(path)
    family, config, unused = read_config(modules)
    params = read_weights(modules.encoder / "model.safetensors", config, family, unused)
    if modules.projections:
        params["head"] = _read_projections(modules, config)
    return Bert(config), params


def read_config(modules: Modules) -> tuple[Family, BertConfig, int]:
    """The spelling, the configuration and the number of rows of positions that are not used."""
    path = modules.encoder / "config.json"
    given = object_of(path)
    family = FAMILIES[model_type(given, path)]
    wanted = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    for key, value in wanted.items():
        if given.get(key, value) != value:
            raise ValueError(f"{path}: {key} is {given[key]!r}, and only {value!r} is read")
    keys = {name: family.fields.get(name, name) for name in SIZES}
    missing = [key for key in list(keys.values())[:5] if key not in given]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: expected the config.json of a BERT")
    sizes = {name: given[key] for name, key in keys.items() if key in given}
    if not family.typed:
        sizes["type_vocab_size"] = 0
    unused = (given.get("pad_token_id") or 1) + 1 if family.padded else 0
    sizes["max_position_embeddings"] = sizes.get("max_position_embeddings", 512) - unused
    head = {
        "pooling": modules.pooling,
        "normalize": modules.normalize,
        "projections": modules.projections,
    }
    try:
        return family, BertConfig(**sizes | head), unused
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_weights(
    path: Path, config: BertConfig, family: Family, unused: int = 0
) -> dict[str, PyTree]:
    """The parameters in a file of tensors under Hugging Face's names, with any prefix.

    Args:
        path: the file.
        config: the configuration, whose positions are those that are used.
        family: the spelling of the names.
        unused: the number of rows before the first position.
    """
    tensors = Tensors(path)
    end = f"{BERT_TENSORS['words']}.weight"
    prefix = next((name.removesuffix(end) for name in tensors.stored if name.endswith(end)), "")
    params: PyTree = {}
    heads = {"head": config.num_attention_heads}
    for spec in tensors_of(config, family.tensors):
        skipped = unused if spec.place[0] == "positions" else 0
        shape = spec.shape[0] + skipped, *spec.shape[1:]
        values = tensors.read(prefix + spec.name, shape)[skipped:]
        inside = params
        for part in spec.place[:-1]:
            inside = inside.setdefault(part, {})
        sizes = heads if "head" in spec.pattern else {}
        inside[spec.place[-1]] = jnp.asarray(rearrange(values, spec.pattern, **sizes))
    return params


def _read_projections(modules: Modules, config: BertConfig) -> dict[str, dict[str, Array]]:
    """The parameters of the dense layers after the pooling."""
    params, width = {}, config.hidden_size * len(config.pooling.split("+"))
    for index, (path, projection) in enumerate(zip(modules.dense, modules.projections)):
        tensors = Tensors(path / "model.safetensors")
        shape = projection.features, width
        layer = {"kernel": jnp.asarray(tensors.read("linear.weight", shape).T)}
        if projection.bias:
            layer["bias"] = jnp.asarray(tensors.read("linear.bias", shape[:1]))
        params[f"projection_{index}"], width = layer, projection.features
    return params


class Tensors:
    """A file of tensors, read one by one in float32.

    Attributes:
        stored: the names of the tensors in the file by their present spelling.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        _check_weights_file(path)
        self._path = path
        try:
            self._file = safe_open(path, framework="flax")  # reads bfloat16, too
            names = list(self._file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None
        self.stored: Mapping[str, str] = {_present(name): name for name in names}

    def read(self, name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
        """One tensor, which must have the given shape."""
        key = self.stored.get(name)
        if key is None:
            raise ValueError(
                f"{self._path} lacks the tensor {name!r} of shape {shape}; it holds "
                f"{len(self.stored)} tensors, such as {list(self.stored)[:3]}"
            )
        stored_shape = tuple(self._file.get_slice(key).get_shape())
        if stored_shape != shape:
            raise ValueError(
                f"{self._path}: the tensor {key!r} has shape {stored_shape}, and "
                f"config.json implies {shape}"
            )
        return np.asarray(self._file.get_tensor(key)).astype(np.float32)


def _present(name: str) -> str:
    """The present spelling of a tensor's name; older files have gamma and beta."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


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


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, without padding or truncation.

    Args:
        folder: holds `tokenizer.json`, or the modules of sentence-transformers, one of which does.

    Returns:
        The tokenizer. Where the modules bring texts to lower case, it does.

    Raises:
        ImportError: when the package tokenizers is not installed.
        FileNotFoundError: for a missing file.
        ValueError: for a file that is not a tokenizer.
    """
    try:
        from tokenizers import Tokenizer, normalizers
    except ImportError:
        raise ImportError(
            "reading tokenizer.json needs the package tokenizers: pip install 'jaxcompress[bert]'"
        ) from None
    path = read_modules(Path(folder)).encoder / "tokenizer.json"
    text = text_of(path)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises plain exceptions
        raise ValueError(f"{path} is not a tokenizer: {error}") from None
    if lowers_case(path.parent):
        rest = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, rows: int) -> None:
    """Refuse a tokenizer with ids beyond the table of words.

    Args:
        tokenizer: the tokenizer.
        rows: the number of rows of the table.

    Raises:
        ValueError: for tokens without a row, which are named.
    """
    beyond = {index: token for token, index in tokenizer.get_vocab(True).items() if index >= rows}
    if beyond:
        some = ", ".join(f"{beyond[index]!r} ({index})" for index in sorted(beyond)[:3])
        raise ValueError(
            f"the tokenizer has {len(beyond)} tokens beyond the {rows} rows of the table of words, "
            f"such as {some}: the model and tokenizer.json must belong together"
        )
