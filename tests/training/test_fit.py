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
    loss = lambda p, batch, key: jnp.sum(p) * 0 + jax.random.uniform(key)
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
