"""Would a test notice? Small changes of meaning, made one at a time, and the tests that cover them.

    python tests/mutations.py cover                    # which tests run which lines, and how long
    python tests/mutations.py run --count 300 --seed 0 # a random sample; prints the survivors
    python tests/mutations.py try FILE:LINE            # every change of a line
    python tests/mutations.py table                    # figures by room

A change is *killed* if a test that runs the changed line fails, or does not end. Survivors are
either listed in mutants_equivalent.json, with the reason why nothing can notice them, or a law is
missing. The results (`mutations.json`) are keyed by the text that changes, not by its line.

Cost: `cover` runs the suite once. A change costs the seconds of its tests up to the first that
fails; survivors cost at most `--seconds` of processor time. Everything but the package and the
tests is imported once, in a process that forks for each change; the package is changed in a copy,
so that several runs are possible at once. Needs `coverage`, and an operating system that forks.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from helpers_mutants import Mutant, compiles, mutants

ROOT = Path(__file__).parents[1]
COVERAGE = ROOT / ".pytest_cache" / "coverage"
RESULTS = Path(__file__).with_name("mutations.json")
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.json")
ROOMS = (
    "arrays",
    "programs",
    "networks",
    "moments",
    "transforms",
    "training",
    "analysis",
    "classifiers",
    "documents",
)
OUTSIDE = ("plots.py", "_plots.py", "charts.py")
"""Ends of the names of files that are for looking."""
SLOW = ("tests/test_notebooks.py", "tests/test_docs.py", "tests/test_cli.py", "tests/test_rooms.py")
KILLED = ("killed", "no end")


@dataclass(frozen=True)
class Test:
    """A test that passes, as the coverage saw it.

    Attributes:
        name: pytest's name.
        seconds: of processor time.
        lines: that it runs, by file.
    """

    name: str
    seconds: float
    lines: dict[str, frozenset[int]] = field(repr=False)

    @property
    def cost(self) -> float:
        """Short and specific tests first."""
        return (self.seconds + 0.05) * sum(map(len, self.lines.values()))

    def covers(self, mutant: Mutant) -> bool:
        """Whether it runs the statement of a change."""
        lines = self.lines.get(mutant.file, frozenset())
        return any(line in lines for line in range(mutant.first, mutant.last + 1))


def read_coverage(folder: Path) -> list[Test]:
    """All tests of the files that `cover` wrote, the most specific first."""
    tests = {}
    for path in sorted(folder.glob("*.json")):
        for name, row in json.loads(path.read_text()).items():
            lines = {file: frozenset(numbers) for file, numbers in row["lines"].items()}
            tests[name] = Test(name, row["seconds"], lines)
    return sorted(tests.values(), key=lambda test: test.cost)


def is_within(test: Test) -> bool:
    """Whether a test is of the package itself, short, and still there."""
    return not test.name.startswith(SLOW) and (ROOT / test.name.split("::")[0]).exists()


def parts_of_the_suite(rooms: Iterable[str]) -> dict[str, list[str]]:
    """What one process covers: a room's tests and examples, or the tests of all rooms."""
    parts = {room: [f"tests/{room}", f"jaxcompress/{room}"] for room in rooms}
    whole = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("tests/test_*.py"))]
    parts["all rooms"] = [path for path in whole if path not in SLOW]
    parts["all rooms"] += ["tests/checkpoint", "tests/models"]
    return parts


# --- the sample ----------------------------------------------------------------------------------


def files_of(room: str) -> list[str]:
    """The files of a room that compute something."""
    paths = sorted((ROOT / "jaxcompress" / room).rglob("*.py"))
    return [str(path.relative_to(ROOT)) for path in paths if not path.name.endswith(OUTSIDE)]


def lines_of(rooms: Iterable[str]) -> dict[str, int]:
    """The number of lines of each room."""
    return {
        room: sum(len((ROOT / file).read_text().splitlines()) for file in files_of(room))
        for room in rooms
    }


def sample(rooms: Iterable[str], count: int, seed: int) -> list[Mutant]:
    """Changes at random lines, the rooms in proportion to their lines.

    A line is drawn first and then one of its changes, so that lines with many do not count more.
    """
    sizes = lines_of(rooms)
    drawn = []
    for room, size in sizes.items():
        draws = random.Random(f"{seed} {room}")
        sources = {file: (ROOT / file).read_text() for file in files_of(room)}
        by_line: dict[tuple[str, int], list[Mutant]] = {}
        for file, source in sources.items():
            for mutant in mutants(file, source):
                by_line.setdefault((file, mutant.line), []).append(mutant)
        places = draws.sample(sorted(by_line), len(by_line))
        chosen = (draws.choice(by_line[place]) for place in places)
        good = [m for m in _first(chosen, 2 * count * size // sum(sizes.values()) + 9) if m]
        good = [mutant for mutant in good if compiles(mutant, sources[mutant.file])]
        drawn += good[: round(count * size / sum(sizes.values()))]
    return random.Random(seed).sample(drawn, len(drawn))


def _first(items: Iterable[Mutant], count: int) -> list[Mutant]:
    """The first members of an iterable."""
    return [item for _, item in zip(range(count), items)]


# --- one change ----------------------------------------------------------------------------------


class Chosen:
    """A pytest plugin: runs the given tests in the given order, and records the first failure.

    Args:
        names: of the tests.
        report: a file for the failure.
    """

    def __init__(self, names: list[str], report: Path):
        self.order = {name: place for place, name in enumerate(names)}
        self.report = report

    def pytest_collection_modifyitems(self, items: list) -> None:
        """Only the given tests, the most specific first."""
        known = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(known, key=lambda item: self.order[item.nodeid])
        self.report.with_name("chosen").write_text(str(len(items)))

    def pytest_runtest_logreport(self, report) -> None:
        """Which test failed."""
        if report.failed and not self.report.exists():
            self.report.write_text(report.nodeid)


def run_tests(folder: Path, names: list[str], seconds: int) -> None:
    """In a forked process: run tests in a copy of the package, and leave with pytest's answer."""
    import hypothesis
    import pytest

    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path[:0] = [str(folder), str(folder / "tests")]
    os.environ["PYTHONPATH"] = str(folder)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))
    hypothesis.settings.register_profile(
        "mutants", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], database=None
    )
    hypothesis.settings.load_profile("mutants")
    paths = list(dict.fromkeys(name.split("::")[0] for name in names))
    options = ["-o", "addopts=", "--doctest-modules", "--import-mode=importlib", "-x", "-q"]
    options += ["-p", "no:cacheprovider", "--tb=line", "--rootdir=.", "--basetemp=temporary"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is there already
    code = pytest.main([*options, *paths], plugins=[Chosen(names, folder / "failed")])
    sys.stdout.flush()
    os._exit(int(code))


def forked(folder: Path, names: list[str], seconds: int) -> tuple[str, str]:
    """Run tests in a process of their own: "killed", "no end" or "survived", and the test.

    Args:
        folder: with the copy of the package.
        names: of the tests.
        seconds: of processor time, which a busy machine does not change.
    """
    (folder / "failed").unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            run_tests(folder, names, seconds)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ProcessLookupError):  # what the tests started
        os.killpg(child, signal.SIGKILL)
    log = (folder / "log").read_text(errors="replace")
    failed = folder / "failed"
    # a test that is no longer there since the coverage was taken is left out
    chosen = folder / "chosen"
    if code > 2 or (code == 0 and f"{chosen.read_text()} passed" not in log):
        raise RuntimeError(f"pytest did not run {names}, code {code}:\n{log[-4000:]}")
    if not code:
        return "survived", ""
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "no end", names[0]
    return "killed", failed.read_text() if failed.exists() else f"code {code}, {names[0]}"


@dataclass(frozen=True)
class Budget:
    """How long the tests of one change may take.

    Attributes:
        first: processor seconds of the tests that are tried first.
        total: of all.
        patience: a change does not end if its tests take so many times their processor time, and
            30 seconds more.
    """

    first: float = 4
    total: float = 20
    patience: float = 4


def groups(mutant: Mutant, tests: list[Test], budget: Budget) -> Iterator[tuple[list[Test], bool]]:
    """The tests of a change in groups to be run at once, and whether some were left out.

    First those of its statement: a few, then the rest. Functions that are cached are run by the
    first test alone, so at last come those that run another line of the file.
    """
    direct = [test for test in tests if test.covers(mutant)]
    others = [test for test in tests if mutant.file in test.lines and not test.covers(mutant)]
    taken, group, limit = 0.0, [], budget.first
    for test in direct + others:
        if taken + test.seconds > budget.total and taken:
            yield group, True
            return
        if taken + test.seconds > limit and group:
            yield group, False
            group, limit = [], math.inf
        group.append(test)
        taken += test.seconds + 0.05
    yield group, False


def outcome(mutant: Mutant, tests: list[Test], folder: Path, budget: Budget) -> dict:
    """Try one change in a copy of the package; a row of the results."""
    start = time.monotonic()
    path = folder / mutant.file
    source = path.read_text()
    row = {"key": mutant.key, "room": mutant.room, "kind": mutant.kind, "line": mutant.line}
    covered = any(test.covers(mutant) for test in tests)
    status, killer, capped = "survived", "", False
    try:
        path.write_text(mutant.apply(source))
        for group, rest in groups(mutant, tests, budget):
            names = [test.name for test in group]
            if not names:
                break
            patience = 30 + budget.patience * sum(test.seconds for test in group)
            status, killer = forked(folder, names, int(patience))
            capped = rest
            if status != "survived":
                break
    finally:
        path.write_text(source)
    row |= {"status": status, "by": killer, "covered": covered, "capped": capped}
    return row | {"seconds": round(time.monotonic() - start, 1)}


# --- many changes --------------------------------------------------------------------------------


def prepare() -> None:
    """Import everything but the package, and no device: what a forked process need not do."""
    import warnings

    import conftest  # sets what JAX reads from the environment

    conftest.set_xla_flags()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a changed file may keep its size and time
    sys.dont_write_bytecode = True

    warnings.filterwarnings("ignore", message=".*fork", category=RuntimeWarning)
    for name in (
        "chex", "equinox", "flax.linen", "flax.nnx", "haiku", "hypothesis.strategies", "jax.export",
        "jax.experimental.sparse", "matplotlib.pyplot", "optax", "pytest", "safetensors.numpy",
        "scipy.sparse.linalg", "sklearn.cluster", "sklearn.datasets", "tokenizers",
    ):  # fmt: skip
        try:
            __import__(name)
        except ImportError:
            print(f"{name} is not installed: its tests are left out", file=sys.stderr)


def copy_of_package() -> Path:
    """A folder with the package and its tests, without compiled files."""
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    ignore = shutil.ignore_patterns("__pycache__", "benchmarks")
    for name in ("jaxcompress", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def diff(mutant: Mutant) -> str:
    """The change as a diff, with the place."""
    source = (ROOT / mutant.file).read_text()
    lines = difflib.unified_diff(
        source.splitlines(), mutant.apply(source).splitlines(), lineterm="", n=0
    )
    return "\n".join([f"{mutant.file}:{mutant.line} ({mutant.kind})", *list(lines)[3:]])


def run(chosen: list[Mutant], tests: list[Test], results: Path, budget: Budget) -> list[dict]:
    """Try changes one after the other; rows are written as they come, and known ones kept."""
    rows = json.loads(results.read_text()) if results.exists() else []
    known = {row["key"] for row in rows}
    folder = copy_of_package()
    prepare()
    try:
        for mutant in chosen:
            if mutant.key in known:
                continue
            row = outcome(mutant, tests, folder, budget)
            rows.append(row)
            known.add(mutant.key)
            results.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
            print(f"{row['status']:9} {row['seconds']:6.1f} s  {mutant.key[:150]}", flush=True)
            if row["status"] not in KILLED:
                print(diff(mutant), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


# --- the figures ---------------------------------------------------------------------------------


def reasons() -> dict[str, str]:
    """Why nothing can notice a change, by its key."""
    return json.loads(EQUIVALENT.read_text()) if EQUIVALENT.exists() else {}


def table(rows: list[dict]) -> str:
    """Killed, equivalent and surviving changes by room, as markdown."""
    equivalent = reasons()
    lines = ["| room | tried | killed | equivalent | survived | killed, % |", "|" + "---|" * 6]
    counts: dict[str, Counter[str]] = {room: Counter() for room in (*ROOMS, "all")}
    for row in rows:
        survived = "equivalent" if row["key"] in equivalent else "survived"
        verdict = "killed" if row["status"] in KILLED else survived
        for room in (row["room"], "all"):
            counts.setdefault(room, Counter())[verdict] += 1
    for room, count in counts.items():
        tried = sum(count.values())
        share = 100 * count["killed"] / max(tried - count["equivalent"], 1)
        shown = f"{share:.0f}" if tried else "not tried"
        cells = [tried, count["killed"], count["equivalent"], count["survived"], shown]
        lines.append(f"| {room} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    """What the command was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=["cover", "run", "try", "again", "table"])
    parser.add_argument("places", nargs="*", help="FILE or FILE:LINE, for try")
    parser.add_argument("--rooms", nargs="*", default=list(ROOMS))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20, help="of the tests of one change")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--coverage", type=Path, default=COVERAGE)
    return parser.parse_args()


def changes_at(place: str) -> list[Mutant]:
    """Every change of a file, or of one of its lines."""
    file, _, line = place.partition(":")
    source = (ROOT / file).read_text()
    chosen = [m for m in mutants(file, source) if line in ("", str(m.line))]
    return [mutant for mutant in chosen if compiles(mutant, source)]


def survivors(rows: list[dict]) -> list[Mutant]:
    """The surviving changes of a results file that are still possible and not equivalent."""
    keys = {row["key"] for row in rows if row["status"] not in KILLED} - reasons().keys()
    files = {key.split(" ")[0] for key in keys}
    made = {m.key: m for file in files for m in mutants(file, (ROOT / file).read_text())}
    return [made[key] for key in made if key in keys]


def main() -> None:
    """The command."""
    args = options()
    if args.command == "table":
        print(table(json.loads(args.results.read_text())))
        return
    if args.command == "cover":
        from helpers_coverage import cover

        for name, paths in parts_of_the_suite(args.rooms).items():
            cover(args.coverage / f"{name}.json", [str(ROOT / path) for path in paths])
        return
    tests = [test for test in read_coverage(args.coverage) if is_within(test)]
    budget = Budget(total=args.seconds)
    if args.command == "try":
        chosen = [mutant for place in args.places for mutant in changes_at(place)]
    elif args.command == "again":
        chosen = survivors(json.loads(args.results.read_text()))
        args.results = args.results.with_suffix(".again.json")
    else:
        chosen = sample(args.rooms, args.count, args.seed)
    print(table(run(chosen, tests, args.results, budget)))


if __name__ == "__main__":
    main()
