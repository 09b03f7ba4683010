"""Budgets: the division is optimal, its counts are exact, and totals and predicted errors hold."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import calibrated, mlp, mlp_params, network
from helpers_models import MODELS

import jaxcompress as jc
from jaxcompress.networks.axes import Layout
from jaxcompress.transforms.allocation import AxisCounts, Counts, JointCounts, allocate, divide
from jaxcompress.transforms.leafwise import MOST_OPTIONS, SAMPLED


def trained_mlp(widths=(8, 64, 96, 4), seed=0):
    """Weights of decaying spectra, so that layers are not alike."""
    params = mlp_params(widths)
    decay = {"w0": 0.5, "w1": 1.5}
    for name, power in decay.items():
        u, s, vt = np.linalg.svd(np.asarray(params[name]), full_matrices=False)
        params[name] = jnp.asarray(u * (s * np.arange(1, len(s) + 1) ** -power) @ vt, jnp.float32)
    x = np.random.default_rng(seed).normal(size=(2000, widths[0])).astype(np.float32)
    net = jc.trace(mlp, params, x)
    return net, params, x, jc.calibrate(net, params, [x], sensitivity=True, progress=False)


@pytest.mark.parametrize("seed", range(5))
def test_the_division_is_the_best_for_convex_curves(seed):
    rng = np.random.default_rng(seed)
    errors = [
        np.sort(rng.exponential(size=6))[::-1].cumsum()[::-1] * scale for scale in (1, 10, 0.1)
    ]
    errors = [
        np.append(np.sort(np.diff(np.append(0, np.sort(e)))).cumsum()[::-1], 0) for e in errors
    ]
    numbers = [np.arange(1, len(e) + 1) * unit for e, unit in zip(errors, (1, 3, 2), strict=True)]
    counts = JointCounts(5, [Counts(numbers)], [3])
    for target in (15, 22, 30, 40):
        choice = allocate(errors, counts, target)
        assert counts.total(choice) <= target

        def total(options):
            return sum(e[k] for e, k in zip(errors, options, strict=True))

        choices = itertools.product(*(range(len(e)) for e in errors))
        best = min(total(options) for options in choices if counts.total(options) <= target)
        # Lagrangian choices are optimal for the numbers they use, so at most one step is lost
        assert total(choice) <= best + max(np.abs(np.diff(e)).max() for e in errors)
        divided, equal = divide(
            errors, counts, target, lambda item, keep: max(0, round(keep * 7) - 1)
        )
        assert equal is None or total(divided) <= equal


def test_a_total_out_of_reach_is_refused_with_what_can_be_reached():
    counts = AxisCounts(
        {"w": (Layout("a", 4), Layout("b", 5))},
        {"w": 1.0},
        {"a": np.arange(1, 5), "b": np.arange(1, 6)},
        {},
    )
    assert counts.total([3, 4]) == 20
    assert counts.along(0, [3, 1]).tolist() == [2, 4, 6, 8]
    with pytest.raises(ValueError, match="cannot be reached: 1 stay"):
        allocate([np.arange(4.0)[::-1], np.arange(5.0)[::-1]], counts, 0.5)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in MODELS
        if name not in ("convnet_train", "encoder_linen", "mlp_nnx", "mlp_equinox")
    ],
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

    def error(small):
        return float(jnp.mean((net(small, fresh) - mlp(params, fresh)) ** 2))

    for total in (0.3, 0.2, 0.1):
        plan = jc.rotate_and_prune(net, jc.budget(total)).plan(params, moments)
        ours = error(jc.rotate_and_prune(net, plan.keeps)(params, moments))
        assert 0.4 < ours / plan.error < 2.5

        def sizes(keep):
            return jc.stored_numbers(jc.rotate_and_prune(net, keep)(params, moments))

        keeps = [
            keep
            for keep in np.linspace(0.05, 0.65, 25)
            if sizes(float(keep)) <= total * jc.stored_numbers(params)
        ]
        assert ours < error(jc.rotate_and_prune(net, float(keeps[-1]))(params, moments))


def test_the_prediction_is_exact_for_the_last_cut_of_a_linear_network():
    """Rotations of one linear axis: nothing is first-order there."""
    params = mlp_params((6, 12, 10, 5))

    def linear(p, x):
        return (x @ p["w0"]) @ p["w1"]

    params = {name: params[name] for name in ("w0", "w1")}
    x = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    net = jc.trace(linear, params, x)
    moments = jc.calibrate(net, params, [x] * 200, sensitivity=True, progress=False)
    shrink = jc.rotate_and_prune(net, jc.budget(0.3))
    plan, small = shrink.plan(params, moments), shrink(params, moments)
    np.testing.assert_allclose(
        jnp.mean((net(small, x) - linear(params, x)) ** 2), plan.error, rtol=0.05
    )


def test_pairs_and_heads_have_curves_too():
    model, net, inputs, moments = calibrated("encoder_by_hand")
    moments = jc.calibrate(net, model.params, [inputs], sensitivity=True, progress=False)
    plan = jc.rotate_and_prune(net, jc.budget(0.7)).plan(model.params, moments)
    pairs = [axis.key for axis in net.axes if axis.pair]
    assert set(pairs) <= set(plan.keeps)
    assert plan.stored[1] <= 0.7 * plan.stored[0]


def test_a_share_of_all_channels():
    net, params, x, moments = trained_mlp()
    shrink = jc.rotate_and_prune(net, jc.budget(1 / 8, of="channels"))
    small = shrink(params, moments)
    assert small["w0"].shape[1] + small["w1"].shape[1] == 160 / 8

    def error(small):
        return float(jnp.mean((net(small, x) - mlp(params, x)) ** 2))

    assert error(small) < error(jc.rotate_and_prune(net, 1 / 8)(params, moments))
    assert repr(shrink.keep) == "budget(0.125, of='channels')"
    with pytest.raises(ValueError, match="of='flops' is unknown"):
        jc.budget(1 / 2, of="flops")
    with pytest.raises(ValueError, match="matrices are divided by their numbers"):
        jc.at("w*", jc.factored(jc.budget(1 / 2, of="channels")))(params)


def test_a_plan_prints_and_shows():
    net, params, _, moments = trained_mlp()
    shrink = jc.rotate_and_prune(net, jc.budget(1 / 4))
    assert re.fullmatch(
        r"rotate_and_prune\(<2 hidden axes, \w{8}>, keep=budget\(0.25\)\)", repr(shrink)
    )
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


def test_compress_is_one_percentage():
    _, params, x, moments = trained_mlp()
    net, small = jc.compress(mlp, params, [x[:1000], x[1000:]], 1 / 4, progress=False)
    assert 0.245 < jc.stored_numbers(small) / jc.stored_numbers(params) <= 0.25
    by_hand = jc.chain(
        jc.rotate_and_prune(net, jc.budget(1 / 4)), jc.reconstruct(net, [x], progress=False)
    )(params, moments)

    def gap(small):
        return float(jnp.mean((net(small, x) - mlp(params, x)) ** 2))

    assert gap(small) == pytest.approx(gap(by_hand), rel=0.1)
    with pytest.raises(ValueError, match="there are no batches"):
        jc.compress(mlp, params, [], 1 / 4)
    with pytest.raises(TypeError, match="give a list"):
        jc.compress(mlp, params, iter([x]), 1 / 4)
    with pytest.raises(ValueError, match="budget must be"):
        jc.compress(mlp, params, [x], 4)
    assert jax.tree.structure(small) == jax.tree.structure(params)


# --- budgets of matrices -------------------------------------------------------------------------

FORMS = {
    "factored": jc.factored,
    "hashed": jc.hashed,
    "vocabulary": lambda keep: jc.vocabulary(keep, atoms="learned"),
    "spline": jc.spline,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("informed", [True, False])
def test_matrices_meet_a_total_and_lose_no_more_than_equal_keeps(form, informed):
    _, params, x, moments = trained_mlp((32, 64, 96, 16))
    moments = moments if informed else None
    for total in (0.5, 0.3):
        divided = jc.at("w*", FORMS[form](jc.budget(total)))
        plan, small = divided.plan(params, moments), divided(params, moments)
        met = jc.stored_numbers(small) / jc.stored_numbers(params)
        assert total * 0.97 <= met <= total * 1.0001
        assert plan.stored[1] / plan.stored[0] == pytest.approx(met, rel=0.03)
        assert plan.uniform is None or plan.error <= plan.uniform
        if informed and form == "factored":

            def error(tree):
                return float(jnp.mean((mlp(jc.materialize(tree), x) - mlp(params, x)) ** 2))

            keeps = [
                keep
                for keep in np.linspace(0.2, 0.7, 20)
                if total_of(form, keep, params, moments) <= plan.stored[1] * 1.001
            ]
            assert error(small) < error(jc.at("w*", FORMS[form](float(keeps[-1])))(params, moments))


def total_of(form, keep, params, moments):
    return jc.stored_numbers(jc.at("w*", FORMS[form](float(keep)))(params, moments))


def test_curves_are_the_errors_of_the_fits():
    """Closed form (factored) and interpolated (hashed), both in the metric of the inputs.

    Every table size of a hashed array is another random draw, hence the wide tolerance.
    """
    rng = np.random.default_rng(0)
    matrix, x = (
        rng.normal(size=(24, 32)).astype(np.float32),
        rng.normal(size=(500, 24)) * np.linspace(0.1, 2, 24),
    )
    metric = x.T @ x / 500
    for transform, tolerance in ((jc.factored(1.0), 1e-4), (jc.hashed(1.0), 0.2)):
        keeps, errors = transform.curve(matrix, metric, "w")
        assert (np.diff(keeps) > 0).all()
        assert (np.diff(errors) <= 1e-9).all()
        for keep in (0.2, 0.4, 0.7):
            index = int(np.searchsorted(keeps, keep))
            array = transform.fit(
                matrix, int(np.floor(keeps[index] * matrix.size * (1 + 1e-9))), metric, "w"
            )
            gap = matrix - np.asarray(array.materialize(), np.float64)
            np.testing.assert_allclose(errors[index], np.sum(gap * (metric @ gap)), rtol=tolerance)


def test_curves_of_large_matrices_have_a_bounded_number_of_options():
    """A budget tries every option of every leaf; their steps grow with the size."""
    matrix = np.random.default_rng(0).normal(size=(40, 30))
    keeps, _ = jc.hashed(1.0).curve(matrix, None, "w")
    assert 100 < len(keeps) <= MOST_OPTIONS + 1 < matrix.size
    np.testing.assert_allclose(keeps[0], min(SAMPLED), rtol=0.1)
    gaps = np.diff(keeps * matrix.size)
    assert gaps[0] < gaps[len(gaps) // 2] < gaps[-2]


def test_a_chain_of_budgets_multiplies():
    net, params, _, moments = trained_mlp((32, 64, 96, 16))
    recipe = jc.chain(
        jc.rotate_and_prune(net, jc.budget(1 / 2)), jc.at("w*", jc.factored(jc.budget(1 / 2)))
    )
    small = recipe(params, moments)
    assert 0.24 < jc.stored_numbers(small) / jc.stored_numbers(params) <= 0.25


def test_matrices_refuse_what_cannot_be_divided():
    params = mlp_params((32, 64, 96, 16))
    with pytest.raises(ValueError, match=r"budget\(0.001\): .* numbers cannot be reached"):
        jc.at("w*", jc.factored(jc.budget(0.001)))(params)
    with pytest.raises(ValueError, match="no leaf of the tree can be compacted"):
        jc.at("b*", jc.factored(jc.budget(0.5)))(params)
    with pytest.raises(TypeError, match="divides a budget among several leaves"):
        jc.partition({"a": jc.hashed(jc.budget(0.5))}, jax.tree.map(lambda _: "a", params))(params)
    with pytest.raises(ValueError, match="plan divides a budget, and hashed"):
        jc.at("w*", jc.hashed(0.5)).plan(params)


def test_names_are_no_patterns_and_one_leaf_is_a_tree():
    matrix = jax.random.normal(jax.random.key(0), (16, 16))
    half = jc.factored(jc.budget(1 / 2))
    assert half(matrix).stored_numbers <= 128
    small = half({"w[0]": matrix, "w[1]": matrix[:, ::-1]})
    assert jc.stored_numbers(small) <= 256


def test_a_stack_is_the_sum_of_its_matrices():
    keys = jax.random.split(jax.random.key(0), 3)
    large = 10 * jax.random.normal(keys[0], (16, 1)) @ jax.random.normal(keys[1], (1, 16))
    params = {"w": jnp.stack([large, jax.random.normal(keys[2], (16, 16))])}
    transform = jc.factored(jc.budget(1 / 2), matrix_axes=jc.MatrixAxes((1,), (2,)))
    gap = transform(params)["w"].materialize() - params["w"]
    np.testing.assert_allclose(
        jnp.sum(gap**2) / jnp.sum(params["w"] ** 2), transform.plan(params).error, rtol=1e-3
    )


def test_sizes_are_divisible():
    """Each axis by its own multiple, with a keep, a budget or an energy; uncut axes stay uncut."""
    net, params, _, moments = trained_mlp(widths=(8, 60, 96, 4))
    for rule in ({"keep": 0.4}, {"keep": jc.budget(0.4)}, {"energy": 0.99}):
        shrink = jc.rotate_and_prune(net, multiple={"w0*": 16, "w1*": 7}, **rule)
        small = shrink(params, moments)
        sizes = small["w0"].shape[1], small["w1"].shape[1]
        assert sizes[0] % 16 == 0 or sizes[0] == 60
        assert sizes[1] % 7 == 0 or sizes[1] == 96
        assert sizes != (60, 96)
        assert "multiple={'w0*': 16, 'w1*': 7}" in repr(shrink)
    assert jc.rotate_and_prune(net, keep=0.01, multiple=64)(params, moments)["w0"].shape == (8, 60)
    plan = jc.rotate_and_prune(net, jc.budget(0.4), multiple=16).plan(params, moments)
    assert 0.3 < plan.stored[1] / plan.stored[0] <= 0.4
    for multiple in (0, 1.5, True, {"w0*": "8"}):
        with pytest.raises(ValueError, match="must be a whole number of at least 1"):
            jc.rotate_and_prune(net, keep=0.5, multiple=multiple)
    with pytest.raises(ValueError, match="multiple: the pattern 'up' decides nothing"):
        jc.rotate_and_prune(net, keep=0.5, multiple={"up": 8})


# --- a metric chooses ----------------------------------------------------------------------------


def accuracy_like(net, params, x):
    """The negative squared error of the outputs; higher is better."""
    given = net(params, x)
    return lambda small: -float(jnp.mean((net(small, x) - given) ** 2))


@pytest.mark.parametrize("form", ["rotate", "factored", "together"])
@pytest.mark.parametrize("total", [0.5, 0.2])
def test_a_metric_gets_the_best_of_its_plans(form, total):
    """It scores the result of each plan; the best is applied and no worse than without a metric."""
    net, params, x, moments = trained_mlp()
    ways = {
        "rotate": lambda rule: jc.rotate_and_prune(net, rule),
        "factored": lambda rule: jc.at("w*", jc.factored(rule)),
        "together": lambda rule: jc.together(
            jc.rotate_and_prune(net, rule, axes="w0:1"), jc.at("w2", jc.factored(rule))
        ),
    }
    metric, seen = accuracy_like(net, params, x), []

    def watched(candidates):
        for small in candidates.values():
            assert jc.stored_numbers(small) <= total * jc.stored_numbers(params) * (1 + 1e-6)
        scores = {name: metric(small) for name, small in candidates.items()}
        seen.extend(scores.values())
        return scores

    total = max(total, 0.5) if form == "together" else total
    shrink = ways[form](jc.budget(total, metric=watched))
    plan = shrink.plan(params, moments)
    assert list(plan.scores.values()) == seen
    assert "errors" in plan.scores
    assert 1 <= len(seen) <= 4
    assert str(plan).count("errors: ") == 1
    small = shrink(params, moments)
    assert metric(small) == pytest.approx(max(seen), rel=1e-4)
    assert metric(small) >= metric(ways[form](jc.budget(total))(params, moments)) - 1e-4 * abs(
        max(seen)
    )


def test_an_active_set_is_a_metric():
    net, params, x, moments = trained_mlp()
    active = jc.classifiers.active_set(net, params, (x, None), tolerance=0.5, progress=False)
    rule = jc.budget(0.2, metric=jc.classifiers.accuracy_metric(active))
    assert re.fullmatch(r"budget\(0.2, metric=<AccuracyMetric at 0x\w+>\)", repr(rule))
    plan = jc.rotate_and_prune(net, rule).plan(params, moments)
    assert all(0 <= score <= 1 for score in plan.scores.values())
    assert len(plan.scores) > 1


def test_metrics_that_are_none():
    net, params, _, moments = trained_mlp()
    with pytest.raises(
        TypeError, match=r"a function from candidates by name to their scores, got 0\.9"
    ):
        jc.budget(0.5, metric=0.9)
    for value in (float("nan"), np.ones(2), "a", 1j, None):
        with pytest.raises(ValueError, match="expected a finite number"):
            jc.rotate_and_prune(
                net, jc.budget(0.5, metric=lambda plans, value=value: dict.fromkeys(plans, value))
            )(params, moments)
    with pytest.raises(KeyError, match="another") as raised:
        jc.rotate_and_prune(net, jc.budget(0.5, metric=lambda plans: plans["another"]))(
            params, moments
        )
    assert "in the metric of a budget" in "".join(raised.value.__notes__)


def test_plans_are_made_outside_of_jit():
    net, params, _, moments = trained_mlp()
    for shrink in (jc.rotate_and_prune(net, jc.budget(0.5)), jc.factored(jc.budget(0.5))):
        with pytest.raises(TypeError, match=r"call it outside jax\.jit"):
            jax.jit(lambda params, shrink=shrink: shrink.plan(params, moments).error)(params)


@pytest.mark.parametrize("kind", ["a matrix", "a pair"])
def test_gains_make_predicted_errors_those_of_the_outputs(kind):
    """Of a last matrix, and of a last product of activations, they are exact."""
    rng = np.random.default_rng(0)
    shapes = {"q": (6, 8), "k": (5, 8), "w": (8, 7)}
    params = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }

    def apply(p, x, z):
        if kind == "a matrix":
            return 3 * (jnp.tanh(x @ p["q"]) @ p["w"])
        return 3 * jnp.einsum("id,jd->ij", x @ p["q"], z @ p["k"])

    used = {name: params[name] for name in (("q", "w") if kind == "a matrix" else ("q", "k"))}
    inputs = tuple(rng.normal(size=(30, m)).astype(np.float32) for m in (6, 5))
    net = jc.trace(apply, used, *inputs)
    moments = jc.calibrate(net, used, [inputs], sensitivity=True, progress=False)
    shrink = {
        "a matrix": jc.at("w", jc.factored(jc.budget(0.7))),
        "a pair": jc.rotate_and_prune(net, jc.budget(0.6)),
    }[kind]
    before, after = (net(p, *inputs) for p in (used, shrink(used, moments)))
    error = float(np.mean((np.asarray(before) - np.asarray(after)) ** 2))
    assert error > 0.01
    assert shrink.plan(used, moments).error == pytest.approx(error, rel=1e-3)
