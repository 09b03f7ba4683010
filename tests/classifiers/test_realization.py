"""A realized classifier: the mesh is the grid of its smallest cells, for far fewer queries."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import jaxcompress as jc
from jaxcompress.classifiers import realization
from jaxcompress.classifiers.mesh import MeshClassifier
from jaxcompress.classifiers.tree import Tree

CELLS = {1: 512, 2: 128, 3: 64, 4: 16}
"""Cells along each axis of the grid, by dimension; a coarse cell has 8 of them, or 4 in 4-D."""
COARSE = {1: 64, 2: 16, 3: 8, 4: 4}


def half(x):
    return (x @ np.arange(1, x.shape[1] + 1) > 0.45 * sum(range(1, x.shape[1] + 1))).astype(
        np.int32
    )


def ball(x):
    return np.int32(((x - 0.5) ** 2).sum(1) < 0.35**2)


def shells(x):
    return np.minimum((np.linalg.norm(x - 0.5, axis=1) / 0.3).astype(np.int64), 1) - 7


def board(x):
    return np.floor(x * 2).astype(np.int32).sum(1) % 2


def boxes(x):
    return np.floor(x * 2).astype(np.int32)


def tail(x):
    """A disc and a tail of two cells, far thinner than a coarse cell."""
    away = np.abs(x[:, 1:] - 0.5).max(1, initial=0) < 1 / CELLS[x.shape[1]]
    middle = [0.3, 0.4, 0.4, 0.4][: x.shape[1]]
    return np.int32(
        (np.linalg.norm(x - middle, axis=1) < 0.25) | (away & (x[:, 0] > 0.3) & (x[:, 0] < 0.9))
    )


def huge(x):
    return 2**62 + half(x).astype(np.int64)


def huger(x):
    return np.uint64(2**63) + half(x).astype(np.uint64)


def constant(x):
    return np.full(len(x), 3)


CLASSIFIERS = {
    each.__name__: each for each in (half, ball, shells, board, boxes, tail, huge, huger, constant)
}
KNOWN = {f"{name}, {d}": (each, d) for name, each in CLASSIFIERS.items() for d in CELLS}


def unit(d):
    return [0] * d, [1] * d


def grid(d, n=None):
    """The centres of all smallest cells."""
    n = n or CELLS[d]
    return ((np.indices((n,) * d).reshape(d, -1).T + 0.5) / n).astype(np.float32)


def realized(classify, d, **options):
    options = {"jnd": 1 / CELLS[d], "coarse": COARSE[d], "progress": False} | options
    return jc.classifiers.realize(classify, unit(d), **options)


def field(d, seed, classes=3, scale=0.15):
    """Random pieces of all sizes, one label for each smallest cell, looked up by the classifier."""
    noise = np.random.default_rng(seed).normal(size=(CELLS[d],) * d)
    smooth = ndimage.gaussian_filter(noise, 2 * scale * CELLS[d] ** 0.5)
    labels = np.searchsorted(np.quantile(smooth, np.arange(1, classes) / classes), smooth)
    return labels, lambda x: labels[tuple(np.minimum((x * CELLS[d]).astype(int), CELLS[d] - 1).T)]


def perceptron(d, seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    up, down, bias = (
        jax.random.normal(k, shape) for k, shape in zip(keys, ((d, 32), (32, 4), (32,)))
    )
    return jax.jit(lambda x: jnp.argmax(jnp.tanh((x - 0.5) @ up * 4 + bias) @ down, 1))


def laws(found, classify):
    """Laws of every result."""
    said = classify(found.points)
    assert np.array_equal(found.labels, said)
    assert found.labels.dtype == np.asarray(said).dtype
    assert np.array_equal(found.mesh(found.points), said)
    assert np.array_equal(found.mesh.cell(found.points), np.arange(len(found.points)))
    assert np.array_equal(found.classes[found.targets], found.labels)
    assert found.weights.sum() == pytest.approx(1, rel=1e-12)
    centres, sizes, cells = found.mesh.boxes()
    assert np.array_equal(found.mesh.cell(centres), cells)
    assert np.allclose(found.weights, np.bincount(cells, sizes.prod(1)))
    assert (found.weights > found.sizes.prod(1) * (1 - 1e-9)).all()
    corner = np.rint(
        (found.points - found.mesh.low) / found.sizes - 0.5
    )  # of the box that holds the point
    held = np.abs(found.points - found.mesh.low - (corner + 0.5) * found.sizes) <= found.sizes * (
        0.5 + 1e-5
    )
    assert held.all()
    assert len(found.points) <= found.queries


@pytest.mark.parametrize("name", KNOWN)
def test_the_mesh_is_the_grid(name):
    """Where all pieces are larger than a coarse cell."""
    classify, d = KNOWN[name]
    found = realized(classify, d)
    laws(found, classify)
    assert np.array_equal(found.mesh(grid(d)), classify(grid(d)))
    assert found.complete
    near = np.random.default_rng(d).uniform(size=(3000, d)).astype(np.float32)
    corners = np.array(list(itertools.product((-1, 0, 1), repeat=d))) / CELLS[d] / 2
    around = np.clip(near[:, None] + corners, 0, 1 - 1e-6).astype(np.float32)
    labels = classify(around.reshape(-1, d)).reshape(*around.shape[:2], -1)
    clear = (labels == labels[:, :1]).all((1, 2))  # no border within half a cell
    assert clear.mean() > 0.3
    assert np.array_equal(np.asarray(found.mesh(near))[clear], classify(near)[clear])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("d", CELLS)
def test_pieces_are_exact_or_missed_whole(d, seed):
    """The guarantee: pieces that contain a box as large as a coarse cell are never missed."""
    labels, classify = field(d, seed)
    coarse = COARSE[d] * (2 if d > 2 else 1)
    found = realized(classify, d, coarse=coarse)
    laws(found, classify)
    same = (np.asarray(found.mesh(grid(d))) == labels.ravel()).reshape(labels.shape)
    kept, large, missed = 0, 0, 0
    for each in np.unique(labels):
        pieces, count = ndimage.label(labels == each)  # joined by faces
        right = ndimage.mean(same, pieces, np.arange(1, count + 1))
        assert set(np.unique(right)) <= {0.0, 1.0}
        inner = ndimage.binary_erosion(labels == each, np.ones((CELLS[d] // coarse,) * d))
        holds = np.unique(pieces[inner])
        assert (right[holds - 1] == 1).all()
        kept, large, missed = (
            kept + int((right == 1).sum()),
            large + len(holds),
            missed + int((right == 0).sum()),
        )
    assert kept > 0
    assert large > 0
    assert kept + missed > 3


@pytest.mark.parametrize("d", CELLS)
def test_perceptrons(d, trees):
    """Whatever the classifier."""
    for seed in range(3):
        classify = perceptron(d, seed)
        found = realized(classify, d)
        laws(found, classify)
        assert np.mean(found.mesh(grid(d)) == classify(grid(d))) > 0.99
        borders_are_small(trees.pop(), lambda x: 1 / CELLS[d])


@pytest.fixture
def trees(monkeypatch):
    """The trees of the meshes that a test makes, before their cells are joined."""
    made = []

    class Watched(Tree):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(realization, "Tree", Watched)
    return made


def borders_are_small(tree, jnd):
    """Both sides of faces between labels were queried, in cells as small as the jnd there."""
    whole = np.flatnonzero(tree.first < 0)
    around = tree.face_neighbours(whole)
    border = (around >= 0) & tree.labels_differ(whole[:, None], around)
    assert border.any()
    border = np.concatenate([whole[border.any(1)], around[border]])
    assert tree.queried[border].all()
    size = 1 / (tree.coarse[0] << tree.level[border].astype(int))
    assert (size <= jnd((tree.position[border] + 0.5) * size[:, None]) * (1 + 1e-5)).all()


@pytest.mark.parametrize("d", [1, 2, 3])
def test_jnd_that_varies(d, trees):
    def jnd(x):
        return 0.01 + 0.2 * x[:, 0] ** 2

    found = realized(ball, d, jnd=jnd, coarse=8)
    laws(found, ball)
    borders_are_small(trees.pop(), jnd)
    assert len(found.points) < len(realized(ball, d, jnd=0.01, coarse=8).points)
    assert (
        realized(ball, d, jnd=lambda x: np.full(len(x), 1 / 32)).queries
        == realized(ball, d, jnd=1 / 32).queries
    )


def test_jnd_of_each_dimension():
    found = jc.classifiers.realize(
        lambda x: half(x / [8, 1]), ([0, 0], [8, 1]), (0.5, 0.01), coarse=(16, 4), progress=False
    )
    smallest = found.sizes.min(0)
    assert (smallest <= [0.5, 0.01]).all()
    assert (2 * smallest > [0.5, 0.01]).any()
    assert found.weights.sum() == pytest.approx(8)


@pytest.mark.parametrize("d", [2, 3])
def test_few_cells_are_asked_that_no_border_touches(d):
    """Whoever asks on both sides of every border asks at least for the cells that touch it."""
    for classify in (half, ball, perceptron(d, 0), perceptron(d, 1)):
        labels = np.asarray(classify(grid(d))).reshape((CELLS[d],) * d)
        touched = [
            ndimage.maximum_filter1d(labels, 3, axis) != ndimage.minimum_filter1d(labels, 3, axis)
            for axis in range(d)
        ]
        least = np.any(touched, 0).sum()
        found = realized(classify, d, coarse=8)
        assert np.array_equal(found.mesh(grid(d)), labels.ravel())
        assert least < found.queries <= 8**d + (1.15 if d == 2 else 1.04) * least


COUNTS = {(half, 2): (72, 55), (ball, 2): (135, 109), (tail, 2): (102, 87), (half, 3): (2020, 1745)}
"""Queries and points at 32 cells a side from two coarse ones; one query more is a change."""


@pytest.mark.parametrize(("classify", "d"), COUNTS)
def test_queries_are_counted_to_the_last_one(classify, d):
    found = realized(classify, d, coarse=2, jnd=1 / 32)
    assert (found.queries, len(found.points)) == COUNTS[classify, d]


def test_calls_grow_with_the_levels_not_with_the_cells():
    """A border is followed from many places at once."""
    calls = []
    for n in (256, 4096):
        seen = []
        found = realized(lambda x, seen=seen: seen.append(0) or ball(x), 2, jnd=1 / n, coarse=8)
        laws(found, ball)
        assert found.complete
        assert (
            found.queries < 64 + 1.25 * 8 * 0.35 * 2**0.5 * n
        )  # cells on both sides of a circle: 4 sqrt(2) r n on each
        calls.append(len(seen))
    assert calls[1] < 3 * calls[0]


@pytest.mark.parametrize("seed", range(6))
def test_stages_keep_the_guarantee(seed):
    """From a coarse grid of two cells a side, so that borders are followed at a level between."""
    labels, classify = field(2, seed, scale=0.5)
    found = realized(classify, 2, coarse=2)
    laws(found, classify)
    same = (np.asarray(found.mesh(grid(2))) == labels.ravel()).reshape(labels.shape)
    for each in np.unique(labels):
        pieces, count = ndimage.label(labels == each)
        assert set(np.unique(ndimage.mean(same, pieces, np.arange(1, count + 1)))) <= {0.0, 1.0}
    assert same.mean() > 0.5


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_no_point_is_asked_twice(batch_size):
    for classify, d in ((tail, 2), (ball, 3), (half, 1)):
        seen = []

        def recorded(x, classify=classify, seen=seen):
            seen.append(x.copy())
            return classify(x)

        found = realized(recorded, d, batch_size=batch_size, jnd=1 / 32, coarse=8)
        assert {x.shape for x in seen} == {(batch_size, d)}
        seen = np.concatenate(seen)
        assert len(np.unique(seen, axis=0)) == found.queries
        assert batch_size > 1 or len(seen) == found.queries
        assert set(map(tuple, found.points.tolist())) <= set(map(tuple, seen.tolist()))
        again = realized(classify, d, jnd=1 / 32, coarse=8)
        assert np.array_equal(again.points, found.points)
        assert np.array_equal(again.labels, found.labels)


@pytest.mark.parametrize("d", CELLS)
def test_joining_changes_no_look_up(d, trees):
    for classify in (field(d, 0)[1], tail):
        found = realized(classify, d)
        tree, (low, high) = trees.pop(), map(np.float64, unit(d))
        whole = tree.first < 0
        cell = np.where(whole, np.cumsum(whole) - 1, -1)
        fine = tree.mesh(low, high, np.ones(len(whole), bool), cell, tree.label[whole, 0])
        assert len(fine.words) > len(found.mesh.boxes()[0])
        assert np.array_equal(fine(grid(d)), found.mesh(grid(d)))
        none_is_left(found, d)


def none_is_left(found, d):
    """No family of one label is apart."""
    tree = found.mesh.tree
    families = tree[tree >= 0][:, None] + np.arange(2**d)
    whole = families[(tree[families] < 0).all(1)]
    labels = found.labels[-1 - tree[whole]]
    assert len(labels)
    assert (labels != labels[:, :1]).any(1).all()


def test_budget():
    whole, off = realized(ball, 2), []
    for budget in (256, 300, 400, 500, 600, 700, whole.queries - 1):
        found = realized(ball, 2, budget=budget)
        laws(found, ball)
        assert found.queries <= budget
        assert not found.complete
        assert "budget" in repr(found)
        off.append(np.mean(found.mesh(grid(2)) != ball(grid(2))))
    assert off == sorted(off, reverse=True)
    enough = realized(ball, 2, budget=whole.queries)
    assert enough.complete
    assert np.array_equal(enough.points, whole.points)
    for budget in range(300, 900, 50):  # a tail is followed through cells of all sizes
        laws(realized(tail, 2, budget=budget), tail)


def test_soft_labels_at_kept_cells_only():
    asked = []

    def soft(x):
        asked.append(len(np.unique(x, axis=0)))
        return np.stack([1 - x[:, 0], x[:, 0]], 1)

    found = realized(half, 2, soft=soft, batch_size=100)
    assert sum(asked) == len(found.points)
    assert np.allclose(found.soft[:, 1], found.points[:, 0])
    assert realized(half, 2).soft is None


def test_the_mesh_is_a_pytree():
    found = realized(ball, 2)
    points = np.random.default_rng(0).uniform(-0.2, 1.2, (5, 50, 2)).astype(np.float32)
    expected = found.mesh(points)
    assert expected.shape == (5, 50)
    assert np.array_equal(jax.jit(lambda mesh, x: mesh(x))(found.mesh, points), expected)
    assert np.array_equal(jax.vmap(found.mesh)(points), expected)
    assert np.array_equal(found.mesh(np.clip(points, 0, 1)), expected)  # outside: the border's
    leaves, shape = jax.tree.flatten(found.mesh)
    again = jax.tree.unflatten(shape, leaves)
    assert isinstance(again, MeshClassifier)
    assert np.array_equal(again(points), expected)
    assert found.mesh(np.float32([[np.inf, -np.inf]])).shape == (1,)


@pytest.mark.parametrize("classify", [huge, huger])
def test_labels_of_64_bits(classify):
    found = realized(classify, 2)
    inside = jax.jit(lambda mesh, x: mesh.cell(x))(found.mesh, grid(2))
    assert np.array_equal(found.labels[inside], classify(grid(2)))
    with pytest.raises(TypeError, match="jax_enable_x64"):
        jax.jit(found.mesh)(grid(2))
    with jax.enable_x64(True):
        assert np.array_equal(
            jax.jit(lambda mesh, x: mesh(x))(found.mesh, grid(2)), classify(grid(2))
        )


def test_a_label_for_each_cell_allocates_no_columns():
    """More classes than memory has columns for: every coarse cell is a class of its own."""
    found = realized(lambda x: np.floor(x * 16).astype(np.int64) @ [10**12, 1], 2, coarse=32)
    assert len(found.classes) == 256
    assert np.array_equal(
        found.mesh(grid(2)), np.floor(grid(2) * 16).astype(np.int64) @ [10**12, 1]
    )


def test_one_class_gives_the_coarse_cells():
    found = realized(constant, 2, training_points=5)
    assert len(found.points) == found.queries == 256
    assert found.bounds == {"training points": 5, "cells": 256}
    assert repr(found) == (
        "Realized(2 dimensions, 256 cells, 1 class; 256 queries, 1.56 % of a grid; "
        "upper bounds: 256 cells, 5 training points)"
    )


@pytest.mark.parametrize("levels", [(0.0, 1.0), (-3.0, 5.0), (1e4, 1.1e4)])
def test_boxes_anywhere(levels):
    low, high = levels

    def scaled(x):
        return ball(((x - low) / (high - low)).astype(np.float32))

    found = jc.classifiers.realize(
        scaled, ([low] * 2, [high] * 2), (high - low) / 64, progress=False
    )
    assert np.array_equal(found.mesh(found.points), found.labels)
    assert found.queries == realized(ball, 2, jnd=1 / 64, coarse=8).queries


def test_the_picture_has_every_box():
    found = realized(board, 2)
    ax = jc.plots.decision_mesh(found.mesh)
    (drawn,) = ax.collections
    assert len(drawn.get_paths()) == len(found.mesh.boxes()[0])
    assert len(np.unique(drawn.get_facecolor(), axis=0)) == 2
    with pytest.raises(ValueError, match="two dimensions"):
        jc.plots.decision_mesh(realized(ball, 3))


ERRORS = {
    "floats": (dict(classify=lambda x: x[:, 0]), TypeError, "argmax"),
    "NaN": (dict(classify=lambda x: x[:, 0] * np.nan), TypeError, "expected integers"),
    "Python integers": (dict(classify=lambda x: np.array([2**70] * len(x))), TypeError, "tuples"),
    "a scalar": (dict(classify=lambda x: 3), ValueError, "shape"),
    "too few labels": (dict(classify=lambda x: half(x)[1:]), ValueError, "shape"),
    "three dimensions of labels": (
        dict(classify=lambda x: np.zeros((len(x), 1, 1), int)),
        ValueError,
        "shape",
    ),
    "two types": (
        dict(classify=lambda x: half(x).astype("i4" if x[0, 0] < 0.1 else "i8"), batch_size=1),
        ValueError,
        "one type",
    ),
    "no volume": (dict(domain=([0, 0], [1, 0])), ValueError, "low < high"),
    "not finite": (dict(domain=([0, 0], [1, np.inf])), ValueError, "finite"),
    "unequal": (dict(domain=([0, 0], [1])), ValueError, "shapes"),
    "no box": (dict(domain=3), ValueError, "domain must be"),
    "5 dimensions": (dict(domain=([0] * 5, [1] * 5)), ValueError, "realize_along"),
    "jnd 0": (dict(jnd=0), ValueError, "positive"),
    "jnd NaN": (dict(jnd=np.nan), ValueError, "positive"),
    "jnd of another shape": (dict(jnd=(0.1, 0.1, 0.1)), ValueError, "jnd has the shape"),
    "jnd too fine": (dict(jnd=1e-8), ValueError, "float32"),
    "a function too fine": (
        dict(domain=unit(1), jnd=lambda x: np.full(len(x), 1e-8)),
        ValueError,
        "float32",
    ),
    "a function of another shape": (
        dict(jnd=lambda x: x),
        ValueError,
        "jnd gave an array of shape",
    ),
    "a function below 0": (dict(jnd=lambda x: x[:, 0] - 0.5), ValueError, "positive everywhere"),
    "jnd finer than any float": (dict(jnd=1e-25), ValueError, "float32"),
    "a small budget": (dict(budget=63), ValueError, "more than the budget of 63"),
    "a budget of floats": (
        dict(budget=100.0),
        ValueError,
        r"budget must be a whole number of queries or None, got 100\.0",
    ),
    "as wide as float32": (dict(domain=([-3e38] * 2, [3e38] * 2), jnd=1e37), ValueError, "finite"),
    "coarse 0": (dict(coarse=0), ValueError, "coarse"),
    "coarse of another length": (dict(coarse=(2, 2, 2)), ValueError, "coarse"),
    "batch_size 0": (dict(batch_size=0), ValueError, "batch_size"),
    "soft of another shape": (dict(soft=lambda x: x[:, 0]), ValueError, "soft"),
    "soft NaN": (dict(soft=lambda x: x * np.nan), ValueError, "soft"),
    "soft without classes": (dict(soft=lambda x: x[:, :0]), ValueError, "soft"),
    "soft of two lengths": (
        dict(soft=lambda x: np.ones((len(x), 2 + (x[0, 0] < 0.5))), batch_size=1),
        ValueError,
        "classes after",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    options, kind, match = ERRORS[name]
    given = {"classify": ball, "domain": unit(2), "jnd": 0.05, "progress": False} | options
    asked = []
    classify = given.pop("classify")
    with pytest.raises(kind, match=match):
        jc.classifiers.realize(lambda x: asked.append(x) or classify(x), **given)
    assert not asked or "classify" in options or "soft" in options or callable(given["jnd"])


def test_an_infinite_jnd_gives_the_coarse_cells():
    for jnd in (np.inf, (np.inf, 0.125)):
        assert jc.classifiers.realize(ball, unit(2), jnd, coarse=8, progress=False).queries == 64


@pytest.mark.parametrize(
    ("classify", "calls", "most"),
    [
        (lambda x: np.zeros(len(x), int), 1, 64),
        (lambda x: np.int32((abs(x[:, 1] - 9 / 16) < 2 / 4096) & (x[:, 0] < 0.9)), 700, 16_000),
        (lambda x: np.int32(np.hypot(x[:, 0] - 0.5, x[:, 1] - 0.5) < 0.35), 100, 20_000),
    ],
    ids=["one class", "band", "disc"],
)
def test_very_fine_borders_take_few_calls(classify, calls, most):
    """Boundaries of 4,000 cells are followed from many places, and no grid is queried again."""
    made = []
    found = jc.classifiers.realize(
        lambda x: made.append(len(x)) or classify(x), unit(2), 1 / 4096, coarse=8, progress=False
    )
    assert len(made) <= calls
    assert found.queries <= most
    x = np.random.default_rng(0).uniform(size=(20_000, 2)).astype(np.float32)
    centres = ((np.floor(x * 4096) + 0.5) / 4096).astype(np.float32)
    np.testing.assert_array_equal(found.mesh(x), classify(centres))


def test_points_that_are_no_numbers_have_the_same_cell_inside_jit():
    mesh = realized(ball, 2).mesh
    x = np.float32([[np.nan, 0.5], [0.5, np.nan], [np.inf, 0.5], [0.5, -np.inf]])
    np.testing.assert_array_equal(jax.jit(mesh.cell)(x), mesh.cell(x))
    assert mesh.cell(x).min() >= 0


def test_points_of_another_dimension():
    with pytest.raises(ValueError, match=r"expected points \(..., 2\)"):
        realized(ball, 2).mesh(np.zeros((5, 3), np.float32))
