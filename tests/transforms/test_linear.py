"""merge_linear and linearize: what is linear in a network is computed by as little as it takes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close, error, network
from helpers_models import MODELS

import jaxcompress as jc
from jaxcompress.models.mlp import MLP
from jaxcompress.networks.axes import Axis
from jaxcompress.transforms.merge_linear import rows, sides, why_not_merge
from jaxcompress.transforms.network_state import NetworkState

X = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)


def mergeable(name) -> list[Axis]:
    model, net = network(name)
    state = NetworkState.of(net.structure, model.params, None)
    return [axis for axis in net.axes if why_not_merge(state, axis) is None]


LINEAR = [name for name in MODELS if mergeable(name)]


def products(structure, params, axis):
    """What a network computes through a linear axis: the product of both sides, of every fibre."""
    state = NetworkState.of(structure, params, None)
    first, second = (rows(state, axis, slots) for slots in sides(state, axis))
    return np.swapaxes(first, 1, 2) @ second


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_axis_at_its_rank_computes_the_same(name):
    """Every linear axis of every model, made twice as wide, is cut back or further."""
    model, net = network(name)
    for axis in mergeable(name):
        wide = jc.refine(net, 2, axes=axis.key)(model.params)
        small = jc.merge_linear(net, axes=axis.key)(wide)
        sizes = [NetworkState.of(net.structure, p, None).size(axis) for p in (wide, small)]
        if sizes[0] == axis.size:  # one that refine leaves, too
            continue
        assert sizes[1] <= axis.size
        before, after = (products(net.structure, p, axis) for p in (model.params, small))
        np.testing.assert_allclose(after, before, atol=2e-6 * np.abs(before).max())


@pytest.mark.parametrize("name", ["linear_mlp", "fused_qkv", "counted_loop"])
def test_merged_networks_run(name):
    model, net = network(name)
    wide = jc.refine(net, 2)(model.params)
    small = jc.merge_linear(net)(wide)
    assert jc.stored_numbers(small) < jc.stored_numbers(wide)
    close(net(small, *model.inputs), model.apply(model.params, *model.inputs), tol=1e-4)


def test_two_dense_layers_become_as_narrow_as_they_can_and_moments_follow():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 9), "bias": (9,), "b": (9, 7), "c": (7, 6)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}

    def apply(p, x):
        return jnp.tanh((x @ p["a"] + p["bias"]) @ p["b"]) @ p["c"]

    net = jc.trace(apply, params, X)
    moments = jc.calibrate(net, params, [X], progress=False)
    small, carried = jc.merge_linear(net).apply(params, moments)
    assert small["a"].shape == (3, 4)  # three inputs and a constant
    assert error(net, params, small, (X,)) < 1e-5
    fresh = jc.calibrate(net, small, [X], progress=False)
    np.testing.assert_allclose(carried["a:1"].cov, fresh["a:1"].cov, atol=1e-4)
    assert jax.tree.all(jax.tree.map(np.array_equal, jc.merge_linear(net)(small), small))


# --- linearize ------------------------------------------------------------------------------------


def block(activation, p, x):
    return activation(x @ p["up"] + p["bias"]) @ p["down"] + p["last"]


@functools.cache
def problem(activation=jax.nn.relu, on=12, units=16, shift=30.0):
    """A layer with some units so far on that they are affine on all data."""
    rng = np.random.default_rng(1)
    shapes = {"up": (3, units), "bias": (units,), "down": (units, 5), "last": (5,)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    params["bias"] = params["bias"].at[:on].add(shift)
    net = jc.trace(functools.partial(block, activation), params, X)
    return net, params


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.gelu, jax.nn.silu, jax.nn.leaky_relu])
def test_without_tolerance_linear_units_replace_all_that_are_always_on(activation):
    net, params = problem(activation)
    small = jc.linearize(net, [X], tolerance=0, progress=False)(params)
    assert small["up"].shape[1] <= 7  # four that bend, and the rank of the others
    assert error(net, params, small, (X,)) < 1e-3  # a millionth of the power is rounding


def test_a_layer_may_end_as_a_linear_map():
    net, params = problem(on=16)
    transform = jc.linearize(net, [X], tolerance=0, progress=False)
    small, moments = transform.apply(params)
    assert small["up"].shape == (3, 3)
    assert error(net, params, small, (X,)) < 1e-4
    assert moments["up:1"].mean.shape == (1, 3)
    text = str(transform.plan(params))
    assert "3 of 16" in text
    assert "100% of the units are linear on the data, 0% of the results' variance is not" in text


def test_the_best_direction_replaces_many_units_that_are_nearly_linear():
    """Small inputs of tanh: one linear unit for each of the three ranks, against three of them."""
    net, params = problem(jnp.tanh, on=0, units=40)
    params = {**params, "up": params["up"] * 0.3, "bias": params["bias"] * 0.3}
    moments = jc.calibrate(net, params, [X], progress=False)
    linear = jc.linearize(net, [X], keep=3 / 40, progress=False)(params, moments)
    plain = jc.rotate_and_prune(net, keep=3 / 40)(params, moments)
    ours, theirs = (error(net, params, small, (X,)) for small in (linear, plain))
    assert ours < 0.8 * theirs


def test_it_shares_a_budget_and_names_what_it_leaves():
    rng = np.random.default_rng(2)
    shapes = {"up": (3, 16), "bias": (16,), "mid": (16, 12), "down": (12, 5), "last": (5,)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}

    def apply(p, x):
        h = jax.nn.relu(x @ p["up"] + p["bias"])
        return jax.nn.relu(h @ p["mid"]) @ p["down"] + p["last"]

    net, total = jc.trace(apply, params, X), jc.budget(0.7)
    moments = jc.calibrate(net, params, [X], sensitivity=True, progress=False)
    linear = jc.linearize(net, [X], total, progress=False)
    text = str(linear.plan(params, moments))
    assert re.search(r"mid:1 .*left as it is: it has no bias", text)
    both = jc.together(linear, jc.at("down", jc.factored(total)))
    small = both(params, moments)
    stored = jc.stored_numbers(small) / jc.stored_numbers(params)
    assert 0.55 < stored <= 0.7
    assert np.isfinite(error(net, params, small, (X,)))
    with pytest.raises(ValueError, match="no axis has a place for a linear map: mid:1: it has no"):
        jc.linearize(net, [X], 1 / 2, axes="mid", progress=False)(params)


@pytest.mark.parametrize(
    "name", ["encoder_linen", "convnet", "lstm", "stacked_scan"]
)
def test_every_kind_of_network_is_linearized_or_left_with_a_reason(name):
    model, net = network(name)
    inputs = model.resize(64, 6)
    transform = jc.linearize(net, [inputs], keep=1 / 2, progress=False)
    reasons = {"lstm": "gates", "stacked_scan": "fibres", "convnet": "window"}
    if name in reasons:
        with pytest.raises(ValueError, match=reasons[name]):
            transform(model.params)
        return
    small = transform(model.params)
    assert jc.stored_numbers(small) < jc.stored_numbers(model.params)
    assert error(net, model.params, small, inputs) < 0.5


def test_a_projection_that_all_layers_read_is_a_linear_axis():
    model = MLP((8, 8, 4), linear=6)
    params = model.init(jax.random.key(0), X)["params"]
    net = jc.trace(lambda p, x: model.apply({"params": p}, x), params, X)
    assert net.axes["linear/kernel:1"].kind == "linear"
    small = jc.merge_linear(net)(params)
    assert small["linear"]["kernel"].shape == (3, 3)
    assert error(net, params, small, (X,)) < 1e-5
