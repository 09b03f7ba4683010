"""Coarsen, refine and seriate: functions stay, refining is undone, smooth axes lose little."""

import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import calibrated, close, error, mlp, mlp_params, network, outputs
from helpers_models import MODELS

import jaxcompress as jc
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.arrays.spline import BASES
from jaxcompress.transforms.prolongation import dual, prolongation
from jaxcompress.transforms.seriation import SEARCHES, distances, length, roughness_of

REFUSING = {"weight_norm": "passes a nonlinear function before it is used"}
"""Models no axis of which can be resized, and why."""


def same(tree, other, tol=2e-6):
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, atol=tol * max(1, float(np.abs(two).max(initial=0))))


@pytest.mark.parametrize("name", [name for name in MODELS if name not in REFUSING])
def test_refining_changes_no_function_and_coarsening_undoes_it(name):
    """Every kind of axis, under norms and in attention, too."""
    model, net = network(name)
    wide = jc.refine(net, 2)(model.params)
    assert jc.stored_numbers(wide) > jc.stored_numbers(model.params)
    close(
        outputs(model, net(wide, *model.inputs)),
        outputs(model, model.apply(model.params, *model.inputs)),
    )
    same(jc.coarsen(net, 2)(wide), model.params)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in REFUSING])
def test_inside_jit_it_is_the_same(name):
    """Without moments both are linear maps of known shapes."""
    model, net = network(name)
    up, down = jc.refine(net, 2, split=0.3), jc.coarsen(net, 2)
    wide = up(model.params)
    same(jax.jit(up)(model.params), wide)
    same(jax.jit(down)(wide), down(wide))


def test_gradients_pass_a_change_of_resolution():
    """The gradient of parameters at full size, through a smaller network: the map's transpose."""
    model, net = network("mlp_by_hand")
    down = jc.coarsen(net, 2)
    params, small = model.params, down(model.params)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(net(down(p), *model.inputs) ** 2)))(params)
    inner = jax.grad(lambda p: jnp.sum(net(p, *model.inputs) ** 2))(small)
    full, coarse = (
        optax.tree_utils.tree_vdot(gradient, params),
        optax.tree_utils.tree_vdot(inner, small),
    )
    np.testing.assert_allclose(full, coarse, rtol=1e-4)  # <D' g, p> = <g, D p>


@pytest.mark.parametrize(("width", "split"), [(32, 0.5), (128, 0.1)])
def test_a_split_is_relative_to_what_reads_the_channels(width, split):
    """Of the perturbation the part that changes the sum of two copies is taken away: a half."""
    rng = np.random.default_rng(0)
    params = {"up": rng.normal(size=(3, width)), "down": rng.normal(size=(width, 40))}
    net = jc.trace(lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"], params, np.ones((2, 3)))
    whole, apart = jc.refine(net, 2)(params), jc.refine(net, 2, split=split)(params)
    change = np.std(apart["down"] - whole["down"]) / np.std(whole["down"])
    np.testing.assert_allclose(change, split / np.sqrt(2), rtol=0.1)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in REFUSING])
def test_split_channels_differ_in_what_reads_them_alone(name):
    model, net = network(name)
    whole, split = jc.refine(net, 2)(model.params), jc.refine(net, 2, split=0.5)(model.params)
    close(
        outputs(model, net(split, *model.inputs)),
        outputs(model, model.apply(model.params, *model.inputs)),
    )
    same(jc.coarsen(net, 2)(split), model.params)
    consumers = set()
    for axis in net.axes:
        consumers |= {slot.leaf for slot in axis.consumers}
    names = [name for name, _ in named_leaves(whole)]
    differ = {
        n
        for n, one, two in zip(names, *map(jax.tree.leaves, (whole, split)), strict=True)
        if bool(jnp.any(one != two))
    }
    assert differ
    assert differ <= consumers or any(axis.pair for axis in net.axes)


@pytest.mark.parametrize("name", REFUSING)
def test_what_cannot_be_resized_is_left_or_refused(name):
    model, net = network(name)
    assert jc.refine(net, 2)(model.params) is not None
    same(jc.refine(net, 2)(model.params), model.params, 0)
    with pytest.raises(ValueError, match=REFUSING[name]):
        jc.refine(net, 2, axes=net.axes[0].key)(model.params)


@pytest.mark.parametrize("name", ["mlp_by_hand", "encoder_linen", "encoder_rms", "convnet", "lstm"])
def test_with_moments_coarsening_undoes_refining_too(name):
    model, net, inputs, moments = calibrated(name)
    back = jc.chain(jc.refine(net, 2), jc.coarsen(net, 2))(model.params, moments)
    same(back, model.params, 2e-5)
    close(outputs(model, net(back, *inputs)), outputs(model, model.apply(model.params, *inputs)))


@pytest.mark.parametrize("factor", [Fraction(3, 2), 7 / 5, 1.01, 3])
def test_any_factor_where_no_norm_is(factor):
    params = mlp_params((5, 8, 6, 3))
    x = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    net = jc.trace(mlp, params, x)
    wide = jc.refine(net, factor)(params)
    assert wide["w0"].shape == (5, round(8 * factor))
    assert error(net, params, wide, (x,)) < 1e-6
    same(
        jc.coarsen(
            net, {"w0:1": Fraction(round(8 * factor), 8), "w1:1": Fraction(round(6 * factor), 6)}
        )(wide),
        params,
    )


def test_a_norm_takes_whole_factors(caplog):
    model, net = network("encoder_by_hand")
    under = next(axis.key for axis in net.axes if "normalised" in axis.marks)
    with pytest.raises(ValueError, match="is no multiple of"):
        jc.refine(net, 3 / 2, axes=under)(model.params)
    with caplog.at_level("INFO"):
        jc.refine(net, 3 / 2)(model.params)
    assert f"{under} is not changed: a norm over it" in caplog.text


@pytest.mark.parametrize("basis", BASES)
def test_bases(basis):
    for coarse, fine in ((4, 8), (5, 7), (1, 3), (6, 6)):
        up = prolongation(coarse, fine, basis)
        np.testing.assert_allclose(up.sum(0), 1)
        np.testing.assert_allclose(up @ dual(up).T, np.eye(coarse), atol=1e-10)
    np.testing.assert_allclose(prolongation(7, 7, basis), np.eye(7), atol=1e-12)


@pytest.mark.parametrize("basis", BASES)
def test_a_dual_weighs_channels(basis):
    """Whatever the weights, coarsening undoes refining; a channel of no weight is ignored."""
    weights = np.random.default_rng(0).uniform(0.1, 3, 12)
    weights[5] = 1e-9
    up = prolongation(4, 12, basis)
    down = dual(up, weights)
    np.testing.assert_allclose(up @ down.T, np.eye(4), atol=1e-10)
    assert np.abs(down[:, 5]).max() < 1e-7
    values = np.random.default_rng(1).normal(size=12)
    best = np.linalg.lstsq((up * np.sqrt(weights)).T, values * np.sqrt(weights), rcond=None)[0]
    np.testing.assert_allclose(down @ values, best, atol=1e-8)


def test_averages_weigh_channels_by_what_their_consumers_make_of_them():
    rng = np.random.default_rng(0)
    params = {
        "up": jnp.asarray(rng.normal(size=(3, 6)), jnp.float32),
        "down": jnp.asarray(rng.normal(size=(6, 2)) * np.logspace(0, 1, 6)[:, None], jnp.float32),
    }

    def apply(p, x):
        return (x @ p["up"]) @ p["down"]

    x = rng.normal(size=(50, 3)).astype(np.float32)
    net = jc.trace(apply, params, x)
    small = jc.coarsen(net, 2)(params, jc.calibrate(net, params, [x], progress=False))
    power = np.sum(np.asarray(params["down"]) ** 2, 1)
    weighed = (np.asarray(params["up"]) * power).reshape(3, 3, 2).sum(-1)
    np.testing.assert_allclose(small["up"], weighed / power.reshape(3, 2).sum(-1), rtol=1e-5)


def test_averages_under_a_norm_keep_the_power_of_averages():
    """The norm of averages is one again: their smaller variance goes into the scale."""
    rng = np.random.default_rng(0)
    params = {
        "up": jnp.asarray(rng.normal(size=(40, 32)), jnp.float32),
        "scale": jnp.asarray(rng.uniform(1, 2, 32), jnp.float32),
        "down": jnp.asarray(rng.normal(size=(32, 2)), jnp.float32),
    }

    def apply(p, x):
        h = x @ p["up"]
        h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6) * p["scale"]
        return h @ p["down"]

    x = rng.normal(size=(400, 40)).astype(np.float32)
    net = jc.trace(apply, params, x)
    moments = jc.calibrate(net, params, [x], progress=False)
    small = jc.coarsen(net, 2)(params, moments)
    assert small["up"].shape == (40, 16)
    second = moments.sites["down#0"].second
    averages = second.reshape(16, 2, 16, 2).mean((1, 3))
    met = jc.calibrate(net, small, [x], progress=False).sites["down#0"].second
    np.testing.assert_allclose(np.trace(met), np.trace(averages), rtol=0.05)


@pytest.mark.parametrize("basis", BASES)
def test_any_basis_keeps_a_linear_function(basis):
    model, net = network("linear_mlp")
    wide = jc.refine(net, 5 / 3, basis=basis)(model.params)
    close(net(wide, *model.inputs), model.apply(model.params, *model.inputs))
    same(
        jc.coarsen(
            net,
            {axis.key: Fraction(round(axis.size * 5 / 3), axis.size) for axis in net.axes},
            basis=basis,
        )(wide),
        model.params,
    )


def smooth_network(units):
    """A network whose hidden axis is a function of t, sampled."""
    t = (np.arange(units) + 0.5) / units
    kernel = np.stack([np.cos(2 * t + phase) for phase in range(4)])
    return {
        "w": jnp.float32(kernel),
        "b": jnp.float32(np.sin(3 * t)),
        "v": jnp.float32(np.exp(-t)[:, None] * [[1, -2]] / units),
    }


def test_smoother_bases_go_to_the_continuum():
    """Refining and coarsening approach the network that is sampled at the new places."""

    def apply(p, x):
        return jax.nn.gelu(x @ p["w"] + p["b"]) @ p["v"]

    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    coarse, fine = smooth_network(12), smooth_network(48)
    net = jc.trace(apply, coarse, x)
    wide = {basis: jc.refine(net, 4, basis=basis)(coarse) for basis in BASES}
    inside = slice(8, -8)  # the last two cells at the ends have no neighbours to go by
    errors = {
        basis: float(jnp.linalg.norm((params["w"] - fine["w"])[:, inside]))
        for basis, params in wide.items()
    }
    assert errors["linear"] < errors["step"] / 10
    assert errors["cubic"] < errors["linear"] / 10
    assert all(error(net, coarse, params, (x,)) < 0.01 for params in wide.values())
    net = jc.trace(apply, fine, x)
    moments = jc.calibrate(net, fine, [x], progress=False)
    mix = np.random.default_rng(1).permutation(48)
    rough = {"w": fine["w"][:, mix], "b": fine["b"][mix], "v": fine["v"][mix]}
    moments = jc.calibrate(net, rough, [x], progress=False)
    ordered = error(net, rough, jc.chain(jc.seriate(net), jc.coarsen(net, 4))(rough, moments), (x,))
    assert ordered < 0.01
    assert error(net, rough, jc.coarsen(net, 4)(rough, moments), (x,)) > 4 * ordered


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize(
    "name", ["mlp_by_hand", "encoder_linen", "grouped_convolutions", "fused_qkv"]
)
def test_order_changes_no_function(name, method):
    model, net = network(name)
    permuted = jc.seriate(net, method)(model.params)
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(*map(jax.tree.leaves, (permuted, model.params)), strict=True)
    )
    close(
        outputs(model, model.apply(permuted, *model.inputs)),
        outputs(model, model.apply(model.params, *model.inputs)),
    )


def test_orders_find_a_line():
    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(0, 1, 60))
    # a line, and one on which only neighbours are correlated
    for width, least in ((3.0, 1.001), (0.05, 1.6)):
        curve = np.exp(-((t[:, None] - np.linspace(0, 1, 400)) ** 2) / width**2)
        mixed = rng.permutation(60)
        apart = distances(curve[mixed] @ curve[mixed].T)
        true = length(np.argsort(mixed), apart)
        for name, search in SEARCHES.items():
            path = search(apart)
            assert sorted(path) == list(range(60))
            # the Fiedler vector orders clusters, not the channels within them
            if name != "spectral" or width > 1:
                assert length(path, apart) <= least * true


def test_seriation_lowers_roughness():
    params = mlp_params((5, 40, 30, 3))
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    net = jc.trace(mlp, params, x)
    moments = jc.calibrate(net, params, [x], progress=False)
    before = jc.roughness(net, params, moments)
    assert all(0.8 < rough < 1.2 for rough in before.values())
    ordered, carried = jc.seriate(net).apply(params, moments)
    after = jc.roughness(net, ordered, carried)
    assert all(after[key] < 0.7 * before[key] for key in before)
    assert roughness_of(np.zeros((4, 4))) == 0


def test_bad_arguments():
    params = mlp_params((5, 8, 6, 3))
    net = jc.trace(mlp, params, np.ones((2, 5), np.float32))
    for factor in (0.5, np.nan, np.inf, "two", True, {"w0": 0}):
        with pytest.raises(ValueError, match=r"refine's factor.* must be in \[1, inf\)"):
            jc.refine(net, factor)
    with pytest.raises(ValueError, match="the pattern 'w7' decides nothing: nothing matches"):
        jc.coarsen(net, {"w7": 2})
    with pytest.raises(ValueError, match=r"basis='wave' is unknown"):
        jc.coarsen(net, 2, basis="wave")
    with pytest.raises(ValueError, match=r"method='random' is unknown"):
        jc.seriate(net, "random")
    with pytest.raises(TypeError, match="takes a network"):
        jc.refine(params, 2)
    with pytest.raises(ValueError, match="matches no hidden axis"):
        jc.coarsen(net, 2, axes="w9")(params)
    assert re.fullmatch(
        r"coarsen\(<2 hidden axes, \w{8}>, factor={'w0\*': 2}, basis='cubic'\)",
        repr(jc.coarsen(net, {"w0*": 2}, basis="cubic")),
    )
