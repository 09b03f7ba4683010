"""Reconstruct: kernels solved anew, so that a small network's layers give the original's results.

A fold makes each layer right on the original's activations; errors of earlier layers then add up.
Here, layer after layer in the order of the program, kernel and bias are the least-squares
solution of

    x' W' + b' = x W + b        x' the inputs in the small network, x those in the original

by ridge regression with the present kernel as its prior. Kernels whose products are added up have
one problem, their inputs side by side. A kernel of low rank becomes the best of its rank: that
solution, projected in the metric of x' (reduced-rank regression, Izenman 1975). Costs a pass over
the data for each layer, through both networks up to it, and O(m^3) a kernel of m inputs on the
host. It needs no labels and no gradients.

In a loop over time a kernel's solution changes its own inputs. There the problems are solved again
in the network that they gave, towards the original's results at the same time, and a solution is
kept only where the outputs on these data come nearer: never worse than before.

Source: asymmetric layer-wise reconstruction (He et al. 2017, arXiv:1707.06168; Luo et al. 2017,
arXiv:1707.06342); own states with the teacher's targets, as in DAgger (Ross et al. 2011).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

import numpy as np
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxcompress.checks import checked
from jaxcompress.moments.calibration import Calibration
from jaxcompress.moments.cross_moments import CrossMoments, changed_inputs, gatherer
from jaxcompress.moments.moments import Moments
from jaxcompress.moments.output_error import output_error
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.trace import Network, network
from jaxcompress.transforms.base import Scope, Transform
from jaxcompress.transforms.kernel_solution import Original, is_of_low_rank, solve
from jaxcompress.transforms.network_state import NetworkState
from jaxcompress.transforms.problems import Problem, Problems
from jaxcompress.transforms.recalibrate import DataTransform

log = logging.getLogger(__name__)

T = TypeVar("T")

ROUNDS = 3
"""How often the problems of a loop are solved, each time with the states of the last time."""

GAIN = 0.98
"""A round that leaves more than this share of the outputs' error is the last."""

ROUNDING = 1e-10
"""An error of the outputs, relative and squared, that float32 alone makes."""


class Reconstruct(DataTransform):
    """See `reconstruct`."""

    def _step(self, params: PyTree, moments: PyTree, scope: Scope) -> tuple[PyTree, PyTree]:
        if not isinstance(moments, Moments) or moments.reference is None:
            raise ValueError(
                "reconstruct needs the moments of jc.calibrate, which hold the original network"
            )
        state = NetworkState.of(self.net.structure, params, moments)
        original = Original.of(self.net, moments)
        order = self.order(state, original)
        solve = self._settle if any(map(is_recurrent, order)) else self._solve_in_order
        progress = solve(Solved(state, moments.sites), original, order)
        return progress.params, dataclasses.replace(moments, sites=progress.statistics)

    def _solve_in_order(self, progress: Solved, original: Original, groups: list[Group]) -> Solved:
        """Solve groups one after the other: later layers correct the errors of earlier ones."""
        for group in self._bar(groups):
            gather = gatherer(self.net, self.data, group[0].turns)
            progress = progress.after(group, original, gather)
        return progress

    def _settle(self, progress: Solved, original: Original, groups: list[Group]) -> Solved:
        """Solve groups over and over; of all networks on the way, the one with the best outputs.

        A kernel that is solved changes its own inputs and those of others, so what gets worse may
        be made up for later in the round. A round that does not end better is run again with every
        group kept only where it helps at once, and is the last.
        """
        error_of = output_error(self.net, self.data)
        gatherers = [gatherer(self.net, self.data, group[0].turns) for group in groups]
        best = Judged(error_of(original.params, progress.params), progress)
        if best.error <= ROUNDING:
            return progress

        def sweep(start: Judged, guarded: bool) -> Judged:
            present = lowest = start
            for group, gather in zip(groups, gatherers, strict=True):
                solved = present.network.after(group, original, gather)
                judged = Judged(error_of(original.params, solved.params), solved)
                present = min(present, judged, key=error_in) if guarded else judged
                lowest = min(lowest, judged, key=error_in)
            return lowest

        for _ in self._bar(range(ROUNDS)):
            last = best
            best = sweep(last, guarded=False)
            if best is last:
                best = sweep(last, guarded=True)
                break
            if best.error > GAIN * last.error:
                break
        if best.network is progress:
            keys = ", ".join(sorted(set().union(*map(sites_of, groups))))
            log.warning(
                "reconstruct keeps the kernels of %s: solved anew, they gave no better outputs",
                keys,
            )
        return best.network

    def _bar(self, steps: Collection[T]) -> Iterable[T]:
        return tqdm(steps, desc="reconstruct", disable=not self.progress, leave=False)

    def order(self, state: NetworkState, original: Original) -> list[Group]:
        """The problems to solve, in order; those of a group have the same inputs."""
        assert state.moments is not None
        values = next(self.data.values(self.net), None)
        if values is None:
            raise ValueError("reconstruct: there are no batches: give an iterable of at least one")
        sites = [self.net.structure.sites[key] for key in state.moments.sites]
        low_rank: set[str] = set()
        for site in sites:
            low_rank |= {n for n in site.leaves if is_of_low_rank(state, site, n, original)}
        params = state.params()
        problems = Problems(
            traced=self.net.traced_program(params, *values),
            structure=self.net.structure,
            sizes=state.sizes,
            measured=state.moments.sites,
            allowed=low_rank | set(state.leaves),
        ).all()
        solvable = {key for problem in problems for key in problem.sites}
        if skipped := sorted({site.key for site in sites} - solvable):
            log.info(
                "reconstruct leaves %s: shared, stacked, grouped, compact or too wide",
                ", ".join(skipped),
            )
        changes = changed_inputs(self.net, original.params, params, values, tuple(solvable))
        return grouped(problems, changes, low_rank)


Group = list[Problem]
"""Problems whose vectors are the same, so that one pass over the data serves all."""

Gather = Callable[[PyTree, PyTree], CrossMoments]
"""From the original parameters and smaller ones to the joint moments of a group's inputs."""


def sites_of(group: Group) -> set[str]:
    """The keys of all contractions of a group."""
    return set().union(*(problem.sites for problem in group))


def is_recurrent(group: Group) -> bool:
    """Whether solving a group changes what it takes in itself."""
    return any(problem.recurrent for problem in group)


def grouped(
    problems: Iterable[Problem],
    changes: Mapping[str, tuple[object, bool]],
    always: Collection[str],
) -> list[Group]:
    """Problems in program order, those of the same vectors in one group.

    Args:
        problems: all of them.
        changes: for each contraction what identifies its vectors, and whether they changed.
        always: leaves that are solved for even where their inputs did not change.
    """
    place = {key: number for number, key in enumerate(changes)}

    def last(problem: Problem) -> int:
        """Where all inputs of the first turn are known."""
        return max(place[key] for key in problem.turns[0] if key is not None)

    recorded = [problem for problem in problems if set(problem.sites) <= place.keys()]
    groups: dict[object, Group] = {}
    for problem in sorted(recorded, key=last):
        leaves = set().union(*(kernel.inputs for kernel in problem.kernels))
        if leaves & set(always) or any(changes[key][1] for key in problem.sites):
            vectors = [[changes[key][0] if key else None for key in turn] for turn in problem.turns]
            groups.setdefault(tuple(map(tuple, vectors)), []).append(problem)
    return list(groups.values())


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """A network and the error of its outputs.

    Attributes:
        error: relative and squared; infinite where it is no number.
        network: some of whose problems are solved.
    """

    error: float
    network: Solved

    def __post_init__(self) -> None:
        if np.isnan(self.error):
            object.__setattr__(self, "error", np.inf)


def error_in(judged: Judged) -> float:
    """What networks are compared by."""
    return judged.error


@dataclasses.dataclass(frozen=True, eq=False)
class Solved:
    """A network some of whose problems are solved.

    Attributes:
        state: its parameters.
        statistics: by contraction, gathered anew where they were solved.
        shifts: of each bias from that of the original, by the contraction that it makes up for.
    """

    state: NetworkState
    statistics: Mapping[str, Statistic]
    shifts: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    @property
    def params(self) -> PyTree:
        """The parameters as a tree."""
        return self.state.params()

    def after(self, group: Group, original: Original, gather: Gather) -> Solved:
        """The network with the problems of one more group solved."""
        paired, progress = gather(original.params, self.params), self
        for problem in group:
            progress = progress._with(problem, original, paired)
        return progress

    def _with(self, problem: Problem, original: Original, paired: CrossMoments) -> Solved:
        solution = solve(self.state, problem, original, paired)
        leaves, shifts = dict(solution.kernels), dict(self.shifts)
        for name, shift in solution.shifts.items():
            bias = original.target(name)
            # contractions that are added up may share a bias, which gets the sum of their shifts
            shifts[name] = {**shifts.get(name, {}), problem.sites[0]: shift.reshape(bias.shape)}
            leaves[name] = bias + np.sum(list(shifts[name].values()), axis=0)
        return Solved(
            self.state.edited(leaves, solution.low_rank),
            {**self.statistics, **_statistics(self.statistics, problem, paired)},
            shifts,
        )


def _statistics(
    known: Mapping[str, Statistic], problem: Problem, paired: CrossMoments
) -> dict[str, Statistic]:
    """The statistics of a problem's contractions; those of several turns stay as they are."""
    fresh, start = {}, 0
    for key in problem.turns[0] if len(problem.turns) == 1 else ():
        assert key is not None, "one turn has a contraction of every kernel"
        own = slice(start, start + known[key].mean.shape[-1])
        fresh[key] = dataclasses.replace(
            known[key], count=paired.count, mean=paired.after[own], cov=paired.cov[own, own]
        )
        start = own.stop
    return fresh


@checked(net=network)
def reconstruct(
    net: Network,
    batches: Iterable[PyTree] | Calibration,
    *,
    progress: bool = True,
) -> Transform:
    """Solve every kernel anew, layer after layer, towards the original network's results.

    Put it after `rotate_and_prune` or `factored` in a chain. The original is the network with which
    the moments were gathered. Kernels of low rank keep their rank. Kernels that have no
    least-squares problem of their own stay: shared, stacked in a loop, grouped, compact in another
    form, or with more inputs than were measured.

    Args:
        net: from `jc.trace`.
        batches: unlabelled data as for `jc.calibrate`, or a `jc.Calibration`. It is read once for
            each layer, so give a list, not an iterator.
        progress: show a progress bar.

    Returns:
        A transform; call it as `transform(params, moments)` with the moments of `jc.calibrate`. In
        the moments that it returns, those of the solved kernels' inputs are gathered anew and the
        others are as before; `jc.recalibrate` gathers all.

    Raises:
        ValueError: when called, without the moments of `jc.calibrate`, without batches, or for
            batches that do not fit.
        TypeError: for an iterator of batches.

    Source:
        He et al. 2017, arXiv:1707.06168; Luo et al. 2017, arXiv:1707.06342.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> shapes = {"a": (4, 16), "b": (16, 16), "c": (16, 2)}
        >>> params = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> x = jax.random.normal(keys[3], (500, 4))
        >>> net = jc.trace(apply, params, x)
        >>> moments = jc.calibrate(net, params, [x], progress=False)
        >>> prune = jc.rotate_and_prune(net, keep=1/2)
        >>> better = jc.chain(prune, jc.reconstruct(net, [x], progress=False))
        >>> def error(small):
        ...     return float(jnp.mean((net(small, x) - apply(params, x)) ** 2))
        >>> error(better(params, moments)) < error(prune(params, moments))
        True
    """
    data = Calibration.of(batches)
    data.check_rereadable("reconstruct")
    return Reconstruct(net, data, progress)
