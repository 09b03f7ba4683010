"""Beside what people use now.

The trained networks of channels.py cut by torch-pruning and by TorchIntegral, and by us.

The same trained weights go over to torch, logits equal to 1e-4, and every method cuts the same
share of all channels, on every hidden axis at once. Test accuracy before, after the cut, and after
one short fine-tuning that is the same for all: half an epoch of the training images in one order,
Adam with one cosine cycle, batch 128, batch norms in training mode; ours is tuned in JAX, the
peers in torch. Each side's rate and variants were chosen on the thin ConvNet and the perceptron,
trained on 50,000 images and judged by the other 10,000 (`--choose`), and so was which of
torch-pruning's scopes is worth tuning; the test set chose nothing.

    # the table, more than an hour on two cores
    python tests/benchmarks/peers.py --torch-integral PATH
    python tests/benchmarks/peers.py --torch-integral PATH --choose  # what the choices came from

Each peer runs in a virtual environment of its own, made once in the cache folder (torch 2.13.0 for
CPUs; TorchIntegral is compiled there, which takes a C++ compiler and Python's headers), or in one
of yours by `--torch-pruning-python` and `--torch-integral-python`. TorchIntegral is on GitHub
alone, as TheStageAI/TorchIntegral: PATH is a clone of it; without PATH its cells are left out.
Trained parameters are those of channels.py, finished cells stay in the results file (`--out`).

What the methods see. "ours" and "ours, equal shares" are those of channels.py: 20,000 training
images without labels. torch-pruning's magnitude and batch norm scales see the weights alone; its
Taylor importance sees the same images with labels; "sparse training first" trains with its
regularizer before the cut, with labels, on as many steps as the fine-tuning. TorchIntegral's
"resampled" sees the weights alone; "grid tuned" is its fast pruning of trained networks (it trains
the sampling points and the biases), "trained at random sizes" its training of an integral network;
both with labels, on as many steps as the fine-tuning, which follows. It folds the batch norms into
the kernels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import channels
import fashion
import jax
import jax.numpy as jnp
import numpy as np
import optax
from cells import write
from mnist import Digits
from tqdm.auto import tqdm

Row = dict[str, Any]

NETWORKS = ("ConvNet", "wider ConvNet", "perceptron")
DEVELOPMENT = 100
"""The index of the networks that all choices are made on."""

STEPS = 234
"""Of fine-tuning: half an epoch of 60,000 images."""

CONVNETS = {"jaxcompress": 1e-3, "torch-pruning": 3e-3, "torch-integral": 1e-2}
RATE = {
    "ConvNet": CONVNETS,
    "wider ConvNet": CONVNETS,
    "perceptron": {"jaxcompress": 3e-4, "torch-pruning": 1e-3, "torch-integral": 3e-4},
}
"""The peak rate of fine-tuning, for each side."""

RATES = {
    "ConvNet": (1e-3, 3e-3, 1e-2),
    "wider ConvNet": (1e-3, 3e-3, 1e-2),
    "perceptron": (1e-4, 3e-4, 1e-3),
}
"""What it was chosen from."""

UNTUNED = (
    "torch-pruning, group L2, global",
    "torch-pruning, batch norm scale, local",
    "torch-pruning, Taylor, local",
)
"""The scopes that did worse on the development ConvNet.

On ConvNets their cells end with the cut.
"""

COMPARED = ("ours", "torch-pruning, group L2, local", "TorchIntegral, resampled")
"""Where `--choose` tries all rates, one method of each side."""

PRUNING = {"peer": "torch-pruning"}
INTEGRAL = {"peer": "torch-integral", "permutation": "NOptPermutation", "restarts": 100}
METHODS: dict[str, dict[str, Any]] = {
    "ours": {"peer": "jaxcompress", "way": "ours"},
    "ours, equal shares": {"peer": "jaxcompress", "way": "equal in all layers"},
    "torch-pruning, group L2, local": PRUNING | {"importance": "l2", "scope": "local"},
    "torch-pruning, group L2, global": PRUNING | {"importance": "l2", "scope": "global"},
    "torch-pruning, batch norm scale, local": PRUNING | {"importance": "bn", "scope": "local"},
    "torch-pruning, batch norm scale, global": PRUNING | {"importance": "bn", "scope": "global"},
    "torch-pruning, Taylor, local": PRUNING
    | {"importance": "taylor", "scope": "local", "images": 20_000},
    "torch-pruning, Taylor, global": PRUNING
    | {"importance": "taylor", "scope": "global", "images": 20_000},
    "torch-pruning, group L2, sparse training first": PRUNING
    | {"importance": "l2", "scope": "global", "reg": 5e-3, "rate": 3e-3},
    "TorchIntegral, resampled": INTEGRAL | {"tuning": "none"},
    "TorchIntegral, grid tuned": INTEGRAL | {"tuning": "grid", "norms": True, "rate": 1e-2},
    "TorchIntegral, trained at random sizes": INTEGRAL | {"tuning": "weights", "rate": 3e-3},
}
FOR_PERCEPTRON: dict[str, Row] = {
    "torch-pruning, group L2, sparse training first": {"reg": 5e-5, "rate": 1e-3},
    "TorchIntegral, resampled": {"restarts": 2},
    "TorchIntegral, grid tuned": {"restarts": 2, "rate": 1e-3},
    "TorchIntegral, trained at random sizes": {"restarts": 2, "rate": 1e-3},
}
"""What is another choice there.

TorchIntegral's default of 100 restarts would take it minutes a cell to order 512 channels.
"""

VARIANTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "torch-pruning, Taylor, global": {"images": (2_000, 20_000)},
    "torch-pruning, group L2, sparse training first": {
        "scope": ("local", "global"),
        "reg": (5e-5, 5e-4, 5e-3, 5e-2),
    },
    "TorchIntegral, resampled": {"permutation": ("NOptPermutation", "NOptOutFiltersPermutation")},
    "TorchIntegral, grid tuned": {"norms": (False, True), "rate": (1e-3, 1e-2)},
    "TorchIntegral, trained at random sizes": {"rate": (1e-3, 3e-3, 1e-2)},
}
"""What `--choose` tries for a method; for the others it tries the rates of fine-tuning alone."""

REQUIREMENTS = {
    "torch-pruning": ("numpy", "torch-pruning==1.6.1"),
    "torch-integral": ("numpy", "scipy", "cython", "setuptools", "wheel"),
}
TORCH = "torch==2.13.0"
AGREE = 1_000
"""Test images whose logits go to torch with the weights."""


# --- the networks, in words that both frameworks understand --------------------------------------


def form(name: str, widths: Iterable[int] | None = None) -> Row:
    """What `peers_torch.build` needs."""
    subject = channels.SUBJECTS[name]
    module: Any = subject.make()
    convolutions = sum(layer.startswith("Conv") for layer in subject.layers)
    return {
        "widths": list(widths or module.widths),
        "convolutions": convolutions,
        "pooled": list(getattr(module, "pooled", ())),
    }


def costs(name: str, widths: Iterable[int] | None = None) -> tuple[int, int]:
    """Stored numbers and multiply-adds for an image, by the widths alone.

    A batch norm counts as the bias that it folds into.
    """
    shape = form(name, widths)
    inputs, side = (1, 28) if shape["convolutions"] else (784, 1)
    numbers, products = 0, 0
    for index, width in enumerate((*shape["widths"], 10)):
        spatial = index < shape["convolutions"]
        fan_in = inputs * (9 if spatial else side**2)
        numbers, products = (
            numbers + (fan_in + 1) * width,
            products + fan_in * width * (side**2 if spatial else 1),
        )
        inputs, side = width, side // 2 if index in shape["pooled"] else side if spatial else 1
    return numbers, products


def cycle(rate: float) -> optax.Schedule:
    return optax.cosine_onecycle_schedule(STEPS, rate, pct_start=0.1)


def batches(examples: int) -> np.ndarray:
    """The order of the training images, one for all networks and methods."""
    return (
        np.random.default_rng(0)
        .permutation(examples)[: STEPS * channels.BATCH]
        .reshape(-1, channels.BATCH)
    )


# --- our side ------------------------------------------------------------------------------------


def fine_tune(name: str, params: Any, rate: float, data: Digits) -> Any:
    """One cycle of Adam on the module written at the parameters' widths.

    With its batch norms in training mode.
    """
    module = channels.SUBJECTS[name].make(widths_of(name, params))
    optimizer = optax.adam(cycle(rate))

    def loss(params: Any, statistics: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        logits, new = module.apply(
            {"params": params, "batch_stats": statistics}, x, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new.get(
            "batch_stats", {}
        )

    @jax.jit
    def step(
        params: Any, statistics: Any, state: Any, pixels: jax.Array, y: jax.Array
    ) -> tuple[Any, Any, Any]:
        gradient, statistics = jax.grad(loss, has_aux=True)(
            params, statistics, channels.to_unit(pixels), y
        )
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), statistics, state

    params, statistics = params["params"], params.get("batch_stats", {})
    state = optimizer.init(params)
    for index in batches(len(data.labels)):
        params, statistics, state = step(
            params, statistics, state, data.pixels[index], data.labels[index]
        )
    return {"params": params, "batch_stats": statistics} if statistics else {"params": params}


def widths_of(name: str, params: Any) -> tuple[int, ...]:
    return tuple(
        int(params["params"][layer]["kernel"].shape[-1]) for layer in channels.SUBJECTS[name].layers
    )


def ours(name: str, seed: int, cells: list[Row], data: Digits, judge: Digits) -> Iterator[Row]:
    """The cells of one network, as `peers_torch.py` gives those of the peers."""
    jax.clear_caches()
    start = now()
    case = channels.Case(name, seed, data, judge)
    first = (
        now() - start
    )  # tracing and calibrating, one pass for all cells, counts in full for each
    for cell in cells:
        start = now()
        small, row = case.cut(cell["keep"], cell["way"], seed)
        row |= dict(zip(("seconds", "cpu_seconds"), (first + now() - start).round(1).tolist()))
        start, tuned = time.perf_counter(), []
        for rate in cell["rates"]:
            better = fine_tune(name, small, rate, data)
            tuned.append(
                channels.accuracy(jax.jit(channels.SUBJECTS[name].by_hand(better)), better, judge)
            )
        row |= {
            "widths": list(widths_of(name, small)),
            "tuned": tuned,
            "tuning_seconds": round(time.perf_counter() - start, 1),
        }
        yield {
            key: row[key]
            for key in (
                "before",
                "seconds",
                "cpu_seconds",
                "after",
                "widths",
                "tuned",
                "tuning_seconds",
            )
        }


def now() -> np.ndarray:
    """On the wall, and of all cores."""
    return np.array([time.perf_counter(), time.process_time()])


# --- the peers' side -----------------------------------------------------------------------------


def folder() -> Path:
    path = fashion.cache_folder() / "peers"
    path.mkdir(parents=True, exist_ok=True)
    return path


def environment(peer: str, python: Path | None, source: Path | None) -> Path:
    """The interpreter of a peer's environment, made once."""
    if python is not None:
        return python
    path = folder() / peer
    python, ready = path / "bin" / "python", path / "ready"
    if ready.exists():
        return python
    tqdm.write(f"making the environment of {peer} in {path}")
    venv.create(path, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, TORCH, *REQUIREMENTS[peer]], check=True)
    if source is not None:
        with tempfile.TemporaryDirectory() as draft:  # compiling writes beside the sources
            copied = shutil.copytree(source, Path(draft) / "source")
            subprocess.run([*pip, "--no-build-isolation", "--no-deps", str(copied)], check=True)
    ready.touch()
    return python


def export(data: Digits, judge: Digits, split: str) -> Path:
    """What every job of a split reads: images, batches, the cycle of a rate of 1."""
    path = folder() / f"{split}.npz"
    images = {
        "pixels": data.pixels,
        "labels": data.labels,
        "judge_pixels": judge.pixels,
        "judge_labels": judge.labels,
    }
    shares = np.array([np.asarray(cycle(1.0)(step)) for step in range(STEPS)], float)
    np.savez(path, allow_pickle=False, order=batches(len(data.labels)), cycle=shares, **images)
    return path


def carry(name: str, seed: int, data: Digits, judge: Digits) -> Path:
    """A trained network's parameters under flat names, with the logits of some test images."""
    params = channels.trained(name, seed, data, again=False)
    arrays = {
        f"{layer}/{key}": np.asarray(value)
        for part in params.values()
        for layer, of in part.items()
        for key, value in of.items()
    }
    path = folder() / f"{name}-{seed}.npz"
    logits = np.asarray(
        channels.SUBJECTS[name].apply(params, channels.to_unit(judge.pixels[:AGREE]))
    )
    np.savez(path, allow_pickle=False, logits=logits, **arrays)
    return path


def ask(python: Path, peer: str, job: Row, patient: bool = True) -> Iterator[Row]:
    """Run a job in a peer's environment; a row for each of its cells, when it is finished.

    Patient threads sleep where they wait for each other: beside other work, torch is ten times
    slower without.
    """
    command = [str(python), str(Path(__file__).with_name("peers_torch.py"))]
    log, pipe = folder() / f"{peer}.log", subprocess.PIPE
    options: Row = {
        "stdin": pipe,
        "stdout": pipe,
        "text": True,
        "env": os.environ | ({"OMP_WAIT_POLICY": "passive"} if patient else {}),
    }
    with log.open("a") as errors, subprocess.Popen(command, stderr=errors, **options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise RuntimeError(
            f"the job in the environment of {peer} ended with {process.returncode}: see {log}"
        )


# --- the speeds ----------------------------------------------------------------------------------


def clock_jax(name: str, widths: list[list[int]], runs: int = 30, warm: int = 5) -> list[float]:
    """The medians of interleaved forward passes at batch 128 in milliseconds.

    Of the module written at the widths.
    """
    x = jnp.zeros((channels.COST_BATCH, 784))
    modules = [channels.SUBJECTS[name].make(tuple(each)) for each in widths]
    ready = [(jax.jit(module.apply), module.init(jax.random.key(0), x[:1])) for module in modules]
    times: list[list[float]] = [[] for _ in ready]
    for turn, ((run, params), seconds) in itertools.product(
        range(-warm, runs), list(zip(ready, times))
    ):
        start = time.perf_counter()
        jax.block_until_ready(run(params, x))
        if turn >= 0:
            seconds.append(time.perf_counter() - start)
    return [round(1e3 * float(np.median(seconds)), 3) for seconds in times]


def torch_form(name: str, method: str, widths: list[int]) -> Row:
    """The network that a peer leaves behind.

    TorchIntegral's has folded batch norms, and the flattening is a convolution.
    """
    cell = METHODS[method]
    if cell["peer"] != "torch-integral":
        return form(name, widths)
    return form(name, widths) | {
        "integral": True,
        "norms": cell["tuning"] == "grid" and cell["norms"],
    }


def clock(name: str, widths: dict[str, list[int]], python: Path, data: Path) -> Row:
    """Milliseconds of each method's network, and of the whole one in each framework."""
    sides: dict[bool, list[str]] = {False: [], True: []}
    for method in widths:
        sides[METHODS[method]["peer"] == "jaxcompress"].append(method)
    whole = form(name)["widths"]
    forms = [form(name), *(torch_form(name, method, widths[method]) for method in sides[False])]
    cell = {"peer": "clock", "batch": channels.COST_BATCH, "forms": forms}
    (answer,) = ask(
        python,
        "torch-pruning",
        {"data": str(data), "form": form(name), "cells": [cell]},
        patient=False,
    )
    found = dict(zip(["torch", *sides[False]], answer["ms"]))
    return found | dict(
        zip(
            ["jax", *sides[True]],
            clock_jax(name, [whole, *(widths[method] for method in sides[True])]),
        )
    )


# --- tables --------------------------------------------------------------------------------------


def spread(values: Iterable[float]) -> str:
    x = np.array(list(values))
    return f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" if len(x) > 1 else f"{x.mean():.2f}"


def table(rows: list[Row], clocks: list[Row]) -> str:
    """Points of test accuracy lost with their deviations, and the costs, as markdown."""
    head = [
        "network",
        "cut",
        "method",
        "lost after the cut",
        "lost after fine-tuning",
        "channels",
        "stored",
        "FLOPs",
    ]
    lines = [
        f"| {' | '.join([*head, 'seconds to compress', 'of all cores', 'ms', 'ms / whole'])} |"
    ]
    lines.append("|---" * (len(head) + 4) + "|")
    for name, keep, method in dict.fromkeys(
        (row["network"], row["keep"], row["method"]) for row in rows
    ):
        mine = [
            row
            for row in rows
            if (row["network"], row["keep"], row["method"]) == (name, keep, method)
        ]
        start = (
            f"| {name} | {1 - keep:.0%} | "
            f"{method}{'' if len(mine) > 2 else f' ({len(mine)} seeds)'} |"
        )
        problem = next((row["failed"] for row in mine if "failed" in row), None)
        if problem:
            lines.append(f"{start} {problem} |" + " |" * len(head))
            continue
        lost = [spread(row["before"] - row["after"] for row in mine)]
        lost.append(
            spread(row["before"] - row["tuned"][0] for row in mine)
            if all(row["tuned"] for row in mine)
            else ""
        )
        ratios = np.array(
            [
                [new / old for new, old in zip(costs(name, row["widths"]), costs(name))]
                for row in mine
            ]
        ).mean(0)
        seconds = [
            f"{np.mean([row[what] for row in mine]):.1f}" for what in ("seconds", "cpu_seconds")
        ]
        share = np.mean([sum(row["widths"]) / sum(form(name)["widths"]) for row in mine])
        cells = [*lost, f"{share:.3f}", *(f"{ratio:.2f}" for ratio in ratios), *seconds]
        times = next(
            (row["ms"] for row in clocks if (row["network"], row["keep"]) == (name, keep)), {}
        )
        if method in times:
            whole = times["jax" if METHODS[method]["peer"] == "jaxcompress" else "torch"]
            cells += [f"{times[method]:.2f}", f"{times[method] / whole:.2f}"]
        lines.append(f"{start} {' | '.join(cells)} |")
    for name in dict.fromkeys(row["network"] for row in rows):
        before = {row["seed"]: row["before"] for row in rows if row["network"] == name}
        wholes = [row["ms"] for row in clocks if row["network"] == name]
        whole = (
            f"; whole: {wholes[0]['jax']:.2f} ms in JAX, {wholes[0]['torch']:.2f} ms in torch"
            if wholes
            else ""
        )
        lines += [
            "",
            (
                f"{name} before: {', '.join(f'{value:.2f}' for value in before.values())} % "
                f"right{whole}"
            ),
        ]
    return "\n".join(lines)


LOST = "points lost after the cut / after the same fine-tuning"
COST = "FLOPs / milliseconds, as shares of the whole network's"
TIME = "seconds to compress, of all cores"


def summary(rows: list[Row], clocks: list[Row]) -> str:
    """The means over the seeds with a row for each method, as markdown.

    What is lost, and what it costs.
    """
    cells = list(dict.fromkeys((row["network"], row["keep"]) for row in rows))
    parts = []
    for figure in (LOST, COST, TIME):
        heads = [f"{name} {1 - keep:.0%}" for name, keep in cells]
        lines = [figure, "", f"| method | {' | '.join(heads)} |", "|---" * (len(cells) + 1) + "|"]
        for method in METHODS:
            found = [
                [
                    row
                    for row in rows
                    if (row["network"], row["keep"], row["method"]) == (*cell, method)
                ]
                for cell in cells
            ]
            shown = [shown_as(figure, cell, mine, clocks) for cell, mine in zip(cells, found)]
            lines.append(f"| {method} | {' | '.join(shown)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def shown_as(figure: str, cell: tuple[str, float], mine: list[Row], clocks: list[Row]) -> str:
    """One figure of one method on one network at one cut."""
    if not mine or any("failed" in row for row in mine):
        return "fails" if mine else ""
    if figure == LOST:
        cut = np.mean([row["before"] - row["after"] for row in mine])
        tuned = (
            f" / {np.mean([row['before'] - row['tuned'][0] for row in mine]):.2f}"
            if all(row["tuned"] for row in mine)
            else ""
        )
        return f"{cut:.2f}{tuned}"
    if figure == TIME:
        return f"{np.mean([row['cpu_seconds'] for row in mine]):.0f}"
    name, keep = cell
    products = np.mean([costs(name, row["widths"])[1] / costs(name)[1] for row in mine])
    times = next((row["ms"] for row in clocks if (row["network"], row["keep"]) == (name, keep)), {})
    method = mine[0]["method"]
    whole = "jax" if METHODS[method]["peer"] == "jaxcompress" else "torch"
    return (
        f"{products:.2f} / {times[method] / times[whole]:.2f}"
        if method in times
        else f"{products:.2f}"
    )


def choice_table(rows: list[Row]) -> str:
    """Accuracy on held-back images after the cut and after tuning at each rate, as markdown."""
    lines = [
        "| network | cut | method | before | after | "
        + " | ".join(f"tuned at rate {place + 1}" for place in range(3))
        + " | rates | seconds |"
    ]
    lines.append("|---" * 10 + "|")
    for row in rows:
        figures = [row["before"], *([row["after"], *row["tuned"]] if "failed" not in row else [])]
        cells = [
            row["network"],
            f"{1 - row['keep']:.0%}",
            row["method"],
            *(f"{figure:.2f}" for figure in figures),
        ]
        cells += [""] * (8 - len(cells)) + [", ".join(f"{rate:g}" for rate in row["rates"])]
        lines.append(f"| {' | '.join([*cells, str(row.get('seconds', row.get('failed')))])} |")
    return "\n".join(lines)


# --- all of it -----------------------------------------------------------------------------------


def variants() -> dict[str, Row]:
    """Every method in every variant that `--choose` compares."""
    found = {}
    for method, options in METHODS.items():
        grid = VARIANTS.get(method, {})
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values))
            found[", ".join([method, *(f"{key} {value}" for key, value in chosen.items())])] = (
                options | chosen
            )
    return found


def setup(key: Row, method: Row, choose: bool) -> Row:
    """A cell as its side gets it: the method's options and the peak rates to fine-tune with."""
    name, peer = key["network"], method["peer"]
    if choose:
        few = {"restarts": 2} if (name, peer) == ("perceptron", "torch-integral") else {}
        return (
            method
            | few
            | key
            | {"rates": RATES[name] if key["method"].startswith(COMPARED) else (RATE[name][peer],)}
        )
    untuned = key["method"] in UNTUNED and name != "perceptron"
    special = FOR_PERCEPTRON.get(key["method"], {}) if name == "perceptron" else {}
    return method | special | key | {"rates": () if untuned else (RATE[name][peer],)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK"
    )
    parser.add_argument(
        "--keeps",
        nargs="+",
        type=float,
        help="shares of the channels that stay (0.7 and 0.5; 0.5 with --choose)",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=CONVNETS,
        default=list(CONVNETS),
        metavar="SIDE",
        help="whose missing cells to measure",
    )
    parser.add_argument(
        "--choose",
        action="store_true",
        help="compare rates and variants on the development networks, and stop",
    )
    parser.add_argument(
        "--again", action="store_true", help="measure afresh what the results file has already"
    )
    parser.add_argument(
        "--torch-integral", type=Path, metavar="PATH", help="TorchIntegral's source folder"
    )
    parser.add_argument(
        "--torch-pruning-python",
        type=Path,
        metavar="PATH",
        help="Python of an environment that has torch-pruning",
    )
    parser.add_argument(
        "--torch-integral-python",
        type=Path,
        metavar="PATH",
        help="Python of one that has TorchIntegral",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    keeps = args.keeps or ([0.5] if args.choose else channels.KEEPS)
    data, judge = fashion.load()
    if args.choose:
        held = -channels.VALIDATION
        data, judge = (
            Digits(*(array[:held] for array in data)),
            Digits(*(array[held:] for array in data)),
        )
    arrays = export(data, judge, "development" if args.choose else "test")
    seeds = [DEVELOPMENT] if args.choose else range(args.seeds)

    pythons = {"torch-pruning": environment("torch-pruning", args.torch_pruning_python, None)}
    if (
        args.torch_integral
        or args.torch_integral_python
        or (folder() / "torch-integral" / "ready").exists()
    ):
        pythons["torch-integral"] = environment(
            "torch-integral", args.torch_integral_python, args.torch_integral
        )
    offered = variants() if args.choose else METHODS
    methods = {
        name: cell for name, cell in offered.items() if cell["peer"] in ("jaxcompress", *pythons)
    }

    results: list[Row] = json.loads(args.out.read_text()) if args.out.exists() else []
    measured: list[Row] = []

    def kept(key: Row) -> Row | None:
        rows = measured if args.again else results
        return next((row for row in rows if key.items() <= row.items()), None)

    def keep_row(key: Row, row: Row) -> None:
        place = next(
            (i for i, old in enumerate(results) if key.items() <= old.items()), len(results)
        )
        results[place : place + 1] = [key | row]
        measured.append(results[place])
        write(args.out, results)

    rows: list[Row] = []
    todo: list[tuple[str, int]] = [(name, seed) for name in args.networks for seed in seeds]
    with tqdm(total=len(todo) * len(keeps) * len(methods), desc="peers") as bar:
        for name, seed in todo:
            keys = [
                {"network": name, "seed": seed, "keep": keep, "method": method}
                for keep, method in itertools.product(keeps, methods)
            ]
            missing = [key for key in keys if kept(key) is None]
            bar.update(len(keys) - len(missing))
            weights = carry(name, seed, data, judge) if missing else None
            for peer in args.sides:
                mine = [key for key in missing if methods[key["method"]]["peer"] == peer]
                cells = [setup(key, methods[key["method"]], args.choose) for key in mine]
                if not mine:
                    continue
                job = {
                    "data": str(arrays),
                    "weights": str(weights),
                    "form": form(name),
                    "cells": cells,
                }
                answers = (
                    ours(name, seed, cells, data, judge)
                    if peer == "jaxcompress"
                    else ask(pythons[peer], peer, job)
                )
                for key, cell, row in zip(mine, cells, answers, strict=True):
                    keep_row(key, row | {"rates": cell["rates"]})
                    bar.update()
            rows += [row for row in map(kept, keys) if row is not None]
    if args.choose:
        print(choice_table(rows))
        return

    clocks: list[Row] = []
    for name, keep in itertools.product(args.networks, keeps):  # last, with nothing else running
        key = {"part": "clock", "network": name, "keep": keep}
        widths = {
            row["method"]: row["widths"]
            for row in rows
            if (row["network"], row["keep"], row["seed"]) == (name, keep, 0) and "widths" in row
        }
        if not widths.keys() <= ((kept(key) or {}).get("ms") or {}).keys():
            keep_row(
                key,
                {
                    "batch": channels.COST_BATCH,
                    "ms": clock(name, widths, pythons["torch-pruning"], arrays),
                },
            )
        clocks += [row for row in [kept(key)] if row is not None]
    print(table(rows, clocks), summary(rows, clocks), sep="\n\n")


if __name__ == "__main__":
    main()
