"""A student that learns from texts alone comes near its teacher; the loop resumes to the bit."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcompress as jc
from jaxcompress.documents.batches import buckets, embed, hidden_states
from jaxcompress.documents.distillation import (
    batches_with,
    distillation_loss,
    embedding_loss,
    similarity_loss,
    state_loss,
)
from jaxcompress.documents.encoder import network
from jaxcompress.documents.learning import embedded
from jaxcompress.documents.retrieval import fidelity
from jaxcompress.models.bert import Bert, BertConfig
from jaxcompress.models.pooling import Projection
from jaxcompress.training.stream import fit_stream

RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(1, 40, RNG.integers(3, 30)).astype(np.int32) for _ in range(60)]
MODEL = Bert(BertConfig(40, 16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
PARAMS = jax.jit(MODEL.init)(jax.random.key(1), jnp.ones((1, 4), int))["params"]


def apply(params, ids, mask):
    return MODEL.apply({"params": params}, ids, mask)


def test_a_cut_encoder_recovers_on_texts_alone():
    teacher = embed(apply, PARAMS, TEXTS, progress=False)
    batches = buckets(TEXTS, tokens=256, seed=0)
    net = jc.trace(apply, PARAMS, *batches[0].inputs)
    moments = jc.calibrate(
        net,
        PARAMS,
        jc.Calibration([batch.inputs for batch in batches], mask=lambda ids, mask: mask),
        progress=False,
    )
    small = jc.rotate_and_prune(net, keep=1 / 4)(PARAMS, moments)

    def similar(params):
        return fidelity(teacher, embed(net, params, TEXTS, progress=False))

    before = similar(small)
    stream = batches_with(batches, teacher)
    for bank in (teacher, None):
        loss = distillation_loss(net, bank)
        state = fit_stream(
            loss, small, stream, optimizer=optax.adam(3e-3), steps=60, progress=False
        )
        assert 1 - similar(state.params) < 0.5 * (1 - before)


def test_hidden_states_teach_more_than_embeddings_alone():
    config = dataclasses.replace(MODEL.config, pooling="none")

    def hidden(params, ids, mask):
        return Bert(config).apply({"params": params}, ids, mask)

    batches, teacher = (
        buckets(TEXTS, tokens=256, seed=0),
        embed(apply, PARAMS, TEXTS, progress=False),
    )
    net = jc.trace(hidden, PARAMS, *batches[0].inputs)
    small = jc.rotate_and_prune(net, keep=1 / 4)(
        PARAMS, jc.calibrate(net, PARAMS, [b.inputs for b in batches], progress=False)
    )
    states = hidden_states(hidden, PARAMS, TEXTS, progress=False)

    def error(params):
        return float(
            np.mean(
                [
                    state_loss(net(params, *b.inputs), states.of(b).astype(np.float32), b.mask)
                    for b in batches
                ]
            )
        )

    found = {}
    for weight in (0.0, 1.0):
        loss = distillation_loss(net, teacher, pool=partial(embedded, MODEL.config), states=weight)
        state = fit_stream(
            loss,
            small,
            batches_with(batches, teacher, states),
            optimizer=optax.adam(3e-3),
            steps=60,
            progress=False,
        )
        found[weight] = error(state.params)
    assert found[1.0] < 0.8 * found[0.0] < error(small)


def test_hidden_states_have_the_embeddings_of_the_encoder():
    """By its head, poolings and projections included, dense or compact."""
    head = {"pooling": "mean+max", "projections": (Projection(6, "tanh"),)}
    config = dataclasses.replace(MODEL.config, **head)
    inputs = buckets(TEXTS[:4], tokens=64)[0].inputs
    params = Bert(config).init(jax.random.key(0), *inputs)["params"]
    change = jc.at("head/**/kernel", jc.hashed(keep=1 / 2))
    for tree in (params, change(params)):
        h = network(config, hidden=True)(tree, *inputs)
        expected = network(config)(tree, *inputs)
        np.testing.assert_allclose(embedded(config, tree, h, inputs[1]), expected, atol=1e-5)
        assert expected.shape[1] == config.embedding_size == 6


def test_a_run_that_stops_and_goes_on_is_the_run_that_never_stopped():
    loss, stream = (
        distillation_loss(apply),
        batches_with(buckets(TEXTS, tokens=256), np.eye(16)[RNG.integers(0, 16, 60)]),
    )
    optimizer = optax.MultiSteps(optax.adam(1e-3), every_k_schedule=3)
    saved = []
    whole = fit_stream(
        loss,
        PARAMS,
        stream,
        optimizer=optimizer,
        steps=8,
        progress=False,
        callback=saved.append,
        callback_seconds=0.0,
    )
    assert [int(state.step) for state in saved][-1] == 8
    half = fit_stream(loss, PARAMS, stream, optimizer=optimizer, steps=5, progress=False)
    again = fit_stream(loss, None, stream, optimizer=optimizer, steps=8, progress=False, state=half)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    with pytest.raises(ValueError, match="already taken 8 steps"):
        fit_stream(loss, None, stream, optimizer=optimizer, steps=5, state=whole, progress=False)


def test_gradients_that_are_gathered_are_those_of_the_larger_batch():
    def loss(w, x, key):
        return jnp.mean((x @ w - 1) ** 2)

    x = RNG.standard_normal((6, 4)).astype(np.float32)
    parts = fit_stream(
        loss,
        jnp.zeros(4),
        lambda step: x[2 * step : 2 * step + 2],
        optimizer=optax.MultiSteps(optax.sgd(0.1), 3),
        steps=3,
        progress=False,
    )
    whole = fit_stream(
        loss, jnp.zeros(4), lambda step: x, optimizer=optax.sgd(0.1), steps=1, progress=False
    )
    np.testing.assert_allclose(parts.params, whole.params, rtol=1e-5)


def test_padding_rows_count_nowhere():
    student, teacher = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in RNG.standard_normal((2, 5, 8)).astype(np.float32)
    )
    weight = jnp.array([1.0, 1, 1, 0, 0])
    for loss in (embedding_loss, similarity_loss):
        np.testing.assert_allclose(
            loss(student, teacher, weight=weight), loss(student[:3], teacher[:3]), rtol=1e-5
        )
        assert loss(teacher, teacher, weight=weight) == 0
        assert np.isfinite(jax.grad(loss)(student, teacher, weight=weight)).all()


def test_similarities_are_the_divergence_by_its_formula():
    student, teacher, bank = (
        RNG.standard_normal((n, 8)).astype(np.float32) / 3 for n in (4, 4, 20)
    )

    def shares(x):
        return (e := np.exp(x @ bank.T / 0.2)) / e.sum(1, keepdims=True)

    p, q = shares(teacher), shares(student)
    expected = 0.04 * (p * np.log(p / q)).sum(1).mean()
    np.testing.assert_allclose(
        similarity_loss(student, teacher, bank, temperature=0.2), expected, rtol=1e-4
    )


def test_states_are_matched_through_the_map():
    basis = np.linalg.qr(RNG.standard_normal((8, 8)))[0][:5].astype(np.float32)
    teacher = RNG.standard_normal((2, 3, 8)).astype(np.float32)
    mask = np.array([[True, True, False], [True, False, False]])
    student = teacher @ basis.T
    student[~mask] = 7  # what is masked does not count
    assert state_loss(student, teacher, mask, basis) < 1e-10
    assert state_loss(teacher, teacher, mask) == 0
    np.testing.assert_allclose(state_loss(0 * student, teacher, mask, basis), 1, rtol=1e-5)


def test_the_loss_is_the_sum_of_its_parts():
    """And zero for a student that is the teacher."""
    student, teacher = RNG.standard_normal((2, 4, 3, 8)).astype(np.float32)
    mask, ids = np.ones((4, 3), bool), np.zeros((4, 3), int)
    pooled, target = (
        (x := states.mean(1)) / np.linalg.norm(x, axis=1, keepdims=True)
        for states in (student, teacher)
    )

    def pool(params, hidden, mask):
        return (x := hidden.mean(1)) / jnp.linalg.norm(x, axis=1, keepdims=True)

    def apply(params, ids, mask):
        return params

    key, batch = jax.random.key(0), (ids, mask, target, np.ones(4, np.float32))
    plain = embedding_loss(pooled, target) + 2 / 0.1 * similarity_loss(
        pooled, target, temperature=0.1
    )
    options = dict(temperature=0.1, similarity=2.0)
    loss = distillation_loss(apply, **options)
    np.testing.assert_allclose(loss(pooled, batch, key), plain, rtol=1e-5)
    assert loss(target, batch, key) == 0
    deep = distillation_loss(apply, pool=pool, states=0.5, **options)
    expected = plain + 0.5 * state_loss(student, teacher, mask)
    np.testing.assert_allclose(deep(student, (*batch, teacher), key), expected, rtol=1e-5)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="no batches"):
        batches_with([], np.ones((3, 2)))
    with pytest.raises(TypeError, match="only float leaves"):
        fit_stream(
            lambda p, b, k: 0.0,
            {"a": jnp.arange(3)},
            lambda step: None,
            optimizer=optax.sgd(1.0),
            steps=1,
        )
    with pytest.raises(ValueError, match="not finite at step 0"):
        fit_stream(
            lambda p, b, k: jnp.sum(p) * jnp.nan,
            jnp.ones(2),
            lambda step: 0.0,
            optimizer=optax.sgd(1.0),
            steps=3,
            progress=False,
        )
