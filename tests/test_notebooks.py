"""Every notebook runs from its first cell to its last."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def executed(name: str, folder: Path, **settings):
    """A notebook after it was run, with other values in the cell of its settings."""
    notebook = nbformat.read(ROOT / "colabs" / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), (
        "notebooks are checked in without outputs"
    )
    (place,) = [
        index
        for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", [])
    ] or [None]
    if place is not None:
        given = set(re.findall(r"^([A-Z]+) =", notebook.cells[place].source, flags=re.MULTILINE))
        assert given == set(settings)
        notebook.cells[place].source = "\n".join(
            f"{key} = {value!r}" for key, value in settings.items()
        )
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in outputs), (
        "the notebook shows no picture"
    )
    return outputs


def test_every_notebook_is_here():
    assert sorted(path.name for path in (ROOT / "colabs").glob("*.ipynb")) == [
        "compose.ipynb",
        "documents.ipynb",
        "learning.ipynb",
        "resolution.ipynb",
        "sharing.ipynb",
    ]


@pytest.mark.filterwarnings("default")  # of the notebook client, not of ours
def test_transforms_are_composed(tmp_path):
    executed("compose.ipynb", tmp_path)


MEASURED = {
    "resolution.ipynb": (
        dict(STEPS=120, UNITS=64),
        (
            "roughness",
            "smoothed, in order",
            "largest change of a logit",
            "With a quarter of the channels",
            "of the FLOPs",
        ),
    ),
    "sharing.ipynb": (
        dict(SEEDS=1, STEPS=20),
        (
            "variance",
            "low rank",
            "windows",
            "examples: designed",
            "overlap with the cosines",
            "learned there",
            "Gabor",
            "spelling",
        ),
    ),
    "learning.ipynb": (
        dict(SEEDS=1, STEPS=60),
        (
            "the mesh as a classifier",
            "missed by the seeds",
            "boundary pairs",
            "realized, members",
            "wrong interpolation",
            "mean cosine",
            "saturated",
            "last layer times 4",
            "within their bounds",
        ),
    ),
}
"""What short runs on small images are given, and what they print."""


LONG = {"sharing.ipynb", "learning.ipynb"}
"""Half a minute each, of many small trainings; `.ci/run` runs them before the suite."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in MEASURED],
)
@pytest.mark.filterwarnings("default")
def test_it_is_measured(tmp_path, name):
    settings, said = MEASURED[name]
    outputs = executed(name, tmp_path, DATA="digits", **settings)
    printed = "".join(out.get("text", "") for out in outputs)
    for words in said:
        assert words in printed


@pytest.mark.filterwarnings("default")
def test_an_encoder_for_documents(tmp_path, model, documents):
    settings = {
        "DOCUMENTS": str(documents),
        "MODEL": str(model),
        "KEEP": 0.5,
        "WORK": 0.7,
        "MINUTES": 0.02,
        "LENGTH": 12,
    }
    outputs = executed(
        "documents.ipynb", tmp_path, **settings, QUESTIONS=["bag face", "dead"], OUT="small"
    )
    printed = "".join(
        out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in outputs
    )
    for words in ("40 documents", "stored numbers", "recall@1", "--- bag face", "--- dead"):
        assert words in printed
