"""Moments of the activations along hidden axes, gathered in one pass over data."""

from jaxcompress.moments.calibration import Calibration, calibrate
from jaxcompress.moments.moments import Moments
from jaxcompress.moments.norm_inputs import inputs_from_norms
from jaxcompress.moments.statistics import AxisMoments, Statistic

__all__ = ["AxisMoments", "Calibration", "Moments", "Statistic", "calibrate", "inputs_from_norms"]
