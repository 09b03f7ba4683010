"""Looking at networks and compressed parameters: reports, frontiers, studies."""

from jaxcompress.analysis.attributes import (
    LearningCurve,
    learning_curve,
    mean_frequency,
    overlap,
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
    "LearningCurve",
    "Report",
    "Sketches",
    "WeightFunction",
    "cost_of_sharing",
    "effective_rank",
    "frontier",
    "learning_curve",
    "mean_frequency",
    "overlap",
    "relative_variance",
    "report",
    "sketches",
    "weight_functions",
]
