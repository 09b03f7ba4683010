"""Makes the site's measured pages and the README's table from the benchmarks' checked-in results.

    python docs/tables.py            # writes docs/measured/*.md, and the marked blocks of others
    python docs/tables.py --list     # the names of the tables

Each page has a template in docs/templates. There, `{{ table("denil") }}` is a table as the
benchmark prints it, and `{{ cell("denil", "DCT", "test error %") }}` one of its cells, so that
prose and tables cannot differ. `value(...)` is the same cell as a number (its mean, where there is
a spread), for differences and ratios. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "tests" / "benchmarks"
MARKED = r"<!-- table: (.+?) -->.*?<!-- end -->"
"""A block of a page that is written by hand otherwise."""
HEADER = "<!-- Made by docs/tables.py from docs/templates/{name}: edit that, and run it. -->\n\n"

TABLES: dict[str, Callable[[], str]] = {}
"""What a template can ask for, by name."""

Rows = list[dict[str, Any]]


def named(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a function that makes a table."""

    def register(make: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = make
        return make

    return register


@cache
def benchmark(name: str) -> ModuleType:
    """A benchmark's module, whose functions make its tables."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module(name)


@cache
def results(name: str) -> Any:
    """The checked-in results of a benchmark."""
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def blocks(markdown: str) -> list[str]:
    """The tables of a text, without what stands between them."""
    return [block.strip() for block in re.findall(r"(?:^\|.*\n?)+", markdown, flags=re.MULTILINE)]


def grid(heads: list[str], rows: list[list[str]]) -> str:
    """A table in markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    x = np.array(values)
    return f"{x.mean():.{digits}f}" + (f" ± {x.std(ddof=1):.{digits}f}" if len(x) > 1 else "")


def columns_of(markdown: str, names: list[str]) -> str:
    """A table with some of its columns, in a given order."""
    heads, *rows = cells_of(markdown)
    places = [heads.index(name) for name in names]
    return grid(names, [[row[place] for place in places] for row in rows])


def cells_of(markdown: str) -> list[list[str]]:
    """A table's cells, its heads first."""
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in markdown.splitlines()
    ]
    return [lines[0], *lines[2:]]


# --- networks trained from the start -------------------------------------------------------------


def hashed_rows(part: str) -> Rows:
    """The final cells of a part of HashedNets' table, at the choices of the validation images."""
    module = benchmark("hashednets")
    return module.final_rows(results("hashednets"), module.PARTS[part])


def convnet_rows() -> Rows:
    return [row for row in results("small_convnet") if row["split"] == "test"]


def errors_of(rows: Rows, name: str, column: str | None = None) -> list[float]:
    """The errors of a set's seeds."""
    return [
        row["error"]
        for row in rows
        if row["set"] == name and column in (None, row.get("column", column))
    ]


def finished(errors: list[float], seeds: int = 3) -> str:
    """Mean and deviation, with the number of seeds where some are missing."""
    if not errors:
        return ""
    missing = f" ({len(errors)} of {seeds} seeds)" if len(errors) < seeds else ""
    return spread(errors) + missing


@named("hashednets")
def hashednets() -> str:
    """Eight sets at 1/64, with the small ConvNet beside."""
    made = blocks(benchmark("hashednets").table(hashed_rows("core")))[0]
    heads, *rows = cells_of(made)
    place = heads.index("paper: plain")
    neighbours = convnet_rows()
    facts = {
        "numbers stored": f"{neighbours[0]['stored']:,}" if neighbours else "",
        "multiplications": f"{neighbours[0]['multiplications']:,}" if neighbours else "",
    }
    for row in rows:
        errors = errors_of(neighbours, row[0])
        row.insert(place, finished(errors) or facts.get(row[0], ""))
    heads.insert(place, "small ConvNet")
    return grid(heads, rows)


@named("readme")
def readme() -> str:
    """The first table: eight sets, what is stored and what is computed."""
    heads, *rows = cells_of(hashednets())
    rows = [row for row in rows if row[0] not in ("hidden units", GEOMETRIC)]
    wanted = {
        "set": "test error, %",
        "plain": "plain net",
        "hashed": "`hashed`",
        "DCT + hashed": "`vocabulary` + `hashed`",
        "small ConvNet": "small ConvNet",
        "Toeplitz + DCT": "`toeplitz` + `vocabulary`",
    }
    made = columns_of(grid(heads, rows), list(wanted))
    _, *rows = cells_of(made)
    return grid(list(wanted.values()), rows)


GEOMETRIC = "geometric mean over the lower plain error"


def hashed_table(part: str) -> Callable[[], str]:
    return lambda: blocks(benchmark("hashednets").table(hashed_rows(part)))[0]


for _part in ("eighth", "five"):
    TABLES[f"hashednets, {_part}"] = hashed_table(_part)


def one_set(part: str) -> Callable[[], str]:
    """A part on one set: a line for each column."""

    def make() -> str:
        rows = hashed_rows(part)
        lines = []
        for column in dict.fromkeys(row["column"] for row in rows):
            mine = [row for row in rows if row["column"] == column]
            sizes = "-".join(map(str, mine[0]["sizes"][1:-1]))
            numbers, products = (f"{mine[0][key]:,}" for key in ("stored", "multiplications"))
            lines.append([column, spread([row["error"] for row in mine]), sizes, numbers, products])
        return grid(["form", "test error %", "hidden units", "numbers", "multiplications"], lines)

    return make


for _part in ("fashion", "forms", "storage", "storage, soft"):
    TABLES[f"hashednets, {_part}"] = one_set(_part)


@named("hashednets, soft")
def soft() -> str:
    """Hard and soft targets side by side."""
    rows, hard = hashed_rows("soft"), hashed_rows("core")
    columns = list(dict.fromkeys(row["column"] for row in rows))
    heads = ["set", *(f"{c}, {kind}" for c in columns for kind in ("hard", "soft"))]
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        pairs = [[errors_of(some, name, c) for some in (hard, rows)] for c in columns]
        lines.append([name, *(spread(errors) for pair in pairs for errors in pair)])
    return grid(heads, lines)


@named("hashednets, data")
def data() -> str:
    """Learned and designed features after more and fewer images."""
    rows = hashed_rows("data")
    columns = list(dict.fromkeys(row["column"] for row in rows))
    lines = [
        [name, *(spread(errors_of(rows, name, column)) for column in columns)]
        for name in dict.fromkeys(row["set"] for row in rows)
    ]
    return grid(["training images", *columns], lines)


def variants(name: str) -> Callable[[], str]:
    def make() -> str:
        rows = [row for row in results("variants") if row["set"] == name]
        return blocks(benchmark("variants").table(rows))[0]

    return make


for _set in ("MNIST", "BASIC"):
    TABLES[f"variants, {_set}"] = variants(_set)


@named("denil")
def denil() -> str:
    rows = [row for row in results("denil") if row["split"] == "test"]
    return benchmark("denil").table(rows)


@named("recurrent")
def recurrent() -> str:
    return benchmark("recurrent").table(results("recurrent"))


@named("recurrent, states")
def recurrent_states() -> str:
    return benchmark("recurrent").rounds_table(results("recurrent"))


@named("recurrent, speed")
def recurrent_speed() -> str:
    return benchmark("recurrent").speed_table(results("recurrent"))


@named("digits")
def digits() -> str:
    return benchmark("tour_splits").table(results("tour_splits"))


# --- trained networks made smaller ---------------------------------------------------------------


def channel_rows(part: str) -> Rows:
    return [row for row in results("channels") if row["part"] == part]


@named("channels")
def channels() -> str:
    made = benchmark("channels").cut_table(channel_rows("cut"))
    names = [name for name in cells_of(made)[0] if name not in ("target", "seconds")]
    return columns_of(made, names)


@named("channels, before")
def channels_before() -> str:
    """The accuracies before any cut."""
    rows, lines = channel_rows("cut"), []
    for name in dict.fromkeys(row["network"] for row in rows):
        whole = {row["seed"]: row["before"] for row in rows if row["network"] == name}
        lines.append([name, spread(list(whole.values()))])
    return grid(["network", "test accuracy before, %"], lines)


@named("coarsening")
def coarsening() -> str:
    return benchmark("channels").coarsening_table(channel_rows("cut"))


@named("data free")
def data_free() -> str:
    return benchmark("data_free").table(results("data_free"))


@named("data free, with images")
def data_free_with_images() -> str:
    module = benchmark("data_free")
    return module.table(results("data_free"), module.WITH_IMAGES)


@named("replay")
def replay() -> str:
    return benchmark("channels").replay_table(channel_rows("replay"))


@named("trace")
def trace() -> str:
    row = channel_rows("trace")[0]
    cells = [f"{row[key]:.0f}" for key in ("equations", "make_jaxpr", "beyond", "first")]
    return grid(
        ["equations", "`make_jaxpr`, ms", "`jc.trace` beyond it, ms", "the first time, ms"], [cells]
    )


def peers() -> list[str]:
    """What is lost, what it costs, and the seconds it takes."""
    rows = [row for row in results("peers") if "method" in row]
    clocks = [row for row in results("peers") if row.get("part") == "clock"]
    module = benchmark("peers")
    return blocks(module.summary(rows, clocks)) + blocks(module.table(rows, clocks))


for _place, _name in enumerate(("lost", "costs", "seconds", "everything")):
    TABLES[f"peers, {_name}"] = lambda place=_place: peers()[place]


@named("budgets")
def budgets() -> str:
    return benchmark("budgets").table(results("budgets"))


@named("budget metric")
def budget_metric() -> str:
    return benchmark("budget_metric").table(results("budget_metric"))


def zoo(how: str) -> Callable[[], str]:
    return lambda: getattr(benchmark("zoo"), how)({row["model"]: row for row in results("zoo")})


TABLES["zoo, packages"], TABLES["zoo, models"] = zoo("by_package"), zoo("table")


@named("calibration")
def calibration() -> str:
    return benchmark("calibration").table(results("calibration")[0])


@named("calibration, losses")
def calibration_losses() -> str:
    row = results("calibration")[0]
    losses = row["losses"]
    lines = [
        ["second moments, relative difference (median)", f"{100 * losses['moments']:.0f} %"],
        ["error of a half cut, moments of all tokens", f"{losses['whole']:.3f}"],
        ["error of a half cut, moments of an eighth of them", f"{losses['part']:.3f}"],
    ]
    memory = [key for key in row if key.endswith("tokens")]
    lines += [[f"highest memory after {key}", f"{row[key]['GB']:.1f} GB"] for key in memory]
    return grid(["with `sample=1/8`", ""], lines)


@named("batch norms, cuts")
def batch_norms_cuts() -> str:
    return benchmark("batchnorm").cut_table(results("batchnorm"))


@named("batch norms, tuned")
def batch_norms_tuned() -> str:
    return benchmark("batchnorm").perceptron_table(results("batchnorm"))


def output_layer(start: str) -> Callable[[], str]:
    def make() -> str:
        module = benchmark("output_layer")
        name = next(name for name in module.SUBJECTS if name.startswith(start))
        rows = [
            row for row in results("output_layer") if (row["layer"], row["part"]) == (name, "cut")
        ]
        return blocks(module.table(name, module.SUBJECTS[name], rows))[0]

    return make


OUTPUTS = {
    "perceptron": "Fashion-MNIST",
    "characters": "textgenrnn",
    "words, embeddings": "MiniLM word scores of its emb",
    "words, layer 6": "MiniLM word scores of its six",
}
for _name, _start in OUTPUTS.items():
    TABLES[f"output layer, {_name}"] = output_layer(_start)


@named("output layer, law")
def output_law() -> str:
    rows = [row for row in results("output_layer") if row["part"] == "law"]
    return benchmark("output_layer").law_table(rows)


# --- training loops and learning from a classifier -----------------------------------------------


@named("multigrid")
def multigrid() -> str:
    return benchmark("multigrid").table(results("multigrid"))


@named("distillation")
def distillation() -> str:
    return benchmark("distillation").gap_table(results("distillation"))


@named("distillation, why")
def distillation_why() -> str:
    return benchmark("distillation").why_table(results("distillation"))


@named("training sets")
def training_sets() -> str:
    return benchmark("realization_along").table(results("realization_along"), "final", None)


for _place, _name in enumerate(("borders", "students")):
    TABLES[f"realization, {_name}"] = lambda place=_place: blocks(
        benchmark("realization").tables(results("realization"))
    )[place]


@named("active set")
def active_set() -> str:
    return blocks(active_set_text())[0]


@cache
def active_set_text() -> str:
    rows = [row for row in results("active_set") if row["split"] == "test"]
    return benchmark("active_set").table(rows)


def active_set_bounds() -> str:
    """The sentences under the table."""
    return active_set_text().split("\n\n")[-1].replace("\n", " ")


for _place, _name in enumerate(("worlds", "planted", "clothes")):
    TABLES[f"errors, {_name}"] = lambda place=_place: blocks(
        benchmark("errors").tables(results("errors"))
    )[place]


# --- documents -----------------------------------------------------------------------------------


@named("documents")
def documents() -> str:
    rows = sorted(
        results("corpus"),
        key=lambda row: [-row[name] for name in ("keep", "work", "minutes")],
    )
    return benchmark("corpus").table(rows, "test")


@named("latency")
def latency() -> str:
    return benchmark("latency").table(results("latency")[0])


def ablation_rows() -> dict[str, Any]:
    return {
        row["row"]: {key: value for key, value in row.items() if key != "row"}
        for row in results("ablation")
    }


@named("ablation")
def ablation() -> str:
    return blocks(benchmark("ablation").table(ablation_rows()))[0]


@named("low rank")
def low_rank() -> str:
    """Squared error of hidden states at equal ranks."""
    errors = ablation_rows()["A7"]
    lines = [[name, f"{e:.3f}", f"{e / errors['plain']:.2f}x"] for name, e in errors.items()]
    return grid(["SVD", "relative squared error", "of plain"], lines)


@named("sentiment")
def sentiment() -> str:
    return benchmark("sentiment").table(results("sentiment"))


def linear_table(part: str, function: str = "table") -> Callable[[], str]:
    """A table of the linear bypass when training from scratch."""
    return lambda: getattr(benchmark("linear_bypass"), function)(results("linear_bypass"), part)


for _part in ("sets", "tables"):
    TABLES[f"linear bypass, {_part}"] = linear_table(_part)
TABLES["linear bypass, why"] = linear_table("sets", "why")


@named("linear bypass, minilm")
def linear_minilm() -> str:
    """MiniLM with layers dropped or replaced by linear maps."""
    return benchmark("linear_bypass").minilm_table(results("linear_bypass"))


@named("linear bypass, units")
def linear_units() -> str:
    """A perceptron with a share of its units, selected alone or with linear units."""
    return benchmark("linear_bypass").units_table(results("linear_bypass"))


@named("readability")
def readability() -> str:
    """Measures of the source, a column for each package."""
    packages = results("readability")
    names = list(next(iter(packages.values())))
    rows = [[name, *(f"{facts[name]:,}" for facts in packages.values())] for name in names]
    return grid(["", *packages], rows)


@named("mutations")
def mutations() -> str:
    """Changes of meaning that the tests noticed, by room."""
    tests = ROOT / "tests"
    sys.path.insert(0, str(tests))
    rows = json.loads((tests / "mutations.json").read_text())
    return importlib.import_module("mutations").table(rows)


# --- the pages -----------------------------------------------------------------------------------


@cache
def table(name: str) -> str:
    """A table by its name."""
    if name not in TABLES:
        raise KeyError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    return TABLES[name]()


def cell(name: str, row: str | tuple[str, ...], column: str) -> str:
    """A cell of a table: its row by the first cell, or by the first few."""
    start = [row] if isinstance(row, str) else list(row)
    heads, *lines = cells_of(table(name))
    found = [line for line in lines if line[: len(start)] == start]
    if not found or column not in heads:
        raise KeyError(f"table {name!r} has no cell {start} x {column!r}; its heads are {heads}")
    return found[0][heads.index(column)]


def value(name: str, row: str | tuple[str, ...], column: str) -> float:
    """The first number of a cell."""
    number = re.search(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?", cell(name, row, column))
    if number is None:
        raise ValueError(f"cell {row} x {column!r} of {name!r} holds no number")
    return float(number.group().replace(",", ""))


NAMES: dict[str, Any] = {
    "table": table, "cell": cell, "value": value, "results": results, "np": np,
    "active_set_bounds": active_set_bounds,
}  # fmt: skip


def filled(template: str) -> str:
    """A template with its placeholders replaced by what they evaluate to."""
    text = re.sub(
        r"\{\{(.+?)\}\}", lambda match: str(eval(match[1].strip(), dict(NAMES))), template
    )
    return unbroken(text)


def unbroken(text: str) -> str:
    """A text whose spreads stay on one line."""
    return text.replace(" ± ", "\u00a0±\u00a0")


def pages() -> Iterator[tuple[Path, str]]:
    """Every file that is made here, and its content."""
    for template in sorted((ROOT / "docs" / "templates").glob("*.md")):
        text = filled(template.read_text())
        yield ROOT / "docs" / "measured" / template.name, HEADER.format(name=template.name) + text
    pages_with_blocks = (ROOT / "docs" / name for name in ("contributing.md", "reliability.md"))
    for path in (ROOT / "README.md", *pages_with_blocks):
        yield path, re.sub(MARKED, marked, path.read_text(), flags=re.DOTALL)


def marked(block: re.Match[str]) -> str:
    """A marked block with its table."""
    return f"<!-- table: {block[1]} -->\n\n{unbroken(table(block[1]))}\n\n<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--list", action="store_true", help="the tables' names and heads, and stop")
    parser.add_argument("--show", help="print one table, and stop")
    args = parser.parse_args()
    if args.show:
        return print(table(args.show))
    if args.list:
        return print("\n".join(f"{name}: {cells_of(table(name))[0]}" for name in TABLES))
    for path, text in pages():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return None


if __name__ == "__main__":
    main()
