"""Compress: a trained function and a share of its numbers in, a network and small parameters out.

`compress` is `trace`, `calibrate`, and a chain of `rotate_and_prune` with a `budget` and
`reconstruct`, for use as a first step and to be taken apart. Costs two passes over the data, one of
them with derivatives, and those of `reconstruct`, one for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import jax
from jaxtyping import PyTree

from jaxcompress.checks import checked, function, mapping
from jaxcompress.moments.calibration import Calibration, calibrate
from jaxcompress.networks.trace import Network, trace
from jaxcompress.transforms.budget import Budget, budget
from jaxcompress.transforms.combinators import chain
from jaxcompress.transforms.reconstruct import reconstruct
from jaxcompress.transforms.rotation import rotate_and_prune


@checked(apply=function("apply(params, *inputs)"), state_outputs=mapping)
def compress(
    apply: Callable[..., PyTree[jax.Array]],
    params: PyTree,
    batches: Iterable[PyTree] | Calibration,
    keep: float | Budget,
    *,
    state_outputs: Mapping[str, str] | None = None,
    progress: bool = True,
) -> tuple[Network, PyTree]:
    """Make a trained network smaller, to a share of its stored numbers, with unlabelled data alone.

    Args:
        apply: `apply(params, *inputs)`, a pure function of any framework.
        params: trained parameters.
        batches: data as for `jc.calibrate`, or a `jc.Calibration`. It is read more than once, so
            give a list, not an iterator.
        keep: the fraction of all stored numbers to keep, in (0, 1], or a `jc.budget` with that
            fraction, which may have a metric.
        state_outputs: as for `jc.trace`.
        progress: show progress bars.

    Returns:
        The network, and its small parameters: call it as `net(small, *inputs)`.

    Raises:
        ValueError: without batches, for batches that do not fit, for a keep outside (0, 1] or out
            of reach.
        TypeError: for an iterator of batches.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> shapes = {"a": (4, 16), "b": (16, 16), "c": (16, 2)}
        >>> params = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> x = jax.random.normal(keys[3], (500, 4))
        >>> net, small = jc.compress(apply, params, [x], 1/2, progress=False)
        >>> jc.stored_numbers(small) / jc.stored_numbers(params) <= 1/2
        True
    """
    data = Calibration.of(batches)
    data.check_rereadable("compress")
    total = keep if isinstance(keep, Budget) else budget(keep)
    first = next(iter(data.batches), None)
    if first is None:
        raise ValueError("compress: there are no batches: give a list of at least one")
    first = first if data.inputs is None else data.inputs(first)
    example = first if isinstance(first, tuple) else (first,)
    net = trace(apply, params, *example, state_outputs=state_outputs)
    # with sensitivities the errors of different axes are in one unit, which a budget needs
    moments = calibrate(net, params, data, sensitivity=True, progress=progress)
    prune = rotate_and_prune(net, total)
    return net, chain(prune, reconstruct(net, data, progress=progress))(params, moments)
