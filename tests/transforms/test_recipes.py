"""Transforms print, compare and hash all their settings, and come back from JSON as they were."""

import dataclasses
import itertools
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from helpers_transforms import ALL, FUNCTIONS, HALF, NET, OTHER, PLAIN, SAVED, X

import jaxcompress as jc
from jaxcompress.transforms.recipe_calls import CONSTRUCTORS
from jaxcompress.transforms.settings import digest


def test_the_table_has_every_constructor():
    assert PLAIN.keys() == CONSTRUCTORS.keys()
    exported = {name: getattr(jc.transforms, name) for name in jc.transforms.__all__}
    assert {name for name in exported if name in CONSTRUCTORS} == PLAIN.keys() - {"thin"}


@pytest.mark.parametrize("name", ALL)
def test_equal_settings_are_equal(name):
    one, other = ALL[name](), ALL[name]()
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == repr(other)


def test_other_settings_differ():
    transforms = {name: make() for name, make in ALL.items()}
    for (name, one), (other_name, other) in itertools.combinations(transforms.items(), 2):
        assert one != other, (name, other_name)
        assert repr(one) != repr(other), (name, other_name)
    assert len(set(transforms.values())) == len(transforms)


def test_functions_without_a_name_print_differently():
    def selector(size):
        return lambda name, leaf: leaf.shape[0] == size

    two, three = (jc.at(selector(size), HALF) for size in (2, 3))
    assert two != three
    assert repr(two) != repr(three)


def test_settings_are_copies():
    atoms, labels = np.eye(8), {"up": "a", "down": "a"}
    transforms = jc.vocabulary(1 / 2, atoms=atoms), jc.partition({"a": HALF}, labels)
    texts = [repr(transform) for transform in transforms]
    atoms[0, 0], labels["up"] = 2, "b"
    assert [repr(transform) for transform in transforms] == texts


def test_what_prints_is_what_was_called():
    for name, makers in PLAIN.items():
        if name in ("rotate_and_prune", "merge", "seriate", "coarsen", "refine", "thin"):
            continue
        for make in makers:
            transform, scope = make(), {**vars(jc), "MatrixAxes": jc.MatrixAxes, "jc": jc}
            if "<" not in repr(transform):
                assert eval(repr(transform), scope) == transform


def test_a_digest_is_of_content():
    pairs = [([1, 2], (1, 2)), ({"a": 1}, {"a": 2}), (np.ones(2), np.ones((1, 2))), ("1", 1)]
    for one, other in pairs:
        assert digest(one) != digest(other)
    assert digest(jnp.ones(2)) == digest(np.ones(2, np.float32))


def test_a_transform_without_a_hook_raises_a_sentence():
    @dataclasses.dataclass(frozen=True, repr=False)
    class Nothing(jc.Transform):
        size: int = 1

    for call in (Nothing(), jc.chain(Nothing(2), HALF), jc.at("up", Nothing())):
        with pytest.raises(NotImplementedError, match=r"Nothing is a Transform .*: write _apply\("):
            call({"up": jnp.ones((2, 2))})

    @dataclasses.dataclass(frozen=True, repr=False)
    class Leafwise(jc.transforms.LeafTransform):
        keep: float = 1.0
        matrix_axes: None = None

    with pytest.raises(NotImplementedError, match="Leafwise is a LeafTransform without a fit"):
        Leafwise()({"up": jnp.ones((2, 2))})


# --- recipes as files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAVED)
def test_a_recipe_comes_back(name, tmp_path):
    """Law: load(save(t)) == t, for every transform without a function inside."""
    path, transform = tmp_path / "recipe.json", SAVED[name]()
    jc.save_recipe(path, transform)
    net = getattr(transform, "net", NET)
    loaded = jc.load_recipe(path, net=net, batches=[X])
    assert loaded == transform
    assert repr(loaded) == repr(transform)
    assert os.listdir(tmp_path) == ["recipe.json"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_not_saved(name, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text("before")
    with pytest.raises(TypeError, match=f"save_recipe: {name} is "):
        jc.save_recipe(path, FUNCTIONS[name]())
    with pytest.raises(TypeError, match=f"save_recipe: chain.transforms.{name} is "):
        jc.save_recipe(path, jc.chain(HALF, FUNCTIONS[name]()))
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["recipe.json"]


def test_a_recipe_is_written_as_it_is_called(tmp_path):
    path = tmp_path / "recipe.json"
    recipe = jc.chain(
        jc.rotate_and_prune(NET, jc.budget(1 / 4)),
        jc.at("**/kernel", jc.hashed(keep={"a/*": 1 / 2}, matrix_axes=jc.MatrixAxes(1, 0))),
    )
    jc.save_recipe(path, recipe)
    roles = {"call": "MatrixAxes", "inputs": [1], "outputs": [0]}
    written = json.loads(path.read_text())
    assert len(written.pop("sha256")) == 64
    assert written == {
        "format": "jaxcompress recipe 1",
        "recipe": {
            "call": "chain",
            "transforms": [
                {"call": "rotate_and_prune", "keep": {"call": "budget", "total": 0.25}},
                {
                    "call": "at",
                    "pattern": "**/kernel",
                    "transform": {"call": "hashed", "keep": {"a/*": 0.5}, "matrix_axes": roles},
                },
            ],
        },
    }


DAMAGED = {
    "cut": ('{"format": "jaxcompress recipe 1", "rec', "damaged or no recipe"),
    "binary": (b"\xff\x00", "damaged or no recipe"),
    "empty": ("", "damaged or no recipe"),
    "foreign": ('{"layers": 3}', "is no recipe"),
    "a list": ("[1]", "is no recipe"),
    "another version": (
        '{"format": "jaxcompress recipe 9"}',
        "has the format 'jaxcompress recipe 9'",
    ),
    "nothing": ({}, "calls None, expected one of at, chain"),
    "unknown": ({"call": "quantized"}, "calls 'quantized', expected one of at, chain"),
    "no name": ({"call": ["hashed"]}, r"calls \['hashed'\], expected one of"),
    "argument": ({"call": "hashed", "kep": 1}, r"gives \['kep'\] to hashed"),
    "missing": ({"call": "hashed"}, "hashed.* missing .*'keep'"),
    "value": ({"call": "hashed", "keep": 8}, r"keep must be in \(0, 1\]"),
    "kind": ({"call": "at", "pattern": "**", "transform": 3}, "at expects transforms"),
    "nested": ({"call": "at", "pattern": "**", "transform": {"call": "x"}}, "calls 'x'"),
    "setting": (
        {"call": "hashed", "keep": {"call": "budget", "size": 1}},
        "calls budget with other arguments: .*'",
    ),
    "field": ('{"format": "jaxcompress recipe 1", "more": 1}', r"the unknown fields \['more'\]"),
    "twice": ('{"format": "jaxcompress recipe 1", "format": 1}', "keys are repeated"),
    "no number": ('{"format": NaN}', "NaN is no number"),
    "edited": (
        '{"format": "jaxcompress recipe 1", "recipe": {"call": "identity"}, "sha256": ""}',
        'another recipe than was saved: .*remove its "sha256"',
    ),
    "depth": ("[" * 10**5, "damaged or no recipe"),
    "power": (
        {"call": "hashed", "keep": {"call": "Fraction", "value": "1e999999999"}},
        "'1e999999999' is no fraction",
    ),
    "dtype": (
        {
            "call": "vocabulary",
            "keep": 1,
            "atoms": {"call": "array", "dtype": "float99", "values": []},
        },
        "unknown dtype 'float99'",
    ),
    "dtype of another kind": (
        {"call": "vocabulary", "keep": 1, "atoms": {"call": "array", "dtype": 32, "values": []}},
        "unknown dtype '32'",
    ),
    "labels": (
        {"call": "partition", "transforms": {"a": {"call": "identity"}}, "labels": [1]},
        "partition.labels is a tree with a int",
    ),
    "net": ({"call": "merge"}, r"has merge: pass load_recipe\(path, net=\.\.\.\)"),
    "batches": (
        {"call": "chain", "transforms": [{"call": "recalibrate"}]},
        "has recalibrate: pass",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_recipes_are_refused(case, tmp_path):
    content, message = DAMAGED[case]
    path = tmp_path / "recipe.json"
    if isinstance(content, dict):
        content = json.dumps({"format": "jaxcompress recipe 1", "recipe": content})
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"recipe.json.*{message}"):
        jc.load_recipe(path)


def test_what_cannot_be_saved_is_named(tmp_path):
    path = tmp_path / "recipe.json"
    with pytest.raises(ValueError, match="several networks"):
        jc.save_recipe(path, jc.chain(jc.merge(NET), jc.seriate(OTHER)))
    with pytest.raises(ValueError, match="several data sets"):
        jc.save_recipe(path, jc.chain(jc.recalibrate(NET, [X]), jc.reconstruct(NET, [X + 1])))
    with pytest.raises(TypeError, match="role='steps'"):
        jc.save_recipe(path, jc.refine(NET, 2).of("steps"))
    with pytest.raises(TypeError, match="expects a transform, got dict"):
        jc.save_recipe(path, {})

    @dataclasses.dataclass(frozen=True, repr=False)
    class Hashed(jc.Transform):
        keep: float = 1.0

    with pytest.raises(TypeError, match="hashed is no transform of jaxcompress"):
        jc.save_recipe(path, Hashed())
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        jc.load_recipe(path)


def test_another_network_gives_the_same_recipe_there(tmp_path):
    path = tmp_path / "recipe.json"
    jc.save_recipe(path, jc.rotate_and_prune(NET, 1 / 2))
    assert jc.load_recipe(path, net=OTHER) == jc.rotate_and_prune(OTHER, 1 / 2)
