"""A few laws under the flags of JAX with which users look for their own mistakes."""

import contextlib
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import TRANSFORMS, matrix, moments

import jaxcompress as jc
from jaxcompress.classifiers.neighbours import nearest
from jaxcompress.models.bert import Bert, BertConfig


def x64():
    """Double precision as the default; a context of `jax.experimental` before JAX 0.8."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64(True)


@contextlib.contextmanager
def leaks():
    """The search for leaks, among objects that are made from here on."""
    gc.collect()
    gc.freeze()  # each of its thousands of collections would walk all that earlier tests keep
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.unfreeze()


FLAGS = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "leaks": leaks,
    "x64": x64,
    "nans": lambda: jax.debug_nans(True),
}
FORMS = (
    *("hashed", "hashed in blocks", "hashed, circular", "vocabulary, smooth"),
    *("vocabulary, look-ups", "factored", "convolved, cubic", "toeplitz, padded"),
)
ROWS = jnp.array([[0, 5], [11, 2]])


def noise(*shape, seed=0):
    """Float32 whatever the default is."""
    return matrix(*shape, seed=seed).astype(jnp.float32)


@jax.jit
def uses(array, stack, x):
    """A form in the ways that it is used: products, look-ups, a stack, gradients."""

    def loss(array):
        return jnp.sum((x @ array) ** 2) + jnp.sum(array.take(ROWS))

    return (
        x @ array,
        array.take(ROWS),
        x @ stack,
        jax.grad(loss)(array),
    )


def check_forms():
    """Meaning and gradient: a form is its dense array."""
    x, weight, metric = noise(2, 3, 12, seed=3), noise(12, 9), moments(12)
    for name in FORMS:
        array = TRANSFORMS[name](weight, metric)
        stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), array)
        dense = np.asarray(array.materialize(), np.float64)
        product, taken, stacked, slope = uses(array, stack, x)
        np.testing.assert_allclose(product, x @ dense, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(taken, dense[np.asarray(ROWS)], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(stacked, x @ dense, atol=1e-4, err_msg=name)
        assert jax.tree.structure(slope) == jax.tree.structure(array)
        assert array.dtype == weight.dtype


def normed(h, scale):
    h = h - h.mean(-1, keepdims=True)
    return h / jnp.sqrt((h**2).mean(-1, keepdims=True) + 1e-5) * scale[None, None]


def apply(p, ids):
    """Attention, a layer norm and a loop over time on a stream that is looked up."""
    h = p["words"][ids]
    q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in "qkv")
    near = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    h = h + jnp.einsum("bhts,bshk,hkd->btd", near, v, p["o"])
    h = h + jax.nn.relu(normed(h, p["scale"]) @ p["up"] + p["bias"][None, None]) @ p["down"]

    def turn(carry, u):
        carry = jnp.tanh(u @ p["i"] + carry @ p["r"])
        return carry, carry @ p["e"]

    return jax.lax.scan(turn, jnp.zeros_like(h[:, 0] @ p["i"]), h.swapaxes(0, 1))[1]


def check_network():
    """A network at smaller sizes: every transform runs, the identity changes nothing."""
    d, h, k = 8, 2, 4
    shapes = {"words": (11, d), "q": (d, h, k), "k": (d, h, k), "v": (d, h, k), "o": (h, k, d)}
    shapes |= {"up": (d, 12), "down": (12, d), "i": (d, 6), "r": (6, 6), "e": (6, 3)}
    params = {
        name: noise(*shape, seed=index) / 3 for index, (name, shape) in enumerate(shapes.items())
    }
    params |= {"bias": noise(12), "scale": 1 + noise(d) / 4}
    ids = jnp.arange(96).reshape(16, 6) * 7 % 11
    net = jc.trace(apply, params, ids)
    measured = jc.calibrate(net, params, [ids], sensitivity=True, progress=False)
    cut = jc.rotate_and_prune(net, jc.budget(2 / 3))(params, measured)
    assert np.isfinite(net(cut, ids)).all()
    recipe = jc.chain(
        *(jc.seriate(net), jc.coarsen(net, 2), jc.refine(net, 2)),
        jc.rotate_and_prune(net, 1 / 2),
        jc.reconstruct(net, [ids], progress=False),
        jc.at("up", jc.hashed(1 / 2)),
    )
    small = recipe(params, measured)
    slope = jax.grad(lambda p: jnp.sum(net(p, ids) ** 2))(small)
    for leaf, gradient in zip(jax.tree.leaves(small), jax.tree.leaves(slope), strict=True):
        assert leaf.dtype == gradient.dtype == np.float32
        assert np.isfinite(gradient).all()
    same = jc.chain(jc.rotate_and_prune(net, 1.0), jc.at("up", jc.factored(1)))(params)
    np.testing.assert_allclose(net(same, ids), apply(params, ids), atol=1e-4)


def check_rooms_beside():
    """A mesh of a classifier inside and outside jit, neighbours, and an encoder of texts."""
    points = np.random.default_rng(0).uniform(size=(40, 2)).astype(np.float32)
    inside = np.sum(points**2, 1) < 0.5
    mesh = jc.classifiers.realize(
        lambda x: (np.sum(x**2, 1) < 0.5).astype(int), [[0, 0], [1, 1]], jnd=1 / 16, coarse=4,
        progress=False,
    ).mesh  # fmt: skip
    np.testing.assert_array_equal(jax.jit(mesh)(points), mesh(points))
    assert np.mean(mesh(points) == inside) > 0.9
    distances, _ = nearest(points, points, 2)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.testing.assert_allclose(distances, np.sort(gaps, 1)[:, :2], atol=1e-5)
    encoder = Bert(
        BertConfig(11, 8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    ids = jnp.array([[1, 2, 3], [4, 5, 6]])
    assert np.isfinite(encoder.apply(encoder.init(jax.random.key(0), ids), ids)).all()


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.filterwarnings("ignore:.*is selected, not:UserWarning")
def test_forms_and_networks_under_a_flag(flag):
    with contextlib.ExitStack() as stack:
        stack.enter_context(FLAGS[flag]())
        check_forms()
        check_network()
        check_rooms_beside()
