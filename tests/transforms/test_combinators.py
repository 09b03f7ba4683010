"""Patterns, labels, nesting and moments, and the errors where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcompress as jc
from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import leaf_name

KERNEL = jax.random.normal(jax.random.key(0), (8, 6))
PARAMS = {
    "a": {"kernel": KERNEL, "bias": jnp.ones(6)},
    "b": {"kernel": KERNEL.T, "value": KERNEL, "ids": np.arange(4)},
}


def compact(tree):
    return sorted(
        leaf_name(p)
        for p, x in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_compact)[0]
        if is_compact(x)
    )


@pytest.mark.parametrize(
    ("pattern", "picked"),
    [
        ("**/kernel", ["a/kernel", "b/kernel"]),
        ("a/*", ["a/kernel"]),
        ("*/k*", ["a/kernel", "b/kernel"]),
        ("b/value", ["b/value"]),
        ("**", ["a/kernel", "b/kernel", "b/value"]),
        (("a/kernel", "b/value"), ["a/kernel", "b/value"]),
        (jc.matrices, ["a/kernel", "b/kernel", "b/value"]),
        (lambda name, leaf: name.startswith("a") and leaf.ndim == 2, ["a/kernel"]),
    ],
)
def test_patterns(pattern, picked):
    assert compact(jc.at(pattern, jc.hashed(keep=1 / 2))(PARAMS)) == picked


def test_a_pattern_matches_a_compact_array_before_its_children():
    coded = jc.at("a/kernel", jc.vocabulary(keep=1 / 2))(PARAMS)
    again = jc.at("a/**", jc.hashed(keep=1 / 4))(coded)
    assert isinstance(again["a"]["kernel"], jc.arrays.HashedArray)
    inside = jc.at("a/kernel/codes", jc.hashed(keep=1 / 4))(coded)["a"]["kernel"]
    assert isinstance(inside.codes, jc.arrays.HashedArray)
    assert inside.stored_numbers == inside.codes.stored_numbers == 6


def test_nested_fits_use_the_pushed_metric():
    """The metric of codes is atoms' M atoms: nesting is the optimum in the outputs' metric."""
    metric = jc.second_moments(jax.random.normal(jax.random.key(1), (50, 8)) * jnp.arange(1.0, 9))
    nest = jc.chain(jc.vocabulary(keep=1 / 2), jc.at("codes", jc.hashed(keep=1 / 2)))
    with_moments, without = nest(KERNEL, metric), nest(KERNEL)

    def error(a):
        return float(jnp.sum((KERNEL - a.materialize()) * (metric @ (KERNEL - a.materialize()))))

    assert error(with_moments) < error(without)
    slope = jax.grad(
        lambda a: jnp.sum((KERNEL - a.materialize()) * (metric @ (KERNEL - a.materialize())))
    )(with_moments)
    assert float(jnp.abs(slope.codes.table).max()) < 1e-3 * float(
        jnp.sum(KERNEL * (metric @ KERNEL))
    )


def test_partition_labels_each_leaf_once():
    table = {"small": jc.hashed(keep=1 / 4), "same": jc.identity()}
    labels = {"a": "small", "b": {"kernel": "same", "value": "small", "ids": "same"}}
    assert compact(jc.partition(table, labels)(PARAMS)) == ["a/kernel", "b/value"]
    assert compact(
        jc.partition(
            {"small": jc.hashed(keep=1 / 4)},
            lambda params: jax.tree.map(lambda _: "small", params),
        )(PARAMS)
    ) == [
        "a/kernel",
        "b/kernel",
        "b/value",
    ]
    with pytest.raises(ValueError, match=r"labels \['same', 'small'\].*'other'"):
        jc.partition(table, {"a": "other", "b": "same"})(PARAMS)
    with pytest.raises(ValueError, match=r"no leaf has the labels \['small'\]"):
        jc.partition(table, "same")(PARAMS)
    with pytest.raises(ValueError, match="do not fit"):
        jc.partition(table, {"a": "same"})(PARAMS)


def test_a_mapping_gives_each_leaf_its_keep():
    small = jc.at("**/kernel", jc.hashed(keep={"a/*": 1 / 2, "**": 1 / 4}))(PARAMS)
    assert small["a"]["kernel"].stored_numbers == 24
    assert small["b"]["kernel"].stored_numbers == 12
    with pytest.raises(ValueError, match=r"the pattern 'c/\*' decides nothing"):
        jc.hashed(keep={"c/*": 1 / 2, "**": 1 / 4})(PARAMS)
    with pytest.raises(ValueError, match=r"the pattern 'b/\*' decides nothing"):
        jc.at("a/*", jc.hashed(keep={"b/*": 1 / 2, "**": 1 / 4}))(PARAMS)
    apart = {"one": jc.hashed(keep={"b/*": 1 / 2, "**": 1 / 4}), "other": jc.identity()}
    with pytest.raises(ValueError, match=r"the pattern 'b/\*' decides nothing"):
        jc.partition(apart, {"a": "one", "b": "other"})(PARAMS)


def test_recipes_print_and_compare():
    recipe = jc.chain(
        jc.at("a/*", jc.hashed(keep=1 / 8, block=2)), jc.identity(), jc.factored(energy=0.9)
    )
    assert repr(recipe) == "chain(at('a/*', hashed(keep=0.125, block=2)), factored(energy=0.9))"
    assert recipe == jc.chain(jc.at("a/*", jc.hashed(keep=1 / 8, block=2)), jc.factored(energy=0.9))
    assert (
        jc.vocabulary(1 / 2, atoms=np.eye(8))
        == jc.vocabulary(1 / 2, atoms=np.eye(8))
        != jc.vocabulary(1 / 2, atoms=np.eye(8, 4))
    )


BAD = {
    "keep of 0": (lambda: jc.hashed(keep=0), ValueError, r"keep must be in \(0, 1\].*keep=1/8"),
    "keep above 1": (lambda: jc.factored(keep=8), ValueError, "keep must be in"),
    "keep of nothing": (lambda: jc.factored(), ValueError, "either keep or energy"),
    "energy": (lambda: jc.factored(energy=2), ValueError, "energy must be in"),
    "no match": (
        lambda: jc.at("c/kernel", jc.hashed(1 / 2))(PARAMS),
        ValueError,
        "matches no leaf; there are: a/bias, a/kernel",
    ),
    "grid": (
        lambda: jc.at("a/kernel", jc.vocabulary(1 / 2, grid=(3, 3)))(PARAMS),
        ValueError,
        r"a/kernel: grid=\(3, 3\) has 9 points.*8",
    ),
    "basis": (
        lambda: jc.spline(1 / 2, basis="sine"),
        ValueError,
        "basis='sine' is unknown: .* 'step', 'linear', 'cubic'",
    ),
    "atoms": (
        lambda: jc.vocabulary(1 / 2, atoms="wavelet"),
        ValueError,
        "atoms='wavelet' is unknown: expected one of 'dct'",
    ),
    "atoms' shape": (
        lambda: jc.vocabulary(1, atoms=np.ones((3, 2)))(KERNEL),
        ValueError,
        r"shape \(3, 2\), expected \(8, atoms\)",
    ),
    "integer leaf": (
        lambda: jc.at("b/ids", jc.hashed(1 / 2))(PARAMS),
        TypeError,
        "b/ids was picked by name.*int64",
    ),
    "vector": (
        lambda: jc.at("a/bias", jc.hashed(1 / 2))(PARAMS),
        TypeError,
        "1 dimensions .* of unknown roles.*axes=",
    ),
    "NaN": (
        lambda: jc.hashed(1 / 2)({"w": KERNEL.at[1, 2].set(jnp.nan)}),
        ValueError,
        "w contains NaN or infinity",
    ),
    "unreachable": (
        lambda: jc.factored(1 / 10)({"w": KERNEL}),
        ValueError,
        "w: rank 1 takes 14 numbers.*least keep .* is 0.2",
    ),
    "moments": (
        lambda: jc.factored(1 / 2)({"w": KERNEL}, {"w": jnp.eye(6)}),
        ValueError,
        r"w: its moments have shape \(6, 6\), expected \(8, 8\)",
    ),
    "moments' names": (
        lambda: jc.factored(1 / 2)({"w": KERNEL}, {"v": jnp.eye(8)}),
        ValueError,
        r"lack: \['v'\]",
    ),
    "moments' NaN": (
        lambda: jc.factored(1 / 2)({"w": KERNEL}, {"w": jnp.eye(8) * jnp.nan}),
        ValueError,
        "moments contain NaN",
    ),
    "inputs' NaN": (
        lambda: jc.second_moments(np.full((2, 3), np.nan)),
        ValueError,
        "NaN or infinity",
    ),
    "no inputs": (lambda: jc.second_moments(np.ones((0, 3))), ValueError, "at least one example"),
    "not a transform": (lambda: jc.chain(jc.hashed), TypeError, "chain expects transforms such as"),
    "axes": (
        lambda: jc.hashed(1 / 2, matrix_axes=jc.MatrixAxes(0, 2))(jnp.ones((2, 3, 4))),
        ValueError,
        "does not fit an array of 3",
    ),
    "under jit": (lambda: jax.jit(jc.hashed(1 / 2))(KERNEL), TypeError, "outside jax.jit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=f"(?s){message}"):
        call()


def test_initialize_draws_compact_leaves_anew_and_keeps_those_that_are_not_chosen():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {name: {"kernel": jax.random.normal(k, (16, 12))} for name, k in zip("abc", keys)}
    params = jc.at(("a/kernel", "b/kernel"), jc.hashed(1 / 4, seed=5))(params)
    fresh = jc.initialize(jax.random.key(1), jc.at("a/kernel", jc.hashed(1 / 2)), params)
    assert fresh["b"]["kernel"] is params["b"]["kernel"]
    assert fresh["c"]["kernel"] is params["c"]["kernel"]
    before, after = (tree["a"]["kernel"] for tree in (params, fresh))
    assert after.stored_numbers == 96
    powers = [float(jnp.mean(node.materialize() ** 2)) for node in (before, after)]
    np.testing.assert_allclose(*powers, rtol=1e-5)
    assert abs(np.corrcoef(before.materialize().ravel(), after.materialize().ravel())[0, 1]) < 0.2


def test_initialize_has_the_given_variance():
    params = {"w": 0.3 * jax.random.normal(jax.random.key(0), (64, 48)), "b": jnp.zeros(48)}
    nest = jc.at("w", jc.chain(jc.vocabulary(keep=1 / 2), jc.at("codes", jc.hashed(keep=1 / 4))))
    for transform in (
        jc.hashed(1 / 8),
        jc.vocabulary(1 / 4, atoms="learned"),
        jc.factored(1 / 2),
        jc.spline(1 / 4),
        nest,
    ):
        fresh = jc.initialize(jax.random.key(1), transform, params)
        other = jc.initialize(jax.random.key(2), transform, params)
        dense = fresh["w"].materialize()
        np.testing.assert_allclose(float(jnp.sqrt(jnp.mean(dense**2))), 0.3, rtol=0.05)
        assert abs(float(jnp.corrcoef(dense.ravel(), other["w"].materialize().ravel())[0, 1])) < 0.2
        assert fresh["b"] is params["b"]
