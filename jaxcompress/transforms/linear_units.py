"""Linear units: a linear map through a nonlinear axis, by units that stay where it is linear.

A unit `f(x v s + t)` is an affine function of x wherever f is affine about t at the scale s: a
rectifier, GELU or SiLU far on its right, tanh or a sigmoid near zero. Units of an axis can thus
carry any linear map of the layer's inputs x, one unit for each of its ranks, inside the network as
it is. Which directions v are best for consumers C follows from reduced-rank regression: with S the
covariance of x, and X that of x with the activations h,

    B = S^(-1) X C,   C' X' B = E L E',   v = B E       the columns of E by falling L

L being the variance of the consumers' results that each direction explains. New units are widened
into the axis with rows of zeros in the consumers, so that the function is what it was. Costs a pass
over the data and O((m + d)^2) products a vector for m inputs of d units.

Source: reduced-rank regression (Izenman 1975).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxcompress.arrays.layout import from_rows, to_rows
from jaxcompress.arrays.projection import ridge_solve
from jaxcompress.arrays.signs import fix_signs
from jaxcompress.moments.calibration import Calibration
from jaxcompress.moments.cross_moments import Inputs, Rows, joint, record
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import Axis, Site
from jaxcompress.networks.maps import AxisMap
from jaxcompress.networks.trace import Network
from jaxcompress.programs.algebra import find
from jaxcompress.programs.program import Value
from jaxcompress.transforms.consumers import is_used_once, sites_of, weighted_kernel
from jaxcompress.transforms.legality import why_not_fold
from jaxcompress.transforms.network_state import AxisChange, NetworkState
from jaxcompress.transforms.selection import RIDGE

REGIMES = ((12.0, 8.0), (3.0, 2.0), (0.0, 0.05), (-12.0, 8.0))
"""Where a nonlinearity may be affine: about t, up to w away."""
DEVIATIONS = 4
"""Standard deviations of a direction that lie within the w of its regime."""
BENT = 1e-2
"""The most by which a nonlinearity may miss an affine function, relative to its range."""
LINEAR = 1e-5
"""The share of a unit's variance below which what is not affine of it is rounding."""
NEGLIGIBLE = 1e-6
"""The share of the explained variance below which a direction is not offered."""
POINTS = 9
"""Values at which a regime is probed."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a linear map of an axis's inputs can be written.

    Attributes:
        kernel: the leaf that alone produces the axis.
        inputs: its contracted dimensions.
        bias: the leaf that is added before the nonlinearity.
        producer: the key of the contraction with the kernel.
        consumer: the key of a contraction with what comes behind the nonlinearity.
    """

    kernel: str
    inputs: tuple[int, ...]
    bias: str
    producer: str
    consumer: str


@dataclasses.dataclass(frozen=True)
class LinearPart:
    """How much of an axis is an affine function of the inputs of its layer.

    Attributes:
        place: where the axis's linear units would be written.
        regime: t and w, where its nonlinearity is affine.
        mean: of the layer's inputs.
        directions: those that explain most of the consumers' results first.
        deviations: the standard deviation of each direction.
        always_on: the share of the units that are affine on all data.
        unexplained: the share of the variance of the consumers' results that no affine map of the
            inputs explains, on the half of the data on which it was not fitted.
    """

    place: Place
    regime: tuple[float, float]
    mean: Float[np.ndarray, " m"]
    directions: Float[np.ndarray, "m q"]
    deviations: Float[np.ndarray, " q"]
    always_on: float
    unexplained: float

    @property
    def count(self) -> int:
        """The number of directions q."""
        return self.directions.shape[1]

    def __str__(self) -> str:
        return (
            f"{self.always_on:.0%} of the units are linear on the data, {self.unexplained:.0%} of "
            f"the results' variance is not"
        )


def linear_part(
    net: Network, state: NetworkState, axis: Axis, data: Calibration
) -> LinearPart | str:
    """The linear part of an axis, or the reason why it cannot be written into it."""
    place = place_of(state, axis)
    if isinstance(place, str):
        return place
    values = next(data.values(net), None)
    if values is None:
        raise ValueError("linearize: there are no batches: give an iterable of at least one")
    if not are_aligned(net, state.params(), values, place):
        return "its layer's inputs and its consumer's belong to different positions"
    regime = regime_of(net, state, axis, place, values)
    if isinstance(regime, str):
        return regime
    keys = (place.producer, place.consumer)

    def pairs(params: PyTree, inputs: Inputs, batch: int | jax.Array) -> tuple[Rows, Rows]:
        recorded = record(net, params, inputs, keys, data.mask, 1.0, batch)
        return recorded[keys[0]], recorded[keys[1]]

    halves = joint(net, state.params(), data, pairs)
    return fitted(state, axis, place, regime, halves)


def place_of(state: NetworkState, axis: Axis) -> Place | str:
    """The kernel, the bias and a consumer of an axis, or why a linear map has no place in it."""
    if why := _why_no_place(state, axis):
        return why
    kernel = axis.producers[0].leaf
    shifts = [slot for slot in axis.parameters if slot not in axis.scales]
    producers = [site for site in state.structure.sites.values() if kernel in site.inputs]
    consumers = [site for site in sites_of(state.structure, axis) if _is_plain(site, axis)]
    outputs = [
        part.key for site in producers for layout in site.outputs for part in layout.leaves()
    ]
    stacked = [site for site in producers if site.window or site.batch or site.layers]
    if len(producers) != 1 or outputs != [axis.key] or stacked:
        return f"{kernel} is a convolution, stacked, used twice or has other outputs"
    if not is_used_once(state, producers[0]):
        return f"{kernel} is used twice"
    if not consumers:
        return "no consumer takes it in alone, without a window"
    bias, site = shifts[0].leaf, producers[0]
    return Place(kernel, site.inputs[kernel], bias, site.key, consumers[0].key)


def _why_no_place(state: NetworkState, axis: Axis) -> str | None:
    if axis.kind != "elementwise" or axis.pair:
        return "it is linear already" if axis.kind == "linear" else f"it is of kind {axis.kind}"
    if why := why_not_fold(axis):
        return why
    if axis.fibres:
        return "it has fibres, such as layers or heads"
    if len(axis.producers) != 1 or set(axis.producers) & set(axis.consumers):
        return "several kernels produce it, as of gates"
    if axis.scales:
        return f"the scale {axis.scales[0].leaf} lies on it: fold the norm first"
    if not axis.parameters:
        return "it has no bias, which could keep a unit where it is linear"
    sizes = [state.leaves[slot.leaf].size for slot in axis.parameters if slot.leaf in state.leaves]
    if len(sizes) < len(axis.parameters) or max(sizes) != state.size(axis):
        return "its biases are compact, or differ along other dimensions"
    return None


def _is_plain(site: Site, axis: Axis) -> bool:
    """Whether a contraction takes in an axis alone."""
    return not (site.window or site.batch or site.layers) and [d.key for d in site.dims] == [
        axis.key
    ]


def are_aligned(net: Network, params: PyTree, inputs: tuple[PyTree, ...], place: Place) -> bool:
    """Whether the vectors before a layer and behind its nonlinearity belong to the same places."""
    order: dict[str, tuple[Value, Hashable]] = {}
    keys = (place.producer, place.consumer)
    jax.eval_shape(lambda p, x: record(net, p, x, keys, order=order), params, inputs)
    if set(order) != set(keys):
        return False
    contractions = net.traced_program(params, *inputs).analysis.contractions
    rest = []
    for key in keys:
        value, taken = order[key][0], contractions[key].positions
        dims = [dim for index, dim in enumerate(value.dims) if index not in taken]
        rest.append([dim and find(dim) for dim in dims])
    return rest[0] == rest[1]


# --- where a nonlinearity is affine ---------------------------------------------------------------


def regime_of(
    net: Network, state: NetworkState, axis: Axis, place: Place, inputs: tuple[PyTree, ...]
) -> tuple[float, float] | str:
    """Where the nonlinearity of an axis is most nearly affine, or why no unit can be linear."""
    steps = np.linspace(-1, 1, POINTS)
    values = np.concatenate([t + w * steps for t, w in REGIMES])
    results = responses(net, state, axis, place, inputs, values)
    if results is None:
        return "its activations depend on more than their own pre-activations"
    misses = [bend(steps, part) for part in np.split(results, len(REGIMES))]
    best = int(np.argmin(misses))
    if misses[best] > BENT:
        return "its nonlinearity is affine neither near zero nor far from it"
    return REGIMES[best]


def responses(
    net: Network,
    state: NetworkState,
    axis: Axis,
    place: Place,
    inputs: tuple[PyTree, ...],
    values: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"] | None:
    """The activations at given pre-activations, of a network whose biases alone are not zero.

    None where they are not the same for all examples.
    """
    size = state.size(axis)
    leaves = {name: state.leaves[name] for name in {slot.leaf for slot in axis.parameters}}
    zeros = {name: np.zeros_like(state.leaves[name]) for name in (place.kernel, *leaves)}
    run = jax.jit(lambda p, x: record(net, p, x, (place.consumer,))[place.consumer])
    results = []
    for start in range(0, len(values), size):
        part, bias = values[start : start + size], np.zeros(size)
        bias[: len(part)] = part
        probe = zeros | {place.bias: bias.reshape(leaves[place.bias].shape)}
        rows, weights = (np.asarray(x) for x in run(state.edited(probe).params(), inputs))
        rows = rows[weights > 0][:, : len(part)]
        if np.ptp(rows, axis=0).max(initial=0) > 1e-6 * max(np.abs(rows).max(initial=0), 1e-30):
            return None
        results.append(rows[0])
    return np.concatenate(results).astype(np.float64)


def bend(steps: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> float:
    """The most by which values miss an affine function of the steps, relative to their range."""
    extent = float(np.ptp(values))
    if extent == 0:
        return np.inf
    fit = np.polynomial.Polynomial.fit(steps, values, 1)
    return float(np.abs(fit(steps) - values).max()) / extent


# --- the best affine map --------------------------------------------------------------------------


def fitted(
    state: NetworkState,
    axis: Axis,
    place: Place,
    regime: tuple[float, float],
    halves: tuple[Statistic, Statistic],
) -> LinearPart:
    """The linear part of an axis, given the joint moments of its inputs and its activations."""
    both = halves[0] + halves[1]
    d = state.size(axis)
    m = len(both.mean) - d
    kernels = []
    for slot in axis.consumers:
        sites = [site for site in state.structure.sites.values() if slot in site.slots]
        kernel = weighted_kernel(state, slot.leaf, sites)
        kernels.append(state.unfold(axis, slot, kernel)[0])
    consumers = np.concatenate(kernels, axis=1)
    wanted = both.cov[:m, m:] @ consumers
    coefficients = ridge_solve(both.cov[:m, :m], wanted, RIDGE)
    explained = wanted.T @ coefficients
    values, vectors = np.linalg.eigh((explained + explained.T) / 2)
    values, vectors = values[::-1], fix_signs(vectors[:, ::-1])
    offered = values > NEGLIGIBLE * max(values.sum(), 0)
    directions = (coefficients @ vectors[:, offered])[:, : min(m, d)]
    variance = np.einsum("iq,ij,jq->q", directions, both.cov[:m, :m], directions)
    return LinearPart(
        place,
        regime,
        both.mean[:m],
        directions,
        np.sqrt(np.maximum(variance, 1e-30)),
        always_on(both, m),
        unexplained(*halves, m, consumers),
    )


def always_on(both: Statistic, m: int) -> float:
    """The share of units that are affine on the data, those that are constant left out."""
    cov = both.cov
    fit = ridge_solve(cov[:m, :m], cov[:m, m:], RIDGE)
    power = np.diag(cov)[m:]
    rest = power - np.einsum("mh,mh->h", fit, 2 * cov[:m, m:] - cov[:m, :m] @ fit)
    return float(np.mean((rest < LINEAR * power) & (power > 0)))


def unexplained(
    first: Statistic, second: Statistic, m: int, consumers: Float[np.ndarray, "d p"]
) -> float:
    """The share of the results' variance in one half that the affine map of the other misses."""
    fit = ridge_solve(first.cov[:m, :m], first.cov[:m, m:] @ consumers, 1e-4)
    # of the second half: results y, inputs x, both about its own means
    power = np.einsum("hp,hp->", consumers, second.cov[m:, m:] @ consumers)
    cross = np.einsum("mp,mp->", fit, second.cov[:m, m:] @ consumers)
    own = np.einsum("mp,mp->", fit, second.cov[:m, :m] @ fit)
    gap = second.mean - first.mean
    offset = gap[m:] @ consumers - gap[:m] @ fit
    return float((power - 2 * cross + own + offset @ offset) / max(power, 1e-30))


# --- into the network -----------------------------------------------------------------------------


def widened(state: NetworkState, axis: Axis, part: LinearPart) -> NetworkState:
    """The state with the linear units behind the others, which nothing consumes yet."""
    d, q, place = state.size(axis), part.count, part.place
    produce = np.eye(d, d + q)[None]
    state = state.applied(axis, AxisChange(AxisMap(produce, np.swapaxes(produce, 1, 2))))
    at, within = part.regime
    kernel = to_rows(state.leaves[place.kernel], place.inputs).copy()
    kernel[:, d:] = part.directions * (within / DEVIATIONS / part.deviations)
    bias = state.leaves[place.bias].copy()
    bias.reshape(-1)[d:] = at - part.mean @ kernel[:, d:]
    shape = state.leaves[place.kernel].shape
    return state.edited({place.kernel: from_rows(kernel, place.inputs, shape), place.bias: bias})
