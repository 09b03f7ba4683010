"""Law 4: a replayed small network against the full one with its maps embedded.

A small tree is made by random maps on hidden axes; embedded again (every small channel in a place
of its own, or repeated where a norm divides by the size), it is a tree of full shapes that the
unmodified function runs.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.paths import named_leaves
from jaxcompress.networks.maps import AxisMap, apply_map


def fibre_count(structure, axis, sizes):
    """How many matrices a map of its own for every fibre has, at present sizes."""
    present = structure.full_sizes | sizes
    return math.prod(present[key] for key in axis.fibres)


def shrink(rng, count, d, r):
    """A random map from d to r channels, selections for scales."""
    select = np.stack([np.eye(d)[:, rng.permutation(d)[:r]] for _ in range(count)])
    return AxisMap(
        rng.normal(size=(count, d, r)) / np.sqrt(d),
        rng.normal(size=(count, r, d)) / np.sqrt(d),
        select,
    )


def embed(rng, count, r, d):
    """Every small channel in a random place of the full axis."""
    places = np.stack([np.eye(d)[rng.permutation(d)[:r]] for _ in range(count)])
    return AxisMap(places, np.swapaxes(places, 1, 2), places)


def rotate(rng, count, r, d):
    """The small channels rotated into the full axis: for linear axes, whose scales nobody sees."""
    rows = np.stack([np.linalg.qr(rng.normal(size=(d, d)))[0][:r] for _ in range(count)])
    return AxisMap(rows, np.swapaxes(rows, 1, 2))


def repeat(rng, count, r, d):
    """Every small channel repeated, for norms, which divide by the size."""
    places = np.repeat(np.eye(r), d // r, axis=1)[:, rng.permutation(d)]
    return AxisMap(places[None], (places * r / d).T[None], places[None])


def embeddable(net):
    """The axes on which some embedding is exact, whatever network it is.

    Channels repeated for a mean change what is tied to it, paired over it, nonlinear before it is
    used, or averaged with others beside it; channels embedded as zeros may not be zeros where a
    nonlinearity lies before a product over them.
    """

    def segment(axis, layout):
        return axis.key in layout.axes() and (
            layout.split == "concat" or any(segment(axis, part) for part in layout.parts)
        )

    def exact(axis):
        layouts = itertools.chain.from_iterable(net.structure.layouts.values())
        beside = any(segment(axis, layout) for layout in layouts)
        repeatable = not (axis.averaged and (axis.tied or axis.pair or axis.nonlinear or beside))
        return repeatable and not (axis.pair and "elementwise" in axis.marks)

    return {axis.key for axis in net.structure.axes if exact(axis)}


def small_and_full(net, params, seed=0, only=None):
    """A random small tree and the full tree that means the same."""
    rng = np.random.default_rng(seed)
    structure = net.structure
    names = [name for name, _ in named_leaves(params)]
    treedef = jax.tree.structure(params)
    small = {
        # keys are no arrays of numpy
        name: leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)
        for name, leaf in named_leaves(params)
    }
    changed, sizes = {}, {}
    for axis in structure.axes:
        normed = (
            axis.averaged
        )  # a mean over repeated channels is that of the small ones; a plain sum is not
        if (only is not None and axis.key not in only) or (normed and axis.size % 2):
            continue
        if normed and axis.tied:  # channels repeated for the mean count twice in what is tied
            continue
        size = axis.size // 2 if normed else int(rng.integers(1, axis.size))
        by_fibre = bool(axis.fibres) and not normed and rng.random() < 0.7
        back = (
            repeat
            if normed
            else rotate
            if axis.kind == "linear" and not axis.pair and rng.random() < 0.5
            else embed
        )
        count = fibre_count(structure, axis, sizes) if by_fibre else 1
        apply_map(structure, small, sizes, axis, shrink(rng, count, axis.size, size))
        changed[axis.key] = (axis, size, by_fibre, back)
        sizes[axis.key] = size
    full = {name: leaf.copy() for name, leaf in small.items()}
    for axis, size, by_fibre, back in changed.values():
        count = fibre_count(structure, axis, sizes) if by_fibre else 1
        apply_map(structure, full, sizes, axis, back(rng, count, size, axis.size))
        del sizes[axis.key]

    def tree(leaves):
        return jax.tree.unflatten(treedef, [leaves[name] for name in names])

    return tree(small), tree(full), changed
