"""What every transform of hidden axes shares: the tree under change, its present sizes, and the moments that follow.

A transform gives an `AxisMap` for each axis; here it is applied to every leaf and to the moments, and what a map is made
from is read off: a leaf along an axis, the consumers' Gram matrix, the bias that can carry a mean.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.moments.moments import Moments, Statistic
from jaxcompress.networks.axes import Axis, Site, Structure
from jaxcompress.networks.maps import AxisMap, apply_map, blocks, lines
from jaxcompress.programs.program import Slot
from jaxcompress.transforms.base import Scope, Transform
from jaxcompress.transforms.selection import root
from jaxcompress.transforms.settings import call, constructor_name, show_structure

log = logging.getLogger(__name__)


class AxisTransform(Transform):
    """The base of transforms of hidden axes; a subclass gives `change`."""

    structure: Structure
    axes: str
    whole_network = True

    def hidden(self) -> tuple[str, ...]:
        """Fields that are no arguments of the constructor."""
        return ("structure",)

    def __repr__(self) -> str:
        return call(constructor_name(self), show_structure(self.structure), **self.arguments())

    def change(self, work: Work, axis: Axis) -> AxisMap | None:
        """The map for one axis, or None to leave it."""
        raise NotImplementedError

    def left(self, work: Work, axis: Axis, size: int) -> str | None:
        """Why an axis is left as it is unless it is named; None where it is not."""
        if self.axes != "**" or readable(self.structure, work, axis, size):
            return None
        return "its size cannot be read off the parameters; name it in axes=, and use net.resized"

    def chosen(self) -> list[Axis]:
        """The axes that the pattern matches."""
        return self.structure.chosen(self.axes)

    def prepare(self, params: Any, moments: Any) -> Work:
        """The tree before any change."""
        if moments is not None and not isinstance(moments, Moments):
            raise TypeError(
                f"{type(self).__name__} needs the moments of jc.calibrate, got {type(moments).__name__}"
            )
        return Work(self.structure, params, moments)

    def _step(self, params: Any, moments: Any, scope: Scope) -> tuple[Any, Any]:
        chosen, work = self.chosen(), self.prepare(params, moments)
        if moments is None:
            log.info("%r has no moments: it sees the weights alone", self)
        for axis in chosen:
            change = self.change(work, axis)
            if change is not None:
                work.apply(axis, change)
        return work.params(), work.moments


def readable(structure: Structure, work: Work, axis: Axis, size: int) -> bool:
    """Whether a new size of an axis can be told from the parameters' shapes."""
    sizes = {**work.sizes, axis.key: size}
    shapes = {
        name: tuple(layout.resized(sizes).size for layout in dims)
        for name, dims in structure.layouts.items()
    }
    try:
        return structure.sizes(shapes).get(axis.key, axis.size) == size
    except ValueError:
        return False


class Work:
    """A tree under change: its leaves by name, the present sizes of its axes, and the moments that go with them."""

    def __init__(self, structure: Structure, params: Any, moments: Moments | None):
        self.structure, self.moments = structure, moments
        named = dict(named_leaves(params))
        structure.check_names(named)
        self.treedef = jax.tree.structure(params, is_leaf=is_compact)
        self.given = named
        shapes = {
            name: tuple(leaf.shape) if hasattr(leaf, "shape") else np.shape(leaf)
            for name, leaf in named.items()
        }
        self.sizes = structure.sizes(shapes)
        self.leaves: dict[str, Any] = {}
        for name, leaf in named.items():
            if is_compact(leaf):
                continue
            if isinstance(leaf, Tracer):  # maps that depend on sizes alone can be traced
                self.leaves[name] = leaf
                continue
            values = np.asarray(leaf)
            if jnp.issubdtype(values.dtype, jnp.complexfloating):
                raise ValueError(
                    f"{name} holds {values.dtype}: hidden axes are changed in real parameters only"
                )
            if jnp.issubdtype(values.dtype, jnp.floating):
                values = values.astype(np.float64)
                if not np.isfinite(values).all():
                    raise ValueError(
                        f"{name} contains NaN or infinity: repair or retrain it before compressing"
                    )
            self.leaves[name] = values

    def params(self) -> Any:
        """The tree, in the given dtypes; what no map touched is as it was."""
        out = []
        for name, leaf in self.given.items():
            values = self.leaves.get(name)
            out.append(leaf if values is None else jnp.asarray(values, jnp.result_type(leaf)))
        return jax.tree.unflatten(self.treedef, out)

    def size(self, axis: Axis) -> int:
        return self.sizes.get(axis.key, axis.size)

    def fibres(self, axis: Axis) -> int:
        """How many fibres an axis has at present."""
        full = self.structure.full_sizes
        return math.prod(self.sizes.get(key, full[key]) for key in axis.fibres)

    def touched(self, axis: Axis) -> list[str]:
        """Leaves that have an axis; compact ones are an error."""
        names = [
            name
            for name, dims in self.structure.layouts.items()
            if any(axis.key in layout.axes() for layout in dims)
        ]
        compact = [name for name in names if name not in self.leaves]
        if compact:
            raise ValueError(
                f"{compact[0]} is compact: change hidden axes first, and compact what is left"
            )
        return names

    def apply(self, axis: Axis, change: AxisMap) -> None:
        """Apply a map to the leaves and the moments."""
        self.touched(axis)
        apply_map(self.structure, self.leaves, self.sizes, axis, change)
        if self.moments is not None:
            self.moments = self.moments.mapped(axis, change)
        self.sizes[axis.key] = change.size

    def unfold(self, axis: Axis, slot: Slot, leaf: Any = None) -> np.ndarray:
        """(F, d, rest): a leaf, or what stands for it, along an axis, fibre by fibre."""
        name, dimension = slot
        leaf = self.leaves[name] if leaf is None else leaf
        layouts = tuple(layout.resized(self.sizes) for layout in self.structure.layouts[name])
        moved = np.moveaxis(leaf, dimension, -1)
        where = lines(layouts[dimension], axis.key)
        found = blocks(layouts, dimension, axis, self.fibres(axis) > 1)
        parts = [np.moveaxis(moved[rows][..., where[:, mine]], -2, 0) for rows, mine in found]
        return np.stack([part.reshape(len(part), -1) for part in parts])

    def gram(self, axis: Axis, slots: tuple[Slot, ...]) -> np.ndarray:
        """(F, d, d): the sum over leaves of their products with themselves along an axis."""
        total = np.zeros((self.fibres(axis), self.size(axis), self.size(axis)))
        for slot in slots:
            rows = self.unfold(axis, slot)
            total += rows @ np.swapaxes(rows, 1, 2)
        return total

    def read(self, axis: Axis) -> np.ndarray:
        """(F, d, d): the Gram matrix of what the axis is read by, in the metric of the network's outputs where that is known."""
        total = np.zeros((self.fibres(axis), self.size(axis), self.size(axis)))
        for slot in axis.consumers:
            sites = [site for site in self.structure.sites.values() if slot in site.slots]
            rows = self.unfold(axis, slot, self.felt(slot.leaf, sites))
            total += rows @ np.swapaxes(rows, 1, 2)
        return total

    def felt(self, name: str, sites: list[Site]) -> np.ndarray:
        """A kernel C as the network's outputs feel it at some sites: `C G^(1/2)`; C itself where nothing is known."""
        leaf = self.leaves[name]
        if self.moments is None or not self.moments.gains:
            return leaf
        known = [site for site in sites if site.key in self.moments.gains]
        if not known:
            return leaf * math.sqrt(self.typical() / max(self.power(name), 1e-300))
        order = known[0].inputs[name]  # every one of them reads the same dimensions
        gain = np.sum(
            [self.moments.gains[site.key].cov for site in known if site.inputs[name] == order],
            axis=0,
        )
        moved = np.moveaxis(leaf, order, range(len(order)))
        matrix = moved.reshape(-1, len(gain))
        matrix = matrix * np.sqrt(gain) if gain.ndim == 1 else matrix @ root(gain)
        return np.moveaxis(matrix.reshape(moved.shape), range(len(order)), order)

    def power(self, name: str, gain: np.ndarray | None = None) -> float:
        """The squared norm of what a kernel gives, per row, in the metric of a gain; of the kernel where that is not known."""
        assert self.moments is not None
        key = next(
            (key for key in self.moments.sites if name in self.structure.sites[key].inputs), None
        )
        if key is None or not self.solvable(self.structure.sites[key]):
            return float(np.sum(self.leaves[name] ** 2))
        second, order = self.moments.sites[key].second, self.structure.sites[key].inputs[name]
        matrix = np.moveaxis(self.leaves[name], order, range(len(order))).reshape(len(second), -1)
        weighted = matrix if gain is None else matrix * gain if gain.ndim == 1 else matrix @ gain
        return float(np.einsum("ij,ij->", weighted, second @ matrix))

    def typical(self) -> float:
        """What the outputs feel of one contraction, all of it: the median of those where that is known."""
        assert self.moments is not None
        known = [
            (self.structure.sites[key], gain.cov)
            for key, gain in self.moments.gains.items()
            if key in self.moments.sites
        ]
        felt = [
            self.power(site.leaves[0], gain)
            for site, gain in known
            if self.solvable(site) and site.leaves[0] in self.leaves
        ]
        return float(np.median(felt)) if felt else 1.0

    def sites(self, axis: Axis) -> list[Site]:
        """Where the axis is consumed by parameters that were measured."""
        if self.moments is None:
            return []
        found = self.structure.sites
        return [
            found[key]
            for key in self.moments.sites
            if any(axis.key in dim.axes() for dim in found[key].dims)
        ]

    def bias_of(self, site: Site) -> tuple[str, int] | None:
        """The one bias leaf behind a contraction, and its sign, where a mean can be carried by it."""
        slots, sign = site.bias
        leaves = {slot.leaf for slot in slots}
        padded = site.window and len(self.statistic(site).dims) < len(
            site.dims
        )  # zeros at the borders were not measured
        if len(leaves) != 1 or len(site.leaves) != 1 or not self.aligned(site, next(iter(leaves))):
            return None
        once = not any(
            set(other.leaves) & set(site.leaves)
            for key, other in self.structure.sites.items()
            if key != site.key
        )
        return (
            (leaves.pop(), sign)
            if sign and len(leaves) == 1 and len(site.leaves) == 1 and once and not padded
            else None
        )

    def aligned(self, site: Site, bias: str) -> bool:
        """Whether a bias has the axes of a kernel's outputs in the kernel's own order, and of the product's."""
        (kernel,) = site.leaves
        inputs = site.inputs.get(kernel) or tuple(slot.dimension for slot in site.slots)
        outputs = [
            layout
            for place, layout in enumerate(self.structure.layouts[kernel])
            if place not in inputs
        ]
        keys = lambda dims: [part.key for dim in dims for part in dim.leaves() if part.size > 1]
        return keys(outputs) == keys(self.structure.layouts[bias])

    def statistic(self, site: Site) -> Statistic:
        assert self.moments is not None
        return self.moments.sites[site.key]

    def solvable(self, site: Site) -> bool:
        """Whether a consumer's whole kernel can be solved for: all its inputs were measured, and it is used nowhere else."""
        statistic = self.statistic(site)
        shared = any(
            set(other.leaves) & set(site.leaves)
            for key, other in self.structure.sites.items()
            if key != site.key
        )
        whole = len(statistic.dims) == len(site.dims) and set(site.inputs) == set(site.leaves)
        return whole and not (shared or statistic.diagonal or site.batch or statistic.lead)
