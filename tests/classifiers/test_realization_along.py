"""Boundaries along data: pairs straddle, kept points label all others, bounds on the rest hold."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import mlp, mlp_params

import jaxcompress as jc
from jaxcompress.arrays.k_means import means
from jaxcompress.classifiers.bisection import QueriedPoints, check_midpoints
from jaxcompress.classifiers.condensation import condense
from jaxcompress.classifiers.k_means import k_means
from jaxcompress.classifiers.queries import Oracle
from jaxcompress.classifiers.realization_along import random_points

NETWORKS = {d: mlp_params((d, 16, 16, 4), seed=d) for d in (2, 5, 20)}


@jax.jit
def logits(params, x):
    return mlp(params, x - 0.5)


MIDDLE = {
    d: np.asarray(logits(NETWORKS[d], np.random.default_rng(0).uniform(size=(500, d)))).mean(0)
    for d in NETWORKS
}


CLASSIFIERS = {
    "half space": lambda x: np.int64(x.sum(1) > x.shape[1] / 2),
    "sphere": lambda x: np.int32(((x - 0.5) ** 2).sum(1) < x.shape[1] / 12),
    "network": lambda x: (np.asarray(logits(NETWORKS[x.shape[1]], x)) - MIDDLE[x.shape[1]]).argmax(
        1
    ),
    "pairs": lambda x: np.stack([x[:, 0] > 0.4, x[:, 1] > 0.6], axis=1).astype(np.int32),
}
CASES = [
    ("half space", 2, {}),
    ("sphere", 5, dict(charts=2)),
    ("network", 2, dict(charts=1, directions="random")),
    ("network", 5, dict(jnd=lambda x: 0.01 + 0.05 * x[:, 0])),
    ("network", 20, dict(domain=(0, 1), charts=3)),
    ("pairs", 5, dict(tolerance=0.0)),
    ("sphere", 20, dict(tolerance=0.0)),
]


def uniform(d, count=300, seed=0):
    return random_points((np.zeros(d), np.ones(d)), count, seed=seed)


class Recorder:
    """A classifier that knows what it was asked, repetitions that fill batches up left out."""

    def __init__(self, classify):
        self.classify, self.calls, self.shapes = classify, [], set()

    def __call__(self, x):
        self.shapes.add((x.shape, x.dtype.name))
        self.calls.append(x.copy())
        return self.classify(x)


def realized(name, d, points=None, classify=None, **options):
    options = dict(jnd=0.03, neighbours=5, batch_size=256, progress=False) | options
    jnd = options.pop("jnd")
    return jc.classifiers.realize_along(
        classify or CLASSIFIERS[name],
        uniform(d, 300 if d < 20 else 150) if points is None else points,
        jnd,
        **options,
    )


def differ(one, two):
    return (one != two).reshape(len(one), -1).any(1)


def nearest_labels(points, labels, queries):
    """By brute force, in float64."""
    apart = ((queries[:, None].astype(np.float64) - points[None]) ** 2).sum(2)
    return labels[apart.argmin(1)]


@pytest.mark.parametrize(("name", "d", "options"), CASES)
def test_pairs_straddle_and_what_is_kept_labels_all(name, d, options):
    asked = Recorder(CLASSIFIERS[name])
    found = realized(name, d, classify=asked, **options)
    assert found.complete
    assert len(found.boundary) > 20
    assert asked.shapes == {((256, d), "float32")}

    ends, labels = found.boundary, found.boundary_labels
    assert differ(labels[:, 0], labels[:, 1]).all()
    jnd = options.get("jnd", lambda x: np.full(len(x), 0.03))
    apart = np.linalg.norm(ends[:, 0].astype(float) - ends[:, 1], axis=1)
    assert (apart <= np.minimum(jnd(ends[:, 0]), jnd(ends[:, 1])) * (1 + 1e-6)).all()
    for side in range(2):
        np.testing.assert_array_equal(labels[:, side], CLASSIFIERS[name](ends[:, side]))
    seen = {row.tobytes() for call in asked.calls for row in call + 0}
    assert all((row + 0).tobytes() in seen for row in [*ends.reshape(-1, d), *found.points])

    # the law of the condensed set
    np.testing.assert_array_equal(found.labels, CLASSIFIERS[name](found.points))
    must = np.concatenate([found.given, ends.reshape(-1, d)])
    said = np.concatenate([found.given_labels, labels.reshape(-1, *labels.shape[2:])])
    assert not differ(nearest_labels(found.points, found.labels, must), said).any()
    np.testing.assert_array_equal(found.labels[found.cells], found.given_labels)
    assert found.weights.sum() == pytest.approx(1)
    assert found.enough <= len(found.given)
    assert found.bounds == {
        "training points": None,
        "given points": found.enough,
        "boundary": len(found.points),
    }
    if "domain" in options:
        assert found.points.min() >= 0
        assert found.points.max() <= 1


@pytest.mark.parametrize(("name", "d", "options"), CASES)
def test_questions_are_counted(name, d, options):
    """One point a call: as many calls as questions."""
    asked = Recorder(CLASSIFIERS[name])
    found = realized(name, d, uniform(d, 60), asked, **options, batch_size=1)
    assert found.queries == len(asked.calls)
    coarse = found.coarsened(asked, 5, batch_size=1)
    assert coarse.queries == len(asked.calls) == found.queries + len(coarse.points)


@pytest.mark.parametrize("budget", [300, 301, 400, 700])
def test_the_budget_is_kept(budget):
    found = realized("network", 5, budget=budget, charts=1 if budget == 400 else 0)
    assert found.queries == budget
    assert not found.complete
    if len(found.boundary):
        assert (found.boundary_labels[:, 0] != found.boundary_labels[:, 1]).all()
    whole = realized("network", 5)
    equal = realized("network", 5, budget=whole.queries)
    assert equal.complete
    np.testing.assert_array_equal(equal.points, whole.points)


def test_a_finer_jnd_halves_on():
    """The same edges: each pair lies on a coarser one, for one question a halving of one border."""
    coarse, fine = (realized("half space", 5, jnd=jnd, tolerance=0.0) for jnd in (0.04, 0.02))
    assert len(coarse.boundary) == len(fine.boundary)
    assert coarse.queries < fine.queries <= coarse.queries + len(coarse.boundary)

    def offset(found):
        return np.abs(found.boundary.mean(1).sum(1) - 2.5).max()

    assert offset(fine) <= 0.02 * np.sqrt(5)


def islands(share, rng, count=3_000):
    """A graph on the line whose edges hide another class at a share of the midpoints."""
    hidden = rng.permutation(np.arange(count) < share * count)
    points = np.stack([np.repeat(np.arange(count), 2), np.tile([0, 1], count)], axis=1).astype(
        np.float32
    )

    def classify(x):
        return np.where((x[:, 1] == 0.5) & hidden[np.int64(x[:, 0])], 1, 0)

    asked = QueriedPoints(Oracle("test", classify, 512), 2)
    asked.query(points)
    return asked, np.arange(2 * count).reshape(-1, 2), int(hidden.sum())


@pytest.mark.parametrize("share", [0.0, 0.008, 0.018, 0.03, 0.1])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bound_on_hidden_classes_holds(share, confidence):
    """In at least the share of runs the confidence promises; few checks if nothing is hidden."""
    right, checks, tolerance = [], [], 0.01
    for seed in range(200):
        asked, edges, hidden = islands(share, np.random.default_rng(seed))
        halves, checked, found, bound = check_midpoints(
            asked, edges, confidence, tolerance, np.random.default_rng(seed + 999)
        )
        assert len(halves) == 2 * found
        assert bound <= tolerance
        assert checked <= len(edges)
        right.append((hidden - found) / len(edges) <= bound)
        checks.append(checked)
    assert np.mean(right) >= confidence
    if not share:
        assert max(checks) < 0.15 * 3_000
    if share == 0.1:
        assert min(checks) > 0.5 * 3_000  # what is found must bring the rest below the tolerance


@pytest.mark.parametrize("tolerance", [0.0, 1e-9])
def test_without_tolerance_all_are_checked(tolerance):
    asked, edges, hidden = islands(0.02, np.random.default_rng(0))
    assert check_midpoints(asked, edges, 0.95, tolerance, np.random.default_rng(1))[1:] == (
        len(edges),
        hidden,
        0.0,
    )


def test_islands_inside_edges_become_classes():
    """Found at midpoints alone; coarsening keeps them."""
    points = np.linspace(0, 10, 11)[:, None]

    def island(x):
        return np.int32(np.abs(x[:, 0] - 4.5) < 0.2)

    found = jc.classifiers.realize_along(
        island, points, 0.01, neighbours=2, tolerance=0.0, progress=False
    )
    assert found.hidden
    assert found.given_labels.max() == 0
    assert found.classes.tolist() == [0, 1]
    np.testing.assert_allclose(np.sort(np.abs(found.boundary - 4.5).min(1).ravel()), 0.2, atol=0.01)
    coarse = found.coarsened(island, 1)
    assert sorted(coarse.labels.tolist()) == [0, 1]
    assert coarse.weights[coarse.labels == 1].tolist() == [0]
    with pytest.raises(ValueError, match="no boundary"):
        jc.classifiers.realize_along(
            island, points[points[:, 0] != 4], 0.01, neighbours=1, progress=False
        )


def test_runs_repeat_and_the_order_of_points_does_not_matter():
    points = uniform(5)
    one, two = realized("network", 5, charts=2), realized("network", 5, charts=2)
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))

    def rows(values):
        return {row.tobytes() for row in values.reshape(len(values), -1) + 0}

    def pairs(values):
        return {frozenset(rows(pair)) for pair in values}

    straight = realized("network", 5, points, tolerance=0.0)
    mixed = realized("network", 5, np.random.default_rng(3).permutation(points), tolerance=0.0)
    assert pairs(straight.boundary) == pairs(mixed.boundary)
    assert rows(straight.points) == rows(mixed.points)
    assert straight.queries == mixed.queries


def test_repeated_points_weigh_more():
    points = uniform(2, 100)
    points[0] = [0.0, 0.3]
    twice = np.concatenate([points, points[:30], [[-0.0, 0.3]]])
    once, more = realized("half space", 2, points), realized("half space", 2, twice)
    np.testing.assert_array_equal(once.points, more.points)
    assert once.queries == more.queries
    np.testing.assert_allclose(
        more.given_weights * 131, 1 + (np.arange(100) < 30) + (np.arange(100) == 0)
    )


@pytest.mark.parametrize(
    ("name", "d"), [("half space", 2), ("sphere", 5), ("network", 20), ("pairs", 5)]
)
@pytest.mark.parametrize("per_class", [1, 7, 10**6])
def test_coarsened(name, d, per_class):
    classify = CLASSIFIERS[name]

    def soft(x):
        return np.stack([x[:, 0], 1 - x[:, 0]], axis=1)

    found = realized(name, d, tolerance=0.1)
    coarse = found.coarsened(classify, per_class, soft=soft)
    assert np.bincount(coarse.targets).max() <= per_class
    np.testing.assert_array_equal(coarse.classes, found.classes)
    np.testing.assert_array_equal(coarse.labels, classify(coarse.points))
    np.testing.assert_array_equal(coarse.labels[coarse.cells], found.given_labels)
    np.testing.assert_allclose(coarse.soft, soft(coarse.points))
    np.testing.assert_allclose(
        np.bincount(coarse.cells, found.given_weights, len(coarse.points)), coarse.weights
    )
    assert coarse.weights.sum() == pytest.approx(1)
    # each is the mean of its cell, or a given point
    total, centres = means(found.given, found.given_weights, coarse.cells, len(coarse.points))
    is_mean = np.isclose(coarse.points, centres, atol=1e-5).all(1)
    is_given = (coarse.points[:, None] == found.given[None]).all(2).any(1)
    assert (is_mean | is_given)[total > 0].all()
    inside = found.coarsened(classify, per_class, members=True)
    assert (
        (inside.points[:, None] == np.concatenate([found.given, found.points])[None])
        .all(2)
        .any(1)
        .all()
    )
    np.testing.assert_array_equal(inside.labels, classify(inside.points))
    assert inside.queries == found.queries
    # cells are joined, never cut; and once more
    assert len(np.unique(np.stack([found.cells, coarse.cells]), axis=1).T) == len(
        np.unique(found.cells)
    )
    assert len(coarse.coarsened(classify, 1).points) == len(found.classes)


def test_means_that_are_of_another_class_become_members():
    """A ring around a disc: the mean of its cells is the disc's."""
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def disc(x):
        return np.int32(np.hypot(*x.T) < 0.6)

    found = jc.classifiers.realize_along(
        disc, np.concatenate([circle, 0.5 * circle, 0.3 * circle]), 0.01, progress=False
    )
    coarse = found.coarsened(disc, 1)
    np.testing.assert_allclose(np.sort(np.hypot(*coarse.points.T)), [0, 1], atol=0.1)


@pytest.mark.parametrize("d", [1, 3, 30])
@pytest.mark.parametrize("classes", [2, 5])
def test_condensed_points_label_all(d, classes):
    rng = np.random.default_rng(d)
    points, targets = rng.normal(size=(400, d)).astype(np.float32), rng.integers(classes, size=400)
    kept, cells = condense(points, targets)
    np.testing.assert_array_equal(targets[kept][cells], targets)
    np.testing.assert_array_equal(nearest_labels(points[kept], np.arange(len(kept)), points), cells)
    apart = (
        np.where(targets[:, None] == np.arange(classes), 10, 0) + points[:, :1]
    )  # far from each other: one of each is enough
    assert len(condense(apart, targets)[0]) == classes


def test_k_means_is_better_than_chance():
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [centre + 0.1 * rng.normal(size=(50, 4)) for centre in 3 * rng.normal(size=(6, 4))]
    )
    weights = rng.uniform(0.5, 1.5, len(points))
    cluster = k_means(points, weights, 6, rounds=50, rng=rng)

    def spread(cluster):
        return np.sum(
            weights[:, None] * (points - means(points, weights, cluster, 6)[1][cluster]) ** 2
        )

    assert spread(cluster) < 0.2 * spread(rng.integers(6, size=len(points)))
    assert np.unique(k_means(np.ones((5, 2)), np.ones(5), 3, rounds=9, rng=rng)).tolist() == [0]


def test_charts_find_borders_that_lie_off_the_data():
    """Points on a line far from the boundary: no edge crosses it, but a chart that reaches it."""
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(0, 5, 200), 0.02 * rng.normal(size=200)], axis=1)

    def lane(x):
        return np.int32(x[:, 1] > 0.09)

    with pytest.raises(ValueError, match="no boundary"):
        realized("lane", 2, points, lane, jnd=0.01)
    found = realized("lane", 2, points, lane, jnd=0.01, charts=2)
    np.testing.assert_allclose(found.boundary[..., 1], 0.09, atol=0.011)


def test_a_student_learns_from_it():
    found = realized("half space", 2).coarsened(CLASSIFIERS["half space"], 10)
    params = mlp_params((2, 16, 16, 2))
    fitted = jc.classifiers.fit_exactly(
        lambda p, x: mlp(p, 4 * x - 2), params, found, steps=200, rounds=0, progress=False
    )
    assert fitted.agreement.max() > 0.9


@pytest.mark.parametrize(
    "said", [np.float32, lambda x: x[:, None], lambda x: x[:-1], lambda x: np.full(len(x), np.nan)]
)
def test_wrong_labels(said):
    with pytest.raises((TypeError, ValueError), match="realize_along: classify gave"):
        realized(
            "",
            2,
            classify=lambda x: said(
                np.int32(x[:, :1] > 0.5)[..., None] if said is not np.float32 else x[:, 0]
            ),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(points=np.ones((5, 3, 2))), r"points must be \(n, d\)"),
        (dict(points=np.full((5, 2), np.nan)), "must be finite"),
        (dict(points=np.ones((50, 2))), "1 distinct points are too few"),
        (dict(points=np.zeros((0, 2))), "too few"),
        (dict(neighbours=300), "from 1 to 299"),
        (dict(neighbours=0), "neighbours must be"),
        (dict(jnd=0.0), "jnd must be positive"),
        (dict(jnd=-1.0), "jnd must be positive"),
        (dict(jnd=[0.1, 0.1]), "jnd must be positive, one number"),
        (dict(jnd=float("nan")), "jnd must be positive"),
        (dict(jnd=1e-9), "finer than float32"),
        (dict(jnd=lambda x: np.full(len(x), 1e-9)), "finer than float32"),
        (dict(jnd=lambda x: np.zeros(len(x))), "positive everywhere"),
        (dict(jnd=lambda x: x), "jnd gave an array of shape"),
        (dict(charts=3), "charts must be"),
        (dict(charts=1, directions="other"), "directions=.* is unknown"),
        (dict(budget=299), "more than the budget"),
        (dict(confidence=1.0), "must be in"),
        (dict(tolerance=-0.1), "must be in"),
        (dict(domain=(1, 0)), "finite low < high"),
        (dict(domain=3), "domain must be"),
        (dict(batch_size=0), "batch_size"),
        (dict(classify=lambda x: np.zeros(len(x), int)), "the label 0 at all"),
        (dict(soft=lambda x: x[:, 0]), "soft gave an array"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=f"realize_along: .*{message}"):
        realized("half space", 2, **options)


@pytest.mark.parametrize("per_class", [0, 1.5])
def test_refusals_of_coarsening(per_class):
    with pytest.raises(ValueError, match="per_class must be a whole number"):
        realized("half space", 2).coarsened(CLASSIFIERS["half space"], per_class)


@pytest.mark.parametrize(("name", "d"), [("network", 2), ("network", 20), ("pairs", 5)])
def test_pictures(name, d):
    found = realized(name, d)
    for each in (found, found.coarsened(CLASSIFIERS[name], 5)):
        (ax,) = jc.plots.realized_along(each).axes
        given, kept, border = ax.collections
        assert (len(given.get_offsets()), len(kept.get_offsets())) == (
            len(each.given),
            len(each.points),
        )
        assert len(border.get_paths()) == len(each.boundary)
        assert len(ax.get_legend().get_texts()) == len(each.classes) + 1
        images = jc.plots.realized_images(each, (d, 1), count=3, pairs=2)
        rows = np.reshape(images.axes, (len(each.classes), 5))
        for label, row in enumerate(rows):
            shown = [panel.images[0].get_array().ravel() for panel in row[:3] if panel.images]
            mine = each.points[each.targets == label]
            assert len(shown) == min(3, len(mine))
            assert all((mine == image).all(1).any() for image in shown)
    with pytest.raises(ValueError, match="grid"):
        jc.plots.realized_images(found, (d, 2))
