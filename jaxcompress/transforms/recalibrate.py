"""Recalibrate: gather the moments anew in the middle of a chain.

Moments that a transform returns are exact for its maps and first-order in the errors of earlier
layers. After deep cuts a pass over data at the present sizes is more accurate. Costs one
`jc.calibrate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jaxtyping import PyTree

from jaxcompress.checks import checked, instance
from jaxcompress.moments.calibration import Calibration, calibrate
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.batch_norms import check_norms
from jaxcompress.networks.trace import Network, network
from jaxcompress.transforms.base import Scope, Transform
from jaxcompress.transforms.norm_statistics import renewed
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

    def hidden(self) -> tuple[str, ...]:
        """Fields that are no named arguments of the constructor."""
        return ("net", "data")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DataTransform):
            return False
        return other is self or self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[object, ...]:
        settings = tuple(self.arguments().items())
        return type(self), digest(self.net.structure), digest(self.data), settings

    def __repr__(self) -> str:
        net, data = show_structure(self.net.structure), f"<batches, {digest(self.data)[:DIGITS]}>"
        return call(constructor_name(self), net, data, **self.arguments())


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Recalibrate(DataTransform):
    """See `recalibrate`."""

    norms: bool = False

    def _step(self, params: PyTree, moments: PyTree, scope: Scope) -> tuple[PyTree, PyTree]:
        if self.norms:
            params = renewed(self.net, params, self.data, progress=self.progress)
        # the transforms that follow expect the statistics that the user chose at first
        sensitivity = isinstance(moments, Moments) and bool(moments.gains)
        fresh = calibrate(
            self.net, params, self.data, sensitivity=sensitivity, progress=self.progress
        )
        if isinstance(moments, Moments):  # `reconstruct` needs the original network
            fresh = dataclasses.replace(fresh, reference=moments.reference, changes=moments.changes)
        return params, fresh


@checked(net=network, norms=instance(bool, "True or False"))
def recalibrate(
    net: Network,
    batches: Iterable[PyTree] | Calibration,
    *,
    norms: bool = False,
    progress: bool = True,
) -> Transform:
    """Gather the moments anew for the transforms that follow in a chain.

    Parameters stay, but for the running statistics of batch norms where `norms` asks for them.

    Args:
        net: from `jc.trace`.
        batches: data as for `jc.calibrate`, or a `jc.Calibration`. It is read each time the chain
            runs, so give a list, not an iterator.
        norms: first measure the running mean and variance of every batch norm anew, in the order of
            the program. After a cut they are those of other activations.
        progress: show a progress bar.

    Returns:
        A transform. It gathers sensitivities where the moments it receives have them.

    Raises:
        ValueError: for `norms` of a network that has none with running statistics; when called,
            without batches or for batches that do not fit.
        TypeError: for an iterator of batches.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(x @ p["up"]) @ p["down"]
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
    if norms:
        check_norms("recalibrate", net)
    return Recalibrate(net, data, progress, norms)
