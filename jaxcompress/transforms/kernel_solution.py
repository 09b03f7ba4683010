"""The least-squares solution of kernels towards the results of an original network.

With x' the inputs in a smaller network, x those in the original and W its kernel, the solution
minimises `|x' W' - x W|^2 + ridge |W' - present|^2`, each input in its own unit. Kernels of one
problem lie below each other in W'. Costs O(m^3) for m inputs, on the host.

Source: Izenman 1975 (reduced-rank regression) for kernels of low rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, PyTree

from jaxcompress.arrays.base import is_compact, materialize
from jaxcompress.arrays.factored import FactoredArray
from jaxcompress.arrays.layout import from_rows
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.arrays.projection import best_factor, ridge_solve
from jaxcompress.moments.cross_moments import CrossMoments
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.axes import Axis, Site, Structure
from jaxcompress.networks.layout import Layout
from jaxcompress.networks.maps import AxisMap, apply_map
from jaxcompress.networks.trace import Network
from jaxcompress.transforms.network_state import NetworkState
from jaxcompress.transforms.problems import Problem
from jaxcompress.transforms.selection import RIDGE, SHRINK


@dataclasses.dataclass(frozen=True, eq=False)
class Original:
    """The network with which moments were gathered, and the maps of its axes since then.

    Attributes:
        structure: the network's axes.
        params: its parameters.
        leaves: the same by name.
        sizes: of its axes, where they differ from the traced ones.
        changes: the maps, in order.
    """

    structure: Structure
    params: PyTree
    leaves: Mapping[str, PyTree]
    sizes: Mapping[str, int]
    changes: tuple[tuple[Axis, AxisMap], ...]

    @classmethod
    def of(cls, net: Network, moments: Moments) -> Original:
        """The network that moments refer to."""
        params = moments.reference
        leaves = dict(named_leaves(params))
        return cls(net.structure, params, leaves, net.sizes(params), moments.changes)

    def target(self, name: str, inputs: tuple[int, ...] = ()) -> np.ndarray:
        """A leaf with all maps applied, except along the dimensions that are its inputs."""
        whole = np.asarray(materialize(self.leaves[name]), np.float64)
        leaves, sizes = {name: whole}, dict(self.sizes)
        layouts = list(self.structure.layouts[name])
        for place in inputs:
            layouts[place] = Layout("", leaves[name].shape[place])
        structure = dataclasses.replace(self.structure, layouts={name: tuple(layouts)})
        for axis, change in self.changes:
            apply_map(structure, leaves, sizes, axis, change)
            sizes[axis.key] = change.size
        return leaves[name]


def is_of_low_rank(state: NetworkState, site: Site, name: str, original: Original) -> bool:
    """Whether a kernel is factored along what a site contracts, and was dense in the original."""
    leaf = state.given[name]
    if not isinstance(leaf, FactoredArray) or leaf.stack_shape or is_compact(original.leaves[name]):
        return False
    order = site.inputs.get(name, ())
    order += tuple(place for place in range(leaf.ndim) if place not in order)
    axes = leaf.matrix_axes.inputs + leaf.matrix_axes.outputs
    return axes == tuple(place - leaf.ndim for place in order)


@dataclasses.dataclass(frozen=True)
class Solution:
    """The least-squares solution of one problem.

    Attributes:
        kernels: dense kernels by name.
        low_rank: factored kernels by name.
        shifts: of biases from those of the original, by name.
    """

    kernels: Mapping[str, np.ndarray]
    low_rank: Mapping[str, FactoredArray]
    shifts: Mapping[str, np.ndarray]


def solve(
    state: NetworkState, problem: Problem, original: Original, paired: CrossMoments
) -> Solution:
    """Solve a problem's kernels and bias towards the original's results."""
    covariance, cross = paired.cov, paired.cross
    if not problem.bias:  # no bias absorbs the mean
        covariance = covariance + np.outer(paired.after, paired.after)
        cross = cross + np.outer(paired.after, paired.before)
    targets = {
        name: original.target(name, order)
        for kernel in problem.kernels
        for name, order in kernel.inputs.items()
    }
    full = np.vstack([kernel.matrix(targets, problem.width) for kernel in problem.kernels])
    # in the units of the inputs, since those that do not vary in the data keep their prior
    ridge = RIDGE + SHRINK * len(covariance) / max(paired.count, 1.0)
    system = System(state, problem, covariance, cross @ full, ridge)
    solved, low_rank = system.solution()
    shift = problem.sign * (paired.before @ full - paired.after @ solved)
    return Solution(
        system.leaves(solved),
        low_rank,
        {name: shift[columns] for name, columns in problem.bias.items()},
    )


class System:
    """The normal equations of one problem, all kernels below each other.

    Attributes:
        rows: of each kernel.
        present: the kernels as they are.
    """

    def __init__(
        self,
        state: NetworkState,
        problem: Problem,
        covariance: Float[np.ndarray, "m m"],
        wanted: Float[np.ndarray, "m n"],
        ridge: float,
    ):
        self.state, self.problem = state, problem
        self.covariance, self.wanted, self.ridge = covariance, wanted, ridge
        values = {name: self._present(name) for kernel in problem.kernels for name in kernel.inputs}
        parts = [kernel.matrix(values, problem.width) for kernel in problem.kernels]
        ends = np.cumsum([len(part) for part in parts])
        self.rows = [np.arange(end - len(part), end) for end, part in zip(ends, parts, strict=True)]
        self.present = np.vstack(parts)

    def _present(self, name: str) -> np.ndarray:
        if name in self.state.leaves:
            return self.state.leaves[name]
        return np.asarray(self.state.given[name].materialize(), np.float64)

    def solution(self) -> tuple[Float[np.ndarray, "m n"], dict[str, FactoredArray]]:
        """All kernels, and those of low rank as they are stored.

        Kernels of low rank are the best of their rank beside the others; then the dense ones are
        solved again, given those.
        """
        kernels = zip(self.problem.kernels, self.rows, strict=True)
        may_change = [(kernel, rows) for kernel, rows in kernels if kernel.solvable]
        solved = self._solved(np.concatenate([rows for _, rows in may_change]), self.present)
        low_rank: dict[str, FactoredArray] = {}
        dense = [rows for _, rows in may_change]
        for kernel, rows in may_change:
            names = [name for name in kernel.inputs if name not in self.state.leaves]
            if names and len(self.problem.kernels) > 1:
                solved = self._solved(rows, solved)
            inner = self.covariance[np.ix_(rows, rows)]
            metric = inner + self.ridge * np.diag(np.diag(inner))
            for name in names:
                place = np.ix_(rows, kernel.columns[name])
                low_rank[name] = self.state.given[name].refit(solved[place], metric)
                solved[place] = np.asarray(low_rank[name].matrix(), np.float64)
            if names:
                dense = [others for others in dense if others is not rows]
        if dense and low_rank:
            solved = self._solved(np.concatenate(dense), solved)
        return solved, low_rank

    def _solved(
        self, rows: np.ndarray, others: Float[np.ndarray, "m n"]
    ) -> Float[np.ndarray, "m n"]:
        """The optimum of some rows, given the others."""
        inner = self.covariance[np.ix_(rows, rows)]
        given = np.delete(np.arange(len(self.covariance)), rows)
        wanted = self.wanted[rows] - self.covariance[np.ix_(rows, given)] @ others[given]
        best = ridge_solve(inner, wanted, self.ridge, self.present[rows])
        power = float(np.sum(best * (inner @ best)))
        solved = others.copy()
        solved[rows] = best * best_factor(power, float(np.sum(best * wanted)))
        return solved

    def leaves(self, solved: Float[np.ndarray, "m n"]) -> dict[str, np.ndarray]:
        """The dense leaves that may change, of their own shapes."""
        leaves = {}
        for kernel, rows in zip(self.problem.kernels, self.rows, strict=True):
            for name, order in kernel.inputs.items() if kernel.solvable else ():
                if name in self.state.leaves:
                    part = solved[np.ix_(rows, kernel.columns[name])]
                    leaves[name] = from_rows(part, order, self.state.leaves[name].shape)
        return leaves
