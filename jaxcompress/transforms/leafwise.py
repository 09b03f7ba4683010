"""What every transform of single weights shares: which leaves it takes, how large the result may be, what is refused.

A leaf is read as a plain matrix through its `MatrixAxes`; `keep` becomes a number of numbers, and the form's `fit`
chooses a size within it. The forms themselves are in forms.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from jaxcompress.arrays.base import CompactArray, is_compact, stored_numbers
from jaxcompress.arrays.layout import MATRIX, MatrixAxes
from jaxcompress.arrays.paths import Selector, join, matches, named_leaves
from jaxcompress.arrays.projection import weigh
from jaxcompress.moments.moments import Moments
from jaxcompress.transforms.allocation import Counts
from jaxcompress.transforms.base import (
    Scope,
    Transform,
    called,
    check_tree,
    map_leaves,
    moments_by_name,
)
from jaxcompress.transforms.budget import Budget, Item, Items, Plan, plan_for

SAMPLED = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Keeps at which a form without a formula is fitted to know its error."""

Keep = float | Mapping[str, float] | Budget


class LeafTransform(Transform):
    """The base of transforms of single weights; a subclass is a frozen dataclass with `keep`, `matrix_axes` and `fit`."""

    keep: Any
    matrix_axes: Any
    uses_moments = True
    """Whether the fit depends on the metric of the inputs; where it does not, moments are not looked at."""

    def fit(
        self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str
    ) -> CompactArray | None:
        """The compact array for one weight, or None to leave it dense where the form would cost more.

        Args:
            matrix: (..., m, n) float32 or wider.
            numbers: the most numbers to store, for each matrix of a stack.
            metric: (..., m, m) second moments of the inputs, (m,) their diagonal for a table that is looked up, or None.
            name: the leaf's path, for seeds and messages.

        Raises:
            Unreachable: when the form needs more numbers; it says how many.
        """
        raise NotImplementedError

    def unit(self, m: int, n: int) -> int:
        """The numbers that one step in size takes in an m x n matrix."""
        return 1

    def curve(
        self, matrix: np.ndarray, metric: np.ndarray | None, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keeps in ascending order, up to 1, and the squared error of the outputs (or of the weight) at each.

        By default from fits at a few keeps, interpolated between them.
        """
        m, n = matrix.shape[-2:]
        known = {1.0: 0.0}
        for keep in SAMPLED:
            with contextlib.suppress(Unreachable):
                array = self.fit(matrix, max(1, math.floor(keep * m * n)), metric, name)
                if array is not None and array.stored_numbers < math.prod(matrix.shape):
                    gap = matrix - np.asarray(array.materialize(), np.float64)
                    known[array.stored_numbers / math.prod(matrix.shape)] = squared(gap, metric)
        keeps, errors = (np.array(each) for each in zip(*sorted(known.items()), strict=True))
        steps = np.arange(1, m * n // self.unit(m, n) + 1)
        if len(steps) > 400:
            steps = np.unique(np.geomspace(1, len(steps), 400).round())
        grid = np.append(np.ceil(steps * self.unit(m, n)) / (m * n), 1.0)
        grid = np.unique(grid[(grid >= keeps[0] * (1 - 1e-9)) & (grid <= 1)])
        return grid, np.interp(grid, keeps, np.minimum.accumulate(errors))

    def plan(self, params: Any, moments: Any = None, pick: Selector | None = None) -> Plan:
        """How a budget is divided among matrices; it prints.

        Args:
            params, moments: as the transform is called with.
            pick: `(name, leaf) -> bool`, for those that are to be compacted; all that can be by default.

        Raises:
            ValueError: for a keep that is no budget, a total that the matrices cannot reach.
        """
        if not isinstance(self.keep, Budget):
            raise ValueError(
                f"plan divides a budget, and {self!r} has none: give it jc.budget(1/4) for its keep"
            )
        check_tree(params)
        small = lambda plan: self.divided(plan)(params, moments)
        return plan_for(
            self.keep, [self.items(params, moments, pick)], float(stored_numbers(params)), small
        )

    def items(self, params: Any, moments: Any, pick: Selector | None = None) -> Items:
        """What a budget is divided among: the matrices, by the keeps that their form has."""
        if self.keep.of != "numbers":
            raise ValueError(
                f"{self.keep}: matrices are divided by their numbers, jc.budget({self.keep.total:g})"
            )
        leaves = {
            name: leaf for name, leaf in named_leaves(params) if pick is None or pick(name, leaf)
        }
        axes = PerLeaf(self.matrix_axes, "matrix_axes")
        leaves = {
            name: leaf for name, leaf in leaves.items() if why_not(leaf, axes.get(name)) is None
        }
        if not leaves:
            there = ", ".join(name for name, _ in named_leaves(params))
            raise ValueError(
                f"{self.keep}: no leaf of the tree can be compacted; there are: {there}"
            )
        curves, powers = {}, {}
        metrics = moments_by_name(moments)
        for name, leaf in tqdm(leaves.items(), desc="plan", leave=False, disable=None):
            matrix, metric, _ = read_matrix(self, name, leaf, metrics.get(name), axes.get(name))
            curves[name] = self.curve(matrix, metric, name)
            powers[name] = max(squared(matrix, metric), 1e-300)
        known = moments.gain_by_leaf() if isinstance(moments, Moments) else {}
        measured = [known[name] * power for name, power in powers.items() if name in known]
        typical = float(np.median(measured or [1.0]))
        gains = {name: typical / power for name, power in powers.items()} | known
        rows = tuple(
            matrix_item(name, leaf, curves[name], gains[name]) for name, leaf in leaves.items()
        )
        return Items(
            rows=rows,
            counts=Counts([item.sizes for item in rows]),
            stored=float(sum(map(stored_numbers, leaves.values()))),
            leaves=frozenset(leaves),
        )

    def divided(self, plan: Plan) -> LeafTransform:
        """The transform with the keeps of a plan."""
        return dataclasses.replace(self, keep=tuple(plan.keeps.items()))  # type: ignore[type-var]

    def _apply(self, params: Any, moments: Any, scope: Scope) -> Any:
        if isinstance(self.keep, Budget):
            if scope.prefix:
                raise TypeError(
                    f"{self!r} divides a budget among several leaves: use it alone or in jc.at, with top-level leaves"
                )
            return self.divided(self.plan(params, moments))._apply(params, moments, scope)
        keeps, axes = PerLeaf(self.keep, "keep"), PerLeaf(self.matrix_axes, "matrix_axes")

        def visit(name: str, leaf: Any, metric: Any) -> Any:
            path = join(scope.prefix, name)
            keep, roles = keeps.get(path), axes.get(path)
            problem = why_not(leaf, roles) or ("no keep is given for it" if keep is None else None)
            if keep is not None and problem is None:
                return compact_leaf(self, path, leaf, metric, keep, roles)
            if scope.by_name:
                raise TypeError(
                    f"{path or 'the leaf'} was picked by name but cannot be compacted: {problem}"
                )
            return leaf

        result = map_leaves(visit, params, moments)
        for option in (keeps, axes):
            option.check_used(
                [join(scope.prefix, name) for name, _ in named_leaves(params)],
                whole=not scope.prefix,
            )
        return result

    def __repr__(self) -> str:
        return called(self)


def matrix_item(name: str, leaf: Any, curve: tuple[np.ndarray, np.ndarray], gain: float) -> Item:
    """One matrix as an item of a budget: its sizes are numbers, its error is scaled to that of the outputs."""
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


def largest_below(keeps: np.ndarray, keep: float) -> int:
    """The index of the largest of ascending keeps that is at most `keep`, or the first."""
    return max(0, int(np.searchsorted(keeps, keep * (1 + 1e-9), "right")) - 1)


class Unreachable(ValueError):
    """A form cannot be stored in as few numbers as asked: `least` is what it can reach."""

    def __init__(self, least: float, why: str):
        super().__init__(why)
        self.least = least


class PerLeaf:
    """An option that is one value for all leaves or a mapping from patterns, the first match winning."""

    def __init__(self, option: Any, what: str):
        self.what = what
        self.rules = option if isinstance(option, tuple) else (("**", option),)
        self.default = not isinstance(option, tuple)
        self.used: set[str] = set()

    def get(self, path: str) -> Any:
        for pattern, value in self.rules:
            if self.default or pattern == path or matches(pattern, path):
                self.used.add(pattern)
                return value
        return None

    def check_keys(self, keys: list[str]) -> None:
        """Refuse a pattern that matches none of the keys."""
        for key in keys:
            self.get(key)
        self.check_used(keys, whole=True)

    def check_used(self, paths: list[str], *, whole: bool) -> None:
        unused = [pattern for pattern, _ in self.rules if pattern not in self.used]
        if unused and whole and not self.default:
            raise ValueError(
                f"{self.what}: the patterns {unused} match no leaf; there are: {', '.join(paths)}"
            )


def why_not(leaf: Any, axes: MatrixAxes | None) -> str | None:
    """Why a leaf cannot be compacted, in words; None when it can."""
    if is_compact(leaf):
        return None
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "ndim"):
        return f"it is a {type(leaf).__name__}, not an array"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"it holds {leaf.dtype}, and only float weights are compacted: leave it out of the pattern"
    if axes is None and leaf.ndim != 2:
        return f"it has {leaf.ndim} dimensions {leaf.shape} of unknown roles: say which with matrix_axes=jc.MatrixAxes(inputs, outputs)"
    return "it has no entries" if leaf.size == 0 else None


def compact_leaf(
    transform: LeafTransform,
    path: str,
    leaf: Any,
    metric: Any,
    keep: float,
    axes: MatrixAxes | None,
) -> Any:
    """One weight in a transform's form; left dense where the form at full resolution would cost more than dense."""
    where = path or "the leaf"
    matrix, metric, axes = read_matrix(transform, where, leaf, metric, axes)
    m, n = matrix.shape[-2:]
    numbers = math.floor(keep * m * n * (1 + 1e-9))
    try:
        if numbers < 1:
            raise Unreachable(1, f"keep={keep:g} of {m} x {n} is less than one number")
        array = transform.fit(matrix, numbers, metric, path)
    except Unreachable as error:
        least = math.ceil(error.least / (m * n) * 1e6) / 1e6
        way_out = (
            f"the least keep this form reaches on {m} x {n} is {least:g}"
            if least <= 1
            else f"it cannot make {m} x {n} smaller"
        )
        raise Unreachable(error.least, f"{where}: {error}; {way_out}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if array is None:
        return leaf
    dtype, dims = jnp.result_type(leaf), tuple(leaf.shape)[len(leaf.shape) - axes.ndim :]
    return jax.tree.map(
        lambda child: child.astype(dtype), dataclasses.replace(array, matrix_axes=axes, dims=dims)
    )


def read_matrix(
    transform: LeafTransform, where: str, leaf: Any, metric: Any, axes: MatrixAxes | None
) -> tuple[np.ndarray, np.ndarray | None, MatrixAxes]:
    """One weight as plain matrices (..., m, n), the metric of its inputs, and its axes."""
    roles: MatrixAxes = axes or (leaf.matrix_axes if is_compact(leaf) else MATRIX)
    dense = leaf.materialize() if is_compact(leaf) else leaf
    try:
        axes = roles.resolve(dense.ndim)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    values = np.asarray(dense)
    dtype = jnp.asarray(dense).dtype
    if not np.isfinite(values.astype(np.float32)).all():
        raise ValueError(
            f"{where} contains NaN or infinity: repair or retrain it before compressing"
        )
    matrix = axes.to_matrix(values.astype(np.float32) if dtype.itemsize < 4 else values)
    return matrix, check_metric(where, metric, matrix) if transform.uses_moments else None, axes


def squared(error: np.ndarray, metric: np.ndarray | None) -> float:
    """The squared norm of a weight's error in the metric of its inputs, summed over a stack."""
    error = np.asarray(error, np.float64)
    return float(np.sum(error * (error if metric is None else weigh(metric, error))))


def check_metric(where: str, metric: Any, matrix: np.ndarray) -> np.ndarray | None:
    """Second moments that fit a matrix, as float64."""
    if metric is None:
        return None
    metric = np.asarray(metric, np.float64)
    m = matrix.shape[-2]
    if metric.shape != (m,) and (
        metric.shape[-2:] != (m, m) or metric.shape[:-2] not in ((), matrix.shape[:-2])
    ):
        raise ValueError(
            f"{where}: its moments have shape {metric.shape}, expected {(m, m)}: jc.second_moments of the layer's "
            f"inputs, or how often each of {m} rows is looked up; a transform that changed the width has to hand on its own moments"
        )
    if not np.isfinite(metric).all():
        raise ValueError(
            f"{where}: its moments contain NaN or infinity: compute them from finite inputs"
        )
    return metric


def check_keep(keep: Any) -> Any:
    """A keep, or a mapping of keeps as a tuple of pairs."""
    if isinstance(keep, Budget):
        return keep
    if isinstance(keep, Mapping):
        return tuple((pattern, check_keep(value)) for pattern, value in keep.items())
    if not isinstance(keep, (int, float)) or isinstance(keep, bool) or not 0 < keep <= 1:
        raise ValueError(
            f"keep must be in (0, 1], the fraction of the numbers to keep; got {keep!r}: for eight times smaller, keep=1/8"
        )
    return float(keep)


def check_matrix_axes(axes: Any) -> Any:
    """MatrixAxes, None, or a mapping of them as a tuple of pairs."""
    if isinstance(axes, Mapping):
        return tuple((pattern, check_matrix_axes(value)) for pattern, value in axes.items())
    if axes is not None and not isinstance(axes, MatrixAxes):
        raise TypeError(
            f"matrix_axes must be a jc.MatrixAxes or a mapping from patterns to them, got {axes!r}"
        )
    return axes
