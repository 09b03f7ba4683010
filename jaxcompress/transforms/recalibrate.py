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


@dataclasses.dataclass(frozen=True, repr=False)
class DataTransform(Transform):
    """The base of transforms that read data when they run."""

    net: Network
    data: Calibration
    progress: bool = True
    whole_network = True

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()}(<batches>)"


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
