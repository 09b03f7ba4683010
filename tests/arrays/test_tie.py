"""Tied leaves: stored once, changed alike at both ends; unequal leaves are refused by name."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from laws import matrix

import jaxcompress as jc


class Language(nn.Module):
    """An embedding, two blocks that are the same, and an output kernel of its own."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(20, 12, name="words")(ids)
        for name in ("one", "two"):
            x = nn.LayerNorm(name=f"{name}_norm")(
                x + nn.Dense(12, name=f"{name}_down")(nn.gelu(nn.Dense(16, name=f"{name}_up")(x)))
            )
        return nn.Dense(20, use_bias=False, name="scores")(x)


def language():
    ids = jnp.arange(12).reshape(3, 4)
    params = Language().init(jax.random.key(0), ids)["params"]
    params["scores"]["kernel"] = params["words"]["embedding"].T
    for part in ("norm", "up", "down"):
        params[f"two_{part}"] = params[f"one_{part}"]
    ties = {
        "scores/kernel": "words/embedding",
        **{f"two_{part}": f"one_{part}" for part in ("norm", "up", "down")},
    }
    return (lambda params, ids: Language().apply({"params": params}, ids)), params, ids, ties


def test_a_tied_network_is_the_same_and_gradients_add_up():
    apply, params, ids, ties = language()
    tied, expand = jc.tie(params, ties)
    assert jc.stored_numbers(tied) < jc.stored_numbers(params) - 20 * 12
    for one, other in zip(jax.tree.leaves(expand(tied)), jax.tree.leaves(params), strict=True):
        assert jnp.array_equal(one, other)

    def loss(params):
        return jnp.sum(jnp.sin(apply(params, ids)))

    ours, theirs = jax.jit(jax.grad(lambda tied: loss(expand(tied))))(tied), jax.grad(loss)(params)
    both = theirs["words"]["embedding"] + theirs["scores"]["kernel"].T
    np.testing.assert_allclose(ours["words"]["embedding"], both, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        ours["one_up"]["kernel"],
        theirs["one_up"]["kernel"] + theirs["two_up"]["kernel"],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.filterwarnings("ignore:.*is selected, not:UserWarning")
def test_every_transform_changes_both_ends_alike():
    apply, params, ids, ties = language()
    tied, expand = jc.tie(params, ties)
    net = jc.trace(lambda tied, ids: apply(expand(tied), ids), tied, ids)
    (words,) = [axis for axis in net.axes if ("words/embedding", 1) in axis.producers]
    assert ("words/embedding", 1) in words.tied
    moments = jc.calibrate(net, tied, [ids], progress=False)
    small = jc.rotate_and_prune(net, keep=1 / 2)(tied, moments)
    whole = expand(small)
    assert whole["scores"]["kernel"].shape == (6, 20)
    assert jnp.array_equal(whole["scores"]["kernel"], whole["words"]["embedding"].T)
    assert net(small, ids).shape == (3, 4, 20)
    compact = jc.at("words/embedding", jc.factored(keep=1 / 2))(tied)
    np.testing.assert_allclose(
        net(compact, ids), apply(jc.materialize(expand(compact)), ids), rtol=1e-4, atol=1e-4
    )


def test_other_frameworks_and_shapes():
    layer = eqx.nn.Linear(4, 4, key=jax.random.key(0))
    pair = [layer, eqx.tree_at(lambda other: other.bias, layer, layer.bias + 1)]
    tied, expand = jc.tie(eqx.filter(pair, eqx.is_array), {"1/weight": "0/weight"})
    assert len(jax.tree.leaves(tied)) == 3
    assert jnp.array_equal(expand(tied)[1].weight, layer.weight)
    state = nnx.state([nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 3, rngs=nnx.Rngs(0))])
    tied, expand = jc.tie(state, {"1/kernel": "0/kernel"})
    assert len(jax.tree.leaves(tied)) == 3
    assert len(jax.tree.leaves(expand(tied))) == 4
    shapes = jax.eval_shape(lambda: {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))})
    assert jc.tie(shapes, {"b": "a"}).expand.ties == (("b", "a", True),)


@pytest.mark.parametrize(
    ("ties", "message"),
    [
        ({"x": "a"}, "nothing is at 'x'; there are: a, b, c, d, e"),
        ({"b": "x"}, "'b' is tied to 'x', which is not there"),
        ({"c": "a"}, r"'c' and 'a' are float32\[3\] and float32\[3, 3\]"),
        ({"d": "a"}, "'d' and 'a' differ by up to 1"),
        ({"e": "a"}, r"'e' and 'a' are int32\[3, 3\]"),
        ({"a": "a"}, "a would be taken out and used"),
        ({"b": "a", "a": "b"}, "a, b would be taken out and used"),
    ],
)
def test_bad_ties_are_refused_by_name(ties, message):
    a = matrix(3, 3)
    params = {"a": a, "b": a.T, "c": jnp.ones(3), "d": a + 1, "e": jnp.ones((3, 3), int)}
    with pytest.raises(ValueError, match=message):
        jc.tie(params, ties)


def test_what_is_not_tied_or_compact_is_an_error():
    params = {"a": matrix(4, 4), "b": matrix(4, 4).T}
    expand = jc.tie(params, {"b": "a"}).expand
    with pytest.raises(ValueError, match="'b' is tied to 'a', which is not in these parameters"):
        expand({"a": None, "b": None})
    with pytest.raises(ValueError, match="a is compact: tie first"):
        jc.tie({"a": jc.hashed(keep=1 / 2)(params["a"]), "b": params["b"]}, {"b": "a"})
