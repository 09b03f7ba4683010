"""Problems solved one after the other, and in rounds where a loop feeds what they give back.

`Solved` is a network some of whose problems are solved, `Rounds` what solves them again and again.
Costs a pass over the data for each group of problems with the same inputs, and in rounds another
for the error of the outputs.

Source: Ross et al. 2011 (DAgger, arXiv:1011.0686) for rounds on the data of all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import PyTree

from jaxcompress.moments.calibration import Calibration
from jaxcompress.moments.cross_moments import CrossMoments, gatherer
from jaxcompress.moments.output_error import output_error
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.trace import Network
from jaxcompress.transforms.kernel_solution import Original, solve
from jaxcompress.transforms.network_state import NetworkState
from jaxcompress.transforms.problems import Problem

Group = list[Problem]
"""Problems whose vectors are the same, so that one pass over the data serves all."""


def sites_of(group: Group) -> set[str]:
    """The keys of all contractions of a group."""
    return set().union(*(problem.sites for problem in group))


def is_recurrent(group: Group) -> bool:
    """Whether solving a group changes what it takes in itself."""
    return any(problem.recurrent for problem in group)


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
class Rounds:
    """Solves groups in order, again and again.

    A kernel that is solved changes its own inputs and those of others, so what gets worse may be
    made up for later in a round. The vectors of all rounds are a kernel's data: solved for the last
    states alone it would forget the others.

    Attributes:
        original: the network whose results are wanted.
        groups: in order.
        gatherers: of the moments of each group.
        error_of: from the original's parameters and others to the error of the outputs.
        seen: filled with the moments of all rounds, by the group's place.
    """

    original: Original
    groups: list[Group]
    gatherers: list[Callable[[PyTree, PyTree], CrossMoments]]
    error_of: Callable[[PyTree, PyTree], float]
    seen: dict[int, CrossMoments] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, net: Network, data: Calibration, original: Original, groups: list[Group]) -> Rounds:
        """No round yet."""
        gatherers = [gatherer(net, data, group[0].turns) for group in groups]
        return cls(original, groups, gatherers, output_error(net, data))

    def judged(self, network: Solved) -> Judged:
        """A network with the error of its outputs."""
        return Judged(self.error_of(self.original.params, network.params), network)

    def next(self, start: Judged, *, guarded: bool = False) -> Judged:
        """The best network of one more round: the start, if there is none better.

        Args:
            start: where the round begins.
            guarded: whether a group that does not help at once is left as it was.
        """
        present = best = start
        for place, (group, gather) in enumerate(zip(self.groups, self.gatherers, strict=True)):
            paired = gather(self.original.params, present.network.params)
            if is_recurrent(group):
                seen = self.seen.get(place)
                paired = self.seen[place] = paired if seen is None else seen + paired
            judged = self.judged(present.network.after(group, self.original, paired))
            present = min(present, judged, key=error_in) if guarded else judged
            best = min(best, judged, key=error_in)
        return best


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

    def after(self, group: Group, original: Original, paired: CrossMoments) -> Solved:
        """The network with the problems of one more group solved."""
        progress = self
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
