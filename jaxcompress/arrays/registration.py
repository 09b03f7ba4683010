"""The decorator that makes a class a compact array, a frozen dataclass known to JAX and flax.

Its fields become children (differentiated, stored) or static structure; the two methods that a
class writes for the plain, unstacked matrix, `materialize` and `take`, are extended to nested
children, layouts and indices of any range.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import TypeVar, dataclass_transform

import jax
from flax import serialization
from jax import export
from jaxtyping import PyTree

from jaxcompress.arrays.base import CompactArray, check_rows
from jaxcompress.arrays.static import decode_static, encode_static, static_field

registered: dict[str, type[CompactArray]] = {}
"""Every compact array type by class name: the types that a checkpoint may refer to."""

ArrayType = TypeVar("ArrayType", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
def compact_array(cls: ArrayType) -> ArrayType:
    """Make a subclass of `CompactArray` a frozen dataclass known to JAX, `jax.export` and flax.

    Fields are children (float arrays or other compact arrays) unless declared with
    `jc.static_field()`. The class must write one method, `materialize`, and may write three more
    where it has a cheaper way than the dense matrix. All four are about the plain matrix (..., m,
    n), inputs first, where `...` are the leading dimensions that `vmap`, `scan` and stacking add to
    every child:

    - `materialize(self)`: the matrix, from dense children. The decorator expands nested children
      before it and applies the layout (`matrix_axes`, `dims`) after it; the plain matrix itself is
      `array.matrix()`.
    - `multiply(self, x)`: `x @ matrix` for x (..., rows, m); by default with the dense matrix.
    - `multiply_transposed(self, y)`: `y @ matrix.T` for y (..., rows, n); by default derived from
        `multiply`.
    - `take(self, rows)`: rows of the unstacked matrix (m, n), for indices within range; by default
        of the dense matrix.

    The operators `@`, `jc.matmul`, `jc.take` and a traced network `net(params, x)` use them.

    Args:
        cls: a subclass of `CompactArray` with annotated fields.

    Returns:
        The same class, registered.

    Raises:
        TypeError: for another class, or a field with the name of one of `CompactArray`'s
            attributes.

    Example:
        A block-diagonal matrix times a permutation times a block-diagonal matrix (Monarch, Dao et
        al. 2022, arXiv:2204.00595), of 2 m sqrt(m) numbers, with its own product and look-up:

        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> @jc.compact_array
        ... class MonarchArray(jc.CompactArray):
        ...     first: jax.Array   # (..., q, p, r): q blocks, inputs q p
        ...     second: jax.Array  # (..., r, q, s): r blocks, outputs r s
        ...     def materialize(self):
        ...         dense = jnp.einsum("...qpr,...rqs->...qprs", self.first, self.second)
        ...         q, p, r, s = dense.shape[-4:]
        ...         return dense.reshape(*dense.shape[:-4], q * p, r * s)
        ...     def multiply(self, x):
        ...         x = x.reshape(*x.shape[:-1], *self.first.shape[-3:-1])
        ...         x = jnp.einsum("...tqp,...qpr->...trq", x, self.first)
        ...         x = jnp.einsum("...trq,...rqs->...trs", x, self.second)
        ...         return x.reshape(*x.shape[:-2], -1)
        ...     def take(self, rows):
        ...         q, p = jnp.divmod(rows.ravel(), self.first.shape[-2])
        ...         taken = jnp.einsum("tr,rts->trs", self.first[q, p], self.second[:, q])
        ...         return taken.reshape(*rows.shape, -1)
        >>> kernel = MonarchArray(jnp.ones((2, 3, 2)), jnp.ones((2, 2, 3)))
        >>> kernel
        MonarchArray((6, 6) float32, 24 stored = 1/1.5)
        >>> dense, x = {"w": jnp.ones((6, 6))}, jnp.ones((1, 6))
        >>> net = jc.trace(lambda params, x: x @ params["w"], dense, x)
        >>> net({"w": kernel}, x)  # two einsums, never the dense matrix
        Array([[6., 6., 6., 6., 6., 6.]], dtype=float32)
        >>> net.explain({"w": kernel})[0].how
        'contracted'
    """
    bases = getattr(cls, "__mro__", ())
    if CompactArray not in bases:
        raise TypeError(
            f"@compact_array expects a subclass of CompactArray, got {cls!r}: "
            "derive it from jc.CompactArray"
        )
    _check_field_names(cls)
    _extend_methods(cls)
    cls = dataclasses.dataclass(frozen=True, repr=False, eq=False)(cls)
    fields = dataclasses.fields(cls)
    cls.child_names = tuple(field.name for field in fields if not field.metadata.get("static"))
    cls.static_names = tuple(field.name for field in fields if field.metadata.get("static"))
    registered[cls.__name__] = cls
    _register_pytree(cls)
    _register_state_dict(cls)
    return cls


def _check_field_names(cls: type[CompactArray]) -> None:
    names = inspect.get_annotations(cls)
    taken = [name for name in names if hasattr(CompactArray, name) and name != "linear_in"]
    if taken:
        raise TypeError(
            f"{cls.__name__}: the fields {', '.join(taken)} have names of CompactArray's own "
            "attributes: rename them"
        )


def _extend_methods(cls: type[CompactArray]) -> None:
    """Extend `materialize` and `take` from the plain matrix to nesting, layouts and stacks."""
    if "materialize" in cls.__dict__:
        plain = cls.__dict__["materialize"]

        def matrix(self: CompactArray) -> jax.Array:
            return plain(self.with_dense_children())

        # jitted, so that an eager call is one compiled program rather than one for each operation
        cls.matrix = jax.jit(matrix)
        # the inherited `materialize` then applies the layout to `matrix`
        del cls.materialize
    if "take" in cls.__dict__:
        cls.take = check_rows(cls.__dict__["take"])


def _register_pytree(cls: type[CompactArray]) -> None:
    def flatten(node: CompactArray) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
        children = tuple(getattr(node, name) for name in cls.child_names)
        return children, tuple(getattr(node, name) for name in cls.static_names)

    def flatten_with_keys(node: CompactArray) -> tuple[PyTree, tuple[PyTree, ...]]:
        children, statics = flatten(node)
        keys = map(jax.tree_util.GetAttrKey, cls.child_names)
        return tuple(zip(keys, children, strict=True)), statics

    def unflatten(statics: PyTree, children: PyTree) -> CompactArray:
        # JAX unflattens with None, integers, labels and batched children too: no checks here
        names = (*cls.child_names, *cls.static_names)
        return cls(**dict(zip(names, (*children, *statics), strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    export.register_pytree_node_serialization(
        cls,
        serialized_name=f"{cls.__module__}.{cls.__qualname__}",
        serialize_auxdata=lambda statics: json.dumps(
            [encode_static(value) for value in statics]
        ).encode(),
        deserialize_auxdata=lambda data: tuple(decode_static(value) for value in json.loads(data)),
    )


def _register_state_dict(cls: type[CompactArray]) -> None:
    """Register the children with flax's serialization."""

    def to_state(node: CompactArray) -> dict[str, PyTree]:
        return {name: serialization.to_state_dict(getattr(node, name)) for name in cls.child_names}

    def from_state(node: CompactArray, state: dict[str, PyTree]) -> CompactArray:
        children = {
            name: serialization.from_state_dict(getattr(node, name), state[name], name=name)
            for name in cls.child_names
        }
        return dataclasses.replace(node, **children)

    serialization.register_serialization_state(cls, to_state, from_state, override=True)
