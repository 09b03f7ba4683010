"""Text and JSON files of a model's folder, with errors that say what there is instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

Json: TypeAlias = Any
"""A value from `json.loads`."""


def text_of(path: Path) -> str:
    """The text of a file; the error for a missing one lists the folder."""
    if not path.is_file():
        there = (
            ", ".join(sorted(file.name for file in path.parent.iterdir()))
            if path.parent.is_dir()
            else "nothing"
        )
        raise FileNotFoundError(
            f"{path.name} is missing in {str(path.parent)!r}, which has: {there or 'nothing'}"
        )
    return path.read_text(encoding="utf-8")


def json_of(path: Path) -> Json:
    """A JSON file's content."""
    try:
        return json.loads(text_of(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def object_of(path: Path) -> dict[str, Json]:
    """A JSON file's content, which must be an object."""
    given = json_of(path)
    if not isinstance(given, dict):
        raise ValueError(  # noqa: TRY004 - of the file's content
            f"{path}: expected a JSON object, got a {type(given).__name__}"
        )
    return given
