"""A small BERT written to a folder, with a tokenizer of letters."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxcompress.models.bert import BertConfig
from jaxcompress.models.families import tensors_of

SMALL = BertConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=12,
)
SIZES = {
    name: getattr(SMALL, name)
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    )
} | {"max_position_embeddings": 12}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in tensors_of(SMALL)
    }


def folder(
    path: Path, weights: dict[str, np.ndarray] | None = None, config: dict | None = None
) -> Path:
    (path / "config.json").write_text(json.dumps({"model_type": "bert"} | SIZES | (config or {})))
    safetensors.numpy.save_file(
        tensors() if weights is None else weights, path / "model.safetensors"
    )
    return path


def pad(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    length = max(map(len, lists))
    ids = np.array([each + [0] * (length - len(each)) for each in lists])
    return ids, np.arange(length) < np.array([[len(each)] for each in lists])


LETTERS = "abcdefgh"
WORDS = [
    "[PAD]",
    "[unused0]",
    "[unused1]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *LETTERS,
    *(f"##{c}" for c in LETTERS),
]
WORDS += [
    "ab",
    "abc",
    "##bc",
    "##cd",
    "cab",
    "bad",
    "face",
    "##ade",
    "##ed",
    "bag",
    "dead",
    "deaf",
    "head",
    "##ache",
    "fade",
]


def make(processor: str = "template") -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    ends = [("[CLS]", 4), ("[SEP]", 5)]
    template = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    other = processors.BertProcessing(ends[1], ends[0])
    tokenizer.post_processor = {
        "template": template,
        "bert": other,
        "sequence": processors.Sequence([template]),
    }[processor]
    return tokenizer
