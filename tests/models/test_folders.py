"""Folders of every kind are read as transformers reads them; whatever else they hold is refused."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
from helpers_bert import make
from models.golden_folders import FILE, LENGTH, TEXTS, cut_encoder, write_folder

import jaxcompress as jc
from jaxcompress.documents import read_encoder, write_hugging_face

GOLDEN = np.load(FILE)
CASES = json.loads(str(GOLDEN["stored"]))


def written(case, path):
    """The folder of a case."""
    write_folder(path, **CASES[case])
    make().save(str(path / "tokenizer.json"))
    return path


def embedded(encoder):
    return encoder.embed(TEXTS, progress=False)


def edited(file, **changes):
    """A JSON file with other entries; None takes one out."""
    content = json.loads(file.read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(kept))


@pytest.mark.parametrize("name", CASES)
def test_embeddings_are_those_of_the_reference(tmp_path, name):
    path = written(name, tmp_path)
    np.testing.assert_allclose(embedded(read_encoder(path, LENGTH)), GOLDEN[name], atol=2e-5)


def test_the_kind_is_read_from_the_architectures(tmp_path):
    """The same as with a `model_type`, which is as good a sign as the other."""
    name = "RoBERTa with a head"
    path = written(name, tmp_path)
    edited(path / "config.json", model_type=None)
    np.testing.assert_allclose(embedded(read_encoder(path, LENGTH)), GOLDEN[name], atol=2e-5)


def test_a_cut_encoder_is_written_as_the_reference_reads_it(tmp_path):
    encoder = cut_encoder()
    vectors = embedded(encoder)
    np.testing.assert_allclose(vectors, GOLDEN["cut"], atol=2e-5)
    write_hugging_face(tmp_path / "plain", encoder)
    again = read_encoder(tmp_path / "plain", LENGTH)
    np.testing.assert_allclose(embedded(again), vectors, atol=2e-5)
    sizes = again.config.hidden_size, again.config.num_attention_heads
    assert (*sizes, again.config.intermediate_size) == (12, 3, 24)
    with pytest.raises(FileExistsError, match="holds something else"):
        write_hugging_face(tmp_path / "plain", encoder)


def test_any_encoder_is_written_and_read(tmp_path):
    """Of every kind, with compact kernels and a compact table."""
    for name in ("DistilBERT, dense", "all poolings"):
        (tmp_path / name).mkdir()
        encoder = read_encoder(written(name, tmp_path / name), LENGTH)
        change = jc.chain(
            jc.at("**/kernel", jc.factored(keep=3 / 4, matrix_axes=encoder.net.matrix_axes)),
            jc.at("words/*", jc.hashed(keep=1 / 2)),
        )
        small = encoder.replace(params=change(encoder.params))
        write_hugging_face(tmp_path / f"{name} plain", small)
        again = read_encoder(tmp_path / f"{name} plain", LENGTH)
        np.testing.assert_allclose(embedded(again), embedded(small), atol=2e-5)


def test_what_a_plain_bert_cannot_express_is_said(tmp_path):
    encoder = cut_encoder()
    linear = encoder.replace(config=dataclasses.replace(encoder.config, linear_layers=(1,)))
    with pytest.raises(ValueError, match="no layers that are linear maps, and layers 1 are"):
        write_hugging_face(tmp_path / "plain", linear)
    wide = encoder.params | {"layer_0": encoder.params["layer_1"]}
    narrow = {"words": {"embedding": encoder.params["words"]["embedding"][:, :4]}}
    with pytest.raises(ValueError, match="2 heads of size 3 do not fit"):
        write_hugging_face(tmp_path / "plain", encoder.replace(params=wide | narrow))
    assert not (tmp_path / "plain").exists()


def dense(path, **changes):
    edited(path / "2_Dense" / "config.json", **changes)


def listed(path, *kinds):
    names = [f"sentence_transformers.models.{kind}" for kind in kinds]
    entries = [{"path": "", "type": name} for name in names]
    (path / "modules.json").write_text(json.dumps(entries))


def config(path, **changes):
    edited(path / "config.json", **changes)


def beyond(path):
    tokenizer = make()
    tokenizer.add_tokens(["zebra", "lion", "tiger", "bear"])
    tokenizer.save(str(path / "tokenizer.json"))


def prompted(path):
    content = {"default_prompt_name": "query", "prompts": {"query": "query: "}}
    (path / "config_sentence_transformers.json").write_text(json.dumps(content))


def without_list(path):
    (path / "modules.json").unlink()


REFUSED = {
    "an unknown module": (partial(listed), "lists nothing: only a Transformer"),
    "another module": (
        lambda path: listed(path, "Transformer", "Pooling", "LSTM"),
        "lists Transformer, Pooling, LSTM: only",
    ),
    "another order": (
        lambda path: listed(path, "Transformer", "Pooling", "Normalize", "Dense"),
        "in this order",
    ),
    "no list": (without_list, "has 2_Dense, and their list, modules.json, is missing"),
    "a residual": (partial(dense, use_residual=True), "use_residual is True"),
    "of tokens": (
        partial(dense, module_input_name="token_embeddings"),
        "module_input_name is 'token_embeddings'",
    ),
    "an activation": (
        partial(dense, activation_function="torch.nn.modules.activation.Hardtanh"),
        "the activation is 'torch.nn.modules.activation.Hardtanh'",
    ),
    "a width": (partial(dense, out_features=9), r"has shape \(8, 16\), and config.json implies"),
    "no width": (partial(dense, out_features=None), "lacks out_features"),
    "another model": (partial(config, model_type="mpnet"), "the model is a 'mpnet', and only"),
    "a class of its own": (
        partial(config, architectures=["JinaBertModel"]),
        "the model is a 'JinaBertModel'",
    ),
    "two kinds": (partial(config, architectures=["BertModel"]), "expected one kind of model"),
    "no kind": (
        partial(config, model_type=None, architectures=None),
        'neither "model_type" nor "architectures"',
    ),
    "more tokens than rows": (
        beyond,
        r"1 tokens beyond the 40 rows of the table of words, such as 'bear' \(40\)",
    ),
    "a prompt": (prompted, "default_prompt_name is 'query'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(tmp_path, name):
    change, words = REFUSED[name]
    path = written("DistilBERT, dense", tmp_path)
    change(path)
    with pytest.raises(ValueError, match=words):
        read_encoder(path, LENGTH)


def test_modules_that_lower_the_case_do(tmp_path):
    path = written("BERT, mean", tmp_path)
    tokenizer = make()
    tokenizer.normalizer = None
    tokenizer.save(str(path / "tokenizer.json"))
    upper = [text.upper() for text in TEXTS]
    before = read_encoder(path, LENGTH).encode(upper)
    (path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    encoder = read_encoder(path, LENGTH)
    for text, other, spelled in zip(before, encoder.encode(upper), encoder.encode(TEXTS)):
        np.testing.assert_array_equal(other, spelled)
        assert not np.array_equal(text, spelled)


def test_an_encoder_in_a_folder_of_its_own(tmp_path):
    """Older folders of sentence-transformers have the encoder in 0_Transformer."""
    name = "BGE"
    path = written(name, tmp_path)
    (path / "0_Transformer").mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (path / file).rename(path / "0_Transformer" / file)
    entries = json.loads((path / "modules.json").read_text())
    entries[0]["path"] = "0_Transformer"
    (path / "modules.json").write_text(json.dumps(entries))
    np.testing.assert_allclose(embedded(read_encoder(path, LENGTH)), GOLDEN[name], atol=2e-5)
