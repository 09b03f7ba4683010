"""How a package reads, in numbers: size, long lines, untyped names, comments, public names.

The measures of the appendix of docs/contributing.md, for this package and for its neighbours. Every
`.py` file of the installed package counts, tests left out.

    python -m pip install lineax flowjax equinox optax
    python tests/benchmarks/readability.py          # a few seconds

The row of jaxcompress before the rooms were redrawn is the commit 8865ac9, measured by the same
command with `--root` and is kept in the results file.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import io
import json
import tokenize
from collections import Counter
from pathlib import Path

RESULTS = Path(__file__).with_suffix(".json")
PACKAGES = ("jaxcompress", "lineax", "flowjax", "equinox", "optax")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def sources(root: Path) -> list[Path]:
    """The package's files without its tests."""
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not path.stem.endswith("_test") and "tests" not in path.parts
    ]


def comment_lines(text: str) -> int:
    """Lines that hold a comment, `noqa` and `type: ignore` left out."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return sum(not comment.startswith(("# noqa", "# type:", "# fmt:")) for comment in comments)


def longest_bodies(tree: ast.AST, limit: int) -> int:
    """Functions of more lines than a limit, their docstrings not counted."""
    count = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        docstring = ast.get_docstring(node, clean=False) or ""
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        count += lines - (docstring.count("\n") + 1 if docstring else 0) > limit
    return count


def measured(root: Path) -> dict[str, float]:
    """The measures of one package."""
    totals: Counter[str] = Counter()
    for path in sources(root):
        text = path.read_text()
        tree = ast.parse(text)
        lines = text.splitlines()
        names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
        totals["files"] += 1
        totals["lines"] += len(lines)
        totals["long"] += sum(len(line) > 100 for line in lines)
        totals["comments"] += comment_lines(text)
        totals["functions over 40 lines"] += longest_bodies(tree, 40)
        totals["found and each"] += sum(name in ("found", "each") for name in names)
        totals["Any"] += sum(name == "Any" for name in names)
        for node in ast.walk(tree):
            totals["comprehensions"] += isinstance(node, COMPREHENSIONS)
            bound = isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)
            totals["lambdas bound to names"] += bound
    lines = totals["lines"]
    return {
        "files": totals["files"],
        "lines": lines,
        "lines over 100, %": round(100 * totals["long"] / lines, 2),
        "comprehensions a 1,000 lines": round(1000 * totals["comprehensions"] / lines, 1),
        "Any a 1,000 lines": round(1000 * totals["Any"] / lines, 1),
        "comment lines, %": round(100 * totals["comments"] / lines, 2),
        "functions over 40 lines": totals["functions over 40 lines"],
        "lambdas bound to names": totals["lambdas bound to names"],
        "uses of found and each": totals["found and each"],
        "public names at the top": public_names(root),
    }


def public_names(root: Path) -> int:
    """Names that `__init__.py` gives, modules and private ones left out."""
    tree = ast.parse((root / "__init__.py").read_text())
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module != root.name:
            names |= {alias.asname or alias.name for alias in node.names}
    inside = {path.stem for path in root.iterdir()}
    return len({name for name in names if not name.startswith("_")} - inside)


def main() -> None:
    """Measure the packages, or another tree of this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="a package's folder, in place of the installed")
    parser.add_argument("--name", help="the row's name with --root")
    args = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if args.root:
        rows[args.name] = measured(args.root)
    for package in () if args.root else PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package} is not installed: python -m pip install {package}")
        rows[package] = measured(Path(spec.origin).parent)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    for name, row in rows.items():
        print(name, row)


if __name__ == "__main__":
    main()
