"""The code of the README and of the site runs, and what is made from the results is up to date."""

import importlib.util
import re
from pathlib import Path

import pytest

import jaxcompress as jc

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
]


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page; empty lines before them make errors name the page's lines."""
    text = page.read_text()
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match[1]
        for match in re.finditer(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem
)
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), names)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_and_numbers_are_those_of_the_results(tables):
    made = dict(tables.pages())
    assert len(made) >= 15
    for path, text in made.items():
        assert path.read_text() == text, f"{path} is out of date: run python docs/tables.py"
    measured = ROOT / "docs" / "measured"
    assert {path for path in made if path.parent == measured} == set(measured.glob("*.md"))


def test_measured_pages_have_no_table_of_their_own(tables):
    by_hand = [
        line
        for template in (ROOT / "docs" / "templates").glob("*.md")
        for line in template.read_text().splitlines()
        if line.startswith("|") and template.name != "index.md"
    ]
    assert not by_hand


def test_every_result_is_shown(tables):
    templates = (ROOT / "docs" / "templates").glob("*.md")
    docs = ROOT / "docs"
    pages = [*templates, ROOT / "README.md", docs / "contributing.md", docs / "reliability.md"]
    shown = "".join(path.read_text() for path in pages)
    for name in tables.TABLES:
        assert f'table("{name}")' in shown or f"<!-- table: {name} -->" in shown, name
    for name in (path.stem for path in (ROOT / "tests" / "benchmarks").glob("*.json")):
        assert f'"{name}"' in (ROOT / "docs" / "tables.py").read_text(), f"{name}.json is unused"


def test_the_api_lists_every_public_name():
    listed = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "api" / "index.md").read_text()))
    rooms = {name for name in jc.__all__ if (ROOT / "jaxcompress" / name).is_dir()}
    assert rooms - {"plots"} == {path.stem for path in (ROOT / "docs" / "api").glob("*.md")} - {
        "index",
        "files",
        "testing",
    }
    missing = set(jc.__all__) - listed - rooms - {"plots", "__version__"}
    assert not missing, f"add {sorted(missing)} to docs/api/index.md"


@pytest.mark.parametrize("room", sorted(path.stem for path in (ROOT / "docs" / "api").glob("*.md")))
def test_names_that_a_file_has_as_well_are_on_their_page(room):
    page = (ROOT / "docs" / "api" / f"{room}.md").read_text()
    folder = ROOT / "jaxcompress" / room
    for name in getattr(getattr(jc, room, None), "__all__", ()):
        if (folder / f"{name}.py").exists():  # the site's reader would show nothing in its place
            assert f"::: jaxcompress.{room}.{name}.{name}" in page
