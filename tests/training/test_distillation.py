"""Soft targets: both ends of the temperature, students that agree, hidden states of any width."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import mlp, mlp_params
from laws import matrix

import jaxcompress as jc
from jaxcompress.training.distillation import alignment

X = np.random.default_rng(0).normal(size=(256, 5)).astype(np.float32)
TEACHER, STUDENT = mlp_params((5, 32, 32, 4)), mlp_params((5, 16, 16, 4), seed=1)
SAID = jc.training.predict(mlp, TEACHER, X, progress=False)
Y = SAID.argmax(1)


@pytest.mark.parametrize("batch_size", [1, 7, 256, 1_000])
def test_outputs_are_those_of_one_call(batch_size):
    def both(params, x):
        return {"logits": mlp(params, x["x"]), "x": x["x"]}

    found = jc.training.predict(both, TEACHER, {"x": X}, batch_size=batch_size, progress=False)
    np.testing.assert_allclose(found["logits"], mlp(TEACHER, X), atol=1e-5)
    np.testing.assert_array_equal(found["x"], X)


def test_at_both_ends_of_the_temperature():
    """Hot, the gradient is that of centred logits; at 1 with labels alone it is cross entropy."""

    def slope(loss, batch):
        return jax.grad(loss)(STUDENT, batch, None)

    def centred(z):
        return z - z.mean(1, keepdims=True)

    def squared(params, batch, key):
        return jnp.mean((centred(mlp(params, batch[0])) - centred(batch[1])) ** 2) / 2

    hot = slope(jc.training.distillation_loss(mlp, temperature=1e3), (X, SAID))
    for one, two in zip(
        jax.tree.leaves(hot), jax.tree.leaves(slope(squared, (X, SAID))), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=0.02, atol=0.02 * float(jnp.abs(two).max()))
    hard = slope(jc.training.distillation_loss(mlp, hard=1.0), (X, Y, SAID))
    for one, two in zip(
        jax.tree.leaves(hard),
        jax.tree.leaves(slope(jc.training.cross_entropy(mlp), (X, Y))),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_the_teacher_itself_is_the_minimum(temperature):
    loss = jc.training.distillation_loss(mlp, temperature=temperature)
    assert float(loss(TEACHER, (X, SAID), None)) == pytest.approx(0, abs=1e-4)
    assert float(loss(STUDENT, (X, SAID), None)) > 0.1
    assert all(
        float(jnp.abs(leaf).max()) < 1e-3
        for leaf in jax.tree.leaves(jax.grad(loss)(TEACHER, (X, SAID), None))
    )


def test_the_parts_add_up():
    parts = [
        float(
            jc.training.distillation_loss(mlp, temperature=2.0, hard=share)(
                STUDENT, (X, Y, SAID), None
            )
        )
        for share in (0.0, 0.3, 1.0)
    ]
    assert parts[1] == pytest.approx(0.7 * parts[0] + 0.3 * parts[2], rel=1e-5)


def test_smoothing_is_a_mixture_of_labels():
    soft = 0.9 * jax.nn.one_hot(Y, 4) + 0.1 / 4
    smooth = jc.training.cross_entropy(mlp, smoothing=0.1)
    assert float(smooth(STUDENT, (X, Y), None)) == pytest.approx(
        float(jc.training.cross_entropy(mlp)(STUDENT, (X, soft), None)), rel=1e-5
    )


def test_hidden_states_of_another_width_come_to_agree():
    def both(params, x):
        hidden = jax.nn.relu(
            jax.nn.relu(x @ params["w0"] + params["b0"]) @ params["w1"] + params["b1"]
        )
        return hidden @ params["w2"], hidden

    said, hidden = jc.training.predict(both, TEACHER, X, progress=False)
    before = float(alignment(both(STUDENT, X)[1], hidden))
    given = dict(optimizer=optax.adam(0.01), steps=150, batch_size=256, progress=False)
    after = [
        float(
            alignment(
                both(
                    jc.fit(
                        jc.training.distillation_loss(both, states=weight),
                        STUDENT,
                        (X, said, hidden),
                        **given,
                    ).params,
                    X,
                )[1],
                hidden,
            )
        )
        for weight in (1e-6, 10.0)
    ]
    assert before < after[1]
    assert 1 - after[1] < 0.7 * (1 - after[0])


def test_alignment_is_blind_to_rotation_and_scale():
    rotation = np.linalg.qr(np.asarray(matrix(5, 5)))[0]
    assert float(alignment(X, 3 * X @ rotation + 1)) == pytest.approx(1, abs=1e-5)
    other = np.random.default_rng(1).normal(size=(256, 9)).astype(np.float32)
    assert float(alignment(X, other)) < 0.1
    assert float(alignment(X, np.ones((256, 2), np.float32))) == 0


def test_students_learn_what_the_teacher_says_of_new_inputs():
    """Its probabilities, which labels say nothing of."""
    given = dict(optimizer=optax.adam(0.01), steps=300, batch_size=64, progress=False)
    fresh = np.random.default_rng(2).normal(size=(4_000, 5)).astype(np.float32)

    def apart(params):
        return float(
            jc.training.distillation_loss(mlp, temperature=1.0)(
                params, (fresh, mlp(TEACHER, fresh)), None
            )
        )

    soft = jc.fit(
        jc.training.distillation_loss(mlp, temperature=2.0), STUDENT, (X, SAID), **given
    ).params
    hard = jc.fit(jc.training.cross_entropy(mlp), STUDENT, (X, Y), **given).params
    assert apart(soft) < 0.3 * apart(hard)


def test_refusals():
    for wrong in (dict(temperature=0.0), dict(hard=1.5), dict(states=-1.0)):
        with pytest.raises(ValueError, match="distillation"):
            jc.training.distillation_loss(mlp, **wrong)
    with pytest.raises(ValueError, match="a batch is"):
        jc.training.distillation_loss(mlp, hard=0.5)(STUDENT, (X, SAID), None)
    with pytest.raises(ValueError, match="the teacher"):
        jc.training.distillation_loss(mlp)(STUDENT, (X, SAID[:, :2]), None)
    with pytest.raises(ValueError, match="at least one"):
        jc.training.predict(mlp, TEACHER, X[:0])
    with pytest.raises(ValueError, match="first dimension"):
        jc.training.predict(lambda p, x: x.sum(0), TEACHER, X, progress=False)
    with pytest.raises(ValueError, match="smoothing"):
        jc.training.cross_entropy(mlp, smoothing=1.0)
