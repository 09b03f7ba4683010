"""Weight matrices as functions: of one variable, the features' values interlaced, and of two, one along each axis.

A kernel (m, n) between hidden axes is a surface `W(t_in, t_out)` on cells of equal size, and read row by row one function of m n
values (`jc.as_function`). Here it is looked at in coarser cells: means with the step basis, least squares with hats and cubic
splines. Costs two small matrix products a look, on the host.

Sources: the mission's own idea; Integral Neural Networks (Solodskikh et al. 2023).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxcompress.arrays.base import materialize
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.arrays.spline import check_basis
from jaxcompress.networks.trace import Network, check_network
from jaxcompress.transforms.prolongation import dual, prolongation


@dataclasses.dataclass(frozen=True)
class WeightFunction:
    """One kernel as a function.

    Attributes:
        name: the parameter.
        values: (m, n), or (..., m, n) for a stack of kernels.
        inputs, outputs: the hidden axes that t_in and t_out run along; "" where that is no hidden axis.
    """

    name: str
    values: np.ndarray
    inputs: str = ""
    outputs: str = ""

    def at(
        self, inputs: int | None = None, outputs: int | None = None, *, basis: str = "step"
    ) -> WeightFunction:
        """The function as so many cells along each axis tell it, at the full size.

        Args:
            inputs, outputs: how many cells; None leaves an axis as it is.
            basis: "step", "linear" or "cubic".

        Raises:
            ValueError: for more cells than there are values, or none; an unknown basis.
        """
        check_basis(basis)
        values = self.values
        for place, cells in ((-2, inputs), (-1, outputs)):
            if cells is None:
                continue
            if not 1 <= cells <= values.shape[place]:
                raise ValueError(
                    f"{self.name} has {values.shape[place]} values along an axis: {cells} cells are out of reach"
                )
            repeat = prolongation(cells, values.shape[place], basis)
            values = np.moveaxis(
                np.moveaxis(values, place, -1) @ dual(repeat).T @ repeat, -1, place
            )
        return dataclasses.replace(self, values=values)

    def error(
        self, inputs: int | None = None, outputs: int | None = None, *, basis: str = "step"
    ) -> float:
        """The share of the squared weights that so many cells lose: about `1 - cells / values` in random order.

        Example:
            >>> import numpy as np
            >>> from jaxcompress.analysis.weight_functions import WeightFunction
            >>> smooth = WeightFunction("w", np.cos(np.linspace(0, 3, 100))[None] * np.ones((4, 1)))
            >>> round(smooth.error(outputs=10), 4), round(smooth.error(outputs=10, basis="cubic"), 4)
            (0.0081, 0.0)
        """
        left = self.values - self.at(inputs, outputs, basis=basis).values
        return float(np.sum(left**2) / max(np.sum(self.values**2), 1e-300))

    def __repr__(self) -> str:
        m, n = self.values.shape[-2:]
        stack = f" x {self.values.shape[:-2]}" if self.values.ndim > 2 else ""
        return f"WeightFunction({self.name}: {m} values along {self.inputs or 't_in'}, {n} along {self.outputs or 't_out'}{stack})"


def weight_functions(net: Network, params: Any) -> dict[str, WeightFunction]:
    """Every kernel of a network as a function on its hidden axes.

    Args:
        net: from `jc.trace`.
        params: its parameters, at any sizes, dense or compact.

    Returns:
        By the parameter's name; kernels whose inputs and outputs are not known are left out.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> apply = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> jc.analysis.weight_functions(jc.trace(apply, params, jnp.ones((5, 3))), params)["up"]
        WeightFunction(up: 3 values along t_in, 8 along up:1)
    """
    check_network("weight_functions", net)
    leaves = dict(named_leaves(params))
    net.structure.check_names(leaves)
    found = {}
    hidden = set(net.axes.keys())
    for name, roles in net.matrix_axes.items():
        dims = net.structure.layouts[name]
        keys = lambda places, dims=dims: " x ".join(
            k for place in places for k in dims[place].axes() if k in hidden
        )
        values = np.asarray(materialize(leaves[name]), np.float64)
        found[name] = WeightFunction(
            name, roles.to_matrix(values), keys(roles.inputs), keys(roles.outputs)
        )
    return found
