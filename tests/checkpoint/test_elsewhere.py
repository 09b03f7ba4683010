"""Axes, recipes and moments are loaded where the function is not; orbax reads and writes trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_files import ARRAYS, same
from helpers_transforms import NET, PARAMS, SAVED, X

import jaxcompress as jc
from jaxcompress.checkpoint import tree_from_bytes, tree_to_bytes


def test_a_network_elsewhere(tmp_path):
    """One file with axes, moments, a recipe and parameters gives what the network gives."""
    moments = jc.calibrate(NET, PARAMS, [X], progress=False)
    recipe = jc.chain(jc.rotate_and_prune(NET, keep=1 / 2), jc.at("down", jc.factored(3 / 4)))
    tree = {"axes": NET.structure, "moments": moments, "recipe": recipe, "params": PARAMS}
    jc.save(tmp_path / "all.safetensors", tree)
    there = jc.load(tmp_path / "all.safetensors")
    assert there["axes"] == NET.structure
    assert there["recipe"] == recipe
    assert str(there["axes"].axes) == str(NET.axes)
    small, moved = recipe.apply(PARAMS, moments)
    same(there["recipe"](there["params"], there["moments"]), small)
    again = tree_from_bytes(tree_to_bytes(moved), "moved")  # with the maps of its axes
    same(
        jc.rotate_and_prune(there["axes"], keep=1 / 2)(PARAMS, there["moments"])["up"], small["up"]
    )
    assert tree_to_bytes(again) == tree_to_bytes(moved)


def test_every_recipe_is_saved_with_its_axes():
    """Law: load(save(t)) == t, for every transform without a function or data inside."""
    for name, make in SAVED.items():
        transform = make()
        if "batchnorm" in name:
            with pytest.raises(TypeError, match="a recipe that is guided by batch norms"):
                tree_to_bytes(transform)
            continue
        if name.split()[0] in ("recalibrate", "reconstruct", "linearize") or "recalibrate" in repr(
            transform
        ):
            with pytest.raises(TypeError, match=r"a recipe with data is written by jc.save_recipe"):
                tree_to_bytes(transform)
        else:
            assert tree_from_bytes(tree_to_bytes(transform), name) == transform, name


def test_a_network_is_saved_by_its_structure():
    with pytest.raises(TypeError, match=r"Network, which is no array"):
        tree_to_bytes({"net": NET})


def test_orbax_both_ways(tmp_path):
    """Compact parameters go into an orbax checkpoint and come back, into a file and back."""
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    if not hasattr(jax.monitoring, "record_scalar"):
        pytest.skip("this orbax-checkpoint needs a later jax")
    tree = {name.replace(" ", "_"): array for name, array in ARRAYS.items()}
    tree["state"] = {"step": jnp.int32(3), "mu": jax.tree.map(jnp.zeros_like, tree["clustered"])}
    del tree["factored_full"]  # orbax stores no empty arrays
    path = (tmp_path / "orbax").resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        restored = checkpointer.restore(path, shapes)
    same(restored, tree)
    same(tree_from_bytes(tree_to_bytes(restored), "file"), tree)
    assert np.isfinite(restored["clustered"].materialize()).all()
