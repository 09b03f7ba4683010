"""Training loops, losses and penalties, and statistics of gradients."""

from jaxcompress.training.any_resolution import at_any_resolution
from jaxcompress.training.batches import predict
from jaxcompress.training.distillation import distillation_loss
from jaxcompress.training.fit import fit
from jaxcompress.training.gradients import (
    Curvature,
    GradientStatistics,
    curvature,
    gradient_statistics,
)
from jaxcompress.training.losses import Loss, cross_entropy
from jaxcompress.training.multigrid import MultigridState, multigrid
from jaxcompress.training.smoothing import add_variation, variation
from jaxcompress.training.state import FitState, LearningCurve
from jaxcompress.training.stream import fit_stream

__all__ = [
    "Curvature",
    "FitState",
    "GradientStatistics",
    "LearningCurve",
    "Loss",
    "MultigridState",
    "add_variation",
    "at_any_resolution",
    "cross_entropy",
    "curvature",
    "distillation_loss",
    "fit",
    "fit_stream",
    "gradient_statistics",
    "multigrid",
    "predict",
    "variation",
]
