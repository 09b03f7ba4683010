"""Axes wherever they lie in a dimension: maps along them, and their sizes from those of leaves."""

import jax
import numpy as np
import pytest

from jaxcompress.networks.axes import Axis
from jaxcompress.networks.layout import Layout
from jaxcompress.networks.maps import along
from jaxcompress.networks.sizes import solve_sizes

CHANNELS, OTHER, HEADS = Layout("h", 4), Layout("other", 3), Layout("heads", 2)
SMALL = 3


def concatenated(*parts):
    return Layout("", sum(part.size for part in parts), "concat", parts)


def product(*parts):
    return Layout("", int(np.prod([part.size for part in parts])), "product", parts)


DIMENSIONS = {
    "alone": CHANNELS,
    "a factor": product(HEADS, CHANNELS),
    "the slow factor": product(CHANNELS, OTHER),
    "a segment": concatenated(OTHER, CHANNELS),
    "several segments": concatenated(CHANNELS, OTHER, CHANNELS),
    "a factor in a segment": concatenated(OTHER, product(HEADS, CHANNELS)),
}


def by_definition(array, layout, matrices, fibre):
    """Positions outside the axis stay; those along it are multiplied, fibre by fibre."""
    new = layout.resized({"h": SMALL})
    result = np.zeros((len(array), new.size))
    old_heads, new_heads = layout.index("heads"), new.index("heads")
    # the order of all positions that have the same place along the axis
    for row in range(len(array)):
        for place in range(new.size):
            channel = new.index("h")[place]
            if channel < 0:
                kept = np.flatnonzero(layout.index("h") < 0)
                result[row, place] = array[row, kept[np.sum(new.index("h")[:place] < 0)]]
                continue
            nth = np.sum(new.index("h")[:place] == channel)
            lines = [np.flatnonzero(layout.index("h") == k)[nth] for k in range(4)]
            head = new_heads[place] if "heads" in layout.axes() else row
            assert "heads" not in layout.axes() or old_heads[lines[0]] == new_heads[place]
            matrix = matrices[head if fibre else 0]
            result[row, place] = array[row, lines] @ matrix[:, channel]
    return result


@pytest.mark.parametrize("fibre", [False, True])
@pytest.mark.parametrize("name", DIMENSIONS)
def test_a_map_along_an_axis(name, fibre):
    layout, rng = DIMENSIONS[name], np.random.default_rng(0)
    # the heads are the other dimension, unless they are a factor of this one
    first = OTHER if "heads" in layout.axes() else HEADS
    array = rng.normal(size=(first.size, layout.size)).astype(np.float32)
    matrices = rng.normal(size=(2 if fibre else 1, 4, SMALL))
    axis = Axis("h", 4, "linear", fibres=("heads",) if fibre else ())
    given = (first, layout), 1, axis, matrices
    wanted = by_definition(array, layout, matrices, fibre)
    np.testing.assert_allclose(along(array, *given), wanted, rtol=1e-5, atol=1e-6)
    traced = jax.jit(lambda values: along(values, *given))(array)
    np.testing.assert_allclose(traced, wanted, rtol=1e-5, atol=1e-6)
    turned = along(array.T, (layout, first), 0, axis, matrices)
    np.testing.assert_allclose(turned, wanted.T, rtol=1e-5, atol=1e-6)


A, B, C = Layout("a", 2), Layout("b", 3), Layout("c", 4)
SOLVED = {
    "each alone": ([(A,), (B,)], [(1,), (5,)], {"a": 1, "b": 5}),
    "a factor beside a known one": ([(A,), (product(A, B),)], [(4,), (20,)], {"a": 4, "b": 5}),
    "a leading factor beside a known one": (
        [(B,), (product(A, B),)],
        [(5,), (20,)],
        {"a": 4, "b": 5},
    ),
    "two unknown factors: the leading one stays": (
        [(product(A, B),)],
        [(8,)],
        {"a": 2, "b": 4},
    ),
    "a segment beside a known one": (
        [(A,), (concatenated(A, B),)],
        [(4,), (9,)],
        {"a": 4, "b": 5},
    ),
    "equal segments": ([(concatenated(A, A, A),)], [(15,)], {"a": 5}),
    "equal segments beside a known one": (
        [(B,), (concatenated(A, B, A),)],
        [(5,), (7,)],
        {"a": 1, "b": 5},
    ),
    "one leaf after another": (
        [(concatenated(B, C),), (product(A, B),), (A,)],
        [(11,), (10,), (2,)],
        {"a": 2, "b": 5, "c": 6},
    ),
    "a product in a segment": (
        [(A,), (concatenated(C, product(A, B)),), (C,)],
        [(3,), (13,), (1,)],
        {"a": 3, "b": 4, "c": 1},
    ),
}


@pytest.mark.parametrize("name", SOLVED)
def test_sizes_are_solved(name):
    dims, shapes, sizes = SOLVED[name]
    names = [f"leaf {number}" for number in range(len(dims))]
    layouts, present = dict(zip(names, dims)), dict(zip(names, shapes))
    assert solve_sizes(layouts, present, {}, {}) == sizes
    for key, size in sizes.items():  # what is known beforehand agrees, or is refused
        assert solve_sizes(layouts, present, {}, {key: size}) == sizes
    with pytest.raises(ValueError, match="leaf"):
        solve_sizes(layouts, present, {}, dict.fromkeys(sizes, 7))
