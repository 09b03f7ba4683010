"""Contractions as records, and the interface of what receives their operands while a program runs.

The rules of products, convolutions and look-ups write a record each time they meet one. At a replay
a `Tap` receives the operands before the contraction runs, and its result: moments are gathered so.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
from jaxtyping import Int, PyTree

from jaxcompress.programs.algebra import Dim
from jaxcompress.programs.program import Slot, Step


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

    @property
    def consumed(self) -> frozenset[Slot]:
        """The slots contracted with the activations, without those of a window."""
        kept = (slots for index, slots in enumerate(self.slots) if index not in self.window)
        return frozenset().union(*kept)


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

    def see(self, key: str, operands: list[Any], step: Step) -> None:
        """Receive the operands of a contraction."""
        ...

    def feel(self, key: str, step: Step, result: Any) -> Any:
        """Receive the result of a contraction; returns what the program goes on with."""
        ...

    def nested(self, turns: Dim | None, index: Int[jax.Array, ""] | None) -> Tap:
        """A tap without sums, for a branch or for one turn of a loop along an axis."""
        ...

    def divide(self, turns: Dim | None) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        """The sums to add up over the turns of a loop, and those to stack along it."""
        ...

    def update(self, *sums: dict[str, PyTree]) -> None:
        """Take over the sums of a loop or a branch."""
        ...
