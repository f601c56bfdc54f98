"""Small faults that can be put into Python source: what `mutants.py` changes, one at a time."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES = {
    **{"min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any"},
    **{"int": "round", "round": "int", "ceil": "floor", "floor": "ceil", "sum": "mean"},
    **{"mean": "sum", "minimum": "maximum", "maximum": "minimum", "add_": "sub_", "sub_": "add_"},
    **{"argmax": "argmin", "argmin": "argmax", "log1p": "log", "expm1": "exp", "mul_": "div_"},
}
# In these nothing is changed: what they say has no effect on results.
NO_EFFECT = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)
NO_EFFECT_CALLS = {"warn", "debug", "info", "warning"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the text from `start` to `stop` becomes `text`."""

    path: str
    line: int
    start: int
    stop: int
    before: str
    text: str

    @property
    def name(self) -> str:
        """What is changed, on one line."""
        change = f"{self.before} -> {self.text}"
        return f"{self.path}:{self.line}: {' '.join(change.split())}"

    def apply(self, source: str) -> str:
        """Return the changed source."""
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.stop :]).decode()


def changed(node: ast.AST, change: Callable[[ast.AST], None]) -> ast.AST:
    """Return a changed copy of a node."""
    other = copy.deepcopy(node)
    change(other)
    return other


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in the place of an expression."""
    match node:
        case ast.Compare(ops=[operator]):
            for other in COMPARISONS.get(type(operator), ()):
                yield changed(node, lambda n, other=other: setattr(n, "ops", [other()]))
        case ast.BinOp(op=operator) if type(operator) in ARITHMETIC:
            yield changed(node, lambda n: setattr(n, "op", ARITHMETIC[type(operator)]()))
        case ast.BoolOp(op=operator):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield changed(node, lambda n: setattr(n, "op", other))
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float() as value):
            yield ast.Constant(1.5 * value if value else 1.0)
        case ast.IfExp():
            yield changed(node, lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test)))
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield changed(node, lambda n: setattr(n.func, "id", NAMES[name]))
        case ast.Call(func=ast.Attribute(attr=name)) if name in NAMES:
            yield changed(node, lambda n: setattr(n.func, "attr", NAMES[name]))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in the place of a statement."""
    match node:
        case ast.AugAssign(op=operator) if type(operator) in ARITHMETIC:
            yield changed(node, lambda n: setattr(n, "op", ARITHMETIC[type(operator)]()))
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Continue():
            yield ast.Break()


def _has_no_effect(node: ast.AST) -> bool:
    if isinstance(node, NO_EFFECT):
        return True
    if isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return isinstance(target, ast.Name) and target.id in {"msg", "__all__"}
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return name in NO_EFFECT_CALLS
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or _has_no_effect(node.value)
    if isinstance(node, ast.If):
        return getattr(node.test, "id", "") == "TYPE_CHECKING"
    return False


def _fields(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a node, without annotations and decorators."""
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield item


def mutants(path: str, source: str) -> list[Mutant]:
    """Return every change of a file.

    Parameters
    ----------
    path
        Name of the file, for the report.
    source
        Its text.
    """
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []

    def visit(node: ast.AST) -> None:
        if _has_no_effect(node):
            return
        is_statement = isinstance(node, ast.stmt)
        for other in statements(node) if is_statement else variants(node):
            start = starts[node.lineno - 1] + node.col_offset
            stop = starts[node.end_lineno - 1] + node.end_col_offset
            text = ast.unparse(ast.fix_missing_locations(other))
            before = source.encode()[start:stop].decode()
            text = text if is_statement else f"({text})"
            found.append(Mutant(path, node.lineno, start, stop, before, text))
        for part in _fields(node):
            visit(part)

    visit(ast.parse(source))
    return found
