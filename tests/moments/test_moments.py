"""Moments against a direct computation: exact, mergeable, masked, for every contraction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mlp, mlp_params, network
from jax import lax
from laws import matrix

import jaxcompress as jc
from jaxcompress.arrays.layout import to_rows
from jaxcompress.moments import accumulators


def gathered(batches, **options):
    params = mlp_params((5, 8, 6, 3))
    net = jc.trace(mlp, params, jnp.ones((2, 5)))
    return net, params, jc.calibrate(net, params, batches, progress=False, **options)


def hidden(params, x):
    first = np.maximum(
        x @ np.asarray(params["w0"], np.float64) + np.asarray(params["b0"], np.float64), 0
    )
    return first, np.maximum(
        first @ np.asarray(params["w1"], np.float64) + np.asarray(params["b1"], np.float64), 0
    )


def test_means_and_covariances_are_those_of_the_activations():
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32) + 3
    net, params, moments = gathered([x[:100], x[100:250], x[250:]])
    first, second = hidden(params, x.astype(np.float64))
    for key, expected in (("w0:1", first), ("w1:1", second)):
        found = moments[key]
        np.testing.assert_allclose(found.mean[0], expected.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.cov[0], np.cov(expected.T, bias=True), atol=1e-4)
    np.testing.assert_allclose(moments.by_leaf()["w0"], x.T.astype(np.float64) @ x / 300, rtol=1e-5)
    assert moments["w0:1"].count == 300
    assert net.axes.keys() == ["w0:1", "w1:1"]


def test_accumulation_stays_accurate_far_from_zero():
    """A mean of a thousand spreads: products in float32 about zero would lose the variance."""
    x = (np.random.default_rng(0).normal(size=(4000, 5)) + 1000).astype(np.float32)
    *_, moments = gathered([x[start : start + 500] for start in range(0, 4000, 500)])
    cov = moments.sites["w0#0"].cov
    np.testing.assert_allclose(cov, np.cov(x.T.astype(np.float64), bias=True), atol=3e-3)


def test_moments_merge():
    x = np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32)
    *_, whole = gathered([x])
    net, params, first = gathered([x[:30]])
    second = jc.calibrate(net, params, [x[30:]], progress=False)
    both = first + second
    for axis in net.axes:
        key = axis.key
        np.testing.assert_allclose(both[key].mean, whole[key].mean, atol=1e-6)
        np.testing.assert_allclose(both[key].cov, whole[key].cov, atol=1e-5)
    with pytest.raises(ValueError, match="one network"):
        first + None


def test_padding_is_left_out():
    model, net = network("encoder_by_hand")
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(0, 20, (4, 6)), np.ones((4, 6), np.int32)
    mask[:, 4:] = 0
    short = jc.calibrate(net, model.params, [(tokens[:, :4], mask[:, :4])], progress=False)
    junk = jc.calibrate(
        net,
        model.params,
        jc.Calibration([(tokens, mask)], mask=lambda ids, mask: mask),
        progress=False,
    )
    # the first layer's queries read the embedded tokens alone, whatever comes behind them
    key = next(key for key in net.structure.sites if key.startswith("blocks/0/wq"))
    np.testing.assert_allclose(short.sites[key].mean, junk.sites[key].mean, atol=1e-5)
    np.testing.assert_allclose(short.sites[key].cov, junk.sites[key].cov, atol=1e-4)
    # queries and keys lie as (batch, heads, length, size): the mask's axes are found there all the
    # same
    for ours, theirs in zip(short.pairs["pair#0"], junk.pairs["pair#0"], strict=True):
        assert ours.count == theirs.count == 16
        np.testing.assert_allclose(ours.mean, theirs.mean, atol=1e-5)
        np.testing.assert_allclose(ours.cov, theirs.cov, atol=1e-4)


def test_a_mask_is_found_where_its_axes_are_merged_swapped_or_pooled_over():
    params = {
        "a": jnp.eye(3, 4),
        "b": jnp.ones((4, 4)),
        "c": jnp.ones((4, 4)),
        "d": jnp.ones((4, 2)),
    }

    def apply(p, x):  # (batch, length, 3)
        flat = jax.nn.relu(x.reshape(-1, 3) @ p["a"])
        swapped = jnp.swapaxes(jax.nn.relu(flat @ p["b"]).reshape(*x.shape[:2], 4), 0, 1)
        return jax.nn.relu(jax.nn.relu(swapped @ p["c"]).sum(0)) @ p["d"]

    x = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)
    mask = np.arange(6) < np.array([0, 6, 3, 1, 2])[:, None]
    x[~mask] = 1e6
    net = jc.trace(apply, params, x)
    moments = jc.calibrate(
        net, params, jc.Calibration([x], mask=lambda x: x[..., 0] < 1e5), progress=False
    )
    assert [round(moments.sites[key].count) for key in ("a#0", "b#0", "c#0", "d#0")] == [
        12,
        12,
        12,
        4,
    ]
    np.testing.assert_allclose(moments.sites["a#0"].mean, x[mask].mean(0), atol=1e-6)
    np.testing.assert_allclose(
        moments.sites["b#0"].mean[:3], np.maximum(x[mask], 0).mean(0), atol=1e-6
    )


def test_a_mask_without_a_matching_axis_warns(caplog):
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    net = jc.trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, np.ones((5, 3)))
    jc.calibrate(
        net, params, jc.Calibration([np.ones((5, 3))], mask=lambda x: jnp.ones(7)), progress=False
    )
    assert "a#0: no axis of the mask is an axis here" in caplog.text


def test_samples_take_a_share_of_every_example():
    model, net = network("encoder_by_hand")
    batches = [model.resize(16, 8) for _ in range(8)]
    whole = jc.calibrate(net, model.params, batches, progress=False)
    half = jc.calibrate(net, model.params, jc.Calibration(batches, sample=1 / 2), progress=False)
    pooled = net.structure.sites["classifier/w#0"].key
    assert half.sites[pooled].count == whole.sites[pooled].count == 128  # one vector an example
    np.testing.assert_allclose(half.sites[pooled].cov, whole.sites[pooled].cov, atol=1e-6)
    for key in ("blocks/0/wq#0", "blocks/1/down/w#0"):
        assert whole.sites[key].count == 2 * half.sites[key].count == 1024
        gap = np.linalg.norm(half.sites[key].second - whole.sites[key].second) / np.linalg.norm(
            whole.sites[key].second
        )
        assert 0 < gap < 0.25
    again = jc.calibrate(net, model.params, jc.Calibration(batches, sample=1 / 2), progress=False)
    np.testing.assert_array_equal(again.sites[key].cov, half.sites[key].cov)
    with pytest.raises(ValueError, match=r"sample must be in \(0, 1\]"):
        jc.calibrate(net, model.params, jc.Calibration(batches, sample=2), progress=False)


def test_wide_inputs_keep_variances_and_say_so():
    *_, moments = gathered([np.ones((4, 5), np.float32) * np.arange(4)[:, None]], max_dim=6)
    assert moments.sites["w1#0"].diagonal
    assert "diagonal alone for w1#0" in repr(moments)
    assert "w1" not in moments.by_leaf()
    assert moments["w0:1"].cov.shape == (1, 8, 8)


def test_stacked_layers_have_moments_of_their_own():
    model, net = network("stacked_scan")
    x = model.resize(50, 1)
    moments = jc.calibrate(net, model.params, [x], progress=False)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    h = np.asarray(x[0], np.float64) @ params["first"]["w"] + params["first"]["b"]
    np.testing.assert_allclose(
        moments.by_leaf()["layers/w1"][0], h.T @ h / 50, rtol=1e-4, atol=1e-4
    )
    assert moments["layers/w1:2"].mean.shape == (3, 10)


def test_embeddings_count_their_rows():
    model, net = network("embedding_mlp")
    tokens = np.array([[1, 1, 2], [0, 1, 5]])
    moments = jc.calibrate(net, model.params, [(tokens,)], progress=False)
    ((leaf, counts),) = moments.counts.items()
    assert counts[:6].tolist() == [1, 3, 1, 0, 0, 1]
    np.testing.assert_allclose(moments.by_leaf()[leaf], counts / 6)
    few = jc.at(leaf, jc.factored(keep=1 / 2))
    gaps = [
        (few(model.params, each)[leaf].materialize() - model.params[leaf])[tokens]
        for each in (moments, None)
    ]
    assert jnp.sum(gaps[0] ** 2) < 0.5 * jnp.sum(
        gaps[1] ** 2
    )  # rows that are read often are nearly right


def test_heads_and_pairs():
    model, net = network("encoder_by_hand")
    moments = jc.calibrate(net, model.params, [model.resize(20, 6)], progress=False)
    value = next(axis for axis in net.axes if axis.fibres and not axis.pair)
    query = next(axis for axis in net.axes if axis.pair)
    assert moments[value.key].mean.shape == (3, 4)
    assert moments[query.key].cov.shape == (3, 4, 4)


def test_groups_are_of_either_sign():
    params = mlp_params((5, 8, 6, 3))
    twin = params["w0"].at[:, 3].set(-params["w0"][:, 1]).at[:, 5].set(2 * params["w0"][:, 1])
    params = {**params, "w0": twin, "b0": params["b0"].at[jnp.array([1, 3, 5])].set(0)}

    def linear(p, x):
        return (x @ p["w0"] + p["b0"]) @ p["w1"]

    net = jc.trace(linear, {k: params[k] for k in ("w0", "b0", "w1")}, jnp.ones((2, 5)))
    x = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    moments = jc.calibrate(net, {k: params[k] for k in ("w0", "b0", "w1")}, [x], progress=False)
    assert [1, 3, 5] in moments["w0:1"].groups(0.99)


def test_an_axis_draws_itself(tmp_path):
    *_, moments = gathered([np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)])
    moments["w0:1"].plot(path=tmp_path / "axis.png")
    assert (tmp_path / "axis.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches"),
        ([np.ones((4, 5)), np.full((4, 5), np.nan)], "batch 1, input 0 contains NaN"),
        ([np.ones((0, 5))], "batch 0, input 0 is empty"),
        ([np.ones(5)], r"batch 0, input 0 has shape \(5,\), traced with \(2, 5\)"),
        ([(np.ones((4, 5)), np.ones(4))], "batch 0 has 2 inputs, the network takes 1"),
        (
            [np.array([[3e38], [-3e38]], np.float32) * np.ones((2, 5), np.float32)],
            "batch 0 gives NaN or infinity at w",
        ),
    ],
)
def test_bad_batches_are_refused_by_name(batches, message):
    with pytest.raises(ValueError, match=message):
        gathered(batches)


def test_moments_that_belong_elsewhere():
    _, params, moments = gathered([np.ones((3, 5), np.float32)])
    with pytest.raises(KeyError, match="w9"):
        moments["w9:1"]
    with pytest.raises(ValueError, match="moments name leaves"):
        jc.hashed(1 / 2)({"other": params["w0"]}, moments)


def lengths_or_input(kind):
    x, lengths = (
        np.random.default_rng(0).normal(size=(20, 8, 5)).astype(np.float32),
        np.arange(20) % 5 + 1,
    )
    mask = (np.arange(8) < lengths[:, None]).astype(np.float32)
    x = np.where(mask[..., None] > 0, x, 100).astype(np.float32)
    params = {"a": jnp.ones((5, 6)), "b": jnp.ones((6, 3))}

    def pooled(p, x, other):
        return jnp.sum(jax.nn.relu(x @ p["a"]), 1) @ p["b"] + jnp.sum(other) * 0

    def each(p, x, other):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    def loop(p, x, mask):
        def step(h, v):
            return (jnp.where(v[1][:, None] > 0, jnp.tanh(v[0] @ p["a"]) + 0 * h, h), None)

        return (
            jax.lax.scan(step, jnp.zeros((len(x), 6)), (jnp.swapaxes(x, 0, 1), mask.T))[0] @ p["b"]
        )

    def made(x, lengths):
        return jnp.arange(8)[None] < lengths[:, None]

    def given(x, mask):
        return mask

    def divided(p, x, lengths):
        return jnp.sum(jax.nn.relu(x @ p["a"]) / lengths[:, None, None], 1) @ p["b"]

    apply, other, rule = {
        "made of lengths": (divided, lengths, made),
        "made of lengths that are not linked": (pooled, lengths, made),
        "an input that is not used": (each, mask, given),
        "along a loop": (loop, mask, given),
    }[kind]
    net = jc.trace(apply, params, x, other)
    return (
        jc.calibrate(net, params, jc.Calibration([(x, other)], mask=rule), progress=False),
        x[mask > 0],
        mask,
    )


@pytest.mark.parametrize(
    "kind",
    [
        "made of lengths",
        "made of lengths that are not linked",
        "an input that is not used",
        "along a loop",
    ],
)
def test_masks_of_every_origin(kind):
    moments, rows, _ = lengths_or_input(kind)
    assert moments.sites["a#0"].count == len(rows) == 60
    np.testing.assert_allclose(moments.sites["a#0"].mean, rows.mean(0), atol=1e-5)
    assert moments.sites["b#0"].count in (20, 60)


@pytest.mark.filterwarnings("ignore:.*is selected, not:UserWarning")
def test_a_kernel_tied_with_its_transpose():
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 16)), jnp.float32)}
    net = jc.trace(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["w"].T, params, jnp.ones((5, 6)))
    moments = jc.calibrate(
        net, params, [np.eye(6, dtype=np.float32)], sensitivity=True, progress=False
    )
    assert moments.by_leaf()["w"].shape == (6, 6)
    assert jc.rotate_and_prune(net, 1 / 2)(params, moments)["w"].shape == (6, 8)


def test_branches_and_loops_of_unknown_length_are_measured():
    """A branch counts the turns that took it; a branch never taken has no moments; loops add up."""

    def apply(p, x):
        def grow(state):
            return (jax.nn.relu(state[0] @ p["turn"]), state[1] + 1)

        z, _ = lax.while_loop(
            lambda state: (state[0].sum() < 1e9) & (state[1] < 3), grow, (x @ p["first"], 0)
        )
        one, other = (lambda z, name=name: z @ p[name] for name in ("up", "down"))

        def never(z):
            return lax.cond(z[0, 0] > 1e30, one, other, z)

        return never(z) + lax.cond(
            x[0, 0] > 0, lambda z: z @ p["left"], lambda z: z @ p["right"], z
        )

    shapes = {
        "first": (3, 8),
        "turn": (8, 8),
        **dict.fromkeys(("up", "down", "left", "right"), (8, 2)),
    }
    params = {
        name: matrix(*shape, seed=seed) / 3 for seed, (name, shape) in enumerate(shapes.items())
    }
    batches = [
        jnp.abs(matrix(20, 3, seed=10)),
        -jnp.abs(matrix(30, 3, seed=11)),
        jnp.abs(matrix(10, 3, seed=12)),
    ]
    net = jc.trace(apply, params, batches[0])
    moments = jc.calibrate(net, params, batches, sensitivity=True, progress=False)
    ends, turns = [], []
    for x in batches:
        z = x @ params["first"]
        for _ in range(3):
            turns.append(z)
            z = jax.nn.relu(z @ params["turn"])
        ends.append(z)
    expected = {"turn": turns, "down": ends, "left": [ends[0], ends[2]], "right": [ends[1]]}
    assert "up#0" not in moments.sites
    for name, seen in expected.items():
        seen = np.concatenate(seen).astype(np.float64)
        found = moments.sites[f"{name}#0"]
        assert found.count == len(seen)
        np.testing.assert_allclose(found.mean, seen.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.cov, np.cov(seen.T, bias=True), rtol=1e-4, atol=1e-5)
    assert "left#0" in moments.gains
    small = jc.rotate_and_prune(net, keep=1 / 2)(params, moments)
    assert jnp.isfinite(net(small, batches[0])).all()


def test_groups_of_a_convolution_have_statistics_of_their_own():
    def apply(p, x):
        y = lax.conv_general_dilated(
            jax.nn.relu(x @ p["a"]),
            p["w"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )
        return jax.nn.relu(y).mean((1, 2)) @ p["b"]

    params = {"a": matrix(3, 12), "w": matrix(3, 3, 4, 12, seed=1), "b": matrix(12, 2, seed=2)}
    x = matrix(5, 6, 6, 3, seed=3)
    net = jc.trace(apply, params, x)
    moments = jc.calibrate(net, params, [x], sensitivity=True, progress=False)
    rows = np.asarray(jax.nn.relu(x @ params["a"]), np.float64).reshape(-1, 3, 4)
    found = moments.sites["w#0"]
    for group in range(3):
        np.testing.assert_allclose(
            found.cov[group], np.cov(rows[:, group].T, bias=True), rtol=1e-4, atol=1e-5
        )
    small = jc.rotate_and_prune(net, jc.budget(1 / 2))(params, moments)
    assert jc.stored_numbers(small) <= jc.stored_numbers(params) / 2
    assert net(small, x).shape == (5, 2)


CONVOLUTIONS = {
    "plain": ("NHWC", "HWIO", dict(window_strides=(1, 1), padding="SAME")),
    "strided, dilated": (
        "NHWC",
        "HWIO",
        dict(window_strides=(2, 1), padding=((1, 2), (0, 1)), rhs_dilation=(2, 1)),
    ),
    "features first": ("NCHW", "OIHW", dict(window_strides=(1, 2), padding="VALID")),
    "cropped": ("NHWC", "OIHW", dict(window_strides=(1, 1), padding=((-1, 0), (2, 0)))),
    "transposed": (
        "NHWC",
        "HWIO",
        dict(window_strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_some_windows_are_those_of_all(name, monkeypatch):
    """Cutting some windows out of the padded input equals extracting all and selecting."""
    layout, kernel, options = CONVOLUTIONS[name]
    shape = dict(zip("HWIO", (3, 2, 4, 6), strict=True))
    params = {"w": matrix(*(shape[letter] for letter in kernel)), "b": matrix(6, 2)}
    x = matrix(*(dict(zip("NHWC", (5, 8, 9, 4), strict=True))[letter] for letter in layout), seed=1)

    def apply(p, x):
        y = lax.conv_general_dilated(
            x, p["w"], **options, dimension_numbers=(layout, kernel, layout)
        )
        return jnp.moveaxis(jax.nn.relu(y), layout.index("C"), -1).mean((1, 2)) @ p["b"]

    net = jc.trace(apply, params, x)
    found = [
        jc.calibrate(net, params, jc.Calibration([x], sample=1 / 4), progress=False).sites["w#0"]
    ]
    monkeypatch.setattr(accumulators, "window_counts", lambda *_: None)
    found.append(
        jc.calibrate(net, params, jc.Calibration([x], sample=1 / 4), progress=False).sites["w#0"]
    )
    assert found[0].count == found[1].count
    np.testing.assert_allclose(found[0].mean, found[1].mean, atol=1e-5)
    np.testing.assert_allclose(found[0].cov, found[1].cov, atol=1e-5)
    # all windows, zeros at the borders and steps between them included: what they give is measured
    whole = jc.calibrate(net, params, [x], progress=False).sites["w#0"]
    results = lax.conv_general_dilated(
        x, params["w"], **options, dimension_numbers=(layout, kernel, layout)
    )
    rows = np.moveaxis(np.asarray(results, np.float64), layout.index("C"), -1).reshape(-1, 6)
    weights = to_rows(np.asarray(params["w"], np.float64), net.structure.sites["w#0"].inputs["w"])
    assert whole.count == len(rows)
    np.testing.assert_allclose(whole.mean @ weights, rows.mean(0), atol=1e-4)
    np.testing.assert_allclose(
        weights.T @ whole.cov @ weights, np.cov(rows.T, bias=True), atol=1e-4
    )


def test_inputs_that_are_no_floats_are_not_searched_for_nan():
    """A random key has no value as a number; words and flags have none that is NaN."""
    params = {"table": matrix(6, 4), "out": matrix(4, 2)}

    def apply(p, ids, key, flag):
        scale = 1 + 0 * jax.random.uniform(key)
        return jnp.where(flag, p["table"][ids] * scale, 0) @ p["out"]

    inputs = np.array([[0, 3], [5, 1]]), jax.random.key(3), np.array(True)
    net = jc.trace(apply, params, *inputs)
    moments = jc.calibrate(net, params, [inputs], progress=False)
    assert moments["table:1"].count == 4


def test_a_weight_is_a_number_of_repetitions():
    """Weights are no mask alone: an example of weight three counts as three."""
    params, x = mlp_params((5, 8, 6, 3)), np.asarray(matrix(6, 5, seed=3))
    weights = np.array([1.0, 2, 3, 0, 1, 2])
    net = jc.trace(lambda p, x, w: mlp(p, x), params, x, weights)
    data = jc.Calibration([(x, weights)], mask=lambda x, w: w)
    repeated = x.repeat(weights.astype(int), 0)
    one = jc.calibrate(net, params, data, progress=False)
    other = jc.calibrate(net, params, [(repeated, np.ones(9))], progress=False)
    for key, statistic in one.sites.items():
        assert statistic.count == other.sites[key].count == 9
        np.testing.assert_allclose(statistic.mean, other.sites[key].mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(statistic.cov, other.sites[key].cov, rtol=1e-4, atol=1e-6)
