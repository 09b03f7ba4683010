"""Looking at networks and compressed parameters: reports, frontiers, studies."""

from jaxcompress.analysis.frontier import Frontier, frontier
from jaxcompress.analysis.report import Report, report
from jaxcompress.analysis.weight_functions import WeightFunction, weight_functions

__all__ = ["Frontier", "Report", "WeightFunction", "frontier", "report", "weight_functions"]
