"""The table of primitives: for each that has a rule, functions that apply it to a leaf.

A function takes parameters `w` (12, 9), its transpose `v` (9, 12) and `stack` (3, 12, 9), any of
which may be compact, and inputs; it hands the leaf to the primitive itself.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import SingleDeviceSharding

from jaxcompress.programs import compat
from jaxcompress.programs.arithmetic import ELEMENTWISE

M, N, STACK = 12, 9, 3
rng = np.random.default_rng(7)


def noise(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


SAME, ROW, COLUMN = noise(M, N), noise(N), noise(M, 1)
INPUTS = {
    "rows": noise(5, M),
    "columns": noise(5, N),
    "layers": noise(STACK, 5, M),
    "ids": np.array([[0, 11, 3], [12, -1, 40]], np.int32),
    "small": np.array([2, 0, 7, 7], np.int8),
    "flag": np.array(1, np.int32),
}

Line = Callable[[Any, Any], Any]
LINES: dict[str, list[Line]] = {}
"""The functions of every primitive that can meet a leaf; the first is tried in every form."""

NEVER = {
    **dict.fromkeys(("and", "or", "xor", "not", "clz", "mulhi", "population_count"), "integers"),
    **dict.fromkeys(("shift_left", "shift_right_arithmetic", "shift_right_logical"), "integers"),
    **dict.fromkeys(("reduce_and", "reduce_or", "reduce_xor"), "integers"),
    **dict.fromkeys(("real", "imag"), "complex numbers"),
    **dict.fromkeys(("random_bits", "random_seed", "random_fold_in", "random_split"), "keys"),
    **dict.fromkeys(("random_wrap", "random_unwrap", "random_clone", "threefry2x32"), "keys"),
    "iota": "nothing",
    "dim_as_value": "nothing",
    "mesh_cast": "arrays under a mesh with explicit axes",
}
"""Primitives that meet no leaf, and what they take: a compact leaf holds real floats."""

LOOSE = {"convert_element_type": 2e-2, "dot_general": 2e-2}
"""Relative errors of primitives that are also tried in bfloat16; 1e-4 of the others."""


def line(name: str) -> Callable[[Line], Line]:
    """Add a function to the table."""

    def add(function: Line) -> Line:
        LINES.setdefault(name, []).append(function)
        return function

    return add


def lines(name: str, *functions: Line) -> None:
    LINES.setdefault(name, []).extend(functions)


# --- single entries ------------------------------------------------------------------------------

OF_TWO = {
    *("atan2", "pow", "rem", "max", "min", "nextafter", "eq", "ne", "lt", "le", "gt", "ge"),
    *("igamma", "igammac", "igamma_grad_a", "polygamma", "zeta", "add", "sub", "mul", "div"),
}
SPECIAL: dict[str, Line] = {
    "integer_pow": lambda p, x: lax.integer_pow(p["w"], 3),
    "clamp": lambda p, x: lax.clamp(-0.5, p["w"], 0.5),
    "regularized_incomplete_beta": lambda p, x: lax.betainc(SAME, SAME, p["w"]),
}


def elementwise(name: str) -> None:
    function = getattr(lax, {"igamma_grad_a": "igamma_grad_a"}.get(name, name), None)
    if name in SPECIAL:
        lines(name, SPECIAL[name])
    elif name in OF_TWO:
        lines(name, lambda p, x: function(p["w"], SAME), lambda p, x: function(SAME, p["w"]))
    else:
        lines(name, lambda p, x: function(p["w"]))


for primitive in (*ELEMENTWISE, "add", "sub", "mul", "div", "neg", "conj"):
    if primitive not in NEVER:
        elementwise(primitive)
lines(
    "triangular_solve", lambda p, x: lax.linalg.triangular_solve(SAME[:9], p["v"], left_side=True)
)
lines("complex", lambda p, x: lax.complex(p["w"], SAME), lambda p, x: lax.complex(SAME, p["w"]))
lines("mul", lambda p, x: p["w"] * p["w"], lambda p, x: p["w"] * ROW)
lines("select_n", lambda p, x: lax.select(SAME > 0, p["w"], SAME))
lines("add_any", lambda p, x: jax.vjp(lambda h: (h, h), SAME)[1]((p["w"], p["w"]))[0])
lines("bitcast_convert_type", lambda p, x: lax.bitcast_convert_type(p["w"], jnp.int32))
lines("reduce_precision", lambda p, x: lax.reduce_precision(p["w"], 8, 10))
lines("name", lambda p, x: checkpoint_name(p["w"], "w"))
lines("copy", lambda p, x: jnp.array(p["w"], copy=True) @ ROW)
lines("copy_p", lambda p, x: jnp.array(p["w"], copy=True) @ ROW)
lines("stop_gradient", lambda p, x: x["rows"] @ lax.stop_gradient(p["w"]))
lines("optimization_barrier", lambda p, x: lax.optimization_barrier(p["w"]))
lines("device_put", lambda p, x: jax.device_put(p["w"], jax.devices()[0]))
lines(
    "sharding_constraint",
    lambda p, x: lax.with_sharding_constraint(p["w"], SingleDeviceSharding(jax.devices()[0])),
)
lines("debug_callback", lambda p, x: (jax.debug.callback(lambda h: None, p["w"]), p["w"] * 2)[1])
lines("debug_print", lambda p, x: (jax.debug.print("{}", p["w"]), p["w"] * 2)[1])
lines(
    "convert_element_type",
    lambda p, x: x["rows"] @ p["w"].astype(jnp.bfloat16).astype(jnp.float32),
    lambda p, x: x["columns"].astype(jnp.float16) @ p["v"].astype(jnp.float16),
    lambda p, x: p["w"].astype(jnp.float8_e4m3fn).astype(jnp.float32),
    lambda p, x: (4 * p["w"]).astype(jnp.float32) + p["w"].astype(jnp.int32),
)


@line("layout_constraint")
def _layout(p, x):
    from jax.experimental import layout

    if hasattr(layout, "with_layout_constraint"):
        return layout.with_layout_constraint(p["w"], layout.Layout((0, 1)))
    return layout.with_dll_constraint(p["w"], layout.DeviceLocalLayout((0, 1)))


# --- products ------------------------------------------------------------------------------------

lines(
    "dot_general",
    lambda p, x: x["rows"] @ p["w"],
    lambda p, x: p["w"] @ x["columns"].T,
    lambda p, x: x["columns"] @ p["v"],
    lambda p, x: x["columns"][0] @ p["w"].T,
    lambda p, x: p["w"].T @ p["w"],
    lambda p, x: jnp.einsum("mn,mn->", p["w"], SAME),
    lambda p, x: jnp.einsum("mn,bm->bmn", p["w"], x["rows"]),
    lambda p, x: jnp.einsum("bm,mn->nb", x["rows"], p["w"]),
    lambda p, x: jnp.einsum("lbm,lmn->lbn", x["layers"], p["stack"]),
    lambda p, x: jnp.einsum("bm,lmn->bln", x["rows"], p["stack"]),
    lambda p, x: jnp.einsum("bn,lmn->lbm", x["columns"], p["stack"]),
    lambda p, x: jnp.dot(x["rows"], p["w"], precision="highest"),
    lambda p, x: lax.dot(
        *(h.astype(jnp.bfloat16) for h in (x["rows"], p["w"])), preferred_element_type=jnp.float32
    ),
)
lines(
    "conv_general_dilated",
    lambda p, x: lax.conv_general_dilated(
        x["columns"], p["w"], (), "VALID", dimension_numbers=("NC", "OI", "NC")
    ),
)


@line("ragged_dot_general")
def _ragged(p, x):
    return lax.ragged_dot(x["rows"], p["stack"], np.array([2, 0, 3], np.int32))


@line("custom_linear_solve")
def _solved(p, x):
    def solve(matvec, b):
        return b / 2

    return lax.custom_linear_solve(lambda y: 2.0 * y, p["w"], solve, transpose_solve=solve)


# --- layout --------------------------------------------------------------------------------------

lines(
    "reshape",
    lambda p, x: x["rows"] @ p["w"].reshape(12, 3, 3).reshape(12, 9),
    lambda p, x: jnp.einsum("bm,mij->bij", x["rows"], p["w"].reshape(12, 3, 3)),
    lambda p, x: jnp.einsum("bn,ijn->bij", x["columns"], p["w"].reshape(3, 4, 9)),
    lambda p, x: p["w"].reshape(9, 12) * 2,
    lambda p, x: p["w"].reshape(-1) * 2,
    lambda p, x: jnp.einsum("bm,man->ban", x["rows"], p["w"].reshape(12, 1, 9)),
    lambda p, x: jnp.einsum("lbm,lmij->lbij", x["layers"], p["stack"].reshape(3, 12, 3, 3)),
    lambda p, x: p["stack"].reshape(36, 9)[::2] * 2,
)
lines(
    "transpose",
    lambda p, x: x["columns"] @ p["w"].T,
    lambda p, x: x["rows"] @ p["v"].T,
    lambda p, x: jnp.einsum("lbn,lnm->lbm", x["layers"][..., :9], p["stack"].mT),
    lambda p, x: p["stack"].transpose(1, 0, 2) * 2,
)
lines("squeeze", lambda p, x: x["rows"] @ p["w"].reshape(12, 1, 9).squeeze(1))
lines("expand_dims", lambda p, x: lax.expand_dims(p["w"], (0,)))
lines("broadcast_in_dim", lambda p, x: lax.broadcast_in_dim(p["w"], (2, 12, 9), (1, 2)))
lines("tile", lambda p, x: jnp.tile(p["w"], (2, 1)))
lines("rev", lambda p, x: lax.rev(p["w"], (0,)))
lines("concatenate", lambda p, x: lax.concatenate([p["w"], SAME], 0))
lines("stack", lambda p, x: jnp.stack([p["w"], SAME]))
lines("unstack", lambda p, x: jnp.unstack(p["stack"])[1] * 2)
lines("split", lambda p, x: jnp.split(p["w"], 3, axis=1)[1])
lines("slice", lambda p, x: lax.slice(p["w"], (1, 0), (9, 9), (2, 1)))
lines("pad", lambda p, x: lax.pad(p["w"], jnp.float32(0), ((1, 0, 0), (0, 2, 1))))

# --- along an axis -------------------------------------------------------------------------------

for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
    lines(name, lambda p, x, name=name: getattr(lax, name)(p["w"], axis=0))
for name in ("sum", "max", "min", "prod"):
    lines(f"reduce_{name}", lambda p, x, name=name: getattr(jnp, name)(p["w"], axis=1))
for name in ("argmax", "argmin"):
    lines(name, lambda p, x, name=name: getattr(lax, name)(p["w"], 1, jnp.int32))
lines("sort", lambda p, x: lax.sort(p["w"], dimension=0))
lines("top_k", lambda p, x: lax.top_k(p["w"], 3)[0])
lines("fft", lambda p, x: jnp.fft.rfft(p["w"]))
for name, (start, function) in {
    "reduce_window_sum": (0.0, lax.add),
    "reduce_window_max": (-np.inf, lax.max),
    "reduce_window_min": (np.inf, lax.min),
    "reduce_window": (0.0, lambda a, b: a + b * 1.0),
}.items():
    lines(
        name,
        lambda p, x, start=start, function=function: lax.reduce_window(
            p["w"], start, function, (2, 1), (1, 1), "VALID"
        ),
    )

# --- indices -------------------------------------------------------------------------------------

lines(
    "gather",
    lambda p, x: jnp.take(p["w"], x["ids"], axis=0, mode="fill", fill_value=0),
    lambda p, x: p["w"][jnp.clip(x["ids"], 0, 11)],
    lambda p, x: jnp.nan_to_num(jnp.take(p["w"], x["ids"], axis=0, mode="fill")),
    lambda p, x: p["w"].at[x["ids"]].get(mode="fill", fill_value=7.5),
    lambda p, x: p["w"].at[x["ids"]].get(mode="clip"),
    lambda p, x: jnp.take(p["w"], x["ids"], axis=0, mode="wrap"),
    lambda p, x: p["w"].at[x["small"]].get(mode="promise_in_bounds"),
    lambda p, x: p["w"][:, x["small"]],
    lambda p, x: p["w"][x["small"], x["small"]],
    lambda p, x: p["v"][x["small"]],
    lambda p, x: p["stack"][jnp.clip(x["ids"], 0, 2)],
)
lines("dynamic_slice", lambda p, x: lax.dynamic_slice(p["w"], (x["flag"], 0), (4, 9)))
lines(
    "dynamic_update_slice",
    lambda p, x: lax.dynamic_update_slice(p["w"], SAME[:3], (x["flag"], 0)),
    lambda p, x: lax.dynamic_update_slice(np.zeros((20, 9), np.float32), p["w"], (x["flag"], 0)),
)
for name, write in {
    "scatter": "set",
    "scatter-add": "add",
    "scatter-sub": "subtract",
    "scatter-mul": "multiply",
    "scatter-min": "min",
    "scatter-max": "max",
}.items():
    lines(
        name,
        lambda p, x, write=write: getattr(p["w"].at[np.array([1, 3])], write)(ROW),
        lambda p, x, write=write: getattr(jnp.ones((20, 9)).at[np.arange(12)], write)(p["w"]),
    )

# --- programs ------------------------------------------------------------------------------------


lines(
    "scan",
    lambda p, x: lax.scan(
        lambda h, w: (h @ w @ p["v"], w), x["rows"], p["stack"], reverse=True, unroll=3
    )[0],
    lambda p, x: lax.scan(lambda h, row: (jnp.tanh(h + row), h * row), ROW, p["w"])[1],
    lambda p, x: lax.scan(lambda h, row: (h + 1, row * 2), ROW, p["w"], reverse=True)[1],
    lambda p, x: lax.scan(lambda h, given: (h, given[0] @ given[1]), 0, (x["layers"], p["stack"])),
    lambda p, x: lax.scan(lambda w, h: (w * 1.5, h @ w), p["w"], x["layers"])[1],
    lambda p, x: lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]) @ p["v"], None), x["rows"], None, 2),
)


def _while(p, x):
    def more(state):
        return (state[0] < 2) & (p["v"][0, 0] < 1e9)

    def turn(state):
        return state[0] + 1, p["w"], jnp.tanh(state[1])

    # a leaf in the condition, as a carry, and as what a turn hands on
    return lax.while_loop(more, turn, (0, p["w"] * 1.5, p["w"]))[1:]


lines("while", _while)
lines(
    "cond",
    lambda p, x: lax.cond(x["flag"] > 0, lambda w: x["rows"] @ w, lambda w: x["rows"] @ -w, p["w"]),
    lambda p, x: lax.switch(x["flag"], [lambda w, v: w, lambda w, v: v.T], p["w"], p["v"]),
)
for name in compat.REMAT:
    lines(
        name,
        lambda p, x: jax.checkpoint(lambda w: jnp.tanh(x["rows"] @ w))(p["w"]),
        lambda p, x: jax.checkpoint(lambda w: w, policy=jax.checkpoint_policies.dots_saveable)(
            p["w"]
        ),
    )


@jax.custom_jvp
def squashed(h):
    return h / (1 + jnp.abs(h))


squashed.defjvp(lambda primals, tangents: (squashed(*primals), 3 * tangents[0]))


@jax.custom_vjp
def rounded(h):
    return LEVELS[jnp.argmin(jnp.abs(h[..., None] - LEVELS), -1)]


LEVELS = jnp.asarray([-1.0, -0.5, 0.0, 0.5, 1.0])
rounded.defvjp(lambda h: (rounded(h), None), lambda _, g: (2 * g,))
lines("custom_jvp_call", lambda p, x: squashed(p["w"]))
for name in ("custom_vjp_call", "custom_vjp_call_jaxpr"):
    lines(name, lambda p, x: rounded(p["w"]))
