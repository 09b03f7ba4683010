"""The one training loop: it learns, it resumes to the bit, it refuses what it cannot train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import matrix

import jaxcompress as jc
from jaxcompress.training.fit import examples_at

X = np.asarray(matrix(60, 12))
Y = np.argmax(X @ np.asarray(matrix(12, 3, seed=1)), axis=1)
LOSS = jc.training.cross_entropy(lambda p, x: x @ p["w"] + p["b"])
DENSE = {"w": 0.1 * matrix(12, 3, seed=2), "b": jnp.zeros(3)}


def train(params, steps=40, state=None, y=Y, **options):
    schedule = optax.cosine_decay_schedule(0.05, 40)
    return jc.fit(
        LOSS,
        params,
        (X, y),
        optimizer=optax.adam(schedule),
        steps=steps,
        batch_size=16,
        state=state,
        progress=False,
        **options,
    )


@pytest.mark.parametrize(
    "transform",
    [
        jc.identity(),
        jc.hashed(keep=1 / 2),
        jc.factored(keep=3 / 4),
        jc.vocabulary(keep=1 / 2, atoms="learned"),
    ],
)
@pytest.mark.parametrize("targets", [Y, np.eye(3, dtype=np.float32)[Y]], ids=["hard", "soft"])
def test_it_learns(transform, targets):
    params = {"w": transform(DENSE["w"]), "b": DENSE["b"]}
    state = train(params, y=targets)
    assert state.losses.shape == (40,)
    assert float(state.losses[-5:].mean()) < 0.8 * float(state.losses[:5].mean())
    assert jax.tree.structure(state.params) == jax.tree.structure(params)


def test_hard_targets_are_one_hot_soft_targets():
    hard, soft = train(DENSE), train(DENSE, y=np.eye(3, dtype=np.float32)[Y])
    np.testing.assert_allclose(hard.losses, soft.losses, rtol=1e-4)


@pytest.mark.parametrize("stop", [0, 1, 7, 39, 40])
def test_resuming_is_exact(stop, tmp_path):
    params = {"w": jc.hashed(keep=1 / 2)(DENSE["w"]), "b": DENSE["b"]}
    whole, half = train(params), train(params, steps=stop)
    jc.save(tmp_path / "state.safetensors", half)
    again = train(params, state=jc.load(tmp_path / "state.safetensors", like=half))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True)
    )


def test_given_parameters_survive():
    params = jax.tree.map(jnp.array, DENSE)
    train(params)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(DENSE), strict=True)
    )


def test_each_epoch_is_another_permutation():
    epochs = [
        np.concatenate(
            [examples_at(jnp.int32(4 * e + s), 8, 2, jnp.uint32(3)) for s in range(4)]
        ).tolist()
        for e in range(3)
    ]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_keys_differ_at_each_step():
    def loss(p, batch, key):
        return jnp.sum(p) * 0 + jax.random.uniform(key)

    state = jc.fit(
        loss, jnp.zeros(2), X, optimizer=optax.sgd(1.0), steps=5, batch_size=4, progress=False
    )
    assert len(set(np.asarray(state.losses).tolist())) == 5


def test_bad_input():
    with pytest.raises(TypeError, match=r"\['n'\] holds int"):
        train(DENSE | {"n": jnp.arange(3)})
    with pytest.raises(ValueError, match="same number of examples"):
        train(DENSE, y=Y[:5])
    with pytest.raises(ValueError, match="between 1 and the 60 examples"):
        jc.fit(LOSS, DENSE, (X, Y), optimizer=optax.sgd(1.0), steps=1, batch_size=61)
    with pytest.raises(ValueError, match="not finite at step 0"):
        jc.fit(
            LOSS,
            DENSE,
            (X * np.nan, Y),
            optimizer=optax.sgd(1.0),
            steps=1,
            batch_size=4,
            progress=False,
        )
    with pytest.raises(ValueError, match="already taken 3 steps"):
        train(DENSE, steps=2, state=train(DENSE, steps=3))


NOISY = np.random.default_rng(5).permutation(Y)
"""Labels that a model can only learn by heart."""

HELD_OUT = (np.asarray(matrix(30, 12, seed=7)), NOISY[:30])


def same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def test_validation_changes_nothing_but_the_curve():
    plain, validated = train(DENSE), train(DENSE, validation=HELD_OUT)
    same(
        (plain.params, plain.opt_state, plain.step, plain.losses),
        (validated.params, validated.opt_state, validated.step, validated.losses),
    )
    assert plain.curve is None
    assert validated.latest is None


@pytest.mark.parametrize("batch_size", [16, 30, 7])
def test_the_learning_curve_is_what_the_losses_give(batch_size):
    seen = []
    state = jc.fit(
        LOSS, DENSE, (X, Y), optimizer=optax.adam(0.05), steps=12, batch_size=batch_size,
        validation=HELD_OUT, callback=seen.append, callback_steps=5, progress=False,
    )  # fmt: skip
    curve = state.curve
    assert curve.steps.tolist() == [5, 10, 12]
    assert [state.curve.steps.tolist() for state in seen] == [[5], [5, 10], [5, 10, 12]]
    pieces = np.split(np.asarray(state.losses), [5, 10])
    np.testing.assert_allclose(curve.training, [piece.mean() for piece in pieces], rtol=1e-6)
    expected = [float(LOSS(step.params, HELD_OUT, None)) for step in seen]
    np.testing.assert_allclose(curve.validation, expected, rtol=1e-5)


def test_validation_takes_losses_that_have_no_value_without_examples():
    def loss(params, batch, key):  # the mean over no examples is NaN
        x, y = batch
        return jnp.mean((x @ params["w"] - y[:, None]) ** 2)

    for batch_size in (10, 16, 30):
        state = jc.fit(
            loss, DENSE, (X, NOISY), optimizer=optax.sgd(0.01), steps=2, batch_size=batch_size,
            validation=HELD_OUT, progress=False,
        )  # fmt: skip
        expected = float(loss(state.params, HELD_OUT, None))
        np.testing.assert_allclose(state.curve.validation[-1], expected, rtol=1e-5)


def overfit(**options):
    options = {"validation": HELD_OUT, "patience": 3, "steps": 400, "callback_steps": 4} | options
    given = {"optimizer": optax.adam(0.05), "batch_size": 16, "progress": False}
    return jc.fit(LOSS, DENSE, (X, NOISY), **given, **options)


def test_early_stopping_returns_the_best():
    seen = []
    state = overfit(callback=seen.append)
    assert int(state.step) < 400
    assert state.curve.stale == 3
    assert len(seen) == len(state.curve.steps) == state.curve.best + 4
    best = seen[state.curve.best]
    same(state.params, best.params)
    same(best.params, best.latest)
    assert float(LOSS(state.params, HELD_OUT, None)) == pytest.approx(
        float(state.curve.validation.min()), rel=1e-5
    )
    assert float(LOSS(state.latest, HELD_OUT, None)) > float(LOSS(state.params, HELD_OUT, None))
    same(overfit(state=state), state)  # it has stopped


@pytest.mark.parametrize("stop", [4, 8, 12])
def test_resuming_is_exact_with_early_stopping(stop, tmp_path):
    whole, half = overfit(), overfit(steps=stop)
    assert int(half.step) == stop
    jc.save(tmp_path / "state.safetensors", half)
    same(overfit(state=jc.load(tmp_path / "state.safetensors", like=half)), whole)


def test_patience_given_or_taken_on_the_way():
    """The run goes on from its last parameters, whatever is returned of it."""
    plain = overfit(patience=None, steps=40)
    same(overfit(patience=None, steps=40, state=overfit(steps=20, patience=50)), plain)
    later = overfit(steps=40, patience=50, state=overfit(patience=None, steps=20))
    same(later.latest, plain.params)


def test_evaluation_has_one_key():
    def loss(p, batch, key):
        return jnp.sum(p) * 0 + jax.random.uniform(key)

    state = jc.fit(
        loss, jnp.zeros(2), X, optimizer=optax.sgd(1.0), steps=4, batch_size=4, callback_steps=1,
        validation=X[:3], progress=False,
    )  # fmt: skip
    assert len(set(np.asarray(state.curve.validation).tolist())) == 1
    assert len(set(np.asarray(state.curve.training).tolist())) == 4


def test_the_curve_is_drawn(tmp_path):
    axes = train(DENSE, validation=HELD_OUT).curve.plot(path=tmp_path / "curve.png")
    assert [line.get_label() for line in axes.lines[:2]] == ["training", "validation"]
    assert (tmp_path / "curve.png").stat().st_size > 5_000
    again = train(DENSE, steps=4, validation=HELD_OUT).curve.plot(axes)
    assert again is axes
    with pytest.raises(ValueError, match="no points"):
        jc.training.LearningCurve(np.zeros(0), np.zeros(0), np.zeros(0)).plot()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 2}, "needs validation="),
        ({"patience": 0, "validation": HELD_OUT}, "patience must be a whole number"),
        ({"validation": X}, "a tree like the training data"),
        ({"validation": (X, Y[:5])}, "validation: every array of the data needs the same number"),
        ({"validation": (X[:0], Y[:0])}, "at least one"),
        ({"validation": (X[:, :5], Y)}, r"validation data\[0\] is float32\[5\].*float32\[12\]"),
        ({"validation": (X, np.eye(3)[Y])}, r"validation data\[1\] is float32\[3\].*int32\[\]"),
        ({"validation": (X * np.nan, Y)}, "validation loss is not finite after 4 steps"),
    ],
)
def test_validation_that_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        train(DENSE, **options)
