"""A function of many inputs, in batches of one size.

A jitted function compiles once, and memory holds one batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PyTree
from tqdm.auto import tqdm

from jaxcompress.checks import arrays_in, checked, explained, function, whole
from jaxcompress.training.checks import check_length


def in_batches(
    function: Callable[[PyTree], PyTree], inputs: PyTree, size: int, bar: tqdm | None = None
) -> PyTree:
    """The outputs for all inputs, on the host; the last batch is padded with its last input.

    Args:
        function: of `size` inputs, to a tree of arrays whose first dimension is the inputs.
        inputs: a tree of arrays (n, ...), n at least 1.
        size: inputs per call.
        bar: a progress bar of inputs.

    Example:
        >>> import numpy as np
        >>> from jaxcompress.training.batches import in_batches
        >>> in_batches(lambda x: x.sum(1), np.ones((5, 2)), 4).tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    count, parts = len(jax.tree.leaves(inputs)[0]), []
    for start in range(0, count, size):
        real = min(size, count - start)
        rows = np.minimum(np.arange(start, start + size), count - 1)
        outputs = function(jax.tree.map(lambda leaf, rows=rows: leaf[rows], inputs))
        parts.append(jax.tree.map(lambda leaf, real=real: np.asarray(leaf)[:real], outputs))
        if bar is not None:
            bar.update(real)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@checked(apply=function("apply(params, x)"), batch_size=whole())
def predict(
    apply: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    x: PyTree,
    *,
    batch_size: int = 500,
    progress: bool = True,
    description: str = "outputs",
) -> PyTree:
    """The outputs of a model for many inputs, batch after batch under jit.

    Args:
        apply: `apply(params, x)`, to a tree of arrays whose first dimension is the examples.
        params: its parameters.
        x: a tree of inputs (n, ...).
        batch_size: inputs per call; the last batch is padded, and the padding's outputs are
            dropped.
        progress: show a progress bar.
        description: the label of the bar.

    Returns:
        The outputs for all inputs, on the host.

    Raises:
        ValueError: for inputs of unequal lengths or none, outputs of another length.

    Example:
        >>> import jax.numpy as jnp, jaxcompress as jc
        >>> apply, x = lambda p, x: x @ p, jnp.ones((7, 3))
        >>> jc.training.predict(apply, jnp.ones((3, 2)), x, batch_size=4, progress=False).shape
        (7, 2)
    """
    count = check_length("predict", x)
    size = min(batch_size, count)
    run = jax.jit(apply)

    def checked(batch: PyTree) -> PyTree:
        with explained(f"predict: apply cannot be called with inputs {arrays_in(batch)}"):
            outputs = run(params, batch)
        for leaf in jax.tree.leaves(outputs):
            if leaf.ndim < 1 or len(leaf) != size:
                raise ValueError(
                    f"predict: {size} inputs gave an output of shape {leaf.shape}; its first "
                    "dimension must be the examples"
                )
        return outputs

    with tqdm(total=count, desc=description, disable=not progress, leave=False) as bar:
        return in_batches(checked, x, size, bar)
