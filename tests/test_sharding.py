"""Law 7 over several devices: sharded stored numbers give one device's products and gradients.

The devices are made of the CPU by an XLA flag that must be set before JAX starts, so the check runs
in a process of its own.
"""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, jaxcompress as jc
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()), ("shard",))
place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
w = jax.random.normal(jax.random.key(0), (32, 24))
x = jax.random.normal(jax.random.key(1), (16, 32))
program = jax.jit(jax.value_and_grad(lambda a, x: jnp.sum((x @ a) ** 2)))
transforms = (
    jc.hashed(1 / 4), jc.hashed(1 / 2, block=4), jc.vocabulary(1 / 2), jc.factored(1 / 2),
    jc.spline(1 / 3),
)


def shardable(leaf):
    "Every child is divided along a dimension that the devices divide."
    largest = max(leaf.shape)
    return P(*("shard" if size == largest and size % 4 == 0 else None for size in leaf.shape))


for transform in transforms:
    array = transform(w)
    value, gradient = program(array, x)
    sharded = jax.tree.map(lambda leaf: place(leaf, shardable(leaf)), array)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(sharded)), array
    value_sharded, gradient_sharded = program(sharded, place(x, P("shard")))
    np.testing.assert_allclose(value_sharded, value, rtol=1e-5)
    leaves = jax.tree.leaves(gradient), jax.tree.leaves(gradient_sharded)
    for one, many in zip(*leaves, strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-4)
print(len(jax.devices()))
"""


def test_sharded_arrays_give_the_same_numbers():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert process.stdout.strip() == "4"
