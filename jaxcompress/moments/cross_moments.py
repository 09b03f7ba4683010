"""Joint moments of one contraction's inputs in two versions of a network, on the same data.

With inputs x in the original and x' in the smaller network, the covariances of x' with itself and
with x are gathered in one pass: all that a least-squares fit of the smaller kernel to the original
outputs needs. Costs both forward passes and m' (m' + m) products a vector.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Container, Hashable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxcompress.moments.accumulators import Accumulator, Gathered, unit_of
from jaxcompress.moments.calibration import Calibration
from jaxcompress.moments.masks import VectorWeights, vector_weights
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.layout import Layout
from jaxcompress.networks.trace import Network
from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import Dim
from jaxcompress.programs.program import Operand, Step, Value

Rows = tuple[Float[Array, "rows m"], Float[Array, " rows"]]
"""Vectors and their weights."""


@dataclasses.dataclass(frozen=True)
class CrossMoments:
    """Joint moments of what a contraction takes in, in two versions of a network.

    Attributes:
        count: the number of vectors.
        before: the mean of the original's inputs x.
        after: the mean of the smaller network's inputs x'.
        cov: the covariance of x'.
        cross: the covariance of x' with x.
    """

    count: float
    before: Float[np.ndarray, " m"]
    after: Float[np.ndarray, " small"]
    cov: Float[np.ndarray, "small small"]
    cross: Float[np.ndarray, "small m"]

    def __add__(self, other: CrossMoments) -> CrossMoments:
        """The moments of both sets of data."""
        count = self.count + other.count
        share = other.count / max(count, 1e-30)
        after_gap, before_gap = other.after - self.after, other.before - self.before

        def mean(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            return (1 - share) * ours + share * theirs

        # the covariance of a union: that within both sets, plus that of their means
        between = share * (1 - share)
        return CrossMoments(
            count,
            mean(self.before, other.before),
            mean(self.after, other.after),
            mean(self.cov, other.cov) + between * np.outer(after_gap, after_gap),
            mean(self.cross, other.cross) + between * np.outer(after_gap, before_gap),
        )


class Recorder(Accumulator):
    """Keeps the vectors of some contractions instead of adding them up.

    Attributes:
        keys: of the contractions.
        order: filled, in program order, with each contraction's operand, as the program's value,
            and its vectors' layout.
    """

    def __init__(
        self,
        traced: TracedProgram,
        keys: tuple[str, ...],
        vectors: VectorWeights,
        order: dict[str, tuple[Value, Hashable]],
    ):
        # vectors are kept in full, whatever their dimension
        super().__init__(traced, {}, vectors, sys.maxsize)
        self.keys, self.order = keys, order

    def nested(self, turns: Dim | None, index: Int[Array, ""] | None) -> Recorder:
        """A recorder for one turn of a loop."""
        return Recorder(self.traced, self.keys, self.vectors.in_turn(turns, index), self.order)

    def split_sums(self, turns: Dim | None) -> tuple[dict[str, Gathered], dict[str, Gathered]]:
        """Stack everything: every turn of a loop has its own vectors."""
        return {}, self.sums

    def observe(self, key: str, operands: list[Operand], step: Step) -> None:
        """Record one contraction's vectors, if it is among the keys."""
        if key not in self.keys:
            return
        contraction = self.traced.analysis.contractions[key]
        layout = (key,) if contraction.window else (contraction.positions, contraction.batch)
        # the program's value, not the array: a tracer kept beyond its loop would be a leak
        self.order[key] = (step.inputs[contraction.operand], layout)
        self._first.clear()  # contractions of the same vectors are all recorded
        super().observe(key, operands, step)

    def reduce(self, key: str, rows: Float[Array, "*batch rows m"], weights: jax.Array) -> Rows:
        """The vectors and weights as they are."""
        return rows, weights


def record(
    net: Network,
    params: PyTree,
    inputs: tuple[PyTree, ...],
    keys: tuple[str, ...],
    mask: Callable[..., jax.Array] | None = None,
    sample: float = 1.0,
    batch: int | jax.Array = 0,
    order: dict[str, tuple[Value, Hashable]] | None = None,
) -> dict[str, Rows]:
    """The vectors that some contractions take in on one batch, with their weights."""
    traced = net.traced_program(params, *inputs)
    vectors = vector_weights(traced, inputs, mask, sample, batch)
    recorder = Recorder(traced, keys, vectors, {} if order is None else order)
    net.replay(params, *inputs, tap=recorder)
    recorded = {}
    for key, (rows, weights) in recorder.sums.items():
        flat = jnp.broadcast_to(weights, rows.shape[:-1]).reshape(-1)
        recorded[key] = rows.reshape(-1, rows.shape[-1]), flat
    return recorded


def groups(
    net: Network,
    before: PyTree,
    after: PyTree,
    inputs: tuple[PyTree, ...],
    keys: tuple[str, ...],
    always: Container[str] = (),
) -> list[tuple[str, ...]]:
    """Contractions whose inputs changed, in program order, those of the same inputs in one group.

    Args:
        net: the network.
        before: the original parameters.
        after: the smaller ones.
        inputs: one batch.
        keys: the contractions to look at.
        always: contractions that are included even where their inputs did not change.
    """
    order: dict[str, tuple[Value, Hashable]] = {}

    @jax.jit
    def gaps(
        before: PyTree, after: PyTree, inputs: tuple[PyTree, ...]
    ) -> dict[str, jax.Array | float]:
        theirs = record(net, after, inputs, keys, order=order)
        ours = record(net, before, inputs, keys, order=order)
        return {key: _gap(ours[key][0], theirs[key][0]) for key in theirs}

    changed = gaps(before, after, inputs)
    grouped: dict[Hashable, list[str]] = {}
    for key, (value, layout) in order.items():
        # contractions in a loop of unknown length have no vectors and are not in `changed`
        if key in changed and (changed[key] > 0 or key in always):
            grouped.setdefault((id(value), layout), []).append(key)
    return [tuple(group) for group in grouped.values()]


def _gap(ours: jax.Array, theirs: jax.Array) -> jax.Array | float:
    """The largest difference of vectors; infinite where their sizes differ."""
    return jnp.abs(ours - theirs).max() if ours.shape == theirs.shape else jnp.inf


def gather(
    net: Network, before: PyTree, after: PyTree, data: Calibration, key: str
) -> CrossMoments:
    """The joint moments of one contraction's inputs, over all batches.

    Args:
        net: the network.
        before: the original parameters.
        after: the smaller ones.
        data: what is run.
        key: of the contraction.

    Raises:
        ValueError: for no batches.
    """

    @jax.jit
    def products(
        before: PyTree, after: PyTree, inputs: tuple[PyTree, ...], batch: int
    ) -> tuple[jax.Array, ...]:
        options = (data.mask, data.sample, batch)
        x, weights = record(net, before, inputs, (key,), *options)[key]
        y, _ = record(net, after, inputs, (key,), *options)[key]
        return _cross_moments(x, y, weights)

    total: CrossMoments | None = None
    for number, inputs in enumerate(data.values(net)):
        count, *parts = products(before, after, inputs, number)
        x, y, mean, met, cov, cross = (np.asarray(part, np.float64) for part in parts)
        moments = CrossMoments(
            float(count), x * mean, y * met, cov * y * y[:, None], cross * x * y[:, None]
        )
        total = moments if total is None else total + moments
    if total is None:
        raise ValueError("there are no batches: give an iterable of at least one")
    return total


Inputs: TypeAlias = tuple[PyTree, ...]
"""What a network is called with, beside its parameters."""

Pairs: TypeAlias = Callable[[PyTree, Inputs, int | jax.Array], tuple[Rows, Rows]]
"""From parameters, the inputs of a batch and its number to vectors at the same positions."""


def joint(
    net: Network, params: PyTree, data: Calibration, pairs: Pairs
) -> tuple[Statistic, Statistic]:
    """The moments of two kinds of vectors beside each other, for two halves of every batch.

    Args:
        net: the network.
        params: its parameters.
        data: what is run; all vectors of it are measured.
        pairs: the vectors.

    Raises:
        ValueError: for no batches.
    """

    @jax.jit
    def products(
        params: PyTree, inputs: tuple[PyTree, ...], batch: int
    ) -> list[tuple[jax.Array, ...]]:
        (x, weights), (y, _) = pairs(params, inputs, batch)
        both, early = jnp.concatenate([x, y], axis=1), jnp.arange(len(x)) < len(x) // 2
        return [_cross_moments(both, both, weights * half) for half in (early, ~early)]

    halves: list[Statistic | None] = [None, None]
    for number, inputs in enumerate(data.values(net)):
        for half, sums in enumerate(products(params, inputs, number)):
            count, unit, mean, cov = (np.asarray(sums[i], np.float64) for i in (0, 1, 3, 5))
            dims = (Layout("", len(mean)),)
            more = Statistic((), dims, float(count), mean * unit, cov * unit * unit[:, None])
            so_far = halves[half]
            halves[half] = more if so_far is None else so_far + more
    first, second = halves
    if first is None or second is None:
        raise ValueError("there are no batches: give an iterable of at least one")
    return first, second


def _cross_moments(
    x: Float[Array, "rows m"], y: Float[Array, "rows small"], weights: Float[Array, " rows"]
) -> tuple[jax.Array, ...]:
    """One batch's count, units of x and y, and in these units their means and covariances."""
    count = jnp.maximum(weights.sum(), 1e-30)
    x_unit, y_unit = unit_of(jnp.abs(x).max(0)), unit_of(jnp.abs(y).max(0))
    x, y = x / x_unit[None], y / y_unit[None]
    x_mean, y_mean = (weights @ x) / count, (weights @ y) / count
    x, y = x - x_mean[None], y - y_mean[None]
    weighted = (weights[:, None] * y).T
    cov = jnp.matmul(weighted, y, precision="highest") / count
    cross = jnp.matmul(weighted, x, precision="highest") / count
    return weights.sum(), x_unit, y_unit, x_mean, y_mean, cov, cross
