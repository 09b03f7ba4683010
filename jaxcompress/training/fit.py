"""The training loop: a jitted scan over minibatches for dense or compact parameters.

Each step is `params -= optimizer(grad(loss(params, batch, key)))`. The order of the examples is a
seeded permutation for each epoch, computed from the step alone, so a run that stops after any step
and resumes equals one that never stopped: to the bit on a CPU, while sums on a GPU may differ in
the last digit. A step costs the loss's gradient and the optimizer's update; the data lie on the
device once.

Source: optax for optimizers and schedules; early stopping by validation, Prechelt 1998
(doi:10.1007/3-540-49430-8_3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.permutation import mix, permute
from jaxcompress.checks import LOSS, arrays_in, checked, explained, function, instance, seeds, whole
from jaxcompress.checks import optimizer as optimizer_kind
from jaxcompress.training.checks import check_fit, check_losses, check_validation
from jaxcompress.training.losses import Loss
from jaxcompress.training.state import FitState, LearningCurve, starting_state

State = TypeVar("State", bound=FitState)


@checked(
    loss=function(LOSS),
    optimizer=optimizer_kind,
    steps=whole(0),
    batch_size=whole(),
    patience=whole(),
    seed=seeds,
    state=instance(FitState, "the state of a run"),
    callback=function("callback(state)"),
    callback_steps=whole(),
)
def fit(
    loss: Loss,
    params: PyTree,
    data: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int,
    validation: PyTree | None = None,
    patience: int | None = None,
    seed: int = 0,
    state: FitState | None = None,
    callback: Callable[[FitState], None] | None = None,
    callback_steps: int | None = None,
    progress: bool = True,
    description: str = "fit",
) -> FitState:
    """Train parameters, dense or compact, by any optax optimizer.

    Args:
        loss: `loss(params, batch, key) -> scalar`, the mean over a batch, for instance
            `jc.training.cross_entropy(apply)`; the key differs at each step.
        params: a tree of float leaves and compact arrays.
        data: a tree of arrays whose first dimension is the examples, such as `(x, y)`.
        optimizer: any optax transformation, with any schedule.
        steps: the length of the run, from its beginning.
        batch_size: examples per step; the remainder of an epoch is dropped, other examples in each
            epoch.
        validation: further examples, a tree like `data`. Their loss is taken every `callback_steps`
            steps, with one and the same key, and recorded in `state.curve`.
        patience: stop early after this many evaluations without a lower validation loss;
            `state.params` are then those of the lowest one. By default the run takes all steps and
            `state.params` are the last.
        seed: determines the order of the examples and the keys of the loss.
        state: resume from this state; `params` is then ignored. A resumed run with the same
            arguments is bit-equal to one that never stopped; with validation, where it stopped at a
            multiple of `callback_steps`.
        callback: called with the state every `callback_steps` steps and at the end, for instance to
            save it or to draw `state.curve`.
        callback_steps: steps between two calls of `callback` and between two evaluations; about a
            twentieth of the run by default.
        progress: show a progress bar.
        description: the label of the bar.

    Returns:
        The state after `steps` steps, or after the early stop; `.params` are the trained
        parameters.

    Raises:
        ValueError: for data of unequal lengths, too large a batch, validation data unlike the
            training data, a patience without validation data, a loss that is not a finite scalar.
        TypeError: for a parameter that is not a float array.

    Example:
        >>> import jax.numpy as jnp, optax, jaxcompress as jc
        >>> x = jnp.eye(8); y = jnp.arange(8) % 2
        >>> loss = jc.training.cross_entropy(lambda p, x: x @ p)
        >>> options = dict(optimizer=optax.sgd(1.0), steps=20, batch_size=4, progress=False)
        >>> jc.fit(loss, jnp.zeros((8, 2)), (x, y), **options)
        FitState(step 20, loss 0.3826)
        >>> options |= dict(validation=(x, 1 - y), patience=3)  # of other labels, which it unlearns
        >>> state = jc.fit(loss, jnp.zeros((8, 2)), (x, y), **options)
        >>> int(state.step), state.curve
        (8, LearningCurve(4 points, lowest validation loss 0.8259 at step 2))
    """
    check_fit("fit", params, data, batch_size)
    check_validation("fit", data, validation, patience)
    data, validation = jax.tree.map(jnp.asarray, (data, validation))
    current = starting_state("fit", params, optimizer, steps, state)
    if patience is None and current.latest is not None:
        current = dataclasses.replace(current, params=current.latest, latest=None)
    loop = Loop(
        "fit", loss, optimizer, batch_size, seed, callback_steps or default_callback_steps(steps)
    )
    with tqdm(
        total=steps, initial=int(current.step), desc=description, disable=not progress, leave=False
    ) as bar:
        while int(current.step) < steps and not _exhausted(current, patience):
            current = loop.advance(current, data, steps)
            if validation is not None:
                current = loop.validate(current, validation, keep_best=patience is not None)
            _show(bar, current)
            if callback is not None:
                callback(copied(current))
    return dataclasses.replace(current, losses=jnp.asarray(current.losses))


def default_callback_steps(steps: int) -> int:
    """Steps between callbacks: equal where possible, so that the loop compiles once."""
    return -(-steps // next((count for count in range(10, 41) if steps % count == 0), 20)) or 1


@dataclasses.dataclass(frozen=True)
class Loop:
    """What stays the same from one piece of a run to the next."""

    who: str
    loss: Loss
    optimizer: optax.GradientTransformation
    batch_size: int
    seed: int
    callback_steps: int

    def advance(self, state: State, data: PyTree, stop: int) -> State:
        """The state at the next multiple of `callback_steps`, or at `stop`.

        Donates the buffers of the given state; losses stay on the host until the run ends.
        """
        done = int(state.step)
        count = min(self.callback_steps - done % self.callback_steps, stop - done)
        with explained(f"{self.who}: {LOSS} cannot be computed from the data {arrays_in(data)}"):
            params, opt_state, losses = _run(
                state.params if state.latest is None else state.latest,
                state.opt_state,
                data,
                jnp.int32(done),
                jnp.uint32(self.seed),
                loss=self.loss,
                optimizer=self.optimizer,
                examples=len(jax.tree.leaves(data)[0]),
                batch_size=self.batch_size,
                count=count,
            )
        losses = np.asarray(losses, np.float32)
        check_losses(self.who, losses, done)
        updated = {"params" if state.latest is None else "latest": params}
        return dataclasses.replace(
            state,
            opt_state=opt_state,
            step=jnp.int32(done + count),
            losses=np.concatenate([np.asarray(state.losses), losses]),
            **updated,
        )

    def validate(self, state: FitState, validation: PyTree, *, keep_best: bool) -> FitState:
        """The state with one more point of its curve, and the best parameters if they are kept."""
        present = state.params if state.latest is None else state.latest
        key = jax.random.fold_in(jax.random.key(self.seed), np.uint32(2**32 - 1))  # of no step
        value = mean_loss(present, validation, key, loss=self.loss, batch_size=self.batch_size)
        step, value = int(state.step), np.asarray(value, np.float32)
        if not np.isfinite(value):
            raise ValueError(
                f"{self.who}: the validation loss is not finite after {step} steps: check the "
                "validation data for NaN"
            )
        curve = _extended(state.curve, step, np.asarray(state.losses), value)
        if not keep_best:
            return dataclasses.replace(state, curve=curve)
        kept = curve.stale and state.latest is not None
        best = state.params if kept else copied(present)
        return dataclasses.replace(state, params=best, curve=curve, latest=present)


def _extended(
    curve: LearningCurve | None, step: int, losses: np.ndarray, validation: np.ndarray
) -> LearningCurve:
    """A learning curve with one more point."""
    if curve is None:
        empty = jnp.zeros(0, jnp.float32)
        curve = LearningCurve(jnp.zeros(0, jnp.int32), empty, empty)
    since = int(curve.steps[-1]) if len(curve.steps) else 0
    return LearningCurve(
        jnp.append(curve.steps, jnp.int32(step)),
        jnp.append(curve.training, losses[since:].mean()),
        jnp.append(curve.validation, validation),
    )


def _exhausted(state: FitState, patience: int | None) -> bool:
    """Whether the validation loss has not fallen for too long."""
    return patience is not None and state.curve is not None and state.curve.stale >= patience


def _show(bar: tqdm, state: FitState) -> None:
    """Bring a progress bar up to the state."""
    if bar.disable:
        return
    count = int(state.step) - bar.n
    values = {"loss": f"{np.mean(state.losses[-count:]):.4g}"}
    if state.curve is not None:
        values["validation"] = f"{float(state.curve.validation[-1]):.4g}"
    bar.update(count)
    bar.set_postfix(values, refresh=False)


def copied(tree: PyTree) -> PyTree:
    """A copy that stays valid when the loop donates the buffers of the original."""
    return jax.tree.map(jnp.array, tree)


def examples_at(
    step: Int[Array, ""], examples: int, batch_size: int, seed: Int[Array, ""]
) -> Int[Array, " batch"]:
    """The indices of a step's minibatch: each epoch has its own permutation, and nothing is stored.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.training.fit import examples_at
        >>> batches = [examples_at(jnp.int32(step), 6, 2, jnp.uint32(0)) for step in range(3)]
        >>> sorted(jnp.concatenate(batches).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    epoch, turn = jnp.divmod(step, examples // batch_size)
    position = turn.astype(jnp.uint32) * np.uint32(batch_size) + jnp.arange(
        batch_size, dtype=jnp.uint32
    )
    return permute(position, examples, mix(epoch.astype(jnp.uint32), seed)).astype(jnp.int32)


def update(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    opt_state: PyTree,
    batch: PyTree,
    key: jax.Array,
) -> tuple[PyTree, PyTree, jax.Array]:
    """Parameters and optimizer state after one step, and the loss before it."""
    value, gradient = jax.value_and_grad(loss)(params, batch, key)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


@partial(
    jax.jit,
    static_argnames=("loss", "optimizer", "examples", "batch_size", "count"),
    donate_argnames=("params", "opt_state"),
)
def _run(params, opt_state, data, start, seed, *, loss, optimizer, examples, batch_size, count):
    key = jax.random.key(seed)

    def step(carry, number):
        params, opt_state = carry
        index = examples_at(number, examples, batch_size, seed)
        batch = jax.tree.map(lambda leaf: leaf[index], data)
        params, opt_state, value = update(
            loss, optimizer, params, opt_state, batch, jax.random.fold_in(key, number)
        )
        return (params, opt_state), value

    (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), start + jnp.arange(count))
    return params, opt_state, losses


@partial(jax.jit, static_argnames=("loss", "batch_size"))
def mean_loss(
    params: PyTree, data: PyTree, key: jax.Array, *, loss: Loss, batch_size: int
) -> jax.Array:
    """The mean loss over all examples, in batches, of which the last one may be smaller."""
    count = len(jax.tree.leaves(data)[0])
    full = count // batch_size * batch_size
    total = jnp.float32(0)
    if full:
        batches = jax.tree.map(
            lambda leaf: leaf[:full].reshape(-1, batch_size, *leaf.shape[1:]), data
        )
        total += full * jnp.mean(jax.lax.map(lambda batch: loss(params, batch, key), batches))
    if full < count:
        rest = jax.tree.map(lambda leaf: leaf[full:], data)
        total += (count - full) * loss(params, rest, key)
    return total / count
