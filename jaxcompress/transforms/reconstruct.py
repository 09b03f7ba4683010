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
in the network that they gave, on the states of all rounds together, towards the original's results
at the same time. The network with the best outputs on these data is kept: never worse than before.

Source: asymmetric layer-wise reconstruction (He et al. 2017, arXiv:1707.06168; Luo et al. 2017,
arXiv:1707.06342); own states with the original's targets, the data of all rounds together, as in
DAgger (Ross et al. 2011, arXiv:1011.0686).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxcompress.checks import checked
from jaxcompress.moments.calibration import Calibration
from jaxcompress.moments.cross_moments import changed_inputs, gatherer
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.trace import Network, network
from jaxcompress.transforms.base import Scope, Transform
from jaxcompress.transforms.kernel_solution import Original, is_of_low_rank
from jaxcompress.transforms.network_state import NetworkState
from jaxcompress.transforms.problems import Problem, Problems
from jaxcompress.transforms.recalibrate import DataTransform
from jaxcompress.transforms.rounds import Group, Rounds, Solved, is_recurrent, sites_of

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
            progress = progress.after(group, original, gather(original.params, progress.params))
        return progress

    def _settle(self, progress: Solved, original: Original, groups: list[Group]) -> Solved:
        """Solve groups over and over; of all networks on the way, the one with the best outputs.

        A round that does not end better is run again with every group kept only where it helps at
        once, and is the last.
        """
        rounds = Rounds.of(self.net, self.data, original, groups)
        start = best = rounds.judged(progress)
        if start.error <= ROUNDING:
            return progress
        for _ in self._bar(range(ROUNDS)):
            last = best
            best = rounds.next(last)
            if best is last:
                best = rounds.next(last, guarded=True)
                break
            if best.error > GAIN * last.error:
                break
        if best is start:
            log.warning(
                "reconstruct keeps the kernels of %s: solved anew, they gave no better outputs",
                ", ".join(sorted(set().union(*map(sites_of, groups)))),
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


@checked(net=network)
def reconstruct(
    net: Network,
    batches: Iterable[PyTree] | Calibration,
    *,
    progress: bool = True,
) -> Transform:
    """Solve every kernel anew, layer after layer, towards the original network's results.

    Put it after `rotate_and_prune` or `factored` in a chain. The original is the network with which
    the moments were gathered. Kernels of low rank keep their rank. Kernels whose products are added
    up are solved together, and those of a loop over time in a few rounds, since the state feeds
    back. Kernels that have no least-squares problem stay: used in different ways, stacked, grouped,
    compact in another form, or with more inputs than were measured.

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
