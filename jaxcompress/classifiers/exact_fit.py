"""A student trained until it agrees with a realized classifier at every point.

Nothing has to generalize. The loss is `sum(w ce) / sum(w)`, the cross entropy with a weight for
each point. First Adam with w = 1, by the one training loop; then rounds of L-BFGS on all points,
before each of which the weights of the points that disagree grow by a factor. It stops at full
agreement. Costs Adam's steps, and for each step of L-BFGS a line search: a few passes over all
points.

Sources: L-BFGS, Liu and Nocedal 1989 (doi:10.1007/BF01589116); growing weights on errors, AdaBoost,
Freund and Schapire 1997 (doi:10.1006/jcss.1997.1504).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree
from tqdm.auto import tqdm

from jaxcompress.checks import (
    arrays_in,
    checked,
    explained,
    function,
    instance,
    number,
    seeds,
    whole,
)
from jaxcompress.classifiers.queries import LabelledPoints
from jaxcompress.training.checks import check_fit
from jaxcompress.training.fit import default_callback_steps, fit

CALLER = "fit_exactly"


@dataclasses.dataclass(frozen=True)
class ExactFit:
    """A student and its agreement during training.

    Attributes:
        params: those of the best agreement.
        steps: the steps taken at each check: of Adam, then of L-BFGS.
        agreement: the share of points whose largest logit is the classifier's label.
        points: number of points.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> jc.classifiers.ExactFit({}, np.array([0, 50]), np.array([0.5, 0.9]), points=20)
        ExactFit(18 of 20 points agree after 50 steps)
    """

    params: PyTree
    steps: Int[np.ndarray, " checks"]
    agreement: Float[np.ndarray, " checks"]
    points: int

    @property
    def disagreeing(self) -> int:
        """Number of points the student disagrees on."""
        return round((1 - float(self.agreement.max())) * self.points)

    @property
    def exact(self) -> bool:
        """Whether the student agrees at every point."""
        return not self.disagreeing

    def __repr__(self) -> str:
        agreeing = self.points - self.disagreeing
        return (
            f"ExactFit({agreeing:,} of {self.points:,} points agree "
            f"after {int(self.steps[-1])} steps)"
        )


@checked(
    apply=function("apply(params, x) -> logits"),
    realized=instance(LabelledPoints, "of jc.classifiers.realize or realize_along"),
    steps=whole(0),
    rounds=whole(0),
    polish=whole(),
    learning_rate=number("(0, inf)", "such as 1e-2"),
    growth=number("[1, inf)", "such as 2"),
    batch_size=whole(),
    seed=seeds,
)
def fit_exactly(
    apply: Callable[[PyTree, jax.Array], jax.Array],
    params: PyTree,
    realized: LabelledPoints,
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
    """Train a student until it agrees with a realized classifier at every point, if it can.

    Args:
        apply: `apply(params, x (n, d)) -> logits (n, classes)`, for at least `realized.classes`;
            logit i belongs to class i.
        params: a tree of float leaves and compact arrays.
        realized: from `jc.classifiers.realize` or `jc.classifiers.realize_along`. Every point
            has the same weight; its share of the data is not used.
        steps: of Adam, whose rate decays to zero by a cosine.
        rounds: the most rounds of L-BFGS.
        polish: steps of L-BFGS a round.
        learning_rate: of Adam.
        growth: factor of the weights of points that disagree, before each round.
        batch_size: points a step of Adam; all, up to 4096, by default.
        seed: of the order of the points.
        progress: show a progress bar.

    Returns:
        The student and its agreement by step.

    Raises:
        ValueError: for too few logits, growth below 1, what `jc.fit` refuses.
        TypeError: for a parameter that is not a float array.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, jaxcompress as jc
        >>> def disc(x):
        ...     return np.int32(np.hypot(x[:, 0], x[:, 1]) < 0.6)
        >>> realized = jc.classifiers.realize(disc, ([-1, -1], [1, 1]), jnd=1/16, progress=False)
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"] + p["bias"]) @ p["down"]
        >>> up = jax.random.normal(jax.random.key(0), (2, 16))
        >>> down = jax.random.normal(jax.random.key(1), (16, 2)) / 4
        >>> params = {"up": up, "bias": jnp.zeros(16), "down": down}
        >>> jc.classifiers.fit_exactly(apply, params, realized, steps=300, progress=False).exact
        True
    """
    x, y = jnp.asarray(realized.points), jnp.asarray(realized.targets)
    size = min(len(x), 4096) if batch_size is None else batch_size
    check_fit(CALLER, params, (x, y), size)
    with explained(f"{CALLER}: apply cannot be called with points {arrays_in(x)}"):
        shape = jax.eval_shape(apply, params, x).shape
    _check_logits(shape, len(x), len(realized.classes))
    loss = _weighted_cross_entropy(apply)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, max(steps, 1)))
    agreeing_at = jax.jit(lambda params: jnp.argmax(apply(params, x), 1) == y)
    with tqdm(total=steps + rounds * polish, desc=CALLER, disable=not progress, leave=False) as bar:
        check = _Check(agreeing_at, bar)
        history = check(_History(params), params, 0)
        if not history.exact:
            data = (x, y, jnp.ones(len(x)))
            for step, current in _adam(loss, params, data, optimizer, steps, size, seed):
                history = check(history, current, step)
                if history.exact:
                    break
        polished = _polish(history, check, loss, (x, y), rounds=rounds, count=polish, growth=growth)
    return ExactFit(polished.best, np.array(polished.steps), np.array(polished.shares), len(x))


@dataclasses.dataclass(frozen=True)
class _History:
    """The checks so far.

    Attributes:
        best: the parameters of the best agreement.
        agreeing: (points,), where the student agreed at the last check.
        steps: taken at each check.
        shares: of points that agreed.
    """

    best: PyTree
    agreeing: Bool[np.ndarray, " points"] = dataclasses.field(
        default_factory=lambda: np.zeros(0, bool)
    )
    steps: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the student agreed everywhere at the last check."""
        return bool(self.agreeing.all())

    def extended(self, params: PyTree, agreeing: np.ndarray, step: int) -> _History:
        """With one more check."""
        share = float(agreeing.mean())
        best = params if share > max(self.shares, default=-1.0) else self.best
        return _History(best, agreeing, (*self.steps, step), (*self.shares, share))


@dataclasses.dataclass(frozen=True)
class _Check:
    """Checks of the agreement, shown by a progress bar.

    Attributes:
        agreeing_at: `agreeing_at(params) -> (points,)`, whether the student agrees.
        bar: of steps.
    """

    agreeing_at: Callable[[PyTree], Bool[Array, " points"]]
    bar: tqdm

    def __call__(self, history: _History, params: PyTree, step: int) -> _History:
        """The history with a check of parameters after a number of steps."""
        history = history.extended(params, np.asarray(self.agreeing_at(params), bool), step)
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix(disagreeing=int((~history.agreeing).sum()), refresh=False)
        return history


def _polish(
    history: _History,
    check: _Check,
    loss: Callable,
    examples: tuple[Float[Array, "n d"], Int[Array, " n"]],
    *,
    rounds: int,
    count: int,
    growth: float,
) -> _History:
    """Rounds of L-BFGS from the best parameters; points that disagree weigh more each round."""
    x, y = examples
    current, weights, taken = history.best, np.ones(len(x)), history.steps[-1]
    for turn in range(rounds):
        if history.exact:
            break
        weights = np.where(history.agreeing, weights, growth * weights)
        # of mean 1: only the ratios of the weights change the loss
        data = (x, y, jnp.asarray(weights / weights.mean(), jnp.float32))
        current = _lbfgs(current, data, loss=loss, count=count)
        # a failed line search gives NaN: the next round starts from the best parameters
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(current)):
            current = history.best
        history = check(history, current, taken + (turn + 1) * count)
    return history


def _weighted_cross_entropy(
    apply: Callable[[PyTree, jax.Array], jax.Array],
) -> Callable[[PyTree, PyTree, jax.Array | None], Float[Array, ""]]:
    """The loss of a batch (x, y, weights)."""

    def loss(params: PyTree, batch: PyTree, key: jax.Array | None) -> Float[Array, ""]:
        x, y, weights = batch
        logits = apply(params, x).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.sum(weights * losses) / jnp.sum(weights)

    return loss


def _adam(
    loss: Callable,
    params: PyTree,
    data: PyTree,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[int, PyTree]]:
    """The steps taken and the parameters, at a few stops on the way and at the end."""
    every, state = default_callback_steps(steps), None
    for stop in [*range(every, steps, every), steps]:
        state = fit(
            loss,
            params,
            data,
            optimizer=optimizer,
            steps=stop,
            batch_size=batch_size,
            seed=seed,
            state=state,
            callback_steps=every,
            progress=False,
        )
        yield stop, state.params


@partial(jax.jit, static_argnames=("loss", "count"))
def _lbfgs(params: PyTree, data: PyTree, *, loss: Callable, count: int) -> PyTree:
    """Take steps of L-BFGS on all points, with the parameters as one vector: it compiles faster."""
    flat, unravel = ravel_pytree(params)
    optimizer = optax.lbfgs()

    def value_of(flat: jax.Array) -> jax.Array:
        return loss(unravel(flat), data, None)

    value_and_grad = optax.value_and_grad_from_state(value_of)

    def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
        flat, state = carry
        value, gradient = value_and_grad(flat, state=state)
        updates, state = optimizer.update(
            gradient, state, flat, value=value, grad=gradient, value_fn=value_of
        )
        return (optax.apply_updates(flat, updates), state), None

    (flat, _), _ = jax.lax.scan(step, (flat, optimizer.init(flat)), length=count)
    return unravel(flat)


def _check_logits(shape: tuple[int, ...], count: int, classes: int) -> None:
    if len(shape) != 2 or shape[0] != count or shape[1] < classes:
        raise ValueError(
            f"{CALLER}: apply gives logits {shape}, expected ({count}, {classes} or more): one for "
            "each class"
        )
