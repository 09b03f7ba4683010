"""A linear layer that all layers may read: when training from scratch, and to replace layers.

From scratch: perceptrons of equal stored numbers, plain, with a linear projection of the inputs to
a few numbers that every later layer reads (`MLP(linear=k)`), and, as a control, with the inputs
themselves read by every layer. Three hidden layers ("sets"), eight ("deep") and small tables of
scikit-learn ("tables"). One loop and number of steps for all; the rate of each column is the best
of two on validation data, one seed; finals are 3 seeds. Beside the errors: the share of hidden
units that are linear on all test data (always on) or dead, the norm of the first kernel's gradient
over the last one's before training, and the error when the shared projection is set to zero.

As a compaction: layers of MiniLM are dropped, or replaced by one linear map of each token that is
fitted on documents alone; questions are those of `faq.py`, the test half of `corpus.py`.

    python tests/benchmarks/linear_bypass.py --part sets --validate  # the rates
    python tests/benchmarks/linear_bypass.py --part sets  # likewise deep, tables
    python tests/benchmarks/linear_bypass.py --part sets --sets BASIC ROT --seeds 1
    python tests/benchmarks/linear_bypass.py --part minilm

Finished cells stay in the results file (`--out`); only what is missing there is trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import faq
import jax
import jax.numpy as jnp
import numpy as np
import optax
import variations
from cells import finished, read
from corpus import known
from flax import linen as nn
from hashednets import data_of, partly_hidden
from sklearn import datasets
from sklearn.model_selection import train_test_split

import jaxcompress as jc
from jaxcompress.cli import installed_model
from jaxcompress.documents import pruning as cuts
from jaxcompress.documents.batches import buckets
from jaxcompress.documents.encoder import Encoder, read_encoder
from jaxcompress.documents.retrieval import compare, fidelity, ranks
from jaxcompress.models.bert import bypass, without_layers
from jaxcompress.models.mlp import MLP

RATES = (3e-3, 1e-2)
COLUMNS = ("plain", "linear", "inputs")
DROPOUT = 0.1
"""Of the pixels, for every column."""
TABLES = {
    "digits": datasets.load_digits,
    "breast cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A block of the tables.

    Attributes:
        sets: the data.
        choosing: those whose validation data choose the rate.
        hidden: layers.
        numbers: that a network stores at most.
        linear: the width of the shared projection.
        steps: of training.
        batch: examples a step.
    """

    sets: tuple[str, ...]
    choosing: tuple[str, ...]
    hidden: int
    numbers: int
    linear: int
    steps: int
    batch: int


PARTS = {
    "sets": Part(tuple(variations.SETS), ("BASIC",), 3, 50_000, 32, 6_000, 100),
    "deep": Part(("BASIC", "ROT", "BG-IMG"), ("BASIC",), 8, 50_000, 32, 6_000, 100),
    "tables": Part(tuple(TABLES), tuple(TABLES), 3, 3_000, 8, 1_500, 32),
}


# --- the networks --------------------------------------------------------------------------------


class WithInputs(nn.Module):
    """A perceptron whose every layer behind the first reads the inputs, too.

    Attributes:
        widths: as of `MLP`.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.Dense(self.widths[0])(x)
        for width in self.widths[1:]:
            h = nn.Dense(width)(jnp.concatenate([nn.relu(h), x], axis=-1))
        return h


def built(column: str, part: Part, width: int, classes: int) -> nn.Module:
    widths = (*[width] * part.hidden, classes)
    if column == "inputs":
        return WithInputs(widths)
    return MLP(widths, linear=part.linear if column == "linear" else 0)


@cache
def model_of(column: str, part: Part, features: int, classes: int) -> nn.Module:
    """The widest network of a column within the budget."""

    def numbers(width: int) -> int:
        module = built(column, part, width, classes)
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, features)))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    width = 1
    while numbers(width + 1) <= part.numbers:
        width += 1
    return built(column, part, width, classes)


def fresh(model: nn.Module, features: int, seed: int) -> Any:
    """Parameters by He's initialisation; the projection, which no rectifier follows, by LeCun's."""
    params = model.init(jax.random.key(seed), jnp.zeros((1, features)))["params"]

    def scaled(path: Any, leaf: jax.Array) -> jax.Array:
        kernel = leaf.ndim == 2 and path[0].key != "linear"
        return leaf * 2**0.5 if kernel else leaf

    return jax.tree_util.tree_map_with_path(scaled, params)


@cache  # one compiled loop for all seeds of a column
def optimizer_of(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_onecycle_schedule(steps, rate, pct_start=0.1))


@cache
def loss_of(model: nn.Module, pixels: bool) -> Any:
    plain = jc.training.cross_entropy(lambda params, x: model.apply({"params": params}, x))

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        x, labels = batch
        return plain(params, (partly_hidden(x, DROPOUT, key) if pixels else x, labels), key)

    return loss


# --- one run -------------------------------------------------------------------------------------


def table_of(name: str, seed: int, *, validate: bool) -> tuple[Any, Any]:
    """A table's training and judging rows, with inputs in units of the training rows' deviation."""
    x, y = TABLES[name](return_X_y=True)
    rows = train_test_split(x, y, test_size=0.25, random_state=seed, stratify=y)
    if validate:
        rows = train_test_split(
            rows[0], rows[2], test_size=0.25, random_state=seed, stratify=rows[2]
        )
    mean, scale = rows[0].mean(0), np.maximum(rows[0].std(0), 1e-6)
    inputs = [((part - mean) / scale).astype(np.float32) for part in rows[:2]]
    return (inputs[0], rows[2].astype(np.int32)), (inputs[1], rows[3].astype(np.int32))


def data(key: dict[str, Any]) -> tuple[Any, Any]:
    validate = key["split"] == "validation"
    if key["set"] in TABLES:
        return table_of(key["set"], key["seed"], validate=validate)
    train, judge = data_of(key["set"], validate=validate)
    return (train.pixels, train.labels), (judge.pixels, judge.labels)


def unit(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32) / 255 if x.dtype == np.uint8 else jnp.asarray(x)


def error(model: nn.Module, params: Any, judge: Any) -> float:
    """In percent."""
    apply = jax.jit(lambda p, x: model.apply({"params": p}, x).argmax(-1))
    guesses = [apply(params, unit(some)) for some in np.array_split(judge[0], 10)]
    return round(100 * float(np.mean(np.concatenate(guesses) != judge[1])), 4)


def units(model: nn.Module, params: Any, x: np.ndarray) -> dict[str, float]:
    """The share of hidden units that are always on, and that never are, on given inputs."""

    def dense(module: nn.Module, method: str) -> bool:
        return (module.name or "").startswith("Dense")

    found = model.apply({"params": params}, unit(x), capture_intermediates=dense)[1]
    before = [found["intermediates"][f"Dense_{i}"]["__call__"][0] for i in range(len(model.widths))]
    on = np.concatenate([np.asarray((z > 0).mean(0)) for z in before[:-1]])
    return {"linear": round(float((on == 1).mean()), 4), "dead": round(float((on == 0).mean()), 4)}


def steepness(model: nn.Module, params: Any, batch: Any, *, pixels: bool) -> float:
    """The norm of the first kernel's gradient over that of the last."""
    loss = loss_of(model, pixels)
    gradient = jax.grad(lambda p: loss(p, batch, jax.random.key(0)))(params)
    norms = [
        float(jnp.linalg.norm(gradient[f"Dense_{i}"]["kernel"])) for i in (0, len(model.widths) - 1)
    ]
    return round(norms[0] / max(norms[1], 1e-12), 5)


def train(key: dict[str, Any]) -> dict[str, Any]:
    """Train one network from scratch."""
    start, part = time.perf_counter(), PARTS[key["part"]]
    given, judge = data(key)
    pixels, features = given[0].dtype == np.uint8, given[0].shape[1]
    classes = int(given[1].max()) + 1
    model = model_of(key["column"], part, features, classes)
    params = fresh(model, features, key["seed"])
    first = jax.tree.map(lambda rows: jnp.asarray(rows[:1_000]), given)
    steep = steepness(model, params, first, pixels=pixels)
    params = jc.fit(
        loss_of(model, pixels),
        params,
        given,
        optimizer=optimizer_of(key["rate"], part.steps),
        steps=part.steps,
        batch_size=part.batch,
        seed=key["seed"],
        progress=False,
    ).params
    row = {
        "error": error(model, params, judge),
        "train error": error(model, params, jax.tree.map(lambda rows: rows[:10_000], given)),
        "width": model.widths[0],
        "stored": int(jc.stored_numbers(params)),
        "gradients": steep,
        **units(model, params, judge[0][:5_000]),
    }
    if key["column"] == "linear":
        without = {**params, "linear": jax.tree.map(jnp.zeros_like, params["linear"])}
        row["without"] = error(model, without, judge)
    return row | {"seconds": round(time.perf_counter() - start, 1)}


# --- MiniLM --------------------------------------------------------------------------------------

LENGTH, TOKENS = 128, 20_000
JUDGED = 30
"""Documents by which the layers are chosen that go."""


@cache
def encoder() -> Encoder:
    return read_encoder(installed_model(), LENGTH)


@cache
def texts() -> list[str]:
    """Answers, as documents, with so many tokens in all."""
    documents = faq.documents()
    return [documents[index] for index in cuts.sample_texts(encoder(), documents, TOKENS, 0)]


@cache
def before() -> tuple[np.ndarray, np.ndarray]:
    """MiniLM's embeddings of the questions and of the answers."""
    pairs = faq.pairs()
    return (
        known("questions", encoder(), [pair.question for pair in pairs]),
        known("answers", encoder(), [pair.answer for pair in pairs]),
    )


@cache
def states() -> list[np.ndarray]:
    return cuts.token_states(encoder(), texts())


def without(large: Encoder, layer: int, how: str, tokens: list[np.ndarray]) -> Encoder:
    """An encoder with a layer dropped, or replaced by a linear map of the states of tokens."""
    change = (
        bypass(large.config, large.params, layer, *tokens[layer : layer + 2])
        if how == "linear"
        else without_layers(large.config, large.params, [layer])
    )
    return large.replace(config=change[0], params=change[1])


def smaller(key: dict[str, Any]) -> Encoder:
    """The encoder without a given layer, or without so many that some documents miss least."""
    small, how = encoder(), key["how"]
    if key["layer"] is not None:
        return without(small, key["layer"], how, states() if how == "linear" else [])
    judged = texts()[:JUDGED]
    known = small.embed(judged, progress=False)
    for turn in range(key["count"]):
        tokens = [] if how == "drop" else cuts.token_states(small, texts()) if turn else states()
        trials = [
            without(small, layer, how, tokens) for layer in cuts.nonlinear_layers(small.config)
        ]
        scores = [fidelity(known, trial.embed(judged, progress=False)) for trial in trials]
        small = trials[int(np.argmax(scores))]
    return small


def replace(key: dict[str, Any]) -> dict[str, Any]:
    """One cell of MiniLM with layers dropped or replaced."""
    start = time.perf_counter()
    row = asked(smaller(key), both=key["layer"] is None and key["how"] == "linear")
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def asked(small: Encoder, *, both: bool = True) -> dict[str, Any]:
    """What an encoder keeps of MiniLM's reciprocal ranks, on the test half of the questions.

    With answers embedded by MiniLM, and, if `both`, also by the small encoder.
    """
    pairs, theirs = faq.pairs(), before()
    ours = [small.embed([pair.question for pair in pairs], progress=False)]
    if both:
        ours.append(small.embed([pair.answer for pair in pairs], progress=False))
    row: dict[str, Any] = {
        "linear": list(small.config.linear_layers),
        "layers": small.config.num_hidden_layers,
        "share": round(jc.stored_numbers(small.params) / jc.stored_numbers(encoder().params), 4),
        "fidelity": [round(fidelity(*pair), 4) for pair in zip(theirs, ours, strict=False)],
    }
    right, test = np.arange(len(pairs)), faq.halves(pairs)[1]
    large = ranks(*theirs, right)[test]
    sides = {"questions": theirs[1]} | ({"both": ours[1]} if both else {})
    for side, answers in sides.items():
        found = compare(large, ranks(ours[0], answers, right)[test])
        row[side] = {
            "mrr_kept": np.round(found.mrr_kept, 4).tolist(),
            "recall_kept": np.round(found.recall_kept, 4).tolist(),
            "lost": found.lost,
            "won": found.won,
        }
    return row


def replacements(seeds: int) -> Iterator[dict[str, Any]]:
    for layer, how in itertools.product(range(6), ("drop", "linear")):
        yield {"part": "minilm", "how": how, "layer": layer, "count": 1}
    for count, how in itertools.product((1, 2), ("drop", "linear")):
        yield {"part": "minilm", "how": how, "layer": None, "count": count}


# --- linear units against a selection ------------------------------------------------------------

CUTS = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
METHODS = ("select", "linearize")


@cache
def trained(seed: int) -> tuple[nn.Module, Any, Any]:
    """A perceptron of MNIST, and what judges it."""
    given, judge = data({"set": "MNIST", "split": "test"})
    model = MLP((500, 300, 10))
    params = jc.fit(
        loss_of(model, True),
        fresh(model, 784, seed),
        given,
        optimizer=optimizer_of(3e-3, 6_000),
        steps=6_000,
        batch_size=100,
        seed=seed,
        progress=False,
    ).params
    return model, params, judge


def cut_units(key: dict[str, Any]) -> dict[str, Any]:
    """Test error of a perceptron with a share of its units, without any training after."""
    start = time.perf_counter()
    model, params, judge = trained(key["seed"])
    train = data({"set": "MNIST", "split": "test"})[0]
    net = jc.trace(lambda p, x: model.apply({"params": p}, x), params, jnp.zeros((2, 784)))
    batches = [unit(train[0][place : place + 1_000]) for place in range(0, 10_000, 1_000)]
    moments = jc.calibrate(net, params, batches, progress=False)
    cut = (
        jc.rotate_and_prune(net, key["keep"])
        if key["method"] == "select"
        else jc.linearize(net, batches, key["keep"], progress=False)
    )
    row = {}
    for name, recipe in {
        "error": cut,
        "reconstructed": jc.chain(cut, jc.reconstruct(net, batches, progress=False)),
    }.items():
        small = recipe(params, moments)
        guesses = [net(small, unit(some)).argmax(-1) for some in np.array_split(judge[0], 10)]
        row[name] = round(100 * float(np.mean(np.concatenate(guesses) != judge[1])), 4)
    whole = error(model, params, judge)
    return row | {"whole": whole, "seconds": round(time.perf_counter() - start, 1)}


def cut_neurons(key: dict[str, Any]) -> dict[str, Any]:
    """What MiniLM keeps with a share of the neurons of every layer."""
    start, large, axes = time.perf_counter(), encoder(), "layer_*/up/kernel"
    inputs = [b.inputs for b in buckets(large.encode(texts()), longest=LENGTH)]
    batches = jc.Calibration(inputs, mask=lambda ids, mask: mask)
    moments = jc.calibrate(large.net, large.params, batches, progress=False)
    cut = (
        jc.rotate_and_prune(large.net, key["keep"], axes=axes)
        if key["method"] == "select"
        else jc.linearize(large.net, batches, key["keep"], axes=axes, progress=False)
    )
    row = asked(large.replace(params=cut(large.params, moments)))
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def cuts_of(part: str, seeds: int) -> Iterator[dict[str, Any]]:
    shares = CUTS if part == "units" else CUTS[:3]
    for seed in range(seeds if part == "units" else 1):
        for keep, method in itertools.product(shares, METHODS):
            yield {"part": part, "keep": keep, "method": method, "seed": seed}


# --- the tables ----------------------------------------------------------------------------------


def rate_of(results: list[dict[str, Any]], name: str, column: str) -> float:
    """The rate with the least mean logarithm of the validation errors."""
    mine = {"part": name, "column": column, "split": "validation"}
    rows = [row for row in results if mine.items() <= row.items()]
    if len(rows) < len(RATES) * len(PARTS[name].choosing):
        raise SystemExit(f"{name}, {column}: run with --validate first")

    def score(rate: float) -> float:
        # an error may be zero on a small table
        return float(np.mean([math.log(r["error"] + 0.1) for r in rows if r["rate"] == rate]))

    return min(RATES, key=score)


def cells(args: argparse.Namespace, results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    part = PARTS[args.part]
    names = args.sets or (part.choosing if args.validate else part.sets)
    for seed, name, column in itertools.product(range(args.seeds), names, COLUMNS):
        rates = RATES if args.validate else (rate_of(results, args.part, column),)
        for rate in rates:
            split = "validation" if args.validate else "test"
            yield {
                "part": args.part,
                "set": name,
                "column": column,
                "split": split,
                "rate": rate,
                "seed": seed,
            }


def spread(values: list[float], digits: int = 2) -> str:
    text = f"{np.mean(values):.{digits}f}"
    return text + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def complete(
    rows: list[dict[str, Any]], part: str
) -> Iterator[tuple[str, dict[str, list[dict[str, Any]]]]]:
    """The sets of which all columns are finished, with the rows of each column."""
    rows = [row for row in rows if row["part"] == part and row.get("split") == "test"]
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = {c: [r for r in rows if (r["set"], r["column"]) == (name, c)] for c in COLUMNS}
        if all(mine.values()):
            yield name, mine


def table(rows: list[dict[str, Any]], part: str) -> str:
    """Test errors by set and column, and those without the projection."""
    heads = ["set", "seeds", *COLUMNS, "linear, projection set to zero"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, mine in complete(rows, part):
        line = [name, str(min(map(len, mine.values())))]
        line += [spread([row["error"] for row in mine[c]]) for c in COLUMNS]
        line.append(spread([row["without"] for row in mine["linear"]], 1))
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def why(rows: list[dict[str, Any]], part: str) -> str:
    """Widths, always-on units and gradients by set and column."""
    heads = ["set", *(f"width, {c}" for c in COLUMNS), *(f"always on, {c}, %" for c in COLUMNS)]
    heads += [f"first / last gradient, {c}" for c in COLUMNS]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, mine in complete(rows, part):
        line = [name, *(str(mine[c][0]["width"]) for c in COLUMNS)]
        line += [spread([100 * row["linear"] for row in mine[c]], 1) for c in COLUMNS]
        line += [f"{np.mean([row['gradients'] for row in mine[c]]):.2g}" for c in COLUMNS]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def what(row: dict[str, Any]) -> tuple[str, str]:
    """Which layers are gone, or how many neurons stay, and how."""
    if row["part"] == "neurons":
        return f"1/{round(1 / row['keep'])} of the neurons", row["method"]
    layer = "best " + str(row["count"]) if row["layer"] is None else f"layer {row['layer']}"
    return layer, row["how"]


def minilm_table(rows: list[dict[str, Any]]) -> str:
    """Reciprocal ranks kept by MiniLM with layers dropped or replaced."""
    rows = [row for row in rows if row["part"] in ("minilm", "neurons")]
    heads = ["what", "how", "of all numbers", "MRR kept, questions' side"]
    heads += ["MRR kept, both sides", "lost / won", "fidelity q / d"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        line = [*what(row), f"{row['share']:.3f}"]
        for side in ("questions", "both"):
            kept = "{:.1%} ({:.1%} to {:.1%})".format(*row[side]["mrr_kept"]) if side in row else ""
            line.append(kept)
        line.append(f"{row['questions']['lost']} / {row['questions']['won']}")
        line.append(" / ".join(f"{value:.3f}" for value in row["fidelity"]))
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def units_table(rows: list[dict[str, Any]]) -> str:
    """Test errors of a perceptron with a share of its units."""
    rows = [row for row in rows if row["part"] == "units"]
    names = [f"{method}{more}" for more in ("", ", reconstructed") for method in METHODS]
    lines = [f"| units kept | seeds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for keep in CUTS:
        mine = {m: [r for r in rows if (r["keep"], r["method"]) == (keep, m)] for m in METHODS}
        if not all(mine.values()):
            continue
        line = [f"1/{round(1 / keep)}", str(len(mine["select"]))]
        for figure in ("error", "reconstructed"):
            line += [spread([row[figure] for row in mine[method]]) for method in METHODS]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


OTHERS = {
    "minilm": (replacements, replace),
    "neurons": (partial(cuts_of, "neurons"), cut_neurons),
    "units": (partial(cuts_of, "units"), cut_units),
}
"""From a part to its keys, for so many seeds, and what measures one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", choices=(*PARTS, *OTHERS), default="sets")
    parser.add_argument("--sets", nargs="+", metavar="SET")
    parser.add_argument("--seeds", type=int, help="runs of each cell (3; 1 with --validate)")
    parser.add_argument("--validate", action="store_true", help="train at each rate")
    parser.add_argument("--only-print", action="store_true", help="the table of finished cells")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    args.seeds = args.seeds or (1 if args.validate else 3)
    results = read(args.out)
    if not args.only_print and args.part in OTHERS:
        keys, measure = OTHERS[args.part]
        finished(args.out, results, list(keys(args.seeds)), measure)
    elif not args.only_print:
        finished(args.out, results, list(cells(args, results)), train)
    shown = {"units": units_table, "minilm": minilm_table, "neurons": minilm_table}
    print(shown.get(args.part, partial(table, part=args.part))(results))
    if args.part in PARTS:
        print(why(results, args.part))


if __name__ == "__main__":
    main()
