"""Law 4 on random networks over all known primitives.

200 by default; `JAXCOMPRESS_NETWORKS=500 pytest` for more.
"""

import os

import jax
import numpy as np
import pytest
from helpers_generated import BINARY, OPERATIONS, UNARY, generated, primitives_of
from helpers_oracle import embeddable, small_and_full
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

import jaxcompress as jc
from jaxcompress.programs import RULES

RECIPES = st.lists(
    st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 2**30)), min_size=1, max_size=8
)
COUNT, PARTS = int(os.environ.get("JAXCOMPRESS_NETWORKS", 200)), 4
QUICK = {"xla_backend_optimization_level": 0}
"""Programs are run once: they are compiled for that."""

ONCE_WRONG = [
    [("piece", 43117928)],  # segments of one dimension were fibres of each other
    [("depthwise", 651206851), ("gathered", 33529939), ("piece", 464053382)],
    [("tiled", 213093589), ("positions", 14596649)],  # what repeats an axis was rotated
]


def holds(recipe) -> None:
    """A random smaller network is the full one with its maps embedded."""
    made = generated(recipe)
    net = jc.trace(made.apply, made.params, *made.inputs)
    small, full, changed = small_and_full(net, made.params, len(recipe), only=embeddable(net))
    sized = net.resized({key: size for key, (_, size, _, _) in changed.items()})
    ours = np.asarray(jax.jit(sized.replay, compiler_options=QUICK)(small, *made.inputs))
    theirs = np.asarray(jax.jit(made.apply, compiler_options=QUICK)(full, *made.inputs))
    assert np.abs(ours - theirs).max() <= 1e-3 * max(np.abs(theirs).max(), 1e-2)


@pytest.mark.parametrize("part", range(PARTS))
def test_random_networks(part):
    @seed(part)
    @settings(
        max_examples=COUNT // PARTS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(RECIPES)
    def law(recipe):
        holds(recipe)

    for recipe in ONCE_WRONG if part == 0 else []:
        law = example(recipe)(law)
    law()


def test_the_recipes_meet_every_rule():
    """Every primitive with a rule is in some network, but for old names and other machines."""
    numbers = np.random.default_rng(0).integers(2**30, size=40).tolist()
    every = [
        [("dense", 0), ("dense", 0), (name, number)] for name in OPERATIONS for number in numbers
    ]
    every += [[("unary", index)] for index in range(len(UNARY))]
    every += [[("binary", index)] for index in range(len(BINARY))]
    met = set().union(*(primitives_of(recipe) for recipe in every))
    older = {
        "remat",
        "remat2",
        "checkpoint",
        "custom_vjp_call_jaxpr",
        "expand_dims",
        "add_any",
        "copy_p",
    }  # a name in some version
    older |= {"random_split", "random_wrap", "random_unwrap"}
    placed = {
        "device_put",
        "sharding_constraint",
        "mesh_cast",
        "layout_constraint",
        "copy",
        "debug_callback",
        "debug_print",
    }
    inside = {
        "igamma_grad_a",
        "reduce_window",
        "threefry2x32",
    }  # of derivatives, or of other primitives
    assert not RULES.keys() - met - older - placed - inside
