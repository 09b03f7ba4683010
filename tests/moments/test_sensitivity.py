"""Sensitivity of the outputs to every contraction: second moments of Jacobians, and their maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network, outputs

import jaxcompress as jc
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.transforms.consumers import consumer_gram
from jaxcompress.transforms.network_state import NetworkState


def felt(net, params, inputs, turns):
    return jc.calibrate(net, params, [inputs] * turns, sensitivity=True, progress=False).gains


def test_gains_are_the_jacobians_second_moments():
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        "a": jax.random.normal(keys[0], (5, 6)),
        "b": jax.random.normal(keys[1], (6, 4, 2)),
        "c": jax.random.normal(keys[2], (4, 2, 3)),
    }

    def tail(p, y):  # what follows the first product
        h = jnp.einsum("btd,dhs->bths", jax.nn.tanh(y), p["b"])
        return jnp.einsum("bths,hsk->bk", jax.nn.tanh(h), p["c"])

    x = jax.random.normal(keys[3], (7, 3, 5))
    net = jc.trace(lambda p, x: tail(p, x @ p["a"]), params, x)
    gain = felt(net, params, (x,), 300)["a#0"]
    y = x @ params["a"]
    jacobian = np.asarray(jax.jacobian(lambda y: tail(params, y))(y), np.float64)  # (7, 3, 7, 3, 6)
    expected = np.einsum("bkrtp,bkrtq->pq", jacobian, jacobian) / (7 * 3)
    assert gain.count == 300 * 21
    np.testing.assert_allclose(gain.cov, expected, atol=0.1 * np.abs(expected).max())
    gain = felt(net, params, (x,), 300)["b#0"]
    h = jnp.einsum("btd,dhs->bths", jax.nn.tanh(y), params["b"])

    def tail_of(h):
        return jnp.einsum("bths,hsk->bk", jax.nn.tanh(h), params["c"])

    jacobian = np.asarray(jax.jacobian(tail_of)(h), np.float64).reshape(21, 21, 8)
    expected = np.einsum("zrp,zrq->pq", jacobian, jacobian) / 21
    np.testing.assert_allclose(gain.cov, expected, atol=0.1 * np.abs(expected).max())


def test_a_table_that_is_looked_up_is_felt():
    """Each text reads a word once: errors of rows are independent, and the prediction unbiased."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"words": (20, 6), "up": (6, 8), "down": (8, 3)}
    params = {
        name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items())
    }

    def apply(p, ids):
        return (jax.nn.tanh(p["words"][ids] @ p["up"]) @ p["down"]).mean(1)

    ids = jax.random.permutation(
        keys[3], jnp.tile(jnp.arange(20), (40, 1)), axis=1, independent=True
    )[:, :7]
    net = jc.trace(apply, params, ids)
    moments = jc.calibrate(net, params, [ids] * 50, sensitivity=True, progress=False)
    gain, often = moments.gains["words#0"].cov, moments.by_leaf()["words"]
    before, moved, predicted = apply(params, ids), [], []
    for seed in range(50):
        noise = 1e-2 * jax.random.normal(jax.random.key(seed), shapes["words"])
        moved.append(
            jnp.mean((apply(params | {"words": params["words"] + noise}, ids) - before) ** 2)
        )
        predicted.append(jnp.trace(gain @ noise.T @ (often[:, None] * noise)))
    np.testing.assert_allclose(np.mean(moved), np.mean(predicted), rtol=0.15)
    assert moments.gain_by_leaf()["words"] == pytest.approx(np.trace(gain) / 6)


@pytest.mark.parametrize("name", ["lstm", "convnet", "encoder_by_hand", "stacked_scan"])
def test_a_small_change_of_a_kernel_moves_the_outputs_by_what_is_predicted(name):
    """tr(G dW' S dW) against the outputs, in loops, windows and attention."""
    model, net = network(name)
    inputs = model.resize(64, 6) if model.resize else model.inputs
    moments = jc.calibrate(net, model.params, [inputs] * 20, sensitivity=True, progress=False)
    before = jax.tree.leaves(outputs(model, net(model.params, *inputs)))[0]
    ratios = []
    flat, treedef = jax.tree_util.tree_flatten_with_path(model.params)
    names = [name for name, _ in named_leaves(model.params)]
    for key, gain in moments.gains.items():
        site = net.structure.sites.get(key)
        if site is None or len(site.inputs) != 1 or len(moments.sites[key].dims) != len(site.dims):
            continue
        ((leaf, order),) = site.inputs.items()
        index = names.index(leaf)
        value = np.asarray(flat[index][1], np.float64)
        moved = np.moveaxis(value, order, range(len(order)))
        for seed in range(3):
            change = np.random.default_rng(seed).normal(size=moved.shape) * 1e-3 * value.std()
            matrix = change.reshape(len(moments.sites[key].mean), -1)
            predicted = np.einsum(
                "ip,pq,ij,jq->", matrix, gain.cov, moments.sites[key].second, matrix
            )
            moved_back = np.moveaxis(moved + change, range(len(order)), order)
            leaves = [
                jnp.asarray(moved_back, jnp.float32) if i == index else leaf
                for i, (_, leaf) in enumerate(flat)
            ]
            after = jax.tree.leaves(
                outputs(model, net(jax.tree.unflatten(treedef, leaves), *inputs))
            )[0]
            ratios.append(float(jnp.mean((after - before) ** 2)) / max(predicted, 1e-30))
    assert len(ratios) >= 3
    assert 0.3 < np.exp(np.mean(np.log(ratios))) < 3.5


@pytest.mark.parametrize("name", ["linear_mlp", "fused_qkv", "encoder_by_hand"])
@pytest.mark.filterwarnings("ignore:.*is selected, not:UserWarning")
def test_gains_follow_the_maps(name):
    """Sizes fit after every map, and on a linear axis a cut network feels what its moments say."""
    model, net = network(name)
    inputs = model.resize(64, 6) if model.resize else model.inputs
    moments = jc.calibrate(net, model.params, [inputs], sensitivity=True, progress=False)
    small, carried = jc.rotate_and_prune(net, 3 / 4).apply(model.params, moments)
    fresh = jc.calibrate(net, small, [inputs], sensitivity=True, progress=False)
    assert carried.gains.keys() == fresh.gains.keys()
    for key, gain in carried.gains.items():
        assert gain.cov.shape == fresh.gains[key].cov.shape
        if name == "linear_mlp":
            np.testing.assert_allclose(
                gain.cov, fresh.gains[key].cov, atol=0.35 * np.abs(gain.cov).max()
            )


def test_straight_through_gradients_are_those_of_the_rule():
    """A custom derivative is used: rounding passes it straight through, its own would be zero."""

    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    net = jc.trace(lambda p, x: rounded(x @ p["a"]) @ p["b"], params, jnp.ones((5, 3)))
    gains = felt(net, params, (jnp.ones((5, 3)),), 50)
    np.testing.assert_allclose(gains["a#0"].cov, 1, atol=0.3)


def test_outputs_without_floats_are_refused():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    net = jc.trace(
        lambda p, x: jnp.argmax(jax.nn.relu(x @ p["a"]) @ p["b"], -1), params, jnp.ones((5, 3))
    )
    with pytest.raises(ValueError, match="sensitivity needs outputs that are floats"):
        jc.calibrate(net, params, [jnp.ones((5, 3))], sensitivity=True, progress=False)


def test_padding_is_not_felt():
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(5, 6)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
    }
    x, mask = (
        rng.normal(size=(20, 8, 5)),
        np.broadcast_to(np.arange(8) < 3, (20, 8)).astype(np.float32),
    )
    junk = np.where(mask[..., None] > 0, x, 100)
    net = jc.trace(lambda p, x, mask: jnp.tanh(jax.nn.relu(x @ p["a"]) @ p["b"]), params, x, mask)
    data = [jc.Calibration([(each, mask)], mask=lambda x, mask: mask) for each in (x, junk)]
    ours, theirs = (
        jc.calibrate(net, params, each, sensitivity=True, progress=False).gains for each in data
    )
    for key, gain in ours.items():
        np.testing.assert_allclose(gain.cov, theirs[key].cov, rtol=1e-4, atol=1e-7)
        assert gain.count == 20 * 3 * 3


def test_masked_places_are_not_felt_where_a_valid_output_depends_on_them():
    """One output counts; its derivative at the other places is not zero."""
    rng = np.random.default_rng(1)
    shapes = {"a": (5, 4), "b": (4, 1)}
    params = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    x = rng.normal(size=(1, 3, 5)).astype(np.float32)
    mask = np.array([[1.0, 0.0, 0.0]], np.float32)

    def rest(h, b):
        return jnp.tanh(h + h.mean(1, keepdims=True)) @ b

    net = jc.trace(lambda p, x, mask: rest(x @ p["a"], p["b"]), params, x, mask)
    data = jc.Calibration([(x, mask)], mask=lambda x, mask: mask)
    gains = jc.calibrate(net, params, data, sensitivity=True, progress=False).gains
    inputs = jnp.asarray(x @ params["a"])
    felt = np.asarray(jax.grad(lambda h: rest(h, params["b"])[0, 0, 0])(inputs)[0], np.float64)
    assert np.abs(felt[1:]).max() > 0.05
    np.testing.assert_allclose(gains["a#0"].cov, np.outer(felt[0], felt[0]), rtol=1e-4, atol=1e-6)


def test_a_derivative_that_is_nan_is_left_out_and_told(caplog):
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"a": jax.random.normal(keys[0], (5, 16)), "b": jax.random.normal(keys[1], (16, 3))}

    def apply(p, x):  # finite at zero, but not its derivative
        h = jnp.tanh(x @ p["a"])
        return h / (jnp.sqrt((h * h).sum(-1, keepdims=True)) + 1e-6) @ p["b"]

    x = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    x[0] = 0
    net = jc.trace(apply, params, x)
    moments = jc.calibrate(net, params, [x], sensitivity=True, progress=False)
    assert list(moments.gains) == ["b#0"]
    assert "NaN or infinite at a#0" in caplog.text
    assert jc.rotate_and_prune(net, jc.budget(1 / 2)).plan(params, moments).stored[1] <= 64


def test_dimensions_that_the_product_has_in_another_order():
    """A kernel (heads, inputs, sizes) used as (sizes * heads): gains have the kernel's order."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {"a": draw(5, 24), "w": draw(2, 24, 3), "b": draw(6), "v": draw(6, 3)}

    def inner(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["w"].transpose(1, 2, 0).reshape(-1, 6) + p["b"]

    def outer(p, y):
        return jnp.tanh(y * 0.1) @ p["v"]

    x = np.asarray(rng.normal(size=(400, 5)) + 1, np.float32)
    net = jc.trace(lambda p, x: outer(p, inner(p, x)), params, x)
    moments = jc.calibrate(net, params, [x] * 100, sensitivity=True, progress=False)
    jacobian = np.asarray(jax.vmap(jax.jacobian(lambda y: outer(params, y)))(inner(params, x)))
    expected = np.einsum("bzp,bzq->pq", jacobian, jacobian) / (400 * 3)
    order = [size * 2 + head for head in range(2) for size in range(3)]
    np.testing.assert_allclose(
        moments.gains["w#0"].cov, expected[np.ix_(order, order)], atol=0.1 * expected.max()
    )
    for recipe in (jc.identity(), jc.reconstruct(net, [x], progress=False)):
        small = jc.chain(jc.rotate_and_prune(net, 3 / 4, axes="a"), recipe)(params, moments)
        assert float(jnp.abs((inner(small, x) - inner(params, x)).mean(0)).max()) < 0.15


def test_a_tied_kernel_is_felt_where_it_is_read():
    rng = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(rng.normal(size=(6, 16)), jnp.float32),
        "o": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
    }
    x = np.asarray(rng.normal(size=(100, 6)), np.float32)
    net = jc.trace(lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T) @ p["o"], params, x)
    moments = jc.calibrate(net, params, [x], sensitivity=True, progress=False)
    state = NetworkState.of(net.structure, params, moments)
    axis = next(axis for axis in net.axes if axis.key == "w:1")
    kernel = np.asarray(params["w"], np.float64)
    np.testing.assert_allclose(
        consumer_gram(state, axis)[0], kernel.T @ moments.gains["w#1"].cov @ kernel, rtol=1e-6
    )


def test_loops_of_unknown_length_and_complex_outputs():
    params = {"a": jnp.ones((5, 16)), "c": jnp.ones((16, 5))}

    def halve(h):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 0.5), (0, h))[1]

    for apply in (
        lambda p, x: halve(x @ p["a"]) @ p["c"],
        lambda p, x: jnp.fft.fft(x @ p["a"] @ p["c"]),
    ):
        net = jc.trace(apply, params, jnp.ones((4, 5)))
        gains = jc.calibrate(
            net, params, [jnp.ones((4, 5))], sensitivity=True, progress=False
        ).gains
        assert np.trace(gains["c#0"].cov) > 0
