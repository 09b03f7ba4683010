"""Looking at networks and compressed parameters: reports, frontiers, studies."""

from jaxcompress.analysis.attributes import (
    SampleEfficiency,
    mean_frequency,
    overlap,
    sample_efficiency,
)
from jaxcompress.analysis.frontier import Frontier, frontier
from jaxcompress.analysis.report import Report, report
from jaxcompress.analysis.sharing import (
    Sketches,
    cost_of_sharing,
    effective_rank,
    relative_variance,
    sketches,
)
from jaxcompress.analysis.weight_functions import WeightFunction, weight_functions

__all__ = [
    "Frontier",
    "Report",
    "SampleEfficiency",
    "Sketches",
    "WeightFunction",
    "cost_of_sharing",
    "effective_rank",
    "frontier",
    "mean_frequency",
    "overlap",
    "relative_variance",
    "report",
    "sample_efficiency",
    "sketches",
    "weight_functions",
]
