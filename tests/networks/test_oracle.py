"""Law 4 on every model: a replayed small network is the full one with its maps embedded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close, network, outputs
from helpers_models import MODELS
from helpers_oracle import fibre_count, small_and_full

from jaxcompress.arrays.paths import named_leaves
from jaxcompress.networks.maps import AxisMap, apply_map


@pytest.mark.parametrize("name", MODELS)
def test_random_maps_of_every_kind_and_fibre(name):
    model, net = network(name)
    for seed in range(2):
        small, full, changed = small_and_full(net, model.params, seed)
        assert changed
        sized = net.resized({key: size for key, (_, size, _, _) in changed.items()})
        inputs = (
            model.inputs if seed or model.resize is None else model.resize(3, 5)
        )  # another batch and length
        close(outputs(model, sized(small, *inputs)), outputs(model, model.apply(full, *inputs)))


@pytest.mark.parametrize("name", MODELS)
def test_the_identity_of_every_fibre_changes_no_parameter(name):
    """A kernel with the fibres in both dimensions has blocks from every fibre to every other."""
    model, net = network(name)
    leaves = {leaf: np.asarray(value) for leaf, value in named_leaves(model.params)}
    for axis in net.axes:
        count, mapped = fibre_count(net.structure, axis, {}), dict(leaves)
        apply_map(
            net.structure,
            mapped,
            {},
            axis,
            AxisMap(*np.broadcast_to(np.eye(axis.size), (2, count, axis.size, axis.size))),
        )
        for leaf, value in leaves.items():
            np.testing.assert_array_equal(mapped[leaf], value, err_msg=f"{axis.key} in {leaf}")


@pytest.mark.parametrize("name", MODELS)
def test_every_expected_axis_is_found(name):
    model, net = network(name)
    slots = {
        slot for axis in net.axes for slot in axis.producers + axis.consumers + axis.parameters
    }
    missing = [
        leaf for leaf in model.hidden if (leaf, len(net.structure.layouts[leaf]) - 1) not in slots
    ]
    assert not missing
    assert all(row.reason for row in net.refused)


GRADIENTS = ["encoder_linen", "encoder_rms", "lstm", "convnet", "custom_rules", "stacked_scan"]
GRADIENTS += ["branches", "nested_calls", "custom_product", "experts", "graph_network"]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_the_full_network(name):
    """Through custom rules, scans and norms, compared on leaves that no changed axis touches."""
    model, net = network(name)
    elementwise = [axis.key for axis in net.axes if axis.kind == "elementwise" and not axis.fibres]
    small, full, changed = small_and_full(net, model.params, 3, only=elementwise)
    sized = net.resized({key: size for key, (_, size, _, _) in changed.items()})

    def loss(params, apply):
        return jnp.sum(jnp.sin(outputs(model, apply(params, *model.inputs))))

    ours = jax.jit(jax.grad(loss), static_argnums=1)(small, sized)
    theirs = jax.grad(loss)(full, model.apply)
    # leaves that no changed axis touches have the same gradient in both
    touched = {
        slot.leaf
        for axis, *_ in changed.values()
        for slot in axis.producers + axis.consumers + axis.parameters
    }
    same = [
        (mine, other)
        for (path, mine), (_, other) in zip(
            jax.tree_util.tree_leaves_with_path(ours),
            jax.tree_util.tree_leaves_with_path(theirs),
            strict=True,
        )
        if jax.tree_util.keystr(path, simple=True, separator="/") not in touched
    ]
    assert same
    for mine, other in same:
        close(mine, other, 1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))
