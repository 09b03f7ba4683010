r"""Other people's models, unmodified: their hidden axes, what is refused, and what is computed.

Every model comes from a published package, with random weights, at a reduced size where its
constructor allows one. Each is traced and cut to half on every hidden axis with `rotate_and_prune`,
from its weights alone and with moments of random batches, and the small network is run. "oracle
error" is law 4 (tests/helpers_oracle.py): the largest difference between the replayed small network
and the full one with the small one's maps embedded, relative to the outputs' largest, over two
draws of random maps. Models with batch statistics run in inference mode.

    pip install -e '.[test]' transformers==4.57.6 equimo==1.1.0 pdequinox==0.1.2 \
        flowjax==19.1.2 jraph==0.0.6.dev0 distrax==0.1.9 tf-keras==2.21.0 dm-clrs==2.0.3 \
        e3nn-jax==0.21.0 flaxmodels==0.1.3 brax==0.14.2 jraphx==0.1.0 mamba2-jax==1.1.2 \
        jaxkan==0.3.7 penzai==0.2.5 numpyro==0.22.0 keras==3.15.1 keras-hub==0.32.0 torch==2.14.1
    pip install --no-deps jax-models==0.0.5 nanodl==0.0.0 flaxdiff==0.2.11
    python tests/benchmarks/zoo.py                   # the table; 20 minutes on two busy cores
    python tests/benchmarks/zoo.py --only 'bert*'    # some of it
    python tests/benchmarks/zoo.py --by-package      # a line for every package
    python tests/benchmarks/zoo.py --again           # measure afresh

A model whose package is missing is left out, and the table says so. Finished rows are kept in the
results file (`--out`).
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cells import write
from tqdm.auto import tqdm

import jaxcompress as jc

sys.path.append(str(Path(__file__).parents[1]))
from helpers_oracle import embeddable, small_and_full

os.environ.setdefault("KERAS_BACKEND", "jax")

KEEP, BATCHES, DRAWS = 1 / 2, 3, 2
BATCH, LENGTH, VOCABULARY = 3, 8, 50


@dataclasses.dataclass(frozen=True)
class Model:
    """A pure function, its parameters, and random inputs for it.

    Attributes:
        apply: `apply(params, *inputs)` gives the outputs.
        params: float arrays, batch statistics among them.
        draw: from a generator to the tuple of inputs.
    """

    apply: Callable[..., Any]
    params: Any
    draw: Callable[[np.random.Generator], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A factory, and where its model comes from."""

    make: Callable[[], Model]
    package: str
    framework: str


ZOO: dict[str, Entry] = {}


def model(package: str, framework: str) -> Callable[[Callable[[], Model]], Callable[[], Model]]:
    """Put a factory into the zoo under its own name."""

    def register(make: Callable[[], Model]) -> Callable[[], Model]:
        ZOO[make.__name__] = Entry(make, package, framework)
        return make

    return register


# --- inputs, and what each framework calls a pure function ---------------------------------------


def noise(*shape: int) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    return lambda rng: (jnp.asarray(rng.normal(size=shape), jnp.float32),)


def tokens(
    *shape: int, below: int = VOCABULARY
) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    return lambda rng: (jnp.asarray(rng.integers(0, below, shape), jnp.int32),)


def both(
    *draws: Callable[[np.random.Generator], tuple[Any, ...]],
) -> Callable[[np.random.Generator], tuple[Any, ...]]:
    return lambda rng: tuple(value for draw in draws for value in draw(rng))


def perturb(params: Any) -> Any:
    """Fresh parameters with noise, so that no bias is zero and no scale one.

    Variances stay positive, integers what they are.
    """
    rng = np.random.default_rng(0)

    def leaf(path: tuple[Any, ...], value: Any) -> jax.Array:
        if not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
            return value
        if "var" in jax.tree_util.keystr(path).lower():
            return jnp.asarray(rng.uniform(0.5, 1.5, np.shape(value)), jnp.float32)
        return jnp.asarray(
            value + (0.1 if np.ndim(value) < 2 else 0.02) * rng.normal(size=np.shape(value)),
            jnp.float32,
        )

    return jax.tree_util.tree_map_with_path(leaf, params)


def linen(
    module: Any, draw: Callable[[np.random.Generator], tuple[Any, ...]], *rest: Any, **options: Any
) -> Model:
    """Batch statistics are parameters, too; `rest` and `options` are static arguments."""
    variables = module.init(jax.random.key(0), *draw(np.random.default_rng(0)), *rest, **options)
    return Model(
        lambda params, *inputs: module.apply(params, *inputs, *rest, **options),
        perturb(variables),
        draw,
    )


def nnx_model(
    module: Any, draw: Callable[[np.random.Generator], tuple[Any, ...]], call: Any = None
) -> Model:
    from flax import nnx

    definition, params, rest = nnx.split(module, (nnx.Param, nnx.BatchStat), ...)
    call = call or (lambda module, *inputs: module(*inputs))
    return Model(
        lambda params, *inputs: call(nnx.merge(definition, params, rest, copy=True), *inputs),
        perturb(params),
        draw,
    )


def equinox(
    module: Any, draw: Callable[[np.random.Generator], tuple[Any, ...]], call: Any = None
) -> Model:
    """Mapped over the first axis of every input, unless a call is given."""
    import equinox as eqx

    params, static = eqx.partition(module, eqx.is_inexact_array)
    call = call or (lambda module, *inputs: jax.vmap(module)(*inputs))
    return Model(
        lambda params, *inputs: call(eqx.combine(params, static), *inputs), perturb(params), draw
    )


def haiku(
    function: Callable[..., Any],
    draw: Callable[[np.random.Generator], tuple[Any, ...]],
    **first: Any,
) -> Model:
    """Parameters and state in one tree.

    `first` are options of the first call, which makes the statistics.
    """
    import haiku as hk

    net = hk.transform_with_state(function)
    params, state = net.init(jax.random.key(0), *draw(np.random.default_rng(0)), **first)

    def apply(both, *inputs):
        return net.apply(both["params"], both["state"], None, *inputs)[0]

    def counters(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)

    return Model(apply, {"params": perturb(params), "state": counters(state)}, draw)


# --- transformers --------------------------------------------------------------------------------

LAYERS = dict(
    vocab_size=VOCABULARY,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
)
ENCODED = LAYERS | dict(max_position_embeddings=32)
PICTURES = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    image_size=16,
    patch_size=4,
)
DECODED = dict(
    vocab_size=VOCABULARY, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4
)
DECODED |= dict(
    decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=36, max_position_embeddings=32
)
TEXT, IMAGE = tokens(BATCH, LENGTH), noise(BATCH, 3, 16, 16)


def pretrained(name: str, config: Any, draw: Any = TEXT, *names: str) -> Model:
    """A Flax model of transformers, its outputs without caches."""
    import transformers

    module = getattr(transformers, name)(config, seed=0)

    def apply(params: Any, *inputs: Any) -> Any:
        named = dict(zip(names, inputs)) if names else {}
        out = module(*(() if names else inputs), **named, params=params, return_dict=True)
        return {key: value for key, value in out.items() if isinstance(value, jax.Array)}

    return Model(apply, perturb(module.params), draw)


@model("transformers", "flax linen")
def bert() -> Model:
    from transformers import BertConfig

    return pretrained("FlaxBertForMaskedLM", BertConfig(**ENCODED))


@model("transformers", "flax linen")
def roberta_classifier() -> Model:
    from transformers import RobertaConfig

    return pretrained(
        "FlaxRobertaForSequenceClassification", RobertaConfig(**ENCODED, num_labels=5)
    )


@model("transformers", "flax linen")
def albert() -> Model:
    from transformers import AlbertConfig

    return pretrained("FlaxAlbertModel", AlbertConfig(**ENCODED, embedding_size=16))


@model("transformers", "flax linen")
def roformer() -> Model:
    from transformers import RoFormerConfig

    return pretrained("FlaxRoFormerModel", RoFormerConfig(**ENCODED, embedding_size=24))


@model("transformers", "flax linen")
def gpt2() -> Model:
    from transformers import GPT2Config

    return pretrained(
        "FlaxGPT2LMHeadModel",
        GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=24, n_layer=2, n_head=4),
    )


@model("transformers", "flax linen")
def gpt_j() -> Model:
    from transformers import GPTJConfig

    config = dict(
        vocab_size=VOCABULARY, n_positions=32, n_embd=24, n_layer=2, n_head=4, rotary_dim=4
    )
    return pretrained("FlaxGPTJForCausalLM", GPTJConfig(**config))


@model("transformers", "flax linen")
def opt() -> Model:
    from transformers import OPTConfig

    config = LAYERS | dict(ffn_dim=40, max_position_embeddings=32, word_embed_proj_dim=24)
    config.pop("intermediate_size")
    return pretrained("FlaxOPTForCausalLM", OPTConfig(**config))


@model("transformers", "flax linen")
def bloom() -> Model:
    from transformers import BloomConfig

    return pretrained(
        "FlaxBloomForCausalLM",
        BloomConfig(vocab_size=VOCABULARY, hidden_size=24, n_layer=2, n_head=4),
    )


@model("transformers", "flax linen")
def llama() -> Model:
    from transformers import LlamaConfig

    return pretrained("FlaxLlamaForCausalLM", LlamaConfig(**ENCODED))


@model("transformers", "flax linen")
def mistral() -> Model:
    from transformers import MistralConfig

    return pretrained(
        "FlaxMistralForCausalLM", MistralConfig(**ENCODED, num_key_value_heads=2, head_dim=6)
    )


@model("transformers", "flax linen")
def gemma_1() -> Model:
    from transformers import GemmaConfig

    return pretrained(
        "FlaxGemmaForCausalLM", GemmaConfig(**ENCODED, num_key_value_heads=1, head_dim=8)
    )


@model("transformers", "flax linen")
def bart() -> Model:
    from transformers import BartConfig

    names = ("input_ids", "decoder_input_ids")
    return pretrained(
        "FlaxBartForConditionalGeneration", BartConfig(**DECODED), both(TEXT, TEXT), *names
    )


@model("transformers", "flax linen")
def whisper() -> Model:
    from transformers import WhisperConfig

    sizes = {key: value for key, value in DECODED.items() if key != "max_position_embeddings"}
    ends = dict(
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    config = WhisperConfig(
        **sizes, num_mel_bins=8, max_source_positions=10, max_target_positions=32, **ends
    )
    names = ("input_features", "decoder_input_ids")
    return pretrained(
        "FlaxWhisperForConditionalGeneration", config, both(noise(BATCH, 8, 20), TEXT), *names
    )


@model("transformers", "flax linen")
def wav2vec2() -> Model:
    from transformers import Wav2Vec2Config

    convolutions = dict(
        conv_dim=(12, 12), conv_kernel=(4, 3), conv_stride=(2, 2), num_conv_pos_embeddings=4
    )
    config = Wav2Vec2Config(
        **LAYERS,
        **convolutions,
        num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
    )
    return pretrained("FlaxWav2Vec2Model", config, noise(BATCH, 64))


@model("transformers", "flax linen")
def vit() -> Model:
    from transformers import ViTConfig

    return pretrained("FlaxViTForImageClassification", ViTConfig(**PICTURES, num_labels=5), IMAGE)


@model("transformers", "flax linen")
def beit() -> Model:
    from transformers import BeitConfig

    config = BeitConfig(
        **PICTURES, num_labels=5, use_relative_position_bias=True, layer_scale_init_value=0.1
    )
    return pretrained("FlaxBeitForImageClassification", config, IMAGE)


@model("transformers", "flax linen")
def dinov2() -> Model:
    from transformers import Dinov2Config

    return pretrained(
        "FlaxDinov2ForImageClassification", Dinov2Config(**PICTURES, num_labels=5), IMAGE
    )


@model("transformers", "flax linen")
def clip() -> Model:
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(**ENCODED, projection_dim=12, eos_token_id=2)
    config = CLIPConfig.from_text_vision_configs(
        text, CLIPVisionConfig(**PICTURES, projection_dim=12), projection_dim=12
    )
    return pretrained("FlaxCLIPModel", config, both(TEXT, IMAGE), "input_ids", "pixel_values")


STAGES = dict(embedding_size=8, hidden_sizes=[12, 20], depths=[2, 1], num_labels=5)


@model("transformers", "flax linen")
def resnet() -> Model:
    from transformers import ResNetConfig

    return pretrained(
        "FlaxResNetForImageClassification", ResNetConfig(**STAGES), noise(BATCH, 3, 32, 32)
    )


@model("transformers", "flax linen")
def regnet() -> Model:
    from transformers import RegNetConfig

    return pretrained(
        "FlaxRegNetForImageClassification",
        RegNetConfig(**STAGES, groups_width=4),
        noise(BATCH, 3, 32, 32),
    )


# --- flax ----------------------------------------------------------------------------------------


@model("flax", "flax linen")
def linen_recurrent() -> Model:
    """Both directions, then a second layer."""
    from flax import linen as nn

    directions = nn.Bidirectional(nn.RNN(nn.LSTMCell(10)), nn.RNN(nn.GRUCell(8)))
    return linen(
        nn.Sequential([directions, nn.RNN(nn.OptimizedLSTMCell(9)), nn.Dense(3)]),
        noise(BATCH, LENGTH, 7),
    )


@model("flax", "flax nnx")
def nnx_recurrent() -> Model:
    from flax import nnx

    rngs = nnx.Rngs(0)
    layers = [
        nnx.RNN(nnx.GRUCell(7, 10, rngs=rngs)),
        nnx.RNN(nnx.LSTMCell(10, 8, rngs=rngs)),
        nnx.Linear(8, 3, rngs=rngs),
    ]
    return nnx_model(nnx.Sequential(*layers), noise(BATCH, LENGTH, 7))


@model("flax", "flax nnx")
def nnx_attention() -> Model:
    from flax import nnx

    rngs = nnx.Rngs(0)
    attention = nnx.MultiHeadAttention(
        num_heads=3, in_features=7, qkv_features=12, out_features=10, decode=False, rngs=rngs
    )
    norms = nnx.LayerNorm(10, rngs=rngs), nnx.GroupNorm(10, num_groups=2, rngs=rngs)
    return nnx_model(
        nnx.Sequential(attention, *norms, nnx.Linear(10, 3, rngs=rngs)), noise(BATCH, LENGTH, 7)
    )


# --- equinox and what is built on it -------------------------------------------------------------


@model("equinox", "equinox")
def equinox_mlp() -> Model:
    import equinox as eqx

    return equinox(eqx.nn.MLP(7, 3, 16, 3, key=jax.random.key(0)), noise(BATCH, 7))


@model("equinox", "equinox")
def equinox_gru() -> Model:
    """Stacked cells, scanned."""
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), 3)
    cells = (
        eqx.nn.GRUCell(7, 12, key=keys[0]),
        eqx.nn.LSTMCell(12, 10, key=keys[1]),
        eqx.nn.Linear(10, 3, key=keys[2]),
    )

    def call(cells: Any, xs: jax.Array) -> jax.Array:
        def step(state: Any, x: jax.Array) -> tuple[Any, None]:
            first = cells[0](x, state[0])
            return (first, cells[1](first, state[1])), None

        start = jnp.zeros(12), (jnp.zeros(10), jnp.zeros(10))
        return jax.vmap(lambda x: cells[2](jax.lax.scan(step, start, x)[0][1][0]))(xs)

    return equinox(cells, noise(BATCH, LENGTH, 7), call)


@model("equinox", "equinox")
def equinox_attention() -> Model:
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), 3)
    attention = eqx.nn.MultiheadAttention(
        3, 12, use_query_bias=True, use_value_bias=True, key=keys[0]
    )
    layers = (
        eqx.nn.Linear(7, 12, key=keys[1]),
        attention,
        eqx.nn.LayerNorm(12),
        eqx.nn.Linear(12, 3, key=keys[2]),
    )

    def call(layers: Any, xs: jax.Array) -> jax.Array:
        def one(x: jax.Array) -> jax.Array:
            x = jax.vmap(layers[0])(x)
            return jax.vmap(lambda each: layers[3](layers[2](each)))(x + layers[1](x, x, x))

        return jax.vmap(one)(xs)

    return equinox(layers, noise(BATCH, LENGTH, 7), call)


def equimo(name: str, *sizes: Any, **options: Any) -> Model:
    import equimo.models

    module = getattr(equimo.models, name)(*sizes, **options, num_classes=5, key=jax.random.key(0))

    def call(module, images):
        return jax.vmap(lambda image: module(image, key=jax.random.key(0), inference=True))(images)

    return equinox(module, noise(BATCH, 3, 32, 32), call)


@model("equimo", "equinox")
def equimo_vit() -> Model:
    return equimo("VisionTransformer", 32, 3, 24, 8, 4, [2])


@model("equimo", "equinox")
def equimo_mobilenet() -> Model:
    """Depthwise convolutions and squeeze-excite."""
    blocks = [
        (8, 12, 3, 2, True, "relu"),
        (10, 24, 5, 1, False, "relu"),
        (12, 24, 3, 1, True, "hard_swish"),
    ]
    return equimo("MobileNetv3", 3, blocks, last_channels=16)


@model("equimo", "equinox")
def equimo_convnext() -> Model:
    return equimo(
        "ConvNeXt", 3, depths=[1, 1, 1, 1], dims=[8, 12, 16, 20], layer_scale_init_value=0.1
    )


@model("equimo", "equinox")
def equimo_vssd() -> Model:
    """State spaces without an order, and attention."""
    return equimo(
        "Vssd",
        32,
        3,
        dim=16,
        d_state=8,
        depths=[1, 1],
        num_heads=[2, 4],
        attentions_layers=("mamba2mixer", "attention"),
    )


@model("equimo", "equinox")
def equimo_mlla() -> Model:
    """Linear attention with rotary positions."""
    return equimo("Mlla", 32, 3, dim=16, depths=[1, 1], num_heads=[2, 4])


@model("pdequinox", "equinox")
def pdequinox_unet() -> Model:
    import pdequinox

    return equinox(
        pdequinox.arch.ClassicUNet(2, 3, 2, hidden_channels=8, num_levels=2, key=jax.random.key(0)),
        noise(2, 3, 16, 16),
    )


@model("pdequinox", "equinox")
def pdequinox_modern_unet() -> Model:
    import pdequinox

    return equinox(
        pdequinox.arch.ModernUNet(2, 3, 2, hidden_channels=8, num_levels=1, key=jax.random.key(0)),
        noise(2, 3, 16, 16),
    )


@model("pdequinox", "equinox")
def pdequinox_fourier() -> Model:
    """Fourier neural operator."""
    import pdequinox

    network = pdequinox.arch.ClassicFNO(
        1, 3, 2, hidden_channels=8, num_modes=4, num_blocks=2, key=jax.random.key(0)
    )
    return equinox(network, noise(2, 3, 16))


def flow(make: str, **options: Any) -> Model:
    """The log density of a flow."""
    import flowjax.distributions
    import flowjax.flows
    import paramax

    normal = flowjax.distributions.Normal(jnp.zeros(6))
    network = getattr(flowjax.flows, make)(
        jax.random.key(0), base_dist=normal, flow_layers=2, **options
    )
    return equinox(network, noise(BATCH, 6), lambda network, x: paramax.unwrap(network).log_prob(x))


@model("flowjax", "equinox")
def flowjax_coupling() -> Model:
    return flow("coupling_flow", nn_width=12, nn_depth=2)


@model("flowjax", "equinox")
def flowjax_autoregressive() -> Model:
    return flow("masked_autoregressive_flow", nn_width=12, nn_depth=2)


# --- haiku and what is built on it ---------------------------------------------------------------


@model("dm-haiku", "haiku")
def haiku_mlp() -> Model:
    import haiku as hk

    return haiku(lambda x: hk.nets.MLP([12, 10, 3])(x), noise(BATCH, 7))


@model("dm-haiku", "haiku")
def haiku_resnet() -> Model:
    import haiku as hk

    sizes = dict(blocks_per_group=(1, 1, 1, 1), channels_per_group=(8, 12, 16, 20), num_classes=5)

    def run(x, training=False):
        return hk.nets.ResNet(**sizes, bottleneck=True)(x, is_training=training)

    return haiku(run, noise(BATCH, 32, 32, 3), training=True)


@model("dm-haiku", "haiku")
def haiku_mobilenet() -> Model:
    import haiku as hk

    sizes = dict(strides=(1, 2, 1), channels=(8, 12, 16), num_classes=5)

    def run(x, training=False):
        return hk.nets.MobileNetV1(**sizes)(x, is_training=training)

    return haiku(run, noise(BATCH, 16, 16, 3), training=True)


@model("dm-haiku", "haiku")
def haiku_recurrent() -> Model:
    import haiku as hk

    def run(x: jax.Array) -> jax.Array:
        core = hk.DeepRNN([hk.LSTM(12), jax.nn.relu, hk.GRU(10)])
        out, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
        return hk.Linear(3)(out)

    return haiku(run, noise(BATCH, LENGTH, 7))


@model("dm-haiku", "haiku")
def haiku_vqvae() -> Model:
    """Codes are found by the nearest of a codebook."""
    import haiku as hk

    def run(x: jax.Array) -> jax.Array:
        codes = hk.nets.VectorQuantizer(8, 10, 0.25)(hk.nets.MLP([12, 8])(x), is_training=False)[
            "quantize"
        ]
        return hk.nets.MLP([10, 3])(codes)

    return haiku(run, noise(BATCH, 7))


def graph(rng: np.random.Generator) -> tuple[Any, ...]:
    """Nodes, edges, senders and receivers."""
    ends = (jnp.asarray(rng.integers(0, 6, 14), jnp.int32) for _ in range(2))
    return (*both(noise(6, 5), noise(14, 4))(rng), *ends)


@model("jraph", "haiku")
def jraph_network() -> Model:
    """Edges, nodes and globals are updated by perceptrons, twice."""
    import haiku as hk
    import jraph

    def run(nodes: jax.Array, edges: jax.Array, senders: jax.Array, receivers: jax.Array) -> Any:
        def count(x):
            return jnp.array([len(x)])

        given = jraph.GraphsTuple(
            nodes, edges, receivers, senders, jnp.ones((1, 3)), count(nodes), count(edges)
        )

        def update(*sizes):
            return jraph.concatenated_args(hk.nets.MLP(sizes))

        for _ in range(2):
            given = jraph.GraphNetwork(update(10, 8), update(12, 9), update(7, 6))(given)
        return hk.Linear(3)(given.nodes), hk.Linear(2)(given.globals)

    return haiku(run, graph)


@model("jraph", "haiku")
def jraph_attention() -> Model:
    import haiku as hk
    import jraph

    def run(nodes: jax.Array, edges: jax.Array, senders: jax.Array, receivers: jax.Array) -> Any:
        given = jraph.GraphsTuple(
            nodes, None, receivers, senders, None, jnp.array([len(nodes)]), jnp.array([len(edges)])
        )

        def logit(sender, receiver, edge):
            return hk.Linear(1)(jax.nn.leaky_relu(jnp.concatenate([sender, receiver], -1)))

        for width in (10, 8):
            given = jraph.GAT(
                lambda nodes, width=width: hk.Linear(width)(nodes), logit, jax.nn.relu
            )(given)
        return hk.Linear(3)(given.nodes)

    return haiku(run, graph)


@model("distrax", "haiku")
def distrax_spline_flow() -> Model:
    import distrax
    import haiku as hk

    def run(x: jax.Array) -> jax.Array:
        def spline(params):
            return distrax.RationalQuadraticSpline(params, range_min=-3.0, range_max=3.0)

        layers = []
        for index in range(2):
            conditioner = hk.Sequential([hk.nets.MLP([12, 10, 6 * 13]), hk.Reshape((6, 13))])
            layers.append(distrax.MaskedCoupling(jnp.arange(6) % 2 == index, conditioner, spline))
        base = distrax.Independent(distrax.Normal(jnp.zeros(6), jnp.ones(6)), 1)
        return distrax.Transformed(base, distrax.Inverse(distrax.Chain(layers))).log_prob(x)

    return haiku(run, noise(BATCH, 6))


@model("dm-clrs", "haiku")
def clrs_message_passing() -> Model:
    """The benchmark's triplet message passing processor."""
    import haiku as hk
    from clrs._src.processors import MPNN

    def run(
        nodes: jax.Array,
        edges: jax.Array,
        globals_: jax.Array,
        adjacency: jax.Array,
        hidden: jax.Array,
    ) -> Any:
        processor = MPNN(
            out_size=12,
            msgs_mlp_sizes=[10, 9],
            use_ln=True,
            use_triplets=True,
            nb_triplet_fts=4,
            gated=True,
        )
        nodes, edges = processor(
            nodes, edges, globals_, (adjacency > 0).astype(jnp.float32), hidden
        )
        return hk.Linear(3)(nodes), hk.Linear(2)(edges)

    return haiku(
        run,
        both(
            noise(BATCH, 5, 7),
            noise(BATCH, 5, 5, 6),
            noise(BATCH, 4),
            noise(BATCH, 5, 5),
            noise(BATCH, 5, 12),
        ),
    )


@model("e3nn-jax", "haiku")
def e3nn_gate() -> Model:
    """Scalars and vectors, rotated together: gates between equivariant linear layers."""
    import e3nn_jax as e3nn

    def run(x: jax.Array) -> jax.Array:
        hidden = e3nn.haiku.Linear("8x0e + 4x0e + 4x1o")(e3nn.IrrepsArray("3x0e + 2x1o", x))
        return e3nn.haiku.Linear("2x0e + 1x1o")(e3nn.gate(hidden)).array

    return haiku(run, noise(BATCH, 9))


# --- others' Flax models -------------------------------------------------------------------------


@model("flaxmodels", "flax linen")
def flaxmodels_resnet18() -> Model:
    import flaxmodels

    return linen(
        flaxmodels.ResNet18(output="logits", pretrained=None, num_classes=5),
        noise(1, 32, 32, 3),
        train=False,
    )


def jax_models(module: Any, draw: Any) -> Model:
    """Its modules read rates from arrays, so those are computed at once, outside tracing."""
    made = linen(module, draw, True)

    def apply(params: Any, *inputs: Any) -> Any:
        with jax.ensure_compile_time_eval():
            return made.apply(params, *inputs)

    return dataclasses.replace(made, apply=apply)


@model("jax-models", "flax linen")
def mlp_mixer() -> Model:
    from jax_models.models.mlp_mixer import MLPMixer

    sizes = dict(
        patch_size=4,
        num_mixers_layers=2,
        hidden_size=12,
        channels_dim=20,
        tokens_dim=14,
        num_classes=5,
    )
    return jax_models(MLPMixer(**sizes, attach_head=True), noise(BATCH, 16, 16, 3))


@model("jax-models", "flax linen")
def conv_mixer() -> Model:
    """Depthwise convolutions and batch norm."""
    from jax_models.models.conv_mixer import ConvMixer

    sizes = dict(features=12, patch_size=4, num_mixer_layers=2, filter_size=3, num_classes=5)
    return jax_models(ConvMixer(**sizes), noise(BATCH, 16, 16, 3))


@model("jax-models", "flax linen")
def swin() -> Model:
    """Shifted windows, and merged patches."""
    from jax_models.models.swin_transformer import SwinTransformer

    sizes = dict(
        patch_size=2, emb_dim=12, depths=(2, 1), num_heads=(2, 3), window_size=4, num_classes=5
    )
    return jax_models(SwinTransformer(**sizes), noise(BATCH, 16, 16, 3))


@model("jax-models", "flax linen")
def convnext() -> Model:
    from jax_models.models.convnext import ConvNeXt

    sizes = dict(
        depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), layer_scale_init_value=0.1, num_classes=5
    )
    return jax_models(ConvNeXt(**sizes), noise(BATCH, 32, 32, 3))


@model("nanodl", "flax linen")
def mixtral() -> Model:
    """Mixture of experts, grouped heads."""
    import nanodl

    sizes = dict(
        num_layers=2,
        num_heads=4,
        num_groups=2,
        hidden_dim=24,
        embed_dim=24,
        feedforward_dim=20,
        vocab_size=VOCABULARY,
    )
    network = nanodl.Mixtral(
        **sizes,
        dropout=0.0,
        max_length=LENGTH,
        start_token=0,
        end_token=1,
        window_size=4,
        shift_size=2,
    )
    return linen(network, TEXT)


@model("nanodl", "flax linen")
def nanodl_t5() -> Model:
    import nanodl

    sizes = dict(
        num_layers=2,
        num_heads=4,
        hidden_dim=24,
        embed_dim=24,
        feedforward_dim=20,
        vocab_size=VOCABULARY,
    )
    return linen(
        nanodl.T5(**sizes, dropout=0.0, max_length=LENGTH, start_token=0, end_token=1),
        both(TEXT, TEXT),
    )


@model("brax", "flax linen")
def brax_policy() -> Model:
    from brax.training.networks import make_policy_network

    network = make_policy_network(4, 7, hidden_layer_sizes=(12, 10), layer_norm=True)

    def apply(params, x):
        return network.apply(None, params, x)

    return Model(apply, perturb(network.init(jax.random.key(0))), noise(BATCH, 7))


@model("flaxdiff", "flax linen")
def flaxdiff_unet() -> Model:
    """A diffusion model's: group norms, time embeddings, cross attention.

    Skips that are concatenated.
    """
    from flaxdiff.models.simple_unet import Unet

    attentions = [
        None,
        {"heads": 2, "dtype": jnp.float32, "use_projection": False, "use_self_and_cross": True},
    ]
    network = Unet(
        emb_features=16,
        feature_depths=[8, 16],
        attention_configs=attentions,
        num_res_blocks=1,
        norm_groups=4,
        dtype=jnp.float32,
    )
    return linen(network, both(noise(2, 16, 16, 3), noise(2), noise(2, 5, 6)))


@model("flaxdiff", "flax linen")
def flaxdiff_dit() -> Model:
    """Scales and shifts of the norms come from the time and the text."""
    from flaxdiff.models.simple_dit import SimpleDiT

    network = SimpleDiT(patch_size=4, emb_features=24, num_layers=2, num_heads=4, mlp_ratio=2)
    return linen(network, both(noise(2, 16, 16, 3), noise(2), noise(2, 5, 6)))


@model("jraphx", "flax nnx")
def jraphx_gcn() -> Model:
    from flax import nnx
    from jraphx.nn.models import GCN

    network = GCN(5, 12, 3, 4, norm="layer_norm", residual=True, jk="cat", rngs=nnx.Rngs(0))
    return nnx_model(network, edges, lambda network, nodes, ends: network(nodes, ends))


def edges(rng: np.random.Generator) -> tuple[Any, ...]:
    """Nodes, and both ends of edges."""
    return jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), jnp.asarray(
        rng.integers(0, 6, (2, 14)), jnp.int32
    )


@model("jraphx", "flax nnx")
def jraphx_gat() -> Model:
    from flax import nnx
    from jraphx.nn.models import GAT

    return nnx_model(
        GAT(5, 12, 2, 4, heads=3, rngs=nnx.Rngs(0)),
        edges,
        lambda network, nodes, ends: network(nodes, ends),
    )


@model("jraphx", "flax nnx")
def jraphx_gin() -> Model:
    from flax import nnx
    from jraphx.nn.models import GIN

    return nnx_model(
        GIN(5, 12, 2, 4, rngs=nnx.Rngs(0)), edges, lambda network, nodes, ends: network(nodes, ends)
    )


@model("mamba2-jax", "flax nnx")
def mamba2() -> Model:
    """State spaces, in chunks."""
    from flax import nnx
    from mamba2_jax import Mamba2Config, Mamba2ForCausalLM

    sizes = dict(hidden_size=16, state_size=8, head_dim=8, chunk_size=4, num_hidden_layers=2)
    network = Mamba2ForCausalLM(Mamba2Config(vocab_size=VOCABULARY, **sizes), rngs=nnx.Rngs(0))
    return nnx_model(network, TEXT, lambda network, ids: network(ids)["logits"])


@model("jaxkan", "flax nnx")
def kolmogorov_arnold() -> Model:
    from jaxkan.models.KAN import KAN

    network = KAN(
        layer_dims=[5, 8, 6, 3],
        layer_type="chebyshev",
        required_parameters={"D": 4, "flavor": "exact"},
        seed=0,
    )
    return nnx_model(network, noise(BATCH, 5))


@model("penzai", "penzai")
def penzai_llama() -> Model:
    """Arrays with named axes."""
    from penzai import pz
    from penzai.models.transformer.variants import llamalike_common as llamalike

    sizes = dict(
        num_kv_heads=2,
        query_head_multiplier=2,
        embedding_dim=24,
        projection_dim=6,
        mlp_hidden_dim=40,
    )
    config = llamalike.LlamalikeTransformerConfig(
        **sizes,
        num_decoder_blocks=2,
        vocab_size=VOCABULARY,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
    )
    network, values = pz.unbind_params(
        llamalike.build_llamalike_transformer(config, jax.random.key(0)), freeze=True
    )

    def apply(params: Any, ids: jax.Array) -> jax.Array:
        tagged = pz.nx.wrap(ids).tag("batch", "seq")
        positions = pz.nx.wrap(jnp.arange(ids.shape[1])).tag("seq")
        return pz.bind_variables(network, params)(tagged, token_positions=positions).unwrap(
            "batch", "seq", "vocabulary"
        )

    return Model(apply, perturb(values), TEXT)


@model("numpyro", "stax")
def numpyro_autoregressive() -> Model:
    """Masked dense layers."""
    from numpyro.nn import AutoregressiveNN

    init, apply = AutoregressiveNN(6, [12, 10], param_dims=[1, 1])
    return Model(apply, perturb(init(jax.random.key(0), (6,))[1]), noise(BATCH, 6))


@model("jax", "stax")
def stax_convnet() -> Model:
    from jax.example_libraries import stax

    block = (
        stax.FanOut(2),
        stax.parallel(stax.Conv(8, (3, 3), padding="SAME"), stax.Identity),
        stax.FanInSum,
        stax.Gelu,
    )
    layers = (
        stax.Conv(8, (3, 3)),
        stax.Relu,
        *block,
        stax.MaxPool((2, 2)),
        stax.Flatten,
        stax.Dense(12),
        stax.Relu,
    )
    init, apply = stax.serial(*layers, stax.Dense(5))
    return Model(
        apply, perturb(init(jax.random.key(0), (-1, 12, 12, 3))[1]), noise(BATCH, 12, 12, 3)
    )


# --- Keras ---------------------------------------------------------------------------------------


def keras_model(make: Callable[[], Any], draw: Any) -> Model:
    """Weights and statistics by their paths; what is no float, such as seeds, stays inside."""
    network = make()
    trainable, rest = network.trainable_variables, network.non_trainable_variables

    def name(variable):
        return variable.path.replace("/", ".")

    floats = [
        each for each in (*trainable, *rest) if jnp.issubdtype(each.value.dtype, jnp.floating)
    ]

    def apply(params: Any, *inputs: Any) -> Any:
        given = (
            [params.get(name(each), each.value) for each in kind] for kind in (trainable, rest)
        )
        return network.stateless_call(*given, *inputs, training=False)[0]

    return Model(apply, perturb({name(each): each.value for each in floats}), draw)


def application(family: str, name: str, *sizes: Any, side: int = 32, **options: Any) -> Model:
    import importlib

    make = getattr(importlib.import_module(f"keras.src.applications.{family}"), name)
    options |= dict(
        weights=None, classes=5, classifier_activation=None, input_shape=(side, side, 3)
    )
    return keras_model(lambda: make(*sizes, **options), noise(2, side, side, 3))


@model("keras", "keras")
def keras_mobilenet_v2() -> Model:
    return application("mobilenet_v2", "MobileNetV2", alpha=0.1)


@model("keras", "keras")
def keras_efficientnet() -> Model:
    """Squeeze-excite, depthwise convolutions."""
    return application("efficientnet", "EfficientNet", 0.25, 0.3, 32)


@model("keras", "keras")
def keras_densenet() -> Model:
    """Every layer reads all those before it."""
    return application("densenet", "DenseNet", [2, 2, 2, 2])


@model("keras", "keras")
def keras_convnext() -> Model:
    return application(
        "convnext", "ConvNeXt", [1, 1, 1, 1], [8, 12, 16, 20], layer_scale_init_value=0.1
    )


@model("keras", "keras")
def keras_recurrent() -> Model:
    """Both directions, stacked."""

    def make() -> Any:
        import keras

        first = keras.layers.Bidirectional(keras.layers.LSTM(10, return_sequences=True))
        return keras.Sequential(
            [keras.Input((LENGTH, 7)), first, keras.layers.GRU(8), keras.layers.Dense(3)]
        )

    return keras_model(make, noise(BATCH, LENGTH, 7))


def padded(rng: np.random.Generator) -> tuple[Any, ...]:
    return ({"token_ids": TEXT(rng)[0], "padding_mask": jnp.ones((BATCH, LENGTH), jnp.int32)},)


def backbone(name: str, draw: Any = padded, **sizes: Any) -> Model:
    def make() -> Any:
        import keras_hub

        return getattr(keras_hub.models, name)(**sizes)

    return keras_model(make, draw)


DEEP = dict(vocabulary_size=VOCABULARY, num_layers=2, hidden_dim=24, intermediate_dim=40)
GROUPED = DEEP | dict(num_query_heads=4, num_key_value_heads=2)


@model("keras-hub", "keras")
def hub_llama() -> Model:
    return backbone("LlamaBackbone", **GROUPED)


@model("keras-hub", "keras")
def hub_gemma3() -> Model:
    return backbone("Gemma3Backbone", **GROUPED, head_dim=6, image_size=16)


@model("keras-hub", "keras")
def hub_mixtral() -> Model:
    """Mixture of experts."""
    return backbone("MixtralBackbone", **GROUPED, num_experts=3)


@model("keras-hub", "keras")
def hub_qwen_experts() -> Model:
    """Mixture of experts, one of them shared."""
    return backbone(
        "QwenMoeBackbone",
        **GROUPED,
        moe_intermediate_dim=12,
        shared_expert_intermediate_dim=20,
        num_experts=3,
        top_k=2,
    )


@model("keras-hub", "keras")
def hub_deberta() -> Model:
    """Disentangled attention."""
    return backbone("DebertaV3Backbone", **DEEP, num_heads=4, max_sequence_length=16, bucket_size=8)


@model("keras-hub", "keras")
def hub_t5() -> Model:
    def draw(rng: np.random.Generator) -> tuple[Any, ...]:
        return (
            {
                f"{side}_{key}": value
                for side in ("encoder", "decoder")
                for key, value in padded(rng)[0].items()
            },
        )

    return backbone("T5Backbone", draw, **DEEP, num_heads=4)


@model("keras-hub", "keras")
def hub_fourier() -> Model:
    """FNet: tokens are mixed by Fourier transforms."""

    def segments(rng):
        return ({"token_ids": TEXT(rng)[0], "segment_ids": jnp.zeros((BATCH, LENGTH), jnp.int32)},)

    return backbone("FNetBackbone", segments, **DEEP, max_sequence_length=LENGTH)


# --- measuring -----------------------------------------------------------------------------------


def flops(compiled: Any) -> float:
    """What XLA counts."""
    cost = compiled.cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def gap(actual: Any, expected: Any) -> float:
    """The largest difference, relative to the largest number, over all outputs."""
    worst = 0.0
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if one.shape != other.shape:
            raise ValueError(f"an output has the shape {one.shape}, not {other.shape}")
        if not np.isfinite(one).all():
            raise ValueError("an output is not finite")
        worst = max(
            worst,
            float(np.abs(one - other).max(initial=0) / max(np.abs(other).max(initial=0), 1e-9)),
        )
    return worst


def law_4(
    net: jc.networks.Network, original: Callable[..., Any], params: Any, inputs: tuple[Any, ...]
) -> float | None:
    """A replayed small network against the full one with its maps embedded."""
    errors: list[float] = []
    possible = embeddable(net)
    for seed in range(DRAWS):
        small, full, changed = small_and_full(net, params, seed, only=possible)
        sized = net.resized({key: size for key, (_, size, _, _) in changed.items()})
        if changed:
            errors.append(gap(sized(small, *inputs), original(full, *inputs)))
    return max(errors, default=None)


def examine(entry: Entry, debug: bool = False) -> dict[str, Any]:
    """One row of the table. What fails is written into it, under the step that failed."""
    row: dict[str, Any] = {"package": entry.package, "framework": entry.framework, "failures": {}}

    def attempt(step: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            if debug:
                traceback.print_exc()
            row["failures"][step] = f"{type(error).__name__}: {error}"[:600]

    try:
        row["version"] = importlib.metadata.version(entry.package)
    except importlib.metadata.PackageNotFoundError:
        return row | {"skipped": f"{entry.package} is not installed"}
    made = attempt("build", entry.make)
    if made is None:
        return row
    rng = np.random.default_rng(1)
    inputs = made.draw(rng)
    row["parameters"] = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(made.params))
    original = attempt("compile", lambda: jax.jit(made.apply).lower(made.params, *inputs).compile())
    expected = attempt("original", lambda: original(made.params, *inputs))
    start = time.perf_counter()
    net = attempt("trace", lambda: jc.trace(made.apply, made.params, *inputs))
    row["seconds"] = round(time.perf_counter() - start, 2)
    if net is None or expected is None:
        return row
    row["axes"] = dict(
        Counter(f"{axis.kind}, pair" if axis.pair else axis.kind for axis in net.axes)
    )
    visible = Counter(why(each.primitive, each.reason) for each in net.refused)
    row["refused"] = [[count, reason] for reason, count in visible.most_common()]
    row["oracle"] = attempt("oracle", lambda: law_4(net, original, made.params, inputs))
    if not net.axes:
        return row | {"stored": 1.0, "flops": 1.0}
    batches = [made.draw(rng) for _ in range(BATCHES)]
    moments = attempt("calibrate", lambda: jc.calibrate(net, made.params, batches, progress=False))
    shrink = attempt("transform", lambda: jc.rotate_and_prune(net, keep=KEEP))
    if shrink is None:
        return row
    for step, given in (("weights", None), ("moments", moments)):
        if step == "moments" and moments is None:
            continue
        small = attempt(f"cut, {step}", lambda given=given: shrink(made.params, given))
        if small is None:
            continue
        row["stored"] = jc.stored_numbers(small) / jc.stored_numbers(made.params)
        compiled = attempt(
            f"compile, {step}", lambda small=small: jax.jit(net).lower(small, *inputs).compile()
        )
        if compiled is not None:
            row[f"changed, {step}"] = attempt(
                f"run, {step}", lambda run=compiled, small=small: gap(run(small, *inputs), expected)
            )
            row["flops"] = flops(compiled) / max(flops(original), 1)
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    """As markdown, a line for every model; rows that were not measured come last."""
    heads = (
        "model",
        "package",
        "framework",
        "numbers",
        "hidden axes found",
        "refused",
        "left",
        "FLOPs",
        "s",
        "oracle error",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in sorted(rows.items(), key=lambda item: "skipped" in item[1]):
        cells = [name, f"{row['package']} {row.get('version', '')}".strip(), row["framework"]]
        if "skipped" in row:
            lines.append(
                f"| {' | '.join([*cells, '', row['skipped']])} |" + " |" * (len(heads) - 5)
            )
            continue

        def number(key, form, row=row):
            return "" if row.get(key) is None else format(row[key], form)

        failed = [
            f"**{step}: {message.splitlines()[0][:120]}**"
            for step, message in row["failures"].items()
        ]
        cells += [
            number("parameters", ","),
            counted(row.get("axes", {}).items()),
            "; ".join([refusals([row]), *failed]),
        ]
        cells += [
            number("stored", ".2f"),
            number("flops", ".2f"),
            number("seconds", ".1f"),
            number("oracle", ".0e"),
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def by_package(rows: dict[str, dict[str, Any]]) -> str:
    """As markdown, a line for every package."""
    heads = ("package", "models", "hidden axes found", "refused", "left", "FLOPs", "oracle error")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    measured = {name: row for name, row in rows.items() if "skipped" not in row}
    for package in dict.fromkeys(row["package"] for row in measured.values()):
        mine = {name: row for name, row in measured.items() if row["package"] == package}
        axes = sum((Counter(row.get("axes", {})) for row in mine.values()), Counter())

        def values(key, mine=mine):
            return [row[key] for row in mine.values() if row.get(key) is not None]

        first = next(iter(mine.values()))
        failed = [f"**{name}, {step}**" for name, row in mine.items() for step in row["failures"]]
        alike = len(mine) > 1 and len({name.split("_")[0] for name in mine}) == 1
        short = [
            name.split("_", 1)[-1].replace("_", " ") if alike else name.replace("_", " ")
            for name in mine
        ]
        cells = [
            f"{package} {first['version']}, {first['framework']}",
            ", ".join(short),
            counted(axes.most_common()),
        ]
        cells += [
            "; ".join([refusals(list(mine.values())), *failed]),
            f"{np.median(values('stored')):.2f}",
        ]
        cells += [
            f"{np.median(values('flops')):.2f}",
            f"{max(values('oracle')):.0e}" if values("oracle") else "",
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def counted(pairs: Any) -> str:
    return ", ".join(f"{count} {what}" for what, count in pairs)


def refusals(rows: list[dict[str, Any]]) -> str:
    """What was refused and why, the commonest first.

    Reasons that differ in sizes or names alone are one.
    """
    found: Counter[str] = Counter()
    for row in rows:
        for count, reason in row.get("refused", []):
            found[
                reason.split(": ")[0]
                if "is cut" in reason or "leading" in reason or "multiple" in reason
                else reason
            ] += count
    return "; ".join(f"{count} {reason}" for reason, count in found.most_common())


WORDS = {
    **dict.fromkeys(("input",), "visible in the inputs"),
    **dict.fromkeys(("output",), "visible in the outputs"),
    **dict.fromkeys(("gather", "dynamic_slice", "dynamic_update_slice"), "picked by an index"),
    **dict.fromkeys(
        ("conv_general_dilated", "reduce_window_max", "reduce_window_sum"), "the extent of a window"
    ),
    **dict.fromkeys(("iota",), "positions numbered: rotary, position codes, one-hot"),
    **dict.fromkeys(("constant",), "meets an array that the function closes over"),
    **dict.fromkeys(("reduce_max", "argmax"), "under a softmax or a maximum"),
    **dict.fromkeys(("stack", "unstack", "concatenate"), "numbers values that stand side by side"),
    **dict.fromkeys(("scan",), "a loop runs along it"),
    **dict.fromkeys(("slice",), "cut or strided across its parts"),
    **dict.fromkeys(("reshape", "mul", "add", "sub", "div"), "laid out across its parts"),
    **dict.fromkeys(("fft",), "under a Fourier transform"),
    **dict.fromkeys(("random_bits",), "random numbers along it"),
}
"""Reasons in few words, for the tables; `net.refused` has the sentences."""


def why(primitive: str, reason: str) -> str:
    """A reason in few words."""
    return WORDS.get(primitive, f"{primitive}: {reason}" if primitive else reason)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="a pattern of models or packages")
    parser.add_argument(
        "--again", action="store_true", help="measure afresh what the results file has already"
    )
    parser.add_argument("--by-package", action="store_true", help="print a line for every package")
    parser.add_argument("--debug", action="store_true", help="print tracebacks of what fails")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished rows are kept",
    )
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out.exists() else []
    results = {row["model"]: row for row in found}
    names = [
        name
        for name, entry in ZOO.items()
        if any(fnmatch.fnmatch(each, args.only) for each in (name, entry.package))
    ]
    for name in (bar := tqdm(names, desc="zoo")):
        bar.set_postfix_str(name)
        known = results.get(name)
        if args.again or known is None or "skipped" in known:
            jax.clear_caches()
            results[name] = {"model": name} | examine(ZOO[name], args.debug)
            results = {name: results[name] for name in ZOO if name in results}
            write(args.out, list(results.values()))
    print((by_package if args.by_package else table)({name: results[name] for name in names}))


if __name__ == "__main__":
    main()
