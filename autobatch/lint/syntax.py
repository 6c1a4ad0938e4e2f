"""Questions about the nodes of a syntax tree, whatever their names stand for."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import TypeGuard


def choices(annotation: ast.expr) -> list[ast.expr]:
    """Return the classes that an annotation allows."""
    match annotation:
        case ast.Constant(value=str(text)):
            try:
                return choices(ast.parse(text, mode="eval").body)
            except (SyntaxError, ValueError):
                return []
        case ast.BinOp(op=ast.BitOr()):
            return choices(annotation.left) + choices(annotation.right)
        case ast.Subscript() if last(annotation.value) in {"Annotated", "Optional", "Union"}:
            inside = annotation.slice
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return [choice for part in parts for choice in choices(part)]
        case ast.Subscript():
            return [annotation.value]
        case _:
            return [annotation]


def imported(tree: ast.Module) -> Iterable[str]:
    """Return the full names of what a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_and(node: ast.expr) -> TypeGuard[ast.BoolOp]:
    """Return whether an expression is `… and …`."""
    return isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And)


def is_address(node: ast.expr) -> bool:
    """Return whether an expression is the address of a web page."""
    text = node.value if isinstance(node, ast.Constant) else None
    return isinstance(text, str) and text.startswith(("/", "http://", "https://"))


def is_name(node: ast.expr, name: str) -> bool:
    """Return whether an expression is that name."""
    return isinstance(node, ast.Name) and node.id == name


def dotted(node: ast.expr) -> str | None:
    """Return a name with its attributes, `a.b.c`; None if it is something else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def last(node: ast.expr) -> str:
    """Return the last part of such a name, or nothing."""
    return (dotted(node) or "").rpartition(".")[2]


def ends(body: list[ast.stmt]) -> bool:
    """Return whether the program does not go on behind a body."""
    return bool(body) and isinstance(body[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))


def handed_on(statement: ast.stmt, whole: list[ast.stmt]) -> Iterable[ast.Call]:
    """Return the calls whose values a statement hands on, so that `whole` does not look at them."""
    given: list[tuple[list[ast.expr], ast.expr]] = []  # targets, and what they are set to
    match statement:
        case ast.Expr(value=ast.Yield(value=ast.expr() as value)):
            given = [([], value)]
        case ast.Expr(value=value) | ast.Return(value=ast.expr() as value):
            given = [([], value)]
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            given = [([target], value) for target, value in zip(targets, values, strict=False)]
        case ast.Assign(targets=targets, value=value):
            given = [(targets, value)]
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            given = [([target], value)]
    for targets, value in given:
        if not any(looks_at(target, whole) for target in targets):
            yield from calls_in(value)


def calls_in(node: ast.expr) -> Iterable[ast.Call]:
    """Return the calls that are an expression, or parts of it as they are."""
    parts: list[ast.expr] = []
    match node:
        case ast.Call():
            yield node
        case ast.Tuple() | ast.List():
            parts = node.elts
        case ast.Dict():
            parts = node.values
        case ast.IfExp():
            parts = [node.body, node.orelse]
    for part in parts:
        yield from calls_in(part)


def looks_at(target: ast.expr, body: list[ast.stmt]) -> bool:
    """Return whether a body reads what it assigns to a target; of an index, nobody knows."""
    name = dotted(target)
    return name is None or any(
        isinstance(node, (ast.Name, ast.Attribute))
        and isinstance(node.ctx, ast.Load)
        and dotted(node) == name
        for statement in body
        for node in ast.walk(statement)
    )


def is_scope(node: ast.With) -> bool:
    """Return whether a block is a scope, and so perhaps raises at its end what failed in it."""
    calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
    return any(last(call.func) == "batch" for call in calls)
