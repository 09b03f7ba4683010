"""A sentence encoder with its tokenizer: read from a folder, it embeds texts and finds passages.

A small one is a folder: `encoder.safetensors` (a tree for `jc.load`), `tokenizer.json`,
`config.json`, and, where it was made for documents, `passages.jsonl` with `passages.safetensors`,
their embeddings. Parameters may be cut and compact: the module is traced at its own sizes and
replayed at theirs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.clustered import ClusteredArray
from jaxcompress.arrays.paths import leaf_name
from jaxcompress.checkpoint import load, save
from jaxcompress.documents.batches import embed, encode
from jaxcompress.documents.reading import Passage
from jaxcompress.documents.retrieval import search
from jaxcompress.models.bert import Bert, BertConfig, json_of, load_bert, load_tokenizer, text_of
from jaxcompress.networks.trace import Network, trace

FORMAT = "jaxcompress encoder 1"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A sentence encoder.

    Attributes:
        config: the sizes of the module as it is traced; parameters may be smaller along hidden
            axes.
        params: its parameters, dense or compact.
        tokenizer: of the package tokenizers.
        length: the most tokens of a text; what is longer is cut.
    """

    config: BertConfig
    params: Any
    tokenizer: Any
    length: int = 128

    @property
    def net(self) -> Network:
        """The network, to be run at the sizes of any parameters: `net(params, ids, mask)`."""
        return network(self.config)

    @cached_property
    def ready(self) -> Any:
        """The parameters as they run fastest: clustered kernels expanded once, words looked up."""

        def together(path: tuple[Any, ...], leaf: Any) -> Any:
            return (
                leaf.materialize()
                if isinstance(leaf, ClusteredArray) and leaf_name(path) != "words/embedding"
                else leaf
            )

        return jax.tree_util.tree_map_with_path(together, self.params, is_leaf=is_compact)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of texts."""
        return encode(self.tokenizer, texts, self.length)

    def embed(
        self, texts: Sequence[str], *, progress: bool = True, description: str = "embed"
    ) -> np.ndarray:
        """(texts, d) float32: the embeddings of texts."""
        longest = self.config.max_position_embeddings
        return embed(
            self.net,
            self.ready,
            self.encode(texts),
            longest=longest,
            progress=progress,
            description=description,
        )

    def replace(self, **changes: Any) -> Encoder:
        """The same encoder with other parameters, or another tokenizer."""
        return dataclasses.replace(self, **changes)


@cache
def network(config: BertConfig) -> Network:
    """The traced network of a configuration, cached, so that encoders share what is compiled."""
    module = Bert(config)
    shape = 2, min(16, config.max_position_embeddings)
    ids, mask = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)
    params = jax.eval_shape(module.init, jax.random.key(0), ids, mask)["params"]
    return trace(
        lambda params, ids, mask: module.apply({"params": params}, ids, mask), params, ids, mask
    )


def read_encoder(folder: str | os.PathLike[str], length: int = 128) -> Encoder:
    """Read an encoder from a Hugging Face folder, or from one that `write_encoder` made.

    Args:
        folder: the folder.
        length: the most tokens of a text, for a Hugging Face folder; a small one knows its own.

    Raises:
        FileNotFoundError, ValueError: for files that are missing, damaged or of another kind; they
            are named.
        ImportError: without the package tokenizers.
    """
    path = Path(folder)
    if not is_small(path):
        module, params = load_bert(path)
        if not 3 <= length <= module.config.max_position_embeddings:
            raise ValueError(
                f"length must be between 3 and the model's "
                f"{module.config.max_position_embeddings} positions, got {length}"
            )
        return Encoder(module.config, params, load_tokenizer(path), length)
    given = json_of(path / "config.json")
    params = load(path / "encoder.safetensors")
    return Encoder(BertConfig(**given["bert"]), params, load_tokenizer(path), given["length"])


def is_small(folder: Path) -> bool:
    """Whether a folder holds an encoder that `write_encoder` wrote."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    found = json_of(config)
    return isinstance(found, dict) and found.get("format") == FORMAT


def write_encoder(
    folder: str | os.PathLike[str],
    encoder: Encoder,
    passages: Sequence[Passage] = (),
    embeddings: Any = None,
    **more: Any,
) -> None:
    """Write an encoder and the passages it was made for to a folder that appears once complete.

    Args:
        folder: a new one, or one that this function made, which is replaced.
        encoder: the encoder.
        passages, embeddings: what `Index` searches; `embeddings` (passages, d).
        **more: to be kept in `config.json`, anything that JSON can say.

    Raises:
        FileExistsError: for a folder with anything else in it.
    """
    target = Path(folder)
    check_free(target)
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        save(draft / "encoder.safetensors", encoder.params)
        (draft / "tokenizer.json").write_text(encoder.tokenizer.to_str(), encoding="utf-8")
        if len(passages):
            lines = (
                json.dumps(dataclasses.asdict(passage), ensure_ascii=False) for passage in passages
            )
            (draft / "passages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            save(draft / "passages.safetensors", np.asarray(embeddings, np.float32))
        config = {
            "format": FORMAT,
            "bert": dataclasses.asdict(encoder.config),
            "length": encoder.length,
            **more,
        }
        (draft / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Refuse a place where something else is."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_small(folder)):
        raise FileExistsError(f"{folder} holds something else: give a new folder")


@dataclasses.dataclass(frozen=True)
class Hit:
    """A passage that was found."""

    passage: Passage
    score: float


@dataclasses.dataclass(frozen=True)
class Index:
    """Passages to be found by an encoder; `index("a question")`.

    Attributes:
        encoder: of the questions.
        passages: what is searched.
        embeddings: (passages, d), by the same encoder, or by the one it was made from.
    """

    encoder: Encoder
    passages: Sequence[Passage]
    embeddings: np.ndarray

    def __call__(self, question: str, count: int = 5) -> list[Hit]:
        """The passages nearest to a question, the best first."""
        best, scores = search(
            self.encoder.embed([question], progress=False)[0], self.embeddings, count
        )
        return [
            Hit(self.passages[place], float(score))
            for place, score in zip(best, scores, strict=True)
        ]


def read_index(folder: str | os.PathLike[str]) -> Index:
    """Read an encoder with its passages from a folder that `write_encoder` made.

    Raises:
        FileNotFoundError, ValueError: for a folder without an encoder of ours, or without passages.
    """
    path = Path(folder)
    if not is_small(path):
        raise ValueError(
            f"{str(path)!r} holds no compact encoder: make one with jaxcompress bert DOCUMENTS "
            f"--out {path}"
        )
    lines = text_of(path / "passages.jsonl").splitlines()
    passages = [Passage(**json.loads(line)) for line in lines]
    return Index(read_encoder(path), passages, np.asarray(load(path / "passages.safetensors")))
