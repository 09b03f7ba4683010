"""Batch norms folded, renewed, and as the guide of a cut without data."""

import dataclasses

import helpers_norms
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_norms import NORMED, in_order
from helpers_table import vectors
from scipy.special import ndtr

import jaxcompress as jc
from jaxcompress.moments.unit_distributions import Units, coverage, unit_distributions
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


# --- cuts -----------------------------------------------------------------------------------------


WIDTH = 8


def perceptron(activation):
    """Inputs, a norm with exact statistics for standard normal ones, a consumer with a norm."""

    def apply(p, x):
        h = activation(in_order(p["one"], x @ p["up"]))
        return in_order(p["two"], h @ p["down"])

    rng = np.random.default_rng(0)
    up = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    one = {"mean": np.zeros(WIDTH), "var": np.ones(WIDTH) - 1e-3}
    one |= {"scale": rng.uniform(0.3, 1.5, WIDTH), "shift": rng.normal(size=WIDTH)}
    two = {"mean": np.zeros(3), "var": np.ones(3), "scale": np.ones(3), "shift": np.zeros(3)}
    params = {"up": up, "one": one, "down": rng.normal(size=(WIDTH, 3)), "two": two}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return apply, params, jc.trace(apply, params, jnp.ones((5, WIDTH)))


ACTIVATIONS = [jax.nn.relu, jax.nn.gelu, jax.nn.silu, jnp.tanh, jax.nn.relu6, jax.nn.leaky_relu]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda function: function.__name__)
def test_distributions_are_those_of_normal_inputs(activation):
    """Law: mean and variance of each unit over many samples, whatever the activation."""
    _, params, net = perceptron(activation)
    units = unit_distributions(net, params)["down#0"].units
    x = np.random.default_rng(1).normal(size=(20_000, WIDTH)).astype(np.float32)
    h = np.asarray(activation(in_order(params["one"], x @ params["up"])))
    np.testing.assert_allclose(units.mean, h.mean(0), atol=0.03)
    np.testing.assert_allclose(units.variance, h.var(0), rtol=0.06, atol=1e-3)


def test_a_rectified_unit_in_closed_form():
    """Law: quadrature gives E max(z, 0) and E max(z, 0)^2 of a normal variable."""
    mean, deviation = np.array([-2.0, -0.3, 0.0, 1.7]), np.array([0.7, 1.0, 0.1, 2.0])
    one = Units.of_normal(mean, deviation, None)
    units = dataclasses.replace(one, samples=jnp.maximum(one.samples, 0))
    z = mean / deviation
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    first = mean * ndtr(z) + deviation * density
    second = (mean**2 + deviation**2) * ndtr(z) + mean * deviation * density
    np.testing.assert_allclose(units.mean, first, rtol=1e-3)
    np.testing.assert_allclose(units.variance + units.mean**2, second, rtol=1e-3)


def test_the_predicted_error_is_the_measured_one():
    """Law: of independent normal pre-activations, by unit and of a cut."""
    apply, params, net = perceptron(jax.nn.relu)
    prune = jc.prune_batchnorm(net, 1 / 2, rescale=False)
    x = np.random.default_rng(1).normal(size=(20_000, WIDTH)).astype(np.float32)
    whole = np.asarray(apply(params, x))
    gap = np.asarray(net(prune(params), x)) - whole
    measured = np.mean(np.mean(gap**2, 0) / whole.var(0))
    predicted = prune.plan(params).error  # over what is left
    np.testing.assert_allclose(predicted / (1 + predicted), measured, rtol=0.1)
    assert prune.units(params)["up:1"].index == 0


def test_what_is_constant_goes_exactly():
    """Law: units that are almost never active, or constant, leave the function as it is."""
    apply, params, net = perceptron(jax.nn.relu)
    params["one"]["scale"] = params["one"]["scale"].at[:3].set(0.0)
    params["one"]["shift"] = params["one"]["shift"].at[3:5].set(-9.0)
    small = jc.prune_batchnorm(net, tolerance=1e-6)(params)
    assert small["down"].shape == (3, 3)
    x = np.random.default_rng(1).normal(size=(9, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(net(small, x), apply(params, x), rtol=1e-4, atol=1e-4)


def test_norms_are_told_the_variance_that_is_left():
    """Law: after a deep cut the results have the variance of before, about their mean."""
    apply, params, net = perceptron(jax.nn.relu)
    x = np.random.default_rng(1).normal(size=(20_000, WIDTH)).astype(np.float32)
    params = jc.recalibrate(net, [x], norms=True, progress=False)(params)
    small = jc.prune_batchnorm(net, 1 / 4)(params)
    before, after = np.asarray(apply(params, x)), np.asarray(net(small, x))
    np.testing.assert_allclose(after.var(0), before.var(0), rtol=0.1)
    np.testing.assert_allclose(after.mean(0), before.mean(0), atol=0.05)


def test_a_cut_of_a_convnet():
    """Depthwise kernels, an addition, pooling and padding: what norms explain is cut."""
    case, net = traced("linen_convnet")
    prune = jc.prune_batchnorm(net, 1 / 2)
    plan = prune.plan(case.params)
    with pytest.warns(UserWarning, match=r"prune_batchnorm leaves params/hidden/kernel:1 \(no "):
        small = prune(case.params)
    with pytest.warns(UserWarning, match="no norm has a scale along it"):
        slim = jc.prune_batchnorm(net, 1 / 2, method="slimming")(case.params)
    for params in (small, slim):
        assert net(params, *case.inputs).shape == (4, 5)
    rows = {share.key: share.keep for share in plan.shares}
    assert jc.stored_numbers(small) == plan.stored[1]
    assert set(rows.values()) == {1 / 2}
    half = jc.prune_batchnorm(net, jc.budget(3 / 4), axes="params/Conv_*/kernel")
    assert jc.stored_numbers(half(case.params)) <= 3 / 4 * jc.stored_numbers(case.params)


@pytest.mark.parametrize("pads", ["SAME", "VALID", [(2, 0), (1, 1)]])
def test_coverage_is_a_convolution_of_ones(pads):
    """Law: the mean over the results of a kernel with one tap, on ones."""

    def apply(p, x):
        conv = jax.lax.conv_general_dilated
        return conv(x, p, (2, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    kernel, x = jnp.zeros((3, 2, 1, 1)), jnp.ones((1, 5, 4, 1))
    net = jc.trace(apply, kernel, x)
    (step,) = net.traces(net.full, net.inputs).program.steps
    shares = coverage(step)
    taps = [apply(kernel.at[i, j].set(1.0), x).mean() for i in range(3) for j in range(2)]
    np.testing.assert_allclose(shares.ravel(), taps, rtol=1e-6)


def test_wrong_cuts_are_refused():
    _, params, net = perceptron(jax.nn.relu)
    with pytest.raises(ValueError, match="either keep or tolerance"):
        jc.prune_batchnorm(net)
    case, other = traced("linen_convnet")
    with pytest.raises(ValueError, match="norms explain none of the axes: params/hidden"):
        jc.prune_batchnorm(other, 1 / 2, axes="params/hidden/kernel")(case.params)
    params["one"]["var"] = params["one"]["var"] - 2
    with pytest.raises(ValueError, match="it holds no running statistics"):
        jc.prune_batchnorm(net, 1 / 2)(params)


def test_units_that_are_always_active_follow_from_others():
    """Law: linear units of few inputs depend on each other, and a cut of the surplus is exact."""
    _, params, _ = perceptron(jax.nn.relu)

    def apply(p, x):
        h = jax.nn.relu(in_order(p["one"], x @ p["up"]))
        return in_order(p["two"], h @ p["down"])

    params["up"] = params["up"][:3]
    params["one"]["shift"] = params["one"]["shift"].at[:5].set(9.0)
    x = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    net = jc.trace(apply, params, x)
    prune = jc.prune_batchnorm(net, tolerance=1e-6)
    small = prune(params)
    assert small["down"].shape == (6, 3)  # three of the five, and the others
    np.testing.assert_allclose(net(small, x), apply(params, x), rtol=1e-3, atol=1e-3)
