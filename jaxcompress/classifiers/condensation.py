"""Condensed nearest neighbours: a subset of labelled points that labels all of them by 1-NN.

It starts with the point nearest to each class's mean. In each round, every kept point p adds the
nearest of those points that are nearest to p and have another label, until there are none. The
result does not depend on the order of the points. Costs 2 n d operations a kept point.

Source: FCNN, Angiulli 2005 (doi:10.1145/1102351.1102355); condensing, Hart 1968
(doi:10.1109/TIT.1968.1054155).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from jaxcompress.classifiers.neighbours import nearest

TIE = 1e-5
"""Relative difference below which distances count as equal: bisected edges have midpoints that are
equally near to both ends."""


def condense(
    points: Float[np.ndarray, "n d"], targets: Int[np.ndarray, " n"], *, progress: bool = False
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " n"]]:
    """Select points whose nearest-neighbour rule labels all points.

    Args:
        points: points with different labels must differ in float32.
        targets: integer labels.
        progress: show a progress bar of correctly labelled points.

    Returns:
        The sorted indices of the kept points, and for each point the position of the nearest kept
        one, which has its label. A point that is as near to one of another label, within float32's
        accuracy, counts as labelled wrongly.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.classifiers.condensation import condense
        >>> line = np.arange(10.0)[:, None]
        >>> kept, cells = condense(line, np.int32(line[:, 0] > 5.5))
        >>> kept.tolist(), cells.tolist()
        ([2, 5, 6, 7], [0, 0, 0, 0, 1, 1, 2, 3, 3, 3])
    """
    count = len(points)
    # the two nearest kept points of each point, and their distances
    closest, distance = np.zeros((count, 2), int), np.full((count, 2), np.inf)
    kept = np.zeros(count, bool)
    new = np.array(
        [_central(points, np.flatnonzero(targets == label)) for label in np.unique(targets)]
    )
    with tqdm(
        total=count, desc="condense", unit=" points", disable=not progress, leave=False
    ) as bar:
        while len(new):
            # distances to the new points only: the two nearest of the others are stored
            to_new, index = nearest(points, points[new], min(2, len(new)))
            closest = np.concatenate([closest, new[index]], axis=1)
            distance = np.concatenate([distance, to_new], axis=1)
            order = np.argsort(distance, axis=1, kind="stable")[:, :2]
            closest = np.take_along_axis(closest, order, 1)
            distance = np.take_along_axis(distance, order, 1)
            kept[new] = True
            same = targets[closest] == targets[:, None]
            tied = distance[:, 1] <= distance[:, 0] * (1 + TIE)
            wrong = np.flatnonzero(~kept & ~(same[:, 0] & (same[:, 1] | ~tied)))
            # of the points labelled wrongly by one kept point, the nearest joins the kept ones
            order = wrong[np.lexsort((distance[wrong, 0], closest[wrong, 0]))]
            new = order[np.unique(closest[order, 0], return_index=True)[1]]
            bar.update(count - len(wrong) - bar.n)
    closest[kept, 0] = np.flatnonzero(kept)  # rounding must not give a kept point to another one
    kept = np.flatnonzero(kept)
    return kept, np.searchsorted(kept, closest[:, 0])


def _central(points: np.ndarray, members: np.ndarray) -> int:
    """The member nearest to the members' mean."""
    centre = points[members].mean(0, dtype=np.float64)
    return members[np.argmin(np.sum((points[members] - centre) ** 2, axis=1))]
