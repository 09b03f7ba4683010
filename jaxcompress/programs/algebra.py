"""The algebra of dimensions: which dimensions of which arrays are the same axis.

A `Dim` is a node of a union-find forest. An atom may turn out to be a *product* of factors (a
reshape of heads x size into two dimensions) or a *concatenation* of segments (gates side by side).
Unifying two such forms aligns their factors, or cuts both at the union of their boundaries. What
cannot be aligned is marked opaque, with the reason. Costs nearly constant time an operation.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxcompress.programs.compat import Inconclusive


class Kind(enum.IntFlag):
    """The operations between producers and consumers of an axis; the strongest names its kind."""

    LINEAR = 0
    DIAGONAL = 1
    ELEMENTWISE = 2
    RMS = 4
    NORMALISED = 8
    OPAQUE = 16

    @property
    def label(self) -> str:
        """The name of the strongest mark."""
        strongest = max((kind for kind in Kind if kind & self), default=Kind.LINEAR)
        return str(strongest.name).lower()


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why an axis is opaque.

    Attributes:
        primitive: the JAX primitive that makes it so.
        sentence: the reason.
        where: file, line and function in the source, where they are known.
    """

    primitive: str
    sentence: str
    where: str = ""


class Dim:
    """One dimension: an atom, a product of factors (row-major), or a concatenation of segments.

    Attributes:
        size: the number of positions.
        parent: another dimension that this one turned out to be, or None.
        split: "product", "concat", or None for an atom.
        parts: the factors or segments.
        kind: of an atom, the operations that lie on it.
        pair: of an atom, whether two activations are contracted over it.
        reasons: of an atom, why it is opaque.
    """

    __slots__ = ("kind", "pair", "parent", "parts", "reasons", "size", "split")

    def __init__(self, size: int):
        self.size = int(size) if is_number(size) else size
        self.parent: Dim | None = None
        self.split: str | None = None
        self.parts: tuple[Dim, ...] = ()
        self.kind = Kind.LINEAR
        self.pair = False
        self.reasons: list[Reason] = []

    def __repr__(self) -> str:
        root = find(self)
        if root.split is None:
            return str(root.size)
        if root.split == "product":
            return f"({' x '.join(map(repr, root.parts))})"
        return f"[{' + '.join(map(repr, root.parts))}]"


class Misaligned(Exception):
    """Two forms that have no common refinement."""


def several(size: int) -> bool:
    """Whether a size is more than one; a symbolic size of `jax.export` counts as more."""
    return bool(size > 1) if is_number(size) else True


def is_number(size: object) -> bool:
    """Whether a size is a number, not a symbol of `jax.export` for any."""
    return isinstance(size, int | np.integer)


def exceeds(a: int, b: int) -> bool:
    """Whether a size is larger than another; a symbolic one exceeds its divisors."""
    return bool(a > b) if is_number(a) and is_number(b) else a != b and a % b == 0


def find(dim: Dim) -> Dim:
    """The representative of a dimension's class."""
    while dim.parent is not None:
        if dim.parent.parent is not None:
            dim.parent = dim.parent.parent
        dim = dim.parent
    return dim


def atoms(dim: Dim) -> list[Dim]:
    """The atoms of a dimension in order, with repetitions."""
    root = find(dim)
    if root.split is None:
        return [root]
    return list(itertools.chain.from_iterable(map(atoms, root.parts)))


def parts(dim: Dim, split: str) -> list[Dim]:
    """The factors or the segments of a dimension, flat; the dimension itself if it has none."""
    root = find(dim)
    if root.split != split:
        return [root]
    return list(itertools.chain.from_iterable(parts(part, split) for part in root.parts))


def mark(dim: Dim | None, kind: Kind, reason: Reason | None = None) -> None:
    """Add a mark to every atom of a dimension."""
    if dim is None:
        return
    for atom in atoms(dim):
        atom.kind |= kind
        if reason is not None and all(reason.sentence != known.sentence for known in atom.reasons):
            atom.reasons.append(reason)


def pair(dim: Dim | None) -> None:
    """Note that two activations are contracted over a dimension."""
    for atom in atoms(dim) if dim is not None else ():
        atom.pair = True


def unify(a: Dim | None, b: Dim | None, reason: Reason) -> None:
    """Make two dimensions one axis, or both opaque where their forms have no common refinement."""
    if a is None or b is None:  # one position against several: a broadcast that no rule explains
        mark(a, Kind.OPAQUE, reason)
        mark(b, Kind.OPAQUE, reason)
        return
    try:
        _unify(a, b)
    except (Misaligned, Inconclusive) as problem:
        why = Reason(reason.primitive, f"{reason.sentence}: {problem}", reason.where)
        mark(a, Kind.OPAQUE, why)
        mark(b, Kind.OPAQUE, why)


def _unify(a: Dim, b: Dim) -> None:
    """Make two dimensions one axis, or raise `Misaligned`."""
    a, b = find(a), find(b)
    if a is b:
        return
    if a.size != b.size:
        raise Misaligned(f"sizes {a.size} and {b.size} differ")
    if a.split is None or b.split is None:
        _link(a, b) if a.split is None else _link(b, a)
        return
    if a.split == b.split == "product":
        left, right = align(parts(a, "product"), parts(b, "product"))
        for one, other in zip(left, right, strict=True):
            _unify(one, other)
        return
    if a.split == b.split == "concat":
        bounds = sorted({*_bounds(a), *_bounds(b)})
        for one, other in zip(cut(a, bounds), cut(b, bounds), strict=True):
            _unify(one, other)
        return
    segments, factors = (a, b) if a.split == "concat" else (b, a)
    tie(segments, find(parts(factors, "product")[0]).size)
    _unify(segments, factors)


def _link(atom: Dim, target: Dim) -> None:
    """Let an atom be another dimension, which receives its marks."""
    inside = atoms(target)
    if atom in inside:
        raise Misaligned("an axis would be a part of itself")
    atom.parent = target
    for other in inside:
        other.kind |= atom.kind
        other.pair |= atom.pair
        known = {reason.sentence for reason in other.reasons}
        other.reasons += [reason for reason in atom.reasons if reason.sentence not in known]


def refine(atom: Dim, split: str, sizes: Sequence[int]) -> list[Dim]:
    """Turn an atom into a product or a concatenation of new atoms, which inherit its marks."""
    atom = find(atom)
    fresh = [Dim(size) for size in sizes]
    for part in fresh:
        part.kind, part.pair, part.reasons = atom.kind, atom.pair, list(atom.reasons)
    atom.split, atom.parts = split, tuple(fresh)
    return fresh


def product(factors: Sequence[Dim]) -> Dim:
    """The row-major product of dimensions."""
    return _compound("product", factors, math.prod(factor.size for factor in factors))


def concat(segments: Sequence[Dim]) -> Dim:
    """Dimensions side by side."""
    return _compound("concat", segments, sum(segment.size for segment in segments))


def _compound(split: str, members: Sequence[Dim], size: int) -> Dim:
    """A dimension of several, or the only one itself."""
    if len(members) == 1:
        return members[0]
    dim = Dim(size)
    dim.split, dim.parts = split, tuple(members)
    return dim


def align(left: Sequence[Dim], right: Sequence[Dim]) -> tuple[list[Dim], list[Dim]]:
    """Refine lists of factors with equal products until their sizes agree, from the first on."""
    left, right = list(left), list(right)
    done: tuple[list[Dim], list[Dim]] = ([], [])
    while left and right:
        a, b = find(left[0]), find(right[0])
        if a.size == b.size:
            done[0].append(left.pop(0))
            done[1].append(right.pop(0))
        elif exceeds(a.size, b.size):
            left[:1] = factor(a, b.size)
        elif exceeds(b.size, a.size):
            right[:1] = factor(b, a.size)
        else:
            raise Misaligned(f"sizes {a.size} and {b.size} have no common factors")
    if left or right:
        raise Misaligned("a size of one is left over")
    return done


def factor(dim: Dim, leading: int) -> list[Dim]:
    """A dimension as factors, the first of a given size."""
    root = find(dim)
    if root.size == leading:
        return [root]
    if root.split == "product":
        factors = parts(root, "product")
        first = find(factors[0]).size
        if exceeds(first, leading):
            return [*factor(factors[0], leading), *factors[1:]]
        if first == leading:
            return factors
        raise Misaligned(f"its {root!r} positions do not begin with {leading} equal parts")
    if root.size % leading != 0:
        raise Misaligned(f"its {root.size} positions are no multiple of {leading}")
    if root.split == "concat":
        tie(root, leading)
        return factor(root, leading)
    return refine(root, "product", [leading, root.size // leading])


def repeated(dim: Dim) -> list[Dim]:
    """Atoms that are a factor of a dimension more than once: an axis times itself."""
    root = find(dim)
    if root.split is None:
        return []
    inside = [set(atoms(part)) for part in root.parts]
    twice: list[Dim] = []
    for index, part in enumerate(root.parts):
        twice += repeated(part)
        if root.split == "product":
            twice += inside[index] & set().union(*inside[:index])
    return twice


def tie(dim: Dim, count: int) -> None:
    """Read a concatenation of equal segments as count x segment: the segments become one axis."""
    root = find(dim)
    size = root.size // count
    bounds = [size * index for index in range(1, count)]
    segments = cut(root, bounds)
    for segment in segments[1:]:
        _unify(segments[0], segment)
    lead = Dim(count)
    mark(
        lead,
        Kind.OPAQUE,
        Reason("reshape", f"it numbers {count} equal segments that stand side by side"),
    )
    root.split, root.parts = "product", (lead, segments[0])


def _bounds(dim: Dim) -> list[int]:
    """The places between the segments of a dimension."""
    return list(itertools.accumulate(find(part).size for part in parts(dim, "concat")))[:-1]


def cut(dim: Dim, bounds: Iterable[int]) -> list[Dim]:
    """A dimension as segments that end at the given places."""
    root = find(dim)
    bounds = [place for place in bounds if 0 < place < root.size]
    if not bounds:
        return [root]
    if root.split is None:
        return refine(root, "concat", _lengths(bounds, root.size))
    if root.split == "product":
        return _cut_product(root, bounds)
    return _cut_concat(root, bounds)


def _lengths(bounds: Sequence[int], size: int) -> list[int]:
    """The lengths of the segments between the given places."""
    return [end - start for start, end in itertools.pairwise([0, *bounds, size])]


def _cut_product(root: Dim, bounds: list[int]) -> list[Dim]:
    """Segments of a product, each of some positions of its leading factor."""
    lead, *rest = parts(root, "product")
    stride = root.size // find(lead).size
    if any(place % stride for place in bounds):
        raise Misaligned(f"its {root!r} positions are cut at {bounds}")
    why = Reason("slice", "some of its positions are cut out")
    mark(lead, Kind.OPAQUE, why)
    inner = product(rest)
    segments = []
    for length in _lengths(bounds, root.size):
        if length == stride:
            segments.append(inner)
            continue
        rows = Dim(length // stride)
        mark(rows, Kind.OPAQUE, why)
        segments.append(product([rows, *rest]))
    return segments


def _cut_concat(root: Dim, bounds: list[int]) -> list[Dim]:
    """Segments of a concatenation; its own boundaries are refined by the given ones."""
    segments: list[Dim] = []
    total = 0
    for segment in parts(root, "concat"):
        segments += cut(segment, [place - total for place in bounds])
        total += find(segment).size
    root.parts = tuple(segments)
    groups: list[list[Dim]] = [[]]  # finer segments between two of the given places stay together
    total = 0
    for segment in segments:
        groups[-1].append(segment)
        total += find(segment).size
        if total in bounds:
            groups.append([])
    return [concat(group) for group in groups]


# --- sizes ---------------------------------------------------------------------------------------


Sizes = Mapping[Dim, int]
"""New sizes of atoms; an atom that is not in it keeps its own."""


def size_of(dim: Dim | None, sizes: Sizes) -> int:
    """The size of a dimension at new sizes of its atoms; None is a dimension of one."""
    if dim is None:
        return 1
    root = find(dim)
    if root.split is None:
        return sizes.get(root, root.size)
    present = (size_of(part, sizes) for part in root.parts)
    return math.prod(present) if root.split == "product" else sum(present)


def place_of(dim: Dim | None, place: int, sizes: Sizes) -> int:
    """The offset at new sizes of a place between segments, given by its offset at the old sizes."""
    if dim is None or sizes.keys().isdisjoint(atoms(dim)):
        return place
    root = find(dim)
    if place == 0:
        return place
    if place == root.size:
        return size_of(root, sizes)
    if root.split is None:
        if size_of(root, sizes) != root.size:
            raise ValueError(
                f"place {place} lies inside an axis of {root.size} that has a new size"
            )
        return place
    if root.split == "product":
        inner = product(parts(root, "product")[1:])
        whole, within = divmod(place, inner.size)
        return whole * size_of(inner, sizes) + place_of(inner, within, sizes)
    old = new = 0
    for part in root.parts:
        size = find(part).size
        if place < old + size:
            return new + place_of(part, place - old, sizes)
        old, new = old + size, new + size_of(part, sizes)
    return new
