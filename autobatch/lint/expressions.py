"""What expressions may stand for, as far as the functions of a module tell."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterable
from typing import Any

from autobatch.lint import clients
from autobatch.lint.checks import Report
from autobatch.lint.functions import JSON_METHODS, PATTERN_METHODS, TEXT_METHODS
from autobatch.lint.syntax import choices, dotted, is_address, is_and, last
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
    Parts,
    Value,
    item_of,
    join,
)

Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp

_BUILTINS = frozenset(dir(builtins))
_PATTERN = Known("re.Pattern")
SELF = Known("self")
_ADDERS = {"add", "append", "appendleft", "extend", "insert"}
# An annotation that says no more than a name does.
_SAYS_NOTHING = {"Any", "object", "typing.Any"}


class Expressions:
    """Evaluates expressions, with what each name may stand for at that point.

    Attributes:
        report: what was found.
    """

    def __init__(self, source: str, names: Iterable[str]) -> None:
        self.report = Report(source)
        self._configured = [f".{name}" for name in names]
        self._names = Names()
        self._works_with_redis = False
        self._client_class: Client | None = None
        self._waiting: list[Callable[[], None]] = []

    # ---- names -------------------------------------------------------------------------

    def _bind(self, target: ast.expr, value: Value, source: ast.expr | None) -> None:
        """Let a target stand for a value, and for a client where its name says so."""
        match target:
            case ast.Name() | ast.Attribute():
                if isinstance(target, ast.Attribute):
                    self._value(target.value)
                self._bind_path(dotted(target), value, source)
            case ast.Tuple() | ast.List():
                self._unpack(target.elts, value)
            case ast.Starred():
                self._bind(target.value, Items(value), None)
            case ast.Subscript():
                held = self._value(target.value)
                self._value(target.slice)
                path = dotted(target.value)
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
        if isinstance(source, ast.Call) and clients.is_class_s(last(source.func)):
            return False  # of a class that makes no clients
        return clients.sounds_certain(name) and isinstance(
            source, (ast.Call, ast.Await, ast.Attribute, ast.Name, ast.Subscript, ast.IfExp)
        )

    def _know_true(self, test: ast.expr) -> None:
        """Note what is true behind a test: neither None nor False."""
        for part in test.values if is_and(test) else [test]:
            value = self._names[part.id] if isinstance(part, ast.Name) else None
            if isinstance(part, ast.Name) and isinstance(value, Lazy):
                self._names[part.id] = Lazy(value.client, truthy=True, forced=True)

    def _parameters(self, arguments: ast.arguments) -> None:
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for number, argument in enumerate(every):
            if number == 0 and argument.arg in {"self", "cls"} and argument.annotation is None:
                value: Value = self._client_class or SELF
                if argument.arg in self._names:  # what the class knows of itself comes with it
                    continue
            else:
                value = self._annotated(argument.annotation)
                if value is None and self._sounds(argument.arg):
                    value = Client()
            self._names[argument.arg] = value or OTHER
        for argument in filter(None, [arguments.vararg, arguments.kwarg]):
            self._names[argument.arg] = OTHER

    def _annotated(self, annotation: ast.expr | None) -> Value:
        """Return what an annotation says; None where that is nothing."""
        said = None if annotation is None else [self._path(p) for p in choices(annotation)]
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
        path = dotted(node)
        if path is not None:
            if self._is_configured(path):
                return Client()
            if path in self._names:
                return self._names[path]
        if isinstance(owner, Known) and owner is not SELF:
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
        path = dotted(node)
        if path is not None and path in self._names:
            return self._names[path]
        if isinstance(owner, Known) and owner not in (SELF, _PATTERN):
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
        if client == Client() and node.args and is_address(node.args[0]):
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
        path = dotted(node.func.value) if isinstance(node.func, ast.Attribute) else None
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


_EXPRESSIONS: dict[type[ast.expr], Callable[[Expressions, Any], Value]] = {
    ast.Name: Expressions.name,
    ast.Attribute: Expressions.attribute,
    ast.Call: Expressions.call,
    ast.Await: Expressions.await_,
    ast.ListComp: Expressions.comprehension,
    ast.SetComp: Expressions.comprehension,
    ast.GeneratorExp: Expressions.comprehension,
    ast.DictComp: Expressions.comprehension,
    ast.Lambda: Expressions.lambda_,
    ast.NamedExpr: Expressions.walrus,
    ast.IfExp: Expressions.choice,
    ast.BoolOp: Expressions.and_or,
    ast.Tuple: Expressions.sequence,
    ast.List: Expressions.sequence,
    ast.Set: Expressions.sequence,
    ast.Dict: Expressions.dict_,
    ast.Starred: Expressions.starred,
    ast.Subscript: Expressions.subscript,
    ast.BinOp: Expressions.operation,
    ast.Compare: Expressions.compare,
}
