"""The table of all that files hold: small trees with known numbers, one for each kind.

`python tests/helpers_files.py` writes them to `tests/files`, once for each version of the format.
Nothing here is fitted, traced or compiled.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxcompress as jc
from jaxcompress.arrays import StaticArray
from jaxcompress.arrays.atoms import DesignedAtoms
from jaxcompress.arrays.clustered import ClusteredArray
from jaxcompress.arrays.factored import FactoredArray
from jaxcompress.arrays.hashed import HashedArray
from jaxcompress.arrays.lookups import LookupArray
from jaxcompress.arrays.spline import SplineArray
from jaxcompress.arrays.toeplitz import ToeplitzArray
from jaxcompress.arrays.vocabulary import VocabularyArray
from jaxcompress.classifiers.coarsening import RealizedAlong
from jaxcompress.moments.moments import Moments
from jaxcompress.moments.statistics import Statistic
from jaxcompress.networks.axes import AXES, REFUSED, Axis, PairSite, Refused, Site, Structure
from jaxcompress.networks.layout import Layout
from jaxcompress.networks.maps import AxisMap
from jaxcompress.programs.program import Slot
from jaxcompress.tables import Table
from jaxcompress.training.multigrid import MultigridState
from jaxcompress.training.state import FitState, LearningCurve

FOLDER = Path(__file__).parent / "files"


def numbers(*shape: int, dtype=np.float32):
    """Multiples of 1/8, which every float holds."""
    return jnp.asarray(np.arange(-3, np.prod(shape, dtype=int) - 3).reshape(shape) / 8, dtype)


def index(*rows):
    return StaticArray(np.array(rows))


CODES = numbers(4, 3)
LOOKUPS = LookupArray(numbers(2, 3), index([0, 1, 3], [2, 3, 0]), dims=(4, 3))
BITS = StaticArray(np.array([True, False, True]))
OUTWARDS = jc.MatrixAxes((-1,), (-2,))
HEADS = jc.MatrixAxes((-3,), (-2, -1))

ARRAYS = {
    "hashed": HashedArray(numbers(5), seed=7, block=2, dims=(3, 4)),
    "hashed circular": HashedArray(numbers(2, 5), seed=2**31, layout="circular", dims=(3, 4)),
    "hashed heads": HashedArray(numbers(5), matrix_axes=HEADS, dims=(3, 2, 2)),
    "clustered": ClusteredArray(numbers(3, 2), index([0, 2], [1, 1], [2, 0]), dims=(3, 3)),
    "look-ups": VocabularyArray(numbers(6, 4), LOOKUPS, dims=(6, 3)),
    "designed": VocabularyArray(
        DesignedAtoms("dct", grid=(3, 2), count=4, dims=(6, 4)), CODES, dims=(6, 3)
    ),
    "designed channels": VocabularyArray(
        DesignedAtoms("random", grid=(3,), count=4, seed=9, channels=2, dims=(6, 4)),
        HashedArray(numbers(5), dims=(4, 3)),
        dims=(6, 3),
    ),
    "factored": FactoredArray(numbers(4, 2), numbers(2, 1), chosen=BITS, dims=(4, 3)),
    "factored rows": FactoredArray(
        numbers(2, 5), numbers(1, 2), chosen=BITS, by_rows=True, dims=(3, 5)
    ),
    "factored full": FactoredArray(numbers(4, 3), numbers(3, 0), dims=(4, 3)),
    "spline": SplineArray(
        SplineArray(numbers(2, 3, 2), basis="cubic", matrix_axes=OUTWARDS, dims=(4, 3)),
        dims=(4, 6),
    ),
    "toeplitz": ToeplitzArray(
        numbers(4, 2), grid=(3, 3), window=(2, 2), stride=(1, 1), pad=(0, 0), dims=(9, 8)
    ),
}

LEAVES = {
    "floats": [
        numbers(2, dtype=dtype)
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2, np.complex64)
    ],
    "host": [np.ones((2, 3)), np.arange(2, dtype=np.uint64), np.float32(3), np.bool_(True)],
    "integers": [
        jnp.arange(3),
        jnp.array([True, False]),
        jnp.uint8(7),
        jnp.zeros((0, 2), jnp.int8),
    ],
    "plain": (None, True, -3, 2.5, float("inf"), -0.0, "text \U0001f600\u2028", [], {}, ()),
    "key": jax.random.key(3),
    "keys": {-1: jax.random.wrap_key_data(jnp.arange(4, dtype=jnp.uint32), impl="rbg"), 2: "two"},
    "names": {
        "a/b": 1.0,
        "a": {"b": jnp.ones(2)},
        "": {"": jnp.zeros(1)},
        "__metadata__": numbers(1),
    },
}

SLOTS = Slot("up", 1), Slot("down", 0)


def structure() -> Structure:
    """The axes of a network of two matrices, written out."""
    axis = Axis("up:1", 4, "elementwise", ("elementwise",), False, SLOTS[:1], SLOTS[1:])
    wide, narrow = Layout("up:1", 4), Layout("down:1", 2)
    product = Layout("", 8, "product", (wide, narrow))
    site = Site("down 0", SLOTS[1:], (wide,), inputs={"down": (0,)}, outputs=(narrow,))
    return Structure(
        Table((axis,), AXES),
        Table((Refused("up:0", 3, "dot_general", "it is an input's"),), REFUSED, "none"),
        {"up": (Layout("up:0", 3), wide), "down": (wide, narrow), "bias": (product,)},
        {"down 0": site},
        {"pair 0": PairSite("pair 0", (wide,), (), (SLOTS[:1], SLOTS[1:]))},
    )


def moments() -> Moments:
    """Moments of that network, after a map of its axis."""
    host = {name: np.asarray(numbers(*shape), np.float64) for name, shape in SHAPES.items()}
    wide = Layout("up:1", 4)
    statistic = Statistic((), (wide,), 7.0, host["mean"], host["cov"])
    change = AxisMap(host["produce"], host["consume"], other={SLOTS[1]: host["produce"]})
    return Moments(
        structure(),
        {"down 0": statistic},
        {"pair 0": (statistic, Statistic((), (wide,), 7, host["mean"], host["mean"]))},
        {"words": np.arange(3.0)},
        reference={"up": numbers(3, 4), "down": numbers(4, 2)},
        changes=((structure().axes["up:1"], change),),
    )


SHAPES = {"mean": (4,), "cov": (4, 4), "produce": (1, 4, 2), "consume": (1, 2, 4)}


def mesh():
    """A classifier on a square, with its mesh of cells."""

    def classify(x):
        return (x[:, 0] > x[:, 1]).astype(np.int32)

    return jc.classifiers.realize(classify, ([0, 0], [1, 1]), 1 / 4, coarse=2, progress=False)


def along() -> RealizedAlong:
    """A classifier along three points."""
    points, labels = np.asarray(numbers(2, 2)), np.array([[0, 1], [1, 0]])
    return RealizedAlong(
        points=points,
        labels=labels,
        weights=np.array([0.75, 0.25]),
        soft=np.eye(2, dtype=np.float32),
        queries=9,
        complete=True,
        given=np.asarray(numbers(3, 2)),
        given_labels=labels[[0, 0, 1]],
        given_weights=np.full(3, 1 / 4),
        cells=np.array([0, 0, 1]),
        boundary=np.asarray(numbers(1, 2, 2)),
        boundary_labels=labels[None],
        edges=3,
        checked=2,
        hidden=0,
        enough=2,
        enough_with_boundary=2,
        bound=0.5,
    )


def taught():
    """A teaching set of three points."""
    return jc.classifiers.TeachingSet(
        np.array([4, 0, 2]), np.int32([0, 0, 1]), np.array([0.5]), np.array([0.75]), 9
    )


def variable(cls, value, **metadata):
    """What a State of the installed flax has as its leaves."""
    stand_in = nnx.variablelib.VariableState
    return cls(value, **metadata) if stand_in is nnx.Variable else stand_in(cls, value, **metadata)


def containers():
    """Containers that come back by themselves."""
    adam = optax.ScaleByAdamState(jnp.int32(3), {"w": ARRAYS["hashed"]}, {"w": ARRAYS["factored"]})
    curve = LearningCurve(jnp.arange(2), numbers(2), numbers(2))
    state = FitState({"w": numbers(2)}, (adam, optax.EmptyState()), jnp.int32(3), numbers(3), curve)
    kernel = variable(nnx.Param, numbers(2, 3))
    return {
        "fit": state,
        "multigrid": MultigridState(numbers(2), (), jnp.int32(1), numbers(1), flops=numbers(1)),
        "nnx": nnx.State(
            {
                "layers": {0: {"kernel": kernel, "mean": variable(nnx.BatchStat, numbers(3))}},
                "count": variable(nnx.RngCount, jnp.uint32(1), tag="default"),
            }
        ),
        # an optimizer's numbers in the place of an array's
        "mapped": jax.tree.map(lambda leaf: jnp.zeros(1), ARRAYS["clustered"]),
        "flags": jax.tree.map(lambda leaf: True, ARRAYS["designed"]),
    }


def recipe():
    """A chain of transforms of one network."""
    return jc.chain(
        jc.rotate_and_prune(structure(), keep=1 / 2),
        jc.at("**/down", jc.vocabulary(1 / 2, atoms=np.eye(4, 2), matrix_axes=OUTWARDS)),
        jc.partition({"a": jc.hashed(jc.budget(3 / 4))}, {"up": "a", "call": ["a"]}),
    )


@functools.cache
def trees() -> dict[str, object]:
    """Every tree by name."""
    return {
        **{name: {"w": array, "bias": numbers(3)} for name, array in ARRAYS.items()},
        **LEAVES,
        **containers(),
        "mesh": [mesh(), mesh().mesh],
        "along": along(),
        "teaching set": {"chosen": taught()},
        "structure": structure(),
        "moments": {"moments": moments()},
        "recipe": {"recipe": recipe(), "hashed": jc.hashed(1 / 4)},
    }


def file_of(name: str) -> Path:
    """The golden file of a tree."""
    return FOLDER / f"{name.replace(' ', '_')}.safetensors"


def same(one, other):
    """Refuse trees whose structure, types, dtypes or bits differ."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(x) is type(y)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        if isinstance(x, (jax.Array, np.ndarray, np.generic)):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        else:
            assert repr(x) == repr(y)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, tree in trees().items():
        if not file_of(name).exists():
            jc.save(file_of(name), tree)
    jc.save_recipe(FOLDER / "recipe.json", recipe())
