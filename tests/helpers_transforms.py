"""The table of transforms: every constructor of the library, with each of its settings."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

import jaxcompress as jc
from jaxcompress.transforms.resolution import thin

PARAMS = {"up": jnp.ones((3, 8)), "bias": jnp.zeros(8), "down": jnp.ones((8, 2))}
X = jax.random.normal(jax.random.key(0), (6, 3))


def apply(params, x):
    return jax.nn.relu(x @ params["up"] + params["bias"]) @ params["down"]


def wider(params, x):
    """Another function of the same parameters, whose axis has two consumers."""
    h = jax.nn.relu(x @ params["up"] + params["bias"])
    return h @ params["down"] + jnp.tanh(h) @ params["down"]


NORMED_PARAMS = {name: jnp.ones(8) for name in ("mean", "var", "scale", "shift")} | PARAMS


def normed(params, x):
    h = (x @ params["up"] - params["mean"]) / jnp.sqrt(params["var"] + 1e-5)
    return jax.nn.relu(h * params["scale"] + params["shift"]) @ params["down"]


NORMED = jc.trace(normed, {key: v for key, v in NORMED_PARAMS.items() if key != "bias"}, X)
NET, OTHER = jc.trace(apply, PARAMS, X), jc.trace(wider, PARAMS, X)
HALF, THIRD = jc.hashed(keep=1 / 2), jc.hashed(keep=1 / 3)
TOTAL = jc.budget(3 / 4)
ROLES = jc.MatrixAxes(1, 0)


def cosines(grid):
    """Atoms as a function that a name imports."""
    return jnp.cos(grid * jnp.arange(3.0))


def is_kernel(name, leaf):
    """A selector that a name imports."""
    return jnp.ndim(leaf) == 2


def first(plans):
    """A metric that a name imports."""
    return {name: -index for index, name in enumerate(plans)}


LEAF = {
    "hashed": [
        lambda: jc.hashed(keep=1 / 3),
        lambda: jc.hashed(keep=0.33333333),
        lambda: jc.hashed(keep=1 / 3, seed=1),
        lambda: jc.hashed(keep=1 / 3, block=2),
        lambda: jc.hashed(keep=1 / 3, layout="circular"),
        lambda: jc.hashed(keep=1 / 3, seed_by="shape"),
        lambda: jc.hashed(keep=1 / 3, matrix_axes=ROLES),
        lambda: jc.hashed(keep=1 / 3, matrix_axes={"up": ROLES, "call": jc.MatrixAxes(0, 1)}),
        lambda: jc.hashed(keep={"up": 1 / 2, "**": 1 / 4}),
        lambda: jc.hashed(keep={"**": 1 / 4, "up": 1 / 2}),
        lambda: jc.hashed(keep={"call": 1 / 2}),
        lambda: jc.hashed(jc.budget(1 / 2)),
        lambda: jc.hashed(jc.budget(1 / 3)),
        lambda: jc.hashed(jc.budget(1 / 2, of="channels")),
    ],
    "clustered": [
        lambda: jc.clustered(keep=1 / 2),
        lambda: jc.clustered(keep=1 / 2, block=3),
        lambda: jc.clustered(keep=1 / 2, most=9),
        lambda: jc.clustered(keep=1 / 2, seed=np.int64(2)),
    ],
    "factored": [
        lambda: jc.factored(keep=1.0),
        lambda: jc.factored(keep=1 / 2),
        lambda: jc.factored(energy=1.0),
        lambda: jc.factored(energy=0.9),
    ],
    "spline": [lambda: jc.spline(keep=1 / 2), lambda: jc.spline(keep=1 / 2, basis="cubic")],
    "toeplitz": [
        lambda: jc.toeplitz((2, 3), grid=(4, 3)),
        lambda: jc.toeplitz((2, 2), grid=(4, 3)),
        lambda: jc.toeplitz((2, 3), grid=(4, 3), stride=2),
        lambda: jc.toeplitz((2, 3), grid=(4, 3), pad=(1, 0)),
    ],
    "vocabulary": [
        lambda: jc.vocabulary(keep=1 / 2),
        lambda: jc.vocabulary(keep=1 / 2, atoms="learned"),
        lambda: jc.vocabulary(keep=1 / 2, atoms=np.eye(8)),
        lambda: jc.vocabulary(keep=1 / 2, atoms=np.eye(8, 4)),
        lambda: jc.vocabulary(keep=1 / 2, atoms=np.eye(8, dtype=np.float32)),
        lambda: jc.vocabulary(keep=1 / 2, atoms=np.eye(8) * np.pi),
        lambda: jc.vocabulary(keep=1 / 2, grid=(4, 2)),
        lambda: jc.vocabulary(keep=1 / 2, grid=(4,), channels=2),
        lambda: jc.vocabulary(keep=1 / 2, lookups=2),
        lambda: jc.vocabulary(keep=1 / 2, seed=3),
    ],
}
AXES = {
    "rotate_and_prune": [
        lambda: jc.rotate_and_prune(NET, keep=1 / 2),
        lambda: jc.rotate_and_prune(NET, keep=1.0),
        lambda: jc.rotate_and_prune(NET, keep={"up*": 1 / 2}),
        lambda: jc.rotate_and_prune(NET, TOTAL),
        lambda: jc.rotate_and_prune(NET, energy=0.9),
        lambda: jc.rotate_and_prune(NET, energy=1.0),
        lambda: jc.rotate_and_prune(NET, 1 / 2, axes="up"),
        lambda: jc.rotate_and_prune(NET, 1 / 2, method="select"),
        lambda: jc.rotate_and_prune(NET, 1 / 2, method="random", seed=4),
        lambda: jc.rotate_and_prune(NET, 1 / 2, multiple=2),
        lambda: jc.rotate_and_prune(NET, 1 / 2, multiple={"up:1": 2}),
    ],
    "fold_batchnorm": [lambda: jc.fold_batchnorm(NORMED)],
    "prune_batchnorm": [
        lambda: jc.prune_batchnorm(NORMED, 1 / 2),
        lambda: jc.prune_batchnorm(NORMED, TOTAL),
        lambda: jc.prune_batchnorm(NORMED, {"up:1": 1 / 2}),
        lambda: jc.prune_batchnorm(NORMED, tolerance=0.1),
        lambda: jc.prune_batchnorm(NORMED, 1 / 2, method="slimming"),
        lambda: jc.prune_batchnorm(NORMED, 1 / 2, rescale=False),
    ],
    "merge": [lambda: jc.merge(NET), lambda: jc.merge(NET, 0.9), lambda: jc.merge(NET, axes="up")],
    "merge_linear": [lambda: jc.merge_linear(NET), lambda: jc.merge_linear(NET, axes="up")],
    "seriate": [lambda: jc.seriate(NET), lambda: jc.seriate(NET, "leaves", axes="up")],
    "coarsen": [
        lambda: jc.coarsen(NET, 2),
        lambda: jc.coarsen(NET, Fraction(3, 2)),
        lambda: jc.coarsen(NET, {"up:1": 2}),
        lambda: jc.coarsen(NET, {"up:1": Fraction(4, 3)}, basis="cubic", axes="up"),
    ],
    "refine": [
        lambda: jc.refine(NET, 2),
        lambda: jc.refine(NET, 2, split=0.1),
        lambda: jc.refine(NET, 2, split=0.1, seed=5),
    ],
    "thin": [lambda: thin(NET, 2), lambda: thin(NET, 2, axes="up")],
}
DATA = {
    "linearize": [
        lambda: jc.linearize(NET, [X], 1 / 2),
        lambda: jc.linearize(NET, [X], {"up:1": 1 / 2}),
        lambda: jc.linearize(NET, [X], TOTAL),
        lambda: jc.linearize(NET, [X], tolerance=0.0),
        lambda: jc.linearize(NET, [X], tolerance=0.1, axes="up"),
    ],
    "recalibrate": [
        lambda: jc.recalibrate(NET, [X]),
        lambda: jc.recalibrate(NET, [X], progress=False),
        lambda: jc.recalibrate(NORMED, [X], norms=True),
    ],
    "reconstruct": [
        lambda: jc.reconstruct(NET, [X]),
        lambda: jc.reconstruct(NET, [X], progress=False),
    ],
}
COMBINED = {
    "identity": [jc.identity],
    "chain": [
        lambda: jc.chain(HALF, THIRD),
        lambda: jc.chain(THIRD, HALF),
        lambda: jc.chain(jc.rotate_and_prune(NET, 1 / 2), jc.recalibrate(NET, [X]), HALF),
    ],
    "at": [
        lambda: jc.at("**/kernel", HALF),
        lambda: jc.at("**/kernel", THIRD),
        lambda: jc.at(("up", "down"), HALF),
        lambda: jc.at(("down", "up"), HALF),
        lambda: jc.at(jc.matrices, HALF),
        lambda: jc.at("up", jc.chain(jc.vocabulary(1 / 2), jc.at("codes", HALF))),
        lambda: jc.at("up", jc.identity()),
    ],
    "partition": [
        lambda: jc.partition({"a": HALF, "b": THIRD}, {"up": "a", "down": "b"}),
        lambda: jc.partition({"a": HALF, "b": THIRD}, {"up": "b", "down": "a"}),
        lambda: jc.partition({"a": THIRD, "b": HALF}, {"up": "a", "down": "b"}),
        lambda: jc.partition({"a": HALF}, "a"),
        lambda: jc.partition({"a": HALF}, ["a", "a"]),
        lambda: jc.partition({"a": HALF}, ("a", "a")),
        lambda: jc.partition({"a": HALF}, {"call": "a", "up": ("a", ["a"])}),
    ],
    "select_rows": [
        lambda: jc.select_rows("up", [0, 2]),
        lambda: jc.select_rows(("up", "down"), [0, 2]),
        lambda: jc.select_rows("up", np.arange(100)),
        lambda: jc.select_rows("up", np.arange(100) + 1),
    ],
    "together": [
        lambda: jc.together(jc.at("down", jc.factored(TOTAL))),
        lambda: jc.together(
            jc.rotate_and_prune(NET, TOTAL, axes="up"), jc.at("down", jc.factored(TOTAL))
        ),
        lambda: jc.together(jc.at("down", jc.factored(jc.budget(1 / 2)))),
    ],
}
PLAIN = LEAF | AXES | DATA | COMBINED
"""Makers by constructor; no two makers give equal transforms."""

ELSEWHERE = {
    "another network": lambda: jc.rotate_and_prune(OTHER, keep=1 / 2),
    "other data": lambda: jc.recalibrate(NET, [X + 1]),
    "more data": lambda: jc.recalibrate(NET, [X, X]),
    "masked data": lambda: jc.recalibrate(NET, jc.Calibration([X], sample=0.5)),
    "data of another network": lambda: jc.recalibrate(OTHER, [X]),
    "data in a chain": lambda: jc.chain(HALF, jc.reconstruct(NET, [X + 1])),
}
"""Transforms that differ from those above by what a recipe does not hold."""

FUNCTIONS = {
    "vocabulary.atoms": lambda: jc.vocabulary(1 / 2, atoms=cosines),
    "at.pattern": lambda: jc.at(is_kernel, HALF),
    "at.transform.hashed.keep": lambda: jc.at("up", jc.hashed(jc.budget(1 / 2, metric=first))),
    "rotate_and_prune.keep": lambda: jc.rotate_and_prune(NET, jc.budget(1 / 2, metric=first)),
    "partition.labels": lambda: jc.partition({"a": HALF}, first),
}
"""Transforms with a function inside, by the setting that it is."""

ALL = {
    **{f"{name} {i}": make for name, makers in PLAIN.items() for i, make in enumerate(makers)},
    **ELSEWHERE,
    **FUNCTIONS,
}

SAVED = {name: make for name, make in ALL.items() if name.rsplit(" ", 1)[0] in PLAIN}
"""Transforms that a file can hold."""
