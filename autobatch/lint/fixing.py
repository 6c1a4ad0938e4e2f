"""`--fix`: wraps what would be misread in `unwrap` or `resolve`, and changes nothing else."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable
from typing import Any

import libcst
from libcst import metadata
from libcst.codemod import CodemodContext
from libcst.codemod.visitors import AddImportsVisitor

from autobatch.lint.finder import find
from autobatch.lint.findings import Finding, Target, Wrapper, column_of, lines_of

# Wrapping one value may show another one behind it.
_MOST_PASSES = 10


def fix(source: str, names: Iterable[str] = (), ignored: Collection[str] = ()) -> str:
    """Return a module with all findings mended that can be without a human.

    Args:
        source: the module.
        names: names and dotted names that are clients as well.
        ignored: codes of what stays as it is.

    Raises:
        SyntaxError: it is no Python, or too new for libcst.
    """
    names = list(names)
    for _ in range(_MOST_PASSES):
        found = [f for f in find(source, names=names) if f.code not in ignored]
        fixed = _fix_once(source, found)
        if fixed == source:
            break
        source = fixed
    return source


def _fix_once(source: str, findings: list[Finding]) -> str:
    targets = [target for finding in findings for target in finding.targets]
    if not targets:
        return source
    names = _Names(ast.parse(source), before=min(target.node.lineno for target in targets))
    if not names.usable:
        return source
    try:
        parsed = libcst.parse_module(source)
    except libcst.ParserSyntaxError as error:
        raise SyntaxError(str(error)) from error
    if parsed.code != source:  # it loses a form feed at the beginning, and an end that is \r
        return source
    wrapper = metadata.MetadataWrapper(parsed)
    wrap = _Wrap(source, targets, names)
    module = wrapper.visit(wrap)
    if wrap.needs_import:
        context = CodemodContext()
        AddImportsVisitor.add_needed_import(context, "autobatch")
        module = AddImportsVisitor(context).transform_module(module)
    return module.code


class _Names:
    """How a module calls `unwrap` and `resolve`.

    Attributes:
        usable: whether `autobatch` means this package there, or nothing yet; and whether what is
            imported of it is there before it is used.
        package: the name of the package; None where it has to be imported.
        functions: what is imported from it.
    """

    def __init__(self, tree: ast.Module, *, before: int) -> None:
        imported = 0
        self.package: str | None = None
        self.functions: dict[str, str] = {}
        for node in tree.body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.partition(".")[0] == "autobatch":
                        imported = node.lineno
                    if alias.name == "autobatch":
                        self.package = alias.asname or "autobatch"
                    elif alias.name.startswith("autobatch.") and alias.asname is None:
                        self.package = self.package or "autobatch"
            elif isinstance(node, ast.ImportFrom) and node.module == "autobatch":
                imported = node.lineno
                for alias in node.names:
                    self.functions[alias.name] = alias.asname or alias.name
        bound = _bound(tree)
        self.usable = imported < before and bound.isdisjoint({"autobatch", self.package})
        self.functions = {name: own for name, own in self.functions.items() if own not in bound}


def _bound(tree: ast.Module) -> set[str]:
    """Return the names that a module gives to something of its own."""
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.Import):
            bound |= {a.asname for a in node.names if a.asname and a.name != "autobatch"}
        elif isinstance(node, ast.ImportFrom) and node.module != "autobatch":
            bound |= {alias.asname or alias.name for alias in node.names}
    return bound


class _Wrap(libcst.CSTTransformer):
    """Wraps the targets, which are known by their position and their code."""

    # Only the second counts the brackets of a tuple or a generator, as Python's parser does.
    METADATA_DEPENDENCIES = (
        metadata.PositionProvider,
        metadata.WhitespaceInclusivePositionProvider,
    )

    def __init__(self, source: str, targets: list[Target], names: _Names) -> None:
        super().__init__()
        lines = lines_of(source)
        self._module = libcst.Module([])
        self._names = names
        self._targets: dict[tuple[int, int], list[Target]] = {}
        for target in targets:
            node = target.node
            starts: list[ast.expr] = [node]
            if isinstance(node, ast.GeneratorExp):
                starts.append(node.elt)  # the only argument of a call shares the call's brackets
            for first in starts:
                place = first.lineno, column_of(lines[first.lineno - 1], first.col_offset)
                self._targets.setdefault(place, []).append(target)
        self.needs_import = False

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        left: Any = super().on_leave(original_node, updated_node)
        if not self._targets or not isinstance(original_node, libcst.BaseExpression):
            return left
        for provider in self.METADATA_DEPENDENCIES:
            start = self.get_metadata(provider, original_node).start
            for target in self._targets.get((start.line, start.column), ()):
                if self._is(original_node, target.node):
                    return self._wrapped(updated_node, target.wrapper)
        return left

    def _is(self, node: libcst.BaseExpression, wanted: ast.expr) -> bool:
        try:
            code = ast.parse(f"({self._module.code_for_node(node)}\n)", mode="eval").body
        except SyntaxError:
            return False
        return ast.dump(code) == ast.dump(wanted)

    def _wrapped(self, node: libcst.BaseExpression, wrapper: Wrapper) -> libcst.Call:
        name = "unwrap" if wrapper is Wrapper.UNWRAP else "resolve"
        function: libcst.BaseExpression
        if name in self._names.functions:
            function = libcst.Name(self._names.functions[name])
        else:
            self.needs_import = self._names.package is None
            package = libcst.Name(self._names.package or "autobatch")
            function = libcst.Attribute(package, libcst.Name(name))
        if wrapper is Wrapper.RESOLVE_LIST:
            node = _call(libcst.Name("list"), node)
        elif isinstance(node, libcst.GeneratorExp):
            node = libcst.ListComp(node.elt, node.for_in)
        return _call(function, node)


def _call(function: libcst.BaseExpression, argument: libcst.BaseExpression) -> libcst.Call:
    return libcst.Call(function, [libcst.Arg(argument)])
