"""Recurrent networks: their axes, written out as layers, and their kernels solved anew."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close, error
from helpers_recurrent import CELLS
from helpers_table import draw
from jax import lax
from laws import matrix

import jaxcompress as jc
from jaxcompress.arrays.paths import named_leaves

JOINT = {
    "linen_lstm": 4,
    "linen_optimized_lstm": 1,
    "linen_gru": 2,
    "linen_stacked": 4,
    "nnx_lstm": 1,
    "equinox_lstm": 1,
    "two_kernels": 1,
}
"""In how many problems two kernels are solved together; none where one kernel takes in both."""


@functools.cache
def traced(name):
    model = CELLS[name]()
    net = jc.trace(model.apply, model.params, *model.inputs)
    return model, net, jc.calibrate(net, model.params, [model.inputs], progress=False)


@pytest.mark.parametrize("name", CELLS)
def test_the_state_is_one_axis_through_gates_and_time(name):
    model = CELLS[name]()
    net = jc.trace(model.apply, model.params, *model.inputs)
    written_out = jc.unrolled(net)
    for axis in net.axes:
        assert axis.kind == "elementwise"
        assert dataclasses.replace(written_out.axes[axis.key], fibres=axis.fibres) == axis
    assert len(net.axes) == len(written_out.axes) == (3 if name == "linen_stacked" else 1)
    program = net.traced_program(model.params, *model.inputs)
    problems = sum(len({part.site for part in parts}) > 1 for parts in set(program.analysis.sums))
    assert problems >= JOINT.get(name, 0)


@pytest.mark.parametrize("name", ["two_kernels", "linen_optimized_lstm"])
def test_written_out_it_is_the_same_function_with_the_same_moments(name):
    model, net, moments = traced(name)
    written_out = jc.unrolled(net)
    close(written_out(model.params, *model.inputs), net(model.params, *model.inputs), 1e-6)
    longer = np.concatenate([model.inputs[0]] * 2, axis=1)
    close(written_out(model.params, longer), net(model.params, longer), 1e-6)
    again = jc.calibrate(written_out, model.params, [model.inputs], progress=False).by_leaf()
    assert again.keys() == moments.by_leaf().keys()
    for leaf, metric in moments.by_leaf().items():
        np.testing.assert_allclose(again[leaf], metric, atol=1e-6)


def test_gates_side_by_side_are_as_sensitive_as_gates_apart():
    apart, together = CELLS["linen_lstm"](), CELLS["linen_optimized_lstm"]()
    given = {
        "params": {
            "OptimizedLSTMCell_0": apart.params["params"]["LSTMCell_0"],
            "Dense_0": apart.params["params"]["Dense_0"],
        }
    }
    gains = []
    for model, params in ((apart, apart.params), (together, given)):
        net = jc.trace(model.apply, params, *model.inputs)
        moments = jc.calibrate(net, params, [model.inputs], sensitivity=True, progress=False)
        gains.append(moments.gain_by_leaf())
    assert len(gains[0]) == len(gains[1]) == 9
    for leaf, gain in gains[0].items():
        np.testing.assert_allclose(gains[1][leaf.replace("LSTM", "OptimizedLSTM")], gain, rtol=1e-4)


@pytest.mark.parametrize("name", ["two_kernels", "linen_optimized_lstm"])
def test_reconstruction_is_never_worse_and_leaves_a_lossless_cut_as_it_is(name):
    model, net, moments = traced(name)
    again = jc.reconstruct(net, [model.inputs], progress=False)
    cut = jc.rotate_and_prune(net, 2 / 3)
    plain, better = (
        error(net, model.params, t(model.params, moments), model.inputs)
        for t in (cut, jc.chain(cut, again))
    )
    assert better <= plain
    if name != "two_kernels":
        return
    wide = jc.refine(net, 2)(model.params)
    measured = jc.calibrate(net, wide, [model.inputs], progress=False)
    small, after = jc.merge(net, 0.999).apply(wide, measured)
    assert small["turn"].shape == model.params["turn"].shape
    jax.tree.map(np.testing.assert_array_equal, again(small, after), small)


def test_a_loop_and_the_same_written_out_are_solved_alike():
    model, net, moments = traced("two_kernels")
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype("f"), model.params)
    written_out = jc.unrolled(net)
    again = jc.calibrate(written_out, model.params, [model.inputs], progress=False)
    solved = [
        jc.reconstruct(which, [model.inputs], progress=False)(moved, known)
        for which, known in ((net, moments), (written_out, again))
    ]
    close(solved[1], solved[0], 1e-3)
    before, after = (error(net, model.params, p, model.inputs) for p in (moved, solved[0]))
    assert after < before / 2


def test_kernels_whose_products_are_added_up_are_solved_together():
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 8), "b": (8, 3), "c": (5, 10), "d": (10, 3), "e": (3,)}
    params = {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}
    x, y = rng.normal(size=(500, 4)).astype("f"), rng.normal(size=(500, 5)).astype("f")
    y[:, :4] += x

    def hidden(p, x, y):
        return np.maximum(x @ p["a"], 0), np.maximum(y @ p["c"], 0)

    def apply(p, x, y):
        return jax.nn.relu(x @ p["a"]) @ p["b"] + (jax.nn.relu(y @ p["c"]) @ p["d"] + p["e"])

    net = jc.trace(apply, params, x, y)
    moments = jc.calibrate(net, params, [(x, y)], progress=False)
    small = jc.chain(
        jc.rotate_and_prune(net, 1 / 2), jc.reconstruct(net, [(x, y)], progress=False)
    )(params, moments)
    small = {name: np.asarray(leaf, np.float64) for name, leaf in named_leaves(small)}
    design = np.hstack([*hidden(small, x, y), np.ones((500, 1))])
    best = np.linalg.lstsq(design, np.asarray(apply(params, x, y), np.float64), rcond=None)[0]
    for name, part in zip("bde", np.split(best, [4, 9]), strict=True):
        np.testing.assert_allclose(small[name], part.reshape(small[name].shape), atol=5e-3)


def test_a_kernel_is_solved_beside_one_that_stays():
    model, net, moments = traced("two_kernels")
    hashed = jc.at("turn", jc.hashed(3 / 4))
    plain = hashed(model.params, moments)
    better = jc.reconstruct(net, [model.inputs], progress=False)(plain, moments)
    assert isinstance(better["turn"], jc.arrays.HashedArray)
    np.testing.assert_array_equal(better["turn"].materialize(), plain["turn"].materialize())
    assert np.abs(better["enter"] - plain["enter"]).max() > 1e-3
    before, after = (error(net, model.params, p, model.inputs) for p in (plain, better))
    assert after < before


def turned(params, h):
    return jnp.tanh(h @ params["turn"] + params["shift"])


def carried_by_fori(p, x):
    carry = lax.fori_loop(0, 3, lambda _, c: (c[0], turned(*c)), (p, x @ p["enter"]))
    return carry[1] @ p["leave"]


def carried_by_while(p, x):
    carry = p, x @ p["enter"], 0
    carry = lax.while_loop(lambda c: c[2] < 3, lambda c: (c[0], turned(*c[:2]), c[2] + 1), carry)
    return carry[1] @ p["leave"]


@pytest.mark.parametrize("apply", [carried_by_fori, carried_by_while])
def test_parameters_that_a_loop_carries_are_parameters(apply):
    """What every turn hands on as it is does not change from turn to turn."""
    shapes = {"enter": (3, 6), "turn": (6, 6), "shift": (6,), "leave": (6, 2)}
    params, x = draw(shapes), np.asarray(matrix(20, 3))
    net = jc.trace(apply, params, x)
    closed = jc.trace(
        lambda p, x: lax.fori_loop(0, 3, lambda _, h: turned(p, h), x @ p["enter"]) @ p["leave"],
        params,
        x,
    )
    assert net.axes == closed.axes
    assert net.axes.keys() == ["enter:1"]
    moments = jc.calibrate(net, params, [x], progress=False)
    small = jc.rotate_and_prune(net, 2 / 3)(params, moments)
    assert small["turn"].shape == (4, 4)
    close(net(small, x), apply(small, x), 1e-5)
    close(net(params, x), apply(params, x), 1e-6)
