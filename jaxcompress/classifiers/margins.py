"""Margins: the distance of each example's logits from another prediction.

The signed margin of an example with label y is `s = z_y - max over the others of z`; the prediction
is right where s > 0. Where every logit moves by at most e, s moves by at most 2 e: no prediction
with |s| > 2 e changes. `rate_of_change` is the movement of s between checkpoints. Costs one pass of
the network over the data.

Sources: margins, Bartlett 1998 (doi:10.1109/18.661502) and Elsayed et al. 2018 (arXiv:1803.05598).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from jaxcompress.checks import arrays_in, explained
from jaxcompress.training.batches import in_batches

Net = Callable[[PyTree, jax.Array | np.ndarray], ArrayLike]
"""`net(params, x (n, ...)) -> logits (n, classes)`: a `jc.networks.Network`, or a function."""
Apply = Callable[[jax.Array | np.ndarray], ArrayLike]
"""`apply(x (n, ...)) -> logits (n, classes)`."""


def logits_of(
    name: str,
    apply: Apply,
    x: jax.Array | np.ndarray,
    index: Int[np.ndarray, " n"],
    batch_size: int,
    bar: tqdm | None = None,
    *,
    classes: int | None = None,
) -> Float[np.ndarray, "n classes"]:
    """The logits of some examples in float64, in batches of one size, the last one padded.

    Args:
        name: of the function, for errors.
        apply: the function.
        x: all examples.
        index: of those to evaluate.
        batch_size: examples a call.
        bar: a tqdm bar of examples.
        classes: expected number of classes; None accepts any from two on.
    """
    expected = f"({batch_size}, {'classes' if classes is None else classes})"
    expected += ", of two classes at least" if classes is None else ""

    def checked(rows: np.ndarray) -> np.ndarray:
        with explained(f"{name} cannot be called with examples {arrays_in(x)}"):
            batch = np.asarray(apply(x[rows]), np.float64)
        fits = batch.ndim == 2 and len(batch) == batch_size and batch.shape[1] >= 2
        if not fits or classes not in (None, batch.shape[1]):
            raise ValueError(
                f"{name} gave an array of shape {batch.shape} for {batch_size} examples: expected "
                f"logits {expected}"
            )
        return batch

    return in_batches(checked, index, batch_size, bar)


def signed_margins(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The label's logit minus the largest of the others.

    Args:
        logits: of the examples.
        labels: indices of classes.

    Returns:
        Positive where the label is predicted, NaN where a logit is NaN.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.margins import signed_margins
        >>> logits = np.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
        >>> signed_margins(logits, np.array([0, 1])).tolist()
        [2.0, -2.0]
    """
    rows, others = np.arange(len(labels)), np.array(logits, np.float64)
    # the label's own logit is removed from the maximum
    own = others[rows, labels]
    others[rows, labels] = -np.inf
    with np.errstate(invalid="ignore"):
        return own - others.max(1)


def is_right(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether the label is the first largest logit; never where a logit is NaN."""
    return (np.argmax(logits, 1) == labels) & ~np.isnan(logits).any(1)


def rate_of_change(
    net: Net,
    checkpoints: Sequence[PyTree],
    data: tuple[jax.Array | np.ndarray, Int[ArrayLike, " n"]],
    *,
    batch_size: int = 1000,
    progress: bool = True,
) -> Float[np.ndarray, " n"]:
    """The largest change of each example's margin between checkpoints of the training.

    Args:
        net: `net(params, x) -> logits (n, classes)`.
        checkpoints: parameters at two steps or more, in order: those passed to `callback=` of
            `jc.fit`.
        data: (x, y), arrays of examples and of integer labels.
        batch_size: examples a call.
        progress: show a progress bar.

    Returns:
        The largest change of the signed margin from one checkpoint to the next.
        `score=-rate_of_change(...)` of `jc.classifiers.active_set` puts the largest first.

    Raises:
        ValueError: for fewer than two checkpoints, logits of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.classifiers.margins import rate_of_change
        >>> x, y = jnp.eye(3), jnp.array([0, 1, 1])
        >>> rate_of_change(lambda p, x: p * x, [1.0, 3.0], (x, y), progress=False).tolist()
        [2.0, 2.0, 2.0]
    """
    if len(checkpoints) < 2:
        raise ValueError(f"rate_of_change needs two checkpoints at least, got {len(checkpoints)}")
    x, labels = data[0], np.asarray(data[1])
    run, index, margins = jax.jit(net), np.arange(len(x)), []
    total = len(checkpoints) * len(x)
    with tqdm(total=total, desc="rate of change", disable=not progress, leave=False) as bar:
        for params in checkpoints:
            logits = logits_of(
                "rate_of_change: net", partial(run, params), x, index, batch_size, bar
            )
            margins.append(signed_margins(logits, labels))
    return np.abs(np.diff(margins, axis=0)).max(0)


def checked_classes(
    caller: str, labels: Int[ArrayLike, " n"] | None, count: int
) -> Int[np.ndarray, " n"] | None:
    """Labels as int64, or None; refused if they do not fit."""
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{caller}: the labels are {labels.dtype} of shape {labels.shape}, expected whole "
            f"numbers of shape ({count},), one for each example; None where they are unknown"
        )
    return labels.astype(np.int64)
