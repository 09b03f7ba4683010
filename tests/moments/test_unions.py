"""Moments of a union are those of all vectors together, whatever was added up separately."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcompress as jc
from jaxcompress.moments.cross_moments import CrossMoments
from jaxcompress.moments.moments import Moments
from jaxcompress.moments.sensitivity import transposition
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import AXES, REFUSED, Axis, Structure
from jaxcompress.networks.layout import Layout
from jaxcompress.tables import Table

CHANNELS = Layout("h", 3)
AXIS = Axis("h", 3, "linear")
STRUCTURE = Structure(Table((AXIS,), AXES, ""), Table((), REFUSED, ""), {}, {}, {})


def vectors(count, *shape, seed=0, mean=0.0):
    """Vectors whose mean depends on every index of their shape."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *shape)) + mean + 3 * rng.normal(size=shape)


def measured(x, dims=(CHANNELS,), lead=()):
    """The statistic of vectors, (count, *lead, *dims)."""
    flat = x.reshape(len(x), *(layout.size for layout in lead), -1)
    mean = flat.mean(0)
    gaps = flat - mean
    cov = np.einsum("n...i,n...j->...ij", gaps, gaps) / len(x)
    return Statistic(lead, dims, float(len(x)), mean, cov)


def pooled(*statistics):
    """The moments along the axis of several consumers."""
    sites = {str(number): statistic for number, statistic in enumerate(statistics)}
    found = Moments(STRUCTURE, sites, {}, {})["h"]
    return found.count, found.mean[0], found.cov[0]


def both(ours, theirs):
    """The sum of two statistics."""
    total = ours + theirs
    return total.count, total.mean, total.cov


A, B = vectors(40, 3, seed=1), vectors(70, 3, seed=2, mean=5.0)
PLACES, LAYERS = vectors(40, 4, 3, seed=3), vectors(40, 2, 3, seed=4)
LINES = (Layout("place", 4), CHANNELS)
UNIONS = {
    "two sets of data": (lambda: both(measured(A), measured(B)), [A, B]),
    "consumers of different counts": (lambda: pooled(measured(A), measured(B)), [A, B]),
    "positions of one consumer": (lambda: pooled(measured(PLACES, LINES)), [PLACES]),
    "layers of one consumer": (
        lambda: pooled(measured(LAYERS, lead=(Layout("layer", 2),))),
        [LAYERS],
    ),
    "a consumer of positions and another": (
        lambda: pooled(measured(PLACES, LINES), measured(B[:40])),
        [PLACES[:, 0] * 0 + B[:40], PLACES],
    ),
}


@pytest.mark.parametrize("name", UNIONS)
def test_means_differ_between_the_parts(name):
    union, parts = UNIONS[name]
    count, mean, cov = union()
    rows = [part.reshape(-1, 3) for part in parts]
    if name == "a consumer of positions and another":  # a consumer counts once for each vector
        rows = [np.repeat(rows[0], 4, axis=0), rows[1]]
    together = np.concatenate(rows)
    np.testing.assert_allclose(mean, together.mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(together.T, bias=True), rtol=1e-10)
    assert count == sum(len(part) for part in parts)


def test_joint_moments_of_two_sets():
    """Of pairs whose means differ from set to set, on either side."""

    def joint(x, y):
        after, before = y - y.mean(0), x - x.mean(0)
        cov, cross = after.T @ after / len(x), after.T @ before / len(x)
        return CrossMoments(float(len(x)), x.mean(0), y.mean(0), cov, cross)

    x, y = [A, B], [vectors(40, 2, seed=5), vectors(70, 2, seed=6, mean=-4.0)]
    union, whole = joint(x[0], y[0]) + joint(x[1], y[1]), joint(*map(np.concatenate, (x, y)))
    for name in ("count", "before", "after", "cov", "cross"):
        np.testing.assert_allclose(
            getattr(union, name), getattr(whole, name), rtol=1e-10, err_msg=name
        )


def test_gains_of_two_sets():
    """The signs of a single output do not matter, so that the sums are equal."""
    rng = np.random.default_rng(0)
    params = {"up": rng.normal(size=(3, 4)), "down": rng.normal(size=(4, 1))}
    params = {name: kernel.astype(np.float32) for name, kernel in params.items()}
    sets = [rng.normal(size=(rows, 3)).astype(np.float32) for rows in (5, 9)]
    net = jc.trace(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, sets[0])

    def gains(*batches):
        return jc.calibrate(net, params, batches, sensitivity=True, progress=False)

    union, whole = (gains(sets[0]) + gains(sets[1])).gains, gains(*sets).gains
    for key in ("up#0", "down#0"):
        assert union[key].count == whole[key].count == 14
        np.testing.assert_allclose(union[key].cov, whole[key].cov, rtol=1e-5, err_msg=key)


HEADS, SIZE, MODEL, ONE = Layout("heads", 2), Layout("size", 3), Layout("model", 4), Layout("", 1)
PRODUCT = Layout("", 6, "product", (HEADS, SIZE))
SEGMENTS = Layout("", 5, "concat", (HEADS, SIZE))
ORDERS = {
    "as they are": ((HEADS, SIZE), (HEADS, SIZE), [0, 1, 2, 3, 4, 5]),
    "a product of both": ((HEADS, SIZE), (PRODUCT,), [0, 1, 2, 3, 4, 5]),
    "exchanged": ((SIZE, HEADS), (HEADS, SIZE), [0, 3, 1, 4, 2, 5]),
    "exchanged, with a size of one": ((SIZE, ONE, HEADS), (PRODUCT,), [0, 3, 1, 4, 2, 5]),
    "other axes": ((HEADS, SIZE), (HEADS, MODEL), None),
    "fewer axes": ((HEADS,), (SIZE, HEADS), None),
    "twice the same": ((HEADS, SIZE, HEADS), (HEADS, HEADS, SIZE), None),
    "segments in the kernel": ((SEGMENTS,), (SIZE, HEADS), None),
    "segments in the product": ((SIZE, HEADS), (SEGMENTS,), None),
}


@pytest.mark.parametrize("name", ORDERS)
def test_where_a_kernels_outputs_lie_in_its_product(name):
    kernel, result, order = ORDERS[name]
    assert transposition(kernel, result) == order
