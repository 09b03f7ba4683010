"""Errors by cause: planted causes are identified, and verdicts are invariant where they must be."""

import numpy as np
import pytest
from helpers_worlds import one_nearest, tally, world

import jaxcompress as jc
from jaxcompress.classifiers.neighbours import nearest, outvoted
from jaxcompress.classifiers.verdicts import AMBIGUOUS, CAUSES, decide_cause


def explain(classify, train, test, **options):
    return jc.classifiers.explain_errors(classify, train, test, progress=False, **options)


@pytest.mark.parametrize(("geometry", "d"), [("clusters", 8), ("rings", 2)])
def test_planted_causes_are_found(geometry, d):
    """Nine of ten errors of each plant, in every geometry; few verdicts name a wrong cause."""
    wrong = total = 0
    for plant in ("labels, 1-NN", "capacity, linear", "excess, islands", "region, 1-NN"):
        found = world(plant, geometry, d, seed=20)
        counts = tally(found, explain(found.classify, found.train, found.test, steps=8))
        assert sum(counts.values()) >= 20
        assert counts[found.cause] >= 0.9 * sum(counts.values()), (plant, counts)
        wrong += sum(counts.values()) - counts[found.cause] - counts[AMBIGUOUS]
        total += sum(counts.values())
    assert wrong <= 0.03 * total


def test_learnt_by_heart():
    """An MLP: labels that it followed, borders that nothing in the training set supports."""
    for plant in ("labels, by heart", "excess, by heart"):
        found = world(plant, "clusters", 8, seed=20, n=800)
        counts = tally(found, explain(found.classify, found.train, found.test, steps=8))
        assert counts[found.cause] >= 0.85 * sum(counts.values()), (plant, counts)


def noisy_rings():
    found = world("labels, 1-NN", "rings", 2, seed=21, n=600)
    return found.classify, found.train, found.test


def told(report, rename=lambda labels: labels, index=lambda indices: indices):
    return [
        (
            each.index,
            int(rename(each.true)),
            int(rename(each.predicted)),
            each.cause,
            each.runner_up,
            *index(each.neighbours).tolist(),
        )
        for each in report.verdicts
    ]


NAMES = np.array([7, -3, 40])


@pytest.mark.parametrize(
    "change",
    [
        "shuffled",
        "scaled up",
        "scaled down",
        "moved",
        "renamed",
        "repeated",
        "reshaped",
        "embedded",
    ],
)
def test_verdicts_are_invariant(change):
    classify, (x, y), (test_x, test_y) = noisy_rings()
    base = told(explain(classify, (x, y), (test_x, test_y)))
    assert len(base) > 20
    order = np.random.default_rng(0).permutation(len(x))
    if change == "shuffled":
        report = explain(classify, (x[order], y[order]), (test_x, test_y))
        assert told(report, index=lambda found: order[found]) == base
    elif change in ("scaled up", "scaled down"):
        unit = {"scaled up": 2.0**20, "scaled down": 2.0**-20}[change]
        assert (
            told(
                explain(
                    lambda inputs: classify(inputs / unit), (unit * x, y), (unit * test_x, test_y)
                )
            )
            == base
        )
    elif change == "moved":
        assert (
            told(
                explain(lambda inputs: classify(inputs - 8.0), (x + 8.0, y), (test_x + 8.0, test_y))
            )
            == base
        )
    elif change == "renamed":
        report = explain(
            lambda inputs: NAMES[np.asarray(classify(inputs))],
            (x, NAMES[y]),
            (test_x, NAMES[test_y]),
        )
        assert told(report, rename=lambda label: NAMES.tolist().index(label)) == base
    elif change == "repeated":
        again = np.concatenate([np.arange(len(x)), order[: len(x) // 2], np.repeat(order[:20], 30)])
        assert told(explain(classify, (x[again], y[again]), (test_x, test_y))) == base
    elif change == "reshaped":

        def square(inputs):
            return inputs.reshape(-1, 1, 2)

        assert (
            told(
                explain(
                    lambda inputs: classify(inputs.reshape(-1, 2)),
                    (square(x), y),
                    (square(test_x), test_y),
                )
            )
            == base
        )
    else:
        assert (
            told(
                explain(
                    classify, (x, y), (test_x, test_y), embed=lambda inputs: 4.0 * inputs[:, ::-1]
                )
            )
            == base
        )


def test_a_perfect_classifier_has_no_verdicts():
    _, (x, y), _ = noisy_rings()
    report = explain(one_nearest(x, y), (x, y), (x, y))
    assert report.verdicts == []
    assert report.accuracy == report.train_accuracy == 1
    assert sum(report.counts.values()) == 0
    assert "0 errors" in repr(report)


def test_ordinary_points_are_seldom_remote():
    """The conformal bound: at most a hundredth of points drawn like the training set is remote."""
    rng = np.random.default_rng(0)
    for d in (2, 20):
        x, y = rng.normal(size=(4_000, d)), rng.integers(2, size=4_000)

        def contrary(inputs, y=y):
            return np.zeros(len(inputs), int)

        report = explain(contrary, (x[:2_000], y[:2_000]), (x[2_000:], y[2_000:]), steps=2)
        assert len(report.of("wrong interpolation")) <= 0.01 * 2_000 + 3 * np.sqrt(0.01 * 2_000)


def p_value(ordinary, value):
    return (1 + np.sum(np.asarray(ordinary) >= value)) / (1 + len(ordinary))


def remoteness_by_hand(x, y, point, label, k):
    """Both questions by their definitions, with all distances and loops."""

    def to(place, members, own=None):
        near = np.linalg.norm(x[members] - place, axis=1)
        return np.sort(near[members != own])[: min(k, max(len(members) - 1, 1))][-1]

    everything = np.arange(len(x))

    def relative(place, own=None):
        order = np.argsort(np.linalg.norm(x - place, axis=1))
        near = order[order != own][:k]
        return to(place, everything, own) / np.median([to(x[i], everything, i) for i in near])

    def ratio(place, label, own=None):
        others = [to(place, np.flatnonzero(y == other)) for other in set(y) - {label}]
        return to(place, np.flatnonzero(y == label), own) / min(others)

    from_data = p_value([relative(x[i], i) for i in everything], relative(point))
    from_class = p_value([ratio(x[i], y[i], i) for i in everything], ratio(point, label))
    return min(1, 2 * min(from_data, from_class))


def test_remoteness_is_what_its_definition_says():
    """Two p-values, from all data and from the class, doubled for the two of them."""
    rng = np.random.default_rng(1)
    x, y, k = rng.normal(size=(40, 2)), np.arange(40) % 3, 3
    x[y == 2] += 1
    test_x = np.concatenate([rng.normal(size=(9, 2)), [[4.0, 4.0], [-2.5, -2.5], [2.0, -2.0]]])
    test_y = 1 + np.arange(12) % 2
    by_hand = [remoteness_by_hand(x, y, *example, k) for example in zip(test_x, test_y)]
    assert len(set(by_hand)) > 5
    level = float(np.median(by_hand))
    report = explain(zeros, (x, y), (test_x, test_y), k=k, steps=2, level=level)
    np.testing.assert_allclose([verdict.remoteness for verdict in report.verdicts], by_hand)
    remote = [verdict.cause == "wrong interpolation" for verdict in report.verdicts]
    assert remote == [value <= level for value in by_hand]


def test_a_class_never_seen_is_remote():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = np.arange(60) % 2
    report = explain(one_nearest(x, y), (x, y), (rng.normal(size=(5, 2)), np.full(5, 9)))
    assert report.counts["wrong interpolation"] == 5
    assert all(each.to_true is None and each.to_predicted is not None for each in report.verdicts)


@pytest.mark.parametrize("d", [2, 20])
def test_a_part_of_a_class_is_missed_among_others(d):
    """Where another class has many points, none is far from the data; but it is from its class."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, d)), np.arange(600) % 2
    x[y == 1, 0] += 10
    test_x = rng.normal(size=(50, d))
    report = explain(one_nearest(x, y), (x, y), (test_x, np.ones(50, int)))
    assert report.counts["wrong interpolation"] == 50
    assert all(
        each.to_true is not None and each.to_true.distance > each.distances[0]
        for each in report.verdicts
    )


def test_points_like_the_others_are_rarely_called_remote():
    """At a level of 10 %, whichever of the two questions asks: both distances may be remote."""
    rng, count = np.random.default_rng(0), 800
    x, test_x = rng.normal(size=(2, count, 3))
    y = rng.integers(0, 2, count)
    report = explain(zeros, (x, y), (test_x, np.ones(count, int)), steps=1)
    remote = np.mean([verdict.remoteness <= 0.1 for verdict in report.verdicts])
    assert len(report.verdicts) == count
    assert 0.05 < remote <= 0.1 + 2 * (0.1 * 0.9 / count) ** 0.5


def test_classes_of_one_point_have_no_scale():
    x = np.array([[0.0], [1.0]])
    (verdict,) = explain(zeros, (x, np.array([0, 1])), (x[1:] + 0.1, np.array([1])), k=1).verdicts
    assert verdict.cause != "wrong interpolation"


def test_evidence_is_what_it_says():
    classify, (x, y), (test_x, test_y) = noisy_rings()
    report = explain(classify, (x, y), (test_x, test_y), steps=5)
    said = np.asarray(classify(test_x))
    assert [each.index for each in report.verdicts] == np.flatnonzero(said != test_y).tolist()
    assert report.accuracy == pytest.approx(np.mean(said == test_y))
    assert sum(report.counts.values()) == len(report.verdicts)
    for each in report.verdicts:
        far = np.linalg.norm(x - test_x[each.index], axis=1)
        np.testing.assert_allclose(each.distances * each.scale, np.sort(far)[:10], rtol=1e-4)
        assert (each.labels == y[each.neighbours]).all()
        assert (each.predictions == np.asarray(classify(x[each.neighbours]))).all()
        assert 0 <= each.confidence <= 1
        assert each.runner_up != each.cause
        for path, label in ((each.to_true, each.true), (each.to_predicted, each.predicted)):
            assert path is not None
            assert y[path.index] == label
            assert path.distance * each.scale == pytest.approx(far[y == label].min(), rel=1e-4)
            ends = test_x[each.index] + np.linspace(0, 1, 7)[:, None] * (
                x[path.index] - test_x[each.index]
            )
            assert (
                path.labels == np.asarray(classify(ends))
            ).mean() >= 6 / 7  # a border may be a rounding away
    assert [each.confidence for each in report.of("wrong labels")] == sorted(
        (each.confidence for each in report.verdicts if each.cause == "wrong labels"), reverse=True
    )
    assert f"{len(report.verdicts)} errors" in repr(report)
    assert len({line.index("%") for line in repr(report).splitlines()[1:]}) == 1
    assert f"test point {report.verdicts[0].index}:" in repr(report.verdicts[0])


WITNESSES = [
    # wrong labels, over-divided, under-divided, supported -> the cause, or what comes next to it
    ((0, 9, 0, 0), "over-divided", ""),
    ((0, 5, 0, 0), AMBIGUOUS, "over-divided"),
    ((1, 9, 0, 0), "wrong labels", "over-divided"),
    ((2, 4, 0, 4), AMBIGUOUS, "wrong labels"),
    ((0, 1, 5, 4), "under-divided", "wrong interpolation"),
    ((0, 5, 1, 4), AMBIGUOUS, "under-divided"),
    ((0, 6, 0, 4), AMBIGUOUS, "over-divided"),
    ((0, 0, 0, 10), AMBIGUOUS, "wrong interpolation"),
    ((3, 4, 3, 0), AMBIGUOUS, "wrong labels"),
    ((3, 6, 1, 0), "wrong labels", "under-divided"),
]


@pytest.mark.parametrize(("counts", "cause", "runner_up"), WITNESSES)
def test_decide_cause(counts, cause, runner_up):
    evidence: dict[str, int] = dict(
        zip(("wrong labels", "over-divided", "under-divided", "supported"), counts, strict=True)
    )
    assert decide_cause(evidence, 10, 0.5, 0.01)[:2] == (cause, runner_up)
    remote, other, confidence = decide_cause(evidence, 10, 0.005, 0.01)
    assert (remote, confidence) == ("wrong interpolation", 0.995)
    assert other in (*CAUSES, "")


@pytest.mark.parametrize(
    ("m", "n", "d", "k"), [(1, 1, 1, 1), (7, 300, 2, 10), (1_500, 97, 20, 10), (5, 8, 3, 8)]
)
def test_neighbours_are_exact(m, n, d, k):
    rng = np.random.default_rng(0)
    queries, points = rng.normal(size=(m, d)) + 50, rng.normal(size=(n, d)) + 50
    distances, indices = nearest(queries, points, k)
    exact = np.linalg.norm(queries[:, None] - points, axis=2)
    np.testing.assert_allclose(distances, np.sort(exact, 1)[:, :k], rtol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(exact, indices, 1), distances, rtol=1e-4)
    if n > k:
        assert (nearest(points, points, k, own=np.arange(n))[1] != np.arange(n)[:, None]).all()


def test_ties_are_not_outvoted():
    neighbours = np.array([[1, 2], [0, 2], [0, 1]])
    assert outvoted(np.array([0, 0, 1]), neighbours).tolist() == [False, False, True]


def test_pictures():
    classify, train, test = noisy_rings()
    report = explain(classify, train, test)
    assert jc.plots.errors_by_cause(report, train, test, classify=classify).axes
    (ax,) = jc.plots.errors_by_cause(
        jc.classifiers.ErrorReport([], 1.0, 1.0, 5),
        train,
        (2 * test[0], test[1]),
        classify=classify,
    ).axes
    regions = ax.collections[0].get_datalim(ax.transData)
    assert np.allclose([regions.p0, regions.p1], [2 * test[0].min(0), 2 * test[0].max(0)], atol=0.1)
    shown = jc.plots.error_images(report, train, test, (1, 2), count=2, near=1)
    assert len(shown.axes) == 4 * sum(count > 0 for count in report.counts.values())
    with pytest.raises(ValueError, match="no errors"):
        jc.plots.error_images(jc.classifiers.ErrorReport([], 1.0, 1.0, 5), train, test, (1, 2))
    with pytest.raises(ValueError, match=r"draw images with error_images"):
        jc.plots.errors_by_cause(report, (np.ones((4, 3)), train[1]), test)


X = np.random.default_rng(0).normal(size=(40, 3))
Y = np.arange(40) % 2


def zeros(inputs):
    return np.zeros(len(inputs), int)


REFUSED = [
    (
        lambda inputs: np.full(len(inputs), np.nan),
        {},
        TypeError,
        "classify gave float64, expected integers",
    ),
    (
        lambda inputs: np.zeros((len(inputs), 2)),
        {},
        TypeError,
        "expected integers: take the argmax",
    ),
    (
        lambda inputs: np.zeros((len(inputs), 2), int),
        {},
        ValueError,
        r"shape \(1024, 2\) for 1024 points, expected \(1024,\)$",
    ),
    (
        lambda inputs: np.zeros(3, int),
        {},
        ValueError,
        r"shape \(3,\) for 1024 points, expected \(1024,\)$",
    ),
    (zeros, {"train": (X, np.zeros(40, int))}, ValueError, "fewer than two classes"),
    (zeros, {"train": (X[:0], Y[:0])}, ValueError, "train needs inputs"),
    (zeros, {"test": (X[:0], Y[:0])}, ValueError, "test needs inputs"),
    (zeros, {"test": (X[:, :2], Y)}, ValueError, "must be equal"),
    (zeros, {"test": (X, Y[:5])}, ValueError, "test needs inputs"),
    (zeros, {"test": (X, Y / 2)}, TypeError, "labels of test must be integers"),
    (zeros, {"train": (X.astype(np.uint8), Y)}, TypeError, "needs floats, got uint8"),
    (zeros, {"train": (np.where(X > 2, np.nan, X), Y)}, ValueError, "train hold NaN"),
    (
        zeros,
        {"train": (X[[0, 1] * 20], Y)},
        ValueError,
        "more than 10 distinct training points, got 2",
    ),
    (zeros, {"k": 0}, ValueError, "k must be a whole number"),
    (zeros, {"steps": 1.5}, ValueError, "steps must be a whole number"),
    (zeros, {"level": 1.0}, ValueError, "level is a share"),
    (zeros, {"embed": lambda inputs: inputs[:, 0]}, ValueError, r"embed gave \(1024,\)"),
    (zeros, {"embed": lambda inputs: np.nan * inputs}, ValueError, "embed gave NaN"),
    (zeros, {"train": (X[:, 0], Y)}, ValueError, "train needs inputs"),
]


@pytest.mark.parametrize(("classify", "given", "kind", "message"), REFUSED)
def test_refusals(classify, given, kind, message):
    options = {"train": (X, Y), "test": (X, Y)} | given
    with pytest.raises(kind, match=message):
        explain(classify, options.pop("train"), options.pop("test"), **options)


def test_unknown_causes_are_refused():
    with pytest.raises(ValueError, match="'bad luck' is no cause"):
        jc.classifiers.ErrorReport([], 1.0, 1.0, 5).of("bad luck")
