"""Multigrid training: hidden axes are coarse at first, where a step is cheap, then refined.

A level keeps a share of the channels. The network starts with every k-th channel and trains;
`refine` adds channels without changing the function, and training goes on: the cascade of
multigrid, whose coarse solution starts the fine one. A perturbation of the consumers breaks the
symmetry of repeated channels. The optimizer's state is refined as well: arrays that scale with the
gradient by the adjoint map, arrays that scale with its k-th power through the k-th root. With a
share s of the channels a step costs between s and s^2 of a full one.

Sources: cascadic multigrid, Bornemann and Deuflhard 1996 (doi:10.1007/s002110050234); widening
without change, Net2Net (arXiv:1511.05641); multigrid of Transformers in depth and width,
Multi-Level Framework (arXiv:2404.07999).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checks import (
    LOSS,
    arrays_in,
    checked,
    explained,
    function,
    is_number,
    is_whole,
    number,
    path_pattern,
    seeds,
    whole,
)
from jaxcompress.checks import optimizer as optimizer_kind
from jaxcompress.networks.trace import Network, network
from jaxcompress.programs.compat import flops
from jaxcompress.training.checks import check_fit
from jaxcompress.training.fit import Loop, copied, default_callback_steps, update
from jaxcompress.training.losses import Loss
from jaxcompress.training.optimizer_state import Accumulator, accumulators, refine_state
from jaxcompress.training.state import FitState, check_optimizer_state, initial_state
from jaxcompress.transforms.resolution import coarse_size, refine, thin


@dataclasses.dataclass(frozen=True)
class MultigridState(FitState):
    """Where multigrid training stands: everything needed to go on.

    Attributes:
        params: the parameters, at the sizes of their level.
        opt_state: the optimizer's state, at the same sizes.
        step: the number of steps taken.
        losses: the loss of every step taken.
        flops: the FLOPs of every step taken, as XLA counts them; the first of a level includes the
            refinement.
    """

    flops: Float[Array, " steps"] = dataclasses.field(kw_only=True)

    @property
    def spent(self) -> float:
        """The FLOPs of all steps."""
        return float(np.sum(np.asarray(self.flops), dtype=np.float64))

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.spent:.3g} FLOPs)"


FIELDS = [field.name for field in dataclasses.fields(MultigridState)]
jax.tree_util.register_dataclass(MultigridState, data_fields=FIELDS, meta_fields=[])

Levels = Iterable[tuple[float | Fraction, int]]


@checked(
    net=network,
    loss=function(LOSS),
    optimizer=optimizer_kind,
    batch_size=whole(),
    split=number("[0, inf)", "such as 0.5"),
    axes=path_pattern,
    seed=seeds,
    until=whole(0),
    callback=function("callback(state)"),
    callback_steps=whole(),
)
def multigrid(
    net: Network,
    loss: Loss,
    params: PyTree,
    data: PyTree,
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
        loss: `loss(params, batch, key) -> scalar` that runs at any sizes:
            `jc.training.cross_entropy(net)`.
        params: fresh parameters at the full sizes; the first level starts from a subset of their
            channels.
        data: as for `jc.fit`.
        optimizer: any optax transformation that keeps a number for each parameter, or none; its
            schedule spans all levels.
        levels: pairs of a factor and a number of steps, from the coarsest on: ((4, 3000), (2,
            1000), (1, 1000)) trains with a quarter of the channels first and with all in the end.
        batch_size: examples per step.
        split: the size of the perturbation that breaks the symmetry of repeated channels, as in
            `jc.refine`.
        axes: a pattern of the hidden axes that change; those that cannot be resized keep their
            size.
        seed: determines the order of the examples, the keys of the loss, and the perturbations.
        state: resume from this state; with the same arguments the run is bit-equal to one that
            never stopped, on a CPU.
        until: stop after this step of the run; `state` resumes.
        callback: called with the state every `callback_steps` steps and at the end of every level.
        callback_steps: steps between two calls of `callback`; about a twentieth of the run by
            default.
        progress: show a progress bar, with the level, the loss and the FLOPs spent.
        description: the label of the bar.

    Returns:
        The state after all steps, or after `until`.

    Raises:
        ValueError: for levels whose factors do not fall to 1, an axis that cannot be refined from
            one level to the next, what `jc.fit` refuses, an optimizer whose state does not fit the
            parameters.
        TypeError: for a state that is not a `MultigridState`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> up, down, x = map(jax.random.normal, keys, ((3, 16), (16, 2), (64, 3)))
        >>> params = {"up": up, "down": down / 4}
        >>> net = jc.trace(apply, params, x)
        >>> loss, data = jc.training.cross_entropy(net), (x, jnp.argmax(x[:, :2], 1))
        >>> options = dict(levels=((4, 40), (1, 20)), batch_size=16, progress=False)
        >>> state = jc.multigrid(net, loss, params, data, optimizer=optax.adam(1e-2), **options)
        >>> state.params["up"].shape, int(state.step), bool(state.losses[-1] < state.losses[0])
        ((3, 16), 60, True)
    """
    cascade = Cascade(net, optimizer, check_levels(levels), axes, split, seed)
    total = cascade.ends[-1]
    check_fit("multigrid", params, data, batch_size)
    check_resumable(params, state, total)
    _check_trees(net, params, optimizer, state)
    stop = total if until is None else min(until, total)
    data = jax.tree.map(jnp.asarray, data)
    current = cascade.start(params) if state is None else copied(state)
    kinds = accumulators(optimizer, current.params) if len(cascade.levels) > 1 else []
    callback_steps = callback_steps or default_callback_steps(total)
    loop = Loop("multigrid", loss, optimizer, batch_size, seed, callback_steps)
    shown = {"desc": description, "disable": not progress, "leave": False}
    with tqdm(total=total, initial=int(current.step), **shown) as bar:
        while (done := int(current.step)) < stop:
            level = cascade.level_of(done)
            current, flops = cascade.enter(current, level, kinds)
            observe = partial(_observe, bar, callback, cascade.levels[level][0])
            end = min(cascade.ends[level], stop)
            current = _train_level(loop, current, data, end, flops, observe)
    return dataclasses.replace(current, losses=jnp.asarray(current.losses))


def check_resumable(params: PyTree, state: MultigridState | None, total: int) -> None:
    """Refuse compact parameters and a state that is not one of this run."""
    check_dense(params)
    check_state(state, total)


def _check_trees(
    net: Network,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    state: MultigridState | None,
) -> None:
    """Refuse parameters of another network, and another optimizer's state."""
    net.structure.check_names([name for name, _ in named_leaves(params)])
    if state is not None:
        check_optimizer_state("multigrid", optimizer, state)


def _train_level(
    loop: Loop,
    current: MultigridState,
    data: PyTree,
    end: int,
    flops: float,
    observe: Callable[[MultigridState, int], None],
) -> MultigridState:
    """Train until a level ends; `flops`, the cost of entering it, counts with its first step."""
    cost = step_flops(loop.loss, loop.optimizer, current, data, loop.batch_size)
    while (done := int(current.step)) < end:
        current = with_flops(loop.advance(current, data, end), cost, flops)
        flops = 0.0
        observe(current, int(current.step) - done)
    return current


def _observe(
    bar: tqdm,
    callback: Callable[[MultigridState], None] | None,
    factor: Fraction,
    state: MultigridState,
    steps: int,
) -> None:
    """Show progress, and hand a copy of the state on: the loop donates its buffers."""
    show(bar, state, factor, steps)
    if callback is not None:
        callback(copied(state))


def with_flops(state: MultigridState, cost: float, extra: float) -> MultigridState:
    """A state whose latest steps cost `cost` FLOPs each, the first of them `extra` more."""
    before = np.asarray(state.flops)
    new = np.full(int(state.step) - len(before), cost, np.float32)
    new[0] = cost + extra
    return dataclasses.replace(state, flops=jnp.asarray(np.concatenate([before, new])))


def show(bar: tqdm, state: MultigridState, factor: Fraction, count: int) -> None:
    """Bring a progress bar forward by `count` steps."""
    bar.update(count)
    bar.set_postfix(
        level=f"1/{factor}",
        loss=f"{np.mean(state.losses[-count:]):.4g}",
        FLOPs=f"{state.spent:.2e}",
        refresh=False,
    )


@dataclasses.dataclass(frozen=True)
class Cascade:
    """The levels of a run, and the changes between them."""

    net: Network
    optimizer: optax.GradientTransformation
    levels: tuple[tuple[Fraction, int], ...]
    pattern: str
    split: float
    seed: int

    @cached_property
    def ends(self) -> list[int]:
        """The step at which each level ends."""
        return np.cumsum([steps for _, steps in self.levels]).tolist()

    @cached_property
    def axes(self) -> dict[str, int]:
        """The axes that change, with their full sizes: those that the first level makes smaller."""
        factor = self.levels[0][0]
        if factor <= 1:
            return {}
        first = jax.eval_shape(thin(self.net, factor, axes=self.pattern), self.net.full)
        present = self.sizes(first)
        chosen = self.net.structure.chosen(self.pattern)
        return {axis.key: axis.size for axis in chosen if present[axis.key] != axis.size}

    def sizes_at(self, level: int) -> dict[str, int]:
        """The sizes of the axes that change, on a level."""
        return {key: coarse_size(size, self.levels[level][0]) for key, size in self.axes.items()}

    def sizes(self, params: PyTree) -> dict[str, int]:
        """The present sizes of all axes."""
        shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(params)}
        return {axis.key: axis.size for axis in self.net.axes} | self.net.structure.sizes(shapes)

    def level_of(self, done: int) -> int:
        """The level of the step after `done` steps."""
        return next(level for level, end in enumerate(self.ends) if done < end)

    def start(self, params: PyTree) -> MultigridState:
        """The coarsest network, untrained."""
        self.check_norms()
        factor = self.levels[0][0]
        params = thin(self.net, factor, axes=self.pattern)(params) if factor > 1 else params
        state = initial_state(params, self.optimizer)
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        return copied(MultigridState(**fields, flops=jnp.zeros(0, jnp.float32)))

    def check_norms(self) -> None:
        """Refuse levels on which a norm would have a mean over channels of unequal multiplicity."""
        marks = {axis.key: set(axis.marks) for axis in self.net.axes}
        for key in self.axes:
            sizes = [self.sizes_at(level)[key] for level in range(len(self.levels))]
            uneven = any(fine % coarse for coarse, fine in itertools.pairwise(sizes))
            if {"normalised", "rms"} & marks[key] and uneven:
                raise ValueError(
                    f"multigrid: a norm over {key} asks for whole factors, and its levels have "
                    f"{sizes} channels"
                )

    def enter(
        self, state: MultigridState, level: int, kinds: Sequence[Accumulator]
    ) -> tuple[MultigridState, float]:
        """The state at the sizes of its level, and the FLOPs of refining it if the level begins."""
        begins = level > 0 and int(state.step) == self.ends[level - 1]
        present = self.sizes(state.params)
        for key, size in self.sizes_at(level - begins).items():
            if present[key] != size:
                raise ValueError(
                    f"multigrid: the state has {present[key]} channels on {key} where its level "
                    f"has {size}: go on with the levels that it began with"
                )
        return self.refine(state, level, kinds) if begins else (state, 0.0)

    def refine(
        self, state: MultigridState, level: int, kinds: Sequence[Accumulator]
    ) -> tuple[MultigridState, float]:
        """The state with the channels of a level, and the FLOPs of that."""
        before, after = self.sizes_at(level - 1), self.sizes_at(level)
        if before == after:
            return state, 0.0
        ratios = {key: Fraction(size, before[key]) for key, size in after.items()}
        change = refine(
            self.net, ratios, axes=self.pattern, split=self.split, seed=(self.seed + level) % 2**32
        )
        opt_state = refine_state(self.optimizer, state.opt_state, state.params, change, kinds)
        trees = 1 + len(kinds) / max(len(jax.tree.leaves(state.params)), 1)
        cost = trees * flops(jax.jit(change).lower(state.params))
        return dataclasses.replace(state, params=change(state.params), opt_state=opt_state), cost


def step_flops(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    state: FitState,
    data: PyTree,
    batch_size: int,
) -> float:
    """The FLOPs of one step, as XLA counts them before optimisation."""
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), data
    )
    step = jax.jit(partial(update, loss, optimizer))
    with explained(f"multigrid: {LOSS} cannot be computed from {arrays_in(batch)}"):
        return flops(step.lower(state.params, state.opt_state, batch, jax.random.key(0)))


def check_dense(params: PyTree) -> None:
    """Refuse compact arrays, by name."""
    for name, leaf in named_leaves(params):
        if is_compact(leaf):
            raise ValueError(
                f"{name} is compact: multigrid trains dense parameters; compact the trained ones"
            )


def check_state(state: MultigridState | None, total: int) -> None:
    """Refuse a state of another loop, or one beyond the last level."""
    if state is None:
        return
    if not isinstance(state, MultigridState):
        raise TypeError(
            f"multigrid resumes from what it returned, a MultigridState; got {type(state).__name__}"
        )
    if (done := int(state.step)) > total:
        raise ValueError(
            f"multigrid: the state has already taken {done} steps, and the levels have {total}"
        )


def check_levels(levels: Levels) -> tuple[tuple[Fraction, int], ...]:
    """Factors that fall to one, with numbers of steps."""
    if isinstance(levels, str) or not isinstance(levels, Iterable):
        raise ValueError(  # noqa: TRY004 (as for levels of another form)
            "multigrid: levels are pairs of a factor and a number of steps, such as ((2, 1000), "
            f"(1, 1000)); got {levels!r}"
        )
    pairs = tuple(_check_level(level) for level in levels)
    factors = [factor for factor, _ in pairs]
    if not pairs or factors[-1] != 1 or sorted(set(factors), reverse=True) != factors:
        raise ValueError(
            "multigrid: the levels' factors must fall to 1, such as 4, 2, 1; "
            f"got {[float(factor) for factor in factors]}"
        )
    return pairs


def _check_level(level: tuple[float | Fraction, int]) -> tuple[Fraction, int]:
    """One level's factor and number of steps."""
    pair = isinstance(level, Sequence) and not isinstance(level, str) and len(level) == 2
    numbers = pair and is_number(level[0]) and is_whole(level[1], least=0)
    if not (numbers and math.isfinite(level[0])):
        raise ValueError(
            "multigrid: a level is a factor and a number of steps, such as (4, 3000); "
            f"got {level!r}"
        )
    factor, steps = level
    if not (factor >= 1 and steps):
        raise ValueError(
            f"multigrid: a level needs a factor from 1 on and at least one step, got {level!r}"
        )
    return Fraction(factor), int(steps)
