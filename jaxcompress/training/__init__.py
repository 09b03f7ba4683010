"""Training loops, the losses and penalties for them, and what gradients tell."""

from jaxcompress.training.any_resolution import at_any_resolution
from jaxcompress.training.distillation import distillation_loss, predict
from jaxcompress.training.fit import FitState, Loss, cross_entropy, fit
from jaxcompress.training.gradients import (
    Curvature,
    GradientStatistics,
    curvature,
    gradient_statistics,
)
from jaxcompress.training.multigrid import MultigridState, multigrid
from jaxcompress.training.smoothing import add_variation, variation
from jaxcompress.training.stream import fit_stream

__all__ = [
    "Curvature",
    "FitState",
    "GradientStatistics",
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
