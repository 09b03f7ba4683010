"""A pure function's jaxpr: read, analysed, and replayed at other sizes.

Every primitive has a rule: `RULES` holds them by the primitives' names, and `register` adds one's
own. Most primitives of one's own are `elementwise` or `linear`.
"""

from jaxcompress.programs import (  # noqa: F401  (each registers its rules)
    concatenation,
    contractions,
    control,
    convolutions,
    derivatives,
    indexing,
    ragged,
    random_numbers,
    reductions,
    reshaping,
    solves,
)
from jaxcompress.programs.arithmetic import elementwise, linear
from jaxcompress.programs.rules import RULES, Rule, primitives_without_rule, register

__all__ = ["RULES", "Rule", "elementwise", "linear", "primitives_without_rule", "register"]
