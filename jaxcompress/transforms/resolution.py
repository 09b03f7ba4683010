"""Coarsen and refine: a hidden axis as a function sampled on equal cells, at any number of cells.

With P (coarse, fine) the prolongation of a basis and D = (P P')^-1 P its dual, so that `P D' = 1`:

    refine    produce P,   consume D'   (repeat; average):  h P D' C = h C, the same function
    coarsen   produce D',  consume P    (average; repeat):  the adjoint, multigrid's restriction

so coarsening undoes refining. With moments, channels are weighted by their effect on the
consumers, and the coarse values predict all fine ones by least squares; the mean of the remainder
is added to the consumers' biases. Refinement by steps commutes with every elementwise function,
and by whole factors with norms over the axis, too. Repeated channels would stay equal in
training: any N with `N P' = 0` may be added to D for the consumers, which breaks the symmetry and
not the function. Costs one small matrix product a leaf, and with moments O(r^3) an axis. Without
moments both are linear in the parameters and run inside `jax.jit` and `jax.grad`.

Sources: multigrid, Briggs, Henson and McCormick 2000; widening without change, Net2Net
(arXiv:1511.05641); a layer as a function on an axis, Integral Neural Networks (Solodskikh et al.
2023).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.spline import BASES
from jaxcompress.checks import checked, choice, number, path_pattern, seeds
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.maps import AxisMap
from jaxcompress.networks.trace import Network, structure_of, traced
from jaxcompress.programs.program import Slot
from jaxcompress.transforms.axis_statistics import measured, normalised_moments
from jaxcompress.transforms.axiswise import AxisTransform, largest_by_option
from jaxcompress.transforms.consumers import consumer_gram
from jaxcompress.transforms.folds import fold_into_consumers
from jaxcompress.transforms.legality import has_norm, pair_of, why_not_resize
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.options import PerLeaf, PerPattern, per_pattern
from jaxcompress.transforms.prolongation import dual, predict_fine, prolongation

Factor: TypeAlias = float | Fraction | Mapping[str, float | Fraction]
"""A factor for all axes, or by pattern of axis keys."""

Factors: TypeAlias = PerPattern[float | Fraction]
"""A `Factor` as a transform keeps it."""


@dataclasses.dataclass(frozen=True, repr=False)
class Resolution(AxisTransform):
    """The base of changes of resolution; a subclass gives `new_size` and `resized`."""

    traceable = True
    structure: Structure = dataclasses.field(hash=False)
    factor: Factors
    basis: str = "step"
    axes: str = "**"

    def new_size(self, size: int, factor: Fraction) -> int:
        """The size that a factor gives."""
        raise NotImplementedError

    def resized(self, state: NetworkState, axis: Axis, size: int) -> AxisChange:
        """The change of an axis to a new size, where it is legal."""
        raise NotImplementedError

    def change(self, state: NetworkState, axis: Axis) -> AxisChange | None:
        """The axis at its new size, or None where it stays or must stay as it is."""
        factor = PerLeaf(self.factor, "factor").get(axis.key)
        present = state.size(axis)
        size = present if factor is None else self.new_size(present, Fraction(factor))
        if size == present or not self.can_resize(state, axis, size):
            return None
        if why := why_not_resize(state, axis, size, self.basis):
            if self.axes != "**":  # the axis was named, so it may not be skipped
                raise ValueError(f"{axis.key} cannot go from {present} to {size} channels: {why}")
            self.skip(axis, why)
            return None
        state.check_dense(axis)
        return self.resized(state, axis, size)


@dataclasses.dataclass(frozen=True, repr=False)
class Refine(Resolution):
    """See `refine`."""

    split: float = 0.0
    seed: int = 0
    role: str = "parameters"

    def of(self, role: str) -> Refine:
        """The same change of a tree of "gradients", or of an optimizer's normalised "steps"."""
        return dataclasses.replace(self, role=role, split=0.0)

    def new_size(self, size: int, factor: Fraction) -> int:
        """The size times the factor."""
        return round(size * factor)

    def resized(self, state: NetworkState, axis: Axis, size: int) -> AxisChange:
        """Producers are prolonged, consumers averaged."""
        repeat = prolongation(state.size(axis), size, self.basis)
        average = dual(repeat)
        if self.split:
            # a random change N of the consumers' average with N P' = 0 does not change the function
            rng = np.random.default_rng([self.seed, *axis.key.encode()])
            noise = rng.normal(size=average.shape) / len(average) ** 0.5
            invisible = noise - noise @ repeat.T @ average
            average = average + self.split * len(average) / size * invisible
        other = second_side(state, axis, average[None])
        change = AxisMap(repeat[None], average.T[None], other=other)
        return AxisChange(change if self.role == "parameters" else adjoint(change, self.role))


def adjoint(change: AxisMap, role: str) -> AxisMap:
    """The map of gradients, or of normalised steps, that belongs to a map of parameters.

    For gradients producers and consumers change roles, which gives the smallest fine gradients that
    explain the coarse ones. Steps whose size does not depend on the gradient's are repeated.
    """
    consume, other = np.swapaxes(change.produce, 1, 2), dict.fromkeys(change.other, change.produce)
    produce = change.produce if role == "steps" else np.swapaxes(change.consume, 1, 2)
    return AxisMap(produce, consume, other=other)


class Coarsen(Resolution):
    """See `coarsen`."""

    def check_effect(self, state: NetworkState, axes: list[Axis]) -> None:
        """Refuse a factor beyond the size of every axis that it is for."""
        for factor, size in largest_by_option(PerLeaf(self.factor, "factor"), state, axes).items():
            if factor > size > 1:
                raise ValueError(
                    f"coarsen's factor {factor} is larger than the largest axis that it is for, of "
                    f"{size} channels: give a factor of at most {size}"
                )

    def new_size(self, size: int, factor: Fraction) -> int:
        """The size divided by the factor, at least one."""
        return coarse_size(size, factor)

    def resized(self, state: NetworkState, axis: Axis, size: int) -> AxisChange:
        """Producers are averaged, consumers predict the fine values from the averages."""
        repeat = prolongation(size, state.size(axis), self.basis)
        known = measured(state, axis) is not None and not axis.pair
        if known and not has_norm(axis):
            weights = effects(state, axis)
        else:  # a norm weights all channels equally
            weights = np.ones((1, state.size(axis)))
        average = np.stack([dual(repeat, row).T for row in weights])
        other = second_side(state, axis, repeat.T[None])
        change = AxisMap(average, repeat[None], other=other)
        if not known:
            return AxisChange(change)
        averages = np.broadcast_to(average, (state.fibres(axis), *average.shape[1:]))

        def predictions(moments: np.ndarray, count: float) -> np.ndarray:
            fibres = zip(moments, averages, strict=True)
            return np.stack([predict_fine(s, mean, repeat, count) for s, mean in fibres])

        return fold_into_consumers(state, axis, rescaled(state, axis, change), predictions)


class Thin(Coarsen):
    """See `thin`."""

    def resized(self, state: NetworkState, axis: Axis, size: int) -> AxisChange:
        """The channels at the middles of the coarse cells are kept."""
        d = state.size(axis)
        chosen = ((2 * np.arange(size) + 1) * d) // (2 * size)
        produce, scale = np.eye(d)[:, chosen], (d / size) ** 0.5
        other = second_side(state, axis, scale * produce[None])
        return AxisChange(AxisMap(produce[None], scale * produce.T[None], other=other))


def coarse_size(size: int, factor: Fraction | float) -> int:
    """The size that `coarsen` gives an axis, at least one."""
    return max(1, round(size / factor))


def effects(state: NetworkState, axis: Axis) -> Float[np.ndarray, "fibres d"]:
    """The squared norm of each channel's consumers, at least a thousandth of the mean."""
    # the floor keeps the weighted dual solvable where whole cells have no effect
    power = np.einsum("fdd->fd", consumer_gram(state, axis))
    mean = power.mean(1, keepdims=True)
    return np.where(mean > 0, np.maximum(power, 1e-3 * mean), 1.0)


def second_side(state: NetworkState, axis: Axis, matrix: np.ndarray) -> dict[Slot, np.ndarray]:
    """The dual map for the second of two activations that are multiplied over an axis."""
    if not axis.pair:
        return {}
    key = pair_of(state, axis)
    assert key is not None
    return dict.fromkeys(state.structure.pairs[key].sides[1], matrix)


def rescaled(state: NetworkState, axis: Axis, change: AxisMap) -> AxisMap:
    """A map whose scales make up for the smaller variance of averages under a norm."""
    if not has_norm(axis) or not axis.scales:
        return change
    before = normalised_moments(state, axis)
    after = change.produce[0].T @ before @ change.produce[0]
    power = np.trace(before) / len(before)
    ratio = math.sqrt(max(np.trace(after) / change.size, 0) / power) if power > 0 else 1.0
    return dataclasses.replace(change, channels=change.produce * ratio)


@checked(
    net=traced,
    basis=choice(*BASES),
    axes=path_pattern,
    split=number("[0, inf)", "such as 0.1"),
    seed=seeds,
)
def refine(
    net: Network | Structure,
    factor: Factor,
    *,
    basis: str = "step",
    axes: str = "**",
    split: float = 0.0,
    seed: int = 0,
) -> Refine:
    """Give hidden axes more channels without a change of the network's function.

    A coarse network's solution then starts the training of a finer one.

    Args:
        net: from `jc.trace`; only its axes are kept.
        factor: new size over old size, at least 1, an integer or not; or a mapping from patterns of
            axis keys to factors.
        basis: "step" repeats channels; "linear" and "cubic" interpolate between neighbours, which
            changes the results of nonlinear functions, the less the smoother the axis.
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".
        split: scale of a zero-sum perturbation of the consumers that breaks the symmetry of
            repeated channels for training, relative to the consumers' weights.
        seed: of the perturbation.

    Returns:
        A transform of parameters, which needs no moments. Axes whose function cannot be kept are
        not changed, and the log names the reason: tied ones, and with "step" those under a norm if
        the factor is not an integer.

    Raises:
        ValueError: for a factor below 1, a negative split, an unknown basis; when called, for an
            axis that `axes` names and that cannot be refined.
        TypeError: for a `net` that is not from `jc.trace`.

    Source:
        Net2Net, arXiv:1511.05641.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> keys, shapes = jax.random.split(jax.random.key(0), 3), [(3, 4), (4, 2), (5, 3)]
        >>> up, down, x = map(jax.random.normal, keys, shapes)
        >>> params = {"up": up, "down": down}
        >>> net = jc.trace(apply, params, x)
        >>> wide = jc.refine(net, 3/2)(params)
        >>> wide["up"].shape, bool(jnp.allclose(net(wide, x), apply(params, x), atol=1e-5))
        ((3, 6), True)
    """
    factors = _check_factors(net, factor, "refine")
    return Refine(structure_of(net), factors, basis, axes, split=split, seed=seed)


@checked(net=traced, basis=choice(*BASES), axes=path_pattern)
def coarsen(
    net: Network | Structure, factor: Factor, *, basis: str = "step", axes: str = "**"
) -> Coarsen:
    """Give hidden axes fewer channels: neighbours are averaged, and consumers use the average.

    Neighbours should be similar: put `jc.seriate` before it in a chain. It undoes `refine` of the
    same basis.

    Args:
        net: from `jc.trace`; only its axes are kept.
        factor: old size over new size, at least 1, an integer or not; or a mapping from patterns of
            axis keys to factors.
        basis: how coarse values are interpolated: "step", "linear" or "cubic".
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".

    Returns:
        A transform; call it as `transform(params, moments)` with the moments of `jc.calibrate`, and
        the consumers are fitted to their inputs. Axes that cannot be averaged are not changed, and
        the log names the reason.

    Raises:
        ValueError: for a factor below 1, an unknown basis; when called, for an axis that `axes`
            names and that cannot be coarsened, or an axis of a compact leaf.
        TypeError: for a `net` that is not from `jc.trace`.

    Source:
        Multigrid, Briggs, Henson and McCormick 2000.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> keys, shapes = jax.random.split(jax.random.key(0), 3), [(3, 4), (4, 2), (5, 3)]
        >>> up, down, x = map(jax.random.normal, keys, shapes)
        >>> params = {"up": up, "down": down}
        >>> net = jc.trace(apply, params, x)
        >>> again = jc.chain(jc.refine(net, 2), jc.coarsen(net, 2))(params)
        >>> again["up"].shape, bool(jnp.allclose(again["up"], params["up"], atol=1e-6))
        ((3, 4), True)
    """
    factors = _check_factors(net, factor, "coarsen")
    return Coarsen(structure_of(net), factors, basis, axes)


def thin(net: Network | Structure, factor: Factor, *, axes: str = "**") -> Thin:
    """Give hidden axes of an untrained network fewer channels: regularly spaced ones are kept.

    Averages of random weights would be close to zero. Consumers are scaled so that variances are
    kept. The axes and sizes are those of `coarsen`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.transforms.resolution import thin
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> small = thin(jc.trace(apply, params, jnp.ones((5, 3))), 4)(params)
        >>> small["up"].shape, small["down"].tolist()
        ((3, 2), [[2.0, 2.0], [2.0, 2.0]])
    """
    factors = _check_factors(net, factor, "thin")
    return Thin(structure_of(net), factors, "step", axes)


def _check_factors(net: Network | Structure, factor: Factor, name: str) -> Factors:
    """Factors as a transform keeps them: finite numbers from 1 on, for axes that there are."""
    factors = per_pattern(f"{name}'s factor", factor, number("[1, inf)", "such as 2 or 3/2"))
    PerLeaf(factors, f"{name}'s factor").check_keys(net.axes.keys())
    return factors
