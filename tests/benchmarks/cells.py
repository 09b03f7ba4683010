"""Results files: finished cells, one line each, from which an interrupted benchmark resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm


def read(path: Path) -> list[dict[str, Any]]:
    """The finished cells of a results file; none where there is no file."""
    return json.loads(path.read_text()) if path.exists() else []


def finished(
    path: Path,
    results: list[dict[str, Any]],
    keys: Iterable[dict[str, Any]],
    measure: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    again: bool = False,
) -> list[dict[str, Any]]:
    """A row for each key: known results stay, missing ones are measured and written at once.

    `results` grows during the run, so that later keys may depend on it; with `again` all is
    measured anew.

    `results` grows as it goes, so that later keys may depend on it; with `again` everything is
    measured afresh.
    """
    rows = []
    for key in tqdm(keys, desc="cells"):
        place = next(
            (i for i, old in enumerate(results) if key.items() <= old.items()), len(results)
        )
        if place == len(results) or again:
            results[place : place + 1] = [key | measure(key)]
            write(path, results)
        rows.append(results[place])
    return rows


def write(path: Path, results: list[dict[str, Any]]) -> None:
    """One line a cell; the file is replaced whole, so that an interrupted run leaves a good one."""
    lines = ",\n".join("  " + json.dumps(row) for row in results)
    draft = path.with_suffix(".part")
    draft.write_text(f"[\n{lines}\n]\n")
    os.replace(draft, path)
