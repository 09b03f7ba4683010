"""Inputs made from the statistics of batch norms, where the data of a network are not at hand.

A batch norm knows mean and variance of every channel that it normalises. Random inputs are moved by
gradient descent until each norm takes in what it expects: of z = (x - mean) / sqrt(variance + eps),
with s its standard deviation over the batch and t the expected one,

    loss = mean over norms of the mean over channels of   mean(z)^2 + (s - t)^2

which is the squared Wasserstein distance of two normal distributions. What flows for these inputs
is a sample of what flows for data, as far as norms tell: moments of it are a quadrature, and folds,
budgets and reconstructions work as on data. Where convolutions slide the inputs are smooth
(smooth_inputs.py). Costs a forward and a backward pass for each step.

Sources: Cai et al. 2020 (ZeroQ, arXiv:2001.00281); Yin et al. 2020 (DeepInversion,
arXiv:1912.08795).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree
from tqdm.auto import tqdm

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.checks import checked, iterable, number, seeds, shown, whole
from jaxcompress.moments.calibration import Calibration, check_batch, check_parameters, length
from jaxcompress.moments.smooth_inputs import spaces
from jaxcompress.networks.batch_norms import check_norms, locate_norms, numbers_of
from jaxcompress.networks.trace import Network, network
from jaxcompress.programs.affine import position_of
from jaxcompress.programs.program import Program
from jaxcompress.programs.rules import Replay

log = logging.getLogger(__name__)

FAR = 0.3
"""Standard deviations by which a norm's inputs may differ, in the root mean square, unmentioned."""


class Expected(NamedTuple):
    """What one norm expects of the channels that it normalises.

    Attributes:
        mean: of each channel.
        unit: the square root of variance and epsilon, by which the norm divides.
        deviation: the expected standard deviation in this unit; just below one.
    """

    mean: Float[Array, " d"]
    unit: Float[Array, " d"]
    deviation: Float[Array, " d"]


@checked(
    net=network,
    start=iterable,
    count=whole(),
    steps=whole(),
    rate=number("(0, inf)", "Adam's learning rate"),
    seed=seeds,
)
def inputs_from_norms(
    net: Network,
    params: PyTree,
    *,
    bounds: tuple[float, float] | None = None,
    start: Iterable[PyTree] | None = None,
    count: int = 4,
    steps: int = 100,
    rate: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Make inputs for which every batch norm takes in what its statistics say: data without data.

    Use them wherever data go: `jc.calibrate`, `jc.reconstruct`, `jc.recalibrate`. The norms are
    found in the traced program, in any framework; those inside loops are not.

    Args:
        net: from `jc.trace`, at inference, traced with a batch of the size to be made: statistics
            are matched batch by batch, so 64 examples or more.
        params: the traced tree, with the norms' statistics.
        bounds: the least and the largest value of inputs, such as (0, 1) for pixels, where they are
            known. They help much.
        start: batches to begin from, of any size; by default noise, of mean 0 and variance 1 or
            between the bounds, smooth where convolutions slide. Inputs that are no floats stay as
            they are here.
        count: the number of batches, where `start` is not given.
        steps: of Adam, for each batch.
        rate: its learning rate, which falls to zero as a cosine.
        seed: of the noise.
        progress: show a progress bar.

    Returns:
        The batches as a `Calibration`.

    Raises:
        ValueError: for a network without norms with statistics, as one in training mode, and for
            inputs that are no floats, such as token ids; they are named.

    Source:
        Cai et al. 2020, arXiv:2001.00281; Yin et al. 2020, arXiv:1912.08795.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     x = (x @ p["up"] - p["mean"]) / jnp.sqrt(p["var"] + 1e-5)
        ...     return jax.nn.relu(x) @ p["down"]
        >>> up = jax.random.normal(jax.random.key(0), (3, 8))
        >>> statistics = {"mean": jnp.ones(3) @ up, "var": 4 * (up**2).sum(0)}
        >>> params = {"up": up, "down": jnp.ones((8, 2)), **statistics}
        >>> net = jc.trace(apply, params, jnp.ones((64, 3)))
        >>> data = jc.inputs_from_norms(net, params, count=1, progress=False)
        >>> x = data.batches[0]
        >>> [round(float(s), 1) for s in (x.mean(), x.std())]
        [1.0, 2.0]
        >>> moments = jc.calibrate(net, params, data, progress=False)
    """
    check_parameters(net, params)
    check_norms("inputs_from_norms", net)
    _check_bounds(bounds)
    batches = _constant(net, count, bounds[0] if bounds else 0.0) if start is None else start
    rng = np.random.default_rng(seed)
    move = _mover(net, steps, rate, bounds)
    expected = expectations(net, params)
    made, distances = [], {}
    bar = {"desc": "inputs from norms", "total": length(batches), "leave": False}
    for turn, batch in enumerate(tqdm(batches, **bar, disable=not progress)):
        origin = check_batch(net, turn, batch)
        noise = [rng.normal(size=np.shape(leaf)) * (start is None) for leaf in floats(origin)]
        values, distances = move(params, expected, origin, noise)
        alone = len(values) == 1 and not isinstance(values[0], tuple)
        made.append(values[0] if alone else values)
    if not made:
        raise ValueError("inputs_from_norms: there are no batches to begin from")
    _check_distances(distances)
    return Calibration(made)


def _constant(net: Network, count: int, value: float) -> list[tuple[PyTree, ...]]:
    """Batches of one number in the traced shapes, to which noise is added."""
    for name, leaf in named_leaves(net.inputs):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"inputs_from_norms: input {name} is of {leaf.dtype}, such as token ids or a mask, "
                "and only floats can be moved: give start=, batches to begin from, whose integers "
                "stay as they are"
            )
    filled = jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), net.inputs)
    return [filled] * count


def _check_bounds(bounds: tuple[float, float] | None) -> None:
    if bounds is None:
        return
    if np.shape(bounds) != (2,) or not np.isrealobj(bounds) or not bounds[0] < bounds[1]:
        raise ValueError(
            f"inputs_from_norms: bounds must be the least and the largest value of inputs, such as "
            f"(0, 1), got {shown(bounds)}"
        )


# --- what norms expect, and what they take in -----------------------------------------------------


def expectations(net: Network, params: PyTree) -> dict[str, Expected]:
    """What every norm of a network expects, by a key that names its variance.

    Args:
        net: the network.
        params: its parameters, at their present sizes.

    Raises:
        ValueError: for statistics that are negative or compact.
    """
    located = locate_norms(net.traces(net.full, net.inputs))
    expected = {}
    for key, norm in zip(_keys([one.norm.variance for one in located]), located, strict=True):
        numbers = numbers_of(net, norm, params)
        unit = np.sqrt(numbers.variance + norm.norm.epsilon)
        mean, deviation = numbers.mean - numbers.bias, np.sqrt(numbers.variance) / unit
        expected[key] = Expected(*(jnp.asarray(x, jnp.float32) for x in (mean, unit, deviation)))
    return expected


def _keys(names: list[str]) -> list[str]:
    """Names made different, since a norm may be used more than once."""
    return [
        name if names.count(name) == 1 else f"{name}#{names[:place].count(name)}"
        for place, name in enumerate(names)
    ]


def norm_inputs(
    net: Network, params: PyTree, inputs: tuple[PyTree, ...]
) -> dict[str, Float[Array, "rows d"]]:
    """What every norm takes in, before a bias, with the channels last; by keys as `expectations`.

    Args:
        net: the network.
        params: its parameters.
        inputs: a batch as the tuple of the network's inputs.
    """
    traced, sizes = net.traced_program(params, *inputs), net.sizes(params)
    located = locate_norms(traced)
    dims = {name: dim for dim, name in traced.names.items()}
    program = Program(
        traced.program.inputs, [norm.source for norm in located], traced.program.steps
    )
    leaves = jax.tree.leaves(params, is_leaf=is_compact)
    values = map(jnp.asarray, jax.tree.leaves(inputs))
    replay = Replay({dims[key]: size for key, size in sizes.items()})
    taken = {}
    keys = _keys([norm.norm.variance for norm in located])
    for key, norm, x in zip(keys, located, replay.run(program, [*leaves, *values]), strict=True):
        place = position_of(norm.source, norm.channel)
        assert place is not None
        rows = jnp.moveaxis(x, place, -1)
        taken[key] = rows.reshape(-1, rows.shape[-1]).astype(jnp.float32)
    return taken


def norm_distances(
    net: Network,
    params: PyTree,
    expected: Mapping[str, Expected],
    inputs: tuple[PyTree, ...],
) -> dict[str, Float[Array, " d"]]:
    """How far what each norm takes in is from what it expects, for each channel.

    Args:
        net: the network.
        params: its parameters.
        expected: of `expectations`.
        inputs: a batch as the tuple of the network's inputs.

    Returns:
        By norm the squared Wasserstein distances of normal distributions, in the norm's units.
    """
    distances = {}
    for key, x in norm_inputs(net, params, inputs).items():
        z = (x - expected[key].mean) / expected[key].unit
        # the root has no derivative at zero, where a channel does not vary
        deviation = jnp.sqrt(z.var(0) + 1e-12)
        distances[key] = z.mean(0) ** 2 + (deviation - expected[key].deviation) ** 2
    return distances


def _check_distances(distances: Mapping[str, jax.Array]) -> None:
    """Refuse NaN, and mention the norm that is matched least where that is not enough."""
    far = {key: float(jnp.sqrt(distance.mean())) for key, distance in distances.items()}
    for key, distance in far.items():
        if not np.isfinite(distance):
            raise ValueError(
                f"inputs_from_norms: NaN or infinity at the norm of {key}: check the parameters, "
                "or take a smaller rate"
            )
    worst = max(far, key=lambda key: far[key])
    if far[worst] > FAR:
        log.warning(
            "inputs_from_norms: at the norm of %s what flows differs from its statistics by %.2f "
            "standard deviations: take more steps, or calibrate with data",
            worst,
            far[worst],
        )


# --- gradient descent -----------------------------------------------------------------------------


Moved = tuple[tuple[PyTree, ...], dict[str, jax.Array]]
"""A batch of inputs, and each norm's squared distances."""


def _mover(
    net: Network, steps: int, rate: float, bounds: tuple[float, float] | None
) -> Callable[..., Moved]:
    """A function of parameters, expectations, a batch and noise, which moves the batch."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    low, high = bounds or (0.0, 1.0)

    def batch(params: PyTree, origin: PyTree, z: list[jax.Array]) -> tuple[PyTree, ...]:
        where = spaces(net.traced_program(params, *origin))
        own = [s for s, x in zip(where, jax.tree.leaves(origin), strict=True) if is_float(x)]
        values = []
        for x, part, space in zip(floats(origin), z, own, strict=True):
            value = x + (high - low) * space.smooth(part)
            values.append(value if bounds is None else jnp.clip(value, low, high))
        return joined(origin, values)

    @jax.jit
    def finish(
        params: PyTree, expected: dict[str, Expected], origin: PyTree, z: list[jax.Array]
    ) -> Moved:
        inputs = batch(params, origin, z)
        return inputs, norm_distances(net, params, expected, inputs)

    @jax.jit
    def step(
        params: PyTree,
        expected: dict[str, Expected],
        origin: PyTree,
        z: list[jax.Array],
        memory: PyTree,
    ) -> tuple[PyTree, PyTree]:
        def loss(z: list[jax.Array]) -> jax.Array:
            distances = finish(params, expected, origin, z)[1]
            return jnp.stack([part.mean() for part in distances.values()]).mean()

        updates, memory = optimizer.update(jax.grad(loss)(z), memory)
        return optax.apply_updates(z, updates), memory

    def move(
        params: PyTree, expected: dict[str, Expected], origin: PyTree, noise: list[np.ndarray]
    ) -> Moved:
        pairs = zip(noise, floats(origin), strict=True)
        z = [jnp.asarray(part, x.dtype) for part, x in pairs]
        memory = optimizer.init(z)
        # not in a compiled loop, where XLA's convolutions on a CPU take many times as long
        for _ in range(steps):
            z, memory = step(params, expected, origin, z, memory)
        return finish(params, expected, origin, z)

    return move


def is_float(leaf: ArrayLike) -> bool:
    """Whether a leaf can be moved."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def floats(batch: PyTree) -> list[jax.Array]:
    """The leaves of a batch that are floats."""
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(batch) if is_float(leaf)]


def joined(batch: PyTree, moved: list[jax.Array]) -> PyTree:
    """A batch with others in the place of the leaves that are floats."""
    leaves, tree = jax.tree.flatten(batch)
    remaining = iter(moved)
    kept = [next(remaining) if is_float(leaf) else leaf for leaf in leaves]
    return jax.tree.unflatten(tree, kept)
