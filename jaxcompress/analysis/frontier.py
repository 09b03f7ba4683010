"""The measured curve of quality against stored numbers, one line a recipe.

Every recipe is applied at every keep, the result is evaluated, and what could not be stored in so little is noted.
Costs a fit and an evaluation for each point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.weights import Unreachable


@dataclasses.dataclass(frozen=True)
class Point:
    """One recipe at one keep.

    Attributes:
        recipe: its name.
        keep: what was asked.
        numbers: what is stored, or None where the recipe cannot keep so little.
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

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        keeps = sorted({point.keep for point in self.points}, reverse=True)
        cells = {(point.recipe, point.keep): point for point in self.points}
        head = ["recipe", *(f"keep {fraction(keep)}" for keep in keeps)]
        rows = []
        for recipe in self.recipes:
            points = [cells.get((recipe, keep)) for keep in keeps]
            rows.append(
                [
                    recipe,
                    *(
                        "-"
                        if p is None or p.quality is None
                        else f"{p.quality:.4g} ({p.numbers:,})"
                        for p in points
                    ),
                ]
            )
        return head, rows

    def __str__(self) -> str:
        head, rows = self._rows()
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in [head, *rows]
        ]
        notes = [
            f"{p.recipe} at keep {fraction(p.keep)}: {p.problem}" for p in self.points if p.problem
        ]
        last = f"uncompressed: {self.baseline:.4g} ({self.total:,}); quality (stored numbers) in each cell"
        return "\n".join([*lines, last, *notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, rows = self._rows()
        line = lambda row, tag: "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in row) + "</tr>"
        return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"

    def plot(
        self, ax: Any = None, *, path: str | Path | None = None, ylabel: str = "quality"
    ) -> Any:
        """Draw quality against stored numbers, a line for each recipe.

        Args:
            ax: matplotlib axes to draw on; new ones by default.
            path: also save the picture there.
            ylabel: what quality is.

        Returns:
            The axes.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(
                "Frontier.plot draws with matplotlib: pip install 'jaxcompress[plot]'"
            ) from None
        if ax is None:
            ax = Figure(figsize=(7, 4.5), layout="constrained").subplots()
        markers = "osD^vP*Xhd<>"
        for index, recipe in enumerate(self.recipes):
            points = sorted(
                (p.numbers, p.quality)
                for p in self.points
                if p.recipe == recipe and p.numbers and p.quality is not None
            )
            if points:
                ax.plot(
                    *zip(*points),
                    marker=markers[index % len(markers)],
                    markersize=4,
                    linewidth=1.2,
                    label=recipe,
                )
        ax.axhline(
            self.baseline,
            color="gray",
            linewidth=0.8,
            linestyle=":",
            label=f"uncompressed ({self.total:,})",
        )
        ax.set(xscale="log", xlabel="stored numbers", ylabel=ylabel)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
        if path is not None:
            ax.figure.savefig(path, dpi=150)
        return ax


def frontier(
    recipes: Mapping[str, Callable[[float], Transform]],
    params: Any,
    evaluate: Callable[[Any], float],
    keeps: Sequence[float],
    *,
    moments: Any = None,
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
        >>> error = lambda p: -float(jnp.linalg.norm(jc.materialize(p) - w))
        >>> curve = jc.analysis.frontier({"hashed": jc.hashed, "factored": jc.factored}, w, error, [1/2, 1/64], progress=False)
        >>> [(p.recipe, p.numbers) for p in curve.points]
        [('hashed', 512), ('hashed', 16), ('factored', 496), ('factored', None)]
    """
    points = []
    cells = [(name, keep) for name in recipes for keep in keeps]
    for name, keep in tqdm(cells, desc="frontier", disable=not progress, leave=False):
        try:
            transform = recipes[name](keep)
            if not isinstance(transform, Transform):
                raise TypeError(
                    f"frontier: the recipe {name!r} gave {transform!r} for keep={keep:g}, expected a transform"
                )
            small = transform(params, moments)
        except Unreachable as error:
            points.append(Point(name, keep, problem=str(error)))
            continue
        points.append(Point(name, keep, stored_numbers(small), float(evaluate(small))))
    return Frontier(tuple(points), stored_numbers(params), float(evaluate(params)))


def fraction(keep: float) -> str:
    """A keep as people write it: 1/8."""
    near = Fraction(keep).limit_denominator(1024)
    return str(near) if abs(near - keep) < 1e-9 else f"{keep:.3g}"
