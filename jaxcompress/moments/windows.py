"""The windows that a convolution's kernel slides over: all of them, or a sample.

A kernel of k places and c features is contracted with vectors of k c numbers, so all windows of an
image hold k times its numbers; where only a sample is measured, only that is cut out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcompress.programs.algebra import Dim
from jaxcompress.programs.program import Step
from jaxcompress.programs.rules import Contraction


def window_counts(x: jax.Array, kernel: jax.Array, step: Step, max_dim: int) -> list[int] | None:
    """The number of windows along each dimension; None where single ones cannot be cut.

    Those are grouped and transposed convolutions, outputs in an unusual order, and windows of more
    than `max_dim` numbers.
    """
    params, numbers = step.params, step.params["dimension_numbers"]
    _, features, *space = numbers.rhs_spec
    extents = [kernel.shape[axis] for axis in space]
    out_space = list(numbers.out_spec[2:])
    in_order = numbers.out_spec[0] == 0 and sorted(out_space) == out_space
    plain = params["feature_group_count"] == 1 and set(params["lhs_dilation"]) <= {1} and in_order
    if not plain or kernel.shape[features] * math.prod(extents) > max_dim:
        return None
    counts = []
    for axis, extent, padding, stride, dilation in zip(
        numbers.lhs_spec[2:],
        extents,
        params["padding"],
        params["window_strides"],
        params["rhs_dilation"],
        strict=True,
    ):
        reach = (extent - 1) * dilation + 1
        counts.append((x.shape[axis] + sum(padding) - reach) // stride + 1)
    return counts


def windows_at(
    x: jax.Array,
    kernel: jax.Array,
    step: Step,
    counts: Sequence[int],
    taken: Int[Array, " places"],
) -> Float[Array, "examples places m"]:
    """The windows at some places of every example, flat in the kernel's order.

    Args:
        x: the activations.
        kernel: of the convolution.
        step: the convolution.
        counts: the number of windows along each dimension.
        taken: row-major indices among them.
    """
    params, numbers = step.params, step.params["dimension_numbers"]
    (_, k_in, *k_space), (examples, features, *space) = numbers.rhs_spec, numbers.lhs_spec
    x = jnp.transpose(x, (examples, *space, features))
    edges = [(low, high, 0) for low, high in params["padding"]]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    places = []
    for axis, start in enumerate(jnp.unravel_index(taken, counts)):
        offsets = params["rhs_dilation"][axis] * jnp.arange(kernel.shape[k_space[axis]])
        shape = [-1 if other == axis else 1 for other in range(len(space))]
        starts = (params["window_strides"][axis] * start).reshape(-1, *[1] * len(space))
        places.append(starts + offsets.reshape(shape))
    windows = x[(slice(None), *places)]  # (examples, places, *window, features)
    windows = _in_kernel_order(windows, (*k_space, k_in))
    return windows.reshape(*windows.shape[:2], -1)


def patches(
    x: jax.Array, kernel: jax.Array, contraction: Contraction, step: Step, max_dim: int
) -> tuple[jax.Array, list[Dim | None]]:
    """All windows, flat and last in the kernel's order, with the dimensions of the result.

    Where they have groups or more than `max_dim` numbers, the features at single places instead.
    """
    numbers = step.params["dimension_numbers"]
    _, k_in, *k_space = numbers.rhs_spec
    window = [kernel.shape[axis] for axis in k_space]
    if step.params["feature_group_count"] > 1 or kernel.shape[k_in] * math.prod(window) > max_dim:
        return _features(x, kernel.shape[k_in], contraction, step)
    options = {
        name: step.params[name]
        for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    }
    windows = jax.lax.conv_general_dilated_patches(
        x, window, **options, dimension_numbers=numbers, precision=jax.lax.Precision.HIGHEST
    )
    # JAX returns them flat with the features outermost, whatever the kernel's layout
    windows = jnp.moveaxis(windows, numbers.out_spec[1], -1)
    lead = windows.shape[:-1]
    windows = _in_kernel_order(
        windows.reshape(*lead, kernel.shape[k_in], *window), (k_in, *k_space)
    )
    return windows.reshape(*lead, -1), dim_last(step.outputs[0].dims, numbers.out_spec[1])


def _features(
    x: jax.Array, size: int, contraction: Contraction, step: Step
) -> tuple[jax.Array, list[Dim | None]]:
    """The features last; the groups of a grouped convolution apart before them."""
    features = step.params["dimension_numbers"].lhs_spec[1]
    x, dims = jnp.moveaxis(x, features, -1), dim_last(step.inputs[0].dims, features)
    if not contraction.batch:
        return x, dims
    groups = contraction.batch[0][1]
    return x.reshape(*x.shape[:-1], -1, size), [*dims[:-1], groups, dims[-1]]


def _in_kernel_order(windows: jax.Array, kernel_axes: Sequence[int]) -> jax.Array:
    """Sort the last dimensions, which are given axes of the kernel, as they lie in the kernel."""
    lead = windows.ndim - len(kernel_axes)
    order = sorted(range(len(kernel_axes)), key=kernel_axes.__getitem__)
    return jnp.transpose(windows, (*range(lead), *(lead + index for index in order)))


def dim_last(dims: Sequence[Dim | None], position: int) -> list[Dim | None]:
    """Dimensions with one of them moved to the end."""
    return [*dims[:position], *dims[position + 1 :], dims[position]]
