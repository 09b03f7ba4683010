"""Learning from a classifier: its decision boundary, its errors, training sets made from it, and compactions ranked."""

from jaxcompress.classifiers.active_set import ActiveSet, active_set
from jaxcompress.classifiers.distribution_matching import match_distribution
from jaxcompress.classifiers.errors import explain_errors
from jaxcompress.classifiers.exact_fit import ExactFit, fit_exactly
from jaxcompress.classifiers.mesh import MeshClassifier
from jaxcompress.classifiers.ranking import Ranking, accuracy_metric, rank_compactions
from jaxcompress.classifiers.realization import Realized, realize
from jaxcompress.classifiers.coarsening import RealizedAlong
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
