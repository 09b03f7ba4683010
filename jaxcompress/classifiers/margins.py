"""Margins: how far the logits of each example are from another answer, and what a random sample says about the rest.

The signed margin of an example with label y is `s = z_y - max over the others of z`; it is right where s > 0, and where every logit
moves by at most e, s moves by at most 2 e: nothing with |s| > 2 e is overturned. `rate_of_change` is how far s still moves between
checkpoints. What a random part of strata says about the rest has bounds without assumptions. One pass of the network over the data.

Sources: margins, Bartlett 1998 (doi:10.1109/18.661502) and Elsayed et al. 2018 (arXiv:1803.05598); bounds by a ratio of
likelihoods, Wasserman, Ramdas and Balakrishnan 2020 (arXiv:1912.11436).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import betabinom, hypergeom
from tqdm.auto import tqdm

from jaxcompress.training.batches import in_batches

WEIGHT = 10.0
"""Of what is expected of a stratum, in examples: more makes the bounds narrower where it is right and wider where it is not."""


def logits_of(
    who: str,
    apply: Callable[[Any], Any],
    x: Any,
    index: np.ndarray,
    batch_size: int,
    bar: Any = None,
    *,
    classes: int | None = None,
) -> np.ndarray:
    """What a function gives for some examples, (len(index), classes) in float64, in batches of one size, the last filled up."""
    expected = (
        f"({batch_size}, classes), of two classes at least"
        if classes is None
        else f"({batch_size}, {classes})"
    )

    def checked(rows: np.ndarray) -> np.ndarray:
        batch = np.asarray(apply(x[rows]), np.float64)
        if (
            batch.ndim != 2
            or len(batch) != batch_size
            or batch.shape[1] < 2
            or classes not in (None, batch.shape[1])
        ):
            raise ValueError(
                f"{who} gave an array of shape {batch.shape} for {batch_size} examples: expected logits {expected}"
            )
        return batch

    return in_batches(checked, index, batch_size, bar)


def signed_margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label's logit minus the largest of the others.

    Args:
        logits: (examples, classes).
        labels: (examples,), whole numbers.

    Returns:
        (examples,); positive where the label wins, NaN where a logit is NaN.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.margins import signed_margins
        >>> signed_margins(np.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]), np.array([0, 1])).tolist()
        [2.0, -2.0]
    """
    rows, others = np.arange(len(labels)), np.array(logits, np.float64)
    own = others[rows, labels]
    others[rows, labels] = -np.inf
    with np.errstate(invalid="ignore"):
        return own - others.max(1)


def is_right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the label is the first largest; never where a logit is NaN."""
    return (np.argmax(logits, 1) == labels) & ~np.isnan(logits).any(1)


def rate_of_change(
    net: Callable[[Any, Any], Any],
    checkpoints: Sequence[Any],
    data: tuple[Any, Any],
    *,
    batch_size: int = 1000,
    progress: bool = True,
) -> np.ndarray:
    """How far the margin of each example still moves in training.

    Args:
        net: `net(params, x) -> logits (n, classes)`.
        checkpoints: parameters at two steps or more, in order: what `callback=` of `jc.fit` sees.
        data: (x, y), arrays of examples and of whole labels.
        batch_size: examples a call.
        progress: show a progress bar.

    Returns:
        (examples,): the largest change of the signed margin from one checkpoint to the next. `score=-rate_of_change(...)` of
        `jc.classifiers.active_set` puts those first that move most.

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
    run = jax.jit(net)
    with tqdm(
        total=len(checkpoints) * len(x), desc="rate of change", disable=not progress, leave=False
    ) as bar:
        each = [
            signed_margins(
                logits_of(
                    "rate_of_change: net",
                    lambda x, params=params: run(params, x),
                    x,
                    np.arange(len(x)),
                    batch_size,
                    bar,
                ),
                labels,
            )
            for params in checkpoints
        ]
    return np.abs(np.diff(each, axis=0)).max(0)


def total_bounds(
    found: np.ndarray,
    drawn: np.ndarray,
    sizes: np.ndarray,
    expected: np.ndarray,
    signs: np.ndarray,
    risk: float,
) -> tuple[float, float]:
    """Bounds of a signed total over strata, from a simple random sample without replacement of each.

    The counts K_h that are not refuted are those with `prod_h Q_h(found) / P(found | K_h) < 1 / risk`, where P is hypergeometric
    and Q any law that was fixed before: the left side has the mean 1 under the truth, so that it is refuted with probability `risk`
    at most (Markov). Q is beta-binomial around what is expected; a bad expectation makes the bounds wide, never wrong. The extremes
    of the total are bounded by Lagrange's dual function, which is valid at every price.

    Args:
        found, drawn, sizes: (strata,): of the `drawn` examples out of `sizes` that many have the property.
        expected: (strata,) the share that was expected before the draw, in (0, 1).
        signs: (strata,) 1 or -1.
        risk: the probability, at most, that the total is not between the bounds.

    Returns:
        The least and the greatest of `sum_h signs_h K_h`.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.margins import total_bounds
        >>> one = lambda *numbers: [np.array([number]) for number in numbers]
        >>> total_bounds(*one(0, 100, 1000, 0.01, 1), 0.05), total_bounds(*one(7, 10, 10, 0.01, 1), 0.05)
        ((0.0, 30.0), (7.0, 7.0))
    """
    score = betabinom.logpmf(
        found, drawn, WEIGHT * expected, WEIGHT * (1 - expected)
    ).sum() + np.log(risk)
    counts = [
        np.arange(k, size - (n - k) + 1) for k, n, size in zip(found, drawn, sizes, strict=True)
    ]
    likely = [
        hypergeom.logpmf(k, size, each, n)
        for k, n, size, each in zip(found, drawn, sizes, counts, strict=True)
    ]
    prices = np.geomspace(1e-2, 1e5, 60)[:, None]

    def greatest(signs: np.ndarray) -> float:
        dual = -prices[:, 0] * score
        for sign, each, chance in zip(signs, counts, likely, strict=True):
            dual = dual + (sign * each + prices * chance).max(1)
        extreme = sum(
            sign * (each[-1] if sign > 0 else each[0])
            for sign, each in zip(signs, counts, strict=True)
        )
        return float(min(dual.min(initial=np.inf), extreme))

    whole = lambda value: float(np.floor(value + 1e-6))
    return 0.0 - whole(greatest(-signs)), whole(greatest(signs))


def to_labels(who: str, labels: Any, count: int) -> np.ndarray | None:
    """Labels as whole numbers, or None; refused where they do not fit."""
    if labels is None:
        return None
    labels = np.asarray(labels)
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{who}: the labels are {labels.dtype} of shape {labels.shape}, expected whole numbers of shape ({count},), one for "
            "each example; None where they are unknown"
        )
    return labels.astype(np.int64)
