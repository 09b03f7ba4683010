"""A table of wrong calls of everything public, and the sentence that each of them must give.

A wrong call is refused on the host before any work, by an error of this package (never one from
inside JAX or numpy) that names the argument or the leaf, what was expected, and what came.
"""

import dataclasses
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import helpers_calls as right
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_calls import CALLS, KERNEL, PARAMS, W, X, Y, normal

import jaxcompress as jc
from jaxcompress.training.state import initial_state

FIT = "traced|hidden|elsewhere|no array|lack"
"""Words of which every sentence on parameters that do not fit a network has one."""
NAN, INF = float("nan"), float("inf")


@dataclasses.dataclass(frozen=True)
class Made:
    """A wrong value that is made when it is needed."""

    make: Callable


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Wrong values of one argument, or of several in a dictionary, and what must be said of them.

    Attributes:
        argument: its name; "" where the values are dictionaries of arguments.
        values: each is one wrong call.
        sentence: a regular expression.
        error: the type of the error.
    """

    argument: str
    values: Sequence[Any]
    sentence: str
    error: type[Exception] = ValueError

    def calls(self):
        for value in self.values:
            value = value.make() if isinstance(value, Made) else value
            yield {self.argument: value} if self.argument else value


SHARES = (0, -0.5, 1.5, NAN, INF, "half", True, [0.5], 1j, np.ones(2), np.bool_(True))
COUNTS = (0, -3, 2.5, NAN, "3", True, [2, [3]], 1j)
NOT_NEGATIVE = (-1, 2.5, NAN, "3", True, 1j)
SEEDS = (-1, 0.5, NAN, "0", True, None, 2**32, (1, 2))
NUMBERS = (NAN, INF, "1", True, None, 1j, [1.0])
NAMES = ("nonsense", "", None, 3, True)
NOT_FUNCTIONS = (None, 3, "name", X)
NOT_NETWORKS = (None, PARAMS, "net", right.apply)
NOT_TRANSFORMS = (None, 0.5, "hashed", jc.hashed, {"a": jc.hashed(1 / 2)})
NOT_OPTIMIZERS = (None, 1e-3, "adam", optax.adam)
NOT_KEYS = (None, 0, 0.5, "0", X, Made(lambda: jax.random.split(jax.random.key(0), 2)))
UNMATCHED = ("nothing/*", "kernle", "**/Dense_0", "up:7")


def changed(tree, **leaves):
    return {**tree, **leaves}


def without(tree, name):
    return {key: leaf for key, leaf in tree.items() if key != name}


def symmetric(m):
    root = normal(m, m)
    return root @ root.T


def of_kernel(metric):
    return {"kernel": metric, "bias": None}


NOT_PARAMS = (
    None,
    3,
    "params",
    without(PARAMS, "up"),
    changed(PARAMS, more=W),
    changed(PARAMS, up=normal(3, 9)),
    changed(PARAMS, up=normal(4, 8)),
    changed(PARAMS, up=normal(3, 8, 1)),
    changed(PARAMS, up=None),
    changed(PARAMS, up="up"),
    Made(right.wider),
)
"""Trees that do not fit the network."""
NOT_FINITE = (changed(PARAMS, up=np.full((3, 8), NAN)), changed(PARAMS, up=np.full((3, 8), INF)))
NOT_METRICS = (
    of_kernel(np.full((8, 8), NAN)),
    of_kernel(np.diag([INF] * 8)),
    of_kernel(-np.eye(8)),
    of_kernel(np.eye(8) - np.ones((8, 8))),
    of_kernel(np.triu(np.ones((8, 8)))),
    of_kernel(-np.ones(8)),
    of_kernel(np.full(8, NAN)),
    of_kernel(np.eye(6)),
    of_kernel(np.ones((2, 8, 8))),
    of_kernel(np.ones(7)),
    of_kernel(np.eye(8) * 1j),
    of_kernel(np.full((8, 8), "a")),
    of_kernel(3.0),
)
OLD_MOMENTS = [{"params": Made(right.small), "moments": Made(right.moments)}]
NOT_MOMENTS = (3, "moments", Made(right.net))
NOT_BATCHES = (
    [],
    [normal(20, 4)],
    [normal(3)],
    [normal(20, 3, 1)],
    [(X, Y)],
    [{"x": X}],
    [np.zeros((0, 3), np.float32)],
    [np.full((2, 3), NAN)],
    [np.full((2, 3), "a")],
    [None],
)
NOT_ITERABLE = (None, 3, True)
NOT_LABELS = (Y - 1, Y + 1, np.full(20, -100), np.full(20, 255))

MATRIX_AXES = Wrong(
    "matrix_axes", ("in", 0, (0, 1)), "matrix_axes must be a jc.MatrixAxes", TypeError
)
ROLES = [
    MATRIX_AXES,
    Wrong("matrix_axes", [{}], "matrix_axes is an empty mapping"),
    Wrong("matrix_axes", [{"kernle": jc.MatrixAxes(0, 1)}], "matrix_axes: the pattern"),
    Wrong(
        "matrix_axes",
        [jc.MatrixAxes(0, 2), jc.MatrixAxes((0, 1), 1), jc.MatrixAxes(-3, (-2, -1))],
        "does not fit an array",
    ),
]
KEEPS = [
    Wrong("keep", SHARES, r"keep must be in \(0, 1\]"),
    Wrong("keep", [{"kernel": value} for value in SHARES], r"keep\['kernel'\] must be in \(0, 1\]"),
    Wrong("keep", [{}], "keep is an empty mapping"),
    Wrong("keep", [{pattern: 1 / 2} for pattern in UNMATCHED], "keep: the pattern"),
    Wrong("keep", [{"kernel": 0.9, "more": 1 / 2}], r"keep: the pattern.*'more'.*match"),
    Wrong("keep", [{3: 1 / 2}], "keep must be a mapping from names or patterns", TypeError),
]
METRICS = [
    Wrong("moments", NOT_METRICS, "kernel: its moments"),
    Wrong(
        "moments", [{"other": np.eye(8)}, {"kernel": None, "b": np.eye(6)}], "moments name leaves"
    ),
    Wrong("moments", NOT_MOMENTS, "moments must be those of jc.calibrate, or a tree", TypeError),
    Wrong("moments", [[X]], "moments name leaves that the parameters lack"),
]
LEAVES = [Wrong("params", [{"kernel": np.full((8, 6), NAN)}], "kernel contains NaN")]
KERNELS = [*KEEPS, *ROLES, *METRICS, *LEAVES]
NET = Wrong("net", NOT_NETWORKS, "takes a network from jc.trace", TypeError)
ON_NET = [
    NET,
    Wrong("params", NOT_PARAMS, FIT),
    Wrong("params", NOT_FINITE, "up contains NaN or infinity"),
]
AXES = [
    Wrong("axes", UNMATCHED, "matches no hidden axis"),
    Wrong("axes", (None, 3, True, b"up", []), "pattern", TypeError),
]
MEASURED = [
    Wrong("moments", [Made(right.other_moments)], "moments"),
    Wrong("", [{"params": Made(right.small), "moments": Made(right.moments)}], "moments"),
    Wrong("moments", (3, "moments", {"up": np.eye(3)}), "jc.calibrate", TypeError),
]
BATCHES = [
    Wrong("batches", NOT_BATCHES, "batch|inputs"),
    Wrong("batches", NOT_ITERABLE, "batches", TypeError),
]
WITHOUT_NORMS = Wrong("net", [Made(right.net)], "no batch norm with running statistics")
AGAIN = Wrong("batches", [Made(lambda: iter([X]))], "give a list, not an iterator", TypeError)
METRIC = Wrong("metric", [np.full((3, 3), NAN), np.eye(2), np.full((3, 3), "a"), 3.0], "moments")
TRAINING = [
    Wrong("optimizer", NOT_OPTIMIZERS, "optimizer must be an optax", TypeError),
    Wrong("seed", SEEDS, "seed must be a whole number"),
    Wrong("loss", NOT_FUNCTIONS, "loss must be a function", TypeError),
    Wrong("params", [W.astype(int), {"a": "b"}], "only float leaves are trained", TypeError),
    Wrong("params", [np.full((3, 2), NAN)], "not finite|NaN"),
    Wrong("callback", [3, "print"], "callback must be a function", TypeError),
]
STATES = [
    Wrong("state", [3, "state", W], "state must be the state of a run", TypeError),
    Wrong(
        "state",
        [initial_state(W, optax.adam(0.1)), initial_state(normal(3, 4), optax.adam(0.1))],
        "the state is of another optimizer",
    ),
]
DATA = [
    Wrong("data", [(X, Y[:5]), (), (X, 3), (X[:0], Y[:0])], "examples"),
    Wrong("batch_size", COUNTS, "batch_size must be a whole number of at least 1"),
]

TABLE: dict[str, list[Wrong]] = {
    "hashed": [
        *KERNELS,
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("block", COUNTS, "block must be a whole number of at least 1"),
        Wrong("block", [1000], "block=1000"),
        Wrong("layout", NAMES, "layout=.* is unknown"),
        Wrong("seed_by", NAMES, "seed_by=.* is unknown"),
        Wrong("", [{"block": 2, "layout": "circular"}], "block=2 is for the random layout"),
    ],
    "factored": [
        *KERNELS,
        Wrong(
            "", [{"keep": None, "energy": value} for value in SHARES], r"energy must be in \(0, 1\]"
        ),
        Wrong("", [{"keep": None}, {"energy": 0.9}], "either keep or energy"),
        Wrong("keep", [1 / 100], "the least keep"),
    ],
    "clustered": [
        *KERNELS,
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("block", COUNTS, "block must be a whole number of at least 1"),
        Wrong("most", (*COUNTS, None), "most must be a whole number of at least 1"),
    ],
    "spline": [*KERNELS, Wrong("basis", NAMES, "basis")],
    "vocabulary": [
        *KERNELS,
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("atoms", ("nonsense", ""), "atoms"),
        Wrong("atoms", (None, 3, np.eye(7), np.full((8, 2), NAN), np.ones(8)), "atoms"),
        Wrong("grid", ((), (0, 8), (2.5,), "88", -8, (4, -2), True), "grid must be"),
        Wrong("grid", ((3, 3), (8, 2)), "grid"),
        Wrong("lookups", COUNTS, "lookups must be a whole number of at least 1"),
        Wrong("lookups", [1000], "look-?ups"),
        Wrong("channels", (*COUNTS, None), "channels must be a whole number of at least 1"),
        Wrong("channels", [3], "channels=3 does not divide"),
        Wrong("", [{"atoms": "learned", "channels": 2}], "channels=2 is for designed atoms"),
    ],
    "toeplitz": [
        *ROLES,
        *METRICS[1:],
        *LEAVES,
        Wrong("window", (0, -1, 2.5, "3", (), True, NAN, None), "window must be"),
        Wrong("window", [(3, 3), 9], "window"),
        Wrong("grid", (0, -1, 2.5, "8", (), True), "grid must be"),
        Wrong("stride", (0, -1, 2.5, "1", (1, 1), True, None), "stride must be"),
        Wrong("pad", (-1, 2.5, "1", (1, 1), True, None), "pad must be"),
        Wrong("pad", [3], "pad="),
    ],
    "at": [
        Wrong("pattern", UNMATCHED, "matches? no leaf"),
        Wrong("pattern", [("up", "nothing")], "'nothing'"),
        Wrong("pattern", (None, 3, (), ("up", 3), b"up", []), "at expects a pattern", TypeError),
        Wrong(
            "pattern", [lambda name, leaf: None, lambda name, leaf: "yes"], "selector", TypeError
        ),
        Wrong("transform", NOT_TRANSFORMS, "at expects transforms", TypeError),
        Wrong(
            "transform", [Made(lambda: jc.rotate_and_prune(right.net(), 1 / 2))], "axes", TypeError
        ),
        Wrong("pattern", ["bias"], "bias was picked by name but cannot be compacted", TypeError),
        Wrong("transform", [jc.factored(1 / 100), jc.spline(1 / 100)], "up: .*least keep"),
        Wrong("params", [None, {}, 3], "there are: none|matches no leaf"),
    ],
    "chain": [
        Wrong("transforms", [(value,) for value in NOT_TRANSFORMS], "chain expects", TypeError)
    ],
    "partition": [
        Wrong(
            "transforms", (None, 3, [jc.hashed(1 / 2)], "small"), "partition.*mapping", TypeError
        ),
        Wrong("transforms", [{"small": value} for value in NOT_TRANSFORMS], "expects", TypeError),
        Wrong("labels", [{"kernel": "small"}, "other", {"kernel": "small", "bias": "b"}], "label"),
        Wrong("labels", [{"kernel": 3, "bias": 3}, None, 3], "label"),
        Wrong(
            "",
            [{"transforms": {"same": jc.identity(), "more": jc.hashed(1 / 2)}, "labels": "same"}],
            "'more'",
        ),
    ],
    "together": [
        Wrong("transforms", [()], "no transforms"),
        Wrong("transforms", [(value,) for value in NOT_TRANSFORMS], "together", TypeError),
        Wrong("transforms", [(jc.identity(),)], "predicts no errors", TypeError),
        Wrong("transforms", [(jc.hashed(1 / 2),)], "has no budget"),
        Wrong(
            "transforms",
            [(jc.hashed(jc.budget(1 / 2, of="channels")),)],
            "together divides numbers",
        ),
        Wrong(
            "transforms", [(jc.hashed(jc.budget(1 / 2)), jc.hashed(jc.budget(1 / 4)))], "one budget"
        ),
    ],
    "budget": [
        Wrong("total", (*SHARES, None), r"budget must be in \(0, 1\]"),
        Wrong("of", NAMES, "of=.* is unknown"),
        Wrong("metric", [3, "accuracy"], "metric must be a function", TypeError),
        Wrong("total", [1e-6], "budget"),
        Wrong("metric", [lambda plans: {}], "the metric scored"),
        Wrong("metric", [lambda plans: dict.fromkeys(plans, NAN)], "finite number"),
        Wrong("metric", [lambda plans: None, lambda plans: 3], "metric", TypeError),
    ],
    "select_rows": [
        Wrong(
            "rows", ([], [1, 0], [0, 0], [-1], [0.5], "01", None, 3, [[0]], [True]), "rows must be"
        ),
        Wrong("rows", [[0, 8]], "row 8 is requested"),
        Wrong("pattern", UNMATCHED, "matches? no leaf"),
        Wrong("pattern", [("kernel", "nothing")], "'nothing'"),
        Wrong("pattern", (None, 3, (), ["kernel"]), "select_rows expects a pattern", TypeError),
    ],
    "initialize": [
        Wrong("key", NOT_KEYS, "key must be a JAX random key", TypeError),
        Wrong("transform", NOT_TRANSFORMS, "initialize expects transforms", TypeError),
        Wrong("params", [{"kernel": np.full((8, 6), NAN)}], "kernel contains NaN"),
    ],
    "rotate_and_prune": [
        *ON_NET,
        *AXES,
        *MEASURED,
        Wrong("keep", SHARES, r"keep must be in \(0, 1\]"),
        Wrong("keep", [{"up:1": value} for value in SHARES], r"keep\['up:1'\] must be in \(0, 1\]"),
        Wrong("keep", [{pattern: 1 / 2} for pattern in UNMATCHED], "keep: the pattern"),
        Wrong("keep", [{}], "keep is an empty mapping"),
        Wrong("keep", [{"up:1": 1 / 2, "bias": 1 / 2}], "keep: the pattern 'bias'"),
        Wrong("", [{"keep": None}, {"energy": 0.9}], "either keep or energy"),
        Wrong(
            "", [{"keep": None, "energy": value} for value in SHARES], r"energy must be in \(0, 1\]"
        ),
        Wrong("method", NAMES, "method=.* is unknown"),
        Wrong("method", ["rotate"], "cannot be rotated"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("multiple", COUNTS, "multiple must be a whole number of at least 1"),
        Wrong("multiple", [100], "multiple"),
        Wrong("multiple", [{"nothing": 2}, {"up:1": 2, "nothing": 2}], "multiple: the pattern"),
        Wrong("multiple", [{}], "multiple is an empty mapping"),
    ],
    "fold_batchnorm": [
        NET,
        WITHOUT_NORMS,
        Wrong("params", [PARAMS, 3, None], "other|traced"),
        Wrong("params", [changed(right.NORMED, var=-right.NORMED["var"])], "running statistics"),
    ],
    "prune_batchnorm": [
        NET,
        WITHOUT_NORMS,
        *AXES,
        Wrong("params", [changed(right.NORMED, var=-right.NORMED["var"])], "running statistics"),
        Wrong("keep", SHARES, r"keep must be in \(0, 1\]"),
        Wrong("keep", [{"nothing": 1 / 2}], "keep: the pattern"),
        Wrong("", [{"keep": None}, {"tolerance": 0.1}], "either keep or tolerance"),
        Wrong("", [{"keep": None, "tolerance": v} for v in (-1, 1, 2)], "tolerance must be in"),
        Wrong("method", NAMES, "method=.* is unknown"),
        Wrong("rescale", [None, 1, "yes"], "rescale must be True or False", TypeError),
    ],
    "coarsen": [
        *ON_NET,
        *AXES,
        *MEASURED,
        Wrong("factor", (0, 0.5, -1, *NUMBERS, np.ones(2)), r"factor must be in \[1, inf\)"),
        Wrong("factor", [1e9, 100], "factor"),
        Wrong("factor", [{"nothing": 2}, {"up:1": 2, "nothing": 2}], "factor: the pattern"),
        Wrong("factor", [{}], "factor is an empty mapping"),
        Wrong("basis", NAMES, "basis"),
    ],
    "refine": [
        *ON_NET,
        *AXES,
        Wrong("factor", (0, 0.5, -1, *NUMBERS, np.ones(2)), r"factor must be in \[1, inf\)"),
        Wrong("factor", [{"nothing": 2}], "factor: the pattern"),
        Wrong("basis", NAMES, "basis"),
        Wrong("split", (-1, *NUMBERS), r"split must be in \[0, inf\)"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
    ],
    "bypass": [
        *ON_NET,
        *BATCHES,
        AGAIN,
        Wrong("leaves", UNMATCHED, "bypass matches no leaf"),
        Wrong("leaves", (None, 3, (), ["mid"]), "bypass expects a pattern", TypeError),
        Wrong("leaves", ["up", "**"], "is not behind a single value"),
    ],
    "linearize": [
        *ON_NET,
        *AXES,
        *BATCHES,
        AGAIN,
        MEASURED[-1],
        Wrong("keep", SHARES, r"keep must be in \(0, 1\]"),
        Wrong("keep", [{pattern: 1 / 2} for pattern in UNMATCHED], "keep: the pattern"),
        Wrong("", [{"keep": None}, {"tolerance": 0.1}], "either keep or tolerance"),
        Wrong("", [{"keep": None, "tolerance": value} for value in (-1, 1, *NUMBERS)], "tolerance"),
    ],
    "merge_linear": [NET, Wrong("params", NOT_PARAMS, FIT), *AXES],
    "merge": [
        *ON_NET,
        *AXES,
        *MEASURED,
        Wrong("threshold", SHARES, r"threshold must be in \(0, 1\]"),
        Wrong("moments", [None], "merge compares activations"),
    ],
    "seriate": [*ON_NET, *AXES, *MEASURED, Wrong("method", NAMES, "method=.* is unknown")],
    "recalibrate": [
        NET,
        *BATCHES,
        AGAIN,
        Wrong("params", NOT_PARAMS, FIT),
        Wrong("norms", [None, 1, "yes"], "norms must be True or False", TypeError),
        Wrong("norms", [True], "no batch norm with running statistics"),
    ],
    "reconstruct": [
        NET,
        *BATCHES,
        AGAIN,
        Wrong("moments", [None], "jc.calibrate"),
        Wrong("moments", [Made(right.other_moments)], "moments"),
    ],
    "roughness": [
        *ON_NET,
        Wrong("moments", [Made(right.other_moments)], "moments"),
        Wrong("moments", (3, "moments", {"up": np.eye(3)}), "jc.calibrate", TypeError),
    ],
    "second_moments": [
        Wrong("x", [normal(3), np.zeros((0, 3)), 3.0, None], "second_moments"),
        Wrong("x", [np.full((2, 3), NAN)], "NaN or infinity"),
        Wrong("x", [np.full((2, 3), "a"), np.ones((2, 3)) * 1j], "second_moments"),
    ],
    "compress": [
        Wrong("keep", (*SHARES, None), r"must be in \(0, 1\]"),
        Wrong("apply", NOT_FUNCTIONS, "apply must be a function", TypeError),
        *BATCHES[1:],
        Wrong("batches", (*NOT_BATCHES[:2], *NOT_BATCHES[3:-2], NOT_BATCHES[-1]), "batch|input"),
        Wrong("batches", [NOT_BATCHES[-2]], "input 0 is", TypeError),
        AGAIN,
        Wrong("params", NOT_FINITE, "NaN or infinity"),
        Wrong("state_outputs", [3, "x", {"a": 3}], "state_outputs", TypeError),
    ],
    "trace": [
        Wrong("apply", NOT_FUNCTIONS, "apply must be a function", TypeError),
        Wrong("params", [changed(PARAMS, up=None)], "parameters"),
        Wrong("params", [changed(PARAMS, up="up")], "the parameter up is a str", TypeError),
        Wrong("params", [None, 3], "parameters"),
        Wrong("inputs", [normal(20, 4), None], "inputs"),
        Wrong("state_outputs", [{"0": "up"}, {"": "nothing"}], "state_outputs|is not there|no "),
        Wrong("state_outputs", [3, "x", {"a": 3}], "state_outputs", TypeError),
        Wrong("inputs", ["x"], "input 0 is a str, no array", TypeError),
    ],
    "Network": [
        Wrong("params", NOT_PARAMS, FIT),
        Wrong("inputs", ["x", normal(20, 4), None], "inputs"),
        Wrong("more", [X], "input"),
    ],
    "Network.resized": [
        Wrong("sizes", [{"nothing": 2}, {"up:0": 2}], "are no hidden axes"),
        Wrong("sizes", [{"up:1": value} for value in COUNTS], "up:1 must be a whole number"),
        Wrong("sizes", [3, "up:1", None, [("up:1", 3)]], "resized", TypeError),
    ],
    "Network.explain": [
        Wrong("params", NOT_PARAMS, FIT),
        Wrong("inputs", [normal(20, 4), "x"], "input"),
    ],
    "calibrate": [
        NET,
        *BATCHES,
        Wrong("params", NOT_PARAMS, FIT),
        Wrong("params", NOT_FINITE, "NaN or infinity"),
        Wrong("max_dim", (*COUNTS, None), "max_dim must be a whole number of at least 1"),
    ],
    "Calibration": [
        Wrong("sample", (*SHARES, None), r"sample must be in \(0, 1\]"),
        Wrong("inputs", [3, "x"], "inputs must be a function", TypeError),
        Wrong("mask", [3, "x", np.ones(20)], "mask must be a function", TypeError),
        Wrong("mask", [lambda x: x[:, 0] * 0, lambda x: -(x[:, 0] ** 2)], "mask"),
        Wrong("mask", [lambda x: x[:, 0] * NAN], "mask"),
        Wrong("mask", [lambda x: None, lambda x: "mask", lambda x: [[0.0, 1.0], [1.0]]], "mask"),
        Wrong("batches", [3, None], "batches", TypeError),
    ],
    "Moments": [
        Wrong("add", [3, None, Made(right.other_moments)], "moments can be added"),
    ],
    "AxisMoments.groups": [
        Wrong("threshold", SHARES, r"threshold must be in \(0, 1\]"),
        Wrong("fibre", (*NOT_NEGATIVE, None), "fibre must be a whole number"),
        Wrong("fibre", [1], "fibre"),
    ],
    "AxisMoments.plot": [
        Wrong("threshold", SHARES, r"threshold must be in \(0, 1\]"),
        Wrong("fibre", [1, -1, 0.5, None], "fibre"),
    ],
    "Transform": [
        Wrong("moments", NOT_METRICS, "kernel: its moments"),
        Wrong("moments", NOT_MOMENTS, "moments", TypeError),
        Wrong("moments", [Made(right.other_moments)], "moments name leaves"),
    ],
    "LeafTransform.plan": [
        Wrong("keep", [1 / 2], "plan divides a budget"),
        Wrong("params", [None, {}, {"a": np.arange(3)}], "no leaf"),
        Wrong("params", NOT_FINITE, "up contains NaN"),
        Wrong("keep", [jc.budget(1 / 2, of="channels")], "numbers"),
    ],
    "RotateAndPrune.plan": [
        Wrong("params", NOT_PARAMS, FIT),
        *MEASURED,
    ],
    "MatrixAxes": [
        Wrong("inputs", [(), "a", None, 0.5, (0.5,), True, ("a",)], "MatrixAxes"),
        Wrong("outputs", [(), "a", None, 0.5, (0.5,), True], "MatrixAxes"),
        Wrong("outputs", [2, 0, -3], "does not fit an array"),
    ],
    "as_function": [Wrong("kernel", [normal(3), normal(2, 2, 2), 3.0, None, "w"], "as_function")],
    "matmul": [
        Wrong("x", [normal(20, 4), 3.0, None, "x"], "matmul"),
        Wrong("w", [normal(4, 2), 3.0, None, "w"], "matmul"),
        Wrong("matrix_axes", ["in", 0, (0, 1)], "matrix_axes", TypeError),
        Wrong("matrix_axes", [jc.MatrixAxes(0, 2), jc.MatrixAxes(1, 0)], "MatrixAxes|contracts"),
        Wrong("", [{"w": Made(lambda: jc.hashed(1 / 2)(W)), "x": normal(20, 4)}], "contracts"),
    ],
    "Compact @": [
        Wrong("x", [normal(20, 4), 3.0], "contracts"),
        Wrong("x", [None, "x"], "x @ A", TypeError),
    ],
    "take": [
        Wrong("rows", [np.array([0.5]), "a", None, np.array([True])], "integer", TypeError),
        Wrong("table", [normal(3), 3.0, None, "table"], "table must be a matrix", TypeError),
        Wrong(
            "",
            [{"table": Made(lambda: jc.hashed(1 / 2)(W)), "rows": np.array([0.5])}],
            "integer",
            TypeError,
        ),
    ],
    "tie": [
        Wrong("ties", [{"c": "a"}, {"b": "c"}, {"b": "b"}, {"a": "b", "b": "a"}], "tie"),
        Wrong("ties", [3, "b", None, [("b", "a")], {3: "a"}, {"b": 3}], "tie", TypeError),
        Wrong("ties", [{}], "tie"),
        Wrong("params", [{"a": W, "b": 2 * W}], "differ by"),
        Wrong(
            "params",
            [{"a": W, "b": normal(4, 2)}, {"a": W, "b": W.astype(np.float16)}],
            "tied leaves",
        ),
        Wrong("params", [None, 3, {"a": "a", "b": "a"}], "tie"),
    ],
    "HashedArray.fit": [
        Wrong("matrix", [normal(3), 3.0, None, "w", np.full((3, 2), NAN), W.astype(int)], "matrix"),
        Wrong("size", (*COUNTS, None), "size must be a whole number of at least 1"),
        Wrong("block", (*COUNTS, None), "block must be a whole number of at least 1"),
        Wrong("block", [5], "block"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("layout", NAMES, "layout=.* is unknown"),
        METRIC,
    ],
    "FactoredArray.fit": [
        Wrong("matrix", [normal(3), 3.0, None, "w", np.full((3, 2), NAN)], "matrix"),
        Wrong("rank", (*COUNTS, None), "rank must be a whole number"),
        Wrong("rank", [3], "rank"),
        METRIC,
    ],
    "SplineArray.fit": [
        Wrong("matrix", [normal(3), 3.0, None, "w", np.full((3, 2), NAN)], "matrix"),
        Wrong("count", (*COUNTS, None, 3), "count must be a whole number"),
        Wrong("basis", NAMES, "basis"),
    ],
    "ClusteredArray.fit": [
        Wrong("matrix", [normal(3), 3.0, None, "w", np.full((3, 2), NAN)], "matrix"),
        Wrong("count", (*COUNTS, None), "count must be a whole number of at least 1"),
        Wrong("block", (*COUNTS, None), "block must be a whole number of at least 1"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
        METRIC,
    ],
    "VocabularyArray.fit": [
        Wrong("matrix", [normal(3), 3.0, None, "w", np.full((3, 2), NAN)], "matrix"),
        Wrong("atoms", [normal(2, 2), normal(3), None, "dct", np.full((3, 2), NAN)], "atoms"),
        Wrong("lookups", (*COUNTS, 5), "lookups|entries must be a whole number"),
        METRIC,
    ],
    "LookupArray.fit": [
        Wrong("matrix", [normal(3), 3.0, None, "w", np.full((3, 2), NAN)], "matrix"),
        Wrong("entries", (*COUNTS, None, 5), "entries must be a whole number"),
        METRIC,
    ],
    "ToeplitzArray.fit": [
        Wrong("matrix", [normal(3), 3.0, None, "w", np.full((3, 2), NAN)], "matrix"),
        Wrong("grid", [(4,), (), (0,), None, "3"], "grid"),
        Wrong("window", [(4,), (), (0,), None, (1, 1)], "window"),
        METRIC,
    ],
    "StaticArray": [
        Wrong("array", [np.array([-1]), np.array([0.5]), "a", None, np.array([NAN])], "StaticArray")
    ],
    "fit": [
        *TRAINING,
        *STATES,
        *DATA,
        Wrong("steps", (*NOT_NEGATIVE, None), "steps must be a whole number"),
        Wrong("batch_size", [21], "batch_size must be between 1 and the 20 examples"),
        Wrong("callback_steps", COUNTS, "callback_steps must be a whole number of at least 1"),
        Wrong("patience", COUNTS, "patience must be a whole number of at least 1"),
        Wrong("patience", [2], "needs validation="),
        Wrong("validation", [(X,), (X, Y[:3]), (X[:, :2], Y), (X, Y * 1.0), 3], "validation"),
        Wrong("data", [(X, label) for label in NOT_LABELS], "label"),
        Wrong(
            "data",
            [(X, np.stack([Y, Y, Y], 1)), (X, np.eye(3)[Y]), (X, np.zeros((20, 1)))],
            "label|target",
        ),
        Wrong("data", [(normal(20, 4), Y)], "loss|data"),
        Wrong("loss", [lambda params, batch: 0.0], "loss"),
        Wrong(
            "loss", [lambda params, batch, key: params, lambda params, batch, key: "a"], "scalar"
        ),
    ],
    "fit_stream": [
        *TRAINING,
        *STATES,
        Wrong("steps", (*NOT_NEGATIVE, None), "steps must be a whole number"),
        Wrong("batch_at", NOT_FUNCTIONS, "batch_at must be a function", TypeError),
        Wrong(
            "callback_seconds",
            (-1, NAN, "1", True, None),
            r"callback_seconds must be in \[0, inf\)",
        ),
        Wrong("loss", [lambda params, batch, key: params], "scalar"),
        Wrong("batch_at", [lambda step: (X, Y - 1)], "label"),
    ],
    "multigrid": [
        NET,
        *TRAINING[:-2],
        *DATA,
        Wrong("params", [tree for tree in NOT_PARAMS if isinstance(tree, dict)][:5], FIT),
        Wrong("params", [3, "params"], "only float leaves are trained", TypeError),
        Wrong("axes", UNMATCHED, "matches no hidden axis"),
        Wrong("levels", [(), ((1, 0),), ((2, 2),), ((1, 2), (2, 2)), ((0, 2), (1, 2))], "level"),
        Wrong("levels", [((NAN, 2), (1, 2)), (("a", 2), (1, 2)), ((2, 2.5), (1, 2))], "level"),
        Wrong("levels", [3, None, (2, 1), "21"], "level"),
        Wrong("levels", [((1e9, 2), (1, 2))], "level|factor"),
        Wrong("split", (-1, *NUMBERS), r"split must be in \[0, inf\)"),
        Wrong("until", NOT_NEGATIVE, "until must be a whole number"),
        Wrong("callback_steps", COUNTS, "callback_steps must be a whole number"),
        Wrong("state", [3, "state", W], "a MultigridState", TypeError),
    ],
    "cross_entropy": [
        Wrong("apply", NOT_FUNCTIONS, "apply must be a function", TypeError),
        Wrong("smoothing", (-0.1, 1, NAN, "a", True, None, 1j), "smoothing"),
        Wrong("y", NOT_LABELS, "label"),
        Wrong("y", [np.stack([Y, Y], 1), np.eye(3)[Y], Y[:5], Y[:, None]], "label|target"),
        Wrong("y", [Y * 1.0, None, "y", np.full((20, 2), NAN), -np.ones((20, 2))], "label|target"),
        Wrong("ignore", (0.5, "a", True, NAN), "ignore must be a whole number"),
    ],
    "distillation_loss": [
        Wrong("apply", NOT_FUNCTIONS, "apply must be a function", TypeError),
        Wrong("temperature", (0, -1, *NUMBERS), "temperature must be"),
        Wrong("hard", (-0.1, 1.1, NAN, "a", True, None), "hard must be"),
        Wrong("states", (-0.1, INF, NAN, "a", True, None), "states must be"),
        Wrong("batch", [(X, normal(20, 3)), (X,), X, (X, normal(19, 2))], "distillation"),
        Wrong("", [{"hard": 0.5}], "with hard > 0 a batch is"),
        Wrong("", [{"hard": 0.5, "batch": (X, Y - 1, X @ W)}], "label"),
        Wrong("", [{"states": 0.5}], "states"),
    ],
    "predict": [
        Wrong("apply", NOT_FUNCTIONS, "apply must be a function", TypeError),
        Wrong("x", [X[:0], 3.0, None, {}, {"a": X, "b": X[:3]}, "x"], "predict"),
        Wrong("x", [normal(20, 4)], "predict"),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
        Wrong("apply", [lambda params, x: x.sum(), lambda params, x: x[:1]], "first dimension"),
        Wrong("params", [normal(4, 2), None], "predict"),
    ],
    "curvature": [
        Wrong("loss", NOT_FUNCTIONS, "loss must be a function", TypeError),
        Wrong("params", [W.astype(int)], "only float leaves", TypeError),
        Wrong("key", NOT_KEYS, "key must be a JAX random key", TypeError),
        Wrong("steps", (*COUNTS, None), "steps must be a whole number of at least 1"),
        Wrong("signs", (*COUNTS, None), "signs must be a whole number of at least 1"),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
        Wrong("data", [(X, Y[:3]), (), (X[:0], Y[:0])], "examples"),
        Wrong("loss", [lambda params, batch, key: params], "scalar"),
    ],
    "gradient_statistics": [
        Wrong("loss", NOT_FUNCTIONS, "loss must be a function", TypeError),
        Wrong("params", [W.astype(int)], "only float leaves", TypeError),
        Wrong("params", [np.full((3, 2), NAN)], "finite"),
        Wrong("key", NOT_KEYS[1:], "key must be a JAX random key", TypeError),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
        Wrong("data", [(X, Y[:3]), (), (X[:1], Y[:1])], "examples"),
        Wrong("loss", [lambda params, batch, key: params], "scalar"),
    ],
    "variation": [
        *AXES,
        NET,
        Wrong("params", NOT_PARAMS, FIT),
        Wrong("degree", (0, 3, 1.5, "1", None, True), "degree"),
    ],
    "add_variation": [
        *AXES,
        NET,
        Wrong("degree", (0, 3, 1.5, "1", None, True), "degree"),
        Wrong(
            "strength",
            (-1, NAN, INF, "1", True, None, np.ones(2)),
            r"strength must be in \[0, inf\)",
        ),
    ],
    "at_any_resolution": [
        *AXES,
        NET,
        Wrong("loss", NOT_FUNCTIONS, "loss must be a function", TypeError),
        Wrong("factors", [(), (0.5,), (NAN,), ("a",), (1, True)], "factor"),
        Wrong("factors", [3, None], "factors", TypeError),
        Wrong("basis", NAMES, "basis"),
        Wrong("key", [None], "the key draws the resolution"),
        Wrong("key", [0, "a"], "key must be a JAX random key", TypeError),
    ],
    "LearningCurve.plot": [Wrong("", [{}], "no points")],
    "report": [
        Wrong("after", [{"kernel": W}, None, 3, W], "leaves"),
        Wrong("net", [3, "net"], "net must be a function", TypeError),
        Wrong("moments", NOT_METRICS, "kernel: its moments"),
        Wrong("moments", NOT_MOMENTS, "moments", TypeError),
        Wrong(
            "", [{"net": right.linear}, {"net": right.linear, "inputs": normal(20, 4)}], "report"
        ),
    ],
    "cost_of_sharing": [
        Wrong(
            "kernel", [np.zeros((3, 2)), normal(3), np.full((3, 2), NAN), None], "cost_of_sharing"
        ),
        Wrong("forms", [{}], "forms is an empty mapping"),
        Wrong("forms", [None, 3, {"a": 3}, [jc.hashed(1 / 2)]], "forms", TypeError),
        METRIC,
        Wrong("metric", [-np.eye(3), np.triu(np.ones((3, 3)))], "moments"),
    ],
    "effective_rank": [
        Wrong(
            "matrix",
            [np.zeros((3, 2)), normal(3), np.full((3, 2), NAN), None, "a"],
            "effective_rank",
        )
    ],
    "frontier": [
        Wrong("recipes", [{}], "recipes is an empty mapping"),
        Wrong(
            "recipes",
            [None, 3, {"a": 3}, {"a": jc.hashed(1 / 2)}, [jc.hashed]],
            "recipes",
            TypeError,
        ),
        Wrong("recipes", [{"a": lambda keep: keep}], "expected a transform", TypeError),
        Wrong("evaluate", NOT_FUNCTIONS, "evaluate must be a function", TypeError),
        Wrong(
            "evaluate", [lambda params: None, lambda params: "a", lambda params: NAN], "evaluate"
        ),
        Wrong("keeps", [()], "keeps is empty"),
        Wrong("keeps", [[0], [2], [NAN], [True]], r"keeps must be in \(0, 1\]"),
        Wrong("keeps", [None, 0.5, "1/2"], "keeps must be a list", TypeError),
        Wrong("moments", NOT_MOMENTS, "moments", TypeError),
    ],
    "mean_frequency": [
        Wrong("grid", [(3,), (), (0,), (-4,), (2.0, 2.0), None, "4"], "grid"),
        Wrong("atoms", [normal(4), np.full((4, 4), NAN), None, 3.0, "dct"], "atoms"),
    ],
    "overlap": [
        Wrong(
            "atoms",
            [np.zeros((4, 2)), normal(4), normal(3, 2), np.full((4, 2), NAN), None],
            "overlap",
        ),
        Wrong("others", [np.zeros((4, 2)), normal(3, 2)], "overlap"),
    ],
    "relative_variance": [
        Wrong("form", [None, 3], "form must be a function", TypeError),
        Wrong("form", [lambda seed: 3, jc.hashed(1 / 2)], "transform", TypeError),
        Wrong("x", [3.0, normal(2, 2), np.full(3, NAN), np.zeros(3), None, "x"], "x"),
        Wrong("outputs", (*COUNTS, None), "outputs must be a whole number of at least 1"),
        Wrong("draws", (*COUNTS, None, 1), "draws must be a whole number of at least 2"),
    ],
    "sample_efficiency": [
        Wrong("train", NOT_FUNCTIONS, "train must be a function", TypeError),
        Wrong("train", [lambda count, seed: 3.0, lambda count, seed: (0, 1, 2)], "train"),
        Wrong("sizes", [(), None, (0,), (2.5,), (True,), "12"], "sizes must be"),
        Wrong("seeds", (*COUNTS, None), "seeds must be a whole number of at least 1"),
    ],
    "sketches": [
        Wrong(
            "array",
            [W, None, Made(lambda: jc.factored(0.9)(KERNEL)["kernel"])],
            "sketches",
            TypeError,
        ),
        Wrong("array", [Made(lambda: jc.hashed(1 / 2, layout="circular")(W))], "count sketch"),
        Wrong("x", [np.ones(4), np.ones((3, 1)), np.full(3, NAN), None, "x"], "sketches"),
        Wrong("y", [np.ones(4), np.full(3, NAN)], "sketches"),
    ],
    "weight_functions": [NET, Wrong("params", NOT_PARAMS, FIT)],
    "WeightFunction.at": [
        Wrong("inputs", COUNTS, "cells"),
        Wrong("outputs", (*COUNTS, 3), "cells"),
        Wrong("basis", NAMES, "basis"),
    ],
    "WeightFunction.error": [Wrong("inputs", [4, 0], "cells"), Wrong("basis", NAMES, "basis")],
    "active_set": [
        Wrong("net", NOT_FUNCTIONS, "net must be a function", TypeError),
        Wrong("tolerance", (0, -1, *NUMBERS), r"tolerance must be in \(0, inf\)"),
        Wrong("data", [X, (X,), None, 3, (X, Y, Y)], "data are"),
        Wrong(
            "data",
            [(X, Y[:3]), (X, Y * 1.0), (X, Y - 1), (X, Y + 1), (X[:0], None)],
            "label|example",
        ),
        Wrong("data", [(normal(20, 4), Y)], "active_set"),
        Wrong("score", [np.ones(3), np.full(20, NAN), "a", 3], "score"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
        Wrong("params", [normal(4, 2), None], "active_set"),
    ],
    "accuracy_metric": [Wrong("active", [None, PARAMS, 3], "active set", TypeError)],
    "rank_compactions": [
        Wrong("candidates", [{}, None, 3, PARAMS["up"], [PARAMS]], "candidates are"),
        Wrong("active", [None, PARAMS, 3], "active set", TypeError),
        Wrong("evaluations", (*SHARES, None), r"evaluations must be in \(0, 1\]"),
        Wrong("evaluations", [0.05], "raise evaluations"),
        Wrong("confidence", (*SHARES, None, 1), "confidence"),
        Wrong(
            "certified", [{"other": 1}, {"same": -1}, {"same": NAN}, {"same": "a"}, 3], "certified"
        ),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
        Wrong("candidates", [{"wide": Made(right.wider).make()}], "rank_compactions"),
    ],
    "explain_errors": [
        Wrong("classify", NOT_FUNCTIONS, "classify must be a function", TypeError),
        Wrong(
            "train", [(X, Y[:3]), (X[:0], Y[:0]), (X[0], Y), (np.full((20, 3), NAN), Y)], "train"
        ),
        Wrong("train", [X, (X,), None, 3], "train"),
        Wrong("test", [(X, Y[:3]), (X[:, :2], Y), (X, None)], "test"),
        Wrong("train", [(X.astype(int), Y), (X, Y * 1.0)], "floats|integers", TypeError),
        Wrong("train", [(X, Y * 0)], "fewer than two classes"),
        Wrong("k", (*COUNTS, None), "k must be a whole number of at least 1"),
        Wrong("k", [20], "distinct training points"),
        Wrong("level", (-0.1, 1, NAN, "a", True, None), "level is a share"),
        Wrong("steps", (*COUNTS, None), "steps must be a whole number of at least 1"),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
        Wrong("embed", [3, "x"], "embed must be a function", TypeError),
        Wrong("classify", [lambda x: x], "take the argmax", TypeError),
        Wrong("classify", [lambda x: np.zeros(3, int), lambda x: 3], "classify gave"),
    ],
    "ErrorReport.of": [Wrong("cause", ["nonsense", None, 3], "cause")],
    "fit_exactly": [
        Wrong("apply", NOT_FUNCTIONS, "apply must be a function", TypeError),
        Wrong("params", [normal(2, 2).astype(int)], "only float", TypeError),
        Wrong("realized", [None, X, 3], "realized", TypeError),
        Wrong("steps", (*NOT_NEGATIVE, None), "steps must be a whole number"),
        Wrong("rounds", (*NOT_NEGATIVE, None), "rounds"),
        Wrong("polish", (*COUNTS, None), "polish"),
        Wrong("growth", (0.5, NAN, INF, "a", None), "growth"),
        Wrong("learning_rate", (-1, 0, *NUMBERS), "learning_rate must be"),
        Wrong("batch_size", COUNTS, "batch_size must be"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("params", [normal(2, 1)], "apply gives logits"),
        Wrong("params", [normal(3, 2)], "fit_exactly"),
    ],
    "match_distribution": [
        Wrong("realized", [None, X, 3, Made(right.realized)], "realize_along", TypeError),
        Wrong("classify", NOT_FUNCTIONS, "classify must be a function", TypeError),
        Wrong("features", NOT_FUNCTIONS, "features must be a function", TypeError),
        Wrong("features", [lambda key, x: x.sum(), lambda key, x: None], "features gave"),
        Wrong("features", [lambda key, x: x > 0], "expected floats", TypeError),
        Wrong("optimizer", NOT_OPTIMIZERS, "optimizer must be an optax", TypeError),
        Wrong("steps", (*NOT_NEGATIVE, None), "steps must be a whole number"),
        Wrong("examples", (*COUNTS, None), "examples must be a whole number of at least 1"),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
        Wrong("domain", [3, (1, 0), (0,), (NAN, 1), "01", ([0, 0], [1, 1])], "domain"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("soft", [3, "x"], "soft must be a function", TypeError),
    ],
    "realize": [
        Wrong("classify", NOT_FUNCTIONS, "classify must be a function", TypeError),
        Wrong(
            "domain",
            [3, (1, 0), ([0, 0],), ([0, NAN], [1, 1]), "01", None, ([0], [1, 1])],
            "domain",
        ),
        Wrong("jnd", (0, -1, NAN, "a", None, 1j, [1, 1, 1], True), "jnd"),
        Wrong("jnd", [1e-30], "jnd"),
        Wrong("budget", (*COUNTS[:-1], 1), "budget"),
        Wrong("coarse", (*COUNTS, None, (1, 2, 3)), "coarse"),
        Wrong("soft", [3, "x"], "soft must be a function", TypeError),
        Wrong("soft", [lambda x: x[0], lambda x: None], "soft gave"),
        Wrong("training_points", COUNTS, "training_points must be a whole number"),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
        Wrong("classify", [lambda x: x, lambda x: None], "classify gave", TypeError),
    ],
    "realize_along": [
        Wrong("classify", NOT_FUNCTIONS, "classify must be a function", TypeError),
        Wrong("points", [X[0], X[:2], np.full((5, 3), NAN), None, "x", 3.0, {}], "points"),
        Wrong("jnd", (0, -1, NAN, "a", None, 1j, True), "jnd"),
        Wrong("neighbours", (*COUNTS, None, 20), "neighbours"),
        Wrong("charts", (*NOT_NEGATIVE, None, 4), "charts"),
        Wrong("directions", NAMES, "directions"),
        Wrong("domain", [3, (1, 0), (0,), (NAN, 1), "01"], "domain"),
        Wrong("budget", (*COUNTS[:-1], 3), "budget"),
        Wrong("confidence", (0, 1, -1, *NUMBERS), "confidence"),
        Wrong("tolerance", (-1, 2, *NUMBERS), "tolerance"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("soft", [3, "x"], "soft must be a function", TypeError),
        Wrong("training_points", COUNTS, "training_points must be a whole number"),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
        Wrong("classify", [lambda x: np.zeros(len(x), int)], "class"),
    ],
    "RealizedAlong.coarsened": [
        Wrong("classify", NOT_FUNCTIONS, "classify must be a function", TypeError),
        Wrong("per_class", (*COUNTS, None), "per_class must be a whole number of at least 1"),
        Wrong("rounds", (*NOT_NEGATIVE, None), "rounds must be a whole number"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("soft", [3, "x"], "soft must be a function", TypeError),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
    ],
    "MeshClassifier": [Wrong("points", [normal(5, 3), 3.0, None, "x"], "points")],
    "teaching_set": [
        Wrong("learn", NOT_FUNCTIONS, "learn must be a function", TypeError),
        Wrong("learn", [lambda x, targets, seed: None], "what learn gives", TypeError),
        Wrong("x", [X[:3], None, 3.0], "targets must be"),
        Wrong(
            "targets",
            [Y, np.ones((20, 2)), -np.eye(2)[Y], np.full((20, 2), NAN), None, "y"],
            "targets must be",
        ),
        Wrong("size", (*COUNTS, None, 21), "expected 1 <= rounds <= size"),
        Wrong("rounds", (*COUNTS, None, 5), "expected 1 <= rounds <= size"),
        Wrong("start", [[0, 0], [-1], [20], [0.5], "a", [[0]], []], "start must be"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
        Wrong("batch_size", (*COUNTS, None), "batch_size must be a whole number of at least 1"),
    ],
    "Settings": [
        Wrong("keep", (*SHARES, None), r"keep must be in \(0, 1\]"),
        Wrong("work", SHARES, r"work must be in \(0, 1\]"),
        Wrong("minutes", (-1, *NUMBERS), r"minutes must be in \[0, inf\)"),
        Wrong("rate", (0, -1, *NUMBERS), r"rate must be in \(0, inf\)"),
        Wrong("layers", COUNTS, "layers must be a whole number of at least 1"),
        Wrong("reserve", (*NOT_NEGATIVE, None), "reserve must be a whole number of at least 0"),
        Wrong("seed", SEEDS, "seed must be a whole number"),
    ],
    "compress_for": [
        Wrong("large", [None, "folder", PARAMS], "large must be", TypeError),
        Wrong("documents", [None, 3, "text", ["text"], [3]], "documents", TypeError),
        Wrong("documents", [[]], "passages"),
        Wrong("settings", [None, 0.5, {"keep": 0.5}], "settings must be", TypeError),
        Wrong("out", [None, 3], "out must be", TypeError),
    ],
    "Encoder": [
        Wrong("length", (*COUNTS, None), "length must be a whole number"),
        Wrong("config", [None, {}, 3], "config must be", TypeError),
        Wrong("params", [None, {}, PARAMS], FIT),
        Wrong("tokenizer", [None, "bert"], "tokenizer", TypeError),
    ],
    "Encoder.embed": [
        Wrong("texts", [[], [""]], "text"),
        Wrong("texts", ["a b", None, 3, [3], [None]], "texts", TypeError),
    ],
    "write_hugging_face": [
        Wrong("encoder", [None, 3, PARAMS], "encoder must be", TypeError),
        Wrong("folder", [None, 3, X], "folder must be a path", TypeError),
    ],
    "read_encoder": [
        Wrong("folder", [None, 3, X], "folder must be a path", TypeError),
        Wrong("", [{"folder": "/nowhere", "length": n} for n in COUNTS], "length must be a whole"),
    ],
    "read_index": [Wrong("folder", [None, 3, X], "folder must be a path", TypeError)],
    "search": [
        Wrong("question", [np.ones(4), np.ones((1, 3)), np.full(3, NAN), "a", None], "search"),
        Wrong(
            "passages", [np.ones(3), np.ones((2, 4)), np.full((2, 3), NAN), "a", None, []], "search"
        ),
        Wrong("count", (*COUNTS, None), "count must be a whole number of at least 1"),
    ],
    "BertConfig": [
        Wrong("hidden_size", [9], "no multiple of num_attention_heads"),
        Wrong("hidden_act", NAMES, "hidden_act"),
        Wrong("pooling", NAMES, "pooling"),
    ],
    "without_layers": [Wrong("dropped", [[0], [1], [-1], [0.5]], "without_layers")],
    "plots.atoms": [
        Wrong("grid", [(3, 2), (4,), (0, 4), None, "22", (2.0, 2.0)], "grid"),
        Wrong("features", [normal(4), None, 3.0, np.full((4, 2), NAN)], "features"),
        Wrong("count", (*COUNTS, None), "count must be a whole number of at least 1"),
    ],
    "plots.decision_mesh": [Wrong("realized", [None, 3, X], "decision_mesh", TypeError)],
    "plots.error_images": [
        Wrong("image", [(2, 2), (), None, "13", (0, 3)], "grid|image"),
        Wrong("report", [None, 3], "report", TypeError),
        Wrong("count", (*COUNTS, None), "count must be a whole number of at least 1"),
        Wrong("near", (*COUNTS, None), "near must be a whole number of at least 1"),
    ],
    "plots.errors_by_cause": [
        Wrong("report", [None, 3], "report", TypeError),
        Wrong("train", [(X, Y)], "errors_by_cause draws points"),
    ],
    "plots.hidden_axes": [Wrong("net", NOT_NETWORKS, "takes a network from jc.trace", TypeError)],
    "plots.margins": [
        Wrong("active", [None, 3, PARAMS], "active set", TypeError),
        Wrong("", [{"active": Made(right.active).make, "ranking": 3}], "active set", TypeError),
    ],
    "plots.realized_along": [Wrong("realized", [None, 3, X], "realized_along", TypeError)],
    "plots.realized_images": [
        Wrong("realized", [None, 3, X], "realized_images", TypeError),
        Wrong("image", [(2, 2), (), None, "13"], "grid|image"),
        Wrong("count", (*COUNTS, None), "count must be a whole number of at least 1"),
        Wrong("pairs", (*COUNTS, None), "pairs must be a whole number of at least 1"),
    ],
    "plots.sample_efficiency": [Wrong("curves", [None, 3, {}, {"a": 3}], "curves", TypeError)],
    "plots.sketches": [Wrong("results", [None, 3, {}, {4: 3}], "results", TypeError)],
    "plots.weights_as_function": [
        Wrong("function", [None, 3, W], "weights_as_function", TypeError),
        Wrong("cells", [(), (0,), None, "1", (2.5,)], "cells must be"),
        Wrong("basis", NAMES, "basis"),
        Wrong("periods", (*COUNTS, None), "periods must be a whole number of at least 1"),
    ],
    "load": [Wrong("path", [None, 3, X], "path", TypeError)],
    "save": [
        Wrong("path", [None, 3, X], "path", TypeError),
        Wrong("params", [{3j: W}, {"a": object()}], "save", TypeError),
    ],
    "load_recipe": [
        Wrong("path", [None, 3, X], "path", TypeError),
    ],
    "save_recipe": [
        Wrong("path", [None, 3, X], "path", TypeError),
        Wrong("transform", NOT_TRANSFORMS, "save_recipe expects a transform", TypeError),
    ],
    "register": [
        Wrong("names", [(), (3,), (None,), ("",)], "register takes names", TypeError),
    ],
    "compact_array": [Wrong("cls", [None, 3, int], "compact_array", TypeError)],
}

EXCEPTIONS = {
    "primitives_without_rule": "it takes no arguments",
    "CompactArray": "a base: JAX rebuilds arrays with None and labels, so they check nothing",
    "ClusteredArray": "see CompactArray; its fit is in the table",
    "DesignedAtoms": "see CompactArray; jc.vocabulary checks",
    "FactoredArray": "see CompactArray; its fit is in the table",
    "HashedArray": "see CompactArray; its fit is in the table",
    "LookupArray": "see CompactArray; its fit is in the table",
    "SplineArray": "see CompactArray; its fit is in the table",
    "ToeplitzArray": "see CompactArray; its fit is in the table",
    "VocabularyArray": "see CompactArray; its fit is in the table",
    "identity": "takes nothing",
    "is_compact": "answers for any object",
    "materialize": "leaves that are not compact pass, whatever they are",
    "matrices": "answers for any leaf",
    "static_field": "an argument of dataclasses.field",
    "stored_numbers": "counts any tree",
    "Budget": "made by jc.budget",
    "Plan": "a result",
    "Metric": "a type",
    "Loss": "a type",
    "Curvature": "a result",
    "FitState": "a result",
    "GradientStatistics": "a result",
    "MultigridState": "a result",
    "LearningCurve": "a result; its plot is in the table",
    "AxisMoments": "a result; its methods are in the table",
    "Statistic": "a part of Moments, made by jc.calibrate",
    "Axis": "a row of net.axes",
    "Refused": "a row of net.refused",
    "Structure": "a part of a Network",
    "Rule": "made by jc.register",
    "elementwise": "a rule, called by the analysis",
    "linear": "a rule, called by the analysis",
    "LeafTransform": "a base; its plan is in the table",
    "Frontier": "a result",
    "Report": "a result",
    "SampleEfficiency": "a result",
    "Sketches": "a result",
    "WeightFunction": "a result; its methods are in the table",
    "ActiveSet": "a result",
    "ErrorReport": "a result; its method is in the table",
    "ExactFit": "a result",
    "Ranking": "a result",
    "Realized": "a result",
    "RealizedAlong": "a result; its method is in the table",
    "TeachingSet": "a result",
    "Verdict": "a result",
    "CorpusReport": "a result",
    "MLP": "an ordinary Flax module",
    "Bert": "an ordinary Flax module",
}
"""Public names without a line of the table, with the reason."""

ROOMS = (
    jc,
    jc.analysis,
    jc.arrays,
    jc.classifiers,
    jc.documents,
    jc.moments,
    jc.networks,
    jc.plots,
    jc.programs,
    jc.training,
    jc.transforms,
)
OURS = str(Path(jc.__file__).parent)


def public_names():
    """Every public callable by its name; those of the plots have their room's."""
    names = set()
    for room in ROOMS:
        prefix = "plots." if room is jc.plots else ""
        for name in room.__all__:
            if callable(getattr(room, name)) and not isinstance(getattr(room, name), ModuleType):
                names.add(prefix + name)
    return names


def test_every_public_callable_has_a_line():
    named = TABLE.keys() | EXCEPTIONS.keys()
    assert public_names() <= named, f"no wrong call of {sorted(public_names() - named)}"
    assert TABLE.keys() <= CALLS.keys()
    assert not TABLE.keys() & EXCEPTIONS.keys()


def test_the_table_is_long():
    assert sum(len(row.values) for rows in TABLE.values() for row in rows) >= 2000


def shown(given):
    return ", ".join(f"{name}={str(value)[:60]}" for name, value in given.items())


def problem(name, row, given):
    """What is wrong with the answer to one wrong call, or None."""
    try:
        CALLS[name](**given)
    except (ValueError, TypeError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if not place.filename.startswith(OURS):
            return f"comes from inside {Path(place.filename).name}: {error}"
        if not isinstance(error, row.error) or not re.search(row.sentence, str(error), re.DOTALL):
            return f"gives {type(error).__name__}: {error}; expected {row.sentence!r}"
        return None
    except Exception as error:
        return f"gives {type(error).__name__}: {error}"
    return "is accepted"


@pytest.mark.parametrize("call", TABLE)
def test_a_wrong_call_says_so(call):
    problems = []
    for row in TABLE[call]:
        for given in row.calls():
            made = {key: v.make() if isinstance(v, Made) else v for key, v in given.items()}
            if (why := problem(call, row, made)) is not None:
                problems.append(f"{call}({shown(made)}) {why}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float64(0.5), np.array(0.5), jnp.float32(0.5), jnp.bfloat16(0.5)]
)
def test_numbers_of_numpy_and_jax_are_numbers(number):
    assert jc.hashed(number) == jc.hashed(0.5)
    assert jc.rotate_and_prune(right.net(), number) == jc.rotate_and_prune(right.net(), 0.5)
    assert jc.budget(number) == jc.budget(0.5)


def test_labels_that_are_ignored_do_not_count():
    labels = np.where(np.arange(20) < 5, -1, Y)
    losses = [
        loss(W, batch, None)
        for loss, batch in (
            (jc.training.cross_entropy(right.linear, ignore=-1), (X, labels)),
            (jax.jit(jc.training.cross_entropy(right.linear, ignore=-1)), (X, labels)),
            (jc.training.cross_entropy(right.linear), (X[5:], Y[5:])),
        )
    ]
    np.testing.assert_allclose(losses[:2], losses[2], rtol=1e-6)
    assert np.isnan(jax.jit(jc.training.cross_entropy(right.linear))(W, (X, labels), None))


SMALL = {"a": normal(12, 16), "head": normal(16, 1)}


@pytest.mark.parametrize("form", [jc.factored(1 / 2), jc.clustered(1 / 2)])
def test_a_sweep_leaves_dense_what_a_form_cannot_reach(form, caplog):
    """A small matrix that nobody named stays dense and is logged; one that is named raises."""
    for transform in (form, jc.at(jc.matrices, form), jc.at("*", form)):
        caplog.clear()
        small = transform(SMALL)
        assert jc.stored_numbers(small) < jc.stored_numbers(SMALL)
        assert not jc.arrays.is_compact(small["head"])
        assert re.findall("head: .* it stays dense", caplog.text)
        assert len(caplog.records) == 1
    with pytest.raises(ValueError, match="head"):
        jc.at("head", form)(SMALL)
    with pytest.raises(ValueError, match="head"):
        jc.at("h*", form)(SMALL)
