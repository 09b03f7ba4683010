"""A small encoder learns to say what a large one says, from texts alone: no labels.

With student s and teacher t of one text, and the teacher's embeddings b of many passages, the loss
is `|s - t|^2 / 2 + a tau^2 KL(softmax(t.b / tau) || softmax(s.b / tau))`: where the text lies, and
which passages it is near, the more so those that are nearest. Hidden states may be matched, too,
through the map that made the student narrower. Costs the student's gradient; embeddings of the
teacher are computed once, hidden states anew at each step.

Source: Hinton et al. 2015 (arXiv:1503.02531); soft similarity distributions, Tejankar et al. 2021
(arXiv:2010.06682).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcompress.documents.batches import Batch, States
from jaxcompress.training.losses import Loss


def embedding_loss(
    student: jax.Array, teacher: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """Half the squared distance of embeddings (rows, d): one minus their cosine at length 1.

    Args:
        student, teacher: (rows, d).
        weight: (rows,), 1 by default; the mean is weighted.
    """
    return average(jnp.sum((student - teacher).astype(jnp.float32) ** 2, -1) / 2, weight)


def similarity_loss(
    student: jax.Array,
    teacher: jax.Array,
    passages: jax.Array | None = None,
    *,
    temperature: float = 0.05,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Divergence of the student's similarities to passages from the teacher's, times temperature^2.

    Args:
        student, teacher: (rows, d) embeddings of the same texts.
        passages: (n, d) the teacher's embeddings of passages; by default those of the other texts
            of the batch.
        temperature: of the softmax over passages: the lower, the more only the nearest count.
        weight: (rows,), 1 by default; a row of weight 0 is no passage either.

    Returns:
        The mean of `temperature^2 KL(teacher || student)`: the square makes gradients alike at all
        temperatures.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.documents.distillation import similarity_loss
        >>> teacher = jnp.eye(3)
        >>> equal = similarity_loss(teacher, teacher, jnp.eye(3))
        >>> other = similarity_loss(teacher[::-1], teacher, jnp.eye(3))
        >>> float(equal), bool(other > 0)
        (0.0, True)
    """
    left_out: Any = False
    if passages is None:
        passages = teacher
        left_out = jnp.eye(len(teacher), dtype=bool)
        left_out = left_out if weight is None else left_out | (weight == 0)[None, :]

    def log_shares(x: jax.Array) -> jax.Array:
        scores = jnp.matmul(x, passages.T, preferred_element_type=jnp.float32) / temperature
        return jax.nn.log_softmax(jnp.where(left_out, -1e9, scores))

    target = log_shares(teacher)
    apart = jnp.sum(jnp.exp(target) * (target - log_shares(student)), -1)
    return temperature**2 * average(apart, weight)


def state_loss(
    student: jax.Array, teacher: jax.Array, mask: jax.Array, embedding: jax.Array | None = None
) -> jax.Array:
    """The squared error of hidden states, relative to the teacher's.

    Args:
        student: (rows, length, r).
        teacher: (rows, length, d).
        mask: (rows, length), true where there is a token.
        embedding: (r, d), how the student's axis lies in the teacher's, the transpose of the map
            that cut it: what the teacher has outside it cannot be matched and does not count. By
            default both are as wide.
    """
    goal = teacher if embedding is None else teacher @ embedding.T
    weight = mask.astype(jnp.float32)[..., None]
    error = jnp.sum(weight * (student - goal).astype(jnp.float32) ** 2)
    return error / jnp.maximum(jnp.sum(weight * goal.astype(jnp.float32) ** 2), 1e-12)


def average(values: jax.Array, weight: jax.Array | None) -> jax.Array:
    """The mean, weighted where weights are given."""
    return (
        values.mean()
        if weight is None
        else jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1)
    )


def distillation_loss(
    apply: Callable[..., jax.Array],
    passages: Any = None,
    *,
    temperature: float = 0.05,
    similarity: float = 1.0,
    pool: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    states: float = 1.0,
) -> Loss:
    """The loss of an encoder that learns a teacher's embeddings, and its hidden states where given.

    Args:
        apply: `apply(params, ids, mask) -> (rows, d)`, the student.
        passages: (n, d) the teacher's embeddings of the passages that texts are near or far from;
            by default the batch's own.
        temperature: as for `similarity_loss`.
        similarity: its weight, in units of the temperature's: the two parts of the loss are then of
            about one size.
        pool: `pool(hidden, mask) -> (rows, d)`, where `apply` gives hidden states (rows, length,
            d): these are matched, too, which says much more of every text. The batches then have
            the teacher's.
        states: the weight of that.

    Returns:
        `loss(params, batch, key)` for `fit_stream`, with the batches of `batches_with`.
    """
    bank = None if passages is None else jnp.asarray(passages)

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        ids, mask, target, weight, *hidden = batch
        student, apart = apply(params, ids, mask), jnp.float32(0)
        if pool is not None:
            apart = states * state_loss(student, hidden[0].astype(jnp.float32), mask)
            student = pool(student, mask)
        near = similarity_loss(student, target, bank, temperature=temperature, weight=weight)
        return embedding_loss(student, target, weight) + similarity / temperature * near + apart

    return loss


def batches_with(
    batches: Sequence[Batch], targets: Any, states: States | None = None
) -> Callable[[int], tuple[np.ndarray, ...]]:
    """Batches of texts with the teacher's embeddings, by step; each epoch has its own order.

    Args:
        batches: from `jaxcompress.documents.batches.buckets`.
        targets: (texts, d).
        states: the teacher's hidden states of the texts, from
            `jaxcompress.documents.batches.hidden_states`.

    Returns:
        From a step's number to `(ids, mask, target, weight)` and the hidden states where there are
        some; rows of padding have weight 0.
    """
    if not batches:
        raise ValueError("batches_with: there are no batches")
    targets = np.asarray(targets, np.float32)

    def batch_at(step: int) -> tuple[np.ndarray, ...]:
        epoch, turn = divmod(step, len(batches))
        batch = batches[np.random.default_rng(epoch).permutation(len(batches))[turn]]
        given = batch.ids, batch.mask, targets[batch.index], (batch.index >= 0).astype(np.float32)
        return given if states is None else (*given, states.of(batch))

    return batch_at
