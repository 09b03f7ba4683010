"""Distillation of a sentence encoder on texts without labels.

With embeddings s of the student and t of the teacher, and the teacher's embeddings b of many
passages, the loss of a text is `|s - t|^2 / 2 + (a / tau) tau^2 KL(softmax(t.b / tau) ||
softmax(s.b / tau))`. The first term matches the embedding and the second its similarities, where a
low temperature tau weights the nearest passages most. Hidden states may be matched as well. A step
costs the student's gradient; the teacher's outputs are computed once.

Source: Hinton et al. 2015 (arXiv:1503.02531); soft similarity distributions, Tejankar et al. 2021
(arXiv:2010.06682).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree, Scalar

from jaxcompress.documents.batches import Batch, States
from jaxcompress.training.losses import Loss


def embedding_loss(
    student: Float[Array, "rows d"],
    teacher: Float[Array, "rows d"],
    weight: Float[Array, " rows"] | None = None,
) -> Scalar:
    """Half the squared distance of embeddings, which is one minus the cosine of unit vectors.

    Args:
        student: the student's embeddings.
        teacher: the teacher's embeddings of the same texts.
        weight: of the rows in the mean; 1 by default.

    Returns:
        The weighted mean over rows.
    """
    return average(jnp.sum((student - teacher).astype(jnp.float32) ** 2, -1) / 2, weight)


def similarity_loss(
    student: Float[Array, "rows d"],
    teacher: Float[Array, "rows d"],
    passages: Float[Array, "n d"] | None = None,
    *,
    temperature: float = 0.05,
    weight: Float[Array, " rows"] | None = None,
) -> Scalar:
    """KL divergence between softmaxes of similarities to passages, times temperature^2.

    Args:
        student: the student's embeddings.
        teacher: the teacher's embeddings of the same texts.
        passages: the teacher's embeddings of passages; by default those of the other texts of the
            batch.
        temperature: of the softmax over passages; a lower one weights the nearest more.
        weight: of the rows in the mean; 1 by default. A row of weight 0 is not used as a passage.

    Returns:
        The mean of `temperature^2 KL(teacher || student)`. The square keeps the gradient's scale
        independent of the temperature.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.documents.distillation import similarity_loss
        >>> teacher = jnp.eye(3)
        >>> equal = similarity_loss(teacher, teacher, jnp.eye(3))
        >>> other = similarity_loss(teacher[::-1], teacher, jnp.eye(3))
        >>> float(equal), bool(other > 0)
        (0.0, True)
    """
    excluded = jnp.zeros((), bool)
    if passages is None:
        passages = teacher
        # a text's similarity to itself is the same for every student of unit length
        excluded = jnp.eye(len(teacher), dtype=bool)
        excluded = excluded if weight is None else excluded | (weight == 0)[None, :]

    def log_shares(x: Float[Array, "rows d"]) -> Float[Array, "rows n"]:
        scores = jnp.matmul(x, passages.T, preferred_element_type=jnp.float32) / temperature
        return jax.nn.log_softmax(jnp.where(excluded, -1e9, scores))

    target = log_shares(teacher)
    divergence = jnp.sum(jnp.exp(target) * (target - log_shares(student)), -1)
    return temperature**2 * average(divergence, weight)


def state_loss(
    student: Float[Array, "rows length r"],
    teacher: Float[Array, "rows length d"],
    mask: Bool[Array, "rows length"],
    embedding: Float[Array, "r d"] | None = None,
) -> Scalar:
    """The squared error of hidden states, relative to the teacher's squared norm.

    Args:
        student: the student's hidden states.
        teacher: the teacher's hidden states.
        mask: true at tokens, false at padding.
        embedding: the student's hidden axis as a subspace of the teacher's. The teacher's states
            are projected onto it, since the student cannot match the rest. By default both widths
            are equal.

    Returns:
        The sum of squared errors over all tokens, divided by the target's sum of squares.
    """
    goal = teacher if embedding is None else teacher @ embedding.T
    weight = mask.astype(jnp.float32)[..., None]
    error = jnp.sum(weight * (student - goal).astype(jnp.float32) ** 2)
    return error / jnp.maximum(jnp.sum(weight * goal.astype(jnp.float32) ** 2), 1e-12)


def average(values: Float[Array, " rows"], weight: Float[Array, " rows"] | None) -> Scalar:
    """The mean, weighted where weights are given."""
    return (
        values.mean()
        if weight is None
        else jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1)
    )


def distillation_loss(
    apply: Callable[..., jax.Array],
    passages: ArrayLike | None = None,
    *,
    temperature: float = 0.05,
    similarity: float = 1.0,
    pool: Callable[[PyTree, jax.Array, jax.Array], jax.Array] | None = None,
    states: float = 1.0,
) -> Loss:
    """The distillation loss of an encoder: embeddings, similarities, and optionally hidden states.

    Args:
        apply: the student, `apply(params, ids, mask) -> (rows, d)`.
        passages: the teacher's embeddings (n, d) of the passages for `similarity_loss`; by default
            the batch's own.
        temperature: as for `similarity_loss`.
        similarity: weight of the similarity loss, divided by the temperature to bring it to the
            scale of the embedding loss.
        pool: `pool(params, hidden, mask) -> (rows, d)`, for an `apply` that returns hidden states
            (rows, length, d). These are then matched to the teacher's, which the batches must hold.
        states: weight of the loss of hidden states.

    Returns:
        `loss(params, batch, key)` for `fit_stream`, with the batches of `batches_with`.
    """
    bank = None if passages is None else jnp.asarray(passages)

    def loss(params: PyTree, batch: PyTree, key: jax.Array) -> Scalar:
        ids, mask, target, weight, *hidden = batch
        student, hidden_loss = apply(params, ids, mask), jnp.float32(0)
        if pool is not None:
            hidden_loss = states * state_loss(student, hidden[0].astype(jnp.float32), mask)
            student = pool(params, student, mask)
        similar = similarity_loss(student, target, bank, temperature=temperature, weight=weight)
        embedded = embedding_loss(student, target, weight)
        return embedded + similarity / temperature * similar + hidden_loss

    return loss


def batches_with(
    batches: Sequence[Batch], targets: ArrayLike, states: States | None = None
) -> Callable[[int], tuple[np.ndarray, ...]]:
    """Batches with the teacher's outputs as a function of the step, reshuffled every epoch.

    Args:
        batches: from `jaxcompress.documents.batches.buckets`.
        targets: the teacher's embeddings of the texts (texts, d).
        states: the teacher's hidden states of the texts, from
            `jaxcompress.documents.batches.hidden_states`.

    Returns:
        A function from a step's number to `(ids, mask, target, weight)`, followed by the hidden
        states where given. Padding rows have weight 0.

    Raises:
        ValueError: when there are no batches.
    """
    if not batches:
        raise ValueError("batches_with: there are no batches")
    embeddings = np.asarray(targets, np.float32)

    def batch_at(step: int) -> tuple[np.ndarray, ...]:
        epoch, place = divmod(step, len(batches))
        # the order depends on the epoch alone, so that a resumed run sees the same batches
        batch = batches[np.random.default_rng(epoch).permutation(len(batches))[place]]
        weight = (batch.index >= 0).astype(np.float32)
        arrays = batch.ids, batch.mask, embeddings[batch.index], weight
        return arrays if states is None else (*arrays, states.of(batch))

    return batch_at
