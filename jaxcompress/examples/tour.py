"""The main job in one run: train a real classifier, compress it in seven ways, and compare.

The data are the 1,797 handwritten digits that scikit-learn ships, the network a Flax MLP
64-256-256-10. Every recipe gets the same budget, a fraction of the numbers of the *whole* network,
and the same short fine-tuning; beside them stand magnitude pruning, with its indices counted, and a
plain net that is small from the start. It is a demonstration: the claims are the tables in
tests/benchmarks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jaxcompress.analysis.frontier import Frontier, Point, fraction
from jaxcompress.analysis.report import flops
from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.factored import FactoredArray
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.models.mlp import MLP
from jaxcompress.moments.calibration import calibrate
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.trace import Network, trace
from jaxcompress.training.fit import fit
from jaxcompress.training.losses import cross_entropy
from jaxcompress.transforms.base import Transform, moments_by_name
from jaxcompress.transforms.combinators import at, chain
from jaxcompress.transforms.factored import energy_by_rank, factored
from jaxcompress.transforms.hashed import hashed
from jaxcompress.transforms.rotation import rotate_and_prune
from jaxcompress.transforms.spline import spline
from jaxcompress.transforms.vocabulary import vocabulary
from jaxcompress.transforms.weights import Unreachable

KEEPS = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
WIDTHS = (256, 256, 10)
TRAINING_STEPS, FINE_TUNING_STEPS, BATCH = 800, 600, 64
GENEROSITY = 8
"""Factor on the share of the last kernel, which has 3 % of the numbers and feeds every class."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One recipe at one keep: numbers, FLOPs, and accuracy before and after fine-tuning."""

    recipe: str
    keep: float
    numbers: int | None = None
    before: float | None = None
    after: float | None = None
    flops: float | None = None
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Tour:
    """All cells of a run, and the dense network's figures."""

    cells: tuple[Cell, ...]
    dense: Cell

    def __str__(self) -> str:
        head = f"{'recipe':24s} {'keep':>5s} {'stored numbers':>14s} {'before':>8s} {'after':>8s} {'FLOPs':>9s}"
        lines = [head, "-" * len(head)]
        previous = None
        for cell in (self.dense, *self.cells):
            if previous not in (None, cell.recipe):
                lines.append("")
            name = cell.recipe if cell.recipe != previous else ""
            previous = cell.recipe
            if cell.numbers is None:
                lines.append(f"{name:24s} {fraction(cell.keep):>5s} {cell.problem}")
                continue

            def percent(value):
                return "" if value is None else f"{100 * value:.2f} %"

            lines.append(
                f"{name:24s} {fraction(cell.keep):>5s} {cell.numbers:>14,} "
                f"{percent(cell.before):>8s} {percent(cell.after):>8s} "
                f"{cell.flops:>9,.0f}"
            )
        return "\n".join(lines)

    def frontier(self) -> Frontier:
        """Accuracy after fine-tuning against stored numbers."""
        points = tuple(
            Point(c.recipe, c.keep, c.numbers, None if c.after is None else 100 * c.after)
            for c in self.cells
        )
        return Frontier(points, self.dense.numbers or 0, 100 * (self.dense.after or 0))


optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, FINE_TUNING_STEPS))


def recipes(net: Network, params: Any, moments: Moments) -> dict[str, Callable[[float], Transform]]:
    """For each name, the transform for a keep of the whole network. The class axis is never cut.

    Each form has one size for all kernels, the largest that the budget allows: a share of the
    numbers, an energy, a number of atoms or knots. The small last kernel, which feeds every class,
    gets eight times the others' share.
    """
    first, middle, last = (f"{name}/kernel" for name in params)
    shapes = {f"{name}/kernel": layer["kernel"].shape for name, layer in params.items()}
    fixed = sum(layer["bias"].size for layer in params.values())
    total = stored_numbers(params)
    metrics = moments_by_name(moments)
    curves = {
        f"{name}/kernel": energy_by_rank(layer["kernel"], metrics[f"{name}/kernel"])
        for name, layer in params.items()
    }
    backwards = MatrixAxes(
        inputs=(-1,), outputs=(-2,)
    )  # coarsen the last kernel along its inputs, not its classes

    def largest(numbers: Callable[[int], float], keep: float, limit: int = 256) -> int:
        """The largest size whose kernels fit the budget."""
        fitting = [size for size in range(1, limit + 1) if numbers(size) + fixed <= keep * total]
        if not fitting:
            raise Unreachable(
                numbers(1) + fixed,
                f"needs {numbers(1) + fixed:,.0f} numbers, {keep * total:,.0f} are allowed",
            )
        return fitting[-1]

    def shares(keep: float) -> dict[str, float]:
        body, tail = (
            sum(math.prod(shapes[name]) for name in (first, middle)),
            math.prod(shapes[last]),
        )
        share = (keep * total - fixed) / (body + GENEROSITY * tail)
        if GENEROSITY * share > 1:
            share = (keep * total - fixed - tail) / body
        return {first: share, middle: share, last: min(1.0, GENEROSITY * share)}

    def hashing(keep: float) -> Transform:
        return chain(*(at(name, hashed(share)) for name, share in shares(keep).items()))

    def cosines(keep: float) -> Transform:
        def counts(k):
            return {first: min(k, 64), middle: k, last: min(GENEROSITY * k, 256)}

        k = largest(
            lambda k: sum(count * shapes[name][1] for name, count in counts(k).items()), keep
        )
        grids = {first: (8, 8)}
        forms = {
            name: vocabulary(count / shapes[name][0], grid=grids.get(name))
            for name, count in counts(k).items()
        }
        return chain(*(at(name, form) for name, form in forms.items()))

    def factoring(keep: float) -> Transform:
        def ranks(energy):
            return {name: int((curve < energy).sum(-1).max() + 1) for name, curve in curves.items()}

        def numbers(energy):
            return sum(
                FactoredArray.numbers(shapes[name][0], shapes[name][1], r)
                for name, r in ranks(energy).items()
            )

        energies = sorted({float(value) for curve in curves.values() for value in curve.ravel()})
        chosen = energies[largest(lambda i: numbers(energies[i - 1]), keep, len(energies)) - 1]
        return chain(*(at(name, factored(energy=chosen)) for name in shapes))

    def convolving(keep: float) -> Transform:
        def counts(q):
            return {first: q, middle: q, last: min(GENEROSITY * q, 256)}

        rows = {first: 64, middle: 256, last: 10}
        q = largest(lambda q: sum(count * rows[name] for name, count in counts(q).items()), keep)
        forms = {
            n: spline(count / 256, matrix_axes=backwards if n == last else None)
            for n, count in counts(q).items()
        }
        return chain(*(at(name, form) for name, form in forms.items()))

    def pruning(keep: float) -> Transform:
        return rotate_and_prune(
            net, plain_width(keep * total) / WIDTHS[0]
        )  # both hidden layers at the width that fits

    def cosines_hashed(keep: float) -> Transform:
        share = shares(keep)
        outer = share[first] ** 0.5
        nested = chain(vocabulary(outer, grid=(8, 8)), at("codes", hashed(share[first] / outer)))
        return chain(
            at(first, nested), at(middle, hashed(share[middle])), at(last, hashed(share[last]))
        )

    def factors_hashed(keep: float) -> Transform:
        half = {first: 0.5, middle: 0.5, last: 1.0}

        def cost(r):
            return {
                name: math.ceil(FactoredArray.numbers(shape[0], shape[1], min(r, *shape)))
                for name, shape in shapes.items()
            }

        r = largest(
            lambda r: sum(half[name] * numbers for name, numbers in cost(r).items()), keep, limit=64
        )
        low_rank = (
            at(name, factored(numbers / math.prod(shapes[name])))
            for name, numbers in cost(r).items()
        )
        return chain(*low_rank, at((f"{first}/*", f"{middle}/*"), hashed(1 / 2)))

    return {
        "rotate and prune": pruning,
        "hashed": hashing,
        "vocabulary (DCT)": cosines,
        "factored": factoring,
        "spline": convolving,
        "DCT, codes hashed": cosines_hashed,
        "factored, factors hashed": factors_hashed,
    }


def load_digits(seed: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The digits as (x, y) for training (three quarters) and test, stratified."""
    try:
        from sklearn import datasets, model_selection
    except ImportError:
        raise ImportError(
            "the tour's digits come with scikit-learn: pip install 'jaxcompress[demo]'"
        ) from None
    x, y = datasets.load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        x, y, test_size=0.25, stratify=y, random_state=seed
    )
    return (x_train, y_train), (x_test, y_test)


def prune_magnitude(params: Any, numbers: float) -> tuple[Any, int]:
    """The baseline: a mask of the largest entries of all kernels, and the numbers it stores.

    A kept entry costs its value, and its place: half a number (int16) each, or one bit for every
    entry of the dense kernels, whichever is less.
    """
    kernels = [layer["kernel"] for layer in params.values()]
    biases = sum(layer["bias"].size for layer in params.values())
    entries = sum(kernel.size for kernel in kernels)
    kept = int(max((numbers - biases) / 1.5, numbers - biases - entries / 32, 1))
    magnitudes = np.sort(np.concatenate([np.abs(kernel).ravel() for kernel in kernels]))
    masks = {
        name: {"kernel": jnp.abs(layer["kernel"]) >= magnitudes[-kept], "bias": True}
        for name, layer in params.items()
    }
    return masks, int(kept + min(kept / 2, entries / 32) + biases)


def plain_width(numbers: float) -> int:
    """The hidden width at which a plain net 64-h-h-10 stores at most so many numbers."""
    return max(h for h in range(1, 257) if 64 * h + h + h * h + h + 10 * h + 10 <= numbers)


def run(
    seed: int = 0,
    keeps: Sequence[float] = KEEPS,
    *,
    names: Sequence[str] | None = None,
    progress: bool = True,
) -> Tour:
    """Train, compress, fine-tune and measure.

    Args:
        seed: the split of the data, the initial weights and the order of the examples.
        keeps: fractions of the whole network's numbers.
        names: only these recipes and baselines.
        progress: show a progress bar.
    """
    train, (x_test, y_test) = load_digits(seed)

    def initial(widths):
        return jax.jit(MLP(widths).init)(jax.random.key(seed), train[0][:1])["params"]

    params = initial(WIDTHS)
    # the module has fixed widths; the traced network runs at those of the given parameters
    net = trace(lambda params, x: MLP(WIDTHS).apply({"params": params}, x), params, train[0][:1])
    loss = cross_entropy(net)

    def evaluate(*candidates: Any) -> tuple[float, ...]:
        """FLOPs of one example and each candidate's accuracy; candidates share one structure."""
        program = jax.jit(net).lower(candidates[0], x_test).compile()
        accuracies = (
            float((program(params, x_test).argmax(-1) == y_test).mean()) for params in candidates
        )
        return flops(program) / len(x_test), *accuracies

    def learn(params: Any, steps: int, rate: Any = None, objective: Any = loss) -> Any:
        options = {"batch_size": BATCH, "seed": seed, "progress": False}
        return fit(
            objective, params, train, steps=steps, optimizer=rate or optimizer, **options
        ).params

    long = optax.adam(optax.cosine_decay_schedule(2e-3, TRAINING_STEPS))
    params = learn(params, TRAINING_STEPS, long)
    moments = calibrate(net, params, [train[0]], progress=False)
    total = stored_numbers(params)
    cost, accuracy = evaluate(params)
    dense = Cell("dense 64-256-256-10", 1, total, None, accuracy, cost)
    table = recipes(net, params, moments)

    def compressed(name: str, keep: float) -> Cell:
        try:
            small = table[name](keep)(params, moments)
        except Unreachable as error:
            return Cell(name, keep, problem=str(error))
        cost, before, after = evaluate(small, learn(small, FINE_TUNING_STEPS))
        return Cell(name, keep, stored_numbers(small), before, after, cost)

    def magnitude(name: str, keep: float) -> Cell:
        masks, numbers = prune_magnitude(params, keep * total)

        def cut(p):
            return jax.tree.map(lambda leaf, mask: leaf * mask, p, masks)

        tuned = learn(
            cut(params), FINE_TUNING_STEPS, None, cross_entropy(lambda p, x: net(cut(p), x))
        )
        sparse = sum(2 * int(np.sum(mask["kernel"])) for mask in masks.values()) + 3 * sum(
            WIDTHS
        )  # were it run sparse
        _, before, after = evaluate(cut(params), cut(tuned))
        return Cell(name, keep, numbers, before, after, sparse)

    def plain(name: str, keep: float) -> Cell:
        width = plain_width(keep * total)
        # trained for as many steps in all, by the same schedules
        small = learn(initial((width, width, 10)), TRAINING_STEPS, long)
        cost, before, after = evaluate(small, learn(small, FINE_TUNING_STEPS))
        return Cell(name, keep, stored_numbers(small), before, after, cost)

    makers = {
        **dict.fromkeys(table, compressed),
        "magnitude pruning": magnitude,
        "plain smaller net": plain,
    }
    todo = [(name, keep) for name in makers if names is None or name in names for keep in keeps]
    # two at a time: most of a cell is the compilation of its program, on one core
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = pool.map(lambda cell: makers[cell[0]](*cell), todo)
        cells = list(tqdm(results, total=len(todo), desc="tour", disable=not progress, leave=False))
    return Tour(tuple(cells), dense)


def main(seed: int, out: str | Path, progress: bool) -> None:
    """Run the tour, print its table, save its picture."""
    tour = run(seed, progress=progress)
    print(tour)
    tour.frontier().plot(path=out, ylabel="test accuracy after fine-tuning, %")
    print(
        f"\nThe picture is in {out}. Accuracy is of {fraction(1 / 4)} of the digits, never "
        f"trained on; keep is of the whole net."
    )
