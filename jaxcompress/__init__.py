"""Pure functional transforms over parameter pytrees: trained networks smaller, small ones trained.

    small = jc.at(jc.matrices, jc.hashed(keep=1/8))(params)      # a pytree in, a pytree out
    logits = model.apply(jc.materialize(small), x)               # any model, unchanged

See README.md for a tour.
"""

from importlib.metadata import version

from jaxcompress import (
    analysis,
    arrays,
    classifiers,
    documents,
    moments,
    networks,
    plots,
    programs,
    training,
    transforms,
)
from jaxcompress.analysis.report import report
from jaxcompress.arrays.base import CompactArray, materialize, stored_numbers
from jaxcompress.arrays.layout import MatrixAxes
from jaxcompress.arrays.paths import matrices
from jaxcompress.arrays.products import matmul, take
from jaxcompress.arrays.registration import compact_array
from jaxcompress.arrays.spline import as_function
from jaxcompress.arrays.static import static_field
from jaxcompress.arrays.tie import tie
from jaxcompress.checkpoint import load, save
from jaxcompress.moments.calibration import Calibration, calibrate
from jaxcompress.networks.trace import trace
from jaxcompress.programs.rules import register
from jaxcompress.training.fit import fit
from jaxcompress.training.multigrid import multigrid
from jaxcompress.training.stream import fit_stream
from jaxcompress.transforms.base import Transform, second_moments
from jaxcompress.transforms.budget import budget
from jaxcompress.transforms.clustered import clustered
from jaxcompress.transforms.combinators import at, chain, identity, partition
from jaxcompress.transforms.compress import compress
from jaxcompress.transforms.factored import factored
from jaxcompress.transforms.fold_batchnorm import fold_batchnorm
from jaxcompress.transforms.hashed import hashed
from jaxcompress.transforms.initialize import initialize
from jaxcompress.transforms.linearize import linearize
from jaxcompress.transforms.merge import merge
from jaxcompress.transforms.merge_linear import merge_linear
from jaxcompress.transforms.prune_batchnorm import prune_batchnorm
from jaxcompress.transforms.recalibrate import recalibrate
from jaxcompress.transforms.recipes import load_recipe, save_recipe
from jaxcompress.transforms.reconstruct import reconstruct
from jaxcompress.transforms.resolution import coarsen, refine
from jaxcompress.transforms.rotation import rotate_and_prune
from jaxcompress.transforms.select_rows import select_rows
from jaxcompress.transforms.seriation import roughness, seriate
from jaxcompress.transforms.spline import spline
from jaxcompress.transforms.toeplitz import toeplitz
from jaxcompress.transforms.together import together
from jaxcompress.transforms.vocabulary import vocabulary

__version__ = version("jaxcompress")

__all__ = [
    "Calibration",
    "CompactArray",
    "MatrixAxes",
    "Transform",
    "__version__",
    "analysis",
    "arrays",
    "as_function",
    "at",
    "budget",
    "calibrate",
    "chain",
    "classifiers",
    "clustered",
    "coarsen",
    "compact_array",
    "compress",
    "documents",
    "factored",
    "fit",
    "fit_stream",
    "fold_batchnorm",
    "hashed",
    "identity",
    "initialize",
    "linearize",
    "load",
    "load_recipe",
    "materialize",
    "matmul",
    "matrices",
    "merge",
    "merge_linear",
    "moments",
    "multigrid",
    "networks",
    "partition",
    "plots",
    "programs",
    "prune_batchnorm",
    "recalibrate",
    "reconstruct",
    "refine",
    "register",
    "report",
    "rotate_and_prune",
    "roughness",
    "save",
    "save_recipe",
    "second_moments",
    "select_rows",
    "seriate",
    "spline",
    "static_field",
    "stored_numbers",
    "take",
    "tie",
    "toeplitz",
    "together",
    "trace",
    "training",
    "transforms",
    "vocabulary",
]
