"""A pure function's jaxpr: read, analysed and replayed at other sizes.

`register` adds the rule of a primitive; `elementwise` and `linear` are the two most common ones.
"""

from jaxcompress.programs import (  # noqa: F401  (each registers its rules)
    concatenation,
    contractions,
    control,
    indexing,
    reductions,
    reshaping,
)
from jaxcompress.programs.arithmetic import elementwise, linear
from jaxcompress.programs.rules import RULES, Rule, register

__all__ = ["RULES", "Rule", "elementwise", "linear", "register"]
