"""Where a value goes inside a function, as far as its source tells: local data flow by `ast`.

The value of a call is followed through names, attributes, containers and expressions, and through
the conditions that it decides. What calls, closures and other objects do with it is not followed:
this sees what a reader sees who looks at one function.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import functools
import linecache
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from autobatch.report import Place

# First line, column, last line, its column: as `ast` counts them.
Span: TypeAlias = tuple[int, int, int, int]
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Module


class Reach(enum.Enum):
    """How a value reaches a call."""

    ARGUMENT = "argument"
    CONDITION = "condition"
    """It decides whether, or how often, the call happens."""


class Unseen(Exception):
    """The source is not there, or is not what ran."""


def reach(source: Place, target: Place) -> Reach | None:
    """Return how the value of what is called at a place reaches a call of the same function.

    Args:
        source: a call, or an operation that leads to one.
        target: the other; perhaps the same one, in the next turn of a loop.

    Returns:
        None: it does not, as far as can be seen.

    Raises:
        Unseen: the source cannot be read.
    """
    function = _function_at(source)
    flow = _flow_from(function, _node_at(function, source))
    return flow.reached.get(_span(_node_at(function, target)))


def decides_to_raise(source: Place) -> bool:
    """Return whether the value of what is called at a place decides if its function raises.

    Raises:
        Unseen: the source cannot be read.
    """
    function = _function_at(source)
    return _flow_from(function, _node_at(function, source)).raises


def goes_on(call: Place, target: Place | None = None) -> bool:
    """Return whether a function goes on as ever where a call of its has raised.

    Args:
        call: what has raised.
        target: what is called later, if the same function does; it is left out, too, if it comes
            later in the same `try`.

    Raises:
        Unseen: the source cannot be read.
    """
    function = _function_at(call)
    raising = _node_at(function, call)
    later = None if target is None else _node_at(function, target)
    if later is not None and _span(later) <= _span(raising):
        later = None  # in the next turn of a loop
    for node in ast.walk(function):
        inside = {id(part) for statement in _caught_in(node) for part in ast.walk(statement)}
        if id(raising) in inside and id(later) not in inside:
            return True
    return False


def _caught_in(node: ast.AST) -> list[ast.stmt]:
    """Return the statements of a `try`, or a `with suppress`, after whose errors all goes on."""
    if isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items]
        names = [_name(call.func) for call in calls if isinstance(call, ast.Call)]
        return node.body if any(name.endswith("suppress") for name in names) else []
    if not isinstance(node, (ast.Try, ast.TryStar)) or not node.handlers:
        return []
    parts = [part for handler in node.handlers for part in ast.walk(handler)]
    stops = any(isinstance(part, (ast.Raise, ast.Return, ast.Break)) for part in parts)
    return [] if stops else node.body


def _only_raises(node: ast.Try | ast.TryStar) -> bool:
    """Return whether all that the handlers of a `try` do with an error is to raise."""
    parts = [part for handler in node.handlers for part in ast.walk(handler)]
    ends = any(isinstance(part, (ast.Return, ast.Break, ast.Continue)) for part in parts)
    return not ends and any(isinstance(part, ast.Raise) for part in parts)


def follows(first: Place, second: Place) -> bool:
    """Return whether, in one call of their function, the second place can come after the first.

    Raises:
        Unseen: the source cannot be read.
    """
    function = _function_at(first)
    one, other = _node_at(function, first), _node_at(function, second)
    loops = _loops_around(function, one)
    return _span(one) < _span(other) or any(
        loop in loops for loop in _loops_around(function, other)
    )


def loop_of(place: Place) -> int | None:
    """Return the line of the innermost loop around a place in its function, if there is one.

    Raises:
        Unseen: the source cannot be read.
    """
    function = _function_at(place)
    loops = _loops_around(function, _node_at(function, place))
    return loops[-1].lineno if loops else None


def refresh() -> None:
    """Read again what was edited since it was read."""
    for file, lines in list(_known.items()):
        linecache.checkcache(file)
        if linecache.getlines(file) is not lines:  # it keeps the list until then
            _known.clear()
            _function_at.cache_clear()
            return


# ---- finding the code ----------------------------------------------------------------------

_known: dict[str, list[str]] = {}


@functools.lru_cache(256)
def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Unseen from error


@functools.lru_cache(1024)
def _function_at(place: Place) -> Function:
    """Return the innermost function around a place; the module, if there is none."""
    lines = linecache.getlines(place.file)
    if not lines:
        raise Unseen
    _known[place.file] = lines
    found: Function = _parsed("".join(lines))
    for node in ast.walk(found):  # outer ones come first
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = node.body[0].lineno <= place.line <= (node.end_lineno or 0)
            if inside and node.name in place.function.split("."):
                found = node
    return found


def _span(node: ast.expr) -> Span:
    return node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0


@functools.lru_cache(4096)
def _node_at(function: Function, place: Place) -> ast.expr:
    """Return the expression that a place is."""
    nodes = [node for node in ast.walk(function) if isinstance(node, ast.expr)]
    if place.span is not None:
        column, *end = place.span
        ending = [node for node in nodes if [node.end_lineno, node.end_col_offset] == end]
        for node in ending:
            if (node.lineno, node.col_offset) == (place.line, column):
                return node
        # A method that is called on another line than its object begins on.
        calls = [node for node in ending if isinstance(node, ast.Call)]
        if calls:
            return calls[-1]
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.lineno == place.line]
    if len(calls) != 1:
        raise Unseen
    return calls[0]


_LOOPS = (
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
_Loop: TypeAlias = (
    ast.For
    | ast.AsyncFor
    | ast.While
    | ast.ListComp
    | ast.SetComp
    | ast.DictComp
    | ast.GeneratorExp
)


@functools.lru_cache(4096)
def _loops_around(function: Function, inner: ast.expr) -> list[_Loop]:
    """Return the loops that repeat an expression, the outermost first."""
    return [
        node
        for node in ast.walk(function)  # outer ones come first
        if isinstance(node, _LOOPS) and any(part is inner for part in _repeated(node))
    ]


def _repeated(loop: _Loop) -> Iterator[ast.AST]:
    """Yield what a loop repeats: not what it runs over."""
    if isinstance(loop, (ast.For, ast.AsyncFor)):
        parts: list[ast.AST] = [*loop.body]
    elif isinstance(loop, ast.While):
        parts = [loop.test, *loop.body]
    else:
        first = loop.generators[0]
        results = [loop.key, loop.value] if isinstance(loop, ast.DictComp) else [loop.elt]
        parts = [*results, *first.ifs, *loop.generators[1:]]
    for part in parts:
        yield from ast.walk(part)


# ---- following the value -------------------------------------------------------------------


@functools.lru_cache(1024)
def _flow_from(function: Function, source: ast.expr) -> _Flow:
    flow = _Flow(source)
    try:
        flow.run(function.body)
    except RecursionError as error:
        raise Unseen from error
    return flow


class _Flow:
    """Runs a function without values: it knows which names hold something of the source's."""

    def __init__(self, source: ast.expr) -> None:
        self.reached: dict[Span, Reach] = {}
        self.raises = False  # the value decides whether the function raises
        self._handled = 0  # by how many `try` what is raised here would be
        self._used = False  # where it may be refused: in this `try`, so its handlers depend on it
        self._source = source
        self._held: set[str] = set()
        self._perhaps: set[str] = set()  # set in what may have been left out
        self._conditions = 0  # that the value decides, around where we are
        # It has decided that the rest was left out: of the function, of a `try` that handles what
        # was raised, of a loop, of a turn of that.
        self._returned = self._raised = self._broken = self._continued = False

    def run(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self._run(statement)

    @functools.singledispatchmethod
    def _run(self, node: ast.stmt) -> None:
        """Run a statement; what only has expressions, here.

        An assertion is no decision of the program.
        """
        self._look_inside(node)

    @_run.register
    def _(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign_parts(target, node.value)

    @_run.register
    def _(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, held=self._look(node.value))

    @_run.register
    def _(self, node: ast.AugAssign) -> None:
        held = self._look_at([node.value, node.target])
        self._assign(node.target, held=held)

    @_run.register
    def _(self, node: ast.If) -> None:
        self._branch(node.body, node.orelse, held=self._look(node.test))

    @_run.register(ast.For)
    @_run.register(ast.AsyncFor)
    def _(self, node: ast.For | ast.AsyncFor) -> None:
        held = self._look(node.iter)

        def begin_turn() -> bool:
            self._assign(node.target, held=held)
            return held

        self._loop(node, begin_turn)

    @_run.register
    def _(self, node: ast.While) -> None:
        self._loop(node, lambda: self._look(node.test))

    @_run.register(ast.With)
    @_run.register(ast.AsyncWith)
    def _(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            held = self._look(item.context_expr)
            if item.optional_vars is not None:
                self._assign(item.optional_vars, held=held)
        self.run(node.body)

    @_run.register(ast.Try)
    @_run.register(ast.TryStar)
    def _(self, node: ast.Try | ast.TryStar) -> None:
        if node.handlers:
            raised, used = self._raised, self._used
            self._raised = self._used = False
            self._handled += 1
            self.run(node.body)
            self._handled -= 1
            # To raise something else is no more of a decision than to let it through.
            decided = self._raised or (self._used and not _only_raises(node))
            self._raised, self._used = raised, used
            self._held |= self._perhaps
            handlers = [handler.body for handler in node.handlers]
            self._branch(node.orelse, *handlers, held=decided)
        else:
            self.run(node.body)
        self.run(node.finalbody)

    @_run.register
    def _(self, node: ast.Match) -> None:
        held = self._look(node.subject)
        for case in node.cases if held else []:
            for part in ast.walk(case.pattern):
                if isinstance(part, (ast.MatchAs, ast.MatchStar)) and part.name is not None:
                    self._held.add(part.name)
        perhaps_none: list[ast.stmt] = []
        self._branch(perhaps_none, *[case.body for case in node.cases], held=held)

    @_run.register(ast.FunctionDef)
    @_run.register(ast.AsyncFunctionDef)
    @_run.register(ast.ClassDef)
    def _(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        left_out = self._returned, self._raised, self._broken, self._continued
        state = set(self._held), self._used, self.raises
        self.run(node.body)  # what it sees of the value
        self._returned, self._raised, self._broken, self._continued = left_out
        self._held, self._used, self.raises = state

    @_run.register(ast.Return)
    @_run.register(ast.Raise)
    def _(self, node: ast.Return | ast.Raise) -> None:
        self._look_inside(node)
        decided = self._conditions > 0 or self._returned
        if isinstance(node, ast.Raise) and self._handled:
            self._raised = self._raised or decided
        else:
            self._returned = decided
            self.raises = self.raises or (decided and isinstance(node, ast.Raise))

    @_run.register
    def _(self, _: ast.Break) -> None:
        self._broken = self._broken or self._conditions > 0

    @_run.register
    def _(self, _: ast.Continue) -> None:
        self._continued = self._continued or self._conditions > 0

    def _branch(self, *branches: list[ast.stmt], held: bool) -> None:
        before = set(self._held)
        after: set[str] = set()
        with self._deciding(held):
            for branch in branches:
                self._held = set(before)
                self.run(branch)
                after |= self._held
        self._held = after

    def _loop(
        self, node: ast.For | ast.AsyncFor | ast.While, begin_turn: Callable[[], bool]
    ) -> None:
        outer = self._broken, self._continued
        self._broken = False
        before = set(self._held)
        for _ in range(2):  # what a turn leaves behind may reach the next one
            self._continued = False
            with self._deciding(begin_turn()):
                self.run(node.body)
            self._held |= before
        if self._broken:  # in which turn it ended
            self._perhaps |= _assigned_in(node)
        self._held |= self._perhaps
        self._broken, self._continued = outer
        self.run(node.orelse)

    @contextlib.contextmanager
    def _deciding(self, held: bool) -> Iterator[None]:  # noqa: FBT001  # what it is about
        self._conditions += held
        try:
            yield
        finally:
            self._conditions -= held

    # ---- names

    def _assign_parts(self, target: ast.expr, value: ast.expr) -> None:
        """Assign what may be several values to as many targets."""
        if (
            isinstance(target, (ast.Tuple, ast.List))
            and isinstance(value, (ast.Tuple, ast.List))
            and len(target.elts) == len(value.elts)
        ):
            held = [self._look(one) for one in value.elts]
            for one, is_held in zip(target.elts, held, strict=True):
                self._assign(one, held=is_held)
        else:
            self._assign(target, held=self._look(value))

    def _assign(self, target: ast.expr, *, held: bool) -> None:
        held = held or self._conditions > 0  # what it is was decided by the value
        if isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                self._assign(part, held=held)
        elif isinstance(target, ast.Starred):
            self._assign(target.value, held=held)
        elif isinstance(target, ast.Subscript):
            self._look(target.slice)
            if held:
                self._hold(target.value)
        elif held:
            self._hold(target)
        else:
            self._held.discard(_name(target))
            if self._raised or self._continued:
                self._perhaps.add(_name(target))

    def _hold(self, target: ast.expr) -> None:
        while isinstance(target, ast.Subscript):
            target = target.value
        name = _name(target)
        if name:
            self._held.add(name)

    # ---- expressions

    def _look_inside(self, node: ast.AST) -> bool:
        """Look at all expressions in a node; return whether any holds something of the value."""
        return self._look_at(_expressions_in(node))

    def _look_at(self, nodes: Iterable[ast.expr]) -> bool:
        held = False
        for node in nodes:  # each of them: any() would stop
            held |= self._look(node)
        return held

    def _look(self, node: ast.expr) -> bool:
        held = self._holds(node)
        left_out = self._returned or self._raised or self._broken or self._continued
        decided = self._conditions > 0 or left_out
        if held or decided:
            how = Reach.ARGUMENT if held else Reach.CONDITION
            if self.reached.get(_span(node)) is not Reach.ARGUMENT:
                self.reached[_span(node)] = how
        return held or node is self._source

    @functools.singledispatchmethod
    def _holds(self, node: ast.expr) -> bool:
        """Return whether an expression holds something of the value: any part of it does."""
        return self._look_inside(node)

    @_holds.register
    def _(self, node: ast.Name) -> bool:
        return node.id in self._held

    @_holds.register
    def _(self, node: ast.Attribute) -> bool:
        return _name(node) in self._held or self._look(node.value)

    @_holds.register
    def _(self, node: ast.NamedExpr) -> bool:
        held = self._look(node.value)
        self._assign(node.target, held=held)
        return held

    @_holds.register
    def _(self, node: ast.IfExp) -> bool:
        held = self._look(node.test)
        with self._deciding(held):
            return self._look_at([node.body, node.orelse]) or held

    @_holds.register
    def _(self, node: ast.BoolOp) -> bool:
        with contextlib.ExitStack() as decisions:
            any_held = False
            for value in node.values:
                held = self._look(value)
                decisions.enter_context(self._deciding(held))
                any_held |= held
            return any_held

    @_holds.register(ast.ListComp)
    @_holds.register(ast.SetComp)
    @_holds.register(ast.GeneratorExp)
    def _(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> bool:
        return self._comprehend(node.generators, [node.elt])

    @_holds.register
    def _(self, node: ast.DictComp) -> bool:
        return self._comprehend(node.generators, [node.key, node.value])

    def _comprehend(self, generators: list[ast.comprehension], results: list[ast.expr]) -> bool:
        outer = set(self._held)
        any_held = False
        with contextlib.ExitStack() as decisions:
            for generator in generators:
                held = self._look(generator.iter)
                self._assign(generator.target, held=held)
                decisions.enter_context(self._deciding(held))
                any_held |= held
                for test in generator.ifs:
                    held = self._look(test)
                    decisions.enter_context(self._deciding(held))
                    any_held |= held
            any_held |= self._look_at(results)
        self._held = outer
        return any_held

    @_holds.register
    def _(self, node: ast.Call) -> bool:
        receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
        of_value = self._look(node.func if receiver is None else receiver)
        given = [*node.args, *[keyword.value for keyword in node.keywords]]
        if of_value:  # value.map(lambda it: ...)
            for one in given:
                if isinstance(one, ast.Lambda):
                    self._held |= {argument.arg for argument in one.args.args}
        held = self._look_at(given)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if held and receiver is not None and method in _MUTATORS:
            self._hold(receiver)
        if held and _name(node.func) in _STOPPING:
            self._stop(given)
        if (held or of_value) and (method or _name(node.func)) not in _TAKING:
            self._used = True
        return held or of_value

    def _stop(self, given: list[ast.expr]) -> None:
        """Note that the turns of a generator are decided by the value of those before."""
        turns = [
            part for one in given if isinstance(one, ast.GeneratorExp) for part in ast.walk(one)
        ]
        for part in turns:
            if isinstance(part, ast.expr):
                self.reached.setdefault(_span(part), Reach.CONDITION)

    @_holds.register
    def _(self, node: ast.Subscript) -> bool:
        held = self._look_inside(node)
        self._used = self._used or held
        return held


# What puts its arguments into its object.
_MUTATORS = {"add", "append", "appendleft", "extend", "insert", "put", "setdefault", "update"}
# What takes any value, and refuses none.
_TAKING = _MUTATORS | {"gather", "shield", "wait_for"}
# What goes on with the next turn of a generator only if the value of this one will not do.
_STOPPING = {"all", "any", "next"}


def _assigned_in(node: ast.AST) -> set[str]:
    return {
        part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    }


def _expressions_in(node: ast.AST) -> Iterator[ast.expr]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield child
        else:
            yield from _expressions_in(child)


def _name(node: ast.expr) -> str:
    """Return a name, or attributes of one, with dots; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _name(node.value)
        return inner and f"{inner}.{node.attr}"
    return ""
