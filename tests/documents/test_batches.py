"""Every text once, in few shapes, and its embedding does not depend on its company."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_bert import make
from hypothesis import given
from hypothesis import strategies as st

from jaxcompress.documents.batches import buckets, embed, encode, hidden_states
from jaxcompress.models.bert import Bert, BertConfig

lengths = st.lists(st.integers(1, 70), min_size=1, max_size=60)


@given(lengths=lengths, tokens=st.integers(1, 300), seed=st.none() | st.integers(0, 9))
def test_every_text_once_in_few_shapes(lengths, tokens, seed):
    texts = [np.arange(1, length + 1) for length in lengths]
    found = buckets(texts, tokens=tokens, seed=seed)
    index = np.concatenate([batch.index for batch in found])
    assert sorted(index[index >= 0]) == list(range(len(texts)))
    rows = {}
    for batch in found:
        count, length = batch.ids.shape
        assert rows.setdefault(length, count) == count == max(tokens // length, 1)
        for ids, mask, which in zip(batch.ids, batch.mask, batch.index, strict=True):
            text = texts[which] if which >= 0 else []
            np.testing.assert_array_equal(ids[mask], text)
            assert not ids[~mask].any()
            assert which < 0 or length == 16 or len(text) > 2 / 3 * length - 1
    again = buckets(texts, tokens=tokens, seed=seed)
    assert all(np.array_equal(one.ids, other.ids) for one, other in zip(found, again, strict=True))


def test_no_length_is_beyond_what_an_encoder_takes():
    found = buckets([np.arange(1, n) for n in (3, 18, 21)], longest=20)
    assert sorted(batch.ids.shape[1] for batch in found) == [16, 20]


def test_a_seed_mixes():
    texts = [np.arange(1, 5)] * 64
    one, other = (
        np.concatenate([b.index for b in buckets(texts, tokens=64, seed=seed)]) for seed in (0, 1)
    )
    assert not np.array_equal(one, other)


def test_texts_are_cut_with_their_special_tokens_in_place():
    tokenizer = make()
    (long,), (short,) = encode(tokenizer, ["bag face " * 20], 6), encode(tokenizer, ["bag"])
    assert [tokenizer.id_to_token(i) for i in long] == [
        "[CLS]",
        "bag",
        "face",
        "bag",
        "face",
        "[SEP]",
    ]
    assert len(short) == 3
    assert encode(tokenizer, ["bag \ud800"], 6)[0].tolist() == tokenizer.encode("bag \ufffd").ids
    assert tokenizer.truncation is None


def test_an_embedding_does_not_depend_on_its_company():
    tokenizer = make()
    ids = encode(tokenizer, ["bag face " * n for n in (1, 3, 8, 12)])
    model = Bert(
        BertConfig(
            tokenizer.get_vocab_size(),
            16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )
    params = model.init(jax.random.key(0), ids[0][None])["params"]

    def apply(params, ids, mask):
        return model.apply({"params": params}, ids, mask)

    together = embed(apply, params, ids, tokens=64, progress=False)
    alone = np.concatenate(
        [jax.jit(apply)(params, text[None], jnp.ones((1, len(text)), bool)) for text in ids]
    )
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        buckets([np.arange(3), np.arange(0)])
    with pytest.raises(ValueError, match="there are no texts"):
        embed(lambda params, ids, mask: ids, None, [], progress=False)


def test_hidden_states_are_kept_text_by_text(tmp_path):
    tokenizer = make()
    ids = encode(tokenizer, ["bag face " * n for n in (1, 3, 8, 12, 2)])
    model = Bert(
        BertConfig(
            tokenizer.get_vocab_size(),
            16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            pooling="none",
        )
    )
    params = model.init(jax.random.key(0), ids[0][None])["params"]
    calls = []

    def apply(params, ids, mask):
        calls.append(ids.shape)
        return model.apply({"params": params}, ids, mask)

    found, kept = (
        hidden_states(apply, params, ids, file, progress=False)
        for file in (None, tmp_path / "states.npy")
    )
    count = len(calls)
    again = hidden_states(apply, params, ids, tmp_path / "states.npy", progress=False)
    assert len(calls) == count  # it was there
    assert [each.name for each in tmp_path.iterdir()] == ["states.npy"]
    for batch in buckets(ids, tokens=64, seed=0):
        expected = np.where(
            batch.mask[..., None], model.apply({"params": params}, *batch.inputs), 0
        )
        for states in (found, kept, again):
            np.testing.assert_allclose(states.of(batch), expected, atol=2e-3)
