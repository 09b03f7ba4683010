"""The penalty on variation: its value and gradient, and that networks trained with it coarsen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import mlp, mlp_params, network
from laws import matrix

import jaxcompress as jc

X = np.random.default_rng(0).normal(size=(512, 5)).astype(np.float32)
Y = np.argmax(np.sin(2 * X) @ np.asarray(matrix(5, 3, seed=1)), axis=1)
PARAMS = mlp_params((5, 32, 32, 3))
NET = jc.trace(mlp, PARAMS, X)
COLUMN = {"up": jnp.ones((32, 1)), "down": jnp.ones((32, 1))}
COLUMN_NET = jc.trace(
    lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"],
    {"up": jnp.ones((1, 32)), "down": jnp.ones((32, 1))},
    X[:, :1],
)


@pytest.mark.parametrize(
    "name", ["mlp_by_hand", "encoder_by_hand", "encoder_linen", "fused_qkv", "convnet", "lstm"]
)
def test_it_is_finite_and_has_a_slope(name):
    """On axes under norms, in heads, in a flattening and in fused kernels."""
    model, net = network(name)
    found, gradient = jax.jit(
        jax.value_and_grad(lambda params: jc.training.variation(net, params), allow_int=True)
    )(model.params)
    assert 0 < float(found) < np.inf
    floats = [
        leaf for leaf in jax.tree.leaves(gradient) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in floats)
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in floats)


def test_what_it_is_zero_for():
    """Equal channels, and with degree 2 channels on a line; twins vary half as often."""
    alike = jax.tree.map(jnp.ones_like, PARAMS)
    assert float(jc.training.variation(NET, alike)) == 0
    gradient = jax.grad(lambda params: jc.training.variation(NET, params))(alike)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradient))
    t = jnp.arange(32.0)
    line = {
        "w0": jnp.ones((5, 1)) * t,
        "b0": t,
        "w1": t[:, None] + t,
        "b1": t,
        "w2": t[:, None] * jnp.ones(3),
    }
    assert (
        float(jc.training.variation(NET, line, degree=2))
        < 1e-6
        < float(jc.training.variation(NET, line))
    )
    plain = PARAMS | {
        name: jnp.zeros_like(leaf) for name, leaf in PARAMS.items() if name.startswith("b")
    }
    assert float(jc.training.variation(NET, jc.refine(NET, 2)(plain))) == pytest.approx(
        float(jc.training.variation(NET, plain)) / 2, rel=1e-4
    )


def test_a_jump_counts_once_however_many_channels_it_takes():
    """The variation of first differences is that of a function: their absolute values are added."""

    def steps(*places):
        rise = sum((jnp.arange(32) >= place) / len(places) for place in places)
        return {name: 10 + rise * jnp.ones_like(leaf).T for name, leaf in COLUMN.items()}

    once, twice, often = (
        float(jc.training.variation(COLUMN_NET, {"up": params["up"], "down": params["down"].T}))
        for params in (steps(16), steps(10, 22), steps(4, 12, 20, 28))
    )
    np.testing.assert_allclose([twice, often], once, rtol=0.05)


def test_biases_near_zero_are_not_blown_up():
    """They count in the unit of their kernel: the slope stays small however small they are."""
    for size in (0.0, 1e-6, 1e-3):
        params = {
            name: size * leaf / jnp.std(leaf) if name.startswith("b") else leaf
            for name, leaf in PARAMS.items()
        }
        gradient = jax.grad(lambda params: jc.training.variation(NET, params, degree=2))(params)
        assert float(jnp.abs(gradient["b0"]).max()) < 1


def test_in_half_precision_and_with_a_schedule():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    update = jc.training.add_variation(NET, jnp.float32(0.1)).update(
        half, optax.EmptyState(), half
    )[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(update)} == {jnp.dtype(jnp.bfloat16)}
    penalised = optax.inject_hyperparams(lambda strength: jc.training.add_variation(NET, strength))
    optimizer = optax.chain(penalised(strength=optax.linear_schedule(0.0, 0.1, 10)), optax.sgd(0.1))
    state = jc.fit(
        jc.training.cross_entropy(NET),
        PARAMS,
        (X, Y),
        optimizer=optimizer,
        steps=5,
        batch_size=64,
        progress=False,
    )
    assert np.isfinite(np.asarray(state.losses)).all()


def test_order_is_less_variation():
    for degree in (1, 2):
        assert float(jc.training.variation(NET, jc.seriate(NET)(PARAMS), degree=degree)) < float(
            jc.training.variation(NET, PARAMS, degree=degree)
        )


@pytest.mark.parametrize("degree", [1, 2])
def test_as_a_step_of_optax_it_is_a_term_of_the_loss(degree):
    loss = jc.training.cross_entropy(NET)

    def penalised(params, batch, key):
        return loss(params, batch, key) + 0.1 * jc.training.variation(NET, params, degree=degree)

    given = dict(steps=20, batch_size=64, progress=False)
    one = jc.fit(penalised, PARAMS, (X, Y), optimizer=optax.sgd(0.1), **given).params
    both = optax.chain(jc.training.add_variation(NET, 0.1, degree=degree), optax.sgd(0.1))
    two = jc.fit(loss, PARAMS, (X, Y), optimizer=both, **given).params
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("degree", "strength"), [(1, 0.2), (2, 0.03)])
def test_networks_are_trained_to_be_coarsened(degree, strength):
    """Half of the channels by averages, against training without the penalty."""
    loss, after = jc.training.cross_entropy(NET), {}
    for each in (0.0, strength):
        optimizer = optax.chain(
            jc.training.add_variation(NET, each, degree=degree), optax.adam(0.01)
        )
        params = jc.fit(
            loss,
            jc.seriate(NET)(PARAMS),
            (X, Y),
            optimizer=optimizer,
            steps=600,
            batch_size=64,
            progress=False,
        ).params
        moments = jc.calibrate(NET, params, [X], progress=False)
        coarse = jc.chain(jc.seriate(NET), jc.coarsen(NET, 2))(params, moments)
        rough = float(np.mean(list(jc.roughness(NET, params, moments).values())))
        after[each] = float(loss(coarse, (X, Y), None)), rough
    assert after[strength][0] < 0.7 * after[0.0][0]
    assert after[strength][1] < 0.8 * after[0.0][1]


def test_refusals():
    with pytest.raises(ValueError, match="degree must be"):
        jc.training.variation(NET, PARAMS, degree=3)
    with pytest.raises(ValueError, match="matches no hidden axis"):
        jc.training.variation(NET, PARAMS, axes="nothing")
    with pytest.raises(TypeError, match=r"takes a network from jc\.trace"):
        jc.training.variation(mlp, PARAMS)
    with pytest.raises(ValueError, match="strength must be"):
        jc.training.add_variation(NET, -1.0)
    with pytest.raises(ValueError, match="needs the parameters"):
        jc.training.add_variation(NET, 1.0).update(PARAMS, optax.EmptyState())
