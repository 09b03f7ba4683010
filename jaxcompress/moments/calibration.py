"""Gathering moments: sums over what the contractions of a running program see, in one pass over any data.

Products are in float32 inside a batch, about the first batch's mean, and in float64 across batches; memory does not depend
on the amount of data. Loops add up over their turns, or keep a statistic for each of their layers. Costs the forward pass and
m^2 products a row for each contraction of m inputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from jaxcompress.moments.accumulators import MAX_DIM, Taps
from jaxcompress.moments.masks import rows
from jaxcompress.moments.moments import Moments, Statistic
from jaxcompress.moments.sensitivity import Senses
from jaxcompress.networks.axes import Layout
from jaxcompress.networks.trace import Network


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
    """

    batches: Iterable[Any]
    inputs: Callable[[Any], Any] | None = None
    mask: Callable[..., Any] | None = None
    sample: float = 1.0

    @classmethod
    def of(cls, batches: Iterable[Any] | Calibration) -> Calibration:
        """Plain batches as a calibration with the defaults."""
        return batches if isinstance(batches, Calibration) else cls(batches)

    def check_rereadable(self, who: str) -> None:
        """Refuse an iterator, which can be read only once."""
        if iter(self.batches) is self.batches:
            raise TypeError(
                f"{who} reads its batches each time the chain runs: give a list, not an iterator"
            )

    def values(self, net: Network) -> Iterator[tuple[Any, ...]]:
        """Every batch as the tuple of a network's inputs, refused by name where it does not fit."""
        for number, batch in enumerate(self.batches):
            yield check_batch(net, number, batch if self.inputs is None else self.inputs(batch))


def calibrate(
    net: Network,
    params: Any,
    batches: Iterable[Any] | Calibration,
    *,
    sensitivity: bool = False,
    max_dim: int = MAX_DIM,
    progress: bool = True,
) -> Moments:
    """Gather what flows along a network's axes, in one pass over data.

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
    sums: dict[str, Any] = {}
    shifts: dict[str, Any] = {}
    alike: dict[str, str] = {}
    senses = Senses(net, data.mask, max_dim) if sensitivity else None

    @jax.jit
    def gather(params: Any, values: tuple[Any, ...], shifts: Any, number: Any) -> Any:
        found = net.traced_program(params, *values)
        taps = Taps(found, shifts, rows(found, values, data.mask, data.sample, number), max_dim)
        net.replay(params, *values, tap=taps)
        alike.update(taps.alike)
        return taps.sums

    number, running = -1, None
    for number, values in enumerate(
        tqdm(
            data.values(net),
            desc="calibrate",
            total=length(data.batches),
            disable=not progress,
            leave=False,
        )
    ):
        if number == 0:
            shifts = means(gather(params, values, {}, number))
        found = gather(params, values, shifts, number)
        if running is not None:  # the last batch is added up while this one runs
            sums = added(sums, *running)
        running = number, found
        if senses is not None:
            senses.add(params, values, number)
    if running is None:
        raise ValueError("calibrate: there are no batches: give an iterable of at least one")
    sums = added(sums, *running)
    for key, first in alike.items():
        sums[key], shifts[key] = sums[first], shifts[first]
    gains = {} if senses is None else senses.gains(params)
    return finish(
        net,
        params,
        sums,
        {key: np.asarray(shift, np.float64) for key, shift in shifts.items()},
        gains,
    )


def length(batches: Iterable[Any]) -> int | None:
    """The number of batches where it is known, for a progress bar's estimate."""
    return len(batches) if isinstance(batches, Sized) else None


def means(sums: dict[str, Any]) -> dict[str, Any]:
    """The mean of what every contraction met, either side of a pair by itself; one for all layers of a loop."""
    found = {}
    for key, sides in sums.items():
        for name, part in (
            [(f"{key}/{i}", side) for i, side in enumerate(sides)]
            if isinstance(sides, tuple)
            else [(key, sides)]
        ):
            if isinstance(part, dict):
                mean = part["s"] / jnp.maximum(_over(part["n"], part["s"]), 1)
                found[name] = mean.mean(tuple(range(part["n"].ndim)))
    return found


def added(sums: dict[str, Any], number: int, found: dict[str, Any]) -> dict[str, Any]:
    """Sums with one batch's added to them in float64, in place: they may be many."""
    for key, part in found.items():
        for leaf in jax.tree.leaves(
            part
        ):  # what is wrong anywhere in a product is so on its diagonal
            square = leaf.ndim > 1 and leaf.shape[-1] == leaf.shape[-2]
            if not np.isfinite(
                np.einsum("...ii->...i", np.asarray(leaf)) if square else np.asarray(leaf)
            ).all():
                raise ValueError(
                    f"calibrate: batch {number} gives NaN or infinity at {key}: check the parameters and the data"
                )
    if not sums:
        return jax.tree.map(lambda leaf: np.array(leaf, np.float64), found)
    return jax.tree.map(
        lambda total, leaf: np.add(total, leaf, out=total), sums, jax.tree.map(np.asarray, found)
    )


def check_batch(net: Network, number: int, batch: Any) -> tuple[Any, ...]:
    """One batch as the tuple of the function's inputs, refused by name where it does not fit."""
    traced = net.inputs
    values = batch if isinstance(batch, tuple) else (batch,)
    if len(values) != len(traced):
        raise ValueError(
            f"calibrate: batch {number} has {len(values)} inputs, the network takes {len(traced)}: give a tuple"
        )
    for position, (value, shape) in enumerate(zip(values, traced, strict=True)):
        if jax.tree.structure(value) != jax.tree.structure(shape):
            raise ValueError(
                f"calibrate: batch {number}, input {position} is another tree than the traced input"
            )
        for leaf, like in zip(jax.tree.leaves(value), jax.tree.leaves(shape), strict=True):
            if np.ndim(leaf) != len(like.shape):
                raise ValueError(
                    f"calibrate: batch {number}, input {position} has shape {np.shape(leaf)}, traced with {like.shape}"
                )
            if np.size(leaf) == 0:
                raise ValueError(
                    f"calibrate: batch {number}, input {position} is empty, of shape {np.shape(leaf)}"
                )
            if (
                jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
                and not np.isfinite(np.asarray(leaf, np.float32)).all()
            ):
                raise ValueError(
                    f"calibrate: batch {number}, input {position} contains NaN or infinity: repair or leave it out"
                )
    return values


def finish(
    net: Network,
    params: Any,
    sums: dict[str, Any],
    shifts: dict[str, np.ndarray],
    gains: dict[str, Statistic],
) -> Moments:
    """Moments from sums about shifts."""
    structure, sizes = net.structure, net.sizes(params)
    sites, pairs, counts = {}, {}, {}

    def statistic(
        part: Any, shift: np.ndarray, lead: tuple[Layout, ...], dims: tuple[Layout, ...]
    ) -> Statistic:
        n = np.maximum(_over(part["n"], part["s"]), 1e-30)
        mean = part["s"] / n
        diagonal = part["S"].ndim == part["s"].ndim
        outer = mean**2 if diagonal else mean[..., :, None] * mean[..., None, :]
        cov = part["S"] / (n if diagonal else n[..., None]) - outer
        now = lambda layouts: tuple(layout.resized(sizes) for layout in layouts)
        return Statistic(now(lead), now(dims), float(np.max(part["n"])), mean + shift, cov)

    named = lambda layouts: tuple(layout for layout in layouts if all(layout.axes()))
    full = {
        part.key: part
        for dims in structure.layouts.values()
        for layout in dims
        for part in layout.leaves()
    }
    for key, part in sums.items():
        seen = [
            side["n"]
            for side in (part if isinstance(part, tuple) else (part,))
            if isinstance(side, dict)
        ]
        if seen and not any(map(np.any, seen)):
            continue  # a branch that was never taken
        if isinstance(part, tuple):
            site = structure.pairs[key]
            shift = [shifts[f"{key}/{side}"] for side in (0, 1)]
            pairs[key] = tuple(
                statistic(part[side], shift[side], named(site.batch), site.dims) for side in (0, 1)
            )
        elif isinstance(part, dict):
            site = structure.sites[key]
            lead = (*(full[layer] for layer in site.layers), *named(site.batch))
            whole = math.prod(dim.resized(sizes).size for dim in site.dims) == part["s"].shape[-1]
            dims = (
                site.dims
                if whole
                else tuple(dim for index, dim in enumerate(site.dims) if index not in site.window)
            )
            sites[key] = statistic(part, shifts[key], lead, dims)
        else:
            for leaf in structure.sites[key].leaves:
                counts[leaf] = counts.get(leaf, 0) + part
    return Moments(structure, sites, pairs, counts, gains, params)


def _over(count: Any, like: Any) -> Any:
    """A count, for each layer of a loop where there are some, against sums with vectors last."""
    return count.reshape(*count.shape, *(1,) * (like.ndim - count.ndim))
