"""What flows along hidden axes, gathered in one pass over data."""

from jaxcompress.moments.calibration import Calibration, calibrate
from jaxcompress.moments.moments import AxisMoments, Moments, Statistic

__all__ = ["AxisMoments", "Calibration", "Moments", "Statistic", "calibrate"]
