"""The command line: `jaxcompress tour`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after `jaxcompress`; those of the process by default.

    Returns:
        The exit code: 0, or 1 when the command cannot run. Bad arguments exit with 2.
    """
    parser = argparse.ArgumentParser(prog="jaxcompress", description="Make trained networks smaller, and train small ones.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    tour = commands.add_parser(
        "tour", help="train a classifier of real digits, compress it four ways, print the table, save the picture"
    )
    tour.add_argument("--seed", type=_seed, default=0, help="of the split, the weights and the order of examples (default 0)")
    tour.add_argument("--out", type=_picture, default=Path("frontier.png"), help="where the picture goes (default frontier.png)")
    tour.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    try:
        from jaxcompress import tour as command

        command.main(options.seed, options.out, progress=not options.quiet)
    except ImportError as error:
        print(f"jaxcompress: {error}", file=sys.stderr)
        return 1
    return 0


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png, .pdf or .svg, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} to put the picture in")
    return path
