"""Law 9: loading restores the same bits and tree; what cannot be saved leaves no file."""

import dataclasses
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from laws import TRANSFORMS, matrix

import jaxcompress as jc
from jaxcompress.checkpoint import records

TREE = {
    "list": [jnp.ones(3, jnp.bfloat16), (jnp.float32(3), None, 3, 2.5, True, "text"), []],
    "keys": {2: np.arange(3), 10: np.ones((0, 3)), -1: jnp.ones(2, jnp.float8_e4m3fn)},
    "arrays": {
        name: transform(matrix(12, 9))
        for name, transform in TRANSFORMS.items()
        if name != "vocabulary, a function"
    },
}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.asarray(x).shape == np.asarray(y).shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_round_trip(tmp_path):
    path = tmp_path / "tree.safetensors"
    jc.save(path, TREE)
    same(jc.load(path), TREE)
    assert list(jc.load(path)) == list(TREE)
    assert os.listdir(tmp_path) == ["tree.safetensors"]
    for leaf in (jnp.ones(3), jc.hashed(1 / 2)(matrix(4, 4)), None):
        jc.save(path, leaf)
        same(jc.load(path), leaf)


def test_other_containers_need_like(tmp_path):
    path = tmp_path / "state.safetensors"
    module = eqx.filter(eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0)), eqx.is_array)
    small = jc.at(jc.matrices, jc.hashed(keep=1 / 2, matrix_axes=jc.MatrixAxes(1, 0)))(module)
    state = {"params": small, "opt": optax.adam(1e-3).init(small)}
    jc.save(path, state)
    with pytest.raises(ValueError, match=r"holds a .* pass like="):
        jc.load(path)
    same(jc.load(path, like=state), state)
    with pytest.raises(ValueError, match=r"does not fit like: the file lacks \['else'\]"):
        jc.load(path, like={"else": 1})


def test_functions_are_not_saved(tmp_path):
    path = tmp_path / "atoms.safetensors"
    array = TRANSFORMS["vocabulary, a function"](matrix(12, 9))
    jc.save(path, {"w": array})
    with pytest.raises(ValueError, match=r"w/atoms is defined by the function .*pass like="):
        jc.load(path)
    same(jc.load(path, like={"w": array}), {"w": array})


def test_the_file_is_barely_larger_than_its_numbers(tmp_path):
    path = tmp_path / "small.safetensors"
    small = jc.hashed(keep=1 / 8)({"w": matrix(256, 256)})
    jc.save(path, small)
    assert path.stat().st_size <= 4 * jc.stored_numbers(small) * 1.01 + 4096


@pytest.mark.parametrize("damage", ["cut", "header", "bit", "text", "empty", "foreign"])
def test_damaged_files(tmp_path, damage):
    path = tmp_path / "tree.safetensors"
    jc.save(path, {"w": jnp.arange(100.0)})
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-5] ^= 1
    elif damage == "header":
        data[20] ^= 1
    elif damage == "foreign":
        data = safetensors.numpy.save({"w": np.ones(3)})
    path.write_bytes(
        {"cut": data[:-8], "text": b"not a checkpoint", "empty": b""}.get(damage, data)
    )
    with pytest.raises(ValueError, match=r"damaged|not one that jc.save wrote"):
        jc.load(path)


def test_nothing_is_half_written(tmp_path):
    path = tmp_path / "tree.safetensors"
    jc.save(path, {"w": jnp.ones(3)})
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"bad/key .*key_data"):
        jc.save(path, {"w": jnp.ones(3), "bad": {"key": jax.random.key(0)}})
    with pytest.raises(TypeError, match="neither a string nor an integer"):
        jc.save(path, {(1, 2): jnp.ones(3)})
    with pytest.raises(TypeError, match="is a object"):
        jc.save(path, {"w": object()})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(FileNotFoundError):
        jc.load(tmp_path / "none.safetensors")


def fields(record):
    """All fields of a record, nested records included, as a tree of arrays and plain values."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {
        name: fields(value) if dataclasses.is_dataclass(value) else value
        for name, value in values.items()
    }


@pytest.mark.parametrize("kind", [np.int32, np.int64, "pairs"])
def test_realized_classifiers_come_back(tmp_path, kind):
    """With label dtypes, probabilities and meshes, anywhere in a tree, with and without like=."""
    large = 2**40 if kind is np.int64 else 1

    def classify(x):
        above = large * (x[:, 0] > x[:, 1]).astype(np.int64)
        return np.stack([above, 1 - above], axis=1) if kind == "pairs" else above.astype(kind)

    def soft(x):
        return np.stack([x[:, 0], 1 - x[:, 0]], axis=1)

    x = np.random.default_rng(0).uniform(size=(50, 2)).astype(np.float32)
    box = jc.classifiers.realize(
        classify, ([0, 0], [1, 1]), 1 / 16, soft=soft, training_points=7, progress=False
    )
    along = jc.classifiers.realize_along(classify, x, 0.1, neighbours=4, progress=False)
    tree = {
        "box": box,
        "rest": [along, along.coarsened(classify, 3), box.mesh, {"kernel": jnp.ones(3)}],
    }
    path = tmp_path / "realized.safetensors"
    jc.save(path, tree)
    for loaded in (jc.load(path), jc.load(path, like=tree)):
        assert repr(loaded) == repr(tree)
        for mine, theirs in (
            (loaded["box"], box),
            *zip(loaded["rest"][:3], tree["rest"][:3], strict=True),
        ):
            assert type(mine) is type(theirs)
            same(fields(mine), fields(theirs))
        np.testing.assert_array_equal(loaded["box"].mesh(x), box.mesh(x))
        np.testing.assert_array_equal(
            jax.jit(lambda mesh: mesh.cell(x))(loaded["box"].mesh), box.mesh.cell(x)
        )


def test_a_record_that_is_not_known_here(tmp_path, monkeypatch):
    mesh = jc.classifiers.realize(
        lambda x: np.int32(x[:, 0] > 0.3), ([0, 0], [1, 1]), 1 / 8, progress=False
    ).mesh
    jc.save(tmp_path / "mesh.safetensors", {"mesh": mesh})
    monkeypatch.delitem(records, "MeshClassifier")
    with pytest.raises(ValueError, match="mesh is a MeshClassifier, which is not defined here"):
        jc.load(tmp_path / "mesh.safetensors")
