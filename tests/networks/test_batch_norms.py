"""Batch norms are found in whatever way a framework writes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_norms import NORMED

import jaxcompress as jc
from jaxcompress.networks.batch_norms import batch_norms, locate_norms, numbers_of
from jaxcompress.programs.affine import position_of
from jaxcompress.programs.program import Program
from jaxcompress.programs.rules import Replay


@pytest.mark.parametrize("name", NORMED)
def test_a_norm_is_the_affine_map_of_its_numbers(name):
    """What the table says of each norm is what the program computes there."""
    case = NORMED[name]()
    net = jc.trace(case.apply, case.params, *case.inputs)
    traced = net.traces(net.full, net.inputs)
    norms = locate_norms(traced)
    assert len(norms) == case.norms
    assert sum(not located.norm.obstacle for located in norms) == case.folded
    ends = [value for located in norms for value in (located.source, located.result)]
    program = Program(traced.program.inputs, ends, traced.program.steps)
    run = jax.jit(
        lambda params, *inputs: Replay({}).run(program, jax.tree.leaves((params, inputs)))
    )
    values = run(case.params, *case.inputs)
    for located, before, after in zip(norms, values[::2], values[1::2], strict=True):
        numbers = numbers_of(net, located, case.params)
        places = [position_of(value, located.channel) for value in (located.source, located.result)]
        x, y = (np.moveaxis(v, place, -1) for v, place in zip((before, after), places, strict=True))
        factor = numbers.factor(located.norm.epsilon)
        expected = (x + numbers.bias - numbers.mean) * factor + numbers.shift
        np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


def test_the_table_names_the_parameters():
    """Leaves, the axis and the kernel before it; what cannot be folded says why."""
    case = NORMED["linen_perceptron"]()
    table = batch_norms(jc.trace(case.apply, case.params, *case.inputs))
    first, _, third, _ = table
    assert first.kernel is not None
    assert str(first.kernel) == first.axis
    assert (first.kernel.leaf, first.bias) == ("params/Dense_0/kernel", "params/Dense_0/bias")
    assert (first.mean, first.scale) == ("batch_stats/BatchNorm_0/mean", None)
    assert "no product" in third.obstacle
    assert third.obstacle in str(table)


def test_training_mode_has_none():
    """Statistics of the batch are no parameters."""

    def apply(params, x):
        y = x @ params["up"]
        y = (y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-5) * params["scale"]
        return y @ params["down"]

    params = {"up": jnp.ones((3, 4)), "scale": jnp.ones(4), "down": jnp.ones((4, 2))}
    assert not len(batch_norms(jc.trace(apply, params, jnp.ones((5, 3)))))
