"""Training on batches of different shapes, one jitted step per shape, from a stream of data.

Each step is that of `fit`, `params -= optimizer(grad(loss(params, batch, key)))`. The batch is a
function of the step's number alone, so a run that stops after any step and resumes equals one that
never stopped, to the bit on a CPU. A step costs the loss's gradient, the optimizer's update and a
batch's transfer.

Source: optax for optimizers, schedules and the accumulation of gradients (`optax.MultiSteps`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxcompress.checks import (
    LOSS,
    arrays_in,
    checked,
    explained,
    function,
    instance,
    number,
    seeds,
    whole,
)
from jaxcompress.checks import optimizer as optimizer_kind
from jaxcompress.training.checks import check_losses, check_params
from jaxcompress.training.fit import update
from jaxcompress.training.losses import Loss
from jaxcompress.training.state import FitState, starting_state

CHECKED_STEPS = 20
"""Steps between two checks of the losses, each of which waits for the device."""


@checked(
    loss=function(LOSS),
    batch_at=function("batch_at(step)"),
    optimizer=optimizer_kind,
    steps=whole(0),
    seed=seeds,
    state=instance(FitState, "the state of a run"),
    callback=function("callback(state)"),
    callback_seconds=number("[0, inf)"),
)
def fit_stream(
    loss: Loss,
    params: PyTree,
    batch_at: Callable[[int], PyTree],
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    seed: int = 0,
    state: FitState | None = None,
    callback: Callable[[FitState], None] | None = None,
    callback_seconds: float = 60.0,
    progress: bool = True,
    description: str = "fit",
) -> FitState:
    """Train parameters, dense or compact, on one batch after another.

    Args:
        loss: `loss(params, batch, key) -> scalar`, the key differs at each step.
        params: a tree of float leaves and compact arrays.
        batch_at: from a step's number to a tree of arrays, always the same for the same number; a
            few shapes are best, since the step is compiled for each.
        optimizer: any optax transformation.
        steps: the length of the run, from its beginning.
        seed: determines the keys of the loss.
        state: resume from this state; `params` is then ignored.
        callback: called with the state every `callback_seconds` and at the end, for instance to
            save it.
        callback_seconds: seconds between two calls of `callback`.
        progress: show a progress bar.
        description: the label of the bar.

    Returns:
        The state after `steps` steps; `.params` are the trained parameters.

    Raises:
        ValueError: for a loss that is not finite, or a state that has taken more than `steps`
            steps.
        TypeError: for a parameter that is not a float array.

    Example:
        >>> import jax.numpy as jnp, optax, jaxcompress as jc
        >>> def loss(w, x, key):
        ...     return jnp.mean((x @ w - 1) ** 2)
        >>> def batch(step):
        ...     return jnp.eye(3)[: 1 + step % 3]
        >>> options = dict(optimizer=optax.sgd(0.5), steps=60, progress=False)
        >>> jc.fit_stream(loss, jnp.zeros(3), batch, **options).params.round(2)
        Array([1., 1., 1.], dtype=float32)
    """
    check_params("fit_stream", params)
    current = starting_state("fit_stream", params, optimizer, steps, state)
    done, losses = int(current.step), np.asarray(current.losses).tolist()
    params, opt_state, pending = current.params, current.opt_state, []
    called, step = time.monotonic(), partial(_step, loss=loss, optimizer=optimizer)
    with tqdm(
        total=steps, initial=done, desc=description, disable=not progress, leave=False
    ) as bar:
        for turn in range(done, steps):
            numbers, batch = (jnp.uint32(seed), jnp.int32(turn)), batch_at(turn)
            with explained(f"fit_stream: {LOSS} cannot be computed from {arrays_in(batch)}"):
                params, opt_state, value = step(params, opt_state, batch, *numbers)
            pending.append(value)
            due = callback is not None and time.monotonic() - called > callback_seconds
            if len(pending) == CHECKED_STEPS or turn + 1 == steps or due:
                losses += _checked(pending, len(losses), bar)
                pending = []
            if due and callback is not None:
                callback(_state(params, opt_state, losses))
                called = time.monotonic()
    state = _state(params, opt_state, losses)
    if callback is not None:
        callback(state)
    return state


def _state(params: PyTree, opt_state: PyTree, losses: list[float]) -> FitState:
    """The state of a run that has taken as many steps as there are losses."""
    return FitState(params, opt_state, jnp.int32(len(losses)), jnp.asarray(losses, jnp.float32))


def _checked(pending: list[jax.Array], first: int, bar: tqdm) -> list[float]:
    """The losses of the steps from `first` on, brought to the host, checked and shown."""
    losses = [float(value) for value in pending]
    check_losses("fit_stream", losses, first)
    bar.update(len(losses))
    bar.set_postfix(loss=f"{np.mean(losses):.4g}", refresh=False)
    return losses


@partial(jax.jit, static_argnames=("loss", "optimizer"), donate_argnames=("params", "opt_state"))
def _step(params, opt_state, batch, seed, number, *, loss, optimizer):
    key = jax.random.fold_in(jax.random.key(seed), number)
    return update(loss, optimizer, params, opt_state, batch, key)
