"""What is misread, where it is, and how it is written instead."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import Any

from autobatch.lint.findings import Finding, Target, Wrapper, column_of, lines_of
from autobatch.lint.functions import (
    BUFFERS,
    DEEP,
    DEEP_METHODS,
    HOOKS,
    HOOKS_TO_TEXT,
    JSON_METHODS,
    KEYWORDS,
    NAMED,
    QUERIES,
    REAL_TYPE,
    TEXT_ONLY,
    WEB_METHODS,
    WITH_SECOND,
)
from autobatch.lint.values import Items, Lazy, Parts, Value, item_of, lazy_in

Evaluated = tuple[ast.expr, Value]

_SHOWN_LENGTH = 60


class Report:
    """The findings of one module.

    Attributes:
        found: by line, column and code.
        coroutine: whether the code looked at is a coroutine function's.
    """

    def __init__(self, source: str) -> None:
        self.lines = lines_of(source)
        self.found: dict[tuple[int, int, str], Finding] = {}
        self.coroutine = False

    def identity(self, node: ast.Compare, left: Evaluated, right: Evaluated) -> None:
        """Look at `left is right`."""
        sides = (left, right)
        lazy = [(side, value) for side, value in sides if isinstance(value, Lazy)]
        constants = [side for side, _ in sides if isinstance(side, ast.Constant)]
        if not lazy or not (constants or len(lazy) == len(sides)):
            return  # no reply is the same object as a sentinel, nor is its Future
        # What was tested for truth is neither None nor False.
        if lazy[0][1].truthy and all(not constant.value for constant in constants):
            return
        why = "{} sees the Future, not its value; write `{}`"
        self._add(node, "AB101", lazy[0][1], why, [side for side, _ in lazy])

    def containment(self, node: ast.Compare, left: Evaluated, right: ast.expr) -> None:
        """Look at `left in right`."""
        text = isinstance(right, ast.JoinedStr) or (
            isinstance(right, ast.Constant) and isinstance(right.value, (str, bytes))
        )
        operand, value = left
        if text and isinstance(value, Lazy):
            why = "a text looks only for texts, and {} is a Future; write `{}`"
            self._add(node, "AB103", value, why, [operand], about=operand)

    def call(
        self, node: ast.Call, path: str, arguments: list[Value], keywords: dict[str | None, Value]
    ) -> None:
        """Look at a call of something imported or built in, by its full name."""
        if path == "type" and len(arguments) == 1 and isinstance(arguments[0], Lazy):
            self._add(node, "AB102", arguments[0], "{} is Future; write `{}`", [node.args[0]])
        if path in WITH_SECOND and len(arguments) + len(keywords) > 1:
            self.arguments(node, arguments, (0,), WITH_SECOND[path])
        if path in BUFFERS:
            self.arguments(node, arguments, BUFFERS[path], "AB104")
        deep, text_only = path in DEEP, path in TEXT_ONLY
        if path in REAL_TYPE and not (deep and _knows_futures(node)):
            self.arguments(node, arguments, REAL_TYPE[path], deep=deep, text_only=text_only)
            for word in node.keywords:
                if word.arg == NAMED.get(path, ""):
                    value = keywords[word.arg]
                    self._argument(node, word.value, value, deep=deep, text_only=text_only)
        if path.rpartition(".")[2] in JSON_METHODS:
            self.arguments(node, arguments, (0,))
        if path in KEYWORDS:
            for word in node.keywords:
                self._argument(node, word.value, keywords[word.arg])

    def handed_on(
        self,
        node: ast.Call,
        method: ast.Attribute,
        arguments: list[Value],
        keywords: dict[str | None, Value],
    ) -> None:
        """Look at a call of a method, of whatever has one of this name."""
        name = method.attr
        if name in DEEP_METHODS:
            self.arguments(node, arguments, range(DEEP_METHODS[name], len(arguments)), deep=True)
        for word in node.keywords:
            json = name in WEB_METHODS and word.arg == "json"
            if json or (word.arg is not None and _is_query(method)):
                self._argument(node, word.value, keywords[word.arg], deep=True)

    def arguments(
        self,
        node: ast.Call,
        values: Sequence[Value],
        places: Iterable[int] | None = None,
        code: str = "AB103",
        *,
        deep: bool = False,
        text_only: bool = False,
    ) -> None:
        """Look at the positional arguments of a call that wants real types.

        Args:
            node: the call.
            values: what its arguments may be.
            places: which of them count; all, by default.
            code: why a Future is none.
            deep: what contains a Future counts, too.
            text_only: it takes the Future of bytes.
        """
        places = range(len(values)) if places is None else places
        for place in places:
            if place < len(values) and not isinstance(node.args[place], ast.Starred):
                self._argument(
                    node, node.args[place], values[place], code, deep=deep, text_only=text_only
                )

    def _argument(
        self,
        node: ast.Call,
        argument: ast.expr,
        value: Value,
        code: str = "AB103",
        *,
        deep: bool = False,
        text_only: bool = False,
    ) -> None:
        lazy = lazy_in(value) if deep else value
        if not isinstance(lazy, Lazy) or (text_only and lazy.client.decodes is False):
            return
        wants = "wants the real type" if code == "AB103" else "wants a buffer"
        if text_only and lazy.client.decodes is None:
            wants += " of a text (decode_responses=True)"
        itself = isinstance(value, Lazy)
        holds = "is a Future" if itself else "holds Futures"
        why = f"{_shown(node.func)}() {wants}, and {{}} {holds}; write `{{}}`"
        wrapper = Wrapper.UNWRAP if itself else Wrapper.RESOLVE
        self._add(node, code, lazy, why, [argument], wrapper, about=argument)

    def joined(self, node: ast.Call, value: Value) -> None:
        """Look at `separator.join(value)`."""
        lazy = item_of(value)
        if not isinstance(lazy, Lazy):
            return
        argument = node.args[0]
        # `resolve` leaves as it is what can be iterated over once.
        once = isinstance(value, Items) and value.once
        literal = isinstance(argument, ast.GeneratorExp)
        wrapper = Wrapper.RESOLVE_LIST if once and not literal else Wrapper.RESOLVE
        why = "join() wants real texts, and {} gives Futures; write `{}`"
        self._add(node, "AB103", lazy, why, [argument], wrapper, about=argument)

    def match(self, node: ast.Match, value: Value) -> None:
        """Look at the patterns that a value is held against."""
        if any(_misses(case.pattern, value) for case in node.cases):
            why = "the patterns do not see through the Future of {}; write `match {}`"
            wrapper = Wrapper.UNWRAP if isinstance(value, Lazy) else Wrapper.RESOLVE
            self._add(node.subject, "AB105", lazy_in(value), why, [node.subject], wrapper)

    def late(self, calls: list[tuple[ast.Call, Lazy]], *, looped: bool) -> None:
        """Note the calls in one `try` that nobody looks at there."""
        late = "{}: its error comes later than the except clause; "
        if len(calls) == 1 and not looped:
            [(call, lazy)] = calls
            self._add(call, "AB106", lazy, late + "write `{}`", [call])
            return
        for call, lazy in calls:
            scope = "put `with autobatch.batch(join=False):` around what is in the try"
            self._add(call, "AB106", lazy, late + scope, [])

    def _add(
        self,
        node: ast.expr,
        code: str,
        lazy: Lazy | None,
        message: str,
        wrapped: list[ast.expr],
        wrapper: Wrapper = Wrapper.UNWRAP,
        *,
        about: ast.expr | None = None,
    ) -> None:
        """Note a finding.

        Args:
            node: where.
            code: one of CODES.
            lazy: the value that is misread.
            message: with places for the code as it is, and as it should be.
            wrapped: what is to be wrapped in it.
            wrapper: in what.
            about: what the message shows, if it is not the node.
        """
        about = about or node
        asynchronous = lazy is not None and lazy.client.asynchronous is True
        rewritten = _shown(about, wrapped, wrapper, awaited=asynchronous)
        place = node.lineno, column_of(self.lines[node.lineno - 1], node.col_offset) + 1
        # Where it may be an asyncio client, only its user knows whether to await.
        unsure = lazy is None or (self.coroutine and lazy.client.asynchronous is None)
        targets = () if asynchronous or unsure else tuple(Target(w, wrapper) for w in wrapped)
        before = self.found.get((*place, code))
        if before is not None and len(before.targets) > len(targets):
            return  # `a is b is None`: what mends the one mends the other
        shown = f"`{_shown(about)}`"
        self.found[*place, code] = Finding(*place, code, message.format(shown, rewritten), targets)


def _knows_futures(node: ast.Call) -> bool:
    """Return whether a call has a hook that may know what a Future is."""
    return any(
        word.arg in HOOKS
        and not (isinstance(word.value, ast.Name) and word.value.id in HOOKS_TO_TEXT)
        for word in node.keywords
    )


def _is_query(node: ast.expr) -> bool:
    """Return whether a method is one of a query of Django's: `Model.objects.filter(...).update`."""
    while isinstance(node, (ast.Attribute, ast.Call)):
        if isinstance(node, ast.Attribute):
            if node.attr == QUERIES:
                return True
            node = node.value
        else:
            node = node.func
    return False


def _misses(pattern: ast.pattern, subject: Value) -> bool:
    """Return whether a pattern does not see a Future's value."""
    match pattern:
        case ast.MatchOr():
            return any(_misses(part, subject) for part in pattern.patterns)
        case ast.MatchAs() if pattern.pattern is not None:
            return _misses(pattern.pattern, subject)
        case ast.MatchSequence() if isinstance(subject, Parts):
            inside = pattern.patterns
            same = len(inside) == len(subject.parts)
            return same and any(map(_misses, inside, subject.parts))
        case ast.MatchMapping() | ast.MatchSequence() | ast.MatchSingleton():
            return isinstance(subject, Lazy)
        case _:
            return False


def _shown(
    node: ast.expr,
    wrapped: Iterable[ast.expr] = (),
    wrapper: Wrapper = Wrapper.UNWRAP,
    *,
    awaited: bool = False,
) -> str:
    """Return an expression as code, on one line, with parts of it wrapped."""
    inside = list(wrapped)
    text = ast.unparse(_with_wrapped(node, inside, wrapper, awaited=awaited) if inside else node)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "..."


def _with_wrapped(node: Any, wrapped: list[ast.expr], wrapper: Wrapper, *, awaited: bool) -> Any:
    """Return a copy of a tree, with parts of it wrapped, and awaited where that is wanted."""
    if isinstance(node, list):
        return [_with_wrapped(part, wrapped, wrapper, awaited=awaited) for part in node]
    if not isinstance(node, ast.AST):
        return node
    fields = {
        name: _with_wrapped(part, wrapped, wrapper, awaited=awaited)
        for name, part in ast.iter_fields(node)
    }
    copied: Any = type(node)(**fields)
    if not any(node is part for part in wrapped):
        return copied
    if awaited and wrapper is Wrapper.UNWRAP:
        return ast.Await(copied)
    if wrapper is Wrapper.RESOLVE_LIST:
        copied = ast.Call(ast.Name("list", ast.Load()), [copied], [])
    elif isinstance(copied, ast.GeneratorExp):
        copied = ast.ListComp(copied.elt, copied.generators)
    name = "unwrap" if wrapper is Wrapper.UNWRAP else "asyncio.resolve" if awaited else "resolve"
    function = ast.Name(f"autobatch.{name}", ast.Load())
    call = ast.Call(function, [copied], [])
    return ast.Await(call) if awaited else call
