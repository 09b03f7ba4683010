"""Small ordinary networks in every framework, written as users write them.

They import nothing of the library. Their sizes differ wherever they can, so that an axis that is
mistaken for another fails.
"""

import math

import equinox as eqx
import flax.linen as nn
import haiku as hk
import helpers_structures  # noqa: F401  (its models are in the table, too)
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from helpers_table import (
    BATCH,
    CLASSES,
    FIRST,
    HEAD_SIZE,
    HEADS,
    INPUTS,
    LENGTH,
    MODELS,
    OUTPUTS,
    POSITIONS,
    SECOND,
    VOCABULARY,
    WIDE,
    WIDTH,
    Model,
    affine,
    dense,
    draw,
    entry,
    fresh,
    images,
    model,
    padded_tokens,
    perturb,
    series,
    tokens,
    vectors,
)

__all__ = ["MODELS", "Model"]


# --- an MLP in five ways -------------------------------------------------------------------------


@entry
def mlp_by_hand() -> Model:
    def apply(params, x):
        x = jax.nn.relu(dense(params["first"], x))
        x = jnp.tanh(dense(params["second"], x))
        return dense(params["last"], x)

    params = draw(
        {
            "first": affine(INPUTS, FIRST),
            "second": affine(FIRST, SECOND),
            "last": affine(SECOND, OUTPUTS),
        }
    )
    return model(apply, params, vectors, ["last/*"])


@entry
def mlp_linen() -> Model:
    net = nn.Sequential([nn.Dense(FIRST), nn.relu, nn.Dense(SECOND), nn.relu, nn.Dense(OUTPUTS)])
    params = fresh(net.init, *vectors(BATCH, LENGTH))
    return model(net.apply, params, vectors, ["params/layers_4/*"])


class NnxMLP(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(INPUTS, FIRST, rngs=rngs)
        self.second = nnx.Linear(FIRST, SECOND, rngs=rngs)
        self.last = nnx.Linear(SECOND, OUTPUTS, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.tanh(self.second(nnx.relu(self.first(x)))))


@entry
def mlp_nnx() -> Model:
    definition, state = nnx.split(NnxMLP(nnx.Rngs(0)))
    return model(
        lambda params, x: nnx.merge(definition, params)(x), perturb(state), vectors, ["last/*"]
    )


class EquinoxMLP(eqx.Module):
    layers: list

    def __init__(self, key):
        sizes = [INPUTS, FIRST, SECOND, OUTPUTS]
        keys = jax.random.split(key, 3)
        self.layers = [eqx.nn.Linear(m, n, key=k) for m, n, k in zip(sizes[:-1], sizes[1:], keys)]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


@entry
def mlp_equinox() -> Model:
    arrays, static = eqx.partition(EquinoxMLP(jax.random.key(0)), eqx.is_inexact_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    return model(
        apply, perturb(arrays), vectors, ["layers/0/weight", "layers/2/bias"]
    )  # weights are (outputs, inputs)


@entry
def mlp_haiku() -> Model:
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([FIRST, SECOND, OUTPUTS])(x)))
    params = fresh(net.init, *vectors(BATCH, LENGTH))
    return model(net.apply, params, vectors, ["*/linear_2/*"])


@entry
def linear_mlp() -> Model:
    net = nn.Sequential([nn.Dense(FIRST), nn.Dense(SECOND), nn.Dense(OUTPUTS)])
    params = fresh(net.init, *vectors(BATCH, LENGTH))
    return model(net.apply, params, vectors, ["params/layers_2/*"])


# --- convolutions --------------------------------------------------------------------------------


class ConvNet(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        def norm():
            return nn.BatchNorm(use_running_average=not self.train, momentum=0.9)

        x = nn.relu(norm()(nn.Conv(6, (3, 3))(x)))

        y = nn.relu(norm()(nn.Conv(10, (3, 3), use_bias=False)(x)))
        y = norm()(nn.Conv(6, (3, 3), use_bias=False)(y))
        x = nn.relu(x + y)
        x = nn.max_pool(x, (2, 2), strides=(2, 2))

        x = nn.relu(norm()(nn.Conv(x.shape[-1], (3, 3), feature_group_count=x.shape[-1])(x)))
        x = nn.relu(norm()(nn.Conv(12, (1, 1))(x)))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))

        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(14, name="hidden")(x))
        return nn.Dense(5, name="logits")(x)


@entry
def convnet() -> Model:
    net = ConvNet()
    params = fresh(net.init, *images(4, LENGTH))
    return model(net.apply, params, images, ["params/logits/*"], batch=4)


@entry
def convnet_train() -> Model:
    net = ConvNet(train=True)

    def apply(params, x):
        return net.apply(params, x, mutable=["batch_stats"])

    params = fresh(net.init, *images(4, LENGTH))
    return model(
        apply, params, images, ["params/logits/*"], {"1/batch_stats": "batch_stats"}, batch=4
    )


# --- attention -----------------------------------------------------------------------------------


class EncoderLayer(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        y = nn.MultiHeadDotProductAttention(num_heads=HEADS, qkv_features=HEADS * HEAD_SIZE)(
            x, mask=mask
        )
        x = nn.LayerNorm()(x + y)
        y = nn.gelu(nn.Dense(WIDE)(x))
        y = nn.Dense(x.shape[-1])(y)
        return nn.LayerNorm()(x + y)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, ids, mask):
        x = nn.Embed(VOCABULARY, WIDTH, name="words")(ids)
        x = x + nn.Embed(POSITIONS, WIDTH, name="positions")(jnp.arange(ids.shape[1])[None])
        x = x + nn.Embed(2, WIDTH, name="segments")(jnp.zeros_like(ids))
        x = nn.LayerNorm()(x)
        for _ in range(2):
            x = EncoderLayer()(x, nn.make_attention_mask(mask > 0, mask > 0))
        weight = mask[..., None].astype(x.dtype)
        x = (x * weight).sum(1) / weight.sum(1)
        return nn.Dense(CLASSES, name="classifier")(x)


@entry
def encoder_linen() -> Model:
    net = Encoder()
    params = fresh(net.init, *padded_tokens(BATCH, LENGTH))
    return model(net.apply, params, padded_tokens, ["params/classifier/*"])


def layer_norm(p, x):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def attention(q, k, v, mask):
    """Attention with heads side by side; the mask is added to the logits."""
    q, k, v = (rearrange(each, "b l (h d) -> b h l d", h=HEADS) for each in (q, k, v))
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    context = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(logits + mask, axis=-1), v)
    return rearrange(context, "b h l d -> b l (h d)")


@entry
def encoder_by_hand() -> Model:
    def block(p, x, mask):
        y = layer_norm(p["norm1"], x)
        y = attention(y @ p["wq"] + p["bq"], y @ p["wk"] + p["bk"], y @ p["wv"] + p["bv"], mask)
        x = x + y @ p["wo"] + p["bo"]
        y = jax.nn.gelu(dense(p["up"], layer_norm(p["norm2"], x)), approximate=False)
        return x + dense(p["down"], y)

    def apply(params, ids, mask):
        x = params["words"][ids] + params["positions"][: ids.shape[1]]
        bias = (1.0 - mask[:, None, None, :].astype(x.dtype)) * -1e9
        for p in params["blocks"]:
            x = block(p, x, bias)
        return dense(params["classifier"], layer_norm(params["norm"], x)[:, 0])

    inner = HEADS * HEAD_SIZE
    norm = {"scale": (WIDTH,), "bias": (WIDTH,)}
    layer = {"norm1": norm, "norm2": norm, "up": affine(WIDTH, WIDE), "down": affine(WIDE, WIDTH)}
    layer |= {
        "wq": (WIDTH, inner),
        "wk": (WIDTH, inner),
        "wv": (WIDTH, inner),
        "wo": (inner, WIDTH),
    }
    layer |= {"bq": (inner,), "bk": (inner,), "bv": (inner,), "bo": (WIDTH,)}
    shapes = {
        "words": (VOCABULARY, WIDTH),
        "positions": (POSITIONS, WIDTH),
        "blocks": [layer, layer],
        "norm": norm,
    }
    params = draw(shapes | {"classifier": affine(WIDTH, CLASSES)})
    return model(apply, params, padded_tokens, ["classifier/*"])


def rms_norm(scale, x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


@entry
def encoder_rms() -> Model:
    def heads(x):
        return x.reshape(*x.shape[:2], HEADS, HEAD_SIZE)

    def block(p, x):
        y = rms_norm(p["scale1"], x)
        q, k, v = heads(y @ p["wq"]), heads(y @ p["wk"]), heads(y @ p["wv"])
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * HEAD_SIZE**-0.5
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        weights = jax.nn.softmax(jnp.where(causal, logits, -1e9), axis=-1)
        context = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        x = x + context.reshape(*x.shape[:2], HEADS * HEAD_SIZE) @ p["wo"]
        y = rms_norm(p["scale2"], x)
        return x + (jax.nn.silu(y @ p["w_gate"]) * (y @ p["w_up"])) @ p["w_down"]

    def apply(params, ids):
        x = params["words"][ids]
        for p in params["blocks"]:
            x = block(p, x)
        return rms_norm(params["scale"], x).mean(1) @ params["w_out"]

    inner = HEADS * HEAD_SIZE
    layer = {"wq": (WIDTH, inner), "wk": (WIDTH, inner), "wv": (WIDTH, inner), "wo": (inner, WIDTH)}
    layer |= {
        "w_gate": (WIDTH, WIDE),
        "w_up": (WIDTH, WIDE),
        "w_down": (WIDE, WIDTH),
        "scale1": (WIDTH,),
        "scale2": (WIDTH,),
    }
    params = draw(
        {
            "words": (VOCABULARY, WIDTH),
            "blocks": [layer, layer],
            "scale": (WIDTH,),
            "w_out": (WIDTH, CLASSES),
        }
    )
    return model(apply, params, tokens, ["w_out"])


@entry
def fused_qkv() -> Model:
    def apply(params, x):
        x = dense(params["embed"], x)
        q, k, v = jnp.split(dense(params["qkv"], x), 3, axis=-1)
        x = x + dense(params["out"], attention(q, k, v, 0.0))
        return dense(params["classifier"], x.mean(1))

    inner = HEADS * HEAD_SIZE
    shapes = {
        "embed": affine(INPUTS, WIDTH),
        "qkv": affine(WIDTH, 3 * inner),
        "out": affine(inner, WIDTH),
    }
    return model(
        apply, draw(shapes | {"classifier": affine(WIDTH, CLASSES)}), series, ["classifier/*"]
    )


# --- loops ---------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    cell: type[nn.RNNCellBase]

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(self.cell(FIRST))(x)
        return nn.Dense(OUTPUTS, name="last")(x[:, -1])


def recurrent(cell) -> Model:
    net = Recurrent(cell)
    params = fresh(net.init, *series(BATCH, LENGTH))
    return model(net.apply, params, series, ["params/last/*"])


@entry
def lstm() -> Model:
    return recurrent(nn.OptimizedLSTMCell)


@entry
def gru() -> Model:
    return recurrent(nn.GRUCell)


@entry
def lstm_by_hand() -> Model:
    def apply(params, x):
        def step(carry, x):
            h, c = carry
            gates = jnp.concatenate([x, h], axis=-1) @ params["kernel"] + params["bias"]
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), None

        zeros = jnp.zeros((x.shape[0], params["last"]["w"].shape[0]))
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
        return dense(params["last"], h)

    params = draw(
        {
            "kernel": (INPUTS + FIRST, 4 * FIRST),
            "bias": (4 * FIRST,),
            "last": affine(FIRST, OUTPUTS),
        }
    )
    return model(apply, params, series, ["last/*"])


@entry
def stacked_scan() -> Model:
    def apply(params, x):
        def block(x, p):
            return x + jax.nn.gelu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"], None

        x, _ = jax.lax.scan(block, dense(params["first"], x), params["layers"])
        return dense(params["last"], x)

    layers = {
        "w1": (3, FIRST, SECOND),
        "b1": (3, SECOND),
        "w2": (3, SECOND, FIRST),
        "b2": (3, FIRST),
    }
    params = draw(
        {"first": affine(INPUTS, FIRST), "layers": layers, "last": affine(FIRST, CLASSES)}
    )
    return model(apply, params, vectors, ["last/*"])


@entry
def remat_mlp() -> Model:
    @jax.checkpoint
    def block(p, x):
        return jnp.tanh(dense(p, x))

    def apply(params, x):
        for p in params["blocks"]:
            x = block(p, x)
        return dense(params["last"], x)

    blocks = [affine(INPUTS, FIRST), affine(FIRST, SECOND), affine(SECOND, WIDE)]
    return model(
        apply, draw({"blocks": blocks, "last": affine(WIDE, OUTPUTS)}), vectors, ["last/*"]
    )


# --- look-ups, custom derivatives, sums and concatenations ---------------------------------------


@entry
def embedding_mlp() -> Model:
    def apply(params, ids):
        x = jnp.take(params["table"], ids, axis=0).mean(1)
        x = jax.nn.relu(dense(params["hidden"], x))
        return dense(params["last"], x)

    params = draw(
        {
            "table": (VOCABULARY, WIDTH),
            "hidden": affine(WIDTH, FIRST),
            "last": affine(FIRST, OUTPUTS),
        }
    )
    return model(apply, params, tokens, ["last/*"])


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


@jax.custom_jvp
def soft_sign(x):
    return x / (1 + jnp.abs(x))


@soft_sign.defjvp
def soft_sign_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return soft_sign(x), dx / (1 + jnp.abs(x)) ** 2


@entry
def custom_rules() -> Model:
    def apply(params, x):
        x = straight_through(dense(params["first"], x))
        x = soft_sign(dense(params["second"], x))
        return dense(params["last"], x)

    params = draw(
        {
            "first": affine(INPUTS, FIRST),
            "second": affine(FIRST, SECOND),
            "last": affine(SECOND, OUTPUTS),
        }
    )
    return model(apply, params, vectors, ["last/*"])


class SkipConcat(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.concatenate([nn.relu(nn.Dense(FIRST)(x)), jnp.tanh(nn.Dense(SECOND)(x))], axis=-1)
        x = nn.relu(nn.Dense(WIDE)(x))
        return nn.Dense(OUTPUTS, name="last")(x)


@entry
def skip_concat() -> Model:
    net = SkipConcat()
    params = fresh(net.init, *vectors(BATCH, LENGTH))
    return model(net.apply, params, vectors, ["params/last/*"])


@entry
def lora() -> Model:
    def apply(params, x):
        first, second = params["first"], params["second"]
        x = jax.nn.relu(x @ (first["w"] + first["a"] @ first["b"]))
        x = jnp.tanh(x @ second["w0"] + (x @ second["a"]) @ second["b"])
        return dense(params["last"], x)

    first = {"w": (INPUTS, FIRST), "a": (INPUTS, 2), "b": (2, FIRST)}
    second = {"w0": (FIRST, SECOND), "a": (FIRST, 4), "b": (4, SECOND)}
    params = draw({"first": first, "second": second, "last": affine(SECOND, OUTPUTS)})
    return model(apply, params, vectors, ["last/*"])


@entry
def linear_rms() -> Model:
    def apply(params, x):
        x = x @ params["w_in"]
        for p in params["blocks"]:
            x = x + jax.nn.relu(rms_norm(p["scale"], x) @ p["w_up"] + p["b_up"]) @ p["w_down"]
        return rms_norm(params["scale"], x) @ params["w_out"]

    block = {"scale": (WIDTH,), "w_up": (WIDTH, FIRST), "b_up": (FIRST,), "w_down": (FIRST, WIDTH)}
    params = draw(
        {
            "w_in": (INPUTS, WIDTH),
            "blocks": [block, block],
            "scale": (WIDTH,),
            "w_out": (WIDTH, OUTPUTS),
        }
    )
    return model(apply, params, vectors, ["w_out"])
