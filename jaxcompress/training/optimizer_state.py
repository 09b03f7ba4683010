"""An optimizer's state at another resolution of its parameters.

With P what `refine` repeats by and D its dual, the gradients of a refined network are the coarse ones, mapped by the adjoint: D
where an axis is produced, P' where it is consumed. What an optimizer makes of them follows: an array that is like the k-th power of
the gradient is mapped as the power of its root, one that is like a normalised step is repeated, a copy of the parameters goes as
they do. Which array is what is found by trying a few steps. Costs those steps, and a change of resolution for each kind.

Source: the chain rule; `optax.tree_utils.tree_map_params` for the arrays.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcompress.transforms.resolution import Refine


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


def arrays(
    optimizer: optax.GradientTransformation, state: Any, params: Any
) -> list[tuple[int, Any]]:
    """The state's arrays that belong to a parameter, each with the parameter's number."""
    found: list[tuple[int, Any]] = []

    def collect(leaf: Any, number: int) -> Any:
        if not masked(leaf):
            found.append((number, leaf))
        return leaf

    optax.tree_utils.tree_map_params(
        optimizer.init, collect, state, numbered(params), is_leaf=masked
    )
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
        >>> from jaxcompress.training.optimizer_state import slots
        >>> [slot.power for slot in slots(optax.adam(1e-3), {"w": jnp.ones((3, 4))})]
        [1, 2]
    """
    leaves = jax.tree.leaves(params)
    ones = jax.tree.map(jnp.ones_like, params)

    def first(
        state: Any,
    ) -> jax.Array:  # one entry of each has a gradient, so that the norm of all is small
        return jnp.stack(
            [leaf.ravel()[0].astype(jnp.float32) for _, leaf in arrays(optimizer, state, params)]
        )

    @jax.jit
    def tried(
        scale: jax.Array,
    ) -> jax.Array:  # (trials, arrays): some accumulate, and are emptied now and then
        def step(state: Any, turn: jax.Array) -> tuple[Any, jax.Array]:
            entry = scale * (1 + 0.1 * turn)
            gradient = jax.tree.map(
                lambda leaf: (
                    jnp.zeros_like(leaf).at[(0,) * leaf.ndim].set(entry.astype(leaf.dtype))
                ),
                params,
            )
            state = optimizer.update(gradient, state, ones)[1]
            return state, first(state)

        return jax.lax.scan(
            step,
            jax.tree.map(jnp.asarray, optimizer.init(ones)),
            jnp.arange(TRIALS, dtype=jnp.float32),
        )[1]

    begin = arrays(optimizer, optimizer.init(params), params)
    wrong = [
        (leaf.shape, leaves[number].shape)
        for number, leaf in begin
        if leaf.shape != leaves[number].shape
    ]
    if wrong:
        raise ValueError(
            f"multigrid: the optimizer keeps an array of shape {wrong[0][0]} for a parameter of shape {wrong[0][1]}; take one that "
            "keeps a number for each parameter, such as optax.adam"
        )
    if not begin:
        return []
    at_ones, at_twos = (
        np.asarray(first(optimizer.init(tree)))
        for tree in (ones, jax.tree.map(lambda leaf: 2 * leaf, ones))
    )
    still = np.asarray(tried(jnp.float32(0)))
    found = [
        Slot(
            number,
            like_params=bool(at_ones[place] != at_twos[place]),
            adds=bool(
                at_ones[place] == at_twos[place] and (still[:, place] == at_ones[place]).all()
            ),
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


def carried(
    optimizer: optax.GradientTransformation,
    state: Any,
    params: Any,
    change: Refine,
    found: list[Slot],
) -> Any:
    """An optimizer's state at the sizes that a change of resolution gives its parameters."""
    whole, treedef = dataclasses.replace(change, split=0.0), jax.tree.structure(params)
    # an accumulator need not start at zero
    begin, after = (
        arrays(optimizer, optimizer.init(tree), params) for tree in (params, whole(params))
    )
    now = arrays(optimizer, state, params)
    mapped: dict[int, jax.Array] = {}
    for kind in dict.fromkeys((slot.power, slot.like_params) for slot in found):
        waiting = [
            place for place, slot in enumerate(found) if (slot.power, slot.like_params) == kind
        ]
        while waiting:  # a tree takes one array of each parameter
            chosen = {found[place].number: place for place in reversed(waiting)}
            rows = []
            for number, leaf in enumerate(jax.tree.leaves(params)):
                place = chosen.get(number)
                if place is None:
                    rows.append(jnp.zeros_like(leaf))
                else:
                    rows.append(
                        now[place][1] - begin[place][1] if found[place].adds else now[place][1]
                    )
            tree = jax.tree.leaves(at_power(whole, jax.tree.unflatten(treedef, rows), *kind))
            for number, place in chosen.items():
                mapped[place] = (
                    tree[number] + after[place][1] if found[place].adds else tree[number]
                )
            waiting = [place for place in waiting if place not in mapped]
    turn = itertools.count()
    put = lambda leaf, _: leaf if masked(leaf) else mapped[next(turn)].astype(leaf.dtype)
    return optax.tree_utils.tree_map_params(
        optimizer.init, put, state, numbered(params), is_leaf=masked
    )


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
