"""The one training loop: a jitted scan over minibatches for dense or compact parameters.

Each step is `params -= optimizer(grad(loss(params, batch, key)))`. The order of the examples is a seeded permutation
for each epoch, computed from the step alone, so a run that stops after any step and goes on is the run that never
stopped, to the bit on a CPU; on a GPU, where sums may have no order, the last digit can differ. Costs the loss's gradient and the
optimizer a step; the data lie on the device once.

Source: optax for losses, optimizers and schedules.
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
from tqdm.auto import tqdm

from jaxcompress.arrays.permutation import mix, permute

Loss = Callable[[Any, Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class FitState:
    """Where a training run stands: everything needed to go on.

    Attributes:
        params: the parameters.
        opt_state: the optimizer's state.
        step: how many steps were taken.
        losses: the loss of every step taken.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    losses: jax.Array

    def __repr__(self) -> str:
        last = f", loss {float(np.mean(self.losses[-20:])):.4g}" if np.size(self.losses) else ""
        return f"{type(self).__name__}(step {int(self.step)}{last})"


jax.tree_util.register_dataclass(
    FitState, data_fields=["params", "opt_state", "step", "losses"], meta_fields=[]
)


def cross_entropy(apply: Callable[[Any, Any], jax.Array], *, smoothing: float = 0.0) -> Loss:
    """The classification loss of a model, for hard or soft targets.

    Args:
        apply: `apply(params, x) -> logits (batch, classes)`; for compact parameters of a model that knows nothing of
            them, `lambda p, x: model.apply(jc.materialize(p), x)`.
        smoothing: a share of each target that goes to all classes alike (label smoothing).

    Returns:
        `loss(params, (x, y), key)`: the mean over the batch, in float32. y holds integers (batch,), or a
        probability for each class (batch, classes), such as a teacher's softmax.

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

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        x, y = batch
        logits = apply(params, x).astype(jnp.float32)
        if jnp.issubdtype(y.dtype, jnp.integer):
            if not smoothing:
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            y = jax.nn.one_hot(y, logits.shape[-1])
        return optax.softmax_cross_entropy(
            logits, optax.smooth_labels(y.astype(jnp.float32), smoothing)
        ).mean()

    return loss


def fit(
    loss: Loss,
    params: Any,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int,
    seed: int = 0,
    state: FitState | None = None,
    callback: Callable[[FitState], None] | None = None,
    callback_steps: int | None = None,
    progress: bool = True,
    description: str = "fit",
) -> FitState:
    """Train parameters, dense or compact, by any optax optimizer.

    Args:
        loss: `loss(params, batch, key) -> scalar`, for instance `jc.training.cross_entropy(apply)`; the key differs at each step.
        params: a tree of float leaves and compact arrays.
        data: a tree of arrays whose first dimension is the examples, such as `(x, y)`.
        optimizer: any optax transformation, with any schedule.
        steps: how many steps the run has in all.
        batch_size: examples a step; what an epoch leaves over is dropped, other examples each time.
        seed: the order of the examples and the keys of the loss.
        state: go on from here; `params` is then ignored. A run resumed with the same arguments is bit-equal to
            one that never stopped.
        callback: called with the state now and then and at the end: to judge it, or to write it to a file.
        callback_steps: steps between calls of `callback`, and between looks at the loss; some twentieth of the run by default.
        progress: show a progress bar.
        description: the words in front of the bar.

    Returns:
        The state after `steps` steps; `.params` are the trained parameters.

    Raises:
        ValueError: for data of unequal lengths, too large a batch, a loss that is not a finite scalar.
        TypeError: for a parameter that is not a float array.

    Example:
        >>> import jax.numpy as jnp, optax, jaxcompress as jc
        >>> x = jnp.eye(8); y = jnp.arange(8) % 2
        >>> loss = jc.training.cross_entropy(lambda p, x: x @ p)
        >>> state = jc.fit(loss, jnp.zeros((8, 2)), (x, y), optimizer=optax.sgd(1.0), steps=20, batch_size=4, progress=False)
        >>> state
        FitState(step 20, loss 0.3826)
    """
    check_fit("fit", params, data, steps, batch_size, callback_steps)
    data = jax.tree.map(jnp.asarray, data)
    current = begun("fit", params, optimizer, steps, state)
    with tqdm(
        total=steps, initial=int(current.step), desc=description, disable=not progress, leave=False
    ) as bar:
        return advanced(
            loss, current, data, steps, optimizer=optimizer, batch_size=batch_size, seed=seed, bar=bar, callback=callback,
            callback_steps=callback_steps or pieces(steps),
        )  # fmt: skip


def pieces(steps: int) -> int:
    """How many steps a piece of a run has, all of equal length where that divides it, so that the loop compiles once."""
    return -(-steps // next((count for count in range(10, 41) if steps % count == 0), 20)) or 1


def advanced(
    loss: Loss,
    state: FitState,
    data: Any,
    stop: int,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    seed: int,
    callback_steps: int,
    bar: Any,
    who: str = "fit",
    callback: Callable[[FitState], None] | None = None,
) -> FitState:
    """A state after step `stop`, in pieces that end at the multiples of `callback_steps`; it gives the buffers of the given one away."""
    done, params, opt_state, losses = (
        int(state.step),
        state.params,
        state.opt_state,
        [np.asarray(state.losses)],
    )
    examples = len(jax.tree.leaves(data)[0])
    while done < stop:
        count = min(callback_steps - done % callback_steps, stop - done)
        params, opt_state, new = _run(
            params,
            opt_state,
            data,
            jnp.int32(done),
            jnp.uint32(seed),
            loss=loss,
            optimizer=optimizer,
            examples=examples,
            batch_size=batch_size,
            count=count,
        )
        losses.append(np.asarray(new, np.float32))
        check_losses(who, losses[-1], done)
        done += count
        bar.update(count)
        bar.set_postfix(loss=f"{losses[-1].mean():.4g}", refresh=False)
        if callback is not None:  # a copy, since the loop gives its buffers away
            callback(
                jax.tree.map(
                    jnp.array,
                    FitState(
                        params, opt_state, jnp.int32(done), jnp.asarray(np.concatenate(losses))
                    ),
                )
            )
    return FitState(params, opt_state, jnp.int32(done), jnp.asarray(np.concatenate(losses)))


def examples_at(step: jax.Array, examples: int, batch_size: int, seed: jax.Array) -> jax.Array:
    """The indices of a step's minibatch: each epoch is a permutation of its own, and nothing is stored.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxcompress.training.fit import examples_at
        >>> sorted(jnp.concatenate([examples_at(jnp.int32(s), 6, 2, jnp.uint32(0)) for s in range(3)]).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    epoch, turn = jnp.divmod(step, examples // batch_size)
    position = turn.astype(jnp.uint32) * np.uint32(batch_size) + jnp.arange(
        batch_size, dtype=jnp.uint32
    )
    return permute(position, examples, mix(epoch.astype(jnp.uint32), seed)).astype(jnp.int32)


def stepped(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Any,
    opt_state: Any,
    batch: Any,
    key: jax.Array,
) -> tuple[Any, Any, jax.Array]:
    """Parameters and state after one step, and the loss before it."""
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
        params, opt_state, value = stepped(
            loss, optimizer, params, opt_state, batch, jax.random.fold_in(key, number)
        )
        return (params, opt_state), value

    (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), start + jnp.arange(count))
    return params, opt_state, losses


def check_fit(
    who: str, params: Any, data: Any, steps: int, batch_size: int, callback_steps: int | None
) -> None:
    """Refuse what cannot be trained, before any work."""
    check_params(who, params)
    examples = check_length(who, data)
    if not 1 <= batch_size <= examples:
        raise ValueError(
            f"{who}: batch_size must be between 1 and the {examples} examples, got {batch_size}"
        )
    if steps < 0:
        raise ValueError(f"{who}: steps must not be negative, got {steps}")
    if callback_steps is not None and not (isinstance(callback_steps, int) and callback_steps >= 1):
        raise ValueError(
            f"{who}: callback_steps must be a whole number of steps from 1 on, got {callback_steps}"
        )


def check_length(who: str, data: Any) -> int:
    """The number of examples, which every array must have."""
    lengths = {
        jax.tree_util.keystr(p): np.shape(leaf)[0] if np.ndim(leaf) else 0
        for p, leaf in jax.tree_util.tree_flatten_with_path(data)[0]
    }
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            f"{who}: every array of the data needs the same number of examples, at least one; got {lengths}"
        )
    return next(iter(lengths.values()))


def initial_state(params: Any, optimizer: optax.GradientTransformation) -> FitState:
    """A run that has taken no step."""
    return FitState(
        params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.zeros((0,), jnp.float32)
    )


def begun(
    who: str,
    params: Any,
    optimizer: optax.GradientTransformation,
    steps: int,
    state: FitState | None,
) -> FitState:
    """Where a run of so many steps starts: a copy, since a loop gives its buffers away."""
    current: FitState = jax.tree.map(
        jnp.array, initial_state(params, optimizer) if state is None else state
    )
    if (done := int(current.step)) > steps:
        raise ValueError(
            f"{who}: the state has already taken {done} steps, and steps={steps} is the whole run's length"
        )
    return current


def check_losses(who: str, losses: Any, first: int) -> None:
    """Refuse losses, of the steps from `first` on, that are not finite."""
    finite = np.isfinite(losses)
    if not finite.all():
        bad = first + int(np.argmin(finite))
        raise ValueError(
            f"{who}: the loss is not finite at step {bad}: lower the learning rate, or check the data for NaN"
        )


def check_params(who: str, params: Any) -> None:
    """Refuse what has no gradient, by name."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
            raise TypeError(
                f"{who}: {jax.tree_util.keystr(path)} holds {jnp.asarray(leaf).dtype}; only float leaves are trained"
            )
