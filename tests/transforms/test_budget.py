"""One number for everything: the division is optimal, the count is the tree's own, the error is as predicted, the total is met."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.models import MODELS
from networks.test_oracle import network
from networks.test_replay import mlp, mlp_params
from transforms.test_rotation import calibrated

import jaxcompress as jc
from jaxcompress.networks.axes import Layout
from jaxcompress.transforms.budget import AxisCounts, Counts, allocate, divide


def trained_mlp(widths=(8, 64, 96, 4), seed=0):
    """Weights of decaying spectra, so that layers are not alike."""
    params = mlp_params(widths)
    decay = {"w0": 0.5, "w1": 1.5}
    for name, power in decay.items():
        u, s, vt = np.linalg.svd(np.asarray(params[name]), full_matrices=False)
        params[name] = jnp.asarray(u * (s * np.arange(1, len(s) + 1) ** -power) @ vt, jnp.float32)
    x = np.random.default_rng(seed).normal(size=(2000, widths[0])).astype(np.float32)
    net = jc.trace(mlp, params, x)
    return net, params, x, net.calibrate(params, [x], sensitivity=True, progress=False)


@pytest.mark.parametrize("seed", range(5))
def test_the_division_is_the_best_for_convex_curves(seed):
    rng = np.random.default_rng(seed)
    errors = [np.sort(rng.exponential(size=6))[::-1].cumsum()[::-1] * scale for scale in (1, 10, 0.1)]
    errors = [np.append(np.sort(np.diff(np.append(0, np.sort(e)))).cumsum()[::-1], 0) for e in errors]
    counts = Counts(5, [np.arange(1, len(e) + 1) * unit for e, unit in zip(errors, (1, 3, 2), strict=True)])
    for target in (15, 22, 30, 40):
        choice = allocate(errors, counts, target)
        assert counts.total(choice) <= target
        total = lambda options: sum(e[k] for e, k in zip(errors, options, strict=True))
        every = itertools.product(*(range(len(e)) for e in errors))
        best = min(total(options) for options in every if counts.total(options) <= target)
        # Lagrangian choices are the best for the numbers they take; a step of one item is what is lost at most
        assert total(choice) <= best + max(np.abs(np.diff(e)).max() for e in errors)
        found, equal = divide(errors, counts, target, lambda item, keep: max(0, round(keep * 7) - 1))
        assert equal is None or total(found) <= equal


def test_a_total_out_of_reach_is_refused_with_what_can_be_reached():
    counts = AxisCounts({"w": (Layout("a", 4), Layout("b", 5))}, {"w": 1.0}, ["a", "b"], {"a": 4, "b": 5})
    assert counts.total([3, 4]) == 20
    assert counts.along(0, [3, 1]).tolist() == [2, 4, 6, 8]
    with pytest.raises(ValueError, match="cannot be reached: 1 stay"):
        allocate([np.arange(4.0)[::-1], np.arange(5.0)[::-1]], counts, 0.5)


@pytest.mark.parametrize(
    "name", [name for name in MODELS if name not in ("convnet_train", "encoder_linen", "mlp_nnx", "mlp_equinox")]
)
def test_the_plan_counts_what_the_tree_stores(name):
    """In every model, and no more than the total; the transform does what its plan says."""
    model, net = network(name)
    shrink = jc.rotate_and_prune(net, jc.budget(2 / 3))
    plan = shrink.plan(model.params)
    small = shrink(model.params)
    assert plan.stored == (jc.stored_numbers(model.params), jc.stored_numbers(small))
    assert plan.stored[1] <= plan.stored[0] * 2 / 3
    assert all(0 < keep <= 1 for keep in plan.keeps.values())


def test_totals_are_met_and_need_no_more_data():
    net, params, _, moments = trained_mlp()
    errors = []
    for total in (0.9, 0.5, 0.25, 0.1):
        shrink = jc.rotate_and_prune(net, jc.budget(total))
        plan = shrink.plan(params, moments)
        met = jc.stored_numbers(shrink(params, moments)) / jc.stored_numbers(params)
        assert met == pytest.approx(plan.stored[1] / plan.stored[0])
        assert total * 0.98 <= met <= total
        errors.append(plan.error)
        assert plan.error <= plan.uniform
    assert errors == sorted(errors)


def test_errors_are_as_predicted_and_less_than_those_of_equal_keeps():
    net, params, x, moments = trained_mlp()
    fresh = np.random.default_rng(9).normal(size=x.shape).astype(np.float32)
    error = lambda small: float(jnp.mean((net(small, fresh) - mlp(params, fresh)) ** 2))
    for total in (0.3, 0.2, 0.1):
        plan = jc.rotate_and_prune(net, jc.budget(total)).plan(params, moments)
        ours = error(jc.rotate_and_prune(net, plan.keeps)(params, moments))
        assert 0.4 < ours / plan.error < 2.5
        sizes = lambda keep: jc.stored_numbers(jc.rotate_and_prune(net, keep)(params, moments))
        keeps = [keep for keep in np.linspace(0.05, 1, 60) if sizes(float(keep)) <= total * jc.stored_numbers(params)]
        assert ours < error(jc.rotate_and_prune(net, float(keeps[-1]))(params, moments))


def test_the_prediction_is_exact_for_the_last_cut_of_a_linear_network():
    """Rotations of one linear axis: nothing is first-order there."""
    params = mlp_params((6, 12, 10, 5))
    linear = lambda p, x: (x @ p["w0"]) @ p["w1"]
    params = {name: params[name] for name in ("w0", "w1")}
    x = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    net = jc.trace(linear, params, x)
    moments = net.calibrate(params, [x] * 200, sensitivity=True, progress=False)
    shrink = jc.rotate_and_prune(net, jc.budget(0.3))
    plan, small = shrink.plan(params, moments), shrink(params, moments)
    np.testing.assert_allclose(jnp.mean((net(small, x) - linear(params, x)) ** 2), plan.error, rtol=0.05)


def test_pairs_and_heads_have_curves_too():
    model, net, inputs, moments = calibrated("encoder_by_hand")
    moments = net.calibrate(model.params, [inputs], sensitivity=True, progress=False)
    plan = jc.rotate_and_prune(net, jc.budget(0.7)).plan(model.params, moments)
    pairs = [axis.key for axis in net.axes if axis.pair]
    assert set(pairs) <= set(plan.keeps)
    assert plan.stored[1] <= 0.7 * plan.stored[0]


def test_a_plan_prints_and_shows():
    net, params, _, moments = trained_mlp()
    shrink = jc.rotate_and_prune(net, jc.budget(1 / 4))
    assert repr(shrink) == "rotate_and_prune(<2 hidden axes>, keep=budget(0.25))"
    text = str(shrink.plan(params, moments))
    assert "w0:1" in text
    assert "of 64" in text
    assert "equal keeps" in text
    assert "<table>" in shrink.plan(params, moments)._repr_html_()


def test_a_budget_of_named_axes_counts_everything():
    net, params, _, moments = trained_mlp()
    small = jc.rotate_and_prune(net, jc.budget(0.8), axes="w0")(params, moments)
    assert small["w1"].shape[1] == 96
    assert 0.78 < jc.stored_numbers(small) / jc.stored_numbers(params) <= 0.8
    with pytest.raises(ValueError, match=r"budget\(0.01\): .* numbers cannot be reached: .* stay"):
        jc.rotate_and_prune(net, jc.budget(0.01), axes="w0")(params, moments)


def test_refusals():
    net, params, _, moments = trained_mlp()
    for total in (0, 1.5, True, "half"):
        with pytest.raises(ValueError, match=r"budget must be in \(0, 1\]"):
            jc.budget(total)
    with pytest.raises(ValueError, match="predicts no error"):
        jc.rotate_and_prune(net, jc.budget(1 / 2), method="magnitude")(params, moments)
    with pytest.raises(ValueError, match="plan divides a budget"):
        jc.rotate_and_prune(net, 1 / 2).plan(params, moments)


def test_compress_is_one_percentage():
    _, params, x, moments = trained_mlp()
    net, small = jc.compress(mlp, params, [x[:1000], x[1000:]], 1 / 4, progress=False)
    assert 0.245 < jc.stored_numbers(small) / jc.stored_numbers(params) <= 0.25
    by_hand = jc.chain(jc.rotate_and_prune(net, jc.budget(1 / 4)), jc.reconstruct(net, [x], progress=False))(params, moments)
    gap = lambda small: float(jnp.mean((net(small, x) - mlp(params, x)) ** 2))
    assert gap(small) == pytest.approx(gap(by_hand), rel=0.1)
    with pytest.raises(ValueError, match="there are no batches"):
        jc.compress(mlp, params, [], 1 / 4)
    with pytest.raises(TypeError, match="give a list"):
        jc.compress(mlp, params, iter([x]), 1 / 4)
    with pytest.raises(ValueError, match="budget must be"):
        jc.compress(mlp, params, [x], 4)
    assert jax.tree.structure(small) == jax.tree.structure(params)
