"""Two versions of one network on the same data: what a contraction meets in the small one against what it meets in the original.

For a contraction whose inputs are x in the original and x' in the small network the covariances of x' with itself and with x
are gathered in one pass: all that a least-squares fit of the small kernel to the original outputs needs. Costs both forward
passes up to the contraction, and m' (m' + m) products a row.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Container
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.moments.accumulators import Taps
from jaxcompress.moments.calibration import Calibration
from jaxcompress.moments.masks import Rows, rows
from jaxcompress.networks.trace import Network
from jaxcompress.programs.program import Step


@dataclasses.dataclass(frozen=True)
class Paired:
    """What a contraction meets in two versions of a network.

    Attributes:
        count: how many vectors.
        before: (m,) the mean of the original's inputs x, float64.
        after: (m',) that of the small network's inputs x'.
        cov: (m', m') the covariance of x'.
        cross: (m', m) the covariance of x' with x.
    """

    count: float
    before: np.ndarray
    after: np.ndarray
    cov: np.ndarray
    cross: np.ndarray

    def __add__(self, other: Paired) -> Paired:
        count = self.count + other.count
        share = other.count / max(count, 1e-30)
        gap, wide = other.after - self.after, other.before - self.before
        mix = lambda a, b: (1 - share) * a + share * b
        return Paired(
            count,
            mix(self.before, other.before),
            mix(self.after, other.after),
            mix(self.cov, other.cov) + share * (1 - share) * np.outer(gap, gap),
            mix(self.cross, other.cross) + share * (1 - share) * np.outer(gap, wide),
        )


class Record(Taps):
    """The vectors themselves that some contractions of a running program see."""

    def __init__(self, found: Any, keys: tuple[str, ...], rows: Rows, order: dict[str, Any]):
        super().__init__(found, {}, rows, sys.maxsize)
        self.keys, self.order = keys, order

    def nested(self, turns: Any, index: Any) -> Record:
        return Record(self.found, self.keys, self.rows.turn(turns, index), self.order)

    def divide(self, turns: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, self.sums  # every turn of a loop gives vectors of its own

    def see(self, key: str, operands: list[Any], step: Step) -> None:
        if key in self.keys:
            contraction = self.found.analysis.contractions[key]
            alike = (key,) if contraction.window else (contraction.positions, contraction.batch)
            self.order[key] = (operands[contraction.operand], alike)
            self.same.clear()  # each is asked for by name
            super().see(key, operands, step)

    def second(self, key: str, flat: Any, weights: Any) -> Any:
        return flat, weights


def record(
    net: Network,
    params: Any,
    values: tuple[Any, ...],
    keys: tuple[str, ...],
    mask: Any = None,
    sample: float = 1.0,
    number: Any = 0,
    order: dict[str, Any] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Rows (n, m) and their weights (n,) for each of some contractions, of one batch."""
    found = net.traced_program(params, *values)
    seen = Record(
        found, keys, rows(found, values, mask, sample, number), {} if order is None else order
    )
    net.replay(params, *values, tap=seen)
    flat = lambda x, w: (x.reshape(-1, x.shape[-1]), jnp.broadcast_to(w, x.shape[:-1]).reshape(-1))
    return {key: flat(*both) for key, both in seen.sums.items()}


def groups(
    net: Network,
    before: Any,
    after: Any,
    values: tuple[Any, ...],
    keys: tuple[str, ...],
    always: Container[str] = (),
) -> list[tuple[str, ...]]:
    """Contractions in the order of the program, those of the same inputs together; without those whose inputs have not changed,
    but for some.
    """
    order: dict[str, Any] = {}

    @jax.jit
    def gaps(before: Any, after: Any, values: Any) -> dict[str, Any]:
        theirs, ours = (
            record(net, params, values, keys, order=order) for params in (after, before)
        )
        gap = lambda x, y: jnp.abs(x - y).max() if x.shape == y.shape else jnp.inf
        return {key: gap(ours[key][0], theirs[key][0]) for key in theirs}

    changed = gaps(before, after, values)
    found: dict[Any, list[str]] = {}
    for key, (operand, alike) in order.items():
        if changed.get(key, 0) > 0 or (
            key in changed and key in always
        ):  # what runs in a loop of unknown length has no rows
            found.setdefault((id(operand), alike), []).append(key)
    return [tuple(group) for group in found.values()]


def gather(
    net: Network,
    before: Any,
    after: Any,
    data: Calibration,
    key: str,
) -> Paired:
    """What a contraction meets in two versions of a network, over all batches."""

    @jax.jit
    def products(before: Any, after: Any, values: Any, number: Any) -> Any:
        (x, w), (y, _) = (
            record(net, params, values, (key,), data.mask, data.sample, number)[key]
            for params in (before, after)
        )
        count = jnp.maximum(w.sum(), 1e-30)
        means = [(w @ part) / count for part in (x, y)]
        x, y = x - means[0], y - means[1]
        covariance = lambda part: jnp.matmul((w[:, None] * y).T, part, precision="highest") / count
        return w.sum(), *means, covariance(y), covariance(x)

    total: Paired | None = None
    for number, values in enumerate(data.values(net)):
        count, *parts = (
            np.asarray(part, np.float64) for part in products(before, after, values, number)
        )
        found = Paired(float(count), *parts)
        total = found if total is None else total + found
    assert total is not None
    return total
