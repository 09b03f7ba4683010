"""Where a training run stands: its parameters, its optimizer, its losses and its learning curve.

A state is a pytree, so `jc.save` writes it and `jc.load(path, like=state)` reads it; a run that
goes on from it is the run that never stopped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxcompress.checks import shown
from jaxcompress.plotting import new_axes, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """Training and validation loss, one point every `callback_steps` steps.

    Attributes:
        steps: the number of steps taken before each point.
        training: the mean training loss of the steps since the previous point.
        validation: the mean loss over the validation data.

    Example:
        >>> import numpy as np, jaxcompress as jc
        >>> losses = np.array([0.7, 0.4]), np.array([0.8, 0.9])
        >>> jc.training.LearningCurve(np.array([10, 20]), *losses)
        LearningCurve(2 points, lowest validation loss 0.8 at step 10)
    """

    steps: Int[Array, " points"]
    training: Float[Array, " points"]
    validation: Float[Array, " points"]

    @property
    def best(self) -> int:
        """The point with the lowest validation loss, the first of equal ones."""
        return int(np.argmin(self.validation))

    @property
    def stale(self) -> int:
        """Points since the lowest validation loss."""
        return len(self.steps) - 1 - self.best if len(self.steps) else 0

    def plot(self, ax: Axes | None = None, *, path: str | Path | None = None) -> Axes:
        """Draw both losses against the steps, with the lowest validation loss marked.

        Args:
            ax: matplotlib axes to draw on; those of a new figure by default.
            path: a file to save the figure to, such as "curve.png".

        Returns:
            The axes.

        Raises:
            ImportError: when matplotlib is not installed.
            ValueError: for a curve without points.

        Example:
            >>> import numpy as np, jaxcompress as jc
            >>> losses = np.array([0.7, 0.4]), np.array([0.8, 0.9])
            >>> jc.training.LearningCurve(np.array([10, 20]), *losses).plot().get_xlabel()
            'step'
        """
        if not len(self.steps):
            raise ValueError("the learning curve has no points: the run has not reached a callback")
        axes: Axes = new_axes() if ax is None else ax
        axes.plot(self.steps, self.training, label="training")
        axes.plot(self.steps, self.validation, label="validation")
        axes.plot(self.steps[self.best], self.validation[self.best], "o", color="C1")
        axes.set(xlabel="step", ylabel="loss")
        axes.legend(frameon=False)
        save(axes.figure, path)
        return axes

    def __repr__(self) -> str:
        if not len(self.steps):
            return "LearningCurve(0 points)"
        lowest, step = float(self.validation[self.best]), int(self.steps[self.best])
        return (
            f"LearningCurve({len(self.steps)} points, "
            f"lowest validation loss {lowest:.4g} at step {step})"
        )


@dataclasses.dataclass(frozen=True)
class FitState:
    """Where a training run stands: everything needed to go on.

    Attributes:
        params: the parameters; with `patience`, those of the lowest validation loss.
        opt_state: the optimizer's state.
        step: the number of steps taken.
        losses: the loss of every step taken.
        curve: the learning curve, with validation data.
        latest: the parameters after the last step, from which the run goes on; with `patience`
            only, else `params` are.
    """

    params: PyTree
    opt_state: PyTree
    step: Int[Array, ""]
    losses: Float[Array, " steps"]
    curve: LearningCurve | None = None
    latest: PyTree = None

    def __repr__(self) -> str:
        last = f", loss {float(np.mean(self.losses[-20:])):.4g}" if np.size(self.losses) else ""
        return f"{type(self).__name__}(step {int(self.step)}{last})"


jax.tree_util.register_dataclass(
    LearningCurve, data_fields=["steps", "training", "validation"], meta_fields=[]
)
jax.tree_util.register_dataclass(
    FitState,
    data_fields=["params", "opt_state", "step", "losses", "curve", "latest"],
    meta_fields=[],
)


def initial_state(params: PyTree, optimizer: optax.GradientTransformation) -> FitState:
    """A run that has taken no step."""
    return FitState(
        params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.zeros((0,), jnp.float32)
    )


def check_optimizer_state(
    who: str, optimizer: optax.GradientTransformation, state: FitState
) -> None:
    """Refuse a state of another optimizer than the one that goes on."""
    params = state.params if state.latest is None else state.latest
    trees = state.opt_state, jax.eval_shape(optimizer.init, params)
    given, expected = map(jax.tree.structure, trees)
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in trees]
    if given != expected or shapes[0] != shapes[1]:
        raise ValueError(
            f"{who}: the state is of another optimizer: its opt_state is {shown(given)}, and this "
            f"optimizer's {shown(expected)}: go on with the optimizer that the run began with"
        )


def starting_state(
    who: str,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    steps: int,
    state: FitState | None,
) -> FitState:
    """Where a run of `steps` steps starts: a copy, since the loop donates its buffers."""
    if state is not None:
        check_optimizer_state(who, optimizer, state)
    current: FitState = jax.tree.map(
        jnp.array, initial_state(params, optimizer) if state is None else state
    )
    if (done := int(current.step)) > steps:
        raise ValueError(
            f"{who}: the state has already taken {done} steps, and steps={steps} is the length "
            "of the run from its beginning"
        )
    return current
