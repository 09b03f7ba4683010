"""The unstable corners of JAX that the library depends on, in one place.

Run with jax 0.5.3, 0.10.2 and 0.12.0 (tests/networks). Everything else goes through
`jax.make_jaxpr` and `jax.extend.core`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, cast

import jax
from jax.extend import core
from jax.typing import ArrayLike
from jaxtyping import PyTree

T = TypeVar("T")

try:
    from jax.errors import InconclusiveDimensionOperation
except ImportError:  # before jax 0.10
    from jax.core import InconclusiveDimensionOperation

Inconclusive = InconclusiveDimensionOperation
"""The error of a comparison that has no answer for a symbolic size."""

INLINED = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "xla_call": "call_jaxpr",
}
"""Primitives that only call a jaxpr, and the parameter that holds it."""

REMAT = frozenset({"checkpoint", "remat", "remat2"})
"""Names of rematerialisation."""

CUSTOM = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
"""Functions with derivative rules of their own, and the parameter that holds their jaxpr."""


def open_jaxpr(
    jaxpr: core.Jaxpr | core.ClosedJaxpr,
) -> tuple[core.Jaxpr, list[ArrayLike]]:
    """A jaxpr, open or closed, and its constants."""
    return (jaxpr.jaxpr, list(jaxpr.consts)) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, [])


def scan_operands(params: dict[str, Any]) -> tuple[int, int]:
    """The number of a scan's constants, and that of its carries."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # from jax 0.11 on: trees of operands
    return len(consts), len(carry)


def bind(primitive: core.Primitive, operands: list[PyTree], params: dict[str, Any]) -> list[PyTree]:
    """Run a primitive on operands; returns a list even of a single output."""
    bind_params = primitive.get_bind_params(params)
    if isinstance(bind_params, tuple):  # before jax 0.7: functions first, then the parameters
        functions, rest = bind_params
        result = primitive.bind(*functions, *operands, **rest)
    else:
        result = primitive.bind(*operands, **bind_params)
    return list(result) if primitive.multiple_results else [result]


def primitives() -> frozenset[str]:
    """The names of all primitives that the installed JAX can compile, as jaxprs print them."""
    from jax._src.interpreters import mlir

    tables = (mlir._lowerings, *mlir._platform_specific_lowerings.values())
    return frozenset(primitive.name for table in tables for primitive in table)


def precision_name(precision: object) -> str | None:
    """The name of a product's precision for `jax.default_matmul_precision`, None if it has none.

    Args:
        precision: the parameter of `dot_general`: None, one `jax.lax.Precision` for each side, or
            an algorithm, of which only the presets have names.
    """
    if precision is None:
        return "default"
    if isinstance(precision, tuple):
        ranks = ("default", "high", "highest")
        # one name serves both sides: the more exact of the two
        return max((side.name.lower() for side in precision), key=ranks.index)
    return getattr(precision, "name", None)


@contextlib.contextmanager
def matmul_precision(precision: object) -> Iterator[None]:
    """Give products without a precision of their own that of an equation, where it has one."""
    with contextlib.ExitStack() as stack:
        if precision is not None:
            stack.enter_context(jax.default_matmul_precision(precision_name(precision)))
        yield


class _Frame(Protocol):
    """A frame of a traceback, as JAX returns it."""

    file_name: str
    function_name: str
    start_line: int


def where(equation: core.JaxprEqn) -> str:
    """File, line and function of the user's code that made an equation, "" where unknown."""
    frames = _frames(equation.source_info)
    outside = [frame for frame in frames if "site-packages" not in frame.file_name] or frames
    if not outside:
        return ""
    file = outside[0].file_name.rsplit("/", 1)[-1]
    function = outside[0].function_name.rsplit(".", 1)[-1]
    return f"{file}:{outside[0].start_line} ({function})"


def _frames(info: object) -> list[_Frame]:
    """The frames of the user's code."""
    # the argument of JAX's private helper differs between versions: try both
    frames: list[_Frame] = []
    for argument in (info, getattr(info, "traceback", None)):
        with contextlib.suppress(Exception):
            from jax._src import source_info_util

            frames = frames or cast(list[_Frame], list(source_info_util.user_frames(argument)))
    return frames


@contextlib.contextmanager
def context_of(equation: core.JaxprEqn) -> Iterator[None]:
    """The name scope and the compilation context that an equation was traced under."""
    with contextlib.ExitStack() as stack:
        manager = getattr(getattr(equation, "ctx", None), "manager", None)
        if manager is not None:
            stack.enter_context(manager)
        scope = str(getattr(equation.source_info, "name_stack", ""))
        if scope:
            stack.enter_context(jax.named_scope(scope))
        yield


def switch(
    index: jax.Array,
    branches: list[Callable[..., T]],
    operands: list[PyTree],
    params: dict[str, Any],
) -> T:
    """`jax.lax.switch`, or `platform_dependent` where an equation's branches belong to platforms.

    Branches of other platforms may have no lowering here, so that they are not even compiled.
    """
    platforms = params.get("branches_platforms")
    if platforms is None:
        return jax.lax.switch(index, branches, *operands)
    options: dict[str, Callable[..., T]] = {}
    for names, branch in zip(platforms, branches, strict=True):
        options |= dict.fromkeys(names or ("default",), branch)
    return jax.lax.platform_dependent(*operands, **options)


def checkpointed(function: Callable[..., PyTree], params: dict[str, Any]) -> Callable[..., PyTree]:
    """`jax.checkpoint` with the parameters of an equation."""
    return jax.checkpoint(
        function, prevent_cse=params.get("prevent_cse", True), policy=params.get("policy")
    )


def flops(program: PyTree, *arguments: PyTree) -> float:
    """XLA's count of floating-point operations of one call.

    Args:
        program: a function, or one that is lowered or compiled already.
        *arguments: of a function.
    """
    stage = (
        program
        if hasattr(program, "cost_analysis")
        else jax.jit(program).lower(*arguments).compile()
    )
    costs = stage.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    return float((costs or {}).get("flops", float("nan")))
