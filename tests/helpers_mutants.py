"""Small changes of meaning in a source file: what a test should notice.

Changes are made in the bodies of functions only: not in docstrings, sentences of errors and
warnings, progress, plots, annotations, and hints that are for speed. A change replaces the text of
one node and leaves the rest of the file as it is.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Iterator

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_PAIRS = "min max, minimum maximum, sum mean, all any, argmin argmax, floor ceil, zeros ones"
OTHER_NAME = {
    one: other
    for pair in _PAIRS.split(", ")
    for one, other in (pair.split(), reversed(pair.split()))
}
CORRECTIONS = {"sqrt", "abs", "log", "exp", "conj", "square", "sorted", "reversed", "clip", "round"}
"""Functions of which a change leaves the first argument alone."""
SPEED = {"unique_indices", "indices_are_sorted", "precision", "donate_argnums", "strict"}
SHOWN = {
    "progress",
    "desc",
    "description",
    "leave",
    "disable",
    "unit",
    "bar",
    "stacklevel",
    "total",
}
SPEAKING = {"warn", "print", "tqdm", "update", "set_postfix", "write", "close", "debug", "info"}
SILENT_FUNCTIONS = ("__repr__", "__str__", "_repr_html_", "__hash__")
SILENT_WORDS = ("plot", "draw", "print", "message", "sentence", "describe", "progress")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: relative to the folder of the package.
        function: the qualified name of the function it stands in.
        line: the first line of the text that changes, from 1 on.
        kind: in words.
        before: the text that changes.
        after: what replaces it.
        start: offset of the text in the file's bytes.
        end: offset of the first byte after it.
        first: the first line of the statement that it is in.
        last: the last one; of a statement with a body, the one before the body.
    """

    file: str
    function: str
    line: int
    kind: str
    before: str
    after: str
    start: int
    end: int
    first: int
    last: int

    @property
    def key(self) -> str:
        """What the change is called, whatever the line it stands on."""
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.file} {self.function}: {before} -> {after}"

    @property
    def room(self) -> str:
        """The package it stands in."""
        return self.file.split("/")[1].removesuffix(".py")

    def apply(self, source: str) -> str:
        """The file with the change."""
        data = source.encode()
        return (data[: self.start] + self.after.encode() + data[self.end :]).decode()


Change = tuple[str, ast.AST, str]
"""The kind, the node that is replaced, and the text that replaces it."""


def atomic(node: ast.AST) -> str:
    """The text of an expression, in parentheses unless it cannot fall apart."""
    text = ast.unparse(node)
    whole = (ast.Name, ast.Constant, ast.Call, ast.Attribute, ast.Subscript, ast.List, ast.Dict)
    return text if isinstance(node, whole) else f"({text})"


def is_text(node: ast.AST) -> bool:
    """Whether an expression is a string on sight."""
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def changed(node: ast.AST, **fields: object) -> ast.AST:
    """A node with some of its fields replaced."""
    old = {name: getattr(node, name) for name in node._fields if hasattr(node, name)}
    return type(node)(**(old | fields))


def of_operator(node: ast.BinOp) -> Iterator[Change]:
    """Another operator, or one operand alone."""
    if is_text(node.left) or is_text(node.right):
        return
    if other := OPERATORS.get(type(node.op)):
        yield "operator", node, atomic(changed(node, op=other()))
    if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)):
        yield "term dropped", node, atomic(node.left)
    if isinstance(node.op, (ast.Add, ast.Mult)):
        yield "term dropped", node, atomic(node.right)


def of_comparison(node: ast.Compare) -> Iterator[Change]:
    """A bound that includes its end or no longer does, or the opposite."""
    for index, op in enumerate(node.ops):
        if other := COMPARISONS.get(type(op)):
            ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
            yield "bound", node, atomic(changed(node, ops=ops))


def of_boolean(node: ast.BoolOp) -> Iterator[Change]:
    """`or` for `and`, or a condition less."""
    other = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
    yield "condition", node, atomic(changed(node, op=other))
    for index in range(len(node.values)):
        rest = [*node.values[:index], *node.values[index + 1 :]]
        left = rest[0] if len(rest) == 1 else changed(node, values=rest)
        yield "condition dropped", node, atomic(left)


def of_sign(node: ast.UnaryOp) -> Iterator[Change]:
    """A sign or a negation less; for a number such as an axis, one more."""
    if isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        yield "sign", node, atomic(node.operand)
    if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        yield "number", node, str(1 - node.operand.value)


def of_constant(node: ast.Constant) -> Iterator[Change]:
    """The other truth value, the next whole number, twice a float."""
    if isinstance(node.value, bool):
        yield "flag", node, str(not node.value)
    elif isinstance(node.value, int):
        yield "number", node, str(node.value + 1)
    elif isinstance(node.value, float) and (node.value == 0 or abs(node.value) > 1e-3):
        yield "number", node, str(2 * node.value or 1.0)


def of_call(node: ast.Call) -> Iterator[Change]:
    """A neighbouring function, an argument ignored, a correction left out."""
    name = called(node)
    if other := OTHER_NAME.get(name):
        func = (
            ast.Name(other) if isinstance(node.func, ast.Name) else changed(node.func, attr=other)
        )
        yield "function", node, atomic(changed(node, func=func))
    for index, keyword in enumerate(node.keywords):
        if keyword.arg and keyword.arg not in SPEED | SHOWN:
            rest = [*node.keywords[:index], *node.keywords[index + 1 :]]
            yield "argument ignored", node, atomic(changed(node, keywords=rest))
    if name in CORRECTIONS and node.args:
        yield "correction skipped", node, atomic(node.args[0])


def of_attribute(node: ast.Attribute) -> Iterator[Change]:
    """A matrix that is not transposed."""
    if node.attr in ("T", "mT") and isinstance(node.ctx, ast.Load):
        yield "transpose", node, atomic(node.value)


def of_choice(node: ast.IfExp) -> Iterator[Change]:
    """One of two values, always."""
    yield "choice", node, atomic(node.body)
    yield "choice", node, atomic(node.orelse)


def of_if(node: ast.If) -> Iterator[Change]:
    """A branch that is never taken."""
    yield "branch skipped", node.test, "False"


def of_assignment(node: ast.Assign) -> Iterator[Change]:
    """A value that is not corrected: `x = f(x)` left out."""
    read = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
    if isinstance(node.value, (ast.Call, ast.BinOp)) and ast.unparse(node.targets[0]) in read:
        yield "correction skipped", node, "pass"


def of_update(node: ast.AugAssign) -> Iterator[Change]:
    """Another operator, or no update at all."""
    if other := OPERATORS.get(type(node.op)):
        yield "operator", node, ast.unparse(changed(node, op=other()))
    yield "correction skipped", node, "pass"


def of_statement(node: ast.Expr) -> Iterator[Change]:
    """A call that is not made: most are checks."""
    if isinstance(node.value, ast.Call):
        yield "call removed", node, "pass"


def of_return(node: ast.Return) -> Iterator[Change]:
    """The argument in place of the result."""
    value = node.value
    if isinstance(value, ast.Call) and value.args and isinstance(value.args[0], ast.Name):
        yield "argument returned", value, atomic(value.args[0])


def of_comprehension(node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Iterator[Change]:
    """All members in place of some."""
    for index, generator in enumerate(node.generators):
        if generator.ifs:
            every = [*node.generators]
            every[index] = changed(generator, ifs=[])
            yield "condition dropped", node, ast.unparse(changed(node, generators=every))


CHANGES: dict[type[ast.AST], Callable[..., Iterator[Change]]] = {
    ast.BinOp: of_operator,
    ast.Compare: of_comparison,
    ast.BoolOp: of_boolean,
    ast.UnaryOp: of_sign,
    ast.Constant: of_constant,
    ast.Call: of_call,
    ast.Attribute: of_attribute,
    ast.IfExp: of_choice,
    ast.If: of_if,
    ast.Assign: of_assignment,
    ast.AugAssign: of_update,
    ast.Expr: of_statement,
    ast.Return: of_return,
    ast.ListComp: of_comprehension,
    ast.SetComp: of_comprehension,
    ast.GeneratorExp: of_comprehension,
}


def called(node: ast.AST) -> str:
    """The last name of the function that a call calls, "" for anything else."""
    func = node.func if isinstance(node, ast.Call) else None
    if isinstance(func, ast.Attribute):
        return func.attr
    return func.id if isinstance(func, ast.Name) else ""


def is_silent(node: ast.AST, texts: bool) -> bool:
    """Whether nothing in a node is a change of meaning: it speaks to people, or to the types."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        text = not texts and isinstance(node.returns, ast.Name) and node.returns.id == "str"
        words = any(word in node.name for word in SILENT_WORDS)
        return text or words or node.name in SILENT_FUNCTIONS
    if isinstance(node, ast.keyword):
        return node.arg in SPEED | SHOWN
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    return isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr)) or called(node) in SPEAKING


def children(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that run when it runs; of a function, its body."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "args") and (
            name != "args" or not isinstance(node, ast.Call)
        ):
            continue
        values = value if isinstance(value, list) else [value]
        yield from (child for child in values if isinstance(child, ast.AST))


def statement_lines(node: ast.stmt) -> tuple[int, int]:
    """The lines of a statement, without those of its body."""
    body = getattr(node, "body", None)
    return node.lineno, max(node.lineno, body[0].lineno - 1 if body else node.end_lineno or 0)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a node stands.

    Attributes:
        names: of the classes and functions round it.
        lines: the first and last line of its statement.
        inside: whether it is in the body of a function.
        texts: whether functions that return strings count.
    """

    names: tuple[str, ...] = ()
    lines: tuple[int, int] = (0, 0)
    inside: bool = False
    texts: bool = False

    def at(self, node: ast.AST) -> Place:
        """The place of a node below."""
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        named = function or isinstance(node, ast.ClassDef)
        return dataclasses.replace(
            self,
            names=(*self.names, node.name) if named else self.names,
            lines=statement_lines(node) if isinstance(node, ast.stmt) else self.lines,
            inside=self.inside or function,
        )


def changes(node: ast.AST, place: Place) -> Iterator[tuple[Place, Change]]:
    """Every change of a node and below it, with where it stands."""
    silent_call = isinstance(node, ast.Expr) and called(node.value) in SPEAKING
    if silent_call or is_silent(node, place.texts):
        return
    place = place.at(node)
    if place.inside and type(node) in CHANGES:
        for change in CHANGES[type(node)](node):
            yield place, change
    for child in children(node):
        yield from changes(child, place)


def mutants(file: str, source: str) -> list[Mutant]:
    """Every small change of a file; `compiles` tells which of them are programs.

    Args:
        file: its path relative to the folder of the package.
        source: its text.

    Example:
        >>> source = "def f(x): return x < 1"
        >>> [mutant.after for mutant in mutants("package/room/file.py", source)]
        ['(x <= 1)', '2']
    """
    data = source.encode()
    offsets = [0]
    for line in data.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    made = []
    place = Place(texts="/documents/" in file)
    for where, (kind, node, after) in changes(ast.parse(source), place):
        start = offsets[node.lineno - 1] + node.col_offset
        end = offsets[node.end_lineno - 1] + node.end_col_offset
        span = (data[start:end].decode(), after, start, end, *where.lines)
        made.append(Mutant(file, ".".join(where.names), node.lineno, kind, *span))
    return made


def compiles(mutant: Mutant, source: str) -> bool:
    """Whether the file with the change is Python, and another program."""
    try:
        after = ast.parse(mutant.apply(source))
    except SyntaxError:
        return False
    return ast.dump(after) != ast.dump(ast.parse(source))
