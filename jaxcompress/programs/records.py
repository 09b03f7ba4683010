"""Records of contractions, and the interface for observing them while a program runs.

The rules of products, convolutions and look-ups write one record for each contraction. At a replay
a `Tap` receives the operands before the contraction runs, and its result after. Moments are
gathered in this way.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
from jaxtyping import Int, PyTree

from jaxcompress.programs.algebra import Dim
from jaxcompress.programs.program import Operand, Slot, Step, Value


@dataclasses.dataclass
class Contraction:
    """A contraction of activations with a parameter, and the axes it consumes.

    Attributes:
        key: the first leaf's name and a running number.
        operand: the position of the activations among the step's operands.
        dims: the contracted dimensions, in the order of the parameter's own.
        slots: for each of them the parameter slots it comes from.
        positions: their positions in the activations.
        batch: positions and dimensions of the activations that the parameter has as well; a
            convolution's groups.
        window: which of `dims` are a convolution's window; the activations have none of them.
        layers: the loops that run over layers of the parameter.
        rows: for a look-up the number of rows, None for a product.
        produced: the parameter's other dimensions, those of the product.
        step: the equation.
        free: the positions in it that the product has.
        loops: the axes of the loops that it runs in.
    """

    key: str
    operand: int
    dims: tuple[Dim | None, ...]
    slots: tuple[frozenset[Slot], ...]
    positions: tuple[int, ...]
    batch: tuple[tuple[int, Dim | None], ...] = ()
    window: tuple[int, ...] = ()
    layers: tuple[Dim, ...] = ()
    rows: int | None = None
    produced: tuple[Dim, ...] = ()
    step: Step | None = None
    free: tuple[int, ...] = ()
    loops: tuple[Dim, ...] = ()

    @property
    def consumed(self) -> frozenset[Slot]:
        """The slots contracted with the activations, without those of a window."""
        kept = (slots for index, slots in enumerate(self.slots) if index not in self.window)
        return frozenset().union(*kept)


@dataclasses.dataclass(frozen=True)
class Bias:
    """A parameter that is added to a product, or to a sum of products.

    Attributes:
        value: the parameter as it is added.
        sign: -1 where it is subtracted.
        alone: whether it is used nowhere else.
    """

    value: Value
    sign: int
    alone: bool


@dataclasses.dataclass
class Pair:
    """A contraction of activations with activations, such as queries with keys.

    Attributes:
        key: "pair" and a running number.
        dims: the contracted dimensions.
        positions: their positions in either operand.
        batch: positions in either operand of the dimensions that both share, and the dimension.
        sides: the parameter slots that produce either operand.
    """

    key: str
    dims: tuple[Dim | None, ...]
    positions: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, int, Dim | None], ...]
    sides: tuple[frozenset[Slot], frozenset[Slot]]


class Tap(Protocol):
    """Receives the operands and the result of every contraction of a replay.

    Attributes:
        derivatives: whether the replay is differentiated: custom derivative rules then stay closed,
            and so do loops of unknown length.
        sums: what was gathered, by the contraction's key.
    """

    derivatives: bool
    sums: dict[str, PyTree]

    def observe(self, key: str, operands: list[Operand], step: Step) -> None:
        """Receive the operands of a contraction."""
        ...

    def transform_result(self, key: str, step: Step, result: Operand) -> Operand:
        """Receive a contraction's result and return what the program continues with."""
        ...

    def nested(self, turns: Dim | None, index: Int[jax.Array, ""] | None) -> Tap:
        """A tap without sums, for a branch or for one turn of a loop along an axis."""
        ...

    def split_sums(self, turns: Dim | None) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        """Split the sums into those added over a loop's turns and those stacked along it."""
        ...

    def update(self, *sums: dict[str, PyTree]) -> None:
        """Add the sums of a loop or a branch to this tap's."""
        ...
