"""Which kernels are one least-squares problem.

Contractions whose results are added up share their target, the sum: a recurrent cell's kernels of
its input and of its state, or two projections into one layer. Contractions that use the same
kernels are turns of one problem: the copies of an unrolled loop. A kernel that cannot be solved for
(compact in another form, used in several ways) stays, and the others are solved given it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.layout import to_rows
from jaxcompress.moments.cross_moments import Turn
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import Site, Structure
from jaxcompress.networks.columns import Columns, bias_columns, kernel_columns
from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import Dim, find
from jaxcompress.transforms.consumers import is_aligned

log = logging.getLogger(__name__)

Use = tuple[tuple[str, tuple[int, ...]], ...]
"""A kernel's leaves, and for each its dimensions that are contracted."""


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """A matrix that is contracted, with where its leaves' outputs are in the product.

    Attributes:
        inputs: for each leaf its contracted dimensions.
        columns: for each leaf the product's column of each of its outputs.
        solvable: whether it may change.
        ordered: whether the columns are known to be the product's, and are not only told apart.
    """

    inputs: Mapping[str, tuple[int, ...]]
    columns: Columns
    solvable: bool
    ordered: bool = True

    def matrix(self, leaves: Mapping[str, np.ndarray], width: int) -> Float[np.ndarray, "m n"]:
        """The kernel as one matrix of the product's columns."""
        parts = {name: to_rows(leaves[name], order) for name, order in self.inputs.items()}
        matrix = np.zeros((len(next(iter(parts.values()))), width))
        for name, part in parts.items():
            matrix[:, self.columns[name]] = part
        return matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Kernels whose products are added up, over all turns in which they are.

    Attributes:
        kernels: the addends.
        turns: for each turn the contraction of each kernel.
        width: the count of the product's columns.
        bias: for each of the bias's leaves its columns; empty without one.
        sign: -1 where the bias is subtracted.
        recurrent: whether a later turn may take in what an earlier one gave.
    """

    kernels: tuple[Kernel, ...]
    turns: tuple[Turn, ...]
    width: int
    bias: Columns
    sign: int
    recurrent: bool

    @property
    def sites(self) -> tuple[str, ...]:
        """The keys of all contractions."""
        return tuple(key for turn in self.turns for key in turn if key is not None)


@dataclasses.dataclass(frozen=True, eq=False)
class Problems:
    """Divides the contractions of a network into problems.

    Attributes:
        traced: the network's program.
        structure: its axes.
        sizes: of the axes whose size differs from the traced one.
        measured: the statistics of contractions.
        allowed: the leaves that may change.
    """

    traced: TracedProgram
    structure: Structure
    sizes: Mapping[str, int]
    measured: Mapping[str, Statistic]
    allowed: Collection[str]

    def all(self) -> list[Problem]:
        """Every problem with a kernel that can be solved for."""
        sites = self.structure.sites
        complete = [key for key in self.measured if self._is_complete(sites[key])]
        sums = self._sums(complete)
        problems = []
        for turns in self._turns(sums):
            problem = self._problem(turns) if len(turns) > 1 or len(turns[0]) > 1 else None
            if problem is None:  # each kernel by itself, as far as it can be
                problems += self._apart(turns)
            else:
                problems.append(problem)
        return [p for p in problems if any(kernel.solvable for kernel in p.kernels)]

    def _apart(self, sums: list[list[str]]) -> list[Problem]:
        """A problem for each kernel of some sums, over all of its turns."""
        users: dict[Use, list[list[str]]] = {}
        for keys in sums:
            for key in keys:
                users.setdefault(self._use(key), []).append([key])
        problems = [self._problem(turns) for turns in users.values()]
        return [problem for problem in problems if problem is not None]

    def _is_complete(self, site: Site) -> bool:
        """Whether all inputs of a contraction were measured, and its kernel is one matrix."""
        statistic = self.measured[site.key]
        complete = len(statistic.dims) == len(site.dims) and set(site.inputs) == set(site.leaves)
        return complete and not (statistic.diagonal or site.batch or statistic.lead)

    def _sums(self, complete: list[str]) -> list[list[str]]:
        """The contractions in sets whose results are added up, most of them of one."""
        owner = {key: {key} for key in complete}
        for keys in self._added():
            rows = {self._rows(key) for key in keys if key in owner}
            single = all(len(self.structure.sites[key].outputs) == 1 for key in keys)
            if len(rows) == 1 and single:
                merge(owner, [key for key in keys if key in owner])
        order = {key: place for place, key in enumerate(self.traced.analysis.contractions)}
        return [sorted(keys, key=order.__getitem__) for keys in distinct(owner)]

    def _added(self) -> list[set[str]]:
        """The contractions whose results are added up, whole or in corresponding parts."""
        whole: list[set[str]] = []
        covered: dict[frozenset[str], set[tuple[int, int | None]]] = {}
        for parts in self.traced.analysis.sums:
            ranges = {(part.start, part.stop) for part in parts}
            keys = frozenset(part.site for part in parts)
            if ranges == {(0, None)}:
                whole.append(set(keys))
            elif len(ranges) == 1:
                covered.setdefault(keys, set()).update(ranges)
        for keys, ranges in covered.items():
            size = self.traced.analysis.contractions[min(keys)].produced[0].size
            if sum((stop or 0) - start for start, stop in ranges) == size:
                whole.append(set(keys))
        return whole

    def _rows(self, key: str) -> tuple[Dim, ...]:
        """The dimensions of a contraction's input that are no part of its vectors, in order."""
        contraction = self.traced.analysis.contractions[key]
        assert contraction.step is not None
        dims = contraction.step.inputs[contraction.operand].dims
        rest = [dim for place, dim in enumerate(dims) if place not in contraction.positions]
        return tuple(find(dim) for dim in rest if dim is not None)

    def _turns(self, sums: list[list[str]]) -> list[list[list[str]]]:
        """Sums that use a kernel in common, which is then solvable only over all of them."""
        owner = {number: {number} for number in range(len(sums))}
        users: dict[Use, list[int]] = {}
        for number, keys in enumerate(sums):
            for key in keys:
                if self._is_solvable(key):
                    users.setdefault(self._use(key), []).append(number)
        for numbers in users.values():
            merge(owner, numbers)
        return [[sums[number] for number in sorted(numbers)] for numbers in distinct(owner)]

    def _use(self, key: str) -> Use:
        return tuple(sorted(self.structure.sites[key].inputs.items()))

    def _is_solvable(self, key: str) -> bool:
        """Whether a contraction's leaves may change, and all of their uses are measured alike."""
        leaves = set(self.structure.sites[key].leaves)
        others = [s.key for s in self.structure.sites.values() if leaves & set(s.leaves)]
        alike = all(
            other in self.measured
            and self._is_complete(self.structure.sites[other])
            and self._use(other) == self._use(key)
            for other in others
        )
        return alike and leaves <= set(self.allowed)

    def _problem(self, sums: list[list[str]]) -> Problem | None:
        """The problem of some sums; None where their columns cannot be told apart."""
        uses = list(dict.fromkeys(self._use(key) for keys in sums for key in keys))
        turns: list[Turn] = []
        for keys in sums:
            users = {self._use(key): key for key in keys}
            if len(users) < len(keys):  # one kernel twice in one sum
                return None
            turns.append(tuple(users.get(use) for use in uses))
        first = [
            next(key for key in column if key is not None) for column in zip(*turns, strict=True)
        ]
        kernels = [self._kernel(key, alone=len(uses) == 1) for key in first]
        if None in kernels:
            return None
        known = tuple(kernel for kernel in kernels if kernel is not None)
        width = sum(map(len, known[0].columns.values()))
        if any(sum(map(len, kernel.columns.values())) != width for kernel in known):
            return None
        columns, sign = self._bias(sums, known)
        looped = any(self._runs_in_a_loop(key) for keys in sums for key in keys)
        recurrent = looped or len(turns) > 1
        return Problem(known, tuple(turns), width, columns, sign, recurrent)

    def _kernel(self, key: str, alone: bool) -> Kernel | None:
        site, solvable = self.structure.sites[key], self._is_solvable(key)
        if alone and len(site.inputs) == 1:
            return Kernel(site.inputs, self._own_columns(site), solvable)
        columns = kernel_columns(self.traced, self.structure, site, self.sizes)
        if columns is None:
            own = Kernel(site.inputs, self._own_columns(site), solvable, ordered=False)
            return own if alone else None
        return Kernel(site.inputs, columns, solvable)

    def _own_columns(self, site: Site) -> Columns:
        """The outputs of a kernel's leaves one after the other."""
        columns, start = {}, 0
        for name, contracted in site.inputs.items():
            layouts = [layout.resized(self.sizes) for layout in self.structure.layouts[name]]
            sizes = [part.size for place, part in enumerate(layouts) if place not in contracted]
            count = int(np.prod(sizes))
            columns[name] = np.arange(start, start + count)
            start += count
        return columns

    def _runs_in_a_loop(self, key: str) -> bool:
        """Whether a contraction runs in a loop over anything else than layers of its kernel."""
        contraction = self.traced.analysis.contractions[key]
        return any(turns not in contraction.layers for turns in contraction.loops)

    def _bias(self, sums: list[list[str]], kernels: tuple[Kernel, ...]) -> tuple[Columns, int]:
        """The columns and the sign of the bias that can absorb a change of the sum's mean."""
        analysis = self.traced.analysis
        biases = [next((key for key in keys if key in analysis.biases), None) for keys in sums]
        noted = [analysis.biases[key] for key in biases if key is not None]
        leaves = {frozenset(bias.value.leaves) for bias in noted}
        if len(noted) < len(sums) or len(leaves) != 1 or len({bias.sign for bias in noted}) != 1:
            return {}, 0
        uses = [analysis.uses[id(self.traced.leaves[name])] for name in next(iter(leaves))]
        alone = all(bias.alone for bias in noted) if len(sums) == 1 else set(uses) == {len(sums)}
        key = biases[0]
        ordered = all(kernel.ordered for kernel in kernels)
        if not (alone and ordered) or key is None or self._is_padded(key):
            return {}, 0
        site = self.structure.sites[key]
        if len(site.outputs) == 1:
            columns = bias_columns(self.traced, self.structure, site, self.sizes)
            return ({}, 0) if columns is None else (columns, noted[0].sign)
        (bias, *others) = sorted(noted[0].value.leaves)
        parts = [columns for kernel in kernels for columns in kernel.columns.values()]
        if others or len(parts) > 1 or not is_aligned(self.structure, site, bias):
            return {}, 0
        return {bias: parts[0]}, noted[0].sign

    def _is_padded(self, key: str) -> bool:
        """Whether a window met zeros at borders, so that the mean is not the same everywhere."""
        site = self.structure.sites[key]
        return bool(site.window) and len(self.measured[key].dims) < len(site.dims)


def merge(owner: dict, members: list) -> None:
    """Unite the sets of some members."""
    union = set().union(*(owner[member] for member in members))
    owner.update(dict.fromkeys(union, union))


def distinct(owner: dict) -> list[set]:
    """The sets that members belong to, each once, in the members' order."""
    return list({id(members): members for members in owner.values()}.values())
