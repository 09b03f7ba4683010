"""How BERT, RoBERTa and DistilBERT are spelled in Hugging Face's files.

The three compute one function. They name the sizes in `config.json` and the tensors in
`model.safetensors` differently; RoBERTa counts positions from the padding token's id on, and
DistilBERT has no types of tokens.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from jaxcompress.models.bert import BertConfig
from jaxcompress.models.files import Json

Place: TypeAlias = tuple[str, ...]
"""The path of a parameter."""
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_act",
)
"""The fields of `BertConfig` that `config.json` has."""
BERT_TENSORS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "layer/attention/query": "encoder.layer.{}.attention.self.query",
    "layer/attention/key": "encoder.layer.{}.attention.self.key",
    "layer/attention/value": "encoder.layer.{}.attention.self.value",
    "layer/attention/out": "encoder.layer.{}.attention.output.dense",
    "layer/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layer/up": "encoder.layer.{}.intermediate.dense",
    "layer/down": "encoder.layer.{}.output.dense",
    "layer/norm": "encoder.layer.{}.output.LayerNorm",
}
DISTILBERT_TENSORS = BERT_TENSORS | {
    "layer/attention/query": "transformer.layer.{}.attention.q_lin",
    "layer/attention/key": "transformer.layer.{}.attention.k_lin",
    "layer/attention/value": "transformer.layer.{}.attention.v_lin",
    "layer/attention/out": "transformer.layer.{}.attention.out_lin",
    "layer/attention_norm": "transformer.layer.{}.sa_layer_norm",
    "layer/up": "transformer.layer.{}.ffn.lin1",
    "layer/down": "transformer.layer.{}.ffn.lin2",
    "layer/norm": "transformer.layer.{}.output_layer_norm",
}
DISTILBERT_FIELDS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One spelling of a BERT.

    Attributes:
        tensors: the names of tensors in the file by our names, `{}` for the layer's number.
        fields: the keys of `config.json` by our names, where they differ.
        padded: whether the first position is that after the padding token's id, as in RoBERTa.
        typed: whether there are types of tokens.
    """

    tensors: Mapping[str, str]
    fields: Mapping[str, str]
    padded: bool = False
    typed: bool = True


BERT = Family(BERT_TENSORS, {})
ROBERTA = Family(BERT_TENSORS, {}, padded=True)
DISTILBERT = Family(DISTILBERT_TENSORS, DISTILBERT_FIELDS, typed=False)
FAMILIES = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
}
"""By the `model_type` of `config.json`."""


def model_type(given: dict[str, Json], path: Path) -> str:
    """The kind of model that a configuration describes.

    Args:
        given: the content of `config.json`.
        path: the file, for errors.

    Returns:
        A key of `FAMILIES`, from `model_type` and `architectures`, which must agree.

    Raises:
        ValueError: for another kind of model, which is named, or none.
    """
    architectures = given.get("architectures") or []
    kinds = {name: _kind_of(name) for name in architectures}
    stated = given.get("model_type")
    unknown = [name for name, kind in kinds.items() if kind is None]
    if stated is not None and stated not in FAMILIES:
        unknown = [stated]
    if unknown:
        raise ValueError(
            f"{path}: the model is a {unknown[0]!r}, and only {', '.join(FAMILIES)} are read"
        )
    agreed = {*filter(None, kinds.values()), *([stated] if stated else [])}
    if len(agreed) > 1:
        raise ValueError(
            f"{path}: model_type is {stated!r} and architectures is {architectures}: expected one "
            f"kind of model"
        )
    if not agreed:
        raise ValueError(
            f'{path} has neither "model_type" nor "architectures": add the model\'s kind, such as '
            f'"model_type": "bert"'
        )
    return agreed.pop()


def _kind_of(architecture: str) -> str | None:
    """The model type of a class of transformers, such as RobertaForMaskedLM."""
    name = re.sub(r"(Model|LMHeadModel|PreTrainedModel|For[A-Z]\w*)$", "", architecture)
    spelled = {kind.replace("-", ""): kind for kind in FAMILIES}
    return spelled.get(name.lower())


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A parameter and its tensor.

    Attributes:
        place: the path of the parameter.
        name: of the tensor in the file.
        shape: of the tensor in the file.
        pattern: for einops, from the file's layout to ours.
    """

    place: Place
    name: str
    shape: tuple[int, ...]
    pattern: str


def tensors_of(config: BertConfig, names: Mapping[str, str] = BERT_TENSORS) -> Iterator[TensorSpec]:
    """The parameters of an encoder and their tensors in a Hugging Face file.

    Args:
        config: the configuration.
        names: the names of tensors, as in `Family.tensors`.
    """
    d, f = config.hidden_size, config.intermediate_size
    tables = {
        "words": config.vocab_size,
        "positions": config.max_position_embeddings,
        "segments": config.type_vocab_size,
    }
    for table, rows in tables.items():
        if rows:
            name = f"{names[table]}.weight"
            yield TensorSpec((table, "embedding"), name, (rows, d), "row d -> row d")
    yield from _norm(("norm",), names["norm"], d)
    for index in range(config.num_hidden_layers):
        for part in ("query", "key", "value"):
            out = "(head size) d -> d head size", "(head size) -> head size"
            yield from _dense(("attention", part), index, names, (d, d), *out)
        into = "d (head size) -> head size d"
        yield from _dense(("attention", "out"), index, names, (d, d), into)
        yield from _norm(
            (f"layer_{index}", "attention_norm"), names["layer/attention_norm"].format(index), d
        )
        yield from _dense(("up",), index, names, (f, d), "out d -> d out")
        yield from _dense(("down",), index, names, (d, f), "d out -> out d")
        yield from _norm((f"layer_{index}", "norm"), names["layer/norm"].format(index), d)


def _norm(place: Place, name: str, d: int) -> Iterator[TensorSpec]:
    """The tensors of a layer norm."""
    yield TensorSpec((*place, "scale"), f"{name}.weight", (d,), "d -> d")
    yield TensorSpec((*place, "bias"), f"{name}.bias", (d,), "d -> d")


def _dense(
    part: Place,
    index: int,
    names: Mapping[str, str],
    shape: tuple[int, int],
    kernel: str,
    bias: str = "out -> out",
) -> Iterator[TensorSpec]:
    """The tensors of an affine part of a layer; the patterns are from the file's layout to ours."""
    name, place = names["/".join(("layer", *part))].format(index), (f"layer_{index}", *part)
    yield TensorSpec((*place, "kernel"), f"{name}.weight", shape, kernel)
    yield TensorSpec((*place, "bias"), f"{name}.bias", shape[:1], bias)
