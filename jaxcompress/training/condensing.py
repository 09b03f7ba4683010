"""Condensed nearest neighbours: a part of labelled points by whose nearest member all of them have their labels.

It starts with the point nearest to each class's mean. Each round, every kept point p takes in the nearest of the points that are
nearest to p and have another label; it ends where there are none. What is kept does not depend on the points' order. Costs
2 n d operations a kept point.

Source: FCNN, Angiulli 2005 (doi:10.1145/1102351.1102355); the idea is Hart's of 1968 (doi:10.1109/TIT.1968.1054155).
"""

from __future__ import annotations

import numpy as np
from tqdm.auto import tqdm

from jaxcompress.analysis.neighbours import nearest


def condensed(points: np.ndarray, targets: np.ndarray, *, progress: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The points that label all of them.

    Args:
        points: (n, d), of which two with different labels are told apart by float32.
        targets: (n,) integers.
        progress: show a progress bar of points that are labelled wrongly as yet.

    Returns:
        The kept points' indices (kept,), sorted; and for each point the place among them of the nearest one (n,), which has its
        label. Of distances that float32 does not tell apart either may be the nearest.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.training.condensing import condensed
        >>> line = np.arange(10.0)[:, None]
        >>> kept, cells = condensed(line, np.int32(line[:, 0] > 5.5))
        >>> kept.tolist(), cells.tolist()
        ([2, 5, 7], [0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    """
    count = len(points)
    nearest_kept, distance = np.full(count, -1), np.full(count, np.inf)
    new = np.array([_central(points, np.flatnonzero(targets == each)) for each in np.unique(targets)])
    with tqdm(total=count, desc="condense", unit=" points", disable=not progress, leave=False) as bar:
        while len(new):
            padded = np.resize(new, max(256, 2 ** (len(new) - 1).bit_length()))  # few sizes, so that few are compiled
            found, index = (each[:, 0] for each in nearest(points, points[padded], 1))
            closer = found < distance
            nearest_kept[closer], distance[closer] = padded[index[closer]], found[closer]
            nearest_kept[new], distance[new] = new, 0  # whatever rounding says
            wrong = np.flatnonzero(targets != targets[nearest_kept])
            order = wrong[np.lexsort((distance[wrong], nearest_kept[wrong]))]
            new = order[np.unique(nearest_kept[order], return_index=True)[1]]
            bar.update(count - len(wrong) - bar.n)
    kept, cells = np.unique(nearest_kept, return_inverse=True)
    return kept, cells


def _central(points: np.ndarray, members: np.ndarray) -> int:
    """The member nearest to the mean of them."""
    return members[np.argmin(np.sum((points[members] - points[members].mean(0, dtype=np.float64)) ** 2, axis=1))]
