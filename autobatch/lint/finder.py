"""Finding: follows the values of Redis clients through the functions of a module.

Each function is walked in the order of its statements, with what every name may stand for at that
point. Where branches meet, a value counts as lazy if it may be. A value that is returned or passed
on is not followed.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

from autobatch.lint import clients
from autobatch.lint.expressions import SELF, Expressions
from autobatch.lint.findings import Finding
from autobatch.lint.syntax import dotted, ends, handed_on, imported, is_name, is_scope, last
from autobatch.lint.values import (
    OTHER,
    Client,
    Items,
    Known,
    Lazy,
    Maker,
    Names,
    Other,
    Parts,
    Value,
    item_of,
    join,
)

Function = ast.FunctionDef | ast.AsyncFunctionDef

_NOQA = re.compile(
    r"#\s*noqa(?::\s*(?P<codes>[A-Z]+[0-9]+(?:[,\s]+[A-Z]+[0-9]+)*))?", re.IGNORECASE
)


def find(source: str, tree: ast.Module | None = None, names: Iterable[str] = ()) -> list[Finding]:
    """Return where a lazy value would be misread, but for lines that say `noqa`.

    Args:
        source: a module.
        tree: the same, parsed.
        names: names and dotted names that are clients as well.

    Raises:
        SyntaxError: it is no Python.
        RecursionError: it is nested too deeply.
    """
    finder = _Finder(source, names)
    finder.module(ast.parse(source) if tree is None else tree)
    report = finder.report
    found = sorted(report.found.values(), key=lambda f: (f.line, f.column, f.code))
    return [
        finding for finding in found if not _waived(report.lines[finding.line - 1], finding.code)
    ]


def _waived(line: str, code: str) -> bool:
    match = _NOQA.search(line)
    if match is None:
        return False
    codes = match["codes"]
    return codes is None or code in re.split(r"[,\s]+", codes.upper())


class _Finder(Expressions):
    """One module's walk."""

    # ---- scopes ------------------------------------------------------------------------

    def module(self, tree: ast.Module) -> None:
        """Walk a module, then the functions in it, which run when its names are there."""
        self._works_with_redis = any(map(clients.is_of_redis, imported(tree)))
        self._run(tree.body)
        for name, client in self._set_from_inside(tree):
            self._names[name] = client
        while self._waiting:
            self._waiting.pop(0)()

    def _set_from_inside(self, tree: ast.Module) -> Iterable[tuple[str, Client]]:
        """Return the global names that functions set to a client: `global name`."""
        for function in ast.walk(tree):
            if not isinstance(function, Function):
                continue
            inside = list(ast.walk(function))
            names = {name for node in inside if isinstance(node, ast.Global) for name in node.names}
            for node in inside if names else ():
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                    made = self._made(node.value)
                    for target in node.targets:
                        if isinstance(made, Client) and dotted(target) in names:
                            yield dotted(target) or "", made

    def define(self, node: Function) -> None:
        self._walk_later(node)
        made = self._annotated(node.returns)
        if made is None and clients.sounds_like_maker(node.name):
            made = Client()
        self._names[node.name] = Maker(made) if isinstance(made, Client) else OTHER

    def _walk_later(self, node: Function) -> None:
        """Walk a function when the names around it are as it will find them."""
        for decorator in node.decorator_list:
            self._value(decorator)
        for default in filter(None, [*node.args.defaults, *node.args.kw_defaults]):
            self._value(default)
        outer, client_class = self._names, self._client_class

        def walk() -> None:
            self._names = Names(outer)
            self.report.coroutine = isinstance(node, ast.AsyncFunctionDef)
            self._client_class = client_class
            self._parameters(node.args)
            self._run(node.body)

        self._waiting.append(walk)

    def class_(self, node: ast.ClassDef) -> None:
        for decorator in node.decorator_list:
            self._value(decorator)
        bases = [self._value(base) for base in node.bases]
        module, client_class = self._names, self._client_class
        self._client_class = None
        if "Pipeline" not in node.name:
            for base in bases:
                if isinstance(base, Known) and clients.is_class(base.path):
                    self._client_class = Client(clients.is_asynchronous(base.path))
        inside = Names(module)
        inside["self"] = inside["cls"] = self._client_class or SELF
        # Methods do not see the names of the class, but its attributes.
        self._names = inside
        attributes: dict[str, Value] = {}
        kept = [self._kept(method) for method in node.body if isinstance(method, Function)]
        for name, value in itertools.chain(*kept, self._attributes(node)):
            attributes[name] = join(attributes.get(name), value)
        for name, value in attributes.items():
            inside["self." + name] = inside["cls." + name] = value
        body = Names(module)
        self._names = body
        for statement in node.body:
            if isinstance(statement, Function):
                self._names = inside
                self._walk_later(statement)
                self._names = body
            else:
                self._run([statement])
        self._names, self._client_class = module, client_class
        module[node.name] = OTHER

    def _attributes(self, node: ast.ClassDef) -> Iterable[tuple[str, Value]]:
        """Return which attributes the methods of a class, or its body, set to a client."""
        targets: list[Any]
        for statement in ast.walk(node):
            if isinstance(statement, ast.AnnAssign):
                targets, value = [statement.target], self._annotated(statement.annotation)
            elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
                targets, value = statement.targets, self._made(statement.value)
            elif isinstance(statement, Function):
                targets, value = [], self._annotated(statement.returns)
                if isinstance(value, Client) and statement in node.body:
                    decorated = any("property" in ast.unparse(d) for d in statement.decorator_list)
                    yield statement.name, value if decorated else Maker(value)
            else:
                continue
            if not isinstance(value, (Client, Other)):
                continue
            for target in targets:
                if isinstance(target, ast.Attribute) and is_name(target.value, "self"):
                    yield target.attr, value
                elif isinstance(target, ast.Name) and statement in node.body:
                    yield target.id, value

    def _kept(self, function: Function) -> Iterable[tuple[str, Value]]:
        """Return the attributes that a method sets to a parameter of which it says what it is."""
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        said = {a.arg: self._annotated(a.annotation) for a in every if a.annotation is not None}
        for node in ast.walk(function):
            match node:
                case ast.Assign(targets=[ast.Attribute() as target], value=ast.Name(id=name)):
                    if is_name(target.value, "self") and said.get(name) is not None:
                        yield target.attr, said[name]

    def _made(self, call: ast.Call) -> Value:
        """Return what a call makes, if its name tells: a client, or something of a class."""
        path = self._path(call.func)
        if path and clients.makes_client(path):
            return self._client_made(path, call)
        return OTHER if clients.is_class_s(last(call.func)) else None

    # ---- statements --------------------------------------------------------------------

    def _run(self, body: list[ast.stmt]) -> None:
        for statement in body:
            run = _STATEMENTS.get(type(statement))
            if run is not None:
                run(self, statement)
                continue
            for child in ast.iter_child_nodes(statement):
                if isinstance(child, ast.expr):
                    self._value(child)

    def import_(self, node: ast.Import) -> None:
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            self._names[name] = Known(alias.name if alias.asname else name)

    def import_from(self, node: ast.ImportFrom) -> None:
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            name = alias.asname or alias.name
            path = f"{module}.{alias.name}"
            if not clients.is_of_library(path) and self._sounds(name):
                self._names[name] = Client()
            else:
                self._names[name] = Known(path)

    def assign(self, node: ast.Assign) -> None:
        value = self._value(node.value)
        for target in node.targets:
            self._bind(target, value, node.value)

    def assign_annotated(self, node: ast.AnnAssign) -> None:
        said = self._annotated(node.annotation)
        value = self._value(node.value) if node.value is not None else None
        if isinstance(said, Client) and not isinstance(value, Client):
            value = said
        if node.value is not None or isinstance(said, Client):
            self._bind(node.target, value, node.value)

    def assign_augmented(self, node: ast.AugAssign) -> None:
        added = self._value(node.value)
        held = self._value(node.target)
        if isinstance(held, (Items, Parts)):
            value: Value = Items(join(item_of(held), item_of(added)))
        else:
            value = OTHER
        self._bind(node.target, value, None)

    def delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            path = dotted(target)
            if path is not None:
                self._names[path] = OTHER

    def _branch(self, *ways: Callable[[], bool]) -> None:
        """Walk one of several ways. Each tells whether it goes on behind them."""
        names = self._names
        before = names.own
        after: dict[str, Value] | None = None
        for way in ways:
            names.own = before.copy()
            if way():
                after = names.own if after is None else names.joined(after, names.own)
        names.own = before if after is None else after

    def _body(self, body: list[ast.stmt], test: ast.expr | None = None) -> Callable[[], bool]:
        def walk() -> bool:
            if test is not None:
                self._know_true(test)
            self._run(body)
            return not ends(body)

        return walk

    def if_(self, node: ast.If) -> None:
        ways = []
        orelse: list[ast.stmt] = [node]
        while len(orelse) == 1 and isinstance(orelse[0], ast.If):  # an elif nests in the one before
            self._value(orelse[0].test)
            ways.append(self._body(orelse[0].body, orelse[0].test))
            orelse = orelse[0].orelse
        self._branch(*ways, self._body(orelse))

    def while_(self, node: ast.While) -> None:
        def turn() -> None:
            self._value(node.test)
            self._run(node.body)

        self._loop(turn)
        self._run(node.orelse)

    def for_(self, node: ast.For | ast.AsyncFor) -> None:
        items = self._value(node.iter)

        def turn() -> None:
            self._bind(node.target, item_of(items) or OTHER, None)
            self._run(node.body)

        self._loop(turn)
        self._run(node.orelse)

    def _loop(self, turn: Callable[[], None]) -> None:
        """Walk a loop; twice, if its end changes what its beginning sees."""
        names = self._names
        for _ in range(2):
            before = names.own.copy()
            turn()
            names.own = names.joined(before, names.own)
            if names.own == before:
                break

    def with_(self, node: ast.With | ast.AsyncWith) -> None:
        self._enter(node)
        calls = [item.context_expr for item in node.items]
        suppressed = [
            kind
            for call in calls
            if isinstance(call, ast.Call) and last(call.func) == "suppress"
            for kind in call.args
        ]
        if any(map(self._catches_reply, suppressed)):
            self._late_errors(node.body)
        self._run(node.body)

    def _enter(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            value = self._value(item.context_expr)
            if item.optional_vars is not None:
                self._bind(item.optional_vars, value, item.context_expr)

    def try_(self, node: ast.Try | ast.TryStar) -> None:
        before = self._names.own.copy()
        if any(h.type is None or self._catches_reply(h.type) for h in node.handlers):
            self._late_errors(node.body)
        self._run(node.body)
        broken = self._names.joined(before, self._names.own)
        ways = []
        for handler in node.handlers:

            def handle(handler: ast.ExceptHandler = handler) -> bool:
                self._names.own = broken.copy()
                if handler.type is not None:
                    self._value(handler.type)
                if handler.name is not None:
                    self._names[handler.name] = OTHER
                self._run(handler.body)
                return not ends(handler.body)

            ways.append(handle)

        def fine() -> bool:
            self._run(node.orelse)
            return not ends(node.body) and not ends(node.orelse)

        self._branch(fine, *ways)
        self._run(node.finalbody)

    def match_(self, node: ast.Match) -> None:
        subject = self._value(node.subject)
        self.report.match(node, subject)
        ways = []
        for case in node.cases:

            def walk(case: ast.match_case = case) -> bool:
                for pattern in ast.walk(case.pattern):
                    name = getattr(pattern, "name", None) or getattr(pattern, "rest", None)
                    if name is not None:
                        whole = pattern is case.pattern and getattr(pattern, "pattern", 1) is None
                        self._names[name] = subject if whole and subject else OTHER
                if case.guard is not None:
                    self._value(case.guard)
                self._run(case.body)
                return not ends(case.body)

            ways.append(walk)
        self._branch(*ways, lambda: True)

    # ---- errors that come later --------------------------------------------------------

    def _catches_reply(self, node: ast.expr) -> bool:
        """Return whether an except clause would catch the error of a reply."""
        caught = self._value(node)
        kinds = caught.parts if isinstance(caught, Parts) else [caught]
        paths = [kind.path.rpartition(".") for kind in kinds if isinstance(kind, Known)]
        # ConnectionError and TimeoutError are Python's own where they are not imported.
        return any(
            name in clients.BROAD_ERRORS or (owner and name in clients.ERRORS)
            for owner, _, name in paths
        )

    def _late_errors(self, body: list[ast.stmt]) -> None:
        """Find the calls directly in a try whose values nobody looks at in it."""
        calls: list[tuple[ast.Call, Lazy]] = []
        found, names, waiting = self.report.found, self._names.own, len(self._waiting)
        self.report.found, self._names.own = {}, names.copy()
        looped = self._collect(body, body, calls)
        self.report.found, self._names.own = found, names
        del self._waiting[waiting:]
        self.report.late(calls, looped=looped)

    def _collect(
        self, body: list[ast.stmt], whole: list[ast.stmt], calls: list[tuple[ast.Call, Lazy]]
    ) -> bool:
        """Add the calls of a body that nobody looks at; return whether one is in a loop."""
        looped = False
        for statement in body:
            for call in handed_on(statement, whole):
                self._collect_call(call, calls)
            match statement:
                case ast.If():
                    looped |= self._collect(statement.body + statement.orelse, whole, calls)
                case ast.With() if not is_scope(statement):
                    self._enter(statement)
                    looped |= self._collect(statement.body, whole, calls)
                case ast.For() | ast.While():
                    before = len(calls)
                    self._collect(statement.body, whole, calls)
                    looped |= len(calls) > before
            if not isinstance(statement, (ast.If, ast.With, ast.For, ast.While, ast.Try)):
                self._run([statement])
        return looped

    def _collect_call(self, call: ast.Call, calls: list[tuple[ast.Call, Lazy]]) -> None:
        value = self._value(call)
        if isinstance(value, Lazy) and not value.forced and not self._awaited(value):
            calls.append((call, value))

    def _awaited(self, lazy: Lazy) -> bool:
        """Return whether a call that nobody awaits is a mistake of its own."""
        return self.report.coroutine and lazy.client.asynchronous is not False


_STATEMENTS: dict[type[ast.stmt], Callable[[_Finder, Any], None]] = {
    ast.FunctionDef: _Finder.define,
    ast.AsyncFunctionDef: _Finder.define,
    ast.ClassDef: _Finder.class_,
    ast.Import: _Finder.import_,
    ast.ImportFrom: _Finder.import_from,
    ast.Assign: _Finder.assign,
    ast.AnnAssign: _Finder.assign_annotated,
    ast.AugAssign: _Finder.assign_augmented,
    ast.Delete: _Finder.delete,
    ast.If: _Finder.if_,
    ast.While: _Finder.while_,
    ast.For: _Finder.for_,
    ast.AsyncFor: _Finder.for_,
    ast.With: _Finder.with_,
    ast.AsyncWith: _Finder.with_,
    ast.Try: _Finder.try_,
    ast.TryStar: _Finder.try_,
    ast.Match: _Finder.match_,
}
