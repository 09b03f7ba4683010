"""Pure functional transforms over parameter pytrees that make trained networks smaller and train small ones.

    small = jc.at(jc.matrices, jc.hashed(keep=1/8))(params)      # a pytree in, a pytree out
    logits = model.apply(jc.materialize(small), x)               # any model, unchanged

See README.md for a tour.
"""

from jaxcompress.analysis import plots
from jaxcompress.analysis.frontier import Frontier, frontier
from jaxcompress.analysis.report import Report, report
from jaxcompress.analysis.weight_functions import WeightFunction, weight_functions
from jaxcompress.arrays.atoms import DesignedAtoms
from jaxcompress.arrays.base import (
    CompactArray,
    compact_array,
    materialize,
    matmul,
    static,
    stored_numbers,
)
from jaxcompress.arrays.clustered import ClusteredArray
from jaxcompress.arrays.factored import FactoredArray
from jaxcompress.arrays.hashed import HashedArray
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.lookups import LookupArray
from jaxcompress.arrays.paths import matrices
from jaxcompress.arrays.spline import ConvolvedArray, as_function
from jaxcompress.arrays.tie import tie
from jaxcompress.arrays.toeplitz import ToeplitzArray
from jaxcompress.arrays.vocabulary import VocabularyArray
from jaxcompress.checkpoint import load, save
from jaxcompress.classifiers.active_set import ActiveSet, active_set
from jaxcompress.classifiers.distribution_matching import match_distribution
from jaxcompress.classifiers.errors import explain_errors
from jaxcompress.classifiers.exact_fit import ExactFit, fit_exactly
from jaxcompress.classifiers.mesh import MeshClassifier
from jaxcompress.classifiers.ranking import Judgement, evaluate_compactions
from jaxcompress.classifiers.realization import Realized, realize
from jaxcompress.classifiers.realization_along import RealizedAlong, realize_along
from jaxcompress.classifiers.teaching_set import TeachingSet, teaching_set
from jaxcompress.classifiers.verdicts import ErrorReport, Verdict
from jaxcompress.moments.moments import Moments
from jaxcompress.networks.trace import Network, trace
from jaxcompress.training.any_resolution import at_any_resolution
from jaxcompress.training.distillation import distillation, outputs
from jaxcompress.training.fit import FitState, cross_entropy, fit
from jaxcompress.training.gradients import (
    Curvature,
    GradientStatistics,
    curvature,
    gradient_statistics,
)
from jaxcompress.training.multigrid import MultigridState, multigrid
from jaxcompress.training.smoothing import add_variation, variation
from jaxcompress.transforms.base import Transform, second_moments
from jaxcompress.transforms.budget import Plan, budget
from jaxcompress.transforms.combinators import at, chain, identity, partition
from jaxcompress.transforms.compress import compress
from jaxcompress.transforms.forms import clustered, convolved, factored, hashed, toeplitz
from jaxcompress.transforms.initialize import initialize
from jaxcompress.transforms.leafwise import LeafTransform
from jaxcompress.transforms.merge import merge
from jaxcompress.transforms.recalibrate import recalibrate
from jaxcompress.transforms.reconstruct import reconstruct
from jaxcompress.transforms.resolution import coarsen, refine
from jaxcompress.transforms.rotation import rotate_and_prune
from jaxcompress.transforms.select_rows import select_rows
from jaxcompress.transforms.seriation import order, smoothness
from jaxcompress.transforms.together import together
from jaxcompress.transforms.vocabulary import vocabulary

__all__ = [
    "ActiveSet",
    "ClusteredArray",
    "CompactArray",
    "ConvolvedArray",
    "Curvature",
    "DesignedAtoms",
    "ErrorReport",
    "ExactFit",
    "FactoredArray",
    "FitState",
    "Frontier",
    "GradientStatistics",
    "HashedArray",
    "Judgement",
    "LeafTransform",
    "LookupArray",
    "MatrixAxes",
    "MeshClassifier",
    "Moments",
    "MultigridState",
    "Network",
    "Plan",
    "Realized",
    "RealizedAlong",
    "Report",
    "TeachingSet",
    "ToeplitzArray",
    "Transform",
    "Verdict",
    "VocabularyArray",
    "WeightFunction",
    "active_set",
    "add_variation",
    "as_function",
    "at",
    "at_any_resolution",
    "budget",
    "chain",
    "clustered",
    "coarsen",
    "compact_array",
    "compress",
    "convolved",
    "cross_entropy",
    "curvature",
    "distillation",
    "evaluate_compactions",
    "explain_errors",
    "factored",
    "fit",
    "fit_exactly",
    "frontier",
    "gradient_statistics",
    "hashed",
    "identity",
    "initialize",
    "load",
    "match_distribution",
    "materialize",
    "matmul",
    "matrices",
    "merge",
    "multigrid",
    "order",
    "outputs",
    "partition",
    "plots",
    "realize",
    "realize_along",
    "recalibrate",
    "reconstruct",
    "refine",
    "report",
    "rotate_and_prune",
    "save",
    "second_moments",
    "select_rows",
    "smoothness",
    "static",
    "stored_numbers",
    "teaching_set",
    "tie",
    "toeplitz",
    "together",
    "trace",
    "variation",
    "vocabulary",
    "weight_functions",
]
