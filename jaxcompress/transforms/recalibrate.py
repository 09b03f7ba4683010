"""Gather the moments anew in the middle of a chain.

Carried moments are exact for the maps and first-order for the errors upstream; after deep cuts a
pass over data at the present sizes is better. Costs what `jc.calibrate` costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from jaxcompress.moments.calibration import Calibration, calibrate
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.trace import Network
from jaxcompress.transforms.base import Scope, Transform
from jaxcompress.transforms.settings import DIGITS, call, constructor_name, digest, show_structure


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class DataTransform(Transform):
    """The base of transforms that read data when they run.

    They compare by the structure of the network and by the content of the data: a list or a tuple
    of batches by its numbers, any other iterable by its identity.
    """

    net: Network
    data: Calibration
    progress: bool = True
    whole_network = True

    def hidden_fields(self) -> tuple[str, ...]:
        """Fields that are no named arguments of the constructor."""
        return ("net", "data")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DataTransform):
            return False
        return other is self or self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[object, ...]:
        return type(self), digest(self.net.structure), digest(self.data), self.progress

    def __repr__(self) -> str:
        net, data = show_structure(self.net.structure), f"<batches, {digest(self.data)[:DIGITS]}>"
        return call(constructor_name(self), net, data, **self.arguments())


class Recalibrate(DataTransform):
    """See `recalibrate`."""

    def _step(self, params: Any, moments: Any, scope: Scope) -> tuple[Any, Any]:
        sensitivity = isinstance(moments, Moments) and bool(moments.gains)
        found = calibrate(
            self.net, params, self.data, sensitivity=sensitivity, progress=self.progress
        )
        if isinstance(moments, Moments):  # what the original was stays known
            found = dataclasses.replace(found, reference=moments.reference, changes=moments.changes)
        return params, found


def recalibrate(
    net: Network,
    batches: Iterable[Any] | Calibration,
    *,
    progress: bool = True,
) -> Transform:
    """A transform that leaves parameters as they are and gives the moments of what comes after it in a chain.

    Args:
        net: from `jc.trace`.
        batches: as for `jc.calibrate`; they are read each time the chain runs, so give a list, not an iterator.
        progress: show a progress bar.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> params = {"up": jax.random.normal(jax.random.key(1), (3, 8)), "down": jnp.ones((8, 2))}
        >>> net = jc.trace(apply, params, x)
        >>> fresh = jc.recalibrate(net, [x], progress=False)
        >>> small, moments = jc.chain(jc.rotate_and_prune(net, 1/2), fresh).apply(params)
        >>> moments["up:1"].mean.shape
        (1, 4)
    """
    data = Calibration.of(batches)
    data.check_rereadable("recalibrate")
    return Recalibrate(net, data, progress)
