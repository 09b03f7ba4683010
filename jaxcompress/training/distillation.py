"""Knowledge distillation: a classifier learns the soft targets of another, or its hidden states.

With the student's logits z and the teacher's v, p = softmax(. / T), the loss is `(1 - a) T^2
KL(p(v) || p(z)) + a CE(y, z)`: the square gives gradients of one magnitude at all temperatures, and
as T grows they become those of `|z - v|^2` without the means. Hidden states of any two widths are
compared by their centred kernel alignment, which is 1 where one is a rotation and scaling of the
other. Costs the student's gradient; the teacher is evaluated once for every input.

Sources: Hinton et al. 2015 (arXiv:1503.02531); centred kernel alignment, Kornblith et al. 2019
(arXiv:1905.00414).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxcompress.checks import arrays_in, checked, function, number
from jaxcompress.training.losses import Loss, check_targets, mean_of_labels


@checked(
    apply=function("apply(params, x) -> logits"),
    temperature=number("(0, inf)", "such as 4"),
    hard=number("[0, 1]", "the share of the labels"),
    states=number("[0, inf)", "a weight"),
)
def distillation_loss(
    apply: Callable[[PyTree, jax.Array], PyTree],
    *,
    temperature: float = 4.0,
    hard: float = 0.0,
    states: float = 0.0,
) -> Loss:
    """The loss of a student of a classifier, for `jc.fit`.

    Args:
        apply: `apply(params, x) -> logits (batch, classes)`; with `states`, `-> (logits, hidden)`.
        temperature: of both softmaxes: the higher, the more small probabilities count.
        hard: the weight of the labels, from 0 to 1; the teacher's is the rest.
        states: the weight of `1 - alignment(hidden, the teacher's hidden states)`.

    Returns:
        `loss(params, batch, key)`. A batch is (x, y, teacher's logits), or (x, teacher's logits)
        where `hard` is 0. With `states`, the teacher's hidden states come last.

    Raises:
        ValueError: for a temperature that is not positive, weights out of range.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxcompress as jc
        >>> apply, x = lambda p, x: x @ p, jax.random.normal(jax.random.key(0), (64, 3))
        >>> logits = jc.training.predict(apply, jnp.eye(3), x, progress=False)  # the teacher's
        >>> loss = jc.training.distillation_loss(apply, temperature=2.0)
        >>> options = dict(optimizer=optax.adam(0.05), steps=200, batch_size=64, progress=False)
        >>> state = jc.fit(loss, jnp.zeros((3, 3)), (x, logits), **options)
        >>> bool(state.losses[-1] < 1e-3 * state.losses[0])
        True
    """

    def loss(params: PyTree, batch: PyTree, key: jax.Array) -> jax.Array:
        parts = 2 + bool(hard) + bool(states)
        if not isinstance(batch, (tuple, list)) or len(batch) not in (parts, parts + (not hard)):
            raise ValueError(
                f"distillation: {'with hard > 0 ' if hard else ''}a batch is "
                f"(x, {'y, ' if hard else ''}teacher's logits{', states' if states else ''}), got "
                f"{arrays_in(batch)}"
            )
        x, *labels, teacher = batch[: len(batch) - bool(states)]
        logits, *hidden = apply(params, x) if states else (apply(params, x),)
        if logits.shape != teacher.shape:
            raise ValueError(
                f"distillation: the student gives logits of shape {logits.shape}, the teacher "
                f"{teacher.shape}"
            )
        logits = logits.astype(jnp.float32)
        total = (1 - hard) * soft_loss(logits, teacher.astype(jnp.float32), temperature)
        if hard:
            check_targets("distillation", labels[0], logits.shape)
            total += hard * mean_of_labels(logits, labels[0])
        if states:
            total += states * (1 - alignment(hidden[0], batch[-1]))
        return total

    return loss


def soft_loss(
    student: Float[Array, "batch classes"],
    teacher: Float[Array, "batch classes"],
    temperature: float,
) -> Float[Array, ""]:
    """`T^2 KL(teacher || student)` of softened probabilities, from logits."""
    log_probabilities = jax.nn.log_softmax(student / temperature)
    targets = jax.nn.log_softmax(teacher / temperature)
    divergence = optax.losses.kl_divergence_with_log_targets(log_probabilities, targets)
    return temperature**2 * jnp.mean(divergence)


def alignment(
    one: Float[Array, "examples ..."], two: Float[Array, "examples ..."]
) -> Float[Array, ""]:
    """Linear centred kernel alignment of two layers on the same examples, from 0 to 1.

    Args:
        one: (examples, ...), of any width.
        two: (examples, ...), of any width.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxcompress.training.distillation import alignment
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> round(float(alignment(x, 5 * x[:, ::-1] + 7)), 4)
        1.0
    """
    one, two = (_centred(layer) for layer in (one, two))
    norms = _cross_product(one, one) * _cross_product(two, two)
    return _cross_product(one, two) / jnp.sqrt(jnp.maximum(norms, jnp.finfo(jnp.float32).tiny))


def _centred(layer: jax.Array) -> jax.Array:
    """(examples, width) in float32, each column of mean zero."""
    rows = layer.reshape(len(layer), -1).astype(jnp.float32)
    return rows - rows.mean(0)


def _cross_product(one: jax.Array, two: jax.Array) -> jax.Array:
    """The squared Frobenius norm of `one.T @ two`."""
    return jnp.sum(jnp.matmul(one.T, two, precision="highest") ** 2)
