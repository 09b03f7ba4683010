"""Plots of both rooms that draw, with matplotlib (`pip install 'jaxcompress[plot]'`)."""

from jaxcompress.analysis.plots import (
    atoms,
    hidden_axes,
    shrinking,
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
    "margins",
    "realized_along",
    "shrinking",
    "sketches",
    "weights_as_function",
]
