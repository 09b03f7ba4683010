"""Sentence encoders with their tokenizers, and indexes of passages, in memory and in folders.

The folder of a compressed encoder holds `encoder.safetensors` (a tree for `jc.load`),
`tokenizer.json`, `config.json`, and for an index also `passages.jsonl` and the passages' embeddings
in `passages.safetensors`. Parameters may be narrower than the configuration, or compact: the module
is traced at the configured sizes and replayed at those of the parameters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int, PyTree

from jaxcompress.arrays.base import is_compact, materialize
from jaxcompress.arrays.clustered import ClusteredArray
from jaxcompress.arrays.paths import leaf_name
from jaxcompress.checkpoint import load, save
from jaxcompress.checks import check_fields, checked, instance, shown, whole
from jaxcompress.checks import path as path_kind
from jaxcompress.checks import texts as texts_kind
from jaxcompress.documents.batches import embed, encode
from jaxcompress.documents.reading import Passage
from jaxcompress.documents.retrieval import search
from jaxcompress.models.bert import Bert, BertConfig
from jaxcompress.models.export import plain_bert, write_bert
from jaxcompress.models.files import json_of, text_of
from jaxcompress.models.hugging_face import check_vocabulary, load_bert, load_tokenizer
from jaxcompress.networks.trace import Network, trace

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = "jaxcompress encoder 1"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A sentence encoder: a BERT, its parameters and its tokenizer.

    Attributes:
        config: the sizes at which the module is traced; parameters may be smaller along hidden
            axes.
        params: the parameters, dense or compact.
        tokenizer: a WordPiece tokenizer of the package tokenizers.
        length: the largest number of tokens of a text, special tokens included; longer texts are
            truncated.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> from tokenizers import Tokenizer, models
        >>> from jaxcompress.models.bert import Bert, BertConfig
        >>> vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "##b": 3}
        >>> tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        >>> config = BertConfig(4, 8, 1, 2, 16, max_position_embeddings=16)
        >>> params = Bert(config).init(jax.random.key(0), jnp.ones((1, 4), int))["params"]
        >>> encoder = jc.documents.Encoder(config, params, tokenizer, length=16)
        >>> encoder.embed(["ab", "b"], progress=False).shape
        (2, 8)
    """

    config: BertConfig
    params: PyTree
    tokenizer: Tokenizer
    length: int = 128

    def __post_init__(self) -> None:
        check_fields(self, config=instance(BertConfig, "a BertConfig"), length=whole())
        if not hasattr(self.tokenizer, "encode_batch"):
            raise TypeError(
                "Encoder: tokenizer must be one of the package tokenizers, got "
                f"{shown(self.tokenizer)}"
            )

    @property
    def net(self) -> Network:
        """The traced network, `net(params, ids, mask) -> (rows, d)`, for parameters of any size."""
        return network(self.config)

    @cached_property
    def ready(self) -> PyTree:
        """The parameters for inference, with clustered kernels expanded once."""

        def expanded(path: jax.tree_util.KeyPath, leaf: PyTree) -> PyTree:
            # an embedding table is only looked up, which is fast in its clustered form
            if isinstance(leaf, ClusteredArray) and leaf_name(path) != "words/embedding":
                return leaf.materialize()
            return leaf

        return jax.tree_util.tree_map_with_path(expanded, self.params, is_leaf=is_compact)

    @checked(texts=texts_kind)
    def encode(self, texts: Sequence[str]) -> list[Int[np.ndarray, " tokens"]]:
        """The token ids of texts, truncated to `length`.

        Args:
            texts: any number of texts.

        Returns:
            One int32 array per text, special tokens included.
        """
        return encode(self.tokenizer, texts, self.length)

    @checked(texts=texts_kind)
    def embed(
        self, texts: Sequence[str], *, progress: bool = True, description: str = "embed"
    ) -> Float[np.ndarray, "texts d"]:
        """The embeddings of texts.

        Args:
            texts: one or more texts.
            progress: show a progress bar.
            description: the label of the bar.

        Returns:
            Embeddings in float32, of length 1 where the configuration normalizes.

        Raises:
            ValueError: when there are no texts, or a text has no tokens.
        """
        longest = self.config.max_position_embeddings
        return embed(
            self.net,
            self.ready,
            self.encode(texts),
            longest=longest,
            progress=progress,
            description=description,
        )

    def replace(self, *, params: PyTree = None, config: BertConfig | None = None) -> Encoder:
        """The encoder with other parameters or another configuration.

        Args:
            params: new parameters, dense or compact; unchanged by default.
            config: a new configuration; unchanged by default.

        Returns:
            A new encoder with the same tokenizer and length.
        """
        return dataclasses.replace(
            self,
            params=self.params if params is None else params,
            config=config or self.config,
        )


@cache
def network(config: BertConfig, *, hidden: bool = False) -> Network:
    """The traced network of a configuration, cached so that encoders share compiled functions.

    Args:
        config: the configuration.
        hidden: return the hidden states, of the same parameters.
    """
    module = Bert(dataclasses.replace(config, pooling="none") if hidden else config)
    shape = 2, min(16, config.max_position_embeddings)
    ids, mask = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)
    params = jax.eval_shape(Bert(config).init, jax.random.key(0), ids, mask)["params"]
    return trace(
        lambda params, ids, mask: module.apply({"params": params}, ids, mask), params, ids, mask
    )


@checked(folder=path_kind, length=whole())
def read_encoder(folder: str | os.PathLike[str], length: int = 128) -> Encoder:
    """Read an encoder from a Hugging Face folder or from one written by `write_encoder`.

    Args:
        folder: a Hugging Face folder of a BERT, RoBERTa or DistilBERT, or the output of
            `compress_for`.
        length: the largest number of tokens of a text. Only for a Hugging Face folder: a
            compressed encoder's folder stores its length.

    Returns:
        The encoder, with parameters as stored.

    Raises:
        FileNotFoundError: for a missing file, which is named.
        ValueError: for a file that is damaged or of another kind, a tokenizer with ids beyond the
            table of words, or a length out of range.
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
        tokenizer = load_tokenizer(path)
        check_vocabulary(tokenizer, module.config.vocab_size)
        return Encoder(module.config, params, tokenizer, length)
    stored = json_of(path / "config.json")
    params, config = load(path / "encoder.safetensors"), BertConfig(**stored["bert"])
    tokenizer = load_tokenizer(path)
    check_vocabulary(tokenizer, config.vocab_size)
    return Encoder(config, params, tokenizer, stored["length"])


def is_small(folder: Path) -> bool:
    """Whether a folder was written by `write_encoder`."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    config = json_of(path)
    return isinstance(config, dict) and config.get("format") == FORMAT


def write_encoder(
    folder: str | os.PathLike[str],
    encoder: Encoder,
    passages: Sequence[Passage] = (),
    embeddings: ArrayLike | None = None,
    **more: object,
) -> None:
    """Write an encoder, and optionally an index of passages, to a folder.

    The files are written to a draft folder, which is renamed once it is complete.

    Args:
        folder: a new folder, or one written by this function, which is replaced.
        encoder: the encoder.
        passages: the passages of the index.
        embeddings: the passages' embeddings (passages, d).
        **more: further entries of `config.json`, serializable as JSON.

    Raises:
        FileExistsError: for a folder with other contents.
        TypeError: for an entry that is not serializable.
    """
    target = Path(folder)
    check_free(target)
    with _draft_of(target) as draft:
        save(draft / "encoder.safetensors", encoder.params)
        (draft / "tokenizer.json").write_text(encoder.tokenizer.to_str(), encoding="utf-8")
        if len(passages):
            write_passages(draft / "passages.jsonl", passages)
            save(draft / "passages.safetensors", np.asarray(embeddings, np.float32))
        config = {
            "format": FORMAT,
            "bert": dataclasses.asdict(encoder.config),
            "length": encoder.length,
            **more,
        }
        (draft / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """A folder beside the target, which replaces it unless an error ends the block."""
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        shutil.rmtree(target, ignore_errors=True)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@checked(folder=path_kind, encoder=instance(Encoder, "a jc.documents.Encoder"))
def write_hugging_face(folder: str | os.PathLike[str], encoder: Encoder) -> None:
    """Write an encoder as a plain BERT that sentence-transformers and transformers read.

    The embeddings are equal up to rounding. Compact arrays are expanded, and layers of different
    widths are padded with zeros, so the folder is larger than that of `write_encoder`.

    Args:
        folder: a new folder.
        encoder: the encoder, with parameters of any size, dense or compact.

    Raises:
        FileExistsError: for a folder that is not empty.
        ValueError: for layers that are linear maps, and for heads that are too wide for the hidden
            size; a plain BERT can express neither.
    """
    target = Path(folder)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise FileExistsError(f"{target} holds something else: give a new folder")
    config, params = plain_bert(encoder.config, materialize(encoder.params))
    with _draft_of(target) as draft:
        write_bert(draft, config, params, encoder.tokenizer.to_str(), encoder.length)


def check_free(folder: Path) -> None:
    """Refuse a folder with other contents, which writing would delete."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_small(folder)):
        raise FileExistsError(f"{folder} holds something else: give a new folder")


@dataclasses.dataclass(frozen=True)
class Hit:
    """A search result: a passage and its score, the inner product with the query."""

    passage: Passage
    score: float


@dataclasses.dataclass(frozen=True)
class Index:
    """Passages with their embeddings, searched by `index("a question")`.

    Attributes:
        encoder: embeds the queries.
        passages: the passages.
        embeddings: their embeddings, by the same encoder or by the one it was compressed from.
    """

    encoder: Encoder
    passages: Sequence[Passage]
    embeddings: Float[np.ndarray, "passages d"]

    def __call__(self, question: str, count: int = 5) -> list[Hit]:
        """The passages nearest to a query.

        Args:
            question: the query's text.
            count: the number of passages.

        Returns:
            Passages with their scores, best first.
        """
        best, scores = search(
            self.encoder.embed([question], progress=False)[0], self.embeddings, count
        )
        return [
            Hit(self.passages[place], float(score))
            for place, score in zip(best, scores, strict=True)
        ]


@checked(folder=path_kind)
def read_index(folder: str | os.PathLike[str]) -> Index:
    """Read an encoder and its index of passages from a folder written by `compress_for`.

    Args:
        folder: the folder.

    Returns:
        The index; `index("a question")` lists the nearest passages.

    Raises:
        FileNotFoundError: for a folder without passages.
        ValueError: for a folder without a compressed encoder.
    """
    path = Path(folder)
    if not is_small(path):
        raise ValueError(
            f"{str(path)!r} holds no compact encoder: make one with jaxcompress bert DOCUMENTS "
            f"--out {path}"
        )
    passages = read_passages(path / "passages.jsonl")
    return Index(read_encoder(path), passages, np.asarray(load(path / "passages.safetensors")))


def write_passages(path: Path, passages: Sequence[Passage]) -> None:
    """Write passages, one JSON object a line."""
    lines = (json.dumps(dataclasses.asdict(passage), ensure_ascii=False) for passage in passages)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_passages(path: Path) -> list[Passage]:
    """Read passages from a file of `write_passages`."""
    # a line ends at "\n" alone: JSON leaves other ends of lines, such as U+2028, as they are
    lines = text_of(path).rstrip("\n").split("\n")
    return [Passage(**json.loads(line)) for line in lines]
