"""What a function's hidden axes are, and the function run at other sizes of them.

`register` adds the rule of a primitive; `elementwise` and `linear` are the two most common ones.
"""

from jaxcompress.networks import contractions, control, indexing, layout, pieces, reductions  # noqa: F401  (each registers its rules)
from jaxcompress.networks.arithmetic import elementwise, linear
from jaxcompress.networks.rules import RULES, Rule, register

__all__ = ["RULES", "Rule", "elementwise", "linear", "register"]
