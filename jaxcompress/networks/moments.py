"""What flows along the axes: means and second moments of activations, gathered in one pass over any data.

Wherever activations are contracted with a parameter (or with each other) the mean and covariance of what is contracted are
accumulated, about the first batch's mean, in float32 inside a batch and float64 across batches; memory does not depend on
the amount of data. From these come the metric of every matrix's inputs and the statistics of every hidden axis. Costs the
forward pass and m^2 products a row for each contraction of m inputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from jaxcompress.networks.algebra import atoms
from jaxcompress.networks.axes import Axis, Layout, Structure
from jaxcompress.networks.maps import AxisMap, along, lines

if TYPE_CHECKING:
    from jaxcompress.networks.program import Step
    from jaxcompress.networks.rules import Contraction
    from jaxcompress.networks.trace import Found, Network

MAX_DIM = 4096
"""Contractions of more inputs keep the diagonal alone."""


@dataclasses.dataclass(frozen=True)
class Statistic:
    """Mean and covariance of the vectors that one contraction meets.

    Attributes:
        lead: layouts of leading dimensions: layers of a loop, and dimensions that a batched product has.
        dims: layouts of the contracted dimensions.
        count: how many vectors (per entry of `lead`).
        mean: (*lead, m), float64.
        cov: (*lead, m, m), float64, about the mean; (*lead, m) where only the diagonal is kept.
    """

    lead: tuple[Layout, ...]
    dims: tuple[Layout, ...]
    count: float
    mean: np.ndarray
    cov: np.ndarray

    @property
    def diagonal(self) -> bool:
        """Whether only variances are kept."""
        return self.cov.ndim == self.mean.ndim

    @property
    def second(self) -> np.ndarray:
        """Second moments about zero: `cov + mean mean'`."""
        if self.diagonal:
            return self.cov + self.mean**2
        return self.cov + self.mean[..., :, None] * self.mean[..., None, :]

    @property
    def flat(self) -> Layout:
        """The contracted dimensions as one."""
        if len(self.dims) == 1:
            return self.dims[0]
        return Layout("", math.prod(dim.size for dim in self.dims), "product", self.dims)

    def __add__(self, other: Statistic) -> Statistic:
        count = self.count + other.count
        share = other.count / count if count else 0.0
        gap = other.mean - self.mean
        mean = self.mean + share * gap
        outer = gap**2 if self.diagonal else gap[..., :, None] * gap[..., None, :]
        cov = (1 - share) * self.cov + share * other.cov + share * (1 - share) * outer
        return dataclasses.replace(self, count=count, mean=mean, cov=cov)

    def mapped(self, axis: Axis, matrices: np.ndarray) -> Statistic:
        """The statistic of activations that a map changed along an axis."""
        mean, cov = self.mean, self.cov
        lead, flat = list(self.lead), self.flat
        for position, layout in enumerate(self.lead):
            if axis.key in layout.axes():
                mean = along(mean, (*lead, flat), position, axis, matrices)
                trailing = (flat,) if self.diagonal else (flat, flat)
                cov = along(cov, (*lead, *trailing), position, axis, matrices)
                lead[position] = layout.resized({axis.key: matrices.shape[-1]})
        if axis.key in flat.axes():
            where = len(lead)
            mean = along(mean, (*lead, flat), where, axis, matrices)
            if self.diagonal:
                cov = along(cov, (*lead, flat), where, axis, matrices**2)
            else:
                new = flat.resized({axis.key: matrices.shape[-1]})
                cov = along(cov, (*lead, flat, Layout("", flat.size)), where, axis, matrices)
                cov = along(cov, (*lead, Layout("", new.size), flat), where + 1, axis, matrices)
        dims = tuple(dim.resized({axis.key: matrices.shape[-1]}) for dim in self.dims)
        return Statistic(tuple(lead), dims, self.count, mean, cov)

    def axis(self, axis: Axis, fibres: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Mean (F, d) and covariance (F, d, d) along an axis, for each fibre; other positions are pooled."""
        flat = self.flat
        where = lines(flat, axis.key)
        means, covs = [], []
        lead_index = [layout.index(key) for layout in self.lead for key in axis.fibres if key in layout.axes()]
        lead_keys = [key for layout in self.lead for key in axis.fibres if key in layout.axes()]
        for place in np.ndindex(*fibres):
            wanted = dict(zip(axis.fibres, place, strict=True))
            mine = np.ones(where.shape[1], bool)
            for key, index in wanted.items():
                if key in flat.axes():
                    mine &= flat.index(key)[where[0]] == index
            mean, cov = self.mean, self.cov
            for key, index in zip(lead_keys, lead_index, strict=True):
                position = next(i for i, layout in enumerate(self.lead) if key in layout.axes())
                rows = np.flatnonzero(index == wanted[key])
                mean, cov = np.take(mean, rows, position), np.take(cov, rows, position)
            mean, cov = mean.reshape(-1, flat.size), cov.reshape(-1, *cov.shape[len(self.lead) :])
            columns = where[:, mine].T  # (lines, d)
            block_mean = mean[:, columns].reshape(-1, len(where))
            if self.diagonal:
                blocks = cov[:, columns].reshape(-1, len(where))
                blocks = np.stack([np.diag(block) for block in blocks])
            else:
                blocks = cov[:, columns[:, :, None], columns[:, None, :]].reshape(-1, len(where), len(where))
            pooled = block_mean.mean(0)
            spread = block_mean - pooled
            means.append(pooled)
            covs.append(blocks.mean(0) + spread.T @ spread / len(spread))
        return np.stack(means), np.stack(covs)


@dataclasses.dataclass(frozen=True)
class AxisMoments:
    """What flows along one hidden axis.

    Attributes:
        axis: the axis.
        count: how many vectors were seen.
        mean: (fibres, d).
        cov: (fibres, d, d), about the mean.
    """

    axis: Axis
    count: float
    mean: np.ndarray
    cov: np.ndarray

    @property
    def second(self) -> np.ndarray:
        """(fibres, d, d): second moments about zero."""
        return self.cov + self.mean[:, :, None] * self.mean[:, None, :]

    @property
    def correlations(self) -> np.ndarray:
        """(fibres, d, d); a channel that never changes correlates with none."""
        scale = np.sqrt(np.einsum("fii->fi", self.cov))
        safe = np.where(scale > 0, scale, 1)
        return np.where((scale[:, :, None] > 0) & (scale[:, None, :] > 0), self.cov / safe[:, :, None] / safe[:, None, :], 0)

    @property
    def spectrum(self) -> np.ndarray:
        """(fibres, d): the variances along the principal directions, largest first."""
        return np.maximum(np.linalg.eigvalsh(self.cov)[:, ::-1], 0)

    def groups(self, threshold: float = 0.9, fibre: int = 0) -> list[list[int]]:
        """Channels that say the same: connected by correlations of either sign above a threshold, larger groups first."""
        from scipy.sparse.csgraph import connected_components

        linked = np.abs(self.correlations[fibre]) >= threshold
        np.fill_diagonal(linked, True)
        count, labels = connected_components(linked)
        found = [np.flatnonzero(labels == label).tolist() for label in range(count)]
        return sorted((group for group in found if len(group) > 1), key=len, reverse=True)

    def plot(self, *, threshold: float = 0.9, fibre: int = 0, path: Any = None) -> Any:
        """Draw the correlations, channels ordered so that alike ones are neighbours, and the spectrum.

        Args:
            threshold: groups of channels above it are named below the picture.
            fibre: which fibre.
            path: also save the picture there.

        Returns:
            The matplotlib figure.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("plot draws with matplotlib: pip install 'jaxcompress[plot]'") from None
        from scipy.cluster.hierarchy import leaves_list, linkage

        correlations = self.correlations[fibre]
        size = len(correlations)
        order = leaves_list(linkage(correlations, "average")) if size > 2 else np.arange(size)
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        image = left.imshow(correlations[np.ix_(order, order)], vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        left.set(title=f"correlations of {self.axis.key}", xlabel="channels, alike ones side by side")
        figure.colorbar(image, ax=left, shrink=0.8)
        variances = self.spectrum[fibre]
        share = np.cumsum(variances) / max(variances.sum(), np.finfo(float).tiny)
        right.plot(np.arange(1, size + 1), 1 - share, marker=".")
        right.set(yscale="log", xlabel="principal directions kept", ylabel="variance left out", title="spectrum")
        right.set_ylim(bottom=max(1e-6, (1 - share)[share < 1 - 1e-9].min(initial=1) / 2))
        right.grid(alpha=0.3)
        groups = self.groups(threshold, fibre)
        shown = "; ".join(str(group) for group in groups[:3]) + (f"; and {len(groups) - 3} more" if len(groups) > 3 else "")
        figure.suptitle(f"|correlation| >= {threshold:g}: {shown or 'no two channels'}", fontsize="small", y=-0.02)
        if path is not None:
            figure.savefig(path, dpi=150, bbox_inches="tight")
        return figure


@dataclasses.dataclass(frozen=True, repr=False)
class Moments:
    """The activations' statistics of one network, at the sizes of the parameters they were gathered with.

    Attributes:
        structure: the network's axes.
        sites: a statistic for each contraction with a parameter.
        pairs: two for each contraction of activations with activations.
        counts: for each embedding how often each row was looked up.
    """

    structure: Structure
    sites: Mapping[str, Statistic]
    pairs: Mapping[str, tuple[Statistic, Statistic]]
    counts: Mapping[str, np.ndarray]

    def __getitem__(self, axis: str) -> AxisMoments:
        """The statistics along one hidden axis."""
        row = self.structure.axes[axis]
        assert isinstance(row, Axis)
        found = [statistic for statistic in self.sites.values() if any(row.key in dim.axes() for dim in statistic.dims)]
        if not found:
            found = [side for sides in self.pairs.values() for side in sides if any(row.key in dim.axes() for dim in side.dims)]
        if not found:
            raise KeyError(f"nothing was measured along {axis}: no contraction meets it")
        return self.pooled(row, found)

    def pooled(self, row: Axis, found: list[Statistic]) -> AxisMoments:
        """Several statistics along one axis as one."""
        sizes = {part.key: part.size for s in found for layout in (*s.lead, *s.dims) for part in layout.leaves()}
        fibres = tuple(sizes.get(key, 1) for key in row.fibres)
        total, mean, cov = 0.0, np.zeros(()), np.zeros(())
        for statistic in found:
            m, c = statistic.axis(row, fibres)
            weight = max(statistic.count, 1e-30)
            share = weight / (total + weight)
            gap = m - mean
            mean = mean + share * gap
            cov = (1 - share) * cov + share * c + share * (1 - share) * gap[:, :, None] * gap[:, None, :]
            total += weight
        return AxisMoments(row, total, mean, cov)

    def by_leaf(self) -> dict[str, np.ndarray]:
        """For every matrix the second moments of its inputs, where they are known: (..., m, m)."""
        found: dict[str, Statistic] = {}
        for key, statistic in self.sites.items():
            site = self.structure.sites[key]
            usable = not (statistic.diagonal or site.batch) and len(statistic.dims) == len(site.dims)
            for leaf, order in site.inputs.items() if usable else ():
                if list(order) == sorted(order):  # a matrix is read with its inputs in their own order
                    found[leaf] = found[leaf] + statistic if leaf in found else statistic
        return {leaf: statistic.second for leaf, statistic in found.items()}

    def mapped(self, axis: Axis, change: AxisMap) -> Moments:
        """The moments of the network after a map on one axis: exact there, first order downstream."""
        touches = lambda statistic: any(axis.key in layout.axes() for layout in (*statistic.lead, *statistic.dims))
        produce = change.produce
        sites = {k: s.mapped(axis, produce) if touches(s) else s for k, s in self.sites.items()}
        pairs = dict(self.pairs)
        for key, sides in pairs.items():
            slots = self.structure.pairs[key].sides
            maps = [next((change.other[slot] for slot in side if slot in change.other), produce) for side in slots]
            pairs[key] = tuple(s.mapped(axis, m) if touches(s) else s for s, m in zip(sides, maps, strict=True))  # type: ignore[assignment]
        return dataclasses.replace(self, sites=sites, pairs=pairs)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of data."""
        if not isinstance(other, Moments) or self.sites.keys() != other.sites.keys():
            raise ValueError("moments are added where they are of one network")
        shapes = lambda moments: [statistic.mean.shape for statistic in moments.sites.values()]
        if shapes(self) != shapes(other):
            raise ValueError("moments are added where they were gathered at the same sizes")
        return Moments(
            self.structure,
            {key: statistic + other.sites[key] for key, statistic in self.sites.items()},
            {key: (a + other.pairs[key][0], b + other.pairs[key][1]) for key, (a, b) in self.pairs.items()},
            {key: count + other.counts[key] for key, count in self.counts.items()},
        )

    def __repr__(self) -> str:
        rows = max((statistic.count for statistic in self.sites.values()), default=0)
        diagonal = [key for key, statistic in self.sites.items() if statistic.diagonal]
        note = f"; diagonal alone for {', '.join(diagonal)}" if diagonal else ""
        return f"Moments({len(self.sites)} contractions, {len(self.pairs)} pairs, up to {rows:,.0f} vectors{note})"


# --- gathering -----------------------------------------------------------------------------------------------------


class Taps:
    """Sums over what the contractions of a running program see."""

    def __init__(self, found: Found, shifts: Mapping[str, Any], mask: Any, max_dim: int):
        self.found, self.shifts, self.mask, self.max_dim = found, shifts, mask, max_dim
        self.sums: dict[str, Any] = {}

    def nested(self) -> Taps:
        """Empty sums for one turn of a loop."""
        return Taps(self.found, self.shifts, self.mask, self.max_dim)

    def divide(self, turns: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Sums to be added over a loop's turns, and those kept apart because the loop runs over their layers."""
        contractions = self.found.analysis.contractions
        layered = {k for k in self.sums if k in contractions and any(layer is turns for layer in contractions[k].layers)}
        return {k: s for k, s in self.sums.items() if k not in layered}, {k: s for k, s in self.sums.items() if k in layered}

    def update(self, *sums: dict[str, Any]) -> None:
        for each in sums:
            self.sums.update(each)

    def see(self, key: str, operands: list[Any], step: Step) -> None:
        """Add one contraction's vectors."""
        contraction = self.found.analysis.contractions.get(key)
        if contraction is not None and contraction.rows is not None:
            self.sums[key] = self.rows(operands[contraction.operand], contraction.rows)
        elif contraction is not None and contraction.window:
            x = patches(operands, contraction, step, self.max_dim)
            self.sums[key] = self.second(key, x, (x.ndim - 1,), [])
        elif contraction is not None:
            kept = [position for position, dim in contraction.batch if self.named(dim)]
            self.sums[key] = self.second(key, operands[contraction.operand], contraction.positions, kept)
        elif key in self.found.analysis.pairs:
            pair = self.found.analysis.pairs[key]
            kept = [(left, right) for left, right, dim in pair.batch if self.named(dim)]
            self.sums[key] = tuple(
                self.second(f"{key}/{side}", operands[side], pair.positions[side], [both[side] for both in kept]) for side in (0, 1)
            )

    def named(self, dim: Any) -> bool:
        """Whether a dimension is an axis of parameters, not one of the data."""
        return dim is not None and all(atom in self.found.names for atom in atoms(dim))

    def weights(self, x: Any, taken: Iterable[int]) -> Any:
        """A weight for each vector, from the mask, where the leading dimensions are the mask's."""
        if self.mask is None or self.mask.ndim > x.ndim or x.shape[: self.mask.ndim] != self.mask.shape:
            return jnp.ones((), jnp.float32)
        if set(range(self.mask.ndim)) & set(taken):
            return jnp.ones((), jnp.float32)
        return self.mask.astype(jnp.float32)

    def second(self, key: str, x: Any, positions: tuple[int, ...], kept: list[int]) -> Any:
        """Count, sum and products of the vectors along given dimensions, about the shift."""
        x = x.materialize() if hasattr(x, "materialize") else x
        weights = self.weights(x, [*positions, *kept])
        rest = [index for index in range(x.ndim) if index not in positions and index not in kept]
        spread = jnp.broadcast_to(weights.reshape(*weights.shape, *(1,) * (len(rest) - weights.ndim)), [x.shape[i] for i in rest])
        lead, m = [x.shape[i] for i in kept], math.prod(x.shape[i] for i in positions)
        flat = jnp.transpose(x, (*kept, *rest, *positions)).reshape(*lead, -1, m).astype(jnp.float32)
        rows = spread.reshape(-1, 1)
        if key in self.shifts:
            flat = flat - self.shifts[key][..., None, :]
        flat = jnp.where(rows > 0, flat, 0)  # padding may hold anything
        weighted = flat * rows
        if m > self.max_dim:
            products = jnp.sum(weighted * flat, axis=-2)
        else:
            products = jnp.matmul(jnp.matrix_transpose(weighted), flat, precision="highest")
        return {"n": spread.sum(), "s": weighted.sum(-2), "S": products}

    def rows(self, indices: Any, size: int) -> Any:
        """How often each row of a table is looked up."""
        flat = indices[..., 0]
        weights = self.weights(flat, ())
        weights = jnp.broadcast_to(weights.reshape(*weights.shape, *(1,) * (flat.ndim - weights.ndim)), flat.shape)
        return jnp.zeros(size, jnp.float32).at[flat.ravel()].add(weights.ravel(), mode="drop")


def patches(operands: list[Any], contraction: Contraction, step: Step, max_dim: int) -> jax.Array:
    """What a convolution's kernel is contracted with, flat and last, in the kernel's order; the features alone where it is wide."""
    x, kernel = (operand.materialize() if hasattr(operand, "materialize") else operand for operand in operands)
    numbers = step.params["dimension_numbers"]
    _, k_in, *k_space = numbers.rhs_spec
    groups = step.params["feature_group_count"]
    if groups > 1 or kernel.shape[k_in] * math.prod(kernel.shape[axis] for axis in k_space) > max_dim:
        return jnp.moveaxis(x, numbers.lhs_spec[1], -1)
    options = {name: step.params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")}
    window = [kernel.shape[axis] for axis in k_space]
    precision = jax.lax.Precision.HIGHEST
    found = jax.lax.conv_general_dilated_patches(x, window, **options, dimension_numbers=numbers, precision=precision)
    found = jnp.moveaxis(found, numbers.out_spec[1], -1)
    found = found.reshape(*found.shape[:-1], kernel.shape[k_in], *window)
    order = sorted(range(len(numbers.rhs_spec) - 1), key=lambda index: (k_in, *k_space)[index])
    first = found.ndim - len(order)
    found = jnp.transpose(found, (*range(first), *(first + index for index in order)))
    return found.reshape(*found.shape[:first], -1)


def calibrate(
    net: Network,
    params: Any,
    batches: Iterable[Any],
    inputs: Callable[[Any], Any] | None = None,
    *,
    mask: Callable[..., Any] | None = None,
    max_dim: int = MAX_DIM,
    progress: bool = True,
) -> Moments:
    """See `Network.calibrate`."""
    sums: dict[str, Any] = {}
    shifts: dict[str, Any] = {}

    @jax.jit
    def gather(params: Any, values: tuple[Any, ...], shifts: Any) -> Any:
        found, _, _ = net._prepare(params, values)
        taps = Taps(found, shifts, None if mask is None else jnp.asarray(mask(*values)), max_dim)
        net._replay(params, *values, tap=taps)
        return taps.sums

    number = -1
    for number, batch in enumerate(tqdm(batches, desc="calibrate", disable=not progress, leave=False)):
        values = check_batch(net, number, batch if inputs is None else inputs(batch))
        if number == 0:
            first = gather(params, values, {})
            for key, sides in first.items():
                sided = [(f"{key}/{i}", part) for i, part in enumerate(sides)] if isinstance(sides, tuple) else [(key, sides)]
                for name, part in sided:
                    if isinstance(part, dict):
                        mean = part["s"] / jnp.maximum(_over(part["n"], part["s"]), 1)
                        shifts[name] = mean.mean(tuple(range(part["n"].ndim)))  # one for all layers of a loop
        found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), gather(params, values, shifts))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
            bad = next(key for key, part in found.items() if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part)))
            raise ValueError(f"calibrate: batch {number} gives NaN or infinity at {bad}: check the parameters and the data")
        sums = found if number == 0 else jax.tree.map(np.add, sums, found)
    if number < 0:
        raise ValueError("calibrate: there are no batches: give an iterable of at least one")
    return finish(net, params, sums, {key: np.asarray(shift, np.float64) for key, shift in shifts.items()})


def check_batch(net: Network, number: int, batch: Any) -> tuple[Any, ...]:
    """One batch as the tuple of the function's inputs, refused by name where it does not fit."""
    traced = net.inputs
    values = batch if isinstance(batch, tuple) else (batch,)
    if len(values) != len(traced):
        raise ValueError(f"calibrate: batch {number} has {len(values)} inputs, the network takes {len(traced)}: give a tuple")
    for position, (value, shape) in enumerate(zip(values, traced, strict=True)):
        if jax.tree.structure(value) != jax.tree.structure(shape):
            raise ValueError(f"calibrate: batch {number}, input {position} is another tree than the traced input")
        for leaf, like in zip(jax.tree.leaves(value), jax.tree.leaves(shape), strict=True):
            if np.ndim(leaf) != len(like.shape):
                raise ValueError(
                    f"calibrate: batch {number}, input {position} has shape {np.shape(leaf)}, traced with {like.shape}"
                )
            if np.size(leaf) == 0:
                raise ValueError(f"calibrate: batch {number}, input {position} is empty, of shape {np.shape(leaf)}")
            if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not np.isfinite(np.asarray(leaf, np.float32)).all():
                raise ValueError(f"calibrate: batch {number}, input {position} contains NaN or infinity: repair or leave it out")
    return values


def finish(net: Network, params: Any, sums: dict[str, Any], shifts: dict[str, np.ndarray]) -> Moments:
    """Moments from sums about shifts."""
    structure, sizes = net.structure, net.sizes(params)
    sites, pairs, counts = {}, {}, {}

    def statistic(part: Any, shift: np.ndarray, lead: tuple[Layout, ...], dims: tuple[Layout, ...]) -> Statistic:
        n = np.maximum(_over(part["n"], part["s"]), 1e-30)
        mean = part["s"] / n
        diagonal = part["S"].ndim == part["s"].ndim
        outer = mean**2 if diagonal else mean[..., :, None] * mean[..., None, :]
        cov = part["S"] / (n if diagonal else n[..., None]) - outer
        now = lambda layouts: tuple(layout.resized(sizes) for layout in layouts)
        return Statistic(now(lead), now(dims), float(np.max(part["n"])), mean + shift, cov)

    named = lambda layouts: tuple(layout for layout in layouts if all(layout.axes()))
    full = {part.key: part for dims in structure.layouts.values() for layout in dims for part in layout.leaves()}
    for key, part in sums.items():
        if isinstance(part, tuple):
            site = structure.pairs[key]
            shift = [shifts[f"{key}/{side}"] for side in (0, 1)]
            pairs[key] = tuple(statistic(part[side], shift[side], named(site.batch), site.dims) for side in (0, 1))
        elif isinstance(part, dict):
            site = structure.sites[key]
            lead = (*(full[layer] for layer in site.layers), *named(site.batch))
            whole = math.prod(dim.resized(sizes).size for dim in site.dims) == part["s"].shape[-1]
            dims = site.dims if whole else tuple(dim for index, dim in enumerate(site.dims) if index not in site.window)
            sites[key] = statistic(part, shifts[key], lead, dims)
        else:
            for leaf in structure.sites[key].leaves:
                counts[leaf] = counts.get(leaf, 0) + part
    return Moments(structure, sites, pairs, counts)


def _over(count: Any, like: Any) -> Any:
    """A count, for each layer of a loop where there are some, against sums with vectors last."""
    return count.reshape(*count.shape, *(1,) * (like.ndim - count.ndim))
