"""Axes under norms: rotated where that is exact, else selected with folds, and said so."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import calibrated, error
from helpers_table import affine, dense, draw

import jaxcompress as jc
from jaxcompress.networks.maps import AxisMap, apply_map, selecting
from jaxcompress.transforms.axis_rotation import rotate
from jaxcompress.transforms.legality import why_not_rotate
from jaxcompress.transforms.methods import choose_method
from jaxcompress.transforms.network_state import NetworkState
from jaxcompress.transforms.norm_selection import fold_under_norm

D = 12
X = jnp.asarray(np.random.default_rng(7).normal(size=(240, 5)), jnp.float32)
SELECTED = pytest.mark.filterwarnings("ignore:.* is selected, not :UserWarning")


# --- a table of norms and of places for them -----------------------------------------------------


def scaled(p, x):
    return x * p["scale"] + p["offset"]


def centred(x):
    return x - x.mean(-1, keepdims=True)


def fast_variance(x):
    variance = (x**2).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2
    return centred(x) * jax.lax.rsqrt(jnp.maximum(variance, 0) + 1e-6)


NORMS = {
    "layer norm": lambda p, x: scaled(
        p, centred(x) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-6)
    ),
    "fast variance": lambda p, x: scaled(p, fast_variance(x)),
    "layer norm without an offset": lambda p, x: fast_variance(x) * p["scale"],
    "layer norm without a scale": lambda p, x: fast_variance(x) + p["offset"],
    "root mean square": lambda p, x: (
        x * (jax.lax.rsqrt((x**2).mean(-1, keepdims=True)) * p["scale"])
    ),
    "sum of squares": lambda p, x: x / jnp.sqrt((x**2).sum(-1, keepdims=True)) * p["scale"],
}


def before(norm):
    """A norm before each layer, as in decoders; the stream is only added to."""

    def apply(p, x):
        x = dense(p["embed"], x)
        for layer in p["layers"]:
            x = x + jax.nn.relu(dense(layer["up"], norm(layer, x))) @ layer["down"]
        return norm(p["last"], x) @ p["last"]["w"]

    return apply


def after(norm):
    """A norm after each addition, as in encoders; scales lie on the stream."""

    def apply(p, x):
        x = dense(p["embed"], x)
        for layer in p["layers"]:
            x = norm(layer, x + jax.nn.relu(dense(layer["up"], x)) @ layer["down"])
        return x @ p["last"]["w"]

    return apply


def nonlinear(norm):
    """A norm over channels that a nonlinear function acts on."""

    def apply(p, x):
        x = jnp.tanh(dense(p["embed"], x))
        for layer in p["layers"]:
            x = jnp.tanh(x + jax.nn.relu(dense(layer["up"], norm(layer, x))) @ layer["down"])
        return norm(p["last"], x) @ p["last"]["w"]

    return apply


PLACES = {"before": before, "after": after, "nonlinear": nonlinear}
CASES = [("layer norm", place) for place in PLACES]
CASES += [(name, "after") for name in NORMS if name not in ("layer norm", "fast variance")]
CASES += [("root mean square", "nonlinear"), ("sum of squares", "before")]


def stream(net):
    """The axis of the residual stream."""
    return next(axis for axis in net.axes if axis.size == D)


def parameters():
    norm = {"scale": (D,), "offset": (D,)}
    layer = {**norm, "up": affine(D, 7), "down": (7, D)}
    return draw({"embed": affine(5, D), "layers": [layer] * 2, "last": {**norm, "w": (D, 4)}})


def case(norm, place):
    apply = PLACES[place](NORMS[norm])
    params = parameters()
    return jc.trace(apply, params, X), params


def repeated(net, params, times):
    """Channels of the stream that repeat others equally often; consumers differ."""
    axis, state = stream(net), NetworkState.of(net.structure, params, None)
    source = np.random.default_rng(times).permutation(D) % (D // times)
    leaves, copies = dict(state.leaves), np.eye(D)[:, source][None]
    apply_map(net.structure, leaves, {}, axis, AxisMap(copies, np.eye(D)[None], copies))
    return state.edited(leaves).params()


@SELECTED
@pytest.mark.parametrize(("norm", "place"), CASES)
def test_repeated_channels_go_without_loss(norm, place):
    """By every method: half or a third of the channels are all that there is."""
    net, params = case(norm, place)
    times = 3 if place == "after" else 2
    whole = repeated(net, params, times)
    moments = jc.calibrate(net, whole, [X], progress=False)
    for method in ("auto", "select") if place == "before" else ("auto",):
        cut = jc.rotate_and_prune(net, 1 / times, axes=stream(net).key, method=method)
        assert error(net, whole, cut(whole, moments), (X,)) < 1e-5, method


@SELECTED
@pytest.mark.parametrize(("norm", "place"), CASES)
def test_random_channels_are_cut_better_than_by_plain_selection(norm, place):
    """A rotation, or a selection with its folds, against the largest channels alone."""
    net, params = case(norm, place)
    axis, moments = stream(net), jc.calibrate(net, params, [X], progress=False)
    state = NetworkState.of(net.structure, params, moments)
    small = jc.rotate_and_prune(net, 1 / 2, axes=axis.key)(params, moments)
    plain = jc.rotate_and_prune(net, 1 / 2, axes=axis.key, method="select")(params)
    lost = [error(net, params, tree, (X,)) for tree in (small, plain)]
    assert lost[0] < 0.8 * lost[1], lost
    folded = fold_under_norm(state, axis, selecting([np.arange(D)], D))
    assert error(net, params, state.applied(axis, folded).params(), (X,)) < 1e-5  # nothing cut


@pytest.mark.parametrize("norm", NORMS)
def test_a_rotation_at_full_width_is_exact(norm):
    """And so are the moments that it carries along."""
    net, params = case(norm, "before")
    axis, moments = stream(net), jc.calibrate(net, params, [X], progress=False)
    state = NetworkState.of(net.structure, params, moments)
    if norm == "layer norm without a scale":
        assert "no scale follows a norm" in why_not_rotate(state, axis)
        return
    assert choose_method(state, axis).name == "rotate"
    turned = state.applied(axis, rotate(state, axis, D))
    assert error(net, params, turned.params(), (X,)) < 1e-5
    fresh = jc.calibrate(net, turned.params(), [X], progress=False)
    for key, statistic in fresh.sites.items():
        carried = turned.moments.sites[key]
        np.testing.assert_allclose(carried.second, statistic.second, atol=1e-4, err_msg=key)


def test_a_stream_of_low_rank_is_rotated_without_loss():
    """Under a layer norm r channels hold r - 1 directions of zero mean, and any offset."""
    net, params = case("layer norm", "before")
    rng = np.random.default_rng(3)
    span = rng.normal(size=(4, D))
    params = {
        **params,
        "embed": {"w": jnp.asarray(rng.normal(size=(5, 4)) @ span, jnp.float32), "b": jnp.zeros(D)},
        "layers": [
            {**layer, "down": jnp.asarray(rng.normal(size=(7, 4)) @ span / 3, jnp.float32)}
            for layer in params["layers"]
        ],
    }
    moments = jc.calibrate(net, params, [X], progress=False)
    key = stream(net).key
    for size, exact in ((5, True), (4, False)):
        small = jc.rotate_and_prune(net, size / D, axes=key)(params, moments)
        assert small["embed"]["w"].shape == (5, size)
        assert (error(net, params, small, (X,)) < 1e-4) == exact
    # of one channel a layer norm leaves the offset alone
    small = jc.rotate_and_prune(net, 1 / D, axes=key)(params, moments)
    assert np.isfinite(error(net, params, small, (X,)))


# --- norms of the frameworks, and what is none ---------------------------------------------------


class Linen(nn.Module):
    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(D)(x)
        return nn.Dense(3)(self.norm()(x + nn.Dense(D)(nn.relu(nn.Dense(7)(self.norm()(x))))))


def equinox_net(norm):
    key = jax.random.key(0)
    layers = [eqx.nn.Linear(5, D, key=key), norm(D), eqx.nn.Linear(D, 3, key=key)]
    arrays, static = eqx.partition(layers, eqx.is_inexact_array)

    def one(x, layers):
        return layers[2](layers[1](layers[0](x)))

    return lambda p, x: jax.vmap(lambda row: one(row, eqx.combine(p, static)))(x), arrays


def haiku_net():
    def forward(x):
        return hk.Linear(3)(hk.LayerNorm(-1, True, True)(hk.Linear(D)(x)))

    net = hk.without_apply_rng(hk.transform(forward))
    return net.apply, net.init(jax.random.key(0), X)


def linen_net(norm):
    net = Linen(norm)
    return net.apply, net.init(jax.random.key(0), X)


FRAMEWORKS = {
    "linen layer norm": (lambda: linen_net(nn.LayerNorm), True),
    "linen root mean square": (lambda: linen_net(nn.RMSNorm), False),
    "equinox layer norm": (lambda: equinox_net(eqx.nn.LayerNorm), True),
    "haiku layer norm": (haiku_net, True),
}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_norms_of_the_frameworks_are_recognised(name):
    make, is_centred = FRAMEWORKS[name]
    apply, params = make()
    net = jc.trace(apply, params, X)
    axis = stream(net)
    assert axis.centred == is_centred
    assert why_not_rotate(NetworkState.of(net.structure, params, None), axis) is None
    normed = [site for site in net.structure.sites.values() if site.normed]
    assert all(len(site.scaled) == 1 and len(site.shifted) == is_centred for site in normed)
    assert normed


def power(x):
    return (x**2).mean(-1, keepdims=True)


NEARLY = {
    "the mean is used elsewhere": lambda x: fast_variance(x) + jnp.tanh(x.mean(-1, keepdims=True)),
    "the mean is an output": lambda x: (fast_variance(x), x.mean(-1)),
    "a sum is subtracted": lambda x: (x - x.sum(-1, keepdims=True)) / jnp.sqrt(power(x)),
    "twice the mean": lambda x: (x - 2 * x.mean(-1, keepdims=True)) / jnp.sqrt(power(centred(x))),
    "the mean of another value": lambda x: (x - (3 * x).mean(-1, keepdims=True)) / power(x),
    "an uncentred power": lambda x: centred(x) / jnp.sqrt(power(x)),
    "a square of a sum": lambda x: centred(x) / (power(x) - x.sum(-1, keepdims=True) ** 2),
    "a product with ones": lambda x: fast_variance(x) + x @ jnp.ones((D, 1)),
    "the power is used elsewhere": lambda x: fast_variance(x) * (1 + power(x)),
    "a running mean": lambda x: fast_variance(x) + jnp.cumsum(x.mean(-1, keepdims=True), 0),
}


@pytest.mark.parametrize("name", NEARLY)
def test_what_is_nearly_a_layer_norm_is_no_such(name):
    """A constant added to all channels would change it, so that centring may not be assumed."""

    def apply(p, x):
        result = NEARLY[name](x @ p["w"])
        first, *rest = result if isinstance(result, tuple) else (result,)
        return (first * p["scale"]) @ p["v"], *rest

    params = draw({"w": (5, D), "scale": (D,), "v": (D, 3)})
    axes = [axis for axis in jc.trace(apply, params, X).axes if axis.size == D]
    assert not any(axis.centred for axis in axes)


# --- decoders ------------------------------------------------------------------------------------


def low_rank_decoder():
    """The decoder of the table, its stream in half of the directions up to a little noise."""
    model, net, inputs, _ = calibrated("stacked_decoder", 32)
    rng, layers = np.random.default_rng(4), dict(model.params["layers"])
    width = net.axes["layers/down:2"].size
    mostly = np.linalg.qr(rng.normal(size=(width, width)))[0]
    mostly = (mostly * np.where(np.arange(width) < width // 2, 1, 0.05)) @ mostly.T
    for name in ("wo", "down"):
        layers[name] = layers[name] @ mostly
    params = {**model.params, "words": model.params["words"] @ mostly, "layers": layers}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return net, params, inputs, jc.calibrate(net, params, [inputs], progress=False)


def test_a_stacked_and_tied_stream_rotates():
    """Norm scales under scan are folded layer by layer, the last one stays before the table."""
    net, params, inputs, moments = low_rank_decoder()
    axis = net.axes["layers/down:2"]
    for known in (None, moments):  # nothing is lost at full width, measured or not
        state = NetworkState.of(net.structure, params, known)
        turned = state.applied(axis, rotate(state, axis, axis.size)).params()
        assert error(net, params, turned, inputs) < 1e-5
        assert not np.allclose(turned["layers"]["gate"], params["layers"]["gate"])
    errors = {
        method: error(
            net,
            params,
            jc.rotate_and_prune(net, 1 / 2, axes=axis.key, method=method)(params, moments),
            inputs,
        )
        for method in ("auto", "magnitude")
    }
    cut = jc.rotate_and_prune(net, 1 / 2, axes=axis.key, method="select")
    with pytest.warns(UserWarning, match="is selected, not folded: "):
        selected = cut(params, moments)
    errors["select"] = error(net, params, selected, inputs)
    assert errors["auto"] < 0.3 * min(errors["select"], errors["magnitude"]), errors
    small = jc.rotate_and_prune(net, 1 / 2, axes=axis.key)(params, moments)
    # nothing is added for the tie: neither a matrix nor a second table
    assert jax.tree.structure(small) == jax.tree.structure(params)
    assert small["scale"].shape == (axis.size // 2,)


# --- what is told --------------------------------------------------------------------------------


def shared_kernel(p, x):
    """Two layers with norms of their own and one kernel."""

    def layer(x, scale):
        return x + jax.nn.relu(NORMS["root mean square"]({"scale": scale}, x) @ p["up"]) @ p[
            "down"
        ], 0

    x = jax.lax.scan(layer, x @ p["embed"], p["scales"])[0]
    return NORMS["root mean square"](p, x) @ p["last"]


def two_norms(p, x):
    x = x @ p["embed"]
    return NORMS["root mean square"](p, x) @ p["last"] + x @ p["raw"]


def divided_by_the_scale(p, x):
    x = x @ p["embed"]
    return NORMS["root mean square"]({"scale": 1.0}, x) / p["scale"] @ p["last"]


def product_of_one(p, x):
    x = x @ p["embed"]
    return jnp.einsum("bd,cd->bc", x, x)


REFUSED = {
    "a stacked scale and a kernel that is not": (shared_kernel, "rotated: scales has dimensions"),
    "a reader without the norm": (two_norms, "rotated: no scale follows a norm before raw"),
    "one producer of both sides": (product_of_one, "rotated: .* one parameter produces both"),
    "a scale that divides": (divided_by_the_scale, "rotated: "),
}
SHAPES = {"embed": (5, D), "scales": (2, D), "scale": (D,), "up": (D, 7), "down": (7, D)}
SHAPES |= {"last": (D, 3), "raw": (D, 3)}


@pytest.mark.parametrize("name", REFUSED)
def test_a_worse_way_is_told_once_by_name(name):
    """In a warning, and in the plan of any keep."""
    apply, why = REFUSED[name]
    used = {"scales", "up", "down"} if apply is two_norms else {"raw"}
    keep_only = {"embed"} if apply is product_of_one else SHAPES.keys() - used
    if apply is divided_by_the_scale:
        keep_only = {"embed", "scale", "last"}
    params = draw({leaf: shape for leaf, shape in SHAPES.items() if leaf in keep_only})
    net = jc.trace(apply, params, X[:20])
    moments = jc.calibrate(net, params, [X[:20]], progress=False)
    key = stream(net).key
    cut = jc.rotate_and_prune(net, 1 / 2, axes=key)
    with pytest.warns(UserWarning, match=f"{key} is selected, not {why}") as told:
        cut(params, moments)
    assert len(told) == 1
    assert told[0].filename == __file__
    (share,) = cut.plan(params, moments).shares
    assert share.method.startswith("select")
    assert share.method.partition(": ")[2] in str(told[0].message)
    assert share.method in str(cut.plan(params, moments))
    with pytest.raises(ValueError, match="cannot be rotated"):
        jc.rotate_and_prune(net, 1 / 2, axes=key, method="rotate")(params, moments)


def test_plans_of_given_keeps_name_the_method_of_every_axis():
    net, params = case("layer norm", "before")
    moments = jc.calibrate(net, params, [X], progress=False)
    keep = {stream(net).key: 1 / 2, "**": 1 / 3}
    plan = jc.rotate_and_prune(net, keep).plan(params, moments)
    shares = {share.key: share for share in plan.shares}
    assert shares[stream(net).key].method == "rotate"
    assert shares[stream(net).key].detail == "6 of 12"
    assert shares["layers/0/up/w:1"].detail == "2 of 7"
    assert (
        shares["layers/0/up/w:1"].method == "select and fold: a nonlinearity acts on its channels"
    )
