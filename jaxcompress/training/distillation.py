"""A classifier learns from what another one says of its inputs: soft targets, and hidden states that agree.

With the student's logits z and the teacher's v, p = softmax(./ T), the loss is `(1 - a) T^2 KL(p(v) || p(z)) + a CE(y, z)`: the
square makes gradients alike at all temperatures, and as T grows they become those of `|z - v|^2` without the means. Hidden states
of any two widths may agree as well: their centred kernel alignment is 1 where one is a rotation and scaling of the other. Costs the
student's gradient; the teacher is asked once for every input.

Sources: Hinton et al. 2015 (arXiv:1503.02531); centred kernel alignment, Kornblith et al. 2019 (arXiv:1905.00414).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jaxcompress.training.batches import in_batches
from jaxcompress.training.fit import Loss, check_length


def distillation_loss(
    apply: Callable[..., Any], *, temperature: float = 4.0, hard: float = 0.0, states: float = 0.0
) -> Loss:
    """The loss of a student of a classifier, for `jc.fit`.

    Args:
        apply: `apply(params, x) -> logits (batch, classes)`; with `states` `-> (logits, hidden)`.
        temperature: of both softmaxes: the higher, the more small probabilities count.
        hard: the weight of the labels, from 0 to 1; the rest is the teacher's.
        states: the weight of `1 - alignment(hidden, the teacher's)`.

    Returns:
        `loss(params, batch, key)`. A batch is (x, y, logits of the teacher); (x, logits) does where `hard` is 0. With `states` the
        teacher's hidden values stand behind its logits.

    Raises:
        ValueError: for a temperature that is not positive, weights out of range.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxcompress as jc
        >>> apply, x = lambda p, x: x @ p, jax.random.normal(jax.random.key(0), (64, 3))
        >>> said = jc.training.predict(apply, jnp.eye(3), x, progress=False)  # the teacher's
        >>> loss = jc.training.distillation_loss(apply, temperature=2.0)
        >>> state = jc.fit(
        ...     loss, jnp.zeros((3, 3)), (x, said), optimizer=optax.adam(0.05), steps=200, batch_size=64, progress=False
        ... )
        >>> bool(state.losses[-1] < 1e-3 * state.losses[0])
        True
    """
    if not 0 < temperature < np.inf:
        raise ValueError(
            f"distillation: the temperature must be positive, such as 4; got {temperature!r}"
        )
    if not 0 <= hard <= 1 or not 0 <= states < np.inf:
        raise ValueError(
            f"distillation: hard is a share from 0 to 1 and states a weight from 0 on; got {hard!r} and {states!r}"
        )

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        x, *y, said = batch[: len(batch) - bool(states)]
        if hard and not y:
            raise ValueError("distillation: with hard > 0 a batch is (x, y, logits of the teacher)")
        logits, *own = apply(params, x) if states else (apply(params, x),)
        if logits.shape != said.shape:
            raise ValueError(
                f"distillation: the student gives logits of shape {logits.shape}, the teacher {said.shape}"
            )
        logits, said = logits.astype(jnp.float32), said.astype(jnp.float32)
        goal = jax.nn.log_softmax(said / temperature)
        apart = optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(logits / temperature), goal
        )
        total = (1 - hard) * temperature**2 * jnp.mean(apart)
        if hard:
            total += hard * jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y[0]))
        if states:
            total += states * (1 - alignment(own[0], batch[-1]))
        return total

    return loss


def alignment(one: jax.Array, two: jax.Array) -> jax.Array:
    """How alike two layers see the same examples, from 0 to 1: linear centred kernel alignment.

    Args:
        one, two: (examples, ...), of any two widths.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxcompress.training.distillation import alignment
        >>> x = jax.random.normal(jax.random.key(0), (50, 3))
        >>> round(float(alignment(x, 5 * x[:, ::-1] + 7)), 4)
        1.0
    """
    one, two = (each.reshape(len(each), -1).astype(jnp.float32) for each in (one, two))
    one, two = one - one.mean(0), two - two.mean(0)
    product = lambda a, b: jnp.sum(jnp.matmul(a.T, b, precision="highest") ** 2)
    return product(one, two) / jnp.sqrt(
        jnp.maximum(product(one, one) * product(two, two), jnp.finfo(jnp.float32).tiny)
    )


def predict(
    apply: Callable[..., Any],
    params: Any,
    x: Any,
    *,
    batch_size: int = 500,
    progress: bool = True,
    description: str = "outputs",
) -> Any:
    """What a model says of many inputs, batch after batch under jit.

    Args:
        apply: `apply(params, x)`, which gives arrays (or a tree of them) whose first dimension is the examples.
        params: its parameters.
        x: (n, ...) inputs, or a tree of them.
        batch_size: inputs at once; the last batch is filled up with repetitions, which are dropped.
        progress: show a progress bar.
        description: the words in front of it.

    Returns:
        The outputs of all inputs, on the host.

    Raises:
        ValueError: for inputs of unequal lengths or none, outputs of another length.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> jc.training.predict(lambda p, x: x @ p, jnp.ones((3, 2)), jnp.ones((7, 3)), batch_size=4, progress=False).shape
        (7, 2)
    """
    count = check_length("outputs", x)
    size = min(batch_size, count)
    run = jax.jit(apply)

    def checked(x: Any) -> Any:
        said = run(params, x)
        if wrong := [
            leaf.shape for leaf in jax.tree.leaves(said) if leaf.ndim < 1 or len(leaf) != size
        ]:
            raise ValueError(
                f"outputs: {size} inputs gave an output of shape {wrong[0]}; its first dimension is the examples"
            )
        return said

    with tqdm(total=count, desc=description, disable=not progress, leave=False) as bar:
        return in_batches(checked, x, size, bar)
