"""What a metric brings to a budget.

The plan of the least predicted error, against the best of four by validation images.

A perceptron 784-200-200-200-200-10 on Fashion-MNIST (50,000 images train) is cut to a share of its
numbers, by `rotate_and_prune` on hidden axes or `factored` on kernels, on moments of 5,000
training images; nothing is trained again. The plan is chosen by the predicted error alone, by the
accuracy on 10,000 validation images, or by an active set that sees 500 of these for each plan.
What is reported is the accuracy on the 10,000 test images, in %, mean and standard deviation over
seeds.

    python tests/benchmarks/budget_metric.py       # five minutes

Finished cells stay in the results file (`--out`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fashion
import jax
import jax.numpy as jnp
import numpy as np
from cells import finished, read
from hashednets import dense_params, logits, one_cycle, partly_hidden, to_unit
from mnist import Digits

import jaxcompress as jc

SIZES = (784, 200, 200, 200, 200, 10)
STEPS, BATCH, RATE, HIDDEN = 4_000, 100, 2e-3, 0.1
VALIDATION, SEEDS = 10_000, 3
FORMS: dict[str, tuple[Callable[[jc.networks.Network, Any], Any], tuple[float, ...]]] = {
    "rotate_and_prune": (jc.rotate_and_prune, (0.3, 0.1, 0.04)),
    "factored": (
        lambda net, total: jc.at("**/kernel", jc.factored(total, matrix_axes=net.matrix_axes)),
        (0.5, 0.2, 0.1),
    ),
}
COLUMNS = ("no metric", "accuracy", "active set")


@cache
def data() -> tuple[Digits, Digits, Digits]:
    """Training, validation and test images."""
    train, test = fashion.load()

    def part(where):
        return Digits(train.pixels[where], train.labels[where])

    return part(slice(None, -VALIDATION)), part(slice(-VALIDATION, None)), test


@cache
def trained(seed: int) -> tuple[jc.networks.Network, Any, jc.moments.Moments]:
    """The network, its parameters and moments."""
    x, y = data()[0].pixels, data()[0].labels
    plain = jc.training.cross_entropy(lambda params, pixels: logits(params, pixels))

    def loss(params, batch, key):
        return plain(params, (partly_hidden(batch[0], HIDDEN, key), batch[1]), key)

    params = jc.fit(
        loss,
        dense_params(jax.random.key(seed), SIZES),
        (x, y),
        optimizer=one_cycle(RATE, STEPS),
        steps=STEPS,
        batch_size=BATCH,
        seed=seed,
    ).params
    net = jc.trace(logits, params, jnp.zeros((2, 784)))
    return (
        net,
        params,
        jc.calibrate(
            net, params, [to_unit(jnp.asarray(x[:5_000]))], sensitivity=True, progress=False
        ),
    )


def accuracy(net: jc.networks.Network, images: Digits, params: Any) -> float:
    """The share of images that are classified rightly."""
    answers = jax.jit(lambda params, pixels: jnp.argmax(net(params, to_unit(pixels)), -1))
    right = [
        answers(params, part) == labels
        for part, labels in zip(np.split(images.pixels, 4), np.split(images.labels, 4))
    ]
    return float(jnp.concatenate(right).mean())


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """One network in one form at one total, by each way to choose."""
    net, params, moments = trained(key["seed"])
    form, _ = FORMS[key["form"]]
    _, judge, test = data()

    def seen(params, pixels):
        return net(params, to_unit(pixels))

    active = jc.classifiers.active_set(
        seen, params, (judge.pixels, judge.labels), tolerance=1.0, seed=key["seed"], progress=False
    )

    def measured(candidates):
        return {name: accuracy(net, judge, small) for name, small in candidates.items()}

    metrics = {
        "no metric": None,
        "accuracy": measured,
        "active set": jc.classifiers.accuracy_metric(active),
    }
    row: dict[str, Any] = {"before": round(100 * accuracy(net, test, params), 2)}
    for name, metric in metrics.items():
        small = form(net, jc.budget(key["total"], metric=metric))(params, moments)
        row[name] = round(100 * accuracy(net, test, small), 2)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and deviation of each column."""
    lines = [
        "| form | numbers | before | " + " | ".join(COLUMNS) + " |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for form, (_, totals) in FORMS.items():
        for total in totals:
            here = [row for row in rows if row["form"] == form and row["total"] == total]

            def span(name, here=here):
                return (
                    f"{np.mean([row[name] for row in here]):.2f} ± "
                    f"{np.std([row[name] for row in here]):.2f}"
                )

            lines.append(
                f"| `{form}` | {100 * total:g} % | "
                + " | ".join(span(name) for name in ("before", *COLUMNS))
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    keys = [
        {"seed": seed, "form": form, "total": total}
        for seed in range(args.seeds)
        for form, (_, totals) in FORMS.items()
        for total in totals
    ]
    print(table(finished(args.out, read(args.out), keys, measure)))


if __name__ == "__main__":
    main()
