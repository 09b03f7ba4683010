"""Transforms that rewrite each weight by itself: hashed, vocabulary, factored, convolved.

Each reads a leaf as a plain matrix through its `MatrixAxes`, turns `keep` into a size of its form, and fits that form's
stored numbers by least squares, in the metric of the inputs when moments are given. What it stores and costs is said
in the array's own file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.arrays.atoms import DesignedAtoms, check_rule, encode_name
from jaxcompress.arrays.base import CompactArray, is_compact
from jaxcompress.arrays.convolved import BASES, ConvolvedArray
from jaxcompress.arrays.factored import FactoredArray, principal_outputs
from jaxcompress.arrays.hashed import HashedArray
from jaxcompress.arrays.layout import MATRIX, MatrixAxes
from jaxcompress.arrays.permutation import leaf_seed
from jaxcompress.arrays.vocabulary import VocabularyArray
from jaxcompress.transforms.base import Scope, Transform, map_leaves
from jaxcompress.transforms.paths import join, matches, named_leaves

Keep = float | Mapping[str, float]


class LeafTransform(Transform):
    """The base of transforms of single weights; a subclass is a frozen dataclass with `keep`, `axes` and `fit`."""

    keep: Any
    axes: Any
    uses_moments = True
    """Whether the fit depends on the metric of the inputs; where it does not, moments are not looked at."""

    def fit(self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str) -> CompactArray | None:
        """The compact array for one weight, or None to leave it dense where the form would cost more.

        Args:
            matrix: (..., m, n) float32 or wider.
            numbers: the most numbers to store, for each matrix of a stack.
            metric: (..., m, m) second moments of the inputs, or None.
            name: the leaf's path, for seeds and messages.

        Raises:
            Unreachable: when the form needs more numbers; it says how many.
        """
        raise NotImplementedError

    def _apply(self, params: Any, moments: Any, scope: Scope) -> Any:
        keeps, axes = PerLeaf(self.keep, "keep"), PerLeaf(self.axes, "axes")

        def visit(name: str, leaf: Any, metric: Any) -> Any:
            path = join(scope.prefix, name)
            keep, roles = keeps.get(path), axes.get(path)
            problem = "no keep is given for it" if keep is None else why_not(leaf, roles)
            if keep is not None and problem is None:
                return compact_leaf(self, path, leaf, metric, keep, roles)
            if scope.by_name:
                raise TypeError(f"{path or 'the leaf'} was picked by name but cannot be compacted: {problem}")
            return leaf

        result = map_leaves(visit, params, moments)
        for option in (keeps, axes):
            option.check_used([join(scope.prefix, name) for name, _ in named_leaves(params)], whole=not scope.prefix)
        return result

    def __repr__(self) -> str:
        shown = [
            f"{f.name}={_show(getattr(self, f.name))}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if f.default is dataclasses.MISSING or not _same(getattr(self, f.name), f.default)
        ]
        return f"{type(self).__name__.lower()}({', '.join(shown)})"


class Unreachable(ValueError):
    """A form cannot be stored in as few numbers as asked: `least` is what it can reach."""

    def __init__(self, least: float, why: str):
        super().__init__(why)
        self.least = least


class PerLeaf:
    """An option that is one value for all leaves or a mapping from patterns, the first match winning."""

    def __init__(self, option: Any, what: str):
        self.what = what
        self.rules = option if isinstance(option, tuple) else (("**", option),)
        self.default = not isinstance(option, tuple)
        self.used: set[str] = set()

    def get(self, path: str) -> Any:
        for pattern, value in self.rules:
            if self.default or matches(pattern, path):
                self.used.add(pattern)
                return value
        return None

    def check_used(self, paths: list[str], *, whole: bool) -> None:
        unused = [pattern for pattern, _ in self.rules if pattern not in self.used]
        if unused and whole and not self.default:
            raise ValueError(f"{self.what}: the patterns {unused} match no leaf; there are: {', '.join(paths)}")


def why_not(leaf: Any, axes: MatrixAxes | None) -> str | None:
    """Why a leaf cannot be compacted, in words; None when it can."""
    if is_compact(leaf):
        return None
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "ndim"):
        return f"it is a {type(leaf).__name__}, not an array"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"it holds {leaf.dtype}, and only float weights are compacted: leave it out of the pattern"
    if axes is None and leaf.ndim != 2:
        return f"it has {leaf.ndim} dimensions {leaf.shape} of unknown roles: say which with axes=jc.MatrixAxes(inputs, outputs)"
    return "it has no entries" if leaf.size == 0 else None


def compact_leaf(transform: LeafTransform, path: str, leaf: Any, metric: Any, keep: float, axes: MatrixAxes | None) -> Any:
    """One weight in a transform's form; left dense where the form at full resolution would cost more than dense."""
    where = path or "the leaf"
    roles: MatrixAxes = axes or (leaf.axes if is_compact(leaf) else MATRIX)
    dense = leaf.materialize() if is_compact(leaf) else leaf
    try:
        axes = roles.resolve(dense.ndim)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    values = np.asarray(dense)
    dtype = jnp.asarray(dense).dtype
    if not np.isfinite(values.astype(np.float32)).all():
        raise ValueError(f"{where} contains NaN or infinity: repair or retrain it before compressing")
    matrix = axes.to_matrix(values.astype(np.float32) if dtype.itemsize < 4 else values)
    m, n = matrix.shape[-2:]
    metric = check_metric(where, metric, matrix) if transform.uses_moments else None
    numbers = math.floor(keep * m * n * (1 + 1e-9))
    try:
        if numbers < 1:
            raise Unreachable(1, f"keep={keep:g} of {m} x {n} is less than one number")
        array = transform.fit(matrix, numbers, metric, path)
    except Unreachable as error:
        least = math.ceil(error.least / (m * n) * 1e6) / 1e6
        way_out = (
            f"the least keep this form reaches on {m} x {n} is {least:g}" if least <= 1 else f"it cannot make {m} x {n} smaller"
        )
        raise Unreachable(error.least, f"{where}: {error}; {way_out}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    dims = values.shape[values.ndim - axes.ndim :]
    if array is None:
        return leaf
    return jax.tree.map(lambda child: child.astype(dtype), dataclasses.replace(array, axes=axes, dims=dims))


def check_metric(where: str, metric: Any, matrix: np.ndarray) -> np.ndarray | None:
    """Second moments that fit a matrix, as float64."""
    if metric is None:
        return None
    metric = np.asarray(metric, np.float64)
    m = matrix.shape[-2]
    if metric.shape[-2:] != (m, m) or metric.shape[:-2] not in ((), matrix.shape[:-2]):
        raise ValueError(
            f"{where}: its moments have shape {metric.shape}, expected {(m, m)}: jc.second_moments of the layer's "
            "inputs; a transform that changed the width has to hand on its own moments"
        )
    if not np.isfinite(metric).all():
        raise ValueError(f"{where}: its moments contain NaN or infinity: compute them from finite inputs")
    return metric


# --- the four forms ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, repr=False)
class Hashed(LeafTransform):
    """See `hashed`."""

    keep: Any
    seed: int = 0
    block: int = 1
    seed_by: str = "path"
    axes: Any = None

    def fit(self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str) -> HashedArray:
        m, n = matrix.shape[-2:]
        # a longer run than the row has is the row; whole blocks, unless the table is the matrix
        block = min(self.block, n)
        if self.block > numbers:
            raise ValueError(f"block={self.block} is longer than the table of {numbers} numbers: use a smaller block or keep more")
        size = numbers if numbers == m * n else numbers - numbers % block
        seed = leaf_seed(self.seed, name if self.seed_by == "path" else f"{m}x{n}")
        return HashedArray.fit(matrix, size, seed=seed, block=block, metric=metric)


@dataclasses.dataclass(frozen=True, repr=False)
class Vocabulary(LeafTransform):
    """See `vocabulary`."""

    keep: Any
    atoms: Any = "dct"
    grid: tuple[int, ...] | None = None
    seed: int = 0
    axes: Any = None

    def fit(self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str) -> VocabularyArray | None:
        m, n = matrix.shape[-2:]
        grid = (m,) if self.grid is None else self.grid
        if math.prod(grid) != m:
            raise ValueError(
                f"grid={grid} has {math.prod(grid)} points, but the matrix has {m} inputs: give a grid with that product"
            )
        if isinstance(self.atoms, str) and self.atoms == "learned":
            if numbers == m * n:
                return None  # enough atoms to be exact, with their codes, are more numbers than the matrix has
            count = min(_whole(numbers, m + n, "one learned atom with its codes"), m)
            return VocabularyArray.fit(matrix, learned_atoms(matrix, metric, count), metric=metric)
        if not callable(self.atoms) and not isinstance(self.atoms, str):
            given = np.asarray(self.atoms)
            if given.ndim != 2 or given.shape[0] != m:
                raise ValueError(f"atoms: the given matrix has shape {given.shape}, expected ({m}, atoms): a row for each input")
            count = min(_whole(numbers, m + n, "one given atom with its codes"), given.shape[1])
            return VocabularyArray.fit(matrix, given[:, :count], metric=metric)
        count = min(_whole(numbers, n, "one atom's codes"), check_rule(self.atoms, grid))
        seed = leaf_seed(self.seed, name) if self.atoms == "random" else 0
        rule: Any = self.atoms
        atoms = DesignedAtoms(rule, grid=grid, count=count, seed=seed, dims=(m, count))
        return VocabularyArray.fit(matrix, atoms, metric=metric)


@dataclasses.dataclass(frozen=True, repr=False)
class Factored(LeafTransform):
    """See `factored`."""

    keep: Any = 1.0
    energy: Any = None
    axes: Any = None

    def fit(self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str) -> FactoredArray:
        m, n = matrix.shape[-2:]
        if self.energy is not None:
            return FactoredArray.fit(matrix, rank_for_energy(matrix, metric, self.energy), metric=metric)
        ranks = [rank for rank in range(1, min(m, n) + 1) if FactoredArray.numbers(m, n, rank) <= numbers]
        if not ranks:
            least = math.ceil(FactoredArray.numbers(m, n, 1))
            raise Unreachable(least, f"rank 1 takes {least} numbers, and keep allows {numbers}")
        return FactoredArray.fit(matrix, ranks[-1], metric=metric)


@dataclasses.dataclass(frozen=True, repr=False)
class Convolved(LeafTransform):
    """See `convolved`."""

    keep: Any
    basis: str = "step"
    axes: Any = None

    uses_moments = False  # means over the steps are the optimum in every metric

    def fit(self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str) -> ConvolvedArray:
        m, n = matrix.shape[-2:]
        return ConvolvedArray.fit(matrix, min(_whole(numbers, m, "one knot in each input's period"), n), basis=self.basis)


def hashed(keep: Keep, *, seed: int = 0, block: int = 1, seed_by: str = "path", axes: Any = None) -> LeafTransform:
    """Share weights by a hash: each entry is plus or minus one of `keep * m * n` numbers.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], or a mapping from patterns to fractions.
        seed: which hash; every leaf mixes in its own path.
        block: how many neighbours along the outputs are shared as one run; faster, and coarser.
        seed_by: "path" for a hash of its own for each leaf, "shape" for one hash for leaves of equal shape, so that
            they can be stacked.
        axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out) for two by default.

    Returns:
        A transform to trees with `HashedArray` nodes (Chen et al. 2015, arXiv:1504.04788).

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.hashed(keep=1/8)(jnp.ones((16, 16)))
        HashedArray((16, 16) float32, 32 stored = 1/8)
    """
    if not isinstance(block, int) or block < 1:
        raise ValueError(f"block must be a whole number of at least 1, got {block!r}")
    if seed_by not in ("path", "shape"):
        raise ValueError(f"seed_by must be 'path' or 'shape', got {seed_by!r}")
    return Hashed(check_keep(keep), seed, block, seed_by, check_axes(axes))


def vocabulary(
    keep: Keep, *, atoms: Any = "dct", grid: tuple[int, ...] | None = None, seed: int = 0, axes: Any = None
) -> LeafTransform:
    """Write each weight as features of its inputs times codes: `W = atoms @ codes`.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], or a mapping from patterns to fractions.
        atoms: "dct" (cosines, low frequencies first), "random" (seeded, orthonormal), both recomputed and free to
            store; "learned" (principal directions of the inputs when moments are given, else of the weight), stored;
            a matrix (inputs, atoms), stored, of which the first columns are used; or a function from the grid's
            coordinates, float32 (inputs, axes), to such a matrix, recomputed.
        grid: the sizes of the axes that the inputs lie on, such as (28, 28); one axis by default.
        seed: for "random".
        axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out) for two by default.

    Returns:
        A transform to trees with `VocabularyArray` nodes (Denil et al. 2013, arXiv:1306.0543).

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.vocabulary(keep=1/4, grid=(4, 4))(jnp.ones((16, 10)))
        VocabularyArray((16, 10) float32, 4 dct atoms on 4x4, 40 stored = 1/4)
    """
    if isinstance(atoms, str) and atoms != "learned":
        check_rule(atoms, (1,))
    if not callable(atoms) and not isinstance(atoms, str):
        atoms = _Given(np.asarray(atoms))
    if grid is not None:
        grid = tuple(int(size) for size in grid)
        if not grid or min(grid) < 1:
            raise ValueError(f"grid must be sizes of at least 1, got {grid}")
    return Vocabulary(check_keep(keep), atoms, grid, seed, check_axes(axes))


def factored(keep: Keep | None = None, *, energy: float | None = None, axes: Any = None) -> LeafTransform:
    """Rotate each weight to its principal directions and cut: the best product of low rank.

    With moments the *outputs'* error is the least possible at that rank; without, the weight's own.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], or a mapping from patterns to fractions.
        energy: instead of `keep`, the share of the outputs' (or the weight's) squared norm to reach.
        axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out) for two by default.

    Returns:
        A transform to trees with `FactoredArray` nodes (Eckart and Young 1936; arXiv:2403.07378 for the metric).

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.factored(energy=0.999)(jnp.outer(jnp.arange(8.0), jnp.ones(6)))
        FactoredArray((8, 6) float32, rank 1, 14 stored = 1/3.43)
    """
    if (keep is None) == (energy is None):
        raise ValueError("factored takes either keep or energy, and one of them")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], the share of the squared norm to reach; got {energy!r}")
    return Factored(1.0 if keep is None else check_keep(keep), energy, check_axes(axes))


def convolved(keep: Keep, *, basis: str = "step", axes: Any = None) -> LeafTransform:
    """Read each weight as one function of one variable and sample it more coarsely.

    Each input's period, its row of the matrix, keeps `keep * n` knots, so neighbouring outputs share. Exchange the
    roles in `axes` to coarsen along the inputs.

    Args:
        keep: the fraction of the numbers to store, in (0, 1], or a mapping from patterns to fractions.
        basis: "step".
        axes: the roles of the dimensions, `MatrixAxes` or a mapping from patterns; (in, out) for two by default.

    Returns:
        A transform to trees with `ConvolvedArray` nodes; see `jc.as_function` for the idea.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.convolved(keep=1/4)(jnp.ones((16, 8)))
        ConvolvedArray((16, 8) float32, 2 step knots a period, 32 stored = 1/4)
    """
    if basis not in BASES:
        raise ValueError(f"basis={basis!r} is unknown: expected one of {', '.join(map(repr, BASES))}")
    return Convolved(check_keep(keep), basis, check_axes(axes))


def initialize(key: jax.Array, transform: Transform, params: Any) -> Any:
    """Fresh compact parameters: a transform's structure, and random numbers at each given leaf's variance.

    Args:
        key: a JAX random key.
        transform: leaf transforms and their combinators.
        params: the dense tree to take shapes and variances from; leaves that stay dense keep their values.

    Returns:
        A tree whose compact arrays, materialised, have each leaf's mean square.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> fresh = jc.initialize(jax.random.key(0), jc.hashed(keep=1/8), {"kernel": 0.1 * jnp.ones((64, 64))})
        >>> round(float(jnp.sqrt(jnp.mean(fresh["kernel"].materialize() ** 2))), 3)
        0.1
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_compact)
    dense = [leaf.materialize() if is_compact(leaf) else leaf for leaf in leaves]
    fresh = []
    for index, leaf in enumerate(dense):
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        noise = jax.random.normal(jax.random.fold_in(key, index), leaf.shape, leaf.dtype) if floating else leaf
        fresh.append(noise)
    made = treedef.flatten_up_to(transform(jax.tree.unflatten(treedef, fresh)))

    def rescale(array: Any, original: Any, target: Any) -> Any:
        if not is_compact(array):
            return original
        ratio = jnp.sqrt(jnp.mean(jnp.square(target)) / jnp.mean(jnp.square(array.materialize())))
        return scale(array, ratio)

    return jax.tree.unflatten(treedef, [rescale(*each) for each in zip(made, leaves, dense, strict=True)])


def scale(array: CompactArray, factor: jax.Array) -> CompactArray:
    """The compact array that means `factor` times as much."""
    child = array.linear_in or array._children[0]
    value = getattr(array, child)
    scaled = scale(value, factor) if is_compact(value) else value * factor.astype(value.dtype)
    return dataclasses.replace(array, **{child: scaled})


# --- options ---------------------------------------------------------------------------------------------------


def check_keep(keep: Any) -> Any:
    """A keep, or a mapping of keeps as a tuple of pairs."""
    if isinstance(keep, Mapping):
        return tuple((pattern, check_keep(value)) for pattern, value in keep.items())
    if not isinstance(keep, (int, float)) or isinstance(keep, bool) or not 0 < keep <= 1:
        raise ValueError(
            f"keep must be in (0, 1], the fraction of the numbers to keep; got {keep!r}: for eight times smaller, keep=1/8"
        )
    return float(keep)


def check_axes(axes: Any) -> Any:
    """MatrixAxes, None, or a mapping of them as a tuple of pairs."""
    if isinstance(axes, Mapping):
        return tuple((pattern, check_axes(value)) for pattern, value in axes.items())
    if axes is not None and not isinstance(axes, MatrixAxes):
        raise TypeError(f"axes must be a jc.MatrixAxes or a mapping from patterns to them, got {axes!r}")
    return axes


def _whole(numbers: int, unit: int, what: str) -> int:
    if numbers < unit:
        raise Unreachable(unit, f"{what} takes {unit} numbers, and keep allows {numbers}")
    return numbers // unit


def learned_atoms(matrix: np.ndarray, metric: np.ndarray | None, count: int) -> np.ndarray:
    """Orthonormal features of the inputs: of the data when their moments are known, else of the weight."""
    source = np.asarray(matrix, np.float64)
    gram = source @ source.mT if metric is None else np.broadcast_to(metric, (*matrix.shape[:-2], *metric.shape[-2:]))
    vectors = np.linalg.eigh(gram)[1][..., ::-1][..., :count]
    # a sign convention, so that equal weights give equal atoms everywhere
    peak = np.take_along_axis(vectors, np.abs(vectors).argmax(-2, keepdims=True), -2)
    return vectors * np.where(peak < 0, -1, 1)


def rank_for_energy(matrix: np.ndarray, metric: np.ndarray | None, energy: float) -> int:
    """The least rank whose product carries a share of the outputs' squared norm, in every matrix of a stack."""
    target = np.asarray(matrix, np.float64).reshape(-1, *matrix.shape[-2:])
    full = min(target.shape[-2:])
    right = principal_outputs(target, metric, full)
    outputs = target @ right
    weighted = outputs if metric is None else np.broadcast_to(metric, (len(target), *metric.shape[-2:])) @ outputs
    gains = np.maximum(np.sum(outputs * weighted, axis=-2), 0)
    reached = np.cumsum(gains, axis=-1) >= energy * gains.sum(-1, keepdims=True) * (1 - 1e-12)
    return int(min(reached.argmax(-1).max() + 1, full)) if reached.any(-1).all() else full


class _Given(np.ndarray):
    """A matrix of atoms that compares by content, so that recipes do."""

    def __new__(cls, array: np.ndarray) -> _Given:
        return np.array(array).view(cls)

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return isinstance(other, np.ndarray) and np.array_equal(np.asarray(self), np.asarray(other))

    def __hash__(self) -> int:  # type: ignore[override]
        return hash((self.shape, self.tobytes()))


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return repr(dict(value))
    if isinstance(value, np.ndarray):
        return f"matrix{value.shape}"
    return encode_name(value) if isinstance(value, Callable) else repr(value)
