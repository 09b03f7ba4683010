"""A compact array is a pytree node that holds fewer numbers than the dense array it means.

`CompactArray` turns one method, `materialize`, into everything a matrix answers: products from both sides, a
transpose, row look-ups, a shape, a count. The formula is `A = materialize(children)`; it costs what the
subclass stores, and `x @ A` costs a dense product until the subclass gives a cheaper `_multiply`.

Source: the unwrap-before-use pattern of paramax and lineax's small operator protocol, carried to plain pytrees.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jax import export

from jaxcompress.arrays.layout import MATRIX, MatrixAxes, StaticArray


def static_field(*, default: Any = dataclasses.MISSING, kw_only: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is part of the structure (a size, a seed), not of the stored numbers."""
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"static": True})


registered: dict[str, type[CompactArray]] = {}
"""Every compact array type by class name: what a checkpoint may name."""

Class = TypeVar("Class", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
def compact_array(cls: Class) -> Class:
    """Make a subclass of `CompactArray` a frozen dataclass that JAX, `jax.export` and flax know.

    Fields are children (float arrays or other compact arrays) unless declared with `jc.static_field()`. The class
    writes one method, `materialize`, for the plain matrix `(..., m, n)` of dense children, where `...` are the
    leading dimensions that `vmap`, `scan` and stacking add to every child. The decorator expands nested
    children before it and applies the layout (`matrix_axes`, `dims`) after it.

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
    if not issubclass(cls, CompactArray):
        raise TypeError(
            f"@compact_array expects a subclass of CompactArray, got {cls.__name__}: derive it from jc.CompactArray"
        )
    if "materialize" in cls.__dict__:
        dense_matrix = cls.__dict__["materialize"]
        # jitted, so that an eager call is one compiled program rather than one for each operation
        cls._matrix = jax.jit(lambda self: dense_matrix(self._with_dense_children()))
        del cls.materialize
    cls = dataclasses.dataclass(frozen=True, repr=False, eq=False)(cls)
    fields = dataclasses.fields(cls)
    cls._children = tuple(f.name for f in fields if not f.metadata.get("static"))
    cls._statics = tuple(f.name for f in fields if f.metadata.get("static"))
    registered[cls.__name__] = cls

    def flatten(node):
        return tuple(getattr(node, name) for name in cls._children), tuple(
            getattr(node, name) for name in cls._statics
        )

    def flatten_with_keys(node):
        children, statics = flatten(node)
        return tuple(
            zip(map(jax.tree_util.GetAttrKey, cls._children), children, strict=True)
        ), statics

    def unflatten(statics, children):
        # JAX unflattens with None, integers, labels and batched children too: nothing is checked here.
        return cls(
            **dict(zip(cls._children, children, strict=True)),
            **dict(zip(cls._statics, statics, strict=True)),
        )

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    export.register_pytree_node_serialization(
        cls,
        serialized_name=f"{cls.__module__}.{cls.__qualname__}",
        serialize_auxdata=lambda statics: json.dumps(
            [encode_static(value) for value in statics]
        ).encode(),
        deserialize_auxdata=lambda data: tuple(decode_static(value) for value in json.loads(data)),
    )
    serialization.register_serialization_state(
        cls,
        lambda node: {
            name: serialization.to_state_dict(getattr(node, name)) for name in cls._children
        },
        lambda node, state: dataclasses.replace(
            node,
            **{
                name: serialization.from_state_dict(getattr(node, name), state[name], name=name)
                for name in cls._children
            },
        ),
        override=True,
    )
    return cls


def encode_static(value: Any) -> Any:
    """A static field as JSON; functions have no JSON and raise."""
    if isinstance(value, MatrixAxes):
        return {"inputs": value.inputs, "outputs": value.outputs}
    if isinstance(value, StaticArray) and value.array.dtype == bool:
        return {"bits": np.packbits(value.array).tobytes().hex(), "size": value.array.size}
    if isinstance(value, StaticArray):
        content = base64.b64encode(
            value.array.astype(value.array.dtype.newbyteorder("<")).tobytes()
        ).decode()
        return {
            "indices": content,
            "dtype": value.array.dtype.name,
            "shape": list(value.array.shape),
        }
    if isinstance(value, tuple):
        return {"tuple": [encode_static(item) for item in value]}
    if callable(value):
        raise TypeError(f"{value!r} is a function: it can be neither saved nor exported by value")
    return value


def decode_static(value: Any) -> Any:
    """The inverse of `encode_static`."""
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(decode_static(item) for item in value["tuple"])
    if "bits" in value:
        bits = np.unpackbits(
            np.frombuffer(bytes.fromhex(value["bits"]), np.uint8), count=value["size"]
        )
        return StaticArray(bits.astype(bool))
    if "indices" in value:
        dtype = np.dtype(value["dtype"]).newbyteorder("<")
        return StaticArray(
            np.frombuffer(base64.b64decode(value["indices"]), dtype).reshape(value["shape"])
        )
    return MatrixAxes(tuple(value["inputs"]), tuple(value["outputs"]))


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
class _Fields:
    """Tells type checkers that subclasses are dataclasses."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class CompactArray(_Fields):
    """The base of every compact array: a matrix that is stored in fewer numbers.

    Attributes:
        matrix_axes: which trailing dimensions of the dense array are the matrix's inputs and outputs.
        dims: the sizes of those trailing dimensions; None where `materialize` alone tells them.

    The dtype and the leading dimensions come from the children, so `jax.tree.map` to another dtype, stacking,
    `vmap` and `scan` need no bookkeeping. `@` means what numpy means by it. jax.numpy functions do not accept
    a compact array; call `jc.materialize` first, or `jc.matmul`.
    """

    matrix_axes: MatrixAxes = static_field(default=MATRIX, kw_only=True)  # noqa: RUF009
    dims: tuple[int, ...] | None = static_field(default=None, kw_only=True)

    _children: ClassVar[tuple[str, ...]] = ()
    _statics: ClassVar[tuple[str, ...]] = ("matrix_axes", "dims")
    linear_in: ClassVar[str | None] = None
    """The child in which `materialize` is linear (the first, unless a class says otherwise)."""

    __array_ufunc__ = None  # numpy's operators defer to ours

    # --- what a subclass may give --------------------------------------------------------------------------

    def _matrix(self) -> jax.Array:
        raise NotImplementedError(
            f"{type(self).__name__} needs a method materialize(self) under @jc.compact_array"
        )

    def _multiply(self, x: jax.Array) -> jax.Array:
        """`x @ matrix` for x of shape (..., rows, m); leading dimensions broadcast as in `jnp.matmul`."""
        return jnp.matmul(x, self._matrix())

    def _take(self, rows: jax.Array) -> jax.Array:
        """Rows of the unstacked matrix, every index within range."""
        return self._matrix()[rows]

    def _leading(self) -> tuple[int, ...]:
        return jax.eval_shape(self.__class__._matrix, self).shape[:-2]

    def _extra_numbers(self) -> float:
        """Numbers needed to run that are not children: orders and look-ups."""
        return sum(
            value.words
            for name in self._statics
            if isinstance(value := getattr(self, name), StaticArray)
        )

    def _child_metrics(self, metric: np.ndarray | None) -> dict[str, np.ndarray | None]:
        """The metric in which each child should be fitted, given the metric of this matrix's inputs."""
        return {}

    def _summary(self) -> str:
        """A few words for the repr and the report."""
        return ""

    # --- what every array answers --------------------------------------------------------------------------

    def materialize(self) -> jax.Array:
        """The dense array, in its layout. Costs the dense array's memory."""
        return self.matrix_axes.from_matrix(self._matrix(), self.dims)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(m, n): the sizes of the plain matrix, inputs first."""
        if self.dims is None:
            m, n = jax.eval_shape(self.__class__._matrix, self).shape[-2:]
            return m, n
        return self.matrix_axes.matrix_shape(self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense array's shape."""
        if self.dims is None:
            return jax.eval_shape(self.__class__.materialize, self).shape
        return (*self._leading(), *self.dims)

    @property
    def dtype(self) -> np.dtype:
        """The dense array's dtype: that of the children."""
        return jnp.result_type(*(child.dtype for child in self._child_values()))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of entries of the dense array (not of what is stored)."""
        return math.prod(self.shape)

    @property
    def stored_numbers(self) -> int:
        """Every number needed to run: children, orders and look-ups (an index = 1, one bit = 1/32; seeds are free)."""
        extra = self._extra_numbers()
        return math.ceil(sum(stored_numbers(child) for child in self._child_values()) + extra)

    @property
    def T(self) -> CompactArray:
        """The transpose: the same numbers read with inputs and outputs in exchanged positions.

        Raises:
            ValueError: for a stacked array, whose leading dimensions cannot go last; use `.mT`.
        """
        if self._leading():
            raise ValueError(
                f"{self!r} is stacked: .T would move its leading dimensions last; use .mT"
            )
        count = len(self.matrix_axes.inputs) + len(self.matrix_axes.outputs)
        dims = self.matrix_shape if self.dims is None else self.dims
        return dataclasses.replace(
            self, matrix_axes=self.matrix_axes.reversed(count), dims=dims[::-1]
        )

    @property
    def mT(self) -> CompactArray:
        """The transpose of the last two dimensions, leading dimensions kept."""
        self._require_matrix("mT")
        dims = self.matrix_shape if self.dims is None else self.dims
        return dataclasses.replace(self, matrix_axes=self.matrix_axes.reversed(2), dims=dims[::-1])

    def __rmatmul__(self, x: Any) -> jax.Array:
        self._require_matrix("x @ A")
        x = jnp.asarray(x)
        rows = self.shape[-2]
        if x.ndim == 0 or x.shape[-1] != rows:
            raise ValueError(
                f"x @ A contracts x's last dimension with {rows}, got x of shape {x.shape} and {self!r}"
            )
        multiply = self._multiply if self.matrix_axes.inputs == (-2,) else self._multiply_transposed
        return multiply(x) if x.ndim > 1 else multiply(x[None])[..., 0, :]

    def __matmul__(self, x: Any) -> jax.Array:
        self._require_matrix("A @ x")
        x = jnp.asarray(x)
        return (
            x @ self.mT if x.ndim == 1 else jnp.matrix_transpose(jnp.matrix_transpose(x) @ self.mT)
        )

    def take(self, rows: Any) -> jax.Array:
        """Rows of the dense matrix: `jnp.take(A.materialize(), rows, axis=-2)`, without the dense matrix if possible.

        Args:
            rows: integers of any shape; negative ones count from the end, out-of-range ones give NaN.

        Returns:
            An array of shape (..., *rows.shape, n).
        """
        self._require_matrix("take")
        rows = jnp.asarray(rows)
        if not jnp.issubdtype(rows.dtype, jnp.integer):
            raise TypeError(
                f"take expects integer rows, got {rows.dtype}: cast them, for instance with .astype(int)"
            )
        if self._leading() or self.matrix_axes.inputs != (-2,):
            return jnp.take(self.materialize(), rows, axis=-2)
        count = self.shape[-2]
        rows = jnp.where(rows < 0, rows + count, rows)
        taken = self._take(jnp.clip(rows, 0, count - 1))
        return jnp.where(((rows >= 0) & (rows < count))[..., None], taken, jnp.nan)

    def __repr__(self) -> str:
        try:
            count, size = self.stored_numbers, self.size
            words = [
                f"{self.shape} {self.dtype}",
                self._summary(),
                f"{count} stored{_fraction(count, size)}",
            ]
            return f"{type(self).__name__}({', '.join(filter(None, words))})"
        except Exception:  # JAX fills nodes with None, labels and specs; a repr must still print
            return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._children)})"

    # --- inner machinery -----------------------------------------------------------------------------------

    def _child_values(self) -> list[Any]:
        return [getattr(self, name) for name in self._children]

    def _with_dense_children(self) -> Self:
        nested = {
            n: getattr(self, n).materialize()
            for n in self._children
            if isinstance(getattr(self, n), CompactArray)
        }
        return dataclasses.replace(self, **nested) if nested else self

    def _multiply_transposed(self, y: jax.Array) -> jax.Array:
        """`y @ matrix.T`: the transpose of `_multiply`, which JAX derives."""
        leading = jnp.broadcast_shapes(y.shape[:-2], self._leading())
        y = jnp.broadcast_to(y, (*leading, *y.shape[-2:]))
        x = jax.ShapeDtypeStruct((*y.shape[:-1], self.matrix_shape[0]), y.dtype)
        out = jax.eval_shape(self._multiply, x)
        return jax.linear_transpose(self._multiply, x)(y.astype(out.dtype))[0]

    def _require_matrix(self, operation: str) -> None:
        if len(self.matrix_axes.inputs) != 1 or len(self.matrix_axes.outputs) != 1:
            raise TypeError(
                f"{operation} needs a matrix in the last two dimensions; {self!r} has {self.matrix_axes}: "
                "use jc.matmul(x, A, matrix_axes=A.matrix_axes), which contracts the inputs"
            )


def _fraction(count: int, size: int) -> str:
    return "" if not count or count >= size else f" = 1/{size / count:.3g}"


def is_compact(value: Any) -> bool:
    """Whether a tree's node is a compact array: the `is_leaf` of every walk over parameters."""
    return isinstance(value, CompactArray)


def materialize(params: Any) -> Any:
    """Every compact array of a tree as the dense array it means, innermost first; other leaves as they are.

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


def stored_numbers(params: Any) -> int:
    """How many numbers a tree stores: entries of dense leaves, `stored_numbers` of compact arrays.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.stored_numbers({"kernel": jnp.ones((2, 4)), "bias": jnp.zeros(4)})
        12
    """
    leaves = jax.tree.leaves(params, is_leaf=is_compact)
    return sum(leaf.stored_numbers if is_compact(leaf) else int(np.size(leaf)) for leaf in leaves)


def matmul(x: Any, w: Any, matrix_axes: MatrixAxes | None = None) -> jax.Array:
    """Contract inputs with a dense or compact weight, without materialising a compact one.

    Args:
        x: (..., *inputs): its last dimensions are the weight's input dimensions.
        w: a dense array or a `CompactArray`.
        matrix_axes: which dimensions of `w` are inputs and outputs; by default `x @ w`, as numpy means it.

    Returns:
        (..., *outputs).

    Raises:
        ValueError: when the shapes do not fit, or `matrix_axes` differs from a compact array's own.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> kernel = jnp.ones((6, 2, 4))                       # attention: (model, heads, size)
        >>> matrix_axes = jc.MatrixAxes(inputs=0, outputs=(1, 2))
        >>> small = jc.factored(keep=1/2, matrix_axes=matrix_axes)(kernel)
        >>> jc.matmul(jnp.ones((5, 6)), small, matrix_axes).shape
        (5, 2, 4)
    """
    if matrix_axes is None:
        return x @ w
    x = jnp.asarray(x)
    matrix_axes = matrix_axes.resolve(w.ndim)
    dims = w.shape[w.ndim - matrix_axes.ndim :]
    if w.ndim != matrix_axes.ndim:
        raise ValueError(
            f"matmul with axes takes an unstacked weight, got shape {w.shape} for {matrix_axes}: use jax.vmap over the stack"
        )
    sizes = tuple(dims[axis] for axis in matrix_axes.inputs)
    count = len(sizes)
    if x.shape[x.ndim - count :] != sizes:
        raise ValueError(
            f"matmul contracts the last dimensions of x with {sizes}, got x of shape {x.shape}"
        )
    flat = x.reshape(*x.shape[: x.ndim - count], math.prod(sizes))
    if is_compact(w):
        if matrix_axes not in (w.matrix_axes, w.matrix_axes.swapped()):
            raise ValueError(
                f"matmul got axes {matrix_axes} for an array with {w.matrix_axes}: give its own axes or their exchange"
            )
        multiply = w._multiply if matrix_axes == w.matrix_axes else w._multiply_transposed
        out = multiply(flat[None] if flat.ndim == 1 else flat)
        out = out[0] if flat.ndim == 1 else out
    else:
        out = flat @ matrix_axes.to_matrix(w)
    return out.reshape(*x.shape[: x.ndim - count], *(dims[axis] for axis in matrix_axes.outputs))
