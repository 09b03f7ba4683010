"""One number for everything against equal keeps: the networks of channels.py cut to a share of all their numbers, no fine-tuning.

Both columns cut with `rotate_and_prune` and then `reconstruct`, on the same moments (20,000 training images, an eighth of each
image's patches, sensitivities of the logits), to the same total of stored numbers; the 10,000 test images judge. "predicted" is
the plan's squared error of a logit beside what the cut alone was measured to have, on the test images.

    python tests/benchmarks/budgets.py              # the table; about 25 minutes on two cores once the networks are trained

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
from first_table import write
from tqdm.auto import tqdm

import jaxcompress as jc

TOTALS = (1 / 2, 1 / 4, 1 / 10)
JUDGED = 2_000
"""Test images on which the logits' error is measured."""


def equal_keep(net: jc.Network, params: Any, total: float) -> float:
    """The largest keep of all axes alike whose tree is no more than a share of all numbers; sizes alone are computed."""
    low, high, worth = 0.0, 1.0, total * jc.stored_numbers(params)
    for _ in range(40):
        middle = (low + high) / 2
        sizes = {axis.key: max(1, round(middle * axis.size)) for axis in net.axes}
        layouts = net.structure.layouts.values()
        numbers = sum(float(np.prod([layout.resized(sizes).size for layout in dims])) for dims in layouts)
        low, high = (middle, high) if numbers <= worth else (low, middle)
    return low


def measure(case: channels.Case, total: float) -> dict[str, Any]:
    """One network at one total, both ways."""
    x = channels.to_unit(case.judge.pixels[:JUDGED])
    logits = case.net(case.params, x)
    error = lambda small: float(jnp.mean((case.net(small, x) - logits) ** 2))
    whole, row = jc.stored_numbers(case.params), {"before": case.before}
    again = jc.reconstruct(case.net, case.batches, sample=channels.SAMPLE, progress=False)
    start = time.perf_counter()
    plan = jc.rotate_and_prune(case.net, jc.budget(total)).plan(case.params, case.moments)
    row |= {"plan_seconds": round(time.perf_counter() - start, 2), "keeps": {k: round(v, 4) for k, v in plan.keeps.items()}}
    row |= {"predicted": plan.error, "predicted_equal": plan.uniform}
    for name, keep in (("budget", plan.keeps), ("equal", equal_keep(case.net, case.params, total))):
        small, carried = jc.rotate_and_prune(case.net, keep).apply(case.params, case.moments)
        solved = again(small, carried)
        lost = [round(case.before - channels.accuracy(case.net, tree, case.judge), 4) for tree in (small, solved)]
        row[name] = {"stored": jc.stored_numbers(small) / whole, "error": error(small), "lost": lost, "error_solved": error(solved)}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Points lost, mean and standard deviation over the seeds, as markdown."""
    lines = ["| network | of all numbers | budget | equal keeps | without reconstruct | error of a logit, predicted / measured |"]
    lines.append("|---" * 6 + "|")
    for name, total in dict.fromkeys((row["network"], row["total"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["total"]) == (name, total)]
        spread = lambda x: f"{np.mean(x):.2f} ± {np.std(x, ddof=1):.2f}" if len(x) > 1 else f"{np.mean(x):.2f}"
        lost = {(way, step): spread([row[way]["lost"][step] for row in mine]) for way in ("budget", "equal") for step in (0, 1)}
        errors = f"{np.mean([row['predicted'] for row in mine]):.2g} / {np.mean([row['budget']['error'] for row in mine]):.2g}"
        without = f"{lost['budget', 0]} against {lost['equal', 0]}"
        stored = f"{np.mean([row['budget']['stored'] for row in mine]):.4f}"
        lines.append(f"| {name} | {stored} | {lost['budget', 1]} | {lost['equal', 1]} | {without} | {errors} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=channels.SUBJECTS, default=list(channels.SUBJECTS), metavar="NETWORK")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="measure afresh what the results file has already")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"), help="where finished cells are kept")
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
            case, held = channels.Case(name, seed, data, judge, sensitivity=True), (name, seed)
        assert case is not None
        known[name, seed, total] = {"network": name, "seed": seed, "total": total} | measure(case, total)
        results = [known[cell] for cell in cells if cell in known]
        write(args.out, results)
    print(table([known[cell] for cell in cells]))


if __name__ == "__main__":
    main()
