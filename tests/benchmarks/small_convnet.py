"""A plain small ConvNet with as many numbers as HashedNets' table allows at 1/64: the neighbour.

Three convolutions of 3 x 3 with stride 2 (16, 22 and 24 channels, rectified) and a dense last
layer: 11,976 numbers (8,896 with two classes) of the 12,422 (12,296) that the table allows,
nothing compressed. Data, loop, batch, number of steps, hidden pixels and evaluation are those of
`hashednets.py`; the rate is the best of its three on the validation images of BASIC and ROT, one
seed.

    python tests/benchmarks/small_convnet.py --validate    # the rate
    python tests/benchmarks/small_convnet.py               # eight sets, 3 seeds

Finished cells stay in the results file (`--out`); only what is missing there is trained.
"""

from __future__ import annotations

import argparse
import itertools
import time
from functools import cache
from pathlib import Path
from typing import Any

import hashednets
import jax
import jax.numpy as jnp
import numpy as np
import variations
from cells import finished, read

import jaxcompress as jc
from jaxcompress.analysis.report import flops

CHANNELS = (1, 16, 22, 24)
SETS = tuple(variations.SETS)


def convolution(layer: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Images (n, h, w, c) under windows of 3 x 3 moved by 2, with a margin of zeros ("SAME").

    Written as one product with the windows' pixels: inside a compiled loop on a CPU that takes a
    thirtieth of the time of `jax.lax.conv_general_dilated`, with the same result.
    """
    side = images.shape[1]
    before, after = side % 2, 1
    images = jnp.pad(images, ((0, 0), (before, after), (before, after), (0, 0)))
    reach = 2 * ((side + 1) // 2) - 1
    parts = [
        images[:, row : row + reach : 2, column : column + reach : 2]
        for row, column in itertools.product(range(3), repeat=2)
    ]
    return jnp.concatenate(parts, -1) @ layer["kernel"] + layer["bias"]


def logits(params: dict[str, Any], pixels: jax.Array) -> jax.Array:
    """(n, classes) logits of pixels (n, 784) in [0, 1]."""
    x = pixels.reshape(-1, 28, 28, 1)
    for index in range(len(CHANNELS) - 1):
        x = jax.nn.relu(convolution(params[str(index)], x))
    last = params["last"]
    return x.reshape(len(x), -1) @ last["kernel"] + last["bias"]


def fresh(seed: int, classes: int = 10) -> dict[str, Any]:
    """A network before training, by He's initialisation."""
    keys = jax.random.split(jax.random.key(seed), len(CHANNELS))
    shapes = [(9 * m, n) for m, n in itertools.pairwise(CHANNELS)]
    shapes.append((4 * 4 * CHANNELS[-1], classes))
    layers = [
        {
            "kernel": jax.random.normal(key, shape) * (2 / shape[0]) ** 0.5,
            "bias": jnp.zeros(shape[-1]),
        }
        for key, shape in zip(keys, shapes)
    ]
    names = [*map(str, range(len(CHANNELS) - 1)), "last"]
    return dict(zip(names, layers))


@cache  # one compiled loop for all cells
def loss_of(dropout: float) -> hashednets.Callable[..., jax.Array]:
    """Cross entropy with a share of the pixels hidden at each step."""
    plain_loss = jc.training.cross_entropy(logits)

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        pixels, labels = batch
        return plain_loss(params, (hashednets.partly_hidden(pixels, dropout, key), labels), key)

    return loss


@jax.jit
def predict(params: Any, pixels: jax.Array) -> jax.Array:
    return logits(params, hashednets.to_unit(pixels))


def error(params: Any, judge: hashednets.Digits) -> float:
    """Of the judging images, in percent."""
    parts = [predict(params, part).argmax(-1) for part in np.array_split(judge.pixels, 20)]
    return round(100 * float(np.mean(np.concatenate(parts) != judge.labels)), 4)


def train(key: dict[str, Any]) -> dict[str, Any]:
    """Train one network; its error in percent, its numbers and multiplications, and the seconds."""
    start = time.perf_counter()
    data, judge = hashednets.data_of(key["set"], validate=key["split"] == "validation")
    params = jc.fit(
        loss_of(key["dropout"]),
        fresh(key["seed"], int(data.labels.max()) + 1),
        (data.pixels, data.labels),
        optimizer=hashednets.one_cycle(key["rate"], key["steps"]),
        steps=key["steps"],
        batch_size=hashednets.BATCH,
        seed=key["seed"],
        description=f"{key['set']}, seed {key['seed']}",
    ).params
    batch = jnp.zeros((hashednets.BATCH, hashednets.PIXELS))
    return {
        "error": error(params, judge),
        "stored": jc.stored_numbers(params),
        "multiplications": round(flops(logits, params, batch) / (2 * len(batch))),
        "seconds": round(time.perf_counter() - start, 1),
    }


def keys(
    split: str, sets: tuple[str, ...], rates: tuple[float, ...], seeds: range
) -> list[dict[str, Any]]:
    """The cells: one seed of one set at one rate each."""
    common = {"split": split, "steps": hashednets.STEPS, "dropout": hashednets.DROPOUT}
    halves = sets[:4], sets[4:]  # the digits on plain grounds first
    return [
        {"set": name, "rate": rate, "seed": seed} | common
        for half in halves
        for seed, name, rate in itertools.product(seeds, half, rates)
    ]


def chosen_rate(results: list[dict[str, Any]]) -> float:
    """The rate with the least mean logarithm of the validation errors."""
    errors: dict[float, list[float]] = {}
    for row in results:
        if row["split"] == "validation":
            errors.setdefault(row["rate"], []).append(np.log(row["error"]))
    complete = {rate: np.mean(e) for rate, e in errors.items() if len(e) == 2}
    if len(complete) < len(hashednets.RATES):
        raise SystemExit("not every rate has its validation errors: run with --validate first")
    return min(complete, key=lambda rate: complete[rate])


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each set: mean and standard deviation over the seeds."""
    lines = ["| set | small ConvNet | seeds |", "|---|---|---|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        errors = np.array([row["error"] for row in rows if row["set"] == name])
        spread = f" ± {errors.std(ddof=1):.2f}" if len(errors) > 1 else ""
        lines.append(f"| {name} | {errors.mean():.2f}{spread} | {len(errors)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--validate", action="store_true", help="train at each rate, judged apart")
    parser.add_argument("--sets", nargs="+", choices=SETS, metavar="SET")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each cell (3)")
    parser.add_argument("--again", action="store_true", help="train finished cells afresh")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    results = read(args.out)
    if args.validate:
        cells = keys("validation", hashednets.CHOOSING, hashednets.RATES, range(1))
    else:
        rates = (chosen_rate(results),)
        cells = keys("test", tuple(args.sets or SETS), rates, range(args.seeds))
    rows = finished(args.out, results, cells, train, again=args.again)
    print(table(rows))


if __name__ == "__main__":
    main()
