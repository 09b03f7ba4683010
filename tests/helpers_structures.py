"""More models for the table: small networks, each with one structure that is hard to trace."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from helpers_table import (
    BATCH,
    CLASSES,
    FIRST,
    HEAD_SIZE,
    HEADS,
    INPUTS,
    LENGTH,
    OUTPUTS,
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
    noise,
    series,
    tokens,
    vectors,
)
from jax import lax

EXPERTS = 5


def flax_model(net, inputs, visible, batch=BATCH) -> Model:
    """A linen module whose parameters are fresh and noisy."""
    params = fresh(net.init, *inputs(batch, LENGTH))
    return model(net.apply, params, inputs, visible, batch=batch)


# --- embeddings, projections ---------------------------------------------------------------------


@entry
def tied_embedding() -> Model:
    """The words' table gives the scores of the words as well."""

    def apply(params, ids):
        x = params["words"][ids]
        x = x + dense(params["down"], jax.nn.gelu(dense(params["up"], x)))
        return x @ params["words"].T

    params = draw(
        {"words": (VOCABULARY, WIDTH), "up": affine(WIDTH, WIDE), "down": affine(WIDE, WIDTH)}
    )
    return model(apply, params, tokens, [])


@entry
def fused_gate_and_up() -> Model:
    def apply(params, x):
        x = dense(params["embed"], x)
        gate, up = jnp.split(x @ params["gate_up"], 2, axis=-1)
        x = x + (jax.nn.silu(gate) * up) @ params["down"]
        return dense(params["last"], x)

    shapes = {"embed": affine(INPUTS, WIDTH), "gate_up": (WIDTH, 2 * WIDE), "down": (WIDE, WIDTH)}
    return model(apply, draw(shapes | {"last": affine(WIDTH, OUTPUTS)}), vectors, ["last/*"])


def rotated(x: jax.Array) -> jax.Array:
    """Rotary embeddings on (batch, length, heads, size): halves are rotated by the position."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] / 100.0 ** (jnp.arange(half) / half)
    sin, cos = jnp.sin(angles)[:, None], jnp.cos(angles)[:, None]
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


@entry
def rotary_attention() -> Model:
    """Grouped queries; queries and keys keep their size, everything else is hidden."""

    def apply(params, x):
        x = dense(params["embed"], x)

        def heads(y):
            return rearrange(y, "b l (h d) -> b l h d", d=HEAD_SIZE)

        q, k, v = (heads(x @ params[name]) for name in ("wq", "wk", "wv"))
        k, v = (jnp.repeat(each, HEADS, axis=2) for each in (rotated(k), v))
        logits = jnp.einsum("bqhd,bkhd->bhqk", rotated(q), k) / math.sqrt(HEAD_SIZE)
        context = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v)
        x = x + rearrange(context, "b l h d -> b l (h d)") @ params["wo"]
        return dense(params["last"], x.mean(1))

    inner = HEADS * HEAD_SIZE
    shapes = {
        "embed": affine(INPUTS, WIDTH),
        "wq": (WIDTH, 2 * inner),
        "wk": (WIDTH, 2 * HEAD_SIZE),
    }
    shapes |= {
        "wv": (WIDTH, 2 * HEAD_SIZE),
        "wo": (2 * inner, WIDTH),
        "last": affine(WIDTH, OUTPUTS),
    }
    return model(apply, draw(shapes), series, ["last/*", "wq", "wk"])


def rms_norm(scale, x):
    return x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def decoder_layer(x, p):
    """Grouped queries with rotary positions, then a gated perceptron, each after a norm."""

    def heads(y):
        return rearrange(y, "b l (h d) -> b l h d", d=HEAD_SIZE)

    y = rms_norm(p["scale1"], x)
    q, k, v = (heads(y @ p[name]) for name in ("wq", "wk", "wv"))
    k, v = (jnp.repeat(each, 2, axis=2) for each in (rotated(k), v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", rotated(q), k) / math.sqrt(HEAD_SIZE)
    causal = jnp.tril(jnp.ones(logits.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, logits, -1e9), axis=-1)
    context = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    x = x + rearrange(context, "b l h d -> b l (h d)") @ p["wo"]
    y = rms_norm(p["scale2"], x)
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"], None


@entry
def stacked_decoder() -> Model:
    """A decoder as they are written with scan: stacked layers and norms, and a tied table."""

    def apply(params, ids):
        x, _ = lax.scan(decoder_layer, params["words"][ids], params["layers"])
        return rms_norm(params["scale"], x) @ params["words"].T

    queries, keys = 4 * HEAD_SIZE, 2 * HEAD_SIZE
    layer = {"scale1": (2, WIDTH), "wq": (2, WIDTH, queries), "wo": (2, queries, WIDTH)}
    layer |= {"wk": (2, WIDTH, keys), "wv": (2, WIDTH, keys), "scale2": (2, WIDTH)}
    layer |= {"gate": (2, WIDTH, WIDE), "up": (2, WIDTH, WIDE), "down": (2, WIDE, WIDTH)}
    params = draw({"words": (VOCABULARY, WIDTH), "layers": layer, "scale": (WIDTH,)})
    return model(apply, params, tokens, ["layers/wq", "layers/wk"])


@entry
def weight_norm() -> Model:
    """Kernels that are directions with lengths."""

    def unit(p, x):
        return x @ (p["w"] / (1e-6 + jnp.linalg.norm(p["w"], axis=0)) * p["scale"]) + p["b"]

    def apply(params, x):
        x = jax.nn.relu(unit(params["first"], x))
        x = jax.nn.relu(unit(params["second"], x))
        return dense(params["last"], x)

    def layer(m, n):
        return affine(m, n) | {"scale": (n,)}

    params = draw(
        {
            "first": layer(INPUTS, FIRST),
            "second": layer(FIRST, SECOND),
            "last": affine(SECOND, OUTPUTS),
        }
    )
    return model(apply, params, vectors, ["last/*"])


# --- convolutions --------------------------------------------------------------------------------


class Grouped(nn.Module):
    """Grouped convolutions, group norms, squeeze and excitation."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(num_groups=3)(nn.Conv(12, (3, 3))(x)))
        y = nn.relu(nn.GroupNorm(num_groups=3)(nn.Conv(18, (3, 3), feature_group_count=3)(x)))
        gate = nn.sigmoid(
            nn.Dense(18, name="excite")(nn.relu(nn.Dense(5, name="squeeze")(y.mean((1, 2)))))
        )
        y = nn.Conv(12, (1, 1))(y * gate[:, None, None])
        return nn.Dense(OUTPUTS, name="last")(nn.relu(x + y).mean((1, 2)))


@entry
def grouped_convolutions() -> Model:
    return flax_model(Grouped(), images, ["params/last/*"], batch=4)


class UNet(nn.Module):
    """Down, up by a transposed convolution, and what was seen on the way down put beside it."""

    @nn.compact
    def __call__(self, x):
        fine = nn.relu(nn.Conv(6, (3, 3), name="fine")(x))
        coarse = nn.relu(nn.Conv(10, (3, 3), strides=(2, 2), name="coarse")(fine))
        up = nn.relu(nn.ConvTranspose(8, (2, 2), strides=(2, 2), name="up")(coarse))
        both = jnp.concatenate([fine, up], axis=-1)
        return nn.Conv(2, (3, 3), name="last")(nn.relu(nn.Conv(7, (3, 3), name="both")(both)))


@entry
def unet() -> Model:
    return flax_model(UNet(), images, ["params/last/*"], batch=4)


# --- experts -------------------------------------------------------------------------------------


@entry
def experts() -> Model:
    """Every expert on every vector, the best two mixed by score; hidden units differ by expert."""

    def apply(params, x):
        x = dense(params["embed"], x)
        scores, best = lax.top_k(x @ params["router"], 2)
        weights = (jax.nn.softmax(scores)[..., None] * jax.nn.one_hot(best, EXPERTS)).sum(-2)
        h = jax.nn.gelu(jnp.einsum("bd,edf->bef", x, params["up"]) + params["bias"])
        x = x + jnp.einsum("bef,efd,be->bd", h, params["down"], weights)
        return dense(params["last"], x)

    shapes = {
        "embed": affine(INPUTS, WIDTH),
        "router": (WIDTH, EXPERTS),
        "last": affine(WIDTH, OUTPUTS),
    }
    shapes |= {
        "up": (EXPERTS, WIDTH, WIDE),
        "bias": (EXPERTS, WIDE),
        "down": (EXPERTS, WIDE, WIDTH),
    }
    return model(apply, draw(shapes), vectors, ["last/*", "router"])


@entry
def dispatched_experts() -> Model:
    """Vectors are sent to their expert's places, as in a switch transformer."""

    def apply(params, x):
        x = dense(params["embed"], x)
        tokens = rearrange(x, "b l d -> (b l) d")
        gates = jax.nn.softmax(tokens @ params["router"])
        chosen = jax.nn.one_hot(gates.argmax(-1), EXPERTS)
        place = ((jnp.cumsum(chosen, axis=0) - 1) * chosen).sum(-1).astype(int)
        dispatch = chosen[..., None] * jax.nn.one_hot(place, len(tokens))[:, None]
        inside = jnp.einsum("tec,td->ecd", dispatch, tokens)
        h = jax.nn.relu(jnp.einsum("ecd,edf->ecf", inside, params["up"]))
        out = jnp.einsum("ecf,efd->ecd", h, params["down"])
        out = jnp.einsum("tec,te,ecd->td", dispatch, gates, out)
        return dense(params["last"], rearrange(out, "(b l) d -> b l d", b=len(x)) + x)

    shapes = {
        "embed": affine(INPUTS, WIDTH),
        "router": (WIDTH, EXPERTS),
        "last": affine(WIDTH, OUTPUTS),
    }
    shapes |= {"up": (EXPERTS, WIDTH, WIDE), "down": (EXPERTS, WIDE, WIDTH)}
    return model(apply, draw(shapes), series, ["last/*", "router"])


# --- recurrent networks --------------------------------------------------------------------------


class Both(nn.Module):
    """Two layers of recurrent cells, the first of which reads in both directions."""

    @nn.compact
    def __call__(self, x):
        x = nn.Bidirectional(
            nn.RNN(nn.OptimizedLSTMCell(FIRST)), nn.RNN(nn.OptimizedLSTMCell(SECOND))
        )(x)
        x = nn.RNN(nn.GRUCell(WIDE), name="second")(x)
        return nn.Dense(OUTPUTS, name="last")(x[:, -1])


@entry
def bidirectional_and_stacked() -> Model:
    return flax_model(Both(), series, ["params/last/*"])


# --- control flow --------------------------------------------------------------------------------


@entry
def branches() -> Model:
    """One of two networks in the middle, each with hidden units of its own."""

    def apply(params, x):
        x = jnp.tanh(dense(params["first"], x))

        def one(x):
            return x + jax.nn.relu(dense(params["up"], x)) @ params["down"]

        def other(x):
            return jnp.tanh(x @ params["turn"])

        return dense(params["last"], lax.cond(x.sum() > 0, one, other, x))

    shapes = {
        "first": affine(INPUTS, FIRST),
        "up": affine(FIRST, WIDE),
        "down": (WIDE, FIRST),
        "turn": (FIRST, FIRST),
    }
    return model(apply, draw(shapes | {"last": affine(FIRST, OUTPUTS)}), vectors, ["last/*"])


@entry
def counted_loop() -> Model:
    """A residual block three times over with the same parameters, in a loop that counts."""

    def apply(params, x):
        def body(_, x):
            return x + jax.nn.relu(dense(params["up"], x)) @ params["down"]

        return dense(params["last"], lax.fori_loop(0, 3, body, dense(params["first"], x)))

    shapes = {"first": affine(INPUTS, FIRST), "up": affine(FIRST, WIDE), "down": (WIDE, FIRST)}
    return model(apply, draw(shapes | {"last": affine(FIRST, OUTPUTS)}), vectors, ["last/*"])


@entry
def loop_until() -> Model:
    """A fixed-point iteration of unknown length."""

    def apply(params, x):
        x = dense(params["first"], x)

        def body(state):
            z, _, turn = state
            new = jnp.tanh(x + 0.3 * z @ params["turn"])
            return new, jnp.mean((new - z) ** 2), turn + 1

        def far(state):
            return (state[1] > 1e-6) & (state[2] < 7)

        z, _, _ = lax.while_loop(far, body, (jnp.zeros_like(x), jnp.float32(jnp.inf), 0))
        return dense(params["last"], z)

    params = draw(
        {"first": affine(INPUTS, FIRST), "turn": (FIRST, FIRST), "last": affine(FIRST, OUTPUTS)}
    )
    return model(apply, params, vectors, ["last/*"])


@entry
def nested_calls() -> Model:
    """Jit inside remat inside jit, with a scan over stacked layers at the bottom."""

    @jax.jit
    def half(p, x):
        return jax.nn.gelu(dense(p, x))

    @jax.checkpoint
    def block(x, p):
        return x + half({"w": p["w1"], "b": p["b1"]}, x) @ p["w2"], None

    @jax.jit
    def body(params, x):
        return lax.scan(jax.checkpoint(block), half(params["first"], x), params["layers"])[0]

    layers = {"w1": (3, FIRST, SECOND), "b1": (3, SECOND), "w2": (3, SECOND, FIRST)}
    params = draw(
        {"first": affine(INPUTS, FIRST), "layers": layers, "last": affine(FIRST, CLASSES)}
    )
    return model(
        lambda params, x: dense(params["last"], body(params, x)), params, vectors, ["last/*"]
    )


@jax.custom_vjp
def clipped(x: jax.Array, w: jax.Array) -> jax.Array:
    """A product whose gradient in x is clipped."""
    return x @ w


clipped.defvjp(
    lambda x, w: (x @ w, (x, w)), lambda saved, g: (jnp.clip(g @ saved[1].T, -1, 1), saved[0].T @ g)
)


@entry
def custom_product() -> Model:
    """A contraction inside of a custom rule for derivatives."""

    def apply(params, x):
        x = jax.nn.relu(clipped(x, params["first"]))
        return dense(params["last"], jnp.tanh(clipped(x, params["second"])))

    params = draw(
        {"first": (INPUTS, FIRST), "second": (FIRST, SECOND), "last": affine(SECOND, OUTPUTS)}
    )
    return model(apply, params, vectors, ["last/*"])


@entry
def linear_recurrence() -> Model:
    """A diagonal state-space layer by an associative scan over time."""

    def apply(params, x):
        x = dense(params["embed"], x)
        decay = jnp.broadcast_to(jax.nn.sigmoid(params["decay"]), (*x.shape[:2], WIDE))

        def combine(a, b):
            return (a[0] * b[0], b[0] * a[1] + b[1])

        _, states = lax.associative_scan(combine, (decay, x @ params["enter"]), axis=1)
        return dense(params["last"], x + jax.nn.gelu(states) @ params["leave"])

    shapes = {
        "embed": affine(INPUTS, WIDTH),
        "enter": (WIDTH, WIDE),
        "decay": (WIDE,),
        "leave": (WIDE, WIDTH),
    }
    return model(apply, draw(shapes | {"last": affine(WIDTH, OUTPUTS)}), series, ["last/*"])


# --- indices, pieces -----------------------------------------------------------------------------


def graphs(batch: int, length: int) -> tuple[jax.Array, ...]:
    """Nodes, and edges between them."""
    ends = np.random.default_rng(5).integers(0, length, (2, 3 * length))
    return (noise(length, INPUTS), jnp.asarray(ends))


@entry
def graph_network() -> Model:
    """Messages along edges, summed where they arrive, the largest of them beside the sums."""

    def apply(params, nodes, edges):
        nodes = dense(params["embed"], nodes)
        messages = jax.nn.relu(
            dense(params["message"], jnp.concatenate([nodes[edges[0]], nodes[edges[1]]], axis=-1))
        )
        sums = jax.ops.segment_sum(messages, edges[1], num_segments=len(nodes))
        largest = jnp.full_like(sums, -9.0).at[edges[1]].max(messages)
        nodes = nodes + dense(params["update"], jnp.concatenate([sums, largest], axis=-1))
        return dense(params["last"], nodes)

    shapes = {
        "embed": affine(INPUTS, WIDTH),
        "message": affine(2 * WIDTH, WIDE),
        "update": affine(2 * WIDE, WIDTH),
    }
    return model(apply, draw(shapes | {"last": affine(WIDTH, OUTPUTS)}), graphs, ["last/*"])


@entry
def stacked_and_tiled() -> Model:
    """A class token for every example, branches that are stacked and taken apart again."""

    def apply(params, x):
        x = dense(params["embed"], x)
        x = jnp.concatenate([jnp.tile(params["token"], (len(x), 1, 1)), x], axis=1)
        both = jnp.stack(
            [jax.nn.relu(dense(params["one"], x)), jnp.tanh(dense(params["other"], x))], axis=1
        )
        one, other = jnp.unstack(both * params["scale"], axis=1)
        lonely = jnp.stack([one[:, 0], other[:, 0]], axis=-1).reshape(len(x), -1)
        return dense(params["last"], (one + other)[:, 0]) + lonely @ params["flat"]

    shapes = {
        "embed": affine(INPUTS, WIDTH),
        "token": (1, 1, WIDTH),
        "one": affine(WIDTH, WIDE),
        "other": affine(WIDTH, WIDE),
    }
    shapes |= {"scale": (WIDE,), "last": affine(WIDE, OUTPUTS), "flat": (2 * WIDE, OUTPUTS)}
    return model(apply, draw(shapes), series, ["last/*", "flat"])
