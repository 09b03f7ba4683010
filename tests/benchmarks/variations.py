"""The eight sets of HashedNets: MNIST, five variations of it, rectangles and convex shapes.

28 x 28 pixels, by short programs.

As in Larochelle et al. 2007 (doi:10.1145/1273496.1273556), whose files are no longer offered:
12,000 training and 50,000 test images a set, of which the last 2,000 training images judge
choices; MNIST itself has its 60,000 and 10,000, and the last 10,000 judge. Digits come from the
70,000 of MNIST, each in one place, and those that MNIST tests are tested here, too.

- BASIC: fewer digits. ROT: turned by any angle. BG-RAND: noise behind them. BG-IMG: patches of
  photographs behind them, those with hardly any contrast left out; the left halves of two
  photographs for training, the right halves for tests. BG-IMG-ROT: both.
- RECT: the outline of a rectangle: is it wider than high? The sides differ by three pixels at
  least.
- CONVEX: a white region: is it convex? Convex ones are cut out by half-planes, the others are
  unions of such.

    python tests/benchmarks/variations.py samples.png  # a look at ten of every set, two minutes
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import mnist
import numpy as np
from mnist import Digits
from scipy import ndimage

SIDE = 28
TRAINING, VALIDATION, TEST = 12_000, 2_000, 50_000
CONTRAST = 20.0
"""The least standard deviation of a patch of a photograph, of 255."""


def turned(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image (examples, 28, 28) turned by an angle of its own."""
    angles = rng.uniform(0, 360, len(images))
    return np.stack(
        [
            ndimage.rotate(image.astype(np.float32), angle, reshape=False, order=1)
            for image, angle in zip(images, angles, strict=True)
        ]
    )


def noise(count: int, rng: np.random.Generator, test: bool) -> np.ndarray:
    return rng.integers(0, 256, (count, SIDE, SIDE))


@cache
def photographs() -> tuple[np.ndarray, ...]:
    """scikit-learn's two sample images in grey."""
    from sklearn.datasets import load_sample_images

    return tuple(np.asarray(image, np.float32).mean(-1) for image in load_sample_images().images)


def patches(count: int, rng: np.random.Generator, test: bool) -> np.ndarray:
    """Patches with some contrast; training and test look at different halves."""
    found: list[np.ndarray] = []
    while len(found) < count:
        image = photographs()[int(rng.integers(len(photographs())))]
        middle = image.shape[1] // 2
        half = image[:, middle:] if test else image[:, :middle]
        row, column = (int(rng.integers(size - SIDE + 1)) for size in half.shape)
        patch = half[row : row + SIDE, column : column + SIDE]
        if patch.std() >= CONTRAST:
            found.append(patch)
    return np.stack(found)


def digits(
    behind: Callable[..., np.ndarray] | None = None, *, turn: bool = False
) -> Callable[[], tuple[Digits, Digits]]:
    """A set of digits, turned or not, with something behind them or nothing."""

    def make() -> tuple[Digits, Digits]:
        rng = np.random.default_rng(0)
        known = len(mnist.load()[0].labels)
        pixels, labels = (np.concatenate(parts) for parts in zip(*mnist.load(), strict=True))
        # no digit that MNIST keeps for its test is trained on, or judges a choice
        order = np.concatenate([rng.permutation(known), np.arange(known, len(labels))])
        order = np.concatenate([order[:TRAINING], order[-TEST:]])
        found = []
        for test, chosen in enumerate((order[:TRAINING], order[TRAINING : TRAINING + TEST])):
            images = pixels[chosen].reshape(-1, SIDE, SIDE)
            images = turned(images, rng) if turn else images
            images = (
                images
                if behind is None
                else np.maximum(images, behind(len(images), rng, bool(test)))
            )
            found.append(
                Digits(
                    np.clip(images.round(), 0, 255).astype(np.uint8).reshape(len(images), -1),
                    labels[chosen],
                )
            )
        return found[0], found[1]

    return make


def rectangles() -> tuple[Digits, Digits]:
    """Outlines; class 1 is wider than high."""
    rng = np.random.default_rng(0)

    def some(count: int) -> Digits:
        images, labels = np.zeros((count, SIDE, SIDE), np.uint8), np.zeros(count, np.int32)
        for place in range(count):
            height, width = 0, 0
            while abs(height - width) < 3:
                height, width = (int(size) for size in rng.integers(3, SIDE + 1, 2))
            top, left = int(rng.integers(SIDE - height + 1)), int(rng.integers(SIDE - width + 1))
            outline = images[place, top : top + height, left : left + width]
            outline[[0, -1]], outline[:, [0, -1]] = 255, 255
            labels[place] = width > height
        return Digits(images.reshape(count, -1), labels)

    return some(TRAINING), some(TEST)


def convex_or_not() -> tuple[Digits, Digits]:
    """White regions; class 1 is convex."""
    rng = np.random.default_rng(0)
    both = [np.concatenate(list(some)) for some in (regions(rng, True), regions(rng, False))]
    found = np.concatenate(both)
    labels = np.repeat([1, 0], [len(each) for each in both]).astype(np.int32)
    order = rng.permutation(len(labels))
    chosen = order[:TRAINING], order[TRAINING : TRAINING + TEST]
    train, test = (
        Digits((255 * found[some]).astype(np.uint8).reshape(len(some), -1), labels[some])
        for some in chosen
    )
    return train, test


def regions(rng: np.random.Generator, convex: bool, least: int = 40) -> Iterator[np.ndarray]:
    """(some, 28, 28) booleans at a time, half of all that are needed.

    Of at least so many pixels, and convex or not.
    """
    count = 0
    while count < (TRAINING + TEST) // 2:
        if convex:
            found = half_planes(rng, 2_000)
        else:
            parts = rng.integers(2, 4, 2_000)
            found = np.zeros((2_000, SIDE, SIDE), bool)
            for part in range(3):
                found |= half_planes(rng, 2_000) & (parts > part)[:, None, None]
        size = found.sum((1, 2))
        extra = hull(found).sum((1, 2)) - size
        # a region between is one that nobody could tell
        right = extra <= 0.02 * size if convex else extra >= 0.1 * size
        found = found[right & (size >= least) & (size <= SIDE**2 - least)]
        count += len(found)
        yield found[: len(found) - max(count - (TRAINING + TEST) // 2, 0)]


def points() -> np.ndarray:
    """(784, 2) the places of the pixels, the middle at zero."""
    return (
        np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2)
        - (SIDE - 1) / 2
    )


def half_planes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 28, 28) booleans: what three to eight half-planes have in common.

    Of any direction and place.
    """
    angle, offset = rng.uniform(0, 2 * np.pi, (count, 8)), rng.uniform(2, 13, (count, 8))
    centre = rng.uniform(-6, 6, (count, 1, 2))
    normal = np.stack([np.cos(angle), np.sin(angle)], -1)
    inside = np.einsum("npd,nkd->npk", points()[None] - centre, normal) <= offset[:, None]
    used = np.arange(8) < rng.integers(3, 9, count)[:, None]
    return np.all(inside | ~used[:, None], axis=2).reshape(count, SIDE, SIDE)


def hull(regions: np.ndarray, directions: int = 64) -> np.ndarray:
    """The convex hulls of regions (count, 28, 28), as far as some directions tell."""
    angle = np.arange(directions) * 2 * np.pi / directions
    along = points() @ np.stack([np.cos(angle), np.sin(angle)])  # (784, directions)
    flat = regions.reshape(len(regions), -1)
    inside = np.ones_like(flat)
    for reach in along.T:
        furthest = np.where(flat, reach, -np.inf).max(1)
        inside &= reach <= furthest[:, None] + 1e-6
    return inside.reshape(regions.shape)


SETS: dict[str, Callable[[], tuple[Digits, Digits]]] = {
    "MNIST": mnist.load,
    "BASIC": digits(),
    "ROT": digits(turn=True),
    "BG-RAND": digits(noise),
    "BG-IMG": digits(patches),
    "BG-IMG-ROT": digits(patches, turn=True),
    "RECT": rectangles,
    "CONVEX": convex_or_not,
}


@cache
def load(name: str) -> tuple[Digits, Digits]:
    """The training and the test set, the same each time."""
    return SETS[name]()


def picture(path: Path) -> None:
    """Ten training images of every set, in grey."""
    import matplotlib.pyplot as plt
    from PIL import Image

    figure, axes = plt.subplots(len(SETS), 10, figsize=(10, len(SETS)), dpi=80)
    for row, name in zip(axes, SETS, strict=True):
        train, _ = load(name)
        for place, panel in enumerate(row):
            panel.imshow(train.pixels[place].reshape(SIDE, SIDE), cmap="gray", vmin=0, vmax=255)
            panel.set(xticks=[], yticks=[], xlabel=str(train.labels[place]))
        row[0].set_ylabel(name)
    figure.tight_layout()
    figure.canvas.draw()
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., 0].copy()).save(
        path, optimize=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="the picture that is written")
    picture(parser.parse_args().out)


if __name__ == "__main__":
    main()
