"""Training of a compressed encoder on the large one's hidden states, embeddings and similarities.

The large encoder runs on the texts once, and its hidden states are stored in a file. Training
resumes after an interruption. A step costs the small encoder's gradient for about 1,000 tokens.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxcompress.arrays.base import materialize
from jaxcompress.checkpoint import load, save, write_atomically
from jaxcompress.documents.batches import Batch, States, buckets, hidden_states
from jaxcompress.documents.distillation import batches_with, distillation_loss
from jaxcompress.documents.encoder import Encoder, network
from jaxcompress.models.bert import BertConfig
from jaxcompress.training.losses import Loss
from jaxcompress.training.state import FitState, initial_state
from jaxcompress.training.stream import fit_stream

STEP = 1_024
"""Tokens of a training step."""

BANK = 4_096
"""The largest number of passages to which similarities are computed."""


@dataclasses.dataclass(frozen=True)
class TeacherOutputs:
    """The large encoder's outputs for the training texts.

    Attributes:
        texts: the texts.
        embeddings: their embeddings.
        states: their hidden states.
    """

    texts: list[str]
    embeddings: Float[np.ndarray, "texts d"]
    states: States


def teacher_outputs(
    large: Encoder, texts: Sequence[str], file: Path, *, progress: bool
) -> TeacherOutputs:
    """The large encoder's hidden states of texts, stored in a file, and their embeddings."""
    ids, longest = large.encode(texts), large.config.max_position_embeddings
    net = network(large.config, hidden=True)
    states = hidden_states(net, large.params, ids, file, longest=longest, progress=progress)
    pooling = partial(jax.jit(partial(embedded, large.config)), large.params)
    embeddings = pooled(pooling, states, ids, longest, large.config.embedding_size)
    return TeacherOutputs(list(texts), embeddings, states)


def embedded(
    config: BertConfig,
    params: PyTree,
    h: Float[Array, "rows length hidden"],
    mask: Bool[Array, "rows length"],
) -> Float[Array, "rows d"]:
    """Embeddings from hidden states, by the encoder's head."""
    head: PyTree = materialize(params.get("head", {}))
    return jnp.asarray(config.head.apply({"params": head}, h, mask))


def pooled(
    pooling: Callable[..., jax.Array],
    states: States,
    ids: Sequence[Int[np.ndarray, " tokens"]],
    longest: int,
    width: int,
) -> Float[np.ndarray, "texts d"]:
    """Embeddings of a given width from stored hidden states."""
    embeddings = np.zeros((len(ids), width), np.float32)
    for batch in buckets(ids, longest=longest):
        real = batch.index >= 0
        embeddings[batch.index[real]] = np.asarray(
            pooling(states.of(batch).astype(np.float32), batch.mask)
        )[real]
    return embeddings


def distill(
    student: Encoder,
    teacher: TeacherOutputs,
    folder: Path,
    *,
    minutes: float,
    rate: float,
    seed: int,
    progress: bool,
    description: str,
) -> FitState:
    """Train on the large encoder's outputs for some minutes, with checkpoints in a folder."""
    ids, starts = student.encode(teacher.texts), teacher.states.starts
    if [len(text) for text in ids] != np.diff(starts).tolist():
        raise ValueError(
            "distill: the small encoder's tokenizer must give the large one's tokens: "
            "trim the vocabulary on the same texts"
        )
    bank = teacher.embeddings[np.random.default_rng(seed).permutation(len(ids))[:BANK]]
    batches = buckets(ids, tokens=STEP, longest=student.config.max_position_embeddings, seed=seed)
    net = network(student.config, hidden=True)
    loss = distillation_loss(net, bank, pool=partial(embedded, student.config))
    stream = batches_with(batches, teacher.embeddings, teacher.states)
    folder.mkdir(exist_ok=True)
    steps_file, state_file = folder / "steps.json", folder / "state.safetensors"
    if not steps_file.exists():
        # fixed once, so that a resumed run has the schedule of the first
        seconds = seconds_per_step(loss, student.params, batches, stream)
        steps = max(round(60 * minutes / seconds), 1)
        write_atomically(steps_file, json.dumps(steps).encode())
    steps = json.loads(steps_file.read_text())
    options = {"steps": steps, "seed": seed, "progress": progress, "description": description}
    cycle = optax.cosine_onecycle_schedule(steps, rate, pct_start=0.05)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(cycle))
    state = None
    if state_file.exists():
        state = load(state_file, like=initial_state(student.params, optimizer))
    callback = partial(save, state_file)
    run = partial(fit_stream, loss, student.params, stream, optimizer=optimizer, **options)
    return run(state=state, callback=callback)


def seconds_per_step(
    loss: Loss,
    params: PyTree,
    batches: Sequence[Batch],
    stream: Callable[[int], tuple[np.ndarray, ...]],
) -> float:
    """Median seconds of a training step at the most common batch shape, without compilation."""
    shapes = [batch.ids.shape for batch in batches]
    common = max(set(shapes), key=shapes.count)
    batch = stream(0)
    for step in range(1, len(batches)):
        if batch[0].shape == common:
            break
        batch = stream(step)
    run = jax.jit(jax.value_and_grad(loss))
    seconds = []
    for _ in range(4):  # the first one compiles
        start = time.perf_counter()
        jax.block_until_ready(run(params, batch, jax.random.key(0)))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))
