"""The tour's recipes: seven transforms, each as large as a share of the network's numbers allows.

A form has one size for all kernels (a share of the numbers, an energy, a number of atoms or knots),
the largest within the budget. The last kernel has 3 % of the numbers and feeds every class, so it
gets eight times the others' share. The class axis is never cut.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, PyTree

from jaxcompress.arrays.base import stored_numbers
from jaxcompress.arrays.factored import FactoredArray
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.trace import Network
from jaxcompress.transforms.base import Transform, moments_by_name
from jaxcompress.transforms.combinators import at, chain
from jaxcompress.transforms.factored import energy_by_rank, factored
from jaxcompress.transforms.hashed import hashed
from jaxcompress.transforms.rotation import rotate_and_prune
from jaxcompress.transforms.spline import spline
from jaxcompress.transforms.vocabulary import vocabulary
from jaxcompress.transforms.weights import Unreachable

WIDTHS = (256, 256, 10)
PIXELS = (8, 8)
GENEROSITY = 8
"""Factor on the share of the last kernel."""

Recipe = Callable[[float], Transform]
"""From a keep of the whole network to a transform."""


@dataclasses.dataclass(frozen=True)
class TourNetwork:
    """What the recipes need of the trained network.

    Attributes:
        net: the traced network.
        shapes: of the three kernels, by name and in order.
        biases: numbers in the biases, which no recipe compresses.
        total: numbers of the whole network.
        curves: for each kernel the share of its outputs' squared norm by rank.
    """

    net: Network
    shapes: Mapping[str, tuple[int, int]]
    biases: int
    total: int
    curves: Mapping[str, Float[np.ndarray, "1 ranks"]]

    @classmethod
    def of(cls, net: Network, params: PyTree, moments: Moments) -> TourNetwork:
        """The network with its trained parameters and the moments of its inputs."""
        metrics = {name: np.asarray(s) for name, s in moments_by_name(moments).items()}
        kernels = {f"{name}/kernel": layer["kernel"] for name, layer in params.items()}
        return cls(
            net=net,
            shapes={name: kernel.shape for name, kernel in kernels.items()},
            biases=sum(layer["bias"].size for layer in params.values()),
            total=int(stored_numbers(params)),
            curves={name: energy_by_rank(kernels[name], metrics[name]) for name in kernels},
        )

    def largest(self, numbers: Callable[[int], float], keep: float, limit: int = 256) -> int:
        """The largest size whose kernels, of `numbers(size)` numbers, fit the budget."""
        allowed = keep * self.total
        sizes = range(1, limit + 1)
        fitting = [size for size in sizes if numbers(size) + self.biases <= allowed]
        if not fitting:
            least = numbers(1) + self.biases
            raise Unreachable(least, f"needs {least:,.0f} numbers, {allowed:,.0f} are allowed")
        return fitting[-1]

    def shares(self, keep: float) -> dict[str, float]:
        """The share of each kernel's numbers that the budget leaves to it."""
        first, middle, last = self.shapes
        body = math.prod(self.shapes[first]) + math.prod(self.shapes[middle])
        tail = math.prod(self.shapes[last])
        share = (keep * self.total - self.biases) / (body + GENEROSITY * tail)
        if GENEROSITY * share > 1:  # the last kernel stays dense, the others divide the remainder
            share = (keep * self.total - self.biases - tail) / body
        return {first: share, middle: share, last: min(1.0, GENEROSITY * share)}


def plain_width(numbers: float) -> int:
    """The largest hidden width h at which a net 64-h-h-10 stores at most this many numbers."""
    return max(h for h in range(1, 257) if 64 * h + h + h * h + h + 10 * h + 10 <= numbers)


def pruning(network: TourNetwork, keep: float) -> Transform:
    """Both hidden layers at the width that fits."""
    return rotate_and_prune(network.net, plain_width(keep * network.total) / WIDTHS[0])


def hashing(network: TourNetwork, keep: float) -> Transform:
    """Every kernel hashed to its share."""
    return _each_at({name: hashed(share) for name, share in network.shares(keep).items()})


def cosines(network: TourNetwork, keep: float) -> Transform:
    """Every kernel as a vocabulary of cosines, those of the first one on the grid of pixels."""
    first, middle, last = network.shapes

    def atoms(size: int) -> dict[str, int]:
        return {first: min(size, 64), middle: size, last: min(GENEROSITY * size, 256)}

    def numbers(size: int) -> int:
        return sum(count * network.shapes[name][1] for name, count in atoms(size).items())

    counts = atoms(network.largest(numbers, keep))
    grids = {first: PIXELS}
    return _each_at(
        {
            name: vocabulary(count / network.shapes[name][0], grid=grids.get(name))
            for name, count in counts.items()
        }
    )


def factoring(network: TourNetwork, keep: float) -> Transform:
    """Every kernel at the rank that reaches one energy, the same for all."""
    energies: set[float] = set()
    for curve in network.curves.values():
        energies.update(map(float, curve.ravel()))
    candidates = sorted(energies)

    def numbers(position: int) -> float:
        energy = candidates[position - 1]
        ranks = {name: int((c < energy).sum(-1).max() + 1) for name, c in network.curves.items()}
        return sum(FactoredArray.numbers(*network.shapes[name], r) for name, r in ranks.items())

    energy = candidates[network.largest(numbers, keep, len(candidates)) - 1]
    return _each_at({name: factored(energy=energy) for name in network.shapes})


def interpolating(network: TourNetwork, keep: float) -> Transform:
    """Every kernel as a spline; the last one along its inputs, so that no class is coarsened."""
    first, middle, last = network.shapes
    rows = {first: 64, middle: 256, last: 10}
    backwards = MatrixAxes(inputs=(-1,), outputs=(-2,))

    def knots(size: int) -> dict[str, int]:
        return {first: size, middle: size, last: min(GENEROSITY * size, 256)}

    def numbers(size: int) -> int:
        return sum(count * rows[name] for name, count in knots(size).items())

    counts = knots(network.largest(numbers, keep))
    return _each_at(
        {
            name: spline(count / 256, matrix_axes=backwards if name == last else None)
            for name, count in counts.items()
        }
    )


def cosines_hashed(network: TourNetwork, keep: float) -> Transform:
    """The first kernel as cosines with hashed codes, the others hashed."""
    first, middle, last = network.shapes
    share = network.shares(keep)
    # the keeps of nested forms multiply: the root gives atoms and codes equal parts of the cut
    outer = share[first] ** 0.5
    nested = chain(vocabulary(outer, grid=PIXELS), at("codes", hashed(share[first] / outer)))
    return _each_at({first: nested, middle: hashed(share[middle]), last: hashed(share[last])})


def factors_hashed(network: TourNetwork, keep: float) -> Transform:
    """Every kernel at one rank, the factors of the first two hashed to a half."""
    first, middle, last = network.shapes
    half = {first: 0.5, middle: 0.5, last: 1.0}

    def low_rank(rank: int) -> dict[str, int]:
        return {
            name: math.ceil(FactoredArray.numbers(*shape, min(rank, *shape)))
            for name, shape in network.shapes.items()
        }

    def numbers(rank: int) -> float:
        return sum(half[name] * count for name, count in low_rank(rank).items())

    counts = low_rank(network.largest(numbers, keep, limit=64))
    forms = [
        at(name, factored(count / math.prod(network.shapes[name])))
        for name, count in counts.items()
    ]
    return chain(*forms, at((f"{first}/*", f"{middle}/*"), hashed(1 / 2)))


def _each_at(forms: Mapping[str, Transform]) -> Transform:
    """Each transform at the leaf of its name."""
    return chain(*(at(name, form) for name, form in forms.items()))


RECIPES: dict[str, Callable[[TourNetwork, float], Transform]] = {
    "rotate and prune": pruning,
    "hashed": hashing,
    "vocabulary (DCT)": cosines,
    "factored": factoring,
    "spline": interpolating,
    "DCT, codes hashed": cosines_hashed,
    "factored, factors hashed": factors_hashed,
}


def recipes(net: Network, params: PyTree, moments: Moments) -> dict[str, Recipe]:
    """For each name, the transform for a keep of the whole network."""
    network = TourNetwork.of(net, params, moments)
    return {name: functools.partial(form, network) for name, form in RECIPES.items()}
