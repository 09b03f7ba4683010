"""A recurrent network as the network of many layers that it is, with repeated coefficients.

Every loop over time is written out: turn t reads what turn t - 1 gave, with the same kernels. The
parameters are the same tree, each kernel one leaf that is used once a turn, so all that is known of
one network is read on the other. Costs a program that grows with the number of turns.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import PyTree

from jaxcompress.checks import checked
from jaxcompress.networks.trace import Network, network, trace


@checked(net=network)
def unrolled(net: Network) -> Network:
    """The same function with its loops over time written out.

    A recurrent network is a perceptron of as many layers as there are time steps, all of which have
    the same coefficients. Loops over layers of stacked parameters, and loops whose length is known
    only when they run, stay. At other lengths of its inputs it is written out anew.

    Args:
        net: from `jc.trace`.

    Returns:
        A network of the same parameters and outputs. Its `axes` are those of `net`; a kernel of the
        loop has a contraction for each turn.

    Example:
        >>> import jax, jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     def step(h, x):
        ...         return jnp.tanh(x @ p["enter"] + h @ p["turn"]), None
        ...     h, _ = jax.lax.scan(step, jnp.zeros((len(x), 6)), x.swapaxes(0, 1))
        ...     return h @ p["leave"]
        >>> params = {"enter": jnp.ones((3, 6)), "turn": jnp.eye(6), "leave": jnp.ones((6, 2))}
        >>> x = jnp.ones((5, 4, 3))
        >>> net = jc.trace(apply, params, x)
        >>> wide = jc.unrolled(net)
        >>> wide.axes.keys() == net.axes.keys()
        True
        >>> [key for key in wide.structure.sites if key.startswith("turn")]
        ['turn#0', 'turn#1', 'turn#2', 'turn#3']
        >>> bool(jnp.allclose(wide(params, x), net(params, x)))
        True
    """

    def apply(params: PyTree, *inputs: PyTree) -> PyTree:
        return net.replay(params, *inputs, unroll=True)

    apply.__name__ = getattr(net.apply, "__name__", type(net.apply).__name__)
    states = dict(net.state_outputs) or None
    written_out = trace(apply, net.full, *net.inputs, state_outputs=states)
    return dataclasses.replace(written_out, given_sizes=net.given_sizes)
