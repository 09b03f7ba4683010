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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.networks.trace import Network
from jaxcompress.training.fit import FitState, Loss, advanced, check_fit, initial_state, pieces
from jaxcompress.transforms.resolution import Refine, coarse_size, coarsen, refine, thin


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
    watch: Callable[[MultigridState], None] | None = None,
    every: int | None = None,
    progress: bool = True,
    description: str = "multigrid",
) -> MultigridState:
    """Train a network from few channels to all of them.

    Args:
        net: from `jc.trace`, at the full sizes.
        loss: `loss(params, batch, key) -> scalar` that runs at any sizes: `jc.cross_entropy(net)`.
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
        watch: called with the state now and then and at every level's end: to judge it, or to write it to a file.
        every: steps between calls of `watch`; some twentieth of the run by default.
        progress: show a progress bar, with the level, the loss and the FLOPs spent.
        description: the words in front of it.

    Returns:
        The state after all steps, or after `until`.

    Raises:
        ValueError: for levels that do not go down to a factor of 1, an axis that cannot be refined from one level to the next, what
            `jc.fit` refuses, an optimizer whose state does not fit the parameters.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> up, down, x = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(3, 16), (16, 2), (64, 3)]))
        >>> net = jc.trace(apply, {"up": up, "down": down / 4}, x)
        >>> state = jc.multigrid(
        ...     net, jc.cross_entropy(net), {"up": up, "down": down / 4}, (x, jnp.argmax(x[:, :2], 1)), optimizer=optax.adam(1e-2),
        ...     levels=((4, 40), (1, 20)), batch_size=16, progress=False,
        ... )
        >>> state.params["up"].shape, int(state.step), bool(state.losses[-1] < state.losses[0])
        ((3, 16), 60, True)
    """
    run = Run(net, loss, optimizer, check_levels(levels), axes, split, seed)
    total = sum(steps for _, steps in run.levels)
    check_fit("multigrid", params, data, total, batch_size, every)
    for name, leaf in named_leaves(params):
        if is_compact(leaf):
            raise ValueError(f"{name} is compact: multigrid trains dense parameters; compact what it gives")
    if (done := 0 if state is None else int(state.step)) > total:
        raise ValueError(f"multigrid: the state has already taken {done} steps, and the levels have {total}")
    stop = total if until is None else min(until, total)
    data = jax.tree.map(jnp.asarray, data)
    current = run.start(params) if state is None else jax.tree.map(jnp.array, state)
    with tqdm(total=total, initial=done, desc=description, disable=not progress, leave=False) as bar:
        for level, end in enumerate(np.cumsum([steps for _, steps in run.levels]).tolist()):
            if (done := int(current.step)) >= min(end, stop):
                continue
            run.check_sizes(current.params, level if done > end - run.levels[level][1] else max(level - 1, 0))
            extra = 0.0
            if done == end - run.levels[level][1] and level:
                current, extra = run.refined(current, level)
            cost = run.step_flops(current, data, batch_size)
            counted = Counted(bar, run.levels[level][0], cost, current.flops, extra)
            given: dict[str, Any] = dict(
                optimizer=optimizer, batch_size=batch_size, seed=seed, every=every or pieces(total), bar=counted, who="multigrid"
            )
            fitted = FitState(current.params, current.opt_state, current.step, current.losses)
            seen = None if watch is None else lambda state, counted=counted: watch(counted.state(state))
            current = counted.state(advanced(loss, fitted, data, min(end, stop), watch=seen, **given))
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
        flops = jnp.asarray(self.flops(int(state.step)))
        return MultigridState(state.params, state.opt_state, state.step, state.losses, flops)

    def update(self, count: int) -> None:
        self.bar.update(count)

    def set_postfix(self, loss: str, refresh: bool) -> None:
        spent = float(self.flops(self.bar.n).sum(dtype=np.float64))
        self.bar.set_postfix(level=f"1/{self.factor}", loss=loss, FLOPs=f"{spent:.2e}", refresh=refresh)


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from step to step."""

    net: Network
    loss: Loss
    optimizer: optax.GradientTransformation
    levels: tuple[tuple[Fraction, int], ...]
    axes: str
    split: float
    seed: int

    def start(self, params: Any) -> MultigridState:
        """The coarsest network, untrained."""
        factor = self.levels[0][0]
        changed = thin(self.net, factor, axes=self.axes)(params) if factor > 1 else jax.tree.map(jnp.array, params)
        present = self.sizes(changed)
        for axis in self.net.axes.matching(self.axes):
            sizes = [coarse_size(axis.size, factor) for factor, _ in self.levels]
            if (
                present[axis.key] != axis.size
                and {"normalised", "rms"} & set(axis.marks)
                and any(b % a for a, b in itertools.pairwise(sizes))
            ):
                raise ValueError(f"multigrid: a norm over {axis.key} asks for whole factors, and its levels have {sizes} channels")
        if len(self.levels) > 1:  # before any work
            slots(self.optimizer, changed)
        state = jax.tree.map(jnp.array, initial_state(changed, self.optimizer))
        return MultigridState(state.params, state.opt_state, state.step, state.losses, jnp.zeros((0,), jnp.float32))

    def refined(self, state: MultigridState, level: int) -> tuple[MultigridState, float]:
        """The state with the channels of a level, and the FLOPs of that."""
        if not (ratios := self.ratios(state.params, level)):
            return state, 0.0
        change = refine(self.net, ratios, axes=self.axes, split=self.split, seed=self.seed + level)
        found = slots(self.optimizer, state.params)
        opt_state = carried(self.optimizer, state.opt_state, state.params, change, found)
        cost = (1 + len(found) / max(len(jax.tree.leaves(state.params)), 1)) * flops(change, state.params)
        return MultigridState(change(state.params), opt_state, state.step, state.losses, state.flops), cost

    def sizes(self, params: Any) -> dict[str, int]:
        """Of the axes that change, at present."""
        found = self.net.structure.sizes({name: tuple(leaf.shape) for name, leaf in named_leaves(params)})
        return {axis.key: found.get(axis.key) or axis.size for axis in self.net.axes.matching(self.axes)}

    def check_sizes(self, params: Any, level: int) -> None:
        """Refuse a state of other levels."""
        factor, sizes = self.levels[level][0], self.sizes(params)
        for axis in self.net.axes.matching(self.axes):
            if sizes[axis.key] not in (expected := coarse_size(axis.size, factor), axis.size):
                raise ValueError(
                    f"multigrid: the state has {sizes[axis.key]} channels on {axis.key} where its level has {expected}: go on with "
                    "the levels that it began with"
                )

    def ratios(self, params: Any, level: int) -> dict[str, Fraction]:
        """How many times as many channels each axis has on a level; those that stay are left out."""
        sizes = self.sizes(params)
        (before, _), (after, _) = self.levels[level - 1 : level + 1]
        found = {}
        for axis in self.net.axes.matching(self.axes):
            if sizes[axis.key] == (now := coarse_size(axis.size, before)):  # else it could not be resized at first
                found[axis.key] = Fraction(coarse_size(axis.size, after), now)
        return {key: ratio for key, ratio in found.items() if ratio != 1}

    def step_flops(self, state: MultigridState, data: Any, batch_size: int) -> float:
        """Of one step, as XLA counts them."""

        def step(params: Any, opt_state: Any, batch: Any, key: jax.Array) -> Any:
            value, gradient = jax.value_and_grad(self.loss)(params, batch, key)
            updates, opt_state = self.optimizer.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), data)
        return flops(step, state.params, state.opt_state, batch, jax.random.key(0))


def flops(program: Callable[..., Any], *arguments: Any) -> float:
    """What XLA counts for one call, before it optimises."""
    costs = jax.jit(program).lower(*arguments).cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    return float((costs or {}).get("flops", float("nan")))


def check_levels(levels: Levels) -> tuple[tuple[Fraction, int], ...]:
    """Factors that go down to one, with steps."""
    found = []
    for level in levels:
        try:
            factor, steps = level
            found.append((Fraction(factor), int(steps)))
        except (TypeError, ValueError):
            raise ValueError(f"multigrid: a level is a factor and a number of steps, such as (4, 3000); got {level!r}") from None
        if not (1 <= factor < math.inf and steps == int(steps) >= 1):
            raise ValueError(f"multigrid: a level needs a factor from 1 on and at least one step, got {level!r}")
    factors = [factor for factor, _ in found]
    if not found or factors[-1] != 1 or sorted(set(factors), reverse=True) != factors:
        raise ValueError(f"multigrid: the levels' factors must fall to 1, such as 4, 2, 1; got {[float(each) for each in factors]}")
    return tuple(found)


# --- the optimizer's state -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Slot:
    """An array in an optimizer's state that belongs to one parameter.

    Attributes:
        number: the parameter's, in the order of the tree's leaves.
        power: of the gradient, which it grows with; 0 for what is like the steps that a normalising optimizer takes.
        like_params: whether it starts as a copy of the parameter, such as an average of it.
        adds: whether it adds to what it starts from, as adagrad's sums do.
    """

    number: int
    power: int = 0
    like_params: bool = False
    adds: bool = False


def arrays(optimizer: optax.GradientTransformation, state: Any, params: Any) -> list[tuple[int, Any]]:
    """The state's arrays that belong to a parameter, each with the parameter's number."""
    found: list[tuple[int, Any]] = []

    def collect(leaf: Any, number: int) -> Any:
        if not masked(leaf):
            found.append((number, leaf))
        return leaf

    optax.tree_utils.tree_map_params(optimizer.init, collect, state, numbered(params), is_leaf=masked)
    return found


def masked(leaf: Any) -> bool:
    """Whether a parameter is left out of a part of the state."""
    return isinstance(leaf, optax.MaskedNode)


def numbered(params: Any) -> Any:
    """A tree with every leaf's number."""
    treedef = jax.tree.structure(params)
    return jax.tree.unflatten(treedef, range(treedef.num_leaves))


TRIALS, SCALES = 8, (1e-3, 1e-5, 1e-1, 1e1)
"""Steps that a trial takes, and the gradients it takes them with: first what is seldom clipped, and above usual epsilons."""


def slots(optimizer: optax.GradientTransformation, params: Any) -> list[Slot]:
    """What each array in the state is, found by trying a few steps at the parameters' own shapes.

    Raises:
        ValueError: for an array of another shape than its parameter's, or one that is neither like the parameter nor like a power
            of the gradient.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxcompress.training.multigrid import slots
        >>> [slot.power for slot in slots(optax.adam(1e-3), {"w": jnp.ones((3, 4))})]
        [1, 2]
    """
    leaves = jax.tree.leaves(params)
    ones = jax.tree.map(jnp.ones_like, params)

    def first(state: Any) -> jax.Array:  # one entry of each has a gradient, so that the norm of all is small
        return jnp.stack([leaf.ravel()[0].astype(jnp.float32) for _, leaf in arrays(optimizer, state, params)])

    @jax.jit
    def tried(scale: jax.Array) -> jax.Array:  # (trials, arrays): some accumulate, and are emptied now and then
        def step(state: Any, turn: jax.Array) -> tuple[Any, jax.Array]:
            entry = scale * (1 + 0.1 * turn)
            gradient = jax.tree.map(lambda leaf: jnp.zeros_like(leaf).at[(0,) * leaf.ndim].set(entry.astype(leaf.dtype)), params)
            state = optimizer.update(gradient, state, ones)[1]
            return state, first(state)

        return jax.lax.scan(step, jax.tree.map(jnp.asarray, optimizer.init(ones)), jnp.arange(TRIALS, dtype=jnp.float32))[1]

    begin = arrays(optimizer, optimizer.init(params), params)
    wrong = [(leaf.shape, leaves[number].shape) for number, leaf in begin if leaf.shape != leaves[number].shape]
    if wrong:
        raise ValueError(
            f"multigrid: the optimizer keeps an array of shape {wrong[0][0]} for a parameter of shape {wrong[0][1]}; take one that "
            "keeps a number for each parameter, such as optax.adam"
        )
    if not begin:
        return []
    at_ones, at_twos = (np.asarray(first(optimizer.init(tree))) for tree in (ones, jax.tree.map(lambda leaf: 2 * leaf, ones)))
    still = np.asarray(tried(jnp.float32(0)))
    found = [
        Slot(
            number,
            like_params=bool(at_ones[place] != at_twos[place]),
            adds=bool(at_ones[place] == at_twos[place] and (still[:, place] == at_ones[place]).all()),
        )
        for place, (number, _) in enumerate(begin)
    ]
    left = {place for place, slot in enumerate(found) if not slot.like_params}
    for scale in SCALES if left else ():
        once, twice = (np.asarray(tried(jnp.float32(times * scale))) - still for times in (1, 2))
        for place in sorted(left):
            turn = int(np.abs(once[:, place]).argmax())
            grown, more = once[turn, place], twice[turn, place]
            power = math.log2(more / grown) if grown and more / grown > 0.5 else -1.0
            if 0 <= round(power) <= 4 and abs(power - round(power)) < 0.05:
                found[place] = dataclasses.replace(found[place], power=round(power))
                left.discard(place)
    if left:
        raise ValueError(
            "multigrid: the optimizer keeps an array that is neither like its parameter nor like a power of the gradient, so that "
            "it cannot be refined; take one such as optax.adam"
        )
    return found


def carried(optimizer: optax.GradientTransformation, state: Any, params: Any, change: Refine, found: list[Slot]) -> Any:
    """An optimizer's state at the sizes that a change of resolution gives its parameters."""
    whole, treedef = dataclasses.replace(change, split=0.0), jax.tree.structure(params)
    # an accumulator need not start at zero
    begin, after = (arrays(optimizer, optimizer.init(tree), params) for tree in (params, whole(params)))
    now = arrays(optimizer, state, params)
    mapped: dict[int, jax.Array] = {}
    for kind in dict.fromkeys((slot.power, slot.like_params) for slot in found):
        waiting = [place for place, slot in enumerate(found) if (slot.power, slot.like_params) == kind]
        while waiting:  # a tree takes one array of each parameter
            chosen = {found[place].number: place for place in reversed(waiting)}
            rows = []
            for number, leaf in enumerate(jax.tree.leaves(params)):
                place = chosen.get(number)
                if place is None:
                    rows.append(jnp.zeros_like(leaf))
                else:
                    rows.append(now[place][1] - begin[place][1] if found[place].adds else now[place][1])
            tree = jax.tree.leaves(at_power(whole, jax.tree.unflatten(treedef, rows), *kind))
            for number, place in chosen.items():
                mapped[place] = tree[number] + after[place][1] if found[place].adds else tree[number]
            waiting = [place for place in waiting if place not in mapped]
    turn = itertools.count()
    put = lambda leaf, _: leaf if masked(leaf) else mapped[next(turn)].astype(leaf.dtype)
    return optax.tree_utils.tree_map_params(optimizer.init, put, state, numbered(params), is_leaf=masked)


def at_power(change: Refine, tree: Any, power: int, like_params: bool) -> Any:
    """What is like the k-th power of gradients, changed as the k-th power of what they would be."""
    if like_params:
        return change(tree)
    if power == 0:
        return change.of("steps")(tree)
    if power == 1:
        return change.of("gradients")(tree)
    root = jax.tree.map(lambda leaf: jnp.abs(leaf) ** (1 / power), tree)
    return jax.tree.map(lambda leaf: leaf**power, change.of("gradients")(root))


# --- training that serves every resolution ---------------------------------------------------------------------------


def at_any_resolution(
    net: Network,
    loss: Loss,
    factors: Iterable[float | Fraction] = (1, Fraction(4, 3), 2, 4),
    *,
    basis: str = "step",
    axes: str = "**",
) -> Loss:
    """A loss at a random resolution each time: the network that it trains can be coarsened without fine-tuning.

    Args:
        net: from `jc.trace`.
        loss: `loss(params, batch, key) -> scalar` that runs at any sizes: `jc.cross_entropy(net)`.
        factors: how many times fewer channels, one of them each time; 1 is all of them. Afterwards
            `jc.coarsen(net, factor)(params)` is a network for these factors and for those in between.
        basis, axes: as for `jc.coarsen`.

    Returns:
        A loss of parameters at the full sizes, for `jc.fit`; each factor is compiled as a branch of its own.

    Raises:
        ValueError: for no factor, or one below 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params, x = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}, jnp.ones((5, 3))
        >>> net = jc.trace(apply, params, x)
        >>> loss = jc.at_any_resolution(net, jc.cross_entropy(net), (1, 2))
        >>> jax.grad(loss)(params, (x, jnp.zeros(5, int)), jax.random.key(0))["up"].shape
        (3, 8)
    """
    changes = [coarsen(net, factor, basis=basis, axes=axes) for factor in factors]
    if not changes:
        raise ValueError("at_any_resolution needs factors, such as (1, 2, 4)")

    def anywhere(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        which, rest = jax.random.split(key)
        branches = [lambda params, change=change: loss(change(params), batch, rest) for change in changes]
        return jax.lax.switch(jax.random.randint(which, (), 0, len(branches)), branches, params)

    return anywhere
