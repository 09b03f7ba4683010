"""What makes small networks better, one change at a time.

HashedNets' task at 1/64 on the validation images of BASIC and ROT.

Three recipes of `hashednets.py` (hashed weights, cosines, windows with cosines of their places) at
the rates chosen there; each variant changes one thing of one recipe. So no test image says which
change is good. "paper's form" has 1,000 units and every kernel hashed, trained by momentum at
three rates as in the paper, and as all others.

    python tests/benchmarks/variants.py                        # 3 seeds, about an hour of one core
    python tests/benchmarks/variants.py --sets MNIST --variants hashed "paper's form" ...

Finished cells stay in the results file (`--out`).

Source: frequencies and their share of buckets, FreshNets, Chen et al. 2016 (arXiv:1506.04449);
averages, Izmailov et al. 2018 (arXiv:1803.05407).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import variations
from cells import finished, read
from hashednets import (
    BATCH,
    CHOOSING,
    COLUMNS,
    DROPOUT,
    GRID,
    PARTS,
    STEPS,
    Task,
    chosen,
    data_of,
    error,
    fresh,
    loss_of,
    one_cycle,
    widened,
)

import jaxcompress as jc
from jaxcompress.arrays.hashed import HashedArray
from jaxcompress.arrays.permutation import mix
from jaxcompress.transforms.initialize import scale

TASK = Task(3, 10, 1 / 64)


# --- hashes of other kinds -----------------------------------------------------------------------


@jc.compact_array
class OtherHash(jc.CompactArray):
    """A hash without signs, or one that is not balanced, as in the paper."""

    table: jax.Array
    signs: bool = jc.static_field(default=True)
    balanced: bool = jc.static_field(default=True)

    def materialize(self) -> jax.Array:
        m, n = self.matrix_shape
        size = self.table.shape[-1]
        whole = HashedArray(
            jnp.arange(1, size + 1, dtype=jnp.int32), seed=7, dims=(m, n)
        ).materialize()
        index, sign = jnp.abs(whole) - 1, jnp.sign(whole)
        if not self.balanced:
            index = mix(jnp.arange(m * n, dtype=jnp.uint32).reshape(m, n), 11) % np.uint32(size)
        return self.table[index] * (sign.astype(self.table.dtype) if self.signs else 1)


@jc.compact_array
class Bands(jc.CompactArray):
    """Codes of low frequencies as they are, those of high ones in another form."""

    low: jax.Array
    high: Any

    def materialize(self) -> jax.Array:
        return jnp.concatenate([self.low, self.high], axis=-2)


# --- the variants --------------------------------------------------------------------------------


class Variant(NamedTuple):
    """One change of a column of `hashednets.py`.

    Of its fresh parameters, or of how they are trained.
    """

    column: str
    change: Callable[[Any], Any] = lambda params: params
    steps: int = STEPS
    dropout: float = DROPOUT
    averaged: bool = False
    shifted: bool = False
    paper: bool = False
    rate: float | None = None
    momentum: float | None = None


def first(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A change of the first kernel alone."""
    return lambda params: params | {"0": params["0"] | {"kernel": change(params["0"]["kernel"])}}


def as_before(kernel: jc.CompactArray, other: jc.CompactArray) -> jc.CompactArray:
    """The other array at the mean square of the kernel."""
    ratio = jnp.sqrt(jnp.mean(kernel.materialize() ** 2) / jnp.mean(other.materialize() ** 2))
    return scale(other, ratio)


def hash_of(**options: bool) -> Callable[[Any], Any]:
    return first(
        lambda kernel: as_before(kernel, OtherHash(kernel.table, dims=kernel.dims, **options))
    )


def bands(low: int, count: int) -> Callable[[Any], Any]:
    """The codes of `count` cosines in as many numbers as before.

    Those of the lowest are free, the rest is hashed.
    """

    def change(kernel: Any) -> Any:
        numbers, n = jc.stored_numbers(kernel), kernel.matrix_shape[1]
        dense = jc.vocabulary(count / kernel.matrix_shape[0], grid=GRID)(kernel.materialize())
        noise = jax.random.normal(jax.random.key(1), (count, n))
        keep = (numbers - low * n) / ((count - low) * n)
        codes = Bands(noise[:low], jc.hashed(keep, seed=3)(noise[low:]))
        return as_before(kernel, dataclasses.replace(dense, codes=codes))

    return first(change)


def from_cosines(kernel: Any) -> Any:
    """Learned features that start as the lowest cosines."""
    count = kernel.atoms.shape[-1]
    cosines = jc.vocabulary(count / kernel.matrix_shape[0], grid=GRID)(
        kernel.materialize()
    ).atoms.materialize()
    return as_before(kernel, dataclasses.replace(kernel, atoms=cosines))


VARIANTS: dict[str, Variant] = {
    "hashed": Variant("hashed"),
    "no signs": Variant("hashed", hash_of(signs=False)),
    "not balanced": Variant("hashed", hash_of(balanced=False)),
    "half the initial scale": Variant(
        "hashed", first(lambda kernel: scale(kernel, jnp.float32(0.5)))
    ),
    "twice the initial scale": Variant(
        "hashed", first(lambda kernel: scale(kernel, jnp.float32(2)))
    ),
    "hashed, averaged": Variant("hashed", averaged=True),
    "cosines": Variant("DCT"),
    "cosines, hashed codes": Variant("DCT + hashed"),
    "40 free codes, 104 hashed": Variant("DCT", bands(40, 144)),
    "cosines, averaged": Variant("DCT", averaged=True),
    "cosines, twice the steps": Variant("DCT", steps=2 * STEPS),
    "cosines, no pixels hidden": Variant("DCT", dropout=0.0),
    "cosines, a fifth hidden": Variant("DCT", dropout=0.2),
    "cosines, shifted images": Variant("DCT", shifted=True),
    "learned features": Variant("learned"),
    "learned, from cosines": Variant("learned", first(from_cosines)),
    "windows": Variant("Toeplitz + DCT"),
    "windows, averaged": Variant("Toeplitz + DCT", averaged=True),
    "windows, no pixels hidden": Variant("Toeplitz + DCT", dropout=0.0),
    "windows, shifted images": Variant("Toeplitz + DCT", shifted=True),
}


VARIANTS |= {"paper's form": Variant("hashed", paper=True, rate=1e-2)} | {
    f"paper's form, momentum {rate:g}": Variant("hashed", paper=True, rate=rate, momentum=0.9)
    for rate in (3e-3, 1e-2, 3e-2)
}


class Averaging(NamedTuple):
    inner: Any
    mean: Any
    count: jax.Array
    step: jax.Array


def averaging(inner: optax.GradientTransformation, start: int) -> optax.GradientTransformation:
    """The same steps, and the mean of the parameters from a step on."""

    def init(params: Any) -> Averaging:
        return Averaging(inner.init(params), params, jnp.float32(0), jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Averaging]:
        updates, inside = inner.update(updates, state.inner, params)
        count = state.count + (state.step >= start)
        share = jnp.where(count > 0, 1 / jnp.maximum(count, 1), 1)
        mean = jax.tree.map(
            lambda old, new: old + share * (new - old),
            state.mean,
            optax.apply_updates(params, updates),
        )
        return updates, Averaging(inside, mean, count, state.step + 1)

    return optax.GradientTransformation(init, update)


def one_cycle_held(rate: float, steps: int) -> optax.GradientTransformation:
    """Up as in one cycle, down to a quarter of the rate, and then held.

    An average needs steps that still move.
    """
    down = optax.cosine_decay_schedule(rate, steps // 2, alpha=0.25)
    up = optax.linear_schedule(rate / 25, rate, steps // 10)
    return optax.adam(optax.join_schedules([up, down], [steps // 10]))


def shifting(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Images moved by a pixel at most along each axis, other ones each time."""

    def shifted(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        pixels, labels = batch
        moves = jax.random.randint(jax.random.fold_in(key, 1), (len(pixels), 2), 0, 3)
        wide = jnp.pad(pixels.reshape(-1, *GRID), ((0, 0), (1, 1), (1, 1)), mode="edge")
        cut = jax.vmap(lambda image, move: jax.lax.dynamic_slice(image, move, GRID))(wide, moves)
        return loss(params, (cut.reshape(pixels.shape), labels), key)

    return shifted


def measure(rows: list[dict[str, Any]], key: dict[str, Any]) -> dict[str, Any]:
    """One run."""
    name, seed = key["variant"], key["seed"]
    variant = VARIANTS[name]
    rate, candidate = chosen(rows, PARTS["core"], variant.column)
    train, judge = data_of(key["set"], validate=True)
    sizes, transform = (widened(20) if variant.paper else COLUMNS[variant.column][candidate])(TASK)
    rate = variant.rate or rate
    params = variant.change(fresh(seed, transform(seed), sizes))
    stored = jc.stored_numbers(params)
    if stored > TASK.numbers:
        raise ValueError(f"{name} stores {stored} numbers, more than {TASK.numbers}")
    loss = loss_of(variant.dropout, 1.0)
    loss = shifting(loss) if variant.shifted else loss
    steps, start = variant.steps, 3 * variant.steps // 4
    optimizer = optax.sgd(rate, variant.momentum) if variant.momentum else one_cycle(rate, steps)
    optimizer = averaging(one_cycle_held(rate, steps), start) if variant.averaged else optimizer
    description = f"{key['set']}, {name}, seed {seed}"
    options = dict(steps=steps, batch_size=BATCH, seed=seed, description=description)
    state = jc.fit(loss, params, (train.pixels, train.labels), optimizer=optimizer, **options)
    params = state.opt_state.mean if variant.averaged else state.params
    return {"error": error(params, judge), "stored": stored, "rate": rate}


def table(rows: list[dict[str, Any]]) -> str:
    sets = list(dict.fromkeys(row["set"] for row in rows))
    lines = [f"| variant | numbers | {' | '.join(sets)} |", "|---" * (2 + len(sets)) + "|"]
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        errors = [np.array([row["error"] for row in mine if row["set"] == each]) for each in sets]
        told = [
            f"{e.mean():.2f}" + (f" ± {e.std(ddof=1):.2f}" if len(e) > 1 else "") for e in errors
        ]
        lines.append(f"| {name} | {mine[0]['stored']:,} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT"
    )
    parser.add_argument(
        "--sets", nargs="+", choices=variations.SETS, default=CHOOSING, metavar="SET"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--chosen",
        type=Path,
        default=Path(__file__).with_name("hashednets.json"),
        help="where rates were chosen",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    cells = itertools.product(args.variants, range(args.seeds), args.sets)
    keys = [{"variant": name, "set": each, "seed": seed} for name, seed, each in cells]
    print(table(finished(args.out, read(args.out), keys, partial(measure, read(args.chosen)))))


if __name__ == "__main__":
    main()
