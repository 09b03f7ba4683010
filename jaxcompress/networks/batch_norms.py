"""Which parts of a network are batch norms, read off the program, whatever framework wrote it.

In inference a batch norm is, for every channel, an affine function of its input x,

    y = (x - mean) / sqrt(variance + epsilon) * scale + shift,

with the steps in any order and constants folded or not. Wherever a value is such a function of an
earlier one, with the square root of a parameter below it, that parameter is a variance, and the
others follow from where they stand. Costs one pass over the program, on no numbers.

    Source: Ioffe and Szegedy 2015 (arXiv:1502.03167)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jaxcompress.arrays.base import is_compact
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.networks.trace import Network
from jaxcompress.networks.traced_program import TracedProgram
from jaxcompress.programs.affine import (
    Affine,
    AffineValues,
    Base,
    Monomial,
    Polynomial,
    position_of,
)
from jaxcompress.programs.algebra import Dim, find, several
from jaxcompress.programs.program import Program, Slot, Step, Value
from jaxcompress.programs.rules import Replay
from jaxcompress.tables import Table

HALF = Fraction(-1, 2)
HEADERS = (
    "variance",
    "axis",
    "mean",
    "scale",
    "shift",
    "epsilon",
    "kernel",
    "bias",
    "left because",
)


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """One batch norm as plain data; parameters are leaves by name, None where there is none.

    Attributes:
        variance: the running variance.
        axis: the key of the channels' axis; "" where they are several axes.
        mean: the running mean.
        scale: gamma, which multiplies the normalised values.
        shift: beta, which is added last.
        epsilon: what is added to the variance.
        kernel: the output dimension of the kernel of the contraction that it normalises.
        bias: of that contraction.
        obstacle: why it cannot be multiplied into that kernel; "" where it can.
    """

    variance: str
    axis: str
    mean: str | None
    scale: str | None
    shift: str | None
    epsilon: float
    kernel: Slot | None = None
    bias: str | None = None
    obstacle: str = ""

    @property
    def leaves(self) -> tuple[str, ...]:
        """Its own parameters, without those of the contraction."""
        names = (self.variance, self.mean, self.scale, self.shift)
        return tuple(name for name in names if name is not None)

    def _cells(self) -> tuple[str, ...]:
        names = (self.variance, self.axis, self.mean, self.scale, self.shift)
        others = (f"{self.epsilon:g}", self.kernel, self.bias, self.obstacle)
        return tuple("" if cell is None else str(cell) for cell in (*names, *others))


@dataclasses.dataclass(frozen=True, eq=False)
class LocatedNorm:
    """A batch norm and its place in a program.

    Attributes:
        norm: the norm.
        source: the value that it normalises, before a bias.
        result: what it gives.
        channel: the dimension of its channels.
        product: the contraction that gives the source, or None.
        corrections: numbers that a statistic is multiplied by before use, such as the inverse of
            one minus a power of the momentum: powers of values of the program, by leaf.
    """

    norm: BatchNorm
    source: Value
    result: Value
    channel: Dim
    product: Step | None
    corrections: Mapping[str, tuple[tuple[Value, Fraction], ...]]


def batch_norms(net: Network) -> Table[BatchNorm]:
    """The batch norms of a network that use running statistics, in the order of the program.

    Args:
        net: from `jc.trace`, of a function in inference mode whose parameters include the running
            statistics.

    Returns:
        A table that prints, one row a norm. In training mode, where the statistics are those of the
        batch, there are none.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> from jaxcompress.networks.batch_norms import batch_norms
        >>> def apply(p, x):
        ...     y = (x @ p["up"] - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["gamma"] + p["beta"]
        ...     return jnp.maximum(y, 0) @ p["down"]
        >>> ones = {name: jnp.ones(4) for name in ("mean", "var", "gamma", "beta")}
        >>> params = ones | {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2))}
        >>> print(batch_norms(jc.trace(apply, params, jnp.ones((5, 3)))))
        variance  axis  mean  scale  shift  epsilon  kernel  bias  left because
        -----------------------------------------------------------------------
        var       up:1  mean  gamma  beta   1e-05    up:1
    """
    rows = tuple(located.norm for located in locate_norms(net.traces(net.full, net.inputs)))
    return Table(rows, HEADERS, "no batch norm with running statistics")


def check_norms(who: str, net: Network) -> None:
    """Refuse a network without batch norms, in the name of a function."""
    if not len(batch_norms(net)):
        raise ValueError(
            f"{who}: no batch norm with running statistics is in the network: trace the function "
            "in inference mode (use_running_average=True, is_training=False, inference=True), with "
            "the running statistics among its parameters; in training mode a norm's statistics are "
            "those of the batch"
        )


def locate_norms(traced: TracedProgram) -> list[LocatedNorm]:
    """The batch norms of an analysed program with their places in it, in its order."""
    values = AffineValues(traced.program, traced.leaves, traced.analysis.uses)
    steps = {id(out): step for step in traced.program.steps for out in step.outputs}
    norms: dict[int, LocatedNorm] = {}
    # a later value of the same source replaces an earlier one: the shift comes after the scale
    for step in traced.program.steps:
        for out in step.outputs:
            form = values.forms.get(id(out))
            if form is None or form.channel is None or not form.steps:
                continue
            parts = _parts(form, traced.leaves)
            if parts is not None:
                product = steps.get(id(form.source))
                norms[id(form.source)] = _located(traced, values, form, parts, out, product)
    return list(norms.values())


# --- recognition ----------------------------------------------------------------------------------


@dataclasses.dataclass
class _Parts:
    """The parts of a norm by leaf, and the opaque factors of its statistics."""

    variance: str
    epsilon: float
    scale: str | None = None
    mean: str | None = None
    shift: str | None = None
    bias: str | None = None
    factors: dict[str, Monomial] = dataclasses.field(default_factory=dict)

    def put(self, role: str, leaf: str) -> bool:
        """Let a leaf have a role that no other has yet."""
        if getattr(self, role) is not None:
            return False
        setattr(self, role, leaf)
        return True


def _parts(form: Affine, leaves: Mapping[str, Value]) -> _Parts | None:
    """The parts of a norm that an affine function is, or None."""
    if len(form.scale.terms) != 1:
        return None
    ((slope, coefficient),) = form.scale.terms
    roots = [base for base, power in slope if power == HALF]
    others = [(base, power) for base, power in slope if power != HALF]
    if abs(coefficient - 1) > 1e-6 or len(roots) != 1 or len(others) > 1:
        return None
    parts = _under_root(roots[0])
    if parts is None:
        return None
    if others:
        if not isinstance(others[0][0], str) or others[0][1] != 1:
            return None
        parts.scale = others[0][0]
    complete = all(_add_term(parts, slope, *term) for term in form.shift.terms)
    return parts if complete else None


def _under_root(base: Base) -> _Parts | None:
    """The variance and the constant that a root is taken of."""
    if isinstance(base, str):
        return _Parts(base, 0.0)
    if not isinstance(base, Polynomial):
        return None
    terms = dict(base.terms)
    epsilon = terms.pop(frozenset(), 0.0)
    if len(terms) != 1 or epsilon < 0:
        return None
    ((monomial, coefficient),) = terms.items()
    split = _leaf_and_factors(monomial)
    if split is None or abs(coefficient - 1) > 1e-6:
        return None
    leaf, factors = split
    return _Parts(leaf, epsilon, factors={leaf: factors})


def _leaf_and_factors(monomial: Monomial) -> tuple[str, Monomial] | None:
    """The only leaf of a monomial, and its factors that are opaque numbers."""
    leaves = [base for base, power in monomial if isinstance(base, str) and power == 1]
    factors = frozenset(entry for entry in monomial if isinstance(entry[0], int))
    if len(leaves) != 1 or len(factors) != len(monomial) - 1:
        return None
    return leaves[0], factors


def _add_term(parts: _Parts, slope: Monomial, monomial: Monomial, coefficient: float) -> bool:
    """Give one term of what is added its role; False where it has none."""
    inside = slope <= monomial
    split = _leaf_and_factors(monomial - slope if inside else monomial)
    if split is None or abs(abs(coefficient) - 1) > 1e-6:
        return False
    leaf, factors = split
    if inside and coefficient < 0:
        parts.factors[leaf] = factors
        return parts.put("mean", leaf)
    return coefficient > 0 and not factors and parts.put("bias" if inside else "shift", leaf)


# --- location -------------------------------------------------------------------------------------


def _located(
    traced: TracedProgram,
    values: AffineValues,
    form: Affine,
    parts: _Parts,
    result: Value,
    product: Step | None,
) -> LocatedNorm:
    assert form.channel is not None
    kernel, obstacle = _kernel(traced, form, product)
    own = [name for name in (parts.variance, parts.mean, parts.scale, parts.shift) if name]
    for name in [*own, *([parts.bias] if parts.bias else [])]:
        if not _is_along(traced.leaves[name], form.channel):
            obstacle = obstacle or f"{name} has other dimensions than the channels"
        elif _uses(traced, name) > 1:
            obstacle = obstacle or f"{name} is used more than once"
    norm = BatchNorm(
        variance=parts.variance,
        axis=traced.names.get(find(form.channel), ""),
        mean=parts.mean,
        scale=parts.scale,
        shift=parts.shift,
        epsilon=parts.epsilon,
        kernel=kernel,
        bias=parts.bias,
        obstacle=obstacle,
    )
    corrections = {
        leaf: tuple((values.opaque[int(base)], power) for base, power in factors)  # type: ignore[arg-type]
        for leaf, factors in parts.factors.items()
    }
    return LocatedNorm(norm, form.source, result, form.channel, product, corrections)


def _uses(traced: TracedProgram, name: str) -> int:
    return traced.analysis.uses[id(traced.leaves[name])]


def _is_along(leaf: Value, channel: Dim) -> bool:
    """Whether a leaf has the dimension of the channels and no other of more than one position."""
    wide = [dim for dim, size in zip(leaf.dims, leaf.shape, strict=True) if several(size)]
    return len(wide) == 1 and wide[0] is not None and find(wide[0]) is find(channel)


def _kernel(traced: TracedProgram, form: Affine, product: Step | None) -> tuple[Slot | None, str]:
    """The output dimension of the kernel whose product is normalised; why it cannot be scaled."""
    assert form.channel is not None
    if product is None or product.name not in ("dot_general", "conv_general_dilated"):
        what = f"of {product.name}" if product is not None else "as an input"
        return None, f"it normalises no product with a kernel, but what comes {what}"
    kernels = [value for value in product.inputs if value.from_params]
    if len(kernels) != 1 or not kernels[0].direct or len(kernels[0].leaves) != 1:
        return None, "the kernel before it is no plain parameter"
    (leaf,) = kernels[0].leaves
    place = position_of(kernels[0], form.channel)
    own = position_of(traced.leaves[leaf], form.channel)
    if place is None or own is None:
        return None, f"{leaf} has the channels in no dimension of its own"
    if not form.alone:
        return Slot(leaf, own), f"what {leaf} gives is used without the norm, too"
    if _uses(traced, leaf) > 1 or kernels[0].shared:
        return Slot(leaf, own), f"{leaf} is used more than once"
    return Slot(leaf, own), ""


# --- numbers --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NormNumbers:
    """The numbers of one norm, as the network uses them, in float64.

    Attributes:
        mean: the running mean, zeros where there is none.
        variance: the running variance.
        scale: gamma, ones where there is none.
        shift: beta, zeros where there is none.
        bias: of the contraction before, zeros where there is none.
        units: what a stored statistic is multiplied by before use, by leaf; 1 almost everywhere.
    """

    mean: Float[np.ndarray, " d"]
    variance: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    shift: Float[np.ndarray, " d"]
    bias: Float[np.ndarray, " d"]
    units: Mapping[str, float]

    def factor(self, epsilon: float) -> Float[np.ndarray, " d"]:
        """What the norm multiplies its input by."""
        return self.scale / np.sqrt(self.variance + epsilon)


def numbers_of(
    net: Network, located: LocatedNorm, params: PyTree, *, check: bool = True
) -> NormNumbers:
    """The numbers of a norm in given parameters, at their present sizes.

    Args:
        net: the network.
        located: one of `locate_norms` of `net`, at the full shapes.
        params: the network's parameters; the norm's own are dense.
        check: whether the variance must be one.

    Raises:
        ValueError: for a variance that is negative, or a parameter of the norm that is compact.
    """
    leaves = dict(named_leaves(params))
    norm = located.norm
    units = {leaf: _factor(net, powers, params) for leaf, powers in located.corrections.items()}

    def read(name: str | None, default: float) -> np.ndarray:
        if name is None:
            return np.full(size, default)
        if is_compact(leaves[name]):
            raise ValueError(f"{name} is compact: a batch norm needs its numbers one by one")
        return np.asarray(leaves[name], np.float64).reshape(-1) * units.get(name, 1.0)

    size = int(np.size(leaves[norm.variance]))
    variance = read(norm.variance, 1.0)
    positive = (variance + norm.epsilon > 0).all() and np.isfinite(variance).all()
    if check and not positive:
        raise ValueError(
            f"{norm.variance} has the variance {variance.min():g}: it holds no running statistics; "
            "train the network, or jc.recalibrate(net, batches, norms=True) measures them"
        )
    return NormNumbers(
        mean=read(norm.mean, 0.0),
        variance=variance,
        scale=read(norm.scale, 1.0),
        shift=read(norm.shift, 0.0),
        bias=read(norm.bias, 0.0),
        units=units,
    )


def _factor(net: Network, powers: tuple[tuple[Value, Fraction], ...], params: PyTree) -> float:
    """The product of powers of numbers that the program makes of parameters alone."""
    if not powers:
        return 1.0
    program = net.traces(net.full, net.inputs).program
    outputs = [value for value, _ in powers]
    leaves = jax.tree.leaves(params, is_leaf=is_compact)
    arguments = [*leaves, *[None] * (len(program.inputs) - len(leaves))]
    sliced = Program(program.inputs, outputs, _steps_to(program, outputs))
    numbers = Replay({}).run(sliced, arguments)
    pairs = zip(numbers, powers, strict=True)
    factors = [float(np.asarray(number).item()) ** float(power) for number, (_, power) in pairs]
    return float(np.prod(factors))


def _steps_to(program: Program, outputs: list[Value]) -> list[Step]:
    """The steps that some values depend on, in order."""
    live, kept = {id(value) for value in outputs}, []
    for step in reversed(program.steps):
        if any(id(value) in live for value in step.outputs):
            live.update(id(value) for value in step.inputs)
            kept.append(step)
    return kept[::-1]
