"""An encoder is written and read with equal embeddings, cut or compact; passages are found."""

import json

import jax
import numpy as np
import pytest
from helpers_bert import SIZES, WORDS, folder, make

import jaxcompress as jc
from jaxcompress.documents.encoder import Index, read_encoder, read_index, write_encoder
from jaxcompress.documents.reading import Passage

TEXTS = ["bag face", "dead head", "cab", "fade fade bad", "a bag"]
PASSAGES = [Passage(f"d{index}", text) for index, text in enumerate(TEXTS)]


@pytest.fixture
def whole(tmp_path):
    (tmp_path / "whole").mkdir()
    path = folder(tmp_path / "whole")
    make().save(str(path / "tokenizer.json"))
    return read_encoder(path, length=12)


def cut(encoder):
    """Half of every axis, and the table of words at a low rank."""
    shrink = jc.chain(
        jc.rotate_and_prune(encoder.net, keep=1 / 2),
        jc.at("words/embedding", jc.factored(keep=1 / 2)),
    )
    return encoder.replace(params=shrink(encoder.params))


def test_a_hugging_face_folder_is_read(whole):
    assert whole.embed(TEXTS, progress=False).shape == (5, 16)
    np.testing.assert_allclose(
        np.linalg.norm(whole.embed(TEXTS, progress=False), axis=1), 1, rtol=1e-5
    )
    assert [len(ids) for ids in whole.encode(["bag " * 30, "bag"])] == [12, 3]
    assert SIZES["vocab_size"] >= len(WORDS)


def test_a_small_one_comes_back_to_the_bit(whole, tmp_path):
    small = cut(whole)
    vectors = small.embed(TEXTS, progress=False)
    write_encoder(tmp_path / "small", small, PASSAGES, vectors, keep=0.5)
    again = read_encoder(tmp_path / "small")
    jax.tree.map(np.testing.assert_array_equal, again.params, small.params)
    np.testing.assert_array_equal(again.embed(TEXTS, progress=False), vectors)
    assert (again.length, again.config) == (12, whole.config)
    assert json.loads((tmp_path / "small" / "config.json").read_text())["keep"] == 0.5
    index = read_index(tmp_path / "small")
    for passage in PASSAGES:
        (hit,) = index(passage.text, 1)
        assert hit.passage == passage
        assert hit.score == pytest.approx(1, abs=1e-4)
    jax.tree.map(
        np.testing.assert_array_equal,
        jc.load(tmp_path / "small" / "encoder.safetensors"),
        small.params,
    )


def test_questions_alone_may_pass_the_small_one(whole):
    index = Index(cut(whole), PASSAGES, whole.embed(TEXTS, progress=False))
    assert len(index("bag face", 3)) == 3


def test_a_folder_is_written_whole_or_not_at_all(whole, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else"):
        write_encoder(tmp_path / "mine", whole)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_encoder(tmp_path / "small", whole, bad=object())
    assert not (tmp_path / "small").exists()
    (tmp_path / ".small.draft").mkdir()  # of a run that was killed
    (tmp_path / ".small.draft" / "old").write_text("half")
    write_encoder(tmp_path / "small", whole, note=1)
    assert not (tmp_path / "small" / "old").exists()
    write_encoder(tmp_path / "small", whole, note=2)
    assert json.loads((tmp_path / "small" / "config.json").read_text())["note"] == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine", "small", "whole"]


def test_what_does_not_fit_is_named(whole, tmp_path):
    with pytest.raises(ValueError, match="length must be between 3 and the model's 12"):
        read_encoder(tmp_path / "whole", length=99)
    with pytest.raises(ValueError, match="length must be between 3 and the model's 12"):
        read_encoder(tmp_path / "whole", length=2)
    for length in (3, 12):
        assert read_encoder(tmp_path / "whole", length=length).length == length
    with pytest.raises(ValueError, match="holds no compact encoder"):
        read_index(tmp_path / "whole")
    write_encoder(tmp_path / "small", whole)
    with pytest.raises(FileNotFoundError, match=r"passages\.jsonl is missing"):
        read_index(tmp_path / "small")


def test_clustered_kernels_are_put_together_once(model):
    encoder = read_encoder(model, 12)
    change = jc.at(
        lambda name, leaf: name.endswith("up/kernel") or name == "words/embedding",
        jc.clustered(3 / 4),
    )
    small = encoder.replace(params=change(encoder.params))
    assert isinstance(small.params["layer_0"]["up"]["kernel"], jc.arrays.ClusteredArray)
    ready = small.ready
    assert ready is small.ready
    np.testing.assert_array_equal(
        ready["layer_0"]["up"]["kernel"], small.params["layer_0"]["up"]["kernel"].materialize()
    )
    assert ready["words"]["embedding"] is small.params["words"]["embedding"]
    ids, mask = np.array([[1, 3, 5, 2]]), np.ones((1, 4), bool)
    np.testing.assert_allclose(
        small.net(ready, ids, mask), small.net(small.params, ids, mask), atol=1e-5
    )
