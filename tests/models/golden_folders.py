"""Embeddings of small encoders by transformers and sentence-transformers, for `test_folders.py`.

    pip install sentence-transformers        # brings torch and transformers
    PYTHONPATH=. python tests/models/golden_folders.py     # writes golden_folders.npz beside this

One folder for each kind of encoder and of module, as the two packages write it. The weights are
functions of the tensors' names and shapes, so only the files of text, the shapes and the embeddings
are stored. The last case is the other way round: a cut encoder that `write_hugging_face` wrote, as
sentence-transformers reads it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import safetensors.numpy

FILE = Path(__file__).with_suffix(".npz")
TEXTS = ["bag face", "dead head fade bad", "cab", "abc deaf bag a b c"]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
LENGTH = 16


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a tensor, by its name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = 0.4 * rng.standard_normal(shape)
    return (1 + values if "norm.weight" in name.lower() else values).astype(np.float32)


def write_folder(folder: Path, files: dict[str, str], shapes: dict[str, dict]) -> None:
    """Write the text files of a case, and its tensors."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    for path, tensors in shapes.items():
        values = {name: weights(name, tuple(shape)) for name, shape in tensors.items()}
        safetensors.numpy.save_file(values, folder / path, metadata={"format": "pt"})


def cut_encoder():
    """An encoder whose hidden width, layers, heads and sizes of heads were cut unevenly."""
    import jax
    from helpers_bert import make

    from jaxcompress.documents import Encoder
    from jaxcompress.models.bert import Bert, BertConfig
    from jaxcompress.models.pooling import Projection

    head = {"pooling": "mean+max", "projections": (Projection(10, "tanh"),)}
    config = BertConfig(**SIZES, **head)
    ids = np.ones((1, 4), int)
    shapes = jax.eval_shape(Bert(config).init, jax.random.key(0), ids)["params"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: weights(jax.tree_util.keystr(path), leaf.shape), shapes
    )
    d, sizes = 12, {"layer_0": (17, 3, 3, 2), "layer_1": (24, 2, 2, 3)}
    params = jax.tree.map(lambda leaf: leaf[..., :d] if leaf.shape[-1] == 16 else leaf, params)
    for name, (neurons, heads, key, value) in sizes.items():
        layer = params[name]
        for part, size in {"query": key, "key": key, "value": value}.items():
            kernel, bias = layer["attention"][part].values()
            kernel, bias = sorted((kernel, bias), key=np.ndim, reverse=True)
            layer["attention"][part] = {
                "kernel": kernel[:d, :heads, :size],
                "bias": bias[:heads, :size],
            }
        layer["attention"]["out"]["kernel"] = layer["attention"]["out"]["kernel"][:heads, :value]
        layer["up"] = {
            "kernel": layer["up"]["kernel"][:d, :neurons],
            "bias": layer["up"]["bias"][:neurons],
        }
        layer["down"]["kernel"] = layer["down"]["kernel"][:neurons]
    kernel = params["head"]["projection_0"]["kernel"]
    params["head"]["projection_0"]["kernel"] = np.concatenate([kernel[:d], kernel[16 : 16 + d]])
    return Encoder(config, params, make(), LENGTH)


def main() -> None:
    """Build every case, and store what is not a function of names."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch
    import transformers as hf
    from helpers_bert import make
    from sentence_transformers import SentenceTransformer, models

    from jaxcompress.documents import write_hugging_face

    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=make(), **named)
    bert = hf.BertConfig(**SIZES)
    roberta = SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
    names = ("vocab_size", "max_position_embeddings")
    keys = ("dim", "n_layers", "n_heads", "hidden_dim")
    distil = {name: SIZES[name] for name in names} | dict(zip(keys, (16, 2, 4, 24)))
    dense, pooling = models.Dense, models.Pooling
    many = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    cases = {
        "BERT, mean": (hf.BertModel(bert), [pooling(16), models.Normalize()]),
        "BGE": (hf.BertModel(bert), [pooling(16, "cls"), models.Normalize()]),
        "E5": (
            hf.XLMRobertaModel(hf.XLMRobertaConfig(**roberta)),
            [pooling(16), models.Normalize()],
        ),
        "RoBERTa with a head": (hf.RobertaForMaskedLM(hf.RobertaConfig(**roberta)), []),
        "DistilBERT with a head": (hf.DistilBertForMaskedLM(hf.DistilBertConfig(**distil)), []),
        "DistilBERT, dense": (
            hf.DistilBertModel(hf.DistilBertConfig(**distil)),
            [pooling(16), dense(16, 8, activation_function=torch.nn.Tanh())],
        ),
        "all poolings": (
            hf.BertModel(bert),
            [
                pooling(16, many),
                dense(96, 12, bias=False, activation_function=torch.nn.Identity()),
                dense(12, 6, activation_function=torch.nn.GELU()),
                models.Normalize(),
            ],
        ),
    }
    stored, arrays = {}, {}
    for name, (model, modules) in cases.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            if modules:
                SentenceTransformer(modules=[models.Transformer(str(folder)), *modules]).save(
                    temporary
                )
            files, shapes = contents(folder)
            write_folder(folder, files, shapes)
            stored[name] = {"files": files, "shapes": shapes}
            arrays[name] = reference(folder, bool(modules))
    with tempfile.TemporaryDirectory() as temporary:
        write_hugging_face(temporary, cut_encoder())
        arrays["cut"] = reference(Path(temporary), True)
        hidden = hf.AutoModel.from_pretrained(temporary)(
            **hf.AutoTokenizer.from_pretrained(temporary)(TEXTS, padding=True, return_tensors="pt")
        )
        assert hidden.last_hidden_state.shape[-1] == 12
    np.savez_compressed(FILE, stored=json.dumps(stored), **arrays)
    print(FILE.stat().st_size, "bytes;", {name: value.shape for name, value in arrays.items()})


def contents(folder: Path) -> tuple[dict[str, str], dict[str, dict]]:
    """The text files but tokenizers, and the shapes of tensors, by their paths."""
    from safetensors import safe_open

    files, shapes = {}, {}
    for path in sorted(folder.rglob("*")):
        place = str(path.relative_to(folder))
        if path.suffix == ".json" and "token" not in path.name:
            files[place] = path.read_text()
        elif path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                shapes[place] = {key: file.get_slice(key).get_shape() for key in list(file.keys())}
    return files, shapes


def reference(folder: Path, listed: bool) -> np.ndarray:
    """Embeddings of `TEXTS` by the reference; the mean of length 1 for a plain folder."""
    import torch
    import transformers as hf
    from sentence_transformers import SentenceTransformer

    if listed:
        return SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    inputs = hf.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        h = hf.AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    mean = (h * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1).numpy()


if __name__ == "__main__":
    main()
