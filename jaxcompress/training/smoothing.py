"""Smoothing: a penalty on how much weights change along hidden axes, so that networks are trained to be coarsened.

Of a hidden axis with channels t, each with all that produces, shifts and reads it, v_t:

    degree 1    sum_t |v_(t+1) - v_t|             total variation: neighbours become equal, the axis a step function of few steps
    degree 2    sum_t |v_(t+1) - 2 v_t + v_(t-1)|^2     curvature: the axis becomes smooth

What reads a channel counts in units of its present root mean square, and so does what makes it, biases in that of the kernel in
front of them; the units are not differentiated, so that shrinking everything is no way out. Costs one pass over the parameters a
step.

Sources: total variation, Rudin, Osher and Fatemi 1992; its use along the filters of layers, Integral Neural Networks (Solodskikh et
al. 2023); smoothing splines, Reinsch 1967.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.networks.axes import Structure
from jaxcompress.networks.maps import lines
from jaxcompress.networks.trace import Network, check_network


def variation(net: Network, params: Any, *, degree: int = 1, axes: str = "**") -> jax.Array:
    """How much the weights of neighbouring channels differ: a penalty that makes hidden axes step functions, or smooth.

    Args:
        net: from `jc.trace`.
        params: its parameters, at any sizes; leaves that are compact arrays do not count.
        degree: 1 for total variation, 2 for curvature.
        axes: a pattern of axis keys.

    Returns:
        A scalar that can be differentiated: the mean over the channels of the chosen axes. It is 0 where all channels are alike
        (with degree 2, where they lie on a line), about 2 for random weights and with degree 2 about 12.

    Raises:
        ValueError: for another degree, a pattern without an axis.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params = {"up": jax.random.normal(jax.random.key(0), (3, 64)), "down": jnp.ones((64, 2))}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> ordered = jc.seriate(net)(params)
        >>> bool(0 < jc.training.variation(net, ordered) < jc.training.variation(net, params) < 3)
        True
        >>> gradient = jax.grad(lambda p: jc.training.variation(net, p))(params)
        >>> gradient["up"].shape
        (3, 64)
    """
    check("variation", net, degree, axes)
    return penalty(net.structure, params, degree, axes)


def add_variation(
    net: Network, strength: Any, *, degree: int = 1, axes: str = "**"
) -> optax.GradientTransformation:
    """The gradient of `variation` added to another, as a step of an optax chain.

    In front of an optimizer's scaling it is a term of the loss; behind it, in front of the rate, it is decoupled from the scaling,
    as in `optax.adamw`.

    Args:
        net, degree, axes: as for `variation`.
        strength: what the penalty is multiplied by.

    Example:
        >>> import jax.numpy as jnp, optax, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.arange(16.0).reshape(8, 2)}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> optimizer = optax.chain(optax.scale_by_adam(), jc.training.add_variation(net, 1e-2), optax.scale_by_learning_rate(1e-3))
        >>> updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        >>> updates["down"].shape
        (8, 2)
    """
    check("add_variation", net, degree, axes)
    if not isinstance(strength, Tracer) and not (
        isinstance(strength, (int, float, jax.Array, np.ndarray)) and strength >= 0
    ):
        raise ValueError(
            f"add_variation's strength must be a number from 0 on, such as 1e-2; got {strength!r}"
        )
    structure = net.structure

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "add_variation needs the parameters: optimizer.update(gradient, state, params)"
            )
        extra = jax.grad(lambda params: penalty(structure, params, degree, axes), allow_int=True)(
            params
        )
        added = lambda each, more: (
            (each + strength * more).astype(each.dtype) if more.dtype != jax.dtypes.float0 else each
        )
        return jax.tree.map(added, updates, extra), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def check(who: str, net: Network, degree: int, axes: str) -> None:
    check_network(who, net)
    if degree not in (1, 2):
        raise ValueError(
            f"{who}: degree must be 1 (total variation) or 2 (curvature), got {degree!r}"
        )
    net.structure.chosen(axes)


def penalty(structure: Structure, params: Any, degree: int, axes: str) -> jax.Array:
    """See `variation`."""
    named = {name: leaf for name, leaf in named_leaves(params) if not is_compact(leaf)}
    shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(params)}
    sizes = structure.sizes(shapes)
    total, channels = jnp.float32(0), 0
    for axis in structure.chosen(axes):
        d = sizes.get(axis.key, axis.size)
        squares = jnp.zeros(max(d - degree, 0), jnp.float32)
        sides = {"made": ([], []), "read": ([], [])}  # squared differences, and squares
        for name, dims in structure.layouts.items():
            for position, layout in enumerate(dims):
                if (
                    axis.key not in layout.axes()
                    or name not in named
                    or not jnp.issubdtype(named[name].dtype, jnp.floating)
                ):
                    continue
                leaf = jnp.moveaxis(named[name], position, 0).astype(jnp.float32)
                where = lines(layout.resized(sizes), axis.key)
                leaf = leaf if where.shape[1] == 1 and len(where) == len(leaf) else leaf[where]
                rows = leaf.reshape(d, -1)
                differ, size = sides["read" if (name, position) in axis.consumers else "made"]
                differ.append(jnp.sum(jnp.square(jnp.diff(rows, degree, axis=0)), 1))
                size.append(jnp.sum(jnp.square(rows)) / d)
        for (
            differ,
            size,
        ) in (
            sides.values()
        ):  # one unit a side: a bias of its own size, zero at first, would have no slope or any
            unit = jax.lax.stop_gradient(sum(size, jnp.float32(0)))
            squares += sum(differ, jnp.zeros_like(squares)) / jnp.maximum(unit, 1e-30)
        if degree == 1:  # the root has no slope at zero: equal neighbours stay so
            total += jnp.sum(
                jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
            )
        else:
            total += jnp.sum(squares)
        channels += d
    return total / max(channels, 1)
