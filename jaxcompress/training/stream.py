"""Training on batches of different shapes: one jitted step for each shape, for data that no single array holds.

Each step is that of `fit`, `params -= optimizer(grad(loss(params, batch, key)))`. The batch is a function of the step's number
alone, so a run that stops after any step and goes on is the run that never stopped, to the bit on a CPU, like `fit`. Costs the
loss's gradient and the optimizer a step, and a batch's transfer.

Source: optax for optimizers, schedules and the accumulation of gradients (`optax.MultiSteps`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jaxcompress.training.fit import FitState, Loss, begun, check_losses, check_params, stepped

CHECKED = 20
"""Steps between looks at the losses: a look waits for the device."""


def fit_stream(
    loss: Loss,
    params: Any,
    batch_at: Callable[[int], Any],
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
        batch_at: from a step's number to a tree of arrays, always the same for the same number; a few shapes are best, since
            the step is compiled for each.
        optimizer: any optax transformation.
        steps: how many steps the run has in all.
        seed: of the keys of the loss.
        state: go on from here; `params` is then ignored.
        callback: called with the state now and then and at the end, for instance to write it to a file.
        callback_seconds: seconds between calls of `callback`.
        progress: show a progress bar.
        description: the words in front of it.

    Returns:
        The state after `steps` steps; `.params` are the trained parameters.

    Raises:
        ValueError: for a loss that is not finite, or a state that is further than `steps`.
        TypeError: for a parameter that is not a float array.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxcompress.training.stream import fit_stream
        >>> loss = lambda w, x, key: jnp.mean((x @ w - 1) ** 2)
        >>> batch = lambda step: jnp.eye(3)[: 1 + step % 3]
        >>> fit_stream(loss, jnp.zeros(3), batch, optimizer=optax.sgd(0.5), steps=60, progress=False).params.round(2)
        Array([1., 1., 1.], dtype=float32)
    """
    check_params("fit_stream", params)
    current = begun("fit_stream", params, optimizer, steps, state)
    done = int(current.step)
    params, opt_state, losses, fresh = (
        current.params,
        current.opt_state,
        list(np.asarray(current.losses)),
        [],
    )
    saved = time.monotonic()
    with tqdm(
        total=steps, initial=done, desc=description, disable=not progress, leave=False
    ) as bar:
        for number in range(done, steps):
            params, opt_state, value = step(
                params,
                opt_state,
                batch_at(number),
                jnp.uint32(seed),
                jnp.int32(number),
                loss=loss,
                optimizer=optimizer,
            )
            fresh.append(value)
            due = callback is not None and time.monotonic() - saved > callback_seconds
            if len(fresh) == CHECKED or number + 1 == steps or due:
                losses += map(float, fresh)
                bar.update(len(fresh))
                check_losses("fit_stream", losses[-len(fresh) :], len(losses) - len(fresh))
                bar.set_postfix(loss=f"{np.mean(losses[-CHECKED:]):.4g}", refresh=False)
                fresh = []
            if due and callback is not None:
                callback(
                    FitState(
                        params, opt_state, jnp.int32(number + 1), jnp.asarray(losses, jnp.float32)
                    )
                )
                saved = time.monotonic()
    state = FitState(params, opt_state, jnp.int32(steps), jnp.asarray(losses, jnp.float32))
    if callback is not None:
        callback(state)
    return state


@partial(jax.jit, static_argnames=("loss", "optimizer"), donate_argnames=("params", "opt_state"))
def step(params, opt_state, batch, seed, number, *, loss, optimizer):
    return stepped(
        loss, optimizer, params, opt_state, batch, jax.random.fold_in(jax.random.key(seed), number)
    )
