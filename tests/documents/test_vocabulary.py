"""Fewer words: those kept embed as before, to the bit; others are spelled out, and never fail."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_bert import LETTERS, WORDS, make
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from jaxcompress.documents.vocabulary import piece_counts, pieces_to_keep, restrict_tokenizer
from jaxcompress.models.bert import Bert, BertConfig

texts = st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=1, max_size=6).map(" ".join)


@settings(deadline=None, max_examples=100)
@given(documents=st.lists(texts, min_size=1, max_size=5), other=texts, reserve=st.integers(0, 20))
def test_a_text_whose_pieces_stay_is_cut_as_before_and_any_other_is_spelled(
    documents, other, reserve
):
    whole = make()
    kept = pieces_to_keep(whole, piece_counts(whole, documents), reserve=reserve)
    small = restrict_tokenizer(whole, kept)
    for text in documents:
        assert small.encode(text).tokens == whole.encode(text).tokens
        assert [kept[index] for index in small.encode(text).ids] == whole.encode(text).ids
    assert "[UNK]" not in small.encode(other).tokens
    spelled = "".join(
        token.removeprefix("##") for token in small.encode(other, add_special_tokens=False).tokens
    )
    assert spelled == other.replace(" ", "")
    assert small.get_vocab_size() == len(kept)


@pytest.mark.parametrize("processor", ["template", "bert", "sequence"])
def test_special_tokens_keep_their_places(processor):
    whole = make(processor)
    whole.enable_padding(pad_id=0, pad_token="[PAD]", length=10)
    small = restrict_tokenizer(whole, pieces_to_keep(whole, piece_counts(whole, ["bag"])))
    assert small.encode("bag fade").tokens[:2] == ["[CLS]", "bag"]
    assert small.encode("bag", "bag").tokens[:5] == ["[CLS]", "bag", "[SEP]", "bag", "[SEP]"]
    assert small.encode("bag z").tokens == ["[CLS]", "bag", "[UNK]", "[SEP]", *["[PAD]"] * 6]
    assert small.encode("bag").ids[0] == small.token_to_id("[CLS]")
    assert small.padding["pad_id"] == small.token_to_id("[PAD]")


def test_the_padding_moves_with_its_piece():
    whole = make()
    whole.enable_padding(pad_id=whole.token_to_id("face"), pad_token="face", length=6)
    small = restrict_tokenizer(whole, pieces_to_keep(whole, piece_counts(whole, ["face"])))
    assert small.token_to_id("face") != whole.token_to_id("face")
    assert small.padding["pad_id"] == small.token_to_id("face")
    assert small.encode("bad").ids[-1] == small.token_to_id("face")


def test_embeddings_are_equal_to_the_bit():
    whole, text = make(), "bad dead face"
    kept = pieces_to_keep(whole, piece_counts(whole, [text]))
    small = restrict_tokenizer(whole, kept)
    config = BertConfig(
        len(WORDS), 16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    ids, fewer = (jnp.array([each.encode(text).ids]) for each in (whole, small))
    params = Bert(config).init(jax.random.key(0), ids)["params"]
    cut = params | {"words": {"embedding": params["words"]["embedding"][kept]}}
    other = BertConfig(
        len(kept), 16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    np.testing.assert_array_equal(
        Bert(config).apply({"params": params}, ids), Bert(other).apply({"params": cut}, fewer)
    )


def test_the_reserve_is_ranked_and_leaves_placeholders_out():
    whole = make()
    counts = piece_counts(whole, ["bag bag bag", "head head", "fade"])

    def named(**options):
        return {whole.id_to_token(i) for i in pieces_to_keep(whole, counts, **options)}

    least = named(at_least=4)
    assert least == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{c}" for c in LETTERS)}
    assert named(at_least=3) - least == {"bag"}
    assert named(at_least=4, reserve=2) - least == {"bag", "head"}
    assert named(at_least=4, reserve=4) - least == {"bag", "head", "fade", "ab"}
    assert named(reserve=10**6) == set(WORDS) - {"[unused0]", "[unused1]"}
    assert counts.sum() == 6


def test_what_does_not_fit_is_named():
    whole = make()
    counts = piece_counts(whole, ["bag"])
    with pytest.raises(ValueError, match="the tokenizer is a BPE"):
        pieces_to_keep(Tokenizer(models.BPE()), counts)
    with pytest.raises(ValueError, match="counts have shape"):
        pieces_to_keep(whole, counts[:-1])
    with pytest.raises(ValueError, match="at_least"):
        pieces_to_keep(whole, counts, at_least=0)
    with pytest.raises(ValueError, match="sorted ids"):
        restrict_tokenizer(whole, [3, 2, 1])
    with pytest.raises(ValueError, match=r"leaves out \[PAD\]"):
        restrict_tokenizer(whole, np.arange(1, len(WORDS)))
    assert json.loads(whole.to_str())["model"]["vocab"]["bag"] == WORDS.index(
        "bag"
    )  # the given one is as it was
