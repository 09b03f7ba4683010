"""(draft)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import fashion
import jax
import jax.numpy as jnp
import numpy as np
from fashion import cache_folder
from hashednets import dense_params, logits, one_cycle, partly_hidden, to_unit

import jaxcompress as jc

SIZES = (784, 256, 256, 10)
STEPS, BATCH, RATE, HIDDEN = 5_000, 100, 2e-3, 0.1
VALIDATION = 10_000
MOST = 0.12
"""The most accuracy that a compaction may lose on the validation images to be in the list."""


def each_kernel(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    """A change of the hidden kernels, on the host."""
    kernel = lambda layer: layer | {"kernel": jnp.asarray(change(np.asarray(layer["kernel"])))}
    return lambda params: params | {name: kernel(params[name]) for name in ("0", "1")}


def magnitude(keep: float) -> Callable[[Any], Any]:
    """Zeros in place of the smallest weights."""
    return each_kernel(lambda kernel: np.where(np.abs(kernel) >= np.quantile(np.abs(kernel), 1 - keep), kernel, 0.0))


def levels(count: int) -> Callable[[Any], Any]:
    """So many evenly spread values, from the quantile 0.005 to 0.995."""

    def rounded(kernel: np.ndarray) -> np.ndarray:
        low, high = np.quantile(kernel, (0.005, 0.995))
        step = (high - low) / (count - 1)
        return (low + step * np.clip(np.round((kernel - low) / step), 0, count - 1)).astype(np.float32)

    return each_kernel(rounded)


def compactions(net: jc.Network, moments: jc.Moments) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """All that are judged, by name."""
    hidden = lambda transform: jc.at(("0/kernel", "1/kernel"), transform)
    for keep in (0.7, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1):
        yield f"rotate_and_prune {keep:g}", lambda params, keep=keep: jc.rotate_and_prune(net, keep)(params, moments)
    for keep in (0.9, 0.8, 0.7, 0.6, 0.5):
        yield f"channels by magnitude {keep:g}", jc.rotate_and_prune(net, keep, method="magnitude")
    for factor in (1.1, 1.25, 1.5, 2, 3, 4):
        yield f"coarsen {factor:g}", lambda params, factor=factor: jc.coarsen(net, factor)(params, moments)
    for keep in (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05):
        yield f"weights by magnitude {keep:g}", magnitude(keep)
    for keep in (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03):
        yield f"factored {keep:g}", hidden(jc.factored(keep))
    for keep in (0.9, 0.75, 0.5, 0.35, 0.25):
        yield f"hashed {keep:g}", hidden(jc.hashed(keep))
    for keep in (0.5, 0.25, 0.125):
        yield f"clustered {keep:g}", hidden(jc.clustered(keep))
    for count in (2, 3, 4, 5, 6, 8, 12):
        yield f"{count} levels", levels(count)


def answers(seed: int) -> dict[str, np.ndarray]:
    """The logits of the network, its last checkpoints and every compaction on validation and test images; kept in the cache."""
    place = cache_folder() / "active_set" / f"{seed}.npz"
    if place.exists():
        return dict(np.load(place))
    train, test = fashion.load()
    x, y = train.pixels[:-VALIDATION], train.labels[:-VALIDATION]
    judged = np.concatenate([train.pixels[-VALIDATION:], test.pixels])
    plain = jc.cross_entropy(lambda params, pixels: logits(params, pixels))
    loss = lambda params, batch, key: plain(params, (partly_hidden(batch[0], HIDDEN, key), batch[1]), key)
    seen = []
    params = jc.fit(
        loss, dense_params(jax.random.key(seed), SIZES), (x, y), optimizer=one_cycle(RATE, STEPS), steps=STEPS, batch_size=BATCH,
        seed=seed, watch=lambda state: seen.append(state.params), every=STEPS // 10,
    ).params  # fmt: skip
    net = jc.trace(logits, params, jnp.zeros((2, 784)))
    moments = net.calibrate(params, [to_unit(x[:5_000])], progress=False)
    outputs = jax.jit(lambda params, pixels: logits(params, to_unit(pixels)))
    on_all = lambda params: np.concatenate([np.asarray(outputs(params, part)) for part in np.split(judged, 10)])
    found = {"original": on_all(params)}
    found |= {f"checkpoint {index}": on_all(each) for index, each in enumerate(seen[-4:-1])}
    for name, change in compactions(net, moments):
        found[f"compaction {name}"] = on_all(jax.tree.map(jnp.asarray, jc.materialize(change(params))))
    found["labels"] = np.concatenate([train.labels[-VALIDATION:], test.labels])
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez(place, **found)
    return found


if __name__ == "__main__":
    import time

    for seed in range(3):
        start = time.time()
        found = answers(seed)
        y = found["labels"]
        print(seed, time.time() - start)
        for name, each in found.items():
            if name != "labels":
                print(f"{name:40s} {(each.argmax(1) == y)[:10000].mean():.4f} {(each.argmax(1) == y)[10000:].mean():.4f}")
