"""A function's hidden axes as plain data, and the function at other sizes of them."""

from jaxcompress.networks.axes import Axis, Refused, Structure
from jaxcompress.networks.trace import Network, trace
from jaxcompress.networks.unrolled import unrolled

__all__ = ["Axis", "Network", "Refused", "Structure", "trace", "unrolled"]
