"""A penalty on the variation of kernels along ordered hidden axes, for networks to be coarsened.

For a hidden axis with channels t, where v_t holds all weights that produce, shift or consume
channel t:

    degree 1    sum_t |v_(t+1) - v_t|                   total variation: piecewise constant along
    the axis degree 2    sum_t |v_(t+1) - 2 v_t + v_(t-1)|^2     curvature: smooth along the axis

Weights that consume a channel are measured in units of their present root mean square, and so are
those that produce it, biases in the unit of their kernel; the units are not differentiated, so that
shrinking all weights does not lower the penalty's gradient. Costs one pass over the parameters per
step.

Sources: total variation, Rudin, Osher and Fatemi 1992; its use along the filters of layers,
Integral Neural Networks (Solodskikh et al. 2023); smoothing splines, Reinsch 1967.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checks import checked, number, path_pattern, whole
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.maps import lines
from jaxcompress.networks.trace import Network, check_arrays, network


@checked(net=network, degree=whole(1, 2), axes=path_pattern)
def variation(
    net: Network, params: PyTree, *, degree: int = 1, axes: str = "**"
) -> Float[Array, ""]:
    """The variation of weights between neighbouring channels: a penalty for coarsening.

    Args:
        net: from `jc.trace`.
        params: its parameters, at any sizes; leaves that are compact arrays do not count.
        degree: 1 for total variation, 2 for curvature.
        axes: a pattern of axis keys.

    Returns:
        A differentiable scalar: the mean over the channels of the chosen axes. It is 0 where all
        channels are equal (with degree 2, where they are linear in t); for random weights it is
        about 2, and about 12 with degree 2.

    Raises:
        ValueError: for another degree, a pattern without an axis.
        TypeError: for a network that is not from `jc.trace`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> up = jax.random.normal(jax.random.key(0), (3, 64))
        >>> params = {"up": up, "down": jnp.ones((64, 2))}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> ordered = jc.seriate(net)(params)
        >>> bool(0 < jc.training.variation(net, ordered) < jc.training.variation(net, params) < 3)
        True
        >>> gradient = jax.grad(lambda p: jc.training.variation(net, p))(params)
        >>> gradient["up"].shape
        (3, 64)
    """
    net.structure.chosen(axes)
    check_arrays("variation", params)
    net.structure.check_names([name for name, _ in named_leaves(params)])
    return penalty(net.structure, params, degree, axes)


@checked(net=network, degree=whole(1, 2), axes=path_pattern)
def add_variation(
    net: Network, strength: float | jax.Array, *, degree: int = 1, axes: str = "**"
) -> optax.GradientTransformation:
    """An optax transformation that adds the gradient of `variation` to the updates.

    Before an optimizer's scaling it is a term of the loss; after it, and before the learning rate,
    it is decoupled from the scaling, like the weight decay of `optax.adamw`.

    Args:
        net: from `jc.trace`.
        strength: the factor of the penalty.
        degree: as for `variation`.
        axes: as for `variation`.

    Returns:
        A transformation without state; its `update` needs the parameters.

    Raises:
        ValueError: for a negative strength, and what `variation` refuses.
        TypeError: for a network that is not from `jc.trace`.

    Example:
        >>> import jax.numpy as jnp, optax, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.arange(16.0).reshape(8, 2)}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> penalty = jc.training.add_variation(net, 1e-2)
        >>> rate = optax.scale_by_learning_rate(1e-3)
        >>> optimizer = optax.chain(optax.scale_by_adam(), penalty, rate)
        >>> zeros = jax.tree.map(jnp.zeros_like, params)
        >>> updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        >>> updates["down"].shape
        (8, 2)
    """
    net.structure.chosen(axes)
    if not isinstance(strength, Tracer):
        strength = number("[0, inf)", "such as 1e-2")("add_variation: strength", strength)
    structure = net.structure

    def added(update: jax.Array, gradient: jax.Array) -> jax.Array:
        if gradient.dtype == jax.dtypes.float0:  # of an integer leaf
            return update
        return (update + strength * gradient).astype(update.dtype)

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree = None
    ) -> tuple[PyTree, optax.OptState]:
        if params is None:
            raise ValueError(
                "add_variation needs the parameters: optimizer.update(gradient, state, params)"
            )
        gradient = jax.grad(lambda params: penalty(structure, params, degree, axes), allow_int=True)
        return jax.tree.map(added, updates, gradient(params)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def penalty(structure: Structure, params: PyTree, degree: int, axes: str) -> Float[Array, ""]:
    """See `variation`."""
    leaves = dict(named_leaves(params))
    sizes = structure.sizes({name: tuple(leaf.shape) for name, leaf in leaves.items()})
    floats = {
        name: leaf
        for name, leaf in leaves.items()
        if not is_compact(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    total, channels = jnp.float32(0), 0
    for axis in structure.chosen(axes):
        size = sizes.get(axis.key, axis.size)
        squares = squared_differences(structure, floats, sizes, axis, degree)
        if degree == 1:
            # where the root has no derivative, at equal neighbours, it is taken as zero
            positive = squares > 0
            squares = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
        total += jnp.sum(squares)
        channels += size
    return total / max(channels, 1)


def squared_differences(
    structure: Structure,
    leaves: dict[str, jax.Array],
    sizes: dict[str, int],
    axis: Axis,
    degree: int,
) -> Float[Array, " differences"]:
    """Squared differences between neighbouring channels of an axis, relative to the mean square.

    Producers and consumers have one unit each: a bias of its own unit, zero at first, would have no
    gradient or an unbounded one.
    """
    size = sizes.get(axis.key, axis.size)
    zeros = jnp.zeros(max(size - degree, 0), jnp.float32)
    differences = {"producer": [], "consumer": []}
    mean_squares = {"producer": [], "consumer": []}
    for slot, rows in channel_rows(structure, leaves, sizes, axis):
        side = "consumer" if slot in axis.consumers else "producer"
        differences[side].append(jnp.sum(jnp.square(jnp.diff(rows, degree, axis=0)), 1))
        mean_squares[side].append(jnp.sum(jnp.square(rows)) / size)
    total = zeros
    for side, terms in differences.items():
        unit = jax.lax.stop_gradient(sum(mean_squares[side], jnp.float32(0)))
        total += sum(terms, zeros) / jnp.maximum(unit, 1e-30)
    return total


def channel_rows(
    structure: Structure, leaves: dict[str, jax.Array], sizes: dict[str, int], axis: Axis
) -> Iterator[tuple[tuple[str, int], Float[Array, "channels weights"]]]:
    """Each leaf's weights of an axis, one row a channel, with the leaf's name and dimension."""
    for name, layouts in structure.layouts.items():
        for dimension, layout in enumerate(layouts):
            if axis.key not in layout.axes() or name not in leaves:
                continue
            leaf = jnp.moveaxis(leaves[name], dimension, 0).astype(jnp.float32)
            index = lines(layout.resized(sizes), axis.key)
            if index.shape[1] != 1 or len(index) != len(leaf):
                leaf = leaf[index]  # of a fused dimension
            yield (name, dimension), leaf.reshape(sizes.get(axis.key, axis.size), -1)
