"""A small encoder is trained on the large one's hidden states, embeddings and similarities.

The large encoder reads the texts once; what it says is kept in a file. Learning goes on where it
was interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxcompress.checkpoint import load, save
from jaxcompress.documents.batches import Batch, States, buckets, hidden_states
from jaxcompress.documents.distillation import batches_with, distillation_loss
from jaxcompress.documents.encoder import Encoder, network
from jaxcompress.models.bert import pool
from jaxcompress.training.state import FitState, initial_state
from jaxcompress.training.stream import fit_stream

LEARNED = 2_000_000
"""The most tokens that are learned from: their hidden states are kept in a file."""
STEP = 1_024
"""Tokens of a step of learning."""

BANK = 4_096
"""The most passages that similarities are learned against."""


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What the large encoder says of the texts that are learned from.

    Attributes:
        texts: the texts.
        embeddings: (texts, d).
        states: their hidden states.
    """

    texts: list[str]
    embeddings: np.ndarray
    states: States


def lessons(large: Encoder, texts: Sequence[str], file: Path, *, progress: bool) -> Lessons:
    """The large encoder's hidden states of texts, kept in a file, and their embeddings."""
    ids, longest = large.encode(texts), large.config.max_position_embeddings
    net = network(dataclasses.replace(large.config, pooling="none"))
    states = hidden_states(net, large.params, ids, file, longest=longest, progress=progress)
    return Lessons(list(texts), pooled(partial(pool, large.config), states, ids, longest), states)


def pooled(pooling: Any, states: States, ids: Sequence[np.ndarray], longest: int) -> np.ndarray:
    """(texts, d): embeddings from hidden states."""
    found = np.zeros((len(ids), states.values.shape[-1]), np.float32)
    for batch in buckets(ids, longest=longest):
        real = batch.index >= 0
        found[batch.index[real]] = np.asarray(
            pooling(states.of(batch).astype(np.float32), batch.mask)
        )[real]
    return found


def learn(
    student: Encoder,
    given: Lessons,
    place: Path,
    *,
    minutes: float,
    rate: float,
    seed: int,
    progress: bool,
    description: str,
) -> FitState:
    """Learn from the large encoder, for some minutes; what is done is kept in files of a folder."""
    ids, starts = student.encode(given.texts), given.states.starts
    if [len(each) for each in ids] != np.diff(starts).tolist():
        raise ValueError(
            "learn: the small tokenizer cuts the texts in another way than the large one"
        )
    bank = given.embeddings[np.random.default_rng(seed).permutation(len(ids))[:BANK]]
    batches = buckets(ids, tokens=STEP, longest=student.config.max_position_embeddings, seed=seed)
    net = network(dataclasses.replace(student.config, pooling="none"))
    loss = distillation_loss(net, bank, pool=partial(pool, student.config))
    stream = batches_with(batches, given.embeddings, given.states)
    place.mkdir(exist_ok=True)
    steps_file, state_file = place / "steps.json", place / "state.safetensors"
    if not steps_file.exists():
        seconds = seconds_a_step(loss, student.params, batches, stream)
        steps_file.write_text(json.dumps(max(round(60 * minutes / seconds), 1)))
    steps = json.loads(steps_file.read_text())
    cycle = optax.cosine_onecycle_schedule(steps, rate, pct_start=0.05)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(cycle))
    state = (
        load(state_file, like=initial_state(student.params, optimizer))
        if state_file.exists()
        else None
    )

    def keep_state(state):
        return save(state_file, state)

    return fit_stream(
        loss, student.params, stream, optimizer=optimizer, steps=steps, seed=seed, state=state, callback=keep_state,
        progress=progress, description=description,
    )  # fmt: skip


def seconds_a_step(loss: Any, params: Any, batches: Sequence[Batch], stream: Any) -> float:
    """Seconds of a step without compilation, at the most common shape; all cost about the same."""
    shapes = [batch.ids.shape for batch in batches]
    common = max(set(shapes), key=shapes.count)
    batch = next(
        found for number in range(len(batches)) if (found := stream(number))[0].shape == common
    )
    run = jax.jit(jax.value_and_grad(loss))
    taken = []
    for _ in range(4):  # the first compiles
        start = time.perf_counter()
        jax.block_until_ready(run(params, batch, jax.random.key(0)))
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))
