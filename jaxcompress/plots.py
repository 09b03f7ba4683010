"""All plots of the library, drawn with matplotlib (`pip install 'jaxcompress[plot]'`)."""

from jaxcompress.analysis.plots import (
    atoms,
    hidden_axes,
    learning_curve,
    sketches,
    weights_as_function,
)
from jaxcompress.classifiers.plots import (
    decision_mesh,
    errors_by_cause,
    margins,
    realized_along,
)

__all__ = [
    "atoms",
    "decision_mesh",
    "errors_by_cause",
    "hidden_axes",
    "learning_curve",
    "margins",
    "realized_along",
    "sketches",
    "weights_as_function",
]
