"""Coarsen and refine: a hidden axis is a function on equal cells, and its number of cells is free.

With P (coarse, fine) what a basis makes of coarse values at fine places, and D = (P P')^-1 P its dual, so that `P D' = 1`:

    refine    produce P,   consume D'        (repeat; average):  h P D' C = h C, the function is unchanged
    coarsen   produce D',  consume P         (average; repeat):  its transpose, the adjoint of multigrid

so coarsening undoes refining. Whatever weight w each channel has, D = (P w P')^-1 P w is a dual as well: with moments, w is how
much the channel is read, and the coarse values predict all of the fine ones by least squares, by the matrix nearest to P that does;
what is left of the mean goes into the consumers' biases. Refining by steps commutes with every elementwise function, and by whole
factors with norms over the axis, too. Repeated channels would stay alike in training: any N with `N P' = 0` may be added to D for
the consumers, which tells them apart and changes nothing. Costs one small matrix product a leaf, and for the moments O(r^3) an
axis. Without moments both are linear in the parameters and run inside `jax.jit` and `jax.grad`.

Sources: multigrid, Briggs, Henson and McCormick 2000; widening without change, Net2Net (arXiv:1511.05641); a layer as a function on
an axis, Integral Neural Networks (Solodskikh et al. 2023).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from jaxcompress.arrays.spline import check_basis, spline_matrix
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.maps import AxisMap
from jaxcompress.networks.trace import Network, check_network
from jaxcompress.programs.program import Slot
from jaxcompress.transforms.axis_maps import (
    apart,
    carry,
    centred_sites,
    joint_moments,
    measured,
    normed,
    pair_of,
)
from jaxcompress.transforms.axiswise import AxisTransform, Work
from jaxcompress.transforms.options import PerLeaf
from jaxcompress.transforms.selection import RIDGE, SHRINK

log = logging.getLogger(__name__)

Factor = float | Fraction | Mapping[str, float | Fraction]


def prolongation(coarse: int, fine: int, basis: str = "step") -> np.ndarray:
    """(coarse, fine): what a basis makes of values at the middles of coarse cells at those of fine ones.

    Example:
        >>> from jaxcompress.transforms.resolution import prolongation
        >>> prolongation(2, 3).tolist()
        [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    found = spline_matrix(coarse, fine, basis)
    # the coefficients of a cubic spline are not its values
    return (
        np.linalg.solve(spline_matrix(coarse, coarse, basis), found) if basis == "cubic" else found
    )


def dual(matrix: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """(coarse, fine): the matrix D with `P D' = 1` that finds the coarse values nearest to fine ones, each weighed."""
    weighed = matrix * weights
    return np.linalg.solve(weighed @ matrix.T, weighed)


@dataclasses.dataclass(frozen=True, repr=False)
class Resolution(AxisTransform):
    """What `coarsen` and `refine` share."""

    traceable = True
    structure: Structure = dataclasses.field(hash=False)
    factor: Any
    basis: str = "step"
    axes: str = "**"

    def sized(self, size: int, factor: Fraction) -> int:
        """The new size."""
        raise NotImplementedError

    def mapped(self, work: Work, axis: Axis, size: int) -> AxisMap:
        """The map to a new size, where it is legal."""
        raise NotImplementedError

    def change(self, work: Work, axis: Axis) -> AxisMap | None:
        factor = PerLeaf(self.factor, "factor").get(axis.key)
        if factor is None or (size := self.sized(work.size(axis), Fraction(factor))) == work.size(
            axis
        ):
            return None
        if why := self.left(work, axis, size):
            log.info("%s is left: %s", axis.key, why)
            return None
        if why := why_not_resize(work, axis, size, self.basis):
            if self.axes != "**":
                raise ValueError(
                    f"{axis.key} cannot go from {work.size(axis)} to {size} channels: {why}"
                )
            log.info("%s is left: %s", axis.key, why)
            return None
        work.touched(axis)
        return self.mapped(work, axis, size)


def adjoint(change: AxisMap, role: str) -> AxisMap:
    """What a map of parameters does to their gradients: producers and consumers change roles, which gives the smallest gradients
    that explain the coarse ones. Where only their signs count, all are repeated.
    """
    produce, consume = np.swapaxes(change.consume, 1, 2), np.swapaxes(change.produce, 1, 2)
    if role == "steps":
        return AxisMap(change.produce, consume, other=dict.fromkeys(change.other, change.produce))
    return AxisMap(produce, consume, other=dict.fromkeys(change.other, change.produce))


def coarse_size(size: int, factor: Fraction) -> int:
    """So many channels are left of a size."""
    return max(1, round(size / factor))


def why_not_resize(work: Work, axis: Axis, size: int, basis: str) -> str | None:
    """Why no pair of averages and repetitions may be put on an axis, in words; None where it may."""
    large, small = max(size, work.size(axis)), min(size, work.size(axis))
    if axis.tied:
        return f"{axis.tied[0]} consumes it and has another use on it"
    if axis.bent:
        return f"{axis.bent[0]} passes a nonlinear function before it is used"
    if axis.pair and (axis.marks or axis.consumers or pair_of(work, axis) is None):
        return "activations are multiplied over it, and something else reads it as well"
    if {"normalised", "rms"} & set(axis.marks):
        if not axis.averaged:
            return "a sum over it is not divided by its size"
        if basis == "step" and large % small:
            return f"a norm over it would weigh some channels more, since {large} is no multiple of {small}"
    return None


@dataclasses.dataclass(frozen=True, repr=False)
class Refine(Resolution):
    """See `refine`."""

    split: float = 0.0
    seed: int = 0
    role: str = "parameters"

    def of(self, role: str) -> Refine:
        """The same change of a tree of "gradients", or of an optimizer's normalised "steps"."""
        return dataclasses.replace(self, role=role, split=0.0)

    def sized(self, size: int, factor: Fraction) -> int:
        return round(size * factor)

    def mapped(self, work: Work, axis: Axis, size: int) -> AxisMap:
        repeat = prolongation(work.size(axis), size, self.basis)
        average = dual(repeat)
        if self.split:
            key = np.random.default_rng([self.seed, *axis.key.encode()])
            apart = key.normal(size=average.shape) / len(average) ** 0.5
            average = average + self.split * len(average) / size * (
                apart - apart @ repeat.T @ average
            )
        change = AxisMap(repeat[None], average.T[None], other=other_side(work, axis, average[None]))
        return change if self.role == "parameters" else adjoint(change, self.role)


class Coarsen(Resolution):
    """See `coarsen`."""

    def sized(self, size: int, factor: Fraction) -> int:
        return coarse_size(size, factor)

    def mapped(self, work: Work, axis: Axis, size: int) -> AxisMap:
        repeat = prolongation(size, work.size(axis), self.basis)
        known = not (measured(work, axis) is None or axis.pair)
        # under a norm every channel counts alike
        weights = (
            reading(work, axis)
            if known and not {"normalised", "rms"} & set(axis.marks)
            else np.ones((1, work.size(axis)))
        )
        average = np.stack([dual(repeat, each).T for each in weights])
        change = AxisMap(average, repeat[None], other=other_side(work, axis, repeat.T[None]))
        return predicting(work, axis, scaled(work, axis, change)) if known else change


class Thin(Coarsen):
    """See `thin`."""

    def mapped(self, work: Work, axis: Axis, size: int) -> AxisMap:
        d = work.size(axis)
        chosen = ((2 * np.arange(size) + 1) * d) // (2 * size)
        produce, scale = np.eye(d)[:, chosen], (d / size) ** 0.5
        return AxisMap(
            produce[None],
            scale * produce.T[None],
            other=other_side(work, axis, scale * produce[None]),
        )


def reading(work: Work, axis: Axis) -> np.ndarray:
    """(F, d): how much each channel is read, at least a thousandth of the mean."""
    read = np.einsum("fdd->fd", work.read(axis))
    return np.maximum(read, 1e-3 * read.mean(1, keepdims=True) + np.finfo(np.float64).tiny)


def other_side(work: Work, axis: Axis, matrix: np.ndarray) -> dict[Slot, np.ndarray]:
    """Of two activations that are multiplied over an axis the second takes the dual map."""
    if not axis.pair:
        return {}
    key = pair_of(work, axis)
    assert key is not None
    return dict.fromkeys(work.structure.pairs[key].sides[1], matrix)


def scaled(work: Work, axis: Axis, change: AxisMap) -> AxisMap:
    """Averages vary less than what they are made of, and a norm divides by that: its scales make up for it."""
    if not {"normalised", "rms"} & set(axis.marks) or not axis.scales:
        return change
    before = normed(work, axis)
    after = change.produce[0].T @ before @ change.produce[0]
    ratio = math.sqrt(
        max(np.trace(after) / change.size, 0) / max(np.trace(before) / len(before), 1e-300)
    )
    return dataclasses.replace(change, channels=change.produce * ratio)


def predicting(work: Work, axis: Axis, change: AxisMap) -> AxisMap:
    """The coarse values predict the fine ones by least squares, in what each consumer sees."""
    repeat, found = change.consume[0], measured(work, axis)
    assert found is not None
    average = np.broadcast_to(change.produce, (len(found.mean), *change.produce.shape[1:]))
    folds = lambda moments, count: np.stack(
        [predict(s, each, repeat, count) for s, each in zip(moments, average, strict=True)]
    )
    other, gaps, centred = dict(change.other), {}, centred_sites(work, axis)
    for site in apart(work, axis):
        own = measured(work, axis, [site])
        assert own is not None
        mine = folds(own.cov if site.key in centred else own.second, own.count)
        other |= {slot: mine for slot in site.slots if slot in axis.consumers}
        if site.key in centred:
            gaps[site.key] = own.mean - np.einsum("fd,fdr,fre->fe", own.mean, average, mine)
    carry(work, axis, gaps)
    return dataclasses.replace(
        change, consume=folds(joint_moments(work, axis), found.count), other=other
    )


def predict(
    moments: np.ndarray, average: np.ndarray, repeat: np.ndarray, count: float
) -> np.ndarray:
    """(r, d): what averages say of all channels, by ridge least squares towards the repetition."""
    inner, left = average.T @ moments @ average, np.eye(len(moments)) - average @ repeat
    r = len(inner)
    ridge = (RIDGE + SHRINK * r / max(count, 1.0)) * np.trace(inner) / r + np.finfo(np.float64).tiny
    return repeat + np.linalg.solve(inner + ridge * np.eye(r), average.T @ moments @ left)


def refine(
    net: Network,
    factor: Factor,
    *,
    basis: str = "step",
    axes: str = "**",
    split: float = 0.0,
    seed: int = 0,
) -> Refine:
    """Give hidden axes more channels, the function unchanged: what a coarse network has learned starts a fine one.

    Args:
        net: from `jc.trace`; only its axes are kept.
        factor: how many times as many channels, from 1 on, whole or not; or a mapping from patterns of axis keys.
        basis: "step" repeats channels; "linear" and "cubic" put values between neighbours, which changes what nonlinear functions
            give, the less the smoother the axis.
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".
        split: tell repeated channels apart for training: what reads them differs by so much, in units of what they are read by,
            and the differences cancel.
        seed: of those differences.

    Returns:
        A transform. Axes whose function cannot be kept are left, with a note in the log: tied ones, and by steps those under a norm
        where the factor is not whole. An axis that `axes` names raises instead.

    Raises:
        ValueError: for a factor below 1, an unknown basis; when called, for a named axis that cannot be refined.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> up, down, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(3, 4), (4, 2), (5, 3)]))
        >>> params = {"up": up, "down": down}
        >>> net = jc.trace(apply, params, x)
        >>> wide = jc.refine(net, 3/2)(params)
        >>> wide["up"].shape, bool(jnp.allclose(net(wide, x), apply(params, x), atol=1e-5))
        ((3, 6), True)
    """
    if not 0 <= split < math.inf:
        raise ValueError(f"refine's split must be a number from 0 on, such as 0.1; got {split!r}")
    return Refine(*checked(net, factor, basis, "refine"), axes, split=split, seed=seed)


def coarsen(net: Network, factor: Factor, *, basis: str = "step", axes: str = "**") -> Coarsen:
    """Give hidden axes fewer channels: neighbours are averaged, and what reads them reads the average.

    Neighbours should be alike: put `jc.seriate` in front. Undoes `refine` of the same basis.

    Args:
        net: from `jc.trace`; only its axes are kept.
        factor: how many times fewer channels, from 1 on, whole or not; or a mapping from patterns of axis keys.
        basis: "step", "linear" or "cubic": what the coarse values mean between their places.
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".

    Returns:
        A transform: call it as `transform(params, moments)` with `moments = jc.calibrate(net, params, batches)`, and the consumers are
        fitted to what they see. Axes that cannot be averaged are left, with a note in the log; one that `axes` names raises.

    Raises:
        ValueError: for a factor below 1, an unknown basis; when called, for a named axis that cannot be coarsened.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> up, down, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(3, 4), (4, 2), (5, 3)]))
        >>> params = {"up": up, "down": down}
        >>> net = jc.trace(apply, params, x)
        >>> again = jc.chain(jc.refine(net, 2), jc.coarsen(net, 2))(params)
        >>> again["up"].shape, bool(jnp.allclose(again["up"], params["up"], atol=1e-6))
        ((3, 4), True)
    """
    return Coarsen(*checked(net, factor, basis, "coarsen"), axes)


def thin(net: Network, factor: Factor, *, axes: str = "**") -> Thin:
    """Fewer channels of a network that has not been trained: every so many-th one, and what reads them scaled to keep variances.

    Averages of random weights would be nearly nothing. The axes are those that `coarsen` changes, the sizes its sizes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.transforms.resolution import thin
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> small = thin(jc.trace(apply, params, jnp.ones((5, 3))), 4)(params)
        >>> small["up"].shape, small["down"].tolist()
        ((3, 2), [[2.0, 2.0], [2.0, 2.0]])
    """
    return Thin(*checked(net, factor, "step", "thin"), axes)


def checked(net: Network, factor: Any, basis: str, name: str) -> tuple[Structure, Any, str]:
    """The arguments of a change of resolution, as a transform keeps them."""
    check_network(name, net)
    check_basis(basis)
    factor = check_factor(factor, name)
    PerLeaf(factor, f"{name}'s factor").check_keys(net.axes.keys())
    return net.structure, factor, basis


def check_factor(factor: Any, name: str) -> Any:
    """A finite number from 1 on, or a mapping of them as a tuple of pairs."""
    if isinstance(factor, Mapping):
        return tuple((pattern, check_factor(value, name)) for pattern, value in factor.items())
    if (
        not isinstance(factor, (int, float, Fraction))
        or isinstance(factor, bool)
        or not 1 <= factor < math.inf
    ):
        raise ValueError(
            f"{name}'s factor must be a number from 1 on, such as 2 or 3/2; got {factor!r}"
        )
    return factor
