"""Mutants of a module: its source with one small fault each."""

import ast
import random
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
OPPOSITES = {"min": "max", "minimum": "maximum", "any": "all", "argmin": "argmax"}
OPPOSITES |= {new: old for old, new in OPPOSITES.items()}


@dataclass(frozen=True)
class Mutant:
    """One fault. lines: from the beginning of its statement to it; source: the module with it."""

    kind: str
    lines: tuple[int, int]
    old: str
    new: str
    around: str
    source: str

    @property
    def line(self) -> int:
        return self.lines[1]

    @property
    def place(self) -> str:
        """The text of its line."""
        return self.around.strip()

    @property
    def change(self) -> str:
        """The change in one line."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{old} -> {new}"


def all_mutants(source: str) -> list[Mutant]:
    """Every mutant of a module that is a program and another one.

    >>> [(m.kind, m.change) for m in all_mutants("def f(a, b=0):\\n    return a < b")]
    [('default', '0 -> 1'), ('return', 'return a < b -> return None'), ('comparison', 'a < b -> (a <= b)')]
    """
    tree = ast.parse(source)
    plain = ast.dump(tree)
    found = []
    for node, statement, kind, new in _changes(tree):
        old = ast.get_source_segment(source, node)
        text = _replace(source, node, new)
        try:
            same = ast.dump(ast.parse(text)) == plain
        except SyntaxError:
            continue
        if not same:
            first = min(statement.lineno, node.lineno)
            # a deleted statement counts as reached at its first line
            around = source.splitlines()[node.lineno - 1]
            found.append(Mutant(kind, (first, node.lineno), old, new, around, text))
    return found


def sample(mutants: list[Mutant], count: int, seed: str) -> list[Mutant]:
    """`count` mutants, drawn from all kinds in turn, so that rare kinds are included."""
    draw = random.Random(seed)
    by_kind = defaultdict(list)
    for mutant in mutants:
        by_kind[mutant.kind].append(mutant)
    piles = [by_kind[kind] for kind in sorted(by_kind)]
    for pile in piles:
        draw.shuffle(pile)
    draw.shuffle(piles)
    chosen: list[Mutant] = []
    while len(chosen) < count and any(piles):
        chosen += [pile.pop() for pile in piles if pile]
    return chosen[:count]


def _changes(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.stmt, str, str]]:
    """(node, its statement, kind, the text that replaces it)."""
    for node, statement, defaults in _places(tree, None, frozenset()):
        match node:
            case ast.Compare():
                for at, op in enumerate(node.ops):
                    other = deepcopy(node)
                    other.ops[at] = COMPARISONS[type(op)]()
                    yield node, statement, "comparison", _text(other)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                if not any(_is_text(side) for side in (left, right)):
                    other = ast.BinOp(left, ARITHMETIC[type(op)](), right)
                    yield node, statement, "arithmetic", _text(other)
            case ast.BoolOp(op=op, values=values):
                swapped = ast.Or() if isinstance(op, ast.And) else ast.And()
                yield node, statement, "and/or", _text(ast.BoolOp(swapped, values))
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                yield node, statement, "dropped not", _text(operand)
            case ast.keyword(arg=str(name), value=ast.Constant(value=bool() as value)):
                yield node, statement, "flag", f"{name}={not value}"
            case ast.keyword(arg=str(name), value=ast.Constant(value=int() | float() as value)):
                yield node, statement, "constant", f"{name}={value + 1!r}"
            case ast.Constant(value=bool() as value):
                kind = "default" if node in defaults else "flag"
                yield node, statement, kind, str(not value)
            case ast.Constant(value=int() | float() as value):
                kind = "default" if node in defaults else "constant"
                yield node, statement, kind, repr(value + 1)
            case ast.Name(id=name) if name in OPPOSITES and isinstance(node.ctx, ast.Load):
                yield node, statement, "min/max", OPPOSITES[name]
            case ast.Attribute(attr=name, value=value) if name in OPPOSITES:
                yield node, statement, "min/max", f"{ast.unparse(value)}.{OPPOSITES[name]}"
            case ast.Return(value=value) if value is not None:
                yield node, statement, "return", "return None"
            case ast.Raise():
                yield node, statement, "deleted raise", "pass"
            case ast.Continue() | ast.Break() | ast.AugAssign():
                yield node, statement, "deleted statement", "pass"
            case ast.Expr(value=ast.Call()):
                yield node, statement, "deleted statement", "pass"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield node, statement, "deleted statement", "pass"
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            # `not` is dropped and == exchanged above
            if not isinstance(node.test, ast.UnaryOp | ast.Compare):
                yield node.test, statement, "condition", f"(not ({ast.unparse(node.test)}))"
        elif isinstance(node, ast.comprehension):
            for test in node.ifs:
                if not isinstance(test, ast.UnaryOp | ast.Compare):
                    yield test, statement, "condition", f"(not ({ast.unparse(test)}))"


def _places(
    node: ast.AST, statement: ast.stmt | None, defaults: frozenset[ast.AST]
) -> Iterator[tuple[ast.AST, ast.stmt, frozenset[ast.AST]]]:
    """Every node that runs, with its statement: no annotations, formatted text or imports for types."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return  # positions inside of formatted text are wrong before Python 3.12
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.stmt):
        statement = node
    if isinstance(node, ast.arguments):
        defaults = frozenset(d for d in (*node.defaults, *node.kw_defaults) if d is not None)
    if statement is not None:
        yield node, statement, defaults
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.keyword) and isinstance(child, ast.Constant):
                continue  # changed with its name
            if isinstance(child, ast.AST):
                yield from _places(child, statement, defaults)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


def _replace(source: str, node: ast.AST, new: str) -> str:
    """The source with a node's text replaced; positions count UTF-8 bytes within a line."""
    lines = source.encode().splitlines(keepends=True)
    first, last = node.lineno - 1, node.end_lineno - 1
    head = b"".join(lines[:first]) + lines[first][: node.col_offset]
    tail = lines[last][node.end_col_offset :] + b"".join(lines[last + 1 :])
    return (head + new.encode() + tail).decode()
