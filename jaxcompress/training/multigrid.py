"""Multigrid training: hidden axes are coarse at first, where a step is cheap, and refined on the way.

A level is a share of the channels. The network starts with every so many-th channel and trains; `refine` gives it more channels
and changes nothing that it computes, and training goes on: the cascade of multigrid, whose coarse solution starts the fine one.
Repeated channels are told apart by what reads them. The optimizer's state goes along: what is like a gradient by the adjoint map,
what is like its k-th power by its k-th root. With a share s of the channels a step costs between s and s^2 of a full one.

Sources: cascadic multigrid, Bornemann and Deuflhard 1996 (doi:10.1007/s002110050234); widening without change, Net2Net
(arXiv:1511.05641); multigrid of Transformers in depth and width, Multi-Level Framework (arXiv:2404.07999).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.networks.trace import Network
from jaxcompress.programs.compat import flops
from jaxcompress.training.fit import (
    FitState,
    Loss,
    advanced,
    check_fit,
    initial_state,
    pieces,
    stepped,
)
from jaxcompress.training.optimizer_state import Slot, carried, slots
from jaxcompress.transforms.resolution import coarse_size, refine, thin


@dataclasses.dataclass(frozen=True)
class MultigridState(FitState):
    """Where multigrid training stands: everything needed to go on.

    Attributes:
        params, opt_state, step, losses: as in `FitState`; the parameters have the sizes of their level.
        flops: what XLA counts for every step taken; the first of a level has the change of resolution with it.
    """

    flops: jax.Array

    @property
    def spent(self) -> float:
        """The FLOPs of all steps."""
        return float(np.sum(np.asarray(self.flops), dtype=np.float64))

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.spent:.3g} FLOPs)"


def with_flops(state: FitState, spent: np.ndarray) -> MultigridState:
    """A state of the one loop with what its steps cost."""
    return MultigridState(
        state.params, state.opt_state, state.step, state.losses, jnp.asarray(spent)
    )


FIELDS = [field.name for field in dataclasses.fields(MultigridState)]
jax.tree_util.register_dataclass(MultigridState, data_fields=FIELDS, meta_fields=[])

Levels = Iterable[tuple[float | Fraction, int]]


def multigrid(
    net: Network,
    loss: Loss,
    params: Any,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    levels: Levels,
    batch_size: int,
    split: float = 0.5,
    axes: str = "**",
    seed: int = 0,
    state: MultigridState | None = None,
    until: int | None = None,
    callback: Callable[[MultigridState], None] | None = None,
    callback_steps: int | None = None,
    progress: bool = True,
    description: str = "multigrid",
) -> MultigridState:
    """Train a network from few channels to all of them.

    Args:
        net: from `jc.trace`, at the full sizes.
        loss: `loss(params, batch, key) -> scalar` that runs at any sizes: `jc.training.cross_entropy(net)`.
        params: fresh parameters at the full sizes; the first level starts from a part of their channels.
        data: as for `jc.fit`.
        optimizer: any optax transformation that keeps a number for each parameter, or none; its schedule runs through all levels.
        levels: pairs of a factor and a number of steps, from the coarsest on: ((4, 3000), (2, 1000), (1, 1000)) trains with a
            quarter of the channels first and with all in the end.
        batch_size: examples a step.
        split: how far repeated channels are told apart, as in `jc.refine`.
        axes: a pattern of the hidden axes that change; those that cannot be resized stay.
        seed: the order of the examples, the keys of the loss, and what tells channels apart.
        state: go on from here; a run resumed with the same arguments is bit-equal to one that never stopped, on a CPU.
        until: stop after so many steps of the whole run; `state` goes on.
        callback: called with the state now and then and at every level's end: to judge it, or to write it to a file.
        callback_steps: steps between calls of `callback`; some twentieth of the run by default.
        progress: show a progress bar, with the level, the loss and the FLOPs spent.
        description: the words in front of it.

    Returns:
        The state after all steps, or after `until`.

    Raises:
        ValueError: for levels that do not go down to a factor of 1, an axis that cannot be refined from one level to the next, what
            `jc.fit` refuses, an optimizer whose state does not fit the parameters.
        TypeError: for a state that is not a `MultigridState`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> up, down, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(3, 16), (16, 2), (64, 3)]))
        >>> net = jc.trace(apply, {"up": up, "down": down / 4}, x)
        >>> state = jc.multigrid(
        ...     net, jc.training.cross_entropy(net), {"up": up, "down": down / 4}, (x, jnp.argmax(x[:, :2], 1)), optimizer=optax.adam(1e-2),
        ...     levels=((4, 40), (1, 20)), batch_size=16, progress=False,
        ... )
        >>> state.params["up"].shape, int(state.step), bool(state.losses[-1] < state.losses[0])
        ((3, 16), 60, True)
    """
    run = Run(net, loss, optimizer, check_levels(levels), axes, split, seed)
    total = sum(steps for _, steps in run.levels)
    check_fit("multigrid", params, data, total, batch_size, callback_steps)
    for name, leaf in named_leaves(params):
        if is_compact(leaf):
            raise ValueError(
                f"{name} is compact: multigrid trains dense parameters; compact what it gives"
            )
    if not (state is None or isinstance(state, MultigridState)):
        raise TypeError(
            f"multigrid goes on from what it gave, a MultigridState; got {type(state).__name__}"
        )
    if (done := 0 if state is None else int(state.step)) > total:
        raise ValueError(
            f"multigrid: the state has already taken {done} steps, and the levels have {total}"
        )
    stop = total if until is None else min(until, total)
    data = jax.tree.map(jnp.asarray, data)
    current = run.start(params) if state is None else jax.tree.map(jnp.array, state)
    found = (
        slots(optimizer, current.params) if len(run.levels) > 1 else []
    )  # refused before any work
    with tqdm(
        total=total, initial=done, desc=description, disable=not progress, leave=False
    ) as bar:
        for level, end in enumerate(np.cumsum([steps for _, steps in run.levels]).tolist()):
            if (done := int(current.step)) >= min(end, stop):
                continue
            run.check_sizes(
                current.params, level if done > end - run.levels[level][1] else max(level - 1, 0)
            )
            extra = 0.0
            if done == end - run.levels[level][1] and level:
                current, extra = run.refined(current, level, found)
            cost = step_flops(loss, optimizer, current, data, batch_size)
            counted = Counted(bar, run.levels[level][0], cost, current.flops, extra)
            given: dict[str, Any] = dict(
                optimizer=optimizer,
                batch_size=batch_size,
                seed=seed,
                callback_steps=callback_steps or pieces(total),
                bar=counted,
                who="multigrid",
            )
            seen = (
                None
                if callback is None
                else lambda state, counted=counted: callback(counted.state(state))
            )
            current = counted.state(
                advanced(loss, current, data, min(end, stop), callback=seen, **given)
            )
    return current


class Counted:
    """A progress bar that knows what a step costs."""

    def __init__(self, bar: Any, factor: Fraction, cost: float, before: Any, extra: float):
        self.bar, self.factor, self.cost = bar, factor, cost
        self.before = np.append(np.asarray(before), np.float32(cost + extra))

    def flops(self, step: int) -> np.ndarray:
        """Of each of so many steps."""
        return np.append(self.before, np.full(step, self.cost, np.float32))[:step]

    def state(self, state: FitState) -> MultigridState:
        return with_flops(state, self.flops(int(state.step)))

    def update(self, count: int) -> None:
        self.bar.update(count)

    def set_postfix(self, loss: str, refresh: bool) -> None:
        spent = float(self.flops(self.bar.n).sum(dtype=np.float64))
        self.bar.set_postfix(
            level=f"1/{self.factor}", loss=loss, FLOPs=f"{spent:.2e}", refresh=refresh
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from step to step."""

    net: Network
    loss: Loss
    optimizer: optax.GradientTransformation
    levels: tuple[tuple[Fraction, int], ...]
    pattern: str
    split: float
    seed: int

    @cached_property
    def axes(self) -> dict[str, int]:
        """The axes that change, with their full sizes: those that the first level makes smaller."""
        full = (
            {axis.key: axis.size for axis in self.net.structure.chosen(self.pattern)}
            if self.levels[0][0] > 1
            else {}
        )
        first = (
            jax.eval_shape(thin(self.net, self.levels[0][0], axes=self.pattern), self.net.full)
            if full
            else {}
        )
        present = self.sizes(first) if full else {}
        return {key: size for key, size in full.items() if present[key] != size}

    def at(self, level: int) -> dict[str, int]:
        """The sizes of the axes that change on a level."""
        return {key: coarse_size(size, self.levels[level][0]) for key, size in self.axes.items()}

    def start(self, params: Any) -> MultigridState:
        """The coarsest network, untrained."""
        marks = {axis.key: set(axis.marks) for axis in self.net.axes}
        for key in self.axes:
            sizes = [self.at(level)[key] for level in range(len(self.levels))]
            if {"normalised", "rms"} & marks[key] and any(
                b % a for a, b in itertools.pairwise(sizes)
            ):
                raise ValueError(
                    f"multigrid: a norm over {key} asks for whole factors, and its levels have {sizes} channels"
                )
        factor = self.levels[0][0]
        params = thin(self.net, factor, axes=self.pattern)(params) if factor > 1 else params
        return with_flops(
            jax.tree.map(jnp.array, initial_state(params, self.optimizer)), np.zeros(0, np.float32)
        )

    def refined(
        self, state: MultigridState, level: int, found: list[Slot]
    ) -> tuple[MultigridState, float]:
        """The state with the channels of a level, and the FLOPs of that."""
        before, after = self.at(level - 1), self.at(level)
        if before == after:
            return state, 0.0
        ratios = {key: Fraction(size, before[key]) for key, size in after.items()}
        change = refine(
            self.net, ratios, axes=self.pattern, split=self.split, seed=self.seed + level
        )
        opt_state = carried(self.optimizer, state.opt_state, state.params, change, found)
        trees = 1 + len(found) / max(len(jax.tree.leaves(state.params)), 1)
        cost = trees * flops(jax.jit(change).lower(state.params))
        return dataclasses.replace(state, params=change(state.params), opt_state=opt_state), cost

    def sizes(self, params: Any) -> dict[str, int]:
        """Of all axes, at present."""
        found = self.net.structure.sizes(
            {name: tuple(leaf.shape) for name, leaf in named_leaves(params)}
        )
        return {axis.key: axis.size for axis in self.net.axes} | found

    def check_sizes(self, params: Any, level: int) -> None:
        """Refuse a state of other levels."""
        present = self.sizes(params)
        for key, size in self.at(level).items():
            if present[key] != size:
                raise ValueError(
                    f"multigrid: the state has {present[key]} channels on {key} where its level has {size}: go on with the levels "
                    "that it began with"
                )


def step_flops(
    loss: Loss, optimizer: optax.GradientTransformation, state: FitState, data: Any, batch_size: int
) -> float:
    """Of one step, as XLA counts them before it optimises."""
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), data
    )
    step = jax.jit(partial(stepped, loss, optimizer))
    return flops(step.lower(state.params, state.opt_state, batch, jax.random.key(0)))


def check_levels(levels: Levels) -> tuple[tuple[Fraction, int], ...]:
    """Factors that go down to one, with steps."""
    found = []
    for level in levels:
        try:
            factor, steps = level
            found.append((Fraction(factor), int(steps)))
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"multigrid: a level is a factor and a number of steps, such as (4, 3000); got {level!r}"
            ) from None
        if not (1 <= factor < math.inf and steps == int(steps) >= 1):
            raise ValueError(
                f"multigrid: a level needs a factor from 1 on and at least one step, got {level!r}"
            )
    factors = [factor for factor, _ in found]
    if not found or factors[-1] != 1 or sorted(set(factors), reverse=True) != factors:
        raise ValueError(
            f"multigrid: the levels' factors must fall to 1, such as 4, 2, 1; got {[float(each) for each in factors]}"
        )
    return tuple(found)
