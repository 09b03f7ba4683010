"""Which tests run which lines: one pass of the suite with the coverage of each test by itself.

A pytest plugin. Each test is a context of `coverage`; its cost is processor time, which does not
depend on what else the machine does. Tests that fail, or that are longer than a limit, are left
out: they cannot tell a change from none.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


class TooLong(BaseException):
    """A test used more than its share of processor time."""


def _stop(*_: object) -> None:
    raise TooLong


@contextmanager
def processor_limit(seconds: float):
    """Raise `TooLong` once the block has used that many seconds of processor time."""
    before = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


class LineCoverage:
    """The plugin: lines of the package and seconds of each test that passed.

    Args:
        limit: processor seconds above which a test is left out.
    """

    def __init__(self, limit: float):
        import coverage  # the suite itself does not need it

        self.limit = limit
        self.seconds: dict[str, float] = {}
        self.coverage = coverage.Coverage(
            data_file=None, source=[str(ROOT / "jaxcompress")], config_file=False, messages=False
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        """The lines of a test are those of its set-up, too."""
        self.coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self.coverage.switch_context("")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        """Measure, and stop what is too long."""
        start = time.process_time()
        try:
            with processor_limit(self.limit):
                result = yield
        except TooLong:
            pytest.skip(f"needs more than {self.limit:.0f} s")
        self.seconds[item.nodeid] = round(time.process_time() - start, 2)
        return result

    def lines(self) -> dict[str, dict[str, list[int]]]:
        """Lines by test and file, of the tests that passed."""
        data = self.coverage.get_data()
        lines: dict[str, dict[str, list[int]]] = {test: {} for test in self.seconds}
        for path in data.measured_files():
            file = Path(path).relative_to(ROOT).as_posix()
            by_test: dict[str, list[int]] = {}
            for line, tests in data.contexts_by_lineno(path).items():
                for test in tests:
                    by_test.setdefault(test, []).append(line)
            for test in by_test.keys() & lines.keys():
                lines[test][file] = sorted(by_test[test])
        return lines


def cover(out: Path, arguments: Iterable[str], limit: float = 10) -> None:
    """Run tests and write what each of them runs.

    Args:
        out: a JSON file, `{test: {"seconds": s, "lines": {file: [line, ...]}}}`.
        arguments: of pytest: files, folders, options.
        limit: processor seconds above which a test is left out.
    """
    plugin = LineCoverage(limit)
    plugin.coverage.start()
    options = ["-n", "0", "-q", "-p", "no:cacheprovider", "--durations=0", "--durations-min=99"]
    pytest.main([*options, *arguments], plugins=[plugin])
    plugin.coverage.stop()
    lines = plugin.lines()
    tests = {
        test: {"seconds": plugin.seconds[test], "lines": lines[test]} for test in sorted(lines)
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(tests))
