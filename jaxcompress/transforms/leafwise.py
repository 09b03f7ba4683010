"""What every transform of single weights shares: which leaves it takes, how large the result is.

A leaf is read as a plain matrix through its `MatrixAxes`; `keep` becomes a count of numbers, and
the form's `fit` chooses a size within it. Each form is in a file of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.base import CompactArray, is_compact, stored_numbers
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import Selector, join, named_leaves
from jaxcompress.moments.moments import Moments
from jaxcompress.transforms.allocation import Counts
from jaxcompress.transforms.base import (
    InputMetric,
    Scope,
    Transform,
    check_tree,
    map_leaves,
    moments_by_name,
)
from jaxcompress.transforms.budget import Budget, Item, Items, Plan, plan_for
from jaxcompress.transforms.options import PerLeaf, PerPattern
from jaxcompress.transforms.weights import Sweep, Unreachable, read_matrix, squared, why_not

SAMPLED = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Fractions fitted when no closed-form error exists."""
MOST_OPTIONS = 400
"""Sizes of one matrix among which a budget chooses."""

Curve: TypeAlias = tuple[Float[np.ndarray, " options"], Float[np.ndarray, " options"]]
"""Keeps in ascending order, up to 1, and the squared error at each."""


class LeafTransform(Transform):
    """The base of transforms of single weights.

    A subclass is a frozen dataclass with the fields `keep` and `matrix_axes`, and a method `fit`.

    Attributes:
        keep: the fraction of the numbers to store, by pattern, or a budget.
        matrix_axes: the roles of a weight's dimensions, by pattern; None for (in, out).
        uses_moments: whether the fit depends on the metric of the inputs; where it does not,
            moments are ignored.
    """

    keep: PerPattern[float] | Budget
    matrix_axes: PerPattern[MatrixAxes | None]
    uses_moments = True

    def fit(
        self, matrix: Float[np.ndarray, "*lead m n"], numbers: int, metric: InputMetric, name: str
    ) -> CompactArray | None:
        """The compact array for one weight, or None where the form would cost more than dense.

        Args:
            matrix: (..., m, n) float32 or wider.
            numbers: the most numbers to store, for each matrix of a stack.
            metric: (..., m, m) second moments of the inputs, (m,) their diagonal for a table that
                is looked up, or None.
            name: the leaf's path, for seeds and messages.

        Raises:
            Unreachable: when the form needs more numbers; the error has the least count.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is a LeafTransform without a fit: write "
            "fit(self, matrix, numbers, metric, name), which returns a compact array of at most "
            "`numbers` numbers, or None to leave the weight dense"
        )

    @property
    def has_budget(self) -> bool:
        """Whether the keeps are chosen by dividing a budget."""
        return isinstance(self.keep, Budget)

    def unit(self, m: int, n: int) -> int:
        """The numbers that one step in size takes in an m x n matrix."""
        return 1

    def curve(
        self, matrix: Float[np.ndarray, "*lead m n"], metric: InputMetric, name: str
    ) -> Curve:
        """The squared error of the outputs (without a metric, of the weight) at each keep.

        By default it is interpolated between fits at a few keeps.

        Args:
            matrix: as for `fit`.
            metric: as for `fit`.
            name: as for `fit`.

        Returns:
            Keeps in ascending order, up to 1, and the error at each.
        """
        m, n = matrix.shape[-2:]
        keeps, errors = self._sampled_errors(matrix, metric, name)
        # every step in size is an option, or geometrically spaced ones where there are many
        steps = np.arange(1, m * n // self.unit(m, n) + 1)
        if len(steps) > MOST_OPTIONS:
            steps = np.unique(np.geomspace(1, len(steps), MOST_OPTIONS).round())
        grid = np.append(np.ceil(steps * self.unit(m, n)) / (m * n), 1.0)
        grid = np.unique(grid[grid >= keeps[0] * (1 - 1e-9)])
        return grid, np.interp(grid, keeps, np.minimum.accumulate(errors))

    def _sampled_errors(
        self, matrix: Float[np.ndarray, "*lead m n"], metric: InputMetric, name: str
    ) -> Curve:
        """The errors of fits at the keeps in `SAMPLED` that the form reaches, and 0 at 1."""
        m, n = matrix.shape[-2:]
        error_at = {1.0: 0.0}
        for keep in SAMPLED:
            with contextlib.suppress(Unreachable):
                array = self.fit(matrix, max(1, math.floor(keep * m * n)), metric, name)
                if array is not None and array.stored_numbers < matrix.size:
                    gap = matrix - np.asarray(array.materialize(), np.float64)
                    error_at[array.stored_numbers / matrix.size] = squared(gap, metric)
        keeps = sorted(error_at)
        return np.array(keeps), np.array([error_at[keep] for keep in keeps])

    def plan(
        self, params: PyTree, moments: Moments | PyTree = None, pick: Selector | None = None
    ) -> Plan:
        """How a budget is divided among matrices; it prints.

        Args:
            params: as the transform is called with.
            moments: as the transform is called with.
            pick: `(name, leaf) -> bool`, for the leaves to compact; by default all that can be.

        Raises:
            ValueError: for a keep that is no budget, or a total that the matrices cannot reach.
        """
        if not self.has_budget:
            raise ValueError(
                f"plan divides a budget, and {self!r} has none: give it jc.budget(1/4) for its keep"
            )
        check_tree(params)

        def small(plan: Plan) -> PyTree:
            return self.divided(plan)(params, moments)

        items = self.items(params, moments, pick)
        return plan_for(self._budget, [items], float(stored_numbers(params)), small)

    @property
    def _budget(self) -> Budget:
        assert isinstance(self.keep, Budget)
        return self.keep

    def items(
        self, params: PyTree, moments: Moments | PyTree, pick: Selector | None = None
    ) -> Items:
        """The matrices among which a budget is divided, with the keeps that their form has."""
        if self._budget.of != "numbers":
            raise ValueError(
                f"{self.keep}: matrices are divided by their numbers, "
                f"jc.budget({self._budget.total:g})"
            )
        leaves = self._compactable(params, pick)
        curves, powers = self._curves(leaves, moments)
        known = moments.gain_by_leaf() if isinstance(moments, Moments) else {}
        # a matrix whose gain was not measured is given the median effect on the outputs
        measured = [known[name] * power for name, power in powers.items() if name in known]
        typical = float(np.median(measured or [1.0]))
        # a matrix whose results are zero has nothing to lose
        gains = {name: typical / power if power > 0 else 0.0 for name, power in powers.items()}
        gains |= known
        rows = tuple(
            matrix_item(name, leaf, curves[name], gains[name]) for name, leaf in leaves.items()
        )
        return Items(
            rows=rows,
            counts=Counts([item.sizes for item in rows]),
            stored=float(sum(map(stored_numbers, leaves.values()))),
            leaves=frozenset(leaves),
        )

    def _compactable(self, params: PyTree, pick: Selector | None) -> dict[str, PyTree]:
        """The leaves that are picked and can be compacted, by name."""
        axes, leaves = PerLeaf(self.matrix_axes, "matrix_axes"), {}
        for name, leaf in named_leaves(params):
            picked = pick is None or pick(name, leaf)
            if picked and why_not(leaf, axes.get(name)) is None:
                leaves[name] = leaf
        if not leaves:
            names = ", ".join(name for name, _ in named_leaves(params))
            raise ValueError(
                f"{self.keep}: no leaf of the tree can be compacted; there are: {names}"
            )
        return leaves

    def _curves(
        self, leaves: dict[str, PyTree], moments: Moments | PyTree
    ) -> tuple[dict[str, Curve], dict[str, float]]:
        """The error curve of each leaf, and its squared norm in the metric of its inputs."""
        axes, metrics = PerLeaf(self.matrix_axes, "matrix_axes"), moments_by_name(moments)
        curves, powers = {}, {}
        for name, leaf in tqdm(leaves.items(), desc="plan", leave=False, disable=None):
            matrix, given, _ = read_matrix(name, leaf, metrics.get(name), axes.get(name))
            metric = given if self.uses_moments else None
            curves[name] = self.curve(matrix, metric, name)
            powers[name] = squared(matrix, metric)
        return curves, powers

    def divided(self, plan: Plan) -> LeafTransform:
        """The transform with the keeps of a plan."""
        return dataclasses.replace(self, keep=tuple(plan.keeps.items()))  # type: ignore[type-var]

    def _apply(self, params: PyTree, moments: Moments | PyTree, scope: Scope) -> PyTree:
        if self.has_budget:
            if scope.prefix:
                raise TypeError(
                    f"{self!r} divides a budget among several leaves: use it alone or in jc.at, "
                    "with top-level leaves"
                )
            return self.divided(self.plan(params, moments))._apply(params, moments, scope)
        assert not isinstance(self.keep, Budget)
        keeps, axes = PerLeaf(self.keep, "keep"), PerLeaf(self.matrix_axes, "matrix_axes")
        sweep = Sweep()

        def visit(name: str, leaf: PyTree, metric: ArrayLike | None) -> PyTree:
            path = join(scope.prefix, name)
            keep, roles = keeps.get(path), axes.get(path)
            problem = why_not(leaf, roles) or ("no keep is given for it" if keep is None else None)
            if keep is not None and problem is None:
                with sweep.leaf(by_name=scope.by_name):
                    return sweep.compacted(self._compact_leaf(path, leaf, metric, keep, roles))
                return leaf
            if scope.by_name:
                raise TypeError(
                    f"{path or 'the leaf'} was picked by name but cannot be compacted: {problem}"
                )
            return leaf

        result = map_leaves(visit, params, moments)
        sweep.finish()
        if not scope.prefix:  # what picks leaves below a prefix checks the patterns of them all
            self.check_patterns([name for name, _ in named_leaves(params)])
        return result

    def check_patterns(self, paths: Sequence[str]) -> None:
        """Refuse keeps and roles by pattern of which one decides for none of some leaves."""
        if not isinstance(self.keep, Budget):
            PerLeaf(self.keep, "keep").check_keys(paths)
        PerLeaf(self.matrix_axes, "matrix_axes").check_keys(paths)

    def _compact_leaf(
        self,
        path: str,
        leaf: PyTree,
        metric: ArrayLike | None,
        keep: float,
        roles: MatrixAxes | None,
    ) -> PyTree:
        """One weight in the transform's form; dense where the form would cost more than dense."""
        where = path or "the leaf"
        if roles is not None and not self.uses_moments:
            metric = None  # moments are of the network's roles, and these may be others
        matrix, given, axes = read_matrix(where, leaf, metric, roles)
        checked = given if self.uses_moments else None
        try:
            array = self._fit_within(matrix, keep, checked, path)
        except Unreachable as error:
            raise error.of_matrix(where, *matrix.shape[-2:]) from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if array is None:
            return leaf
        # the fit is in float32 or wider; the stored numbers have the leaf's own dtype
        dtype, dims = jnp.result_type(leaf), tuple(leaf.shape)[len(leaf.shape) - axes.ndim :]
        laid_out = dataclasses.replace(array, matrix_axes=axes, dims=dims)
        return jax.tree.map(lambda child: child.astype(dtype), laid_out)

    def _fit_within(
        self, matrix: Float[np.ndarray, "*lead m n"], keep: float, metric: InputMetric, path: str
    ) -> CompactArray | None:
        """The fit at a keep, which is rounded down to whole numbers."""
        m, n = matrix.shape[-2:]
        # 1/3 of 9 numbers is 3, though the product may round to 2.999
        numbers = math.floor(keep * m * n * (1 + 1e-9))
        if numbers < 1:
            raise Unreachable(1, f"keep={keep:g} of {m} x {n} is less than one number")
        return self.fit(matrix, numbers, metric, path)


def matrix_item(name: str, leaf: PyTree, curve: Curve, gain: float) -> Item:
    """One matrix as an item of a budget; its sizes are numbers, its error that of the outputs."""
    keeps, errors = curve
    dense = stored_numbers(leaf.materialize() if is_compact(leaf) else leaf)
    return Item(
        key=name,
        errors=gain * errors,
        keeps=keeps,
        sizes=keeps * dense,
        labels=[" x ".join(map(str, leaf.shape))] * len(keeps),
        option=functools.partial(largest_below, keeps),
    )


def largest_below(keeps: Float[np.ndarray, " options"], keep: float) -> int:
    """The index of the largest of ascending keeps that is at most `keep`, or the first."""
    return max(0, int(np.searchsorted(keeps, keep * (1 + 1e-9), "right")) - 1)
