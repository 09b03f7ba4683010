"""The first table: MNIST in 12,422 stored numbers, one column for each way to spend them.

A network with one hidden layer is trained from scratch in each form, on hard targets, with the same loop, schedule
and epochs; the width of the hidden layer is free, and everything stored is counted: biases and the last layer, too.
What a column may choose, its widths, its split of the numbers and one of three learning rates, was chosen
on the last 10,000 training images (`--validate`). The test set is looked at once, after training.

    python tests/benchmarks/first_table.py                    # the table, about 10 minutes on two cores
    python tests/benchmarks/first_table.py --validate --columns DCT --rates 1e-3 3e-3 1e-2

Finished cells are kept in the results file (`--out`), and only what is missing there is trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mnist
import numpy as np
import optax
from tqdm.auto import tqdm

import jaxcompress as jc
from jaxcompress.arrays.permutation import leaf_seed, permute

BUDGET = 12_422
"""Stored numbers: 1/64 of 784-1000-10."""

VALIDATION = 10_000
"""How many training images, the last ones, judge the choices."""

EPOCHS = 20
BATCH = 100


# --- what is not in the library: random edge removal, the control ---------------------------------------------------


@jc.compact_array
class EdgesArray(jc.CompactArray):
    """A matrix with few entries that are not zero, at places recomputed from a seed.

    Attributes:
        values: (edges,).
        seed: which places.
    """

    values: jax.Array
    seed: int = jc.static(default=0)

    def materialize(self) -> jax.Array:
        m, n = self.matrix_shape
        return jnp.zeros(m * n, self.values.dtype).at[self.places(m * n)].set(self.values, unique_indices=True).reshape(m, n)

    def places(self, size: int) -> jax.Array:
        return permute(jnp.arange(len(self.values), dtype=jnp.uint32), size, self.seed).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, repr=False)
class RandomEdges(jc.LeafTransform):
    """Remove all but a share of the edges, at random."""

    keep: float
    seed: int = 0
    axes: Any = None

    def fit(self, matrix: np.ndarray, numbers: int, metric: np.ndarray | None, name: str) -> EdgesArray:
        edges = EdgesArray(jnp.zeros(numbers, matrix.dtype), seed=leaf_seed(self.seed, name), dims=matrix.shape)
        return dataclasses.replace(edges, values=jnp.asarray(matrix.reshape(-1)[edges.places(matrix.size)]))


# --- the columns ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Column:
    """One way to spend the numbers.

    Attributes:
        hidden: the width of the hidden layer.
        transform: from the seed of a run to what makes its dense parameters compact.
        rate: the peak learning rate.
        note: the column in words, for the table.
    """

    hidden: int
    transform: Callable[[int], jc.Transform]
    rate: float
    note: str


FIRST, LAST = "first/kernel", "last/kernel"

COLUMNS: dict[str, Column] = {
}


# --- one run --------------------------------------------------------------------------------------------------------


def dense_params(key: jax.Array, hidden: int, inputs: int = 784, classes: int = 10) -> dict[str, dict[str, jax.Array]]:
    """He initialisation; biases are rows, so that a transform can take them for matrices."""
    first, last = jax.random.split(key)
    layer = lambda key, m, n: {"kernel": jax.random.normal(key, (m, n)) * (2 / m) ** 0.5, "bias": jnp.zeros((1, n))}
    return {"first": layer(first, inputs, hidden), "last": layer(last, hidden, classes)}


def logits(params: Any, pixels: jax.Array) -> jax.Array:
    """The network on bytes, centred and scaled by MNIST's mean and deviation."""
    x = pixels.astype(jnp.float32) / 255
    first, last = params["first"], params["last"]
    hidden = jax.nn.relu(x @ first["kernel"] + jc.materialize(first["bias"]))
    return hidden @ last["kernel"] + jc.materialize(last["bias"])
