"""merge: correlated units of either sign become one, in every fibre; others stay as they are."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import calibrated, error, mlp, mlp_params, network
from helpers_models import MODELS
from scipy.cluster.hierarchy import linkage

import jaxcompress as jc
from jaxcompress.transforms.merge import cut


def merged(params, threshold=0.999, apply=mlp, count=400):
    x = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    net = jc.trace(apply, params, x)
    small = jc.merge(net, threshold, axes="w0")(
        params, jc.calibrate(net, params, [x], progress=False)
    )
    return small, error(net, params, small, (x,))


def test_groups_of_duplicates_of_any_size_vanish():
    params = mlp_params((5, 8, 6, 3))
    twin = (
        params["w0"]
        .at[:, 4:7]
        .set(params["w0"][:, :1] * jnp.array([1, 2, 0.5]))
        .at[:, 7]
        .set(params["w0"][:, 1])
    )
    bias = (
        params["b0"]
        .at[4:7]
        .set(params["b0"][0] * jnp.array([1, 2, 0.5]))
        .at[7]
        .set(params["b0"][1])
    )
    small, gap = merged({**params, "w0": twin, "b0": bias})
    assert small["w0"].shape == (5, 4)
    assert gap < 1e-5


def test_constant_units_go_into_the_biases():
    params = mlp_params((5, 8, 6, 3))
    still = {
        "w0": params["w0"].at[:, 5:].set(0),
        "b0": params["b0"].at[5:].set(jnp.array([1.0, -1.0, 3.0])),
    }
    small, gap = merged({**params, **still})
    assert small["w0"].shape == (5, 5)
    assert gap < 1e-5


def test_opposite_signs_through_an_odd_function():
    params = mlp_params((5, 8, 6, 3))

    def odd(p, x):
        return jnp.tanh(x @ p["w0"]) @ p["w1"]

    opposite = {"w0": params["w0"].at[:, 4:].set(-params["w0"][:, :4]), "w1": params["w1"]}
    small, gap = merged(opposite, apply=odd)
    assert small["w0"].shape == (5, 4)
    assert gap < 1e-5


def test_what_differs_stays_and_thresholds_order():
    params = mlp_params((5, 24, 6, 3))
    x = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    net = jc.trace(mlp, params, x)
    moments = jc.calibrate(net, params, [x], progress=False)
    same = jc.merge(net, 1.0)(params, moments)
    moving = [
        int((part.cov[0].diagonal() > 0).sum()) for part in (moments["w0:1"], moments["w1:1"])
    ]
    assert [
        same["w0"].shape[1],
        same["w1"].shape[1],
    ] == moving  # units that never change are in the biases
    sizes, errors = [], []
    for threshold in (0.95, 0.8, 0.5):
        small = jc.merge(net, threshold, axes="w0")(params, moments)
        sizes.append(small["w0"].shape[1])
        errors.append(error(net, params, small, (x,)))
        groups = moments["w0:1"].groups(threshold)
        assert sizes[-1] >= 24 - sum(
            len(group) - 1 for group in groups
        )  # chains of neighbours are no group
    assert sizes == sorted(sizes, reverse=True)
    assert errors[0] < errors[-1]
    assert sizes[-1] < 24


@pytest.mark.parametrize(
    "name", ["convnet", "encoder_by_hand", "encoder_rms", "lstm", "stacked_scan", "gru"]
)
def test_every_kind_of_network(name):
    """Windows, heads, loops and layers; the moments follow, and the small network runs."""
    model, net, inputs, moments = calibrated(name)
    small, carried = jc.merge(net, 0.3).apply(model.params, moments)
    assert jc.stored_numbers(small) < jc.stored_numbers(model.params)
    assert np.isfinite(error(net, model.params, small, inputs))
    fresh = jc.calibrate(net, small, [inputs], progress=False)
    for key, statistic in fresh.sites.items():
        assert carried.sites[key].mean.shape == statistic.mean.shape


def test_refusals():
    net = network("mlp_by_hand")[1]
    for threshold in (0, 1.5, True, "high"):
        with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\]"):
            jc.merge(net, threshold)
    with pytest.raises(TypeError, match="merge takes a network"):
        jc.merge({}, 0.9)
    with pytest.raises(ValueError, match="merge compares activations"):
        jc.merge(net, 0.9)(MODELS["mlp_by_hand"]().params)
    assert re.fullmatch(
        rf"merge\(<{len(net.axes)} hidden axes, \w{{8}}>, threshold=0.9\)", repr(jc.merge(net, 0.9))
    )


def test_one_kernel_at_several_places_takes_one_fold():
    rng = np.random.default_rng(0)
    up = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    params = {
        "up": jnp.concatenate([up, 2 * up], 1),
        "down": jnp.asarray(rng.normal(size=(6, 2)), jnp.float32),
    }

    def apply(p, x, z):
        first, second = jnp.maximum(x @ p["up"], 0), 0.01 * jnp.sin(30 * (z @ p["up"]))
        return jnp.concatenate([first @ p["down"], second @ p["down"]], -1)

    inputs = tuple(np.asarray(rng.normal(size=(400, 4)), np.float32) for _ in range(2))
    net = jc.trace(apply, params, *inputs)
    small = jc.merge(net, 0.95)(params, jc.calibrate(net, params, [inputs], progress=False))
    assert small["up"].shape == (4, 3)
    assert error(net, params, small, inputs) < 0.01


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_groups_of_equal_units_are_divided(size):
    """Ties of the tree give one group; units of large effect are split off."""
    effects = np.array([0.5, 3.0, 1.0, 2.0, 0.1, 0.2])
    groups = cut(linkage(np.zeros(15), "complete"), size, effects)
    assert sorted(np.concatenate(groups)) == list(range(6))
    assert len(groups) == size
    alone = [group[0] for group in groups if len(group) == 1]
    assert set(alone) <= {1, 3, 2, 0, 5, 4}
    if 1 < size < 6:
        assert sorted(alone) == sorted(np.argsort(-effects)[: size - 1])
