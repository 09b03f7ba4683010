"""What consumes a hidden axis: contractions with parameters, their kernels, gains and biases.

With C the kernel of a contraction and G the second moments of the outputs' derivative with respect
to its result (`sensitivity=True`), `C G^(1/2)` measures an error of its input by the error of the
network's outputs; without G, C itself does.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.layout import from_rows, to_rows
from jaxcompress.moments.moments import gain_key
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import Axis, Site, Structure
from jaxcompress.networks.layout import Layout
from jaxcompress.transforms.network_state import NetworkState
from jaxcompress.transforms.selection import factor_of


def sites_of(structure: Structure, axis: Axis) -> list[Site]:
    """The contractions with parameters that consume an axis."""
    return [
        site
        for site in structure.sites.values()
        if any(axis.key in dim.axes() for dim in site.dims)
    ]


def measured_sites(state: NetworkState, axis: Axis) -> list[Site]:
    """Those of an axis's consumers whose inputs were measured."""
    if state.moments is None:
        return []
    consuming = {site.key: site for site in sites_of(state.structure, axis)}
    return [consuming[key] for key in state.moments.sites if key in consuming]


def statistic(state: NetworkState, site: Site) -> Statistic:
    """The measured inputs of a contraction."""
    assert state.moments is not None
    return state.moments.sites[site.key]


def is_used_once(state: NetworkState, site: Site) -> bool:
    """Whether no other contraction uses the parameters of this one."""
    return not any(
        set(other.leaves) & set(site.leaves)
        for key, other in state.structure.sites.items()
        if key != site.key
    )


def is_solvable(state: NetworkState, site: Site) -> bool:
    """Whether a kernel has one least-squares problem: all inputs measured, and no other use."""
    measured = statistic(state, site)
    complete = len(measured.dims) == len(site.dims) and set(site.inputs) == set(site.leaves)
    stacked = measured.diagonal or site.batch or measured.lead
    return complete and not stacked and is_used_once(state, site)


def bias_of(state: NetworkState, site: Site) -> tuple[str, int] | None:
    """The bias that can absorb a change of a contraction's mean result: its leaf, and its sign."""
    bias = bias_leaf(state, site)
    if bias is None:
        return None
    # zeros at the borders of an image were not measured, so the mean is not the same everywhere
    padded = site.window and len(statistic(state, site).dims) < len(site.dims)
    return None if padded else bias


def bias_leaf(state: NetworkState, site: Site) -> tuple[str, int] | None:
    """The leaf that is added to a contraction's result alone, and its sign."""
    slots, sign = site.bias
    biases = {slot.leaf for slot in slots}
    if not sign or len(biases) != 1 or len(site.leaves) != 1:
        return None
    (bias,) = biases
    if not is_used_once(state, site) or not is_aligned(state.structure, site, bias):
        return None
    return bias, sign


def is_aligned(structure: Structure, site: Site, bias: str) -> bool:
    """Whether a bias has the axes of a kernel's outputs, in the kernel's order."""
    (kernel,) = site.leaves
    inputs = site.inputs.get(kernel) or tuple(slot.dimension for slot in site.slots)
    layouts = structure.layouts[kernel]
    outputs = [layout for place, layout in enumerate(layouts) if place not in inputs]
    return _axis_keys(outputs) == _axis_keys(structure.layouts[bias])


def _axis_keys(layouts: list[Layout] | tuple[Layout, ...]) -> list[str]:
    """The keys of all axes longer than one, in order."""
    keys: list[str] = []
    for layout in layouts:
        keys += [part.key for part in layout.leaves() if part.size > 1]
    return keys


def consumer_gram(state: NetworkState, axis: Axis) -> Float[np.ndarray, "fibres d d"]:
    """The Gram matrix of all consumers' kernels along an axis, weighted by their gains."""
    total = np.zeros((state.fibres(axis), state.size(axis), state.size(axis)))
    for slot in axis.consumers:
        sites = [site for site in state.structure.sites.values() if slot in site.slots]
        rows = state.unfold(axis, slot, weighted_kernel(state, slot.leaf, sites))
        total += rows @ np.swapaxes(rows, 1, 2)
    return total


def weighted_kernel(state: NetworkState, name: str, sites: list[Site]) -> np.ndarray:
    """A kernel C as `C G^(1/2)`, G being the gains of some contractions; C where none is known.

    Where other kernels have gains, one without is scaled so that its results matter as much as
    those of the median kernel.
    """
    kernel = state.leaves[name]
    if state.moments is None or not state.moments.gains:
        return kernel
    gains = state.moments.gains
    known = [site for site in sites if gain_key(site, name) in gains]
    if not known:
        power = _power(state, name)
        return kernel * math.sqrt(_median_power(state) / power) if power > 0 else kernel
    # uses that contract other dimensions have gains of other shapes, which cannot be added
    order = known[0].inputs[name]
    alike = [site for site in known if site.inputs[name] == order]
    gain = np.sum([gains[gain_key(site, name)].cov for site in alike], axis=0)
    matrix = to_rows(kernel, order)
    matrix = matrix * np.sqrt(gain) if gain.ndim == 1 else matrix @ factor_of(gain)
    return from_rows(matrix, order, kernel.shape)


def _power(state: NetworkState, name: str, gain: np.ndarray | None = None) -> float:
    """The mean squared result of a kernel, weighted by a gain; if unmeasured, its squared norm."""
    assert state.moments is not None
    sites = state.structure.sites
    key = next((key for key in state.moments.sites if name in sites[key].inputs), None)
    if key is None or not is_solvable(state, sites[key]):
        return float(np.sum(state.leaves[name] ** 2))
    second = state.moments.sites[key].second
    matrix = to_rows(state.leaves[name], sites[key].inputs[name])
    weighted = matrix if gain is None else matrix * gain if gain.ndim == 1 else matrix @ gain
    return float(np.einsum("ij,ij->", weighted, second @ matrix))


def _median_power(state: NetworkState) -> float:
    """The median over contractions with known gains of their `_power`."""
    assert state.moments is not None
    powers = []
    for site in state.structure.sites.values():
        if site.key not in state.moments.sites or not is_solvable(state, site):
            continue
        for leaf in site.leaves:
            gain = state.moments.gains.get(gain_key(site, leaf))
            if gain is not None and leaf in state.leaves:
                powers.append(_power(state, leaf, gain.cov))
    return float(np.median(powers)) if powers else 1.0
