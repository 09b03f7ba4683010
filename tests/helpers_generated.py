"""Random networks over all known primitives.

A recipe is a list of operations, each with a number that seeds its choices.

An operation takes some of the last tensors, (batch, time, channels) all of them, and adds one;
parameters are drawn where they are met, now and then one that is there already. Whatever the
numbers, a recipe is a network: an operation that does not fit does nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from helpers_table import Model
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.scipy import special

BATCH, TIME, INPUTS, OUTPUTS, VOCABULARY = 3, 4, 5, 2, 7
WIDTHS = (4, 6, 8, 12)

KEY = jax.random.key(1)  # made here, since networks are built under a trace

Recipe = list[tuple[str, int]]
OPERATIONS: dict[str, Callable[..., Any]] = {}


def operation(function: Callable[..., Any]) -> Callable[..., Any]:
    OPERATIONS[function.__name__] = function
    return function


class Maker:
    """A network on its way: its tensors, its choices, and where its parameters come from.

    Attributes:
        params: by name.
        names: of the parameters in the order of their use; written when the network is built, read
            when it runs.
        tensors: (batch, time, channels) each.
    """

    def __init__(
        self, params: dict[str, Any], names: list[str], inputs: tuple[Any, ...], building: bool
    ):
        self.params, self.names, self.building = params, names, building
        x, self.tokens, self.key = inputs
        self.tensors = [x]
        self.number, self.asked = 0, 0

    def below(self, count: int) -> int:
        """A choice, read off the operation's number."""
        self.number, chosen = divmod(self.number, count)
        return chosen

    def one_of(self, options: Any) -> Any:
        return options[self.below(len(options))]

    def flag(self) -> bool:
        return self.below(2) == 1

    def width(self) -> int:
        return self.one_of(WIDTHS)

    def param(self, *shape: int, about: float = 0.0) -> Any:
        """A new parameter, now and then an old one of the shape."""
        again = self.below(6) == 5
        if self.building:
            old = [name for name in self.names if self.params[name].shape == shape]
            name = old[-1] if old and again else f"p{len(self.params)}"
            self.names.append(name)
            if name not in self.params:
                fan_in = (
                    4.0
                    if len(shape) == 1
                    else math.prod(shape[:-1])
                    if len(shape) == 2
                    else shape[-2]
                )
                drawn = np.random.default_rng(len(self.params)).normal(size=shape) * fan_in**-0.5
                self.params[name] = (drawn + about).astype(np.float32)
        name = self.names[self.asked]
        self.asked += 1
        return self.params[name]

    def buffer(self, kind: str, value: Any) -> Any:
        """A leaf that is no weight: a key, a count, a mask; one of each kind."""
        if self.building:
            self.params.setdefault(kind, value)
        return self.params[kind]

    def tensor(self, fits: Callable[[Any], bool] = lambda h: True) -> Any:
        """One of the last tensors behind the first layer."""
        return self.one_of([h for h in self.tensors[1:][-4:] if fits(h)])


class Unfit(Exception):
    """An operation finds nothing that it could work on."""


def run(recipe: Recipe, maker: Maker) -> Any:
    """The network's output, (batch, outputs)."""
    maker.tensors.append(maker.tensors[0] @ maker.param(INPUTS, maker.width()))
    for name, number in recipe:
        maker.number = number
        try:
            new = OPERATIONS[name](maker)
        except (Unfit, IndexError, ZeroDivisionError):
            continue
        if new is not None:
            maker.tensors.append(new)
    maker.number = 0
    last = maker.tensors[-3:]
    return sum(h.mean(1) @ maker.param(h.shape[-1], OUTPUTS) for h in last if h.ndim == 3)


def generated(recipe: Recipe) -> Model:
    """The network of a recipe."""
    rng = np.random.default_rng(0)
    inputs = (
        jnp.asarray(rng.normal(size=(BATCH, TIME, INPUTS)), jnp.float32),
        jnp.asarray(rng.integers(0, VOCABULARY, (BATCH, TIME))),
        jax.random.key(0),
    )
    params: dict[str, Any] = {}
    names: list[str] = []
    jax.eval_shape(
        lambda *inputs: run(recipe, Maker(params, names, inputs, building=True)), *inputs
    )
    return Model(
        "generated",
        lambda params, *inputs: run(recipe, Maker(params, names, inputs, building=False)),
        params,
        inputs,
    )


# --- dense layers --------------------------------------------------------------------------------


@operation
def dense(m):
    h = m.tensor()
    return h @ m.param(h.shape[-1], m.width())


@operation
def bias(m):
    h = m.tensor()
    return h + m.param(h.shape[-1]) if m.flag() else h - m.param(h.shape[-1])


@operation
def scale(m):
    h = m.tensor()
    way, g = m.below(3), m.param(h.shape[-1], about=1.0)
    return h * g if way == 0 else h / (1 + g * g) if way == 1 else h * jnp.exp(g)


@operation
def transposed(m):
    """A kernel that is there already, the other way round."""
    h = m.tensor()
    known = [m.params[name] for name in m.names[: m.asked]]
    w = m.one_of(
        [w for w in known if w.ndim == 2 and w.shape[1] == h.shape[-1] and w.shape[0] in WIDTHS]
    )
    return h @ w.T


@operation
def low_rank_added(m):
    h, width = m.tensor(), m.width()
    return h @ (m.param(h.shape[-1], width) + m.param(h.shape[-1], 2) @ m.param(2, width))


@operation
def normalised_kernel(m):
    h, width = m.tensor(), m.width()
    w = m.param(h.shape[-1], width)
    return h @ (w / (1e-3 + jnp.sqrt((w**2).sum(0))) * m.param(width, about=1.0))


@operation
def bent_kernel(m):
    h = m.tensor()
    return h @ jnp.tanh(m.param(h.shape[-1], m.width()))


@operation
def experts(m):
    h, width = m.tensor(), m.width()
    y = jax.nn.relu(jnp.einsum("btc,ecd->bted", h, m.param(3, h.shape[-1], width)))
    gate = jax.nn.softmax(h @ m.param(h.shape[-1], 3))
    return jnp.einsum("bted,edc,bte->btc", y, m.param(3, width, m.width()), gate)


@operation
def embedding(m):
    return jnp.take(m.param(VOCABULARY, m.width()), m.tokens, axis=0)


@operation
def embedding_of_each(m):
    """Rows looked up one by one, under two vmaps."""
    table = jnp.asarray(m.param(VOCABULARY, m.width()))
    if m.flag():
        return jax.vmap(jax.vmap(lambda token: table[token]))(m.tokens)
    row = jax.vmap(lambda token: lax.dynamic_index_in_dim(table, token, keepdims=False))
    return jax.vmap(row)(m.tokens)


@operation
def tied_table(m):
    """A table of words that is also the layer of logits."""
    h = m.tensor()
    table = jnp.asarray(m.param(VOCABULARY, h.shape[-1]))
    logits = (h + table[m.tokens][:, : h.shape[1]] if h.shape[1] == TIME else h) @ table.T
    return logits if m.flag() else jax.nn.softmax(logits) @ table


@operation
def two_consumers(m):
    """A layer read at every position, and once for each example."""
    h, width = m.tensor(), m.width()
    pooled = h.max(1) if m.flag() else h[:, 0]
    return h @ m.param(h.shape[-1], width) + (pooled @ m.param(h.shape[-1], width))[:, None]


@operation
def positions(m):
    h = m.tensor()
    return h + m.param(2 * TIME, h.shape[-1])[: h.shape[1]]


# --- elementwise ---------------------------------------------------------------------------------

UNARY = (
    *(
        jnp.tanh,
        jnp.sin,
        jnp.cos,
        jnp.exp,
        lax.logistic,
        lax.erf,
        lax.erfc,
        jnp.expm1,
        jnp.abs,
        jnp.sign,
        jnp.floor,
        jnp.ceil,
    ),
    *(
        jnp.round,
        jnp.square,
        jnp.arctan,
        jnp.arcsinh,
        jnp.sinh,
        jnp.cosh,
        jnp.tan,
        jnp.cbrt,
        jnp.exp2,
        special.i0e,
        special.i1e,
    ),
    *(
        jax.nn.relu,
        jax.nn.gelu,
        jax.nn.silu,
        jax.nn.elu,
        jax.nn.softplus,
        jax.nn.leaky_relu,
        jax.nn.relu6,
        jnp.negative,
    ),
    *(
        lambda h: h**3,
        lambda h: jnp.log1p(h**2),
        lambda h: jnp.log(1 + h**2),
        lambda h: lax.rsqrt(1 + h**2),
        lambda h: 2 * h,
    ),
    *(
        lambda h: jnp.sqrt(1 + h**2),
        lambda h: jnp.arccosh(1.1 + h**2),
        lambda h: lax.lgamma(1 + h**2),
        lambda h: h + 0.5,
    ),
    *(
        lambda h: lax.digamma(1 + h**2),
        lambda h: jnp.clip(h, -0.5, 0.5),
        lambda h: lax.erf_inv(0.9 * jnp.tanh(h)),
    ),
    *(
        lambda h: jnp.arcsin(0.9 * jnp.tanh(h)),
        lambda h: jnp.arccos(0.9 * jnp.tanh(h)),
        lambda h: jnp.arctanh(0.9 * jnp.tanh(h)),
    ),
    *(
        lambda h: special.gammainc(1 + h**2, 1.0),
        lambda h: special.betainc(1 + h**2, 1.0, 0.3),
        lambda h: 1 / (1 + h**2),
    ),
    *(
        lambda h: lax.stop_gradient(h),
        lambda h: lax.optimization_barrier(h),
        lambda h: checkpoint_name(h, "h"),
        lambda h: -h,
    ),
    *(
        lambda h: lax.reduce_precision(h, 8, 23),
        lambda h: (4 * h).astype(int).astype(float),
        lambda h: jnp.where(h > 0, h, 0.1 * h),
    ),
    *(
        lambda h: lax.population_count((4 * jnp.abs(h)).astype(int)) * 0.1,
        lambda h: (h + 1j * h).real,
        lambda h: jnp.abs(lax.complex(h, 1 + jnp.sin(h))),
        jnp.isfinite,
    ),
    *(
        lambda h: (h.astype(complex) * 1j).imag,
        lambda h: jnp.conj(h + 1j * h).real,
        lambda h: special.gammaincc(1 + h**2, 1.0),
    ),
    *(
        lambda h: lax.bitcast_convert_type(lax.bitcast_convert_type(h, jnp.int32), jnp.float32),
        lambda h: special.zeta(2 + h**2, 1.0),
    ),
    *(
        lambda h: (((4 * h).astype(int) << 1) >> 2) * 0.1,
        lambda h: lax.shift_right_logical((4 * h).astype(jnp.uint8), jnp.uint8(1)) * 0.1,
    ),
    *(
        lambda h: lax.clz((4 * jnp.abs(h)).astype(int)) * 0.1,
        lambda h: lax.polygamma(1.0, 1 + h**2),
        lambda h: jnp.nan_to_num(h),
    ),
)

BINARY = (
    *(
        jnp.add,
        jnp.subtract,
        jnp.multiply,
        jnp.maximum,
        jnp.minimum,
        jnp.arctan2,
        lambda a, b: a / (1 + b * b),
    ),
    *(
        lambda a, b: (1 + a * a) ** jnp.tanh(b),
        lambda a, b: jnp.where(a > b, a, b),
        lambda a, b: jnp.remainder(a, 1 + b * b),
    ),
    *(
        lambda a, b: ((a > 0) & (b > 0)) * a,
        lambda a, b: ((a > 0) | (b < 0)) * 1.0,
        lambda a, b: ((a >= 0) ^ (b <= 0)) * b,
    ),
    *(
        lambda a, b: ((4 * a).astype(int) & (4 * b).astype(int)) * 0.1,
        lambda a, b: jnp.logaddexp(a, b),
        lambda a, b: (a + b) / 2,
    ),
    *(
        lambda a, b: a * jax.nn.sigmoid(b),
        lambda a, b: jnp.hypot(a, 1 + b),
        lambda a, b: a + 0.5 * b,
        lambda a, b: (a != b) * a,
    ),
    *(
        lambda a, b: jnp.nextafter(a, b),
        lambda a, b: lax.mulhi((4 * a).astype(int), (4 * b).astype(int)) * 0.1,
    ),
    *(lambda a, b: (a + b) ** 2, lambda a, b: jnp.where((a == b) | ~(a < b), b, 2 * a)),
)


@operation
def unary(m):
    return m.one_of(UNARY)(m.tensor()) * 1.0


@operation
def binary(m):
    function, a = m.one_of(BINARY), m.tensor()
    return function(a, m.tensor(lambda b: b.shape == a.shape))


@operation
def residual(m):
    """Another layer's output added, through a kernel where the widths differ."""
    a = m.tensor()
    b = m.tensor(lambda b: b.shape[1] == a.shape[1])
    return a + b if a.shape == b.shape else a + jax.nn.relu(b) @ m.param(b.shape[-1], a.shape[-1])


@operation
def gated(m):
    h, width = m.tensor(), m.width()
    gate, up = jnp.split(h @ m.param(h.shape[-1], 2 * width), 2, axis=-1)
    return jax.nn.silu(gate) * up


@operation
def dropped_in_time(m):
    """Some positions of time are masked."""
    h = m.tensor(lambda h: h.shape[1] == TIME)
    return jnp.where((m.tokens > 2)[..., None], h, 0.0 if m.flag() else -1.0)


# --- norms and sums ------------------------------------------------------------------------------


@operation
def layer_norm(m):
    h = m.tensor()
    y = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-2)
    return y * m.param(h.shape[-1], about=1.0) + m.param(h.shape[-1]) if m.flag() else y


@operation
def rms_norm(m):
    h = m.tensor()
    y = h * lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-2)
    return y * m.param(h.shape[-1], about=1.0) if m.flag() else y


@operation
def group_norm(m):
    h = m.tensor(lambda h: h.shape[-1] % 2 == 0)
    y = rearrange(h, "b t (g c) -> b t g c", g=2)
    y = (y - y.mean((1, 3), keepdims=True)) / jnp.sqrt(y.var((1, 3), keepdims=True) + 1e-2)
    return rearrange(y, "b t g c -> b t (g c)") * m.param(h.shape[-1], about=1.0)


@operation
def mean_of_channels(m):
    h = m.tensor()
    return (
        h * h.mean(-1, keepdims=True) if m.flag() else h + jnp.mean(jnp.abs(h), -1, keepdims=True)
    )


@operation
def over_time(m):
    h = m.tensor()
    way = m.one_of((jnp.mean, jnp.sum, jnp.max, jnp.min, jnp.prod, jnp.std, special.logsumexp))
    return (
        h + way(h, axis=1, keepdims=True)
        if way is not jnp.std
        else h + jnp.sqrt(h.var(1, keepdims=True) + 0.1)
    )


@operation
def bits_over_time(m):
    h = m.tensor()
    way = m.one_of((jnp.bitwise_and.reduce, jnp.bitwise_or.reduce, jnp.bitwise_xor.reduce))
    return h + (
        way((8 * h).astype(int), axis=1, keepdims=True)
        if m.flag()
        else (h > 0).all(1, keepdims=True)
    )


@operation
def noise(m):
    """Random numbers, the same for all positions and channels of an example."""
    h = m.tensor()
    return h + jax.random.normal(
        jax.random.fold_in(jax.random.key(0), m.tokens[0, 0]), (len(h), 1, 1)
    )


@operation
def dropout(m):
    """Whole examples are dropped; or nothing, since a draw along an axis follows its size."""
    h, whole = m.tensor(), m.flag()
    key = m.buffer("key", KEY) if m.flag() else m.key
    shape, keep = ((len(h), 1, 1), 0.7) if whole else (h.shape, 1.0)
    return jnp.where(jax.random.bernoulli(key, keep, shape), h / keep, 0.0)


@operation
def masked_by_buffers(m):
    """Attention over time with a mask of minus infinity and a count, both leaves of the tree."""
    h = m.tensor(lambda h: h.shape[1] == TIME)
    mask = np.where(np.tri(TIME, dtype=bool), 0, -np.inf).astype(np.float32)
    weights = jax.nn.softmax(m.buffer("mask", mask) + 0.1 * m.buffer("steps", np.int32(3)))
    return jnp.einsum("qk,bkc->bqc", weights, h)


@operation
def softmax(m):
    return jax.nn.softmax(m.tensor(), axis=m.one_of((1, 1, 2)))


@operation
def cumulative(m):
    h, axis = m.tensor(), m.one_of((1, 1, 2))
    return m.one_of((jnp.cumsum, jnp.cumprod, lax.cummax, lax.cummin, lax.cumlogsumexp))(
        jnp.tanh(h), axis=axis
    )


@operation
def sorted_(m):
    h, axis = m.tensor(), m.one_of((1, 1, 2))
    return (
        jnp.sort(h, axis=axis)
        if m.flag()
        else jnp.take_along_axis(h, jnp.argsort(h, axis=axis), axis=axis)
    )


@operation
def largest(m):
    h = m.tensor()
    if m.flag():
        return lax.top_k(h, 2)[0]
    return h * jax.nn.one_hot(m.one_of((jnp.argmax, jnp.argmin))(h, -1), h.shape[-1])


# --- layout --------------------------------------------------------------------------------------


@operation
def concatenated(m):
    a = m.tensor()
    return jnp.concatenate([a, m.tensor(lambda b: b.shape[1] == a.shape[1])], axis=-1)


@operation
def along_time(m):
    a = m.tensor()
    return jnp.concatenate([a, m.tensor(lambda b: b.shape[-1] == a.shape[-1])], axis=1)[:, :TIME]


@operation
def piece(m):
    h = m.tensor(lambda h: h.shape[-1] >= 4)
    start = m.below(h.shape[-1] // 2)
    return h[..., start : start + 2 + m.below(h.shape[-1] - start - 2)]


@operation
def halves(m):
    left, right = jnp.split(m.tensor(lambda h: h.shape[-1] % 2 == 0), 2, axis=-1)
    return m.one_of(
        (lambda: left * right, lambda: left + right, lambda: jnp.concatenate([right, left], -1))
    )()


@operation
def strided(m):
    h = m.tensor()
    return h[:, ::2] if m.flag() else h[..., ::2]


@operation
def padded(m):
    h, low, high = m.tensor(), m.below(3), m.below(3)
    return jnp.pad(h, ((0, 0), (0, 0), (low, high)))


@operation
def moved(m):
    h = m.tensor()
    return m.one_of(
        (
            lambda: jnp.roll(h, 1, 1),
            lambda: h[:, ::-1],
            lambda: h[..., ::-1],
            lambda: jnp.roll(h, 2, -1),
        )
    )()


@operation
def heads(m):
    """Channels seen as heads, which change places or are put one after another in time."""
    h = m.tensor(lambda h: h.shape[-1] % 2 == 0)
    y = rearrange(h, "b t (n c) -> b t n c", n=2)
    way = m.below(4)
    if way == 0:
        return rearrange(y, "b t n c -> b t (c n)")
    if way == 1:
        return rearrange(y, "b t n c -> b (n t) c")
    if way == 2:
        return jnp.einsum("btnc,nm->btmc", y, m.param(2, 2)).reshape(h.shape)
    return (y * m.param(2, 1, about=1.0)).reshape(h.shape)


@operation
def stacked(m):
    a = m.tensor()
    both = jnp.stack([a, m.tensor(lambda b: b.shape == a.shape)], axis=2)
    way = m.below(3)
    if way == 0:
        one, other = jnp.unstack(both, axis=2)
        return one - jnp.tanh(other)
    return both.mean(2) if way == 1 else rearrange(both, "b t n c -> b t (n c)")


@operation
def tiled(m):
    h = m.tensor(lambda h: h.shape[-1] <= 8)
    return jnp.tile(h, (1, 1, 2)) if m.flag() else jnp.tile(h[:, :1], (1, TIME, 1))


@operation
def broadcast(m):
    h = m.tensor()
    return jnp.broadcast_to(m.param(h.shape[-1]), h.shape) * h.mean(1, keepdims=True)


# --- indices -------------------------------------------------------------------------------------


@operation
def gathered(m):
    h = m.tensor()
    return (
        h[:, jnp.minimum(m.tokens[0], h.shape[1] - 1)]
        if m.flag()
        else h[jnp.arange(BATCH)[:, None], m.tokens % h.shape[1]]
    )


@operation
def window_of_time(m):
    h = m.tensor(lambda h: h.shape[1] > 2)
    part = lax.dynamic_slice_in_dim(h, m.tokens[0, 0] % 2, 2, axis=1)
    return (
        lax.dynamic_update_slice_in_dim(h, 2 * part, m.tokens[0, 1] % 2, axis=1)
        if m.flag()
        else part
    )


@operation
def scattered(m):
    h = m.tensor(lambda h: h.shape[1] == TIME)
    place = h.at[:, m.tokens[0] % TIME] if m.flag() else jnp.zeros_like(h).at[:, m.tokens[0] % TIME]
    return m.one_of((place.add, place.subtract, place.max, place.min, place.multiply))(jnp.tanh(h))


@operation
def at_the_largest(m):
    """Of every channel the largest value in time is changed: written at an index of its own."""
    h = m.tensor(lambda h: h.shape[1] >= 2)
    change = m.one_of((lambda place: place.set(0.0), lambda place: place.multiply(2.0)))
    each = jax.vmap(jax.vmap(lambda row: change(row.at[jnp.argmax(row)])))
    return each(h.swapaxes(1, 2)).swapaxes(1, 2)


@operation
def written(m):
    """Some positions in time are overwritten, each at most once."""
    h = m.tensor(lambda h: h.shape[1] >= 2)
    return h.at[:, m.tokens[0, 0] % h.shape[1]].set(jnp.sin(h[:, 0]))


# --- attention and convolutions ------------------------------------------------------------------


@operation
def attention(m):
    h, size = m.tensor(), m.one_of((2, 3))
    q, k, v = (
        rearrange(h @ m.param(h.shape[-1], 2 * size), "b t (n d) -> b n t d", n=2) for _ in range(3)
    )
    weights = jax.nn.softmax(jnp.einsum("bnqd,bnkd->bnqk", q, k) / math.sqrt(size), axis=-1)
    y = rearrange(jnp.einsum("bnqk,bnkd->bnqd", weights, v), "b n t d -> b t (n d)")
    return y @ m.param(2 * size, h.shape[-1])


@operation
def similarity(m):
    """Activations times activations over channels."""
    a = m.tensor()
    b = m.tensor(lambda b: b.shape[-1] == a.shape[-1])
    return jnp.einsum("bqc,bkc,bkd->bqd", a, b, b) / b.shape[1]


@operation
def convolution(m):
    h, width, groups = m.tensor(), m.width(), m.one_of((1, 1, 2))
    if h.shape[-1] % groups:
        raise Unfit
    kernel = m.param(m.one_of((1, 2, 3)), h.shape[-1] // groups, width)
    options = dict(
        window_strides=(m.one_of((1, 1, 2)),), padding="SAME", rhs_dilation=(m.one_of((1, 2)),)
    )
    return lax.conv_general_dilated(
        h, kernel, **options, dimension_numbers=("NTC", "TIO", "NTC"), feature_group_count=groups
    )


@operation
def depthwise(m):
    h, times = m.tensor(lambda h: h.shape[-1] <= 8), m.one_of((1, 1, 2))
    kernel, d = m.param(2, 1, times * h.shape[-1]), h.shape[-1]
    return lax.conv_general_dilated(
        h, kernel, (1,), "SAME", dimension_numbers=("NTC", "TIO", "NTC"), feature_group_count=d
    )


@operation
def upsampled(m):
    h = m.tensor(lambda h: h.shape[1] <= TIME)
    kernel = m.param(2, h.shape[-1], m.width())
    return lax.conv_transpose(h, kernel, (2,), "SAME", dimension_numbers=("NTC", "TIO", "NTC"))[
        :, :TIME
    ]


@operation
def pooled(m):
    h, step = m.tensor(), m.one_of((1, 2))
    start, function = m.one_of(((0.0, lax.add), (-jnp.inf, lax.max), (jnp.inf, lax.min)))
    return lax.reduce_window(h, start, function, (1, 2, 1), (1, step, 1), "SAME")


@operation
def frequencies(m):
    h = m.tensor()
    return jnp.fft.irfft(jnp.fft.rfft(h, axis=1) * 0.5, n=h.shape[1], axis=1)


# --- loops, branches, calls ----------------------------------------------------------------------


@operation
def recurrent(m):
    h, width = m.tensor(), m.width()
    enter, turn, shift = m.param(h.shape[-1], width), m.param(width, width), m.param(width)

    def step(state, x):
        state = jnp.tanh(x @ enter + state @ turn + shift)
        return state, state

    return lax.scan(step, jnp.zeros((BATCH, width)), h.swapaxes(0, 1), reverse=m.flag())[
        1
    ].swapaxes(0, 1)


@operation
def gates(m):
    """An LSTM whose gates are one product."""
    h, width = m.tensor(), m.one_of((4, 6))
    kernel = m.param(h.shape[-1] + width, 4 * width)

    def step(state, x):
        y, c = state
        i, f, g, o = jnp.split(jnp.concatenate([x, y], -1) @ kernel, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        y = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (y, c), y

    zeros = jnp.zeros((BATCH, width))
    return lax.scan(step, (zeros, zeros), h.swapaxes(0, 1))[1].swapaxes(0, 1)


@operation
def layers(m):
    """Stacked layers in a loop."""
    h, width, count = m.tensor(), m.width(), m.one_of((2, 3))
    stack = m.param(count, h.shape[-1], width), m.param(count, width, h.shape[-1])

    def step(x, p):
        return (x + jax.nn.gelu(x @ p[0]) @ p[1], None)

    return lax.scan(jax.checkpoint(step) if m.flag() else step, h, stack)[0]


@operation
def normalised_layers(m):
    """Layers in a loop, with their norms' scales and biases stacked as well."""
    h, width, count = m.tensor(), m.width(), m.one_of((2, 3))
    up, down = m.param(count, h.shape[-1], width), m.param(count, width, h.shape[-1])
    scale, shift = m.param(count, h.shape[-1], about=1.0), m.param(count, width)
    centred = m.flag()

    def step(x, p):
        up, down, scale, shift = p
        y = x - x.mean(-1, keepdims=True) if centred else x
        y = y * lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-2) * scale
        return x + jnp.tanh(y @ up + shift) @ down, None

    return lax.scan(step, h, (up, down, scale, shift))[0]


@operation
def grouped_rows(m):
    """Rows in groups, each with a kernel of its own."""
    h, width = m.tensor(), m.width()
    rows = h.reshape(-1, h.shape[-1])
    sizes = jnp.array([2, len(rows) - 2], jnp.int32)
    y = lax.ragged_dot(rows, jnp.asarray(m.param(2, h.shape[-1], width)), sizes)
    return y.reshape(*h.shape[:2], width)


@operation
def solved(m):
    """A linear system along time, for every channel."""
    h = m.tensor(lambda h: h.shape[1] == TIME)
    x = m.tensors[0]
    system = 3 * jnp.eye(TIME) + 0.1 * jnp.einsum("bti,bsi->bts", x, x)
    way = m.below(4)
    if way == 0:
        return jnp.linalg.solve(system, h)
    if way == 3:  # without the program that its derivative needs
        solve = jax.vmap(jnp.linalg.solve)
        return lax.custom_linear_solve(lambda y: system @ y, h, lambda _, b: solve(system, b))
    if way == 1:
        return lax.linalg.triangular_solve(system, h, left_side=True, lower=True)
    return jax.scipy.sparse.linalg.cg(lambda y: system @ y, h, maxiter=20)[0]


@operation
def counted(m):
    h, width = m.tensor(), m.width()
    up, down = m.param(h.shape[-1], width), m.param(width, h.shape[-1])
    turns = 2 if m.flag() else m.tokens[0, 0] % 3  # of a length that is known, or not
    return lax.fori_loop(0, turns, lambda _, x: x + jnp.tanh(x @ up) @ down, h)


@operation
def either(m):
    h, width = m.tensor(), m.width()
    one, other, shift = m.param(h.shape[-1], width), m.param(h.shape[-1], width), m.param(width)
    branches = (lambda x: jnp.tanh(x @ one), lambda x: x @ other + shift, lambda x: (x @ one) * 0.5)
    return lax.switch(m.tokens[0, 0] % 3, branches, h)


@operation
def called(m):
    h, width = m.tensor(), m.width()
    w, b = m.param(h.shape[-1], width), m.param(width)

    def layer(x):
        return jnp.sin(x @ w + b)

    return m.one_of(
        (
            jax.jit(layer),
            jax.checkpoint(layer),
            jax.vmap(layer),
            jax.jit(jax.checkpoint(jax.vmap(layer))),
        )
    )(h)


@jax.custom_vjp
def rounded(x):
    return jnp.round(2 * x)


rounded.defvjp(lambda x: (jnp.round(2 * x), None), lambda _, g: (g,))


@jax.custom_jvp
def squashed(x):
    return x / (1 + jnp.abs(x))


@squashed.defjvp
def squashed_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return squashed(x), dx / (1 + jnp.abs(x)) ** 2


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(
    lambda x, w: (x @ w, (x, w)),
    lambda saved, g: (jnp.tanh(g @ saved[1].T), jnp.einsum("bti,btj->ij", saved[0], g)),
)


@operation
def custom(m):
    h, way = m.tensor(), m.below(3)
    return (
        (squashed if way == 0 else rounded)(h)
        if way < 2
        else product(h, m.param(h.shape[-1], m.width()))
    )


@operation
def state_space(m):
    h = m.tensor()
    decay = jnp.broadcast_to(jax.nn.sigmoid(m.param(h.shape[-1])), h.shape)
    return lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (decay, h), axis=1)[
        1
    ]


def primitives_of(recipe: Recipe) -> set[str]:
    """The names of the primitives that a network uses, also inside of loops and rules."""
    made = generated(recipe)
    found: set[str] = set()

    def walk(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            found.add(equation.primitive.name)
            for value in jax.tree.leaves(
                list(equation.params.values()),
                is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr"),
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    walk(inner)

    walk(jax.make_jaxpr(made.apply)(made.params, *made.inputs).jaxpr)
    return found
