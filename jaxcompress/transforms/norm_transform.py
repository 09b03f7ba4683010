"""The base of transforms that are guided by batch norms: they keep the network, not its axes alone.

What a norm's channels go through before they are consumed stands in the program only. Such
transforms compare by the structure of the network; a recipe with one is loaded with it.
"""

from __future__ import annotations

import dataclasses

from jaxcompress.networks.axes import Structure
from jaxcompress.networks.batch_norms import BatchNorm, LocatedNorm, batch_norms, locate_norms
from jaxcompress.networks.trace import Network
from jaxcompress.tables import Table
from jaxcompress.transforms.base import Transform
from jaxcompress.transforms.settings import call, constructor_name, show_structure


@dataclasses.dataclass(frozen=True, repr=False)
class NormTransform(Transform):
    """The base of transforms that read a network's batch norms."""

    structure: Structure = dataclasses.field(hash=False)
    net: Network = dataclasses.field(compare=False)
    whole_network = True

    def hidden(self) -> tuple[str, ...]:
        """Fields that are no named arguments of the constructor."""
        return ("structure", "net")

    @property
    def norms(self) -> Table[BatchNorm]:
        """The norms, a table that prints, with the reason why a norm cannot be folded."""
        return batch_norms(self.net)

    def located(self) -> list[LocatedNorm]:
        """The norms with their places in the program."""
        return locate_norms(self.net.traces(self.net.full, self.net.inputs))

    def __repr__(self) -> str:
        return call(constructor_name(self), show_structure(self.structure), **self.arguments())
