"""reconstruct: least-squares kernels for the small network's own inputs, in every model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import calibrated, close, error, mlp, mlp_params
from helpers_models import MODELS

import jaxcompress as jc
from jaxcompress.arrays.paths import named_leaves


def relu(h):
    return np.maximum(h, 0)


def affine(p, layer, h):
    return h @ p[f"w{layer}"] + p[f"b{layer}"]


def pruned_mlp(keep=1 / 2):
    params = mlp_params((5, 24, 16, 3))
    x = np.random.default_rng(0).normal(size=(4000, 5)).astype(np.float32)
    net = jc.trace(mlp, params, x)
    moments = jc.calibrate(net, params, [x], progress=False)
    return net, params, x, moments, jc.rotate_and_prune(net, keep)


def test_kernels_and_biases_are_the_least_squares_solutions_layer_after_layer():
    net, params, x, moments, prune = pruned_mlp()
    plain = prune(params, moments)
    better, after = jc.chain(
        prune, jc.reconstruct(net, [x[:1500], x[1500:]], progress=False)
    ).apply(params, moments)
    p, q = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (params, better)
    )
    np.testing.assert_array_equal(better["w0"], plain["w0"])  # its inputs are as they were
    kept = [int(np.abs(p["w0"] - column[:, None]).sum(0).argmin()) for column in q["w0"].T]
    first = relu(affine(q, 0, x))
    ones = np.ones((len(x), 1))
    before = relu(affine(p, 0, x))
    np.testing.assert_allclose(first, before[:, kept], atol=1e-5)
    # the second layer's kernel is solved for its kept outputs, the last for all
    second = relu(affine(p, 1, before))
    wanted = affine(p, 1, before)
    solution = np.linalg.lstsq(np.hstack([first, ones]), wanted, rcond=None)[0]
    columns = [int(np.abs(solution[:-1] - column[:, None]).sum(0).argmin()) for column in q["w1"].T]
    assert len(set(columns)) == 8
    np.testing.assert_allclose(q["w1"], solution[:-1, columns], atol=2e-3)
    np.testing.assert_allclose(q["b1"], solution[-1, columns], atol=2e-3)
    met = relu(affine(q, 1, first))
    solution = np.linalg.lstsq(met, second @ p["w2"], rcond=None)[0]  # without a bias
    np.testing.assert_allclose(q["w2"], solution, atol=2e-3)
    np.testing.assert_allclose(after.sites["w2#0"].mean, met.mean(0), atol=1e-4)
    np.testing.assert_allclose(after.sites["w2#0"].cov, np.cov(met.T, bias=True), atol=1e-3)
    assert error(net, params, better, (x,)) < error(net, params, plain, (x,))


def test_a_bias_that_is_subtracted_is_solved_with_its_sign():
    params = mlp_params((5, 12, 8, 3))
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)

    def apply(p, x, sign):
        h = jax.nn.relu(x @ p["w0"] + p["b0"])
        h = h @ p["w1"] + p["b1"] if sign > 0 else h @ p["w1"] - p["b1"]
        return jax.nn.relu(h) @ p["w2"]

    biases = []
    for sign in (1, -1):
        given = {**params, "b1": sign * params["b1"]}
        net = jc.trace(functools.partial(apply, sign=sign), given, x)
        moments = jc.calibrate(net, given, [x], progress=False)
        cut = jc.rotate_and_prune(net, 1 / 2, axes="w0")
        small = jc.chain(cut, jc.reconstruct(net, [x], progress=False))(given, moments)
        biases.append(sign * np.asarray(small["b1"]))
    assert np.abs(biases[0] - np.asarray(params["b1"])).max() > 1e-3
    np.testing.assert_allclose(biases[1], biases[0], atol=1e-5)


@pytest.mark.parametrize("inputs", ["zeros", "repeated", "one sample", "mixed scales", "tiny"])
def test_it_is_no_worse_than_nothing_nor_than_zeros(inputs):
    params = mlp_params((4, 12, 6, 3))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    x = {
        "zeros": 0 * x,
        "repeated": x[:, :1] * np.ones(4, np.float32),
        "one sample": x[:1],
        "mixed scales": x,
        "tiny": x * np.float32(2.0**-60),
    }[inputs]
    units = np.logspace(-9, 9, 12) if inputs == "mixed scales" else np.ones(12)
    units = jnp.asarray(units, jnp.float32)
    given = {**params, "w0": params["w0"] * units, "b0": params["b0"] * units}
    given["w1"] = params["w1"] / units[:, None]
    if inputs == "tiny":
        given = {**given, "b0": given["b0"] * 2.0**-60, "b1": given["b1"] * 2.0**-60}
    net = jc.trace(mlp, given, x)
    moments = jc.calibrate(net, given, [x], progress=False)
    cut = jc.rotate_and_prune(net, 1 / 4, axes="w0")
    plain = cut(given, moments)
    better = jc.chain(cut, jc.reconstruct(net, [x], progress=False))(given, moments)

    def results(p):
        p = {name: np.asarray(leaf, np.float64) for name, leaf in p.items()}
        return affine(p, 1, relu(affine(p, 0, np.asarray(x, np.float64))))

    whole = results(given)
    size = np.abs(whole).max()
    errors = [np.sum(((results(p) - whole) / size) ** 2) for p in (plain, better)]
    zeros = np.sum(((whole - whole.mean(0)) / size) ** 2)
    assert errors[1] <= min(errors[0], zeros) * (1 + 1e-3) + 1e-8


def test_without_a_change_nothing_changes():
    net, params, x, moments, _ = pruned_mlp()
    same = jc.reconstruct(net, [x], progress=False)(params, moments)
    jax.tree.map(np.testing.assert_array_equal, same, params)


def gain(name, keep=1 / 2, count=256):
    """Errors of the outputs without and with reconstruction, on the calibration data."""
    model, net, inputs, moments = calibrated(name, count)
    prune = jc.rotate_and_prune(net, keep)
    plain = prune(model.params, moments)
    better = jc.chain(prune, jc.reconstruct(net, [inputs], progress=False))(model.params, moments)
    sizes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (plain, better)]
    assert sizes[0] == sizes[1]
    return [error(net, model.params, small, inputs) for small in (plain, better)]


ALIKE = [
    "fused_gate_and_up",
    "rotary_attention",
    "weight_norm",
    "dispatched_experts",
    "bidirectional_and_stacked",
    "counted_loop",
]
ALIKE += [
    "nested_calls",
    "custom_product",
    "linear_recurrence",
    "graph_network",
    "stacked_and_tiled",
]
"""Models whose kernels are of a kind that another model has: they are left out, for time."""


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ALIKE])
@pytest.mark.filterwarnings("ignore:.*is selected, not:UserWarning")
def test_outputs_come_nearer_in_every_model(name):
    plain, better = gain(name)
    assert np.isfinite(better)
    assert better <= plain * 1.02 + 1e-6


def test_maps_of_outputs_are_followed_through_a_chain():
    """Two cuts of one axis with others between: the targets are those of the kept channels."""
    net, params, x, moments, _ = pruned_mlp()

    def cut(keep, axes="**"):
        return jc.rotate_and_prune(net, keep, axes=axes)

    again = jc.reconstruct(net, [x], progress=False)
    once, twice = (
        jc.chain(cut(1 / 2), again),
        jc.chain(cut(3 / 4, "w1"), again, cut(2 / 3), again, cut(3 / 4, "w0"), again),
    )
    assert twice(params, moments)["w1"].shape == once(params, moments)["w1"].shape == (12, 8)
    errors = [
        error(net, params, small, (x,)) for small in (once(params, moments), twice(params, moments))
    ]
    assert errors[1] < 1.3 * errors[0]
    fresh = jc.chain(cut(1 / 2), jc.recalibrate(net, [x], progress=False), again)(params, moments)
    close(fresh, once(params, moments), 1e-3)


def test_compact_kernels_stay():
    net, params, x, moments, prune = pruned_mlp()
    recipe = jc.chain(
        prune, jc.at("w1", jc.hashed(1 / 2)), jc.reconstruct(net, [x], progress=False)
    )
    small = recipe(params, moments)
    assert isinstance(small["w1"], jc.arrays.HashedArray)
    without = jc.chain(*recipe.transforms[:2])(params, moments)
    assert error(net, params, small, (x,)) < 0.9 * error(net, params, without, (x,))


def test_padding_and_samples():
    """What lies in the padding changes nothing; half of the places of every example are enough."""
    key = jax.random.split(jax.random.key(0), 3)
    shapes = {"a": (5, 16), "b": (16, 12), "c": (12, 3)}
    params = {
        name: jax.random.normal(k, shape)
        for k, (name, shape) in zip(key, shapes.items(), strict=True)
    }

    def apply(p, x, mask):
        h = jax.nn.relu(x @ p["a"])
        return jax.nn.relu(h @ p["b"]) @ p["c"] * mask[..., None]

    rng = np.random.default_rng(0)
    x, mask = (
        rng.normal(size=(200, 8, 5)).astype(np.float32),
        np.broadcast_to(np.arange(8) < 5, (200, 8)).astype(np.float32),
    )
    junk = np.where(mask[..., None] > 0, x, 100)
    net = jc.trace(apply, params, x, mask)
    prune = jc.rotate_and_prune(net, 1 / 2)

    def data(x, **options):
        return jc.Calibration([(x, mask)], mask=lambda x, mask: mask, **options)

    def small(x, **options):
        moments = jc.calibrate(net, params, data(x), progress=False)
        again = jc.reconstruct(net, data(x, **options), progress=False)
        return jc.chain(prune, again)(params, moments)

    close(small(x), small(junk), 1e-3)
    plain = prune(params, jc.calibrate(net, params, data(x), progress=False))
    sampled = small(junk, sample=1 / 2)
    assert error(net, params, sampled, (x, mask)) < error(net, params, plain, (x, mask))


@pytest.mark.parametrize(
    ("moments", "batches", "kind", "message"),
    [
        (None, [1], ValueError, "needs the moments of jc.calibrate"),
        ({"w0": np.eye(5)}, [1], ValueError, "needs the moments of jc.calibrate"),
        ("own", [], ValueError, "there are no batches"),
        ("own", [np.full((4, 5), np.nan)], ValueError, "batch 0, input 0 contains NaN"),
        ("own", iter([1]), TypeError, "give a list, not an iterator"),
    ],
)
def test_refusals(moments, batches, kind, message):
    net, params, _, own, _ = pruned_mlp()
    with pytest.raises(kind, match=message):
        jc.reconstruct(net, batches, progress=False)(params, own if moments == "own" else moments)


def test_original_weights_that_are_compact():
    """Moments of a network with compact weights: the targets are that network's results."""
    net, params, x, _, _ = pruned_mlp()
    compact = {**params, "w2": jc.factored(1 / 2)(params["w2"])}
    moments = jc.calibrate(net, compact, [x], progress=False)
    small = jc.chain(
        jc.rotate_and_prune(net, 1 / 2, axes="w0"), jc.reconstruct(net, [x], progress=False)
    )(compact, moments)
    assert isinstance(small["w2"], jc.arrays.FactoredArray)
    assert (
        float(jnp.linalg.norm(net(small, x) - net(compact, x)) / jnp.linalg.norm(net(compact, x)))
        < 0.3
    )


def test_an_original_that_is_small_already():
    net, params, x, moments, prune = pruned_mlp(3 / 4)
    smaller = prune(params, moments)
    again = jc.calibrate(net, smaller, [x], progress=False)
    cut = jc.rotate_and_prune(net, 1 / 2)
    small = jc.chain(cut, jc.reconstruct(net, [x], progress=False))(smaller, again)
    assert error(net, smaller, small, (x,)) < error(net, smaller, cut(smaller, again), (x,))


def test_a_convolution_that_was_too_wide_to_measure():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) / 10, jnp.float32)

    params = {"a": draw(1, 1, 3, 64), "w": draw(3, 3, 64, 8), "b": draw(8)}
    numbers = ("NHWC", "HWIO", "NHWC")

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    x = draw(4, 6, 6, 3) * 10
    net = jc.trace(lambda p, x: conv(jax.nn.relu(conv(x, p["a"])), p["w"]) + p["b"], params, x)
    moments = jc.calibrate(net, params, [x], max_dim=300, progress=False)
    plain, fresh = jc.rotate_and_prune(net, 1 / 8), jc.recalibrate(net, [x], progress=False)
    small = jc.chain(plain, fresh, jc.reconstruct(net, [x], progress=False))(params, moments)
    assert error(net, params, small, (x,)) < error(net, params, plain(params, moments), (x,))


def test_kernels_of_low_rank_are_the_best_of_their_rank_for_their_inputs():
    """Reduced-rank regression: least squares, then the principal directions of its results."""
    net, params, x, moments, _ = pruned_mlp()
    shrink = jc.at("w[01]", jc.factored(0.6))
    plain, better = (
        chain(params, moments)
        for chain in (
            shrink,
            jc.chain(shrink, jc.reconstruct(net, [x[:1500], x[1500:]], progress=False)),
        )
    )
    assert jc.stored_numbers(plain) == jc.stored_numbers(better)
    p, q = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jc.materialize(tree))
        for tree in (params, better)
    )
    first, met = relu(x @ p["w0"] + p["b0"]), relu(x @ q["w0"] + q["b0"])
    for layer, given, wanted in (
        (0, x, x @ p["w0"] + p["b0"]),
        (1, met, first @ p["w1"] + p["b1"]),
    ):
        design = np.hstack([given, np.ones((len(given), 1))])
        fitted = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
        centred = fitted - fitted.mean(0)
        left, values, right = np.linalg.svd(centred, full_matrices=False)
        rank = better[f"w{layer}"].rank
        best = (left[:, :rank] * values[:rank]) @ right[:rank] + fitted.mean(0)
        least = np.sum((best - wanted) ** 2)
        remainder = np.sum((affine(q, layer, given) - wanted) ** 2)
        np.testing.assert_allclose(remainder, least, rtol=2e-3)
        if layer:
            before = given @ np.asarray(plain["w1"].materialize()) + p["b1"]
            assert np.sum((before - wanted) ** 2) > 1.1 * least
    assert error(net, params, better, (x,)) < error(net, params, plain, (x,))


@pytest.mark.parametrize("name", ["encoder_linen", "fused_qkv", "mlp_equinox"])
def test_kernels_of_low_rank_in_every_layout(name):
    """Heads and sizes apart, fused, (out, in): ranks, layouts and dtypes stay."""
    model, net, inputs, moments = calibrated(name)
    shrink = jc.at(
        lambda path, leaf: path in net.matrix_axes and leaf.ndim > 1,
        jc.factored(0.6, matrix_axes=net.matrix_axes),
    )
    plain = shrink(model.params, moments)
    better = jc.reconstruct(net, [inputs], progress=False)(plain, moments)
    changed = 0
    for (_, before), (_, after) in zip(named_leaves(plain), named_leaves(better), strict=True):
        if isinstance(before, jc.arrays.FactoredArray):
            assert (before.rank, before.shape, before.matrix_axes, before.dtype) == (
                after.rank,
                after.shape,
                after.matrix_axes,
                after.dtype,
            )
            changed += not np.array_equal(before.materialize(), after.materialize())
    assert changed > 1
    assert error(net, model.params, better, inputs) < error(net, model.params, plain, inputs)
