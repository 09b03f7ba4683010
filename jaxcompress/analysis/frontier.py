"""The measured curve of quality against stored numbers, one line a recipe.

Every recipe is applied at every keep and its result is evaluated; keeps that a recipe cannot reach
are noted. Costs a fit and an evaluation for each point.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.checks import (
    checked,
    finite_number,
    function,
    iterable,
    mapping,
    number,
    shown,
)
from jaxcompress.moments.moments import Moments
from jaxcompress.plotting import new_axes, save
from jaxcompress.tables import format_table, html_table
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.weights import Unreachable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP*Xhd<>"


@dataclasses.dataclass(frozen=True)
class Point:
    """One recipe at one keep.

    Attributes:
        recipe: its name.
        keep: the fraction asked for.
        numbers: stored numbers, or None where the recipe cannot reach the keep.
        quality: what `evaluate` gave, or None likewise.
        problem: why there is no quality.
    """

    recipe: str
    keep: float
    numbers: int | None = None
    quality: float | None = None
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Frontier:
    """Points of a quality curve; prints as a table, shows as HTML in a notebook, and draws itself.

    Attributes:
        points: in the order of the recipes, then of the keeps.
        total: the numbers stored by the uncompressed parameters.
        baseline: their quality.
    """

    points: tuple[Point, ...]
    total: int
    baseline: float

    @property
    def recipes(self) -> tuple[str, ...]:
        """The recipes' names, in order."""
        return tuple(dict.fromkeys(point.recipe for point in self.points))

    def _table(self) -> tuple[list[str], list[list[str]]]:
        keeps = sorted({point.keep for point in self.points}, reverse=True)
        cells = {(point.recipe, point.keep): _cell(point) for point in self.points}
        headers = ["recipe", *(f"keep {fraction(keep)}" for keep in keeps)]
        rows = [
            [recipe, *(cells.get((recipe, keep), "-") for keep in keeps)] for recipe in self.recipes
        ]
        return headers, rows

    def __str__(self) -> str:
        baseline = f"uncompressed: {self.baseline:.4g} ({self.total:,})"
        problems = [
            f"{point.recipe} at keep {fraction(point.keep)}: {point.problem}"
            for point in self.points
            if point.problem
        ]
        note = f"{baseline}; quality (stored numbers) in each cell"
        return "\n".join([format_table(*self._table()), note, *problems])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(*self._table())

    def plot(
        self,
        ax: Axes | None = None,
        *,
        path: str | Path | None = None,
        ylabel: str = "quality",
    ) -> Axes:
        """Draw quality against stored numbers, a line for each recipe.

        Args:
            ax: matplotlib axes to draw on; new ones by default.
            path: also save the picture there.
            ylabel: what quality is.

        Returns:
            The axes.
        """
        ax = new_axes(7, 4.5) if ax is None else ax
        for index, recipe in enumerate(self.recipes):
            numbers, qualities = self._line(recipe)
            if numbers:
                marker = MARKERS[index % len(MARKERS)]
                style = {"marker": marker, "markersize": 4, "linewidth": 1.2}
                ax.plot(numbers, qualities, label=recipe, **style)
        label = f"uncompressed ({self.total:,})"
        ax.axhline(self.baseline, color="gray", linewidth=0.8, linestyle=":", label=label)
        ax.set(xscale="log", xlabel="stored numbers", ylabel=ylabel)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
        save(ax.figure, path)
        return ax

    def _line(self, recipe: str) -> tuple[list[int], list[float]]:
        """One recipe's stored numbers, ascending, and their qualities."""
        line: list[tuple[int, float]] = []
        for point in self.points:
            if point.recipe == recipe and point.numbers and point.quality is not None:
                line.append((point.numbers, point.quality))
        line.sort()
        return [numbers for numbers, _ in line], [quality for _, quality in line]


def _cell(point: Point) -> str:
    return "-" if point.quality is None else f"{point.quality:.4g} ({point.numbers:,})"


@checked(recipes=mapping, evaluate=function("evaluate(params) -> quality"), keeps=iterable)
def frontier(
    recipes: Mapping[str, Callable[[float], Transform]],
    params: PyTree,
    evaluate: Callable[[PyTree], float],
    keeps: Sequence[float],
    *,
    moments: Moments | PyTree = None,
    progress: bool = True,
) -> Frontier:
    """Measure the curve of quality against stored numbers.

    Args:
        recipes: for each name a function from a keep to a transform, such as `jc.hashed`.
        params: the uncompressed tree.
        evaluate: the quality of a tree, possibly after fine-tuning it; higher is better.
        keeps: the fractions to try.
        moments: second moments of the leaves' inputs.
        progress: show a progress bar.

    Returns:
        A `Frontier`: print it, or call `.plot()`.

    Raises:
        TypeError: for a recipe that does not give a transform.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> w = jax.random.normal(jax.random.key(0), (32, 32))
        >>> def quality(p):
        ...     return -float(jnp.linalg.norm(jc.materialize(p) - w))
        >>> forms = {"hashed": jc.hashed, "factored": jc.factored}
        >>> curve = jc.analysis.frontier(forms, w, quality, [1/2, 1/64], progress=False)
        >>> [(p.recipe, p.numbers) for p in curve.points]
        [('hashed', 512), ('hashed', 16), ('factored', 496), ('factored', None)]
    """
    for name, recipe in recipes.items():
        if not callable(recipe) or isinstance(recipe, Transform):
            raise TypeError(
                f"frontier: recipes[{name!r}] must be a function from a keep to a transform, such "
                f"as jc.hashed, got {shown(recipe)}"
            )
    keeps = [number("(0, 1]", "a fraction to keep")("frontier: keeps", keep) for keep in keeps]
    if not keeps:
        raise ValueError("frontier: keeps is empty: give at least one fraction, such as 1/4")
    cells = list(itertools.product(recipes, keeps))
    points = [
        _measure(name, recipes[name], keep, params, evaluate, moments)
        for name, keep in tqdm(cells, desc="frontier", disable=not progress, leave=False)
    ]
    baseline = finite_number("frontier: evaluate", evaluate(params))
    return Frontier(tuple(points), stored_numbers(params), baseline)


def _measure(
    name: str,
    recipe: Callable[[float], Transform],
    keep: float,
    params: PyTree,
    evaluate: Callable[[PyTree], float],
    moments: Moments | PyTree,
) -> Point:
    """One recipe at one keep."""
    try:
        transform = recipe(keep)
        if not isinstance(transform, Transform):
            raise TypeError(
                f"frontier: the recipe {name!r} gave {transform!r} for keep={keep:g}, "
                "expected a transform"
            )
        small = transform(params, moments)
    except Unreachable as error:
        return Point(name, keep, problem=str(error))
    quality = finite_number("frontier: evaluate", evaluate(small))
    return Point(name, keep, stored_numbers(small), quality)


def fraction(keep: float) -> str:
    """A keep as a fraction of small numbers, such as 1/8, or else as a decimal."""
    near = Fraction(keep).limit_denominator(1024)
    return str(near) if abs(near - keep) < 1e-9 else f"{keep:.3g}"
