"""Smooth noise for the inputs of convolutions, where neighbours are alike as in images and sound.

Natural images have amplitudes that fall as one over the frequency. White numbers z with that
spectrum along the dimensions that windows slide over,

    x = F^-1 (a F z),    a ~ 1 / frequency, of mean square one,

are noise of such a kind, and a gradient step on z moves coarse structure first. The dimensions are
found in the program, also where a flat input becomes an image inside. Costs two Fourier transforms.

Source: Olah et al. 2017, "Feature Visualization" (the decorrelated parametrisation), distill.pub.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.algebra import Dim, find, parts
from jaxcompress.programs.program import Program, Value


@dataclasses.dataclass(frozen=True)
class Space:
    """Which dimensions of one input are space.

    Attributes:
        sizes: of the input's dimensions, those that the program splits apart.
        axes: the ones that windows slide over.
    """

    sizes: tuple[int, ...]
    axes: tuple[int, ...] = ()

    def smooth(self, z: Float[Array, ...]) -> Float[Array, ...]:
        """White numbers of the input's shape as smooth ones, of the same mean square."""
        if not self.axes:
            return z
        grid = z.reshape(self.sizes).astype(jnp.float32)
        shape = [size if axis in self.axes else 1 for axis, size in enumerate(self.sizes)]
        amplitudes = jnp.asarray(self.amplitudes().reshape(shape), jnp.float32)
        transformed = jnp.fft.fftn(grid, axes=self.axes) * amplitudes
        return jnp.fft.ifftn(transformed, axes=self.axes).real.reshape(z.shape).astype(z.dtype)

    def amplitudes(self) -> Float[np.ndarray, ...]:
        """One over the frequency, of mean square one; a mean counts as the lowest frequency."""
        sides = [self.sizes[axis] for axis in self.axes]
        grid = np.meshgrid(*map(np.fft.fftfreq, sides), indexing="ij")
        frequency = np.sqrt(sum(part**2 for part in grid))
        amplitude = 1 / np.maximum(frequency, 1 / max(sides))
        return amplitude / np.sqrt(np.mean(amplitude**2))


def spaces(traced: TracedProgram) -> list[Space]:
    """For every input of a program which of its dimensions convolutions slide over."""
    spatial = _spatial(traced.program)
    return [_space(value, spatial) for value in traced.program.inputs[len(traced.leaves) :]]


def _spatial(program: Program) -> set[Dim]:
    """The dimensions that the windows of convolutions slide over, loops included."""
    dims: set[Dim] = set()
    for step in program.steps:
        if step.name == "conv_general_dilated":
            x, space = step.inputs[0], step.params["dimension_numbers"].lhs_spec[2:]
            dims |= {find(dim) for dim in (x.dims[axis] for axis in space) if dim is not None}
        for inner in step.programs.values():
            dims |= _spatial(inner)
    return dims


def _space(value: Value, spatial: set[Dim]) -> Space:
    sizes: list[int] = []
    axes: list[int] = []
    for dim, size in zip(value.dims, value.shape, strict=True):
        factors = [] if dim is None else parts(dim, "product")
        if math.prod(factor.size for factor in factors) != size:
            factors = []
        for factor in factors:
            axes += [len(sizes)] if find(factor) in spatial else []
            sizes.append(factor.size)
        if not factors:
            sizes.append(size)
    return Space(tuple(sizes), tuple(axes))
