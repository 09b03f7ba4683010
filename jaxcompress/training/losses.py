"""What a loss is to the training loops, and cross entropy, the usual one of a classifier.

With logits z and a target p over the classes it is `-sum_c p_c log softmax(z)_c`, the mean over the
batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree

from jaxcompress.checks import checked, function, is_array, number, shown, whole

LEAST_LABEL = -(2**31)
"""Of the marks that padding may have."""

Loss = Callable[[PyTree, PyTree, jax.Array], jax.Array]
"""`loss(params, batch, key) -> scalar`."""


@checked(
    apply=function("apply(params, x) -> logits"),
    smoothing=number("[0, 1)", "a share, such as 0.1"),
    ignore=whole(LEAST_LABEL),
)
def cross_entropy(
    apply: Callable[[PyTree, jax.Array], jax.Array],
    *,
    smoothing: float = 0.0,
    ignore: int | None = None,
) -> Loss:
    """The classification loss of a model, for hard or soft targets.

    Args:
        apply: `apply(params, x) -> logits (batch, classes)`; for a model that cannot take compact
            parameters, `lambda params, x: model.apply(jc.materialize(params), x)`.
        smoothing: the share of each target that is spread evenly over all classes (label
            smoothing).
        ignore: examples with this label are left out, such as -1 or -100 for padding; by default
            every label must be one of the classes.

    Returns:
        `loss(params, (x, y), key)`: the mean over the batch, in float32. y holds integers (batch,),
        or a probability for each class (batch, classes), such as a teacher's softmax. The key is
        not used. Where no label of a batch counts, the loss is 0.

    Raises:
        ValueError: for a smoothing outside [0, 1); when called, for labels of another shape than
            the logits', or that are none of the classes. Under `jax.jit`, where labels have no
            values yet, such a label makes the loss NaN, which `jc.fit` refuses.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> loss = jc.training.cross_entropy(lambda p, x: x @ p, ignore=-1)
        >>> labels = jnp.array([0, 1, -1, -1, 0])
        >>> round(float(loss(jnp.zeros((3, 2)), (jnp.ones((5, 3)), labels), None)), 4)
        0.6931
    """

    def loss(params: PyTree, batch: PyTree, key: jax.Array) -> jax.Array:
        x, y = batch
        logits = apply(params, x).astype(jnp.float32)
        check_targets("cross_entropy", y, logits.shape, ignore)
        if jnp.issubdtype(y.dtype, jnp.integer):
            return mean_of_labels(logits, y, smoothing, ignore)
        targets = optax.smooth_labels(y.astype(jnp.float32), smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    return loss


def mean_of_labels(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array, "*batch"],
    smoothing: float = 0.0,
    ignore: int | None = None,
) -> Float[Array, ""]:
    """The mean cross entropy of the labels that count; NaN for a label that is none of the classes.

    A label of -1 would otherwise be read as the last class, and padding be learned.
    """
    classes = logits.shape[-1]
    counts = jnp.ones(labels.shape, bool) if ignore is None else labels != ignore
    is_class = (labels >= 0) & (labels < classes)
    index = jnp.where(is_class, labels, 0)
    if smoothing:
        targets = optax.smooth_labels(jax.nn.one_hot(index, classes), smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, index)
    losses = jnp.where(counts, jnp.where(is_class, losses, jnp.nan), 0)
    return losses.sum() / jnp.maximum(counts.sum(), 1)


def check_targets(
    who: str, targets: jax.Array | np.ndarray, shape: tuple[int, ...], ignore: int | None = None
) -> None:
    """Refuse targets that do not fit logits, or that are none of the classes where they are known.

    Args:
        who: the loss, for messages.
        targets: labels, or a probability for each class.
        shape: of the logits.
        ignore: the label that is left out.
    """
    if not is_array(targets) or not hasattr(targets, "dtype"):
        raise ValueError(f"{who}: labels must be an array of integers, got {shown(targets)}")
    integer = jnp.issubdtype(targets.dtype, jnp.integer)
    if targets.shape != (shape[:-1] if integer else shape):
        raise ValueError(
            f"{who}: labels must be integers {list(shape[:-1])} or probabilities {list(shape)} for "
            f"logits {list(shape)}, got {targets.dtype}{list(targets.shape)}"
        )
    if isinstance(targets, Tracer):
        return
    values = np.asarray(targets)
    if not integer:
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError(f"{who}: the targets must be probabilities, got negative ones or NaN")
        return
    wrong = (values < 0) | (values >= shape[-1])
    wrong &= values != ignore if ignore is not None else True
    if wrong.any():
        raise ValueError(
            f"{who}: the label {values[wrong][0]} is none of the {shape[-1]} classes, 0 to "
            f"{shape[-1] - 1}: leave such examples out, by ignore={values[wrong][0]}"
        )
