"""How each unit of a network is distributed, from its batch norms alone: no data is seen.

What a norm gives is close to a normal variable of mean beta and deviation |gamma|. Everything
elementwise after it is a function of that variable, and is computed at the nodes of one fixed
quadrature, so that any activation is covered; sums of norms are normal again; in a pooling n
neighbours count as sqrt(n) independent ones. Costs a few hundred evaluations a unit.

    Source: Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.2: why a pre-activation is normal
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from scipy.special import ndtr

from jaxcompress.networks.batch_norms import LocatedNorm, NormNumbers, locate_norms, numbers_of
from jaxcompress.networks.trace import Network
from jaxcompress.programs import compat
from jaxcompress.programs.affine import LAYOUTS
from jaxcompress.programs.algebra import Dim, atoms, find
from jaxcompress.programs.arithmetic import ELEMENTWISE, scalar
from jaxcompress.programs.program import Step, Value

NODES = np.linspace(-6, 6, 1025)
WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()
POINTWISE = {*ELEMENTWISE, "neg", "select_n", "add", "sub", "mul", "div"}
POOLS = {"reduce_window_max", "reduce_max", "reduce_window_sum", "reduce_sum"}


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The distribution of each channel of one value, the same at every position.

    Attributes:
        samples: each channel at the nodes of the quadrature.
        weights: of the nodes; they sum to one.
        active: the probability that the normal variable below is positive.
        normal: the deviation of that variable, of each channel.
        channel: the dimension of the channels.
        root: which normal variables these are functions of.
        kernel: whose products these variables are, normalised; None where there is no single one,
            or where a pooling came between.
    """

    samples: Float[Array, "nodes d"]
    weights: Float[np.ndarray, " nodes"]
    active: Float[np.ndarray, " d"]
    normal: Float[np.ndarray, " d"]
    channel: Dim
    root: object
    kernel: str | None = None

    @classmethod
    def of_normal(
        cls, mean: Float[np.ndarray, " d"], deviation: Float[np.ndarray, " d"], channel: Dim
    ) -> Units:
        """Normal variables, independent of all others."""
        samples = jnp.asarray(mean + NODES[:, None] * deviation, jnp.float32)
        size = np.maximum(np.abs(deviation), 1e-30)
        return cls(samples, WEIGHTS, ndtr(mean / size), np.abs(deviation), channel, object())

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """The expectation of each channel."""
        return self.weights @ np.asarray(self.samples, np.float64)

    @property
    def variance(self) -> Float[np.ndarray, " d"]:
        """The variance of each channel."""
        return self.weights @ (np.asarray(self.samples, np.float64) - self.mean) ** 2

    @property
    def slope(self) -> Float[np.ndarray, " d"]:
        """The linear function of the standard normal variable that is nearest."""
        centred = np.asarray(self.samples, np.float64) - self.mean
        nodes = NODES - self.weights @ NODES
        return (self.weights * nodes) @ centred / (self.weights @ nodes**2)

    @property
    def nonlinear(self) -> Float[np.ndarray, " d"]:
        """The variance that a linear function of the normal variable leaves unexplained."""
        nodes = NODES - self.weights @ NODES
        return np.maximum(self.variance - self.slope**2 * (self.weights @ nodes**2), 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Intake:
    """What one contraction takes in.

    Attributes:
        units: the distribution of its channels.
        coverage: of a convolution that pads, see `coverage`; else None.
    """

    units: Units
    coverage: Float[np.ndarray, ...] | None = None


def unit_distributions(net: Network, params: PyTree) -> dict[str, Intake]:
    """What each contraction takes in, as far as the norms tell it.

    Args:
        net: from `jc.trace`, with batch norms that use running statistics.
        params: its parameters, at the traced or at other sizes.

    Returns:
        By the key of the contraction; those after a value that no norm explains are missing.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.moments.unit_distributions import unit_distributions
        >>> def apply(p, x):
        ...     y = (x @ p["up"] - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["gamma"] + p["beta"]
        ...     return jax.nn.relu(y) @ p["down"]
        >>> params = {"up": jnp.ones((3, 2)), "down": jnp.ones((2, 2)), "mean": jnp.ones(2)}
        >>> params |= {"var": jnp.ones(2), "gamma": jnp.ones(2), "beta": jnp.array([-3.0, 0.0])}
        >>> units = unit_distributions(jc.trace(apply, params, jnp.ones((5, 3))), params)
        >>> units["down#0"].units.active.round(4), units["down#0"].units.mean.round(4)
        (array([0.0013, 0.5   ]), array([0.0004, 0.3989]))
    """
    traced = net.traces(net.full, net.inputs)
    norms = {
        id(located.result): (located, numbers_of(net, located, params))
        for located in locate_norms(traced)
    }
    known: dict[int, Units] = {}
    for step in traced.program.steps:
        _propagate(step, known, norms)
    contractions, intakes = traced.analysis.contractions, {}
    for step in traced.program.steps:
        key = step.note[0] if isinstance(step.note, tuple) and step.note else step.note
        if isinstance(key, str) and key in contractions:
            own = known.get(id(step.inputs[contractions[key].operand]))
            if own is not None:
                intakes[key] = Intake(own, coverage(step))
    return intakes


def _propagate(
    step: Step, known: dict[int, Units], norms: dict[int, tuple[LocatedNorm, NormNumbers]]
) -> None:
    """Note the distribution of what a step gives, where it is known."""
    for out in step.outputs:
        if id(out) in norms:
            located, numbers = norms[id(out)]
            share = numbers.variance / (numbers.variance + located.norm.epsilon)
            deviation = numbers.scale * np.sqrt(share)
            units = Units.of_normal(numbers.shift, deviation, located.channel)
            kernel = located.norm.kernel
            name = None if kernel is None else kernel.leaf
            known[id(out)] = dataclasses.replace(units, kernel=name)
            return
    if step.name in compat.CUSTOM:
        body = step.programs["body"]
        inside = [
            (inner, known[id(outer)])
            for inner, outer in zip(body.inputs, step.inputs, strict=True)
            if id(outer) in known
        ]
        known.update((id(inner), units) for inner, units in inside)
        for inner_step in body.steps:
            _propagate(inner_step, known, norms)
        for inner, outer in zip(body.outputs, step.outputs, strict=True):
            if id(inner) in known:
                known[id(outer)] = known[id(inner)]
        return
    units = _units_of(step, known)
    if units is not None:
        known[id(step.outputs[0])] = units


def _units_of(step: Step, known: dict[int, Units]) -> Units | None:
    """The distribution of a step's result, or None."""
    operands = [known.get(id(value)) for value in step.inputs]
    given = [units for units in operands if units is not None]
    if not given or len(step.outputs) != 1:
        return None
    (out,) = step.outputs
    if step.name in LAYOUTS:
        return given[0] if _has(out, given[0].channel) else None
    if step.name in POOLS:
        return _pooled(step, given[0]) if _has(out, given[0].channel) else None
    if step.name not in POINTWISE:
        return None
    roots = {id(units.root) for units in given}
    if len(roots) == 1:
        return _applied(step, operands)
    if step.name in ("add", "sub") and len(given) == 2:
        first, second = given
        sign = 1 if step.name == "add" else -1
        deviation = np.sqrt(first.variance + second.variance)
        return Units.of_normal(first.mean + sign * second.mean, deviation, first.channel)
    return None


def _has(value: Value, channel: Dim) -> bool:
    """Whether a value has a dimension, whole or as a factor."""
    inside = [atom for dim in value.dims if dim is not None for atom in atoms(dim)]
    return set(atoms(channel)) <= {find(atom) for atom in inside}


def _applied(step: Step, operands: list[Units | None]) -> Units | None:
    """An elementwise function of values of one root, and of numbers."""
    units = next(units for units in operands if units is not None)
    shape, arrays = units.samples.shape, []
    for value, own in zip(step.inputs, operands, strict=True):
        number = scalar(value)
        if own is None and number is None:
            return None
        array = own.samples if own is not None else jnp.full(shape, number or 0.0)
        arrays.append(array.astype(value.dtype))
    (samples,) = compat.bind(step.primitive, arrays, step.params)
    return dataclasses.replace(units, samples=samples)


def _pooled(step: Step, units: Units) -> Units:
    """The largest of n neighbours, or their sum: as of sqrt(n) independent ones."""
    source = step.inputs[0]
    window = step.params.get("window_dimensions")
    if window is None:
        window = [source.shape[index] for index in step.params["axes"]]
    count = math.prod(window)
    if step.name.endswith("max"):
        cumulative = np.cumsum(units.weights) ** math.sqrt(count)
        weights = np.diff(cumulative, prepend=0.0)
        return dataclasses.replace(
            units, weights=weights / weights.sum(), root=object(), kernel=None
        )
    mean = jnp.asarray(units.mean, units.samples.dtype)
    samples = count * (mean + (units.samples - mean) / count**0.25)
    return dataclasses.replace(units, samples=samples, root=object(), kernel=None)


def coverage(step: Step) -> Float[np.ndarray, ...] | None:
    """The share of a convolution's results at which each of its window's places lies inside.

    Returns:
        Of as many dimensions as the kernel, 1 along its features; None for another primitive, or
        one without padding.
    """
    params = step.params
    if step.name != "conv_general_dilated" or set(params["lhs_dilation"]) != {1}:
        return None
    numbers, kernel = params["dimension_numbers"], step.inputs[1]
    shares = np.ones([1] * len(kernel.shape))
    for index, place in enumerate(numbers.rhs_spec[2:]):
        size = step.inputs[0].shape[numbers.lhs_spec[2 + index]]
        results = np.arange(step.outputs[0].shape[numbers.out_spec[2 + index]])
        taps = np.arange(kernel.shape[place]) * params["rhs_dilation"][index]
        at = results * params["window_strides"][index] - params["padding"][index][0]
        inside = (at[:, None] + taps >= 0) & (at[:, None] + taps < size)
        shape = [1] * len(kernel.shape)
        shape[place] = len(taps)
        shares = shares * inside.mean(0).reshape(shape)
    return shares
