"""Bypass: a block of a network is replaced by the best affine map of its input.

Between two values u and v that everything passes through (networks/segments.py), such as the states
before and behind a layer of a transformer, the program is replaced by

    v = u K + b

with K and b by ridge regression on data. The result is another network, whose parameters lack the
block's and have K and b, and which is traced anew: every transform works on it. Costs two passes
over the data up to the block and d^2 products a position.

Source: the linear parts of transformers' layers, Razzhigaev et al. 2024 (arXiv:2405.12250).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxcompress.arrays.base import is_compact, materialize
from jaxcompress.arrays.paths import Pattern, check_matched, check_pattern, named_leaves, select
from jaxcompress.arrays.projection import ridge_solve
from jaxcompress.checks import checked
from jaxcompress.moments.calibration import Calibration, check_parameters
from jaxcompress.moments.cross_moments import Inputs, Rows, joint
from jaxcompress.moments.masks import vector_weights
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.segments import segment
from jaxcompress.networks.trace import Network, network, trace
from jaxcompress.transforms.host_leaves import to_host
from jaxcompress.transforms.linear_units import unexplained
from jaxcompress.transforms.selection import RIDGE, SHRINK

log = logging.getLogger(__name__)

BYPASS = "bypass"
"""The name under which the linear maps stand among the parameters."""


class Bypassed(NamedTuple):
    """A network in which a block is an affine map.

    Attributes:
        net: the network.
        params: its parameters: a dictionary by the paths of the others, and the map under "bypass".
        unexplained: the share of the variance of the block's output that the map misses, on a half
            of the data on which it was not fitted.
    """

    net: Network
    params: PyTree
    unexplained: float


@checked(net=network)
def bypass(
    net: Network,
    params: PyTree,
    batches: Iterable[PyTree] | Calibration,
    leaves: Pattern,
) -> Bypassed:
    """Replace the block that uses some parameters by the best affine map of the block's input.

    The block is the smallest part of the program with all uses of these parameters that lies
    between two values through which all else is computed: a residual block, or a whole layer with
    its norms. It must have no other parameters.

    Args:
        net: from `jc.trace`.
        params: the traced parameters, at their traced sizes.
        batches: unlabelled data as for `jc.calibrate`, or a `jc.Calibration`. It is read twice, so
            give a list, not an iterator.
        leaves: a pattern of the parameters' names, such as "layer_3/**".

    Returns:
        The new network, its parameters, and the share of the block's output that the map misses.

    Raises:
        ValueError: for a pattern that matches no leaf, a block that is not between two such values
            or has other parameters, a network with `state_outputs`, or parameters that are compact
            or of other sizes.
        TypeError: for an iterator of batches.

    Source:
        Razzhigaev et al. 2024 (arXiv:2405.12250).

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     h = x @ p["first"]
        ...     h = h + jnp.tanh(0.1 * h @ p["up"]) @ p["down"]  # nearly linear
        ...     return jax.nn.relu(h) @ p["last"]
        >>> shapes = {"first": (3, 4), "up": (4, 9), "down": (9, 4), "last": (4, 2)}
        >>> keys = jax.random.split(jax.random.key(0), 5)
        >>> params = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> x = jax.random.normal(keys[4], (500, 3))
        >>> net = jc.trace(apply, params, x)
        >>> small = jc.transforms.bypass(net, params, [x], ("up", "down"))
        >>> sorted(small.params), small.params["bypass"]["0"]["kernel"].shape
        (['bypass', 'first', 'last'], (4, 4))
        >>> small.unexplained < 0.01
        True
    """
    data = Calibration.of(batches)
    data.check_rereadable("bypass")
    inside = chosen(net, params, leaves)
    example = next(data.values(net), None)
    if example is None:
        raise ValueError("bypass: there are no batches: give an iterable of at least one")
    try:
        part = segment(net.traced_program(params, *example), inside)
    except ValueError as error:
        raise ValueError(f"bypass: {error}") from None
    rest = dict(named_leaves(params))
    for name in part.leaves():
        to_host(name, rest[name])  # refuses NaN and infinity by name
    gone = part.gone()
    if others := sorted(set(gone) - inside):
        raise ValueError(
            f"bypass: the block also has {', '.join(others)}: name them, too, since they go with it"
        )

    def pairs(params: PyTree, inputs: Inputs, batch: int | jax.Array) -> tuple[Rows, Rows]:
        return ends(net, params, inputs, inside, data)

    halves = joint(net, params, data, pairs)
    kernel, bias, missed = affine_map(halves, part.before.shape[-1])
    taken = next(str(i) for i in itertools.count() if f"{BYPASS}/{i}/kernel" not in rest)
    kept = {name: leaf for name, leaf in rest.items() if name not in gone}
    kept[f"{BYPASS}/{taken}/kernel"] = jnp.asarray(kernel, part.after.dtype)
    kept[f"{BYPASS}/{taken}/bias"] = jnp.asarray(bias, part.after.dtype)
    small = nested(kept)
    log.info("bypass of %s: %.1f %% of the variance is missed", leaves, 100 * missed)
    apply = bypassing(net, inside, taken)
    return Bypassed(trace(apply, small, *example), small, missed)


def affine_map(
    halves: tuple[Statistic, Statistic], m: int
) -> tuple[Float[np.ndarray, "m n"], Float[np.ndarray, " n"], float]:
    """The kernel and the bias from m inputs to the results, and the share that they miss.

    Args:
        halves: joint moments of inputs and results on two halves of the data.
        m: the number of inputs.
    """
    both = halves[0] + halves[1]
    missed = unexplained(*halves, m, np.eye(len(both.mean) - m))
    # from few positions noise is fitted as well, where the block is not affine
    ridge = RIDGE + SHRINK * m / max(both.count, 1.0) * min(max(missed, 0.0), 1.0)
    kernel = ridge_solve(both.cov[:m, :m], both.cov[:m, m:], ridge)
    return kernel, both.mean[m:] - both.mean[:m] @ kernel, missed


def chosen(net: Network, params: PyTree, leaves: Pattern) -> frozenset[str]:
    """The leaves that a pattern picks."""
    check_pattern("bypass", leaves)
    check_parameters(net, params)
    if net.state_outputs:
        raise ValueError("bypass: a network with state_outputs cannot be written anew")
    given = dict(named_leaves(params))
    if compact := [name for name, leaf in given.items() if is_compact(leaf)]:
        raise ValueError(f"bypass: {compact[0]} is compact: bypass blocks before it is compacted")
    net.structure.check_names(given)
    if sizes := net.sizes(params):
        raise ValueError(
            f"bypass: {next(iter(sizes))} has another size than when the network was traced: "
            "bypass blocks before axes are cut"
        )
    picked = frozenset(name for name, leaf in given.items() if select(leaves, name, leaf))
    check_matched("bypass", leaves, picked, list(given))
    return picked


def ends(
    net: Network,
    params: PyTree,
    inputs: tuple[PyTree, ...],
    inside: frozenset[str],
    data: Calibration,
) -> tuple[Rows, Rows]:
    """The vectors that go into a block and those that come out of it, with their weights."""
    traced = net.traced_program(params, *inputs)
    part = segment(traced, inside)
    values = part.ends(jax.tree.leaves(params), jax.tree.leaves(inputs))
    vectors = vector_weights(traced, inputs, data.mask)
    rows = []
    for name, value, array in zip(("in", "out"), (part.before, part.after), values, strict=True):
        last = (array.ndim - 1,)
        found, weights = vectors.take(name, materialize(array), value.dims, last, ())
        flat = jnp.broadcast_to(weights, found.shape[:-1]).reshape(-1)
        rows.append((found.reshape(-1, found.shape[-1]), flat))
    return rows[0], rows[1]


def bypassing(net: Network, inside: frozenset[str], key: str) -> Callable[..., PyTree]:
    """The function in which the block that uses some leaves is an affine map."""

    def bypassed(params: PyTree, *inputs: PyTree) -> PyTree:
        leaves = dict(named_leaves(params))
        # found anew, since the shapes of the inputs may be others
        traced = net.traced_program(net.full, *inputs)
        part = segment(traced, inside)
        given = [leaves.get(name) for name in traced.leaves]
        values = [jnp.asarray(value) for value in jax.tree.leaves(inputs)]
        state = materialize(part.start(given, values))
        state = state @ leaves[f"{BYPASS}/{key}/kernel"] + leaves[f"{BYPASS}/{key}/bias"]
        outputs = part.finish(given, values, state)
        return materialize(jax.tree.unflatten(traced.out_tree, outputs))

    return bypassed


def nested(leaves: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Leaves by their paths as dictionaries within each other."""
    tree: dict[str, PyTree] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return tree
