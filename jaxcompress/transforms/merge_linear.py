"""Successive linear layers merged: a linear hidden axis at the rank of what is computed through it.

Between producers P (d x n, biases among them) and consumers C (d x p) of a linear axis nothing but
linear operations happen, so that the network depends on `P' C` alone. With `P' = Q R`, `C' = O S`
and the singular value decomposition `R S' = U D V'`, cut to its rank r,

    P' A = Q U D^(1/2),   B C = D^(1/2) V' O'       A = S' V D^(-1/2),  B = D^(-1/2) U' R

has the same product at size r <= min(d, n, p): two dense kernels m x d and d x n take m x r and
r x n. No data is needed. Costs two QR decompositions and a singular value decomposition an axis.

Source: balanced truncation by square roots (Tombs and Postlethwaite 1987), here of two kernels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxcompress.arrays.signs import peak_signs
from jaxcompress.checks import checked, path_pattern
from jaxcompress.networks.axes import Axis, Structure
from jaxcompress.networks.maps import AxisMap
from jaxcompress.networks.trace import Network, structure_of, traced
from jaxcompress.programs.program import Slot
from jaxcompress.transforms.axiswise import AxisTransform
from jaxcompress.transforms.legality import pair_of, why_not_rotate
from jaxcompress.transforms.network_state import AxisChange, NetworkState


@dataclasses.dataclass(frozen=True)
class Balanced:
    """The factors of one fibre, at full size.

    Attributes:
        produce: S' V D^(-1/2), zero where D is rounding.
        consume: D^(-1/2) U' R, likewise.
        rank: how many singular values are more than rounding.
    """

    produce: Float[np.ndarray, "d k"]
    consume: Float[np.ndarray, "k d"]
    rank: int


@dataclasses.dataclass(frozen=True, repr=False)
class MergeLinear(AxisTransform):
    """See `merge_linear`."""

    structure: Structure = dataclasses.field(hash=False)
    axes: str = "**"

    def change(self, state: NetworkState, axis: Axis) -> AxisChange | None:
        """One axis at its rank, or None where it has no fewer channels than now."""
        if why := why_not_merge(state, axis):
            self.skip(axis, why)
            return None
        if any(name not in state.leaves for name in state.leaves_with(axis)):
            self.skip(axis, "a leaf of it is compact")
            return None
        first, second = sides(state, axis)
        fibres = zip(rows(state, axis, first), rows(state, axis, second), strict=True)
        parts = [balanced(*fibre) for fibre in fibres]
        # fibres have one size: the largest rank
        size = max(1, *(part.rank for part in parts))
        if size >= state.size(axis) or not self.can_resize(state, axis, size):
            return None
        produce = np.stack([part.produce[:, :size] for part in parts])
        consume = np.stack([part.consume[:size] for part in parts])
        if not axis.pair:
            return AxisChange(AxisMap(produce, consume))
        other = dict.fromkeys(second, np.swapaxes(consume, 1, 2))
        return AxisChange(AxisMap(produce, np.swapaxes(produce, 1, 2), other=other))


def why_not_merge(state: NetworkState, axis: Axis) -> str | None:
    """The reason why an axis is not what lies between two linear layers, or None."""
    if axis.marks:
        return why_not_rotate(state, axis) or "a norm is taken over it"
    if axis.tied:
        return f"{axis.tied[0]} produces and consumes it"
    return why_not_rotate(state, axis)


def sides(state: NetworkState, axis: Axis) -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
    """The parameters on either side of an axis; biases lie on the side of the producers."""
    key = pair_of(state, axis) if axis.pair else None
    if key is not None:
        return state.structure.pairs[key].sides
    shifts = tuple(slot for slot in axis.parameters if slot not in axis.scales)
    return axis.producers + shifts, axis.consumers


def rows(
    state: NetworkState, axis: Axis, slots: tuple[Slot, ...]
) -> Float[np.ndarray, "fibres d n"]:
    """The kernels of some slots beside each other, with the axis in front."""
    return np.concatenate([state.unfold(axis, slot) for slot in slots], axis=-1)


def balanced(producers: Float[np.ndarray, "d n"], consumers: Float[np.ndarray, "d p"]) -> Balanced:
    """The balanced factors of `producers' consumers`.

    Columns are brought to one length first, so that what is rounding is decided for each input and
    each result in its own unit.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.transforms.merge_linear import balanced
        >>> up, down = np.ones((5, 3)), np.arange(10.0).reshape(5, 2)
        >>> part = balanced(up, down)
        >>> one = up.T @ part.produce[:, :1] @ part.consume[:1] @ down
        >>> part.rank, np.allclose(one, up.T @ down)
        (1, True)
    """
    left = np.asarray(np.linalg.qr(unit_columns(producers).T, mode="r"))
    right = np.asarray(np.linalg.qr(unit_columns(consumers).T, mode="r"))
    u, values, vt = np.linalg.svd(left @ right.T)
    signs = peak_signs(u[:, : len(values)])
    most = max(*producers.shape, consumers.shape[1])
    # the kernels' own rounding, to float32, is spread over all directions
    alive = values > np.finfo(np.float32).eps * np.sqrt(most) * values.max(initial=0)
    scale = np.where(alive, 1 / np.sqrt(np.where(alive, values, 1)), 0)
    produce = right.T @ (vt[: len(values)].T * signs * scale)
    consume = (u[:, : len(values)] * signs * scale).T @ left
    return Balanced(produce, consume, int(alive.sum()))


def unit_columns(matrix: Float[np.ndarray, "d n"]) -> Float[np.ndarray, "d n"]:
    """A matrix with columns of length one; columns of zeros stay."""
    lengths = np.linalg.norm(matrix, axis=0)
    return matrix / np.where(lengths > 0, lengths, 1)


@checked(net=traced, axes=path_pattern)
def merge_linear(net: Network | Structure, *, axes: str = "**") -> MergeLinear:
    """Cut every linear hidden axis to the rank of the linear map through it; nothing changes.

    Successive linear layers are one linear map of a rank that neither exceeds the inputs nor the
    outputs. An axis between them that is wider, or whose kernels have dependent rows or columns,
    is cut to that rank: the network computes the same up to rounding. The two sides of a product
    of activations (queries and keys) are merged likewise. Axes with a nonlinearity, a norm or a
    scale are not changed, and the log names the reason.

    Args:
        net: from `jc.trace`; only its axes are kept.
        axes: a pattern of axis keys, "leaf:dimension" or "leaf".

    Returns:
        A transform; call it as `transform(params)`. It needs no moments, and carries those that it
        is given.

    Raises:
        ValueError: when called, for a pattern that matches no axis.
        TypeError: for a `net` that is not from `jc.trace`.

    Source:
        Balanced truncation by square roots (Tombs and Postlethwaite 1987).

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jax.nn.relu(x @ p["a"] @ p["b"]) @ p["c"]
        >>> shapes, keys = {"a": (3, 64), "b": (64, 8), "c": (8, 2)}, jax.random.split(
        ...     jax.random.key(0), 4)
        >>> params = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> x = jax.random.normal(keys[3], (5, 3))
        >>> net = jc.trace(apply, params, x)
        >>> small = jc.merge_linear(net)(params)
        >>> small["a"].shape, bool(jnp.allclose(net(small, x), apply(params, x), rtol=1e-4))
        ((3, 3), True)
    """
    return MergeLinear(structure_of(net), axes)
