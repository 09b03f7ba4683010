"""The library's laws as checks for your own arrays and transforms.

`check_array` checks one compact array: honest count, meaning (every product equals that of the
dense matrix), gradient (the transpose of materialize), bfloat16, stacking under vmap and scan,
transparency (jit, eval_shape, donation), round trip (save, load, flax) and export.
`check_transform` checks a transform: purity, meaning (shapes and dtypes stay), honest count and
composition (identity is the unit of chain), and every compact array that it makes. Both raise an
AssertionError that names the law and the error, take a second or two, and are what the library's
own tests run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from jax import export as jax_export
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

from jaxcompress.arrays.base import CompactArray, is_compact, stored_numbers
from jaxcompress.arrays.device import to_device
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.arrays.products import matmul
from jaxcompress.checkpoint import load, save
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.combinators import chain, identity


def check_array(array: CompactArray, *, export: bool = True) -> None:
    """Check that a compact array keeps the laws.

    Args:
        array: an instance of the type, unstacked, of float32 children.
        export: also lower value and gradient for CPU, CUDA and TPU (the slowest check).

    Raises:
        AssertionError: naming the law.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.testing import check_array
        >>> check_array(jc.hashed(keep=1/4)(jnp.ones((6, 4))), export=False)
    """
    dense = array.materialize()
    _require(
        array.shape == dense.shape,
        f"shape: the array has {array.shape}, materialize gives {dense.shape}",
    )
    _require(
        array.dtype == dense.dtype,
        f"dtype: the array has {array.dtype}, materialize gives {dense.dtype}",
    )
    _require(
        array.ndim == array.matrix_axes.ndim,
        f"check_array takes an unstacked array, got shape {array.shape}",
    )
    _check_count(array)
    _check_meaning(array, dense)
    _check_gradient(array, dense)
    _check_dtype(array)
    _check_stack(array)
    _check_tree(array, dense)
    _check_round_trip(array)
    if export:
        _check_export(array)


def check_transform(transform: Transform, params: PyTree, moments: PyTree = None) -> None:
    """Check that a shape-keeping transform keeps the laws, on one tree.

    Args:
        transform: the transform.
        params: a tree of float32 leaves; the check that they do not change is included.
        moments: passed to the transform.

    Raises:
        AssertionError: naming the law.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.testing import check_transform
        >>> check_transform(jc.hashed(keep=1/4), {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)})
    """
    before = jax.tree.map(np.array, params)
    small = transform(params, moments)
    _require(_same_bits(before, params), "purity: the given parameters were changed")
    _require(
        _same_bits(small, transform(params, moments)), "purity: a second call gave other numbers"
    )
    _check_leaves(params, small)
    _require(
        stored_numbers(small) <= stored_numbers(params),
        "honest count: more numbers are stored than before",
    )
    for unit in (chain(transform, identity()), chain(identity(), transform)):
        _require(
            _same_bits(small, unit(params, moments)),
            "composition: identity is not the unit of chain",
        )
    _require(transform == transform and bool(repr(transform)), "a transform must print and compare")
    _check_refuses_jit(transform, params)


def _check_leaves(params: PyTree, small: PyTree) -> None:
    """The leaves keep their names, shapes and dtypes, and compact ones keep the arrays' laws."""
    old, new = dict(named_leaves(params)), dict(named_leaves(small))
    _require(
        old.keys() == new.keys(),
        f"transparency: the tree's leaves changed from {sorted(old)} to {sorted(new)}",
    )
    for name, leaf in new.items():
        if hasattr(leaf, "shape"):
            same = leaf.shape == old[name].shape and leaf.dtype == old[name].dtype
            _require(
                same,
                f"meaning: {name} changed from {old[name].shape} {old[name].dtype} "
                f"to {leaf.shape} {leaf.dtype}",
            )
        # stacked arrays follow from unstacked ones, which `check_array` stacks itself
        if is_compact(leaf) and leaf.ndim == leaf.matrix_axes.ndim:
            check_array(leaf, export=False)


def _check_refuses_jit(transform: Transform, params: PyTree) -> None:
    try:
        jax.jit(transform)(params)
    except TypeError:
        return
    raise AssertionError(
        "purity: a transform called under jax.jit must raise a TypeError, "
        "since sizes depend on data"
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _close(actual: ArrayLike, expected: ArrayLike, message: str, tol: float = 2e-5) -> None:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    _require(
        actual.shape == expected.shape,
        f"{message}: shape {actual.shape}, expected {expected.shape}",
    )
    scale = np.abs(expected).max(initial=0) + 1e-6
    gap = np.abs(actual - expected).max(initial=0) / scale
    _require(bool(gap <= tol), f"{message}: relative error {gap:.2g}, at most {tol:g} is allowed")


def _same_bits(a: PyTree, b: PyTree) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


def _host_noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _noise(shape: tuple[int, ...], seed: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
    # NumPy's, since JAX compiles its generator for every shape
    return to_device(_host_noise(shape, seed), dtype)


def _check_count(array: CompactArray) -> None:
    children = sum(stored_numbers(getattr(array, name)) for name in array.child_names)
    _require(
        array.stored_numbers >= children,
        f"honest count: {array.stored_numbers} numbers, and the children hold {children}",
    )
    leaves = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(array))
    _require(
        array.stored_numbers >= leaves,
        f"honest count: {array.stored_numbers} numbers, and the leaves hold {leaves}",
    )
    for leaf in jax.tree.leaves(array):
        _require(
            jnp.issubdtype(leaf.dtype, jnp.floating),
            f"children must be float arrays, got {leaf.dtype}: make it static",
        )


# Each check below is one compiled program of all its products: compiled one by one, their
# operations take most of a check's time.


def _products(array: CompactArray, dense: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """By name, what the array's products give, and what those of the dense matrix do."""
    pairs = {}
    for axes in (array.matrix_axes, array.matrix_axes.swapped()):
        x = _noise((3, *(dense.shape[axis] for axis in axes.inputs)), 1)
        pairs[f"matmul(x, A) over {axes}"] = matmul(x, array, axes), matmul(x, dense, axes)
    if array.matrix_axes.ndim != 2:
        return pairs
    rows, columns = dense.shape
    for shape in ((rows,), (2, 3, rows)):
        x = _host_noise(shape, 2)
        pairs[f"x @ A for x of shape {shape}"] = jnp.asarray(x) @ array, x @ dense
        pairs[f"x @ A for a numpy x of shape {shape}"] = x @ array, x @ dense
    for shape in ((columns,), (columns, 3)):
        x = _noise(shape, 3)
        pairs[f"A @ x for x of shape {shape}"] = array @ x, dense @ x
    x = _noise((3, columns), 4)
    pairs["A.T"] = array.T.materialize(), dense.T
    pairs["x @ A.T"] = x @ array.T, x @ dense.T
    picked = np.array([[0, rows - 1], [-1, 0]])
    pairs["A.take(rows)"] = array.take(jnp.asarray(picked)), dense[picked]
    pairs["A.take of rows in a list"] = array.take(picked.tolist()), dense[picked]
    nothing = jnp.zeros((1, columns))
    pairs["A.take of a row out of range, which must be NaN,"] = (
        jnp.isnan(array.take(jnp.array([rows]))).astype(float),
        nothing + 1,
    )
    return pairs


def _check_meaning(array: CompactArray, dense: jax.Array) -> None:
    # outside jit the product meets concrete numbers
    x = _noise((3, array.matrix_shape[0]), 1)
    plain = np.asarray(array.matrix_axes.to_matrix(dense))
    _close(array.multiply(x), np.asarray(x) @ plain, "meaning: multiply outside jit")
    for name, (actual, expected) in jax.jit(_products)(array, dense).items():
        _close(actual, expected, f"meaning: {name}")


def _check_gradient(array: CompactArray, dense: jax.Array) -> None:
    x, g = _noise((3, array.matrix_shape[0]), 5), _noise((3, array.matrix_shape[1]), 6)
    multiply = array.__class__.multiply

    def gradient(product: Callable[..., jax.Array], array: CompactArray) -> CompactArray:
        return jax.grad(lambda a: jnp.sum(product(a, x) * g))(array)

    @jax.jit
    def gradients(array: CompactArray) -> tuple[CompactArray, dict[str, CompactArray]]:
        expected = jax.vjp(lambda a: a.matrix(), array)[1](x.T @ g)[0]
        under_remat = gradient(jax.checkpoint(multiply), array)
        return expected, {"grad": gradient(multiply, array), "grad under remat": under_remat}

    expected, computed = gradients(array)
    for name, actual in computed.items():
        for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            _close(one, other, f"gradient: {name} is not the transpose of materialize", 1e-4)
    optimizer = optax.adam(1e-3)
    state = jax.eval_shape(optimizer.init, cast(optax.Params, array))
    # the step count is a scalar, and no number of the array
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    stored = sum(leaf.size for leaf in jax.tree.leaves(array) if leaf.ndim)
    _require(
        numbers == 2 * stored,  # two moments of each number
        f"transparency: adam keeps {numbers} numbers for {stored} stored ones",
    )


def _check_dtype(array: CompactArray) -> None:
    half = jax.eval_shape(lambda a: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), a), array)
    if not jax.tree.leaves(half):
        return
    _require(
        half.dtype == jnp.bfloat16, f"bfloat16: a tree of bfloat16 children has dtype {half.dtype}"
    )
    materialized = jax.eval_shape(lambda a: a.materialize(), half)
    _require(
        materialized.dtype == jnp.bfloat16,
        "bfloat16: materialize leaves the children's dtype",
    )
    x = _noise((3, array.matrix_shape[0]), 7)
    # strict promotion raises where an operation mixes in a wider dtype
    with jax.numpy_dtype_promotion("strict"):
        product = jax.eval_shape(lambda a, x: a.multiply(x), half, x.astype(jnp.bfloat16))
        _require(product.dtype == jnp.bfloat16, "bfloat16: x @ A leaves the operands' dtype")
        jax.eval_shape(lambda a, x: (a.multiply(x), a.materialize()), array, x)


def _check_stack(array: CompactArray) -> None:
    if not jax.tree.leaves(array):
        return
    layers = [  # unequal, so that a mixed-up order shows
        array,
        jax.tree.map(lambda leaf: 2 * leaf, array),
        jax.tree.map(lambda leaf: leaf - 1, array),
    ]
    stack = jax.tree.map(
        lambda *leaves: to_device(np.stack(leaves), jnp.result_type(*leaves)), *layers
    )
    dense = jax.jit(lambda layers: jnp.stack([layer.materialize() for layer in layers]))(layers)
    _require(
        stack.shape == dense.shape,
        f"stack: shape {stack.shape}, expected {dense.shape}: write materialize with leading '...'",
    )
    _require(
        stack.stored_numbers >= 3 * sum(leaf.size for leaf in jax.tree.leaves(array)),
        "stack: numbers are not counted",
    )
    for name, (actual, expected) in jax.jit(_stacked_products)(array, stack, dense).items():
        _close(actual, expected, f"stack: {name}")


def _stacked_products(
    array: CompactArray, stack: CompactArray, dense: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The product of three stacked layers, under every way to map over them, and the dense one."""
    x = _noise((3, 4, array.matrix_shape[0]), 8)
    plain = stack.matrix_axes.to_matrix(dense)

    def product(a: CompactArray, x: jax.Array) -> jax.Array:
        return a.multiply(x)

    def step(carry: None, layer: CompactArray) -> tuple[None, jax.Array]:
        return carry, product(layer, x[0])

    axes = jax.tree.map(lambda _: 0, array)
    shared = x[0] @ plain
    by_tree = jax.vmap(product, in_axes=(axes, None))(stack, x[0])
    return {
        "materialize of three layers; write it with leading '...' dimensions": (
            stack.materialize(),
            dense,
        ),
        "x @ A of three layers": (product(stack, x), x @ plain),
        "under vmap": (jax.vmap(product)(stack, x), x @ plain),
        "under vmap with in_axes": (jax.vmap(product, in_axes=(0, None))(stack, x[0]), shared),
        "under scan": (jax.lax.scan(step, None, stack)[1], shared),
        "under vmap with a tree of in_axes": (by_tree, shared),
    }


def _check_tree(array: CompactArray, dense: jax.Array) -> None:
    leaves, treedef = jax.tree.flatten(array)
    # JAX unflattens with None, integers, labels and objects of its own: a repr must still print
    for filler in (None, 0, "label", object()):
        repr(jax.tree.unflatten(treedef, [filler] * len(leaves)))
    _require(
        len(repr(array)) < 200, f"the repr is {len(repr(array))} characters long; keep it short"
    )
    passed, materialized = jax.jit(lambda a: (a, a.materialize()))(array)
    _require(passed.shape == dense.shape, "transparency: the array does not pass jit")
    _close(materialized, dense, "transparency: materialize under jit")
    shaped = jax.eval_shape(lambda a: a, array)
    _require(
        shaped.shape == dense.shape and shaped.dtype == dense.dtype,
        "transparency: eval_shape loses shape or dtype",
    )
    if leaves:
        add = jax.jit(lambda a: jax.tree.map(lambda leaf: leaf + 1, a), donate_argnums=0)
        moved = add(jax.tree.map(jnp.array, array))
        _require(
            jax.tree.structure(moved) == treedef, "transparency: donation changes the structure"
        )


def _check_round_trip(array: CompactArray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "array.safetensors")
        save(path, {"a": array})
        _require(
            _same_bits(load(path, like={"a": array}), {"a": array}),
            "round trip: save then load gives other numbers",
        )
    state = serialization.to_bytes(array)
    _require(
        _same_bits(serialization.from_bytes(array, state), array),
        "round trip: flax's to_bytes gives other numbers",
    )


def _check_export(array: CompactArray) -> None:
    x = jax.ShapeDtypeStruct((3, array.matrix_shape[0]), array.dtype)
    program = jax.jit(jax.value_and_grad(lambda a, x: jnp.sum(a.multiply(x) ** 2)))
    exported = jax_export.export(program, platforms=("cpu", "cuda", "tpu"))(array, x)
    numbers = _noise(x.shape, 9, array.dtype)
    _close(
        exported.call(array, numbers)[0],
        program(array, numbers)[0],
        "export: another result after jax.export",
        1e-4,
    )
