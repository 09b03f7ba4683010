"""The dense leaves of a tree on the host, each read when it is asked for.

A tree holds more than weights: random keys, complex tables, masks with infinities, empty arrays,
flags. A change of an axis reads the leaves that have the axis; all others stay what they are, bit
for bit. Costs one copy in float64 of each leaf that is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.device import to_device


@dataclasses.dataclass(frozen=True, eq=False)
class HostLeaves(Mapping[str, np.ndarray]):
    """The dense leaves of a tree by name, floats as float64; never modified.

    Attributes:
        given: every leaf as it was given, compact arrays as well.
        changed: new values of dense leaves.
        read: the given leaves that were read, a cache.
    """

    given: Mapping[str, PyTree]
    changed: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    read: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        """A leaf's present value.

        Raises:
            KeyError: for a compact leaf, or one that is not there.
            ValueError: for NaN, an infinity, or what is no real number.
        """
        if name in self.changed:
            return self.changed[name]
        if name not in self.read:
            if name not in self:
                raise KeyError(name)
            self.read[name] = to_host(name, self.given[name])
        return self.read[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.given and not is_compact(self.given[name])

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.given if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def replaced(
        self, leaves: Mapping[str, np.ndarray], compact: Mapping[str, PyTree] | None = None
    ) -> HostLeaves:
        """The leaves with new values for some, dense or compact."""
        given = {**self.given, **(compact or {})}
        return dataclasses.replace(self, given=given, changed={**self.changed, **leaves})

    def result(self) -> list[PyTree]:
        """Every leaf in the order and the dtype it was given in; unchanged ones as they were."""
        return [
            to_device(self.changed[name], jnp.result_type(leaf)) if name in self.changed else leaf
            for name, leaf in self.given.items()
        ]


def to_host(name: str, leaf: PyTree) -> np.ndarray:
    """A dense leaf as an array on the host, floats as float64.

    Raises:
        ValueError: for NaN, an infinity, or what is no real number.
    """
    if isinstance(leaf, Tracer):  # maps that depend on sizes alone run inside jax.jit
        return cast(np.ndarray, leaf)
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and not (jnp.issubdtype(dtype, jnp.number) or dtype == np.bool_):
        raise ValueError(f"{name} holds {dtype}: hidden axes are changed in arrays of numbers only")
    values = np.asarray(leaf)
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} holds {values.dtype}: hidden axes are changed in real parameters only"
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} contains NaN or infinity: repair or retrain it before compressing"
        )
    return values
