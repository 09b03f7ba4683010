"""Condensed nearest neighbours: a part of labelled points by whose nearest member all of them have their labels.

It starts with the point nearest to each class's mean. Each round, every kept point p takes in the nearest of the points that are
nearest to p and have another label; it ends where there are none. What is kept does not depend on the points' order. Costs
2 n d operations a kept point.

Source: FCNN, Angiulli 2005 (doi:10.1145/1102351.1102355); the idea is Hart's of 1968 (doi:10.1109/TIT.1968.1054155).
"""

from __future__ import annotations

import numpy as np
from tqdm.auto import tqdm

from jaxcompress.classifiers.neighbours import nearest

TIE = 1e-5
"""Distances that differ by less than this share may be equal: halved edges have midpoints as near to one end as to the other."""


def condensed(
    points: np.ndarray, targets: np.ndarray, *, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The points that label all of them.

    Args:
        points: (n, d), of which two with different labels are told apart by float32.
        targets: (n,) integers.
        progress: show a progress bar of points that are labelled wrongly as yet.

    Returns:
        The kept points' indices (kept,), sorted; and for each point the place among them of the nearest one (n,), which has its
        label. A point as near to one of another label, as far as float32 can tell, counts as labelled wrongly.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.condensation import condensed
        >>> line = np.arange(10.0)[:, None]
        >>> kept, cells = condensed(line, np.int32(line[:, 0] > 5.5))
        >>> kept.tolist(), cells.tolist()
        ([2, 5, 6, 7], [0, 0, 0, 0, 1, 1, 2, 3, 3, 3])
    """
    count = len(points)
    two, away = (
        np.zeros((count, 2), int),
        np.full((count, 2), np.inf),
    )  # the nearest two that are kept, and their distances
    kept = np.zeros(count, bool)
    new = np.array(
        [_central(points, np.flatnonzero(targets == each)) for each in np.unique(targets)]
    )
    with tqdm(
        total=count, desc="condense", unit=" points", disable=not progress, leave=False
    ) as bar:
        while len(new):
            found, index = nearest(points, points[new], min(2, len(new)))
            both, apart = (
                np.concatenate([two, new[index]], axis=1),
                np.concatenate([away, found], axis=1),
            )
            order = np.argsort(apart, axis=1, kind="stable")[:, :2]
            two, away = np.take_along_axis(both, order, 1), np.take_along_axis(apart, order, 1)
            kept[new] = True
            alike = targets[two] == targets[:, None]
            tied = away[:, 1] <= away[:, 0] * (1 + TIE)
            wrong = np.flatnonzero(~kept & ~(alike[:, 0] & (alike[:, 1] | ~tied)))
            order = wrong[np.lexsort((away[wrong, 0], two[wrong, 0]))]
            new = order[np.unique(two[order, 0], return_index=True)[1]]
            bar.update(count - len(wrong) - bar.n)
    two[kept, 0] = np.flatnonzero(kept)  # whatever rounding says
    kept = np.flatnonzero(kept)
    return kept, np.searchsorted(kept, two[:, 0])


def _central(points: np.ndarray, members: np.ndarray) -> int:
    """The member nearest to the mean of them."""
    return members[
        np.argmin(
            np.sum((points[members] - points[members].mean(0, dtype=np.float64)) ** 2, axis=1)
        )
    ]
