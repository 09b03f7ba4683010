"""Fold batch norms: each norm's affine map moves into the kernel and the bias before it, exactly.

    y = (x W + b - mean) a + shift = x (W a) + (b - mean) a + shift
    a = scale / sqrt(variance + epsilon)

The leaves keep their shapes, so that the same function runs: a folded norm has mean 0, scale 1,
variance 1 - epsilon, and no shift where a bias takes it. Costs one product a kernel.

    Source: Jacob et al. 2018 (arXiv:1712.05877), section 3.2
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from jaxtyping import Float, PyTree

from jaxcompress.arrays.base import is_compact
from jaxcompress.checks import checked
from jaxcompress.moments.moments import Moments
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.batch_norms import (
    BatchNorm,
    NormNumbers,
    check_norms,
    numbers_of,
)
from jaxcompress.networks.trace import Network, network
from jaxcompress.transforms.base import Scope, check_tree
from jaxcompress.transforms.network_state import NetworkState
from jaxcompress.transforms.norm_transform import NormTransform


class FoldBatchnorm(NormTransform):
    """See `fold_batchnorm`."""

    def _step(self, params: PyTree, moments: PyTree, scope: Scope) -> tuple[PyTree, PyTree]:
        check_tree(params)
        folded, gains = self._folded(params)
        if not isinstance(moments, Moments):
            return folded, moments
        kept = dict(moments.gains)
        for key, factor in gains.items():
            if key in kept and (gain := _scaled(kept[key], factor)) is not None:
                kept[key] = gain
            else:
                kept.pop(key, None)
        reference = moments.reference
        if reference is not None:  # `reconstruct` compares results of kernels with the original's
            reference = self._folded(reference)[0]
        return folded, dataclasses.replace(moments, gains=kept, reference=reference)

    def _folded(self, params: PyTree) -> tuple[PyTree, dict[str, np.ndarray]]:
        """The folded parameters; what the results of each contraction were multiplied by."""
        state = NetworkState.of(self.structure, params, None)
        left, factors = [], {}
        for located in self.located():
            norm = located.norm
            obstacle = norm.obstacle
            if norm.kernel is not None and is_compact(state.given[norm.kernel.leaf]):
                obstacle = f"{norm.kernel.leaf} is compact: fold before it is compacted"
            if obstacle:
                left.append(f"{norm.variance} ({obstacle})")
                continue
            numbers = numbers_of(self.net, located, params)
            factor = numbers.factor(norm.epsilon)
            state = state.edited(folded_leaves(state, norm, numbers, factor))
            for site in self.structure.sites.values():
                if norm.kernel is not None and norm.kernel.leaf in site.leaves:
                    factors[site.key] = factor
        if left:
            text = f"fold_batchnorm leaves {len(left)} norms: {'; '.join(left)}"
            warnings.warn(text, stacklevel=5)
        return state.params(), factors


def folded_leaves(
    state: NetworkState, norm: BatchNorm, numbers: NormNumbers, factor: Float[np.ndarray, " d"]
) -> dict[str, np.ndarray]:
    """New values of the kernel, the bias and the norm's own parameters."""
    assert norm.kernel is not None
    kernel = state.leaves[norm.kernel.leaf]
    along = [1] * kernel.ndim
    along[norm.kernel.dimension] = -1
    offset = numbers.shift - numbers.mean * factor
    new = {norm.variance: np.full_like(factor, 1 - norm.epsilon), norm.mean: np.zeros_like(factor)}
    new |= {norm.scale: np.ones_like(factor), norm.shift: np.zeros_like(factor)}
    # what is added to the product goes to the first that there is: bias, shift, mean
    if norm.bias is not None:
        new[norm.bias] = numbers.bias * factor + offset
    elif norm.shift is not None:
        new[norm.shift] = offset
    else:
        new[norm.mean] = -offset
    leaves = {norm.kernel.leaf: kernel * factor.reshape(along)}
    for name, values in new.items():
        if name is not None:
            stored = values / numbers.units.get(name, 1.0)
            leaves[name] = stored.reshape(state.leaves[name].shape)
    return leaves


def _scaled(gain: Statistic, factor: Float[np.ndarray, " d"]) -> Statistic | None:
    """The gain at a product whose results were multiplied; None where it is laid out otherwise."""
    if gain.mean.shape != factor.shape:
        return None
    # a channel without a scale has no gradient before it either
    inverse = np.where(factor != 0, 1 / np.where(factor != 0, factor, 1), 0)
    both = inverse**2 if gain.diagonal else inverse[:, None] * inverse
    return dataclasses.replace(gain, mean=gain.mean * inverse, cov=gain.cov * both)


@checked(net=network)
def fold_batchnorm(net: Network) -> FoldBatchnorm:
    """Fold every batch norm into the kernel and the bias before it; the function stays the same.

    Args:
        net: from `jc.trace`, of a function in inference mode whose parameters include the running
            statistics.

    Returns:
        A transform. Leaves keep their shapes: a folded norm has mean 0, variance 1 - epsilon and
        scale 1; what it added is in the bias of the kernel, else in its own shift. Norms that
        follow no kernel of their own stay, and a warning names them; `transform.norms` prints all.

    Raises:
        ValueError: for a network without norms that use running statistics.

    Source:
        Jacob et al. 2018 (arXiv:1712.05877), section 3.2.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     y = (x @ p["up"] - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["gamma"] + p["beta"]
        ...     return jax.nn.relu(y) @ p["down"]
        >>> params = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2)), "mean": jnp.ones(4)}
        >>> params |= {"var": jnp.full(4, 4.0), "gamma": jnp.full(4, 3.0), "beta": jnp.ones(4)}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> folded = jc.fold_batchnorm(net)(params)
        >>> print(folded["up"][0, 0].round(4), folded["mean"][0], folded["beta"][0].round(4))
        1.5 0.0 -0.5
    """
    check_norms("fold_batchnorm", net)
    return FoldBatchnorm(net.structure, net)
