"""Finding: follows the values of Redis clients through the functions of a module.

Each function is walked in the order of its statements, with what every name may stand for at that
point. Where branches meet, a value counts as lazy if it may be. A value that is returned or passed
on is not followed.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

from autobatch.lint import clients
from autobatch.lint.checks import Report
from autobatch.lint.findings import Finding
from autobatch.lint.functions import JSON_METHODS, PATTERN_METHODS, TEXT_METHODS
from autobatch.lint.values import (
    OTHER,
    Client,
    Commands,
    Entries,
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
Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp

_BUILTINS = frozenset(dir(builtins))
_PATTERN = Known("re.Pattern")
_SELF = Known("self")
_NOQA = re.compile(
    r"#\s*noqa(?::\s*(?P<codes>[A-Z]+[0-9]+(?:[,\s]+[A-Z]+[0-9]+)*))?", re.IGNORECASE
)
_ADDERS = {"add", "append", "appendleft", "extend", "insert"}
# An annotation that says no more than a name does.
_SAYS_NOTHING = {"Any", "object", "typing.Any"}


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


class _Finder:
    """One module's walk."""

    def __init__(self, source: str, names: Iterable[str]) -> None:
        self.report = Report(source)
        self._configured = [f".{name}" for name in names]
        self._names = Names()
        self._works_with_redis = False
        self._client_class: Client | None = None
        self._waiting: list[Callable[[], None]] = []

    # ---- scopes ------------------------------------------------------------------------

    def module(self, tree: ast.Module) -> None:
        """Walk a module, then the functions in it, which run when its names are there."""
        self._works_with_redis = any(map(clients.is_of_redis, _imported(tree)))
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
                        if isinstance(made, Client) and _dotted(target) in names:
                            yield _dotted(target) or "", made

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

    def _parameters(self, arguments: ast.arguments) -> None:
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for number, argument in enumerate(every):
            if number == 0 and argument.arg in {"self", "cls"} and argument.annotation is None:
                value: Value = self._client_class or _SELF
                if argument.arg in self._names:  # what the class knows of itself comes with it
                    continue
            else:
                value = self._annotated(argument.annotation)
                if value is None and self._sounds(argument.arg):
                    value = Client()
            self._names[argument.arg] = value or OTHER
        for argument in filter(None, [arguments.vararg, arguments.kwarg]):
            self._names[argument.arg] = OTHER

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
        inside["self"] = inside["cls"] = self._client_class or _SELF
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
                if isinstance(target, ast.Attribute) and _is_name(target.value, "self"):
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
                    if _is_name(target.value, "self") and said.get(name) is not None:
                        yield target.attr, said[name]

    def _made(self, call: ast.Call) -> Value:
        """Return what a call makes, if its name tells: a client, or something of a class."""
        path = self._path(call.func)
        if path and clients.makes_client(path):
            return self._client_made(path, call)
        return OTHER if clients.is_class_s(_last(call.func)) else None

    def _annotated(self, annotation: ast.expr | None) -> Value:
        """Return what an annotation says; None where that is nothing."""
        said = None if annotation is None else [self._path(p) for p in _choices(annotation)]
        if said is None or not _SAYS_NOTHING.isdisjoint(said):
            return None
        paths = [path for path in said if path is not None and clients.makes_client(path)]
        kinds = {clients.is_asynchronous(path) for path in paths}
        if not kinds:
            return OTHER
        return Client(kinds.pop() if len(kinds) == 1 else None)

    def _path(self, node: ast.expr) -> str | None:
        """Return the full name of an imported or built-in thing, or its own where it is neither."""
        if isinstance(node, ast.Name):
            value = self._names[node.id]
            return value.path if isinstance(value, Known) else node.id
        if isinstance(node, ast.Attribute):
            owner = self._path(node.value)
            return None if owner is None else f"{owner}.{node.attr}"
        return None

    def _sounds(self, name: str) -> bool:
        """Return whether a variable is a client by its name."""
        if self._is_configured(name) or clients.sounds_certain(name):
            return True
        return self._works_with_redis and clients.sounds_vague(name)

    def _is_configured(self, path: str) -> bool:
        return any(f".{path}".endswith(name) for name in self._configured)

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

    def _bind(self, target: ast.expr, value: Value, source: ast.expr | None) -> None:
        """Let a target stand for a value, and for a client where its name says so."""
        match target:
            case ast.Name() | ast.Attribute():
                if isinstance(target, ast.Attribute):
                    self._value(target.value)
                self._bind_path(_dotted(target), value, source)
            case ast.Tuple() | ast.List():
                self._unpack(target.elts, value)
            case ast.Starred():
                self._bind(target.value, Items(value), None)
            case ast.Subscript():
                held = self._value(target.value)
                self._value(target.slice)
                path = _dotted(target.value)
                if path is not None and isinstance(held, Entries):
                    self._names[path] = Entries(join(held.item, value))

    def _bind_path(self, path: str | None, value: Value, source: ast.expr | None) -> None:
        if path is None:
            return
        if value is None and source is not None and self._may_be_client(path, source):
            value = Client()
        self._names[path] = value or OTHER

    def _unpack(self, targets: list[ast.expr], value: Value) -> None:
        starred = any(isinstance(target, ast.Starred) for target in targets)
        if isinstance(value, Parts) and len(value.parts) == len(targets) and not starred:
            parts = value.parts
        else:
            parts = (item_of(value),) * len(targets)
        for target, part in zip(targets, parts, strict=True):
            self._bind(target, part or OTHER, None)

    def _may_be_client(self, path: str, source: ast.expr) -> bool:
        name = path.rpartition(".")[2]
        if self._is_configured(path):
            return True
        if isinstance(source, ast.Call) and clients.is_class_s(_last(source.func)):
            return False  # of a class that makes no clients
        return clients.sounds_certain(name) and isinstance(
            source, (ast.Call, ast.Await, ast.Attribute, ast.Name, ast.Subscript, ast.IfExp)
        )

    def delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            path = _dotted(target)
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
            return not _ends(body)

        return walk

    def if_(self, node: ast.If) -> None:
        ways = []
        orelse: list[ast.stmt] = [node]
        while len(orelse) == 1 and isinstance(orelse[0], ast.If):  # an elif nests in the one before
            self._value(orelse[0].test)
            ways.append(self._body(orelse[0].body, orelse[0].test))
            orelse = orelse[0].orelse
        self._branch(*ways, self._body(orelse))

    def _know_true(self, test: ast.expr) -> None:
        """Note what is true behind a test: neither None nor False."""
        for part in test.values if _is_and(test) else [test]:
            value = self._names[part.id] if isinstance(part, ast.Name) else None
            if isinstance(part, ast.Name) and isinstance(value, Lazy):
                self._names[part.id] = Lazy(value.client, truthy=True, forced=True)

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
            if isinstance(call, ast.Call) and _last(call.func) == "suppress"
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
                return not _ends(handler.body)

            ways.append(handle)

        def fine() -> bool:
            self._run(node.orelse)
            return not _ends(node.body) and not _ends(node.orelse)

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
                return not _ends(case.body)

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
            for call in _handed_on(statement, whole):
                self._collect_call(call, calls)
            match statement:
                case ast.If():
                    looped |= self._collect(statement.body + statement.orelse, whole, calls)
                case ast.With() if not _is_scope(statement):
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

    # ---- expressions -------------------------------------------------------------------

    def _value(self, node: ast.expr) -> Value:
        """Return what an expression may stand for, and find what it misreads."""
        evaluate = _EXPRESSIONS.get(type(node))
        if evaluate is not None:
            value: Value = evaluate(self, node)
            return value
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._value(child)
        return None

    def name(self, node: ast.Name) -> Value:
        if self._is_configured(node.id):
            return Client()
        if node.id in self._names:
            return self._names[node.id]
        if node.id in _BUILTINS:
            return Known(node.id)
        return Client() if self._sounds(node.id) else None

    def attribute(self, node: ast.Attribute) -> Value:
        owner, name = self._value(node.value), node.attr
        path = _dotted(node)
        if path is not None:
            if self._is_configured(path):
                return Client()
            if path in self._names:
                return self._names[path]
        if isinstance(owner, Known) and owner is not _SELF:
            return Known(f"{owner.path}.{name}")
        if isinstance(owner, Client) and name in clients.COMMANDS:  # get = client.get
            return Maker(Lazy(owner, forced=name in clients.FORCED))
        if isinstance(owner, (Client, Commands, Lazy)):
            return OTHER
        vague = self._works_with_redis and clients.attribute_sounds_vague(name)
        return Client() if vague or clients.sounds_certain(name) else None

    def call(self, node: ast.Call) -> Value:
        if isinstance(node.func, ast.Attribute):
            owner = self._value(node.func.value)
            function = self._attribute_of_call(node.func, owner)
        else:
            owner, function = None, self._value(node.func)
        arguments = [self._value(argument) for argument in node.args]
        keywords = {word.arg: self._value(word.value) for word in node.keywords}
        if isinstance(node.func, ast.Attribute) and not isinstance(owner, (Client, Commands)):
            self.report.handed_on(node, node.func, arguments, keywords)
        if isinstance(function, Known) and not isinstance(owner, (Client, Commands)):
            return self._call_known(node, function.path, arguments, keywords)
        if isinstance(function, Maker):
            return function.made
        if isinstance(function, Client):
            return function  # a function that is called like a client
        if isinstance(node.func, ast.Attribute):
            return self._call_method(node, node.func.attr, owner, arguments)
        return None

    def _attribute_of_call(self, node: ast.Attribute, owner: Value) -> Value:
        path = _dotted(node)
        if path is not None and path in self._names:
            return self._names[path]
        if isinstance(owner, Known) and owner not in (_SELF, _PATTERN):
            return Known(f"{owner.path}.{node.attr}")
        return None

    def _call_method(
        self, node: ast.Call, method: str, owner: Value, arguments: list[Value]
    ) -> Value:
        if isinstance(owner, Client):
            return self._call_client(node, owner, method)
        if isinstance(owner, Commands):
            return Lazy(owner.client) if method in owner.methods else OTHER
        if isinstance(owner, (Items, Parts, Entries)):
            return self._call_container(node, method, owner, arguments)
        if owner == _PATTERN:
            self.report.arguments(node, arguments, PATTERN_METHODS.get(method, ()))
        elif method in JSON_METHODS:
            self.report.arguments(node, arguments, (0,))
        elif method in TEXT_METHODS:
            self.report.arguments(node, arguments)
        elif method == "join" and len(arguments) == 1:
            self.report.joined(node, arguments[0])
        if isinstance(owner, Lazy) and method == "map":
            return Lazy(owner.client)
        made = method in {"master_for", "slave_for"} or clients.sounds_like_maker(method)
        return Client() if made else None

    def _call_client(self, node: ast.Call, client: Client, method: str) -> Value:
        if client == Client() and node.args and _is_address(node.args[0]):
            return OTHER  # it only sounds so: a client of a web server
        if method in clients.COMMANDS:
            arguments = {word.arg for word in node.keywords if word.arg is not None}
            if clients.blocks(method, arguments):
                return OTHER
            return Lazy(client, forced=method in clients.FORCED)
        if method in clients.MODULES:
            return Commands(client, clients.MODULES[method])
        if method == "register_script":
            return Maker(Lazy(client))
        return client if method == "client" else OTHER

    def _call_container(
        self, node: ast.Call, method: str, owner: Items | Parts | Entries, arguments: list[Value]
    ) -> Value:
        if isinstance(owner, Entries):
            gives: dict[str, Value] = {
                "get": owner.item,
                "pop": owner.item,
                "values": Items(owner.item),
                "items": Items(Parts((OTHER, owner.item))),
            }
            return gives.get(method)
        path = _dotted(node.func.value) if isinstance(node.func, ast.Attribute) else None
        if path is not None and arguments and method in _ADDERS:
            added = item_of(arguments[-1]) if method == "extend" else arguments[-1]
            self._names[path] = Items(join(item_of(owner), added))
        return item_of(owner) if method == "pop" else None

    def _call_known(
        self, node: ast.Call, path: str, arguments: list[Value], keywords: dict[str | None, Value]
    ) -> Value:
        """Return what a call of something imported or built in gives."""
        first = arguments[0] if arguments else None
        self.report.call(node, path, arguments, keywords)
        made: Value = None
        match path:
            case "autobatch.wrap":
                made = first if isinstance(first, Client) else Client()
            case "super":
                made = self._client_class
            case "re.compile":
                made = _PATTERN
            case "typing.cast" | "typing_extensions.cast":
                made = arguments[-1] if arguments else None
            case "dict":
                made = first if isinstance(first, Entries) else Entries()
                for value in keywords.values():
                    made = Entries(join(made.item, value))
            case _ if clients.makes_client(path):
                made = self._client_made(path, node)
            case _:
                made = _items_made(path, arguments)
        return made

    def _client_made(self, path: str, node: ast.Call) -> Client:
        decodes: bool | None = None
        if path.rpartition(".")[2] in clients.CLASSES and clients.is_of_library(path):
            words = {word.arg: word.value for word in node.keywords}
            if "decode_responses" in words:
                said = words["decode_responses"]
                decodes = bool(said.value) if isinstance(said, ast.Constant) else None
            elif None not in words and "connection_pool" not in words:
                decodes = False
        return Client(clients.is_asynchronous(path), decodes)

    def await_(self, node: ast.Await) -> Value:
        value = self._value(node.value)
        return value if isinstance(value, Client) else None

    def comprehension(self, node: Comprehension) -> Value:
        outer = self._names
        self._names = Names(outer)
        for generator in node.generators:
            items = self._value(generator.iter)
            self._bind(generator.target, item_of(items) or OTHER, None)
            for condition in generator.ifs:
                self._value(condition)
        made: Value
        if isinstance(node, ast.DictComp):
            self._value(node.key)
            made = Entries(self._value(node.value))
        else:
            made = Items(self._value(node.elt), once=isinstance(node, ast.GeneratorExp))
        # A walrus binds outside of the comprehension.
        for inner in ast.walk(node):
            if isinstance(inner, ast.NamedExpr):
                outer[inner.target.id] = self._names[inner.target.id]
        self._names = outer
        return made

    def lambda_(self, node: ast.Lambda) -> Value:
        outer = self._names
        self._names = Names(outer)
        for default in filter(None, [*node.args.defaults, *node.args.kw_defaults]):
            self._value(default)
        self._parameters(node.args)
        for argument in node.args.args:  # lambda row: row.get("name")
            if clients.sounds_vague(argument.arg):
                self._names[argument.arg] = OTHER
        made = self._value(node.body)
        self._names = outer
        return Maker(made) if isinstance(made, Client) else OTHER

    def walrus(self, node: ast.NamedExpr) -> Value:
        value = self._value(node.value)
        self._bind(node.target, value, node.value)
        return value

    def choice(self, node: ast.IfExp) -> Value:
        self._value(node.test)
        return join(self._value(node.body), self._value(node.orelse))

    def and_or(self, node: ast.BoolOp) -> Value:
        result: Value = None
        either = isinstance(node.op, ast.Or)
        names = self._names
        before = names.own
        names.own = before.copy()
        for part in node.values:
            value = self._value(part)
            if not either:
                self._know_true(part)
            if either and isinstance(value, Lazy) and part is not node.values[-1]:
                value = Lazy(value.client, truthy=True, forced=True)
            result = join(result, value)
        names.own = names.joined(before, names.own)
        return result

    def sequence(self, node: ast.Tuple | ast.List | ast.Set) -> Value:
        parts = tuple(self._value(part) for part in node.elts)
        if isinstance(node, ast.Tuple) and not any(isinstance(e, ast.Starred) for e in node.elts):
            return Parts(parts)
        item: Value = None
        for part in parts:
            item = join(item, part)
        return Items(item)

    def dict_(self, node: ast.Dict) -> Value:
        item: Value = None
        for key, part in zip(node.keys, node.values, strict=True):
            value = self._value(part)
            if key is None:
                value = value.item if isinstance(value, Entries) else None
            else:
                self._value(key)
            item = join(item, value)
        return Entries(item)

    def starred(self, node: ast.Starred) -> Value:
        return item_of(self._value(node.value))

    def subscript(self, node: ast.Subscript) -> Value:
        owner = self._value(node.value)
        self._value(node.slice)
        index = node.slice.value if isinstance(node.slice, ast.Constant) else None
        found: Value = None
        match owner:
            case Entries():
                found = owner.item
            case Items() | Parts() if isinstance(node.slice, ast.Slice):
                found = Items(item_of(owner))
            case Parts() if isinstance(index, int) and 0 <= index < len(owner.parts):
                found = owner.parts[index]
            case Items() | Parts():
                found = item_of(owner)
            case Client():
                found = OTHER
        return found

    def operation(self, node: ast.BinOp) -> Value:
        # A long sum nests as deep as it is long, on its left.
        left: ast.expr = node
        added: list[Value] = []
        while isinstance(left, ast.BinOp):
            added.append(self._value(left.right))
            left = left.left
        added.append(self._value(left))
        if all(isinstance(value, (Items, Parts)) for value in added):
            item: Value = None
            for value in added:
                item = join(item, item_of(value))
            return Items(item)
        return OTHER

    def compare(self, node: ast.Compare) -> Value:
        operands = [(operand, self._value(operand)) for operand in [node.left, *node.comparators]]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            if isinstance(operator, (ast.Is, ast.IsNot)):
                self.report.identity(node, left, right)
            elif isinstance(operator, (ast.In, ast.NotIn)):
                self.report.containment(node, left, right[0])
        return OTHER


def _items_made(path: str, arguments: list[Value]) -> Value:
    """Return what a built-in function that goes through items gives."""
    first = arguments[0] if arguments else None
    made: Value = None
    match path:
        case "list" | "tuple" | "sorted" | "set":
            made = Items(item_of(first))
        case "map":
            made = Items(first.made if isinstance(first, Maker) else None, once=True)
        case "zip":
            made = Items(Parts(tuple(map(item_of, arguments))), once=True)
        case "enumerate":
            made = Items(Parts((OTHER, item_of(first))), once=True)
        case "reversed" | "iter":
            made = Items(item_of(first), once=True)
    return made


def _choices(annotation: ast.expr) -> list[ast.expr]:
    """Return the classes that an annotation allows."""
    match annotation:
        case ast.Constant(value=str(text)):
            try:
                return _choices(ast.parse(text, mode="eval").body)
            except (SyntaxError, ValueError):
                return []
        case ast.BinOp(op=ast.BitOr()):
            return _choices(annotation.left) + _choices(annotation.right)
        case ast.Subscript() if _last(annotation.value) in {"Annotated", "Optional", "Union"}:
            inside = annotation.slice
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return [choice for part in parts for choice in _choices(part)]
        case ast.Subscript():
            return [annotation.value]
        case _:
            return [annotation]


def _imported(tree: ast.Module) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_and(node: ast.expr) -> TypeGuard[ast.BoolOp]:
    return isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And)


def _is_address(node: ast.expr) -> bool:
    text = node.value if isinstance(node, ast.Constant) else None
    return isinstance(text, str) and text.startswith(("/", "http://", "https://"))


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _dotted(node: ast.expr) -> str | None:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _last(node: ast.expr) -> str:
    return (_dotted(node) or "").rpartition(".")[2]


def _ends(body: list[ast.stmt]) -> bool:
    """Return whether the program does not go on behind a body."""
    return bool(body) and isinstance(body[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))


def _handed_on(statement: ast.stmt, whole: list[ast.stmt]) -> Iterable[ast.Call]:
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
        if not any(_looks_at(target, whole) for target in targets):
            yield from _calls_in(value)


def _calls_in(node: ast.expr) -> Iterable[ast.Call]:
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
        yield from _calls_in(part)


def _looks_at(target: ast.expr, body: list[ast.stmt]) -> bool:
    """Return whether a body reads what it assigns to a target; of an index, nobody knows."""
    name = _dotted(target)
    return name is None or any(
        isinstance(node, (ast.Name, ast.Attribute))
        and isinstance(node.ctx, ast.Load)
        and _dotted(node) == name
        for statement in body
        for node in ast.walk(statement)
    )


def _is_scope(node: ast.With) -> bool:
    """Return whether a block is a scope, and so perhaps raises at its end what failed in it."""
    calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
    return any(_last(call.func) == "batch" for call in calls)


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
_EXPRESSIONS: dict[type[ast.expr], Callable[[_Finder, Any], Value]] = {
    ast.Name: _Finder.name,
    ast.Attribute: _Finder.attribute,
    ast.Call: _Finder.call,
    ast.Await: _Finder.await_,
    ast.ListComp: _Finder.comprehension,
    ast.SetComp: _Finder.comprehension,
    ast.GeneratorExp: _Finder.comprehension,
    ast.DictComp: _Finder.comprehension,
    ast.Lambda: _Finder.lambda_,
    ast.NamedExpr: _Finder.walrus,
    ast.IfExp: _Finder.choice,
    ast.BoolOp: _Finder.and_or,
    ast.Tuple: _Finder.sequence,
    ast.List: _Finder.sequence,
    ast.Set: _Finder.sequence,
    ast.Dict: _Finder.dict_,
    ast.Starred: _Finder.starred,
    ast.Subscript: _Finder.subscript,
    ast.BinOp: _Finder.operation,
    ast.Compare: _Finder.compare,
}
