"""The active set: bounds contain the truth, estimates are unbiased, certified bounds are exact."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import hypergeom

import jaxcompress as jc
import jaxcompress.classifiers.estimation
from jaxcompress.classifiers.margins import is_right, rate_of_change, signed_margins
from jaxcompress.classifiers.sampling import divide
from jaxcompress.classifiers.stratified_bounds import total_bounds

rng = np.random.default_rng(0)
COUNT = 3_000
X = rng.normal(size=(COUNT, 16)).astype(np.float32)
Y = np.argmax(X @ rng.normal(size=(16, 5)) + 0.5 * rng.normal(size=(COUNT, 5)), 1)


def apply(params, x):
    return jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"]) @ params["c"]


SHAPES = {"a": (16, 32), "b": (32, 32), "c": (32, 5)}
START = {
    name: jnp.asarray(rng.normal(size=s) * (2 / s[0]) ** 0.5, jnp.float32)
    for name, s in SHAPES.items()
}
PARAMS = jc.fit(
    jc.training.cross_entropy(apply),
    START,
    (X, Y),
    optimizer=optax.adam(5e-3),
    steps=400,
    batch_size=100,
    progress=False,
).params
NET = jc.trace(apply, PARAMS, X[:2])
MOMENTS = jc.calibrate(NET, PARAMS, [X[:500]], progress=False)
ACTIVE = jc.classifiers.active_set(NET, PARAMS, (X, Y), tolerance=0.5, progress=False)
LOGITS = np.asarray(NET(PARAMS, X))
PLACE = {row.tobytes(): place for place, row in enumerate(X)}


def noise(scale):
    return jax.tree.map(
        lambda leaf: leaf + scale * jax.random.normal(jax.random.key(leaf.shape[0]), leaf.shape),
        PARAMS,
    )


def table(logits):
    """A candidate that gives these logits."""
    return lambda x: logits[[PLACE[row.tobytes()] for row in np.asarray(x)]]


def overturned(which):
    """Right on all examples but those, where the label comes last."""
    logits = np.zeros((COUNT, 5))
    logits[np.arange(COUNT), Y] = np.where(which, -1.0, 1.0)
    return table(logits)


FAR = np.abs(ACTIVE.margins) > np.quantile(np.abs(ACTIVE.margins), 0.7)
COMPACTIONS = {
    **{
        f"rotate {keep}": jc.rotate_and_prune(NET, keep)(PARAMS, MOMENTS)
        for keep in (0.8, 0.5, 0.2)
    },
    **{f"coarsen {factor}": jc.coarsen(NET, factor)(PARAMS, MOMENTS) for factor in (1.5, 4)},
    **{f"hashed {keep}": jc.hashed(keep)(PARAMS) for keep in (0.9, 0.3)},
    **{f"factored {keep}": jc.factored(keep)(PARAMS) for keep in (0.7, 0.3)},
    **{f"noise {scale}": noise(scale) for scale in (0.0, 0.01, 0.1, 0.3)},
}
ADVERSARIES = {
    "right on the active set alone": overturned(~np.isin(np.arange(COUNT), ACTIVE.active)),
    "wrong on the active set alone": overturned(np.isin(np.arange(COUNT), ACTIVE.active)),
    "flips large margins": overturned(FAR),
    "flips one example in a hundred": overturned(np.arange(COUNT) % 100 == 0),
    "flips the largest margin": overturned(np.arange(COUNT) == np.argmax(ACTIVE.margins)),
    "constant": lambda x: jnp.zeros((len(x), 5)).at[:, 2].set(1.0),
    "ties": lambda x: jnp.zeros((len(x), 5)),
    "NaN": lambda x: jnp.full((len(x), 5), jnp.nan),
    "NaN far away": table(np.where(FAR[:, None], np.nan, LOGITS)),
    "infinite": lambda x: jnp.full((len(x), 5), jnp.inf),
    "always right": overturned(np.zeros(COUNT, bool)),
    "always wrong": overturned(np.ones(COUNT, bool)),
}
ALL = COMPACTIONS | ADVERSARIES


def logits_of(candidate):
    return np.asarray(candidate(X) if callable(candidate) else NET(candidate, X))


TRUTH = {name: float(is_right(logits_of(each), Y).mean()) for name, each in ALL.items()}


def judge(candidates=ALL, active=ACTIVE, **options):
    return jc.classifiers.rank_compactions(
        candidates, active, **{"evaluations": 0.1, "progress": False} | options
    )


def seeded(seed, **options):
    return jc.classifiers.active_set(NET, PARAMS, (X, Y), 0.5, seed=seed, progress=False, **options)


@pytest.mark.parametrize("evaluations", [0.04, 0.1, 0.5])
def test_bounds_contain_the_truth(evaluations):
    """Certain bounds always; confident ones for all at once on 19 of 20 draws, here on 5 of 5."""
    for seed in range(5):
        found = judge(active=seeded(seed), evaluations=evaluations)
        assert sum(row.evaluations for row in found.rows) <= np.ceil(evaluations * COUNT) * len(ALL)
        for name, truth in TRUTH.items():
            row = found[name]
            assert (
                row.certain[0] - 1e-9
                <= row.confident[0] - 1e-9
                <= truth
                <= row.confident[1] + 1e-9
                <= row.certain[1] + 2e-9
            ), name
            assert row.confident[0] - 1e-9 <= row.accuracy <= row.confident[1] + 1e-9


@pytest.mark.parametrize(("count", "confidence"), [(1, 0.95), (3, 0.95), (4, 0.8)])
def test_the_risks_of_all_bounds_add_up_to_that_of_the_ranking(monkeypatch, count, confidence):
    """The union bound: that any of the bounds fails is no likelier than the sum of their risks."""
    risks = []
    estimate = jaxcompress.classifiers.estimation.estimate

    def recorded(evaluation, risk):
        risks.append(risk)
        return estimate(evaluation, risk)

    monkeypatch.setattr("jaxcompress.classifiers.ranking.estimate", recorded)
    judge(dict(itertools.islice(ADVERSARIES.items(), count)), confidence=confidence)
    assert len(risks) == count
    assert sum(risks) == pytest.approx(1 - confidence)


def test_everything_seen_is_the_truth():
    for row in judge(evaluations=1.0).rows:
        assert row.certain == row.confident == pytest.approx((TRUTH[row.name],) * 2)
        assert (row.accuracy, row.error, row.evaluations) == (
            pytest.approx(TRUTH[row.name]),
            0.0,
            COUNT,
        )


def garbage(features, logits, labels, index, seen):
    """Expectations that have nothing to do with anything but which examples they are from."""
    return np.random.default_rng(index).beta(0.3, 0.3, len(logits))


@pytest.mark.parametrize("expect", [None, garbage])
def test_estimates_are_unbiased(expect, monkeypatch):
    """The mean of 25 draws is within 4 standard errors of the truth, and these are large enough."""
    if expect is not None:
        monkeypatch.setattr(jaxcompress.classifiers.estimation, "correctness_probabilities", expect)
    draws = [judge(active=seeded(seed), evaluations=0.06) for seed in range(25)]
    for name, truth in TRUTH.items():
        each, accuracy, error = np.array(
            [(found[name].unbiased, found[name].accuracy, found[name].error) for found in draws]
        ).T
        assert abs(each.mean() - truth) <= 4 * max(each.std() / 25**0.5, 1e-6) + 1e-9, name
        assert error.mean() >= 0.7 * each.std(), name
        assert (np.abs(accuracy - each) <= 2 * error + 1e-9).all(), name


def test_what_is_not_finite_is_expected_as_it_was_seen():
    """Never right where all that was seen is NaN; where a part is, the rest is expected as ever."""
    found = judge({name: ADVERSARIES[name] for name in ("NaN", "infinite", "NaN far away")})
    assert found["NaN"].accuracy < 0.01
    for name in ("infinite", "NaN far away"):
        assert found[name].accuracy == pytest.approx(TRUTH[name], abs=0.03)


def test_the_first_look_is_the_same_for_all_but_for_what_is_certified():
    """So that none has read what another will be given by how much that one moves."""
    first = {}

    def recorded(name, candidate):
        def run(x):
            first.setdefault(name, {row.tobytes() for row in np.asarray(x)})
            return NET(candidate, x)

        return run

    candidates = {name: recorded(name, noise(0.01)) for name in ("free", "certified", "also free")}
    judge(candidates, certified={"certified": 1.0})
    assert first["free"] == first["also free"]
    assert first["certified"] < first["free"]


def test_what_is_expected_brings_accuracies_nearer():
    """The squared error falls by at least a quarter, over usable compactions."""
    usable = {
        name: each for name, each in COMPACTIONS.items() if 0.8 < TRUTH[name] < TRUTH["noise 0.0"]
    }
    draws = [judge(usable, seeded(seed)) for seed in range(30)]
    gaps = np.array(
        [
            [(row.accuracy - TRUTH[row.name], row.unbiased - TRUTH[row.name]) for row in found.rows]
            for found in draws
        ]
    )
    accuracy, unbiased = np.square(gaps).mean((0, 1))
    assert accuracy < 0.75 * unbiased


def test_it_beats_a_random_part():
    """The squared error is less than half of that of equally many random examples."""
    gaps = {"active": [], "random": []}
    usable = {name: each for name, each in COMPACTIONS.items() if TRUTH[name] > 0.8}
    right = {name: is_right(logits_of(each), Y) for name, each in usable.items()}
    for seed in range(30):
        found = judge(usable, active=seeded(seed))
        part = np.random.default_rng(seed).choice(COUNT, COUNT // 10, replace=False)
        gaps["active"] += [found[name].accuracy - TRUTH[name] for name in usable]
        gaps["random"] += [right[name][part].mean() - TRUTH[name] for name in usable]
    assert np.mean(np.square(gaps["active"])) < 0.5 * np.mean(np.square(gaps["random"]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bound", [1e-3, 0.1, 1.0])
def test_nothing_beyond_twice_the_movement_is_overturned(seed, bound):
    moved = LOGITS + np.random.default_rng(seed).uniform(-bound, bound, LOGITS.shape)
    changed = is_right(moved, Y) != ACTIVE.right
    assert not changed[np.abs(ACTIVE.margins) > 2 * bound].any()
    row = judge({"moved": table(moved)}, certified={"moved": bound + 1e-5}).rows[0]
    assert row.certain[0] <= is_right(moved, Y).mean() <= row.certain[1]
    loose = judge({"moved": table(moved)}).rows[0]
    assert row.certain[1] - row.certain[0] < loose.certain[1] - loose.certain[0]
    if bound < 0.01:
        assert row.certain[0] == row.certain[1]


def test_a_set_is_as_wide_as_what_moves():
    """What moves more gets more evaluations, and one that does not move few."""
    found = judge({f"{scale}": noise(scale) for scale in (0.0, 0.01, 0.1)})
    counts = [found[f"{scale}"].evaluations for scale in (0.0, 0.01, 0.1)]
    assert counts == sorted(counts)
    assert counts[0] < counts[2]
    assert found["0.0"].movement < 1e-5


def test_without_labels_it_is_agreement():
    active = jc.classifiers.active_set(NET, PARAMS, (X, None), 0.5, progress=False)
    assert active.accuracy == 1
    assert (active.margins >= 0).all()
    found = judge({"same": PARAMS, "noise": noise(0.1)}, active)
    assert found.best == "same"
    agree = (logits_of(noise(0.1)).argmax(1) == LOGITS.argmax(1)).mean()
    assert found["noise"].confident[0] <= agree <= found["noise"].confident[1]


def test_margins_are_those_of_the_logits_and_sorted():
    top = np.sort(LOGITS, 1)
    np.testing.assert_allclose(
        np.abs(ACTIVE.margins[ACTIVE.right]), (top[:, -1] - top[:, -2])[ACTIVE.right], atol=1e-5
    )
    assert (np.sign(ACTIVE.margins) == np.where(ACTIVE.right, 1, -1)).all()
    assert (np.diff(np.abs(ACTIVE.margins)[ACTIVE.active]) >= 0).all()
    assert set(ACTIVE.active) == set(np.flatnonzero(np.abs(ACTIVE.margins) <= 1.0))
    assert sorted(np.concatenate(ACTIVE.strata)) == list(range(COUNT))
    odd = jc.classifiers.active_set(NET, PARAMS, (X, Y), 0.5, batch_size=701, progress=False)
    np.testing.assert_allclose(odd.margins, ACTIVE.margins, atol=1e-4)
    assert f"{len(ACTIVE.active):,} of 3,000" in repr(ACTIVE)


def test_another_score_orders_and_keeps_every_promise():
    states = []
    jc.fit(
        jc.training.cross_entropy(apply),
        START,
        (X, Y),
        optimizer=optax.adam(5e-3),
        steps=90,
        batch_size=100,
        progress=False,
        callback=lambda state: states.append(state.params),
        callback_steps=30,
    )
    change = rate_of_change(NET, states, (X, Y), progress=False)
    each = np.array([signed_margins(np.asarray(NET(params, X)), Y) for params in states])
    np.testing.assert_allclose(change, np.abs(np.diff(each, axis=0)).max(0), atol=1e-4)
    active = seeded(0, score=-change)
    assert (np.diff(change[active.order]) <= 0).all()
    for row in judge(active=active).rows:
        assert row.confident[0] - 1e-9 <= TRUTH[row.name] <= row.confident[1] + 1e-9


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_few_examples_and_one_label(count):
    active = jc.classifiers.active_set(
        NET, PARAMS, (X[:count], np.full(count, 3)), 0.5, progress=False
    )
    found = judge({"same": PARAMS, "noise": noise(0.3)}, active, evaluations=1.0)
    for row, params in ((found["same"], PARAMS), (found["noise"], noise(0.3))):
        assert row.accuracy == pytest.approx(
            (np.asarray(NET(params, X[:count])).argmax(1) == 3).mean()
        )


@pytest.mark.parametrize("expected", [0.001, 0.3])
@pytest.mark.parametrize("sizes", [(1,), (40,), (6, 9), (30, 4)])
def test_totals_are_bounded_with_their_risk(sizes, expected):
    """Over all samples of all populations, by the hypergeometric law itself."""
    sizes = np.array(sizes)
    drawn, signs, risk = (sizes + 1) // 2, np.array([1, -1])[: len(sizes)], 0.1
    outcomes = list(itertools.product(*[range(n + 1) for n in drawn]))
    bounds = [
        total_bounds(np.array(each), drawn, sizes, np.full(len(sizes), expected), signs, risk)
        for each in outcomes
    ]
    for truth in itertools.product(*[range(0, size + 1, 1 + size // 10) for size in sizes]):
        chance = np.array([np.prod(hypergeom.pmf(each, sizes, truth, drawn)) for each in outcomes])
        missed = np.array([not low <= np.sum(signs * truth) <= high for low, high in bounds])
        assert chance[missed].sum() <= risk


@pytest.mark.parametrize("seed", range(20))
def test_evaluations_are_divided_to_the_last_one(seed):
    rng = np.random.default_rng(seed)
    most = rng.integers(0, 50, 8)
    least = np.minimum(2, most)
    weights = rng.exponential(size=8) * rng.integers(0, 2, 8)
    for count in (0, least.sum(), int(most.sum() // 2), most.sum(), 10**6):
        found = divide(int(count), weights, least, most)
        assert ((least <= found) & (found <= most)).all()
        assert found.sum() == np.clip(count, least.sum(), most.sum())


def test_it_prints_and_draws():
    found = judge(COMPACTIONS)
    assert found.best in str(found)
    assert "95% sure for all" in found._repr_html_()
    assert len(jc.plots.margins(ACTIVE, found).figure.axes) == 2
    assert jc.plots.margins(ACTIVE).get_xlabel() == "signed margin"


def test_refusals():
    def refused(why, *given, kind=ValueError, **options):
        with pytest.raises(kind, match=why):
            jc.classifiers.active_set(*given, progress=False, **options)

    for tolerance in (0, -1.0, float("nan"), float("inf"), True, "1"):
        refused(r"tolerance must be in \(0, inf\)", NET, PARAMS, (X, Y), tolerance)
    refused(r"expected whole numbers of shape \(3000,\)", NET, PARAMS, (X, Y[:5]), 1.0)
    refused(r"expected whole numbers of shape \(3000,\)", NET, PARAMS, (X, Y[:, None]), 1.0)
    refused("labels are float64", NET, PARAMS, (X, Y * 1.0), 1.0)
    refused("do not fit logits of 5 classes", NET, PARAMS, (X, Y + 1), 1.0)
    refused("expected at least one example", NET, PARAMS, (X[:0], Y[:0]), 1.0)
    refused("data are", NET, PARAMS, X, 1.0)
    refused("of two classes at least", lambda p, x: x[:, :1], PARAMS, (X, Y), 1.0)
    refused("of two classes at least", lambda p, x: x[:, 0], PARAMS, (X, Y), 1.0)
    refused("logits that are not finite", lambda p, x: x[:, :5] * jnp.nan, PARAMS, (X, Y), 1.0)
    refused("expected one number for each of 3000", NET, PARAMS, (X, Y), 1.0, score=np.ones(5))
    with pytest.raises(ValueError, match="two checkpoints"):
        rate_of_change(NET, [PARAMS], (X, Y))
    for options, why in (
        ({"candidates": {}}, "one at least"),
        ({"evaluations": 0}, r"must be in \(0, 1\]"),
        ({"evaluations": True}, r"must be in \(0, 1\]"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"certified": {"NaN": "1"}}, "a bound from 0 on"),
        ({"confidence": 1.0}, "named certain"),
        ({"evaluations": 0.001}, "raise evaluations to"),
        ({"certified": {"none": 1.0}}, "expected a candidate's name"),
        ({"candidates": {"far": noise(0.3)}, "certified": {"far": 0.5}}, "is certified to move"),
        (
            {"candidates": {"NaN": ADVERSARIES["NaN"]}, "certified": {"NaN": 0.5}},
            "is certified to move",
        ),
        (
            {"candidates": {"three": lambda x: x[:, :3]}},
            "'three' gives 3 classes, expected the original's 5",
        ),
        ({"candidates": {"short": lambda x: x[:3]}}, "'short' gave an array of shape"),
    ):
        with pytest.raises(ValueError, match=why):
            judge(**options)
    with pytest.raises(TypeError, match=r"from jc\.classifiers\.active_set"):
        judge(active=None)
