"""The sign convention of eigenvectors and singular vectors.

Each is determined up to its sign, and the sign that a linear algebra library returns differs
between machines and versions. Fits store the vectors whose largest entry by magnitude is positive,
so that equal weights give equal numbers everywhere. Where only the space that they span is used,
the sign is free and no convention is applied.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def peak_signs(vectors: Float[np.ndarray, "*lead d r"]) -> Float[np.ndarray, "*lead 1 r"]:
    """The sign of the largest entry by magnitude of each column, 1 for a column of zeros.

    The vectors of the other side of a singular value decomposition take the same signs.
    """
    peak = np.take_along_axis(vectors, np.abs(vectors).argmax(-2, keepdims=True), -2)
    return np.where(peak < 0, -1.0, 1.0)


def fix_signs(vectors: Float[np.ndarray, "*lead d r"]) -> Float[np.ndarray, "*lead d r"]:
    """Columns with the sign that makes the largest entry of each by magnitude positive.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.arrays.signs import fix_signs
        >>> fix_signs(np.array([[0.6, 0.8], [-0.8, 0.6]])).tolist()
        [[-0.6, 0.8], [0.8, 0.6]]
    """
    return vectors * peak_signs(vectors)
