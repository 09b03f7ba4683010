"""The algebra of dimensions: which dimensions of which arrays are the same axis, whole, as a factor or as a segment.

A `Dim` is a node of a union-find forest. An atom may turn out to be a *product* of factors (a
reshape of heads x size into two dimensions) or a *concatenation* of segments (gates side by side);
unifying two such forms aligns their factors or cuts both at the union of their boundaries. What
cannot be aligned is marked opaque, with the reason. Costs nearly constant time an operation.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping, Sequence


class Kind(enum.IntFlag):
    """What lies between the producers and the consumers of an axis; the strongest mark names the axis."""

    LINEAR = 0
    DIAGONAL = 1
    ELEMENTWISE = 2
    RMS = 4
    NORMALISED = 8
    OPAQUE = 16

    @property
    def label(self) -> str:
        """The name of the strongest mark."""
        return Kind(1 << (self.bit_length() - 1)).name.lower() if self else "linear"  # type: ignore[union-attr]


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why an axis is opaque: the primitive, a sentence, and the place in the source."""

    primitive: str
    sentence: str
    where: str = ""


class Dim:
    """One dimension: an atom, a product of factors (row-major), or a concatenation of segments."""

    __slots__ = ("kind", "pair", "parent", "parts", "reasons", "size", "split")

    def __init__(self, size: int):
        self.size = int(size)
        self.parent: Dim | None = None
        self.split: str | None = None  # "product" or "concat"
        self.parts: tuple[Dim, ...] = ()
        self.kind = Kind.LINEAR
        self.pair = False
        self.reasons: list[Reason] = []

    def __repr__(self) -> str:
        root = find(self)
        if root.split is None:
            return str(root.size)
        return (
            f"({' x '.join(map(repr, root.parts))})"
            if root.split == "product"
            else f"[{' + '.join(map(repr, root.parts))}]"
        )


class Misaligned(Exception):
    """Two forms that have no common refinement."""


def find(dim: Dim) -> Dim:
    """The representative of a dimension's class."""
    while dim.parent is not None:
        if dim.parent.parent is not None:
            dim.parent = dim.parent.parent
        dim = dim.parent
    return dim


def atoms(dim: Dim) -> list[Dim]:
    """The atoms a dimension is made of, in order, with repetitions."""
    root = find(dim)
    if root.split is None:
        return [root]
    return [atom for part in root.parts for atom in atoms(part)]


def parts(dim: Dim, split: str) -> list[Dim]:
    """The factors or the segments of a dimension, nested ones of the same split in line; itself when it has none."""
    root = find(dim)
    if root.split != split:
        return [root]
    return [inner for part in root.parts for inner in parts(part, split)]


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
    """Make two dimensions one axis, or mark both opaque for a reason when their forms have no common refinement."""
    if a is None or b is None:
        mark(
            a, Kind.OPAQUE, reason
        )  # a dimension of one against one of many: a broadcast that no rule explained
        mark(b, Kind.OPAQUE, reason)
        return
    try:
        _unify(a, b)
    except Misaligned as problem:
        why = Reason(reason.primitive, f"{reason.sentence}: {problem}", reason.where)
        mark(a, Kind.OPAQUE, why)
        mark(b, Kind.OPAQUE, why)


def _unify(a: Dim, b: Dim) -> None:
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
    concat, product = (a, b) if a.split == "concat" else (b, a)
    tie(concat, find(parts(product, "product")[0]).size)
    _unify(concat, product)


def _link(atom: Dim, target: Dim) -> None:
    """Let an atom stand for another dimension, handing its marks on."""
    if any(found is atom for found in atoms(target)):
        raise Misaligned("an axis would be a part of itself")
    atom.parent = target
    for found in atoms(target):
        found.kind |= atom.kind
        found.pair |= atom.pair
        known = {reason.sentence for reason in found.reasons}
        found.reasons += [reason for reason in atom.reasons if reason.sentence not in known]


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
    if len(members) == 1:
        return members[0]
    dim = Dim(size)
    dim.split, dim.parts = split, tuple(members)
    return dim


def align(left: Sequence[Dim], right: Sequence[Dim]) -> tuple[list[Dim], list[Dim]]:
    """Refine two lists of factors with equal products until they agree in sizes, leading factors first."""
    left, right = list(left), list(right)
    done: tuple[list[Dim], list[Dim]] = ([], [])
    while left and right:
        a, b = find(left[0]), find(right[0])
        if a.size == b.size:
            done[0].append(left.pop(0))
            done[1].append(right.pop(0))
        elif a.size > b.size:
            left[:1] = factor(a, b.size)
        else:
            right[:1] = factor(b, a.size)
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
        if first > leading:
            return [*factor(factors[0], leading), *factors[1:]]
        if first == leading:
            return factors
        raise Misaligned(f"its {root!r} positions do not begin with {leading} equal parts")
    if root.size % leading:
        raise Misaligned(f"its {root.size} positions are no multiple of {leading}")
    if root.split == "concat":
        tie(root, leading)
        return factor(root, leading)
    return refine(root, "product", [leading, root.size // leading])


def repeated(dim: Dim) -> list[Dim]:
    """Atoms that are a factor of a dimension more than once: an axis times itself, which no map can reach."""
    root = find(dim)
    if root.split is None:
        return []
    inside = [set(atoms(part)) for part in root.parts]
    found = [atom for part in root.parts for atom in repeated(part)]
    if root.split == "product":
        found += [
            atom
            for index, part in enumerate(inside)
            for atom in part
            if any(atom in other for other in inside[:index])
        ]
    return found


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
    ends, total = [], 0
    for segment in parts(dim, "concat"):
        total += find(segment).size
        ends.append(total)
    return ends[:-1]


def cut(dim: Dim, bounds: Iterable[int]) -> list[Dim]:
    """A dimension as segments that end at the given places, each a `Dim`."""
    root = find(dim)
    bounds = [place for place in bounds if 0 < place < root.size]
    if not bounds:
        return [root]
    if root.split is None:
        ends = [*bounds, root.size]
        return refine(
            root, "concat", [end - start for start, end in zip([0, *bounds], ends, strict=True)]
        )
    if root.split == "product":
        lead, *rest = parts(root, "product")
        stride = root.size // find(lead).size
        if any(place % stride for place in bounds):
            raise Misaligned(f"its {root!r} positions are cut at {bounds}")
        mark(lead, Kind.OPAQUE, Reason("slice", "some of its positions are cut out"))
        inner = product(rest)
        ends = [*bounds, root.size]
        pieces = []
        for start, end in zip([0, *bounds], ends, strict=True):
            count = (end - start) // stride
            if count == 1:
                pieces.append(inner)
                continue
            rows = Dim(count)
            mark(rows, Kind.OPAQUE, Reason("slice", "some of its positions are cut out"))
            pieces.append(product([rows, *rest]))
        return pieces
    segments: list[Dim] = []
    total = 0
    for segment in parts(root, "concat"):
        size = find(segment).size
        segments += cut(segment, [place - total for place in bounds])
        total += size
    # segments between the wanted places that were finer than asked are put together
    groups: list[list[Dim]] = [[]]
    total = 0
    for segment in segments:
        groups[-1].append(segment)
        total += find(segment).size
        if total in bounds:
            groups.append([])
    root.parts = tuple(segments)
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
    """Where a place of a dimension (an offset at the old sizes, between segments) is at new sizes."""
    if dim is None or place == 0:
        return place
    root = find(dim)
    if place == root.size:
        return size_of(root, sizes)
    if root.split is None:
        if size_of(root, sizes) != root.size:
            raise ValueError(
                f"place {place} lies inside an axis of {root.size} that has a new size"
            )
        return place
    if root.split == "product":
        lead = parts(root, "product")[0]
        stride = root.size // find(lead).size
        rest = size_of(root, sizes) // size_of(lead, sizes)
        return place // stride * rest if place % stride == 0 else place
    old = new = 0
    for part in root.parts:
        size = find(part).size
        if place < old + size:
            return new + place_of(part, place - old, sizes)
        old, new = old + size, new + size_of(part, sizes)
    return new
