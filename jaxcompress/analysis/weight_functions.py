"""Weight matrices as functions, of one variable or of two, at any resolution.

A kernel (m, n) between hidden axes is a surface `W(t_in, t_out)` on cells of equal size, and read
row by row one function of m n values (`jc.as_function`). Here it is fitted in coarser cells: means
with the step basis, least squares with hats and cubic splines. Costs two small matrix products a
fit, on the host.

Source: Integral Neural Networks, Solodskikh et al. 2023.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, PyTree

from jaxcompress.arrays.base import materialize
from jaxcompress.arrays.paths import named_leaves
from jaxcompress.arrays.spline import BASES
from jaxcompress.checks import checked, choice, is_whole
from jaxcompress.networks.axes import Layout
from jaxcompress.networks.trace import Network, check_arrays, network
from jaxcompress.transforms.prolongation import dual, prolongation


@dataclasses.dataclass(frozen=True)
class WeightFunction:
    """One kernel as a function.

    Attributes:
        name: the parameter.
        values: a kernel, or a stack of them.
        inputs: the hidden axis that t_in runs along; "" where that is no hidden axis.
        outputs: that of t_out.
    """

    name: str
    values: Float[np.ndarray, "*stack m n"]
    inputs: str = ""
    outputs: str = ""

    @checked(basis=choice(*BASES))
    def at(
        self, inputs: int | None = None, outputs: int | None = None, *, basis: str = "step"
    ) -> WeightFunction:
        """Fit the function in fewer cells along each axis, and sample it at the full size.

        Args:
            inputs: the number of cells along t_in; None leaves the axis as it is.
            outputs: that along t_out.
            basis: "step", "linear" or "cubic".

        Returns:
            The fitted function.

        Raises:
            ValueError: for more cells than there are values, or none; an unknown basis.
        """
        values = self.values
        for place, cells in ((-2, inputs), (-1, outputs)):
            if cells is None:
                continue
            size = values.shape[place]
            if not is_whole(cells) or cells > size:
                raise ValueError(
                    f"{self.name} has {size} values along an axis: "
                    f"{cells} cells are out of reach, give 1 to {size}"
                )
            refine = prolongation(cells, size, basis)
            fitted = np.moveaxis(values, place, -1) @ dual(refine).T @ refine
            values = np.moveaxis(fitted, -1, place)
        return dataclasses.replace(self, values=values)

    def error(
        self, inputs: int | None = None, outputs: int | None = None, *, basis: str = "step"
    ) -> float:
        """The relative squared error of a fit in fewer cells.

        Args:
            inputs: the number of cells along t_in; None leaves the axis as it is.
            outputs: that along t_out.
            basis: "step", "linear" or "cubic".

        Returns:
            About `1 - cells / values` where the channels are in random order.

        Example:
            >>> import numpy as np
            >>> from jaxcompress.analysis import WeightFunction
            >>> smooth = WeightFunction("w", np.cos(np.linspace(0, 3, 100))[None] * np.ones((4, 1)))
            >>> round(smooth.error(outputs=10), 4)
            0.0081
            >>> round(smooth.error(outputs=10, basis="cubic"), 4)
            0.0
        """
        gap = self.values - self.at(inputs, outputs, basis=basis).values
        return float(np.sum(gap**2) / max(np.sum(self.values**2), 1e-300))

    def __repr__(self) -> str:
        m, n = self.values.shape[-2:]
        stack = f" x {self.values.shape[:-2]}" if self.values.ndim > 2 else ""
        sides = f"{m} values along {self.inputs or 't_in'}, {n} along {self.outputs or 't_out'}"
        return f"WeightFunction({self.name}: {sides}{stack})"


@checked(net=network)
def weight_functions(net: Network, params: PyTree) -> dict[str, WeightFunction]:
    """Every kernel of a network as a function on its hidden axes.

    Args:
        net: from `jc.trace`.
        params: its parameters, at any sizes, dense or compact.

    Returns:
        By the parameter's name; kernels whose inputs and outputs are unknown are left out.

    Raises:
        ValueError: for other parameters than the traced ones.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> def apply(p, x):
        ...     return jnp.tanh(x @ p["up"]) @ p["down"]
        >>> params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
        >>> net = jc.trace(apply, params, jnp.ones((5, 3)))
        >>> jc.analysis.weight_functions(net, params)["up"]
        WeightFunction(up: 3 values along t_in, 8 along up:1)
    """
    leaves = dict(named_leaves(params))
    net.structure.check_names(leaves)
    check_arrays("weight_functions", params)
    net.sizes(params)  # refuses sizes that contradict each other
    hidden = set(net.axes.keys())
    functions = {}
    for name, roles in net.matrix_axes.items():
        layouts = net.structure.layouts[name]
        functions[name] = WeightFunction(
            name,
            roles.to_matrix(np.asarray(materialize(leaves[name]), np.float64)),
            _hidden_axes((layouts[place] for place in roles.inputs), hidden),
            _hidden_axes((layouts[place] for place in roles.outputs), hidden),
        )
    return functions


def _hidden_axes(layouts: Iterable[Layout], hidden: set[str]) -> str:
    """The hidden axes among some dimensions, as a product."""
    keys: list[str] = []
    for layout in layouts:
        keys += [key for key in layout.axes() if key in hidden]
    return " x ".join(keys)
