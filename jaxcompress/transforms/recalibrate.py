"""Gather the moments anew in the middle of a chain.

Carried moments are exact for the maps and first-order for the errors upstream; after deep cuts a pass over data at the
present sizes is better. Costs what `net.calibrate` costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from jaxcompress.moments.moments import Moments
from jaxcompress.networks.trace import Network
from jaxcompress.transforms.base import Scope, Transform


@dataclasses.dataclass(frozen=True, repr=False)
class DataTransform(Transform):
    """The base of transforms that read data when they run."""

    net: Network
    batches: Iterable[Any]
    inputs: Callable[[Any], Any] | None = None
    mask: Callable[..., Any] | None = None
    sample: float = 1.0
    progress: bool = True
    whole_network = True

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()}(<batches>)"


class Recalibrate(DataTransform):
    """See `recalibrate`."""

    def _step(self, params: Any, moments: Any, scope: Scope) -> tuple[Any, Any]:
        options = dict(mask=self.mask, sample=self.sample, progress=self.progress)
        if isinstance(moments, Moments) and moments.gains:
            options["sensitivity"] = True
        found = self.net.calibrate(params, self.batches, self.inputs, **options)  # type: ignore[arg-type]
        if isinstance(moments, Moments):  # what the original was stays known
            found = dataclasses.replace(found, reference=moments.reference, changes=moments.changes)
        return params, found


def check_batches(what: str, batches: Iterable[Any]) -> None:
    """Refuse what can be read only once."""
    if iter(batches) is batches:
        raise TypeError(
            f"{what} reads its batches each time the chain runs: give a list, not an iterator"
        )


def recalibrate(
    net: Network,
    batches: Iterable[Any],
    inputs: Callable[[Any], Any] | None = None,
    *,
    mask: Callable[..., Any] | None = None,
    sample: float = 1.0,
    progress: bool = True,
) -> Transform:
    """A transform that leaves parameters as they are and gives the moments of what comes after it in a chain.

    Args:
        net: from `jc.trace`.
        batches: as for `net.calibrate`; they are read each time the chain runs, so give a list, not an iterator.
        inputs, mask, sample: as for `net.calibrate`.
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
    check_batches("recalibrate", batches)
    return Recalibrate(net, batches, inputs, mask, sample, progress)
