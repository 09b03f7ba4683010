"""Running statistics of batch norms, measured anew: mean and variance of the present activations.

A norm's statistics depend on those of the norms before it, so they are measured in the order of the
program, each with its predecessors renewed: what training mode gives over all the data as one
batch, without its memory. Costs a pass over the data up to each norm.

    Source: REPAIR (arXiv:2211.08403), in whose way a network that was merged or cut is renewed
"""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.moments.calibration import Calibration
from jaxcompress.networks.batch_norms import LocatedNorm, locate_norms, numbers_of
from jaxcompress.networks.trace import Network
from jaxcompress.programs.affine import position_of
from jaxcompress.programs.program import Program
from jaxcompress.programs.rules import Replay


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
    for index, located in enumerate(tqdm(norms, desc="norms", leave=False, disable=not progress)):
        if located.norm.mean is None:
            text = f"{located.norm.variance} stays: its norm subtracts no mean"
            warnings.warn(text, stacklevel=6)
            continue
        mean, variance = _measured(net, params, data, index)
        params = _with_statistics(net, params, located, mean, variance)
    return params


def _measured(
    net: Network, params: PyTree, data: Calibration, index: int
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Mean and variance over all batches of what one norm takes in, before a bias."""
    measure = jax.jit(functools.partial(_of_batch, net, index))
    count, mean, squares = 0.0, np.zeros(()), np.zeros(())
    for turn, inputs in enumerate(data.values(net)):
        own, own_mean, own_squares = (np.asarray(x, np.float64) for x in measure(params, inputs))
        if not np.isfinite(own_squares).all():
            norm = locate_norms(net.traces(net.full, net.inputs))[index].norm
            raise ValueError(
                f"recalibrate: batch {turn} gives NaN or infinity before {norm.variance}: check "
                "the parameters and the data"
            )
        gap, share = own_mean - mean, float(own) / (count + float(own))
        squares = squares + own_squares + gap**2 * share * count
        mean, count = mean + share * gap, count + float(own)
    if not count:
        raise ValueError("recalibrate: there are no batches: give an iterable of at least one")
    return mean, squares / count


def _of_batch(
    net: Network, index: int, params: PyTree, inputs: tuple[PyTree, ...]
) -> tuple[float, Float[Array, " d"], Float[Array, " d"]]:
    """Count, mean and sum of squares about it by channel; nothing after the norm is computed."""
    traced = net.traced_program(params, *inputs)
    located = locate_norms(traced)[index]
    place = position_of(located.source, located.channel)
    assert place is not None
    dims = {name: dim for dim, name in traced.names.items()}
    replay = Replay({dims[key]: size for key, size in net.sizes(params).items()})
    leaves = jax.tree.leaves((params, inputs), is_leaf=is_compact)
    program = Program(traced.program.inputs, [located.source], traced.program.steps)
    (values,) = replay.run(program, [*leaves])
    rows = jnp.moveaxis(values, place, -1).reshape(-1, values.shape[place]).astype(jnp.float32)
    mean = rows.mean(0)
    return float(len(rows)), mean, jnp.sum((rows - mean) ** 2, 0)


def _with_statistics(
    net: Network,
    params: PyTree,
    located: LocatedNorm,
    mean: Float[np.ndarray, " d"],
    variance: Float[np.ndarray, " d"],
) -> PyTree:
    """Parameters with the statistics of one norm replaced."""
    norm, numbers = located.norm, numbers_of(net, located, params, check=False)
    new = {norm.mean: mean + numbers.bias, norm.variance: variance}

    def replace(name: str, leaf: PyTree) -> PyTree:
        if name not in new:
            return leaf
        stored = new[name] / numbers.units.get(name, 1.0)
        return jnp.asarray(stored.reshape(np.shape(leaf)), jnp.result_type(leaf))

    treedef = jax.tree.structure(params, is_leaf=is_compact)
    return jax.tree.unflatten(treedef, [replace(*pair) for pair in named_leaves(params)])
