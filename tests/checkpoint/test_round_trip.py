"""Law 9: loading restores the same bits and tree; what cannot be saved leaves no file."""

import collections
import dataclasses
import os
import sys
import tracemalloc
from typing import NamedTuple

import equinox as eqx
import fuzz_files
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from helpers_files import ARRAYS, FOLDER, file_of, numbers, recipe, same, trees
from laws import TRANSFORMS, matrix

import jaxcompress as jc
from jaxcompress.arrays.registration import registered
from jaxcompress.checkpoint import records, tree_from_bytes, tree_to_bytes

RECORDS = (jc.classifiers.Realized, jc.classifiers.RealizedAlong, jc.classifiers.TeachingSet)


def equal(one, other):
    """`same`, also within records."""
    same(one, other)
    for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        if isinstance(x, RECORDS):
            equal(*({f.name: getattr(r, f.name) for f in dataclasses.fields(r)} for r in (x, y)))
        elif not isinstance(x, (jax.Array, np.ndarray)):
            assert repr(x) == repr(y)


def test_everything_comes_back():
    """Of every tree of the table the golden file is what is written today, and reads as the tree.

    A file that reads otherwise, or not at all, needs another version of the format.
    """
    for name, tree in trees().items():
        golden = file_of(name).read_bytes()
        assert tree_to_bytes(tree) == golden, name
        equal(tree_from_bytes(golden, name), tree)
        if not any(map(callable, jax.tree.leaves(tree))):
            equal(tree_from_bytes(golden, name, like=tree), tree)
    assert jc.load_recipe(FOLDER / "recipe.json", trees()["structure"]) == recipe()
    known = {file_of(name) for name in trees()} | {FOLDER / "recipe.json"}
    assert set(FOLDER.iterdir()) == known


def test_the_table_is_complete():
    """Every compact array, record and container of the library is in a golden file."""
    text = b"".join(file_of(name).read_bytes() for name in trees())
    own = {name for name, cls in registered.items() if cls.__module__.startswith("jaxcompress.")}
    for name in {*own, *records} - {"Use"}:
        assert b'\\"type\\":\\"%s\\"' % name.encode() in text, name


def test_other_readers_read_the_tensors():
    tensors = safetensors.numpy.load_file(file_of("clustered"))
    assert tensors["w/index"].tolist() == [[0, 2], [1, 1], [2, 0]]
    np.testing.assert_array_equal(tensors["bias"], numbers(3))


def test_a_file_is_one_file(tmp_path):
    path = tmp_path / "tree.safetensors"
    for leaf in (jnp.ones(3), ARRAYS["hashed"], None):
        jc.save(path, leaf)
        same(jc.load(path), leaf)
    assert os.listdir(tmp_path) == ["tree.safetensors"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    """A registered dataclass of the user's, with structure in it."""

    weight: jax.Array
    value: jax.Array
    width: int = dataclasses.field(metadata={"static": True})


class Pair(NamedTuple):
    """A NamedTuple of the user's."""

    first: jax.Array
    second: object


def test_containers_come_back_by_themselves():
    small = jc.at(jc.matrices, TRANSFORMS["hashed"])({"w": matrix(12, 9)})
    mlp = eqx.filter(eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0)), eqx.is_array)
    for tree in (
        {"pair": Pair(jnp.ones(2), Pair(None, {"text": "a"}))},
        Layer(jnp.ones(2), small, 3),
        [
            optax.adafactor(1e-3).init(small),
            optax.masked(optax.adam(1e-3), {"w": True}).init(small),
        ],
        mlp,
    ):
        loaded = tree_from_bytes(tree_to_bytes(tree), "file")
        same(loaded, tree)
        assert type(loaded) is type(tree)


def test_other_containers_need_like():
    @dataclasses.dataclass
    class Local:
        weight: jax.Array

    jax.tree_util.register_dataclass(Local, ["weight"], [])
    small = {"w": ARRAYS["factored"], "order": collections.OrderedDict(b=jnp.ones(2), a=1.0)}
    for tree in ({"local": [Local(jnp.ones(2))]}, small):
        file = tree_to_bytes(tree)
        with pytest.raises(ValueError, match=r"file: it holds a .*: pass like="):
            tree_from_bytes(file, "file")
        same(tree_from_bytes(file, "file", like=tree), tree)
    with pytest.raises(ValueError, match=r"does not fit like: the file lacks \['else'\]"):
        tree_from_bytes(file, "file", like={"else": 1})


def test_classes_of_modules_that_are_not_imported(monkeypatch):
    tree, like = {"pair": Pair(jnp.ones(2), 1)}, {"pair": Pair(0, 0)}
    file = tree_to_bytes(tree)
    module = Pair.__module__
    monkeypatch.delattr(sys.modules[module], "Pair")
    with pytest.raises(ValueError, match=r"pair cannot be put together: .*Pair is no class"):
        tree_from_bytes(file, "file")
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ValueError, match=f"loading imports nothing: import {module}, then load"):
        tree_from_bytes(file, "file")
    same(tree_from_bytes(file, "file", like=like), tree)


def test_a_record_that_is_not_known_here(monkeypatch):
    file = tree_to_bytes({"mesh": trees()["mesh"][1]})
    monkeypatch.delitem(records, "MeshClassifier")
    with pytest.raises(ValueError, match="mesh is a MeshClassifier, which is not defined here"):
        tree_from_bytes(file, "file")


def test_functions_are_not_saved():
    array = TRANSFORMS["vocabulary, a function"](matrix(12, 9))
    file = tree_to_bytes({"w": array})
    with pytest.raises(ValueError, match=r"w/atoms/rule is the function .*pass like="):
        tree_from_bytes(file, "file")
    same(tree_from_bytes(file, "file", like={"w": array}), {"w": array})


def test_the_file_is_barely_larger_than_its_numbers():
    for transform in (jc.hashed(keep=1 / 8), jc.clustered(keep=1 / 4, block=8, most=16)):
        small = transform({"w": matrix(256, 256)})
        assert len(tree_to_bytes(small)) <= 4 * jc.stored_numbers(small) * 1.01 + 1024


def test_memory_is_twice_the_file():
    tree = {"a": np.zeros(2**20), "w": jnp.zeros(2**20), "i": trees()["clustered"]}
    file = bytes(tree_to_bytes(tree))
    tracemalloc.start()
    loaded = tree_from_bytes(file, "file")
    assert tracemalloc.get_traced_memory()[1] < 1.1 * len(file)  # beside the file itself
    tracemalloc.stop()
    same(loaded, tree)


@pytest.mark.parametrize("damage", ["cut", "header", "bit", "text", "empty", "foreign", "old"])
def test_damaged_files(tmp_path, damage):
    path = tmp_path / "tree.safetensors"
    jc.save(path, {"w": jnp.arange(100.0)})
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-5] ^= 1
    elif damage == "header":
        data[120] ^= 1
    elif damage == "foreign":
        data = safetensors.numpy.save({"w": np.ones(3)})
    elif damage == "old":
        data = safetensors.numpy.save({"w": np.ones(3)}, {"jaxcompress": '"jaxcompress 1"'})
    path.write_bytes(
        {"cut": data[:-8], "text": b"not a checkpoint", "empty": b""}.get(damage, data)
    )
    words = {"old": "has the format 'jaxcompress 1' of development versions"}
    with pytest.raises(ValueError, match=words.get(damage, r"damaged|not one that jc.save wrote")):
        jc.load(path)


UNSAVABLE = {
    "another dtype": ({"w": np.zeros(2, "S3")}, r"w is a ndarray of dtype .S3.*: cast it"),
    "an object": ({"w": object()}, "w is a builtins:object, which is no array"),
    "a function": ({"act": jax.nn.relu}, r"act is a .*eqx.partition"),
    "a shape": ({"w": jax.ShapeDtypeStruct((2,), float)}, "w is a .*ShapeDtypeStruct"),
    "a key": ({(1, 2): jnp.ones(3)}, "neither a string nor an integer"),
    "a flag as a key": ({"a": {True: 1}}, "under a is neither a string nor an integer"),
    "mixed keys": ({"a": {"b": 1, 2: 1}}, "under a are strings and integers"),
    "a set in a record": (
        dataclasses.replace(trees()["along"], bound="much"),
        "bound are not what a RealizedAlong has there",
    ),
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_what_cannot_be_saved_is_named(tmp_path, case):
    tree, words = UNSAVABLE[case]
    path = tmp_path / "tree.safetensors"
    jc.save(path, {"w": jnp.ones(3)})
    before = path.read_bytes()
    with pytest.raises(TypeError, match=f"save: .*{words}"):
        jc.save(path, tree)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_depth_is_bounded():
    tree = 1.0
    for _ in range(101):
        tree = [tree]
    same(tree_from_bytes(tree_to_bytes(tree[0]), "file"), tree[0])
    with pytest.raises(TypeError, match="lies in more than 100 containers"):
        tree_to_bytes([tree])


def test_wide_numbers_need_their_flag():
    header, content = fuzz_files.parts(tree_to_bytes({"w": np.ones(3)}))
    metadata = header["__metadata__"]
    metadata["jaxcompress"] = metadata["jaxcompress"].replace('"numpy"', '"jax"')
    wide = fuzz_files.joined(header, content)
    with pytest.raises(ValueError, match="w is float64, which JAX has only with jax_enable_x64"):
        tree_from_bytes(wide, "file")


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
    rest = [along, along.coarsened(classify, 3), box.mesh, {"kernel": jnp.ones(3)}]
    tree = {"box": box, "rest": rest}
    path = tmp_path / "realized.safetensors"
    jc.save(path, tree)
    for loaded in (jc.load(path), jc.load(path, like=tree)):
        equal(loaded, tree)
        np.testing.assert_array_equal(loaded["box"].mesh(x), box.mesh(x))
        np.testing.assert_array_equal(
            jax.jit(lambda mesh: mesh.cell(x))(loaded["box"].mesh), box.mesh.cell(x)
        )
    with pytest.raises(FileNotFoundError):
        jc.load(tmp_path / "none.safetensors")
