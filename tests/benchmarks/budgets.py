"""One number for everything against equal keeps.

The networks of channels.py cut to a share of all their numbers, no fine-tuning.

Both columns cut with `rotate_and_prune` on the same moments (20,000 training images, an eighth of
each image's patches, sensitivities of the logits), to the same total of stored numbers; nothing is
reconstructed. The 10,000 test images judge. "predicted" is the plan's squared error of a logit,
beside what it was measured to be on 2,000 test images.

    # the table; about 10 minutes on two cores once the networks are trained
    python tests/benchmarks/budgets.py

Trained parameters are those of channels.py, finished cells are kept in the results file (`--out`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import channels
import fashion
import jax
import jax.numpy as jnp
import numpy as np
from cells import write
from tqdm.auto import tqdm

import jaxcompress as jc

TOTALS = (1 / 2, 1 / 4, 1 / 10)
JUDGED = 2_000
"""Test images on which the logits' error is measured."""


def equal_keep(net: jc.networks.Network, params: Any, total: float) -> float:
    """The largest equal keep of all axes whose tree stays within a share of all numbers.

    Computed from sizes alone.
    """
    low, high, worth = 0.0, 1.0, total * jc.stored_numbers(params)
    for _ in range(40):
        middle = (low + high) / 2
        sizes = {axis.key: max(1, round(middle * axis.size)) for axis in net.axes}
        layouts = net.structure.layouts.values()
        numbers = sum(
            float(np.prod([layout.resized(sizes).size for layout in dims])) for dims in layouts
        )
        low, high = (middle, high) if numbers <= worth else (low, middle)
    return low


def measure(case: channels.Case, total: float) -> dict[str, Any]:
    """One network at one total, both ways."""
    x = channels.to_unit(case.judge.pixels[:JUDGED])
    logits = case.net(case.params, x)
    start = time.perf_counter()
    plan = jc.rotate_and_prune(case.net, jc.budget(total)).plan(case.params, case.felt)
    row: dict[str, Any] = {
        "before": case.before,
        "plan_seconds": round(time.perf_counter() - start, 2),
    }
    row |= {
        "keeps": {key: round(keep, 4) for key, keep in plan.keeps.items()},
        "power": float(jnp.mean(logits**2)),
    }
    row |= {"predicted": plan.error, "predicted_equal": plan.uniform}
    for name, keep in (("budget", plan.keeps), ("equal", equal_keep(case.net, case.params, total))):
        small = jc.rotate_and_prune(case.net, keep)(case.params, case.felt)
        row[name] = {
            "stored": jc.stored_numbers(small) / jc.stored_numbers(case.params),
            "flops": channels.flops(case.net, small) / channels.flops(case.net, case.params),
            "error": float(jnp.mean((case.net(small, x) - logits) ** 2)),
            "lost": round(case.before - channels.accuracy(case.net, small, case.judge), 4),
        }
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Points lost, mean and standard deviation over the seeds, as markdown."""
    lines = [
        (
            "| network | of all numbers | budget | equal keeps | FLOPs of each | a logit's "
            "squared error, predicted | measured |"
        )
    ]
    lines.append("|---" * 7 + "|")
    for name, total in dict.fromkeys((row["network"], row["total"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["total"]) == (name, total)]

        def spread(x):
            return (
                f"{np.mean(x):.2f} ± {np.std(x, ddof=1):.2f}" if len(x) > 1 else f"{np.mean(x):.2f}"
            )

        def mean(way, what, rows=mine):
            return float(np.mean([row[way][what] for row in rows]))

        lost = [spread([row[way]["lost"] for row in mine]) for way in ("budget", "equal")]
        cells = [
            name,
            f"{mean('budget', 'stored'):.4f}",
            *lost,
            f"{mean('budget', 'flops'):.2f}, {mean('equal', 'flops'):.2f}",
        ]
        cells += [
            f"{np.mean([row['predicted'] for row in mine]):.2g}",
            f"{mean('budget', 'error'):.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=channels.SUBJECTS,
        default=list(channels.SUBJECTS),
        metavar="NETWORK",
    )
    parser.add_argument("--seeds", type=int, default=3)
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
    data, judge = fashion.load()
    results = json.loads(args.out.read_text()) if args.out.exists() and not args.again else []
    known = {(row["network"], row["seed"], row["total"]): row for row in results}
    cells = list(itertools.product(args.networks, range(args.seeds), TOTALS))
    case, held = None, None
    for name, seed, total in tqdm(cells, desc="budgets"):
        if (name, seed, total) in known:
            continue
        if held != (name, seed):
            jax.clear_caches()
            case, held = channels.Case(name, seed, data, judge), (name, seed)
        assert case is not None
        known[name, seed, total] = {"network": name, "seed": seed, "total": total} | measure(
            case, total
        )
        results = [known[cell] for cell in cells if cell in known]
        write(args.out, results)
    print(table([known[cell] for cell in cells]))


if __name__ == "__main__":
    main()
