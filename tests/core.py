"""The main job with the core dependencies alone: `.ci/versions` runs it before it installs more."""

import os
import tempfile

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxcompress as jc


def main() -> None:
    model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(32), nn.relu, nn.Dense(4)])
    x = np.random.default_rng(0).normal(size=(256, 16)).astype(np.float32)
    y = np.argmax(x[:, :4], axis=1)
    params = model.init(jax.random.key(0), x[:1])
    net = jc.trace(model.apply, params, x[:1])
    loss = jc.training.cross_entropy(net)
    settings = dict(steps=100, batch_size=64, optimizer=optax.adam(1e-2), progress=False)
    trained = jc.fit(loss, params, (x, y), **settings)
    moments = jc.calibrate(net, trained.params, [x], progress=False)
    recipe = jc.chain(
        jc.rotate_and_prune(net, keep=1 / 2), jc.at("**/kernel", jc.hashed(keep=1 / 2))
    )
    small = recipe(trained.params, moments)
    tuned = jc.fit(loss, small, (x, y), **settings)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "small.safetensors")
        jc.save(path, tuned.params)
        loaded = jc.load(path)
    np.testing.assert_array_equal(net(loaded, x), net(tuned.params, x))
    accuracy = float((net(loaded, x).argmax(-1) == y).mean())
    assert accuracy > 0.9, accuracy
    before, after = jc.stored_numbers(params), jc.stored_numbers(loaded)
    print(f"{after:,} of {before:,} numbers, {accuracy:.1%} of the training set")


if __name__ == "__main__":
    main()
