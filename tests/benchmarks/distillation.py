"""Soft targets on MNIST: the share of a teacher's gap that a student closes, and why.

The setting of Hinton et al. 2015: the teacher is 784-1200-1200-10, trained on images shifted by up
to two pixels with a tenth of the pixels hidden; the student is 784-800-800-10, trained for 12,000
steps of 100 images by Adam in one cosine cycle, nothing hidden. Each seed has a teacher of its
own. A column's rate and temperature, or share of smoothing, are the best of a few by the last
10,000 training images, seed 0; no test image chose anything. The gap is from the student that
learns labels to the teacher.

    hard, smoothed             labels, and labels of which a share goes to all classes: the control
    soft                       what the teacher says of the training images ... shifted
    the same three on shifted images; the teacher is asked for each of them soft, states
    soft, and the second hidden layers' alignment

    # chooses: a minute or two a run of one core
    python tests/benchmarks/distillation.py --validate
    python tests/benchmarks/distillation.py                 # 3 seeds
    # gradients and curvature on the way, 3 seeds
    python tests/benchmarks/distillation.py --part why

"why" looks at students of hard, smoothed and soft targets after so many steps: the gradient noise
scale (the useful batch size) on 1,000 training images, the mean cosine between the gradients of
two of the 500 images that the teacher is least sure of and of 500 others, the Hessian's largest
eigenvalue and trace on 1,000 images, and how many test images student and teacher call the same.

Finished cells stay in the results file (`--out`).
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cells import finished, read
from fashion import cache_folder
from hashednets import dense_params, logits, one_cycle, partly_hidden, to_unit
from mnist import Digits
from mnist import load as load_mnist

import jaxcompress as jc

TEACHER, STUDENT = (784, 1_200, 1_200, 10), (784, 800, 800, 10)
STEPS, TEACHER_STEPS, BATCH, SHIFT, HIDDEN = 12_000, 12_000, 100, 2, 0.1
RATES = (1e-3, 2e-3, 4e-3)
SOFTNESS = {
    "hard": (0.0,),
    "smoothed": (0.3, 0.1),
    "soft": (2.0, 4.0, 20.0),
    "soft, states": (4.0,),
}
"""Shares of smoothing, and temperatures."""
COLUMNS = [
    f"{name}{also}"
    for also in ("", ", shifted")
    for name in SOFTNESS
    if not (also and name == "soft, states")
]
LOOKS = (50, 300, 2_000, 12_000)
VALIDATION = 10_000


def shifted(pixels: jax.Array, key: jax.Array, *, alike: bool = False) -> jax.Array:
    """Every image moved by up to two pixels each way, or all by the same.

    Empty where nothing was.
    """
    images = jnp.pad(pixels.reshape(-1, 28, 28), ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    corners = jax.random.randint(key, (1 if alike else len(images), 2), 0, 2 * SHIFT + 1)

    def cut(each):
        return jax.lax.dynamic_slice(*each, (28, 28))

    each = images, jnp.broadcast_to(corners, (len(images), 2))
    # a loop of two: on a CPU, XLA would cut again for every window that reads the result, five
    # times as slow
    return jax.lax.map(cut, each, batch_size=-(-len(images) // 2)).reshape(pixels.shape)


def split(validate: bool) -> tuple[Digits, Digits]:
    """What trains and what judges."""
    train, test = load_mnist()
    if not validate:
        return train, test
    return Digits(*(each[:-VALIDATION] for each in train)), Digits(
        *(each[-VALIDATION:] for each in train)
    )


def on_bytes(params: Any, pixels: jax.Array) -> jax.Array:
    return logits(params, to_unit(pixels))


def with_hidden(params: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logits, and the last hidden layer."""
    last = str(len(params) - 1)
    hidden = jax.nn.relu(
        on_bytes({name: layer for name, layer in params.items() if name != last}, pixels)
    )
    return hidden @ params[last]["kernel"] + params[last]["bias"], hidden


@cache
def teacher(seed: int, validate: bool) -> Any:
    """Trained once, kept in the cache folder."""
    path = (
        cache_folder()
        / "distillation"
        / f"teacher-{'validation' if validate else 'final'}-{seed}.safetensors"
    )
    if not path.exists():
        train, _ = split(validate)
        plain = jc.training.cross_entropy(logits)

        def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
            moved, hiding = jax.random.split(key)
            return plain(
                params, (partly_hidden(shifted(batch[0], moved), HIDDEN, hiding), batch[1]), key
            )

        given: dict[str, Any] = dict(
            optimizer=one_cycle(1e-3, TEACHER_STEPS),
            steps=TEACHER_STEPS,
            batch_size=BATCH,
            seed=seed,
        )
        params = jc.fit(
            loss, dense_params(jax.random.key(1_000 + seed), TEACHER), tuple(train), **given
        ).params
        path.parent.mkdir(parents=True, exist_ok=True)
        jc.save(draft := path.with_suffix(f".{os.getpid()}"), params)
        os.replace(draft, path)
    return jc.load(path)


def task(
    column: str, softness: float, teaching: Any, train: Digits
) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """The loss of a column and the data that it is trained on."""
    kind, moving = column.removesuffix(", shifted"), column.endswith(", shifted")
    if not kind.startswith("soft"):
        plain = jc.training.cross_entropy(on_bytes, smoothing=softness)

        def move(batch, key):
            return (shifted(batch[0], key), batch[1]) if moving else batch

        return lambda params, batch, key: plain(params, move(batch, key), key), tuple(train)
    if kind == "soft, states":
        said = jc.training.predict(with_hidden, teaching, train.pixels)
        return jc.training.distillation_loss(with_hidden, temperature=softness, states=1.0), (
            train.pixels,
            *said,
        )
    soft = jc.training.distillation_loss(on_bytes, temperature=softness)
    if not moving:
        return soft, (train.pixels, jc.training.predict(on_bytes, teaching, train.pixels))

    def anew(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        images = shifted(batch[0], key)
        return soft(params, (images, on_bytes(teaching, images)), key)

    return anew, (train.pixels,)


def wrong(params: Any, judge: Digits) -> int:
    """How many images."""
    return int(
        np.sum(
            jc.training.predict(on_bytes, params, judge.pixels, progress=False).argmax(1)
            != judge.labels
        )
    )


def student(key: dict[str, Any], watch: Callable[[Any], None] | None = None) -> Any:
    train, _ = split(key["split"] == "validation")
    loss, data = task(
        key["column"], key["softness"], teacher(key["seed"], key["split"] == "validation"), train
    )
    given: dict[str, Any] = dict(
        optimizer=one_cycle(key["rate"], STEPS), steps=STEPS, batch_size=BATCH, seed=key["seed"]
    )
    if watch:
        given |= dict(callback=watch, callback_steps=50)
    return jc.fit(
        loss,
        dense_params(jax.random.key(key["seed"]), STUDENT),
        data,
        **given,
        description=key["column"],
    ).params


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """The errors of one run, and those of its teacher."""
    _, judge = split(key["split"] == "validation")
    taught_by = teacher(key["seed"], key["split"] == "validation")
    return {"wrong": wrong(student(key), judge), "teacher": wrong(taught_by, judge)}


def why(key: dict[str, Any]) -> dict[str, Any]:
    """What a student's gradients are like on the way."""
    train, test = split(False)
    teaching = teacher(key["seed"], False)
    said = jc.training.predict(on_bytes, teaching, train.pixels, progress=False)
    sure = np.diff(np.sort(said, 1)[:, -2:], axis=1)[:, 0]
    near, others = (
        np.argsort(sure)[:500],
        np.random.default_rng(0).choice(len(sure), 1_000, replace=False),
    )
    loss, data = task(key["column"], key["softness"], teaching, train)
    called, found = (
        jc.training.predict(on_bytes, teaching, test.pixels, progress=False).argmax(1),
        [],
    )
    statistics = partial(jc.training.gradient_statistics, loss, batch_size=50, progress=False)

    def look(state: Any) -> None:
        step = int(state.step)
        agree = float(
            np.mean(
                jc.training.predict(on_bytes, state.params, test.pixels, progress=False).argmax(1)
                == called
            )
        )
        row: dict[str, Any] = {"step": step, "agree": round(100 * agree, 2)}
        if step in LOOKS:

            def of(index):
                return jax.tree.map(lambda leaf: leaf[index], data)

            all_, close = statistics(state.params, of(others)), statistics(state.params, of(near))
            bent = jc.training.curvature(
                loss, state.params, of(others), jax.random.key(0), steps=15, signs=5, progress=False
            )
            row |= {
                "noise": all_.noise_scale,
                "agreement": statistics(state.params, of(others[:500])).agreement,
            }
            row |= {"noise near": close.noise_scale, "agreement near": close.agreement}
            row |= {"largest": bent.largest, "trace": bent.trace}
        found.append(row)

    student(key, look)
    return {"looks": found}


def chosen(results: list[dict[str, Any]], column: str) -> dict[str, Any]:
    """The rate and softness with the fewest validation errors."""
    rows = [
        row
        for row in results
        if (row["part"], row["split"], row["column"]) == ("gap", "validation", column)
    ]
    if not rows:
        raise SystemExit(f"{column}: run with --validate first")
    row = min(rows, key=lambda row: row["wrong"])
    return {name: row[name] for name in ("rate", "softness")}


def cells(
    part: str, columns: list[str], seeds: int, validate: bool, results: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    for column in columns:
        if validate:
            key = {"part": part, "split": "validation", "column": column, "seed": 0}
            softness = SOFTNESS[column.removesuffix(", shifted")]
            for rate in RATES:  # at the middle softness, then the others at the best rate
                yield key | {"rate": rate, "softness": softness[len(softness) // 2]}
            for each in softness:
                yield key | chosen(results, column) | {"softness": each}
        else:
            for seed in range(seeds):
                yield {
                    "part": part,
                    "split": "final",
                    "column": column,
                    **chosen(results, column),
                    "seed": seed,
                }


def gap_table(results: list[dict[str, Any]]) -> str:
    """Errors of 10,000, and the share of the gap that is closed, seed by seed."""
    rows = [row for row in results if (row["part"], row["split"]) == ("gap", "final")]
    base = {row["seed"]: row["wrong"] for row in rows if row["column"] == "hard"}
    lines = ["| student | rate | softness | wrong of 10,000 | gap closed % |", "|---" * 5 + "|"]

    def spread(values):
        return f"{np.mean(values):.1f} ± {np.std(values, ddof=min(1, len(values) - 1)):.1f}"

    for column in COLUMNS:
        mine = [row for row in rows if row["column"] == column and row["seed"] in base]
        if mine:
            closed = [
                100 * (base[row["seed"]] - row["wrong"]) / (base[row["seed"]] - row["teacher"])
                for row in mine
            ]
            made = f"{mine[0]['rate']:g} | {mine[0]['softness']:g}"
            lines.append(
                f"| {column} | {made} | {spread([row['wrong'] for row in mine])} | "
                f"{spread(closed)} |"
            )
    lines.append(
        f"| teacher | | | {spread([row['teacher'] for row in rows if row['column'] == 'hard'])} | |"
    )
    return "\n".join(lines)


def why_table(results: list[dict[str, Any]]) -> str:
    """The mean over seeds, a line for each look."""
    names = ["noise", "noise near", "agreement", "agreement near", "largest", "trace", "agree"]
    lines = ["| targets | steps | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    rows = [row for row in results if row["part"] == "why"]
    for column, step in itertools.product(dict.fromkeys(row["column"] for row in rows), LOOKS):
        looks = [
            look
            for row in rows
            if row["column"] == column
            for look in row["looks"]
            if look["step"] == step
        ]
        lines.append(
            f"| {column} | {step} | "
            + " | ".join(f"{np.median([look[name] for look in looks]):.3g}" for name in names)
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", choices=("gap", "why"), default="gap")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, metavar="COLUMN")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--validate",
        action="store_true",
        help="choose rates, temperatures and shares by training images held back",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    results = read(args.out)
    if args.part == "why":
        columns = args.columns or ["hard", "smoothed", "soft"]
        keys = (key | {"part": "why"} for key in cells("gap", columns, args.seeds, False, results))
        finished(args.out, results, keys, why)
        print(why_table(results))
        return
    finished(
        args.out,
        results,
        cells("gap", args.columns or COLUMNS, args.seeds, args.validate, results),
        measure,
    )
    if not args.validate:
        print(gap_table(results))


if __name__ == "__main__":
    main()
