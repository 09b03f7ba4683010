"""Learning from a trained classifier: its boundaries, its errors, its accuracy after compaction.

Training sets made from a classifier's predictions:

- `realize`: its decision regions in 1 to 4 dimensions, as a mesh of cells (`Realized`,
  `MeshClassifier`).
- `realize_along`: its decision boundary along given points in any dimension (`RealizedAlong`).
- `match_distribution`: moves such points until a student's features match those of the data.
- `teaching_set`: the few points from which a student learns most (`TeachingSet`).
- `fit_exactly`: trains a student until it agrees at every point (`ExactFit`).

Judging a classifier and its compactions, which are compressed versions of the network:

- `explain_errors`: the cause of each test error (`ErrorReport` of `Verdict`).
- `active_set`: the examples whose predictions a compaction could change (`ActiveSet`).
- `rank_compactions`: estimates the accuracy of many compactions on few examples (`Ranking`).
- `accuracy_metric`: the same as a metric for `jc.budget`.

Several take a `jnd`, a just-noticeable difference: the smallest difference of inputs that matters.
"""

from jaxcompress.classifiers.active_set import ActiveSet, active_set
from jaxcompress.classifiers.coarsening import RealizedAlong
from jaxcompress.classifiers.distribution_matching import match_distribution
from jaxcompress.classifiers.errors import explain_errors
from jaxcompress.classifiers.exact_fit import ExactFit, fit_exactly
from jaxcompress.classifiers.mesh import MeshClassifier
from jaxcompress.classifiers.ranking import Ranking, accuracy_metric, rank_compactions
from jaxcompress.classifiers.realization import Realized, realize
from jaxcompress.classifiers.realization_along import realize_along
from jaxcompress.classifiers.teaching_set import TeachingSet, teaching_set
from jaxcompress.classifiers.verdicts import ErrorReport, Verdict

__all__ = [
    "ActiveSet",
    "ErrorReport",
    "ExactFit",
    "MeshClassifier",
    "Ranking",
    "Realized",
    "RealizedAlong",
    "TeachingSet",
    "Verdict",
    "accuracy_metric",
    "active_set",
    "explain_errors",
    "fit_exactly",
    "match_distribution",
    "rank_compactions",
    "realize",
    "realize_along",
    "teaching_set",
]
