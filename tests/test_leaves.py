"""One table of leaves that are no float matrices, through everything that takes a tree.

Each either passes untouched and is reported, or is refused by its name.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcompress as jc

LEAVES = {
    "a key": jax.random.key(0),
    "keys": jax.random.split(jax.random.key(0), (2, 3)),
    "an old key": jax.random.PRNGKey(0),
    "complex": np.exp(1j * np.arange(8)).astype(np.complex64),
    "a complex matrix": jnp.ones((4, 3), jnp.complex64),
    "integers": jnp.arange(12).reshape(4, 3),
    "flags": np.array([True, False]),
    "a mask of infinities": np.where(np.tri(4) > 0, np.float32(0), np.float32(-np.inf)),
    "a vector with NaN": jnp.array([1.0, jnp.nan]),
    "empty": jnp.zeros((0, 4)),
    "a scalar": jnp.float32(2),
    "a number": 2.5,
    "a whole number": 3,
    "a flag": True,
    "None": None,
    "a string": "relu",
    "a function": jax.nn.relu,
}
NO_ARRAYS = {"a string", "a function"}
REFUSED = {("trace", kind) for kind in NO_ARRAYS}
REFUSED |= {(task, "a mask of infinities") for task in ("sweep", "matrices", "budget")}
REFUSED |= {
    (task, kind) for task in ("save", "save like") for kind in ("a key", "keys", "a function")
}
"""What may be refused, by the leaf's name; everything else passes."""

RNG = np.random.default_rng(0)
BASE = {
    "a": jnp.asarray(RNG.normal(size=(7, 12)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(12, 3)), jnp.float32),
}
X = jnp.asarray(RNG.normal(size=(40, 7)), jnp.float32)


def apply(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["b"]


def leafwise():
    half = jc.hashed(1 / 2)
    return {
        "at": jc.at("a", half),
        "sweep": half,
        "matrices": jc.at(jc.matrices, jc.factored(1 / 2)),
        "budget": jc.vocabulary(jc.budget(1 / 2)),
        "partition": jc.partition(
            {"small": half, "same": jc.identity()},
            lambda p: {**jax.tree.map(lambda _: "same", p), "a": "small"},
        ),
        "select_rows": jc.select_rows("a", [0, 2]),
        "initialize": functools.partial(jc.initialize, jax.random.key(1), jc.at("a", half)),
        "materialize": jc.materialize,
        "tie": lambda p: (lambda tied: tied.expand(tied.params))(
            jc.tie({**p, "c": p["a"]}, {"c": "a"})
        ),
    }


def axiswise(net, moments):
    data = [X]
    return {
        "rotate_and_prune": jc.rotate_and_prune(net, 1 / 2),
        "a budget of channels": jc.rotate_and_prune(net, jc.budget(1 / 2)),
        "coarsen": jc.coarsen(net, 2),
        "refine": jc.refine(net, 2),
        "merge": jc.merge(net, 0.9),
        "merge_linear": jc.merge_linear(net),
        "seriate": jc.seriate(net),
        "a chain": jc.chain(
            jc.rotate_and_prune(net, 1 / 2),
            jc.recalibrate(net, data, progress=False),
            jc.reconstruct(net, data, progress=False),
            jc.at("a", jc.hashed(1 / 2)),
        ),
    }


def untouched(leaf, other):
    """Whether a leaf is what it was: the object, or the bits, dtype and shape."""
    if leaf is other:
        return True
    if jnp.issubdtype(getattr(leaf, "dtype", jnp.float32), jax.dtypes.prng_key):
        leaf, other = jax.random.key_data(leaf), jax.random.key_data(other)
    one, two = np.asarray(leaf), np.asarray(other)
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def outcome(task, kind, leaf, params, run):
    """A complaint, unless the leaf passes untouched or is refused by its name."""
    try:
        result = run(params)
    except Exception as error:
        named = isinstance(error, (TypeError, ValueError)) and "odd" in str(error)
        if named and (task, kind) in REFUSED:
            return []
        return [f"{task}, {kind}: {type(error).__name__}: {error}"]
    if isinstance(result, dict) and "odd" in result and not untouched(result["odd"], leaf):
        return [f"{task}, {kind}: the leaf was {leaf!r} and is {result['odd']!r}"]
    return []


def test_every_leaf_passes_untouched_or_is_refused_by_name(tmp_path):
    complaints, file = [], tmp_path / "tree.safetensors"
    plain = jc.trace(apply, BASE, X)
    for kind, leaf in LEAVES.items():
        params = {**BASE, "odd": leaf}
        check = functools.partial(outcome, kind=kind, leaf=leaf, params=params)
        for task, run in leafwise().items():
            complaints += check(task, run=run)
        complaints += check("save", run=lambda p: jc.save(file, p) or jc.load(file))
        complaints += check("save like", run=lambda p: jc.save(file, p) or jc.load(file, like=p))
        report = jc.report(params, jc.at("a", jc.hashed(1 / 2))(params))
        rows = {row.leaf: row for row in report.rows}
        if kind != "None" and (
            rows["odd"].error or rows["odd"].numbers[0] != rows["odd"].numbers[1]
        ):
            complaints.append(f"report, {kind}: {rows['odd']}")
        assert str(report)
        complaints += check("trace", run=lambda p: jc.trace(apply, p, X))
        if kind in NO_ARRAYS:
            with pytest.raises(
                TypeError, match=r"the parameter odd is a \w+, no array: (close|split)"
            ):
                jc.trace(apply, params, X)
            with pytest.raises(TypeError, match=r"input 1 is a \w+, no array: close over it"):
                jc.trace(lambda p, x, odd: apply(p, x), BASE, X, leaf)
            continue
        net = jc.trace(apply, params, X)
        assert net.axes == plain.axes
        moments = jc.calibrate(net, params, [X], progress=False)
        for task, run in axiswise(net, moments).items():
            complaints += check(task, run=functools.partial(run, moments=moments))
        small = jc.rotate_and_prune(net, 1 / 2)(params, moments)
        assert np.isfinite(net(small, X)).all(), kind
        jc.analysis.weight_functions(net, small)
        if kind == "a key":
            assert jc.report(params, small, net, X).net_flops
    assert not complaints, "\n".join(complaints)


def test_two_leaves_of_one_name_are_refused_before_any_work(tmp_path):
    params = {"a/b": BASE["a"], "a": {"b": 2 * BASE["a"]}}
    tasks = {
        "a leaf transform": lambda: jc.hashed(1 / 2)(params),
        "a pattern": lambda: jc.at("a/b", jc.hashed(1 / 2))(params),
        "labels": lambda: jc.partition({"same": jc.identity()}, "same")(params),
        "moments": lambda: jc.hashed(1 / 2)(BASE, {"a/b": jnp.eye(7), "a": {"b": jnp.eye(7)}}),
        "report": lambda: jc.report(params, params),
        "trace": lambda: jc.trace(lambda p, x: x @ p["a/b"], params, X),
        "tie": lambda: jc.tie(params, {"a/b": "a/b"}),
        "state": lambda: jc.trace(
            lambda p, x: {"s": {"a/b": p["a"], "a": {"b": p["b"]}}},
            {"s": {"a/b": BASE["a"]}, **BASE},
            X,
            state_outputs={"s": "s"},
        ),
    }
    for task, run in tasks.items():
        with pytest.raises(
            ValueError, match=r"two (leaves are named 'a/b': \['a'\]\['b'\] and|outp)"
        ):
            print(task, run())
    jc.save(tmp_path / "file", params)  # a file is in the order of the tree
    for loaded in (jc.load(tmp_path / "file"), jc.load(tmp_path / "file", like=params)):
        assert untouched(loaded["a/b"], params["a/b"])
        assert untouched(loaded["a"]["b"], params["a"]["b"])


def test_flags_that_the_function_branches_on_are_named():
    def branching(p, x, train, steps=1):
        return apply(p, x) * jnp.ones(steps) if train else x

    for place, inputs, params in (
        ("input 1", (True,), BASE),
        (r"input 1, input 2", (True, 3), BASE),
        (r"the parameter deep/flag", (), {**BASE, "deep": {"flag": False}}),
        (r"input 1\['train'\]", ({"train": np.True_},), BASE),
    ):

        def run(p, x, *flags):
            flag = jax.tree.leaves(flags) or [p["deep"]["flag"]]
            return branching(p, x, *flag)

        with pytest.raises(TypeError, match=f"may be one of {place}: close over it"):
            jc.trace(run, params, X, *inputs)
    # without flags the error of JAX stays, which names the value
    with pytest.raises(jax.errors.TracerBoolConversionError, match="boolean conversion"):
        jc.trace(lambda p, x: apply(p, x) if x.sum() > 0 else x, BASE, X)
    # flags that are computed with are arrays
    net = jc.trace(lambda p, x, train: jnp.where(train, apply(p, x), 0), BASE, X, True)
    small = jc.rotate_and_prune(net, 1 / 2)(
        BASE, jc.calibrate(net, BASE, [(X, True)], progress=False)
    )
    assert not np.asarray(net(small, X, False)).any()
    assert np.asarray(net(small, X, True)).any()
