"""What a convolution's kernel is contracted with: the windows that slide over its input, all of them or some.

A kernel of k places and c features meets vectors of k c numbers, so all of an image's windows are k times the image; where a share
is measured, only that share is cut out.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxcompress.programs.program import Step
from jaxcompress.programs.rules import Contraction


def places_of(operands: list[Any], step: Step, max_dim: int) -> list[int] | None:
    """How many windows there are along each dimension of an example; None where single ones cannot be cut out."""
    x, kernel = operands
    params, numbers = step.params, step.params["dimension_numbers"]
    _, k_in, *k_space = numbers.rhs_spec
    extents = [kernel.shape[axis] for axis in k_space]
    in_order = numbers.out_spec[0] == 0 and sorted(numbers.out_spec[2:]) == list(
        numbers.out_spec[2:]
    )
    plain = params["feature_group_count"] == 1 and set(params["lhs_dilation"]) <= {1} and in_order
    if not plain or kernel.shape[k_in] * math.prod(extents) > max_dim:
        return None
    sizes = []
    for axis, extent, padding, stride, dilation in zip(
        numbers.lhs_spec[2:],
        extents,
        params["padding"],
        params["window_strides"],
        params["rhs_dilation"],
        strict=True,
    ):
        sizes.append((x.shape[axis] + sum(padding) - (extent - 1) * dilation - 1) // stride + 1)
    return sizes


def windows_at(operands: list[Any], step: Step, sizes: list[int], taken: Any) -> Any:
    """(examples, places, m): the windows at some places of every example, in the kernel's order."""
    x, kernel = operands
    params, numbers = step.params, step.params["dimension_numbers"]
    (_, k_in, *k_space), (first, features, *space) = numbers.rhs_spec, numbers.lhs_spec
    x = jnp.transpose(x, (first, *space, features))
    x = jax.lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(0, 0, 0), *((low, high, 0) for low, high in params["padding"]), (0, 0, 0)],
    )
    places = []
    for axis, start in enumerate(jnp.unravel_index(taken, sizes)):
        offsets = params["rhs_dilation"][axis] * jnp.arange(kernel.shape[k_space[axis]])
        along = [-1 if other == axis else 1 for other in range(len(space))]
        starts = (params["window_strides"][axis] * start).reshape(-1, *[1] * len(space))
        places.append(starts + offsets.reshape(along))
    found = x[(slice(None), *places)]  # (examples, places, *window, features)
    kernels = [*k_space, k_in]
    order = sorted(range(len(kernels)), key=kernels.__getitem__)
    found = jnp.transpose(found, (0, 1, *(2 + index for index in order)))
    return found.reshape(*found.shape[:2], -1)


def patches(
    operands: list[Any], contraction: Contraction, step: Step, max_dim: int
) -> tuple[jax.Array, list[Any]]:
    """What a convolution's kernel is contracted with, flat and last, in the kernel's order; the features alone where it is wide.

    With it its dimensions, as the analysis knows them.
    """
    x, kernel = operands
    numbers = step.params["dimension_numbers"]
    _, k_in, *k_space = numbers.rhs_spec
    groups = step.params["feature_group_count"]
    if (
        groups > 1
        or kernel.shape[k_in] * math.prod(kernel.shape[axis] for axis in k_space) > max_dim
    ):
        x, dims = (
            jnp.moveaxis(x, numbers.lhs_spec[1], -1),
            moved(step.inputs[0].dims, numbers.lhs_spec[1]),
        )
        if contraction.batch:  # groups stay apart
            x, dims = (
                x.reshape(*x.shape[:-1], -1, kernel.shape[k_in]),
                [*dims[:-1], contraction.batch[0][1], dims[-1]],
            )
        return x, dims
    options = {
        name: step.params[name]
        for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    }
    window = [kernel.shape[axis] for axis in k_space]
    precision = jax.lax.Precision.HIGHEST
    found = jax.lax.conv_general_dilated_patches(
        x, window, **options, dimension_numbers=numbers, precision=precision
    )
    found = jnp.moveaxis(found, numbers.out_spec[1], -1)
    found = found.reshape(*found.shape[:-1], kernel.shape[k_in], *window)
    order = sorted(range(len(numbers.rhs_spec) - 1), key=lambda index: (k_in, *k_space)[index])
    first = found.ndim - len(order)
    found = jnp.transpose(found, (*range(first), *(first + index for index in order)))
    return found.reshape(*found.shape[:first], -1), moved(step.outputs[0].dims, numbers.out_spec[1])


def moved(dims: list[Any], position: int) -> list[Any]:
    """Dimensions with one of them last."""
    return [*dims[:position], *dims[position + 1 :], dims[position]]
