"""Students that agree everywhere: a wide one does, a narrow one reports its disagreements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcompress as jc
from jaxcompress.classifiers.queries import LabelledPoints

KINDS = {
    "two classes": lambda x: np.int32(np.hypot(x[:, 0], x[:, 1]) < 0.6),
    "huge labels": lambda x: 2**60 * (1 + np.int64(x[:, 0] > 0.3)),
    "tuples": lambda x: np.int32(x > 0.2),
}


def realized(classify, jnd=1 / 16):
    return jc.classifiers.realize(classify, ([-1, -1], [1, 1]), jnd, progress=False)


def apply(params, x):
    return jnp.tanh(x @ params["up"] + params["bias"]) @ jc.materialize(params["down"])


def fresh(width, classes=4):
    up, bias, down = jax.random.split(jax.random.key(0), 3)
    normal = jax.random.normal
    return {
        "up": 3 * normal(up, (2, width)),
        "bias": normal(bias, (width,)),
        "down": normal(down, (width, classes)) / width**0.5,
    }


@pytest.mark.parametrize("name", KINDS)
def test_full_agreement(name):
    found = realized(KINDS[name])
    fitted = jc.classifiers.fit_exactly(apply, fresh(32), found, steps=300, progress=False)
    assert fitted.exact
    assert fitted.agreement[-1] == 1
    assert (fitted.agreement[:-1] < 1).all()  # it stopped there
    assert (np.diff(fitted.steps) > 0).all()
    assert np.array_equal(np.argmax(apply(fitted.params, found.points), 1), found.targets)


def test_weights_grow_where_the_student_disagrees():
    """One point against a hundred: agreement comes once its weight is above the others' pull.

    The student is a threshold, `x > -b`. Its gradient at the bound b = 0.1, beyond which the one
    point is lost, is that of a hundred points at x = 2 against that of one: 100 s(-2.1) / s(0).
    """
    points = LabelledPoints(
        points=np.array([[-0.1]] + [[2.0]] * 100, np.float32),
        labels=np.array([0] + [1] * 100),
        weights=np.ones(101),
        soft=None,
        queries=101,
        complete=True,
    )

    def threshold(params, x):
        return jnp.concatenate([jnp.zeros_like(x), x + params["b"]], 1)

    ratio = 100 / (1 + np.exp(2.1)) / 0.5
    assert 3.0**2 < ratio < 3.0**3  # three rounds
    options = dict(steps=0, rounds=6, polish=9, growth=3.0, progress=False)
    fitted = jc.classifiers.fit_exactly(threshold, {"b": jnp.full(1, 3.0)}, points, **options)
    assert fitted.exact
    assert fitted.steps.tolist() == [0, 0, 9, 18, 27]


def test_too_few_units_say_so_and_keep_the_best():
    found = realized(KINDS["two classes"])
    fitted = jc.classifiers.fit_exactly(
        apply, fresh(1), found, steps=40, rounds=3, polish=5, progress=False
    )
    assert not fitted.exact
    agreed = np.mean(np.argmax(apply(fitted.params, found.points), 1) == found.targets)
    assert agreed == pytest.approx(fitted.agreement.max())
    assert fitted.disagreeing == round((1 - agreed) * len(found.points))
    assert fitted.steps[-1] == 55
    assert f"{len(found.points) - fitted.disagreeing} of {len(found.points)}" in repr(fitted)


def test_compact_parameters():
    params = fresh(32) | {"down": jc.factored(keep=3 / 4)(fresh(32)["down"])}
    fitted = jc.classifiers.fit_exactly(
        apply, params, realized(KINDS["two classes"], 1 / 8), steps=600, rounds=2, progress=False
    )
    assert jax.tree.structure(fitted.params) == jax.tree.structure(params)
    assert fitted.agreement.max() > max(0.9, fitted.agreement[0])


def test_the_smallest_settings_are_accepted():
    fitted = jc.classifiers.fit_exactly(
        apply,
        fresh(1),
        realized(KINDS["two classes"], 1 / 4),
        steps=0,
        rounds=0,
        polish=1,
        growth=1.0,
        progress=False,
    )
    assert fitted.steps.tolist() == [0, 0]


ERRORS = {
    "too few logits": (dict(params=fresh(4, classes=1)), ValueError, "one for each class"),
    "growth": (dict(growth=0.5), ValueError, "growth"),
    "rounds": (dict(rounds=-1), ValueError, "rounds"),
    "polish": (dict(polish=0), ValueError, "polish"),
    "batch_size": (dict(batch_size=10**6), ValueError, "batch_size"),
    "integers": (dict(params={"up": jnp.ones((2, 4), int)}), TypeError, "only float leaves"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    options, kind, match = ERRORS[name]
    given = {"params": fresh(4), "progress": False} | options
    with pytest.raises(kind, match=match):
        jc.classifiers.fit_exactly(
            apply, given.pop("params"), realized(KINDS["two classes"]), **given
        )
