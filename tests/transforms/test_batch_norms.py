"""Batch norms folded, renewed, and as the guide of a cut without data."""

import helpers_norms
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_norms import NORMED
from helpers_table import vectors

import jaxcompress as jc
from jaxcompress.networks.batch_norms import numbers_of


def traced(name):
    case = NORMED[name]()
    return case, jc.trace(case.apply, case.params, *case.inputs)


# --- folds ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:fold_batchnorm leaves")
@pytest.mark.parametrize("name", NORMED)
def test_a_fold_keeps_the_function(name):
    """Law: the outputs are those of before to rounding, and a folded norm does nothing else."""
    case, net = traced(name)
    fold = jc.fold_batchnorm(net)
    folded = fold(case.params)
    expected = net(case.params, *case.inputs)
    np.testing.assert_allclose(net(folded, *case.inputs), expected, rtol=2e-4, atol=2e-4)
    for located in fold.located():
        if not located.norm.obstacle:
            numbers = numbers_of(net, located, folded)
            np.testing.assert_allclose(numbers.factor(located.norm.epsilon), 1, rtol=1e-5)
    again = fold(folded)  # idempotent
    for one, two in zip(jax.tree.leaves(folded), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_what_stays_is_named():
    """A norm of an activation cannot go into the kernel before it."""
    case, net = traced("linen_perceptron")
    with pytest.warns(UserWarning, match="leaves 1 norms: batch_stats/BatchNorm_2/var"):
        jc.fold_batchnorm(net)(case.params)


def test_a_network_without_norms_is_refused():
    """The message says what to do in training mode."""
    net = jc.trace(lambda p, x: x @ p, jnp.ones((3, 2)), jnp.ones((5, 3)))
    with pytest.raises(ValueError, match="trace the function in inference mode"):
        jc.fold_batchnorm(net)


def test_moments_follow_a_fold():
    """Law: gains and the reference of folded parameters are those that calibration gives."""
    case, net = traced("hand_in_order")
    folded, moved = jc.fold_batchnorm(net).apply(case.params, calibrated(net, case.params, case))
    fresh = calibrated(net, folded, case)
    for key, gain in fresh.gains.items():
        np.testing.assert_allclose(moved.gains[key].cov, gain.cov, rtol=1e-3, atol=1e-6)
    for one, two in zip(*map(jax.tree.leaves, (moved.reference, folded)), strict=True):
        np.testing.assert_array_equal(one, two)


def calibrated(net, params, case):
    return jc.calibrate(net, params, [case.inputs], sensitivity=True, progress=False)


# --- statistics -----------------------------------------------------------------------------------


def test_renewed_statistics_are_those_of_training_mode():
    """Law: all data as one batch in training mode gives them, layer by layer."""
    module, (x,) = helpers_norms.Perceptron(train=True), vectors(12, 1)
    case, net = traced("linen_perceptron")
    _, trained = module.apply(case.params, x, mutable=["batch_stats"])
    fresh = jc.recalibrate(net, [x[:5], x[5:]], norms=True, progress=False)(case.params)
    for one, two in zip(*map(jax.tree.leaves, (fresh["batch_stats"], trained["batch_stats"]))):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    for one, two in zip(*map(jax.tree.leaves, (fresh["params"], case.params["params"]))):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["equinox_batch", "hand_in_order"])
def test_renewed_statistics_normalise(name):
    """Law: after it every norm gives its shift in the mean and its scale as the deviation."""
    case, net = traced(name)
    cut = jc.rotate_and_prune(net, 1 / 2, method="l1")(case.params)
    renew = jc.recalibrate(net, [case.inputs], norms=True, progress=False)
    renewed = renew(cut)
    again = renew(renewed)
    for one, two in zip(jax.tree.leaves(renewed), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    assert np.isfinite(net(renewed, *case.inputs)).all()
