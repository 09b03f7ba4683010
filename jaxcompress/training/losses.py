"""What a loss is to the training loops, and cross entropy, the usual one of a classifier.

With logits z and a target p over the classes it is `-sum_c p_c log softmax(z)_c`, the mean over the
batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

Loss = Callable[[PyTree, PyTree, jax.Array], jax.Array]
"""`loss(params, batch, key) -> scalar`."""


def cross_entropy(
    apply: Callable[[PyTree, jax.Array], jax.Array], *, smoothing: float = 0.0
) -> Loss:
    """The classification loss of a model, for hard or soft targets.

    Args:
        apply: `apply(params, x) -> logits (batch, classes)`; for a model that cannot take compact
            parameters, `lambda params, x: model.apply(jc.materialize(params), x)`.
        smoothing: the share of each target that is spread evenly over all classes (label
            smoothing).

    Returns:
        `loss(params, (x, y), key)`: the mean over the batch, in float32. y holds integers (batch,),
        or a probability for each class (batch, classes), such as a teacher's softmax. The key is
        not used.

    Raises:
        ValueError: for a smoothing outside [0, 1).

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> loss = jc.training.cross_entropy(lambda p, x: x @ p)
        >>> round(float(loss(jnp.zeros((3, 2)), (jnp.ones((5, 3)), jnp.zeros(5, int)), None)), 4)
        0.6931
    """
    if not 0 <= smoothing < 1:
        raise ValueError(
            f"cross_entropy: smoothing is a share from 0 to below 1, such as 0.1; got {smoothing!r}"
        )

    def loss(params: PyTree, batch: PyTree, key: jax.Array) -> jax.Array:
        x, y = batch
        logits = apply(params, x).astype(jnp.float32)
        if jnp.issubdtype(y.dtype, jnp.integer):
            if not smoothing:
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            y = jax.nn.one_hot(y, logits.shape[-1])
        targets = optax.smooth_labels(y.astype(jnp.float32), smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean()

    return loss
