"""One budget over axes and matrices: the total is met, and no leaf is changed twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcompress as jc

KEYS = jax.random.split(jax.random.key(0), 6)
SHAPES = {"words": (60, 8), "up": (8, 24), "down": (24, 8), "last": (8, 3)}


def apply(p, ids):
    h = p["words"][ids].mean(1)
    return (h + jax.nn.gelu(h @ p["up"]) @ p["down"]) @ p["last"]


def problem(scale=1.0):
    """A table whose rows lie near a plane, and a hidden layer in which few neurons matter."""
    params = {
        name: jax.random.normal(key, SHAPES[name])
        for key, name in zip(KEYS[: len(SHAPES)], SHAPES, strict=True)
    }
    params["words"] = params["words"] * 2.0 ** -jnp.arange(8)
    params["down"] = scale * params["down"] * (0.8 ** jnp.arange(24.0))[:, None]
    ids = jax.random.randint(KEYS[5], (300, 7), 0, 60)
    net = jc.trace(apply, params, ids)
    return net, params, ids, jc.calibrate(net, params, [ids], sensitivity=True, progress=False)


def shrink(net, total):
    return jc.together(
        jc.rotate_and_prune(net, total, axes="up:1"), jc.at("words", jc.factored(total))
    )


@pytest.mark.parametrize("total", [0.8, 0.6, 0.4])
def test_the_total_is_met_and_the_division_is_no_worse_than_one_that_is_fixed(total):
    net, params, ids, moments = problem()
    transform = shrink(net, jc.budget(total))
    plan = transform.plan(params, moments)
    small = transform(params, moments)
    assert plan.stored == (
        jc.stored_numbers(params),
        pytest.approx(jc.stored_numbers(small), abs=1),
    )
    assert 0.9 * total <= jc.stored_numbers(small) / jc.stored_numbers(params) <= total
    assert set(plan.keeps) == {"up:1", "words"}

    def error(tree):
        return float(jnp.mean((net(tree, ids) - apply(params, ids)) ** 2))

    ours = error(small)
    others = []
    for rank in range(1, 8):
        keep = 1.0 if rank == 8 else np.ceil(jc.arrays.FactoredArray.numbers(60, 8, rank)) / 480
        left = (total * jc.stored_numbers(params) - keep * 480 - 24) / (16 * 24)
        if 1 / 24 <= left <= 1:
            fixed = jc.chain(
                jc.rotate_and_prune(net, left - 0.5 / 24, axes="up:1"),
                jc.at("words", jc.factored(float(keep))),
            )
            others.append(error(fixed(params, moments)))
    assert others
    assert ours <= 1.5 * min(others)


def test_what_matters_less_gives_more():
    keeps = [
        shrink(net, jc.budget(0.6)).plan(params, moments).keeps
        for net, params, _, moments in map(problem, (0.01, 1.0))
    ]
    assert keeps[0]["up:1"] < keeps[1]["up:1"]
    assert keeps[0]["words"] > keeps[1]["words"]


def test_alone_it_is_the_transform():
    net, params, _, moments = problem()
    for transform in (
        jc.rotate_and_prune(net, jc.budget(0.7), axes="up:1"),
        jc.at("words", jc.factored(jc.budget(0.7))),
    ):
        jax.tree.map(
            np.testing.assert_array_equal,
            jc.together(transform)(params, moments),
            transform(params, moments),
        )
    both = shrink(net, jc.budget(0.5))
    assert both == shrink(net, jc.budget(0.5))
    assert repr(both).startswith("together(rotate_and_prune(")


def test_what_does_not_fit_is_named():
    net, params, _, moments = problem()
    total = jc.budget(0.5)
    with pytest.raises(ValueError, match="no transforms"):
        jc.together()
    with pytest.raises(ValueError, match=r"have budget\(0\.5\), budget\(0\.4\)"):
        jc.together(jc.rotate_and_prune(net, total), jc.at("words", jc.factored(jc.budget(0.4))))
    with pytest.raises(ValueError, match="has no budget"):
        jc.together(jc.rotate_and_prune(net, total), jc.at("words", jc.factored(keep=0.4)))
    with pytest.raises(ValueError, match="together divides numbers"):
        jc.together(jc.rotate_and_prune(net, jc.budget(0.5, of="channels")))
    with pytest.raises(TypeError, match="predicts no errors"):
        jc.together(jc.merge(net, 0.9))
    with pytest.raises(ValueError, match=r"up would be changed by rotate_and_prune.* and by at"):
        jc.together(jc.rotate_and_prune(net, total), jc.at("up", jc.factored(total)))(
            params, moments
        )
    with pytest.raises(ValueError, match=r"budget\(0\.001\): 1 numbers cannot be reached"):
        shrink(net, jc.budget(0.001))(params, moments)
