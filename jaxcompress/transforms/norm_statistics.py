"""Running statistics of batch norms, measured anew: mean and variance of the present activations.

A norm's statistics depend on those of the norms before it. Each sweep over the data measures all
norms and renews them; after k sweeps the first k in the order of the program are right, so that at
most as many sweeps as there are norms give what training mode gives over all the data as one batch.
They stop when nothing changes any more, mostly after a few.

    Source: REPAIR (arXiv:2211.08403), in whose way a network that was merged or cut is renewed
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.moments.calibration import Calibration
from jaxcompress.networks.batch_norms import LocatedNorm, locate_norms, numbers_of
from jaxcompress.networks.trace import Network
from jaxcompress.programs.affine import position_of
from jaxcompress.programs.program import Program
from jaxcompress.programs.rules import Replay

CHANGE = 1e-5
"""The largest change, of a mean in deviations or of a variance in itself, that ends the sweeps."""

Moment = tuple[float, Float[np.ndarray, " d"], Float[np.ndarray, " d"]]
"""A count, a mean, and the sum of squares about it."""


def renewed(net: Network, params: PyTree, data: Calibration, *, progress: bool) -> PyTree:
    """Parameters whose batch norms have the mean and the variance of given data.

    Args:
        net: the network.
        params: its parameters, dense, compact or pruned; the norms' own are dense.
        data: every position of every example counts, as in training; a mask or a sample does not.
        progress: show a progress bar.

    Raises:
        ValueError: without batches, or for NaN or infinity in what a norm takes in.
    """
    norms = locate_norms(net.traces(net.full, net.inputs))
    for located in norms:
        if located.norm.mean is None:
            text = f"{located.norm.variance} stays: its norm subtracts no mean"
            warnings.warn(text, stacklevel=6)
    measure = jax.jit(functools.partial(_of_batch, net))
    for _ in tqdm(norms, desc="norms", leave=False, disable=not progress):
        moments = _measured(norms, params, data, net, measure)
        largest = 0.0
        for located, (mean, variance) in zip(norms, moments, strict=True):
            if located.norm.mean is not None:
                params, change = _with_statistics(net, params, located, mean, variance)
                largest = max(largest, change)
        if largest < CHANGE:
            break
    return params


def _measured(
    norms: list[LocatedNorm],
    params: PyTree,
    data: Calibration,
    net: Network,
    measure: Callable[..., list[Moment]],
) -> list[tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]]:
    """Mean and variance over all batches of what each norm takes in, before a bias."""
    totals: list[Moment] = []
    for turn, inputs in enumerate(data.values(net)):
        batch = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), measure(params, inputs))
        for located, (_, _, squares) in zip(norms, batch, strict=True):
            if not np.isfinite(squares).all():
                raise ValueError(
                    f"recalibrate: batch {turn} gives NaN or infinity before "
                    f"{located.norm.variance}: check the parameters and the data"
                )
        totals = batch if not totals else list(map(_added, totals, batch))
    if not totals:
        raise ValueError("recalibrate: there are no batches: give an iterable of at least one")
    return [(mean, squares / count) for count, mean, squares in totals]


def _added(total: Moment, part: Moment) -> Moment:
    """The moments of both parts."""
    count, share = total[0] + part[0], part[0] / (total[0] + part[0])
    gap = part[1] - total[1]
    return count, total[1] + share * gap, total[2] + part[2] + gap**2 * share * total[0]


def _of_batch(net: Network, params: PyTree, inputs: tuple[PyTree, ...]) -> list[Moment]:
    """The moments of what every norm takes in, by channel; nothing after the last is computed."""
    traced = net.traced_program(params, *inputs)
    norms = locate_norms(traced)
    dims = {name: dim for dim, name in traced.names.items()}
    replay = Replay({dims[key]: size for key, size in net.sizes(params).items()})
    sources = [located.source for located in norms]
    program = Program(traced.program.inputs, sources, traced.program.steps)
    outputs = replay.run(program, jax.tree.leaves((params, inputs), is_leaf=is_compact))
    moments = []
    for located, values in zip(norms, outputs, strict=True):
        place = position_of(located.source, located.channel)
        assert place is not None
        rows = jnp.moveaxis(values, place, -1).reshape(-1, values.shape[place])
        rows = rows.astype(jnp.float32)
        mean = rows.mean(0)
        moments.append((float(len(rows)), mean, jnp.sum((rows - mean) ** 2, 0)))
    return moments


def _with_statistics(
    net: Network,
    params: PyTree,
    located: LocatedNorm,
    mean: Float[np.ndarray, " d"],
    variance: Float[np.ndarray, " d"],
) -> tuple[PyTree, float]:
    """Parameters with the statistics of one norm replaced, and how much they changed."""
    norm, numbers = located.norm, numbers_of(net, located, params, check=False)
    new = {norm.mean: mean + numbers.bias, norm.variance: variance}
    size = variance + norm.epsilon
    moved = np.abs(new[norm.mean] - numbers.mean) / np.sqrt(size)
    change = max(moved.max(), (np.abs(variance - numbers.variance) / size).max())

    def replace(name: str, leaf: PyTree) -> PyTree:
        if name not in new:
            return leaf
        stored = new[name] / numbers.units.get(name, 1.0)
        return jnp.asarray(stored.reshape(np.shape(leaf)), jnp.result_type(leaf))

    treedef = jax.tree.structure(params, is_leaf=is_compact)
    leaves = [replace(*pair) for pair in named_leaves(params)]
    return jax.tree.unflatten(treedef, leaves), float(change)
