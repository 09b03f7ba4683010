"""Networks of the table of models, traced and calibrated, and how their outputs are compared."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from helpers_models import MODELS

import jaxcompress as jc


@functools.cache
def network(name):
    """A model of the table and its network, made once; the model's own function is jitted."""
    model = MODELS[name]()
    net = jc.trace(model.apply, model.params, *model.inputs, state_outputs=model.state)
    return dataclasses.replace(model, apply=jax.jit(model.apply)), net


def close(actual, expected, tol=2e-5):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tol * np.abs(other).max()


def outputs(model, out):
    """What a model computes, without the state it hands on."""
    return out[0] if model.state else out


def mlp(params, x):
    for index in (0, 1):
        x = jax.nn.relu(x @ params[f"w{index}"] + params[f"b{index}"])
    return x @ params["w2"]


def mlp_params(widths, seed=0):
    rng = np.random.default_rng(seed)
    params = {}
    for index, (m, n) in enumerate(itertools.pairwise(widths)):
        params[f"w{index}"] = jnp.asarray(rng.normal(size=(m, n)) / np.sqrt(m), jnp.float32)
        if index < 2:
            params[f"b{index}"] = jnp.asarray(rng.normal(size=n), jnp.float32)
    return params


def error(net, params, small, inputs):
    before, after = (
        np.asarray(jax.tree.leaves(net(p, *inputs))[0], np.float64) for p in (params, small)
    )
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def calibrated(name, count=256):
    model, net = network(name)
    inputs = model.resize(count, 6) if model.resize else model.inputs
    return model, net, inputs, jc.calibrate(net, model.params, [inputs], progress=False)
