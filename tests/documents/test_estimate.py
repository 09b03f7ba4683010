"""The job's time is estimated from timed batches, and bounded whatever the machine's speed."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from jaxcompress.documents import estimate
from jaxcompress.documents.estimate import Effort, Job, Speed, bounded, estimated, measure
from jaxcompress.documents.job import judged_passages
from jaxcompress.documents.reading import Passage
from jaxcompress.documents.samples import split

JOB = Job(2.0, 11, 2, 0.4, training=10**7, passages=10**5, tokens=10**7, shapes=5)
SPEEDS = (1e-6, 1e-4, 1e-3, 1e-2, 1.0)
MINUTES = (0.0, 2.0, 60.0)
DEFAULT = vars(Effort()).values()


def without_compilation(speed, job, effort):
    return estimated(Speed(speed, 0.0), job, effort).seconds


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("minutes", MINUTES)
def test_every_stage_but_the_index_is_bounded(speed, minutes):
    """By the training time or five minutes, down to a quarter of the default's tokens."""
    seconds = {}
    for passages in (10**3, 10**5, 10**7):
        job = Job(minutes, 11, 2, 0.4, 300 * passages, passages, 100 * passages, 5)
        effort = bounded(Speed(speed, 9.0), job)
        assert all(0 < given <= most for given, most in zip(vars(effort).values(), DEFAULT))
        seconds[passages] = without_compilation(speed, job, effort)
    allowed = max(60 * minutes, estimate.ALLOWED)
    least = estimate.LEAST * speed
    moments = estimate.MOMENTS * estimate.CALIBRATION
    timed = 2 * estimate.TIMING + speed * 1.4 * estimate.TIMED
    for stage in seconds.values():
        assert stage["pruning"] <= 1.01 * max(allowed, least * (12 * estimate.TRIAL + 2 * moments))
        assert stage["outputs"] <= max(60 * minutes, speed * estimate.CALIBRATION) + 1e-9
        assert stage["judging"] - timed <= 1.01 * max(allowed, least * 100 * estimate.JUDGED)
        learning = 60 * minutes + speed * (0.4 * moments + estimate.CLUSTERING)
        assert stage["learning"] <= learning + 1e-9
    few, *_, many = seconds.values()
    assert many["index"] == pytest.approx(10**4 * few["index"])
    bounds = {name: many[name] for name in ("pruning", "judging", "learning")}
    assert bounds == pytest.approx({name: seconds[10**5][name] for name in bounds})


def test_an_estimate_adds_tokens_and_compilations():
    base = estimated(Speed(0.0, 0.0), JOB, Effort()).seconds
    assert base == {"pruning": 0, "outputs": 0, "learning": 120, "index": 0, "judging": 0}
    tokens = estimated(Speed(1e-3, 0.0), JOB, Effort(judged=50_000)).seconds
    assert tokens["pruning"] == pytest.approx(12 * 6 + 3 * 20)
    assert tokens["outputs"] == pytest.approx(2000)
    assert tokens["index"] == pytest.approx(0.4 * 10_000)
    assert tokens["judging"] == pytest.approx(5_000 + 20 + 1.4 * 4.112)
    programs = estimated(Speed(0.0, 1.0), JOB, Effort()).seconds
    assert programs == {"pruning": 30, "outputs": 5, "learning": 165, "index": 5, "judging": 9}


def test_a_batch_of_the_common_shape_is_timed():
    """A clock that shows 10 seconds for the first run, with compilation, and 2, 3, 4 after it."""
    ticks = iter(itertools.accumulate([0, 10, 0, 2, 0, 4, 0, 3]))
    shapes = []

    def apply(params, ids, mask):
        shapes.append(ids.shape)
        return ids

    ids = [np.arange(1, 30)] * 200 + [np.arange(1, 90)]
    speed = measure(apply, None, ids, 128, clock=lambda: next(ticks))
    assert shapes == [(32, 32)]
    assert speed == Speed(3 / 1024, 7.0)


@pytest.mark.parametrize("count", [1, 15, 40, 1000])
def test_judged_passages_are_a_sample_with_the_held_out_ones(tmp_path, count):
    """What the teacher embedded is not embedded again, and every embedding is of its passage."""
    passages = [Passage("d", f"{index} text") for index in range(60)]
    texts = split(passages, seed=0)
    rng = np.random.default_rng(1)
    chosen = rng.permutation(len(texts.training) + len(texts.short))[:60]
    strings = [passages[index].text for index in texts.training] + texts.short
    embedded = []

    def embed(some, **options):
        embedded.extend(some)
        return np.array([[float(text.split()[0])] for text in some])

    known = [strings[index] for index in chosen]
    there = {strings[index] for index in chosen if index < len(texts.training)}
    teacher = SimpleNamespace(embeddings=np.array([[as_number(text)] for text in known]))
    large = SimpleNamespace(embed=embed, config=SimpleNamespace(embedding_size=1))
    settings = SimpleNamespace(seed=0)
    effort = Effort(judged=count)
    judged, vectors = judged_passages(
        large, texts, chosen, teacher, settings, effort, tmp_path, progress=False
    )
    assert len(judged) == min(max(count, len(texts.held_out)), 60)
    assert set(texts.held_out) <= set(judged)
    assert (np.diff(judged) > 0).all()
    np.testing.assert_array_equal(np.asarray(vectors)[:, 0], judged)
    assert not set(embedded) & there


def as_number(text):
    """The number of a passage's text; of a short text anything."""
    return float(text.split()[0]) if text.endswith(" text") and len(text.split()) == 2 else -1.0
