"""Functions with derivative rules of their own that close over arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from helpers_table import draw, noise
from jax.experimental.ode import odeint

import jaxcompress as jc

LEVELS = jnp.asarray([-1.0, -0.5, 0.0, 0.5, 1.0])


@jax.custom_vjp
def quantised(h):
    return LEVELS[jnp.argmin(jnp.abs(h[..., None] - LEVELS), -1)]


# straight through, but twice: no derivative of the function itself
quantised.defvjp(lambda h: (quantised(h), None), lambda _, g: (2 * g,))


@jax.custom_jvp
def nearest(h):
    return LEVELS[jnp.argmin(jnp.abs(h[..., None] - LEVELS), -1)]


nearest.defjvp(lambda primals, tangents: (nearest(*primals), 3 * tangents[0]))


def integrated(p, x):
    def field(y, t, c, b):
        return jnp.tanh(y @ c) @ b

    return odeint(field, x[:, :4], jnp.asarray([0.0, 1.0]), p["c"], p["b"], rtol=1e-3)[-1]


MODELS = {
    "quantised activations": lambda p, x: quantised(jnp.tanh(x @ p["a"])) @ p["b"],
    "quantised weights": lambda p, x: jnp.tanh(x @ quantised(p["a"])) @ p["b"],
    "a rule of forward mode": lambda p, x: nearest(jnp.tanh(x @ p["a"])) @ p["b"],
    "an integrated equation": integrated,
}


@pytest.mark.parametrize("model", MODELS)
def test_rules_with_constant_arrays_are_replayed_at_other_sizes(model):
    apply, x = MODELS[model], noise(5, 7)
    shapes = {"c": (4, 12)} if apply is integrated else {"a": (7, 12)}
    params = draw(shapes | {"b": (12, 4)})
    net = jc.trace(apply, params, x)
    small = {name: leaf[:6] if name == "b" else leaf[:, :6] for name, leaf in params.items()}
    # levels that are looked up by a weight are not seen to be produced by it
    assert len(net.axes) == (model != "quantised weights")
    for tree in (params, small) if net.axes else (params,):
        ours, theirs = (
            jax.value_and_grad(lambda p, f=function: (f(p, x) ** 2).sum())(tree)
            for function in (net, apply)
        )
        close(ours, theirs, 1e-4)


def test_a_rule_that_closes_over_parameters_has_no_derivative_by_them():
    """As in JAX, which cannot differentiate such a function under jit."""

    def apply(p, x):
        @jax.custom_vjp
        def scaled(h):
            return h * p["scale"]

        scaled.defvjp(lambda h: (scaled(h), None), lambda _, g: (g,))
        return scaled(x @ p["a"]) @ p["b"]

    params, x = draw({"a": (7, 12), "b": (12, 4), "scale": (12,)}), noise(5, 7)
    net = jc.trace(apply, params, x)
    small = {"a": params["a"][:, :6], "b": params["b"][:6], "scale": params["scale"][:6]}
    close(net(small, x), apply(small, x))
    assert np.isfinite(jax.grad(lambda a: net({**small, "a": a}, x).sum())(small["a"])).all()
    with pytest.raises(TypeError, match="make them arguments"):
        jax.grad(lambda scale: net({**small, "scale": scale}, x).sum())(small["scale"])
