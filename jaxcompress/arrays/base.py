"""A compact array is a pytree node that stores fewer numbers than the dense array it represents.

A subclass of `CompactArray` writes one method, `materialize`, and inherits what a matrix is
expected to offer: products from both sides, a transpose, row look-ups, a shape, a count of stored
numbers. Memory is that of the stored numbers; `x @ A` costs a dense product until the subclass
gives a cheaper `multiply`.

Source: the unwrap-before-use pattern of paramax and lineax's small operator protocol, carried to
plain pytrees.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeGuard, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxcompress.arrays.layout import MATRIX, MatrixAxes
from jaxcompress.arrays.leaves import number_count
from jaxcompress.arrays.static import StaticArray, static_field
from jaxcompress.checks import is_array, shown

ArrayT = TypeVar("ArrayT", bound="CompactArray")


def check_rows(
    take: Callable[[ArrayT, jax.Array], jax.Array],
) -> Callable[[ArrayT, Any], jax.Array]:  # ArrayLike; a subclass's own method takes fewer types
    """Extend a look-up in the plain matrix to any layout, stacks, and indices of any range."""

    @functools.wraps(take)
    def checked(self: ArrayT, rows: ArrayLike) -> jax.Array:
        self.require_matrix("take")
        rows = jnp.asarray(rows)
        if not jnp.issubdtype(rows.dtype, jnp.integer):
            raise TypeError(
                f"take expects integer rows, got {rows.dtype}: "
                "cast them, for instance with .astype(int)"
            )
        if not self.looks_up_rows:
            return jnp.take(self.materialize(), rows, axis=-2)
        count = self.shape[-2]
        rows = jnp.where(rows < 0, rows + count, rows)
        # a subclass reads in range only; rows out of range are overwritten after, as jnp.take does
        taken = take(self, jnp.clip(rows, 0, count - 1))
        return jnp.where(((rows >= 0) & (rows < count))[..., None], taken, jnp.nan)

    return checked


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
class _Fields:
    """Declares subclasses to be dataclasses for type checkers."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class CompactArray(_Fields):
    """The base class of every compact array: a matrix stored in fewer numbers.

    The dtype and the leading dimensions come from the children, so `jax.tree.map` to another dtype,
    stacking, `vmap` and `scan` need no bookkeeping. `@` means what numpy means by it. jax.numpy
    functions do not accept a compact array; call `jc.materialize` first, or use `jc.matmul` and
    `jc.take`. `jc.compact_array` lists the methods that a subclass writes.

    Attributes:
        matrix_axes: which trailing dimensions of the dense array are the matrix's inputs and
            outputs.
        dims: the sizes of those trailing dimensions; None where `materialize` alone determines
            them.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> @jc.compact_array
        ... class OuterArray(jc.CompactArray):
        ...     column: jax.Array
        ...     row: jax.Array
        ...     def materialize(self):
        ...         return self.column[..., :, None] * self.row[..., None, :]
        >>> outer = OuterArray(jnp.ones(3), jnp.arange(4.0))
        >>> outer
        OuterArray((3, 4) float32, 7 stored = 1/1.71)
        >>> jnp.ones((2, 3)) @ outer
        Array([[0., 3., 6., 9.],
               [0., 3., 6., 9.]], dtype=float32)
    """

    matrix_axes: MatrixAxes = static_field(default=MATRIX, kw_only=True)  # noqa: RUF009
    dims: tuple[int, ...] | None = static_field(default=None, kw_only=True)

    child_names: ClassVar[tuple[str, ...]] = ()
    """Fields that are children, set by the decorator."""
    static_names: ClassVar[tuple[str, ...]] = ("matrix_axes", "dims")
    """Fields that are static, set by the decorator."""
    linear_in: ClassVar[str | None] = None
    """The child in which `materialize` is linear (the first, unless a class names another)."""

    __array_ufunc__ = None  # numpy's operators defer to ours

    # --- what a subclass may override, all about the plain matrix (..., m, n) --------------------

    def matrix(self) -> Float[Array, "*stack m n"]:
        """The plain matrix, inputs first: what a subclass wrote as `materialize`."""
        raise NotImplementedError(
            f"{type(self).__name__} needs a method materialize(self) under @jc.compact_array"
        )

    def multiply(self, x: Float[Array, "*batch rows m"]) -> Float[Array, "*batch rows n"]:
        """`x @ matrix`, the product that `@`, `jc.matmul` and `net(params, x)` use.

        A subclass overrides it where it has a cheaper way than the dense matrix. Children may
        themselves be compact arrays there: `@` takes them as they are, `jc.materialize(child)`
        expands them.

        Args:
            x: (..., rows, m); its leading dimensions broadcast with the array's as in `jnp.matmul`.

        Returns:
            (..., rows, n).
        """
        return jnp.matmul(x, self.matrix())

    def multiply_transposed(
        self, y: Float[Array, "*batch rows n"]
    ) -> Float[Array, "*batch rows m"]:
        """`y @ matrix.T`; by default the transpose of `multiply`, which JAX derives.

        Args:
            y: (..., rows, n); its leading dimensions broadcast with the array's as in `jnp.matmul`.

        Returns:
            (..., rows, m).
        """
        leading = jnp.broadcast_shapes(y.shape[:-2], self.stack_shape)
        y = jnp.broadcast_to(y, (*leading, *y.shape[-2:]))
        # a linear function is transposed from the shape of its input alone
        x = jax.ShapeDtypeStruct((*y.shape[:-1], self.matrix_shape[0]), y.dtype)
        out = jax.eval_shape(self.multiply, x)
        return jax.linear_transpose(self.multiply, x)(y.astype(out.dtype))[0]

    @check_rows
    def take(self, rows: Int[Array, "*indices"]) -> Float[Array, "*stack_indices n"]:
        """Rows of the dense matrix: `jnp.take(A.materialize(), rows, axis=-2)`.

        A subclass overrides it where it has a cheaper way than the dense matrix; its own method
        receives indices within range and an unstacked matrix (m, n).

        Args:
            rows: integers of any shape; negative ones count from the end, out-of-range ones give
                NaN.

        Returns:
            (..., *rows.shape, n).

        Raises:
            TypeError: for rows that are no integers, or an array that is no matrix in its last two
                dimensions.
        """
        return self.matrix()[rows]

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """The sizes of the leading dimensions, those of a stack of matrices; () for one matrix."""
        return jax.eval_shape(type(self).matrix, self).shape[:-2]

    def child_metrics(self, metric: np.ndarray | None) -> dict[str, np.ndarray | None]:
        """The metric in which each child is to be fitted.

        Args:
            metric: (..., m, m) second moments of this matrix's inputs, (m,) their diagonal, or None
                for the identity.

        Returns:
            From a child's name to its metric; children left out have none.
        """
        return {}

    def summary(self) -> str:
        """A short description of the form, for the repr and the report."""
        return ""

    def check_sizes(self) -> None:
        """Refuse fields that do not fit each other; called on what a file holds.

        A subclass overrides it where sizes, choices or indices can be wrong, and reads shapes only.

        Raises:
            ValueError: naming the field, what it is and what was expected.
        """

    # --- what every array offers -----------------------------------------------------------------

    def materialize(self) -> jax.Array:
        """The dense array, in its layout; takes the dense array's memory."""
        return self.matrix_axes.from_matrix(self.matrix(), self.dims)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(m, n): the sizes of the plain matrix, inputs first."""
        if self.dims is None:
            m, n = jax.eval_shape(type(self).matrix, self).shape[-2:]
            return m, n
        return self.matrix_axes.matrix_shape(self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense array's shape."""
        if self.dims is None:
            return jax.eval_shape(type(self).materialize, self).shape
        return (*self.stack_shape, *self.dims)

    @property
    def dtype(self) -> np.dtype:
        """The dense array's dtype: that of the children."""
        return jnp.result_type(*(child.dtype for child in self._children()))

    @property
    def ndim(self) -> int:
        """The number of the dense array's dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of entries of the dense array (not of the stored numbers)."""
        return math.prod(self.shape)

    @property
    def static_numbers(self) -> float:
        """Static numbers needed to run: an index counts 1, a bit 1/32; seeds are free."""
        values = (getattr(self, name) for name in self.static_names)
        return sum(value.words for value in values if isinstance(value, StaticArray))

    @property
    def stored_numbers(self) -> int:
        """Every number needed to run: those of the children and the static ones."""
        return math.ceil(sum(map(stored_numbers, self._children())) + self.static_numbers)

    @property
    def looks_up_rows(self) -> bool:
        """Whether `take` is a look-up in one plain matrix, rather than one in the dense array."""
        return self.matrix_axes.inputs == (-2,) and not self.stack_shape

    @property
    def T(self) -> CompactArray:
        """The transpose: the same numbers, read with inputs and outputs in exchanged positions.

        Raises:
            ValueError: for a stacked array, whose leading dimensions cannot go last; use `.mT`.
        """
        if self.stack_shape:
            raise ValueError(
                f"{self!r} is stacked: .T would move its leading dimensions last; use .mT"
            )
        count = len(self.matrix_axes.inputs) + len(self.matrix_axes.outputs)
        return self._reversed(count)

    @property
    def mT(self) -> CompactArray:
        """The transpose of the last two dimensions, leading dimensions kept."""
        self.require_matrix("mT")
        return self._reversed(2)

    def __rmatmul__(self, x: ArrayLike) -> jax.Array:
        self.require_matrix("x @ A")
        if not is_array(x):
            raise TypeError(f"x @ A takes an array of numbers, got {shown(x)} for {self!r}")
        x = jnp.asarray(x)
        rows = self.shape[-2]
        if x.ndim == 0 or x.shape[-1] != rows:
            raise ValueError(
                f"x @ A contracts x's last dimension with {rows}, "
                f"got x of shape {x.shape} and {self!r}"
            )
        multiply = self.multiply if self.matrix_axes.inputs == (-2,) else self.multiply_transposed
        return multiply(x) if x.ndim > 1 else multiply(x[None])[..., 0, :]

    def __matmul__(self, x: ArrayLike) -> jax.Array:
        self.require_matrix("A @ x")
        x = jnp.asarray(x)
        if x.ndim == 1:
            return x @ self.mT
        return jnp.matrix_transpose(jnp.matrix_transpose(x) @ self.mT)

    def __repr__(self) -> str:
        try:
            count, size = self.stored_numbers, self.size
            shape, stored = f"{self.shape} {self.dtype}", f"{count} stored{_fraction(count, size)}"
            fields = [word for word in (shape, self.summary(), stored) if word]
        except Exception:  # JAX fills nodes with None, labels and specs; a repr must still print
            fields = [f"{name}={getattr(self, name)!r}" for name in self.child_names]
        return f"{type(self).__name__}({', '.join(fields)})"

    # --- for this package ------------------------------------------------------------------------

    def with_dense_children(self) -> Self:
        """The same array with its compact children materialised."""
        children = {name: getattr(self, name) for name in self.child_names}
        nested = {
            name: child.materialize() for name, child in children.items() if is_compact(child)
        }
        return dataclasses.replace(self, **nested) if nested else self

    def require_matrix(self, operation: str) -> None:
        """Refuse an operation on an array whose last two dimensions are not inputs and outputs.

        Raises:
            TypeError: naming the operation and `jc.matmul`, which contracts any layout.
        """
        if len(self.matrix_axes.inputs) != 1 or len(self.matrix_axes.outputs) != 1:
            raise TypeError(
                f"{operation} needs a matrix in the last two dimensions; "
                f"{self!r} has {self.matrix_axes}: "
                "use jc.matmul(x, A, matrix_axes=A.matrix_axes), which contracts the inputs"
            )

    def _children(self) -> list[jax.Array | CompactArray]:
        return [getattr(self, name) for name in self.child_names]

    def _reversed(self, count: int) -> CompactArray:
        dims = self.matrix_shape if self.dims is None else self.dims
        axes = self.matrix_axes.reversed(count)
        return dataclasses.replace(self, matrix_axes=axes, dims=dims[::-1])


def _fraction(count: int, size: int) -> str:
    return "" if not count or count >= size else f" = 1/{size / count:.3g}"


def is_compact(value: object) -> TypeGuard[CompactArray]:
    """Whether a tree's node is a compact array: the `is_leaf` of every walk over parameters.

    Args:
        value: any node of a pytree.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> dense = jnp.ones((2, 4))
        >>> jc.arrays.is_compact(dense), jc.arrays.is_compact(jc.hashed(1/2)(dense))
        (False, True)
    """
    return isinstance(value, CompactArray)


def materialize(params: PyTree) -> PyTree:
    """Every compact array of a tree as its dense array, innermost first; other leaves as they are.

    Args:
        params: any pytree.

    Returns:
        A pytree that any model accepts: `model.apply(jc.materialize(p), x)`.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> small = jc.hashed(keep=1/2)({"kernel": jnp.ones((2, 4)), "bias": jnp.zeros(4)})
        >>> jc.materialize(small)["kernel"].shape
        (2, 4)
    """
    return jax.tree.map(
        lambda leaf: leaf.materialize() if is_compact(leaf) else leaf, params, is_leaf=is_compact
    )


def stored_numbers(params: PyTree) -> int:
    """How many numbers a tree stores: entries of dense leaves, `stored_numbers` of compact arrays.

    Args:
        params: any pytree. A random key counts as its words; strings and functions as nothing.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.stored_numbers({"kernel": jnp.ones((2, 4)), "bias": jnp.zeros(4)})
        12
    """
    leaves = jax.tree.leaves(params, is_leaf=is_compact)
    return sum(leaf.stored_numbers if is_compact(leaf) else number_count(leaf) for leaf in leaves)
