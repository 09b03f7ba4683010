"""Gathering moments of activations: one pass over any data, with memory independent of its amount.

Wherever activations are contracted with a parameter, or with each other, their count, sum and
second moments are added up: in float32 within a batch, about the first batch's mean and in units of
its size, and in float64 across batches. Loops add up over their turns, or keep a statistic for each
of their layers. Costs the forward pass and m^2 products a vector for each contraction of m inputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checks import (
    array,
    check_fields,
    checked,
    function,
    iterable,
    number,
    shown,
    whole,
)
from jaxcompress.moments.accumulators import MAX_DIM, Accumulator, Origin, Sums, Totals, unit_of
from jaxcompress.moments.masks import vector_weights
from jaxcompress.moments.moments import Moments
from jaxcompress.moments.sensitivity import OutputSensitivity
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import Layout, Site, Structure
from jaxcompress.networks.trace import Network, check_arrays, network

ArrayT = TypeVar("ArrayT", np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Data that is run through a network, and which part of it is measured.

    Attributes:
        batches: an iterable; a batch is an array or the tuple of `apply`'s inputs.
        inputs: from a batch to the input or the tuple of inputs, where batches hold more.
        mask: from the inputs to weights of examples or positions, such as `lambda ids, mask: mask`;
            zero leaves padding out. Its axes are located in the activations, wherever they lie.
        sample: the fraction of every example's vectors (positions, patches) that is measured, in
            (0, 1], at random places.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> def apply(p, x):
        ...     return jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> x, labels = jnp.ones((50, 4, 3)), jnp.zeros(50)
        >>> data = jc.Calibration([(x, labels)], inputs=lambda batch: batch[0], sample=1/2)
        >>> jc.calibrate(jc.trace(apply, params, x), params, data, progress=False)
        Moments(2 contractions, 0 pairs, up to 100 vectors)
    """

    batches: Iterable[PyTree]
    inputs: Callable[[PyTree], PyTree] | None = None
    mask: Callable[..., jax.Array] | None = None
    sample: float = 1.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            batches=iterable,
            inputs=function("from a batch to the network's inputs"),
            mask=function("from the inputs to weights"),
            sample=number("(0, 1]", "the fraction of vectors to measure"),
        )

    @classmethod
    def of(cls, batches: Iterable[PyTree] | Calibration) -> Calibration:
        """Plain batches as a calibration with the defaults."""
        return batches if isinstance(batches, Calibration) else cls(batches)

    def check_rereadable(self, who: str) -> None:
        """Refuse an iterator, which can be read only once.

        Args:
            who: the transform that reads it, for the message.

        Raises:
            TypeError: for an iterator.
        """
        if iter(self.batches) is self.batches:
            raise TypeError(
                f"{who} reads its batches each time the chain runs: give a list, not an iterator"
            )

    def values(self, net: Network) -> Iterator[tuple[PyTree, ...]]:
        """Every batch as the tuple of a network's inputs.

        Raises:
            ValueError: for a batch that does not fit; it is named.
        """
        for turn, batch in enumerate(self.batches):
            values = check_batch(net, turn, batch if self.inputs is None else self.inputs(batch))
            if self.mask is not None:
                check_mask(turn, self.mask(*values))
            yield values


@checked(net=network, max_dim=whole())
def calibrate(
    net: Network,
    params: PyTree,
    batches: Iterable[PyTree] | Calibration,
    *,
    sensitivity: bool = False,
    max_dim: int = MAX_DIM,
    progress: bool = True,
) -> Moments:
    """Gather the moments of all activations along a network's axes, in one pass over data.

    Args:
        net: from `jc.trace`.
        params: the traced tree, dense, compact or pruned.
        batches: an iterable of batches, each an array or the tuple of `apply`'s inputs; a
            `jc.Calibration` where batches hold more, are padded, or a sample of them suffices.
        sensitivity: also gather how sensitive the outputs are to each contraction, for
            `jc.budget`; costs a backward pass.
        max_dim: contractions of more inputs keep variances alone.
        progress: show a progress bar.

    Returns:
        `Moments`, to be given to transforms; `moments[axis].plot()` shows an axis.

    Raises:
        ValueError: for no batches, or a batch with NaN, of another arity or rank; it is named.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> net = jc.trace(apply, params, x)
        >>> moments = jc.calibrate(net, params, [x], progress=False)
        >>> moments["up:1"].mean.shape
        (1, 8)
    """
    data = Calibration.of(batches)
    check_parameters(net, params)
    gather, duplicates = _gatherer(net, data, max_dim)
    outputs = OutputSensitivity(net, data.mask, max_dim) if sensitivity else None
    origins: dict[str, Origin] = {}
    running = RunningTotals()
    bar = {"desc": "calibrate", "total": length(data.batches), "leave": False}
    for turn, inputs in enumerate(tqdm(data.values(net), **bar, disable=not progress)):
        if turn == 0:
            origins = origins_of(gather(params, inputs, {}, turn))
        running.add(turn, gather(params, inputs, origins, turn))
        if outputs is not None:
            outputs.add(params, inputs, turn)
    totals = running.finish()
    if data.mask is not None and totals.sites and not any(map(has_weight, totals.sites.values())):
        raise ValueError("calibrate: the mask is zero everywhere: it leaves out every vector")
    for key, first in duplicates.items():
        totals.sites[key], origins[key] = totals.sites[first], origins[first]
    gains = {} if outputs is None else outputs.gains(params)
    return to_moments(net, params, totals, origins, gains)


def _gatherer(
    net: Network, data: Calibration, max_dim: int
) -> tuple[Callable[..., Totals], dict[str, str]]:
    """A compiled function to the totals of one batch; and which contractions it leaves out.

    The second maps each contraction whose vectors are those of an earlier one to that one; it is
    filled when the first batch is traced.
    """
    duplicates: dict[str, str] = {}

    @jax.jit
    def gather(
        params: PyTree, inputs: tuple[PyTree, ...], origins: dict[str, Origin], batch: int
    ) -> Totals:
        traced = net.traced_program(params, *inputs)
        vectors = vector_weights(traced, inputs, data.mask, data.sample, batch)
        accumulator = Accumulator(traced, origins, vectors, max_dim)
        net.replay(params, *inputs, tap=accumulator)
        duplicates.update(accumulator.duplicates)
        return accumulator.totals()

    return gather, duplicates


def length(batches: Iterable[PyTree]) -> int | None:
    """The number of batches where it is known, for a progress bar's estimate."""
    return len(batches) if isinstance(batches, Sized) else None


def origins_of(totals: Totals) -> dict[str, Origin]:
    """The mean and size of what each contraction takes in, one for all layers of a loop.

    Those of pairs are named `key/0` and `key/1`.
    """
    sums = dict(totals.sites)
    for key, sides in totals.pairs.items():
        sums |= {f"{key}/{side}": part for side, part in enumerate(sides)}
    origins = {}
    for key, part in sums.items():
        mean = part.s / jnp.maximum(_over(part.n, part.s), 1)
        layers = tuple(range(part.n.ndim))
        origins[key] = Origin(mean.mean(layers), unit_of(part.S.max(layers)))
    return origins


class RunningTotals:
    """Totals over batches, in float64 on the host.

    A batch is added when the next one has been dispatched, so that host and device overlap.
    """

    def __init__(self) -> None:
        self._totals: Totals | None = None
        self._pending: tuple[int, Totals] | None = None

    def add(self, number: int, batch: Totals) -> None:
        """Add one batch's totals.

        Raises:
            ValueError: for NaN or infinity in an earlier batch; it and the contraction are named.
        """
        self._add_pending()
        self._pending = number, batch

    def finish(self) -> Totals:
        """The totals of all batches.

        Raises:
            ValueError: as for `add`, and where there was no batch.
        """
        self._add_pending()
        if self._totals is None:
            raise ValueError("calibrate: there are no batches: give an iterable of at least one")
        return self._totals

    def _add_pending(self) -> None:
        if self._pending is None:
            return
        number, batch = self._pending
        batch = jax.tree.map(np.asarray, batch)
        _check_finite(number, batch)
        if self._totals is None:
            self._totals = jax.tree.map(lambda leaf: np.array(leaf, np.float64), batch)
        else:
            jax.tree.map(_add_to, self._totals, batch)
        self._pending = None


def _add_to(total: np.ndarray, leaf: np.ndarray) -> None:
    """Add in place, since the totals of wide layers are large."""
    np.add(total, leaf, out=total)


def _check_finite(number: int, batch: Totals) -> None:
    for part in batch:
        for key, sums in part.items():
            if not all(map(_is_finite, jax.tree.leaves(sums))):
                raise ValueError(
                    f"calibrate: batch {number} gives NaN or infinity at {key}: "
                    "check the parameters and the data"
                )


def _is_finite(sums: np.ndarray) -> bool:
    """Whether sums are finite; of a product the diagonal shows it, and is much smaller."""
    if sums.ndim > 1 and sums.shape[-1] == sums.shape[-2]:
        sums = np.einsum("...ii->...i", sums)
    return bool(np.isfinite(sums).all())


def check_batch(net: Network, number: int, batch: PyTree) -> tuple[PyTree, ...]:
    """One batch as the tuple of the function's inputs.

    Args:
        net: the network.
        number: the batch's, for messages.
        batch: an input or a tuple of them.

    Raises:
        ValueError: for a batch that does not fit the traced inputs, is empty or has NaN.
    """
    traced = net.inputs
    values = batch if isinstance(batch, tuple) else (batch,)
    if len(values) != len(traced):
        raise ValueError(
            f"calibrate: batch {number} has {len(values)} inputs, "
            f"the network takes {len(traced)}: give a tuple"
        )
    for position, (value, shape) in enumerate(zip(values, traced, strict=True)):
        where = f"calibrate: batch {number}, input {position}"
        if jax.tree.structure(value) != jax.tree.structure(shape):
            raise ValueError(f"{where} is another tree than the traced input")
        for leaf, like in zip(jax.tree.leaves(value), jax.tree.leaves(shape), strict=True):
            _check_input(where, leaf, like)
    return values


def check_parameters(net: Network, params: PyTree) -> None:
    """Refuse parameters that do not fit a network, by the leaf's name."""
    names = [name for name, _ in named_leaves(params)]
    net.structure.check_names(names)
    check_arrays("calibrate", params)
    net.sizes(params)


def check_mask(number: int, mask: ArrayLike) -> None:
    """Refuse a batch's weights that are no finite numbers from 0 on.

    Args:
        number: the batch's, for messages.
        mask: what the mask gave.
    """
    weights = array(f"calibrate: batch {number}, the mask", mask, what="an array of weights")
    if (weights < 0).any():
        raise ValueError(
            f"calibrate: batch {number}, the mask has the weight {weights.min():g}: weights are 0 "
            "for what is left out, and positive elsewhere"
        )


def has_weight(sums: Sums) -> bool:
    """Whether any vector of a contraction counted."""
    return bool(np.any(sums.n))


def _check_input(where: str, leaf: ArrayLike, like: jax.ShapeDtypeStruct) -> None:
    if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "OSUV":
        bfloat16 = jnp.issubdtype(leaf.dtype, jnp.floating)
        if not bfloat16:
            raise ValueError(f"{where} must be an array of numbers, got {shown(leaf)}")
    if np.ndim(leaf) != len(like.shape):
        raise ValueError(f"{where} has shape {np.shape(leaf)}, traced with {like.shape}")
    if np.size(leaf) == 0:
        raise ValueError(f"{where} is empty, of shape {np.shape(leaf)}")
    inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    if inexact and not np.isfinite(np.asarray(leaf, np.float32)).all():
        raise ValueError(f"{where} contains NaN or infinity: repair or leave it out")


def to_moments(
    net: Network,
    params: PyTree,
    totals: Totals,
    origins: Mapping[str, Origin],
    gains: Mapping[str, Statistic],
) -> Moments:
    """Moments from sums about origins; a branch that was never taken has none.

    Args:
        net: the network.
        params: the parameters that were run.
        totals: over all batches.
        origins: by the contraction's key, `key/0` and `key/1` for pairs.
        gains: the outputs' sensitivity to each contraction.
    """
    structure, sizes = net.structure, net.sizes(params)
    layouts = _axis_layouts(structure)
    sites: dict[str, Statistic] = {}
    for key, sums in totals.sites.items():
        if sums.n.any():
            lead, dims = _site_dims(structure.sites[key], sums, layouts, sizes)
            sites[key] = statistic(sums, origins[key], lead, dims, sizes)
    pairs: dict[str, tuple[Statistic, Statistic]] = {}
    for key, (left, right) in totals.pairs.items():
        if left.n.any() or right.n.any():
            pair = structure.pairs[key]
            dims = _named(pair.batch), pair.dims
            pairs[key] = (
                statistic(left, origins[f"{key}/0"], *dims, sizes),
                statistic(right, origins[f"{key}/1"], *dims, sizes),
            )
    counts: dict[str, np.ndarray] = {}
    for key, count in totals.lookups.items():
        for leaf in structure.sites[key].leaves:
            counts[leaf] = counts.get(leaf, 0) + np.asarray(count)
    return Moments(structure, sites, pairs, counts, gains, params)


def statistic(
    sums: Sums,
    origin: Origin,
    lead: tuple[Layout, ...],
    dims: tuple[Layout, ...],
    sizes: Mapping[str, int],
) -> Statistic:
    """Mean and covariance from sums about an origin.

    Args:
        sums: in float64.
        origin: what was subtracted from every vector, and its unit.
        lead: layouts of the leading dimensions.
        dims: layouts of the contracted ones.
        sizes: the present size of each axis.
    """
    shift, unit = (np.asarray(part, np.float64) for part in origin)
    total = np.asarray(sums.s) * unit
    count = np.maximum(_over(np.asarray(sums.n), total), 1e-30)
    mean = total / count
    if np.ndim(sums.S) == total.ndim:
        cov = np.asarray(sums.S) * unit**2 / count - mean**2
    else:
        second = np.asarray(sums.S) * unit[..., :, None] * unit[..., None, :]
        cov = second / count[..., None] - mean[..., :, None] * mean[..., None, :]
    return Statistic(
        tuple(layout.resized(sizes) for layout in lead),
        tuple(layout.resized(sizes) for layout in dims),
        float(np.max(sums.n)),
        mean + shift,
        cov,
    )


def _axis_layouts(structure: Structure) -> dict[str, Layout]:
    """The layout of each single axis."""
    layouts: dict[str, Layout] = {}
    for dims in structure.layouts.values():
        for layout in dims:
            layouts |= {part.key: part for part in layout.leaves()}
    return layouts


def _site_dims(
    site: Site, sums: Sums, layouts: Mapping[str, Layout], sizes: Mapping[str, int]
) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
    """The leading and the contracted dimensions of a site's sums.

    A wide convolution is measured at single places, without the dimensions of its window.
    """
    lead = (*(layouts[layer] for layer in site.layers), *_named(site.batch))
    if math.prod(dim.resized(sizes).size for dim in site.dims) == sums.s.shape[-1]:
        return lead, site.dims
    features = [dim for index, dim in enumerate(site.dims) if index not in site.window]
    return lead, tuple(features)


def _named(dims: tuple[Layout, ...]) -> tuple[Layout, ...]:
    """The dimensions that are axes of parameters."""
    return tuple(layout for layout in dims if all(layout.axes()))


def _over(count: ArrayT, like: ArrayT) -> ArrayT:
    """A count for each layer of a loop, shaped to broadcast against sums with vectors last."""
    return count.reshape(*count.shape, *(1,) * (like.ndim - count.ndim))
