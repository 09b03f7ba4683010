"""All plots of the library, drawn with matplotlib (`pip install 'jaxcompress[plot]'`)."""

from jaxcompress.analysis.plots import (
    atoms,
    hidden_axes,
    sample_efficiency,
    sketches,
    weights_as_function,
)
from jaxcompress.classifiers.boundary_plots import realized_along, realized_images
from jaxcompress.classifiers.error_plots import error_images, errors_by_cause
from jaxcompress.classifiers.plots import decision_mesh, margins
from jaxcompress.moments.comparison_plots import moments_compared

__all__ = [
    "atoms",
    "decision_mesh",
    "error_images",
    "errors_by_cause",
    "hidden_axes",
    "margins",
    "moments_compared",
    "realized_along",
    "realized_images",
    "sample_efficiency",
    "sketches",
    "weights_as_function",
]
