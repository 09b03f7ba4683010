"""A student that agrees with every point of a realised classifier: no generalization is asked for, only agreement.

The loss is `sum(w ce) / sum(w)`, the cross entropy with a weight for each point. First Adam with w = 1, by the one training loop;
then rounds of L-BFGS on all points, before each of which the weights of the points that disagree grow by a factor. It stops at full
agreement. Costs Adam's steps, and for each step of L-BFGS a line search: some passes over all points.

Sources: L-BFGS, Liu and Nocedal 1989 (doi:10.1007/BF01589116); weights that grow on what is wrong, AdaBoost, Freund and Schapire
1997 (doi:10.1006/jcss.1997.1504).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from tqdm.auto import tqdm

from jaxcompress.classifiers.realization import Realized
from jaxcompress.training.checks import check_fit
from jaxcompress.training.fit import default_callback_steps, fit


@dataclasses.dataclass(frozen=True)
class ExactFit:
    """A student and how it came to agree.

    Attributes:
        params: those of the best agreement that was seen.
        steps: (checks,), the steps taken at each check: of Adam, then of L-BFGS.
        agreement: (checks,), the share of points whose largest logit is the classifier's label.
        points: how many points there are.
    """

    params: Any
    steps: np.ndarray
    agreement: np.ndarray
    points: int

    @property
    def disagreeing(self) -> int:
        """How many points the student has otherwise."""
        return round((1 - float(self.agreement.max())) * self.points)

    @property
    def exact(self) -> bool:
        """Whether the student agrees at every point."""
        return not self.disagreeing

    def __repr__(self) -> str:
        return f"ExactFit({self.points - self.disagreeing:,} of {self.points:,} points agree after {int(self.steps[-1])} steps)"


def fit_exactly(
    apply: Callable[[Any, Any], jax.Array],
    params: Any,
    realized: Realized,
    *,
    steps: int = 2000,
    rounds: int = 40,
    polish: int = 25,
    learning_rate: float = 1e-2,
    growth: float = 2.0,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ExactFit:
    """Train a student until it agrees with a realised classifier at every point, as far as it can.

    Args:
        apply: `apply(params, x (n, d)) -> logits (n, classes)`, as many as `realized.classes` or more; the i-th is for the i-th.
        params: a tree of float leaves and compact arrays.
        realized: from `jc.classifiers.realize`. Every point counts alike, the volume of its cell does not.
        steps: of Adam, whose rate falls to zero by a cosine.
        rounds: of L-BFGS, at most.
        polish: steps of L-BFGS a round.
        learning_rate: of Adam.
        growth: what the weight of a point that disagrees is multiplied with before each round.
        batch_size: points a step of Adam; all, up to 4096, by default.
        seed: the order of the points.
        progress: show a progress bar.

    Returns:
        The student and its agreement by step.

    Raises:
        ValueError: for too few logits, growth below 1, what `jc.fit` refuses.
        TypeError: for a parameter that is not a float array.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, jaxcompress as jc
        >>> disc = lambda x: np.int32(np.hypot(x[:, 0], x[:, 1]) < 0.6)
        >>> realized = jc.classifiers.realize(disc, ([-1, -1], [1, 1]), jnd=1/16, progress=False)
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"] + p["bias"]) @ p["down"]
        >>> up, down = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 16), (16, 2)]))
        >>> params = {"up": up, "bias": jnp.zeros(16), "down": down / 4}
        >>> jc.classifiers.fit_exactly(apply, params, realized, steps=300, progress=False).exact
        True
    """
    x, y = jnp.asarray(realized.points), jnp.asarray(realized.targets)
    size = min(len(x), 4096) if batch_size is None else batch_size
    check_fit("fit_exactly", params, (x, y), steps, size, None)
    if not (growth >= 1 and rounds >= 0 and polish >= 1):
        raise ValueError(
            f"fit_exactly: growth, rounds and polish must be at least 1, 0 and 1, got {growth}, {rounds} and {polish}"
        )
    shape = jax.eval_shape(apply, params, x).shape
    if len(shape) != 2 or shape[0] != len(x) or shape[1] < len(realized.classes):
        raise ValueError(
            f"fit_exactly: apply gives logits {shape}, expected ({len(x)}, {len(realized.classes)} or more): one for each class"
        )

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        x, y, w = batch
        logits = apply(params, x).astype(jnp.float32)
        return jnp.sum(w * optax.softmax_cross_entropy_with_integer_labels(logits, y)) / jnp.sum(w)

    right = jax.jit(lambda params: jnp.argmax(apply(params, x), 1) == y)
    weights, best, record = np.ones(len(x)), params, []
    with tqdm(
        total=steps + rounds * polish, desc="fit_exactly", disable=not progress, leave=False
    ) as bar:

        def agrees(params: Any, taken: int) -> bool:
            nonlocal best
            agreeing: np.ndarray = np.asarray(right(params), bool)
            share = float(agreeing.mean())
            if not record or share > max(share for _, share in record):
                best = params
            record.append((taken, share))
            if taken >= steps:
                weights[~agreeing] *= growth
            bar.update(taken - bar.n)
            bar.set_postfix(disagreeing=int((~agreeing).sum()), refresh=False)
            return bool(agreeing.all())

        done, state = agrees(params, 0), None
        optimizer, every = (
            optax.adam(optax.cosine_decay_schedule(learning_rate, max(steps, 1))),
            default_callback_steps(steps),
        )
        for stop in [] if done else [*range(every, steps, every), steps]:
            state = fit(
                loss, params, (x, y, jnp.ones(len(x))), optimizer=optimizer, steps=stop, batch_size=size, seed=seed, state=state,
                callback_steps=every, progress=False,
            )  # fmt: skip
            if done := agrees(state.params, stop):
                break
        current = best
        for turn in range(0 if done else rounds):
            data = (x, y, jnp.asarray(weights / weights.mean(), jnp.float32))
            current = _polished(current, data, loss=loss, count=polish)
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(current)):
                current = best
            if agrees(current, steps + (turn + 1) * polish):
                break
    taken, shares = (np.asarray(column) for column in zip(*record, strict=True))
    return ExactFit(best, taken, shares, len(x))


@partial(jax.jit, static_argnames=("loss", "count"))
def _polished(params: Any, data: Any, *, loss: Callable, count: int) -> Any:
    """Parameters after so many steps of L-BFGS on all points, as one vector, for which XLA compiles faster."""
    flat, tree = ravel_pytree(params)
    optimizer, value_of = optax.lbfgs(), lambda flat: loss(tree(flat), data, None)
    both = optax.value_and_grad_from_state(value_of)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        flat, state = carry
        value, gradient = both(flat, state=state)
        updates, state = optimizer.update(
            gradient, state, flat, value=value, grad=gradient, value_fn=value_of
        )
        return (optax.apply_updates(flat, updates), state), None

    (flat, _), _ = jax.lax.scan(step, (flat, optimizer.init(flat)), length=count)
    return tree(flat)
