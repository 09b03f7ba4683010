"""A file that is damaged or lies is refused by a sentence: the kept ones, and new ones."""

import json

import fuzz_files
import helpers_files
import pytest

from jaxcompress.checkpoint import tree_from_bytes, tree_to_bytes

SENTENCES = json.loads((fuzz_files.ATTACKS / "sentences.json").read_text())


def test_kept_files():
    """Each is the smallest mutant that was refused at one place of the library."""
    for name, sentence in SENTENCES.items():
        file = (fuzz_files.ATTACKS / name).read_bytes()
        with pytest.raises(ValueError, match=r"^mutant") as caught:
            fuzz_files.load_and_save(name, file)
        # numpy, JAX and json word their part of a sentence differently in other versions, and how
        # deep a recursion goes depends on where it starts
        both = sentence + str(caught.value)
        if not any(word in both for word in ("recursion", "nested", "[[[[")):
            assert str(caught.value)[:40] == sentence[:40], name


def test_mutants():
    """3,000 mutants of all golden files; `python tests/fuzz_files.py` runs 100,000."""
    kinds, _, faults = fuzz_files.run(3000, seed=1)
    assert not faults, [fault[:2] for fault in faults[:5]]
    assert kinds["valid"] > 20
    assert kinds["checkpoint/nodes.py, read_node"] > 20


def lying(name, path, value):
    """A golden file with another value in its structure, and its checksum."""
    header, numbers = fuzz_files.parts(helpers_files.file_of(name).read_bytes())
    structure = json.loads(header["__metadata__"]["jaxcompress"])
    place = structure["tree"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    header["__metadata__"]["jaxcompress"] = fuzz_files.canonical(structure)
    return fuzz_files.joined(header, numbers)


W = ("items", 0, 1)
"""Of the table's trees the array."""

LIES = {
    "dims": ("clustered", (*W, "statics", 1, 1, "items", 0), 4, r"index is \(3, 2\), expected"),
    "columns": ("clustered", (*W, "statics", 1, 1, "items", 1), 5, r"index is \(3, 2\), expected"),
    "lines": ("factored", (*W, "statics", 1, 1, "items", 0), 5, "lines is"),
    "rows": ("factored", (*W, "statics", 3, 1), True, "chosen is 3, expected a bit for each of 4"),
    "rank": ("factored full", (*W, "statics", 1, 1, "items", 0), 5, "lines is"),
    "layout": ("hashed", (*W, "statics", 4, 1), "square", "layout is square, expected one of"),
    "block": ("hashed", (*W, "statics", 3, 1), 0, "block is 0, expected at least 1"),
    "seed": ("hashed", (*W, "statics", 2, 1), None, "seed of a HashedArray are not what"),
    "axes": ("hashed", (*W, "statics", 0, 1, "inputs"), [0], "does not fit|not counted"),
    "basis": ("spline", (*W, "statics", 2, 1), "round", "basis is round, expected one of"),
    "samples": ("spline", (*W, "statics", 1, 1, "items", 0), 3, "samples is"),
    "rule": ("designed", (*W, "children", 0, 1, "statics", 2, 1), "sine", "rule is sine"),
    "count": ("designed", (*W, "children", 0, 1, "statics", 4, 1), 7, "count is 7, expected"),
    "codes": ("designed", (*W, "statics", 1, 1, "items", 1), 4, "dims is"),
    "look-ups": (
        "look-ups",
        (*W, "children", 1, 1, "statics", 1, 1, "items", 0),
        3,
        "index is 3, expected indices below 3",
    ),
    "window": ("toeplitz", (*W, "statics", 4, 1, "items", 0), 0, "expected positive sizes"),
    "grid": ("toeplitz", (*W, "statics", 2, 1, "items", 0), 4, "sizes with the product 9"),
    "mesh": ("mesh", ("items", 1, "fields", 5, 1), 40, "no grid of the box"),
    "depth": ("mesh", ("items", 1, "fields", 5, 1), 0, "tree is deeper than 0 halvings"),
    "kind": ("mesh", ("items", 1, "fields", 6, 1), "int64", "kind is 'int64' for words"),
    "points": ("teaching set", ("items", 0, 1, "fields", 4, 1), 4, "not all of 4 points"),
    "size": ("structure", ("fields", 0, 1, "fields", 0, 1), [], "no node of a file"),
    "class": ("fit", ("type",), "os:system", "os:system is no class"),
    "module": ("fit", ("type",), "antigravity:fly", "loading imports nothing: import antigravity"),
    "other class": ("fit", ("type",), "fractions:Fraction", "Fraction is no dataclass"),
    "unregistered": ("fit", ("type",), "jaxcompress.tables:Table", "has other fields"),
    "variable": ("nnx", ("items", 1, 1, "type"), "helpers_files:Path", "is no class|no Variable"),
    "hook": ("nnx", ("items", 1, 1, "metadata", 0, 0), "on_get_value", "has no .'on_get_value'"),
    "key": ("key", ("implementation",), "mersenne", "a key of the unknown kind 'mersenne'"),
    "record": ("moments", ("items", 0, 1, "type"), "Popen", "a Popen, which is not defined here"),
    "constructor": (
        "recipe",
        ("items", 0, 1, "fields", 0, 1, "items", 0, 1),
        "eval",
        "the recipe calls 'eval', expected one of",
    ),
}
"""By what lies: the golden file, the field, its new value, and the sentence."""


@pytest.mark.parametrize("case", LIES)
def test_lies_are_named(case):
    name, path, value, words = LIES[case]
    with pytest.raises(ValueError, match=f"file: .*({words})"):
        tree_from_bytes(lying(name, path, value), "file")


def test_indices_out_of_range():
    """The numbers of a static array exchanged, with a new checksum."""
    header, numbers = fuzz_files.parts(helpers_files.file_of("clustered").read_bytes())
    start, end = header["w/index"]["data_offsets"]
    wrong = numbers[:start] + bytes([0, 2, 1, 1, 3, 0]) + numbers[end:]
    with pytest.raises(ValueError, match=r"index is 3, expected .* below 3"):
        tree_from_bytes(fuzz_files.joined(header, wrong), "file")


def test_a_constructor_is_never_run():
    """A registered dataclass and a NamedTuple are made of their fields alone."""
    made = []

    class Loud(tuple):
        _fields = ("a",)
        __slots__ = ()

        def __new__(cls, *values):
            made.append(values)
            return super().__new__(cls, values)

    Loud.__qualname__ = "Loud"
    globals()["Loud"] = Loud
    tree = Loud(1.0)
    loaded = tree_from_bytes(tree_to_bytes(tree), "file")
    assert type(loaded) is Loud
    assert loaded[0] == 1.0
    assert len(made) == 1


def test_memory_is_bounded_by_the_file():
    """Sizes without numbers behind them are refused before anything of their size is made."""
    header, numbers = fuzz_files.parts(helpers_files.file_of("clustered").read_bytes())
    for shape in ([2**40], [2**31, 2**31], [2**62, 2], [0, 2**63], [1] * 70):
        header["bias"]["shape"] = shape
        with pytest.raises(ValueError, match=r"bytes of numbers|larger than any array"):
            tree_from_bytes(fuzz_files.joined(header, numbers), "file")
