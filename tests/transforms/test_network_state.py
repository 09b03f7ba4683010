"""NetworkState: a change is plain data, computed from a state that stays as it is."""

import numpy as np
import pytest
from helpers import calibrated

import jaxcompress as jc
from jaxcompress.transforms.network_state import NetworkState


@pytest.mark.parametrize("name", ["linear_rms", "convnet", "encoder_by_hand"])
def test_changes_do_not_modify_the_state(name):
    model, net, _, moments = calibrated(name)
    state = NetworkState.of(net.structure, model.params, moments)
    leaves = {name: leaf.copy() for name, leaf in state.leaves.items()}
    transforms = [
        jc.rotate_and_prune(net, 1 / 2),
        jc.rotate_and_prune(net, 1 / 2, method="select"),
        jc.merge(net, 0.5),
        jc.coarsen(net, 2),
        jc.refine(net, 2),
        jc.seriate(net),
    ]
    changed = 0
    for transform in transforms:
        for axis in net.axes:
            change = transform.change(state, axis)
            if change is not None:
                assert state.applied(axis, change).size(axis) == change.map.size
                changed += 1
    assert changed > len(transforms)
    assert state.sizes == {}
    assert state.moments is moments
    for leaf_name, leaf in leaves.items():
        np.testing.assert_array_equal(state.leaves[leaf_name], leaf)
