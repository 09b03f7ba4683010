"""What every size of a hidden axis is predicted to cost: the error of the network's outputs, from the moments alone.

The curve belongs to the map that `axis_maps` would make: what a rotation leaves of the spectrum, what a greedy selection has not
explained after 1, 2, ... channels. With sensitivities it is the squared error of the outputs, summed per output; without, relative
to all that the consumers read. One decomposition or one greedy run an axis gives all sizes.
"""

from __future__ import annotations

import numpy as np

from jaxcompress.networks.axes import Axis
from jaxcompress.transforms import axis_maps, selection
from jaxcompress.transforms.axiswise import Work


def curve(work: Work, axis: Axis, method: str) -> np.ndarray:
    """(d + 1,): the predicted error of the outputs at size 0, 1, ..., d of one axis."""
    d = work.size(axis)
    sensed = work.moments is not None and bool(work.moments.gains)
    if (
        method != "select"
        and axis_maps.why_not_rotate(work, axis) is None
        and (not axis.pair or axis_maps.pair_of(work, axis))
    ):
        errors, sensed = rotated(work, axis, sensed)
    elif (
        work.moments is not None
        and axis_maps.why_not_fold(axis) is None
        and axis_maps.measured(work, axis) is not None
    ):
        errors = np.zeros(d + 1)
        for group in axis_maps.systems(work, axis):
            found = selection.greedy(group, d)[1]
            fibres = group[0].where.shape[0]
            steps = np.minimum(np.arange(d + 1) * fibres, len(found) - 1)
            errors += found[steps]
    else:
        errors = tails(np.sort(axis_maps.importance(work, axis), axis=1)[:, ::-1]).sum(0)
    errors = np.minimum.accumulate(errors)
    return errors - errors[-1] if sensed else (errors - errors[-1]) / max(errors[0], 1e-300)


def rotated(work: Work, axis: Axis, sensed: bool) -> tuple[np.ndarray, bool]:
    """(d + 1,): what a rotation leaves out at size 0, 1, ..., d; and whether that is an error of the outputs."""
    if axis.pair:
        key = axis_maps.pair_of(work, axis)
        assert key is not None
        left, right = axis_maps.pair_moments(work, axis, key)
        roots = (selection.root(a) @ selection.root(b) for a, b in zip(left, right, strict=True))
        errors = tails(
            np.stack([np.linalg.svd(root, compute_uv=False) ** 2 for root in roots])
        ).mean(0)
        gain = work.moments.gains.get(key) if work.moments is not None else None
        return (errors, False) if gain is None else (errors * float(gain.cov.sum()), True)
    if "rms" in axis.marks:
        spectrum = tails(np.linalg.eigvalsh(axis_maps.normed(work, axis))[None, ::-1])[0]
        return spectrum / max(spectrum[0], 1e-300) * float(
            axis_maps.importance(work, axis).sum()
        ), sensed
    moments, _ = axis_maps.flowing(work, axis)
    halves = [selection.root(part) for part in moments]
    values = [
        np.linalg.eigvalsh(half @ gram @ half)[::-1]
        for half, gram in zip(halves, work.read(axis), strict=True)
    ]
    return tails(np.maximum(values, 0)).sum(0), sensed


def tails(values: np.ndarray) -> np.ndarray:
    """(F, d + 1): for each row what is left after its first 0, 1, ..., d entries."""
    total = np.cumsum(values[:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([total, np.zeros((len(values), 1))], axis=1)
