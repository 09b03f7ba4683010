"""An optimizer's state at another resolution of its parameters.

Where `refine` repeats channels by a matrix P with dual D, the gradients of the refined network are
the coarse ones under the adjoint map: D where an axis is produced, P' where it is consumed. The
optimizer's arrays follow: one that scales with the k-th power of the gradient is mapped as the
power of its root, one that scales like a normalised step is repeated, and a copy of the parameters
is refined as they are.

Names of optax's fields do not tell these apart (the `trace` of momentum scales with the gradient
after `optax.sgd`, and not at all after `optax.adam` or `optax.rmsprop`), so the power is measured:
a few steps with gradients of known scale. Costs those steps, and one change of resolution for each
kind of array.

Source: the chain rule; `optax.tree_utils.tree_map_params` for the arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxcompress.transforms.resolution import Refine

TRIAL_STEPS = 8
"""More than the steps after which an accumulation of gradients is usually emptied."""

TRIAL_SCALES = (1e-3, 1e-5, 1e-1, 1e1)
"""Of the trial gradients: first one that is seldom clipped and above usual epsilons."""


@dataclasses.dataclass(frozen=True)
class Accumulator:
    """An array in an optimizer's state that belongs to one parameter.

    Attributes:
        parameter: the number of the parameter among the tree's leaves.
        power: of the gradient, that the array scales with; 0 for one that scales like a normalised
            step.
        copies_params: whether it starts as a copy of the parameter, such as an average of it.
        adds: whether it adds to its initial value, as the sums of adagrad do.
    """

    parameter: int
    power: int = 0
    copies_params: bool = False
    adds: bool = False


def arrays(
    optimizer: optax.GradientTransformation, state: PyTree, params: PyTree
) -> list[tuple[int, jax.Array]]:
    """The state's arrays that belong to a parameter, each with the parameter's number."""
    pairs: list[tuple[int, jax.Array]] = []

    def collect(leaf: jax.Array, number: int) -> jax.Array:
        if not _masked(leaf):
            pairs.append((number, leaf))
        return leaf

    _map_arrays(optimizer, collect, state, params)
    return pairs


def with_arrays(
    optimizer: optax.GradientTransformation,
    state: PyTree,
    params: PyTree,
    new: Iterator[jax.Array],
) -> PyTree:
    """The state with other arrays, in the order of `arrays`, in their dtypes."""

    def replace(leaf: jax.Array, _: int) -> jax.Array:
        return leaf if _masked(leaf) else next(new).astype(leaf.dtype)

    return _map_arrays(optimizer, replace, state, params)


def _map_arrays(optimizer, function, state: PyTree, params: PyTree) -> PyTree:
    """Apply `function(array, parameter's number)` to the arrays of parameters."""
    treedef = jax.tree.structure(params)
    numbers = jax.tree.unflatten(treedef, range(treedef.num_leaves))
    return optax.tree_utils.tree_map_params(
        optimizer.init, function, state, numbers, is_leaf=_masked
    )


def _masked(leaf: PyTree) -> bool:
    """Whether a part of the state leaves this parameter out."""
    return isinstance(leaf, optax.MaskedNode)


def accumulators(optimizer: optax.GradientTransformation, params: PyTree) -> list[Accumulator]:
    """How the arrays of an optimizer's state scale with the gradient, by a few trial steps.

    Raises:
        ValueError: for an array of another shape than its parameter's, or one that scales neither
            like the parameter nor like a power of the gradient.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxcompress.training.optimizer_state import accumulators
        >>> params = {"w": jnp.ones((3, 4))}
        >>> [accumulator.power for accumulator in accumulators(optax.adam(1e-3), params)]
        [1, 2]
    """
    numbers = _parameter_numbers(optimizer, params)
    if not numbers:
        return []
    trials = Trials(optimizer, params)
    ones, twos = trials.initial(1.0), trials.initial(2.0)
    still = trials.measure(0.0)
    copies = ones != twos
    adds = ~copies & (still == ones).all(0)
    powers = dict.fromkeys(np.flatnonzero(copies).tolist(), 0)
    for scale in TRIAL_SCALES:
        if len(powers) == len(numbers):
            break
        once, twice = (trials.measure(times * scale) - still for times in (1, 2))
        powers = _powers(once, twice) | powers
    if len(powers) < len(numbers):
        raise ValueError(
            "multigrid: the optimizer keeps an array that scales neither like its parameter nor "
            "like a power of the gradient, so that it cannot be refined; take one such as "
            "optax.adam"
        )
    return [
        Accumulator(number, powers[place], bool(copies[place]), bool(adds[place]))
        for place, number in enumerate(numbers)
    ]


def _parameter_numbers(optimizer: optax.GradientTransformation, params: PyTree) -> list[int]:
    """The parameter of each array of the state, all of which must have their parameter's shape."""
    leaves = jax.tree.leaves(params)
    pairs = arrays(optimizer, optimizer.init(params), params)
    for number, leaf in pairs:
        if leaf.shape != leaves[number].shape:
            raise ValueError(
                f"multigrid: the optimizer keeps an array of shape {leaf.shape} for a parameter of "
                f"shape {leaves[number].shape}; take one that keeps a number for each parameter, "
                "such as optax.adam"
            )
    return [number for number, _ in pairs]


def _powers(once: np.ndarray, twice: np.ndarray) -> dict[int, int]:
    """By place, the power k, 0 to 4, of arrays (steps, arrays) that grew 2^k-fold."""
    powers = {}
    for place in range(once.shape[1]):
        step = int(np.abs(once[:, place]).argmax())
        small, large = once[step, place], twice[step, place]
        if not small or large / small <= 0.5:
            continue
        power = math.log2(large / small)
        if 0 <= round(power) <= 4 and abs(power - round(power)) < 0.05:
            powers[place] = round(power)
    return powers


@dataclasses.dataclass(frozen=True)
class Trials:
    """An optimizer's first steps, with one gradient entry per parameter: their norm is small."""

    optimizer: optax.GradientTransformation
    params: PyTree

    def initial(self, value: float) -> Float[np.ndarray, " arrays"]:
        """The first entry of each array of the initial state, for constant parameters."""
        params = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), self.params)
        return np.asarray(self._first_entries(self.optimizer.init(params)))

    def measure(self, scale: float) -> Float[np.ndarray, "steps arrays"]:
        """The first entry of each array after each of some steps, with gradients of a scale."""
        return np.asarray(self._measure(jnp.float32(scale)))

    def _first_entries(self, state: PyTree) -> Float[Array, " arrays"]:
        leaves = [leaf for _, leaf in arrays(self.optimizer, state, self.params)]
        return jnp.stack([leaf.ravel()[0].astype(jnp.float32) for leaf in leaves])

    @cached_property
    def _measure(self) -> Callable[[jax.Array], jax.Array]:
        return jax.jit(self._steps)

    def _steps(self, scale: Float[Array, ""]) -> Float[Array, "steps arrays"]:
        ones = jax.tree.map(jnp.ones_like, self.params)

        def step(state: PyTree, turn: jax.Array) -> tuple[PyTree, jax.Array]:
            entry = scale * (1 + 0.1 * turn)
            gradient = jax.tree.map(
                lambda leaf: (
                    jnp.zeros_like(leaf).at[(0,) * leaf.ndim].set(entry.astype(leaf.dtype))
                ),
                self.params,
            )
            state = self.optimizer.update(gradient, state, ones)[1]
            return state, self._first_entries(state)

        initial = jax.tree.map(jnp.asarray, self.optimizer.init(ones))
        return jax.lax.scan(step, initial, jnp.arange(TRIAL_STEPS, dtype=jnp.float32))[1]


def refine_state(
    optimizer: optax.GradientTransformation,
    state: PyTree,
    params: PyTree,
    change: Refine,
    kinds: Sequence[Accumulator],
) -> PyTree:
    """An optimizer's state at the sizes that a change of resolution gives its parameters.

    Args:
        optimizer: any optax transformation.
        state: its state.
        params: the parameters before the change.
        change: from `jc.refine`; repeated channels of the state are not told apart.
        kinds: of `accumulators`.
    """
    change = dataclasses.replace(change, split=0.0)
    before, after = (
        [leaf for _, leaf in arrays(optimizer, optimizer.init(tree), params)]
        for tree in (params, change(params))
    )
    present = [leaf for _, leaf in arrays(optimizer, state, params)]
    refined: dict[int, jax.Array] = {}
    for places in _trees(kinds):
        leaves = [jnp.zeros_like(leaf) for leaf in jax.tree.leaves(params)]
        for place in places:
            offset = before[place] if kinds[place].adds else 0
            leaves[kinds[place].parameter] = present[place] - offset
        tree = jax.tree.unflatten(jax.tree.structure(params), leaves)
        new = jax.tree.leaves(_refine_power(change, tree, kinds[places[0]]))
        for place in places:
            offset = after[place] if kinds[place].adds else 0
            refined[place] = new[kinds[place].parameter] + offset
    return with_arrays(optimizer, state, params, (refined[place] for place in range(len(kinds))))


def _trees(kinds: Sequence[Accumulator]) -> list[list[int]]:
    """Places of arrays that are mapped alike, grouped so that no group has two of one parameter."""
    groups: dict[tuple[int, bool, int], list[int]] = {}
    counts: dict[tuple[int, bool, int], int] = {}
    for place, kind in enumerate(kinds):
        alike = (kind.power, kind.copies_params, kind.parameter)
        turn = counts[alike] = counts.get(alike, -1) + 1
        groups.setdefault((kind.power, kind.copies_params, turn), []).append(place)
    return list(groups.values())


def _refine_power(change: Refine, tree: PyTree, kind: Accumulator) -> PyTree:
    """A tree that scales with the k-th power of gradients, refined as the power of its root."""
    if kind.copies_params:
        return change(tree)
    if kind.power == 0:
        return change.of("steps")(tree)
    if kind.power == 1:
        return change.of("gradients")(tree)
    root = jax.tree.map(lambda leaf: jnp.abs(leaf) ** (1 / kind.power), tree)
    return jax.tree.map(lambda leaf: leaf**kind.power, change.of("gradients")(root))
