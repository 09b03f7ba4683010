"""The tour at keep 1/8 over five splits of the digits, paired.

Is a transform worse than the baselines after equal fine-tuning?

    # about three minutes on two cores; results beside this file as JSON
    python tests/benchmarks/tour_splits.py

Each split trains its own dense network. The difference to a baseline is taken split by split; a
transform counts as no worse where the mean difference is at least zero, or within one standard
error below it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jaxcompress.examples import tour

SPLITS, KEEP = 5, 1 / 8
BASELINES = ("magnitude pruning", "plain smaller net")
RESULTS = Path(__file__).with_suffix(".json")


def main() -> None:
    """Run what is missing, then print the table."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in range(SPLITS):
        if str(seed) not in results:
            cells = tour.run(seed, [KEEP]).cells
            results[str(seed)] = {
                cell.recipe: [cell.numbers, 100 * (cell.before or 0), 100 * (cell.after or 0)]
                for cell in cells
            }
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Accuracy before and after fine-tuning, and the differences to the baselines.

    Paired by split.
    """
    after = {
        name: np.array([split[name][2] for split in results.values()]) for name in results["0"]
    }
    lines = [
        "| at 1/8 of the net | stored numbers | before, % | after, % | - magnitude | - plain |",
        "|---|---|---|---|---|---|",
    ]
    for name, errors in after.items():
        numbers, before, _ = np.mean([split[name] for split in results.values()], axis=0)
        differences = [errors - after[baseline] for baseline in BASELINES]
        paired = [f"{d.mean():+.2f} ± {d.std(ddof=1) / SPLITS**0.5:.2f}" for d in differences]
        accuracy = f"{errors.mean():.2f} ± {errors.std(ddof=1):.2f}"
        lines.append(
            f"| {name} | {numbers:,.0f} | {before:.1f} | {accuracy} | {' | '.join(paired)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
