"""Public functions with arguments that are right, so that a test can make one of them wrong."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcompress as jc
from jaxcompress.models.bert import Bert, BertConfig, without_layers
from jaxcompress.models.hugging_face import load_bert

HALF = jc.budget(1 / 2)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


PARAMS = {"up": normal(3, 8), "bias": normal(8), "mid": normal(8, 6), "down": normal(6, 2)}
X, Y = normal(20, 3), RNG.integers(0, 2, 20).astype(np.int32)
KERNEL = {"kernel": normal(8, 6), "bias": normal(6)}
FILE = "/nowhere/params.safetensors"


def apply(params, x):
    hidden = jax.nn.relu(x @ params["up"] + params["bias"])
    return jax.nn.relu(hidden @ params["mid"]) @ params["down"]


def linear(params, x):
    return x @ params


def positive(x):
    return np.int32(np.asarray(x)[:, 0] > 0)


def mean_square(params, batch, key):
    return jnp.mean((batch[0] @ params) ** 2)


def features(key, x):
    return jax.nn.relu(x @ jax.random.normal(key, (x.shape[1], 4)))


@functools.cache
def net():
    return jc.trace(apply, PARAMS, X)


@functools.cache
def moments():
    return jc.calibrate(net(), PARAMS, [X], progress=False)


@functools.cache
def other_net():
    """A network with the same names and other sizes."""
    return jc.trace(apply, wider(), normal(20, 5))


@functools.cache
def other_moments():
    return jc.calibrate(other_net(), wider(), [normal(20, 5)], progress=False)


def wider():
    return {"up": normal(5, 9), "bias": normal(9), "mid": normal(9, 7), "down": normal(7, 4)}


@functools.cache
def small():
    """A pruned network, for which the moments of before do not fit."""
    return jc.rotate_and_prune(net(), 1 / 2)(PARAMS, moments())


@functools.cache
def active():
    return jc.classifiers.active_set(apply, PARAMS, (X, None), 0.2, progress=False)


@functools.cache
def realized():
    return jc.classifiers.realize(positive, ([-1, -1], [1, 1]), 1 / 8, progress=False)


@functools.cache
def realized_along():
    points = np.random.default_rng(1).normal(size=(30, 3))
    return jc.classifiers.realize_along(positive, points, 0.1, neighbours=3, progress=False)


@functools.cache
def errors():
    data = X, np.int32(X[:, 1] > 0)
    return jc.classifiers.explain_errors(positive, data, data, k=2, progress=False)


@functools.cache
def ranking():
    return jc.classifiers.rank_compactions(
        {"same": PARAMS}, active(), evaluations=1.0, progress=False
    )


@functools.cache
def encoder():
    from tokenizers import Tokenizer, models

    words = {"[UNK]": 0, "a": 1, "b": 2, "##b": 3}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    config = BertConfig(4, 8, 1, 2, 16, max_position_embeddings=16)
    shapes = jax.eval_shape(lambda: Bert(config).init(jax.random.key(0), jnp.ones((1, 4), int)))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes["params"])
    return jc.documents.Encoder(config, params, tokenizer, length=16)


@dataclasses.dataclass(frozen=True)
class Call:
    """A public function, and arguments of its that are right; those that are given replace them."""

    function: Callable
    right: Callable

    def __call__(self, **given):
        return self.function(**(self.right() | given))


def applied(constructor, params=PARAMS, moments=None, **right):
    """A leaf transform made and called."""

    def run(params=params, moments=moments, **options):
        return constructor(**options)(params, moments)

    return Call(run, lambda: right)


def on_net(constructor, measured=True, **right):
    """A transform of a network's axes made and called."""

    def run(params=PARAMS, moments=None, **options):
        return constructor(**options)(params, moments)

    return Call(run, lambda: {"net": net(), "moments": moments() if measured else None, **right})


NORMED = {"mean": normal(8), "var": normal(8) ** 2 + 1, "scale": normal(8)} | PARAMS


def normed(params, x):
    """The same with a batch norm before the first activation."""
    hidden = x @ params["up"] + params["bias"]
    hidden = (hidden - params["mean"]) / jnp.sqrt(params["var"] + 1e-5) * params["scale"]
    return jax.nn.relu(jax.nn.relu(hidden) @ params["mid"]) @ params["down"]


@functools.cache
def normed_net():
    return jc.trace(normed, NORMED, X)


def on_normed(constructor, **right):
    """A transform that batch norms guide, made and called."""

    def run(params=NORMED, **options):
        return constructor(**options)(params)

    return Call(run, lambda: {"net": normed_net(), **right})


def several(function, *names):
    """A function of positional arguments, called by their names."""

    def run(**given):
        positional = [given.pop(name) for name in names if name in given]
        return function(*positional, **given)

    return run


def transform_of(step):
    return jc.rotate_and_prune(net(), 1 / 2)


FIT = {"optimizer": optax.sgd(0.1), "steps": 2, "batch_size": 4, "progress": False}
QUIET = {"progress": False}
W = normal(3, 2)


def loss():
    return jc.training.cross_entropy(linear)


def of_method(name, make, **right):
    """A method of an object that is made when it is needed."""

    def run(**given):
        return getattr(make(), name)(**given)

    return Call(run, lambda: right)


CALLS = {
    # the top
    "Calibration": Call(
        lambda **o: jc.calibrate(net(), PARAMS, jc.Calibration(**o), progress=False),
        lambda: {"batches": [X]},
    ),
    "MatrixAxes": Call(
        lambda ndim=2, **o: jc.MatrixAxes(**o).resolve(ndim), lambda: {"inputs": 0, "outputs": 1}
    ),
    "as_function": Call(jc.as_function, lambda: {"kernel": W}),
    "at": Call(
        lambda params=PARAMS, **o: jc.at(**o)(params),
        lambda: {"pattern": "up", "transform": jc.hashed(1 / 2)},
    ),
    "budget": Call(
        lambda params=PARAMS, **o: jc.at(jc.matrices, jc.factored(jc.budget(**o)))(params),
        lambda: {"total": 1 / 2},
    ),
    "bypass": Call(
        jc.transforms.bypass,
        lambda: {"net": net(), "params": PARAMS, "batches": [X], "leaves": "mid"},
    ),
    "calibrate": Call(
        jc.calibrate, lambda: {"net": net(), "params": PARAMS, "batches": [X], **QUIET}
    ),
    "chain": Call(lambda transforms: jc.chain(*transforms)(PARAMS), dict),
    "clustered": applied(jc.clustered, params=KERNEL, keep=0.9),
    "coarsen": on_net(jc.coarsen, factor=2),
    "compact_array": Call(jc.compact_array, dict),
    "compress": Call(
        jc.compress,
        lambda: {"apply": apply, "params": PARAMS, "batches": [X], "keep": 0.7, **QUIET},
    ),
    "factored": applied(jc.factored, params=KERNEL, keep=0.7),
    "fit": Call(jc.fit, lambda: {"loss": loss(), "params": W, "data": (X, Y), **FIT}),
    "fit_stream": Call(
        jc.fit_stream,
        lambda: {
            "loss": loss(),
            "params": W,
            "batch_at": lambda step: (X, Y),
            "optimizer": optax.sgd(0.1),
            "steps": 2,
            **QUIET,
        },
    ),
    "fold_batchnorm": on_normed(jc.fold_batchnorm),
    "hashed": applied(jc.hashed, params=KERNEL, keep=1 / 2),
    "initialize": Call(
        jc.initialize,
        lambda: {"key": jax.random.key(0), "transform": jc.hashed(1 / 2), "params": KERNEL},
    ),
    "load": Call(jc.load, dict),
    "load_recipe": Call(jc.load_recipe, dict),
    "matmul": Call(jc.matmul, lambda: {"x": X, "w": W}),
    "linearize": on_net(jc.linearize, batches=[X], keep=3 / 4, **QUIET),
    "merge": on_net(jc.merge, threshold=0.9),
    "merge_linear": on_net(jc.merge_linear, measured=False),
    "multigrid": Call(
        jc.multigrid,
        lambda: {
            "net": net(),
            "loss": jc.training.cross_entropy(net()),
            "params": PARAMS,
            "data": (X, Y),
            "optimizer": optax.sgd(0.1),
            "levels": ((2, 2), (1, 2)),
            "batch_size": 4,
            **QUIET,
        },
    ),
    "partition": Call(
        lambda params=KERNEL, **o: jc.partition(**o)(params),
        lambda: {
            "transforms": {"small": jc.hashed(1 / 2), "same": jc.identity()},
            "labels": {"kernel": "small", "bias": "same"},
        },
    ),
    "prune_batchnorm": on_normed(jc.prune_batchnorm, keep=1 / 2),
    "recalibrate": on_net(jc.recalibrate, batches=[X], **QUIET),
    "reconstruct": on_net(jc.reconstruct, batches=[X], **QUIET),
    "refine": on_net(jc.refine, measured=False, factor=2),
    "register": Call(lambda names, **o: jc.register(*names, **o), dict),
    "report": Call(
        several(jc.report, "before", "after", "net", "inputs"),
        lambda: {"before": KERNEL, "after": KERNEL},
    ),
    "rotate_and_prune": on_net(jc.rotate_and_prune, keep=1 / 2),
    "roughness": Call(jc.roughness, lambda: {"net": net(), "params": PARAMS}),
    "save": Call(jc.save, lambda: {"path": FILE, "params": KERNEL}),
    "save_recipe": Call(jc.save_recipe, lambda: {"path": FILE, "transform": jc.hashed(1 / 2)}),
    "second_moments": Call(jc.second_moments, dict),
    "select_rows": Call(
        lambda params=KERNEL, **o: jc.select_rows(**o)(params),
        lambda: {"pattern": "kernel", "rows": [0, 2]},
    ),
    "seriate": on_net(jc.seriate),
    "spline": applied(jc.spline, params=KERNEL, keep=1 / 2),
    "take": Call(jc.take, lambda: {"table": W, "rows": np.array([0, 1])}),
    "tie": Call(jc.tie, lambda: {"params": {"a": W, "b": W}, "ties": {"b": "a"}}),
    "toeplitz": applied(jc.toeplitz, params={"kernel": normal(8, 6)}, window=3, grid=8),
    "together": Call(lambda transforms: jc.together(*transforms)(PARAMS), dict),
    "trace": Call(
        several(jc.trace, "apply", "params", "inputs"),
        lambda: {"apply": apply, "params": PARAMS, "inputs": X},
    ),
    "vocabulary": applied(jc.vocabulary, params=KERNEL, keep=1 / 2),
    # objects that the functions above make, by their methods
    "Network": Call(
        several(lambda *args: net()(*args), "params", "inputs", "more"),
        lambda: {"params": PARAMS, "inputs": X},
    ),
    "Network.resized": of_method("resized", net),
    "Network.explain": Call(
        several(lambda *args: net().explain(*args), "params", "inputs", "more"),
        lambda: {"params": PARAMS},
    ),
    "Moments": Call(lambda add, **o: moments() + add, dict),
    "Moments[]": Call(lambda axis: moments()[axis], dict),
    "AxisMoments.groups": of_method("groups", lambda: moments()["up:1"]),
    "AxisMoments.plot": of_method("plot", lambda: moments()["up:1"]),
    "Transform": Call(
        lambda **o: jc.hashed(1 / 2)(**o), lambda: {"params": KERNEL, "moments": None}
    ),
    "LeafTransform.plan": Call(
        lambda keep=HALF, **o: jc.factored(keep).plan(**o), lambda: {"params": PARAMS}
    ),
    "RotateAndPrune.plan": Call(
        lambda keep=HALF, **o: jc.rotate_and_prune(net(), keep).plan(**o),
        lambda: {"params": PARAMS, "moments": moments()},
    ),
    "Compact @": Call(lambda x: x @ jc.hashed(1 / 2)(W), dict),
    "HashedArray.fit": Call(jc.arrays.HashedArray.fit, lambda: {"matrix": W, "size": 3}),
    "FactoredArray.fit": Call(jc.arrays.FactoredArray.fit, lambda: {"matrix": W, "rank": 1}),
    "SplineArray.fit": Call(jc.arrays.SplineArray.fit, lambda: {"matrix": W, "count": 1}),
    "ClusteredArray.fit": Call(
        jc.arrays.ClusteredArray.fit, lambda: {"matrix": W, "count": 2, "block": 1}
    ),
    "VocabularyArray.fit": Call(
        jc.arrays.VocabularyArray.fit, lambda: {"matrix": W, "atoms": np.eye(3)[:, :2]}
    ),
    "LookupArray.fit": Call(jc.arrays.LookupArray.fit, lambda: {"matrix": W, "entries": 1}),
    "ToeplitzArray.fit": Call(
        jc.arrays.ToeplitzArray.fit, lambda: {"matrix": W, "grid": (3,), "window": (2,)}
    ),
    "StaticArray": Call(jc.arrays.StaticArray, dict),
    # training
    "add_variation": Call(jc.training.add_variation, lambda: {"net": net(), "strength": 0.1}),
    "at_any_resolution": Call(
        lambda key=None, **o: jc.training.at_any_resolution(**o)(PARAMS, (X, Y), key),
        lambda: {"net": net(), "loss": jc.training.cross_entropy(net()), "key": jax.random.key(0)},
    ),
    "cross_entropy": Call(
        lambda x=X, y=Y, params=W, **o: jc.training.cross_entropy(**o)(params, (x, y), None),
        lambda: {"apply": linear},
    ),
    "curvature": Call(
        jc.training.curvature,
        lambda: {
            "loss": mean_square,
            "params": W,
            "data": (X, Y),
            "key": jax.random.key(0),
            **QUIET,
        },
    ),
    "distillation_loss": Call(
        lambda batch=(X, X @ W), **o: jc.training.distillation_loss(**o)(W, batch, None),
        lambda: {"apply": linear},
    ),
    "gradient_statistics": Call(
        jc.training.gradient_statistics,
        lambda: {"loss": mean_square, "params": W, "data": (X, Y), **QUIET},
    ),
    "predict": Call(jc.training.predict, lambda: {"apply": linear, "params": W, "x": X, **QUIET}),
    "variation": Call(jc.training.variation, lambda: {"net": net(), "params": PARAMS}),
    "LearningCurve.plot": Call(lambda: jc.training.LearningCurve(*np.zeros((3, 0))).plot(), dict),
    # analysis
    "cost_of_sharing": Call(
        jc.analysis.cost_of_sharing, lambda: {"kernel": W, "forms": {"a": jc.hashed(1 / 2)}}
    ),
    "effective_rank": Call(jc.analysis.effective_rank, dict),
    "frontier": Call(
        jc.analysis.frontier,
        lambda: {
            "recipes": {"a": jc.hashed},
            "params": KERNEL,
            "evaluate": lambda params: 0.0,
            "keeps": [1 / 2],
            **QUIET,
        },
    ),
    "mean_frequency": Call(jc.analysis.mean_frequency, lambda: {"atoms": np.eye(4), "grid": (4,)}),
    "overlap": Call(jc.analysis.overlap, lambda: {"atoms": np.eye(4), "others": np.eye(4)}),
    "relative_variance": Call(
        jc.analysis.relative_variance,
        lambda: {"form": lambda seed: jc.hashed(1 / 2), "x": X[0], "outputs": 2, "draws": 2},
    ),
    "sample_efficiency": Call(
        jc.analysis.sample_efficiency,
        lambda: {"train": lambda count, seed: (0.0, 1.0), "sizes": (2, 3), "seeds": 1},
    ),
    "sketches": Call(
        jc.analysis.sketches,
        lambda: {"array": jc.hashed(1 / 2)(W), "x": np.ones(3), "y": np.ones(3)},
    ),
    "weight_functions": Call(
        jc.analysis.weight_functions, lambda: {"net": net(), "params": PARAMS}
    ),
    "WeightFunction.at": of_method("at", lambda: jc.analysis.WeightFunction("w", W)),
    "WeightFunction.error": of_method("error", lambda: jc.analysis.WeightFunction("w", W)),
    # classifiers
    "accuracy_metric": Call(jc.classifiers.accuracy_metric, dict),
    "active_set": Call(
        jc.classifiers.active_set,
        lambda: {"net": apply, "params": PARAMS, "data": (X, Y), "tolerance": 0.2, **QUIET},
    ),
    "explain_errors": Call(
        jc.classifiers.explain_errors,
        lambda: {"classify": positive, "train": (X, Y), "test": (X, Y), "k": 2, **QUIET},
    ),
    "ErrorReport.of": of_method("of", errors),
    "fit_exactly": Call(
        jc.classifiers.fit_exactly,
        lambda: {
            "apply": linear,
            "params": normal(2, 2),
            "realized": realized(),
            "steps": 1,
            "rounds": 0,
            **QUIET,
        },
    ),
    "match_distribution": Call(
        jc.classifiers.match_distribution,
        lambda: {
            "realized": realized_along(),
            "classify": positive,
            "features": features,
            "optimizer": optax.sgd(0.1),
            "steps": 1,
            **QUIET,
        },
    ),
    "rank_compactions": Call(
        jc.classifiers.rank_compactions,
        lambda: {"candidates": {"same": PARAMS}, "active": active(), "evaluations": 1.0, **QUIET},
    ),
    "realize": Call(
        jc.classifiers.realize,
        lambda: {"classify": positive, "domain": ([-1, -1], [1, 1]), "jnd": 1 / 8, **QUIET},
    ),
    "realize_along": Call(
        jc.classifiers.realize_along,
        lambda: {"classify": positive, "points": X, "jnd": 0.1, "neighbours": 3, **QUIET},
    ),
    "RealizedAlong.coarsened": Call(
        lambda **o: realized_along().coarsened(**o),
        lambda: {"classify": positive, "per_class": 3},
    ),
    "MeshClassifier": Call(lambda points: realized().mesh(points), dict),
    "teaching_set": Call(
        jc.classifiers.teaching_set,
        lambda: {
            "learn": lambda x, targets, seed: lambda x: x[:, :2],
            "x": X,
            "targets": np.eye(2)[Y],
            "size": 4,
            "rounds": 2,
            **QUIET,
        },
    ),
    # documents
    "Settings": Call(jc.documents.Settings, dict),
    "Encoder.embed": of_method("embed", encoder, progress=False),
    "Encoder": Call(
        lambda **o: dataclasses.replace(encoder(), **o).embed(["a"], progress=False), dict
    ),
    "compress_for": Call(
        jc.documents.compress_for,
        lambda: {
            "large": encoder(),
            "documents": [],
            "out": FILE,
            "settings": jc.documents.Settings(),
            **QUIET,
        },
    ),
    "write_hugging_face": Call(
        jc.documents.write_hugging_face, lambda: {"folder": "/nowhere/at/all", "encoder": None}
    ),
    "read_encoder": Call(jc.documents.read_encoder, dict),
    "read_index": Call(jc.documents.read_index, dict),
    "search": Call(jc.documents.search, lambda: {"question": np.ones(3), "passages": X}),
    # models
    "BertConfig": Call(
        BertConfig,
        lambda: {
            "vocab_size": 4,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
    ),
    "load_bert": Call(load_bert, dict),
    "without_layers": Call(
        without_layers, lambda: {"config": encoder().config, "params": encoder().params}
    ),
    # plots
    "plots.atoms": Call(jc.plots.atoms, lambda: {"features": np.eye(4), "grid": (2, 2)}),
    "plots.decision_mesh": Call(jc.plots.decision_mesh, dict),
    "plots.error_images": Call(
        jc.plots.error_images,
        lambda: {"report": errors(), "train": (X, Y), "test": (X, Y), "image": (1, 3)},
    ),
    "plots.errors_by_cause": Call(
        jc.plots.errors_by_cause,
        lambda: {"report": errors(), "train": (X, Y), "test": (X, Y)},
    ),
    "plots.hidden_axes": Call(jc.plots.hidden_axes, dict),
    "plots.margins": Call(jc.plots.margins, dict),
    "plots.realized_along": Call(jc.plots.realized_along, dict),
    "plots.realized_images": Call(
        jc.plots.realized_images, lambda: {"realized": realized_along(), "image": (1, 3)}
    ),
    "plots.sample_efficiency": Call(jc.plots.sample_efficiency, dict),
    "plots.sketches": Call(jc.plots.sketches, dict),
    "plots.weights_as_function": Call(
        jc.plots.weights_as_function,
        lambda: {"function": jc.analysis.WeightFunction("w", W), "cells": (1, 2)},
    ),
}
