"""Pure functions from parameters to smaller parameters, and what combines them."""

from jaxcompress.transforms.base import Transform, second_moments
from jaxcompress.transforms.budget import Budget, Metric, Plan, budget
from jaxcompress.transforms.bypass import bypass
from jaxcompress.transforms.clustered import clustered
from jaxcompress.transforms.combinators import at, chain, identity, partition
from jaxcompress.transforms.compress import compress
from jaxcompress.transforms.factored import factored
from jaxcompress.transforms.fold_batchnorm import fold_batchnorm
from jaxcompress.transforms.hashed import hashed
from jaxcompress.transforms.initialize import initialize
from jaxcompress.transforms.leafwise import LeafTransform
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

__all__ = [
    "Budget",
    "LeafTransform",
    "Metric",
    "Plan",
    "Transform",
    "at",
    "budget",
    "bypass",
    "chain",
    "clustered",
    "coarsen",
    "compress",
    "factored",
    "fold_batchnorm",
    "hashed",
    "identity",
    "initialize",
    "linearize",
    "load_recipe",
    "merge",
    "merge_linear",
    "partition",
    "prune_batchnorm",
    "recalibrate",
    "reconstruct",
    "refine",
    "rotate_and_prune",
    "roughness",
    "save_recipe",
    "second_moments",
    "select_rows",
    "seriate",
    "spline",
    "toeplitz",
    "together",
    "vocabulary",
]
