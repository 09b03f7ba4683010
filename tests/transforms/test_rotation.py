"""rotate_and_prune: exact where possible, better than its controls elsewhere, or refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import calibrated, close, error, mlp, mlp_params, network
from helpers_models import MODELS
from laws import matrix

import jaxcompress as jc
from jaxcompress.transforms.network_state import NetworkState
from jaxcompress.transforms.norm_rotation import rotate_normalised
from jaxcompress.transforms.selection import System, greedy

# --- redundant units ------------------------------------------------------------------------------


def with_redundant_units(kind):
    """Of 8 units in the first layer, the last 4 are functions of the first 4, or constant."""
    params = mlp_params((5, 8, 6, 3))
    w, b = params["w0"], params["b0"]
    if kind == "duplicate":
        w, b = w.at[:, 4:].set(w[:, :4]), b.at[4:].set(b[:4])
    elif kind == "scaled duplicate":  # a positive factor passes through the relu
        factor = jnp.array([0.5, 2.0, 3.0, 0.1])
        w, b = w.at[:, 4:].set(w[:, :4] * factor), b.at[4:].set(b[:4] * factor)
    elif kind == "constant":  # always off, or always on
        w, b = w.at[:, 4:].set(0), b.at[4:].set(jnp.array([-1.0, 0.7, -0.2, 2.0]))
    return {**params, "w0": w, "b0": b}


@pytest.mark.parametrize("kind", ["duplicate", "scaled duplicate", "constant"])
def test_redundant_units_vanish(kind):
    params = with_redundant_units(kind)
    x = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    net = jc.trace(mlp, params, x)
    moments = jc.calibrate(net, params, [x], progress=False)
    small = jc.rotate_and_prune(net, 1 / 2, axes="w0")(params, moments)
    assert small["w0"].shape == (5, 4)
    assert error(net, params, small, (x,)) < 1e-5


@pytest.mark.usefixtures("optimised")
def test_linearly_dependent_units_vanish():
    """Half of a linear axis depends on the other half, by any combination, of either sign."""
    params = mlp_params((5, 8, 6, 3))
    mix = jnp.asarray(np.random.default_rng(1).normal(size=(4, 4)), jnp.float32)
    params |= {
        "w0": params["w0"].at[:, 4:].set(params["w0"][:, :4] @ mix),
        "b0": params["b0"].at[4:].set(params["b0"][:4] @ mix),
    }

    def linear(p, x):
        return jax.nn.relu((x @ p["w0"] + p["b0"]) @ p["w1"] + p["b1"]) @ p["w2"]

    x = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    net = jc.trace(linear, params, x)
    moments = jc.calibrate(net, params, [x], progress=False)
    for method in ("auto", "select"):
        small = jc.rotate_and_prune(net, 1 / 2, axes="w0", method=method)(params, moments)
        assert error(net, params, small, (x,)) < 2e-5, method


def test_dependent_features_after_a_nonlinearity_vanish():
    """Units whose activations are dependent and whose weights are not: relu(z) - relu(-z) = z."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(5, 1)), jnp.float32)
    params = {
        "up": jnp.concatenate([w, -w, 2 * w, -0.5 * w], axis=1),
        "down": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32),
    }

    def apply(p, x):
        return jax.nn.relu(x @ p["up"]) @ p["down"]

    x = rng.normal(size=(100, 5)).astype(np.float32)
    net = jc.trace(apply, params, x)
    small = jc.rotate_and_prune(net, 1 / 2)(params, jc.calibrate(net, params, [x], progress=False))
    assert small["up"].shape == (5, 2)
    assert error(net, params, small, (x,)) < 1e-5


# --- every model ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.* is selected, not :UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_pruned_and_runs(name):
    model, net, inputs, moments = calibrated(name)
    transform = jc.rotate_and_prune(net, 3 / 4)
    small, after = transform.apply(model.params, moments)
    assert jc.stored_numbers(small) < jc.stored_numbers(model.params)
    assert jax.tree.structure(small) == jax.tree.structure(model.params)
    lost = error(net, model.params, small, inputs)
    chance = [
        error(
            net,
            model.params,
            jc.rotate_and_prune(net, 3 / 4, method="random", seed=s)(model.params),
            inputs,
        )
        for s in range(3)
    ]
    assert lost < np.median(chance)
    assert np.isfinite(lost)
    # the moments are those of the smaller network: a second transform in a chain can use them
    again = jc.rotate_and_prune(net, 3 / 4)(small, after)
    assert np.isfinite(error(net, model.params, again, inputs))
    assert jc.rotate_and_prune(net, 1)(model.params, moments) is not model.params
    close(
        net(jc.rotate_and_prune(net, 1)(model.params, moments), *inputs), net(model.params, *inputs)
    )


def test_moments_follow_a_chain():
    """After a cut the carried moments are exact for its axis, and their shapes fit everywhere."""
    params = mlp_params((5, 8, 6, 3))
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    net = jc.trace(mlp, params, x)
    moments = jc.calibrate(net, params, [x], progress=False)
    small, carried = jc.rotate_and_prune(net, 1 / 2, axes="w0").apply(params, moments)
    fresh = jc.calibrate(net, small, [x], progress=False)
    np.testing.assert_allclose(carried["w0:1"].cov, fresh["w0:1"].cov, atol=1e-5)
    np.testing.assert_allclose(carried["w0:1"].mean, fresh["w0:1"].mean, atol=1e-5)
    assert carried["w1:1"].cov.shape == fresh["w1:1"].cov.shape


def test_a_fold_beats_the_selection_alone():
    params = mlp_params((5, 40, 30, 3))
    x = np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32)
    net = jc.trace(mlp, params, x)
    moments = jc.calibrate(net, params, [x], progress=False)
    lost = {
        m: error(net, params, jc.rotate_and_prune(net, 1 / 2, method=m)(params, moments), (x,))
        for m in ("auto", "magnitude", "l1")
    }
    assert lost["auto"] < 0.2 * min(lost["magnitude"], lost["l1"])


def test_rotations_beat_selections_where_they_are_legal():
    for name in (
        "linear_mlp",
        "linear_rms",
    ):  # several cuts at once: only a wide margin is no matter of luck
        model, net, inputs, moments = calibrated(name)
        keep = {axis.key: 0.6 for axis in net.axes if axis.kind in ("linear", "rms")}
        lost = {
            m: error(
                net,
                model.params,
                jc.rotate_and_prune(net, keep, method=m)(model.params, moments),
                inputs,
            )
            for m in ("auto", "select")
        }
        assert lost["auto"] < lost["select"], (name, lost)


def test_folding_a_norms_scale_changes_nothing():
    """A rotation at full width keeps the function, since the scale is in the consumers."""
    model, net, inputs, moments = calibrated("linear_rms")
    axis = next(axis for axis in net.axes if axis.kind == "rms")
    state = NetworkState.of(net.structure, model.params, moments)
    rotated = state.applied(axis, rotate_normalised(state, axis, axis.size))
    assert error(net, model.params, rotated.params(), inputs) < 1e-5


def test_queries_and_keys_at_the_rank_of_their_product():
    """Heads whose queries span half of their size lose nothing at half the size."""
    model, net = network("encoder_by_hand")
    params = jax.tree.map(np.array, model.params)
    for block in params["blocks"]:
        for name in ("wq", "bq"):
            block[name] = block[name].reshape(*block[name].shape[:-1], 3, 4)
            block[name][..., 2:] = block[name][..., :2] @ np.array(
                [[0.3, -1.0], [0.8, 0.2]], np.float32
            )
            block[name] = block[name].reshape(*block[name].shape[:-2], 12)
    inputs = model.resize(64, 6)
    moments = jc.calibrate(net, params, [inputs], progress=False)
    axes = {axis.key: 1 / 2 for axis in net.axes if axis.pair}
    small = jc.rotate_and_prune(net, axes)(params, moments)
    assert small["blocks"][0]["wq"].shape == (18, 6)
    assert error(net, params, small, inputs) < 1e-4


def test_weights_alone():
    model, net, inputs, _ = calibrated("linear_mlp")
    small = jc.rotate_and_prune(net, 3 / 4)(model.params)
    assert error(net, model.params, small, inputs) < 0.2
    assert "keep=0.75" in repr(jc.rotate_and_prune(net, 3 / 4))
    assert (
        jc.rotate_and_prune(net, 3 / 4)
        == jc.rotate_and_prune(net, 3 / 4)
        != jc.rotate_and_prune(net, 1 / 2)
    )


# --- refusals -------------------------------------------------------------------------------------


def test_bad_arguments():
    params, x = mlp_params((5, 8, 6, 3)), np.ones((4, 5), np.float32)
    net = jc.trace(mlp, params, x)
    for keep in (0, 1.5, -1, "half"):
        with pytest.raises(ValueError, match="keep"):
            jc.rotate_and_prune(net, keep)
    with pytest.raises(ValueError, match="unknown"):
        jc.rotate_and_prune(net, 1 / 2, method="best")
    with pytest.raises(ValueError, match=r"matches no hidden axis.*w0:1, w1:1"):
        jc.rotate_and_prune(net, 1 / 2, axes="w7")(params)
    with pytest.raises(TypeError, match=r"jc\.trace"):
        jc.rotate_and_prune(mlp, 1 / 2)
    with pytest.raises(TypeError, match="axes="):
        jc.at("w0", jc.rotate_and_prune(net, 1 / 2))
    with pytest.raises(TypeError, match="axes="):
        jc.partition({"a": jc.rotate_and_prune(net, 1 / 2)}, "a")
    with pytest.raises(TypeError, match="calibrate"):
        jc.rotate_and_prune(net, 1 / 2)(params, {"w0": np.eye(5)})
    with pytest.raises(ValueError, match="w0 contains NaN"):
        jc.rotate_and_prune(net, 1 / 2)({**params, "w0": params["w0"] * np.nan})
    with pytest.raises(ValueError, match="w0 is compact"):
        jc.rotate_and_prune(net, 1 / 2)(jc.at("w0", jc.factored(1 / 2))(params))
    with pytest.raises(ValueError, match="not the traced parameters"):
        jc.rotate_and_prune(net, 1 / 2)({"w0": params["w0"]})
    more = {**params, **dict.fromkeys(("z", "y", "x", "v", "u"), params["w0"])}
    with pytest.raises(ValueError, match=re.escape("['u', 'v', 'x', 'y', 'z'] differ")):
        jc.rotate_and_prune(net, 1 / 2)(more)


def test_illegal_maps_are_refused_with_their_reason():
    reasons = {
        "mlp_linen": ("params/layers_0/kernel", "a nonlinearity acts on its channels"),
        "encoder_by_hand": ("blocks/*/up/w", "a nonlinearity acts on its channels"),
        "encoder_linen": ("params/*/Dense_1/kernel", "a norm follows each addition"),
    }
    for name, (axes, why) in reasons.items():
        model, net = network(name)
        with pytest.raises(ValueError, match=why):
            jc.rotate_and_prune(net, 1 / 2, axes=axes, method="rotate")(model.params)
    model, net = network("linear_mlp")
    assert jc.rotate_and_prune(net, 1 / 2, method="rotate")(model.params) is not None
    with pytest.raises(
        ValueError, match=r"layers_2/kernel:1 is refused: it is visible in the outputs"
    ):
        jc.rotate_and_prune(net, 1 / 2, axes="params/layers_2/kernel")(model.params)


PAIRS = {
    "nonlinear": lambda p, x: jax.nn.relu(x @ p["q"]) @ jax.nn.relu(x @ p["k"]).T @ p["out"],
    "scaled": lambda p, x: (x @ p["q"] * p["g"]) @ (x @ p["k"]).T @ p["out"],
    "consumed": lambda p, x: (x @ p["q"]) @ (x @ p["k"]).T @ p["out"] + x @ p["q"] @ p["d"],
    "of one parameter": lambda p, x: (x @ p["q"]) @ (jnp.roll(x, 1, 0) @ p["q"]).T @ p["out"],
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_two_sides_of_a_product_rotate_where_nothing_else_uses_it(name):
    shapes = {"q": (5, 4), "k": (5, 4), "g": (4,), "d": (4, 3), "out": (6, 3)}
    params = {name: matrix(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}
    x = matrix(6, 5, seed=9)
    net = jc.trace(PAIRS[name], params, x)
    axis = next(axis for axis in net.axes if axis.pair)
    why = "products of activations, or one parameter" if name == "of one parameter" else "use it"
    with pytest.raises(ValueError, match=f"{axis.key} cannot be rotated: .*{why}"):
        jc.rotate_and_prune(net, 1 / 2, axes=axis.key, method="rotate")(params)


def test_the_two_sides_of_a_product_rotate():
    params = {name: matrix(5, 4, seed=n) for n, name in enumerate("qk")}
    params["out"] = matrix(6, 3, seed=2)
    x = matrix(6, 5, seed=9)
    net = jc.trace(lambda p, x: (x @ p["q"]) @ (x @ p["k"]).T @ p["out"], params, x)
    small = jc.rotate_and_prune(net, 1 / 2, method="rotate")(params)
    assert small["q"].shape == small["k"].shape == (5, 2)


def test_heads_that_the_shapes_do_not_determine_are_cut_only_when_named(caplog):
    """In a fused product the number of heads cannot be read off the parameters."""
    model, net, inputs, moments = calibrated("encoder_by_hand", 32)
    heads = [axis.key for axis in net.axes if axis.size == 3]
    with caplog.at_level("INFO"):
        small = jc.rotate_and_prune(net, 2 / 3)(model.params, moments)
    assert f"{heads[0]} is not changed: its size cannot be read off" in caplog.text
    assert error(net, model.params, small, inputs) < 2
    cut = jc.rotate_and_prune(net, 2 / 3, axes=heads[0])(model.params, moments)
    sized = net.resized({heads[0]: 2})
    assert np.isfinite(error(sized, cut, cut, inputs))
    assert sized(cut, *inputs).shape == net(model.params, *inputs).shape


@pytest.mark.parametrize("measured", [True, False])
def test_the_weights_alone_decide_without_moments_and_that_is_said(measured, caplog):
    _, net, _, moments = calibrated("linear_mlp", 32)
    model, _ = network("linear_mlp")
    with caplog.at_level("INFO"):
        jc.rotate_and_prune(net, 1 / 2)(model.params, moments if measured else None)
    assert ("it uses the weights alone" in caplog.text) is not measured


def test_recalibration_in_a_chain():
    params = mlp_params((5, 16, 12, 3))
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    net = jc.trace(mlp, params, x)
    moments = jc.calibrate(net, params, [x], progress=False)
    first, second = (jc.rotate_and_prune(net, 1 / 4, axes=axes) for axes in ("w0", "w1"))
    fresh = jc.recalibrate(net, [x], progress=False)
    small, after = jc.chain(first, fresh, second).apply(params, moments)
    np.testing.assert_allclose(
        after["w0:1"].cov, jc.calibrate(net, small, [x], progress=False)["w0:1"].cov, atol=1e-4
    )
    with pytest.raises(TypeError, match="axes="):
        jc.at("w0", fresh)
    with pytest.raises(TypeError, match="give a list"):
        jc.recalibrate(net, iter([x]))


def test_energy_gives_the_least_size_that_keeps_a_share():
    params = mlp_params((5, 24, 16, 3))
    x = np.random.default_rng(0).normal(size=(500, 5)).astype(np.float32)

    def linear(p, x):
        return (x @ p["w0"]) @ p["w1"]

    params = {name: params[name] for name in ("w0", "w1")}
    net = jc.trace(linear, params, x)
    moments = jc.calibrate(net, params, [x], progress=False)
    sizes = []
    for energy in (0.5, 0.9, 0.99, 1):
        shrink = jc.rotate_and_prune(net, energy=energy)
        small = shrink(params, moments)
        sizes.append(small["w0"].shape[1])
        assert error(net, params, small, (x,)) ** 2 <= 1 - energy + 1e-6
        assert shrink.plan(params, moments).shares[0].detail == f"{sizes[-1]} of 24"
    fewer = jc.rotate_and_prune(net, (sizes[1] - 1) / 24)(params, moments)
    assert error(net, params, fewer, (x,)) ** 2 > 0.1
    assert sizes == sorted(sizes)
    assert sizes[-1] == 5  # the inputs have five directions
    assert re.fullmatch(
        r"rotate_and_prune\(<1 hidden axes, \w{8}>, energy=0.9\)",
        repr(jc.rotate_and_prune(net, energy=0.9)),
    )
    for both in ({}, {"keep": 0.5, "energy": 0.5}):
        with pytest.raises(ValueError, match="either keep or energy"):
            jc.rotate_and_prune(net, **both)
    with pytest.raises(ValueError, match=r"energy must be in \(0, 1\]"):
        jc.rotate_and_prune(net, energy=2)


def test_folds_from_few_vectors_are_shrunk(caplog):
    """A fold that interpolates fewer vectors than channels is far worse than none on other data."""
    width = 48
    params = {f"w{i}": matrix(width, width, seed=i) * (2 / width) ** 0.5 for i in range(4)}
    params |= {"a": matrix(8, width, seed=8) / 2, "b": matrix(width, 5, seed=9) / 8}

    def apply(p, x):
        h = jax.nn.relu(x @ p["a"])
        for i in range(4):
            h = jax.nn.relu(h @ p[f"w{i}"])
        return h @ p["b"]

    other = matrix(500, 8, seed=11)
    net = jc.trace(apply, params, other)
    prune = jc.rotate_and_prune(net, keep=1 / 2)
    errors = [error(net, params, prune(params), (other,))]
    for count in (4, 24, 400):
        moments = jc.calibrate(net, params, [matrix(count, 8, seed=12)], progress=False)
        errors.append(error(net, params, prune(params, moments), (other,)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2
    assert "was measured on 24 vectors in" in caplog.text


@pytest.mark.parametrize(
    ("name", "up", "down", "others"),
    [("stacked_scan", "w1", "w2", ("b1",)), ("experts", "up", "down", ("bias",))],
)
def test_every_layer_and_every_expert_keeps_units_of_its_own(name, up, down, others):
    """Half of the units are twins of the others, in an order that differs from layer to layer."""
    model, net = network(name)
    whole = model.params
    params = dict(whole["layers"]) if name == "stacked_scan" else dict(whole)
    count, _, width = params[up].shape
    twins = [
        np.random.default_rng(layer).permutation(width) % (width // 2) for layer in range(count)
    ]
    for leaf in (up, *others):
        params[leaf] = jnp.stack(
            [params[leaf][layer][..., order] for layer, order in enumerate(twins)]
        )
    params = {**whole, "layers": params} if name == "stacked_scan" else params
    x = (
        jnp.asarray(
            np.random.default_rng(9).normal(size=(400, *model.inputs[0].shape[1:])), jnp.float32
        ),
    )
    (axis,) = [
        row
        for row in net.axes
        if any(slot.leaf.endswith(up) for slot in row.producers) and row.kind == "elementwise"
    ]
    assert axis.fibres
    small = jc.rotate_and_prune(net, keep=1 / 2, axes=axis.key)(
        params, jc.calibrate(net, params, [x], progress=False)
    )
    close(net(small, *x), model.apply(params, *x), 1e-4)
    kept = small["layers"][up] if name == "stacked_scan" else small[up]
    assert kept.shape[-1] == width // 2


def test_channels_whose_inputs_depend_on_each_other_are_chosen_from():
    """A channel of several inputs of rank one has a singular block, negative by rounding."""
    rng = np.random.default_rng(0)
    few = rng.standard_normal((400, 4))
    inputs = np.concatenate([few, few @ rng.standard_normal((4, 8))], axis=1)
    moments, where = inputs.T @ inputs / 400, np.arange(12).reshape(1, 3, 4)
    (chosen,), errors = greedy([System(moments, rng.standard_normal((12, 3)), where)], 1)
    assert len(chosen) == 1
    assert errors[1] < 1e-6 * errors[0]  # one channel explains them all
