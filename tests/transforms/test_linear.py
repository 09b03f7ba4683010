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


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.gelu])
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


def test_the_best_directions_say_more_than_as_many_units():
    """Four units of twelve inputs say little of five results, four directions nearly all."""
    rng = np.random.default_rng(1)
    shapes = {"up": (12, 30), "bias": (30,), "down": (30, 5), "last": (5,)}
    params = {k: jnp.asarray(0.3 * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    x = rng.normal(size=(400, 12)).astype(np.float32)
    net = jc.trace(functools.partial(block, jnp.tanh), params, x)
    linear = jc.linearize(net, [x], keep=4 / 30, progress=False)
    plain = jc.rotate_and_prune(net, keep=4 / 30)
    moments = jc.calibrate(net, params, [x], progress=False)
    ours, theirs = (error(net, params, cut(params, moments), (x,)) for cut in (linear, plain))
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


def test_linear_units_that_nothing_consumes_change_nothing():
    """One layer after another, whose names are in the other order."""
    rng = np.random.default_rng(4)
    shapes = {"z": (3, 9), "zb": (9,), "b": (9, 8), "bb": (8,), "a": (8, 4), "ab": (4,)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}

    def apply(p, x):
        h = jax.nn.relu(x @ p["z"] + p["zb"])
        return jnp.tanh(h @ p["b"] + p["bb"]) @ p["a"] + p["ab"]

    net = jc.trace(apply, params, X)
    transform = jc.linearize(net, [X], keep=1 / 2, progress=False)
    offered = transform.offered(params, None)
    wide = offered.after.params()
    assert {part.count for part in offered.parts.values()} == {3, 4}
    assert wide["b"].shape == (12, 12)
    assert error(net, params, wide, (X,)) < 1e-6
    small, moments = transform.apply(params)
    assert small["b"].shape == (4, 4)
    solved = jc.reconstruct(net, [X], progress=False)(small, moments)
    assert error(net, params, solved, (X,)) < 1.05 * error(net, params, small, (X,))


def test_what_a_mask_leaves_out_does_not_count():
    """Rows without weight change nothing, whatever they hold."""
    net, params = problem(on=8)
    keep = np.arange(400) % 3 > 0
    padded = np.where(keep[:, None], X, np.float32(1e3))
    data = jc.Calibration([padded], mask=lambda x: jnp.asarray(keep, jnp.float32))
    parts = []
    for batches in ([X[keep]], data):
        offered = jc.linearize(net, batches, keep=1 / 2, progress=False).offered(params, None)
        parts.append(offered.parts["up:1"])
    assert parts[0].always_on == parts[1].always_on == 1 / 2
    np.testing.assert_allclose(parts[1].mean, parts[0].mean, atol=1e-4)
    np.testing.assert_allclose(parts[1].deviations, parts[0].deviations, rtol=1e-3)


def test_gates_are_left_with_a_reason():
    model, net = network("lstm")
    with pytest.raises(ValueError, match=r"no axis has a place for a linear map: .*gates"):
        jc.linearize(net, [model.inputs], keep=1 / 2, progress=False)(model.params)


def test_a_projection_that_all_layers_read_is_a_linear_axis():
    model = MLP((8, 8, 4), linear=6)
    params = model.init(jax.random.key(0), X)["params"]
    net = jc.trace(lambda p, x: model.apply({"params": p}, x), params, X)
    assert net.axes["linear/kernel:1"].kind == "linear"
    small = jc.merge_linear(net)(params)
    assert small["linear"]["kernel"].shape == (3, 3)
    assert error(net, params, small, (X,)) < 1e-5


# --- bypass ---------------------------------------------------------------------------------------


def test_a_block_that_is_affine_is_replaced_exactly_and_its_parameters_go():
    rng = np.random.default_rng(3)
    shapes = {"enter": (3, 6), "a": (6, 9), "shift": (9,), "b": (9, 6), "last": (6, 4)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}

    def apply(p, x):
        h = jnp.tanh(x @ p["enter"])
        h = h + (h @ p["a"] + p["shift"]) @ p["b"]
        return jax.nn.relu(h) @ p["last"]

    net = jc.trace(apply, params, X)
    small = jc.transforms.bypass(net, params, [X], ("a", "b", "shift"))
    assert set(small.params) == {"enter", "last", "bypass"}
    assert small.unexplained < 1e-5
    expected = np.asarray(apply(params, X[:7]))  # of another batch size
    np.testing.assert_allclose(small.net(small.params, X[:7]), expected, atol=2e-3)
    pruned = jc.rotate_and_prune(small.net, 1 / 2)(small.params)
    assert np.isfinite(np.asarray(small.net(pruned, X))).all()


def test_a_layer_of_an_encoder_is_what_least_squares_says():
    model, net = network("encoder_by_hand")
    ids, mask = model.resize(64, 6)
    first = jc.transforms.bypass(net, model.params, [(ids, mask)], "blocks/0/**")
    assert not any(name.startswith("blocks/0") for name in first.net.structure.layouts)
    assert 0 < first.unexplained < 1
    both = jc.transforms.bypass(first.net, first.params, [(ids, mask)], "blocks/1/**")
    assert set(both.params["bypass"]) == {"0", "1"}
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    x = p["words"][np.asarray(ids)] + p["positions"][: ids.shape[1]]
    for layer in ("0", "1"):
        kernel, bias = (both.params["bypass"][layer][name] for name in ("kernel", "bias"))
        x = x @ np.asarray(kernel, np.float64) + np.asarray(bias, np.float64)
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    x = (x - mean) / np.sqrt(var + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
    expected = x[:, 0] @ p["classifier"]["w"] + p["classifier"]["b"]
    np.testing.assert_allclose(both.net(both.params, ids, mask), expected, atol=1e-4)


def test_what_is_no_block_is_refused():
    model, net = network("encoder_by_hand")
    data = [model.inputs]
    for leaves, why in {
        "words": "is not behind a single value",
        ("norm/*", "classifier/*"): "no single value of the same positions comes",
        "blocks/0/up/w": "the block also has blocks/0/down/b",
        "nothing": "matches no leaf",
    }.items():
        with pytest.raises(ValueError, match=f"bypass.*{why}"):
            jc.transforms.bypass(net, model.params, data, leaves)
    small = jc.rotate_and_prune(net, 1 / 2, axes="blocks/0/up/w:1")(model.params)
    with pytest.raises(ValueError, match="has another size than when the network was traced"):
        jc.transforms.bypass(net, small, data, "blocks/1/**")
    compact = jc.at("**/up/w", jc.hashed(1 / 2))(model.params)
    with pytest.raises(ValueError, match="is compact: bypass blocks before"):
        jc.transforms.bypass(net, compact, data, "blocks/1/**")
