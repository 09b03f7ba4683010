"""Multigrid training: the refined state is that of a finer run, and a run resumes to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import close, mlp, mlp_params, network, outputs
from laws import matrix

import jaxcompress as jc
from jaxcompress.training.optimizer_state import accumulators, refine_state
from jaxcompress.transforms.resolution import thin

X = np.asarray(matrix(96, 5))
Y = np.argmax(X @ np.asarray(matrix(5, 3, seed=1)), axis=1)
PARAMS = mlp_params((5, 16, 12, 3))
NET = jc.trace(mlp, PARAMS, X)
LOSS = jc.training.cross_entropy(NET)
LEVELS = ((4, 10), (2, 7), (1, 8))


def train(levels=LEVELS, optimizer=None, **options):
    optimizer = optimizer or optax.adam(optax.cosine_decay_schedule(0.02, 25))
    options = {"batch_size": 16, "progress": False} | options
    return jc.multigrid(NET, LOSS, PARAMS, (X, Y), optimizer=optimizer, levels=levels, **options)


def equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


def test_sizes_grow_and_costs_with_them():
    state = train()
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, PARAMS)
    assert state.losses.shape == state.flops.shape == (25,)
    coarse, middle, fine = (float(state.flops[step]) for step in (1, 11, 18))
    assert coarse < middle < fine
    assert float(state.flops[10]) > middle  # the change of resolution counts
    assert state.spent == pytest.approx(float(state.flops.sum()), rel=1e-5)
    assert float(state.losses[-5:].mean()) < float(state.losses[:5].mean())


@pytest.mark.parametrize("stop", [0, 3, 10, 12, 17, 24])
def test_resuming_is_exact(stop, tmp_path):
    """Inside a level and between two."""
    whole, half = train(), train(until=stop)
    assert int(half.step) == stop
    jc.save(tmp_path / "state.safetensors", half)
    equal(train(state=jc.load(tmp_path / "state.safetensors", like=half)), whole)


def test_one_level_is_fit():
    optimizer = optax.adam(0.01)
    fitted = jc.fit(
        LOSS, PARAMS, (X, Y), optimizer=optimizer, steps=20, batch_size=16, progress=False
    )
    equal(train(((1, 20),), optimizer).params, fitted.params)


BIASES = {name: "b" if name.startswith("b") else "w" for name in PARAMS}
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "clipped adam": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1)),
    "adagrad": optax.adagrad(0.1),
    "adan": optax.adan(0.1),
    "lion": optax.lion(0.1),
    "rmsprop": optax.rmsprop(0.1, momentum=0.9),
    "a trace of steps": optax.chain(optax.adam(0.1), optax.trace(0.9)),
    "several steps": optax.MultiSteps(optax.adam(0.1), 2),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "adam for weights": optax.multi_transform(
        {"w": optax.adam(0.01), "b": optax.sgd(0.01, momentum=0.9)}, BIASES
    ),
    "adam for biases": optax.multi_transform(
        {"b": optax.adam(0.01), "w": optax.sgd(0.01, momentum=0.9)}, BIASES
    ),
}
NOT_EXACT = {"clipped adam"}
"""Gradients are divided by a norm over all parameters, which refinement changes."""


def refined_state_is_right(name, optimizer, tol=2e-4):
    """Gradients of a refined network are the coarse ones, refined; so is the optimizer's state."""
    model, net = network(name) if name else (None, NET)
    params, inputs = (model.params, model.inputs) if model else (PARAMS, (X,))

    def total(params):
        return sum(
            jnp.sum(jnp.sin(leaf))
            for leaf in jax.tree.leaves(net(params, *inputs))
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        )

    change = jc.refine(net, 2)
    states = []
    for tree in (params, change(params)):
        gradient, state = jax.jit(jax.grad(total))(tree), optimizer.init(tree)
        for turn in range(3):
            scaled = jax.tree.map(lambda leaf, turn=turn: (1 + 0.3 * turn) * leaf, gradient)
            state = jax.jit(optimizer.update)(scaled, state, tree)[1]
        states.append(state)
    found = refine_state(optimizer, states[0], params, change, accumulators(optimizer, params))
    assert jax.tree.structure(found) == jax.tree.structure(states[1])
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(states[1]), strict=True):
        np.testing.assert_allclose(
            one, two, rtol=tol, atol=tol * max(float(jnp.abs(two).max()), 1e-2)
        )


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in NOT_EXACT])
def test_a_state_is_what_the_refined_network_gives(name):
    refined_state_is_right(
        None, OPTIMIZERS[name], *[5e-3] * (name == "rmsprop")
    )  # whose epsilon is inside the root


@pytest.mark.parametrize("name", ["encoder_linen", "encoder_rms", "convnet", "lstm"])
def test_on_every_kind_of_axis(name):
    refined_state_is_right(name, optax.adam(0.1))


@pytest.mark.parametrize("name", ["mlp_by_hand", "encoder_linen", "encoder_rms", "convnet", "lstm"])
def test_the_function_is_kept_from_level_to_level(name):
    """Steps of no length show it: what the coarsest level computes is what the last does."""
    model, net = network(name)

    def loss(params, batch, key):
        return sum(
            jnp.sum(jnp.sin(leaf))
            for leaf in jax.tree.leaves(net(params, *model.inputs))
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        )

    given = dict(
        optimizer=optax.sgd(0.0), levels=((4, 1), (2, 1), (1, 1)), batch_size=1, progress=False
    )
    state = jc.multigrid(net, loss, model.params, np.zeros((1, 1)), **given)
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, model.params)
    close(
        outputs(model, net(state.params, *model.inputs)),
        outputs(model, net(thin(net, 4)(model.params), *model.inputs)),
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_trains(name):
    state = train(optimizer=OPTIMIZERS[name])
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, PARAMS)
    assert np.isfinite(np.asarray(state.losses)).all()


def test_powers_are_found_by_trying():
    def powers(name):
        return sorted({array.power for array in accumulators(OPTIMIZERS[name], PARAMS)})

    assert powers("sgd") == []
    assert powers("momentum") == powers("lion") == [1]
    assert powers("adam") == powers("clipped adam") == powers("several steps") == [1, 2]
    assert powers("rmsprop") == [0, 2]
    assert powers("adagrad") == [2]
    penalised = optax.chain(jc.training.add_variation(NET, 0.1), optax.adam(0.01))
    assert np.isfinite(np.asarray(train(optimizer=penalised).losses)).all()


def test_axes_that_are_not_named_keep_their_size():
    seen = []
    jc.multigrid(
        NET, LOSS, PARAMS, (X, Y), optimizer=optax.sgd(0.1), levels=((4, 2), (1, 2)), axes="w0",
        batch_size=8, callback=seen.append, progress=False,
    )  # fmt: skip
    assert [state.params["w0"].shape[1] for state in (seen[0], seen[-1])] == [4, 16]
    assert {state.params["w1"].shape[1] for state in seen} == {12}


def power_of_gradients(power):
    """An optimizer that keeps a sum of powers of the gradient."""

    def update(updates, state, params=None):
        state = jax.tree.map(lambda s, g: s + jnp.sign(g) * jnp.abs(g) ** power, state, updates)
        return jax.tree.map(lambda s: -0.1 * s, state), state

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


@pytest.mark.parametrize("power", [0.6, 1.0, 1.2, 2.0, 2.6])
def test_only_whole_powers_of_gradients_are_refined(power):
    if power == round(power):
        assert {array.power for array in accumulators(power_of_gradients(power), PARAMS)} == {power}
        return
    with pytest.raises(ValueError, match="neither like its parameter nor like a power"):
        accumulators(power_of_gradients(power), PARAMS)


def test_what_it_starts_from_has_the_variance_of_the_whole():
    params = mlp_params((5, 512, 512, 64))
    params |= {name: jnp.zeros_like(leaf) for name, leaf in params.items() if name.startswith("b")}
    net = jc.trace(mlp, params, X)
    small = thin(net, 4)(params)
    assert small["w1"].shape == (128, 128)
    for name in ("w1", "w2"):
        assert float(jnp.var(small[name])) == pytest.approx(
            4 * float(jnp.var(params[name])), rel=0.1
        )
    outputs = [float(jnp.var(net(each, X))) for each in (params, small)]
    assert outputs[1] == pytest.approx(outputs[0], rel=0.3)


def test_a_watcher_sees_every_piece_and_may_keep_it():
    seen = []
    whole = train(callback=seen.append, callback_steps=5)
    assert [int(state.step) for state in seen] == [5, 10, 15, 17, 20, 25]
    assert seen[0].params["w0"].shape == (5, 4)
    assert seen[-1].spent == whole.spent
    assert "FLOPs" in repr(whole)
    equal(train(state=seen[2]), whole)


def test_refusals():
    for levels, why in (
        (((4, 10), (2, 10)), "must fall to 1"),
        (((1, 10), (2, 10)), "must fall to 1"),
        (((4, 0), (1, 10)), "at least one step"),
        ((4, 1), "a factor and a number of steps"),
        (((float("nan"), 1), (1, 10)), "a factor and a number of steps"),
        (((float("inf"), 1), (1, 10)), "a factor and a number of steps"),
    ):
        with pytest.raises(ValueError, match=why):
            train(levels)
    seen = []
    with pytest.raises(ValueError, match="keeps an array of shape"):
        train(optimizer=optax.adafactor(0.1, min_dim_size_to_factor=2), callback=seen.append)
    assert not seen
    with pytest.raises(ValueError, match="is compact"):
        jc.multigrid(
            NET,
            LOSS,
            jc.at("w0", jc.hashed(1 / 2))(PARAMS),
            (X, Y),
            optimizer=optax.sgd(0.1),
            levels=LEVELS,
            batch_size=8,
        )
    renamed = {name.replace("b0", "bias"): leaf for name, leaf in PARAMS.items()}
    with pytest.raises(ValueError, match=r"not the traced parameters: \['b0', 'bias'\] differ"):
        jc.multigrid(
            NET, LOSS, renamed, (X, Y), optimizer=optax.sgd(0.1), levels=LEVELS, batch_size=8,
            progress=False,
        )  # fmt: skip
    with pytest.raises(ValueError, match="has already taken 17 steps"):
        train(((1, 3),), state=train(until=17))
    whole = train(((1, 3),))
    for levels, state in ((((2, 10), (1, 15)), train(until=3)), (LEVELS, whole)):
        with pytest.raises(ValueError, match="go on with the levels that it began with"):
            train(levels, state=state)
    fitted = jc.fit(
        LOSS, PARAMS, (X, Y), optimizer=optax.sgd(0.1), steps=1, batch_size=16, progress=False
    )
    with pytest.raises(TypeError, match="a MultigridState; got FitState"):
        train(state=fitted)
    model, net = network("encoder_linen")
    with pytest.raises(ValueError, match="asks for whole factors"):
        jc.multigrid(
            net, lambda p, b, k: jnp.float32(0), model.params, (X, Y), optimizer=optax.sgd(0.1),
            levels=((6, 1), (2.25, 1), (1, 1)), batch_size=8, progress=False,
        )  # fmt: skip


def test_training_at_any_resolution_serves_the_coarse_ones():
    """Against training at full size alone: less is lost where channels are averaged."""
    x = np.random.default_rng(0).normal(size=(512, 5)).astype(np.float32)
    y = np.argmax(np.sin(2 * x) @ np.asarray(matrix(5, 3, seed=1)), axis=1)
    given = dict(optimizer=optax.adam(0.01), steps=400, batch_size=64, progress=False)
    losses = {}
    for name, loss in (
        ("full", LOSS),
        ("any", jc.training.at_any_resolution(NET, LOSS, (1, 2, 4))),
    ):
        params = jc.fit(loss, PARAMS, (x, y), **given).params
        losses[name] = [
            float(LOSS(jc.coarsen(NET, factor)(params), (x, y), None)) for factor in (1, 4)
        ]
    assert losses["any"][1] < losses["full"][1] - 0.1
    with pytest.raises(ValueError, match="give it a key"):
        jc.training.at_any_resolution(NET, LOSS)(PARAMS, (x, y), None)
    with pytest.raises(ValueError, match="needs factors"):
        jc.training.at_any_resolution(NET, LOSS, ())
