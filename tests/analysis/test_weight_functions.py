"""Every kernel as a function: exact at its own resolution, the nearest fit at a coarser one."""

import numpy as np
import pytest
from helpers import network

import jaxcompress as jc
from jaxcompress.arrays.spline import BASES


@pytest.mark.parametrize(
    "name", ["mlp_by_hand", "mlp_equinox", "encoder_linen", "fused_qkv", "convnet", "lstm"]
)
def test_every_kernel_is_a_function_on_its_axes(name):
    model, net = network(name)
    found = jc.analysis.weight_functions(net, model.params)
    assert found.keys() == net.matrix_axes.keys()
    for function in found.values():
        m, n = function.values.shape[-2:]
        for basis in BASES:
            np.testing.assert_allclose(
                function.at(m, n, basis=basis).values, function.values, atol=1e-6
            )
        assert function.error(max(1, m // 2)) <= function.error(max(1, m // 4)) + 1e-9
        assert function.name in repr(function)


def test_cells_are_the_form_and_the_map():
    """Along the outputs they are `jc.spline`; of refined parameters they lose nothing."""
    model, net = network("mlp_by_hand")
    function = next(iter(jc.analysis.weight_functions(net, model.params).values()))
    kernel = function.values.astype(np.float32)
    n = kernel.shape[1]
    np.testing.assert_allclose(
        function.at(outputs=n // 2).values,
        jc.spline((n // 2) / n)(kernel).materialize(),
        atol=1e-6,
    )
    for name, wide in jc.analysis.weight_functions(net, jc.refine(net, 2)(model.params)).items():
        cells = [
            size // 2 if key else None
            for size, key in zip(wide.values.shape, (wide.inputs, wide.outputs), strict=True)
        ]
        assert wide.error(*cells) < 1e-10, name


def test_refusals():
    model, net = network("mlp_by_hand")
    function = next(iter(jc.analysis.weight_functions(net, model.params).values()))
    with pytest.raises(ValueError, match="out of reach"):
        function.at(10_000)
    with pytest.raises(ValueError, match="is unknown"):
        function.at(2, basis="sinc")
    with pytest.raises(ValueError, match="not the traced parameters"):
        jc.analysis.weight_functions(net, {"w": np.ones((2, 2))})
    with pytest.raises(TypeError, match=r"takes a network from jc\.trace"):
        jc.analysis.weight_functions(None, {})
