"""The main job in one run: train a real classifier, compress it in seven ways, and compare.

The data are the 1,797 handwritten digits that scikit-learn ships, the network a Flax MLP
64-256-256-10. Every recipe gets the same budget, a fraction of the numbers of the *whole* network,
and the same short fine-tuning; beside them stand magnitude pruning, with its indices counted, and a
plain net that is small from the start. It is a demonstration: the claims are the tables in
tests/benchmarks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxcompress.analysis.frontier import Frontier, Point, fraction
from jaxcompress.analysis.report import flops
from jaxcompress.arrays.base import stored_numbers
from jaxcompress.examples.tour_recipes import WIDTHS, Recipe, plain_width, recipes
from jaxcompress.models.mlp import MLP
from jaxcompress.moments.calibration import calibrate
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.trace import Network, trace
from jaxcompress.training.fit import fit
from jaxcompress.training.losses import Loss, cross_entropy
from jaxcompress.transforms.weights import Unreachable

KEEPS = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
TRAINING_STEPS, FINE_TUNING_STEPS, BATCH = 800, 600, 64

Examples = tuple[np.ndarray, np.ndarray]
"""Digits (n, 64) in [0, 1], and their classes (n,)."""


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


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


@dataclasses.dataclass(frozen=True)
class Tour:
    """All cells of a run, and the dense network's figures."""

    cells: tuple[Cell, ...]
    dense: Cell

    def __str__(self) -> str:
        head = (
            f"{'recipe':24s} {'keep':>5s} {'stored numbers':>14s} {'before':>8s} {'after':>8s} "
            f"{'FLOPs':>9s}"
        )
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

            lines.append(
                f"{name:24s} {fraction(cell.keep):>5s} {cell.numbers:>14,} "
                f"{_percent(cell.before):>8s} {_percent(cell.after):>8s} "
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


def load_digits(seed: int) -> tuple[Examples, Examples]:
    """The digits as (x, y) for training (three quarters) and test, stratified."""
    try:
        from sklearn import datasets, model_selection
    except ImportError:
        raise ImportError(
            "the tour's digits come with scikit-learn: pip install 'jaxcompress[demo]'"
        ) from None
    x, y = datasets.load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    train, test = model_selection.train_test_split(
        np.arange(len(x)), test_size=0.25, stratify=y, random_state=seed
    )
    return (x[train], y[train]), (x[test], y[test])


def prune_magnitude(params: PyTree, numbers: float) -> tuple[PyTree, int]:
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


def optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam, its rate decaying to zero by a cosine."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


TRAINING = optimizer(2e-3, TRAINING_STEPS)
FINE_TUNING = optimizer(5e-3, FINE_TUNING_STEPS)


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A trained dense network, with the data and the settings that all cells share.

    Attributes:
        seed: of the split of the data, the initial weights and the order of the examples.
        train: the training set.
        test: the test set.
        net: the traced network.
        loss: its loss.
        params: its trained parameters.
    """

    seed: int
    train: Examples
    test: Examples
    net: Network
    loss: Loss
    params: PyTree

    @classmethod
    def of(cls, seed: int) -> Experiment:
        """Load the data and train the dense network."""
        train, test = load_digits(seed)
        example = train[0][:1]
        params = initial_params(WIDTHS, seed, example)
        # the module has fixed widths; the traced network runs at those of the given parameters
        net = trace(lambda params, x: MLP(WIDTHS).apply({"params": params}, x), params, example)
        untrained = cls(seed, train, test, net, cross_entropy(net), params)
        return dataclasses.replace(untrained, params=untrained.trained(params))

    def trained(self, params: PyTree) -> PyTree:
        """Parameters after the training that dense networks get."""
        return self._fit(self.loss, params, TRAINING_STEPS, TRAINING)

    def fine_tuned(self, params: PyTree, loss: Loss | None = None) -> PyTree:
        """Parameters after the short training that every cell gets."""
        return self._fit(loss or self.loss, params, FINE_TUNING_STEPS, FINE_TUNING)

    def _fit(
        self, loss: Loss, params: PyTree, steps: int, optimizer: optax.GradientTransformation
    ) -> PyTree:
        return fit(
            loss,
            params,
            self.train,
            steps=steps,
            optimizer=optimizer,
            batch_size=BATCH,
            seed=self.seed,
            progress=False,
        ).params

    def evaluate(self, *candidates: PyTree) -> tuple[float, ...]:
        """FLOPs of one example and each candidate's accuracy; candidates share one structure."""
        x, y = self.test
        program = jax.jit(self.net).lower(candidates[0], x).compile()
        accuracies = (float((program(params, x).argmax(-1) == y).mean()) for params in candidates)
        return flops(program) / len(x), *accuracies

    def dense(self) -> Cell:
        """The figures of the dense network."""
        cost, accuracy = self.evaluate(self.params)
        return Cell("dense 64-256-256-10", 1, self.total, None, accuracy, cost)

    @property
    def total(self) -> int:
        """The numbers that the dense network stores."""
        return int(stored_numbers(self.params))

    def compressed(self, name: str, keep: float, recipe: Recipe, moments: Moments) -> Cell:
        """The dense network compressed by a recipe."""
        try:
            small = recipe(keep)(self.params, moments)
        except Unreachable as error:
            return Cell(name, keep, problem=str(error))
        return self._cell(name, keep, small)

    def pruned_by_magnitude(self, name: str, keep: float) -> Cell:
        """The dense network under a mask of its largest weights."""
        masks, numbers = prune_magnitude(self.params, keep * self.total)

        def masked(params: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf, mask: leaf * mask, params, masks)

        # the mask is inside of the loss, so that masked weights have no gradient
        loss = cross_entropy(lambda params, x: self.net(masked(params), x))
        before = masked(self.params)
        after = masked(self.fine_tuned(before, loss))
        _, accuracy_before, accuracy_after = self.evaluate(before, after)
        # the program multiplies zeros, too: FLOPs are those of a sparse product, if there were one
        products = sum(2 * int(np.sum(mask["kernel"])) for mask in masks.values())
        sparse = products + 3 * sum(WIDTHS)
        return Cell(name, keep, numbers, accuracy_before, accuracy_after, sparse)

    def plain(self, name: str, keep: float) -> Cell:
        """A dense network that is small from the start, trained for equally many steps in all."""
        width = plain_width(keep * self.total)
        params = initial_params((width, width, 10), self.seed, self.train[0][:1])
        return self._cell(name, keep, self.trained(params))

    def _cell(self, name: str, keep: float, params: PyTree) -> Cell:
        """The figures of small parameters, before and after fine-tuning."""
        cost, before, after = self.evaluate(params, self.fine_tuned(params))
        return Cell(name, keep, int(stored_numbers(params)), before, after, cost)

    def makers(self) -> dict[str, Callable[[str, float], Cell]]:
        """For each recipe and baseline, the function of its name and a keep that makes a cell."""
        moments = calibrate(self.net, self.params, [self.train[0]], progress=False)
        table = recipes(self.net, self.params, moments)
        makers: dict[str, Callable[[str, float], Cell]] = {
            name: partial(self.compressed, recipe=recipe, moments=moments)
            for name, recipe in table.items()
        }
        baselines = {"magnitude pruning": self.pruned_by_magnitude, "plain smaller net": self.plain}
        return makers | baselines


def initial_params(widths: tuple[int, ...], seed: int, x: np.ndarray) -> PyTree:
    """Random parameters of a network of given widths."""
    return jax.jit(MLP(widths).init)(jax.random.key(seed), x)["params"]


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
    experiment = Experiment.of(seed)
    makers = experiment.makers()
    chosen = [name for name in makers if names is None or name in names]
    todo = list(itertools.product(chosen, keeps))
    # two at a time: most of a cell is the compilation of its program, on one core
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = pool.map(lambda cell: makers[cell[0]](*cell), todo)
        cells = list(tqdm(results, total=len(todo), desc="tour", disable=not progress, leave=False))
    return Tour(tuple(cells), experiment.dense())


def main(seed: int, out: str | Path, progress: bool) -> None:
    """Run the tour, print its table, save its picture."""
    tour = run(seed, progress=progress)
    print(tour)
    tour.frontier().plot(path=out, ylabel="test accuracy after fine-tuning, %")
    print(
        f"\nThe picture is in {out}. Accuracy is of {fraction(1 / 4)} of the digits, never "
        f"trained on; keep is of the whole net."
    )
