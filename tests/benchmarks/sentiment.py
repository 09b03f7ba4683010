"""MiniLM made small for tweets.

Judged by what a linear probe of its frozen embeddings knows of their sentiment.

The second task of `corpus.py`'s recipe. The texts are those of VADER (Hutto and Gilbert 2014):
4,200 tweets, and snippets of reviews and editorials, each rated by twenty people. Half of the
tweets and all snippets are documents: text alone, their ratings unread. The other tweets are the
task: is the mean rating positive? Logistic regression on five folds, the strength of its penalty
chosen within each training part; the same folds for both encoders.

    python tests/benchmarks/sentiment.py                 # half an hour for each share

It needs what `corpus.py` needs, and scikit-learn; `pip download` brings the texts once
(vaderSentiment 3.3.2), they stay in the cache folder. Finished cells stay in the results file
(`--out`).
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from cells import write
from corpus import compacted
from fashion import cache_folder
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from tqdm.auto import tqdm

import jaxcompress as jc
from jaxcompress.cli import installed_model
from jaxcompress.documents.encoder import Encoder, read_encoder
from jaxcompress.documents.samples import first_line

LENGTH = 64
PACKAGE = "vaderSentiment==3.3.2"
SETS = ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")


def rated() -> dict[str, list[tuple[float, str]]]:
    """The mean rating, from -4 to 4, and the text of every line of each set.

    Raises:
        FileNotFoundError: when the texts are neither in the cache nor to be had.
    """
    path = cache_folder() / "vader.json.gz"
    if not path.exists():
        with tempfile.TemporaryDirectory() as draft:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--no-binary",
                ":all:",
                "-d",
                draft,
                PACKAGE,
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            archive = next(Path(draft).glob("*.tar.gz"), None)
            if archive is None:
                raise FileNotFoundError(
                    f"pip download {PACKAGE} gave no file: {done.stderr.strip()[-300:]}"
                )
            found = unpacked(archive.read_bytes())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(json.dumps(found).encode()))
    return json.loads(gzip.decompress(path.read_bytes()))


def unpacked(archive: bytes) -> dict[str, list[tuple[float, str]]]:
    """The sets out of the package's source, where they lie in an archive of their own."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as outer:
        inner = next(member for member in outer if member.name.endswith("hutto_ICWSM_2014.tar.gz"))
        content = outer.extractfile(inner)
        assert content is not None
        with tarfile.open(fileobj=io.BytesIO(content.read())) as files:
            found = {}
            for name in SETS:
                file = files.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
                assert file is not None
                lines = (
                    line.split("\t", 2)
                    for line in file.read().decode("utf-8", "replace").splitlines()
                    if line.strip()
                )
                found[name] = [(float(rating), text.strip()) for _, rating, text in lines]
            return found


def task() -> tuple[list[str], list[str], np.ndarray]:
    """The documents, and the tweets of the task with their labels."""
    sets = rated()
    order = np.random.default_rng(0).permutation(len(sets["tweets"]))
    middle = len(order) // 2
    documents = [sets["tweets"][index][1] for index in order[:middle]]
    documents += [text for name in SETS[1:] for _, text in sets[name]]
    judged = [sets["tweets"][index] for index in order[middle:]]
    return documents, [text for _, text in judged], np.array([rating > 0 for rating, _ in judged])


def accuracies(embeddings: np.ndarray, labels: np.ndarray) -> list[float]:
    """Of a linear probe on each of five folds, in percent."""
    found = []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(embeddings, labels):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's announcements
            probe = LogisticRegressionCV(Cs=np.logspace(-1, 3, 9), cv=5, max_iter=2_000).fit(
                embeddings[train], labels[train]
            )
        found.append(100 * float(probe.score(embeddings[test], labels[test])))
    return found


def measure(
    key: dict[str, Any], large: Encoder, documents: list[str], texts: list[str], labels: np.ndarray
) -> dict[str, Any]:
    """One cell: cut, learn, probe."""
    small, _, minutes = compacted(key, large, documents)
    row: dict[str, Any] = {"minutes in all": round(minutes, 1)}
    row |= {
        "numbers": float(jc.stored_numbers(small.params)),
        "whole": float(jc.stored_numbers(large.params)),
    }
    for name, encoder in {"before": large, "after": small}.items():
        row[name] = np.round(accuracies(encoder.embed(texts, progress=False), labels), 3).tolist()
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each cell; the difference is paired over the folds, with its standard error."""
    lines = [
        "| of all numbers | minutes | MiniLM, % | small, % | difference, points |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        before, after = np.array(row["before"]), np.array(row["after"])
        gap = after - before
        lines.append(
            f"| {row['numbers'] / row['whole']:.3f} | {row['minutes']:g} "
            f"| {before.mean():.1f} | {after.mean():.1f} "
            f"| {gap.mean():+.1f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keeps", nargs="+", type=float, default=[1 / 4])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument(
        "--again", action="store_true", help="measure afresh what the results file has already"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    results: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    large = read_encoder(installed_model(), LENGTH)
    documents, texts, labels = task()
    documents += list(map(first_line, documents))
    rows = []
    for keep in tqdm(args.keeps, desc="cells"):
        key = {"keep": keep, "minutes": args.minutes, "seed": 0}
        place = next(
            (i for i, old in enumerate(results) if key.items() <= old.items()), len(results)
        )
        if place == len(results) or args.again:
            results[place : place + 1] = [key | measure(key, large, documents, texts, labels)]
            write(args.out, results)
        rows.append(results[place])
    print(table(rows))


if __name__ == "__main__":
    main()
